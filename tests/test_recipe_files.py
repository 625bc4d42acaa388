"""What recipes keep, and what they tell the commands behind, with stand-ins for these."""

import os
import subprocess

import pytest
from helpers import REPOSITORY, write_stand_ins
from test_recipes import environment, recipe

# Each writes its words; the sentences of a generation depend on them.
STUBS = {
    "fairseq-generate": 'echo "H-0 $*"',
    "fairseq-train": 'echo "fairseq-train $*"',
    "python": 'echo "python $*" >>"$SAID"',
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "scontrol": "echo here",
    "torchrun": 'echo "torchrun $*"',
}


@pytest.fixture
def stubs(tmp_path):
    """An environment in which the commands are stand-ins; what python is told is in the file `said`."""
    folder = tmp_path / "stubs"
    write_stand_ins(folder, STUBS)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SAID": str(tmp_path / "said")}


def write(folder, *names, text="some"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(text)


def texts(folder, name="generated.txt"):
    return {path.name: path.read_text() for path in folder.glob(f"{name}*") if not path.name.endswith(".command")}


@pytest.fixture
def work(tmp_path):
    write(tmp_path / "work", "model.pt", "other.pt", "classifier.pt")
    write(tmp_path / "work/data-bin", "dict.txt", "test.bin", "test.idx", "train.bin", "train.idx", "preprocess.log")
    return tmp_path / "work"


def written(work, stubs, *options):
    """Generation by a recipe, that has written to generated.txt before."""
    call = f'source "{REPOSITORY}/examples/recipe.sh"; written "$WORK/generated.txt" "$WORK/data-bin" "$@"'
    words = ["bash", "-c", call, "recipe", "--path", f"{work}/model.pt:{work}/other.pt",
             f"--classifier={work}/classifier.pt", *options]
    done = subprocess.run(words, env=environment(work, **stubs), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("changed", ["model.pt", "other.pt", "classifier.pt", "data-bin/dict.txt", "data-bin/test.bin",
                                     "data-bin/train.idx"])
def test_text_of_another_file_is_kept_and_not_gone_on_with(work, stubs, changed):
    assert written(work, stubs) == ""
    first = (work / "generated.txt").read_text()
    assert first.startswith("H-0 ") and f"--resume-generation {work}/generated.txt" in first
    assert written(work, stubs) == "" and texts(work) == {"generated.txt": 2 * first}
    (work / changed).write_text("another")
    said = written(work, stubs)
    assert said == (f"{work}/generated.txt was made with other options or files: it is kept as "
                    f"{work}/generated.txt.1\n")
    assert texts(work) == {"generated.txt": first, "generated.txt.1": 2 * first}


def test_what_generation_does_not_read_changes_nothing(work, stubs):
    written(work, stubs)
    write(work / "data-bin", "train.bin", "preprocess.log", text="another")
    assert written(work, stubs) == "" and set(texts(work)) == {"generated.txt"}


def test_text_that_was_there_gets_the_next_free_number(work, stubs):
    write(work, "generated.txt", text="by hand")
    write(work, "generated.txt.1", text="earlier")
    assert f"it is kept as {work}/generated.txt.2\n" in written(work, stubs)
    assert f"it is kept as {work}/generated.txt.3\n" in written(work, stubs, "--seed", "2")
    found = texts(work)
    assert found["generated.txt.1"] == "earlier" and found["generated.txt.2"] == "by hand"
    assert "--seed 2" in found["generated.txt"] and "--seed" not in found["generated.txt.3"]
    # What it was made of goes with it.
    commands = [(work / f"generated.txt{number}.command").read_text() for number in ("", ".3")]
    assert "--seed 2" in commands[0] and "--seed" not in commands[1] and "model.pt" in commands[1]
    (work / "generated.txt").write_text("")
    assert written(work, stubs) == "" and set(texts(work)) == set(found)


def test_c4_writes_by_what_was_trained_last_and_goes_on(tmp_path, stubs):
    work, said = tmp_path / "work", tmp_path / "said"
    write(work, "averaged.pt", "sentencepiece.model")
    write(work / "data-bin/shard0", "dict.txt", "valid.bin")

    def generate(*options):
        said.unlink(missing_ok=True)
        done = recipe("c4", "generate", work, "0:8", *options, more=stubs)
        assert done.returncode == 0, done.stderr
        return said.read_text().splitlines()

    assert len(generate()) == 1, "without a checkpoint only scored"
    first = texts(work, "generated-0-8")["generated-0-8.txt"]
    assert f"--resume-generation {work}/generated-0-8.txt" in first
    write(work / "checkpoints", "checkpoint_last.pt")
    exported, scored = generate()
    assert exported.endswith(f"export_checkpoint.py --ema {work}/checkpoints/checkpoint_last.pt --output "
                             f"{work}/averaged.pt") and "evaluate_lm.py" in scored
    assert texts(work, "generated-0-8") == {"generated-0-8.txt": 2 * first}
    write(work, "averaged.pt", text="trained longer")
    generate()
    assert texts(work, "generated-0-8") == {"generated-0-8.txt": first, "generated-0-8.txt.1": 2 * first}


@pytest.mark.parametrize("gigabytes, options, share, shards", [
    (0, [], "0.001", "--shard-megabytes 2000"), (0.7, ["--workers", "1"], "0.001", "--shard-megabytes 2000"),
    (8, ["--shards=2"], "0.0001", "--shards=2"), (327, ["--valid", "0.1"], "2.44648e-06", "--shard-megabytes 2000")])
def test_c4_holds_out_a_share_that_fits_its_size(tmp_path, stubs, gigabytes, options, share, shards):
    for part in range(2):
        with open(tmp_path / f"c4 {part}.json.gz", "wb") as file:
            file.truncate(int(gigabytes * 5e8))
    write(tmp_path / "work/data-bin/shard0", "valid.idx")
    for inputs in ([tmp_path / f"c4 {part}.json.gz" for part in range(2)], [tmp_path / "c4 *.gz"]):
        (tmp_path / "said").unlink(missing_ok=True)
        done = recipe("c4", "prepare", tmp_path / "work", *inputs, *options, more=stubs)
        assert done.returncode == 0, done.stderr
        told = (tmp_path / "said").read_text()
        assert f" --valid {share} --test {share} " in told and shards in told and told.count(" --shard") == 1
        assert not options or told.endswith(f"{' '.join(options)}\n")


def test_c4_without_a_document_to_hold_out_is_one_line(tmp_path, stubs):
    write(tmp_path, "few.json")
    write(tmp_path / "work/data-bin/shard0", "train.idx")
    done = recipe("c4", "prepare", tmp_path / "work", tmp_path / "few.json", more=stubs)
    assert done.returncode == 1 and done.stderr == (
        f"error: no document came to valid: remove {tmp_path}/work/data-bin and corpus.json, and give --valid 0.05\n")
    assert recipe("c4", "prepare", tmp_path / "work", tmp_path / "few.json", "--valid=0", more=stubs).returncode == 0


def test_shards_of_other_options_are_kept(work, tmp_path, stubs):
    def generate(*options):
        more = {**stubs, "OUT": str(tmp_path / "out"), "RANK": "3", "WORLD_SIZE": "4"}
        done = recipe("slurm", "generate", work, work / "data-bin", "--path", work / "model.pt", *options, more=more)
        assert done.returncode == 0 and done.stdout == "", done.stderr
        return done.stderr

    assert generate() == generate() == ""
    once = (tmp_path / "out/shard0003.txt").read_text()
    assert "--num-shards 4 --shard-id 3" in once and once.count("H-0") == 2
    assert generate("--seed", "2").startswith(f"{tmp_path}/out/shard0003.txt was made with other options or files")
    (work / "model.pt").write_text("another")
    generate("--seed", "2")
    found = texts(tmp_path / "out", "shard")
    assert set(found) == {f"shard0003.txt{number}" for number in ("", ".1", ".2")} and found["shard0003.txt.1"] == once


@pytest.mark.parametrize("words, told", [
    (["data-bin", "--lr", "1"], "stubs/fairseq-train data-bin --lr 1"),
    (["examples/cpd/train.sh", "--batch-size", "32"], "--no-python bash examples/cpd/train.sh --batch-size 32")])
def test_the_slurm_job_trains_by_a_recipe_too(tmp_path, stubs, words, told):
    more = {**stubs, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "2"}
    done = recipe("slurm", "train", tmp_path, *words, more=more)
    assert done.returncode == 0 and done.stdout.startswith("torchrun --nnodes 2 --nproc-per-node 8 "), done.stderr
    assert done.stdout.endswith(f"{told}\n")
