"""A classifier of x_t, at every level of its noise, for classifier-guided generation (Li et al., 2022, section 5)."""

from typing import Any, Dict, List, Optional

from torch import Tensor, nn

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import LatentClassifierConfig, TransformerSizes
from diffusion_fairseq.models.latent_encoder import LatentEncoder
from diffusion_fairseq.models.latent_space import LatentSpace, facts, load
from diffusion_fairseq.models.learned_timesteps import LearnsTimesteps
from diffusion_fairseq.models.persistence import check_finite
from diffusion_fairseq.models.presets import LATENT_CLASSIFIER
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.packing import Packing, filled_up

SHOWN = 12  # labels that an error lists


@register("latent_classifier", LatentClassifierConfig, LATENT_CLASSIFIER)
class LatentClassifierModel(LatentEncoder, LearnsTimesteps):
    """log p(label | x_t, t): BERT's layers over x_t, the mean over its positions, a linear head.

    Its checkpoint holds the embeddings and noise levels of the diffusion model whose x_t it reads.

    Args:
        cfg: sizes.
        space: of the diffusion model; None: that of the weights which are to be loaded.
        labels: their names.
        pad: index of padding; None where only x_t is classified, and no text.
    """

    def __init__(self, cfg: TransformerSizes, space: Optional[LatentSpace], labels: List[str],
                 pad: Optional[int] = None):
        super().__init__()
        self.cfg, self.space, self.labels, self.pad = cfg, None, labels, pad
        if space is not None:
            self._read(space)

    def _read(self, space: LatentSpace) -> None:
        """Make the layers that read x_t of a space."""
        self.space = space
        self.add_layers(self.cfg, space.embedding.size(1), space.longest)
        self.head = nn.Linear(self.cfg.model_dim, len(self.labels))
        self.init_layers()

    @property
    def schedule(self):
        """The noise levels of the x_t that it reads: those of the diffusion model that it leads."""
        return self.space.schedule

    @classmethod
    def build_model(cls, cfg: LatentClassifierConfig, task) -> "LatentClassifierModel":
        """Build the classifier of a task's labels; without --diffusion-path it waits for the space of its weights.

        Raises:
            UserError: another task, no diffusion model, or one with another dictionary.
        """
        if not hasattr(task, "labels"):
            raise UserError("a latent_classifier classifies texts: pass --task latent_classification")
        space = None
        if cfg.diffusion_path is not None:
            space = LatentSpace.of_checkpoint(cfg.diffusion_path)
            task.check_space(space, cfg.diffusion_path)
        return cls(cfg, space, task.labels, task.source_dictionary.pad())

    @classmethod
    def of_checkpoint(cls, path: str) -> "LatentClassifierModel":
        """The classifier in a checkpoint, without gradients, from that file alone.

        Raises:
            UserError: the file cannot be read, or holds another kind of model, or no names of labels.
        """
        cfg, weights = load(path, cls)
        if "labels" not in facts(weights):
            raise UserError(f"{path} holds no names of labels: use a file that training has written")
        model = cls(cfg, None, list(facts(weights)["labels"]))
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False)

    def state_dict(self, *args, **kwargs):
        """As torch's; the metadata names the labels and says what the space was taken from."""
        state = super().state_dict(*args, **kwargs)
        if self.space is not None:
            own = state._metadata[kwargs.get("prefix", "")[:-1]]
            own.update(labels=list(self.labels), space=self.space.facts())
        return state

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """As LearnsTimesteps; where no space is known yet, take that of the weights.

        Raises:
            UserError: weights that are not finite, or of other labels.
        """
        check_finite({key: weight for key, weight in state_dict.items() if not key.startswith("space.")})
        labels = list(facts(state_dict).get("labels", self.labels))
        if labels != self.labels:
            raise UserError(f"the checkpoint's labels are {_listed(labels)}; the data's {_listed(self.labels)}")
        if self.space is None:
            self._read(LatentSpace.of_weights(state_dict))
        super().upgrade_state_dict_named(state_dict, name)

    def label_index(self, label: str) -> int:
        """Which output is the label's. UserError: it is not known."""
        if label not in self.labels:
            raise UserError(f"--classifier-label {label!r} is unknown: choose one of {_listed(self.labels)}")
        return self.labels.index(label)

    def max_positions(self) -> int:
        """Longest text, in tokens."""
        return self.space.longest

    def forward(self, src_tokens: Tensor, t: Tensor, draws: Optional[Draws] = None) -> Tensor:
        """Scores (B, labels) of texts (B, L) at times t (B,), with noise from `draws`; default: torch's own."""
        tokens, packing = self.space.modelled(src_tokens, self.pad)
        return self.logits(self.space.noised(tokens, t, draws or Draws()), t, packing)

    def logits(self, xt: Tensor, t: Tensor, packing: Packing) -> Tensor:
        """Scores (R, labels) of x_t (R, L, D) at times t (R,) or (), float32."""
        mean = self.dropout(packing.mean(self.hidden(xt, t, packing)))
        return self.head(filled_up(mean, 0))[: len(xt)].float()


def _listed(labels: List[str]) -> str:
    return ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
