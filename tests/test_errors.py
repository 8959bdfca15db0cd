"""Bad input: each message says what was given, what was expected and how to fix it, and the model stays as it was.

Where the message names a fix, the test follows it.
"""

import functools
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint

from diffgradcam import (
    BaseCAM,
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    FinerCAM,
    GradCAM,
    LayerCAM,
    TrainableCAM,
    TrueFalseCAM,
    layer_input,
)
from diffgradcam._core.outputs import check_finite
from diffgradcam.scores import logit_difference, two_logits
from diffgradcam.tokens import vit_reshape_transform
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.utils.model_targets import ClassifierOutputTarget, RawScoresOutputTarget

from .methods import exact
from .models import CHANNELS, backbone, deep, flat, images, pooled, seeded, tokens
from .untouched import untouched

X = images(3)


def refused(error, message, model, call):
    """Assert that the call is refused with this message (a pattern), and that the model is as it was."""
    with untouched(model), pytest.raises(error, match=message):
        call()


# Which layer


class Names(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, nn.Sequential(nn.Conv2d(3, 3, 1)))
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer5", r"^'layer5' is not a layer of Names; did you mean 'layer\d' or 'layer\d' or 'layer\d'\?$"),
        ("layer4.1", r"^'layer4.1' is not a layer of Names; did you mean 'layer4.0' or "),
        ("Layer4", r"^'Layer4' is not a layer of Names; did you mean 'layer4' or "),
        (
            "backbone.norm",
            r"list the names with \[.* model.named_modules\(\)\], in a shell with diffgradcam layers MODEL$",
        ),
        (layer_input("fcc"), r"^'fcc' is not a layer of Names; did you mean 'fc'\?$"),
        (["layer4", "layr3"], r"^'layr3' is not a layer of Names; did you mean 'layer3' or "),
    ],
)
def test_unknown_layer(name, message):
    model = Names()
    refused(ValueError, message, model, lambda: GradCAM(model, name))


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: [layer], layer_input])
def test_layer_of_another_model(wrap):
    model, copied = deep(), deep()
    message = (
        r"the given Conv2d is not a layer of this Sequential; take the layer from the very model that is explained"
    )
    refused(ValueError, message, model, lambda: GradCAM(model, wrap(copied.features)))
    assert GradCAM(model, wrap(model.features)).explain(X).maps.shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (None, "None, of type NoneType"),
        (4, "4, of type int"),
        ([4], "4, of type int"),
        ([["features"]], r"\['features'\], of type list"),
        (nn.Conv2d, r"<class .*Conv2d'>, of type type"),
        (layer_input(3), "3, of type int"),
    ],
)
def test_layer_of_a_wrong_type(target, given):
    model = deep()
    message = (
        rf"a target layer is {given}; expected a module, a dotted name such as 'layer4.1', layer_input\(\) of either"
    )
    refused(TypeError, message, model, lambda: GradCAM(model, target))


def test_a_generator_of_layers_is_refused():
    """It could be read only once."""
    model = deep()
    refused(TypeError, r"of type generator; .* or a list of these$", model, lambda: GradCAM(model, model.children()))


def test_a_large_module_is_not_printed_whole():
    model = nn.Sequential(*[nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(20)]) for _ in range(20)])
    with pytest.raises(TypeError, match="of type list") as caught:
        GradCAM(model, [[model]])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("empty", [[], ()])
def test_no_layer(empty):
    model = deep()
    message = r"^target_layers is empty; expected at least one module or dotted name, such as 'layer4'$"
    refused(ValueError, message, model, lambda: GradCAM(model, empty))


@pytest.mark.parametrize("model", ["resnet18", None, nn.Linear, lambda x: x])
def test_model_that_is_no_module(model):
    with pytest.raises(TypeError, match=r"^model is \w+; expected a torch.nn.Module$"):
        GradCAM(model, "features")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"score": "logit"}, "^score is 'logit'; expected a function"),
        ({"weighting": "gradcam"}, "^weighting is 'gradcam'; expected a function$"),
        ({"reduction": 3}, "^reduction is 3; expected a function$"),
        ({"fusion": []}, r"^fusion is \[\]; expected a function$"),
        ({"output": 0}, "^output is 0; expected a function$"),
        ({"reshape_transform": 14}, "^reshape_transform is 14; expected a function or None$"),
    ],
)
def test_option_that_is_no_function(option, message):
    model = deep()
    refused(TypeError, message, model, lambda: GradCAM(model, "features", **option))


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match=r"abstract.*layer_maps"):
        BaseCAM(deep(), "features")


# What the layer does


