"""Literals instead of programs: the strings of a checkpoint's configuration that the host hands to eval."""

import argparse
import ast
import builtins
import operator
from collections.abc import Iterator

from fairseq import utils
from omegaconf import OmegaConf

from diffusion_fairseq.compat.patching import host_modules
from diffusion_fairseq.errors import UserError

OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul}


def literal(text: str) -> object:
    """Value of a literal, or of sums and products of literals such as "[(512, 3)] * 4 + [(512, 2)]".

    Raises TypeError for what is not a string, as eval does (the host's eval_bool counts on it), and UserError
    for a string that is more than that.
    """
    if not isinstance(text, str):
        raise TypeError(f"a literal is written as a string, this is {type(text).__name__}")

    def value(node: ast.expr) -> object:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return ast.literal_eval(node)

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"option value {text!r} is no literal: write numbers, strings or lists") from error


def literal_eval() -> None:
    """Read option strings as literals instead of running them, in each loaded module of the host.

    Both hosts, any torch: a configuration comes out of a checkpoint, and weights_only does not look into its
    strings. Known upstream for data files: https://github.com/facebookresearch/fairseq/issues/4869
    """
    for module in host_modules():
        if module.__name__.startswith("fairseq."):
            vars(module).setdefault("eval", literal)


def strings(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of each string in nested dicts, lists and Namespaces."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=False)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item, name)


def is_program(text: str) -> bool:
    """Whether eval in the host would call something for this text; "runs(1)" is a file name and none."""
    if "(" not in text:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    hidden = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("__")}
    known = names & (vars(builtins).keys() | vars(utils).keys())
    return any(isinstance(node, ast.Call) for node in nodes) and bool(known or hidden)
