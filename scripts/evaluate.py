#!/usr/bin/env python3
"""Score the output of fairseq-generate beside simple baselines and other systems, in one table.

    python scripts/evaluate.py generate-test.txt --train-target train.tgt --examples 10
    python scripts/evaluate.py shard0.txt shard1.txt --system other=bart.txt --json scores.json

Hypotheses are the detokenised D- lines, references the T- lines, sources the S- lines; fairseq has already
decoded all three with --bpe and --tokenizer. T- and S- lines are what the model saw: cut to its maximum
length, with <<unk>> for unknown pieces. --references and --sources give the untouched texts instead.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import overlap, report

COLUMNS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "unchanged": "unchanged %",
    "words_changed": "words changed %",
}
ORACLE_CHOSEN_BY = "rougeL"
TABLES = {"text": report.text_table, "markdown": report.markdown_table}
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
        raise UserError(f"{files}: no D- line, so not the output of fairseq-generate")
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


def read_system(path: str, model: Outputs, same_references: bool) -> Outputs:
    """A further system for the model's sentences: plain text, one line a sentence, or generated output."""
    lines = read_lines(path)
    if any(line.startswith("D-") and GENERATED_LINE.fullmatch(line) for line in lines):
        system = read_generated([path])
        if same_references and system.references not in (None, model.references):
            raise UserError(f"{path}: its T- lines are not the model's; give --references FILE for both")
    else:
        system = Outputs([lines])
    if len(system) != len(model):
        raise UserError(f"{path}: {len(system)} sentences, but the model has {len(model)}")
    return system


def aligned_lines(path: str, model: Outputs) -> list[str]:
    lines = read_lines(path)
    if len(lines) != len(model):
        raise UserError(f"{path}: {len(lines)} lines, but the model has {len(model)} sentences")
    return lines


class Evaluation:
    """The rows of the table, each scored against the same references and sources (None: not known)."""

    def __init__(self, references: list[str], sources: list[str] | None):
        self.references, self.sources = references, sources
        self.rows: dict[str, dict[str, float]] = {}
        self.signatures: dict[str, str] = {}

    def add(self, name: str, system: Outputs) -> None:
        """A row for the first candidates and, where there are several, their mean and the oracle's choice."""
        scores = [self.scores(hypotheses) for hypotheses in system.candidates]
        self.add_row(name, scores[0])
        if len(scores) > 1:
            mean = {key: sum(score[key] for score in scores) / len(scores) for key in scores[0]}
            self.add_row(f"{name}: mean over {len(scores)} candidates", mean)
            self.add_row(f"{name}: oracle (chosen with the reference)", self.scores(self.oracle(system)))

    def add_row(self, name: str, scores: dict[str, float]) -> None:
        if name in self.rows:
            raise UserError(f"two systems are called {name!r}: choose other names in --name and --system")
        self.rows[name] = scores

    def scores(self, hypotheses: list[str]) -> dict[str, float]:
        rouge = overlap.rouge(hypotheses, self.references)
        bleu = overlap.bleu(hypotheses, self.references)
        chrf = overlap.chrf(hypotheses, self.references)
        self.signatures = {
            "rouge": overlap.rouge_signature(),
            "bleu": bleu.signature,
            "chrf": chrf.signature,
        }
        return {**rouge, "bleu": bleu.score, "chrf": chrf.score, **self.changes(hypotheses)}

    def changes(self, hypotheses: list[str]) -> dict[str, float]:
        if self.sources is None:
            return {}
        return {
            "unchanged": 100 * overlap.copied_fraction(hypotheses, self.sources),
            "words_changed": 100 * overlap.changed_fraction(hypotheses, self.sources),
        }

    def oracle(self, system: Outputs) -> list[str]:
        """For each sentence the candidate nearest to the reference; the earlier one where two are equal."""
        kind = ORACLE_CHOSEN_BY
        scores = [overlap.rouge_per_sentence(c, self.references, [kind])[kind] for c in system.candidates]
        best = [max(range(len(s)), key=s.__getitem__) for s in zip(*scores, strict=True)]
        return [system.candidates[j][i] for i, j in enumerate(best)]

    def table(self, style: str) -> str:
        titled = {name: {COLUMNS[key]: row[key] for key in row} for name, row in self.rows.items()}
        return TABLES[style](titled, list(COLUMNS.values()))


