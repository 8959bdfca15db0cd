"""Every hint is executed: each error that advises something is triggered, its advice followed, and the map is right.

Right means: as a forward hook and a backward pass through the whole model give it. Where a message contains code, that
very code is run.
"""

import ast
import copy
import functools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import diffgradcam
from diffgradcam import (
    CAM,
    AblationCAM,
    DiffGradCAM,
    EigenCAM,
    FullGrad,
    GradCAM,
    NoiseSmooth,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    TrainableCAM,
    layer_input,
    weightings,
)
from diffgradcam.export import with_maps
from diffgradcam.scores import LogitDifference, two_logits
from diffgradcam.targets import (
    ClassifierOutputTarget,
    FasterRCNNBoxScoreTarget,
    RawScoresOutputTarget,
    SemanticSegmentationTarget,
    SimilarityTarget,
    detections,
)
from diffgradcam.tokens import tokens_to_grid

from .models import CHANNELS, backbone, deep, flat, images, pooled, seeded, tokens

X = images(3)
SQUARE = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# --- the reference


def by_hand(model, layer, run=None, *, entering=False, number=0, score=lambda z: z[:, 1].sum(), grid=lambda a: a):
    """Grad-CAM of class 1: a hook on the layer, and autograd through the whole model."""
    run = run or (lambda: model(X))
    seen = []

    def see(value):
        value = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
        seen.append(value)
        return value.clone()

    module = model.get_submodule(layer)
    handle = (
        module.register_forward_pre_hook(lambda _, args: (see(args[0]), *args[1:]))
        if entering
        else module.register_forward_hook(lambda _, __, output: see(output))
    )
    try:
        with torch.enable_grad():
            value = score(run())
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(value, seen[number])
    activations, gradient = grid(seen[number].detach()), grid(gradient)
    weights = gradient.flatten(2).mean(2)
    return (weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations).sum(1).relu()


def maps(cam, *args, **kwargs):
    """Of class 1."""
    return cam.explain(*(args or (X,)), 1, **kwargs).maps


def in_training(cam, model, run=None):
    """As maps() gives them."""
    with cam:
        return cam.maps((run or (lambda: model(X)))(), 1).detach()


# --- the table


class Hint(NamedTuple):
    """An error and its advice."""

    name: str
    error: type[Exception] | tuple[type[Exception], ...]
    says: str
    """A pattern of the advice."""
    build: Callable[[], tuple[Callable[[], Any], Callable[[str], torch.Tensor], Callable[[], torch.Tensor]]]
    """Makes what triggers the error, what takes its message and does what it says, and the right map."""
    today: str
    """Why the advice does not work yet."""


HINTS: list[Hint] = []


def hint(error, says, today=""):
    """Add a row to the table."""

    def add(build):
        HINTS.append(Hint(build.__name__, error, says, build, today))
        return build

    return add


# which layer


@hint(ValueError, r"did you mean '.*'\?$")
def a_name_that_is_close():
    model = deep()

    def follow(message):
        suggested = re.search(r"did you mean '(\w+)'", message).group(1)
        return maps(GradCAM(model, suggested))

    return lambda: GradCAM(model, "featurs"), follow, lambda: by_hand(model, "features")


@hint(ValueError, r"list the names with \[name for name, _ in model.named_modules\(\)\]")
def a_name_that_is_not_close():
    model = deep()

    def follow(message):
        names = eval(re.search(r"\[.*?\(\)\]", message).group(), {"model": model})
        return maps(GradCAM(model, names[3]))

    return lambda: GradCAM(model, "backbone.layer4"), follow, lambda: by_hand(model, "features")


@hint(ValueError, "take the layer from the very model that is explained .*, or give its dotted name")
def a_layer_of_a_copy():
    model = deep()
    return (
        lambda: GradCAM(model, copy.deepcopy(model).features),
        lambda _: (maps(GradCAM(model, model.features)) + maps(GradCAM(model, "features"))) / 2,
        lambda: by_hand(model, "features"),
    )


@hint(ValueError, "expected at least one module or dotted name")
def no_layer():
    model = deep()
    return lambda: GradCAM(model, []), lambda _: maps(GradCAM(model, ["features"])), lambda: by_hand(model, "features")


@hint(TypeError, r"expected a module, a dotted name such as 'layer4.1', layer_input\(\) of either")
def a_layer_by_number():
    model = deep()
    return (
        lambda: GradCAM(model, 2),
        lambda _: maps(GradCAM(model, layer_input("features"))),
        lambda: by_hand(model, "features", entering=True),
    )


class Shared(nn.Module):
    """One activation that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.act, self.last = nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, CHANNELS, 1)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        return self.head(self.act(self.last(self.act(self.stem(x)))).square().mean((2, 3)))


@hint(RuntimeError, 'choose it with run="first", run="last", run="all" or the number of the run')
def a_layer_that_runs_twice():
    model = seeded(Shared)

    def follow(message):
        runs = re.findall(r'run="(\w+)"', message)
        assert runs == ["first", "last", "all"]
        found = [maps(GradCAM(model, "act", run=run)) for run in (*runs, 0, 1)]
        return torch.cat(found)

    def right():
        first, last = (by_hand(model, "act", number=number) for number in (0, 1))
        return torch.cat([first, last, (first + last) / 2, first, last])

    return lambda: maps(GradCAM(model, "act")), follow, right


@hint(ValueError, "expected 0 to 1$")
def a_run_that_there_is_not():
    model = seeded(Shared)

    def follow(message):
        return maps(GradCAM(model, "act", run=int(message[-1])))

    return lambda: maps(GradCAM(model, "act", run=2)), follow, lambda: by_hand(model, "act", number=1)


@hint(ValueError, "expected 'first', 'last', 'all', the number of a run, or None")
def a_run_by_another_word():
    model = seeded(Shared)
    return (
        lambda: GradCAM(model, "act", run="second"),
        lambda _: maps(GradCAM(model, "act", run="last")),
        lambda: by_hand(model, "act", number=1),
    )


class Listed(nn.Module):
    """Calls the parts of a ModuleList, never the list."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, CHANNELS, 1)])
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x.square().mean((2, 3)))


@hint(RuntimeError, r"choose a layer that the model calls \(a ModuleList is never called\)")
def a_list_of_modules():
    model = seeded(Listed)
    return (
        lambda: maps(GradCAM(model, "blocks")),
        lambda _: maps(GradCAM(model, "blocks.1")),
        lambda: by_hand(model, "blocks.1"),
    )


