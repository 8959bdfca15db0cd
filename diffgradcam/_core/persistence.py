"""Files that are complete or not there, and hashes of weights that tell one checkpoint from another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor


@contextmanager
def atomic_file(path: Path, writer: int = 0) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name when it is complete and on the disk, or not at all.

    Args:
        path: Where it will be.
        writer: A number of this process, where several may write the same file.

    Yields:
        A file to write bytes to. It has another name until the block ends; if the block raises, it is removed.
    """
    partial = path.with_name(f".{path.name}.{writer}.partial")  # the next attempt overwrites what a kill left of it
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def weight_hash(state: Mapping[str, Any]) -> str:
    """A hash of the names and the values of tensors, such as those of a ``state_dict``.

    Args:
        state: Tensors by name. Other values are passed over.

    Returns:
        SHA-256, in hexadecimal digits. It is the same for the same bits on any device.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
