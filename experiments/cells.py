"""The cells of an experiment: one JSON file each, written completely or not at all, and all of one configuration.

A cell that exists is finished, so you can stop a run at any time and continue it later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgradcam._core.persistence import atomic_file

_NUMBER = r"(?:-?\d[\d.]*(?:[eE][-+]?\d+)?|null)"
_ENTRY = rf'"\w+": {_NUMBER}'
# A list, or an object, that holds nothing but numbers.
_NUMBERS = re.compile(rf"\[\s*{_NUMBER}(?:,\s*{_NUMBER})*\s*\]|\{{\s*{_ENTRY}(?:,\s*{_ENTRY})*\s*\}}")


def write(path: Path, cell: Mapping[str, Any]) -> None:
    """Write a cell at once or not at all. A list of numbers, or an object that has only numbers, takes one line.

    Args:
        path: The cell's file, ``.json``, in a folder that exists.
        cell: A value that JSON can represent.
    """
    text = _NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), json.dumps(cell, indent=1))
    with atomic_file(path) as file:
        file.write(f"{text}\n".encode())


def names(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """List the finished cells, after a check that they belong to this run.

    Args:
        folder: Folder of the cells; created if it is missing.
        config: The configuration of this run, which every cell has as ``"config"``.

    Returns:
        Names of files, without ``.json``.

    Raises:
        ValueError: If there is a cell of another configuration, because the two must not be compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected = json.loads(json.dumps(config))  # with lists for tuples, as a cell has them
    paths = sorted(folder.glob("*.json"))
    for path in paths:
        found = json.loads(path.read_text())["config"]
        if found != expected:
            raise ValueError(
                f"{path.name} was made with {found}, but this run has {expected}: "
                "move the old cells away or choose another folder with --results"
            )
    return {path.stem for path in paths}


def read(folder: Path) -> list[dict[str, Any]]:
    """All finished cells.

    Args:
        folder: Folder of the cells.

    Returns:
        The cells in the order of their names; none if there is no such folder.

    Raises:
        ValueError: If they have different configurations.
    """
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    configs = {json.dumps(cell["config"], sort_keys=True) for cell in cells}
    if len(configs) > 1:
        raise ValueError(f"the cells in {folder} have {len(configs)} configurations: keep those of one")
    return cells
