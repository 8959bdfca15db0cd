import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from diffgradcam import AugSmooth, DiffGradCAM, GradCAM, HiResCAM, LayerCAM
from diffgradcam.losses import cam_entropy
from diffgradcam.robustness import BenchmarkResult, Decisions, Estimate, Row, Similarity, benchmark
from diffgradcam.sham import border_mask, common_mode_hoax, location_loss, spatial_hoax
from tests.models import SIZE, flat, images, pooled
from tests.pretend_device import DEVICE, pretend_device
from tests.sham.digits import LAYER, MASK, data, trained
from tests.untouched import forward_passes, untouched

stats = pytest.importorskip("scipy.stats", reason="the intervals need the extra metrics")

HOAX = border_mask(SIZE[2], 18)
EXPLAINERS = {
    "GradCAM": lambda model: GradCAM(model, "relu"),
    "signed": lambda model: GradCAM(model, "relu", rectify=False),
    "HiResCAM": lambda model: HiResCAM(model, "relu"),
    "DiffGradCAM": lambda model: DiffGradCAM(model, "relu"),
    "mean": lambda model: DiffGradCAM(model, "relu", baseline="mean"),
}


def compare(clean, fooled, explainers=EXPLAINERS, loader=None, **options):
    options = {"resamples": 20, "progress": False} | options
    return benchmark(clean, fooled, explainers, [images(4), images(3, seed=1)] if loader is None else loader, **options)


# The figures, against loops


def naive_similarity(a, reference):
    """One map against one reference, in NumPy and SciPy."""
    a, reference = np.asarray(a), np.asarray(reference, dtype=np.float64)

    def scaled(x):
        return (x - x.min()) / (x.max() - x.min())

    n = int((scaled(reference) > 0.5).sum())
    top = set(np.argsort(-a.ravel(), kind="stable")[:n].tolist())
    wanted = set(np.flatnonzero(scaled(reference).ravel() > 0.5).tolist())
    x, y = scaled(a), scaled(reference)
    similarity = pytest.importorskip("skimage.metrics", reason="scikit-image is the oracle").structural_similarity
    return {
        "pearson": np.corrcoef(a.ravel(), reference.ravel())[0, 1],
        "spearman": stats.spearmanr(a.ravel(), reference.ravel()).statistic,
        "ssim": similarity(x, y, win_size=5, data_range=1.0),
        "cosine": (a * reference).sum() / math.sqrt((a**2).sum() * (reference**2).sum()),
        "rmse": math.sqrt(((x - y) ** 2).mean()),
        "iou": len(top & wanted) / len(top | wanted),
    }


def means(similarity):
    return {name: getattr(similarity, name).mean for name in ("pearson", "spearman", "ssim", "cosine", "rmse", "iou")}


def test_figures_are_those_of_a_loop_over_explainers_and_images():
    clean, fooled = flat(), flat(seed=3)
    smooth = torch.linspace(0, 1, HOAX.numel(), dtype=torch.float64).square().view_as(HOAX)  # any real mask will do
    # Signed, so that there are no ties, which a loop breaks in some order.
    explainers = {"LayerCAM": lambda model: LayerCAM(model, "features", rectify=False)}
    result = compare(clean, fooled, explainers, mask=smooth, fooling_range=(0.05, 0.3))

    kept, before, after, entropy, success, kl = [], [], [], [], [], []
    for image in [*images(4), *images(3, seed=1)]:
        image = image.unsqueeze(0)
        logits, classes, old = LayerCAM(clean, "features", rectify=False).explain(image)
        new = LayerCAM(fooled, "features", rectify=False).explain(image, classes).maps
        kept.append(naive_similarity(new[0], old[0]))
        before.append(naive_similarity(old[0], smooth))
        after.append(naive_similarity(new[0], smooth))
        entropy.append((float(cam_entropy(old)), float(cam_entropy(new))))
        success.append([0.05 <= float(location_loss(m, old, smooth)) <= 0.3 for m in (old, new)])
        p, q = (z.detach()[0].softmax(0).tolist() for z in (logits, fooled(image)))
        kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))

    row = result["LayerCAM"]
    for similarity, expected in ((row.kept, kept), (row.reached_before, before), (row.reached_after, after)):
        mean = {name: sum(e[name] for e in expected) / 7 for name in expected[0]}
        assert means(similarity) == pytest.approx(mean, abs=1e-12)
    assert (row.entropy_before.mean, row.entropy_after.mean) == pytest.approx(tuple(np.mean(entropy, 0)), abs=1e-12)
    assert [row.fooling_success_before.mean, row.fooling_success.mean] == pytest.approx(np.mean(success, 0).tolist())
    assert result.decisions.kl.mean == pytest.approx(sum(kl) / 7, abs=1e-12)
    assert result.images == row.kept.pearson.n == result.decisions.kl.n == 7


