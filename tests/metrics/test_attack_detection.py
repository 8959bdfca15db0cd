import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import LeaveOneGroupOut

from diffgradcam.metrics import (
    accuracy,
    acer,
    apcer,
    apcer_at_bpcer,
    auroc,
    bootstrap_interval,
    bpcer,
    eer,
    mean_and_spread,
    paired_comparison,
)

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
SCORES = [0.1, 0.2, 0.3, 0.6, 0.9, 0.8, 0.7, 0.55, 0.4, 0.2]
TYPES = ["", "", "", "", "print", "print", "print", "mask", "mask", "mask"]


def random_task(seed, n=40):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    return labels, np.round(rng.normal(labels, 1.5), 1)  # rounded, so that scores tie


def test_figures_at_a_threshold_by_hand():
    assert accuracy(LABELS, SCORES) == 0.7
    assert apcer(LABELS, SCORES) == 2 / 6
    assert bpcer(LABELS, SCORES) == 1 / 4
    assert acer(LABELS, SCORES) == (2 / 6 + 1 / 4) / 2
    assert (apcer(LABELS, SCORES, 0.75), bpcer(LABELS, SCORES, 0.75)) == (4 / 6, 0)


def test_apcer_is_that_of_the_worst_attack_type():
    assert apcer(LABELS, SCORES, attack_types=TYPES) == 2 / 3
    assert acer(LABELS, SCORES, attack_types=TYPES) == (2 / 3 + 1 / 4) / 2
    assert apcer_at_bpcer(LABELS, SCORES, attack_types=TYPES) == 1.0
    assert apcer_at_bpcer(LABELS, SCORES) == 3 / 6


def test_a_score_at_the_threshold_is_called_an_attack():
    assert (apcer([0, 1], [0.5, 0.5]), bpcer([0, 1], [0.5, 0.5])) == (0, 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), target=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_apcer_at_bpcer_is_the_best_of_all_thresholds(seed, target):
    labels, scores = random_task(seed)
    thresholds = [*np.unique(scores), math.inf]
    allowed = [t for t in thresholds if bpcer(labels, scores, t) <= target]
    assert apcer_at_bpcer(labels, scores, target) == min(apcer(labels, scores, t) for t in allowed)


def test_apcer_at_bpcer_of_one_percent_may_lose_one_in_a_hundred():
    labels = [0] * 100 + [1] * 2
    scores = [0.1] * 99 + [0.9] + [0.5, 0.95]
    assert apcer_at_bpcer(labels, scores) == 0.0  # the threshold 0.5 rejects 1 of 100
    assert apcer_at_bpcer(labels[1:], scores[1:]) == 0.5  # 1 of 99 is more than 1%


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_auroc_counts_pairs(seed):
    labels, scores = random_task(seed)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))
    assert auroc(labels, -scores) == pytest.approx(1 - np.mean(pairs))
    assert auroc(labels, np.exp(scores / 3)) == pytest.approx(np.mean(pairs))


def test_eer_by_hand():
    assert eer([0, 0, 1, 1], [1, 2, 3, 4]) == 0
    assert eer([0, 0, 1, 1], [3, 4, 1, 2]) == 1
    assert eer([0, 1], [0.5, 0.5]) == 0.5
    assert eer([0, 0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 6, 5, 7, 8, 9]) == 0.25
    assert eer(LABELS, SCORES) == pytest.approx(0.25)  # missed attacks cross it on the step from 1/6 to 1/3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_eer_lies_between_the_errors_of_the_two_thresholds_around_it(seed):
    labels, scores = random_task(seed)
    thresholds = [math.inf, *sorted(np.unique(scores), reverse=True)]
    points = [(bpcer(labels, scores, t), apcer(labels, scores, t)) for t in thresholds]
    after = next(i for i, (rejected, missed) in enumerate(points) if rejected >= missed)
    (r0, m0), (r1, m1) = points[after - 1], points[after]
    value = eer(labels, scores)
    assert r0 - 1e-12 <= value <= r1 + 1e-12
    assert m1 - 1e-12 <= value <= m0 + 1e-12
    assert value == pytest.approx(eer(1 - labels, -scores))


def test_tensors_and_bools_are_accepted():
    labels, scores = torch.tensor(LABELS), torch.tensor(SCORES, dtype=torch.float64)
    for figure in (auroc, accuracy, apcer, bpcer, acer, apcer_at_bpcer, eer):
        value = figure(labels.bool(), scores)
        assert type(value) is float
        assert value == figure(LABELS, SCORES)


# Uncertainty.


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_interval_of_a_rate_is_near_the_analytic_one(method):
    labels, scores = [0, 0] + [1] * 200, [0.0, 0.0] + [0.1] * 40 + [0.9] * 160
    low, high = bootstrap_interval(apcer, labels, scores, method=method)
    margin = 1.96 * math.sqrt(0.2 * 0.8 / 200)
    assert low == pytest.approx(0.2 - margin, abs=0.012)
    assert high == pytest.approx(0.2 + margin, abs=0.012)


