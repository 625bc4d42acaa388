"""What the released weights of the Diffusion-LM lineage have in common: their names beside ours."""

import re
from typing import Dict, List, Tuple

from torch import Tensor

Names = List[Tuple[str, str]]  # (pattern of a released name, our name)

LINEAGE: Names = [
    (r"word_embedding\.weight", "embedding.weight"),
    (r"position_embeddings\.weight", "positions.weight"),
    (r"lm_head\.bias", "rounding_bias"),
    (r"time_embed\.(\d)\.(\w+)", r"time_embedding.\1.\2"),
    (r"input_up_proj\.(\d)\.(\w+)", r"up_projection.\1.\2"),
    (r"LayerNorm\.(\w+)", r"norm.\1"),
    (r"output_down_proj\.(\d)\.(\w+)", r"down_projection.\1.\2"),
]
# Not part of what is computed: positions are counted, lm_head is tied to the embedding.
UNUSED = r"position_ids|.*\.position_ids|lm_head\.weight"


def bert_layers(theirs: str, ours: str) -> Names:
    """The layers of a BERT whose names begin with `theirs` (a pattern), ours with `ours`."""
    return [
        (rf"{theirs}\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(\w+)", rf"{ours}layers.\1.attention.\2.\3"),
        (rf"{theirs}\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", rf"{ours}layers.\1.attention.out.\2"),
        (rf"{theirs}\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)", rf"{ours}layers.\1.attention_norm.\2"),
        (rf"{theirs}\.layer\.(\d+)\.intermediate\.dense\.(\w+)", rf"{ours}layers.\1.ffn.0.\2"),
        (rf"{theirs}\.layer\.(\d+)\.output\.dense\.(\w+)", rf"{ours}layers.\1.ffn.2.\2"),
        (rf"{theirs}\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", rf"{ours}layers.\1.ffn_norm.\2"),
    ]


def renamed(state: Dict[str, Tensor], names: Names, unused: str, what: str) -> Dict[str, Tensor]:
    """Tensors under our names.

    Args:
        unused: a pattern of names that are passed over.
        what: whose weights they should be, for messages.
    Raises:
        ValueError: tensors with unknown names, listed; or an lm_head that is not tied to the embedding.
    """
    ours, unknown = {}, []
    for name, tensor in state.items():
        found = [match.expand(new) for pattern, new in names if (match := re.fullmatch(pattern, name))]
        if found:
            ours[found[0]] = tensor
        elif not re.fullmatch(unused, name):
            unknown.append(name)
    if unknown:
        raise ValueError(f"not a {what} checkpoint: unknown tensors {', '.join(unknown)}")
    if "lm_head.weight" in state and not state["lm_head.weight"].equal(state["word_embedding.weight"]):
        raise ValueError(f"lm_head.weight differs from word_embedding.weight: {what} ties them")
    return ours
