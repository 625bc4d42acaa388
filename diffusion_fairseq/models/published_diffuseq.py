"""Names of the released DiffuSeq weights beside ours; those of Diffusion-LM are the same."""

from typing import Dict

from torch import Tensor

from diffusion_fairseq.models.published import LINEAGE, UNUSED, bert_layers, renamed

NAMES = [*bert_layers("input_transformers", ""), *LINEAGE]


def from_published(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Our state dict for released DiffuSeq weights.

    Raises:
        ValueError: tensors with unknown names, listed; or an lm_head that is not tied to the embedding.
    """
    return renamed(state, NAMES, UNUSED, "DiffuSeq")
