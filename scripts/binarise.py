"""Learn subwords on sentence pairs or lines, encode them, and binarise them as fairseq trains on them.

    python scripts/binarise.py runs/xsum --vocabulary 30000
    python scripts/binarise.py runs/xsum --sentencepiece-model pre/sentencepiece.model --dictionary pre/dict.txt
    python scripts/binarise.py runs/reuters --words --vocabulary 10000
    python scripts/binarise.py runs/translation --separate-dictionaries

Reads text/{train,valid,test}.{src,tgt} in the folder, or for a language model text/{train,valid,test}.txt, whose
dictionary gets the word <mask>; writes sentencepiece.model, encoded/ and data-bin/ there.
Interrupted, the same command continues: a file that has its name is whole. With other options, or files of another
size, it refuses to mix the two; what data-bin was made of stands in binarised.json.
"""

import argparse
import io
import os
import shutil
import sys
from itertools import chain, islice
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple

import _environment  # noqa: F401  says what this Python lacks
import _commands
import sentencepiece
from _corpus import fraction
from _data import MASK, DataError, check_made_of, check_same_length, keep_made_of, removed_on_error, run, utf8_lines
from _option_types import count
from tqdm import tqdm

SPLITS, PAIR, LINES = ("train", "valid", "test"), ("src", "tgt"), ("txt",)
LINES_AT_ONCE = 10000
MADE_OF = "binarised.json"
KINDS = ("unigram", "bpe")
WORD_START = "\u2581"  # sentencepiece's space
TRAINING_THREADS = 2  # a constant: the sums of sentencepiece, and so its model, depend on it
SAMPLE, SAMPLE_MEGABYTES = 2_000_000, 100  # lines and text that subwords are learned from, at most
LONGEST = 1 << 30  # bytes of a line: sentencepiece leaves out those of more than 4,192 without a word


def sides_of(text: Path) -> Tuple[str, ...]:
    """The endings of a folder's files.

    Raises:
        DataError: a split is missing or empty.
    """
    sides = LINES if (text / f"train.{LINES[0]}").exists() else PAIR
    missing = [f"{split}.{side}" for split in SPLITS for side in sides if not (text / f"{split}.{side}").exists()]
    if missing:
        raise DataError(f"{text} lacks {', '.join(missing)}: prepare the text first")
    for path in (text / f"{split}.{side}" for split in SPLITS for side in sides):
        if not path.stat().st_size:
            raise DataError(f"{path} is empty: prepare the text again")
    return sides


def encoder_of(text: Path, sides: Sequence[str], work: Path, vocabulary: int,
               given: Optional[Path], symbols: Sequence[str] = (),
               kind: str = KINDS[0], megabytes: int = SAMPLE_MEGABYTES) -> sentencepiece.SentencePieceProcessor:
    """The given subword model, or one of KINDS learned on so much of the training text, with some words that are a
    subword each."""
    model = given or work / "sentencepiece.model"
    if given is None and not model.exists():
        learned = io.BytesIO()  # and no file, whose name would be part of the model
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sampled([text / f"train.{side}" for side in sides], megabytes),
                model_writer=learned, vocab_size=vocabulary, model_type=kind, character_coverage=1.0,
                user_defined_symbols=[MASK, *(WORD_START + word for word in symbols)], minloglevel=2,
                input_sentence_size=SAMPLE, shuffle_input_sentence=True, num_threads=TRAINING_THREADS,
                max_sentence_length=LONGEST,
            )
        except RuntimeError as error:
            # Its own place in the source of sentencepiece comes first, and may be all that it says.
            said = str(error).splitlines()[-1]
            raise DataError(f"--vocabulary {vocabulary}: {said.rpartition('] ')[2] or said}") from None
        unfinished = model.with_name(model.name + ".unfinished")
        unfinished.write_bytes(learned.getbuffer())
        unfinished.replace(model)
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{model} is no sentencepiece model ({str(error).splitlines()[0]}): give another one") from None


def sampled(texts: Sequence[Path], megabytes: float) -> Iterator[str]:
    """The lines of some texts, or about so many megabytes of them, which depend on the lines alone."""
    share = megabytes * 1e6 / sum(path.stat().st_size for path in texts)
    for line in chain.from_iterable(map(_lines, texts)):
        if share >= 1 or fraction(line.encode("utf-8"), b"sample") < share:
            yield line


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="ignore", newline="\n") as lines:  # encode() names a line that is not UTF-8
        yield from (line.rstrip("\n") for line in lines)


