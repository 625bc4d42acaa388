"""The reverse process as a Python generator: history, progress bars and early exit are the caller's loop."""

from functools import partial
from typing import Callable, Iterator, Sequence

from torch import Tensor

from diffusion_fairseq.diffusion.schedules import NoiseLevel
from diffusion_fairseq.diffusion.solvers import Denoise, SamplerState


def sample(
    step: Callable[..., SamplerState],
    denoise: Denoise,
    state: SamplerState,
    levels: Sequence[NoiseLevel],
    noise: Callable[[int], Tensor],
) -> Iterator[SamplerState]:
    """Yield the state after every reverse step.

    Args:
        step: a solver, its options bound.
        state: the state at levels[0].
        levels: K + 1 falling levels, from the noisiest to the clean one.
        noise: step index -> standard Gaussian noise shaped like xt; called only by steps that add noise.
    """
    for index, (t, s) in enumerate(zip(levels, levels[1:])):
        state = step(denoise, state, s, t, partial(noise, index))
        yield state
