"""Pixels: by hand, by formula, and against the pictures in tests/references, each of which a person has looked at.

``python -m tests.test_visualize`` writes the references anew; look at them before you keep them.
"""

import io
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from diffgradcam.analysis import Region
from diffgradcam.utils import image as drop_in
from diffgradcam.visualize import (
    Bar,
    animate,
    as_image,
    contours,
    deprocess_image,
    draw_regions,
    gradient_map,
    grid,
    masked,
    overlay,
    overlay_signed,
    preprocess_image,
    show_cam_on_image,
    show_divergence_on_image,
)

REFERENCES = Path(__file__).parent / "references"
IMAGE = np.full((4, 6, 3), 0.5, dtype=np.float32)
ZEROS = np.zeros((4, 6))


def photo() -> np.ndarray:
    """A colourful picture, (48, 64, 3), float in [0, 1]: stripes, a disc, a ramp."""
    y, x = np.mgrid[:48, :64]
    disc = np.hypot(y - 24, x - 40) < 14
    return np.stack([x / 63, np.where(disc, 0.9, 0.3), ((x // 8 + y // 8) % 2) * 0.6 + 0.2], 2)


def heatmap() -> np.ndarray:
    """Coarse, (6, 8), in [0, 1]: a peak at the right, a lower one at the left."""
    y, x = np.mgrid[:6, :8]
    peaks = np.exp(-((y - 2.5) ** 2 + (x - 5) ** 2) / 3) + 0.5 * np.exp(-((y - 4) ** 2 + (x - 1) ** 2) / 2)
    return peaks / peaks.max()


def signed() -> np.ndarray:
    return np.where(np.arange(8) < 4, -1, 1) * heatmap()


def gradients() -> np.ndarray:
    """(3, 48, 64), signed: edges of the photo."""
    return np.gradient(photo(), axis=1).transpose(2, 0, 1)


PICTURES = {
    "overlay": lambda: overlay(photo(), heatmap()),
    "overlay_opencv": lambda: overlay(photo(), heatmap(), cv2.COLORMAP_TURBO),
    "overlay_faded": lambda: overlay(photo(), heatmap(), "magma", alpha=heatmap()),
    "overlay_signed": lambda: overlay_signed(photo(), signed()),
    "contours": lambda: contours(photo(), heatmap()),
    "contours_quantile": lambda: contours(photo(), heatmap(), [0.9], quantiles=True, thickness=1),
    "masked_dark": lambda: masked(photo(), heatmap()),
    "masked_grey": lambda: masked(photo(), heatmap(), 0.75, quantile=True, rest="grey"),
    "guided": lambda: overlay(photo(), gradient_map(gradients()), "inferno", alpha=0.8),
    "deprocess_image": lambda: deprocess_image(gradients().transpose(1, 2, 0)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_that_were_looked_at(name: str) -> None:
    path = REFERENCES / f"{name}.png"
    assert path.stat().st_size <= 20_000
    wanted = np.asarray(Image.open(path), dtype=int)
    picture = PICTURES[name]()
    assert (picture.dtype, picture.shape) == (np.uint8, wanted.shape)
    assert np.abs(picture - wanted).max() <= 2


# Images and maps in any form


@pytest.mark.parametrize("shape", ["(H, W, 3)", "(3, H, W)"])
@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_one_image_in_any_form_gives_one_picture(shape: str, kind: str, dtype: str) -> None:
    pixels = np.round(255 * photo()).astype(np.uint8)
    image = pixels if dtype == "uint8" else (pixels / 255).astype(dtype)
    image = image if shape == "(H, W, 3)" else image.transpose(2, 0, 1)
    given_image = torch.from_numpy(image.copy()) if kind == "tensor" else image
    np.testing.assert_allclose(as_image(given_image), pixels / 255, atol=1e-6)
    np.testing.assert_array_equal(overlay(given_image, heatmap()), overlay(Image.fromarray(pixels), heatmap()))
    np.testing.assert_array_equal(contours(given_image, heatmap()), contours(Image.fromarray(pixels), heatmap()))
    mask = torch.from_numpy(cv2.resize(heatmap(), (64, 48)) > 0.5)
    region = Region(share=1.0, sign=1, box=(9, 9, 30, 40), centroid=(20.0, 20.0), mask=mask)
    drawn = [draw_regions(each, [region], use_rgb=True) for each in (given_image, Image.fromarray(pixels))]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("values", [ZEROS.astype(np.uint8), ZEROS[None], ZEROS[..., None], torch.zeros(1, 4, 6)])
def test_grey_images_are_grey_in_all_channels(values: object) -> None:
    ramp = np.arange(24).reshape(4, 6).astype(np.uint8)
    image = torch.from_numpy(ramp)[None] if isinstance(values, torch.Tensor) else ramp.reshape(values.shape)
    np.testing.assert_allclose(as_image(image), np.repeat(ramp[..., None], 3, 2) / 255, atol=1e-7)
    np.testing.assert_allclose(as_image(Image.fromarray(ramp)), as_image(image))


def test_where_both_ends_could_be_channels_arrays_end_with_them_and_tensors_start() -> None:
    pixels = np.random.default_rng(0).random((3, 5, 3), dtype=np.float32)
    np.testing.assert_array_equal(as_image(pixels), pixels)
    np.testing.assert_array_equal(as_image(torch.from_numpy(pixels)), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_precision_and_size_that_carry_a_graph(dtype: torch.dtype) -> None:
    plain = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    given_map = plain.to(dtype).requires_grad_()
    plain = plain.double() if dtype == torch.float64 else plain
    np.testing.assert_array_equal(overlay(photo(), given_map), overlay(photo(), plain))
    whole = torch.nn.functional.interpolate(plain[None, None], (48, 64), mode="bilinear")[0, 0]
    np.testing.assert_array_equal(overlay(photo(), plain.numpy()), overlay(photo(), whole))


def test_masks_of_bool_are_maps() -> None:
    mask = np.arange(24).reshape(4, 6) > 11
    np.testing.assert_array_equal(overlay(IMAGE, mask, "gray", alpha=1.0)[..., 0], np.where(mask, 255, 0))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("photo.png", TypeError, "the image is str; expected a NumPy array or a tensor"),
        (ZEROS.astype(np.int64), TypeError, "the image is int64; expected uint8, or float"),
        (torch.zeros(1, 3, 4, 6), ValueError, r"shape \(1, 3, 4, 6\); .*it is a batch, so take images\[0\]"),
        (np.zeros((4, 6, 4)), ValueError, r"shape \(4, 6, 4\); .*transparency, so take image\[..., :3\]"),
        (np.zeros((4, 6, 5)), ValueError, r"shape \(4, 6, 5\); expected \(H, W, 3\) or \(3, H, W\)$"),
        (np.zeros((0, 6, 3)), ValueError, r"shape \(0, 6, 3\)"),
        (IMAGE - 1, ValueError, r"image has values from -0.5 to -0.5; expected \[0, 1\]; .*undo a normalisation"),
        (IMAGE * np.nan, ValueError, "image has values from nothing finite and NaN or infinity"),
        (Image.new("I", (6, 4)), ValueError, r"PIL image of mode 'I'; expected one of 1, L, P, RGB; convert it"),
        (Image.new("RGBA", (6, 4)), ValueError, r"mode 'RGBA'; .*\.convert\('RGB'\)"),
    ],
)
@pytest.mark.parametrize("show", [overlay, overlay_signed, contours, masked])
def test_what_is_no_image_is_refused(show: object, image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        show(image, ZEROS)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.full((2, 2), 1.01), ValueError, r"map has values from 1.01 to 1.01; expected \[-?\d, 1\]; scale it"),
        (np.full((2, 2), -1.01), ValueError, "map has values from -1.01 to -1.01"),
        (np.array([[0, 255]], np.uint8), ValueError, "map has values from 0 to 255; .*scale it"),
        (np.array([[0, np.nan]]), ValueError, "map has values from 0 to 0 and NaN or infinity"),
        (torch.zeros(1, 2, 2), ValueError, r"map of shape \(1, 2, 2\); .*one map \(h, w\), such as maps\[0\]"),
        (np.zeros((0, 2)), ValueError, r"map of shape \(0, 2\)"),
        (np.zeros((2, 2), complex), TypeError, "the map is complex128; expected real numbers"),
        ([[0.0]], TypeError, "the map is list; expected a NumPy array or a tensor"),
    ],
)
@pytest.mark.parametrize("show", [overlay, overlay_signed, contours, masked])
def test_what_is_no_map_is_refused(show: object, values: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        show(IMAGE, values)  # type: ignore[operator]


# Overlays


def test_overlay_by_hand() -> None:
    image = np.zeros((1, 3, 3), np.uint8)
    image[0] = [[0, 0, 0], [200, 100, 50], [255, 255, 255]]
    picture = overlay(image, np.array([[0.0, 0.0, 1.0]]), "viridis", alpha=0.25)
    # viridis starts at (68, 1, 84) and ends at (253, 231, 37) of 255.
    wanted = [[17, 0.25, 21], [150 + 17, 75 + 0.25, 37.5 + 21], [191.25 + 63.25, 191.25 + 57.75, 191.25 + 9.25]]
    np.testing.assert_allclose(picture[0], wanted, atol=0.51)


def test_alpha_0_is_the_image_and_alpha_1_the_colours() -> None:
    pixels = np.round(255 * photo()).astype(np.uint8)
    np.testing.assert_array_equal(overlay(pixels, heatmap(), alpha=0), pixels)
    np.testing.assert_array_equal(overlay(pixels, heatmap(), alpha=1), overlay(1 - photo(), heatmap(), alpha=1))


def test_a_map_of_alphas_leaves_the_image_where_it_is_0() -> None:
    shares = np.array([[0.0, 0.5, 1.0]])
    picture = overlay(np.full((1, 3, 3), 0.2), np.ones((1, 3)), "gray", alpha=torch.from_numpy(shares))
    np.testing.assert_array_equal(picture[0, :, 0], [51, 153, 255])


@given(
    image=arrays.arrays(np.float32, (3, 4, 3), elements=st.floats(0, 1, width=32)),
    heat=arrays.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
    alpha=st.floats(0, 1),
    colormap=st.sampled_from(["viridis", "magma", "tab10", cv2.COLORMAP_JET, cv2.COLORMAP_DEEPGREEN]),
)
def test_an_overlay_lies_between_image_and_colours(image, heat, alpha, colormap) -> None:
    picture = overlay(image, heat, colormap, alpha).astype(float)
    coloured = overlay(image, heat, colormap, 1.0)
    np.testing.assert_allclose(picture, (1 - alpha) * 255 * image + alpha * coloured, atol=1.01)


def test_colour_maps_by_constant_by_name_and_by_object() -> None:
    ramp = np.arange(256).reshape(1, 256) / 255
    image = np.zeros((1, 256, 3))
    by_name = overlay(image, ramp, "viridis", alpha=1)
    np.testing.assert_array_equal(by_name, overlay(image, ramp, matplotlib.colormaps["viridis"], alpha=1))
    jet = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)[..., ::-1]
    truncated = np.asarray(255 * ramp[0], dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, ramp, cv2.COLORMAP_JET, alpha=1)[0], jet[0, truncated])


@pytest.mark.parametrize(
    ("colormap", "error", "message"),
    [
        ("virids", ValueError, "'virids' is not a colour map of matplotlib; did you mean 'viridis'"),
        ("???", ValueError, "take one of matplotlib.colormaps"),
        (99, ValueError, "colour map 99 is not one of OpenCV's, 0 to 21; take a constant such as cv2.COLORMAP_JET"),
        (True, TypeError, "colormap is True; expected an OpenCV constant"),
        (None, TypeError, "colormap is None; expected an OpenCV constant"),
    ],
)
@pytest.mark.parametrize("show", [overlay, overlay_signed, show_cam_on_image])
def test_what_is_no_colour_map_is_refused(show, colormap, error, message) -> None:
    with pytest.raises(error, match=message):
        show(IMAGE, ZEROS, colormap=colormap)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    for show in (overlay, overlay_signed):
        with pytest.raises(ValueError, match=r"alpha is (-0\.1|1\.1|nan); expected a share"):
            show(IMAGE, ZEROS, alpha=alpha)
    with pytest.raises(ValueError, match=r"map has values from .*expected \[0, 1\]"):
        overlay(IMAGE, ZEROS, alpha=np.full((2, 2), 1.5))


# Signed overlays


def test_signed_overlay_by_hand() -> None:
    image = np.zeros((1, 3, 3), np.uint8)
    image[0, 1] = (255, 0, 0)
    picture = overlay_signed(image, np.array([[-3.0, 0.0, 1.5]]), "bwr", alpha=0.8, limit=3)
    # bwr: blue, white, red. Luminance of red: 0.299. Half of the limit: half of the opacity, half way from white.
    wanted = [[0, 0, 0.8 * 255], [76.2, 76.2, 76.2], [0.4 * 255, 0.4 * 127, 0.4 * 127]]
    np.testing.assert_allclose(picture[0], wanted, atol=1)


@given(arrays.arrays(np.float64, (3, 4), elements=st.floats(-1, 1)))
def test_the_signed_scale_is_symmetric_and_never_recentred(divergence: np.ndarray) -> None:
    grey_image = np.full((3, 4, 3), 0.4)
    picture = overlay_signed(grey_image, divergence, "bwr").astype(int)
    mirrored = overlay_signed(grey_image, -divergence, "bwr").astype(int)
    assert np.abs(picture - mirrored[..., ::-1]).max() <= 1  # blue and red change places
    np.testing.assert_array_equal(picture[divergence == 0], 102)
    # The colour of a value does not depend on what else is in the map.
    lone = np.zeros_like(divergence)
    lone[1, 2] = divergence[1, 2]
    np.testing.assert_array_equal(overlay_signed(grey_image, lone, "bwr")[1, 2], picture[1, 2])


def test_a_limit_shared_by_maps_makes_their_colours_comparable() -> None:
    first = overlay_signed(IMAGE, np.full((4, 6), 2.0), limit=4)
    second = overlay_signed(IMAGE, np.full((4, 6), 0.5), limit=1)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=r"map has values from 5 to 5; expected \[-4, 4\]; .*limit="):
        overlay_signed(IMAGE, np.full((4, 6), 5.0), limit=4)


@pytest.mark.parametrize("limit", [0, -1, np.inf, np.nan])
def test_limits_that_are_no_magnitude_are_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"limit is .*; expected the largest magnitude to show, above 0"):
        overlay_signed(IMAGE, ZEROS, limit=limit)


