"""A classifier of the target's length from the encoded source."""

import torch
from torch import Tensor, nn

from diffusion_fairseq.modules.packing import filled_up


class LengthPredictor(nn.Module):
    """Scores every target length 0 .. max_length: a share by the absolute length, a share by the difference
    to the source's length (Ghazvininejad et al., 2019, predict the first; Lee et al., 2018, the second).

    Args:
        dim: width of the encoder's output.
        max_length: longest target.
        max_difference: differences beyond it share one score.
    """

    def __init__(self, dim: int, max_length: int, max_difference: int = 64):
        super().__init__()
        self.max_difference = max_difference
        self.absolute = nn.Linear(dim, max_length + 1)
        self.relative = nn.Linear(dim, 2 * max_difference + 1)

    def forward(self, encoded: Tensor, mask: Tensor) -> Tensor:
        """encoded (B, S, dim), mask (B, S) bool -> scores (B, max_length + 1), float32."""
        weight = mask.to(encoded.dtype)[..., None]
        mean = filled_up((encoded * weight).sum(dim=1) / weight.sum(dim=1), 0)
        absolute, relative = (layer(mean)[: len(encoded)].float() for layer in (self.absolute, self.relative))
        lengths = torch.arange(absolute.size(1), device=encoded.device)
        difference = (lengths[None] - mask.sum(dim=1, keepdim=True)).clamp(-self.max_difference, self.max_difference)
        return absolute + relative.gather(1, difference + self.max_difference)
