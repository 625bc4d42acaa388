"""scripts/export_checkpoint.py: EMA and averaged weights as checkpoints that decode."""

import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, run_module

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import export_checkpoint  # noqa: E402


def checkpoint(path, weights, ema=None, ema_fp32_params=None, updates=7):
    """A file with the parts that fairseq's trainer saves."""
    extra_state = {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}, "metrics": {}, "val_loss": 1.5,
                   "early_stopping": {"best": 1.5, "num_runs": 2}}
    if ema is not None:
        extra_state["ema"] = ema
    if ema_fp32_params is not None:
        extra_state["ema_fp32_params"] = ema_fp32_params
    history = {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {}, "num_updates": updates}
    state = {
        "args": None,
        "cfg": {"model": {"_name": "genie", "width": 4}, "task": {"_name": "t", "data": "d"}, "common": {}},
        "model": weights,
        "optimizer_history": [history],
        "extra_state": extra_state,
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(1000)}}},
        "task_state": {},
    }
    torch.save(state, path)
    return str(path)


def weights(value, dtype=torch.float32):
    return {"layer.weight": torch.full((2, 3), value, dtype=dtype), "steps": torch.tensor(int(value))}


def run(*arguments):
    export_checkpoint.main([str(argument) for argument in arguments])
    return torch.load(arguments[-1], weights_only=True)


def assert_weights(state, expected):
    assert state["model"].keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state["model"][key], tensor, rtol=0, atol=0)


def test_ema_takes_the_place_of_the_model(tmp_path):
    source = checkpoint(tmp_path / "a.pt", weights(1.0), ema=weights(3.0))
    state = run("--ema", source, "--output", tmp_path / "ema.pt")
    assert_weights(state, weights(3.0))
    before = torch.load(source, weights_only=True)
    assert state["cfg"] == before["cfg"] and type(state["cfg"]["model"]) is dict
    assert state["optimizer_history"] == before["optimizer_history"]
    assert state["extra_state"] == {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}, "val_loss": 1.5}
    assert "last_optimizer_state" not in state


@pytest.mark.parametrize("updates, warned", [(100, True), (5000, False)])
def test_an_ema_that_is_mostly_what_training_began_with_is_said_to_be(tmp_path, capsys, updates, warned):
    source = checkpoint(tmp_path / "a.pt", weights(1.0), ema=weights(3.0), updates=updates)
    state = torch.load(source, weights_only=True)
    state["cfg"]["ema"] = {"ema_decay": 0.999}
    torch.save(state, source)
    run("--ema", source, "--output", tmp_path / "ema.pt")
    assert (f"warning: 90% of {source}'s EMA is what training began with" in capsys.readouterr().err) is warned


FACTS = {"longest_target": torch.tensor(24.0), "met_tokens": torch.tensor([0.0, 1.0]),
         "timesteps.losses": torch.ones(3, 2), "schedule.log_snr": torch.zeros(3)}


@pytest.mark.parametrize("in_ema", [["longest_target", "met_tokens"], [*FACTS, "timesteps.counts"]])
def test_what_is_counted_or_fitted_is_that_of_the_last_update(tmp_path, in_ema):
    # fairseq makes the EMA before a law of t that training learns, and averages what it finds of buffers.
    ema = {**weights(3.0), **{name: torch.full((2,), 7.0) for name in in_ema}}
    source = checkpoint(tmp_path / "a.pt", {**weights(1.0), **FACTS}, ema=ema)
    assert_weights(run("--ema", source, "--output", tmp_path / "ema.pt"), {**weights(3.0), **FACTS})
    other = checkpoint(tmp_path / "b.pt", {**weights(5.0), **{name: fact + 1 for name, fact in FACTS.items()}})
    found = run("--average", other, source, "--output", tmp_path / "mean.pt")
    assert_weights(found, {"layer.weight": torch.full((2, 3), 3.0), "steps": torch.tensor(1), **FACTS})


