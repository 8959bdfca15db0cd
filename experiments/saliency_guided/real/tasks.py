"""Four binary tasks on real images, each with a kind of attack or defect that is left out of training.

The images are not part of the project. They lie in ``../shared/data`` beside it, or where the environment variable
``DIFFGRADCAM_DATA`` says; see :data:`TASKS` for where anyone gets the originals. Each task has a folder there, such as
``tiles``, and in it ``tiles.csv`` in the form of ``SaliencyDataset``: image, label (1 is the attack, the defect, the
finding), group (the kinds of the task), saliency, and the column that keeps images together.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from skimage import exposure
from torch import Tensor
from torch.utils.data import Subset

from diffgradcam.data import SaliencyDataset
from diffgradcam.metrics import auroc
from diffgradcam.training import InMemory, Prepare, Split, split

VARIABLE = "DIFFGRADCAM_DATA"
BESIDE = Path(__file__).resolve().parents[4] / "shared" / "data"
DEVELOPMENT = 0.2  # share of the images that choices are made on; they are in no test
TEST = 0.4  # of the others
_DEVELOPMENT_SEED = 2026


class Task(NamedTuple):
    """One task.

    Attributes:
        folder: Of the images; its CSV has the same name.
        size: Height and width that images are brought to.
        kinds: Groups that are left out of training, one for each seed in turn.
        together: Column of the CSV that keeps images in one part.
        colour: Whether the network sees colour.
        equalised: Whether histograms are equalised first.
        what: In words.
        source: Where anyone gets the images.
    """

    folder: str
    size: tuple[int, int]
    kinds: tuple[str, ...]
    together: str | None
    colour: bool
    equalised: bool
    what: str
    source: str


_TILES = ("blowhole", "break", "crack", "fray", "uneven")
_NIH = "Wang et al., CVPR 2017, and ieee8023/covid-chestxray-dataset, by way of github.com/muhammedtalo/COVID-19"
TASKS = {
    "tiles": Task(
        "tiles", (96, 96), _TILES, None, False, False,
        "magnetic tiles with a defect or without; people's masks of all defects but four",
        "Huang et al., 2020: github.com/abin24/Magnetic-tile-defect-datasets.",
    ),
    "faces": Task(
        "faces", (96, 96), ("hard",), None, True, False,
        "portraits, real or manipulated by experts; the manipulated parts, placed by landmarks, not drawn by people",
        "CIPLAB, Real and Fake Face Detection, by way of github.com/miguel-kjh/fake-face-detector",
    ),
    "fingerprints": Task(
        "fingerprints", (99, 90), ("obliteration", "rotation", "z_cut"), "subject", False, False,
        "fingerprints, real or altered; where an altered print differs from its original, exactly",
        "SOCOFing, Shehu et al., arXiv 1807.10609",
    ),
    "chestxray": Task(
        "chestxray", (96, 96), ("covid",), "patient", False, False,
        "frontal chest X-rays with pneumonia or without a finding; radiologists' boxes on 44 of them",
        _NIH,
    ),
    "faces224": Task(
        "faces", (224, 224), ("hard",), None, True, False, "the same at 224 x 224, for a pretrained network",
        "see faces",
    ),
    "chestxray224": Task(
        "chestxray", (224, 224), ("covid",), "patient", False, False, "the same at 224 x 224, for a pretrained network",
        _NIH,
    ),
    "chestxray64": Task(
        "chestxray", (64, 64), ("covid",), "patient", False, True,
        "the same at 64 x 64 with equalised histograms, where the source of an image shows less",
        _NIH,
    ),
}  # fmt: skip


class Images(NamedTuple):
    """One seed of a task.

    Attributes:
        train: To train with.
        closed: The test on kinds that training had.
        open: The test on the kind that it lacked.
        development: What choices are made on, of the kinds that training had. In no test of any seed.
        held_out: The kind left out.
    """

    train: InMemory
    closed: Subset[object]
    open: Subset[object]
    development: Subset[object]
    held_out: str


def root() -> Path:
    """Folder of the images."""
    return Path(os.environ.get(VARIABLE, BESIDE))


def missing(name: str) -> str | None:
    """Why a task cannot be run here; None if it can."""
    csv = _csv(name)
    return None if csv.is_file() else f"no file {csv}: set {VARIABLE} to the folder that has {TASKS[name].folder}/"


def build(name: str, seed: int) -> Images:
    """One seed of a task: the same for every method.

    Args:
        name: In :data:`TASKS`.
        seed: Of the split; it also says which kind is left out.

    Returns:
        See :class:`Images`.
    """
    everything, development, parts = _split(name, seed)
    kind = TASKS[name].kinds[seed % len(TASKS[name].kinds)]
    index = torch.tensor(parts.train)
    train = InMemory(
        everything.images[index],
        everything.labels[index],
        everything.saliency[index],
        everything.has_saliency[index],
        [everything.groups[i] for i in parts.train],
    )
    chosen = [i for i in development if everything.groups[i] != kind]
    return Images(train, *(Subset(everything, part) for part in (parts.closed, parts.open, chosen)), kind)


def with_share_of_maps(images: InMemory, share: float, seed: int) -> InMemory:
    """Take human maps away.

    Args:
        images: Training images.
        share: Of the images with a human map, which keep it.
        seed: Which ones; a smaller share is a part of a larger one.

    Returns:
        The same images.
    """
    having = images.has_saliency.nonzero()[:, 0]
    order = having[torch.randperm(len(having), generator=torch.Generator().manual_seed(seed))]
    keep = torch.zeros_like(images.has_saliency)
    keep[order[: max(1, round(share * len(order)))]] = True
    return InMemory(images.images, images.labels, images.saliency, keep, images.groups)


def shortcuts(test: Subset[object]) -> dict[str, float]:
    """How well numbers that know nothing of what is in an image tell its class.

    Args:
        test: Images.

    Returns:
        AUROC, either way round, of ``gradient`` (mean absolute difference of neighbouring pixels), ``contrast`` (their
        standard deviation) and ``brightness`` (their mean).
    """
    images, labels = (torch.stack([test[i][field] for i in range(len(test))]) for field in (0, 1))
    pixels = images.flatten(1)
    numbers = {"gradient": mean_gradient(images), "contrast": pixels.std(1), "brightness": pixels.mean(1)}
    found = {name: auroc(labels, values) for name, values in numbers.items()}
    return {name: max(value, 1 - value) for name, value in found.items()}


def mean_gradient(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels.

    Args:
        images: ``(N, C, H, W)``.

    Returns:
        ``(N,)``.
    """
    across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    return across.flatten(1).mean(1) + down.flatten(1).mean(1)


