import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from diffgradcam.losses import (
    CamalLoss,
    CamEntropyLoss,
    ContrastSalienceLoss,
    CyborgLoss,
    DifferenceSalienceLoss,
    DivergenceSalienceLoss,
    SaliencyGuidedLoss,
    cam_entropy,
    cam_entropy_loss,
    camal_loss,
    contrast_salience_loss,
    cyborg_loss,
    difference_salience_loss,
    divergence_salience_loss,
    true_and_false_classes,
)
from tests.pretend_device import DEVICE, pretend_device


def cyborg_of_both(true, false, human, **options):
    """CYBORG in the form of the two-class losses, so that one test covers all four."""
    return cyborg_loss(true, human, **options) + 0 * false.sum()


def divergence_of_weight(true, false, human, **options):
    return divergence_salience_loss(true, false, human, 0.7, **options)


TWO_CLASS = [difference_salience_loss, contrast_salience_loss, divergence_of_weight]
ALL = [cyborg_of_both, *TWO_CLASS]


def random_maps(seed=0, shape=(4, 3, 5)):
    generator = torch.Generator().manual_seed(seed)
    true, false = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return true, false, torch.rand(shape, generator=generator, dtype=torch.float64)


# Naive oracles: plain Python floats, one image at a time.


def naive_minmax(values, low=None, high=None):
    low, high = min(values) if low is None else low, max(values) if high is None else high
    return [0.0 if high == low else (v - low) / (high - low) for v in values]


def naive_mse(values, targets):
    return sum((v - t) ** 2 for v, t in zip(values, targets, strict=True)) / len(values)


def naive(loss, true, false, human, extremes=None):
    """One image's loss; ``extremes`` are the batch's, per kind of map."""
    extremes = extremes or {"true": (None, None), "false": (None, None), "difference": (None, None)}
    h = naive_minmax(human)
    t, f = naive_minmax(true, *extremes["true"]), naive_minmax(false, *extremes["false"])
    if loss is cyborg_of_both:
        return naive_mse(t, h)
    if loss is difference_salience_loss:
        difference = [a - b for a, b in zip(true, false, strict=True)]
        return naive_mse(naive_minmax(difference, *extremes["difference"]), h)
    if loss is contrast_salience_loss:
        return naive_mse(t, h) + naive_mse(f, [1 - v for v in h])
    dot = sum(w * a * b for w, a, b in zip(h, true, false, strict=True))
    norms = [math.sqrt(sum(w * a * a for w, a in zip(h, m, strict=True))) for m in (true, false)]
    return naive_mse(t, h) + 0.7 * max(dot / (norms[0] * norms[1]), 0.0)


def rows(maps):
    return [m.flatten().tolist() for m in maps]


@pytest.mark.parametrize("loss", ALL)
def test_value_of_each_image_is_that_of_a_naive_loop(loss):
    true, false, human = random_maps()
    expected = [naive(loss, *row) for row in zip(rows(true), rows(false), rows(human), strict=True)]
    torch.testing.assert_close(loss(true, false, human, reduction="none"), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("loss", ALL)
def test_batch_scope_scales_by_the_extremes_of_the_batch(loss):
    true, false, human = random_maps(1)
    extremes = {
        name: (maps.min().item(), maps.max().item())
        for name, maps in {"true": true, "false": false, "difference": true - false}.items()
    }
    expected = [naive(loss, *row, extremes) for row in zip(rows(true), rows(false), rows(human), strict=True)]
    values = loss(true, false, human, scope="batch", reduction="none")
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))
    assert not torch.allclose(values, loss(true, false, human, reduction="none"))


@pytest.mark.parametrize("loss", ALL)
def test_reductions(loss):
    true, false, human = random_maps()
    values = loss(true, false, human, reduction="none")
    assert values.shape == (4,)
    torch.testing.assert_close(loss(true, false, human), values.mean())
    torch.testing.assert_close(loss(true, false, human, reduction="sum"), values.sum())


@pytest.mark.parametrize("shape", [(2, 6), (2, 2, 3, 2)])
@pytest.mark.parametrize("loss", ALL)
def test_any_number_of_spatial_dimensions(loss, shape):
    true, false, human = random_maps(2, shape)
    expected = loss(*(m.reshape(2, 1, -1) for m in (true, false, human)), reduction="none")
    torch.testing.assert_close(loss(true, false, human, reduction="none"), expected)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("loss", ALL)
def test_gradcheck(loss, scope):
    true, false, human = random_maps(3, (2, 2, 3))
    mask = torch.tensor([True, False])
    true.requires_grad_(), false.requires_grad_()
    for options in ({}, {"mask": mask}):
        assert torch.autograd.gradcheck(lambda t, f, o=options: loss(t, f, human, scope=scope, **o), (true, false))