class Listed(nn.Module):
    """Calls the parts of a ModuleList, never the list, and leaves one layer out."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, CHANNELS, 1)])
        self.unused = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["blocks", "unused"])
def test_layer_that_did_not_run(name):
    model = seeded(Listed)
    message = rf"layer '{name}' did not run in a recorded forward pass; .*a ModuleList is never called"
    refused(RuntimeError, message, model, lambda: GradCAM(model, name).explain(X))
    # One of several layers that did not run has a map of zeros.
    exact(GradCAM(model, ["blocks.0", name]).explain(X).maps, GradCAM(model, "blocks.0").explain(X).maps / 2)
    with GradCAM(model, name) as cam:
        logits = model(X)
        refused(RuntimeError, message, model, lambda: cam.maps(logits))
    assert GradCAM(model, "blocks.1").explain(X).maps.shape == (3, 6, 5)


class Shared(nn.Module):
    """One activation that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.act = nn.Tanh()
        self.features = nn.Conv2d(4, CHANNELS, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        return self.head(self.pool(self.act(self.features(self.act(self.stem(x))))).flatten(1))


def test_layer_that_ran_twice():
    model = seeded(Shared)
    message = r"layer 'act' ran more than once in one forward pass, .* choose it with run=\"first\", run=\"last\", run="
    refused(RuntimeError, message, model, lambda: GradCAM(model, "act").explain(X))
    refused(RuntimeError, message, model, lambda: GradCAM(model, model.act)(X))
    with GradCAM(model, "act") as cam:
        logits = model(X)
        refused(RuntimeError, message, model, lambda: cam.maps(logits))
    first = GradCAM(model, layer_input("features")).explain(X).maps
    last = GradCAM(model, layer_input("pool")).explain(X).maps
    assert (first - last).abs().max() > 1e-3
    exact(GradCAM(model, "act", run="last").explain(X).maps, last)


def test_logits_of_two_forward_passes_in_one():
    model = deep()
    with GradCAM(model, "features") as cam:
        logits = model(X), model(X + 1)
        message = "if the logits join several forward passes, take the maps of each pass$"
        refused(RuntimeError, message, model, lambda: cam.maps(torch.cat(logits)))
        assert [cam.maps(each).shape for each in logits] == [(3, 6, 5)] * 2


@pytest.mark.parametrize("name", ["flatten", "head", "hidden", ""])
def test_layer_without_positions(name):
    model = deep()
    message = rf"layer '{name}' has no spatial positions: its activations have shape \(3, \d+\); choose a layer befo"
    refused(ValueError, message, model, lambda: GradCAM(model, name).explain(X))
    refused(ValueError, message, model, lambda: GradCAM(model, name)(X))
    with GradCAM(model, name) as cam:
        logits = model(X)
        refused(ValueError, message, model, lambda: cam.maps(logits))


def test_tokens_without_a_transform():
    model = tokens()
    message = r"layer 'block' gives \(3, 31, 6\): tokens, .* reshape_transform= .*tokens_to_grid"
    refused(ValueError, message, model, lambda: GradCAM(model, "block").explain(X))
    refused(ValueError, message, model, lambda: GradCAM(model, ["block"])(X))
    fixed = GradCAM(model, "block", functools.partial(vit_reshape_transform, height=6, width=5))
    assert fixed.explain(X).maps.shape == (3, 6, 5)
    exact(GradCAM(model, "block", vit_reshape_transform).explain(X).maps, fixed.explain(X).maps)


class Named(nn.Module):
    """Takes its images by name, after a number that is no tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, scale, *, images):
        return self.model(scale * images)


@pytest.mark.parametrize(
    ("wrap", "call"),
    [
        (nn.Sequential, lambda model: model(X)),
        (Named, lambda model: model(2, images=X)),
        (lambda model: nn.DataParallel(model, device_ids=[]), lambda model: model(X)),
    ],
)
def test_tokens_without_a_transform_in_training(wrap, call):
    inner = tokens()
    model = wrap(inner)
    message = r"gives \(3, 31, 6\): tokens, .* reshape_transform= .*tokens_to_grid"
    with GradCAM(model, inner.block) as cam:
        logits = call(model)
        refused(ValueError, message, model, lambda: cam.maps(logits))
    with GradCAM(model, inner.block, functools.partial(vit_reshape_transform, height=6, width=5)) as cam:
        assert cam.maps(call(model)).shape == (3, 6, 5)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv1d(3, 4, 1)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.position = nn.Embedding(20, 4)
        self.pick = nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        hidden, _ = self.rnn(self.features(x).transpose(1, 2))
        place = self.pick(torch.arange(x.shape[2]))
        return self.head(input=self.pick2(hidden + self.position(place)).mean(1))

    def pick2(self, x):
        return x


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("rnn", "layer 'rnn' gives tuple"),
        ("pick", "layer 'pick' gives a tensor of torch.int64"),
        (layer_input("position"), r"layer layer_input\('position'\) gives a tensor of torch.int64"),
    ],
)
def test_layer_that_gives_no_tensor_of_numbers(target, given):
    model, x = seeded(Recurrent), images(3, 1)
    message = (
        rf"{given}; expected one floating-point tensor \(B, C, ...\): choose a module inside it, or layer_input\(\) of"
    )
    refused(TypeError, message, model, lambda: GradCAM(model, target).explain(x))
    with GradCAM(model, target):
        refused(TypeError, message, model, lambda: model(x))
    with torch.no_grad(), GradCAM(model, target), untouched(model):
        model(x)  # nothing is recorded, so nothing is in the way


class Frames(nn.Module):
    """Clips of frames: more activations than logits."""

    def __init__(self):
        super().__init__()
        self.inner = deep()

    def forward(self, clips):
        return self.inner(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


def test_another_number_of_activations_than_of_logits():
    model, clips = Frames().eval(), images(6).view(2, 3, 3, 6, 5)
    message = (
        r"layer 'inner.features' has activations of shape \(6, 6, 6, 5\) for logits of shape \(2, 5\); expected as many"
    )
    refused(ValueError, message, model, lambda: GradCAM(model, "inner.features").explain(clips))
    per_clip = GradCAM(model, "inner.features", lambda a: a.unflatten(0, (2, 3)).transpose(1, 2)).explain(clips)
    assert per_clip.maps.shape == (2, 3, 6, 5)
    plain = deep()
    with GradCAM(plain, "features") as cam:
        logits = plain(X)
        refused(ValueError, "give maps.. the logits as the model returned them", plain, lambda: cam.maps(logits[:2]))


class Detached(nn.Module):
    """Cuts its own graph after the features, in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.features = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.head = nn.Linear(CHANNELS, 4)
        self.how = how

    def forward(self, x):
        features = self.features(x)
        if self.how == "detach":
            return self.head(features.mean((2, 3)).detach())
        if self.how == "keep":
            self.kept = features
            return self.head(features.mean((2, 3)).detach())
        with torch.no_grad():
            pooled = features.mean((2, 3))
            return self.head(pooled) if self.how == "no_grad" else pooled.argmax(1, keepdim=True).expand(-1, 4)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("how", ["detach", "no_grad", "integers"])
@pytest.mark.parametrize("classes", [0, "all"])
def test_output_independent_of_the_layer(how, frozen, classes):
    model = seeded(lambda: Detached(how)).requires_grad_(not frozen)
    message = (
        "the output does not depend on layer 'features': .*the model detaches or switches gradients off at or after "
        "this layer; choose a later layer"
    )
    refused(RuntimeError, message, model, lambda: GradCAM(model, "features").explain(X, classes))
    refused(RuntimeError, message, model, lambda: GradCAM(model, "features")(X))
    with GradCAM(model, "features") as cam:
        logits = model(X)
        if not logits.requires_grad:
            message = "the logits carry no graph back to layer 'features'"
        refused(RuntimeError, message, model, lambda: cam.maps(logits, classes))
    if how == "detach":  # the head is on the way to the output
        message = r"layer layer_input\('head'\) has no spatial positions"
        refused(ValueError, message, model, lambda: GradCAM(model, layer_input("head")).explain(X))


@pytest.mark.parametrize("classes", [0, "all"])
def test_output_independent_of_a_layer_that_the_model_keeps_alive(classes):
    model = seeded(lambda: Detached("keep"))
    model.kept = None
    message = "the output does not depend on layer 'features': .* choose a later layer"
    with pytest.raises(RuntimeError, match=message):
        LayerCAM(model, "features").explain(X, classes)


def test_score_independent_of_the_logits():
    model = deep()
    message = "^the score does not depend on the logits, so there is nothing to explain$"
    for score in (lambda logits, _: logits.detach()[:, 0], lambda logits, _: torch.ones(len(logits))):
        refused(ValueError, message, model, functools.partial(GradCAM(model, "features", score=score).explain, X))


def test_score_of_a_wrong_shape():
    model = deep()
    message = r"^the score returned shape \(3, 5\) for logits of shape \(3, 5\); expected one value per image, \(3,\)$"
    cam = GradCAM(model, "features", score=lambda logits, _: logits)
    refused(ValueError, message, model, lambda: cam.explain(X))
    message = r"^the score returned shape \(\) for logits of shape \(15, 5\); expected one value per image, \(15,\)$"
    cam = GradCAM(model, "features", score=lambda logits, _: logits.sum())
    refused(ValueError, message, model, lambda: cam.explain(X, "all"))


def test_weighting_of_a_wrong_shape():
    class Wider(TrainableCAM):
        @staticmethod
        def weighting(activations, gradients):  # noqa: ARG004
            return gradients.unsqueeze(0)

    model = deep()
    message = (
        r"the weighting returned shape \(1, 3, 6, 6, 5\), which does not broadcast to the activations \(3, 6, 6, 5\)"
    )
    refused(ValueError, message, model, lambda: Wider(model, "features").explain(X))


# What the model returns


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner = deep()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    ("wrap", "what", "fix", "output"),
    [
        (lambda z: (z, None), "tuple", r"output=lambda o: o\[0\]", lambda o: o[0]),
        (lambda z: [z], "list", r"output=lambda o: o\[0\]", lambda o: o[0]),
        (
            lambda z: {"out": z, "aux": 0},
            r"dict with keys \['aux', 'out'\]",
            r"output=lambda o: o\['out'\]",
            lambda o: o["out"],
        ),
        (
            lambda z: {"logits": [z]},
            r"dict with keys \['logits'\]",
            r"output=lambda o: o\['logits'\]",
            lambda o: o["logits"][0],
        ),
    ],
)
def test_output_that_is_no_tensor(wrap, what, fix, output):
    model = Wrapped(wrap)
    message = f"^the model returned {what}, not a tensor of logits; pass a function that finds them, such as {fix}$"
    refused(TypeError, message, model, lambda: GradCAM(model, "inner.features").explain(X))
    refused(TypeError, message, model, lambda: DiffGradCAM(model, "inner.features")(X))
    assert GradCAM(model, "inner.features", output=output).explain(X).maps.shape == (3, 6, 5)


