"""What is asked of the generated networks, and what should come out: naive loops over plain autograd, in float64."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from diffgradcam import AblationCAM, ScoreCAM, ShapleyCAM, TrainableCAM, TrueFalseCAM
from tests import methods, oracles

from .architectures import (
    BLOCKS,
    CLASSES,
    DETACHED,
    FLAT,
    HEADS,
    NO_TENSOR,
    NORMS,
    NOT_RUN,
    SIZES,
    TOKENS,
    TWICE,
    Architecture,
    Network,
    Target,
    build,
    targets,
)

BATCH = 2
MODES = {"grad": contextlib.nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
WAYS = ("explain", "call", "maps")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
WORDS: tuple[Any, ...] = (None, 2, torch.tensor([0, 3]), torch.tensor([[0, 1, 1], [3, 2, 4]]), "all")

NO_GRADIENTS = "a forward pass without gradients"
SAME_CLASS = "a class against itself"
NOT_FINITE = "NaN or infinite"
NO_SECOND = "no second derivative"
PHRASES = {
    TWICE: ("ran more than once in one forward pass, so which run is meant is unclear; choose it with",),
    FLAT: ("has no spatial positions: its activations have shape",),
    TOKENS: ("tokens, not a grid",),
    NO_TENSOR: ("gives tuple; expected one floating-point tensor (B, C, ...)",),
    NOT_RUN: ("did not run in a recorded forward pass; call the model (not its forward method)",),
    DETACHED: ("the output does not depend on", "the logits carry no graph back to layer"),
    NO_GRADIENTS: ("ran without gradients (no_grad, inference_mode or reentrant checkpointing)",),
    SAME_CLASS: ("would be contrasted with itself; explain another class",),
    NOT_FINITE: ("is NaN or infinite",),
    NO_SECOND: ("a layer above the target has no second derivative",),
}
"""Every reason to refuse, and what our messages for it say."""


def plus_plus(activations, gradients):
    """Grad-CAM++ for activations of any sign: the denominator is kept at 1 or more."""
    result = np.zeros(activations.shape[1:])
    for a, g in zip(activations, gradients, strict=True):
        positive = [max(float(x), 0.0) for x in g.flatten()]
        weight = sum(x / max(2 + float(a.sum()) * x, 1.0) for x in positive)
        result += weight * a
    return result


METHODS = {
    name: (kind, options, score, plus_plus if weighting is oracles.gradcam_plus_plus else weighting)
    for name, (kind, options, score, weighting) in methods.METHODS.items()
} | {
    "TrueFalse": (TrueFalseCAM, {}, oracles.difference(oracles.largest), oracles.gradcam),
    "Shapley": (ShapleyCAM, {}, oracles.logit, oracles.gradcam),
    "Ablation": (AblationCAM, {"progress": False}, oracles.logit, None),
    "Score": (ScoreCAM, {"progress": False}, oracles.logit, None),
}
PERTURBING = ("Ablation", "Score")
BY_ORDER = ("Diff max", "Diff callable", "Finer", "Finer 0.6 of 2", "TrueFalse")
WITHOUT_CLASS = ("Eigen", "KPCA", "FEM")


class Combination(NamedTuple):
    """One thing to ask."""

    architecture: Architecture
    target: Target
    method: str
    dtype: torch.dtype
    training: bool
    frozen: bool
    way: str
    mode: str
    word: int
    rectify: bool

    @property
    def classes(self):
        """In the form that the library takes."""
        return WORDS[self.word]


def ways(method: str) -> tuple[str, ...]:
    """How a method can be asked: only those from gradients have maps to train with."""
    return tuple(way for way in WAYS if way != "maps" or issubclass(METHODS[method][0], TrainableCAM))


def draw(number: int) -> Combination:
    """The combination of a number. Blocks and methods take turns, so that each meets each; all else is drawn."""
    rng = random.Random(number)
    kinds, names = list(BLOCKS), list(METHODS)
    blocks = [kinds[number % len(kinds)], *rng.choices(kinds, k=rng.randrange(2))]
    rng.shuffle(blocks)
    architecture = Architecture(
        dims=rng.choice((1, 2, 2, 3)),
        norm=rng.choice(NORMS),
        bias=rng.random() < 0.7,
        stride=rng.choice((1, 2, 3)),
        blocks=tuple(blocks),
        head=rng.choices(HEADS, [6, 3, 3, 3, 3, 3, 1])[0],
    )
    method = names[number // len(kinds) % len(names)]
    way = rng.choice(WAYS)
    way = way if way in ways(method) else "explain"
    possible = targets(architecture)
    combination = Combination(
        architecture,
        # Not only layers that are refused: there are many ways to be.
        rng.choices(possible, [0.6 if target.refusal else 1 for target in possible])[0],
        method,
        dtype=rng.choice(list(TOLERANCE)),
        training=rng.random() < 0.3 and method not in PERTURBING,
        frozen=rng.random() < 0.2,
        way=way,
        mode=rng.choices(list(MODES), [6, 1, 1] if way == "maps" else [1, 1, 1])[0],
        word=rng.randrange(4 if way == "call" else 5),
        rectify=rng.random() < 0.5 and method != "TrueFalse",
    )
    # Without a form of its own in the call, which takes one class for each image.
    return combination._replace(word=2) if way == "call" and combination.word == 3 else combination


class Case(NamedTuple):
    """A combination, built."""

    combination: Combination
    model: Network
    twin: Network
    images: torch.Tensor

    def cam(self):
        """The CAM of the model."""
        c = self.combination
        kind, options, _, _ = METHODS[c.method]
        if c.method != "TrueFalse":
            options = {**options, "rectify": c.rectify}
        return kind(self.model, c.target.layer, c.target.grid, **options)


def prepare(number: int) -> Case:
    """Build what a number stands for."""
    c = draw(number)
    model = build(c.architecture, number).to(c.dtype).train(c.training).requires_grad_(not c.frozen)
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(BATCH, 3, *SIZES[c.architecture.dims], generator=generator, dtype=torch.float64)
    return Case(c, model, copy.deepcopy(model), images.to(c.dtype))


def ask(case: Case) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Logits (where the way gives them) and maps, as the library gives them."""
    c, cam = case.combination, case.cam()
    with MODES[c.mode](), numerics(c):
        if c.way == "explain":
            logits, _, maps = cam.explain(case.images, c.classes)
            return logits, maps
        if c.way == "call":
            chosen = [c.classes] * BATCH if isinstance(c.classes, int) else c.classes
            heat = torch.from_numpy(cam(case.images, chosen))
            return cam.outputs, heat
        with cam:
            logits = case.model(case.images)
            return logits.detach(), cam.maps(logits, c.classes).detach()


