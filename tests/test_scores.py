import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgradcam.scores import (
    Counterfactual,
    CustomScore,
    Finer,
    Logit,
    LogitDifference,
    LogProbability,
    Probability,
    as_score,
    baseline_function,
    check_contrast,
    finer,
    log_probability,
    logit,
    logit_difference,
    probability,
    score_gradients,
    two_logits,
)
from tests import oracles

CONTRASTS = {
    "logsumexp": logit_difference,
    "max": partial(logit_difference, baseline="max"),
    "mean": partial(logit_difference, baseline="mean"),
    "callable": partial(logit_difference, baseline=lambda others: others.amin(1)),
    "finer": finer,
    "finer of one": partial(finer, comparisons=1),
}
ORACLES = {
    "logsumexp": oracles.difference(oracles.logsumexp),
    "max": oracles.difference(oracles.largest),
    "mean": oracles.difference(oracles.mean),
    "callable": oracles.difference(lambda others: -oracles.largest([-z for z in others])),
    "finer": oracles.finer(),
    "finer of one": oracles.finer(comparisons=1),
}
contrasts = pytest.mark.parametrize("name", CONTRASTS)


@st.composite
def logits_and_classes(draw, least=2):
    """Float64 logits ``(B, K)`` within +-20 and a class for each row."""
    batch, count = draw(st.integers(1, 4)), draw(st.integers(least, 6))
    value = st.floats(-20, 20, allow_subnormal=False)
    rows = draw(st.lists(st.lists(value, min_size=count, max_size=count), min_size=batch, max_size=batch))
    classes = draw(st.lists(st.integers(0, count - 1), min_size=batch, max_size=batch))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(classes)


def distinct(logits):
    """The same rows moved clear of ties: of two logits, and of two that are equally far from a third."""
    return logits + 1e-3 * torch.arange(1, logits.shape[1] + 1, dtype=logits.dtype).sqrt()


def test_hand_computed_values():
    z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 3.0]], dtype=torch.float64)
    c = torch.tensor([0, 2])
    e = math.exp
    assert logit(z, c).tolist() == [2.0, 3.0]
    assert logit_difference(z, c, "max").tolist() == [1.0, 0.0]
    assert logit_difference(z, c, "mean").tolist() == [2.0, 1.5]
    assert logit_difference(z, c, 1).tolist() == [1.0, 0.0]
    assert logit_difference(z, c, lambda others: others[:, 0]).tolist() == [1.0, 3.0]
    expected = [2 - math.log(e(1) + e(-1)), 3 - math.log(1 + e(3))]
    assert logit_difference(z, c).tolist() == pytest.approx(expected, rel=1e-15)
    p = [e(2) / (e(2) + e(1) + e(-1)), e(3) / (1 + 2 * e(3))]
    assert probability(z, c).tolist() == pytest.approx(p, rel=1e-15)
    assert log_probability(z, c).tolist() == pytest.approx([math.log(x) for x in p], rel=1e-14)
    # Distances from z_0 = 2: class 1 is 1 away, class 2 is 3 away.
    assert finer(z[:1], c[:1], comparisons=1).tolist() == [1.0]
    weighted = (e(1) * (2 - 0.6 * 1) + e(-1) * (2 + 0.6 * 1)) / (e(1) + e(-1))
    assert finer(z[:1], c[:1], alpha=0.6).tolist() == pytest.approx([weighted], rel=1e-15)


