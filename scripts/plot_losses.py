#!/usr/bin/env python3
"""Plot every loss term of a training over its updates, one panel a term.

    fairseq-train ... --log-format json --log-file train.log
    python scripts/plot_losses.py train.log --output losses.png

Reads the records in fairseq's log (train_inner, or train where there is none, and the validation subsets), in
JSON or as --log-format simple and tqdm write them, and passes over all other lines. Several logs are read in the
order given, as parts of one training; what a resumed run repeats replaces what it repeats. A term that is positive
throughout gets a log axis.
"""

import argparse
import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# what fairseq logs beside the loss terms
BOOKKEEPING = {
    "bsz", "clip", "cuda_gb_allocated", "cuda_gb_free", "cuda_gb_reserved", "ema_decay", "epoch", "gb_free",
    "gb_total", "gnorm", "loss_scale", "lr", "num_updates", "ppl", "train_wall", "ups", "update", "wall",
    "wpb", "wps",
}  # fmt: skip
COUNTER = "num_updates"
COLOURS = {"train": "#1f6fb4", "valid": "#d9541e"}
MORE_COLOURS = ("#2a8a4a", "#7b4ea3", "#8c6d1f", "#777777")
# A record that is not in JSON: of an interval, of a validation subset, of an epoch.
PLAIN = re.compile(r"epoch (\d+)(?:(:) +\d+ / \d+ | \| valid on '([^']*)' subset \| | \| )(.*)")
# Where a record should stand: after the name that it is logged under, or a brace; or where bytes are damaged.
RECORD = re.compile(r'[^{]*\{"|.*\| (?:train_inner|train|valid\w*) \||.*[\0\ufffd]')
SMOOTH_ABOVE = 150
Series = dict[str, dict[str, list[tuple[int, float]]]]


