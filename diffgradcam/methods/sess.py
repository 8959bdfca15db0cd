"""SESS: the maps of windows of an enlarged image, put together, as a wrapper over any method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, final, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import heatmaps
from .._core.base import BaseCAM
from .._core.checks import check_choice, check_count
from .._core.explainers import check_explains
from .._core.explanation import Explanation, ModelExplainer
from .._core.inputs import Inputs, positional
from .._core.requests import ClassRequest
from .._core.tensors import columns
from .._core.versions import Array, Augmentations, averaged_call, versionable
from ..scores import Probability, ScoreFunction, as_score
from ..targets import OutputTarget, read_targets
from .smoothing import WrappedCAM

Pool = Literal["mean", "max"]
_BLUR_SD = 5.0  # pixels
_ROUNDING = 1e-6  # of values in [0, 1]: a place that is not marked is 0 up to this


class Window(NamedTuple):
    """A square part of an enlarged image.

    Attributes:
        size: Of the enlarged image, height and width.
        top: First row.
        left: First column.
    """

    size: tuple[int, int]
    top: int
    left: int


@final
class SESS(WrappedCAM):
    """SESS: maps of windows that slide over larger and larger versions of the image, weighted by what they decide.

    Each version of the image is cut into windows of the size of the image's shorter side; each window is explained for
    the class of the whole image. Its map, scaled to [0, 1], is multiplied by the window's score relative to the best
    window's, brought back to where it came from, and averaged with all others that mark the place. So small objects,
    and several of them, show up. Maps have the size of the image.

    With the defaults a square image has 122 windows: fewer ``scales`` are cheaper. Two-dimensional images only.

    Args:
        cam: A CAM, or a wrapper of one.
        scales: How many versions, the image as it is included.
        growth: By how much each version's shorter side is longer than the one before, relative to ``window``.
        window: Side of the windows in pixels; by default the shorter side of the image.
        step: How far windows are apart; by default their side. Those that would cross the border are moved back.
        keep: Share of the windows that are used, those with the highest scores.
        threshold: Values up to it do not take part in the mean.
        pool: ``"mean"``, over the windows that mark a place; or ``"max"``.
        blur: Radius in pixels of the Gaussian blur (standard deviation 5) at the end; 0 is none.
        weight: The score that windows are weighted by, at least 0; what is below counts as 0.
        batch_size: How many windows are explained at once.

    Raises:
        TypeError: If ``cam`` is not a CAM, or ``weight`` is not a function.
        ValueError: If an option is out of range; when explaining, if images are smaller than the blur.

    Reference:
        Tursun et al., "SESS: Saliency Enhancing with Scaling and Sliding", ECCV 2022 (arXiv 2207.01769), read in
        pytorch-grad-cam's code, whose defaults these are.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> SESS(GradCAM(model, "0"), scales=2).explain(torch.rand(2, 3, 16, 20), "all").maps.shape
        torch.Size([2, 4, 16, 20])
    """

    def __init__(
        self,
        cam: ModelExplainer,
        *,
        scales: int = 12,
        growth: float = 2 / 7,
        window: int | None = None,
        step: int | None = None,
        keep: float = 1.0,
        threshold: float = 0.0,
        pool: Pool = "mean",
        blur: int = 5,
        weight: ScoreFunction = Probability(),  # noqa: B008  a value, never changed
        batch_size: int = 32,
    ) -> None:
        check_explains(cam)
        for name, count in (("scales", scales), ("window", window), ("step", step), ("batch_size", batch_size)):
            if count is not None:
                check_count(name, count)
        check_choice("pool", pool, get_args(Pool))
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; expected a share of the windows, above 0 and up to 1")
        if not 0 <= growth < float("inf"):
            raise ValueError(f"growth is {growth}; expected a number of at least 0")
        if not isinstance(blur, int) or isinstance(blur, bool) or blur < 0:
            raise ValueError(f"blur is {blur!r}; expected a radius in pixels, 0 or more")
        if not callable(weight):
            raise TypeError(f"weight is {weight!r}; expected a score, such as diffgradcam.scores.probability")
        self.cam = cam
        self.scales = scales
        self.growth = growth
        self.window = window
        self.step = step
        self.keep = keep
        self.threshold = threshold
        self.pool = pool
        self.blur = blur
        self.weight = as_score(weight)
        self.batch_size = batch_size
        self.outputs: Tensor | None = None

    def __repr__(self) -> str:
        """The wrapper and what it wraps."""
        return f"SESS({self.cam!r}, scales={self.scales})"

    def explain(self, input_tensor: Any = None, classes: Any = None, *args: Any, **kwargs: Any) -> Explanation:
        """Decide on the images as they are, and explain all their windows.

        Args:
            input_tensor: As in the CAM's own.
            classes: As in the CAM's own, but no targets that are scores of their own: windows are weighted by a class.
            *args: Further arguments of the model. Those that have a row for each image follow the images.
            **kwargs: Further keyword arguments of the model, likewise.

        Returns:
            ``(logits, classes, maps)``: the logits of the images as they are, and maps of their size.

        Raises:
            TypeError: If the images are not a floating-point tensor; otherwise as the CAM's own.
            ValueError: As the CAM's own; if the images are not ``(B, C, H, W)``, or too small.
            RuntimeError: As the CAM's own.
        """
        inputs = Inputs(positional(input_tensor, args, kwargs), kwargs, self.image)
        images = versionable(self, inputs)
        if images.ndim != 4:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (B, C, H, W), where SESS slides a square window"
            )
        height, width = images.shape[2:]
        if self.blur >= min(height, width):
            raise ValueError(
                f"blur is {self.blur} for images of {height} x {width}; expected a radius below the shorter side"
            )
        window = min(height, width) if self.window is None else self.window

        first = self._explained(inputs, self._named(classes, len(images)))
        following = self._following(inputs, first.logits)
        windows = self._windows(height, width, window)

        def of_window(number: int, row: int) -> Tensor:
            return _cut(images[row : row + 1], windows[number], window)

        def again(versions: Tensor, rows: Tensor) -> Explanation:
            return self._explained(inputs.replaced(versions, rows, following), first.classes[rows])

        found = self._in_batches(len(windows), len(images), of_window, again)
        weights = self._weights(torch.cat([part.logits for part in found]), columns(first.classes), len(windows))
        maps = torch.cat([part.maps for part in found])
        grids = maps.view(len(windows), len(images), weights.shape[2], *maps.shape[-2:])
        fused = self._fused(grids, weights, windows, window, (height, width))
        return first._replace(maps=fused.view(*first.classes.shape, height, width))

    def __call__(
        self,
        input_tensor: Any = None,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **kwargs: Any,
    ) -> Array:
        """Heat maps at input size: the call of pytorch-grad-cam.

        Args:
            input_tensor: As in the CAM's own call.
            targets: As in the CAM's own call, but no targets that are scores of their own.
            aug_smooth: The mean of the heat maps of six versions of each image, as in the CAM's own call.
            eigen_smooth: As in the CAM's own call, for each window.
            **kwargs: Further keyword arguments of the model.

        Returns:
            float32, ``(B, H, W)``, each map scaled to [0, 1]. The logits of the images as they are, are in ``outputs``.

        Raises:
            TypeError: As :meth:`explain`.
            ValueError: As :meth:`explain`.
            RuntimeError: As :meth:`explain`.
        """
        cam = copy.copy(self)
        if eigen_smooth and isinstance(self.cam, BaseCAM):
            cam.cam = self.cam.summed_by_principal_component()
        if aug_smooth:
            inputs = Inputs(positional(input_tensor, (), kwargs), kwargs, self.image)
            smoothed, self.outputs = averaged_call(cam, Augmentations(), inputs, targets)
            return smoothed
        found = cam.explain(input_tensor, None if targets is None else [*targets], **kwargs)
        self.outputs = found.logits
        heat: Array = heatmaps.minmax(found.maps).float().cpu().numpy()
        return heat

    def _named(self, classes: Any, batch: int) -> Any:
        """Classes without targets that are scores of their own."""
        if isinstance(classes, Sequence) and not isinstance(classes, str) and any(map(callable, classes)):
            named, callables = read_targets(classes, batch)
            if callables is not None:
                raise ValueError(
                    f"target {type(callables[0]).__name__} is a score of its own, and SESS weights windows by the "
                    "score of a class; expected class indices"
                )
            return named
        return classes

    def _in_batches(
        self,
        windows: int,
        batch: int,
        of_window: Callable[[int, int], Tensor],
        again: Callable[[Tensor, Tensor], Explanation],
    ) -> list[Explanation]:
        """Explain all images in each window, one window after the other."""
        found = []
        for start in range(0, windows * batch, self.batch_size):
            places = range(start, min(start + self.batch_size, windows * batch))
            versions = torch.cat([of_window(place // batch, place % batch) for place in places])
            found.append(again(versions, torch.tensor([place % batch for place in places])))
        return found

    def _windows(self, height: int, width: int, side: int) -> list[Window]:
        """Those of all versions, the image as it is first."""
        found = []
        for number in range(self.scales):
            shorter = side + number * round(side * self.growth)
            size = (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
            step = side if self.step is None else self.step
            tops, lefts = (_starts(length, step, side) for length in size)
            found += [Window(size, top, left) for top in tops for left in lefts]
        return found

    def _weights(self, logits: Tensor, classes: Tensor, count: int) -> Tensor:
        """What each window counts, ``(P, B, N)``: its score relative to the best, NaN for those that are left out."""
        request = ClassRequest(self.weight, classes)
        rows = torch.arange(len(logits), device=classes.device) % len(classes)
        scores = request.values(logits, rows).clamp_min(0).view(count, len(classes), -1)
        best = scores.amax(0, keepdim=True)
        relative = torch.where(best > 0, scores / torch.where(best > 0, best, 1), 1)
        places = scores.argsort(dim=0, descending=True, stable=True).argsort(0)  # 0 for the highest
        return torch.where(places < math.ceil(round(self.keep * count, 6)), relative, torch.nan)

    def _fused(
        self, grids: Tensor, weights: Tensor, windows: Sequence[Window], side: int, size: tuple[int, int]
    ) -> Tensor:
        """One map ``(B * N, H, W)`` of the maps ``(P, B, N, h, w)`` of windows."""
        total = grids.new_zeros(grids.shape[1:3].numel(), *size)
        counts = torch.zeros_like(total)
        for maps, weight, window in zip(grids.flatten(1, 2), weights.flatten(1), windows, strict=True):
            scaled = heatmaps.minmax(heatmaps.resize(heatmaps.minmax(maps), (side, side)))
            used = ~weight.isnan()
            canvas = total.new_zeros(len(total), *window.size)
            canvas[:, window.top : window.top + side, window.left : window.left + side] = (
                weight.nan_to_num().to(scaled).view(-1, 1, 1) * scaled
            )
            pasted = heatmaps.resize(canvas, size)
            if self.pool == "max":
                total = torch.maximum(total, pasted)
            else:
                marked = (pasted > self.threshold + _ROUNDING) & used.view(-1, 1, 1)
                total += torch.where(marked, pasted, 0)
                counts += marked
        return _blurred(total if self.pool == "max" else total / counts.clamp_min(1), self.blur)


def _cut(image: Tensor, window: Window, side: int) -> Tensor:
    """A window ``(1, C, side, side)`` of an image ``(1, C, H, W)`` at its size."""
    if tuple(image.shape[2:]) != window.size:
        image = F.interpolate(image, window.size, mode="bilinear", align_corners=False, antialias=True)
    return image[:, :, window.top : window.top + side, window.left : window.left + side]


def _starts(length: int, step: int, side: int) -> list[int]:
    """Where windows begin along one side; the last is moved back to the border."""
    found = [start for start in range(0, length, step) if start + side < length]
    return [*found, max(length - side, 0)]


def _blurred(maps: Tensor, radius: int) -> Tensor:
    """A Gaussian blur; beyond the border the maps are mirrored."""
    if radius == 0:
        return maps
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-(offsets**2) / (2 * _BLUR_SD**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = F.pad(maps.unsqueeze(1), (radius,) * 4, mode="reflect")
    blurred: Tensor = F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))
    return blurred.squeeze(1)
