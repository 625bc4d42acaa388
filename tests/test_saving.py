"""A checkpoint is under its name with all it should hold, or the one before is."""

import errno

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from diffusion_fairseq.errors import UserError


def full_disk(_, file):
    file.write(b"some of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def save(value, path):
    checkpoint_utils.torch_persistent_save({"model": torch.full((500,), value)}, str(path))


def test_a_checkpoint_replaces_the_one_before(tmp_path):
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    for value in (1.0, 2.0):
        save(value, path)
        assert PathManager.copy(str(path), str(other), overwrite=True)
        assert torch.load(path)["model"].eq(value).all() and other.read_bytes() == path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, other]


@pytest.mark.parametrize("write", ["save", "copy"])
def test_a_full_disk_is_one_line_and_leaves_the_one_before(tmp_path, monkeypatch, write):
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    save(1.0, path)
    before = path.read_bytes()
    save(2.0, other)
    monkeypatch.setattr(torch, "save", full_disk)
    monkeypatch.setattr("shutil.copyfileobj", full_disk)
    with pytest.raises(UserError) as raised:
        save(3.0, path) if write == "save" else PathManager.copy(str(other), str(path), overwrite=True)
    assert str(raised.value).startswith(f"checkpoint {path} cannot be written: No space left on device. ")
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == [path, other]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="none/a.pt cannot be written: No such file or directory"):
        save(1.0, tmp_path / "none" / "a.pt")
