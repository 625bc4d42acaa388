"""debsum: its text, filters and evaluation set on a made index; the real index where there is apt."""

import bz2
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))

import _data  # noqa: E402
import _debsum  # noqa: E402
import _descriptions  # noqa: E402
import prepare_debsum  # noqa: E402

PIN = REPOSITORY / "examples" / "debsum" / "pin.txt"


# ---- a made index

def sentence(seed, words=24):
    """A sentence of words that no other seed has: nothing of it is near anything."""
    digests = (hashlib.md5(f"{seed} {i}".encode()).hexdigest() for i in range(words))
    letters = str.maketrans("0123456789", "ghijklmnop")     # words with digits are masked
    return " ".join(digest[:8].translate(letters) for digest in digests) + "."


def entry(name, synopsis=None, body=None, source=None, section="utils"):
    """One package; its description has at least one word of its synopsis unless a body is given."""
    synopsis = synopsis or f"{name}word viewer for {name}things"
    body = body or f"{synopsis.split()[0]} {sentence(name)}"
    text = synopsis + "\n" + "\n".join(f" {line}" if line else " ." for line in body.split("\n"))
    return _debsum.Package(name, source or name, section, hashlib.md5(text.encode()).hexdigest(),
                           *text.split("\n", 1))


def write_index(folder, packages, compress=lzma.compress, suffix=".xz"):
    folder.mkdir(exist_ok=True)
    listed = "".join(f"Package: {p.name}\nSource: {p.source} (1.2)\nDescription: {p.synopsis}\n"
                     f"Tag: a,\n b\nDescription-md5: {p.md5}\nSection: {p.section}\n\n" for p in packages)
    texts = "".join(f"Package: {p.name}\nDescription-md5: {p.md5}\n"
                    f"Description-en: {p.synopsis}\n{p.body}\n\n" for p in packages)
    (folder / f"Packages{suffix}").write_bytes(compress(listed.encode()))
    (folder / f"Translation-en{suffix}").write_bytes(compress(texts.encode()))
    return folder


def write_pins(path, **splits):
    path.write_text("".join(f"{split} {p.name} {p.md5[:8]}\n" for split, ps in splits.items() for p in ps))
    return path


def pair(name="viewer", description="", synopsis="viewer for things", source=None, section="utils"):
    description = description or f"viewer {sentence(name)}"
    return _debsum.Pair(name, source or name, section, "0" * 32, description, synopsis)


def run_script(*options, **environment):
    return subprocess.run([sys.executable, SCRIPTS / "prepare_debsum.py", *map(str, options)],
                          capture_output=True, text=True, env={**os.environ, **environment})


def column(folder, name):
    return (folder / name).read_text(encoding="utf-8").split("\n")[:-1]


# ---- text

@pytest.mark.parametrize("synopsis, cleaned", [
    ("theorem prover for students (Python 3)", "theorem prover for students"),
    ("library to read EPUB files - runtime library", "library to read EPUB files"),
    ("time units for OCaml, shared library.", "time units for OCaml"),
    ("mspub file library - runtime -- tools", "mspub file library"),
    ("immutable dictionary (Python 3)", "immutable dictionary (Python 3)"),
    ("plotting library for web pages (core)", "plotting library for web pages (core)"),
    ("fast  viewer of www.example.org pages.", "fast viewer of pages"),
    (".NET module reader and writer", "NET module reader and writer"),
])
def test_clean_synopsis(synopsis, cleaned):
    assert _debsum.clean_synopsis(synopsis) == cleaned


@pytest.mark.parametrize("body, expected", [
    (" It shows\n files.\n .\n It prints\n them", ["It shows files.", "It prints them."]),
    (" It can:\n  * print\n    pages;\n  * show\n  - and save.", ["It can: print pages; show; and save."]),
    (" See (http://example.org/a) and run() <https://example.org>.", ["See and run ."]),
    (" .\n  1) one\n  2) two\n .\n", ["one; two."]),
    (" http://example.org/", []),
])
def test_paragraphs(body, expected):
    assert _debsum.paragraphs(body) == expected


