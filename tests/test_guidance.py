"""What leads the reverse process: the difference that a condition makes, and the gradient of a classifier."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    make_classifier,
    make_ddlm,
    make_dictionary,
    make_diffuseq,
    make_diffusion_lm,
    make_genie,
    make_sample,
    make_sampling,
    save_model,
    see_time,
)

from diffusion_fairseq.criterions.score_interpolation import ScoreInterpolationConfig, ScoreInterpolationCriterion
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.noise import Draws, gaussian_noise
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.guidance import STEP_SIZE, ClassifierGuidance, ConditionGuidance
from diffusion_fairseq.models.condition import Memory
from diffusion_fairseq.modules.packing import Packing

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()
LENGTHS = [3, 7, 5, 9, 4, 8, 6, 7]


def sharp(model):
    """Random weights whose output is large, so that different noise rounds to different tokens."""
    with torch.no_grad():
        (model.head if model.predicts_tokens else model.down_projection[2]).weight.mul_(8)
    return model


def make(kind, **options):
    options = {"condition_dropout": 0.1, **options}
    if kind == "lm":
        return sharp(make_diffusion_lm(DICTIONARY, given_tokens="clean", **options))
    return sharp({"genie": make_genie, "diffuseq": make_diffuseq, "ddlm": make_ddlm}[kind](DICTIONARY, **options))


KINDS = ("genie", "lm", "diffuseq", "ddlm")
PROMPTED = ("lm", "ddlm")


def sources(kind, lengths=LENGTHS):
    """Texts; for a language model with two positions of three to be filled."""
    sample = make_sample(DICTIONARY, lengths)
    if kind in PROMPTED:
        tokens = sample["net_input"]["src_tokens"]
        gaps = (torch.arange(tokens.size(1)) % 3 > 0) & (tokens != PAD)
        sample["net_input"]["src_tokens"] = tokens.masked_fill(gaps, MASK)
    return sample


def generate(model, sample, **options):
    with torch.no_grad():
        generator = DiffusionGenerator(model, DICTIONARY, make_sampling(**{"diffusion_steps": 6, **options}))
        return generator.generate([model], sample), generator


def one_of(sample, row):
    tokens = sample["net_input"]["src_tokens"][row : row + 1]
    return {"id": sample["id"][row : row + 1], "net_input": {"src_tokens": tokens[:, : int((tokens != PAD).sum())]}}


def texts(found):
    return [[hypothesis["tokens"].tolist() for hypothesis in group] for group in found]


def rows_of(model, sample):
    tokens = sample["net_input"]["src_tokens"]
    with torch.no_grad():
        generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=6, candidates=2))
        (_, rows), *_ = generator.buckets(model.encode(tokens), tokens, sample["id"])
    return rows, [level.t[None] for level in generator.levels]


@pytest.mark.parametrize("kind", KINDS)
def test_the_guided_estimate_is_a_line_through_the_two_estimates(kind):
    model = make(kind)
    rows, times = rows_of(model, sources(kind))
    free, guidance = model.unconditional(rows.memory), ConditionGuidance(model, 2.5, model.denoise)
    xt, previous, own = gaussian_noise(rows.keys, 0, rows.width, model.embedding.embedding_dim), None, None
    with torch.no_grad():
        for t in (times[1], times[3]):
            conditional = model.denoise(xt, t, rows.memory, rows.packing, previous)
            own = model.denoise(xt, t, free, rows.packing,
                                None if previous is None else rows.memory.impose(previous, own))
            previous = guidance(xt, t, rows.memory, rows.packing, previous)
            assert previous.equal(rows.memory.impose(own + 2.5 * (conditional - own)))
            assert not torch.allclose(previous, conditional, atol=1e-3)
    given = rows.memory.given(*xt.shape[:2])
    if given is not None:
        assert previous[given].equal(rows.memory.values(*xt.shape[:2])[given])


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_one_is_off_and_costs_nothing(kind):
    model, calls = make(kind), []
    stock = model.denoise
    model.denoise = lambda *arguments, **options: calls.append(1) or stock(*arguments, **options)
    off, _ = generate(model, sources(kind))
    count = len(calls)
    one, _ = generate(model, sources(kind), guidance_scale=1.0)
    assert len(calls) == 2 * count
    for a, b in zip(off, one):
        assert a[0]["tokens"].equal(b[0]["tokens"]) and a[0]["positional_scores"].equal(b[0]["positional_scores"])
    two, _ = generate(model, sources(kind), guidance_scale=2.0)
    assert len(calls) == 4 * count and texts(two) != texts(off)


def test_a_scale_of_zero_is_the_unconditional_model():
    model, sample = make("genie"), sources("genie")
    led, _ = generate(model, sample, guidance_scale=0.0, clamping=True)
    memory = model.memory

    def empty(encoded):
        found = memory(model.encode(torch.tensor([[EOS]])))
        rows = torch.zeros(len(encoded.mask), dtype=torch.int64)
        return Memory(found.layers, None).select(rows)

    model.memory = lambda encoded: empty(encoded) if len(encoded.mask) > 1 else memory(encoded)
    assert texts(generate(model, sample, clamping=True)[0]) == texts(led)


def test_without_its_prompt_a_language_model_is_not_told_it_by_its_last_estimate():
    model = make("lm")
    rows, times = rows_of(model, sources("lm", [9, 9]))
    words = rows.memory.tokens.masked_fill(rows.memory.fixed, 7)
    free = []
    for memory in (rows.memory, model.encode(words)):
        guidance, previous = ConditionGuidance(model, 0.0, model.denoise), None
        xt = gaussian_noise(rows.keys, 0, rows.width, 32)
        with torch.no_grad():
            for t in (times[1], times[3]):
                previous = guidance(xt, t, memory, rows.packing, previous)
        free.append(guidance.free)
    assert free[0].equal(free[1]) and not rows.memory.tokens.equal(words)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"exit_patience": 1, "diffusion_steps": 25, "clamping": True, "candidates": 2},
                                     {"solver": "heun"}], ids=["plain", "early-exit", "heun"])
def test_guided_texts_do_not_depend_on_the_batch(kind, options):
    model, sample = make(kind), sources(kind)
    if "exit_patience" in options:
        # Looks less at the noise, so that texts settle.
        with torch.no_grad():
            (model.up_projection if kind == "ddlm" else model.up_projection[2]).weight.mul_(0.1)
    batch, generator = generate(model, sample, guidance_scale=1.5, **options)
    assert "exit_patience" not in options or min(generator.steps_used) < 25
    for row in (0, 3, 7):
        alone, _ = generate(model, one_of(sample, row), guidance_scale=1.5, **options)
        assert texts(alone)[0] == texts(batch)[row]
        assert alone[0][0]["score"] == batch[row][0]["score"]


@pytest.mark.parametrize("kind, empty", [("genie", [EOS, PAD, PAD]), ("lm", [MASK, MASK, PAD]),
                                         ("diffuseq", [EOS, EOS, PAD])])
def test_sources_are_dropped_at_the_rate_that_was_asked_for(kind, empty):
    model = make(kind, condition_dropout=0.3).train()
    tokens = torch.tensor([[7, EOS, PAD]]).expand(4000, -1)
    draws = [model.drop_conditions(tokens, Draws(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert draws[0].equal(draws[1]) and not draws[0].equal(draws[2])
    dropped = (draws[0] != tokens).any(dim=1)
    assert abs(dropped.float().mean() - 0.3) < 0.03
    assert (draws[0][dropped] == torch.tensor(empty)).all() and draws[0][~dropped].equal(tokens[~dropped])
    model.eval()
    assert model.drop_conditions(tokens, Draws()) is tokens
    off = make(kind, condition_dropout=0.0).train()
    state = torch.get_rng_state()
    assert off.drop_conditions(tokens, Draws()) is tokens and state.equal(torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_with_dropped_sources_gradients_reach_every_parameter(kind):
    model, sample = make(kind, condition_dropout=0.5).train(), sources(kind)
    if kind in PROMPTED:
        sample["target"] = make_sample(DICTIONARY, LENGTHS)["target"]
    if kind == "ddlm":
        see_time(model)
    torch.manual_seed(1)
    criterion = (ScoreInterpolationCriterion(ScoreInterpolationConfig(), task=None) if kind == "ddlm" else
                 DiffusionVLBCriterion(DiffusionVLBConfig(), task=None))
    loss, _, _ = criterion(model, sample)
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_cannot_be_guided_is_refused_in_one_line():
    for build, message in (
        (lambda: generate(make_genie(DICTIONARY), sources("genie"), guidance_scale=2.0),
         "--guidance-scale 2 needs a model trained with --condition-dropout"),
        (lambda: make_diffusion_lm(DICTIONARY, condition_dropout=0.1), "--condition-dropout needs --given-tokens"),
        (lambda: make_diffuseq(DICTIONARY, noising="full", condition_dropout=0.1), "needs --noising partial"),
        (lambda: make_genie(DICTIONARY, condition_dropout=1.0), "--condition-dropout must be at least 0 and less"),
        (lambda: generate(make("genie"), sources("genie"), guidance_scale=-1.0), "--guidance-scale must be at least 0"),
        (lambda: generate(make("genie"), sources("genie"), classifier="x.pt"), "--classifier-label belong together"),
        (lambda: generate(make("genie"), sources("genie"), classifier_steps=0), "--classifier-steps must be at"),
        (lambda: generate(make("genie"), sources("genie"), classifier_scale=float("nan")), "--classifier-scale"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build()
        assert "\n" not in str(error.value)


class Linear:
    """log p(label 1 | x) rises along a direction: its gradient is known."""

    def __init__(self, direction):
        self.direction, self.times = direction, []

    def logits(self, x, t, packing):
        self.times.append(int(t))
        score = (packing.unpack(packing.pack(x)) * self.direction).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def levels():
    model = make("lm")
    return (model.schedule.at(torch.tensor(t)) for t in (960, 1000))


def led(scale=1.0, steps=3, fluency=0.01, given=None, size=0.01):
    torch.manual_seed(1)
    direction = size * torch.randn(5, 4)
    classifier = Linear(direction)
    xs = torch.randn(3, 5, 4)
    packing = Packing.of(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool())
    s, t = levels()
    moved = ClassifierGuidance(classifier, 1, scale, steps, fluency)(xs, s, t, packing, given)
    assert classifier.times == [960] * steps and moved.dtype == torch.float32
    return xs, moved, direction, packing


def test_a_classifier_moves_x_along_its_gradient_and_nothing_else():
    given = torch.zeros(3, 5, dtype=torch.bool)
    given[0, 1:3] = True
    xs, moved, direction, packing = led(given=given)
    free = packing.mask & ~given
    assert moved[~free].equal(xs[~free])
    change = (moved - xs)[free]
    assert (change.sign() == direction.expand_as(xs)[free].sign()).all()
    # Small gradients keep their proportions.
    torch.testing.assert_close(change[0] / change[0].norm(), direction[0] / direction[0].norm(), atol=1e-3, rtol=0)


def test_scale_steps_and_fluency_do_what_they_say():
    def distance(**options):
        xs, moved, _, _ = led(**options)
        return float((moved - xs).abs().max())

    assert distance(scale=0.5) < distance(scale=1) < distance(scale=4)
    assert distance(steps=1) < distance(steps=3)
    assert distance(fluency=10.0) < 0.1 * distance() < distance(fluency=0.0)
    # However large the gradient, a step of Adagrad is no longer than its size.
    assert distance(scale=1e6, steps=1) < 1.01 * STEP_SIZE


def test_many_steps_end_where_the_classifiers_pull_and_that_of_fluency_are_equal():
    scale, fluency = 3.0, 0.02
    xs, moved, direction, packing = led(scale=scale, steps=2000, fluency=fluency, size=0.3)
    s, t = levels()
    variance = s.sigma**2 / t.sigma**2 * (1 - (t.alpha / s.alpha) ** 2)
    score = (moved * direction * packing.mask[..., None]).sum(dim=(1, 2))
    pull = scale * (1 - score.sigmoid())[:, None, None] * direction
    held = fluency / variance * (moved - xs)
    torch.testing.assert_close(held[packing.mask], pull.expand_as(xs)[packing.mask].to(held), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """A language model, a checkpoint of a classifier of its x_t (random weights), and prompts."""
    model = make("lm")
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    classifier = make_classifier(model, ["bad", "good"])
    with torch.no_grad():
        classifier.head.weight.mul_(50)
    save_model(path, "latent_classifier_tiny", classifier)
    return SimpleNamespace(model=model, sample=sources("lm"), options={
        "classifier": str(path), "classifier_label": "good", "classifier_scale": 50.0})


@pytest.mark.parametrize("options", [{"classifier_scale": 0.0}, {}], ids=["scale 0", "scale 50"])
def test_a_classifier_leads_the_text_and_a_scale_of_zero_does_not(prompted, options):
    off, plain = generate(prompted.model, prompted.sample)
    found, generator = generate(prompted.model, prompted.sample, **{**prompted.options, **options})
    if options:
        assert generator.step.func is plain.step.func
        assert all(a[0]["positional_scores"].equal(b[0]["positional_scores"]) for a, b in zip(off, found))
    else:
        assert texts(found) != texts(off)


def test_a_scale_of_zero_reads_no_file(prompted):
    generate(prompted.model, prompted.sample, classifier="nowhere.pt", classifier_label="good", classifier_scale=0.0)
    with pytest.raises(UserError, match="nowhere.pt cannot be read"):
        generate(prompted.model, prompted.sample, classifier="nowhere.pt", classifier_label="good")


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp-2m", "heun"])
def test_given_tokens_stay_under_a_classifier(prompted, solver):
    found, _ = generate(prompted.model, prompted.sample, **prompted.options, solver=solver)
    for group, prompt in zip(found, prompted.sample["net_input"]["src_tokens"].tolist()):
        for written, asked in zip(group[0]["tokens"].tolist(), prompt):
            assert asked in (MASK, EOS, written)


@pytest.mark.parametrize("more", [{}, {"exit_patience": 1, "diffusion_steps": 25, "clamping": True, "candidates": 2},
                                  {"guidance_scale": 1.5}], ids=["plain", "early-exit", "both"])
def test_texts_led_by_a_classifier_do_not_depend_on_the_batch(prompted, more):
    options, model = {**prompted.options, **more}, copy.deepcopy(prompted.model)
    if "exit_patience" in more:
        with torch.no_grad():
            model.up_projection[2].weight.mul_(0.1)
    batch, generator = generate(model, prompted.sample, **options)
    assert "exit_patience" not in more or min(generator.steps_used) < 25
    for row in (0, 3, 7):
        alone, _ = generate(model, one_of(prompted.sample, row), **options)
        assert texts(alone)[0] == texts(batch)[row]
        assert alone[0][0]["score"] == batch[row][0]["score"]


def test_a_classifier_leads_in_inference_mode_too(prompted):
    generator = DiffusionGenerator(prompted.model, DICTIONARY, make_sampling(diffusion_steps=6, **prompted.options))
    with torch.inference_mode():
        found = generator.generate([prompted.model], prompted.sample)
    assert texts(found) == texts(generate(prompted.model, prompted.sample, **prompted.options)[0])


def test_a_label_that_the_classifier_does_not_know_is_refused(prompted):
    with pytest.raises(UserError, match="--classifier-label 'ugly' is unknown: choose one of bad, good"):
        generate(prompted.model, prompted.sample, **{**prompted.options, "classifier_label": "ugly"})
    seq = make("diffuseq")
    with pytest.raises(UserError, match="--classifier has no use with a model that denoises its source"):
        generate(seq, sources("diffuseq"), **prompted.options)
