#!/usr/bin/env python3
"""The page of measured results, docs/results.md, from one record (docs/results/NAME.json) for each table.

    python scripts/results.py                                             # write the page anew from the records
    python scripts/results.py --add kjvweb_steps --title "Steps, verses" --table runs/study/steps.txt \
        --command "python scripts/study_sampling.py ..." --said "What it says." --paper "GENIE, figure 2"
    python scripts/results.py --add kjvweb_steps --said "Better words."   # changes that part of a record
    python scripts/results.py --run kjvweb_steps                          # measures again, and replaces the table

--add fills in commit, date and machine by itself. --run runs the record's commands one after the other, each by bash in
the repository's root; the table is what the file that --table named holds then, where that is inside the repository,
else what the last command prints. A plot goes beside the record, as NAME.png; --run takes it from the same file again.
What is already there under runs/ would not be made again, and --run refuses it; with --continue it goes on with what an
interrupted --run has made.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import _environment  # noqa: F401  says what this Python lacks
from _commands import ENVIRONMENT, REPOSITORY

from diffusion_fairseq.errors import UserError

RECORDS = REPOSITORY / "docs/results"
PAGE = REPOSITORY / "docs/results.md"
NEEDED = ("title", "said", "paper", "commands", "commit", "date", "machine", "table")
PACKAGES = ("torch", "ve-fairseq", "fairseq")
PATH_OF_A_MACHINE = re.compile(r"(?<![\w.:/])/(?:home|mnt|opt|root|srv|tmp|usr|var|work)/\S*")
MADE = re.compile(r"(?<![\w/.-])runs/[\w.-]+")
CODE = ("diffusion_fairseq", "scripts", "examples", "setup.py")
PLOT_BYTES = 500_000
HEAD = """\
# Measured results

`python scripts/results.py` writes this page from the records in [results](results): change those, not the page.
`python scripts/results.py --run NAME` measures a table again, by the commands below it, and replaces it. A commit that
ends in `-dirty` had changes on top of it. What a data set counts stands in the README of its recipe.
"""

Record = Dict[str, Any]


def file_of(name: str) -> Path:
    return RECORDS / f"{name}.json"


def plot_of(name: str) -> Path:
    return RECORDS / f"{name}.png"


def check(name: str, record: Record) -> None:
    """Refuse a record that lacks something, or that other people could not use.

    Raises:
        UserError: it names the field.
    """
    if missing := ["--" + field.removesuffix("s") for field in NEEDED if not record.get(field)]:
        raise UserError(f"record {name}: give {', '.join(missing)}")
    lines = [line for value in record.values() for line in ([value] if isinstance(value, str) else value)]
    if found := PATH_OF_A_MACHINE.search("\n".join(lines)):
        raise UserError(f"record {name}: {found[0]!r} is a path of this machine: others have no such file")
    if not re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", record["commit"]):
        raise UserError(f"record {name}: {record['commit']!r} is no commit")
    datetime.date.fromisoformat(record["date"])


def read(name: str) -> Record:
    """A record.

    Raises:
        UserError: there is none of that name, or it lacks something.
    """
    if not file_of(name).exists():
        known = ", ".join(sorted(file.stem for file in RECORDS.glob("*.json")))
        raise UserError(f"there is no record {name}: choose among {known or 'none'}, or --add it")
    record = json.loads(file_of(name).read_text(encoding="utf-8"))
    check(name, record)
    return record


def write(name: str, record: Record) -> None:
    """Keep a record, and write the page with it."""
    check(name, record)
    ordered = {field: record[field] for field in (*NEEDED, "output", "plot") if field in record}
    file_of(name).write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page()


def anchor(title: str) -> str:
    """The part of an address that leads to a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def section(name: str, record: Record) -> str:
    """A record as a part of the page; a table that is no Markdown is shown as it was printed."""
    table = record["table"]
    parts = [f"## {record['title']}", record["said"],
             "\n".join(table if table[0].startswith("|") else [f"    {line}".rstrip() for line in table])]
    if plot_of(name).exists():
        parts.append(f"![{record['title']}](results/{name}.png)")
    parts += ["```\n" + "\n".join(record["commands"]) + "\n```",
              f"`{name}`; counterpart: {record['paper']}. Commit {record['commit']}, {record['date']}; "
              f"{record['machine']}."]
    return "\n\n".join(parts)


def page(records: Dict[str, Record]) -> str:
    """The page of all records, by name."""
    rows = [f"| [{record['title']}](#{anchor(record['title'])}) | {record['paper']} | {record['date']} |"
            for record in records.values()]
    return "\n".join([HEAD, "| table | counterpart | date |", "|---|---|---|", *rows, ""]) + "\n" + "\n\n".join(
        section(name, record) for name, record in records.items()) + "\n"


def write_page() -> None:
    records = {file.stem: read(file.stem) for file in sorted(RECORDS.glob("*.json"))}
    PAGE.write_text(page(records), encoding="utf-8")


def commit() -> str:
    """The commit that is checked out, marked where code or recipes differ from it.

    Raises:
        UserError: git does not know.
    """
    try:
        found, changed = (subprocess.run(["git", *words], cwd=REPOSITORY, check=True, capture_output=True, text=True)
                          .stdout.strip() for words in (["rev-parse", "--short", "HEAD"],
                                                        ["status", "--porcelain", "--", *CODE]))
    except (OSError, subprocess.CalledProcessError):
        raise UserError("git does not say which commit this is: give --commit") from None
    return found + ("-dirty" if changed else "")


