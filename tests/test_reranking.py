"""text/reranking.py: the pairwise utilities against sacrebleu and rouge-score, and what MBR chooses."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenizers
from sacrebleu.metrics import BLEU

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.text import reranking
from diffusion_fairseq.text.reranking import ORACLES, UTILITIES, mbr, oracle_best_of, oracle_picks, pairwise

SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "B", "d9", "-", "é"]), max_size=9).map(" ".join)
CANDIDATES = st.lists(SENTENCES, min_size=1, max_size=6)
ASCII = st.lists(st.lists(st.sampled_from(["a", "b", "c", "B", "b.", "it's", "-"]), max_size=9).map(" ".join),
                 min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(CANDIDATES)
def test_bleu_is_sacrebleus_sentence_bleu(candidates):
    metric = BLEU(tokenize="none", effective_order=True, force=True)
    direct = [[metric.sentence_score(hyp, [ref]).score for ref in candidates] for hyp in candidates]
    assert pairwise(candidates, "bleu") == pytest.approx(np.array(direct))


@settings(deadline=None, max_examples=60)
@given(ASCII)
def test_rouge_is_rouge_scores(candidates):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizers.DefaultTokenizer())
    scores = [[scorer.score(ref, hyp) for ref in candidates] for hyp in candidates]
    direct = {name: 100 * np.array([[pair[name].fmeasure for pair in row] for row in scores])
              for name in ("rouge1", "rouge2", "rougeL")}
    direct["rouge"] = sum(direct.values()) / 3
    for name, matrix in direct.items():
        assert pairwise(candidates, name) == pytest.approx(matrix), name


def textbook_subsequence(left, right):
    table = np.zeros((len(left) + 1, len(right) + 1))
    for i, a in enumerate(left, start=1):
        for j, b in enumerate(right, start=1):
            table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
    return table[-1, -1]


@settings(deadline=None)
@given(st.lists(st.text("abcd", max_size=40), min_size=1, max_size=5))
def test_common_subsequences_of_any_length(texts):
    direct = [[textbook_subsequence(left, right) for right in texts] for left in texts]
    assert np.array_equal(reranking.common_subsequences(texts), direct)


def test_words_of_other_scripts_count():
    assert pairwise(["über den Wolken", "Über den Bergen"], "rouge1")[0, 1] == pytest.approx(100 * 2 / 3)


def test_the_most_usual_candidate_is_chosen():
    candidates = ["x y z", "the cat sat on the rug", "the cat sat on the mat", "my cat sat on the mat"]
    assert all(mbr(candidates, utility) == 2 for utility in UTILITIES)


def test_a_repeated_candidate_weighs_twice():
    assert mbr(["a b c d", "e f g h", "e f g h"], "rougeL") == 1
    assert mbr(["a b c d", "a b c d", "e f g h"], "bleu") == 0


def test_rows_are_hypotheses_and_columns_references():
    """BLEU punishes a short hypothesis by its length, a long one by its precisions."""
    matrix = pairwise(["a b c d", "a b c d e"], "bleu")
    assert matrix[0, 1] == pytest.approx(100 * np.exp(1 - 5 / 4))
    assert matrix[1, 0] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_the_mean_is_over_the_references_of_a_hypothesis():
    matrix = np.array([[0.0, 2.0, 2.0], [9.0, 0.0, 1.0], [0.0, 8.0, 99.0]])
    assert reranking.most_useful(matrix) == 1  # means of 2, 5 and 4 off the diagonal; the columns' would be 4.5, 5, 1.5
    assert reranking.most_useful(matrix.T) == 1
    matrix[1, 0] = 2.0
    assert (reranking.most_useful(matrix), reranking.most_useful(matrix.T)) == (2, 1)


@pytest.mark.parametrize("utility", UTILITIES)
def test_ties_and_single_candidates(utility):
    assert mbr(["one two three four"] * 4, utility) == 0
    assert mbr(["one two"], utility) == 0
    assert mbr(["", ""], utility) == 0
    assert mbr(["a b", "c d"], utility) == 0


@settings(deadline=None, max_examples=80)
@given(CANDIDATES, st.randoms(use_true_random=False), st.sampled_from(list(UTILITIES)))
def test_the_choice_moves_with_a_permutation(candidates, draw, utility):
    order = list(range(len(candidates)))
    draw.shuffle(order)
    matrix, chosen = pairwise(candidates, utility), mbr(candidates, utility)
    shuffled = [candidates[place] for place in order]
    assert pairwise(shuffled, utility) == pytest.approx(matrix[np.ix_(order, order)])

    def mean(row):
        return sum(np.delete(matrix[row], row))

    again = order[mbr(shuffled, utility)]
    assert mean(again) == pytest.approx(mean(chosen))  # the same, or its equal
    assert mean(chosen) == pytest.approx(max(mean(row) for row in range(len(candidates))))


def test_bad_calls_are_refused():
    with pytest.raises(UserError, match="unknown utility 'rouge9'; known are bleu, rouge1, rouge2, rougeL, rouge"):
        mbr(["a"], "rouge9")
    with pytest.raises(UserError, match="no candidates"):
        mbr([], "bleu")


def test_the_oracle_takes_the_first_of_the_best():
    assert oracle_best_of([1.0, 3.0, 3.0, 2.0]) == 1


def test_where_its_measure_is_equal_the_oracle_asks_the_next_one():
    scores = np.array([[[5.0, 0.0, 9.0, 1.0, 3.0], [7.0, 0.0, 1.0, 2.0, 3.0]],
                       [[9.0, 1.0, 1.0, 1.0, 4.0], [1.0, 2.0, 1.0, 9.0, 3.0]]])
    measures = ("rouge1", "rouge2", "rougeL", "glge1", "glge2")
    assert {name: oracle_picks(scores, measures, name) for name in ORACLES} == {
        "rougeL": [0, 0], "rouge1": [1, 0], "rouge2": [1, 1], "glge2": [1, 0]}


def test_identical_candidates_share_the_work(monkeypatch):
    seen = []
    monkeypatch.setitem(UTILITIES, "bleu", lambda texts: seen.append(texts) or np.eye(len(texts)))
    assert pairwise(["a", "b", "a"], "bleu").tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert seen == [["a", "b"]]


@pytest.mark.parametrize("utility", UTILITIES)
def test_fifty_sources_take_a_fraction_of_a_second(utility):
    """A twentieth of 1,000 sources x 10 candidates of 25 words, which may take 60 s: 3 s here, 0.05 s when measured."""
    draw = np.random.default_rng(0)
    sets = [[" ".join(f"w{word}" for word in draw.integers(40, size=25)) for _ in range(10)] for _ in range(50)]
    began = time.process_time()
    for candidates in sets:
        mbr(candidates, utility)
    assert time.process_time() - began < 3
