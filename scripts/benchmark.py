"""How fast we are, beside the published structure and fairseq's transformer; on random weights, without data.

    python scripts/benchmark.py --quick         # two shapes, 1 and 10 candidates, training: within 5 minutes on 2 cores
    python scripts/benchmark.py --json benchmark.json       # everything, with benchmark.png beside it
    python scripts/benchmark.py --parts sweeps --json benchmark.json    # a part of it, written to the same file
    python scripts/benchmark.py --sentences 10000           # memory and throughput over a long generation

Systems: `ours` (fairseq-generate's generator); `published` (the released GENIE's structure on the same weights: encoder
and cross-attention memory at every step, padded to 512 and 64, fp32, one candidate at a time, a distance matrix for
clamping), whose outputs are compared with ours in fp32; `transformer` (fairseq's, same widths and layers, beam 5);
for the part language_models, ddlm_* and `transformer_lm` (fairseq's incremental decoding, one sampled text each).
ms_per_candidate_step is a reverse step of one candidate of one sentence, without encoding; sentences_per_s is of whole
generations with --steps steps, encoding included; added_mb is the memory that a call takes at most beyond what was held
before it (of an update the first one: gradients and Adam's states are in it, weights are not); `peak` is the share of
the machine's matrix-product rate, measured before all else: above 100 % the machine was slower then.
"""

import argparse
import logging
import platform
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Dict, List, Optional

import _environment  # noqa: F401  says what this Python lacks
import torch
from _benchmark_plot import RIVALS, plot
from _diffuseq_systems import measure_diffuseq
from _language_models import PART as LANGUAGE_MODELS
from _language_models import measure_language_models
from _option_types import count
from _study import read_rows, refuse_others, write_rows
from _systems import (
    AddedMemory,
    Autoregressive,
    Ours,
    Published,
    Work,
    dictionary_of,
    flops_of,
    make_genie,
    make_transformer,
    matrix_peak,
    resident_megabytes,
    seconds_of,
    seconds_of_each,
    trainings,
)
from tqdm import tqdm

from diffusion_fairseq.errors import UserError

SHAPES = {  # source and target tokens, candidates
    "published": (512, 64, 1), "xsum": (400, 27, 10), "cnndm": (512, 100, 10), "gigaword": (37, 9, 10),
}
QUICK = ("published", "xsum")
PARTS = ("shapes", "candidates", "training", "sweeps", "autoregressive", "diffuseq", LANGUAGE_MODELS)
QUICK_PARTS = PARTS[:3]
PLAIN = {"length_model": "fixed", "self_conditioning": False}  # what the published structure can do too
LENGTHS, CANDIDATES, BATCHES = (16, 32, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32), (1, 4, 16, 64, 128)
AR_LENGTHS = (16, 32, 64, 128, 256)
SWEEP_SOURCE = 128  # source tokens beside which target lengths are compared
LONG_RUN = (5, 40, 12, 54, 26)  # source tokens of the batches of a long run, in turn; it is reported after each turn
VOCABULARY = {"genie_base": 30522, "genie_small": 8000, "genie_tiny": 1000}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = ("shape", "structure", "dtype", "batch", "candidates", "source", "target", "steps", "encode_ms",
           "ms_per_candidate_step", "sentences_per_s", "added_mb", "peak", "faster", "faster_end_to_end", "difference")
TRAINING_COLUMNS = ("arch", "shape", "structure", "dtype", "batch", "sentences_per_s", "target_tokens_per_s",
                    "added_mb", "peak")