def test_accuracy_and_agreement_are_counted():
    clean, fooled, x = flat(), flat(seed=3), images(8)
    old, new = clean(x).argmax(1), fooled(x).argmax(1)
    labels = old.clone()
    labels[:3] = (labels[:3] + 1) % 5
    decisions = compare(clean, fooled, loader=[(x[:5], labels[:5]), (x[5:], labels[5:])]).decisions
    assert decisions.accuracy_before.mean == 5 / 8
    assert decisions.accuracy_after.mean == float((new == labels).double().mean())
    assert decisions.agreement.mean == float((new == old).double().mean())
    assert compare(clean, fooled, loader=[x]).decisions.accuracy_before is None


def test_both_models_explain_the_clean_decision_or_the_label():
    clean, fooled, x = flat(), flat(seed=3), images(6)
    labels = (clean(x).argmax(1) + 1) % 5
    for classes, index in (("decisions", clean(x).argmax(1)), ("labels", labels)):
        result = compare(clean, fooled, loader=[(x, labels)], classes=classes)
        old, new = (GradCAM(model, "relu", rectify=False).explain(x, index).maps for model in (clean, fooled))
        expected = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(old, new, strict=True)])
        assert result["signed"].kept.pearson.mean == pytest.approx(expected, abs=1e-12)
        assert result.classes == classes


def test_constant_maps_are_counted_and_not_averaged():
    clean = pooled()
    fooled = pooled()
    with torch.no_grad():
        clean.head.weight.copy_(clean.head.weight.abs())
        fooled.head.weight.copy_(-clean.head.weight)  # no evidence for any class: rectified, every map is 0
    lost = compare(clean, fooled)["GradCAM"]
    assert (lost.constant_before.mean, lost.constant_after.mean) == (0, 1)
    assert lost.kept.pearson == Estimate(0, 0, 0, 7)
    assert lost.entropy_before.n == 7
    assert lost.entropy_after.n == 0
    assert math.isnan(lost.entropy_after.mean)
    never = compare(fooled, clean)["GradCAM"]
    assert (never.constant_before.mean, never.kept.pearson.n, never.kept.iou.n) == (1, 0, 0)


@pytest.mark.parametrize(("low", "high", "rate"), [(0.1, 0.3, 0.75), (0.1, 0.29, 0.5), (0.11, 0.3, 0.5), (0.5, 1, 0)])
def test_fooling_success_counts_losses_in_the_closed_range(low, high, rate):
    losses = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    options = {"mask": HOAX, "fooling_loss": lambda *_: losses, "fooling_range": (low, high)}
    assert compare(pooled(), pooled(), loader=[images(4)], **options)["GradCAM"].fooling_success.mean == rate


def test_without_a_mask_nothing_is_said_of_a_hoax():
    row = compare(pooled(), pooled())["GradCAM"]
    assert row.reached_before is row.reached_after is row.fooling_success is row.fooling_success_before is None


