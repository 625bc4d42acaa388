"""What several test files need: tiny models, an oracle denoiser, and fairseq commands as processes."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

import diffusion_fairseq
from diffusion_fairseq.denoiser import Denoiser, Rows
from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.solvers import SamplerState, ddpm_step
from diffusion_fairseq.models.config import (
    DDLMConfig,
    DiffuSeqConfig,
    DiffusionLMConfig,
    GenieConfig,
    LatentClassifierConfig,
)
from diffusion_fairseq.models.ddlm import DDLMModel
from diffusion_fairseq.models.diffuseq import DiffuSeqModel
from diffusion_fairseq.models.diffusion_lm import DiffusionLMModel
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.latent_classifier import LatentClassifierModel
from diffusion_fairseq.models.latent_space import LatentSpace
from diffusion_fairseq.models.presets import DDLM, DIFFUSEQ, DIFFUSION_LM, GENIE, LATENT_CLASSIFIER
from diffusion_fairseq.modules.conditioned import ConditionalLayerNorm
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.tasks.sampling_config import SamplingConfig
from diffusion_fairseq.text.lengths import lengths_to_mask

PACKAGE = Path(diffusion_fairseq.__file__).parent
REPOSITORY = PACKAGE.parent
CLASSIFIER = LatentClassifierConfig(**{**LATENT_CLASSIFIER["latent_classifier_tiny"], "dropout": 0.0})


def make_dictionary(words: int = 40) -> Dictionary:
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol(f"w{i}")
    return dictionary


def make_genie(dictionary: Dictionary, seed: int = 0, **options) -> GenieModel:
    """A tiny GENIE with random weights, in evaluation mode, without dropout unless asked for."""
    torch.manual_seed(seed)
    sizes = dict(GENIE["genie_tiny"], dropout=0.0, max_source_positions=32, max_target_positions=24)
    cfg = OmegaConf.structured(GenieConfig(**{**sizes, **options}))
    model = GenieModel(cfg, len(dictionary), len(dictionary), dictionary.pad(), dictionary.eos())
    model.eval()
    return model


def prompt_tokens(dictionary: Dictionary, text: str):
    """Tokens of a prompt: letters are given words, "_" positions to fill, "." the end of sentence."""
    known = {"_": dictionary.index("<mask>"), ".": dictionary.eos()}
    return [known.get(letter, 6 + ord(letter) - ord("a")) for letter in text]


def make_prompts(dictionary: Dictionary, *texts, ids=None):
    """A batch of prompts, padded on the right."""
    width = max(map(len, texts))
    rows = [prompt_tokens(dictionary, text) + [dictionary.pad()] * (width - len(text)) for text in texts]
    return {"net_input": {"src_tokens": torch.tensor(rows)}, "id": torch.tensor(ids or list(range(len(texts))))}


def make_ddlm(dictionary: Dictionary, seed: int = 0, **options) -> DDLMModel:
    """A tiny DDLM with random weights, in evaluation mode, without dropout; the dictionary gets its mask."""
    mask = dictionary.add_symbol("<mask>")
    torch.manual_seed(seed)
    sizes = dict(DDLM["ddlm_tiny"], dropout=0.0, max_source_positions=24, max_target_positions=24)
    cfg = OmegaConf.structured(DDLMConfig(**{**sizes, **options}))
    return DDLMModel(cfg, len(dictionary), dictionary.pad(), mask).eval()


def see_time(model: DDLMModel) -> DDLMModel:
    """Let the conditional layer norms, which start as ordinary ones, depend on t."""
    for module in model.modules():
        if isinstance(module, ConditionalLayerNorm):
            torch.nn.init.normal_(module.modulation.weight, std=0.1)
    return model


def make_diffuseq(dictionary: Dictionary, seed: int = 0, **options) -> DiffuSeqModel:
    """A tiny DiffuSeq with random weights, in evaluation mode, without dropout unless asked for."""
    torch.manual_seed(seed)
    sizes = dict(DIFFUSEQ["diffuseq_tiny"], dropout=0.0, max_source_positions=16, max_target_positions=16)
    cfg = OmegaConf.structured(DiffuSeqConfig(**{**sizes, **options}))
    return DiffuSeqModel.of(cfg, len(dictionary), dictionary.pad(), dictionary.eos()).eval()


def make_diffusion_lm(dictionary: Dictionary, seed: int = 0, **options) -> DiffusionLMModel:
    """A tiny Diffusion-LM with random weights, in evaluation mode, without dropout; the dictionary gets its mask."""
    mask = dictionary.add_symbol("<mask>")
    torch.manual_seed(seed)
    sizes = dict(DIFFUSION_LM["diffusion_lm_tiny"], dropout=0.0, max_source_positions=24, max_target_positions=24)
    cfg = OmegaConf.structured(DiffusionLMConfig(**{**sizes, **options}))
    model = DiffusionLMModel(cfg, len(dictionary), dictionary.pad(), mask)
    model.eval()
    return model


def make_classifier(model, labels, seed: int = 0) -> LatentClassifierModel:
    """A tiny classifier of a diffusion model's x_t, with random weights, in evaluation mode, without dropout."""
    torch.manual_seed(seed)
    table = getattr(model.schedule, "log_snr", None)
    space = LatentSpace(model.embedding.weight.detach().clone(),
                        model.schedule.alphas_cumprod.logit()[None] if table is None else table.clone(),
                        len(model.positions.weight), model.length_model, model.length_margin,
                        model.dictionaries.get("target"))
    return LatentClassifierModel(CLASSIFIER, space, labels, model.pad).eval()


