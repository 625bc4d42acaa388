"""Several processes train as one that takes as many batches an update, with every model, criterion and law of t."""

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers import PACKAGE, run_module
from test_cli import one_line_error, preprocess_pairs_and_lines

from diffusion_fairseq.models.training_pass import GRADIENT_PATHS

pytestmark = pytest.mark.slow
# Of which each process here is a copy: the host takes long to import.
IMPORTED = multiprocessing.get_context("forkserver")
IMPORTED.set_forkserver_preload(["diffusion_fairseq", "fairseq_cli.train"])

FAIRSCALE = find_spec("fairscale") is not None
UPDATES = 20
PAIRS = ("--task", "seq2seq_diffusion", "--max-source-positions", 16, "--max-target-positions", 12)
TEXT = ("--task", "diffusion_lm", "--tokens-per-sample", 12)
GENIE = (*PAIRS, "--arch", "genie_tiny", "--criterion", "diffusion_vlb")
LM = (*TEXT, "--arch", "diffusion_lm_tiny", "--criterion", "diffusion_anchor")
DDLM = (*TEXT, "--arch", "ddlm_tiny", "--masking", "span", "--criterion", "score_interpolation")
LOSS_AWARE = ("--diffusion-timesteps", 10, "--timestep-sampler", "loss-second-moment")
# Data folder and options; 13 batches an epoch, so that at its end a process has none, and computes one that does not
# count.
CASES = {
    "genie": ("bin", *GENIE),
    "genie loss-aware": ("bin", *GENIE, *LOSS_AWARE, "--timesteps-per-encoding", 2),
    "genie adaptive": ("bin", *GENIE, "--diffusion-timesteps", 60, "--adaptive-schedule-updates", 4),
    "genie longest": ("bin", *GENIE, "--length-model", "longest", "--condition-dropout", 0.2),
    "genie anchor": ("bin", *GENIE, "--criterion", "diffusion_anchor", "--parameterization", "noise"),
    "genie fixed embeddings": ("bin", *GENIE, "--criterion", "diffusion_anchor", "--detach", ",".join(GRADIENT_PATHS)),
    "diffuseq": ("bin", *PAIRS, "--arch", "diffuseq_tiny", "--noising", "partial", "--criterion", "diffusion_vlb"),
    "diffusion_lm": ("lm", *LM, *LOSS_AWARE),
    "ddlm time-warp": ("lm", *DDLM, "--timestep-sampler", "time-warp"),
    "ddlm gumbel": ("lm", *DDLM, "--timestep-sampler", "gumbel", "--dropout", 0.1),
    "cpd": ("lm", "--task", "cpd_pretrain", "--max-source-positions", 40, "--max-target-positions", 16,
            "--min-document-tokens", 3, "--arch", "genie_tiny", "--criterion", "diffusion_vlb"),
}
ALWAYS = ("genie loss-aware", "ddlm time-warp")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pairs, and lines of text, binarised."""
    return preprocess_pairs_and_lines(tmp_path_factory.mktemp("distributed"), 200, 21)


def options(work, name, save_dir, *more):
    data, *own = CASES[name]
    dropout = () if "--dropout" in own else ("--dropout", 0)
    return (work / data, *own, *dropout, "--optimizer", "adam", "--lr", 1e-3, "--batch-size", 16, "--cpu", "--seed", 7,
            "--log-format", "json", "--log-interval", 1, "--num-workers", 0, "--max-update", UPDATES,
            "--disable-validation", "--no-epoch-checkpoints", "--save-dir", save_dir, *more)


def torchrun(*arguments, program=("-m", "fairseq_cli.train"), check=True):
    """fairseq-train in two processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *program, *arguments,
             "--user-dir", PACKAGE]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 or not check, done.stderr[-3000:]
    return done


def run_process(log, environment, arguments):
    """fairseq-train as if started in this environment."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from fairseq_cli import train

    os.environ.update(environment)
    sys.argv = ["fairseq-train", *map(str, arguments), "--user-dir", str(PACKAGE)]
    torch.set_num_threads(1)
    train.cli_main()


def train(folder, processes, arguments):
    """fairseq-train in processes with the environment that torchrun gives them; what the first one printed."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_RUN_ID": "test",
                  "WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(IMPORTED.Process(target=run_process, args=(folder / f"log{rank}", environment, arguments)))
        started[-1].start()
    for rank, process in enumerate(started):
        process.join(600)
        assert process.exitcode == 0, (folder / f"log{rank}").read_text()[-3000:]
    return (folder / "log0").read_text()


def losses(log):
    """num_updates -> what is logged of an update."""
    found = [json.loads(line[line.index("{"):]) for line in log.splitlines() if "train_inner" in line]
    return {int(update["num_updates"]): float(update["loss"]) for update in found}


def assert_same_training(one, other):
    """Losses and, in the checkpoints, weights and what was learned of losses."""
    (log, folder), (other_log, other_folder) = one, other
    mine, theirs = losses(log), losses(other_log)
    assert list(mine) == list(theirs) == list(range(1, UPDATES + 1))
    assert max(abs(mine[update] - theirs[update]) for update in mine) <= 1e-4
    mine, theirs = (torch.load(where / "checkpoint_last.pt")["model"] for where in (folder, other_folder))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    return mine


@pytest.mark.parametrize("name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.endurance)
                                  for name in CASES])
