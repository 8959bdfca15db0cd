"""Backward operators in terms of forward ones, for runtimes that have no others, such as ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _convolution_backward(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    _bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
    _mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of a convolution's input is the transposed convolution of the gradient of its output."""
    if transposed:
        zeros = [0] * len(stride)
        found = _aten.convolution(gradient, weight, None, stride, padding, dilation, False, zeros, groups)
        return found, None, None
    return _input_gradient(gradient, images, weight, stride, padding, dilation, groups), None, None


def _input_gradient(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    # Of the inputs that give outputs of this size, the size of this one.
    missing = [
        size - ((short - 1) * step - 2 * pad + spread * (kernel - 1) + 1)
        for size, short, step, pad, spread, kernel in zip(
            images.shape[2:], gradient.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    found: Tensor = _aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups)
    return found


def _max_pool_backward(
    gradient: Tensor,
    images: Tensor,
    _kernel: Sequence[int],
    _stride: Sequence[int],
    _padding: Sequence[int],
    _dilation: Sequence[int],
    _ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each output's gradient belongs to the position that was the largest."""
    zeros = torch.zeros_like(images).flatten(2)
    return zeros.scatter_add(2, indices.flatten(2), gradient.flatten(2)).view_as(images)


def _average_pool_backward(
    gradient: Tensor,
    images: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor | Any:
    """An average pooling is a convolution of each channel with equal weights, if all windows are of one size."""
    steps, dims = stride or kernel, range(len(kernel))
    left_over = [(images.shape[2 + i] + 2 * padding[i] - kernel[i]) % steps[i] for i in dims]
    if (ceil_mode and any(left_over)) or (any(padding) and not count_include_pad):
        return NotImplemented
    channels = images.shape[1]
    weight = gradient.new_full((channels, 1, *kernel), 1 / (divisor or prod(kernel)))
    return _input_gradient(gradient, images, weight, steps, padding, [1 for _ in dims], channels)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.convolution_backward.default: _convolution_backward,
    _aten.avg_pool2d_backward.default: _average_pool_backward,
    _aten.avg_pool3d_backward.default: _average_pool_backward,
    _aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    _aten.max_pool3d_with_indices_backward.default: _max_pool_backward,
}
