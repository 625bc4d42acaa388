"""Text of prepare_corpus.py: pieces of files, documents, clean lines, sentences. Standard library only."""

import gzip
import hashlib
import json
import re
import unicodedata
import zlib
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, NamedTuple

from _data import DataError

try:
    import lzma
except ImportError:         # a Python built from source often lacks it
    lzma = None

RAW_LINE = 1 << 24          # bytes of a line that are read at once
MAX_DOCUMENT = 1 << 22      # characters after which a document ends at the next line end
WINDOW = 1 << 22            # bytes in which a piece looks for an empty line to end at, before it takes any line end
SPLITS = ("train", "valid", "test")


class Rules(NamedTuple):
    """How text becomes documents of lines; the options of the same names."""

    documents: str = "line"
    json_field: str | None = None
    segment: bool = True
    wrapped: bool = False
    max_line: int = 10_000
    long_lines: str = "cut"
    skip_broken: bool = False
    lowercase: bool = False

    @property
    def has_empty_lines(self) -> bool:
        """Whether the corpus needs empty lines to tell documents apart: unless each line is one."""
        return self.segment or self.documents == "blank"


class BrokenLine(Exception):
    """Line `number` of a piece, counted from 1, cannot be read, for this reason."""

    def __init__(self, number: int, reason: str):
        super().__init__(number, reason)
        self.number, self.reason = number, reason


# ---- reading

COMPRESSED = {".gz": gzip, ".xz": lzma}
UNPACKING_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, *((lzma.LZMAError,) if lzma else ()))


