"""DiffuSeq whose source attends to itself only: the same function in training and generation, computed once."""

import pytest
import torch
import torch.nn.functional as F
from helpers import make_dictionary, make_diffuseq, make_sample, make_sampling

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.process import q_sample
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.modules.time_embedding import TIME_SCALE
from diffusion_fairseq.text.lengths import lengths_to_mask

DICTIONARY = make_dictionary()
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def make_causal(**options):
    return make_diffuseq(DICTIONARY, causal_source=True, **options)


def write(model, sample, retain_history=False, **options):
    sampling = make_sampling(**{"diffusion_steps": 5, **options})
    generator = DiffusionGenerator(model, DICTIONARY, sampling, retain_history=retain_history)
    with torch.no_grad():
        return generator.generate([model], sample)


def texts(found):
    return [[(one["tokens"].tolist(), one["steps"]) for one in hypotheses] for hypotheses in found]


def attended(layer, x, mask):
    """A pre-norm layer over whole sequences x (B, L, C), by the textbook; mask (B, L, L) True where i sees j."""
    attention, h = layer.attention, layer.attention_norm(x)
    query, key, value = (projection(h).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                         for projection in (attention.query, attention.key, attention.value))
    scores = query @ key.transpose(-1, -2) / query.size(-1) ** 0.5
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    x = x + attention.out((weights @ value).transpose(1, 2).flatten(2))
    return x + layer.ffn(layer.ffn_norm(x))


def whole_sequence(model, source, xt, t):
    """The network's output on targets xt (B, L, D): source and target in one sequence under one mask, the source's
    time and previous estimate 0."""
    count = source.size(1)
    x = torch.cat([model.embedding(source), xt], dim=1)
    if model.self_conditioning:
        x = torch.cat([x, torch.zeros_like(x)], dim=-1)
    is_source = torch.arange(x.size(1)) < count
    x = model.up_projection(x) + model.marks(is_source.long()) + model.positions(torch.arange(x.size(1)))
    times = torch.where(is_source, 0, t[:, None]) * (TIME_SCALE / model.schedule.num_timesteps)
    x = model.norm(x + model.time_embedding(times.flatten()).unflatten(0, times.shape))
    mask = is_source[None, :] | ~is_source[:, None]
    for layer in model.layers:
        x = attended(layer, x, mask.expand(len(x), -1, -1))
    return model.down_projection(model.final_norm(x))[:, count:]


@pytest.mark.parametrize("candidates", [1, 3])
def test_it_is_one_sequence_whose_source_sees_no_target(candidates):
    model = make_causal()
    sample = make_sample(DICTIONARY, [7, 7])
    source = sample["net_input"]["src_tokens"]
    xt = torch.randn(2 * candidates, 5, 32)
    t = torch.tensor([30, 900]).repeat(candidates)
    with torch.no_grad():
        ours = model.network(xt, t, model.memory(model.encode(source)), Packing((len(xt), 5)), None)
        whole = whole_sequence(model, source.repeat_interleave(candidates, dim=0), xt, t)
    torch.testing.assert_close(ours, whole, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"encoder_normalize_before": False}, {"double_separator": True}])
