"""The models and images: each model in two parts, a *trunk* that no attack changes and a *tail* that it may.

What the trunk makes of an image is computed once, also of images that are partly covered, so that a fooled model costs
its tail alone. The digits and the whole ResNet-18 have no trunk: there, an attack may change all of it.

The photographs, the tiles and the weights of ResNet-18 are not part of the project; :data:`SOURCES` says where anyone
gets them. They lie in ``../shared`` beside it, or where ``DIFFGRADCAM_DATA`` and ``DIFFGRADCAM_WEIGHTS`` say.
"""

from __future__ import annotations

import copy
import csv
import fcntl
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam._core.persistence import atomic_file
from diffgradcam.data import SaliencyDataset
from diffgradcam.metrics.behaviour import GRID, covered, windows
from diffgradcam.sham import border_mask
from diffgradcam.training import Prepare
from experiments import resnet
from experiments.photos import SIDE, lite0, to_input
from experiments.saliency_guided.real.tasks import root
from experiments.sham import settings as sham

FITTED = 800  # of the thousand photographs; an attack sees these, and is judged on the others
SOURCES = {
    "photographs": "one of each ImageNet class: github.com/EliSchwartz/imagenet-sample-images",
    "tiles": "Huang et al., 2020: github.com/abin24/Magnetic-tile-defect-datasets.",
    "ResNet-18": "product-quantised: github.com/uber-research/permute-quantize-finetune",
}
WHOLE = "resnet18-whole"
_CACHE = Path(__file__).parents[2] / "output" / "lies"
_BATCH = 8  # of the trunk: larger ones are slower, since they no longer fit the processor's cache


