"""The calls that ``benchmarks.peers`` times do the same work."""

import numpy as np
import pytest
import torch

from benchmarks import contenders
from benchmarks.resnet import ResNet18
from diffgradcam.heatmaps import minmax
from tests.conftest import import_peer

CLASSES = 20


def setting():
    torch.manual_seed(0)
    return ResNet18(CLASSES).eval(), torch.randn(2, 3, 96, 96)


def ours(key):
    return contenders.OURS.calls(*setting())[key]()


def of(name, key):
    contender = next(each for each in contenders.PEERS if each.name == name)
    import_peer(contender.module)
    return contender.calls(*setting())[key]()


def test_by_hand():
    model, images = setting()
    torch.testing.assert_close(contenders.by_hand(model, images)(), ours("one").maps)
    assert not model.layer4._forward_hooks


def test_captum():
    torch.testing.assert_close(of("captum", "one").detach().squeeze(1), ours("one").maps)


@pytest.mark.parametrize("key", ["one", "ten", "all"])
def test_torch_cam(key):
    maps = ours(key).maps
    expected = [maps] if key == "one" else list(maps.unbind(1))
    found = of("torch-cam", key)
    for theirs, one in zip([found] if key == "one" else found, expected, strict=True):
        torch.testing.assert_close(theirs[0].detach(), minmax(one), atol=1e-4, rtol=0)


def test_pytorch_grad_cam():
    np.testing.assert_allclose(of("pytorch-grad-cam", "one"), ours("drop-in"), atol=1e-4)