# Contours and masks

RAMP = np.tile(np.linspace(0, 1, 101), (11, 1))
BLACK = np.zeros((11, 101, 3))


def test_contours_run_where_the_map_has_the_level() -> None:
    picture = contours(BLACK, RAMP, [0.2, 0.7], colormap="gray", thickness=3)
    drawn = picture[5, :, 0].astype(int)
    np.testing.assert_allclose(drawn[19:22], 0.2 * 255, atol=2)
    np.testing.assert_allclose(drawn[69:72], 0.7 * 255, atol=2)
    np.testing.assert_array_equal(drawn[[*range(17), *range(24, 67), *range(74, 101)]], 0)


def test_contours_at_quantiles_surround_their_share_of_the_image() -> None:
    squared = RAMP**2  # its 0.8 quantile is 0.64, at the same place as in the ramp
    picture = contours(BLACK, squared, [0.8], quantiles=True, colormap="gray", thickness=1)
    assert picture[5, :, 0].argmax() == 80
    np.testing.assert_array_equal(picture, contours(BLACK, RAMP, [0.8], colormap="gray", thickness=1))


def test_levels_that_the_map_does_not_cross_draw_nothing() -> None:
    np.testing.assert_array_equal(contours(IMAGE, np.full((4, 6), 0.3), [0.5]), overlay(IMAGE, ZEROS, alpha=0))