def test_bootstrap_interval_is_repeatable_and_widens_with_confidence():
    labels, scores = random_task(1)
    low, high = bootstrap_interval(auroc, labels, scores, resamples=60)
    assert low < auroc(labels, scores) < high
    assert bootstrap_interval(auroc, labels, scores, resamples=60) == (low, high)
    assert bootstrap_interval(auroc, labels, scores, resamples=60, seed=1) != (low, high)
    narrow = bootstrap_interval(auroc, labels, scores, resamples=60, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_keeps_label_score_and_type_together_and_every_stratum_full():
    seen = []

    def metric(labels, scores, attack_types):
        assert all(TYPES[SCORES.index(s)] == t or s == 0.2 for s, t in zip(scores, attack_types, strict=True))
        seen.append(tuple(sorted(zip(labels.tolist(), attack_types.tolist(), strict=True))))
        return float(scores.mean())

    bootstrap_interval(metric, LABELS, SCORES, TYPES, resamples=20)
    assert len(seen) == 20
    assert set(seen) == {tuple(sorted(zip(LABELS, TYPES, strict=True)))}


def test_bootstrap_interval_of_a_perfect_detector_is_a_point():
    assert bootstrap_interval(auroc, [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], resamples=50) == (1, 1)


def test_bootstrap_with_attack_types_and_fixed_options():
    strict = partial(apcer, threshold=0.75)
    low, high = bootstrap_interval(strict, LABELS, SCORES, TYPES, resamples=50)
    assert (low, high) == (1, 1)  # every mask scores below 0.75


def test_mean_and_spread_by_hand():
    assert mean_and_spread([0.5, 0.7]) == pytest.approx((0.6, math.sqrt(0.02), 2))
    mean, sd, n = mean_and_spread(torch.tensor([0.5]))
    assert (mean, n) == (0.5, 1)
    assert math.isnan(sd)


def test_paired_comparison_by_hand():
    reference = np.array([0.5, 0.9, 0.6, 0.8, 0.7])
    better = reference + np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    result = paired_comparison(better, reference)
    assert result.difference == pytest.approx(0.03)
    assert result.n == 5
    assert 0.01 < result.low < 0.02  # far narrower than the seeds' own spread of 0.16
    assert 0.04 < result.high < 0.05
    assert result.p_value == pytest.approx(2 / 2**5)  # all five signs agree: exact signed-rank test
    flipped = paired_comparison(reference, better)
    assert flipped.difference == pytest.approx(-0.03)
    assert flipped.p_value == pytest.approx(result.p_value)


def test_paired_comparison_of_equal_or_tied_values():
    assert paired_comparison([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]) == (0, 0, 0, 1, 3)
    tied = paired_comparison([1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    assert (tied.difference, tied.n) == (0.75, 4)
    assert 0 < tied.p_value < 1
    constant = paired_comparison([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert (constant.low, constant.high) == (0.5, 0.5)


def test_documented_open_set_splits():
    labels = np.array([0] * 6 + [1] * 6)
    groups = np.array(["print", "mask", "replay"] * 4)
    splits = list(LeaveOneGroupOut().split(np.zeros((12, 1)), labels, groups))
    assert len(splits) == 3
    for train, test in splits:
        assert not set(groups[train]) & set(groups[test])
        assert set(labels[test]) == {0, 1}


# Errors that teach.


@pytest.mark.parametrize("figure", [auroc, accuracy, apcer, bpcer, acer, apcer_at_bpcer, eer])
def test_bad_labels_and_scores(figure):
    with pytest.raises(ValueError, match=r"labels hold \[1\]; expected both 1 \(attack\) and 0 \(bona fide\)"):
        figure([1, 1], [0.2, 0.3])
    with pytest.raises(ValueError, match=r"labels hold \[0, 1, 2\]; expected both"):
        figure([0, 1, 2], [0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) and scores \(2,\); expected one score per label"):
        figure([0, 1, 1], [0.2, 0.3])
    with pytest.raises(ValueError, match="scores hold NaN or infinite values"):
        figure([0, 1], [0.2, math.nan])
    with pytest.raises(ValueError, match=r"scores have shape \(2, 2\); expected \(N,\)"):
        figure([0, 1], [[0.2, 0.8], [0.9, 0.1]])


def test_bad_attack_types_and_target():
    for figure in (apcer, acer, apcer_at_bpcer):
        with pytest.raises(ValueError, match="got 1 attack_types for 10 labels; expected one per image"):
            figure(LABELS, SCORES, attack_types=["print"])
    with pytest.raises(ValueError, match=r"target is 1\.5; expected a BPCER from 0 to 1"):
        apcer_at_bpcer(LABELS, SCORES, 1.5)


def test_bad_bootstrap():
    with pytest.raises(ValueError, match=r"hold \[1, 2\] images; expected at least two in each; merge rare"):
        bootstrap_interval(auroc, [0, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="method is 'basic'; expected one of 'percentile', 'BCa'"):
        bootstrap_interval(auroc, LABELS, SCORES, method="basic")
    with pytest.raises(ValueError, match="confidence is 95; expected a level between 0 and 1"):
        bootstrap_interval(auroc, LABELS, SCORES, confidence=95)
    with pytest.raises(ValueError, match="resamples is 0; expected at least 1"):
        bootstrap_interval(auroc, LABELS, SCORES, resamples=0)


def test_bad_seeds():
    with pytest.raises(ValueError, match=r"values have shape \(0,\); expected \(N,\) with at least one value"):
        mean_and_spread([])
    with pytest.raises(ValueError, match="values hold NaN or infinite"):
        mean_and_spread([0.1, math.nan])
    with pytest.raises(ValueError, match="got 3 values and 2 of the reference; expected one pair per seed"):
        paired_comparison([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"got 1 values and 1 of the reference; .* at least two"):
        paired_comparison([1], [2])
    with pytest.raises(ValueError, match="method is 'normal'; expected one of"):
        paired_comparison([1, 2], [2, 1], method="normal")


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("sklearn.metrics", "scikit-learn", lambda: auroc([0, 1], [0, 1])),
        ("scipy.stats", "scipy", lambda: paired_comparison([1, 2], [2, 1])),
    ],
)
def test_a_missing_library_is_named_with_its_command(monkeypatch, module, name, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs {name}, which is not installed; pip install {name}$"):
        call()
