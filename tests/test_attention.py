"""LeGrad: against a block written out in loops, torch-cam, and every way in which attention is computed."""

import contextlib
import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import LeGrad, heatmaps, layer_input, scores
from diffgradcam._core.wrappers import written_out_attention
from diffgradcam.methods.attention import _recorded_calls
from diffgradcam.targets import ClassifierOutputTarget
from tests import models
from tests.conftest import import_peer
from tests.methods import exact
from tests.untouched import forward_passes, untouched

IMAGES = models.images()
CLASSES = torch.tensor([0, 3, 1])


def by_hand(block, tokens, head, score):
    """The block written out, its attention a leaf of the graph; the relevance of each token, ``(B, N)``."""
    attention, count = block.self_attn, tokens.shape[1]
    normed = block.norm1(tokens)
    q, k, v = (
        part.view(*part.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for part in F.linear(normed, attention.in_proj_weight, attention.in_proj_bias).chunk(3, 2)
    )
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3).detach().requires_grad_()
    mixed = tokens + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    leaving = mixed + block.linear2(F.relu(block.linear1(block.norm2(mixed))))
    logits = head(leaving.mean(1))
    (gradient,) = torch.autograd.grad(sum(score(z, c) for z, c in zip(logits, CLASSES.tolist(), strict=True)), weights)
    relevance = torch.zeros(len(tokens), count, dtype=tokens.dtype)
    for image, one in enumerate(gradient):
        for key in range(count):
            received = [max(float(g), 0.0) for g in one[:, :, key].flatten()]
            relevance[image, key] = sum(received) / len(received)
    return relevance


def entering(model, name):
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(IMAGES)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("score", [scores.Logit(), scores.LogitDifference()])
def test_maps_equal_loops(score):
    model = models.transformer()
    head = nn.Sequential(model.norm, model.head)
    cam = LeGrad(model, ["first", "block"], head=head, score=score)
    single = lambda z, c: score(z[None], torch.tensor([c]))[0]  # noqa: E731
    expected = [by_hand(model.get_submodule(n), entering(model, n), head, single) for n in ("first", "block")]
    logits, classes, maps = cam.explain(IMAGES, CLASSES)
    exact(logits, model(IMAGES).detach())
    assert classes.tolist() == CLASSES.tolist()
    exact(maps, (sum(expected) / 2).view(3, 6, 5))
    assert (maps > 0).any()


def test_several_classes_targets_and_wrappers_of_the_layer_agree():
    model = models.transformer()
    cam = LeGrad(model, "block", head=model.head)
    every = cam.explain(IMAGES, "all").maps
    assert every.shape == (3, 5, 6, 5)
    exact(every[torch.arange(3), CLASSES], cam.explain(IMAGES, CLASSES).maps)
    callables = [lambda z, c=c: z[c] for c in CLASSES.tolist()]
    exact(cam.explain(IMAGES, callables).maps, cam.explain(IMAGES, CLASSES).maps)
    assert (cam(IMAGES, [ClassifierOutputTarget(c) for c in CLASSES.tolist()]) == cam(IMAGES, CLASSES.tolist())).all()
    exact(LeGrad(model, layer_input(model.block), head=model.head).explain(IMAGES).maps, cam.explain(IMAGES).maps)
    fused = LeGrad(model, ["first", "block"], head=model.head, fusion=heatmaps.product).explain(IMAGES).maps
    alone = [LeGrad(model, name, head=model.head).explain(IMAGES).maps for name in ("first", "block")]
    exact(fused, heatmaps.minmax(alone[0]) * heatmaps.minmax(alone[1]))


