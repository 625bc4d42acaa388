from functools import partial

import pytest
import torch

from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.schedules import BETAS, SigmaEqualsT, build_schedule
from diffusion_fairseq.diffusion.solvers import SamplerState, ddim_step, ddpm_step, initial_state

T = 200
STEPS = [1, 2, 7, 20, 100, T]
SCHEDULES = [build_schedule(name, T) for name in BETAS] + [SigmaEqualsT(0.5, 80.0)]
EXACT = {"ddpm": ddpm_step, "ddim 0": ddim_step, "ddim 0.5": partial(ddim_step, eta=0.5),
         "ddim 1": partial(ddim_step, eta=1.0)}


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


def gaussian_error(num_steps):
    """Error of DDIM on x0 ~ N(1, 0.5^2), where denoiser and flow are known: x_t = alpha + s_t z along the flow."""
    schedule = build_schedule("cosine", 4096)
    std = 0.5

    def denoise(xt, t, _):
        level = schedule.at(t)
        variance = level.alpha**2 * std**2 + level.sigma**2
        return 1 + std**2 * level.alpha / variance * (xt - level.alpha)

    z = torch.tensor([[[-1.3, 0.4, 2.0]]], dtype=torch.float64)
    # Stop short of T, where cosine's betas are clipped and the flow is not smooth.
    times = torch.linspace(3500, 0, num_steps + 1, dtype=torch.float64).round().long()
    levels = [schedule.at(t) for t in times]
    marginal_std = [(level.alpha**2 * std**2 + level.sigma**2).sqrt() for level in (levels[0], levels[-1])]
    state = SamplerState(levels[0].alpha + marginal_std[0] * z, None, levels[0])
    *_, last = sample(ddim_step, denoise, state, levels, lambda _: None)
    return (last.xt - (levels[-1].alpha + marginal_std[1] * z)).abs().max().item()


def test_ddim_converges_at_order_1():
    errors = [gaussian_error(n) for n in (25, 50, 100)]
    for coarse, fine in zip(errors, errors[1:]):
        assert 1.7 < coarse / fine < 2.4, errors


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
