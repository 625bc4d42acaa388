"""scripts/evaluate.py: the measures, choices and examples of the papers' own tables."""

import math
import sys

import numpy as np
import pytest
from test_evaluate import CANDIDATES, REFERENCES, SOURCES, block, json_of, write

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import overlap

import _evaluation  # isort: skip  test_evaluate knows the folder
import evaluate  # isort: skip
import study_candidates  # isort: skip

DIFFUSEQ = {"sentence_bleu", "rougeL_unstemmed"}
ORACLE = "model: oracle (chosen with the reference)"


def generated(tmp_path, candidates=CANDIDATES, texts=None, name="g.txt"):
    lines = [line for i in range(len(candidates[0])) for line in block(i, texts and texts[i], candidates)]
    return write(tmp_path / name, lines)


def test_overall_is_the_mean_of_three_rouges():
    """GENIE's Table 1: 42.1, 20.7 and 34.4 make 32.4."""
    evaluation = evaluate.Evaluation(["a b c"], None)
    sums = evaluation.statistics(["a b c"])[0]
    sums[:3] = 42.1, 20.7, 34.4
    scores = dict(zip(evaluation.measures, evaluation.score(sums), strict=True))
    assert scores["overall"] == pytest.approx((42.1 + 20.7 + 34.4) / 3) and f"{scores['overall']:.1f}" == "32.4"


def test_overall_is_in_the_table_the_json_and_the_intervals(tmp_path, capsys):
    result = json_of(tmp_path, generated(tmp_path), "--glge", "plain", "--confidence", "90")
    assert "ROUGE-L  ROUGE mean  BLEU" in capsys.readouterr().out.replace("   ", "  ")
    for name in ("model", "model: mean over 2 candidates", ORACLE):
        row = result["systems"][name]
        assert row["overall"] == pytest.approx(np.mean([row[key] for key in overlap.DEFAULT_ROUGE_TYPES]))
        low, high = result["confidence"]["scores"][name]["overall"]
        assert low <= row["overall"] <= high
    assert "overall" not in result["systems"]["the reference itself"]


def test_examples_show_candidates_of_every_system(tmp_path, capsys):
    model = generated(tmp_path)
    other = generated(tmp_path, [[f"beam {j} of {i}" for i in range(3)] for j in (1, 2, 3)], name="o.txt")
    plain = write(tmp_path / "plain.txt", ["x", "y", "z"])
    systems = ["--system", f"diverse beam={other}", "--system", f"one={plain}"]
    evaluate.main([model, *systems, "--examples", "3", "--examples-candidates", "2"])
    shown = capsys.readouterr().out.split("\n\n")[-3:]
    assert shown[0].split("\n") == [
        f"     0  source          {SOURCES[0]}", f"        output 1        {CANDIDATES[0][0]}",
        f"        output 2        {CANDIDATES[1][0]}", "        diverse beam 1  beam 1 of 0",
        "        diverse beam 2  beam 2 of 0", "        one 1           x", f"        reference       {REFERENCES[0]}"]
    assert "diverse beam 2  beam 2 of 2" in shown[2]
    evaluate.main([model, *systems, "--examples", "1"])
    out = capsys.readouterr().out
    assert f"output        {CANDIDATES[0][0]}\n        diverse beam  beam 1 of 0\n" in out and "beam 2 of" not in out


