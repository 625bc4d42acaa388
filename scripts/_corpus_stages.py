"""The stages of prepare_corpus.py, in the process that the user started; the work is in _corpus_data.py."""

import argparse
import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _corpus import COMPRESSED, SPLITS, BrokenLine, Rules, piece_ends
from _corpus_data import (
    BYTES_PER_DIGEST,
    Part,
    Shares,
    clean_piece,
    encode_part,
    find_duplicates,
    join,
    load_model,
    plan_shards,
    save_dictionary,
    take_sample,
    train_model,
)
from _data import DataError, progress
from _workers import Task, Workers

BUCKET_BYTES = 128 << 20        # memory of a worker that looks for duplicates
MIN_BUCKETS = 8
BROKEN_NAMED = 10               # lines that were skipped, in the report


class Corpus(NamedTuple):
    """A run: its folders, its arguments, and the processes that do the work."""

    out: Path
    work: Path
    arguments: argparse.Namespace
    rules: Rules
    workers: Workers


def plan_pieces(inputs: list[Path], rules: Rules, piece: int) -> list[tuple[Path, int, int | None, int]]:
    """(file, start, length or None for all, bytes on disk) of the pieces that are cleaned one by one."""
    pieces = []
    for path in inputs:
        size = path.stat().st_size
        if path.suffix in COMPRESSED:
            pieces.append((path, 0, None, size))
            continue
        start = 0
        for end in piece_ends(path, size, piece, rules.documents == "blank") if size else ():
            pieces.append((path, start, end - start, end - start))
            start = end
    return pieces


def clean(corpus: Corpus, inputs: list[Path]) -> tuple[list, dict[str, int], list[str]]:
    """Clean all files: (parts, counts, "file:line" of the first lines that were skipped)."""
    pieces = plan_pieces(inputs, corpus.rules, int(corpus.arguments.piece_megabytes * 1e6))
    tasks = [Task(corpus.work / "clean" / f"{i:06}", size, clean_piece,
                  (str(path), start, length, corpus.rules, corpus.arguments.deduplicate))
             for i, (path, start, length, size) in enumerate(pieces)]
    parts, broken, lines, before = [], [], 0, None
    totals = {"bytes": 0, "documents": 0, "lines": 0, "over-long": 0, "broken": 0}
    done = corpus.workers.map("clean", tasks)
    for task, (path, *_) in zip(tasks, pieces):
        if path != before:
            lines, before = 0, path
        try:
            result = next(done)
        except BrokenLine as error:
            raise DataError(f"{path}:{lines + error.number}: {error.reason}, or leave such lines out with "
                            "--skip-broken") from None
        broken += [f"{path}:{lines + number}" for number in result["broken"][:BROKEN_NAMED - len(broken)]]
        totals["broken"] += len(result["broken"])
        lines += result["raw_lines"]
        totals["bytes"] += result["raw_bytes"]
        totals["over-long"] += result["long"]
        for part in result["parts"]:
            totals["documents"] += part["documents"]
            totals["lines"] += part["lines"]
            part["stem"] = str(task.folder / part["stem"])
            parts.append(Part(index=len(parts), **part))
    next(done, None)            # lets the stage say how fast it was
    if not parts:
        raise DataError("the input files hold no text; name others")
    return parts, totals, broken


