"""fairseq's commands run from a script, each with all it says in a log."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List

REPOSITORY = Path(__file__).resolve().parent.parent
USER_DIR = REPOSITORY / "diffusion_fairseq"
# Threads that wait for one another spin a short while only: spinning long, they starve when the cores are shared.
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000", **os.environ}


class CommandFailed(RuntimeError):
    """A command ended badly; the message names its log."""


def fairseq(name: str, *arguments) -> List[str]:
    """The words of a fairseq command of this environment."""
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def flat(options: Dict[str, str]) -> List[str]:
    return [word for pair in options.items() for word in pair]


def run(words: List[str], log: Path, follow: Callable[[str], None] = lambda line: None, mode: str = "w") -> None:
    """Run a command with its output in `log`; `follow` sees every line, for a progress bar.

    Raises:
        CommandFailed: it ended with another status than 0.
    """
    with log.open(mode, buffering=1, encoding="utf-8") as kept:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                                   cwd=REPOSITORY, env=ENVIRONMENT)
        try:
            for line in process.stdout:
                kept.write(line)
                follow(line)
        except BaseException:
            process.terminate()
            raise
        status = process.wait()
    if status:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise CommandFailed(f"a command ended with status {status}: {said[-1] if said else 'it said nothing'} "
                            f"(all it said: {log})")
