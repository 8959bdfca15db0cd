"""A real ImageNet model on real photographs: what it sees and why, the evidence between two classes, a fooled model.

Prints the top classes and the audits, and writes output/quickstart.png. Run it with ``make demo``.
"""

from pathlib import Path

import numpy as np
from photos import cat_beside_coffee, crop, lite0, name, to_input
from skimage import data

from diffgradcam import DiffGradCAM, GradCAM, TrueFalseCAM, audit, layer_input
from diffgradcam.sham import border_mask, common_mode_hoax
from diffgradcam.visualize import grid, show_cam_on_image, show_divergence_on_image

CAT, CUP, LAYER = 285, 967, layer_input("_avg_pooling")


def overlay(method, model, photo, index):
    return show_cam_on_image(photo / 255, method(model, LAYER)(to_input([photo]), [index])[0], use_rgb=True)


def main() -> None:
    clean = lite0()
    photos = {"cat beside coffee": cat_beside_coffee(), "coffee": crop(data.coffee()), "rocket": crop(data.rocket())}
    pictures, titles = [], []
    for title, photo in photos.items():
        logits, _, _ = GradCAM(clean, LAYER).explain(to_input([photo]))
        likeliest = list(zip(*(top.tolist() for top in logits.softmax(1)[0].topk(3)), strict=True))
        print(title + ": " + ", ".join(f"{name(index)} {p:.2f}" for p, index in likeliest))
        first, second = (CAT, CUP) if title == "cat beside coffee" else (likeliest[0][1], likeliest[1][1])
        shown = [(method, index) for index in (first, second) for method in (GradCAM, DiffGradCAM)]
        divergence = TrueFalseCAM(clean, LAYER, false_class=second)(to_input([photo]), [first])[0]
        signed = show_divergence_on_image(photo / 255, divergence, use_rgb=True)
        pictures.append([photo, *(overlay(method, clean, photo, index) for method, index in shown), signed])
        names = [title, *(f"{method.__name__}\n{name(index)}" for method, index in shown)]
        titles.append([*names, f"red: {name(first)}\nblue: {name(second)}"])

    # Add one vector to the weights of every class: no probability changes, but GradCAM shows the border.
    views = [view for photo in photos.values() for view in (photo, photo[:, ::-1], photo[::-1])]
    images, photo = to_input(views), photos["coffee"]
    fooled = common_mode_hoax(clean, LAYER, images, border_mask((7, 7), cells=28))
    reports = {"clean": audit(clean, LAYER, images), "after the hoax": audit(fooled, LAYER, images)}
    shown = [(m, *which) for m in (GradCAM, DiffGradCAM) for which in zip(reports, (clean, fooled), strict=True)]
    pictures.append([photo, *(overlay(m, model, photo, CUP) for m, _, model in shown), np.full_like(photo, 255)])
    first, second = (f"{float(report.logits.softmax(1)[3, CUP]):.4f}" for report in reports.values())
    names = [f"{m.__name__}\n{when}" for m, when, _ in shown] + ["audit: share of GradCAM\nthat softmax cannot see"]
    titles.append([f"{name(CUP)}: {first},\nafter the hoax {second}", *names])
    figure, verdicts = grid(pictures, titles), []
    for when, report in reports.items():
        print(f"\n{when}: {report}")
        verdicts.append(f"{when}: {float(report.common_mode_share.median()):.2g}\n{report.verdict}")
    figure.axes[-1].text(112, 112, "\n\n".join(verdicts), ha="center", va="center", fontsize=11)
    Path("output").mkdir(exist_ok=True)
    figure.savefig("output/quickstart.png", dpi=110)
    print("\nwrote output/quickstart.png")


if __name__ == "__main__":
    main()
