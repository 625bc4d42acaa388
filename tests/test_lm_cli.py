"""The whole road of a language model through fairseq's commands: preprocess, train, resume, generate, interactive."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import torch
from helpers import PACKAGE, run_module
from test_cli import WORDS, assert_same, hypotheses, losses, one_line_error

pytestmark = pytest.mark.slow

TASK = ["--task", "diffusion_lm", "--tokens-per-sample", "16"]
TRAIN = [*TASK, "--arch", "diffusion_lm_tiny", "--optimizer", "adam", "--lr", "3e-3", "--batch-size", "32", "--cpu",
         "--log-format", "json", "--log-interval", "1", "--seed", "7", "--num-workers", "0"]
# How the two checkpoints are trained: lines, all positions noised; blocks, spans of which are given.
LINES = ["--criterion", "diffusion_anchor"]
GAPS = ["--criterion", "diffusion_vlb", "--sample-break-mode", "none", "--given-tokens", "clean", "--masking", "span"]
BLOCKS = ["--sample-break-mode", "none"]


def write_lines(path, count, seed):
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 8))) for _ in range(count)]
    path.write_text("".join(line + "\n" for line in lines))
    return lines


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Binarised lines, of which one of the test set is empty and one too long, and two trained checkpoints."""
    folder = tmp_path_factory.mktemp("lm")
    for split, count in (("train", 200), ("valid", 13), ("test", 29)):
        lines = write_lines(folder / split, count, seed=count)
    lines[17], lines[20] = "", " ".join(WORDS)
    (folder / "test").write_text("".join(line + "\n" for line in lines))
    run_module("preprocess", "--only-source", "--trainpref", folder / "train", "--validpref", folder / "valid",
               "--testpref", folder / "test", "--destdir", folder / "bin", plugin=False)
    with open(folder / "bin" / "dict.txt", "a") as dictionary:
        dictionary.write("<mask> 0\n")
    for name, options in (("lines", LINES), ("gaps", GAPS)):
        run_module("train", folder / "bin", *TRAIN, *options, "--save-dir", folder / name, "--max-update", "90",
                   "--disable-validation", "--no-epoch-checkpoints")
    return folder


def checkpoint(work, name="lines"):
    return work / name / "checkpoint_last.pt"


def generate(work, *options, name="lines", check=True):
    return run_module("generate", work / "bin", *TASK, "--path", checkpoint(work, name), "--cpu",
                      "--diffusion-steps", "8", *options, check=check)


def interactive(work, text, *options, name="lines"):
    done = run_module("interactive", work / "bin", *TASK, "--path", checkpoint(work, name), "--cpu",
                      "--diffusion-steps", "8", *options, stdin=text)
    return [hypothesis for _, found in sorted(hypotheses(done.stdout).items()) for _, hypothesis in found]


def lines_of(work):
    return [line.split()[:15] for line in (work / "test").read_text().split("\n")[:-1]]



def printed(kind, output):
    """id -> words of the lines of this kind."""
    return {int(i): text.split() for i, text in re.findall(rf"^{kind}-(\d+)\t(.*)$", output, re.M)}


def test_every_sentence_gets_a_text_of_its_own(work):
    done = generate(work)
    found, prompts = hypotheses(done.stdout), printed("S", done.stdout)
    assert printed("T", done.stdout) == dict(enumerate(lines_of(work)))
    assert sorted(found) == list(range(29)) and "1 of 29 lines cut to 16 tokens" in done.stdout + done.stderr
    assert all(set(prompt) == {"<mask>"} for prompt in prompts.values())
    assert len({score for (score, _), in found.values()}) == 29, "equal prompts have made equal texts"
    assert all(len(found[i][0][1].split()) <= len(prompts[i]) for i in found)
    assert "<mask>" not in "".join(found[i][0][1] for i in found)


