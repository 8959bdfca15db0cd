"""Memory stays flat: over 300 explanations here, over 10,000 in the long form.

``tests/test_never_in_the_way.py`` has the number of objects, and what stays alive after a single call.
"""

import gc
import os
from pathlib import Path

import pytest
import torch

import diffgradcam
from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, TrueFalseCAM, layer_input
from tests.models import deep, pooled

X = torch.rand(2, 3, 6, 5)


def resident():
    """Mebibytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def live_tensors():
    """How many tensors the collector knows, and their numbers together."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum(tensor.numel() for tensor in tensors)


def work(number):
    """That many explanations, in turn by all methods and in all ways, some of them refused."""
    model, other = deep(dtype=torch.float32), pooled(dtype=torch.float32)
    quiet = {"progress": False}
    cams = [
        GradCAM(model, "features"),
        GradCAM(other, "relu"),
        DiffGradCAM(model, ["stem", "features"]),
        TrueFalseCAM(model, layer_input("relu")),
        diffgradcam.EigenCAM(model, "features"),
        diffgradcam.ShapleyCAM(model, "features"),
        diffgradcam.RefineCAM(model, ["stem", "features"]),
        diffgradcam.FullGrad(model),
        diffgradcam.AblationCAM(model, "features", **quiet),
        diffgradcam.ScoreCAM(model, "features", **quiet),
        diffgradcam.NoiseSmooth(GradCAM(model, "features"), samples=2),
    ]
    attached = LayerCAM(model, ["stem", "features"])
    for step in range(number):
        cam = cams[step % len(cams)]
        if step % 5 == 0:
            with attached:
                attached.maps(model(X), [0, 1]).sum().backward()
        elif step % 5 == 1:
            with pytest.raises(ValueError, match="class 9 is out of range"):
                cam.explain(X, 9)
        elif step % 5 == 2 and not isinstance(cam, diffgradcam.FullGrad):
            cam(X, [1, 2])
        else:
            cam.explain(X, "all" if step % 7 == 0 else None)


def flat(number):
    work(110)  # allocators and caches fill
    tensors, memory = live_tensors(), resident()
    work(number)
    assert live_tensors() == tensors
    assert resident() - memory < 8


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


@needs_proc
def test_300_explanations():
    flat(300)


@needs_proc
@pytest.mark.siege
def test_10000_explanations():
    flat(10_000)
