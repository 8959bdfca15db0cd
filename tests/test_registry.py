"""One list of methods, which everything reads; and whatever a user chooses is obeyed."""

import importlib

import pytest
import torch
from click.testing import CliRunner

from diffgradcam import BaseCAM, GradCAM, HiResCAM, LayerCAM, ScoreCAM, TrainableCAM, heatmaps, weightings
from diffgradcam._core.base import ScoredCAM
from diffgradcam.methods import Method, register, registered_methods, unregister
from diffgradcam.scores import LogitDifference, logit_difference
from docs.methods_table import methods_table
from tests import models
from tests.methods import exact

IMAGES = models.images()


def squared(activations, gradients):  # noqa: ARG001
    return gradients**2


@pytest.fixture
def toy():
    """A method of a user's own, listed for as long as the test runs."""

    @register()
    class ToyCAM(TrainableCAM):
        """Toy-CAM: each position weighted by its squared gradient.

        Reference:
            Nobody, "Toys", 2026.
        """

        weighting = staticmethod(squared)

    yield ToyCAM
    unregister("ToyCAM")


def test_a_registered_method_is_everywhere(toy):
    method = registered_methods()["ToyCAM"]
    assert method == Method(toy)
    assert (method.summary, method.reference) == (
        "Each position weighted by its squared gradient",
        'Nobody, "Toys", 2026.',
    )
    assert (method.has_score, method.trainable, method.options) == (True, True, ())
    # The command offers it.
    cli = importlib.import_module("diffgradcam.cli")
    assert "ToyCAM" in CliRunner().invoke(cli.main, ["explain", "--help"], terminal_width=200).output
    # The siege calls it with wrong arguments, and the documentation's table shows it.
    siege = importlib.import_module("tests.siege.calls")
    assert siege.calls()["ToyCAM"][0] is toy
    assert "| `ToyCAM` | `Logit()` | Each position weighted by its squared gradient |  | yes |" in methods_table()
    # So do the tests over all methods.
    assert "ToyCAM" in {each.name for each in every_method()}
    check_method(method)


def test_what_is_gone_is_gone():
    register()(type("ToyCAM", (TrainableCAM,), {}))
    assert "ToyCAM" in registered_methods()
    unregister("ToyCAM")
    assert "ToyCAM" not in registered_methods()
    with pytest.raises(KeyError, match="ToyCAM"):
        unregister("ToyCAM")


def every_method():
    return list(registered_methods().values())


def subject(method):
    """A model that the method can explain."""
    return models.transformer() if method.name == "LeGrad" else models.pooled()


def made(method, model, layer="relu", **options):
    quick = {"samples": 2, "progress": False}
    own = {name: value for name, value in quick.items() if name in method.options}
    if method.name == "FullGrad":
        return method.make(model, **own, **options)
    if method.name == "LeGrad":
        return method.make(model, "block", head=model.head, **options)
    return method.make(model, layer, **own, **options)


def check_method(method):
    """What holds for every method."""
    model = subject(method)
    cam = made(method, model)
    logits, classes, maps = cam.explain(IMAGES, torch.tensor([[0, 3], [2, 1], [3, 3]]))
    assert maps.shape[:2] == classes.shape == (3, 2)
    exact(logits, model(IMAGES).detach())
    assert maps.isfinite().all()
    heat = cam(IMAGES)
    assert heat.shape == (3, 6, 5)
    assert repr(cam).startswith(f"{method.name}(Sequential, [")
    assert method.summary
    assert method.reference
    assert method.trainable == isinstance(cam, TrainableCAM)
    assert method.has_score == isinstance(cam, ScoredCAM)
    if method.trainable:
        with cam:
            assert cam.maps(model(IMAGES), 0).requires_grad
    else:
        assert not hasattr(cam, "maps")


@pytest.mark.parametrize("method", every_method(), ids=lambda method: method.name)
def test_every_method(method):
    check_method(method)


@pytest.mark.parametrize("method", [m for m in every_method() if m.trainable], ids=lambda method: method.name)
def test_maps_to_train_with_are_those_of_explain(method):
    model = models.pooled()
    cam = made(method, model)
    with cam:
        exact(cam.maps(model(IMAGES), [0, 1, 2]).detach(), cam.explain(IMAGES, [0, 1, 2]).maps)


# --- whatever is chosen is obeyed


class TenTimes(GradCAM):
    """A subclass that multiplies its layer map by ten."""

    def layer_map(self, activations, weights):
        return 10 * super().layer_map(activations, weights)