def test_two_processes_train_as_one_with_twice_the_batches(work, tmp_path, name):
    alone = train(tmp_path / "1", 1, options(work, name, tmp_path / "1", "--update-freq", 2))
    both = train(tmp_path / "2", 2, options(work, name, tmp_path / "2"))
    learned = assert_same_training((alone, tmp_path / "1"), (both, tmp_path / "2"))
    assert len(set(losses(alone).values())) > UPDATES // 2
    tables = {"timesteps.counts", "schedule.log_snr"} & learned.keys()
    assert bool(tables) == any(option in ("loss-second-moment", "--adaptive-schedule-updates", "time-warp", "gumbel")
                               for option in CASES[name])


def test_a_process_that_has_a_batch_less_in_the_last_update_counts_the_others(work, tmp_path):
    # 15 batches an epoch: the last update has two passes of one process, and one and a filler of the other.
    small = ("--batch-size", 14, "--required-batch-size-multiple", 1)
    alone = train(tmp_path / "1", 1, options(work, "genie longest", tmp_path / "1", *small, "--update-freq", 4))
    both = train(tmp_path / "2", 2, options(work, "genie longest", tmp_path / "2", *small, "--update-freq", 2))
    assert_same_training((alone, tmp_path / "1"), (both, tmp_path / "2"))


@pytest.mark.parametrize("launcher", ["torchrun", "the host"])
def test_both_launchers_train_without_gpus(work, tmp_path, launcher):
    alone = train(tmp_path / "1", 1, options(work, "genie", tmp_path / "1", "--update-freq", 2))
    if launcher == "torchrun":
        done = torchrun(*options(work, "genie", tmp_path / "2"))
    else:
        done = run_module("train", *options(work, "genie", tmp_path / "2", "--distributed-world-size", 2))
    assert_same_training((alone, tmp_path / "1"), (done.stdout + done.stderr, tmp_path / "2"))


def test_a_process_that_the_host_has_started_fails_in_one_line(work, tmp_path):
    wrong = options(work, "genie", tmp_path, "--distributed-world-size", 2, "--timestep-sampler", "often")
    one_line_error(run_module("train", *wrong, check=False), "--timestep-sampler 'often' is unknown")


@pytest.mark.parametrize("given, said", [
    (["--ddp-backend", "fully_sharded"], "--ddp-backend fully_sharded is not served: .*--zero-sharding os"),
    pytest.param(["--ddp-backend", "legacy_ddp", "--zero-sharding", "os"], "--zero-sharding os needs fairscale: pip",
                 marks=pytest.mark.skipif(FAIRSCALE, reason="fairscale is there")),
    pytest.param(["--ddp-backend", "slowmo"], "--ddp-backend slowmo needs fairscale: pip",
                 marks=pytest.mark.skipif(FAIRSCALE, reason="fairscale is there")),
])
def test_sharding_that_is_not_served_is_refused(work, tmp_path, given, said):
    one_line_error(run_module("train", *options(work, "genie", tmp_path), *given, check=False), said)


@pytest.mark.skipif(not FAIRSCALE, reason="needs fairscale: pip install fairscale")
def test_a_sharded_optimizer_trains_and_resumes_as_a_whole_one(work, tmp_path):
    whole, sharded = (options(work, "genie", tmp_path / name, "--ddp-backend", "legacy_ddp") for name in "12")
    alone = train(tmp_path / "1", 2, whole)
    sharded += ("--zero-sharding", "os")
    half = losses(train(tmp_path / "2", 2, (*sharded, "--max-update", UPDATES // 2)))
    rest = losses(train(tmp_path / "2", 2, sharded))
    mine, theirs = losses(alone), {**half, **rest}
    assert list(half)[-1] == UPDATES // 2 and mine.keys() == theirs.keys()
    assert max(abs(mine[update] - theirs[update]) for update in mine) <= 1e-4


SPOILED = """
import torch
from fairseq_cli.train import cli_main
import diffusion_fairseq
from diffusion_fairseq.criterions.vlb import DiffusionVLBCriterion as Criterion
stock, passes = Criterion.forward, [0]
def forward(self, model, sample, reduce=True):
    loss, size, log = stock(self, model, sample, reduce)
    passes[0] += 1
    return loss * (torch.nan if torch.distributed.get_rank() == 1 and passes[0] == 2 else 1), size, log
Criterion.forward = forward
cli_main()
"""


@pytest.mark.parametrize("skip", [False, True])
def test_all_processes_name_the_bad_batch_of_one(work, tmp_path, skip):
    """And none of them learns from it."""
    program = tmp_path / "spoiled.py"
    program.write_text(SPOILED)
    given = options(work, "genie", tmp_path / "ck", *(["--skip-bad-batches"] if skip else []))
    done = torchrun(*given, program=[program], check=skip)
    said = re.findall(r"update 2: the loss is not finite, in the batch of the sentences \(counted from 0\) "
                      r"([\d, ]+)[.:]", done.stdout + done.stderr)
    assert len(set(said)) == 1 and len(said[0].split()) == 16
    assert done.stderr.count("Traceback") == (0 if skip else 1), "torchrun's own alone"
    if skip:
        assert max(losses(done.stdout + done.stderr)) == UPDATES
    else:
        assert done.returncode != 0 and re.search(r"^(\[rank\d\]: )?error: update 2", done.stderr, re.M)
        assert max(losses(done.stdout + done.stderr)) == 1 and not (tmp_path / "ck" / "crash.pt").exists()