def test_output_function_that_finds_no_tensor():
    model = deep()
    message = "^output= returned list; expected the tensor of logits$"
    refused(TypeError, message, model, lambda: GradCAM(model, "features", output=lambda o: [o]).explain(X))


def test_maps_of_no_tensor():
    model = Wrapped(lambda z: (z, None))
    with GradCAM(model, "inner.features") as cam:
        output = model(X)
        message = r"^maps\(\) takes the logits tensor of your forward pass, not tuple$"
        refused(TypeError, message, model, lambda: cam.maps(output))
        assert cam.maps(output[0]).shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("output", "shape"), [(lambda z: z[:, 0], r"\(3,\)"), (lambda z: z.view(3, 5, 1, 1), r"\(3, 5, 1, 1\)")]
)
def test_logits_of_a_wrong_shape(output, shape):
    model = deep()
    message = (
        rf"classes need logits of shape \(B, K\), but the model's output has shape {shape}; pass output= .*two_logits"
    )
    refused(ValueError, message, model, lambda: GradCAM(model, "features", output=output).explain(X))
    refused(ValueError, message, model, lambda: GradCAM(model, "features", output=output)(X))
    with GradCAM(model, "features") as cam:
        logits = output(model(X))
        refused(ValueError, message, model, lambda: cam.maps(logits))
    fixed = GradCAM(model, "features", output=lambda z: two_logits(z[:, 0]))
    assert fixed.explain(X).logits.shape == (3, 2)


