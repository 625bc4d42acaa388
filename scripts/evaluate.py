#!/usr/bin/env python3
"""Score the output of fairseq-generate beside simple baselines and other systems, in one table.

    python scripts/evaluate.py generate-test.txt --train-target train.tgt --examples 10
    python scripts/evaluate.py shard0.txt shard1.txt --system other=bart.txt --json scores.json
    python scripts/evaluate.py generate-test.txt --confidence 95 --glge gigaword --write-mbr chosen.txt
    python scripts/evaluate.py --plain first.txt second.txt --references test.tgt --sources test.src

Hypotheses are the detokenised D- lines, references the T- lines, sources the S- lines; fairseq has already
decoded all three with --bpe and --tokenizer. T- and S- lines are what the model saw: cut to its maximum
length, with <<unk>> for unknown pieces. --references and --sources give the untouched texts instead.

A system of several candidates has these rows: the candidate it prints first; the one of the best model score, where
that is another (after --rank-by mbr, or with --pool); the mean over all; what minimum Bayes risk chooses, by likeness
to the other candidates and without the reference; and the oracle, which chooses with the reference and is a bound, not
a result.

self-BLEU is the mean over pairs of a source's candidates, as in DiffuSeq's scripts, unlike Zhu et al. (2018), who take
all others as references at once, which gives higher numbers.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence

import _environment  # noqa: F401  says what this Python lacks
from _evaluation import (
    BERT_MEASURES,
    DEFAULT_ORACLE,
    DIFFUSEQ_MEASURES,
    DIVERSITY,
    GLGE_MEASURES,
    MEASURES,
    RESAMPLES,
    UTILITIES,
    Evaluation,
    evaluate,
)
from _generated import Outputs, aligned_lines, read_generated, read_lines, read_plain, read_system
from _option_types import count, named

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import glge, model_based, report
from diffusion_fairseq.text.reranking import ORACLES
from diffusion_fairseq.text.reranking import UTILITIES as KNOWN_UTILITIES

LONGEST = 100_000  # characters of a text
TABLES: dict[str, Callable] = {"text": report.text_table, "markdown": report.markdown_table}


def evaluate_files(args: argparse.Namespace, model: Outputs) -> tuple[Evaluation, dict[str, Outputs]]:
    """Read what the options name, and score it; also returns the further systems."""
    references = aligned_lines(args.references, model) if args.references else model.references
    if references is None:
        raise UserError(f"{', '.join(args.generated)}: no T- lines; give --references FILE")
    for texts in model.candidates:
        refuse_long(", ".join(files_of(args)), texts)
    refuse_long(args.references or ", ".join(args.generated), references)
    warn_of_unknown_words(references)
    if args.references and model.references:
        warn_of_other_references(args.references, references, model.references)
    systems = {name: read_system(path, model, not args.references) for name, path in args.system}
    train_targets = read_lines(args.train_target) if args.train_target else ()
    for name, path in args.system:
        for texts in systems[name].candidates:
            refuse_long(path, texts)
    refuse_long(args.train_target, train_targets)
    if len(systems) < len(args.system):
        raise UserError("two --system options have the same name")
    evaluation = evaluate(
        model,
        references,
        aligned_lines(args.sources, model) if args.sources else model.sources,
        name=args.name,
        systems=systems,
        train_targets=train_targets,
        utilities=args.mbr,
        glge_variant=args.glge,
        bert_scorer=model_based.load_bert_scorer(args.bertscore, args.bertscore_layer) if args.bertscore else None,
        oracle=args.oracle,
        diffuseq=args.diffuseq_metrics,
        seed=args.seed,
        workers=args.workers,
    )
    return evaluation, systems


def files_of(args: argparse.Namespace) -> list[str]:
    """All that hold the model's candidates."""
    return [*args.generated, *args.pool]


def refuse_long(files: str, texts: list[str]) -> None:
    """Refuse what ROUGE-L, whose time grows with the square of the length, would not be done with in hours.

    Raises:
        UserError: naming the files.
    """
    for number, text in enumerate(texts):
        if len(text) > LONGEST:
            raise UserError(f"{files}: sentence {number} has {len(text):,} characters, and at most {LONGEST:,} can be "
                            "compared: split it, in the references, too")


def warn_of_other_references(path: str, given: Sequence[str], printed: Sequence[str]) -> None:
    """Say so where most lines of --references are not the generated file's T- lines, whatever their subwords."""
    pairs = list(zip(map(letters, given), map(letters, printed)))
    differing = sum(one != other and "<unk>" not in other for one, other in pairs)
    if 2 * differing > len(pairs):
        print(f"warning: {path}: {differing} of {len(pairs)} lines are not the T- lines of what was generated: is it "
              "of the same split?", file=sys.stderr)


def letters(text: str) -> str:
    """A text without spaces, sentencepiece's among them."""
    return "".join(text.replace("\u2581", " ").split())


