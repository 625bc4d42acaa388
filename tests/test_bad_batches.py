"""A loss or gradient that is not finite: the sentences are named, nothing is learned, and the run stops or goes on."""

import logging
import re

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from helpers import make_dictionary, make_sample

from diffusion_fairseq.compat.bad_batches import MOST_IN_A_ROW
from diffusion_fairseq.errors import UserError

DICTIONARY = make_dictionary(20)
BAD = 7  # the sentence that spoils its batch


@pytest.fixture
def make_trainer(tmp_path):
    """fairseq's trainer of a tiny model whose loss, or gradient, one sentence spoils."""
    for side in ("src", "tgt"):
        DICTIONARY.save(str(tmp_path / f"dict.{side}.txt"))

    def make(spoil, *given):
        words = [str(tmp_path), "--task", "seq2seq_diffusion", "--source-lang", "src", "--target-lang", "tgt", "--arch",
                 "genie_tiny", "--criterion", "diffusion_vlb", "--timestep-sampler", "loss-second-moment",
                 "--diffusion-timesteps", "60", "--adaptive-schedule-updates", "2",
                 "--optimizer", "adam", "--lr", "0.01", "--cpu", "--batch-size", "4", "--save-dir",
                 str(tmp_path / "ck"), *given]
        cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
        task = tasks.setup_task(cfg.task)
        trainer = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
        criterion, terms, forward = trainer.get_criterion(), trainer.get_criterion().terms, []

        def spoiled(*arguments):
            found = terms(*arguments)
            if BAD in forward and spoil != "gradient":
                value, weight = found["mse"][1], found["mse"][0]
                found["mse"] = weight, {"nan": value * torch.nan, "constant inf": value + torch.inf}[spoil]
            return found

        criterion.terms = spoiled
        criterion.register_forward_pre_hook(lambda _, given: forward.__setitem__(slice(None), given[1]["id"].tolist()))
        trainer.get_model().embedding.weight.register_hook(
            lambda gradient: gradient * torch.nan if BAD in forward and spoil == "gradient" else gradient)
        return trainer

    return make


def batch(first):
    # The bad one has longer targets, of other words.
    sample = make_sample(DICTIONARY, [12, 15, 11] if first == BAD - 1 else [5, 9, 6], seed=int(first == BAD - 1))
    return {**sample, "id": sample["id"] + first}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.get_model().state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


SPOILS = {"nan": "loss", "constant inf": "loss", "gradient": "gradient"}


@pytest.mark.parametrize("spoil", SPOILS)
def test_the_run_stops_with_the_sentences_named(make_trainer, tmp_path, spoil):
    trainer = make_trainer(spoil)
    trainer.train_step([batch(0), batch(3)])
    before = weights(trainer)
    with pytest.raises(UserError) as raised:
        trainer.train_step([batch(3), batch(6)])
    named = "6, 7, 8" if SPOILS[spoil] == "loss" else "3, 4, 5, 6, 7, 8"
    assert re.fullmatch(rf"update 2: the {SPOILS[spoil]} is not finite, in the batch of the sentences \(counted from "
                        rf"0\) {named}\. The weights are as before it: .*--skip-bad-batches", str(raised.value))
    assert_equal(weights(trainer), before)
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize("precision", [[], ["--bf16"], ["--memory-efficient-bf16"]])
@pytest.mark.parametrize("spoil", SPOILS)
def test_the_update_is_left_out_with_a_warning(make_trainer, caplog, spoil, precision):
    options = "--skip-bad-batches", "--clip-norm", "1", *precision
    trainer, clean = make_trainer(spoil, *options), make_trainer("nan", *options)
    clean.get_model().load_state_dict(trainer.get_model().state_dict())
    for one in (trainer, clean):
        one.train_step([batch(0)])
    before = weights(trainer)
    assert_equal(before, weights(clean))
    with caplog.at_level(logging.WARNING):
        assert trainer.train_step([batch(6)]) is None
    assert f"update 2: the {SPOILS[spoil]} is not finite" in caplog.text and "6, 7, 8: left out" in caplog.text
    assert_equal(weights(trainer), before)
    assert trainer.get_num_updates() == 1
    for one in (trainer, clean):
        one.train_step([batch(12)])
        assert one.get_num_updates() == 2
    assert_equal(weights(trainer), weights(clean))


def test_a_batch_that_only_fills_up_leaves_nothing_behind(make_trainer):
    alone, filled = make_trainer("nan"), make_trainer("nan")
    filled.get_model().load_state_dict(alone.get_model().state_dict())
    filled._dummy_batch = {**make_sample(DICTIONARY, [12, 12], seed=4), "id": torch.tensor([12, 13])}
    logs = [one.train_step(samples) for one, samples in ((alone, [batch(0)]), (filled, [batch(0), {}]))]
    assert logs[0]["sample_size"] == logs[1]["sample_size"] > 0 and logs[0]["loss"] == logs[1]["loss"]
    assert_equal(weights(alone), weights(filled))


def test_many_bad_updates_in_a_row_stop_the_run_after_all(make_trainer):
    trainer = make_trainer("nan", "--skip-bad-batches")
    for _ in range(MOST_IN_A_ROW):
        assert trainer.train_step([batch(6)]) is None
    with pytest.raises(UserError, match=f"{MOST_IN_A_ROW} updates before it were left out, too: lower --lr"):
        trainer.train_step([batch(6)])