def test_one_number_for_the_whole_batch():
    model = deep()
    message = "^the model's output is a single number for the whole batch; expected a row for each image$"
    cam = GradCAM(model, "features", output=lambda z: z.mean())
    refused(ValueError, message, model, lambda: cam.explain(X))
    refused(ValueError, message, model, lambda: cam(X, [RawScoresOutputTarget()] * 3))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_that_never_ran():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ValueError, match=r"^the model has lazy layers .*; run it once, on any batch, first$"):
        GradCAM(model, "1").explain(X.float())
    assert all(map(is_lazy, model.parameters()))
    model(X.float())
    assert GradCAM(model, "1").explain(X.float()).maps.shape == (3, X.shape[2] - 2, X.shape[3] - 2)


class Poisoned(nn.Module):
    """Puts a value into the features, which a clamp takes out again, or into the logits, of some images."""

    def __init__(self, value, images, into_logits):
        super().__init__()
        self.features = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.spoil = nn.Identity()
        self.head = nn.Linear(CHANNELS, 4)
        self.value, self.images, self.into_logits = value, images, into_logits

    def forward(self, x):
        poison = torch.zeros(len(x), 1, dtype=x.dtype)
        poison[self.images] = self.value
        features = self.features(x)
        if not self.into_logits:
            features = features + poison[:, :, None, None]
        features = self.spoil(features).nan_to_num(0).clamp(-9, 9)
        return self.head(features.mean((2, 3))) + (poison if self.into_logits else 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("spoilt", "count"), [([1], 1), ([2, 0], 2)])
@pytest.mark.parametrize("into_logits", [True, False])
def test_values_that_are_not_finite(value, spoilt, count, into_logits):
    model = seeded(lambda: Poisoned(value, spoilt, into_logits))
    what = "the output" if into_logits else "the activation of layer 'spoil'"
    message = (
        rf"^{what} of image {min(spoilt)} is NaN or infinite \({count} of 3 images\); check the input and the weights, "
        "and use bfloat16 or float32 where float16 overflows$"
    )
    for method in (GradCAM, DiffGradCAM, TrueFalseCAM):
        refused(ValueError, message, model, functools.partial(method(model, "spoil").explain, X, 1))
        refused(ValueError, message, model, functools.partial(method(model, "spoil"), X))


