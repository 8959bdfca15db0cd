"""Many clean classifiers: small networks of several kinds, trained in several ways.

A :class:`Design` says how one of them is made. The models for choosing thresholds (``calibration``) and for testing
them (``test``) differ: they have other seeds, and two of the six architectures are only in the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam.data import SaliencyDataset
from diffgradcam.training import Prepare
from experiments.saliency_guided.real import tasks
from experiments.saliency_guided.tasks import Images, build

from .harmless import mixed

LAYER, HEAD = "features", "head"
_FACES_SIDE, _PRINTS_SIDE = 40, 64


class Config(NamedTuple):
    """What all models have in common. Fixed before the run; see the report.

    Attributes:
        calibration: Small networks to choose the thresholds on.
        test: Small networks to test them on.
        train: Training images.
        held_out: Images that no model trained on: accuracy is measured on all, the audit sees the first.
        images: Images of an audit.
        digits_epochs: Passes over the training images.
        faces_epochs: Likewise, for faces.
        prints_epochs: Likewise, for fingerprints.
        batch: Images per step.
        digits_accuracy: A digits classifier that is right less often has not learned, and is left out.
        faces_accuracy: Likewise for faces.
        prints_accuracy: Likewise for fingerprints.
        strengths: Of the common-mode hoax.
        fool_images: Training images that an attacker uses.
        fool_epochs: Passes over them, at most, for attacks that train.
        fool_alpha: Weight of keeping the decisions, against showing the mask, for attacks that train.
        accuracy_loss: A changed model that is right less often than the clean one by more than this is left out.
        lie: A map lies if its honesty is lower than that of the clean model's map by more than this.
        photographs: For the real models: how many the attacker has, and how many new heads are trained on.
    """

    calibration: int = 24
    test: int = 72
    train: int = 1000
    held_out: int = 400
    images: int = 32
    digits_epochs: int = 8
    faces_epochs: int = 9
    prints_epochs: int = 10
    batch: int = 32
    digits_accuracy: float = 0.9
    faces_accuracy: float = 0.7
    prints_accuracy: float = 0.7
    strengths: tuple[float, ...] = (0.3, 1.0)
    fool_images: int = 320
    fool_epochs: int = 12
    fool_alpha: float = 0.15
    accuracy_loss: float = 0.1
    lie: float = 0.1
    photographs: tuple[int, int] = (64, 128)


class Data(NamedTuple):
    """Images and labels for training and for the attacks, and others for the audit, which neither of them sees."""

    train: Tensor
    held_out: Tensor
    train_labels: Tensor
    held_out_labels: Tensor


class Design(NamedTuple):
    """How one small model is made.

    Attributes:
        architecture: A name in :data:`ARCHITECTURES`.
        data: A name in :data:`DATA`.
        optimizer: A name in :data:`OPTIMIZERS`.
        weight_decay: Whether there is any.
        label_smoothing: Of cross-entropy.
        seed: Of the data, the weights and the order.
    """

    architecture: str
    data: str
    optimizer: str
    weight_decay: bool
    label_smoothing: float
    seed: int


def designs(split: str, config: Config) -> list[Design]:
    """The models of a split: each level of each factor equally often, in combinations that are drawn at random.

    Args:
        split: ``"calibration"`` or ``"test"``.
        config: How many.

    Returns:
        One design for each model.
    """
    calibration = split == "calibration"
    count, first_seed = (config.calibration, 1000) if calibration else (config.test, 2000)
    rng = np.random.default_rng(first_seed)

    def balanced(levels: Sequence[Any]) -> list[Any]:
        return [levels[i % len(levels)] for i in rng.permutation(count)]

    factors = zip(
        balanced(SEEN if calibration else tuple(ARCHITECTURES)),
        balanced(tuple(DATA)),
        balanced(tuple(OPTIMIZERS)),
        balanced((False, True)),
        balanced((0.0, 0.1)),
        strict=True,
    )
    return [Design(*factor, seed=first_seed + i) for i, factor in enumerate(factors)]


# --- architectures: all end in a map of 8 x 8 (faces: 10 x 10), pooling and a linear layer ---------------------------


class Classifier(nn.Module):
    """Features, then global average pooling and a linear layer."""

    def __init__(self, features: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, 1, H, W)``."""
        logits: Tensor = self.head(self.features(images).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """A block with a shortcut around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_block(channels, channels), *_block(channels, channels)[:2])

    def forward(self, x: Tensor) -> Tensor:
        """The input plus what the block makes of it, rectified."""
        return F.relu(x + self.inner(x))


class Dense(nn.Module):
    """A block whose output is concatenated with its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_block(channels, growth))

    def forward(self, x: Tensor) -> Tensor:
        """The input's channels and the new ones."""
        return torch.cat([x, self.inner(x)], 1)


