"""A training that lacks what it needs, or names files that are not there: one line before the first update."""

import os
from importlib.util import find_spec

import torch
from fairseq import checkpoint_utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.configs import DistributedTrainingConfig, FairseqConfig
from fairseq.distributed import utils as distributed
from fairseq.file_io import PathManager

from diffusion_fairseq.compat.options import OURS, flag
from diffusion_fairseq.compat.patching import replace, replace_in_command
from diffusion_fairseq.errors import UserError

LAST = "checkpoint_last.pt"


def report_bad_training() -> None:
    """Refuse a training that cannot be.

    Both hosts: tracebacks; a file of --restore-file that is not there is passed over, and training starts anew.
    """
    stock, verify = distributed.call_main, checkpoint_utils.verify_checkpoint_directory

    def call_main(cfg, main, **kwargs):
        # What the other commands all need.
        if cfg.common_eval.path is None:
            check_training(cfg)
            check_sharding(cfg.distributed_training)
            check_start(cfg.checkpoint)
        return stock(cfg, main, **kwargs)

    def verify_checkpoint_directory(save_dir):
        try:
            verify(save_dir)
        except OSError as error:
            raise UserError(f"--save-dir {save_dir}: {error.strerror}; name a folder that can be written to") from error

    replace(distributed, "call_main", call_main)
    replace(checkpoint_utils, "verify_checkpoint_directory", verify_checkpoint_directory)


def check_training(cfg: FairseqConfig) -> None:
    """Refuse options that are missing or cannot be.

    Raises:
        UserError: naming the option.
    """
    if cfg.optimizer is None:
        raise UserError("--optimizer is needed, such as adam")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        raise UserError("--batch-size or --max-tokens is needed: how much an update takes")
    # A rate of 0 leaves the weights as they are, which is of use in tests.
    for name, least in (("lr", 0), ("update_freq", 1)):
        values = cfg.optimization[name]
        if not all(value >= least for value in values):
            raise UserError(f"{flag(name)} must be at least {least}, got {','.join(f'{value:g}' for value in values)}")
    if cfg.optimization.sentence_avg and CRITERION_REGISTRY[cfg.criterion._name].__module__.startswith(OURS):
        raise UserError("--sentence-avg: the losses of diffusion are means over positions; leave it out")
    for name in ("fp16", "amp"):
        if cfg.common[name] and (cfg.common.cpu or not torch.cuda.is_available()):
            raise UserError(f"--{name} needs a GPU: take --bf16, or leave it out")
    if cfg.ema.store_ema and not cfg.ema.ema_fp32 and (cfg.common.fp16 or cfg.common.bf16):
        raise UserError("--store-ema in half precision rounds its small steps away, and hardly moves: add --ema-fp32")


def check_sharding(options: DistributedTrainingConfig) -> None:
    """Refuse what fairscale does where it is missing, and what it cannot do with these models.

    Raises:
        UserError: naming the option.
    """
    if options.ddp_backend == "fully_sharded":
        # Its pieces of weights are whole inside forward alone: guidance, validation by generating and the laws of t
        # read them elsewhere.
        raise UserError("--ddp-backend fully_sharded is not served: leave it out; --ddp-backend legacy_ddp "
                        "--zero-sharding os shards the optimizer's state")
    for name, asked in (("--zero-sharding os", options.zero_sharding == "os"),
                        ("--ddp-backend slowmo", options.ddp_backend == "slowmo")):
        if asked and find_spec("fairscale") is None:
            raise UserError(f"{name} needs fairscale: pip install fairscale")


def check_start(cfg) -> None:
    """Refuse a checkpoint to start from that is not there.

    Raises:
        UserError: naming the option.
    """
    named = {"restore_file": cfg.restore_file, "finetune_from_model": cfg.finetune_from_model}
    if cfg.restore_file == LAST:
        # The default: that of --save-dir, if there is one, which comes before --finetune-from-model.
        del named["restore_file"]
        if PathManager.exists(os.path.join(cfg.save_dir, LAST)):
            return
    named = {name: file for name, file in named.items() if file is not None}
    if len(named) > 1:
        raise UserError("--restore-file goes on with a training, --finetune-from-model begins one: leave one out")
    for name, file in named.items():
        if not PathManager.exists(file):
            raise UserError(f"{flag(name)} {file}: no such checkpoint; name one that training wrote")


def report_bad_metric() -> None:
    """Say that --best-checkpoint-metric names nothing that validation measures, and what it does.

    Both hosts: KeyError.
    """
    def checked(stock):
        def get_valid_stats(cfg, trainer, stats, *more):
            metric = cfg.checkpoint.best_checkpoint_metric
            if metric not in stats:
                raise UserError(f"--best-checkpoint-metric {metric} is not measured in validation: choose one of "
                                f"{', '.join(sorted(stats))}")
            return stock(cfg, trainer, stats, *more)

        return get_valid_stats

    replace_in_command("train", "get_valid_stats", checked)
