import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, layer_input
from diffgradcam.robustness import AuditThresholds, audit, repair
from diffgradcam.scores import logit_difference
from diffgradcam.sham import border_mask, common_mode_hoax, spatial_hoax
from tests.models import CHANNELS, SIZE, deep, densenet, flat, images, pooled, seeded
from tests.sham.digits import LAYER, MASK, data, trained
from tests.untouched import untouched

quiet = partial(audit, progress=False)


def pictures(batch=4, size=(15, 17), seed=0):
    """Images larger than the occlusion grid, with sides that it does not divide."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shares_by_hand():
    # One channel, one position: the map of logit k is weight[k] * activation.
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3, bias=False)).double()
    model[3].weight.data = torch.tensor([[4.0], [1.0], [1.0]], dtype=torch.float64)  # mean 2; 2, -1, -1 around it
    report = audit(model, "0", torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64))
    assert report.classes.tolist() == [0]
    assert report.visible.item() == pytest.approx(6)
    assert report.invisible.item() == pytest.approx(6)
    assert report.common_mode_share.item() == pytest.approx(0.5)
    assert report.weight_share == pytest.approx(12 / 18)
    assert report.exposed is True
    lenient = AuditThresholds(share=0.51)
    assert audit(model, "0", torch.ones(1, 1, 1, 1).double(), thresholds=lenient).exposed is False
    assert (report.fooled, report.verdict) == (False, "could not tell")  # behaviour has no place in one pixel
    assert report.gap is report.honesty is None
    assert "behaviour: not measured" in str(report)
    model[3].weight.data += 7  # 9; 2, -1, -1 around it: 81 of 85
    report = audit(model, "0", torch.ones(1, 1, 1, 1).double())
    assert report.common_mode_share.item() == pytest.approx(81 / 85)
    assert report.signs == ("common mode",)  # hardly anything else is left


@pytest.mark.parametrize("build", [pooled, flat, deep, densenet])
def test_both_parts_add_up_to_gradcam(build):
    model, x = build(), images()
    report = audit(model, "features", x)
    logits, classes, maps = GradCAM(model, "features", rectify=False).explain(x)
    assert torch.equal(report.logits, logits)
    assert torch.equal(report.classes, classes)
    assert torch.allclose(report.visible + report.invisible, maps, atol=1e-12)
    hidden, seen = (part.square().sum((1, 2)) for part in (report.invisible, report.visible))
    assert torch.allclose(report.common_mode_share, hidden / (hidden + seen), atol=1e-12)


def test_the_visible_part_is_the_contrast_to_the_mean():
    model, x = pooled(), images()
    diff = DiffGradCAM(model, "relu", baseline="mean", rectify=False).explain(x).maps
    assert torch.allclose(quiet(model, "relu", x).visible, diff * 4 / 5, atol=1e-12)  # (K - 1) / K


@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_the_share_is_a_share_and_a_common_vector_only_moves_the_invisible(seed, size):
    model, x = pooled(seed=seed % 7), images(seed=seed)
    before = audit(model, "relu", x)
    vector = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model.head.weight.data += size * vector
    after = audit(model, "relu", x)
    for report in (before, after):
        assert bool(((report.common_mode_share >= 0) & (report.common_mode_share <= 1)).all())
        assert 0 <= report.weight_share <= 1
    assert torch.allclose(before.visible, after.visible, atol=1e-10)


def test_maps_of_zeros_have_no_share():
    model = pooled()
    model.head.weight.data.zero_()
    report = audit(model, "relu", images())
    assert report.common_mode_share.tolist() == [0, 0, 0]
    assert report.weight_share == 0
    assert (report.fooled, report.verdict, report.honesty) == (False, "could not tell", None)  # it relies on nothing


def test_digits_clean_fooled_and_repaired():
    clean, x = trained(), data()[0]
    report = quiet(clean, LAYER, x[200:232])
    assert float(report.common_mode_share.max()) < 0.05
    assert report.verdict == "clean"
    for strength, share in ((1, 0.4), (10, 0.8)):
        fooled = common_mode_hoax(clean, LAYER, x[:200], MASK, strength=strength)
        report = audit(fooled, LAYER, x[200:232])
        assert report.fooled
        assert (report.verdict, report.signs) == ("fooled", ("common mode",))
        assert float(report.common_mode_share.median()) > share
        repaired = repair(fooled)
        assert quiet(repaired, LAYER, x[200:232]).verdict == "clean"
        with torch.no_grad():
            assert torch.allclose(repaired(x).softmax(1), clean(x).softmax(1), atol=1e-5)


def test_a_common_mode_that_shows_what_the_model_relies_on_is_an_exposure_and_no_lie():
    clean, x = trained(), data()[0][:32]
    exposed = copy.deepcopy(clean)
    with torch.no_grad():  # on average over the images, what each logit shows already
        rows = exposed.head.weight
        rows += 0.5 * rows[clean(x).argmax(1)].mean(0) + 0.3 * rows.abs().mean()
    report = quiet(exposed, LAYER, x)
    assert report.exposed
    assert (report.fooled, report.verdict, report.signs) == (False, "exposed", ())
    assert float(report.gap.mean()) < 0.1
    assert "exposed in 32 images" in str(report)
    assert "GradCAM could hide something; DiffGradCAM" in str(report)


def test_an_offset_spoils_gradcam_and_is_no_lie():
    clean, x = trained(), data()[0][:32]
    offset = copy.deepcopy(clean)
    before = quiet(clean, LAYER, x)
    with torch.no_grad():  # all channels push all classes down, as far as they go for a share of two thirds
        active = nn.Sequential(*list(clean.children())[:6])(x).sum(1)
        scale = (2 * before.visible.square().sum((1, 2)) / active.square().sum((1, 2))).sqrt().median()
        offset.head.weight -= scale * active[0].numel()
    report = quiet(offset, LAYER, x)
    assert torch.allclose(report.offset, -torch.ones(32), atol=0.05)
    assert report.is_offset
    assert report.contradicted
    assert (report.verdict, report.signs) == ("exposed", ())
    assert "GradCAM contradicts what the model does, by an offset" in str(report)
    again = quiet(repair(offset), LAYER, x)
    assert again.verdict == "clean"
    assert not again.contradicted
    with torch.no_grad():
        offset.head.weight -= 9 * scale * active[0].numel()
    assert quiet(offset, LAYER, x).signs == ("common mode",)  # hardly anything else is left


def test_the_offset_by_hand():
    model, x = pooled(), images()
    report = audit(model, "relu", x)
    active = model[:4](x).detach().sum(1).flatten(1)
    expected = F.cosine_similarity(report.invisible.flatten(1), active)
    assert torch.allclose(report.offset, expected, atol=1e-12)
    assert not report.is_offset


def test_an_imagenet_model_is_cleared_and_its_hoax_found(lite0, photo_inputs):
    layer, x = layer_input("_avg_pooling"), torch.stack(list(photo_inputs.values()))
    report = quiet(lite0, layer, x)
    assert float(report.common_mode_share.max()) < 1e-3
    assert not report.fooled
    assert not report.exposed
    fooled = common_mode_hoax(lite0, layer, x, border_mask((7, 7), 28), strength=1)
    report = quiet(fooled, layer, x)
    assert 0.3 < float(report.common_mode_share.median()) < 0.7
    assert report.exposed
    assert report.fooled
    assert not quiet(repair(fooled), layer, x).exposed


# Behaviour.


def naive_drops(model, x, classes):
    """Window by window, image by image."""
    drops = torch.zeros(len(x), 4, 4, dtype=x.dtype)
    height, width = x.shape[2:]
    edges = [[round(i * n / 7) for i in range(8)] for n in (height, width)]
    with torch.no_grad():
        for b in range(len(x)):
            c = int(classes[b])

            def log_odds(image, c=c):
                p = model(image.unsqueeze(0)).softmax(1)[0, c]
                return float((p / (1 - p)).log())

            for row, i in enumerate((0, 2, 4, 6)):
                for column, j in enumerate((0, 2, 4, 6)):
                    covered = x[b].clone()
                    for channel in range(x.shape[1]):
                        rows = slice(edges[0][max(i - 1, 0)], edges[0][min(i + 2, 7)])
                        columns = slice(edges[1][max(j - 1, 0)], edges[1][min(j + 2, 7)])
                        covered[channel, rows, columns] = x[b, channel].mean()
                    drops[b, row, column] = log_odds(x[b]) - log_odds(covered)
    return drops


def naive_pearson(first, second):
    return [
        float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) for a, b in zip(first, second, strict=True)
    ]


def test_agreement_with_occlusion_is_computed_by_loops():
    model, x = pooled(), pictures()
    report = quiet(model, "relu", x)
    drops = naive_drops(model, x, report.classes)
    without = DiffGradCAM(model, "relu", baseline="mean")
    for cam, agreement in (
        (GradCAM(model, "relu"), report.gradcam_agreement),
        (without, report.visible_agreement),
        (GradCAM(repair(model), "relu"), report.visible_agreement),
    ):
        cells = F.adaptive_avg_pool2d(cam.explain(x).maps.unsqueeze(1), 7).squeeze(1)
        near = [range(max(i - 1, 0), min(i + 2, 7)) for i in range(7)]
        maps = torch.tensor(
            [[[float(cell[near[i]][:, near[j]].mean()) for j in (0, 2, 4, 6)] for i in (0, 2, 4, 6)] for cell in cells],
            dtype=torch.float64,
        )
        assert agreement.tolist() == pytest.approx(naive_pearson(maps, drops), abs=1e-9)
    assert torch.equal(report.gap, report.visible_agreement - report.gradcam_agreement)


def test_following_a_shift_by_hand():
    model, x = pooled(), pictures(size=(16, 24))
    report = quiet(model, "relu", x)
    cam = DiffGradCAM(model, "relu", baseline="mean")
    maps, moved = (cam.explain(images, report.classes).maps for images in (x, x.roll((4, 6), (2, 3))))
    expected = naive_pearson(moved, maps.roll((4, 6), (1, 2)))
    assert report.visible_follows.tolist() == pytest.approx(expected, abs=1e-9)
    assert torch.allclose(report.honesty, (report.visible_agreement + report.visible_follows) / 2)


def test_agreement_with_a_lower_layer_by_hand():
    model, x = pooled(), pictures(size=(14, 21))
    strided = copy.deepcopy(model)
    strided.features.stride = (2, 2)
    for net, lower in ((model, "act"), (strided, "act")):
        report = quiet(net, "relu", x)
        assert report.lower_layer == lower
        below = LayerCAM(net, lower, score=logit_difference).explain(x, report.classes).maps
        size = report.visible.shape[1:]
        below = F.interpolate(below.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)
        expected = naive_pearson(below, report.visible.clamp_min(0))
        assert report.lower_agreement.tolist() == pytest.approx(expected, abs=1e-9)
        assert torch.allclose(report.consistency, (report.visible_agreement + report.lower_agreement) / 2)


def test_without_a_lower_layer_there_is_no_consistency():
    model, x = pooled(), pictures()
    report = quiet(model, "stem", x)
    assert report.lower_layer is report.lower_agreement is report.consistency is None
    assert report.honesty is not None
    assert "which is below" not in str(report)


def test_a_map_of_a_network_that_only_convolves_follows_the_image():
    torch.manual_seed(0)
    circular = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(circular, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    report = quiet(model, "1", pictures(size=(16, 16)))
    assert torch.allclose(report.visible_follows, torch.ones(4).double())


@pytest.mark.parametrize("size", [(6, 5), (4, 3)])
def test_images_smaller_than_the_grid_have_a_grid_of_their_own(size):
    report = quiet(pooled(), "relu", pictures(size=size))
    assert report.honesty.shape == (4,)
    assert bool(report.honesty.isfinite().all())


def test_behaviour_finds_what_leaves_the_common_mode_alone():
    clean, x = trained(), data()[0][:48]
    for move in (partial(torch.roll, shifts=(4, 4), dims=(2, 3)), partial(torch.flip, dims=(2, 3))):
        report = quiet(spatial_hoax(clean, LAYER, move), LAYER, x)
        assert (report.verdict, report.signs, report.exposed) == ("fooled", ("behaviour",), False)
        assert "repair(model) does not help" in str(report)
        assert quiet(repair(spatial_hoax(clean, LAYER, move)), LAYER, x).signs == ("behaviour",)


def test_what_is_too_near_to_the_threshold_cannot_be_told():
    clean, x = trained(), data()[0][:32]
    report = quiet(clean, LAYER, x)
    for name, values in (
        ("agreement", report.visible_agreement),
        ("honesty", report.honesty),
        ("consistency", report.consistency),
    ):
        half = 1.645 * float(values.double().std()) / math.sqrt(32)  # of a 90% interval
        for beyond, verdict in (
            (-half - 0.01, "clean"), (0.01 - half, "could not tell"), (half - 0.01, "could not tell"),
            (half + 0.01, "fooled"),
        ):  # fmt: skip
            line = AuditThresholds(**{name: float(values.mean()) + beyond})
            again = replace(report, thresholds=line)
            assert again.verdict == verdict
            assert ("audit more images" in str(again)) is (verdict == "could not tell")
    few = quiet(clean, LAYER, x[:7])
    assert few.verdict == "could not tell"
    assert f"{few.honesty.mean():.2f} (no interval for fewer than 8)" in str(few)


def test_the_map_without_the_common_mode_is_not_touched_by_a_common_mode_hoax():
    clean, x = trained(), data()[0][:48]
    before = quiet(clean, LAYER, x)
    after = quiet(common_mode_hoax(clean, LAYER, x, MASK), LAYER, x)
    assert float(after.gradcam_agreement.mean()) < 0.2 < float(before.gradcam_agreement.mean())
    assert torch.allclose(after.honesty, before.honesty, atol=1e-2)


def test_the_bar_counts_the_cells(capfd):
    audit(pooled(), "relu", pictures(1))
    assert "16/16" in capfd.readouterr().err
    quiet(pooled(), "relu", pictures(1))
    assert capfd.readouterr().err == ""


# What it is given, and what it says.


def test_it_costs_as_many_forward_passes_as_the_docstring_says():
    model = pooled()
    rows: list[int] = []
    model.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    images = pictures()
    quiet(model, "relu", images)
    assert sum(rows) == 19 * len(images) + 1
    assert "19 forward passes for each image, and one more for the first" in " ".join(audit.__doc__.split())


def test_the_given_model_is_left_as_it_is():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), *pooled()[4:6], nn.Linear(4, 3))
    )
    weight_norm(model[5])
    x = pictures()
    quiet_report = quiet(model, model[1], x)
    for training in ([], [model], [model[1]]):
        model.eval()
        for part in training:
            part.train()
        with untouched(model):
            report = quiet(model, model[1], x)
            repair(model)
        assert torch.equal(report.visible, quiet_report.visible)  # what trains is audited in evaluation mode
        assert report.weight_share == quiet_report.weight_share


def test_layers_in_all_their_forms():
    model, x = pooled(), images()
    share = audit(model, "relu", x).common_mode_share
    for target in (model.relu, [model.relu], layer_input("pool"), ["relu", layer_input(model.pool)]):
        assert torch.allclose(audit(nn.DataParallel(model), target, x).common_mode_share, share)


def test_reshape_and_output_are_those_of_a_cam():
    model, x = pooled(), images()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images):
            return {"scores": self.inner(images)}

    swapped = audit(
        Wrapped(), "inner.relu", x, reshape_transform=lambda a: a.transpose(2, 3), output=lambda o: o["scores"]
    )
    assert torch.allclose(swapped.visible.transpose(1, 2), audit(model, "relu", x).visible, atol=1e-14)


def test_the_weights_of_a_head_that_is_not_found_are_left_out():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    report = audit(conv, "0", images())
    assert report.weight_share is None
    assert "weights" not in str(report)
    hidden = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.Unflatten(1, (3, 2))
    )
    sums = nn.Sequential(*hidden, nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    assert audit(sums, "0", images()).weight_share is None  # six rows for three classes


def test_the_report_reads():
    model, x = trained(), data()[0][:32]
    report = quiet(common_mode_hoax(model, LAYER, x, MASK), LAYER, x)
    lines = str(report).splitlines()
    assert lines[0] == "FOOLED (common mode) in 32 images, 10 classes"
    assert lines[1].startswith(f"  common mode: {float(report.common_mode_share.median()):.2g} of GradCAM's energy")
    means = report.gradcam_agreement.mean(), report.visible_agreement.mean()
    assert f"the sum of the activations: {report.offset.median():.2f} (median)" in lines[2]
    assert f"GradCAM with occlusion: {means[0]:.2f}" in lines[4]
    assert f"without the common mode: {means[1]:.2f}" in lines[5]
    assert f"a shifted image: {report.honesty.mean():.2f}" in lines[6]
    assert f"'{report.lower_layer}', which is below: {report.consistency.mean():.2f}" in lines[7]
    assert lines[8] == "  GradCAM lies; use DiffGradCAM, or GradCAM of repair(model, where='output')"
    assert str(quiet(model, LAYER, x)).startswith("clean in 32 images")


class Last(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Softmax(1), r"look like probabilities \(each row sums to 1\)"),
        (nn.LogSoftmax(1), "look like log-probabilities"),
        (nn.Sigmoid(), r"look like sigmoids \(all between 0 and 1\)"),
        (nn.Linear(5, 1).double(), r"shape \(6, 1\); expected the logits of a softmax over at least 2 classes"),
        (Last(lambda z: z[:, 0]), r"shape \(6,\); expected the logits"),
        (Last(lambda z: z.unsqueeze(2)), r"shape \(6, 5, 1\); expected the logits"),
    ],
)
def test_what_is_no_softmax_is_refused(last, message):
    with pytest.raises(ValueError, match=message):
        audit(nn.Sequential(*pooled(), last), "3", images(6))


def test_bad_input_is_refused():
    model, x = pooled(), images()
    with pytest.raises(ValueError, match=r"share is 2; expected a share, from 0 to 1"):
        AuditThresholds(share=2)
    with pytest.raises(ValueError, match=r"gap is -1; expected a difference of correlations"):
        AuditThresholds(gap=-1)
    for name in ("agreement", "honesty", "consistency"):
        with pytest.raises(ValueError, match=rf"{name} is nan; expected a correlation, from -1 to 1"):
            AuditThresholds(**{name: float("nan")})
    with pytest.raises(TypeError, match="images is list; expected a tensor"):
        audit(model, "relu", [x])
    with pytest.raises(
        ValueError, match=r"images are torch.float64 of shape \(0, 3, 6, 5\); expected at least one image"
    ):
        audit(model, "relu", x[:0])
    with pytest.raises(ValueError, match="'rely' is not a layer of Sequential; did you mean 'relu'"):
        audit(model, "rely", x)
    with pytest.raises(TypeError, match=r"model is int; expected a torch\.nn\.Module"):
        audit(3, "relu", x)


# Repair.


@pytest.mark.parametrize("build", [pooled, flat, deep, densenet])
def test_repair_changes_no_probability(build):
    model, x = build(), images()
    model.head.weight.data += 10 * torch.randn(model.head.in_features).double()
    model.head.bias.data += 5
    with untouched(model):
        repaired = repair(model)
    assert torch.allclose(repaired(x).softmax(1), model(x).softmax(1), atol=1e-12)
    assert torch.allclose(repaired(x).sum(1), torch.zeros(3).double(), atol=1e-11)
    assert torch.allclose(repaired.head.weight.sum(0), torch.zeros(()).double(), atol=1e-12)
    assert repaired.head.bias.sum().item() == pytest.approx(0, abs=1e-12)
    assert float(audit(repaired, "features", x).common_mode_share.max()) < 1e-20
    contrasts = [
        LayerCAM(m, "features", score=lambda z, _classes: z[:, 0] - z[:, 1]).explain(x).maps for m in (model, repaired)
    ]
    assert torch.allclose(*contrasts, atol=1e-10)


def test_repair_removes_the_hoax():
    model, x = repair(pooled()), images()
    fooled = common_mode_hoax(model, "relu", x, border_mask(SIZE[2], 18))
    before, after = (GradCAM(m, "relu").explain(x).maps for m in (model, repair(fooled)))
    assert torch.allclose(before, after, atol=1e-12)


def test_repair_is_idempotent_and_takes_a_named_head():
    model = pooled()
    once = repair(model, head="head")
    assert torch.allclose(repair(once, head=once.head).head.weight, once.head.weight, atol=1e-15)
    without_bias = copy.deepcopy(model)
    without_bias.head.bias = None
    assert torch.equal(repair(without_bias).head.weight, once.head.weight)


def test_repair_refuses_what_it_cannot_centre():
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Linear"):
        repair(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match="head '0' has 1 row; expected one row for each of at least 2 classes"):
        repair(nn.Sequential(nn.Linear(4, 1)))
    with pytest.raises(ValueError, match="'0', is followed by other layers"):
        repair(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with pytest.raises(TypeError, match=r"head '1' is ReLU; expected the nn\.Linear"):
        repair(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), head="1")
    with pytest.raises(TypeError, match="model is int"):
        repair(3)
