import logging

import pytest
import torch
from helpers import (
    make_ddlm,
    make_dictionary,
    make_diffusion_lm,
    make_genie,
    make_prompts,
    make_sample,
    make_sampling,
)

from diffusion_fairseq.denoiser import Denoiser
from diffusion_fairseq.early_exit import Live, compaction
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.tasks.seq2seq_diffusion import say_at_the_end

DICTIONARY = make_dictionary()
MASKED = make_dictionary()
MASKED.add_symbol("<mask>")


def flags(*rows):
    return torch.tensor([list(row) for row in rows]).bool().flatten()


def test_sources_without_active_rows_leave():
    sources, index = compaction(flags([1, 1], [0, 0], [1, 1]), 3)
    assert sources.tolist() == [0, 2] and index.tolist() == [0, 1, 4, 5]


def test_every_source_keeps_as_many_rows_as_the_busiest():
    sources, index = compaction(flags([0, 0, 1], [0, 1, 1], [0, 0, 0]), 3)
    assert sources.tolist() == [0, 1]
    assert index.tolist() == [2, 0, 4, 5]  # row 0 is filler


def test_small_savings_are_not_worth_moving():
    assert compaction(flags([1, 1, 1, 1], [1, 1, 1, 0]), 2) is None
    active = torch.ones(100, dtype=torch.bool)
    active[:5] = False
    assert compaction(active, 100) is None


def test_tokens_that_stay_the_same_are_counted():
    live = Live.begin(2, 3, torch.device("cpu"))
    for tokens, expected in (([[1, 2, 3], [4, 5, 6]], [0, 0]), ([[1, 2, 4], [4, 5, 6]], [0, 1]),
                             ([[1, 2, 4], [4, 5, 6]], [1, 2]), ([[1, 2, 4], [4, 6, 6]], [2, 0])):
        live = live.after(torch.tensor(tokens))
        assert live.unchanged.tolist() == expected


def generate(model, lengths, seed=0, **options):
    sample = make_sample(DICTIONARY, lengths, seed)
    history = options.pop("retain_history", False)
    sampling = make_sampling(**{"diffusion_steps": 30, **options})
    generator = DiffusionGenerator(model, DICTIONARY, sampling, retain_history=history)
    with torch.no_grad():
        return generator.generate([model], sample), generator


@pytest.fixture(scope="module")
def model():
    """Random weights that look less at the noise than at source and time: texts settle, at different steps."""
    model = make_genie(DICTIONARY)
    with torch.no_grad():
        model.up_projection[2].weight.mul_(0.15)
    return model


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp-2m", "heun"])
def test_early_exit_gives_the_tokens_at_the_step_where_they_had_settled(model, solver):
    lengths = [3 + i % 9 for i in range(40)]
    full, _ = generate(model, lengths, solver=solver, retain_history=True)
    early, generator = generate(model, lengths, solver=solver, exit_patience=3)
    steps = [h[0]["steps"] for h in early]
    assert len(set(steps)) > 2 and min(steps) < 30
    assert generator.steps_used == {n: steps.count(n) for n in set(steps)}
    for one, other in zip(full, early):
        past = [h["tokens"].tolist() for h in one[0]["history"]]
        stop = other[0]["steps"]
        assert past[stop - 1] == other[0]["tokens"].tolist()
        if stop < 30:
            assert all(past[i] == past[stop - 1] for i in range(stop - 4, stop))


def test_early_exit_does_not_depend_on_the_batch(model):
    lengths = [3 + i % 9 for i in range(40)]
    options = {"exit_patience": 3, "candidates": 3}
    batch, _ = generate(model, lengths, **options)
    sample = make_sample(DICTIONARY, lengths)
    for i in (0, 7, 39):
        tokens = sample["net_input"]["src_tokens"][i : i + 1, : lengths[i]]
        generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=30, **options))
        with torch.no_grad():
            alone = generator.generate([model], {"net_input": {"src_tokens": tokens}})[0]
        for one, other in zip(batch[i], alone, strict=True):
            assert one["tokens"].equal(other["tokens"]) and one["steps"] == other["steps"]
            assert abs(one["score"] - other["score"]) < 1e-5


