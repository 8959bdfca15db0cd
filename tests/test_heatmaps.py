import math
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgradcam import heatmaps
from tests import oracles

SHAPES = [(2, 7), (2, 4, 3), (2, 3, 2, 4)]
REDUCING = [heatmaps.minmax, heatmaps.scale_signed, heatmaps.entropy]


@st.composite
def a_map(draw, least=-1e3):
    """One float64 map ``(1, h, w)``."""
    h, w = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    value = st.floats(least, 1e3, allow_subnormal=False)
    return torch.tensor(draw(st.lists(value, min_size=h * w, max_size=h * w)), dtype=torch.float64).view(1, h, w)


def test_rectify_drops_what_is_negative():
    assert heatmaps.rectify(torch.tensor([[-1.0, 0.0, 2.0]])).tolist() == [[0.0, 0.0, 2.0]]


def test_minmax_takes_each_map_for_itself():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[-10.0, 0.0], [10.0, 10.0]]])
    assert heatmaps.minmax(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [1.0, 1.0]]]


def test_scale_signed_keeps_zero_at_zero():
    maps = torch.tensor([[[-4.0, 0.0], [2.0, 1.0]], [[0.0, 0.5], [0.25, 0.0]]])
    assert heatmaps.scale_signed(maps).tolist() == [[[-1.0, 0.0], [0.5, 0.25]], [[0.0, 1.0], [0.5, 0.0]]]


@given(a_map(), st.floats(0.01, 100), st.floats(-100, 100))
def test_minmax_is_in_range_and_does_not_see_scale_or_offset(maps, scale, offset):
    scaled = heatmaps.minmax(maps)
    low, high = maps.min(), maps.max()
    assert float(scaled.min()) == 0.0
    assert float(scaled.max()) == (1.0 if high > low else 0.0)
    if high - low > 1e-3:
        torch.testing.assert_close(heatmaps.minmax(scale * maps + offset), scaled, rtol=0, atol=1e-6)


@given(a_map(), st.floats(0.01, 100))
def test_scale_signed_is_in_range_and_keeps_signs(maps, scale):
    scaled = heatmaps.scale_signed(maps)
    assert float(scaled.abs().max()) == (1.0 if bool(maps.any()) else 0.0)
    assert torch.equal(scaled.sign(), maps.sign())
    torch.testing.assert_close(heatmaps.scale_signed(scale * maps), scaled)
    torch.testing.assert_close(heatmaps.scale_signed(-maps), -scaled)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 7), (16,)), ((2, 7), (3,)), ((2, 4, 3), (9, 11)), ((2, 4, 3), (2, 8)), ((2, 3, 2, 4), (5, 4, 9))],
)
def test_resize_equals_loops(shape, size):
    maps = torch.randn(shape).double()
    expected = np.stack([oracles.resize(one, size) for one in maps.numpy()])
    torch.testing.assert_close(heatmaps.resize(maps, size), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def test_resize_equals_opencv():
    one = torch.rand(7, 5)
    expected = torch.from_numpy(cv2.resize(one.numpy(), (20, 33)))
    torch.testing.assert_close(heatmaps.resize(one.unsqueeze(0), (33, 20))[0], expected, rtol=0, atol=1e-6)


def test_resize_to_the_same_size_changes_nothing():
    maps = torch.randn(2, 4, 3)
    assert heatmaps.resize(maps, (4, 3)) is maps
    assert heatmaps.resize(maps, maps.shape[1:]) is maps


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 4, 3), (8,)), ((2, 7), (8, 8)), ((2,), ()), ((2, 2, 2, 2, 2), (3, 3, 3, 3))]
)
def test_resize_says_what_it_can_resize(shape, size):
    with pytest.raises(ValueError, match=r"cannot resize maps with spatial size .* expected one to three spatial dim"):
        heatmaps.resize(torch.ones(shape), size)


