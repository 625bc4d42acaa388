"""GENIE: a bidirectional encoder and a cross-attending denoiser of target embeddings (Lin et al., 2022)."""

from typing import Iterator, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.condition import Encoded, Memory
from diffusion_fairseq.models.config import GenieConfig, check_sizes
from diffusion_fairseq.models.presets import GENIE
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.copying import CopyHead
from diffusion_fairseq.modules.layers import BERT_LAYER_NORM_EPS, DenoiserLayer, EncoderLayer, init_bert
from diffusion_fairseq.modules.length_predictor import LengthPredictor
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.modules.self_conditioning import with_previous
from diffusion_fairseq.modules.time_embedding import TIME_SCALE, TimeEmbedding


class SourceEncoder(nn.Module):
    """BERT's encoder without its pooler and token types.

    Args:
        cfg: sizes.
        num_tokens: size of the source dictionary.
        pad: index of padding.
    """

    def __init__(self, cfg: GenieConfig, num_tokens: int, pad: int):
        super().__init__()
        self.pad = pad
        self.attend_padding = cfg.attend_source_padding
        if cfg.share_embeddings:
            self.tokens = nn.Linear(cfg.latent_dim, cfg.model_dim, bias=False)
        else:
            self.tokens = nn.Embedding(num_tokens, cfg.model_dim)
        self.positions = nn.Embedding(cfg.max_source_positions, cfg.model_dim)
        self.norm = nn.LayerNorm(cfg.model_dim, eps=BERT_LAYER_NORM_EPS)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(cfg.model_dim, cfg.attention_heads, cfg.ffn_dim, cfg.dropout, cfg.encoder_normalize_before)
            for _ in range(cfg.encoder_layers)
        )
        self.final_norm = (
            nn.LayerNorm(cfg.model_dim, eps=BERT_LAYER_NORM_EPS) if cfg.encoder_normalize_before else nn.Identity()
        )
        self.apply(init_bert)

    def forward(self, src_tokens: Tensor, shared: Optional[nn.Embedding] = None) -> Encoded:
        """src_tokens (B, S), padded on either side: positions count from the first real token.

        Args:
            shared: the target's embedding, with --share-embeddings.
        """
        mask = src_tokens != self.pad
        # Padding that the denoiser attends to must be computed.
        packing = Packing.padded(mask) if self.attend_padding else Packing.of(mask)
        tokens = packing.pack(src_tokens)
        embedded = self.tokens(tokens if shared is None else shared(tokens).to(self.positions.weight.dtype))
        first = mask.int().argmax(dim=1, keepdim=True)
        positions = torch.arange(src_tokens.size(1), device=src_tokens.device) - first
        # Padding may reach beyond the last position; it is masked.
        positions = positions.clamp(0, self.positions.num_embeddings - 1)
        x = self.dropout(self.norm(embedded + self.positions(packing.pack(positions))))
        for layer in self.layers:
            x = layer(x, packing)
        return Encoded(self.final_norm(x), mask, packing)


