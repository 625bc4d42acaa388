"""DiffuSeq: source and target in one sequence, partial and full noising."""

import pytest
import torch
from helpers import make_dictionary, make_diffuseq, make_genie, make_sample, make_sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.solvers import SOLVERS
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator

DICTIONARY = make_dictionary()
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()
NOISING = ("partial", "full")


def write(model, sample, **options):
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(**{"diffusion_steps": 4, **options}))
    return [[one["tokens"].tolist() for one in found] for found in generator.generate([model], sample)]


def seen_by(model):
    """Every x_t (R, L, D) that goes into the layers."""
    seen, hidden = [], model.hidden

    def watched(xt, *arguments):
        seen.append(xt.clone())
        return hidden(xt, *arguments)

    model.hidden = watched
    return seen


@given(solver=st.sampled_from(sorted(SOLVERS)), clamping=st.booleans(), patience=st.sampled_from([None, 1]),
       candidates=st.integers(1, 2), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_with_partial_noising_the_source_never_changes(solver, clamping, patience, candidates, seed):
    model = make_diffuseq(DICTIONARY, length_model="fixed")
    sample = make_sample(DICTIONARY, [5, 9, 3], seed=seed)
    source = sample["net_input"]["src_tokens"]
    clean = {tuple(row[row != PAD].tolist()) for row in source}
    seen = seen_by(model)
    write(model, sample, solver=solver, clamping=clamping, exit_patience=patience, candidates=candidates, seed=seed)
    for xt in seen:
        for row in xt:
            # Each row begins with the very embeddings of one of the sources.
            assert any((row[: len(words)] == model.embedding.weight[list(words)]).all() for words in clean)
    assert len(seen) >= 2


def test_with_full_noising_all_of_x_T_is_standard_normal_and_the_source_sharpens():
    model = make_diffuseq(DICTIONARY, noising="full", length_model="fixed", max_source_positions=8)
    sample = make_sample(DICTIONARY, [8] * 60)
    seen = seen_by(model)
    write(model, sample, diffusion_steps=20)
    source, target = seen[0][:, :8], seen[0][:, 8:]
    for part in (source, target):
        assert abs(part.mean()) < 0.02 and abs(part.var() - 1) < 0.03
    clean = model.embedding(sample["net_input"]["src_tokens"])
    errors = [(xt[:, :8] - clean).square().mean().item() for xt in seen]
    assert errors[0] > 1.5 and errors[-1] < 0.1 and all(a > b for a, b in zip(errors, errors[1:]))


@pytest.mark.parametrize("limit, ends", [({}, {40}), ({"max_len_b": 7}, {4 + 7, 10 + 7})])
def test_modelled_padding_fills_what_a_source_leaves_of_a_sequence(limit, ends):
    model = make_diffuseq(DICTIONARY, length_model="fixed", max_source_positions=16, max_target_positions=24)
    tokens = make_sample(DICTIONARY, [4, 10])["net_input"]["src_tokens"]
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=2), **limit)
    buckets = generator.buckets(model.encode(tokens), tokens)
    assert {end for _, rows in buckets for end in rows.lengths.tolist()} == ends


def test_with_full_noising_no_position_is_marked_in_training_or_in_generation():
    model = make_diffuseq(DICTIONARY, noising="full", mark_source=True)
    sample, marks = make_sample(DICTIONARY, [5, 7]), []
    model.marks.register_forward_pre_hook(lambda _, inputs: marks.extend(inputs[0].unique().tolist()))
    with torch.no_grad():
        for training in (True, False):
            model.train(training)
            model(sample["net_input"]["src_tokens"], sample["target"], torch.tensor([3, 50]))
        write(model, sample, diffusion_steps=2)
    assert set(marks) == {0}


