"""Tiny models, one for each kind of head and of layer that a CAM meets. Weights follow from the seed alone."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 6
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
MAX_POOL = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
SIZE = {1: (12,), 2: (6, 5), 3: (4, 3, 5)}


def images(batch=3, dims=2, seed=0, dtype=torch.float64):
    """Inputs ``(batch, 3, *SIZE[dims])``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *SIZE[dims], generator=generator, dtype=torch.float64).to(dtype)


def seeded(build, seed=0, dtype=torch.float64):
    """What ``build()`` returns with weights from the seed, in evaluation mode; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # fresh weights are small: the logits would hardly differ
    return model.to(dtype).eval()


def backbone(dims=2, activation=nn.ReLU):
    """Layers ``stem``, ``act``, ``features``, ``relu``: ``(B, 3, *S)`` to ``(B, CHANNELS, *S)``."""
    conv = CONV[dims]
    return [
        ("stem", conv(3, 4, 3, padding=1)),
        ("act", activation()),
        ("features", conv(4, CHANNELS, 3, padding=1)),
        ("relu", activation()),
    ]


def pooled(classes=5, dims=2, seed=0, dtype=torch.float64, activation=nn.ReLU):
    """Global average pooling and a linear layer: the head that has a closed form."""

    def build():
        head = [("pool", POOL[dims](1)), ("flatten", nn.Flatten()), ("head", nn.Linear(CHANNELS, classes))]
        return nn.Sequential(OrderedDict(backbone(dims, activation) + head))

    return seeded(build, seed, dtype)


def flat(classes=5, dims=2, seed=0, dtype=torch.float64, activation=nn.ReLU):
    """A linear layer over every position of every channel: gradients differ from position to position."""

    def build():
        features = CHANNELS * torch.Size(SIZE[dims]).numel()
        head = [("flatten", nn.Flatten()), ("head", nn.Linear(features, classes))]
        return nn.Sequential(OrderedDict(backbone(dims, activation) + head))

    return seeded(build, seed, dtype)


def deep(classes=5, dims=2, seed=0, dtype=torch.float64, activation=nn.Tanh):
    """A nonlinear head: the gradient of a logit depends on the activations."""

    def build():
        features = CHANNELS * torch.Size(SIZE[dims]).numel()
        hidden = [("flatten", nn.Flatten()), ("hidden", nn.Linear(features, 7)), ("tanh", nn.Tanh())]
        return nn.Sequential(OrderedDict([*backbone(dims, activation), *hidden, ("head", nn.Linear(7, classes))]))

    return seeded(build, seed, dtype)


def max_pooled(classes=5, dims=2, seed=0, dtype=torch.float64):
    """Looks like :func:`pooled`, to the shape of its weights, but its gradient sits on one position a channel."""

    def build():
        head = [("pool", MAX_POOL[dims](1)), ("flatten", nn.Flatten()), ("head", nn.Linear(CHANNELS, classes))]
        return nn.Sequential(OrderedDict(backbone(dims) + head))

    return seeded(build, seed, dtype)


class _MeanOfSquares(nn.Module):
    def forward(self, x):
        return x.square().flatten(2).mean(2)


def mean_of_squares(classes=5, dims=2, seed=0, dtype=torch.float64):
    """Looks like :func:`pooled`, but pools squares."""

    def build():
        head = [("pool", _MeanOfSquares()), ("head", nn.Linear(CHANNELS, classes))]
        return nn.Sequential(OrderedDict(backbone(dims) + head))

    return seeded(build, seed, dtype)


class _Densenet(nn.Module):
    def __init__(self, classes, inplace):
        super().__init__()
        self.features = nn.Sequential(OrderedDict([*backbone()[:3], ("norm", nn.BatchNorm2d(CHANNELS))]))
        self.head = nn.Linear(CHANNELS, classes)
        self.inplace = inplace

    def forward(self, x):
        return self.head(F.relu(self.features(x), inplace=self.inplace).mean((2, 3)))


def densenet(classes=5, seed=0, dtype=torch.float64, inplace=True):
    """Signed ``features`` (and ``features.norm``), overwritten by an in-place ReLU. Its twin: ``inplace=False``."""
    return seeded(lambda: _Densenet(classes, inplace), seed, dtype)


class _Unbatchable(torch.autograd.Function):
    """Twice the input, with a backward pass that looks at its values, which no batched gradient can."""

    @staticmethod
    def forward(_ctx, x):
        return 2 * x

    @staticmethod
    def backward(_ctx, gradient):
        return 2 * gradient if bool((gradient != 0).any()) else torch.zeros_like(gradient)


class _CustomFunction(nn.Module):
    def forward(self, x):
        return _Unbatchable.apply(x)


def custom_function(classes=5, seed=0, dtype=torch.float64):
    """A custom autograd function in the head that cannot be differentiated for several classes at once."""

    def build():
        features = CHANNELS * torch.Size(SIZE[2]).numel()
        head = [("custom", _CustomFunction()), ("flatten", nn.Flatten()), ("head", nn.Linear(features, classes))]
        return nn.Sequential(OrderedDict(backbone() + head))

    return seeded(build, seed, dtype)


class _Tokens(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Conv2d(3, CHANNELS, 1)
        self.token = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.block = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.Tanh(), nn.LayerNorm(CHANNELS))
        self.mix = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.head = nn.Linear(CHANNELS, classes)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))
        return self.head(self.mix(tokens, tokens, tokens, need_weights=False)[0][:, 0])


def tokens(classes=5, seed=0, dtype=torch.float64):
    """A small transformer: ``block`` puts out tokens ``(B, 1 + h * w, CHANNELS)``, the class token first."""
    return seeded(lambda: _Tokens(classes), seed, dtype)


class _Transpose(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class _MeanOfTokens(nn.Module):
    def forward(self, x):
        return x.mean(1)


def transformer(classes=5, seed=0, dtype=torch.float64):
    """Two blocks of PyTorch's own, ``first`` and ``block``, over a token for each pixel; then ``norm`` and ``head``."""

    def block():
        return nn.TransformerEncoderLayer(CHANNELS, 2, 8, batch_first=True, norm_first=True)

    def build():
        layers = [
            ("embed", nn.Conv2d(3, CHANNELS, 1)),
            ("tokens", _Transpose()),
            ("first", block()),
            ("block", block()),
        ]
        head = [("norm", nn.LayerNorm(CHANNELS)), ("pool", _MeanOfTokens()), ("head", nn.Linear(CHANNELS, classes))]
        return nn.Sequential(OrderedDict(layers + head))

    return seeded(build, seed, dtype)


def two_sizes(classes=5, seed=0, dtype=torch.float64):
    """Two layers of different resolution: ``features`` (6, 5) and ``small`` (3, 2), then pooled."""

    def build():
        down = [("down", nn.AvgPool2d(2)), ("small", nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)), ("last", nn.ReLU())]
        head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", nn.Linear(CHANNELS, classes))]
        return nn.Sequential(OrderedDict(backbone() + down + head))

    return seeded(build, seed, dtype)


class WithAuxiliary(nn.Module):
    """The linear layer that is registered last has no part in the logits."""

    def __init__(self):
        super().__init__()
        self.body = pooled()
        self.auxiliary = nn.Linear(CHANNELS, 5).double()

    def forward(self, x):
        return self.body(x)
