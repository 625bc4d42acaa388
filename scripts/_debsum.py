"""debsum's text, filters and groups: from package descriptions to (description, synopsis) pairs. No I/O."""

import re
from collections import Counter, defaultdict
from typing import Callable, Iterable, NamedTuple

from _data import least_of_groups

BOILERPLATE_SOURCES = 4     # a paragraph that so many source packages share says nothing of one package
MIN_SOURCE_WORDS = 15
MAX_SOURCE_WORDS = 300
MIN_TARGET_WORDS, MAX_TARGET_WORDS = 3, 20
STEM = 4                    # letters that make two content words the same: highlighter, highlighting
SHINGLE = 5                 # words
SHINGLE_SOURCES = 10        # a shingle of more sources is a turn of phrase, not a common text
COMMON_SHINGLES = 4         # so many common shingles put two sources into one group
NEAR_DUPLICATE = 0.5        # share of the shorter description's shingles that makes it a copy
LEAK_WORDS = 8              # so many words in a row of an evaluation description bar a training pair


class Package(NamedTuple):
    name: str
    source: str             # source package
    section: str
    md5: str                # Description-md5 of the index: of the whole English description
    synopsis: str           # as in the index
    body: str               # the extended description, lines as in the index


class Pair(NamedTuple):
    name: str
    source: str
    section: str
    md5: str
    description: str        # model input: one line
    synopsis: str           # model output: one line


# ---- text

URL = re.compile(r"<?(?:https?://|ftp://|www\.)[^\s)>]+>?")
EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*\]|<\s*>")
BULLET = re.compile(r"\s*(?:[*+\-o•·]|\d+[.)])\s+")

# What of its source a binary package holds, at the end of a synopsis: " (Python 3)", " -- shared library".
_PYTHON = r"python\ ?[23]?(?:\.x)?"
PART_OF_SOURCE = re.compile(rf"""
    (?: \s*\( | \s*[:,]\s+ | \s+(?:--?|—|–)\s* ) \(?
    (?: {_PYTHON} (?:\ (?:version|modules?|library|interface|bindings?|package))? | py3
      | node\.js (?:\ (?:version|modules?|library|interface|bindings?|package))?
      | (?:perl|ruby|java|qt\ ?\d?)\ (?:version|module|library|interface|bindings?)
      | shared\ (?:libraries|library|lib|objects?)
      | run-?time (?:\ (?:files|libraries|library|package|support))?
      | (?:core|base|data|dev|development|header)\ files
      | development (?:\ tools)? | main\ (?:program|package) | library\ package
      | (?:command[-\ ]line|cli)\ (?:tools?|utility|utilities)
      | librar(?:y|ies) | tools | utility | utilities | utils | binary | binaries
      | programs? | plugins? | modules | headers?
    ) \s* [).]* $""", re.IGNORECASE | re.VERBOSE)


def clean_synopsis(synopsis: str) -> str:
    """The synopsis without addresses, outer dots and dashes, and the part of the source it stands for.

    A synopsis of which fewer than MIN_TARGET_WORDS words would be left keeps its last such part.
    """
    text = " ".join(URL.sub(" ", synopsis).split()).strip(" .-")
    while True:
        shorter = PART_OF_SOURCE.sub("", text).strip(" .-")
        if shorter == text or len(shorter.split()) < MIN_TARGET_WORDS:
            return text
        text = shorter


def join_items(items: Iterable[str]) -> str:
    """Join list items: a space after an item that ends in a mark, "; " after the others."""
    text = ""
    for item in (" ".join(item.split()) for item in items):
        if item:
            mark = "" if not text else " " if text[-1] in ".:;,!?" else "; "
            text += mark + item
    return text


def paragraphs(body: str) -> list[str]:
    """The paragraphs of an extended description, each on one line: no bullets, no addresses, a full stop."""
    blocks: list[list[str]] = [[]]
    for line in body.split("\n"):
        if line.strip() in (".", ""):
            blocks.append([])
        elif (bullet := BULLET.match(line[1:])) or not blocks[-1]:
            blocks[-1].append(line[1:][bullet.end():] if bullet else line[1:])
        else:
            blocks[-1][-1] += " " + line[1:]
    found = []
    for items in blocks:
        text = " ".join(EMPTY_BRACKETS.sub(" ", URL.sub(" ", join_items(items))).split())
        if text:
            found.append(text if text[-1] in ".:;!?" else text + ".")
    return found


