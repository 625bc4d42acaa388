import math

import pytest
import torch
from torch import nn

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.modules.attention import Attention
from diffusion_fairseq.modules.layers import DenoiserLayer, EncoderLayer
from diffusion_fairseq.modules.length_predictor import LengthPredictor
from diffusion_fairseq.modules.packing import ALIGNMENT, Packing
from diffusion_fairseq.modules.self_conditioning import first_estimates, with_previous
from diffusion_fairseq.modules.time_embedding import TimeEmbedding, sinusoids

torch.manual_seed(0)


def test_attention_is_torch_multihead_attention():
    ours = Attention(8, 2).eval()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, context = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
    expected, _ = theirs(x, context, context, key_padding_mask=~mask)
    memory = ours.memory(context.flatten(0, 1), Packing((3, 5)))
    torch.testing.assert_close(ours(x.flatten(0, 1), Packing((3, 4)), memory, mask).view(3, 4, 8), expected)


def test_folded_candidates_equal_copied_memory():
    attention = Attention(8, 2, context_dim=6).eval()
    context, x = torch.randn(2, 5, 6), torch.randn(2 * 3, 4, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    packing, copies = Packing((6, 4)), context.repeat_interleave(3, 0)
    x = x.flatten(0, 1)
    folded = attention(x, packing, attention.memory(context.flatten(0, 1), Packing((2, 5))), mask)
    memory = attention.memory(copies.flatten(0, 1), Packing((6, 5)))
    copied = attention(x, packing, memory, mask.repeat_interleave(3, 0))
    torch.testing.assert_close(folded, copied)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple"):
        Attention(8, 3)


@pytest.mark.parametrize("normalize_before", [False, True])
def test_encoder_layer_computes_the_same_with_and_without_padding(normalize_before):
    layer = EncoderLayer(8, 2, 16, 0.0, normalize_before).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    packed, padded = Packing.of(mask), Packing.padded(mask)
    whole = padded.unpack(layer(padded.pack(x), padded))
    torch.testing.assert_close(packed.unpack(layer(packed.pack(x), packed))[mask], whole[mask])
    torch.testing.assert_close(layer(x[0, :3], Packing((1, 3))), whole[0, :3])


def test_denoiser_layer_ignores_masked_positions_on_both_sides():
    layer = DenoiserLayer(8, 2, 16, 6, 0.0).eval()
    x, context = torch.randn(1, 4, 8), torch.randn(1, 5, 6)
    part = layer(x[0, :2], Packing((1, 2)), layer.cross_attention.memory(context[0, :3], Packing((1, 3))), None)
    memory_mask = torch.tensor([[1, 1, 1, 0, 0]]).bool()
    memory = layer.cross_attention.memory(context[0], Packing((1, 5)))
    mask = torch.tensor([[1, 1, 0, 0]]).bool()
    for packing in (Packing.of(mask), Packing.padded(mask)):
        whole = packing.unpack(layer(packing.pack(x), packing, memory, memory_mask))
        torch.testing.assert_close(whole[0, :2], part)


def test_packing_leaves_padding_out_and_puts_it_back():
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    x, packing = torch.randn(7, 9, 3), Packing.of(mask)
    packed = packing.pack(x)
    assert packing.count == mask.sum() and len(packed) % ALIGNMENT == 0 and len(packed) - packing.count < ALIGNMENT
    assert packing.unpack(packed).equal(x * mask[..., None])
    with torch.no_grad():
        assert packing.spread(packed)[mask].equal(x[mask]) and packing.spread(packed).shape == x.shape
    for which, expected in ((packing.rows, 0), (packing.columns, 1)):
        assert which(x.device)[: packing.count].equal(mask.nonzero()[:, expected])
    everywhere = Packing.of(torch.ones(2, 3).bool())
    assert everywhere.mask is None and everywhere.unpack(everywhere.pack(x[:2, :3])).equal(x[:2, :3])
    nothing = Packing.of(torch.zeros(2, 3).bool())
    assert nothing.unpack(nothing.pack(x[:2, :3])).eq(0).all()


def test_packed_gradients_are_those_of_the_real_positions():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    x, packing = torch.randn(2, 3, 4, requires_grad=True), Packing.of(mask)
    packing.unpack(packing.pack(x).square()).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() * mask[..., None])


