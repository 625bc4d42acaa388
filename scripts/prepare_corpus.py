#!/usr/bin/env python3
"""Clean, segment and deduplicate text, train sentencepiece, and binarise it for fairseq, in parallel.

    python scripts/prepare_corpus.py --out runs/corpus texts/ more/*.txt.gz
    python scripts/prepare_corpus.py --out runs/corpus --json-field text --shards 8 'crawl/**/*.jsonl.xz'

writes into --out: data-bin/shard0, shard1, ... (train.bin, .idx and dict.txt; valid and test in shard0),
sentencepiece.model, and corpus.json with the counts. Interrupted in whatever way, the same command
continues where it was. The result depends neither on interruptions nor on --workers.
"""

import argparse
import fcntl
import glob
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import _environment  # noqa: F401  says what this Python lacks
from _corpus import SPLITS, Rules
from _data import DataError, progress, run, sha256, write_files

SCRIPTS = Path(__file__).resolve().parent
WORK, MANIFEST, REPORT = "corpus.work", "manifest.json", "corpus.json"
# Folders of the stages that depend on an option: until one is there, the option may change. binary uses up the text.
SAMPLE, MODEL, JOIN = ("sample", "model", "binary"), ("model", "binary"), ("join",)
LATE = {"--sample-lines": SAMPLE, "--sample-megabytes": SAMPLE, "--vocabulary": MODEL, "--coverage": MODEL,
        "--model": MODEL, "--shards": JOIN, "--shard-megabytes": JOIN}
EPILOG = """
Documents. --documents line: each line is one; blank: empty lines end them, and lines end sentences unless they
are --wrapped. JSON lines (--json-field): each object is one. A document of more than 4 million characters is cut.
In the result each sentence is an item, and an empty item follows each document (--sample-break-mode complete_doc,
--document-break blank); with --documents line --no-segment each item is a document.

Sentences end after . ! ? ... and closing quotes or brackets, before a space, unless a small letter follows, or the
full stop belongs to a title (Mr.), an initial (J.), a word with dots (e.g.), or a word such as No. before a number;
and after the full stops of Chinese and Japanese.

Lines are brought to Unicode NFC; control characters, soft hyphens, zero-width spaces and byte order marks go, and
each run of white space becomes one space.

Duplicates. Of equal lines (sentences, when segmented) in all files together the first is kept, by digests of 8
bytes: of a thousand million different lines about 3 in 100 corpora lose one by accident. Digests are kept on disk
in sorted files and compared in ranges, 48 bytes x lines / ranges of memory in each worker; there are as many
ranges as keep that below 128 MB.

Memory, whatever the size of the files: 0.3 GB, 0.2 GB for each worker, and while sentencepiece is trained 24 bytes
for each character of the sample, 0.8 GB by default. Disk: about 1.2 times the text, the result being 0.4 times.
"""


# ---- inputs, and what a folder was begun with

def find_inputs(words: list[str], out: Path) -> list[Path]:
    """The files that words name: files, folders with everything in them that is not hidden, patterns."""
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        matches = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(word, recursive=True))]
        if not matches:
            raise DataError(f"{word}: there is no such file or folder; name what exists")
        for match in matches:
            files = [match]
            if match.is_dir():
                if out.resolve().is_relative_to(match.resolve()):
                    raise DataError(f"--out {out} lies in the input folder {match}; name another one")
                files = [file for file in sorted(match.rglob("*")) if file.is_file()
                         and not any(part.startswith(".") for part in file.relative_to(match).parts)]
            found.update((file.resolve(), None) for file in files)
    if not found:
        raise DataError(f"{' '.join(words)}: no files; name a folder that has some")
    return list(found)


