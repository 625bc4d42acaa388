"""Binarised data that is damaged or of another dictionary, and dictionaries that are none: named in one line. Sources
that are too long: cut where the host forgets to."""

import os
import struct
from typing import Optional

import numpy as np
from fairseq.data import Dictionary, indexed_dataset
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.tasks import translation_lev

from diffusion_fairseq.errors import UserError

# What begins an index of fairseq-preprocess: magic, version, code of the type of its numbers, sentences.
HEADER = struct.Struct("<9sQBQ")
A_SENTENCE = 12  # bytes of the index: its length and where it begins
OTHER_MAGICS = (b"TNTIDX\x00\x00", b"HUFFIDX\x00")  # of --dataset-impl lazy, cached and huffman
TOKENS_CHECKED = 1 << 22  # enough to meet a word of another dictionary, read in no time
AGAIN = "binarise the text again with fairseq-preprocess"


def report_bad_data() -> None:
    """Check a split's files when they are opened.

    Both hosts: tracebacks, in a worker or in the midst of an epoch, without the file's name; a word beyond the
    dictionary ends in an error of the embedding, on GPUs of the device.
    """
    exists, make = indexed_dataset.dataset_exists, indexed_dataset.make_dataset

    def dataset_exists(path, impl):
        check_both(path)
        return exists(path, impl)

    def make_dataset(path, impl, fix_lua_indexing=False, dictionary=None):
        check_both(path)
        if impl != "raw" and os.path.exists(f"{path}.idx"):
            check_index(path, dictionary)
        return make(path, impl, fix_lua_indexing, dictionary)

    indexed_dataset.dataset_exists, indexed_dataset.make_dataset = dataset_exists, make_dataset


def truncate_sources() -> None:
    """Let --truncate-source cut the sources of --task translation_lev, too.

    Both hosts: the option is of that task and does nothing there.
    """
    load, stock = translation_lev.load_langpair_dataset, translation_lev.TranslationLevenshteinTask.load_dataset

    def cut(*args, max_source_positions, **kwargs):
        # A start of sentence comes before what is cut.
        return load(*args, max_source_positions=max_source_positions - 1, truncate_source=True, **kwargs)

    def load_dataset(self, *args, **kwargs):
        translation_lev.load_langpair_dataset = cut if self.cfg.truncate_source else load
        try:
            return stock(self, *args, **kwargs)
        finally:
            translation_lev.load_langpair_dataset = load

    translation_lev.TranslationLevenshteinTask.load_dataset = load_dataset


def check_both(path: str) -> None:
    """Refuse one file of two.

    Raises:
        UserError: naming the one that is missing.
    """
    index, data = (os.path.exists(f"{path}.{ending}") for ending in ("idx", "bin"))
    if index != data:
        missing, there = ("idx", "bin") if data else ("bin", "idx")
        raise UserError(f"{path}.{missing} is missing, {path}.{there} is there: copy both, or {AGAIN}")


def check_index(path: str, dictionary: Optional[Dictionary]) -> None:
    """Refuse files that do not hold what their index says, or words that the dictionary has not.

    Raises:
        UserError: naming the file.
    """
    file = f"{path}.idx"
    with open(file, "rb") as stream:
        head = stream.read(HEADER.size)
    if head[:8] in OTHER_MAGICS:
        return
    magic, version, code, count = HEADER.unpack(head.ljust(HEADER.size, b"\0"))
    if magic != MMapIndexedDataset.Index._HDR_MAGIC or version != 1 or code not in indexed_dataset._code_to_dtype:
        raise UserError(f"{file} is no index of fairseq-preprocess: {AGAIN}")
    if os.path.getsize(file) < HEADER.size + count * A_SENTENCE:
        raise UserError(f"{file} is cut short: copy it again, or {AGAIN}")
    if not count:
        raise UserError(f"{file} names no sentence: the text it was made from was empty; {AGAIN}")
    lengths = np.memmap(file, np.int32, "r", HEADER.size, count)
    starts = np.memmap(file, np.int64, "r", HEADER.size + lengths.nbytes, count)
    kind = np.dtype(indexed_dataset._code_to_dtype[code])
    if os.path.getsize(f"{path}.bin") < starts[-1] + lengths[-1] * kind.itemsize:
        raise UserError(f"{path}.bin is cut short: it is smaller than {file} says; copy it again, or {AGAIN}")
    if dictionary is not None and kind.kind in "iu":
        words = np.fromfile(f"{path}.bin", kind, TOKENS_CHECKED)
        beyond = np.flatnonzero(words >= len(dictionary))
        if len(beyond):
            sentence = np.searchsorted(starts, beyond[0] * kind.itemsize, side="right") - 1
            raise UserError(f"{path}.bin was binarised with another dictionary: its sentence {sentence} (counted from "
                            f"0) holds word {words[beyond[0]]}, and the one in use has {len(dictionary)}; take the "
                            f"dictionary it was binarised with, or {AGAIN} --srcdict")


def report_bad_dictionaries() -> None:
    """Name the line for which a file is no dictionary.

    Both hosts: they show a traceback with the line's text, and for other encodings than UTF-8 not even that.
    """
    stock = Dictionary.add_from_file

    def add_from_file(self, f):
        try:
            return stock(self, f)
        except FileNotFoundError:
            raise
        except Exception as error:
            # What the host raises for another encoding is an Exception and nothing more.
            if not isinstance(f, str):
                raise
            what = complaint(f) or f"{f}: {error}"
            raise UserError(f"{what}; take a dict.txt that fairseq-preprocess wrote") from error

    Dictionary.add_from_file = add_from_file


def complaint(path: str) -> Optional[str]:
    """The first line of a file that makes it no dictionary, and why; None where all are fine."""
    numbers = dict.fromkeys(Dictionary().symbols, 0)
    try:
        with open(path, "rb") as lines:
            for number, raw in enumerate(lines, 1):
                where = f"{path}, line {number}"
                try:
                    line = raw.decode("utf-8").rstrip()
                except UnicodeDecodeError:
                    return f"{where}: not UTF-8"
                word, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
                if not count.removeprefix("-").isdecimal():
                    return f"{where}: not 'word count' but {line[:40]!r}"
                if word in numbers and not line.endswith(" #fairseq:overwrite"):
                    first = f"first on line {numbers[word]}" if numbers[word] else "every dictionary has it by itself"
                    return f"{where}: the word {word[:40]!r} is there twice, {first}"
                numbers[word] = number
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
