import math
from functools import partial

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from diffgradcam.metrics import cosine, pearson, rmse, spearman, ssim
from tests.pretend_device import DEVICE, pretend_device

ALL = [pearson, spearman, cosine, rmse, ssim]
seeds = st.integers(0, 10_000)


def random_pair(seed=0, shape=(4, 8, 9), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    first, noise = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return first.to(dtype), (0.6 * first + 0.4 * noise).to(dtype)


def per_image(function, first, second):
    pairs = zip(first, second, strict=True)
    return torch.tensor([float(function(a.numpy(), b.numpy())) for a, b in pairs], dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_values_are_those_of_scipy_and_of_the_definitions(seed):
    first, second = random_pair(seed)
    first = first - 0.3
    expected = per_image(lambda a, b: scipy.stats.pearsonr(a.ravel(), b.ravel()).statistic, first, second)
    torch.testing.assert_close(pearson(first, second), expected)
    expected = per_image(lambda a, b: scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic, first, second)
    torch.testing.assert_close(spearman(first, second), expected)
    expected = per_image(lambda a, b: (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()), first, second)
    torch.testing.assert_close(cosine(first, second), expected)
    expected = per_image(lambda a, b: math.sqrt(((a - b) ** 2).mean()), first, second)
    torch.testing.assert_close(rmse(first, second), expected)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_spearman_shares_ranks_among_equal_values(seed):
    first, second = (m.mul(4).round() for m in random_pair(seed))
    expected = per_image(lambda a, b: scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic, first, second)
    torch.testing.assert_close(spearman(first, second), expected)


@pytest.mark.parametrize(("window", "data_range"), [(7, 1.0), (3, 1.0), (5, 2.5)])
def test_ssim_is_that_of_scikit_image(window, data_range):
    first, second = random_pair(1, (4, 12, 9))
    theirs = partial(structural_similarity, win_size=window, data_range=data_range)
    expected = per_image(theirs, first, second)
    torch.testing.assert_close(ssim(first, second, window, data_range), expected)


def test_ssim_of_a_seven_by_seven_map_is_the_global_one():
    first, second = random_pair(2, (1, 7, 7))
    covariance = torch.cov(torch.stack([first.flatten(), second.flatten()]))
    means = first.mean(), second.mean()
    expected = (2 * means[0] * means[1] + 1e-4) * (2 * covariance[0, 1] + 9e-4)
    expected /= (means[0] ** 2 + means[1] ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)
    torch.testing.assert_close(ssim(first, second), expected[None])


def test_float32_agrees_with_float64_also_for_small_contrast_on_a_large_offset():
    first, second = random_pair(3)
    for function in ALL:
        torch.testing.assert_close(
            function(first.float(), second.float()).double(), function(first, second), atol=1e-5, rtol=1e-5
        )
    tiny = 1e-30 * first.float()
    torch.testing.assert_close(pearson(tiny, second.float()), pearson(first, second).float())
    torch.testing.assert_close(cosine(tiny, second.float()), cosine(first, second).float())


@settings(max_examples=20, deadline=None)
@given(seed=seeds, a=st.floats(0.01, 100), b=st.floats(-5, 5))
def test_invariances(seed, a, b):
    first, second = random_pair(seed)
    torch.testing.assert_close(pearson(a * first + b, second), pearson(first, second))
    torch.testing.assert_close(pearson(-a * first + b, second), -pearson(first, second))
    torch.testing.assert_close(spearman(a * (3 * first).exp() + b, second), spearman(first, second))
    torch.testing.assert_close(cosine(a * first, second), cosine(first, second))
    torch.testing.assert_close(rmse(a * first + b, a * second + b), a * rmse(first, second))
    for function in ALL:
        torch.testing.assert_close(function(first, second), function(second, first))


def test_equal_maps():
    first, _ = random_pair()
    one = torch.ones(4, dtype=torch.float64)
    for function in (pearson, spearman, cosine, ssim):
        torch.testing.assert_close(function(first, first), one)
        assert (function(first, first) <= 1).all()
    assert rmse(first, first).tolist() == [0] * 4
    torch.testing.assert_close(pearson(first, -first), -one)


@pytest.mark.parametrize("fill", [0.0, 0.1, -3.0])
def test_constant_maps_correlate_with_nothing_and_have_a_finite_gradient(fill):
    first, second = torch.full((4, 8, 9), fill), random_pair(dtype=torch.float32)[1]
    assert pearson(first, second).tolist() == [0] * 4
    assert spearman(second, first).tolist() == [0] * 4
    if not fill:
        assert cosine(first, second).tolist() == [0] * 4
    assert spearman(first.clone().requires_grad_(), second).tolist() == [0] * 4
    for function in (pearson, cosine, rmse, ssim):
        for other in (second, first.clone()):
            leaves = first.clone().requires_grad_(), other.clone().requires_grad_()
            value = function(*leaves)
            assert value.isfinite().all()
            assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), leaves))


