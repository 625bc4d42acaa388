"""A checkpoint and a split of data, loaded for a script as fairseq-generate loads them."""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import torch
from _option_types import count
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

import diffusion_fairseq  # noqa: F401  registers the tasks and the models
from diffusion_fairseq.diffusion.grids import GRIDS
from diffusion_fairseq.diffusion.solvers import SOLVERS
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.tasks.diffusion_lm import DiffusionLMTask, DiffusionLMTaskConfig
from diffusion_fairseq.tasks.sampling_config import WARPED, SamplingConfig
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig, Seq2SeqDiffusionTask

TASKS = {"seq2seq_diffusion": (Seq2SeqDiffusionTask, Seq2SeqDiffusionConfig),
         "diffusion_lm": (DiffusionLMTask, DiffusionLMTaskConfig)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is loaded."""
    parser.add_argument("data", help="folder that fairseq-preprocess made")
    parser.add_argument("--path", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--task", choices=TASKS, default="seq2seq_diffusion", help="default: seq2seq_diffusion")
    parser.add_argument("--subset", default="test", help="split (default: test)")
    parser.add_argument("--given-positions", metavar="SLICES",
                        help="positions that are given, as 0:32 (--task diffusion_lm)")
    parser.add_argument("--sample-break-mode", default="eos", help="as in training (default: eos)")
    parser.add_argument("--max-source-positions", type=count(1), default=512, help="default: 512")
    parser.add_argument("--max-target-positions", type=count(1), default=64, help="--tokens-per-sample (default: 64)")
    parser.add_argument("--batch-size", type=count(1), default=64, help="default: 64")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")


def add_sampling_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """The options that say how text is drawn, with so many steps by default."""
    parser.add_argument("--diffusion-steps", type=count(1), default=steps, help=f"default: {steps}")
    parser.add_argument("--solver", choices=SOLVERS, default="ddpm", help="default: ddpm")
    parser.add_argument("--sampling-grid", choices=(*GRIDS, WARPED), default="uniform",
                        help=f"{WARPED}: as training drew t, of a model that has learned it (default: uniform)")
    parser.add_argument("--clamping", action="store_true", help="clamp estimates to embeddings")


def sampling_config(arguments: argparse.Namespace, **options) -> SamplingConfig:
    """What those options ask for, with more of them."""
    return SamplingConfig(diffusion_steps=arguments.diffusion_steps, solver=arguments.solver, seed=arguments.seed,
                          sampling_grid=arguments.sampling_grid, clamping=arguments.clamping, **options)


def setup(arguments: argparse.Namespace) -> Seq2SeqDiffusionTask:
    """The task.

    Raises:
        UserError: its data or options cannot be used.
    """
    task_class, config = TASKS[arguments.task]
    options = dict(data=arguments.data, seed=arguments.seed, train_subset="train", dataset_impl=None,
                   required_seq_len_multiple=1, num_shards=1, shard_id=0,
                   max_target_positions=arguments.max_target_positions)
    if arguments.task == "diffusion_lm":
        options.update(tokens_per_sample=arguments.max_target_positions, given_positions=arguments.given_positions,
                       sample_break_mode=arguments.sample_break_mode,
                       max_source_positions=arguments.max_target_positions)
    elif arguments.given_positions is not None:
        raise UserError("--given-positions belongs to --task diffusion_lm")
    else:
        options["max_source_positions"] = arguments.max_source_positions
    return task_class.setup_task(OmegaConf.structured(config(**options)))


def load_model(task, path: str) -> torch.nn.Module:
    """A checkpoint's model, on a GPU where there is one."""
    (model,), _ = checkpoint_utils.load_model_ensemble([path], task=task)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def build_bpe(task, model: Optional[Union[str, Path]]):
    """fairseq's encoder of a sentencepiece model; None without one."""
    return None if model is None else task.build_bpe(argparse.Namespace(
        bpe="sentencepiece", sentencepiece_model=str(model), sentencepiece_enable_sampling=False,
        sentencepiece_alpha=None))


def load(arguments: argparse.Namespace) -> Tuple[Seq2SeqDiffusionTask, torch.nn.Module]:
    """The task with the split loaded, and the model.

    Raises:
        UserError: one of them cannot be used.
    """
    task = setup(arguments)
    model = load_model(task, arguments.path)
    task.load_dataset(arguments.subset)
    return task, model


def batches(texts, batch_size: int, count: int) -> List[Dict]:
    """The first `count` texts of a dataset in batches of like lengths."""
    order = sorted(range(min(count, len(texts))), key=texts.num_tokens)
    return [texts.collater([texts[row] for row in order[first : first + batch_size]])
            for first in range(0, len(order), batch_size)]
