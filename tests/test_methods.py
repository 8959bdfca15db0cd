"""The methods that are more than a weighting of one gradient: values against loops, and what is special to each."""

import pickle
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgradcam import (
    CAM,
    FEM,
    KPCACAM,
    DiffGradCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    RandomCAM,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    TrainableCAM,
    explain_together,
)
from diffgradcam.heatmaps import minmax, principal_component, product
from diffgradcam.scores import log_probability, logit, logit_difference, probability
from tests import models, oracles
from tests.methods import HEADS, exact, expected_maps
from tests.untouched import untouched

CLASSES = torch.tensor([[0, 3], [2, 1], [3, 0]])
SCORELESS = {"Eigen": EigenCAM, "KPCA": KPCACAM, "FEM": FEM, "Random": RandomCAM}
ONE_PASS = {**SCORELESS, "EigenGrad": EigenGradCAM, "Shapley": ShapleyCAM, "CAM": CAM, "Refine": RefineCAM}
TRAINABLE = ("EigenGrad", "Shapley", "Refine")
EVERY = {**ONE_PASS, "Smooth++": partial(SmoothGradCAMPlusPlus, samples=2)}
scoreless = pytest.mark.parametrize("name", SCORELESS)
every = pytest.mark.parametrize("name", EVERY)


def rest(logits, classes):
    """The score of ShapleyCAM's paper: z + log p."""
    return logit(logits, classes) + log_probability(logits, classes)


SCORES = {
    "logit": (logit, oracles.logit),
    "difference": (logit_difference, oracles.difference(oracles.logsumexp)),
    "rest": (rest, lambda z, c: 2 * z[c] - torch.log(sum(torch.exp(x) for x in z))),
    "probability": (probability, lambda z, c: torch.exp(z[c]) / sum(torch.exp(x) for x in z)),
}


# --- what all of them share


@every
def test_they_leave_the_model_and_the_random_numbers_as_they_were(name):
    model = models.pooled()
    with untouched(model):
        EVERY[name](model, "relu").explain(models.images(), CLASSES)
        EVERY[name](model, "relu")(models.images(), [0, 1, 2], eigen_smooth=True)


@every
def test_they_work_frozen_and_without_gradients(name):
    model, images = models.pooled(), models.images()
    expected = EVERY[name](model, "relu").explain(images, CLASSES).maps
    assert float(expected.abs().max()) > 0
    model.requires_grad_(False)
    with torch.inference_mode():
        exact(EVERY[name](model, "relu").explain(models.images(), CLASSES).maps, expected)
    with torch.no_grad():
        exact(EVERY[name](model, "relu").explain(images, CLASSES).maps, expected)


@every
def test_they_can_be_copied_and_pickled(name):
    cam, images = EVERY[name](models.pooled(), "relu"), models.images()
    expected = cam.explain(images, CLASSES).maps
    for copy in (deepcopy(cam), pickle.loads(pickle.dumps(cam))):
        exact(copy.explain(images, CLASSES).maps, expected)


