"""The study of sampling settings, on a tiny model."""

import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from test_cli import MODEL, TRAIN, preprocess, run_module, write_pairs

pytestmark = pytest.mark.slow


def test_study_measures_every_setting_once_and_recommends_one(tmp_path):
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2)):
        write_pairs(tmp_path, split, count, seed)
    preprocess(tmp_path, tmp_path / "bin", "valid")
    run_module("train", tmp_path / "bin", *TRAIN, "--save-dir", tmp_path, "--max-update", "3", "--disable-validation")
    command = [sys.executable, REPOSITORY / "scripts/study_sampling.py", tmp_path / "bin", "--path",
               tmp_path / "checkpoint_last.pt", "--output", tmp_path / "study", "--solvers", "ddim,heun", "--grids",
               "uniform", "--clamping", "off", *MODEL[2:]]
    subprocess.run([*command, "--steps", "2"], check=True, capture_output=True)
    first = json.loads((tmp_path / "study.json").read_text())
    assert set(first) == {"ddim uniform 2", "heun uniform 1"}
    done = subprocess.run([*command, "--steps", "2,4", "--patience", "0,1"], check=True, capture_output=True, text=True)
    rows = json.loads((tmp_path / "study.json").read_text())
    assert len(rows) == 8 and all(rows[name] == first[name] for name in first)
    assert all(0 <= row["rougeL"] <= 100 and row["seconds"] > 0 for row in rows.values())
    assert "recommended: --solver" in done.stdout and (tmp_path / "study.png").stat().st_size > 10000
    bad = subprocess.run([*command, "--solvers", "magic"], capture_output=True, text=True)
    assert bad.returncode == 2 and "'magic' is unknown" in bad.stderr
