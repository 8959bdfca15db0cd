"""Bring the tokens of a transformer into the form ``(B, C, h, w)``, under pytorch-grad-cam's path and names."""

from torch import Tensor


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Tokens of a vision transformer with one leading class token.

    Args:
        tensor: ``(B, 1 + height * width, C)``.
        height: Rows of patches.
        width: Columns of patches.

    Returns:
        ``(B, C, height, width)``, without the class token.

    Raises:
        ValueError: If the number of tokens is another.
    """
    if tensor.ndim != 3 or tensor.shape[1] != 1 + height * width:
        raise ValueError(
            f"expected tokens (B, 1 + {height} * {width}, C), got shape {tuple(tensor.shape)}; give the grid of "
            "patches with functools.partial(vit_reshape_transform, height=..., width=...)"
        )
    return tensor[:, 1:].transpose(1, 2).reshape(len(tensor), -1, height, width)


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """Tokens of a Swin transformer, which has no class token.

    Args:
        tensor: ``(B, height * width, C)``, or ``(B, height, width, C)`` as newer Swin models put out.
        height: Rows of patches.
        width: Columns of patches.

    Returns:
        ``(B, C, height, width)``.

    Raises:
        ValueError: If the grid is another.
    """
    grid = (
        tensor.reshape(len(tensor), height, width, -1)
        if tensor.ndim == 3 and tensor.shape[1] == height * width
        else tensor
    )
    if grid.ndim != 4 or grid.shape[1:3] != (height, width):
        raise ValueError(
            f"expected tokens (B, {height} * {width}, C) or (B, {height}, {width}, C), got shape "
            f"{tuple(tensor.shape)}; give the grid of patches with "
            "functools.partial(swinT_reshape_transform, height=..., width=...)"
        )
    return grid.movedim(3, 1)