@contextlib.contextmanager
def numerics(c: Combination):
    """In half precision the fast path of attention, which runs without gradients alone, is another rounding."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before and c.dtype.itemsize > 2)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Expected(NamedTuple):
    """What the twin says.

    Attributes:
        refusals: Why the library should refuse, any of them; empty where there is a map.
        logits: Of the twin, ``(B, K)``.
        maps: Signed, ``(B, N, *S)``.
        slack: How large the terms are that were added up, ``(B, N)``: rounding errors are of their order.
        clear: Whether the map is well conditioned: not where a discontinuity of the method decides.
    """

    refusals: set[str]
    logits: torch.Tensor
    maps: torch.Tensor | None = None
    slack: torch.Tensor | None = None
    clear: bool = True


def expect(case: Case) -> Expected:
    """Run the twin once by plain autograd, and the method as loops."""
    c, twin = case.combination, case.twin
    with torch.enable_grad(), numerics(c):
        logits, activations = record(twin, c.target, case.images)
    refusals = {c.target.refusal} - {None}
    if c.architecture.head == "detached" and refusals:
        refusals.add(DETACHED)
    if not METHODS[c.method][0].needs_graph:
        refusals.discard(DETACHED)
    if c.way == "maps" and c.mode != "grad":
        refusals.add(NO_GRADIENTS)
    index = class_index(c, logits)
    if c.method == "Diff class" and bool((index == 4).any()):
        refusals.add(SAME_CLASS)
    finite = bool(logits.isfinite().all()) and all(bool(each.isfinite().all()) for each in activations)
    if not finite:
        refusals.add(NOT_FINITE)
    if refusals or not activations:
        return Expected(refusals, logits.detach())
    (layer,) = activations
    try:
        maps, slack, clear = loops(case, logits, layer, index)
    except RuntimeError as error:
        if c.method != "Shapley" or "is not implemented" not in str(error):
            raise
        return Expected({NO_SECOND}, logits.detach())
    return Expected(refusals, logits.detach(), maps, slack, clear)


def class_index(c: Combination, logits: torch.Tensor) -> torch.Tensor:
    """Classes ``(B, N)``."""
    if c.classes is None:
        return logits.argmax(1, keepdim=True)
    if isinstance(c.classes, str):
        return torch.arange(CLASSES).expand(BATCH, -1)
    return (
        torch.as_tensor(c.classes).reshape(-1, 1).expand(BATCH, -1)
        if isinstance(c.classes, int)
        else (c.classes if c.classes.ndim == 2 else c.classes.unsqueeze(1))
    )


def record(model, target, images, change=None):
    """The logits, and what the layer puts out (or gets), each with the graph from one to the other."""
    found = []

    def note(tensor):
        if not isinstance(tensor, torch.Tensor):
            return None
        own = tensor.clone()  # as it is now: others may overwrite it
        found.append(own if own.requires_grad else own.requires_grad_())
        return change(own) if change else own.clone()

    def leaving(_module, _args, output):
        return note(output)

    def entering(_module, args):
        own = note(args[0])
        return (own, *args[1:])

    module = model.get_submodule(target.name)
    register = module.register_forward_pre_hook if target.entering else module.register_forward_hook
    handle = register(entering if target.entering else leaving)
    try:
        return model(images), found
    finally:
        handle.remove()


def loops(case: Case, logits: torch.Tensor, layer: torch.Tensor, index: torch.Tensor):
    """Signed maps, their slack, and whether they are well conditioned."""
    c = case.combination
    _, _, score, weighting = METHODS[c.method]
    grid = (lambda tensor: tensor) if c.target.grid is None else c.target.grid

    def numbers(tensor):
        return grid(tensor.detach()).double().numpy()

    own = numbers(layer)
    rows, slack, clear = [], [], not tied(c.method, logits)
    for column in index.T.tolist():
        if c.method in PERTURBING:
            weights = perturbed(case, own, column)
            maps = [np.einsum("c,c...->...", w, a) for w, a in zip(weights, own, strict=True)]
            bounds = [
                np.abs(w).sum() * np.abs(a).max() + logits.abs().max().item() for w, a in zip(weights, own, strict=True)
            ]
        else:
            gradients = gradient(case, logits, layer, column, score, numbers)
            maps = [weighting(a, g) for a, g in zip(own, gradients, strict=True)]
            pairs = list(zip(own, gradients, strict=True))
            sizes = [size_of_terms(c.method, a, g) for a, g in pairs]
            bounds = [size * (own[0, 0].size if "++" in c.method else 1) for size in sizes]
            clear = clear and all(conditioned(c, a, g) for a, g in pairs)
            noise = 10 * torch.finfo(c.dtype).eps * float(logits.detach().abs().max())  # 0, but for rounding: not a map
            clear = clear and (c.method in WITHOUT_CLASS or all(size == 0 or size > noise for size in sizes))
        rows.append(np.stack(maps))
        slack.append(bounds)
    return torch.from_numpy(np.stack(rows, 1)), torch.tensor(slack).T, clear


def gradient(case, logits, layer, column, score, numbers):
    """Of the sum of the images' scores with respect to the layer, through the logits; 0 if the method reads none."""
    if case.combination.method in WITHOUT_CLASS:
        return [np.zeros_like(row) for row in numbers(layer)]
    z = logits.detach().double().requires_grad_()
    total = sum(score(row, category) for row, category in zip(z, column, strict=True))
    (cotangent,) = torch.autograd.grad(total, z)
    second = case.combination.method == "Shapley"
    keep = second or case.combination.way == "maps"  # in half precision some kernels then give other numbers
    (first,) = torch.autograd.grad(
        logits, layer, cotangent.to(logits.dtype), retain_graph=True, create_graph=keep, allow_unused=True
    )
    if first is None:
        return [np.zeros_like(row) for row in numbers(layer)]
    if second and first.requires_grad:
        (product,) = torch.autograd.grad(first, layer, layer.detach(), retain_graph=True, materialize_grads=True)
        first = first - product / 2
    return numbers(first)


