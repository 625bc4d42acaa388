import math

import pytest
import torch
from torch import nn

from diffusion_fairseq.modules.attention import Attention
from diffusion_fairseq.modules.layers import DenoiserLayer, EncoderLayer
from diffusion_fairseq.modules.length_predictor import LengthPredictor
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
    torch.testing.assert_close(ours(x, ours.memory(context), mask), expected)


def test_folded_candidates_equal_copied_memory():
    attention = Attention(8, 2, context_dim=6).eval()
    context, x = torch.randn(2, 5, 6), torch.randn(2 * 3, 4, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    folded = attention(x, attention.memory(context), mask)
    copied = attention(x, attention.memory(context.repeat_interleave(3, 0)), mask.repeat_interleave(3, 0))
    torch.testing.assert_close(folded, copied)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple"):
        Attention(8, 3)


@pytest.mark.parametrize("normalize_before", [False, True])
def test_encoder_layer_ignores_masked_positions(normalize_before):
    layer = EncoderLayer(8, 2, 16, 0.0, normalize_before).eval()
    x = torch.randn(1, 5, 8)
    mask = torch.tensor([[True, True, True, False, False]])
    changed = x.clone()
    changed[:, 3:] = 7
    torch.testing.assert_close(layer(x, mask)[:, :3], layer(changed, mask)[:, :3])
    torch.testing.assert_close(layer(x, mask)[:, :3], layer(x[:, :3], None))


def test_denoiser_layer_ignores_masked_positions_on_both_sides():
    layer = DenoiserLayer(8, 2, 16, 6, 0.0).eval()
    x, context = torch.randn(1, 4, 8), torch.randn(1, 5, 6)
    mask, memory_mask = torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[1, 1, 1, 0, 0]]).bool()
    whole = layer(x, layer.cross_attention.memory(context), mask, memory_mask)[:, :2]
    part = layer(x[:, :2], layer.cross_attention.memory(context[:, :3]), None, None)
    torch.testing.assert_close(whole, part)


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


def test_self_conditioning_runs_the_chosen_examples_alone_and_without_gradient():
    weight = torch.ones((), requires_grad=True)
    xt = torch.arange(200.0).view(200, 1, 1)
    seen = []

    def estimate(rows):
        seen.append(rows)
        return xt[rows] * weight + 1

    previous = first_estimates(estimate, xt, 0.5, torch.Generator().manual_seed(0))
    assert not previous.requires_grad and len(seen) == 1 and 70 < len(seen[0]) < 130
    chosen = torch.zeros(200, dtype=torch.bool)
    chosen[seen[0]] = True
    assert previous[chosen].equal(xt[chosen] + 1) and previous[~chosen].eq(0).all()
    assert first_estimates(estimate, xt, 0.0).eq(0).all() and len(seen) == 1


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
