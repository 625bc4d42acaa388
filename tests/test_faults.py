"""Training and generation that are killed, or find the disk full, lose nothing and end as if nothing had happened."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import PACKAGE, REPOSITORY, run_module, write_stand_ins
from test_cli import MODEL, TRAIN, checkpoint, generate, losses, one_line_error, work  # noqa: F401  a fixture
from test_distributed import torchrun
from test_merge_generations import merge

pytestmark = pytest.mark.slow

KILLS = 20
OPTIONS = [*TRAIN, "--timestep-sampler", "loss-second-moment", "--diffusion-timesteps", "40", "--disable-validation",
           "--save-interval-updates", "5", "--keep-interval-updates", "2", "--save-interval", "1000"]
# A process that kills itself in the midst of the n-th file that a function writes.
CUT_SHORT = """
import os, shutil, signal, sys, torch
owner, name, count = {owner}, "{name}", [0]
stock = getattr(owner, name)
def cut_short(*given, **options):
    stock(*given, **options)
    count[0] += 1
    if count[0] == {number}:
        given[1].truncate(given[1].tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, cut_short)
from fairseq_cli.train import cli_main
cli_main()
"""


def start(work, folder, updates, program=("-m", "fairseq_cli.train"), options=OPTIONS, **how):  # noqa: F811
    words = [sys.executable, *program, work / "bin", *options, "--max-update", updates, "--save-dir", folder,
             "--user-dir", PACKAGE]
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **how)


def whole_run(work, folder, updates, options=OPTIONS):  # noqa: F811
    done = run_module("train", work / "bin", *options, "--max-update", updates, "--save-dir", folder)
    return losses(done.stdout)


def weights(folder):
    state = torch.load(folder / "checkpoint_last.pt")
    return {**state["model"], **{f"optimizer {i} {name}": torch.as_tensor(value)
                                 for i, own in state["last_optimizer_state"]["state"].items()
                                 for name, value in own.items()}}


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


@pytest.mark.endurance
def test_killed_at_random_moments_training_ends_with_the_same_weights(work, tmp_path):  # noqa: F811
    updates, draw, kills = 600, random.Random(5), 0
    expected = whole_run(work, tmp_path / "whole", updates)
    while True:
        process = start(work, tmp_path / "killed", updates)
        found = {}
        for line in process.stdout:
            found.update(losses(line))
            if found and kills < KILLS and process.poll() is None:
                time.sleep(draw.uniform(0, 0.6))
                process.kill()
                kills += 1
                found = {**found, "killed": True}
                break
        rest = process.communicate()[0]
        found.update(losses(rest))
        if not found.pop("killed", False) or process.returncode == 0:
            break
    assert process.returncode == 0, rest[-2000:]
    print(f"{kills} kills")
    assert kills >= KILLS // 2
    assert found[updates] == expected[updates]
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("owner, name", [("torch", "save"), ("shutil", "copyfileobj")])
def test_killed_while_a_checkpoint_is_written(work, tmp_path, owner, name):  # noqa: F811
    """Half the file is on the disk; the interval's checkpoint is written first, and then copied to the last one."""
    whole_run(work, tmp_path / "whole", 18)
    program = ("-c", CUT_SHORT.format(owner=owner, name=name, number=2))
    process = start(work, tmp_path / "killed", 18, program)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 5
    assert min(whole_run(work, tmp_path / "killed", 18)) == 6
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(work, tmp_path):  # noqa: F811
    whole_run(work, tmp_path, 5)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    room = len(files["checkpoint_last.pt"]) // 2
    process = start(work, tmp_path, 12, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    said = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in said
    error = said.strip().splitlines()[-1]
    assert re.fullmatch(rf"error: checkpoint {tmp_path}/checkpoint_\d_10.pt cannot be written: File too large\. Those "
                        "before it are as they were: .*", error)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert max(whole_run(work, tmp_path, 12)) == 12


# The loss falls, so that all validations but the first are worse: that at update 18 is the last. At the ends of epochs,
# after 7 and 14 updates, a checkpoint is written without one.
PATIENCE = [*TRAIN, "--diffusion-timesteps", "40", "--maximize-best-checkpoint-metric", "--patience", "5",
            "--validate-interval-updates", "3", "--validate-interval", "1000"]


def counted(folder):
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)["extra_state"]["early_stopping"]