@pytest.mark.parametrize("arguments, message", [
    (["--examples-candidates", "3"], "--examples-candidates acts only with --examples"),
    (["--examples", "1", "--examples-candidates", "0"], "--examples-candidates"),
])
def test_candidates_of_no_example_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        evaluate.main([generated(tmp_path), *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_oracle_may_choose_by_glges_rouge(tmp_path, capsys):
    """GLGE makes # of 1, which ROUGE counts for no word; where its ROUGE-2 is equal its ROUGE-1 decides."""
    candidates = [["men ran off x", "x y"], ["1 1 men ran off", "ran men"]]
    file = generated(tmp_path, candidates, [("a", "# # men ran off"), ("a", "men ran")])
    rows = {by: json_of(tmp_path, file, "--glge", "gigaword", "--oracle", by)["systems"][ORACLE]
            for by in ("rouge2", "glge2")}
    assert rows["glge2"]["glge1"] == pytest.approx(100) and rows["glge2"]["glge2"] == pytest.approx(50)
    assert rows["rouge2"]["glge2"] == pytest.approx(40) and rows["rouge2"]["rouge2"] > rows["glge2"]["rouge2"]
    assert "candidate of highest GLGE R-2, of several the one of highest GLGE R-1" in capsys.readouterr().out


def test_glges_oracle_needs_glge(tmp_path):
    with pytest.raises(UserError, match=r"^the oracle glge2 chooses by GLGE's ROUGE: give --glge, too$"):
        evaluate.main([generated(tmp_path), "--oracle", "glge2"])


def test_the_study_of_candidates_offers_what_it_measures(monkeypatch, capsys):
    assert study_candidates.OFFERED == ["rougeL", "rouge1", "rouge2"]
    monkeypatch.setattr(sys, "argv", ["study_candidates.py", "g.txt", "--oracle", "glge2"])
    with pytest.raises(SystemExit):
        study_candidates.parse_arguments()
    assert "invalid choice: 'glge2'" in capsys.readouterr().err


def test_bleu_of_sentences_is_smoothed_and_averaged():
    """Smoothing 4: the first order without a match counts ln(4 words) / (2 * 5) matches."""
    smoothed = 100 * (3 / 4 * 2 / 3 * 1 / 2 * math.log(4) / 10) ** 0.25
    found = _evaluation.sentence_bleu(["a b c d", "a b c d", "", "A b c d"], ["a b c e", "a b c d", "a", "e f g h"])
    assert found == pytest.approx([smoothed, 100, 0, 0])
    result = evaluate.evaluate(evaluate.Outputs([["a b c d", "a b c d"]]), ["a b c e", "a b c d"], diffuseq=True)
    assert result.rows["model"]["sentence_bleu"] == pytest.approx((smoothed + 100) / 2)


def test_diffuseqs_measures_are_asked_for(tmp_path, capsys):
    file = generated(tmp_path, [["he runs here now"], ["he running here now"]], [("a", "he running here now")])
    result = json_of(tmp_path, file, "--diffuseq-metrics", "--confidence", "90")
    row, out = result["systems"]["model"], capsys.readouterr().out
    assert row["rougeL"] == pytest.approx(100) and row["rougeL_unstemmed"] == pytest.approx(75)
    assert 0 < row["sentence_bleu"] < 100
    assert DIFFUSEQ <= result["confidence"]["scores"]["model"].keys()
    assert "BLEU of sentences (nltk)" in out and "ROUGE-L, no stemmer" in out
    assert "smooth:method4|nltk:" in result["signatures"]["sentence-bleu"]
    assert "stem:no" in result["signatures"]["rouge-l-no-stemmer"] and "\nsentence-bleu: mean over sentences|" in out
    without = json_of(tmp_path, file)
    assert not DIFFUSEQ & without["systems"]["model"].keys() and "sentence-bleu" not in without["signatures"]


def test_a_missing_nltk_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(_evaluation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^DiffuSeq's BLEU needs the nltk package: pip install nltk$"):
        evaluate.main([generated(tmp_path), "--diffuseq-metrics"])


def test_the_help_says_which_self_bleu_is_meant(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "self-BLEU is the mean over pairs of a source's candidates" in capsys.readouterr().out


def test_processes_share_the_work_and_change_no_number(monkeypatch):
    monkeypatch.setattr(_evaluation, "SHARED_OUT", 3)
    texts, references = [f"w{i} a b w{i % 3}" for i in range(11)], [f"a w{i % 4} b" for i in range(11)]
    found = [evaluate.evaluate(evaluate.Outputs([texts]), references, glge_variant="plain", workers=workers).rows
             for workers in (1, 2)]
    assert found[0] == found[1] and found[0]["model"]["rouge1"] > 0
