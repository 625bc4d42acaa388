"""The steps of prepare_corpus.py that run in worker processes, one piece of the corpus each.

Every step writes its files into an empty folder and returns its counts, as JSON can hold them. A "part" is a clean
text of some PART bytes: lines, and an empty line after each document.
"""

import io
import logging
import re
import struct
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Iterator, NamedTuple, Sequence

import numpy as np
import sentencepiece
import torch

logging.disable(logging.INFO)   # fairseq names, while it is imported, what is not installed
from _corpus import SPLITS, Documents, Rules, digest, fraction, read_piece, split_of, tidy  # noqa: E402
from _data import MASK, DataError  # noqa: E402
from fairseq.data import Dictionary, indexed_dataset  # noqa: E402

PART = 1 << 25              # bytes of text after which a part ends
TRAINING_THREADS = 4        # a constant: the sums of sentencepiece, and so its model, depend on it
BATCH = 1000                # lines that are encoded at once
INDEX_HEADER = 18           # bytes of fairseq's .idx before the number of items: magic, version, type
BYTES_PER_DIGEST = 48       # memory of find_duplicates: digests, codes, their order, sorted copies
END = -1                    # stands for the end of a sentence among the ids of sentencepiece


class Shares(NamedTuple):
    """Shares of the documents that are held out."""

    valid: float
    test: float


class Part(NamedTuple):
    """A part of the clean text: its path without an ending, its place among all parts, and what it holds."""

    stem: str
    index: int
    documents: int
    lines: int
    bytes: int
    digests: int


# ---- clean

def clean_piece(folder: Path, path: str, start: int, length: int | None, rules: Rules, unit: str) -> dict:
    """Clean a piece of a file (length None: all of it) into parts, with the digests of their `unit`s.

    Raises:
        BrokenLine: a line of the piece cannot be read, and rules.skip_broken is not set.
        DataError: the file cannot be unpacked.
    """
    found = Documents(read_piece(Path(path), start, length), rules)
    parts, long = [], [0]

    def kept() -> Iterator[list[bytes]]:
        for document in found:
            lines, count = tidy(document, rules)
            long[0] += count
            if lines:
                yield [line.encode("utf-8") for line in lines]

    documents = kept()
    while part := write_part(folder / f"{len(parts):04}", documents, unit):
        parts.append(part)
    return {"raw_lines": found.number, "raw_bytes": found.bytes, "broken": found.broken, "long": long[0],
            "parts": parts}


def write_part(stem: Path, documents: Iterator[list[bytes]], unit: str) -> dict:
    """Write the next PART bytes of documents and their sorted digests, with the place of each; {} at the end.

    Digests are 8 bytes and places 4, in units of lines, documents or (unit "none") nothing.
    """
    text, digests, count, lines = bytearray(), bytearray(), 0, 0
    for document in documents:
        block = b"\n".join(document)
        text += block + b"\n\n"
        if unit != "none":
            digests += b"".join(map(digest, document if unit == "lines" else [block]))
        count, lines = count + 1, lines + len(document)
        if len(text) >= PART:
            break
    if not count:
        return {}
    stem.with_suffix(".txt").write_bytes(text)
    values = np.frombuffer(digests, dtype="<u8")
    order = np.argsort(values, kind="stable")
    values[order].tofile(stem.with_suffix(".digests"))
    order.astype("<u4").tofile(stem.with_suffix(".places"))
    return {"stem": stem.name, "documents": count, "lines": lines, "bytes": len(text), "digests": len(values)}


# ---- duplicates