@pytest.mark.parametrize("dims", [1, 3])
def test_maps_of_other_dimensions_have_no_ssim_and_everything_else(dims):
    kept = compare(pooled(dims=dims), flat(dims=dims), loader=[images(dims=dims)])["signed"].kept
    assert (kept.ssim.n, kept.pearson.n, kept.iou.n) == (0, 3, 3)


# Intervals


def test_the_interval_is_that_of_a_mean():
    x = images(200)
    row = compare(pooled(), flat(), loader=[x], resamples=1000)["signed"]
    values = cam_entropy(GradCAM(pooled(), "relu", rectify=False).explain(x).maps).numpy()
    error = values.std() / math.sqrt(200)
    assert row.entropy_before.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert row.entropy_before.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    narrow = compare(pooled(), flat(), loader=[x], resamples=1000, confidence=0.5)["signed"].entropy_before
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 * error, rel=0.2)


def test_without_resamples_there_are_means_and_no_intervals():
    x = images(7)
    none, some = (compare(pooled(), flat(), loader=[x], resamples=r)["signed"].kept.pearson for r in (0, 20))
    assert (none.mean, none.n) == (some.mean, some.n)
    assert math.isnan(none.low)
    assert math.isnan(none.high)
    assert some.low < none.mean < some.high


def test_the_seed_decides_the_interval_and_batches_decide_nothing():
    x = images(7)
    whole = compare(pooled(), flat(), loader=[x], mask=HOAX)
    assert whole == compare(pooled(), flat(), loader=[x], mask=HOAX)
    assert whole["signed"].kept.pearson != compare(pooled(), flat(), loader=[x], seed=1)["signed"].kept.pearson
    parts = compare(pooled(), flat(), loader=[x[:2], x[2:]], mask=HOAX)
    assert means(parts["signed"].kept) == pytest.approx(means(whole["signed"].kept), abs=1e-12)


def test_a_single_image_has_no_interval():
    estimate = compare(pooled(), flat(), loader=[images(1)])["signed"].kept.pearson
    assert estimate.n == 1
    assert math.isfinite(estimate.mean)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


# What it is for


def test_a_common_mode_hoax_fools_gradcam_and_not_diffgradcam_and_a_spatial_one_fools_both():
    clean, (x, labels) = trained(), data()
    loader = [(x[i : i + 64], labels[i : i + 64]) for i in (0, 64)]
    explainers = {
        "GradCAM": lambda model: GradCAM(model, LAYER),
        "logsumexp": lambda model: DiffGradCAM(model, LAYER),
        "max": lambda model: DiffGradCAM(model, LAYER, baseline="max"),
        "mean": lambda model: DiffGradCAM(model, LAYER, baseline="mean"),
    }
    hoax = compare(clean, common_mode_hoax(clean, LAYER, x[:128], MASK), explainers, loader, mask=MASK)
    assert hoax.decisions.kl.mean == pytest.approx(0, abs=1e-9)
    assert hoax.decisions.agreement.mean == 1
    assert hoax.decisions.accuracy_before == hoax.decisions.accuracy_after
    assert hoax.decisions.accuracy_before.mean > 0.95
    assert hoax["GradCAM"].kept.pearson.high < 0.1
    assert hoax["GradCAM"].reached_after.pearson.low > 0.4
    assert hoax["GradCAM"].reached_before.pearson.high < 0
    for contrast in ("logsumexp", "max", "mean"):
        assert hoax[contrast].kept.pearson.low > 0.9999
        assert hoax[contrast].kept.rmse.high < 1e-3

    moved = compare(clean, spatial_hoax(clean, LAYER, lambda a: a.roll((4, 4), dims=(2, 3))), explainers, loader)
    assert moved.decisions.kl.mean == pytest.approx(0, abs=1e-9)
    assert all(row.kept.pearson.high < 0.5 for row in moved.rows)


