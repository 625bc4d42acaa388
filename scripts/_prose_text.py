"""prepare_prose's text: from HTML, man pages, POD and wrapped text to clean paragraphs. No I/O."""

import html
import re
import unicodedata
from html.parser import HTMLParser
from typing import Iterable, Iterator

Block = tuple[bool, str]        # (whether it's a heading, text)

# ---- normalised text

INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b-\u200f\u2060\ufeff¶]")
STRAIGHT = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "′": "'",
                          "‹": "'", "›": "'", "‐": "-", "‑": "-", "–": "-", "−": "-", "…": "...", "―": "—"})
URL = re.compile(r"<?\b(?:https?|ftp|gopher|news|mailto)://[^\s)>\]]+>?|\bwww\.[^\s)>\]]+")
EMAIL = re.compile(r"<?\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+>?")
EMPTY_BRACKETS = re.compile(r"\(\s+[,;.]?\s*\)|\[\s+\]|<\s*>|(?<![\w)\]])(?:\(\)|\[\])")       # but not random()
# Between words or spaces, but not before an option: --force.
DASHES = re.compile(r"(?:(?<=[\w\"'.,;:!?)\]])|(?<!\S)(?=-{2,3}(?:\s|$)))-{2,3}(?=[\w\"'(\[\s]|$)")
SPACED_DOTS = re.compile(r"\.(?:\s\.){2,}")
EMPHASIS = re.compile(r"(?<![\w*])([_*])([A-Za-z]+)\1(?![\w*])")
BULLET = re.compile(r"(?:[•∙·*]\s+)+")
AFTER_BRACKET = re.compile(r"(?<=[(\[])\s+(?=[A-Za-z])")
BEFORE_MARK = re.compile(r"\s+([,;:!?]|\.(?![\w.]))(?=[\s\"')\]]|$)")


def clean(text: str) -> str:
    """Text on one line in NFC: straight quotes, "—" for "--", "..." for dots and no marks of emphasis.

    Addresses of the web and of mail go, and brackets that are empty without them.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(STRAIGHT)
    text = EMPTY_BRACKETS.sub(" ", EMAIL.sub(" ", URL.sub(" ", INVISIBLE.sub("", text))))
    text = EMPHASIS.sub(r"\2", SPACED_DOTS.sub("...", DASHES.sub("—", " ".join(text.split()))))
    text = BEFORE_MARK.sub(r"\1", AFTER_BRACKET.sub("", text))
    return text[found.end():] if (found := BULLET.match(text)) else text


WORD = re.compile(r"[\"'(\[—]*[^\W\d_]+(?:['—/-][^\W\d_]+)*[\"')\],.;:!?—]*")
ENDS = re.compile(r"[.!?:;,\"')\]…—]$|\.\.\.$")
LETTERS = 0.7           # least share of letters among the characters that are no space
LATIN = 0.9             # least share of Latin ones among the letters
WORDS = 0.6             # least share of white-space separated words that are words and no code
LONG_ENOUGH = 12        # so many words need no full stop to pass for prose


def is_prose(text: str, min_words: int) -> bool:
    """Whether a clean paragraph is running English text: enough words, mostly letters, and it ends in a mark."""
    words = text.split()
    if len(words) < min_words or (len(words) < LONG_ENOUGH and not ENDS.search(text)):
        return False
    letters = sum(map(str.isalpha, text))
    latin = letters if text.isascii() else sum(character.isalpha() and character < "\u0250" for character in text)
    if letters < LETTERS * (len(text) - len(words) + 1) or latin < LATIN * letters:
        return False
    return sum(WORD.fullmatch(word) is not None for word in words) >= WORDS * len(words)


def unwrap(lines: Iterable[str]) -> Iterator[str]:
    """The paragraphs of hard-wrapped lines, each on one line; empty lines stand between them."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line.strip())
        elif block:
            yield " ".join(block)
            block = []
    if block:
        yield " ".join(block)


# ---- HTML

BLOCKS = frozenset("address article blockquote body caption center dd div dl dt fieldset figcaption figure form h1 h2 "
                   "h3 h4 h5 h6 hr li main ol p section table tbody td th thead title tr ul".split())
HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
NO_TEXT = frozenset("aside button footer head header math nav noscript pre script select style svg table".split())
NO_TEXT_CLASSES = frozenset(
    "admonition-title headerlink highlight indextable literallayout navfooter navheader programlisting refentrytitle "
    "refsynopsisdiv related relatedtopics screen sig sphinxsidebar synopsis toc toctree-wrapper versionmodified "
    "footnote kernelindent literalblock math".split())


