"""ARCC, compactness, class sensitivity and the response to noise: against the peers, loops, and what must hold."""

import itertools
import math
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from diffgradcam import CAM, AugSmooth, DiffGradCAM, EigenCAM, GradCAM, LayerCAM, scores
from diffgradcam._core.explanation import Explanation
from diffgradcam.metrics import (
    Evaluator,
    NoiseResponse,
    arcc,
    class_sensitivity,
    compactness,
    noise_response,
    pearson,
    rank_biased_overlap,
    road,
)
from tests import models
from tests.conftest import import_peer
from tests.untouched import untouched

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
CLASSES = [0, 3, 1]


class Fixed:
    """An explainer of maps that are given, in the order in which it is asked."""

    def __init__(self, *explanations):
        self.model = nn.Identity().eval()
        self._explanations = iter(explanations)

    def explain(self, images, classes=None):  # noqa: ARG002
        return next(self._explanations)


# --- ARCC


def test_arcc_agrees_with_pytorch_grad_cam(monkeypatch):
    # Its docstring says geometric; its code is harmonic. Maps without equal values: there both remove the same pixels.
    theirs = import_peer("pytorch_grad_cam.metrics.arcc")
    roads = import_peer("pytorch_grad_cam.metrics.road")
    peer = import_peer("pytorch_grad_cam")
    target = import_peer("pytorch_grad_cam.utils.model_targets").ClassifierOutputSoftmaxTarget
    monkeypatch.setattr(roads.NoisyLinearImputer.__init__, "__defaults__", (0.0, roads.neighbors_weights))
    model, images = models.pooled(dtype=torch.float32), models.images(dtype=torch.float32)
    model.head.weight.data.abs_()  # so that no map is cut to 0 anywhere
    model.relu = nn.Softplus()
    targets = [target(c) for c in CLASSES]
    peer_cam = peer.GradCAM(model, [model.relu])
    maps = peer_cam(images, targets=[peer.utils.model_targets.ClassifierOutputTarget(c) for c in CLASSES])
    plain = [peer.utils.model_targets.ClassifierOutputTarget(c) for c in CLASSES]
    ours = arcc(Evaluator(model), GradCAM(model, "relu"), images, CLASSES, noise=0.0, progress=False)
    complexity = theirs.Complexity()(maps)
    coherency = theirs.Coherency()(images, maps, plain, model, peer_cam)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it hands tensors to NumPy in a way that goes away
        combined = roads.ROADCombined([20, 40, 60, 80])(images, maps, targets, model)
        metric = theirs.ARCC(lambda input_tensor, targets: peer_cam(input_tensor, plain))  # noqa: ARG005
        expected = metric(images, maps, targets, model)
    assert (combined > 0).any()
    assert 0.01 < complexity.min() < complexity.max() < 0.99
    for found, value in zip(ours, (coherency, complexity, (2 * combined).clip(0, 1), expected), strict=True):
        torch.testing.assert_close(found, torch.from_numpy(value).float(), rtol=1e-4, atol=1e-6)
    parts = np.stack([coherency, 1 - complexity, (2 * combined).clip(1e-8, 1)])
    assert np.abs(expected - parts.prod(0) ** (1 / 3)).max() > 1e-2  # not the geometric mean


def test_arcc_is_made_of_its_parts():
    model, images = models.deep(), models.images()
    cam, evaluator = LayerCAM(model, "act"), Evaluator(model, score=scores.logit, batch_size=2)
    found = arcc(evaluator, cam, images, CLASSES, percentiles=(30, 70), seed=3, progress=False)
    heat = torch.from_numpy(cam(images, CLASSES)).double()
    again = torch.from_numpy(cam(images * heat.unsqueeze(1), CLASSES)).double()
    torch.testing.assert_close(found.coherency, (pearson(again, heat) + 1) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.complexity, heat.flatten(1).mean(1), rtol=1e-5, atol=1e-6)
    of_probability = Evaluator(model, score=scores.probability)
    changes = road(of_probability, images, heat, CLASSES, percentiles=(30, 70), seed=3, progress=False)
    torch.testing.assert_close(found.road, (2 * changes.combined).clamp(0, 1), rtol=1e-5, atol=1e-6)
    for a, b, c, mean in zip(found.coherency, 1 - found.complexity, found.road, found.arcc, strict=True):
        expected = 0.0 if min(a, b, c) == 0 else 3 / (1 / a + 1 / b + 1 / c)
        assert float(mean) == pytest.approx(float(expected))


