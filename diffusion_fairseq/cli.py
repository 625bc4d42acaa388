"""Console scripts: the host's commands with this package as --user-dir, whatever the current directory."""

import importlib
import logging
import sys
import warnings
from pathlib import Path

PACKAGE = Path(__file__).parent


def with_plugin(arguments: list[str]) -> list[str]:
    """Command-line arguments with --user-dir PACKAGE, unless they name another one.

    The bare name of the package is resolved too: fairseq looks for it in the current directory first.
    """
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == f"--user-dir={PACKAGE.name}":
            arguments[i] = f"--user-dir={PACKAGE}"
        elif argument == "--user-dir" and arguments[i + 1 : i + 2] == [PACKAGE.name]:
            arguments[i + 1] = str(PACKAGE)
    if any(argument.partition("=")[0] == "--user-dir" for argument in arguments):
        return arguments
    return ["--user-dir", str(PACKAGE), *arguments]


def hush() -> None:
    """Leave out what the host and its libraries say at every start about themselves, not about the user's work, and let
    the command set up its log: importing the host has set up another one."""
    # Where a library warns on behalf of its caller, that is this module, or "sys".
    warnings.filterwarnings("ignore", module=f"hydra|fairseq|torch|sys|{__name__}")
    logging.getLogger().handlers.clear()


def run(command: str) -> None:
    """Run fairseq's command of this name, with the plugin."""
    sys.argv[1:] = with_plugin(sys.argv[1:])
    hush()
    importlib.import_module(f"fairseq_cli.{command}").cli_main()


def train() -> None:
    """diffusion-fairseq-train: fairseq-train with the plugin."""
    run("train")


def generate() -> None:
    """diffusion-fairseq-generate: fairseq-generate with the plugin."""
    run("generate")


def interactive() -> None:
    """diffusion-fairseq-interactive: fairseq-interactive with the plugin."""
    run("interactive")


def validate() -> None:
    """diffusion-fairseq-validate: fairseq-validate with the plugin."""
    run("validate")


def preprocess() -> None:
    """diffusion-fairseq-preprocess: fairseq-preprocess with the plugin."""
    run("preprocess")


def directory() -> None:
    """diffusion-fairseq-dir: where the package lies, for --user-dir of other commands."""
    sys.stdout.write(f"{PACKAGE}\n")
