"""Bring the tokens of a transformer into the form ``(B, C, h, w)``.

Choose a layer whose patches still reach the logits. Where the class token alone is read at the end, that is the norm
that enters the last block (``blocks[-1].norm1``, ``layers.11.layernorm_before``): after the last attention the patches
have no gradient any more, and the map is 0 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# None; class; class and distillation, as in DeiT; four registers; class and four registers, as in DINOv2.
EXTRA_TOKENS = (0, 1, 2, 4, 5)
_MOST_EXTRA = 8  # before patches whose grid is known
_MOST_HALVINGS = 6


class FittingGrid(NamedTuple):
    """A grid that so many tokens may be.

    Attributes:
        grid: Rows and columns of patches, or more dimensions.
        extra: How many tokens come before the patches.
    """

    grid: tuple[int, ...]
    extra: int


def tokens_to_grid(
    tensor: Tensor,
    height: int | None = None,
    width: int | None = None,
    extra_tokens: int | None = None,
    *,
    image_size: Sequence[int] | None = None,
    patch_grid: Sequence[int] | None = None,
) -> Tensor:
    """Tokens of a vision transformer as a grid, taken from the image and never guessed.

    Use it as ``reshape_transform=tokens_to_grid``: the CAM tells it the size of the image and the grid of patches that
    the model's first convolution makes of it. Called by yourself, give one of them, or ``height`` and ``width``;
    without any, only a square grid is accepted.

    Args:
        tensor: Tokens ``(B, extra + patches, C)`` with the extra ones first; a grid with the channels last,
            ``(B, h, w, C)``, as of newer Swin models; or one with the channels first, ``(B, C, h, w)``, which stays.
        height: Rows of patches.
        width: Columns of patches.
        extra_tokens: How many class, distillation and register tokens come before the patches. By default whatever the
            grid leaves over, if that is one of the usual numbers.
        image_size: The spatial size of the image, in pixels; of volumes and clips three numbers; empty if it is not
            certain.
        patch_grid: The grid of patches that the model makes of the image.

    Returns:
        ``(B, C, h, w)``, without the extra tokens; with one more dimension for volumes and clips.

    Raises:
        ValueError: If no grid fits, or more than one; the message names those that fit the image. If ``image_size`` is
            empty, tokens are given, and neither ``height`` nor ``width``.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> tokens_to_grid(torch.rand(2, 197, 8)).shape, tokens_to_grid(torch.rand(2, 7, 7, 8)).shape
        (torch.Size([2, 8, 14, 14]), torch.Size([2, 8, 7, 7]))
        >>> tokens_to_grid(torch.rand(2, 169, 8), image_size=(192, 224)).shape  # 12 x 14 patches and a class token
        torch.Size([2, 8, 12, 14])
        >>> partial(tokens_to_grid, height=14, width=21)(torch.rand(2, 299, 8)).shape  # four registers, a class token
        torch.Size([2, 8, 14, 21])
        >>> tokens_to_grid(torch.rand(2, 64, 8), image_size=(16, 16, 16)).shape  # of a volume
        torch.Size([2, 8, 4, 4, 4])

        Tokens that come last are cut off first, here the 100 of YOLOS:

        >>> tokens_to_grid(torch.rand(2, 1 + 16 + 100, 8)[:, :-100]).shape
        torch.Size([2, 8, 4, 4])
    """
    for name, value, least in (("height", height, 1), ("width", width, 1), ("extra_tokens", extra_tokens, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    if tensor.ndim == 3:
        if image_size is not None and not len(image_size) and height is None and width is None:
            raise ValueError(
                f"the {tensor.shape[1]} tokens of activations {tuple(tensor.shape)} are of an input whose size as an "
                "image is not certain; give the grid that they are, such as reshape_transform=functools.partial("
                "tokens_to_grid, height=..., width=..., extra_tokens=...)"
            )
        if image_size is None or height is not None or width is not None:
            rows, columns, extra = _grid_of_tokens(tensor, height, width, extra_tokens)
            found = FittingGrid((rows, columns), extra)
        else:
            found = _grid_in_image(tensor, tuple(image_size), patch_grid, extra_tokens)
        return tensor[:, found.extra :].transpose(1, 2).reshape(tensor.shape[0], tensor.shape[2], *found.grid)
    if tensor.ndim == 4:
        if height is None and width is None and image_size is not None and len(image_size) == 2:
            height, width = _sides(tensor, image_size)
        return tensor.movedim(3, 1) if _channels_last(tensor, height, width, extra_tokens) else tensor
    raise ValueError(
        f"expected tokens (B, N, C) or a grid (B, h, w, C), got shape {tuple(tensor.shape)}; for other activations "
        "pass a function of your own that brings them into the form (B, C, ...)"
    )


def fitting_grids(
    tokens: int,
    image_size: Sequence[int],
    patch_grid: Sequence[int] | None = None,
    extra_tokens: int | None = None,
) -> list[FittingGrid]:
    """The grids that so many tokens of an image may be, those first that need the least to be assumed.

    Args:
        tokens: How many.
        image_size: The spatial size of the image.
        patch_grid: The grid of patches that the model makes of the image, if it is known; a later layer may have
            halved it several times. Otherwise square patches of any size.
        extra_tokens: How many tokens come before the patches, if that is known.

    Returns:
        The grids.

    Example:
        >>> fitting_grids(169, (192, 224))
        [FittingGrid(grid=(12, 14), extra=1)]
    """
    if patch_grid is not None:
        bases = [tuple(patch_grid)]
    else:
        sides = [side for side in range(min(image_size), 0, -1) if all(length % side == 0 for length in image_size)]
        bases = [tuple(length // side for length in image_size) for side in sides]
    found = []
    for halved in range(_MOST_HALVINGS if patch_grid is not None else 1):
        for base in bases:
            # Of a clip, time may stay as it is where rows and columns are halved.
            for kept in {0, len(base) - 2} if halved else {0}:
                grid = base[:kept] + tuple(-(-length // 2**halved) for length in base[kept:])
                extra = tokens - math.prod(grid)
                most = _MOST_EXTRA if patch_grid is not None and not halved else 0
                usual = extra in EXTRA_TOKENS or 0 <= extra <= most
                if min(grid) > 0 and (extra == extra_tokens or (extra_tokens is None and usual)):
                    found.append(FittingGrid(grid, extra))
    return list(dict.fromkeys(found))


def vit_reshape_transform(
    tensor: Tensor,
    height: int | None = None,
    width: int | None = None,
    *,
    image_size: Sequence[int] | None = None,
    patch_grid: Sequence[int] | None = None,
) -> Tensor:
    """Tokens of a vision transformer with one leading class token: the function of pytorch-grad-cam.

    Args:
        tensor: ``(B, 1 + height * width, C)``.
        height: Rows of patches; without it and the width, the grid is taken from the image (there: 14 by 14), and is
            square where nothing is told of the image.
        width: Columns of patches.
        image_size: As :func:`tokens_to_grid`; the CAM gives it.
        patch_grid: As :func:`tokens_to_grid`; the CAM gives it.

    Returns:
        ``(B, C, height, width)``, without the class token.

    Raises:
        ValueError: As :func:`tokens_to_grid`.
    """
    return tokens_to_grid(tensor, height, width, extra_tokens=1, image_size=image_size, patch_grid=patch_grid)


def swinT_reshape_transform(
    tensor: Tensor,
    height: int | None = None,
    width: int | None = None,
    *,
    image_size: Sequence[int] | None = None,
    patch_grid: Sequence[int] | None = None,
) -> Tensor:
    """Tokens of a Swin transformer, which has no class token: the function of pytorch-grad-cam.

    Args:
        tensor: ``(B, height * width, C)``, or ``(B, height, width, C)`` as newer Swin models put out.
        height: Rows of patches; without it and the width, the grid is taken from the image (there: 7 by 7), and is
            square where nothing is told of the image.
        width: Columns of patches.
        image_size: As :func:`tokens_to_grid`; the CAM gives it.
        patch_grid: As :func:`tokens_to_grid`; the CAM gives it.

    Returns:
        ``(B, C, height, width)``.

    Raises:
        ValueError: As :func:`tokens_to_grid`.
    """
    return tokens_to_grid(tensor, height, width, extra_tokens=0, image_size=image_size, patch_grid=patch_grid)


def _grid_in_image(
    tensor: Tensor, image_size: tuple[int, ...], patch_grid: Sequence[int] | None, extra_tokens: int | None
) -> FittingGrid:
    """The one grid of tokens ``(B, N, C)`` that fits the image."""
    count = tensor.shape[1]
    fitting = fitting_grids(count, image_size, patch_grid, extra_tokens)
    if not fitting and patch_grid is not None:  # the first convolution does not make the patches
        fitting = fitting_grids(count, image_size, None, extra_tokens)
    known = patch_grid is not None and fitting and fitting[0].grid == tuple(patch_grid)
    if len(fitting) == 1 or known:
        return fitting[0]
    size = " x ".join(map(str, image_size))
    if not fitting:
        raise ValueError(
            f"the {count} tokens of activations {tuple(tensor.shape)} are not a grid of patches of an image of {size}"
            + ("" if extra_tokens is None else f" with {extra_tokens} extra tokens")
            + "; give the grid that they are, such as reshape_transform=functools.partial(tokens_to_grid, height=..., "
            "width=..., extra_tokens=...), or choose a layer whose tokens are patches of the image"
        )
    choices = ", ".join(f"{' x '.join(map(str, each.grid))} + {each.extra}" for each in fitting)
    first = fitting[0]
    raise ValueError(
        f"the {count} tokens of activations {tuple(tensor.shape)} fit an image of {size} in more than one way: "
        f"{choices}, patches + extra tokens; give yours, such as reshape_transform=functools.partial(tokens_to_grid, "
        f"height={first.grid[-2]}, width={first.grid[-1]}, extra_tokens={first.extra})"
    )


def _sides(tensor: Tensor, image_size: Sequence[int]) -> tuple[int, int] | tuple[None, None]:
    """Height and width of a grid ``(B, h, w, C)`` or ``(B, C, h, w)`` that is reduced alike along both axes."""
    candidates = [(tensor.shape[1], tensor.shape[2]), (tensor.shape[2], tensor.shape[3])]
    distortions = [
        abs(math.log(image_size[0] * w / (image_size[1] * h))) if h and w else math.inf for h, w in candidates
    ]
    if distortions[0] == distortions[1]:
        return None, None
    return candidates[distortions.index(min(distortions))]


def _grid_of_tokens(
    tensor: Tensor, height: int | None, width: int | None, extra_tokens: int | None
) -> tuple[int, int, int]:
    """The one ``(rows, columns, extra tokens)`` that fits tokens ``(B, N, C)`` and what is given."""
    count = tensor.shape[1]
    choices = EXTRA_TOKENS if extra_tokens is None else (extra_tokens,)
    fitting = [(*grid, extra) for extra in choices if (grid := _fit(count - extra, height, width))]
    if len(fitting) == 1:
        return fitting[0]
    extras = "1 extra token" if choices == (1,) else f"{', '.join(map(str, choices))} extra tokens"
    wanted = "a square grid" if height is None and width is None else f"a grid of {_size(height, width)}"
    possible = ", ".join(f"{rows} x {columns} + {extra}" for rows, columns, extra in fitting)
    raise ValueError(
        f"the {count} tokens of activations {tuple(tensor.shape)} are {'' if fitting else 'not '}{wanted} with {extras}"
        + (f" in more than one way: {possible}, height x width + extra tokens" if fitting else "")
        + "; give image_size= (a CAM does, if reshape_transform= is tokens_to_grid itself), or the grid that they are, "
        "such as functools.partial(tokens_to_grid, height=..., width=..., extra_tokens=...)"
    )


def _fit(patches: int, height: int | None, width: int | None) -> tuple[int, int] | None:
    """The grid of so many patches, square if neither side is given; None if there is none."""
    if patches < 1:
        return None
    if height is None and width is None:
        height = width = math.isqrt(patches)
    rows = height or patches // (width or 1)
    columns = width or patches // rows
    return (rows, columns) if rows * columns == patches else None


def _channels_last(tensor: Tensor, height: int | None, width: int | None, extra_tokens: int | None) -> bool:
    """Whether ``(B, X, Y, Z)`` is a grid ``(B, h, w, C)`` rather than ``(B, C, h, w)``."""
    if extra_tokens:
        raise ValueError(
            f"extra_tokens is {extra_tokens}, but activations of shape {tuple(tensor.shape)} are a grid already, "
            "without extra tokens; leave it out"
        )

    def fits(rows: int, columns: int) -> bool:
        if height is None and width is None:
            return rows == columns
        return height in (None, rows) and width in (None, columns)

    last, first = fits(*tensor.shape[1:3]), fits(*tensor.shape[2:4])
    if last != first:
        return last
    wanted = "square" if height is None and width is None else _size(height, width)
    raise ValueError(
        f"activations {tuple(tensor.shape)} are a grid (B, h, w, C) or (B, C, h, w), and "
        f"{'both' if last else 'neither'} would be {wanted}; give height= and width=, or say which with "
        "reshape_transform=lambda x: x.movedim(3, 1) for channels that come last and no reshape_transform for channels "
        "that come first"
    )


def _size(height: int | None, width: int | None) -> str:
    return f"{'any' if height is None else height} x {'any' if width is None else width}"
