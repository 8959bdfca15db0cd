"""Real architectures with random weights: is the map right, refused, or wrong?

Each model of torchvision, timm and transformers is built small, without any download. The command's own default layer
is explained by Grad-CAM, and the map is compared with a reference that shares no code with the library: a forward hook,
``autograd.grad`` through the whole model, and a table, written by hand, of which axes of each family are places.

The table itself is tested: the images are oblong where an architecture takes them, so that rows and columns cannot be
exchanged, and a probe changes one half of the image at a time and looks whether that half of the activations changes.

``python -m tests.siege.zoo`` writes ``docs/results/architectures.json`` and the page that lists the verdicts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import math
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.torchvision_shim import define_missing_operators
from diffgradcam import GradCAM, layer_input
from diffgradcam.cli._layer_finder import find_explainable_layers
from diffgradcam.targets import FasterRCNNBoxScoreTarget, SemanticSegmentationTarget, detections
from diffgradcam.tokens import tokens_to_grid

from .messages import is_ours

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CLASSES = 10
CLASS = 3
EARLY = 0.25
"""Of the modules, which run before a layer that says little about the decision."""
BLIND = "the layer does not depend on the image"
MOST_PARAMETERS = 250_000_000
"""1 GB of float32; a model with its activations stays under 1.5 GB."""

VERDICTS = {
    "right": "the map is that of the reference",
    "right with a transform": "refused as it is; right with `reshape_transform=tokens_to_grid`, as the error advises",
    "refused": "an error that says why; right with a transform written for this model, if not said otherwise",
    "empty": "the layer's places do not depend on the image, or the logits not on them, so the map says nothing",
    "wrong": "a map of something else, or an error that the library did not make",
    "unsure": "the reference itself is in doubt",
    "skipped": "too large, or not built here",
}

Grid = Callable[[Tensor, tuple[int, ...]], Tensor]
Axes = Grid | dict[str, Grid]
"""How a layer is brought into the form (B, C, *S), or that of each pattern of a layer's name; the first that fits."""


# --- which axes are places


def channels_first(activations: Tensor, _size: tuple[int, ...]) -> Tensor:
    """``(B, C, *S)``."""
    return activations


def channels_last(activations: Tensor, _size: tuple[int, ...]) -> Tensor:
    """``(B, *S, C)``."""
    return activations.movedim(-1, 1)


@dataclass(frozen=True)
class Tokens:
    """``(B, prefix + places + suffix, C)``, row by row; the places have the proportions of the image."""

    prefix: int = 0
    suffix: int = 0
    strides: tuple[float, ...] | None = None

    def __call__(self, activations: Tensor, size: tuple[int, ...]) -> Tensor:
        places = activations[:, self.prefix : activations.shape[1] - self.suffix]
        count = places.shape[1]
        if self.strides is None:
            stride = (math.prod(size) / count) ** (1 / len(size))
            grid = tuple(round(side / stride) for side in size)
        else:
            grid = tuple(round(side / stride) for side, stride in zip(size, self.strides, strict=True))
        if math.prod(grid) != count:
            raise LookupError(f"{count} tokens are not a grid of an image of {size}")
        return places.transpose(1, 2).unflatten(2, grid)


@dataclass
class Subject:
    """A model, what it is called with, and what is asked of it."""

    model: nn.Module
    image: Tensor
    axes: Axes
    layer: str | None = None
    """By default, what the command takes."""
    call: Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]] = lambda image: ((image,), {})
    places: tuple[int, ...] = (2, 3)
    """Which axes of the image the axes of the map are."""
    output: Callable[[Any], Tensor] | None = None
    targets: Sequence[Any] | None = None
    score: Callable[[Any], Tensor] = lambda logits: logits[:, CLASS].sum()
    """What is explained, of what the model returns: the sum over the images."""
    square: Callable[[], nn.Module] | None = None
    """The same model for square images, where one of oblong images takes no others: the finder's are square."""
    finder_size: int = 64

    def grid_of(self, layer: str) -> Grid:
        if callable(self.axes):
            return self.axes
        return next(grid for pattern, grid in self.axes.items() if re.search(pattern, layer))

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.image.shape[axis] for axis in self.places)

    def run(self, image: Tensor) -> Any:
        args, kwargs = self.call(image)
        return self.model(*args, **kwargs)