def test_bad_contours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a level is 1.5; expected a share, from 0 to 1"):
        contours(IMAGE, ZEROS, [1.5])
    with pytest.raises(ValueError, match=r"thickness is 0; expected a whole number of pixels, at least 1"):
        contours(IMAGE, ZEROS, thickness=0)
    with pytest.raises(ValueError, match=r"shape \(1, 6, 3\); contours need at least 2 x 2 pixels"):
        contours(IMAGE[:1], ZEROS[:1])


def test_masks_keep_what_is_at_least_the_level() -> None:
    image = np.zeros((1, 4, 3), np.uint8)
    image[0] = (200, 100, 40)
    heat = np.array([[0.0, 0.4, 0.5, 1.0]])
    dark = masked(image, heat)
    np.testing.assert_array_equal(dark[0], [[50, 25, 10], [50, 25, 10], [200, 100, 40], [200, 100, 40]])
    luminance = round(0.299 * 200 + 0.587 * 100 + 0.114 * 40)
    np.testing.assert_array_equal(masked(image, heat, rest="grey")[0, 0], luminance)
    hottest = masked(image, heat, 0.75, quantile=True)  # a quarter of the image stays
    np.testing.assert_array_equal((hottest[0] == image[0]).all(1), [False, False, False, True])


def test_bad_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a level is -1; expected a share, from 0 to 1"):
        masked(IMAGE, ZEROS, -1)
    with pytest.raises(ValueError, match=r"rest is 'blur'; expected one of \['dark', 'grey'\]"):
        masked(IMAGE, ZEROS, rest="blur")


