"""Imports point downward only: what each layer of the package may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffusion_fairseq"
L0 = ("diffusion", "text", "metrics")
# Layer of each part; a part may import parts of lower layers, and of its own where that is its own folder.
LAYER = {"errors": -1, "diffusion": 0, "text": 0, "metrics": 0, "modules": 1, "models": 2, "criterions": 2, "data": 2,
         "generator": 3, "denoiser": 3, "guidance": 3, "early_exit": 2, "tasks": 3, "scoring": 3, "compat": 3,
         "host": 3, "cli": 4, "__init__": 4}
# Beside one another: criterions read what a model's training pass holds; the generator, what guides it and its task
# share a config.
PEERS = {("criterions", "models"), ("generator", "tasks"), ("tasks", "generator"), ("generator", "guidance"),
         ("generator", "denoiser"), ("denoiser", "guidance"), ("guidance", "tasks")}
OUTSIDE_L0 = {"torch", "numpy", "math", "typing", "functools", "collections", "re",
              "rouge_score", "sacrebleu", "mauve", "bert_score", "importlib", "pathlib"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "diffusion_fairseq":
                yield from (f"diffusion_fairseq.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path, part", [pytest.param(p, q, id=str(p.relative_to(PACKAGE))) for p, q in modules()])
def test_imports_point_downward(path, part):
    assert part in LAYER, f"{part} has no layer"
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "diffusion_fairseq" and rest:
            other = rest.split(".")[0]
            allowed = other == part or LAYER[other] < LAYER[part] or (part, other) in PEERS
            assert allowed, f"{path.name} ({part}) imports {other}"
        elif part in L0 and top != "diffusion_fairseq":
            assert top in OUTSIDE_L0, f"{path.name} (L0) imports {top}"
        elif part == "modules" and top != "diffusion_fairseq":
            assert top in OUTSIDE_L0, f"{path.name} (L1) imports {top}"


def test_the_core_works_without_fairseq():
    """The core's packages are imported under a bare parent, with fairseq and omegaconf blocked."""
    code = f"""
import importlib, pkgutil, sys, types
sys.modules["fairseq"] = sys.modules["omegaconf"] = None
parent = types.ModuleType("diffusion_fairseq")
parent.__path__ = [{str(PACKAGE)!r}]
sys.modules["diffusion_fairseq"] = parent
count = 0
for layer in {L0!r}:
    package = importlib.import_module("diffusion_fairseq." + layer)
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"diffusion_fairseq.{{layer}}.{{found.name}}")
        count += 1
print(count)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 9


def test_files_and_functions_stay_small():
    for path, _ in modules():
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") != "print", f"{path}:{node.lineno} prints"
