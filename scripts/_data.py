"""What the data preparers share: checked reading, atomic writing, one-line errors. Standard library only."""

import hashlib
import json
import os
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator

MASK = "<mask>"  # the subword that continuous paragraph denoise puts in the place of a paragraph


class DataError(Exception):
    """Bad input, seen before anything was written: one line that says what, where and the remedy."""


def run(main: Callable[[], None]) -> int:
    """Call main(); end a DataError, an OSError or Ctrl-C in one line on stderr. Returns the exit status."""
    try:
        main()
    except DataError as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = f"{error.filename or 'input/output'}: {error.strerror or error}", 1
    except KeyboardInterrupt:
        message, status = "interrupted; run the same command again", 130
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return status


def progress(message: str) -> None:
    """One line on stderr, at once."""
    print(message, file=sys.stderr, flush=True)


def sha256(*paths: Path) -> str:
    """SHA-256 of the files' contents one after the other, as 64 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, sums: Path) -> None:
    """Compare a file with its line in a SHA256SUMS file ("<hex>  <name>"); DataError when they differ."""
    expected = {}
    for line in sums.read_text(encoding="ascii").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    if path.name not in expected:
        raise DataError(f"{sums} has no line for {path.name}; restore it from the repository")
    if sha256(path) != expected[path.name]:
        raise DataError(f"{path} does not have the checksum of {sums.name}; restore it from the repository")


def read_compressed(path: Path) -> Iterator[bytes]:
    """The lines of a .xz, .bz2, .gz or plain file, as bytes; DataError when it can't be unpacked."""
    try:        # here and not above, because a Python built from source often lacks one of them
        import bz2
        import gzip
        import lzma
    except ImportError as error:
        raise DataError(f"this Python was built without {error.name}; use another one") from None
    opener = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rb") as stream:
        try:
            yield from stream
        except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{path} cannot be unpacked ({error}); fetch it again") from None


def utf8_lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    r"""Decode the lines of a binary stream without their "\n"; DataError names the file and the line."""
    for number, raw in enumerate(stream, 1):
        try:
            yield raw.decode("utf-8").rstrip("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, line {number}: not UTF-8 (byte {error.start + 1} of the line is "
                            f"0x{raw[error.start]:02x}); convert the file to UTF-8") from None


def read_utf8(path: Path) -> str:
    """A file's text; DataError names the file and the line that is not UTF-8."""
    with path.open("rb") as stream:
        return "\n".join(utf8_lines(stream, str(path)))


def check_made_of(file: Path, wanted: dict, remove: str) -> None:
    """Refuse to go on in a folder whose files were made of something else; a folder without the file is taken as it is.

    Args:
        file: where `keep_made_of` wrote that down.
        wanted: what they are to be made of.
        remove: what to remove, beside the file, to begin again.

    Raises:
        DataError: naming what differs.
    """
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    if changed := [name for name in wanted if wanted[name] != known.get(name)]:
        raise DataError(f"{file.parent} was made with other {' and '.join(changed)} (see {file.name}): name another "
                        f"folder, or remove {file.name} and {remove} from it")


def keep_made_of(file: Path, wanted: dict) -> None:
    """Write down what the files beside it are made of."""
    write_files(file.parent, {file.name: json.dumps(wanted, indent=1).split("\n")})


def line_counts(*paths: Path) -> list[int]:
    """How many lines each of some files has."""
    counts = []
    for path in paths:
        with path.open("rb") as stream:
            counts.append(sum(1 for _ in stream))
    return counts


def check_same_length(first: Path, second: Path, remedy: str) -> None:
    """Refuse files whose lines belong together where one has more of them.

    Raises:
        DataError: naming both, and what to do.
    """
    one, other = line_counts(first, second)
    if one != other:
        raise DataError(f"{first} has {one:,} lines, {second} has {other:,}: {remedy}")


def least_of_groups(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name the least of those that links join it with, directly or by way of others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {name: root(name) for name in list(parent)}


@contextmanager
def removed_on_error(*paths: Path) -> Iterator[None]:
    """Remove files that are being written where an error ends that."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def write_files(folder: Path, files: dict[str, list[str]]) -> list[str]:
    """Write {name: lines} into folder, made when absent; returns the names whose content changed.

    Every file is complete on disk under a temporary name before the first one is renamed, so no reader sees
    half a file and a full disk changes nothing. A file that already has its content is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staged: dict[str, Path] = {}
    try:
        for name, lines in files.items():
            content = "".join(line + "\n" for line in lines).encode("utf-8")
            target = folder / name
            if target.is_file() and target.read_bytes() == content:
                continue
            staged[name] = folder / f".{name}.{os.getpid()}.tmp"
            with open(staged[name], "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for name, temporary in staged.items():
            os.replace(temporary, folder / name)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    return list(staged)
