"""Reading what systems wrote: the output of fairseq-generate, its shards, and plain text, one line a sentence."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from diffusion_fairseq.errors import UserError

GENERATED_LINE = re.compile(r"([STHD])-(\d+)(?:\t(.*))?", re.DOTALL)


@dataclass
class Sentence:
    """The lines of one id, and where the first of them stands (FILE:LINE)."""

    where: str
    texts: dict[str, list[str]] = field(default_factory=lambda: {"S": [], "T": [], "H": [], "D": []})


@dataclass
class Outputs:
    """What one system wrote: candidates[j][i] is its j-th hypothesis for sentence i."""

    candidates: list[list[str]]
    sources: list[str] | None = None
    references: list[str] | None = None

    def __len__(self) -> int:
        return len(self.candidates[0])


def numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines from 1 on, split at newlines only: text may hold the other separators that Python knows."""
    try:
        with open(path, encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None


def read_lines(path: str) -> list[str]:
    lines = [line for _, line in numbered_lines(path)]
    if not lines:
        raise UserError(f"{path}: empty file")
    return lines


def read_generated(paths: Sequence[str]) -> Outputs:
    """Outputs of fairseq-generate or -interactive; several files are the shards of one test set."""
    sentences: dict[int, Sentence] = {}
    for path in paths:
        for number, line in numbered_lines(path):
            match = GENERATED_LINE.fullmatch(line)
            if match:
                add_line(sentences, match, f"{path}:{number}")
    check_complete(sentences, paths)
    ordered = [sentences[i].texts for i in range(len(sentences))]
    return Outputs(
        candidates=[list(texts) for texts in zip(*(texts["D"] for texts in ordered), strict=True)],
        sources=[texts["S"][0] for texts in ordered] if ordered[0]["S"] else None,
        references=[texts["T"][0] for texts in ordered] if ordered[0]["T"] else None,
    )


def add_line(sentences: dict[int, Sentence], match: re.Match, where: str) -> None:
    kind, number, text = match[1], int(match[2]), match[3] or ""
    sentence = sentences.setdefault(number, Sentence(where))
    if kind in "ST" and sentence.texts[kind]:
        raise UserError(f"{where}: {kind}-{number} comes twice, its sentence began at {sentence.where}")
    if kind in "HD":
        score, _, text = text.partition("\t")
        try:
            float(score)
        except ValueError:
            raise UserError(f"{where}: {kind}-{number} has no score but {score[:20]!r}") from None
    sentence.texts[kind].append(text)


def check_complete(sentences: dict[int, Sentence], paths: Sequence[str]) -> None:
    """Raise UserError unless ids run from 0 without a gap, each with as many lines of each kind."""
    files = ", ".join(paths)
    if not any(sentence.texts["D"] for sentence in sentences.values()):
        raise UserError(f"{files}: no D- line, so not the output of fairseq-generate (plain text: --plain)")
    last = max(sentences)
    missing = [i for i in range(last) if i not in sentences]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{files}: {len(missing)} of {last + 1} ids are missing ({shown}); the last id, {last}, "
            f"is at {sentences[last].where}"
        )
    names = {"D": "hypotheses (D-)", "H": "hypotheses (H-)", "S": "sources (S-)", "T": "references (T-)"}
    for kind, name in names.items():
        counts = {i: len(sentences[i].texts[kind]) for i in range(last + 1)}
        usual = Counter(counts.values()).most_common(1)[0][0]
        for i, count in counts.items():
            if count != usual:
                raise UserError(f"{sentences[i].where}: id {i} has {count} {name}, most ids have {usual}")
    if len(sentences[0].texts["H"]) not in (0, len(sentences[0].texts["D"])):
        raise UserError(f"{sentences[0].where}: id 0 has unequal numbers of H- and D- lines")


def read_either(path: str) -> Outputs:
    """Generated output where the file has a D- line, else plain text, one line a sentence."""
    lines = read_lines(path)
    generated = any(line.startswith("D-") and GENERATED_LINE.fullmatch(line) for line in lines)
    return read_generated([path]) if generated else Outputs([lines])


def read_system(path: str, model: Outputs, same_references: bool) -> Outputs:
    """A further system for the model's sentences: plain text, one line a sentence, or generated output."""
    system = read_either(path)
    if same_references and system.references not in (None, model.references):
        raise UserError(f"{path}: its T- lines are not the model's; give --references FILE for both")
    if len(system) != len(model):
        raise UserError(f"{path}: {len(system)} sentences, but the model has {len(model)}")
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
