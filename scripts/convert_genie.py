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

import argparse
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from export_checkpoint import listed, write
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch import Tensor

import diffusion_fairseq  # noqa: F401  registers the task and the models
from diffusion_fairseq.compat.checkpoints import one_line, refusal
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import GenieConfig
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.published_genie import from_published
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig, fingerprint

ENCODER, DENOISER = "passage_encoder.encoder.layer", "transformer_blocks"
SOURCE_TABLES = "passage_encoder.embeddings"
# Not needed for what is computed, and absent from files of some versions of transformers.
OPTIONAL = ("position_ids", f"{SOURCE_TABLES}.position_ids", "passage_encoder.pooler.dense.weight",
            "passage_encoder.pooler.dense.bias", "lm_head.weight")
# fairseq's first four words. BERT has no beginning of sentence that is never generated: [CLS] is generated.
SPECIAL = {"pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]"}
UNUSED = re.compile(r"\[unused\d+\]")
# Our tables with a row for each piece.
PIECE_TABLES = ("encoder.tokens.weight", "embedding.weight", "rounding_bias")
MOST_LISTED = 20


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
            shape = state[name].shape if name in state else ()
            return shape[axis] if axis < len(shape) else 0

        def layers(prefix: str) -> int:
            found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state]
            return max([int(match[1]) + 1 for match in found if match], default=1)

        return cls(
            vocabulary=size("word_embedding.weight", 0), latent=size("word_embedding.weight", 1),
            hidden=size("LayerNorm.weight", 0), ffn=size(f"{ENCODER}.0.intermediate.dense.weight", 0),
            time=size("time_embed.0.weight", 1), encoder_layers=layers(ENCODER), denoiser_layers=layers(DENOISER),
            source_positions=size(f"{SOURCE_TABLES}.position_embeddings.weight", 0),
            target_positions=size("position_embeddings.weight", 0),
        )


