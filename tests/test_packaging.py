"""What pip installs is the whole package, and its commands find it from any directory."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fairseq
import pytest
from helpers import PACKAGE, REPOSITORY

from diffusion_fairseq import __version__, cli

COMMANDS = ("train", "generate", "interactive", "validate", "preprocess", "dir")


def sources(package):
    return {str(path.relative_to(package)) for path in package.rglob("*.py")}


def test_every_directory_with_modules_is_a_package():
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {
        path.parent for path in PACKAGE.rglob("__init__.py")
    }


@pytest.mark.parametrize("given", [["data"], [], ["data", "--user-directory", "x"]])
def test_plugin_is_added(given):
    assert cli.with_plugin(given) == ["--user-dir", str(PACKAGE), *given]


@pytest.mark.parametrize("given", [["data", "--user-dir", "/mine"], ["--user-dir=/mine", "data"]])
def test_plugin_of_the_user_is_kept(given):
    assert cli.with_plugin(given) == given


def test_bare_name_of_the_plugin_is_resolved():
    assert cli.with_plugin(["--user-dir", "diffusion_fairseq", "data"]) == [
        "--user-dir",
        str(PACKAGE),
        "data",
    ]
    assert cli.with_plugin(["--user-dir=diffusion_fairseq"]) == [f"--user-dir={PACKAGE}"]


def run(*command, cwd, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where `pip install .` has put a copy of the package, beside the host as in site-packages."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("site-packages")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, copy)
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index")
    done = run(*pip, "--target", target, copy, cwd=target)
    assert done.returncode == 0, done.stderr
    # fairseq looks for --user-dir beside itself, so it must lie there as files, not behind a link.
    host = Path(fairseq.__file__).parent
    shutil.copytree(
        host, target / "fairseq", copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__")
    )
    return target


@pytest.mark.slow
def test_installed_package_is_complete(installed):
    assert sources(installed / PACKAGE.name) == sources(PACKAGE)
    (found,) = importlib.metadata.distributions(name="diffusion-fairseq", path=[str(installed)])
    assert found.version == __version__
    assert {entry.name for entry in found.entry_points} == {f"diffusion-fairseq-{name}" for name in COMMANDS}


@pytest.mark.slow
def test_installed_scripts_load_the_plugin(installed, tmp_path):
    scripts = installed / "bin"
    here = run(sys.executable, scripts / "diffusion-fairseq-dir", cwd=tmp_path, PYTHONPATH=str(installed))
    assert here.stdout == f"{installed / PACKAGE.name}\n"
    for command in ("train", "generate", "interactive", "validate", "preprocess"):
        script = scripts / f"diffusion-fairseq-{command}"
        done = run(sys.executable, script, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
        assert "seq2seq_diffusion" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("shadow", [False, True], ids=["elsewhere", "beside a clone of that name"])
def test_name_is_enough_after_installation(installed, tmp_path, shadow):
    if shadow:
        (tmp_path / PACKAGE.name / "docs").mkdir(parents=True)
    done = run(
        *(sys.executable, "-m", "fairseq_cli.train", "--user-dir", PACKAGE.name, "--help"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert done.returncode == 0, done.stderr
    assert "seq2seq_diffusion" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("where", ["name in the repository", "path anywhere", "path with a slash"])
def test_user_dir_without_installation(tmp_path, where):
    cwd = REPOSITORY if where == "name in the repository" else tmp_path
    given = {
        "name in the repository": PACKAGE.name,
        "path anywhere": PACKAGE,
        "path with a slash": f"{PACKAGE}/",
    }
    done = run(sys.executable, "-m", "fairseq_cli.train", "--user-dir", given[where], "--help", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "seq2seq_diffusion" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(sys.executable).parent / "diffusion-fairseq-train").exists(),
    reason="needs the editable installation that scripts/setup.sh makes",
)
def test_scripts_of_this_environment_load_the_plugin(tmp_path):
    done = run(Path(sys.executable).parent / "diffusion-fairseq-train", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seq2seq_diffusion" in done.stdout