def fingerprint(arguments: argparse.Namespace, inputs: list[Path]) -> dict[str, Any]:
    """All that the result depends on, by the words with which a difference is reported."""
    kept = {"--" + name.replace("_", "-"): value for name, value in vars(arguments).items()
            if name not in ("inputs", "out", "workers", "model")}
    stats = [(str(path), path.stat()) for path in inputs]
    scripts = [SCRIPTS / name for name in ("_corpus.py", "_corpus_data.py", "_corpus_stages.py")]
    return {**kept, "--model": sha256(arguments.model) if arguments.model else None,
            "input files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "the program": sha256(*scripts)}


def check_same(path: Path, now: dict[str, Any], remedy: str) -> dict:
    """The JSON file of an earlier run into this folder.

    Raises:
        DataError: that run was another one in what it has done already, or the file is damaged.
    """
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        then = earlier["options"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; delete {remedy}") from None
    for key, value in now.items():
        if then.get(key) == value or (path.name == MANIFEST and may_change(path.parent, key, value)):
            continue
        change = f" from {then.get(key)} to {value}" if key.startswith("--") and key != "--model" else ""
        raise DataError(f"{key} changed{change} since {path.parent} was begun: give what it was begun with, name "
                        f"another --out, or delete {remedy}")
    return earlier


def may_change(work: Path, key: str, value: Any) -> bool:
    """Whether nothing that is done depends on this option; pieces without broken lines are the same either way."""
    return value is True if key == "--skip-broken" else key in LATE and not any(
        (work / stage).exists() for stage in LATE[key])


def take_folder(out: Path) -> int:
    """Make a folder and lock it against other runs until this process ends; returns the open lock."""
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY)
    for _ in range(20):         # the processes of a run that was killed take a moment to end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(0.1)
    raise DataError(f"{out}: another run is at work there; wait for it, or name another --out")


def begin(out: Path, options: dict[str, Any]) -> dict | None:
    """Make a folder ready: the report if it is finished, None if there is work to do.

    Raises:
        DataError: it holds something of another run, or of somebody else.
    """
    work, report, binary, model = (out / name for name in (WORK, REPORT, "data-bin", "sentencepiece.model"))
    if report.exists():
        finished = check_same(report, options, f"{report} and {binary}")
        if not binary.is_dir():
            raise DataError(f"{binary} is gone; delete {report} to make it again")
        shutil.rmtree(work, ignore_errors=True)
        return finished
    if (work / MANIFEST).exists():
        check_same(work / MANIFEST, options, str(work) + (f" and {binary}" if binary.exists() else ""))
        progress(f"continuing in {out}")
        write_files(work, {MANIFEST: [json.dumps({"options": options})]})
        return None
    others = [path for path in (binary, model, *work.glob("[!.]*")) if path.exists()]
    if model in others and options["--model"] == sha256(model):
        others.remove(model)
    if others:
        raise DataError(f"{others[0]} is there already and not of an unfinished run; delete it or name another --out")
    write_files(work, {MANIFEST: [json.dumps({"options": options})]})
    return None


# ---- the whole

def prepare(arguments: argparse.Namespace) -> dict:
    """Build the corpus of these arguments, or what is left of it; returns the report."""
    out = arguments.out
    if os.pathsep in str(out.resolve()):
        raise DataError(f"--out {out}: fairseq takes {os.pathsep!r} in a path for a separator; name another one")
    inputs = find_inputs(arguments.inputs, out)
    options = fingerprint(arguments, inputs)
    lock = take_folder(out)
    try:
        if finished := begin(out, options):
            progress(f"{out} is already prepared")
            return finished["report"]
        began = time.monotonic()
        from _corpus_stages import build  # here, for it takes seconds to import fairseq

        report = build(out, out / WORK, arguments, make_rules(arguments), inputs)
        report["seconds of the last run"] = round(time.monotonic() - began, 1)
        write_files(out, {REPORT: json.dumps({"report": report, "options": options}, indent=1).split("\n")})
        shutil.rmtree(out / WORK)
        return report
    finally:
        os.close(lock)


def make_rules(arguments: argparse.Namespace) -> Rules:
    return Rules(arguments.documents, arguments.json_field, not arguments.no_segment, arguments.wrapped,
                 arguments.max_line, arguments.long_lines, arguments.skip_broken, arguments.lowercase)


def show(report: dict, out: Path, rules: Rules) -> None:
    """Print the counts, and the commands that use the corpus."""
    size, seconds = report["bytes"] / 1e6, report["seconds of the last run"]
    print(f"{size:,.1f} MB of text, {report['documents']:,} documents, {report['lines']:,} lines; left out: "
          f"{report['duplicates']:,} duplicates, {report['broken']:,} broken lines; "
          f"{report['over-long']:,} over-long lines")
    for split in SPLITS:
        print("{:5} {documents:,} documents, {lines:,} lines, {tokens:,} tokens".format(split, **report[split]))
    print(f"{report['unknown']:,} tokens of train are unknown; dictionary of {report['dictionary']:,} words")
    print(f"{seconds:,.1f} s in the last run" + (
        "" if report["continued"] else f", {size / seconds:,.1f} MB/s with {report['workers']} workers"))
    for place in report["first broken"]:
        print(f"left out: {place}")
    data = shlex.quote(os.pathsep.join(str(out / "data-bin" / f"shard{i}") for i in range(report["shards"])))
    unchecked = "" if report["valid"]["documents"] else " --disable-validation"
    if unchecked:
        print("no document came to valid: give a larger --valid, or train without validation")
    print(f"fairseq-train {data} --user-dir diffusion_fairseq --task cpd_pretrain --document-break "
          f"{'blank' if rules.has_empty_lines else 'line'} --arch genie_base --criterion diffusion_vlb "
          f"--optimizer adam --lr 1e-4 --max-tokens 8192{unchecked}")
    print(f"fairseq-train {data} --task language_modeling --arch transformer_lm --sample-break-mode "
          f"{'complete_doc' if rules.has_empty_lines else 'eos'} --tokens-per-sample 512 --optimizer adam --lr 5e-4 "
          f"--max-tokens 8192{unchecked}")


def ranged(kind: type, low: float, high: float = float("inf")):
    """A parser of numbers from low to high."""
    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}" if high < float("inf")
                                             else f"{text} is less than {low}")
        return value
    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="TEXT", help="files, plain, .gz or .xz; folders of them; patterns in quotes")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the result, made when absent")
    add("--documents", choices=("line", "blank"), default="line", help="what a document is, see below (default: line)")
    add("--json-field", metavar="NAME", help="the files are JSON lines: take the text of this field")
    add("--no-segment", action="store_true", help="keep lines as they are, don't split them into sentences")
    add("--wrapped", action="store_true", help="join the lines of a document before it is split into sentences")
    add("--lowercase", action="store_true", help="no capitals, as in GENIE: for a model that is to be fine-tuned on "
        "lower-cased text, which the summarisation recipes make")
    add("--max-line", type=ranged(int, 0), default=10_000, metavar="N",
        help="characters of the longest line (sentence, when segmented); 0: no limit (default: 10000)")
    add("--long-lines", choices=("cut", "drop"), default="cut", help="what to do with longer ones (default: cut)")
    add("--skip-broken", action="store_true", help="leave out and count lines that are not UTF-8, or lack the JSON "
        "field, instead of stopping at the first one")
    add("--deduplicate", choices=("lines", "documents", "none"), default="lines",
        help="what to keep once only (default: lines)")
    for split in ("valid", "test"):
        add(f"--{split}", type=ranged(float, 0, 0.4), default=0.001, metavar="SHARE",
            help=f"share of the documents that is {split}, drawn by their text (default: 0.001)")
    shards = parser.add_mutually_exclusive_group()
    shards.add_argument("--shards", type=ranged(int, 1), default=1, metavar="N", help="parts of train (default: 1)")
    shards.add_argument("--shard-megabytes", type=ranged(float, 0.001), metavar="MB", help="size of a train.bin, "
                        "instead of their number")
    add("--model", type=Path, metavar="FILE", help="sentencepiece model to use instead of training one")
    add("--vocabulary", type=ranged(int, 8), metavar="N", help="pieces of the model to train (default: 32000)")
    add("--coverage", type=ranged(float, 0.9, 1), default=0.9995, metavar="SHARE",
        help="share of the characters that get pieces of their own (default: 0.9995)")
    add("--sample-lines", type=ranged(int, 1), default=1_000_000, metavar="N",
        help="lines to train the model on, about (default: 1000000)")
    add("--sample-megabytes", type=ranged(float, 0.001), default=32, metavar="MB", help="text to train the model on, "
        "about, if the lines are more; takes 24 bytes of memory for each character (default: 32)")
    add("--piece-megabytes", type=ranged(float, 0.001, 1000), default=16, metavar="MB",
        help="of a plain file, cleaned at a time: what an interruption loses at most (default: 16); "
             "compressed files are cleaned whole, one process a file")
    add("--workers", type=ranged(int, 1, 1024), default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes (default: the cores); training sentencepiece takes 4 threads, always")
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.json_field is not None and arguments.documents == "blank":
        parser.error("--json-field takes each line for a document: leave --documents blank out")
    if arguments.model and arguments.vocabulary:
        parser.error("--model has its vocabulary: leave --vocabulary out")
    arguments.vocabulary = arguments.vocabulary or 32_000
    show(prepare(arguments), arguments.out, make_rules(arguments))


if __name__ == "__main__":
    sys.exit(run(main))
