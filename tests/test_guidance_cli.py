"""Control through fairseq's commands: a language model, a classifier of its x_t, and texts that are led by it."""

import json
import random
import re
import subprocess
import sys

import pytest
import torch
from helpers import REPOSITORY, run_module
from test_cli import assert_same, hypotheses, one_line_error
from test_recipes import recipe

pytestmark = pytest.mark.slow

TASK = ["--task", "diffusion_lm", "--tokens-per-sample", "12"]
COMMON = ["--optimizer", "adam", "--lr", "3e-3", "--batch-size", "32", "--cpu", "--log-format", "json", "--seed", "7",
          "--num-workers", "0", "--disable-validation", "--no-epoch-checkpoints"]


def write_texts(folder, split, count, seed):
    """Lines of words of one kind alone, fruit or tool, and their kinds."""
    rng = random.Random(seed)
    kinds = [rng.choice(("fruit", "tool")) for _ in range(count)]
    lines = [" ".join(f"{kind}{rng.randrange(8)}" for _ in range(rng.randint(4, 8))) for kind in kinds]
    (folder / f"{split}.txt").write_text("".join(line + "\n" for line in lines))
    (folder / f"{split}.label").write_text("".join(kind + "\n" for kind in kinds))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Labelled texts of disjoint words, a language model, and a classifier of its x_t."""
    folder = tmp_path_factory.mktemp("control")
    for split, count in (("train", 400), ("valid", 40)):
        write_texts(folder, split, count, seed=count)
    for kind, part in (("txt", "input0"), ("label", "label")):
        run_module("preprocess", "--only-source", "--trainpref", folder / f"train.{kind}", "--validpref",
                   folder / f"valid.{kind}", "--destdir", folder / "data" / part, plugin=False)
    with open(folder / "data" / "input0" / "dict.txt", "a") as dictionary:
        dictionary.write("<mask> 0\n")
    run_module("train", folder / "data" / "input0", *TASK, *COMMON, "--arch", "diffusion_lm_tiny", "--criterion",
               "diffusion_anchor", "--given-tokens", "clean", "--masking", "prefix", "--condition-dropout", "0.3",
               "--save-dir", folder / "lm", "--max-update", "500")
    run_module("train", folder / "data", *COMMON[:-2], "--no-epoch-checkpoints", "--task", "latent_classification",
               "--arch", "latent_classifier_tiny", "--criterion", "latent_classification", "--diffusion-path",
               folder / "lm" / "checkpoint_last.pt", "--save-dir", folder / "classifier", "--max-update", "200",
               "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric")
    return folder


def classifier(work):
    return work / "classifier" / "checkpoint_best.pt"


def generate(work, *options, check=True, given="none"):
    return run_module("generate", work / "data" / "input0", *TASK, "--path", work / "lm" / "checkpoint_last.pt",
                      "--cpu", "--gen-subset", "valid", "--diffusion-steps", "20", "--given-positions", given,
                      *options, check=check)


def share(done, kind):
    words = [word for found in hypotheses(done.stdout).values() for word in found[0][1].split()]
    return sum(word.startswith(kind) for word in words) / len(words)


def lead(work, label, *options):
    return ("--classifier", classifier(work), "--classifier-label", label, *options)


def test_a_classifier_brings_the_words_of_its_label(work):
    free = generate(work)
    for label in ("fruit", "tool"):
        led = generate(work, *lead(work, label, "--classifier-scale", "30"))
        assert share(led, label) > share(free, label) + 0.2, (share(led, label), share(free, label))
    off = generate(work, *lead(work, "fruit", "--classifier-scale", "0"))
    assert hypotheses(off.stdout) == hypotheses(free.stdout)


def test_texts_that_are_led_do_not_depend_on_the_batch(work):
    options = lead(work, "tool", "--exit-patience", "3", "--clamping")
    batches = [hypotheses(generate(work, *options, "--batch-size", size).stdout) for size in ("64", "7")]
    assert_same(*batches)


def test_the_classifier_logs_its_accuracy_and_needs_no_allow_list(work):
    done = run_module("validate", work / "data", "--task", "latent_classification", "--path", classifier(work), "--cpu",
                      "--criterion", "latent_classification", "--valid-subset", "valid", "--log-format", "json",
                      "--batch-size", "20")
    record = json.loads(re.findall(r"\| valid \| (\{.*\})", done.stdout + done.stderr)[-1])
    assert float(record["valid_accuracy"]) > 0.6 and float(record["valid_accuracy_low_noise"]) > 0.9
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(str(classifier(work))) == []


def test_classifier_free_guidance_follows_the_prompt(work):
    """A line begins with words of its kind, and goes on with them more often under guidance."""
    def agreement(done):
        found = hypotheses(done.stdout)
        lines = (work / "valid.txt").read_text().splitlines()
        kinds = {number: line.split()[0].rstrip("01234567") for number, line in enumerate(lines)}
        words = [word.startswith(kinds[number]) for number, group in found.items() for word in group[0][1].split()[1:]]
        return sum(words) / len(words)

    plain, guided = (agreement(generate(work, "--guidance-scale", scale, given="0:1")) for scale in ("1", "3"))
    unguided = agreement(generate(work, "--guidance-scale", "0", given="0:1"))
    assert guided > unguided + 0.05 and guided >= plain - 0.02, (unguided, plain, guided)


@pytest.mark.parametrize("options, message", [
    (["--classifier", "{work}/classifier/checkpoint_best.pt"], "--classifier-label belong together"),
    (["--classifier", "{work}/classifier/checkpoint_best.pt", "--classifier-label", "plant"], "choose one of .*fruit"),
    (["--classifier", "{work}/nowhere.pt", "--classifier-label", "tool"], "nowhere.pt cannot be read"),
    (["--classifier", "{work}/lm/checkpoint_last.pt", "--classifier-label", "tool"], "'diffusion_lm_tiny', which is"),
    (["--path", "{work}/classifier/checkpoint_best.pt"], "'latent_classifier_tiny', which this task does not serve"),
])
def test_what_cannot_lead_ends_in_one_line(work, options, message):
    one_line_error(generate(work, *(option.format(work=work) for option in options), check=False), message)


def test_the_study_measures_every_scale_once(work):
    def study(*scales, label="tool", check=True):
        words = [sys.executable, REPOSITORY / "scripts" / "study_guidance.py", work / "data" / "input0", "--path",
                 work / "lm" / "checkpoint_last.pt", "--classifier", classifier(work), "--label", label, "--text", work,
                 "--samples", "30", "--steps", "10", "--output", work / "study", "--scales", *scales]
        return subprocess.run([str(word) for word in words], check=check, capture_output=True, text=True)

    study("0")
    first = json.loads((work / "study.json").read_text())["scale 0"]
    done = study("0", "30")
    rows = json.loads((work / "study.json").read_text())
    assert set(rows) == {"scale 0", "scale 30", "held out"} and rows["scale 0"] == first
    assert rows["scale 30"]["label"] > first["label"] + 10 and rows["held out"]["label"] == 100
    assert all(row["perplexity"] > 1 and 0 < row["dist-2"] <= 1 for row in rows.values())
    assert len(first["texts"]) == 30 and "right on 100.0 % of valid" in done.stdout
    assert (work / "study.png").stat().st_size > 10000
    bad = study("0", label="plant", check=False)
    assert bad.returncode == 1 and "error: --label 'plant' is not in" in bad.stderr and "Traceback" not in bad.stderr


def test_the_recipe_runs_from_the_verses_to_led_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_WORDS", "10")
    small = ["--max-update", "3", "--batch-size", "8", "--cpu", "--num-workers", "0", "--warmup-updates", "2"]
    sizes = ["--save-interval-updates", "3", "--validate-interval-updates", "3"]
    for script, *arguments in (("prepare", "--workers", 1), ("lm", "--arch", "diffusion_lm_tiny", *small, *sizes),
                               ("train", "--arch", "latent_classifier_tiny", *small),
                               ("generate", "web", "--cpu", "--diffusion-steps", 3)):
        done = recipe("control", script, tmp_path, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = (tmp_path / "text" / "test.txt").read_text().splitlines()
    found = hypotheses((tmp_path / "generated-web.txt").read_text())
    assert len(found) == len(lines) and (tmp_path / "scores-web.json").exists()
    done = recipe("control", "generate", tmp_path)
    assert done.returncode != 0 and "usage: bash examples/control/generate.sh LABEL" in done.stderr
