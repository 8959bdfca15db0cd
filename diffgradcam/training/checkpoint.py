"""State on disk: tensors as safetensors, everything else as JSON in their metadata. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.optional import import_optional
from .._core.persistence import atomic_file

_KEY = "diffgradcam"


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: By name.
        about: What JSON can hold.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below a name.

        Args:
            name: Such as ``"model"`` for ``"model.conv.weight"``.

        Returns:
            Without that name in front.
        """
        return {
            key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write beside, then move: after a crash there is the old file or the new one, whole.

    Args:
        path: A ``.safetensors`` file, in a folder that exists.
        tensors: By name.
        about: What JSON can hold.

    Raises:
        ImportError: If safetensors is not installed.
    """
    save = import_optional("safetensors.torch", "a checkpoint").save
    whole = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(save(whole, metadata={_KEY: json.dumps(about)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`write_checkpoint` wrote. No code of the file is run.

    Args:
        path: A ``.safetensors`` file.

    Returns:
        See :class:`Checkpoint`.

    Raises:
        ValueError: If it is not such a file, or was not written here.
        ImportError: If safetensors is not installed.
    """
    safetensors = import_optional("safetensors", "a checkpoint")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        known = json.loads(about or "")
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise ValueError(f"{path} has no settings of a training in it; expected a file that 'diffgradcam train' wrote")
    return Checkpoint(tensors, known)


def check_weights(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not those of a model: PyTorch would convert other types of numbers, and say nothing.

    Args:
        tensors: By name.
        expected: The model's ``state_dict()``.

    Raises:
        ValueError: If a name, a shape or a type of numbers differs.
    """
    for name in sorted(tensors.keys() | expected.keys()):
        found, own = tensors.get(name), expected.get(name)
        if found is None or own is None or found.shape != own.shape or found.dtype != own.dtype:
            raise ValueError(f"the weights {name!r} are {_kind(found)}; expected {_kind(own)}")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Take an optimiser's state apart.

    Args:
        optimizer: Any of PyTorch's whose state is tensors and numbers.

    Returns:
        Tensors as ``"INDEX.NAME"``, and the groups of parameters with their options.
    """
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
        if value is not None
    }
    return tensors, state["param_groups"]


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put together what :func:`optimizer_tensors` took apart.

    Args:
        optimizer: Of the same parameters.
        tensors: As returned there.
        groups: As returned there.

    Raises:
        ValueError: If a tensor is not of the shape and type of its parameter, or is missing.
        LookupError: If there is no such parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        own = parameters[int(index)]
        if value.shape not in (own.shape, ()) or value.dtype not in (own.dtype, torch.float32):
            raise ValueError(f"the state {key!r} of the optimizer is {_kind(value)}; expected {_kind(own)}")
        state.setdefault(int(index), {})[name] = value
    if len({tuple(sorted(values)) for values in state.values()}) > 1:
        raise ValueError("the state of the optimizer has other parts for some weights than for others")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _kind(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype}, {tuple(tensor.shape)}"