@pytest.mark.parametrize(
    ("output", "count"), [(lambda z: z[:, 0] * torch.tensor([1, torch.nan, 1]), r"image 1 .*\(1 of 3 im")]
)
def test_outputs_that_are_not_finite_without_classes(output, count):
    model = deep()
    refused(ValueError, count, model, lambda: GradCAM(model, "features", output=output).explain(X))


def test_finite_values_whose_sum_is_not_are_finite():
    check_finite("the output", torch.full((2, 8), 6e4, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"^the output of image 1 is NaN or infinite \(1 of 2 images\)"):
        check_finite("the output", torch.tensor([[1.0, 2.0], [torch.inf, -torch.inf]]))


def test_image_that_is_not_finite():
    model = deep()
    x = X.clone()
    x[2, 0, 1, 1] = torch.nan
    refused(ValueError, r"image 2 is NaN or infinite \(1 of 3 images\)", model, lambda: GradCAM(model, "features")(x))


def test_maps_in_training_leave_infinity_to_the_gradient_scaler():
    """By design: a step of mixed precision that overflows is skipped by the scaler, not stopped by an error."""
    model = deep()
    x = X.clone()
    x[1] = torch.inf
    with GradCAM(model, "features") as cam:
        maps = cam.maps(model(x), 0)
    assert maps[0].isfinite().all()
    assert not maps[1].isfinite().all()


# Which class


@pytest.mark.parametrize("call", ["explain", "call", "maps", "compare"])
@pytest.mark.parametrize(("classes", "wrong"), [([0, 5, 1], 5), ([0, -1, 7], -1), ([99, 0, 0], 99)])
def test_class_out_of_range(call, classes, wrong):
    model = deep()
    message = rf"^class {wrong} is out of range; the model has classes 0 to 4$"
    with TrueFalseCAM(model, "features") as cam:
        logits = model(X)
        ask = {
            "explain": lambda: cam.explain(X, classes),
            "call": lambda: cam(X, [ClassifierOutputTarget(label) for label in classes]),
            "maps": lambda: cam.maps(logits, torch.tensor(classes)),
            "compare": lambda: cam.compare(X, 0, false_classes=classes),
        }
        refused(ValueError, message, model, ask[call])


@pytest.mark.parametrize("label", [5, -1])
def test_one_class_out_of_range(label):
    model = deep()
    refused(ValueError, f"class {label} is out of range", model, lambda: GradCAM(model, "features").explain(X, label))
    refused(ValueError, f"class {label} is out of range", model, lambda: GradCAM(model, "features")(X, [label] * 3))


@pytest.mark.parametrize(
    ("classes", "shape"),
    [
        ([0, 1], r"\(2,\)"),
        ([0, 1, 2, 3], r"\(4,\)"),
        ([], r"\(0,\)"),
        (torch.zeros(2, 3, dtype=torch.long), r"\(2, 3\)"),
        (torch.empty(3, 0, dtype=torch.long), r"\(3, 0\)"),
        (torch.zeros(3, 1, 1, dtype=torch.long), r"\(3, 1, 1\)"),
    ],
)
def test_classes_of_a_wrong_shape(classes, shape):
    model = deep()
    message = rf"^classes have shape {shape} for 3 images; expected one class for all, \(3,\) or \(3, N\)$"
    refused(ValueError, message, model, lambda: GradCAM(model, "features").explain(X, classes))
    with GradCAM(model, "features") as cam:
        logits = model(X)
        refused(ValueError, message, model, lambda: cam.maps(logits, classes))


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (1.0, "float32"),
        ([0.0, 1.0, 2.0], "float32"),
        (torch.zeros(3, dtype=torch.float64), "float64"),
        (True, "bool"),
        (torch.ones(3, dtype=torch.bool), "bool"),
        (np.zeros(3), "float64"),
        (1j, "complex64"),
    ],
)
def test_classes_that_are_no_integers(classes, dtype):
    model = deep()
    message = rf"^classes are torch.{dtype}; expected integers \(class indices, such as labels.long\(\)\)$"
    refused(TypeError, message, model, lambda: GradCAM(model, "features").explain(X, classes))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_classes_of_any_integer_type(dtype):
    model = deep()
    explanation = GradCAM(model, "features").explain(X, torch.tensor([0, 3, 4], dtype=dtype))
    assert torch.equal(explanation.classes, torch.tensor([0, 3, 4]))
    assert torch.equal(explanation.maps, GradCAM(model, "features").explain(X, [0, 3, 4]).maps)