def test_mask_hides_names_and_numbers_only():
    package = entry("python3-keyrings.alt", source="keyrings-alt")
    names = _debsum.name_words(package)
    assert _debsum.mask("The Python 3.x port of Keyrings.", names) == "the python # port of @"
    assert _debsum.mask("It needs libkeyring2 and org.keyrings!", names) == "it needs # and org keyrings"
    assert "gtk" in _debsum.name_words(entry("libgtk3-perl"))
    assert "node" not in _debsum.name_words(entry("node-once"))


def test_boilerplate_of_four_sources_is_dropped():
    def body(name):
        module = f"This package contains the lib{name} module, version {len(name)}."
        return "\n\n".join([sentence(name), module, "URL: ftp.org/x", "Ok"])

    names = ("alpha", "beta", "gamma", "delta")
    packages = [entry(f"lib{name}", body=body(name)) for name in names]
    owned, dropped = _debsum.own_paragraphs(packages)
    pairs = _debsum.make_pairs(owned)
    assert [made.description for made in pairs] == [sentence(name) for name in names]
    assert dropped == 12
    owned, dropped = _debsum.own_paragraphs(packages[:3])    # "Ok." has too few letters, "URL:" is a label
    assert dropped == 6
    assert list(owned[0][1]) == [0, 1]
    assert _debsum.make_pairs(owned)[0].description.endswith("This package contains the libalpha module, version 5.")


def test_description_is_cut():
    owned, _ = _debsum.own_paragraphs([entry("long", body=sentence("long", 400))])
    (made,) = _debsum.make_pairs(owned)
    assert made.description.split() == sentence("long", 400).split()[:300]


# ---- filters

@pytest.mark.parametrize("keep, good, bad", [
    (_debsum.has_function, pair("viewer"), pair("viewer-dev")),
    (_debsum.has_function, pair("dev-viewer"), pair("viewer-doc")),
    (_debsum.has_function, pair("data-viewer"), pair("viewer-data")),
    (_debsum.has_function, pair(section="contrib/utils"), pair(section="contrib/oldlibs")),
    (_debsum.has_function, pair(synopsis="state transition viewer"), pair(synopsis="transitional package")),
    (_debsum.is_long_enough, pair(description=sentence("x", 15)), pair(description=sentence("x", 14))),
    (_debsum.has_fit_synopsis, pair(synopsis="one two three"), pair(synopsis="one two")),
    (_debsum.has_fit_synopsis, pair(synopsis="word " * 20), pair(synopsis="word " * 21)),
    (_debsum.shares_content, pair("a", "It is highlighting.", "highlighter"), pair("a", "It is.", "it is")),
    (_debsum.shares_content, pair("a-viewer", "A tool.", "viewer"), pair("b", "A tool.", "viewer")),
])
def test_filters_of_single_pairs(keep, good, bad):
    assert keep(good) and not keep(bad)
    assert keep in _debsum.FILTERS.values()


def test_sources_with_a_common_text_are_grouped():
    text = sentence("common", 8)                            # four runs of five words
    pairs = [pair("a", f"{sentence('a')} {text}"), pair("b", f"{text} {sentence('b')}"), pair("c")]
    groups = _debsum.group_sources(pairs)
    assert groups["a"] == groups["b"] != groups["c"]
    shorter = " ".join(text.split()[:7])
    pairs = [pair("a", f"{sentence('a')} {shorter}"), pair("b", f"{shorter} {sentence('b')}")]
    assert len(set(_debsum.group_sources(pairs).values())) == 2
    everywhere = [pair(f"s{i}", f"{text} {sentence(i)}") for i in range(11)]
    assert len(set(_debsum.group_sources(everywhere[:10]).values())) == 1
    assert len(set(_debsum.group_sources(everywhere).values())) == 11, "so many have a mere turn of phrase"


def test_groups_join_by_way_of_a_third():
    one, two = sentence("one", 10), sentence("two", 10)
    groups = _debsum.group_sources([pair("a", one), pair("b", f"{one} {two}"), pair("c", two)])
    assert len(set(groups.values())) == 1


