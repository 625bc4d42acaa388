"""Options that the host lets through, or answers with its whole usage or a traceback: one line that names them."""

import argparse
import ast
import difflib
import os
import re
import sys
from typing import Any, Dict, List, Optional

from fairseq import options
from fairseq.data import data_utils
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from diffusion_fairseq.compat.patching import replace
from diffusion_fairseq.errors import UserError

# Name -> the least that makes sense; None in the namespace stands for a default.
LEAST = {"batch_size": 1, "batch_size_valid": 1, "max_tokens": 1, "max_tokens_valid": 1, "num_workers": 0, "nbest": 1,
         "beam": 1, "num_shards": 1, "seed": 0, "max_len_a": 0, "max_len_b": 0, "clip_norm": 0, "warmup_updates": 0,
         "distributed_world_size": 1, "workers": 1, "log_interval": 1, "save_interval": 1, "validate_interval": 1}
LARGEST_SEED = 2**32 - 1  # numpy's
DICTIONARIES = ("model_overrides", "optimizer_overrides")
OPTION = re.compile(r"--[\w-]+")
CHOICES = re.compile(r" \(choose from .*\)$")
OURS = __name__.partition(".")[0]


def report_bad_options() -> None:
    """End misspelt options, and numbers that no command can serve, in one line before anything is read or written.

    Both hosts: they print the usage of all their options, some hundred lines; numbers out of range pass, or end in a
    traceback when they are used.
    """
    stock = options.parse_args_and_arch

    def parse_args_and_arch(parser, *args, **kwargs):
        parser.error = lambda message: complain(parser, message)
        try:
            parsed = stock(parser, *args, **kwargs)
        except RuntimeError as error:
            # All that the host says where --arch is missing.
            if str(error):
                raise
            raise UserError("--arch is needed: the model to train, as genie_base") from None
        check(vars(parsed[0] if isinstance(parsed, tuple) else parsed))
        return parsed

    replace(options, "parse_args_and_arch", parse_args_and_arch)


def complain(parser: argparse.ArgumentParser, message: str) -> None:
    """End the process with an error in parsing, and what may have been meant."""
    unknown = OPTION.search(message) if message.startswith("unrecognized arguments") else None
    owners = owners_of(unknown[0]) if unknown else []
    meant = misspelt(parser, message)
    if owners:
        message += f": an option of {' and '.join(owners)}"
    elif meant:
        # Hundreds of names help less than the one that is meant.
        message = CHOICES.sub("", message) + f": did you mean {meant}?"
    elif message.startswith("argument --arch"):
        message = CHOICES.sub(f" (choose one of fairseq's, or {', '.join(sorted(our_architectures()))})", message)
    sys.stderr.write(f"{parser.prog}: error: {message}\n")
    sys.exit(2)


def owners_of(option: str) -> List[str]:
    """The choices that have an option: tasks, and architectures and criterions of ours."""
    name = option.removeprefix("--").replace("-", "_")

    def with_option(registry: Dict[str, Any], origin: str = "") -> List[str]:
        return [choice for choice, made in registry.items() if name in getattr(made, "__dataclass_fields__", ())
                and made.__module__.startswith(origin)]

    models = with_option(MODEL_DATACLASS_REGISTRY, OURS)
    found = {"--task": with_option(TASK_DATACLASS_REGISTRY),
             "--arch": [arch for arch in our_architectures() if ARCH_MODEL_NAME_REGISTRY[arch] in models],
             "--criterion": with_option(REGISTRIES["criterion"]["dataclass_registry"], OURS)}
    return [f"{kind} {', '.join(sorted(known))}" for kind, known in found.items() if known]


def our_architectures() -> List[str]:
    """The choices of --arch that are presets of our models."""
    return [arch for arch, model in ARCH_MODEL_NAME_REGISTRY.items() if arch != model
            and getattr(MODEL_DATACLASS_REGISTRY.get(model), "__module__", "").startswith(OURS)]


def misspelt(parser: argparse.ArgumentParser, message: str) -> Optional[str]:
    """The option, or the choice of one, that is most like what a message of argparse complains about."""
    chosen = re.search(r"^argument (--[\w-]+).*: invalid choice: '(.*?)' \(", message)
    if chosen:
        action = parser._option_string_actions[chosen[1]]
        word, known = chosen[2], [str(choice) for choice in action.choices]
    elif message.startswith("unrecognized arguments"):
        found = OPTION.search(message)
        word, known = found[0] if found else "", list(parser._option_string_actions)
    else:
        return None
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def check(given: Dict[str, Any]) -> None:
    """Refuse what no command can serve.

    Raises:
        UserError: naming the option.
    """
    for name, least in LEAST.items():
        value = number(given.get(name))
        if value is not None and not value >= least:
            raise UserError(f"{flag(name)} must be at least {least}, got {given[name]}")
    if (given.get("seed") or 0) > LARGEST_SEED:
        raise UserError(f"--seed must be at most {LARGEST_SEED}, got {given['seed']}")
    for name in DICTIONARIES:
        if not is_dictionary(given.get(name) or "{}"):
            raise UserError(f"{flag(name)} is no dictionary such as \"{{'dropout': 0.1}}\": {given[name]!r}")
    if "path" in given and given["path"] is None:
        raise UserError("--path is needed: the checkpoint to take")
    if given.get("sampling") and given["nbest"] != given["beam"]:
        raise UserError("--sampling needs an --nbest as large as --beam")
    if given.get("replace_unk") is not None and given["dataset_impl"] != "raw" and "buffer_size" not in given:
        raise UserError("--replace-unk needs --dataset-impl raw: leave it out")
    if "buffer_size" in given and (given["batch_size"] or 0) > max(given["buffer_size"], 1):
        raise UserError(f"--batch-size {given['batch_size']} exceeds --buffer-size {given['buffer_size']}: give a "
                        "larger buffer, or smaller batches")
    if given.get("results_path") is not None:
        check_folder("--results-path", given["results_path"])
        if (number(given.get("num_shards")) or 1) > 1:
            raise UserError("--results-path: all shards would write the same file; leave it out and send what each "
                            "prints to a file of its own")
        if given.get("resume_generation") is not None:
            raise UserError("--results-path would put the rest of a generation in the place of what is there: leave it "
                            "out, and append with --resume-generation FILE >> FILE")
    if given.get("sentencepiece_enable_sampling"):
        raise UserError("--sentencepiece-enable-sampling draws splits that no --seed fixes: leave it out")
    if given.get("log_file") is not None:
        check_folder("--log-file", os.path.dirname(given["log_file"]) or ".")
    for name in ("post_process", "eval_rouge_remove_bpe", "eval_bleu_remove_bpe"):
        try:
            data_utils.post_process("", given.get(name))
        except NotImplementedError:
            raise UserError(f"{flag(name)} {given[name]!r} is unknown: choose sentencepiece, wordpiece, subword_nmt, "
                            "letter or none") from None


def number(value: Any) -> Optional[float]:
    """An option's value, which the parser leaves as text where the default refers to another option; None for that
    reference, and where there is none."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def flag(name: str) -> str:
    """A field's name as its option on the command line."""
    return f"--{name.replace('_', '-')}"


def is_dictionary(text: str) -> bool:
    """Whether a text is a dict as Python writes it."""
    try:
        return isinstance(ast.literal_eval(text), dict)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def check_folder(option: str, folder: str) -> None:
    """Refuse a folder that cannot be written to or made; nothing is made.

    Raises:
        UserError: naming the option and the folder.
    """
    place = os.path.abspath(folder)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"{option} {folder}: {place} is no folder; name another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {place} cannot be written to; name another one")
