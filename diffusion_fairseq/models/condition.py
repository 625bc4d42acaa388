"""What text is generated from: a source's cross-attention memory, or the given tokens of the sequence itself."""

from typing import NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_fairseq.modules.attention import KeyValue
from diffusion_fairseq.modules.packing import Packing


class Memory(NamedTuple):
    """What no diffusion step changes: each layer's keys and values of the source, and their mask (B, S), None where all
    count; offset (B,) how many positions lie before the text's first, or None where none does."""

    layers: Tuple[KeyValue, ...]
    mask: Optional[Tensor]
    offset: Optional[Tensor] = None

    @property
    def num_sources(self) -> int:
        """B."""
        return self.layers[0].key.size(0)

    def select(self, rows: Tensor) -> "Memory":
        """The memory of some sources, by index (n,)."""
        layers = tuple(KeyValue(layer.key[rows], layer.value[rows]) for layer in self.layers)
        return Memory(layers, *(None if field is None else field[rows] for field in (self.mask, self.offset)))

    def given(self, rows: int, width: int) -> Optional[Tensor]:
        """Which positions (rows, width) of the target are given; None: no target has any."""
        return None

    def impose(self, x: Tensor, value: Optional[Tensor] = None) -> Tensor:
        """x (R, L, D) with what is given in its place."""
        return x

    def impose_tokens(self, tokens: Tensor) -> Tensor:
        """tokens (R, L) with those that are given in their places."""
        return tokens

    def begins(self, rows: int) -> Tensor:
        """Where the text begins in each of the rows (rows,)."""
        return self.layers[0].key.new_zeros(rows, dtype=torch.int64)


class Encoded(NamedTuple):
    """The encoded source: hidden (n, C) at its packed positions, and mask (B, S) bool, True where a token counts; its
    memory where encoding makes that, too; embedded (n, D), its tokens in the target's embedding, where they are copied.
    """

    hidden: Tensor
    mask: Tensor
    packing: Packing
    memory: Optional[Memory] = None
    embedded: Optional[Tensor] = None

    def begins(self, rows: int) -> Tensor:
        """Where the text begins in each of the rows (rows,) that are denoised."""
        return self.mask.new_zeros(rows, dtype=torch.int64)


class Prompt(NamedTuple):
    """Sequences of which some positions are given and the others are generated: both `encode` and `memory` of a model
    without an encoder.

    tokens (B, L); mask (B, L) bool, True where a position counts; fixed (B, L) bool, True where its token is given, or
    None where no prompt gives any; embedded (B, L, D) float32; offset (B,) how many first positions are no part of the
    text that is written, or None where all are.
    """

    tokens: Tensor
    mask: Tensor
    fixed: Optional[Tensor]
    embedded: Tensor
    offset: Optional[Tensor] = None

    @property
    def num_sources(self) -> int:
        """B."""
        return len(self.tokens)

    def select(self, rows: Tensor) -> "Prompt":
        """Some prompts, by index (n,)."""
        return Prompt(*(None if field is None else field[rows] for field in self))

    def _fit(self, x: Tensor, rows: int, width: int) -> Tensor:
        """(B, L, ...) -> (rows, width, ...): rows of one prompt side by side, zeros beyond its end."""
        x = x[:, :width]
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, width - x.size(1)))
        return x if rows == len(x) else x.repeat_interleave(rows // len(x), dim=0)

    def given(self, rows: int, width: int) -> Optional[Tensor]:
        """Which positions (rows, width) are given; None: no prompt gives any."""
        return None if self.fixed is None else self._fit(self.fixed, rows, width)

    def values(self, rows: int, width: int) -> Tensor:
        """The embeddings (rows, width, D) of the prompts' tokens."""
        return self._fit(self.embedded, rows, width)

    def impose(self, x: Tensor, value: Optional[Tensor] = None) -> Tensor:
        """x (R, L, D) with the given embeddings, or `value` like x, at the given positions."""
        if self.fixed is None:
            return x
        value = self.values(*x.shape[:2]) if value is None else value
        return torch.where(self.given(*x.shape[:2])[..., None], value.to(x.dtype), x)

    def impose_tokens(self, tokens: Tensor) -> Tensor:
        """tokens (R, L) with the given ones in their places."""
        if self.fixed is None:
            return tokens
        return torch.where(self.given(*tokens.shape), self._fit(self.tokens, *tokens.shape), tokens)

    def begins(self, rows: int) -> Tensor:
        """Where the text begins in each of the rows (rows,)."""
        if self.offset is None:
            return self.tokens.new_zeros(rows)
        return self.offset.repeat_interleave(rows // len(self.offset))


Condition = Union[Encoded, Memory, Prompt]