def _block(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _separable(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
    return [depthwise, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]


def _stem(outputs: int, side: int) -> list[nn.Module]:
    return [*_block(1, outputs, stride=1 if side == 16 else 2), *_pooled(side)]


def _pooled(side: int) -> list[nn.Module]:
    """Large images become small at once, so that a position of the last map sees enough of them."""
    return [nn.MaxPool2d(2)] if side == _PRINTS_SIDE else []


def _plain(side: int) -> list[nn.Module]:
    return [*_stem(16, side), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 48)]


def _residual(side: int) -> list[nn.Module]:
    return [*_stem(16, side), Residual(16), *_block(16, 40, stride=2), Residual(40)]


def _strided(side: int) -> list[nn.Module]:
    """Without batch norm."""
    convolutions = [
        nn.Conv2d(1, 24, 5, 1 if side == 16 else 2, padding=2),
        nn.Conv2d(24, 48, 3, 2, padding=1),
        nn.Conv2d(48, 48, 3, padding=1),
    ]
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # without this it hardly learns
    first, *others = ([convolution, nn.ReLU()] for convolution in convolutions)
    return [*first, *_pooled(side), *(layer for block in others for layer in block)]


def _depthwise(side: int) -> list[nn.Module]:
    """Separable convolutions with GELU, whose output may be negative."""
    return [*_stem(24, side), *_separable(24, 48), *_separable(48, 64, stride=2), *_separable(64, 64)]


def _dense(side: int) -> list[nn.Module]:
    return [*_stem(16, side), Dense(16, 16), nn.AvgPool2d(2), Dense(32, 16), Dense(48, 16)]


def _dropout(side: int) -> list[nn.Module]:
    """Large kernels, SiLU, and dropout of whole channels."""
    middle = [nn.Conv2d(16, 32, 5, 2, padding=2, bias=False), nn.BatchNorm2d(32), nn.SiLU(), nn.Dropout2d(0.1)]
    return [*_stem(16, side), *middle, nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.SiLU()]


ARCHITECTURES: dict[str, tuple[Callable[[int], list[nn.Module]], int]] = {
    "plain": (_plain, 48),
    "residual": (_residual, 40),
    "strided": (_strided, 48),
    "depthwise": (_depthwise, 64),
    "dense": (_dense, 64),
    "dropout": (_dropout, 48),
}
SEEN = ("plain", "residual", "strided", "depthwise")  # in the calibration


# --- data ------------------------------------------------------------------------------------------------------------


def _digits(side: int, parity: bool) -> Callable[[int, Config], Data]:
    """Handwritten digits of 8 x 8 pixels, enlarged so that occlusion is possible; 10 classes, or odd against even."""

    def make(seed: int, config: Config) -> Data:
        images, labels = _all_digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        images = F.interpolate(images[order], size=(side, side), mode="bilinear")
        return _split(images, labels[order] % 2 if parity else labels[order], config)

    return make


def _faces(seed: int, config: Config) -> Data:
    """A face or a non-face on a photograph: the 40 x 40 pixels around it in the images of the saliency experiment."""
    task = build("faces", seed, config.train, config.held_out)
    rng = np.random.default_rng(seed)
    return Data(_part(task.train, rng), _part(task.closed, rng), task.train.labels, task.closed.labels)


def _part(faces: Images, rng: np.random.Generator) -> Tensor:
    """A random crop of each image that contains the whole face."""
    parts = []
    for image, region in zip(faces.images, faces.saliency, strict=True):
        top, left = (_start(region.amax(axis) > 0, rng) for axis in (1, 0))
        parts.append(image[:, top : top + _FACES_SIDE, left : left + _FACES_SIDE])
    return torch.stack(parts)


def _start(inside: Tensor, rng: np.random.Generator) -> int:
    positions = torch.nonzero(inside).flatten().tolist()
    earliest, latest = max(0, positions[-1] + 1 - _FACES_SIDE), min(positions[0], len(inside) - _FACES_SIDE)
    return int(rng.integers(earliest, latest + 1))


def _split(images: Tensor, labels: Tensor, config: Config) -> Data:
    train, held_out = slice(config.train), slice(config.train, config.train + config.held_out)
    return Data(images[train], images[held_out], labels[train], labels[held_out])


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    return (images - 5) / 6, torch.tensor(digits.target).long()


def _fingerprints(seed: int, config: Config) -> Data:
    """Real fingerprints or altered ones; the prints of one person are all in one part."""
    images, labels, together = _all_prints()
    generator = torch.Generator().manual_seed(seed)
    people = sorted(set(together))
    turn = dict(zip(people, torch.randperm(len(people), generator=generator).tolist(), strict=True))
    order = torch.tensor(sorted(range(len(labels)), key=lambda index: turn[together[index]]))
    first = max(index for index in range(config.train + 1) if together[order[index]] != together[order[index - 1]])
    train = order[torch.randperm(first, generator=generator)]
    held_out = order[first + torch.randperm(len(order) - first, generator=generator)[: config.held_out]]
    return Data(images[train], images[held_out], labels[train], labels[held_out])


@cache
def _all_prints() -> tuple[Tensor, Tensor, list[str]]:
    """All fingerprints, whether they are altered, and whose they are."""
    task = tasks.TASKS["fingerprints"]
    folder, size = tasks.root() / task.folder, (_PRINTS_SIDE, _PRINTS_SIDE)
    dataset = SaliencyDataset(folder, folder / f"{task.folder}.csv", transform=Prepare(size, (0.5,), (0.25,)))
    images = torch.stack([dataset[index][0] for index in range(len(dataset))])
    altered = torch.tensor([group in task.kinds for group in dataset.column("group")])
    return images, altered.long(), dataset.column(str(task.together))


class Source(NamedTuple):
    """Where images come from.

    Attributes:
        side: In pixels.
        classes: How many.
        make: Images of a seed.
        family: What the configuration calls it.
        task: Of the saliency experiment, whose images are not part of the project; empty for what is.
    """

    side: int
    classes: int
    make: Callable[[int, Config], Data]
    family: str
    task: str = ""

    def missing(self) -> str | None:
        """Why there are no such images here; None if there are."""
        return tasks.missing(self.task) if self.task else None

    def epochs(self, config: Config) -> int:
        """Passes over the training images."""
        return int(getattr(config, f"{self.family}_epochs"))

    def accuracy(self, config: Config) -> float:
        """What a network that has learned reaches."""
        return float(getattr(config, f"{self.family}_accuracy"))


DATA = {
    "10 digits, 16 px": Source(16, 10, _digits(16, parity=False), "digits"),
    "10 digits, 32 px": Source(32, 10, _digits(32, parity=False), "digits"),
    "odd digits, 16 px": Source(16, 2, _digits(16, parity=True), "digits"),
    "odd digits, 32 px": Source(32, 2, _digits(32, parity=True), "digits"),
    "faces, 40 px": Source(_FACES_SIDE, 2, _faces, "faces"),
    f"fingerprints, {_PRINTS_SIDE} px": Source(_PRINTS_SIDE, 2, _fingerprints, "prints", "fingerprints"),
}


# --- training --------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float, dict[str, float], float]] = {
    # learning rate, other options, weight decay if used
    "SGD": (torch.optim.SGD, 0.05, {"momentum": 0.9}, 1e-3),
    "Adam": (torch.optim.Adam, 3e-3, {}, 1e-3),
    "AdamW": (torch.optim.AdamW, 3e-3, {}, 0.1),
    "RMSprop": (torch.optim.RMSprop, 3e-3, {}, 1e-3),
}


