import math
from functools import partial

import pytest
import torch

from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.schedules import BETAS, SigmaEqualsT, build_schedule
from diffusion_fairseq.diffusion.solvers import (
    SOLVERS,
    SamplerState,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    euler_step,
    heun_step,
    initial_state,
)

T = 200
STEPS = [1, 2, 7, 20, 100, T]
SCHEDULES = [build_schedule(name, T) for name in BETAS] + [SigmaEqualsT(0.5, 80.0)]
EXACT = {"ddpm": ddpm_step, "ddim 0": ddim_step, "ddim 0.5": partial(ddim_step, eta=0.5),
         "ddim 1": partial(ddim_step, eta=1.0), "euler": euler_step, "heun": heun_step, "dpmpp-2m": dpmpp_2m_step}


def levels_of(schedule, num_steps):
    return [schedule.at(t) for t in schedule.grid(num_steps)]


def moments(step, levels):
    """(signal, noise std) of the state after each step, with a denoiser that returns the true x0.

    A step is linear in (xt, x0, fresh noise): x0 = 1 with no noise carries the signal; x0 = 0 with a unit of old
    noise, then of fresh noise, carries the two kinds of noise.
    """
    zero, one = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    signal, variance = levels[0].alpha, levels[0].sigma**2
    for t, s in zip(levels, levels[1:]):
        def run(xt, x0, fresh, s=s, t=t):
            return step(lambda *_: x0, SamplerState(xt, None, t), s, t, lambda: fresh).xt.squeeze()
        old, new = run(one, zero, zero), run(zero, zero, one)
        signal = run(signal * one, one, zero)
        variance = old**2 * variance + new**2
        yield s, signal, variance.sqrt()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=[*BETAS, "sigma=t"])
def test_oracle_denoiser_meets_the_nominal_level_at_every_step(schedule, num_steps, name):
    reached = list(moments(EXACT[name], levels_of(schedule, num_steps)))
    assert len(reached) == num_steps
    for level, signal, noise in reached:
        torch.testing.assert_close(signal, level.alpha, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(noise, level.sigma, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_steps", STEPS)
def test_beta_variance_keeps_the_signal_and_adds_noise(num_steps):
    """The published variance exceeds the posterior's: the signal is exact, the noise at or above nominal."""
    step = partial(ddpm_step, variance="beta")
    for level, signal, noise in moments(step, levels_of(build_schedule("sqrt", T), num_steps)):
        torch.testing.assert_close(signal, level.alpha, rtol=1e-6, atol=1e-9)
        assert noise >= level.sigma - 1e-9
        assert noise < 1.3


def test_un_respaced_stride_would_fail_the_oracle_test():
    """The released GENIE applies one-step posteriors on a strided grid: signal and noise drift from t."""
    schedule = build_schedule("sqrt", T)

    def strided(denoise, state, s, t, noise):
        return ddpm_step(denoise, state, schedule.at(t.t - 1), t, noise)

    *_, (level, signal, _) = list(moments(strided, levels_of(schedule, 20)))[:-1]
    assert abs(signal - level.alpha) > 0.3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=[*BETAS, "sigma=t"])
def test_ddim_with_eta_1_is_ancestral(schedule):
    generator = torch.Generator().manual_seed(0)
    xt, x0, noise = (torch.randn(2, 3, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    levels = levels_of(schedule, 7)
    for t, s in zip(levels, levels[1:]):
        state = SamplerState(xt, None, t)
        ours = ddim_step(lambda *_: x0, state, s, t, lambda: noise, eta=1.0)
        theirs = ddpm_step(lambda *_: x0, state, s, t, lambda: noise)
        torch.testing.assert_close(ours.xt, theirs.xt, rtol=1e-6, atol=1e-8)


STD = 0.5  # of the data x0 ~ N(1, STD^2), whose denoiser and flow are known


def exact_denoiser(levels):
    level_at = {float(level.t): level for level in levels}

    def denoise(xt, t, _):
        level = level_at[float(t)]
        return 1 + STD**2 * level.alpha / (level.alpha**2 * STD**2 + level.sigma**2) * (xt - level.alpha)

    return denoise


def gaussian_error(step, schedule, num_steps, most=80):
    """Error at the last level: along the flow x_t = alpha + sqrt(alpha^2 STD^2 + sigma^2) z for a fixed z.

    Levels from sigma / alpha = 5 down to 0.5, evenly spaced in t.
    """
    if isinstance(schedule, SigmaEqualsT):
        times = torch.linspace(5, 0.5, num_steps + 1, dtype=torch.float64)
    else:
        level = schedule.at(torch.arange(schedule.num_timesteps))
        first, last = torch.searchsorted(level.sigma / level.alpha, torch.tensor([0.5, 5.0], dtype=torch.float64))
        times = last - torch.arange(num_steps + 1) * ((last - first) // most * (most // num_steps))
    levels = [schedule.at(t) for t in times]
    z = torch.tensor([[[-1.3, 0.4, 2.0]]], dtype=torch.float64)
    start, end = (level.alpha + (level.alpha**2 * STD**2 + level.sigma**2).sqrt() * z
                  for level in (levels[0], levels[-1]))
    *_, reached = sample(step, exact_denoiser(levels), SamplerState(start, None, levels[0]), levels, lambda _: None)
    return (reached.xt - end).abs().max().item()


@pytest.mark.parametrize("step, order", [(euler_step, 1), (ddim_step, 1), (heun_step, 2), (dpmpp_2m_step, 2)],
                         ids=["euler", "ddim", "heun", "dpmpp-2m"])
@pytest.mark.parametrize("schedule", [build_schedule(name, 4000) for name in BETAS] + [SigmaEqualsT(0.05, 80.0)],
                         ids=[*BETAS, "sigma=t"])
def test_order_of_convergence(schedule, step, order):
    errors = [gaussian_error(step, schedule, n) for n in (20, 40, 80)]
    found = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:])]
    assert all(abs(value - order) < 0.45 for value in found), (errors, found)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=[*BETAS, "sigma=t"])
