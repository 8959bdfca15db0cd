"""Whatever the library makes can be copied and pickled, and goes to the workers of a loader, forked or spawned."""

import copy
import dataclasses
import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import diffgradcam
from diffgradcam import SESS, BaseCAM
from diffgradcam.data import Explanations
from diffgradcam.methods.smoothing import SmoothedCAM
from tests.models import images
from tests.untouched import hooks

from .calls import calls
from .workers import Explained, Training

CALLS = calls()
WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
NO_VALUES = ("albumentations_style", "quantus_explainer")  # adapt a function of the user's, which is no value


def equal(first, second):
    """The same values, all the way down; of what explains, the same maps."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, BaseCAM | SmoothedCAM | SESS):
        x = images(2, dtype=torch.float32)
        return equal(tuple(first.explain(x, 0)), tuple(second.explain(x, 0)))
    if isinstance(first, nn.Module):
        return equal(dict(first.state_dict()), dict(second.state_dict()))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return all(equal(getattr(first, name), getattr(second, name)) for name in names)
    if isinstance(first, Dataset):
        return len(first) == len(second) and all(equal(tuple(first[i]), tuple(second[i])) for i in range(len(first)))
    if isinstance(first, Explanations) or type(first).__module__ == "diffgradcam.targets":
        return equal(vars(first), vars(second))
    return first == second or (first != first and second != second)


@functools.cache
def given(name):
    """What a public call gives."""
    function, arguments = CALLS[name]
    return function(**arguments)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in NO_VALUES])
@pytest.mark.parametrize("way", WAYS)
def test_what_every_public_call_gives(name, way):
    value = given(name)
    if type(value).__name__ == "Figure":
        pytest.skip("a figure of Matplotlib")
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value = value.detach()  # PyTorch copies leaves of a graph only
    if isinstance(value, tuple) and any(isinstance(each, torch.Tensor) and each.requires_grad for each in value):
        value = type(value)(*(each.detach() for each in value))
    assert equal(value, WAYS[way](value))


@pytest.mark.parametrize("way", WAYS)
def test_targets_and_layer_inputs(way):
    made = [
        diffgradcam.layer_input("layer4"),
        diffgradcam.targets.ClassifierOutputTarget(3),
        diffgradcam.targets.ClassifierOutputSoftmaxTarget(3),
        diffgradcam.targets.ClassifierOutputReST(3),
        diffgradcam.targets.BinaryClassifierOutputTarget(1),
        diffgradcam.targets.RawScoresOutputTarget(),
        diffgradcam.targets.SemanticSegmentationTarget(1, torch.ones(2, 2)),
        diffgradcam.targets.SimilarityTarget(torch.ones(3)),
        diffgradcam.targets.FasterRCNNBoxScoreTarget([1], [[0.0, 0.0, 1.0, 1.0]]),
    ]
    for value in made:
        twin = WAYS[way](value)
        assert type(twin) is type(value)
        assert equal(value, twin)


# Workers


@pytest.mark.parametrize("kind", [Explained, Training])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.siege)])  # starts slowly
def test_workers_explain(context, attached, kind):
    if context == "spawn" and (attached or kind is Training):
        pytest.skip("one spawned worker is enough: it is slow to start, and pickles the CAM as the tests above do")
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {context}")
    dataset = kind(attached)
    before = hooks(dataset.model)
    expected = torch.stack([dataset[index] for index in range(6)])
    workers = 2 if context == "fork" else 1
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, multiprocessing_context=context)
    maps = torch.cat(list(loader))
    assert torch.equal(maps, expected)
    assert kind is Training or hooks(dataset.model) == before
    dataset.cam.detach()
