from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgradcam import DiffGradCAM, GradCAM, TrueFalseCAM
from diffgradcam.heatmaps import scale_signed
from diffgradcam.methods.contrastive import TrueFalseMaps
from diffgradcam.utils.model_targets import ClassifierOutputTarget
from tests import models, oracles
from tests.methods import exact

HEADS = [models.pooled, models.flat, models.max_pooled, models.custom_function]


def one_map(model, images, index, layer="relu"):
    """Grad-CAM before ReLU of one class an image, as loops."""
    return oracles.explain(model, layer, images, index.unsqueeze(1), oracles.logit, oracles.gradcam).squeeze(1)


def loops(model, images, classes, false_class, layer="relu"):
    """True maps, false maps."""
    count = model(images).shape[1]
    rows = []
    for image, c in zip(images, classes.tolist(), strict=True):
        alone = image.unsqueeze(0)
        maps = [one_map(model, alone, torch.tensor([j]), layer)[0] for j in range(count)]
        others = [j for j in range(count) if j != c]
        if false_class == "mean":
            false = sum(maps[j] for j in others) / len(others)
        elif false_class == "runner_up":
            logits = model(alone)[0].tolist()
            false = maps[max(others, key=lambda j: logits[j])]
        else:
            false = maps[false_class]
        rows.append((maps[c], false))
    return torch.stack([true for true, _ in rows]), torch.stack([false for _, false in rows])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("false_class", ["runner_up", "mean", 1])
@pytest.mark.parametrize("count", [2, 5])
def test_both_sides_and_their_difference_equal_loops(head, false_class, count):
    model, images = head(classes=count), models.images()
    classes = torch.tensor([0, 0, 0]) if count == 2 else torch.tensor([0, 3, 4])
    true, false = loops(model, images, classes, false_class)
    cam = TrueFalseCAM(model, "relu", false_class=false_class)
    both = cam.compare(images, classes)
    assert isinstance(both, TrueFalseMaps)
    exact(both.logits, model(images).detach())
    assert torch.equal(both.classes, classes)
    exact(both.true_maps, true)
    exact(both.false_maps, false)
    exact(both.difference, true - false)
    assert float(both.difference.abs().max()) > 1e-3
    exact(cam.explain(images, classes).maps, true - false)
    with cam:
        exact(cam.maps(model(images), classes).detach(), true - false)


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_equal_loops(dims):
    model, images, classes = models.flat(dims=dims), models.images(dims=dims), torch.tensor([0, 3, 4])
    true, false = loops(model, images, classes, "runner_up")
    exact(TrueFalseCAM(model, "relu").explain(images, classes).maps, true - false)


def test_an_in_place_relu_after_the_layer_changes_nothing():
    images, classes = models.images(), torch.tensor([0, 3, 4])
    true, false = loops(models.densenet(inplace=False), images, classes, "runner_up", "features")
    exact(TrueFalseCAM(models.densenet(inplace=True), "features").explain(images, classes).maps, true - false)


def test_the_false_class_of_two_is_the_other_and_the_runner_up_of_more_is_the_best_other():
    images = models.images()
    two = TrueFalseCAM(models.flat(classes=2), "relu").compare(images, torch.tensor([0, 1, 0]))
    assert two.false_classes.tolist() == [1, 0, 1]
    five = TrueFalseCAM(models.flat(), "relu").compare(images)
    order = models.flat()(images).argsort(1, descending=True)
    assert torch.equal(five.classes, order[:, 0])
    assert torch.equal(five.false_classes, order[:, 1])
    # Where the given class is not the decision, the decision is the best other class.
    last = TrueFalseCAM(models.flat(), "relu").compare(images, order[:, -1])
    assert torch.equal(last.false_classes, order[:, 0])


def test_the_mean_of_the_others_is_no_class():
    assert TrueFalseCAM(models.flat(), "relu", false_class="mean").compare(models.images()).false_classes is None


@pytest.mark.parametrize("head", HEADS)
def test_several_false_classes_at_once(head):
    model, images, classes = head(), models.images(), torch.tensor([0, 3, 4])
    false_classes = torch.tensor([[1, 2, 3], [0, 1, 2], [3, 1, 0]])
    both = TrueFalseCAM(model, "relu").compare(images, classes, false_classes=false_classes)
    true = one_map(model, images, classes)
    false = torch.stack([one_map(model, images, column) for column in false_classes.T], 1)
    exact(both.true_maps, true)
    exact(both.false_maps, false)
    exact(both.difference, true.unsqueeze(1) - false)


@pytest.mark.parametrize("false_classes", [2, [2, 1, 0], torch.tensor([2, 1, 0])])
def test_false_classes_of_one_call_come_before_those_of_the_cam(false_classes):
    model, images, classes = models.flat(), models.images(), torch.tensor([0, 3, 4])
    both = TrueFalseCAM(model, "relu", false_class="mean").compare(images, classes, false_classes=false_classes)
    index = torch.as_tensor(false_classes).expand(3)
    assert torch.equal(both.false_classes, index)
    exact(both.difference, one_map(model, images, classes) - one_map(model, images, index))


@pytest.mark.parametrize("false_class", ["runner_up", "mean"])
def test_several_true_classes_in_explain(false_class):
    model, images = models.flat(), models.images()
    cam = TrueFalseCAM(model, "relu", false_class=false_class)
    together = cam.explain(images, "all").maps
    assert together.shape == (3, 5, 6, 5)
    for c in range(5):
        exact(together[:, c], cam.explain(images, c).maps)


