"""The API reference: everything public has a docstring, and the documentation's command makes pages of all modules."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PACKAGE, REPOSITORY

import diffusion_fairseq

MODULES = sorted(info.name for info in pkgutil.walk_packages(diffusion_fairseq.__path__, "diffusion_fairseq."))


def public(body):
    return [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"]


def undocumented(module):
    """Names without a docstring; a method may have that of the one which it overrides, but every network says what goes
    through it."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) else ["the module"]
    for node in public(tree.body):
        found += [] if ast.get_docstring(node) else [node.name]
        for method in public(node.body) if isinstance(node, ast.ClassDef) else ():
            inherited = method.name != "forward" and inspect.getdoc(getattr(getattr(module, node.name), method.name))
            if not (ast.get_docstring(method) or inherited):
                found.append(f"{node.name}.{method.name}")
    return found


@pytest.mark.parametrize("name", ["diffusion_fairseq", *MODULES])
def test_everything_public_has_a_docstring(name):
    assert undocumented(importlib.import_module(name)) == []


def test_a_missing_docstring_is_found(tmp_path, monkeypatch):
    (tmp_path / "bare.py").write_text("""
class A:
    'A'
    def of(self): 'Of.'
    def forward(self): 'f'
    def _own(self): 0
class B(A):
    def of(self): 1
    def forward(self): 1
    def to(self): 1
def c(): 1
""")
    monkeypatch.syspath_prepend(tmp_path)
    assert undocumented(importlib.import_module("bare")) == ["the module", "B", "B.forward", "B.to", "c"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="needs pdoc: pip install -e '.[docs]'")
def test_the_command_of_the_documentation_makes_a_page_of_every_module(tmp_path):
    (options,) = re.findall(r"^pdoc -o runs/api (.+)$", (REPOSITORY / "docs/README.md").read_text(), re.M)
    words = [sys.executable, "-m", "pdoc", "-o", str(tmp_path), *options.split()]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "Warn:" not in done.stderr, done.stderr
    for name in MODULES:
        assert (tmp_path / (name.replace(".", "/") + ".html")).is_file(), name
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert len(MODULES) >= len(files) and (tmp_path / "search.js").is_file()
    page = (tmp_path / "diffusion_fairseq/diffusion/solvers.html").read_text(encoding="utf-8")
    assert "ddim_step" in page and "eta" in page