def test_resize_needs_floating_point_maps_with_positions():
    message = r"cannot resize maps of torch\.{} and spatial size \({}\) to \({}\); expected floating-point maps"
    for maps, size, named in (
        (torch.ones(2, 4, 3, dtype=torch.int64), (2, 2), ("int64", "4, 3", "2, 2")),
        (torch.ones(2, 4, 0), (2, 2), ("float32", "4, 0", "2, 2")),
        (torch.ones(2, 4, 3), (2, 0), ("float32", "4, 3", "2, 0")),
    ):
        with pytest.raises(ValueError, match=message.format(*named)):
            heatmaps.resize(maps, size)
    assert heatmaps.resize(torch.full((1, 1), 3.0), (2,)).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("maps", [torch.ones(3), torch.ones(2, 0), torch.ones(2, 3, dtype=torch.bool)])
@pytest.mark.parametrize("function", REDUCING)
def test_maps_are_numbers_with_positions(function, maps):
    named = rf"torch\.{str(maps.dtype)[6:]} and of shape \({', '.join(map(str, maps.shape))},?\)"
    with pytest.raises(ValueError, match=rf"got maps of {named}; expected numbers \(B, \*S\), with at least one"):
        function(maps)


def test_rectify_refuses_bool():
    with pytest.raises(ValueError, match=r"^got maps of torch\.bool; expected numbers$"):
        heatmaps.rectify(torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("fusion", [heatmaps.average, heatmaps.product])
def test_a_fusion_needs_maps(fusion):
    with pytest.raises(ValueError, match=r"^there are no maps to combine; expected the maps of at least one layer$"):
        fusion([], (2, 2))


def test_entropy_of_hand_computed_maps():
    maps = torch.zeros(3, 7, 7, dtype=torch.float64)
    maps[0].flatten()[:28] = 0.7  # any height
    maps[1, 2, 3] = 5
    maps[2, 0, :2] = torch.tensor([1.0, 3.0])
    expected = [math.log(28), 0.0, 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    assert heatmaps.entropy(maps).tolist() == pytest.approx(expected, rel=1e-12)


@given(a_map(least=0), st.floats(0.01, 100))
def test_entropy_is_in_range_and_does_not_see_scale(maps, scale):
    entropy = float(heatmaps.entropy(maps))
    assert -1e-12 <= entropy <= math.log(maps.numel()) + 1e-12
    assert float(heatmaps.entropy(scale * maps)) == pytest.approx(entropy, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", REDUCING)
def test_zero_and_constant_maps_have_finite_values_and_gradients(function, shape, value):
    maps = torch.full(shape, value, requires_grad=True)
    result = function(maps)
    (gradient,) = torch.autograd.grad(result.sum(), maps)
    assert result.isfinite().all()
    assert gradient.isfinite().all()


def test_what_becomes_of_zero_and_constant_maps():
    zero, constant = torch.zeros(1, 2, 2), torch.full((1, 2, 2), -3.0)
    assert heatmaps.minmax(zero).tolist() == heatmaps.minmax(constant).tolist() == zero.tolist()
    assert heatmaps.scale_signed(zero).tolist() == zero.tolist()
    assert heatmaps.scale_signed(constant).tolist() == (constant / 3).tolist()
    assert heatmaps.entropy(zero).tolist() == [0.0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", REDUCING)
def test_gradcheck(function, shape):
    maps = (torch.rand(shape).double() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(function, maps)
    assert torch.autograd.gradgradcheck(function, maps, fast_mode=True)


@pytest.mark.parametrize("function", REDUCING)
def test_no_maps_at_all(function):
    assert len(function(torch.ones(0, 3, 3))) == 0


@pytest.mark.parametrize(
    "shape", [(8, 6, 7), (8, 6, 4, 3), (8, 9, 2, 3), (8, 3, 4, 5), (8, 3, 3, 2, 2), (1, 1, 4, 4), (1, 3, 1, 1)]
)
def test_the_principal_component_explains_the_most_variance_and_agrees_with_the_sum(shape):
    channels = torch.randn(shape).double()
    maps = heatmaps.principal_component(channels)
    assert maps.shape == (shape[0], *shape[2:])
    for one, map_ in zip(channels.flatten(2), maps.flatten(1), strict=True):
        centred = one - one.mean(1, keepdim=True)
        largest = torch.linalg.eigvalsh(centred @ centred.T)[-1]
        torch.testing.assert_close(map_.square().sum(), largest, rtol=1e-10, atol=1e-20)
        # An eigenvector of the positions: applying their covariance stretches it by the eigenvalue.
        torch.testing.assert_close(centred.T @ (centred @ map_), largest * map_, rtol=1e-8, atol=1e-10)
        assert float((map_ * centred.sum(0)).sum()) >= 0


def test_the_principal_component_of_zeros_is_zero():
    assert heatmaps.principal_component(torch.zeros(2, 3, 4, 4)).tolist() == torch.zeros(2, 4, 4).tolist()


def test_the_sign_of_the_principal_component_is_that_of_the_sum_or_else_of_the_largest():
    ramp = torch.tensor([0.0, 1.0, 5.0]).double()
    together = torch.stack([2 * ramp, ramp, -ramp]).view(1, 3, 1, 3)  # the sum is 2 * ramp
    assert heatmaps.principal_component(together)[0, 0, 2] > 0
    assert heatmaps.principal_component(-together)[0, 0, 2] < 0
    cancelled = torch.stack([ramp, -ramp]).view(1, 2, 1, 3)  # the sum is 0: the last position is farthest from the mean
    exact = 2**0.5 * (ramp - 2)
    nearly = cancelled * torch.tensor([[[1.0]], [[1 - 1e-12]]]).double()
    nearer = cancelled * torch.tensor([[[1 - 1e-12]], [[1.0]]]).double()
    channels = torch.cat([cancelled, -cancelled, cancelled.flip(1), nearly, nearer, 100 * cancelled, -100 * cancelled])
    scales = torch.tensor([[[1.0]]] * 5 + [[[100.0]]] * 2).double()
    torch.testing.assert_close(heatmaps.principal_component(channels), scales * exact, rtol=1e-10, atol=1e-8)


def test_the_peak_component_is_the_principal_one_with_its_largest_magnitude_positive():
    channels = torch.randn(6, 4, 5, 3, dtype=torch.float64)
    channels[:, :, 0, 0] -= 10  # where every channel falls most
    plain, peaked = heatmaps.principal_component(channels), heatmaps.peak_component(channels)
    torch.testing.assert_close(peaked, -plain)
    assert (peaked.flatten(1).argmax(1) == 0).all()
    torch.testing.assert_close(heatmaps.peak_component(-channels), peaked)
    assert heatmaps.peak_component(torch.zeros(2, 3, 4, 4)).tolist() == torch.zeros(2, 4, 4).tolist()


COMPONENTS = [
    heatmaps.principal_component,
    *(
        partial(heatmaps.kernel_principal_component, kernel=kernel)
        for kernel in ("linear", "poly", "rbf", "sigmoid", "cosine")
    ),
    heatmaps.peak_component,
]


@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 5, 3), (2, 3, 2, 3), (1, 2, 2, 2, 2)])
@pytest.mark.parametrize("function", COMPONENTS)
def test_components_have_exact_derivatives_with_dead_channels_too(function, shape):
    channels = torch.randn(shape).double()
    assert torch.autograd.gradcheck(function, channels.clone().requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, channels.clone().requires_grad_(), fast_mode=True)

    def with_dead(alive):  # three equal eigenvalues of 0, at which the derivative of all eigenvectors is 0 / 0
        return function(torch.cat([alive, torch.zeros_like(alive), torch.ones_like(alive)], 1))

    assert torch.autograd.gradcheck(with_dead, channels.clone().requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(with_dead, channels.clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-30, 1e10])
@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 9, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("function", COMPONENTS)
def test_constant_channels_have_no_component_and_a_finite_gradient(function, shape, value, dtype):
    channels = torch.full(shape, value, dtype=dtype, requires_grad=True)
    maps = function(channels)
    assert not maps.any()
    (gradient,) = torch.autograd.grad(maps.sum(), channels)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("function", COMPONENTS)
def test_two_directions_of_equal_variance_have_a_finite_gradient(function):
    channels = torch.eye(4).double().view(1, 4, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(function(channels).square().sum(), channels)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3)])