@dataclass
class Case:
    """A model by name."""

    name: str
    kind: str
    family: str
    build: Callable[[], Subject] = field(repr=False)


class Verdict(NamedTuple):
    """How it ended."""

    name: str
    kind: str
    family: str
    verdict: str
    layer: str = ""
    layout: str = ""
    depth: float = 0.0
    """Which share of the modules ran before the layer."""
    error: str = ""
    seconds: float = 0.0


# --- the reference


class _Reached(Exception):
    """The layer was reached."""


@contextlib.contextmanager
def hooked(model: nn.Module, layer: str, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what leaves a layer, or enters it (``input:``), by what ``see`` makes of it."""
    module = model.get_submodule(layer.removeprefix("input:"))
    if layer.startswith("input:"):
        handle = module.register_forward_pre_hook(lambda _, args: (see(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: see(output))
    try:
        yield
    finally:
        handle.remove()


def reference(subject: Subject, layer: str, grid: Grid) -> tuple[Tensor, float]:
    """The signed Grad-CAM map by hand, and how large its terms are."""
    seen: list[Tensor] = []

    def see(value: Tensor) -> Tensor:
        seen.append(value.clone() if value.requires_grad else value.detach().clone().requires_grad_())
        return seen[-1].clone()  # what follows may change it in place

    image = subject.image.clone().requires_grad_()
    with torch.enable_grad(), hooked(subject.model, layer, see):
        score = subject.score(subject.run(image))
    (activations,) = seen
    (gradient,) = torch.autograd.grad(score, activations, allow_unused=True, materialize_grads=True)
    activations, gradient = (grid(tensor.detach(), subject.size) for tensor in (activations, gradient))
    weights = gradient.flatten(2).mean(2)
    terms = weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations
    return terms.sum(1), float(terms.abs().sum(1).max())


def activations_of(subject: Subject, layer: str, image: Tensor) -> tuple[Tensor, float]:
    """What leaves or enters a layer, and which share of the modules ran before; the rest of the model does not run."""
    seen: list[Tensor] = []
    done: set[nn.Module] = set()

    def see(value: Tensor) -> Tensor:
        seen.append(value.clone())
        raise _Reached

    modules = list(subject.model.modules())
    handles = [module.register_forward_hook(lambda module, *_: done.add(module)) for module in modules]
    try:
        with torch.no_grad(), hooked(subject.model, layer, see), contextlib.suppress(_Reached):
            subject.run(image)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], round(len(done) / len(modules), 2)


def follows_the_image(subject: Subject, layer: str, grid: Grid) -> str:
    """Why the table's axes are not those of the image; empty if they are.

    Axes that are proportional to those of the image, where no others are, prove themselves. Else a half of the image
    changes, then the other, along each axis: the share of the change that falls into the first half of the map has to
    be larger where the first half of the image changed.
    """
    image = subject.image[:1]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(5))
    versions = [image]
    for place, side in zip(subject.places, subject.size, strict=True):
        for start in (0, side - side // 2):
            version = image.clone()
            version.narrow(place, start, side // 2).add_(noise.narrow(place, start, side // 2))
            versions.append(version)
    activations, _ = activations_of(subject, layer, torch.cat(versions))
    found = grid(activations, subject.size)
    if found.ndim != len(subject.size) + 2:
        return f"{tuple(found.shape)} has another number of places than the image"
    changes = (found[1:] - found[:1]).abs().sum(1)
    if not changes.any():
        return BLIND
    rivals = {activations.shape[2:], activations.shape[1:-1]} if activations.ndim == found.ndim else set()
    if [rival for rival in rivals if _proportional(rival, subject.size)] == [found.shape[2:]]:
        return ""
    for axis, length in enumerate(found.shape[2:]):
        if length < 2:
            continue
        first, second = (
            float(change.movedim(axis, 0)[: length // 2].sum() / change.sum().clamp_min(1e-30))
            for change in changes[2 * axis : 2 * axis + 2]
        )
        if not first > second:
            return f"axis {axis} of {tuple(found.shape)} does not follow the image: {first:.3f}, {second:.3f}"
    return ""


def _proportional(grid: torch.Size, size: tuple[int, ...]) -> bool:
    """Whether a grid has the proportions of the image."""
    stride = (math.prod(size) / max(grid.numel(), 1)) ** (1 / len(size))
    return len(grid) == len(size) and all(abs(a * stride - b) <= stride for a, b in zip(grid, size, strict=True))


# --- the verdict


def prepare(model: nn.Module) -> nn.Module:
    """For evaluation, with weights through which a signal comes: heads of zeros and tiny layer scales are redrawn."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        first = float(parameter.detach().flatten()[0])
        if abs(first) < 0.01 and bool((parameter == first).all()):
            if first or (name.endswith("weight") and parameter.ndim == 1):  # a norm that begins as nothing
                nn.init.uniform_(parameter, 0.1, 0.2, generator=generator)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.eval()


def settle(model: nn.Module, run: Callable[[], Any]) -> None:
    """Let batch norm measure its statistics on the images, so that signals neither die out nor grow."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        if norms:
            with torch.no_grad():
                run()
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def random_image(*shape: int) -> Tensor:
    """Blurred noise: neighbouring pixels are alike, as in images."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(shape, generator=generator)
    return noise * 2 - 1


def judge(case: Case) -> Verdict:
    """Build a model, ask the library, ask the reference."""
    began = time.monotonic()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # what other libraries warn about is not ours to mend
        torch.manual_seed(0)
        try:
            found = _judge(case)
        except SkippedModel as reason:
            found = Verdict(case.name, case.kind, case.family, "skipped", error=str(reason))
    gc.collect()
    return found._replace(seconds=round(time.monotonic() - began, 1))


class SkippedModel(Exception):
    """A model that is not built here, and why."""


def _judge(case: Case) -> Verdict:
    subject = case.build()
    settle(subject.model, lambda: subject.run(subject.image))
    verdict = Verdict(case.name, case.kind, case.family, "unsure")
    layer = subject.layer
    if layer is None:
        try:
            square = subject.model if subject.square is None else subject.square()
            place = find_explainable_layers(square, subject.image.shape[1], subject.finder_size).default
            del square
        except Exception as error:  # a model can raise anything
            return verdict._replace(verdict="refused" if is_ours(error) else "wrong", error=_said(error))
        if place is None:
            return verdict._replace(verdict="refused", error="the command finds no layer with positions")
        layer = place.name
    verdict = verdict._replace(layer=layer)
    grid = subject.grid_of(layer)
    try:
        activations, depth = activations_of(subject, layer, subject.image)
        verdict = verdict._replace(layout=" x ".join(map(str, activations.shape[1:])), depth=depth)
        doubt = follows_the_image(subject, layer, grid)
        expected, scale = reference(subject, layer, grid)
    except (LookupError, ValueError, IndexError) as error:
        doubt, expected, scale = _said(error), None, 0.0
    if expected is not None and not bool(expected.isfinite().all()):
        doubt, expected = doubt or "the reference is not finite", None
    refusals = []
    transforms = {
        "right": None,
        "right with a transform": tokens_to_grid,
        "refused": lambda activations: grid(activations, subject.size),
    }
    for how, reshape in transforms.items():
        if expected is None and how == "refused":
            break
        try:
            maps = _explain(subject, layer, reshape)
        except Exception as error:
            if not is_ours(error):
                return verdict._replace(verdict="wrong", error=_said(error))
            refusals.append(_said(error))
            continue
        if doubt == BLIND:
            return verdict._replace(verdict="empty", error=doubt)
        if expected is None or doubt:
            return verdict._replace(error=f"gives a map of {tuple(maps.shape[1:])}; {doubt}")
        if maps.shape != expected.shape and sorted(subject.places) != list(subject.places):
            maps = maps.mT  # the model itself has exchanged the axes of its input
        difference = _difference(maps, expected, scale)
        if difference:
            said = f"; refused before: {refusals[0]}" if refusals else ""
            return verdict._replace(verdict="wrong", error=f"{how}: {difference}{said}")
        if scale == 0:
            return verdict._replace(verdict="empty", error="the logits do not depend on these places")
        return verdict._replace(verdict=how, error=(refusals or [""])[0])
    return verdict._replace(verdict="refused", error=f"{refusals[0]}; also with a transform {doubt}".strip())


def _explain(subject: Subject, layer: str, reshape: Callable[[Tensor], Tensor] | None) -> Tensor:
    args, kwargs = subject.call(subject.image)
    target = layer_input(layer.removeprefix("input:")) if layer.startswith("input:") else layer
    options = {} if subject.output is None else {"output": subject.output}
    cam = GradCAM(subject.model, target, reshape, rectify=False, **options)
    classes = CLASS if subject.targets is None else subject.targets
    if args:
        return cam.explain(args[0], classes, *args[1:], **kwargs).maps
    return cam.explain(classes=classes, **kwargs).maps


def _difference(maps: Tensor, expected: Tensor, scale: float) -> str:
    if maps.shape != expected.shape:
        return f"a map of {tuple(maps.shape[1:])} instead of {tuple(expected.shape[1:])}"
    off = float((maps - expected).abs().max())
    if off <= 1e-4 * max(scale, float(expected.abs().max())):
        return ""
    return f"off by {off / max(float(expected.abs().max()), 1e-30):.2g} of the largest value"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


# --- torchvision


OBLONG = (64, 96)


def torchvision_models() -> Any:
    define_missing_operators()
    return importlib.import_module("torchvision.models")


def _family(builder: Callable[..., Any]) -> str:
    return builder.__module__.removeprefix("torchvision.models.")


TORCHVISION: dict[str, Axes] = {
    "swin_transformer": {r"^permute$|avgpool": channels_first, "": channels_last},
    "video.swin_transformer": {r"avgpool": channels_first, "": channels_last},
    "vision_transformer": {r"conv_proj": channels_first, "": Tokens(1)},
    "video.mvit": Tokens(1, strides=(2, 32, 32)),
}
VIDEO_LAYERS = {
    "video.resnet": "layer4",
    "video.s3d": "features",
    "video.swin_transformer": "norm",
    "video.mvit": "blocks.15.norm1",
}


def torchvision_classifier(name: str) -> Subject:
    models = torchvision_models()
    builder = models.get_model_builder(name)
    family = _family(builder)
    _bound(models.get_model_weights(name).DEFAULT.meta["num_params"])
    options: dict[str, Any] = {"num_classes": CLASSES}
    image = random_image(2, 3, *OBLONG)
    size = 64
    if family == "vision_transformer":
        image, size, options["image_size"] = random_image(2, 3, 96, 96), 96, 96
    elif family == "maxvit":
        image, size = random_image(2, 3, 224, 224), 224
    elif family in ("alexnet", "densenet"):
        image, size = random_image(2, 3, 96, 128), 96
    elif family in ("googlenet", "inception"):
        image, size = random_image(2, 3, 96, 128), 96
        options |= {"init_weights": False, "aux_logits": False}
    elif family == "video.s3d":
        image = random_image(1, 3, 16, 224, 256)
    elif family == "video.mvit":
        image = random_image(1, 3, 8, *OBLONG)
        mvit = importlib.import_module("torchvision.models.video.mvit")
        builder = mock.patch.object(mvit, "_mvit", _smaller(mvit._mvit))(builder)
    elif family.startswith("video."):
        image = random_image(2, 3, 8, 64, 96)
    model = prepare(builder(weights=None, **options))
    if family == "squeezenet":
        nn.init.ones_(model.classifier[1].bias)  # its logits come out of a ReLU
    return Subject(
        model,
        image,
        TORCHVISION.get(family, channels_first),
        layer=VIDEO_LAYERS.get(family),
        places=tuple(range(2, image.ndim)),
        finder_size=size,
    )


def _smaller(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """For shorter clips of smaller frames than the builders take."""
    return lambda **options: build(**{**options, "spatial_size": OBLONG, "temporal_size": 8})


def torchvision_segmenter(name: str) -> Subject:
    models = torchvision_models()
    model = prepare(models.get_model_builder(name)(weights=None, weights_backbone=None, num_classes=CLASSES))
    image = random_image(2, 3, *OBLONG)
    mask = torch.zeros(OBLONG, dtype=torch.bool)
    mask[16:48, :32] = True
    return Subject(
        model,
        image,
        channels_first,
        output=lambda o: o["out"],
        targets=[SemanticSegmentationTarget(CLASS, mask)] * 2,
        score=lambda o: o["out"][:, CLASS][:, mask].sum(),
    )


# The command explains classifiers. In a detector it would take the pooled regions, which are no places of the image.
DETECTOR_LAYERS = {
    "rcnn_mobilenet": "backbone.body.16",
    "resnet50": "backbone.body.layer4",
    "ssdlite": "backbone.features.0",
    "ssd300": "backbone.features",
}


def torchvision_detector(name: str) -> Subject:
    models = torchvision_models()
    _work_without_compiled_operators()
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"num_classes": CLASSES}
    if not name.startswith("ssd"):
        options |= {"min_size": OBLONG[0], "max_size": OBLONG[1]}
    if "rcnn" in name:
        options |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 10}
        options |= {"box_score_thresh": 0.0, "box_detections_per_img": 4}
    else:
        options |= {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 4}
    model = prepare(builder(weights=None, weights_backbone=None, **options))
    image = (random_image(2, 3, *OBLONG) + 1) / 2
    settle(model, lambda: model(image))
    with torch.no_grad():
        found = model(image)
    if not all(len(one["boxes"]) for one in found):
        raise SkippedModel("with random weights it detects nothing")
    sides = [(one["boxes"][:2, 2:] - one["boxes"][:2, :2]).repeat(1, 2) for one in found]
    given = [(one["labels"][:2], one["boxes"][:2] + 0.05 * side) for one, side in zip(found, sides, strict=True)]

    def score(output: Any) -> Tensor:
        total = torch.zeros(())
        for one, (labels, boxes) in zip(output, given, strict=True):
            for label, overlaps in zip(labels, _overlaps(boxes, one["boxes"]), strict=True):
                best = int(overlaps.argmax())
                if overlaps[best] > 0.5 and one["labels"][best] == label:
                    total = total + overlaps[best] + one["scores"][best]
        return total

    return Subject(
        model,
        image,
        channels_first,
        layer=next(layer for pattern, layer in DETECTOR_LAYERS.items() if re.search(pattern, name)),
        output=detections,
        targets=[FasterRCNNBoxScoreTarget(*one) for one in given],
        score=score,
    )


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes ``(N, 4)`` and others ``(M, 4)``: ``(N, M)``."""
    a, b = boxes[:, None], others[None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, for a torchvision whose compiled operators do not load."""
    boxes = boxes.detach()
    overlaps = _overlaps(boxes, boxes)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if not kept or float(overlaps[i, kept].max()) <= iou_threshold:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


