"""Loading models of transformers that score texts: from a folder, from a GGUF file in it, or from the hub."""

from pathlib import Path
from typing import NamedTuple

import torch

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.model_based import INSTALL

OFFLINE = "without network, copy config.json, the tokenizer's files and the weights into a folder and name that"


class Scorer(NamedTuple):
    """A model of transformers in evaluation mode, its tokenizer, and what to call it in a signature."""

    model: torch.nn.Module
    tokenizer: object
    name: str


def load_scorer(option: str, name: str, gguf: str | None = None, device: str | None = None,
                head: bool = True) -> Scorer:
    """Load a causal language model and its tokenizer.

    Args:
        option: that gave the name, for the errors.
        name: a folder, or a name on the hub; what is cached needs no network.
        gguf: file of the folder with both, instead of transformers' own.
        device: None: a GPU where there is one.
        head: with the layer that predicts words; without, models of other kinds load, too, for their hidden states.
    Raises:
        UserError: a package, the model or the device is missing, or the model is damaged.
    """
    transformers = import_transformers(option)
    from safetensors import SafetensorError  # comes with transformers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    folder = Path(name)
    # the hub takes any path for the name of a repository, and an absent folder would be looked for there
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise UserError(f"{option} {name}: no such folder")
    if gguf is not None and folder.is_dir() and not (folder / gguf).is_file():
        raise UserError(f"{option} {name}: the folder has no file {gguf}")
    source = {} if gguf is None else {"gguf_file": gguf}
    kind = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    try:
        model = kind.from_pretrained(name, dtype=torch.float32, **source).eval().to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
    except ImportError as error:
        raise UserError(f"{option} {name}: {first_line(error)}: {INSTALL}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{option} {name}: {first_line(error)}; {remedy(folder)}") from None
    return Scorer(model, tokenizer, title(folder, name, gguf, model))


def import_transformers(option: str):
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{option} needs transformers ({first_line(error)}): {INSTALL}") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {first_line(error)}") from None


def remedy(folder: Path) -> str:
    held = sorted(path.name for path in folder.glob("*.gguf"))
    if held:
        return f"the folder holds {held[0]}: give --gguf {held[0]}"
    return "a folder has config.json, the tokenizer's files and the weights" if folder.is_dir() else OFFLINE


def title(folder: Path, name: str, gguf: str | None, model: torch.nn.Module) -> str:
    """A local model by its last names: a signature names no place of one machine."""
    shown = folder.resolve().name if folder.is_dir() else name
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return "/".join(filter(None, [shown, gguf])) + f",{millions:.1f}M"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
