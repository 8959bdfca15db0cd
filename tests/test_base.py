from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from diffgradcam import (
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    EigenGradCAM,
    FinerCAM,
    GradCAM,
    HiResCAM,
    LayerCAM,
    ShapleyCAM,
    TrainableCAM,
    TrueFalseCAM,
    XGradCAM,
)
from diffgradcam.heatmaps import minmax, resize, scale_signed
from diffgradcam.scores import logit_difference, probability
from diffgradcam.utils.model_targets import (
    BinaryClassifierOutputTarget,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    RawScoresOutputTarget,
    SemanticSegmentationTarget,
)
from tests import models, oracles
from tests.methods import HEADS, METHODS, SCORELESS, WORDS, exact, expected_maps

every = pytest.mark.parametrize("name", METHODS)


# --- maps: differentiable, in the user's loop


SMOOTH = [GradCAM, partial(GradCAM, score=probability), DiffGradCAM, partial(DiffGradCAM, baseline="mean"), XGradCAM]
SMOOTH += [HiResCAM, FinerCAM, TrueFalseCAM, partial(TrueFalseCAM, false_class="mean")]
SMOOTH += [EigenGradCAM, partial(ShapleyCAM, score=logit_difference)]


def signed(method, model, layer):
    kind = method.func if isinstance(method, partial) else method
    return method(model, layer) if kind is TrueFalseCAM else method(model, layer, rectify=False)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in SCORELESS])
def test_maps_are_the_maps_of_explain(name, head):
    method, options, *_ = METHODS[name]
    model, images, classes = HEADS[head](), models.images(), torch.tensor([[0, 1], [2, 3], [3, 3]])
    with method(model, "relu", **options) as cam:
        maps = cam.maps(model(images), classes)
        exact(maps.detach(), cam.explain(images, classes).maps)
    assert maps.requires_grad


@pytest.mark.parametrize("classes", WORDS, ids=["None", "int", "B", "BN", "all"])
@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM, TrueFalseCAM])
def test_maps_take_classes_in_every_form_that_explain_takes(method, classes):
    model, images = models.flat(), models.images()
    with method(model, "relu") as cam:
        exact(cam.maps(model(images), classes).detach(), cam.explain(images, classes).maps)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_the_likeliest_classes_by_a_word(number):
    model, images = models.deep(), models.images()
    cam = GradCAM(model, "relu")
    logits, classes, maps = cam.explain(images, f"top{number}")
    assert torch.equal(classes, logits.topk(number).indices)
    assert torch.equal(maps, cam.explain(images, classes).maps)
    if number == 1:
        assert torch.equal(maps.squeeze(1), cam.explain(images).maps)


def test_of_equal_logits_the_first_comes_first():
    model = models.deep()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert GradCAM(model, "relu").explain(models.images(), "top3").classes.tolist() == [[0, 1, 2]] * 3


def test_maps_of_several_layers_are_those_of_explain():
    model, images = models.two_sizes(), models.images()
    with DiffGradCAM(model, ["small", "features"]) as cam:
        exact(cam.maps(model(images), "all").detach(), cam.explain(images, "all").maps)


@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM])
def test_maps_have_exact_derivatives_for_each_pixel(method):
    model, images = models.deep(classes=3), models.images(1).requires_grad_()
    with signed(method, model, "relu") as cam:
        assert torch.autograd.gradcheck(lambda x: cam.maps(model(x), 0), images)


@pytest.mark.parametrize("build", [models.deep, partial(models.pooled, activation=nn.Softplus)])
@pytest.mark.parametrize("method", SMOOTH)
def test_maps_have_exact_first_and_second_derivatives_for_input_and_parameters(method, build):
    model, images = build(classes=3), models.images(2).requires_grad_()
    names, parameters = zip(*model.named_parameters(), strict=True)
    classes = torch.tensor([[0, 2], [1, 0]])
    with signed(method, model, "relu") as cam:

        def maps(x, *values):
            return cam.maps(functional_call(model, dict(zip(names, values, strict=True)), x), classes)

        assert torch.autograd.gradcheck(maps, (images, *parameters), fast_mode=True)
        assert torch.autograd.gradgradcheck(maps, (images, *parameters), fast_mode=True)


