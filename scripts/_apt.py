"""A private apt for the data preparers: the machine's sources, folders of its own, no root. Standard library only."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Iterator

from _data import DataError

# Read with -c, after the machine's own settings: proxies and keys stay, lists and hooks of the system do not.
SETTINGS = """
#clear Acquire::Languages;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "{languages}";
Acquire::GzipIndexes "false";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{folder}/cache";
"""


class Apt:
    """apt-get and apt-cache under private settings; `hint` ends each DataError: what to do without apt."""

    def __init__(self, folder: Path, languages: str, hint: str):
        """Fetch the indexes of the machine's sources into folder, which is empty."""
        self.hint = hint
        if shutil.which("apt-get") is None:
            raise DataError(f"there is no apt-get on this machine; {hint}")
        folder.chmod(0o755)             # apt, started by root, downloads as another user
        for name in ("lists/partial", "cache"):
            (folder / name).mkdir(parents=True)
        self.settings = folder / "apt.conf"
        self.settings.write_text(SETTINGS.format(folder=folder, languages=languages), encoding="utf-8")
        self.get("update", "-qq")

    def get(self, command: str, *options: str, cwd: Path | None = None) -> str:
        """The output of an apt-get command; DataError with apt's first error."""
        return self._run("apt-get", command, *options, cwd=cwd)

    def names(self, pattern: str) -> list[str]:
        """The packages of the sources whose whole name the pattern matches, the highest version number last."""
        prefix = re.match(r"[\w-]*", pattern)[0].removesuffix("-")
        found = [name for name in self._run("apt-cache", "pkgnames", prefix).split() if re.fullmatch(pattern, name)]
        return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def _run(self, program: str, command: str, *options: str, cwd: Path | None = None) -> str:
        done = subprocess.run([program, "-c", str(self.settings), command, *options], capture_output=True, text=True,
                              cwd=cwd, env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no message"]
            raise DataError(f"{program} {command}: {errors[0]}; check the network and apt's sources, or {self.hint}")
        return done.stdout


def deb_members(path: Path, wanted: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files of a .deb whose path from the root the pattern matches; nothing is extracted."""
    with open(path, "rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise DataError(f"{path} is no Debian package; delete it, and it is fetched again")
        while header := stream.read(60):
            name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
            if len(header) < 60 or not size.isdigit():
                break
            if name.startswith("data.tar"):
                yield from tar_members(path, io.BytesIO(_unpacked(path, name, stream.read(int(size)))), wanted)
                return
            stream.seek(int(size) + int(size) % 2, os.SEEK_CUR)
    raise DataError(f"{path} is damaged; delete it, and it is fetched again")


def _unpacked(path: Path, name: str, data: bytes) -> bytes:
    """The data of a package as tarfile can read it: this Python may not know Ubuntu's zstd, dpkg does."""
    if not name.endswith(".zst"):
        return data
    if shutil.which("dpkg-deb") is None:
        raise DataError(f"{path} is packed with zstd, and there is no dpkg-deb to unpack it; install dpkg")
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True)
    if done.returncode:
        raise DataError(f"{path} cannot be unpacked; delete it, and it is fetched again")
    return done.stdout


def tar_members(path: Path, stream: io.BufferedIOBase, wanted: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files of a tar stream whose path the pattern matches; DataError names the archive."""
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and re.match(wanted, name):
                    yield name, tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); delete it, and it is fetched again") from None