def find_duplicates(folder: Path, parts: Sequence[Part], bucket: int, buckets: int) -> dict:
    """Find the units whose digest an earlier one has too, among the digests of one bucket out of `buckets`.

    Writes codes.npy: (part << 32) + place of each, ascending. Takes BYTES_PER_DIGEST for each digest of the bucket.
    """
    values, codes = [], []
    for part in parts:
        digests = np.memmap(part.stem + ".digests", dtype="<u8", mode="r")
        low, high = (digests.searchsorted(np.uint64((b << 64) // buckets)) if b < buckets else len(digests)
                     for b in (bucket, bucket + 1))
        values.append(np.array(digests[low:high]))
        places = np.fromfile(part.stem + ".places", dtype="<u4", count=high - low, offset=4 * int(low))
        codes.append(places.astype(np.int64) + (part.index << 32))
    digests, codes = np.concatenate(values), np.concatenate(codes)
    del values
    order = np.argsort(digests, kind="stable")      # of equal digests the earliest stays first
    digests = digests[order]
    repeated = codes[order[1:][digests[1:] == digests[:-1]]]
    repeated.sort()
    np.save(folder / "codes.npy", repeated)
    return {"duplicates": len(repeated)}


def kept_documents(part: Part, unit: str, duplicates: Sequence[str], shares: Shares) -> Iterator[tuple]:
    """(split, lines as bytes) of the documents of a part of which duplicates have left anything."""
    marks = np.zeros(part.digests, dtype=np.uint8)
    for file in duplicates:
        codes = np.load(file, mmap_mode="r")
        low, high = codes.searchsorted([part.index << 32, (part.index + 1) << 32])
        marks[codes[low:high] & 0xFFFFFFFF] = 1
    dropped, place = marks.tobytes(), 0
    for lines in read_documents(Path(part.stem + ".txt")):
        split = split_of(b"\n".join(lines), shares.valid, shares.test)
        if unit == "lines":
            start, place = place, place + len(lines)
            if dropped.find(1, start, place) >= 0:
                lines = [line for line, mark in zip(lines, dropped[start:place]) if not mark]
        elif unit == "documents":
            place += 1
            if dropped[place - 1]:
                continue
        if lines:
            yield split, lines


def read_documents(path: Path) -> Iterator[list[bytes]]:
    """The documents of a part, as lists of lines."""
    document = []
    with open(path, "rb") as stream:
        for line in stream:
            if line == b"\n":
                yield document
                document = []
            else:
                document.append(line[:-1])


# ---- subwords

def take_sample(folder: Path, part: Part, unit: str, duplicates: Sequence[str], shares: Shares, share: float) -> dict:
    """Write a share of the training lines of a part into sample.txt; which ones depends on their text alone."""
    count = 0
    with open(folder / "sample.txt", "wb") as stream:
        for split, lines in kept_documents(part, unit, duplicates, shares):
            for line in lines if split == "train" else ():
                if fraction(line, b"sample") < share:
                    stream.write(line + b"\n")
                    count += 1
    return {"lines": count}


def train_model(folder: Path, samples: Sequence[str], vocabulary: int, coverage: float) -> dict:
    """Train sentencepiece on sample files; writes sentencepiece.model.

    Raises:
        DataError: the text has too few or too many different characters and words for the vocabulary.
    """
    def lines() -> Iterator[str]:
        for sample in samples:
            with open(sample, encoding="utf-8", newline="\n") as stream:
                yield from (line.rstrip("\n") for line in stream)

    model = io.BytesIO()        # and no file, whose name would be part of the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(), model_writer=model, vocab_size=vocabulary,
            character_coverage=coverage, user_defined_symbols=[MASK], num_threads=TRAINING_THREADS,
            max_sentence_length=1 << 30, minloglevel=2)
    except RuntimeError as error:
        said = str(error)
        if most := re.search(r"value <= (\d+)", said):
            reason = f"is more than this text yields; give {most[1]} or less"
        elif least := re.search(r"required_chars\. \d+ vs (\d+)", said):
            reason = f"is less than the text's characters need; give more than {least[1]}, or less --coverage"
        else:
            reason = f"cannot be trained ({said.strip()}); give more text"
        raise DataError(f"--vocabulary {vocabulary} {reason}") from None
    (folder / "sentencepiece.model").write_bytes(model.getbuffer())
    return {}


@lru_cache(maxsize=1)
def load_model(path: str) -> tuple[sentencepiece.SentencePieceProcessor, Dictionary, np.ndarray]:
    """A sentencepiece model, fairseq's dictionary of its pieces in their order, and the index of each id; END last.

    Raises:
        DataError: it's not a model of sentencepiece.
    """
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError):
        raise DataError(f"{path} is no model of sentencepiece; train one by leaving --model out") from None
    dictionary = Dictionary()
    table = np.full(model.get_piece_size() + 1, dictionary.unk())
    for i in range(model.get_piece_size()):
        if not (model.is_unknown(i) or model.is_control(i) or model.is_unused(i)):
            table[i] = dictionary.add_symbol(model.id_to_piece(i), n=0)
    table[END] = dictionary.eos()
    dictionary.add_symbol(MASK, n=0)
    return model, dictionary, table


def save_dictionary(path: Path, model: str, counts: np.ndarray) -> None:
    """Write fairseq's dict.txt with the pieces' counts, by index.

    Raises:
        DataError: the model has pieces that the format cannot hold.
    """
    dictionary = load_model(model)[1]
    dictionary.count = counts.tolist()
    dictionary.save(str(path))
    try:
        same = Dictionary.load(str(path)) == dictionary
    except (ValueError, RuntimeError):
        same = False
    if not same:
        raise DataError(f"{model} has pieces of white space that fairseq's dict.txt cannot hold; take another model")


# ---- binarise

