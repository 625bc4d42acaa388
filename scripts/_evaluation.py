"""The rows of an evaluation: systems and baselines, scored sentence by sentence against the same references.

Every hypothesis is scored once: what MBR and the oracle choose, and each resample of the bootstrap, add up the numbers
that its sentences already have. Marks between the sentences of a text ([X_SEP] and others) are words to no measure;
GLGE's alone read them.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain

import numpy as np
from _generated import Outputs
from tqdm import tqdm

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import bootstrap, diversity, glge, model_based, overlap
from diffusion_fairseq.text import reranking

MEASURES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "overall": "ROUGE mean",
    "bleu": "BLEU",
    "chrf": "chrF",
    "unchanged": "unchanged %",
    "words_changed": "words changed %",
}
GLGE_MEASURES = {"glge1": "GLGE R-1", "glge2": "GLGE R-2", "glgeL": "GLGE R-L", "pyrougeL": "py-rouge R-L"}
DIFFUSEQ_MEASURES = {"sentence_bleu": "BLEU of sentences (nltk)", "rougeL_unstemmed": "ROUGE-L, no stemmer"}
BERT_MEASURES = {"bertscore": "BERTScore"}
DIVERSITY = {
    "words": "words",
    "empty": "empty %",
    "dist1": "dist-1 %",
    "dist2": "dist-2 %",
    "dist1_sentence": "dist-1 in sentence %",
    "entropy": "entropy bits",
    "zipf": "Zipf",
    "self_bleu": "self-BLEU",
    "div4": "div-4 %",
}
UTILITY_NAMES = {"bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rouge": "ROUGE-1/2/L"}
UTILITIES = ("rougeL", "bleu")
DEFAULT_ORACLE = "rougeL"
RESAMPLES = 1000
SHARED_OUT = 1000  # sentences from which on several processes are worth their start


class Evaluation:
    """The rows of the table, each scored against the same references and sources (None: not known).

    Attributes:
        rows: for each system its scores; a ROUGE is the mean of F1 x 100, BLEU and chrF are the corpus's; "overall" is
            the mean of ROUGE-1, ROUGE-2 and ROUGE-L (GENIE's Table 1).
        diversity: the same rows' measures that need no reference.
        chosen: for each system of several candidates and each utility of MBR, the texts that it chooses.
        signatures: the settings and versions behind the numbers.
    """

    def __init__(self, references: list[str], sources: list[str] | None, glge_variant: str | None = None,
                 bert_scorer=None, oracle: str = DEFAULT_ORACLE, diffuseq: bool = False, workers: int = 1):
        if diffuseq:
            check_nltk()  # before ROUGE is asked for: rouge-score imports nltk, too
        self.references = [glge.without_marks(text) for text in references]
        self.sources = None if sources is None else [glge.without_marks(text) for text in sources]
        self.glge_variant = glge_variant
        self.bert_scorer, self.oracle, self.diffuseq, self.workers = bert_scorer, oracle, diffuseq, workers
        self.rows: dict[str, dict[str, float]] = {}
        self.diversity: dict[str, dict[str, float]] = {}
        self.chosen: dict[str, dict[str, list[str]]] = {}
        self._statistics: dict[str, list[np.ndarray]] = {}
        self._corpus = {name: overlap.CorpusMeasure(name) for name in ("bleu", "chrf")}
        self._glge_references = None
        if glge_variant is not None:
            self._glge_references = [glge.prepare_reference(text, glge_variant) for text in references]
        self.means = [*overlap.DEFAULT_ROUGE_TYPES, *(GLGE_MEASURES if glge_variant else ()),
                      *(DIFFUSEQ_MEASURES if diffuseq else ()), *(BERT_MEASURES if bert_scorer else ())]
        if not set(reranking.ORACLES[oracle]) <= set(self.means):
            raise UserError(f"the oracle {oracle} chooses by GLGE's ROUGE: give --glge, too")
        self.percentages = [] if sources is None else ["unchanged", "words_changed"]

    @property
    def measures(self) -> list[str]:
        """Every row's measures, in the order of `score`."""
        return [*self.means, *self.percentages, *self._corpus, "overall"]

    @property
    def signatures(self) -> dict[str, str]:
        signatures = {"rouge": overlap.rouge_signature()}
        signatures.update({name: measure.signature for name, measure in self._corpus.items()})
        if self.glge_variant is not None:
            signatures["glge"] = glge.signature(self.glge_variant)
        if self.diffuseq:
            signatures.update(diffuseq_signatures())
        if self.bert_scorer is not None:
            signatures["bertscore"] = model_based.bert_score_signature(self.bert_scorer)
        if self.chosen:
            signatures["self-bleu"] = "pairwise|sentence|tok:blank|smooth:exp|eff:yes"
        if any(self.chosen.values()):
            signatures["mbr"] = "mean over the others|rouge:f1,stem:no,case:lc|bleu:tok:blank,smooth:exp,eff:yes"
        return signatures

    def add(self, name: str, system: Outputs, utilities: Sequence[str] = UTILITIES) -> None:
        """A row for the first candidates and, where there are several, those of the best model score (if they are
        others), their mean, MBR's and the oracle's choice."""
        bar = tqdm(system.candidates, desc=name, unit=" candidates", leave=False, disable=None)
        statistics = [self.statistics(hypotheses) for hypotheses in bar]
        self.add_row(name, statistics[:1], system.candidates[:1])
        if len(statistics) == 1:
            return
        surest = system.surest()
        if any(surest):
            self.add_choice(f"{name}: best by model score", system, statistics, surest)
        mean = f"{name}: mean over {len(statistics)} candidates"
        self.add_row(mean, statistics, system.candidates)
        sets = list(zip(*(map(glge.without_marks, texts) for texts in system.candidates), strict=True))
        matrices = {utility: [reranking.pairwise(texts, utility) for texts in sets] for utility in {*utilities, "bleu"}}
        self.diversity[mean]["self_bleu"] = diversity.self_bleu(matrices["bleu"])
        self.diversity[mean]["div4"] = 100 * diversity.distinct_among(sets)
        self.chosen[name] = {}
        for utility in utilities:
            picked = [reranking.most_useful(matrix) for matrix in matrices[utility]]
            title = f"{name}: MBR by {UTILITY_NAMES[utility]}"
            self.chosen[name][utility] = self.add_choice(title, system, statistics, picked)
        picked = reranking.oracle_picks(np.stack(statistics, axis=1), self.means, self.oracle)
        self.add_choice(f"{name}: oracle (chosen with the reference)", system, statistics, picked)

    def add_choice(self, title: str, system: Outputs, statistics: list[np.ndarray], picked: list[int]) -> list[str]:
        """A row for one candidate of each sentence; returns their texts."""
        texts = [system.candidates[j][i] for i, j in enumerate(picked)]
        numbers = np.stack([statistics[j][i] for i, j in enumerate(picked)])
        self.add_row(title, [numbers], [texts])
        return texts

    def add_row(self, name: str, statistics: list[np.ndarray], columns: list[list[str]]) -> None:
        """A row of the mean over columns, each one hypothesis a sentence."""
        if name in self.rows:
            raise UserError(f"two systems are called {name!r}: choose other names in --name and --system")
        self._statistics[name] = statistics
        scores = [self.score(np.array([sum(column) for column in numbers.T.tolist()])) for numbers in statistics]
        self.rows[name] = {measure: sum(found) / len(found) for measure, *found in zip(self.measures, *scores)}
        found = [varied(texts) for texts in columns]
        self.diversity[name] = {key: sum(row[key] for row in found) / len(found) for key in found[0]}

    def add_reference(self) -> None:
        """A row for the references: their diversity, and how far they are from the sources."""
        if self.sources is not None:
            self.add_row("the reference itself", [self.statistics(self.references)], [self.references])
            row = self.rows["the reference itself"]
            self.rows["the reference itself"] = {measure: row[measure] for measure in self.percentages}

    def statistics(self, hypotheses: list[str]) -> np.ndarray:
        """(S, K) numbers of each sentence, whose sums `score` reads."""
        marked, hypotheses = hypotheses, [glge.without_marks(text) for text in hypotheses]
        found = self._shared_out(overlap.rouge_per_sentence, hypotheses, self.references)
        if self.glge_variant is not None:
            prepared = [glge.prepare_hypothesis(text, self.glge_variant) for text in marked]
            found += self._shared_out(glge.rouge_per_sentence, prepared, self._glge_references)
        if self.diffuseq:
            found.append(sentence_bleu(hypotheses, self.references))
            found += overlap.rouge_per_sentence(hypotheses, self.references, ("rougeL",), use_stemmer=False).values()
        if self.bert_scorer is not None:
            found.append(100 * model_based.bert_score(hypotheses, self.references, self.bert_scorer))
        if self.sources is not None:
            found.append(overlap.copied_per_sentence(hypotheses, self.sources))
            found.append(overlap.changed_per_sentence(hypotheses, self.sources))
        corpus = [measure.statistics(hypotheses, self.references) for measure in self._corpus.values()]
        return np.concatenate([np.array(found, dtype=float).T, np.ones((len(hypotheses), 1)), *corpus], axis=1)

    def _shared_out(self, rouge: Callable, hypotheses: list[str], references: list[str]) -> list[list[float]]:
        """The columns of a ROUGE of each sentence, whose time grows with the square of its length, by processes."""
        if self.workers == 1 or len(hypotheses) < SHARED_OUT:
            return list(rouge(hypotheses, references).values())
        size = -(-len(hypotheses) // (4 * self.workers))
        parts = ([texts[first : first + size] for first in range(0, len(texts), size)]
                 for texts in (hypotheses, references))
        with ProcessPoolExecutor(self.workers) as pool:
            found = [list(part.values()) for part in pool.map(rouge, *parts)]
        return [list(chain.from_iterable(column)) for column in zip(*found)]

    def score(self, sums: np.ndarray) -> list[float]:
        """The measures of `self.measures` from the sums of `statistics` over sentences."""
        means, percentages = len(self.means), len(self.percentages)
        count = sums[means + percentages]
        scores = [total / count for total in sums[:means].tolist()]
        overall = sum(scores[: len(overlap.DEFAULT_ROUGE_TYPES)]) / len(overlap.DEFAULT_ROUGE_TYPES)
        scores += [100 * (total / count) for total in sums[means : means + percentages].tolist()]
        bleu, chrf = np.split(sums[means + percentages + 1 :], [overlap.BLEU_COUNTS])
        return [*map(float, scores), self._corpus["bleu"].score(bleu), self._corpus["chrf"].score(chrf), float(overall)]

    def intervals(self, confidence: float, seed: int = 1, resamples: int = RESAMPLES) -> dict[str, dict[str, dict]]:
        """Bootstrap intervals of each row's measures, and of their difference from the first row's.

        Returns:
            {"scores" or "differences": {row: {measure: (low, high)}}}; the first row has no difference.
        """
        drawn = bootstrap.draws(len(self.references), resamples, seed)
        scores = {name: sum(bootstrap.resampled(numbers, self.score, drawn) for numbers in columns) / len(columns)
                  for name, columns in self._statistics.items()}
        first, *others = scores

        def table(names: Iterable[str], values: Mapping[str, np.ndarray]) -> dict[str, dict[str, tuple]]:
            return {name: {measure: bootstrap.interval(values[name][:, place], confidence)
                           for place, measure in enumerate(self.measures) if measure in self.rows[name]}
                    for name in names}

        differences = {name: scores[name] - scores[first] for name in others}
        return {"scores": table(scores, scores), "differences": table(others, differences)}


def check_nltk() -> None:
    if find_spec("nltk") is None:
        raise UserError("DiffuSeq's BLEU needs the nltk package: pip install nltk")


def sentence_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU x 100 of each sentence, case kept, nltk's smoothing 4 (Chen and Cherry, 2014): DiffuSeq's evaluation."""
    from nltk.translate import bleu_score  # a second of import time that others need not pay

    smooth = bleu_score.SmoothingFunction().method4
    return [100 * float(bleu_score.sentence_bleu([reference.split()], hypothesis.split(), smoothing_function=smooth))
            for hypothesis, reference in zip(hypotheses, references, strict=True)]


def diffuseq_signatures() -> dict[str, str]:
    """The settings behind DIFFUSEQ_MEASURES; nltk's smoothing is not the same in all versions."""
    return {"sentence-bleu": f"mean over sentences|tok:blank|case:kept|smooth:method4|nltk:{version('nltk')}",
            "rouge-l-no-stemmer": overlap.rouge_signature(use_stemmer=False)}


def varied(texts: list[str]) -> dict[str, float]:
    """The measures of one hypothesis a sentence that need no reference; shares x 100."""
    texts = [glge.without_marks(text) for text in texts]
    return {
        "words": diversity.mean_words(texts),
        "empty": 100 * diversity.empty_share(texts),
        "dist1": 100 * diversity.distinct(texts, 1),
        "dist2": 100 * diversity.distinct(texts, 2),
        "dist1_sentence": 100 * diversity.distinct_per_sentence(texts, 1),
        "entropy": diversity.token_entropy(texts),
        "zipf": diversity.zipf_coefficient(texts),
    }


def evaluate(
    model: Outputs,
    references: list[str],
    sources: list[str] | None = None,
    *,
    name: str = "model",
    systems: Mapping[str, Outputs] | None = None,
    train_targets: Sequence[str] = (),
    utilities: Sequence[str] = UTILITIES,
    glge_variant: str | None = None,
    bert_scorer=None,
    oracle: str = DEFAULT_ORACLE,
    diffuseq: bool = False,
    seed: int = 1,
    workers: int = 1,
) -> Evaluation:
    """Score a model beside other systems and the baselines.

    Args:
        systems: more rows, by name; each has the model's number of sentences.
        train_targets: lines of which random ones are a baseline, drawn by `seed`; none: no such row.
        utilities: of reranking.UTILITIES, an MBR row for each where there are several candidates.
        glge_variant: of glge.VARIANTS; adds GLGE_MEASURES to each row.
        bert_scorer: of model_based.load_bert_scorer; adds BERT_MEASURES to each row.
        oracle: of reranking.ORACLES, what the oracle chooses by.
        diffuseq: adds DIFFUSEQ_MEASURES, those of DiffuSeq's Table 1, to each row.
        workers: processes that share ROUGE's work; the numbers do not depend on them.
    Raises:
        UserError: unequal numbers of sentences, two systems of one name, an unknown variant or utility, an oracle that
            chooses by GLGE's ROUGE without a variant of it, nltk is missing.
    """
    evaluation = Evaluation(references, sources, glge_variant, bert_scorer, oracle, diffuseq, workers)
    evaluation.add(name, model, utilities)
    for other, system in (systems or {}).items():
        evaluation.add(other, system, utilities)
    if sources is not None:
        evaluation.add("copy of the source", Outputs([sources]))
    if train_targets:
        drawn = random.Random(seed).choices(train_targets, k=len(model))
        evaluation.add("random training target", Outputs([drawn]))
    evaluation.add_reference()
    return evaluation
