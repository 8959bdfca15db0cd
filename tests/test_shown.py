"""What results show of themselves: values of text, tables and pixels."""

import base64
import html
import io
import re
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import diffgradcam
from diffgradcam import (
    DiffGradCAM,
    Explanation,
    GradCAM,
    TrueFalseCAM,
    audit,
    benchmark,
    explain_pairs,
    heatmaps,
    important_features,
)
from diffgradcam.losses import cam_entropy
from diffgradcam.visualize import draw_regions, overlay, overlay_signed

from .models import images, pooled

HOSTILE = "<script>alert('&')</script>"
NAMES = ["ant", HOSTILE, "cat", "dog", "elk"]
X = images(3)
PHOTOS = torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(0))


def cam(method=GradCAM, **options):
    return method(pooled(), "relu", class_names=NAMES, **options)


def benchmarked():
    model = pooled(dtype=torch.float32)
    explainers = {
        "Grad|CAM<": lambda model: GradCAM(model, "relu"),
        "Diff": lambda model: DiffGradCAM(model, "relu"),
    }
    return benchmark(model, model, explainers, [X.float()], progress=False)


RESULTS = {
    "explanation": lambda: cam().explain(X, [[1, 2]] * 3),
    "signed": lambda: cam(rectify=False).explain(X, 1),
    "sides": lambda: cam(TrueFalseCAM).compare(X, 1, false_classes=0),
    "sides of several": lambda: cam(TrueFalseCAM).compare(X, 1, false_classes=[[0, 2]] * 3),
    "sides of the mean": lambda: cam(TrueFalseCAM, false_class="mean").compare(X, 1),
    "pairs": lambda: explain_pairs(cam(), X, [0, 1]),
    "regions": lambda: important_features(pooled(), X[0], "relu", true_class=1, false_class=0, class_names=NAMES),
    "audit": lambda: audit(pooled(), "relu", torch.cat([X, -X]), class_names=NAMES),
    "benchmark": benchmarked,
}


def pictures(page: str) -> list[Image.Image]:
    """The pictures in a page."""
    files = re.findall(r'<img[^>]* src="data:image/png;base64,([^"]*)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_shows_itself(name):
    result = RESULTS[name]()
    page, figure = result._repr_html_(), result.plot()
    assert isinstance(figure, Figure)
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert pictures(page)
    png = Image.open(io.BytesIO(result._repr_png_()))
    inches = figure.get_size_inches()
    np.testing.assert_allclose(png.size, 80 * inches, atol=1)
    assert 1 <= len(str(result).splitlines()) <= 5 or name == "audit"
    if name != "benchmark":  # which explains no class of its own
        assert html.escape(HOSTILE, quote=False).replace("'", "&#39;") in page or name == "audit"
        assert HOSTILE in repr(result) + str(result) or name == "audit"
    else:
        assert "Grad|CAM&lt;" in page


@pytest.mark.parametrize("name", ["explanation", "sides", "pairs"])
def test_maps_are_shown_at_one_size_that_keeps_their_shape(name):
    for picture in pictures(RESULTS[name]()._repr_html_()):
        assert picture.size == (107, 128)  # of 6 rows and 5 columns


def test_a_picture_is_the_map_in_colours():
    explanation = Explanation(torch.zeros(1, 2), torch.tensor([0]), torch.ones(1, 4, 4).tril())
    (picture,) = pictures(explanation._repr_html_())
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[-1, 0], [253, 231, 37])  # yellow, the largest value
    np.testing.assert_array_equal(pixels[0, -1], [68, 1, 84])  # violet, the smallest
    signed = Explanation(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([[[-3.0, 0.0, 1.5]]]), signed=True)
    left, middle, right = np.asarray(pictures(signed._repr_html_())[0])[0, [0, 64, -1]].astype(int)
    assert left[2] > left[0] + 50  # blue
    assert middle.min() > 235
    assert right[0] > right[2] + 50  # red, half as far
    assert right.min() > left.min()


def test_a_sheet_shows_the_first_images_and_maps():
    many = cam().explain(images(7), "all")
    assert len(pictures(many._repr_html_())) == 4 * 5
    nine = GradCAM(pooled(classes=9), "relu").explain(images(1), "all")
    assert len(pictures(nine._repr_html_())) == 6


