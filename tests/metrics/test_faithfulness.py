import itertools
import math
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, scores
from diffgradcam._core.explanation import Explanation
from diffgradcam.metrics import (
    Evaluator,
    average_drop,
    average_gain,
    average_increase,
    deletion,
    infidelity,
    insertion,
    max_sensitivity,
    mean_interval,
    noisy_linear_imputation,
    paired_comparison,
    remove_box,
    road,
)
from tests import models, oracles
from tests.conftest import import_peer
from tests.untouched import untouched

CURVES = [deletion, insertion]
AVERAGES = [average_drop, average_increase, average_gain]
ON_MAPS = [*CURVES, road, *AVERAGES, infidelity]
seeds = st.integers(0, 10_000)
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def random_maps(shape=(3, 3, 4), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_images(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(weights):
    """A model without surprises: logit 0 is the sum of weights times pixels, logit 1 is 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weights.numel(), 2, bias=False)).double()
    model[1].weight.data = torch.stack([weights.flatten(), torch.zeros(weights.numel())]).double()
    return model.eval()


def of_confidence():
    """A model of images of one pixel whose probability of class 0 is that pixel (clamped to [0, 1])."""

    class Confidence(nn.Module):
        def forward(self, x):
            p = x.flatten(1).clamp(0, 1)
            return torch.cat([p, 1 - p], 1).clamp_min(1e-300).log()

    return Confidence().double().eval()


# Deletion and insertion


def test_curves_of_a_linear_model_by_hand():
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    images = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[5.0, 0.0], [0.0, -1.0]]]]).double()
    maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]], [[0.0, 1.0], [2.0, 9.0]]])
    options = {"steps": 4, "fill": torch.tensor(0.0)}
    curve = deletion(Evaluator(linear(weights), score=scores.logit), images, maps, 0, **options)
    close(curve.fractions, torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())
    close(curve.values, torch.tensor([[10.0, 9, 7, 4, 0], [1, 5, 5, 5, 0]]).double())
    close(curve.auc, torch.tensor([(10 / 2 + 9 + 7 + 4) / 4, (1 / 2 + 5 + 5 + 5) / 4]).double())
    curve = insertion(Evaluator(linear(weights), score=scores.logit), images, maps, 0, **options)
    close(curve.values, torch.tensor([[0.0, 1, 3, 6, 10], [0, -4, -4, -4, 1]]).double())


def test_steps_that_do_not_divide_the_pixels_say_where_they_are():
    images = torch.ones(1, 1, 1, 5).double()
    curve = deletion(
        Evaluator(linear(torch.ones(5)), score=scores.logit), images, torch.arange(5.0).view(1, 1, 5), 0, steps=2
    )
    close(curve.fractions, torch.tensor([0, 0.4, 1], dtype=torch.float64))
    assert (curve.values == 5).all()  # the mean of ones is one


def naive_curve(model, images, maps, classes, score, steps, filled, inserted):
    """One image, step and pixel at a time."""
    rows = []
    for image, array, fill, category in zip(images, maps, filled, classes, strict=True):
        values = oracles.resize(array.numpy(), image.shape[1:])
        order = sorted(np.ndindex(values.shape), key=lambda s, v=values: -v[s])
        row = []
        for step in range(steps + 1):
            changed = fill.clone() if inserted else image.clone()
            for position in order[: round(step * len(order) / steps)]:
                changed[(slice(None), *position)] = (image if inserted else fill)[(slice(None), *position)]
            row.append(float(score(model(changed.unsqueeze(0))[0].detach(), category)))
        rows.append(row)
    values = torch.tensor(rows, dtype=torch.float64)
    fractions = [round(step * len(order) / steps) / len(order) for step in range(steps + 1)]
    auc = [
        sum((b - a) * (row[i] + row[i + 1]) / 2 for i, (a, b) in enumerate(itertools.pairwise(fractions)))
        for row in rows
    ]
    return values, torch.tensor(auc, dtype=torch.float64)


def colours(images):
    return [torch.full_like(image, 0.3) for image in images]


def means(images):
    return [image.flatten(1).mean(1).view(-1, *[1] * (image.ndim - 1)).expand_as(image).clone() for image in images]


def blurred(images):
    """SciPy's Gaussian filter, 5 pixels to each side."""
    return [
        torch.stack(
            [torch.from_numpy(scipy.ndimage.gaussian_filter(c, 5, mode="nearest", truncate=1.0)) for c in image]
        )
        for image in images.numpy()
    ]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(
    ("fill", "filled"),
    [
        ("mean", means),
        ("blur", blurred),
        (torch.tensor(0.3, dtype=torch.float64), colours),
        (lambda images: -images, lambda images: list(-images)),
    ],
)
def test_curves_are_those_of_a_naive_loop(curve, dims, fill, filled):
    model, images = models.deep(dims=dims), models.images(dims=dims)
    maps, classes = random_maps((3, *range(3, 3 + dims))), torch.tensor([0, 3, 1])
    found = curve(Evaluator(model, batch_size=4), images, maps, classes, steps=5, fill=fill)
    score = oracles.difference(oracles.logsumexp)
    inserted = curve is insertion
    values, auc = naive_curve(model, images, maps, classes.tolist(), score, 5, filled(images), inserted)
    close(found.values, values)
    close(found.auc, auc)


def test_the_class_is_the_decision_on_the_whole_image():
    model, images, maps = models.deep(), models.images(), random_maps()
    decided = model(images).argmax(1)
    for metric in [*CURVES, infidelity]:
        options = {"samples": 5} if metric is infidelity else {"steps": 5}
        for found, expected in zip(
            metric(Evaluator(model), images, maps, **options),
            metric(Evaluator(model), images, maps, decided, **options),
            strict=True,
        ):
            close(found, expected)
    close(road(Evaluator(model), images, maps), road(Evaluator(model), images, maps, decided.tolist()))
    close(average_drop(Evaluator(model), images, maps), average_drop(Evaluator(model), images, maps, decided))


@settings(max_examples=10, deadline=None)
@given(seed=seeds, scale=st.floats(1e-6, 1e6), shift=st.floats(-10, 10))
def test_a_positive_scale_and_a_shift_of_the_map_change_no_curve(seed, scale, shift):
    model, images, maps = models.deep(), models.images(), random_maps(seed=seed)
    moved = (maps + shift) * scale
    for curve in CURVES:
        for a, b in zip(
            curve(Evaluator(model), images, maps, steps=7), curve(Evaluator(model), images, moved, steps=7), strict=True
        ):
            close(a, b)
    close(road(Evaluator(model), images, maps), road(Evaluator(model), images, moved))


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_deletion_is_insertion_of_the_opposite_map_backwards(seed):
    model, images, maps = models.deep(), models.images(), random_maps((3, 6, 5), seed)
    forwards, backwards = (
        metric(Evaluator(model), images, sign * maps, 1, steps=6, fill="mean").values
        for metric, sign in ((deletion, 1), (insertion, -1))
    )
    close(forwards, backwards.flip(1))


@pytest.mark.parametrize("metric", ON_MAPS)
def test_an_image_is_judged_alone_whatever_the_batch(metric):
    model, images, maps = models.deep(), models.images(5), random_maps((5, 3, 4))
    options = {"steps": 4} if metric in CURVES else {}
    together = metric(Evaluator(model, batch_size=2), images, maps, **options)
    alone = metric(Evaluator(model), images[3:4], maps[3:4].numpy(), **options)  # an array is as good as a tensor
    for a, b in zip(leaves(together, 5), leaves(alone, 1), strict=True):
        close(a[3], b[0])


def leaves(result, batch):
    """The tensors ``(B, ...)`` of a result."""
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)
    return [tensor for tensor in tensors if tensor.shape[0] == batch and tensor is not getattr(result, "fractions", 0)]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_map_without_contrast_is_read_row_by_row(value):
    weights = torch.arange(1.0, 13).view(3, 4)
    images, maps = torch.ones(1, 1, 3, 4).double(), torch.full((1, 2, 2), value)
    values = deletion(
        Evaluator(linear(weights), score=scores.logit), images, maps, 0, steps=12, fill=torch.tensor(0.0)
    ).values
    close(values, (78 - torch.cat([torch.zeros(1), weights.flatten().cumsum(0)]).double())[None])


def test_curves_agree_with_pixel_flipping_of_quantus():
    quantus = import_peer("quantus")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Quantus says on every call what its values depend on
        metric = quantus.PixelFlipping(
            features_in_step=3, perturb_baseline="black", return_auc_per_sample=False, disable_warnings=True
        )
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Tanh(), nn.Linear(36, 4)).eval()
        images = random_images((2, 1, 6, 5)).float() + 1
        maps, classes = random_maps((2, 6, 5)).abs(), torch.tensor([2, 0])
        arrays = [images.numpy(), classes.numpy(), maps.unsqueeze(1).numpy()]
        theirs = metric(model, *arrays, softmax=True, device="cpu", channel_first=True)
    # Theirs leaves out the whole image; its "black" is the smallest value of the image that it perturbs.
    black = torch.stack([image.amin() for image in images]).view(2, 1, 1, 1)
    ours = deletion(Evaluator(model, score=scores.probability), images, maps, classes, steps=10, fill=black)
    torch.testing.assert_close(ours.values[:, 1:], torch.tensor(np.array(theirs), dtype=torch.float32))


