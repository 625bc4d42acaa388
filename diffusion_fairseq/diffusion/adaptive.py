"""A noise schedule of its own for each position, under which every timestep is as much harder as the one before."""

from typing import Optional

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.position_schedule import PositionSchedule
from diffusion_fairseq.diffusion.processes import sum_over_processes
from diffusion_fairseq.diffusion.schedules import DiscreteSchedule

LEAST_RISE = 1e-5  # of the loss from bin to bin, as published: a curve that rises throughout can be inverted


class AdaptiveSchedule(PositionSchedule):
    """A discrete schedule whose levels are moved in t, position by position, until the loss that a model has at them
    is linear in t (SeqDiffuSeq: Yuan et al., 2022, section 4.2).

    Kept are log-SNRs, from which no average over updates and no single precision takes the strict order or the fine
    ends. Unlike the published code, position 0 (there a given start of sentence) is treated as any other, and a
    position changes only once it has met `least` losses in every bin: till then it goes on gathering them.

    Args:
        start: every position's schedule at first; its first and last level stay.
        num_positions: L.
        every: re-interpolate after so many updates; begin: but not before this one.
        steps_per_bin: neighbouring timesteps whose losses are averaged.
        least: losses that a bin must have met.
    Raises:
        ValueError: numbers out of range, or a start with a level without noise or without signal.
    """

    def __init__(self, start: DiscreteSchedule, num_positions: int, every: int, begin: int = 0, *,
                 steps_per_bin: int = 20, least: int = 10):
        if every < 1 or begin < 0:
            raise ValueError("an adaptive noise schedule changes every 1 or more updates, from update 0 or a later one "
                             f"on; got every {every}, from {begin} on")
        # The last bin holds what does not fill one.
        bins = start.num_timesteps // steps_per_bin
        if bins < 3:
            # Through two means goes a straight line, which changes nothing.
            raise ValueError(f"an adaptive noise schedule averages losses over {steps_per_bin} timesteps and takes at "
                             f"least {3 * steps_per_bin} of them, got {start.num_timesteps}")
        log_snr = start.alphas_cumprod.logit()
        if not torch.isfinite(log_snr).all():
            raise ValueError("an adaptive noise schedule cannot start from one with a level without noise or signal")
        # A row for each position, so that they can be cut and lengthened like tables of positions.
        super().__init__(log_snr.repeat(num_positions, 1))
        self.every, self.begin, self.steps_per_bin, self.least = every, begin, steps_per_bin, least
        self.register_buffer("losses", log_snr.new_zeros(num_positions, bins))
        self.register_buffer("counts", log_snr.new_zeros(num_positions, bins))
        self._updates: Optional[int] = None
        # Sums and counts (2, L, bins) of what this process has met in the present update.
        self._met: Optional[Tensor] = None

    def observe(self, t: Tensor, losses: Tensor, mask: Tensor) -> None:
        """Meet the losses (B, L') of examples at times t (B,), where mask (B, L') is True; positions beyond L are left
        out."""
        num_positions = min(losses.size(1), len(self.losses))
        losses = losses.detach()[:, :num_positions].double()
        mask = mask[:, :num_positions] & torch.isfinite(losses)
        bins = (t // self.steps_per_bin).clamp(max=self.losses.size(1) - 1)
        if self._met is None:
            self._met = torch.zeros_like(torch.stack([self.losses, self.counts]))
        self._met[0, :num_positions].index_add_(1, bins, torch.where(mask, losses, 0.0).t())
        self._met[1, :num_positions].index_add_(1, bins, mask.double().t())

    def end_update(self) -> None:
        """Gather what all processes of a training have met in an update, so that each of them knows, and saves, the
        same."""
        met = torch.zeros_like(torch.stack([self.losses, self.counts])) if self._met is None else self._met
        self._met = None
        losses, counts = sum_over_processes(met)
        self.losses.add_(losses)
        self.counts.add_(counts)

    def leave_out_update(self) -> None:
        """Forget what was observed since the last update."""
        self._met = None

    def set_num_updates(self, num_updates: int) -> None:
        """What the host calls before each pass of an update: re-interpolate where it is time; 0 after tables were
        loaded means that a model is fine-tuned, which starts with no loss."""
        before, self._updates = self._updates, num_updates
        if before in (None, num_updates):
            # Nothing met yet, or one more pass of the same update.
            return
        if num_updates == 0:
            self.losses.zero_()
            self.counts.zero_()
        elif num_updates >= self.begin and num_updates % self.every == 0:
            self.reinterpolate()

    def reinterpolate(self) -> int:
        """Move the levels of positions that have met enough losses, and forget those losses; how many positions there
        were."""
        ready = (self.counts >= self.least).all(dim=1)
        if ready.any():
            self.log_snr[ready] = self._linearised(self.log_snr[ready], self.losses[ready] / self.counts[ready])
            self.losses[ready], self.counts[ready] = 0, 0
        return int(ready.sum())

    def _linearised(self, log_snr: Tensor, losses: Tensor) -> Tensor:
        """The log-SNRs (n, T) at which losses, known as means over bins (n, bins) of the given ones' times, are linear
        in t."""
        times = torch.arange(self.num_timesteps, dtype=losses.dtype, device=losses.device)
        first = times[:: self.steps_per_bin][: losses.size(1)]
        middle = (first + torch.cat([first[1:] - 1, times[-1:]])) / 2
        curve = interpolate(times.expand_as(log_snr), middle.expand_as(losses), rising(losses))
        share = times / times[-1]
        wanted = curve[:, :1] + share * (curve[:, -1:] - curve[:, :1])
        moved = interpolate(wanted, curve, log_snr)
        return torch.cat([log_snr[:, :1], moved[:, 1:-1], log_snr[:, -1:]], dim=1)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # No update yet has seen what was loaded.
        self._updates = -1


def rising(curve: Tensor) -> Tensor:
    """A curve (..., n) raised where it must be for each value to exceed the one before by LEAST_RISE."""
    ramp = LEAST_RISE * torch.arange(curve.size(-1), dtype=curve.dtype, device=curve.device)
    return (curve - ramp).cummax(dim=-1).values + ramp


def interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piece-wise linear y at x (n, m) through points (n, k) whose known_x rise; the outer pieces reach beyond them."""
    after = torch.searchsorted(known_x.contiguous(), x.contiguous()).clamp(1, known_x.size(-1) - 1)
    (x0, x1), (y0, y1) = (
        (known.gather(-1, after - 1), known.gather(-1, after)) for known in (known_x, known_y)
    )
    return y0 + (x - x0) / (x1 - x0) * (y1 - y0)
