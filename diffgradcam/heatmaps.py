"""Functions of maps: rectify, scale, resize, average, entropy. All take batches, ``(B, *S) -> (B, *S)``.

``*S`` is any number of spatial dimensions: ``(B, L)``, ``(B, h, w)`` or ``(B, d, h, w)``. Every division is guarded,
so that zero maps and constant maps have finite values and finite gradients.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._core.errors import NonFiniteValues
from ._core.tracing import read

Kernel = Callable[[Tensor, float], Tensor]
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rectify(maps: Tensor) -> Tensor:
    """Keep the evidence for a class and drop the evidence against it: ReLU (Selvaraju et al., 2017).

    Args:
        maps: Signed maps of any shape.

    Returns:
        The maps with negative values set to 0.

    Raises:
        ValueError: If the maps are bool.
    """
    if maps.dtype == torch.bool:
        raise ValueError("got maps of torch.bool; expected numbers")
    return maps.relu()


def minmax(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Args:
        maps: Maps, ``(B, *S)``.

    Returns:
        Maps of the same shape. A constant map has no contrast to show and becomes 0 everywhere.

    Example:
        >>> minmax(torch.tensor([[[1.0, 3.0], [2.0, 5.0]]]))
        tensor([[[0.0000, 0.5000],
                 [0.2500, 1.0000]]])
    """
    flat = _flat(maps)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return _divide(flat - low, high - low).view_as(maps)


def scale_signed(maps: Tensor) -> Tensor:
    """Scale each map to [-1, 1] by its largest magnitude, so that 0 stays 0 and signs stay signs.

    Args:
        maps: Signed maps, ``(B, *S)``.

    Returns:
        Maps of the same shape. A zero map stays zero.

    Example:
        >>> scale_signed(torch.tensor([[-4.0, 0.0, 2.0]]))
        tensor([[-1.0000,  0.0000,  0.5000]])
    """
    flat = _flat(maps)
    return _divide(flat, flat.abs().amax(1, keepdim=True)).view_as(maps)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize each map by (bi-, tri-)linear interpolation, pixel centres aligned as in OpenCV.

    A constant map stays exactly constant.

    Args:
        maps: Maps, ``(B, *S)`` with one to three spatial dimensions.
        size: The new spatial size, as many numbers as ``S`` has.

    Returns:
        Maps, ``(B, *size)``.

    Raises:
        ValueError: If ``size`` has another number of dimensions than the maps, or they have more than three.
        TypeError: If ``size`` is not a sequence of whole numbers.
    """
    if isinstance(size, torch.Size) and size == maps.shape[1:]:  # of one layer: nothing to check, nothing to do
        return maps
    size = _whole_numbers(size)
    spatial = tuple(maps.shape[1:])
    if len(size) != len(spatial) or len(size) not in _INTERPOLATION:
        raise ValueError(
            f"cannot resize maps with spatial size {spatial} to {size}; expected one to three spatial dimensions, "
            "as many as the maps have"
        )
    if size == spatial:
        return maps
    if not maps.is_floating_point() or min(spatial + size) < 1:
        raise ValueError(
            f"cannot resize maps of {maps.dtype} and spatial size {spatial} to {size}; expected floating-point maps "
            "with at least one position, before and after"
        )
    resized: Tensor = F.interpolate(maps.unsqueeze(1), size, mode=_INTERPOLATION[len(size)], align_corners=False)
    return _kept_constant(resized.squeeze(1), maps)


def _kept_constant(resized: Tensor, maps: Tensor) -> Tensor:
    """Take rounding out of maps that were constant before: scaled to [0, 1], it would be a map of its own."""
    places = tuple(range(1, maps.ndim))
    low, high = (extreme(maps.detach(), places, keepdim=True) for extreme in (torch.amin, torch.amax))
    rounding = torch.where((low == high) & low.isfinite(), resized.detach() - low, 0)
    return resized - rounding


def _whole_numbers(size: Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(size)
    except TypeError:
        lengths = (None,)  # type: ignore[assignment] # refused below
    if any(isinstance(length, bool) or not isinstance(length, Integral | torch.SymInt) for length in lengths):
        raise TypeError(f"size is {reprlib.repr(size)}; expected a whole number for each dimension, such as (224, 224)")
    return lengths


def channel_sum(channels: Tensor) -> Tensor:
    """The sum over the channels: how weighted activations become a map.

    Args:
        channels: Weighted activations, ``(B, C, *S)``.

    Returns:
        Maps, ``(B, *S)``.
    """
    return channels.sum(1)


def average(layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean of the maps of several layers, at a common size.

    Args:
        layers: The maps of each layer, ``(B, *S)``.
        size: The size to bring them to.

    Returns:
        Maps, ``(B, *size)``.
    """
    _check_layers(layers)
    resized = [resize(maps, size) for maps in layers]
    return torch.stack(resized).mean(0) if len(resized) > 1 else resized[0]


