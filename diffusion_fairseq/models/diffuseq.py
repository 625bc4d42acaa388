"""DiffuSeq: source and target in one sequence, denoised by one bidirectional encoder (Gong et al., 2022)."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel, one_of
from diffusion_fairseq.models.condition import Encoded, Memory, Prompt
from diffusion_fairseq.models.config import NOISING, DiffuSeqConfig
from diffusion_fairseq.models.diffusion_lm import EncoderOnlyModel
from diffusion_fairseq.models.noise import Schedule
from diffusion_fairseq.models.presets import DIFFUSEQ
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.length_predictor import LengthPredictor
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.text.lengths import lengths_to_mask


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
        return cls.of(cfg, len(dictionary), dictionary.pad(), dictionary.eos())

    @classmethod
    def of(cls, cfg: DiffuSeqConfig, *arguments) -> "DiffuSeqModel":
        """The model of the options, which take the same arguments."""
        return (CausalSourceModel if cfg.causal_source else cls)(cfg, *arguments)

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
            marked = None if self.noises_given else encoded.mask
            hidden = self.hidden(encoded.embedded, encoded.tokens.new_zeros(()), packing, None, marked)
        return self.length_predictor(packing.unpack(hidden), encoded.mask)


class CausalSourceModel(DiffuSeqModel):
    """A DiffuSeq whose source positions attend to the source only (--causal-source); partial noising.

    What the layers make of a source must then depend on nothing that a step changes. The published network adds the
    time to all positions; here those of the source, which are clean, have time 0 whatever the time of the target, and
    no previous estimate. Each layer's keys and values of a source are computed once for a sentence and kept as GENIE's
    are: its candidates, and the noised copies of training, share them. What is denoised is the target alone, at the
    positions that follow its source; padding, where it is modelled, goes up to --max-target-positions.

    Args:
        cfg, num_tokens, pad, eos: as DiffuSeqModel's.
    """

    # As of any model that denoises its target alone.
    sequence = DiffusionModel.sequence
    generation_lengths = DiffusionModel.generation_lengths

    def __init__(self, cfg: DiffuSeqConfig, num_tokens: int, pad: int, eos: int):
        super().__init__(cfg, num_tokens, pad, eos)
        if self.noises_given:
            raise UserError("--causal-source needs --noising partial: with full noising the source changes at every "
                            "step")
        if self.jitters_given:
            raise UserError("--jitter-source has no use with --causal-source, whose source is never noised: leave it "
                            "out")

    def process(self, cfg: DiffuSeqConfig) -> Tuple[Schedule, str]:
        """As DiffusionModel's, of the positions that are denoised: the target's."""
        self.longest_sequence = cfg.max_target_positions
        return super().process(cfg)

    def encode(self, src_tokens: Tensor) -> Encoded:
        """The sources (B, S), padded on the right: hidden states and memory."""
        return self._remembered(super().encode(src_tokens))

    def _remembered(self, prompt: Prompt) -> Encoded:
        packing = Packing.of(prompt.mask)
        hidden, layers = self.remember(prompt.embedded, prompt.tokens.new_zeros(()), packing, prompt.mask)
        return Encoded(hidden, prompt.mask, packing, Memory(layers, packing.mask, prompt.offset))

    def memory(self, encoded: Encoded) -> Memory:
        return encoded.memory

    def unconditional(self, memory: Memory) -> Memory:
        mask = lengths_to_mask(memory.offset, memory.layers[0].key.size(2))
        tokens = mask * self.empty
        return self._remembered(Prompt(tokens, mask, mask, self.embed(tokens), memory.offset)).memory

    def network(self, xt: Tensor, t: Tensor, memory: Memory, packing: Packing, previous: Optional[Tensor]) -> Tensor:
        return packing.unpack(self.down_projection(self.hidden(xt, t, packing, previous, None, memory)))

    def length_logits(self, encoded: Encoded) -> Tensor:
        return self.length_predictor(encoded.packing.unpack(encoded.hidden.detach()), encoded.mask)