def test_gradcheck():
    first, second = (m[:2, :3, :3].contiguous().requires_grad_() for m in random_pair(4))
    for function in (pearson, cosine, rmse):
        assert torch.autograd.gradcheck(function, (first, second))
    assert torch.autograd.gradcheck(lambda a, b: ssim(a, b, window=3), (first, second))


@pytest.mark.parametrize("function", [pearson, spearman, cosine, rmse])
def test_any_number_of_spatial_dimensions_in_any_memory_order(function):
    first, second = random_pair(5, (2, 3, 4, 5))
    expected = function(first.flatten(1), second.flatten(1))
    torch.testing.assert_close(function(first, second), expected)
    turned = first.flatten(1).t().contiguous().t(), second.flatten(1).t().contiguous().t()
    torch.testing.assert_close(function(*turned), expected)


def test_integer_and_half_maps_are_computed_in_float32():
    first, second = random_pair(6)
    pixels = (first * 255).round(), (second * 255).round()
    for function in (pearson, spearman, cosine, rmse):
        value = function(pixels[0].to(torch.uint8), pixels[1].half())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), function(*pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("function", ALL)
def test_bad_shapes(function):
    first, second = random_pair()
    with pytest.raises(ValueError, match=r"maps have shapes \(4, 8, 9\) and \(4, 8, 8\); expected .*maps\.resize"):
        function(first, second[..., :8])
    with pytest.raises(ValueError, match=r"expected .*\(B, (\*S|h, w)\)"):
        function(first[:, 0, 0], second[:, 0, 0])


@pytest.mark.parametrize("window", [4, 1, 9, -3])
def test_bad_window(window):
    with pytest.raises(ValueError, match=rf"window is {window} for maps of 8 x 9; expected an odd number from 3"):
        ssim(*random_pair(), window=window)


def test_bad_data_range_and_dimensions():
    with pytest.raises(ValueError, match="data_range is 0; expected largest minus smallest"):
        ssim(*random_pair(), data_range=0)
    volume = torch.rand(2, 8, 8, 8)
    with pytest.raises(ValueError, match=r"maps have shape \(2, 8, 8, 8\); expected \(B, h, w\)"):
        ssim(volume, volume)


def test_what_is_not_finite_has_no_rank_and_no_correlation():
    first, second = random_pair()
    second[2, 0, 0] = math.nan
    for pair in ((first, second), (second, first)):
        with pytest.raises(ValueError, match=r"the map of image 2 is NaN or infinite \(1 of 4 images\)"):
            spearman(*pair)
    assert pearson(first, second).isnan().tolist() == [False, False, True, False]  # says so itself: training reads it


def test_ranks_where_the_device_has_no_float64():
    first, second = random_pair(dtype=torch.float32)
    with pretend_device(float64=False):
        similarity = spearman(first.to(DEVICE), second.to(DEVICE))
        assert (similarity.device, similarity.dtype) == (DEVICE, torch.float32)
        assert torch.equal(similarity.cpu(), spearman(first, second))
