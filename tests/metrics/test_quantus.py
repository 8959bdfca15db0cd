"""The function for Quantus: its form with a stub of the documented call, and its metrics where Quantus is installed.

Quantus asks for OpenCV with its graphical parts, which does not go together with the headless build that this library
needs; so it is in no extra: ``make check`` installs it, by ``pip install --no-deps quantus cachetools``.
"""

import contextlib
import io
import pickle
import warnings

import numpy as np
import pytest
import torch

from diffgradcam import DiffGradCAM, EigenCAM, GradCAM, heatmaps, metrics, scores
from diffgradcam.metrics import quantus_explainer
from tests import models
from tests.conftest import import_peer
from tests.untouched import untouched

IMAGES = models.images(4, dtype=torch.float32)
TARGETS = np.array([0, 3, 1, 4])


@pytest.fixture(scope="module")
def quantus():
    return import_peer("quantus")


def measured(metric, explain, model, targets=TARGETS, **options):
    """What a metric of Quantus gives, without what it prints and warns of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return metric(model=model, x_batch=IMAGES.numpy(), y_batch=targets, explain_func=explain, **options)


def test_the_documented_call_gives_maps_at_the_size_of_the_inputs():
    model = models.two_sizes(dtype=torch.float32)
    explain = quantus_explainer(lambda model: GradCAM(model, "last", rectify=False))
    with untouched(model):
        found = explain(model=model, inputs=IMAGES.numpy(), targets=TARGETS, device="cpu")
    assert (type(found), found.dtype, found.shape) == (np.ndarray, np.float32, (4, 1, 6, 5))
    maps = GradCAM(model, "last", rectify=False).explain(IMAGES, torch.from_numpy(TARGETS)).maps
    np.testing.assert_array_equal(found[:, 0], heatmaps.resize(maps, (6, 5)).numpy())
    assert found.min() < 0 < found.max()
    decided = model(IMAGES).argmax(1).numpy()
    np.testing.assert_array_equal(explain(model, IMAGES.numpy()), explain(model, IMAGES.numpy(), decided))
    np.testing.assert_array_equal(explain(model, IMAGES.double().numpy(), 2), explain(model, IMAGES.numpy(), [2] * 4))


def test_other_keyword_arguments_make_the_cam():
    model = models.pooled(dtype=torch.float32)
    explain = quantus_explainer(lambda model, **options: DiffGradCAM(model, "relu", **options))
    for baseline in ("max", "mean"):
        maps = DiffGradCAM(model, "relu", baseline=baseline).explain(IMAGES, TARGETS.tolist()).maps
        np.testing.assert_array_equal(explain(model, IMAGES.numpy(), TARGETS, baseline=baseline)[:, 0], maps.numpy())
    with untouched(model), pytest.raises(TypeError, match="nonsense"):
        explain(model, IMAGES.numpy(), TARGETS, nonsense=1)


def of_relu(model):
    """A function that can be pickled."""
    return GradCAM(model, "relu")


def test_it_goes_to_other_processes():
    model, explain = models.pooled(dtype=torch.float32), quantus_explainer(of_relu)
    twin = pickle.loads(pickle.dumps(explain))
    np.testing.assert_array_equal(twin(model, IMAGES.numpy(), TARGETS), explain(model, IMAGES.numpy(), TARGETS))


def test_a_cam_is_no_function_that_makes_one():
    with pytest.raises(TypeError, match="make_cam is a GradCAM; expected a function that makes a CAM"):
        quantus_explainer(GradCAM(models.pooled(), "relu"))
    with pytest.raises(TypeError, match="make_cam is the class GradCAM"):
        quantus_explainer(GradCAM)
    explain, model = quantus_explainer(lambda model: GradCAM(model, "relu")), models.pooled(dtype=torch.float32)
    with untouched(model), pytest.raises(ValueError, match="class 9 is out of range"):
        explain(model, IMAGES.numpy(), [9] * 4)


def test_pixel_flipping_of_quantus_is_our_deletion(quantus):
    model = models.deep(dtype=torch.float32)
    explain = quantus_explainer(lambda model: GradCAM(model, "features", rectify=False))
    # Its features are the values of all three channels: a pixel a step.
    metric = quantus.PixelFlipping(
        features_in_step=3, perturb_baseline="black", normalise=False, abs=False, disable_warnings=True
    )
    theirs = np.array(measured(metric, explain, model, softmax=False))
    maps = GradCAM(model, "features", rectify=False).explain(IMAGES, TARGETS.tolist()).maps
    black = IMAGES.amin((1, 2, 3), keepdim=True)  # what it calls black: the smallest value of each image
    evaluator = metrics.Evaluator(model, score=scores.logit)
    ours = metrics.deletion(evaluator, IMAGES, maps, TARGETS.tolist(), steps=30, fill=black, progress=False)
    np.testing.assert_allclose(theirs, ours.values[:, 1:].numpy(), rtol=0, atol=1e-4)


def test_metrics_that_explain_again_get_the_class_and_the_model_that_they_ask_for(quantus):
    model = models.pooled(dtype=torch.float32)
    same_for_all, by_class = (
        quantus_explainer(lambda model, make=make: make(model, "relu")) for make in (EigenCAM, GradCAM)
    )
    pearson = quantus.similarity_func.correlation_pearson
    logit = quantus.RandomLogit(num_classes=5, similarity_func=pearson, normalise=False, disable_warnings=True)
    assert measured(logit, same_for_all, model) == pytest.approx([1.0] * 4, abs=1e-6)
    assert min(measured(logit, by_class, model)) < 0.9
    randomised = quantus.MPRT(similarity_func=pearson, normalise=False, disable_warnings=True)
    found = measured(randomised, by_class, model)
    values = np.array(list(found.values()))
    assert values.shape[1] == 4
    assert values.min() < 0.9


def test_metrics_of_complexity_and_stability_run(quantus):
    model = models.pooled(dtype=torch.float32)
    explain = quantus_explainer(lambda model: GradCAM(model, "relu"))
    sparse = measured(quantus.Sparseness(disable_warnings=True), explain, model)
    given = quantus.Sparseness(disable_warnings=True)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        expected = given(model, IMAGES.numpy(), TARGETS, a_batch=explain(model, IMAGES.numpy(), TARGETS))
    assert sparse == pytest.approx(expected)
    stable = measured(quantus.MaxSensitivity(nr_samples=2, disable_warnings=True), explain, model)
    assert np.isfinite(stable).all()
