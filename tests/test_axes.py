"""Which axis holds the channels, which axes are places, and how large a heat map is: known, or refused."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffgradcam import EigenCAM, GradCAM, ScoreCAM, layer_input
from diffgradcam._core.axes import channel_axis, image_size, patch_grid
from diffgradcam.tokens import tokens_to_grid
from tests.models import seeded

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(model, call, module, to_grid, label=1):
    """Grad-CAM from a hook and a full backward pass, with the axes named by the test."""
    kept = {}

    def keep(_module, _args, output):
        kept["activations"] = output
        output.retain_grad()

    handle = module.register_forward_hook(keep)
    try:
        call(model)[:, label].sum().backward()
    finally:
        handle.remove()
    activations, gradients = (to_grid(t) for t in (kept["activations"].detach(), kept["activations"].grad))
    weights = gradients.mean(tuple(range(2, gradients.ndim)), keepdim=True)
    model.zero_grad()
    return (weights * activations).sum(1).relu()


class ChannelsLast(nn.Module):
    """As Swin: patches, then blocks whose activations are ``(B, h, w, C)``."""

    def __init__(self, width=24, dims=2):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.patches = conv(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)
        self.block = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.identity = nn.Identity()
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.norm(self.patches(x).movedim(1, -1))
        x = self.identity(x + self.block(x))
        return self.head(x.flatten(1, -2).square().mean(1))


@pytest.mark.parametrize("name", ["norm", "block", "block.0", "block.1", "identity"])
def test_channels_that_come_last_are_found(name):
    model = seeded(ChannelsLast)
    maps = GradCAM(model, name).explain(IMAGES, 1).maps
    expected = by_hand(model, lambda m: m(IMAGES), model.get_submodule(name), lambda x: x.movedim(-1, 1))
    assert maps.shape == (2, 8, 12)
    torch.testing.assert_close(maps, expected)
    assert GradCAM(model, name)(IMAGES, [1, 1]).shape == (2, 32, 48)


def test_channels_that_come_last_in_a_volume():
    model, volumes = seeded(partial(ChannelsLast, dims=3)), torch.rand(2, 3, 8, 12, 16, dtype=torch.float64)
    expected = by_hand(model, lambda m: m(volumes), model.norm, lambda x: x.movedim(-1, 1))
    torch.testing.assert_close(GradCAM(model, "norm").explain(volumes, 1).maps, expected)
    assert GradCAM(model, "norm")(volumes, [1, 1]).shape == (2, 8, 12, 16)


class ConvNeXtLike(nn.Module):
    """Both forms in one block: a convolution, then a norm and a linear layer on the last axis, and back."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 16)
        self.out = nn.Identity()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.linear(self.norm(self.depthwise(x).movedim(1, -1))).movedim(-1, 1)
        return self.head(self.out(x + y).square().mean((2, 3)))


@pytest.mark.parametrize(("name", "axis"), [("norm", -1), ("linear", -1), ("depthwise", 1), ("out", 1), ("stem", 1)])
def test_both_forms_in_one_model(name, axis):
    model = seeded(ConvNeXtLike)
    expected = by_hand(model, lambda m: m(IMAGES), model.get_submodule(name), lambda x: x.movedim(axis, 1))
    torch.testing.assert_close(GradCAM(model, name).explain(IMAGES, 1).maps, expected)


class Series(nn.Module):
    """A transformer over the steps of a series ``(B, T, F)``."""

    def __init__(self, class_token=False):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.token = nn.Parameter(torch.zeros(1, 1, 8)) if class_token else None

    def forward(self, x):
        x = self.embed(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(x).square().mean(1))


def test_steps_of_a_series():
    model, series = seeded(Series), torch.rand(2, 50, 3, dtype=torch.float64)
    maps = GradCAM(model, "norm").explain(series, 1).maps
    expected = by_hand(model, lambda m: m(series), model.norm, lambda x: x.transpose(1, 2))
    torch.testing.assert_close(maps, expected)
    with pytest.raises(ValueError, match=r"the size of the heat maps is not certain: .* pass size="):
        GradCAM(model, "norm")(series)
    assert GradCAM(model, "norm")(series, size=(50,)).shape == (2, 50)
    with pytest.raises(ValueError, match=r"\(2, 51, 8\): tokens, not a grid of places in the input \(2, 50, 3\)"):
        GradCAM(seeded(partial(Series, class_token=True)), "norm").explain(series)


