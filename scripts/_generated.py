"""Reading what systems wrote: the output of fairseq-generate, its shards, and plain text, one line a sentence."""

import random
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from diffusion_fairseq.errors import UserError

# The kind of a sentence's line, its id, of E- lines (--retain-iter-history) the step, and what follows.
SENTENCE_LINE = re.compile(r"([A-Z])-([0-9]+)(?:_[0-9]+)?(?:\t(.*))?\r?", re.DOTALL)
READ = "STHD"  # kinds of lines that are scored
MOST_DIGITS = 18


@dataclass
class Sentence:
    """The lines of one id, the file that has them, and where the first of them stands (FILE:LINE)."""

    path: str
    where: str
    texts: dict[str, list[str]] = field(default_factory=lambda: {"S": [], "T": [], "H": [], "D": []})
    scores: list[float] = field(default_factory=list)


@dataclass
class Outputs:
    """What one system wrote: candidates[j][i] is its j-th hypothesis for sentence i, in the order in which they are
    printed, and scores[j][i] what the model gives it, where it says so."""

    candidates: list[list[str]]
    sources: list[str] | None = None
    references: list[str] | None = None
    scores: list[list[float]] | None = None

    def __len__(self) -> int:
        return len(self.candidates[0])

    def surest(self) -> list[int]:
        """Each sentence's candidate of the highest score, of equal ones the first; the first where there are none."""
        if self.scores is None:
            return [0] * len(self)
        return [max(range(len(scores)), key=scores.__getitem__) for scores in zip(*self.scores, strict=True)]

    def take(self, number: int, draw: random.Random) -> None:
        """Keep a random choice of so many of each sentence's candidates, in their order, as if no more had been there.

        Raises:
            UserError: there are fewer.
        """
        held = len(self.candidates)
        if number > held:
            raise UserError(f"--take {number}: there are {held} candidate(s) of each sentence; generate more (--nbest)")
        kept = [sorted(draw.sample(range(held), number)) for _ in range(len(self))]

        def taken(columns: list[list]) -> list[list]:
            return [[columns[j][i] for i, j in enumerate(places)] for places in zip(*kept, strict=True)]

        self.candidates = taken(self.candidates)
        self.scores = self.scores and taken(self.scores)

    def pool(self, other: "Outputs") -> None:
        """Take another system's candidates for the same sentences in; scores are kept where both have some."""
        self.candidates.extend(other.candidates)
        self.scores = None if None in (self.scores, other.scores) else [*self.scores, *other.scores]


def _raw_lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines from 1 on, split at newlines only: text may hold the other separators that Python knows."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}:{_undecodable(path)}: not UTF-8 text: convert the file") from None


def _undecodable(path: str) -> int:
    """The first line of a file that is not UTF-8."""
    with open(path, "rb") as lines:
        return next(number for number, line in enumerate(lines, start=1)
                    if line.decode("utf-8", "ignore").encode("utf-8") != line)


def numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines from 1 on, without what ends them."""
    for number, line in _raw_lines(path):
        yield number, line.removesuffix("\n").removesuffix("\r")


def sentence_lines(path: str) -> Iterator[tuple[str, re.Match]]:
    """The lines of sentences in what fairseq-generate printed, and where they stand (FILE:LINE).

    Raises:
        UserError: the file cannot be read, ends within such a line, or numbers one beyond belief.
    """
    for number, line in _raw_lines(path):
        match = SENTENCE_LINE.fullmatch(line.removesuffix("\n"))
        if match and len(match[2]) > MOST_DIGITS:
            raise UserError(f"{path}:{number}: no set has so many sentences: {line[:20]}...")
        if match and not line.endswith("\n"):
            raise UserError(f"{path}:{number}: the file ends within this line, so it was cut short: generate it again")
        if match:
            yield f"{path}:{number}", match


def missing_ids(found: Container[int], missing: int) -> str:
    """The first of so many ids from 0 on that are not there, to be shown."""
    first = islice((i for i in count() if i not in found), min(missing, 5))
    return ", ".join(map(str, first)) + (", ..." if missing > 5 else "")


def read_lines(path: str) -> list[str]:
    lines = [line for _, line in numbered_lines(path)]
    if not lines:
        raise UserError(f"{path}: empty file")
    return lines


def read_generated(paths: Sequence[str]) -> Outputs:
    """Outputs of fairseq-generate or -interactive; several files are the shards of one test set."""
    sentences: dict[int, Sentence] = {}
    for path in paths:
        for where, match in sentence_lines(path):
            if match[1] in READ:
                add_line(sentences, match, path, where)
    check_complete(sentences, paths)
    ordered = [sentences[i].texts for i in range(len(sentences))]
    return Outputs(
        candidates=[list(texts) for texts in zip(*(texts["D"] for texts in ordered), strict=True)],
        sources=[texts["S"][0] for texts in ordered] if ordered[0]["S"] else None,
        references=[texts["T"][0] for texts in ordered] if ordered[0]["T"] else None,
        scores=[list(scores) for scores in zip(*(sentences[i].scores for i in range(len(sentences))), strict=True)],
    )


def add_line(sentences: dict[int, Sentence], match: re.Match, path: str, where: str) -> None:
    kind, number, text = match[1], int(match[2]), (match[3] or "").removesuffix("\r")
    sentence = sentences.setdefault(number, Sentence(path, where))
    if sentence.path != path:
        raise UserError(f"{where}: sentence {number} is there twice, first at {sentence.where}: give each shard once")
    if kind in "ST" and sentence.texts[kind]:
        raise UserError(f"{where}: {kind}-{number} comes twice, its sentence began at {sentence.where}")
    if kind in "HD":
        shown, _, text = text.partition("\t")
        try:
            score = float(shown)
        except ValueError:
            raise UserError(f"{where}: {kind}-{number} has no score but {shown[:20]!r}") from None
        if kind == "D":
            sentence.scores.append(score)
    sentence.texts[kind].append(text)


def check_complete(sentences: dict[int, Sentence], paths: Sequence[str]) -> None:
    """Raise UserError unless ids run from 0 without a gap, each with as many lines of each kind."""
    files = ", ".join(paths)
    if not any(sentence.texts["D"] for sentence in sentences.values()):
        raise UserError(f"{files}: no D- line, so not the output of fairseq-generate (plain text: --plain)")
    last = max(sentences)
    missing = last + 1 - len(sentences)
    if missing:
        raise UserError(
            f"{files}: {missing} of {last + 1} ids are missing ({missing_ids(sentences, missing)}); the last id, "
            f"{last}, is at {sentences[last].where}"
        )
    names = {"D": "hypotheses (D-)", "H": "hypotheses (H-)", "S": "sources (S-)", "T": "references (T-)"}
    for kind, name in names.items():
        numbers = {i: len(sentences[i].texts[kind]) for i in range(last + 1)}
        usual = Counter(numbers.values()).most_common(1)[0][0]
        for i, number in numbers.items():
            if number != usual:
                raise UserError(f"{sentences[i].where}: id {i} has {number} {name}, most ids have {usual}")
    if len(sentences[0].texts["H"]) not in (0, len(sentences[0].texts["D"])):
        raise UserError(f"{sentences[0].where}: id 0 has unequal numbers of H- and D- lines")


def read_either(path: str) -> Outputs:
    """Generated output where the file has a D- line, else plain text, one line a sentence."""
    lines = read_lines(path)
    generated = any(line.startswith("D-") and SENTENCE_LINE.fullmatch(line) for line in lines)
    return read_generated([path]) if generated else Outputs([lines])


def read_system(path: str, model: Outputs, same_references: bool) -> Outputs:
    """A further system for the model's sentences: plain text, one line a sentence, or generated output."""
    system = read_either(path)
    if len(system) != len(model):
        raise UserError(f"{path}: {len(system)} sentences, but the model has {len(model)}")
    if same_references and system.references not in (None, model.references):
        raise UserError(f"{path}: its T- lines are not the model's; give --references FILE for both")
    return system


def read_plain(paths: Sequence[str]) -> Outputs:
    """Files of one hypothesis a line; the n-th file holds each sentence's n-th candidate."""
    candidates = [read_lines(path) for path in paths]
    for path, lines in zip(paths, candidates, strict=True):
        if len(lines) != len(candidates[0]):
            raise UserError(f"{path}: {len(lines)} lines, but {paths[0]} has {len(candidates[0])}")
    return Outputs(candidates)


def aligned_lines(path: str, model: Outputs) -> list[str]:
    lines = read_lines(path)
    if len(lines) != len(model):
        raise UserError(f"{path}: {len(lines)} lines, but the model has {len(model)} sentences")
    return lines
