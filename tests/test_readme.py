"""What the README and the documentation tell people to type exists and takes the options that it shows."""

import argparse
import dataclasses
import re
import runpy
import shlex
import sys
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from fairseq import options
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from helpers import PACKAGE, REPOSITORY

README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "examples").rglob("README.md"))]
SCRIPTS = REPOSITORY / "scripts"
PARSERS = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
}
TASKS = {"seq2seq_diffusion", "cpd_pretrain", "diffusion_lm", "latent_classification", "sentence_prediction"}
BLOCK = re.compile(r"^```\n(.*?)^```|((?:^    [^\n]*\n)+)", re.M | re.S)  # between fences, or indented
COMMAND = re.compile(r" +([A-Z_]+=\S+ )*(bash|python3?|fairseq-\w+) ")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
SHOWN = {name for page in (*PAGES, *(REPOSITORY / "examples").glob("*/README.md")) for name in re.findall(
    r"\b(?:bash|python3?) ((?:scripts|examples)/[\w/]+\.(?:py|sh))", page.read_text(encoding="utf-8"))}
NOT_RUN = {
    "scripts/setup.sh": "installs from a package registry",
    "scripts/test.sh": "scripts/setup.sh, then these tests",
    "scripts/quickstart.sh": "scripts/setup.sh, then scripts/quickstart.py, which is run",
    "examples/debsum/prepare.sh": "reads the package indexes of apt; its two steps are run one by one",
    "examples/glue/probe.sh": "reads the package indexes of apt; its three steps are run one by one",
}
# Of torchrun and srun, and of prepare_corpus.py, which makes two options in one loop.
NOT_QUOTED = {"--nproc-per-node", "--ntasks-per-node", "--valid"}
CHOSEN_BY_RECIPE = ("--task", "--arch", "--criterion", "--optimizer", "--lr-scheduler")
parse_args = argparse.ArgumentParser.parse_args


class Parsed(Exception):
    """A script has come to the point where it reads its command line."""


def split(line):
    """The commands of a line, without what the shell does around them."""
    words = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word not in ("&&", "|", ";"):
            words.append(word)
            continue
        words = list(takewhile(lambda w: not re.match("2?>", w), words))
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words and (words[0] in ("bash", "python", "python3") or words[0].startswith("fairseq-")):
            yield [words[0].replace("python3", "python"), *words[1:]]
        words = []


def lines_of(block, arrays):
    """The lines of a block of commands, continued ones joined, with the words that the shell's arrays hold, those of
    earlier blocks too."""
    found = re.compile(r"^ *(\w+)=\((.*?)\)$", re.M | re.S)
    arrays.update((name, " ".join(words.split())) for name, words in found.findall(block))
    block = found.sub("", block).replace("\\\n", " ")
    while any(f'"${{{name}[@]}}"' in block for name in arrays):
        for name, words in arrays.items():
            block = block.replace(f'"${{{name}[@]}}"', words)
    return block.splitlines()


def commands():
    for page in PAGES:
        arrays = {}
        for fenced, indented in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in lines_of(fenced or indented, arrays):
                if indented and not COMMAND.match(line):
                    continue  # a table, or what a command prints
                for words in split(line):
                    name = page.parent.name if page.stem == "README" else page.stem
                    yield pytest.param(words, id=f"{name}: {' '.join(words[:2])}")


@cache
def known_options():
    """All options of fairseq, the package and the scripts."""
    found = set()
    for parser in (*PARSERS.values(), options.get_preprocessing_parser):
        found.update(parser()._option_string_actions)
    registered = [TASK_DATACLASS_REGISTRY, MODEL_DATACLASS_REGISTRY, CRITERION_DATACLASS_REGISTRY]
    registered += [registry["dataclass_registry"] for registry in REGISTRIES.values()]
    for registry in registered:
        for made in filter(None, registry.values()):
            found.update("--" + field.name.replace("_", "-") for field in dataclasses.fields(made))
    for script in (*SCRIPTS.glob("*.py"), *SCRIPTS.glob("*.sh")):
        found.update(re.findall(r'"(--[a-z][a-z0-9-]*)"' if script.suffix == ".py" else OPTION, script.read_text()))
    return found


def check_fairseq(words, monkeypatch):
    # Files that are read later must be there.
    arguments = [str(PACKAGE) if word == "diffusion_fairseq" else str(README) if word.endswith(".pt") else word
                 for word in words[1:]]
    monkeypatch.setattr(sys, "argv", [words[0], *arguments])
    parsed = options.parse_args_and_arch(PARSERS[words[0]](), input_args=arguments)
    assert parsed.task in TASKS


