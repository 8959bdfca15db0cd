"""Which layer lies below another."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import audit, layer_input
from diffgradcam._core.lower import find_lower_layer
from diffgradcam._core.outputs import find_logits
from diffgradcam.tokens import tokens_to_grid
from tests.models import pooled, seeded
from tests.untouched import untouched


def lower(model, layer, image=None, **options):
    image = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) if image is None else image
    return find_lower_layer(model, layer, image, find_logits, **options)


def head(channels=4):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def stack(*layers, channels=4):
    return seeded(lambda: nn.Sequential(*layers, *head(channels)), dtype=torch.float32)


def conv(inputs=4, outputs=4, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_what_enters_the_last_convolution():
    model = stack(conv(3), nn.ReLU(), conv(), nn.BatchNorm2d(4), nn.ReLU())
    for target in ("4", "3", "2", model[4], ["4"], layer_input("5"), layer_input(model[4])):
        assert lower(model, target) == "1"
    assert lower(model, ["4", "0"]) is None  # below the lowest of them there is the image alone
    assert lower(model, "0") is None


def test_what_does_not_mix_places_does_not_count():
    model = stack(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv(kernel=1), nn.BatchNorm2d(4), nn.Tanh())
    assert lower(model, "6") == "1"
    pooling = stack(conv(3), nn.AvgPool2d(3, 1, 1), nn.Tanh())
    assert lower(pooling, "2") == "0"


def test_padding_is_no_layer():
    model = stack(conv(3), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), nn.ReLU())
    assert lower(model, "4") == "1"


class Gate(nn.Module):
    """Weighs channels by their means, as squeeze and excitation does."""

    def __init__(self):
        super().__init__()
        self.weigh = nn.Linear(4, 4)

    def forward(self, x):
        return x * torch.sigmoid(self.weigh(x.mean((2, 3))))[:, :, None, None]


def test_a_gate_moves_nothing():
    model = stack(conv(3), nn.ReLU(), conv(), nn.ReLU(), Gate())
    assert lower(model, "4") == "1"


class Block(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.first, self.second = conv(), conv()
        self.act = nn.ReLU(inplace)

    def forward(self, x):
        return self.act(x + self.second(self.act(self.first(x))))


@pytest.mark.parametrize("inplace", [False, True])
def test_everything_passes_through_the_lower_layer(inplace):
    model = stack(conv(3), nn.ReLU(inplace), Block(inplace), Block(inplace))
    assert lower(model, "3") == "2"  # nothing within the block: the shortcut goes past it
    assert lower(model, "2") == "1"


class Shared(nn.Module):
    """One activation function that runs after every convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.act = conv(3), conv(), conv(), nn.ReLU()
        self.head = nn.Sequential(*head())

    def forward(self, x):
        return self.head(torch.tanh(self.c(self.act(self.b(self.act(self.a(x)))))))


def test_a_layer_that_runs_twice_is_left_out():
    model = seeded(Shared, dtype=torch.float32)
    assert lower(model, "c") == "b"
    assert lower(model, "b") == "a"  # where it runs once below, but again above


def test_the_grid_is_not_coarser():
    model = stack(conv(3), nn.ReLU(), conv(stride=2), nn.ReLU(), nn.Upsample(scale_factor=2), conv(), nn.ReLU())
    assert lower(model, "6") == "4"
    assert lower(model, "4") == "1"  # of the layers below, those of 12 x 12
    assert lower(model, "3") == "1"


def test_order_is_that_of_the_forward_pass():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.unused = conv()
            self.last, self.first = conv(), conv(3)

        def forward(self, x):
            return self.head(F.relu(self.last(F.relu(self.first(x)))).mean((2, 3)))

    assert lower(seeded(Backwards, dtype=torch.float32), "last") == "first"


class Frozen(nn.Module):
    """A backbone that hides its graph."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(conv(3), nn.ReLU(inplace=True), conv())

    def forward(self, x):
        with torch.no_grad():
            return self.inside(x)


def test_where_gradients_end():
    assert lower(stack(Frozen(), nn.ReLU(inplace=True), conv(), nn.ReLU()), "3") == "1"
    assert lower(stack(Frozen(), nn.ReLU()), "1") is None


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.sign()


class Sign(nn.Module):
    def forward(self, x):
        return NoGradient.apply(x)


def test_what_has_no_gradient_has_no_lower_layer():
    assert lower(stack(conv(3), nn.ReLU(), conv(), Sign()), "3") is None


class InPlace(nn.Module):
    """Changes a view in place, which autograd forbids."""

    def forward(self, x):
        first, second = x.chunk(2, 1)
        first.add_(1)
        return torch.cat([second, first], 1)


def test_a_model_that_autograd_cannot_follow_has_no_lower_layer():
    model = stack(conv(3), nn.ReLU(), conv(), InPlace(), nn.ReLU())
    assert lower(model, "4") is None
    report = audit(model, "4", torch.randn(2, 3, 12, 12), progress=False)
    assert report.lower_layer is None
    assert report.honesty is not None


def test_tokens():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(4), nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x):
            y = self.norm(x)
            return x + self.mix(5 * y, 5 * y, 5 * y, need_weights=False)[0]

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 4, 4, 4)
            self.blocks = nn.Sequential(Mixer(), Mixer(), Mixer())
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    model = seeded(Patches, dtype=torch.float32)
    assert lower(model, "blocks.2", reshape_transform=tokens_to_grid) == "blocks.1"
    assert lower(model, "blocks.2.norm", reshape_transform=tokens_to_grid) == "blocks.0"


class Normed(nn.Module):
    """The channels of ``norm`` sum to 0 at each place, and their squares to as many as there are."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.mix, self.norm = conv(3), nn.ReLU(), conv(), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.mix(self.relu(self.stem(x))).movedim(1, -1)).mean((1, 2)))


@pytest.mark.parametrize("seed", range(8))
def test_behind_a_layer_norm(seed):
    torch.manual_seed(seed)
    assert lower(Normed().eval(), "norm") == "relu"


def test_the_model_is_left_as_it_is():
    model = pooled(dtype=torch.float32)
    image = torch.randn(1, 3, 12, 12)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(image)
    with untouched(model), torch.inference_mode():
        assert lower(model, "relu", image) == "act"
    assert torch.equal(image, before)
    assert not image.requires_grad
    with torch.inference_mode():
        assert lower(model, "relu", torch.randn(1, 3, 12, 12)) == "act"
    assert lower(pooled(), "relu", torch.randn(1, 3, 12, 12).double()) == "act"
