"""Maps of several layers made one, other than by their mean, which every CAM does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, final

from torch import Tensor, nn

from .. import heatmaps
from .._core.base import BaseCAM, Reduction
from .._core.forward import Pass
from .._core.layers import Target
from .._core.outputs import Classes
from ..scores import Score
from ..targets import OutputTarget
from .gradient import GradCAMPlusPlus

_Self = TypeVar("_Self", bound="RefineCAM")


@final
class RefineCAM(BaseCAM):
    """RefineCAM: the product of the maps of several layers, from sharp early ones to telling late ones.

    ``prod_l minmax(resize(minmax(relu(map_l))))``: what every layer marks, in the detail of the finest. In the call the
    product is taken at input size, as in pytorch-grad-cam; in ``explain`` and ``maps`` at the size of the
    largest layer, as in torch-cam (which does not scale again after resizing). The product is in [0, 1]; where the
    layers disagree entirely it is 0.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: Several layers; as :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        base_method: The CAM class whose maps are multiplied.
        **options: Of the base method, such as ``score=``. Its maps are rectified in any case.

    Raises:
        TypeError: If the base method is not a CAM class.

    Reference:
        "How to Evaluate and Refine your CAM" (arXiv 2605.14641), read in the code of pytorch-grad-cam and torch-cam.

    Example:
        >>> import torch
        >>> layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        >>> model = nn.Sequential(*layers, nn.Linear(4, 2))
        >>> RefineCAM(model, ["1", "2"]).explain(torch.rand(5, 3, 10, 10)).maps.shape
        torch.Size([5, 8, 8])
    """

    fusion = staticmethod(heatmaps.product)

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **options: Any,
    ) -> None:
        if not (isinstance(base_method, type) and issubclass(base_method, BaseCAM)):
            raise TypeError(f"base_method is {base_method!r}; expected a CAM class, such as LayerCAM")
        self.base = base_method(model, target_layers, reshape_transform, **options)
        super().__init__(
            model, target_layers, reshape_transform, score=self.base.score, rectify=True, output=self.base.output
        )

    def weighting(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """That of the base method."""
        return self.base.weighting(activations, gradients)

    def _how_it_runs(self) -> object:
        return self.base._how_it_runs()

    @contextmanager
    def _forward(self, input_tensor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Pass]:
        with self.base._forward(input_tensor, args, kwargs) as forward:
            yield forward

    def maps(self, logits: Tensor, classes: Classes = None) -> Tensor:
        """As :meth:`BaseCAM.maps`, if the base method has them."""
        if type(self.base).maps is not BaseCAM.maps:
            return self.base.maps(logits, classes)  # which says why not
        return super().maps(logits, classes)

    def _class_maps(self, forward: Pass, classes: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        return self.base._class_maps(forward, classes, create_graph=create_graph)

    def _asked_maps(self, forward: Pass, targets: Sequence[OutputTarget | int] | None) -> list[Tensor]:
        return self.base._asked_maps(forward, targets)

    def with_score(self: _Self, score: Score) -> _Self:
        """As that of :class:`BaseCAM`, for the CAM whose maps are multiplied."""
        other: _Self = super().with_score(score)
        other.base = self.base.with_score(score)
        return other

    def with_reduction(self: _Self, reduction: Reduction) -> _Self:
        """As that of :class:`BaseCAM`, for the CAM whose maps are multiplied."""
        other: _Self = super().with_reduction(reduction)
        other.base = self.base.with_reduction(reduction)
        return other
