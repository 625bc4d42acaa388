"""What the converters of released checkpoints share: their tensors checked, BERT's word pieces as fairseq's dictionary,
and our checkpoint written."""

import argparse
import pickle
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from export_checkpoint import listed, write
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch import Tensor

import diffusion_fairseq  # noqa: F401  registers the task and the models
from diffusion_fairseq.compat.checkpoints import one_line, refusal
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.config import TransformerConfig
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig

# fairseq's first four words. BERT has no beginning of sentence that is never generated: [CLS] is generated.
SPECIAL = {"pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]"}
UNUSED = re.compile(r"\[unused\d+\]")
MOST_LISTED = 20
Shapes = dict[str, tuple[int, ...]]


def size_of(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    """A tensor's length along an axis; 0 where there is none."""
    shape = state[name].shape if name in state else ()
    return shape[axis] if axis < len(shape) else 0


def layers_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers there are whose names begin with `prefix` and a number."""
    found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state]
    return max([int(match[1]) + 1 for match in found if match], default=1)


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def bert_layer(name: str, hidden: int, ffn: int) -> Shapes:
    """A layer of BERT."""
    shapes: Shapes = {}
    for part in ("self.query", "self.key", "self.value", "output.dense"):
        shapes.update(linear(f"{name}.attention.{part}", hidden, hidden))
    return {
        **shapes, **linear(f"{name}.intermediate.dense", ffn, hidden), **linear(f"{name}.output.dense", hidden, ffn),
        **norm(f"{name}.attention.output.LayerNorm", hidden), **norm(f"{name}.output.LayerNorm", hidden),
    }


def lineage(vocabulary: int, latent: int, hidden: int, time: int, positions: int) -> Shapes:
    """What all released denoisers of Diffusion-LM's lineage have beside their layers."""
    return {
        "position_ids": (1, positions), **linear("word_embedding", vocabulary, latent, bias=False),
        **linear("position_embeddings", positions, hidden, bias=False), **linear("lm_head", vocabulary, latent),
        **linear("time_embed.0", 4 * time, time), **linear("time_embed.2", hidden, 4 * time),
        **linear("input_up_proj.0", hidden, latent), **linear("input_up_proj.2", hidden, hidden),
        **norm("LayerNorm", hidden), **linear("output_down_proj.0", hidden, hidden),
        **linear("output_down_proj.2", latent, hidden),
    }


def read_released(path: str, what: str) -> dict[str, Tensor]:
    """The tensors of a released file: a state dict, or what the released training code saves around one.

    Args:
        what: whose weights they should be, for messages.
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
        raise UserError(f"checkpoint {path} is none of {what}: it holds no dict of tensors, nor one under model_dict")
    return dict(state)


def check(state: Mapping[str, Tensor], layout: Shapes, optional: Sequence[str], path: str, what: str) -> None:
    """Refuse tensors that are not as in `layout`, of which the `optional` ones may be missing.

    Raises:
        UserError: that lists the tensors that are missing, unknown, of other shapes or types, or not finite.
    """
    problems = {
        "missing tensors:": [name for name in layout if name not in state and name not in optional],
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
        raise UserError(f"{path} is no {what} checkpoint as released: {'; '.join(lists)}")


def tie(state: dict[str, Tensor], embedding: str | None, path: str, what: str) -> None:
    """Make lm_head.weight and word_embedding.weight one, where a file of averaged weights has two.

    Raises:
        UserError: they differ, and none was chosen.
    """
    names = {"lm_head": "lm_head.weight", "word_embedding": "word_embedding.weight"}
    if "lm_head.weight" not in state or state["lm_head.weight"].equal(state["word_embedding.weight"]):
        return
    if embedding is None:
        raise UserError(f"{path}: lm_head.weight differs from word_embedding.weight, which {what} ties (a file of "
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


def load(model: DiffusionModel, weights: Mapping[str, Tensor], tables: Sequence[str], pieces: Sequence[str]) -> None:
    """Give a model released weights that have our names, in float32, the rows of `tables` in the dictionary's order."""
    dictionary, order = dictionary_of(pieces)
    ours = {name: tensor.detach().float() for name, tensor in weights.items()}
    ours.update({name: ours[name][order] for name in tables})
    ours["positions.weight"] = ours["positions.weight"][: len(model.positions.weight)]
    ours["longest_target"] = torch.tensor(float(model.longest_sequence))
    model.load_state_dict(ours)
    model.dictionaries = dict.fromkeys(("source", "target"), fingerprint(dictionary))


def checkpoint_of(model: DiffusionModel, cfg: TransformerConfig, task: FairseqDataclass) -> dict:
    """What fairseq's trainer would save of the model before its first update, without an optimizer."""
    root = OmegaConf.structured(FairseqConfig())
    root.task, root.model, root.criterion = (OmegaConf.structured(part) for part in (task, cfg, DiffusionVLBConfig()))
    root.criterion._name = "diffusion_vlb"
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


def architecture_options(cfg: TransformerConfig, arch: str) -> str:
    """The options of fairseq-train that make this model."""
    words = [f"--arch {arch}"]
    for option in fields(cfg):
        value = getattr(cfg, option.name)
        if option.name != "_name" and value != option.default:
            name = f"--{option.name.replace('_', '-')}"
            words.append(name if value is True else f"{name} {value}")
    return " ".join(words)


def save(model: DiffusionModel, cfg: TransformerConfig, arch: str, pieces: Sequence[str], folder: Path,
         checked: int) -> None:
    """Write what is converted, and say what it is; `checked` tensors were read."""
    write_texts(folder, pieces)
    task = Seq2SeqDiffusionConfig(
        _name="seq2seq_diffusion", data=str(folder), source_lang="src", target_lang="tgt",
        max_source_positions=cfg.max_source_positions, max_target_positions=cfg.max_target_positions,
    )
    write(checkpoint_of(model, cfg, task), str(folder / "checkpoint.pt"))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder / 'checkpoint.pt'}: {checked} tensors checked, {count:,} weights, {len(pieces):,} pieces")
    print(f"text: --bpe bert --bpe-vocab-file {shlex.quote(str(folder / 'vocab.txt'))}, each line begun with [CLS]")
    print(f"model: {architecture_options(cfg, arch)}")


def parser_of(description: str) -> argparse.ArgumentParser:
    """The options that all converters have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="released file")
    parser.add_argument("--vocab", required=True, metavar="FILE", help="BERT's vocabulary, a piece a line")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--attention-heads", type=int, default=12, metavar="N", help="no tensor tells (default: 12)")
    parser.add_argument("--embedding", choices=("lm_head", "word_embedding"),
                        help="which of the two to take where a file has averaged one alone")
    return parser
