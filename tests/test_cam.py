from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffgradcam import DiffGradCAM, DiffGradCAMPlusPlus, FinerCAM, GradCAM, GradCAMPlusPlus, TrueFalseCAM, layer_input
from diffgradcam.scores import log_probability, probability
from diffgradcam.tokens import vit_reshape_transform
from tests import models, oracles
from tests.methods import CONTRASTS, HEADS, METHODS, SCORELESS, WORDS, exact, expected_maps, lowest

every = pytest.mark.parametrize("name", METHODS)


# --- every method, head, form of classes


@pytest.mark.parametrize("head", HEADS)
@every
def test_explain_equals_loops(name, head):
    model, images = HEADS[head](), models.images()
    classes = torch.tensor([[0, 3], [2, 1], [3, 0]])
    method, options, *_ = METHODS[name]
    expected = expected_maps(model, images, classes, name)
    assert float(expected.abs().max()) > 1e-3  # a map of zeros would equal anything that vanishes
    exact(method(model, "relu", **options).explain(images, classes).maps, expected.relu())
    signed = method(model, "relu", **options)
    signed.rectify = False
    exact(signed.explain(images, classes).maps, expected)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("head", ["pooled", "flat", "max_pooled"])
@every
def test_explain_equals_loops_for_signals_and_volumes(name, head, dims):
    model, images = HEADS[head](dims=dims), models.images(dims=dims)
    classes = torch.tensor([[0, 3], [2, 1], [3, 0]])
    method, options, *_ = METHODS[name]
    exact(
        method(model, "relu", **options).explain(images, classes).maps,
        expected_maps(model, images, classes, name).relu(),
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("classes", WORDS, ids=["None", "int", "B", "BN", "all"])
@pytest.mark.parametrize("name", ["GradCAM", "Diff", "HiRes of Diff", "GradCAM++"])
def test_every_form_of_classes_equals_loops(name, classes, head):
    model, images = HEADS[head](), models.images()
    method, options, *_ = METHODS[name]
    logits, index, maps = method(model, "relu", **options).explain(images, classes)
    exact(logits, model(images).detach())
    wanted = {
        type(None): lambda: logits.argmax(1),
        int: lambda: torch.full((3,), 2),
        str: lambda: torch.arange(5).expand(3, 5),
        torch.Tensor: lambda: classes,
    }[type(classes)]()
    assert torch.equal(index, wanted)
    assert maps.shape == (*wanted.shape, 6, 5)
    exact(maps, expected_maps(model, images, wanted, name).relu())


@pytest.mark.parametrize("name", [name for name in METHODS if "++" not in name])
def test_tokens_through_reshape_transform_equal_loops(name):
    model, images, classes = models.tokens(), models.images(), torch.tensor([[0, 3], [2, 1], [3, 0]])
    grid = partial(vit_reshape_transform, height=6, width=5)
    method, options, *_ = METHODS[name]
    maps = method(model, "block", grid, **options).explain(images, classes).maps
    exact(maps, expected_maps(model, images, classes, name, "block", grid=grid).relu())


@pytest.mark.parametrize(("layer", "before"), [("flatten", "relu"), ("relu", "features")])
def test_what_enters_a_layer_is_what_leaves_the_one_before(layer, before):
    model, images = models.flat(), models.images()
    maps = GradCAM(model, layer_input(layer), rectify=False).explain(images, "all").maps
    exact(maps, expected_maps(model, images, torch.arange(5).expand(3, 5), "GradCAM", before))


# --- layers


@pytest.mark.parametrize("name", ["GradCAM", "Diff", "LayerCAM"])
def test_maps_of_several_layers_are_resized_to_the_largest_and_averaged(name):
    model, images = models.two_sizes(), models.images()
    classes = torch.tensor([[0, 3], [2, 1], [3, 0]])
    method, options, *_ = METHODS[name]
    large = expected_maps(model, images, classes, name, "features").relu()
    small = expected_maps(model, images, classes, name, "small").relu()
    resized = torch.from_numpy(np.stack([[oracles.resize(one, (6, 5)) for one in row] for row in small.numpy()]))
    for order in (["features", "small"], ["small", "features"]):
        exact(method(model, order, **options).explain(images, classes).maps, (large + resized) / 2)


@pytest.mark.parametrize("layer", ["features", "features.norm"])
@pytest.mark.parametrize("name", [name for name in METHODS if "++" not in name])
def test_an_in_place_relu_after_the_layer_changes_nothing(name, layer):
    inplace, twin = models.densenet(inplace=True), models.densenet(inplace=False)
    images = models.images()
    method, options, *_ = METHODS[name]
    classes = torch.tensor([[0, 3], [2, 1], [3, 0]])
    expected = expected_maps(twin, images, classes, name, layer).relu()
    exact(method(inplace, layer, **options).explain(images, classes).maps, expected)
    if name in SCORELESS:
        return
    with method(inplace, layer, **options) as cam:
        exact(cam.maps(inplace(images), classes).detach(), expected)


@pytest.mark.parametrize("method", [GradCAMPlusPlus, DiffGradCAMPlusPlus])
def test_an_in_place_relu_after_the_layer_changes_nothing_for_plus_plus(method):
    images = models.images()
    twin = method(models.densenet(inplace=False), "features").explain(images, "all").maps
    assert float(twin.max()) > 0
    exact(method(models.densenet(inplace=True), "features").explain(images, "all").maps, twin)


# --- what holds for every input


def with_common_mode(build, vector):
    """The same model with one vector added to the weights of every class: no probability changes."""
    model = build()
    model.head.weight.data += vector
    return model


def vectors(size):
    value = st.floats(-10, 10, allow_subnormal=False)
    return st.lists(value, min_size=size, max_size=size).map(partial(torch.tensor, dtype=torch.float64))


@pytest.mark.parametrize("name", CONTRASTS)
@settings(max_examples=8)
@given(vectors(models.CHANNELS))
def test_a_contrast_does_not_see_what_all_classes_have_in_common(name, vector):
    classes = torch.tensor([[0, 1, 2, 3]] * 3)
    method, options, *_ = METHODS[name]
    images = models.images()
    before = method(models.pooled(), "relu", **options).explain(images, classes)
    after = method(with_common_mode(models.pooled, vector), "relu", **options).explain(images, classes)
    torch.testing.assert_close(after.logits.softmax(1), before.logits.softmax(1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(after.maps, before.maps, rtol=1e-9, atol=1e-9)


@given(vectors(models.CHANNELS))
def test_grad_cam_moves_by_exactly_what_all_classes_have_in_common(vector):
    images = models.images()
    before = GradCAM(models.pooled(), "relu", rectify=False).explain(images, "all").maps
    after = GradCAM(with_common_mode(models.pooled, vector), "relu", rectify=False).explain(images, "all").maps
    model = models.pooled()
    activations = model.relu(model.features(model.act(model.stem(images)))).detach()
    common = torch.einsum("k,bkhw->bhw", vector, activations).unsqueeze(1) / 30
    torch.testing.assert_close(after - before, common.expand_as(after), rtol=1e-9, atol=1e-9)


def test_grad_cam_can_be_made_to_show_another_map_and_diffgradcam_cannot():
    images, vector = models.images(), torch.tensor([50.0, 0, 0, 0, 0, 0]).double()
    fooled = with_common_mode(models.pooled, vector)
    assert not np.allclose(GradCAM(models.pooled(), "relu")(images), GradCAM(fooled, "relu")(images), atol=0.1)
    np.testing.assert_allclose(
        DiffGradCAM(models.pooled(), "relu")(images), DiffGradCAM(fooled, "relu")(images), atol=1e-6
    )


@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM", "HiResCAM", "ElementWise", "Diff max"])
@settings(max_examples=8)
@given(st.floats(0.01, 100))
def test_scaling_the_logits_scales_the_raw_map_and_leaves_the_heat_map(name, factor):
    method, options, *_ = METHODS[name]
    images, scaled = models.images(), models.flat()
    scaled.head.weight.data *= factor
    scaled.head.bias.data *= factor
    model = models.flat()
    raw, raw_scaled = (method(m, "relu", **options).explain(images, 1).maps for m in (model, scaled))
    torch.testing.assert_close(raw_scaled, factor * raw, rtol=1e-9, atol=1e-10)
    heat, heat_scaled = (method(m, "relu", **options)(images, [1, 1, 1]) for m in (model, scaled))
    np.testing.assert_allclose(heat_scaled, heat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [GradCAMPlusPlus, DiffGradCAMPlusPlus])
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1.0, 1e3])
def test_plus_plus_follows_its_formula_at_every_scale_and_never_vanishes(method, factor):
    images, model = models.images(), models.flat()
    score = oracles.logit if method is GradCAMPlusPlus else oracles.difference(oracles.mean)
    options = {} if method is GradCAMPlusPlus else {"baseline": "mean"}
    model.head.weight.data *= factor
    model.head.bias.data *= factor
    classes = torch.tensor([[1], [1], [1]])
    expected = oracles.explain(model, "relu", images, classes, score, oracles.gradcam_plus_plus).squeeze(1)
    maps = method(model, "relu", **options).explain(images, 1).maps
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=0)
    heat = method(model, "relu", **options)(images, [1, 1, 1])
    assert heat.min() == 0
    assert heat.max((1, 2)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "Diff class"])
