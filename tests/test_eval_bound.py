"""The bound on the negative log-likelihood as a metric of validation."""

import json
import math
import subprocess
import sys

import pytest
import torch
from fairseq.logging import metrics
from helpers import (
    REPOSITORY,
    make_ddlm,
    make_dictionary,
    make_diffuseq,
    make_diffusion_lm,
    make_genie,
    make_sample,
    run_module,
)
from test_cli import one_line_error, preprocess_pairs_and_lines

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.noise import RowDraws
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.bound import even_shares, nll_bound
from diffusion_fairseq.tasks.eval_bound import EvalBoundConfig, bound_sums, check_eval_bound, log_bound
from diffusion_fairseq.tasks.eval_rouge import log_rouge

DICTIONARY = make_dictionary()
MASKED = make_dictionary()
MASK = MASKED.add_symbol("<mask>")
MODELS = {"genie": (make_genie, {}), "genie noise": (make_genie, {"parameterization": "noise"}),
          "diffuseq": (make_diffuseq, {}), "diffusion_lm": (make_diffusion_lm, {}), "ddlm": (make_ddlm, {})}


def setting(name, lengths=(5, 9, 4), first=0):
    """A model and a batch of it, whose examples are numbered from `first`."""
    make, options = MODELS[name]
    dictionary = MASKED if make in (make_ddlm, make_diffusion_lm) else DICTIONARY
    sample = make_sample(dictionary, list(lengths), seed=first)
    if dictionary is MASKED:
        sample["net_input"]["src_tokens"] = sample["target"].masked_fill(sample["target"] != MASKED.pad(), MASK)
    return make(dictionary, **options), {**sample, "id": sample["id"] + first}


def logged(*logs):
    with metrics.aggregate(new_root=True) as aggregate:
        log_bound(list(logs))
    return aggregate.get_smoothed_values()


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_of_every_model_is_the_mean_over_its_draws_and_the_same_each_time(name):
    model, sample = setting(name)
    first, again = (bound_sums(model, sample, 3) for _ in range(2))
    assert first == again and first["_bound_tokens"] == 3 * 18
    noise = RowDraws(sample["id"])
    with torch.no_grad():
        expected = sum(nll_bound(model, sample["net_input"]["src_tokens"], sample["target"], u, noise).total.sum()
                       for u in even_shares(sample["id"], 3)) / 54
    values = logged(first)
    assert values["bound"] == pytest.approx(expected.item(), abs=1e-3) and values["bound"] > 0
    assert values["bound_bits"] == pytest.approx(values["bound"] / math.log(2), abs=1e-3)


def test_batches_and_processes_are_summed_and_the_criterion_leaves_them_alone():
    """Processes sum what they log, name by name, before any of it is reduced."""
    (model, one), (_, other) = (setting("genie", first=first) for first in (0, 3))
    other = {**other, "target": other["target"][:1], "id": other["id"][:1]}
    other["net_input"] = {"src_tokens": other["net_input"]["src_tokens"][:1]}
    criterion = DiffusionVLBCriterion(DiffusionVLBConfig(), task=None)
    logs = [{**criterion(model, sample)[2], **bound_sums(model, sample, 2)} for sample in (one, other)]
    bounds = [float(log["_bound_nats"] / log["_bound_tokens"]) for log in logs]
    expected = (2 * 18 * bounds[0] + 2 * 5 * bounds[1]) / (2 * 23)
    summed = {name: sum(log[name] for log in logs) for name in logs[0]}
    for found in (logs, [summed]):
        with metrics.aggregate(new_root=True) as aggregate:
            criterion.reduce_metrics(found)
            log_bound(found)
        values = aggregate.get_smoothed_values()
        assert values["bound"] == pytest.approx(expected, abs=1e-3)
        assert not any(name.startswith("_") for name in values) and {"mse", "accuracy", "embedding_rank"} <= set(values)
    assert not logged({"loss": 1.0})


def test_the_criterion_does_not_dilute_rouge():
    log = {"loss": 40.0, "sample_size": 38, "ntokens": 38, "nsentences": 4, "_rouge_count": 4.0,
           **dict.fromkeys(("_rouge_1", "_rouge_2", "_rouge_l"), 200.0)}
    with metrics.aggregate(new_root=True) as aggregate:
        DiffusionVLBCriterion.reduce_metrics([log])
        log_rouge([log])
    values = aggregate.get_smoothed_values()
    assert values["rouge_l"] == values["rouge_1"] == 50 and values["loss"] == pytest.approx(40 / 38, abs=1e-3)


def test_an_examples_times_do_not_depend_on_its_batch_and_are_even():
    shares = even_shares(torch.arange(1000), 4)
    assert shares.shape == (4, 1000) and (shares >= 0).all() and (shares < 1).all()
    assert even_shares(torch.tensor([700, 3]), 4).equal(shares[:, [700, 3]])
    assert ((shares * 4).floor() == torch.arange(4)[:, None]).all()  # one in each part
    gaps = torch.cat([shares[0].sort().values, torch.tensor([0.25])]).diff()
    assert gaps.max() < 3 * 0.25 / 1000


