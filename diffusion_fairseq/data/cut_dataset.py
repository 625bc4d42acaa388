"""Sequences cut to the longest that a model takes."""

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset


class CutDataset(BaseWrapperDataset):
    """Keep the first max_length - 1 tokens and the last one (the end of sentence) of longer sequences.

    Args:
        dataset: items are 1-dimensional token tensors.
        sizes: their lengths.
        max_length: at least 1.
    """

    def __init__(self, dataset, sizes, max_length: int):
        super().__init__(dataset)
        self.max_length = max_length
        self.num_cut = int((np.asarray(sizes) > max_length).sum())
        self._sizes = np.minimum(sizes, max_length)

    def __getitem__(self, index):
        item = self.dataset[index]
        if len(item) <= self.max_length:
            return item
        return torch.cat([item[: self.max_length - 1], item[-1:]])

    @property
    def sizes(self):
        """Tokens of every text (n,), after the cut."""
        return self._sizes

    def num_tokens(self, index):
        return self._sizes[index]

    def size(self, index):
        return self._sizes[index]