# Input gradients


def test_gradient_map_is_the_largest_magnitude_over_its_quantile() -> None:
    values = np.zeros((2, 1, 101))
    values[1, 0] = -np.arange(101)
    values[0, 0, 3] = 50
    magnitude = np.arange(101.0)
    magnitude[3] = 50
    np.testing.assert_allclose(gradient_map(values)[0], np.minimum(magnitude / 99, 1))
    np.testing.assert_allclose(gradient_map(torch.from_numpy(values))[0], np.minimum(magnitude / 99, 1), rtol=1e-6)


def test_gradients_that_are_almost_all_0_are_divided_by_their_maximum() -> None:
    values = np.zeros((1, 20, 20))
    np.testing.assert_array_equal(gradient_map(values), 0)
    values[0, 3, 4] = -5
    assert gradient_map(values)[3, 4] == 1
    assert gradient_map(values).sum() == 1


def test_deprocess_image_equals_pytorch_grad_cam(pytorch_grad_cam: object) -> None:
    del pytorch_grad_cam
    from pytorch_grad_cam.utils.image import deprocess_image as theirs

    values = np.random.default_rng(0).standard_normal((6, 7, 3)) * 3
    np.testing.assert_array_equal(deprocess_image(values), theirs(values))
    np.testing.assert_array_equal(
        deprocess_image(torch.from_numpy(values).permute(2, 0, 1)), theirs(np.float32(values))
    )
    np.testing.assert_array_equal(deprocess_image(np.zeros((2, 2, 3))), 127)