def test_several_layers_are_averaged_at_the_size_of_the_largest():
    model, images, classes = models.two_sizes(), models.images(), torch.tensor([0, 3, 4])
    both = TrueFalseCAM(model, ["small", "features"]).compare(images, classes)
    sides = []
    for large, small in zip(
        *(loops(model, images, classes, "runner_up", n) for n in ("features", "small")), strict=True
    ):
        resized = torch.from_numpy(np.stack([oracles.resize(one, (6, 5)) for one in small.numpy()]))
        sides.append((large + resized) / 2)
    exact(both.true_maps, sides[0])
    exact(both.false_maps, sides[1])
    exact(both.difference, sides[0] - sides[1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("false_class", "baseline"), [("runner_up", "max"), ("mean", "mean"), (1, 1)])
def test_it_is_the_signed_diffgradcam_of_the_same_contrast(head, false_class, baseline):
    model, images, classes = head(), models.images(), torch.tensor([0, 3, 4])
    contrast = DiffGradCAM(model, "relu", baseline=baseline, rectify=False).explain(images, classes).maps
    exact(TrueFalseCAM(model, "relu", false_class=false_class).explain(images, classes).maps, contrast)


@pytest.mark.parametrize("head", HEADS)
def test_of_two_classes_one_is_the_negative_of_the_other(head):
    model, images, labels = head(classes=2), models.images(), torch.tensor([0, 1, 1])
    cam = TrueFalseCAM(model, "relu")
    exact(cam.explain(images, labels).maps, -cam.explain(images, 1 - labels).maps)


def test_both_sides_add_up_as_grad_cam_shows_them():
    model, images, labels = models.flat(classes=2), models.images(), torch.tensor([0, 1, 1])
    both = TrueFalseCAM(model, "relu").compare(images, labels)
    pair = GradCAM(model, "relu", rectify=False).explain(images, torch.stack([labels, 1 - labels], 1)).maps
    exact(torch.stack([both.true_maps, both.false_maps], 1), pair)


@settings(max_examples=10)
@given(st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=6, max_size=6))
def test_the_difference_does_not_see_what_all_classes_have_in_common(vector):
    images, changed = models.images(), models.pooled()
    changed.head.weight.data += torch.tensor(vector, dtype=torch.float64)
    for false_class in ("runner_up", "mean"):
        before, after = (
            TrueFalseCAM(model, "relu", false_class=false_class).explain(images, 0).maps
            for model in (models.pooled(), changed)
        )
        # The runner-up of nearly equal logits may change with rounding; these models have none.
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_the_call_is_scaled_to_plus_minus_one_with_zero_at_zero():
    model, images, classes = models.flat(), models.images(), [0, 3, 4]
    heat = TrueFalseCAM(model, "relu")(images, [ClassifierOutputTarget(c) for c in classes])
    true, false = loops(model, images, torch.tensor(classes), "runner_up")
    assert heat.dtype == np.float32
    assert heat.shape == (3, 6, 5)
    np.testing.assert_allclose(heat, scale_signed(true - false).float().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.abs(heat).max((1, 2)), 1)
    assert heat.min() < 0 < heat.max()
    assert np.array_equal(np.sign(heat), (true - false).sign().numpy())


def test_the_call_without_targets_compares_the_decision_with_the_runner_up():
    model, images = models.flat(), models.images()
    expected = scale_signed(TrueFalseCAM(model, "relu").explain(images).maps).float().numpy()
    np.testing.assert_allclose(TrueFalseCAM(model, "relu")(images), expected, rtol=0, atol=1e-6)


def test_equal_rows_of_the_head_leave_a_difference_of_zero():
    model = models.flat(classes=2)
    model.head.weight.data[1] = model.head.weight.data[0]
    heat = TrueFalseCAM(model, "relu")(models.images())
    assert not heat.any()


@pytest.mark.parametrize("false_class", ["second", None, 1.0, True])
def test_an_unknown_false_class_is_refused(false_class):
    with pytest.raises(ValueError, match=r"false_class is .*; expected 'runner_up', 'mean' or a class index"):
        TrueFalseCAM(models.flat(), "relu", false_class=false_class)


@pytest.mark.parametrize("false_class", [5, -1])
def test_a_false_class_out_of_range_is_refused(false_class):
    with pytest.raises(ValueError, match=rf"class {false_class} is out of range; the model has classes 0 to 4"):
        TrueFalseCAM(models.flat(), "relu", false_class=false_class).explain(models.images(), 0)


def test_a_class_is_not_compared_with_itself():
    cam = TrueFalseCAM(models.flat(), "relu", false_class=2)
    calls = [
        partial(cam.explain, models.images()),
        partial(cam.compare, models.images()),
        partial(cam, models.images()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="would be contrasted with itself"):
            call([0, 2, 1])
    with pytest.raises(ValueError, match="would be contrasted with itself"):
        cam.compare(models.images(), 0, false_classes=torch.tensor([[1, 2], [3, 4], [2, 0]]))


def test_compare_takes_one_true_class_an_image():
    with pytest.raises(ValueError, match=r"classes have shape \(3, 5\); compare\(\) takes one true class for each"):
        TrueFalseCAM(models.flat(), "relu").compare(models.images(), "all")


@pytest.mark.parametrize("false_class", ["runner_up", "mean"])
def test_one_class_has_no_false_class_and_the_message_offers_the_sigmoid(false_class):
    cam = TrueFalseCAM(models.flat(classes=1), "relu", false_class=false_class)
    for call in (cam.explain, cam.compare, cam):
        with pytest.raises(ValueError, match=r"at least 2 classes, .* output=diffgradcam.scores.two_logits"):
            call(models.images())
