"""Three binary stand-in tasks with known location, made from real images that install from PyPI.

The published tasks' data (synthetic faces, presentation attacks, chest X-rays) are released on request only, so these
are *stand-ins*: real photographs and textures, in which the region that carries the class is known because it was put
there. Class 1 is the face, the attack or the anomaly; class 0 is the non-face or the untouched crop.

Every task has ``KINDS`` of something, and one whole kind is left out of training. *Closed set* is a test on the kinds
that were seen, *open set* a test on the kind that was not. In both, test crops come from regions of the photographs
that training never saw (and for faces, from patches that it never saw).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Array: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[Array, Array]

SIZE = 64  # crops, in pixels
_TRAIN_SHARE = 0.6  # of each photograph's width; the rest is for testing
_EDGE = 1.5  # pixels: how softly a region ends, so that no sharp seam gives it away

_FAMILIES = {
    "photographs": ("china", "flower", "chelsea", "coffee", "rocket", "motorcycle"),
    "materials": ("brick", "grass", "gravel"),
    "science": ("moon", "retina", "hubble", "tissue"),
    "objects": ("page", "text", "coins", "clock"),
}
_SMOOTH = ("moon", "retina", "tissue", "gravel", "grass", "brick")

KINDS = {
    "faces": tuple(_FAMILIES),
    "attacks": ("moire", "halftone", "scanlines", "grain"),
    "anomalies": ("blob", "line", "opacity", "texture"),
}


class Images(NamedTuple):
    """A set of labelled images with the region that carries the class.

    Attributes:
        images: ``(N, 1, 64, 64)``, float32, about [-1, 1].
        labels: ``(N,)``, 0 or 1.
        saliency: ``(N, 64, 64)``, float32, [0, 1]; zeros where there is none.
        has_saliency: ``(N,)``, bool. Untouched crops have no region, so nothing to look at.
    """

    images: Tensor
    labels: Tensor
    saliency: Tensor
    has_saliency: Tensor

    def take(self, index: Tensor) -> Images:
        """The images at ``index``."""
        return Images(*(field[index] for field in self))


class Task(NamedTuple):
    """One task: training images and the two tests."""

    train: Images
    closed: Images
    open: Images
    held_out: str


def build(task: str, seed: int, train: int = 1000, test: int = 800) -> Task:
    """Build a task. The kind that is left out of training goes round with the seed.

    Args:
        task: ``"faces"``, ``"attacks"`` or ``"anomalies"``.
        seed: Chooses the held-out kind, the crops, the patches and everything random in them.
        train: Number of training images, half of each class.
        test: Number of images of each of the two tests, half of each class.

    Returns:
        The training images, the closed-set and open-set test, and the name of the held-out kind.

    Raises:
        ValueError: If there is no such task.
    """
    if task not in KINDS:
        raise ValueError(f"no task {task!r}; expected one of {', '.join(KINDS)}")
    kinds = KINDS[task]
    held_out = kinds[seed % len(kinds)]
    seen = tuple(kind for kind in kinds if kind != held_out)

    def images(part: int, count: int, names: tuple[str, ...]) -> Images:
        return _images(_MAKERS[task], np.random.default_rng([seed, part]), seed, count, names, testing=part > 0)

    return Task(images(0, train, seen), images(1, test, seen), images(2, test, (held_out,)), held_out)


Maker: TypeAlias = Callable[[np.random.Generator, int, int, str, bool], tuple[Array, Array | None]]


def _images(
    make: Maker, rng: np.random.Generator, seed: int, count: int, kinds: tuple[str, ...], testing: bool
) -> Images:
    labels = np.arange(count) % 2
    made = [make(rng, seed, int(label), kinds[i // 2 % len(kinds)], testing) for i, label in enumerate(labels)]
    pixels = np.stack([image for image, _ in made]).clip(0, 1)
    regions = np.stack([np.zeros((SIZE, SIZE)) if region is None else region for _, region in made])
    return Images(
        torch.from_numpy((pixels[:, None] * 255).round() / 127.5 - 1).float(),  # as an 8-bit file would hold it
        torch.from_numpy(labels),
        torch.from_numpy(regions).float(),
        torch.tensor([region is not None for _, region in made]),
    )


# --- real images -----------------------------------------------------------------------------------------------------


@cache
def _photos() -> dict[str, Array]:
    """Greyscale photographs in [0, 1], none of which shows a face."""
    import skimage
    from sklearn.datasets import load_sample_image

    data: Any = skimage.data  # only partly typed
    color, transform = skimage.color, skimage.transform
    raw = {
        "china": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
        "chelsea": data.cat(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "motorcycle": data.stereo_motorcycle()[0],
        "brick": data.brick(),
        "grass": data.grass(),
        "gravel": data.gravel(),
        "moon": data.moon(),
        "retina": data.retina()[300:-300, 300:-300],  # inside the disc
        "hubble": data.hubble_deep_field(),
        "tissue": data.immunohistochemistry(),
        "page": data.page(),
        "text": data.text(),
        "coins": data.coins(),
        "clock": data.clock(),
    }
    grey = {name: color.rgb2gray(image) if image.ndim == 3 else image / 255.0 for name, image in raw.items()}
    grey["retina"] = transform.rescale(grey["retina"], 0.5, anti_aliasing=True)
    return grey


@cache
def _patches() -> tuple[Array, Array]:
    """100 faces and 100 non-faces, ``(100, 25, 25)`` each, in [0, 1]."""
    import skimage

    data: Any = skimage.data
    patches = np.asarray(data.lfw_subset(), dtype=np.float64)
    return patches[:100], patches[100:]


def _crop(rng: np.random.Generator, names: tuple[str, ...], testing: bool) -> Array:
    """A crop of one of the named photographs, from its left part for training and from its right part for testing."""
    photo = _photos()[str(rng.choice(names))]
    split = int(photo.shape[1] * _TRAIN_SHARE)
    part = photo[:, split:] if testing else photo[:, :split]
    top, left = (int(rng.integers(0, extent - SIZE + 1)) for extent in part.shape)
    crop = part[top : top + SIZE, left : left + SIZE]
    return crop[:, ::-1].copy() if rng.random() < 0.5 else crop.copy()


# --- faces: a face or a non-face pasted on a background --------------------------------------------------------------


def _face(rng: np.random.Generator, seed: int, label: int, kind: str, testing: bool) -> tuple[Array, Array | None]:
    """A patch on a background of the given family; the patch alone carries the class."""
    order = np.random.default_rng(seed).permutation(100)
    patches = _patches()[1 - label][order[60:] if testing else order[:60]]
    image = _crop(rng, _FAMILIES[kind], testing)
    side = int(rng.integers(18, 31))
    patch = ndimage.zoom(patches[rng.integers(len(patches))], side / 25, order=1)
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    # The patch takes on the light of its surroundings, so that brightness gives neither the place nor the class away.
    side = patch.shape[0]
    top, left = (int(v) for v in rng.integers(0, SIZE - side + 1, 2))
    below = image[top : top + side, left : left + side]
    patch = (patch - patch.mean()) / (patch.std() + 1e-6) * rng.uniform(0.08, 0.18)
    patch = patch + 0.5 * below.mean() + 0.5 * rng.uniform(0.3, 0.7)
    image[top : top + side, left : left + side] = patch + rng.normal(0, 0.03, patch.shape)
    if label == 0:
        region = np.zeros((SIZE, SIZE))
        region[top : top + side, left : left + side] = 1
        return image, region
    half = side / 2
    return image, _ellipse((top + half, left + half), (half, 0.8 * half), 0.0)


# --- attacks: a recaptured or composited artefact inside a random ellipse of a real photograph -----------------------


def _attack(rng: np.random.Generator, _: int, label: int, kind: str, testing: bool) -> tuple[Array, Array | None]:
    image = _crop(rng, tuple(_photos()), testing)
    if label == 0:
        return image, None
    region = _random_ellipse(rng, 9, 18)
    return _blend(image, _ARTEFACTS[kind](image, rng), region), region


def _moire(image: Array, rng: np.random.Generator) -> Array:
    """Two gratings that beat, as when a camera looks at a screen."""
    return image + rng.uniform(0.08, 0.20) * _grating(rng) * _grating(rng)


def _halftone(image: Array, rng: np.random.Generator) -> Array:
    """A printed screen of dots, seen by a camera that does not quite resolve it."""
    period, angle = rng.uniform(3.0, 5.0), rng.uniform(0, np.pi)
    screen = 0.5 + 0.5 * _wave(period, angle, 0.0) * _wave(period, angle + np.pi / 2, 0.0)
    printed = ndimage.gaussian_filter((image > screen).astype(float), 0.6)
    share = rng.uniform(0.2, 0.4)
    return np.asarray((1 - share) * image + share * printed)


def _scanlines(image: Array, rng: np.random.Generator) -> Array:
    """The lines of a screen."""
    return image + rng.uniform(0.07, 0.17) * _grating(rng)


def _grain(image: Array, rng: np.random.Generator) -> Array:
    """The grain of another sensor, as at a splice."""
    grain = ndimage.gaussian_filter(rng.normal(size=image.shape), 0.5)
    return np.asarray(image + rng.uniform(0.05, 0.12) * grain / grain.std())


_ARTEFACTS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "moire": _moire,
    "halftone": _halftone,
    "scanlines": _scanlines,
    "grain": _grain,
}


# --- anomalies: something local on a smooth texture ------------------------------------------------------------------


def _anomaly(rng: np.random.Generator, _: int, label: int, kind: str, testing: bool) -> tuple[Array, Array | None]:
    image = _texture(rng, testing)
    if label == 0:
        return image, None
    return _ANOMALIES[kind](image, rng, testing)


def _texture(rng: np.random.Generator, testing: bool) -> Array:
    """A smooth real texture of moderate contrast, unevenly lit and with sensor noise."""
    crop = ndimage.gaussian_filter(_crop(rng, _SMOOTH, testing), 1.5)
    crop = (crop - crop.mean()) / (crop.std() + 1e-6) * rng.uniform(0.04, 0.1)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    light = rng.normal(0, 0.06, 2)
    return np.asarray(0.5 + crop + light[0] * x + light[1] * y + rng.normal(0, 0.015, crop.shape))


def _blob(image: Array, rng: np.random.Generator, _: bool) -> Pair:
    """A round spot, brighter than its surroundings: a nodule."""
    region = _random_ellipse(rng, 4, 8)
    return image + rng.uniform(0.10, 0.22) * ndimage.gaussian_filter(region, 1.0), region


def _line(image: Array, rng: np.random.Generator, _: bool) -> Pair:
    """A thin bright line: a tube or a fracture."""
    half, angle = float(rng.uniform(8, 14)), float(rng.uniform(0, np.pi))
    centre = (float(rng.uniform(half, SIZE - half)), float(rng.uniform(half, SIZE - half)))
    stroke = _line_region(centre, half, float(rng.uniform(0.5, 1.0)), angle)
    return image + rng.uniform(0.10, 0.22) * stroke, _line_region(centre, half, 3.5, angle)


def _opacity(image: Array, rng: np.random.Generator, _: bool) -> Pair:
    """A hazy part: brighter, and with less contrast."""
    region = _random_ellipse(rng, 8, 15)
    hazy = image.mean() + rng.uniform(0.06, 0.14) + rng.uniform(0.3, 0.6) * (image - image.mean())
    return _blend(image, hazy, region), region


def _swap(image: Array, rng: np.random.Generator, testing: bool) -> Pair:
    """A part with another texture."""
    region = _random_ellipse(rng, 8, 15)
    other = ndimage.gaussian_filter(_crop(rng, _SMOOTH, testing), 0.7)
    other = (other - other.mean()) / (other.std() + 1e-6) * rng.uniform(0.06, 0.12)
    return _blend(image, image.mean() + rng.uniform(0.02, 0.1) + other, region), region


_ANOMALIES: dict[str, Callable[[Array, np.random.Generator, bool], Pair]] = {
    "blob": _blob,
    "line": _line,
    "opacity": _opacity,
    "texture": _swap,
}

_MAKERS: dict[str, Maker] = {"faces": _face, "attacks": _attack, "anomalies": _anomaly}


# --- shapes ----------------------------------------------------------------------------------------------------------


def _ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float) -> Array:
    """1 inside an ellipse, 0 outside, with a soft edge; ``angle`` turns the first radius away from the vertical."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    dy, dx = y - centre[0], x - centre[1]
    along, across = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
    outside = (np.hypot(along / radii[0], across / radii[1]) - 1) * min(radii)  # pixels, about
    return np.asarray(np.clip(0.5 - outside / _EDGE, 0, 1))


