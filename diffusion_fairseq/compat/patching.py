"""How a mend puts its function in the place of the host's."""

import sys
from types import ModuleType


def host_modules() -> list[ModuleType]:
    """The modules of the host that are loaded by now."""
    loaded = [(name, module) for name, module in sys.modules.items() if isinstance(module, ModuleType)]
    return [module for name, module in loaded if name.partition(".")[0] in ("fairseq", "fairseq_cli")]


def replace(owner: ModuleType, name: str, new: object) -> None:
    """Replace owner.name, also in the host's modules that imported it by name."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    for module in host_modules():
        if vars(module).get(name) is old:
            setattr(module, name, new)
