from functools import partial

import pytest
import torch

from diffusion_fairseq.diffusion import adaptive
from diffusion_fairseq.diffusion.adaptive import LEAST_RISE, AdaptiveSchedule, interpolate, rising
from diffusion_fairseq.diffusion.grids import GRIDS
from diffusion_fairseq.diffusion.process import (
    eps_from_x0,
    posterior,
    q_sample,
    score_from_x0,
    x0_from_eps,
    x0_from_score,
)
from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.schedules import BETAS, CLEAN, DiscreteSchedule, NoiseLevel, build_schedule
from diffusion_fairseq.diffusion.solvers import SOLVERS, ddim_step, ddpm_step, initial_state

STEPS = {**SOLVERS, "ddpm beta": partial(ddpm_step, variance="beta"), "ddim 0.7": partial(ddim_step, eta=0.7)}


def make_schedule(num_timesteps=400, num_positions=5, name="sqrt", every=10, **options):
    return AdaptiveSchedule(build_schedule(name, num_timesteps), num_positions, every, **options)


def feed(schedule, loss_of, positions=None, times=None, repeats=10):
    """Let every timestep be met `repeats` times at every position (or the first `positions`)."""
    t = (torch.arange(schedule.num_timesteps) if times is None else times).repeat(repeats)
    losses = loss_of(schedule.at(t).alpha ** 2)[:, :positions]
    schedule.observe(t, losses, torch.ones_like(losses, dtype=torch.bool))
    schedule.end_update()


def adapted(num_timesteps=400, num_positions=5, name="sqrt"):
    """Another schedule for each position."""
    schedule = make_schedule(num_timesteps, num_positions, name)
    power = torch.linspace(0.5, 3, num_positions, dtype=torch.float64)
    feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** power)
    assert schedule.reinterpolate() == num_positions
    return schedule


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", BETAS)
def test_it_starts_as_the_named_schedule_at_every_position(name):
    start, schedule = build_schedule(name, 200), make_schedule(200, 3, name)
    times = torch.arange(CLEAN, 200)
    one, each = start.at(times), schedule.at(times)
    assert each.alpha.shape == each.sigma.shape == (201, 3) and each.alpha.dtype == torch.float64
    torch.testing.assert_close(each.alpha, one.alpha[:, None].expand(-1, 3), rtol=1e-12, atol=0)
    torch.testing.assert_close(each.sigma, one.sigma[:, None].expand(-1, 3), rtol=1e-7, atol=0)
    for grid in GRIDS:
        assert schedule.grid(20, grid).equal(start.grid(20, grid))


def test_the_shape_of_a_level_follows_that_of_its_time():
    schedule = adapted()
    assert schedule.at(torch.tensor(7)).alpha.shape == schedule.at(torch.tensor([7])).alpha.shape == (1, 5)
    assert schedule.at(torch.tensor([7, 9, CLEAN])).sigma.shape == (3, 5)
    clean = schedule.at(torch.tensor(CLEAN))
    assert clean.alpha.eq(1).all() and clean.sigma.eq(0).all()


def test_levels_are_cut_or_their_last_one_repeated():
    level = adapted().at(torch.tensor([7, 300]))
    assert level.cut(3).alpha.equal(level.alpha[:, :3]) and level.cut(3).t is level.t
    wide = level.cut(8)
    assert wide.sigma.shape == (2, 8) and wide.sigma[:, 4:].equal(level.sigma[:, 4:].expand(-1, 4))
    for t in (torch.tensor(7), torch.tensor([7, 300])):
        ordinary = build_schedule("sqrt", 400).at(t)
        assert ordinary.cut(1) is ordinary


