"""What holds of any schedule, solver, law of t and noise, found by hypothesis; the published values are elsewhere."""

import math
from functools import partial

import pytest
import torch
from helpers import make_ddlm, make_dictionary, make_diffuseq, make_diffusion_lm, make_genie, make_sample, make_sampling
from hypothesis import assume, given
from hypothesis import strategies as st
from test_solvers import EXACT, moments

from diffusion_fairseq.diffusion.grids import GRIDS
from diffusion_fairseq.diffusion.noise import combine, gaussian_noise, sequence_keys
from diffusion_fairseq.diffusion.position_schedule import PositionSchedule
from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.schedules import (
    BETAS,
    CLEAN,
    POINTS,
    NoiseLevel,
    SigmaEqualsT,
    build_schedule,
    parse_points,
)
from diffusion_fairseq.diffusion.solvers import SOLVERS, ddim_step, ddpm_step, initial_state
from diffusion_fairseq.diffusion.time_laws import TIME_LAWS, isotonic, warped_grid
from diffusion_fairseq.diffusion.timesteps import LossSecondMomentTimesteps
from diffusion_fairseq.generator import DiffusionGenerator

INT64 = st.integers(-(2**63), 2**63 - 1)
DICTIONARY = make_dictionary()
DICTIONARY.add_symbol("<mask>")


def rising(least, most, exclude=False):
    """Two or more different numbers, rising."""
    numbers = st.floats(least, most, exclude_min=exclude, exclude_max=exclude)
    return st.lists(numbers, min_size=2, max_size=6, unique=True).map(sorted)


@st.composite
def schedules(draw):
    """A schedule of any shape and length that can be built."""
    kind = draw(st.sampled_from([*BETAS, POINTS, "sigma=t", "positions"]))
    num_timesteps = draw(st.integers(1, 60) | st.integers(1, 2000))
    if kind == "sigma=t":
        return SigmaEqualsT(*draw(rising(1e-3, 1e3))[:2])
    if kind == "positions":
        num_timesteps = min(num_timesteps, 60)
        steps = st.lists(st.floats(0.01, 0.5), min_size=num_timesteps, max_size=num_timesteps)
        falls = torch.tensor(draw(st.lists(steps, min_size=1, max_size=3)), dtype=torch.float64)
        return PositionSchedule(draw(st.floats(-5, 10)) - falls.cumsum(dim=1))
    try:
        if kind == POINTS:
            u = [0.0, *draw(st.lists(st.floats(0.01, 0.99), max_size=3, unique=True).map(sorted)), 1.0]
            bars = sorted(draw(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=len(u), max_size=len(u), unique=True)))
            text = ",".join(f"{time!r}={bar!r}" for time, bar in zip(u, reversed(bars)))
            return build_schedule(kind, num_timesteps, points=text)
        return build_schedule(kind, num_timesteps, draw(st.none() | st.floats(1e-3, 60)))
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return assume(False)


def grid(draw, schedule, most=40):
    """Levels of a drawn number of steps, spaced as drawn."""
    trained = getattr(schedule, "num_timesteps", most)
    times = schedule.grid(draw(st.integers(1, min(most, trained))), draw(st.sampled_from(sorted(GRIDS))))
    return times, [schedule.at(t) for t in times]


@given(schedules(), st.data())
def test_any_grid_falls_to_the_clean_level_over_trained_ones(schedule, data):
    times, levels = grid(data.draw, schedule)
    trained = getattr(schedule, "num_timesteps", None)
    assert times[0].item() == (pytest.approx(schedule.t_max) if trained is None else trained - 1)
    assert times[-1] == (0 if trained is None else CLEAN) and (times[:-1] >= 0).all()
    assert (times.diff() < 0).all() and torch.isfinite(times).all()
    alphas, sigmas = (torch.stack([getattr(level, name) for level in levels]) for name in ("alpha", "sigma"))
    assert (alphas.diff(dim=0) >= 0).all() and (sigmas.diff(dim=0) <= 0).all()
    assert (alphas > 0).all() and (alphas[-1] == 1).all() and (sigmas[:-1] > 0).all() and (sigmas[-1] == 0).all()
    if trained is not None:
        torch.testing.assert_close(alphas**2 + sigmas**2, torch.ones_like(alphas), rtol=0, atol=1e-12)
        with pytest.raises(ValueError, match="must be from 1 to"):
            schedule.grid(trained + 1)