def test_a_map_that_one_criterion_condemns_is_worth_nothing():
    model, images = models.deep(), models.images()
    constant = Explanation(model(images), torch.tensor(CLASSES), torch.ones(3, 2, 2))
    found = arcc(Evaluator(model), Fixed(constant, constant), images, CLASSES, progress=False)
    assert found.complexity.tolist() == [0, 0, 0]  # it shows nothing
    assert found.coherency.tolist() == [0.5, 0.5, 0.5]
    assert found.arcc.isfinite().all()
    assert (found.arcc[found.road == 0] == 0).all()


# --- MST-C


def naive_compactness(values, share, neighbours):
    """Prim's tree of the graph of nearest neighbours, and the hull by its half planes, in loops."""
    values = np.abs(values)
    height, width = values.shape
    ordered = sorted(values.flatten())
    position = (1 - share) * (len(ordered) - 1)
    low = math.floor(position)
    cutoff = ordered[low] + (position - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
    points = [(y, x) for y in range(height) for x in range(width) if values[y, x] >= cutoff and values[y, x] > 0]
    edges = set()
    for i, p in enumerate(points):
        nearest = sorted((math.dist(p, q), j) for j, q in enumerate(points) if j != i)[:neighbours]
        edges |= {(length, *sorted((i, j))) for length, j in nearest}
    groups, total = {i: {i} for i in range(len(points))}, 0.0
    for length, i, j in sorted(edges):
        if groups[i] is not groups[j]:
            total += length
            merged = groups[i] | groups[j]
            for k in merged:
                groups[k] = merged
    sides = []
    for p, q in itertools.permutations(points, 2):
        turns = [(q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]) for r in points]
        if min(turns) >= 0:
            between = [r for r, turn in zip(points, turns, strict=True) if turn == 0 and r not in (p, q)]
            if all(math.dist(p, r) < math.dist(p, q) and math.dist(q, r) < math.dist(p, q) for r in between):
                sides.append((p, q))
    area = abs(sum(p[0] * q[1] - p[1] * q[0] for p, q in sides)) / 2
    diagonal = math.hypot(height, width)
    return 100 * diagonal / (math.sqrt(area) if area else diagonal) * len(points) / total


@pytest.mark.parametrize("neighbours", [20, 100])  # with few, which of several equally far ones is chosen shows
@pytest.mark.parametrize("size", [(7, 7), (9, 12)])
def test_compactness_equals_loops(size, neighbours):
    maps = torch.randn(4, *size, dtype=torch.float64)
    expected = [naive_compactness(one.numpy(), 0.2, neighbours) for one in maps]
    close(compactness(maps, neighbours=neighbours), torch.tensor(expected, dtype=torch.float64))


def test_compactness_knows_where_cells_are_and_entropy_does_not():
    together, apart = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)
    together[0, 4:8, 4:8] = 1.0
    apart[0, ::3, ::3] = 1.0
    assert together.sum() == apart.sum()
    assert float(compactness(together)) > 3 * float(compactness(apart))
    # 16 pixels: a hull of side 3 and a tree of 15 steps; three times as large apart.
    expected = 100 * math.hypot(12, 12) / 3 * 16 / 15
    assert float(compactness(together)) == pytest.approx(expected, rel=1e-6)
    assert float(compactness(apart)) == pytest.approx(expected / 9, rel=1e-6)


def test_compactness_of_a_sparse_map_is_that_of_what_it_shows():
    # Quantus takes every pixel that is at least the 80th percentile: all of them where that is 0.
    maps = torch.zeros(3, 10, 10)
    maps[0, 2:4, 2:4] = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    maps[1, 5, 1:9] = 1.0  # a line
    maps[2, 5, 5] = 1.0
    square, line, point = compactness(maps).tolist()
    assert square == pytest.approx(100 * math.hypot(10, 10) * 4 / 3, rel=1e-6)
    assert line == pytest.approx(100 * 8 / 7, rel=1e-6)
    assert math.isnan(point)
    assert compactness(torch.zeros(2, 4, 4)).isnan().all()
    close(compactness(1e-3 * maps[:2].double()), compactness(maps[:2].double()))


def test_groups_that_no_neighbour_joins_count_by_the_hull_alone():
    maps = torch.zeros(1, 20, 20)
    maps[0, :3, :3] = maps[0, 17:, 17:] = 1.0
    joined, parted = (float(compactness(maps, neighbours=n)) for n in (20, 8))
    way = math.dist((2, 2), (17, 17))
    assert joined / parted == pytest.approx(16 / (16 + way), rel=1e-6)


# --- the class-sensitivity test of CASE


def test_class_sensitivity_counts_the_pixels_that_two_maps_share():
    images = torch.rand(3, 1, 4, 5)
    maps = torch.zeros(3, 2, 4, 5)
    first = torch.arange(20.0).view(4, 5)
    maps[:, 0] = first
    maps[0, 1] = first  # the same four
    maps[1, 1] = -first  # none
    maps[2, 1] = first.roll(2)  # the upper two of four are the lowest now
    explanation = Explanation(torch.rand(3, 2), torch.zeros(3, 2), maps)
    found = class_sensitivity(Fixed(explanation), images, share=0.2)
    assert found.agreement.tolist() == [1.0, 0.0, 0.5]


