"""Any input, any run of a layer, any form of labels: explained right, or refused with a way out."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from diffgradcam import (
    AblationCAM,
    AugSmooth,
    DiffGradCAM,
    EigenCAM,
    GradCAM,
    LayerCAM,
    NoiseSmooth,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    TrueFalseCAM,
    layer_input,
)
from diffgradcam._core.inputs import Inputs, following_rows
from diffgradcam.scores import Counterfactual
from diffgradcam.utils.model_targets import ClassifierOutputTarget, RawScoresOutputTarget
from tests import models
from tests.methods import exact

IMAGES = models.images()
OTHERS = models.images(3).flip(0) * 0.5
QUIET = {"progress": False}


class Nested(nn.Module):
    """Takes its images in a dictionary or a list, among other things."""

    def __init__(self):
        super().__init__()
        self.inner = models.pooled()

    def forward(self, inputs, *, scale=1):
        images = inputs["image"] if isinstance(inputs, dict) else inputs[0]
        return self.inner(images * scale)


METHODS = {
    "GradCAM": GradCAM,
    "EigenCAM": EigenCAM,
    "ScoreCAM": lambda *a, **k: ScoreCAM(*a, **QUIET, **k),
    "AblationCAM": lambda *a, **k: AblationCAM(*a, **QUIET, **k),
    "Smooth++": lambda *a, **k: SmoothGradCAMPlusPlus(*a, samples=2, **k),
    "AugSmooth": lambda *a, **k: AugSmooth(GradCAM(*a, **k)),
    "NoiseSmooth": lambda *a, **k: NoiseSmooth(GradCAM(*a, **k), samples=2),
}


@pytest.mark.parametrize("wrap", [lambda x: {"image": x}, lambda x: [x, "a name"]], ids=["dictionary", "list"])
@pytest.mark.parametrize("name", METHODS)
def test_images_in_a_container(name, wrap):
    model = models.seeded(Nested)
    cam, plain = METHODS[name](model, "inner.relu"), METHODS[name](model.inner, "relu")
    exact(cam.explain(wrap(IMAGES), [0, 1, 2]).maps, plain.explain(IMAGES, [0, 1, 2]).maps)
    np.testing.assert_allclose(cam(wrap(IMAGES), [0, 1, 2]), plain(IMAGES, [0, 1, 2]), rtol=0, atol=1e-6)


class ByName(nn.Module):
    """As models of transformers: ids first, the pixels later, all by keyword."""

    def __init__(self):
        super().__init__()
        self.inner = models.pooled()

    def forward(self, input_ids=None, pixel_values=None):
        assert input_ids is not None
        return self.inner(pixel_values)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_is_called_by_keywords_alone(name):
    model = models.seeded(ByName)
    given = {"input_ids": torch.zeros(3, 4, dtype=torch.long), "pixel_values": IMAGES}
    cam, plain = METHODS[name](model, "inner.relu"), METHODS[name](model.inner, "relu")
    exact(cam.explain(**given).maps, plain.explain(IMAGES).maps)
    np.testing.assert_allclose(cam(**given), plain(IMAGES), rtol=0, atol=1e-6)


def test_both_sides_of_a_decision_of_a_model_that_is_called_by_keywords_alone():
    model = models.seeded(ByName)
    given = {"input_ids": torch.zeros(3, 4, dtype=torch.long), "pixel_values": IMAGES}
    found = TrueFalseCAM(model, "inner.relu").compare(**given)
    exact(found.difference, TrueFalseCAM(model.inner, "relu").compare(IMAGES).difference)


class Siamese(nn.Module):
    """One backbone for two images; the logits compare them."""

    def __init__(self):
        super().__init__()
        self.backbone = models.pooled()

    def forward(self, left, right):
        return self.backbone(left) - 2 * self.backbone(right)


def test_a_backbone_that_runs_twice():
    model = models.seeded(Siamese)
    with pytest.raises(RuntimeError, match=r'ran more than once .* run="first", run="last", run="all"'):
        GradCAM(model, "backbone.relu").explain(IMAGES, 1, OTHERS)
    first = GradCAM(model, "backbone.relu", run="first", rectify=False).explain(IMAGES, 1, OTHERS).maps
    last = GradCAM(model, "backbone.relu", run="last", rectify=False).explain(IMAGES, 1, OTHERS).maps
    exact(first, GradCAM(model.backbone, "relu", rectify=False).explain(IMAGES, 1).maps)
    exact(last, -2 * GradCAM(model.backbone, "relu", rectify=False).explain(OTHERS, 1).maps)
    for number, expected in ((0, first), (1, last), (-1, last)):
        exact(GradCAM(model, "backbone.relu", run=number, rectify=False).explain(IMAGES, 1, OTHERS).maps, expected)
    both = GradCAM(model, "backbone.relu", run="all", rectify=False).explain(IMAGES, 1, OTHERS).maps
    exact(both, (first + last) / 2)
    with pytest.raises(ValueError, match=r"run is 2, but layer 'backbone.relu' ran 2 times .*; expected 0 to 1"):
        GradCAM(model, "backbone.relu", run=2).explain(IMAGES, 1, OTHERS)
    with pytest.raises(ValueError, match="run is 'middle'; expected 'first', 'last', 'all'"):
        GradCAM(model, "backbone.relu", run="middle")


def test_runs_in_training():
    model = models.seeded(Siamese)
    for run in ("first", "last", "all"):
        with GradCAM(model, "backbone.relu", run=run) as cam:
            exact(cam.maps(model(IMAGES, OTHERS), 1).detach(), cam.explain(IMAGES, 1, OTHERS).maps)


@pytest.mark.parametrize("run", ["first", "last"])
def test_ablation_and_masks_of_one_of_two_images(run):
    """What is perturbed is the image that is named, and the run that is named."""
    model = models.seeded(Siamese)
    images, number = ((IMAGES, OTHERS)[(number := int(run == "last"))], number)
    maps = AblationCAM(model, "backbone.relu", run=run, image=number, rectify=False, **QUIET).explain(IMAGES, 1, OTHERS)
    plain = AblationCAM(model.backbone, "relu", rectify=False, **QUIET).explain(images, 1).maps
    exact(maps.maps, plain if run == "first" else -2 * plain)
    masked = ScoreCAM(model, "backbone.relu", run=run, image=number, **QUIET).explain(IMAGES, 1, OTHERS).maps
    assert masked.shape == plain.shape


def test_the_image_by_position_keyword_or_function():
    model = models.seeded(Siamese)
    options = {"run": "last", **QUIET}
    by_position = ScoreCAM(model, "backbone.relu", image=1, **options).explain(IMAGES, 1, OTHERS).maps
    by_keyword = ScoreCAM(model, "backbone.relu", image="right", **options).explain(IMAGES, 1, right=OTHERS).maps
    by_function = ScoreCAM(model, "backbone.relu", image=lambda args, _kwargs: args[1], **options)
    exact(by_position, by_keyword)
    exact(by_position, by_function.explain(IMAGES, 1, OTHERS).maps)
    with pytest.raises(ValueError, match=r"image is 'middle', but the model was called with the arguments \[0, 1\]"):
        ScoreCAM(model, "backbone.relu", image="middle", **options).explain(IMAGES, 1, OTHERS)
    with pytest.raises(ValueError, match="that is not an argument of the model; return one of the tensors"):
        ScoreCAM(model, "backbone.relu", image=lambda *_: IMAGES + 1, **options).explain(IMAGES, 1, OTHERS)
    with pytest.raises(TypeError, match=r"image is 1.5; expected a position, a keyword, or a function"):
        ScoreCAM(model, "backbone.relu", image=1.5, **options).explain(IMAGES, 1, OTHERS)


class Prompted(nn.Module):
    """Logits are similarities of each image to each prompt: prompts are of all images, not one of each."""

    def __init__(self):
        super().__init__()
        self.inner = models.pooled()

    def forward(self, images, prompts):
        return self.inner(images) @ prompts.T


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", ["AblationCAM", "ScoreCAM", "NoiseSmooth", "AugSmooth"])
def test_as_many_prompts_as_images_are_not_taken_for_theirs(name, count):
    model = models.seeded(Prompted)
    prompts = torch.randn(count, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = METHODS[name](model, "inner.relu").explain(IMAGES, 1, prompts).maps
    one_by_one = [METHODS[name](model, "inner.relu").explain(IMAGES[i : i + 1], 1, prompts).maps for i in range(3)]
    exact(together, torch.cat(one_by_one))


class Conditioned(nn.Module):
    """A number for each image changes its logits."""

    def __init__(self):
        super().__init__()
        self.inner = models.pooled()

    def forward(self, images, numbers):
        return self.inner(images * numbers[:, None, None, None])


@pytest.mark.parametrize("name", ["AblationCAM", "ScoreCAM", "NoiseSmooth", "AugSmooth"])
def test_rows_that_belong_to_the_images_follow_them(name):
    model, numbers = models.seeded(Conditioned), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    together = METHODS[name](model, "inner.relu").explain(IMAGES, 1, numbers).maps
    each = [METHODS[name](model, "inner.relu").explain(IMAGES[i : i + 1], 1, numbers[i : i + 1]).maps for i in range(3)]
    exact(together, torch.cat(each))


def test_an_image_with_other_rows_than_the_logits_is_refused():
    class Second(Siamese):
        def forward(self, left, right):
            return self.backbone(right) + left.mean()

    model = models.seeded(Second)
    with pytest.raises(ValueError, match=r"image argument is shape \(1, 3, 6, 5\) for 3 rows of logits; .*with image="):
        NoiseSmooth(GradCAM(model, "backbone.relu"), samples=2).explain(IMAGES[:1], 1, OTHERS)
    fixed = NoiseSmooth(GradCAM(model, "backbone.relu", image=1), samples=2).explain(IMAGES[:1], 1, OTHERS).maps
    exact(fixed, NoiseSmooth(GradCAM(model.backbone, "relu"), samples=2).explain(OTHERS, 1).maps)


def test_rows_that_cannot_be_told_are_refused():
    class Chance(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = models.pooled()

        def forward(self, images, numbers):
            return self.inner(images) + torch.rand(1) + numbers.sum()

    with pytest.raises(ValueError, match=r"running one image alone does not tell whether .*; give one image at a time"):
        AblationCAM(models.seeded(Chance), "inner.relu", **QUIET).explain(IMAGES, 1, torch.ones(3))


# --- layers


class Attention(nn.Module):
    def __init__(self, cross=False, by_keyword=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.cross, self.by_keyword = cross, by_keyword

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        keys = tokens * 2 if self.cross else tokens
        if self.by_keyword:
            attended, _ = self.attention(query=tokens, key=keys, value=keys)
        else:
            attended, _ = self.attention(tokens, keys, keys)
        return self.head(attended.square().mean(1))


def grid(x):
    return x.transpose(1, 2).unflatten(2, (6, 5))


@pytest.mark.parametrize("by_keyword", [False, True])
def test_what_enters_attention_is_all_three_arguments(by_keyword):
    model = models.seeded(lambda: Attention(by_keyword=by_keyword))
    model.to(IMAGES.dtype)
    entering = GradCAM(model, layer_input("attention"), grid, rectify=False).explain(IMAGES, 1).maps
    exact(entering, GradCAM(model, "conv", rectify=False).explain(IMAGES, 1).maps)


def test_of_several_arguments_one_is_named():
    model = models.seeded(lambda: Attention(cross=True)).to(IMAGES.dtype)
    with pytest.raises(ValueError, match=r"takes several tensors of one form, .* argument=0 or argument=1"):
        GradCAM(model, layer_input("attention"), grid).explain(IMAGES, 1)
    keys = GradCAM(model, layer_input("attention", argument=1), grid, rectify=False).explain(IMAGES, 1).maps
    queries = GradCAM(model, layer_input("attention", argument=0), grid, rectify=False).explain(IMAGES, 1).maps
    assert (keys - queries).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"argument is 'memory', but .* was called with the arguments \[0, 1, 2\]"):
        GradCAM(model, layer_input("attention", argument="memory"), grid).explain(IMAGES, 1)


class Branches(nn.Module):
    """A branch that the output skips, and one that only some forward passes run."""

    def __init__(self):
        super().__init__()
        self.used, self.skipped, self.idle = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.skipped(x)
        return self.head(self.used(x).square().mean((2, 3)))


def test_a_layer_that_an_image_does_not_use_has_a_map_of_zeros():
    model = models.seeded(Branches).to(IMAGES.dtype)
    used = GradCAM(model, "used").explain(IMAGES, 1).maps
    for other in ("skipped", "idle"):
        exact(GradCAM(model, ["used", other]).explain(IMAGES, 1).maps, used / 2)
        with GradCAM(model, ["used", other]) as cam:
            exact(cam.maps(model(IMAGES), 1).detach(), used / 2)
    with pytest.raises(RuntimeError, match="the output does not depend on layer 'skipped'"):
        GradCAM(model, "skipped").explain(IMAGES)
    with pytest.raises(RuntimeError, match="layer 'idle' did not run"):
        GradCAM(model, "idle").explain(IMAGES)


# --- a graph only where one is needed


class Frozen(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 4)
        self.mode = mode

    def forward(self, x):
        with self.mode():
            x = self.backbone(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["EigenCAM", "ScoreCAM", "AblationCAM"])
def test_methods_without_gradients_need_no_graph(name, mode):
    model, plain = (
        models.seeded(lambda mode=each: Frozen(mode)).to(IMAGES.dtype) for each in (mode, torch.enable_grad)
    )
    model.requires_grad_(False)
    with torch.no_grad():
        maps = METHODS[name](model, "backbone").explain(IMAGES, 1).maps
    exact(maps, METHODS[name](plain, "backbone").explain(IMAGES, 1).maps)


def test_inputs_are_brought_to_a_device_together_with_the_image():
    inputs = Inputs(({"image": IMAGES, "name": "a"},), {"mask": IMAGES[:, 0]})
    moved = inputs.to(torch.device("meta"))
    assert moved.image is moved.args[0]["image"]
    assert (moved.image.device.type, moved.kwargs["mask"].device.type) == ("meta", "meta")
    assert moved.args[0]["name"] == "a"
    assert inputs.image.device.type == "cpu"
    assert inputs.to(torch.device("cpu")).image is inputs.image


def test_a_size_that_is_not_certain_names_the_image():
    with pytest.raises(
        ValueError, match=r"have 2 dimensions, and the image is shape \(3, 4\), not .* size=\(224, 224\)"
    ):
        Inputs((torch.zeros(3, 4),), {}).spatial_size(2)
    with pytest.raises(ValueError, match="and the image is NoneType, not"):
        Inputs(("a",), {}).spatial_size(2)


def test_the_image_is_the_first_tensor_that_can_be_one():
    ids, row, images = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 5), torch.zeros(2, 3, 4)
    assert Inputs((ids, row, {"x": [images]}), {}).image is images
    assert Inputs((ids, row), {}).image is row
    assert Inputs((ids, "a"), {}).image is ids
    assert Inputs(("a",), {}).image is None
    with pytest.raises(TypeError, match="image='name' is NoneType; expected a tensor"):
        Inputs((images,), {"name": "a"}, "name")


@pytest.mark.parametrize("again", ["raises", "has other logits", "has more logits", "is no tensor"])
def test_a_model_that_says_nothing_about_single_images(again):
    """Whatever it does for one image alone, no other argument is taken for one with a row for each image."""
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def run(_):
        if again == "raises":
            raise ArithmeticError("only two at once")
        return {"has other logits": logits[1:] + 1, "has more logits": logits, "is no tensor": None}[again]

    inputs = Inputs((torch.zeros(2, 3, 4, 4), torch.zeros(2)), {})
    with pytest.raises(ValueError, match=r"other arguments, of shape \(2,\), have as many rows as there are images"):
        following_rows(inputs, logits, run)


def test_of_several_candidates_those_follow_that_give_the_same_logits():
    images, follows, stays = (
        torch.zeros(2, 3, 4, 4),
        torch.tensor([[1.0], [2.0]]),
        torch.tensor([[5.0, 0.0], [0.0, 7.0]]),
    )

    def run(inputs):
        _, row, both = inputs.args
        return row * both.sum()

    inputs = Inputs((images, follows, stays), {})
    assert [each is follows for each in following_rows(inputs, run(inputs), run)] == [True]
    assert following_rows(Inputs((images,), {}), torch.zeros(2, 1), run) == ()


def test_gradients_cannot_start_in_inference_mode():
    model = models.seeded(lambda: Frozen(torch.inference_mode)).requires_grad_(False).to(IMAGES.dtype)
    with pytest.raises(RuntimeError, match=r"under torch.inference_mode\(\), where no gradient can start; use"):
        GradCAM(model, "backbone").explain(IMAGES)


def test_a_model_built_in_inference_mode():
    with torch.inference_mode():
        model = models.pooled()
    with pytest.raises(RuntimeError, match=r"weights were made under torch.inference_mode\(\).*load its state_dict"):
        GradCAM(model, "relu").explain(IMAGES)
    fresh = models.pooled(seed=1)
    fresh.load_state_dict(model.state_dict())
    exact(GradCAM(fresh, "relu").explain(IMAGES, 1).maps, GradCAM(models.pooled(), "relu").explain(IMAGES, 1).maps)
    exact(EigenCAM(model, "relu").explain(IMAGES).maps, EigenCAM(fresh, "relu").explain(IMAGES).maps)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_and_exported_models_get_the_real_cause():
    model = models.pooled(dtype=torch.float32)
    images = IMAGES.float()
    scripted = torch.jit.trace(model, images)
    with pytest.raises(RuntimeError, match="the model is TorchScript, which runs without Python; explain the model"):
        GradCAM(scripted, "relu").explain(images)
    exported = torch.export.export(model, (images,))
    graph = exported.module()
    with pytest.raises(RuntimeError, match=r"the model is a graph, .* or torch.export.unflatten\(exported\)"):
        GradCAM(graph, "features").explain(images)
    fixed = GradCAM(torch.export.unflatten(exported), "relu").explain(images, 1).maps
    torch.testing.assert_close(fixed, GradCAM(model, "relu").explain(images, 1).maps)


def test_convolutions_before_a_recurrent_layer():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.rnn, self.head = nn.Conv1d(3, 4, 3), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(self.conv(x).transpose(1, 2))[0][:, -1])

    model, signals = models.seeded(Recurrent).eval(), torch.rand(2, 3, 20, dtype=torch.float64)
    enabled = torch.backends.cudnn.enabled
    assert GradCAM(model, "conv").explain(signals).maps.shape == (2, 18)
    assert torch.backends.cudnn.enabled == enabled


# --- labels


def test_one_hot_labels_are_refused_with_the_right_form():
    model = models.pooled()
    onehot = torch.eye(5)[[1, 0, 4]]
    for labels in (onehot, onehot.bool(), onehot.long()):
        for ask in (GradCAM(model, "relu").explain, lambda x, y: GradCAM(model, "relu").attach().maps(model(x), y)):
            with pytest.raises((TypeError, ValueError), match=r"one-hot or multi-hot labels: .* labels.argmax\(1\)"):
                ask(IMAGES, labels)
    by_index = GradCAM(model, "relu").explain(IMAGES, onehot.argmax(1))
    assert by_index.classes.tolist() == [1, 0, 4]
    multihot = torch.tensor([[1, 1, 0, 0, 1]] * 3)
    maps = GradCAM(model, "relu").explain(IMAGES, "all").maps[multihot.bool()]  # the other advice
    assert maps.shape == (9, 6, 5)


def test_both_classes_of_two_are_no_one_hot_labels():
    labels = torch.tensor([0, 1, 1])
    model = models.pooled(classes=2)
    found = GradCAM(model, "relu").explain(IMAGES, torch.stack([labels, 1 - labels], 1))
    assert found.classes.tolist() == [[0, 1], [1, 0], [1, 0]]


def test_probabilities_are_noticed_once():
    model = nn.Sequential(models.pooled(), nn.Softmax(1))
    cam = DiffGradCAM(model, "0.relu")
    with pytest.warns(UserWarning, match=r"outputs look like probabilities .*pass output=lambda p: p.log\(\)"):
        cam.explain(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cam.explain(IMAGES)  # it is said once
        DiffGradCAM(model[0], "relu").explain(IMAGES)
        fixed = DiffGradCAM(model, "0.relu", output=lambda p: p.log()).explain(IMAGES, 1).maps
    torch.testing.assert_close(fixed, DiffGradCAM(model[0], "relu").explain(IMAGES, 1).maps)


def test_counterfactual_maps_are_those_of_minus_the_score():
    model = models.pooled(classes=100)
    for classes in (1, "all"):
        plain = GradCAM(model, "relu", rectify=False).explain(IMAGES, classes).maps
        exact(GradCAM(model, "relu", score=Counterfactual()).explain(IMAGES, classes).maps, (-plain).relu())


def test_one_number_an_image():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = models.pooled(classes=2)

        def forward(self, x):
            return self.inner(x)[:, 1]

    model = models.seeded(Regression)
    with pytest.raises(ValueError, match=r"output has shape \(3,\); pass output= .*lambda o: o.reshape\(-1, 1\)"):
        GradCAM(model, "inner.relu").explain(IMAGES)
    expected = GradCAM(model.inner, "relu").explain(IMAGES, 1).maps
    exact(GradCAM(model, "inner.relu", output=lambda o: o.reshape(-1, 1)).explain(IMAGES).maps, expected)
    exact(GradCAM(model, "inner.relu").explain(IMAGES, [RawScoresOutputTarget()] * 3).maps, expected)


def test_explain_takes_the_targets_of_the_call():
    model = models.pooled()
    targets = [ClassifierOutputTarget(2), ClassifierOutputTarget(0), ClassifierOutputTarget(1)]
    exact(GradCAM(model, "relu").explain(IMAGES, targets).maps, GradCAM(model, "relu").explain(IMAGES, [2, 0, 1]).maps)
    own = [lambda z: z[2] - z[0]] * 3
    for name in ("GradCAM", "ScoreCAM", "AblationCAM", "NoiseSmooth"):
        found = METHODS[name](model, "relu").explain(IMAGES, own)
        assert found.classes.tolist() == [-1, -1, -1]
        assert found.maps.shape == (3, 6, 5)
    exact(
        GradCAM(model, "relu").explain(IMAGES, own).maps, GradCAM(model, "relu", score=lambda z, _: z[:, 2] - z[:, 0])
        .explain(IMAGES).maps,
    )  # fmt: skip


def test_old_spellings_get_the_line_that_replaces_them():
    model = models.pooled()
    cam = LayerCAM(model, "relu")
    for ask in (cam, cam.explain):
        with pytest.raises(TypeError, match=r"target_category= is of old releases .* targets=\[ClassifierOutputTarget"):
            ask(IMAGES, target_category=3)
    with pytest.raises(TypeError, match=r"use_cuda= is of old releases .* \.to\('cuda'\)"):
        GradCAM(model=model, target_layers=[model.relu], use_cuda=True)
    with pytest.raises(TypeError, match=r"target_layer= is of old releases .*; pass target_layers=\[layer\]"):
        GradCAM(model=model, target_layer=model.relu)


def test_detections_name_their_function():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1).double()

        def forward(self, x):
            found = self.conv(x).mean((2, 3))
            return [{"boxes": row[None], "labels": torch.ones(1), "scores": row[:1]} for row in found]

    with pytest.raises(TypeError, match=r"returned detections; .* such as output=diffgradcam.targets.detections"):
        GradCAM(Detector(), "conv").explain(IMAGES)
