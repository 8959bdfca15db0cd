"""A generator of small networks: any chain of the blocks that people build, in one to three dimensions.

What a network is follows from an :class:`Architecture` alone, its weights from a seed. For each layer that one may ask
for, :func:`targets` says whether it has a map, and if not, why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import layer_input
from tests.models import CONV, MAX_POOL, POOL, _CustomFunction, seeded

WIDTH = 4
CLASSES = 5
SIZES = {1: (13,), 2: (7, 6), 3: (4, 3, 5)}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
NORMS = ("none", "batch", "group", "instance", "layer")
HEADS = ("pooled", "functional pooling", "max pooled", "flat", "deep", "convolution", "detached")

TWICE = "a layer that ran more than once"
FLAT = "no spatial positions"
TOKENS = "tokens, not a grid"
NO_TENSOR = "no tensor"
NOT_RUN = "a layer that did not run"
DETACHED = "the output does not depend on the layer"


class Architecture(NamedTuple):
    """What a network is."""

    dims: int
    norm: str
    bias: bool
    stride: int
    blocks: tuple[str, ...]
    head: str


class Target(NamedTuple):
    """A layer that one may ask for: a dotted name, or what enters it; a reshape_transform; why it is refused."""

    name: str
    entering: bool = False
    grid: Callable[[torch.Tensor], torch.Tensor] | None = None
    refusal: str | None = None

    @property
    def layer(self):
        """As a CAM takes it."""
        return layer_input(self.name) if self.entering else self.name


def normalization(a: Architecture, channels: int) -> nn.Module:
    """Of the kind of the architecture."""
    if a.norm == "batch":
        return BATCH_NORM[a.dims](channels)
    if a.norm == "instance":
        return INSTANCE_NORM[a.dims](channels, affine=True)
    if a.norm == "none":
        return nn.Identity()
    return nn.GroupNorm(1 if a.norm == "layer" else 2, channels)


def convolution(a: Architecture, inputs: int = WIDTH, outputs: int = WIDTH, **options) -> nn.Module:
    """Three wide, with a bias or not."""
    return CONV[a.dims](inputs, outputs, 3, padding=1, bias=a.bias, **options)


def to_grid(tokens: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """``(B, N, C)`` to ``(B, C, *size)``."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Plain(nn.Module):
    """Convolution, normalisation, activation: each a module."""

    def __init__(self, a):
        super().__init__()
        self.conv, self.norm, self.act = convolution(a), normalization(a, WIDTH), nn.Tanh()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))

    targets = (Target("conv"), Target("norm"), Target("act"), Target("conv", entering=True), Target("act", True))


class Residual(nn.Module):
    """The sum of the input and of what a branch makes of it."""

    def __init__(self, a):
        super().__init__()
        self.conv, self.norm, self.last = convolution(a), normalization(a, WIDTH), convolution(a)

    def forward(self, x):
        return torch.relu(x + self.last(torch.relu(self.norm(self.conv(x)))))

    targets = (Target("conv", entering=True), Target("norm"), Target("last"), Target("last", entering=True))


class Halve(nn.Module):
    """Keeps nothing for the backward pass, so its input may be overwritten."""

    def forward(self, x):
        return 0.5 * x


class InPlace(nn.Module):
    """Overwrites what its layers put out; its branch begins with dropout, which hands on its input in evaluation."""

    def __init__(self, a):
        super().__init__()
        self.drop, self.halve, self.conv, self.act = nn.Dropout(0.0), Halve(), convolution(a), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x).mul_(1.5)
        y += self.halve(self.drop(x))
        return self.act(y)

    targets = (Target("conv"), Target("act"), Target("act", True), Target("drop"), Target("halve", True))


class OverwritesItsInput(nn.Module):
    """``x += branch(x)``, in place: what entered the branch is gone."""

    def __init__(self, a):
        super().__init__()
        self.conv, self.drop, self.halve = convolution(a), nn.Dropout(0.0), Halve()

    def forward(self, x):
        x = self.conv(x)
        x += self.halve(self.drop(x))
        return x

    targets = (Target("halve", entering=True), Target("halve"), Target("drop"), Target("conv"))


class Dense(nn.Module):
    """Each layer reads all that came before: concatenation."""

    def __init__(self, a):
        super().__init__()
        self.first, self.second = convolution(a), convolution(a, 2 * WIDTH)
        self.join = CONV[a.dims](3 * WIDTH, WIDTH, 1, bias=a.bias)

    def forward(self, x):
        first = F.silu(self.first(x))
        second = F.silu(self.second(torch.cat([x, first], 1)))
        return self.join(torch.cat([x, first, second], 1))

    targets = (Target("first"), Target("second"), Target("second", entering=True), Target("join", entering=True))


class Shared(nn.Module):
    """One convolution and one activation that run twice."""

    def __init__(self, a):
        super().__init__()
        self.conv, self.act, self.last = convolution(a), nn.Softplus(), normalization(a, WIDTH)

    def forward(self, x):
        return self.last(self.act(self.conv(self.act(self.conv(x)))))

    targets = (
        Target("conv", refusal=TWICE),
        Target("act", refusal=TWICE),
        Target("act", entering=True, refusal=TWICE),
        Target("last", entering=True),
    )


class Functional(nn.Module):
    """Functional activations and pooling, a parameter of its own, and a module that is never called."""

    def __init__(self, a):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH, *[1] * a.dims))
        self.conv, self.unused = convolution(a), convolution(a)
        self.listed = nn.ModuleList([convolution(a)])

    def forward(self, x):
        x = F.leaky_relu(self.conv(x), 0.1) * self.weight
        return F.elu(self.listed[0](x))

    targets = (
        Target("conv"),
        Target("listed.0"),
        Target("listed.0", entering=True),
        Target("unused", refusal=NOT_RUN),
        Target("listed", refusal=NOT_RUN),
    )