def test_class_sensitivity_equals_loops_and_its_test_is_scipys():
    stats = import_peer("scipy.stats")
    model, images = models.deep(), models.images(9)
    cam = GradCAM(model, "relu")
    found = class_sensitivity(cam, images, share=0.15, threshold=0.7, batch_size=4)
    best = model(images).topk(2).indices
    maps = [torch.from_numpy(cam(images, best[:, i].tolist())) for i in (0, 1)]
    for agreement, one, two in zip(found.agreement.tolist(), *maps, strict=True):
        tops = [sorted(range(30), key=lambda s, m=m: (-round(float(m.flatten()[s]), 6), s))[:4] for m in (one, two)]
        assert agreement == len(set(tops[0]) & set(tops[1])) / 4
    assert len(set(found.agreement.tolist())) > 1
    expected = stats.wilcoxon(found.agreement.numpy() - 0.7, alternative="less").pvalue
    assert found.p_value == pytest.approx(float(expected))


def test_a_method_without_a_class_is_not_sensitive_to_it():
    model, images = models.deep(), models.images(6)
    found = class_sensitivity(EigenCAM(model, "relu"), images)
    assert found.agreement.tolist() == [1.0] * 6
    assert found.p_value > 0.95
    assert class_sensitivity(EigenCAM(model, "relu"), images, threshold=1.0).p_value == 1.0
    # A pooled linear head of two classes with opposite weights: signed maps are each other's negative.
    model = models.pooled(classes=2)
    model.head.weight.data[1] = -model.head.weight.data[0]
    opposite = class_sensitivity(CAM(model, "relu", rectify=False), images, share=0.5)
    assert opposite.agreement.tolist() == [0.0] * 6
    assert opposite.p_value == 1 / 2**6  # every one of six differences has the same sign


def test_class_sensitivity_takes_wrappers_and_a_part_of_the_images_at_a_time():
    model, images = models.deep(), models.images(5)
    cam = AugSmooth(DiffGradCAM(model, "relu"))
    close(class_sensitivity(cam, images, batch_size=2).agreement, class_sensitivity(cam, images).agreement)


# --- noise


def test_noise_response_separates_copies_that_keep_the_decision_from_those_that_change_it():
    logits, same, other = torch.rand(2, 3), torch.tensor([0, 1]), torch.tensor([2, 1])
    maps = [torch.full((2, 2, 2), value) for value in (1.0, 2.0, 5.0, 3.0)]
    cam = Fixed(*(Explanation(logits, c, m) for c, m in zip((same, same, other, other), maps, strict=True)))
    found = noise_response(
        cam,
        torch.rand(2, 1, 2, 2),
        samples=3,
        similarity=lambda a, b: 1 / (a - b).flatten(1).amax(1).add(1),
        progress=False,
    )
    # Similarities 1/2, 1/5, 1/3; the first image changes its class in the last two copies.
    torch.testing.assert_close(found.consistency, torch.tensor([1 / 2, (1 / 2 + 1 / 5 + 1 / 3) / 3]))
    torch.testing.assert_close(found.responsiveness, torch.tensor([1 - (1 / 5 + 1 / 3) / 2, math.nan]), equal_nan=True)
    torch.testing.assert_close(found.changed, torch.tensor([2 / 3, 0.0]))
    expected = float(found.consistency.mean()) * float(found.responsiveness[0])
    assert found.robustness == pytest.approx(expected)


def test_noise_response_equals_loops():
    model, images = models.deep(), models.images(4)
    cam = LayerCAM(model, "act")
    found = noise_response(cam, images, std=0.4, samples=6, seed=5, batch_size=3, progress=False)
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(3, 6, 5, generator=generator, dtype=torch.float64) for _ in range(6)]
    for number, image in enumerate(images):
        _, decision, reference = cam.explain(image[None])
        kept, moved = [], []
        for noise in drawn:
            _, index, maps = cam.explain(image[None] + 0.4 * (image.max() - image.min()) * noise)
            overlap = float(rank_biased_overlap(maps, reference))
            (kept if index == decision else moved).append(overlap)
        assert float(found.changed[number]) == len(moved) / 6
        for values, mean in ((kept, found.consistency), ([1 - v for v in moved], found.responsiveness)):
            expected = sum(values) / len(values) if values else math.nan
            assert float(mean[number]) == pytest.approx(expected, nan_ok=True)
    assert 0 < float(found.changed.mean()) < 1


