#!/usr/bin/env python3
"""Turn a BERT of the transformers library into a checkpoint from which a diffusion language model is fine-tuned.

    python scripts/convert_bert.py path/to/bert-base-uncased --data runs/reuters/data-bin --output runs/reuters/bert.pt
    bash examples/reuters/train.sh --finetune-from-model runs/reuters/bert.pt

The folder holds config.json and model.safetensors (which needs `pip install safetensors`) or pytorch_model.bin; neither
needs the transformers library. Taken over are the layers, the position embeddings (with the embedding of token type 0)
and the layer norm below the layers. Tokens have latents of another width: their embeddings, the projections to and from
them and those of the time are drawn anew with --seed; pooler and heads are left out. The data are those to fine-tune
on: their dict.txt says how many tokens there are. Tensors that are missing, unknown, of other shapes or not finite end
in an error that lists them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import _environment  # noqa: F401  says what this Python lacks
import torch
from _convert import (
    Shapes,
    architecture_options,
    bert_layer,
    check,
    checkpoint_of,
    layers_of,
    linear,
    norm,
    read_released,
    size_of,
)
from export_checkpoint import write
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import GIVEN_TOKENS, DiffusionLMConfig
from diffusion_fairseq.models.diffusion_lm import DiffusionLMModel
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.models.published_bert import POSITIONS, TOKEN_TYPES, encoder_of, from_published
from diffusion_fairseq.modules.layers import BERT_LAYER_NORM_EPS
from diffusion_fairseq.tasks.diffusion_lm import DiffusionLMTask, DiffusionLMTaskConfig
from diffusion_fairseq.tasks.monolingual import mask_index

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
ARCH = "diffusion_lm_base"
# What our layers compute, by the names of config.json, with what a file means that does not say.
COMPUTED = {"model_type": ("bert", "bert"), "hidden_act": ("gelu", "gelu"),
            "position_embedding_type": ("absolute", "absolute"),
            "layer_norm_eps": (BERT_LAYER_NORM_EPS, BERT_LAYER_NORM_EPS)}


def read_config(folder: Path) -> dict:
    """config.json of a BERT that our layers can repeat.

    Raises:
        UserError: there is no such file, or it is another model's.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}; give a folder that holds config.json and {SAFE} or "
                        f"{PICKLED}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no config.json of a BERT ({type(error).__name__}: {error})") from None
    wrong = [f"{name} {config.get(name, default)!r}, not {ours!r}" for name, (ours, default) in COMPUTED.items()
             if config.get(name, default) != ours]
    if wrong or heads < 1:
        raise UserError(f"{file}: {'; '.join(wrong) or 'no attention heads'}: such a model is not taken over")
    return config


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a folder, and the file they are from.

    Raises:
        UserError: there is no file, it cannot be read, or a package is missing.
    """
    safe, pickled = folder / SAFE, folder / PICKLED
    if not safe.is_file():
        if not pickled.is_file():
            raise UserError(f"{folder} holds neither {SAFE} nor {PICKLED}")
        return read_released(str(pickled), "BERT"), pickled
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        if pickled.is_file():
            return read_released(str(pickled), "BERT"), pickled
        raise UserError(f"{safe} needs a package: pip install safetensors") from None
    try:
        return load_file(safe), safe
    except (SafetensorError, OSError) as error:
        raise UserError(f"{safe} cannot be read ({error}): fetch it again") from None


def encoder_layout(state: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape of every tensor of an encoder with the sizes of these."""
    positions, hidden = (size_of(state, POSITIONS, axis) for axis in (0, 1))
    ffn = size_of(state, "encoder.layer.0.intermediate.dense.weight", 0)
    shapes = {**linear(POSITIONS.removesuffix(".weight"), positions, hidden, bias=False),
              **linear(TOKEN_TYPES.removesuffix(".weight"), size_of(state, TOKEN_TYPES, 0), hidden, bias=False),
              **norm("embeddings.LayerNorm", hidden)}
    for i in range(layers_of(state, "encoder.layer")):
        shapes.update(bert_layer(f"encoder.layer.{i}", hidden, ffn))
    return shapes


def check_sizes(cfg: DiffusionLMConfig, config: Mapping, file: Path) -> None:
    """Refuse tensors of other sizes than config.json says.

    Raises:
        UserError: that lists them.
    """
    names = {"hidden_size": cfg.model_dim, "intermediate_size": cfg.ffn_dim, "num_hidden_layers": cfg.encoder_layers,
             "max_position_embeddings": cfg.max_target_positions}
    wrong = [f"{name} {size}, not {config[name]}" for name, size in names.items() if config.get(name, size) != size]
    if wrong:
        raise UserError(f"{file} is not what config.json says: {'; '.join(wrong)}")


def converted(state: Mapping[str, Tensor], cfg: DiffusionLMConfig, data: Path, seed: int) -> DiffusionLMModel:
    """A new model for the words of a data folder, with an encoder's weights in float32.

    Raises:
        UserError: no such folder, or no dictionary with a mask token in it; sizes that give no model.
    """
    dictionary = DiffusionLMTask.load_dictionary(str(data / "dict.txt"))
    torch.manual_seed(seed)
    model = DiffusionLMModel(OmegaConf.structured(cfg), len(dictionary), dictionary.pad(),
                             mask_index(dictionary, str(data)))
    ours = {name: tensor.detach().float() for name, tensor in from_published(dict(state)).items()}
    model.load_state_dict({**model.state_dict(), **ours})
    model.dictionaries = dict.fromkeys(("source", "target"), fingerprint(dictionary))
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the transformers library")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="binarised text to fine-tune on")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn anew (default: %(default)s)")
    parser.add_argument("--latent-dim", type=int, default=DiffusionLMConfig.latent_dim, metavar="N",
                        help="as in the training to come, like the next two (default: %(default)s)")
    parser.add_argument("--self-conditioning", action="store_true")
    parser.add_argument("--given-tokens", choices=GIVEN_TOKENS, default=DiffusionLMConfig.given_tokens)
    args = parser.parse_args(arguments)
    config = read_config(args.folder)
    state, file = read_tensors(args.folder)
    state = encoder_of(state)
    layout = encoder_layout(state)
    check(state, layout, [TOKEN_TYPES], str(file), "BERT")
    positions, hidden = state[POSITIONS].shape
    cfg = DiffusionLMConfig(
        _name="diffusion_lm", model_dim=hidden, ffn_dim=len(state["encoder.layer.0.intermediate.dense.weight"]),
        attention_heads=int(config["num_attention_heads"]), encoder_layers=layers_of(state, "encoder.layer"),
        latent_dim=args.latent_dim, self_conditioning=args.self_conditioning, given_tokens=args.given_tokens,
        max_source_positions=positions, max_target_positions=positions,
    )
    check_sizes(cfg, config, file)
    model = converted(state, cfg, args.data, args.seed)
    task = DiffusionLMTaskConfig(_name="diffusion_lm", data=str(args.data), tokens_per_sample=positions)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write(checkpoint_of(model, cfg, task), str(args.output))
    taken, count = sum(tensor.numel() for tensor in state.values()), sum(p.numel() for p in model.parameters())
    print(f"{args.output}: {len(state)} tensors checked, {taken:,} of {count:,} weights are BERT's")
    # A language model has as many positions as --tokens-per-sample says; the table is cut to them.
    lengths = {name: getattr(DiffusionLMConfig, name) for name in ("max_source_positions", "max_target_positions")}
    print(f"model: {architecture_options(replace(cfg, **lengths), ARCH)}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
