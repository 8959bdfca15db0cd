"""Why this box? A detector with real ImageNet weights explains its boxes on real photographs.

It classifies windows over the features of EfficientNet-Lite0: a small R-CNN with the output format of torchvision's.
Writes output/detection.png. For DETR and similar models, choose a query: output=lambda o: o.logits[:, query].
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from photos import crop, lite0, to_input
from skimage import data
from torch import nn

from diffgradcam import GradCAM
from diffgradcam.targets import detections
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.utils.model_targets import FasterRCNNBoxScoreTarget
from diffgradcam.visualize import grid

NAMES, CELLS, STRIDE = {285: "Egyptian cat", 657: "missile", 967: "espresso"}, 6, 32


class _Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lite0 = lite0()

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        windows = nn.functional.avg_pool2d(self.lite0.extract_features(x), CELLS, 1)
        probabilities = self.lite0._fc(windows.movedim(1, 3)).softmax(3)[..., list(NAMES)]
        found = []
        for image in probabilities:  # the best window of each class
            scores, best = image.flatten(0, 1).max(0)
            corner = torch.stack([best % image.shape[1], best // image.shape[1]], 1)
            boxes = torch.cat([corner, corner + CELLS], 1) * float(STRIDE)
            found.append({"boxes": boxes, "labels": torch.tensor(list(NAMES)), "scores": scores})
        return found


def main() -> None:
    model = _Detector()
    photo = np.concatenate([crop(each, 256, 256) for each in (data.chelsea(), data.rocket(), data.coffee())], 1)
    images = to_input([photo])
    cam = GradCAM(model, "lite0._conv_head", output=detections)
    pictures, titles = [[photo]], [["cat, rocket, coffee"]]
    for box, label, score in zip(*(values.tolist() for values in model(images)[0].values()), strict=True):
        heatmap = cam(images, [FasterRCNNBoxScoreTarget([label], [box])])[0]
        overlay, (x1, y1, x2, y2) = show_cam_on_image(np.float32(photo) / 255, heatmap, use_rgb=True), map(int, box)
        pictures.append([cv2.rectangle(overlay.copy(), (x1, y1), (x2, y2), (255, 255, 255), 3)])
        titles.append([f"why {NAMES[label]}, {score:.2f}?"])
        print(f"{titles[-1][0]} share of the map in its box {heatmap[y1:y2, x1:x2].sum() / heatmap.sum():.2f}")
    Path("output").mkdir(exist_ok=True)
    grid(pictures, titles, size=5).savefig("output/detection.png", dpi=80)


if __name__ == "__main__":
    main()