def test_one_forward_pass_a_model_and_batch_and_nothing_is_left_behind():
    clean, fooled = pooled(), flat()
    counted = [forward_passes(model) for model in (clean, fooled)]
    with untouched(clean), untouched(fooled):
        compare(clean, fooled, mask=HOAX)
    assert [len(count) for count in counted] == [2, 2]


def test_a_model_in_training_mode_is_compared_in_evaluation_mode_and_stays_as_it_is():
    clean, x = trained(), data()[0][:16]
    explainers = {"GradCAM": lambda model: GradCAM(model, LAYER)}
    fooled = common_mode_hoax(clean, LAYER, x, MASK)
    expected = compare(clean, fooled, explainers, [x])
    clean.train()
    fooled.norm2.train()
    with untouched(clean), untouched(fooled):
        assert compare(clean, fooled, explainers, [x]) == expected
    assert clean.training
    assert fooled.norm2.training


def test_a_bar_shows_the_progress(capsys):
    compare(pooled(), pooled(), progress=True)
    assert "benchmark: 100%" in capsys.readouterr().err


# The result


def estimate(mean):
    return Estimate(mean, mean - 0.125, mean + 0.125, 4)


def similarity(*values):
    return Similarity(*map(estimate, values))


def by_hand():
    """A result whose numbers are exact in binary."""
    row = Row(
        explainer="a|b",
        kept=similarity(0.5, 0.25, 0.0, 0.75, 0.125, 1.0),
        reached_before=similarity(-0.5, -0.25, 0.0, 0.25, 0.5, 0.125),
        reached_after=similarity(0.5, 0.5, 0.5, 0.5, 0.25, 0.75),
        fooling_success_before=estimate(0.0),
        fooling_success=estimate(0.5),
        entropy_before=estimate(2.0),
        entropy_after=Estimate(math.nan, math.nan, math.nan, 0),
        constant_before=estimate(0.0),
        constant_after=estimate(1.0),
    )
    decisions = Decisions(None, None, Estimate(1.0, 1.0, 1.0, 4), Estimate(0.5, math.nan, math.nan, 1))
    return BenchmarkResult([row], decisions, 4, "decisions", (0.0, 0.2), 0.95)


def test_markdown():
    assert by_hand().to_markdown().splitlines() == [
        "4 images; maps of the clean model's decision; mean [95% bootstrap interval].",
        "",
        "| decisions | before | after |",
        "| --- | --- | --- |",
        "| accuracy | n/a | n/a |",
        "| agreement |  | 1 [1, 1] |",
        "| KL divergence, nats |  | 0.5 |",
        "",
        "Similarity of each map to the clean model's own:",
        "",
        "| explainer | Pearson | Spearman | SSIM | cosine | RMSE | IoU | entropy before, nats | entropy after, nats "
        "| constant maps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a\\|b | 0.5 [0.375, 0.625] | 0.25 [0.125, 0.375] | 0 [-0.125, 0.125] | 0.75 [0.625, 0.875] "
        "| 0.125 [0, 0.25] | 1 [0.875, 1.12] | 2 [1.88, 2.12] | n/a | 0.0% → 100.0% |",
        "",
        "Similarity of each map to the hoax, before → after:",
        "",
        "| explainer | Pearson | Spearman | SSIM | cosine | RMSE | IoU | fooling success (loss in [0, 0.2]) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a\\|b | -0.5 → 0.5 [0.375, 0.625] | -0.25 → 0.5 [0.375, 0.625] | 0 → 0.5 [0.375, 0.625] "
        "| 0.25 → 0.5 [0.375, 0.625] | 0.5 → 0.25 [0.125, 0.375] | 0.125 → 0.75 [0.625, 0.875] "
        "| 0 → 0.5 [0.375, 0.625] |",
    ]


def test_markdown_without_a_mask_has_no_table_of_the_hoax():
    assert "hoax" not in compare(pooled(), pooled()).to_markdown()