def test_ema_in_half_precision_becomes_float32_and_its_exact_copy_is_preferred(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        source = checkpoint(tmp_path / "a.pt", weights(1.0, dtype), ema=weights(3.0, dtype))
        assert_weights(run("--ema", source, "--output", tmp_path / "ema.pt"), weights(3.0))
    exact = weights(3.0001)
    source = checkpoint(
        tmp_path / "b.pt", weights(1.0, dtype), ema=weights(3.0, dtype), ema_fp32_params=exact
    )
    assert_weights(run("--ema", source, "--output", tmp_path / "ema.pt"), exact)


def test_average_is_the_mean_with_the_settings_of_the_last(tmp_path):
    sources = [checkpoint(tmp_path / f"{i}.pt", weights(v), updates=i) for i, v in enumerate((1.0, 2.0, 6.0))]
    state = run("--average", *sources, "--output", tmp_path / "average.pt")
    assert_weights(state, {"layer.weight": torch.full((2, 3), 3.0), "steps": torch.tensor(6)})
    assert state["optimizer_history"][0]["num_updates"] == 2


def test_average_of_equal_checkpoints_is_exact(tmp_path):
    torch.manual_seed(0)
    same = {"layer.weight": torch.randn(50, 50)}
    sources = [checkpoint(tmp_path / f"{i}.pt", same) for i in range(3)]
    assert_weights(run("--average", *sources, "--output", tmp_path / "average.pt"), same)


def test_half_precision_is_averaged_in_float32(tmp_path):
    sources = [
        checkpoint(tmp_path / f"{i}.pt", weights(v, torch.float16)) for i, v in enumerate((60000.0, 60032.0))
    ]
    state = run("--average", *sources, "--output", tmp_path / "average.pt")
    assert state["model"]["layer.weight"][0, 0] == 60016.0  # float16 overflows at 65504, and steps by 32 here


def test_a_checkpoint_to_share_is_half_as_large_and_names_no_folder(tmp_path):
    averages = {**weights(1 / 3), "bounds": torch.tensor([1 / 3])}
    source = checkpoint(tmp_path / "a.pt", averages, ema=averages)
    state = torch.load(source, weights_only=True)
    state["cfg"]["task"]["data"] = f"{tmp_path}/shard0:{tmp_path}/shard1"
    state["cfg"]["checkpoint"] = {"save_dir": str(tmp_path), "keep": 2, "suffixes": ["", "a/b"]}
    torch.save(state, source)
    shared = run("--ema", source, "--share", "--output", tmp_path / "shared.pt")
    assert_weights(shared, {**averages, "layer.weight": averages["layer.weight"].half()})
    assert shared["cfg"]["task"] == {"_name": "t", "data": "shard0:shard1"}
    assert shared["cfg"]["checkpoint"] == {"save_dir": tmp_path.name, "keep": 2, "suffixes": ["", "a/b"]}
    assert str(tmp_path).encode() not in (tmp_path / "shared.pt").read_bytes()


def test_no_ema_is_said_in_one_line(tmp_path):
    source = checkpoint(tmp_path / "a.pt", weights(1.0))
    with pytest.raises(UserError, match=r"a\.pt: holds no EMA weights; .*--store-ema$"):
        run("--ema", source, "--output", tmp_path / "ema.pt")
    assert not (tmp_path / "ema.pt").exists()


def test_an_ema_that_lost_parameters_is_refused(tmp_path):
    lost = {"steps": torch.tensor(1)}
    source = checkpoint(tmp_path / "a.pt", weights(1.0), ema=lost)
    with pytest.raises(UserError, match=r"only .*a\.pt has layer\.weight"):
        run("--ema", source, "--output", tmp_path / "ema.pt")


def test_different_models_are_listed_and_not_averaged(tmp_path):
    first = checkpoint(tmp_path / "a.pt", {"x": torch.ones(2), "y": torch.ones(2), "z": torch.ones(1)})
    second = checkpoint(tmp_path / "b.pt", {"x": torch.ones(3), "y": torch.ones(2), "w": torch.ones(1)})
    with pytest.raises(
        UserError, match=r"only .*a\.pt has z; only .*b\.pt has w; different shapes: x \(2,\) against \(3,\)$"
    ):
        run("--average", first, second, "--output", tmp_path / "average.pt")
    many = checkpoint(tmp_path / "c.pt", {f"k{i}": torch.ones(1) for i in range(6)})
    with pytest.raises(UserError, match=r"k3, k4 and 1 more$"):
        run("--average", first, many, "--output", tmp_path / "average.pt")


def test_an_input_is_never_overwritten(tmp_path):
    source = checkpoint(tmp_path / "a.pt", weights(1.0), ema=weights(3.0))
    os.symlink(source, tmp_path / "link.pt")
    before = Path(source).read_bytes()
    with pytest.raises(UserError, match=r"link\.pt is an input"):
        run("--ema", source, "--output", tmp_path / "link.pt")
    assert Path(source).read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "a.pt", weights(1.0), ema=weights(3.0))
    (tmp_path / "ema.pt").write_text("old")

    def full_disk(state, path):
        Path(path).write_text("half")
        raise RuntimeError("disk full\nat this line of C++")

    monkeypatch.setattr(export_checkpoint.torch, "save", full_disk)
    with pytest.raises(UserError, match=r"ema\.pt: cannot be written: disk full$"):
        run("--ema", source, "--output", tmp_path / "ema.pt")
    assert (tmp_path / "ema.pt").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "ema.pt"]


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    whole = Path(checkpoint(tmp_path / "whole.pt", weights(1.0))).read_bytes()
    contents = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello world",
        "picture": b"\x89PNG\r\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1], tmp_path / "list")
    torch.save({"epoch": 3}, tmp_path / "no model")
    for name in [*contents, "list", "no model"]:
        with pytest.raises(UserError, match=f"{name} (refused|cannot be read)"):
            run("--ema", tmp_path / name, "--output", tmp_path / "out.pt")
    with pytest.raises(UserError, match="none cannot be read: No such file or directory"):
        run("--ema", tmp_path / "none", "--output", tmp_path / "out.pt")