def _work_without_compiled_operators() -> None:
    boxes = importlib.import_module("torchvision.ops.boxes")
    try:
        boxes.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError:
        boxes.nms = _nms
        align = importlib.import_module("torchvision.ops.roi_align")  # otherwise compiled first, which takes minutes
        align._roi_align = getattr(align._roi_align, "__wrapped__", align._roi_align)


def _bound(parameters: int) -> None:
    if parameters > MOST_PARAMETERS:
        raise SkippedModel(f"{parameters / 1e6:.0f} million parameters")


# --- timm


def TOKENS(activations: Tensor, size: tuple[int, ...]) -> Tensor:
    """Stands for tokens after as many others as timm says of the model."""
    raise NotImplementedError


LARGER = {"shvit": (128, 192), "efficientvit_msra": (128, 192), "csatv2": (192, 288)}
"""Families that leave less than two rows of smaller images."""

TIMM: dict[str, Axes] = {
    # The class token joins the patches late.
    "cait": {"blocks_token_only": Tokens(1), "": Tokens()},
    "convit": {r"blocks\.1[01]": Tokens(1), "": Tokens()},
    # It stretches its images to a square. A fusion takes the class token of one branch and the patches of the other.
    "crossvit": {"blocks": Tokens(1, strides=(OBLONG[0] / 20, OBLONG[1] / 20))},
    "pit": {"transformers": Tokens(1), "": channels_first},
    "qwen3_vit": {"^encoder$": channels_last, "": Tokens()},
    "mvitv2": {"blocks": Tokens()},
    "tnt": {"^blocks": Tokens(1), "": channels_first},
    "xcit": {"cls_attn_blocks": Tokens(1), "blocks": Tokens()},
    "volo": {"post_network": Tokens(1), "": channels_last},
    "twins": {"blocks": Tokens(), "": channels_first},
    "vitamin": {"^blocks": Tokens(), "": channels_first},
    "coat": {"blocks": Tokens(1), "": channels_first},
    # After its last pooling, the units come row by row again.
    "hiera": {"blocks": Tokens()},
    "efficientformer": {r"stages\.3\.blocks\..\.(norm|token)": Tokens(), "": channels_first},
    **{
        module: {r"^stem|patch_embed|backbone": channels_first, "": TOKENS}
        for module in (
            "beit", "deit", "eva", "vision_transformer", "vision_transformer_relpos", "vision_transformer_hybrid",
            "naflexvit", "gemma4_vit", "deepseek_vit", "mlp_mixer")
    },
    **dict.fromkeys(("swin_transformer", "swin_transformer_v2", "hieradet_sam2"), channels_last),
    **dict.fromkeys(("mambaout", "sequencer"), channels_last),
}  # fmt: skip