def train(
    design: Design, data: Data, config: Config, *, targets: Tensor | None = None, mixup: bool = False
) -> nn.Module:
    """Train a model from scratch.

    Args:
        design: How.
        data: On what.
        config: How long.
        targets: To learn instead of the labels: the probabilities of a teacher, ``(N, K)``.
        mixup: Mix pairs of images.

    Returns:
        The model in evaluation mode.
    """
    source = DATA[design.data]
    side, classes = source.side, source.classes
    features, channels = ARCHITECTURES[design.architecture]
    torch.manual_seed(design.seed)
    model = Classifier(nn.Sequential(*features(side)), channels, classes)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions are faster so on a CPU
    make, lr, options, decay = OPTIMIZERS[design.optimizer]
    optimizer = make(model.parameters(), lr=lr, weight_decay=decay * design.weight_decay, **options)
    labels = data.train_labels
    steps = len(labels) // config.batch
    epochs = source.epochs(config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, cycle_momentum=False)
    for _ in range(epochs):
        for index in torch.randperm(len(labels))[: steps * config.batch].view(steps, config.batch):
            images, wanted = data.train[index], labels[index] if targets is None else targets[index]
            if mixup:
                images, wanted = mixed(images, F.one_hot(wanted, classes).float())
            loss = F.cross_entropy(model(images), wanted, label_smoothing=design.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def learned(data: str, accuracy: float, config: Config) -> bool:
    """The rule for leaving a model out, written before the run: it must be right often enough."""
    return accuracy >= DATA[data].accuracy(config)
