"""Heads that are read from the graph that autograd recorded, against the gradients that autograd computes."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffgradcam import DiffGradCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, scores
from diffgradcam._core.gradients import activation_gradients
from diffgradcam._core.outputs import find_logits
from diffgradcam._core.pooled_linear import recorded_head
from diffgradcam.targets import ClassifierOutputTarget
from tests import models
from tests.methods import exact


class Head(nn.Module):
    """A layer ``relu`` with activations ``(B, C, *S)``, then ``pool`` and a linear layer."""

    def __init__(self, pool, *, dims=2, bias=True, inputs=models.CHANNELS):
        super().__init__()
        self.below = nn.Sequential(*[layer for _, layer in models.backbone(dims)[:3]])
        self.relu = nn.ReLU()
        self.pool = pool
        self.linear = nn.Linear(inputs, 5, bias)

    def forward(self, x):
        return self.linear(self.pool(self.relu(self.below(x))))


class Tokens(Head):
    """The layer ``tokens`` puts out ``(B, L, C)``."""

    def __init__(self):
        super().__init__(lambda x: x.mean(1))
        self.tokens = nn.Identity()

    def forward(self, x):
        return self.linear(self.pool(self.tokens(self.relu(self.below(x)).flatten(2).mT.contiguous())))


class SavedElsewhere(Head):
    """What its head saves for the backward pass is computed again, or kept on the CPU."""

    def __init__(self, *, again):
        super().__init__(lambda x: x.mean((2, 3)))
        self.again = again

    def head(self, x):
        return self.linear(self.pool(x))

    def forward(self, x):
        features = self.relu(self.below(x))
        if self.again:
            return checkpoint(self.head, features, use_reentrant=False)
        with torch.autograd.graph.save_on_cpu():
            return self.head(features)


class HookedInside(Head):
    """Puts a hook on its own logits."""

    def forward(self, x):
        logits = super().forward(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: 2 * gradient)
        return logits


def to_grid(tokens):
    return tokens.mT.unflatten(2, models.SIZE[2])


def recorded(model, layer="relu", images=None):
    """The logits and activations of a forward pass, and the head that is read from its graph."""
    images = models.images() if images is None else images
    with GradCAM(model, layer, to_grid if layer == "tokens" else None).reader.run(images) as forward:
        return forward.logits, forward.activations, recorded_head(forward.logits, forward.activations)


def built(*args, kind=Head, **options):
    return models.seeded(lambda: kind(*args, **options))


KNOWN = {
    "adaptive pooling, 2 dimensions": lambda: (models.pooled(), "relu", models.images()),
    "adaptive pooling, 3 dimensions": lambda: (models.pooled(dims=3), "relu", models.images(dims=3)),
    "a mean": lambda: (built(lambda x: x.mean((2, 3))), "relu", models.images()),
    "a mean over the last dimensions": lambda: (built(lambda x: x.mean((-1, -2))), "relu", models.images()),
    "a mean that keeps its dimensions": lambda: (
        built(lambda x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2)),
        "relu",
        models.images(),
    ),
    "one dimension": lambda: (built(lambda x: x.mean(2), dims=1), "relu", models.images(dims=1)),
    "without a bias": lambda: (built(lambda x: x.mean((2, 3)), bias=False), "relu", models.images()),
    "tokens": lambda: (built(kind=Tokens), "tokens", models.images()),
    "what is saved is computed again": lambda: (built(kind=SavedElsewhere, again=True), "relu", models.images()),
    "what is saved is on the CPU": lambda: (built(kind=SavedElsewhere, again=False), "relu", models.images()),
    "one image": lambda: (models.pooled(), "relu", models.images(1)),
    "float32": lambda: (models.pooled(dtype=torch.float32), "relu", models.images(dtype=torch.float32)),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_gradients_of_a_recorded_head_are_those_of_autograd(kind):
    model, layer, images = KNOWN[kind]()
    logits, activations, head = recorded(model, layer, images)
    assert head is not None
    assert torch.equal(head.weight, list(model.parameters())[-1 if kind == "without a bias" else -2])
    cotangents = torch.randn(len(images), 4, 5, dtype=logits.dtype)
    (expected,) = activation_gradients(logits, activations, cotangents)
    actual = head.at_activations(cotangents @ head.weight)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", KNOWN)
def test_maps_of_a_recorded_head_are_those_of_autograd(kind):
    model, layer, images = KNOWN[kind]()
    options = {"rectify": False, "reshape_transform": to_grid if layer == "tokens" else None}
    cam, by_autograd = (GradCAM(model, layer, output=output, **options) for output in (find_logits, torch.clone))
    for classes in (None, 3, [[1, 4]] * len(images)):
        torch.testing.assert_close(cam.explain(images, classes).maps, by_autograd.explain(images, classes).maps)


def test_a_transform_that_is_not_only_another_order_is_obeyed():
    model, images = built(kind=Tokens), models.images()
    cams = (GradCAM(model, "tokens", lambda tokens, factor=factor: factor * tokens.mT) for factor in (1, 2))
    maps, doubled = (cam.explain(images, 3).maps for cam in cams)
    exact(doubled, 4 * maps)  # activations and gradients


class ChannelsLast(Head):
    """The layer ``norm`` puts out ``(B, h, w, C)``."""

    def __init__(self):
        super().__init__(lambda x: x.mean((1, 2)))
        self.norm = nn.LayerNorm(models.CHANNELS)

    def forward(self, x):
        return self.linear(self.pool(self.norm(self.relu(self.below(x)).movedim(1, -1))))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_channels_may_be_last_and_in_half_precision(kind, monkeypatch):
    model, images = built(kind=ChannelsLast).to(kind), models.images(dtype=kind)
    expected = GradCAM(model, "norm", rectify=False, output=torch.clone).explain(images, 3).maps
    monkeypatch.setattr(torch.autograd, "grad", None)
    maps = GradCAM(model, "norm", rectify=False).explain(images, 3).maps
    torch.testing.assert_close(maps, expected, **({"rtol": 0.02, "atol": 1e-3} if kind is torch.bfloat16 else {}))


def narrow_below(model):
    model.below.float()
    return model


def hooked(model):
    model.pool.register_full_backward_hook(lambda _module, gradients, _of_output: gradients)
    return model


class FromActivations(nn.Module):
    """A linear layer of the mean whose bias or weight depends on the activations, too."""

    def __init__(self, *, bias=False, weight=False):
        super().__init__()
        self.inner = models.pooled()
        self.bias, self.weight = bias, weight

    def forward(self, x):
        layers = self.inner
        features = layers.relu(layers.features(layers.act(layers.stem(x))))
        bias = layers.head.bias + features.amax((1, 2, 3)).unsqueeze(1) if self.bias else layers.head.bias
        weight = layers.head.weight * features.amax() if self.weight else layers.head.weight
        return torch.addmm(bias, features.mean((2, 3)), weight.t())


OTHERS = {
    "a layer before": lambda: (models.pooled(), "features"),
    "maximum": lambda: (models.max_pooled(), "relu"),
    "every position": lambda: (models.flat(), "relu"),
    "squares": lambda: (models.mean_of_squares(), "relu"),
    "two linear layers": lambda: (models.deep(), "relu"),
    "an average of some positions": lambda: (built(lambda x: nn.functional.avg_pool2d(x, (6, 5)).flatten(1)), "relu"),
    "a mean over the images too": lambda: (built(lambda x: x.mean((0, 2, 3)).expand(len(x), -1)), "relu"),
    "a mean over one of two dimensions": lambda: (built(lambda x: x.mean(3)[:, :, 0]), "relu"),
    "a mean over some positions": lambda: (built(lambda x: x.mean(3).flatten(1), inputs=36), "relu"),
    "a mean over the channels too": lambda: (built(lambda x: x.mean((1, 2, 3)).unsqueeze(1), inputs=1), "relu"),
    "as many channels as images, which are exchanged": lambda: (
        built(lambda x: x.mean((0, 2)), inputs=5),
        "relu",
        models.images(6),
    ),
    "a mean of twice the activations": lambda: (built(lambda x: (2 * x).mean((2, 3))), "relu"),
    "a mean in a wider type": lambda: (
        narrow_below(built(lambda x: x.mean((2, 3), dtype=torch.float64))),
        "relu",
        models.images(dtype=torch.float32),
    ),
    "twice the mean": lambda: (built(lambda x: 2 * x.mean((2, 3))), "relu"),
    "a dropout": lambda: (built(lambda x: nn.functional.dropout(x.mean((2, 3)), 0.5, True)), "relu"),
    "a bias from the activations": lambda: (FromActivations(bias=True), "inner.relu"),
    "a weight from the activations": lambda: (FromActivations(weight=True), "inner.relu"),
    "a hook on a module": lambda: (hooked(models.pooled()), "relu"),
    "a hook on the logits": lambda: (built(lambda x: x.mean((2, 3)), kind=HookedInside), "relu"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_graph_has_no_recorded_head(kind):
    assert recorded(*OTHERS[kind]())[2] is None


class Square(nn.Module):
    """As many channels as columns, whose means are taken; the shapes are those of a pooled linear head."""

    def __init__(self, dims):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1)
        self.linear = nn.Linear(5, 4)
        self.dims = dims

    def forward(self, x):
        return self.linear(self.layer(x).mean(self.dims))


@pytest.mark.parametrize("dims", [(1, 2), (2, 3), (1, 3)])
def test_it_is_known_which_dimensions_the_mean_is_over(dims):
    model, images = models.seeded(lambda: Square(dims)), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    logits, activations, head = recorded(model, "layer", images)
    assert head.channels == ({1, 2, 3} - set(dims)).pop()
    cotangents = torch.randn(2, 1, 4, dtype=torch.float64)
    exact(head.at_activations(cotangents @ head.weight), activation_gradients(logits, activations, cotangents)[0])
    # Where the mean keeps another dimension than that of the channels, the gradients differ between the positions.
    maps = [
        GradCAM(model, "layer", rectify=False, output=o).explain(images, 2).maps for o in (find_logits, torch.clone)
    ]
    exact(*maps)


class Scaled(nn.Module):
    """``bias + scale * (mean @ weight)``, in one operation."""

    def __init__(self, scale):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 1)
        self.weight = nn.Parameter(torch.randn(6, 5))
        self.scale = scale

    def forward(self, x):
        return torch.addmm(self.weight[0, :5], self.layer(x).mean((2, 3)), self.weight, alpha=self.scale)


@pytest.mark.parametrize(("scale", "known"), [(1, True), (2, False)])
def test_a_scale_within_the_linear_layer_is_not_overlooked(scale, known):
    model, images = models.seeded(lambda: Scaled(scale)), models.images()
    _, activations, head = recorded(model, "layer", images)
    assert (head is not None) is known
    maps = GradCAM(model, "layer", rectify=False).explain(images, 3).maps
    weights = scale * model.weight[:, 3] / 30
    exact(maps, torch.einsum("c,bchw->bhw", weights.detach(), activations[0].detach()))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_head_of_parameters_is_recorded_frozen_or_not(frozen):
    model = FromActivations().requires_grad_(not frozen)
    assert recorded(model, "inner.relu")[2] is not None


def test_a_head_behind_several_layers_is_left_to_autograd():
    model = models.pooled()
    with GradCAM(model, ["features", "relu"]).reader.run(models.images()) as forward:
        assert recorded_head(forward.logits, forward.activations) is None


@pytest.mark.parametrize("change", [torch.clone, torch.detach, lambda parameter: parameter])
def test_a_head_of_something_else_than_the_layer(change):
    class Model(Head):
        def forward(self, x):
            self.relu(self.below(x))
            return self.linear(self.pool(change(self.template)))

    def build():
        model = Model(lambda x: x.mean((2, 3)))
        model.template = nn.Parameter(torch.ones(1, models.CHANNELS, 6, 5))
        return model

    with pytest.raises(RuntimeError, match="does not depend on"):
        GradCAM(models.seeded(build), "relu").explain(models.images(1))


def test_logits_without_a_graph_have_no_head():
    assert recorded_head(torch.randn(2, 5), [torch.randn(2, 6, 3, 3)]) is None


def test_a_weight_that_was_changed_meanwhile_is_refused():
    model = models.pooled()
    logits, activations, _ = recorded(model)
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="weights changed while it was explained"):
        recorded_head(logits, activations)


@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM])
@pytest.mark.parametrize("score", [scores.Logit(), scores.LogitDifference("max"), scores.probability])
@pytest.mark.parametrize("classes", [None, [[1, 4], [0, 0], [3, 2]], "all"])
def test_maps_are_those_of_a_backward_pass(method, score, classes):
    model, images = models.pooled(), models.images()
    cam = method(model, "relu", rectify=False).replace(score=score)
    # A copy of the logits is one more operation, which the head is not followed through.
    by_autograd = method(model, "relu", rectify=False, output=torch.clone).replace(score=score)
    exact(cam.explain(images, classes).maps, by_autograd.explain(images, classes).maps)


def test_a_weighting_may_reshape_and_overwrite_the_gradients_it_is_given():
    def largest(activations, gradients):
        assert gradients.view(len(gradients), -1).shape[1] == activations[0].numel()
        return gradients.relu_()

    maps = GradCAM(models.pooled(), "relu", weighting=largest).explain(models.images(), 1).maps
    by_autograd = GradCAM(models.pooled(), "relu", weighting=largest, output=torch.clone)
    exact(maps, by_autograd.explain(models.images(), 1).maps)


def test_targets_of_pytorch_grad_cam():
    model, images = models.pooled(), models.images()
    targets = [ClassifierOutputTarget(number) for number in (3, 0, 3)]
    called = GradCAM(model, "relu")(images, targets)
    assert (called == GradCAM(model, "relu")(images, [3, 0, 3])).all()
    own = [lambda output: output[1].exp()] * 3
    by_autograd = GradCAM(model, "relu", output=torch.clone)
    exact(GradCAM(model, "relu").explain(images, own).maps, by_autograd.explain(images, own).maps)


def test_no_backward_pass_is_made(monkeypatch):
    model, images = models.pooled(), models.images()
    expected = GradCAM(model, "relu").explain(images, 2).maps
    monkeypatch.setattr(torch.autograd, "grad", None)
    assert torch.equal(GradCAM(model, "relu").explain(images, 2).maps, expected)
