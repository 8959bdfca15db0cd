"""How the channels are weighted: ``(activations (B, C, *S), gradients (B, C, *S)) -> weights``.

The weights broadcast to ``(B, C, *S)``; the map is the sum over the channels of weights times activations. Pure torch,
differentiable, any number of spatial dimensions. A method of your own is one function of this form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor, Tensor], Tensor]

_LINEAR = "keeps_constant_gradients"


def linear(weighting: Weighting) -> Weighting:
    """Say of a weighting that gradients which are the same at all positions are their own weights.

    For a head that is a mean over the positions and a linear layer, all gradients are of this kind. The maps of all
    classes then follow from the weights of the head, without a gradient for each class.

    Args:
        weighting: A weighting with ``weighting(A, G) == G`` for every ``G`` that is constant over the positions.

    Returns:
        The same function.
    """
    setattr(weighting, _LINEAR, True)
    return weighting


def is_linear(weighting: Weighting) -> bool:
    """Whether a weighting was declared with :func:`linear`.

    Args:
        weighting: Any weighting.

    Returns:
        True if so.
    """
    return getattr(weighting, _LINEAR, False)


@linear
def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: one weight per channel, the mean gradient over the positions.

    Args:
        activations: ``(B, C, *S)``.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, 1, ...)``.

    Reference:
        Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    return gradients.mean(_spatial(activations), keepdim=True)


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: positive gradients, each weighted by how much its position adds to the channel.

    ``sum_S relu(G) / (2 + (sum_S A) G)``: the published ``G^2 / (2 G^2 + (sum_S A) G^3) relu(G)`` with ``G^2``
    cancelled, which needs no epsilon and so works for scores of any scale.

    The published form is derived for scores ``exp(.)`` and non-negative activations. There the denominator is at least
    2 wherever the numerator is not 0. For signed activations it can approach 0 and change its sign; it is kept at 1 or
    more.

    Args:
        activations: ``(B, C, *S)``.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, 1, ...)``, at least 0.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018, equation 19.
    """
    positive = gradients.relu()
    return _plus_plus(activations, positive, positive)


def smooth_gradcam_plus_plus(activations: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Smooth Grad-CAM++: :func:`gradcam_plus_plus` with averages over noisy images in place of powers of one gradient.

    ``sum_S relu(D1) D2 / (2 D2 + (sum_S A) D3)`` with ``Dn`` the mean of ``G^n`` over the noisy images, computed as
    ``relu(D1) / (2 + (sum_S A) D3 / D2)``, the denominator kept at 1 or more as there. Without noise it is Grad-CAM++.

    Args:
        activations: Of the image itself, ``(B, C, *S)``.
        first: Mean gradient of the score over noisy images, ``(B, C, *S)``.
        second: Mean of the squared gradient.
        third: Mean of the gradient to the power of three.

    Returns:
        Weights, ``(B, C, 1, ...)``, at least 0.

    Reference:
        Omeiza et al., "Smooth Grad-CAM++", 2019 (arXiv 1908.01224). The paper has the first derivative in the numerator
        of the weight where Grad-CAM++ has the second; we follow Grad-CAM++, as torch-cam does.
    """
    zero = second == 0
    return _plus_plus(activations, first.relu(), torch.where(zero, 0, third / torch.where(zero, 1, second)))


def _plus_plus(activations: Tensor, positive: Tensor, ratio: Tensor) -> Tensor:
    total = activations.sum(_spatial(activations), keepdim=True)
    return (positive / (2 + total * ratio).clamp_min(1)).sum(_spatial(activations), keepdim=True)


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM: the mean gradient over the positions, weighted by the activation there.

    ``sum_S (A G) / sum_S A``. A channel whose activations sum to 0 (relative to their magnitude) gets weight 0.

    Args:
        activations: ``(B, C, *S)``.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, 1, ...)``.

    Reference:
        Fu et al., "Axiom-based Grad-CAM", BMVC 2020.
    """
    dims = _spatial(activations)
    total = activations.sum(dims, keepdim=True)
    magnitude = activations.abs().sum(dims, keepdim=True)
    cancelled = total.abs() <= torch.finfo(total.dtype).eps * magnitude
    weighted = (activations * gradients).sum(dims, keepdim=True) / torch.where(cancelled, 1, total)
    return torch.where(cancelled, 0, weighted)


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: each position of each channel weighted by its own positive gradient.

    Args:
        activations: ``(B, C, *S)``.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, *S)``, at least 0.

    Reference:
        Jiang et al., "LayerCAM", IEEE TIP 2021.
    """
    return gradients.relu()


@linear
def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: each position of each channel weighted by its own gradient.

    Args:
        activations: ``(B, C, *S)``.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, *S)``: the gradients.

    Reference:
        Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020 (arXiv 2011.08891).
    """
    return gradients


def gradcam_elementwise(activations: Tensor, gradients: Tensor) -> Tensor:
    """Element-wise Grad-CAM: only positive products of gradient and activation count, ``sum_C relu(A G)``.

    Args:
        activations: ``(B, C, *S)``.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, *S)``: the gradient where its product with the activation is positive, else 0.

    Reference:
        ``GradCAMElementWise`` of the library pytorch-grad-cam; no paper.
    """
    return torch.where(activations * gradients > 0, gradients, 0)


def magnitude(activations: Tensor, gradients: Tensor) -> Tensor:
    """Seg-Eigen-CAM: each position of each channel weighted by the magnitude of its gradient.

    Args:
        activations: ``(B, C, *S)``; not used.
        gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

    Returns:
        Weights, ``(B, C, *S)``, at least 0.

    Reference:
        Chung and Ying, "Seg-Eigen-CAM", Applied Sciences 15(13), 2025, equation 10, read in pytorch-grad-cam's code.
    """
    return gradients.abs()


def fem(activations: Tensor, k: float = 2.0) -> Tensor:
    """FEM: the share of a channel's positions that are unusually active, above its mean by ``k`` standard deviations.

    It needs no gradients.

    Args:
        activations: ``(B, C, *S)``.
        k: How many standard deviations (of the population, over the positions).

    Returns:
        Weights, ``(B, C, 1, ...)``, in [0, 1]. They are steps: a loss on the map goes through the activations alone.

    Reference:
        Fuad et al., "Features Understanding in 3D CNNs for Actions Recognition in Video", IPTA 2020.
    """
    dims = _spatial(activations)
    fixed = activations.detach()
    threshold = fixed.mean(dims, keepdim=True) + k * fixed.std(dims, correction=0, keepdim=True)
    return (fixed > threshold).to(fixed).mean(dims, keepdim=True)


def _spatial(activations: Tensor) -> tuple[int, ...]:
    return tuple(range(2, activations.ndim))
