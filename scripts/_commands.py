"""fairseq's commands run from a script, each with all it says in a log."""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Set

REPOSITORY = Path(__file__).resolve().parent.parent
USER_DIR = REPOSITORY / "diffusion_fairseq"
# Threads that wait for one another spin a short while only: spinning long, they starve when the cores are shared.
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000", **os.environ}

SET_PARENT_DEATH_SIGNAL = 1     # prctl(2)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None     # here: to load it after a fork may hang
_running: Set[subprocess.Popen] = set()


class CommandFailed(RuntimeError):
    """A command ended badly; the message names its log."""


def fairseq(name: str, *arguments) -> List[str]:
    """The words of a fairseq command of this environment."""
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def flat(options: Dict[str, str]) -> List[str]:
    return [word for pair in options.items() for word in pair]


def end_with_parent(parent: int, by: int = signal.SIGTERM) -> None:
    """In a process that `parent` has just begun: end by a signal when it ends, however that is. Linux alone."""
    if _libc is not None:
        _libc.prctl(SET_PARENT_DEATH_SIGNAL, by)
    if os.getppid() != parent:
        os._exit(1)


def stop_running() -> None:
    """Tell the commands that other threads run to end."""
    for process in list(_running):
        process.terminate()


def run(words: List[str], log: Path, follow: Callable[[str], None] = lambda line: None, mode: str = "w",
        folder: Path = REPOSITORY) -> None:
    """Run a command in a folder with its output in `log`; `follow` sees every line, for a progress bar.

    Raises:
        CommandFailed: it ended with another status than 0.
    """
    with log.open(mode, buffering=1, encoding="utf-8") as kept:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                                   cwd=folder, env=ENVIRONMENT, preexec_fn=partial(end_with_parent, os.getpid()))
        _running.add(process)
        try:
            for line in process.stdout:
                kept.write(line)
                follow(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
        finally:
            _running.discard(process)
    if status:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise CommandFailed(f"a command ended with status {status}: {said[-1] if said else 'it said nothing'} "
                            f"(all it said: {log})")
