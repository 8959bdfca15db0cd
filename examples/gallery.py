"""Every style of picture, for one photograph and a real model: output/gallery.png and output/gallery.gif."""

from pathlib import Path

import cv2
from photos import cat_beside_coffee, lite0, name, to_input

from diffgradcam import DiffGradCAM, GradCAM, TrueFalseCAM, layer_input
from diffgradcam import visualize as show
from diffgradcam.analysis.guided import guided_gradcam, guided_gradients
from diffgradcam.heatmaps import minmax, resize, scale_signed

CAT, CUP = 285, 967


def main() -> None:
    model, layer, photo = lite0(), layer_input("_avg_pooling"), cat_beside_coffee()
    images = to_input([photo])
    heat = minmax(GradCAM(model, layer).explain(images, CAT).maps)[0]
    signed = scale_signed(TrueFalseCAM(model, layer, false_class=CUP).explain(images, CAT).maps)[0]
    large = resize(heat[None], (224, 224))[0]
    edges = show.gradient_map(guided_gradients(model, images, CAT)[0])
    guided = guided_gradcam(DiffGradCAM(model, layer), images, CAT)[0]
    pictures = {
        "overlay": (show.overlay(photo, heat), show.Bar("viridis", label=name(CAT))),
        "overlay_signed": (
            show.overlay_signed(photo, signed),
            show.Bar("RdBu_r", -1, 1, f"{name(CUP)} to {name(CAT)}"),
        ),
        "overlay, alpha=heat": (show.overlay(photo, heat, "magma", alpha=heat), show.Bar("magma")),
        "show_cam_on_image": (show.show_cam_on_image(photo, large, use_rgb=True), show.Bar(cv2.COLORMAP_JET)),
        "contours": (show.contours(photo, heat), show.Bar("viridis")),
        "masked": (show.masked(photo, heat), None),
        "masked, hottest quarter": (show.masked(photo, heat, 0.75, quantile=True, rest="grey"), None),
        "guided gradients": (show.overlay(photo, edges, "inferno", alpha=0.8), show.Bar("inferno")),
        "guided DiffGradCAM": (show.overlay(photo, show.gradient_map(guided), "inferno", 0.8), show.Bar("inferno")),
        "deprocess_image": (show.deprocess_image(guided), None),
    }
    titles, (rows, bars) = list(pictures), zip(*pictures.values(), strict=True)
    Path("output").mkdir(exist_ok=True)
    figure = show.grid([rows[:5], rows[5:]], [titles[:5], titles[5:]], bars=[bars[:5], bars[5:]])
    figure.savefig("output/gallery.png", dpi=110)

    classes = [281, 282, CAT, CUP, 968]
    maps = minmax(DiffGradCAM(model, layer).explain(images, [classes]).maps[0])
    show.animate([show.overlay(photo, each) for each in maps], list(map(name, classes)), "output/gallery.gif")
    print("wrote output/gallery.png and output/gallery.gif")


if __name__ == "__main__":
    main()
