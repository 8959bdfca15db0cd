"""A real ImageNet model on real photographs: what it sees, why, what speaks for one class, and what a lie looks like.

Prints the top classes and the audits, and writes output/quickstart.png. Run it with ``make demo``.
"""

from pathlib import Path

import numpy as np
from photos import cat_beside_coffee, crop, lite0, name, to_input
from skimage import data
from tqdm import tqdm

from diffgradcam import DiffGradCAM, GradCAM, TrueFalseCAM, audit, layer_input
from diffgradcam.sham import border_mask, common_mode_hoax
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.visualize import grid, show_divergence_on_image

CAT, CUP = 285, 967
LAYER = layer_input("_avg_pooling")


def overlay(method, model, photo, index):
    heatmap = method(model, LAYER)(to_input([photo]), [index])[0]
    return show_cam_on_image(np.float32(photo) / 255, heatmap, use_rgb=True)


def main() -> None:
    clean = lite0()
    photos = {"cat beside coffee": cat_beside_coffee(), "coffee": crop(data.coffee()), "rocket": crop(data.rocket())}
    pictures, titles = [], []
    for title, photo in tqdm(photos.items(), desc="explaining", unit="photo"):
        logits, _, _ = GradCAM(clean, LAYER).explain(to_input([photo]))
        likeliest = list(zip(*(top.tolist() for top in logits.softmax(1)[0].topk(3)), strict=True))
        tqdm.write(title + ": " + ", ".join(f"{name(index)} {p:.2f}" for p, index in likeliest))
        first, second = (CAT, CUP) if title == "cat beside coffee" else (likeliest[0][1], likeliest[1][1])
        shown = [(index, method) for index in (first, second) for method in (GradCAM, DiffGradCAM)]
        divergence = TrueFalseCAM(clean, LAYER, false_class=second)(to_input([photo]), [first])[0]
        signed = show_divergence_on_image(np.float32(photo) / 255, divergence, use_rgb=True)
        pictures.append([photo, *(overlay(method, clean, photo, index) for index, method in shown), signed])
        names = [f"{method.__name__}\n{name(index)}" for index, method in shown]
        titles.append([title, *names, f"red: {name(first)}\nblue: {name(second)}"])

    # Add one vector to the weights of every class: no probability moves, GradCAM goes to the border.
    images = to_input([view for photo in photos.values() for view in (photo, photo[:, ::-1])])
    fooled = common_mode_hoax(clean, LAYER, images, border_mask((7, 7), cells=28))
    models, coffee = {"clean": clean, "after the hoax": fooled}, photos["coffee"]
    shown = [(method, when) for method in (GradCAM, DiffGradCAM) for when in models]
    pictures.append([coffee, *(overlay(method, models[when], coffee, CUP) for method, when in shown)])
    audits = {when: audit(model, LAYER, images) for when, model in models.items()}
    first, second = (f"{float(report.logits.softmax(1)[2, CUP]):.4f}" for report in audits.values())
    titles.append([f"{name(CUP)}: {first},\nafter the hoax {second}", *(f"{m.__name__}\n{when}" for m, when in shown)])
    figure, verdict = grid(pictures, titles), "audit: share of GradCAM\nthat softmax cannot see"
    for when, report in audits.items():
        print(f"\n{when}: {report}")
        share = float(report.common_mode_share.median())
        verdict += f"\n\n{when}: {share:.2g}\n{'FOOLED' if report.fooled else 'nothing found'}"
    figure.axes[-1].text(0.02, 0.5, verdict, va="center", fontsize=10)
    Path("output").mkdir(exist_ok=True)
    figure.savefig("output/quickstart.png", dpi=110)
    print("wrote output/quickstart.png")


if __name__ == "__main__":
    main()
