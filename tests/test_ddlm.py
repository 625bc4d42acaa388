"""DDLM: score interpolation over embeddings of fixed length, noised by sigma = t."""

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import make_ddlm, make_dictionary, make_prompts, make_sampling, prompt_tokens, see_time
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_fairseq.criterions.score_interpolation import ScoreInterpolationConfig, ScoreInterpolationCriterion
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.process import score_from_x0
from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.schedules import SigmaEqualsT
from diffusion_fairseq.diffusion.solvers import SOLVERS, euler_step, initial_state
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.models.config import DDLMConfig
from diffusion_fairseq.models.presets import DDLM
from diffusion_fairseq.modules.attention import rotated
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.text.embedding import normalised

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")
EOS, PAD = DICTIONARY.eos(), DICTIONARY.pad()


prompt, batch = partial(prompt_tokens, DICTIONARY), partial(make_prompts, DICTIONARY)


def write(model, prompts, **options):
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(**{"diffusion_steps": 4, "solver": "euler",
                                                                       **options}))
    return [[one["tokens"].tolist() for one in found] for found in generator.generate([model], prompts)]


def make_criterion(**options):
    return ScoreInterpolationCriterion(ScoreInterpolationConfig(**options), task=None)


MODEL = make_ddlm(DICTIONARY)


def test_embeddings_have_length_sqrt_d_whatever_their_parameters():
    model = make_ddlm(DICTIONARY)
    with torch.no_grad():
        model.embedding.weight.mul_(torch.rand(len(DICTIONARY), 1) * 9 + 0.1)
    lengths = model.vectors.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 32**0.5))
    assert model.embed(torch.tensor([[7]])).norm().item() == pytest.approx(32**0.5, rel=1e-5)


def test_perfect_logits_give_the_exact_score():
    """p(x_0 | x_t, t) of a uniform prior over the embeddings is a softmax of -|x_t - e|^2 / 2 t^2; its mean gives the
    score of the mixture, here by automatic differentiation of its log-density."""
    vectors = normalised(torch.randn(20, 8, dtype=torch.float64))
    xt, t = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), 1.7
    logits = -(xt[:, None] - vectors).square().sum(-1) / (2 * t**2)
    log_density = logits.logsumexp(dim=-1).sum()
    exact, = torch.autograd.grad(log_density, xt)
    x0 = logits.softmax(dim=-1) @ vectors
    level = SigmaEqualsT(1, 10).at(torch.tensor(t))
    torch.testing.assert_close(score_from_x0(xt, x0, level), exact)


def test_euler_with_the_exact_posterior_ends_at_the_tokens_in_their_proportions():
    """Chi-square of the tokens reached from noise against the prior, 5 degrees of freedom."""
    generator = torch.Generator().manual_seed(1)
    vectors = normalised(torch.randn(6, 4, dtype=torch.float64, generator=generator))
    prior = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.1, 0.05], dtype=torch.float64)

    def denoise(xt, t, _previous):
        logits = prior.log() - (xt[..., None, :] - vectors).square().sum(-1) / (2 * t**2)
        return logits.softmax(dim=-1) @ vectors

    schedule, count = SigmaEqualsT(0.02, 60.0), 4000
    levels = [schedule.at(t) for t in schedule.grid(150, "karras")]
    state = initial_state(torch.randn(count, 1, 4, dtype=torch.float64, generator=generator), levels[0])
    for reached in sample(euler_step, denoise, state, levels, lambda index: None):
        state = reached
    distance = torch.cdist(state.xt[:, 0], vectors)
    assert (distance.amin(dim=1) < 1e-3).all()
    found = torch.bincount(distance.argmin(dim=1), minlength=6)
    expected = prior * count
    assert ((found - expected) ** 2 / expected).sum() < 20.5  # p = 0.001