@pytest.mark.parametrize("log", [False, True])
def test_gradcheck_of_entropy(log):
    maps = random_maps(4, (3, 2, 3))[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: cam_entropy_loss(m, log=log), (maps,))


def test_difference_salience_by_hand():
    true = torch.tensor([[[4.0, 2.0], [0.0, 0.0]]])
    false = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])
    human = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # The difference 4, 0, -2, 0 becomes 1, 1/3, 0, 1/3.
    torch.testing.assert_close(difference_salience_loss(true, false, human), torch.tensor(2 / 9 / 4))


def test_contrast_salience_by_hand():
    true = torch.tensor([[[1.0, 0.0]]])
    human = torch.tensor([[[1.0, 0.0]]])
    assert contrast_salience_loss(true, -true, human).item() == 0
    assert contrast_salience_loss(true, true, human).item() == 1
    assert contrast_salience_loss(-true, true, human).item() == 2


def test_divergence_counts_agreement_only_where_people_look():
    true = torch.tensor([[[1.0, 0.0, 0.0, -1.0]]])
    human = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    error = cyborg_loss(true, human)
    agree, apart = torch.tensor([[[2.0, 0.0, 0.0, 9.0]]]), torch.tensor([[[-2.0, 0.0, 0.0, -9.0]]])
    torch.testing.assert_close(divergence_salience_loss(true, agree, human), error + 1)
    torch.testing.assert_close(divergence_salience_loss(true, agree, human, 0.25), error + 0.25)
    torch.testing.assert_close(divergence_salience_loss(true, apart, human), error)


@settings(max_examples=30, deadline=None)
@given(
    a=st.floats(0.01, 100),
    b=st.floats(-10, 10),
    seed=st.integers(0, 10_000),
    scope=st.sampled_from(["image", "batch"]),
)
def test_minmax_losses_ignore_a_positive_scale_and_a_shift(a, b, seed, scope):
    true, false, human = random_maps(seed)
    for loss in (cyborg_of_both, difference_salience_loss, contrast_salience_loss):
        before = loss(true, false, human, scope=scope)
        torch.testing.assert_close(loss(a * true + b, a * false - b, human, scope=scope), before)
    torch.testing.assert_close(cam_entropy(a * true + b), cam_entropy(true))
    # A cosine has a zero point: divergence ignores the scale of each map, but no shift of the false one.
    before = divergence_salience_loss(true, false, human, scope=scope)
    torch.testing.assert_close(divergence_salience_loss(a * true, 3 * false, human, scope=scope), before)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), a=st.floats(0.01, 100), b=st.floats(0, 10))
def test_human_maps_are_minmax_scaled(seed, a, b):
    true, false, human = random_maps(seed)
    for loss in ALL:
        torch.testing.assert_close(loss(true, false, a * human + b), loss(true, false, human))