# ROAD


def naive_imputation(image, hole):
    """Every equation written out, solved as a dense system."""
    height, width = hole.shape
    missing = [s for s in np.ndindex(height, width) if hole[s]]
    system, known = np.zeros((len(missing), len(missing))), np.zeros((len(missing), len(image)))
    for row, (y, x) in enumerate(missing):
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            other, weight = (y + dy, x + dx), (1 / 12 if dy * dx else 1 / 6)
            if (dy, dx) == (0, 0) or not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            system[row, row] += weight
            if hole[other]:
                system[row, missing.index(other)] -= weight
            else:
                known[row] += weight * image[(slice(None), *other)]
    result = image.copy()
    for values, position in zip(np.linalg.solve(system, known), missing, strict=True):
        result[(slice(None), *position)] = values
    return result


@settings(max_examples=10, deadline=None)
@given(seed=seeds, share=st.floats(0.05, 0.95))
def test_imputation_solves_the_written_out_system(seed, share):
    images = random_images((2, 3, 5, 7), seed)
    missing = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(seed)) < share
    missing[:, 2, 3] = False
    imputed = noisy_linear_imputation(images, missing, noise=0.0)
    expected = [naive_imputation(i, h) for i, h in zip(images.numpy(), missing.numpy(), strict=True)]
    close(imputed, torch.from_numpy(np.stack(expected)))
    noise = noisy_linear_imputation(images, missing, noise=2.0, seed=seed) - imputed
    field = 2 * torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    close(noise, torch.where(missing.unsqueeze(1), field, 0.0).expand_as(noise))