# ---- boilerplate

WITH_DIGIT = re.compile(r"[a-z0-9.]*\d[a-z0-9.]*")
NAME_IN_TEXT = re.compile(r"(?<![a-z.])[a-z]+\+*")
NOT_COMPARED = re.compile(r"[^a-z@#+]+")
LABELLED = re.compile(r"(?:author|url|homepage)s?:", re.IGNORECASE)


def name_words(package: Package) -> set[str]:
    """The words of a package's and its source's name that masking takes for a name."""
    words = set()
    for part in re.split(r"[-._]", f"{package.name}-{package.source}".lower()):
        bare = part.removeprefix("lib")
        words |= {part, bare}
        if part != "python3":       # a language; "python" would hide the word in hundreds of descriptions
            words.add(re.sub(r"\d+$", "", bare))
    # Every Node.js package begins with "node", which then is no name.
    return {word for word in words - {"node"} if len(word) >= 3}


def mask(paragraph: str, names: set[str]) -> str:
    """The paragraph as it is compared: small letters, "@" for the names, "#" for words with digits."""
    def hide(match: re.Match) -> str:
        word = match.group()
        if word in names:
            return "@"
        bare = word.rstrip("+")
        return "@" + word[len(bare):] if bare in names else word

    text = NAME_IN_TEXT.sub(hide, WITH_DIGIT.sub("#", paragraph.lower()))
    return " ".join(NOT_COMPARED.sub(" ", text).split())


def own_paragraphs(packages: Iterable[Package]) -> tuple[list[tuple[Package, dict[int, str]]], int]:
    """The packages, each with those of its `paragraphs` that are no boilerplate, by number, and how many are.

    Boilerplate is a paragraph whose masked text at least BOILERPLATE_SOURCES sources share, one that begins
    with a label ("Author:"), or one of fewer than three letters.
    """
    split, sources = [], defaultdict(set)
    for package in packages:
        names = name_words(package)
        texts = [(text, mask(text, names)) for text in paragraphs(package.body)]
        for _, masked in texts:
            sources[masked].add(package.source)
        split.append((package, texts))
    common = {masked for masked, users in sources.items() if len(users) >= BOILERPLATE_SOURCES}
    found, dropped = [], 0
    for package, texts in split:
        own = {number: text for number, (text, masked) in enumerate(texts) if masked not in common
               and not LABELLED.match(text) and len(re.findall(r"[A-Za-z]", text)) >= 3}
        dropped += len(texts) - len(own)
        found.append((package, own))
    return found, dropped


def make_pairs(owned: Iterable[tuple[Package, dict[int, str]]]) -> list[Pair]:
    """Pairs of cleaned texts, from packages with their own paragraphs."""
    pairs = []
    for package, own in owned:
        words = " ".join(own.values()).split()[:MAX_SOURCE_WORDS]
        pairs.append(Pair(*package[:4], " ".join(words), clean_synopsis(package.synopsis)))
    return pairs


# ---- filters of single pairs

NO_FUNCTION_NAME = re.compile(
    r"-(?:dev|doc|docs|manual|prof|data|common|examples?|dbg|dbgsym|tests?|l10n|i18n|source|src|headers)$")
NO_FUNCTION_SECTIONS = {"debug", "introspection", "localization", "metapackages", "oldlibs", "tasks"}
NO_FUNCTION_SYNOPSIS = re.compile(r"transitional|dummy|meta-?package", re.IGNORECASE)
STOP_WORDS = set("a an and are as at be by for from has have in is it its of on or that the this to use used "
                 "using with".split())


def words_of(text: str) -> list[str]:
    """The runs of letters and digits, in small letters."""
    return re.findall(r"[^\W_]+", text.lower())


