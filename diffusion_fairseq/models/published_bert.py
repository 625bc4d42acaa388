"""Names of BERT's weights, as the transformers library saves them, beside those of a model that is one encoder."""

import re
from typing import Dict

from torch import Tensor

from diffusion_fairseq.models.published import UNUSED, bert_layers, renamed

POSITIONS, TOKEN_TYPES = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
NAMES = [
    (re.escape(POSITIONS), "positions.weight"),
    (r"embeddings\.LayerNorm\.(\w+)", r"norm.\1"),
    *bert_layers("encoder", ""),
]
# Tokens have embeddings of another width here; the pooler and the heads are not part of the encoder.
LEFT_OUT = rf"{UNUSED}|embeddings\.word_embeddings\.weight|pooler\..*"
PREFIX = "bert."
# How files of the first converters call the weight and the bias of a layer norm.
OLD_NAMES = {"gamma": "weight", "beta": "bias"}


def encoder_of(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The encoder's tensors under the names of today's BertModel, of a file with or without heads."""
    if any(name.startswith(PREFIX) for name in state):
        state = {name[len(PREFIX) :]: tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    today = {re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda match: OLD_NAMES[match[1]], name): tensor
             for name, tensor in state.items()}
    return {name: tensor for name, tensor in today.items() if not re.fullmatch(LEFT_OUT, name)}


def from_published(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Our names of what `encoder_of` gives; the embedding of token type 0, that of all our tokens, is added to the
    positions.

    Raises:
        ValueError: tensors with unknown names, listed.
    """
    ours = renamed(state, NAMES, re.escape(TOKEN_TYPES), "BERT")
    if TOKEN_TYPES in state:
        ours["positions.weight"] = ours["positions.weight"] + state[TOKEN_TYPES][0]
    return ours