def test_json_holds_everything_and_no_nan():
    read = json.loads(by_hand().to_json(), parse_constant=pytest.fail)
    assert read["rows"][0]["kept"]["pearson"] == {"mean": 0.5, "low": 0.375, "high": 0.625, "n": 4}
    assert read["rows"][0]["entropy_after"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert read["decisions"]["accuracy_before"] is None
    assert (read["images"], read["classes"], read["fooling_range"], read["confidence"]) == (
        4,
        "decisions",
        [0.0, 0.2],
        0.95,
    )


def test_dataframe_has_a_row_for_each_explainer():
    pytest.importorskip("pandas", reason="to_pandas() needs pip install pandas")
    result = compare(pooled(), flat(), mask=HOAX)
    frame = result.to_pandas()
    assert frame["explainer"].tolist() == list(EXPLAINERS)
    assert frame["kept_pearson"].tolist() == [row.kept.pearson.mean for row in result.rows]
    assert frame["kept_pearson_low"].tolist() == [row.kept.pearson.low for row in result.rows]
    assert frame["reached_after_iou"].tolist() == [row.reached_after.iou.mean for row in result.rows]
    assert frame["fooling_success"].tolist() == [row.fooling_success.mean for row in result.rows]
    assert frame["entropy_before_n"].tolist() == [row.entropy_before.n for row in result.rows]
    assert not [name for name in compare(pooled(), flat()).to_pandas() if "reached" in name or "success" in name]


def test_the_figure_shows_pearson_with_its_intervals():
    result = compare(pooled(), flat(), mask=HOAX)
    figure = result.plot()
    assert isinstance(figure, Figure)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(EXPLAINERS)

    def drawn(axis):
        return [container.lines[0].get_xdata().tolist() for container in axis.containers]

    assert drawn(left) == [[row.kept.pearson.mean for row in result.rows]]
    assert drawn(right) == [
        [row.reached_before.pearson.mean for row in result.rows],
        [row.reached_after.pearson.mean for row in result.rows],
    ]
    (segments,) = left.containers[0].lines[2]
    ends = [segment[:, 0].tolist() for segment in segments.get_segments()]
    assert np.allclose(ends, [[row.kept.pearson.low, row.kept.pearson.high] for row in result.rows])
    figure.savefig(io.BytesIO(), format="png")
    assert len(compare(pooled(), flat(), loader=[images(1)]).plot().axes) == 1


def test_where_the_device_has_no_float64():
    models = [pooled(seed=seed, dtype=torch.float32) for seed in range(2)]
    batches = [images(4, dtype=torch.float32)]
    options = {"loader": batches, "mask": HOAX, "resamples": 0}
    explainers = {"GradCAM": EXPLAINERS["GradCAM"]}
    expected = compare(*models, explainers, **options)
    with pretend_device(float64=False):
        found = compare(*(model.to(DEVICE) for model in models), explainers, **options)
    assert repr(found) == repr(expected)  # as text, in which NaN equals NaN


# What it refuses


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas, which is not installed; pip install pandas"):
        by_hand().to_pandas()
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"benchmark\(\) needs scipy, which is not installed; pip install scipy$"):
        compare(pooled(), pooled())


