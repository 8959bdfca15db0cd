"""Which axis of a layer's activations holds the channels, and which axes are places in the image.

Nothing in a tensor says it. What says it is the module: a convolution and a batch norm have their channels on axis 1, a
layer norm and a linear layer on the last one; any other module has parameters whose sizes are its numbers of features.
What remains unclear is weighed against the image, whose places a map cannot outnumber, or refused.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from ..tokens import fitting_grids
from .checks import described
from .layers import Layer
from .wrappers import every_module

_FIRST = (
    _ConvNd,
    _NormBase,
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
    nn.GroupNorm,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
_LAST = (nn.LayerNorm, nn.RMSNorm, nn.Linear, nn.Embedding)
_COLOURS = (1, 2, 3, 4)
_DISTORTED = 1.1
"""Tokens that are reduced so much more along one axis are refused where another grid fits the image better."""
_ALIKE = 2.0
"""How much more an image may be reduced along one axis than along another, where no module tells."""
_PADDING = 2
"""By so many places a layer may be larger than the image because of its padding."""

ImageSize = tuple[int, ...] | None


def image_size(shape: Sequence[int], channels: int | None = None) -> ImageSize:
    """The spatial size of images of a shape, where it is certain.

    Args:
        shape: Of the image argument, with the batch first.
        channels: How many the model takes, see :func:`input_channels`.

    Returns:
        ``S`` of ``(B, C, *S)`` with up to three dimensions, where images that have their channels last, ``(B, *S, C)``,
        and clips frame by frame, ``(B, T, C, H, W)``, are recognised by what the model takes, or else by the usual
        numbers of colours; None for anything else, as for series ``(B, T, F)``, whose axes cannot be told.
    """
    if len(shape) == 3:
        return None if shape[1] > shape[2] else tuple(shape[2:])
    if len(shape) not in (4, 5):
        return None
    possible = [1, len(shape) - 1] if len(shape) == 4 else [1, 2, 4]
    matching = [axis for axis in possible if shape[axis] == channels]
    if not matching:
        matching = [1] if shape[1] in _COLOURS else [axis for axis in possible if shape[axis] in _COLOURS]
    axis = matching[0] if matching else 1
    return tuple(length for number, length in enumerate(shape) if number not in (0, axis))


def input_channels(model: nn.Module) -> int | None:
    """How many channels the first convolution of a model takes; None without one."""
    first = _first_convolution(model)
    return None if first is None else first.in_channels


def grid_of(
    layer: Layer,
    model: nn.Module,
    tensor: Tensor,
    image: Sequence[int] | None,
    reshape_transform: Callable[..., Tensor] | None = None,
) -> Callable[[Tensor], Tensor]:
    """How to bring the activations of a layer, or their gradients, into the form ``(B, C, *S)``.

    Args:
        layer: The layer.
        model: The model.
        tensor: Its activations.
        image: The shape of the image argument; None if there is none.
        reshape_transform: What the user says; by default it is found out.

    Returns:
        A function of tensors of this shape.

    Raises:
        ValueError: If there are no positions, if they are not places in the image, or if the axes cannot be told.
    """
    shape = tuple(tensor.shape)
    size = None if image is None else image_size(image, input_channels(model))
    if reshape_transform is not None:
        given = _with_image(reshape_transform, model, size)
        grid = given(tensor)
        _check_given(layer, tensor, grid, size, patch_grid(model, size) if size else None)
        return given
    if len(shape) < 3:
        raise _no_positions(layer, shape)
    axis = channel_axis(layer.module, model, shape, size)
    if axis is None:
        raise ValueError(
            f"layer {layer.name} gives {shape}, whose channels may be the second axis or the last; say which with "
            "reshape_transform=lambda x: x for the second, or reshape_transform=lambda x: x.movedim(-1, 1) for the last"
        )
    places = tuple(length for number, length in enumerate(shape) if number not in (0, axis))
    _check_places(layer, shape, axis, places, image, size)
    return _as_it_is if axis == 1 else _channels_last


def channel_axis(module: nn.Module, model: nn.Module, shape: Sequence[int], size: ImageSize) -> int | None:
    """Which axis of activations is that of the channels.

    Args:
        module: What puts them out, or what they enter.
        model: The model.
        shape: Of the activations, ``(B, ...)`` with at least three dimensions.
        size: The spatial size of the image; None if it is not known.

    Returns:
        1 or the last axis; None if it cannot be told.

    Example:
        >>> swin_like = nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 4))
        >>> channel_axis(swin_like[0], swin_like, (1, 7, 7, 96), (56, 56))
        3
    """
    last = len(shape) - 1
    if isinstance(module, _FIRST):
        return 1
    if _surely_last(module):
        return last

    def as_wide(widths: tuple[set[int], set[int]]) -> set[int]:
        return {axis for axis, known in zip((1, last), widths, strict=True) if shape[axis] in known}

    # The module itself tells most; then how the image was reduced; other modules of the model least.
    own = as_wide(_widths(module))
    if len(own) == 1:
        return own.pop()
    reduced = {axis: _reduction(tuple(shape[1:axis]) + tuple(shape[axis + 1 :]), size) for axis in (1, last)}
    for most in (_ALIKE, _DISTORTED):
        evenly = [axis for axis, distortion in reduced.items() if distortion <= most]
        if len(evenly) == 1:
            return evenly[0]
    widths = _widths(model)
    whole = as_wide(widths)
    if len(whole) == 1:
        return whole.pop()
    if not whole and set(shape[2:last]) & widths[0]:
        return None  # the channels lie between, as in clips that are (B, T, C, H, W)
    # The convention, unless something in this model has its channels last.
    return 1 if not whole or not _has_channels_last(model) else None


def patch_grid(model: nn.Module, size: Sequence[int]) -> tuple[int, ...] | None:
    """The grid of patches that the first convolution of a model makes of an image.

    Args:
        model: The model.
        size: The spatial size of the image.

    Returns:
        As many numbers; None if the model does not start with a convolution of as many dimensions.
    """
    first = _first_convolution(model)
    if first is None or len(first.kernel_size) != len(size) or isinstance(first.padding, str):
        return None
    found = tuple(
        (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for length, padding, dilation, kernel, stride in zip(
            size, first.padding, first.dilation, first.kernel_size, first.stride, strict=True
        )
    )
    return found if min(found) > 0 else None


def _first_convolution(model: nn.Module) -> _ConvNd | None:
    return next((module for module in model.modules() if isinstance(module, _ConvNd)), None)


def _check_places(
    layer: Layer,
    shape: tuple[int, ...],
    axis: int,
    places: tuple[int, ...],
    image: Sequence[int] | None,
    size: ImageSize,
) -> None:
    """Refuse positions that are not places in the image."""
    if len(places) == 1 and axis == 2 and not _are_steps(places[0], image):
        raise ValueError(
            f"layer {layer.name} gives {shape}: tokens, not a grid of places in {_described(image)}; pass "
            "reshape_transform= a function that brings them into the form (B, C, ...), such as tokens_to_grid of "
            "diffgradcam.tokens for the patches of an image"
        )
    if (
        size is not None
        and len(size) == len(places)
        and any(place > length + _PADDING for place, length in zip(places, size, strict=True))
    ):
        raise ValueError(
            f"layer {layer.name} gives {shape}: {' x '.join(map(str, places))} places are finer than the image, "
            f"{' x '.join(map(str, size))}; if they are places all the same, say so with reshape_transform=lambda x: x "
            "(channels on the second axis) or reshape_transform=lambda x: x.movedim(-1, 1) (on the last)"
        )


def _check_given(layer: Layer, tensor: Tensor, grid: object, size: ImageSize, patches: tuple[int, ...] | None) -> None:
    """Refuse what the user's transform returned, if it is certainly not a grid of places in the image."""
    if not isinstance(grid, Tensor):
        raise TypeError(f"reshape_transform= returned {described(grid)}; expected a tensor (B, C, ...)")
    shape, given = tuple(tensor.shape), tuple(grid.shape)
    if len(given) < 3:
        raise _no_positions(layer, given)
    if given == shape and _surely_last(layer.module):
        raise ValueError(
            f"layer {layer.name} gives {shape} with its {shape[-1]} channels on the last axis, and reshape_transform= "
            "leaves them there, where they would be read as places; pass reshape_transform=lambda x: x.movedim(-1, 1)"
        )
    if tensor.ndim != 3 or size is None or len(size) != 2 or len(given) != 4:
        return
    found = given[2:]
    if _distortion(found, size) <= _DISTORTED:
        return
    fitting = [each for each in fitting_grids(shape[1], size, patches) if _distortion(each.grid, size) <= _DISTORTED]
    if fitting:
        rows, columns = fitting[0].grid
        raise ValueError(
            f"reshape_transform= makes {found[0]} x {found[1]} places of the {shape[1]} tokens of layer {layer.name}, "
            f"but the image is {size[0]} x {size[1]}, which fits {rows} x {columns} and {fitting[0].extra} more; pass "
            "reshape_transform=tokens_to_grid of diffgradcam.tokens itself, which is told the size of the image, or "
            f"functools.partial(tokens_to_grid, height={rows}, width={columns})"
        )


