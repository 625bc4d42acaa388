"""Names of the released GENIE weights beside ours."""

import re
from typing import Dict, List, Tuple

from torch import Tensor

# (pattern of a released name, our name); in the order of the released file.
_NAMES: List[Tuple[str, str]] = [
    (r"passage_encoder\.embeddings\.word_embeddings\.weight", "encoder.tokens.weight"),
    (r"passage_encoder\.embeddings\.position_embeddings\.weight", "encoder.positions.weight"),
    (r"passage_encoder\.embeddings\.LayerNorm\.(\w+)", r"encoder.norm.\1"),
    (r"passage_encoder\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(\w+)",
     r"encoder.layers.\1.attention.\2.\3"),
    (r"passage_encoder\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"encoder.layers.\1.attention.out.\2"),
    (r"passage_encoder\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)",
     r"encoder.layers.\1.attention_norm.\2"),
    (r"passage_encoder\.encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"encoder.layers.\1.ffn.0.\2"),
    (r"passage_encoder\.encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"encoder.layers.\1.ffn.2.\2"),
    (r"passage_encoder\.encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"encoder.layers.\1.ffn_norm.\2"),
    (r"word_embedding\.weight", "embedding.weight"),
    (r"position_embeddings\.weight", "positions.weight"),
    (r"lm_head\.bias", "rounding_bias"),
    (r"time_embed\.(\d)\.(\w+)", r"time_embedding.\1.\2"),
    (r"input_up_proj\.(\d)\.(\w+)", r"up_projection.\1.\2"),
    (r"LayerNorm\.(\w+)", r"norm.\1"),
    (r"transformer_blocks\.(\d+)\.attn1\.to_(q|k|v)\.weight", r"layers.\1.self_attention.\2.weight"),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.(\w+)", r"layers.\1.self_attention.out.\2"),
    (r"transformer_blocks\.(\d+)\.attn2\.to_(q|k|v)\.weight", r"layers.\1.cross_attention.\2.weight"),
    (r"transformer_blocks\.(\d+)\.attn2\.to_out\.0\.(\w+)", r"layers.\1.cross_attention.out.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(\w+)", r"layers.\1.ffn.0.projection.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.(\w+)", r"layers.\1.ffn.2.\2"),
    (r"transformer_blocks\.(\d+)\.norm1\.(\w+)", r"layers.\1.self_norm.\2"),
    (r"transformer_blocks\.(\d+)\.norm2\.(\w+)", r"layers.\1.cross_norm.\2"),
    (r"transformer_blocks\.(\d+)\.norm3\.(\w+)", r"layers.\1.ffn_norm.\2"),
    (r"output_down_proj\.(\d)\.(\w+)", r"down_projection.\1.\2"),
]
_LETTERS = {".q.": ".query.", ".k.": ".key.", ".v.": ".value."}
# Not part of what is computed: the pooler is unused, positions are counted, lm_head is tied to the embedding.
_UNUSED = re.compile(r"passage_encoder\.pooler\..*|position_ids|.*\.position_ids|lm_head\.weight")
_TOKEN_TYPES = "passage_encoder.embeddings.token_type_embeddings.weight"


def from_published(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Our state dict for released GENIE weights.

    The token type embedding of type 0, the only one in use, is added to the encoder's positions.

    Raises:
        ValueError: tensors with unknown names, listed; or an lm_head that is not tied to the embedding.
    """
    ours, unknown = {}, []
    for name, tensor in state.items():
        if _UNUSED.fullmatch(name) or name == _TOKEN_TYPES:
            continue
        for pattern, new in _NAMES:
            match = re.fullmatch(pattern, name)
            if match:
                new = match.expand(new)
                for letter, word in _LETTERS.items():
                    new = new.replace(letter, word)
                ours[new] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"not a GENIE checkpoint: unknown tensors {', '.join(unknown)}")
    if "lm_head.weight" in state and not state["lm_head.weight"].equal(state["word_embedding.weight"]):
        raise ValueError("lm_head.weight differs from word_embedding.weight: GENIE ties them")
    if _TOKEN_TYPES in state:
        ours["encoder.positions.weight"] = ours["encoder.positions.weight"] + state[_TOKEN_TYPES][0]
    return ours