@pytest.mark.parametrize("show", [gradient_map, deprocess_image])
def test_what_are_no_gradients_is_refused(show: object) -> None:
    with pytest.raises(ValueError, match=r"gradients of shape \(1, 3, 4, 6\); .*\(C, H, W\), such as gradients\[0\]"):
        show(torch.zeros(1, 3, 4, 6))  # type: ignore[operator]
    with pytest.raises(ValueError, match="with NaN or infinity"):
        show(torch.full((3, 4, 6), torch.nan))  # type: ignore[operator]


# The function of pytorch-grad-cam, and its signed relative


def test_cam_on_image_is_the_weighted_mean_of_image_and_colour_map_at_full_brightness() -> None:
    mask = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    picture = show_cam_on_image(IMAGE, mask, image_weight=0.25)
    heat = cv2.applyColorMap((255 * mask).astype(np.uint8), cv2.COLORMAP_JET) / 255
    expected = 0.75 * heat + 0.25 * 0.5
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(picture, 255 * expected / expected.max(), atol=1)
    assert picture.max() == 255


def test_rgb_is_bgr_reversed() -> None:
    mask = np.linspace(0, 1, 24).reshape(4, 6)
    image = np.random.default_rng(0).random((4, 6, 3))
    for colormap in (cv2.COLORMAP_JET, "viridis"):
        rgb = show_cam_on_image(image, mask, use_rgb=True, colormap=colormap)
        np.testing.assert_array_equal(rgb[..., ::-1], show_cam_on_image(image[..., ::-1], mask, colormap=colormap))


