"""fairseq's --scoring rouge."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import SCORER_REGISTRY, BaseScorer, register_scorer

from diffusion_fairseq.metrics import overlap


@dataclass
class RougeScorerConfig(FairseqDataclass):
    """Options of --scoring rouge."""

    rouge_types: str = field(
        default=",".join(overlap.DEFAULT_ROUGE_TYPES),
        metadata={"help": "comma-separated ROUGE types to report: rouge1 to rouge9, rougeL, rougeLsum"},
    )
    rouge_no_stemmer: bool = field(
        default=False,
        metadata={"help": "compare words as they are (default: their Porter stems, the usual setting)"},
    )


class RougeScorer(BaseScorer):
    """Mean ROUGE F1 x 100 of the first hypotheses.

    Raises:
        UserError: an unknown type or no rouge-score package (at construction); nothing to score (in scoring).
    """

    def __init__(self, cfg: RougeScorerConfig):
        super().__init__(cfg)
        self.types = [name.strip() for name in cfg.rouge_types.split(",") if name.strip()]
        overlap.check_rouge(self.types)

    def score(self) -> float:
        """ROUGE-L, whatever types are reported."""
        return self._scores(["rougeL"])["rougeL"]

    def result_string(self) -> str:
        """The line that fairseq-generate ends with: every type's score, sentences and settings."""
        scores = ", ".join(f"{name} = {score:.2f}" for name, score in self._scores(self.types).items())
        settings = overlap.rouge_signature(use_stemmer=not self.cfg.rouge_no_stemmer)
        return f"{scores} ({len(self.pred)} sentences, {settings})"

    def _scores(self, types: list[str]) -> dict[str, float]:
        return overlap.rouge(self.pred, self.ref, types, use_stemmer=not self.cfg.rouge_no_stemmer)


# fairseq raises on a second registration, which an import under another module name would be
if "rouge" not in SCORER_REGISTRY:
    register_scorer("rouge", dataclass=RougeScorerConfig)(RougeScorer)
