"""--help that knows what is named beside it: options of the task, architecture and criterion, and all defaults."""

import argparse
import contextlib
import dataclasses
import sys
from typing import Any, Dict, List, NoReturn, Optional

from fairseq import options
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY

from diffusion_fairseq.compat.patching import replace
from diffusion_fairseq.errors import UserError

HELP = {"-h", "--help"}
MORE_HELP = ("Options of a task, an architecture and a criterion are shown with them: --task seq2seq_diffusion --arch "
             "genie_base --criterion diffusion_vlb --help")
ARCHITECTURE_GROUP = "Model-specific configuration"  # the host's title of the architecture's options
REFERENCE = "${"  # begins the default of an option that is declared elsewhere, as ${task.max_source_positions}


def show_all_options() -> None:
    """Let --help show the options of the task, the architecture and the criterion that are named beside it, and what
    each option is where it is not given.

    Both hosts: they answer it before they know these options, and print no defaults.
    """
    stock = options.parse_args_and_arch

    def parse_args_and_arch(parser, input_args=None, *args, modify_parser=None, **kwargs):
        words = sys.argv[1:] if input_args is None else input_args
        if HELP.isdisjoint(words):
            return stock(parser, input_args, *args, modify_parser=modify_parser, **kwargs)
        passes = iter((False, True))

        def show(parser):
            if modify_parser is not None:
                modify_parser(parser)
            # The host calls this first before it adds those options, then after it.
            if next(passes):
                print_help(parser, words)

        try:
            return stock(parser, [word for word in words if word not in HELP], *args, modify_parser=show, **kwargs)
        except UserError:
            print_help(parser, words)  # --arch is not there, or unknown

    replace(options, "parse_args_and_arch", parse_args_and_arch)


def print_help(parser: argparse.ArgumentParser, words: List[str]) -> NoReturn:
    """Print the help for a command line of `words`, and end the process."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--arch", "-a")
    arch = given.parse_known_args(words)[0].arch
    if arch is None:
        leave_out_architecture(parser)
    defaults = architecture_defaults(arch)
    for action in parser._actions:
        action.default = worth_showing(action, defaults.get(action.dest, action.default))
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.epilog = MORE_HELP
    parser.print_help()
    parser.exit()


def leave_out_architecture(parser: argparse.ArgumentParser) -> None:
    """Take the architecture's options out of a parser: where none is named, generation has those of wav2vec2."""
    for group in parser._action_groups:
        if group.title == ARCHITECTURE_GROUP:
            for action in group._group_actions:
                parser._actions.remove(action)
            group._group_actions.clear()


def architecture_defaults(arch: Optional[str]) -> Dict[str, Any]:
    """Option -> value under an architecture that the command line leaves alone; empty where there is none of the name.

    The parser has no defaults of these options: the host fills them in once all others are known.
    """
    if arch not in ARCH_MODEL_NAME_REGISTRY:
        return {}
    config = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY[arch])
    found = {} if config is None else {field.name: field.default for field in dataclasses.fields(config)}
    filled = argparse.Namespace()
    with contextlib.suppress(AttributeError):  # some of the host's read what other options have set
        ARCH_CONFIG_REGISTRY[arch](filled)
    found.update(vars(filled))
    return {name: value for name, value in found.items()
            if value is not dataclasses.MISSING and not str(value).startswith(REFERENCE)}


def worth_showing(action: argparse.Action, default: Any) -> Any:
    """A default as the help's formatter is to print it; SUPPRESS where it says nothing, or the help text says it."""
    silent = default is None or default is False or default == "" or "default" in (action.help or "")
    return argparse.SUPPRESS if silent else default