def test_the_estimate_is_the_mean_embedding():
    hidden = torch.randn(7, 64)
    expected = (MODEL.head(hidden).softmax(dim=-1)) @ MODEL.vectors
    torch.testing.assert_close(MODEL.interpolate(hidden), expected)
    cold = MODEL.interpolate(hidden, temperature=1e-4)
    torch.testing.assert_close(cold, MODEL.vectors[MODEL.head(hidden).argmax(dim=-1)], rtol=1e-4, atol=1e-4)


def test_cross_entropy_at_noised_positions_alone():
    model = make_ddlm(DICTIONARY, self_conditioning=False)
    text, source = torch.tensor([prompt("abcdef.")]), torch.tensor([prompt("ab__ef_")])
    t = torch.tensor([3.0], dtype=torch.float64)
    noise = torch.randn(1, 7, 32)
    criterion = make_criterion()
    parts = model(source, text, t, noise=noise, objective=criterion.objective)
    assert parts.counts.tolist() == [[False, False, True, True, False, False, True]]
    memory = model.memory(model.encode(source))
    hidden = model.network(model.embed(text) + 3 * noise, t, memory, Packing((1, 7)), None)
    nll = F.cross_entropy(model.head(hidden), text[0], reduction="none")
    torch.testing.assert_close(parts.anchor_nll[0], nll * parts.counts[0], rtol=1e-4, atol=1e-5)
    assert criterion(model, {"id": torch.tensor([0]), "net_input": {"src_tokens": source}, "target": text})[1] == 3


def test_given_tokens_enter_clean_and_noised_ones_scaled():
    model = make_ddlm(DICTIONARY, self_conditioning=False)
    text, source = torch.tensor([prompt("abcdef")]), torch.tensor([prompt("abc___")])
    noise, seen = torch.randn(1, 6, 32), []
    model.up_projection.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(source, text, torch.tensor([4.0], dtype=torch.float64), noise=noise)
    clean = model.embed(text)[0]
    expected = torch.cat([clean[:3], (clean[3:] + 4 * noise[0, 3:]) / 17**0.5])
    torch.testing.assert_close(seen[0][:6], expected, rtol=1e-4, atol=1e-4)


def test_rotary_positions_need_heads_of_an_even_width():
    with pytest.raises(UserError, match="--rotary needs heads of an even width, got 15: --model-dim 30 over"):
        make_ddlm(DICTIONARY, rotary=True, model_dim=30, attention_heads=2)


@pytest.mark.parametrize("rotary", [False, True])
def test_gradients_reach_every_parameter(rotary):
    model = see_time(make_ddlm(DICTIONARY, rotary=rotary)).train()
    text = torch.tensor([prompt("abcdef."), prompt("fedcba.")])
    source = torch.tensor([prompt("ab_____"), prompt("_edc_a_")])
    loss, _, _ = make_criterion()(model, {"net_input": {"src_tokens": source}, "target": text})
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("solver", SOLVERS)
@given(
    text=st.text("abcdef_", min_size=1, max_size=18), ends=st.booleans(), seed=st.integers(0, 999),
    clamping=st.booleans(), patience=st.sampled_from([None, 1]), entropy=st.sampled_from([None, 3.6]),
)
@settings(max_examples=15, deadline=None)
def test_every_given_token_is_kept_in_its_place(solver, text, ends, seed, clamping, patience, entropy):
    words = prompt(text + ("." if ends else ""))
    tokens = write(MODEL, batch("__abc_", text + ("." if ends else "")), solver=solver, clamping=clamping, seed=seed,
                   exit_patience=patience, exit_entropy=entropy if patience else None)[1][0]
    last = max((place for place, word in enumerate(words) if word not in (MASK, EOS)), default=-1)
    assert len(tokens) > last
    assert all(tokens[place] == word or word == MASK for place, word in enumerate(words[: last + 1]))
    assert MASK not in tokens and PAD not in tokens


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_text_alone_and_in_a_batch(solver):
    texts = ["ab____.", "____________cd_____.", "____.", "f__________."]
    options = {"diffusion_steps": 6, "candidates": 2, "solver": solver, "exit_patience": 2}
    together = write(MODEL, batch(*texts), **options)
    for number, text in enumerate(texts):
        assert write(MODEL, batch(text, ids=[number]), **options)[0] == together[number]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_embeddings_are_normalised_as_often_whatever_the_steps(monkeypatch, scale):
    model = make_ddlm(DICTIONARY, condition_dropout=0.1)
    counted = []

    def count(table):
        counted[-1] += 1
        return normalised(table)

    monkeypatch.setattr("diffusion_fairseq.models.ddlm_encoder.normalised", count)
    for steps in (2, 9):
        counted.append(0)
        write(model, batch("ab____c", "d__"), diffusion_steps=steps, clamping=True, guidance_scale=scale)
    assert counted[0] == counted[1] > 0


