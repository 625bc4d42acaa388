"""Options of the host that do not keep their word (--store-ema, --ema-fp32, --bf16, --stop-time-hours, --log-file), and
0.12.2's encoder layers."""

import logging
import os
import sys

import torch
from fairseq import options, trainer
from fairseq.logging import progress_bar as progress_bars
from fairseq.models.ema.ema import EMA
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.optim.fp16_optimizer import FP16Optimizer

from diffusion_fairseq.compat.patching import replace

FLOAT32_WEIGHTS = "float32_weights"  # in the optimizer's state
BETTER_TRANSFORMER_PARAMETERS = tuple(
    f"{layer}_{part}" for layer in ("in_proj", "out_proj", "fc1", "fc2") for part in ("weight", "bias")
)


def ema_version() -> None:
    """Keep the final layer norm of a pre-norm encoder and decoder in the EMA model.

    Both hosts: the EMA update leaves out every key with "version" in its name, without which a stock
    transformer takes the weights for a file from before 2018 and drops its final layer norm.
    """
    stock = EMA.restore

    def restore(self, state_dict, *args, **kwargs):
        versions = {key: value for key, value in self.model.state_dict().items() if "version" in key}
        return stock(self, {**versions, **state_dict}, *args, **kwargs)

    EMA.restore = restore


def ema_of_other_shapes() -> None:
    """Start --ema-fp32 from the EMA model's tensors where a file's have other shapes.

    Both hosts: fine-tuning a model with longer position tables, whose EMA the model has already fitted in, dies.
    """
    stock = EMA.build_fp32_params

    def build_fp32_params(self, state_dict=None):
        if state_dict is not None:
            own = self.model.state_dict()
            state_dict = {key: own[key] if key in own and own[key].shape != value.shape else value
                          for key, value in state_dict.items()}
        return stock(self, state_dict)

    EMA.build_fp32_params = build_fp32_params


def half_precision_resumes() -> None:
    """Save the float32 weights of --fp16 and --bf16 with the optimizer's state, and go on with them.

    Both hosts: they make them anew from the rounded ones, so that what had added up since the last rounding is lost.
    """
    save, load = FP16Optimizer.state_dict, FP16Optimizer.load_state_dict

    def parts(optimizer):
        held = optimizer.fp32_params
        return list(held.values()) if isinstance(held, dict) else [held] if torch.is_tensor(held) else list(held)

    def state_dict(self):
        return {**save(self), FLOAT32_WEIGHTS: [weights.data for weights in parts(self)]}

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        load(self, {name: value for name, value in state_dict.items() if name != FLOAT32_WEIGHTS}, optimizer_overrides)
        half = self.fp16_params[0].dtype
        for own, saved in zip(parts(self), state_dict.get(FLOAT32_WEIGHTS, ())):
            if own.shape == saved.shape:
                # Only of weights that nobody has changed in the file.
                saved = saved.to(own)
                own.data.copy_(torch.where(saved.to(half) == own.to(half), saved, own))

    FP16Optimizer.state_dict, FP16Optimizer.load_state_dict = state_dict, load_state_dict


def bf16_is_not_tpu() -> None:
    """Use a TPU only when --tpu says so.

    Both hosts: --bf16 sets it too, and dies for want of torch_xla.
    """
    stock = options.parse_args_and_arch

    def parse_args_and_arch(parser, input_args=None, *args, **kwargs):
        parsed = stock(parser, input_args, *args, **kwargs)
        namespace = parsed[0] if isinstance(parsed, tuple) else parsed
        given = sys.argv[1:] if input_args is None else input_args
        if getattr(namespace, "tpu", False) and "--tpu" not in given:
            namespace.tpu = False
        return parsed

    replace(options, "parse_args_and_arch", parse_args_and_arch)


def own_training_time() -> None:
    """Let --stop-time-hours count the hours of this training, not those of the one that it is fine-tuned from.

    Both hosts: --finetune-from-model takes that training's hours over, and may stop after the first update.
    """
    stock = trainer.Trainer.load_checkpoint

    def load_checkpoint(self, filename, reset_optimizer=False, reset_lr_scheduler=False, optimizer_overrides=None,
                        reset_meters=False):
        found = stock(self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        if reset_meters:
            self._previous_training_time = 0
        return found

    trainer.Trainer.load_checkpoint = load_checkpoint


def one_log_handler() -> None:
    """Write each line of --log-file once.

    Both hosts: every epoch adds a handler, so that the lines of the n-th are there n times.
    """
    stock = progress_bars.progress_bar

    def progress_bar(*args, log_file=None, **kwargs):
        written = [handler.baseFilename for handler in progress_bars.logger.handlers
                   if isinstance(handler, logging.FileHandler)]
        if log_file is not None and os.path.abspath(log_file) in written:
            log_file = None
        return stock(*args, log_file=log_file, **kwargs)

    replace(progress_bars, "progress_bar", progress_bar)


def absent_parameters() -> None:
    """Take parameters that are not there for none.

    Both hosts: every layer without a bias is said to share it ("detected shared parameter") with all the others.
    """
    stock = trainer._catalog_shared_params

    def catalog(module, memo=None, prefix=""):
        shared = stock(module, memo, prefix)
        return shared and [paths for paths in shared if trainer._get_module_by_path(module, paths[0]) is not None]

    trainer._catalog_shared_params = catalog


def better_transformer() -> None:
    """Take the inference fast path and its 8 duplicate parameters a layer out of the stock encoder layer.

    0.12.2 only, with torch >= 2: the fast path dies ("Mask Type should be defined"), and the duplicates, that
    never get a gradient, break --ddp-backend pytorch_ddp and make files that other hosts cannot load.
    https://github.com/facebookresearch/fairseq/issues/4899
    """
    layer = TransformerEncoderLayerBase
    if "_load_from_state_dict" not in vars(layer):
        return
    stock = layer.__init__

    def __init__(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        for name in BETTER_TRANSFORMER_PARAMETERS:
            delattr(self, name)
        self.can_use_fastpath = False

    layer.__init__ = __init__
    del layer._load_from_state_dict


def portable_encoder_layers() -> None:
    """Load stock transformers that an unmended 0.12.2 has written: forget their duplicate parameters.

    Both hosts; see better_transformer.
    """
    stock = TransformerEncoderLayerBase.upgrade_state_dict_named

    def upgrade_state_dict_named(self, state_dict, name):
        stock(self, state_dict, name)
        for parameter in BETTER_TRANSFORMER_PARAMETERS:
            state_dict.pop(f"{name}.{parameter}", None)

    TransformerEncoderLayerBase.upgrade_state_dict_named = upgrade_state_dict_named
