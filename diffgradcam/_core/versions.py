"""Several versions of an image, and the mean of their maps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import heatmaps
from ..targets import OutputTarget
from .checks import described
from .inputs import ImageOf, Inputs, following_rows

Array = np.ndarray[Any, np.dtype[np.float32]]


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


Versions = Callable[[torch.Size, int], tuple[int, list[Version]]]
"""``(shape of an image, spatial dimensions of a map)`` to how often the image counts as it is, and other versions."""


class HeatmapCall(Protocol):
    """The call of pytorch-grad-cam, as every CAM and wrapper has it."""

    outputs: Tensor | None

    def __call__(
        self,
        input_tensor: Any = None,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **kwargs: Any,
    ) -> Array:
        """See the call of :class:`diffgradcam.BaseCAM`."""
        ...


def averaged_call(
    cam: HeatmapCall,
    versions: Versions,
    inputs: Inputs,
    targets: Sequence[OutputTarget | int] | None,
    batch_size: int = 32,
    **options: Any,
) -> tuple[Array, Tensor | None]:
    """The mean heat map of the versions of each image, all for the class that is decided on the images as they are.

    Args:
        cam: What makes the heat maps.
        versions: Which versions.
        inputs: The arguments of the model.
        targets: As in the call.
        batch_size: How many versions run at once.
        **options: Of the call, beside the arguments of the model.

    Returns:
        Heat maps ``(B, *S)``, float32, and the logits of the images as they are.

    Raises:
        TypeError: If the images are not a floating-point tensor.
    """
    images = versionable(cam, inputs)
    if isinstance(targets, Iterable) and not callable(targets):  # an iterator would be used up by the first call
        targets = list(targets)
    cam = copy.copy(cam)  # other threads may call the CAM too, and its outputs are those of the last call

    def heatmaps_of(others: Inputs, chosen: Sequence[OutputTarget | int] | None) -> Tensor:
        return torch.from_numpy(cam(*others.args[:1], **{"targets": chosen, **options, **others.kwargs}))

    first = heatmaps_of(inputs, targets)
    outputs = cam.outputs
    if targets is None and outputs is not None and outputs.ndim == 2:  # others have no classes to hold on to
        targets = outputs.argmax(1).tolist()

    def logits_of(others: Inputs) -> Tensor:
        heatmaps_of(others, None)
        assert cam.outputs is not None  # of the call just made
        return cam.outputs

    following = () if outputs is None else following_rows(inputs, outputs, logits_of)

    def again(made: Tensor, rows: Tensor) -> Tensor:
        chosen = None if targets is None else [targets[row] for row in rows.tolist()]
        return heatmaps_of(inputs.replaced(made, rows, following), chosen)

    return mean_of_versions(versions, images, first, 1, again, batch_size).numpy(), outputs


def mean_of_versions(
    versions: Versions,
    images: Tensor,
    first: Tensor,
    lead: int,
    again: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
) -> Tensor:
    """The mean map of all versions of each image.

    Args:
        versions: Which versions.
        images: ``(B, C, *S)``.
        first: The maps of the images as they are, ``(B, *S)`` or ``(B, N, *S)``.
        lead: How many dimensions of the maps are not positions, 1 or 2.
        again: Maps of versions ``(M, C, *T)`` of the images ``(M,)``.
        batch_size: How many versions run at once.

    Returns:
        As ``first``.
    """
    batch, size = len(images), first.shape[lead:]
    count, others = versions(images.shape[1:], len(size))
    total = first * count
    for _, same in itertools.groupby(others, key=lambda version: version.size):
        group = list(same)
        # Version after version, and of each all images: row r is image r % batch of version r // batch.
        for start in range(0, len(group) * batch, batch_size):
            stop = min(start + batch_size, len(group) * batch)
            rows = torch.arange(start, stop)
            parts = [
                (group[number], rows[rows // batch == number] % batch)
                for number in range(start // batch, (stop - 1) // batch + 1)
            ]
            maps = again(torch.cat([version.make(images[part]) for version, part in parts]), rows % batch)
            for (version, part), own in zip(parts, torch.split(maps, [len(p) for _, p in parts]), strict=True):
                back = heatmaps.resize(version.turn_back(own.flatten(0, lead - 1)), size)
                total[part] += back.reshape(*own.shape[:lead], *size)
    return total / (count + len(others))


@dataclass(frozen=True)
class Augmentations:
    """Mirrored, dimmed and resized versions: all combinations.

    Args:
        flips: Along which spatial dimensions to mirror or not: -1 is left and right, -2 up and down.
        factors: By which numbers to multiply the pixel values.
        scales: By which numbers to multiply the size.

    Raises:
        ValueError: If a flip is not negative or given twice, a factor or scale is not positive, or there are none. When
            called, if the images or maps have too few spatial dimensions.
    """

    flips: Sequence[int] = (-1,)
    factors: Sequence[float] = (0.9, 1.0, 1.1)
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if any(flip >= 0 for flip in self.flips) or len(set(self.flips)) < len(self.flips):
            raise ValueError(
                f"flips is {self.flips!r}; expected different spatial dimensions, counted from the end: -1 for left "
                "and right, -2 for up and down"
            )
        for name, values in (("factors", self.factors), ("scales", self.scales)):
            if not values or not all(0 < value < float("inf") for value in values):
                raise ValueError(f"{name} is {values!r}; expected at least one number, all of them positive")

    def __call__(self, shape: torch.Size, spatial: int) -> tuple[int, list[Version]]:
        """See :data:`Versions`."""
        most = min(spatial, len(shape) - 1)
        if any(-flip > most for flip in self.flips):
            raise ValueError(
                f"flips is {tuple(self.flips)} for images {tuple(shape)} whose maps have {spatial} spatial "
                f"dimensions; expected dimensions that both have, -1 to {-most}"
            )
        subsets = [flip for n in range(len(self.flips) + 1) for flip in itertools.combinations(self.flips, n)]
        combinations = list(itertools.product(self.scales, subsets, self.factors))
        others = [combination for combination in combinations if combination != (1, (), 1)]
        made = [
            Version(partial(_augmented, scale, flip, factor), partial(torch.flip, dims=flip), scale)
            for scale, flip, factor in others
        ]
        return len(combinations) - len(others), made


@dataclass(frozen=True)
class NoisyCopies:
    """Copies with normal noise, the same for every image; the image without noise does not count.

    Args:
        samples: How many.
        std: Standard deviation, relative to the range of the image.
        seed: Of the noise.
    """

    samples: int
    std: float
    seed: int

    def __call__(self, shape: torch.Size, _spatial: int) -> tuple[int, list[Version]]:
        """See :data:`Versions`."""
        drawn = noises(shape, self.samples, self.seed)
        return 0, [Version(partial(_noisy, self.std * noise), lambda maps: maps) for noise in drawn]


def unchanged(_shape: torch.Size, _spatial: int) -> tuple[int, list[Version]]:
    """The image as it is, and no other version."""
    return 1, []


def noises(shape: torch.Size, samples: int, seed: int) -> Iterator[Tensor]:
    """Normal noise for images, or for masks: the same for every image, and on every device.

    Args:
        shape: Of one image, ``(C, *S)``, or of one mask, ``(*S)``.
        samples: How many.
        seed: Of the noise. The global random numbers are left alone.

    Returns:
        So many of this shape, on the CPU, float64, of the standard deviation 1; each is drawn when it is asked for.
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