def bend(schedule, power):
    """How far the loss (1 - alpha-bar)^power is from a straight line in t, at most."""
    found = (1 - schedule.at(torch.arange(schedule.num_timesteps)).alpha ** 2) ** power
    share = torch.linspace(0, 1, schedule.num_timesteps, dtype=torch.float64)[:, None]
    return (found - found[:1] - share * (found[-1:] - found[:1])).abs().max()


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("power", [1.0, 3.0])
@pytest.mark.parametrize("num_timesteps", [2000, 1013])
def test_losses_become_linear_in_t_and_ends_stay(name, power, num_timesteps):
    schedule = make_schedule(num_timesteps, 2, name)
    ends = schedule.log_snr[:, [0, -1]]
    assert bend(schedule, power) > 0.1
    feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** power)
    assert schedule.reinterpolate() == 2
    assert (schedule.log_snr.diff(dim=1) < 0).all()
    assert schedule.log_snr[:, [0, -1]].equal(ends)
    assert bend(schedule, power) < 0.04


def test_what_is_steep_within_a_bin_is_found_in_some_rounds():
    """Losses are known as means over bins: the sqrt schedule's steep start looks straighter than it is."""
    schedule, bends = make_schedule(2000, 1), []
    for _ in range(3):
        feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** 0.5)
        schedule.reinterpolate()
        bends.append(float(bend(schedule, 0.5)))
    assert bends[0] > 0.05 and bends[2] < 0.01, bends


def test_each_position_has_its_own_curve():
    schedule = adapted(2000)
    alpha_bar = schedule.at(torch.tensor(1000)).alpha[0] ** 2
    # The later the loss rises, the more of the time goes to noisy levels.
    assert (alpha_bar.diff() < -0.01).all()


def test_linear_losses_change_nothing():
    schedule = make_schedule()
    before, t = schedule.log_snr.clone(), torch.arange(400).repeat(10)
    losses = (0.5 + t / 800.0)[:, None].expand(-1, 5)
    schedule.observe(t, losses, torch.ones(4000, 5, dtype=torch.bool))
    schedule.end_update()
    assert schedule.reinterpolate() == 5
    torch.testing.assert_close(schedule.log_snr, before)


def test_curves_are_raised_where_they_fall():
    curve = torch.tensor([[1.0, 0.5, 3.0, 3.0, 2.0, 4.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    raised, expected = rising(curve), curve.clone()
    for i in range(1, 6):
        expected[:, i] = torch.maximum(curve[:, i], expected[:, i - 1] + LEAST_RISE)
    torch.testing.assert_close(raised, expected, rtol=0, atol=1e-12)


def test_falling_losses_keep_the_order_of_the_levels():
    schedule = make_schedule()
    for _ in range(5):
        feed(schedule, lambda alpha_bar: alpha_bar + random(*alpha_bar.shape, seed=3).abs() * 3)
        assert schedule.reinterpolate() == 5
    assert (schedule.log_snr.diff(dim=1) < 0).all()


def test_interpolation_goes_on_beyond_the_ends():
    found = interpolate(torch.tensor([[-1.0, 0.5, 2.0, 5.0]]), torch.tensor([[0.0, 1.0, 3.0]]),
                        torch.tensor([[0.0, 2.0, 4.0]]))
    assert found.tolist() == [[-2.0, 1.0, 3.0, 6.0]]


def test_positions_without_enough_losses_keep_their_levels_and_go_on_gathering():
    schedule = make_schedule()
    before = schedule.log_snr.clone()
    assert schedule.reinterpolate() == 0
    feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** 3, positions=2)
    feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** 3, positions=4, times=torch.arange(200))
    assert schedule.reinterpolate() == 2
    changed = (schedule.log_snr != before).any(dim=1)
    assert changed.tolist() == [True, True, False, False, False]
    assert schedule.counts.sum(dim=1).tolist() == [0, 0, 2000, 2000, 0]
    feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** 3, positions=4, times=torch.arange(200, 400))
    assert schedule.reinterpolate() == 2
    # As if they had been met at once, like those of the first two.
    torch.testing.assert_close(schedule.log_snr[2:4], schedule.log_snr[:2])