@pytest.mark.parametrize("loss", ALL)
def test_finer_human_maps_are_averaged_onto_the_grid(loss):
    true, false, human = random_maps(5)
    finer = human.repeat_interleave(6, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(loss(true, false, finer), loss(true, false, human))


def test_a_thin_mark_does_not_fall_between_two_cells():
    human = torch.zeros(1, 224, 224)
    human[0, 1, 1] = 1  # linear interpolation to 7 x 7 reads four pixels around 15.5 only
    wanted = torch.zeros(1, 7, 7)
    wanted[0, 0, 0] = 1
    assert cyborg_loss(wanted, human).item() == 0


def test_coarser_human_maps_are_interpolated():
    true, _, human = random_maps(6)
    fine = F.interpolate(true[:, None], (6, 10), mode="bilinear")[:, 0]
    expected = F.interpolate(human[:, None], (6, 10), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(cyborg_loss(fine, human), cyborg_loss(fine, expected))


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("loss", ALL)
def test_masked_images_are_skipped_whatever_they_hold(loss, scope):
    true, false, human = random_maps()
    mask = torch.tensor([True, False, True, False])
    expected = loss(true[mask], false[mask], human[mask], scope=scope, reduction="none")
    human[1], human[3] = math.nan, -1
    true[1] = 1e9  # must not be the extreme of the batch either
    true.requires_grad_(), false.requires_grad_()
    values = loss(true, false, human, mask=mask, scope=scope, reduction="none")
    torch.testing.assert_close(values[mask], expected)
    assert values[~mask].tolist() == [0, 0]
    mean = loss(true, false, human, mask=mask, scope=scope)
    torch.testing.assert_close(mean, expected.mean())
    for value in (values.sum(), mean):
        gradients = torch.autograd.grad(value, (true, false), retain_graph=True)
        assert all(g.isfinite().all() and not g[~mask].any() for g in gradients)
        assert gradients[0][mask].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("size", [(3, 5), (12, 20), (2, 2), (6, 2)])
@pytest.mark.parametrize("loss", ALL)
def test_no_human_map_at_all_is_a_zero_with_a_zero_gradient(loss, scope, reduction, size):
    true, false, _ = random_maps()
    true.requires_grad_(), false.requires_grad_()
    human = torch.full((4, *size), math.nan)
    value = loss(true, false, human, mask=torch.zeros(4, dtype=torch.bool), scope=scope, reduction=reduction)
    assert not value.any()
    for gradient in torch.autograd.grad(value.sum(), (true, false)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_mask_on_the_cpu_serves_maps_that_are_not(reduction):
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"mask": torch.tensor([True, False, True]), "reduction": reduction}
    expected = [cyborg_loss(*maps, **options), cam_entropy_loss(maps[0], **options)]
    with pretend_device():
        on_device = maps.to(DEVICE)
        found = [cyborg_loss(*on_device, **options).cpu(), cam_entropy_loss(on_device[0], **options).cpu()]
    for values, others in zip(found, expected, strict=True):
        assert torch.equal(values, others)


def test_all_true_mask_changes_nothing():
    true, false, human = random_maps()
    for loss in ALL:
        torch.testing.assert_close(loss(true, false, human, mask=torch.ones(4).bool()), loss(true, false, human))


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("human", ["zero", "one", "peak"])
@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 1, 1), (1, 4)])
@pytest.mark.parametrize("fill", [0.0, 1.5, -2.0, 1e-30, 1e30])
@pytest.mark.parametrize("loss", ALL)
def test_degenerate_maps_have_a_finite_value_and_gradient(loss, fill, shape, human, scope):
    true, false = (torch.full(shape, fill, requires_grad=True) for _ in range(2))
    saliency = torch.full(shape, float(human == "one"))
    if human == "peak":
        saliency.view(shape[0], -1)[:, 0] = 1
    value = loss(true, false, saliency, scope=scope)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (true, false)))


@pytest.mark.parametrize("fill", [0.0, 1.5, -2.0])
@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 1, 1)])
def test_entropy_of_degenerate_maps(fill, shape):
    maps = torch.full(shape, fill, requires_grad=True)
    values = cam_entropy(maps)
    assert values.tolist() == [0, 0]
    assert torch.autograd.grad(values.sum(), maps)[0].isfinite().all()


def test_values_of_degenerate_maps_by_hand():
    human = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    constant = torch.full((1, 1, 4), 3.0)
    assert cyborg_loss(constant, human).item() == 0.25
    assert difference_salience_loss(constant, constant, human).item() == 0.25
    assert contrast_salience_loss(constant, constant, human).item() == 0.25 + 0.75
    assert divergence_salience_loss(constant, torch.zeros(1, 1, 4), human).item() == 0.25


def test_entropy_is_that_of_a_naive_loop_in_nats():
    maps = random_maps(7)[0]
    expected = []
    for row in rows(maps):
        scaled = naive_minmax(row)
        q = [v / sum(scaled) for v in scaled]
        expected.append(-sum(v * math.log(v) for v in q if v > 0))
    torch.testing.assert_close(cam_entropy(maps), torch.tensor(expected, dtype=torch.float64))
    border = torch.zeros(1, 7, 7)
    border.view(-1)[:28] = 5
    torch.testing.assert_close(cam_entropy(border - 2), torch.tensor([math.log(28)]))


def test_entropy_loss_forms_and_mask():
    maps = random_maps(8)[0]
    entropies = cam_entropy(maps)
    torch.testing.assert_close(cam_entropy_loss(maps), entropies.mean())
    torch.testing.assert_close(cam_entropy_loss(maps, log=True), (entropies + 1).log().mean())
    torch.testing.assert_close(cam_entropy_loss(maps, reduction="sum"), entropies.sum())
    mask = torch.tensor([True, False, False, True])
    maps[1] = math.nan
    torch.testing.assert_close(cam_entropy_loss(maps, mask=mask), entropies[mask].mean())
    values = cam_entropy_loss(maps, mask=mask, reduction="none")
    torch.testing.assert_close(values, torch.where(mask, entropies, 0))
    assert cam_entropy_loss(maps, mask=torch.zeros(4).bool()).item() == 0