def test_what_all_logits_share_is_in_the_map_of_a_logit_and_not_of_a_contrast():
    model = models.transformer()
    for score, same in ((scores.Logit(), False), (scores.LogitDifference("mean"), True)):
        cam = LeGrad(model, "block", head=model.head, score=score)
        before = cam.explain(IMAGES, CLASSES).maps
        shift = torch.randn(models.CHANNELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        model.head.weight.data.add_(shift)
        after = cam.explain(IMAGES, CLASSES).maps
        model.head.weight.data.sub_(shift)
        assert torch.allclose(before, after, atol=1e-9) == same


def test_maps_equal_torch_cam():
    torchcam, vision = import_peer("torchcam.methods"), import_peer("torchvision.models")
    model = models.seeded(lambda: vision.VisionTransformer(8, 2, 2, 2, 8, 16, num_classes=5), dtype=torch.float32)
    images = torch.randn(3, 3, 8, 8)
    model.heads.head.weight.data.normal_()  # it starts as 0
    layers = list(model.encoder.layers)
    with torchcam.LeGrad(model, layers) as extractor:
        (theirs,) = extractor(CLASSES.tolist(), model(images), normalized=False)
    assert theirs.max() > 1e-4
    head = nn.Sequential(model.encoder.ln, model.heads)
    ours = LeGrad(model, layers, head=head).explain(images, CLASSES).maps
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


class Explicit(nn.Module):
    """A block that writes its attention out, in the ways of other libraries."""

    def __init__(self, how):
        super().__init__()
        self.qkv, self.how = nn.Linear(models.CHANNELS, 3 * models.CHANNELS), how

    def forward(self, tokens, mask=None, *, unused=None):  # noqa: ARG002
        q, k, v = (x.view(*x.shape[:2], 2, -1).transpose(1, 2) for x in self.qkv(tokens).chunk(3, 2))
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif self.how == "softmax":
            mixed = F.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + mask, -1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v) + (q @ k.transpose(2, 3)).softmax(-1) @ v
        return tokens + mixed.transpose(1, 2).flatten(2), None


class Masked(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.embed, self.block, self.head = nn.Conv2d(3, models.CHANNELS, 1), Explicit(how), nn.Linear(6, 5)

    def forward(self, images):
        mask = torch.zeros(30, 30, dtype=images.dtype)
        mask[:, 7] = -1e9
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens, mask, unused=3)[0].mean(1))


def test_attention_is_found_however_it_is_computed_and_other_arguments_come_along():
    maps = {}
    for how in ("fused", "softmax"):
        model = models.seeded(lambda how=how: Masked(how))
        maps[how] = LeGrad(model, "block", head=model.head).explain(IMAGES, CLASSES).maps
    torch.testing.assert_close(maps["fused"], maps["softmax"], rtol=1e-8, atol=1e-12)
    assert (maps["fused"] > 0).any()


def test_blocks_of_timm_with_a_class_token():
    timm = import_peer("timm")
    make = lambda: timm.models.VisionTransformer(8, 2, embed_dim=8, depth=2, num_heads=2, num_classes=5)  # noqa: E731
    model = models.seeded(make, dtype=torch.float32)
    model.head.weight.data.normal_()
    images, head = torch.randn(2, 3, 8, 8), nn.Sequential(model.norm, model.head)
    fused = LeGrad(model, ["blocks.0", "blocks.1"], head=head).explain(images, "all").maps
    assert fused.shape == (2, 5, 4, 4)
    for block in model.blocks:
        block.attn.fused_attn = False
    written = LeGrad(model, ["blocks.0", "blocks.1"], head=head).explain(images, "all").maps
    torch.testing.assert_close(fused, written, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "frozen", "bfloat16"])
def test_any_mode_of_the_caller_gives_the_same_map_and_leaves_everything_alone(mode):
    model = models.transformer(dtype=torch.float32)
    images = IMAGES.float()
    expected = LeGrad(model, "block", head=model.head).explain(images, CLASSES).maps
    context = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    }.get(mode, torch.enable_grad)
    if mode == "frozen":
        model.requires_grad_(False)
    with context(), untouched(model):
        maps = LeGrad(model, "block", head=model.head).explain(images, CLASSES).maps
    assert not maps.requires_grad
    tolerance = {"rtol": 0.1, "atol": 0.05 * float(expected.max())} if mode == "bfloat16" else {}
    torch.testing.assert_close(maps, expected, **tolerance)


