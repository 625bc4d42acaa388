#!/usr/bin/env python3
"""One page about a training: what its logs, its checkpoint and the texts beside them hold.

    python scripts/report.py checkpoints                                  # report.html
    python scripts/report.py checkpoints --logs first.log resumed.log --format markdown

Shown are the terms of the loss over updates and over t, the health of the embeddings, the scores of validation, samples
(generated*.txt) as training went on, throughput, learning rate and gradient norm, the options that differ from their
defaults, and versions; where something is missing the page says so. Logs (*.log, *.out) and samples are looked for in
the folder, and where it has none in the one above it. Several logs are joined as parts of one training: what a resumed
one repeats replaces what it repeats. Needs no network; the charts need matplotlib and are in HTML alone.
"""

import argparse
import importlib.util
import logging
import platform
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import _environment  # noqa: F401  says what this Python lacks
import plot_losses
from _generated import read_generated
from _report_page import Section, Table, as_html, as_markdown, number, thin, trend
from _training_run import Run, changed_options, configuration, loss_over_time, read_run

from diffusion_fairseq.errors import UserError

FORMATS = {"html": as_html, "markdown": as_markdown}
ENDINGS = {"html": ".html", "markdown": ".md"}
MOST_POINTS, MOST_TERMS, MOST_FILES, MOST_LINES, MOST_LETTERS = 300, 24, 12, 10, 1000
SPEED, STEP = ("wps", "ups"), ("lr", "gnorm")
HEALTH = ("accuracy_x0", "accuracy")
PACKAGES = ("diffusion-fairseq", "ve-fairseq", "fairseq", "torch", "numpy", "matplotlib")
Curves = Dict[str, plot_losses.Series]


def parted(series: plot_losses.Series) -> Curves:
    """The curves by what they are about; what validation alone logs, and is no health of the embeddings, is a score."""
    parts: Curves = {part: {} for part in ("loss", "health", "scores", "speed", "step")}
    for term, curves in series.items():
        seen = {name: points for name, points in curves.items() if name != "train"}
        if term in SPEED + STEP and "train" in curves:
            parts["speed" if term in SPEED else "step"][term] = {"train": curves["train"]}
        elif term in plot_losses.BOOKKEEPING:
            continue
        elif term.startswith("embedding_") or (term in HEALTH and "train" not in curves):
            parts["health"][term] = seen or curves
        else:
            trained = "train" in curves or term.rpartition("_")[2] == "loss"
            parts["loss" if trained else "scores"][term] = curves
    return parts


def over_updates(title: str, run: Run, series: plot_losses.Series, none: str, log: bool) -> Section:
    """The curves as panels and as a table.

    Args:
        none: what is said where there are no curves.
        log: with log axes.
    """
    if not series:
        return Section(title, [run.missing.get("log", none)])
    terms = plot_losses.choose_terms(series, None)
    left = terms[MOST_TERMS:]
    rows = []
    for term in terms:
        for name, points in sorted(series[term].items()):
            lowest, highest = (choose(points, key=lambda point: point[1]) for choose in (min, max))
            rows.append((term, name, points[0][1], *(f"{number(value)} at {update:,}" for update, value in
                                                     (lowest, highest, points[-1])),
                         trend([value for _, value in points])))
    shown = {term: {name: thin(points, MOST_POINTS) for name, points in series[term].items()}
             for term in terms[:MOST_TERMS]}
    return Section(title, [f"Without a panel: {', '.join(left)}."] if left else [],
                   [Table(("term", "curve", "first", "lowest", "highest", "last", "trend"), rows)],
                   lambda: plot_losses.draw(shown, list(shown), "", log))


