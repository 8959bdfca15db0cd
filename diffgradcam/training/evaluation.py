"""How well a model decides, with intervals, and how well its maps match people's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .._core.layers import LayerSpec
from .._core.outputs import find_logits
from ..data import SaliencyItem
from ..heatmaps import resize
from ..losses import true_and_false_classes
from ..methods.gradient import GradCAM
from ..metrics import (
    accuracy,
    acer,
    apcer,
    apcer_at_bpcer,
    auroc,
    bootstrap_interval,
    bpcer,
    eer,
    energy_in_mask,
    iou_at_matched_area,
    mean_interval,
    pearson,
    pointing_game,
)

_BATCH = 64
_MARKED = 0.5  # share of the highest saliency of an image: from there on is inside


class Estimate(NamedTuple):
    """A number and its bootstrap interval over the test images; None where there are too few of them for one."""

    value: float
    low: float | None
    high: float | None


class Evaluation(NamedTuple):
    """What was measured on one test.

    Attributes:
        images: How many there are of each class.
        decisions: ``auroc``, ``eer``, ``apcer_at_bpcer_1``, and at the threshold of equal probabilities ``accuracy``,
            ``apcer``, ``bpcer``, ``acer``. Class 1 is the attack (or the finding).
        maps: For ``true``, the map of the true class, and ``difference``, that minus the false class's: the mean over
            the images with a human map of ``energy`` (share of the map's positive energy in the marked region),
            ``pointing``, ``iou`` at matched area and ``pearson``. Empty where no image has a human map.
    """

    images: dict[int, int]
    decisions: dict[str, Estimate]
    maps: dict[str, dict[str, Estimate]]


_DECISIONS: dict[str, Callable[..., float]] = {
    "auroc": auroc,
    "eer": eer,
    "apcer_at_bpcer_1": partial(apcer_at_bpcer, target=0.01),
    "accuracy": partial(accuracy, threshold=0.0),
    "apcer": partial(apcer, threshold=0.0),
    "bpcer": partial(bpcer, threshold=0.0),
    "acer": partial(acer, threshold=0.0),
}


def evaluate_model(
    model: nn.Module,
    dataset: Dataset[SaliencyItem],
    *,
    layer: LayerSpec,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
    resamples: int = 1000,
) -> Evaluation:
    """Test a model of two classes.

    Args:
        model: In evaluation mode.
        dataset: Test images, of one size.
        layer: Where maps are taken.
        reshape_transform: As any CAM takes it.
        device: Where the model is.
        resamples: Of the test images, for the intervals; 0 for none.

    Returns:
        See :class:`Evaluation`.

    Raises:
        ValueError: If the model has another number of classes, or the images lack one of them.
    """
    cam = GradCAM(model, [layer], reshape_transform, rectify=False)
    logits, labels, maps, human = _explained(cam, model, dataset, device)
    if logits.shape[1] != 2:
        raise ValueError(
            f"the model has {logits.shape[1]} classes: expected two, since APCER and BPCER are of attack or bona fide"
        )
    scores = (logits[:, 1] - logits[:, 0]).double().numpy()
    truth = labels.numpy()
    counts = torch.bincount(labels, minlength=2).tolist()
    decisions = {}
    for name, metric in _DECISIONS.items():
        low, high = (
            bootstrap_interval(metric, truth, scores, resamples=resamples)
            if resamples and min(counts) > 1
            else (None, None)
        )
        decisions[name] = Estimate(metric(truth, scores), low, high)
    matches: dict[str, dict[str, Estimate]] = {}
    if len(maps):
        true, false = maps.unbind(1)
        for name, own in (("true", true), ("difference", true - false)):
            matches[name] = {key: _mean(values, resamples) for key, values in agreement(own, human).items()}
    return Evaluation(dict(enumerate(counts)), decisions, matches)


def agreement(maps: Tensor, human: Tensor) -> dict[str, Tensor]:
    """How well maps match human maps, image by image.

    Args:
        maps: ``(N, h, w)``, signed or not; brought to the size of the human maps.
        human: ``(N, H, W)``, in [0, 1]; inside is where it is at least half of its highest value.

    Returns:
        ``energy``, ``pointing``, ``iou`` and ``pearson``, each ``(N,)``.
    """
    maps = resize(maps, human.shape[1:])
    inside = human >= _MARKED * human.flatten(1).amax(1)[:, None, None].clamp_min(1e-6)
    return {
        "energy": energy_in_mask(maps, inside),
        "pointing": pointing_game(maps, inside),
        "iou": iou_at_matched_area(maps, inside),
        "pearson": pearson(maps, human),
    }


def _explained(
    cam: GradCAM, model: nn.Module, dataset: Dataset[SaliencyItem], device: str | torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and labels of all images; maps ``(M, 2, h, w)`` and human maps of those that have one."""
    logits, labels, maps, human = [], [], [], []
    for batch in DataLoader(dataset, batch_size=_BATCH):
        images = batch.image.to(device)
        with torch.no_grad():
            logits.append(find_logits(model(images)).float().cpu())
        labels.append(batch.label)
        has = batch.has_saliency
        if bool(has.any()):
            classes = true_and_false_classes(logits[-1][has], batch.label[has])
            maps.append(cam.explain(images[has.to(device)], classes.to(device)).maps.float().cpu())
            human.append(batch.saliency[has])
    empty = torch.zeros(0, 2, 1, 1)
    return torch.cat(logits), torch.cat(labels), torch.cat(maps or [empty]), torch.cat(human or [empty[:, 0]])


def _mean(values: Tensor, resamples: int) -> Estimate:
    array = values.double().numpy()
    low, high = mean_interval(array, resamples=resamples) if resamples and len(array) > 1 else (None, None)
    return Estimate(float(array.mean()), low, high)
