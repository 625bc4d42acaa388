"""The recipes, from the distributor's layout to scores, on a stand-in and at other sizes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
from prepare_kjvweb import EXAMPLE, read_archive  # noqa: E402, I001
from prepare_pairs import LAYOUTS  # noqa: E402
from test_data_translation import made, write_indexes  # noqa: E402

pytestmark = pytest.mark.slow
SMALL = ["--arch", "genie_tiny", "--batch-size", "16", "--update-freq", "1", "--max-tokens", "4000",
         "--max-update", "6", "--warmup-updates", "2", "--total-num-update", "6", "--save-interval-updates", "3",
         "--disable-validation", "--cpu"]
BASELINE_SIZES = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in (
    "embed-dim=32", "ffn-embed-dim=32", "layers=1", "attention-heads=2")]
LSTM_SIZES = ["--encoder-embed-dim=32", "--decoder-embed-dim=32", "--decoder-out-embed-dim=32"]
SYSTEMS = ("transformer", "lstm", "nat", "inat", "cmlm", "levenshtein", "insertion")


@pytest.fixture(scope="module")
def verses():
    pairs = read_archive(EXAMPLE / "kjvweb.tar.xz", EXAMPLE / "SHA256SUMS")
    return {split: found[:count] for (split, found), count in zip(pairs.items(), (2000, 40, 24))}


def stand_in(folder, layout, verses):
    for split, names in zip(("train", "valid", "test"), layout):
        for side, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("".join(pair[side] + "\n" for pair in verses[split]), encoding="utf-8")


def environment(work, **more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "WORK": str(work), "OMP_NUM_THREADS": "1", **more}


def recipe(name, script, work, *arguments, more=(), **options):
    words = ["bash", REPOSITORY / "examples" / name / f"{script}.sh", *map(str, arguments)]
    return subprocess.run(words, env=environment(work, **dict(more)), text=True, capture_output=True, timeout=600,
                          **options)


@pytest.mark.parametrize("name", ["xsum", "cnndm", "gigaword"])
def test_recipe_runs_from_raw_files_to_scores(tmp_path, verses, name):
    layout = [files for files in LAYOUTS[name] if isinstance(files, tuple)][-1]
    if name == "cnndm":  # its summaries have sentences, which GLGE's ROUGE-L tells apart
        verses = {split: [(source, f"<t> {target} </t> <t> {source} </t>") for source, target in pairs]
                  for split, pairs in verses.items()}
    stand_in(tmp_path / "raw", layout, verses)
    work = tmp_path / "work"
    steps = (("prepare", tmp_path / "raw", "--vocabulary", 500, "--workers", 1), ("train", *SMALL),
             ("generate", "--cpu", "--diffusion-steps", 2, "--candidates", 2, "--nbest", 2, "--batch-size", 8))
    for script, *arguments in steps:
        done = recipe(name, script, work, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {"rougeL", "glgeL"} <= json.loads((work / "scores.json").read_text())["systems"]["model"].keys()
    assert ("\u2581[x_sep] " in (work / "data-bin/dict.tgt.txt").read_text(encoding="utf-8")) == (name == "cnndm")
    hypotheses = [line for line in (work / "generated.txt").read_text().splitlines() if line.startswith("H-")]
    assert len(hypotheses) == 2 * 24
    if name == "gigaword":  # goes on where it was interrupted, and begins anew with other options
        whole = (work / "generated.txt").read_bytes()
        (work / "generated.txt").write_bytes(whole[: len(whole) // 2])
        script, *arguments = steps[-1]
        assert re.search("[12] of 3 batches are there", recipe(name, script, work, *arguments).stderr)
        again = (work / "generated.txt").read_text().splitlines()
        assert [line for line in again if line.startswith("H-")] == hypotheses
        assert "0 of 3 batches are there" in recipe(name, script, work, *arguments, "--seed", 2).stderr
        assert [line for line in (work / "generated.txt").read_text().splitlines()
                if line.startswith("H-")] not in ([], hypotheses, 2 * hypotheses)


def test_the_paraphrase_recipe_runs_from_a_table_of_questions_to_scores(tmp_path, verses):
    rows = ["id\tquestion1\tquestion2\tis_duplicate"]
    rows += ["\t".join([str(number), *(text.replace('"', "") for text in pair), "1"])
             for number, pair in enumerate(verses["train"][:400])]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/quora_duplicate_questions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    sizes = ["--arch", "diffuseq_tiny", *SMALL[2:]]
    for script, *arguments in (("prepare", tmp_path / "raw", "--vocabulary", 500, "--workers", 1), ("train", *sizes),
                               ("generate", "--cpu", "--diffusion-steps", 2, "--candidates", 2, "--nbest", 2)):
        done = recipe("qqp", script, tmp_path / "work", *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "self-BLEU" in done.stdout and (tmp_path / "work/scores.json").exists()


@pytest.mark.parametrize("dictionaries, architecture", [
    ([], "diffuseq_tiny"),
    pytest.param(["--separate-dictionaries"], "genie_tiny", marks=pytest.mark.endurance)])
def test_the_translation_recipe_runs_from_indexes_to_scores(tmp_path, dictionaries, architecture):
    packages = made(60)
    indexes = write_indexes(tmp_path / "indexes", packages, packages)
    work = tmp_path / "work"
    for script, *arguments in (
            ("prepare", indexes, "--vocabulary", 300, "--workers", 1, *dictionaries),
            ("train", "--arch", architecture, *SMALL[2:]),
            ("generate", "--cpu", "--diffusion-steps", 2, "--candidates", 2, "--nbest", 2)):
        done = recipe("translation", script, work, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "copy of the source" in done.stdout and " chrF " in done.stdout and (work / "scores.json").exists()
    source, target = ((work / f"data-bin/dict.{side}.txt").read_text() for side in ("src", "tgt"))
    assert (source == target) == (not dictionaries)
    done = recipe("baselines", "train", work, "transformer", work, *BASELINE_SIZES, "--max-update", 2, "--max-tokens",
                  500, "--cpu", "--disable-validation")
    assert done.returncode == 0, done.stderr[-2000:]
    done = recipe("baselines", "generate", work, "transformer", work, "--cpu", "--max-len-b", 10)
    assert done.returncode == 0 and "\ntransformer " in done.stdout, done.stderr[-2000:]


def test_the_debsum_recipe_trains_a_model_that_copies(tmp_path, verses):
    work = tmp_path / "work"
    stand_in(work / "text", [(f"{split}.src", f"{split}.tgt") for split in ("train", "valid", "test")], verses)
    binarise = [sys.executable, REPOSITORY / "scripts/binarise.py", work, "--vocabulary", "500", "--workers", "1"]
    subprocess.run(binarise, check=True, capture_output=True)
    for script, *arguments in (("train", "--arch", "genie_tiny", "--max-update", 2, "--max-tokens", 500, "--cpu"),
                               ("generate", "--cpu", "--diffusion-steps", 2, "--candidates", 2, "--nbest", 2)):
        done = recipe("debsum", script, work, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert torch.load(work / "averaged.pt", weights_only=True)["cfg"]["model"]["copy_source"]
    assert "copy of the source" in done.stdout and (work / "scores.json").exists()


def test_the_pre_training_recipe_runs_from_text_to_averaged_weights(tmp_path, verses):
    text, work = tmp_path / "text.txt", tmp_path / "work"
    documents = [" ".join(source for source, _ in verses["train"][first : first + 8]) for first in range(0, 2000, 8)]
    text.write_text("\n\n".join(documents), encoding="utf-8")
    steps = (("prepare", "--documents", "blank", text, "--vocabulary", 500, "--workers", 1),
             ("train", "--tokens-per-sample", 64, "--max-source-positions", 64, "--max-target-positions", 32, *SMALL))
    for script, *arguments in steps:
        done = recipe("cpd", script, work, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (work / "averaged.pt").exists()


def of_recipe(call, *options):
    """What a function of examples/recipe.sh prints."""
    script = f'source "{REPOSITORY}/examples/recipe.sh"; {call} "$@"'
    return subprocess.run(["bash", "-c", script, "recipe", *options], env=environment("WORK"), text=True,
                          capture_output=True, check=True).stdout.strip()


@pytest.mark.parametrize("options, folder", [
    ([], "WORK/checkpoints"), (["--save-dir", "a b"], "a b"), (["--lr", "1", "--save-dir=c", "--cpu"], "c"),
    (["--save-dir", "a", "--save-dir", "d"], "d")])
def test_what_a_recipe_exports_lies_where_training_saved_it(options, folder):
    assert of_recipe("saved_in", *options) == folder


@pytest.mark.parametrize("name", ["cpd", "xsum"])
@pytest.mark.parametrize("given, told", [
    ({}, "--arch genie_base --share-embeddings"),
    ({"ARCHITECTURE": "--arch genie_base"}, "--arch genie_base")])
def test_whether_embeddings_are_shared_is_the_environments_choice(tmp_path, name, given, told):
    host = tmp_path / "fairseq-train"
    host.write_text('#!/bin/sh\necho "$@"\n')
    host.chmod(0o755)
    # RANK 1 exports nothing.
    more = {**given, "RANK": "1", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = recipe(name, "train", tmp_path / "work", more=more)
    assert done.returncode == 0 and f" {told} --criterion " in done.stdout, done.stderr


def test_a_given_sentencepiece_model_has_its_own_vocabulary():
    assert of_recipe("vocabulary 30000", "text", "--shards", "2") == "--vocabulary 30000"
    assert of_recipe("vocabulary 30000", "--model", "a b", "text") == of_recipe("vocabulary 30000", "--model=m") == ""


def test_prepare_says_what_is_missing(tmp_path):
    (tmp_path / "raw").mkdir()
    done = recipe("xsum", "prepare", tmp_path / "work", tmp_path / "raw")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "lacks" in done.stderr
    done = recipe("xsum", "prepare", tmp_path / "work")
    assert done.returncode != 0 and "usage: bash examples/xsum/prepare.sh FOLDER" in done.stderr


def test_killed_in_the_middle_of_prepare_it_continues(tmp_path, verses):
    stand_in(tmp_path / "raw", LAYOUTS["gigaword"][0], verses)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = (tmp_path / "raw", "--vocabulary", 500, "--workers", 1)
    assert recipe("gigaword", "prepare", whole, *arguments).returncode == 0
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for seconds in (0.4, 1.0, 2.0, 4.0):
        process = subprocess.Popen(
            ["bash", str(REPOSITORY / "examples/gigaword/prepare.sh"), *map(str, arguments)], start_new_session=True,
            env={**os.environ, "PATH": path, "WORK": str(killed)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert recipe("gigaword", "prepare", killed, *arguments).returncode == 0
    for folder in ("text", "encoded", "data-bin"):
        for file in (whole / folder).glob("*.*"):
            if file.name != "preprocess.log":
                assert (killed / folder / file.name).read_bytes() == file.read_bytes(), file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, verses):
    """Binarised pairs, of which one source is longer than the host would take."""
    folder = tmp_path_factory.mktemp("baselines")
    long = (" ".join(["word"] * 1200), verses["test"][-1][1])
    stand_in(folder / "raw", LAYOUTS["gigaword"][0], {**verses, "test": [*verses["test"][:-1], long]})
    done = recipe("gigaword", "prepare", folder, folder / "raw", "--vocabulary", 500, "--workers", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def write_test_set(pairs, system, *options, **more):
    done = recipe("baselines", "generate", pairs, system, pairs, "--cpu", "--max-len-b", 10, *options, more=more)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("system", SYSTEMS)
def test_baselines_of_fairseq_train_and_generate_on_the_same_pairs(pairs, system):
    sizes = LSTM_SIZES if system == "lstm" else BASELINE_SIZES
    done = recipe("baselines", "train", pairs, system, pairs, *sizes, "--max-update", 2, "--max-tokens", 500, "--cpu",
                  "--disable-validation")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"\n{system} " in write_test_set(pairs, system)
    if system == "transformer":
        ids = [f"S-{i}\tx\nH-{i}\t-1\tx\nD-{i}\t-1\tx\nH-{i}\t-2\ty\nD-{i}\t-2\ty\n" for i in range(24)]
        (pairs / "generated.txt").write_text("".join(ids))
        done = recipe("baselines", "diversity", pairs, pairs, "--cpu", "--max-len-b", 10)
        assert done.returncode == 0, done.stderr[-2000:]
        for way in ("beam", "diverse", "sampling"):
            assert f"transformer, {way}: mean over 2 candidates" in done.stdout
    if system == "cmlm":  # in one pass and in several, of one training, each in a file and a row of its own
        refined = (pairs / "cmlm.txt").read_text()
        assert "\ncmlm-0 " in write_test_set(pairs, system, "--print-step", ITERATIONS="0")
        assert set(re.findall(r"^I-\d+\t(\d+)$", (pairs / "cmlm-0.txt").read_text(), re.M)) == {"0"}
        assert (pairs / "cmlm.txt").read_text() == refined


def test_a_baseline_that_is_not_there_is_refused(pairs):
    unknown = recipe("baselines", "train", pairs, "bart", pairs)
    assert unknown.returncode == 1 and f"{'|'.join(SYSTEMS)} WORK" in unknown.stderr


@pytest.mark.parametrize("system, iterations", [("transformer", "0"), ("nat", "9"), ("cmlm", "few")])
def test_iterations_of_what_refines_nothing_are_refused(pairs, system, iterations):
    done = recipe("baselines", "generate", pairs, system, pairs, more={"ITERATIONS": iterations})
    assert done.returncode == 1 and done.stderr.startswith("error: ITERATIONS is a whole number, of inat, cmlm")