def test_cam_on_image_equals_pytorch_grad_cam(pytorch_grad_cam: object) -> None:
    del pytorch_grad_cam
    from pytorch_grad_cam.utils.image import show_cam_on_image as theirs

    rng = np.random.default_rng(0)
    image, mask = rng.random((8, 8, 3), dtype=np.float32), rng.random((8, 8), dtype=np.float32)
    for use_rgb in (False, True):
        for colormap in (cv2.COLORMAP_JET, cv2.COLORMAP_VIRIDIS):
            np.testing.assert_array_equal(
                show_cam_on_image(image, mask, use_rgb, colormap), theirs(image, mask, use_rgb, colormap)
            )


def test_divergence_is_red_grey_and_blue() -> None:
    divergence = np.zeros((4, 6))
    divergence[:, 0], divergence[:, 5] = 1, -1
    picture = show_divergence_on_image(IMAGE, divergence, use_rgb=True)
    assert (picture[:, 0, 0] > 1.5 * picture[:, 0, 2]).all()
    assert (picture[:, 5, 2] > 1.5 * picture[:, 5, 0]).all()
    np.testing.assert_array_equal(picture[:, 1:5], 127)
    np.testing.assert_array_equal(show_divergence_on_image(IMAGE, divergence)[..., ::-1], picture)


@pytest.mark.parametrize("show", [show_cam_on_image, show_divergence_on_image])
def test_they_take_images_in_any_form(show: object) -> None:
    pixels = np.round(255 * photo()).astype(np.uint8)
    mask = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    wanted = show(pixels / np.float32(255), mask, use_rgb=True)  # type: ignore[operator]
    for image in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        np.testing.assert_array_equal(show(image, torch.from_numpy(mask), use_rgb=True), wanted)  # type: ignore[operator]


@pytest.mark.parametrize("show", [show_cam_on_image, show_divergence_on_image, draw_regions])
def test_pil_images_are_never_bgr(show: object) -> None:
    with pytest.raises(ValueError, match="a PIL image is RGB, but use_rgb is False; pass use_rgb=True"):
        show(Image.new("RGB", (6, 4)), ZEROS)  # type: ignore[operator]


