"""Checkpoints that try to run something, for the tests that see them refused."""

import argparse
import os


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def pickled_calls(marker):
    """Name -> object that makes the file `marker` when a pickle of it is loaded."""
    return {
        "system": Call(os.system, f"touch {marker}"),
        "system in a Namespace": argparse.Namespace(x=Call(os.system, f"touch {marker}")),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
    }


def program(marker):
    """A string that makes the file `marker` when it is handed to eval."""
    return f"__import__('os').system('touch {marker}')"