def test_the_score_of_a_text_is_the_probability_that_the_model_gives_its_tokens(monkeypatch):
    """Not how surely the mean embedding rounds to them, which says almost nothing where embeddings are long."""
    watched, network = [], MODEL.network
    monkeypatch.setattr(MODEL, "network", lambda *arguments: watched.append(network(*arguments)) or watched[-1])
    generator = DiffusionGenerator(MODEL, DICTIONARY, make_sampling(diffusion_steps=1, solver="euler"))
    (found,), = generator.generate([MODEL], batch("ab____c"))
    logits = MODEL.logits(watched[-1][:7]).masked_fill(generator.forbidden, -torch.inf)
    expected = logits.log_softmax(dim=-1)[torch.arange(7), found["tokens"]]
    given = torch.tensor([True, True, False, False, False, False, True])
    torch.testing.assert_close(found["positional_scores"], expected.masked_fill(given, 0.0))
    assert found["score"] == pytest.approx(expected[~given].mean().item(), rel=1e-5)
    assert found["score"] < -1
    # The tokens are those that it prefers; the mean embedding of an unsure model is nearest to others.
    assert found["tokens"][~given].equal(logits.argmax(dim=-1)[~given])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scores_at_once", [1, 1 << 24])
def test_watched_tokens_are_noted_with_the_estimate_and_not_searched_for(monkeypatch, solver, scores_at_once):
    monkeypatch.setattr("diffusion_fairseq.models.base.LOGITS_AT_ONCE", scores_at_once)
    generator = DiffusionGenerator(MODEL, DICTIONARY, make_sampling(diffusion_steps=3, solver=solver,
                                                                    score_temperature=0.3))
    tokens = batch("ab____________c.", "____________.")["net_input"]["src_tokens"]
    (_, rows), = generator.buckets(MODEL.encode(tokens), tokens, torch.arange(2))
    for denoise, _, reached in generator.trajectory(rows):
        search, denoise.likeliest = denoise.likeliest, None
        found = denoise.tokens(reached.pred_x0)
        assert found.equal(rows.memory.impose_tokens(rows.packing.unpack(search(denoise.hidden))))
        denoise.likeliest = search


def test_what_estimates_does_not_outlive_its_batch():
    generator = DiffusionGenerator(MODEL, DICTIONARY, make_sampling(diffusion_steps=2, solver="euler"))
    tokens = batch("ab____c")["net_input"]["src_tokens"]
    gc.disable()
    try:
        (_, rows), = generator.buckets(MODEL.encode(tokens), tokens, torch.zeros(1, dtype=torch.int64))
        estimators = {weakref.ref(denoise) for denoise, *_ in generator.trajectory(rows)}
        assert len(estimators) == 1 and estimators.pop()() is None
    finally:
        gc.enable()