def test_killed_training_stops_early_where_it_would_have(work, tmp_path):  # noqa: F811
    whole = whole_run(work, tmp_path / "whole", 60, PATIENCE)
    process = start(work, tmp_path / "killed", 60, options=PATIENCE)
    for line in process.stdout:
        if 8 in losses(line):
            process.kill()
    assert process.wait() == -signal.SIGKILL
    assert counted(tmp_path / "killed")["num_runs"] == 1
    resumed = whole_run(work, tmp_path / "killed", 60, PATIENCE)
    assert min(resumed) == 8 and max(resumed) == max(whole) == 18
    assert counted(tmp_path / "killed") == counted(tmp_path / "whole") and counted(tmp_path / "whole")["num_runs"] == 5
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("processes", [1, 2])
def test_training_that_has_stopped_early_does_no_update_more(work, tmp_path, processes):  # noqa: F811
    options = [*PATIENCE, "--distributed-world-size", processes, "--ddp-backend", "legacy_ddp"]
    assert max(whole_run(work, tmp_path, 60, options)) == 18
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run_module("train", work / "bin", *options, "--max-update", 60, "--save-dir", tmp_path)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "had stopped early, after 5" in line]
    assert not losses(done.stdout) and len(said) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    longer = whole_run(work, tmp_path, 60, [*options, "--patience", 7])
    assert min(longer) == 19 and max(longer) == 24


def test_two_runs_make_the_same_checkpoint_whatever_the_workers(work, tmp_path):  # noqa: F811
    whole_run(work, tmp_path / "1", 20)
    again = [option if option != "0" or OPTIONS[place - 1] != "--num-workers" else "2"
             for place, option in enumerate(OPTIONS)]
    assert again != OPTIONS
    whole_run(work, tmp_path / "2", 20, again)
    assert_equal(weights(tmp_path / "1"), weights(tmp_path / "2"))


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as numbers:
        return [int(number) for number in numbers.read().split()]


@pytest.mark.endurance
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc to find a process's children in")
def test_torchrun_starts_again_after_a_rank_was_killed(work, tmp_path):  # noqa: F811
    torchrun(work / "bin", *OPTIONS, "--max-update", 20, "--save-dir", tmp_path / "whole")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 1,
                "--monitor-interval", 0.5, "-m", "fairseq_cli.train")
    process = start(work, tmp_path / "killed", 20, launcher)
    found, said = [], []
    for line in process.stdout:
        found += losses(line)
        said.append(line)
        if found == list(range(1, 9)):
            os.kill(children(process.pid)[1], signal.SIGKILL)
            found += [None]
    assert process.wait() == 0, "".join(said)[-3000:]
    resumed = found[found.index(None) + 1 :]
    assert resumed[-15:] == list(range(6, 21)), "training goes on after the checkpoint of update 5"
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


STUBS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "scontrol": '[[ $1 == show ]] && echo localhost || echo "$@" >>"$STUBS/requeued"',
}


