"""Training laws of a continuous t."""

import pytest
import torch
from helpers import make_ddlm, make_dictionary

from diffusion_fairseq.diffusion.time_laws import TIME_LAWS, GumbelTimes, TimeWarp, UniformTimes, isotonic

T_MIN, T_MAX = 0.5, 20.0
CPU = torch.device("cpu")


def known_loss(t):
    """Rises from 0 to 4, fastest near t = 3."""
    return 4 * torch.sigmoid(2.5 * (t.log() - 1.1))


def fitted(law, updates=400):
    torch.manual_seed(1)
    times = law(T_MIN, T_MAX)
    for _ in range(updates):
        t, weight = times.draw(64, CPU)
        assert weight.eq(1).all() and t.min() >= T_MIN and t.max() <= T_MAX
        times.update(t, known_loss(t) + 0.1 * torch.randn(64))
    return times


@pytest.mark.parametrize("law", TIME_LAWS.values())
def test_cdf_is_monotone_and_inverts(law):
    for times in (law(T_MIN, T_MAX), fitted(law, 30)):
        t = torch.linspace(T_MIN, T_MAX, 2000, dtype=torch.float64)
        cdf = times.cdf(t)
        assert cdf[0] == pytest.approx(0, abs=1e-9) and cdf[-1] == pytest.approx(1, abs=1e-9)
        assert (cdf.diff() > 0).all()
        u = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
        torch.testing.assert_close(times.cdf(times.quantile(u)), u, rtol=0, atol=1e-5)
        torch.testing.assert_close(times.quantile(times.cdf(t)), t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("law, tolerance", [(TimeWarp, 0.03), (GumbelTimes, 0.12)])
def test_the_loss_becomes_linear_in_u(law, tolerance):
    """R^2 of a linear fit, and the greatest distance from the line, as a share of the loss's range."""
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)

    def off_line(times):
        loss = known_loss(times.quantile(u))
        line = torch.stack([u, torch.ones_like(u)], dim=1)
        fit = line @ torch.linalg.lstsq(line, loss[:, None]).solution
        return ((loss - fit[:, 0]).abs().max() / (loss.max() - loss.min())).item()

    before, after = off_line(UniformTimes(T_MIN, T_MAX)), off_line(fitted(law))
    assert before > 0.2 and after < tolerance


def test_the_warp_converges_to_the_known_curve():
    times = fitted(TimeWarp, 800)
    t = torch.linspace(T_MIN, T_MAX, 200, dtype=torch.float64)
    low, high = known_loss(torch.tensor([T_MIN, T_MAX], dtype=torch.float64))
    expected = 0.99 * (known_loss(t) - low) / (high - low) + 0.01 * (t - T_MIN) / (T_MAX - T_MIN)
    assert (times.cdf(t) - expected).abs().max() < 0.02


@pytest.mark.parametrize("law", TIME_LAWS.values())
def test_draws_follow_the_cdf(law):
    times = fitted(law, 100)
    t = torch.cat([times.draw(100, CPU, torch.Generator().manual_seed(seed))[0] for seed in range(40)])
    assert t.dtype == torch.float64
    u = times.cdf(t)
    # Low discrepancy: every hundredth of a batch is met once.
    for batch in u.split(100):
        assert ((batch.sort().values * 100).floor().diff() <= 2).all()
    histogram = torch.histc(u, bins=10, min=0, max=1) / len(u)
    assert (histogram - 0.1).abs().max() < 0.01


def test_what_was_learned_is_saved_exactly_and_never_cast():
    times = fitted(TimeWarp, 50)
    other = TimeWarp(T_MIN, T_MAX)
    other.load_state_dict(times.state_dict())
    t = torch.linspace(T_MIN, T_MAX, 50, dtype=torch.float64)
    assert other.cdf(t).equal(times.cdf(t))
    assert times.to(torch.bfloat16).cdf(t).equal(other.cdf(t)) and times.losses.dtype == torch.float64


def test_old_losses_fade():
    times = TimeWarp(T_MIN, T_MAX, memory=20)
    t = times.middles
    for _ in range(200):
        times.update(t, torch.full_like(t, 5.0))
    for _ in range(200):
        times.update(t, known_loss(t))
    torch.testing.assert_close(times.curve()[1], known_loss(t), rtol=1e-3, atol=1e-3)


def test_isotonic_pools_what_falls():
    values = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0, 3.0])
    expected = torch.tensor([1.0, 2.25, 2.25, 2.25, 4.25, 4.25])
    torch.testing.assert_close(isotonic(values, weights), expected)


@pytest.mark.parametrize("name, law", [("gumbel", GumbelTimes), ("time-warp", TimeWarp)])
def test_a_checkpoint_says_which_law_was_learned(name, law):
    model, other = make_ddlm(make_dictionary()), make_ddlm(make_dictionary())
    times = model.timestep_sampler(name)
    t, _ = times.draw(256, CPU)
    times.update(t, known_loss(t))
    for loaded in (make_ddlm(make_dictionary()), other):
        other.timestep_sampler("gumbel" if law is TimeWarp else "time-warp")
        loaded.load_state_dict(model.state_dict())
        assert type(loaded.timesteps) is law
        u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        torch.testing.assert_close(loaded.timesteps.quantile(u), times.quantile(u), rtol=0, atol=0)
    losses = model.timesteps.losses.clone()
    changed = model.timestep_sampler("gumbel" if law is TimeWarp else "time-warp")
    assert type(changed) is not law and changed.losses.equal(losses)


@pytest.mark.parametrize("pretrained, fine_tuned", [(300.0, 20.0), (20.0, 300.0)])
def test_a_law_that_was_fitted_on_another_range_is_fitted_anew(pretrained, fine_tuned):
    before, after = (make_ddlm(make_dictionary(), t_max=t_max) for t_max in (pretrained, fine_tuned))
    times = before.timestep_sampler("time-warp")
    t, _ = times.draw(256, CPU)
    times.update(t, known_loss(t))
    after.load_state_dict(before.state_dict())
    law = after.timestep_sampler("time-warp")
    assert law.curve() is None
    drawn, _ = law.draw(512, CPU)
    assert 0.9 * fine_tuned < float(drawn.max()) <= fine_tuned
    torch.testing.assert_close(law.cdf(torch.tensor([fine_tuned])), torch.ones(1, dtype=torch.float64))