def released_layout(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a released checkpoint, the optional ones too."""
    vocabulary, latent, hidden, ffn, time, source, target, encoder_layers, denoiser_layers = sizes
    shapes: dict[str, tuple[int, ...]] = {"position_ids": (1, target), f"{SOURCE_TABLES}.position_ids": (1, source)}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    for table, rows in (("word", vocabulary), ("position", source), ("token_type", 2)):
        linear(f"{SOURCE_TABLES}.{table}_embeddings", rows, hidden, bias=False)
    norm(f"{SOURCE_TABLES}.LayerNorm")
    for layer in (f"{ENCODER}.{i}" for i in range(encoder_layers)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", hidden, hidden)
        linear(f"{layer}.intermediate.dense", ffn, hidden)
        linear(f"{layer}.output.dense", hidden, ffn)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    linear("passage_encoder.pooler.dense", hidden, hidden)
    linear("word_embedding", vocabulary, latent, bias=False)
    linear("position_embeddings", target, hidden, bias=False)
    linear("lm_head", vocabulary, latent)
    linear("time_embed.0", 4 * time, time)
    linear("time_embed.2", hidden, 4 * time)
    linear("input_up_proj.0", hidden, latent)
    linear("input_up_proj.2", hidden, hidden)
    norm("LayerNorm")
    for layer in (f"{DENOISER}.{i}" for i in range(denoiser_layers)):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{layer}.{attention}.{part}", hidden, hidden, bias=part == "to_out.0")
        linear(f"{layer}.ff.net.0.proj", 2 * ffn, hidden)
        linear(f"{layer}.ff.net.2", hidden, ffn)
        for place in ("norm1", "norm2", "norm3"):
            norm(f"{layer}.{place}")
    linear("output_down_proj.0", hidden, hidden)
    linear("output_down_proj.2", latent, hidden)
    return shapes


def read_released(path: str) -> dict[str, Tensor]:
    """The tensors of a released file: a state dict, or what the released training code saves around one.

    Raises:
        UserError: the file holds code, is damaged, or holds no tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refusal(path, error) from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except (EOFError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({type(error).__name__}: {one_line(str(error))}): it is "
                        "truncated, a packed archive or no checkpoint; download or unpack it again") from error
    for key in ("model_dict", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"checkpoint {path} is none of GENIE: it holds no dict of tensors, nor one under model_dict")
    return dict(state)


def checked(state: Mapping[str, Tensor], path: str) -> Sizes:
    """The sizes of a released checkpoint in which each tensor is as it should be.

    Raises:
        UserError: that lists the tensors that are missing, unknown, of other shapes or types, or not finite.
    """
    sizes = Sizes.of(state)
    layout = released_layout(sizes)
    problems = {
        "missing tensors:": [name for name in layout if name not in state and name not in OPTIONAL],
        "unknown tensors:": [name for name in state if name not in layout],
    }
    if not any(problems.values()):
        found = {name: (tuple(state[name].shape), shape) for name, shape in layout.items() if name in state}
        floating = [name for name in found if not name.endswith("position_ids")]
        problems = {
            "tensors of wrong shapes:": [f"{name} {shape}, not {wanted}" for name, (shape, wanted) in found.items()
                                         if shape != wanted],
            "tensors of wrong types:": [f"{name} {state[name].dtype}" for name in floating
                                        if not state[name].is_floating_point()],
            "tensors that are not finite:": [name for name in floating if not state[name].isfinite().all()],
            "positions that do not count from 0:": [name for name in found if name.endswith("position_ids") and
                                                    state[name].flatten().tolist() != list(range(found[name][1][1]))],
        }
    lists = [f"{what} {listed(names, MOST_LISTED)}" for what, names in problems.items() if names]
    if lists:
        raise UserError(f"{path} is no GENIE checkpoint as released: {'; '.join(lists)}")
    return sizes


def tie(state: dict[str, Tensor], embedding: str | None, path: str) -> None:
    """Make lm_head.weight and word_embedding.weight one, where a file of averaged weights has two.

    Raises:
        UserError: they differ, and none was chosen.
    """
    names = {"lm_head": "lm_head.weight", "word_embedding": "word_embedding.weight"}
    if "lm_head.weight" not in state or state["lm_head.weight"].equal(state["word_embedding.weight"]):
        return
    if embedding is None:
        raise UserError(f"{path}: lm_head.weight differs from word_embedding.weight, which GENIE ties (a file of "
                        "averaged weights has averaged the latter alone): choose --embedding lm_head, which the "
                        "released code then generates with, or --embedding word_embedding")
    state.update({name: state[names[embedding]] for name in names.values()})


def read_pieces(path: str, count: int) -> list[str]:
    """The pieces of a BERT vocabulary, a line each, in the order of the checkpoint's rows.

    Raises:
        UserError: that names the line, or says that the vocabulary is another one.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}): give the vocab.txt of bert-base-uncased") from error
    pieces = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if len(pieces) != count:
        raise UserError(f"{path} holds {len(pieces)} pieces, the checkpoint {count}: give the vocabulary it was "
                        "trained with, the vocab.txt of bert-base-uncased")
    seen = dict.fromkeys(Dictionary().symbols, 0)
    for number, piece in enumerate(pieces, start=1):
        if piece.split() != [piece] or piece in seen:
            why = f"is on line {seen[piece]} too" if seen.get(piece) else "is no word of a vocabulary of BERT"
            raise UserError(f"{path}, line {number}: {piece!r} {why}; give the vocab.txt of bert-base-uncased")
        seen[piece] = number
    missing = [piece for piece in ("[CLS]", *SPECIAL.values()) if piece not in seen]
    if missing or not any(map(UNUSED.fullmatch, pieces)):
        missing += [] if any(map(UNUSED.fullmatch, pieces)) else ["[unused0], or another one"]
        raise UserError(f"{path} lacks {', '.join(missing)}: give the vocab.txt of bert-base-uncased")
    return pieces


def dictionary_of(pieces: Sequence[str]) -> tuple[Dictionary, list[int]]:
    """fairseq's dictionary of a BERT vocabulary, and the released row of each of its words.

    <pad>, </s> and <unk> are [PAD], [SEP] and [UNK]. <s>, which fairseq never generates, is the first piece that BERT
    leaves unused: the model generates [CLS], which stays a word like all other pieces.
    """
    rows = {piece: row for row, piece in enumerate(pieces)}
    first = {"bos": next(filter(UNUSED.fullmatch, pieces)), **SPECIAL}
    dictionary = Dictionary()
    order = [0] * dictionary.nspecial
    for name, piece in first.items():
        order[getattr(dictionary, name)()] = rows.pop(piece)
    for piece, row in rows.items():
        dictionary.add_symbol(piece)
        order.append(row)
    return dictionary, order


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
    dictionary, order = dictionary_of(pieces)
    model = GenieModel(OmegaConf.structured(cfg), len(order), len(order), dictionary.pad())
    ours = {name: tensor.detach().float() for name, tensor in from_published(dict(state)).items()}
    ours.update({name: ours[name][order] for name in PIECE_TABLES})
    ours["positions.weight"] = ours["positions.weight"][: cfg.max_target_positions]
    ours["longest_target"] = torch.tensor(float(cfg.max_target_positions))
    model.load_state_dict(ours)
    model.dictionaries = dict.fromkeys(("source", "target"), fingerprint(dictionary))
    return model


def checkpoint_of(model: GenieModel, cfg: GenieConfig, folder: Path) -> dict:
    """What fairseq's trainer would save of the model before its first update, without an optimizer."""
    root = OmegaConf.structured(FairseqConfig())
    task = Seq2SeqDiffusionConfig(
        data=str(folder), source_lang="src", target_lang="tgt", max_source_positions=cfg.max_source_positions,
        max_target_positions=cfg.max_target_positions,
    )
    root.task, root.model, root.criterion = (OmegaConf.structured(part) for part in (task, cfg, DiffusionVLBConfig()))
    root.task._name, root.criterion._name = "seq2seq_diffusion", "diffusion_vlb"
    return {
        "args": None,
        "cfg": OmegaConf.to_container(root, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [{"criterion_name": "DiffusionVLBCriterion", "optimizer_name": None,
                               "lr_scheduler_state": {}, "num_updates": 0}],
        "task_state": {},
        "extra_state": {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0}, "val_loss": None},
    }


def write_texts(folder: Path, pieces: Sequence[str]) -> None:
    """The dictionaries and the vocabulary.

    Raises:
        UserError: the folder holds those of something else.
    """
    dictionary, _ = dictionary_of(pieces)
    words = "".join(f"{word} 1\n" for word in dictionary.symbols[dictionary.nspecial:])
    texts = {"dict.src.txt": words, "dict.tgt.txt": words, "vocab.txt": "".join(f"{piece}\n" for piece in pieces)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        file = folder / name
        if file.exists() and file.read_bytes() != text.encode():
            raise UserError(f"{file} belongs to something else: give another --output")
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())


def architecture_options(cfg: GenieConfig) -> str:
    """The options of fairseq-train that make this model."""
    words = ["--arch genie_base"]
    for option in fields(GenieConfig):
        value = getattr(cfg, option.name)
        if option.name != "_name" and value != option.default:
            name = f"--{option.name.replace('_', '-')}"
            words.append(name if value is True else f"{name} {value}")
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="released file")
    parser.add_argument("--vocab", required=True, metavar="FILE", help="BERT's vocabulary, a piece a line")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--attention-heads", type=int, default=12, metavar="N", help="no tensor tells (default: 12)")
    parser.add_argument("--target-length", type=int, default=64, metavar="N",
                        help="positions that are generated, of those the file holds: the length the checkpoint was "
                             "trained with (default: 64, XSum's; pre-training has 154)")
    parser.add_argument("--embedding", choices=("lm_head", "word_embedding"),
                        help="which of the two to take where a file has averaged one alone")
    args = parser.parse_args(arguments)
    state = read_released(args.checkpoint)
    sizes = checked(state, args.checkpoint)
    tie(state, args.embedding, args.checkpoint)
    if not 1 <= args.target_length <= sizes.target_positions:
        raise UserError(f"--target-length {args.target_length} is none of 1 .. {sizes.target_positions}, the positions "
                        f"that {args.checkpoint} holds")
    pieces = read_pieces(args.vocab, sizes.vocabulary)
    cfg = config_of(sizes, args.attention_heads, args.target_length)
    model = converted(state, cfg, pieces)
    write_texts(args.output, pieces)
    write(checkpoint_of(model, cfg, args.output), str(args.output / "checkpoint.pt"))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output / 'checkpoint.pt'}: {len(state)} tensors checked, {count:,} weights, {len(pieces):,} pieces")
    print(f"text: --bpe bert --bpe-vocab-file {args.output / 'vocab.txt'}, each line begun with [CLS]")
    print(f"model: {architecture_options(cfg)}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
