import math
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, ScoreCAM
from diffgradcam.metrics import Evaluator, behaviour, behaviour_kept, decisions_kept, occlusion_drops
from diffgradcam.metrics.similarity import pearson
from diffgradcam.sham import _descent, _problem, autofool, autofooling, border_mask, common_mode_hoax, finetune
from tests.models import SIZE, deep, images, pooled
from tests.sham.digits import LAYER, MASK, data, kept_and_reached, trained
from tests.test_waits import Waits
from tests.untouched import untouched

HOAX = border_mask(SIZE[2], 18)
run = partial(autofool, progress=False)


def divergence(clean, fooled, x):
    with torch.no_grad():
        return float(decisions_kept(clean(x), fooled(x)).kl.mean())


@pytest.mark.parametrize("alpha", [0.3, 0.6])
def test_it_beats_finetuning_by_hand_at_the_same_divergence(alpha):
    clean, x = trained(), data()[0][:192]
    by_hand, _ = finetune(clean, list(x.split(32)), LAYER, MASK, epochs=16, alpha=alpha, progress=False)
    keep = divergence(clean, by_hand, x)
    found = run(clean, x, LAYER, MASK, keep=keep, behaviour=False, scopes=["last stage"], steps=96)
    assert divergence(clean, found.model, x) <= keep * (1 + 1e-6)
    assert kept_and_reached(clean, found.model, x)[1] > kept_and_reached(clean, by_hand, x)[1] + 0.02


def test_both_bounds_hold_and_the_record_is_what_others_measure():
    clean, x = trained(), data()[0]
    seen, held_out = x[:96], x[1200:1250]
    options = {"keep": 0.02, "behaviour_kept": 0.9, "scopes": ["head", "last stage"], "steps": 60}
    with untouched(clean):
        found = run(clean, seen, LAYER, MASK, DiffGradCAM, held_out=held_out, **options)
    assert [restart.scope for restart in found.restarts] == ["head", "last stage"]
    assert found.best in found.restarts
    assert found.best.effect.reached == max(restart.effect.reached for restart in found.restarts)
    for effect, some in ((found.given, seen), (found.held_out, held_out)):
        kept, reached = kept_and_reached(clean, found.model, some, method=DiffGradCAM)
        assert effect.kl == pytest.approx(divergence(clean, found.model, some), abs=1e-6)
        assert (effect.kept, effect.reached) == pytest.approx((kept, reached), abs=1e-5)
    before = kept_and_reached(clean, clean, seen, method=DiffGradCAM)[1]
    assert found.given.reached > before + 0.05
    assert found.given.kl <= 0.02
    assert found.given.behaviour >= 0.9
    some = seen
    with torch.no_grad():
        classes = clean(some).argmax(1)
    relied_on = [behaviour(Evaluator(m), some, classes, steps=8, progress=False) for m in (clean, found.model)]
    assert found.given.behaviour == pytest.approx(float(behaviour_kept(*relied_on).both.mean()), abs=1e-5)


def changed(model, fooled):
    return {name for name, p in fooled.named_parameters() if not torch.equal(p, model.get_parameter(name))}