def records(path: str, broken: list[int] | None = None) -> Iterator[dict]:
    """The records that end the lines of a log, whatever stands before them.

    Args:
        broken: gets the numbers of the lines that should hold one and hold none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        record = json_record(line) or plain_record(line)
        if record:
            yield record
        elif broken is not None and RECORD.match(line):
            broken.append(number)


def json_record(line: str) -> dict | None:
    start = line.find("{")
    try:
        record = json.loads(line[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def plain_record(line: str) -> dict | None:
    """A record with the keys that it has in JSON; None where there is none, or not the whole of it."""
    found = PLAIN.search(line)
    if found is None:
        return None
    epoch, interval, subset, text = found.groups()
    prefix = "" if interval else f"{subset or 'train'}_"
    pairs = [part.strip().partition("=" if interval else " ") for part in text.split("," if interval else " | ")]
    record = {prefix + key: value.strip() for key, _, value in pairs if value}
    whole = len(record) == len(pairs) and prefix + COUNTER in record
    return {"epoch": int(epoch), **record} if whole else None


def read_series(
    paths: Sequence[str], skipped: Collection[str] = BOOKKEEPING, broken: dict[str, list[int]] | None = None
) -> Series:
    """{term: {curve: [(update, value), ...]}}; a value that is not a finite number is left out.

    Args:
        skipped: names that are left out.
        broken: gets the broken lines of each log.
    """
    series: Series = {}
    for path in paths:
        for record in records(path, None if broken is None else broken.setdefault(path, [])):
            # train_inner records name their keys barely; the others put their subset before each
            counters = [key for key in record if key == COUNTER or key.endswith("_" + COUNTER)]
            if counters:
                add_record(series, record, counters[0].removesuffix(COUNTER), skipped)
    for curves in series.values():
        if "train_inner" in curves:
            curves["train"] = curves.pop("train_inner")
    return series


def add_record(series: Series, record: dict, prefix: str, skipped: Collection[str]) -> None:
    update = as_number(record[prefix + COUNTER])
    for key, text in record.items():
        term, value = key.removeprefix(prefix), as_number(text)
        if term in skipped or term.startswith("best_"):
            continue
        if math.isfinite(update) and math.isfinite(value):
            curve = series.setdefault(term, {}).setdefault(prefix.rstrip("_") or "train_inner", [])
            while curve and curve[-1][0] >= update:
                curve.pop()
            curve.append((int(update), value))


def as_number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def choose_terms(series: Series, wanted: str | None) -> list[str]:
    """Those in the comma-separated list, or all: the total loss first, the others by name."""
    if wanted is None:
        return sorted(series, key=lambda term: (term != "loss", term))
    terms = [term.strip() for term in wanted.split(",") if term.strip()]
    unknown = [term for term in terms if term not in series]
    if unknown or not terms:
        missing = ", ".join(unknown) or "name given"
        raise SystemExit(f"error: --terms: no {missing}; the log has {', '.join(series)}")
    return terms


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean over `window` neighbours of each value, fewer at the ends."""
    before, after = window // 2, window - window // 2
    spans = [values[max(0, i - before) : i + after] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def draw_curve(axes, name: str, points: list[tuple[int, float]], colour: str) -> None:
    updates, values = zip(*points, strict=True)
    if name != "train":
        axes.plot(updates, values, color=colour, marker="o", markersize=3.5, linewidth=1.4, label=name)
    elif len(points) > SMOOTH_ABOVE:
        axes.plot(updates, values, color=colour, linewidth=0.7, alpha=0.3)
        smooth = running_mean(values, window=len(points) // 40)
        axes.plot(updates, smooth, color=colour, linewidth=1.6, label=f"{name} (running mean)")
    else:
        marker = "." if len(points) < 5 else ""  # a line of one point would not show
        axes.plot(updates, values, color=colour, marker=marker, linewidth=1.4, label=name)


def draw_panel(
    axes, term: str, curves: dict[str, list[tuple[int, float]]], colours: dict[str, str], log: bool
) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    for name, points in sorted(curves.items()):
        draw_curve(axes, name, points, colours[name])
    values = [value for points in curves.values() for _, value in points]
    axes.set_title(term, loc="left", fontweight="bold", fontsize=11)
    axes.set_xlabel("update")
    axes.set_ylabel(term)
    axes.grid(True, linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if log and min(values) > 0:
        axes.set_yscale("log")
        axes.set_ylabel(f"{term} (log scale)")
        decades = math.log10(max(values) / min(values))
        # within two decades, ticks at powers of ten alone would leave one number on the axis or none
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        if decades < 0.7:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8)


def draw(series: Series, terms: Sequence[str], title: str, log: bool = True):
    """The matplotlib Figure; `log`: with log axes where all values are positive."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("error: plots need matplotlib: pip install matplotlib") from None
    others = {name for term in terms for name in series[term]} - COLOURS.keys()
    colours = {**COLOURS, **dict(zip(sorted(others), itertools.cycle(MORE_COLOURS)))}
    columns = min(len(terms), 3 if len(terms) != 4 else 2)
    rows = math.ceil(len(terms) / columns)
    updates = [update for term in terms for points in series[term].values() for update, _ in points]
    margin = max(1, 0.04 * (max(updates) - min(updates)))
    figure = Figure(figsize=(max(5.5, 4.3 * columns), 3.1 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, term in zip(panels, terms, strict=False):
        draw_panel(axes, term, series[term], colours, log)
        axes.set_xlim(min(updates) - margin, max(updates) + margin)
    for axes in panels[len(terms) :]:
        axes.set_visible(False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="log of fairseq-train")
    parser.add_argument("--output", default="losses.png", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--terms", metavar="A,B", help="only these terms, in this order (default: all)")
    parser.add_argument("--title", help="(default: the name of the first log)")
    args = parser.parse_args(arguments)
    series = read_series(args.logs)
    if not series:
        raise SystemExit(f"error: {', '.join(args.logs)}: no loss in it; train with --log-format json")
    terms = choose_terms(series, args.terms)
    figure = draw(series, terms, args.title or f"Training losses: {Path(args.logs[0]).name}")
    try:
        figure.savefig(args.output, dpi=130)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {args.output}: {error}") from None
    print(f"{args.output}: {', '.join(terms)}")


if __name__ == "__main__":
    main()