def test_a_map_that_never_moves_is_consistent_and_not_responsive():
    model, images = models.deep(), models.images(4)

    class Constant:
        def __init__(self):
            self.model = model

        def explain(self, inputs, classes=None):  # noqa: ARG002
            logits = model(inputs)
            return Explanation(logits, logits.argmax(1), torch.arange(12.0).view(3, 4).expand(len(inputs), -1, -1))

    found = noise_response(Constant(), images, std=1.0, progress=False)
    assert found.consistency.nanmean() == 1
    assert found.responsiveness.nanmean() == 0
    assert found.robustness == 0
    assert math.isnan(NoiseResponse(torch.ones(1), torch.tensor([math.nan]), torch.zeros(1)).robustness)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_rank_biased_overlap_equals_its_sum(p):
    first, second = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    found = rank_biased_overlap(first, second, p)
    for overlap, a, b in zip(found.tolist(), first.flatten(1), second.flatten(1), strict=True):
        one, two = a.argsort(descending=True).tolist(), b.argsort(descending=True).tolist()
        total = sum(p ** (d - 1) * len(set(one[:d]) & set(two[:d])) / d for d in range(1, 13))
        assert overlap == pytest.approx((1 - p) / (1 - p**12) * total)
    close(rank_biased_overlap(first, 3 * first + 1, p), torch.ones(2, dtype=torch.float64))
    assert (rank_biased_overlap(first, -first, p) < found.min()).all()


# --- what goes wrong


def measures(model):
    """Each measure of a CAM, as a function of the CAM and the images."""
    return {
        "arcc": lambda cam, images: arcc(Evaluator(model), cam, images, 1, progress=False).arcc,
        "class_sensitivity": lambda cam, images: class_sensitivity(cam, images).agreement,
        "noise_response": lambda cam, images: noise_response(cam, images, samples=2, progress=False).consistency,
    }


@pytest.mark.parametrize("name", measures(None))
def test_the_model_is_left_as_it_is_and_measured_in_evaluation_mode(name):
    model, images = models.densenet(), models.images()
    expected = measures(model)[name](GradCAM(model, "features"), images)
    model.train()
    with untouched(model):
        torch.testing.assert_close(measures(model)[name](GradCAM(model, "features"), images), expected, equal_nan=True)
    with untouched(model), pytest.raises(TypeError, match=re.escape("cam is Sequential; expected a CAM")):
        measures(model)[name](models.pooled(), images)
    with untouched(model), pytest.raises(ValueError, match="expected at least one image"):
        measures(model)[name](GradCAM(model, "features"), images[:0])


def test_wrong_options_are_named():
    model, images, maps = models.pooled(), models.images(), torch.rand(2, 4, 4)
    cam = GradCAM(model, "relu")
    with pytest.raises(TypeError, match=r"evaluator is the model Sequential; expected an Evaluator"):
        arcc(model, cam, images)
    with pytest.raises(ValueError, match=r"percentiles are \(\); expected at least one"):
        arcc(Evaluator(model), cam, images, percentiles=(), progress=False)
    with pytest.raises(ValueError, match=r"maps have shape \(4, 4\); expected \(B, h, w\)"):
        compactness(maps[0])
    with pytest.raises(ValueError, match=r"share is 1\.0; expected a share of the pixels, above 0 and below 1"):
        compactness(maps, share=1.0)
    with pytest.raises(ValueError, match="neighbours is 0; expected an integer of at least 1"):
        compactness(maps, neighbours=0)
    with pytest.raises(ValueError, match="the map of image 0 is NaN"):
        compactness(maps / 0 * 0)
    with pytest.raises(ValueError, match="share is 0; expected a share of the pixels, above 0 and up to 1"):
        class_sensitivity(cam, images, share=0)
    with pytest.raises(ValueError, match="threshold is 50; expected a share, from 0 to 1"):
        class_sensitivity(cam, images, threshold=50)
    with pytest.raises(ValueError, match="classes='top2', but the model has 1 classes"):
        class_sensitivity(GradCAM(models.pooled(classes=1), "relu"), images)
    with pytest.raises(ValueError, match="samples is 0; expected an integer of at least 1"):
        noise_response(cam, images, samples=0)
    with pytest.raises(ValueError, match="std is -1; expected a standard deviation"):
        noise_response(cam, images, std=-1)
    with pytest.raises(ValueError, match=r"similarity returned shape \(\) for 3 maps"):
        noise_response(cam, images, similarity=lambda a, b: (a - b).sum(), samples=1, progress=False)
    with pytest.raises(ValueError, match=r"p is 1\.0; expected a number between 0 and 1"):
        rank_biased_overlap(maps, maps, p=1.0)
