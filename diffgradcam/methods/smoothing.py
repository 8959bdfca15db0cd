"""THEN, again and again: the mean map of several versions of an image, as wrappers over any method.

A wrapper has the ``explain`` and the call of the CAM that it wraps, and can be wrapped itself. The class is decided
once, on the images as they are, and all versions are explained for it. The versions of all images run together,
``batch_size`` at a time.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from .. import heatmaps
from .._core.checks import check_count, check_std
from .._core.forward import Explanation, ModelExplainer, rows_of
from .._core.outputs import Classes
from ..targets import OutputTarget


class Version(NamedTuple):
    """Another version of an image, and the way back.

    Attributes:
        make: Makes the version, ``(M, C, *S) -> (M, C, *T)``.
        turn_back: Turns maps of the version to those of the image, ``(M, *S) -> (M, *S)``.
        size: Versions of one size run together.
    """

    make: Callable[[Tensor], Tensor]
    turn_back: Callable[[Tensor], Tensor]
    size: float = 1.0


@runtime_checkable
class Smoothable(ModelExplainer, Protocol):
    """What can be smoothed: whatever has the two ways of use that the CAMs of this library and their wrappers have.

    Attributes:
        outputs: The logits of the last call.
    """

    outputs: Tensor | None

    def explain(self, input_tensor: Any, classes: Classes = None, *args: Any, **kwargs: Any) -> Explanation:
        """See :meth:`diffgradcam.BaseCAM.explain`."""
        ...

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **kwargs: Any,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """See the call of :class:`diffgradcam.BaseCAM`."""
        ...


@runtime_checkable
class Reducible(Smoothable, Protocol):
    """A CAM that can sum up its channels in another way: all of this library, but no wrapper."""

    def with_reduction(self, reduction: Callable[[Tensor], Tensor]) -> Smoothable:
        """See :meth:`diffgradcam.BaseCAM.with_reduction`."""
        ...


class SmoothedCAM(ABC):
    """The mean of what a CAM explains for several versions of each image.

    Args:
        cam: The CAM, or another wrapper.
        batch_size: How many versions of images run at once, beside the images as they are, which run as they come.

    Raises:
        TypeError: If ``cam`` is no CAM.
        ValueError: If ``batch_size`` is not at least 1.
    """

    def __init__(self, cam: Smoothable, *, batch_size: int = 32) -> None:
        if not isinstance(cam, Smoothable):
            raise TypeError(_no_cam(self, cam))
        check_count("batch_size", batch_size)
        self.cam = cam
        self.batch_size = batch_size
        self.outputs: Tensor | None = None

    @property
    def model(self) -> nn.Module:
        """The model of the CAM."""
        return self.cam.model

    @abstractmethod
    def _versions(self, shape: torch.Size, spatial: int) -> tuple[int, list[Version]]:
        """How often an image ``shape`` counts as it is, and its other versions; maps have ``spatial`` dimensions."""

    def explain(self, input_tensor: Tensor, classes: Classes = None, *args: Any, **kwargs: Any) -> Explanation:
        """Decide on the images as they are, and explain all their versions.

        Args:
            input_tensor: Images, ``(B, C, *S)``.
            classes: As in :meth:`BaseCAM.explain`.
            *args: Further arguments of the model. Tensors with ``B`` rows follow the images.
            **kwargs: Further keyword arguments of the model, likewise.

        Returns:
            ``(logits, classes, maps)``: the logits of the images as they are, and the mean map.

        Raises:
            TypeError: If the images are no floating-point tensor; otherwise as the CAM's own.
            ValueError: As the CAM's own.
            RuntimeError: As the CAM's own.
        """
        images = self._images(input_tensor)
        first = self.cam.explain(input_tensor, classes, *args, **kwargs)

        def again(versions: Tensor, rows: Tensor) -> Tensor:
            further = [rows_of(value, rows, len(images)) for value in args]
            named = {name: rows_of(value, rows, len(images)) for name, value in kwargs.items()}
            return self.cam.explain(versions, first.classes[rows], *further, **named).maps

        return first._replace(maps=self._mean(images, first.maps, first.classes.ndim, again))

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **kwargs: Any,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Heat maps at input size, the mean of the versions' heat maps: the call of pytorch-grad-cam.

        Args:
            input_tensor: Images, ``(B, C, *S)``.
            targets: As in the CAM's own call.
            aug_smooth: As in the CAM's own call, for each version.
            eigen_smooth: As in the CAM's own call, for each version.
            **kwargs: Further keyword arguments of the model. Tensors with ``B`` rows follow the images.

        Returns:
            float32, ``(B, H, W)``, in [0, 1], or in [-1, 1] where the CAM is signed: a mean of scaled maps, itself not
            scaled again. The logits of the images as they are, are in ``outputs``.

        Raises:
            TypeError: As :meth:`explain`.
            ValueError: As :meth:`explain`.
            RuntimeError: As :meth:`explain`.
        """
        images = self._images(input_tensor)
        if isinstance(targets, Iterable) and not callable(targets):  # an iterator would be used up by the first call
            targets = list(targets)
        cam = copy.copy(self.cam)  # other threads may call the CAM too, and its outputs are those of the last call
        first = torch.from_numpy(cam(input_tensor, targets, aug_smooth, eigen_smooth, **kwargs))
        outputs = self.outputs = cam.outputs
        if targets is None and outputs is not None and outputs.ndim == 2:  # others have no classes to hold on to
            targets = outputs.argmax(1).tolist()

        def again(versions: Tensor, rows: Tensor) -> Tensor:
            chosen = None if targets is None else [targets[row] for row in rows.tolist()]
            named = {name: rows_of(value, rows, len(images)) for name, value in kwargs.items()}
            return torch.from_numpy(cam(versions, chosen, aug_smooth, eigen_smooth, **named))

        return self._mean(images, first, 1, again).numpy()

    def _images(self, input_tensor: object) -> Tensor:
        if not isinstance(input_tensor, Tensor) or not input_tensor.is_floating_point() or input_tensor.ndim < 3:
            kind = type(input_tensor).__name__
            if isinstance(input_tensor, Tensor):
                kind = f"a tensor of {input_tensor.dtype} of shape {tuple(input_tensor.shape)}"
            raise TypeError(
                f"input_tensor is {kind}; {type(self).__name__} makes other versions of images and expects them as "
                "floating-point numbers (B, C, H, W), or with one or three spatial dimensions"
            )
        return input_tensor.detach()

    def _mean(self, images: Tensor, first: Tensor, lead: int, again: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The mean map of all versions; ``first`` are the maps ``(B, [N,] *S)`` of the images as they are."""
        batch, size = len(images), first.shape[lead:]
        count, versions = self._versions(images.shape[1:], len(size))
        total = first * count
        for _, same in itertools.groupby(versions, key=lambda version: version.size):
            group = list(same)
            # Version after version, and of each all images: row r is image r % batch of version r // batch.
            for start in range(0, len(group) * batch, self.batch_size):
                stop = min(start + self.batch_size, len(group) * batch)
                rows = torch.arange(start, stop)
                parts = [
                    (group[number], rows[rows // batch == number] % batch)
                    for number in range(start // batch, (stop - 1) // batch + 1)
                ]
                maps = again(torch.cat([version.make(images[part]) for version, part in parts]), rows % batch)
                for (version, part), own in zip(parts, torch.split(maps, [len(p) for _, p in parts]), strict=True):
                    back = heatmaps.resize(version.turn_back(own.flatten(0, lead - 1)), size)
                    total[part] += back.reshape(*own.shape[:lead], *size)
        return total / (count + len(versions))


def noises(shape: torch.Size, samples: int, seed: int) -> Iterator[Tensor]:
    """Normal noise for images: the same for every image, and on every device.

    Args:
        shape: Of one image, ``(C, *S)``.
        samples: How many.
        seed: Of the noise. The global random numbers are left alone.

    Returns:
        So many ``(C, *S)``, on the CPU, float64, of the standard deviation 1; each is drawn when it is asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(samples))