def test_finished_rows_are_not_computed(model):
    seen = {}  # width -> rows, sources and rows that are computed, step by step
    denoise = model.denoise

    def counted(xt, t, memory, packing=None, previous=None):
        computed = len(xt) if packing.mask is None else int(packing.mask.any(dim=1).sum())
        seen.setdefault(packing.shape[1], []).append((len(xt), memory.num_sources, computed))
        return denoise(xt, t, memory, packing, previous)

    model.denoise = counted
    try:
        early, _ = generate(model, [3 + i % 9 for i in range(40)], exit_patience=3)
    finally:
        del model.denoise
    for steps in seen.values():
        rows = [n for n, _, _ in steps]
        assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0]
        assert all(n == sources for n, sources, _ in steps)  # memory shrinks with the rows
    needed = sum(h[0]["steps"] for h in early)
    assert sum(computed for steps in seen.values() for _, _, computed in steps) == needed
    assert sum(n for steps in seen.values() for n, _, _ in steps) < 1.15 * needed  # rows that stay as filler


def test_patience_longer_than_the_run_changes_nothing(model):
    one, _ = generate(model, [5, 8], exit_patience=30)
    other, _ = generate(model, [5, 8])
    for a, b in zip(one, other):
        assert a[0]["tokens"].equal(b[0]["tokens"]) and a[0]["steps"] == b[0]["steps"] == 30


def test_history_ends_with_the_exit(model):
    early, _ = generate(model, [3 + i % 9 for i in range(20)], exit_patience=2, retain_history=True)
    for hypotheses in early:
        h = hypotheses[0]
        assert len(h["history"]) == h["steps"] and h["history"][-1]["tokens"].equal(h["tokens"])


def test_histogram_of_steps(model):
    _, generator = generate(model, [3 + i % 9 for i in range(40)], exit_patience=3)
    first, *bars = generator.steps_histogram().splitlines()
    assert "of 30, 40 hypotheses" in first and len(bars) == 10
    assert sum(int(bar.split()[1]) for bar in bars) == 40
    _, unused = generate(model, [4])
    assert unused.steps_histogram().splitlines()[-1].split()[:2] == ["28-30", "1"]


def exits(model, prompts, **options):
    """The steps at which each text leaves, and its mean entropy at the generated positions after every step, by a
    product with the whole vocabulary."""
    generator = DiffusionGenerator(model, MASKED, make_sampling(**options))
    source, entropies, watched = prompts["net_input"]["src_tokens"], [], {}
    network = model.network
    model.network = lambda *given: watched.update(hidden=network(*given)) or watched["hidden"]
    try:
        with torch.no_grad():
            for _, rows in generator.buckets(model.encode(source), source, prompts["id"]):
                for denoise, _, _ in generator.trajectory(rows):
                    hidden = denoise.estimate
                    if model.predicts_tokens:
                        hidden = rows.packing.unpack(watched["hidden"])
                    scores = model.head(hidden) if model.predicts_tokens else model.round_logits(hidden)
                    entropy = torch.distributions.Categorical(logits=scores.double()).entropy()
                    given = rows.memory.given(*entropy.shape)
                    mask = torch.arange(entropy.size(1)) < rows.lengths[:, None]
                    mask = mask if given is None else mask & ~given
                    entropies.append((entropy * mask).sum(dim=1) / mask.sum(dim=1))
    finally:
        del model.network
    with torch.no_grad():
        found = generator.generate([model], prompts)
    return [one[0]["steps"] for one in found], torch.stack(entropies)


PROMPTS = make_prompts(MASKED, *(["__ab____", "________", "a_______", "_____cd."] * 3))
STEPS, PATIENCE = 20, 2


@pytest.mark.parametrize("make, options", [
    (make_ddlm, {"solver": "euler"}), (make_ddlm, {"solver": "heun", "score_temperature": 0.5}),
    (make_diffusion_lm, {"clamping": True}),
], ids=["ddlm", "ddlm heun", "diffusion_lm"])
def test_sentences_leave_when_they_are_stable_and_the_model_is_sure(make, options):
    model, options = make(MASKED), {"diffusion_steps": STEPS, "exit_patience": PATIENCE, **options}
    with torch.no_grad():  # unequal entropies of texts that settle
        if model.predicts_tokens:
            model.head.weight.mul_(2)
        else:
            model.up_projection[2].weight.mul_(0.15)
    patient, entropies = exits(model, PROMPTS, **options)
    assert entropies.shape == (STEPS, 12) and (entropies > 0).all()
    limit = entropies[torch.tensor(patient) - 1, torch.arange(12)].median().item() + 1e-6
    steps, _ = exits(model, PROMPTS, **options, exit_entropy=limit)
    for row, (before, after) in enumerate(zip(patient, steps)):
        assert after >= before
        if after < STEPS:
            assert entropies[after - 1, row] <= limit + 1e-5
        if after > before:
            assert entropies[before - 1, row] > limit - 1e-5
    assert steps != patient and min(steps) < STEPS
    assert exits(model, PROMPTS, **options, exit_entropy=0.0)[0] == [STEPS] * 12
    assert exits(model, PROMPTS, **options, exit_entropy=100.0)[0] == patient