def test_half_precision_maps_are_computed_in_float32():
    true, false, human = (m.bfloat16() for m in random_maps(9))
    for loss in ALL:
        value = loss(true, false, human)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(true.float(), false.float(), human.float()))
    assert cam_entropy(true).dtype == torch.float32


def test_integer_human_maps_are_accepted():
    true, _, human = random_maps()
    pixels = (human * 255).round()
    torch.testing.assert_close(cyborg_loss(true, pixels.to(torch.uint8)), cyborg_loss(true, pixels))


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_modules_are_the_functions(scope):
    true, false, human = random_maps()
    mask = torch.tensor([True, True, False, True])
    options = {"scope": scope, "reduction": "sum"}
    twins = [
        (DifferenceSalienceLoss(**options), difference_salience_loss),
        (ContrastSalienceLoss(**options), contrast_salience_loss),
        (DivergenceSalienceLoss(0.7, **options), divergence_of_weight),
    ]
    for module, function in twins:
        assert torch.equal(module(true, false, human, mask), function(true, false, human, mask=mask, **options))
    assert torch.equal(CyborgLoss(**options)(true, human, mask), cyborg_loss(true, human, mask=mask, **options))
    entropy_loss = CamEntropyLoss(log=True, reduction="none")
    assert torch.equal(entropy_loss(true, mask), cam_entropy_loss(true, log=True, mask=mask, reduction="none"))


def test_modules_have_the_defaults_of_the_functions():
    true, false, human = random_maps()
    assert torch.equal(CyborgLoss()(true, human), cyborg_loss(true, human))
    for module, function in (
        (DifferenceSalienceLoss(), difference_salience_loss),
        (ContrastSalienceLoss(), contrast_salience_loss),
        (DivergenceSalienceLoss(), divergence_salience_loss),
    ):
        assert torch.equal(module(true, false, human), function(true, false, human))
    assert torch.equal(CamEntropyLoss()(true), cam_entropy_loss(true))


def test_a_divergence_of_weight_zero_is_cyborg():
    true, false, human = random_maps()
    assert torch.equal(divergence_salience_loss(true, false, human, 0.0), cyborg_loss(true, human))
    assert torch.equal(DivergenceSalienceLoss(0)(true, false, human), cyborg_loss(true, human))


# Class choice.


def test_true_and_false_classes_of_two_are_the_label_and_the_other():
    logits, labels = torch.randn(8, 2), torch.tensor([0, 1] * 4)
    assert torch.equal(true_and_false_classes(logits, labels), torch.stack([labels, 1 - labels], 1))
    predicted = logits.argmax(1)
    expected = torch.stack([predicted, 1 - predicted], 1)
    assert torch.equal(true_and_false_classes(logits, labels, "predicted"), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), choice=st.sampled_from(["true", "predicted"]))
def test_false_class_is_the_strongest_other(seed, classes, choice):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator)
    labels = torch.randint(classes, (5,), generator=generator)
    for row, label, (first, other) in zip(
        logits.tolist(), labels.tolist(), true_and_false_classes(logits, labels, choice).tolist(), strict=True
    ):
        assert first == (label if choice == "true" else row.index(max(row)))
        assert row[other] == max(z for j, z in enumerate(row) if j != first)
        assert other != first


def test_false_class_with_an_infinite_logit():
    logits = torch.tensor([[0.0, -math.inf]])
    assert true_and_false_classes(logits, torch.tensor([0])).tolist() == [[0, 1]]


# The whole training loss.


def test_guided_loss_is_the_weighted_sum_of_its_parts():
    true, false, human = random_maps()
    logits, labels = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    mask = torch.tensor([True, False, True, True])
    loss = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.3)(
        logits, labels, torch.stack([true, false], 1), human, mask
    )
    torch.testing.assert_close(loss.classification, F.cross_entropy(logits, labels))
    torch.testing.assert_close(loss.saliency, difference_salience_loss(true, false, human, mask=mask))
    torch.testing.assert_close(loss.total, 0.3 * loss.classification + 0.7 * loss.saliency)


def test_the_ends_of_alpha_leave_one_part_alone():
    true, _, human = random_maps()
    logits, labels = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    classification, saliency = (SaliencyGuidedLoss(CyborgLoss(), a)(logits, labels, true, human) for a in (1, 0))
    assert torch.equal(classification.total, F.cross_entropy(logits, labels))
    assert torch.equal(saliency.total, cyborg_loss(true, human))


