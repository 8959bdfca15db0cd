import math

import numpy as np
import pytest
import torch

from diffgradcam import targets
from diffgradcam.targets import read_targets, target_gradients
from diffgradcam.utils import model_targets
from diffgradcam.utils.model_targets import (
    BinaryClassifierOutputTarget,
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    RawScoresOutputTarget,
    SemanticSegmentationTarget,
)


def test_values_of_each_target():
    z = torch.tensor([1.0, 2.0, 4.0])
    assert float(ClassifierOutputTarget(2)(z)) == 4.0
    total = math.exp(1) + math.exp(2) + math.exp(4)
    assert float(ClassifierOutputSoftmaxTarget(1)(z)) == pytest.approx(math.exp(2) / total)
    assert float(ClassifierOutputReST(1)(z)) == pytest.approx(2 + 2 - math.log(total))
    assert float(BinaryClassifierOutputTarget(1)(torch.tensor([3.0]))) == 3.0
    assert float(BinaryClassifierOutputTarget(0)(torch.tensor([3.0]))) == -3.0
    assert RawScoresOutputTarget()(z).tolist() == z.tolist()
    scores = torch.arange(12.0).view(3, 2, 2)
    for mask in (np.array([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])):
        assert float(SemanticSegmentationTarget(1, mask)(scores)) == 4.0 + 7.0


def test_targets_read_a_batch_too():
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert ClassifierOutputTarget(1)(z).tolist() == [2.0, 4.0]
    assert ClassifierOutputSoftmaxTarget(1)(z).tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 2)
    assert ClassifierOutputReST(1)(z).tolist() == pytest.approx([n - math.log(1 + math.exp(-1)) for n in (2, 4)])


def test_the_drop_in_path_gives_the_very_same_targets():
    assert all(getattr(model_targets, name) is getattr(targets, name) for name in model_targets.__all__)


def test_no_targets_are_the_decision():
    assert read_targets(None, 3) == (None, None)


class Derived(ClassifierOutputTarget):
    """A user's own kind of class target."""


def test_targets_that_name_a_class_are_read_as_classes():
    given = [ClassifierOutputTarget(4), 2, np.int64(1), Derived(0), ClassifierOutputTarget(torch.tensor(3))]
    assert read_targets(given, 5) == ([4, 2, 1, 0, 3], None)


def test_one_target_of_its_own_makes_all_of_them_callables():
    own = RawScoresOutputTarget()
    classes, callables = read_targets([own, ClassifierOutputTarget(1), 2], 3)
    assert classes is None
    assert callables[0] is own
    assert [float(target(torch.tensor([5.0, 6.0, 7.0]))) for target in callables[1:]] == [6.0, 7.0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_targets_is_refused(count):
    with pytest.raises(ValueError, match=rf"got {count} targets for 2 images; give one target for each image"):
        read_targets([ClassifierOutputTarget(1)] * count, 2)


@pytest.mark.parametrize("target", ["cat", None, 1.5])
def test_what_is_no_target_is_refused(target):
    with pytest.raises(TypeError, match=r"target .* is neither a class nor a callable such as Classifier"):
        read_targets([target], 1)


def test_gradients_of_targets_equal_those_of_each_image_alone():
    output = torch.randn(3, 4, dtype=torch.float64)
    given = [ClassifierOutputSoftmaxTarget(1), ClassifierOutputTarget(2), lambda z: z[0] * z[3]]
    found = target_gradients(given, output)
    assert found.shape == (3, 1, 4)
    for target, row, gradient in zip(given, output, found[:, 0], strict=True):
        row = row.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(target(row), row)[0], rtol=1e-12, atol=1e-12)


def test_gradients_of_a_segmentation_are_its_mask():
    mask = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
    (gradient,) = target_gradients([SemanticSegmentationTarget(1, mask)], torch.randn(1, 3, 2, 3))
    expected = torch.zeros(1, 3, 2, 3)
    expected[0, 1] = mask
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (RawScoresOutputTarget(), r"returned shape \(4,\)"),
        (lambda z: float(z[0].detach()), "returned float"),
        (lambda z: 0 * z[0].detach() + 2.5, r"returned the constant 2.5 \(nothing in the output matches .* detaches\)"),
    ],
)
def test_a_target_that_gives_no_single_number_is_refused(target, got):
    with pytest.raises(ValueError, match=rf"{got} for an output of shape \(4,\); expected a single number that"):
        target_gradients([target], torch.randn(1, 4))