@settings(max_examples=8)
@given(st.permutations(range(5)))
def test_the_order_of_the_classes_does_not_matter(name, order):
    method, options, *_ = METHODS[name]
    images, model, permuted = models.images(), models.deep(activation=nn.ReLU), models.deep(activation=nn.ReLU)
    permuted.head.weight.data = model.head.weight.data[order]
    permuted.head.bias.data = model.head.bias.data[order]
    maps = method(model, "relu", **options).explain(images, "all").maps
    exact(method(permuted, "relu", **options).explain(images, "all").maps, maps[:, order])


@pytest.mark.parametrize("head", ["pooled", "deep", "max_pooled"])
@every
def test_an_image_is_explained_alike_alone_and_in_a_batch(name, head):
    method, options, *_ = METHODS[name]
    images = models.images(4)
    classes = torch.tensor([[0, 2], [1, 3], [3, 0], [2, 2]])
    cam = method(HEADS[head](), "relu", **options)
    together = cam.explain(images, classes)
    for i in range(4):
        alone = cam.explain(images[i : i + 1], classes[i : i + 1])
        exact(alone.maps[0], together.maps[i])
        exact(alone.logits[0], together.logits[i])


@pytest.mark.parametrize("head", HEADS)
def test_for_two_classes_all_contrasts_coincide(head):
    model, images = HEADS[head](classes=2), models.images()
    expected = DiffGradCAM(model, "relu", rectify=False).explain(images, 1).maps
    for options in ({"baseline": "max"}, {"baseline": "mean"}, {"baseline": 0}, {"baseline": lowest}):
        exact(DiffGradCAM(model, "relu", rectify=False, **options).explain(images, 1).maps, expected)
    exact(FinerCAM(model, "relu", rectify=False).explain(images, 1).maps, expected)
    # Difference Salience takes the difference of two linear maps instead of the map of a difference.
    exact(TrueFalseCAM(model, "relu").explain(images, 1).maps, expected)
    exact(DiffGradCAM(model, "relu", rectify=False).explain(images, 0).maps, -expected)


def test_the_default_map_is_that_of_the_log_probability_without_its_vanishing_factor():
    model, images = models.flat(), models.images()
    logits, _, odds = DiffGradCAM(model, "relu").explain(images, "all")
    log = GradCAM(model, "relu", score=log_probability).explain(images, "all").maps
    exact(log, (1 - logits.softmax(1))[..., None, None] * odds)
    of_p = GradCAM(model, "relu", score=probability).explain(images, "all").maps
    exact(of_p, logits.softmax(1)[..., None, None] * log)


def test_the_mean_baseline_is_grad_cam_with_centred_weights():
    model, images = models.pooled(), models.images()
    maps = DiffGradCAM(model, "relu", baseline="mean", rectify=False).explain(images, "all").maps
    model.head.weight.data -= model.head.weight.data.mean(0)
    exact(maps, 5 / 4 * GradCAM(model, "relu", rectify=False).explain(images, "all").maps)