def deduplicate(corpus: Corpus, parts: list) -> tuple[list[str], int]:
    """(files of duplicates, how many there are)."""
    digests = sum(part.digests for part in parts)
    if not digests:
        return [], 0
    # No function of the workers, or a rerun with others would mix two partitions.
    buckets = max(MIN_BUCKETS, -(-digests * BYTES_PER_DIGEST // BUCKET_BYTES))
    tasks = [Task(corpus.work / "duplicates" / f"{i:06}", digests * 12 // buckets, find_duplicates, (parts, i, buckets))
             for i in range(buckets)]
    count = sum(result["duplicates"] for result in corpus.workers.map("deduplicate", tasks))
    return [str(task.folder / "codes.npy") for task in tasks], count


def get_model(corpus: Corpus, common: list[tuple], lines: int) -> Path:
    """The sentencepiece model: --model's, or one that is trained on a sample of the training lines."""
    arguments, model = corpus.arguments, corpus.work / "sentencepiece.model"
    if arguments.model:
        load_model(str(arguments.model))
        shutil.copyfile(arguments.model, model)
        return model
    size = sum(part.bytes for part, *_ in common)
    share = min(1.0, arguments.sample_lines / lines, arguments.sample_megabytes * 1e6 / size)
    tasks = [Task(corpus.work / "sample" / f"{part.index:06}", part.bytes, take_sample, (part, *rest, share))
             for part, *rest in common]
    count = sum(result["lines"] for result in corpus.workers.map("sample", tasks))
    if not count:
        raise DataError("no line is left to train sentencepiece on; give more text or a smaller --valid and --test")
    task = Task(corpus.work / "model", sum(os.path.getsize(task.folder / "sample.txt") for task in tasks), train_model,
                ([str(task.folder / "sample.txt") for task in tasks], arguments.vocabulary, arguments.coverage))
    if not task.folder.exists():
        progress(f"training sentencepiece on {count:,} lines")
    list(corpus.workers.map("sentencepiece", [task]))
    return task.folder / "sentencepiece.model"


def binarise(corpus: Corpus, common: list[tuple], model: Path) -> tuple[dict[str, list], dict[str, dict], int]:
    """Binarise all parts: ({split: [(path without an ending, items, tokens)]}, {split: counts}, unknown tokens)."""
    tasks = [Task(corpus.work / "binary" / f"{part.index:06}", part.bytes, encode_part,
                  (part, *rest, str(model), corpus.rules.has_empty_lines)) for part, *rest in common]
    pieces: dict[str, list] = {split: [] for split in SPLITS}
    totals = {split: dict.fromkeys(("documents", "lines", "tokens"), 0) for split in SPLITS}
    unknown, occurrences = 0, 0
    for result, task, (part, *_) in zip(corpus.workers.map("binarise", tasks), tasks, common):
        # No later step reads it, and the result needs the room.
        Path(part.stem + ".txt").unlink(missing_ok=True)
        unknown += result["unknown"]
        occurrences = occurrences + np.load(task.folder / "counts.npy")
        for split in SPLITS:
            if found := result.get(split):
                pieces[split].append((str(task.folder / split), found["items"], found["tokens"]))
                for key in totals[split]:
                    totals[split][key] += found[key]
    if not pieces["train"]:
        raise DataError("no document is left for train; give more text or a smaller --valid and --test")
    save_dictionary(corpus.work / "dict.txt", str(model), occurrences)
    return pieces, totals, unknown


def make_shards(corpus: Corpus, pieces: dict[str, list]) -> int:
    """Join binarised parts into --out's data-bin, which appears at once and whole; returns the number of shards."""
    width = os.path.getsize(pieces["train"][0][0] + ".bin") // pieces["train"][0][2]
    shards = corpus.arguments.shards
    if corpus.arguments.shard_megabytes:
        shards = max(1, round(width * sum(tokens for *_, tokens in pieces["train"])
                              / (corpus.arguments.shard_megabytes * 1e6)))
    # An epoch sees one shard: mixed, each of them has something of every input.
    mixed = [pieces["train"][i] for i in sorted(range(len(pieces["train"])), key=lambda i: hashlib.blake2b(
        str(i).encode()).digest())]
    plan = [(f"shard{i}", "train", ranges)
            for i, ranges in enumerate(plan_shards(mixed, shards, corpus.rules.has_empty_lines))]
    plan += [("shard0", split, [(prefix, 0, items) for prefix, items, _ in pieces[split]])
             for split in ("valid", "test") if pieces[split]]
    tokens = {prefix: count / items for split in SPLITS for prefix, items, count in pieces[split]}
    tasks = [Task(corpus.work / "join" / f"{shard}.{split}",
                  int(sum((last - first) * tokens[prefix] for prefix, first, last in ranges)) * width, join,
                  (split, ranges)) for shard, split, ranges in plan]
    if (corpus.out / "data-bin").exists():
        return shards
    list(corpus.workers.map("join", tasks))
    binary = corpus.work / "data-bin"
    for task, (shard, split, _) in zip(tasks, plan):
        (binary / shard).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus.work / "dict.txt", binary / shard / "dict.txt")
        for ending in ("bin", "idx"):
            if (task.folder / f"{split}.{ending}").exists():        # else an earlier run has moved it
                os.replace(task.folder / f"{split}.{ending}", binary / shard / f"{split}.{ending}")
    os.rename(binary, corpus.out / "data-bin")
    return shards


def build(out: Path, work: Path, arguments: argparse.Namespace, rules: Rules, inputs: list[Path]) -> dict:
    """Go through all stages, of which those that are done take no time; returns the counts of the whole.

    Raises:
        DataError: a line cannot be read, or the text is too little for the options.
    """
    continued = (work / "clean").exists()
    with Workers(arguments.workers) as workers:
        corpus = Corpus(out, work, arguments, rules, workers)
        parts, report, broken = clean(corpus, inputs)
        files, duplicates = deduplicate(corpus, parts)
        shares = Shares(arguments.valid, arguments.test)
        common = [(part, arguments.deduplicate, files, shares) for part in parts]
        model = get_model(corpus, common, report["lines"])
        pieces, totals, unknown = binarise(corpus, common, model)
        shards = make_shards(corpus, pieces)
    shutil.copyfile(model, corpus.work / "copy.tmp")
    os.replace(corpus.work / "copy.tmp", out / "sentencepiece.model")
    return {**report, "duplicates": duplicates, "first broken": broken, **totals, "unknown": unknown,
            "dictionary": len(load_model(str(model))[1]), "shards": shards, "continued": continued,
            "workers": arguments.workers}
