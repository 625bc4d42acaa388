"""What a model hands to a criterion, and what the criterion wants of it."""

from typing import FrozenSet, NamedTuple, Optional

from torch import Tensor

from diffusion_fairseq.models.condition import Condition
from diffusion_fairseq.modules.packing import Packing

# The ways by which the gradient of a term reaches the embeddings: each can be closed.
GRADIENT_PATHS = {
    "input": "x_t as the network sees it, which the mse and anchor terms come back through",
    "aim": "x_0 as the aim of the mse term",
    "prior": "x_0 in the prior term",
    "rounding-x0": "x_0 in the rounding term",
    "rounding-softmax": "the embeddings that the rounding term scores against",
    "anchor-softmax": "the embeddings that the anchor term scores against",
}


class Objective(NamedTuple):
    """What a criterion wants of a training pass.

    rounding, anchor: whether -log p(target | x0) and -log p(target | pred_x0) are wanted; label_smoothing: the
    probability that both give to all tokens alike; detached: the GRADIENT_PATHS that are closed; given: whether given
    positions count, too.
    """

    rounding: bool = True
    anchor: bool = False
    label_smoothing: float = 0.0
    detached: FrozenSet[str] = frozenset()
    given: bool = False

    def through(self, path: str, x: Tensor) -> Tensor:
        """x, without gradient where the path is closed."""
        return x.detach() if path in self.detached else x


class Example(NamedTuple):
    """A batch as it is learned from: target, counts and modelled (B, L) as in TrainingPass; packing of the positions
    that the network sees, those and the given ones; what is encoded and the memory, of the sources; copies of each
    source; lengths (sources,) tokens of each target."""

    target: Tensor
    counts: Tensor
    modelled: Tensor
    packing: Packing
    encoded: Condition
    memory: Condition
    copies: int
    lengths: Tensor


class TrainingPass(NamedTuple):
    """The parts from which a criterion computes its losses; L is the number of modelled target positions.

    target (B, L) tokens; counts (B, L) bool, True at real tokens that are predicted; modelled (B, L) bool, True at
    positions that are generated (those, and modelled padding); embedded (B, L, D) clean embeddings; x0 (B, L, D) the
    noised embeddings that start the diffusion; prediction and aim (B, L, D): the network's output and what it should
    be, None for one that predicts tokens; pred_x0 (B, L, D), None there in training; rounding_nll and anchor_nll
    (B, L), -log p(target | x0) and -log p(target | pred_x0) in nats, 0 at positions that are not modelled, None where
    not wanted; length_logits (sources, max_target_positions + 1) or None; lengths (sources,) tokens of each target.
    With k noised copies of each target, B is k times the number of sources and row s * k + c is copy c of source s;
    their rounding_nll is that of copy 0.
    """

    target: Tensor
    counts: Tensor
    modelled: Tensor
    embedded: Tensor
    x0: Tensor
    prediction: Optional[Tensor]
    aim: Optional[Tensor]
    pred_x0: Optional[Tensor]
    rounding_nll: Optional[Tensor]
    anchor_nll: Optional[Tensor]
    length_logits: Optional[Tensor]
    lengths: Tensor