@contrasts
@given(logits_and_classes())
def test_value_and_gradient_equal_a_loop(name, given_):
    logits, classes = distinct(given_[0]).requires_grad_(), given_[1]
    ours = CONTRASTS[name](logits, classes)
    theirs = torch.stack([ORACLES[name](z, int(c)) for z, c in zip(logits, classes, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for own, other in zip(
        torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(theirs.sum(), logits), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@contrasts
@given(logits_and_classes(), st.floats(-100, 100))
def test_a_contrast_does_not_see_a_common_shift(name, given_, shift):
    logits, classes = distinct(given_[0]), given_[1]
    score = CONTRASTS[name]
    torch.testing.assert_close(score(logits + shift, classes), score(logits, classes), rtol=0, atol=1e-10)


@given(logits_and_classes(), st.floats(-100, 100))
def test_a_contrast_with_a_class_does_not_see_a_common_shift(given_, shift):
    logits, classes = given_
    classes = classes.clamp_min(1)
    before = logit_difference(logits, classes, 0)
    torch.testing.assert_close(logit_difference(logits + shift, classes, 0), before, rtol=0, atol=1e-10)


@given(logits_and_classes(), st.floats(-100, 100))
def test_a_logit_and_finer_below_one_do_see_it(given_, shift):
    logits, classes = distinct(given_[0]), given_[1]
    for score, share in ((logit, 1.0), (partial(finer, alpha=0.25), 0.75)):
        moved = score(logits + shift, classes) - score(logits, classes)
        torch.testing.assert_close(moved, torch.full_like(moved, share * shift), rtol=0, atol=1e-10)


@given(logits_and_classes())
def test_the_default_is_the_log_odds(given_):
    logits, classes = given_
    p = probability(logits, classes)
    rest = logits.softmax(1).scatter(1, classes.unsqueeze(1), 0).sum(1)  # 1 - p without cancellation
    torch.testing.assert_close(logit_difference(logits, classes), (p / rest).log(), rtol=1e-10, atol=1e-10)


@given(logits_and_classes())
def test_the_gradient_of_log_probability_is_that_of_the_log_odds_times_one_minus_p(given_):
    logits, classes = given_[0].requires_grad_(), given_[1]
    (of_log,) = torch.autograd.grad(log_probability(logits, classes).sum(), logits)
    (of_odds,) = torch.autograd.grad(logit_difference(logits, classes).sum(), logits)
    left = (1 - probability(logits, classes)).unsqueeze(1)
    torch.testing.assert_close(of_log, left * of_odds, rtol=1e-10, atol=1e-12)


@given(logits_and_classes())
def test_for_two_classes_all_contrasts_coincide(given_):
    logits, classes = given_[0][:, :2], given_[1].clamp_max(1)
    expected = logits.gather(1, classes.unsqueeze(1)) - logits.gather(1, 1 - classes.unsqueeze(1))
    for name, score in CONTRASTS.items():
        torch.testing.assert_close(score(logits, classes), expected.squeeze(1), rtol=1e-12, atol=1e-12, msg=name)
    for c in (0, 1):
        one = torch.full_like(classes, c)
        torch.testing.assert_close(logit_difference(logits, one, 1 - c), logits[:, c] - logits[:, 1 - c])


@contrasts
@given(logits_and_classes(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(name, given_, random):
    logits, classes = distinct(given_[0]), given_[1]
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    order = torch.tensor(order)
    moved = CONTRASTS[name](logits[:, order], order.argsort()[classes])
    torch.testing.assert_close(moved, CONTRASTS[name](logits, classes), rtol=1e-10, atol=1e-10)


@given(logits_and_classes())
def test_finer_with_more_comparisons_than_classes_takes_all(given_):
    logits, classes = given_
    torch.testing.assert_close(finer(logits, classes, comparisons=50), finer(logits, classes, comparisons=5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@contrasts
def test_certain_models_have_finite_scores_and_gradients(name, dtype):
    logits = torch.tensor([[3e4, 0.0, -3e4], [-3e4, 3e4, 1.0]], dtype=dtype, requires_grad=True)
    scores = CONTRASTS[name](logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(scores.sum(), logits)
    assert scores.isfinite().all()
    assert gradient.isfinite().all()
    # The gradient of the logit itself is 1 however certain the model is; that of a probability would be 0.
    assert gradient[:, 0].tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("score", [logit, probability, log_probability, *CONTRASTS.values()])
def test_scores_are_computed_where_the_logits_are(score):
    logits, classes = torch.randn(3, 5, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    assert score(logits, classes).device == logits.device  # mixing devices would be an error of PyTorch's


@pytest.mark.parametrize("score", [logit, probability, log_probability, *CONTRASTS.values()])
def test_gradcheck(score):
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda z: score(z, classes), logits)
    assert torch.autograd.gradgradcheck(lambda z: score(z, classes), logits)


@given(st.floats(-30, 30))
def test_two_logits_are_the_sigmoid(value):
    z = torch.tensor([[value]], dtype=torch.float64)
    pair = two_logits(z)
    torch.testing.assert_close(pair.softmax(1)[:, 1:], z.sigmoid())
    torch.testing.assert_close(logit_difference(pair, torch.tensor([1])), z[:, 0])
    torch.testing.assert_close(logit_difference(pair, torch.tensor([0])), -z[:, 0])
    assert torch.equal(two_logits(z[:, 0]), pair)


def test_two_logits_of_no_image():
    assert two_logits(torch.ones(0, 1)).shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 1), (0, 3)])
def test_two_logits_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected one output per image, \(B, 1\) or \(B,\), got shape"):
        two_logits(torch.ones(shape))


@pytest.mark.parametrize("score", [logit_difference, finer])
def test_one_class_cannot_be_contrasted_and_the_message_offers_the_sigmoid(score):
    with pytest.raises(
        ValueError, match=r"at least 2 classes, .* shape \(3, 1\); .* output=diffgradcam.scores.two_logits"
    ):
        score(torch.ones(3, 1), torch.zeros(3, dtype=torch.long))


def test_check_contrast_lets_two_classes_pass():
    check_contrast(torch.ones(3, 2))


@pytest.mark.parametrize("baseline", ["median", None, 1.5, ["max"]])
def test_an_unknown_baseline_is_refused(baseline):
    with pytest.raises(ValueError, match=r"is not a baseline; expected one of \['logsumexp', 'max', 'mean'\], a class"):
        logit_difference(torch.ones(1, 3), torch.zeros(1, dtype=torch.long), baseline)


@pytest.mark.parametrize("contrast", [3, -1])
def test_a_baseline_class_out_of_range_is_refused(contrast):
    with pytest.raises(ValueError, match=rf"class {contrast} is out of range; the model has classes 0 to 2"):
        logit_difference(torch.ones(1, 3), torch.zeros(1, dtype=torch.long), contrast)


def test_a_class_contrasted_with_itself_is_refused():
    with pytest.raises(ValueError, match=r"class 2 would be contrasted with itself; explain another class, or"):
        logit_difference(torch.ones(2, 3), torch.tensor([1, 2]), 2)


@pytest.mark.parametrize("baseline", [lambda others: others, lambda others: others.sum()])
def test_a_baseline_of_the_wrong_shape_is_refused(baseline):
    with pytest.raises(
        ValueError, match=r"the baseline returned shape .*; expected one value per image, \(2,\), .*\(2, 3\)"
    ):
        logit_difference(torch.ones(2, 4), torch.tensor([1, 2]), baseline)


def test_a_baseline_that_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"the baseline returned float; expected one value per image, \(2,\), from"):
        logit_difference(torch.ones(2, 4), torch.tensor([1, 2]), lambda _: 0.0)


def test_finer_needs_a_class_to_compare_with():
    with pytest.raises(ValueError, match="comparisons is 0; expected at least 1"):
        finer(torch.ones(1, 3), torch.tensor([0]), comparisons=0)


@pytest.mark.parametrize("baseline", [None, "logsumexp", "mean", "max"])
def test_the_gradient_of_any_contrast_follows_from_the_weights_of_the_baseline(baseline):
    score = logit_difference if baseline is None else partial(logit_difference, baseline=baseline)
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0], [0.5, 0.25, 0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        weights = LogitDifference(baseline or "logsumexp").weights(logits)
    assert not weights.requires_grad
    for c in range(4):  # of two equal largest logits one is always among the others
        classes = torch.tensor([c, c])
        (gradient,) = torch.autograd.grad(score(logits, classes).sum(), logits)
        own = torch.nn.functional.one_hot(classes, 4)
        expected = own - weights * (1 - own) / (1 - weights[:, c : c + 1])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_only_named_baselines_have_a_shortcut():
    maps, logits, classes = torch.randn(2, 3, 4), torch.randn(2, 3), torch.tensor([[0, 1], [2, 2]])
    for score in (Probability(), LogProbability(), Finer(), LogitDifference(1), LogitDifference(torch.mean)):
        assert score.combine(maps, logits, classes) is None
    named = (Logit(), LogitDifference(), LogitDifference("max"), LogitDifference("mean"))
    for score in (*named, Counterfactual(), Counterfactual(LogitDifference())):
        expected = torch.stack([score_gradients(score, logits, each[:, None]) @ maps for each in classes.T], 2)
        torch.testing.assert_close(score.combine(maps, logits, classes), expected.squeeze(1))


def test_a_score_that_ignores_the_logits_has_no_gradient():
    with pytest.raises(ValueError, match=r"^the score does not depend on the logits, so there is nothing to explain$"):
        score_gradients(lambda logits, _classes: torch.ones(len(logits)), torch.randn(2, 3), torch.tensor([[0], [1]]))


def test_scores_are_values():
    assert LogitDifference("max") == LogitDifference("max") != LogitDifference("mean")
    assert len({Logit(), Logit(), LogitDifference(), LogitDifference("logsumexp"), Finer(), Finer(1.0, 3)}) == 3
    assert repr(LogitDifference("max")) == "LogitDifference(baseline='max')"
    assert repr(Counterfactual()) == "Counterfactual(score=Logit())"


@pytest.mark.parametrize(
    ("value", "function"),
    [
        (Logit(), logit),
        (Probability(), probability),
        (LogProbability(), log_probability),
        (LogitDifference(), logit_difference),
        (LogitDifference("max"), partial(logit_difference, baseline="max")),
        (LogitDifference(1), partial(logit_difference, baseline=1)),
        (Finer(0.5, 2), partial(finer, alpha=0.5, comparisons=2)),
        (Counterfactual(logit_difference), lambda z, c: -logit_difference(z, c)),
    ],
)
def test_a_value_is_its_function(value, function):
    logits, classes = torch.randn(4, 5), torch.tensor([0, 2, 3, 4])
    assert torch.equal(value(logits, classes), function(logits, classes))


def test_as_score():
    assert as_score(logit) == Logit()
    assert as_score(logit_difference) == LogitDifference()
    assert as_score(Finer(0.5)) == Finer(0.5)

    def own(logits, _classes):
        return logits[:, 0]

    assert as_score(own) == CustomScore(own)
    assert as_score(own)(torch.tensor([[3.0, 4.0]]), torch.tensor([1])).tolist() == [3]
    for wrong in (3, None, "logit"):
        with pytest.raises(TypeError, match=r"score is .*; expected a function of logits and classes"):
            as_score(wrong)
    with pytest.raises(TypeError, match=r"expected a function .*; did you mean LogitDifference\(\)\?"):
        as_score(LogitDifference)


def test_values_refuse_options_that_make_no_sense():
    with pytest.raises(ValueError, match="'median' is not a baseline; expected one of"):
        LogitDifference("median")
    with pytest.raises(ValueError, match="comparisons is 0; expected at least 1"):
        Finer(comparisons=0)


def test_a_callable_baseline_is_taken_as_it_is():
    def middle(others):
        return others.median(1).values

    assert baseline_function(middle) is middle