def timm_model(name: str) -> Subject:
    define_missing_operators()
    timm = importlib.import_module("timm")
    module = _timm_family(name)
    if not module:
        raise SkippedModel("this version of timm does not have it")
    default = timm.models.get_pretrained_cfg(name)
    side = default.input_size[1] if default is not None else 224

    def build(**options: Any) -> nn.Module:
        return prepare(timm.create_model(name, num_classes=CLASSES, **options))

    def works(model: nn.Module, height: int, width: int) -> bool:
        try:
            with torch.no_grad():
                return model(torch.zeros(1, 3, height, width)).shape == (1, CLASSES)
        except Exception:
            return False

    oblong = [LARGER[module]] if module in LARGER else [OBLONG, (96, 144), (192, 288)]
    wide = (min(side, 256), min(side, 256) * 3 // 2)
    attempts: list[tuple[dict[str, Any], list[tuple[int, int]]]] = [
        ({}, oblong),
        ({"img_size": OBLONG}, [OBLONG]),
        ({"img_size": wide}, [wide]),
        ({}, [(side, side)]),
    ]
    for options, sizes in attempts:
        try:
            model = build(**options)
        except Exception:
            continue
        size = next((size for size in sizes if works(model, *size)), None)
        if size is not None:
            break
    else:
        raise SkippedModel("it runs on no image tried")
    prefix = getattr(model, "num_prefix_tokens", 0)
    axes = TIMM.get(module, channels_first)
    if axes is TOKENS:
        axes = Tokens(prefix)
    elif isinstance(axes, dict):
        axes = {pattern: Tokens(prefix) if grid is TOKENS else grid for pattern, grid in axes.items()}
    square, finder_size = None, min(size)
    if options:
        square, finder_size = (lambda: build(img_size=size[0])), size[0]
    return Subject(model, random_image(2, 3, *size), axes, square=square, finder_size=finder_size)


def _timm_family(name: str) -> str:
    define_missing_operators()
    return str(importlib.import_module("timm.models._registry")._model_to_module.get(name, ""))


# --- transformers


def transformers_model(name: str) -> Subject:
    """A tiny configuration of a family."""
    define_missing_operators()
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    height, width = 32, 48
    image = random_image(2, 3, height, width)

    def classifier(kind: str, config: Any = None, **options: Any) -> nn.Module:
        config = config or getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **options)
        return prepare(getattr(transformers, f"{kind}ForImageClassification")(config))

    def logits(output: Any) -> Tensor:
        return output.logits[:, CLASS].sum()

    if name in ("ViT", "DeiT"):
        model = classifier(name, **sizes, image_size=[height, width], patch_size=8)
        axes = {"projection": channels_first, "": Tokens(1 if name == "ViT" else 2)}
        square = lambda: classifier(name, **sizes, image_size=32, patch_size=8)  # noqa: E731
        return Subject(model, image, axes, score=logits, square=square, finder_size=32)
    if name in ("Swin", "Swinv2"):
        windows = {"image_size": [height, width], "patch_size": 2, "embed_dim": 6, "depths": [1, 1]}
        model = classifier(name, **windows, num_heads=[1, 2], window_size=4)
        axes = {"projection": channels_first, "": Tokens()}
        return Subject(model, image, axes, score=logits, finder_size=32)
    if name.startswith("DETR"):
        backbone = transformers.ResNetConfig(
            embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        config = transformers.DetrConfig(
            use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=backbone, d_model=12,
            encoder_layers=1, decoder_layers=2, encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=5,
            encoder_attention_heads=2, decoder_attention_heads=2, num_labels=CLASSES)  # fmt: skip
        model = prepare(transformers.DetrForObjectDetection(config))
        axes = {"layernorm|encoder": Tokens(), "": channels_first}
        return Subject(
            model, image, axes, output=lambda o: o.logits[:, 2], score=lambda o: o.logits[:, 2, CLASS].sum(),
            layer="model.input_projection" if "features" in name else None, finder_size=32)  # fmt: skip
    if name == "CLIP":
        config = transformers.CLIPConfig(
            text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 6, "projection_dim": 8},
            vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 8},
            projection_dim=8,
        )
        model = prepare(transformers.CLIPModel(config))
        prompts = torch.arange(5 * (CLASS + 1)).view(-1, 5) + 1
        return Subject(
            model, random_image(2, 3, 32, 32), Tokens(1),
            layer=_last(model.vision_model, "layer_norm1", "vision_model."),
            call=lambda image: ((), {"input_ids": prompts, "pixel_values": image}),
            output=lambda o: o.logits_per_image, score=lambda o: o.logits_per_image[:, CLASS].sum())  # fmt: skip
    if name == "AST":
        config = transformers.ASTConfig(
            **sizes, patch_size=8, frequency_stride=8, time_stride=8, max_length=48, num_mel_bins=32, num_labels=CLASSES
        )
        model = prepare(transformers.ASTForAudioClassification(config))
        return Subject(
            model, random_image(2, 48, 32), Tokens(2), layer=_last(model, "layernorm_before"), places=(2, 1),
            score=logits)  # fmt: skip
    config = transformers.VideoMAEConfig(
        **sizes, image_size=32, patch_size=8, num_frames=4, tubelet_size=2, num_labels=CLASSES
    )
    model = prepare(transformers.VideoMAEForVideoClassification(config))
    return Subject(
        model, random_image(2, 4, 3, 32, 32), Tokens(strides=(2, 8, 8)), layer=_last(model, "layernorm_before"),
        places=(1, 3, 4), score=logits)  # fmt: skip