def reached(model, maps):
    """Names of the parameters that a loss on the maps reaches."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(maps.square().sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and bool(gradient.any())}


def test_gradients_reach_every_parameter_that_the_map_depends_on():
    below = {"stem.weight", "stem.bias", "features.weight", "features.bias"}
    images, model = models.images(), models.pooled()
    with GradCAM(model, "relu") as cam:
        # w_c . A: the bias of the head is in no map, everything else is in every map.
        assert reached(model, cam.maps(model(images))) == below | {"head.weight"}
    with DiffGradCAM(model, "relu") as cam:
        # The weights of log-sum-exp are probabilities, which the bias moves.
        assert reached(model, cam.maps(model(images))) == below | {"head.weight", "head.bias"}
    model = models.deep()
    with GradCAM(model, "stem") as cam:
        above = {name for name, _ in model.named_parameters()} - {"head.bias"}
        assert reached(model, cam.maps(model(images))) == above


def test_a_saliency_loss_beside_cross_entropy_trains():
    model, images = models.pooled(dtype=torch.float32), models.images(8, dtype=torch.float32)
    labels, human = torch.arange(8) % 5, torch.zeros(8, 6, 5)
    human[:, :3] = 1
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    with GradCAM(model, "relu", rectify=False) as cam:
        for _ in range(15):
            logits = model(images)
            saliency = F.mse_loss(minmax(cam.maps(logits, labels)), human)
            optimizer.zero_grad()
            (F.cross_entropy(logits, labels) + saliency).backward()
            optimizer.step()
            losses.append(float(saliency.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_maps_can_be_asked_for_again_and_again_before_backward():
    model, images = models.deep(), models.images()
    with DiffGradCAM(model, "relu") as cam:
        logits = model(images)
        first, second = cam.maps(logits, 0), cam.maps(logits, 0)
        both = cam.maps(logits, torch.tensor([[0, 1]] * 3))
        exact(first, second)
        exact(both[:, 0], first)
        once = torch.autograd.grad(first.sum(), model.stem.weight, retain_graph=True)[0]
        summed = torch.autograd.grad(first.sum() + second.sum() + both[:, 0].sum(), model.stem.weight)[0]
        exact(summed, 3 * once)


def test_each_logits_finds_its_own_activations_among_several_passes():
    model = models.flat()
    batches = [models.images(n, seed=n) for n in (2, 3, 1)]
    with GradCAM(model, "relu") as cam:
        passes = [model(images) for images in batches]
        for images, logits in reversed(list(zip(batches, passes, strict=True))):
            exact(cam.maps(logits, "all").detach(), cam.explain(images, "all").maps)


def test_two_cams_and_two_layers_record_one_pass():
    model, images = models.two_sizes(), models.images()
    with GradCAM(model, "features") as one, DiffGradCAM(model, "small") as other:
        logits = model(images)
        loss = one.maps(logits).sum() + other.maps(logits).sum()
        exact(one.maps(logits).detach(), one.explain(images).maps)
        exact(other.maps(logits).detach(), other.explain(images).maps)
        loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_logits_may_be_cast_sliced_and_scaled_on_the_way():
    model, images = models.flat(dtype=torch.float32), models.images(dtype=torch.float32)
    with DiffGradCAM(model, "relu") as cam:
        logits = model(images)
        plain = cam.maps(logits, 1).detach()
        torch.testing.assert_close(cam.maps(logits.double(), 1).detach().float(), plain)
        exact(cam.maps(logits[:, :], 1).detach(), plain)
        # Of the first two classes alone, the other one is all there is to contrast with.
        against = DiffGradCAM(model, "relu", baseline=0).explain(images, 1).maps
        torch.testing.assert_close(cam.maps(logits[:, :2], 1).detach(), against)


def test_a_part_of_the_batch_is_refused_with_the_way_to_do_it():
    model, images = models.flat(), models.images()
    with GradCAM(model, "relu") as cam:
        logits = model(images)
        with pytest.raises(
            ValueError,
            match=r"shape \(3, .* for logits of shape \(2, 5\); .* as the model returned",
        ):
            cam.maps(logits[:2], 1)
        exact(cam.maps(logits, 1)[:2].detach(), cam.explain(images[:2], 1).maps)


# --- the drop-in call


def heat_map(maps, size, scale=minmax):
    return scale(resize(scale(maps), size)).float().numpy()


@pytest.mark.parametrize("dims", [1, 2, 3])
@every
def test_the_call_gives_float32_heat_maps_at_input_size(name, dims):
    method, options, *_ = METHODS[name]
    model, images = models.flat(dims=dims), models.images(dims=dims)
    classes = [0, 3, 1]
    cam = method(model, "relu", **options)
    heat = cam(input_tensor=images, targets=[ClassifierOutputTarget(c) for c in classes])
    assert isinstance(heat, np.ndarray)
    assert heat.dtype == np.float32
    assert heat.shape == (3, *models.SIZE[dims])
    assert heat.min() >= 0
    assert heat.max() <= 1
    maps = expected_maps(model, images, torch.tensor(classes), name).relu()
    np.testing.assert_allclose(heat, heat_map(maps, models.SIZE[dims]), rtol=0, atol=1e-6)
    exact(cam.outputs, model(images).detach())


def test_the_call_resizes_to_the_input():
    model, images = models.two_sizes(), models.images()
    with GradCAM(model=model, target_layers=[model.small]) as cam:
        heat = cam(input_tensor=images)
    small = expected_maps(model, images, model(images).argmax(1), "GradCAM", "small").relu()
    assert small.shape == (3, 3, 2)
    assert heat.shape == (3, 6, 5)
    np.testing.assert_allclose(heat, heat_map(small, (6, 5)), rtol=0, atol=1e-6)
    resized = torch.from_numpy(np.stack([oracles.resize(one, (6, 5)) for one in minmax(small).numpy()]))
    np.testing.assert_allclose(heat, minmax(resized).float().numpy(), rtol=0, atol=1e-6)


def test_the_call_averages_scaled_maps_of_several_layers():
    model, images = models.two_sizes(), models.images()
    heat = GradCAM(model, ["features", "small"])(images)
    scaled = [
        minmax(expected_maps(model, images, model(images).argmax(1), "GradCAM", n).relu())
        for n in ("features", "small")
    ]
    expected = minmax((scaled[0] + resize(scaled[1], (6, 5))) / 2)
    np.testing.assert_allclose(heat, expected.float().numpy(), rtol=0, atol=1e-6)


def test_signed_heat_maps_keep_zero_at_zero():
    model, images = models.flat(), models.images()
    heat = GradCAM(model, "relu", rectify=False)(images)
    maps = expected_maps(model, images, model(images).argmax(1), "GradCAM")
    np.testing.assert_allclose(heat, scale_signed(maps).float().numpy(), rtol=0, atol=1e-6)
    assert heat.min() < 0 < heat.max()
    np.testing.assert_array_equal(np.abs(heat).max((1, 2)), 1)
    assert np.array_equal(np.sign(heat), maps.sign().numpy())


def test_a_map_without_evidence_is_zero_and_not_nan():
    model = models.pooled()
    model.head.weight.data = -model.head.weight.data.abs()  # every channel speaks against every class
    heat = GradCAM(model, "relu")(models.images())
    assert not heat.any()


class Foreign:
    """Stands for pytorch-grad-cam's target, which is known by its name."""

    class ClassifierOutputTarget:
        def __init__(self, category):
            self.category = category

        def __call__(self, model_output):
            return model_output[self.category]


