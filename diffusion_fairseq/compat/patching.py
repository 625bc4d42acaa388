"""How a mend puts its function in the place of the host's."""

import os
import sys
from types import ModuleType
from typing import Callable

from fairseq import options


def host_modules() -> list[ModuleType]:
    """The modules of the host that are loaded by now."""
    loaded = [(name, module) for name, module in sys.modules.items() if isinstance(module, ModuleType)]
    return [module for name, module in loaded if name.partition(".")[0] in ("fairseq", "fairseq_cli")]


def as_program(module: ModuleType) -> list[ModuleType]:
    """A module of the host, and what `python -m` made of its file, if that runs."""
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    return [module, program] if spec and spec.name == module.__name__ else [module]


def command_scopes(name: str) -> list[dict]:
    """The names that the functions of fairseq_cli.NAME see: its module's, and those of the program that is its file.

    A process that was spawned from the program holds but a copy of them in its __main__.
    """
    starts = [getattr(sys.modules.get(place), "cli_main", None) for place in ("__main__", f"fairseq_cli.{name}")]
    scopes = [getattr(start, "__globals__", {}) for start in starts]
    file = os.path.join("fairseq_cli", f"{name}.py")
    return [scope for scope in scopes if str(scope.get("__file__")).endswith(file)]


def replace_in_command(name: str, function: str, new: Callable[[Callable], object]) -> None:
    """Replace a function of fairseq_cli.NAME by new(function): where its module is loaded, which may be the program
    itself, at once, as a process that was spawned reads no options; else when the command begins."""
    stock, mended = options.parse_args_and_arch, []

    def mend():
        for scope in command_scopes(name):
            if function in scope and not any(scope is other for other in mended):
                mended.append(scope)
                scope[function] = new(scope[function])

    def parse_args_and_arch(*args, **kwargs):
        mend()
        return stock(*args, **kwargs)

    mend()
    replace(options, "parse_args_and_arch", parse_args_and_arch)


def replace(owner: ModuleType, name: str, new: object) -> None:
    """Replace owner.name, also in the host's modules that imported it by name."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    for module in host_modules():
        if vars(module).get(name) is old:
            setattr(module, name, new)
