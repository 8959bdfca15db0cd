"""Bring the tokens of a transformer into the form ``(B, C, h, w)``.

Choose a layer whose patches still reach the logits. Where the class token alone is read at the end, that is the norm
that enters the last block (``blocks[-1].norm1``, ``layers.11.layernorm_before``): after the last attention the patches
have no gradient any more, and the map is 0 everywhere.
"""

from __future__ import annotations

import math

from torch import Tensor

# None; class; class and distillation, as in DeiT; four registers; class and four registers, as in DINOv2.
EXTRA_TOKENS = (0, 1, 2, 4, 5)


def tokens_to_grid(
    tensor: Tensor, height: int | None = None, width: int | None = None, extra_tokens: int | None = None
) -> Tensor:
    """Tokens of a vision transformer as a grid; what is not given is inferred, and never guessed.

    Use it as ``reshape_transform=tokens_to_grid``. Without a size the grid is taken to be square, because images mostly
    are: **give height and width for images that are not**, with ``functools.partial``. Tokens don't tell their shape:
    12 by 14 patches and a class token are as many as 13 by 13 patches.

    Args:
        tensor: Tokens ``(B, extra + h * w, C)`` with the extra ones first; a grid with the channels last,
            ``(B, h, w, C)``, as of newer Swin models; or one with the channels first, ``(B, C, h, w)``, which stays.
        height: Rows of patches.
        width: Columns of patches.
        extra_tokens: How many class, distillation and register tokens come before the patches. By default one of 0, 1,
            2, 4 or 5, whichever leaves such a grid.

    Returns:
        ``(B, C, h, w)``, without the extra tokens.

    Raises:
        ValueError: If no grid fits, or more than one; the message names those that would.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> tokens_to_grid(torch.rand(2, 197, 8)).shape, tokens_to_grid(torch.rand(2, 7, 7, 8)).shape
        (torch.Size([2, 8, 14, 14]), torch.Size([2, 8, 7, 7]))
        >>> partial(tokens_to_grid, height=14, width=21)(torch.rand(2, 299, 8)).shape  # four registers, a class token
        torch.Size([2, 8, 14, 21])

        Tokens that come last are cut off first, here the 100 of YOLOS; video tokens need no more than PyTorch:

        >>> tokens_to_grid(torch.rand(2, 1 + 16 + 100, 8)[:, :-100]).shape
        torch.Size([2, 8, 4, 4])
        >>> torch.rand(2, 8 * 14 * 14, 5).transpose(1, 2).unflatten(2, (8, 14, 14)).shape
        torch.Size([2, 5, 8, 14, 14])
    """
    for name, value, least in (("height", height, 1), ("width", width, 1), ("extra_tokens", extra_tokens, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    if tensor.ndim == 3:
        rows, columns, extra = _grid_of_tokens(tensor, height, width, extra_tokens)
        return tensor[:, extra:].transpose(1, 2).reshape(len(tensor), tensor.shape[2], rows, columns)
    if tensor.ndim == 4:
        return tensor.movedim(3, 1) if _channels_last(tensor, height, width, extra_tokens) else tensor
    raise ValueError(
        f"expected tokens (B, N, C) or a grid (B, h, w, C), got shape {tuple(tensor.shape)}; for other activations "
        "pass a function of your own that brings them into the form (B, C, ...)"
    )


def vit_reshape_transform(tensor: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
    """Tokens of a vision transformer with one leading class token: the function of pytorch-grad-cam.

    Args:
        tensor: ``(B, 1 + height * width, C)``.
        height: Rows of patches; without it and the width, the grid is square (there: 14 by 14).
        width: Columns of patches.

    Returns:
        ``(B, C, height, width)``, without the class token.

    Raises:
        ValueError: As :func:`tokens_to_grid`.
    """
    return tokens_to_grid(tensor, height, width, extra_tokens=1)


def swinT_reshape_transform(tensor: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
    """Tokens of a Swin transformer, which has no class token: the function of pytorch-grad-cam.

    Args:
        tensor: ``(B, height * width, C)``, or ``(B, height, width, C)`` as newer Swin models put out.
        height: Rows of patches; without it and the width, the grid is square (there: 7 by 7).
        width: Columns of patches.

    Returns:
        ``(B, C, height, width)``.

    Raises:
        ValueError: As :func:`tokens_to_grid`.
    """
    return tokens_to_grid(tensor, height, width, extra_tokens=0)


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
    # Not only what was asked for: the tokens of DeiT do not fit one class token, but they fit two extra tokens.
    others = [(*grid, extra) for extra in EXTRA_TOKENS if (grid := _nearest_square(count - extra))]
    possible = fitting or sorted(others, key=lambda grid: grid[1] / grid[0])
    raise ValueError(
        f"the {count} tokens of activations {tuple(tensor.shape)} are {'' if fitting else 'not '}{wanted} with {extras}"
        f"{' in more than one way' if fitting else ''}; possible grids, height x width + extra tokens: "
        f"{', '.join(f'{rows} x {columns} + {extra}' for rows, columns, extra in possible) or 'none'}. Give yours, "
        "such as reshape_transform=functools.partial(tokens_to_grid, "
        + "height={}, width={}, extra_tokens={})".format(*(possible[0] if possible else ("...",) * 3))
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


def _nearest_square(patches: int) -> tuple[int, int] | None:
    """The grid whose sides differ least, to be named in a message; None if one is more than thrice the other."""
    rows = next((side for side in range(math.isqrt(max(patches, 0)), 0, -1) if patches % side == 0), 0)
    return (rows, patches // rows) if rows and patches // rows <= 3 * rows else None


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