class _HtmlBlocks(HTMLParser):
    """Collects the blocks of a page; `skipped` is the open element without text, with its depth."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.text: list[str] = []
        self.heading = False
        self.skipped, self.depth = "", 0

    def flush(self) -> None:
        text = " ".join("".join(self.text).split())
        if text:
            self.blocks.append((self.heading, text))
        self.text = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if self.skipped:
            self.depth += tag == self.skipped
            return
        classes = dict(attributes).get("class") or ""
        if tag in NO_TEXT or not NO_TEXT_CLASSES.isdisjoint(classes.split()):
            if tag in BLOCKS or tag == "pre":
                self.flush()
            self.skipped, self.depth = tag, 1
        elif tag in BLOCKS:
            self.flush()
            self.heading = tag in HEADINGS
        elif tag == "br":
            self.text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            self.depth -= tag == self.skipped
            if not self.depth:
                self.skipped = ""
        elif tag in BLOCKS:
            self.flush()
            self.heading = False

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.text.append(data)


def html_blocks(page: str, start: str = "") -> list[Block]:
    """The headings and paragraphs of a page from the text `start` on: no code, tables, menus or signatures."""
    parser = _HtmlBlocks()
    found = page.find(start)
    parser.feed(page[page.rfind("<", 0, found + 1):] if start and found >= 0 else page)
    parser.close()
    parser.flush()
    return parser.blocks


def strip_tags(text: str) -> str:
    """Text of a fragment of XML whose tags need no reading."""
    return html.unescape(re.sub(r"<[^>]*>", "", text))


# ---- man pages

SKIPPED_SECTIONS = frozenset("NAME SYNOPSIS COLOPHON AUTHOR AUTHORS COPYRIGHT LIBRARY STANDARDS FILES".split()
                             + ["SEE ALSO", "CONFORMING TO", "REPORTING BUGS"])
CHARACTERS = {"em": "—", "en": "-", "aq": "'", "oq": "'", "cq": "'", "dq": '"', "lq": '"', "rq": '"', "ha": "^",
              "ti": "~", "ga": "`", "bu": "", "rs": "\\", "+-": "±", "co": "©", "sc": "§", "de": "°", "mc": "µ",
              "mu": "×", "fm": "'", "la": "<", "ra": ">", "->": "→", ":a": "ä", ":o": "ö", ":u": "ü", "'a": "á",
              "'e": "é", "`a": "à", "^a": "â", "^o": "ô", "12": "½", "ss": "ß"}
ESCAPE = re.compile(r"""\\(?: f(?:\(..|\[[^]]*\]|.) | s[-+]?\d+ | \((?P<two>..) | \[(?P<name>[^]]*)\]
                        | \*(?:\((?P<string>..)|\[(?P<long>[^]]*)\]|(?P<short>.)) | [wvhn]'[^']*' | (?P<one>.) )""",
                    re.VERBOSE)
ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", "t": " ", ".": "."}
ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
PARAGRAPH_MACROS = frozenset("PP P LP sp IP RS RE HP INDENT UNINDENT in br".split())
CODE = {"nf": "fi", "EX": "EE", "TS": "TE", "de": "."}
FONTS = frozenset("B I SM SB".split())
ALTERNATING = frozenset("BR RB IR RI BI IB".split())


def _escape(match: re.Match) -> str:
    name = match["two"] or match["name"] or match["string"] or match["long"]
    return CHARACTERS.get(name, "") if name else ONE.get(match["one"] or "", "")


def _man_text(macro: str, rest: str) -> str:
    """What a line with a macro for fonts sets, escapes still in it."""
    arguments = [quoted.replace('""', '"') or bare for quoted, bare in ARGUMENT.findall(rest)]
    return ("" if macro in ALTERNATING else " ").join(arguments)


def man_paragraphs(page: str) -> list[str]:
    """The paragraphs of a man page without synopsis, code, tables and lists of pages; "tag: text" for tagged ones."""
    found: list[str] = []
    text: list[str] = []
    code, skipped, tag = "", True, False

    def flush() -> None:
        if text and not skipped:
            found.append(" ".join(text))
        text.clear()

    for line in page.split("\n"):
        macro, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", line)
        if code:
            code = "" if macro == code else code
            continue
        rest = re.sub(r'\\["#].*', "", rest).strip()
        if macro in CODE:
            flush()
            code = CODE[macro]
        elif macro in ("SH", "SS"):
            flush()
            if macro == "SH":
                skipped = rest.strip('"').upper() in SKIPPED_SECTIONS
        elif macro in PARAGRAPH_MACROS:
            flush()
        elif macro == "TP":
            flush()
            tag = True
        elif (not macro and rest) or macro in FONTS or macro in ALTERNATING:
            words = ESCAPE.sub(_escape, _man_text(macro, rest) if macro else rest).strip()
            if tag and len(words.split()) <= 3 and "(" not in words and words:
                text.append(words + ":")
            elif not tag and words:
                text.append(words)
            tag = False
        elif not line.strip():
            flush()
    flush()
    return found


# ---- POD

POD_WIDE = re.compile(r"([A-Z])(<<+)\s+(.*?)\s+>>+", re.DOTALL)
POD_CODE = re.compile(r"([A-Z])<([^<>]*)>")
POD_LEFT = re.compile(r"\b[BCEFILSXZ]<|\|perl\w*/")      # codes nested in ways that the two patterns do not see
POD_CHARACTERS = {"lt": "\0", "gt": "\1", "sol": "/", "verbar": "|", "eacute": "é"}


def _pod_code(match: re.Match) -> str:
    kind, text = match[1], match[match.re.groups]
    if kind in "XZ":
        return ""
    if kind == "E":
        return POD_CHARACTERS.get(text, "")
    if kind == "L":
        text = text.partition("|")[0]
        return text if "://" in text else text.strip("/").replace("/", " ").replace('"', "")
    return text.replace("<", "\0").replace(">", "\1")


def pod_paragraphs(text: str) -> list[str]:
    """The ordinary paragraphs of a POD file: no verbatim ones, no headings, no foreign formats."""
    found, foreign = [], False
    for block in re.split(r"\n\s*\n", text):
        block = block.lstrip("\n")
        if block.startswith("="):
            command = block.split(maxsplit=1)[0]
            foreign = command == "=begin" or (foreign and command != "=end")
            block = block[5:].lstrip(" *0123456789.") if command == "=item" else ""
        if foreign or not block or block[0] in " \t":
            continue
        block = POD_WIDE.sub(_pod_code, " ".join(block.split()))
        while (inner := POD_CODE.sub(_pod_code, block)) != block:
            block = inner
        if not POD_LEFT.search(block):
            found.append(block.replace("\0", "<").replace("\1", ">"))
    return found