@pytest.mark.parametrize("name, options", [
    ("lines", ["--solver", "ddpm"]), ("lines", ["--given-positions", "0:2", "--solver", "ddim", "--clamping"]),
    ("lines", ["--prompt-length", "10", "--exit-patience", "2", "--clamping"]),
    ("gaps", [*BLOCKS, "--given-positions", "0:3,8:10"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_the_same_text_whatever_the_batch(work, name, options):
    together = hypotheses(generate(work, *options, "--batch-size", "64", name=name).stdout)
    other = ["--batch-size", "1"] if name == "gaps" else ["--max-tokens", "90"]
    assert_same(together, hypotheses(generate(work, *options, *other, name=name).stdout))


def test_another_seed_and_another_candidate_are_other_texts(work):
    first = hypotheses(generate(work, "--candidates", "3", "--nbest", "3").stdout)
    second = hypotheses(generate(work, "--candidates", "3", "--nbest", "3", "--seed", "2").stdout)
    assert sum(len(set(found)) == 3 for found in first.values()) > 25
    assert sum(first[i] != second[i] for i in first) > 25


@pytest.mark.parametrize("name, options", [("lines", []), ("gaps", BLOCKS)])
def test_given_words_are_kept(work, name, options):
    done = generate(work, *options, "--given-positions", "0:2,5:6", name=name)
    found, prompts = hypotheses(done.stdout), printed("S", done.stdout)
    assert len(found) == len(prompts) > 10
    for i, prompt in prompts.items():
        words, given = found[i][0][1].split(), [word for word in prompt if word != "<mask>"]
        # An end of sentence among the given tokens of a block is not printed.
        first = (prompt + ["<mask>"]).index("<mask>")
        assert first == min(2, len(lines_of(work)[i])) if name == "lines" else first <= 2
        assert words[:first] == given[:first] and set(given) <= set(words), (i, prompt, words)


def test_prompts_of_ten_positions(work):
    done = generate(work, "--prompt-length", "10", "--given-positions", "0:2")
    prompts, found = printed("S", done.stdout), hypotheses(done.stdout)
    assert sorted(found) == list(range(29)) and not printed("T", done.stdout)
    for i, line in enumerate(lines_of(work)):
        given = line[:2]
        assert prompts[i] == given + ["<mask>"] * (10 - len(given))
        words = found[i][0][1].split()
        assert words[: len(given)] == given and len(words) <= 10


def test_generation_without_the_length_of_training_takes_the_models(work):
    assert_same(hypotheses(generate(work).stdout), hypotheses(generate(work, "--tokens-per-sample", "64").stdout))


def test_interactive_fills_gaps_and_continues(work):
    text = "word1 <mask> <mask> word5\nword3 word4\n\nword7 nosuchword <mask>\n"
    gap, prefix, free, unknown = interactive(work, text, "--prompt-length", "9")
    assert gap.startswith("word1 ") and gap.endswith(" word5") and "<mask>" not in gap
    assert prefix.startswith("word3 word4") and len(prefix.split()) <= 9 and len(free.split()) <= 9
    assert unknown.startswith("word7 <unk>")
    line, = interactive(work, "word1 <mask> <mask> word5\n", name="gaps")
    assert line.startswith("word1 ") and line.endswith(" word5") and "<mask>" not in line
    several = interactive(work, "word3 word4\n", "--candidates", "3", "--nbest", "3", *BLOCKS, name="gaps")
    assert len(set(several)) == 3 and all(one.startswith("word3 word4") for one in several)


def test_interactive_gives_the_same_text_in_any_order(work):
    lines = ["word1 <mask> word5", "word3", "word9 word8 <mask> <mask>"]
    first = interactive(work, "".join(line + "\n" for line in lines), "--buffer-size", "1")
    again = interactive(work, "".join(line + "\n" for line in reversed(lines)), "--buffer-size", "3",
                        "--batch-size", "2")
    assert first == again[::-1]


def test_early_exit_prints_the_steps_it_used(work):
    done = generate(work, "--exit-patience", "2", "--clamping", "--print-step", "--solver", "ddim",
                    "--diffusion-steps", "40")
    mean = re.search(r"steps used: mean ([\d.]+) of 40, 29 hypotheses", done.stdout + done.stderr)
    assert float(mean[1]) < 40 and len(re.findall(r"^I-\d+\t\d+$", done.stdout, re.M)) == 29


def test_validation_measures_rounding_and_the_embeddings(work):
    done = run_module("validate", work / "bin", *TASK, "--criterion", "diffusion_anchor", "--path", checkpoint(work),
                      "--valid-subset", "test", "--cpu", "--log-format", "json", "--batch-size", "8")
    record = json.loads(re.findall(r"\| test \| (\{.*\})", done.stdout + done.stderr)[-1])
    assert {"test_mse", "test_anchor", "test_prior", "test_embedding_norm", "test_embedding_nearest",
            "test_embedding_rank"} <= set(record)
    assert 0.9 <= float(record["test_accuracy_x0"]) <= 1 and 0 < float(record["test_accuracy"]) <= 1


@pytest.mark.parametrize("options", [LINES, GAPS], ids=["lines", "gaps"])
def test_killed_training_resumes_and_ends_as_if_nothing_had_happened(work, tmp_path, options):
    options = [*TRAIN, *options, "--max-update", "24", "--diffusion-timesteps", "40", "--disable-validation",
               "--timestep-sampler", "loss-second-moment", "--batch-size", "16"]
    whole = losses(run_module("train", work / "bin", *options, "--save-dir", tmp_path / "whole").stdout)
    # Saved at update 10, in the middle of an epoch, and not at its end; killed well before 20.
    command = [sys.executable, "-m", "fairseq_cli.train", str(work / "bin"), *map(str, options), "--user-dir",
               str(PACKAGE), "--save-dir", str(tmp_path / "killed"), "--save-interval-updates", "10",
               "--save-interval", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in process.stdout:
        if '"num_updates": "13"' in line:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = losses(run_module("train", work / "bin", *options, "--save-dir", tmp_path / "killed").stdout)
    assert min(resumed) == 11 and max(resumed) == 24
    for update, loss in resumed.items():
        assert math.isclose(loss, whole[update], abs_tol=1e-4), update


@pytest.mark.parametrize("options", [
    ["--bf16", *GAPS],
    ["--length-model", "longest", "--update-freq", "2", "--parameterization", "noise", *LINES],
    ["--length-model", "fixed", "--padding-in-mean", "--noise-schedule", "pw_lin", "--store-ema", *LINES],
    ["--rounding-weight", "1", "--detach", "aim,input", "--label-smoothing", "0.1", *LINES],
    ["--adaptive-schedule-updates", "2", "--diffusion-timesteps", "60", "--timesteps-per-encoding", "2", *LINES],
    ["--num-batch-buckets", "2", "--max-tokens", "400", "--masking", "mixed", "--given-tokens", "clean", *LINES],
], ids=lambda o: o[0])
def test_training_modes(work, tmp_path, options):
    done = run_module("train", work / "bin", *TRAIN, *options, "--save-dir", tmp_path, "--max-update", "8",
                      "--no-epoch-checkpoints")
    found = losses(done.stdout)
    assert max(found) == 8 and all(math.isfinite(loss) for loss in found.values())
    assert '"valid_loss"' in done.stdout
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(str(tmp_path / "checkpoint_last.pt")) == []
    written = run_module("generate", work / "bin", *TASK, "--path", tmp_path / "checkpoint_last.pt", "--cpu",
                         "--diffusion-steps", "4", "--given-positions", "0:1")
    assert len(hypotheses(written.stdout)) == 29


def test_training_learns_which_words_there_are(work, tmp_path):
    done = run_module("train", work / "bin", *TRAIN, *LINES, "--save-dir", tmp_path, "--max-update", "150",
                      "--disable-validation", "--no-save")
    found = losses(done.stdout)
    first, last = (sum(found[update] for update in updates) / 10 for updates in (range(1, 11), range(141, 151)))
    assert last < 0.5 * first, (first, last)


def test_fine_tuning_at_another_length(work, tmp_path):
    options = [*TRAIN, *LINES, "--tokens-per-sample", "24", "--max-update", "4", "--disable-validation"]
    log = run_module("train", work / "bin", *options, "--save-dir", tmp_path, "--finetune-from-model",
                     checkpoint(work)).stdout
    assert "weights of other lengths taken over: positions.weight 16 -> 24" in log and max(losses(log)) == 4


@pytest.mark.parametrize("command, options, message", [
    ("interactive", ["--given-positions", "0:1"], "--given-positions is of the texts of a split: put a mask token"),
    ("eval_lm", [], "fairseq-eval-lm scores from left to right.*evaluate_bound.py"),
])
def test_commands_refuse_what_they_cannot_do_with_a_language_model(work, command, options, message):
    done = run_module(command, work / "bin", *TASK, "--path", checkpoint(work), "--cpu", *options, stdin="a\n",
                      check=False)
    one_line_error(done, message)


@pytest.mark.parametrize("options, message", [
    (["--given-positions", "3"], "--given-positions: '3' are no positions"),
    (["--prompt-length", "17"], r"--prompt-length must be from 2 to --tokens-per-sample \(16\), got 17"),
    (["--prompt-length", "20", "--tokens-per-sample", "64"], "--prompt-length 20 exceeds the 16 positions"),
    (["--diffusion-steps", "2001"], "--diffusion-steps 2001 exceeds the 2000"),
    (["--max-len-b", "4"], "--max-len-a, --max-len-b: this model writes as many tokens as its prompt has places"),
    (["--length-beam", "2"], "--length-beam needs a model trained with --length-model predicted"),
    (["--gen-subset", "holdout"], "holds no holdout"),
    (["--task", "seq2seq_diffusion", "--source-lang", "src"], "holds no pair of languages"),
    (["--task", "cpd_pretrain"], "fills prompts and cannot run under .*: pass --task diffusion_lm"),
])
def test_bad_options_of_generation_end_in_one_line(work, options, message):
    task = [] if "--task" in options else TASK
    done = run_module("generate", work / "bin", *task, "--path", checkpoint(work), "--cpu", *options, check=False)
    one_line_error(done, message)


@pytest.mark.parametrize("options, message", [
    (["--masking", "magic"], "--masking 'magic' is unknown"),
    (["--length-model", "predicted"], "--length-model 'predicted' is unknown: choose one of given, fixed, longest"),
    (["--arch", "genie_tiny"], "reads a source and cannot run under .*: pass --task seq2seq_diffusion"),
    (["--arch", "transformer"], "architecture 'transformer'.*it takes .*diffusion_lm_tiny"),
    (["--prompt-length", "8", "--max-update", "1"], "--prompt-length makes prompts without references"),
])
def test_bad_options_of_training_end_in_one_line(work, tmp_path, options, message):
    done = run_module("train", work / "bin", *TRAIN, *LINES, "--save-dir", tmp_path, "--max-update", "1", *options,
                      check=False)
    one_line_error(done, message)


def test_a_language_model_under_the_task_of_pairs_ends_in_one_line(work, tmp_path):
    for side in ("src", "tgt"):
        (tmp_path / f"dict.{side}.txt").write_bytes((work / "bin" / "dict.txt").read_bytes())
    for task in ([], ["--task", "seq2seq_diffusion"]):
        done = run_module("train", tmp_path, *TRAIN[4:], *LINES, *task, "--source-lang", "src", "--target-lang", "tgt",
                          "--save-dir", tmp_path, "--max-update", "1", check=False)
        one_line_error(done, "fills prompts and cannot run under .*: pass --task diffusion_lm")
