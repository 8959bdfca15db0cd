"""What an explanation is, and what can make one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from .. import heatmaps
from ..losses import cam_entropy
from .class_names import NO_NAMES, ClassNames, GivenClassNames, as_class_names
from .display import LINES, SHOWN, Array, Panel, Sheet, ShownMaps, counted, first_panels, printed, renderer, size_text
from .optional import import_optional
from .outputs import Classes
from .tensors import columns

_Result = TypeVar("_Result", bound="NamedResult")


class NamedResult(ShownMaps):
    """Before a named tuple among the bases of a class: the names of classes, which are none of its fields.

    Attributes:
        class_names: The names of the classes; empty where none were given.
    """

    class_names: ClassNames = NO_NAMES

    def _replace(self: _Result, **changes: Any) -> _Result:
        """A copy with other fields; what is not a field stays."""
        other: _Result = super()._replace(**changes)  # type: ignore[misc]
        vars(other).update(vars(self))
        return other

    __replace__ = _replace


class _Fields(NamedTuple):
    logits: Tensor
    classes: Tensor
    maps: Tensor


class Explanation(NamedResult, _Fields):
    """What a model decided and why: a named tuple of three, ``logits, classes, maps``.

    In a notebook it shows its maps; printed, what was decided. Probabilities are by softmax: they mean nothing for a
    model of several labels or a regression.

    Attributes:
        logits: ``(B, K)``, detached.
        classes: The explained classes, ``(B,)``, or ``(B, N)`` where several were asked for; -1 where a target that is
            no class was explained.
        maps: One map for each class at the resolution of the layer, ``(B, h, w)`` or ``(B, N, h, w)``, detached.
        class_names: The names of the classes by index; empty where none were given.
        signed: Whether the maps are signed, with 0 in the middle.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> explanation = GradCAM(model, "0", class_names=["cat", "dog"]).explain(torch.rand(5, 3, 8, 8), "all")
        >>> logits, classes, maps = explanation
        >>> explanation
        Explanation(5 images, 2 classes, maps (5, 2, 6, 6): cat (0), dog (1))
        >>> explanation.heatmaps((8, 8)).shape
        torch.Size([5, 2, 8, 8])
    """

    signed: bool = False

    def __new__(
        cls,
        logits: Tensor,
        classes: Tensor,
        maps: Tensor,
        *,
        class_names: GivenClassNames | None = None,
        signed: bool = False,
    ) -> Explanation:
        """See the class."""
        self = super().__new__(cls, logits, classes, maps)
        self.class_names = as_class_names(class_names)
        self.signed = signed
        return self

    def __repr__(self) -> str:
        """Sizes, and which classes are explained."""
        indices = sorted(set(self.classes.flatten().tolist()))
        labels = ", ".join(map(self._label, indices[:3])) + (", ..." if len(indices) > 3 else "")
        return f"{type(self).__name__}({self._counts()}, maps {tuple(self.maps.shape)}: {labels})"

    def __str__(self) -> str:
        """What was decided, in at most five lines."""
        lines = []
        for number, rows in enumerate(self._few(LINES)._by_image()):
            told = self._told(rows)
            lines.append(f"image {number}: {'; '.join(told[:3])}{'; ...' if len(told) > 3 else ''}")
        return printed(self._title(), lines, "images", len(self.maps))

    def heatmaps(self, size: Sequence[int] | None = None) -> Tensor:
        """The maps scaled for people to look at, at a size of your choice.

        Args:
            size: Their spatial size, such as ``images.shape[2:]``; by default that of the layer.

        Returns:
            ``(B, *size)`` or ``(B, N, *size)``, as the maps are: each resized, then scaled to [0, 1]; signed maps to
            [-1, 1] with 0 kept at 0. As the call of the CAM gives them, where it explains one layer.

        Raises:
            ValueError: If the maps do not have as many dimensions as the size.
        """
        maps = self._flat()
        resized = maps if size is None else heatmaps.resize(maps, size)
        scale = heatmaps.scale_signed if self.signed else heatmaps.minmax
        return scale(resized).reshape(*self.maps.shape[: self._lead()], *resized.shape[1:])

    def overlay(self, images: Any, **options: Any) -> Array:
        """The maps laid over the images.

        Args:
            images: The images as people see them (values in [0, 1], or uint8; any normalisation undone), ``(B, 3, H,
                W)`` or any sequence of what :func:`diffgradcam.visualize.as_image` takes, all of one size.
            **options: ``colormap`` and ``alpha``, as :func:`diffgradcam.visualize.overlay` takes them; for signed maps
                as :func:`~diffgradcam.visualize.overlay_signed` does.

        Returns:
            ``(B, H, W, 3)`` or ``(B, N, H, W, 3)``, as the maps are; uint8, RGB.

        Raises:
            TypeError: If an image is of another type.
            ValueError: If there are not as many images as in the batch, their sizes differ, one is out of range, or the
                maps do not have two dimensions.
        """
        return renderer().overlays(self.heatmaps, images, self.signed, **options)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each map.

        Columns: ``image`` (its number in the batch), ``class``, ``name`` (None where there is none), ``logit``,
        ``probability`` (by softmax), ``entropy`` of the map (:func:`diffgradcam.losses.cam_entropy`, in nats). The
        class of a target that is not a class is -1, and its logit and probability are NaN.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = import_optional("pandas", "to_pandas()")
        rows = [row for rows in self._by_image() for row in rows]
        entropies = cam_entropy(self._flat().detach()).tolist()
        return pandas.DataFrame([{**row, "entropy": e} for row, e in zip(rows, entropies, strict=True)])

    def _lead(self) -> int:
        """How many dimensions of the maps are not spatial."""
        return self.classes.ndim

    def _flat(self) -> Tensor:
        """All maps in a row, ``(M, *S)``."""
        return self.maps.flatten(0, self._lead() - 1)

    def _by_image(self) -> list[list[dict[str, Any]]]:
        """What was decided about the class of each map of each image."""
        if self.logits.ndim == 2:
            logits = self.logits.detach().float()
            index = columns(self.classes)
            chosen = index.clamp_min(0)
            known = index >= 0
            found = logits.gather(1, chosen).where(known, math.nan).tolist()
            known &= logits.shape[1] > 1  # of one output, softmax is 1
            shares = logits.softmax(1).gather(1, chosen).where(known, math.nan).tolist()
        else:
            found = shares = [[math.nan] * len(row) for row in columns(self.classes).tolist()]
        return [
            [
                {"image": image, "class": c, "name": self.class_names.get(c), "logit": z, "probability": p}
                for c, z, p in zip(*row, strict=True)
            ]
            for image, row in enumerate(zip(columns(self.classes).tolist(), found, shares, strict=True))
        ]

    def _told(self, rows: list[dict[str, Any]]) -> list[str]:
        """What print says of an image."""
        return [self._caption(row, ", ") for row in rows]

    def _label(self, index: int) -> str:
        return "a target" if index < 0 else self.class_names.label(index)

    def _caption(self, row: dict[str, Any], separator: str) -> str:
        label = self._label(row["class"])
        if math.isnan(row["logit"]):
            return label
        share = "" if math.isnan(row["probability"]) else f", probability {row['probability']:.1%}"
        return f"{label}{separator}logit {row['logit']:.3g}{share}"

    def _counts(self) -> str:
        images = counted(len(self.maps), "image")
        return f"{images}, {counted(self.logits.shape[1], 'class')}" if self.logits.ndim == 2 else images

    def _title(self) -> str:
        each = "" if self.classes.ndim == 1 else f", {counted(self.maps.shape[1 : self._lead()].numel(), 'map')} each"
        return f"{self._counts()}{each}, maps of {size_text(self.maps.shape[self._lead() :])}"

    def _sheet(self) -> Sheet:
        panels = self._arranged(self._few(SHOWN)._panels())
        return Sheet(self._title(), panels, [scale_note(self.signed)], images=len(self.maps))

    def _arranged(self, panels: list[list[Panel]]) -> list[list[Panel]]:
        """As a sheet shows them."""
        return first_panels(panels)

    def _few(self, images: int) -> Explanation:
        """Of the first images, and as many maps of each as are shown."""
        several = (slice(images), *[slice(SHOWN)] * (self._lead() - 1))
        return self._replace(
            logits=self.logits[:images], classes=self.classes[several[: self.classes.ndim]], maps=self.maps[several]
        )

    def _panels(self) -> list[list[Panel]]:
        """All maps, a row for each image."""
        scaled = iter(self.heatmaps().flatten(0, self._lead() - 1))
        return [
            [Panel(self._caption(row, "\n"), next(scaled), row["image"], self.signed) for row in rows]
            for rows in self._by_image()
        ]


def scale_note(signed: bool) -> str:
    """How the colours of a map are to be read.

    Args:
        signed: Whether the map is signed.

    Returns:
        A sentence.
    """
    if signed:
        return "Red speaks for the class, blue against it. Each map is scaled to its largest magnitude."
    return "Each map is scaled to its own range: yellow is its largest value, violet its smallest."


class Explainer(Protocol):
    """Whatever explains a batch of images: every CAM and wrapper of this library, or an object of yours."""

    def explain(self, input_tensor: Any, classes: Classes = None) -> Explanation:
        """See :meth:`diffgradcam.BaseCAM.explain`."""
        ...


class ModelExplainer(Explainer, Protocol):
    """An explainer that says which model it explains."""

    @property
    def model(self) -> nn.Module:
        """What it explains."""
        ...