def test_images_of_one_map_stand_in_one_row_and_others_below_each_other():
    one, several = cam().explain(X)._repr_html_(), cam().explain(X, "all")._repr_html_()
    assert (one.count("<tr>"), several.count("<tr>")) == (1, 3)
    assert re.findall(r"<small>(image \d)", one) == ["image 0", "image 1", "image 2"]
    assert re.findall(r"<th>(image \d)</th>", several) == ["image 0", "image 1", "image 2"]
    assert "image 0" not in cam().explain(images(1))._repr_html_()
    many = pictures(cam().explain(images(9))._repr_html_())
    assert len(many) == 6


def test_a_matrix_of_pairs_is_that_of_the_first_image():
    page = explain_pairs(cam(), X, [0, 1, 2])._repr_html_()
    assert len(pictures(page)) == 9
    assert page.count("<tr>") == 3
    many = explain_pairs(GradCAM(pooled(classes=9), "relu"), images(1), "top9")
    assert len(pictures(many._repr_html_())) == 36
    assert pictures(explain_pairs(cam(), images(0), torch.zeros(0, 2).long())._repr_html_()) == []


def test_only_what_is_shown_is_scaled():
    large = Explanation(torch.zeros(64, 1000), torch.arange(1000).expand(64, -1), torch.rand(64, 1000, 2, 2))
    assert len(pictures(large._repr_html_())) == 24
    assert str(large).startswith("64 images, 1000 classes, 1000 maps each, maps of 2 x 2\n  image 0: class 0, logit 0")
    assert str(large).endswith("... and 61 more images")


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_have_pictures_too(dims):
    explanation = GradCAM(pooled(dims=dims), "relu").explain(images(2, dims))
    found = pictures(explanation._repr_html_())
    assert len(found) == 2
    assert max(found[0].size) == 128
    size = " x ".join(map(str, explanation.maps.shape[1:]))
    assert f"maps of {size}" in str(explanation)


def test_of_a_volume_the_slice_with_the_largest_magnitude_is_shown():
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 1] = torch.eye(4)
    volume = Explanation(torch.zeros(1, 2), torch.tensor([0]), maps)
    plane = Explanation(torch.zeros(1, 2), torch.tensor([0]), maps[:, 1])
    assert volume.plot().axes[0].get_images()[0].get_array().tolist() == (
        plane.plot().axes[0].get_images()[0].get_array().tolist()
    )


def test_no_images_are_shown_as_none():
    nothing = cam().explain(images(0))
    assert nothing._repr_png_() is None
    assert pictures(nothing._repr_html_()) == []
    assert str(nothing).startswith("0 images, 5 classes")


# What is printed


def test_an_explanation_says_what_was_decided():
    logits = torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    explanation = Explanation(logits, torch.tensor([1, 0]), torch.zeros(2, 7, 5), class_names={1: "bee"})
    assert str(explanation).splitlines() == [
        "2 images, 2 classes, maps of 7 x 5",
        "  image 0: bee (1), logit 2, probability 88.1%",
        "  image 1: class 0, logit 3, probability 50.0%",
    ]
    assert repr(explanation) == "Explanation(2 images, 2 classes, maps (2, 7, 5): class 0, bee (1))"


def test_the_lines_that_are_too_many_are_counted():
    lines = str(cam().explain(images(9))).splitlines()
    assert len(lines) == 5
    assert lines[-1] == "  ... and 6 more images"
    assert "... and" not in str(cam().explain(images(4)))


def test_both_sides_say_how_far_they_are_apart():
    both = TrueFalseCAM(pooled(), "relu", class_names=["ant", *NAMES[1:]]).compare(X, 2, false_classes=0)
    margin = float(both.logits[0, 2] - both.logits[0, 0])
    assert str(both).splitlines()[:2] == [
        "True against false: 3 images, 5 classes, maps of 6 x 5",
        f"  image 0: cat (2), logit {margin:+.3g} over ant (0)",
    ]
    mean = TrueFalseCAM(pooled(), "relu", false_class="mean").compare(X, 2)
    others = mean.logits[0, [0, 1, 3, 4]].mean()
    assert f"class 2, logit {float(mean.logits[0, 2] - others):+.3g} over the mean of the others" in str(mean)


