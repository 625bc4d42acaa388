"""metrics/diversity.py against values worked out by hand."""

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import diversity
from diffusion_fairseq.text.reranking import pairwise


def test_self_bleu_is_the_mean_off_the_diagonal():
    one, other = np.array([[100.0, 20.0], [40.0, 100.0]]), np.full((3, 3), 60.0)
    assert diversity.self_bleu([one, other]) == pytest.approx((30 + 60) / 2)


def test_self_bleu_of_equal_and_of_unlike_candidates():
    assert diversity.self_bleu([pairwise(["a b c d e"] * 3, "bleu")]) == pytest.approx(100)
    assert diversity.self_bleu([pairwise(["a b c d", "e f g h"], "bleu")]) == 0
    with pytest.raises(UserError, match="two or more"):
        diversity.self_bleu([np.ones((1, 1))])
    with pytest.raises(UserError, match="no sentence"):
        diversity.self_bleu([])


def test_self_bleu_of_a_corpus_is_bleu_against_all_others():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefg", k=rng.randrange(9))) for _ in range(30)] + ["x y z", "a b c d e f"]
    metric = BLEU(tokenize="none", effective_order=True, lowercase=False)
    against = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    assert diversity.self_bleu_of_corpus(texts) == pytest.approx(sum(against) / len(against))
    assert diversity.self_bleu_of_corpus(["a b c d e"] * 3) == pytest.approx(100)
    assert diversity.self_bleu_of_corpus(["a a", "b"]) == 0
    # "a a" has two matches with the three of the other, which has three, clipped to two
    pair = ["a a", "a a a"]
    expected = 100 * (math.exp(1 - 3 / 2) + math.exp((math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 2)) / 3)) / 2
    assert diversity.self_bleu_of_corpus(pair) == pytest.approx(expected)
    with pytest.raises(UserError, match="two or more"):
        diversity.self_bleu_of_corpus(["a"])


def test_distinct_counts_over_the_corpus():
    assert diversity.distinct(["a b a", "a c"], 1) == pytest.approx(3 / 5)
    assert diversity.distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert diversity.distinct(["a", ""], 2) == 0


def test_distinct_per_sentence_looks_at_each_text_alone():
    assert diversity.distinct_per_sentence(["a b a b", "a b", ""]) == pytest.approx((1 / 2 + 1) / 2)
    assert diversity.distinct_per_sentence([""]) == 0


def test_distinct_among_pools_the_candidates_of_a_sentence():
    sets = [["a b c d", "a b c d"], ["a b c d", "e f g h"], ["a", "b"]]
    assert diversity.distinct_among(sets) == pytest.approx((1 / 2 + 1) / 2)
    assert diversity.distinct_among(sets[2:]) == 0


def test_entropy_in_bits():
    assert diversity.token_entropy(["a b", "c d"]) == pytest.approx(2)
    assert diversity.token_entropy(["a a a b"]) == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert diversity.token_entropy(["a b a"], n=2) == pytest.approx(1)
    assert diversity.token_entropy(["a a"]) == diversity.token_entropy([""]) == 0


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_zipf_finds_the_exponent_of_a_power_law(exponent):
    counts = [round(1e5 * rank**-exponent) for rank in range(1, 40)]
    text = " ".join(f"w{rank} " * count for rank, count in enumerate(counts))
    assert diversity.zipf_coefficient([text]) == pytest.approx(exponent, abs=0.01)


def test_zipf_of_too_few_words():
    assert diversity.zipf_coefficient(["a a"]) == diversity.zipf_coefficient([""]) == 0


def test_lengths_and_empty_outputs():
    assert diversity.mean_words(["a  b", "", "c"]) == 1
    assert diversity.empty_share(["a", "", "  ", "<pad> [PAD]", "<pad> a"]) == pytest.approx(3 / 5)
    assert diversity.duplicate_share(["a b", "c", "a  b", "", "", "a b"]) == pytest.approx(2 / 6)
    for measure in (diversity.mean_words, diversity.empty_share, diversity.duplicate_share):
        with pytest.raises(UserError, match="no text"):
            measure([])