@pytest.mark.parametrize("function", COMPONENTS)
def test_a_tie_fixes_the_direction_of_its_own_map_alone(function, shape):
    def gradient(channels, weights):
        channels = channels.clone().requires_grad_()
        return torch.autograd.grad((function(channels) * weights).sum(), channels)[0]

    channels, weights = torch.randn(shape).double(), torch.randn(shape[0], shape[2]).double()
    channels = torch.cat([1e-6 * channels[:1], channels[1:], torch.zeros_like(channels[:1])])  # all zero: all tied
    weights = torch.cat([weights, weights[:1]])
    alone = [gradient(one.unsqueeze(0), weight) for one, weight in zip(channels, weights, strict=True)]
    torch.testing.assert_close(gradient(channels, weights), torch.cat(alone), rtol=1e-8, atol=0)


def test_the_gradient_at_a_tie_takes_the_direction_as_fixed():
    signs = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]).double()
    channels = (signs * torch.tensor([[2.0], [2.0], [1.0]])).unsqueeze(0).requires_grad_()  # variances 16, 16 and 4
    weights = torch.tensor([[3.0, 1.0, 0.0, 0.0]]).double()
    maps = heatmaps.principal_component(channels)
    (gradient,) = torch.autograd.grad((maps * weights).sum(), channels)
    direction = maps.detach() @ channels.detach()[0].T / 16  # the map is v . A, and v . A A^T is 16 v
    torch.testing.assert_close(gradient[0], direction.T * (weights - weights.mean()), rtol=1e-12, atol=1e-12)


