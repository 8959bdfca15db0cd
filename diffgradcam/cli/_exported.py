"""An exported model as the subject of ``explain``: no PyTorch model, only a file for ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource
from torch import nn

from ..export import OnnxExplainer
from ._images import Preparation
from ._models import LoadedModel
from ._subject import Subject

_IN_THE_FILE = {
    "methods": "--method", "classes": "--class", "top": "--top", "baseline": "--baseline", "layers": "--layer",
    "model": "--model", "pretrained": "--pretrained", "weights": "--weights", "size": "--size", "mean": "--mean",
    "std": "--std", "device": "--device",
}  # fmt: skip


class Exported(NamedTuple):
    """What a file of ``diffgradcam export`` holds.

    Attributes:
        explainer: What runs it.
        subject: What is known of the model.
        method: The name of the method.
    """

    explainer: OnnxExplainer
    subject: Subject
    method: str


def read_exported(file: Path) -> Exported:
    """Open a file of ``diffgradcam export``.

    Args:
        file: The file.

    Returns:
        See :class:`Exported`.

    Raises:
        click.UsageError: If an option is given that the file has settled.
        ValueError: If the file was not written by that command.
    """
    context = click.get_current_context()
    for name, option in _IN_THE_FILE.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--onnx and {option} are both given; the file has its own: export it with {option}")
    explainer = OnnxExplainer(file)
    facts = explainer.facts
    try:
        preparation = _preparation(facts["preparation"], explainer.size)
        loaded = LoadedModel(str(facts["model"]), nn.Module(), preparation, explainer.class_names, facts["untrained"])
        return Exported(explainer, Subject(loaded, [], [str(facts["layer"])], None, ()), str(facts["method"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} does not say how its images are prepared ({error}); expected a file of 'diffgradcam export'"
        ) from error


def _preparation(facts: Mapping[str, Any], size: tuple[int, ...]) -> Preparation:
    mean, std = (tuple(map(float, facts[name])) for name in ("mean", "std"))
    preparation = Preparation(int(facts["size"]), mean, std, float(facts["crop"]))
    side = preparation.size
    if size != (len(mean), side, side) or len(mean) not in (1, 3) or len(std) != len(mean):
        raise ValueError(f"images are prepared as {preparation}, but the model takes {size}")
    if not 0 < preparation.crop <= 1 or not all(map(math.isfinite, (*mean, *std))) or 0 in std:
        raise ValueError(f"images cannot be prepared as {preparation}")
    return preparation
