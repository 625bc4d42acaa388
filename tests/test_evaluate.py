"""scripts/evaluate.py: what it reads, refuses and prints."""

import json
import os
import random
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import overlap

sys.path.insert(0, str(REPOSITORY / "scripts"))
import evaluate  # noqa: E402, I001

SOURCES = ["the cat sat here", "we shall go now", "it rains a lot"]
REFERENCES = ["the cat was here", "we will go now", "much rain falls today"]
CANDIDATES = [["the cat sat here", "", "much rain"], ["a dog", "we will go", "a lot of rain falls"]]


def block(i, texts=None, candidates=CANDIDATES, decoded="{}", kinds="STHDP"):
    """The lines fairseq-generate prints for sentence i."""
    source, reference = texts or (SOURCES[i], REFERENCES[i])
    lines = [("S", source), ("T", reference)]
    for hypothesis in (column[i] for column in candidates):
        lines += [
            ("H", f"-1.5\tnot▁decoded {i}"),
            ("D", f"-1.5\t{decoded.format(hypothesis)}"),
            ("P", "-1.0"),
        ]
    return [f"{kind}-{i}\t{text}" for kind, text in lines if kind in kinds]


def write(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def generated(tmp_path):
    """A whole output, ids by length as fairseq prints them, with log lines around."""
    lines = ["2026-01-01 10:00:00 | INFO | fairseq_cli.generate | {'S-1': None}"]
    lines += block(2) + block(0) + ["W-0\t0.1\tseconds"] + block(1)
    return write(tmp_path / "generate-test.txt", [*lines, "Generate test with beam=5: rouge1 = 12.00"])


def json_of(tmp_path, *arguments):
    evaluate.main([*arguments, "--json", str(tmp_path / "scores.json")])
    return json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))


def test_reads_ids_in_order_and_an_empty_hypothesis(generated):
    outputs = evaluate.read_generated([generated])
    assert (outputs.sources, outputs.references, outputs.candidates) == (SOURCES, REFERENCES, CANDIDATES)


def test_text_may_hold_tabs_and_unicode_line_separators(tmp_path):
    odd = "a\u2028b\tc\x85d\x0be\rf"
    path = write(tmp_path / "odd.txt", block(0, texts=(odd, odd), decoded=odd))
    outputs = evaluate.read_generated([path])
    assert outputs.sources == outputs.references == [odd]
    assert outputs.candidates == [[odd], [odd]]


def test_a_stripped_trailing_tab_is_an_empty_hypothesis(tmp_path):
    path = write(tmp_path / "g.txt", ["S-0\ta", "T-0\tb", "H-0\t-1.2", "D-0\t-1.2"])
    assert evaluate.read_generated([path]).candidates == [[""]]


def test_shards_are_put_together(tmp_path, generated):
    shards = [write(tmp_path / "0.txt", block(2) + block(0)), write(tmp_path / "1.txt", block(1))]
    assert evaluate.read_generated(shards) == evaluate.read_generated([generated])


def test_candidates_of_several_runs_are_one_pool(tmp_path, generated):
    runs = [write(tmp_path / f"{n}.txt", [line for i in range(3) for line in block(i, candidates=[column])])
            for n, column in enumerate(CANDIDATES)]
    pooled, whole = json_of(tmp_path, runs[0], "--pool", runs[1]), json_of(tmp_path, generated)
    assert pooled["candidates"] == 2 and pooled["systems"] == whole["systems"] and pooled["files"] == runs
    for lines, said in ((block(0), "1 sentences, but the model has 3"),
                        ([line for i in range(3) for line in block(i, texts=("a", "b"))], "T- lines are not")):
        with pytest.raises(UserError, match=f"other.txt: .*{said}"):
            evaluate.main([generated, "--pool", write(tmp_path / "other.txt", lines)])