def test_wrong_explainers_are_refused():
    model = pooled()
    for explainers, error, message in (
        ({}, ValueError, r"explainers is empty; expected at least one, such as \{\"GradCAM\": lambda model"),
        ([GradCAM], TypeError, "explainers is list; expected a dictionary, such as"),
        ({"G": GradCAM}, TypeError, r"explainers\['G'\] is the class GradCAM; expected a function that makes a CAM"),
        ({"G": GradCAM(model, "relu")}, TypeError, r"explainers\['G'\] is a GradCAM; expected a function"),
        ({"G": AugSmooth(GradCAM(model, "relu"))}, TypeError, r"explainers\['G'\] is a AugSmooth; expected a function"),
        ({"G": "GradCAM"}, TypeError, r"explainers\['G'\] is a str; expected a function"),
        ({"G": lambda m: m}, TypeError, r"explainers\['G'\] made a Sequential of the clean model; expected a CAM"),
        (
            {"G": lambda _: GradCAM(model, "relu")},
            ValueError,
            "another model; expected one of the fooled model",
        ),
        ({"G": lambda m: GradCAM(m, model.relu)}, ValueError, "a copy has layers of its own"),
        (
            {"a": lambda m: GradCAM(m, "relu"), "b": lambda m: GradCAM(m, "stem")},
            ValueError,
            "of the clean model: .* differ in the target layers",
        ),
    ):
        with pytest.raises(error, match=message):
            compare(model, pooled(), explainers)
    with pytest.raises(KeyError, match="'LRP' was not compared; expected one of"):
        compare(model, model)["LRP"]


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="clean model has 4 classes and the fooled one 5; expected the same"):
        compare(pooled(classes=4), pooled())
    with pytest.raises(
        ValueError, match=r"of the fooled model: class \d is out of range; the model has classes 0 to 0"
    ):
        compare(pooled(classes=9), pooled(classes=1), {"GradCAM": EXPLAINERS["GradCAM"]})
    with pytest.raises(TypeError, match=r"the fooled model is str; expected a torch\.nn\.Module"):
        compare(pooled(), "fooled")
    broken = pooled()
    nn.init.constant_(broken.head.bias, math.nan)
    with pytest.raises(ValueError, match="of the fooled model: the output of image 0 is NaN"):
        compare(pooled(), broken)
    smaller = pooled()
    smaller.relu = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))
    with pytest.raises(ValueError, match=r"size \(6, 5\) for the clean model and \(3, 2\) for the fooled one"):
        compare(pooled(), smaller)


def test_wrong_loaders_are_refused():
    x, labels = images(2), torch.tensor([0, 1])
    for loader, options, error, message in (
        ([], {}, ValueError, "loader is empty; expected at least one batch"),
        (x, {}, TypeError, "loader is a tensor; expected batches of images"),
        ([{"pixels": x}], {}, TypeError, r"a batch is dict; expected a tensor of images, or \(images, labels\)"),
        ([x], {"classes": "labels"}, ValueError, "classes is 'labels', but a batch has none"),
        ([(x, labels), x], {}, ValueError, "some batches have labels and some have none"),
        ([x, (x, labels)], {}, ValueError, "some batches have labels and some have none"),
        ([(x, labels.view(2, 1))], {}, ValueError, r"labels have shape \(2, 1\); expected one class for each image"),
        ([(x, labels.double())], {}, TypeError, r"torch.float64; expected integers"),
        ([(x, labels + 4)], {}, ValueError, "class 5 is out of range; the model has classes 0 to 4"),
    ):
        with pytest.raises(error, match=message):
            compare(pooled(), pooled(), loader=loader, **options)


def test_wrong_options_are_refused():
    for options, message in (
        ({"mask": torch.ones(SIZE[2])}, r"mask of size \(6, 5\) is constant or not finite"),
        ({"mask": torch.full(SIZE[2], math.nan)}, "is constant or not finite"),
        (
            {"mask": border_mask((7, 7), 28)},
            r"mask has size \(7, 7\); expected .* the maps of 'GradCAM'; give",
        ),
        ({"classes": "all"}, "classes is 'all'; expected one of 'decisions', 'labels'"),
        ({"fooling_range": (0.3, 0.1)}, r"fooling_range is \(0.3, 0.1\); expected the lowest and the highest loss"),
        ({"mask": HOAX, "fooling_loss": lambda *_: torch.zeros(())}, r"fooling_loss returned shape \(\) for 4 maps"),
        ({"confidence": 95}, "confidence is 95; expected a level between 0 and 1"),
        ({"resamples": -1}, r"resamples is -1; expected 0 \(no intervals\) or more"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(pooled(), pooled(), **options)