def has_function(pair: Pair) -> bool:
    """Neither the development, documentation or data part of another package, nor transitional."""
    return not (NO_FUNCTION_NAME.search(pair.name) or pair.section.rpartition("/")[2] in NO_FUNCTION_SECTIONS
                or NO_FUNCTION_SYNOPSIS.search(pair.synopsis))


def is_long_enough(pair: Pair) -> bool:
    return len(pair.description.split()) >= MIN_SOURCE_WORDS


def has_fit_synopsis(pair: Pair) -> bool:
    return MIN_TARGET_WORDS <= len(pair.synopsis.split()) <= MAX_TARGET_WORDS


def shares_content(pair: Pair) -> bool:
    """A content word of the synopsis is in the description or the package's name, up to its ending."""
    stems = [{word[:STEM] for word in words_of(text) if word not in STOP_WORDS}
             for text in (pair.synopsis, f"{pair.name} {pair.description}")]
    return bool(stems[0] & stems[1])


FILTERS: dict[str, Callable[[Pair], bool]] = {
    "not a -dev, -doc, -data, ... or transitional package": has_function,
    f"description of at least {MIN_SOURCE_WORDS} words": is_long_enough,
    f"synopsis of {MIN_TARGET_WORDS} to {MAX_TARGET_WORDS} words": has_fit_synopsis,
    "description and synopsis share a content word": shares_content,
}


# ---- filters between pairs

def runs(text: str, length: int) -> set[str]:
    """All runs of so many successive words, joined by spaces."""
    words = words_of(text)
    return {" ".join(words[i:i + length]) for i in range(len(words) - length + 1)}


def group_sources(pairs: Iterable[Pair]) -> dict[str, str]:
    """{source: representative of its group}: sources grouped that share COMMON_SHINGLES informative shingles.

    Informative is a shingle of 2 to SHINGLE_SOURCES sources. Groups are the connected parts.
    """
    texts = defaultdict(set)
    for pair in pairs:
        texts[pair.source] |= {hash(run) for run in runs(pair.description, SHINGLE)}
    frequency = Counter(run for shingles in texts.values() for run in shingles)
    users = defaultdict(list)
    for source, shingles in texts.items():
        for run in shingles:
            if 2 <= frequency[run] <= SHINGLE_SOURCES:
                users[run].append(source)
    common = Counter()
    for sources in users.values():
        common.update((one, other) for i, one in enumerate(sources) for other in sources[:i])

    groups = least_of_groups(pair for pair, count in common.items() if count >= COMMON_SHINGLES)
    return {source: groups.get(source, source) for source in texts}


def synopsis_key(pair: Pair) -> str:
    """Synopses with the same key count as the same: case, punctuation and numbers aside."""
    return re.sub(r"\d+", "#", " ".join(words_of(pair.synopsis)))


def drop_duplicates(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair for each synopsis and each near-duplicate description.

    Kept is the package that bears its source's name, then the longest description, then the first name.
    """
    kept, synopses, users = [], set(), defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: (pair.name != pair.source, -len(pair.description), pair.name)):
        shingles = {hash(run) for run in runs(pair.description, SHINGLE)}
        common = Counter(other for run in shingles for other in users[run])
        copies = (count >= NEAR_DUPLICATE * min(len(shingles), kept[other][1])
                  for other, count in common.items())
        if synopsis_key(pair) in synopses or any(copies):
            continue
        synopses.add(synopsis_key(pair))
        for run in shingles:
            users[run].append(len(kept))
        kept.append((pair, len(shingles)))
    return [pair for pair, _ in kept]


def drop_leaks(pairs: Iterable[Pair], evaluation: Iterable[Pair]) -> list[Pair]:
    """The pairs that repeat no synopsis and no LEAK_WORDS successive words of an evaluation pair."""
    synopses, texts = set(), set()
    for pair in evaluation:
        synopses.add(synopsis_key(pair))
        texts |= runs(pair.description, LEAK_WORDS)
    return [pair for pair in pairs
            if synopsis_key(pair) not in synopses and texts.isdisjoint(runs(pair.description, LEAK_WORDS))]
