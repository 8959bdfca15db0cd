"""The regions of one image in which the maps of the true and of the false class diverge, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from .. import heatmaps
from .._core.class_names import GivenClassNames, as_class_names
from .._core.display import Panel, Sheet, Shown, Table, counted, printed, renderer, size_text
from .._core.layers import LayerSpec
from .._core.outputs import find_logits
from .._core.region import Region
from ..methods.contrastive import TrueFalseCAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..visualize.arrays import ImageLike


class Regions(Shown, list[Region]):
    """The regions of one image, a list with the largest share first, and which classes they tell apart.

    In a notebook it shows them on a grey ground, and a table; :meth:`plot` draws them on the image.

    Attributes:
        true_class: The class that regions of sign 1 speak for.
        false_class: The class that it is told from; None for the mean of all the others.
        size: Height and width of the image, in pixels.
        class_names: The names of the classes by index; empty where none were given.
    """

    def __init__(
        self,
        regions: Iterable[Region],
        *,
        true_class: int,
        false_class: int | None,
        size: tuple[int, int],
        class_names: GivenClassNames | None = None,
    ) -> None:
        super().__init__(regions)
        self.true_class = true_class
        self.false_class = false_class
        self.size = size
        self.class_names = as_class_names(class_names)

    def __repr__(self) -> str:
        """Which classes they tell apart, and their shares."""
        shares = ", ".join(f"{region.sign * region.share:+.1%}" for region in self[:5])
        return f"Regions({self._title()}: {shares}{', ...' if len(self) > 5 else ''})"

    def __str__(self) -> str:
        """The first regions, in at most five lines."""
        _, rows = self._table()
        lines = [f"{share} for {label}, rows {down}, columns {across}" for share, label, down, across in rows]
        return printed(self._title(), lines, "regions")

    def plot(self, image: ImageLike | None = None) -> Figure:
        """The regions on the image, as a figure.

        Args:
            image: The image as people see it, of the same size, in any form that :func:`.visualize.as_image` takes; by
                default a grey ground.

        Returns:
            A figure; write it with ``figure.savefig(path)``.

        Raises:
            TypeError: If the image is of another type.
            ValueError: If it is out of range, or of another size.
        """
        return renderer().figure(self._sheet(image))

    def _sheet(self, image: ImageLike | None = None) -> Sheet:
        from ..visualize.overlays import draw_regions  # imports matplotlib

        ground = np.full((*self.size, 3), 0.5) if image is None else image
        true, false = self._labels()
        panel = Panel(f"red: {true}\nblue: {false}", draw_regions(ground, self, use_rgb=True))
        return Sheet(self._title(), [[panel]], [self._table()])

    def _labels(self) -> tuple[str, str]:
        label = self.class_names.label
        return label(self.true_class), "the others" if self.false_class is None else label(self.false_class)

    def _title(self) -> str:
        true, false = self._labels()
        return f"{counted(len(self), 'region')} of {size_text(self.size)} pixels: {true} against {false}"

    def _table(self) -> Table:
        true, false = self._labels()
        rows = []
        for region in self:
            top, left, bottom, right = region.box
            speaks_for = true if region.sign > 0 else false
            rows.append((f"{region.share:.1%}", speaks_for, f"{top} to {bottom - 1}", f"{left} to {right - 1}"))
        return Table(("share", "speaks for", "rows", "columns"), rows)


def important_features(
    model: nn.Module,
    image: Tensor,
    target_layers: LayerSpec | Sequence[LayerSpec],
    *,
    true_class: int | None = None,
    false_class: str | int = "runner_up",
    threshold: float = 0.5,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    output: Callable[[Any], Tensor] = find_logits,
    class_names: GivenClassNames | None = None,
) -> Regions:
    """Regions that tell the true class from the false class, from Difference Salience, the largest share first.

    Difference Salience is resized to the image; regions are the connected components (8 neighbours) of its positive and
    of its negative part whose magnitude is above ``threshold`` times the largest magnitude.

    Args:
        model: The model, see :class:`~diffgradcam.BaseCAM`.
        image: One image, ``(C, H, W)`` or ``(1, C, H, W)``, as the model takes it.
        target_layers: As :class:`~diffgradcam.BaseCAM`.
        true_class: The class to speak for; None is the decision.
        false_class: The class to tell it from: ``"runner_up"``, a class index, or ``"mean"`` of all the others.
        threshold: Share of the largest magnitude from which a pixel counts, in (0, 1).
        reshape_transform: As :class:`~diffgradcam.BaseCAM`.
        output: As :class:`~diffgradcam.BaseCAM`.
        class_names: As :class:`~diffgradcam.BaseCAM`.

    Returns:
        The regions, see :class:`Regions`; none if the maps do not differ anywhere.

    Raises:
        ValueError: If it is not one image, the threshold is out of range, or as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: If the image is not a tensor, or as :meth:`~diffgradcam.BaseCAM.explain`.

    Reference:
        The post-hoc use of Difference Salience is our reading of Piland, Sweet, Czajka, "Divisive Decisions", 2025
        (arXiv 2507.17000); ranking connected components is ours.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> regions = important_features(model, torch.rand(3, 32, 32), "0")
        >>> all(0 < region.share <= 1 for region in regions)
        True
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image is {type(image).__name__}; expected a tensor (C, H, W) or (1, C, H, W)")
    images = image.unsqueeze(0) if image.ndim == 3 else image
    if images.ndim != 4 or images.shape[0] != 1:
        raise ValueError(f"got shape {tuple(image.shape)}; expected one image, (C, H, W) or (1, C, H, W)")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a share of the largest magnitude, between 0 and 1")
    cam = TrueFalseCAM(
        model, target_layers, reshape_transform, false_class=false_class, output=output, class_names=class_names
    )
    sides = cam.compare(images, true_class)
    divergence = heatmaps.resize(sides.difference, images.shape[2:])[0].cpu().double().numpy()
    magnitude = np.abs(divergence)
    strong = magnitude > threshold * magnitude.max()
    regions = [
        _region(component, divergence, sign)
        for sign in (1, -1)
        for component in _components(strong & (sign * divergence > 0))
    ]
    return Regions(
        sorted(regions, key=lambda region: region.share, reverse=True),
        true_class=int(sides.classes[0]),
        false_class=None if sides.false_classes is None else int(sides.false_classes[0]),
        size=(images.shape[2], images.shape[3]),
        class_names=sides.class_names,
    )


def _components(mask: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == label for label in range(1, count)]


def _region(mask: np.ndarray[Any, Any], divergence: np.ndarray[Any, Any], sign: int) -> Region:
    rows, columns = np.nonzero(mask)
    weights = np.abs(divergence[rows, columns])
    return Region(
        share=float(weights.sum() / np.abs(divergence).sum()),
        sign=sign,
        box=(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1),
        centroid=(float(np.average(rows, weights=weights)), float(np.average(columns, weights=weights))),
        mask=torch.from_numpy(mask),
    )