def test_regions_say_what_they_speak_for():
    regions = important_features(pooled(), X[0], "relu", true_class=2, false_class=0, class_names=NAMES)
    first = regions[0]
    side = "cat (2)" if first.sign > 0 else "ant (0)"
    top, left, bottom, right = first.box
    assert (regions.true_class, regions.false_class, regions.size) == (2, 0, (6, 5))
    assert str(regions).splitlines()[:2] == [
        f"{len(regions)} region{'s' * (len(regions) != 1)} of 6 x 5 pixels: cat (2) against ant (0)",
        f"  {first.share:.1%} for {side}, rows {top} to {bottom - 1}, columns {left} to {right - 1}",
    ]
    assert "tensor" not in repr(regions) + repr(first)
    mean = important_features(pooled(), X[0], "relu", true_class=2, false_class="mean")
    assert mean.false_class is None
    assert "class 2 against the others" in str(mean)


def test_a_benchmark_says_what_became_of_each_explainer():
    lines = str(benchmarked()).splitlines()
    assert lines[0] == "3 images: 100.0% decided alike, KL 0 nats"
    assert lines[1] == "  Grad|CAM<: r with the clean map 1 [1, 1]"


# Tables


def test_a_row_of_the_data_frame_for_each_map():
    pytest.importorskip("pandas")
    explanation = cam().explain(X, "top2")
    frame = explanation.to_pandas()
    assert list(frame) == ["image", "class", "name", "logit", "probability", "entropy"]
    assert frame["image"].tolist() == [0, 0, 1, 1, 2, 2]
    assert frame["class"].tolist() == explanation.classes.flatten().tolist()
    assert frame["name"].tolist() == [NAMES[index] for index in explanation.classes.flatten().tolist()]
    chosen = explanation.logits.gather(1, explanation.classes).flatten()
    np.testing.assert_allclose(frame["logit"], chosen, rtol=1e-6)
    shares = explanation.logits.softmax(1).gather(1, explanation.classes).flatten()
    np.testing.assert_allclose(frame["probability"], shares, rtol=1e-6)
    np.testing.assert_allclose(frame["entropy"], cam_entropy(explanation.maps.flatten(0, 1)), rtol=1e-6)


def test_a_data_frame_of_pairs_leaves_out_the_diagonal():
    pytest.importorskip("pandas")
    pairs = explain_pairs(cam(), X, [0, 2])
    frame = pairs.to_pandas()
    assert frame[["class", "name", "other", "other_name"]].values.tolist()[:2] == [
        [0, "ant", 2, "cat"],
        [2, "cat", 0, "ant"],
    ]
    np.testing.assert_allclose(frame["logit_difference"][0], float(pairs.logits[0, 0] - pairs.logits[0, 2]))
    np.testing.assert_allclose(frame["entropy"][1], float(cam_entropy(pairs.maps[0, 1, :1])[0]))


def test_what_is_no_class_has_neither_logit_nor_name():
    pytest.importorskip("pandas")

    def target(output):
        return output[2] - output[1]

    frame = cam().explain(X, [target] * 3).to_pandas()
    assert frame["class"].tolist() == [-1] * 3
    assert frame["name"].isna().all()
    assert frame["logit"].isna().all()
    one = GradCAM(pooled(classes=1), "relu").explain(X).to_pandas()
    assert one["probability"].isna().all()  # of one output, softmax is always 1
    assert one["logit"].notna().all()


def test_pandas_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas\(\) needs pandas, which is not installed; pip install pandas"):
        cam().explain(X).to_pandas()


# Heat maps and overlays


@pytest.mark.parametrize("rectify", [True, False])
def test_heatmaps_are_those_of_the_call(rectify):
    method = cam(rectify=rectify)
    explanation = method.explain(X, 1)
    np.testing.assert_allclose(explanation.heatmaps(X.shape[2:]), method(X, [1] * 3), atol=1e-6)
    scale = heatmaps.minmax if rectify else heatmaps.scale_signed
    torch.testing.assert_close(explanation.heatmaps(), scale(explanation.maps))
    several = method.explain(X, [[1, 2]] * 3)
    assert several.heatmaps((9, 8)).shape == (3, 2, 9, 8)
    torch.testing.assert_close(several.heatmaps()[:, 0], explanation.heatmaps())