class Part(NamedTuple):
    """Images that an attack sees, or others.

    Attributes:
        inputs: What enters the tail, ``(N, C, h, w)``.
        images: The first of them as images: those whose behaviour is measured, ``(n, ...)``.
        covered: What enters the tail when each window of those is covered, ``(n, 49, C, h, w)``.
        labels: ``(N,)``; None where we do not know them.
    """

    inputs: Tensor
    images: Tensor
    covered: Tensor
    labels: Tensor | None

    def to(self, device: torch.device) -> Part:
        """The same on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Part(self.inputs.to(device), self.images.to(device), self.covered.to(device), labels)


class Setting(NamedTuple):
    """A clean model and what an attack on it needs.

    Attributes:
        trunk: Frozen.
        tail: In evaluation mode, to the logits.
        layer: Of the tail: the last one before the pooling.
        mask: The hoax: a border, at the size of the maps.
        fitted: What attacks see.
        held_out: What they do not see.
        pooled_linear: Whether the logits are a linear layer of the pooled activations.
        level: A grey level (of 255; of the digits' 16), in the units of the images.
        accuracy: Of the clean model on the held-out images; None where we do not know the labels.
    """

    trunk: nn.Module
    tail: nn.Module
    layer: str
    mask: Tensor
    fitted: Part
    held_out: Part
    pooled_linear: bool
    level: float
    accuracy: float | None

    def to(self, device: torch.device) -> Setting:
        """The same on a device; modules are moved, not copied."""
        return self._replace(
            trunk=self.trunk.to(device), tail=self.tail.to(device), mask=self.mask.to(device),
            fitted=self.fitted.to(device), held_out=self.held_out.to(device),
        )  # fmt: skip

    @property
    def attacked(self) -> sham.Setting:
        """The tail as a setting of the older experiment, whose attacks take one."""
        batches: list[sham.Batches] = []
        for part in (self.fitted, self.held_out):
            inputs = part.inputs.split(32)
            labels = None if part.labels is None else part.labels.split(32)
            batches.append([(x,) for x in inputs] if labels is None else list(zip(inputs, labels, strict=True)))
        return sham.Setting(self.tail, self.layer, self.mask, *batches, self.pooled_linear)


def build(name: str, seed: int, device: str = "cpu") -> Setting:
    """Build a setting. What is trained here is trained on the CPU, so that it is the same model for every device.

    Args:
        name: A key of :data:`SETTINGS`.
        seed: Chooses which images are held out, and everything random.
        device: Where the trunk runs, and where everything is in the end.

    Returns:
        The setting.
    """
    where = torch.device(device)
    return SETTINGS[name](seed, where).to(where)


def through(trunk: nn.Module, images: Tensor) -> Tensor:
    """What a trunk makes of images.

    Args:
        trunk: Frozen.
        images: ``(N, ...)``.

    Returns:
        What enters the tail, ``(N, C, h, w)``, where the trunk is.
    """
    if isinstance(trunk, nn.Identity):
        return images
    device = next(trunk.parameters()).device
    with torch.no_grad():
        return torch.cat([trunk(batch.to(device)) for batch in images.split(_BATCH)])


def cover(trunk: nn.Module, images: Tensor) -> Tensor:
    """What a trunk makes of images with each window of the grid covered.

    Args:
        trunk: Frozen.
        images: ``(n, ...)``.

    Returns:
        ``(n, 49, C, h, w)``.
    """
    every = windows(images.shape[2], images.shape[3], GRID)
    return torch.stack([through(trunk, covered(images, window)) for window in every], 1)


def part(trunk: nn.Module, inputs: Tensor, images: Tensor, labels: Tensor | None = None, cached: str = "") -> Part:
    """Put a part together.

    Args:
        trunk: Frozen.
        inputs: What enters the tail.
        images: The first of them, as images.
        labels: Of all.
        cached: Name of the file that remembers what covered images become; none if empty.

    Returns:
        The part.
    """
    hidden = _cached(cached, lambda: cover(trunk, images)) if cached else cover(trunk, images)
    return Part(inputs, images, hidden, labels)


def _cached(name: str, make: Callable[[], Tensor | dict[str, Tensor]]) -> Any:
    """What a file remembers, on the CPU. Of several processes one makes it and the others wait."""
    path = _CACHE / f"{name}.pt"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with atomic_file(path) as file:
                torch.save(make(), file)
    return torch.load(path, map_location="cpu", weights_only=True)


def _accuracy(tail: nn.Module, some: Part) -> float:
    assert some.labels is not None
    with torch.no_grad():
        return float((tail(some.inputs.cpu()).argmax(1) == some.labels).double().mean())


# --- digits ----------------------------------------------------------------------------------------------------------


def _digits(seed: int, _device: torch.device) -> Setting:
    old = sham.build("digits", seed)
    parts = []
    for batches in (old.fitted, old.held_out):
        images, labels = _joined(batches)
        parts.append(part(nn.Identity(), images, images[:64], labels))
    accuracy = _accuracy(old.model, parts[1])
    return Setting(nn.Identity(), old.model, "5", old.mask, parts[0], parts[1], True, 1 / 16, accuracy)


def _joined(batches: sham.Batches) -> tuple[Tensor, Tensor]:
    """Images and labels of all batches, which have both."""
    columns: list[Any] = list(zip(*batches, strict=True))
    return torch.cat(columns[0]), torch.cat(columns[1])


# --- tiles -----------------------------------------------------------------------------------------------------------

KINDS = ("free", "blowhole", "break", "crack", "fray", "uneven")
_TILES_SIDE = 96
_TILES_EPOCHS = 24


def _tiles(seed: int, device: torch.device) -> Setting:
    images, labels = _read_tiles()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # Tiles with a defect first: what a model relies on to call a tile free is nowhere in particular.
    chosen = [_defects_first(index, labels) for index in (order[:FITTED], order[FITTED:])]
    trunk, tail = _tile_halves()
    whole = nn.Sequential(trunk, tail)
    training = partial(_train_tiles, images[chosen[0]], labels[chosen[0]], seed)
    whole.load_state_dict(_cached(f"tiles-{seed}", training))
    whole.eval()
    trunk.requires_grad_(False).to(device)
    parts = []
    for index in chosen:
        own = images[index]
        parts.append(part(trunk, through(trunk, own), own[:64], labels[index]))
    fitted, held_out = parts
    mask, level = border_mask((12, 12), cells=44), 1 / 255 / 0.25
    return Setting(trunk, tail, "relu", mask, fitted, held_out, True, level, _accuracy(tail, held_out))


@cache
def _read_tiles() -> tuple[Tensor, Tensor]:
    folder = root() / "tiles"
    dataset = SaliencyDataset(
        folder, folder / "tiles.csv", transform=Prepare((_TILES_SIDE, _TILES_SIDE), (0.5,), (0.25,))
    )
    kinds = dataset.column("group")
    return torch.stack([dataset[i][0] for i in range(len(dataset))]), torch.tensor(
        [KINDS.index(kind) for kind in kinds]
    )


def _defects_first(index: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([index[labels[index] != 0], index[labels[index] == 0]])


def _tile_halves() -> tuple[nn.Module, nn.Module]:
    trunk = nn.Sequential(
        *_block(1, 16, kernel=5, stride=2), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64), nn.MaxPool2d(2)
    )
    convolution, norm, relu = _block(64, 64)
    tail = nn.Sequential(
        OrderedDict(
            conv=convolution, norm=norm, relu=relu, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
            head=nn.Linear(64, len(KINDS)),
        )
    )  # fmt: skip
    return trunk, tail


def _train_tiles(images: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """The weights of the network of both halves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(*_tile_halves()).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions are faster so on a CPU
        optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
        steps = len(labels) // 32
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_TILES_EPOCHS * steps)
        weights = (len(labels) / labels.bincount(minlength=len(KINDS)).clamp_min(1)).float().sqrt()  # kinds are rare
        for _ in range(_TILES_EPOCHS):
            for index in torch.randperm(len(labels))[: steps * 32].view(steps, 32):
                loss = F.cross_entropy(model(images[index]), labels[index], weights)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return {name: values.contiguous() for name, values in model.state_dict().items()}


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


