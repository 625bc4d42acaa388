#!/usr/bin/env python3
"""Turn a released GENIE checkpoint (BERT's word pieces) into a checkpoint and dictionaries of ours.

    python scripts/convert_genie.py GENIE_xsum --vocab vocab.txt --output genie-xsum

vocab.txt is that of bert-base-uncased. genie-xsum gets checkpoint.pt, dict.src.txt, dict.tgt.txt and vocab.txt; a
tensor that is missing, unknown, of another shape or not finite ends in an error that lists it.

The released model reads and writes `[CLS] pieces [SEP]`. fairseq appends [SEP], its end of sentence; [CLS] is a word
of the dictionaries, that text begins with. Generate as the released code does (fewer --diffusion-steps are faster;
--bpe bert needs `pip install transformers`):

    sed 's/^/[CLS] /' test.src | fairseq-interactive genie-xsum --user-dir diffusion_fairseq --task seq2seq_diffusion \\
        --path genie-xsum/checkpoint.pt --source-lang src --target-lang tgt --bpe bert \\
        --bpe-vocab-file genie-xsum/vocab.txt --solver ddpm --ddpm-variance beta --clamping --diffusion-steps 2000 \\
        --required-seq-len-multiple 512 --buffer-size 64 --batch-size 64 \\
        | grep ^D- | cut -f 3 > test.out

Binarise pairs in word pieces, and generate from them:

    for f in train.src train.tgt valid.src valid.tgt test.src test.tgt; do python -c 'import sys, transformers; \\
        pieces = transformers.BertTokenizer("genie-xsum/vocab.txt").tokenize; \\
        [print("[CLS]", *pieces(line)) for line in sys.stdin]' < $f > pieces.$f; done
    fairseq-preprocess --source-lang src --target-lang tgt --srcdict genie-xsum/dict.src.txt --joined-dictionary \\
        --trainpref pieces.train --validpref pieces.valid --testpref pieces.test --destdir data-bin
    fairseq-generate data-bin --user-dir diffusion_fairseq --task seq2seq_diffusion --path genie-xsum/checkpoint.pt \\
        --bpe bert --bpe-vocab-file genie-xsum/vocab.txt --solver ddpm --ddpm-variance beta --clamping \\
        --diffusion-steps 2000 --required-seq-len-multiple 512 --batch-size 64

Fine-tune (the script prints the model's options; these are of the released size):

    fairseq-train data-bin --user-dir diffusion_fairseq --task seq2seq_diffusion --criterion diffusion_vlb \\
        --finetune-from-model genie-xsum/checkpoint.pt --arch genie_base --attend-source-padding \\
        --max-source-positions 512 --max-target-positions 64 --required-seq-len-multiple 512 --padding-in-mean \\
        --timestep-sampler loss-second-moment --optimizer adam --lr 5e-5 --lr-scheduler polynomial_decay \\
        --warmup-updates 7200 --total-num-update 120000 --max-update 120000 --batch-size 64 --update-freq 4 \\
        --save-dir checkpoints

The released code pads every source to 512 and attends to that padding, which --required-seq-len-multiple 512 repeats;
without it the text depends on the batch. --model-overrides "{'attend_source_padding': False}" leaves the padding out.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import _environment  # noqa: F401  says what this Python lacks
from _convert import (
    Shapes,
    bert_layer,
    check,
    layers_of,
    lineage,
    linear,
    load,
    norm,
    parser_of,
    read_pieces,
    read_released,
    save,
    size_of,
    tie,
)
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import GenieConfig
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.published_genie import from_published

ENCODER, DENOISER = "passage_encoder.encoder.layer", "transformer_blocks"
SOURCE_TABLES = "passage_encoder.embeddings"
# Not needed for what is computed, and absent from files of some versions of transformers.
OPTIONAL = ("position_ids", f"{SOURCE_TABLES}.position_ids", "passage_encoder.pooler.dense.weight",
            "passage_encoder.pooler.dense.bias", "lm_head.weight")
# Our tables with a row for each piece.
PIECE_TABLES = ("encoder.tokens.weight", "embedding.weight", "rounding_bias")


class Sizes(NamedTuple):
    """Of a released checkpoint, read off its tensors."""

    vocabulary: int
    latent: int
    hidden: int
    ffn: int
    time: int
    source_positions: int
    target_positions: int
    encoder_layers: int
    denoiser_layers: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Sizes":
        def size(name: str, axis: int) -> int:
            return size_of(state, name, axis)

        return cls(
            vocabulary=size("word_embedding.weight", 0), latent=size("word_embedding.weight", 1),
            hidden=size("LayerNorm.weight", 0), ffn=size(f"{ENCODER}.0.intermediate.dense.weight", 0),
            time=size("time_embed.0.weight", 1), encoder_layers=layers_of(state, ENCODER),
            denoiser_layers=layers_of(state, DENOISER),
            source_positions=size(f"{SOURCE_TABLES}.position_embeddings.weight", 0),
            target_positions=size("position_embeddings.weight", 0),
        )


def released_layout(sizes: Sizes) -> Shapes:
    """Name -> shape of every tensor in a released checkpoint, the optional ones too."""
    vocabulary, latent, hidden, ffn, time, source, target, encoder_layers, denoiser_layers = sizes
    shapes: Shapes = {f"{SOURCE_TABLES}.position_ids": (1, source)}
    for table, rows in (("word", vocabulary), ("position", source), ("token_type", 2)):
        shapes.update(linear(f"{SOURCE_TABLES}.{table}_embeddings", rows, hidden, bias=False))
    shapes.update(norm(f"{SOURCE_TABLES}.LayerNorm", hidden))
    for i in range(encoder_layers):
        shapes.update(bert_layer(f"{ENCODER}.{i}", hidden, ffn))
    shapes.update(linear("passage_encoder.pooler.dense", hidden, hidden))
    shapes.update(lineage(vocabulary, latent, hidden, time, target))
    for layer in (f"{DENOISER}.{i}" for i in range(denoiser_layers)):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes.update(linear(f"{layer}.{attention}.{part}", hidden, hidden, bias=part == "to_out.0"))
        shapes.update(linear(f"{layer}.ff.net.0.proj", 2 * ffn, hidden))
        shapes.update(linear(f"{layer}.ff.net.2", hidden, ffn))
        for place in ("norm1", "norm2", "norm3"):
            shapes.update(norm(f"{layer}.{place}", hidden))
    return shapes


def config_of(sizes: Sizes, heads: int, target_length: int) -> GenieConfig:
    """The options of the released model: those of the published commands, with these sizes."""
    return GenieConfig(
        _name="genie", model_dim=sizes.hidden, ffn_dim=sizes.ffn, attention_heads=heads, latent_dim=sizes.latent,
        encoder_layers=sizes.encoder_layers, denoiser_layers=sizes.denoiser_layers, time_dim=sizes.time,
        max_source_positions=sizes.source_positions, max_target_positions=target_length, attend_source_padding=True,
    )


def converted(state: Mapping[str, Tensor], cfg: GenieConfig, pieces: Sequence[str]) -> GenieModel:
    """Our model with the released weights, in float32.

    Raises:
        UserError: sizes that give no model.
    """
    model = GenieModel(OmegaConf.structured(cfg), len(pieces), len(pieces), Dictionary().pad())
    load(model, from_published(dict(state)), PIECE_TABLES, pieces)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--target-length", type=int, default=64, metavar="N",
                        help="positions that are generated, of those the file holds: the length the checkpoint was "
                             "trained with (default: 64, XSum's; pre-training has 154)")
    args = parser.parse_args(arguments)
    state = read_released(args.checkpoint, "GENIE")
    sizes = Sizes.of(state)
    check(state, released_layout(sizes), OPTIONAL, args.checkpoint, "GENIE")
    tie(state, args.embedding, args.checkpoint, "GENIE")
    if not 1 <= args.target_length <= sizes.target_positions:
        raise UserError(f"--target-length {args.target_length} is none of 1 .. {sizes.target_positions}, the positions "
                        f"that {args.checkpoint} holds")
    pieces = read_pieces(args.vocab, sizes.vocabulary)
    cfg = config_of(sizes, args.attention_heads, args.target_length)
    save(converted(state, cfg, pieces), cfg, "genie_base", pieces, args.output, len(state))


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
