"""How a mend puts its function in the place of the host's."""

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


def replace_in_command(name: str, function: str, new: Callable[[Callable], object]) -> None:
    """Replace a function of fairseq_cli.NAME by new(function) when the command begins: by then its module, which may be
    the program itself or be loaded after this package, is there."""
    stock = options.parse_args_and_arch

    def parse_args_and_arch(*args, **kwargs):
        for place in ("__main__", f"fairseq_cli.{name}"):
            old = getattr(sys.modules.get(place), function, None)
            if old is not None:
                setattr(sys.modules[place], function, new(old))
        return stock(*args, **kwargs)

    replace(options, "parse_args_and_arch", parse_args_and_arch)


def replace(owner: ModuleType, name: str, new: object) -> None:
    """Replace owner.name, also in the host's modules that imported it by name."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    for module in host_modules():
        if vars(module).get(name) is old:
            setattr(module, name, new)
