"""What the studies share: rows that survive an interruption, and numbers from the command line."""

import argparse
import json
from pathlib import Path
from typing import Callable, Dict, List


def read_rows(file: Path) -> Dict[str, Dict]:
    """The rows that earlier runs have measured; none where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write_rows(file: Path, rows: Dict[str, Dict]) -> None:
    """Keep all rows; a file is whole or not there."""
    unfinished = file.with_name(file.name + ".partial")
    unfinished.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    unfinished.replace(file)


def report(output: Path, rows: Dict[str, Dict], said: str, plot: Callable[[Dict[str, Dict], Path], None]) -> None:
    """Print what a study says of its rows, and write .json, .txt and .png."""
    write_rows(output.with_suffix(".json"), rows)
    output.with_suffix(".txt").write_text(said, encoding="utf-8")
    print(said)
    plot(rows, output.with_suffix(".png"))


def numbers(text: str) -> List[int]:
    """Parse N,M,..."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers with commas between, such as 5,10,20") from None
