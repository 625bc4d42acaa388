"""Broken and hostile input: one line that names file, line and remedy, no traceback, nothing lost or half written."""

import os
import random
import re
import subprocess
import sys

import pytest
from forked import SCRIPTS, Forks
from hostile_cases import BINARY, CHECKPOINTS, DICTIONARY, TRAIN
from hostile_words import LINE, OPTIONS, OUTPUTS, PREPARERS, WORKS

pytestmark = pytest.mark.slow

CASES = {**CHECKPOINTS, **DICTIONARY, **BINARY, **OPTIONS, **PREPARERS, **OUTPUTS, **LINE}
ERROR = re.compile(r"(?:[\w.-]+: )?error: .+")
# Beside what is there, and whole: what the host writes, and the options that an interrupted corpus goes on with.
ALLOWED = ("preprocess.log", "crash.pt", "manifest.json")
# What argparse of a script says before it, and bars of progress.
BESIDE = re.compile(r"usage: |\s|.*\r")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    process = Forks(tmp_path_factory.mktemp("forks"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def work(tmp_path_factory, forks):
    """Pairs and lines of text, their data and a checkpoint."""
    folder, draw = tmp_path_factory.mktemp("work"), random.Random(1)
    words = [f"w{number}" for number in range(36)]
    for split, count in (("train", 24), ("valid", 4), ("test", 5)):
        lines = [" ".join(words)] * (split == "train")
        lines += [" ".join(draw.choices(words, k=draw.randint(3, 8))) for _ in range(count)]
        for side in ("src", "tgt"):
            (folder / f"{split}.{side}").write_text("".join(f"{line}\n" for line in lines))
    prefixes = "--trainpref train{0} --validpref valid{0} --testpref test{0}"
    for command in (f"preprocess -s src -t tgt --joined-dictionary --destdir bin {prefixes.format('')}",
                    f"preprocess --only-source --destdir lm {prefixes.format('.src')}",
                    f"{TRAIN} --save-dir WORK/ck --no-epoch-checkpoints".replace("WORK/", "")):
        done = forks.run(command.split(), folder)
        assert done.returncode == 0, done.stderr
    with (folder / "lm" / "dict.txt").open("a") as dictionary:
        dictionary.write("<mask> 0\n")
    return folder


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*")
            if path.is_file() and path.name not in ALLOWED}


def run(case, here, work, forks):
    here.mkdir()
    case.prepare(here, work)
    before = contents(here, work)
    words = case.command.replace("HERE", str(here)).replace("WORK", str(work)).split()
    pattern = case.names.replace("HERE", re.escape(str(here))).replace("WORK", re.escape(str(work)))
    return forks.run(words, here, case.text), pattern, before


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_lost(name, tmp_path, work, forks):
    done, pattern, before = run(CASES[name], tmp_path / "here", work, forks)
    assert done.returncode > 0, done.stdout[-2000:]
    said = [line for line in done.stderr.splitlines() if line and not BESIDE.match(line)]
    assert len(said) == 1 and ERROR.fullmatch(said[0]), done.stderr[-3000:]
    assert re.search(pattern, said[0]), said[0]
    assert "Traceback" not in done.stdout and not re.search(r"^[HD]-\d", done.stdout, re.M)
    assert contents(tmp_path / "here", work) == before


@pytest.mark.parametrize("name", WORKS)
def test_what_is_odd_and_fine_works(name, tmp_path, work, forks):
    done, pattern, before = run(WORKS[name], tmp_path / "here", work, forks)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr[-3000:]
    assert re.search(pattern, done.stdout), done.stdout[-2000:]
    after = contents(tmp_path / "here", work)
    assert all(after[path] == content for path, content in before.items())


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("[a-z]*.py")))
def test_a_python_that_lacks_packages_is_named(script):
    """Without site-packages; some scripts need none."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", SCRIPTS / script, "--help"], env=environment, capture_output=True,
                          text=True)
    if done.returncode:
        assert re.fullmatch(r"error: this Python \(.+\) has no \w+: activate the environment .*\n", done.stderr)


@pytest.mark.parametrize("options, environment, message", [
    (["--host", "other"], {}, "unknown host 'other': --host takes modern or official"),
    (["--fast"], {}, "unknown argument '--fast': bash scripts/setup.sh --help"),
    ([], {"PYTHON": "/nowhere/python"}, r"no Python 3\.11 or 3\.12 found: install one"),
    ([], {"VENV": "TMP/full"}, "full is in the way: it is not empty"),
], ids=["host", "argument", "python", "folder"])
def test_set_up_says_in_one_line_what_is_wrong(tmp_path, options, environment, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    environment = {"VENV": str(tmp_path / "new"), **environment}
    environment = {name: value.replace("TMP", str(tmp_path)) for name, value in environment.items()}
    before = contents(tmp_path)
    done = subprocess.run(["bash", SCRIPTS / "setup.sh", *options], env={**os.environ, **environment},
                          capture_output=True, text=True)
    assert done.returncode and re.fullmatch(rf"error: .*{message}.*\n", done.stderr)
    assert contents(tmp_path) == before


def test_a_host_that_is_missing_is_named():
    code = "import sys; sys.modules['fairseq'] = None; import diffusion_fairseq"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: no fairseq is installed: pip install .*setup\.sh\n", done.stderr)


def test_there_are_enough_cases():
    assert len(CASES) >= 160
