"""SESS: against pytorch-grad-cam, and what its windows must be."""

import re

import numpy as np
import pytest
import torch

from diffgradcam import SESS, AugSmooth, DiffGradCAM, EigenSmooth, GradCAM, LayerCAM, heatmaps, scores
from diffgradcam.targets import ClassifierOutputTarget
from tests import models
from tests.conftest import import_peer
from tests.methods import exact
from tests.untouched import forward_passes, untouched

CLASSES = [0, 3, 1]


def images(height=14, width=17, dtype=torch.float64):
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


# With its threshold of 0, it leaves to rounding whether a place that a window does not mark counts in the mean.
@pytest.mark.parametrize(
    ("size", "theirs", "ours"),
    [
        ((14, 17), {"theta": 0.05}, {"threshold": 0.05}),
        ((17, 14), {"num_scales": 4, "pool": "max"}, {"scales": 4, "pool": "max"}),
        (
            (14, 14),
            {"smooth": False, "pre_filter_ratio": 0.3, "theta": 0.05},
            {"blur": 0, "keep": 0.7, "threshold": 0.05},
        ),
        ((14, 17), {"window_size": 8, "step_size": 5, "theta": 0.05}, {"window": 8, "step": 5, "threshold": 0.05}),
        ((14, 17), {"theta": 0.2, "scale_step_ratio": 0.5}, {"threshold": 0.2, "growth": 0.5}),
    ],
)
def test_heatmaps_equal_pytorch_grad_cam(size, theirs, ours):
    peer = import_peer("pytorch_grad_cam")
    target = peer.utils.model_targets.ClassifierOutputTarget
    model, inputs = models.pooled(dtype=torch.float32), images(*size, dtype=torch.float32)
    with peer.SESS(model, [model.relu], base_method=peer.LayerCAM, **{"num_scales": 5, **theirs}) as cam:
        chosen = cam(inputs, [target(c) for c in CLASSES])
        decided = cam(inputs)
    cam = SESS(LayerCAM(model, "relu"), **{"scales": 5, **ours})
    assert chosen.max() > 0.99
    np.testing.assert_allclose(cam(inputs, CLASSES), chosen, rtol=0, atol=2e-4)
    np.testing.assert_allclose(cam(inputs), decided, rtol=0, atol=2e-4)
    torch.testing.assert_close(cam.outputs, model(inputs).detach())


def test_one_window_is_the_map_of_the_image():
    model, inputs = models.pooled(), images(14, 14)
    plain = GradCAM(model, "relu")
    cam = SESS(plain, scales=1, blur=0)
    logits, classes, maps = cam.explain(inputs, torch.tensor(CLASSES))
    exact(logits, model(inputs).detach())
    assert classes.tolist() == CLASSES
    exact(maps, heatmaps.minmax(heatmaps.resize(heatmaps.minmax(plain.explain(inputs, CLASSES).maps), (14, 14))))


def test_a_wide_image_is_seen_window_by_window():
    model, inputs = models.pooled(), images(10, 25)
    plain = GradCAM(model, "relu")
    maps = SESS(plain, scales=1, blur=0).explain(inputs, 2).maps
    parts, weights = [], []
    for left in (0, 10, 15):
        logits, _, own = plain.explain(inputs[..., left : left + 10], 2)
        parts.append(heatmaps.minmax(own))
        weights.append(logits.softmax(1)[:, 2])
    best = torch.stack(weights).amax(0)
    total, count = torch.zeros(3, 10, 25, dtype=torch.float64), torch.zeros(3, 10, 25)
    for left, own, weight in zip((0, 10, 15), parts, weights, strict=True):
        weighted = own * (weight / best).view(-1, 1, 1)
        total[..., left : left + 10] += weighted
        count[..., left : left + 10] += weighted > 1e-6
    exact(maps, total / count.clamp_min(1))