def losses_over_time(run: Run) -> Section:
    """What the checkpoint's law of t has met."""
    title = "Loss over t"
    found = loss_over_time(run.state)
    if found is None:
        return Section(title, [run.missing.get("checkpoint", "Not recorded: losses at each t are kept with "
                               "--timestep-sampler loss-second-moment, time-warp or gumbel alone."),
                               "Term t0 above, where there is one, is the loss at t = 0."])
    size = -(-len(found.t) // MOST_POINTS)
    t, loss, drawn = ([part.mean().item() for part in values.double().split(size)]
                      for values in (found.t, found.loss, found.drawn))
    name = "share of draws up to t" if found.cumulative else "probability of a draw"
    rows = list(zip(t, loss, drawn))[:: max(1, len(t) // MOST_LINES)]
    return Section(title, [f"The loss that --timestep-sampler {found.law} met last, as a mean at each t, and where it "
                           "draws t."], [Table(("t", "loss", name), rows)],
                   lambda: draw_over_time(t, {"loss": loss, name: drawn}, "log" if found.cumulative else "linear"))


def draw_over_time(t: List[float], curves: Dict[str, List[float]], scale: str):
    """A panel for each curve over t."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(curves)), curves.items()):
        axes.plot(t, values, color=plot_losses.COLOURS["train"], linewidth=1.4)
        axes.set(xlabel="t", xscale=scale)
        axes.set_title(name, loc="left", fontweight="bold", fontsize=11)
        axes.grid(True, linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def samples(run: Run, count: int) -> Section:
    """The first sentences of the generated texts, side by side."""
    title, said, outputs = "Samples over training", [], {}
    for path in evenly(run.generated, MOST_FILES):
        try:
            outputs[path] = read_generated([str(path)])
        except UserError as error:
            said.append(f"Not shown: {error}.")
    if not run.generated:
        return Section(title, [run.missing["generated"]])
    if len(run.generated) > MOST_FILES:
        said.append(f"{MOST_FILES} of {len(run.generated)} files, evenly chosen.")
    tables = []
    for place in range(count):
        rows, given = [], None
        for path, output in outputs.items():
            if place >= len(output):
                continue
            texts = {"source": output.sources, "reference": output.references}
            texts = [(name, lines[place]) for name, lines in texts.items() if lines is not None]
            # Files of other data show their own.
            rows += [(path.stem, output.candidates[0][place])] if texts == given else [
                *texts, (path.stem, output.candidates[0][place])]
            given = texts
        if rows:
            tables.append(Table(("", "text"), [(name, shortened(text)) for name, text in rows],
                                f"Sentence {place + 1}"))
    return Section(title, said, tables)


def evenly(items: Sequence[Any], most: int) -> List[Any]:
    """At most so many, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[place * (len(items) - 1) // (most - 1)] for place in range(most)]


def shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " ..."


def throughput(run: Run, series: plot_losses.Series) -> Section:
    """Words and updates a second, and how long all took."""
    section = over_updates("Throughput", run, series, "The logs hold no throughput.", log=False)
    rows = [(f"median {term}", statistics.median(value for _, value in series[term]["train"])) for term in SPEED
            if term in series]
    wall = [seconds_of_all(points) for points in run.series.get("wall", {}).values()]
    if wall:
        rows.append(("wall time by the logs", clock(max(wall))))
    before = (run.state.get("extra_state") or {}).get("previous_training_time")
    if before is not None:
        rows.append(("training time by the checkpoint", clock(before)))
    return section._replace(tables=[*([Table(("", ""), rows)] if rows else []), *section.tables])


def seconds_of_all(points: Sequence[Tuple[float, float]]) -> float:
    """Of (update, seconds since the start): the seconds of a run that was stopped and continued, which begins at 0
    again each time, all parts together."""
    seconds = [value for _, value in points]
    return sum(value for value, following in zip(seconds, [*seconds[1:], 0.0]) if following < value)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def options(run: Run) -> Section:
    """What the training was told."""
    title = "Configuration"
    cfg = configuration(run.state)
    if not cfg:
        return Section(title, [run.missing.get("checkpoint", "The checkpoint holds no options.")])
    chosen = [(group, values["_name"]) for group, values in cfg.items() if values.get("_name")]
    rows = [(group, "--" + name.replace("_", "-"), shortened(str(value)), "unknown" if default is None and value is None
             else shortened(str(default))) for group, name, value, default in changed_options(cfg)]
    return Section(title, [], [Table(("group", "chosen"), chosen), Table(
        ("group", "option", "value", "default"), rows, "Options that differ from their defaults")])


def summary(run: Run, curves: Curves) -> Section:
    """What was read, and what could not be."""
    rows: List[Sequence[Any]] = [("folder", run.folder)]
    said = [run.missing[name] for name in ("log", "checkpoint") if name in run.missing]
    for log in run.logs:
        lines = run.broken.get(str(log), [])
        shown = ", ".join(map(str, lines[:MOST_LINES])) + (", ..." if len(lines) > MOST_LINES else "")
        rows.append(("log", log.name + (f": {len(lines)} broken lines, left out: {shown}" if lines else "")))
    updates = [points[-1][0] for terms in curves.values() for term in terms.values() for points in term.values()]
    if updates:
        rows.append(("last update in the logs", max(updates)))
    if run.checkpoint is not None:
        history = run.state.get("optimizer_history") or [{}]
        weights = sum(tensor.numel() for tensor in (run.state.get("model") or {}).values())
        rows += [("checkpoint", run.checkpoint.name), ("its updates", history[-1].get("num_updates", "unknown")),
                 ("its weights", weights)]
    return Section("Summary", said, [Table(("", ""), rows)])


def versions() -> Section:
    """Of this environment: neither logs nor checkpoints name theirs."""
    rows = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return Section("Versions", ["Of the environment that wrote this page: logs and checkpoints name none."],
                   [Table(("", ""), rows)])


def report(run: Run, count: int) -> List[Section]:
    """All sections of a training's page.

    Args:
        count: sentences that are shown of each generated text.
    """
    curves = parted(run.series)

    def panels(title: str, part: str, none: str, log: bool) -> Section:
        return over_updates(title, run, curves[part], none, log)

    sections = [
        summary(run, curves),
        panels("Terms of the loss", "loss", "The logs hold no losses.", True),
        losses_over_time(run),
        panels("Health of the embeddings", "health", "The logs hold none: it is logged at every validation.", False),
        panels("Scores of validation", "scores",
               "The logs hold none: tasks log them with --eval-rouge, --eval-bound or --eval-bleu.", False),
        samples(run, count),
        throughput(run, curves["speed"]),
        panels("Learning rate and gradient norm", "step", "The logs hold neither.", True),
        options(run),
        versions(),
    ]
    if importlib.util.find_spec("matplotlib") is None:
        sections = [section._replace(chart=None) for section in sections]
        sections[0] = sections[0]._replace(said=[*sections[0].said, "No charts: they need matplotlib."])
    return sections


def parse_arguments(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="CHECKPOINT_DIR", help="what --save-dir of the training named")
    parser.add_argument("--logs", nargs="+", type=Path, default=[], metavar="FILE",
                        help="logs of fairseq-train (default: those in the folder, or in the one above it)")
    parser.add_argument("--format", choices=FORMATS, default="html", help="of the page (default: html)")
    parser.add_argument("--samples", type=int, default=5, metavar="N",
                        help="sentences that are shown of each generated*.txt (default: 5)")
    parser.add_argument("--output", type=Path, help="page to write (default: report.html or report.md)")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(arguments)
    run = read_run(args.folder, args.logs)
    output = args.output or Path("report" + ENDINGS[args.format])
    name = "/".join(args.folder.resolve().parts[-2:])
    page = FORMATS[args.format](f"Training: {name}", report(run, args.samples))
    output.write_text(page, encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB; logs: {', '.join(map(str, run.logs)) or 'none'}; "
          f"broken lines: {sum(map(len, run.broken.values()))}")


if __name__ == "__main__":
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