BROKEN = {
    "a gap": (
        block(0) + block(2),
        r"g\.txt: 1 of 3 ids are missing \(1\); the last id, 2, is at .*g\.txt:9$",
    ),
    "fewer hypotheses": (
        block(0) + block(1) + block(2)[:-3],
        r"g\.txt:17: id 2 has 1 hypotheses \(D-\), most",
    ),
    "no hypothesis": (block(0) + block(1) + block(2, kinds="ST"), r"g\.txt:17: id 2 has 0 hypotheses \(D-\)"),
    "cut after H-": (block(0) + block(1) + block(2)[:-2], r"g\.txt:17: id 2 has 1 hypotheses \(D-\)"),
    "H- lost": (
        block(0, kinds="STD") + block(1),
        r"g\.txt:1: id 0 has 0 hypotheses \(H-\)|g\.txt:5: id 1 has 2",
    ),
    "D- lost": (
        ["S-0\ta", "T-0\tb", "H-0\t-1\tb", "H-0\t-1\tc", "D-0\t-1\tb"],
        r"g\.txt:1: id 0 has unequal",
    ),
    "no source": (block(0) + block(1, kinds="THD") + block(2), r"g\.txt:9: id 1 has 0 sources"),
    "no reference": (block(0) + block(1) + block(2, kinds="SHD"), r"g\.txt:17: id 2 has 0 references"),
    "twice": (block(0) + block(0), r"g\.txt:9: S-0 comes twice, its sentence began at .*g\.txt:1$"),
    "no score": (["S-0\ta", "D-0\tb"], r"g\.txt:2: D-0 has no score but 'b'"),
    "another file": (["Once upon a time"], r"g\.txt: no D- line"),
    "empty": ([], r"g\.txt: no D- line"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_incomplete_output_is_refused_with_file_and_line(tmp_path, case):
    lines, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as caught:
        evaluate.main([write(tmp_path / "g.txt", lines)])
    assert "\n" not in str(caught.value)


def test_rows_are_scored_against_the_references(tmp_path, generated):
    result = json_of(tmp_path, generated)
    assert result["sentences"] == 3 and result["candidates"] == 2
    systems = result["systems"]
    for name, hypotheses in {"model": CANDIDATES[0], "copy of the source": SOURCES}.items():
        row = systems[name]
        assert overlap.rouge(hypotheses, REFERENCES).items() <= row.items()
        assert row["bleu"] == overlap.bleu(hypotheses, REFERENCES).score
        assert row["chrf"] == overlap.chrf(hypotheses, REFERENCES).score
        assert row["unchanged"] == 100 * overlap.copied_fraction(hypotheses, SOURCES)
        assert row["words_changed"] == 100 * overlap.changed_fraction(hypotheses, SOURCES)
    assert systems["model"]["unchanged"] == pytest.approx(100 / 3)
    assert systems["the reference itself"].keys() == {"unchanged", "words_changed"}
    assert "random training target" not in systems
    assert result["signatures"]["bleu"] == overlap.bleu(REFERENCES, REFERENCES).signature


def test_mean_and_oracle_over_candidates(tmp_path, generated):
    systems = json_of(tmp_path, generated)["systems"]
    means = [overlap.rouge(column, REFERENCES)["rouge1"] for column in CANDIDATES]
    assert systems["model: mean over 2 candidates"]["rouge1"] == pytest.approx(sum(means) / 2)
    best = ["the cat sat here", "we will go", "much rain"]
    assert (
        systems["model: oracle (chosen with the reference)"]["bleu"] == overlap.bleu(best, REFERENCES).score
    )


def test_the_oracle_may_choose_as_genie_does(tmp_path, capsys):
    candidates = [["the sat cat", "we go now", "rain"], ["the cat bed bath", "we will", "much snow"]]
    file = write(tmp_path / "generated.txt", [line for i in range(3) for line in block(i, candidates=candidates)])
    oracle = "model: oracle (chosen with the reference)"
    rows = {by: json_of(tmp_path, file, "--oracle", by)["systems"][oracle] for by in ("rougeL", "rouge2")}
    assert rows["rouge2"]["rouge2"] > rows["rougeL"]["rouge2"] and rows["rouge2"]["rougeL"] < rows["rougeL"]["rougeL"]
    evaluate.main([file, "--oracle", "rouge2"])
    assert "candidate of highest ROUGE-2, of several the one of highest ROUGE-1" in capsys.readouterr().out


USUAL = [["a dog ran", "", "x"], ["the cat sat here", "we will go", "much rain"],
         ["the cat sat there", "we will", "rain"], ["the cat sat here now", "we will go on", "much"]]
MBR_CHOICE = ["the cat sat here", "we will go", "much rain"]


def several(tmp_path, name="several.txt"):
    return write(tmp_path / name, [line for i in range(3) for line in block(i, candidates=USUAL)])


def test_mbr_rows_are_chosen_without_the_reference(tmp_path):
    chosen = tmp_path / "chosen.txt"
    arguments = [several(tmp_path), "--mbr", "rouge1,bleu", "--write-mbr", str(chosen)]
    systems = json_of(tmp_path, *arguments)["systems"]
    assert chosen.read_text(encoding="utf-8").splitlines() == MBR_CHOICE
    row = systems["model: MBR by ROUGE-1"]
    assert overlap.rouge(MBR_CHOICE, REFERENCES).items() <= row.items()
    assert row["bleu"] == overlap.bleu(MBR_CHOICE, REFERENCES).score
    assert row["words_changed"] == 100 * overlap.changed_fraction(MBR_CHOICE, SOURCES)
    assert "model: MBR by BLEU" in systems and "model: MBR by ROUGE-L" not in systems
    before = chosen.read_text(encoding="utf-8")
    other = write(tmp_path / "other.tgt", ["x", "", "rain"])
    json_of(tmp_path, *arguments, "--references", other)
    assert chosen.read_text(encoding="utf-8") == before


def test_the_default_utilities_and_none(tmp_path, capsys):
    names = list(json_of(tmp_path, several(tmp_path))["systems"])
    assert names[:5] == ["model", "model: mean over 4 candidates", "model: MBR by ROUGE-L", "model: MBR by BLEU",
                         "model: oracle (chosen with the reference)"]
    assert "\nmbr: " in capsys.readouterr().out
    without = json_of(tmp_path, several(tmp_path), "--no-mbr")
    assert not any("MBR" in name for name in without["systems"]) and "mbr" not in without["signatures"]
    assert "MBR" not in capsys.readouterr().out


def test_mbr_lines_need_candidates_and_a_utility(tmp_path):
    one = write(tmp_path / "g.txt", [line for i in range(3) for line in block(i, candidates=CANDIDATES[:1])])
    for arguments in ([one], [several(tmp_path), "--no-mbr"]):
        with pytest.raises(UserError, match="--write-mbr: MBR needs a utility, and several candidates"):
            evaluate.main([*arguments, "--write-mbr", str(tmp_path / "out.txt")])


def test_diversity_of_the_candidates(tmp_path):
    rows = json_of(tmp_path, several(tmp_path))["diversity"]
    mean = rows["model: mean over 4 candidates"]
    assert mean["words"] == pytest.approx(sum(len(t.split()) for column in USUAL for t in column) / 12)
    assert mean["empty"] == pytest.approx(100 / 12) and rows["model"]["empty"] == pytest.approx(100 / 3)
    assert 0 < mean["self_bleu"] < 100 and "self_bleu" not in rows["model"]
    same = [[line] * 3 for line in ("a b c d e",) * 4]
    path = write(tmp_path / "same.txt", [line for i in range(3) for line in block(i, candidates=same)])
    rows = json_of(tmp_path, path)["diversity"]
    assert rows["model: mean over 4 candidates"]["self_bleu"] == pytest.approx(100)
    assert rows["model: mean over 4 candidates"]["div4"] == pytest.approx(25)
    assert rows["the reference itself"]["words"] == pytest.approx(12 / 3)


def test_intervals_surround_the_scores_and_pair_the_rows(tmp_path, generated, capsys):
    plain = write(tmp_path / "plain.txt", CANDIDATES[0])
    result = json_of(tmp_path, generated, "--system", f"same={plain}", "--confidence", "90", "--seed", "3")
    out, found = capsys.readouterr().out, result["confidence"]
    assert found["percent"] == 90 and "seed:3" in result["signatures"]["bootstrap"]
    for name, row in result["systems"].items():
        for measure, (low, high) in found["scores"][name].items():
            assert low <= row[measure] <= high or measure in ("bleu", "chrf")
        assert found["scores"][name].keys() == row.keys()
    assert found["scores"]["model"]["rouge1"][0] < found["scores"]["model"]["rouge1"][1]
    assert set(map(tuple, found["differences"]["same"].values())) == {(0.0, 0.0)}
    assert "model" not in found["differences"] and "90 % intervals of the difference from model" in out
    low, high = found["scores"]["model"]["rouge1"]
    assert f"{low:.1f} .. {high:.1f}" in out
    assert "confidence" not in json_of(tmp_path, generated)


def test_impossible_options_are_refused(generated, capsys):
    for option, value, message in (("--confidence", "100", "between 0 and 100"), ("--mbr", "rouge7", "'rouge7' is")):
        with pytest.raises(SystemExit):
            evaluate.main([generated, option, value])
        assert message in capsys.readouterr().err


def test_glge_adds_its_own_columns(tmp_path, capsys):
    lines = [line for i, text in enumerate(["11 men", "12 cats"])
             for line in block(i, texts=("a", text.replace("1", "#")), candidates=[["11 men", "12 cats"]])]
    path = write(tmp_path / "g.txt", lines)
    plain, gigaword = (json_of(tmp_path, path, "--glge", variant) for variant in ("plain", "gigaword"))
    assert plain["systems"]["model"]["glge1"] < gigaword["systems"]["model"]["glge1"] == pytest.approx(100)
    assert gigaword["systems"]["model"]["rouge1"] == plain["systems"]["model"]["rouge1"]
    assert plain["systems"]["model"]["pyrougeL"] >= plain["systems"]["model"]["glgeL"]
    assert "glge:gigaword" in gigaword["signatures"]["glge"] and "py-rouge R-L" in capsys.readouterr().out
    assert "glge1" not in json_of(tmp_path, path)["systems"]["model"]


def test_marks_between_sentences_are_words_to_no_measure(tmp_path):
    """GLGE's ROUGE-L reads them: sentences in another order are found there, and nowhere else."""
    first, second = "the cat sat on the mat .", "dogs run through the park ."
    files = {}
    for name, mark in (("marked", " [x_sep] "), ("plain", " ")):
        candidates = [[mark.join([second, first])] * 2, ["a", f"{first}{mark}"]]
        lines = [line for i in range(2)
                 for line in block(i, texts=(first, mark.join([first, second])), candidates=candidates)]
        files[name] = json_of(tmp_path, write(tmp_path / name, lines), "--glge", "cnndm")
    of_glge = {name: {row: scores.pop("glgeL", None) for row, scores in found["systems"].items()}
               for name, found in files.items()}
    for found in files.values():
        for scores in found["systems"].values():
            for measure in ("glge1", "glge2", "pyrougeL"):
                scores.pop(measure, None)
    assert files["marked"]["systems"] == files["plain"]["systems"]
    assert files["marked"]["diversity"] == files["plain"]["diversity"]
    assert of_glge["marked"]["model"] == pytest.approx(100) and of_glge["plain"]["model"] < 70


def test_plain_files_are_the_candidates(tmp_path, generated):
    files = [write(tmp_path / f"{j}.txt", lines) for j, lines in enumerate(CANDIDATES)]
    texts = ["--references", write(tmp_path / "t", REFERENCES), "--sources", write(tmp_path / "s", SOURCES)]
    assert json_of(tmp_path, *files, "--plain", *texts)["systems"] == json_of(tmp_path, generated)["systems"]
    with pytest.raises(UserError, match="no T- lines; give --references"):
        evaluate.main([*files, "--plain"])
    with pytest.raises(UserError, match=r"short\.txt: 1 lines, but .*0\.txt has 3"):
        evaluate.main([files[0], write(tmp_path / "short.txt", ["a"]), "--plain", *texts])


def test_json_can_be_what_is_printed(tmp_path, generated, capsys):
    evaluate.main([generated, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == json_of(tmp_path, generated)


def test_evaluation_as_a_function():
    result = evaluate.evaluate(evaluate.Outputs(CANDIDATES), REFERENCES, name="ours", utilities=("bleu",))
    assert list(result.rows)[:1] == ["ours"] and result.chosen["ours"]["bleu"] == CANDIDATES[0]
    assert "copy of the source" not in result.rows and "unchanged" not in result.rows["ours"]
    assert result.rows["ours"]["bleu"] == overlap.bleu(CANDIDATES[0], REFERENCES).score


def test_the_best_by_model_score_has_a_row_where_it_is_not_the_first():
    printed = evaluate.Outputs(CANDIDATES, scores=[[-1.0] * 3, [-1.0, -0.5, -1.0]])
    row = evaluate.evaluate(printed, REFERENCES, name="ours").rows["ours: best by model score"]
    texts = [CANDIDATES[0][0], CANDIDATES[1][1], CANDIDATES[0][2]]
    assert row["bleu"] == overlap.bleu(texts, REFERENCES).score != overlap.bleu(CANDIDATES[0], REFERENCES).score
    surest = evaluate.Outputs(CANDIDATES, scores=[[-1.0] * 3, [-2.0] * 3])
    assert "ours: best by model score" not in evaluate.evaluate(surest, REFERENCES, name="ours").rows


def test_of_each_pool_a_random_choice_is_taken(tmp_path, generated):
    again = write(tmp_path / "again.txt", open(generated).read().splitlines())
    whole = json_of(tmp_path, generated, "--pool", again)["systems"]
    taken = [json_of(tmp_path, generated, "--pool", again, "--take", "1", "--seed", seed)["systems"] for seed in "112"]
    assert "model: mean over 4 candidates" in whole and "model: mean over 2 candidates" in taken[0]
    assert taken[0] == taken[1] != taken[2]
    assert json_of(tmp_path, generated, "--take", "2")["systems"] == json_of(tmp_path, generated)["systems"]
    with pytest.raises(UserError, match="--take 3: there are 2 candidate"):
        evaluate.main([generated, "--take", "3"])


def test_a_choice_keeps_candidates_and_scores_together():
    texts = [[f"{j} of {i}" for i in range(40)] for j in range(5)]
    outputs = evaluate.Outputs(texts, scores=[[10.0 * i + j for i in range(40)] for j in range(5)])
    outputs.take(2, random.Random(1))
    columns = zip(outputs.candidates, outputs.scores)
    kept = [(text.split(" of "), score) for column in columns for text, score in zip(*column)]
    assert len(kept) == 80 and all(10 * int(i) + int(j) == score for (j, i), score in kept)
    assert {j for (j, _), _ in kept} == set("01234") and all(first < second for first, second in zip(*outputs.scores))


def test_one_candidate_has_neither_mean_nor_oracle(tmp_path):
    path = write(tmp_path / "g.txt", [line for i in range(3) for line in block(i, candidates=CANDIDATES[:1])])
    assert list(json_of(tmp_path, path)["systems"]) == ["model", "copy of the source", "the reference itself"]


def test_the_random_target_depends_on_the_seed_alone(tmp_path, generated):
    targets = write(tmp_path / "train.tgt", ["the cat" + " x" * length for length in range(30)])
    arguments = [generated, "--train-target", targets, "--seed"]
    rows = [json_of(tmp_path, *arguments, seed)["systems"]["random training target"] for seed in "112"]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0]["rouge1"] > 0


def test_further_systems_from_plain_text_and_generated_output(tmp_path, generated):
    plain = write(tmp_path / "plain.txt", CANDIDATES[0])
    systems = json_of(tmp_path, generated, "--system", f"plain={plain}", "--system", f"again={generated}")[
        "systems"
    ]
    assert systems["plain"] == systems["again"] == systems["model"]
    assert systems["again: mean over 2 candidates"] == systems["model: mean over 2 candidates"]


def test_other_references_need_saying_which_count(tmp_path, generated):
    other = write(tmp_path / "o.txt", [line for i in range(3) for line in block(i, texts=(SOURCES[i], "x"))])
    with pytest.raises(UserError, match=r"o\.txt: its T- lines are not the model's; give --references"):
        evaluate.main([generated, "--system", f"other={other}"])
    references = write(tmp_path / "test.tgt", REFERENCES)
    systems = json_of(tmp_path, generated, "--system", f"other={other}", "--references", references)[
        "systems"
    ]
    assert systems["other"] == systems["model"]


def test_untouched_texts_replace_those_of_the_output(tmp_path, generated):
    sources, references = write(tmp_path / "test.src", REFERENCES), write(tmp_path / "test.tgt", SOURCES)
    systems = json_of(tmp_path, generated, "--sources", sources, "--references", references)["systems"]
    assert overlap.rouge(CANDIDATES[0], SOURCES).items() <= systems["model"].items()
    assert overlap.rouge(REFERENCES, SOURCES).items() <= systems["copy of the source"].items()


def test_references_of_another_split_are_warned_of(tmp_path, generated, capsys):
    same = write(tmp_path / "same", [text.replace(" ", "\u2581") for text in REFERENCES])
    json_of(tmp_path, generated, "--references", same)
    assert "same split" not in capsys.readouterr().err
    json_of(tmp_path, generated, "--references", write(tmp_path / "other", ["other words"] * len(REFERENCES)))
    assert "3 of 3 lines are not the T- lines" in capsys.readouterr().err


def test_output_without_targets_needs_references(tmp_path):
    path = write(tmp_path / "g.txt", [line for i in range(3) for line in block(i, kinds="SHD")])
    with pytest.raises(UserError, match="no T- lines; give --references"):
        evaluate.main([path])
    references = write(tmp_path / "test.tgt", REFERENCES)
    row = json_of(tmp_path, path, "--references", references)["systems"]["model"]
    assert overlap.rouge(CANDIDATES[0], REFERENCES).items() <= row.items()


def test_output_without_sources_leaves_their_columns_empty(tmp_path, capsys):
    path = write(tmp_path / "g.txt", [line for i in range(3) for line in block(i, kinds="THD")])
    evaluate.main([path, "--examples", "1"])
    table = capsys.readouterr().out
    assert "copy of the source" not in table and "source   " not in table
    assert table.split("\n")[2].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(
    "option, lines, message",
    [
        ("--references", ["a", "b"], r"f\.txt: 2 lines, but the model has 3 sentences"),
        ("--sources", ["a"] * 4, r"f\.txt: 4 lines, but the model has 3 sentences"),
        ("--system=x", ["a"] * 4, r"f\.txt: 4 sentences, but the model has 3"),
        ("--system=model", ["a"] * 3, "two systems are called 'model'"),
        ("--train-target", [], r"f\.txt: empty file"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, generated, option, lines, message):
    path = write(tmp_path / "f.txt", lines)
    with pytest.raises(UserError, match=message):
        evaluate.main([generated, f"{option}={path}"])


def test_a_missing_rouge_package_is_said_in_one_line(generated, monkeypatch):
    monkeypatch.setattr(overlap, "find_spec", lambda name: None)
    monkeypatch.setattr(overlap, "version", None)
    with pytest.raises(UserError, match="pip install rouge-score"):
        evaluate.main([generated])


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        evaluate.main([str(tmp_path / "none.txt")])
    (tmp_path / "bytes.txt").write_bytes(b"D-0\t-1\t\xff\n")
    with pytest.raises(UserError, match=r"bytes\.txt:1: not UTF-8"):
        evaluate.main([str(tmp_path / "bytes.txt")])


def test_the_table_and_the_examples(generated, capsys):
    evaluate.main([generated, "--examples", "2", "--name", "ours"])
    out = capsys.readouterr().out
    assert out.split("\n")[0].split() == ["system", *" ".join(evaluate.MEASURES.values()).split()]
    assert "\nours: oracle (chosen with the reference)  " in out
    assert f"     0  source     {SOURCES[0]}\n        output     {CANDIDATES[0][0]}\n" in out
    assert f"     1  source     {SOURCES[1]}" in out and SOURCES[2] not in out
    evaluate.main([generated, "--format", "markdown"])
    assert capsys.readouterr().out.startswith("| system ")


def test_unknown_words_in_the_references_are_warned_of(tmp_path, generated, capsys):
    evaluate.main([generated])
    assert capsys.readouterr().err == ""
    path = write(tmp_path / "g.txt", block(0, texts=("a", "b <<unk>> <<unk>>")))
    evaluate.main([path])
    assert "1 of 1 references hold <<unk>>" in capsys.readouterr().err


def test_examples_are_spread_over_the_test_set():
    texts = [f"text {i}" for i in range(10)]
    shown = evaluate.examples(evaluate.Outputs([texts]), evaluate.Evaluation(texts, None), 3)
    assert [line.split()[0] for line in shown.split("\n") if "output" in line] == ["0", "3", "6"]
    assert (
        evaluate.examples(evaluate.Outputs([texts]), evaluate.Evaluation(texts, None), 99).count("output")
        == 10
    )


@pytest.mark.slow
def test_errors_are_one_line_and_status_1(tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"), str(tmp_path / "none.txt")]
    paths = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(REPOSITORY)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().split("\n")[-1].startswith("error: ") and "Traceback" not in done.stderr
