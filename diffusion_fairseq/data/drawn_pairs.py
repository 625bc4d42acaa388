"""Pairs that are made while they are read, anew in every epoch."""

from typing import Tuple

import numpy as np
from fairseq.data import Dictionary, LanguagePairDataset
from torch import Tensor
from torch.utils.data import Dataset


class _Side(Dataset):
    """The sources (side 0) or the targets (side 1) of DrawnPairs."""

    def __init__(self, pairs: "DrawnPairs", side: int, count: int):
        self.pairs, self.side, self.count = pairs, side, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.pairs.example(index)[self.side]


class DrawnPairs(LanguagePairDataset):
    """Sources and targets as `draw` makes them: a function of (seed, epoch, index) alone, whichever process draws.

    Args:
        source_sizes, target_sizes: (n,) tokens of each, in every epoch.
        dictionary: of both sides.
        seed: at least 0.
        options: LanguagePairDataset's.
    """

    def __init__(self, source_sizes: np.ndarray, target_sizes: np.ndarray, dictionary: Dictionary, seed: int,
                 **options):
        self.seed, self.epoch = seed, 1
        self._drawn = None, None
        sides = (_Side(self, side, len(source_sizes)) for side in (0, 1))
        super().__init__(next(sides), source_sizes.astype(np.int32), dictionary, next(sides),
                         target_sizes.astype(np.int32), dictionary, input_feeding=False, **options)

    def draw(self, random: np.random.Generator, index: int) -> Tuple[Tensor, Tensor]:
        """Source and target of an example, 1-dimensional."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Draw others from now on; a reader in another process must be started after this."""
        self.epoch = epoch

    def example(self, index: int) -> Tuple[Tensor, Tensor]:
        """Source and target of an example in this epoch."""
        key = self.epoch, int(index)
        # The host asks for the two sides one after the other.
        drawn, pair = self._drawn
        if drawn != key:
            pair = self.draw(np.random.default_rng((self.seed, *key)), key[1])
            self._drawn = key, pair
        return pair
