"""Explain a data set with Ray Data: the CAM is a callable class over batches, and the maps are a column.

Uses real photographs and a real model; writes output/ray (Parquet). Needs ``pip install "ray[data]"``.
"""

import sys

import torch
from photos import crop, lite0
from skimage import data

from diffgradcam import DiffGradCAM, layer_input

try:
    import ray
except ImportError:
    print("this example needs Ray Data: pip install '.[ray]'")
    sys.exit()


class Explain:
    """A CAM that Ray makes once in each of its processes."""

    def __init__(self, model, layer):
        self.cam = DiffGradCAM(model.eval(), layer)

    def __call__(self, batch):
        """From a batch with an array "image" (B, H, W, 3), uint8, to columns: class, probability and map."""
        images = torch.tensor(batch["image"]).permute(0, 3, 1, 2).float().sub(127).div(128)  # as the model expects them
        logits, classes, maps = self.cam.explain(images)
        probabilities = logits.softmax(1).gather(1, classes[:, None])[:, 0]
        return {
            "name": batch["name"],
            "class": classes.numpy(),
            "probability": probabilities.numpy(),
            "map": maps.numpy(),
        }


def main():
    names = ["chelsea", "coffee", "rocket", "astronaut"]
    photos = ray.data.from_items([{"name": name, "image": crop(getattr(data, name)())} for name in names])
    arguments = (lite0(), layer_input("_avg_pooling"))
    workers = ray.data.ActorPoolStrategy(size=1)  # as many as there are GPUs, say
    explained = photos.map_batches(Explain, fn_constructor_args=arguments, batch_size=2, compute=workers).materialize()
    explained.write_parquet("output/ray")
    for row in sorted(explained.take_all(), key=lambda row: row["name"]):
        print(f"{row['name']}: class {row['class']}, {row['probability']:.0%}, map {row['map'].shape}")
    return explained


if __name__ == "__main__":
    main()
