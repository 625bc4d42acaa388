"""Diffusion-LM: one bidirectional encoder that denoises a whole sequence (Li et al., 2022)."""

from typing import Iterator, Optional

from torch import Tensor, nn

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel, one_of
from diffusion_fairseq.models.condition import Prompt
from diffusion_fairseq.models.config import GIVEN_TOKENS, DiffusionLMConfig, TransformerConfig
from diffusion_fairseq.models.latent_encoder import LatentEncoder
from diffusion_fairseq.models.presets import DIFFUSION_LM
from diffusion_fairseq.models.prompts import PromptModel
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.modules.packing import Packing


class EncoderOnlyModel(LatentEncoder, DiffusionModel):
    """A denoiser without cross-attention: x_t -> projection -> BERT's layers -> projection.

    Args:
        cfg: options.
        num_tokens: size of the dictionary.
        pad: index of padding.
        max_positions: longest sequence that goes through the layers.
        marks: whether the network is told which positions are given.
    """

    def __init__(self, cfg: TransformerConfig, num_tokens: int, pad: int, max_positions: int, marks: bool = False):
        super().__init__(cfg, num_tokens, pad, max_positions)
        self.add_layers(cfg, cfg.latent_dim, max_positions, marks)
        dim = cfg.model_dim
        self.down_projection = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, cfg.latent_dim))
        self.init_layers()

    def network(self, xt: Tensor, t: Tensor, memory: Prompt, packing: Packing, previous: Optional[Tensor]) -> Tensor:
        given = memory.given(*xt.shape[:2])
        # Where given tokens are seen noised, xt holds them already.
        xt = xt if self.noises_given else memory.impose(xt)
        marked = None if self.noises_given else given  # training with noised ones marks none
        return packing.unpack(self.down_projection(self.hidden(xt, t, packing, previous, marked)))

    def transformer_layers(self) -> Iterator[nn.Module]:
        yield from self.layers


@register("diffusion_lm", DiffusionLMConfig, DIFFUSION_LM)
class DiffusionLMModel(EncoderOnlyModel, PromptModel):
    """A language model whose prompts are sequences with a mask token wherever one is to be generated.

    Args:
        cfg: options.
        num_tokens: size of the dictionary.
        pad, mask: indices of padding and of the mask token.
    """

    def __init__(self, cfg: DiffusionLMConfig, num_tokens: int, pad: int, mask: int):
        clean = one_of("--given-tokens", cfg.given_tokens, GIVEN_TOKENS) == "clean"
        super().__init__(cfg, num_tokens, pad, cfg.max_target_positions, marks=clean)
        self.mask = self.empty = mask
        self.noises_given = not clean
        if self.noises_given and self.condition_dropout:
            raise UserError("--condition-dropout needs --given-tokens clean: with noised ones a model learns whole "
                            "texts and has no condition to drop")