@pytest.mark.parametrize("copies", [1, 2])
def test_training_and_generation_compute_the_same(options, copies):
    model = make_causal(self_conditioning=False, **options)
    sample = make_sample(DICTIONARY, [5, 9])
    source, target = sample["net_input"]["src_tokens"], sample["target"]
    t = torch.tensor([3, 900, 40, 1500])[: 2 * copies]
    start_noise, noise = torch.randn(2, 2 * copies, 9, 32)
    with torch.no_grad():
        parts = model(source, target, t, start_noise, noise)
        xt = q_sample(parts.x0, model.schedule.at(t), noise)
        for row, time in enumerate(t):
            words = target[row // copies][target[row // copies] != PAD]
            alone = source[row // copies : row // copies + 1, : len(words)]
            # As the generator has it: one source, rows wider than what is generated, all at one time.
            memory = model.memory(model.encode(F.pad(alone, (0, 16 - len(words)), value=PAD)))
            packing = Packing.of(lengths_to_mask(torch.tensor([len(words)] * 2), 16))
            rows = F.pad(xt[row], (0, 0, 0, 16 - xt.size(1))).expand(2, -1, -1)
            pred_x0 = model.denoise(rows, time[None], memory, packing)
            for candidate in pred_x0:
                torch.testing.assert_close(candidate[: len(words)], parts.pred_x0[row, : len(words)], **CLOSE)


def test_the_source_is_computed_once_for_all_steps_and_candidates():
    model, seen = make_causal(), []
    for layer in model.layers:
        layer.attention.key.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    write(model, make_sample(DICTIONARY, [5, 9, 3]), diffusion_steps=7, candidates=4)
    # 17 positions of sources in whole registers, then at every step the positions of the targets alone.
    assert seen[:2] == [32, 32] and len(seen) == 2 * (1 + 7)
    lengths = model.length_logits(model.encode(make_sample(DICTIONARY, [5, 9, 3])["net_input"]["src_tokens"]))
    positions = 4 * int((lengths[:, 1:].argmax(dim=1) + 1).sum())
    assert all(0 <= count - positions < 16 for count in seen[2 : 2 + 2 * 7])


def test_candidates_share_keys_and_values_without_copies():
    model = make_causal()
    memory = model.memory(model.encode(make_sample(DICTIONARY, [5, 9])["net_input"]["src_tokens"]))
    read, attend = [], type(model.layers[0].attention)._attend_both

    def watched(self, query, own, mask, shared, shared_mask):
        read.append((len(query), shared.key.data_ptr(), shared.value.data_ptr()))
        return attend(self, query, own, mask, shared, shared_mask)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(model.layers[0].attention), "_attend_both", watched)
        model.network(torch.randn(6, 4, 32), torch.tensor([9]), memory, Packing((6, 4)), None)
    assert read == [(6, layer.key.data_ptr(), layer.value.data_ptr()) for layer in memory.layers]


@pytest.mark.parametrize("options", [
    {"length_model": "fixed"}, {"length_model": "longest"}, {"length_model": "predicted", "double_separator": True}])
@pytest.mark.parametrize("patience", [None, 1])
def test_the_same_text_alone_and_in_a_batch(options, patience):
    model = make_causal(**options)
    model.longest_target.fill_(12)
    with torch.no_grad():
        model.up_projection[2].weight.mul_(0.15)  # texts settle, at different steps
    sample, lengths = make_sample(DICTIONARY, [5, 9, 3, 12]), (5, 9, 3, 12)
    sampling = {"diffusion_steps": 12, "candidates": 2, "exit_patience": patience}
    together = write(model, sample, **sampling)
    for row, length in enumerate(lengths):
        alone = {"net_input": {"src_tokens": sample["net_input"]["src_tokens"][row : row + 1, :length]}}
        found = write(model, alone, **sampling)
        assert texts(found)[0] == texts(together)[row]
        for one, other in zip(found[0], together[row]):
            assert one["score"] == other["score"]


def test_rows_that_leave_take_their_memory_along():
    model = make_causal()
    with torch.no_grad():
        model.up_projection[2].weight.mul_(0.15)
    sample = make_sample(DICTIONARY, [3 + i % 9 for i in range(24)])
    full = write(model, sample, diffusion_steps=20, retain_history=True)
    network, sources = model.network, []

    def counted(xt, t, memory, *others):
        assert all(len(part) == memory.num_sources for layer in memory.layers for part in layer)
        assert len(memory.mask) == len(memory.offset) == memory.num_sources
        sources.append(memory.num_sources)
        return network(xt, t, memory, *others)

    model.network = counted
    early = write(model, sample, diffusion_steps=20, exit_patience=3)
    steps = [one[0]["steps"] for one in early]
    assert min(sources) < max(sources) and len(set(steps)) > 2 and min(steps) < 20
    for one, other, stop in zip(full, early, steps):
        assert one[0]["history"][stop - 1]["tokens"].equal(other[0]["tokens"])


def test_positions_follow_the_source():
    model = make_causal(double_separator=True)
    encoded = model.encode(make_sample(DICTIONARY, [5, 9])["net_input"]["src_tokens"])
    seen = []
    model.positions.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].tolist()))
    model.network(torch.randn(4, 3, 32), torch.tensor([9]), model.memory(encoded), Packing((4, 3)), None)
    assert seen[0] == [6, 7, 8, 6, 7, 8, 10, 11, 12, 10, 11, 12]


def test_padding_is_modelled_up_to_the_longest_target():
    model = make_causal(length_model="fixed", max_source_positions=16, max_target_positions=12)
    sample = make_sample(DICTIONARY, [5, 9])
    parts = model(sample["net_input"]["src_tokens"], sample["target"], torch.tensor([3, 900]))
    assert parts.modelled.shape == (2, 12) and parts.counts.sum(dim=1).tolist() == [5, 9]
    assert parts.target[:, :9].equal(sample["target"])


def test_without_its_condition_the_text_keeps_its_place():
    model = make_causal(condition_dropout=0.1)
    memory = model.memory(model.encode(make_sample(DICTIONARY, [5, 9])["net_input"]["src_tokens"]))
    free = model.unconditional(memory)
    ends = torch.full((2, 9), PAD)
    ends[0, :5], ends[1] = EOS, EOS
    expected = model.memory(model.encode(ends))
    assert free.offset.equal(memory.offset) and free.mask.equal(memory.mask)
    for ours, theirs in zip(free.layers, expected.layers):
        torch.testing.assert_close(ours.key, theirs.key, **CLOSE)
    sample = make_sample(DICTIONARY, [5, 9])
    led, plain = write(model, sample, guidance_scale=2.0), write(model, sample)
    assert all(one[0]["score"] != other[0]["score"] for one, other in zip(led, plain))


def test_gradients_reach_every_parameter():
    model = make_causal().train()
    loss, _, _ = DiffusionVLBCriterion(DiffusionVLBConfig(timesteps_per_encoding=2), task=None)(
        model, make_sample(DICTIONARY, [5, 9]))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_an_adaptive_schedule_has_levels_for_targets_alone():
    model = make_causal(adaptive_schedule_updates=10)
    assert len(model.schedule.log_snr) == model.max_target_positions < len(model.positions.weight)


@pytest.mark.parametrize("options, match", [
    ({"noising": "full"}, "--causal-source needs --noising partial"),
    ({"jitter_source": True}, "--jitter-source has no use with --causal-source"),
])
def test_options_that_exclude_one_another_are_one_line(options, match):
    with pytest.raises(UserError, match=match):
        make_causal(**options)
