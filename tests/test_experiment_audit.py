from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffgradcam import audit
from diffgradcam.sham import border_mask

pytest.importorskip("skimage", reason="the study needs scikit-image")

from experiments import cells
from experiments.audit import report, run, zoo
from experiments.audit.zoo import ARCHITECTURES, DATA, LAYER, OPTIMIZERS, Config, Data, Design
from experiments.saliency_guided.tasks import build

TINY = Config(
    calibration=1, test=2, train=64, held_out=24, images=6, crops=1, digits_epochs=2, faces_epochs=1, batch=16
)._replace(digits_accuracy=0.0, faces_accuracy=0.0, fool_images=16, fool_epochs=1, strengths=(0.3, 1.0))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "RESAMPLES", 4)
    monkeypatch.setattr(report, "SUBSAMPLES", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The models.


def test_designs_are_balanced_and_the_splits_are_disjoint() -> None:
    config = Config()
    test, calibration = zoo.designs("test", config), zoo.designs("calibration", config)
    assert (len(test), len(calibration)) == (60, 20)
    for factor, levels in (("architecture", ARCHITECTURES), ("data", DATA), ("optimizer", OPTIMIZERS)):
        counts = Counter(getattr(design, factor) for design in test)
        assert counts == dict.fromkeys(levels, 60 / len(levels))
    for factor in ("weight_decay", "label_smoothing"):
        assert sorted(Counter(getattr(design, factor) for design in test).values()) == [30, 30]
    assert {design.architecture for design in calibration} == set(zoo.SEEN) < set(ARCHITECTURES)
    assert len({design.seed for design in test + calibration}) == 80
    assert len({design[:5] for design in test}) > 50  # combinations, not one block after the other


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_ends_in_a_pooled_linear_layer(architecture: str) -> None:
    features, channels = ARCHITECTURES[architecture]
    for side, cells_of_side in ((16, 8), (32, 8), (40, 10)):
        model = zoo.Classifier(nn.Sequential(*features(side)), channels, 3).eval()
        images = torch.randn(2, 1, side, side)
        activations = model.get_submodule(LAYER)(images)
        assert activations.shape == (2, channels, cells_of_side, cells_of_side)
        expected = torch.einsum("bcij,kc->bk", activations, model.head.weight) / cells_of_side**2 + model.head.bias
        assert torch.allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in DATA if "digits" in name])
def test_digits_are_split_and_labelled(name: str) -> None:
    side, classes, make = DATA[name]
    data, again = make(3, TINY), make(3, TINY)
    assert data.train.shape == (64, 1, side, side)
    assert data.held_out.shape == (24, 1, side, side)
    assert torch.equal(data.train, again.train)
    assert not torch.equal(data.train, make(4, TINY).train)
    assert set(data.train_labels.tolist()) == set(range(classes))
    assert torch.cdist(data.train.flatten(1), data.held_out.flatten(1)).min() > 0  # no image twice
    ten = DATA[f"10 digits, {side} px"][2](3, TINY)
    assert torch.equal(data.held_out_labels, ten.held_out_labels % 2 if classes == 2 else ten.held_out_labels)


def test_faces_keep_the_whole_face() -> None:
    data, task = DATA["faces, 40 px"][2](3, TINY), build("faces", 3, TINY.train, TINY.held_out)
    assert data.held_out.shape == (24, 1, 40, 40)
    assert torch.equal(data.train_labels, task.train.labels)
    regions = task.train._replace(images=task.train.saliency.unsqueeze(1))
    cropped = zoo._part(regions, np.random.default_rng(0))
    assert torch.allclose(cropped.sum((1, 2, 3)), task.train.saliency.sum((1, 2)))


@given(st.integers(0, 63), st.integers(1, 40), st.integers(0, 2**31))
def test_a_crop_holds_what_is_inside_and_lies_in_the_image(first: int, length: int, seed: int) -> None:
    last = min(63, first + length - 1)
    inside = torch.zeros(64, dtype=torch.bool)
    inside[first : last + 1] = True
    start = zoo._start(inside, np.random.default_rng(seed))
    assert 0 <= start <= first
    assert last < start + 40 <= 64