TRANSFORMERS = ("ViT", "DeiT", "Swin", "Swinv2", "DETR", "DETR, its features", "CLIP", "AST", "VideoMAE")


def _last(model: nn.Module, suffix: str, prefix: str = "") -> str:
    return prefix + [name for name, _ in model.named_modules() if name.endswith(suffix)][-1]


# --- all of them


KINDS: dict[str, Callable[[str], Subject]] = {
    "torchvision, classification": torchvision_classifier,
    "torchvision, video": torchvision_classifier,
    "torchvision, segmentation": torchvision_segmenter,
    "torchvision, detection": torchvision_detector,
    "timm": timm_model,
    "transformers": transformers_model,
}


def case(kind: str, name: str, family: str) -> Case:
    """A model by name."""
    return Case(name, kind, family, lambda: KINDS[kind](name))


def cases() -> list[Case]:
    """All, in order."""
    models = torchvision_models()
    found = []
    for name in models.list_models():
        part, _, rest = _family(models.get_model_builder(name)).rpartition(".")
        if part not in ("quantization", "optical_flow"):
            found.append(case(f"torchvision, {part or 'classification'}", name, rest))
    found.sort(key=lambda one: list(KINDS).index(one.kind))
    found += [case("timm", name, _timm_family(name)) for name in TIMM_MODELS]
    return found + [case("transformers", name, name) for name in TRANSFORMERS]