def encode_part(folder: Path, part: Part, unit: str, duplicates: Sequence[str], shares: Shares, path: str,
                has_empty_lines: bool) -> dict:
    """Binarise a part with fairseq's builder: {split}.bin and .idx of the splits it has, and counts.npy.

    counts.npy: how often each index occurs in train. An item is a line and the end of sentence; with
    has_empty_lines an item of the end alone follows each document.
    """
    model, dictionary, table = load_model(path)
    builders, totals = {}, {}
    counts = np.zeros(len(dictionary), dtype=np.int64)
    waiting: dict[str, list[list[bytes]]] = {split: [] for split in SPLITS}

    def flush(split: str) -> None:
        documents = waiting[split]
        ids = iter(model.encode(list(chain.from_iterable(documents)), out_type=int, num_threads=1))
        items, total = [], totals.setdefault(split, {"documents": 0, "lines": 0, "tokens": 0, "items": 0})
        for document in documents:
            encoded = [line + [END] for line in (next(ids) for _ in document) if line]
            total["documents"] += bool(encoded)
            total["lines"] += len(encoded)
            items += encoded + [[END]] * (has_empty_lines and bool(encoded))
        if items:
            if split not in builders:
                builders[split] = indexed_dataset.make_builder(str(folder / f"{split}.bin"), "mmap", len(dictionary))
            indices = table[np.fromiter(chain.from_iterable(items), dtype=np.int64)]
            end = 0
            for item in items:
                start, end = end, end + len(item)
                builders[split].add_item(torch.from_numpy(indices[start:end]))
            total["tokens"] += len(indices)
            total["items"] += len(items)
            if split == "train":
                counts[:] += np.bincount(indices, minlength=len(counts))
        documents.clear()

    numbers = dict.fromkeys(SPLITS, 0)
    for split, lines in kept_documents(part, unit, duplicates, shares):
        waiting[split].append(lines)
        numbers[split] += len(lines)
        if numbers[split] >= BATCH:
            flush(split)
            numbers[split] = 0
    for split in SPLITS:
        flush(split)
    for split, builder in builders.items():
        builder.finalize(str(folder / f"{split}.idx"))
    np.save(folder / "counts.npy", counts)
    return {split: totals[split] for split in builders} | {"unknown": int(counts[dictionary.unk()])}


# ---- shards

Range = tuple[str, int, int]        # path without an ending, first item, item after the last


def item_sizes(prefix: str) -> np.ndarray:
    """The tokens of each item of a binarised file."""
    index = indexed_dataset.MMapIndexedDataset.Index(prefix + ".idx")
    return np.array(index.sizes)        # a copy: closing the index unmaps its own


def plan_shards(pieces: Sequence[tuple[str, int, int]], shards: int, has_empty_lines: bool) -> list[list[Range]]:
    """Cut a sequence of (path, items, tokens) into shards of equal tokens, at ends of documents.

    Raises:
        DataError: there are too few documents.
    """
    total, done = sum(tokens for _, _, tokens in pieces), 0
    planned: list[list[Range]] = [[]]
    for prefix, items, tokens in pieces:
        first = 0
        while len(planned) < shards and (wanted := total * len(planned) // shards - done) < tokens:
            sizes = item_sizes(prefix)
            ends = np.flatnonzero(sizes == 1) + 1 if has_empty_lines else np.arange(1, items + 1)
            ends = ends[ends > first]
            if not len(ends):
                break
            end = int(ends[sizes.cumsum()[ends - 1].searchsorted(wanted)])
            planned[-1].append((prefix, first, end))
            planned.append([])
            first = end
        planned[-1] += [(prefix, first, items)] * (items > first)
        done += tokens
    if len(planned) < shards or not all(planned):
        raise DataError(f"{shards} shards are too many for so few documents; give fewer --shards, or larger "
                        "--shard-megabytes")
    return planned


def join(folder: Path, split: str, ranges: Sequence[Range]) -> dict:
    """Put ranges of binarised files together into one: {split}.bin and .idx, whatever their size in little memory."""
    items = sum(last - first for _, first, last in ranges)
    with open(ranges[0][0] + ".idx", "rb") as stream:
        header = stream.read(INDEX_HEADER)
    width = indexed_dataset.MMapIndexedDataset.Index(ranges[0][0] + ".idx").dtype().itemsize
    with open(folder / f"{split}.bin", "wb") as data, open(folder / f"{split}.idx", "wb") as index:
        index.write(header + struct.pack("<Q", items))
        for prefix, first, last in ranges:
            sizes = item_sizes(prefix)
            index.write(sizes[first:last].astype("<i4").tobytes())
            with open(prefix + ".bin", "rb") as stream:
                stream.seek(int(sizes[:first].sum()) * width)
                copy(stream, data, int(sizes[first:last].sum()) * width)
        start = 0
        for prefix, first, last in ranges:
            sizes = item_sizes(prefix)[first:last].astype(np.int64)
            index.write((start + (sizes.cumsum() - sizes) * width).astype("<i8").tobytes())
            start += int(sizes.sum()) * width
    return {"items": items, "bytes": start}


def copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    """Copy so many bytes of a binarised file.

    Raises:
        DataError: it has fewer.
    """
    while length > 0:
        block = source.read(min(length, 1 << 20))
        if not block:
            raise DataError(f"{source.name} is shorter than its index says: delete the folder corpus.work and run the "
                            "same command again")
        target.write(block)
        length -= len(block)
