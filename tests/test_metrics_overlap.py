"""metrics/overlap.py and metrics/report.py against values worked out by hand."""

import random

import pytest

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import overlap, report


def test_rouge_is_the_mean_f1_of_the_sentences():
    hypotheses = ["the cat sat", "a bird"]
    references = ["the cat sat on the mat", "a bird"]
    scores = overlap.rouge(hypotheses, references)
    # first sentence: precision 1; recall 3/6 of the words, 2/5 of the bigrams; second sentence: 1
    assert scores == pytest.approx({
        "rouge1": 50 * (2 / 3 + 1), "rouge2": 50 * (4 / 7 + 1), "rougeL": 50 * (2 / 3 + 1),
    })  # fmt: skip


def test_rouge_l_needs_the_order_and_rouge_1_does_not():
    scores = overlap.rouge(["b a"], ["a b"])
    assert scores == pytest.approx({"rouge1": 100, "rouge2": 0, "rougeL": 50})


def test_the_stemmer_can_be_turned_off():
    assert overlap.rouge(["running"], ["runs"], ["rouge1"]) == {"rouge1": 100}
    assert overlap.rouge(["running"], ["runs"], ["rouge1"], use_stemmer=False) == {"rouge1": 0}
    assert "stem:porter" in overlap.rouge_signature()
    assert "stem:no" in overlap.rouge_signature(use_stemmer=False)


def test_rouge_lsum_reads_newlines_as_sentence_ends():
    types = ["rougeL", "rougeLsum"]
    one_line = overlap.rouge(["one two three four"], ["three four one two"], types)
    assert one_line["rougeLsum"] == one_line["rougeL"] == pytest.approx(50)
    two_lines = overlap.rouge(["one two\nthree four"], ["three four\none two"], types)
    assert two_lines == pytest.approx({"rougeL": 50, "rougeLsum": 100})


def test_per_sentence_keeps_the_order():
    assert overlap.rouge_per_sentence(["a", "x"], ["a", "b"], ["rouge1"]) == {"rouge1": [100, 0]}


@pytest.mark.parametrize("types", [["rouge1", "rougeX"], ["rouge0"], ["rouge10"], []])
def test_unknown_rouge_types_are_refused_with_the_known_ones(types):
    with pytest.raises(UserError, match="rouge1 to rouge9, rougeL, rougeLsum"):
        overlap.check_rouge(types)


def test_without_the_rouge_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(overlap, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install rouge-score"):
        overlap.rouge(["a"], ["a"])


def test_bleu_is_the_corpus_value():
    bleu = overlap.bleu(["a b c d e"], ["a b c d f"])
    assert bleu.score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert "tok:13a" in bleu.signature
    # over the corpus: 9 of 10 words and so on, not the mean of 66.9 and 100
    both = overlap.bleu(["a b c d e", "a b c d e"], ["a b c d f", "a b c d e"])
    assert both.score == pytest.approx(100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25)


def test_bleu_punishes_a_short_hypothesis_only():
    assert overlap.bleu(["a b c d"], ["a b c d e f"]).score == pytest.approx(60.653, abs=1e-3)  # exp(1 - 6/4)


def test_chrf_weighs_recall_over_precision():
    too_long, too_short = overlap.chrf(["abcd"], ["ab"]), overlap.chrf(["ab"], ["abcd"])
    assert too_long.score > too_short.score > 0
    assert overlap.chrf(["ab c"], ["ab c"]).score == pytest.approx(100)
    assert "nc:6" in too_long.signature


def test_empty_texts_score_nothing():
    hypotheses, references = ["", "a b c d"], ["a b c d", "a b c d"]
    assert overlap.rouge(hypotheses, references)["rougeL"] == pytest.approx(50)
    assert 0 < overlap.bleu(hypotheses, references).score < 100
    assert 0 < overlap.chrf(hypotheses, references).score < 100
    assert overlap.changed_fraction([""], [""]) == 0
    assert overlap.changed_fraction([""], ["a"]) == 1


MEASURES = [overlap.rouge, overlap.bleu, overlap.chrf, overlap.copied_fraction, overlap.changed_fraction]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_refuses_unequal_lists_and_no_sentences(measure):
    with pytest.raises(UserError, match="2 hypotheses against 1"):
        measure(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no sentences"):
        measure([], [])


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_a_measure_taken_apart_adds_up_to_the_corpus_score(name):
    hypotheses = ["the cat sat on the mat.", "", "we go now", "much rain falls today"]
    references = ["the cat sat on a mat.", "a b", "we will go now", "much rain falls here"]
    measure, whole = overlap.CorpusMeasure(name), getattr(overlap, name)
    statistics = measure.statistics(hypotheses, references)
    for rows in ([0, 1, 2, 3], [3, 0], [1]):
        part = whole([hypotheses[i] for i in rows], [references[i] for i in rows])
        assert measure.score(statistics[rows].sum(axis=0)) == pytest.approx(part.score)
    assert measure.signature == part.signature
    with pytest.raises(UserError, match="1 hypotheses against 2"):
        measure.statistics(["a"], ["a", "b"])


def test_copied_fraction_looks_at_words_not_spacing():
    assert overlap.copied_fraction(["a  b ", "a b", "b a", "A b"], ["a b"] * 4) == 0.5


def test_changed_fraction_is_edits_over_the_longer_text():
    assert overlap.changed_fraction(["a x c", "a b c d"], ["a b c", "a b"]) == pytest.approx(
        (1 / 3 + 2 / 4) / 2
    )


def plain_edit_distance(left, right):
    rows = [list(range(len(right) + 1))]
    for i, a in enumerate(left, start=1):
        rows.append([i])
        for j, b in enumerate(right, start=1):
            rows[i].append(min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a != b)))
    return rows[-1][-1]


def test_word_edit_distance_equals_the_textbook_table():
    draw = random.Random(0)
    for _ in range(200):
        left, right = (draw.choices("abcd", k=draw.randrange(9)) for _ in range(2))
        assert overlap.word_edit_distance(left, right) == plain_edit_distance(left, right), (left, right)


def test_cells_may_be_text():
    assert report.text_table({"a": {"x": "1 .. 2"}}, ["x"]).split("\n")[2] == "a       1 .. 2"


ROWS = {"ours": {"x": 9.96, "long name": 1.0}, "a|b": {"x": None}}


def test_text_table_aligns_and_shows_what_is_missing():
    assert report.text_table(ROWS, ["x", "long name"]).split("\n") == [
        "system     x  long name",
        "------  ----  ---------",
        "ours    10.0        1.0",
        "a|b        -          -",
    ]


def test_markdown_table_escapes_bars():
    assert report.markdown_table(ROWS, ["x", "long name"], digits=2).split("\n") == [
        "| system |    x | long name |",
        "| ------ | ---: | --------: |",
        "| ours   | 9.96 |      1.00 |",
        "| a\\|b   |    - |         - |",
    ]