def perturbed(case, own, column):
    """The weights of the channels of each image, from running the twin once for each channel."""
    c = case.combination
    found = []
    for row, category in enumerate(column):
        image, values = case.images[row : row + 1], []
        with torch.no_grad():
            plain = float(case.twin(image)[0, category])
            for k in range(own.shape[1]):
                if c.method == "Ablation":
                    changed, _ = record(case.twin, c.target, image, partial(without, c.target.grid, k))
                    values.append(plain - float(changed[0, category]))
                else:
                    mask = torch.from_numpy(np.array(oracles.resize(own[row, k], image.shape[2:])))
                    low, high = mask.min(), mask.max()
                    mask = (mask - low) / (high - low) if high > low else torch.zeros_like(mask)
                    values.append(float(case.twin((image * mask).to(image.dtype))[0, category]))
        if c.method == "Score":
            values = np.exp(np.array(values) - max(values))
            values = values / values.sum()
        found.append(np.array(values))
    return found


def without(grid, channel, tensor):
    """The activations ``(1, ...)`` without one channel."""
    less = tensor.detach().clone()
    less[(slice(None),) * (1 if grid is None else less.ndim - 1) + (channel,)] = 0
    return less


def size_of_terms(method, activations, gradients):
    """The order of the terms that make a map, of which the ++ methods add up one for each place."""
    size = sum(np.abs(a).max() * np.abs(g).max() for a, g in zip(activations, gradients, strict=True))
    if method in WITHOUT_CLASS:
        return float(np.abs(activations).max() * len(activations) + 1)
    return float(size)


