"""BERT's layers over x_t: what the denoiser without cross-attention shares with the classifier of x_t."""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from diffusion_fairseq.models.condition import Memory
from diffusion_fairseq.models.config import TransformerSizes, check_sizes
from diffusion_fairseq.modules.attention import KeyValue
from diffusion_fairseq.modules.layers import BERT_LAYER_NORM_EPS, EncoderLayer, init_bert
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.modules.self_conditioning import with_previous
from diffusion_fairseq.modules.time_embedding import TIME_SCALE, TimeEmbedding


class LatentEncoder(nn.Module):
    """The part of a model with a `schedule` that reads x_t: projection, positions, time, bidirectional layers.

    A base class rather than a member: the names of the weights are those of the model.
    """

    self_conditioning = False

    def add_layers(self, cfg: TransformerSizes, latent_dim: int, max_positions: int, marks: bool = False) -> None:
        """Make the layers.

        Args:
            cfg: sizes.
            latent_dim: width of x_t.
            max_positions: longest sequence.
            marks: whether the network is told which positions are given.
        Raises:
            UserError: sizes that do not fit.
        """
        check_sizes(cfg)
        dim = cfg.model_dim
        self.time_embedding = TimeEmbedding(cfg.time_dim, dim)
        self.up_projection = nn.Sequential(
            nn.Linear(latent_dim * (2 if self.self_conditioning else 1), dim), nn.Tanh(), nn.Linear(dim, dim)
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

    def init_layers(self) -> None:
        """Draw the weights of the layers and tables as BERT's; once all modules of the model are made."""
        for table in (self.positions, self.marks):
            init_bert(table)
        self.layers.apply(init_bert)

    def hidden(self, xt: Tensor, t: Tensor, packing: Packing, previous: Optional[Tensor] = None,
               given: Optional[Tensor] = None, source: Optional[Memory] = None) -> Tensor:
        """What the layers make (n, model_dim) of the packed positions of xt (R, L, D) at times t (R,) or (); given
        (R, L) bool is for the marks; source is what lies before the rows, where that is no part of them."""
        x = self.read(xt, t, packing, previous, given, None if source is None else source.offset)
        for number, layer in enumerate(self.layers):
            x = layer(x, packing) if source is None else layer(x, packing, None, source.layers[number], source.mask)
        return self.final_norm(x)

    def remember(self, xt: Tensor, t: Tensor, packing: Packing,
                 given: Optional[Tensor] = None) -> Tuple[Tensor, Tuple[KeyValue, ...]]:
        """`hidden`, and each layer's keys and values of the same positions, computed once for both."""
        x, found = self.read(xt, t, packing, None, given), []
        for layer in self.layers:
            found.append(layer.memory(x, packing))
            x = layer(x, packing, found[-1])
        return self.final_norm(x), tuple(found)

    def read(self, xt: Tensor, t: Tensor, packing: Packing, previous: Optional[Tensor], given: Optional[Tensor],
             offset: Optional[Tensor] = None) -> Tensor:
        """What goes into the layers (n, model_dim): `hidden`'s arguments, and offset (B,), how many positions lie
        before the rows of each of B sources."""
        x = packing.pack(xt).to(self.positions.weight.dtype)
        if self.self_conditioning:
            x = with_previous(x, None if previous is None else packing.pack(previous))
        x = self.up_projection(x)
        if self.marks is not None:
            given = xt.new_zeros(xt.shape[:2], dtype=torch.bool) if given is None else given
            x = x + self.marks(packing.pack(given).long())
        time = self.time_embedding(t.reshape(-1).float() * (TIME_SCALE / self.schedule.num_timesteps))
        if len(time) > 1:
            time = time[packing.rows(x.device)]
        columns = packing.columns(x.device)
        if offset is not None:
            columns = columns + offset.repeat_interleave(len(xt) // len(offset))[packing.rows(x.device)]
        # Padding may reach beyond the last position; it is masked.
        positions = self.positions(columns.clamp(max=self.positions.num_embeddings - 1))
        return self.dropout(self.norm(x + positions + time))