def save_model(path: Path, arch: str, model, **options) -> None:
    """A checkpoint as fairseq's trainer writes it, without what only training reads; options are the model's."""
    cfg = OmegaConf.to_container(OmegaConf.structured(FairseqConfig()), enum_to_str=True)
    cfg["model"] = {**(vars(CLASSIFIER) if arch in LATENT_CLASSIFIER else options), "_name": arch}
    cfg["task"] = {"_name": ""}
    history = [{"criterion_name": "", "optimizer_name": None, "lr_scheduler_state": {}, "num_updates": 0}]
    torch.save({"args": None, "cfg": cfg, "model": model.state_dict(), "optimizer_history": history, "task_state": {},
                "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None}}, path)


def make_sampling(**options) -> SamplingConfig:
    return SamplingConfig(**{"seed": 1, **options})


def make_sample(dictionary: Dictionary, lengths, seed: int = 0, width: int = 0):
    """Sources of the given lengths (their eos included), padded on the right to at least `width`."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.cat([torch.randint(dictionary.nspecial, len(dictionary), (n - 1,), generator=generator),
                       torch.tensor([dictionary.eos()])]) for n in lengths]
    width = max(width, max(lengths))
    tokens = torch.full((len(rows), width), dictionary.pad())
    for row, values in zip(tokens, rows):
        row[: len(values)] = values
    return {"id": torch.arange(len(rows)), "nsentences": len(rows), "ntokens": sum(lengths), "target": tokens,
            "net_input": {"src_tokens": tokens, "src_lengths": torch.tensor(lengths)}}


def make_task(dictionary: Dictionary) -> SimpleNamespace:
    return SimpleNamespace(target_dictionary=dictionary, source_dictionary=dictionary, prompts=False)


def clamped_sampling(model, memory, given):
    """The states of clamped ancestral sampling, variance beta, over the last levels: from a reference file's own
    start and noises, with estimates clamped as in generation."""
    start = len(given["noises"]) - 1
    levels = [model.schedule.at(torch.tensor(t)) for t in range(start, -2, -1)]
    x = given[f"x{start}"]
    lengths = torch.full(x.shape[:1], x.size(1))
    rows = Rows(memory, lengths, torch.zeros_like(lengths), Packing.of(lengths_to_mask(lengths, x.size(1))))
    nothing = torch.zeros(model.embedding.num_embeddings, dtype=torch.bool)
    denoise = Denoiser(model, rows, forbidden=nothing, clamping_from=torch.tensor(start))
    state = SamplerState(x, None, levels[0])
    with torch.no_grad():
        return list(sample(partial(ddpm_step, variance="beta"), denoise, state, levels, lambda i: given["noises"][i]))


def wait_until(found, seconds=20):
    """What `found` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def run_module(command: str, *arguments, cwd=None, stdin=None, check=True, plugin=True, env=None):
    """Run `python -m fairseq_cli.<command>` with the plugin; returns the completed process, its text captured."""
    module = [sys.executable, "-m", f"fairseq_cli.{command}"]
    user_dir = ["--user-dir", str(PACKAGE)] if plugin else []
    done = subprocess.run(
        module + [str(a) for a in arguments] + user_dir, cwd=cwd, input=stdin, text=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, timeout=600,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} failed ({done.returncode}):\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def write_stand_ins(folder, commands):
    """Make a folder of commands, by name, each a text in bash."""
    folder.mkdir()
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