def test_the_health_of_embeddings_is_of_those_that_are_used():
    model = make_ddlm(DICTIONARY)
    with torch.no_grad():
        model.embedding.weight.mul_(torch.rand(len(DICTIONARY), 1) * 9 + 0.1)
    text = torch.tensor([prompt("abcdef.")])
    sample = {"id": torch.tensor([0]), "net_input": {"src_tokens": torch.full_like(text, MASK)}, "target": text}
    assert float(make_criterion()(model, sample)[2]["embedding_norm"]) == pytest.approx(32**0.5, rel=1e-3)


def test_initial_noise_and_temperature_change_the_text():
    prompts = batch("____________")
    plain = write(MODEL, prompts, diffusion_steps=10)
    assert write(MODEL, prompts, diffusion_steps=10, initial_noise_scale=0.5) != plain
    assert write(MODEL, prompts, diffusion_steps=10, score_temperature=0.1) != plain
    assert write(MODEL, prompts, diffusion_steps=10, initial_noise_scale=1.0, score_temperature=1.0) == plain


def test_what_the_warp_has_learned_is_saved_with_the_model():
    model, criterion = make_ddlm(DICTIONARY).train(), make_criterion(timestep_sampler="time-warp")
    text = torch.tensor([prompt("abcdef.")] * 16)
    for _ in range(4):
        criterion(model, {"net_input": {"src_tokens": torch.full_like(text, MASK)}, "target": text})
        model.end_update()
    assert model.timesteps.counts.sum() > 60
    for name in ("time-warp", "gumbel"):
        other = make_ddlm(DICTIONARY, seed=1)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        other.upgrade_state_dict(state)
        other.load_state_dict(state)
        assert other.timestep_sampler(name).losses.equal(model.timesteps.losses)


def test_a_warped_grid_has_more_steps_where_the_loss_rises():
    model = make_ddlm(DICTIONARY)
    prompts = batch("________")
    with pytest.raises(UserError, match="--sampling-grid warped needs a model that was trained with"):
        write(model, prompts, sampling_grid="warped")
    law = model.timestep_sampler("time-warp")
    for _ in range(50):
        law.update(law.middles, 4 * torch.sigmoid(4 * (law.middles.log() - 1)))
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=20, sampling_grid="warped"))
    times = torch.stack([level.t for level in generator.levels])
    assert times[0] == pytest.approx(10) and times[-2] == pytest.approx(0.5) and times[-1] == 0
    near = (times.log() - 1).abs() < 0.5
    assert near.sum() > 10 and write(model, prompts, diffusion_steps=6, sampling_grid="warped")


def test_the_base_has_147_million_parameters():
    sizes = DDLMConfig(**DDLM["ddlm_base"])
    with torch.device("meta"):
        model = make_ddlm(make_dictionary(32000 - 5), **{name: getattr(sizes, name) for name in (
            "model_dim", "ffn_dim", "attention_heads", "encoder_layers", "latent_dim", "time_dim", "self_conditioning",
            "t_min")}, max_source_positions=64, max_target_positions=64)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(147e6, rel=0.02)


@pytest.mark.parametrize("options, match", [
    ({"t_min": 5.0, "t_max": 2.0}, "--t-min, --t-max: sigma = t needs"),
    ({"model_dim": 30, "attention_heads": 4}, "--model-dim 30 must be a multiple"),
])
def test_sizes_that_do_not_fit_are_one_line(options, match):
    with pytest.raises(UserError, match=match):
        make_ddlm(DICTIONARY, **options)


def test_criterions_of_other_models_are_refused():
    text = torch.tensor([prompt("abcdef.")])
    with pytest.raises(UserError, match="--criterion score_interpolation"):
        DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)(
            MODEL, {"id": torch.tensor([0]), "net_input": {"src_tokens": torch.full_like(text, MASK)}, "target": text})


def test_rotated_queries_and_keys_see_distances_alone():
    torch.manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 16)
    turned = rotated(query.expand(-1, -1, 9, -1)), rotated(key.expand(-1, -1, 9, -1))
    scores = (turned[0] @ turned[1].transpose(-1, -2))[0, 0]
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert scores[0].std() > 1e-3