@pytest.mark.parametrize("classes", [["cat", "dog", "cup"], [[0], [1, 2], [3]], [None, 0, 1]])
def test_classes_that_are_no_numbers(classes):
    model = deep()
    message = r"^classes are \[.*\]; expected integers: one class for all images, \(3,\), or \(3, N\) with as many for"
    refused(TypeError, message, model, lambda: GradCAM(model, "features").explain(X, classes))


def test_unknown_word_for_classes():
    model = deep()
    message = "^classes='every'; the words for classes are 'all' and 'top1', 'top2', 'top3' and so on$"
    refused(ValueError, message, model, lambda: GradCAM(model, "features").explain(X, "every"))
    message = "^classes='top{}'; the words for classes are"
    for number in ("0", "", "-1", "1.5"):
        refused(
            ValueError, message.format(number), model, lambda n=number: GradCAM(model, "features").explain(X, f"top{n}")
        )
    message = "^classes='top6', but the model has 5 classes$"
    refused(ValueError, message, model, lambda: GradCAM(model, "features").explain(X, "top6"))


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_wrong_number_of_targets(number):
    """Never a silent zero map for the images that have none."""
    model = deep()
    message = rf"^got {number} targets for 3 images; give one target for each image$"
    for method in (GradCAM, DiffGradCAM):
        for target in (ClassifierOutputTarget(1), 2, RawScoresOutputTarget()):
            refused(ValueError, message, model, functools.partial(method(model, "features"), X, [target] * number))


@pytest.mark.parametrize("target", [ClassifierOutputTarget(1), 3, lambda z: z[0]])
def test_a_single_target(target):
    model = deep()
    message = (
        r"^targets is a single \w+; expected a list with one target for each of 3 images, such as \[target\] \* 3$"
    )
    refused(TypeError, message, model, lambda: GradCAM(model, "features")(X, target))
    assert GradCAM(model, "features")(X, [target] * 3).shape == (3, 6, 5)


@pytest.mark.parametrize("target", ["cat", 1.5, None, ClassifierOutputTarget("cat"), ClassifierOutputTarget(1.5)])
def test_target_of_a_wrong_type(target):
    model = deep()
    message = r"^target .* is neither a class nor a callable such as ClassifierOutputTarget\(3\)$"
    refused(TypeError, message, model, lambda: GradCAM(model, "features")(X, [0, target, 1]))


@pytest.mark.parametrize("labels", [torch.tensor([0, 3, 4]), np.array([0, 3, 4]), (0, 3, 4)])
def test_labels_as_targets(labels):
    model = deep()
    expected = GradCAM(model, "features")(X, [ClassifierOutputTarget(label) for label in (0, 3, 4)])
    assert np.array_equal(GradCAM(model, "features")(X, labels), expected)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (lambda z: z, r"shape \(5,\)"),
        (lambda z: z[0].item(), "float"),
        (lambda z: z.detach()[0], r"the constant [-.\d]+ \(nothing in the output matches it, or it detaches\)"),
        (lambda _: None, "NoneType"),
    ],
)
def test_target_that_returns_no_number(target, got):
    model = deep()
    message = (
        rf"^target function returned {got} for an output of shape \(5,\); expected a single number that depends on it$"
    )
    refused(ValueError, message, model, lambda: GradCAM(model, "features")(X, [target] * 3))


@pytest.mark.parametrize("method", [DiffGradCAM, DiffGradCAMPlusPlus, FinerCAM, TrueFalseCAM])
def test_target_with_a_score_of_its_own(method):
    """It never silently turns a contrast into plain Grad-CAM."""
    model = deep()
    message = rf"target RawScoresOutputTarget is a score of its own, but this {method.__name__} explains another score"
    cam = method(model, "features")
    refused(ValueError, message, model, lambda: cam(X, [RawScoresOutputTarget()] * 3))
    assert cam(X, [ClassifierOutputTarget(2)] * 3).shape == (3, 6, 5)


@pytest.mark.parametrize("given", [np.zeros((3, 3, 6, 5)), None, "cat.jpg", {"path": "cat.jpg"}])
def test_drop_in_call_of_no_tensor(given):
    model = deep()
    message = r"^input_tensor is \w+; expected a tensor of images \(B, C, H, W\), such as .*preprocess_image makes it"
    refused(TypeError, message, model, lambda: GradCAM(model, "features")(given))


# Contrasts


@pytest.mark.parametrize("method", [DiffGradCAM, DiffGradCAMPlusPlus, FinerCAM, TrueFalseCAM])
def test_contrast_of_a_single_class(method):
    model = deep(classes=1)
    message = (
        r"^a contrast needs at least 2 classes, but the logits have shape \(3, 1\); for a model with one sigmoid "
        r"output z pass output=diffgradcam.scores.two_logits, which reads it as z against -z$"
    )
    refused(ValueError, message, model, lambda: method(model, "features").explain(X))
    refused(ValueError, message, model, lambda: method(model, "features")(X))
    with method(model, "features") as cam:
        logits = model(X)
        refused(ValueError, message, model, lambda: cam.maps(logits))
    fixed = method(model, "features", output=two_logits)
    assert fixed.explain(X).logits.shape == (3, 2)
    assert fixed(X).any()
    with fixed:
        torch.testing.assert_close(fixed.maps(two_logits(model(X)), 1), fixed.explain(X, 1).maps)


