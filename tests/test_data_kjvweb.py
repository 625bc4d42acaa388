"""The embedded data set: scripts/prepare_kjvweb.py and what it uses of scripts/_data.py."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))

import _data  # noqa: E402
import prepare_kjvweb  # noqa: E402

ARCHIVE = REPOSITORY / "examples" / "kjvweb" / "kjvweb.tar.xz"
SUMS = ARCHIVE.with_name("SHA256SUMS")
NAMES = sorted(f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt"))


def make_archive(folder, **changed):
    """A small archive with its SHA256SUMS; `changed` replaces the bytes of a file, None leaves it out."""
    archive = folder / "kjvweb.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for name in NAMES:
            content = changed.get(name.replace(".", "_"), f"{name} one\n{name} two words\n".encode())
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "SHA256SUMS").write_text(f"{_data.sha256(archive)}  {archive.name}\n")
    return archive, folder / "SHA256SUMS"


def read(folder):
    return {path.name: path.read_text(encoding="utf-8").split("\n")[:-1] for path in sorted(folder.iterdir())}


def run_script(*options):
    return subprocess.run([sys.executable, SCRIPTS / "prepare_kjvweb.py", *map(str, options)],
                          capture_output=True, text=True)


@pytest.mark.parametrize("max_words, counts", [
    (None, {"train": 25559, "valid": 1892, "test": 2299}),
    (14, {"train": 3249, "valid": 247, "test": 365}),
])
def test_sizes(tmp_path, max_words, counts):
    sizes, changed = prepare_kjvweb.prepare(ARCHIVE, SUMS, tmp_path / "new" / "folder", max_words)
    assert sizes == counts and sorted(changed) == NAMES
    files = read(tmp_path / "new" / "folder")
    assert {name: len(lines) for name, lines in files.items()} == {name: counts[name[:-4]] for name in NAMES}
    assert all(line.strip() for lines in files.values() for line in lines)
    longest = max(len(line.split()) for lines in files.values() for line in lines)
    assert longest == (max_words or 83)


def test_sides_are_aligned_and_the_test_part_is_unseen(tmp_path):
    prepare_kjvweb.prepare(ARCHIVE, SUMS, tmp_path)
    files = read(tmp_path)
    assert files["test.src"][0] == "Then said the high priest, Are these things so?"
    assert files["test.tgt"][0] == "The high priest said, “Are these things so?”"
    for side in ("src", "tgt"):
        assert not set(files[f"train.{side}"]) & set(files[f"valid.{side}"] + files[f"test.{side}"])


def test_archive_is_small_reproducible_and_the_one_the_readme_names():
    assert ARCHIVE.stat().st_size <= 3_000_000
    assert _data.sha256(ARCHIVE) in (ARCHIVE.parent / "README.md").read_text(encoding="utf-8")
    with tarfile.open(ARCHIVE) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == NAMES
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)}


def test_a_second_run_writes_nothing(tmp_path):
    archive, sums = make_archive(tmp_path)
    out = tmp_path / "out"
    prepare_kjvweb.prepare(archive, sums, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "train.src").write_text("spoilt\n")
    assert prepare_kjvweb.prepare(archive, sums, out)[1] == ["train.src"]
    assert prepare_kjvweb.prepare(archive, sums, out)[1] == []
    after = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert after.keys() == before.keys() and after[out / "test.tgt"] == before[out / "test.tgt"]


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    archive, sums = make_archive(tmp_path)
    out = tmp_path / "out"
    prepare_kjvweb.prepare(archive, sums, out, max_words=2)
    before = read(out)
    calls = iter(range(10))

    def fsync(_):
        if next(calls) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        prepare_kjvweb.prepare(archive, sums, out)
    assert read(out) == before


@pytest.mark.parametrize("changed, message", [
    ({"valid_tgt": b"good\nbad \xff byte\n"},
     "kjvweb.tar.xz:valid.tgt, line 2: not UTF-8 (byte 5 of the line is 0xff)"),
    ({"test_src": None}, "'test.src'"),
    ({"test_src": b"one line\n"}, "test.src has 1 lines, test.tgt 2"),
])
def test_a_bad_archive_is_named(tmp_path, changed, message):
    archive, sums = make_archive(tmp_path, **changed)
    with pytest.raises(_data.DataError) as caught:
        prepare_kjvweb.prepare(archive, sums, tmp_path / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_changed_archive_is_refused(tmp_path):
    archive, sums = make_archive(tmp_path)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(_data.DataError, match="does not have the checksum"):
        prepare_kjvweb.prepare(archive, sums, tmp_path / "out")
    sums.write_text(f"{'0' * 64}  another.tar.xz\n")
    with pytest.raises(_data.DataError, match="no line for kjvweb.tar.xz"):
        prepare_kjvweb.prepare(archive, sums, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path):
    done = run_script("--out", tmp_path / "out", "--max-words", 14)
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == [
        "3,249 pairs, written", "247 pairs, written", "365 pairs, written"]
    assert "already there" in run_script("--out", tmp_path / "out", "--max-words", 14).stdout


def test_command_line_errors_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for options, message in ((["--max-words", 0], "--max-words 0 keeps no pair of train"),
                             (["--out", tmp_path / "file"], "file: File exists")):
        done = run_script("--out", tmp_path / "out", *options)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