class Bench:
    """One machine, the models on it, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dictionary = dictionary_of(VOCABULARY[arguments.arch])
        self.peaks = {name: matrix_peak(dtype, self.device) for name, dtype in DTYPES.items()}
        self.fastest = max(self.peaks, key=self.peaks.get)
        self.rows: List[Dict] = []
        self.training: List[Dict] = []
        self.part = ""
        self.bar = tqdm(unit=" measurements", disable=None)

    def genie(self, dtype: str):
        """The model, with as many target positions as a row asks for."""
        model = make_genie(self.arguments.arch, self.dictionary, self.device, **PLAIN).eval()
        if dtype != "fp32":
            model.network_to(DTYPES[dtype])
        return model

    def work(self, batch: int, source: int, target: int, candidates: int, steps: Optional[int] = None) -> Work:
        steps = self.arguments.steps if steps is None else steps
        return Work(self.dictionary, self.device, batch, source, target, candidates, steps)

    def add(self, **row) -> Dict:
        row = {"part": self.part, **row}
        self.rows.append(row)
        self.bar.update()
        self.bar.set_postfix_str(f"{row['shape']} {row['structure']} {row['dtype']}")
        return row

    def ours(self, shape: str, model, dtype: str, work: Work) -> Dict:
        """A generation, its encoding apart."""
        system, memory = Ours(model, work), AddedMemory(self.device)
        encode = seconds_of(system.encode, self.device, 0.5)
        memory.start()
        whole = seconds_of(system.generate, self.device)
        sequences = work.batch * work.candidates
        return self.add(
            shape=shape, structure="ours", dtype=dtype, batch=work.batch, candidates=work.candidates,
            source=work.source, target=work.target, steps=work.steps, encode_ms=1e3 * encode,
            ms_per_candidate_step=1e3 * (whole - encode) / (sequences * work.steps),
            sentences_per_s=work.batch / whole, added_mb=memory.megabytes(),
            peak=self.flops(model, work) / whole / self.peaks[dtype],
        )

    @staticmethod
    def flops(model, work: Work) -> float:
        """Of a generation: each step does the same, so that two steps tell."""
        one, two = (flops_of(Ours(model, work._replace(steps=steps)).generate) for steps in (1, 2))
        return one + (work.steps - 1) * (two - one)

    def published(self, shape: str, model, work: Work) -> Dict:
        """Two steps of the published structure, and its outputs against ours after them."""
        checked = work._replace(steps=2)
        system, memory = Published(model, checked), AddedMemory(self.device)
        memory.start()
        step = seconds_of(system.x0, self.device, repeats=2) / checked.steps
        return self.add(
            shape=shape, structure="published", dtype="fp32", batch=work.batch, candidates=work.candidates,
            source=work.source, target=work.target, steps=work.steps, encode_ms=0.0,
            ms_per_candidate_step=1e3 * step / work.batch, added_mb=memory.megabytes(),
            sentences_per_s=work.batch / (step * work.candidates * work.steps),
            peak=flops_of(system.x0) / (checked.steps * step) / self.peaks["fp32"],
            difference=float((system.ours.x0()[:: work.candidates] - system.x0()).abs().max()),
        )

    def transformer(self, shape: str, model, dtype: str, work: Work) -> Dict:
        system, memory = Autoregressive(model, work), AddedMemory(self.device)
        memory.start()
        whole = seconds_of(system.generate, self.device, repeats=2)
        return self.add(
            shape=shape, structure="transformer", dtype=dtype, batch=work.batch, candidates=1, source=work.source,
            target=work.target, steps=work.target, ms_per_candidate_step=None,
            sentences_per_s=work.batch / whole, added_mb=memory.megabytes(),
        )

    def shapes(self, names) -> None:
        """Ours against the published structure, in fp32 and in the fastest dtype."""
        batch = self.arguments.batch
        models = {dtype: self.genie(dtype) for dtype in ("fp32", self.fastest)}
        for name in names:
            source, target, candidates = SHAPES[name]
            work = self.work(batch, source, target, candidates)
            slow = self.published(name, models["fp32"], work)["ms_per_candidate_step"]
            for dtype, model in models.items():
                row = self.ours(name, model, dtype, work)
                row["faster"] = slow / row["ms_per_candidate_step"]

    def candidates_cost(self) -> None:
        """Whole generations of 1 and of 10 candidates, one XSum source at a time."""
        source, target, _ = SHAPES["xsum"]
        model = self.genie(self.fastest)
        for candidates in (1, 10):
            self.ours("xsum", model, self.fastest, self.work(1, source, target, candidates))

    def sweeps(self) -> None:
        """Target lengths, candidates and batches, ours alone."""
        model, (source, target, _) = self.genie(self.fastest), SHAPES["xsum"]
        for length in LENGTHS:
            self.ours("lengths", model, self.fastest, self.work(4, SWEEP_SOURCE, length, 1))
        for candidates in CANDIDATES:
            self.ours("candidates", model, self.fastest, self.work(1, source, target, candidates))
        source, target, _ = SHAPES["gigaword"]
        for batch in BATCHES:
            self.ours("batches", model, self.fastest, self.work(batch, source, target, 1))

    def against_transformer(self) -> None:
        """Ours with 20 and 50 steps beside beam search, by target length (seed DDLM, figure 3)."""
        genie, dtype = self.genie(self.fastest), self.fastest
        transformer = make_transformer(self.arguments.arch, self.dictionary, self.device).eval().to(DTYPES[dtype])
        for length in AR_LENGTHS:
            beam = self.transformer("autoregressive", transformer, dtype, self.work(4, SWEEP_SOURCE, length, 1))
            for steps in (20, 50):
                row = self.ours("autoregressive", genie, dtype, self.work(4, SWEEP_SOURCE, length, 1, steps))
                row["faster"] = row["sentences_per_s"] / beam["sentences_per_s"]

    def train(self, arch: str, shape: str, batch: int) -> None:
        """One update of ours, of the published structure, and of fairseq's transformer."""
        source, target, _ = SHAPES[shape]
        work = Work(dictionary_of(VOCABULARY[arch]), self.device, batch, source, target, 1, 1)
        for dtype in dict.fromkeys(("fp32", self.fastest if arch == self.arguments.arch else "fp32")):
            systems, megabytes = {}, {}
            for name, system in trainings(arch, work, DTYPES[dtype]):
                if name == "published" and dtype != "fp32":
                    continue
                memory = AddedMemory(self.device)
                memory.start()
                system.update()
                systems[name], megabytes[name] = system, memory.megabytes()
            durations = seconds_of_each([system.update for system in systems.values()], self.device)
            for (name, system), seconds in zip(systems.items(), durations):
                self.training.append({
                    "part": self.part,
                    "arch": arch, "shape": shape, "structure": name, "dtype": dtype, "batch": batch,
                    "sentences_per_s": batch / seconds, "target_tokens_per_s": batch * target / seconds,
                    "added_mb": megabytes[name],
                    "peak": flops_of(system.update) / seconds / self.peaks[dtype],
                })
                self.bar.update()

    def long_run(self, sentences: int, batch: int = 128) -> List[Dict]:
        """Memory and throughput while genie_small generates many sentences of all lengths."""
        dictionary = dictionary_of(VOCABULARY["genie_small"])
        model = make_genie("genie_small", dictionary, self.device).eval()
        found, began, since = [], time.perf_counter(), 0
        for done in tqdm(range(0, sentences, batch), desc="long run", unit=" batches", disable=None):
            length = LONG_RUN[done // batch % len(LONG_RUN)]
            work = Work(dictionary, self.device, batch, length, 64, 1, self.arguments.steps)
            Ours(model, work).generate()
            since += batch
            if since >= batch * len(LONG_RUN) or done + batch >= sentences:
                seconds = time.perf_counter() - began
                found.append({"sentences": done + batch, "resident_mb": resident_megabytes(),
                              "sentences_per_s": since / seconds})
                began, since = time.perf_counter(), 0
        return found


def machine(bench: Bench) -> Dict:
    """What it ran on."""
    versions = {}
    for name in ("torch", "ve-fairseq", "fairseq", "diffusion-fairseq", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            pass
    name = torch.cuda.get_device_name() if bench.device == "cuda" else processor()
    return {"device": name, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions,
            **{f"{dtype} product, GFLOP/s": round(peak / 1e9) for dtype, peak in bench.peaks.items()}}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def table(rows: List[Dict], columns) -> str:
    """Rows as text, a column each for what any row has."""
    columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
    cells = [columns] + [[_cell(column, row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def _cell(column: str, value) -> str:
    if value is None:
        return ""
    if column == "difference":
        return f"{value:.1e}"
    if column == "peak":
        return f"{value:.0%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def crossing(rows: List[Dict], steps: int, rival: str) -> str:
    """At which target lengths diffusion is the faster one."""
    faster = {row["target"]: row["faster"] for row in rows if row["structure"] == "ours" and row["steps"] == steps}
    ahead = [length for length, ratio in faster.items() if ratio >= 1]
    where = f"at length {', '.join(map(str, ahead))}" if ahead else f"at no length up to {max(faster)}"
    return f"{steps} steps are faster than {rival} {where}: " + ", ".join(
        f"{n}: {ratio:.2f}x" for n, ratio in faster.items())


def parts(text: str) -> List[str]:
    for name in text.split(","):
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose among {', '.join(PARTS)}")
    return text.split(",")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help=f"{', '.join(QUICK_PARTS)} only, and of the shapes {' and '.join(QUICK)}")
    parser.add_argument("--parts", type=parts, metavar="A,B", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="also write what was measured, beside what the file holds of other parts; and a plot")
    parser.add_argument("--arch", choices=VOCABULARY, default="genie_base", help="of generation (default: genie_base)")
    parser.add_argument("--batch", type=count(1), default=4, help="sentences at a time in the shapes (default: 4)")
    parser.add_argument("--steps", type=count(1), default=20, help="reverse steps of a generation (default: 20)")
    parser.add_argument("--train-batch", type=count(1), default=64, help="sentences of a training update (default: 64)")
    parser.add_argument("--repeats", type=count(1), metavar="N",
                        help="runs of a language model, whose median counts (default: 2, of long ones 1)")
    parser.add_argument("--sentences", type=count(1), metavar="N",
                        help="only generate N sentences with genie_small, 128 at a time, and follow the memory")
    arguments = parser.parse_args()
    if arguments.sentences:
        for name in ("parts", "quick", "arch", "batch"):
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--{name} is not of --sentences, which takes genie_small and batches of 128")
    if arguments.parts is None:
        arguments.parts = QUICK_PARTS if arguments.quick else PARTS
    return arguments


def measure(bench: Bench, part: str) -> None:
    """One part of the benchmark."""
    arguments = bench.arguments
    if part == "shapes":
        bench.shapes(QUICK if arguments.quick else SHAPES)
    elif part == "candidates":
        bench.candidates_cost()
    elif part == "training":
        bench.train("genie_small", "gigaword", arguments.train_batch)
        if not arguments.quick:
            bench.train(arguments.arch, "xsum", 64 if bench.device == "cuda" else 4)
    elif part == "sweeps":
        bench.sweeps()
    elif part == "diffuseq":
        measure_diffuseq(bench)
    elif part == LANGUAGE_MODELS:
        measure_language_models(bench)
    else:
        bench.against_transformer()


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    bench = Bench(arguments)
    found: Dict[str, object] = {"machine": machine(bench), "rows": [], "training": []}
    found["options"] = {name: getattr(arguments, name) for name in ("arch", "batch", "steps", "train_batch", "quick")}
    if arguments.json is not None:
        known = read_rows(arguments.json)
        if known:
            refuse_others(arguments.json, {"": {"options": circumstances(known)}}, circumstances(found))
        found = {**found, **known, "machine": found["machine"], "options": found["options"]}
    if arguments.sentences:
        found["long_run"] = bench.long_run(arguments.sentences)
        keep(found, arguments.json)
    for part in () if arguments.sentences else arguments.parts:
        bench.part = part
        for kind in ("rows", "training"):
            found[kind] = [row for row in found[kind] if row["part"] != part]
        measure(bench, part)
        found["rows"] += bench.rows
        found["training"] += bench.training
        bench.rows, bench.training = [], []
        keep(found, arguments.json)
    bench.bar.close()
    show(found)
    if arguments.json is not None and not arguments.quick and not arguments.sentences:
        plot(found["rows"], arguments.json.with_suffix(".png"))


def circumstances(found: Dict) -> Dict:
    """The machine and the options, without the speed of a product, which is another one each time."""
    return {**{name: value for name, value in found["machine"].items() if not name.endswith("GFLOP/s")},
            **found.get("options", {})}


def keep(found: Dict, file: Optional[Path]) -> None:
    """Write down what was measured so far, so that an interruption loses one part at most."""
    if file is not None:
        write_rows(file, found)


def show(found: Dict) -> None:
    for name, value in found["machine"].items():
        print(f"{name}: {value}")
    if found["rows"]:
        print(f"\n{table(found['rows'], COLUMNS)}")
    costs = {row["candidates"]: row["sentences_per_s"] for row in found["rows"] if row["part"] == "candidates"}
    if costs:
        print(f"\n10 candidates cost {costs[1] / costs[10]:.1f}x of 1 (XSum, encoding included)")
    if found["training"]:
        print("\ntraining\n" + table(found["training"], TRAINING_COLUMNS))
    for part, rival in RIVALS.items():
        rows = [row for row in found["rows"] if row["part"] == part]
        for steps in sorted({row["steps"] for row in rows if row["structure"] == "ours"}):
            print(crossing(rows, steps, rival))
    if "long_run" in found:
        print("\n" + table(found["long_run"], ("sentences", "resident_mb", "sentences_per_s")))


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
