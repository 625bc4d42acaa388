"""models/noise.py, and models that train and generate on a schedule of their own for each position."""

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema.ema import EMA
from helpers import make_dictionary, make_diffuseq, make_genie, make_sample, make_sampling
from omegaconf import OmegaConf

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.adaptive import AdaptiveSchedule
from diffusion_fairseq.diffusion.schedules import build_schedule
from diffusion_fairseq.diffusion.solvers import SOLVERS
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.models.config import GenieConfig
from diffusion_fairseq.models.noise import model_schedule

DICTIONARY = make_dictionary()
ADAPTIVE = {"diffusion_timesteps": 100, "adaptive_schedule_updates": 1, "adaptive_schedule_start": 2}


def make_adaptive(**options):
    return make_genie(DICTIONARY, **{**ADAPTIVE, **options})


def train(model, updates=3):
    """A few updates on the same batch; the tables after each."""
    criterion, sample = DiffusionVLBCriterion(DiffusionVLBConfig(), task=None), make_sample(DICTIONARY, [7] * 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    tables = []
    for update in range(updates + 1):
        model.set_num_updates(update)
        tables.append(model.schedule.log_snr.clone())
        optimizer.zero_grad()
        loss, sample_size, _ = criterion(model, sample)
        assert torch.isfinite(loss)
        (loss / sample_size).backward()
        model.end_update()
        optimizer.step()
    model.eval()
    return tables


def adapted(**options):
    """Random weights whose texts differ, and levels that differ from position to position."""
    model = make_adaptive(**options)
    with torch.no_grad():
        model.down_projection[2].weight.mul_(8)
        shape = torch.linspace(0.5, 2, len(model.schedule.log_snr), dtype=torch.float64)[:, None]
        alpha_bar, T = model.schedule.log_snr.sigmoid(), model.schedule.num_timesteps
        t = torch.arange(T).repeat(10)
        losses = (1 - alpha_bar.t()[t]) ** shape.t()
        model.schedule.observe(t, losses, torch.ones_like(losses, dtype=torch.bool))
        model.schedule.end_update()
        assert model.schedule.reinterpolate() == len(alpha_bar)
    return model


def generate(model, sample, **options):
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(**{"diffusion_steps": 6, **options}))
    with torch.no_grad():
        return [hypotheses[0] for hypotheses in generator.generate([model], sample)]


def test_options_name_the_schedule():
    assert model_schedule(GenieConfig()).betas.equal(build_schedule("sqrt", 2000).betas)
    points = "0=0.99,1=0.01"
    found = model_schedule(GenieConfig(noise_schedule="points", noise_points=points, diffusion_timesteps=30))
    assert found.betas.equal(build_schedule("points", 30, points=points).betas)
    adaptive = model_schedule(GenieConfig(noise_schedule="linear", max_target_positions=9, noise_gamma=0.1,
                                          adaptive_schedule_updates=20, adaptive_schedule_start=60))
    assert isinstance(adaptive, AdaptiveSchedule) and (adaptive.every, adaptive.begin) == (20, 60)
    assert adaptive.log_snr.shape == (9, 2000)


def test_each_position_of_source_and_target_in_one_sequence_has_levels_of_its_own():
    model = make_diffuseq(DICTIONARY, max_source_positions=9, max_target_positions=7, **ADAPTIVE)
    assert model.longest_sequence > 7 and len(model.schedule.log_snr) == model.longest_sequence
    before = train(model)[0]
    moved = (model.schedule.log_snr != before).any(dim=1)
    assert moved[7:].any() and not moved[:3].any()  # beyond a target's length; not the sources, which are given


@pytest.mark.parametrize("options, message", [
    ({"noise_gamma": 2.0}, "--noise-gamma: the schedule sqrt has no scale"),
    ({"noise_schedule": "points"}, "--noise-schedule: .*give both"),
    ({"noise_points": "0=0.9,1=0.1"}, "--noise-points: .*give both"),
    ({"noise_schedule": "points", "noise_points": "0=0.9"}, "--noise-points: .*from 0 to 1"),
    ({"adaptive_schedule_updates": -1}, "--adaptive-schedule-updates: .*every -1"),
    ({"adaptive_schedule_start": 5}, "--adaptive-schedule-start acts only with"),
    ({"adaptive_schedule_start": -5, "adaptive_schedule_updates": 1}, "from -5 on"),
    ({"diffusion_timesteps": 50, "adaptive_schedule_updates": 1}, "at least 60 of them, got 50"),
])
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        make_genie(DICTIONARY, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"length_model": "fixed"}, {"parameterization": "noise"}],
                         ids=["predicted", "fixed", "noise"])
def test_training_moves_the_levels_from_the_update_asked_for(options):
    model = make_adaptive(**options)
    tables = train(model)
    assert tables[1].equal(tables[0]) and not tables[3].equal(tables[2])
    moved = ((tables[3] - tables[0]).abs() > 1e-3).any(dim=1)
    # Where an untrained model's losses happen to fall with t, nothing moves.
    assert moved[:7].sum() >= 4
    # Padding is no word: positions that only it has reached stay, modelled or not.
    assert tables[3][7:].equal(tables[0][7:])
    assert (tables[3].diff(dim=1) < 0).all()
    for hypothesis in generate(model, make_sample(DICTIONARY, [5, 9])):
        assert len(hypothesis["tokens"]) and torch.isfinite(hypothesis["positional_scores"]).all()