@hint(RuntimeError, r"call the model \(not its forward method\) while the CAM is attached")
def a_layer_called_by_its_forward_method():
    model = deep()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(OrderedDict(backbone()))
            self.head = nn.Linear(CHANNELS, 3)

        def forward(self, x):
            return self.head(self.inner(x).tanh().mean((2, 3)))

    model = seeded(Outer)
    cam = GradCAM(model, "inner")

    def before():
        logits = model(X)
        with cam:
            return cam.maps(logits, 1)

    return before, lambda _: in_training(cam, model), lambda: by_hand(model, "inner")


@hint(TypeError, r"choose a module inside it, or layer_input\(\) of a module that takes one")
def a_layer_that_gives_a_tuple():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.split, self.last = nn.Conv2d(3, 4, 1), Split(), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            left, right = self.split(self.conv(x))
            return self.head(self.last(left * right).tanh().mean((2, 3)))

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.left(x), x

    model = seeded(Net)
    return (
        lambda: maps(GradCAM(model, "split")),
        lambda _: maps(GradCAM(model, "split.left")) + maps(GradCAM(model, layer_input("last"))),
        lambda: by_hand(model, "split.left") + by_hand(model, "last", entering=True),
    )


class Merged(nn.Module):
    """A module of two arguments of one form."""

    class Merge(nn.Module):
        def forward(self, a, b):
            return a.tanh() * b

    def __init__(self):
        super().__init__()
        self.a, self.b, self.merge = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), self.Merge()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.merge(self.a(x), self.b(x)).square().mean((2, 3)))


@hint(ValueError, r"name it: layer_input\(\.\.\., argument=0 or argument=1\)$")
def a_layer_of_two_arguments():
    model = seeded(Merged)
    return (
        lambda: maps(GradCAM(model, layer_input("merge"))),
        lambda _: torch.cat([maps(GradCAM(model, layer_input("merge", argument=i))) for i in (0, 1)]),
        lambda: torch.cat([by_hand(model, name) for name in ("a", "b")]),
    )


@hint(ValueError, r"was called with the arguments \[0, 1\]; name one of these$")
def an_argument_that_there_is_not():
    model = seeded(Merged)
    return (
        lambda: maps(GradCAM(model, layer_input("merge", argument="other"))),
        lambda _: maps(GradCAM(model, layer_input("merge", argument=1))),
        lambda: by_hand(model, "b"),
    )


# what the layer gives


@hint(ValueError, r"choose a layer before the pooling, whose activations are \(B, C, \.\.\.\)$")
def a_layer_after_the_pooling():
    model = deep()
    return (
        lambda: maps(GradCAM(model, "hidden")),
        lambda _: maps(GradCAM(model, "relu")),
        lambda: by_hand(model, "relu"),
    )


def square_tokens(activations):
    return activations[:, 1:].transpose(1, 2).reshape(len(activations), CHANNELS, 6, 6)


def oblong_tokens(activations):
    return activations[:, 1:].transpose(1, 2).reshape(len(activations), CHANNELS, 6, 5)


@hint(ValueError, r"such as tokens_to_grid of diffgradcam.tokens for the patches of an image$")
def tokens_of_square_images():
    model = tokens()
    return (
        lambda: maps(GradCAM(model, "block"), SQUARE),
        lambda _: maps(GradCAM(model, "block", tokens_to_grid), SQUARE),
        lambda: by_hand(model, "block", lambda: model(SQUARE), grid=square_tokens),
    )


@hint(ValueError, r"; pass reshape_transform=tokens_to_grid of diffgradcam.tokens itself")
def tokens_of_oblong_images():
    model = tokens()
    wrong = SQUARE[:, :, :4].contiguous()  # 4 x 6 patches and one

    def transpose(activations):
        return activations[:, 1:].transpose(1, 2).unflatten(2, (2, 12))

    return (
        lambda: maps(GradCAM(model, "block", transpose), wrong),
        lambda _: maps(GradCAM(model, "block", tokens_to_grid), wrong),
        lambda: by_hand(
            model,
            "block",
            lambda: model(wrong),
            grid=lambda a: a[:, 1:].transpose(1, 2).unflatten(2, (4, 6)),
        ),
    )


class Cube(nn.Module):
    """As many channels as rows and columns, which come last."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.same = nn.Conv2d(3, 6, 1), nn.LayerNorm(6), nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.same(self.norm(self.conv(x).movedim(1, 3))).tanh().mean((1, 2)))


@hint(ValueError, r"or reshape_transform=lambda x: x.movedim\(-1, 1\) for the last$")
def axes_that_cannot_be_told():
    model = seeded(Cube)
    return (
        lambda: maps(GradCAM(model, "same"), SQUARE),
        lambda _: maps(GradCAM(model, "same", lambda x: x.movedim(-1, 1)), SQUARE),
        lambda: by_hand(model, "same", lambda: model(SQUARE), grid=lambda a: a.permute(0, 3, 1, 2)),
    )


@hint(ValueError, r"pass reshape_transform=lambda x: x.movedim\(-1, 1\)$")
def channels_left_as_places():
    model = seeded(Last)
    return (
        lambda: maps(GradCAM(model, "norm", lambda x: x)),
        lambda _: maps(GradCAM(model, "norm", lambda x: x.movedim(-1, 1))),
        lambda: by_hand(model, "norm", grid=lambda a: a.permute(0, 3, 1, 2)),
    )


class Enlarged(nn.Module):
    def __init__(self):
        super().__init__()
        self.large, self.head = nn.Identity(), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.large(F.interpolate(x, scale_factor=2)).tanh().mean((2, 3)))


@hint(ValueError, r"say so with reshape_transform=lambda x: x \(channels on the second axis\)")
def places_finer_than_the_image():
    model = seeded(Enlarged)
    return (
        lambda: maps(GradCAM(model, "large")),
        lambda _: maps(GradCAM(model, "large", lambda x: x)),
        lambda: by_hand(model, "large"),
    )


@hint(
    ValueError, "height=..., width=..., extra_tokens=...\\), or choose a layer whose tokens are patches of the image$"
)
def tokens_that_are_no_patches():
    model = tokens()

    def some(activations):
        return tokens_to_grid(activations[:, :24], image_size=(6, 5))

    return (
        lambda: maps(GradCAM(model, "block", some)),
        lambda _: maps(GradCAM(model, "block", functools.partial(tokens_to_grid, height=6, width=5, extra_tokens=1))),
        lambda: by_hand(model, "block", grid=oblong_tokens),
    )


class OnSpectrograms(nn.Module):
    """Sixteen tokens, in two rows, of an input without channels: (B, time, frequency)."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Linear(4, CHANNELS), nn.Linear(CHANNELS, 3)

    def forward(self, spectrogram):
        return self.head(self.tokens(spectrogram.reshape(-1, 16, 4)).tanh().mean(1))


