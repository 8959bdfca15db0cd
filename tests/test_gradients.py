import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, HiResCAM, scores
from diffgradcam._core import pooled_linear
from diffgradcam._core.gradients import class_blocks
from diffgradcam._core.layers import find_layers
from diffgradcam._core.pooled_linear import linear_maps, pooled_linear_maps
from diffgradcam._core.recorder import CutRecorder
from diffgradcam.scores import LogitDifference, Probability, as_score, logit_difference, score_gradients
from tests import models
from tests.methods import METHODS, exact, expected_maps


def closed_form(model, layer, images):
    """The maps of all logits, or None if the head is of another kind."""
    with torch.no_grad(), CutRecorder(find_layers(model, layer)) as recorder:
        logits = model(images)
    found = pooled_linear_maps(model, logits, [each.activations for each in recorder.recorded(model)])
    return found.maps if found is not None and found.holds else None


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pooled_linear_head_has_a_closed_form(dims, dtype):
    found = closed_form(models.pooled(dims=dims, dtype=dtype), "relu", models.images(dims=dims, dtype=dtype))
    assert found is not None
    assert found.shape == (3, 5, *models.SIZE[dims])


def test_the_closed_form_finds_its_layer_among_others_of_the_same_shape():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(models.CHANNELS, 5)
            self.inner = models.pooled()

        def forward(self, x):
            return self.inner(x)

    model = models.seeded(Model)
    assert closed_form(model, "inner.relu", models.images()) is not None
    exact(
        GradCAM(model, "inner.relu").explain(models.images(), "all").maps,
        GradCAM(model.inner, "relu").explain(models.images(), "all").maps,
    )


class Tampered(nn.Module):
    """Has a linear layer of the right shape after the pooling, but does something to the logits."""

    def __init__(self, after):
        super().__init__()
        self.inner = models.pooled()
        self.after = after

    def forward(self, x):
        return self.after(self.inner(x))


LOOKALIKES = {
    "max pooling": (models.max_pooled, "relu"),
    "mean of squares": (models.mean_of_squares, "relu"),
    "a temperature": (lambda: Tampered(lambda z: z / 2), "inner.relu"),
    "a soft cap": (lambda: Tampered(torch.tanh), "inner.relu"),
    "classes in another order": (lambda: Tampered(lambda z: z.flip(1)), "inner.relu"),
    "a layer before": (models.pooled, "features"),
    "flat": (models.flat, "relu"),
}


@pytest.mark.parametrize("kind", LOOKALIKES)
@pytest.mark.parametrize("name", ["GradCAM", "Diff", "HiResCAM"])
def test_a_head_that_only_looks_pooled_linear_gets_no_closed_form(name, kind):
    build, layer = LOOKALIKES[kind]
    model, images = build(), models.images()
    assert closed_form(model, layer, images) is None
    method, options, *_ = METHODS[name]
    maps = method(model, layer, **options).explain(images, "all").maps
    exact(maps, expected_maps(model, images, torch.arange(5).expand(3, 5), name, layer).relu())


@pytest.mark.parametrize("head", [models.pooled, models.flat])
@pytest.mark.parametrize("name", ["GradCAM", "Diff", "GradCAM++"])
def test_more_classes_than_one_block_holds(name, head):
    model, images = head(classes=70), models.images(1)
    method, options, *_ = METHODS[name]
    maps = method(model, "relu", **options).explain(images, "all").maps
    exact(maps, expected_maps(model, images, torch.arange(70).expand(1, 70), name).relu())


@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM, HiResCAM])
def test_the_closed_form_equals_one_class_at_a_time(method):
    model, images = models.pooled(classes=70), models.images()
    cam = method(model, "relu", rectify=False)
    together = cam.explain(images, "all").maps
    for c in (0, 1, 35, 69):
        exact(together[:, c], cam.explain(images, c).maps)


@pytest.mark.parametrize(
    ("numbers", "largest"),
    [(1, 64), (2**18, 64), (2**19, 32), (2**24 - 1, 1), (2**24, 1), (2**25, 1), (0, 64)],
)
def test_blocks_are_small_and_hold_every_class_once_in_order(numbers, largest):
    """At most 64 classes, and 2**25 numbers for all images together."""
    classes = torch.arange(2 * 1000).view(2, 1000)
    blocks = class_blocks(classes, numbers)
    assert max(block.shape[1] for block in blocks) == largest
    assert torch.equal(torch.cat(blocks, 1), classes)


CONTRASTS = {
    "logsumexp": as_score(logit_difference),
    "logsumexp by name": LogitDifference("logsumexp"),
    "max": LogitDifference("max"),
    "mean": LogitDifference("mean"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0, 0.1, 1, 30, 1000])
@pytest.mark.parametrize("name", CONTRASTS)
def test_the_maps_of_a_contrast_are_sums_weighted_by_its_gradient(name, scale, dtype):
    """Also where one class has all the weight, and where all logits are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(4, 70, generator=generator, dtype=torch.float64).to(dtype)
    maps = torch.randn(4, 70, 3, 2, generator=generator, dtype=torch.float64).to(dtype)
    classes = torch.stack([torch.randperm(70, generator=generator) for _ in range(4)])
    shares = score_gradients(CONTRASTS[name], logits.double(), classes)
    expected = torch.einsum("bnk,bkhw->bnhw", shares, maps.double())
    actual = linear_maps(maps, CONTRASTS[name], logits, classes)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", CONTRASTS)
def test_the_maps_of_all_contrasts_ask_for_one_gradient_and_not_for_one_each(name, monkeypatch):
    asked = []

    def counting(score, logits, classes):
        asked.append(classes.shape[1])
        return score_gradients(score, logits, classes)

    for module in (scores, pooled_linear):
        monkeypatch.setattr(module, "score_gradients", counting)
    logits, maps = torch.randn(2, 70), torch.randn(2, 70, 3)
    linear_maps(maps, CONTRASTS[name], logits, torch.arange(70).expand(2, 70))
    assert asked == [1]
    linear_maps(maps, Probability(), logits, torch.arange(70).expand(2, 70))
    assert asked == [1, 64, 6]


@pytest.mark.parametrize("ties", [2, 3])
def test_the_largest_logits_share_the_weight_of_the_maximum(ties):
    logits, maps = torch.zeros(1, 70), torch.randn(1, 70, 3)
    logits[0, :ties] = 5
    classes = torch.arange(70).unsqueeze(0)
    actual = linear_maps(maps, CONTRASTS["max"], logits, classes)
    torch.testing.assert_close(actual[0, 0], maps[0, 0] - maps[0, 1:ties].mean(0))
    torch.testing.assert_close(actual[0, 50], maps[0, 50] - maps[0, :ties].mean(0))


def test_the_weights_of_named_baselines():
    z = torch.tensor([[1.0, 3.0, 3.0, -2.0]])
    torch.testing.assert_close(LogitDifference().weights(z), z.softmax(1))
    torch.testing.assert_close(CONTRASTS["max"].weights(z), torch.tensor([[0, 0.5, 0.5, 0]]))
    torch.testing.assert_close(CONTRASTS["mean"].weights(z), torch.full((1, 4), 0.25))


def test_the_closed_form_is_for_one_layer_alone():
    model, images = models.pooled(), models.images()
    classes = torch.arange(5).expand(3, 5)
    both = [expected_maps(model, images, classes, "GradCAM", layer).relu() for layer in ("features", "relu")]
    exact(GradCAM(model, ["features", "relu"]).explain(images, "all").maps, torch.stack(both).mean(0))
