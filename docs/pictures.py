"""Make the pictures of these pages: `make examples`, then `python docs/pictures.py` (half a minute on one core).

Some are made here; those of the gallery are what the examples drew, at a size for the web.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent
sys.path.append(str(DOCS.parent / "examples"))

from photos import cat_beside_coffee, crop, lite0, name, to_input  # noqa: E402
from skimage import data  # noqa: E402

from diffgradcam import DiffGradCAM, GradCAM, TrueFalseCAM, layer_input  # noqa: E402
from diffgradcam.sham import border_mask, common_mode_hoax  # noqa: E402
from diffgradcam.visualize import grid, show_cam_on_image, show_divergence_on_image  # noqa: E402

LAYER = layer_input("_avg_pooling")
DRAWN = DOCS.parent / "output"
GALLERY = (
    "gallery",
    "important_features",
    "segmentation",
    "detection",
    "clip",
    "transformers_vision",
    "signals_and_volumes",
)
WIDTH = 1000  # of a picture of the gallery, in pixels
TIGER_CAT, EGYPTIAN_CAT, ESPRESSO = 282, 285, 967


def overlay(cam, photo, index):
    """The photograph with the heat map of a class over it."""
    return show_cam_on_image(photo / 255, cam(to_input([photo]), [index])[0], use_rgb=True)


def save(figure: Figure, title: str) -> None:
    """Save a small file for the repository."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    Image.open(buffer).convert("RGB").save(DOCS / "images" / f"{title}.jpg", quality=85, optimize=True)


def shrink(title: str) -> None:
    """Save what an example drew, at most so wide."""
    picture = Image.open(DRAWN / f"{title}.png").convert("RGB")
    picture.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
    picture.save(DOCS / "images" / "gallery" / f"{title}.jpg", quality=82, optimize=True)


def first_map(model) -> Figure:
    """One picture with two classes, explained in three ways."""
    photo = cat_beside_coffee()
    divergence = TrueFalseCAM(model, LAYER, false_class=ESPRESSO)(to_input([photo]), [EGYPTIAN_CAT])[0]
    pictures = {
        "two classes": photo,
        f"GradCAM: {name(EGYPTIAN_CAT)}": overlay(GradCAM(model, LAYER), photo, EGYPTIAN_CAT),
        f"DiffGradCAM: {name(EGYPTIAN_CAT)}": overlay(DiffGradCAM(model, LAYER), photo, EGYPTIAN_CAT),
        f"red: {name(EGYPTIAN_CAT)}\nblue: {name(ESPRESSO)}": show_divergence_on_image(
            photo / 255, divergence, use_rgb=True
        ),
    }
    return grid([list(pictures.values())], [list(pictures)])


def one_vector(model) -> Figure:
    """GradCAM and DiffGradCAM after the same vector is added to all classes, with growing strength."""
    photos = [cat_beside_coffee(), crop(data.coffee()), crop(data.rocket())]
    images = to_input([view for photo in photos for view in (photo, photo[:, ::-1])])
    rows, titles = [[], []], [[], []]
    for strength in (0, 0.3, 1, 3, 10):
        changed = model
        if strength:
            changed = common_mode_hoax(model, LAYER, images, border_mask((7, 7), cells=28), strength=strength)
        for row, heads, method in zip(rows, titles, (GradCAM, DiffGradCAM), strict=True):
            cam = method(changed, LAYER)
            row.append(overlay(cam, photos[1], ESPRESSO))
            heads.append(f"{method.__name__}\nstrength {strength}, p = {cam.outputs.softmax(1)[0, ESPRESSO]:.4f}")
    return grid(rows, titles)


def baselines(model) -> Figure:
    """One cat, explained against four baselines."""
    photo = crop(data.chelsea())
    pictures = {"a cat": photo, "GradCAM": overlay(GradCAM(model, LAYER), photo, EGYPTIAN_CAT)}
    for baseline in ("logsumexp", "mean", "max", TIGER_CAT):
        title = name(baseline) if isinstance(baseline, int) else baseline
        pictures[f"against: {title}"] = overlay(DiffGradCAM(model, LAYER, baseline=baseline), photo, EGYPTIAN_CAT)
    return grid([list(pictures.values())], [list(pictures)])


def view_page() -> None:
    """The page of the command view. It needs Playwright, and a Chromium on the path."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        photos = [data.chelsea(), cat_beside_coffee(), data.coffee(), data.rocket()]
        for title, photo in zip(("cat", "cat_beside_coffee", "coffee", "rocket"), photos, strict=True):
            Image.fromarray(photo).save(Path(folder, f"{title}.png"))
        command = [sys.executable, "-m", "diffgradcam.cli", "view", folder, "--no-browser"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=DOCS.parent) as server:  # noqa: S603
            address = next(line for line in server.stderr if re.match("http", line)).strip()
            browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 930})
            page.goto(f"{address}?class={EGYPTIAN_CAT}&other={TIGER_CAT}")
            page.locator("#result[aria-busy=false]").wait_for()
            picture = Image.open(io.BytesIO(page.screenshot()))
            browser.close()
            server.terminate()
    picture.convert("RGB").save(DOCS / "images" / "view_page.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    model = lite0()
    for make in (first_map, one_vector, baselines):
        save(make(model), make.__name__)
        print(f"wrote docs/images/{make.__name__}.jpg")
    for title in GALLERY:
        shrink(title)
    shutil.copy(DRAWN / "gallery.gif", DOCS / "images" / "gallery" / "gallery.gif")
    print("wrote docs/images/gallery/")
    view_page()
    print("wrote docs/images/view_page.jpg")
