"""Lie or change? Verdicts on models whose truth is known."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM
from diffgradcam.metrics import Evaluator, behaviour, behaviour_kept, honesty
from diffgradcam.robustness import Decisions, Estimate, HonestyCheck, benchmark, judge
from diffgradcam.scores import logit
from diffgradcam.sham import common_mode_hoax, spatial_hoax
from tests.models import pooled
from tests.sham.digits import LAYER, MASK, data, trained
from tests.untouched import forward_passes, untouched

pytest.importorskip("scipy.stats", reason="the intervals need the extra metrics")

EXPLAINERS = {"GradCAM": lambda model: GradCAM(model, LAYER), "DiffGradCAM": lambda model: DiffGradCAM(model, LAYER)}


def compare(clean, fooled, x, explainers=EXPLAINERS, **options):
    options = {"honesty": True, "resamples": 200, "progress": False} | options
    return benchmark(clean, fooled, explainers, list(x.split(32)), **options)


def verdicts(result):
    return {row.explainer: row.honesty.verdict for row in result.rows}


class TwoMarks(nn.Module):
    """Two marks say the same of each image, one top left, the other bottom right: the head decides which is used."""

    def __init__(self, first, second):
        super().__init__()
        self.features = nn.Identity()
        self.head = nn.Linear(4, 2, bias=False)
        column = torch.tensor([[first, 0.0, second, 0.0], [0.0, first, 0.0, second]])
        self.head.weight.data = 60 * column

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def marked(batch=48):
    """Channels 0 and 1 hold the first mark of class 0 and 1, channels 2 and 3 the second."""
    generator = torch.Generator().manual_seed(0)
    x = 0.02 * torch.rand(batch, 4, 14, 14, generator=generator)
    for i, image in enumerate(x):
        row, column = torch.randint(0, 4, (2,), generator=generator).tolist()
        image[i % 2, row : row + 3, column : column + 3] += 1
        row, column = torch.randint(8, 11, (2,), generator=generator).tolist()
        image[2 + i % 2, row : row + 3, column : column + 3] += 1
    return x


def test_a_head_that_uses_another_mark_is_a_change_and_no_lie():
    clean, other, x = TwoMarks(1, 0).eval(), TwoMarks(0, 1).eval(), marked()
    explainers = {name: partial(m, target_layers="features") for name, m in (("G", GradCAM), ("D", DiffGradCAM))}
    result = compare(clean, other, x, explainers)
    assert result.decisions.agreement.mean == 1
    assert result["G"].kept.pearson.mean < 0.2
    assert result.behaviour_kept.both.mean < 0.3
    assert result["G"].honesty.before.both.mean > 0.7
    assert result["G"].honesty.after.both.mean > 0.7
    assert verdicts(result) == {"G": "change", "D": "change"}


def test_a_roll_of_the_features_is_a_lie_of_every_map():
    clean, x = trained(), data()[0][300:364]
    result = compare(clean, spatial_hoax(clean, LAYER, partial(torch.roll, shifts=(4, 4), dims=(2, 3))), x)
    assert result.behaviour_kept.both.mean == pytest.approx(1, abs=1e-4)
    assert verdicts(result) == {"GradCAM": "lie", "DiffGradCAM": "lie"}


def test_a_common_mode_is_a_lie_of_gradcam_alone():
    clean, x = trained(), data()[0]
    result = compare(clean, common_mode_hoax(clean, LAYER, x[:200], MASK), x[300:364])
    assert verdicts(result) == {"GradCAM": "lie", "DiffGradCAM": "unmoved"}
    row = result["GradCAM"].honesty
    assert row.lost.mean == pytest.approx(row.before.both.mean - row.after.both.mean, abs=1e-6)
    assert abs(result["DiffGradCAM"].honesty.lost.mean) < 1e-4
    assert verdicts(compare(clean, clean, x[300:332])) == {"GradCAM": "unmoved", "DiffGradCAM": "unmoved"}


def test_the_numbers_are_those_of_the_metrics_whatever_the_batches():
    clean, fooled, x = trained(), trained(1), data()[0][300:364]
    result = compare(clean, fooled, x, honesty=HonestyCheck(score=logit, steps=4), resamples=0)
    classes = clean(x).argmax(1)
    before, after = (behaviour(Evaluator(m, score=logit), x, classes, steps=4, progress=False) for m in (clean, fooled))
    kept = behaviour_kept(before, after)
    assert result.behaviour_kept.occlusion.mean == pytest.approx(float(kept.occlusion.mean()), abs=1e-5)
    assert result.behaviour_kept.both.mean == pytest.approx(float(kept.both.mean()), abs=1e-5)
    for name, make in EXPLAINERS.items():
        maps = make(fooled).explain(x, classes).maps
        own = honesty(maps, after)
        found = result[name].honesty.after
        assert found.integrated_gradients.mean == pytest.approx(float(own.integrated_gradients.mean()), abs=1e-5)
        assert found.occlusion.mean == pytest.approx(float(own.occlusion.mean()), abs=1e-5)


def test_it_is_measured_only_where_asked_for_and_reported_everywhere():
    clean, x = trained(), data()[0][300:316]
    fooled = common_mode_hoax(clean, LAYER, x, MASK)
    with untouched(clean), untouched(fooled):
        result = compare(clean, fooled, x, resamples=20)
    text = result.to_markdown()
    assert "Behaviour kept, r: 1 [1, 1]" in text
    assert "| explainer | occlusion | integrated gradients | honesty lost | verdict |" in text
    assert "| lie |" in text
    assert json.loads(result.to_json())["rows"][1]["honesty"]["verdict"] == "unmoved"
    pandas = pytest.importorskip("pandas", reason="data frames need pandas")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["honesty_before_both"][0] == result["GradCAM"].honesty.before.both.mean
    assert list(frame["honesty_verdict"]) == ["lie", "unmoved"]
    counted = forward_passes(copy_of := copy.deepcopy(clean))
    without = compare(copy_of, fooled, x, honesty=False, resamples=20)
    assert len(counted) == 1
    assert without.behaviour_kept is None
    assert without["GradCAM"].honesty is None
    assert "verdict" not in without.to_markdown()
    assert without["GradCAM"].kept == result["GradCAM"].kept


def certain(value):
    return Estimate(value, value, value, 100)


def around(value, reach):
    return Estimate(value, value - reach, value + reach, 100)


SAME = Decisions(None, None, agreement=certain(1.0), kl=certain(0.0))
OTHER = Decisions(None, None, agreement=certain(0.8), kl=certain(0.5))


@pytest.mark.parametrize(
    ("decisions", "behaved", "kept", "lost", "verdict"),
    [
        (SAME, certain(1), certain(0.95), certain(0.0), "unmoved"),
        (SAME, certain(1), certain(0.2), certain(0.4), "lie"),
        (SAME, certain(0.2), certain(0.2), certain(0.0), "change"),
        (OTHER, certain(1), certain(0.2), certain(0.4), "unclear"),
        (OTHER, certain(0.2), certain(0.2), certain(0.0), "change"),
        (SAME, certain(0.2), certain(0.2), certain(0.4), "unclear"),
        (SAME, certain(1), certain(0.2), certain(0.0), "unclear"),
        (SAME, around(0.75, 0.1), certain(0.2), certain(0.4), "unclear"),
        (SAME, certain(1), certain(0.2), around(0.15, 0.1), "unclear"),
        (SAME, certain(1), around(0.95, 0.1), certain(0.4), "lie"),
        (SAME, Estimate(1, float("nan"), float("nan"), 1), certain(0.2), certain(0.4), "lie"),
    ],
)
def test_the_verdict_by_cases(decisions, behaved, kept, lost, verdict):
    assert judge(decisions, behaved, kept, lost) == verdict


def test_thresholds_are_arguments():
    assert judge(SAME, certain(0.6), certain(0.2), certain(0.4)) == "unclear"
    assert judge(SAME, certain(0.6), certain(0.2), certain(0.4), HonestyCheck(behaviour=0.5)) == "lie"
    assert judge(SAME, certain(1), certain(0.8), certain(0.0), HonestyCheck(kept=0.7)) == "unmoved"


def test_bad_input_is_refused():
    model, x = pooled(dtype=torch.float32), torch.rand(2, 3, 6, 5)
    explainers = {"GradCAM": lambda m: GradCAM(m, "relu")}
    with pytest.raises(TypeError, match="honesty is str; expected True, False or a HonestyCheck"):
        compare(model, model, x, explainers, honesty="yes")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 6, 5\); expected .* at least 7 x 7 pixels"):
        compare(model, model, x, explainers)
    with pytest.raises(ValueError, match="lost is 2; expected a share"):
        HonestyCheck(lost=2)
    with pytest.raises(ValueError, match="kl is -1; expected a divergence in nats"):
        HonestyCheck(kl=-1)
    with pytest.raises(ValueError, match="grid is 0; expected an integer of at least 1"):
        HonestyCheck(grid=0)
