"""Checkpoints are whole: under its name a file is there with all it should hold, or as it was before."""

import os
import shutil
from contextlib import contextmanager, suppress
from typing import BinaryIO, Iterator

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from diffusion_fairseq.compat.patching import replace
from diffusion_fairseq.errors import UserError


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write what is to be at `path`; it gets there in one step, when all of it is on the disk.

    Raises:
        UserError: the disk is full, or the folder not to be written to; what was at `path` still is.
    """
    unfinished = f"{path}.tmp"
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            os.remove(unfinished)
        # What torch's writer says at the end hides what the system said.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be written: {reason}. Those before it are as they were: make room, "
                        "or copy the last one to another --save-dir, and start again") from error


def save_whole_checkpoints() -> None:
    """Write and copy checkpoints so that none is ever half there; say in one line that the disk is full.

    Both hosts: a copy, such as checkpoint_last.pt of one that was saved at an interval, is written over the one before,
    so that a process killed meanwhile leaves half a file where training is to go on; where the disk is full they try
    three times and show tracebacks.
    """
    save, copy = checkpoint_utils.torch_persistent_save, PathManager.copy

    def torch_persistent_save(obj, filename, async_write=False):
        if async_write or PathManager.path_requires_pathmanager(filename):
            return save(obj, filename, async_write=async_write)
        with whole_file(filename) as file:
            torch.save(obj, file)

    def copy_whole(src_path, dst_path, overwrite=False):
        if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
            return copy(src_path, dst_path, overwrite=overwrite)
        with open(src_path, "rb") as source, whole_file(dst_path) as file:
            shutil.copyfileobj(source, file)
        return True

    replace(checkpoint_utils, "torch_persistent_save", torch_persistent_save)
    PathManager.copy = staticmethod(copy_whole)