def test_unknown_baseline():
    model = deep()
    message = (
        r"^'median' is not a baseline; expected one of \['logsumexp', 'max', 'mean'\], a class index or a callable$"
    )
    refused(ValueError, message, model, lambda: DiffGradCAM(model, "features", baseline="median"))
    refused(ValueError, message, model, lambda: DiffGradCAMPlusPlus(model, "features", baseline="median"))


@pytest.mark.parametrize("baseline", [5, -1])
def test_baseline_class_out_of_range(baseline):
    model = deep()
    message = rf"class {baseline} is out of range; the model has classes 0 to 4"
    refused(ValueError, message, model, lambda: DiffGradCAM(model, "features", baseline=baseline).explain(X, 0))


def test_class_contrasted_with_itself():
    model = deep()
    message = "class 2 would be contrasted with itself; explain another class, or contrast with another one"
    refused(ValueError, message, model, lambda: DiffGradCAM(model, "features", baseline=2).explain(X, [0, 2, 1]))
    cam = LayerCAM(model, "features", score=functools.partial(logit_difference, baseline=2))
    refused(ValueError, message, model, lambda: cam.explain(X, "all"))
    assert DiffGradCAM(model, "features", baseline=2).explain(X, [0, 3, 1]).maps.shape == (3, 6, 5)


def test_baseline_of_a_wrong_shape():
    model = deep()
    message = r"the baseline returned shape \(3, 1\); expected one value per image, \(3,\), from the other logits"
    cam = DiffGradCAM(model, "features", baseline=lambda others: others.mean(1, keepdim=True))
    refused(ValueError, message, model, lambda: cam.explain(X, 0))


@pytest.mark.parametrize("false_class", ["second", 1.0, None, True, [1]])
def test_unknown_false_class(false_class):
    model = deep()
    message = r"^false_class is .*; expected 'runner_up', 'mean' or a class index$"
    refused(ValueError, message, model, lambda: TrueFalseCAM(model, "features", false_class=false_class))


@pytest.mark.parametrize("false_class", [5, -1])
def test_false_class_out_of_range(false_class):
    model = deep()
    message = rf"^class {false_class} is out of range; the model has classes 0 to 4$"
    refused(ValueError, message, model, lambda: TrueFalseCAM(model, "features", false_class=false_class).explain(X, 0))
    refused(
        ValueError, message, model, lambda: TrueFalseCAM(model, "features").compare(X, 0, false_classes=false_class)
    )


def test_true_and_false_class_are_the_same():
    model = deep()
    message = "^class 3 would be contrasted with itself; explain another class, or contrast with another one$"
    cam = TrueFalseCAM(model, "features", false_class=3)
    refused(ValueError, message, model, lambda: cam.explain(X, [0, 3, 3]))
    refused(ValueError, message, model, lambda: cam.compare(X, [0, 3, 3]))
    refused(ValueError, message, model, lambda: cam(X, [0, 3, 3]))
    several = torch.tensor([[1, 2], [4, 3], [0, 1]])
    refused(ValueError, message, model, lambda: cam.compare(X, [0, 3, 3], false_classes=several))
    assert TrueFalseCAM(model, "features").compare(X, [0, 3, 3]).difference.shape == (3, 6, 5)


def test_several_true_classes_to_compare():
    model = deep()
    message = r"^classes have shape \(3, 2\); compare\(\) takes one true class for each image$"
    refused(ValueError, message, model, lambda: TrueFalseCAM(model, "features").compare(X, torch.tensor([[0, 1]] * 3)))


def test_too_few_comparisons():
    model = deep()
    message = "comparisons is 0; expected at least 1 class to compare with"
    refused(ValueError, message, model, lambda: FinerCAM(model, "features", comparisons=0).explain(X))


# Maps of one's own forward pass