def encode(encoder: sentencepiece.SentencePieceProcessor, lines: Path, out: Path, workers: int) -> None:
    """Write every line of a text as subwords between spaces."""
    if out.exists():
        return
    unfinished = out.with_name(out.name + ".unfinished")
    size = lines.stat().st_size
    bar = tqdm(total=size, desc=f"  encode {lines.name}", unit="B", unit_scale=True, leave=False, disable=None)
    with removed_on_error(unfinished), bar, lines.open("rb") as stream, \
            unfinished.open("w", encoding="utf-8") as encoded:
        text = utf8_lines(_counted(stream, bar), str(lines))
        while block := list(islice(text, LINES_AT_ONCE)):
            for pieces in encoder.encode(block, out_type=str, num_threads=workers):
                encoded.write(" ".join(pieces) + "\n")
    unfinished.replace(out)


def _counted(stream, bar: tqdm) -> Iterator[bytes]:
    for raw in stream:
        bar.update(len(raw))
        yield raw


def preprocess(encoded: Path, sides: Sequence[str], binary: Path, options: Sequence[str], log: Path,
               joined: bool = True) -> None:
    """The splits of an encoded text, into a folder that gets its name when it is whole."""
    unfinished = binary.with_name("data-bin.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    words = ["--only-source"] if sides == LINES else ["--source-lang", sides[0], "--target-lang", sides[1]]
    words += ["--joined-dictionary"] if sides == PAIR and joined else []
    ending = f".{LINES[0]}" if sides == LINES else ""
    words += [word for split in SPLITS for word in (f"--{split}pref", str(encoded / split) + ending)]
    fairseq_preprocess(unfinished, [*options, *words], log)
    if sides == LINES:
        add_mask(unfinished / "dict.txt")
    unfinished.replace(binary)


def check_line_ends(path: Path) -> None:
    """Refuse a carriage return within a line, where fairseq-preprocess would end it.

    Raises:
        DataError: with the line's number.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
                raise DataError(f"{path}, line {number}: a carriage return within the line would end it there: put a "
                                "blank in its place")


def fairseq_preprocess(folder: Path, options: Sequence[str], log: Path) -> None:
    """Binarise into a folder, with all that is said in a log.

    Raises:
        DataError: the command failed.
    """
    words = [sys.executable, "-m", "fairseq_cli.preprocess", "--destdir", str(folder), *options]
    try:
        _commands.run(words, log, folder=Path.cwd())
    except _commands.CommandFailed as error:
        raise DataError(f"fairseq-preprocess: {error}") from None


def add_mask(dictionary: Path) -> None:
    """Append the mask token, which changes no index, unless it is there."""
    words = dictionary.read_text(encoding="utf-8")
    if MASK not in (line.rsplit(" ", 1)[0] for line in words.splitlines()):
        dictionary.write_text(f"{words}{MASK} 0\n", encoding="utf-8")


def size_of(file: Path) -> int:
    """Bytes of a file.

    Raises:
        DataError: there is none.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    return file.stat().st_size


def binarise(work: Path, vocabulary: int, model: Optional[Path], dictionary: Optional[Path], workers: int,
             words: bool = False, joined: bool = True, symbols: Sequence[str] = (), kind: str = KINDS[0],
             megabytes: int = SAMPLE_MEGABYTES) -> Path:
    """work/data-bin from work/text; with `words` the text is taken for encoded; `joined`: one dictionary for both
    sides; where subwords are learned, of so many megabytes, `symbols` are words that are one each, and `kind` is of
    KINDS."""
    text, encoded, binary = work / "text", work / "encoded", work / "data-bin"
    sides = sides_of(text)
    of = {"vocabulary": vocabulary if dictionary is None else None, "words": words, "joined": joined,
          "subwords": model and size_of(model), "dictionary": dictionary and size_of(dictionary),
          "symbols": None if model or words else list(symbols) or None,
          "kind": None if model or words or kind == KINDS[0] else kind,
          "sample": None if model or words or megabytes == SAMPLE_MEGABYTES else megabytes,
          "text": {f"{split}.{side}": size_of(text / f"{split}.{side}") for split in SPLITS for side in sides}}
    check_made_of(work / MADE_OF, of, "data-bin, encoded and sentencepiece.model")
    if binary.exists():
        print(f"  already there: {binary}")
        return binary
    if sides == PAIR:
        for split in SPLITS:
            check_same_length(*(text / f"{split}.{side}" for side in PAIR),
                              "line n of one must belong to line n of the other")
    options = ["--workers", str(workers)]
    options += ["--srcdict", str(dictionary)] if dictionary else \
        ["--nwordssrc", str(vocabulary), "--nwordstgt", str(vocabulary)] if words else []
    if words:
        for split in SPLITS:
            for side in sides:
                check_line_ends(text / f"{split}.{side}")
        encoded = text
    else:
        encoder = encoder_of(text, sides, work, vocabulary, model, symbols, kind, megabytes)
        if model and not (own := work / "sentencepiece.model").exists():  # where whatever decodes looks for it
            shutil.copyfile(model, own.with_name(own.name + ".unfinished"))
            own.with_name(own.name + ".unfinished").replace(own)
        keep_made_of(work / MADE_OF, of)
        encoded.mkdir(exist_ok=True)
        for split in SPLITS:
            for side in sides:
                encode(encoder, text / f"{split}.{side}", encoded / f"{split}.{side}", workers)
    preprocess(encoded, sides, binary, options, work / "preprocess.log", joined)
    keep_made_of(work / MADE_OF, of)
    for line in (work / "preprocess.log").read_text(encoding="utf-8", errors="replace").splitlines():
        if "replaced" in line:  # of a file, how many words are unknown
            print(f"  {line.rpartition('/')[2]}")
    print(f"  written: {binary}")
    return binary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="DIR", help="folder that holds text/ and gets the rest")
    parser.add_argument("--vocabulary", type=count(1), default=30000,
                        help="subwords to learn, or words to keep, unless a --dictionary has them "
                             "(default: %(default)s)")
    parser.add_argument("--words", action="store_true",
                        help="no subwords: the most frequent words of the training text, as they stand between spaces")
    parser.add_argument("--sentencepiece-model", type=Path, metavar="FILE", help="use this one: that of a pre-training")
    parser.add_argument("--dictionary", type=Path, metavar="FILE", help="dict.txt of a pre-training, to start from it")
    parser.add_argument("--symbol", action="append", default=[], metavar="WORD",
                        help="a word that stays one subword, as a mark between sentences; repeatable. Where subwords "
                             "are learned: a given model spells it as it can, and --words keeps words anyway")
    parser.add_argument("--subwords", choices=KINDS, default=KINDS[0],
                        help="how subwords are learned: sentencepiece's unigram model, or byte pairs, as DiffuSeq's "
                             "(default: %(default)s)")
    parser.add_argument("--sample-megabytes", type=count(1), default=SAMPLE_MEGABYTES, metavar="MB",
                        help="text to learn subwords from, about, if there is more; takes some 20 bytes of memory for "
                             "each character (default: %(default)s)")
    parser.add_argument("--separate-dictionaries", action="store_true",
                        help="a dictionary for each side, of the subwords it has; for models that do not share them")
    parser.add_argument("--workers", type=count(1), default=os.cpu_count() or 1,
                        help="processes (default: all cores)")
    arguments = parser.parse_args()
    if not arguments.words and (arguments.dictionary is None) != (arguments.sentencepiece_model is None):
        parser.error("--dictionary and --sentencepiece-model belong together: both come from one pre-training")
    if arguments.words and arguments.sentencepiece_model:
        parser.error("--words has no subwords: leave --sentencepiece-model out")
    for option in ("subwords", "sample_megabytes"):
        if getattr(arguments, option) != parser.get_default(option) and (
                arguments.words or arguments.sentencepiece_model):
            parser.error(f"--{option.replace('_', '-')} acts only where subwords are learned: leave it out")
    if arguments.separate_dictionaries and arguments.dictionary:
        parser.error("--separate-dictionaries makes two: leave --dictionary out")
    binarise(arguments.work, arguments.vocabulary, arguments.sentencepiece_model, arguments.dictionary,
             arguments.workers, arguments.words, not arguments.separate_dictionaries, arguments.symbol,
             arguments.subwords, arguments.sample_megabytes)


if __name__ == "__main__":
    sys.exit(run(main))