def pixel_range(images: Tensor) -> Tensor:
    """What noise is relative to: the largest minus the smallest value of each image.

    Args:
        images: ``(B, C, *S)``.

    Returns:
        ``(B, 1, ...)``.
    """
    flat = images.flatten(1)
    return (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (images.ndim - 1))


@final
class AugSmooth(SmoothedCAM):
    """Augmentation smoothing: the mean map of mirrored, dimmed and resized versions of each image.

    All combinations of ``flips``, ``factors`` and ``scales`` are explained; maps of mirrored versions are mirrored
    back, maps of resized ones resized to those of the image as it is. The defaults are those of
    ``cam(images, aug_smooth=True)``, which is this.

    Args:
        cam: The CAM, or another wrapper.
        flips: Along which spatial dimensions to mirror or not: -1 is left and right, -2 up and down.
        factors: By which numbers to multiply the pixel values.
        scales: By which numbers to multiply the size; others than 1 need a model that takes images of any size.
        batch_size: How many versions of images run at once, beside the images as they are, which run as they come.

    Raises:
        TypeError: If ``cam`` is no CAM.
        ValueError: If a flip is not negative or given twice, a factor or scale is not positive, there are none, or
            ``batch_size`` is not at least 1.

    Reference:
        ``aug_smooth`` of the library pytorch-grad-cam, which decides on the class of each version anew; no paper.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> cam = AugSmooth(GradCAM(model, "0"), flips=(-1, -2), scales=(1, 1.5))
        >>> cam.explain(torch.rand(5, 3, 8, 8), "all").maps.shape
        torch.Size([5, 4, 6, 6])
    """

    def __init__(
        self,
        cam: Smoothable,
        *,
        flips: Sequence[int] = (-1,),
        factors: Sequence[float] = (0.9, 1.0, 1.1),
        scales: Sequence[float] = (1.0,),
        batch_size: int = 32,
    ) -> None:
        super().__init__(cam, batch_size=batch_size)
        if any(flip >= 0 for flip in flips) or len(set(flips)) < len(flips):
            raise ValueError(
                f"flips is {flips!r}; expected different spatial dimensions, counted from the end: -1 for left and "
                "right, -2 for up and down"
            )
        for name, values in (("factors", factors), ("scales", scales)):
            if not values or not all(0 < value < float("inf") for value in values):
                raise ValueError(f"{name} is {values!r}; expected at least one number, all of them positive")
        self.flips = tuple(flips)
        self.factors = tuple(factors)
        self.scales = tuple(scales)

    def _versions(self, shape: torch.Size, spatial: int) -> tuple[int, list[Version]]:
        if any(-flip > min(spatial, len(shape) - 1) for flip in self.flips):
            raise ValueError(
                f"flips is {self.flips} for images {tuple(shape)} whose maps have {spatial} spatial dimensions; "
                f"expected dimensions that both have, -1 to {-min(spatial, len(shape) - 1)}"
            )
        subsets = [flip for n in range(len(self.flips) + 1) for flip in itertools.combinations(self.flips, n)]
        combinations = list(itertools.product(self.scales, subsets, self.factors))
        others = [combination for combination in combinations if combination != (1, (), 1)]
        versions = [
            Version(partial(_augmented, scale, flip, factor), partial(torch.flip, dims=flip), scale)
            for scale, flip, factor in others
        ]
        return len(combinations) - len(others), versions


