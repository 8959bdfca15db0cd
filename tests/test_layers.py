"""Which layer: by module, by name, by what enters it; one or several, nested, parallel, shared."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffgradcam import DiffGradCAM, GradCAM, HiResCAM, LayerCAM, layer_input
from diffgradcam._core.layers import LayerInput, find_layers
from diffgradcam._core.recorder import CutRecorder
from diffgradcam._core.wrappers import inner_model, is_compiled
from diffgradcam.heatmaps import resize

from .models import CHANNELS, backbone, deep, densenet, flat, images, pooled, seeded, two_sizes
from .untouched import hooks

X = images(3)


def by_hand(front, back, x, label):
    """Grad-CAM of the model ``back(front(x))``, image by image and channel by channel."""
    maps = []
    for image in x:
        activations = front(image.unsqueeze(0)).detach().requires_grad_()
        back(activations.clone())[0, label].backward()
        summed = torch.zeros_like(activations[0, 0])
        for activation, gradient in zip(activations[0], activations.grad[0], strict=True):
            summed += gradient.mean() * activation
        maps.append(summed.relu().detach())
    return torch.stack(maps)


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("build", [flat, deep])
def test_every_layer_of_a_chain(build, cut):
    model = build()
    expected = by_hand(model[:cut], model[cut:], X, 2)
    name = list(dict(model.named_children()))[cut - 1]
    following = list(dict(model.named_children()))[cut]
    for target in (model[cut - 1], name, [name], (model[cut - 1],), layer_input(following), layer_input(model[cut])):
        explained = GradCAM(model, target).explain(X, 2).maps
        torch.testing.assert_close(explained, expected, rtol=1e-10, atol=1e-12)
        with GradCAM(model, target) as cam:
            torch.testing.assert_close(cam.maps(model(X), 2), expected, rtol=1e-10, atol=1e-12)


def test_input_of_the_first_layer_is_the_image():
    model = flat()
    expected = by_hand(nn.Identity(), model, X, 1)
    torch.testing.assert_close(GradCAM(model, layer_input("stem")).explain(X, 1).maps, expected)


class Blocks(nn.Module):
    """A stem, a block of several layers, and a head."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(OrderedDict(backbone()))
        self.alias = self.block
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x):
        return self.head(self.block(x).square().mean((2, 3)))


def test_sequential_as_a_layer():
    """Its output is that of its last part."""
    model = seeded(Blocks)
    expected = by_hand(model.block, lambda a: model.head(a.square().mean((2, 3))), X, 3)
    for target in (model.block, "block", "block.relu", model.block.relu, "alias", "alias.relu"):
        torch.testing.assert_close(GradCAM(model, target).explain(X, 3).maps, expected)


def test_nested_layers_average_to_their_common_map():
    """The block and its last part put out the same tensor; the copy between the two hooks changes nothing."""
    model = seeded(Blocks)
    alone = GradCAM(model, "block").explain(X).maps
    for targets in (["block", "block.relu"], ["block.relu", "block"], ["block", "block"]):
        torch.testing.assert_close(GradCAM(model, targets).explain(X).maps, alone)
        with GradCAM(model, targets) as cam:
            torch.testing.assert_close(cam.maps(model(X)), alone)


@pytest.mark.parametrize("method", [GradCAM, LayerCAM, HiResCAM, DiffGradCAM])
def test_layers_of_different_size(method):
    """Each layer's map as it is alone, resized to the largest, averaged; in any order."""
    model = two_sizes()
    large, small = (method(model, name).explain(X, "all").maps for name in ("features", "small"))
    resized = torch.stack([resize(small[:, label], (6, 5)) for label in range(5)], 1)
    for names in (["features", "small"], ["small", "features"]):
        cam = method(model, names)
        torch.testing.assert_close(cam.explain(X, "all").maps, (large + resized) / 2, rtol=1e-10, atol=1e-12)
        with cam:
            torch.testing.assert_close(cam.maps(model(X), "all"), (large + resized) / 2, rtol=1e-10, atol=1e-12)


