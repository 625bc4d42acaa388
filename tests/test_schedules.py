import math

import pytest
import torch

from diffusion_fairseq.diffusion.grids import GRIDS
from diffusion_fairseq.diffusion.schedules import BETAS, CLEAN, DiscreteSchedule, SigmaEqualsT, build_schedule

# (beta_0, abar at 0, 9, T/4, T/2, 3T/4, T-1) at T = 2000, computed from the published formulas.
PUBLISHED = {
    "linear": (5.0e-5, 1.0, 0.9993, 0.5226, 0.0784, 0.00337, 4.2e-5),
    "cosine": (2.0e-5, 1.0, 0.9997, 0.8465, 0.4931, 0.1437, 6.1e-10),
    "sqrt": (1.46e-2, 0.9854, 0.9380, 0.5044, 0.2954, 0.1350, 2.0e-7),
    "trunc_cos": (2.03e-2, 0.9797, 0.9779, 0.7703, 0.4288, 0.1221, 5.1e-7),
    "trunc_lin": (1.01e-2, 0.9899, 0.9037, 0.00338, 3.3e-6, 8.9e-10, 7e-14),
    "pw_lin": (1.01e-2, 0.9899, 0.9506, 0.5079, 0.0774, 0.00336, 4.2e-5),
    "pw_lin_paper": (1.01e-2, 0.9899, 0.9506, 6.7e-3, 4.3e-5, 2.8e-7, 1.9e-9),
}


@pytest.mark.parametrize("name", BETAS)
def test_tables_have_the_published_values(name):
    schedule = build_schedule(name, 2000)
    alpha_bar = schedule.alphas_cumprod
    found = [schedule.betas[0]] + [alpha_bar[i] for i in (0, 9, 500, 1000, 1500, 1999)]
    for value, expected in zip(found, PUBLISHED[name]):
        assert math.isclose(value, expected, rel_tol=2e-2), (name, value, expected)


def test_the_equation_of_the_paper_differs_from_pw_lin_in_the_second_piece():
    """"Stabilizing Diffusion LMs", section 4.1, at gamma = 0.5: it begins 0.01 higher and ends where the other does."""
    paper, other = (build_schedule(name, 2000) for name in ("pw_lin_paper", "pw_lin"))
    assert paper.betas[:10].equal(other.betas[:10]) and paper.betas[-1] == other.betas[-1]
    assert paper.betas[10] == 0.5 * 1e-4 + 0.01 and other.betas[10] == 0.5 * 1e-4
    assert int((paper.alphas_cumprod >= 0.5).sum()) == 73 and int((other.alphas_cumprod >= 0.5).sum()) == 507


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("num_timesteps", [200, 1000, 2000])
def test_levels_are_variance_preserving_and_noise_grows(name, num_timesteps):
    schedule = build_schedule(name, num_timesteps)
    level = schedule.at(torch.arange(CLEAN, num_timesteps))
    assert level.alpha.dtype == torch.float64
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha))
    assert (level.sigma.diff() > 0).all()
    assert level.alpha[0] == 1 and level.sigma[0] == 0


def test_sqrt_divides_the_formula_by_its_start():
    """cumprod telescopes to abar(u) / abar(0): with 1 - sqrt(1e-4) = 0.99 below."""
    schedule = build_schedule("sqrt", 2000)
    u = torch.arange(1, 1900, dtype=torch.float64) / 2000
    expected = (1 - (u + 1e-4).sqrt()) / 0.99
    torch.testing.assert_close(schedule.alphas_cumprod[:1899], expected, rtol=1e-10, atol=0)


def test_gamma_scales_the_linear_family_and_is_refused_by_the_others():
    for name in BETAS:
        if name in ("cosine", "sqrt", "trunc_cos"):
            with pytest.raises(ValueError, match=f"{name} has no scale"):
                build_schedule(name, 1000, gamma=0.5)
        else:
            assert not build_schedule(name, 1000).betas.equal(build_schedule(name, 1000, gamma=0.5).betas)
    torch.testing.assert_close(build_schedule("linear", 1000, 0.5).betas * 2, build_schedule("linear", 1000).betas)


@pytest.mark.parametrize("num_timesteps", [1, 7, 200])
def test_grid_is_a_strided_subset_of_the_trained_levels(num_timesteps):
    schedule = build_schedule("sqrt", num_timesteps)
    for num_steps in range(1, num_timesteps + 1):
        times = schedule.grid(num_steps).tolist()
        assert len(times) == num_steps + 1 and times[0] == num_timesteps - 1 and times[-1] == CLEAN
        assert all(later > earlier for later, earlier in zip(times, times[1:]))
        if num_steps > 1:
            assert times[-2] == 0


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", BETAS)
def test_every_grid_falls_from_the_noisiest_level_to_the_clean_one(schedule, name):
    schedule = build_schedule(schedule, 200)
    for num_steps in (1, 2, 3, 20, 150, 200):
        times = schedule.grid(num_steps, name)
        assert len(times) == num_steps + 1 and (times.diff() < 0).all()
        assert times[0] == 199 and times[-1] == CLEAN and (num_steps == 1 or times[-2] == 0)
    assert schedule.grid(200, name).tolist() == list(range(199, -2, -1))