@final
class NoiseSmooth(SmoothedCAM):
    """Noise smoothing: the mean map of noisy copies of each image, as SmoothGrad does with gradients.

    Every image gets the same noise, from the seed alone, so its map does not depend on its batch.

    Args:
        cam: The CAM, or another wrapper.
        samples: How many noisy copies. The image without noise decides on the class and does not count.
        std: Standard deviation of the noise, relative to the range of the image (largest minus smallest value).
        seed: Of the noise. The global random numbers are left alone.
        batch_size: How many noisy images run at once, beside the images as they are, which run as they come.

    Raises:
        TypeError: If ``cam`` is no CAM.
        ValueError: If ``samples`` or ``batch_size`` is not at least 1, or ``std`` is negative or not finite.

    Reference:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017 (arXiv 1706.03825), here with any map.

    Example:
        >>> from diffgradcam import DiffGradCAM
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> NoiseSmooth(DiffGradCAM(model, "0"), samples=10).explain(torch.rand(5, 3, 8, 8)).maps.shape
        torch.Size([5, 6, 6])
    """

    def __init__(
        self,
        cam: Smoothable,
        *,
        samples: int = 25,
        std: float = 0.15,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        super().__init__(cam, batch_size=batch_size)
        check_count("samples", samples)
        check_std(std)
        self.samples = samples
        self.std = std
        self.seed = seed

    def _versions(self, shape: torch.Size, _spatial: int) -> tuple[int, list[Version]]:
        drawn = noises(shape, self.samples, self.seed)
        return 0, [Version(partial(_noisy, self.std * noise), lambda maps: maps) for noise in drawn]


@final
class EigenSmooth(SmoothedCAM):
    """Eigen smoothing: the first principal component of the weighted activations instead of their sum.

    The same as ``cam(images, eigen_smooth=True)``, for ``explain`` too;
    :func:`diffgradcam.heatmaps.principal_component` says how the sign is chosen. A method whose map is no
    sum over the channels, such as Eigen-CAM, stays as it is.

    Args:
        cam: The CAM itself; wrap the result to smooth further, as in ``AugSmooth(EigenSmooth(cam))``.

    Raises:
        TypeError: If ``cam`` is no CAM.

    Reference:
        ``eigen_smooth`` of the library pytorch-grad-cam, after Muhammad and Yeasin, "Eigen-CAM", 2020 (arXiv
        2008.00299).
    """

    def __init__(self, cam: Reducible) -> None:
        if not isinstance(cam, Reducible):
            raise TypeError(_no_cam(self, cam))
        super().__init__(cam.with_reduction(heatmaps.principal_component))

    def _versions(self, _shape: torch.Size, _spatial: int) -> tuple[int, list[Version]]:
        return 1, []


def _augmented(scale: float, flip: tuple[int, ...], factor: float, images: Tensor) -> Tensor:
    size = [max(1, round(scale * length)) for length in images.shape[2:]]
    resized = heatmaps.resize(images.flatten(0, 1), size).reshape(*images.shape[:2], *size)
    return factor * torch.flip(resized, flip)


def _noisy(noise: Tensor, images: Tensor) -> Tensor:
    return images + pixel_range(images) * noise.to(images)


def _no_cam(wrapper: SmoothedCAM, cam: object) -> str:
    if isinstance(cam, SmoothedCAM):
        name = type(cam).__name__
        return (
            f"cam is {name}; {type(wrapper).__name__} changes how a CAM sums up its channels, so it comes first: "
            f"{name}({type(wrapper).__name__}(cam))"
        )
    given = f"the class {cam.__name__}" if isinstance(cam, type) else type(cam).__name__
    return f"cam is {given}; {type(wrapper).__name__} expects a CAM, such as GradCAM(model, 'layer4')"
