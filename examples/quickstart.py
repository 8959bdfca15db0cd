"""A real ImageNet model on real photographs: what it sees, why, and what speaks for one class rather than another.

Prints the top classes and writes output/quickstart.png. Run it with ``make demo``.
"""

from pathlib import Path

import numpy as np
from photos import cat_beside_coffee, crop, lite0, name, to_input
from skimage import data
from tqdm import tqdm

from diffgradcam import DiffGradCAM, GradCAM, TrueFalseCAM, layer_input
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.visualize import grid, show_divergence_on_image

CAT, CUP = 285, 967


def main() -> None:
    model = lite0()
    layer = layer_input("_avg_pooling")
    photos = {"cat beside coffee": cat_beside_coffee(), "coffee": crop(data.coffee()), "rocket": crop(data.rocket())}
    pictures, titles = [], []
    for title, photo in tqdm(photos.items(), desc="explaining", unit="photo"):
        image, images = np.float32(photo) / 255, to_input([photo])
        logits, _, _ = GradCAM(model, layer).explain(images)
        probabilities, top = logits.softmax(1)[0].topk(3)
        tqdm.write(
            title + ": " + ", ".join(f"{name(int(c))} {float(p):.2f}" for p, c in zip(probabilities, top, strict=True))
        )

        first, second = (CAT, CUP) if title == "cat beside coffee" else (int(top[0]), int(top[1]))
        row, names = [photo], [title]
        for index in (first, second):
            for method in (GradCAM, DiffGradCAM):
                heatmap = method(model, layer)(images, [index])[0]
                row.append(show_cam_on_image(image, heatmap, use_rgb=True))
                names.append(f"{method.__name__}\n{name(index)}")
        divergence = TrueFalseCAM(model, layer, false_class=second)(images, [first])[0]
        pictures.append([*row, show_divergence_on_image(image, divergence, use_rgb=True)])
        titles.append([*names, f"red: {name(first)}\nblue: {name(second)}"])

    path = Path("output/quickstart.png")
    path.parent.mkdir(exist_ok=True)
    grid(pictures, titles).savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
