from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgradcam import GradCAM
from diffgradcam import tokens as tokens_module
from diffgradcam.tokens import swinT_reshape_transform, tokens_to_grid, vit_reshape_transform

from . import models
from .conftest import import_peer


def numbered(*shape):
    """A tensor in which every number is another."""
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def by_loops(tokens, height, width, extra):
    """``grid[b, c, y, x] = tokens[b, extra + y * width + x, c]``, one number at a time."""
    batch, count, channels = tokens.shape
    assert count == extra + height * width
    grid = torch.full((batch, channels, height, width), torch.nan)
    for b in range(batch):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    grid[b, c, y, x] = tokens[b, extra + y * width + x, c]
    return grid


@pytest.mark.parametrize("extra", tokens_module.EXTRA_TOKENS)
@pytest.mark.parametrize("side", [4, 7])
def test_square_grids_and_extra_tokens_are_inferred(side, extra):
    tokens = numbered(2, extra + side * side, 3)
    assert torch.equal(tokens_to_grid(tokens), by_loops(tokens, side, side, extra))


def test_an_inferred_grid_is_the_only_one_for_every_usual_number_of_tokens():
    """Neighbouring squares are further apart than the numbers of extra tokens: whatever fits is all that fits."""
    for side in range(4, 40):
        for extra in tokens_module.EXTRA_TOKENS:
            assert tokens_to_grid(torch.empty(0, side * side + extra, 1)).shape == (0, 1, side, side)


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    extra=st.integers(0, 12),
    batch=st.integers(0, 2),
    which=st.data(),
)
def test_what_is_given_is_taken(height, width, extra, batch, which):
    tokens = numbered(batch, extra + height * width, 2)
    expected = by_loops(tokens, height, width, extra)
    assert torch.equal(tokens_to_grid(tokens, height, width, extra), expected)
    side = which.draw(st.sampled_from(["height", "width"]))
    assert torch.equal(tokens_to_grid(tokens, **{side: locals()[side]}, extra_tokens=extra), expected)
    if extra in tokens_module.EXTRA_TOKENS:
        assert torch.equal(tokens_to_grid(tokens, height, width), expected)
    if height == width:
        assert torch.equal(tokens_to_grid(tokens, extra_tokens=extra), expected)


def test_grids_with_channels_last_or_first():
    last, first = numbered(2, 4, 4, 3), numbered(2, 3, 4, 4)
    expected = torch.stack([last[..., c] for c in range(3)], 1)
    assert torch.equal(tokens_to_grid(last), expected)
    assert torch.equal(tokens_to_grid(last, 4, 4), expected)
    assert torch.equal(tokens_to_grid(last, extra_tokens=0), expected)
    assert tokens_to_grid(first) is first
    oblong = numbered(2, 4, 5, 4)
    assert torch.equal(tokens_to_grid(oblong, height=4, width=5), torch.stack([oblong[..., c] for c in range(4)], 1))
    assert tokens_to_grid(oblong, height=5, width=4) is oblong
    assert tokens_to_grid(oblong, height=5) is oblong


def refused(message, tensor, **given):
    with pytest.raises(ValueError, match=message):
        tokens_to_grid(tensor, **given)


def test_tokens_that_fit_no_grid():
    extras = "with 0, 1, 2, 4, 5 extra tokens; give image_size= .*or the grid that they are, such as functools.partial"
    refused(rf"^the 295 tokens of activations \(2, 295, 8\) are not a square grid {extras}", torch.zeros(2, 295, 8))
    refused(rf"are not a square grid {extras}", torch.zeros(2, 0, 8))
    refused(r"are not a grid of 3 x 9 with 1 extra token; give", torch.zeros(2, 31, 8),
            height=3, width=9, extra_tokens=1)  # fmt: skip
    refused(r"are not a grid of any x 40 with 2 extra tokens; ", torch.zeros(2, 18, 8), width=40, extra_tokens=2)
    refused(r"are not a square grid with 7 extra tokens; ", torch.zeros(2, 7, 8), extra_tokens=7)


@pytest.mark.parametrize(
    ("count", "given", "grids"),
    [
        (5, {}, r"2 x 2 \+ 1, 1 x 1 \+ 4"),
        (6, {}, r"2 x 2 \+ 2, 1 x 1 \+ 5"),
        (9, {}, r"3 x 3 \+ 0, 2 x 2 \+ 5"),
        (12, {"height": 2}, r"2 x 6 \+ 0, 2 x 5 \+ 2, 2 x 4 \+ 4"),
    ],
)
def test_tokens_that_fit_several_grids(count, given, grids):
    message = rf"extra tokens in more than one way: {grids}, height x width \+ extra tokens; give image_size="
    refused(
        rf"the {count} tokens of activations \(2, {count}, 8\) are a .*{message}", torch.zeros(2, count, 8), **given
    )


@given(
    grid=st.lists(st.integers(2, 9), min_size=2, max_size=3),
    patch=st.integers(2, 16),
    extra=st.sampled_from([0, 1, 2, 4, 5, 8]),
)
def test_the_grid_is_taken_from_the_image(grid, patch, extra):
    """Rectangles and volumes of patches, with class, distillation and register tokens before them."""
    patches = int(torch.tensor(grid).prod())
    tokens = numbered(2, extra + patches, 3)
    size = [patch * side for side in grid]
    expected = tokens[:, extra:].transpose(1, 2).unflatten(2, tuple(grid))
    assert torch.equal(tokens_to_grid(tokens, image_size=size, patch_grid=grid), expected)
    fitting = tokens_module.fitting_grids(extra + patches, size)
    if extra <= 5:  # one of the usual numbers: without the grid of patches the answer is the same, or there are several
        assert (tuple(grid), extra) in fitting
        if len(fitting) == 1:
            assert torch.equal(tokens_to_grid(tokens, image_size=size), expected)


