"""What language models share whose prompts are whole sequences."""

from torch import Tensor

from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.condition import Prompt
from diffusion_fairseq.models.config import LatentConfig


class PromptModel(DiffusionModel):
    """A model of sequences with a mask token wherever one is to be generated; given tokens are kept."""

    LENGTH_MODELS = ("given", "fixed", "longest")
    prompts = True
    numbered = True

    @classmethod
    def build_model(cls, cfg: LatentConfig, task) -> "PromptModel":
        cls.check_task(task)
        return cls(cfg, len(task.target_dictionary), task.target_dictionary.pad(), task.mask)

    def encode(self, src_tokens: Tensor) -> Prompt:
        """The prompts (B, L): a mask token where one is generated."""
        mask = src_tokens != self.pad
        fixed = mask & (src_tokens != self.mask)
        # A model that noises all its positions learns from all of them.
        none = (self.training and self.noises_given) or not fixed.any()
        return Prompt(src_tokens, mask, None if none else fixed, self.embed(src_tokens))

    def memory(self, encoded: Prompt) -> Prompt:
        return encoded

    def unconditional(self, memory: Prompt) -> Prompt:
        """Prompts that give nothing: given tokens are seen at the noise level of the others."""
        return memory._replace(fixed=None)
