"""A classifier of texts with the layers of a DDLM, for fairseq's sentence_prediction ("Democratized Diffusion Language
Model", section 4.2)."""

import logging
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DDLMClassifierConfig
from diffusion_fairseq.models.ddlm_encoder import DDLMEncoder, sigma_equals_t
from diffusion_fairseq.models.persistence import Persistent, fingerprint
from diffusion_fairseq.models.presets import DDLM_CLASSIFIER
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.packing import Packing

logger = logging.getLogger(__name__)
HEADS = "classification_heads."
# Parts of a DDLM that read no text: the scores of the vocabulary, and the law by which t was drawn.
NOT_READING = ("head.", "timesteps.")


@register("ddlm_classifier", DDLMClassifierConfig, DDLM_CLASSIFIER)
class DDLMClassifierModel(DDLMEncoder, Persistent):
    """Clean embeddings of a text, scaled as at one time t, through a DDLM's layers; a head on the mean over positions.

    Args:
        cfg: options.
        num_tokens: size of the dictionary.
        pad: index of padding.
    """

    def __init__(self, cfg: DDLMClassifierConfig, num_tokens: int, pad: int):
        super().__init__(num_tokens)
        self.cfg, self.pad, self.frozen = cfg, pad, cfg.freeze_encoder
        self.args = cfg  # fairseq 0.12.2's sentence_prediction asks it for the scales of adapters
        self.schedule = sigma_equals_t(cfg)
        if not cfg.t_min <= cfg.classification_time <= cfg.t_max:
            raise UserError(f"--classification-time {cfg.classification_time:g} is a time at which the layers were not "
                            f"trained: give one from --t-min {cfg.t_min:g} to --t-max {cfg.t_max:g}")
        self.self_conditioning = cfg.self_conditioning
        self.embedding = nn.Embedding(num_tokens, cfg.latent_dim)
        self.add_layers(cfg, cfg.max_positions)
        self.init_tables()
        self.requires_grad_(not self.frozen)
        self.classification_heads = nn.ModuleDict()

    @classmethod
    def build_model(cls, cfg: DDLMClassifierConfig, task) -> "DDLMClassifierModel":
        """Build the model; the task registers its head.

        Raises:
            UserError: another task, or options that give no model.
        """
        if not hasattr(task, "label_dictionary"):
            raise UserError("a ddlm_classifier classifies texts: pass --task sentence_prediction")
        model = cls(cfg, len(task.source_dictionary), task.source_dictionary.pad())
        # Under the name that a DDLM's weights have for its one dictionary.
        model.dictionaries = {"target": fingerprint(task.source_dictionary)}
        return model

    def register_classification_head(self, name: str, num_classes: int, inner_dim: Optional[int] = None) -> None:
        """Make a head: one linear layer on frozen features, BERT's pooler and classifier otherwise."""
        dim = self.cfg.model_dim
        if self.frozen:
            layers = [nn.Linear(dim, num_classes)]
        else:
            inner = inner_dim or dim
            layers = [nn.Dropout(self.cfg.dropout), nn.Linear(dim, inner), nn.Tanh(), nn.Dropout(self.cfg.dropout),
                      nn.Linear(inner, num_classes)]
        self.classification_heads[name] = nn.Sequential(*layers)

    def train(self, mode: bool = True) -> "DDLMClassifierModel":
        """As torch's; what is frozen has no dropout."""
        super().train(mode)
        if self.frozen:
            for name, module in self.named_children():
                module.train(mode and name == HEADS[:-1])
        return self

    def max_positions(self) -> int:
        """Longest text, in tokens."""
        return self.cfg.max_positions

    def features(self, src_tokens: Tensor) -> Tensor:
        """The mean (B, model_dim) over the positions of texts (B, L) of what the layers make of them."""
        packing = Packing.of(src_tokens != self.pad)
        t = torch.tensor([self.cfg.classification_time], device=src_tokens.device)
        x0 = F.embedding(src_tokens, self.vectors).float()
        return packing.mean(self.hidden(self.scaled(x0, t), t, packing))

    def forward(self, src_tokens: Tensor, classification_head_name: str, **_) -> Tuple[Tensor, None]:
        """Scores (B, classes) of texts (B, L) by a head, as the host's criterion sentence_prediction asks for them."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.features(src_tokens)
        return self.classification_heads[classification_head_name](features), None

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """As Persistent; the weights may be a DDLM's, or have heads for other labels: then ours stay as they are."""
        prefix = name + "." if name else ""
        own = {prefix + key: value for key, value in self.state_dict().items() if key.startswith(HEADS)}
        new = [key for key, value in own.items() if key not in state_dict or state_dict[key].shape != value.shape]
        left_out = tuple(prefix + part for part in (*NOT_READING, HEADS))
        for key in [key for key in state_dict if key.startswith(left_out) and key not in own]:
            del state_dict[key]
        state_dict.update((key, own[key]) for key in new)
        super().upgrade_state_dict_named(state_dict, name)
        if new:
            logger.info(f"classification heads that the weights do not have begin anew: {', '.join(new)}")
            self._refitted += new
