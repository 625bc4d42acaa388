"""What pip installs is the whole package, and its commands find it from any directory."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fairseq
import pytest
from helpers import PACKAGE, REPOSITORY

from diffusion_fairseq import __version__, cli

COMMANDS = ("train", "generate", "interactive", "validate", "preprocess")
# Ends well where the plugin's task is known, and with "invalid choice" where it is not.
KNOWN = ("--task", "seq2seq_diffusion", "--help")
SCRIPTS = Path(sys.executable).parent


def test_every_directory_with_modules_is_a_package():
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")}
    assert {path.parent for path in PACKAGE.rglob("*.py")} == packages


@pytest.mark.parametrize("given", [["data"], [], ["data", "--user-directory", "x"]])
def test_plugin_is_added(given):
    assert cli.with_plugin(given) == ["--user-dir", str(PACKAGE), *given]


@pytest.mark.parametrize("given", [["data", "--user-dir", "/mine"], ["--user-dir=/mine", "data"]])
def test_plugin_of_the_user_is_kept(given):
    assert cli.with_plugin(given) == given


def test_bare_name_of_the_plugin_is_resolved():
    assert cli.with_plugin(["--user-dir", PACKAGE.name, "x"]) == ["--user-dir", str(PACKAGE), "x"]
    assert cli.with_plugin([f"--user-dir={PACKAGE.name}"]) == [f"--user-dir={PACKAGE}"]


def run(*command, cwd, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where `pip install .` has put a copy of the package, beside the host as in site-packages."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("site-packages")
    without_cache = shutil.ignore_patterns("__pycache__")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, copy)
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=without_cache)
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--target", target, copy, cwd=target)
    # fairseq looks for --user-dir beside itself, so its directory must be a real one here.
    host = Path(fairseq.__file__).parent
    shutil.copytree(host, target / "fairseq", copy_function=os.symlink, ignore=without_cache)
    return target


@pytest.mark.slow
def test_installed_package_is_complete(installed):
    def modules(package):
        return {path.relative_to(package) for path in package.rglob("*.py")}

    assert modules(installed / PACKAGE.name) == modules(PACKAGE)
    (found,) = importlib.metadata.distributions(name="diffusion-fairseq", path=[str(installed)])
    assert found.version == __version__
    assert {entry.name for entry in found.entry_points} == {
        f"diffusion-fairseq-{name}" for name in (*COMMANDS, "dir")
    }


@pytest.mark.slow
def test_installed_directory_is_printed(installed, tmp_path):
    script = installed / "bin/diffusion-fairseq-dir"
    printed = run(sys.executable, script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert printed == f"{installed / PACKAGE.name}\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_installed_script_loads_the_plugin(installed, tmp_path, command):
    script = installed / f"bin/diffusion-fairseq-{command}"
    run(sys.executable, script, *KNOWN, cwd=tmp_path, PYTHONPATH=str(installed))


@pytest.mark.slow
@pytest.mark.parametrize("shadow", [False, True], ids=["elsewhere", "beside a clone of that name"])
def test_name_is_enough_after_installation(installed, tmp_path, shadow):
    if shadow:
        (tmp_path / PACKAGE.name / "docs").mkdir(parents=True)
    train = (sys.executable, "-m", "fairseq_cli.train", "--user-dir", PACKAGE.name)
    run(*train, *KNOWN, cwd=tmp_path, PYTHONPATH=str(installed))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["name in the repository", "path anywhere", "path with a slash"])
def test_user_dir_without_installation(tmp_path, where):
    cwd = REPOSITORY if where == "name in the repository" else tmp_path
    given = {"path anywhere": PACKAGE, "path with a slash": f"{PACKAGE}/"}.get(where, PACKAGE.name)
    run(sys.executable, "-m", "fairseq_cli.train", "--user-dir", given, *KNOWN, cwd=cwd)


@pytest.mark.slow
@pytest.mark.skipif(
    not (SCRIPTS / "diffusion-fairseq-train").exists(),
    reason="needs the installation that scripts/setup.sh makes",
)
def test_script_of_this_environment_loads_the_plugin(tmp_path):
    run(SCRIPTS / "diffusion-fairseq-train", *KNOWN, cwd=tmp_path)


@pytest.mark.slow
def test_a_script_says_what_the_command_says_and_nothing_of_libraries(tmp_path):
    model = REPOSITORY / "examples/kjvweb/model"
    words = (model, "--task", "seq2seq_diffusion", "--source-lang", "src", "--target-lang", "tgt", "--path",
             model / "model.pt", "--diffusion-steps", "2", "--cpu")
    command = [sys.executable, "-c", "from diffusion_fairseq import cli; cli.interactive()", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, input="go\n", capture_output=True, text=True, check=True)
    assert not done.stderr
    # As fairseq_cli sets its log up, with the time before each line.
    assert re.search(r"^\d{4}-\d\d-\d\d [\d:]+ \| INFO \| fairseq_cli.interactive \| loading", done.stdout, re.M)
    assert "\nD-0\t" in done.stdout