def test_many_classes_batches_and_wrappers():
    model, inputs = models.pooled(), images()
    cam = SESS(DiffGradCAM(model, "relu"), scales=3)
    every = cam.explain(inputs, "all").maps
    assert every.shape == (3, 5, 14, 17)
    exact(every[torch.arange(3), CLASSES], cam.explain(inputs, CLASSES).maps)
    exact(SESS(DiffGradCAM(model, "relu"), scales=3, batch_size=2).explain(inputs, CLASSES).maps,
          cam.explain(inputs, CLASSES).maps)  # fmt: skip
    exact(cam.explain(inputs[1:2], CLASSES[1]).maps, cam.explain(inputs, CLASSES).maps[1:2])
    assert (cam(inputs, [ClassifierOutputTarget(c) for c in CLASSES]) == cam(inputs, CLASSES)).all()
    eigen = SESS(EigenSmooth(DiffGradCAM(model, "relu")), scales=3)
    np.testing.assert_allclose(cam(inputs, CLASSES, eigen_smooth=True), eigen(inputs, CLASSES), atol=1e-6)
    np.testing.assert_allclose(cam(inputs, CLASSES, aug_smooth=True), AugSmooth(cam)(inputs, CLASSES), atol=1e-6)
    assert repr(cam) == f"SESS({cam.cam!r}, scales=3)"


def test_windows_with_another_score_and_with_none():
    model, inputs = models.pooled(), images(10, 25)
    plain = GradCAM(model, "relu")
    # A weight of 0 everywhere leaves the windows as they are; all that is kept of one window is that window.
    even = SESS(plain, scales=1, blur=0, weight=lambda z, c: -scores.probability(z, c)).explain(inputs, 2).maps
    alone = SESS(plain, scales=1, blur=0, keep=0.01).explain(inputs, 2).maps
    assert (even.amax((1, 2)) == 1).all()
    logits = torch.stack([model(inputs[..., left : left + 10]) for left in (0, 10, 15)])
    for image, best in enumerate(logits.softmax(2)[..., 2].argmax(0).tolist()):
        left = (0, 10, 15)[best]
        shown = alone[image].any(0).nonzero().flatten()
        assert left <= int(shown.min()) <= int(shown.max()) < left + 10


def test_the_number_of_windows_is_as_said():
    model = models.pooled(dtype=torch.float32)
    counted = forward_passes(model)
    SESS(GradCAM(model, "relu"), batch_size=1).explain(images(28, 28, torch.float32)[:1])
    assert len(counted) == 1 + 122


def test_the_model_is_left_alone_and_wrong_options_are_named():
    model, inputs = models.pooled(), images()
    cam = GradCAM(model, "relu")
    with untouched(model):
        SESS(cam, scales=2).explain(inputs)
    for options, error, text in (
        ({"scales": 0}, ValueError, "scales is 0; expected an integer of at least 1"),
        ({"window": 1.5}, ValueError, "window is 1.5; expected an integer of at least 1"),
        ({"keep": 0}, ValueError, "keep is 0; expected a share of the windows, above 0 and up to 1"),
        ({"growth": -1}, ValueError, "growth is -1; expected a number of at least 0"),
        ({"pool": "sum"}, ValueError, "pool is 'sum'; expected one of 'mean', 'max'"),
        ({"blur": -1}, ValueError, "blur is -1; expected a radius in pixels, 0 or more"),
        ({"weight": 2}, TypeError, "weight is 2; expected a score"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            SESS(cam, **options)
    with pytest.raises(TypeError, match="cam is Sequential; expected a CAM"):
        SESS(model)
    with untouched(model), pytest.raises(ValueError, match="blur is 5 for images of 5 x 17; expected a radius below"):
        SESS(cam).explain(images(5))
    with untouched(model), pytest.raises(ValueError, match="where SESS slides a square window"):
        SESS(GradCAM(models.pooled(dims=1), "relu")).explain(models.images(dims=1))
    with untouched(model), pytest.raises(ValueError, match="is a score of its own, and SESS weights windows"):
        SESS(cam, scales=1).explain(inputs, [lambda z: z.sum()] * 3)