def check_python(words, monkeypatch):
    """Run a script up to its parser, and let that read the command; what follows -- goes to fairseq-train."""
    own = list(takewhile("--".__ne__, words[2:]))
    training = words[3 + len(own) :]

    def stop(parser, *_):
        raise Parsed(parser)

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        patched.setattr(sys, "argv", words[1:])
        patched.syspath_prepend(str(SCRIPTS))
        with pytest.raises(Parsed) as reached:
            runpy.run_path(str(REPOSITORY / words[1]), run_name="__main__")
    parser = reached.value.args[0]
    # argparse would take the beginning of an option for it.
    assert {word.split("=")[0] for word in own if word.startswith("--")} <= parser._option_string_actions.keys()
    if "--help" not in own:
        parse_args(parser, own)
    assert {word for word in training if word.startswith("--")} <= known_options()


def check_recipe(script, words, monkeypatch):
    """The options of the command behind a recipe, read by its parser with what the recipe chooses."""
    given = list(takewhile(lambda word: not word.startswith("--"), words))
    words, folder = words[len(given) :], script.parent
    sources = [script, folder / "systems.sh", folder.parent / "recipe.sh"]
    text = script.read_text()
    if "language_model.sh" in text:
        sources.insert(1, folder.parent / "language_model.sh")
    text = "\n".join(source.read_text() for source in sources if source.exists())
    if folder.name in ("baselines", "glue", "slurm") or script.stem not in ("train", "generate", "lm"):
        # Other systems; options that prepare the data or choose a task.
        assert {word for word in words if word.startswith("--")} <= known_options()
        return
    command = "fairseq-generate" if script.stem == "generate" else "fairseq-train"
    chosen = ["--path", "model.pt"] if script.stem == "generate" else ["--batch-size", "1"]
    for name in CHOSEN_BY_RECIPE[: 1 if script.stem == "generate" else None]:
        found = re.search(rf"{name} (\w+)", text)
        if found and name not in words:
            chosen += [name, found[1]]
    check_fairseq([command, "data-bin", "--user-dir", "diffusion_fairseq", *chosen, *words], monkeypatch)


def check(words, monkeypatch):
    if words[0].startswith("fairseq-"):
        check_fairseq(words, monkeypatch)
        return
    script = REPOSITORY / words[1]
    assert script.is_file()
    if words[0] == "python":
        check_python(words, monkeypatch)
    elif script.is_relative_to(REPOSITORY / "examples"):
        check_recipe(script, words[2:], monkeypatch)
    else:
        text = "".join(file.read_text() for file in (script, script.with_suffix(".py")) if file.exists())
        for option in OPTION.findall(" ".join(words[2:])):
            assert option in text


@pytest.mark.parametrize("words", list(commands()))
def test_commands_take_the_options_shown(words, monkeypatch):
    check(words, monkeypatch)


@pytest.mark.parametrize("line", [
    "fairseq-generate data-bin --user-dir diffusion_fairseq --task seq2seq_diffusion --path ck.pt --exit-patients 8",
    "python scripts/merge_generations.py shard0.txt --out generate.txt",
    "python scripts/study_objectives.py runs/x --variants losses --output o -- --arch diffusion_lm_base --no-such 1",
    "bash examples/xsum/train.sh --share-embedding",
    "bash examples/qqp/train.sh --masking span",
    "bash examples/c4/generate.sh 0:32 --exit-entropie 1",
    "bash examples/xsum/prepare.sh path --vocabularies 8000",
    "bash scripts/quickstart.sh --minuts 40",
    "bash examples/xsum/training.sh",
])
def test_a_misspelt_command_is_found(line, monkeypatch):
    (words,) = split(line)
    with pytest.raises((AssertionError, SystemExit)):
        check(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_the_text_names_exists(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert set(OPTION.findall(text)) - known_options() - NOT_QUOTED == set()
    for name in re.findall(r"\b(?:bash|python3?) ((?:scripts|examples)/[\w/.-]+)", text):
        assert (REPOSITORY / name).is_file(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def run_by(text, script):
    """Whether a test's text runs a script: by its name or as a module, a recipe by its folder's name and its own."""
    if script.parts[0] == "examples":
        return script.suffix == ".sh" and (f"{script.parent.name}/{script.name}" in text or (
            "recipe(" in text and f'"{script.parent.name}"' in text and f'"{script.stem}"' in text))
    names = rf'"(scripts/)?{re.escape(script.name)}"'
    if script.suffix == ".py":
        names += rf'|"{script.stem}"|^(import|from) {script.stem}\b'
    return re.search(names, text, re.M) is not None


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_is_shown_is_run_by_a_test_or_listed_with_the_reason(name):
    texts = [file.read_text(encoding="utf-8") for file in sorted((REPOSITORY / "tests").glob("test_*.py"))
             if file.name != "test_readme.py"]
    assert name in NOT_RUN or any(run_by(text, Path(name)) for text in texts)


def test_every_page_is_in_the_table_of_pages():
    text = (REPOSITORY / "docs/README.md").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"| [{page.name}]({page.name}) |" in text, page


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