def _line_region(centre: tuple[float, float], half_length: float, half_width: float, angle: float) -> Array:
    """1 on a straight line with round ends, 0 off it, with a soft edge; ``angle`` turns it away from the vertical."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    dy, dx = y - centre[0], x - centre[1]
    along, across = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
    outside = np.hypot(np.maximum(abs(along) - half_length, 0), across) - half_width
    return np.asarray(np.clip(0.5 - outside / _EDGE, 0, 1))


def _random_ellipse(rng: np.random.Generator, low: float, high: float) -> Array:
    radii = (float(rng.uniform(low, high)), float(rng.uniform(low, high)))
    margin = max(radii)
    centre = (float(rng.uniform(margin, SIZE - margin)), float(rng.uniform(margin, SIZE - margin)))
    return _ellipse(centre, radii, float(rng.uniform(0, np.pi)))


def _blend(image: Array, inside: Array, region: Array) -> Array:
    return region * inside + (1 - region) * image


def _wave(period: float, angle: float, phase: float) -> Array:
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.asarray(np.sin(2 * np.pi * (y * np.cos(angle) + x * np.sin(angle)) / period + phase))


def _grating(rng: np.random.Generator) -> Array:
    return _wave(float(rng.uniform(3, 6)), float(rng.uniform(0, np.pi)), float(rng.uniform(0, 2 * np.pi)))