def _with_image(
    reshape_transform: Callable[..., Tensor], model: nn.Module, size: ImageSize
) -> Callable[[Tensor], Tensor]:
    """Tell a transform the size of the image and the grid of patches, if it has parameters of these names."""
    try:
        parameters = inspect.signature(reshape_transform).parameters
    except (TypeError, ValueError):  # a function that Python cannot look into
        return reshape_transform
    # An empty size says that the image has none that is certain, so that nothing is guessed.
    known = {"image_size": size or (), "patch_grid": patch_grid(model, size) if size else None}
    told = {name: value for name, value in known.items() if name in parameters and value is not None}
    return functools.partial(reshape_transform, **told) if told else reshape_transform


def _surely_last(module: nn.Module) -> bool:
    """Whether a module has its channels on the last axis, whatever the shape."""
    # A subclass may take its channels elsewhere, as the LayerNorm2d of several libraries does.
    return type(module) in _LAST and (not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1)


def _no_positions(layer: Layer, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"layer {layer.name} has no spatial positions: its activations have shape {shape}; choose a layer before the "
        "pooling, whose activations are (B, C, ...)"
    )


def _distortion(grid: Sequence[int], size: Sequence[int]) -> float:
    """How much more an image was reduced along one axis than along another; 1 for not at all."""
    ratios = [length / places for length, places in zip(size, grid, strict=True)]
    return max(ratios) / min(ratios)