def image_argument(cam: object) -> ImageOf:
    """Which argument of the model a CAM takes for the image; None for an explainer that does not say."""
    return getattr(cam, "image", None)


def versionable(explainer: object, inputs: Inputs) -> Tensor:
    """The images of which other versions are to be made.

    Args:
        explainer: What makes them, for the message.
        inputs: The arguments of the model.

    Returns:
        ``(B, C, *S)``, detached.

    Raises:
        TypeError: If there is no such tensor.
    """
    images = inputs.image
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim < 3:
        what = f"a tensor of {images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else None
        raise TypeError(
            f"the image is {what or described(images)}; {type(explainer).__name__} makes other versions of images and "
            "expects them as floating-point numbers (B, C, H, W), or with one or three spatial dimensions; where "
            "another argument is the image, name it with image="
        )
    return images.detach()


def _augmented(scale: float, flip: tuple[int, ...], factor: float, images: Tensor) -> Tensor:
    size = [max(1, round(scale * length)) for length in images.shape[2:]]
    resized = heatmaps.resize(images.flatten(0, 1), size).reshape(*images.shape[:2], *size)
    return factor * torch.flip(resized, flip)


def _noisy(noise: Tensor, images: Tensor) -> Tensor:
    return images + pixel_range(images) * noise.to(images)