def test_words_are_no_places():
    model = nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.Flatten(), nn.Linear(56, 3))
    words = torch.arange(14).view(2, 7) % 9
    for layer in ("0", "1"):
        with pytest.raises(ValueError, match=r"tokens, not a grid of places in the input \(2, 7\)"):
            GradCAM(model, layer).explain(words)


class Tokens(nn.Module):
    """A vision transformer's tokens, with so many before the patches."""

    def __init__(self, extra=1, patch=4, dims=2):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.patches = conv(3, 8, patch, stride=patch)
        self.extra = nn.Parameter(torch.randn(1, extra, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([self.extra.expand(len(x), -1, -1), x], 1))
        return self.head(x.square().mean(1))


@given(
    grid=st.lists(st.integers(1, 6), min_size=2, max_size=3).filter(lambda grid: max(grid) > 1),
    extra=st.sampled_from([0, 1, 2, 4, 5]),
)
def test_tokens_of_any_rectangle_or_volume(grid, extra):
    model = seeded(partial(Tokens, extra, dims=len(grid)))
    images = torch.rand(2, 3, *[4 * side for side in grid], dtype=torch.float64)
    maps = GradCAM(model, "norm", tokens_to_grid).explain(images, 1).maps
    assert maps.shape == (2, *grid)
    expected = by_hand(
        model, lambda m: m(images), model.norm, lambda x: x[:, extra:].transpose(1, 2).unflatten(2, tuple(grid))
    )
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


def test_tokens_without_a_transform_are_refused_whatever_the_input():
    model = seeded(Tokens)
    with pytest.raises(ValueError, match=r"\(2, 97, 8\): tokens, not a grid of places .*; pass reshape_transform="):
        GradCAM(model, "norm").explain(IMAGES)
    with pytest.raises(ValueError, match=r"makes 6 x 16 places of the 97 tokens .* fits 8 x 12 and 1 more; pass"):
        GradCAM(model, "norm", lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (6, 16))).explain(IMAGES)
    fixed = GradCAM(model, "norm", partial(tokens_to_grid, height=8, width=12)).explain(IMAGES, 1).maps
    torch.testing.assert_close(GradCAM(model, "norm", tokens_to_grid).explain(IMAGES, 1).maps, fixed)


def test_a_transform_that_leaves_channels_as_places_is_refused():
    model = seeded(ChannelsLast)
    with pytest.raises(ValueError, match=r"24 channels on the last axis, .*lambda x: x.movedim\(-1, 1\)"):
        GradCAM(model, "norm", lambda x: x).explain(IMAGES)
    with pytest.raises(TypeError, match=r"reshape_transform= returned tuple; expected a tensor \(B, C, ...\)"):
        GradCAM(model, "norm", lambda x: (x,)).explain(IMAGES)
    with pytest.raises(ValueError, match="has no spatial positions: its activations have shape"):
        GradCAM(model, "norm", lambda x: x.mean((1, 2))).explain(IMAGES)


class Finer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Identity()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.up(nn.functional.interpolate(x, scale_factor=2)).mean((2, 3)))


def test_a_map_finer_than_the_image_is_refused_until_the_user_insists():
    model = seeded(Finer)
    with pytest.raises(ValueError, match=r"64 x 96 places are finer than the image, 32 x 48; .*lambda x: x"):
        GradCAM(model, "up").explain(IMAGES)
    assert GradCAM(model, "up", lambda x: x).explain(IMAGES).maps.shape == (2, 64, 96)


class FixedGrid(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d((32, 48)))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.pool(x).mean((2, 3)))


def test_what_was_found_out_for_one_size_does_not_excuse_another():
    model = seeded(FixedGrid)
    cam = GradCAM(model, "pool")
    for _ in range(2):
        assert cam.explain(IMAGES).maps.shape == (2, 32, 48)
        with pytest.raises(ValueError, match=r"32 x 48 places are finer than the image, 16 x 24"):
            cam.explain(IMAGES[..., ::2, ::2])


class Spectrogram(nn.Module):
    """Frequency is pooled away, then a convolution over time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.time = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.time(self.conv(x).mean(2)).square().mean(2))


def test_time_alone_of_a_spectrogram():
    model, sounds = seeded(Spectrogram), torch.rand(2, 1, 16, 20, dtype=torch.float64)
    maps = GradCAM(model, "time").explain(sounds, 1).maps
    torch.testing.assert_close(maps, by_hand(model, lambda m: m(sounds), model.time, lambda x: x))
    with pytest.raises(ValueError, match=r"the maps have 1 dimensions, .* pass size="):
        GradCAM(model, "time")(sounds)
    assert GradCAM(model, "time")(sounds, size=(20,)).shape == (2, 20)


class PerFrame(nn.Module):
    """A network of images over the frames of a clip ``(B, T, 3, H, W)``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, clips):
        frames = self.conv(clips.flatten(0, 1))
        return self.head(frames.square().mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1))


