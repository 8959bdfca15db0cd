"""What an audit could look at, measured on one model: the candidates, one value for each image.

The library's audit has those that earned their column in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM
from diffgradcam._core.common_mode import common_mode_share, invisible_score, visible_score
from diffgradcam._core.lower import find_lower_layer
from diffgradcam._core.outputs import find_logits
from diffgradcam.analysis import explain_together
from diffgradcam.heatmaps import rectify, resize
from diffgradcam.methods.activation import ActivationCAM
from diffgradcam.metrics import Evaluator
from diffgradcam.metrics.behaviour import GRID, covered, integrated_gradients, occlusion_agreement, windows
from diffgradcam.metrics.similarity import cosine, pearson
from diffgradcam.scores import logit_difference

EVERY = 2  # the audit covers every second cell
STEPS = 8  # of integrated gradients
DIGITS = 4  # significant digits in a cell


class Measured:
    """The signs of one model, and what it relies on, from which the truth about other versions is told."""

    def __init__(self, model: nn.Module, layer: str, images: Tensor, *, lowest: str | None = None) -> None:
        """Measure.

        Args:
            model: A classifier in evaluation mode.
            layer: Whose maps are audited.
            images: Of the audit.
            lowest: The lowest layer with activations. With it the expensive signs are measured too: occlusion around
                every cell, integrated gradients, and agreement with that layer.
        """
        thorough = lowest is not None
        signed = [GradCAM(model, layer, score=score, rectify=False) for score in (visible_score, invisible_score)]
        cams = [*signed, DiffGradCAM(model, layer), ActivationCAM(model, layer, rectify=False)]
        (logits, classes, visible), (_, _, invisible), (_, _, contrast), (_, _, active) = explain_together(cams, images)
        maps = {"gradcam": rectify(visible + invisible), "visible": rectify(visible), "diffgradcam": contrast}
        self.logits, self.classes, self.maps = logits, classes, maps
        values: dict[str, Tensor] = {
            "common_mode_share": common_mode_share(visible, invisible),
            "offset": cosine(invisible, active),
            "kept": pearson(maps["gradcam"], maps["visible"]),
        }

        before = logit_difference(logits, classes)
        every = 1 if thorough else EVERY
        drops, losses = _occluded(signed[0], images, classes, before, visible, every)
        few = drops[:, :: EVERY // every, :: EVERY // every]
        self.drops = drops
        for name, its in maps.items():
            values[f"occlusion_{name}"] = occlusion_agreement(its, few, GRID, every=EVERY)
            if thorough:
                values[f"occlusion49_{name}"] = occlusion_agreement(its, drops, GRID)
        values["response_visible"] = pearson(losses[:, :: EVERY // every, :: EVERY // every], few)
        self.integrated: Tensor | None = None
        if thorough:
            self.integrated = integrated_gradients(Evaluator(model), images, classes, steps=STEPS, progress=False)
            for name, its in maps.items():
                cells = F.adaptive_avg_pool2d(its.unsqueeze(1), GRID).squeeze(1)
                values[f"integrated_{name}"] = pearson(cells, self.integrated)

        by = [max(1, side // 4) for side in visible.shape[1:]]
        pixels = [round(n * side / of) for n, side, of in zip(by, images.shape[2:], visible.shape[1:], strict=True)]
        (_, _, seen), (_, _, hidden) = explain_together(signed, images.roll(pixels, (2, 3)), classes)
        for name, shifted in (("gradcam", rectify(seen + hidden)), ("visible", rectify(seen))):
            values[f"follows_{name}"] = pearson(shifted, maps[name].roll(by, (1, 2)))
            values[f"constancy_{name}"] = _alike(maps[name])
        self.lower = find_lower_layer(model, layer, images[:1], find_logits)
        for name, below in (("lower", self.lower), ("lowest", lowest)):
            if below is not None:
                its = LayerCAM(model, below, score=logit_difference).explain(images, classes).maps
                values[f"{name}_visible"] = pearson(resize(its, visible.shape[1:]), maps["visible"])
        self.values = values

    def cell(self) -> dict[str, list[float]]:
        """The signs, rounded, for a cell."""
        return {name: [short(value) for value in values.tolist()] for name, values in self.values.items()}

    def truth(self, clean: Measured) -> dict[str, float]:
        """What became of decisions, maps, behaviour and honesty since the clean model; means over the images.

        Honesty is the agreement of a map with what *its* model relies on: occlusion, and where it was measured,
        integrated gradients.
        """
        alike = self.classes == clean.classes
        found = {"agreement": mean(alike)}
        for name in ("gradcam", "visible", "diffgradcam"):
            found[f"{name}_kept"] = mean(pearson(self.maps[name], clean.maps[name]))
            lost = clean.honesty(name) - self.honesty(name)
            found[f"{name}_lost"] = mean(lost)
            found[f"{name}_lost_error"] = short(float(lost.std() / len(lost) ** 0.5))
        kept = pearson(self.drops, clean.drops)
        if self.integrated is not None and clean.integrated is not None:
            kept = (kept + pearson(self.integrated, clean.integrated)) / 2
        found["behaviour_kept"] = mean(kept[alike]) if bool(alike.any()) else 0.0
        return found

    def honesty(self, name: str) -> Tensor:
        """How far one map says what the model relies on, ``(B,)``."""
        if self.integrated is None:
            return self.values[f"occlusion_{name}"]
        return (self.values[f"occlusion49_{name}"] + self.values[f"integrated_{name}"]) / 2


def _occluded(
    cam: GradCAM, images: Tensor, classes: Tensor, before: Tensor, whole: Tensor, every: int
) -> tuple[Tensor, Tensor]:
    """What windows of 3 x 3 cells take from the log-odds when they are covered, and from the map within them.

    Both are ``(B, n, n)``. The first is that of the audit. The map is the signed one, and its loss the mean over what
    of it lies in the window.
    """
    along = range(0, GRID, every)
    on_image, on_map = windows(*images.shape[2:], GRID), windows(*whole.shape[1:], GRID)
    drops, losses = [], []
    for cell in (GRID * row + column for row in along for column in along):
        logits, _, maps = cam.explain(covered(images, on_image[cell]), classes)
        drops.append(before - logit_difference(logits, classes))
        losses.append((whole - maps)[(..., *on_map[cell])].mean((1, 2)))
    shape = (-1, len(along), len(along))
    return torch.stack(drops, 1).view(shape), torch.stack(losses, 1).view(shape)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, some images at a time."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(100)])


def mean(values: Tensor | Sequence[Any]) -> float:
    """A mean, rounded for a cell."""
    return short(float(torch.as_tensor(values).float().mean()))


def short(value: float) -> float:
    """Rounded for a cell."""
    return float(f"{value:.{DIGITS}g}")


def _alike(maps: Tensor) -> Tensor:
    """Mean r of each image's map with those of the other images."""
    flat = maps.flatten(1)
    unit = F.normalize(flat - flat.mean(1, keepdim=True), dim=1)
    products = unit @ unit.T
    return (products.sum(1) - products.diagonal()) / max(1, len(maps) - 1)
