"""Which parts of a photograph tell one class from another: ranked regions, checked by removing them.

Prints the regions and writes output/important_features.png.
"""

from pathlib import Path

import numpy as np
import torch
from photos import cat_beside_coffee, crop, lite0, name, to_input
from skimage import data

from diffgradcam import important_features, layer_input
from diffgradcam.visualize import draw_regions, grid


def log_odds(logits: torch.Tensor, true: int, false: int) -> float:
    return float(logits[0, true] - logits[0, false])


@torch.no_grad()
def main() -> None:
    model, layer = lite0(), layer_input("_avg_pooling")
    cases = [
        ("cat beside coffee", cat_beside_coffee(), 285, 967),
        ("coffee", crop(data.coffee()), 967, 968),
        ("cat", crop(data.chelsea()), 285, 282),
    ]
    pictures, titles = [], []
    for title, photo, true, false in cases:
        images = to_input([photo])
        regions = important_features(model, images, layer, true_class=true, false_class=false)
        before = log_odds(model(images), true, false)
        print(f"{title}: {name(true)} against {name(false)}, log-odds {before:.2f}")
        for region in regions:
            without = images.masked_fill(region.mask, 0)  # 0 is mid-grey for this model
            after = log_odds(model(without), true, false)
            print(
                f"  {region.sign:+d}  {region.share:5.1%} of the divergence, box {region.box}, "
                f"log-odds {after:.2f} without it"
            )
        pictures.append(draw_regions(np.float32(photo) / 255, regions, use_rgb=True))
        titles.append(f"{name(true)} (red)\nagainst {name(false)} (blue)")
    path = Path("output/important_features.png")
    path.parent.mkdir(exist_ok=True)
    grid([pictures], [titles], size=3).savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
