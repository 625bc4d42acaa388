"""Texts, and prompts made from them: a mask token wherever one is to be generated."""

from typing import Optional, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_fairseq.data.drawn_pairs import DrawnPairs
from diffusion_fairseq.text.masking import Law


class PromptDataset(DrawnPairs):
    """Pairs (text with mask tokens at the noised positions, text).

    Args:
        texts: items are 1-dimensional token tensors.
        sizes: their lengths.
        dictionary: of the texts.
        mask: index of the mask token.
        law: which positions are noised.
        seed: of the law, at least 0.
        length: tokens of every prompt, cut or lengthened by mask tokens; the texts then are no references and left
            out. None: as many as its text.
        ends: whether texts end in eos, which a lengthened prompt ends in, too.
        options: LanguagePairDataset's.
    """

    def __init__(self, texts: Dataset, sizes: np.ndarray, dictionary: Dictionary, mask: int, law: Law, *, seed: int,
                 length: Optional[int] = None, ends: bool = True, **options):
        self.texts, self.law, self.length = texts, law, length
        self.mask, self.end = mask, dictionary.eos() if ends else None
        sizes = np.asarray(sizes) if length is None else np.full(len(sizes), length)
        super().__init__(sizes, sizes, dictionary, seed, **options)
        if length is not None:
            self.tgt = self.tgt_sizes = None

    def draw(self, random: np.random.Generator, index: int) -> Tuple[Tensor, Tensor]:
        text = self.texts[index]
        if self.length is not None:
            text = lengthened(text, self.length, self.mask, self.end)
        noised = torch.from_numpy(self.law(len(text), random))
        return text.masked_fill(noised, self.mask), text


def lengthened(text: Tensor, length: int, mask: int, end: Optional[int]) -> Tensor:
    """A text (n,) as a prompt of `length` tokens: cut, or with mask tokens behind it; an eos stays its last token."""
    if end is None:
        return torch.cat([text[:length], text.new_full((max(0, length - len(text)),), mask)])
    words = text[:-1] if len(text) and text[-1] == end else text
    return torch.cat([words[: length - 1], words.new_full((max(0, length - 1 - len(words)),), mask),
                      words.new_tensor([end])])