@pytest.mark.parametrize("show", [show_cam_on_image, show_divergence_on_image])
@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE, np.full((4, 6), 1.01), r"map has values from 1.01 to 1.01; expected \[.*minmax"),
        (IMAGE, np.full((4, 6), -1.5), "map has values from -1.5"),
        (IMAGE, np.full((4, 6), np.nan), "nothing finite and NaN or infinity"),
        (IMAGE, np.where(np.eye(4, 6) > 0, np.inf, 0.5), "0.5 to 0.5 and NaN or infinity"),
        (IMAGE * 255, ZEROS, "image has values .*divide 8-bit images by 255"),
        (IMAGE, np.zeros((6, 4)), r"map of shape \(6, 4\); expected \(H, W, 3\) and \(H, W\)"),
        (IMAGE[..., :2], ZEROS, r"image of shape \(4, 6, 2\)"),
    ],
)
def test_what_cannot_be_shown_is_refused(show: object, image: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show(image, mask)  # type: ignore[operator]


def test_negative_masks_are_refused_by_the_unsigned_overlays() -> None:
    for show in (show_cam_on_image, overlay, contours, masked):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
            show(IMAGE, np.full((4, 6), -0.1))


@pytest.mark.parametrize("show", [show_cam_on_image, show_divergence_on_image])
def test_weight_out_of_range_is_refused(show: object) -> None:
    with pytest.raises(ValueError, match=r"image_weight is 1\.5"):
        show(IMAGE, ZEROS, image_weight=1.5)  # type: ignore[operator]


def test_a_black_picture_stays_black() -> None:
    black = show_cam_on_image(np.zeros((4, 6, 3)), ZEROS, image_weight=1)
    np.testing.assert_array_equal(black, 0)


def test_preprocess_image_normalises_each_channel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = preprocess_image(pixels, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    assert tensor.shape == (1, 3, 5, 7)
    assert tensor.dtype == torch.float32
    assert tensor[0, 1, 2, 3].item() == pytest.approx((pixels[2, 3, 1] / 255 - 0.2) / 0.25, rel=1e-5)
    torch.testing.assert_close(preprocess_image(np.float32(pixels) / 255), preprocess_image(pixels))


def test_preprocess_image_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W, C\)"):
        preprocess_image(np.zeros((5, 7)))
    with pytest.raises(ValueError, match="3 means and 1 standard deviations"):
        preprocess_image(np.zeros((5, 7, 3)), std=(1.0,))


def test_regions_are_outlined_in_the_colour_of_their_sign() -> None:
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[20:50, 10:50] = True
    image = np.full((60, 60, 3), 0.5)
    for sign, channel in ((1, 0), (-1, 2)):
        region = Region(share=0.4, sign=sign, box=(20, 10, 50, 50), centroid=(35.0, 30.0), mask=mask)
        picture = draw_regions(image, [region], use_rgb=True)
        edge = picture[49, 30]
        assert edge.argmax() == channel
        np.testing.assert_array_equal(picture[5:15, 52:], 127)
        np.testing.assert_array_equal(draw_regions(image, [region])[49, 30], edge[::-1])


def test_regions_of_another_image_are_refused() -> None:
    region = Region(share=1.0, sign=1, box=(0, 0, 1, 1), centroid=(0.0, 0.0), mask=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"map of shape \(3, 3\)"):
        draw_regions(IMAGE, [region])


# Grids


def test_grid_has_a_titled_picture_in_each_place() -> None:
    figure = grid([[np.zeros((2, 2, 3), np.uint8)] * 2, [Image.new("RGB", (2, 2))]], [["a", "b"], ["c"]])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1]


def test_grid_wastes_no_space_and_nothing_overlaps() -> None:
    wide, tall = np.zeros((20, 40, 3)), np.zeros((40, 20, 3))
    long = "a title that is far too long for one line of its picture"
    bar, named = Bar(cv2.COLORMAP_JET), Bar("RdBu_r", -1, 1, "divergence")
    rows, titles = [[wide, tall, wide], [wide, wide]], [[long, "two\nlines", ""], ["x", "y"]]
    figure = grid(rows, titles, size=1.5, bars=[[bar, None, named], [None, named]])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert len(boxes) == 8
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])
    around = [min(box.x0 for box in boxes), min(box.y0 for box in boxes)]
    around += [figure.bbox.x1 - max(box.x1 for box in boxes), figure.bbox.y1 - max(box.y1 for box in boxes)]
    assert max(around) < 16  # pixels at the edges, of the 100 an inch has; fonts differ a little between versions
    ends = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert ends == ["0", "0.5", "1"]
    assert figure.axes[4].get_xlabel() == "divergence"