def test_one_pair_for_each_synopsis_and_near_duplicate():
    text = sentence("text", 40)
    half = " ".join(text.split()[:20])
    pairs = [
        pair("libviewer2", synopsis="Viewer, for 2 things", source="viewer"),
        pair("viewer", synopsis="viewer for 3 things"),     # the same synopsis; bears its source's name
        pair("copied", text, "tool that copies files"),
        pair("copy", f"{half} {sentence('copy', 18)}", "tool that copies folders"),
        pair("other", f"{half} {sentence('other', 25)}", "tool that copies disks"),
    ]
    # "copied" and "copy" have 16 runs of five words in common: less than half of the 34 of "copy".
    kept = [made.name for made in _debsum.drop_duplicates(pairs)]
    assert sorted(kept) == ["copied", "copy", "other", "viewer"]
    nearer = pair("copy", f"{' '.join(text.split()[:22])} {sentence('copy', 16)}", "tool that copies folders")
    assert sorted(made.name for made in _debsum.drop_duplicates([pairs[2], nearer])) == ["copied"]


def test_leaks_are_dropped():
    held = pair("held", sentence("held", 30), "viewer of 3 files")
    words = held.description.split()
    eight, seven = " ".join(words[5:13]), " ".join(words[5:12])
    pairs = [pair("a", synopsis="Viewer of 4 files"), pair("b", f"{sentence('b')} {eight} {sentence('bb')}"),
             pair("c", f"{sentence('c')} {seven} {sentence('cc')}", "viewer of files")]
    assert [made.name for made in _debsum.drop_leaks(pairs, [held])] == ["c"]


# ---- the whole

@pytest.fixture
def made_index(tmp_path):
    """(index folder, pin file): 30 packages for training, two pinned, and what must not come through."""
    valid, test = entry("validone"), entry("testone", source="testsource")
    sibling = entry("sibling", source="testsource")
    changed, gone = entry("changedone"), entry("goneone")
    packages = [entry(f"package{chr(97 + i // 6)}{chr(97 + i % 6)}") for i in range(30)]
    packages += [valid, test, sibling, changed, entry("packageaa-dev"), entry("short", body="short text")]
    pins = write_pins(tmp_path / "pin.txt", valid=[valid, gone], test=[test, changed._replace(md5="f" * 32)])
    return write_index(tmp_path / "indexes", packages), pins


def test_made_index(tmp_path, made_index, capsys):
    indexes, pins = made_index
    out = tmp_path / "out"
    assert prepare_debsum.prepare(out, indexes, pins) == {"train": 30, "valid": 1, "test": 1}
    assert column(out, "valid.src") == [f"validoneword {sentence('validone')}"]
    assert column(out, "valid.tgt") == ["validoneword viewer for validonethings"]
    assert column(out, "test.id")[0].split("\t") == ["testone", "testsource", "utils", entry("testone").md5]
    names = [line.split("\t")[0] for line in column(out, "train.id")]
    assert len(set(names)) == 30 and all(name.startswith("package") and len(name) == 9 for name in names)
    assert names != sorted(names)
    assert column(out, "train.src") == [f"{name}word {sentence(name)}" for name in names]
    said = capsys.readouterr().err
    assert "1 of 4 pinned packages missing" in said and "1 of 4 pinned packages changed" in said
    report = json.loads((out / "debsum.json").read_text())
    assert report["pinned"] == {"packages": 4, "missing": 1, "changed": 1}
    assert list(report["stages"].values()) == [36, 32, 31, 31, 31, 30, 30, 30]


def test_prepared_files_are_kept_until_something_changes(tmp_path, made_index, monkeypatch):
    indexes, pins = made_index
    out = tmp_path / "out"
    prepare_debsum.prepare(out, indexes, pins)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(prepare_debsum, "select", lambda *_: pytest.fail("built again"))
        assert prepare_debsum.prepare(out, indexes, pins) == {"train": 30, "valid": 1, "test": 1}
        with pytest.raises(pytest.fail.Exception, match="built again"):
            prepare_debsum.prepare(out, indexes, pins, force=True)
    (out / "train.src").write_text("spoilt\n")
    prepare_debsum.prepare(out, indexes, pins)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    write_index(indexes, [entry("validone"), entry("testone"), entry("packageaa")])
    assert prepare_debsum.prepare(out, indexes, pins)["train"] == 1