TIMM_MODELS = """
    bat_resnext26ts beit3_base_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256
    caformer_s18 cait_xxs24_224 coat_tiny coatnet_pico_rw_224 coatnext_nano_rw_224 convformer_s18 convit_tiny
    convmixer_768_32 convnext_atto_rms convnextv2_atto cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2
    cspdarknet53 cspnext_tiny cspresnet50 cspresnext50 darknet17 darknetaa53 davit_tiny
    deit_tiny_distilled_patch16_224 densenet121 densenetblur121d dla46x_c dm_nfnet_f0 dpn48b eca_botnext26ts_256
    eca_nfnet_l0 eca_resnext26ts eca_vovnet39b ecaresnet26t ecaresnetlight ecaresnext26t_32x4d edgenext_xx_small
    efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1 efficientvit_b0 efficientvit_m0
    ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b flexivit_small
    focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnet33ts gcresnext26ts gcvit_xxtiny gemma4_vit_167m_enc gernet_s
    ghostnet_050 ghostnetv3_050 gmixer_12_224 gmlp_ti16_224 halo2botnet50ts_256 halonet_h1 haloregnetz_b
    hardcorenas_b hgnet_tiny hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lamhalobotnet50ts_256
    lcnet_035 lcnetv2_small legacy_seresnet18 legacy_seresnext26_32x4d legacy_xception levit_128s lowformer_b0
    mambaout_femto maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 mixer_s16_224 mixnet_s
    mnasnet_small mobilenet_edgetpu_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv5_base mobileone_s1
    mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_parfac_gap nest_tiny nextvit_small
    nf_regnet_b0 nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1
    res2next50 resmlp_12_224 resnest14d resnet10t resnet32ts resnetaa34d resnetblur18 resnetrs50 resnetv2_18
    resnext26ts resnext50_32x4d rexnet_100 rexnetr_100 sam2_hiera_tiny samvit_base_patch16_224 sebotnet33ts_256
    sedarknet21 sehalonet33ts selecsls42 semnasnet_050 sequencer2d_s seresnet18 seresnet33ts seresnetaa50d
    seresnext26t_32x4d seresnext26ts shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window16_256 tf_efficientnetv2_b0
    tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
    vit_base_patch16_224_miil vit_betwixt_patch16_rope_reg4_gap_256 vit_srelpos_small_patch16_224
    vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a wide_resnet50_2 xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905
"""The smallest of each family of timm."""


PAGE = """# Which architectures are explained right?