def test_clips_frame_by_frame():
    model, clips = seeded(PerFrame), torch.rand(2, 5, 3, 16, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"activations of shape \(10, 6, 16, 12\) for logits of shape \(2, 4\)"):
        GradCAM(model, "conv").explain(clips)
    cam = GradCAM(model, "conv", lambda x: x.unflatten(0, (-1, 5)).transpose(1, 2))
    assert cam.explain(clips).maps.shape == (2, 5, 16, 12)
    assert cam(clips).shape == (2, 5, 16, 12)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 3, 20, 24), (20, 24)),
        ((2, 12, 64, 64), (64, 64)),  # many channels, as of satellites
        ((2, 20, 24, 3), (20, 24)),
        ((2, 1, 8, 9, 10), (8, 9, 10)),
        ((2, 5, 3, 16, 12), (5, 16, 12)),
        ((2, 3, 5, 16, 12), (5, 16, 12)),
        ((2, 1, 100), (100,)),
        ((2, 50, 3), None),
        ((2, 100), None),
    ],
)
def test_the_spatial_size_of_an_image(shape, size):
    assert image_size(shape) == size


@pytest.mark.parametrize(
    ("shape", "channels", "size"),
    [
        ((2, 4, 3, 32, 32), 3, (4, 32, 32)),  # four frames of three colours
        ((2, 3, 4, 32, 32), 3, (4, 32, 32)),
        ((2, 4, 3, 32, 32), 4, (3, 32, 32)),
        ((2, 16, 16, 3), 3, (16, 16)),
        ((2, 3, 16, 3), 3, (16, 3)),
    ],
)
def test_the_model_says_how_many_channels_an_image_has(shape, channels, size):
    assert image_size(shape, channels) == size


def test_a_form_that_cannot_be_told_names_both_transforms():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.LayerNorm(16), nn.Identity())
    assert channel_axis(model[2], model, (2, 16, 16, 16), (32, 32)) is None

    class Cube(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.same, self.head = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16), nn.Identity(), None
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.same(self.norm(self.conv(x).movedim(1, -1))).mean((1, 2)))

    model, images = seeded(Cube), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="channels may be the second axis or the last; say which with reshape_tr"):
        GradCAM(model, "same").explain(images)
    fixed = GradCAM(model, "same", lambda x: x.movedim(-1, 1)).explain(images, 1).maps
    torch.testing.assert_close(fixed, GradCAM(model, "norm").explain(images, 1).maps)


def test_the_grid_of_patches():
    model = Tokens()
    assert patch_grid(model, (32, 48)) == (8, 12)
    assert patch_grid(model, (32, 48, 16)) is None
    assert patch_grid(nn.Linear(3, 3), (32, 48)) is None
    assert patch_grid(nn.Conv2d(3, 8, 16, stride=10), (128, 1024)) == (12, 101)  # patches that overlap


def test_methods_without_gradients_know_the_axes_too():
    model = seeded(ChannelsLast)
    for method in (EigenCAM, partial(ScoreCAM, progress=False)):
        last = method(model, "norm").explain(IMAGES, 1).maps
        torch.testing.assert_close(last, method(model, "norm", lambda x: x.movedim(-1, 1)).explain(IMAGES, 1).maps)
    entering = GradCAM(model, layer_input("block")).explain(IMAGES, 1).maps
    torch.testing.assert_close(
        entering, GradCAM(model, layer_input("block"), lambda x: x.movedim(-1, 1)).explain(IMAGES, 1).maps
    )


def test_an_image_that_subclasses_tensors_gives_plain_maps():
    class Scan(torch.Tensor):
        pass

    model = seeded(ChannelsLast)
    scan = IMAGES.as_subclass(Scan)
    found = GradCAM(model, "norm").explain(scan, 1)
    assert {type(part) for part in found} == {torch.Tensor}
    plain = GradCAM(model, "norm").explain(IMAGES, 1).maps
    assert torch.equal(found.maps, plain)
    np.testing.assert_array_equal(GradCAM(model, "norm")(scan), GradCAM(model, "norm")(IMAGES))
