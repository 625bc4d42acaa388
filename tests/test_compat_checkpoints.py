"""Checkpoints are data: what is loaded, what is refused, and how that is said."""

import argparse
import os
import re
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.trainer import Trainer
from hostile import pickled_calls, program

from diffusion_fairseq import compat
from diffusion_fairseq.compat import literals, patching
from diffusion_fairseq.errors import UserError

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def checkpoint(path, **parts):
    """Write what the host needs at least to call a file a checkpoint."""
    state = {
        "args": None,
        "cfg": {"model": argparse.Namespace(arch="transformer")},
        "model": {"weight": torch.ones(2)},
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {}, "num_updates": 1}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": {},
    }
    torch.save({**state, **parts}, path)
    return str(path)


def test_what_stock_checkpoints_hold_is_loaded(tmp_path):
    metrics = {"_bleu_counts": np.array([1, 2]), "_bleu_score": np.array([0.5])}
    path = checkpoint(tmp_path / "stock.pt", extra_state={"metrics": metrics, "train_iterator": {"epoch": 1}})
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    assert state["cfg"].model.arch == "transformer"
    assert state["extra_state"]["metrics"]["_bleu_counts"].tolist() == [1, 2]


@pytest.mark.skipif(TORCH < (2, 6), reason="torch's allow-list knows one name a function before 2.6")
def test_arrays_of_another_numpy_are_loaded(tmp_path):
    written, renamed = tmp_path / "written.pt", tmp_path / "renamed.pt"
    torch.save({"counts": np.array([1, 2]), "best": np.float64(0.5)}, written)
    ours, other = b"numpy._core.multiarray", b"numpy.core.multiarray"
    if np.__version__.startswith("1."):
        ours, other = other, ours
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert ours in content
                content = content.replace(ours, other)
            target.writestr(name, content)
    for file in (written, renamed):
        assert torch.load(file)["counts"].tolist() == [1, 2] and torch.load(file)["best"] == 0.5


@pytest.mark.parametrize("what", list(pickled_calls("")))
@pytest.mark.parametrize("part", ["cfg", "extra_state"])
def test_pickled_call_is_refused_and_does_not_run(tmp_path, marker, part, what):
    path = checkpoint(tmp_path / "hostile.pt", **{part: {"model": pickled_calls(marker)[what]}})
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(path)} refused: it holds ") as caught:
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert "\n" not in str(caught.value) and "data, never code" in str(caught.value)
    assert not marker.exists()


def options_of_old_files(**more):
    return argparse.Namespace(
        arch="transformer",
        task="translation",
        criterion="cross_entropy",
        optimizer="adam",
        lr_scheduler="fixed",
        lr=[0.1],
        **more,
    )


@pytest.mark.parametrize("old", [False, True])
def test_program_among_the_options_is_refused_and_does_not_run(tmp_path, marker, old):
    given = {"adaptive_softmax_cutoff": program(marker)}
    parts = {"cfg": None, "args": options_of_old_files(**given)} if old else {"cfg": {"model": given}}
    path = checkpoint(tmp_path / "hostile.pt", **parts)
    with pytest.raises(UserError, match="holds the program .* as option adaptive_softmax_cutoff"):
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert not marker.exists()


def test_nobody_can_ask_for_unsafe_loading(tmp_path, marker):
    path = checkpoint(tmp_path / "hostile.pt", extra_state=pickled_calls(marker)["system"])
    with pytest.raises(Exception, match="system"):
        torch.load(path, weights_only=False)
    assert not marker.exists()


def test_unsafe_loading_by_environment_is_taken_back(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    compat.force_weights_only()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def damaged(directory, kind):
    path = directory / "checkpoint_last.pt"
    whole = Path(checkpoint(directory / "whole.pt")).read_bytes()
    contents = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello\n" * 100}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "weights only":
        torch.save({"weight": torch.ones(2)}, path)
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "a directory":
        path.mkdir()
    return str(path)


@pytest.mark.parametrize(
    "kind", ["empty", "truncated", "text", "weights only", "a list", "a directory", "missing"]
)
def test_unreadable_checkpoint_is_named_in_one_line(tmp_path, kind):
    path = damaged(tmp_path, kind)
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(path)} ") as caught:
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert "\n" not in str(caught.value)


def test_missing_checkpoint_of_a_model_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"missing\.pt"):
        checkpoint_utils.load_model_ensemble([str(tmp_path / "missing.pt")])


def test_checkpoint_of_another_model_is_named_in_one_line(tmp_path):
    class Model(torch.nn.Linear):
        def set_num_updates(self, num_updates):
            """Part of fairseq's models."""

        def load_state_dict(self, state, strict, model_cfg):
            return super().load_state_dict(state, strict)

    trainer = argparse.Namespace(
        cfg=MagicMock(),
        tpu=False,
        is_fsdp=False,
        data_parallel_world_size=1,
        data_parallel_rank=0,
        model=Model(2, 3),
    )
    path = checkpoint(tmp_path / "checkpoint_last.pt")
    with pytest.raises(
        UserError, match=f"checkpoint {re.escape(path)} does not fit .*size mismatch"
    ) as caught:
        Trainer.load_checkpoint(trainer, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "[1, 2]",
        "(0.9, 0.98)",
        "{'a': None}",
        "0.1,0.2",
        " True",
        "[(512, 3)] * 20",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4",
    ],
)
def test_literals_have_the_value_that_eval_gives(text):
    assert literals.literal(text) == eval(text.strip())


@pytest.mark.parametrize("text", ["__import__('os')", "print(1)", "[x for x in (1,)]", "a", "1 - 1", "(", ""])
def test_more_than_a_literal_is_refused(text):
    with pytest.raises(UserError, match="no literal"):
        literals.literal(text)


def test_no_string_is_a_type_error():
    with pytest.raises(TypeError):
        literals.literal(None)
    assert utils.eval_bool(None, default=True) is True


def test_every_module_of_the_host_reads_options_as_literals():
    written_in_python = [
        module
        for module in patching.host_modules()
        if module.__name__.startswith("fairseq.") and str(module.__file__).endswith(".py")
    ]
    evaluating = [
        module
        for module in written_in_python
        if re.search(r"(?<![.\w])eval\(", Path(module.__file__).read_text())
    ]
    assert len(evaluating) > 10
    assert [m.__name__ for m in evaluating if vars(m).get("eval") is not literals.literal] == []


@pytest.mark.parametrize(
    "text, program",
    [
        ("__import__('os').system('true')", True),
        ("os.system('true')", True),
        ("exec('1')", True),
        ("().__class__.__base__.__subclasses__()", True),
        ("[print(i) for i in (1,)]", True),
        ("runs(1)", False),
        ("/data(1)/x", False),
        ("(0.9, 0.98)", False),
        ("{'beam': 2}", False),
        ("a (b", False),
    ],
)
def test_programs_are_told_from_options(text, program):
    assert literals.is_program(text) is program