@given(st.text(st.sampled_from("0123456789.=,e- "), max_size=30))
def test_any_points_are_a_schedule_or_refused(text):
    try:
        points = parse_points(text)
    except ValueError as error:
        assert "points" in str(error) and "\n" not in str(error)
        return
    levels = build_schedule(POINTS, 20, points=text).alphas_cumprod
    assert points[0][0] == 0 and points[-1][0] == 1 and (levels > 0).all() and (levels < 1).all()


@given(schedules(), st.sampled_from(sorted(EXACT)), st.data())
def test_an_oracle_meets_the_nominal_level_at_every_step_of_any_grid(schedule, name, data):
    place = data.draw(st.integers(0, 2))  # of a schedule with levels of their own for the positions
    levels = [NoiseLevel(level.t, *(scale.flatten()[place % scale.numel()] for scale in level[1:]))
              for level in grid(data.draw, schedule)[1]]
    assume(levels[0].alpha > 1e-7)  # float64 has no more digits for Heun's division by it
    for level, signal, noise in moments(EXACT[name], levels):
        torch.testing.assert_close(signal, level.alpha, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(noise, level.sigma, rtol=1e-6, atol=1e-6)


STEPS = {**{name: [step] for name, step in SOLVERS.items()},
         "ddim": [partial(ddim_step, eta=eta) for eta in (0.0, 0.3, 1.0)],
         "ddpm": [partial(ddpm_step, variance=variance) for variance in ("posterior", "beta")]}


@given(schedules(), st.sampled_from(sorted(STEPS)), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_any_estimates_within_bounds_give_finite_states(schedule, name, dtype, data):
    """A network may say anything: what the last step hands on is its estimate, and nothing overflows before."""
    levels = [level.cut(4) for level in grid(data.draw, schedule)[1]]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    def draw(*_):
        return torch.randn(2, 4, 3, generator=generator, dtype=dtype)
    step, start = data.draw(st.sampled_from(STEPS[name])), initial_state(draw(), levels[0])
    states = list(sample(step, draw, start, levels, draw))
    assert all(state.xt.dtype == dtype and torch.isfinite(state.xt).all() for state in states)
    torch.testing.assert_close(states[-1].xt, states[-1].pred_x0, rtol=1e-4, atol=1e-4)


@given(st.lists(INT64, min_size=1, max_size=6), INT64, st.integers(1, 9), st.integers(1, 8), st.data())
def test_noise_is_a_function_of_its_place(keys, counter, length, half, data):
    keys = torch.tensor(keys)
    noise = gaussian_noise(keys, counter, length, 2 * half)
    assert torch.isfinite(noise).all() and noise.abs().max() < 6
    order = torch.tensor(data.draw(st.permutations(range(len(keys)))))
    shorter = data.draw(st.integers(1, length))
    assert gaussian_noise(keys[order], counter, shorter, 2 * half).equal(noise[order, :shorter])


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), INT64, st.integers(0, 4), st.integers(0, 4), INT64)
def test_the_stream_of_a_sequence_ignores_where_it_lies(tokens, seed, before, behind, number):
    row = torch.tensor([tokens])
    wide = torch.nn.functional.pad(row, (before, behind), value=7)
    mask = torch.nn.functional.pad(torch.ones_like(row), (before, behind)).bool()
    key = sequence_keys(row, torch.ones_like(row).bool(), seed)
    assert key.equal(sequence_keys(wide, mask, seed))
    assert not key.equal(combine(key, number)) and not key.equal(sequence_keys(row + 1, torch.ones_like(row) > 0, seed))


LOSSES = st.lists(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e6, width=32)), min_size=1, max_size=20),
                  max_size=8)