@every
def test_the_call_is_the_scaled_map_of_explain(name):
    cam, images = EVERY[name](models.pooled(), "relu"), models.images()
    expected = minmax(cam.explain(images, torch.tensor([0, 3, 1])).maps).float().numpy()
    assert expected.max() == 1
    np.testing.assert_allclose(cam(images, [0, 3, 1]), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(cam(images), minmax(cam.explain(images).maps).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRAINABLE)
def test_maps_are_those_of_explain(name):
    model, images = models.pooled(), models.images()
    with ONE_PASS[name](model, "relu") as cam:
        maps = cam.maps(model(images), CLASSES)
        exact(maps.detach(), cam.explain(images, CLASSES).maps)
    (gradient,) = torch.autograd.grad(maps.square().sum(), model.stem.weight)
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("name", ONE_PASS)
def test_zero_and_constant_activations_have_finite_maps_and_gradients(name, weight):
    model = models.pooled()
    model.features.weight.data.zero_()
    model.features.bias.data.fill_(weight)
    maps = ONE_PASS[name](model, "relu", rectify=False).explain(models.images(), CLASSES).maps
    assert maps.isfinite().all()
    if name in ("Eigen", "KPCA", "EigenGrad"):
        assert not maps.any()  # a constant has no component, not even one of rounding errors
    if name not in TRAINABLE:
        return
    with ONE_PASS[name](model, "relu", rectify=False) as cam:
        maps = cam.maps(model(models.images()), CLASSES)
    for gradient in torch.autograd.grad(maps.sum(), [model.features.weight, model.stem.weight], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@every
def test_a_dead_model_is_explained_by_zeros(name):
    model = models.pooled()
    for module in (model.features, model.head):
        module.weight.data.zero_()
        module.bias.data.zero_()
    assert not EVERY[name](model, "relu").explain(models.images(), CLASSES).maps.any()


def test_several_layers():
    model, images = models.two_sizes(), models.images()
    for method in (EigenGradCAM, ShapleyCAM, EigenCAM, partial(SmoothGradCAMPlusPlus, samples=2)):
        each = [method(model, layer).explain(images, CLASSES).maps for layer in ("features", "small")]
        resized = torch.from_numpy(np.stack([[oracles.resize(x, (6, 5)) for x in row] for row in each[1].numpy()]))
        exact(method(model, ["features", "small"]).explain(images, CLASSES).maps, (each[0] + resized) / 2)


def test_one_forward_pass_serves_all():
    model, images = models.pooled(), models.images()
    cams = [method(model, "relu") for method in EVERY.values() if method is not RefineCAM]
    for cam, together in zip(cams, explain_together(cams, images, CLASSES), strict=True):
        exact(together.maps, cam.explain(images, CLASSES).maps)


def test_further_arguments_reach_every_pass():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = models.deep()

        def forward(self, x, factor, shift=None):
            return self.inner(x * factor + shift)

    model, images = Scaled(), models.images()
    factor, shift = torch.full((3, 1, 1, 1), 2.0).double(), torch.ones(1).double()
    ours = SmoothGradCAMPlusPlus(model, "inner.relu", std=0.0).explain(images, CLASSES, factor, shift=shift)
    exact(ours.maps, GradCAMPlusPlus(model.inner, "relu").explain(2 * images + 1, CLASSES).maps)


# --- without a score


@scoreless
def test_without_a_score_every_class_and_target_has_the_same_map(name):
    model, images = models.deep(), models.images()
    cam = SCORELESS[name](model, "relu", rectify=False)
    logits, classes, maps = cam.explain(images, "all")
    assert maps.shape == (3, 5, 6, 5)
    assert torch.equal(classes, torch.arange(5).expand(3, 5))
    exact(logits, model(images).detach())
    for index in range(5):
        exact(maps[:, index], maps[:, 0])
    expected = cam(images)
    for targets in ([1, 2, 3], [lambda z: z[0] * z[1]] * 3):
        np.testing.assert_array_equal(cam(images, targets), expected)
    with pytest.raises(ValueError, match="got 2 targets for 3 images"):
        cam(images, [0, 1])


@scoreless
def test_without_a_score_the_output_may_be_anything_with_a_row_for_each_image(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    assert SCORELESS[name](model, "1")(models.images()).shape == (3, 6, 5)


@scoreless
def test_a_score_is_refused_where_there_is_none(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'score'"):
        SCORELESS[name](models.pooled(), "relu", score=logit_difference)


def test_random_weights_follow_from_seed_and_channel_alone():
    model, images = models.deep(), models.images(4)
    generator = torch.Generator().manual_seed(7)
    drawn = 2 * torch.rand(models.CHANNELS, generator=generator, dtype=torch.float64) - 1
    activations = model.relu(model.features(model.act(model.stem(images)))).detach()
    cam = RandomCAM(model, "relu", seed=7, rectify=False)
    expected = torch.einsum("c,bchw->bhw", drawn, activations)
    exact(cam.explain(images).maps, expected)
    exact(cam.explain(images).maps, expected)  # the same again
    exact(cam.explain(images[2:]).maps, expected[2:])
    assert not torch.allclose(RandomCAM(model, "relu", seed=8, rectify=False).explain(images).maps, expected, atol=0.1)


def test_random_weights_are_uniform_between_minus_one_and_one():
    weights = RandomCAM(models.pooled(), "relu").weighting(torch.ones(3, 20_000, 1))
    assert weights.shape == (1, 20_000, 1)
    assert float(weights.amin()) == pytest.approx(-1, abs=1e-3)
    assert float(weights.amax()) == pytest.approx(1, abs=1e-3)
    assert float(weights.mean()) == pytest.approx(0, abs=0.02)
    assert float(weights.square().mean()) == pytest.approx(1 / 3, abs=0.01)


KERNELS = {
    "linear": lambda x, y: x @ y,
    "poly": lambda x, y: (x @ y / 6 + 1) ** 3,
    "rbf": lambda x, y: np.exp(-((x - y) @ (x - y)) / 6),
    "sigmoid": lambda x, y: np.tanh(x @ y / 6 + 1),
    "cosine": lambda x, y: x @ y / np.sqrt((x @ x) * (y @ y)),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_pca_equals_loops(kernel):
    model, images = models.deep(), models.images()
    activations = model.relu(model.features(model.act(model.stem(images)))).detach().numpy()
    expected = [oracles.kpcacam(KERNELS[kernel])(one, None) for one in activations]
    maps = KPCACAM(model, "relu", kernel=kernel, rectify=False).explain(images).maps
    torch.testing.assert_close(maps, torch.from_numpy(np.stack(expected)), rtol=1e-8, atol=1e-8)


def test_kernel_pca_takes_a_gamma_and_the_linear_kernel_is_eigen_cam():
    model, images = models.deep(), models.images()
    activations = model.relu(model.features(model.act(model.stem(images)))).detach().numpy()
    expected = [oracles.kpcacam(lambda x, y: np.exp(-0.02 * ((x - y) @ (x - y))))(one, None) for one in activations]
    maps = KPCACAM(model, "relu", kernel="rbf", gamma=0.02, rectify=False).explain(images).maps
    torch.testing.assert_close(maps, torch.from_numpy(np.stack(expected)), rtol=1e-8, atol=1e-8)
    linear = KPCACAM(model, "relu", kernel="linear").explain(images).maps
    torch.testing.assert_close(linear, EigenCAM(model, "relu").explain(images).maps, rtol=1e-8, atol=1e-8)


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gauss' is not a kernel; expected one of \['cosine', 'linear', 'poly'"):
        KPCACAM(models.pooled(), "relu", kernel="gauss")


# --- the principal component instead of the sum


@pytest.mark.parametrize("name", ["Shapley", "Smooth++", "FEM", "Random"])
def test_eigen_smoothing_replaces_the_sum_of_what_they_weight(name):
    model, images = models.pooled(), models.images()
    cam = EVERY[name](model, "relu")
    heat = cam(images, [0, 1, 2], eigen_smooth=True)
    exact(cam.outputs, model(images).detach())
    smooth = deepcopy(cam)
    smooth.reduction = principal_component
    np.testing.assert_array_equal(heat, smooth(images, [0, 1, 2]))
    assert np.abs(heat - cam(images, [0, 1, 2])).max() > 0.01


@pytest.mark.parametrize("name", ["Eigen", "KPCA", "EigenGrad"])
def test_eigen_smoothing_leaves_what_is_a_component_already(name):
    cam, images = EVERY[name](models.pooled(), "relu"), models.images()
    np.testing.assert_array_equal(cam(images, [0, 1, 2], eigen_smooth=True), cam(images, [0, 1, 2]))


def test_eigen_smoothing_reaches_the_base_of_a_refined_cam():
    model, images = models.two_sizes(), models.images()
    cam = RefineCAM(model, ["features", "small"], base_method=GradCAM)
    layers = [GradCAM(model, layer)(images, [0, 1, 2], eigen_smooth=True) for layer in ("features", "small")]
    expected = minmax(torch.from_numpy(layers[0] * layers[1])).numpy()
    np.testing.assert_allclose(cam(images, [0, 1, 2], eigen_smooth=True), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - cam(images, [0, 1, 2])).max() > 0.01


# --- ShapleyCAM


def shapley_loops(model, images, classes, score):
    """With the whole Hessian of what follows the layer, ``(C * P, C * P)``."""
    index = [name for name, _ in model.named_children()].index("relu")
    below, above = model[: index + 1], model[index + 1 :]
    rows = []
    for image, row in zip(images, classes.tolist(), strict=True):
        activations = below(image.unsqueeze(0)).detach()
        size = activations.numel()
        maps = []
        for c in row:

            def value(flat, c=c, shape=activations.shape):
                return score(above(flat.view(shape))[0], c)

            flat = activations.flatten()
            gradient = torch.autograd.functional.jacobian(value, flat)
            hessian = torch.autograd.functional.hessian(value, flat, vectorize=True).numpy()
            product = np.array([sum(hessian[i] * flat.numpy()) for i in range(size)])
            corrected = (gradient.numpy() - product / 2).reshape(activations.shape[1:])
            maps.append(oracles.gradcam(activations[0].numpy(), corrected))
        rows.append(np.stack(maps))
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("head", ["pooled", "deep", "mean_of_squares", "max_pooled"])
def test_shapley_equals_loops_with_the_whole_hessian(head, score):
    model, images = HEADS[head](), models.images(2)
    ours, loops = SCORES[score]
    expected = shapley_loops(model, images, CLASSES[:2], loops)
    exact(ShapleyCAM(model, "relu", score=ours, rectify=False).explain(images, CLASSES[:2]).maps, expected)
    plain = GradCAM(model, "relu", score=ours, rectify=False).explain(images, CLASSES[:2]).maps
    curved = score != "logit" or head in ("deep", "mean_of_squares")
    assert torch.allclose(expected, plain, rtol=1e-6, atol=1e-9) is not curved


def test_shapley_of_a_quadratic_score_is_zero_by_hand():
    # S = sum A^2 / 2: G = A and H = 1, so G - H A / 2 = A / 2; of S = sum A the curvature vanishes.
    model = nn.Sequential(nn.Identity(), nn.Flatten())
    images = torch.tensor([[[[1.0, 3.0]]]])
    quadratic = ShapleyCAM(model, "0", score=lambda z, _c: z.square().sum(1) / 2)
    assert quadratic.explain(images, 0).maps.tolist() == [[[1.0, 3.0]]]  # mean of (0.5, 1.5) times A
    linear = ShapleyCAM(model, "0", score=lambda z, _c: z.sum(1))
    assert linear.explain(images, 0).maps.tolist() == [[[1.0, 3.0]]]
    assert GradCAM(model, "0", score=lambda z, _c: z.square().sum(1) / 2).explain(images, 0).maps.tolist() == [
        [[2.0, 6.0]]
    ]


def test_shapley_explains_a_curved_target_as_the_score_of_the_same_form():
    model, images = models.deep(), models.images()

    def target(z):
        return z.softmax(0)[2]

    ours = ShapleyCAM(model, "relu")(images, [target] * 3)
    np.testing.assert_allclose(ours, ShapleyCAM(model, "relu", score=probability)(images, [2] * 3), rtol=0, atol=1e-6)
    assert np.abs(ours - GradCAM(model, "relu")(images, [target] * 3)).max() > 1e-3


def test_shapley_of_more_classes_than_one_block_holds_is_not_taken_from_the_closed_form():
    model, images = models.pooled(classes=70), models.images(1)
    cam = ShapleyCAM(model, "relu", score=logit_difference, rectify=False)
    exact(cam.explain(images, "all").maps[:, [3, 68]], cam.explain(images, torch.tensor([[3, 68]])).maps)


def test_shapley_through_a_reshape_transform():
    model, images = models.tokens(), models.images()

    def grid(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 6, 5)

    cam = ShapleyCAM(model, "block", grid, rectify=False)
    recorded = []
    handle = model.block.register_forward_hook(lambda _m, _a, output: recorded.append(output.detach()))
    model(images)
    handle.remove()
    tokens = recorded[0]

    def above(values):
        return model.head(model.mix(values, values, values, need_weights=False)[0][:, 0])[:, 1].sum()

    gradient = torch.autograd.functional.jacobian(above, tokens)
    with sdpa_kernel(SDPBackend.MATH):
        _, product = torch.autograd.functional.hvp(above, tokens, tokens)
        maps = cam.explain(images, 1).maps
    weights = grid(gradient - product / 2).mean((2, 3), keepdim=True)
    exact(maps, (weights * grid(tokens)).sum(1))
    with pytest.raises(
        RuntimeError, match=r"no second derivative .*sdpa_kernel\(torch\.nn\.attention\.SDPBackend\.MATH"
    ):
        cam.explain(images, 1)


def test_shapley_maps_have_exact_derivatives():
    model, images = models.deep(classes=3), models.images(1).requires_grad_()
    with ShapleyCAM(model, "relu", score=logit_difference, rectify=False) as cam:
        assert torch.autograd.gradcheck(lambda x: cam.maps(model(x), torch.tensor([[0, 2]])), images, fast_mode=True)


# --- CAM


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_cam_is_the_weights_of_the_head(dims):
    model, images = models.pooled(dims=dims), models.images(dims=dims)
    activations = model.relu(model.features(model.act(model.stem(images)))).detach()
    expected = torch.einsum("kc,bc...->bk...", model.head.weight.data, activations)
    exact(CAM(model, "relu", rectify=False).explain(images, "all").maps, expected)
    exact(CAM(model, "relu").explain(images, 2).maps, expected[:, 2].relu())


def test_cam_of_a_contrast_is_grad_cam_times_the_number_of_positions():
    model, images = models.pooled(), models.images()
    cam = CAM(model, "relu", score=logit_difference, rectify=False)
    index = torch.arange(5).expand(3, 5)
    exact(cam.explain(images, "all").maps, 30 * expected_maps(model, images, index, "Diff"))


def test_cam_of_many_classes_and_of_tokens_that_are_averaged():
    model = models.pooled(classes=70)
    exact(
        CAM(model, "relu").explain(models.images(), "all").maps[:, 68],
        CAM(model, "relu").explain(models.images(), 68).maps,
    )

    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
            self.block = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.block(self.embed(x).movedim(1, 3)).mean((1, 2)))  # channels last, as of Swin

    model, images = models.seeded(Averaged), models.images()
    cam = CAM(model, "block", lambda x: x.movedim(3, 1), rectify=False)
    tokens = model.block(model.embed(images).movedim(1, 3)).detach()
    exact(cam.explain(images, 1).maps, tokens @ model.head.weight.data[1])


@pytest.mark.parametrize("ask", ["explain", "class", "target"])
@pytest.mark.parametrize(
    ("build", "layer"),
    [(models.flat, "relu"), (models.max_pooled, "relu"), (models.pooled, "features"), (models.mean_of_squares, "relu")],
)
def test_cam_refuses_a_head_that_is_not_pooled_and_linear(build, layer, ask):
    model, images = build(), models.images()
    with (
        CAM(model, layer) as cam,
        pytest.raises(
            ValueError, match=rf"not a linear layer of the mean over the positions of '{layer}' alone .* GradCAM"
        ),
    ):
        {
            "explain": lambda: cam.explain(images),
            "class": lambda: cam(images),
            "target": lambda: cam(images, [lambda z: z[0]] * 3),
        }[ask]()


def test_cam_refuses_two_layers():
    with pytest.raises(ValueError, match="positions of 'features', 'relu' alone"):
        CAM(models.pooled(), ["features", "relu"]).explain(models.images())


# --- SmoothGradCAMPlusPlus


def smooth_loops(model, images, classes, score, samples, std, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(1, *images.shape[1:], generator=generator, dtype=torch.float64)[0] for _ in range(samples)]
    rows = []
    for image, row in zip(images, classes.tolist(), strict=True):
        maps = []
        for c in row:
            clean, _ = oracles.activations_and_gradients(model, "relu", image, lambda z, c=c: score(z, c))
            spread = std * float(image.max() - image.min())
            gradients = [
                oracles.activations_and_gradients(model, "relu", image + spread * n, lambda z, c=c: score(z, c))[1][0]
                for n in noise
            ]
            result = np.zeros(clean.shape[2:])
            for k, a in enumerate(clean[0].numpy()):
                weight = 0.0
                for s in np.ndindex(a.shape):
                    values = [float(g[k][s]) for g in gradients]
                    first, second, third = (sum(v**p for v in values) / samples for p in (1, 2, 3))
                    if first > 0:
                        denominator = 2 * second + a.sum() * third
                        weight += first * second / max(denominator, second)
                for s in np.ndindex(a.shape):
                    result[s] += weight * float(a[s])
            maps.append(result)
        rows.append(np.stack(maps))
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("score", ["logit", "difference"])
@pytest.mark.parametrize("head", ["pooled", "flat", "deep"])
def test_smooth_plus_plus_equals_loops(head, score):
    model, images = HEADS[head](), models.images()
    ours, loops = SCORES[score]
    cam = SmoothGradCAMPlusPlus(model, "relu", samples=3, std=0.3, seed=5, score=ours)
    expected = smooth_loops(model, images, CLASSES, loops, 3, 0.3, 5)
    assert float(expected.max()) > 1e-3
    exact(cam.explain(images, CLASSES).maps, expected)
    exact(cam.explain(images[1:2], CLASSES[1:2]).maps, expected[1:2])  # alone as in a batch
    exact(cam.explain(images, CLASSES).maps, expected)  # the same again


@pytest.mark.parametrize("head", ["flat", "deep"])
def test_without_noise_smooth_plus_plus_is_plus_plus(head):
    model, images = HEADS[head](), models.images()
    plain = GradCAMPlusPlus(model, "relu").explain(images, CLASSES).maps
    exact(SmoothGradCAMPlusPlus(model, "relu", std=0.0, samples=2).explain(images, CLASSES).maps, plain)
    noisy = SmoothGradCAMPlusPlus(models.deep(), "relu").explain(images, CLASSES).maps
    assert not torch.allclose(noisy, GradCAMPlusPlus(models.deep(), "relu").explain(images, CLASSES).maps, rtol=0.01)


def test_smooth_plus_plus_through_a_reshape_transform_and_of_targets():
    model, images = models.tokens(), models.images()

    def grid(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 6, 5)

    smooth = SmoothGradCAMPlusPlus(model, "block", grid, std=0.0)
    exact(smooth.explain(images, "all").maps, GradCAMPlusPlus(model, "block", grid).explain(images, "all").maps)
    cam = SmoothGradCAMPlusPlus(models.deep(), "relu")
    of_targets = cam(images, [lambda z: z[2]] * 3)
    np.testing.assert_allclose(of_targets, cam(images, [2] * 3), rtol=0, atol=1e-6)


def test_smooth_plus_plus_runs_under_the_autocast_of_the_caller():
    model, images = models.deep(dtype=torch.float32), models.images(dtype=torch.float32)
    seen = []
    model.head.register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        maps = SmoothGradCAMPlusPlus(model, "relu", samples=2).explain(images).maps
    assert seen == [torch.bfloat16] * 3
    assert maps.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; expected an integer of at least 1"),
        ({"samples": 2.5}, r"samples is 2\.5; expected an integer of at least 1"),
        ({"std": -0.1}, r"std is -0\.1; expected a standard deviation, a finite number of at least 0"),
        ({"std": float("inf")}, "std is inf; expected a standard deviation"),
    ],
)
def test_smooth_plus_plus_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothGradCAMPlusPlus(models.pooled(), "relu", **options)


def test_smooth_plus_plus_refuses_inputs_that_take_no_noise():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Embedding(9, 3), models.pooled(dims=1)

        def forward(self, x):
            return self.inner(self.table(x).double().transpose(1, 2))

    cam = SmoothGradCAMPlusPlus(Embedded(), "inner.relu")
    with pytest.raises(
        TypeError,
        match=r"the image is a tensor of torch\.int64 .*; SmoothGradCAMPlusPlus makes other versions of images",
    ):
        cam.explain(torch.arange(8).view(2, 4))


# --- RefineCAM


def refined(model, images, name, size):
    factors = []
    for layer in ("features", "small"):
        maps = minmax(expected_maps(model, images, torch.tensor([0, 3, 1]), name, layer).relu()).numpy()
        factors.append(minmax(torch.from_numpy(np.stack([oracles.resize(one, size) for one in maps]))))
    return factors[0] * factors[1]


@pytest.mark.parametrize(("name", "base"), [("GradCAM", GradCAM), ("LayerCAM", LayerCAM)])
def test_refine_cam_is_the_product_of_the_scaled_maps(name, base):
    model, images = models.two_sizes(), models.images()
    cam = RefineCAM(model, ["features", "small"], base_method=base)
    expected = refined(model, images, name, (6, 5))
    assert float(expected.max()) > 0.1
    exact(cam.explain(images, torch.tensor([0, 3, 1])).maps, expected)
    np.testing.assert_allclose(cam(images, [0, 3, 1]), minmax(expected).float().numpy(), rtol=0, atol=1e-6)
    exact(cam.explain(images, CLASSES).maps[:, 1], cam.explain(images, CLASSES[:, 1]).maps)


def test_refine_cam_multiplies_grad_cam_plus_plus_and_hands_options_on():
    model, images = models.two_sizes(), models.images()
    layers = ["relu", "last"]
    parts = [GradCAMPlusPlus(model, layer, score=logit_difference)(images, [0, 1, 2]) for layer in layers]
    ours = RefineCAM(model, layers, score=logit_difference)(images, [0, 1, 2])
    np.testing.assert_allclose(ours, minmax(torch.from_numpy(parts[0] * parts[1])).numpy(), rtol=0, atol=1e-5)
    assert np.abs(ours - RefineCAM(model, layers)(images, [0, 1, 2])).max() > 0.01


def test_any_method_is_refined_by_its_fusion():
    model, images = models.two_sizes(), models.images()
    layers = ["features", "small"]
    ours = LayerCAM(model, layers, fusion=product).explain(images, CLASSES).maps
    exact(ours, RefineCAM(model, layers, base_method=LayerCAM).explain(images, CLASSES).maps)
    parts = [ScoreCAM(model, layer, progress=False)(images, [0, 1, 2]) for layer in layers]
    together = ScoreCAM(model, layers, progress=False, fusion=product)(images, [0, 1, 2])
    np.testing.assert_allclose(together, minmax(torch.from_numpy(parts[0] * parts[1])).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", ["GradCAM", ScoreCAM, DiffGradCAM, torch.nn.Module])
def test_refine_cam_takes_the_choices_of_a_class_and_nothing_else(base):
    with pytest.raises(TypeError, match=r"base_method is .* pass fusion=diffgradcam.heatmaps.product to that method"):
        RefineCAM(models.two_sizes(), "features", base_method=base)


def test_a_weighting_may_be_a_method_with_options():
    class PowerCAM(TrainableCAM):
        power = 3

        def weighting(self, _activations, gradients):
            return gradients.mean((2, 3), keepdim=True) ** self.power

    model, images = models.flat(), models.images()

    def loops(a, g):
        return sum(g[k].mean() ** 3 * a[k] for k in range(len(a)))

    expected = oracles.explain(model, "relu", images, torch.zeros(3, 1).long(), oracles.logit, loops)
    exact(PowerCAM(model, "relu").explain(images, 0).maps, expected.squeeze(1).relu())