@hint(ValueError, r"whose size as an image is not certain; give the grid that they are, .*extra_tokens=\.\.\.\)$")
def tokens_of_a_spectrogram():
    model, spectrogram = seeded(OnSpectrograms), SQUARE.new_ones(3, 32, 2) * torch.arange(32)[:, None] / 32
    grid = functools.partial(tokens_to_grid, height=2, width=8)
    return (
        lambda: maps(GradCAM(model, "tokens", tokens_to_grid), spectrogram),
        lambda _: maps(GradCAM(model, "tokens", grid), spectrogram),
        lambda: by_hand(
            model, "tokens", lambda: model(spectrogram), grid=lambda a: a.transpose(1, 2).unflatten(2, (2, 8))
        ),
    )


class Last(nn.Module):
    """Channels come last."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, CHANNELS, 1), nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).movedim(1, 3)).tanh().mean((1, 2)))


@hint(ValueError, "are a grid already, without extra tokens; leave it out$")
def extra_tokens_of_a_grid():
    model = seeded(Last)
    return (
        lambda: maps(GradCAM(model, "norm", functools.partial(tokens_to_grid, extra_tokens=1)), SQUARE),
        lambda _: maps(GradCAM(model, "norm", functools.partial(tokens_to_grid, height=6, width=5))),
        lambda: by_hand(model, "norm", grid=lambda a: a.permute(0, 3, 1, 2)),
    )


@hint(ValueError, r"pass a function of your own that brings them into the form \(B, C, \.\.\.\)$")
def activations_of_five_axes():
    model = seeded(lambda: nn.Sequential(nn.Conv3d(3, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten()))
    clips = images(2, dims=3)
    return (
        lambda: maps(GradCAM(model, "0", tokens_to_grid), clips),
        lambda _: maps(GradCAM(model, "0", lambda a: a), clips),
        lambda: by_hand(model, "0", lambda: model(clips)),
    )


@hint(ValueError, r"bring activations of parts of an image into the form \(B, C, \.\.\.\) with reshape_transform=$")
def frames_of_a_clip():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = deep()

        def forward(self, clips):
            return self.inner(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)

    model, clips = Frames().eval(), images(6).view(2, 3, 3, 6, 5)

    def grid(activations):
        return activations.unflatten(0, (2, 3)).transpose(1, 2)

    return (
        lambda: maps(GradCAM(model, "inner.features"), clips),
        lambda _: maps(GradCAM(model, "inner.features", grid), clips),
        lambda: by_hand(model, "inner.features", lambda: model(clips), grid=grid),
    )


# what the model returns


class Returns(nn.Module):
    """A model that returns its logits in something."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = deep(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def suggested_output(message):
    return eval(message.rpartition("such as output=")[2])


@hint(TypeError, r"pass a function that finds them, such as output=lambda o: o\['out'\]$")
def a_dictionary():
    model = Returns(lambda z: {"out": z})
    return (
        lambda: maps(GradCAM(model, "inner.features")),
        lambda message: maps(GradCAM(model, "inner.features", output=suggested_output(message))),
        lambda: by_hand(model, "inner.features", score=lambda o: o["out"][:, 1].sum()),
    )


@hint(TypeError, r"pass a function that finds them, such as output=lambda o: o\[0\]$")
def a_tuple():
    model = Returns(lambda z: (z, z.mean(1)))
    return (
        lambda: maps(GradCAM(model, "inner.features")),
        lambda message: maps(GradCAM(model, "inner.features", output=suggested_output(message))),
        lambda: by_hand(model, "inner.features", score=lambda o: o[0][:, 1].sum()),
    )


def as_detections(z):
    """A box for each image, whose score is the first logit."""
    boxes = torch.stack([torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0]), 4 + z[:, 1].tanh(), 5 + z[:, 2].tanh()])
    return [
        {"boxes": box[None], "labels": torch.tensor([1]), "scores": score[None].sigmoid()}
        for box, score in zip(boxes.T, z[:, 0], strict=True)
    ]


def detected(model):
    with torch.no_grad():
        return [FasterRCNNBoxScoreTarget(one["labels"], one["boxes"] + 0.25) for one in model(X)]


def detection_score(output, model):
    total = 0
    for one, target in zip(output, detected(model), strict=True):
        (a,), (b,) = one["boxes"], target.bounding_boxes
        shared = torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])
        union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared.prod()
        total = total + shared.prod() / union + one["scores"][0]
    return total


def right_detections(model):
    return by_hand(model, "inner.features", score=lambda o: detection_score(o, model))


@hint(
    TypeError,
    "such as output=",
)
def the_list_of_a_detector():
    model = Returns(as_detections)

    def follow(message):
        code = message.rpartition("such as output=")[2]
        output = eval(code, {"diffgradcam": diffgradcam, "detections": detections})
        return GradCAM(model, "inner.features", output=output).explain(X, detected(model)).maps

    return (
        lambda: GradCAM(model, "inner.features").explain(X, detected(model)),
        follow,
        lambda: right_detections(model),
    )


@hint(ValueError, r"explain a torchvision detector with output=diffgradcam.targets.detections$")
def a_target_of_detections_on_logits():
    model = Returns(as_detections)

    def follow(message):
        output = eval(message.rpartition("output=")[2], {"diffgradcam": diffgradcam})
        return GradCAM(model, "inner.features", output=output).explain(X, detected(model)).maps

    def trigger():
        cam = GradCAM(model, "inner.features", output=lambda o: torch.stack([one["boxes"] for one in o]))
        return cam.explain(X, detected(model))

    return trigger, follow, lambda: right_detections(model)


@hint(TypeError, "expected the tensor of logits$")
def an_output_that_is_not_a_tensor():
    model = Returns(lambda z: {"out": (z, 1)})
    return (
        lambda: maps(GradCAM(model, "inner.features", output=lambda o: o["out"])),
        lambda _: maps(GradCAM(model, "inner.features", output=lambda o: o["out"][0])),
        lambda: by_hand(model, "inner.features", score=lambda o: o["out"][0][:, 1].sum()),
    )


@hint(ValueError, "expected a row for each image$")
def a_single_number():
    model = Returns(lambda z: z)
    return (
        lambda: maps(GradCAM(model, "inner.features", output=lambda z: z.mean())),
        lambda _: maps(GradCAM(model, "inner.features", output=lambda z: z)),
        lambda: by_hand(model, "inner.features"),
    )


@hint(ValueError, r"pass output= a function that reduces it \(diffgradcam.scores.two_logits for one sigmoid output, ")
def one_sigmoid_output():
    model = Returns(lambda z: z[:, 0])
    return (
        lambda: maps(GradCAM(model, "inner.features")),
        lambda _: maps(GradCAM(model, "inner.features", output=two_logits)),
        lambda: by_hand(model, "inner.features", score=lambda z: z.sum() / 2),
    )


