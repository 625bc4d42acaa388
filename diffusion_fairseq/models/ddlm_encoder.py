"""The layers of a DDLM: what the diffusion model shares with the classifier of clean texts."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.diffusion.schedules import SigmaEqualsT
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DDLMSizes, check_sizes
from diffusion_fairseq.modules.conditioned import ConditionalLayerNorm, ConditionedLayer
from diffusion_fairseq.modules.layers import init_bert
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.modules.self_conditioning import with_previous
from diffusion_fairseq.modules.time_embedding import TIME_SCALE, TimeEmbedding
from diffusion_fairseq.text.embedding import normalised


def sigma_equals_t(cfg: DDLMSizes) -> SigmaEqualsT:
    """The noise levels of a DDLM's options.

    Raises:
        UserError: options that give none.
    """
    try:
        return SigmaEqualsT(cfg.t_min, cfg.t_max)
    except ValueError as error:
        raise UserError(f"--t-min, --t-max: {error}") from error


class DDLMEncoder(nn.Module):
    """The part of a model with an `embedding` and a `schedule` that reads embeddings at a level of noise: projection,
    marks, positions, bidirectional layers with conditional layer norms.

    A base class rather than a member: the names of the weights are those of the model.
    """

    self_conditioning = False

    def add_layers(self, cfg: DDLMSizes, max_positions: int) -> None:
        """Make the layers for sequences of at most so many positions.

        Raises:
            UserError: sizes that do not fit.
        """
        check_sizes(cfg)
        dim = cfg.model_dim
        if cfg.rotary and dim // cfg.attention_heads % 2:
            raise UserError(f"--rotary needs heads of an even width, got {dim // cfg.attention_heads}: --model-dim "
                            f"{dim} over --attention-heads {cfg.attention_heads}")
        self.up_projection = nn.Linear(cfg.latent_dim * (2 if self.self_conditioning else 1), dim)
        # Which positions are given and which are noised.
        self.marks = nn.Embedding(2, dim)
        self.positions = None if cfg.rotary else nn.Embedding(max_positions, dim)
        self.time_embedding = TimeEmbedding(cfg.time_dim, cfg.time_dim)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(
            ConditionedLayer(dim, cfg.attention_heads, cfg.ffn_dim, cfg.time_dim, cfg.dropout, cfg.rotary)
            for _ in range(cfg.encoder_layers)
        )
        self.final_norm = ConditionalLayerNorm(dim, cfg.time_dim)

    def init_tables(self) -> None:
        """Draw the tables as BERT's; once all modules of the model are made."""
        for table in (self.marks, self.positions):
            init_bert(table)

    @property
    def vectors(self) -> Tensor:
        """The embeddings (V, D), each of length sqrt(D): a cross-entropy alone would let them grow without end (CDCD,
        section 3.1)."""
        return normalised(self.embedding.weight)

    @staticmethod
    def scaled(xt: Tensor, t: Tensor) -> Tensor:
        """x_t (R, L, D) at times t (R,) or () with a variance of 1, as the layers see noised positions."""
        return xt * (1 + t.reshape(-1, 1, 1).float() ** 2).rsqrt()

    def hidden(self, x: Tensor, t: Tensor, packing: Packing, previous: Optional[Tensor] = None,
               given: Optional[Tensor] = None) -> Tensor:
        """What the layers make (n, model_dim) of the packed positions of x (R, L, D), scaled where it is noised, at
        times t (R,) or (); given (R, L) bool is for the marks."""
        marks = x.new_zeros(x.shape[:2], dtype=torch.bool) if given is None else given
        x = packing.pack(x).to(self.up_projection.weight.dtype)
        if self.self_conditioning:
            x = with_previous(x, None if previous is None else packing.pack(previous))
        x = self.up_projection(x) + self.marks(packing.pack(marks).long())
        if self.positions is not None:
            # Padding may reach beyond the last position; it is masked.
            places = packing.columns(x.device).clamp(max=self.positions.num_embeddings - 1)
            x = x + self.positions(places)
        t_min, t_max = self.schedule.t_min, self.schedule.t_max
        share = (t.reshape(-1).float() / t_min).log() / math.log(t_max / t_min)
        condition = F.silu(self.time_embedding(TIME_SCALE * share))
        rows = packing.rows(x.device) if len(condition) > 1 else None
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, packing, condition, rows)
        return self.final_norm(x, condition, rows)
