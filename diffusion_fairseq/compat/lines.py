"""What fairseq-interactive reads: bytes that are no text are named with their file and line."""

import sys
from contextlib import nullcontext
from typing import BinaryIO, ContextManager, Iterator, List

from diffusion_fairseq.compat.patching import replace_in_command
from diffusion_fairseq.errors import UserError


def report_bad_lines() -> None:
    """Say in one line that what is typed or piped in is not UTF-8, or not there.

    Both hosts: they show a traceback, or where the locale lets such bytes pass, generate from them.
    """
    replace_in_command("interactive", "buffered_read", lambda stock: buffered_read)


def buffered_read(path: str, buffer_size: int) -> Iterator[List[str]]:
    """The lines of a file, of standard input for "-", so many at a time.

    Raises:
        UserError: the file cannot be read, or a line of it is not UTF-8.
    """
    name = "standard input" if path == "-" else f"--input {path}"
    try:
        source: ContextManager[BinaryIO] = nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")
        with source as lines:
            lines_read: List[str] = []
            for number, line in enumerate(lines, 1):
                try:
                    lines_read.append(line.decode("utf-8").strip())
                except UnicodeDecodeError as error:
                    raise UserError(f"{name}, line {number}: not UTF-8 (byte {error.start + 1} of the line is "
                                    f"0x{line[error.start]:02x}); convert the text to UTF-8") from None
                if len(lines_read) == max(buffer_size, 1):
                    yield lines_read
                    lines_read = []
            if lines_read:
                yield lines_read
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; name a file of one source a line") from error
