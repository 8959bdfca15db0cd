"""Small functions on tensors that several modules share."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Half precision to float32; anything wider stays. Sums over positions and exponentials overflow in less."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def columns(classes: Tensor) -> Tensor:
    """Classes ``(B,)`` as ``(B, 1)``; ``(B, N)`` stays."""
    return classes.unsqueeze(1) if classes.ndim == 1 else classes


def spread(weights: Tensor, dims: int) -> Tensor:
    """Append dimensions of size 1 until there are ``dims``: weights of channels that broadcast to positions."""
    return weights.view(*weights.shape, *[1] * (dims - weights.ndim))


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor; where they are all the same one, without copies of it.

    Args:
        tensor: ``(B, ...)``.
        rows: ``(M,)``, in ascending order, on the CPU.

    Returns:
        ``(M, ...)``; PyTorch refuses to overwrite rows that share memory.
    """
    if len(rows) > 1 and rows[0] == rows[-1]:
        first = int(rows[0])
        return tensor[first : first + 1].expand(len(rows), *tensor.shape[1:])
    return tensor[rows.to(tensor.device)]


def plain(tensor: Tensor) -> Tensor:
    """A tensor without what a subclass adds, such as the metadata of an image, which is not true of maps of it."""
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    return tensor.as_subclass(Tensor)


def outside_inference_mode() -> contextlib.AbstractContextManager[object]:
    """Leave inference mode, where tensors are made that autograd cannot use. Costs nothing where it is off."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


def normal(value: Any) -> Any:
    """A tensor that autograd may save, also where the caller made it under ``inference_mode``; others stay."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
