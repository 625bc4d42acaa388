"""The picture of scripts/benchmark.py."""

from pathlib import Path
from typing import Dict, List

SWEEPS = {"lengths": "target", "candidates": "candidates", "batches": "batch"}
RIVALS = {"autoregressive": "transformer, beam 5", "language_models": "transformer_lm"}


def plot(measured: List[Dict], file: Path) -> None:
    """Our sweeps, the shapes beside the published structure, and diffusion beside autoregressive models: a panel for
    each that was measured."""
    from matplotlib import pyplot

    shown = [(sweep, key, [row for row in measured if row["part"] == "sweeps" and row["shape"] == key])
             for key in SWEEPS]
    shown.append((speedups, None, [row for row in measured if row.get("faster")
                                   and row["part"] in ("shapes", "diffuseq")]))
    shown += [(speeds, rival, [row for row in measured if row["part"] == part]) for part, rival in RIVALS.items()]
    shown = [panel for panel in shown if panel[-1]]
    if not shown:
        return
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 4.5), layout="constrained", squeeze=False)
    for axis, (draw, name, rows) in zip(axes[0], shown):
        draw(axis, name, rows)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def sweep(axis, name: str, rows: List[Dict]) -> None:
    """The time of a step by what is varied."""
    values = [row[SWEEPS[name]] for row in rows]
    axis.plot(values, [row["ms_per_candidate_step"] for row in rows], marker="o")
    axis.set(xscale="log", yscale="log", xlabel=SWEEPS[name], ylabel="ms per candidate-step")
    label_ticks(axis, values)


def speedups(axis, _name: None, rows: List[Dict]) -> None:
    """How much faster we are than the published structure."""
    found = {f"{row['shape']} {row['dtype']}{row['structure'].removeprefix('ours')}": row["faster"] for row in rows}
    axis.barh(list(found), list(found.values()))
    axis.set(xlabel="times faster per candidate-step than the published structure")


def speeds(axis, rival: str, rows: List[Dict]) -> None:
    """Sentences a second by length, a line for each number of steps and one for the rival."""
    curves: Dict[str, List[Dict]] = {}
    for row in rows:
        label = f"diffusion, {row['steps']} steps" if row["structure"] == "ours" else rival
        curves.setdefault(label, []).append(row)
    for label, found in curves.items():
        axis.plot([row["target"] for row in found], [row["sentences_per_s"] for row in found], marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="target tokens", ylabel="sentences per second")
    label_ticks(axis, sorted({row["target"] for row in rows}))
    axis.legend()


def label_ticks(axis, values: List[int]) -> None:
    axis.set_xticks(values, [str(value) for value in values], minor=False)
    axis.set_xticks([], minor=True)
