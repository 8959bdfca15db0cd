"""A page of test images with people's maps and the model's, before and after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .._core.layers import LayerSpec
from .._core.outputs import find_logits
from ..data import SaliencyItem
from ..heatmaps import minmax, resize
from ..losses import true_and_false_classes
from ..methods.gradient import GradCAM
from ..visualize.arrays import Array, as_bytes, colours
from ..visualize.report import Heat, Thumbnail, html_report
from .images import Prepare

_HEAT = 64  # side of a map, in pixels; browsers smooth it
_SIGNED = "true class - other class"


def maps_report(
    title: str,
    dataset: Dataset[SaliencyItem],
    models: Mapping[str, nn.Module],
    prepare: Prepare,
    *,
    names: Sequence[str],
    classes: Sequence[str],
    layer: LayerSpec,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Show what models look at, beside what people marked.

    Args:
        title: Of the page.
        dataset: A few images.
        models: By what the switch calls them, such as ``"before training"``; in evaluation mode.
        prepare: How the images were prepared: undone, so that they can be seen.
        names: Of each image.
        classes: Names of the classes.
        layer: Where maps are taken.
        reshape_transform: As any CAM takes it.
        device: Where the models are.
        facts: What else is to be said, as a table above.

    Returns:
        One self-contained HTML page. The maps are GradCAM of the true class, and the signed difference to the other
        class's: red speaks for the true class, blue for the other one.
    """
    cams = {name: GradCAM(model, [layer], reshape_transform, rectify=False) for name, model in models.items()}
    thumbnails = []
    for index, name in enumerate(names):
        item = dataset[index]
        image, label = item.image[None].to(device), item.label.view(1)
        heats = []
        if bool(item.has_saliency):
            for choice in ("true class", _SIGNED):
                heats.append(Heat("people", choice, _picture(item.saliency, "viridis"), "marked by people"))
        for about, cam in cams.items():
            with torch.no_grad():
                logits = find_logits(models[about](image)).float().cpu()
            pair = true_and_false_classes(logits, label)
            true, false = cam.explain(image, pair.to(device)).maps[0].float().cpu().unbind(0)
            says = f"{classes[int(label)]}, given {float(logits.softmax(1)[0, int(label)]):.0%}"
            heats.append(Heat(about, "true class", _picture(minmax(true.relu()[None])[0], "viridis"), says))
            difference = true - false
            limit = float(difference.abs().max()) or 1.0
            heats.append(Heat(about, _SIGNED, _picture((difference / limit + 1) / 2, "RdBu_r"), says))
        thumbnails.append(Thumbnail(name, _seen(item.image, prepare), heats))
    return html_report(title, thumbnails, facts=facts)


def _seen(image: Tensor, prepare: Prepare) -> Array:
    pixels = image * image.new_tensor(prepare.std)[:, None, None] + image.new_tensor(prepare.mean)[:, None, None]
    return as_bytes(pixels.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy())


def _picture(values: Tensor, colormap: str) -> Array:
    return as_bytes(colours(resize(values[None], (_HEAT, _HEAT))[0].clamp(0, 1).numpy(), colormap))
