"""What the tasks on binarised text of one language share."""

import logging
import os
from typing import Tuple

import numpy as np
from fairseq.data import Dictionary, data_utils
from torch.utils.data import Dataset

from diffusion_fairseq.data.typed_lines import without_lone_spaces
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig, Seq2SeqDiffusionTask
from diffusion_fairseq.text.masking import MASKS

logger = logging.getLogger(__name__)


class MonolingualTask(Seq2SeqDiffusionTask):
    """One dictionary, which holds a mask token, and lines of text.

    The mask token must be a word of dict.txt, and is never added in memory: the model of a task that starts from the
    weights then has as many embeddings, whatever loads them. A line appended to dict.txt changes no index, so that
    nothing need be binarised again.
    """

    mask: int

    @classmethod
    def setup_task(cls, cfg: Seq2SeqDiffusionConfig, **kwargs):
        """Load the dictionary.

        Raises:
            UserError: no data, no dictionary or no mask token in it, or an option out of range.
        """
        folder = cls.check_options(cfg)
        for name in ("source_lang", "target_lang"):
            if cfg[name] is not None:
                raise UserError(f"--{name.replace('_', '-')} has no use here (texts are of one language, binarised "
                                "with fairseq-preprocess --only-source): leave it out")
        if cfg.seed < 0:
            raise UserError(f"--seed must not be negative, got {cfg.seed}")
        dictionary = cls.load_dictionary(os.path.join(folder, "dict.txt"))
        task = cls(cfg, dictionary, dictionary)
        task.mask = mask_index(dictionary, folder)
        logger.info(f"dictionary: {len(dictionary)} types; mask token {dictionary[task.mask]}")
        return task

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        """Typed lines, for fairseq-interactive, as the text was that the model has learned from: no space of its own
        before a mask token."""
        src_tokens = [without_lone_spaces(tokens, self.src_dict, self.mask) for tokens in src_tokens]
        src_lengths = [len(tokens) for tokens in src_tokens]
        return super().build_dataset_for_inference(src_tokens, src_lengths, constraints=constraints)

    def load_lines(self, split: str, epoch: int, combine: bool) -> Tuple[str, Dataset]:
        """The path of a split of one shard, and its lines, with their `sizes`.

        Raises:
            UserError: there is no such split, or it is no text.
        """
        folder = self.data_folder(split, epoch)
        path = os.path.join(folder, split)
        lines = data_utils.load_indexed_dataset(path, self.src_dict, self.cfg.dataset_impl, combine=combine)
        if lines is None:
            raise UserError(f"{folder} holds no {split}.idx: binarise that split with fairseq-preprocess "
                            "--only-source, or choose another one")
        eos = self.src_dict.eos()
        if not len(lines) or any(lines[line][-1:].tolist() != [eos] for line in (0, len(lines) - 1)):
            raise UserError(f"{path}.bin holds no lines that end in {self.src_dict[eos]}: binarise the text "
                            "with fairseq-preprocess --only-source")
        if np.max(lines.sizes) < 2:
            raise UserError(f"{path}.bin holds empty lines only")
        return path, lines


def mask_index(dictionary: Dictionary, folder: str) -> int:
    """Index of the mask token.

    Raises:
        UserError: the dictionary of this folder has none.
    """
    for mask in MASKS:
        if mask in dictionary:
            return dictionary.index(mask)
    raise UserError(f"{os.path.join(folder, 'dict.txt')} lacks the word {MASKS[0]}: append the line '{MASKS[0]} 0', "
                    "which changes no index, and binarise further data with this dictionary")