def test_a_bar_shows_its_colour_map_from_end_to_end() -> None:
    figure = grid([[IMAGE]], [["x"]], bars=[[Bar("bwr", -2, 2)]])
    (shown,) = figure.axes[1].images
    np.testing.assert_allclose(shown.get_array()[0, [0, -1]], [[0, 0, 1], [1, 0, 0]])
    assert shown.get_extent() == [-2, 2, 0, 1]


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1\] titles for \[2\] pictures"):
        grid([[IMAGE, IMAGE]], [["a"]])
    with pytest.raises(ValueError, match=r"\[2\] bars for \[1\] pictures"):
        grid([[IMAGE]], [["a"]], bars=[[None, None]])
    for rows in ([], [[]], [[IMAGE], []]):
        with pytest.raises(ValueError, match=r"pictures, by row; give at least one row"):
            grid(rows, [["a"] * len(row) for row in rows])


# Animations


def frames_of(gif: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(gif)) as image:
        assert image.format == "GIF"
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB"), dtype=int))
        return frames


def test_an_animation_shows_each_frame_for_its_time(tmp_path: Path) -> None:
    pictures = [np.full((20, 30, 3), value, np.uint8) for value in (0, 128, 255)]
    gif = animate(pictures, path=tmp_path / "maps.gif", fps=4)
    assert (tmp_path / "maps.gif").read_bytes() == gif
    for frame, picture in zip(frames_of(gif), pictures, strict=True):
        np.testing.assert_allclose(frame, picture, atol=2)
    with Image.open(io.BytesIO(gif)) as image:
        assert image.info["duration"] == 250
        assert image.info["loop"] == 0


def test_the_frames_of_overlays_keep_their_colours() -> None:
    pictures = [overlay(photo(), heatmap()[:, ::-1].copy()), overlay(photo(), heatmap())]
    for frame, picture in zip(frames_of(animate(pictures)), pictures, strict=True):
        assert np.abs(frame - picture).mean() < 4  # 256 colours a frame, dithered


def test_titles_are_black_on_a_white_strip_and_always_fit() -> None:
    pictures = [np.full((60, 80, 3), value, np.uint8) for value in (100, 150)]
    for frame in frames_of(animate(pictures, ["Egyptian cat", "a title that is longer than this"])):
        strip = frame[:-60]
        assert frame.shape[1] == 80
        assert strip.min() < 100
        assert (strip[:, [0, -1]] > 245).all()
        assert (strip[[0, -1]] > 245).all()


def test_equal_frames_are_shown_as_long_as_all_of_them() -> None:
    gif = animate([IMAGE, IMAGE, 1 - 0.5 * IMAGE], fps=2)
    with Image.open(io.BytesIO(gif)) as image:
        assert (image.n_frames, image.info["duration"]) == (2, 1000)


def test_bad_animations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes \[\] .*at least one frame"):
        animate([])
    with pytest.raises(ValueError, match=r"sizes \[\(4, 6\), \(48, 64\)\] \(H, W\); expected .*one size for all"):
        animate([photo(), IMAGE])
    with pytest.raises(ValueError, match="1 titles for 2 frames; give one each"):
        animate([IMAGE, IMAGE], ["a"])
    for fps in (0, -1, 60, np.nan):
        with pytest.raises(ValueError, match=r"fps is .*; expected frames per second, above 0 and at most 50"):
            animate([IMAGE], fps=fps)


def test_the_import_paths_of_pytorch_grad_cam() -> None:
    assert drop_in.show_cam_on_image is show_cam_on_image
    assert drop_in.preprocess_image is preprocess_image


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        Image.fromarray(draw()).save(REFERENCES / f"{name}.png")
