"""The methods that look at activations alone: no gradient, no score, the same map for every class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from .. import heatmaps, weightings
from .._core.base import BaseCAM
from .._core.forward import Pass
from .._core.layers import Target
from .._core.outputs import find_logits
from ..targets import OutputTarget, read_targets


class _ActivationCAM(BaseCAM):
    """A CAM of the activations alone: no score, no gradient, and the same map for every class."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, rectify=rectify, output=output)

    def _class_maps(self, forward: Pass, classes: Tensor, *, create_graph: bool = False) -> list[Tensor]:  # noqa: ARG002
        grids = [self._grid(activations) for activations in forward.activations]
        layers = [self._layer_map(grid, self.weighting(grid, torch.zeros_like(grid))) for grid in grids]
        return [maps.unsqueeze(1).expand(-1, classes.shape[1], *maps.shape[1:]) for maps in layers]

    def _asked_maps(self, forward: Pass, targets: Sequence[OutputTarget | int] | None) -> list[Tensor]:
        read_targets(targets, len(forward.logits))  # for its errors: whatever is asked for, the map is the same
        return self._class_maps(forward, torch.zeros(len(forward.logits), 1))


@final
class EigenCAM(_ActivationCAM):
    """Eigen-CAM: the first principal component of the activations, the same for every class: it has no score.

    The reduction is :func:`diffgradcam.heatmaps.principal_component`, which says how the arbitrary sign is chosen:
    mostly on the side of the sum over the channels, so that after a ReLU the map is positive where the layer is active.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

    Reference:
        Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", 2020 (arXiv 2008.00299).
    """

    weighting = staticmethod(weightings.uniform)
    reduction = staticmethod(heatmaps.principal_component)


@final
class KPCACAM(_ActivationCAM):
    """KPCA-CAM: the first kernel principal component of the activations, the same for every class: it has no score.

    The reduction is :func:`diffgradcam.heatmaps.kernel_principal_component`. pytorch-grad-cam calls it ``KPCA_CAM`` and
    leaves the sign to chance.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        kernel: ``"sigmoid"``, ``"rbf"``, ``"poly"``, ``"cosine"`` or ``"linear"`` (which is :class:`EigenCAM`).
        gamma: Scale of the kernel; None is one over the number of channels.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

    Raises:
        ValueError: For another kernel.

    Reference:
        Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA", 2024 (arXiv
        2410.00267).
    """

    weighting = staticmethod(weightings.uniform)

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        kernel: str = "sigmoid",
        gamma: float | None = None,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        heatmaps.kernel_function(kernel)
        super().__init__(model, target_layers, reshape_transform, rectify=rectify, output=output)
        self.reduction = partial(heatmaps.kernel_principal_component, kernel=kernel, gamma=gamma)


@final
class FEM(_ActivationCAM):
    """FEM: channels weighted by how much of them is unusually active, the same for every class: it has no score.

    The weighting is :func:`diffgradcam.weightings.fem`.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        k: How many standard deviations above the mean of its channel a position is unusual.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

    Reference:
        Fuad et al., "Features Understanding in 3D CNNs for Actions Recognition in Video", IPTA 2020; the formula is
        read in the code of pytorch-grad-cam.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        k: float = 2.0,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, rectify=rectify, output=output)
        self.k = k

    def weighting(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See :func:`diffgradcam.weightings.fem`."""
        return weightings.fem(activations, gradients, self.k)


@final
class RandomCAM(_ActivationCAM):
    """Channels weighted at random: the control that any method has to beat. It has no score.

    The weights are uniform between -1 and 1. They follow from the seed and the channel, not from the image or the
    class: several seeds are several controls. The global random numbers, which pytorch-grad-cam draws, are left alone.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        seed: Another seed is another draw.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

    Reference:
        ``RandomCAM`` of the library pytorch-grad-cam; no paper.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        seed: int = 0,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, rectify=rectify, output=output)
        self.seed = seed

    def weighting(self, activations: Tensor, gradients: Tensor) -> Tensor:  # noqa: ARG002
        """Random weights of the channels, ``(1, C, 1, ...)``."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand((1, activations.shape[1]), generator=generator, dtype=torch.float64).to(activations)
        return (2 * drawn - 1).view(*drawn.shape, *[1] * (activations.ndim - 2))
