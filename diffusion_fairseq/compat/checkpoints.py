"""Checkpoints are data: nothing in the file is run, and a file that cannot be loaded is named in one line."""

import argparse
import codecs
import logging
import os
import pickle
import re
from collections.abc import Mapping
from typing import List, Optional, Sequence

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from diffusion_fairseq.compat.literals import is_program, strings
from diffusion_fairseq.compat.options import flag
from diffusion_fairseq.compat.patching import replace
from diffusion_fairseq.errors import UserError

logger = logging.getLogger(__name__)

UNREADABLE = (pickle.UnpicklingError, OSError, EOFError, RuntimeError, LookupError, TypeError, AttributeError,
              ValueError)
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # in files of its major versions 1 and 2


def force_weights_only() -> None:
    """Make every torch.load of this process a weights_only one.

    For torch < 2.6, where the default is to run what the file says, and for hosts that ask for that: git main
    since September 2025, https://github.com/facebookresearch/fairseq/issues/5610
    The opposite variable is removed: torch.load refuses to work under both.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


def safe_globals() -> None:
    """Allow what the host's own checkpoints hold beyond tensors and plain values.

    Any torch: argparse.Namespace for stock architectures, numpy's arrays for runs with --eval-bleu, and its numbers
    where they are the best metric, as F1 and correlations of classification are.
    https://github.com/facebookresearch/fairseq/issues/5610
    """
    rebuild, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    allowed = [argparse.Namespace, rebuild, scalar, np.ndarray, np.dtype, type(np.dtype("i8")), type(np.dtype("f8"))]
    # How an array's bytes are written; torch allows it by default since 2.5.
    allowed.append(codecs.encode)
    if torch.torch_version.TorchVersion(torch.__version__) >= (2, 6):
        # Functions have another name in each major version of numpy, and the file holds its writer's.
        allowed += [(function, f"{module}.{function.__name__}") for module in NUMPY for function in (rebuild, scalar)]
    torch.serialization.add_safe_globals(allowed)


def one_line(text: str, limit: int = 160) -> str:
    """A message without its line breaks and without torch's advice, cut at `limit` characters."""
    text = re.split(r" (?:Check the documentation|This is an internal)", " ".join(text.split()))[0]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def refusal(path: str, error: pickle.UnpicklingError) -> UserError:
    """What to say about a file that torch's restricted unpickler stopped at."""
    found = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+|eval|exec)", str(error))
    if found is None:
        detail = one_line(str(error).rpartition("WeightsUnpickler error: ")[2])
        return UserError(
            f"checkpoint {path} refused: it is damaged or no checkpoint ({detail});"
            " use a file that training wrote"
        )
    return UserError(
        f"checkpoint {path} refused: it holds {found[1]}; a checkpoint is data, never code;"
        " use a file with tensors and plain values only"
    )


def refuse_programs(path: str, state: dict) -> None:
    """Raise UserError if an option string of the checkpoint would be run by the host's eval."""
    for part in ("args", "cfg"):
        for name, text in strings(state.get(part)):
            if is_program(text):
                raise UserError(
                    f"checkpoint {path} refused: it holds the program {text[:80]!r} as option {name};"
                    " a checkpoint is data, never code; use a file that training wrote"
                )


def start_ema(state: dict) -> None:
    """Let --store-ema start from the weights of a file that has no EMA.

    Both hosts: they mean to, and end in KeyError: 'model', which has been taken out of the file's contents by then.
    """
    extra = state.get("extra_state")
    if isinstance(extra, dict) and "model" in state:
        extra.setdefault("ema", state["model"])


def unreadable(path: str, error: Exception) -> UserError:
    """What to say about a file that torch or the host could not load."""
    if isinstance(error, pickle.UnpicklingError):
        return refusal(path, error)
    if isinstance(error, OSError):
        return UserError(
            f"checkpoint {path} cannot be read: {error.strerror or error}: it is missing, truncated or no checkpoint"
            " of fairseq; use a file that training wrote"
        )
    return UserError(
        f"checkpoint {path} cannot be read ({type(error).__name__}: {one_line(str(error))}): it is truncated or no"
        " checkpoint of fairseq; use a file that training wrote"
    )


def about(files: Sequence[str], error: UserError) -> UserError:
    """The error with the files' names, where it has none: the model that raised it does not know them."""
    named = any(str(file) in str(error) for file in files)
    return error if named else UserError(f"{', '.join(map(str, files))}: {error}")


def misfit(filename: str, error: BaseException, model, in_save_dir: bool) -> UserError:
    """Why training cannot start from a checkpoint's weights.

    Args:
        model: the settings of the model that is trained.
        in_save_dir: the checkpoint is one that training goes on with by itself.
    """
    if isinstance(error, UserError):
        return about([filename], error)
    others = other_options(checkpoint_utils.load_checkpoint_to_cpu(filename), model)
    remedy = f"it was trained with {', '.join(others)}: give the same" if others else \
        "give the --arch and the sizes it was trained with"
    anew = ", or start anew in another --save-dir" if in_save_dir else ""
    return UserError(f"checkpoint {filename} does not fit this model: {remedy}{anew} ({one_line(str(error))})")