@given(LOSSES, st.integers(1, 9), st.integers(1, 4))
def test_loss_aware_sampling_remembers_as_a_queue_would(updates, num_timesteps, history):
    law, queues = LossSecondMomentTimesteps(num_timesteps, history), [[] for _ in range(num_timesteps)]
    for pairs in updates:
        u, losses = (torch.tensor(column) for column in zip(*pairs))
        t = law.spread(u * (1 - 1e-6))
        law.update(t, losses)
        for place, loss in zip(t.tolist(), losses.tolist()):
            queues[place] = [*queues[place], loss][-history:]
    p = law.probabilities()
    assert p.sum().item() == pytest.approx(1) and (p > 0).all()
    if all(len(queue) == history for queue in queues):
        assert all(sorted(row.tolist()) == sorted(queue) for row, queue in zip(law.losses, queues))
    t, weight = law.draw(50, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() < num_timesteps and torch.isfinite(weight).all() and (weight > 0).all()


@given(LOSSES, st.sampled_from(sorted(TIME_LAWS)), rising(1e-2, 1e3), st.integers(1, 40))
def test_any_losses_leave_a_law_of_t(updates, name, ends, num_steps):
    low, high = ends[0], ends[-1]
    assume(high > 1.01 * low)
    law = TIME_LAWS[name](low, high)
    for pairs in updates:
        u, losses = (torch.tensor(column) for column in zip(*pairs))
        law.update(law.quantile(u.double()), losses)
    t = torch.linspace(low, high, 50, dtype=torch.float64)
    cdf = law.cdf(t)
    assert (cdf.diff() > 0).all() and cdf[0].abs() < 1e-6 and (cdf[-1] - 1).abs() < 1e-6
    times = warped_grid(law, num_steps)
    assert (times.diff() < 0).all() and times[-1] == 0 and times[0] == pytest.approx(high)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-3, 1e3)), min_size=1, max_size=20))
def test_isotonic_rises_and_keeps_the_sum(pairs):
    values, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs))
    fitted = isotonic(values, weights)
    assert (fitted.diff() >= -1e-9).all()
    torch.testing.assert_close((fitted * weights).sum(), (values * weights).sum(), rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(isotonic(fitted, weights), fitted)


MODELS = {
    "genie": make_genie(DICTIONARY, length_model="predicted"), "genie fixed": make_genie(DICTIONARY),
    "diffuseq": make_diffuseq(DICTIONARY, length_model="fixed"), "diffusion_lm": make_diffusion_lm(DICTIONARY),
    "ddlm": make_ddlm(DICTIONARY),
}


@given(model=st.sampled_from(sorted(MODELS)), lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6),
       solver=st.sampled_from(sorted(SOLVERS)), grid=st.sampled_from(sorted(GRIDS)), steps=st.integers(1, 7),
       clamping=st.booleans(), patience=st.sampled_from([None, 1, 2]), candidates=st.integers(1, 3),
       seed=st.integers(0, 2**31), data=st.data())
def test_the_same_seed_gives_the_same_text_in_any_batch(model, lengths, solver, grid, steps, clamping, patience,
                                                        candidates, seed, data):
    model = MODELS[model]
    batch = make_sample(DICTIONARY, lengths, seed=seed % 1000)
    sampling = make_sampling(solver=solver, sampling_grid=grid, diffusion_steps=steps, clamping=clamping, seed=seed,
                             exit_patience=patience, candidates=candidates)

    def write(rows):
        tokens = batch["net_input"]["src_tokens"][rows]
        tokens = tokens[:, : max(lengths[row] for row in rows)]
        part = {"id": torch.tensor(rows), "net_input": {"src_tokens": tokens}}
        with torch.no_grad():
            found = DiffusionGenerator(model, DICTIONARY, sampling).generate([model], part)
        assert all(math.isfinite(one["score"]) for texts in found for one in texts)
        return {row: sorted(one["tokens"].tolist() for one in texts) for row, texts in zip(rows, found)}

    together = write(list(range(len(lengths))))
    rows = data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(1, len(lengths)))]
    assert write(rows) == {row: together[row] for row in rows}