def conditioned(c: Combination, activations, gradients) -> bool:
    """Not where rounding decides: sums that cancel, equal components, values at a threshold."""
    eps = torch.finfo(c.dtype if c.dtype.itemsize > 4 else torch.float32).eps
    if c.method == "XGradCAM":
        totals = np.abs(activations.reshape(len(activations), -1).sum(1))
        sizes = np.abs(activations).reshape(len(activations), -1).sum(1)
        return bool(((totals == 0) & (sizes == 0) | (totals > 1e-2 * sizes)).all())
    if c.method in ("Eigen", "KPCA", "EigenGrad", "EigenGrad of Diff"):
        channels = activations * gradients if "Grad" in c.method else activations
        centred = oracles._centred(channels)
        values = np.linalg.svd(centred, compute_uv=False)
        if values[0] <= 100 * eps * np.abs(channels).max():
            return False
        left = np.linalg.svd(centred.T)[0][:, 0]
        agreement, possible = left @ centred.sum(0), np.abs(left) @ np.abs(centred).sum(0)
        apart = len(values) == 1 or values[1] < 0.7 * values[0]
        return bool(apart and abs(agreement) > 0.05 * possible) and c.dtype.itemsize > 2
    if c.method == "FEM":
        flat = activations.reshape(len(activations), -1)
        mean, sd = flat.mean(1, keepdims=True), flat.std(1, keepdims=True)
        return bool((np.abs(flat - mean - sd) > 1e-5 * np.abs(flat).max()).all())
    return True


def tied(method: str, logits: torch.Tensor) -> bool:
    """Whether the method asks which logits are the largest or the nearest, and two of them are equal but for rounding.

    In half precision the library compares what the loops compare, so only what is equal is equal.
    """
    if method not in BY_ORDER:
        return False
    share = 0 if logits.dtype.itemsize == 2 else 1e-5
    for row in logits.detach().double().tolist():
        near = share * max(map(abs, row))
        distances = [sorted(abs(a - b) for j, b in enumerate(row) if j != i) for i, a in enumerate(row)]
        if any(b - a <= near for some in distances for a, b in itertools.pairwise([0.0, *some])):
            return True
    return False


def heat_map(c: Combination, signed: np.ndarray, size) -> tuple[torch.Tensor, float]:
    """The heat map of the call from one signed map, and the range that it is divided by."""

    def scaled(one):
        if not c.rectify:
            reach = np.abs(one).max()
            return (one / reach if reach > 0 else one * 0), reach
        reach = one.max() - one.min()
        return ((one - one.min()) / reach if reach > 0 else one * 0), reach

    first, reach = scaled(np.maximum(signed, 0) if c.rectify else signed)
    second, again = scaled(oracles.resize(first, size))
    return torch.from_numpy(np.array(second)), float(reach * again)
