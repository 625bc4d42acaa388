"""The one exception that a user's mistake raises, and how it is shown."""

import re
import sys
from typing import Tuple


class UserError(ValueError):
    """Bad input or a bad option: a one-line message that says what is wrong, where, and what to do."""


def one_of(option: str, value: str, known: Tuple[str, ...]) -> str:
    """The value, if it is known. UserError: naming the option and what is."""
    if value not in known:
        raise UserError(f"{option} {value!r} is unknown: choose one of {', '.join(known)}")
    return value


def show_user_errors_in_one_line() -> None:
    """Make an uncaught UserError end the process with its message alone, exit status 1, no traceback."""
    shown_before = sys.excepthook

    def hook(kind, error, trace):
        # What a process says that torch.multiprocessing started, which the host does by itself where there are GPUs.
        raised = re.search(r"^diffusion_fairseq[\w.]*Error: (.*)$", str(error), re.MULTILINE)
        if issubclass(kind, UserError) or kind.__name__ == "ProcessRaisedException" and raised:
            sys.stdout.flush()
            sys.stderr.write(f"error: {raised[1] if raised else error}\n")
        else:
            shown_before(kind, error, trace)

    sys.excepthook = hook