def machine() -> str:
    """Cores, processor, memory and GPUs of this machine, and the versions of what computes."""
    import torch
    from benchmark import processor  # here: it needs what pages do not

    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    installed = {found.name.lower(): found.version for found in distributions()}
    versions = [f"{name} {installed[name]}" for name in PACKAGES if name in installed]
    return (f"{len(os.sched_getaffinity(0))} cores of {processor()}, {gibibytes:.0f} GiB of memory, "
            f"{', '.join(gpus) or 'no GPU'}; {', '.join([f'Python {platform.python_version()}', *versions])}")


FOUND: Dict[str, Callable[[], str]] = {
    "commit": commit, "date": lambda: datetime.date.today().isoformat(), "machine": machine,
}


def lines_of(text: str) -> List[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def add(arguments: argparse.Namespace) -> None:
    """Make a record, or change the parts of one that are given."""
    name = arguments.add
    record = json.loads(file_of(name).read_text(encoding="utf-8")) if file_of(name).exists() else {}
    record.update({field: value for field, value in vars(arguments).items() if field in NEEDED and value})
    if arguments.table is not None:
        record["table"] = lines_of(arguments.table.read_text(encoding="utf-8"))
        record.update({field: getattr(arguments, field) or find() for field, find in FOUND.items()})
        record.pop("output", None)
        if arguments.table.resolve().is_relative_to(REPOSITORY):
            record["output"] = str(arguments.table.resolve().relative_to(REPOSITORY))
    check(name, record)
    if arguments.plot is not None:
        keep_plot(arguments.plot, name)
        record.pop("plot", None)
        if arguments.plot.resolve().is_relative_to(REPOSITORY):
            record["plot"] = str(arguments.plot.resolve().relative_to(REPOSITORY))
    write(name, record)


def keep_plot(plot: Path, name: str) -> None:
    """Copy a plot beside its record.

    Raises:
        UserError: it is too large.
    """
    if plot.stat().st_size > PLOT_BYTES:
        raise UserError(f"{plot} has {plot.stat().st_size} bytes, more than {PLOT_BYTES}: draw it smaller")
    shutil.copyfile(plot, plot_of(name))


def refuse_made(names: Sequence[str]) -> None:
    """Refuse to measure again what the commands would only find.

    Raises:
        UserError: a folder or file of runs/ that they name is there.
    """
    named = {found for name in names for command in read(name)["commands"] for found in MADE.findall(command)}
    if made := sorted(path for path in named if (REPOSITORY / path).exists() or any(REPOSITORY.glob(f"{path}.*"))):
        raise UserError(f"{', '.join(made)} is there, and would not be measured again: move it away, or give "
                        "--continue where an interrupted --run has made it")


def run_again(name: str) -> None:
    """Measure a record's table again.

    Raises:
        UserError: a command failed.
    """
    record = read(name)
    now = {field: find() for field, find in FOUND.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"
    for command in record["commands"]:
        print(f"$ {command}", flush=True)
        done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env={**ENVIRONMENT, "PATH": path},
                              stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            raise UserError(f"record {name}: a command ended with status {done.returncode}; the record is as it was")
    printed = done.stdout
    if "output" in record:
        output = REPOSITORY / record["output"]
        printed = output.read_text(encoding="utf-8")
    if plot_of(name).exists():
        replace_plot(name, REPOSITORY / record["plot"] if "plot" in record else None)
    write(name, {**record, **now, "table": lines_of(printed)})
    print(f"{file_of(name)} has the new table: read again whether what is said of it still holds", flush=True)


def replace_plot(name: str, plot: Optional[Path]) -> None:
    """Copy the plot that was drawn anew beside its record; where there is none, or none of use, the old one goes."""
    try:
        if plot is None or not plot.exists():
            raise UserError("no plot was drawn anew")
        keep_plot(plot, name)
    except UserError as error:
        plot_of(name).unlink()
        print(f"{error}; {plot_of(name)} was of the old table, and is gone: give the new one by --add {name} "
              "--plot FILE")


def parse_arguments(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--add", metavar="NAME", help="make this record, or change what is given of it")
    asked.add_argument("--run", metavar="NAME", nargs="+", help="measure these tables again, by their own commands")
    parser.add_argument("--continue", action="store_true", dest="go_on",
                        help="--run takes what is there as made by an interrupted one")
    parser.add_argument("--title", help="heading of the table")
    parser.add_argument("--command", dest="commands", action="append", metavar="LINE",
                        help="a command line that made the table; once for each, in their order, preparation first")
    parser.add_argument("--table", type=Path, metavar="FILE",
                        help="the table: text as a study prints it, or a table of Markdown")
    parser.add_argument("--plot", type=Path, metavar="PNG", help=f"plot, of at most {PLOT_BYTES} bytes")
    parser.add_argument("--said", metavar="TEXT", help="a paragraph: what it says, and where it contradicts the paper")
    parser.add_argument("--paper", metavar="TEXT", help="counterpart: the paper's table or figure, or none")
    for field in ("commit", "date", "machine"):
        parser.add_argument(f"--{field}", help="where it was measured elsewhere (default: found out)")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(arguments)
    RECORDS.mkdir(parents=True, exist_ok=True)
    if args.add:
        add(args)
    if not args.go_on:
        refuse_made(args.run or ())
    for name in args.run or ():
        run_again(name)
    if not (args.add or args.run):
        write_page()


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
