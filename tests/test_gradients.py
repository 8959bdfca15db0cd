import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, HiResCAM
from diffgradcam.gradients import class_blocks, pooled_linear_maps
from diffgradcam.layers import Recorder, find_layers
from tests import models
from tests.methods import METHODS, exact, expected_maps


def closed_form(model, layer, images):
    with torch.no_grad(), Recorder(find_layers(model, layer), cut=True) as recorder:
        logits = model(images)
    return pooled_linear_maps(model, logits, recorder.activations(logits))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pooled_linear_head_has_a_closed_form(dims, dtype):
    found = closed_form(models.pooled(dims=dims, dtype=dtype), "relu", models.images(dims=dims, dtype=dtype))
    assert found is not None
    assert found[0].shape == (3, 5, *models.SIZE[dims])


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


def test_blocks_are_small_and_hold_every_class_once_in_order():
    classes = torch.arange(2 * 1000).view(2, 1000)
    blocks = class_blocks(classes)
    assert max(block.shape[1] for block in blocks) <= 64
    assert torch.equal(torch.cat(blocks, 1), classes)


def test_the_closed_form_is_for_one_layer_alone():
    model, images = models.pooled(), models.images()
    classes = torch.arange(5).expand(3, 5)
    both = [expected_maps(model, images, classes, "GradCAM", layer).relu() for layer in ("features", "relu")]
    exact(GradCAM(model, ["features", "relu"]).explain(images, "all").maps, torch.stack(both).mean(0))
