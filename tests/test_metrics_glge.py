"""metrics/glge.py: GLGE's and GENIE's ROUGE, and what they do to the text before."""

import pytest

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import glge, overlap


def test_on_one_line_the_scores_are_the_plain_ones_but_for_py_rouges():
    hypotheses, references = ["the cat sat", "we shall going"], ["the cats sat on the mat", "we go"]
    found = glge.rouge_per_sentence(hypotheses, references)
    plain = overlap.rouge_per_sentence(hypotheses, references)
    assert (found["glge1"], found["glge2"], found["glgeL"]) == (plain["rouge1"], plain["rouge2"], plain["rougeL"])
    # first sentence: precision 1, recall 1/2, each to the power of 1/1.2
    recall = 0.5 ** (1 / 1.2)
    assert found["pyrougeL"][0] == pytest.approx(100 * 2 * recall / (1 + recall))


# to the power of 1/1.2, 0.3 is 0.3667, 0.5 and 0.25 are 0.5612 and 0.3150
@pytest.mark.parametrize(
    "precision, recall, expected", [(0.3, 0.3, 0.3667), (1, 1, 1), (0, 0, 0), (0.5, 0.25, 0.4035)])
def test_weighted_f1(precision, recall, expected):
    assert glge.weighted_f1(precision, recall) == pytest.approx(expected, abs=1e-4)
    assert glge.weighted_f1(precision, recall, 1.0) == pytest.approx(
        2 * precision * recall / (precision + recall) if precision else 0)


def test_rouge_l_is_the_summary_levels():
    found = glge.rouge_per_sentence(["one two\nthree four"], ["three four\none two"])
    assert found["glgeL"] == pytest.approx([100])


@pytest.mark.parametrize("pieces, words", [
    ("i don ' t", "i do n't"),
    ("don ' to", "don ` to"),
    ("it ' s bob ' d we ' ll", "it 's bob 'd we 'll"),
    ('a " b " c', "a `` b '' c"),
    ("' b ' c", "` b ' c"),
    ("( a ) [ b ] { c }", "-LRB- a -RRB- -LSB- b -RSB- -LCB- c -RCB-"),
    ("$ 3 , 000 , 000 , and 2 . 5", "$ 3,000,000 , and 2.5"),
    ("wait . . .", "wait ..."),
    ("the U . N . said", "the U.N. said"),
    ("U . S . A . wins", "U.S.A. wins"),
    ("a well - known one - off", "a well-known one-off"),
    ("- a - -", "- a --"),
    ("plain  text .", "plain text ."),
    ("", ""),
])  # fmt: skip
def test_word_pieces_are_joined_again(pieces, words):
    assert glge.rejoin(pieces) == words


def test_joined_words_stay_as_they_are():
    text = "he did n't say `` 3,000 '' - it 's a well-known ... U.S. -LRB- fact -RRB-"
    assert glge.rejoin(text) == text


def test_gigaword_hides_the_digit_one_only():
    assert glge.prepare_hypothesis("1 , 211 men ( 2 )", "gigaword") == "#,2## men -LRB- 2 -RRB-"
    assert glge.prepare_reference("1 man", "gigaword") == "1 man"


@pytest.mark.parametrize("mark", [" [X_SEP] ", " <S_SEP> ", " < s _ sep > ", "\n"])
def test_cnndm_drops_short_and_repeating_sentences(mark):
    first, short, new = "the cat sat on the mat .", "a b c d", "dogs run through the park ."
    repeating = "the cat sat on the old mat ."  # 6 of its 7 different words stood before
    text = mark.join([first, short, repeating, new])
    assert glge.prepare_hypothesis(text, "cnndm") == f"{first}\n{new}"
    assert glge.prepare_reference(text, "cnndm") == "\n".join([first, short, repeating, new])
    assert glge.prepare_hypothesis(mark.join([short, short]), "cnndm") == ""


def test_a_dropped_repetition_counts_as_heard():
    """Its new word is known afterwards: without it 4 of 6 words would be below the limit."""
    sentences = ["a b c d e", "a b c d f", "f a b c x y z"]
    assert glge.prepare_hypothesis(" [X_SEP] ".join(sentences), "cnndm") == "a b c d e\nf a b c x y z"
    sentences[2] = "f a b c d x"
    assert glge.prepare_hypothesis(" [X_SEP] ".join(sentences), "cnndm") == "a b c d e"


def test_plain_leaves_everything():
    assert glge.prepare_hypothesis(" 1 ( don ' t ) [X_SEP] a", "plain") == " 1 ( don ' t ) [X_SEP] a"


def test_the_signature_names_the_variant_and_the_factor():
    assert "glge:cnndm" in glge.signature("cnndm") and "1.2" in glge.signature("cnndm")
    for call in (lambda: glge.signature("x"), lambda: glge.prepare_hypothesis("a", "x"),
                 lambda: glge.prepare_reference("a", "x")):
        with pytest.raises(UserError, match="known are plain, gigaword, cnndm"):
            call()
