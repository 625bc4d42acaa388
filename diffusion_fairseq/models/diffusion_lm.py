"""Diffusion-LM: one bidirectional encoder that denoises a whole sequence (Li et al., 2022)."""

from typing import Iterator, Optional

import torch
from torch import Tensor, nn

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel, one_of
from diffusion_fairseq.models.condition import Prompt
from diffusion_fairseq.models.config import GIVEN_TOKENS, DiffusionLMConfig, TransformerConfig
from diffusion_fairseq.models.presets import DIFFUSION_LM
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.layers import BERT_LAYER_NORM_EPS, EncoderLayer, init_bert
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.modules.self_conditioning import with_previous
from diffusion_fairseq.modules.time_embedding import TIME_SCALE, TimeEmbedding


class EncoderOnlyModel(DiffusionModel):
    """A denoiser without cross-attention: x_t -> projection -> BERT's layers -> projection.

    Args:
        cfg: options.
        num_tokens: size of the dictionary.
        pad: index of padding.
        max_positions: longest sequence that goes through the layers.
        marks: whether the network is told which positions are given.
    """

    def __init__(self, cfg: TransformerConfig, num_tokens: int, pad: int, max_positions: int, marks: bool = False):
        super().__init__(cfg, num_tokens, pad)
        dim = cfg.model_dim
        if dim % cfg.attention_heads:
            raise UserError(f"--model-dim {dim} must be a multiple of --attention-heads {cfg.attention_heads}")
        self.time_embedding = TimeEmbedding(cfg.time_dim, dim)
        self.up_projection = nn.Sequential(
            nn.Linear(cfg.latent_dim * (2 if cfg.self_conditioning else 1), dim), nn.Tanh(), nn.Linear(dim, dim)
        )
        # Says which positions are given, where those are clean: early in generation a clean embedding looks like noise.
        self.marks = nn.Embedding(2, dim) if marks else None
        self.positions = nn.Embedding(max_positions, dim)
        self.norm = nn.LayerNorm(dim, eps=BERT_LAYER_NORM_EPS)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, cfg.attention_heads, cfg.ffn_dim, cfg.dropout, cfg.encoder_normalize_before)
            for _ in range(cfg.encoder_layers)
        )
        self.final_norm = (
            nn.LayerNorm(dim, eps=BERT_LAYER_NORM_EPS) if cfg.encoder_normalize_before else nn.Identity()
        )
        self.down_projection = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, cfg.latent_dim))
        for table in (self.positions, self.marks):
            init_bert(table)
        self.layers.apply(init_bert)

    def network(self, xt: Tensor, t: Tensor, memory: Prompt, packing: Packing, previous: Optional[Tensor]) -> Tensor:
        x = packing.pack(memory.impose(xt)).to(self.positions.weight.dtype)
        if self.self_conditioning:
            x = with_previous(x, None if previous is None else packing.pack(previous))
        x = self.up_projection(x)
        if self.marks is not None:
            given = memory.given(*xt.shape[:2])
            given = xt.new_zeros(xt.shape[:2], dtype=torch.bool) if given is None else given
            x = x + self.marks(packing.pack(given).long())
        return packing.unpack(self.down_projection(self.transform(x, t, packing)))

    def transform(self, x: Tensor, t: Tensor, packing: Packing) -> Tensor:
        """x (n, model_dim) at packed positions and t (R,) or () through the layers."""
        time = self.time_embedding(t.reshape(-1).float() * (TIME_SCALE / self.schedule.num_timesteps))
        if len(time) > 1:
            time = time[packing.rows(x.device)]
        # Padding may reach beyond the last position; it is masked.
        positions = self.positions(packing.columns(x.device).clamp(max=self.positions.num_embeddings - 1))
        x = self.dropout(self.norm(x + positions + time))
        for layer in self.layers:
            x = layer(x, packing)
        return self.final_norm(x)

    def transformer_layers(self) -> Iterator[nn.Module]:
        yield from self.layers


@register("diffusion_lm", DiffusionLMConfig, DIFFUSION_LM)
class DiffusionLMModel(EncoderOnlyModel):
    """A language model whose prompts are sequences with a mask token wherever one is to be generated.

    Args:
        cfg: options.
        num_tokens: size of the dictionary.
        pad, mask: indices of padding and of the mask token.
    """

    LENGTH_MODELS = ("given", "fixed", "longest")
    numbered = True

    def __init__(self, cfg: DiffusionLMConfig, num_tokens: int, pad: int, mask: int):
        clean = one_of("--given-tokens", cfg.given_tokens, GIVEN_TOKENS) == "clean"
        super().__init__(cfg, num_tokens, pad, cfg.max_target_positions, marks=clean)
        self.mask = mask
        self.noises_given = not clean

    @classmethod
    def build_model(cls, cfg: DiffusionLMConfig, task) -> "DiffusionLMModel":
        cls.check_task(task)
        if not hasattr(task, "mask"):
            raise UserError("a diffusion_lm writes one sequence, not a target for a source: pass --task diffusion_lm")
        return cls(cfg, len(task.target_dictionary), task.target_dictionary.pad(), task.mask)

    def encode(self, src_tokens: Tensor) -> Prompt:
        """The prompts (B, L): a mask token where one is generated."""
        mask = src_tokens != self.pad
        fixed = mask & (src_tokens != self.mask)
        # A model that noises all its positions learns from all of them.
        none = (self.training and self.noises_given) or not fixed.any()
        return Prompt(src_tokens, mask, None if none else fixed, self.embedding(src_tokens).float())

    def memory(self, encoded: Prompt) -> Prompt:
        return encoded
