"""The versions that scripts/setup.sh installs, and their licences in docs/dependencies.md."""

import re
import runpy
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import setuptools
from helpers import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HOSTS = {"modern": "ve-fairseq", "official": "fairseq"}
# What the official host's environment gets: no scorers, browser or API reference.
INSTALLED = ("plots", "dev")
TABLE = re.compile(r"^\| ([a-z0-9-]+) \| ([\d.]*) ?\| ([\d.]*) ?\| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def pins(host):
    """Name -> version of a constraints file."""
    lines = (REPOSITORY / f"constraints/{host}.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert [name for name, _ in pairs] == [canonicalize_name(name) for name, _ in pairs]
    return dict(pairs)


@pytest.fixture
def declared(monkeypatch):
    """What setup.py hands over."""
    found = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    return found


def required(declared, host):
    """The requirements of setup.py in the environment of a host, its own left out."""
    extras = declared["extras_require"]
    chosen = INSTALLED if host == "official" else [name for name in extras if name != "host"]
    return [*map(Requirement, declared["install_requires"]), *(Requirement(r) for name in chosen for r in extras[name])]


def set_up():
    """The names that scripts/setup.sh installs beside them."""
    script = (REPOSITORY / "scripts/setup.sh").read_text("utf-8")
    (names,) = re.findall(r"install 'what fairseq runs on' --constraint \S+ ((?:[a-z-]+(?: \\\n +| |\n))+)", script)
    return names.replace("\\", " ").split()


@pytest.mark.parametrize("host", HOSTS)
def test_every_requirement_is_pinned_in_a_version_that_it_allows(declared, host):
    found = pins(host)
    assert {HOSTS[host], *set_up()} <= set(found) and {"torch", "scikit-learn", "wheel"} <= set(set_up())
    for requirement in required(declared, host):
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


def test_the_official_set_is_the_oldest_that_setup_allows(declared):
    oldest = pins("official")
    for text in (*declared["install_requires"], *declared["extras_require"]["plots"]):
        requirement = Requirement(text)
        (floor,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
        assert Version(oldest[requirement.name]).release[: len(floor.release)] == floor.release, requirement


def test_what_they_need_is_pinned_too(declared):
    """Of what is installed here: the environment of a host, with any extras."""
    host = "modern" if there("ve-fairseq") else "official"
    known, seen = pins(host), set()
    waiting = [requirement.name for requirement in required(declared, host)] + set_up()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or not there(name) or name.startswith(("nvidia-", "cuda-", "triton")):
            continue  # torch pins the parts of CUDA
        assert name in known, f"constraints/{host}.txt lacks {name}"
        seen.add(name)
        needs = map(Requirement, distribution(name).requires or [])
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert {"torch", "sympy", "nltk"} <= seen


def there(name):
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def test_every_dependency_is_listed_with_its_licence():
    table = (REPOSITORY / "docs/dependencies.md").read_text("utf-8")
    listed = {name: (modern, official, licence) for name, modern, official, licence, _ in TABLE.findall(table)}
    modern, official = pins("modern"), pins("official")
    assert {name: versions[:2] for name, versions in listed.items()} == {
        name: (modern.get(name, ""), official.get(name, "")) for name in sorted({*modern, *official})}
    for name, version in modern.items():
        installed = there(name)
        if installed and installed.version.partition("+")[0] == version:
            assert listed[name][2] == installed.metadata.get("License-Expression", listed[name][2]), name