@pytest.fixture
def slurm(tmp_path):
    """An environment in which srun runs its command here, and scontrol notes what is queued again."""
    stubs = tmp_path / "stubs"
    write_stand_ins(stubs, STUBS)
    path = os.pathsep.join([str(stubs), os.path.dirname(sys.executable), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "STUBS": str(stubs), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here",
            "SLURM_JOB_NUM_NODES": "1", "PROCESSES": "2", "PORT": "0", "OMP_NUM_THREADS": "1"}


@pytest.mark.endurance
def test_the_slurm_job_trains_and_is_queued_again_before_its_time_is_over(work, tmp_path, slurm):  # noqa: F811
    def job(updates):
        words = ["bash", REPOSITORY / "examples/slurm/train.sh", work / "bin", *OPTIONS, "--user-dir", PACKAGE,
                 "--save-dir", tmp_path / "ck", "--max-update", updates]
        return subprocess.Popen([str(word) for word in words], env=slurm, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, start_new_session=True)

    process = job(100000)
    for line in process.stdout:
        if 12 in losses(line):
            process.send_signal(signal.SIGUSR1)
        if "queued again" in line:
            break
    # SLURM ends a job that it has queued again; torchrun, which is told so, ends its processes.
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert (tmp_path / "stubs" / "requeued").read_text() == "requeue 7\n"
    reached = torch.load(tmp_path / "ck" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    process = job(reached + 2)
    said = process.communicate()[0]
    assert process.returncode == 0, said[-2000:]
    assert list(losses(said)) == [reached + 1, reached + 2]


GENERATE = ["--diffusion-steps", "20", "--batch-size", "8", "--candidates", "2", "--nbest", "2"]


@pytest.fixture(scope="module")
def written(work, tmp_path_factory):  # noqa: F811
    """What an uninterrupted process prints, merged."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "out").write_text(generate(work, *GENERATE).stdout)
    merge(folder / "out", "--output", folder / "whole", "--sentences", 101)
    return (folder / "whole").read_bytes()


def test_generation_that_is_killed_goes_on_where_it_was(work, tmp_path, written):  # noqa: F811
    file, draw, kills = tmp_path / "out", random.Random(3), 0
    file.touch()
    words = [sys.executable, "-m", "fairseq_cli.generate", work / "bin", *MODEL, "--path", checkpoint(work), "--cpu",
             *GENERATE, "--user-dir", PACKAGE, "--resume-generation", file]
    while True:
        before = file.read_bytes().count(b"\nH-")
        with file.open("ab") as output:
            process = subprocess.Popen([str(word) for word in words], stdout=output, stderr=subprocess.DEVNULL,
                                       env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"})
        aim = before + draw.randint(10, 60)
        while process.poll() is None and (kills == 6 or file.read_bytes().count(b"\nH-") < aim):
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        # Python's print writes a line at once: cut one, as a full buffer does.
        os.truncate(file, file.stat().st_size - draw.randint(0, 40))
    assert process.returncode == 0 and kills > 2
    merge(file, "--output", tmp_path / "whole", "--sentences", 101)
    assert (tmp_path / "whole").read_bytes() == written


def test_generation_by_torchrun_is_merged_to_what_one_process_writes(work, tmp_path, written):  # noqa: F811
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
                   "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--no-python",
             "bash", REPOSITORY / "examples/slurm/generate.sh", work / "bin", *MODEL, "--path", checkpoint(work),
             "--cpu", *GENERATE, "--num-workers", 2, "--user-dir", PACKAGE]
    shards = [tmp_path / f"shard{number:04d}.txt" for number in range(2)]
    for _ in range(2):
        done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        merge(*shards, "--output", tmp_path / "whole", "--sentences", 101)
        assert (tmp_path / "whole").read_bytes() == written
        # One shard is cut; the same command once more makes it whole.
        os.truncate(shards[1], shards[1].stat().st_size // 2)


def test_the_training_set_is_generated_in_shards_too(work):  # noqa: F811
    """And a shard that has no batch ends well."""
    for number, batch_size, count in ((0, 16, 80), (2, 1000, 0)):
        printed = generate(work, "--diffusion-steps", "2", "--gen-subset", "train", "--num-shards", "3", "--shard-id",
                           number, "--batch-size", batch_size).stdout
        assert len(re.findall("^H-", printed, re.M)) <= count and bool(count) == ("\nH-" in printed)


def test_a_file_of_other_options_is_refused_and_left_as_it_is(work, tmp_path):  # noqa: F811
    file = tmp_path / "out"
    file.write_text(generate(work, *GENERATE).stdout)
    before = file.read_bytes()
    for options, message in ((("--batch-size", "5"), "sentence .* is not where these options generate it"),
                             (("--resume-generation", tmp_path / "none"), "No such file")):
        done = generate(work, *GENERATE, "--resume-generation", file, *options, check=False)
        one_line_error(done, message)
    assert file.read_bytes() == before