def test_nothing_missing_and_an_even_image_stay_as_they_are():
    images = random_images((1, 2, 4, 4))
    assert noisy_linear_imputation(images, torch.zeros(1, 4, 4, dtype=torch.bool)).equal(images)
    even, missing = torch.full((1, 2, 4, 4), 0.7), torch.ones(1, 4, 4, dtype=torch.bool)
    missing[0, 3, 3] = False
    torch.testing.assert_close(noisy_linear_imputation(even, missing, noise=0.0), even)


def naive_road(model, images, maps, classes, percentiles, score):
    rows = []
    for image, array, category in zip(images, maps.numpy(), classes, strict=True):
        values = oracles.resize(array, image.shape[1:])
        change = {}
        for which, relevance in (("most", values), ("least", -values)):
            after = []
            for percentile in percentiles:
                imputed = naive_imputation(image.numpy(), relevance >= np.percentile(relevance, percentile))
                after.append(float(score(model(torch.from_numpy(imputed)[None])[0].detach(), category)))
            change[which] = np.mean(after) - float(score(model(image[None])[0].detach(), category))
        rows.append([change["most"], change["least"], (change["least"] - change["most"]) / 2])
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


@pytest.mark.parametrize("percentiles", [(20, 40, 60, 80), (1,), (37.5, 99)])
def test_road_is_that_of_a_naive_loop(percentiles):
    model, images, maps, classes = models.deep(), models.images(), random_maps(), [0, 3, 1]
    found = road(
        Evaluator(model, score=scores.log_probability), images, maps, classes, percentiles=percentiles, noise=0.0
    )
    expected = naive_road(model, images, maps, classes, percentiles, lambda z, c: z.log_softmax(0)[c])
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_road_agrees_with_pytorch_grad_cam(monkeypatch):
    theirs = import_peer("pytorch_grad_cam.metrics.road")
    target = import_peer("pytorch_grad_cam.utils.model_targets").ClassifierOutputSoftmaxTarget
    model, images = models.deep(dtype=torch.float32), models.images(dtype=torch.float32)
    order = [torch.randperm(30, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    maps, targets = torch.stack(order).view(3, 6, 5) / 29, [target(c) for c in (0, 3, 1)]
    weights = theirs.neighbors_weights
    monkeypatch.setattr(theirs.NoisyLinearImputer.__init__, "__defaults__", (0.0, weights))
    ours = road(Evaluator(model, score=scores.probability), images, maps, [0, 3, 1], noise=0.0)
    for name, found in zip(
        ("ROADMostRelevantFirstAverage", "ROADLeastRelevantFirstAverage", "ROADCombined"), ours, strict=True
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it hands tensors to NumPy in a way that goes away
            expected = getattr(theirs, name)([20, 40, 60, 80])(images, maps.numpy(), targets, model)
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_imputation_agrees_with_pytorch_grad_cam_noise_included(monkeypatch):
    theirs = import_peer("pytorch_grad_cam.metrics.road")
    images = random_images((1, 3, 6, 5)).float()
    missing = torch.rand(1, 6, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    drawn, draw = [], torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda like: drawn.append(draw(like)) or drawn[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.NoisyLinearImputer()(images[0], (~missing[0]).float())
    field = torch.zeros(3, 6, 5, dtype=torch.float64)
    field[:, missing[0]] = drawn[0].double()
    monkeypatch.setattr(torch, "randn", lambda *_args, **_options: field)
    torch.testing.assert_close(noisy_linear_imputation(images, missing)[0], expected, rtol=1e-5, atol=1e-6)


def test_road_of_a_mostly_empty_map_removes_as_many_pixels_as_it_says():
    seen = []

    class Count(nn.Module):
        def forward(self, x):
            seen.append((x != 1).flatten(1).sum(1))  # imputed pixels get noise
            return x.flatten(1)[:, :2]

    maps = torch.zeros(1, 4, 5)
    maps[0, 0, 0] = 1.0
    road(Evaluator(Count().eval()), torch.ones(1, 1, 4, 5), maps, 0)
    assert [int(n) for n in seen] == [0, 16, 16, 12, 12, 8, 8, 4, 4]


def test_a_faithful_map_does_better_than_its_opposite():
    weights = torch.zeros(8, 8)
    weights[2:5, 3:6] = 1.0
    images, maps = 5 * weights + random_images((4, 1, 8, 8)), weights.expand(4, 8, 8)  # a bright object
    model = linear(weights)
    good, bad = road(Evaluator(model), images, maps, 0), road(Evaluator(model), images, -maps, 0)
    assert (good.combined > 0).all()
    assert (bad.combined < 0).all()
    for metric, sign in ((deletion, -1), (insertion, 1)):
        better = metric(Evaluator(model), images, maps, 0, steps=8, fill=torch.tensor(0.0)).auc
        assert (
            sign * better > sign * metric(Evaluator(model), images, -maps, 0, steps=8, fill=torch.tensor(0.0)).auc
        ).all()


# Average drop, increase, gain


def confidence(fraction):
    """A map of two pixels that leaves ``fraction`` of pixel 0."""
    return [[fraction, 0.0, 1.0]]


class _First(nn.Module):
    def forward(self, x):
        return of_confidence()(x[..., :1])


def test_averages_by_hand():
    # The confidence is pixel 0: before, and times the map 0.25, 1 and 0.5 of the three images.
    images = torch.tensor([[[[0.8, 1, 1]]], [[[0.6, 1, 1]]], [[[0.0, 1, 1]]]]).double()
    maps = torch.tensor([confidence(0.25), confidence(1.0), confidence(0.5)])
    model = _First().eval()
    close(average_drop(Evaluator(model), images, maps, 0), torch.tensor([0.75, 0, 0]).double())
    close(average_drop(Evaluator(model), images, maps, 1), torch.zeros(3).double())
    close(average_increase(Evaluator(model), images, maps, 0), torch.zeros(3).double())
    close(average_increase(Evaluator(model), images, maps, 1), torch.tensor([1.0, 0, 0]).double())
    close(average_gain(Evaluator(model), images, maps, 0), torch.zeros(3).double())
    # Class 1: 0.2 becomes 0.8, so 0.6 of the missing 0.8 is gained; the confidence of the last image was 1.
    close(average_gain(Evaluator(model), images, maps, 1), torch.tensor([0.75, 0, 0]).double())


def test_averages_of_a_coarse_map_are_those_of_a_naive_loop():
    model, images, maps = models.deep(), 0.2 * models.images(8), random_maps((8, 3, 4))
    drops, gains, increases = [], [], []
    for image, array in zip(images, maps.numpy(), strict=True):
        mask = oracles.resize(array, image.shape[1:])
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        whole = model(image[None])[0].softmax(0)
        seen = model((image * torch.from_numpy(mask))[None])[0].softmax(0)
        y, o = (float(p[whole.argmax()].detach()) for p in (whole, seen))
        drops.append(max(0.0, y - o) / y)
        gains.append(max(0.0, o - y) / (1 - y))
        increases.append(float(o > y))
    for metric, expected in zip(AVERAGES, (drops, increases, gains), strict=True):
        close(metric(Evaluator(model), images, maps), torch.tensor(expected, dtype=torch.float64))


def test_averages_agree_with_pytorch_grad_cam():
    theirs = import_peer("pytorch_grad_cam.metrics.cam_mult_image")
    target = import_peer("pytorch_grad_cam.utils.model_targets").ClassifierOutputSoftmaxTarget
    model, images = models.deep(dtype=torch.float32), models.images(8, dtype=torch.float32)
    maps = random_maps((8, 6, 5)).float()
    maps = (maps - maps.amin((1, 2), keepdim=True)) / (maps.amax((1, 2)) - maps.amin((1, 2))).view(-1, 1, 1)
    targets = [target(2)] * 8
    arguments = images, maps.unsqueeze(1).numpy(), targets, model
    ours = average_drop(Evaluator(model), images, maps, 2) * model(images).softmax(1)[:, 2].detach()
    torch.testing.assert_close(ours, torch.from_numpy(theirs.DropInConfidence()(*arguments)))
    increase = average_increase(Evaluator(model), images, maps, 2)
    assert increase.tolist() == theirs.IncreaseInConfidence()(*arguments).tolist()
    assert set(increase.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("metric", ON_MAPS)
def test_a_map_without_contrast_gives_finite_values(metric, value):
    options = {"steps": 5} if metric in CURVES else {}
    result = metric(Evaluator(models.deep()), models.images(), torch.full((3, 2, 2), value), **options)
    for tensor in [result] if isinstance(result, torch.Tensor) else result:
        assert tensor.isfinite().all()


def test_a_constant_map_leaves_nothing_of_the_image():
    model, images = models.deep(), models.images()
    before, after = (model(x).softmax(1)[:, 2].detach() for x in (images, torch.zeros_like(images)))
    close(average_drop(Evaluator(model), images, torch.ones(3, 2, 2), 2), (1 - after / before).clamp_min(0))


# Infidelity


def contributions(weights, images):
    """What each pixel adds to the logit of a linear model, over its channel's mean."""
    return (weights * (images - images.mean((2, 3), keepdim=True))).sum(1)


def test_the_contributions_of_a_linear_model_have_no_infidelity():
    weights, images = random_images((3, 6, 5), 1), random_images((4, 3, 6, 5))
    model, maps = linear(weights), contributions(weights, images)
    for normalize, scale in ((False, 1.0), (True, 1.0), (True, -7.0)):
        found = infidelity(Evaluator(model, score=scores.logit), images, scale * maps, 0, normalize=normalize)
        close(found, torch.zeros(4).double())
    assert (infidelity(Evaluator(model, score=scores.logit), images, 7 * maps, 0, normalize=False) > 1).all()


def test_infidelity_is_that_of_a_naive_loop():
    model, images, maps, classes = models.deep(), models.images(), random_maps(), [0, 3, 1]
    found = infidelity(Evaluator(model), images, maps, classes, samples=6, normalize=False, seed=3)
    generator = torch.Generator().manual_seed(3)
    errors = np.zeros((6, 3))
    for sample in range(6):
        box, changed = remove_box(images, generator)
        for i, category in enumerate(classes):
            attributions = oracles.resize(maps[i].numpy(), (6, 5))
            guess = sum(attributions[s] * float(box[(i, 0, *s)]) for s in np.ndindex(6, 5))
            before, after = (
                float(oracles.difference(oracles.logsumexp)(model(x[i : i + 1])[0].detach(), category))
                for x in (images, changed)
            )
            errors[sample, i] = (guess - (before - after)) ** 2
    close(found, torch.from_numpy(errors.mean(0)))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_infidelity_agrees_with_captum(normalize, batch_size):
    captum = import_peer("captum.metrics")
    model, images, maps, classes = models.deep(), models.images(), random_maps((3, 6, 5)), torch.tensor([0, 3, 1])
    noise = 0.3 * random_images((7, *images.shape))
    drawn = iter(noise)

    def perturb(images, _generator):
        change = next(drawn)
        return change, images - change

    ours = infidelity(
        Evaluator(model, score=scores.probability, batch_size=batch_size),
        *(images, maps, classes),
        perturb=perturb,
        samples=7,
        normalize=normalize,
    )
    theirs = captum.infidelity(
        lambda x: model(x).softmax(1),
        lambda repeated: (noise.transpose(0, 1).flatten(0, 1), repeated - noise.transpose(0, 1).flatten(0, 1)),
        images,
        maps.unsqueeze(1).expand_as(images),
        target=classes,
        n_perturb_samples=7,
        normalize=normalize,
    )
    close(ours, theirs)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_normalised_infidelity_knows_no_unit_and_is_never_worse_than_a_map_of_zeros(seed, scale):
    model, images, maps = models.deep(), models.images(), random_maps(seed=seed)
    found = infidelity(Evaluator(model), images, maps, samples=8)
    torch.testing.assert_close(infidelity(Evaluator(model), images, scale * maps, samples=8), found)
    nothing = infidelity(Evaluator(model), images, torch.zeros(3, 2, 2), samples=8)
    close(nothing, infidelity(Evaluator(model), images, torch.zeros(3, 2, 2), samples=8, normalize=False))
    assert (found <= nothing + 1e-12).all()


def test_a_box_has_the_share_of_each_side_and_the_mean_of_the_channel():
    images, generator = random_images((2, 3, 8, 12)), torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(600):
        box, changed = remove_box(images, generator)
        rows, columns = box[0, 0].any(1), box[0, 0].any(0)
        assert box.shape == (2, 1, 8, 12)
        assert box[0].equal(box[1])
        assert (int(rows.sum()), int(columns.sum()), float(box[0].sum())) == (2, 3, 6.0)
        corners.add((int(rows.int().argmax()), int(columns.int().argmax())))
        close(changed, torch.where(box > 0, images.mean((2, 3), keepdim=True), images))
    assert corners == set(itertools.product(range(7), range(10)))  # every place is drawn, none beyond the edge
    assert remove_box(images, generator, share=1.0)[0].all()


# Max-sensitivity


class _Fixed:
    """An explainer whose map is a function of the image."""

    def __init__(self, function, model=None):
        self.model, self.function = model or models.pooled(), function

    def explain(self, images, classes=None):
        classes = torch.zeros(len(images), dtype=torch.long) if classes is None else classes
        return Explanation(self.model(images).detach(), classes, self.function(images))


@pytest.mark.parametrize("batch_size", [2, 64])
def test_max_sensitivity_agrees_with_captum(batch_size):
    captum = import_peer("captum.metrics")
    model, images, classes = models.deep(activation=nn.ReLU), models.images(), torch.tensor([0, 3, 1])
    cam = LayerCAM(model, "relu", rectify=False)
    ours = max_sensitivity(cam, images, classes, radius=0.1, samples=6, seed=2, batch_size=batch_size)
    generator = torch.Generator().manual_seed(2)
    noise = [torch.rand(images.shape[1:], generator=generator, dtype=torch.float64) for _ in range(6)]
    noise = 0.1 * (2 * torch.stack(noise) - 1)

    def maps(x, target):  # where Captum gives a tuple, it wants one back
        return (cam.explain(*x, target).maps,) if isinstance(x, tuple) else cam.explain(x, target).maps

    theirs = captum.sensitivity_max(
        maps, images, lambda repeated: repeated + noise.repeat(3, 1, 1, 1), n_perturb_samples=6, target=classes
    )
    close(ours, theirs)
    assert (ours > 0).all()


def test_max_sensitivity_by_hand():
    images = models.images()
    constant = _Fixed(lambda x: torch.ones(len(x), 2, 2).double())
    assert max_sensitivity(constant, images).tolist() == [0, 0, 0]
    # A map of 2 x: the change is at most 2 r in each of 90 places, and comes close to its root mean square.
    double = _Fixed(lambda x: 2 * x.flatten(1))
    found = max_sensitivity(double, images, radius=0.5, samples=20) * images.flatten(1).norm(dim=1)
    assert (found < 0.5 * math.sqrt(90)).all()
    assert (found > 0.5 * math.sqrt(90 / 3)).all()
    assert max_sensitivity(double, images, radius=0.0).tolist() == [0, 0, 0]
    # A map that is 0 for the image itself: the norm of the change, undivided.
    zero = _Fixed(lambda x: x.flatten(1) - images.flatten(1)[: len(x)])
    found = max_sensitivity(zero, images, radius=0.5, samples=1)
    noise = 0.5 * (2 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    close(found, noise.norm().expand(3))


def test_neighbours_are_explained_for_the_class_of_the_image():
    asked = []

    class Asking(_Fixed):
        def explain(self, images, classes=None):
            asked.append(None if classes is None else classes.tolist())
            return super().explain(images, torch.tensor([4, 2]) if classes is None else classes)

    max_sensitivity(Asking(lambda x: x.mean(1)), models.images(2), samples=2)
    assert asked == [None, [4, 2], [4, 2]]


# What holds for all of them


def busy():
    """A model with everything that a call in training mode would change or draw."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("metric", ON_MAPS)
def test_the_model_and_the_global_generator_are_left_alone(metric, training):
    model, images, maps = busy().train(training), models.images(), random_maps()
    options = {"steps": 5} if metric in CURVES else {}
    with untouched(model):
        found = metric(Evaluator(model), images, maps, **options)
    expected = metric(Evaluator(model.eval()), images, maps, **options)
    for a, b in zip(leaves(found, 3), leaves(expected, 3), strict=True):
        close(a, b)
        assert not a.requires_grad


@pytest.mark.parametrize("training", [False, True])
def test_max_sensitivity_leaves_the_model_alone(training):
    model = busy().train(training)
    with untouched(model):
        found = max_sensitivity(DiffGradCAM(model, model[2], rectify=False), models.images())
    close(found, max_sensitivity(DiffGradCAM(model.eval(), "2", rectify=False), models.images()))


def test_seeds_make_a_difference_and_repeat():
    model, images, maps = models.deep(), models.images(), random_maps()
    for metric in (
        lambda seed: road(Evaluator(model), images, maps, noise=0.1, seed=seed).combined,
        lambda seed: infidelity(Evaluator(model), images, maps, samples=3, seed=seed),
        lambda seed: max_sensitivity(GradCAM(model, "relu", rectify=False), images, seed=seed),
    ):
        assert metric(1).equal(metric(1))
        assert not metric(1).equal(metric(2))


def test_other_outputs_and_half_precision():
    model, images, maps = models.deep(), models.images(), random_maps()

    class Wrapped(nn.Module):
        def forward(self, x):
            return {"out": model(x)}

    found = deletion(Evaluator(Wrapped().eval(), output=lambda o: o["out"]), images, maps, steps=5).auc
    close(found, deletion(Evaluator(model), images, maps, steps=5).auc)
    half = deletion(Evaluator(models.deep(dtype=torch.bfloat16)), images.bfloat16(), maps, 0, steps=5)
    assert half.auc.dtype == torch.float32
    torch.testing.assert_close(
        half.auc.double(), deletion(Evaluator(model), images, maps, 0, steps=5).auc, rtol=0.1, atol=0.1
    )


BAD_INPUTS = {
    "images that are no tensor": ({"images": [1.0]}, TypeError, "images is list; expected a tensor"),
    "integer images": ({"images": torch.ones(3, 3, 6, 5, dtype=torch.uint8)}, ValueError, "images are torch"),
    "no images": ({"images": torch.ones(0, 3, 6, 5)}, ValueError, "expected at least one image"),
    "a single image": ({"images": torch.ones(6, 5)}, ValueError, r"of shape \(6, 5\); expected at least one image"),
    "a model that is none": ({"model": len}, TypeError, "model is builtin_function_or_method; expected a torch.nn"),
    "too few maps": ({"maps": torch.ones(2, 2, 2)}, ValueError, r"maps have shape \(2, 2, 2\) for images of shape"),
    "maps with channels": ({"maps": torch.ones(3, 1, 2, 2)}, ValueError, "expected one map for each image with 2 spat"),
    "a map of NaN": ({"maps": torch.full((3, 2, 2), math.nan)}, ValueError, "the map of image 0 is NaN or infinite"),
    "several classes": ({"classes": torch.ones(3, 2).long()}, ValueError, r"classes have shape \(3, 2\) for 3 images"),
    "all classes": ({"classes": "all"}, TypeError, "classes are 'all'; expected None, one class for all images"),
    "a class out of range": ({"classes": 5}, ValueError, "class 5 is out of range; the model has classes 0 to 4"),
    "a class that is no integer": ({"classes": 0.5}, TypeError, "classes are torch.float32; expected integers"),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size is 0; expected an integer of at least 1"),
    "a bad output": ({"output": lambda _: 3}, TypeError, "output= returned int; expected the tensor of logits"),
    "a bad score": ({"score": lambda z, _: z}, ValueError, r"the score returned shape \(3, 5\) for logits of shape"),
    "infinite logits": ({"output": lambda z: z / 0}, ValueError, "the output of image 0 is NaN or infinite"),
}


@pytest.mark.parametrize("metric", ON_MAPS)
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(metric, case):
    wrong, kind, message = BAD_INPUTS[case]
    given = {"images": models.images(), "maps": random_maps(), "classes": None} | wrong
    of_evaluator = {name: given.pop(name) for name in ("model", "score", "output", "batch_size") if name in given}
    if metric in AVERAGES and "score" in of_evaluator:
        given["confidence"] = of_evaluator.pop("score")
    with pytest.raises(kind, match=message):
        metric(Evaluator(**{"model": models.deep(), **of_evaluator}), **given)


def test_a_model_is_not_an_evaluator():
    model, images, maps = models.deep(), models.images(), random_maps()
    for metric in ON_MAPS:
        with pytest.raises(TypeError, match=r"evaluator is the model Sequential; .* give Evaluator\(model\)"):
            metric(model, images, maps)
    with pytest.raises(TypeError, match="evaluator is 'resnet'; expected an Evaluator"):
        deletion("resnet", images, maps)


def test_an_evaluator_checks_its_options():
    with pytest.raises(TypeError, match="score is 'logit'; expected a function"):
        Evaluator(models.deep(), score="logit")
    with pytest.raises(TypeError, match="output is None; expected a function"):
        Evaluator(models.deep(), output=None)
    with pytest.raises(ValueError, match="batch_size is 0; expected an integer of at least 1"):
        Evaluator(models.deep(), batch_size=0)


def test_an_evaluator_reads_logits_and_scores_in_evaluation_mode():
    model, images = busy().train(), models.images()
    evaluator = Evaluator(model, score=scores.logit, batch_size=2)
    with untouched(model):
        logits, found = evaluator.logits(images), evaluator.scores(images, torch.tensor([2, 0, 1]))
    close(logits, model.eval()(images).detach())
    close(found, logits[torch.arange(3), torch.tensor([2, 0, 1])])
    assert repr(evaluator).endswith("batch_size=2)")


def test_bad_options():
    model, images, maps = models.deep(), models.images(), random_maps()
    for steps in (0, 31):
        with pytest.raises(ValueError, match=f"steps is {steps}; expected from 1 to the number of pixels, 30"):
            deletion(Evaluator(model), images, maps, steps=steps)
    with pytest.raises(ValueError, match=r"fill is 'grey'; expected one of \['blur', 'mean'\], a tensor, or a func"):
        deletion(Evaluator(model), images, maps, steps=5, fill="grey")
    with pytest.raises(ValueError, match=r"fill has shape \(3,\), which does not broadcast .* a colour is \(C, 1, 1\)"):
        insertion(Evaluator(model), images, maps, steps=5, fill=torch.ones(3))
    for percentiles in ((), (0,), (20, 100)):
        with pytest.raises(ValueError, match=r"percentiles are \(.*\); expected at least one, each between 0 and 100"):
            road(Evaluator(model), images, maps, percentiles=percentiles)
    with pytest.raises(ValueError, match=r"expected \(B, C, H, W\) and bool \(B, H, W\)"):
        road(Evaluator(models.deep(dims=1)), models.images(dims=1), torch.ones(3, 4))
    with pytest.raises(ValueError, match="missing is torch"):
        noisy_linear_imputation(images, torch.ones(3, 6, 5))
    with pytest.raises(ValueError, match="an image has no pixel that is not missing"):
        noisy_linear_imputation(images, torch.ones(3, 6, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="noise is -1; expected a standard deviation"):
        noisy_linear_imputation(images, torch.zeros(3, 6, 5, dtype=torch.bool), noise=-1)
    with pytest.raises(ValueError, match=r"score of an image is .*; a share of the confidence needs a score in \[0, 1"):
        average_drop(Evaluator(model), images, maps, confidence=scores.logit)
    with pytest.raises(ValueError, match="samples is 0; expected an integer of at least 1"):
        infidelity(Evaluator(model), images, maps, samples=0)
    with pytest.raises(ValueError, match=r"perturb returned shapes \(3, 6, 5\) and \(3, 3, 6, 5\) for images"):
        infidelity(Evaluator(model), images, maps, perturb=lambda x, _: (x[:, 0], x))
    with pytest.raises(ValueError, match="share is 0; expected a share of the image's side"):
        remove_box(images, torch.Generator(), share=0)


def test_bad_options_of_max_sensitivity():
    cam, images = GradCAM(models.deep(), "relu"), models.images()
    with pytest.raises(ValueError, match="samples is 0; expected an integer of at least 1"):
        max_sensitivity(cam, images, samples=0)
    with pytest.raises(ValueError, match="radius is -1; expected the largest change of a pixel"):
        max_sensitivity(cam, images, radius=-1)
    with pytest.raises(ValueError, match=r"classes have shape \(2,\) for 3 images"):
        max_sensitivity(cam, images, [0, 1])
    with pytest.raises(TypeError, match="images is ndarray; expected a tensor"):
        max_sensitivity(cam, images.numpy())


def test_scipy_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"noisy linear imputation needs scipy.*pip install scipy$"):
        road(Evaluator(models.deep()), models.images(), random_maps())


def test_progress_bars_show_what_runs(capsys):
    model, images, maps = models.deep(), models.images(), random_maps()
    deletion(Evaluator(model), images, maps, steps=5, progress=False)
    assert capsys.readouterr().err == ""
    deletion(Evaluator(model), images, maps, steps=5)
    insertion(Evaluator(model), images, maps, steps=5)
    road(Evaluator(model), images, maps)
    infidelity(Evaluator(model), images, maps, samples=2)
    max_sensitivity(GradCAM(model, "relu"), images, samples=2)
    shown = capsys.readouterr().err
    for name in ("deletion", "insertion", "road", "infidelity", "max-sensitivity"):
        assert f"{name}: 100%" in shown


# The interval of the mean of any of them


def test_the_interval_of_a_mean_is_that_of_the_comparison_with_zero():
    values = random_maps((40,)).tolist()
    compared = paired_comparison(values, [0.0] * 40, resamples=200, seed=1)
    assert mean_interval(values, resamples=200, seed=1) == (compared.low, compared.high)
    spread = np.std(values) / math.sqrt(40)
    low, high = mean_interval(values)
    assert low == pytest.approx(np.mean(values) - 1.96 * spread, abs=spread / 4)
    assert high == pytest.approx(np.mean(values) + 1.96 * spread, abs=spread / 4)


def test_an_interval_needs_two_images():
    with pytest.raises(ValueError, match="got 1 value; expected one per image, at least two"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="values hold NaN or infinite values"):
        mean_interval([1.0, math.nan])
