"""Why are these pixels a cat? A real ImageNet model segments real photographs, and explains the pixels of a mask.

EfficientNet-Lite0 with its linear layer applied at every position is a fully convolutional segmenter. Writes
output/segmentation.png. For models of transformers: output=lambda o: interpolate(o.logits, size, mode="bilinear").
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from photos import crop, lite0, to_input
from skimage import data
from torch import nn

from diffgradcam import GradCAM
from diffgradcam.scores import logit, logit_difference
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.utils.model_targets import SemanticSegmentationTarget
from diffgradcam.visualize import grid

CLASSES, SIDE = {"cat": 285, "coffee": 967, "rocket": 657}, 448


class _Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lite0 = lite0()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.lite0._fc(self.lite0.extract_features(x).movedim(1, 3))[..., list(CLASSES.values())].movedim(3, 1)
        return {"out": nn.functional.interpolate(scores, x.shape[2:], mode="bilinear")}  # as in torchvision


def main() -> None:
    model = _Segmenter()
    halves = [crop(photo, width=SIDE // 2, height=SIDE) for photo in (data.chelsea(), data.coffee())]
    photo = np.concatenate(halves, 1)
    images = to_input([photo])
    with torch.no_grad():
        scores = model(images)["out"][0]
    cam = GradCAM(model, "lite0._conv_head", output=lambda o: o["out"])  # before the last ReLU6
    pictures, titles = [photo], ["cat beside coffee"]
    for name, category, other in (("cat", 0, 1), ("coffee", 1, 0)):
        mask = scores.argmax(0) == category
        pictures.append(show_cam_on_image(np.float32(photo) / 255, np.float32(mask), use_rgb=True))
        titles.append(f"pixels of {name}")
        for title, score in ((name, logit), (f"{name}, not the other", partial(logit_difference, baseline=other))):
            heatmap = cam(images, [SemanticSegmentationTarget(category, mask, score)])[0]
            pictures.append(show_cam_on_image(np.float32(photo) / 255, heatmap, use_rgb=True))
            titles.append(f"why {title}?")
            left, right = heatmap[:, : SIDE // 2].mean(), heatmap[:, SIDE // 2 :].mean()
            print(f"why {title}? mean of the map in the left half {left:.3f}, in the right half {right:.3f}")
    Path("output").mkdir(exist_ok=True)
    grid([pictures], [titles]).savefig("output/segmentation.png", dpi=80)


if __name__ == "__main__":
    main()