@pytest.mark.parametrize("saliency_loss", [CyborgLoss(), cyborg_loss])
def test_guided_loss_with_one_class(saliency_loss):
    true, _, human = random_maps()
    logits, labels = torch.zeros(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    loss = SaliencyGuidedLoss(saliency_loss)(logits, labels, true, human)
    torch.testing.assert_close(loss.total, 0.5 * math.log(2) + 0.5 * cyborg_loss(true, human))


def test_guided_loss_takes_volumes_of_two_slices_for_one_class():
    true, _, human = random_maps(0, (3, 2, 4, 4))
    loss = SaliencyGuidedLoss(CyborgLoss())(torch.zeros(3, 2), torch.zeros(3).long(), true, human)
    torch.testing.assert_close(loss.saliency, cyborg_loss(true, human))


def test_guided_loss_without_any_human_map_is_the_classification_alone():
    logits = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0])
    criterion = SaliencyGuidedLoss(DivergenceSalienceLoss())
    loss = criterion(logits, labels, maps, torch.full((4, 3, 3), math.nan), torch.zeros(4).bool())
    loss.total.backward()
    torch.testing.assert_close(loss.total, 0.5 * F.cross_entropy(logits, labels))
    assert torch.equal(maps.grad, torch.zeros_like(maps))
    assert logits.grad.any()


def test_guided_gradcheck():
    logits = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    true, false, human = random_maps(10, (2, 2, 3))
    maps = torch.stack([true, false], 1).requires_grad_()
    criterion = SaliencyGuidedLoss(ContrastSalienceLoss())
    labels = torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda z, m: criterion(z, labels, m, human).total, (logits, maps))


# Errors that teach.


@pytest.mark.parametrize("loss", TWO_CLASS)
def test_bad_inputs_of_two_class_losses(loss):
    true, false, human = random_maps()
    with pytest.raises(ValueError, match=r"true_maps have shape \(4, 3, 5\) and false_maps \(3, 3, 5\); expected the"):
        loss(true, false[:3], human)
    with pytest.raises(TypeError, match=r"maps have dtype torch\.int64; expected floating point"):
        loss(true.long(), false.long(), human)