def test_maps_before_any_forward_pass():
    model = deep()
    logits = model(X)
    message = (
        r"layer 'features' did not run in a recorded forward pass; call the model \(not its forward method\) while"
    )
    refused(RuntimeError, message, model, lambda: GradCAM(model, "features").maps(logits))
    with GradCAM(model, "features") as cam:
        refused(RuntimeError, message, model, lambda: cam.maps(logits))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_after_a_forward_pass_without_gradients(mode):
    model = deep()
    with GradCAM(model, "features") as cam:
        with mode():
            logits = model(X)
        message = r"layer 'features' ran without gradients \(no_grad, .*; switch gradients on .*, or use explain\(\)"
        refused(RuntimeError, message, model, lambda: cam.maps(logits))
        recorded = model(X)  # a pass with gradients does not help the logits of the pass without
        message = r"the logits carry no graph back to layer 'features': they come from no_grad or inference_mode, or"
        refused(RuntimeError, message, model, lambda: cam.maps(logits))
        refused(RuntimeError, message, model, lambda: cam.maps(recorded.detach()))
        refused(RuntimeError, message, model, lambda: cam.maps(cam.explain(X).logits))
        assert cam.maps(recorded).shape == (3, 6, 5)


def test_maps_with_logits_of_another_model_or_pass():
    model, other = deep(), flat()
    message = "the output does not depend on layer 'features': it comes from a forward pass that was not recorded"
    unrecorded = model(X)
    with GradCAM(model, "features") as cam:
        recorded = model(X)
        refused(RuntimeError, message, model, lambda: cam.maps(other(X)))
        refused(RuntimeError, message, model, lambda: cam.maps(unrecorded))
    late = model(X)
    refused(RuntimeError, message, model, lambda: cam.maps(late))
    assert cam.maps(recorded).shape == (3, 6, 5)


def test_maps_after_backward():
    model = deep()
    message = (
        r"^cannot go back from the logits to layer 'features', because backward\(\) has freed their graph; ask for the "
        r"maps before backward\(\), or call backward\(retain_graph=True\)$"
    )
    with GradCAM(model, "features") as cam:
        logits = model(X)
        logits.sum().backward()
        refused(RuntimeError, message, model, lambda: cam.maps(logits))
        logits = model(X)
        logits.sum().backward(retain_graph=True)
        kept = cam.maps(logits)
    torch.testing.assert_close(kept, GradCAM(model, "features").explain(X).maps)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = deep()

    def forward(self, x):
        return self.model[3:](checkpoint(self.model[:3], x, use_reentrant=True))


def test_reentrant_checkpointing():
    """It runs its layers without gradients; what enters the layer that follows has them."""
    model, x = Checkpointed().eval(), X.clone().requires_grad_()
    expected = GradCAM(model.model, "features").explain(X).maps
    fixed = GradCAM(model, layer_input("model.relu"))
    with GradCAM(model, "model.features") as cam, fixed:
        logits = model(x)
        message = r"layer 'model.features' ran without gradients \(no_grad, inference_mode or reentrant checkpointing\)"
        refused(RuntimeError, message, model, lambda: cam.maps(logits))
        torch.testing.assert_close(fixed.maps(logits), expected)
    message = r"switches gradients off at or after this layer; choose a later layer, or layer_input\(\) of one$"
    refused(RuntimeError, message, model, lambda: cam.explain(x))
    assert torch.equal(fixed.explain(x).maps, expected)


class FrozenBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(OrderedDict(backbone()))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(self.pool(features).flatten(1))


def test_layer_that_the_model_runs_without_gradients():
    model = seeded(FrozenBackbone)
    message = r"switches gradients off at or after this layer; choose a later layer, or layer_input\(\) of one$"
    for layer in ("backbone", "backbone.features"):
        refused(RuntimeError, message, model, functools.partial(GradCAM(model, layer).explain, X))
    fixed = GradCAM(model, layer_input("pool"))
    by_hand = (model.head.weight[1][:, None, None] * model.backbone(X)).sum(1).relu() / 30
    torch.testing.assert_close(fixed.explain(X, 1).maps, by_hand.detach())
    with fixed:
        torch.testing.assert_close(fixed.maps(model(X), 1), by_hand.detach())


# Pictures


IMAGE = np.full((4, 5, 3), 0.5, dtype=np.float32)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf, -np.inf, 255.0])
def test_show_cam_on_image_refuses_masks_that_would_wrap_around(value):
    mask = np.full((4, 5), 0.5)
    assert show_cam_on_image(IMAGE, mask).shape == (4, 5, 3)
    mask[2, 3] = value
    with pytest.raises(ValueError, match=r"expected .*\[0, 1\]"):
        show_cam_on_image(IMAGE, mask)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, 255.0])
def test_show_cam_on_image_refuses_images_that_are_not_scaled(value):
    img = IMAGE.copy()
    img[0, 0, 0] = value
    with pytest.raises(ValueError, match=r"expected .*\[0, 1\]"):
        show_cam_on_image(img, np.full((4, 5), 0.5))


def test_heat_maps_of_every_method_can_be_shown():
    heat = GradCAM(pooled(), "features")(X)
    overlay = show_cam_on_image(np.full((6, 5, 3), 0.5, dtype=np.float32), heat[0], use_rgb=True)
    assert (overlay.shape, overlay.dtype) == ((6, 5, 3), np.uint8)