@register("genie", GenieConfig, GENIE)
class GenieModel(DiffusionModel):
    """GENIE (seed sizes: --arch genie_base).

    Args:
        cfg: options.
        num_source_tokens, num_tokens: sizes of the source and target dictionaries.
        pad: index of padding in both.
        eos: index of the source's end of sentence, which alone is the empty source; needed for --condition-dropout.
    """

    def __init__(self, cfg: GenieConfig, num_source_tokens: int, num_tokens: int, pad: int, eos: Optional[int] = None):
        super().__init__(cfg, num_tokens, pad)
        self.empty = eos
        check_sizes(cfg)
        if cfg.denoiser_layers < 1:
            raise UserError(f"--denoiser-layers must be at least 1, got {cfg.denoiser_layers}")
        dim = cfg.model_dim
        self.attend_source_padding = cfg.attend_source_padding
        self.share_embeddings = cfg.share_embeddings
        self.encoder = SourceEncoder(cfg, num_source_tokens, pad)
        self.time_embedding = TimeEmbedding(cfg.time_dim, dim)
        self.up_projection = nn.Sequential(
            nn.Linear(cfg.latent_dim * (2 if cfg.self_conditioning else 1), dim), nn.Tanh(), nn.Linear(dim, dim)
        )
        self.positions = nn.Embedding(cfg.max_target_positions, dim)
        init_bert(self.positions)
        self.norm = nn.LayerNorm(dim, eps=BERT_LAYER_NORM_EPS)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(
            DenoiserLayer(dim, cfg.attention_heads, cfg.ffn_dim, dim, cfg.dropout)
            for _ in range(cfg.denoiser_layers)
        )
        self.down_projection = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, cfg.latent_dim))
        if cfg.copy_source and self.parameterization != "x0":
            raise UserError("--copy-source copies embeddings: it needs --parameterization x0")
        self.copy_head = CopyHead(dim) if cfg.copy_source else None
        if self.length_model == "predicted":
            self.length_predictor = LengthPredictor(dim, cfg.max_target_positions)

    @classmethod
    def build_model(cls, cfg: GenieConfig, task) -> "GenieModel":
        cls.check_task(task)
        joined = task.source_dictionary == task.target_dictionary
        for option in ("share_embeddings", "copy_source"):
            if getattr(cfg, option) and not joined:
                raise UserError(f"--{option.replace('_', '-')} needs one dictionary for both sides: binarise with "
                                "fairseq-preprocess --joined-dictionary")
        return cls(cfg, len(task.source_dictionary), len(task.target_dictionary), task.target_dictionary.pad(),
                   task.source_dictionary.eos())

    def encode(self, src_tokens: Tensor) -> Encoded:
        encoded = self.encoder(src_tokens, self.embedding if self.share_embeddings else None)
        if self.copy_head is None:
            return encoded
        return encoded._replace(embedded=self.embed(encoded.packing.pack(src_tokens)).to(encoded.hidden.dtype))

    def memory(self, encoded: Encoded) -> Memory:
        layers = tuple(layer.cross_attention.memory(encoded.hidden, encoded.packing) for layer in self.layers)
        if self.copy_head is not None:
            layers += (self.copy_head.memory(encoded.hidden, encoded.embedded, encoded.packing),)
        return Memory(layers, None if self.attend_source_padding else encoded.packing.mask)

    def without_condition(self, src_tokens: Tensor) -> Tensor:
        """A source of its end alone in place of each source (B, S): not even the length is left."""
        return F.pad(torch.full_like(src_tokens[:, :1], self.empty), (0, src_tokens.size(1) - 1), value=self.pad)

    def unconditional(self, memory: Memory) -> Memory:
        """One empty source, which all rows share."""
        return self.memory(self.encode(torch.full((1, 1), self.empty, device=self.embedding.weight.device)))

    def network(self, xt: Tensor, t: Tensor, memory: Memory, packing: Packing, previous: Optional[Tensor]) -> Tensor:
        xt = packing.pack(xt).to(self.positions.weight.dtype)
        if self.self_conditioning:
            xt = with_previous(xt, None if previous is None else packing.pack(previous))
        time = self.time_embedding(t.reshape(-1).float() * (TIME_SCALE / self.schedule.num_timesteps))
        if len(time) > 1:
            time = time[packing.rows(xt.device)]
        # Padding may reach beyond the last position; it is masked.
        positions = self.positions(packing.columns(xt.device).clamp(max=self.positions.num_embeddings - 1))
        x = self.dropout(self.norm(self.up_projection(xt) + positions + time))
        for layer, layer_memory in zip(self.layers, memory.layers):
            x = layer(x, packing, layer_memory, memory.mask)
        output = self.down_projection(x)
        if self.copy_head is not None:
            output = self.copy_head(x, output, packing, memory.layers[-1], memory.mask)
        return packing.unpack(output)

    def transformer_layers(self) -> Iterator[nn.Module]:
        yield from self.encoder.layers
        yield from self.layers

    def length_logits(self, encoded: Encoded) -> Tensor:
        return self.length_predictor(encoded.packing.unpack(encoded.hidden.detach()), encoded.mask)
