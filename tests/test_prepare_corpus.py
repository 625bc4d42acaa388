"""scripts/prepare_corpus.py as a command: refusals, the data it makes, interruptions. Its steps: test_corpus.py."""

import gzip
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from fairseq.binarizer import BinarizeSummary, VocabularyDatasetBinarizer
from fairseq.data import Dictionary, data_utils
from helpers import REPOSITORY, run_module

SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))

from _corpus import sentences, split_of  # noqa: E402

WORDS = [f"{first}{last}" for first in ("ba", "de", "gi", "lo", "mu", "ne", "po", "ra", "si", "to")
         for last in ("n", "r", "sk", "ld", "mp", "ck", "s", "t")]
SMALL = ("--vocabulary", "60", "--piece-megabytes", "0.02", "--valid", "0.1", "--test", "0.05")


def make_text(documents, seed=0):
    """Documents of some sentences each, no two alike, one a line."""
    draw = random.Random(seed)
    return "".join(" ".join(" ".join(draw.choices(WORDS, k=draw.randint(5, 15))).capitalize() + "."
                            for _ in range(draw.randint(1, 6))) + "\n" for _ in range(documents))


def command(out, *options):
    return [sys.executable, str(SCRIPTS / "prepare_corpus.py"), "--out", str(out), *map(str, options)]