Generated by `make experiment-architectures`; do not edit. {count} models with random weights were built, the layer that
the command takes by default was explained by Grad-CAM, and the map was compared with a forward hook and a backward pass
through the whole model. The command explains classifiers of images: in detectors, models of clips, CLIP, AST and
VideoMAE a layer near the end was chosen by hand. The maps compared are signed, before the ReLU. Versions: {versions}.

<!-- counts -->

{summary}

<!-- end of the counts -->

{meaning}

## By family

{families}

## What is not right as it is

{others}

## Default layers that come early

These maps are right, but of a layer that says little about the decision: a model that does not call its late layers
by a known name, or whose late layers run several times.

{early}
"""


def load() -> dict[str, Any]:
    """The committed verdicts."""
    return json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))


def markdown(results: dict[str, Any]) -> str:
    """The page of the verdicts."""
    found = [Verdict(**each) for each in results["models"]]
    used = [verdict for verdict in VERDICTS if any(each.verdict == verdict for each in found)]

    def counted(group: list[Verdict]) -> list[str]:
        counts = Counter(each.verdict for each in group)
        return [str(counts[verdict] or "") for verdict in used]

    kinds = list(dict.fromkeys(each.kind for each in found))
    families = list(dict.fromkeys((each.kind, each.family) for each in found))
    return PAGE.format(
        count=sum(each.verdict != "skipped" for each in found),
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        summary=_table(
            ["models", *used],
            [[kind, *counted([each for each in found if each.kind == kind])] for kind in kinds]
            + [["all", *counted(found)]],
        ),
        meaning="\n".join(f"- **{verdict}**: {VERDICTS[verdict]}." for verdict in used),
        families=_table(
            ["models", "family", *used],
            [[*pair, *counted([each for each in found if (each.kind, each.family) == pair])] for pair in families],
        ),
        others=_table(
            ["model", "layer", "activations", "verdict", "why"],
            [
                [each.name, f"`{each.layer}`" if each.layer else "", each.layout, each.verdict, _cell(each.error)]
                for each in found
                if each.verdict != "right"
            ],
        ),
        early=_table(
            ["model", "layer", "activations", "modules that run before it"],
            [
                [each.name, f"`{each.layer}`", each.layout, f"{each.depth:.0%}"]
                for each in found
                if each.verdict.startswith("right") and each.depth < EARLY
            ],
        ),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", text)


def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name).split("+")[0]
        for name in ("torch", "torchvision", "timm", "transformers")
    }


def main(patterns: Sequence[str]) -> None:
    """Judge the models whose ``kind: name`` fits a pattern, or all, and write the results and the page."""
    path = RESULTS / "architectures.json"
    known = {(each["kind"], each["name"]): each for each in load()["models"]} if path.exists() else {}
    everything = cases()
    for one in everything:
        if not patterns or any(re.search(pattern, f"{one.kind}: {one.name}") for pattern in patterns):
            verdict = judge(one)
            print(f"{verdict.seconds:5} s  {one.kind}: {one.name}: {verdict.verdict}  {verdict.error}", flush=True)
            known[one.kind, one.name] = verdict._replace(seconds=0.0)._asdict()
            models = [known[each.kind, each.name] for each in everything if (each.kind, each.name) in known]
            path.write_text(json.dumps({"versions": _versions(), "models": models}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "architectures.md").write_text(markdown(load()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