def test_heatmaps_of_pairs_are_a_matrix():
    pairs = explain_pairs(cam(), X, [0, 1])
    assert pairs.heatmaps((9, 8)).shape == (3, 2, 2, 9, 8)
    torch.testing.assert_close(pairs.heatmaps()[:, 0, 1], heatmaps.minmax(pairs.maps[:, 0, 1]))


@pytest.mark.parametrize("signed", [False, True])
def test_overlays_are_those_of_visualize(signed):
    explanation = cam(rectify=not signed).explain(X, [[1, 2]] * 3)
    draw = overlay_signed if signed else overlay
    heat = explanation.heatmaps((24, 20))
    for given in (PHOTOS, PHOTOS.numpy(), list(PHOTOS), [np.asarray(photo.permute(1, 2, 0)) for photo in PHOTOS]):
        drawn = explanation.overlay(given, alpha=0.3)
        assert (drawn.shape, drawn.dtype) == ((3, 2, 24, 20, 3), np.uint8)
        np.testing.assert_array_equal(drawn[2, 1], draw(PHOTOS[2], heat[2, 1].float(), alpha=0.3))
    one = cam(rectify=not signed).explain(X, 1)
    assert one.overlay(PHOTOS, colormap="gray").shape == (3, 24, 20, 3)


def test_regions_are_drawn_on_the_image():
    regions = important_features(pooled(), X[0], "relu", true_class=1)
    photo = torch.rand(3, 6, 5)
    drawn = regions.plot(photo).axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(drawn, draw_regions(photo, regions, use_rgb=True) / 255, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) and \(H, W\)"):
        regions.plot(torch.rand(3, 8, 8))


def test_a_plot_over_images():
    figure = cam().explain(X, 1).plot(PHOTOS)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["<script>alert('&')</script> (1)"] * 3
    assert figure.axes[0].get_images()[0].get_array().shape == (24, 20, 3)


@pytest.mark.parametrize("ask", ["overlay", "plot"])
def test_images_that_do_not_fit_are_refused(ask):
    ask = getattr(cam().explain(X), ask)
    with pytest.raises(ValueError, match="got 2 images for the maps of 3; expected one image for each"):
        ask(PHOTOS[:2])
    with pytest.raises(ValueError, match=r"the image has values .*; expected \[0, 1\]; .* undo a normalisation"):
        ask(PHOTOS - 1)
    with pytest.raises(TypeError, match=r"images is str; expected the images of the batch as people see them"):
        ask("photos/")


def test_overlays_need_images_of_one_size_and_maps_of_two_dimensions():
    with pytest.raises(
        ValueError, match=r"the images have sizes \[\(6, 5\), \(24, 20\)\] .*; resize them, or lay each"
    ):
        cam().explain(X).overlay([*PHOTOS[:2], torch.rand(3, 6, 5)])
    with pytest.raises(ValueError, match="cannot resize maps with spatial size"):
        GradCAM(pooled(dims=1), "relu").explain(images(3, 1)).overlay(PHOTOS)


# The tuple is a tuple


def test_an_explanation_is_still_a_tuple_of_three():
    explanation = cam().explain(X)
    logits, classes, maps = explanation
    assert (explanation[0] is logits, explanation.classes is classes, explanation[2] is maps) == (True, True, True)
    assert isinstance(explanation, tuple)
    assert explanation._fields == ("logits", "classes", "maps")
    assert Explanation(*explanation).class_names == {}
    assert isinstance(explanation.class_names, Mapping)
    moved = torch.utils._pytree.tree_map(lambda tensor: tensor.float(), tuple(explanation))
    assert moved[0].dtype == torch.float32


def test_nothing_that_draws_is_imported_before_a_result_is_shown():
    code = (
        "import sys, torch, diffgradcam\n"
        "drawing = ('matplotlib', 'diffgradcam.visualize', 'jinja2', 'pandas')\n"
        "e = diffgradcam.Explanation(torch.zeros(1, 2), torch.zeros(1).long(), torch.rand(1, 4, 4))\n"
        "str(e), repr(e), e.heatmaps((8, 8))\n"
        "assert not [name for name in drawing if name in sys.modules]\n"
        "assert 'img' in e._repr_html_()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=diffgradcam.__path__[0] + "/..")