def test_grids_are_spaced_as_they_say():
    """On sigma = t nothing is rounded: each grid is even in its own variable."""
    schedule = SigmaEqualsT(t_min=0.1, t_max=10.0)
    variable = {"uniform": lambda t: t, "quadratic": torch.sqrt, "karras": lambda t: t ** (1 / 7), "log-snr": torch.log}
    assert variable.keys() == GRIDS.keys()
    for name, of in variable.items():
        steps = of(schedule.grid(9, name)[:-1]).diff()
        torch.testing.assert_close(steps, steps[:1].expand(8))


def test_grids_of_a_discrete_schedule_take_the_nearest_levels():
    schedule = build_schedule("sqrt", 2000)
    level = schedule.at(torch.arange(2000))
    log = (level.sigma / level.alpha).log()
    times = schedule.grid(20, "log-snr")[:-1]
    wanted = torch.linspace(log[-1], log[0], 20, dtype=torch.float64)
    # Near T one level is further from the next than the grid's step: times there are moved apart.
    free = [i for i in range(1, 19) if times[i - 1] - times[i] > 1 and times[i] - times[i + 1] > 1]
    assert len(free) > 8
    for i in free:
        assert (log - wanted[i]).abs().argmin() == times[i]
    with pytest.raises(ValueError, match="unknown sampling grid 'even'.*karras"):
        schedule.grid(20, "even")


@pytest.mark.parametrize("num_steps", [0, -1, 201])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match="from 1 to 200"):
        build_schedule("sqrt", 200).grid(num_steps)


def test_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ValueError, match="'quadratic'.*linear.*pw_lin, pw_lin_paper"):
        build_schedule("quadratic", 10)


def test_betas_that_leave_no_signal_are_refused():
    with pytest.raises(ValueError, match="805 betas up to 0.64 leaves no signal at its last level: take fewer"):
        build_schedule("linear", 805, gamma=32)


def test_betas_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="betas"):
        build_schedule("linear", 10)
    with pytest.raises(ValueError, match="betas"):
        DiscreteSchedule(torch.tensor([0.1, -0.1], dtype=torch.float64))
    for gamma in (0.0, float("nan")):
        with pytest.raises(ValueError, match="betas in .* some above 0"):
            build_schedule("linear", 100, gamma=gamma)
    with pytest.raises(ValueError, match="at least 1"):
        build_schedule("sqrt", 0)
    with pytest.raises(ValueError, match="both finite"):
        SigmaEqualsT(1.0, float("inf"))


def test_sigma_equals_t():
    schedule = SigmaEqualsT(t_min=0.1, t_max=10.0)
    level = schedule.at(torch.tensor([0.1, 10.0]))
    assert level.alpha.tolist() == [1, 1] and level.sigma.tolist() == level.t.tolist()
    grid = schedule.grid(5)
    assert len(grid) == 6 and grid[0] == 10 and grid[-1] == 0 and (grid.diff() < 0).all()
    with pytest.raises(ValueError, match="t_min"):
        SigmaEqualsT(t_min=2.0, t_max=1.0)


def test_points_are_met_and_joined_by_straight_lines():
    schedule = build_schedule("points", 101, points="0=0.9999, 0.3=0.5,1=0.0001")
    alpha_bar = schedule.alphas_cumprod
    torch.testing.assert_close(alpha_bar[[0, 30, 100]], torch.tensor([0.9999, 0.5, 0.0001], dtype=torch.float64))
    for part in (alpha_bar[:31], alpha_bar[30:]):
        torch.testing.assert_close(part.diff(), (part[-1:] - part[:1]).expand(len(part) - 1) / (len(part) - 1))
    level = schedule.at(torch.arange(CLEAN, 101))
    assert (level.sigma.diff() > 0).all()
    torch.testing.assert_close(level.alpha[1:] ** 2, alpha_bar)


def test_points_of_a_schedule_give_that_schedule_back():
    cosine = build_schedule("cosine", 50)
    text = ",".join(f"{t / 49!r}={a!r}" for t, a in enumerate(cosine.alphas_cumprod.tolist()))
    torch.testing.assert_close(build_schedule("points", 50, points=text).betas, cosine.betas)
    assert build_schedule("points", 1, points="0=0.5,1=0.1").alphas_cumprod.tolist() == [0.5]


@pytest.mark.parametrize("points, message", [
    ("0=0.9;1=0.1", "u=alpha-bar.*got '0=0.9;1=0.1'"),
    ("", "u=alpha-bar"),
    ("0:0.9,1:0.1", "u=alpha-bar"),
    ("0=0.9", "from 0 to 1, got 0$"),
    ("0.1=0.9,1=0.1", "from 0 to 1, got 0.1, 1"),
    ("0=0.9,0.5=0.5,0.5=0.4,1=0.1", "from 0 to 1, got 0, 0.5, 0.5, 1"),
    ("0=0.9,nan=0.5,1=0.1", "from 0 to 1"),
    ("0=0.5,1=0.5", "must fall.*got 0.5, 0.5"),
    ("0=1,1=0.1", "below 1"),
    ("0=0.9,1=0", "above 0"),
    ("0=0.9,1=nan", "must fall"),
    (None, "give both"),
])
def test_points_that_give_no_schedule_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        build_schedule("points", 10, points=points)


def test_points_without_their_schedule_are_refused():
    with pytest.raises(ValueError, match="give both or neither"):
        build_schedule("sqrt", 10, points="0=0.9,1=0.1")
