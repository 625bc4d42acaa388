"""torch.compile where the machine has what it needs, plain layers elsewhere."""

import logging
from typing import Iterable

import torch
from torch import nn

logger = logging.getLogger(__name__)


def can_compile() -> bool:
    """Whether torch.compile works here, with a warning where it does not: on the CPU it needs a C++ compiler."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: torch.nn.functional.gelu(x) + 1)(torch.zeros(8, device=device))
    except Exception as error:  # every backend has its own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        logger.warning(f"--compile-layers is left out, for torch.compile does not work here: {reason}")
        return False
    return True


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Compile layers one by one, for any number of positions; without a working compiler, leave them as they are."""
    if can_compile():
        for layer in layers:
            layer.compile(dynamic=True)