class Branches(nn.Module):
    """Two branches side by side: neither depends on the other."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 1)
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        left, right = self.left(x).tanh().mean((2, 3)), self.right(x).square().mean((2, 3))
        return self.head(torch.cat([left, right], 1))


@pytest.mark.parametrize("frozen", [True, False])
def test_parallel_branches(frozen):
    model = seeded(Branches).requires_grad_(not frozen)
    left, right = (GradCAM(model, name).explain(X, 1).maps for name in ("left", "right"))
    assert (left - right).abs().max() > 1e-3
    for names in (["left", "right"], ["right", "left"]):
        torch.testing.assert_close(GradCAM(model, names).explain(X, 1).maps, (left + right) / 2)
        with GradCAM(model, names) as cam:
            torch.testing.assert_close(cam.maps(model(X), 1), (left + right) / 2)


class Shared(nn.Module):
    """One activation module that runs twice, as in EfficientNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.SiLU()
        self.features = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x):
        x = self.act(self.features(self.act(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


def test_shared_activation_by_the_layer_that_follows():
    model = seeded(Shared)

    def front(x):
        return model.act(model.features(model.act(model.stem(x))))

    expected = by_hand(front, lambda a: model.head(a.mean((2, 3))), X, 2)
    torch.testing.assert_close(GradCAM(model, layer_input("pool")).explain(X, 2).maps, expected)
    with GradCAM(model, layer_input(model.pool)) as cam:
        torch.testing.assert_close(cam.maps(model(X), 2), expected)


@pytest.mark.parametrize("layer", ["features", "features.norm", layer_input("features.norm")])
def test_exact_with_an_in_place_relu_after_the_layer(layer):
    """Activation and gradient are both from before the ReLU, although it overwrites its input."""
    model, twin = densenet(inplace=True), densenet(inplace=False)
    for classes in (2, "all"):
        expected = GradCAM(twin, layer).explain(X, classes).maps
        assert torch.equal(GradCAM(model, layer).explain(X, classes).maps, expected)
        with GradCAM(model, layer) as cam:
            torch.testing.assert_close(cam.maps(model(X), classes), expected, rtol=1e-12, atol=1e-12)
    front = twin.features if layer != layer_input("features.norm") else twin.features[:3]
    back = nn.Identity() if layer != layer_input("features.norm") else twin.features.norm
    by_loop = by_hand(front, lambda a: twin.head(F.relu(back(a)).mean((2, 3))), X, 2)
    torch.testing.assert_close(GradCAM(model, layer).explain(X, 2).maps, by_loop, rtol=1e-10, atol=1e-12)


def test_maps_tell_forward_passes_apart():
    """Two passes are alive; each logits has its own maps, whichever is asked first."""
    model = deep()
    first, second = X, X.flip(-1) + 1
    expected = [GradCAM(model, "features").explain(x, 0).maps for x in (first, second)]
    with GradCAM(model, "features") as cam:
        logits = [model(first), model(second)]
        torch.testing.assert_close(cam.maps(logits[1], 0), expected[1])
        torch.testing.assert_close(cam.maps(logits[0], 0), expected[0])
    torch.testing.assert_close(cam.maps(logits[1], 0), expected[1])  # after the block, while the logits live


def test_two_cams_on_one_layer():
    model = deep()
    with GradCAM(model, "features") as plain, DiffGradCAM(model, "features") as contrast:
        logits = model(X)
        maps = plain.maps(logits, 0), contrast.maps(logits, 0)
        explained = plain.explain(X, 0).maps, contrast.explain(X, 0).maps  # while attached
    for cam, map_, explanation in zip((GradCAM, DiffGradCAM), maps, explained, strict=True):
        expected = cam(model, "features").explain(X, 0).maps
        torch.testing.assert_close(map_, expected)
        assert torch.equal(explanation, expected)


def test_explaining_while_attached_disturbs_no_recorded_pass():
    model = two_sizes()
    expected = GradCAM(model, ["features", "small"]).explain(X, 1).maps
    with GradCAM(model, ["features", "small"]) as cam:
        logits = model(X)
        assert torch.equal(cam.explain(X + 1, 1).maps, GradCAM(model, ["features", "small"]).explain(X + 1, 1).maps)
        torch.testing.assert_close(cam.maps(logits, 1), expected)


class Checkpointed(nn.Module):
    def __init__(self, model, reentrant):
        super().__init__()
        self.model = model
        self.reentrant = reentrant

    def forward(self, x):
        middle = checkpoint(self.model[:4], x, use_reentrant=self.reentrant)
        return self.model[4:](middle)


@pytest.mark.parametrize("target", ["model.features", ["model.stem", "model.features"], layer_input("model.relu")])
def test_checkpointed_layers(target):
    """Non-reentrant checkpointing runs the layers again during the backward pass: values and gradients stay right."""
    plain, saving = (Checkpointed(deep(), reentrant=False) for _ in range(2))
    plain.forward = lambda x: plain.model(x)
    assert torch.equal(GradCAM(saving, target).explain(X, 1).maps, GradCAM(plain, target).explain(X, 1).maps)
    gradients = []
    for model in (plain, saving):
        with GradCAM(model, target) as cam:
            maps = cam.maps(model(X.clone().requires_grad_()), 1)
            maps.square().sum().backward()
        gradients.append(
            [maps.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
        )
    assert len(gradients[0]) == len(gradients[1])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_hooks_of_the_user_still_run():
    model = deep()
    seen = []
    model.features.register_forward_hook(lambda _module, _args, output: seen.append(output.detach().clone()))
    before = hooks(model)
    explanation = GradCAM(model, "features").explain(X, 0)
    assert hooks(model) == before
    assert len(seen) == 1
    assert torch.equal(seen[0], model[:3](X))
    assert torch.equal(explanation.logits, model(X))


def test_a_hook_of_the_user_that_changes_the_output_is_explained():
    """The layer's output is what the rest of the model gets."""
    model, halved = deep(), deep()
    halved.features.register_forward_hook(lambda _module, _args, output: output / 2)
    expected = by_hand(lambda x: model[:3](x) / 2, model[3:], X, 0)
    torch.testing.assert_close(GradCAM(halved, "features").explain(X, 0).maps, expected)


def test_layer_input_is_a_value():
    model = pooled()
    assert layer_input("pool") == LayerInput("pool")
    assert layer_input(model.pool) == layer_input(model.pool)
    assert layer_input("pool") != layer_input("head")


def test_inner_model_takes_wrappers_off():
    model = pooled()
    assert inner_model(model) is model
    assert inner_model(nn.DataParallel(model)) is model
    assert inner_model(nn.DataParallel(nn.DataParallel(model))) is model
    assert inner_model(nn.Sequential(model)) is not model
    assert not is_compiled(model)
    compiled = copy.deepcopy(model)
    compiled.compile(backend="eager")
    assert is_compiled(compiled)


def test_recorder_names_its_layers():
    model = seeded(Blocks)
    targets = [model.block.relu, "alias.relu", layer_input(model.head), layer_input("block")]
    recorder = CutRecorder(find_layers(model, targets))
    names = [layer.name for layer in recorder.layers]
    assert names == ["'block.relu'", "'alias.relu'", "layer_input('head')", "layer_input('block')"]


def test_recorder_hooks_only_while_attached():
    model = pooled()
    before = hooks(model)
    recorder = CutRecorder(find_layers(model, ["stem", layer_input("head")]))
    assert hooks(model) == before
    with recorder:
        logits = model(X)
        assert logits.requires_grad
        assert [tuple(each.activations.shape) for each in recorder.recorded(model)] == [(3, 4, 6, 5), (3, CHANNELS)]
        assert hooks(model) != before
    assert hooks(model) == before