def test_validation_teaches_the_schedule_nothing():
    model = make_adaptive()
    DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)(model, make_sample(DICTIONARY, [7] * 4))
    assert model.schedule.counts.sum() == 0


def test_a_schedule_that_has_not_moved_trains_as_the_ordinary_one():
    sample, losses = make_sample(DICTIONARY, [5, 9]), []
    for options in (ADAPTIVE, {"diffusion_timesteps": 100}):
        criterion = DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)
        losses.append(criterion(make_genie(DICTIONARY, **options), sample)[0])
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("options", [
    *({"solver": solver} for solver in SOLVERS), {"sampling_grid": "karras", "clamping": True},
    {"stride_as_published": True}, {"exit_patience": 1, "diffusion_steps": 12, "candidates": 3},
    {"exit_patience": 1, "diffusion_steps": 12, "candidates": 3, "solver": "dpmpp-2m"},
], ids=lambda options: "-".join(map(str, options.values())))
def test_same_text_alone_and_in_a_batch(options):
    model = adapted()
    sample = make_sample(DICTIONARY, [3 + i % 11 for i in range(24)])
    batch = generate(model, sample, **options)
    for i in (0, 5, 10, 23):
        tokens = sample["net_input"]["src_tokens"][i : i + 1]
        alone = {"net_input": {"src_tokens": tokens[:, : int((tokens != DICTIONARY.pad()).sum())]}}
        assert generate(model, alone, **options)[0]["tokens"].equal(batch[i]["tokens"])


def test_predicted_noise_is_taken_off_position_by_position():
    model, t = adapted(parameterization="noise"), torch.tensor([30, 90])
    xt, eps = torch.randn(2, 2, 7, 32, generator=torch.Generator().manual_seed(0))
    found, level = model.to_x0(eps, xt, t), model.schedule.at(t)
    for i in range(7):
        alpha, sigma = (x[:, i, None].float() for x in (level.alpha, level.sigma))
        torch.testing.assert_close(found[:, i], (xt[:, i] - sigma * eps[:, i]) / alpha)


def test_levels_by_position_act_in_generation():
    sample, model = make_sample(DICTIONARY, [5, 9, 12]), adapted()
    adapted_scores = [hypothesis["score"] for hypothesis in generate(model, sample)]
    model.schedule.load_state_dict(make_adaptive().schedule.state_dict())
    for hypothesis, score in zip(generate(model, sample), adapted_scores):
        assert abs(hypothesis["score"] - score) > 1e-3


def test_levels_are_saved_with_the_weights():
    model, fresh = adapted(), make_adaptive(seed=1)
    fresh.load_state_dict(model.state_dict())
    assert fresh.schedule.log_snr.equal(model.schedule.log_snr)
    sample = make_sample(DICTIONARY, [5, 9, 12])
    for ours, theirs in zip(generate(model, sample), generate(fresh, sample)):
        assert ours["tokens"].equal(theirs["tokens"])


def test_a_checkpoint_without_levels_is_refused():
    state = make_genie(DICTIONARY, diffusion_timesteps=100).state_dict()
    with pytest.raises(UserError, match="the checkpoint lacks its adaptive noise schedule") as error:
        make_adaptive().load_state_dict(state)
    assert "\n" not in str(error.value)


def test_longer_targets_take_over_the_levels_that_there_are():
    model, longer = adapted(), make_adaptive(max_target_positions=30)
    start = longer.schedule.log_snr.clone()
    longer.load_state_dict(model.state_dict())
    assert longer.schedule.log_snr[:24].equal(model.schedule.log_snr)
    assert longer.schedule.log_snr[24:].equal(start[24:])


@pytest.mark.parametrize("cast", [lambda model: model.to(torch.bfloat16), lambda model: model.half(), lambda model:
                                  model.prepare_for_inference_(OmegaConf.create({"common": {"bf16": True},
                                                                                 "generation": {}}))],
                         ids=["bf16", "fp16", "inference in bf16"])
def test_half_precision_keeps_the_levels(cast):
    model = adapted()
    before = model.schedule.log_snr.clone()
    cast(model)
    assert model.schedule.log_snr.dtype == torch.float64 and model.schedule.log_snr.equal(before)


@pytest.mark.parametrize("fp32", [False, True])
def test_averages_over_updates_keep_the_order_of_the_levels(fp32):
    model, start = adapted(), make_adaptive()
    ema = EMA(start, EMAConfig(store_ema=True, ema_decay=0.75, ema_fp32=fp32))
    ema.step(model)
    found = ema.get_model().schedule.log_snr
    expected = 0.75 * start.schedule.log_snr + 0.25 * model.schedule.log_snr
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found.diff(dim=1) < 0).all()
