"""What a call opens and unpickles, as Python itself tells (``sys.addaudithook``)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .messages import is_ours

WATCHED: list[str] | None = None
"""While something runs that is watched: the files that it opened, and the functions that it unpickled."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED is not None and event == "open" and isinstance(arguments[0], str | bytes):
        WATCHED.append(os.fsdecode(arguments[0]))
    if WATCHED is not None and event == "pickle.find_class":
        WATCHED.append(f"{arguments[0]}.{arguments[1]}, unpickled")


sys.addaudithook(_watch)


@contextlib.contextmanager
def nothing_outside(root: Path) -> Iterator[None]:
    """Assert that nothing is unpickled, and of the folder above ``root`` nothing is opened but what is in ``root``."""
    global WATCHED
    WATCHED = []
    try:
        yield
    finally:
        seen, WATCHED = WATCHED, None
    assert [each for each in seen if each.endswith(", unpickled")] == []
    files = [Path(name).resolve() for name in seen]
    above, root = root.parent.resolve(), root.resolve()
    assert [file for file in files if file.is_relative_to(above) and not file.is_relative_to(root)] == []


def attempted(root: Path, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What work returns, or the error that it ends with, which is one of our own."""
    with nothing_outside(root):
        try:
            return work(), None
        except Exception as error:
            if not is_ours(error):
                raise
            return None, error
