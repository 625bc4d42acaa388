"""Diffusion language models: training on whole sequences, writing from nothing, into gaps, and after a prefix."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import make_dictionary, make_diffusion_lm, make_prompts, make_sampling, prompt_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_fairseq.criterions.anchor import DiffusionAnchorConfig, DiffusionAnchorCriterion
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.data.prompt_dataset import PromptDataset, lengthened
from diffusion_fairseq.diffusion.solvers import SOLVERS
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.text.masking import MASKING, GivenPositions

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")
EOS, PAD = DICTIONARY.eos(), DICTIONARY.pad()
GIVEN = ("noised", "clean")


prompt, batch = partial(prompt_tokens, DICTIONARY), partial(make_prompts, DICTIONARY)


def write(model, sample, **options):
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(**{"diffusion_steps": 4, **options}))
    return [[one["tokens"].tolist() for one in found] for found in generator.generate([model], sample)]


@pytest.mark.parametrize("solver", SOLVERS)
@given(
    text=st.text("abcdef_", min_size=1, max_size=18), ends=st.booleans(), seed=st.integers(0, 999),
    clamping=st.booleans(), how=st.sampled_from(GIVEN), patience=st.sampled_from([None, 1]),
    candidates=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_every_given_token_is_kept_in_its_place(solver, text, ends, seed, clamping, how, patience, candidates):
    model = MODELS[how]
    text += "." if ends else ""
    sample = batch("__abc_", text)
    for tokens in write(model, sample, solver=solver, clamping=clamping, seed=seed, exit_patience=patience,
                        candidates=candidates)[1]:
        words = prompt(text)
        last = max((place for place, word in enumerate(words) if word not in (MASK, EOS)), default=-1)
        assert len(tokens) > last
        for place, word in enumerate(words[: last + 1]):
            assert tokens[place] == word or word == MASK
        assert MASK not in tokens and PAD not in tokens and len(tokens) <= len(words)


MODELS = {how: make_diffusion_lm(DICTIONARY, given_tokens=how) for how in GIVEN}


@pytest.mark.parametrize("how", GIVEN)
def test_the_same_text_alone_and_in_a_batch(how):
    texts = ["ab____.", "____________cd_____.", "____.", "f__________."]
    options = {"diffusion_steps": 6, "candidates": 2, "clamping": True}
    together = write(MODELS[how], batch(*texts), **options)
    for number, text in enumerate(texts):
        assert write(MODELS[how], batch(text, ids=[number]), **options)[0] == together[number]


def test_equal_prompts_get_texts_of_their_own_by_their_number():
    first, second, again = write(MODELS["noised"], batch("________", "________", "________", ids=[4, 5, 4]))
    assert first == again != second


def test_a_given_word_that_is_never_written_leaves_scores_finite():
    model = make_diffusion_lm(DICTIONARY)
    model.met_tokens.fill_(1)[prompt("a")[0]] = 0
    with torch.no_grad():
        generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=4, candidates=3), nbest=3)
        hypotheses = generator.generate([model], batch("ab__a_"))[0]
    assert all(hypothesis["positional_scores"].isfinite().all() for hypothesis in hypotheses)
    assert len({hypothesis["score"] for hypothesis in hypotheses}) > 1


def test_given_words_decide_what_is_written_beside_them():
    for model in MODELS.values():
        assert write(model, batch("a______")) != write(model, batch("b______"))


def test_clean_given_tokens_are_not_noised_and_count_in_no_loss():
    model = make_diffusion_lm(DICTIONARY, given_tokens="clean", self_conditioning=False).train()
    text = torch.tensor([prompt("abcdef.")])
    source = torch.tensor([prompt("ab__ef_")])
    seen = []
    model.up_projection.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    parts = model(source, text, torch.tensor([1500]))
    assert parts.counts.tolist() == [[False, False, True, True, False, False, True]]
    clean = model.embedding(text)[0]
    close = (seen[0][:7] - clean).abs().amax(dim=1) < 1e-6
    assert close.tolist() == [True, True, False, False, True, True, False]
    criterion = DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)
    _, size, _ = criterion(model, {"net_input": {"src_tokens": source}, "target": text})
    assert size == 3
    assert parts.rounding_nll[~parts.counts].eq(0).all()


def test_noised_given_tokens_enter_at_the_level_of_the_others():
    model, seen = MODELS["noised"], []
    hook = model.up_projection.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][:, :32].clone()))
    write(model, batch("abcdefabcdefabcd"), diffusion_steps=10)
    hook.remove()
    clean = model.embedding(torch.tensor(prompt("abcdefabcdefabcd")))
    errors = [(xt[:16] - clean).square().mean().item() for xt in seen]
    assert errors[0] > 1.5 and errors[-1] < 0.1 and all(a > b for a, b in zip(errors, errors[1:]))


def test_a_model_that_noises_all_learns_from_all():
    model = make_diffusion_lm(DICTIONARY).train()
    text = torch.tensor([prompt("abcdef.")])
    parts = model(torch.tensor([prompt("ab_____")]), text, torch.tensor([1500]))
    assert parts.counts.all() and parts.modelled.all()


@pytest.mark.parametrize("length_model, width", [("given", 7), ("longest", 11), ("fixed", 24)])
def test_padding_is_modelled_where_asked(length_model, width):
    model = make_diffusion_lm(DICTIONARY, length_model=length_model)
    text = torch.tensor([prompt("abcdef.")])
    parts = model(torch.full_like(text, MASK), text, torch.tensor([9]))
    assert parts.modelled.shape == (1, width) and parts.modelled.all() and parts.counts.sum() == 7


@pytest.mark.parametrize("length_model", ["longest", "fixed"])
def test_a_limit_on_the_length_cuts_no_given_token(length_model):
    model = make_diffusion_lm(DICTIONARY, length_model=length_model)
    model.longest_target.fill_(20)
    tokens = batch("ab__________cd__.", "a___.")["net_input"]["src_tokens"]

    def lengths(**limit):
        generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=2), **limit)
        found = generator.buckets(model.encode(tokens), tokens)
        return {source: length for sources, rows in found for source, length in zip(sources, rows.lengths.tolist())}

    assert lengths(max_len_b=3) == {0: 14, 1: 3}
    assert set(lengths().values()) == {24 if length_model == "fixed" else 20}


def test_a_length_head_is_refused():
    with pytest.raises(UserError, match="--length-model 'predicted'.*given, fixed"):
        make_diffusion_lm(DICTIONARY, length_model="predicted")


@pytest.mark.parametrize("how", GIVEN)
def test_gradients_reach_every_parameter(how):
    model = make_diffusion_lm(DICTIONARY, given_tokens=how).train()
    text = torch.tensor([prompt("abcdef."), prompt("fedcba.")])
    source = torch.tensor([prompt("ab_____"), prompt("_edc_a_")])
    criterion = DiffusionAnchorCriterion(DiffusionAnchorConfig(), task=None)
    loss, _, _ = criterion(model, {"net_input": {"src_tokens": source}, "target": text})
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_learns_two_sentences_by_heart_and_fills_gaps_with_them():
    model = make_diffusion_lm(DICTIONARY, given_tokens="clean", diffusion_timesteps=20).train()
    texts = torch.tensor([prompt("abcdef."), prompt("defabc.")])
    criterion = DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    random = np.random.default_rng(1)
    torch.manual_seed(1)
    for _ in range(1000):
        rows = random.integers(2, size=32)
        noised = np.stack([MASKING["prefix"](7, random) for _ in rows])
        target = texts[rows]
        source = target.masked_fill(torch.from_numpy(noised), MASK)
        loss, size, _ = criterion(model, {"net_input": {"src_tokens": source}, "target": target})
        optimizer.zero_grad()
        (loss / size).backward()
        optimizer.step()
    model.eval()
    found = write(model, batch("a______", "d______", "abcd___", "defa___"), clamping=True, diffusion_steps=10)
    assert [one[0] for one in found] == [prompt("abcdef."), prompt("defabc.")] * 2
    free = {tuple(one[0]) for one in write(model, batch(*["_______"] * 40), clamping=True, diffusion_steps=20)}
    assert len(free & {tuple(prompt("abcdef.")), tuple(prompt("defabc."))}) == 2


class Lines(list):
    pass


def pairs(**options):
    texts = Lines([torch.tensor(prompt(text)) for text in ("abcdefab.", "fed.")])
    options = {"law": MASKING["span"], "seed": 3, "shuffle": False, **options}
    return PromptDataset(texts, [9, 4], DICTIONARY, MASK, **options)


def test_prompts_are_a_function_of_seed_epoch_and_index():
    one, other = pairs(), pairs()
    other.example(1)
    for index in (0, 1):
        torch.testing.assert_close(one.example(index), other.example(index))
    drawn = []
    for epoch in range(1, 9):
        one.set_epoch(epoch)
        source, text = one.example(0)
        assert text.tolist() == prompt("abcdefab.") and (source[source != MASK] == text[source != MASK]).all()
        drawn.append(tuple(source.tolist()))
    assert len(set(drawn)) > 4


def test_prompts_of_another_length_have_no_references():
    found = pairs(law=GivenPositions("0:2"), length=6)
    assert found.example(0)[0].tolist() == prompt("ab___") + [MASK] and found.tgt is None
    sample = found.collater([found[0], found[1]])
    assert sample["target"] is None and sample["net_input"]["src_tokens"].shape == (2, 6)


@pytest.mark.parametrize("text, length, ends, expected", [
    ("abc.", 6, True, "abc__."), ("abc.", 3, True, "ab."), ("abc", 5, False, "abc__"), ("abcdef", 2, False, "ab"),
    (".", 3, True, "__."), ("", 2, False, "__"),
])
def test_lengthened(text, length, ends, expected):
    found = lengthened(torch.tensor(prompt(text), dtype=torch.int64), length, MASK, EOS if ends else None)
    assert found.tolist() == prompt(expected)