@pytest.mark.parametrize("loss", ALL)
def test_bad_inputs_of_every_saliency_loss(loss):
    true, false, human = random_maps()
    with pytest.raises(ValueError, match=r"human has shape \(4, 1, 3, 5\) and the maps \(4, 3, 5\); .*without a chann"):
        loss(true, false, human[:, None])
    with pytest.raises(ValueError, match=r"human has shape \(3, 3, 5\) and the maps \(4, 3, 5\)"):
        loss(true, false, human[:3])
    with pytest.raises(ValueError, match="reduction is 'avg'; expected one of 'mean', 'sum', 'none'"):
        loss(true, false, human, reduction="avg")
    with pytest.raises(ValueError, match="scope is 'all'; expected one of 'image', 'batch'"):
        loss(true, false, human, scope="all")
    with pytest.raises(TypeError, match=r"mask has dtype torch\.float32; expected bool"):
        loss(true, false, human, mask=torch.ones(4))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\) for 4 maps; expected one bool per image"):
        loss(true, false, human, mask=torch.ones(3).bool())
    with pytest.raises(ValueError, match=r"maps have shape \(4,\); expected \(B, \*S\)"):
        loss(true[:, 0, 0], false[:, 0, 0], human[:, 0, 0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("loss", ALL)
def test_bad_human_values_are_refused_only_where_they_count(loss, bad):
    true, false, human = random_maps()
    human[2, 1, 1] = bad
    with pytest.raises(ValueError, match=r"human holds NaN, infinite or negative .*leave images .*out with mask"):
        loss(true, false, human)
    with pytest.raises(ValueError, match="human holds NaN, infinite or negative"):
        loss(true, false, human, mask=torch.tensor([False, False, True, False]))
    assert loss(true, false, human, mask=torch.tensor([True, True, False, True])).isfinite()


def test_bad_options():
    true, false, human = random_maps()
    with pytest.raises(ValueError, match=r"weight is -1; expected at least 0"):
        divergence_salience_loss(true, false, human, -1)
    with pytest.raises(ValueError, match=r"weight is -1; expected at least 0"):
        DivergenceSalienceLoss(-1)
    for module in (CyborgLoss, DifferenceSalienceLoss, ContrastSalienceLoss, DivergenceSalienceLoss, CamEntropyLoss):
        with pytest.raises(ValueError, match="reduction is 'avg'; expected one of"):
            module(reduction="avg")
    with pytest.raises(ValueError, match="scope is 'all'; expected one of"):
        CyborgLoss(scope="all")
    with pytest.raises(ValueError, match="reduction is 'avg'; expected one of"):
        cam_entropy_loss(true, reduction="avg")
    with pytest.raises(TypeError, match="mask has dtype"):
        cam_entropy_loss(true, mask=torch.ones(4))
    with pytest.raises(TypeError, match=r"maps have dtype torch\.int64"):
        cam_entropy(true.long())
    with pytest.raises(TypeError, match=r"maps have dtype torch\.int64"):
        cam_entropy_loss(true.long(), mask=torch.ones(4).bool())


def test_bad_labels():
    logits = torch.zeros(2, 2)
    criterion = SaliencyGuidedLoss(CyborgLoss())
    maps, human = torch.rand(2, 3, 3), torch.rand(2, 3, 3)
    for call in (lambda y: true_and_false_classes(logits, y), lambda y: criterion(logits, y, maps, human)):
        with pytest.raises(TypeError, match=r"labels have dtype torch\.float32; expected class indices, int64"):
            call(torch.zeros(2))
        with pytest.raises(ValueError, match=r"logits have shape \(2, 2\) and labels \(3,\); expected \(B, K\) and"):
            call(torch.zeros(3).long())
    for call in (true_and_false_classes, lambda z, y: criterion(z, y, maps, human)):
        with pytest.raises(TypeError, match=r"logits have dtype torch\.int64; expected floating point logits"):
            call(logits.long(), torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=r"logits have shape \(2,\) and labels \(2,\); expected \(B, K\) and"):
            call(logits[0], torch.tensor([0, 1]))
    for call in (lambda y: true_and_false_classes(logits, y), lambda y: criterion(logits, y, maps, human)):
        with pytest.raises(ValueError, match="labels run from -1 to 2; expected class indices from 0 to 1"):
            call(torch.tensor([-1, 2]))
        with pytest.raises(ValueError, match="labels run from 0 to 2; expected class indices from 0 to 1"):
            call(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="choice is 'best'; expected one of 'true', 'predicted'"):
        true_and_false_classes(logits, torch.tensor([0, 1]), "best")
    with pytest.raises(ValueError, match=r"^logits have one class: .* \(B, K\) with K >= 2$"):
        true_and_false_classes(torch.zeros(2, 1), torch.tensor([0, 0]))


def test_bad_guided_loss():
    logits, labels, human = torch.zeros(2, 2), torch.tensor([0, 1]), torch.rand(2, 3, 3)
    with pytest.raises(ValueError, match=r"alpha is 1\.5; expected .* from 0 to 1"):
        SaliencyGuidedLoss(CyborgLoss(), alpha=1.5)
    with pytest.raises(TypeError, match=r"saliency_loss is <class .*CyborgLoss'>; expected an instance"):
        SaliencyGuidedLoss(CyborgLoss)
    with pytest.raises(TypeError, match="saliency_loss is 'cyborg'; expected an instance or a function"):
        SaliencyGuidedLoss("cyborg")
    with pytest.raises(ValueError, match=r"but CyborgLoss takes \(B, h, w\), one class: choose the classes in cam"):
        SaliencyGuidedLoss(CyborgLoss())(logits, labels, torch.rand(2, 2, 3, 3), human)
    with pytest.raises(ValueError, match=r"but ContrastSalienceLoss takes \(B, 2, h, w\), the true and the false"):
        SaliencyGuidedLoss(ContrastSalienceLoss())(logits, labels, torch.rand(2, 3, 3), human)
    with pytest.raises(ValueError, match=r"maps have shape \(2, 3, 3, 3\) and human \(2, 3, 3\); expected human"):
        SaliencyGuidedLoss(ContrastSalienceLoss())(logits, labels, torch.rand(2, 3, 3, 3), human)
    with pytest.raises(ValueError, match=r"the saliency loss gave shape \(2,\); expected a scalar; use reduction"):
        SaliencyGuidedLoss(CyborgLoss(reduction="none"))(logits, labels, torch.rand(2, 3, 3), human)


def guided_gradients(alpha):
    """The total of cross-entropy ln 2 and saliency 0.2, and its derivatives by the two."""
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    maps = torch.full((1, 1, 1), 0.2, dtype=torch.float64, requires_grad=True)
    loss = SaliencyGuidedLoss(lambda maps, *_, **__: maps.sum(), alpha)
    total = loss(logits, torch.tensor([0]), maps, torch.ones(1, 1, 1)).total
    total.backward()
    return total.detach(), logits.grad[0, 1] / 0.5, maps.grad[0, 0, 0]  # d cross-entropy / d logits = 0.5


def test_dynamic_alpha_by_hand():
    total, by_c, by_s = guided_gradients("dynamic")
    c, s = math.log(2), 0.2
    assert float(total) == pytest.approx((c**2 + s**2) / (c + s))
    # d/ds (c^2 + s^2) / (c + s) is negative where s < (sqrt(2) - 1) c: the saliency loss is pushed up.
    assert float(by_c) == pytest.approx((2 * c * (c + s) - c**2 - s**2) / (c + s) ** 2)
    assert float(by_s) == pytest.approx((2 * s * (c + s) - c**2 - s**2) / (c + s) ** 2)
    assert by_s < 0


def test_detached_dynamic_alpha_has_the_same_value_and_pushes_both_down():
    total, by_c, by_s = guided_gradients("dynamic-detached")
    c, s = math.log(2), 0.2
    assert float(total) == pytest.approx((c**2 + s**2) / (c + s))
    assert float(by_c) == pytest.approx(c / (c + s))
    assert float(by_s) == pytest.approx(s / (c + s))


@pytest.mark.parametrize("alpha", ["dynamic", "dynamic-detached"])
def test_dynamic_alpha_of_a_perfect_model_is_no_division_by_zero(alpha):
    loss = SaliencyGuidedLoss(CyborgLoss(), alpha)
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    human = torch.tensor([[[0.0, 1.0]]])
    total = loss(logits, torch.tensor([0]), human.clone().requires_grad_(), human).total
    total.backward()
    assert total == 0
    assert logits.grad.isfinite().all()


def test_join_takes_any_classification_loss():
    maps, human = torch.tensor([[[0.0, 4.0], [2.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    criterion = SaliencyGuidedLoss(CyborgLoss(), 0.25)
    loss = criterion.join(torch.tensor(3.0), maps, human)
    saliency = ((0.5 - 1) ** 2 + 0.25**2) / 4
    assert loss.total.item() == pytest.approx(0.25 * 3 + 0.75 * saliency)
    assert (loss.classification.item(), loss.saliency.item()) == pytest.approx((3, saliency))
    with pytest.raises(
        ValueError, match=r"^the classification loss gave shape \(2,\); expected a scalar; use reduction="
    ):
        criterion.join(torch.ones(2), maps, human)


def test_a_criterion_says_whose_maps_its_loss_takes():
    logits, labels = torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([1, 1])

    class Own(torch.nn.Module):
        def forward(self, true_maps, false_maps, human, mask=None):
            raise NotImplementedError

    def own(maps, human, mask=None, *, weight=1.0):
        raise NotImplementedError

    for one in (CyborgLoss(), CamalLoss(), cyborg_loss, own, partial(cyborg_loss, scope="batch")):
        assert SaliencyGuidedLoss(one).classes(logits, labels).tolist() == [1, 1]
        assert SaliencyGuidedLoss(one).classes(logits, labels, "predicted").tolist() == [1, 0]
    for both in (DifferenceSalienceLoss(), DivergenceSalienceLoss(), divergence_salience_loss, Own()):
        assert SaliencyGuidedLoss(both).classes(logits, labels).tolist() == [[1, 2], [1, 0]]
    with pytest.raises(
        TypeError, match=r"^the saliency loss takes \(maps\); expected \(maps, human\) or \(true_maps, fa"
    ):
        SaliencyGuidedLoss(lambda maps: maps.sum()).classes(logits, labels)


def test_class_weights_are_those_of_cross_entropy():
    logits, labels = torch.tensor([[0.3, -0.2], [1.0, 0.5]]), torch.tensor([0, 1])
    weights = torch.tensor([1.0, 5.0])
    loss = SaliencyGuidedLoss(CyborgLoss(), 1.0, class_weights=weights)
    maps = torch.rand(2, 3, 3)
    assert loss(logits, labels, maps, maps).total == F.cross_entropy(logits, labels, weights)


def test_blur_spreads_a_mark_as_a_gaussian_does():
    human = torch.zeros(1, 5, 5)
    human[0, 2, 2] = 1
    seen = []
    SaliencyGuidedLoss(lambda maps, human, **_: seen.append(human) or maps.sum(), blur=1.0)(
        torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 5, 5), human
    )
    side = math.exp(-0.5)
    edge, peak = side / (1 + 2 * side), 1 / (1 + 2 * side)
    assert torch.allclose(seen[0][0, 2, 1:4], torch.tensor([edge, peak, edge]) * peak)
    assert float(seen[0].sum()) == pytest.approx(1)


def test_blur_mirrors_the_edges():
    human, seen = torch.rand(2, 4, 5), []
    SaliencyGuidedLoss(lambda maps, human, **_: seen.append(human) or maps.sum(), blur=0.8)(
        torch.zeros(2, 2), torch.tensor([0, 1]), torch.zeros(2, 4, 5), human
    )
    side = math.exp(-0.5 / 0.8**2)
    kernel = np.array([side, 1, side]) / (1 + 2 * side)
    padded = np.pad(human.numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = sum(kernel[i] * kernel[j] * padded[:, i : i + 4, j : j + 5] for i in range(3) for j in range(3))
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-5)


def test_blur_of_the_smallest_grid_mixes_both_rows_and_columns():
    human, seen = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), []
    SaliencyGuidedLoss(lambda maps, human, **_: seen.append(human) or maps.sum(), blur=1.0)(
        torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2, 2), human
    )
    side = math.exp(-0.5)
    own, other = 1 / (1 + 2 * side), 2 * side / (1 + 2 * side)  # the edge mirrors: the other row lies on both sides
    assert torch.allclose(seen[0], torch.tensor([[[own * own, own * other], [own * other, other * other]]]))


def test_blur_of_a_pair_is_drawn_from_the_generator_of_pytorch():
    human = torch.rand(1, 4, 4)

    def blurred(seed):
        torch.manual_seed(seed)
        kept = []
        loss = SaliencyGuidedLoss(lambda maps, human, **_: kept.append(human) or maps.sum(), blur=(0.1, 2.0))
        loss(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 4, 4), human)
        return kept[0]

    assert torch.equal(blurred(3), blurred(3))
    assert not torch.equal(blurred(3), blurred(4))


def test_blur_comes_after_the_grid_and_leaves_skipped_images_alone():
    loss = SaliencyGuidedLoss(CyborgLoss(), blur=0.7)
    maps, human = torch.rand(2, 4, 4), torch.rand(2, 16, 16)
    broken = human.clone()
    broken[1] = math.nan
    labels, mask = torch.tensor([0, 1]), torch.tensor([True, False])
    logits = torch.zeros(2, 2)
    alone = loss(logits[:1], labels[:1], maps[:1], human[:1])
    assert torch.allclose(loss(logits, labels, maps, broken, mask).saliency, alone.saliency)


def naive_camal(values, human):
    m, h = naive_minmax(values), naive_minmax(human)
    inside = sum(a * b for a, b in zip(m, h, strict=True)) / sum(h)
    outside = sum(a * (1 - b) for a, b in zip(m, h, strict=True)) / sum(1 - b for b in h)
    return 1 - inside + outside


def test_camal_is_that_of_a_naive_loop_and_bounded():
    true, _, human = random_maps()
    values = camal_loss(true, human, reduction="none")
    expected = [naive_camal(t, h) for t, h in zip(rows(true), rows(human), strict=True)]
    assert values.tolist() == pytest.approx(expected)
    region = (human > 0.5).double()
    assert camal_loss(region, region) == 0
    assert camal_loss(1 - region, region) == 2
    assert camal_loss(torch.ones_like(region), region) == 1  # constant: scaled to zeros


def test_camal_of_a_constant_human_map_punishes_only():
    maps = torch.tensor([[[0.0, 1.0]]])
    assert camal_loss(maps, torch.ones(1, 1, 2)) == pytest.approx(1.5)


def test_camal_gradcheck_and_mask():
    true, _, human = random_maps()
    assert torch.autograd.gradcheck(lambda maps: camal_loss(maps, human), true.requires_grad_())
    mask = torch.tensor([True, False, True, False])
    assert torch.equal(camal_loss(true, human, mask=mask), camal_loss(true[mask], human[mask]))
    assert torch.equal(CamalLoss()(true, human, mask), camal_loss(true, human, mask=mask))
    assert camal_loss(true, human, mask=torch.zeros(4, dtype=torch.bool)) == 0


def test_bad_options_of_the_guided_loss():
    with pytest.raises(ValueError, match=r"alpha is 'auto'; expected .* or one of 'dynamic', 'dynamic-detached'"):
        SaliencyGuidedLoss(CyborgLoss(), "auto")
    for blur in (0.0, -1.0, (2.0, 1.0)):
        with pytest.raises(ValueError, match=r"blur is .*expected a standard deviation above 0"):
            SaliencyGuidedLoss(CyborgLoss(), blur=blur)
    with pytest.raises(ValueError, match=r"grid is \(6,\): expected two dimensions of at least 2 to blur"):
        SaliencyGuidedLoss(CyborgLoss(), blur=1.0)(
            torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 6), torch.rand(1, 6)
        )
    with pytest.raises(ValueError, match="human holds NaN"):
        camal_loss(torch.rand(1, 2, 2), torch.full((1, 2, 2), math.nan))
