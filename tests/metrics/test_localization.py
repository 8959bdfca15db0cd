import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgradcam.metrics import energy_in_mask, iou_at_matched_area, pointing_game

ALL = [energy_in_mask, pointing_game, iou_at_matched_area]


def random_pair(seed, shape=(5, 3, 4), decimals=None):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=generator, dtype=torch.float64)
    if decimals is not None:
        maps = maps.round(decimals=decimals)
    return maps, torch.rand(shape, generator=generator) < 0.4


def rows(tensor):
    return [row.flatten().tolist() for row in tensor]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_energy_is_that_of_a_naive_loop(seed):
    maps, masks = random_pair(seed)
    for value, values, inside in zip(energy_in_mask(maps, masks).tolist(), rows(maps), rows(masks), strict=True):
        positive = [max(v, 0) for v in values]
        within = sum(v for v, i in zip(positive, inside, strict=True) if i)
        assert value == pytest.approx(within / sum(positive) if any(positive) else 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pointing_game_is_that_of_a_naive_loop(seed):
    maps, masks = random_pair(seed)
    pairs = zip(rows(maps), rows(masks), strict=True)
    expected = [float(inside[values.index(max(values))]) for values, inside in pairs]
    assert pointing_game(maps, masks).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_iou_is_that_of_sets_of_positions(seed):
    maps, masks = random_pair(seed)
    for value, values, inside in zip(iou_at_matched_area(maps, masks).tolist(), rows(maps), rows(masks), strict=True):
        marked = {i for i, is_inside in enumerate(inside) if is_inside}
        top = set(sorted(range(len(values)), key=lambda i: -values[i])[: len(marked)])
        assert value == pytest.approx(len(marked & top) / len(marked | top) if marked else 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_iou_with_equal_values_uses_the_mean_overlap_over_all_ways_to_draw(seed):
    maps, masks = random_pair(seed, (1, 6), decimals=0)
    (values,), (inside,) = rows(maps), rows(masks)
    area = sum(inside)
    best = sorted(values, reverse=True)[:area]
    draws = [d for d in itertools.combinations(range(6), area) if sorted((values[i] for i in d), reverse=True) == best]
    overlap = sum(inside[i] for d in draws for i in d) / len(draws)
    expected = overlap / (2 * area - overlap) if area else 0
    assert iou_at_matched_area(maps, masks).item() == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), a=st.floats(0.01, 100))
def test_invariances(seed, a):
    maps, masks = random_pair(seed, decimals=1)
    torch.testing.assert_close(energy_in_mask(a * maps, masks), energy_in_mask(maps, masks))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    for figure in ALL:
        shuffled = figure(maps.flatten(1)[:, order], masks.flatten(1)[:, order])
        torch.testing.assert_close(shuffled, figure(maps, masks))
    for figure in (pointing_game, iou_at_matched_area):
        torch.testing.assert_close(figure(a * maps.exp(), masks), figure(maps, masks))


def test_a_perfect_and_an_opposite_map():
    masks = torch.zeros(5, 3, 4, dtype=torch.bool)
    for image in range(5):
        masks[image, image % 3, : 1 + image % 4] = True
    for figure in ALL:
        assert figure(masks.double(), masks).tolist() == [1] * 5
        assert figure((~masks).double(), masks).tolist() == [0] * 5


@pytest.mark.parametrize("fill", [1.0, 1e-42, 1e38])
def test_a_constant_map_gets_the_area_of_the_mask(fill):
    maps = torch.full((1, 2, 5), fill)
    masks = torch.zeros(1, 2, 5)
    masks[0, 0, :2] = 1
    assert energy_in_mask(maps, masks).item() == pytest.approx(0.2)
    assert pointing_game(maps, masks).item() == pytest.approx(0.2)
    assert iou_at_matched_area(maps, masks).item() == pytest.approx(0.4 / 3.6)


@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_maps_without_positive_values_and_empty_masks_are_zero(fill):
    maps, masks = torch.full((2, 3, 3), fill), torch.zeros(2, 3, 3, dtype=torch.bool)
    for figure in ALL:
        assert figure(maps, masks).tolist() == [0, 0]
    assert energy_in_mask(maps, ~masks).tolist() == [0, 0]


@pytest.mark.parametrize("fill", [0.0, 2.0, -1.0])
def test_energy_has_a_finite_gradient(fill):
    maps = torch.full((2, 3, 3), fill, requires_grad=True)
    masks = torch.ones(2, 3, 3).tril().bool()
    assert torch.autograd.grad(energy_in_mask(maps, masks).sum(), maps)[0].isfinite().all()


def test_number_masks_are_inside_where_not_zero_and_integer_maps_are_accepted():
    maps, masks = random_pair(3)
    for figure in ALL:
        torch.testing.assert_close(figure(maps, masks * 0.3), figure(maps, masks))
        assert figure((maps * 100).to(torch.int16), masks).dtype == torch.float32


@pytest.mark.parametrize("figure", ALL)
def test_bad_inputs(figure):
    maps, masks = random_pair(0)
    with pytest.raises(ValueError, match=r"maps have shape \(5, 3, 4\) and masks \(5, 3, 3\); .*heatmaps\.resize"):
        figure(maps, masks[..., :3])
    with pytest.raises(ValueError, match=r"maps have shape \(5,\) and masks \(5,\); expected \(B, \*S\)"):
        figure(maps[:, 0, 0], masks[:, 0, 0])
    for bad in (math.nan, -1.0, math.inf):
        with pytest.raises(ValueError, match="masks hold NaN, infinite or negative values; expected bool, or"):
            figure(maps, torch.full((5, 3, 4), bad))
    for bad in (math.nan, math.inf, -math.inf):
        maps[3, 1, 2] = bad
        with pytest.raises(ValueError, match=r"the map of image 3 is NaN or infinite \(1 of 5 images\)"):
            figure(maps, masks)
