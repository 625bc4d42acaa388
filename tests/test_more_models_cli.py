"""DiffuSeq and DDLM through fairseq's own commands."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY, run_module
from test_cli import MODEL, TRAIN, WORDS, hypotheses, preprocess_pairs_and_lines

pytestmark = pytest.mark.slow
LM = ["--task", "diffusion_lm", "--tokens-per-sample", "12"]
DDLM = [*LM, "--arch", "ddlm_tiny", "--criterion", "score_interpolation", "--optimizer", "adam", "--lr", "3e-3",
        *TRAIN[TRAIN.index("--batch-size"):]]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return preprocess_pairs_and_lines(tmp_path_factory.mktemp("more"), 200, 21)


def losses(output, key):
    return [float(json.loads(line[line.index("{"):])[key]) for line in output.splitlines() if "| train_inner |" in line]


@pytest.mark.parametrize("noising", ["partial", "full"])
def test_diffuseq_trains_resumes_and_generates(work, noising):
    options = [*TRAIN, "--arch", "diffuseq_tiny", "--noising", noising, "--save-dir", work / noising]
    first = run_module("train", work / "bin", *options, "--max-update", "40")
    found = losses(first.stderr + first.stdout, "mse")
    assert sum(found[-5:]) < sum(found[:5])
    more = run_module("train", work / "bin", *options, "--max-update", "42")
    assert len(losses(more.stderr + more.stdout, "mse")) == 2
    common = ["--path", work / noising / "checkpoint_last.pt", "--cpu", "--diffusion-steps", "6", *MODEL]
    whole = hypotheses(run_module("generate", work / "bin", *common, "--batch-size", "21").stdout)
    single = hypotheses(run_module("generate", work / "bin", *common, "--batch-size", "4").stdout)
    assert len(whole) == 21 and whole == single
    many = hypotheses(run_module("generate", work / "bin", *common, "--candidates", "3", "--nbest", "3", "--clamping",
                                 "--exit-patience", "2").stdout)
    assert all(len(found) == 3 for found in many.values())


def test_ddlm_trains_with_a_time_warp_resumes_and_fills_prompts(work):
    options = [*DDLM, "--masking", "span", "--timestep-sampler", "time-warp", "--save-dir", work / "ddlm",
               "--store-ema", "--ema-decay", "0.9", "--ema-fp32"]
    first = run_module("train", work / "lm", *options, "--max-update", "60")
    found = losses(first.stderr + first.stdout, "ce")
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    more = run_module("train", work / "lm", *options, "--max-update", "62")
    assert len(losses(more.stderr + more.stdout, "ce")) == 2
    common = [*LM, "--path", work / "ddlm" / "checkpoint_last.pt", "--cpu", "--diffusion-steps", "8", "--solver",
              "euler"]
    free = run_module("generate", work / "lm", *common).stdout
    assert len(hypotheses(free)) == 21 and len({found[0][1] for found in hypotheses(free).values()}) > 15
    given = run_module("generate", work / "lm", *common, "--given-positions", "0:2", "--score-temperature",
                       "0.9").stdout
    texts = dict(re.findall(r"^T-(\d+)\t(.*)$", given, re.MULTILINE))
    for number, found in hypotheses(given).items():
        assert found[0][1].split()[:2] == texts[str(number)].split()[:2]
    words = [sys.executable, REPOSITORY / "scripts/evaluate_bound.py", work / "lm", "--path",
             work / "ddlm" / "checkpoint_last.pt", "--task", "diffusion_lm", "--max-target-positions", "12", "--json",
             work / "bound.json", "--draws", "2"]
    subprocess.run(words, check=True, capture_output=True)
    bound = json.loads((work / "bound.json").read_text())
    assert bound["total"]["nats a token"] == pytest.approx(sum(bound[term]["nats a token"] for term in (
        "reconstruction", "diffusion", "prior")))
    assert 0 < bound["total"]["bits a byte"] < 100
    typed = run_module("interactive", work / "lm", *common, stdin=f"{WORDS[1]} <mask> <mask> {WORDS[5]}\n").stdout
    words = hypotheses(typed)[0][0][1].split()
    assert words[0] == WORDS[1] and words[-1] == WORDS[5] and len(words) == 4


def test_wrong_pairs_of_model_task_and_criterion_end_in_one_line(work):
    cases = [
        (["bin", *MODEL, "--arch", "ddlm_tiny", "--criterion", "score_interpolation"], "--task diffusion_lm"),
        (["lm", *LM, "--arch", "diffuseq_tiny", "--criterion", "diffusion_vlb"], "--task seq2seq_diffusion"),
        (["lm", *LM, "--arch", "ddlm_tiny", "--criterion", "diffusion_vlb"], "--criterion score_interpolation"),
        (["lm", *LM, "--arch", "diffusion_lm_tiny", "--criterion", "score_interpolation"], "diffusion_vlb or"),
    ]
    for (data, *options), said in cases:
        failed = run_module("train", work / data, *options, "--optimizer", "adam", "--lr", "1e-3", "--batch-size", "8",
                            "--cpu", "--max-update", "1", "--save-dir", work / "none", check=False)
        last = failed.stderr.strip().splitlines()[-1]
        assert failed.returncode == 1 and said in last and "Traceback" not in failed.stderr, failed.stderr[-2000:]


def test_sampling_is_analysed(work):
    """On the model of the test above, which runs first."""
    path = work / "ddlm" / "checkpoint_last.pt"
    if not path.exists():
        pytest.skip("the DDLM was not trained")
    words = [sys.executable, REPOSITORY / "scripts/analyse_sampling.py", work / "lm", "--path", path, "--task",
             "diffusion_lm", "--max-target-positions", "12", "--diffusion-steps", "6", "--solver", "euler",
             "--initial-noise-scales", "0.5,1", "--output", work / "sampling"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "initial noise scale 0.5, step 1 " in done.stdout and "initial noise scale 1, step 6 " in done.stdout
    curves = json.loads((work / "sampling.json").read_text())
    assert set(curves) == {"0.5", "1"} and (work / "sampling.png").stat().st_size > 10000
    for found in curves.values():
        assert all(len(values) == 6 for values in found.values())
        assert found["score_cosine"][-1] == pytest.approx(1) and found["switches"][0] == 0
        assert 0 <= min(found["entropy"]) and found["xt_norm"][0] > found["xt_norm"][-1]
    again = str(shutil.copyfile(path, work / "ddlm" / "again.pt"))
    averaged = work / "ddlm" / "averaged.pt"
    subprocess.run([sys.executable, REPOSITORY / "scripts/export_checkpoint.py", "--ema", path, "--output", averaged],
                   check=True, capture_output=True)
    done = subprocess.run([*words[:-4], "--later", again, averaged, "--output", work / "checkpoints"], check=True,
                          capture_output=True, text=True)
    found = json.loads((work / "checkpoints.json").read_text())
    assert found == dict.fromkeys((str(path), again, str(averaged)), curves["1"])
    assert f"{again}: averaged weights (EMA)\n{averaged}: its own weights\n" in done.stdout
    subprocess.run([*words[:-4], "--sampling-grid", "warped", "--output", work / "warped"], check=True,
                   capture_output=True)
    assert json.loads((work / "warped.json").read_text())["1"] != curves["1"]


def test_the_learned_law_of_t_is_analysed(work):
    """On the model of the test above, which runs first."""
    path = work / "ddlm" / "checkpoint_last.pt"
    if not path.exists():
        pytest.skip("the DDLM was not trained")
    words = [sys.executable, REPOSITORY / "scripts/analyse_times.py", work / "lm", "--path", path, "--task",
             "diffusion_lm", "--max-target-positions", "12", "--subset", "valid", "--levels", "8", "--output",
             work / "times"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads((work / "times.json").read_text())
    assert len(found["loss"]) == 8 and found["loss"][0] < found["loss"][-1]
    assert set(found["laws"]) == {"uniform", "time-warp", "gumbel"} and "off the line" in done.stdout
    assert all(row["R2"] <= 1 for row in found["laws"].values()) and (work / "times.png").stat().st_size > 10000


def test_the_base_trains_on_a_cpu(work, tmp_path):
    """147 million parameters with 32,000 types; 3 updates of 8 texts."""
    words = [*WORDS, *(f"rare{number}" for number in range(32000 - 5 - len(WORDS))), "<mask>"]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    run_module("preprocess", "--only-source", "--trainpref", work / "train.src", "--srcdict", tmp_path / "dict.txt",
               "--destdir", tmp_path / "lm", plugin=False)
    done = run_module("train", tmp_path / "lm", "--task", "diffusion_lm", "--tokens-per-sample", "64",
                      "--sample-break-mode", "none", "--masking", "span", "--arch", "ddlm_base", "--criterion",
                      "score_interpolation", "--optimizer", "adam", "--lr", "3e-5", "--batch-size", "8", "--max-update",
                      "3", "--cpu", "--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--seed", "7",
                      "--disable-validation", "--no-save", "--save-dir", tmp_path)
    log = done.stdout + done.stderr
    parameters = int(re.search(r"num. shared model params: ([\d,]+)", log)[1].replace(",", ""))
    assert parameters == pytest.approx(147e6, rel=0.02)
    found = losses(log, "ce")
    assert len(found) == 3 and all(0 < loss < 12 for loss in found) and found[2] != found[0]
