"""Do the maps of a checkpoint lie? Audit an ImageNet model: clean, fooled in two ways, repaired.

The common-mode hoax writes a border into GradCAM without changing any probability. The spatial hoax moves every map of
the last layer. The audit needs no clean copy to find them, and says which sign spoke. Takes a few minutes on two cores.
"""

import torch
from photos import cat_beside_coffee, crop, lite0, to_input
from skimage import data
from sklearn.datasets import load_sample_images
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, layer_input
from diffgradcam.metrics.similarity import pearson
from diffgradcam.robustness import audit, repair
from diffgradcam.sham import border_mask, common_mode_hoax, spatial_hoax

LAYER, MASK = layer_input("_avg_pooling"), border_mask((7, 7), cells=28)


def compare(clean: nn.Module, fooled: nn.Module, images: torch.Tensor, which: str) -> None:
    """Print how far maps and probabilities change on some images."""
    with torch.no_grad():
        moved = (clean(images).softmax(1) - fooled(images).softmax(1)).abs().max()
    print(f"{which}: no probability changes by more than {moved:.0e}")
    for method in (GradCAM, DiffGradCAM):
        _, classes, own = method(clean, LAYER).explain(images)
        maps = method(fooled, LAYER).explain(images, classes).maps
        kept, reached = pearson(maps, own).mean(), pearson(maps, MASK.expand_as(maps)).mean()
        print(f"  {method.__name__:12} r with its clean map {kept:5.2f}, with the border {reached:5.2f}")


def main() -> None:
    clean = lite0()
    photos = [cat_beside_coffee(), *(crop(p) for p in (data.chelsea(), data.coffee(), data.astronaut()))]
    fitted = to_input([view for photo in photos for view in (photo, photo[:, ::-1], photo[::-1])])
    held_out = to_input([crop(data.rocket()), crop(data.rocket())[:, ::-1]])

    fooled = common_mode_hoax(clean, LAYER, fitted, MASK)
    compare(clean, fooled, fitted, "common-mode hoax, images that it was fitted on")
    compare(clean, fooled, held_out, "common-mode hoax, a photograph that it never saw")

    more = to_input([crop(photo) for photo in load_sample_images().images])
    checked = torch.cat([fitted[::3], fitted[1::3], held_out, more])  # 12; for fewer than 8 there is no interval
    moved = spatial_hoax(clean, LAYER, lambda activations: activations.roll((3, 3), dims=(2, 3)))
    checkpoints = {
        "clean": clean,
        "common-mode hoax": fooled,
        "the same, repaired": repair(fooled),
        "spatial hoax": moved,
    }
    for title, model in checkpoints.items():
        print(f"\n{title}\n{audit(model, LAYER, checked, progress=False)}")


if __name__ == "__main__":
    main()