def test_first_step_of_dpmpp_is_ddim(schedule):
    xt, x0 = torch.randn(2, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = levels_of(schedule, 7)
    for t, s in zip(levels, levels[1:]):
        state = SamplerState(xt, None, t)
        one, other = (step(lambda *_: x0, state, s, t, None).xt for step in (dpmpp_2m_step, ddim_step))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_euler_for_sigma_equals_t_is_the_textbook_rule():
    schedule = SigmaEqualsT(0.5, 80.0)
    xt, x0 = torch.randn(2, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s = schedule.at(torch.tensor(7.0)), schedule.at(torch.tensor(3.0))
    found = euler_step(lambda *_: x0, SamplerState(xt, None, t), s, t, None).xt
    torch.testing.assert_close(found, xt + (3.0 - 7.0) * (xt - x0) / 7.0)


def test_sample_yields_every_step_and_draws_noise_only_where_it_is_added():
    schedule = build_schedule("sqrt", 10)
    levels = levels_of(schedule, 4)
    drawn = []

    def noise(index):
        drawn.append(index)
        return torch.ones(1, 2, 2)

    start = initial_state(torch.zeros(1, 2, 2), levels[0])
    states = list(sample(ddpm_step, lambda xt, t, previous: xt, start, levels, noise))
    assert [int(state.level.t) for state in states] == [6, 3, 0, -1]
    assert drawn == [0, 1, 2]
    drawn.clear()
    list(sample(ddim_step, lambda xt, t, previous: xt, start, levels, noise))
    assert drawn == []


def test_a_step_sees_the_previous_estimate():
    seen = []

    def denoise(xt, t, previous):
        seen.append(previous)
        return torch.full_like(xt, float(len(seen)))

    levels = levels_of(build_schedule("sqrt", 10), 3)
    list(sample(ddim_step, denoise, initial_state(torch.zeros(1, 1, 2), levels[0]), levels, lambda _: None))
    assert seen[0] is None and [float(x.mean()) for x in seen[1:]] == [1.0, 2.0]


def test_initial_noise_has_the_scale_of_the_schedule():
    noise = torch.ones(1, 1, 1)
    assert initial_state(noise, build_schedule("linear", 50).at(torch.tensor(49))).xt == 1
    assert initial_state(noise, SigmaEqualsT(1.0, 80.0).at(torch.tensor(80.0))).xt == 80


def test_every_solver_is_tested_with_the_oracle():
    assert set(SOLVERS) <= {name.split()[0] for name in EXACT}
