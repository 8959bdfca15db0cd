"""How often an accelerator is waited for: each number read from it is a wait."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffgradcam import DiffGradCAM, GradCAM, HiResCAM, LayerCAM, TrueFalseCAM
from tests import models

WAITS = ("_local_scalar_dense", "nonzero", "equal", "unique", "masked_select")


class Waits(TorchDispatchMode):
    """Counts the operations that bring a number from the device to Python, or whose shape depends on one."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in WAITS:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def test_the_count_sees_a_wait():
    with Waits() as waits:
        bool(torch.ones(2).sum() > 0)
        torch.ones(2).nonzero()
    assert waits.found == {"_local_scalar_dense": 1, "nonzero": 1}


@pytest.mark.parametrize("classes", [None, "top5", "all"])
@pytest.mark.parametrize("build", [models.pooled, models.deep])
@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM, LayerCAM, HiResCAM, TrueFalseCAM])
def test_explain_waits_once(method, build, classes):
    model, images = build(), models.images()
    with Waits() as waits:
        method(model, "relu").explain(images, classes)
    assert waits.found == {"_local_scalar_dense": 1}


def test_all_classes_of_many_wait_once_where_the_closed_form_holds():
    model, images = models.pooled(classes=100), models.images()
    for method in (GradCAM, DiffGradCAM):
        with Waits() as waits:
            method(model, "relu").explain(images, "all")
        assert waits.found == {"_local_scalar_dense": 1}


def test_the_call_waits_once():
    model, images = models.pooled(), models.images()
    with Waits() as waits:
        GradCAM(model, "relu")(images)
    assert waits.found == {"_local_scalar_dense": 1}


class Operations(TorchDispatchMode):
    """Counts what the device is given to do, each with an allocation of its own."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM])
def test_in_closed_form_no_class_costs_an_operation(method):
    counts = []
    for classes in (100, 300):
        cam, images = method(models.pooled(classes=classes), "relu"), models.images()
        cam.explain(images, "all")
        with Operations() as operations:
            cam.explain(images, "all")
        counts.append(operations.count)
    assert counts[0] == counts[1]