def read_piece(path: Path, start: int = 0, length: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The raw_lines of a piece of a plain file, or of a whole .gz or .xz file.

    Raises:
        DataError: the file cannot be unpacked.
    """
    module = COMPRESSED.get(path.suffix)
    if module is None and path.suffix in COMPRESSED:
        raise DataError(f"{path}: this Python was built without lzma; unpack the file first")
    with module.open(path, "rb") if module else open(path, "rb") as stream:
        if start:
            stream.seek(start)
        try:
            yield from raw_lines(stream, length)
        except UNPACKING_ERRORS as error:
            raise DataError(f"{path} cannot be unpacked ({error}); fetch it again") from None


def piece_ends(path: Path, size: int, piece: int, at_empty_lines: bool) -> Iterator[int]:
    """Offsets at which the pieces of a plain file end, about `piece` bytes apart; the last one is `size`.

    A piece ends at the first empty line, or if there is none in WINDOW bytes (or they are not asked for), at the
    first line end.
    """
    end = 0
    with open(path, "rb") as stream:
        while size - end > piece:
            stream.seek(end + piece)
            ahead = stream.read(WINDOW) if at_empty_lines else b""
            if found := re.search(rb"\n[ \t\r]*\n", ahead):
                end += piece + found.end()
            else:
                stream.seek(end + piece)
                while (block := stream.readline(1 << 20)) and not block.endswith(b"\n"):
                    pass
                end = stream.tell()
            if end < size:
                yield end
    yield size


def raw_lines(stream: BinaryIO, length: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(number of the line from 1, its bytes) of `length` bytes of a stream, None for all of it.

    A line longer than RAW_LINE comes in several parts that end between characters, see `whole_lines`.
    """
    number, taken, rest = 1, 0, b""
    while (length is None or taken < length) and (block := stream.readline(RAW_LINE)):
        taken += len(block)
        line = rest + block
        rest = b""
        ended = block.endswith(b"\n")
        if not ended and len(block) == RAW_LINE:
            cut = len(line) - 1
            while cut > len(line) - 4 and line[cut] & 0xC0 == 0x80:
                cut -= 1
            if line[cut] >= 0xC0:
                line, rest = line[:cut], line[cut:]
        yield number, line
        number += ended
    if rest:
        yield number, rest


def whole_lines(numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines whose parts are joined."""
    for number, parts in groupby(numbered, key=itemgetter(0)):
        yield number, b"".join(part for _, part in parts)


def decode(raw: bytes, number: int) -> str:
    """A line's text.

    Raises:
        BrokenLine: it's not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenLine(number, f"not UTF-8 (byte {error.start + 1} of the line is 0x{raw[error.start]:02x}); "
                                 "convert the file to UTF-8") from None


def json_text(raw: bytes, number: int, field: str) -> str:
    """The text in a field of a JSON object.

    Raises:
        BrokenLine: no JSON object, no such field, or no text in it.
    """
    try:
        record = json.loads(decode(raw, number).lstrip("\ufeff"))
        text = record[field]
        text.encode("utf-8")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        reason = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else f"no text in field {field!r}"
        raise BrokenLine(number, f"{reason}; mend the line") from None
    return text


class Documents:
    """Iterates over the documents of numbered raw lines, each a list of its text lines as they are.

    `broken` collects the numbers of the lines that were skipped (rules.skip_broken).
    """

    def __init__(self, numbered: Iterable[tuple[int, bytes]], rules: Rules):
        self.numbered, self.rules = numbered, rules
        self.number = 0         # of the line read last
        self.bytes = 0          # read so far
        self.broken: list[int] = []

    def lines(self) -> Iterator[str]:
        # A line of text may come in parts; a JSON object is read whole.
        numbered = self.numbered if self.rules.json_field is None else whole_lines(self.numbered)
        for number, raw in numbered:
            self.number = number
            self.bytes += len(raw)
            try:
                if self.rules.json_field is None:
                    yield decode(raw, number)
                elif raw.strip():
                    yield json_text(raw, number, self.rules.json_field)
            except BrokenLine as error:
                if not self.rules.skip_broken:
                    raise
                if self.broken[-1:] != [error.number]:
                    self.broken.append(error.number)

    def __iter__(self) -> Iterator[list[str]]:
        if self.rules.documents == "line":
            for line in self.lines():
                yield line.split("\n")
            return
        document, size = [], 0
        for line in self.lines():
            ends = not line.strip() or size > MAX_DOCUMENT
            if ends and document:
                yield document
                document, size = [], 0
            document.append(line)
            size += len(line)
        yield document


# ---- cleaning and sentences

# The control characters that are no white space, soft hyphens, zero-width spaces and byte order marks.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\ufeff]")


def clean(text: str) -> str:
    """Text in Unicode's form NFC without invisible characters, each run of white space being one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(INVISIBLE.sub("", text).split())


# The end of a sentence: marks, closing quotes or brackets, a space, and what follows it past opening quotes or
# brackets; or the full stops of Chinese and Japanese, that no space follows.
BOUNDARY = re.compile("([.!?…]+)[\"'”’»)\\]]* (?=[\"'“‘«(\\[¿¡]*([^\"'“‘«(\\[¿¡]))|[。！？]+[」』”’）]*")
TITLES = frozenset("Mr Mrs Ms Dr Prof Rev Hon Gen Col Capt Lt Sgt St Ste Jr Sr vs cf al approx dept est Mt Ft "
                   "Messrs Mme Mlle Sen Rep Gov Pres".split())
BEFORE_NUMBERS = frozenset("No Nos no nos Fig fig Figs Vol vol p pp Ch ch Sec sec Art art Eq eq Jan Feb Mar Apr Jun "
                           "Jul Aug Sep Sept Oct Nov Dec".split())


def is_abbreviated(word: str, following: str) -> bool:
    """Whether a full stop after this word, before this character, belongs to the word."""
    return ("." in word or word in TITLES or (len(word) == 1 and word.isupper() and word != "I")
            or (word in BEFORE_NUMBERS and following.isdigit()))


def sentences(text: str) -> Iterator[str]:
    """Split a clean line: after . ! ? … unless a small letter follows, the word is an abbreviation or an initial."""
    start = 0
    for match in BOUNDARY.finditer(text):
        mark, following = match.groups()
        if mark:
            if following.islower():
                continue
            if mark == ".":
                word = text[text.rfind(" ", start, match.start()) + 1 or start:match.start()].lstrip("\"'“‘«([")
                if is_abbreviated(word, following):
                    continue
        yield text[start:match.end()].strip()
        start = match.end()
    if rest := text[start:].strip():
        yield rest


def cut(line: str, limit: int) -> Iterator[str]:
    """Parts of a clean line of at most `limit` characters, that end at a space where there is one."""
    while len(line) > limit:
        end = line.rfind(" ", 1, limit + 1)
        if end < 0:
            end = limit
        yield line[:end]
        line = line[end:].lstrip(" ")
    if line:
        yield line


def tidy(document: list[str], rules: Rules) -> tuple[list[str], int]:
    """The lines of a document as the corpus has them, and how many over-long ones were cut or dropped."""
    if rules.wrapped or not rules.has_empty_lines:
        document = [" ".join(document)]
    lines, long = [], 0
    for text in map(clean, document):
        for line in sentences(text) if rules.segment else (text,):
            if not line:
                continue
            # Not before: capitals tell where a sentence begins.
            line = line.lower() if rules.lowercase else line
            if not rules.max_line or len(line) <= rules.max_line:
                lines.append(line)
                continue
            long += 1
            if rules.long_lines == "cut":
                lines.extend(cut(line, rules.max_line))
    return lines, long


# ---- digests

def digest(text: bytes) -> bytes:
    """Eight bytes that stand for a text when duplicates are looked for."""
    return hashlib.blake2b(text, digest_size=8).digest()


def fraction(text: bytes, purpose: bytes) -> float:
    """A number in [0, 1) that is a function of text and purpose alone, evenly spread."""
    value = hashlib.blake2b(text, digest_size=8, person=purpose).digest()
    return (int.from_bytes(value, "little") >> 11) / (1 << 53)


def split_of(document: bytes, valid: float, test: float) -> str:
    """Which of SPLITS a document belongs to, by its text alone: so copies of it come to the same one."""
    drawn = fraction(document, b"split")
    return "valid" if drawn < valid else "test" if drawn < valid + test else "train"