def product(layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The product of the maps of several layers, each scaled to [0, 1]: what every layer marks.

    Args:
        layers: The maps of each layer, ``(B, *S)``, at least 0.
        size: The size to bring them to before they are multiplied; they are scaled before and after.

    Returns:
        Maps, ``(B, *size)``, in [0, 1].
    """
    _check_layers(layers)
    return torch.stack([minmax(resize(minmax(maps), size)) for maps in layers]).prod(0)


def entropy(maps: Tensor) -> Tensor:
    """Entropy of each map read as a distribution over positions: ``-sum q ln q`` with ``q = map / sum(map)``.

    Low entropy is a focused map. A map that is 1 on ``n`` positions and 0 elsewhere has entropy ``ln n``.

    Args:
        maps: Non-negative maps, ``(B, *S)``.

    Returns:
        Entropy in nats, ``(B,)``, between 0 and ``ln(number of positions)``; 0 for a map that is 0 everywhere.

    Reference:
        Piland, Czajka, Sweet, "Model Focus Improves Performance of Deep Learning-Based Synthetic Face Detectors",
        2023 (arXiv 2303.00818).

    Example:
        >>> entropy(torch.ones(1, 7, 4))  # ln 28
        tensor([3.3322])
    """
    flat = _flat(maps)
    q = _divide(flat, flat.sum(1, keepdim=True))
    return -(q * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum(1)


def principal_component(channels: Tensor) -> Tensor:
    """Collapse weighted channels to their first principal component over positions, instead of to their sum.

    ``v . (A - mean A)`` with ``v`` the direction of the channels in which the positions vary most. The sign of ``v`` is
    arbitrary; it is chosen so that the map correlates with the sum over the channels. Where channels cancel out in that
    sum (after a layer normalisation, say), the position of largest magnitude becomes positive. Where the two largest
    variances are equal the direction is arbitrary too, and the gradient takes it as fixed.

    Args:
        channels: Weighted activations, ``(B, C, *S)``.

    Returns:
        Maps, ``(B, *S)``, with mean 0.

    Reference:
        Muhammad and Yeasin, "Eigen-CAM", 2020 (arXiv 2008.00299). The channels are centred first, as in
        pytorch-grad-cam, which leaves the sign to chance; how it is chosen here is ours.
    """
    projection, centred = _projected(channels)
    return _signed_by(projection, centred).view(channels.shape[0], *channels.shape[2:])


def peak_component(channels: Tensor) -> Tensor:
    """The first principal component over positions, turned so that its largest magnitude is positive.

    As :func:`principal_component`, but the sign looks at the map alone. Where the largest and the smallest value are
    opposite, the sign is arbitrary.

    Args:
        channels: Weighted activations, ``(B, C, *S)``.

    Returns:
        Maps, ``(B, *S)``, with mean 0.

    Reference:
        Chung and Ying, "Seg-Eigen-CAM", Applied Sciences 15(13), 2025, equations 11 to 13, read in pytorch-grad-cam's
        code.

    Example:
        >>> peak_component(torch.tensor([[[0.0, 0.0, 0.0, -4.0]]]))  # the one position that differs
        tensor([[-1., -1., -1.,  3.]])
    """
    projection, _ = _projected(channels)
    return _turned_to_peak(projection).view(channels.shape[0], *channels.shape[2:])


def kernel_principal_component(channels: Tensor, kernel: str = "sigmoid", gamma: float | None = None) -> Tensor:
    """The first principal component over positions in the feature space of a kernel.

    ``sqrt(l) u`` with ``l, u`` the largest eigenvalue and eigenvector of the centred kernel matrix of the positions.
    With the linear kernel it is :func:`principal_component`, and the sign is chosen as there. A kernel matrix without a
    positive eigenvalue gives a map of zeros.

    Args:
        channels: Weighted activations, ``(B, C, *S)``. The memory needed grows with the square of the number of
            positions.
        kernel: ``"linear"``, ``"poly"`` ``(g x.y + 1)^3``, ``"rbf"`` ``exp(-g |x - y|^2)``, ``"sigmoid"``
            ``tanh(g x.y + 1)`` or ``"cosine"``, of the centred channels at two positions.
        gamma: ``g`` above; None is one over the number of channels.

    Returns:
        Maps, ``(B, *S)``.

    Raises:
        ValueError: For another kernel.

    Reference:
        Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA", 2024 (arXiv
        2410.00267), read in pytorch-grad-cam's code, whose kernels are scikit-learn's.
    """
    _check_channels(channels)
    centred = _centred(channels.flatten(2))
    matrix = kernel_function(kernel)(centred.transpose(1, 2), 1 / max(channels.shape[1], 1) if gamma is None else gamma)
    rounding = matrix.shape[1] * torch.finfo(matrix.dtype).eps * matrix.detach().abs().amax((1, 2)).unsqueeze(1)
    matrix = matrix - matrix.mean(1, keepdim=True)
    matrix = matrix - matrix.mean(2, keepdim=True)
    return _signed_by(_leading_component(matrix, rounding), centred).view(channels.shape[0], *channels.shape[2:])


def kernel_function(name: str) -> Kernel:
    """Look up a kernel by name.

    Args:
        name: See :func:`kernel_principal_component`.

    Returns:
        A function ``(points (B, P, C), gamma) -> (B, P, P)``.

    Raises:
        ValueError: For any other name.
    """
    if name not in _KERNELS:
        raise ValueError(f"{name!r} is not a kernel; expected one of {sorted(_KERNELS)}")
    return _KERNELS[name]


def _products(points: Tensor) -> Tensor:
    return points @ points.transpose(1, 2)


def _squared_distances(points: Tensor) -> Tensor:
    products = _products(points)
    squares = products.diagonal(dim1=1, dim2=2)
    return (squares.unsqueeze(1) + squares.unsqueeze(2) - 2 * products).clamp_min(0)


def _cosine(points: Tensor) -> Tensor:
    squares = points.square().sum(2, keepdim=True)
    zero = squares == 0
    return _products(torch.where(zero, 0, points / torch.where(zero, 1, squares).sqrt()))


_KERNELS: dict[str, Kernel] = {
    "linear": lambda points, _gamma: _products(points),
    "poly": lambda points, gamma: (gamma * _products(points) + 1) ** 3,
    "rbf": lambda points, gamma: (-gamma * _squared_distances(points)).exp(),
    "sigmoid": lambda points, gamma: (gamma * _products(points) + 1).tanh(),
    "cosine": lambda points, _gamma: _cosine(points),
}


class _LeadingEigenvector(torch.autograd.Function):
    """The eigenvector of the largest eigenvalue of symmetric matrices ``(B, n, n) -> (B, n)``.

    PyTorch's own derivative also divides by the differences between the other eigenvalues, which is 0 / 0 as soon as
    two channels are dead. Only their distance to the largest one matters: ``dv = (l - M)^+ dM v``.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        if not read(matrix.isfinite().all(), traced=True):
            raise NonFiniteValues(
                "a principal component of NaN or infinite values was asked for: the weighted activations, or their "
                "squares, overflow; scale the input, or check it for NaN"
            )
        values, vectors = torch.linalg.eigh(matrix)
        leading: Tensor = vectors[..., -1].contiguous()
        scale = values.abs().amax(-1, keepdim=True)
        gaps = values[..., -1:] - values[..., :-1]
        tied = (gaps <= values.shape[-1] * torch.finfo(values.dtype).eps * scale).any(-1, keepdim=True) | (scale == 0)
        ctx.save_for_backward(matrix, leading, scale, tied)
        return leading

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Differentiable in its turn: the leading vector, whose eigenvalue is moved away, makes the system regular.
        matrix, leading, scale, tied = ctx.saved_tensors
        column, row = leading.unsqueeze(-1), leading.unsqueeze(-2)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        system = (row @ matrix @ column) * identity - matrix + scale.unsqueeze(-1) * (column @ row)
        across = gradient.unsqueeze(-1) - column @ (row @ gradient.unsqueeze(-1))
        fixed = tied.unsqueeze(-1)
        parts = torch.linalg.solve(torch.where(fixed, identity, system), torch.where(fixed, 0, across))
        outer: Tensor = parts @ row
        return (outer + outer.transpose(-2, -1)) / 2