def run_script(out, *options, status=0):
    done = subprocess.run(command(out, *options), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- the command: refusals

def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("options, message", [
    (("--documents", "page"), "--documents: invalid choice: 'page'"),
    (("--workers", "0"), "--workers: 0 is not between 1 and 1024"),
    (("--valid", "0.9"), "--valid: 0.9 is not between 0 and 0.4"),
    (("--vocabulary", "many"), "--vocabulary: invalid whole number value: 'many'"),
    (("--shards", "2", "--shard-megabytes", "3"), "not allowed with argument"),
    (("--model", "x", "--vocabulary", "100"), "leave --vocabulary out"),
    (("--json-field", "text", "--documents", "blank"), "leave --documents blank out"),
])
def test_bad_options_are_named(tmp_path, options, message):
    assert message in run_script(tmp_path / "out", write(tmp_path / "a.txt", "A b.\n"), *options, status=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, message", [
    ("missing.txt", "missing.txt: there is no such file or folder"),
    ("*.none", "*.none: there is no such file or folder"),
    ("empty", "empty: no files"),
    ("", "lies in the input folder"),
])
def test_bad_inputs_are_named_in_one_line(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    said = run_script(tmp_path / "out", tmp_path / name if name else tmp_path, status=1)
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used_are_named_in_one_line(tmp_path):
    text, file = write(tmp_path / "a.txt", "A b.\n"), write(tmp_path / "file", "")
    said = run_script(file / "out", text, status=1)
    assert said == f"error: {file / 'out'}: Not a directory\n"
    assert "another run is at work" not in said
    assert "for a separator" in run_script(tmp_path / "a:b", text, status=1)
    (tmp_path / "out" / "data-bin").mkdir(parents=True)
    said = run_script(tmp_path / "out", text, status=1)
    assert "data-bin is there already" in said and said.count("\n") == 1


# ---- the command: whole runs

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(inputs, the folder that an uninterrupted run made of them, what it printed)."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = folder / "texts"
    (texts / "more").mkdir(parents=True)
    write(texts / "a.txt", make_text(1500, seed=1) + "Duplicate here. And more.\nDuplicate here.\n"
          + "".join(f"☃ {word}\n" for word in WORDS[:20]))
    write(texts / "more" / "b.txt.gz", gzip.compress(("Duplicate here.\n" + make_text(300, seed=2)).encode()))
    write(texts / ".hidden", b"\xff")
    options = (texts, "--shards", 2, *SMALL)
    return options, folder / "out", run_script(folder / "out", *options, "--workers", 2)


def load(folder, split, dictionary):
    return data_utils.load_indexed_dataset(str(folder / split), dictionary, dataset_impl=None)


def split_items(items):
    """Documents, as tuples of lines, of items between which empty ones end a document."""
    documents, document = [], []
    for item in items:
        if len(item) == 1:
            documents.append(tuple(document))
            document = []
        else:
            document.append(tuple(item.tolist()))
    assert not document
    return documents


@pytest.mark.slow
def test_the_data_is_what_fairseq_makes_of_the_text(corpus):
    (texts, *_), out, _ = corpus
    shards = [out / "data-bin" / name for name in ("shard0", "shard1")]
    dictionary = Dictionary.load(str(shards[0] / "dict.txt"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "sentencepiece.model"))
    binarizer = VocabularyDatasetBinarizer(dictionary)
    raw = (texts / "a.txt").read_text() + gzip.decompress((texts / "more" / "b.txt.gz").read_bytes()).decode()
    seen, expected = set(), {"train": [], "valid": [], "test": []}
    for text in raw.splitlines():
        lines = list(sentences(text))
        kept = [line for line in lines if line not in seen and not seen.add(line)]
        if kept:
            expected[split_of("\n".join(lines).encode(), 0.1, 0.05)].append(tuple(
                tuple(binarizer.binarize_line(" ".join(model.encode(line, out_type=str)), BinarizeSummary()).tolist())
                for line in kept))
    found = {"train": [load(shard, "train", dictionary) for shard in shards],
             **{split: [load(shards[0], split, dictionary)] for split in ("valid", "test")}}
    for split, sets in found.items():
        documents = [document for items in sets for document in split_items([items[i] for i in range(len(items))])]
        assert sorted(documents) == sorted(expected[split]), split
    assert not (shards[1] / "valid.idx").exists()
    tokens = np.concatenate([item for items in found["train"] for item in items])
    counts = np.bincount(tokens, minlength=len(dictionary))
    assert dictionary.count[4:] == counts[4:].tolist() and counts[dictionary.unk()] > 0
    assert "<mask>" in dictionary and dictionary.index("<mask>") != dictionary.unk()


@pytest.mark.slow
def test_the_report_counts_what_there_is(corpus):
    (texts, *_), out, said = corpus
    report, splits = json.loads((out / "corpus.json").read_text())["report"], ("train", "valid", "test")
    assert report["documents"] == 1823 and report["duplicates"] == 2
    assert report["documents"] - 2 == sum(report[split]["documents"] for split in splits)
    assert report["lines"] - 2 == sum(report[split]["lines"] for split in splits)
    assert "1,823 documents" in said and "2 duplicates" in said and "MB/s" in said
    assert not (out / "corpus.work").exists()


@pytest.mark.slow
def test_fairseq_trains_on_it_with_the_commands_shown(corpus, tmp_path):
    lines = [shlex.split(line) for line in corpus[2].splitlines() if line.startswith("fairseq-train")]
    assert [line[line.index("--task") + 1] for line in lines] == ["cpd_pretrain", "language_modeling"]
    small = {"genie_base": ["genie_tiny"], "transformer_lm": ["transformer_lm", "--decoder-layers", "1"]}
    for i, words in enumerate(lines):
        if "--user-dir" in words:
            del words[words.index("--user-dir"):][:2]
        arguments = [part for word in words[1:] for part in small.get(word, [word])]
        saved = tmp_path / str(i)
        run_module("train", *arguments, "--max-tokens", 600, "--max-update", 2, "--cpu", "--save-dir", saved)
        assert (saved / "checkpoint_last.pt").exists()


@pytest.mark.slow
def test_workers_do_not_change_the_bytes_and_a_second_run_does_nothing(corpus, tmp_path):
    options, out, _ = corpus
    run_script(tmp_path / "one", *options, "--workers", 1)
    assert contents(tmp_path / "one" / "data-bin") == contents(out / "data-bin")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    run_script(tmp_path / "one", *options, "--workers", 2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    said = run_script(tmp_path / "one", *options, "--vocabulary", 61, status=1)
    assert "--vocabulary changed from 60 to 61" in said and "delete" in said and said.count("\n") == 1


MOMENTS = ("clean/[0-9]*/result.json", "duplicates/[0-9]*/result.json", "sample/[0-9]*/result.json", ".model.tmp",
           "binary/[0-9]*/result.json", "join/*")


def interrupt(words, out, moment, number):
    """Start the command, send its process a signal once a path of the work folder is there; the ended process."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any((out / "corpus.work").glob(moment)):
        time.sleep(0.0005)
    process.send_signal(number)
    process.said = process.communicate(timeout=60)[1]
    return process


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_bytes(corpus, tmp_path):
    options, expected, _ = corpus
    out, killed, cleaned = tmp_path / "out", [], {}
    for moment in MOMENTS:
        process = interrupt(command(out, *options, "--workers", 2), out, moment, signal.SIGKILL)
        killed.append(process.returncode == -signal.SIGKILL)
        assert not (out / "corpus.json").exists() or not killed[-1]
        times = {path: path.stat().st_mtime_ns for path in (out / "corpus.work").glob("clean/[0-9]*/result.json")}
        assert times.items() >= cleaned.items() or not killed[-1]
        cleaned = times
    assert sum(killed) >= 5 and cleaned
    assert "--max-line changed from 10000 to 9" in run_script(out, *options, "--max-line", 9, status=1)
    run_script(out, *options, "--workers", 1)
    assert contents(out / "data-bin") == contents(expected / "data-bin")
    assert (out / "sentencepiece.model").read_bytes() == (expected / "sentencepiece.model").read_bytes()


@pytest.mark.slow
def test_ctrl_c_says_one_line_and_leaves_no_process(corpus, tmp_path):
    out = tmp_path / "out"
    for moment in ("clean/[0-9]*/result.json", ".model.tmp"):
        process = interrupt(command(out, *corpus[0], "--workers", 2), out, moment, signal.SIGINT)
        if process.returncode == 0:
            continue  # it was done before the signal came
        assert process.returncode == 130
        assert process.said.splitlines()[-1] == "error: interrupted; run the same command again"
        assert "Traceback" not in process.said
        users = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(out).encode() in read_proc(path)]
        assert not users


def read_proc(path):
    try:
        return path.read_bytes()
    except OSError:     # it has ended meanwhile
        return b""


@pytest.mark.slow
def test_two_runs_at_once_are_refused(corpus, tmp_path):
    out = tmp_path / "out"
    words = command(out, *corpus[0], "--workers", 1)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "corpus.work").exists():
        time.sleep(0.01)
    assert "another run is at work" in run_script(out, *corpus[0], status=1)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_broken_line_is_named_or_skipped(tmp_path):
    lines = make_text(400).encode().splitlines(keepends=True)
    lines[311:311] = [b"bad \xe9 byte\n"]
    text = write(tmp_path / "a.txt", b"".join(lines))
    said = run_script(tmp_path / "out", text, *SMALL, status=1)
    assert said.splitlines()[-1].startswith(f"error: {text}:312: not UTF-8 (byte 5 of the line is 0xe9)")
    assert not (tmp_path / "out" / "data-bin").exists() and "Traceback" not in said
    said = run_script(tmp_path / "out", text, *SMALL, "--skip-broken")
    assert "1 broken lines" in said and f"left out: {text}:312" in said


@pytest.mark.slow
@pytest.mark.parametrize("raw, name, message", [
    (b"", "a.txt", "the input files hold no text"),
    (b" \n\x00\n", "a.txt", "the input files hold no text"),
    (b"A b.\n", "a.txt", "--vocabulary 60 is more than this text yields; give "),
    (gzip.compress(b"A b.\n" * 9999)[:-20], "a.txt.gz", "a.txt.gz cannot be unpacked"),
], ids=("empty", "white", "little", "truncated"))
def test_text_that_will_not_do_is_refused_in_one_line(tmp_path, raw, name, message):
    said = run_script(tmp_path / "out", write(tmp_path / name, raw), *SMALL, status=1)
    assert message in said.splitlines()[-1] and "Traceback" not in said


@pytest.mark.slow
def test_options_of_stages_to_come_may_change(tmp_path):
    text, options = write(tmp_path / "a.txt", make_text(300)), ("--valid", "0", "--test", "0", "--workers", "1")
    out = tmp_path / "out"
    assert "more than this text yields" in run_script(out, text, *options, "--vocabulary", 9000, status=1)
    said = run_script(out, text, *options, "--vocabulary", 60, "--shards", 301, status=1)
    assert "301 shards are too many" in said.splitlines()[-1]
    assert "--vocabulary changed from 60 to 61" in run_script(out, text, *options, "--vocabulary", 61, status=1)
    said = run_script(out, text, *options, "--vocabulary", 60, "--shards", 3)
    assert "--disable-validation" in said and len(list((out / "data-bin").iterdir())) == 3
    run_script(tmp_path / "at-once", text, *options, "--vocabulary", 60, "--shards", 3)
    assert contents(out / "data-bin") == contents(tmp_path / "at-once" / "data-bin")


@pytest.mark.slow
def test_paragraphs_json_and_a_given_model(corpus, tmp_path):
    texts = make_text(200, seed=4).splitlines()
    records = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    paragraphs = write(tmp_path / "a.txt", "\n\n".join(texts) + "\n")
    model = corpus[1] / "sentencepiece.model"
    common = ("--model", model, "--deduplicate", "documents", "--valid", "0.1", "--workers", "1")
    run_script(tmp_path / "json", records, "--json-field", "text", *common)
    run_script(tmp_path / "blank", paragraphs, "--documents", "blank", *common)
    assert contents(tmp_path / "json" / "data-bin") == contents(tmp_path / "blank" / "data-bin")
    run_script(tmp_path / "whole", records, "--json-field", "text", "--no-segment", *common)
    shard = tmp_path / "whole" / "data-bin" / "shard0"
    dictionary = Dictionary.load(str(shard / "dict.txt"))
    items = [load(shard, split, dictionary) for split in ("train", "valid")]
    assert sum(map(len, items)) in range(195, 201) and min(min(each.sizes) for each in items) > 1
    shutil.rmtree(tmp_path / "whole" / "data-bin")
    said = run_script(tmp_path / "whole", records, "--json-field", "text", "--no-segment", *common, status=1)
    assert "data-bin is gone" in said
    bad = write(tmp_path / "bad.model", "no model")
    assert "bad.model is no model of sentencepiece" in run_script(tmp_path / "x", records, "--model", bad, status=1)