TARGETS = {
    "ours": ClassifierOutputTarget,
    "foreign": Foreign.ClassifierOutputTarget,
    "int": int,
    "numpy": np.int64,
}


@pytest.mark.parametrize("kind", TARGETS)
@every
def test_a_target_that_names_a_class_is_explained_by_the_score_of_the_cam(name, kind):
    method, options, *_ = METHODS[name]
    model, images = models.flat(), models.images()
    classes = torch.tensor([0, 3, 1])
    cam = method(model, "relu", **options)
    heat = cam(images, [TARGETS[kind](c) for c in classes.tolist()])
    np.testing.assert_allclose(heat, minmax(cam.explain(images, classes).maps).float().numpy(), rtol=0, atol=1e-6)


def test_a_foreign_class_target_does_not_turn_diffgradcam_into_grad_cam():
    model, images = models.flat(), models.images()
    targets = [Foreign.ClassifierOutputTarget(c) for c in (0, 3, 1)]
    assert np.abs(DiffGradCAM(model, "relu")(images, targets) - GradCAM(model, "relu")(images, targets)).max() > 0.05


@pytest.mark.parametrize("method", [DiffGradCAM, DiffGradCAMPlusPlus, FinerCAM, TrueFalseCAM])
@pytest.mark.parametrize("target", [ClassifierOutputSoftmaxTarget(1), RawScoresOutputTarget(), lambda z: z[1]])
def test_a_target_that_is_a_score_of_its_own_is_refused_by_a_contrast(method, target):
    with pytest.raises(
        ValueError, match=r"is a score of its own, .* explains another score; give ClassifierOutputTarget"
    ):
        method(models.flat(), "relu")(models.images(), [target] * 3)