def _leading_eigenvector(matrix: Tensor) -> Tensor:
    vector: Tensor = _LeadingEigenvector.apply(matrix)  # type: ignore[no-untyped-call]
    return vector


def _leading_component(matrix: Tensor, least: Tensor | float) -> Tensor:
    """``sqrt(l) u`` of the largest eigenvalue of symmetric matrices, ``(B, n, n) -> (B, n)``; 0 if ``l <= least``."""
    vector = _leading_eigenvector(matrix)
    value = (vector.unsqueeze(1) @ matrix @ vector.unsqueeze(2)).flatten(1)
    positive = value > least
    return torch.where(positive, vector * torch.where(positive, value, 1).sqrt(), 0)


def _centred(channels: Tensor) -> Tensor:
    """Channels ``(B, C, P)`` with mean 0; exactly 0 where a channel is constant up to rounding."""
    span = channels.amax(2, keepdim=True) - channels.amin(2, keepdim=True)
    constant = span <= 8 * torch.finfo(channels.dtype).eps * channels.abs().amax(2, keepdim=True)
    return torch.where(constant, 0, channels - channels.mean(2, keepdim=True))


def _projected(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions on the first principal component ``(B, P)``, of any sign, and the centred channels ``(B, C, P)``."""
    _check_channels(channels)
    centred = _centred(channels.flatten(2))
    if centred.shape[1] <= centred.shape[2]:
        direction = _leading_eigenvector(centred @ centred.transpose(1, 2))
        return (direction.unsqueeze(1) @ centred).squeeze(1), centred
    # The same from the other side, where the matrix is smaller.
    return _leading_component(centred.transpose(1, 2) @ centred, 0), centred


def _signed_by(projection: Tensor, centred: Tensor) -> Tensor:
    """Turn projections ``(B, P)`` to the side of the sum over the channels ``(B, C, P)``, or else of the largest."""
    agreement = (projection * centred.sum(1)).sum(1, keepdim=True)
    possible = (projection.abs() * centred.abs().sum(1)).sum(1, keepdim=True)
    silent = agreement.abs() <= torch.finfo(agreement.dtype).eps ** 0.5 * possible
    turned = torch.where(agreement < 0, -projection, projection)
    return torch.where(silent, _turned_to_peak(projection), turned)


def _turned_to_peak(projection: Tensor) -> Tensor:
    """Turn projections ``(B, P)`` so that the value of largest magnitude is positive."""
    largest = projection.amax(1, keepdim=True) + projection.amin(1, keepdim=True)
    return torch.where(largest < 0, -projection, projection)


def _check_layers(layers: Sequence[Tensor]) -> None:
    if not layers:
        raise ValueError("there are no maps to combine; expected the maps of at least one layer")


def _check_channels(channels: Tensor) -> None:
    wide = channels.dtype in (torch.float32, torch.float64)
    if channels.ndim < 3 or not wide or not channels.shape[1:].numel():
        raise ValueError(
            f"got channels of {channels.dtype} and of shape {tuple(channels.shape)}; expected float32 or float64 "
            "(B, C, *S), with at least one channel and one position"
        )


def _check_maps(maps: Tensor) -> None:
    if maps.ndim < 2 or not maps.shape[1:].numel() or maps.dtype == torch.bool:
        raise ValueError(
            f"got maps of {maps.dtype} and of shape {tuple(maps.shape)}; expected numbers (B, *S), with at least one "
            "position for each map"
        )


def _flat(maps: Tensor) -> Tensor:
    _check_maps(maps)
    return maps.reshape(maps.shape[0], maps.shape[1:].numel())


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, 0 where the denominator is 0, with a finite gradient there too."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))