def _are_steps(tokens: int, image: Sequence[int] | None) -> bool:
    """Whether tokens are the steps of a series, or equal parts of it, of floating-point input ``(B, T, F)``."""
    if image is None or len(image) != 3:
        return False
    return any(length % tokens == 0 and tokens > 1 for length in image[1:])


def _described(image: Sequence[int] | None) -> str:
    return "an image" if image is None else f"the input {tuple(image)}"


def _widths(module: nn.Module) -> tuple[set[int], set[int]]:
    """The numbers of features that a module has on axis 1, and on the last one: the sizes of its parameters."""
    first: set[int] = set()
    last: set[int] = set()
    for part in every_module(module):
        sizes = {
            size for parameter in part._parameters.values() if parameter is not None for size in parameter.shape[:2]
        }
        if type(part) not in _LAST:
            first |= sizes
        if not isinstance(part, _FIRST):
            last |= sizes
    return first, last


def _reduction(places: Sequence[int], size: ImageSize) -> float:
    """How much more an image of this size was reduced along one axis than along another; infinite if impossible."""
    if size is None or len(size) != len(places) or not prod(places):
        return math.inf
    if any(place > length + _PADDING for place, length in zip(places, size, strict=True)):
        return math.inf
    return _distortion(places, size)


def _has_channels_last(model: nn.Module) -> bool:
    return any(type(module) in (nn.LayerNorm, nn.RMSNorm) for module in model.modules())


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1)