def _csv(name: str) -> Path:
    folder = TASKS[name].folder
    return root() / folder / f"{folder}.csv"


def _split(name: str, seed: int) -> tuple[InMemory, list[int], Split]:
    everything, together = _read(name)
    task = TASKS[name]
    labels = everything.labels.tolist()
    development = split(
        labels, everything.groups, together, validation=0, test=DEVELOPMENT, seed=_DEVELOPMENT_SEED
    ).closed
    others = sorted(set(range(len(labels))) - set(development))
    parts = split(
        [labels[i] for i in others],
        [everything.groups[i] for i in others],
        [together[i] for i in others],
        hold_out=task.kinds[seed % len(task.kinds)],
        validation=0,
        test=TEST,
        seed=seed,
    )
    return everything, development, Split(*([others[i] for i in part] for part in parts))


@cache
def _read(name: str) -> tuple[InMemory, list[str]]:
    task = TASKS[name]
    prepare = Prepare(task.size, *(((0.5,) * 3, (0.25,) * 3) if task.colour else ((0.5,), (0.25,))))
    dataset = SaliencyDataset(
        _csv(name).parent, _csv(name), transform=_Equalise(prepare) if task.equalised else prepare
    )
    together = dataset.column(task.together) if task.together else [""] * len(dataset)
    return InMemory.of(dataset), together


class _Equalise:
    def __init__(self, then: Prepare) -> None:
        self.then = then

    def __call__(self, image: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        grey = torch.from_numpy(exposure.equalize_hist(image.mean(0).numpy())).float()
        return self.then(grey.expand(3, -1, -1), saliency)