@pytest.mark.parametrize("make", [make_ddlm, make_diffusion_lm])
def test_the_entropy_does_not_depend_on_the_batch(make):
    model = make(MASKED)
    texts = ["__ab____", "____________cd_____.", "__", "f__________."]
    options = {"diffusion_steps": 4, "exit_patience": 1, "exit_entropy": 1.0}
    found = {}
    for chosen in ([0, 1, 2, 3], [0], [1], [2], [3]):
        generator = DiffusionGenerator(model, MASKED, make_sampling(**options))
        prompts = make_prompts(MASKED, *(texts[i] for i in chosen), ids=chosen)
        source = prompts["net_input"]["src_tokens"]
        with torch.no_grad():
            for sources, rows in generator.buckets(model.encode(source), source, prompts["id"]):
                *_, (denoise, _, _) = generator.trajectory(rows)
                every = torch.ones(len(sources), dtype=torch.bool)
                for place, source_number in enumerate(sources):
                    one = torch.arange(len(sources)) == place
                    value, = denoise.mean_entropy(one).tolist()
                    assert value == denoise.mean_entropy(every)[place].item()
                    assert found.setdefault(chosen[source_number], value) == value
    assert len(found) == 4 == len(set(found.values()))


def test_the_entropy_is_computed_for_settled_sentences_alone(monkeypatch):
    model, computed = make_ddlm(MASKED), []
    entropy = Denoiser.mean_entropy
    monkeypatch.setattr(Denoiser, "mean_entropy", lambda self, rows: computed.append(int(rows.sum())) or
                        entropy(self, rows))
    generator = DiffusionGenerator(model, MASKED, make_sampling(
        solver="euler", diffusion_steps=STEPS, exit_patience=3, exit_entropy=100.0))
    with torch.no_grad():
        found = generator.generate([model], PROMPTS)
    assert sum(computed) == sum(one[0]["steps"] < STEPS for one in found) > 0


def test_an_entropy_without_patience_is_one_line(model):
    with pytest.raises(UserError, match="--exit-entropy acts on sentences that have settled: give --exit-patience"):
        generate(model, [4], exit_entropy=1.0)
    with pytest.raises(UserError, match="--exit-entropy must be at least 0, got -1"):
        generate(model, [4], exit_entropy=-1.0, exit_patience=2)


def test_the_entropy_under_guidance_is_that_of_the_model_with_its_condition():
    model = make_ddlm(MASKED, condition_dropout=0.1)
    generator = DiffusionGenerator(model, MASKED, make_sampling(solver="euler", diffusion_steps=3, guidance_scale=2.0))
    source = PROMPTS["net_input"]["src_tokens"]
    with torch.no_grad():
        ((_, rows),) = generator.buckets(model.encode(source), source, PROMPTS["id"])
        denoise, before, _ = next(generator.trajectory(rows))
        found = denoise.entropy(rows.packing)
        seen = [model.entropy(model.network(before.xt, before.level.t, memory, rows.packing, None))
                for memory in (rows.memory, model.unconditional(rows.memory))]
    torch.testing.assert_close(found, seen[0])
    assert (found - seen[1]).abs().max() > 1e-3


def test_the_steps_are_printed_where_the_log_is_closed(tmp_path, monkeypatch, capsys, caplog):
    handler = logging.FileHandler(tmp_path / "generate-test.txt")
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler, handler])
    with caplog.at_level(logging.INFO):
        say_at_the_end("4 of 5 steps")
        assert caplog.messages == ["4 of 5 steps"] and not capsys.readouterr().err
        handler.stream.close()
        say_at_the_end("3 of 5 steps")
    assert capsys.readouterr().err == "3 of 5 steps\n" and len(caplog.messages) == 1
