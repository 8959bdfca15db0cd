import cv2
import numpy as np
import pytest
import torch

from diffgradcam import Region
from diffgradcam.utils import image as drop_in
from diffgradcam.visualize import draw_regions, grid, preprocess_image, show_cam_on_image, show_divergence_on_image

IMAGE = np.full((4, 6, 3), 0.5, dtype=np.float32)


def test_overlay_is_the_weighted_mean_of_image_and_colour_map_at_full_brightness() -> None:
    mask = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    overlay = show_cam_on_image(IMAGE, mask, image_weight=0.25)
    heat = cv2.applyColorMap((255 * mask).astype(np.uint8), cv2.COLORMAP_JET) / 255
    expected = 0.75 * heat + 0.25 * 0.5
    assert overlay.dtype == np.uint8
    np.testing.assert_allclose(overlay, 255 * expected / expected.max(), atol=1)
    assert overlay.max() == 255


def test_rgb_is_bgr_reversed() -> None:
    mask = np.linspace(0, 1, 24).reshape(4, 6)
    image = np.random.default_rng(0).random((4, 6, 3))
    rgb = show_cam_on_image(image, mask, use_rgb=True)
    np.testing.assert_array_equal(rgb[..., ::-1], show_cam_on_image(image[..., ::-1], mask))


def test_overlay_equals_pytorch_grad_cam(pytorch_grad_cam: object) -> None:
    del pytorch_grad_cam
    from pytorch_grad_cam.utils.image import show_cam_on_image as theirs

    rng = np.random.default_rng(0)
    image, mask = rng.random((8, 8, 3), dtype=np.float32), rng.random((8, 8), dtype=np.float32)
    for use_rgb in (False, True):
        np.testing.assert_array_equal(show_cam_on_image(image, mask, use_rgb), theirs(image, mask, use_rgb))


def test_divergence_is_red_grey_and_blue() -> None:
    divergence = np.zeros((4, 6))
    divergence[:, 0], divergence[:, 5] = 1, -1
    overlay = show_divergence_on_image(IMAGE, divergence, use_rgb=True)
    assert (overlay[:, 0, 0] > 1.5 * overlay[:, 0, 2]).all()
    assert (overlay[:, 5, 2] > 1.5 * overlay[:, 5, 0]).all()
    np.testing.assert_array_equal(overlay[:, 1:5], 127)
    np.testing.assert_array_equal(show_divergence_on_image(IMAGE, divergence)[..., ::-1], overlay)


@pytest.mark.parametrize("show", [show_cam_on_image, show_divergence_on_image])
@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE, np.full((4, 6), 1.01), r"map has values from 1.01 to 1.01; expected \[.*minmax"),
        (IMAGE, np.full((4, 6), -1.5), "map has values from -1.5"),
        (IMAGE, np.full((4, 6), np.nan), "nothing finite and NaN or infinity"),
        (IMAGE, np.where(np.eye(4, 6) > 0, np.inf, 0.5), "0.5 to 0.5 and NaN or infinity"),
        (IMAGE * 255, np.zeros((4, 6)), "image has values .*divide 8-bit images by 255"),
        (IMAGE, np.zeros((6, 4)), r"expected \(H, W, 3\) and \(H, W\)"),
        (IMAGE[..., 0], np.zeros((4, 6)), r"image of shape \(4, 6\)"),
    ],
)
def test_what_cannot_be_shown_is_refused(show: object, image: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show(image, mask)  # type: ignore[operator]


def test_negative_masks_are_refused_by_the_unsigned_overlay() -> None:
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        show_cam_on_image(IMAGE, np.full((4, 6), -0.1))


@pytest.mark.parametrize("show", [show_cam_on_image, show_divergence_on_image])
def test_weight_out_of_range_is_refused(show: object) -> None:
    with pytest.raises(ValueError, match=r"image_weight is 1\.5"):
        show(IMAGE, np.zeros((4, 6)), image_weight=1.5)  # type: ignore[operator]


def test_a_black_picture_stays_black() -> None:
    black = show_cam_on_image(np.zeros((4, 6, 3)), np.zeros((4, 6)), image_weight=1)
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


def test_grid_has_a_titled_picture_in_each_place() -> None:
    figure = grid([[np.zeros((2, 2, 3), np.uint8)] * 2, [np.ones((2, 2, 3), np.uint8)]], [["a", "b"], ["c"]])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0]


def test_grid_refuses_missing_titles() -> None:
    with pytest.raises(ValueError, match=r"\[1\] titles for \[2\] pictures"):
        grid([[IMAGE, IMAGE]], [["a"]])


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


def test_the_import_paths_of_pytorch_grad_cam() -> None:
    assert drop_in.show_cam_on_image is show_cam_on_image
    assert drop_in.preprocess_image is preprocess_image
