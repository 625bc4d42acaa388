"""What is typed for fairseq-interactive, as tokens."""

import logging
from typing import Sequence

import torch
from fairseq.data import Dictionary
from torch import Tensor

logger = logging.getLogger(__name__)

SPACE = "\u2581"  # sentencepiece's


def mostly_unknown(lines: Sequence[Tensor], dictionary: Dictionary) -> bool:
    """Whether more than half of the tokens of some lines, their ends aside, are the unknown one."""
    tokens = torch.cat(list(lines))
    return 2 * int((tokens == dictionary.unk()).sum()) > int((tokens != dictionary.eos()).sum())


def warn_of_unknown_words(lines: Sequence[Tensor], dictionary: Dictionary, kept: bool) -> None:
    """Say so where typed lines have almost no word of the dictionary: they were not split into its subwords; or, where
    the text keeps what is typed, how many tokens will come back as the unknown one."""
    unknown = sum(int((line == dictionary.unk()).sum()) for line in lines)
    if mostly_unknown(lines, dictionary):
        logger.warning("most words are not in the dictionary: is it one of subwords? then give --bpe sentencepiece "
                       "--sentencepiece-model FILE")
    elif kept and unknown:
        logger.warning(f"input: {unknown} tokens are not in the dictionary and are written as "
                       f"{dictionary.unk_string()}")


def without_lone_spaces(tokens: Tensor, dictionary: Dictionary, mask: int) -> Tensor:
    """Tokens (n,) without the spaces that stand before mask tokens: "a <mask> b" has one gap, and nothing given in it.

    A subword has its space within it; alone it would be kept as a token of its own.
    """
    space = dictionary.index(SPACE)
    if space == dictionary.unk():
        return tokens
    before_mask = torch.cat([tokens[1:] == mask, torch.zeros(1, dtype=torch.bool, device=tokens.device)])
    return tokens[~((tokens == space) & before_mask)]