def test_losses_that_do_not_count_are_left_out():
    """Padding, values that are not finite, and positions beyond the last."""
    schedule = make_schedule(num_positions=3)
    losses = torch.tensor([[1.0, 2.0, float("nan"), 9.0], [3.0, float("inf"), 4.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    schedule.observe(torch.tensor([0, 399]), losses, mask)
    assert schedule.counts.sum() == 0, "an update that is not finished may be given up"
    schedule.end_update()
    assert schedule.losses[:, [0, -1]].tolist() == [[1, 3], [0, 0], [0, 4]]
    assert schedule.counts.sum(dim=1).tolist() == [2, 0, 1]


def test_losses_of_all_processes_are_added_at_the_end_of_an_update(monkeypatch):
    """Two processes that see half of the losses each know what one knows that sees all."""
    alone, halves = make_schedule(), [make_schedule(), make_schedule()]
    feed(alone, lambda alpha_bar: (1 - alpha_bar) ** 2, repeats=10)
    monkeypatch.setattr(adaptive, "sum_over_processes", lambda met: 2 * met)
    for half in halves:
        feed(half, lambda alpha_bar: (1 - alpha_bar) ** 2, repeats=5)
        for name, table in alone.state_dict().items():
            torch.testing.assert_close(half.state_dict()[name], table)
        half.reinterpolate()
    alone.reinterpolate()
    torch.testing.assert_close(halves[0].log_snr, alone.log_snr)
    assert halves[0].counts.sum() == 0


def test_levels_move_at_the_updates_asked_for():
    schedule = make_schedule(every=10, begin=20)
    moved = []
    for update in range(41):
        feed(schedule, lambda alpha_bar: (1 - alpha_bar) ** 2)
        before = schedule.log_snr.clone()
        for _ in range(2):  # passes of one update
            schedule.set_num_updates(update)
        if not schedule.log_snr.equal(before):
            moved.append(update)
    assert moved == [20, 30, 40]


def test_a_resumed_training_moves_levels_as_the_uninterrupted_one():
    one = make_schedule()
    one.set_num_updates(9)
    feed(one, lambda alpha_bar: (1 - alpha_bar) ** 2)
    other = make_schedule()
    other.set_num_updates(10)  # the host says so before it loads the weights
    other.load_state_dict(one.state_dict())
    for schedule in (one, other):
        schedule.set_num_updates(10)
    assert one.log_snr.equal(other.log_snr) and not one.log_snr.equal(make_schedule().log_snr)


def test_fine_tuning_keeps_the_levels_and_forgets_the_losses():
    one, other = adapted(), make_schedule()
    feed(one, lambda alpha_bar: alpha_bar)
    other.set_num_updates(700)
    other.load_state_dict(one.state_dict())
    other.set_num_updates(0)
    assert other.log_snr.equal(one.log_snr) and other.counts.sum() == other.losses.sum() == 0


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float(),
                                  lambda m: torch.nn.Sequential(m).bfloat16()])
def test_tables_are_never_cast(cast):
    schedule = adapted()
    before = {name: table.clone() for name, table in schedule.state_dict().items()}
    cast(schedule)
    for name, table in schedule.state_dict().items():
        assert table.dtype == torch.float64 and table.equal(before[name])
    assert schedule.to("meta").log_snr.device.type == "meta"


def test_tables_survive_single_precision_and_averages():
    """Averages over updates are kept in single precision, and so are exported checkpoints."""
    one, other = adapted(2000, 3, "cosine"), make_schedule(2000, 3, "cosine")
    state = {name: (0.3 * table + 0.7 * other.state_dict()[name]).float() for name, table in one.state_dict().items()}
    between = make_schedule(2000, 3, "cosine")
    between.load_state_dict(state)
    assert between.log_snr.dtype == torch.float64 and (between.log_snr.diff(dim=1) < 0).all()
    levels = [schedule.at(torch.tensor([0, 1999])) for schedule in (between, other)]
    for ours, start in zip(levels[0][1:], levels[1][1:]):
        torch.testing.assert_close(ours, start, rtol=1e-5, atol=0)


def one_position(level, i):
    """The ordinary level that position i has."""
    return NoiseLevel(level.t, level.alpha[0, i], level.sigma[0, i])


@pytest.mark.parametrize("grid", ["uniform", "karras"])
@pytest.mark.parametrize("name", STEPS)
def test_every_solver_treats_a_position_as_if_it_were_alone(name, grid):
    schedule = adapted()
    levels = [schedule.at(t) for t in schedule.grid(9, grid)]
    start, noises = random(2, 5, 4), random(9, 2, 5, 4, seed=1)

    def denoise(xt, t, previous):
        return torch.tanh(xt) + (0 if previous is None else 0.1 * previous)

    together = list(sample(STEPS[name], denoise, initial_state(start, levels[0]), levels, lambda i: noises[i]))
    assert len(together) == 9 and torch.isfinite(together[-1].xt).all()
    for i in range(5):
        own = [one_position(level, i) for level in levels]
        alone = sample(STEPS[name], denoise, initial_state(start[:, i : i + 1], own[0]), own,
                       lambda k, i=i: noises[k, :, i : i + 1])
        for state, other in zip(together, alone):
            torch.testing.assert_close(state.xt[:, i : i + 1], other.xt, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STEPS)
def test_no_noise_is_drawn_for_the_last_step(name):
    schedule, drawn = adapted(), []
    levels = [schedule.at(t) for t in schedule.grid(4)]

    def noise(index):
        drawn.append(index)
        return torch.zeros(1, 5, 2)

    list(sample(STEPS[name], lambda xt, *_: xt, initial_state(torch.zeros(1, 5, 2), levels[0]), levels, noise))
    assert drawn == ([0, 1, 2] if name in ("ddpm", "ddpm beta", "ddim 0.7") else [])


@pytest.mark.parametrize("shape", [(5,), (3, 5)], ids=["one time", "a time a row"])
def test_the_process_treats_a_position_as_if_it_were_alone(shape):
    schedule = adapted()
    t = torch.tensor([20, 200, 390])[: None if len(shape) > 1 else 1]
    level, earlier = schedule.at(t), schedule.at(t - 20)
    x0, eps = random(3, 5, 4), random(3, 5, 4, seed=1)
    xt = q_sample(x0, level, eps)
    torch.testing.assert_close(x0_from_eps(xt, eps, level), x0)
    torch.testing.assert_close(eps_from_x0(xt, x0, level), eps)
    torch.testing.assert_close(x0_from_score(xt, score_from_x0(xt, x0, level), level), x0)
    mean, variance = posterior(x0, xt, earlier, level)
    for i in range(5):
        s, own = (NoiseLevel(a.t, a.alpha[:, i], a.sigma[:, i]) for a in (earlier, level))
        assert q_sample(x0, own, eps)[:, i].equal(xt[:, i])
        one_mean, one_variance = posterior(x0, xt, s, own)
        assert one_mean[:, i].equal(mean[:, i]) and one_variance.equal(variance[:, i])


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("schedule", [build_schedule("sqrt", 400), adapted()], ids=["one", "by position"])
def test_levels_on_the_host_serve_a_state_on_any_device(schedule, name):
    levels = [schedule.at(t) for t in schedule.grid(3)]
    start = initial_state(torch.zeros(2, 5, 4, device="meta"), levels[0])
    *_, last = sample(STEPS[name], lambda xt, *_: xt, start, levels, lambda i: torch.zeros(2, 5, 4, device="meta"))
    assert last.xt.device.type == "meta" and last.xt.dtype == torch.float32


@pytest.mark.parametrize("options, message", [
    ({"every": 0}, "every 0"), ({"begin": -1}, "from -1 on"), ({"num_timesteps": 59}, "at least 60 of them, got 59"),
])
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**options)
    silent = DiscreteSchedule(torch.arange(100, dtype=torch.float64) / 2000)
    with pytest.raises(ValueError, match="without noise or signal"):
        AdaptiveSchedule(silent, 3, 1)