def test_the_model_runs_once_and_each_block_once_more():
    model = models.transformer()
    whole, block = forward_passes(model), forward_passes(model.block)
    LeGrad(model, "block", head=model.head).explain(IMAGES, "all")
    assert (len(whole), len(block)) == (1, 2)


def kernels():
    """Which kernels of attention PyTorch may use: a setting of the whole process."""
    return [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math")]


def test_the_kernels_of_the_process_are_as_before_whoever_ends_first():
    before = kernels()
    one, other = written_out_attention(), written_out_attention()
    with contextlib.ExitStack() as second:
        with one:
            second.enter_context(other)
            assert kernels() == [False, False, True]
        assert kernels() == [False, False, True]  # the second block goes on
    assert kernels() == before == [True, True, True]
    model = models.transformer()

    def broken(_tokens):
        raise LookupError("the head is broken")

    with untouched(model), pytest.raises(LookupError, match="the head is broken"):
        LeGrad(model, "block", head=broken).explain(IMAGES)
    assert kernels() == before


def test_several_threads_get_their_own_maps():
    model = models.transformer()
    batches = [models.images(2, seed=seed) for seed in range(8)]
    expected = [LeGrad(model, "block", head=model.head).explain(batch).maps for batch in batches]
    cam = LeGrad(model, "block", head=model.head)
    with untouched(model), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: cam.explain(batch).maps, batches))
    for maps, right in zip(found, expected, strict=True):
        exact(maps, right)
    assert kernels() == [True, True, True]


def test_a_hook_of_another_thread_may_come_without_keyword_arguments():
    """PyTorch looks up whether it takes them while the other thread removes it."""
    model = models.transformer()
    with _recorded_calls([model.block]) as calls, ThreadPoolExecutor(1) as pool:
        (hook,) = model.block._forward_pre_hooks.values()
        pool.submit(hook, model.block, (IMAGES,)).result()
        assert not calls
        hook(model.block, (IMAGES,))
        assert list(calls) == [model.block]


def test_copies_explain_their_own_model():
    model = models.transformer()
    cam = LeGrad(model, "block", head=nn.Sequential(model.norm, model.head))
    expected = cam.explain(IMAGES, 1).maps
    for twin in (copy.deepcopy(cam), pickle.loads(pickle.dumps(cam))):
        model.head.weight.data.mul_(-1)
        exact(twin.explain(IMAGES, 1).maps, expected)
        model.head.weight.data.mul_(-1)


def test_what_is_no_block_of_a_transformer_is_refused():
    model = models.transformer()
    head = nn.Sequential(model.norm, model.head)
    for wrong, error, text in (
        ({"head": 3}, TypeError, "head is int; expected a function of pooled tokens (B, C)"),
        ({"run": "last", "head": head}, TypeError, "LeGrad takes blocks that run once and no run="),
    ):
        with pytest.raises(error, match=re.escape(text)):
            LeGrad(model, "block", **wrong)
    for layer, chosen, text in (
        ("norm", head, "layer_input('norm') has 0 attentions between its 30 tokens; expected a transformer block"),
        ("pool", head, "layer_input('pool') takes shape (3, 30, 6) and returns shape (3, 6); expected a block"),
        ("block", model.norm, "head returned shape (3, 6) for the mean of the tokens of layer_input('block')"),
        ("block", lambda _: None, "head returned NoneType for the mean of the tokens"),
    ):
        with untouched(model), pytest.raises(ValueError, match=re.escape(text)):
            LeGrad(model, layer, head=chosen).explain(IMAGES)
    twice = models.seeded(lambda: Masked("both"))
    with untouched(twice), pytest.raises(ValueError, match="has 2 attentions between its 30 tokens"):
        LeGrad(twice, "block", head=twice.head).explain(IMAGES)
    with torch.inference_mode():
        frozen = models.transformer()
    with pytest.raises(RuntimeError, match=r"under torch\.inference_mode"):
        LeGrad(frozen, "block", head=frozen.head).explain(IMAGES)
    assert not hasattr(LeGrad(model, "block", head=head), "maps")
