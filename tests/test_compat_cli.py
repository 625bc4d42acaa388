"""The mends at work in the host's own commands, with a stock transformer."""

import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import PACKAGE, REPOSITORY, run_module
from hostile import pickled_calls, program

pytestmark = pytest.mark.slow

COUNTS = {"train": 203, "valid": 21, "test": 101, "short": 5}
STOCK = (
    *("--task", "translation", "--arch", "transformer_tiny", "--encoder-layers", 1, "--decoder-layers", 1),
    *("--optimizer", "adam", "--lr", "0.01", "--max-tokens", 200, "--cpu", "--no-epoch-checkpoints"),
    *("--log-format", "simple"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with a binarised toy corpus."""
    directory = tmp_path_factory.mktemp("stock")
    draw = random.Random(0)
    for name, count in COUNTS.items():
        for side in ("src", "tgt"):
            lines = [
                " ".join(f"w{draw.randrange(30)}" for _ in range(draw.randint(2, 9))) for _ in range(count)
            ]
            (directory / f"{name}.{side}").write_text("\n".join(lines) + "\n")
    run_module(
        "preprocess",
        *("-s", "src", "-t", "tgt", "--joined-dictionary", "--destdir", directory / "bin"),
        *("--trainpref", directory / "train", "--validpref", directory / "valid"),
        *("--testpref", f"{directory}/test,{directory}/short"),
    )
    return directory


@pytest.fixture(scope="module")
def trained(work):
    """A checkpoint of three updates, in mid-epoch, with everything a stock run puts into it."""
    train(work, work / "run", "--max-update", 3, "--eval-bleu", "--eval-bleu-args", '{"beam": 1}')
    return work / "run/checkpoint_last.pt"


def train(work, directory, *more, **how):
    return run_module("train", work / "bin", *STOCK, "--save-dir", directory, *more, **how)


def generate(work, path, *more, **how):
    return run_module("generate", work / "bin", "--path", path, "--beam", 1, "--cpu", *more, **how)


def interactive(work, path, *more, **how):
    where = ("-s", "src", "-t", "tgt", "--path", path, "--beam", 1, "--cpu")
    return run_module("interactive", work / "bin", *where, *more, stdin="w1 w2\nw3\n", **how)


def resume(work, path, *more, **how):
    return train(work, path.parent, "--max-update", 5, *more, **how)


def hypotheses(output):
    return sorted(int(number) for number in re.findall(r"^H-(\d+)\t", output, re.MULTILINE))


def test_training_is_resumed(work, trained, tmp_path):
    checkpoint = shutil.copy(trained, tmp_path / "checkpoint_last.pt")
    done = resume(work, checkpoint)
    assert "@ 3 updates" in done.stdout + done.stderr
    assert torch.load(checkpoint)["optimizer_history"][-1]["num_updates"] == 5


@pytest.mark.parametrize("subset, count", [("test", COUNTS["test"]), ("test1", COUNTS["short"])])
def test_no_sentence_is_lost(work, trained, subset, count):
    done = generate(work, trained, "--gen-subset", subset)
    assert hypotheses(done.stdout) == list(range(count))


def test_interactive_answers_each_line(work, trained):
    assert hypotheses(interactive(work, trained).stdout) == [0, 1]


def test_validation_counts_every_sentence(work, trained):
    common = ("--path", trained, "--task", "translation", "--cpu")
    losses = set()
    for size in (("--max-tokens", 100), ("--batch-size", 1)):
        done = run_module("validate", work / "bin", *common, *size)
        losses.add(re.findall(r"\| loss ([\d.]+)", done.stdout + done.stderr)[-1])
    assert len(losses) == 1


@pytest.mark.parametrize("command", [generate, interactive, resume])
@pytest.mark.parametrize("what", ["system", "system in a Namespace", "eval", "a program as option"])
def test_hostile_checkpoint_is_refused(work, trained, tmp_path, command, what):
    marker, checkpoint = tmp_path / "marker", tmp_path / "checkpoint_last.pt"
    state = torch.load(trained)
    if what in pickled_calls(marker):
        state["extra_state"]["payload"] = pickled_calls(marker)[what]
    else:
        state["cfg"]["model"].adaptive_softmax_cutoff = program(marker)
    torch.save(state, checkpoint)
    done = command(work, checkpoint, check=False)
    assert not marker.exists()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.findall(r"^error: .*", done.stderr, re.MULTILINE) == [done.stderr.strip().splitlines()[-1]]
    assert f"error: checkpoint {checkpoint} refused: it holds " in done.stderr


@pytest.mark.parametrize("command", [generate, resume])
def test_truncated_checkpoint_is_named(work, trained, tmp_path, command):
    checkpoint = tmp_path / "checkpoint_last.pt"
    checkpoint.write_bytes(trained.read_bytes()[:5000])
    done = command(work, checkpoint, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: checkpoint {checkpoint} cannot be read" in done.stderr


def test_checkpoint_of_another_size_is_named(work, trained, tmp_path):
    checkpoint = shutil.copy(trained, tmp_path / "checkpoint_last.pt")
    done = resume(work, checkpoint, "--encoder-ffn-embed-dim", 32, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: checkpoint {checkpoint} does not fit this model" in done.stderr


@pytest.mark.parametrize(
    "flags",
    [("--ddp-backend", "pytorch_ddp", "--distributed-world-size", 2), ("--ddp-backend", "legacy_ddp")],
    ids=["pytorch_ddp", "legacy_ddp without world size"],
)
def test_torchrun_trains_and_resumes_on_the_cpu(work, tmp_path, flags):
    for updates in (2, 4):
        done = torchrun(work, *flags, "--save-dir", tmp_path, "--max-update", updates)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (done.stdout + done.stderr).count("done training") == 1
        state = torch.load(tmp_path / "checkpoint_last.pt")
        assert state["cfg"]["distributed_training"]["distributed_world_size"] == 2
        assert state["optimizer_history"][-1]["num_updates"] == updates


def torchrun(work, *more):
    launcher = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        2,
        "-m",
        "fairseq_cli.train",
    )
    flags = ("--user-dir", PACKAGE, "--distributed-backend", "gloo", *more)
    command = [sys.executable, *launcher, work / "bin", *STOCK, *flags]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)


def test_ema_buckets_and_bf16_train_and_resume(work, tmp_path):
    flags = ("--store-ema", "--ema-fp32", "--num-batch-buckets", 4, "--bf16")
    norms = ("--encoder-normalize-before", "--decoder-normalize-before")
    for updates in (2, 4):
        train(work, tmp_path, *flags, *norms, "--max-update", updates)
        state = torch.load(tmp_path / "checkpoint_last.pt")
        assert state["extra_state"]["ema"].keys() == state["model"].keys()
        assert "decoder.layer_norm.weight" in state["model"]
        assert state["cfg"]["common"]["bf16"] and not state["cfg"]["common"]["tpu"]


def test_a_process_that_prefetches_ends_well():
    script = """
import torch
from fairseq.data import iterators
import diffusion_fairseq

class Endless:
    def __len__(self):
        return 10**9

    def __iter__(self):
        return iter(lambda: torch.ones(200, 200).exp().sum(), None)

next(iterators.BufferedIterator(10**9, Endless()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