KERNELS = {
    "linear": lambda x, y: x @ y,
    "poly": lambda x, y: (0.3 * x @ y + 1) ** 3,
    "rbf": lambda x, y: math.exp(-0.3 * ((x - y) @ (x - y))),
    "sigmoid": lambda x, y: math.tanh(0.3 * x @ y + 1),
    "cosine": lambda x, y: x @ y / math.sqrt((x @ x) * (y @ y)) if x.any() and y.any() else 0.0,
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_components_equal_loops(kernel):
    channels = torch.randn(3, 4, 5).double()
    channels[0, :, 0] = channels[0, :, 1:].mean(1)  # a position at the mean, where the centred channels are 0
    channels[1] *= 1e-3
    expected = np.stack([oracles.kpcacam(KERNELS[kernel])(one, None) for one in channels.numpy()])
    maps = heatmaps.kernel_principal_component(channels, kernel, gamma=0.3)
    torch.testing.assert_close(maps, torch.from_numpy(expected), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("count", [1, 4])
def test_the_kernel_is_a_sigmoid_of_one_over_the_number_of_channels(count):
    channels = torch.randn(2, count, 5).double()
    expected = torch.from_numpy(np.stack([oracles.kpcacam()(one, None) for one in channels.numpy()]))
    torch.testing.assert_close(heatmaps.kernel_principal_component(channels), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("function", [heatmaps.principal_component, COMPONENTS[1]])
@pytest.mark.parametrize("shape", [(1, 2, 6), (1, 6, 4)])
def test_linear_components_scale_with_the_channels(function, shape):
    channels, weights = torch.randn(shape).double().requires_grad_(), torch.randn(shape[2]).double()
    maps = function(channels)
    (gradient,) = torch.autograd.grad((maps * weights).sum(), channels)
    scales = torch.tensor([1e9, 1e-9, -1e9, -1e-9], dtype=torch.float64)  # in one batch: none may look at another
    scaled = (scales.view(-1, 1, 1) * channels).detach().requires_grad_()
    maps_of_scaled = function(scaled)
    torch.testing.assert_close(maps_of_scaled, scales.view(-1, 1) * maps, rtol=1e-8, atol=0)
    (of_scaled,) = torch.autograd.grad((maps_of_scaled * weights).sum(), scaled)
    torch.testing.assert_close(of_scaled, gradient.expand_as(of_scaled), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1, 100])
def test_a_kernel_matrix_without_a_positive_eigenvalue_gives_zeros(scale):
    # About 1 - 3e-3 x.y, and -(x.y)^3 for large x: negative definite once it is centred, since four points in six
    # dimensions are independent. Rounding leaves some eigenvalues a little above 0.
    channels = scale * torch.randn(1, 6, 4).double()
    assert not heatmaps.kernel_principal_component(channels, "poly", gamma=-1e-3 if scale == 1 else -1.0).any()


@pytest.mark.parametrize(
    ("channels", "named"),
    [
        (torch.ones(2, 3), r"float32 and of shape \(2, 3\)"),
        (torch.ones(2, 0, 3), r"float32 and of shape \(2, 0, 3\)"),
        (torch.ones(2, 3, 0), r"float32 and of shape \(2, 3, 0\)"),
        (torch.ones(2, 3, 4).half(), r"float16 and of shape \(2, 3, 4\)"),
    ],
)
@pytest.mark.parametrize("function", [heatmaps.principal_component, heatmaps.kernel_principal_component])
def test_components_need_channels_and_positions_in_full_precision(function, channels, named):
    with pytest.raises(ValueError, match=rf"got channels of torch\.{named}; expected float32 or float64 \(B, C, \*S\)"):
        function(channels)


def test_the_component_of_nan_is_refused():
    with pytest.raises(ValueError, match="a principal component of NaN or infinite values was asked for"):
        heatmaps.principal_component(torch.full((1, 2, 3), math.nan))


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    known = r"\['cosine', 'linear', 'poly', 'rbf', 'sigmoid'\]"
    with pytest.raises(ValueError, match=rf"'gauss' is not a kernel; expected one of {known}"):
        heatmaps.kernel_principal_component(torch.ones(1, 2, 3), "gauss")


def test_fusions():
    large, small = torch.tensor([[[0.0, 2.0, 4.0]]]), torch.tensor([[[3.0]]])
    assert heatmaps.average([large, small], (1, 3)).tolist() == [[[1.5, 2.5, 3.5]]]
    assert heatmaps.product([large, small], (1, 3)).tolist() == [[[0.0, 0.0, 0.0]]]  # a constant marks nothing
    assert heatmaps.product([large, large.flip(2)], (1, 3)).tolist() == [[[0.0, 0.25, 0.0]]]
    resized = torch.from_numpy(oracles.resize(np.array([[0.0, 1.0]]), (1, 3)))
    expected = torch.tensor([[0.0, 0.5, 1.0]]).double() * heatmaps.minmax(resized)
    torch.testing.assert_close(
        heatmaps.product([large.double(), torch.tensor([[[7.0, 9.0]]]).double()], (1, 3))[0], expected
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
def test_a_constant_map_stays_constant_when_it_is_resized(shape, dtype):
    values = torch.randn(200, 1, 1, dtype=dtype, generator=torch.Generator().manual_seed(0))
    maps = values.expand(-1, *shape).clone().requires_grad_()
    resized = heatmaps.resize(maps, (7, 6))
    assert torch.equal(resized, values.expand(-1, 7, 6))
    assert not heatmaps.minmax(resized).any()
    (gradient,) = torch.autograd.grad(resized.sum(), maps)
    assert float(gradient.sum()) == pytest.approx(200 * 42, rel=1e-5)  # as that of any other map
    varying = torch.randn(4, 3, 2, dtype=dtype)
    expected = torch.nn.functional.interpolate(varying[None], (7, 6), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(heatmaps.resize(varying, (7, 6)), expected)
    endless = torch.full((1, 2, 2), torch.inf, dtype=dtype)
    assert bool((~heatmaps.resize(endless, (4, 4)).isfinite()).all())
