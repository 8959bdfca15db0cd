"""What stands where pixels were removed: a colour, a blur, or what the pixels around them suggest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffgradcam._core.optional import import_optional
from diffgradcam._core.outputs import check_finite

Fill = str | Tensor | Callable[[Tensor], Tensor]

_BLUR_RADIUS, _BLUR_SD = 5, 5.0  # pixels: the 11 x 11 window of RISE
# Offsets and weights of the eight neighbours of a pixel, from Rong et al.
_NEIGHBOURS = [
    ((dy, dx), 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
]


def noisy_linear_imputation(images: Tensor, missing: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Replace pixels by the weighted mean of their neighbours, plus noise: a linear system over all of the missing.

    Neighbours that share a side weigh 1/6, those that share a corner 1/12; those outside the image count for nothing.

    Args:
        images: ``(B, C, H, W)``.
        missing: Which pixels to replace, ``(B, H, W)``, bool; each image must keep at least one.
        noise: Standard deviation of the Gaussian noise, in the unit of the images. Without it, how smooth a region is
            would tell that it was imputed.
        seed: Seed of the noise, which is the same for every image.

    Returns:
        Images of the same shape. Pixels that are not missing are as they were.

    Raises:
        ValueError: If shapes do not match, an image keeps no pixel, or the noise is negative.
        ImportError: If SciPy is not installed.

    Reference:
        As :func:`road`.

    Example:
        >>> image = torch.tensor([[[[0.0, 9.0, 3.0]]]])
        >>> noisy_linear_imputation(image, torch.tensor([[[False, True, False]]]), noise=0.0)
        tensor([[[[0.0000, 1.5000, 3.0000]]]])
    """
    if images.ndim != 4 or missing.shape != (len(images), *images.shape[2:]) or missing.dtype != torch.bool:
        raise ValueError(
            f"images have shape {tuple(images.shape)} and missing is {missing.dtype} {tuple(missing.shape)}; expected "
            "(B, C, H, W) and bool (B, H, W)"
        )
    check_finite("the pixel values", images)
    if not bool(missing.logical_not().flatten(1).any(1).all()):
        raise ValueError("an image has no pixel that is not missing; expected at least one to impute from")
    if noise < 0:
        raise ValueError(f"noise is {noise}; expected a standard deviation, at least 0")
    generator = torch.Generator().manual_seed(seed)
    field = noise * torch.randn(images.shape[1:], generator=generator, dtype=torch.float64).numpy()
    arrays, holes = images.detach().cpu().double().numpy(), missing.cpu().numpy()
    imputed = arrays.copy()
    for new, image, hole in zip(imputed, arrays, holes, strict=True):
        if hole.any():
            new[:, hole] = _solve(image, hole) + field[:, hole]
    return torch.where(missing.unsqueeze(1), torch.from_numpy(imputed).to(images), images)


def filled_with(images: Tensor, fill: Fill) -> Tensor:
    """What stands in every place of the images once it is removed.

    Args:
        images: ``(B, C, *S)``.
        fill: ``"mean"`` (:func:`mean_colour`), ``"blur"``, a tensor that broadcasts, or a function of the images.

    Returns:
        Images, ``(B, C, *S)``.

    Raises:
        ValueError: For another word, or a shape that does not broadcast.
        TypeError: If a function returns something else than a tensor.
    """
    if isinstance(fill, str):
        if fill not in _FILLS:
            raise ValueError(
                f"fill is {fill!r}; expected one of {sorted(_FILLS)}, a tensor, or a function of the images"
            )
        return _FILLS[fill](images)
    filled = fill if isinstance(fill, Tensor) else fill(images)
    if not isinstance(filled, Tensor):
        raise TypeError(f"fill returned {type(filled).__name__}; expected images, or a tensor that broadcasts to them")
    try:
        return filled.to(images).expand_as(images)
    except RuntimeError as error:
        raise ValueError(
            f"fill has shape {tuple(filled.shape)}, which does not broadcast to the images, {tuple(images.shape)}; "
            "a colour is (C, 1, 1)"
        ) from error


def mean_colour(images: Tensor) -> Tensor:
    """The mean of each channel of each image, everywhere.

    Args:
        images: ``(B, C, *S)``.

    Returns:
        Images of one colour, ``(B, C, *S)``.
    """
    return images.mean(tuple(range(2, images.ndim)), keepdim=True).expand_as(images)


def _fill_blur(images: Tensor) -> Tensor:
    """A Gaussian blur, one dimension after the other; beyond the edge, the edge is repeated."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device, dtype=images.dtype)
    kernel = (-(offsets**2) / (2 * _BLUR_SD**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for dim in range(2, images.ndim):
        lines = images.movedim(dim, -1)
        padded = F.pad(lines.flatten(0, -2).unsqueeze(1), (_BLUR_RADIUS, _BLUR_RADIUS), mode="replicate")
        images = F.conv1d(padded, kernel).view(lines.shape).movedim(-1, dim)
    return images


_FILLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": mean_colour, "blur": _fill_blur}


def _solve(image: NDArray[Any], hole: NDArray[Any]) -> NDArray[Any]:
    """The values ``(C, n)`` that make each of the n missing pixels the weighted mean of its neighbours."""
    count, (height, width) = int(hole.sum()), hole.shape
    here = np.arange(count)
    number = np.full((height + 2, width + 2), -2)  # beyond the edge
    number[1:-1, 1:-1] = -1  # known
    number[1:-1, 1:-1][hole] = here
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    total, known = np.zeros(count), np.zeros((count, len(image)))
    rows, columns, entries = [], [], []
    for (dy, dx), weight in _NEIGHBOURS:
        shifted = np.s_[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        neighbour = number[shifted][hole]
        total += weight * (neighbour != -2)
        known += weight * padded[(slice(None), *shifted)][:, hole].T * (neighbour == -1)[:, None]
        unknown = neighbour >= 0
        rows.append(here[unknown])
        columns.append(neighbour[unknown])
        entries.append(np.full(int(unknown.sum()), -weight))
    indices = np.concatenate([*rows, here]), np.concatenate([*columns, here])
    sparse, linalg = (
        import_optional(f"scipy.{name}", "noisy linear imputation") for name in ("sparse", "sparse.linalg")
    )
    system = sparse.coo_matrix((np.concatenate([*entries, total]), indices), shape=(count, count))
    solution: NDArray[Any] = linalg.spsolve(system.tocsc(), known).reshape(count, len(image)).T
    return solution
