import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgradcam.heatmaps import entropy
from diffgradcam.losses import cam_entropy
from diffgradcam.sham import border_mask, centre_mask, corner_mask, entropy_mask, match_entropy

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
MASKS = [border_mask, centre_mask, corner_mask]


def test_border_mask_is_the_ring_and_then_the_corners_of_the_next():
    expected = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 0, 0, 0, 1, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 1, 0, 0, 0, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
        ]
    )
    mask = border_mask((7, 7), cells=28)
    assert mask.dtype == torch.float32
    assert mask.tolist() == expected.tolist()
    assert float(entropy(mask.unsqueeze(0))) == pytest.approx(math.log(28), abs=1e-6)


def test_border_mask_of_24_cells_is_the_ring():
    ring = torch.ones(7, 7)
    ring[1:-1, 1:-1] = 0
    assert torch.equal(border_mask((7, 7), 24), ring)


def test_a_ring_that_is_not_full_starts_at_its_corners():
    assert border_mask((4, 5), 4).nonzero().tolist() == [[0, 0], [0, 4], [3, 0], [3, 4]]


@given(SIZES, st.data())
def test_masks_have_as_many_cells_as_asked_for(size, data):
    cells = data.draw(st.integers(1, math.prod(size)))
    for build in MASKS:
        mask = build(size, cells)
        assert mask.shape == size
        assert mask.sum() == cells
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


@given(SIZES, st.data())
def test_masks_grow(size, data):
    cells = data.draw(st.integers(1, math.prod(size)))
    for build in MASKS:
        assert bool((build(size, cells) >= build(size, max(1, cells - 1))).all())


@given(st.integers(3, 9), st.integers(3, 9))
def test_whole_rings_do_not_prefer_a_side(rows, columns):
    for cells in (4, 2 * (rows + columns) - 4):
        mask = border_mask((rows, columns), cells)
        assert torch.equal(mask, mask.flip(0))
        assert torch.equal(mask, mask.flip(1))


def test_centre_is_what_the_border_leaves():
    assert torch.equal(centre_mask((7, 7), 21), 1 - border_mask((7, 7), 28))
    assert centre_mask((5, 5), 1).nonzero().tolist() == [[2, 2]]


def test_corner_is_a_square():
    expected = torch.zeros(5, 4)
    expected[:3, :3] = 1
    assert torch.equal(corner_mask((5, 4), 9), expected)


@pytest.mark.parametrize(("nats", "cells"), [(math.log(28), 28), (3.35, 29), (0.0, 1), (math.log(49), 49)])
def test_entropy_mask_rounds_to_cells(nats, cells):
    assert torch.equal(entropy_mask((7, 7), nats), border_mask((7, 7), cells))


def test_match_entropy_takes_the_mean_over_images():
    maps = torch.zeros(2, 7, 7)
    maps[0, 2, 2:6] = 3.0  # ln 4
    maps[1, 1:5, 1:5] = 0.5  # ln 16
    assert match_entropy(maps).sum() == 8
    assert float(cam_entropy(maps).mean()) == pytest.approx(math.log(8), abs=1e-6)


@pytest.mark.parametrize("build", MASKS)
def test_masks_refuse_impossible_sizes(build):
    with pytest.raises(ValueError, match="cells is 50; expected 1 to 49"):
        build((7, 7), 50)
    with pytest.raises(ValueError, match="cells is 0; expected 1 to 49"):
        build((7, 7), 0)
    with pytest.raises(ValueError, match=r"size is \(7, 0\); expected the size of a map"):
        build((7, 0), 1)
    with pytest.raises(ValueError, match=r"size is \(\); expected the size of a map"):
        build((), 1)


def test_entropy_masks_refuse_impossible_entropies():
    with pytest.raises(ValueError, match=r"entropy is 4.0 nats; expected 0 to ln\(49\) = 3.8918"):
        entropy_mask((7, 7), 4.0)
    with pytest.raises(ValueError, match=r"entropy is -1 nats; expected 0 to"):
        entropy_mask((7, 7), -1)
    with pytest.raises(ValueError, match=r"entropy is 0.5 nats; expected 0 to ln\(1\) = 0.0000 for size \(1, 1\)"):
        entropy_mask((1, 1), 0.5)
    with pytest.raises(ValueError, match=r"size is \(7, 0\); expected the size of a map"):
        entropy_mask((7, 0), 0.0)
    with pytest.raises(ValueError, match="no finite mean entropy"):
        match_entropy(torch.zeros(0, 7, 7))
