"""The noise schedule that a model's options ask for."""

from typing import Optional, Union

from diffusion_fairseq.diffusion.adaptive import AdaptiveSchedule
from diffusion_fairseq.diffusion.schedules import DiscreteSchedule, SigmaEqualsT, build_schedule
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DiffusionModelConfig

Schedule = Union[DiscreteSchedule, AdaptiveSchedule, SigmaEqualsT]


def model_schedule(cfg: DiffusionModelConfig, positions: Optional[int] = None) -> Schedule:
    """The schedule of all positions, or one for each of them that training adapts.

    Args:
        positions: that are denoised together, at most; default: those of a target.
    Raises:
        UserError: options that give no schedule.
    """
    try:
        start = build_schedule(cfg.noise_schedule, cfg.diffusion_timesteps, cfg.noise_gamma, cfg.noise_points)
    except ValueError as error:
        options = ", ".join(["--noise-schedule", *(["--noise-gamma"] if cfg.noise_gamma is not None else []),
                             *(["--noise-points"] if cfg.noise_points is not None else [])])
        raise UserError(f"{options}: {error}") from error
    if not cfg.adaptive_schedule_updates:
        if cfg.adaptive_schedule_start:
            raise UserError("--adaptive-schedule-start acts only with --adaptive-schedule-updates: give both")
        return start
    try:
        return AdaptiveSchedule(start, positions or cfg.max_target_positions, cfg.adaptive_schedule_updates,
                                cfg.adaptive_schedule_start)
    except ValueError as error:
        raise UserError(f"--adaptive-schedule-updates: {error}") from error
