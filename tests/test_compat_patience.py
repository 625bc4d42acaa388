"""What --patience has counted goes with the checkpoint."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from fairseq.trainer import Trainer
from fairseq_cli import train

from diffusion_fairseq.compat import patching, patience

LOSSES = [3.0, 2.0, 2.5, 1.5, 1.75, 1.75, 1.6, 1.4]  # --patience 3 ends at the seventh


class Training:
    """A trainer whose files are in memory, and the host's loop round it, without its updates."""

    def __init__(self, patience, files):
        self.cfg = SimpleNamespace(checkpoint=SimpleNamespace(patience=patience, maximize_best_checkpoint_metric=False))
        self.files = files

    def resume(self, **resets):
        return Trainer.load_checkpoint(self, "last", **resets)

    def validate(self, loss):
        stops = train.should_stop_early(self.cfg, loss)
        Trainer.save_checkpoint(self, "last", {"best": 1.0})
        return stops

    def epoch(self):
        return train.train(self.cfg, self, None, None)


@pytest.fixture
def begin(monkeypatch):
    """A process that begins."""
    stock = train.should_stop_early, train.train
    monkeypatch.setattr(Trainer, "load_checkpoint", lambda self, filename, *_: self.files.get(filename))
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, filename, extra: self.files.update({filename: extra}))
    monkeypatch.setattr(patience, "replace_in_command", lambda command, function, new: monkeypatch.setattr(
        train, function, new(getattr(train, function))))
    host = Trainer.load_checkpoint, Trainer.save_checkpoint

    def begin(patience_given, files, **resets):
        Trainer.load_checkpoint, Trainer.save_checkpoint = host
        monkeypatch.setattr(train, "should_stop_early", stock[0])
        monkeypatch.setattr(train, "train", lambda *_: ([0.0], False))
        patience.keep_patience()
        training = Training(patience_given, files)
        training.resume(**resets)
        return training

    return begin


@pytest.mark.parametrize("kind", [float, np.float64])
@pytest.mark.parametrize("killed", range(8))
def test_it_counts_on_wherever_training_was_interrupted(begin, killed, kind):
    files = {}
    training = begin(3, files)
    for place, loss in enumerate(LOSSES[:7]):
        if place == killed:
            training = begin(3, files)
        # A checkpoint between two validations keeps the count.
        assert not training.validate(None)
        assert training.epoch() == ([0.0], False)
        assert training.validate(kind(loss)) == (place == 6)
    assert files["last"] == {"best": 1.0, "early_stopping": {"best": 1.5, "num_runs": 3}}
    assert [type(value) for value in files["last"]["early_stopping"].values()] == [float, int]


def test_where_it_is_used_up_no_update_is_done(begin, caplog):
    files = {"last": {"early_stopping": {"best": 1.5, "num_runs": 3}}}
    with caplog.at_level(logging.INFO):
        assert begin(3, files).epoch() == ([None], True)
    assert [record.getMessage() for record in caplog.records] == [
        "no update: this training had stopped early, after 3 validations that were no better; a larger --patience goes "
        "on with it"]


@pytest.mark.parametrize("given, resets", [(4, {}), (0, {}), (3, {"reset_meters": True}),
                                           (3, {"reset_optimizer": True})])
def test_it_goes_on_with_more_patience_and_with_none_and_anew(begin, given, resets):
    files = {"last": {"early_stopping": {"best": 1.5, "num_runs": 3}}}
    training = begin(given, files, **resets)
    assert training.epoch() == ([0.0], False)
    # 1.6 is no better than what was best, and anew it is the first.
    assert training.validate(1.6) == (given == 4)
    kept = {4: {"best": 1.5, "num_runs": 4}, 3: {"best": 1.6, "num_runs": 0}}.get(given)
    assert files["last"].get("early_stopping") == kept


def test_checkpoints_of_an_unmended_host_and_none_at_all_begin_anew(begin):
    for files in ({}, {"last": {"best": 1.0}}):
        training = begin(1, files)
        assert training.epoch() == ([0.0], False) and not training.validate(None)
        assert files["last"] == {"best": 1.0}
        assert not training.validate(1.5) and training.validate(1.5)


def test_a_function_is_replaced_once_and_in_what_a_spawned_process_sees(monkeypatch):
    """The module of that process's program holds copies of the names that its functions see."""
    names = {"__file__": "/somewhere/fairseq_cli/train.py"}
    exec("def cli_main():\n    return answer()\ndef answer():\n    return 1\n", names)
    monkeypatch.setitem(patching.sys.modules, "__main__", SimpleNamespace(**names))
    monkeypatch.setattr(patching.options, "parse_args_and_arch", lambda: None)
    patching.replace_in_command("train", "answer", lambda stock: lambda: stock() + 1)
    for _ in range(2):
        patching.options.parse_args_and_arch()
    assert names["cli_main"]() == 2
