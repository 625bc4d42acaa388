"""The frozen space of a trained diffusion model: its embeddings and its noise levels."""

import dataclasses
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.position_schedule import PositionSchedule, Tables
from diffusion_fairseq.diffusion.process import noised_embedding, q_sample
from diffusion_fairseq.diffusion.schedules import SigmaEqualsT
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import PADDING_MODELLED, DiffusionModel
from diffusion_fairseq.models.config import DiffusionModelConfig
from diffusion_fairseq.models.noise import model_schedule
from diffusion_fairseq.modules.packing import Packing

REMEDY = "train it with --diffusion-path naming the file that generation uses"
# Averages over updates (EMA) include buffers, whose last bits then change.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class LatentSpace(Tables):
    """What x_t is made of; saved with the model that reads it.

    Args:
        embedding: (V, D).
        log_snr: (L, T), the noise levels of each position, or (1, T) those of all.
        longest: positions of a text, at most.
        length_model, length_margin: how the diffusion model pads a text; needed in training alone.
        dictionary: fingerprint of its dictionary, where known.
    """

    def __init__(self, embedding: Tensor, log_snr: Tensor, longest: int, length_model: str = "given",
                 length_margin: int = 0, dictionary: Optional[str] = None):
        super().__init__()
        # Files that were exported hold other precisions.
        self.register_buffer("embedding", embedding.float())
        self.schedule = PositionSchedule(log_snr.double())
        self.longest, self.length_model, self.length_margin = longest, length_model, length_margin
        self.dictionary = dictionary

    @classmethod
    def of_checkpoint(cls, path: str) -> "LatentSpace":
        """The space of the diffusion model in a checkpoint.

        Raises:
            UserError: the file cannot be read, or holds another kind of model.
        """
        cfg, weights = load(path, DiffusionModel)
        if "noise_schedule" not in cfg:
            raise UserError(f"{path}: {cfg['_name']} has no table of noise levels, and its x_t cannot be classified")
        if "noising" in cfg:
            raise UserError(f"{path}: {cfg['_name']} denoises its text after a source, which a classifier does not see:"
                            " take a GENIE or a Diffusion-LM")
        # What the file is too old to know has its default.
        known = {field.name for field in dataclasses.fields(DiffusionModelConfig)} & set(cfg)
        options = DiffusionModelConfig(**{name: cfg[name] for name in known})
        log_snr = weights.get("schedule.log_snr")
        if log_snr is None:
            log_snr = model_schedule(options).alphas_cumprod.logit()[None]
        return cls(weights["embedding.weight"], log_snr, len(weights["positions.weight"]),
                   options.length_model, options.length_margin, facts(weights).get("dictionaries", {}).get("target"))

    @classmethod
    def of_weights(cls, weights: Dict[str, Tensor]) -> "LatentSpace":
        """The space that is saved with the weights of a model that reads it, as its member `space`."""
        return cls(weights["space.embedding"], weights["space.schedule.log_snr"], len(weights["positions.weight"]),
                   **facts(weights).get("space", {}))

    def facts(self) -> Dict:
        """What is saved in the metadata of the weights."""
        return {"length_model": self.length_model, "length_margin": self.length_margin, "dictionary": self.dictionary}

    def modelled(self, tokens: Tensor, pad: int) -> Tuple[Tensor, Packing]:
        """Texts (B, L') as the diffusion model is trained on them (B, L), and the positions that it denoises."""
        if self.length_model not in PADDING_MODELLED:
            return tokens, Packing.of(tokens != pad)
        wanted = self.longest if self.length_model == "fixed" else tokens.size(1) + self.length_margin
        tokens = F.pad(tokens, (0, max(0, min(wanted, self.longest) - tokens.size(1))), value=pad)
        return tokens, Packing(tuple(tokens.shape))

    def noised(self, tokens: Tensor, t: Tensor, draws: Draws) -> Tensor:
        """x_t (B, L, D) of texts (B, L) at times t (B,), drawn as in the training of the diffusion model."""
        embedded = F.embedding(tokens, self.embedding)
        first, level = (self.schedule.at(times).cut(tokens.size(1)) for times in (torch.zeros_like(t), t))
        x0 = noised_embedding(embedded, first, draws.normal(embedded))
        return q_sample(x0, level, draws.normal(embedded))

    def check_belongs(self, model: DiffusionModel, name: str) -> None:
        """Refuse a diffusion model with another space.

        Raises:
            UserError: naming `name`, the file of this space, and what differs.
        """
        table, dictionary = model.vectors, model.dictionaries.get("target")
        if self.embedding.shape != table.shape:
            ours, theirs = (f"{len(x)} tokens of width {x.size(1)}" for x in (self.embedding, table))
            raise UserError(f"{name} reads embeddings of {ours}, the model has {theirs}: {REMEDY}")
        if None not in (dictionary, self.dictionary) and dictionary != self.dictionary:
            raise UserError(f"{name} belongs to another dictionary, of as many types: {REMEDY}")
        if not torch.allclose(self.embedding.to(table), table, **TOLERANCE):
            raise UserError(f"{name} reads other embeddings, of as many tokens: {REMEDY}")
        if isinstance(model.schedule, SigmaEqualsT):
            raise UserError(f"{name} knows the noise levels of a table, which this model has not: leave it out")
        ours, theirs = (schedule.num_timesteps for schedule in (self.schedule, model.schedule))
        if ours != theirs:
            raise UserError(f"{name} was trained with {ours} timesteps, the model with {theirs}: {REMEDY}")
        ours, theirs = (_alphas(schedule, self.longest) for schedule in (self.schedule, model.schedule))
        if not torch.allclose(*torch.broadcast_tensors(ours, theirs), **TOLERANCE):
            raise UserError(f"{name} was trained with other noise levels: {REMEDY}")


def _alphas(schedule, positions: int) -> Tensor:
    """alpha (T, positions), or (T, 1) where all positions share it."""
    times = torch.arange(schedule.num_timesteps)
    return schedule.at(times).cut(positions).alpha.view(len(times), -1)


def load(path: str, kind: type) -> Tuple[Dict, Dict[str, Tensor]]:
    """The model's options and weights in a checkpoint.

    Raises:
        UserError: the file cannot be read, or its model is not of this kind.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    cfg = (state.get("cfg") or {}).get("model") or {}
    arch = cfg.get("_name")
    if not issubclass(ARCH_MODEL_REGISTRY.get(arch, object), kind):
        raise UserError(f"{path} holds a model of architecture {arch!r}, which is no {kind.__name__}")
    return cfg, state["model"]


def facts(weights: Dict[str, Tensor]) -> Dict:
    """What stands beside the weights of a checkpoint, in the metadata of their dict; empty where a file lost it."""
    return getattr(weights, "_metadata", {}).get("", {})