def warn_of_unknown_words(references: list[str]) -> None:
    holding = sum("<<unk>>" in reference for reference in references)
    if holding:
        warning = f"{holding} of {len(references)} references hold <<unk>>, which no output matches fairly"
        print(f"warning: {warning}: give --references and --sources", file=sys.stderr)


def examples(model: Outputs, evaluation: Evaluation, count: int,
             systems: Mapping[str, Outputs] | None = None, candidates: int = 1) -> str:
    """Sentences at even distances through the test set, with each system's first candidates."""
    count = min(count, len(model))
    columns = [] if evaluation.sources is None else [("source", evaluation.sources)]
    for name, system in (("output", model), *(systems or {}).items()):
        columns += [(f"{name} {j}" if candidates > 1 else name, texts)
                    for j, texts in enumerate(system.candidates[:candidates], start=1)]
    columns.append(("reference", evaluation.references))
    width = max(len(kind) for kind, _ in columns)
    blocks = []
    for i in (number * len(model) // count for number in range(count)):
        lines = (f"{i if n == 0 else '':>6}  {kind:<{width}}  {texts[i]}" for n, (kind, texts) in enumerate(columns))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def titles(args: argparse.Namespace) -> dict[str, str]:
    """The columns of the scores."""
    return {**MEASURES, **(GLGE_MEASURES if args.glge else {}), **(DIFFUSEQ_MEASURES if args.diffuseq_metrics else {}),
            **(BERT_MEASURES if args.bertscore else {})}


def tables(args: argparse.Namespace, evaluation: Evaluation, intervals: dict | None) -> str:
    """The scores, their intervals where there are some, and the diversity."""
    columns = titles(args)
    shown = [titled(evaluation.rows, columns, args.format)]
    for kind, title in (("scores", ""), ("differences", f" of the difference from {args.name}")) if intervals else ():
        cells = {name: {key: f"{low:.1f} .. {high:.1f}" for key, (low, high) in row.items()}
                 for name, row in intervals[kind].items()}
        shown.append(f"{args.confidence:g} % intervals{title}\n\n{titled(cells, columns, args.format)}")
    shown.append("needing no reference\n\n" + titled(evaluation.diversity, DIVERSITY, args.format, digits=2))
    return "\n\n".join(shown)


def titled(rows: dict[str, dict], columns: dict[str, str], style: str, digits: int = 1) -> str:
    cells = {name: {columns[key]: row[key] for key in row} for name, row in rows.items()}
    return TABLES[style](cells, list(columns.values()), digits)


def as_json(args: argparse.Namespace, model: Outputs, evaluation: Evaluation, intervals: dict | None) -> str:
    result = {
        "files": files_of(args),
        "sentences": len(model),
        "candidates": len(model.candidates),
        "seed": args.seed,
        "oracle_chosen_by": args.oracle,
        "signatures": signatures(args, evaluation),
        "systems": evaluation.rows,
        "diversity": evaluation.diversity,
    }
    if intervals:
        result["confidence"] = {"percent": args.confidence, "resamples": RESAMPLES, **intervals}
    return json.dumps(result, indent=2, ensure_ascii=False)


def signatures(args: argparse.Namespace, evaluation: Evaluation) -> dict[str, str]:
    found = evaluation.signatures
    if args.confidence:
        found["bootstrap"] = f"sentences|paired|percentile|n:{RESAMPLES}|seed:{args.seed}"
    return found


def print_report(args: argparse.Namespace, model: Outputs, evaluation: Evaluation, intervals: dict | None,
                 systems: Mapping[str, Outputs]) -> None:
    print(tables(args, evaluation, intervals))
    print(f"\n{len(model)} sentences; F1 x 100 for ROUGE, corpus scores from 0 to 100 for BLEU and chrF")
    if len(model.candidates) > 1:
        print("the first row has each sentence's first candidate: the one that --rank-by of the generation put there")
    if any(evaluation.chosen.values()):
        print("MBR takes each sentence's candidate that is most like the others, without the reference")
    if evaluation.chosen:
        first, *then = (titles(args)[name] for name in ORACLES[args.oracle])
        print(f"the oracle takes each sentence's candidate of highest {first}"
              + "".join(f", of several the one of highest {name}" for name in then))
    for name, signature in signatures(args, evaluation).items():
        print(f"{name}: {signature}")
    if args.examples > 0:
        print("\n" + examples(model, evaluation, args.examples, systems, args.examples_candidates or 1))


def write_text(option: str, path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as out:
            out.write(text + "\n")
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None


def utilities(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in KNOWN_UTILITIES:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose among {', '.join(KNOWN_UTILITIES)}")
    return names


def percentage(text: str) -> float:
    number = float(text)
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"{text}: a percentage between 0 and 100, such as 95")
    return number


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", nargs="+", metavar="FILE", help="what fairseq-generate printed")
    parser.add_argument("--plain", action="store_true",
                        help="each FILE is plain text, one hypothesis a line; several are several candidates")
    parser.add_argument("--name", default="model", help="name of its row (default: %(default)s)")
    parser.add_argument("--references", metavar="FILE", help="score against these lines, not the T- lines")
    parser.add_argument("--sources", metavar="FILE", help="compare with these lines, not the S- lines")
    parser.add_argument("--train-target", metavar="FILE", help="baseline: random lines of this file")
    parser.add_argument("--seed", type=count(0), default=1,
                        help="of that draw, of --take and of --confidence (default: %(default)s)")
    parser.add_argument("--workers", type=count(1), default=os.cpu_count() or 1, metavar="N",
                        help="processes that share ROUGE's work (default: all cores)")
    parser.add_argument("--system", action="append", default=[], type=named("NAME=FILE", str), metavar="NAME=FILE",
                        help="a further row: one line a sentence, or generated output; repeatable")
    parser.add_argument("--pool", action="append", default=[], metavar="FILE",
                        help="what another run, of another --seed or model, wrote for the same sentences: candidates "
                             "after those of the first, and MBR chooses among all; repeatable")
    parser.add_argument("--take", type=count(1), metavar="N",
                        help="of FILE and of each --pool only a random N of a sentence's candidates, as if no more had "
                             "been written: pools of one size can be compared; drawn by --seed (default: all)")
    parser.add_argument("--mbr", type=utilities, default=UTILITIES, metavar="A,B",
                        help=f"utilities of minimum Bayes risk, of {', '.join(KNOWN_UTILITIES)} "
                             f"(default: {','.join(UTILITIES)})")
    parser.add_argument("--no-mbr", dest="mbr", action="store_const", const=(), help="no such rows")
    parser.add_argument("--oracle", choices=ORACLES, default=DEFAULT_ORACLE,
                        help="what the oracle chooses by (default: %(default)s); the published numbers of GENIE are "
                             "chosen by GLGE's ROUGE-2, and ROUGE-1 where that is equal: glge2, with --glge; rouge2 is "
                             "the same where --glge is plain")
    parser.add_argument("--write-mbr", metavar="FILE", help="write the lines that the first utility chooses")
    parser.add_argument("--glge", choices=list(glge.VARIANTS),
                        help="also ROUGE by the settings of GLGE and of GENIE's scripts, after what they do to texts "
                             "of this set (plain: nothing, for XSum and others)")
    parser.add_argument("--diffuseq-metrics", action="store_true",
                        help="also BLEU and ROUGE-L as DiffuSeq's Table 1 has them, x 100: the mean of the sentences' "
                             "BLEU by nltk, smoothing 4, and ROUGE-L without stemmer")
    parser.add_argument("--bertscore", metavar="MODEL",
                        help="also BERTScore, F1 x 100 without rescaling, by a model in a folder or on the hub, as "
                             "microsoft/deberta-xlarge-mnli (DiffuSeq's)")
    parser.add_argument("--bertscore-layer", type=int, metavar="N",
                        help="whose hidden states it compares (default: what bert-score knows for the model's name)")
    parser.add_argument("--confidence", type=percentage, metavar="PERCENT",
                        help="bootstrap intervals that hold so many %% of the resamples (default: none)")
    parser.add_argument("--format", choices=[*TABLES, "json"], default="text", help="of what is printed")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here, with the metrics' signatures")
    parser.add_argument("--examples", type=count(0), default=0, metavar="N", help="print so many texts")
    parser.add_argument("--examples-candidates", type=count(1), metavar="N",
                        help="of each of them the first N candidates of the model and of every --system, or what there "
                             "is (default: 1)")
    found = parser.parse_args(arguments)
    if found.bertscore_layer is not None and found.bertscore is None:
        parser.error("--bertscore-layer acts only with --bertscore: give both, or leave it out")
    if found.examples_candidates is not None and not found.examples:
        parser.error("--examples-candidates acts only with --examples: give both, or leave it out")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    model = (read_plain if args.plain else read_generated)(args.generated)
    pools = [read_system(path, model, not args.references) for path in args.pool]
    if args.take:
        draw = random.Random(args.seed)
        for system in (model, *pools):
            system.take(args.take, draw)
    for system in pools:
        model.pool(system)
    if args.write_mbr and (len(model.candidates) == 1 or not args.mbr):
        raise UserError("--write-mbr: MBR needs a utility, and several candidates of each sentence (--nbest)")
    evaluation, systems = evaluate_files(args, model)
    intervals = evaluation.intervals(args.confidence, args.seed) if args.confidence else None
    if args.format == "json":
        print(as_json(args, model, evaluation, intervals))
    else:
        print_report(args, model, evaluation, intervals, systems)
    if args.json:
        write_text("--json", args.json, as_json(args, model, evaluation, intervals))
    if args.write_mbr:
        write_text("--write-mbr", args.write_mbr, "\n".join(evaluation.chosen[args.name][args.mbr[0]]))


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