@hint(
    ValueError,
    "explain the output with a target such as RawScoresOutputTarget",
)
def a_regression():
    model = Returns(lambda z: z[:, 0])

    def follow(_):
        return GradCAM(model, "inner.features").explain(X, [RawScoresOutputTarget()] * 3).maps

    return (
        lambda: GradCAM(model, "inner.features").explain(X),
        follow,
        lambda: by_hand(model, "inner.features", score=lambda z: z.sum()),
    )


class Pixels(nn.Module):
    """Logits of every pixel, at half the size."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.head(self.stem(x).tanh())


MASK = torch.zeros(6, 6, dtype=torch.bool)
MASK[1:4, 2:] = True


@hint(ValueError, "or explain the output with a target such as .*SemanticSegmentationTarget$")
def logits_of_pixels():
    model = seeded(Pixels)
    target = SemanticSegmentationTarget(1, MASK[::2, ::2])
    return (
        lambda: maps(GradCAM(model, "stem"), SQUARE),
        lambda _: GradCAM(model, "stem").explain(SQUARE, [target] * 3).maps,
        lambda: by_hand(model, "stem", lambda: model(SQUARE), score=lambda z: z[:, 1][:, MASK[::2, ::2]].sum()),
    )


@hint(ValueError, r"with output=lambda o: torch.nn.functional.interpolate\(\.\.\., mode='bilinear'\)$")
def a_mask_of_another_size():
    model = seeded(Pixels)
    targets = [SemanticSegmentationTarget(1, MASK)] * 3

    def enlarge(o):
        return torch.nn.functional.interpolate(o, (6, 6), mode="bilinear")

    return (
        lambda: GradCAM(model, "stem").explain(SQUARE, targets),
        lambda _: GradCAM(model, "stem", output=enlarge).explain(SQUARE, targets).maps,
        lambda: by_hand(model, "stem", lambda: enlarge(model(SQUARE)), score=lambda z: z[:, 1][:, MASK].sum()),
    )


@hint(ValueError, "such as output=lambda o: o.image_embeds$")
def the_embedding_of_an_image():
    class Embedded(NamedTuple):
        logits: torch.Tensor
        image_embeds: torch.Tensor

    model = Returns(lambda z: Embedded(z[:, :2], z))
    text = torch.linspace(-1, 1, 5, dtype=torch.float64)
    targets = [SimilarityTarget(text)] * 3

    def follow(message):
        output = eval(message.rpartition("such as output=")[2])
        return GradCAM(model, "inner.features", output=output).explain(X, targets).maps

    return (
        lambda: GradCAM(model, "inner.features").explain(X, targets),
        follow,
        lambda: by_hand(
            model, "inner.features", score=lambda o: F.cosine_similarity(o.image_embeds, text[None], dim=1).sum()
        ),
    )


@hint(ValueError, "run it once, on any batch, first$")
def lazy_layers():
    def build():
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))

    model = build().double()

    def follow(_):
        model(X)
        return maps(GradCAM(model, "1"))

    return lambda: maps(GradCAM(build().double(), "1")), follow, lambda: by_hand(model, "1")


@hint(ValueError, "use bfloat16 or float32 where float16 overflows$")
def float16_that_overflows():
    model = pooled(dtype=torch.float16)
    model.features.weight.data.mul_(3e4)
    wide = copy.deepcopy(model).float()
    x = X.float()
    return (
        lambda: maps(GradCAM(model, "features"), x.half()),
        lambda _: maps(GradCAM(wide, "features"), x),
        lambda: by_hand(wide, "features", lambda: wide(x)),
    )


# the graph


class Detaches(nn.Module):
    """Gradients stop between two layers."""

    def __init__(self, how=torch.no_grad):
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.how = how

    def forward(self, x):
        with self.how():
            x = self.stem(x).tanh()
        return self.head(self.last(x.detach()).tanh().mean((2, 3)))


@hint(RuntimeError, r"choose a later layer, or layer_input\(\) of one$")
def a_layer_before_a_detach():
    model = seeded(Detaches)
    return (
        lambda: maps(GradCAM(model, "stem")),
        lambda _: maps(GradCAM(model, "last")) + maps(GradCAM(model, layer_input("last"))),
        lambda: by_hand(model, "last") + by_hand(model, "last", entering=True),
    )


class Inside(nn.Module):
    """A frozen backbone under inference mode."""

    def __init__(self, how=torch.inference_mode):
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.how = how

    def forward(self, x):
        with self.how():
            x = self.stem(x)
        return self.head(self.last(x).tanh().mean((2, 3)))


@hint(RuntimeError, r"use torch.no_grad\(\) in the model instead and choose the first layer after it")
def inference_mode_in_the_model():
    model = seeded(Inside)

    def follow(message):
        assert "or use a method that needs no gradient, such as EigenCAM or ScoreCAM" in message
        for method in (EigenCAM, ScoreCAM):
            other = seeded(lambda: Inside(torch.no_grad))
            torch.testing.assert_close(maps(method(model, "stem")), maps(method(other, "stem")))
        model.how = torch.no_grad
        found = maps(GradCAM(model, "last")) + maps(GradCAM(model, layer_input("last")))
        model.how = torch.inference_mode
        return found

    def right():
        other = seeded(lambda: Inside(torch.no_grad))
        return by_hand(other, "last") + by_hand(other, "last", entering=True)

    return lambda: maps(GradCAM(model, "stem")), follow, right


@hint(RuntimeError, r"switch gradients on for the forward pass .*, or use explain\(\) or the call, which need none$")
def maps_without_gradients():
    model = deep()

    def trigger():
        with torch.no_grad(), GradCAM(model, "features") as cam:
            return cam.maps(model(X), 1)

    def follow(_):
        with torch.no_grad():
            explained = maps(GradCAM(model, "features"))
        return in_training(GradCAM(model, "features"), model) + explained

    return trigger, follow, lambda: 2 * by_hand(model, "features")


@hint(RuntimeError, r"checkpoint with use_reentrant=False")
def reentrant_checkpointing():
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.inner, self.reentrant = deep(), reentrant

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    x = X.clone().requires_grad_()

    def ask(reentrant):
        model = Checkpointed(reentrant)
        return in_training(GradCAM(model, "inner.features"), model, lambda: model(x))

    plain = deep()
    return lambda: ask(True), lambda _: ask(False), lambda: by_hand(plain, "features")


@hint(RuntimeError, r"give maps\(\) the logits of a forward pass with gradients$")
def logits_without_a_graph():
    model = deep()

    def trigger():
        with GradCAM(model, "features") as cam:
            return cam.maps(model(X).detach(), 1)

    return trigger, lambda _: in_training(GradCAM(model, "features"), model), lambda: by_hand(model, "features")


@hint(RuntimeError, r"ask for the maps before backward\(\), or call backward\(retain_graph=True\)$")
def maps_after_backward():
    model = deep()

    def ask(**options):
        with GradCAM(model, "features") as cam:
            logits = model(X)
            logits.sum().backward(**options)
            return cam.maps(logits, 1).detach()

    def follow(_):
        with GradCAM(model, "features") as cam:
            logits = model(X)
            before = cam.maps(logits, 1).detach()
            logits.sum().backward()
        return before + ask(retain_graph=True)

    return ask, follow, lambda: 2 * by_hand(model, "features")


@hint(RuntimeError, r"take the maps before the step, or explain a copy of the model \(copy.deepcopy\) while it trains$")
def maps_after_a_step():
    model = deep()

    def ask(step_first):
        with GradCAM(model, "features") as cam:
            logits = model(X)
            if step_first:
                with torch.no_grad():
                    for weight in model.parameters():
                        weight.mul_(1)
            return cam.maps(logits, 1).detach()

    return (
        lambda: ask(True),
        lambda _: ask(False) + maps(GradCAM(copy.deepcopy(model), "features")),
        lambda: 2 * by_hand(model, "features"),
    )


@hint(RuntimeError, "take the maps of each pass$")
def logits_of_two_passes():
    model = deep()

    def ask(join):
        with GradCAM(model, "features") as cam:
            logits = [model(X), model(X + 1)]
            return cam.maps(torch.cat(logits), 1) if join else torch.cat([cam.maps(z, 1) for z in logits]).detach()

    return (
        lambda: ask(True),
        lambda _: ask(False),
        lambda: torch.cat([by_hand(model, "features"), by_hand(model, "features", lambda: model(X + 1))]),
    )


@hint(RuntimeError, "transform the model while no CAM is attached to it, and explain outside of the transform$")
def a_transform_of_torch_func():
    model = deep()

    def trigger():
        with GradCAM(model, "features"):
            return torch.func.vmap(model)(X[:, None])

    def follow(_):
        torch.func.vmap(model)(X[:, None])
        return maps(GradCAM(model, "features"))

    return trigger, follow, lambda: by_hand(model, "features")


@hint(RuntimeError, r"under torch.nn.attention.sdpa_kernel\(torch.nn.attention.SDPBackend.MATH\), or use GradCAM$")
def a_second_derivative_of_attention():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            t = self.conv(x).flatten(2).transpose(1, 2)[:, None].contiguous()
            return self.head(F.scaled_dot_product_attention(t, t, t)[:, 0].mean(1))

    model = seeded(Attends, dtype=torch.float32)
    x = X.float()

    def follow(message):
        context = eval(re.search(r"torch\.nn\.attention\.sdpa_kernel\([\w.]*\)", message).group(), {"torch": torch})
        with context:
            found = maps(ShapleyCAM(model, "conv"), x)
        return torch.cat([found, maps(GradCAM(model, "conv"), x)])

    def right():
        seen = []
        handle = model.conv.register_forward_hook(lambda _, __, output: seen.append(output))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z = model(x)
            handle.remove()
            (g,) = torch.autograd.grad(z[:, 1].sum(), seen[0], create_graph=True)
            (h,) = torch.autograd.grad(g, seen[0], seen[0])
        weights = (g - h / 2).detach().mean((2, 3), keepdim=True)
        return torch.cat([(weights * seen[0].detach()).sum(1).relu(), by_hand(model, "conv", lambda: model(x))])

    return lambda: maps(ShapleyCAM(model, "conv"), x), follow, right


# which classes


@hint(TypeError, r"expected integers \(class indices, such as labels.long\(\)\)$")
def labels_of_floating_point():
    model = deep()
    labels = torch.ones(3)
    return (
        lambda: GradCAM(model, "features").explain(X, labels),
        lambda _: GradCAM(model, "features").explain(X, labels.long()).maps,
        lambda: by_hand(model, "features"),
    )


@hint(
    (TypeError, ValueError),
    r"argmax\(1\)",
)
def one_hot_labels():
    model = deep()
    labels = F.one_hot(torch.ones(3, dtype=torch.long), 5)

    def follow(_):
        return GradCAM(model, "features").explain(X, labels.argmax(1)).maps

    return (
        lambda: GradCAM(model, "features").explain(X, labels.double()),
        follow,
        lambda: by_hand(model, "features"),
    )


@hint(
    (TypeError, ValueError),
    r"argmax\(1\)",
)
def one_hot_labels_of_integers():
    model = deep()
    labels = F.one_hot(torch.ones(3, dtype=torch.long), 5)

    def follow(_):
        return GradCAM(model, "features").explain(X, labels.argmax(1)).maps

    return lambda: GradCAM(model, "features").explain(X, labels), follow, lambda: by_hand(model, "features")


@hint(ValueError, r"expected one class for all, \(3,\) or \(3, N\)$")
def classes_of_another_number_of_images():
    model = deep()
    cam = GradCAM(model, "features")
    return (
        lambda: cam.explain(X, [1, 1]),
        lambda _: cam.explain(X, 1).maps + cam.explain(X, [1] * 3).maps + cam.explain(X, [[1]] * 3).maps[:, 0],
        lambda: 3 * by_hand(model, "features"),
    )


@hint(ValueError, r"the model has classes 0 to 4$")
def a_class_out_of_range():
    model = deep()
    cam = GradCAM(model, "features")
    return (
        lambda: cam.explain(X, 5),
        lambda message: cam.explain(X, int(message[-1])).maps,
        lambda: by_hand(model, "features", score=lambda z: z[:, 4].sum()),
    )


@hint(ValueError, "the words for classes are 'all' and 'top1', 'top2', 'top3' and so on$")
def a_word_for_classes():
    model = deep()
    cam = GradCAM(model, "features")
    return (
        lambda: cam.explain(X, "best"),
        lambda _: cam.explain(X, "top1").maps[:, 0] + cam.explain(X, "all").maps[:, 1],
        lambda: by_hand(model, "features", score=lambda z: z.amax(1).sum()) + by_hand(model, "features"),
    )


@hint(ValueError, r"pass output=diffgradcam.scores.two_logits, which reads it as z against -z$")
def a_contrast_of_one_output():
    model = Returns(lambda z: z[:, :1])

    def follow(message):
        output = eval(re.search(r"output=([\w.]+)", message).group(1), {"diffgradcam": diffgradcam})
        return maps(DiffGradCAM(model, "inner.features", output=output))

    return (
        lambda: DiffGradCAM(model, "inner.features").explain(X, 0),
        follow,
        lambda: by_hand(model, "inner.features", score=lambda z: z.sum()),
    )


@hint(ValueError, "explain another class, or contrast with another one$")
def a_class_against_itself():
    model = deep()
    return (
        lambda: maps(DiffGradCAM(model, "features", baseline=1)),
        lambda _: maps(DiffGradCAM(model, "features", baseline=0)),
        lambda: by_hand(model, "features", score=lambda z: (z[:, 1] - z[:, 0]).sum()),
    )


# targets


@hint(TypeError, r"such as \[target\] \* 3$")
def a_single_target():
    model = deep()
    cam = GradCAM(model, "features")
    target = ClassifierOutputTarget(1)

    def follow(message):
        return cam.explain(X, eval(message.rpartition("such as ")[2], {"target": target})).maps

    return lambda: cam(X, target), follow, lambda: by_hand(model, "features")


@hint(ValueError, "give one target for each image$")
def too_few_targets():
    model = deep()
    cam = GradCAM(model, "features")
    return (
        lambda: cam(X, [RawScoresOutputTarget()] * 2),
        lambda _: cam.explain(X, [lambda z: z[1]] * 3).maps,
        lambda: by_hand(model, "features"),
    )


@hint(TypeError, r"is neither a class nor a callable such as ClassifierOutputTarget\(3\)$")
def a_target_by_name():
    model = deep()
    return (
        lambda: GradCAM(model, "features")(X, ["cat"] * 3),
        lambda _: GradCAM(model, "features").explain(X, [ClassifierOutputTarget(1)] * 3).maps,
        lambda: by_hand(model, "features"),
    )


@hint(ValueError, r"give ClassifierOutputTarget\(class\), or explain this target with GradCAM$")
def a_target_of_a_contrastive_method():
    model = deep()

    def target(z):
        return z[1] ** 2

    return (
        lambda: DiffGradCAM(model, "features", baseline=0)(X, [target] * 3),
        lambda _: (
            GradCAM(model, "features").explain(X, [target] * 3).maps
            + DiffGradCAM(model, "features", baseline=0).explain(X, [ClassifierOutputTarget(1)] * 3).maps
        ),
        lambda: (
            by_hand(model, "features", score=lambda z: (z[:, 1] ** 2).sum())
            + by_hand(model, "features", score=lambda z: (z[:, 1] - z[:, 0]).sum())
        ),
    )


# the image


class Named(nn.Module):
    """Takes its images by name, after others that look the same."""

    def __init__(self):
        super().__init__()
        self.inner = deep()

    def forward(self, other, image):
        return self.inner(image["pixels"]) + other.mean((1, 2, 3))[:, None]


def named_call(model, image, other=None):
    other = torch.zeros_like(X) if other is None else other
    cam = AblationCAM(model, "inner.features", image=image)
    return cam.explain(other, 1, {"pixels": X}).maps


def ablation_by_hand():
    model = deep()
    with torch.no_grad():
        activations = {}
        handle = model.features.register_forward_hook(lambda _, __, output: activations.update(a=output))
        logit = model(X)[:, 1]
        handle.remove()
        found = torch.zeros(3, 6, 5, dtype=torch.float64)
        for channel in range(CHANNELS):

            def without(_, __, output, channel=channel):
                output = output.clone()
                output[:, channel] = 0
                return output

            handle = model.features.register_forward_hook(without)
            drop = logit - model(X)[:, 1]
            handle.remove()
            found += drop[:, None, None] * activations["a"][:, channel]
    return found.relu()


@hint(ValueError, r"the model was called with the arguments \[0, 1\]; name one of these$")
def an_image_that_is_not_an_argument():
    return lambda: named_call(Named(), "images"), lambda _: named_call(Named(), 1), ablation_by_hand


@hint(ValueError, r"such as lambda args, kwargs: args\[0\]\['image'\]$")
def an_image_that_is_made_up():
    return (
        lambda: named_call(Named(), lambda args, _: args[1]["pixels"] * 2),
        lambda _: named_call(Named(), lambda args, _: args[1]["pixels"]),
        ablation_by_hand,
    )


@hint(TypeError, r"expected a position, a keyword, or a function of \(args, kwargs\)$")
def an_image_by_something_else():
    return lambda: named_call(Named(), 1.0), lambda _: named_call(Named(), 1), ablation_by_hand


@hint(
    TypeError,
    "where another argument is the image, name it with image=$",
)
def an_image_that_comes_second():
    class Second(Named):
        def forward(self, other, image):
            return self.inner(image) + other.mean((1, 2, 3))

    def ask(**options):
        other = torch.zeros(1, 3, 6, 5, dtype=torch.float64)
        return AblationCAM(Second(), "inner.features", **options).explain(other, 1, X).maps

    return ask, lambda _: ask(image=1), ablation_by_hand


@hint(ValueError, "give one image at a time, and put the model in evaluation mode if a part of it is in training mode$")
def arguments_whose_rows_are_not_certain():
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop = deep(), nn.Dropout(0.5)

        def forward(self, x, prompts):
            return self.drop(self.inner(x)) + prompts.mean()

    prompts = torch.ones(3, 4, dtype=torch.float64)

    def ask(model):
        return AblationCAM(model, "inner.features").explain(X, 1, prompts).maps

    return lambda: ask(Training().train()), lambda _: ask(Training().eval()), ablation_by_hand


@hint(ValueError, r"pass size=, such as size=\(224, 224\), or use explain\(\) for maps at the resolution of the layer$")
def a_size_that_is_not_certain():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = deep()

        def forward(self, pixels):
            return self.inner(pixels.unflatten(1, (3, 6, 5)))

    model, flat = Flat(), X.flatten(1)

    def follow(_):
        called = torch.from_numpy(GradCAM(model, "inner.features")(flat, [1] * 3, size=(6, 5))).double()
        explained = maps(GradCAM(model, "inner.features"), flat)
        return torch.cat([called, explained])

    def right():
        found = by_hand(deep(), "features")
        flat = found.flatten(1)
        low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
        return torch.cat([((found - low) / (high - low)).float().double(), found])

    return lambda: GradCAM(model, "inner.features")(flat, [1] * 3), follow, right


@hint(TypeError, r"expected a tensor of images \(B, C, H, W\)")
def an_image_as_an_array():
    model = deep()
    cam = GradCAM(model, "features")
    return lambda: cam(X.numpy()), lambda _: maps(cam, torch.from_numpy(X.numpy())), lambda: by_hand(model, "features")


# methods


@hint(ValueError, r"name the layer that is pooled, or layer_input\(\) of the pooling, or use GradCAM")
def a_layer_that_is_not_pooled():
    model = pooled()

    def follow(_):
        return torch.cat(
            [
                maps(CAM(model, "relu")),
                maps(CAM(model, layer_input("pool"))),
                maps(GradCAM(model, "relu")) * 30,
            ]
        )

    return (
        lambda: maps(CAM(model, "stem")),
        follow,
        lambda: 30 * by_hand(model, "relu").repeat(3, 1, 1),
    )


@hint(ValueError, r"call model.eval\(\) first")
def full_gradients_in_training_mode():
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    model = seeded(build)

    def follow(_):
        model.eval()
        return maps(FullGrad(model))

    # The refused call moved the statistics. What FullGrad itself is worth is tested in test_fullgrad.
    return lambda: maps(FullGrad(model.train())), follow, lambda: maps(FullGrad(copy.deepcopy(model)))


@hint(TypeError, "for another method pass fusion=diffgradcam.heatmaps.product to that method$")
def a_base_method_with_options():
    model = deep()

    def follow(message):
        fusion = eval(re.search(r"fusion=([\w.]+)", message).group(1), {"diffgradcam": diffgradcam})
        return maps(ScoreCAM(model, ["stem", "features"], fusion=fusion))

    def right():
        product = torch.ones(())
        for name in ("stem", "features"):
            one = maps(ScoreCAM(model, name)).flatten(1)
            low, high = one.amin(1, keepdim=True), one.amax(1, keepdim=True)
            product = product * ((one - low) / (high - low))
        return product.view(3, 6, 5)

    return (
        lambda: RefineCAM(model, ["features"], base_method=ScoreCAM),
        follow,
        right,
    )


@hint(ValueError, r"use tensor operations \(permute, reshape, indexing\) in it$")
def a_transform_that_detaches():
    model = deep()
    return (
        lambda: maps(AblationCAM(model, "features", lambda a: a.detach())),
        lambda _: maps(AblationCAM(model, "features", lambda a: a.reshape(a.shape))),
        ablation_by_hand,
    )


@hint(TypeError, "pass weighting= a function of diffgradcam.weightings, or set weighting = staticmethod")
def a_method_without_a_weighting():
    class Own(TrainableCAM):
        pass

    class Chosen(TrainableCAM):
        weighting = staticmethod(weightings.gradcam)

    model = deep()
    return (
        lambda: Own(model, "features"),
        lambda _: maps(Own(model, "features", weighting=weightings.gradcam)) + maps(Chosen(model, "features")),
        lambda: 2 * by_hand(model, "features"),
    )


@hint(TypeError, r"did you mean LogitDifference\(\)\?$")
def a_class_of_score():
    model = deep()

    def follow(message):
        score = eval(re.search(r"did you mean (\w+\(\))", message).group(1), {"LogitDifference": LogitDifference})
        return maps(GradCAM(model, "features", score=score))

    def difference(z):
        return (z[:, 1] - z[:, [0, 2, 3, 4]].logsumexp(1)).sum()

    return (
        lambda: GradCAM(model, "features", score=LogitDifference),
        follow,
        lambda: by_hand(model, "features", score=difference),
    )


@hint(ValueError, "the model has categories 0 to 2$")
def a_category_out_of_range():
    model = seeded(Pixels)

    def ask(category):
        return GradCAM(model, "stem").explain(SQUARE, [SemanticSegmentationTarget(category, MASK[::2, ::2])] * 3).maps

    return (
        lambda: ask(3),
        lambda message: ask(int(message[-1])),
        lambda: by_hand(model, "stem", lambda: model(SQUARE), score=lambda z: z[:, 2][:, MASK[::2, ::2]].sum()),
    )


@hint(TypeError, "where another argument is the image, name it with image=$")
def versions_of_an_image_that_comes_second():
    class Second(Named):
        def forward(self, other, image):
            return self.inner(image) + other.mean()

    model, other = Second(), torch.zeros(3, 4, dtype=torch.float64)
    smooth = {"samples": 1, "std": 0.0}

    def ask(image):
        return NoiseSmooth(GradCAM(model, "inner.features", image=image), **smooth).explain(other, 1, X).maps

    return lambda: ask(0), lambda _: ask(1), lambda: by_hand(deep(), "features")


@hint(TypeError, "; pass targets=\\[ClassifierOutputTarget\\(category\\)\\] for each image")
def the_old_name_of_a_target():
    model = deep()
    return (
        lambda: GradCAM(model, "features").explain(X, target_category=1),
        lambda _: GradCAM(model, "features").explain(X, [ClassifierOutputTarget(1)] * 3).maps,
        lambda: by_hand(model, "features"),
    )


@hint(TypeError, r"; move the model and the images with \.to\('cuda'\)$")
def the_old_name_of_a_device():
    model = deep()
    return (
        lambda: GradCAM(model, "features", use_cuda=True),
        lambda _: maps(GradCAM(model.to("cpu"), "features")),
        lambda: by_hand(model, "features"),
    )


@hint(TypeError, r"; pass target_layers=\[layer\]$")
def the_old_name_of_a_layer():
    model = deep()
    return (
        lambda: GradCAM(model, target_layer=model.features),
        lambda _: maps(GradCAM(model, target_layers=[model.features])),
        lambda: by_hand(model, "features"),
    )


# models that are not what they look like


def with_class_names(right, **wrong):
    """A row: names of classes that are refused, and those that the message has in mind."""
    model = deep()

    def follow(_):
        explanation = GradCAM(model, "features", class_names=right).explain(X, 1)
        assert explanation.class_names[1] == "b"
        return explanation.maps

    return lambda: maps(GradCAM(model, "features", **wrong)), follow, lambda: by_hand(model, "features")


NAMES = r"give a list with one name for each class in order, or a mapping such as \{281: 'tabby'\}"


@hint(ValueError, f"class_names has 4 names, but the model has 5 classes; {NAMES}")
def too_few_class_names():
    return with_class_names(list("abcde"), class_names=list("abcd"))


@hint(ValueError, f"class_names names class 5, but the model has classes 0 to 4; {NAMES}")
def a_class_name_too_many():
    return with_class_names({1: "b", 4: "e"}, class_names={1: "b", 5: "f"})


@hint(TypeError, f"class_names is str; expected names of classes; {NAMES}")
def one_class_name_for_all():
    return with_class_names({1: "b"}, class_names="abcde")


@hint(TypeError, f"class_names has 1 for class 0; expected a string; {NAMES}")
def class_names_that_are_numbers():
    return with_class_names(list("abcde"), class_names=[1, 2, 3, 4, 5])


@hint(TypeError, r"give \{int\(key\): name for key, name in class_names\.items\(\)\}$")
def class_names_from_json():
    given = {"0": "a", "1": "b"}
    right = eval("{int(key): name for key, name in class_names.items()}", {"class_names": given})
    return with_class_names(right, class_names=given)


def plain():
    """float32, with names of layers."""
    return deep(dtype=torch.float32)


X32 = X.float()


def right_of_plain():
    model = plain()
    return by_hand(model, "features", lambda: model(X32))


def explain_plain(_message):
    """The way out of most of these: explain the model that they were made from."""
    return maps(GradCAM(plain(), "features"), X32)


SCRIPTED = "(?i)torchscript.*explain the (eager )?(model|nn.Module) .*it was made from"


@hint(RuntimeError, SCRIPTED)
def a_scripted_model():
    return lambda: maps(GradCAM(torch.jit.script(plain()), "features"), X32), explain_plain, right_of_plain


@hint(RuntimeError, SCRIPTED)
def a_traced_model():
    return lambda: maps(GradCAM(torch.jit.trace(plain(), X32), "features"), X32), explain_plain, right_of_plain


@hint((RuntimeError, ValueError), SCRIPTED)
def a_frozen_model():
    return (
        lambda: maps(GradCAM(torch.jit.freeze(torch.jit.script(plain())), "features"), X32),
        explain_plain,
        right_of_plain,
    )


@hint(
    (RuntimeError, ValueError),
    r"torch\.export.*(torch\.export\.unflatten|explain the model)",
)
def an_exported_model():
    def exported():
        return torch.export.export(plain(), (X32,))

    def follow(_):
        # Unflattened, it has its modules again, and they are called.
        return maps(GradCAM(torch.export.unflatten(exported()), "features"), X32)

    return lambda: maps(GradCAM(exported().module(), "features"), X32), follow, right_of_plain


@hint(
    RuntimeError,
    "(?i)quanti[sz]ed.*(float|EigenCAM|ScoreCAM)",
)
def a_quantised_model():
    def quantised():
        return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)

    return lambda: maps(GradCAM(quantised(), "features"), X32), explain_plain, right_of_plain


@hint(
    RuntimeError,
    r"(?i)(built|made|created|loaded) under torch\.inference_mode",
)
def a_model_made_under_inference_mode():
    with torch.inference_mode():
        model = plain()

    def follow(_):
        return maps(GradCAM(copy.deepcopy(model), "features"), X32)

    return lambda: maps(GradCAM(model, "features"), X32), follow, right_of_plain


# a graph


@hint(RuntimeError, r"elsewhere give fewer, such as classes='top5'$")
def a_gradient_for_each_of_many_classes_in_a_graph():
    cam = GradCAM(flat(70), "relu")

    def follow(message):
        fewer = re.search(r"classes='(\w+)'$", message).group(1)
        return with_maps(cam, X, fewer)(X)[2][:, 0]

    return lambda: with_maps(cam, X, "all"), follow, lambda: by_hand(cam.model, "relu", score=lambda z: z.amax(1).sum())


@pytest.mark.filterwarnings("ignore")  # PyTorch's ways of making other models of a model warn that they are old
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.xfail(reason=row.today, strict=True)] if row.today else [])
        for row in HINTS
    ],
)
def test_the_advice_works(row):
    trigger, follow, expect = row.build()
    with pytest.raises(row.error, match=row.says) as caught:
        trigger()
    found, right = follow(str(caught.value)), expect()
    assert right.abs().max() > 1e-6
    tolerance = (1e-4 if right.dtype == torch.float32 else 1e-7) * float(right.abs().max())
    torch.testing.assert_close(found.to(right.dtype), right, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of what it does itself
def test_a_compiled_model_needs_no_hint():
    compiled = torch.compile(plain(), backend="eager")
    torch.testing.assert_close(maps(GradCAM(compiled, "features"), X32), right_of_plain(), rtol=0, atol=1e-5)
    found = in_training(GradCAM(compiled, "features"), compiled, lambda: compiled(X32))
    torch.testing.assert_close(found, right_of_plain(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_methods_without_gradients_need_no_hint_where_hooks_can_be_had():
    """Quantised models, and those made under inference mode."""
    quantised = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)
    with torch.inference_mode():
        frozen = plain()
    expected = maps(EigenCAM(plain(), "features"), X32)
    for model in (quantised, frozen):
        torch.testing.assert_close(maps(EigenCAM(model, "features"), X32), expected)
    torch.testing.assert_close(maps(ScoreCAM(frozen, "features"), X32), maps(ScoreCAM(plain(), "features"), X32))


# --- the table is complete

ROOT = Path(diffgradcam.__file__).parent
SOURCES = [
    *sorted((ROOT / "_core").glob("*.py")),
    *sorted((ROOT / "methods").glob("*.py")),
    *sorted((ROOT / "export").glob("*.py")),
    *(ROOT / f"{name}.py" for name in ("tokens", "targets", "scores")),
]
ELSEWHERE = {
    "rows of logits; expected one row for each": "test_inputs",
    "outputs look like probabilities": "a warning; test_inputs",
    "in more than one way": "test_tokens",
    "give image_size= (a CAM does": "test_tokens",
    "are a grid (B, h, w, C) or (B, C, h, w)": "test_tokens",
    "the model is in training mode": "a warning; test_cam",
    "loader is a tensor": "test_saliency_dataset, metrics",
    "the size that the graph was made with": "test_export",
    "the size that the file was made for": "test_export",
    "cannot be an ONNX file": "test_export",
    "is not what was exported": "test_export",
    "the mask ": "sham",
    "the weight of head": "test_editing",
    "adding the same to every output of head": "test_editing",
    "the last nn.Linear of": "test_editing",
    "expected a function that makes a CAM": "test_benchmark",
    "expected a CAM or an object with explain()": "metrics",
    "too large": "test_security",
    "which is not installed": "test_report",
    "changes how a CAM sums up its channels": "test_smoothing",
    "expects a CAM, such as": "test_smoothing",
    "compare() takes one true class": "test_contrastive",
}
"""Messages that are not about a map, or cannot be had here, by a part of them, and where they are tested."""


def advice():
    """A pattern of each text of the library with an advice: what comes after a semicolon."""
    for source in SOURCES:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                pieces = [each.value if isinstance(each, ast.Constant) else None for each in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | documented:
                pieces = [node.value]
            else:
                continue
            text = "".join(piece or "{}" for piece in pieces)
            if any(not part.startswith("expected") for part in text.split("; ")[1:]):
                yield text, ".*".join(re.escape(piece or "") for piece in pieces)


@pytest.mark.filterwarnings("ignore")
def test_every_advice_of_the_library_is_in_the_table():
    said = []
    for row in HINTS:
        try:
            row.build()[0]()
        except Exception as error:
            said.append(str(error))
    missing = [
        text
        for text, pattern in advice()
        if not any(re.search(pattern, message, re.DOTALL) for message in said)
        and not any(part in text for part in ELSEWHERE)
    ]
    assert not missing


def test_the_texts_of_the_library_are_found():
    texts = [text for text, _ in advice()]
    assert len(texts) >= 50
    for part in ELSEWHERE:
        assert any(part in text for text in texts), f"{part!r} is no text of the library any more"
