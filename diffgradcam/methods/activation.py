"""Methods that look at activations alone: no gradient, no score, the same map for every class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import heatmaps, weightings
from .._core.base import BaseCAM, CAMOptions
from .._core.forward import ForwardPass, ReshapeTransform
from .._core.layers import LayerSpec
from .._core.naming import callable_name
from .._core.registry import register
from .._core.requests import ClassRequest, Request
from .._core.tensors import spread

ChannelWeighting = Callable[[Tensor], Tensor]


def uniform(activations: Tensor) -> Tensor:
    """The same weight for every channel: the map is made of the activations as they are.

    Args:
        activations: ``(B, C, *S)``.

    Returns:
        Ones, of the same shape.
    """
    return torch.ones_like(activations)


class ActivationCAM(BaseCAM):
    """A CAM of the activations alone: no score, no gradient, and the same map for every class.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        weighting: From activations ``(B, C, *S)`` to weights that broadcast to them; by default all are 1.
        **options: As :class:`BaseCAM`.
    """

    weighting: ChannelWeighting = staticmethod(uniform)
    needs_graph: ClassVar[bool] = False
    choices: ClassVar[tuple[str, ...]] = ("weighting", *BaseCAM.choices)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        weighting: ChannelWeighting | None = None,
        **options: Unpack[CAMOptions],
    ) -> None:
        self._choose(weighting=weighting)
        super().__init__(model, target_layers, reshape_transform, **options)

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`: the same map for whatever is asked for."""
        count = request.classes.shape[1] if isinstance(request, ClassRequest) else 1
        maps = [self.layer_map(grid, self.weighting(grid)) for grid in forward.grids()]
        return forward.every_layer([each.unsqueeze(1).expand(-1, count, *each.shape[1:]) for each in maps])

    def _request(self, forward: ForwardPass, classes: Any) -> tuple[Tensor, Request]:
        if classes is None and forward.logits.ndim != 2:  # no classes to decide on, and none is needed
            index = torch.zeros(len(forward.logits), dtype=torch.long, device=forward.logits.device)
            return index, ClassRequest(self.score, index.unsqueeze(1))
        return super()._request(forward, classes)

    def _check_own_score(self, targets: Sequence[Any]) -> None:
        """Whatever is asked for, the map is the same."""

    def _described(self) -> dict[str, str]:
        return {"weighting": callable_name(self.weighting), **super()._described()}


@register()
@final
class EigenCAM(ActivationCAM):
    """Eigen-CAM: the first principal component of the activations, the same for every class.

    The reduction is :func:`diffgradcam.heatmaps.principal_component`, which says how the arbitrary sign is chosen:
    mostly on the side of the sum over the channels, so that after a ReLU the map is positive where the layer is active.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        **options: As :class:`BaseCAM`.

    Reference:
        Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", 2020 (arXiv 2008.00299).
    """

    reduction = staticmethod(heatmaps.principal_component)


@register()
@final
class KPCACAM(ActivationCAM):
    """KPCA-CAM: the first kernel principal component of the activations, the same for every class.

    The reduction is :func:`diffgradcam.heatmaps.kernel_principal_component`. pytorch-grad-cam calls it ``KPCA_CAM`` and
    leaves the sign to chance.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        kernel: ``"sigmoid"``, ``"rbf"``, ``"poly"``, ``"cosine"`` or ``"linear"`` (which is :class:`EigenCAM`).
        gamma: Scale of the kernel; None is one over the number of channels.
        **options: As :class:`BaseCAM`.

    Raises:
        ValueError: For another kernel.

    Reference:
        Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA", 2024 (arXiv
        2410.00267).
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        kernel: str = "sigmoid",
        gamma: float | None = None,
        **options: Unpack[CAMOptions],
    ) -> None:
        heatmaps.kernel_function(kernel)
        component = partial(heatmaps.kernel_principal_component, kernel=kernel, gamma=gamma)
        options.setdefault("reduction", component)
        super().__init__(model, target_layers, reshape_transform, **options)


@register()
@final
class FEM(ActivationCAM):
    """FEM: channels weighted by how much of them is unusually active, the same for every class.

    The weighting is :func:`diffgradcam.weightings.fem`.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        k: How many standard deviations above the mean of its channel a position is unusual.
        **options: As :class:`BaseCAM`.

    Reference:
        Fuad et al., "Features Understanding in 3D CNNs for Actions Recognition in Video", IPTA 2020; the formula is
        read in the code of pytorch-grad-cam.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        k: float = 2.0,
        **options: Unpack[CAMOptions],
    ) -> None:
        weighting = partial(weightings.fem, k=k)
        super().__init__(model, target_layers, reshape_transform, weighting=weighting, **options)


@register()
@final
class RandomCAM(ActivationCAM):
    """Random-CAM: channels weighted at random, the control that any method has to beat.

    The weights are uniform between -1 and 1. They follow from the seed and the channel, not from the image or the
    class: several seeds are several controls. The global random numbers, which pytorch-grad-cam draws, are left alone.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        seed: Another seed is another draw.
        **options: As :class:`BaseCAM`.

    Reference:
        ``RandomCAM`` of the library pytorch-grad-cam; no paper.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        seed: int = 0,
        **options: Unpack[CAMOptions],
    ) -> None:
        weighting = partial(_random_weights, seed=seed)
        super().__init__(model, target_layers, reshape_transform, weighting=weighting, **options)


def _random_weights(activations: Tensor, seed: int) -> Tensor:
    """One weight a channel, ``(1, C, 1, ...)``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((1, activations.shape[1]), generator=generator, dtype=torch.float64).to(activations)
    return spread(2 * drawn - 1, activations.ndim)
