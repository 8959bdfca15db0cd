from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgradcam import weightings
from tests import oracles

NAMES = ["gradcam", "gradcam_plus_plus", "xgradcam", "layercam", "hirescam", "gradcam_elementwise"]
SHAPES = [(2, 3, 5), (2, 3, 4, 3), (2, 3, 2, 3, 2), (1, 1, 1), (2, 1, 1, 1)]
every = pytest.mark.parametrize("name", NAMES)


def map_of(name, activations, gradients):
    weights = getattr(weightings, name)(activations, gradients)
    return (weights * activations).sum(1)


@pytest.mark.parametrize("shape", SHAPES)
@every
def test_the_map_equals_loops(name, shape):
    activations, gradients = torch.randn(shape).double().relu(), torch.randn(shape).double()
    expected = np.stack(
        [getattr(oracles, name)(a, g) for a, g in zip(activations.numpy(), gradients.numpy(), strict=True)]
    )
    torch.testing.assert_close(map_of(name, activations, gradients), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gradcam_plus_plus"])
def test_the_map_equals_loops_for_signed_activations(name):
    activations, gradients = torch.randn(2, 3, 4, 3).double(), torch.randn(2, 3, 4, 3).double()
    expected = np.stack(
        [getattr(oracles, name)(a, g) for a, g in zip(activations.numpy(), gradients.numpy(), strict=True)]
    )
    torch.testing.assert_close(map_of(name, activations, gradients), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def test_hand_computed_weights():
    activations = torch.tensor([[[1.0, 3.0], [-2.0, 0.0]]])
    gradients = torch.tensor([[[4.0, -2.0], [-1.0, 3.0]]])
    assert weightings.gradcam(activations, gradients).tolist() == [[[1.0], [1.0]]]
    assert weightings.xgradcam(activations, gradients).tolist() == [[[(4 - 6) / 4], [2 / -2]]]
    assert weightings.layercam(activations, gradients).tolist() == [[[4.0, 0.0], [0.0, 3.0]]]
    assert weightings.hirescam(activations, gradients).tolist() == gradients.tolist()
    assert weightings.magnitude(activations, gradients).tolist() == [[[4.0, 2.0], [1.0, 3.0]]]
    assert weightings.gradcam_elementwise(activations, gradients).tolist() == [[[4.0, 0.0], [-1.0, 0.0]]]
    # Channel 0: 4 / (2 + 4 * 4). Channel 1: 3 / (2 - 2 * 3), whose denominator of -4 is kept at 1.
    plus_plus = weightings.gradcam_plus_plus(activations, gradients)
    assert plus_plus.flatten().tolist() == pytest.approx([4 / 18, 3.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_grad_cam_plus_plus_is_the_published_formula_at_every_scale_of_the_score(scale, dtype):
    activations = torch.rand(1, 2, 3, 4, dtype=dtype)
    gradients = scale * torch.randn(1, 2, 3, 4, dtype=dtype)
    weights = weightings.gradcam_plus_plus(activations, gradients)[0].flatten()
    for weight, a, g in zip(weights.tolist(), activations[0], gradients[0], strict=True):
        total = sum(Fraction(x) for x in a.flatten().tolist())
        exact = sum(
            x**2 / (2 * x**2 + total * x**3) * max(x, 0) for x in map(Fraction, g.flatten().tolist()) if x > 0
        )  # exact arithmetic, and no epsilon
        assert weight == pytest.approx(float(exact), rel=20 * torch.finfo(dtype).eps, abs=0)


@every
@given(st.floats(1e-4, 1e4))
def test_the_map_keeps_when_activations_grow_and_gradients_shrink(name, factor):
    # The unit in which a layer happens to express its activations means nothing.
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    gradients = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    scaled = map_of(name, activations * factor, gradients / factor)
    torch.testing.assert_close(scaled, map_of(name, activations, gradients), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gradcam_plus_plus"])
@given(st.floats(1e-4, 1e4))
def test_the_map_is_proportional_to_the_score(name, factor):
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    gradients = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    scaled = map_of(name, activations, gradients * factor)
    torch.testing.assert_close(scaled, factor * map_of(name, activations, gradients), rtol=1e-10, atol=1e-10)


def test_grad_cam_plus_plus_is_proportional_to_the_score_only_for_small_scores():
    # Its denominator 2 + sum(A) G makes it so; the limits are sum(relu(G)) / 2 and the number of positive G / sum(A).
    activations, gradients = torch.rand(1, 2, 9).double() + 0.1, torch.randn(1, 2, 9).double()
    small = weightings.gradcam_plus_plus(activations, 1e-9 * gradients)
    torch.testing.assert_close(small / 1e-9, gradients.relu().sum(2, keepdim=True) / 2, rtol=1e-6, atol=0)
    large = weightings.gradcam_plus_plus(activations, 1e9 * gradients)
    count = (gradients > 0).sum(2, keepdim=True)
    torch.testing.assert_close(large, count / activations.sum(2, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gradient_value", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-30])
@every
def test_zero_and_constant_inputs_have_finite_values_and_gradients(name, value, gradient_value):
    activations = torch.full((2, 3, 2, 2), value, requires_grad=True)
    gradients = torch.full((2, 3, 2, 2), gradient_value, requires_grad=True)
    maps = map_of(name, activations, gradients)
    assert maps.isfinite().all()
    for derivative in torch.autograd.grad(maps.sum(), [activations, gradients], allow_unused=True):
        assert derivative is None or derivative.isfinite().all()


@pytest.mark.parametrize("scale", [2.0**-70, 1.0, 2.0**30])  # exact, so that the rounding stays
def test_xgradcam_gives_a_channel_that_cancels_out_no_weight(scale):
    # The first channel sums to 0 up to rounding.
    activations = scale * torch.tensor([[[0.1, 0.2, -0.3], [1.0, 2.0, 1.0]]], dtype=torch.float64)
    gradients = torch.tensor([[[5.0, 1.0, 1.0], [2.0, 0.0, 2.0]]], dtype=torch.float64)
    assert activations[0, 0].sum() != 0
    assert weightings.xgradcam(activations, gradients).flatten().tolist() == pytest.approx([0.0, 1.0])


def test_xgradcam_weighs_a_faint_channel_beside_a_strong_one():
    activations = torch.tensor([[[1e-9, 3e-9], [1e9, 1e9]], [[2.0, 6.0], [1e-20, 1e-20]]])
    gradients = torch.tensor([[[4.0, 8.0], [1.0, 3.0]]]).expand(2, 2, 2)
    assert weightings.xgradcam(activations, gradients).flatten().tolist() == pytest.approx([7.0, 2.0] * 2)


def test_fem_by_hand():
    # Channel 0: mean 1, standard deviation sqrt(3), so one of four is above 1 + 1.5 * sqrt(3). Channel 1: constant.
    activations = torch.tensor([[[0.0, 0.0, 0.0, 4.0], [0.1, 0.1, 0.1, 0.1]]])
    assert weightings.fem(activations, k=1.5).tolist() == [[[0.25], [0.0]]]
    assert weightings.fem(activations, k=2.0).tolist() == [[[0.0], [0.0]]]
    assert weightings.fem(activations).tolist() == [[[0.0], [0.0]]]


def test_fem_looks_at_each_channel_of_each_image_alone_and_at_two_standard_deviations():
    # One of seven: (7 - 1) / sqrt(6) = 2.4 standard deviations above the mean; one of four only 1.7.
    spike, small = torch.tensor([7.0, 0, 0, 0, 0, 0, 0]), torch.tensor([100.0, 0, 0, 0, 100, 0, 0])
    activations = torch.stack([torch.stack([spike, small]), torch.stack([small, spike + 1000])]).double()
    weights = weightings.fem(activations)
    assert weights.tolist() == [[[pytest.approx(1 / 7)], [0.0]], [[0.0], [pytest.approx(1 / 7)]]]
    assert weightings.fem(torch.eye(4)[:1].unsqueeze(0)).tolist() == [[[0.0]]]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1.0, 1e-30])
def test_fem_of_constants_is_zero(value):
    activations = torch.full((2, 3, 7, 5), value, requires_grad=True)
    weights = weightings.fem(activations)
    assert not weights.any()
    assert not weights.requires_grad


def test_smooth_plus_plus_by_hand():
    # Gradients 1 and 3 of one position: D1 = 2, D2 = 5, D3 = 14; sum A = 10: 2 * 5 / (10 + 10 * 14).
    activations = torch.tensor([[[10.0, 0.0]]])
    first, second, third = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[5.0, 1.0]]]), torch.tensor([[[14.0, 1.0]]])
    weights = weightings.smooth_gradcam_plus_plus(activations, first, second, third)
    assert weights.flatten().tolist() == pytest.approx([10 / 150])
    # A negative third moment would turn the denominator: 2 + 10 * -14 / 5 is kept at 1.
    assert weightings.smooth_gradcam_plus_plus(activations, first, second, -third).flatten().tolist() == [2.0]


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-30])
def test_smooth_plus_plus_of_equal_gradients_is_plus_plus(value):
    activations, gradients = torch.rand(2, 3, 4), torch.full((2, 3, 4), value)
    powers = [gradients**p for p in (1, 2, 3)]
    smooth = weightings.smooth_gradcam_plus_plus(activations, *powers)
    expected = weightings.gradcam_plus_plus(activations, gradients)
    torch.testing.assert_close(smooth, expected, rtol=1e-6, atol=0)


@every
def test_gradcheck(name):
    activations = (torch.rand(2, 2, 3, 2).double() + 0.1).requires_grad_()
    gradients = torch.randn(2, 2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, g: map_of(name, a, g), (activations, gradients))
    assert torch.autograd.gradgradcheck(lambda a, g: map_of(name, a, g), (activations, gradients), fast_mode=True)


def test_a_weighting_is_linear_if_it_was_declared_so():
    def own(_, gradients):
        return gradients

    assert not weightings.is_linear(own)
    assert weightings.linear(own) is own
    assert weightings.is_linear(own)
    assert weightings.is_linear(weightings.gradcam)
    assert not weightings.is_linear(weightings.gradcam_plus_plus)