@pytest.mark.parametrize("compress, suffix", [(bz2.compress, ".bz2"), (bytes, "")])
def test_index_formats(tmp_path, compress, suffix):
    packages = [entry("a"), entry("b", source="c", section="net")]
    indexes = write_index(tmp_path / "indexes", packages, compress, suffix)
    assert _descriptions.read_packages(_descriptions.find_indexes(indexes, "en")) == packages


def test_same_files_whatever_the_hash_seed(tmp_path, made_index):
    indexes, pins = made_index
    for seed in ("1", "2"):
        done = run_script("--out", tmp_path / seed, "--indexes", indexes, "--pin", pins, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert f"{tmp_path / seed}/train.src, .tgt, .id: 30 pairs" in done.stdout.splitlines()
    assert (tmp_path / "1" / "train.id").read_bytes() == (tmp_path / "2" / "train.id").read_bytes()


def spoil(folder, what):
    if what == "damaged":
        (folder / "Packages.xz").write_bytes((folder / "Packages.xz").read_bytes()[:-40])
    elif what == "not UTF-8":
        (folder / "Translation-en.xz").write_bytes(lzma.compress(b"Package: a\nDescription-en: \xe9t\xe9\n"))
    elif what == "absent":
        (folder / "Translation-en.xz").unlink()
    elif what == "another release":
        write_index(folder, [entry("zzz")])
    elif what == "not an index":
        (folder / "Packages.xz").write_bytes(lzma.compress(b"<html>\n"))


@pytest.mark.parametrize("what, message", [
    ("damaged", "Packages.xz cannot be unpacked"),
    ("not UTF-8", "Translation-en.xz, line 2: not UTF-8 (byte 17 of the line is 0xe9)"),
    ("absent", "holds no Translation-en.xz"),
    ("another release", "no pinned package with the pinned text"),
    ("not an index", "have no package in common"),
])
def test_index_errors_are_one_line_and_write_nothing(tmp_path, made_index, what, message):
    indexes, pins = made_index
    spoil(indexes, what)
    done = run_script("--out", tmp_path / "out", "--indexes", indexes, "--pin", pins)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_without_apt_the_error_names_the_way_out(tmp_path):
    done = run_script("--out", tmp_path / "out", PATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: there is no apt-get")
    assert "--indexes" in done.stderr


def test_bad_pin_file_is_named(tmp_path):
    (tmp_path / "pin.txt").write_text("valid a 12345678\ntrain b 12345678\n")
    with pytest.raises(_data.DataError, match="pin.txt, line 2"):
        prepare_debsum.read_pins(tmp_path / "pin.txt")


def test_committed_pins():
    splits = [split for split, _ in prepare_debsum.read_pins(PIN).values()]
    assert splits.count("valid") == 1409 and splits.count("test") == 1434


@pytest.mark.apt
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get on this machine")
def test_real_index(tmp_path):
    lists = Path("/var/lib/apt/lists")
    before = sorted(os.listdir(lists)) if lists.is_dir() else None
    done = run_script("--out", tmp_path)
    if "check the network" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert (sorted(os.listdir(lists)) if lists.is_dir() else None) == before
    report = json.loads((tmp_path / "debsum.json").read_text())
    assert report["pairs"]["train"] > 15_000
    lost = report["pinned"]["missing"] + report["pinned"]["changed"]
    assert report["pairs"]["valid"] + report["pairs"]["test"] == 2843 - lost
    if not lost:
        digests = {name: report["sha256"][name][:16] for name in ("test.id", "test.tgt", "valid.tgt")}
        assert digests == {"test.id": "f8bc5900ee8669e3", "test.tgt": "90b5e7f843d1bad5",
                           "valid.tgt": "8a9aeea9e8f80e03"}
    ids = {split: [line.split("\t") for line in column(tmp_path, f"{split}.id")] for split in report["pairs"]}
    assert not {row[1] for row in ids["train"]} & {row[1] for row in ids["valid"] + ids["test"]}
    assert not set(column(tmp_path, "train.tgt")) & set(column(tmp_path, "test.tgt"))
    assert all(1 <= len(line.split()) <= 300 for line in column(tmp_path, "test.src"))
