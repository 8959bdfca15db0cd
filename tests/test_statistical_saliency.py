"""Maps without people against the textbook formulas in NumPy."""

import numpy as np
import pytest
import torch

from diffgradcam.data import lda_saliency, pca_saliency

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(20, 3, 6, 8, generator=GENERATOR)
LABELS = torch.arange(20) % 3


def scaled(values):
    return values / values.max(1, keepdims=True)


def pixels():
    grey = IMAGES.double().mean(1).flatten(1).numpy()
    return grey - grey.mean(0)


def test_pca_maps_are_the_reconstruction_from_the_leading_components():
    x = pixels()
    values, vectors = np.linalg.eigh(x.T @ x)
    leading = vectors[:, np.argsort(values)[::-1][:4]]
    expected = scaled(np.abs(x @ leading @ leading.T))
    maps = pca_saliency(IMAGES, components=4)
    assert maps.shape == (20, 6, 8)
    np.testing.assert_allclose(maps.flatten(1).numpy(), expected, atol=1e-6)


def test_lda_maps_are_fishers_direction_times_the_image():
    x, y = pixels(), LABELS.numpy()
    values, vectors = np.linalg.eigh(x.T @ x)
    basis = vectors[:, np.argsort(values)[::-1][:5]]
    inner = x @ basis
    means = np.stack([inner[y == k].mean(0) for k in range(3)])
    within = inner - means[y]
    scatter = within.T @ within / 20
    scatter = 0.8 * scatter + 0.2 * np.trace(scatter) / 5 * np.eye(5)
    direction = np.stack([np.linalg.inv(scatter) @ mean for mean in means]) @ basis.T
    expected = scaled(np.maximum(direction[y] * x, 0))
    maps = lda_saliency(IMAGES, LABELS, components=5, shrinkage=0.2)
    np.testing.assert_allclose(maps.flatten(1).numpy(), expected, atol=1e-6)


def test_lda_marks_the_one_pixel_that_carries_the_class():
    images = 0.01 * torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 2
    images[labels == 1, :, 3, 1] += 1
    maps = lda_saliency(images, labels)
    assert (maps.flatten(1).argmax(1) == 3 * 5 + 1).all()
    assert (maps[:, 3, 1] == 1).all()


def test_labels_may_be_of_any_type_that_counts():
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 2
    expected = lda_saliency(images, labels, components=3, grid=8)
    for dtype in (torch.bool, torch.uint8, torch.int32):
        assert torch.equal(lda_saliency(images, labels.to(dtype), components=3, grid=8), expected)


def test_pca_marks_where_images_differ():
    images = torch.zeros(10, 1, 5, 5)
    images[::2, :, 2, 2] = 1
    maps = pca_saliency(images, components=1)
    assert torch.equal(maps, torch.eye(5)[2][:, None] * torch.eye(5)[2].expand(10, 5, 5))


def test_a_large_image_is_compared_on_a_coarse_grid():
    images = torch.rand(6, 1, 40, 20, generator=torch.Generator().manual_seed(2))
    coarse = torch.nn.functional.interpolate(images, (10, 5), mode="area")
    maps, small = pca_saliency(images, grid=10), pca_saliency(coarse)
    assert maps.shape == (6, 40, 20)
    assert torch.allclose(
        torch.nn.functional.interpolate(small[:, None], (40, 20), mode="bilinear")[:, 0], maps, atol=1e-6
    )


def test_images_that_are_all_the_same_have_no_map():
    images = torch.ones(4, 1, 3, 3)
    assert (pca_saliency(images) == 0).all()
    assert (lda_saliency(images, torch.tensor([0, 1, 0, 1])) == 0).all()


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"images have shape \(3, 4, 4\): expected \(N, C, H, W\)"):
        pca_saliency(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="images hold NaN, infinite or too large values, or no channel"):
        pca_saliency(torch.full((3, 1, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="components is 0 and grid 24: expected at least 1 each"):
        pca_saliency(IMAGES, components=0)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) for 20 images"):
        lda_saliency(IMAGES, LABELS[:3])
    with pytest.raises(ValueError, match=r"all labels are \[1\]: expected at least two classes"):
        lda_saliency(IMAGES, torch.ones(20, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels are torch.float32: expected class indices; .* labels.long\(\)"):
        lda_saliency(IMAGES, LABELS.float())
    with pytest.raises(ValueError, match="shrinkage is 0: expected a share above 0"):
        lda_saliency(IMAGES, LABELS, shrinkage=0)
