"""The studies, on tiny models and made-up candidates."""

import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from test_cli import MODEL, TRAIN, preprocess, run_module, write_pairs

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import study_candidates  # noqa: E402, I001


def run_script(name, *arguments, check=True):
    words = [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, arguments)]
    return subprocess.run(words, check=check, capture_output=True, text=True)


@pytest.mark.slow
def test_study_measures_every_setting_once_and_recommends_one(tmp_path):
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2)):
        write_pairs(tmp_path, split, count, seed)
    preprocess(tmp_path, tmp_path / "bin", "valid")
    run_module("train", tmp_path / "bin", *TRAIN, "--save-dir", tmp_path, "--max-update", "3", "--disable-validation")
    command = ["study_sampling.py", tmp_path / "bin", "--path", tmp_path / "checkpoint_last.pt", "--output",
               tmp_path / "study", "--grids", "uniform", "--clamping", "off", *MODEL[2:], "--solvers"]
    run_script(*command, "ddim,heun", "--steps", "2")
    first = json.loads((tmp_path / "study.json").read_text())
    assert set(first) == {"ddim uniform 2", "heun uniform 1"}
    done = run_script(*command, "ddim,heun", "--steps", "2,4", "--patience", "0,1", "--exit-entropies",
                      "0,1.5")
    rows = json.loads((tmp_path / "study.json").read_text())
    assert {name for name in rows if "entropy" in name} == {
        f"{name} patience 1 entropy 1.5" for name in ("ddim uniform 2", "ddim uniform 4", "heun uniform 1",
                                                      "heun uniform 2")}
    assert len(rows) == 12 and all(rows[name] == first[name] for name in first)
    assert all(0 <= row["rougeL"] <= 100 and row["seconds"] > 0 for row in rows.values())
    assert "recommended: --solver" in done.stdout and (tmp_path / "study.png").stat().st_size > 10000
    run_script(*command, "ddpm", "--steps", "2", "--published-stride")
    assert "ddpm uniform 2 published stride" in json.loads((tmp_path / "study.json").read_text())
    kept = (tmp_path / "study.json").read_text()
    bad = run_script(*command, "ddim", "--steps", "2", "--batch-size", "4", check=False)
    # Seconds of other batches would not compare.
    assert bad.returncode == 1 and "measured with other options (batch_size): name another --output" in bad.stderr
    assert (tmp_path / "study.json").read_text() == kept
    bad = run_script(*command, "magic", check=False)
    assert bad.returncode == 2 and "'magic' is unknown" in bad.stderr


REFERENCES = ["a b c d", "e f g h"]


def test_candidates_are_chosen_by_score_mbr_and_oracle(tmp_path):
    wrong, near = ["x y", "x y"], ["a b c q", "e f g q"]
    outputs = study_candidates.Outputs([wrong, near, near, REFERENCES])
    rows = study_candidates.study(outputs, REFERENCES, [1, 4], draws=3, seed=1)
    assert rows["4 model score"]["rougeL"] == 0 and rows["4 oracle"]["rougeL"] == 100
    assert rows["4 MBR"]["rougeL"] == pytest.approx(75) and rows["4 mean"]["rougeL"] == pytest.approx(62.5)
    assert len({rows[f"1 {kind}"]["rougeL"] for kind in study_candidates.SELECTIONS}) == 1
    study_candidates.plot(rows, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10000


def test_the_model_score_chooses_whatever_was_printed_first():
    texts = [["a b", "e f g h"], ["a b c d", "e"]]
    outputs = study_candidates.Outputs(texts, scores=[[-2.0, -1.0], [-1.0, -2.0]])
    rows = study_candidates.study(outputs, REFERENCES, [2], draws=1, seed=1)
    assert rows["2 model score"]["rougeL"] == 100


def test_a_number_of_candidates_that_was_not_generated_is_refused():
    with pytest.raises(UserError, match=r"--numbers 1,5: the file has 1 candidate"):
        study_candidates.study(study_candidates.Outputs([REFERENCES]), REFERENCES, [1, 5], draws=1, seed=1)


@pytest.mark.slow
def test_pretraining_study_continues_and_scores_every_start(tmp_path):
    (tmp_path / "text").mkdir()
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2), ("test", 8, 3)):
        write_pairs(tmp_path / "text", split, count, seed)
    run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1")
    train = [*TRAIN[TRAIN.index("--arch"):], "--max-update", "3", "--eval-rouge-steps", "2"]
    command = ["study_pretraining.py", tmp_path, "--seeds", "1", "--steps", "2", "--candidates", "2"]
    run_script(*command, "--output", tmp_path / "first", "--", *train)
    start = tmp_path / "first" / "0-seed1" / "checkpoint_last.pt"
    again = run_script(*command, "--output", tmp_path / "first", "--checkpoint", f"3={start}", "--", *train)
    rows = json.loads((tmp_path / "first" / "study.json").read_text())
    assert set(rows) == {"0-seed1", "3-seed1"}
    logs = [(tmp_path / "first" / name / "train.log").read_text() for name in ("0-seed1", "3-seed1")]
    assert [f"loading pretrained model from {start}" in log for log in logs] == [False, True]
    assert "3 updates: MBR by ROUGE-L" in again.stdout and (tmp_path / "first" / "study.png").stat().st_size > 10000
    bad = run_script(*command, "--output", tmp_path, "--checkpoint", "3=nowhere.pt", "--", *train, check=False)
    assert bad.returncode == 1 and bad.stderr.strip().endswith("error: no checkpoint nowhere.pt")


@pytest.mark.slow
def test_checkpoint_study_scores_every_checkpoint_once(tmp_path):
    (tmp_path / "text").mkdir()
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2), ("test", 8, 3)):
        write_pairs(tmp_path / "text", split, count, seed)
    run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1")
    train = [*TRAIN[TRAIN.index("--arch"):], "--task", "seq2seq_diffusion", "--save-interval-updates", "2",
             "--keep-interval-updates", "-1", "--no-epoch-checkpoints", "--disable-validation", "--cpu"]
    run_module("train", tmp_path / "data-bin", *train, "--save-dir", tmp_path / "ck", "--max-update", "4")
    command = ["study_checkpoints.py", tmp_path, "--output", tmp_path / "study", "--steps", "2", "--candidates", "2"]
    first = next((tmp_path / "ck").glob("checkpoint_*_2.pt"))
    run_script(*command, "--system", f"one={first}")
    kept = json.loads((tmp_path / "study" / "study.json").read_text())
    done = run_script(*command, "--system", f"one={tmp_path / 'ck'}")
    rows = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["updates"] for row in rows.values()] == [2, 4] and all(rows[name] == kept[name] for name in kept)
    for line in ("one, 2 updates ", "one, 4 updates: MBR by BLEU", "copy of the source", "self-BLEU"):
        assert line in done.stdout
    assert (tmp_path / "study" / "study.png").stat().st_size > 10000
    seeds = run_script(*command, "--system", f"one={tmp_path / 'ck'}", "--system", f"one={first}")
    rows = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["seed"] for row in rows.values()] == [1, 1, 2]
    line = next(line for line in seeds.stdout.splitlines() if line.startswith("one, 2 updates  "))
    assert line.count("± 0.00") == line.count("±") > 3  # the same weights
    bad = run_script(*command, "--checkpoints", tmp_path / "text", check=False)
    assert bad.returncode == 1 and "has no checkpoint_EPOCH_UPDATES.pt" in bad.stderr
