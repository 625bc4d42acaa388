"""--results-path: what an earlier run has written is there until this one has all of its own."""

import os
from contextlib import contextmanager
from typing import IO, Iterator

from fairseq_cli import generate

from diffusion_fairseq.compat.patching import as_program
from diffusion_fairseq.errors import UserError


@contextmanager
def whole_results(path: str, *args, **kwargs) -> Iterator[IO]:
    """open, for a file to write that gets its name when all of it is there.

    Raises:
        UserError: it cannot be written; what the command refuses, which leaves no file behind.
    """
    unfinished = f"{path}.partial"
    try:
        file = open(unfinished, *args, **kwargs)
    except OSError as error:
        raise UserError(f"--results-path: {path}: {error.strerror}; name another folder") from error
    try:
        with file:
            yield file
    except UserError:
        # Nothing to go on with: what is refused is refused before the first sentence.
        os.remove(unfinished)
        raise
    os.replace(unfinished, path)


def keep_results() -> None:
    """Put what fairseq-generate writes beside the results that are there, and in their place when it has ended well.

    Both hosts: they empty the file before the data and the checkpoint are read, so that a misspelt --path loses it.
    """
    for module in as_program(generate):
        vars(module).setdefault("open", whole_results)
