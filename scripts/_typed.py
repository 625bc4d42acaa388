"""Typed text as tokens, as fairseq-interactive makes them."""

import re
from pathlib import Path
from typing import Callable, Optional

from _checkpoint import build_bpe
from torch import Tensor

BPE_MODEL = "sentencepiece.model"
WHERE = f"{BPE_MODEL} beside the checkpoint, in the data folder or the one above; without one, words stay as they are"


def find_bpe_model(checkpoint: str, data: str) -> Optional[Path]:
    """The sentencepiece model that lies beside checkpoint or data."""
    folders = (Path(checkpoint).parent, Path(data), Path(data).parent)
    return next((folder / BPE_MODEL for folder in folders if (folder / BPE_MODEL).is_file()), None)


def encoder(task, model: Optional[Path]) -> Callable[[str], Tensor]:
    """What makes tokens (n,), an end of sentence behind them, of a line.

    Args:
        task: whose source dictionary numbers them.
        model: sentencepiece model that splits words; None: they are taken as they are.
    """
    dictionary, bpe = task.source_dictionary, build_bpe(task, model)
    mask = dictionary[task.mask] if task.prompts else None

    def encode(line: str) -> Tensor:
        line = line if bpe is None else encoded(line, bpe, mask)
        return dictionary.encode_line(line, add_if_not_exist=False).long()

    return encode


def encoded(line: str, bpe, mask: Optional[str]) -> str:
    """A line in pieces, its mask tokens left whole."""
    parts = [line] if mask is None else re.split(rf"({re.escape(mask)})", line)
    return " ".join(part if part == mask else bpe.encode(part) for part in parts if part.strip())
