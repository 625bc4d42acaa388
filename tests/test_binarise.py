"""scripts/binarise.py: text becomes subwords and fairseq's data once, and never a mixture of two ways."""

import json

import pytest
from test_cli import write_pairs
from test_study import run_script

pytestmark = pytest.mark.slow


def test_another_vocabulary_or_text_is_refused_and_a_wrong_start_is_not(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for seed, (split, count) in enumerate({"train": 60, "valid": 10, "test": 8}.items()):
        write_pairs(text, split, count, seed)
    refused = run_script("binarise.py", tmp_path, "--vocabulary", "3000", "--workers", "1", check=False)
    assert refused.returncode == 1 and "--vocabulary 3000: Vocabulary size too high" in refused.stderr
    said = [run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1").stdout for _ in range(2)]
    assert "written" in said[0] and "already there" in said[1]
    assert str(tmp_path).encode() not in (tmp_path / "sentencepiece.model").read_bytes()

    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = run_script("binarise.py", tmp_path, "--vocabulary", "31", "--workers", "1", check=False)
    assert other.returncode == 1 and f"error: {tmp_path} was binarised with other vocabulary (see" in other.stderr
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with (text / "train.src").open("a") as stream:
        stream.write("one more\n")
    other = run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1", check=False)
    assert other.returncode == 1 and "with other text (see" in other.stderr
    assert json.loads((tmp_path / "binarised.json").read_text())["vocabulary"] == 30