class Staged(nn.Module):
    """Stages as a residual network has them, of several layers each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()),
            nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), nn.Tanh()),
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def test_it_starts_from_the_closed_form_and_each_scope_goes_on_from_the_best():
    clean, x = trained(), data()[0][:96]
    closed = common_mode_hoax(clean, LAYER, x, MASK, strength=10)
    options = {"keep": 0.01, "behaviour": False, "steps": 40}
    found = run(clean, x, LAYER, MASK, scopes=["common mode", "head", "last stage"], **options)
    reached = [kept_and_reached(clean, closed, x)[1], *(restart.effect.reached for restart in found.restarts)]
    assert all(later >= earlier - 1e-5 for earlier, later in pairwise(reached))
    assert reached[-1] > reached[0] + 0.2
    assert found.best.scope == "last stage"
    no_pooling = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))  # no closed form
    assert run(no_pooling, x, "1", border_mask((6, 6), 20), scopes=["head"], **options).given.kl <= 0.01


def test_a_rate_that_goes_too_far_falls_and_what_it_did_is_undone(monkeypatch):
    clean, x = trained(), data()[0][:96]
    options = {"keep": 0.02, "behaviour": False, "scopes": ["last stage"], "steps": 60}
    monkeypatch.setattr(_descent, "_RATE", 30.0)
    found = run(clean, x, LAYER, MASK, DiffGradCAM, **options)
    assert 1e-3 < found.best.lr < 1
    before = kept_and_reached(clean, clean, x, method=DiffGradCAM)[1]
    assert found.given.reached > before + 0.1
    assert found.given.kl <= 0.02


def test_aims_follow_both_bounds_where_both_are_exceeded():
    clean, x = trained(), data()[0][:64]
    problem = _problem.Problem(_problem.Maker([GradCAM], [LAYER]), clean, x, MASK, _problem.Bounds(0.01, 0.9, 8), 32)
    run = _descent.Descent(problem, autofooling._opened(clean, "last stage", None), clean, 8, 0)
    before = list(run.aims)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    kept = float(behaviour_kept(*(problem.behaviour(model) for model in (clean, run.model))).both.mean())
    shares = [divergence(clean, run.model, x) / 0.01, (1 - kept**2) / (1 - 0.9**2)]
    assert min(shares) > 1
    measured = _problem.Measured(problem, run.model)
    assert measured.shares() == pytest.approx(shares, rel=1e-4)
    run.aim(measured)
    for aim, old, share in zip(run.aims, before, shares, strict=True):
        assert aim == pytest.approx(max(_descent._LEAST_AIM, old * _descent._AIM / share), rel=1e-4)
        assert aim < old


def test_a_step_keeps_what_covering_says_also_where_images_are_not_square(monkeypatch):
    """With all windows in a step, its share of the bound on behaviour follows from the drops of both models."""
    monkeypatch.setattr(_descent, "_WINDOWS", 49)
    clean, x = pooled(), torch.randn(6, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hoax, bounds = border_mask((9, 8), 30), _problem.Bounds(0.01, 0.9, 6)
    problem = _problem.Problem(_problem.Maker([GradCAM], ["relu"]), clean, x, hoax, bounds, 6)
    run = _descent.Descent(problem, autofooling._opened(clean, "last stage", None), clean, 8, 0)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.mul_(1.5)
        found = run._moved(x, problem.classes, run.model(x))
    then, now = (
        occlusion_drops(Evaluator(model), x, problem.classes, progress=False).flatten(1) for model in (clean, run.model)
    )
    expected = (now - then).square().sum() / (then - then.mean(1, keepdim=True)).square().sum()
    assert float(found) == pytest.approx(float(expected))


def test_steps_are_shares_of_each_tensor_and_their_size_rises_and_falls():
    clean, x = pooled(), images(6)
    with torch.no_grad():
        clean.head.bias.zero_()
    problem = _problem.Problem(_problem.Maker([GradCAM], ["relu"]), clean, x, HOAX, _problem.Bounds(0.01, None, 6), 6)
    run = _descent.Descent(problem, autofooling._opened(clean, "head", None), clean, 50, 0)
    weight = clean.head.weight.detach()
    of_all = (weight.square().sum() / (weight.numel() + clean.head.bias.numel())).sqrt()
    scales = [float(weight.square().mean().sqrt()), 0.1 * float(of_all)]
    assert run.scales == pytest.approx(scales)
    rates = []
    for _ in range(50):
        run.step()
        rates.append([group["lr"] for group in run.optimizer.param_groups])
    paces = [min(1, (step + 1) / 10, (1 - step / 50) / 0.6) for step in range(50)]
    assert rates == [pytest.approx([0.1 * scale * pace for scale in scales]) for pace in paces]


def test_every_step_of_a_short_run_is_checked(monkeypatch, capsys):
    clean, x = trained(), data()[0][:32]
    checked = []
    check = _descent.Descent.check
    monkeypatch.setattr(_descent.Descent, "check", lambda run: checked.append(run.steps) or check(run))
    run(clean, x, LAYER, MASK, behaviour=False, scopes=["head"], steps=3)
    assert checked == [1, 2, 3]
    assert capsys.readouterr().err == ""
    autofool(clean, x, LAYER, MASK, behaviour=False, scopes=["head"], steps=3)
    shown = capsys.readouterr().err
    assert "head: 100%" in shown
    assert "fooled=" in shown


@pytest.mark.parametrize("bound", [False, True])
def test_a_step_waits_for_the_device_once_a_victim(bound):
    clean, x = trained(), data()[0][:64]
    bounds = _problem.Bounds(0.01, 0.9 if bound else None, 8)
    problem = _problem.Problem(_problem.Maker([GradCAM, DiffGradCAM], [LAYER]), clean, x, MASK, bounds, 32)
    run = _descent.Descent(problem, autofooling._opened(clean, "last stage", None), clean, 8, 0)
    with Waits() as waits:
        for _ in range(3):
            run.step()
    counters = len(run.parameters)  # Adam's own, which lie on the CPU
    assert waits.found == {"_local_scalar_dense": 3 * (counters + len(run.victims))}


def test_a_scope_changes_nothing_else():
    options = {"keep": 10.0, "behaviour": False, "steps": 4}
    model, x = pooled(), images(8)
    assert changed(model, run(model, x, "relu", HOAX, scopes=["head"], **options).model) == {
        "head.weight",
        "head.bias",
    }
    found = run(model, x, "relu", HOAX, scopes=["last stage"], **options).model
    assert changed(model, found) == {"features.weight", "features.bias", "head.weight", "head.bias"}
    torch.manual_seed(0)
    model = Staged().double().eval()
    found = run(model, x, "stages", HOAX, scopes=["last stage"], **options).model
    assert {name.split(".")[0] for name in changed(model, found)} == {"stages", "head"}
    assert torch.equal(found.stem.weight, model.stem.weight)
    model = deep()
    found = run(model, x, "features", HOAX, scopes=["all"], **options).model
    assert "stem.weight" in changed(model, found)


def test_the_common_mode_is_one_vector_for_every_class_and_costs_nothing():
    clean, x = trained(), data()[0][:96]
    found = run(clean, x, LAYER, MASK, keep=1e-6, scopes=["common mode"], steps=60, judged=16)
    assert changed(clean, found.model) == {"head.weight"}
    difference = found.model.head.weight - clean.head.weight
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-5, rtol=1e-5)
    assert divergence(clean, found.model, x) < 1e-9
    assert found.given.behaviour == pytest.approx(1, abs=1e-4)
    assert kept_and_reached(clean, found.model, x)[1] > kept_and_reached(clean, clean, x)[1] + 0.2
    assert kept_and_reached(clean, found.model, x, method=DiffGradCAM)[0] > 0.9999


def test_several_explainers_are_fooled_together():
    clean, x = trained(), data()[0][:96]
    several = [GradCAM, DiffGradCAM, LayerCAM]
    options = {"keep": 0.05, "behaviour": False, "scopes": ["last stage"], "steps": 60}
    found = run(clean, x, LAYER, MASK, several, **options)
    before, after = (
        torch.tensor([kept_and_reached(clean, model, x, method=method) for method in several])
        for model in (clean, found.model)
    )
    assert (found.given.kept, found.given.reached) == pytest.approx(tuple(after.mean(0).tolist()), abs=1e-5)
    assert bool((after[:, 1] > before[:, 1] + 0.05).all())
    alone = run(clean, x, LAYER, MASK, [GradCAM], **options)
    assert alone.given == run(clean, x, LAYER, MASK, GradCAM, **options).given


def test_only_the_judged_images_bound_behaviour():
    clean, x = trained(), data()[0][:40]
    options = {"keep": 0.02, "scopes": ["head"], "steps": 16}
    few, all_of_them = (run(clean, x, LAYER, MASK, judged=judged, **options) for judged in (8, 40))
    for found, count in ((few, 8), (all_of_them, 40)):
        with torch.no_grad():
            classes = clean(x).argmax(1)[:count]
        both = [behaviour(Evaluator(m), x[:count], classes, steps=8, progress=False) for m in (clean, found.model)]
        assert found.given.behaviour == pytest.approx(float(behaviour_kept(*both).both.mean()), abs=1e-5)


def test_a_seed_fixes_a_run_and_modes_are_those_of_the_model():
    model, x = pooled(), images(8)
    options = {"keep": 1.0, "behaviour": False, "steps": 6, "scopes": ["all"], "batch_size": 3}
    model.train()
    model.stem.weight.requires_grad_(False)
    with untouched(model):
        first, second, other = (run(model, x, "relu", HOAX, seed=seed, **options) for seed in (0, 0, 1))
    assert first.given == second.given
    assert first.given != other.given
    assert first.model.training
    assert not first.model.stem.weight.requires_grad
    assert all(p.grad is None for p in first.model.parameters())


def test_where_nothing_is_within_bounds_it_is_the_clean_model(monkeypatch):
    model, x = pooled(), images(8)
    monkeypatch.setattr(_problem.Measured, "divergence", 1.0)
    found = run(model, x, "relu", HOAX, DiffGradCAM, keep=0.1, behaviour=False, scopes=["all"], steps=3)
    assert not changed(model, found.model)
    maps = DiffGradCAM(model, "relu").explain(x).maps
    assert found.given.reached == pytest.approx(float(pearson(maps, HOAX.double().expand_as(maps)).mean()))
    assert found.given.kl == 0


def test_time_is_up():
    found = run(pooled(), images(8), "relu", HOAX, behaviour=False, steps=1000, seconds=1e-9)
    assert len(found.restarts) == 1
    assert found.best.steps < 1000


def test_time_that_is_not_up_changes_nothing():
    options = {"behaviour": False, "scopes": ["head"], "steps": 6}
    found = run(pooled(), images(8), "relu", HOAX, seconds=1e6, **options)
    assert found.given == run(pooled(), images(8), "relu", HOAX, **options).given
    assert sum(each.steps for each in found.restarts) == 6


@pytest.mark.parametrize(
    ("kl", "kept", "reached", "within"),
    [
        (0.01, 0.9, 0.5, True),  # both bounds are part of what is allowed
        (0.0101, 0.9, 0.5, False),
        (math.nan, 0.9, 0.5, False),
        (0.01, 0.89, 0.5, False),
        (0.01, None, 0.2, True),  # no better than what is there: behaviour is not looked at
    ],
)
def test_what_is_within_bounds(kl, kept, reached, within):
    problem = SimpleNamespace(bounds=_problem.Bounds(0.01, 0.9, 8))
    measured = _problem.Measured(problem, pooled())
    on_maps = _problem.Effect(kl=kl, agreement=1.0, kept=0.3, reached=reached, behaviour=None)
    vars(measured).update(divergence=kl, kept=kept, on_maps=on_maps)
    assert measured.within(0.2) == (replace(on_maps, behaviour=kept) if within else None)


def test_without_a_bound_on_behaviour_there_is_one_share():
    measured = _problem.Measured(SimpleNamespace(bounds=_problem.Bounds(0.02, None, 8)), pooled())
    vars(measured).update(divergence=0.01, kept=0.5)
    assert measured.shares() == [0.5]


def test_victims_keep_the_sign_of_their_maps():
    (cam,) = _problem.Maker([GradCAM], ["relu"])(pooled())
    assert cam.rectify is False


def test_a_model_of_one_stage_is_opened_whole():
    model = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(3), flat=nn.Flatten(), head=nn.Linear(12, 2)))
    assert autofooling._first_of_last_stage(model, "head") == "norm.weight"


def test_the_bar_counts_steps(capfd):
    autofool(pooled(), images(8), "relu", HOAX, keep=1.0, behaviour=False, scopes=["head"], steps=5)
    assert "head: 100%" in capfd.readouterr().err


def test_bad_input_is_refused():
    model, x = pooled(), images(4)
    with pytest.raises(ValueError, match="keep is 0; expected a divergence in nats"):
        run(model, x, "relu", HOAX, keep=0)
    with pytest.raises(ValueError, match="behaviour_kept is 1; expected a correlation from 0 to below 1"):
        run(model, x, "relu", HOAX, behaviour_kept=1)
    with pytest.raises(ValueError, match="scopes is 'all'; expected at least one of"):
        run(model, x, "relu", HOAX, scopes="all")
    with pytest.raises(ValueError, match="scopes is 'tail'; expected one of 'common mode', 'head'"):
        run(model, x, "relu", HOAX, scopes=["tail"])
    with pytest.raises(ValueError, match="judged is 0; expected an integer of at least 1"):
        run(model, x, "relu", HOAX, judged=0)
    with pytest.raises(ValueError, match=r"^method is empty; expected a CAM class, such as GradCAM, or several$"):
        run(model, x, "relu", HOAX, [])
    with pytest.raises(ValueError, match=r"^batch_size is 0; expected an integer of at least 1"):
        run(model, x, "relu", HOAX, batch_size=0)
    with pytest.raises(ValueError, match="steps is 0; expected an integer of at least 1"):
        run(model, x, "relu", HOAX, steps=0)
    with pytest.raises(ValueError, match="seconds is 0; expected a time above 0"):
        run(model, x, "relu", HOAX, seconds=0)
    with pytest.raises(ValueError, match=r"the mask has size \(3, 3\); expected \(6, 5\), that of the maps"):
        run(model, x, "relu", torch.eye(3), behaviour=False)
    with pytest.raises(ValueError, match=r"at least 7 x 7 pixels, for a grid"):
        run(model, x, "relu", HOAX)
    with pytest.raises(TypeError, match="images is list; expected a tensor"):
        run(model, [x], "relu", HOAX)
    with pytest.raises(TypeError, match="method made ScoreCAM; expected a trainable CAM class"):
        run(model, x, "relu", HOAX, ScoreCAM, behaviour=False)
    with pytest.raises(ValueError, match=r"has no nn\.Linear"):
        run(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double(), x, "0", HOAX,
            behaviour=False)  # fmt: skip