def test_sinusoids_are_the_published_ones():
    t = torch.tensor([0.0, 3.0])
    frequencies = [10000 ** (-i / 4) for i in range(4)]
    expected = [[math.cos(v * f) for f in frequencies] + [math.sin(v * f) for f in frequencies] for v in t.tolist()]
    torch.testing.assert_close(sinusoids(t, 8), torch.tensor(expected))


def test_time_embedding_tells_times_apart_and_refuses_odd_widths():
    embedding = TimeEmbedding(8, 6)
    assert embedding(torch.tensor([1.0, 2.0])).diff(dim=0).abs().max() > 1e-4
    with pytest.raises(ValueError, match="even"):
        TimeEmbedding(7, 6)


def test_under_autocast_the_pass_after_the_first_estimates_has_its_gradients():
    """Not so on torch 2.4 alone."""
    layer, xt = torch.nn.Linear(4, 4), torch.ones(3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        previous = first_estimates(lambda rows: layer(xt[rows]), xt, 1.0, Draws())
        layer(xt + previous).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_an_estimate_beyond_float16_is_seen_as_a_large_one(size):
    """As predicted noise gives at the noisiest levels."""
    estimate = torch.tensor([[[size, -size]]])
    seen = with_previous(torch.zeros(1, 1, 2, dtype=torch.float16), estimate)
    assert seen.isfinite().all() and seen[0, 0, 2] >= min(size, 32) and seen[0, 0, 3] == -seen[0, 0, 2]
    assert with_previous(torch.zeros(1, 1, 2), estimate)[0, 0, 2] == size
    layer = torch.nn.Linear(4, 4000)
    with torch.autocast("cpu", torch.float16):
        assert layer(with_previous(torch.zeros(1, 1, 2), estimate)).isfinite().all()


def test_self_conditioning_runs_the_chosen_examples_alone_and_without_gradient():
    weight = torch.ones((), requires_grad=True)
    xt = torch.arange(200.0).view(200, 1, 1)
    seen = []

    def estimate(rows):
        seen.append(rows)
        return xt[rows] * weight + 1

    previous = first_estimates(estimate, xt, 0.5, Draws(torch.Generator().manual_seed(0)))
    assert not previous.requires_grad and len(seen) == 1 and 70 < len(seen[0]) < 130
    chosen = torch.zeros(200, dtype=torch.bool)
    chosen[seen[0]] = True
    assert previous[chosen].equal(xt[chosen] + 1) and previous[~chosen].eq(0).all()
    assert first_estimates(estimate, xt, 0.0, Draws()).eq(0).all() and len(seen) == 1


def test_with_previous_puts_zeros_where_there_is_none():
    x = torch.ones(1, 2, 3)
    assert with_previous(x, None).equal(torch.cat([x, torch.zeros(1, 2, 3)], -1))
    assert with_previous(x, 2 * x).equal(torch.cat([x, 2 * x], -1))


def test_length_predictor_ignores_padding_and_follows_the_source_length():
    predictor = LengthPredictor(4, 10, max_difference=3)
    encoded = torch.randn(1, 5, 4)
    mask = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(predictor(encoded, mask), predictor(encoded[:, :3], mask[:, :3]))
    nn.init.zeros_(predictor.absolute.weight), nn.init.zeros_(predictor.absolute.bias)
    nn.init.zeros_(predictor.relative.weight)
    with torch.no_grad():
        predictor.relative.bias.copy_(torch.tensor([0.0, 0, 0, 0, 9, 0, 0]))  # the source's length + 1
    assert predictor(encoded, mask).argmax(dim=1).tolist() == [4]
    assert predictor(encoded, torch.ones_like(mask)).argmax(dim=1).tolist() == [6]
