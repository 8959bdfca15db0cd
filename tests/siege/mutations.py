"""Wrong arguments, made from right ones: other types, shapes, formats, signs and sizes, nothing at all, NaN."""

from __future__ import annotations

import collections.abc
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

ANYTHING: dict[str, Any] = {
    "None": None,
    "a word": "cat",
    "an empty word": "",
    "a negative number": -1,
    "zero": 0,
    "a fraction": 1.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a large number": 99,
    "True": True,
    "an empty list": [],
    "a list of None": [None],
    "a dictionary": {},
    "an object": object(),
    "a class": nn.Linear,
    "a function of nothing": lambda *_, **__: None,
    "a number as a tensor": torch.tensor(1.0),
    "an empty tensor": torch.zeros(0),
    "four dimensions": torch.rand(2, 3, 4, 5),
    "five dimensions": torch.rand(2, 3, 4, 5, 6),
    "a module": nn.Identity(),
    "an array": np.zeros((3, 3)),
    "an array of words": np.array(["a", "b"]),
}


def of_tensor(x: torch.Tensor) -> dict[str, Any]:
    """Other shapes, formats and values."""
    return {
        "no rows": x[:0],
        "fewer rows": x[:1],
        "more rows": torch.cat([x, x]),
        "a dimension more": x.unsqueeze(-1),
        "a dimension more in front": x.unsqueeze(0),
        "a dimension less": x[0],
        "no columns": x[:, :0] if x.ndim > 1 else x[:0],
        "negative": -x if x.dtype != torch.bool else ~x,
        "large": x * 1e12 if x.is_floating_point() else x + 10**6,
        "all zero": torch.zeros_like(x),
        "float64": x.double(),
        "float16": x.half(),
        "integers": x.long(),
        "bool": x.bool(),
        "NaN within": torch.full_like(x, float("nan")) if x.is_floating_point() else x.float() * float("nan"),
        "infinity within": torch.full_like(x, float("inf")) if x.is_floating_point() else x,
        "as an array": x.detach().numpy(),
        "as a list": x.tolist(),
    }


def of_array(x: np.ndarray) -> dict[str, Any]:
    """As of tensors."""
    return {
        "no rows": x[:0],
        "a dimension more": x[..., None],
        "a dimension less": x[0],
        "negative": -x.astype(np.float64) - 0.1,
        "large": x.astype(np.float64) + 1e30,
        "NaN within": np.full(x.shape, np.nan),
        "as a tensor": torch.from_numpy(np.ascontiguousarray(x)),
        "as a list": x.tolist(),
    }


def wrong(value: Any) -> dict[str, Any]:
    """What to give in place of a right value."""
    found = dict(ANYTHING)
    if isinstance(value, torch.Tensor):
        found |= of_tensor(value)
    elif isinstance(value, np.ndarray):
        found |= of_array(value)
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int | float):
        found |= {"negated": -value, "as text": str(value), "as a list": [value], "as an array": np.float32(value)}
    elif isinstance(value, str):
        found |= {"another word": value + "x", "a list of words": [value], "twice": [value, value]}
    elif isinstance(value, list | tuple):
        found |= {
            "one less": value[:-1],
            "one more": [*value, *value[:1]],
            "of words": ["x"] * len(value),
            "of None": [None] * len(value),
            "of NaN": [float("nan")] * len(value),
            "of negative numbers": [-5] * len(value),
            "a single one": value[0] if value else None,
            "a generator": (each for each in value),
        }
    elif isinstance(value, Callable):
        found |= {"raises": fails, "returns words": lambda *_, **__: "cat"}
    return found


def fits(value: Any, annotation: Any) -> bool:
    """Whether an annotation allows a value."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return isinstance(value, str)
    if annotation in (int, float):
        kind = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if origin is collections.abc.Callable:
        # A class and a module fail within themselves.
        return callable(value) and not isinstance(value, type | nn.Module)
    if isinstance(value, str) and origin in (collections.abc.Sequence, collections.abc.Iterable):
        return False
    kind = origin or annotation
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or not isinstance(value, kind):
        return False
    sequence = isinstance(value, list | tuple) and len(inner) > 0
    return not sequence or all(fits(each, inner[0]) for each in value)


class UserError(Exception):
    """What a function of the user raises."""


def fails(*_: Any, **__: Any) -> None:
    """A function of a user's that fails."""
    raise UserError("of the user")


def copied(value: Any) -> Any:
    """A copy to compare with afterwards, of what can be compared."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, nn.Module):
        return {name: tensor.clone() for name, tensor in value.state_dict().items()}
    if isinstance(value, list | tuple | dict):
        return str(value)
    return None


def unchanged(before: Any, value: Any) -> bool:
    """Whether it is still what it was."""
    if before is None:
        return True
    now = copied(value)
    if isinstance(before, torch.Tensor):
        return before.shape == now.shape and bool(((before == now) | (before != before)).all())
    if isinstance(before, np.ndarray):
        return before.shape == now.shape and bool(((before == now) | (before != before)).all())
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in before)
    return before == now
