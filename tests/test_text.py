import pytest
import torch

from diffusion_fairseq.text import embedding
from diffusion_fairseq.text.embedding import clamp_to_tokens, nearest_tokens
from diffusion_fairseq.text.lengths import length_beam, lengths_to_mask

GENERATOR = torch.Generator().manual_seed(0)
# Norms differ, so that the largest inner product is not the nearest embedding.
EMBEDDING = torch.randn(50, 8, generator=GENERATOR) * torch.rand(50, 1, generator=GENERATOR) * 3
X = torch.randn(4, 5, 8, generator=GENERATOR)


def test_nearest_is_the_least_euclidean_distance():
    expected = torch.cdist(X.double(), EMBEDDING.double().expand(4, -1, -1)).argmin(dim=-1)
    assert nearest_tokens(X, EMBEDDING).equal(expected)
    assert not (X @ EMBEDDING.t()).argmax(dim=-1).equal(expected)


@pytest.mark.parametrize("at_once", [1, 7, 25, 50, 64])
def test_search_by_chunks_of_the_vocabulary_finds_the_same(monkeypatch, at_once):
    monkeypatch.setattr(embedding, "TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(embedding, "SCORES_AT_ONCE", 1)
    bias = torch.randn(50, generator=GENERATOR)
    assert embedding.TokenSearch(EMBEDDING, bias)(X).equal((X @ EMBEDDING.t() + bias).argmax(dim=-1))


def test_forbidden_tokens_are_never_chosen():
    forbidden = torch.zeros(50, dtype=torch.bool)
    forbidden[nearest_tokens(X, EMBEDDING).unique()] = True
    chosen = nearest_tokens(X, EMBEDDING, forbidden)
    assert not forbidden[chosen].any()
    distances = torch.cdist(X, EMBEDDING.expand(4, -1, -1)).masked_fill(forbidden, torch.inf)
    assert chosen.equal(distances.argmin(dim=-1))


def test_clamping_is_idempotent_and_keeps_the_dtype():
    clamped = clamp_to_tokens(X, EMBEDDING)
    assert clamp_to_tokens(clamped, EMBEDDING).equal(clamped)
    assert nearest_tokens(clamped, EMBEDDING).equal(nearest_tokens(X, EMBEDDING))
    assert clamp_to_tokens(X, EMBEDDING.half()).dtype == torch.float32


def test_lengths_to_mask():
    assert lengths_to_mask(torch.tensor([2, 0, 3]), 3).int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]


def test_length_beam_is_ranked_and_never_zero():
    logits = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 0.0, -1.0, 4.0]])
    assert length_beam(logits, 2).tolist() == [[2, 3], [3, 1]]
    assert length_beam(logits, 5).tolist() == [[2, 3, 1, 1, 1], [3, 1, 2, 2, 2]]