def test_training_learns_and_repeats() -> None:
    design = Design("plain", "odd digits, 16 px", "Adam", False, 0.0, 3)
    config = TINY._replace(train=192, held_out=100, digits_epochs=3)
    data = DATA[design.data][2](3, config)
    model = zoo.train(design, data, config)
    assert not model.training
    assert run._accuracy(run._logits(model, data.held_out), data) > 0.7
    model, again = zoo.train(design, data, TINY), zoo.train(design, data, TINY)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for other in (design._replace(weight_decay=True), design._replace(label_smoothing=0.1)):
        assert not torch.equal(zoo.train(other, data, TINY).head.weight, model.head.weight)


def test_a_model_that_is_wrong_too_often_has_not_learned() -> None:
    config = Config(digits_accuracy=0.9, faces_accuracy=0.7)
    assert [zoo.learned("10 digits, 16 px", a, config) for a in (0.89, 0.9)] == [False, True]
    assert [zoo.learned("faces, 40 px", a, config) for a in (0.69, 0.7)] == [False, True]


class Lite(nn.Module):
    """As EfficientNet-Lite0 looks from outside, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 6, 3, stride=32, padding=1)
        self._fc = nn.Linear(6, 1000)
        self._fc.weight.data *= 20
        self.runs = 0

    def extract_features(self, images):
        self.runs += 1
        return torch.relu(self.convolution(images))


def test_the_real_model_keeps_its_likeliest_classes_and_runs_once_per_batch() -> None:
    original = Lite()
    shared, images = zoo.Backbone(original), torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = zoo.restricted(shared, 10, images)
    with torch.no_grad():
        logits = original._fc(torch.relu(original.convolution(images)).mean((2, 3)))
    rows = logits.softmax(1).mean(0).topk(10).indices
    assert torch.allclose(model(images), logits[:, rows], atol=1e-5)
    copied = copy.deepcopy(model)
    assert copied.features is not model.features
    assert copied.features[0] is shared
    copied(images.clone())
    assert original.runs == 1
    copied(images + 1)
    assert original.runs == 2
    assert not any(p.requires_grad for p in shared.parameters())


def test_photographs_are_cropped_and_scaled() -> None:
    config = TINY
    data = zoo.photographs(config)
    assert data.train.shape == (72, 3, 224, 224)
    assert data.held_out.shape == (12, 3, 224, 224)
    assert data.held_out_labels is None
    assert -1 <= data.held_out.min() < -0.9
    assert 0.9 < data.held_out.max() <= 1


# The cells.


def test_a_run_writes_cells_resumes_and_measures_what_the_audit_does(tmp_path: Path, monkeypatch) -> None:
    splits, every = ("test",), run.attacks
    names = ("common mode 0.3", "common mode 1", "flip", "trained on GradCAM")
    monkeypatch.setattr(run, "attacks", lambda config: {name: every(config)[name] for name in names})
    run.run(tmp_path, splits, TINY)
    assert {path.name for path in tmp_path.iterdir()} == {"test-00.json", "test-01.json"}
    cell = json.loads((tmp_path / "test-01.json").read_text())
    assert cell["design"] == zoo.designs("test", TINY)[1]._asdict()
    versions = cell["versions"]
    assert list(versions) == ["clean", *names]
    for name, version in versions.items():
        assert len(version["common_mode_share"]) == len(version["gradcam_agreement"]) == 6
        if not name.startswith("trained"):  # decisions are kept by construction
            assert version["agreement"] == 1
            assert version["accuracy"] == cell["accuracy"]
            assert version["probability_change"] < 1e-5
        if name.startswith("common mode"):
            assert version["diffgradcam_kept"] > 0.999
        if name == "flip":
            assert version["common_mode_share"] == pytest.approx(versions["clean"]["common_mode_share"], rel=1e-2)
    clean, weak, equal = (
        np.median(versions[name]["common_mode_share"]) for name in ("clean", "common mode 0.3", "common mode 1")
    )
    assert clean < weak < equal
    assert versions["clean"]["gradcam_kept"] == versions["clean"]["diffgradcam_kept"] == 1

    # Killed while writing: a partial file beside, and a model missing.
    (tmp_path / "test-01abc.part").write_text('{"split": "te')
    (tmp_path / "test-01.json").unlink()
    trained: list[tuple[Design, nn.Module]] = []
    original = run.train

    def record(design: Design, *rest: Any) -> nn.Module:
        trained.append((design, original(design, *rest)))
        return trained[-1][1]

    monkeypatch.setattr(run, "train", record)
    run.run(tmp_path, splits, TINY)
    ((design, model),) = trained
    assert design == zoo.designs("test", TINY)[1]
    assert json.loads((tmp_path / "test-01.json").read_text())["versions"] == versions
    run.run(tmp_path, splits, TINY)
    assert len(trained) == 1
    with pytest.raises(ValueError, match=r"test-00\.json was made with .*'images': 6.* this run has .*'images'"):
        run.run(tmp_path, splits, TINY._replace(images=5))

    images = DATA[design.data][2](design.seed, TINY).held_out[:6]
    found = audit(model, LAYER, images, occlusion=True, progress=False)
    assert versions["clean"]["common_mode_share"] == pytest.approx(found.common_mode_share.tolist(), rel=1e-3)
    assert versions["clean"]["gradcam_agreement"] == pytest.approx(found.gradcam_agreement.tolist(), abs=1e-3)
    assert versions["clean"]["diffgradcam_agreement"] == pytest.approx(found.diffgradcam_agreement.tolist(), abs=1e-3)


def test_a_model_that_has_not_learned_is_counted_and_not_fooled(tmp_path: Path) -> None:
    run.run(tmp_path, ("calibration",), TINY._replace(digits_accuracy=1.1, faces_accuracy=1.1))
    (cell,) = cells.read(tmp_path)
    assert (cell["learned"], cell["versions"]) == (False, {})
    assert 0 <= cell["accuracy"] <= 1


def test_the_real_model_is_fooled_without_training_all_of_it(tmp_path: Path, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(1)
    photos = Data(torch.randn(8, 3, 128, 128, generator=generator), torch.randn(3, 3, 128, 128, generator=generator))
    monkeypatch.setattr(run, "lite0", Lite)
    monkeypatch.setattr(run, "photographs", lambda _: photos)
    run.run(tmp_path, ("lite0",), TINY)
    found = cells.read(tmp_path)
    assert [cell["design"]["classes"] for cell in found] == [10, 100, 1000]
    expected = ["clean", "common mode 0.3", "common mode 1", "common mode, trained", "roll", "flip"]
    assert all(list(cell["versions"]) == expected for cell in found)
    assert all(version["agreement"] == 1 for cell in found for version in cell["versions"].values())
    assert found[0]["versions"]["clean"]["accuracy"] is None
    for cell in found:  # a hoax of one version is not in the next
        clean, roll, flip = (cell["versions"][name] for name in ("clean", "roll", "flip"))
        assert clean["gradcam_kept"] == 1
        assert abs(roll["gradcam_kept"]) < 0.9
        assert abs(flip["gradcam_kept"]) < 0.9
        assert roll["diffgradcam_kept"] != flip["diffgradcam_kept"]
    images = photos.held_out
    again = audit(zoo.restricted(zoo.Backbone(Lite()), 1000, images), LAYER, images, occlusion=True, progress=False)
    expected = pytest.approx(again.gradcam_agreement.tolist(), abs=1e-3)
    assert found[2]["versions"]["clean"]["gradcam_agreement"] == expected


def test_a_model_that_the_audit_refuses_is_written_and_does_not_count(tmp_path: Path) -> None:
    weak = zoo.Classifier(nn.Sequential(nn.Identity()), 3, 2)
    nn.init.zeros_(weak.head.weight)
    weak.head.bias.data = torch.tensor([0.5, 0.7])
    found = run._audited(weak, torch.randn(10, 3, 16, 16))
    assert found == {"weight_share": None} | dict.fromkeys(run.MEASURED, [None] * 10)
    with pytest.raises(ValueError, match=r"at least 7 x 7 pixels"):
        run._audited(weak, torch.randn(10, 3, 6, 6))

    write_cells(tmp_path, test=4)
    path = tmp_path / "test-01.json"
    cell = json.loads(path.read_text())
    cell["versions"]["roll"] |= {"weight_share": None} | dict.fromkeys(run.MEASURED, [None] * 4)
    path.write_text(json.dumps(cell))
    study = report.load(tmp_path)
    assert study.version("test", "roll").counts.tolist() == [True, False, True, True]
    text = report.markdown(study)
    assert "The audit refused 1 of the 36 versions of the test models" in text
    assert "nan" not in text + report.tables(study, report.curves(study))


def test_attacks_that_train_show_more_of_the_mask() -> None:
    data = DATA["odd digits, 16 px"][2](0, TINY)
    config = TINY._replace(fool_epochs=8, fool_images=32)
    clean = zoo.train(Design("strided", "odd digits, 16 px", "SGD", True, 0.0, 0), data, TINY)
    mask = border_mask((8, 8), 37)
    for name, victim in (("trained on GradCAM", run.GradCAM), ("trained on DiffGradCAM", run.DiffGradCAM)):
        fooled = run.attacks(config)[name](clean, data.train[:32], mask, 0)
        before = run._moved("x", victim, clean, clean, data.train[:32], mask)
        after = run._moved("x", victim, clean, fooled, data.train[:32], mask)
        assert after["x_reached"] > before["x_reached"] + 0.1
        assert after["x_kept"] < 0.95


def test_the_command_line_runs_what_it_is_told(tmp_path: Path, monkeypatch) -> None:
    called = {}
    monkeypatch.setattr(run, "run", lambda results, splits: called.update(r=results, s=splits))
    run.main(["--splits", "lite0", "--results", str(tmp_path)])
    assert called == {"r": tmp_path, "s": ["lite0"]}


# The report.

CONFIG = Config(images=4, calibration=3, test=44)


def version(share: float, gradcam: float, diffgradcam: float, kept: float = 0.0) -> dict[str, Any]:
    """What a cell holds of one version; the images differ a little, around the given figures."""
    around = np.array([-0.01, 0.01, -0.02, 0.02])
    figures = {"accuracy": 0.95, "agreement": 1.0, "probability_change": 0.0, "weight_share": share}
    figures |= {"gradcam_kept": kept, "gradcam_reached": 0.0, "diffgradcam_kept": kept, "diffgradcam_reached": 0.0}
    return figures | {
        "common_mode_share": (share * (1 + around)).tolist(),
        "gradcam_agreement": (gradcam + around).tolist(),
        "diffgradcam_agreement": (diffgradcam + around).tolist(),
    }


def write_cells(folder: Path, test: int = 44, hidden: float = 0.5) -> None:
    """Clean models have shares of .001 to .01, fooled ones of .2 or more; the adaptive attack is as ``hidden`` says."""
    for split, count in (("calibration", 3), ("test", test), ("lite0", 1)):
        for index in range(count):
            design = zoo.designs("calibration" if split == "calibration" else "test", CONFIG)[index]._asdict()
            step = index / 100
            versions = {"clean": version(0.01 / (1 + index), 0.6 - step, 0.5 - step, kept=1.0)}
            for strength, share in ((0.3, 0.005), (1, 0.4 - step / 2), (3, 0.9)):
                versions[f"common mode {strength:g}"] = version(share, -0.2, 0.5 - step)
            versions["common mode, trained"] = version(0.9, -0.2, 0.5 - step)
            versions |= {name: version(0.001, -0.3, -0.3) for name in ("roll", "flip")}
            versions["trained on GradCAM"] = version(0.01, -0.1, 0.3)
            versions["trained on DiffGradCAM"] = version(0.001, hidden - step, hidden - step)
            if split == "lite0":
                design = {"architecture": "EfficientNet-Lite0", "classes": 1000}
            cell = {"split": split, "design": design, "training_seconds": 3.0, "accuracy": 0.95, "learned": True}
            cell |= {"versions": versions, "seconds": 20.0, "config": CONFIG._asdict()}
            cells.write(folder / f"{split}-{index:02d}.json", cell)


def test_thresholds_by_hand(tmp_path: Path) -> None:
    write_cells(tmp_path, hidden=-0.1)
    chosen = report.choose(report.load(tmp_path))
    # The highest clean median is .01, of the first; the lowest of strength 1 is .4 - .01, of the last of three.
    assert chosen.share == pytest.approx(math.sqrt(0.01 * 0.39))
    # The highest fooled version has min(-.1, -.1), the lowest clean one min(.58, .48).
    assert chosen.agreement == pytest.approx((-0.1 + 0.48) / 2)
    assert report.defaults() == (0.1, 0.3)


def test_the_report_says_what_held_and_what_did_not(tmp_path: Path) -> None:
    write_cells(tmp_path)
    report.main(["--results", str(tmp_path), "--docs", str(tmp_path / "docs")])
    text = (tmp_path / "docs" / "audit_tables.md").read_text()
    lines = text.splitlines()

    def line(start: str) -> str:
        (found,) = [line for line in lines if line.startswith(start)]
        return found

    assert "AUROC of the share 1.000 [1.000, 1.000] over 44 clean and 44 fooled models" in line(
        "- Common mode of strength 1"
    )
    assert line("- Common mode of strength 1").endswith("is reached.")
    # Shares .005 against .01 / (1 + i): higher than all clean ones but the first, and half a tie with the second.
    assert "AUROC of the share 0.966 [" in line("- Common mode of strength 0.3")
    assert line("- Common mode of strength 0.3").endswith("is **not reached**.")
    assert "the library's 0.1 reports 0 of 44 clean models and misses 0 of 44" in line("- The share's threshold")
    assert "fooled versions whose map has moved" in line("- The agreement's threshold")
    assert "; roll 1.00, 1.00, 1.000 [1.000, 1.000]; flip" in line("- AUROC of the agreement with 1, 4 and 4 images")
    joint = line("- The joint verdict finds fewer than half")
    assert "trained on DiffGradCAM (" in joint
    assert "roll" not in joint
    assert "roll (0%), flip (0%)" in line("- The common mode finds fewer than half")
    assert line("| roll | 44 | 0.001").endswith("|")
    assert line("| 1000 | roll").endswith("| reported | reported |")
    assert line("| 1000 | clean").endswith("| nothing found | nothing found |")
    assert "**Incomplete:** 2 of the planned models" in text  # two of three sizes of the real model
    for picture in ("audit.png", "audit_halves.png"):
        assert (tmp_path / "docs" / picture).stat().st_size > 10_000


def test_the_page_leads_with_the_answer(tmp_path: Path) -> None:
    write_cells(tmp_path)
    page = report.markdown(report.load(tmp_path))
    # Clean agreements are .5, .49, ...: 23 of 44 lie below .3 (the agreement of the other map is higher).
    assert "the audit reports 23 of 44 clean small networks**" in page
    assert "the common-mode half reports 0 of 44 clean models" in page
    assert "| roll | features rolled by half the map | 44 | 0.00 | 0% | 100% | 100% |" in page
    assert page.index("](audit.png)") < page.index("| name |") < page.index("## How it was done")


def test_figures_by_hand(tmp_path: Path) -> None:
    write_cells(tmp_path)
    study = report.load(tmp_path)
    clean, hidden = study.version("test", "clean"), study.version("test", "trained on DiffGradCAM")
    # Both fall by .01 from model to model, from the same value: as alike as can be.
    assert report.agreement_auroc(clean, hidden, 4).value == pytest.approx(0.5)
    assert report.agreement_auroc(clean, study.version("test", "roll"), 1).value == 1
    assert report.share_auroc(clean, study.version("test", "common mode 3")) == (1, 1, 1)
    at = report.Thresholds(share=0.004, agreement=0.2)
    assert clean.found(at, "share").tolist() == [True, True] + [False] * 42
    assert clean.found(at, "agreement").sum() == (0.5 - np.arange(44) / 100 < 0.2 - 1e-9).sum()
    assert report.rate(clean, at, 4) == pytest.approx((2 + 13) / 44)


def test_a_fooled_model_that_lost_its_accuracy_does_not_count(tmp_path: Path) -> None:
    write_cells(tmp_path, test=4)
    path = tmp_path / "test-01.json"
    cell = json.loads(path.read_text())
    cell["versions"]["roll"]["accuracy"] = 0.84
    cell["versions"]["flip"]["accuracy"] = 0.85
    path.write_text(json.dumps(cell))
    study = report.load(tmp_path)
    assert study.version("test", "roll").counts.tolist() == [True, False, True, True]
    assert study.version("test", "flip").counts.all()
    assert study.version("test", "roll").moved.all()
    assert not study.version("test", "clean").moved.any()


def test_few_models_are_not_enough_to_hold(tmp_path: Path) -> None:
    write_cells(tmp_path, test=4)
    study = report.load(tmp_path)
    text = report.tables(study, report.curves(study))
    assert "4 fooled models, and at least 40 of each were wanted. The target of 0.98 is **not reached**" in text
    assert "**Incomplete:** 42 of the planned models" in text


def test_the_report_needs_models_that_learned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0 calibration models have learned in .*run python -m experiments\.audit"):
        report.load(tmp_path)
    write_cells(tmp_path, test=2)
    path = tmp_path / "test-01.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {}}))
    with pytest.raises(ValueError, match=r"1 test models have learned"):
        report.load(tmp_path)