@pytest.mark.parametrize("noising", NOISING)
@pytest.mark.parametrize("length_model", ["fixed", "longest", "predicted"])
def test_the_same_text_alone_and_in_a_batch(noising, length_model):
    model = make_diffuseq(DICTIONARY, noising=noising, length_model=length_model, double_separator=True)
    model.longest_target.fill_(30)
    sample = make_sample(DICTIONARY, [5, 9, 3, 12])
    options = {"diffusion_steps": 5, "candidates": 2, "exit_patience": 2}
    together = write(model, sample, **options)
    for row, length in enumerate((5, 9, 3, 12)):
        alone = {"net_input": {"src_tokens": sample["net_input"]["src_tokens"][row : row + 1, :length]}}
        assert write(model, alone, **options)[0] == together[row]


def test_joint_sampling_writes_both_sides_and_heeds_no_source():
    model = make_diffuseq(DICTIONARY, noising="full", length_model="fixed", max_source_positions=8)
    sample = make_sample(DICTIONARY, [8, 5])
    seen = seen_by(model)
    found = write(model, sample, joint_sampling=True, diffusion_steps=6)
    assert all(len(one[0]) > length for one, length in zip(found, (8, 5)))
    clean = model.embedding(sample["net_input"]["src_tokens"][0])
    # At the last step a given source would be all but clean.
    assert (seen[-1][0, :8] - clean).square().mean() > 0.5
    with pytest.raises(UserError, match="--joint-sampling writes source and target"):
        write(make_diffuseq(DICTIONARY), sample, joint_sampling=True)


def test_with_full_noising_the_network_is_never_fed_the_clean_source():
    """Its previous estimate is its own at all positions, in generation and in validation as in training."""
    model = make_diffuseq(DICTIONARY, noising="full", self_conditioning=True, length_model="fixed")
    sample, fed, made = make_sample(DICTIONARY, [5]), [], []
    network = model.network

    def watched(xt, t, memory, packing, previous):
        fed.append(previous)
        made.append(network(xt, t, memory, packing, previous))
        return made[-1]

    model.network = watched
    write(model, sample, diffusion_steps=4)
    assert fed[0] is None and all(previous.equal(output) for previous, output in zip(fed[1:], made))
    fed.clear(), made.clear()
    source = sample["net_input"]["src_tokens"]
    for number in range(8):  # half of them with a first estimate
        model.eval()(source, sample["target"], torch.tensor([900]), draws=Draws(torch.Generator().manual_seed(number)))
    estimates = [pair for pair in zip(made, fed[1:]) if pair[1] is not None and pair[1].any()]
    assert estimates and all(previous.equal(output) for output, previous in estimates)


@pytest.mark.parametrize("tokens, expected", [
    ("abee fgeee", "ab|fge"), ("ab__ fg___", "ab|fge"), ("abe fg", "ab|fg"), ("abcd", "abcd"), ("abe", "ab|"),
    ("efge", "|fge"), ("abefg_hi", "ab|fge")])
def test_pairs_are_parted_where_the_source_ends(tokens, expected):
    generator = DiffusionGenerator(make_diffuseq(DICTIONARY, noising="full"), DICTIONARY,
                                   make_sampling(joint_sampling=True))
    index = {"e": EOS, "_": PAD, "|": PAD, **{letter: EOS + 2 + i for i, letter in enumerate("abcdfghi")}}
    row = torch.tensor([index[letter] for letter in tokens.replace(" ", "")])
    places, found = generator._text(row, 0)
    assert found.tolist() == [index[letter] for letter in expected] and len(places) == len(found)
    kept = [letter for letter in expected if letter not in "|e"]
    assert [index[letter] for letter in kept] == [token for token in row[places].tolist() if token not in (EOS, PAD)]
    assert PAD not in generator.symbols_to_strip_from_output


def test_hypotheses_hold_the_target_alone():
    model = make_diffuseq(DICTIONARY)
    sample = make_sample(DICTIONARY, [5, 9, 3])
    lengths = model.length_logits(model.encode(sample["net_input"]["src_tokens"]))[:, 1:].argmax(dim=1) + 1
    for found, longest in zip(write(model, sample), lengths.tolist()):
        assert len(found[0]) <= longest