# --- a thousand photographs ------------------------------------------------------------------------------------------

_JUDGED = 64  # photographs of each part whose behaviour is measured
_JUDGED_WHOLE = 24
_LEVEL = 1 / 255 / 0.225  # a grey level, as ResNets take images


@cache
def _photographs() -> tuple[Tensor, Tensor]:
    """Pixels ``(1000, 224, 224, 3)``, RGB, 0 to 255, and their labels."""
    folder = root() / "photographs"
    with (folder / "photographs.csv").open() as file:
        rows = list(csv.DictReader(file))
    pixels = [cv2.cvtColor(cv2.imread(str(folder / row["image"])), cv2.COLOR_BGR2RGB) for row in rows]
    small = [cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for p in pixels]
    return torch.from_numpy(np.stack(small)), torch.tensor([int(row["label"]) for row in rows])


def _photograph_parts(
    trunk: nn.Module, name: str, images: Tensor, labels: Tensor | None, seed: int
) -> tuple[Part, Part]:
    inputs = _cached(name, lambda: through(trunk, images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = []
    for which, index in (("fitted", order[:FITTED]), ("held_out", order[FITTED:])):
        own = None if labels is None else labels[index]
        judged = images[index[:_JUDGED]]
        parts.append(part(trunk, inputs[index], judged, own, f"{name}-{which}-{_JUDGED}-{seed}"))
    return parts[0], parts[1]


class _LiteTrunk(nn.Module):
    """EfficientNet-Lite0 up to its last convolution."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stem, self.norm, self.swish, self.blocks = model._conv_stem, model._bn0, model._swish, model._blocks

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.swish(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return x


def _lite0(seed: int, device: torch.device, classes: int) -> Setting:
    model: Any = lite0()
    trunk = _LiteTrunk(model).eval().requires_grad_(False).to(device)
    pixels, labels = _photographs()
    images = to_input(list(pixels.numpy()))
    known = labels if classes == 1000 else None  # with fewer classes, few photographs show any of them
    parts = _photograph_parts(trunk, "lite0", images, known, seed)
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:classes].sort().values
    tail = _lite_tail(model, rows)
    accuracy = _accuracy(tail, parts[1]) if known is not None else None
    return Setting(trunk, tail, "swish", border_mask((7, 7), cells=28), *parts, True, 1 / 128, accuracy)


def _lite_tail(model: Any, rows: Tensor) -> nn.Module:
    """The rest of it, for some of its classes."""
    head = nn.Linear(model._fc.in_features, len(rows))
    head.load_state_dict({name: values[rows] for name, values in model._fc.state_dict().items()})
    return nn.Sequential(
        OrderedDict(
            conv=model._conv_head, norm=model._bn1, swish=copy.deepcopy(model._swish),  # the trunk has the same one
            pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=head,
        )
    ).eval()  # fmt: skip


class _ResNetTrunk(nn.Module):
    """ResNet-18 up to its last convolution; the shortcut around it comes behind in the channels."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        self.stages = nn.Sequential(model.layer1, model.layer2, model.layer3, model.layer4[0])
        last = model.layer4[1]
        self.first = nn.Sequential(last.conv1, last.bn1, nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        shortcut = self.stages(self.stem(images))
        return torch.cat([self.first(shortcut), shortcut], 1)


class _ResNetTail(nn.Module):
    """The last convolution of ResNet-18, its shortcut, the pooling and the linear layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        last = model.layer4[1]
        self.conv, self.norm, self.relu = last.conv2, last.bn2, nn.ReLU()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = model.fc

    def forward(self, inputs: Tensor) -> Tensor:
        x, shortcut = inputs.chunk(2, 1)
        logits: Tensor = self.head(self.pool(self.relu(self.norm(self.conv(x)) + shortcut)))
        return logits


def _resnet18(seed: int, device: torch.device) -> Setting:
    model: Any = resnet.load("resnet18")
    trunk, tail = _ResNetTrunk(model).eval().requires_grad_(False).to(device), _ResNetTail(model).eval()
    images, labels = _normalized()
    parts = _photograph_parts(trunk, "resnet18", images, labels, seed)
    return Setting(trunk, tail, "relu", border_mask((7, 7), cells=28), *parts, True, _LEVEL, _accuracy(tail, parts[1]))


def _resnet18_whole(seed: int, _device: torch.device) -> Setting:
    model = resnet.load("resnet18").eval()
    images, labels = _normalized()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = [
        part(nn.Identity(), images[index], images[index[:_JUDGED_WHOLE]], labels[index])
        for index in (order[:FITTED], order[FITTED:])
    ]
    mask, accuracy = border_mask((7, 7), cells=28), _accuracy(model, parts[1])
    return Setting(nn.Identity(), model, "layer4", mask, parts[0], parts[1], True, _LEVEL, accuracy)


def _normalized() -> tuple[Tensor, Tensor]:
    """The photographs as ResNets take them, and their labels."""
    pixels, labels = _photographs()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous(), labels


# --- orientation of a page -------------------------------------------------------------------------------------------


def _orientation(seed: int, device: torch.device) -> Setting:
    old = sham.build("orientation", seed)
    trunk, tail = _halves(old.model)
    trunk.to(device)
    parts = []
    for batches in (old.fitted, old.held_out):
        images, labels = _joined(batches)
        parts.append(part(trunk, through(trunk, images), images[:24], labels))
    accuracy = _accuracy(tail, parts[1])
    return Setting(trunk, tail, "swish", old.mask, parts[0], parts[1], False, 1 / 255 / 0.225, accuracy)


def _halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """PP-LCNet before its last convolution over the map, and from it on."""
    graph: Any = model.get_submodule("0")
    linear: Any = model.get_submodule("1")
    nodes = {node.name: node for node in graph.graph.nodes}
    scale = sham._constant(graph, nodes["mul_4"].args[1])
    head = nn.Linear(linear.in_features, linear.out_features)
    with torch.no_grad():
        head.weight.copy_(linear.weight * scale)
        head.bias.copy_(linear.bias)
    names = ("conv_30", "batch_normalization_26", "hard_swish_26", "global_average_pool_2", "conv_31", "hard_swish_27")
    conv, norm, swish, pool, wide, swish_wide = (graph.get_submodule(str(nodes[name].target)) for name in names)
    tail = nn.Sequential(
        OrderedDict(
            conv=conv, norm=norm, swish=swish, pool=pool, wide=wide, swish_wide=swish_wide, flatten=nn.Flatten(),
            head=head,
        )
    )  # fmt: skip
    graph.graph.erase_node(next(node for node in graph.graph.nodes if node.op == "output"))
    graph.graph.output(nodes["identity_9"])
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.eval().requires_grad_(False), tail.eval()


SETTINGS: dict[str, Callable[[int, torch.device], Setting]] = {
    "digits": _digits,
    "tiles": _tiles,
    "orientation": _orientation,
    "lite0-10": partial(_lite0, classes=10),
    "lite0-100": partial(_lite0, classes=100),
    "lite0-1000": partial(_lite0, classes=1000),
    "resnet18": _resnet18,
    WHOLE: _resnet18_whole,
}
