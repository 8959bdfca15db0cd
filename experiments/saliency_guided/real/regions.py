"""The post-hoc tool on real images: do the regions that it names hit what people marked?

For each image, the top region of ``important_features`` that speaks for the defect; for each map as many of its highest
pixels; for chance a square of that area somewhere. So all mark the same area, and differ in where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, important_features
from diffgradcam.heatmaps import resize
from diffgradcam.training import InMemory

TOOL = "important_features"
MAPS = {"GradCAM": GradCAM, "DiffGradCAM": DiffGradCAM, "LayerCAM": LayerCAM}
WAYS = (TOOL, *MAPS, "chance")


def judge_regions(model: nn.Module, tests: Subset[object], layer: str, seed: int) -> dict[str, dict[str, float]]:
    """Judge the regions of one network.

    Args:
        model: Of two classes, in evaluation mode.
        tests: Images of which some have a human map; those of class 1 that have one are used.
        layer: Where maps are taken.
        seed: Of the places of chance.

    Returns:
        For each of :data:`WAYS`: ``pointing`` (does the peak lie in the mask; of a region its centre), ``iou`` with the
        mask, and ``deletion``, the drop of the log-odds of the defect when the area is filled with the mean; means over
        the images. ``count`` has how many these were, and in how many the tool found no such region.
    """
    everything = tests.dataset
    assert isinstance(everything, InMemory)
    index = [i for i in tests.indices if bool(everything.has_saliency[i]) and int(everything.labels[i]) == 1]
    images = everything.images[index]
    masks = everything.saliency[index]
    masks = masks >= 0.5 * masks.flatten(1).amax(1)[:, None, None]
    ones = torch.ones(len(index), dtype=torch.int64)
    maps = {
        name: resize(method(model, [layer]).explain(images, ones).maps, images.shape[2:])
        for name, method in MAPS.items()
    }
    generator = torch.Generator().manual_seed(seed)
    regions: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    hits: dict[str, list[float]] = {way: [] for way in WAYS}
    used = []
    for i, image in enumerate(images):
        found = [region for region in important_features(model, image, layer, true_class=1) if region.sign > 0]
        if not found:
            continue
        used.append(i)
        mask = masks[i]
        row, column = (round(each) for each in found[0].centroid)
        area = int(found[0].mask.sum())
        regions[TOOL].append(found[0].mask)
        hits[TOOL].append(float(mask[row, column]))
        for name, values in maps.items():
            order = values[i].flatten().argsort(descending=True, stable=True)
            regions[name].append(_marked(order[:area], mask))
            hits[name].append(float(mask.flatten()[order[0]]))
        height, width = mask.shape
        high = min(height, max(1, round(area**0.5)))
        wide = min(width, max(1, round(area / high)))
        top = int(torch.randint(0, height - high + 1, (), generator=generator))
        left = int(torch.randint(0, width - wide + 1, (), generator=generator))
        place = torch.zeros_like(mask)
        place[top : top + high, left : left + wide] = True
        regions["chance"].append(place)
        hits["chance"].append(float(mask.float().mean()))
    result: dict[str, dict[str, float]] = {"count": {"images": len(used), "without": len(index) - len(used)}}
    for way in WAYS:
        inside = torch.stack(regions[way])
        truth = masks[used]
        overlap = (inside & truth).flatten(1).sum(1) / (inside | truth).flatten(1).sum(1)
        result[way] = {
            "pointing": sum(hits[way]) / len(used),
            "iou": float(overlap.mean()),
            "deletion": float(_drop(model, images[used], inside).mean()),
        }
    return result


def _marked(pixels: Tensor, mask: Tensor) -> Tensor:
    marked = torch.zeros_like(mask).flatten()
    marked[pixels] = True
    return marked.view_as(mask)


@torch.no_grad()
def _drop(model: nn.Module, images: Tensor, inside: Tensor) -> Tensor:
    """Log-odds of class 1 before minus after; images are normalised, so the mean is that of each image."""
    mean = images.flatten(2).mean(2)[:, :, None, None]
    before, after = (model(each) for each in (images, torch.where(inside[:, None], mean, images)))
    drop: Tensor = (before[:, 1] - before[:, 0]) - (after[:, 1] - after[:, 0])
    return drop