@pytest.mark.parametrize("noising, counted", [("partial", [5, 9]), ("full", [10, 18])])
def test_what_counts_in_the_loss(noising, counted):
    model = make_diffuseq(DICTIONARY, noising=noising).train()
    sample = make_sample(DICTIONARY, [5, 9])
    source, target = sample["net_input"]["src_tokens"], sample["target"]
    parts = model(source, target, torch.tensor([1, 900]))
    assert parts.counts.sum(dim=1).tolist() == counted and parts.lengths.tolist() == [5, 9]
    assert parts.target[0, :10].tolist() == source[0, :5].tolist() + target[0, :5].tolist()
    everything = DiffusionVLBCriterion(DiffusionVLBConfig(given_in_loss=True), task=None)
    assert everything(model, sample)[1] == 28


@pytest.mark.parametrize("model", [make_genie(DICTIONARY), make_diffuseq(DICTIONARY, causal_source=True)],
                         ids=["genie", "causal"])
def test_a_source_that_is_not_denoised_cannot_count(model):
    criterion = DiffusionVLBCriterion(DiffusionVLBConfig(given_in_loss=True), task=None)
    with pytest.raises(UserError, match="--given-in-loss has no use with this model"):
        criterion(model, make_sample(DICTIONARY, [5, 9]))


@pytest.mark.parametrize("noising", NOISING)
def test_gradients_reach_every_parameter(noising):
    model = make_diffuseq(DICTIONARY, noising=noising).train()
    loss, _, _ = DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)(model, make_sample(DICTIONARY, [5, 9]))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_source_is_jittered_in_training_alone():
    model = make_diffuseq(DICTIONARY, jitter_source=True, self_conditioning=False)
    sample = make_sample(DICTIONARY, [6])
    clean = model.embedding(sample["net_input"]["src_tokens"])
    std = model.schedule.betas[0].sqrt().item()
    for training in (True, False):
        seen = seen_by(model.train(training))
        model(sample["net_input"]["src_tokens"], sample["target"], torch.tensor([900]))
        spread = (seen[0][:, :6] - clean).std().item()
        assert spread == (pytest.approx(std, rel=0.2) if training else 0)


def test_the_first_estimate_sees_the_jittered_source_of_its_own_row():
    """Also with several noised copies of a target, which are rows of their own."""
    model = make_diffuseq(DICTIONARY, jitter_source=True, self_conditioning=True).train()
    sample, estimated = make_sample(DICTIONARY, [6, 6, 6]), []
    denoise = model.denoise
    model.denoise = lambda xt, t, memory, *rest: estimated.append((t, memory.embedded)) or denoise(xt, t, memory, *rest)
    parts = model(sample["net_input"]["src_tokens"], sample["target"], torch.arange(12) * 100 + 50,
                  draws=Draws(torch.Generator().manual_seed(0)))
    (times, embedded), = estimated
    assert 0 < len(times) < 12
    for time, row in zip(times, embedded):
        assert row.equal(parts.x0[int(time) // 100])


def test_two_separators_as_published():
    model = make_diffuseq(DICTIONARY, double_separator=True)
    sample = make_sample(DICTIONARY, [5, 9])
    prompt = model.encode(sample["net_input"]["src_tokens"])
    assert prompt.offset.tolist() == [6, 10]
    assert prompt.tokens[0, 4:7].tolist() == [EOS, EOS, PAD] and prompt.tokens[1, 8:].tolist() == [EOS, EOS]


@pytest.mark.parametrize("options, match", [
    ({"noising": "both"}, "--noising 'both' is unknown: choose one of partial, full"),
    ({"noising": "full", "jitter_source": True}, "--jitter-source acts only with"),
])
def test_options_out_of_range_are_one_line(options, match):
    with pytest.raises(UserError, match=match):
        make_diffuseq(DICTIONARY, **options)