class Branches(nn.Module):
    """Three branches, one of them grouped and one of a single position, and a gate."""

    def __init__(self, a):
        super().__init__()
        self.wide, self.grouped = convolution(a), convolution(a, groups=WIDTH)
        self.squeeze = nn.Sequential(POOL[a.dims](1), CONV[a.dims](WIDTH, WIDTH, 1), nn.Sigmoid())

    def forward(self, x):
        return (self.wide(x).relu() + self.grouped(x).tanh()) * self.squeeze(x)

    targets = (Target("wide"), Target("grouped"), Target("squeeze"), Target("squeeze.0"), Target("wide", True))


class Attention(nn.Module):
    """Positions as tokens: attention among them, and back to a grid."""

    def __init__(self, _):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        normal = self.norm(tokens)
        tokens = tokens + self.mix(normal, normal, normal, need_weights=False)[0]
        return to_grid(tokens + self.mlp(tokens), x.shape[2:])

    targets = (
        Target("norm", grid=to_grid),
        Target("mlp", grid=to_grid),
        Target("mlp", entering=True, grid=to_grid),
        Target("mlp", refusal=TOKENS),
        Target("mix", grid=to_grid, refusal=NO_TENSOR),
    )


class Encoder(nn.Module):
    """PyTorch's own transformer layer, which has a fast path without gradients."""

    def __init__(self, _):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)

    def forward(self, x):
        return to_grid(self.layer(x.flatten(2).transpose(1, 2)), x.shape[2:])

    targets = (
        Target("layer", grid=to_grid),
        Target("layer.norm1", grid=to_grid),
        Target("layer.linear1", entering=True, grid=to_grid),
        Target("layer", entering=True, grid=to_grid),
    )


class Custom(nn.Module):
    """An autograd function of a user's own, which no batched gradient can pass."""

    def __init__(self, a):
        super().__init__()
        self.conv, self.custom = convolution(a), _CustomFunction()

    def forward(self, x):
        return self.custom(self.conv(x)).tanh()

    targets = (Target("conv"), Target("custom"), Target("custom", entering=True))


class OneCell(nn.Module):
    """A map of a single cell, enlarged again afterwards."""

    def __init__(self, a):
        super().__init__()
        self.pool, self.conv = POOL[a.dims](1), CONV[a.dims](WIDTH, WIDTH, 1, bias=a.bias)

    def forward(self, x):
        return x + self.conv(self.pool(x))

    targets = (Target("pool"), Target("conv"), Target("conv", entering=True))


BLOCKS = {
    "plain": Plain,
    "residual": Residual,
    "in-place": InPlace,
    "overwriting": OverwritesItsInput,
    "dense": Dense,
    "shared": Shared,
    "functional": Functional,
    "branches": Branches,
    "attention": Attention,
    "encoder": Encoder,
    "custom": Custom,
    "one cell": OneCell,
}


class Network(nn.Module):
    """Stem, blocks, head."""

    def __init__(self, a: Architecture):
        super().__init__()
        self.stem = CONV[a.dims](3, WIDTH, 3, a.stride, padding=1, bias=a.bias)
        self.blocks = nn.Sequential(*(BLOCKS[block](a) for block in a.blocks))
        self.pool = (MAX_POOL if a.head == "max pooled" else POOL)[a.dims](1)
        self.flatten = nn.Flatten()
        self.kind = a.head
        features = WIDTH
        if a.head == "flat":
            features *= torch.Size((size - 1) // a.stride + 1 for size in SIZES[a.dims]).numel()
        if a.head == "deep":
            self.hidden = nn.Sequential(nn.Linear(features, 6), nn.Tanh())
            features = 6
        if a.head == "convolution":
            self.head = CONV[a.dims](WIDTH, CLASSES, 1)
        else:
            self.head = nn.Linear(features, CLASSES)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        if self.kind == "detached":
            x = x.detach()
        if self.kind == "convolution":
            return self.head(x).flatten(2).mean(2)
        if self.kind == "functional pooling":
            return self.head(x.flatten(2).mean(2))
        x = self.flatten(x if self.kind == "flat" else self.pool(x))
        return self.head(self.hidden(x) if self.kind == "deep" else x)


def build(a: Architecture, seed: int) -> Network:
    """In float64 and in evaluation mode."""
    return seeded(lambda: Network(a), seed)


def targets(a: Architecture) -> list[Target]:
    """What one may ask for, with grids made for this size."""
    size = torch.Size((size - 1) // a.stride + 1 for size in SIZES[a.dims])
    found = [Target("stem"), Target("blocks")]
    for index, block in enumerate(a.blocks):
        found += [Target(f"blocks.{index}"), Target(f"blocks.{index}", entering=True)]
        found += [each._replace(name=f"blocks.{index}.{each.name}") for each in BLOCKS[block].targets]
    if a.head == "detached":
        found = [each._replace(refusal=each.refusal or DETACHED) for each in found]
    if a.head in ("pooled", "max pooled", "deep"):
        found += [Target("pool"), Target("pool", entering=True)]
    if a.head in ("pooled", "flat"):
        found += [Target("flatten", refusal=FLAT), Target("head", refusal=FLAT), Target("", refusal=FLAT)]
    if a.head == "convolution":
        found.append(Target("head"))
    if a.dims == 1:  # tokens of signals are as good as signals: nobody can tell
        found = [each for each in found if each.refusal != TOKENS]
    return [each._replace(grid=each.grid and (lambda tokens: to_grid(tokens, size))) for each in found]