def evaluate(args: argparse.Namespace, model: Outputs) -> Evaluation:
    references = aligned_lines(args.references, model) if args.references else model.references
    if references is None:
        raise UserError(f"{', '.join(args.generated)}: no T- lines; give --references FILE")
    warn_of_unknown_words(references)
    sources = aligned_lines(args.sources, model) if args.sources else model.sources
    systems = {name: read_system(path, model, not args.references) for name, path in args.system}
    if len(systems) < len(args.system):
        raise UserError("two --system options have the same name")
    targets = read_lines(args.train_target) if args.train_target else []

    evaluation = Evaluation(references, sources)
    evaluation.add(args.name, model)
    for name, system in systems.items():
        evaluation.add(name, system)
    if sources is not None:
        evaluation.add("copy of the source", Outputs([sources]))
    if targets:
        drawn = random.Random(args.seed).choices(targets, k=len(model))
        evaluation.add("random training target", Outputs([drawn]))
    if sources is not None:
        evaluation.add_row("the reference itself", evaluation.changes(references))
    return evaluation


def warn_of_unknown_words(references: list[str]) -> None:
    holding = sum("<<unk>>" in reference for reference in references)
    if holding:
        warning = f"{holding} of {len(references)} references hold <<unk>>, which no output matches fairly"
        print(f"warning: {warning}: give --references and --sources", file=sys.stderr)


def examples(model: Outputs, evaluation: Evaluation, count: int) -> str:
    """Sentences at even distances through the test set."""
    count = min(count, len(model))
    blocks = []
    for i in (number * len(model) // count for number in range(count)):
        texts = {"output": model.candidates[0][i], "reference": evaluation.references[i]}
        if evaluation.sources is not None:
            texts = {"source": evaluation.sources[i], **texts}
        blocks.append(
            "\n".join(
                f"{i if n == 0 else '':>6}  {kind:<9}  {text}" for n, (kind, text) in enumerate(texts.items())
            )
        )
    return "\n\n".join(blocks)


def write_json(path: str, args: argparse.Namespace, model: Outputs, evaluation: Evaluation) -> None:
    result = {
        "files": args.generated,
        "sentences": len(model),
        "candidates": len(model.candidates),
        "seed": args.seed,
        "oracle_chosen_by": ORACLE_CHOSEN_BY,
        "signatures": evaluation.signatures,
        "systems": evaluation.rows,
    }
    try:
        with open(path, "w", encoding="utf-8") as out:
            json.dump(result, out, indent=2, ensure_ascii=False)
            out.write("\n")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None


def named_file(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, path


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", nargs="+", metavar="FILE", help="what fairseq-generate printed")
    parser.add_argument("--name", default="model", help="name of its row (default: %(default)s)")
    parser.add_argument("--references", metavar="FILE", help="score against these lines, not the T- lines")
    parser.add_argument("--sources", metavar="FILE", help="compare with these lines, not the S- lines")
    parser.add_argument("--train-target", metavar="FILE", help="baseline: random lines of this file")
    parser.add_argument("--seed", type=int, default=1, help="of that draw (default: %(default)s)")
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        type=named_file,
        metavar="NAME=FILE",
        help="a further row: one line a sentence, or generated output; repeatable",
    )
    parser.add_argument("--format", choices=list(TABLES), default="text", help="of the table")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here, with the metrics' signatures")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="print so many texts")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    model = read_generated(args.generated)
    evaluation = evaluate(args, model)
    print(evaluation.table(args.format))
    print(f"\n{len(model)} sentences; F1 x 100 for ROUGE, corpus scores from 0 to 100 for BLEU and chrF")
    if len(model.candidates) > 1:
        print(f"the oracle takes each sentence's candidate of highest {COLUMNS[ORACLE_CHOSEN_BY]}")
    for name, signature in evaluation.signatures.items():
        print(f"{name}: {signature}")
    if args.examples > 0:
        print("\n" + examples(model, evaluation, args.examples))
    if args.json:
        write_json(args.json, args, model, evaluation)


if __name__ == "__main__":
    main()