def test_a_negative_number_is_one_line():
    check_eval_bound(EvalBoundConfig(eval_bound=0))
    with pytest.raises(UserError, match="--eval-bound must be at least 0, got -1"):
        check_eval_bound(EvalBoundConfig(eval_bound=-1))


PAIRS = ("bin", "--task", "seq2seq_diffusion", "--max-source-positions", 16, "--max-target-positions", 12)
TEXT = ("lm", "--task", "diffusion_lm", "--tokens-per-sample", 12)
VLB = ("--criterion", "diffusion_vlb")
# Data folder and options of every task and kind of model.
CASES = {
    "genie": (*PAIRS, "--arch", "genie_tiny", *VLB, "--parameterization", "noise"),
    "diffuseq": (*PAIRS, "--arch", "diffuseq_tiny", "--noising", "full", *VLB),
    "diffusion_lm": (*TEXT, "--arch", "diffusion_lm_tiny", "--criterion", "diffusion_anchor", "--bf16"),
    "ddlm": (*TEXT, "--arch", "ddlm_tiny", "--masking", "span", "--criterion", "score_interpolation"),
    "cpd": ("lm", "--task", "cpd_pretrain", "--max-source-positions", 40, "--max-target-positions", 16,
            "--min-document-tokens", 3, "--arch", "genie_tiny", *VLB),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pairs, and lines of text, binarised."""
    return preprocess_pairs_and_lines(tmp_path_factory.mktemp("bound"), 100, 5)


def train(work, name, save_dir, *more, **how):
    data, *own = CASES[name]
    return run_module("train", work / data, *own, "--optimizer", "adam", "--lr", 3e-3, "--batch-size", 50, "--cpu",
                      "--batch-size-valid", 5, "--log-format", "json", "--seed", 7, "--num-workers", 0,
                      "--no-epoch-checkpoints", "--save-dir", save_dir, "--eval-bound", 2, "--best-checkpoint-metric",
                      "bound", "--max-update", 6, *more, **how)


def validations(output):
    return [json.loads(line[line.index("{"):]) for line in output.splitlines() if "| valid |" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_checkpoints_are_chosen_by_the_bound(work, tmp_path, name):
    found = validations(train(work, name, tmp_path).stdout)
    bounds = [float(one["valid_bound"]) for one in found]
    assert len(bounds) == 2 and all(math.isfinite(bound) and bound > 0 for bound in bounds)
    assert float(found[0]["valid_bound_bits"]) == pytest.approx(bounds[0] / math.log(2), rel=1e-4)
    best = torch.load(tmp_path / "checkpoint_best.pt", weights_only=True)["extra_state"]
    assert best["best"] == pytest.approx(min(bounds), rel=1e-4) == best["val_loss"]
    assert float(found[-1]["valid_best_bound"]) == pytest.approx(min(bounds), rel=1e-4)


@pytest.mark.slow
def test_processes_and_later_validations_find_the_same_bound_as_one(work, tmp_path):
    """Weights that never change; two processes share three batches, so that one has a batch less."""
    still = ("--lr", 0, "--no-save")
    alone = validations(train(work, "ddlm", tmp_path, *still).stdout)
    assert len({one["valid_bound"] for one in alone}) == 1 and len(alone) == 2
    both = validations(train(work, "ddlm", tmp_path, *still, "--distributed-world-size", 2).stdout)
    assert float(both[0]["valid_bound"]) == pytest.approx(float(alone[0]["valid_bound"]), abs=1e-3)


@pytest.mark.slow
def test_the_bound_of_validation_is_that_of_the_command(work, tmp_path):
    found = validations(train(work, "ddlm", tmp_path, "--eval-bound", 40, "--masking", "full").stdout)[-1]
    words = [sys.executable, REPOSITORY / "scripts/evaluate_bound.py", work / "lm", "--path",
             tmp_path / "checkpoint_last.pt", "--task", "diffusion_lm", "--max-target-positions", "12", "--subset",
             "valid", "--draws", "40", "--json", tmp_path / "bound.json"]
    subprocess.run(words, check=True, capture_output=True)
    total = json.loads((tmp_path / "bound.json").read_text())["total"]
    assert float(found["valid_bound"]) == pytest.approx(total["nats a token"], rel=0.05)
    shown = {}
    for number in (3, 1000):
        done = subprocess.run([*words, "--texts", str(number)], check=True, capture_output=True, text=True)
        shown[number] = (json.loads((tmp_path / "bound.json").read_text())["total"], done.stdout)
    assert "\n3 texts of valid" in shown[3][1] and shown[3][0]["nats a token"] != total["nats a token"]
    assert shown[3][0]["standard error"] > 0 and shown[1000][0] == total


@pytest.mark.slow
def test_a_negative_number_ends_the_command_in_one_line(work, tmp_path):
    done = train(work, "genie", tmp_path, "--eval-bound", -1, check=False)
    one_line_error(done, "--eval-bound must be at least 0, got -1")
