"""Continuous paragraph denoising: documents with a paragraph left out, and that paragraph (GENIE, section 3.1)."""

from typing import Any, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary, TokenBlockDataset
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_fairseq.data.drawn_pairs import DrawnPairs

# 0.29 * 100 is 28.999...96 in floating point.
ROUND_OFF = 1e-6
DOCUMENT_BREAKS = ("line", "blank")


def span_length(length, ratio: float):
    """Tokens m = floor(gamma * l) of the paragraph that is left out of l tokens; an integer or an array of them."""
    return np.floor(np.multiply(length, ratio) + ROUND_OFF).astype(np.int64)


def example_sizes(length, ratio: float) -> Tuple[Any, Any]:
    """Tokens of source and target that a document of `length` tokens makes, their ends of sentence counted."""
    span = span_length(length, ratio)
    return length - span + 2, span + 1


class Pieces(Dataset):
    """Lines without their end of sentence, in order, cut into pieces; an empty line is one empty piece.

    Args:
        lines: items are 1-dimensional token tensors that end in eos, in a memory-mapped file.
        sizes: their lengths.
        limit: tokens of a piece; the last one of a line may be shorter.
    """

    def __init__(self, lines: Dataset, sizes: np.ndarray, limit: int):
        self.lines, self.limit = lines, limit
        lengths = np.asarray(sizes, dtype=np.int64) - 1
        counts = np.maximum(1, -(-lengths // limit))
        # Piece first[i] is the first one of line i: eight bytes a line, where a table of all pieces takes more.
        self.first = np.concatenate([np.zeros(1, dtype=np.int64), counts.cumsum()])
        self.sizes = np.full(self.first[-1], limit, dtype=np.int32)
        self.sizes[self.first[1:] - 1] = lengths - limit * (counts - 1)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        line = self.first.searchsorted(index, side="right") - 1
        start = int(index - self.first[line]) * self.limit
        return self.lines[line][start : start + int(self.sizes[index])]


def split_documents(lines: Dataset, sizes: np.ndarray, limit: int, document_break: str,
                    dictionary: Dictionary) -> Dataset:
    """Documents of at most `limit` tokens, without ends of sentence; with their `sizes`.

    Args:
        lines, sizes: as Pieces takes them.
        document_break: "line": a line is a document, and a longer one is several; "blank": documents end at empty
            lines, and whole lines are packed up to the limit (fairseq's --sample-break-mode complete_doc).
    """
    pieces = Pieces(lines, sizes, limit)
    if document_break == "line":
        return pieces
    return TokenBlockDataset(pieces, pieces.sizes, limit, pad=dictionary.pad(), eos=dictionary.eos(),
                             break_mode="complete_doc", document_sep_len=0)


class CPDDataset(DrawnPairs):
    """Pairs (document with one mask token in place of a paragraph, that paragraph); both end in eos.

    A document of l tokens gives up m = floor(gamma * l) contiguous ones from a start that is uniform in {0 .. l - m}:
    the source has l - m + 2 tokens and the target m + 1, so 512 tokens and gamma = 0.3 make a target of 153 and its
    end of sentence. The start is a function of (seed, epoch, index) alone, whichever process draws it.

    Args:
        documents: items are 1-dimensional token tensors without eos; their lengths are `documents.sizes`.
        dictionary: of both sides.
        mask: index of the mask token.
        seed: at least 0.
        ratio: gamma, between 0 and 1.
        min_tokens: shorter documents, and those too short for a paragraph of one token, are left out and counted.
        options: LanguagePairDataset's.
    """

    def __init__(self, documents: Dataset, dictionary: Dictionary, mask: int, *, seed: int, ratio: float,
                 min_tokens: int, **options):
        self.documents, self.ratio = documents, ratio
        self.mask, self.end = torch.tensor([mask]), torch.tensor([dictionary.eos()])
        sizes = np.asarray(documents.sizes)
        long_enough = (sizes >= min_tokens) & (span_length(sizes, ratio) > 0)
        self.kept = np.flatnonzero(long_enough)
        self.num_documents = int((sizes > 0).sum())
        self.num_short = self.num_documents - len(self.kept)
        super().__init__(*example_sizes(sizes[self.kept].astype(np.int32), ratio), dictionary, seed, **options)

    def draw(self, random: np.random.Generator, index: int) -> Tuple[Tensor, Tensor]:
        tokens = self.documents[self.kept[index]]
        span = int(span_length(len(tokens), self.ratio))
        start = int(random.integers(len(tokens) - span + 1))
        source = torch.cat([tokens[:start], self.mask, tokens[start + span :], self.end])
        return source, torch.cat([tokens[start : start + span], self.end])
