#!/usr/bin/env python3
"""Turn a released DiffuSeq checkpoint (BERT's word pieces) into a checkpoint and dictionaries of ours.

    python scripts/convert_diffuseq.py ema_0.9999_050000.pt --vocab vocab.txt --output diffuseq-qqp

vocab.txt is that of bert-base-uncased. T, schedule and length are read from training_args.json beside the checkpoint
(another file: --training-args); without one they are the published 2000, sqrt and --sequence-length 128. diffuseq-qqp
gets checkpoint.pt, dict.src.txt, dict.tgt.txt and vocab.txt; a tensor that is missing, unknown, of another shape or not
finite ends in an error that lists it.

The released model reads and writes `[CLS] x [SEP] [SEP] [CLS] y [SEP] [PAD] ...`, 128 pieces. fairseq appends [SEP],
its end of sentence, and the model the second one; [CLS] is a word of the dictionaries, that both texts begin with.
Generate as the released code does (fewer --diffusion-steps are faster; --bpe bert needs `pip install transformers`):

    sed 's/^/[CLS] /' test.src | fairseq-interactive diffuseq-qqp --user-dir diffusion_fairseq \\
        --task seq2seq_diffusion --path diffuseq-qqp/checkpoint.pt --source-lang src --target-lang tgt --bpe bert \\
        --bpe-vocab-file diffuseq-qqp/vocab.txt --solver ddpm --ddpm-variance beta --clamping --diffusion-steps 2000 \\
        --buffer-size 64 --batch-size 64 | grep ^D- | cut -f 3 > test.out

Binarise pairs in word pieces, and generate from them:

    for f in train.src train.tgt valid.src valid.tgt test.src test.tgt; do python -c 'import sys, transformers; \\
        pieces = transformers.BertTokenizer("diffuseq-qqp/vocab.txt").tokenize; \\
        [print("[CLS]", *pieces(line)) for line in sys.stdin]' < $f > pieces.$f; done
    fairseq-preprocess --source-lang src --target-lang tgt --srcdict diffuseq-qqp/dict.src.txt --joined-dictionary \\
        --trainpref pieces.train --validpref pieces.valid --testpref pieces.test --destdir data-bin
    fairseq-generate data-bin --user-dir diffusion_fairseq --task seq2seq_diffusion --path diffuseq-qqp/checkpoint.pt \\
        --bpe bert --bpe-vocab-file diffuseq-qqp/vocab.txt --solver ddpm --ddpm-variance beta --clamping \\
        --diffusion-steps 2000 --batch-size 64

Fine-tune (the script prints the model's options; these are of the released size):

    fairseq-train data-bin --user-dir diffusion_fairseq --task seq2seq_diffusion --criterion diffusion_vlb \\
        --finetune-from-model diffuseq-qqp/checkpoint.pt --arch diffuseq_base --double-separator --jitter-source \\
        --max-source-positions 64 --max-target-positions 63 --padding-in-mean --given-in-loss \\
        --timestep-sampler loss-second-moment --optimizer adam --lr 1e-4 --lr-scheduler polynomial_decay \\
        --total-num-update 50000 --max-update 50000 --batch-size 64 --update-freq 32 --save-dir checkpoints

The released code shortens the longer side of a pair that is too long; here a source has at most 127 minus
--target-length pieces, and a longer target is cut. What is generated may fill all of the sequence, as in the released
code. An EMA file holds lm_head.weight as it was before averaging, and asks for --embedding.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _environment  # noqa: F401  says what this Python lacks
from _convert import (
    Shapes,
    bert_layer,
    check,
    layers_of,
    lineage,
    load,
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

from diffusion_fairseq.diffusion.schedules import SCHEDULES
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DiffuSeqConfig
from diffusion_fairseq.models.diffuseq import DiffuSeqModel
from diffusion_fairseq.models.published_diffuseq import from_published

LAYERS = "input_transformers.layer"
# Not needed for what is computed, and absent from files of some versions of transformers.
OPTIONAL = ("position_ids", "lm_head.weight")
# Our tables with a row for each piece.
PIECE_TABLES = ("embedding.weight", "rounding_bias")
ARGUMENTS = "training_args.json"
SEPARATORS = 1  # between the source, which has its own end of sentence, and the target


class Sizes(NamedTuple):
    """Of a released checkpoint, read off its tensors."""

    vocabulary: int
    latent: int
    hidden: int
    ffn: int
    time: int
    positions: int
    layers: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Sizes":
        def size(name: str, axis: int) -> int:
            return size_of(state, name, axis)

        return cls(
            vocabulary=size("word_embedding.weight", 0), latent=size("word_embedding.weight", 1),
            hidden=size("LayerNorm.weight", 0), ffn=size(f"{LAYERS}.0.intermediate.dense.weight", 0),
            time=size("time_embed.0.weight", 1), positions=size("position_embeddings.weight", 0),
            layers=layers_of(state, LAYERS),
        )


def released_layout(sizes: Sizes) -> Shapes:
    """Name -> shape of every tensor in a released checkpoint, the optional ones too."""
    shapes = lineage(sizes.vocabulary, sizes.latent, sizes.hidden, sizes.time, sizes.positions)
    for i in range(sizes.layers):
        shapes.update(bert_layer(f"{LAYERS}.{i}", sizes.hidden, sizes.ffn))
    return shapes


def read_arguments(checkpoint: str, given: str | None) -> dict[str, Any]:
    """What the released training code wrote of its options; nothing where there is no file and none was given.

    Raises:
        UserError: the file cannot be read, or holds what our model cannot repeat.
    """
    file = Path(given) if given else Path(checkpoint).with_name(ARGUMENTS)
    if not given and not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}): give the {ARGUMENTS} that lay beside the checkpoint") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no options: give the {ARGUMENTS} that lay beside the checkpoint")
    numbers = {name: found.get(name, 1) for name in ("seq_len", "diffusion_steps")}
    wrong = [f"{name} {number!r}" for name, number in numbers.items() if type(number) is not int or number < 1]
    wrong += [f"{name} {found[name]!r}" for name, known in (
        ("noise_schedule", set(SCHEDULES) - {"points"}), ("vocab", {"bert"}), ("rescale_timesteps", {True}),
        ("predict_xstart", {True, False})) if name in found and found[name] not in known]
    if wrong:
        raise UserError(f"{file} has {', '.join(wrong)}, which this script does not convert")
    return found


def config_of(sizes: Sizes, heads: int, sequence: int, target: int, published: Mapping[str, Any]) -> DiffuSeqConfig:
    """The options of the released model: its sequence of `sequence` positions has room for targets of `target`.

    Args:
        published: options under the released code's names.
    Raises:
        UserError: lengths that do not fit.
    """
    if not 3 + SEPARATORS <= sequence <= sizes.positions:
        raise UserError(f"a sequence of {sequence} pieces is none of {3 + SEPARATORS} .. {sizes.positions}, the "
                        "positions that the checkpoint holds: give --sequence-length, as in training")
    source = sequence - SEPARATORS - target
    if target < 1 or source < 1:
        raise UserError(f"--target-length {target} leaves no source: it is none of 1 .. {sequence - SEPARATORS - 1}")
    return DiffuSeqConfig(
        _name="diffuseq", model_dim=sizes.hidden, ffn_dim=sizes.ffn, attention_heads=heads, latent_dim=sizes.latent,
        encoder_layers=sizes.layers, time_dim=sizes.time, max_source_positions=source, max_target_positions=target,
        double_separator=True, jitter_source=True, length_model="fixed",
        diffusion_timesteps=published.get("diffusion_steps", 2000),
        noise_schedule=published.get("noise_schedule", "sqrt"),
        parameterization="x0" if published.get("predict_xstart", True) else "noise",
    )


def converted(state: Mapping[str, Tensor], cfg: DiffuSeqConfig, pieces: Sequence[str]) -> DiffuSeqModel:
    """Our model with the released weights, in float32.

    Raises:
        UserError: sizes that give no model.
    """
    dictionary = Dictionary()
    model = DiffuSeqModel(OmegaConf.structured(cfg), len(pieces), dictionary.pad(), dictionary.eos())
    load(model, from_published(dict(state)), PIECE_TABLES, pieces)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--training-args", metavar="FILE",
                        help=f"the released code's options (default: {ARGUMENTS} beside CHECKPOINT, if there is one)")
    parser.add_argument("--sequence-length", type=int, metavar="N",
                        help="pieces of source and target together (default: seq_len of those options, else 128)")
    parser.add_argument("--target-length", type=int, metavar="N",
                        help="pieces of the longest target to train on, the rest is the source's (default: half)")
    args = parser.parse_args(arguments)
    state = read_released(args.checkpoint, "DiffuSeq")
    sizes = Sizes.of(state)
    check(state, released_layout(sizes), OPTIONAL, args.checkpoint, "DiffuSeq")
    tie(state, args.embedding, args.checkpoint, "DiffuSeq")
    published = read_arguments(args.checkpoint, args.training_args)
    sequence = args.sequence_length or published.get("seq_len", 128)
    target = (sequence - SEPARATORS) // 2 if args.target_length is None else args.target_length
    cfg = config_of(sizes, args.attention_heads, sequence, target, published)
    pieces = read_pieces(args.vocab, sizes.vocabulary)
    save(converted(state, cfg, pieces), cfg, "diffuseq_base", pieces, args.output, len(state))


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
