"""scripts/binarise.py: text becomes subwords and fairseq's data once, and never a mixture of two ways."""

import json
import sys

import pytest
from helpers import REPOSITORY
from sentencepiece import SentencePieceProcessor
from test_cli import write_pairs
from test_study import run_script

sys.path.insert(0, str(REPOSITORY / "scripts"))
import binarise  # noqa: E402

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

    other = run_script("binarise.py", tmp_path, "--vocabulary", "30", "--subwords", "bpe", check=False)
    assert other.returncode == 1 and f"error: {tmp_path} was made with other kind (see" in other.stderr
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = run_script("binarise.py", tmp_path, "--vocabulary", "31", "--workers", "1", check=False)
    assert other.returncode == 1 and f"error: {tmp_path} was made with other vocabulary (see" in other.stderr
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with (text / "train.src").open("a") as stream:
        stream.write("one more\n")
    other = run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1", check=False)
    assert other.returncode == 1 and "with other text (see" in other.stderr
    (tmp_path / "binarised.json").rename(tmp_path / "aside")
    (tmp_path / "data-bin").rename(tmp_path / "elsewhere")
    other = run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1", check=False)
    assert other.returncode == 1 and f"{text}/train.src has 61 lines, {text}/train.tgt has 60" in other.stderr
    (tmp_path / "aside").rename(tmp_path / "binarised.json")
    assert json.loads((tmp_path / "binarised.json").read_text())["vocabulary"] == 30


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_how_subwords_are_learned(tmp_path, kind):
    (tmp_path / "text").mkdir()
    for name in (f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")):
        (tmp_path / "text" / name).write_text("abab abab aab\n" * 20)
    run_script("binarise.py", tmp_path, "--vocabulary", "9", "--subwords", kind, "--workers", "1")
    model = SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.model"))
    scores = [model.get_score(piece) for piece in range(len(model))]
    # Byte pairs are scored by the order of their merges, unigrams by log p.
    assert all(score == int(score) for score in scores) == (kind == "bpe")
    refused = run_script("binarise.py", tmp_path, "--words", "--subwords", "bpe", check=False)
    assert refused.returncode == 2 and "--subwords acts only where subwords are learned" in refused.stderr


def test_words_that_a_given_dictionary_lacks_are_counted(tmp_path):
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("a 1\nb 1\nc 1\n")
    (tmp_path / "text").mkdir()
    for name in (f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")):
        (tmp_path / "text" / name).write_text("a b\nc d\n" if name == "test.tgt" else "a b\na b\n")
    said = run_script("binarise.py", tmp_path, "--words", "--dictionary", dictionary, "--workers", "1").stdout
    unknown = {line.split(":")[0].strip(): line.split(", ")[2] for line in said.splitlines() if "%" in line}
    assert len(unknown) == 6 and unknown.pop("test.tgt") == "16.7% replaced (by <unk>)"
    assert set(unknown.values()) == {"0.0% replaced (by <unk>)"}


def test_a_mark_stays_one_subword(tmp_path):
    (tmp_path / "text").mkdir()
    for name in (f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")):
        (tmp_path / "text" / name).write_text("a b c [x_sep] b a\n" * 20)
    run_script("binarise.py", tmp_path, "--vocabulary", "10", "--symbol", "[x_sep]", "--workers", "1")
    encoded = (tmp_path / "encoded/test.tgt").read_text(encoding="utf-8").splitlines()
    assert all(line.split().count("\u2581[x_sep]") == 1 for line in encoded)
    assert "\u2581[x_sep] 40\n" in (tmp_path / "data-bin/dict.tgt.txt").read_text(encoding="utf-8")
    other = run_script("binarise.py", tmp_path, "--vocabulary", "10", "--workers", "1", check=False)
    assert other.returncode == 1 and f"error: {tmp_path} was made with other symbols (see" in other.stderr


def test_words_take_no_mark_and_are_as_they_are_where_a_recipe_names_one(tmp_path):
    (tmp_path / "text").mkdir()
    for name in (f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")):
        (tmp_path / "text" / name).write_text("a b [x_sep] b\n" * 20)
    run_script("binarise.py", tmp_path, "--words", "--symbol", "[x_sep]", "--workers", "1")
    assert "[x_sep] 40\n" in (tmp_path / "data-bin/dict.tgt.txt").read_text()
    again = run_script("binarise.py", tmp_path, "--words", "--workers", "1")
    assert "already there" in again.stdout


def test_subwords_are_learned_of_some_of_a_large_text_evenly(tmp_path):
    texts = [tmp_path / "train.src", tmp_path / "train.tgt"]
    for path in texts:
        path.write_text("".join(f"line {number} of {path.name}\n" for number in range(4000)))
    whole = list(binarise.sampled(texts, 1))
    assert len(whole) == 8000 and whole[0] == "line 0 of train.src"
    megabytes = sum(path.stat().st_size for path in texts) / 1e6
    part = list(binarise.sampled(texts, megabytes / 4))
    assert part == list(binarise.sampled(texts, megabytes / 4)) and set(part) < set(whole)
    for quarter in range(8):  # of both texts, from the beginning to the end
        assert len(set(part) & set(whole[quarter * 1000 : quarter * 1000 + 1000])) in range(200, 300)
    assert sum(len(line) + 1 for line in part) / 1e6 == pytest.approx(megabytes / 4, rel=0.1)


def test_how_much_text_subwords_are_learned_from_is_part_of_what_they_are(tmp_path):
    (tmp_path / "text").mkdir()
    for seed, (split, count) in enumerate({"train": 400, "valid": 10, "test": 8}.items()):
        write_pairs(tmp_path / "text", split, count, seed)
    models = []
    for name, megabytes in (("all", 100), ("some", 0.005)):
        (tmp_path / name).mkdir()
        binarise.encoder_of(tmp_path / "text", binarise.PAIR, tmp_path / name, 30, None, megabytes=megabytes)
        models.append((tmp_path / name / "sentencepiece.model").read_bytes())
    run_script("binarise.py", tmp_path, "--vocabulary", "30", "--sample-megabytes", "1", "--workers", "1")
    assert models[0] != models[1] and models[0] == (tmp_path / "sentencepiece.model").read_bytes()
    other = run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1", check=False)
    assert other.returncode == 1 and f"error: {tmp_path} was made with other sample (see" in other.stderr
    refused = run_script("binarise.py", tmp_path, "--words", "--sample-megabytes", "1", check=False)
    assert refused.returncode == 2 and "--sample-megabytes acts only where subwords are learned" in refused.stderr


def test_subwords_are_learned_of_long_lines_too(tmp_path):
    (tmp_path / "text").mkdir()
    long = "a b c " * 1000 + "\N{LATIN SMALL LETTER O WITH DIAERESIS}"
    for name in (f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")):
        (tmp_path / "text" / name).write_text(f"{long}\n" * 20 if name.endswith("src") else "a b\n" * 20)
    run_script("binarise.py", tmp_path, "--vocabulary", "10", "--workers", "1")
    assert "100.0%" not in (said := (tmp_path / "preprocess.log").read_text()) and said.count("0.0% replaced") == 6
    assert "\N{LATIN SMALL LETTER O WITH DIAERESIS}" in (tmp_path / "data-bin/dict.src.txt").read_text()


def test_a_carriage_return_within_a_line_of_words_is_refused(tmp_path):
    (tmp_path / "text").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "text" / f"{split}.src").write_bytes(b"one\r\ntwo a\rb\n")
        (tmp_path / "text" / f"{split}.tgt").write_bytes(b"eins\nzwei\n")
    refused = run_script("binarise.py", tmp_path, "--words", "--workers", "1", check=False)
    assert refused.returncode == 1 and "train.src, line 2: a carriage return within the line" in refused.stderr