@pytest.mark.parametrize(
    ("count", "size", "shape"),
    [
        (1 + 12 * 14, (192, 224), (12, 14)),  # as many as 13 x 13 and one
        (1 + 8 * 32, (128, 512), (8, 32)),  # as many as 16 x 16 and one
        (5 + 18 * 32, (288, 512), (18, 32)),  # as many as 24 x 24 and five
        (64, (16, 16, 16), (4, 4, 4)),  # as many as 8 x 8
    ],
)
def test_what_a_square_would_get_wrong(count, size, shape):
    assert tokens_to_grid(torch.zeros(2, count, 8), image_size=size).shape == (2, 8, *shape)


def test_tokens_that_are_no_patches_of_the_image():
    refused(r"the 77 tokens .* are not a grid of patches of an image of 224 x 224", torch.zeros(2, 77, 8),
            image_size=(224, 224))  # fmt: skip
    refused(r"with 3 extra tokens; give the grid", torch.zeros(2, 197, 8), image_size=(224, 224), extra_tokens=3)


def test_no_square_is_guessed_for_an_input_that_may_be_no_image():
    refused(r"^the 16 tokens .* image is not certain; give the grid", torch.zeros(2, 16, 8), image_size=())
    tokens = numbered(2, 16, 3)
    assert torch.equal(tokens_to_grid(tokens, 2, 8, image_size=()), by_loops(tokens, 2, 8, 0))


def test_the_named_fix_works():
    tokens = numbered(2, 295, 3)
    fixed = partial(tokens_to_grid, height=14, width=21, extra_tokens=1)
    assert torch.equal(fixed(tokens), by_loops(tokens, 14, 21, 1))


def test_layouts_that_cannot_be_told_apart():
    fix = r"give height= and width=, or say which with reshape_transform=lambda x: x.movedim\(3, 1\)"
    refused(rf"^activations \(2, 7, 7, 7\) are a grid .*, and both would be square; {fix}", torch.zeros(2, 7, 7, 7))
    refused(r"\(2, 4, 5, 6\) .* neither would be square; ", torch.zeros(2, 4, 5, 6))
    refused(r"\(2, 4, 5, 6\) .* neither would be 7 x 5; ", torch.zeros(2, 4, 5, 6), height=7, width=5)
    refused(r"\(2, 4, 4, 4\) .* both would be 4 x any; ", torch.zeros(2, 4, 4, 4), height=4)
    refused(
        r"^extra_tokens is 1, but activations of shape \(2, 4, 4, 6\) are a grid already, .*; leave it out$",
        torch.zeros(2, 4, 4, 6),
        extra_tokens=1,
    )


def test_bad_arguments():
    refused(r"^height is 0; expected at least 1$", torch.zeros(2, 16, 6), height=0)
    refused(r"^width is -4; expected at least 1$", torch.zeros(2, 16, 6), width=-4)
    refused(r"^extra_tokens is -1; expected at least 0$", torch.zeros(2, 16, 6), extra_tokens=-1)
    for shape in ((16, 6), (2, 2, 4, 4, 6)):
        refused(r"^expected tokens \(B, N, C\) or a grid \(B, h, w, C\), got shape .*of your own", torch.zeros(shape))


# --- under the names of pytorch-grad-cam


def test_the_names_of_pytorch_grad_cam_give_the_same_as_there():
    peer = import_peer("pytorch_grad_cam.utils.reshape_transforms")
    tokens = torch.randn(2, 197, 5)
    assert torch.equal(vit_reshape_transform(tokens), peer.vit_reshape_transform(tokens))
    assert torch.equal(swinT_reshape_transform(tokens[:, :49]), peer.swinT_reshape_transform(tokens[:, :49]))
    oblong = torch.randn(2, 1 + 4 * 6, 5)
    for ours, theirs, patches in (
        (vit_reshape_transform, peer.vit_reshape_transform, oblong),
        (swinT_reshape_transform, peer.swinT_reshape_transform, oblong[:, 1:]),
    ):
        assert torch.equal(ours(patches, height=4, width=6), theirs(patches, height=4, width=6))
        assert torch.equal(ours(patches, 6, 4), theirs(patches, 6, 4))


def test_they_infer_the_grid_but_keep_their_class_token():
    tokens = numbered(2, 17, 3)
    assert torch.equal(vit_reshape_transform(tokens), by_loops(tokens, 4, 4, 1))
    assert torch.equal(swinT_reshape_transform(tokens[:, 1:]), by_loops(tokens[:, 1:], 4, 4, 0))
    assert torch.equal(swinT_reshape_transform(numbered(2, 4, 4, 3)), tokens_to_grid(numbered(2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"the 18 tokens .* with 1 extra token; give image_size="):
        vit_reshape_transform(numbered(2, 18, 3))
    with pytest.raises(ValueError, match=r"the 17 tokens .* with 0 extra tokens; give image_size="):
        swinT_reshape_transform(tokens)


def test_they_are_reshape_transforms():
    """Also in training, where attention has to be of a kind that PyTorch can differentiate twice."""
    model, images = models.tokens(), models.images()
    cam = GradCAM(model, "block", partial(tokens_to_grid, height=6, width=5))
    expected = GradCAM(model, "block", lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (6, 5))).explain(images).maps
    assert expected.abs().sum() > 0
    torch.testing.assert_close(cam.explain(images).maps, expected)
    with cam, sdpa_kernel(SDPBackend.MATH):
        maps = cam.maps(model(images))
    torch.testing.assert_close(maps, expected)
    (gradient,) = torch.autograd.grad(maps.square().sum(), model.embed.weight)
    assert gradient.abs().sum() > 0