class Payload:
    """What a hostile checkpoint holds: loading it with pickle would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_holds_code_is_refused_and_the_code_does_not_run(tmp_path):
    source = checkpoint(tmp_path / "a.pt", weights(1.0), ema=Payload(str(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"a\.pt refused: it holds \S*\.mkdir"):
        run("--ema", source, "--output", tmp_path / "ema.pt")
    assert not (tmp_path / "ran").exists()


TINY_TRAINING = """
    --task seq2seq_diffusion --arch genie_tiny --criterion diffusion_vlb --store-ema --ema-decay 0.5
    --batch-size 16 --optimizer adam --lr 0.01 --max-update 5 --cpu --num-workers 0
"""


@pytest.mark.slow
def test_the_exported_ema_and_average_of_a_training_decode(tmp_path):
    for language, words in {"src": "abcde", "tgt": "vwxyz"}.items():
        lines = [" ".join(words[(i * j) % 5] for j in range(1, 4 + i % 3)) for i in range(16)]
        (tmp_path / f"text.{language}").write_text("\n".join(lines) + "\n")
    texts = [part for split in ("train", "valid", "test") for part in (f"--{split}pref", tmp_path / "text")]
    run_module("preprocess", "-s", "src", "-t", "tgt", *texts, "--joined-dictionary", "--destdir", tmp_path)
    run_module("train", tmp_path, *TINY_TRAINING.split(), "--save-dir", tmp_path)
    last, first = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint1.pt"
    ema = run("--ema", last, "--output", tmp_path / "ema.pt")
    assert ema["model"].keys() == torch.load(last, weights_only=True)["model"].keys()
    run("--average", first, last, "--output", tmp_path / "average.pt")
    for exported in ("ema.pt", "average.pt"):
        done = run_module(
            "generate", tmp_path, "--task", "seq2seq_diffusion", "--path", tmp_path / exported, "--cpu",
            "--diffusion-steps", "2",
        )  # fmt: skip
        assert sum(line.startswith("D-") for line in done.stdout.splitlines()) == 16