def ten_times(channels):
    return 10 * channels.sum(1)


def ten_times_gradcam(activations, gradients):
    return 10 * weightings.gradcam(activations, gradients)


class ReducedTenTimes(GradCAM):
    reduction = staticmethod(ten_times)


class WeightedTenTimes(GradCAM):
    @staticmethod
    def weighting(activations, gradients):
        return ten_times_gradcam(activations, gradients)


class DifferentiatedTenTimes(GradCAM):
    def gradients(self, recording, request, *, create_graph=False):
        return [10 * each for each in super().gradients(recording, request, create_graph=create_graph)]


OBEYED = {
    "layer_map": TenTimes,
    "reduction of a subclass": ReducedTenTimes,
    "weighting of a subclass": WeightedTenTimes,
    "gradients": DifferentiatedTenTimes,
    "reduction=": lambda *args, **options: GradCAM(*args, reduction=ten_times, **options),
    "weighting=": lambda *args, **options: GradCAM(*args, weighting=ten_times_gradcam, **options),
    "replace": lambda *args, **options: GradCAM(*args, **options).replace(reduction=ten_times),
    "fusion=": lambda *args, **options: GradCAM(
        *args, fusion=lambda layers, size: 10 * heatmaps.average(layers, size), **options
    ),
}


@pytest.mark.parametrize("classes", [2, 80, "all"])
@pytest.mark.parametrize("name", OBEYED)
def test_a_subclass_and_an_argument_are_obeyed_for_any_number_of_classes(name, classes):
    model = models.pooled(classes=100)
    asked = torch.arange(classes).expand(3, -1) if isinstance(classes, int) else classes
    for score in (None, LogitDifference(), lambda z, c: logit_difference(z, c, "mean")):
        plain = GradCAM(model, "relu", score=score)
        changed = OBEYED[name](model, "relu", score=score)
        exact(changed.explain(IMAGES, asked).maps, 10 * plain.explain(IMAGES, asked).maps)
        with plain, changed:
            logits = model(IMAGES)
            exact(changed.maps(logits, asked), 10 * plain.maps(logits, asked))


def test_choices_are_arguments_and_a_preset_is_nothing_else():
    model = models.two_sizes()
    layers, classes = ["features", "small"], [0, 1, 2]
    own = TrainableCAM(model, layers, weighting=weightings.layercam, fusion=heatmaps.product, score=logit_difference)
    preset = LayerCAM(model, layers).replace(fusion=heatmaps.product, score=LogitDifference())
    exact(own.explain(IMAGES, classes).maps, preset.explain(IMAGES, classes).maps)
    assert preset.score == own.score == LogitDifference()


def test_replace_leaves_the_original_and_refuses_what_is_no_choice():
    cam = GradCAM(models.pooled(), "relu")
    other = cam.replace(rectify=False, score=LogitDifference("max"))
    assert (cam.rectify, other.rectify) == (True, False)
    assert other.score == LogitDifference("max")
    with pytest.raises(TypeError, match=r"GradCAM has no choice of 'baseline'; expected one of .*'weighting'"):
        cam.replace(baseline="max")
    with pytest.raises(TypeError, match="weighting is 3; expected a function"):
        cam.replace(weighting=3)
    with pytest.raises(TypeError, match="EigenCAM has no choice of 'score'"):
        registered_methods()["EigenCAM"].make(models.pooled(), "relu").replace(score=logit_difference)


def test_a_class_without_a_weighting_says_so():
    with pytest.raises(TypeError, match="TrainableCAM has no weighting; pass weighting= a function"):
        TrainableCAM(models.pooled(), "relu")


def test_what_a_cam_is_called():
    model = models.pooled()
    assert repr(GradCAM(model, "relu")) == (
        "GradCAM(Sequential, ['relu'], score=Logit(), weighting=gradcam, rectify=True)"
    )
    cam = HiResCAM(model, ["stem", "relu"], score=LogitDifference("max"), reduction=ten_times, rectify=False)
    assert repr(cam) == (
        "HiResCAM(Sequential, ['stem', 'relu'], score=LogitDifference(baseline=max), weighting=hirescam, "
        "reduction=ten_times, rectify=False)"
    )


def test_methods_that_cannot_train_have_nothing_to_train_with():
    assert not issubclass(ScoreCAM, TrainableCAM)
    with ScoreCAM(models.pooled(), "relu", progress=False) as cam:  # as scripts of pytorch-grad-cam do
        assert cam(IMAGES).shape == (3, 6, 5)
    assert not hasattr(BaseCAM, "attach")
