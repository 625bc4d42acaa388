"""DiffuSeq: source and target in one sequence, denoised by one bidirectional encoder (Gong et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import one_of
from diffusion_fairseq.models.condition import Prompt
from diffusion_fairseq.models.config import NOISING, DiffuSeqConfig
from diffusion_fairseq.models.diffusion_lm import EncoderOnlyModel
from diffusion_fairseq.models.presets import DIFFUSEQ
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.length_predictor import LengthPredictor
from diffusion_fairseq.modules.packing import Packing


@register("diffuseq", DiffuSeqConfig, DIFFUSEQ)
class DiffuSeqModel(EncoderOnlyModel):
    """A denoiser of the sequence source, target: the source is given (partial noising), or noised and denoised like the
    target (full noising: the dual process of "Large-Scale Diffusion Models for Text Generation", section 5).

    Args:
        cfg: options.
        num_tokens: size of the dictionary of both sides.
        pad, eos: indices of padding and of the end of a sentence.
    """

    def __init__(self, cfg: DiffuSeqConfig, num_tokens: int, pad: int, eos: int):
        longest = cfg.max_source_positions + cfg.max_target_positions + int(cfg.double_separator)
        super().__init__(cfg, num_tokens, pad, longest, marks=cfg.mark_source)
        self.eos = self.empty = eos
        self.double_separator = cfg.double_separator
        self.noises_given = one_of("--noising", cfg.noising, NOISING) == "full"
        if self.noises_given and self.condition_dropout:
            raise UserError("--condition-dropout needs --noising partial: with full noising a model learns source and "
                            "target together and has no condition to drop")
        self.jitters_given = cfg.jitter_source
        if self.jitters_given and self.noises_given:
            raise UserError("--jitter-source acts only with --noising partial: full noising noises the source anyway")
        if self.length_model == "predicted":
            self.length_predictor = LengthPredictor(cfg.model_dim, cfg.max_target_positions)

    @classmethod
    def build_model(cls, cfg: DiffuSeqConfig, task) -> "DiffuSeqModel":
        cls.check_task(task)
        if task.source_dictionary != task.target_dictionary:
            raise UserError("diffuseq writes source and target in one sequence and needs one dictionary for both: "
                            "binarise with fairseq-preprocess --joined-dictionary")
        if task.cfg.left_pad_source:
            raise UserError("--left-pad-source has no use with diffuseq, whose target follows its source: leave it out")
        dictionary = task.target_dictionary
        return cls(cfg, len(dictionary), dictionary.pad(), dictionary.eos())

    def encode(self, src_tokens: Tensor) -> Prompt:
        """The sources (B, S), padded on the right, as the beginnings of their sequences."""
        if self.double_separator:
            src_tokens = F.pad(src_tokens, (0, 1), value=self.pad)
            end = (src_tokens != self.pad).sum(dim=1, keepdim=True)
            src_tokens = src_tokens.scatter(1, end, self.eos)
        mask = src_tokens != self.pad
        # Trained with full noising the source is denoised, too, and no position is given.
        given = None if self.training and self.noises_given else mask
        return Prompt(src_tokens, mask, given, self.embed(src_tokens), offset=mask.sum(dim=1))

    def memory(self, encoded: Prompt) -> Prompt:
        return encoded

    def unconditional(self, memory: Prompt) -> Prompt:
        """Sources of as many ends of sentence: the text keeps its place."""
        return memory._replace(embedded=self.embed(self.without_condition(memory.tokens)))

    def sequence(self, encoded: Prompt, target: Tensor) -> Tensor:
        """Source and target (B, L) one after the other, without padding between."""
        joined = torch.cat([encoded.tokens, target], dim=1)
        padding = joined == self.pad
        order = padding.int().argsort(dim=1, stable=True)
        return joined.gather(1, order)[:, : int((~padding).sum(dim=1).max())]

    def generation_lengths(self, limits: Tensor, encoded: Prompt) -> Tensor:
        """Where padding is modelled, a sequence is as long as those of training."""
        lengths = super().generation_lengths(torch.full_like(limits, self.longest_sequence), encoded) - encoded.offset
        return torch.minimum(lengths, limits).clamp(min=1)

    def length_logits(self, encoded: Prompt) -> Tensor:
        """Scores of the target's length from what the layers make of the source alone, whose weights the length does
        not shape."""
        packing = Packing.of(encoded.mask)
        with torch.no_grad():
            hidden = self.hidden(encoded.embedded, encoded.tokens.new_zeros(()), packing, None, encoded.mask)
        return self.length_predictor(packing.unpack(hidden), encoded.mask)
