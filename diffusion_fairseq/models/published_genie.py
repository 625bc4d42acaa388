"""Names of the released GENIE weights beside ours."""

from typing import Dict

from torch import Tensor

from diffusion_fairseq.models.published import LINEAGE, UNUSED, Names, bert_layers, renamed

ATTENTIONS = {"attn1": "self_attention", "attn2": "cross_attention"}
LETTERS = {"q": "query", "k": "key", "v": "value"}
NAMES: Names = [
    (r"passage_encoder\.embeddings\.word_embeddings\.weight", "encoder.tokens.weight"),
    (r"passage_encoder\.embeddings\.position_embeddings\.weight", "encoder.positions.weight"),
    (r"passage_encoder\.embeddings\.LayerNorm\.(\w+)", r"encoder.norm.\1"),
    *bert_layers(r"passage_encoder\.encoder", "encoder."),
    *LINEAGE,
    *[(rf"transformer_blocks\.(\d+)\.{theirs}\.to_{letter}\.weight", rf"layers.\1.{ours}.{word}.weight")
      for theirs, ours in ATTENTIONS.items() for letter, word in LETTERS.items()],
    *[(rf"transformer_blocks\.(\d+)\.{theirs}\.to_out\.0\.(\w+)", rf"layers.\1.{ours}.out.\2")
      for theirs, ours in ATTENTIONS.items()],
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(\w+)", r"layers.\1.ffn.0.projection.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.(\w+)", r"layers.\1.ffn.2.\2"),
    (r"transformer_blocks\.(\d+)\.norm1\.(\w+)", r"layers.\1.self_norm.\2"),
    (r"transformer_blocks\.(\d+)\.norm2\.(\w+)", r"layers.\1.cross_norm.\2"),
    (r"transformer_blocks\.(\d+)\.norm3\.(\w+)", r"layers.\1.ffn_norm.\2"),
]
TOKEN_TYPES = "passage_encoder.embeddings.token_type_embeddings.weight"


def from_published(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Our state dict for released GENIE weights.

    The token type embedding of type 0, the only one in use, is added to the encoder's positions; the pooler is unused.

    Raises:
        ValueError: tensors with unknown names, listed; or an lm_head that is not tied to the embedding.
    """
    ours = renamed(state, NAMES, rf"{UNUSED}|passage_encoder\.pooler\..*|{TOKEN_TYPES}", "GENIE")
    if TOKEN_TYPES in state:
        ours["encoder.positions.weight"] = ours["encoder.positions.weight"] + state[TOKEN_TYPES][0]
    return ours
