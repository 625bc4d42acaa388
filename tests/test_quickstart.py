"""The quick start, with seconds of training in place of minutes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import quickstart  # noqa: E402, I001

pytestmark = pytest.mark.slow


def start(out, minutes, **options):
    command = [sys.executable, REPOSITORY / "scripts/quickstart.py", "--out", out, "--minutes", str(minutes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def test_quickstart_continues_after_an_interruption_and_reuses_what_is_there(tmp_path):
    first = start(tmp_path, 0.3, start_new_session=True)
    deadline = time.time() + 300
    while "| train_inner |" not in (tmp_path / "train.log").read_text() if (tmp_path / "train.log").exists() else True:
        assert first.poll() is None and time.time() < deadline
        time.sleep(0.5)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()

    said, errors = (second := start(tmp_path, 0.3)).communicate(timeout=600)
    assert second.returncode == 0, errors[-3000:]
    assert said.count("already there") >= 2  # binarised data, untrained model
    for row in ("trained", "untrained", "copy", "random"):
        assert row in said
    assert "fairseq-interactive" in said
    assert (tmp_path / "losses.png").stat().st_size > 10000 and (tmp_path / "scores.json").exists()
    hypotheses = [line for line in (tmp_path / "generated.txt").read_text().splitlines() if line.startswith("H-")]
    assert len(hypotheses) == 365

    began = time.time()
    said, errors = (third := start(tmp_path, 0.3)).communicate(timeout=600)
    assert third.returncode == 0 and "already trained" in said and said.count("already there") >= 4
    assert time.time() - began < 120


def test_a_bad_budget_is_refused(tmp_path):
    process = start(tmp_path, 0)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2 and "--minutes must be positive" in errors


def test_the_bar_of_a_continued_training_counts_what_was_trained_before():
    line = '2026-01-01 | INFO | train_inner | {"wall": "%d", "num_updates": 3, "mse": 1}'
    with quickstart.tqdm(total=60, disable=True) as bar:
        for wall, place in ((12, 42), (40, 60)):
            quickstart.follow_training(bar, 30.0, line % wall)
            assert bar.n == place


def test_help_comes_before_any_installation(tmp_path):
    words = ["bash", REPOSITORY / "scripts/quickstart.sh", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=True)
    assert done.stdout.startswith("usage: bash scripts/quickstart.sh") and not done.stderr
    assert all(f"--{option}" in done.stdout for option in ("data", "minutes", "out"))