def not_resumed(filename: str, error: Exception, trainer: Trainer) -> Optional[UserError]:
    """What to say where the host cannot train on from a checkpoint; None where its words are other ones."""
    said = str(error)
    if isinstance(error, AssertionError) and said.startswith(("Criterion does not match", "Optimizer does not match")):
        return cannot_go_on(filename, said)
    if said.startswith("Cannot load model parameters from checkpoint"):
        in_save_dir = os.path.dirname(filename) == trainer.cfg.checkpoint.save_dir.rstrip("/")
        return misfit(filename, error.__context__, trainer.cfg.model, in_save_dir)
    return None


def other_options(state: dict, model) -> List[str]:
    """The options that a checkpoint's model had and this one has not; empty where its settings are no mapping, as those
    of stock architectures. An --arch stands for all that it implies."""
    settings = state.get("cfg")
    theirs = settings.get("model") if isinstance(settings, Mapping) else None
    if not isinstance(theirs, Mapping) or not isinstance(model, Mapping):
        return []
    if theirs.get("_name") != model.get("_name"):
        return [f"--arch {theirs.get('_name')}"]
    # Rates shape no weights, and lengths are fitted in.
    changed = [name for name, value in theirs.items() if name in model and value != model[name]
               and not isinstance(value, float) and not name.startswith("max_")]
    return [as_given(flag(name), theirs[name]) for name in changed]


def check_function(filename: str, theirs, trainer: Trainer, goes_on: bool) -> None:
    """Compare the options that change what a model's weights compute, and no weight's shape, with a checkpoint's.

    Args:
        theirs: the checkpoint's settings of its model.
        goes_on: whether training goes on where the checkpoint's ended; else it only starts from the weights.
    Raises:
        UserError: training would go on with another function.
    """
    model = trainer.cfg.model
    if not isinstance(theirs, Mapping) or not isinstance(model, Mapping):
        return
    others = [as_given(flag(name), theirs[name]) for name in getattr(trainer._model, "function_options", ())
              if name in theirs and name in model and theirs[name] != model[name]]
    if others and goes_on:
        raise UserError(f"checkpoint {filename} was trained with {', '.join(others)}: give the same, or start anew "
                        "from its weights with --finetune-from-model in another --save-dir")
    if others:
        logger.warning(f"the weights of {filename} were trained with {', '.join(others)}, this training has others")


def cannot_go_on(filename: str, mismatch: str) -> UserError:
    """What to say where the host finds another criterion or optimizer in a checkpoint: its words name both classes."""
    options = "--criterion" if mismatch.startswith("Criterion") else "--optimizer and precision (--fp16, --bf16)"
    classes = mismatch.rpartition("). ")[2]
    return UserError(f"checkpoint {filename} was trained with another {options} ({classes} here): give the same, start "
                     "anew from its weights with --finetune-from-model in another --save-dir, or go on without the "
                     "optimizer's state by --reset-optimizer")


def as_given(option: str, value: object) -> str:
    """An option as it is given: a switch has no value, and one that is None is left out."""
    if value is None:
        return f"no {option}"
    if isinstance(value, bool):
        return option if value else f"no {option}"
    return f"{option} {value}"


def report_bad_checkpoints() -> None:
    """Say in one line which checkpoint cannot be loaded and why: refused, damaged, missing, of another model.

    Both hosts, any torch: they show a traceback, and some of them without the file's name.
    """
    load = checkpoint_utils.load_checkpoint_to_cpu
    load_models = checkpoint_utils.load_model_ensemble_and_task
    resume = Trainer.load_checkpoint
    trainers, settings = [], []  # the one that reads a file, if any does, and those of the models in what it read

    def load_checkpoint_to_cpu(path, *args, **kwargs):
        try:
            state = load(path, *args, **kwargs)
        except UserError:
            raise
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        refuse_programs(path, state)
        if trainers:
            if trainers[0].cfg.ema.store_ema:
                start_ema(state)
            settings.append((state.get("cfg") or {}).get("model"))
        return state

    def load_model_ensemble_and_task(filenames, *args, **kwargs):
        try:
            return load_models(filenames, *args, **kwargs)
        except UserError as error:
            raise about(filenames, error) from error
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            raise UserError(
                f"checkpoint {', '.join(filenames)} does not fit its own options ({one_line(str(error))}): it is of"
                " another version or was changed; use a file that training wrote"
            ) from error
        except OSError as error:
            if not str(error).startswith("Model file not found"):
                raise
            raise UserError(f"{error}: --path takes checkpoint files, several joined by ':'") from error

    def load_checkpoint(self, filename, reset_optimizer=False, *args, **kwargs):
        trainers.append(self)
        try:
            found = resume(self, filename, reset_optimizer, *args, **kwargs)
            for theirs in settings:
                check_function(filename, theirs, self, goes_on=not reset_optimizer)
            return found
        except UserError as error:
            raise about([filename], error) from error
        except Exception as error:
            if (told := not_resumed(filename, error, self)) is None:
                raise
            raise told from error
        finally:
            trainers[:], settings[:] = [], []

    replace(checkpoint_utils, "load_checkpoint_to_cpu", load_checkpoint_to_cpu)
    replace(checkpoint_utils, "load_model_ensemble_and_task", load_model_ensemble_and_task)
    Trainer.load_checkpoint = load_checkpoint
