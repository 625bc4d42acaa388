"""What the README tells people to type exists and takes the options that it shows."""

import re
import shlex
import subprocess
import sys

import pytest
from fairseq import options
from helpers import PACKAGE, REPOSITORY

README = REPOSITORY / "README.md"
PARSERS = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
}


def commands():
    for block in re.findall(r"^```\n(.*?)^```", README.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            parts = shlex.split(line, comments=True)
            while "&&" in parts:
                words, parts = parts[: parts.index("&&")], parts[parts.index("&&") + 1 :]
                yield pytest.param(words, id=" ".join(words[:2]))
            words = parts
            if words and (words[0] in ("bash", "python") or words[0].startswith("fairseq-")):
                yield pytest.param(words, id=" ".join(words[:2]))


@pytest.mark.parametrize("words", commands())
def test_commands_take_the_options_shown(words, monkeypatch):
    if words[0] in PARSERS:
        arguments = [str(PACKAGE) if word == "diffusion_fairseq" else word for word in words[1:]]
        monkeypatch.setattr(sys, "argv", [words[0], *arguments])
        parsed = options.parse_args_and_arch(PARSERS[words[0]](), input_args=arguments)
        assert parsed.task == "seq2seq_diffusion"
        return
    script = REPOSITORY / words[1]
    assert script.is_file()
    if script.is_relative_to(REPOSITORY / "examples"):
        return  # its options are those of the command behind; test_recipes runs it
    interpreter = "bash" if words[0] == "bash" else sys.executable
    if script.name != "quickstart.sh":  # it sets up first; its options are quickstart.py's
        shown = subprocess.run([interpreter, script, "--help"], capture_output=True, text=True, check=True).stdout
        for word in words[2:]:
            if word.startswith("--"):
                assert word in shown


def test_every_registered_name_is_in_the_readme():
    from diffusion_fairseq.diffusion.grids import GRIDS
    from diffusion_fairseq.diffusion.schedules import BETAS
    from diffusion_fairseq.diffusion.solvers import SOLVERS
    from diffusion_fairseq.diffusion.timesteps import TIMESTEP_SAMPLERS
    from diffusion_fairseq.models.presets import GENIE

    text = README.read_text()
    for name in [*GENIE, *BETAS, *TIMESTEP_SAMPLERS, "seq2seq_diffusion", "diffusion_vlb"]:
        assert name in text, name
    for name in [*SOLVERS, *GRIDS]:
        assert f"`{name}`" in text, name


def test_the_map_names_what_there_is():
    blocks = re.findall(r"^```\n(.*?)^```", README.read_text(), re.M | re.S)
    block = next(b for b in blocks if "diffusion_fairseq/\n" in b)
    named = {word.rstrip("/") for word in re.findall(r"^  (\S+)", block, re.M)}
    parts = {path.name for path in PACKAGE.iterdir() if path.suffix == "" and path.name != "__pycache__"}
    assert parts <= named and all((PACKAGE / name).exists() for name in named)