def of_scores(model, images, scores, weighting=oracles.gradcam):
    """Heat maps of one score of the output for each image."""
    maps = []
    for image, score in zip(images, scores, strict=True):
        activations, gradients = oracles.activations_and_gradients(model, "relu", image, score)
        maps.append(torch.from_numpy(weighting(activations[0].numpy(), gradients[0].numpy())))
    return minmax(torch.stack(maps).relu()).float().numpy()


def test_targets_that_are_scores_of_their_own_are_explained_by_grad_cam():
    model, images = models.flat(), models.images()
    targets = [ClassifierOutputSoftmaxTarget(0), lambda z: z[1] * z[2], ClassifierOutputTarget(3)]
    expected = of_scores(model, images, [lambda z: z.exp()[0] / z.exp().sum(), lambda z: z[1] * z[2], lambda z: z[3]])
    np.testing.assert_allclose(GradCAM(model, "relu")(images, targets), expected, rtol=0, atol=1e-6)
    mixed = GradCAM(model, "relu")(images, [*targets[:2], 3])
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)


def test_targets_of_a_single_output():
    model, images = models.flat(classes=1), models.images()
    targets = [BinaryClassifierOutputTarget(1), BinaryClassifierOutputTarget(0), RawScoresOutputTarget()]
    expected = of_scores(model, images, [lambda z: z[0], lambda z: -z[0], lambda z: z[0]])
    np.testing.assert_allclose(GradCAM(model, "relu")(images, targets), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("as_mask", [torch.from_numpy, np.asarray])
def test_targets_of_a_segmentation(as_mask):
    layers = [*models.backbone(), ("classify", nn.Conv2d(models.CHANNELS, 4, 3))]
    model = models.seeded(lambda: nn.Sequential(OrderedDict(layers)))
    images = models.images(2)
    mask = np.zeros((4, 3), dtype=np.float32)
    mask[1:3, :2] = 1
    targets = [SemanticSegmentationTarget(2, as_mask(mask)), SemanticSegmentationTarget(0, as_mask(mask))]
    expected = of_scores(model, images, [lambda z: z[2, 1:3, :2].sum(), lambda z: z[0, 1:3, :2].sum()])
    np.testing.assert_allclose(GradCAM(model, "relu")(images, targets), expected, rtol=0, atol=1e-6)


# --- extending it


def test_a_weighting_of_a_users_own():
    class AbsoluteCAM(TrainableCAM):
        @staticmethod
        def weighting(_activations, gradients):
            return gradients.abs().amax(tuple(range(2, gradients.ndim)), keepdim=True)

    model, images = models.flat(), models.images()

    def loops(a, g):
        return sum(np.abs(g[k]).max() * a[k] for k in range(len(a)))

    expected = oracles.explain(model, "relu", images, torch.arange(5).expand(3, 5), oracles.logit, loops)
    exact(AbsoluteCAM(model, "relu").explain(images, "all").maps, expected.relu())
    assert AbsoluteCAM(model, "relu")(images).shape == (3, 6, 5)
    with AbsoluteCAM(model, "relu", score=logit_difference) as cam:
        assert cam.maps(model(images)).requires_grad


def test_a_score_of_a_users_own():
    def entropy(logits, _classes):
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)

    def loops(z, _c):
        p = [z[j].exp() / sum(z[i].exp() for i in range(len(z))) for j in range(len(z))]
        return -sum(x * x.log() for x in p)

    model, images = models.flat(), models.images()
    expected = oracles.explain(model, "relu", images, torch.zeros(3, 1).long(), loops, oracles.layercam)
    exact(LayerCAM(model, "relu", score=entropy).explain(images).maps, expected.squeeze(1).relu())
