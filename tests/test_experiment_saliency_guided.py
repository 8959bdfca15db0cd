from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffgradcam import GradCAM

pytest.importorskip("skimage", reason="the stand-in tasks need scikit-image")

from experiments import cells
from experiments.saliency_guided import comparison, report, run, tasks, training
from experiments.saliency_guided.tasks import KINDS, build
from experiments.saliency_guided.training import METHODS, Config, evaluate, train

TINY = Config(train=32, test=16, epochs=1, batch=16)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "RESAMPLES", 50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("task", KINDS)
def test_a_task_is_balanced_repeatable_and_marks_what_carries_the_class(task: str) -> None:
    first, again, other = (build(task, seed, 24, 16) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.train, again.train, strict=True))
    assert not torch.equal(first.train.images, other.train.images)
    assert first.held_out == KINDS[task][1]
    for images in (first.train, first.closed, first.open):
        assert images.images.shape[1:] == (1, 64, 64)
        assert images.images.abs().max() <= 1
        assert images.labels.float().mean() == 0.5
        area = images.saliency.flatten(1).mean(1)
        assert (area[images.has_saliency] > 0.005).all()
        assert (area[images.has_saliency] < 0.3).all()
        assert (area[~images.has_saliency] == 0).all()
        assert torch.equal(images.has_saliency, (images.labels == 1) | (task == "faces"))


@pytest.mark.parametrize("task", KINDS)
def test_the_held_out_kind_is_in_the_open_set_alone(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(*arguments):
        asked.append(arguments[3:])  # kind, testing
        return np.zeros((64, 64)), None

    monkeypatch.setitem(tasks._MAKERS, task, record)
    build(task, seed=6, train=24, test=12)
    held_out = KINDS[task][2]
    seen = {kind for kind in KINDS[task] if kind != held_out}
    assert {kind for kind, _ in asked[:24]} == {kind for kind, _ in asked[24:36]} == seen
    assert asked[36:] == [(held_out, True)] * 12
    assert [testing for _, testing in asked[:36]] == [False] * 24 + [True] * 12


@pytest.mark.parametrize(
    ("kind", "make"), [(k, tasks._attack) for k in KINDS["attacks"]] + [(k, tasks._anomaly) for k in KINDS["anomalies"]]
)
def test_an_artefact_changes_its_region_and_nothing_else(kind, make, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = np.random.default_rng(0).random((64, 64))
    for source in ("_crop", "_texture"):
        monkeypatch.setattr(tasks, source, lambda *_: clean.copy())
    image, region = make(np.random.default_rng(3), 0, 1, kind, False)
    change = np.abs(image - clean)
    # A blob's edge is blurred past its ellipse, by less than it changes inside.
    assert change[region > 0.99].mean() > 20 * change[region == 0].mean()
    if kind != "blob":
        assert change[region == 0].max() == 0


def test_faces_are_tested_on_other_patches_and_other_parts_of_the_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.tile(np.arange(300) / 300, (100, 1))
    monkeypatch.setattr(tasks, "_photos", lambda: {"ramp": ramp})
    crops = {t: [tasks._crop(np.random.default_rng(i), ("ramp",), t) for i in range(50)] for t in (False, True)}
    assert max(crop.max() for crop in crops[False]) < 0.6 <= min(crop.min() for crop in crops[True])

    numbered = np.arange(100.0)[:, None, None] * np.ones((25, 25))
    used = {False: set(), True: set()}
    monkeypatch.setattr(tasks, "_patches", lambda: (numbered, numbered))
    monkeypatch.setattr(tasks, "_crop", lambda *_: np.zeros((64, 64)))
    monkeypatch.setattr(tasks.ndimage, "zoom", lambda patch, *_, **__: used[testing].add(patch[0, 0]) or np.eye(20))
    for testing in (False, True):
        for i in range(200):
            tasks._face(np.random.default_rng(i), 5, i % 2, "photographs", testing)
    assert len(used[False]) > 50
    assert len(used[True]) > 30
    assert not used[False] & used[True]


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"no task 'iris'; expected one of faces, attacks, anomalies"):
        build("iris", 0)


def test_cross_entropy_alone_is_the_plain_loop() -> None:
    images = build("attacks", 0, TINY.train, 4).train
    model = train("CE", images, 3, TINY)

    torch.manual_seed(3)
    expected = training.Net().train()
    expected.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(expected.parameters(), TINY.lr, weight_decay=TINY.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TINY.lr, total_steps=2)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    for part in (order[:16], order[16:]):
        optimizer.zero_grad()
        F.cross_entropy(expected(images.images[part]), images.labels[part]).backward()
        optimizer.step()
        schedule.step()
    assert not model.training
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_every_method_trains_another_network_from_the_same_start() -> None:
    images = build("faces", 0, TINY.train, 4).train
    weights = {method: train(method, images, 0, TINY).features[0].weight for method in METHODS}
    names = list(weights)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not torch.equal(weights[first], weights[second]), (first, second)
    torch.manual_seed(0)
    start = training.Net().features[0].weight
    assert all((weight - start).abs().max() < 5 * TINY.lr for weight in weights.values())


def test_evaluate_reads_true_and_difference_maps_of_the_region() -> None:
    """A network that sees nothing but brightness: attacks are bright squares, so every figure is known."""
    images = torch.full((8, 1, 64, 64), -1.0)
    images[4:, :, 16:48, 16:48] = 1.0
    labels = torch.tensor([0] * 4 + [1] * 4)
    saliency = (images[:, 0] + 1) / 2
    model = training.Net().eval()
    model.features = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.ReLU())
    model.head[2] = torch.nn.Linear(1, 2)
    with torch.no_grad():
        model.head[2].weight.copy_(torch.tensor([[-2.0], [1.0]]))
        model.head[2].bias.copy_(torch.tensor([0.1, 0.0]))
    figures = evaluate(model, tasks.Images(images, labels, saliency, labels == 1))
    assert (figures["auroc"], figures["accuracy"], figures["eer"], figures["apcer"]) == (1.0, 1.0, 0.0, 0.0)
    true = torch.nn.functional.interpolate(
        torch.relu(torch.nn.functional.avg_pool2d(images[4:5], 8)), 64, mode="bilinear"
    )
    energy = (true[0, 0] * saliency[4]).sum() / true.sum()
    assert figures["true_energy"] == pytest.approx(float(energy), abs=1e-5)
    assert figures["difference_energy"] == pytest.approx(float(energy), abs=1e-5)
    assert figures["true_pointing"] == figures["difference_pointing"] == 1.0
    assert figures["true_pearson"] == pytest.approx(np.corrcoef(true.flatten(), saliency[4].flatten())[0, 1], abs=1e-5)
    assert 0.9 < figures["true_iou"] <= 1.0
    assert isinstance(GradCAM(model, ["features"]), GradCAM)


def test_a_run_writes_cells_resumes_and_ignores_what_was_cut_short(tmp_path: Path, monkeypatch) -> None:
    settings = {"tasks": ("attacks",), "methods": ("CE", "CYBORG"), "config": TINY}
    run.run(tmp_path, seeds=range(1), **settings)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"attacks-{setting}-{m}-0.json" for setting in ("closed", "open") for m in ("ce", "cyborg")}
    cell = json.loads((tmp_path / "attacks-open-cyborg-0.json").read_text())
    assert cell["config"] == TINY._asdict()
    assert (cell["task"], cell["setting"], cell["method"], cell["seed"]) == ("attacks", "open", "CYBORG", 0)
    assert cell["held_out"] == "moire"
    assert 0 <= cell["metrics"]["auroc"] <= 1
    assert len(cell["metrics"]) == 12

    # Killed while writing: a partial file beside, and the second cell of that training missing.
    (tmp_path / "attacks-open-cyborg-0abc.part").write_text('{"task": "att')
    (tmp_path / "attacks-open-cyborg-0.json").unlink()
    trained = []
    original = run.train
    monkeypatch.setattr(run, "train", lambda method, *rest: trained.append(method) or original(method, *rest))
    run.run(tmp_path, seeds=range(1), **settings)
    assert trained == ["CYBORG"]
    again = json.loads((tmp_path / "attacks-open-cyborg-0.json").read_text())
    assert again["metrics"] == cell["metrics"]
    run.run(tmp_path, seeds=range(1), **settings)
    assert trained == ["CYBORG"]


def test_another_configuration_does_not_mix_with_cells_that_exist(tmp_path: Path) -> None:
    settings = {"tasks": ("attacks",), "methods": ("CE",), "seeds": range(1)}
    run.run(tmp_path, config=TINY, **settings)
    with pytest.raises(
        ValueError, match=r"attacks-.*json was made with .*'epochs': 1.* but this run has .*'epochs': 2"
    ):
        run.run(tmp_path, config=TINY._replace(epochs=2), **settings)


def test_the_command_line_runs_what_it_is_told(tmp_path: Path, monkeypatch) -> None:
    called = {}
    monkeypatch.setattr(run, "run", lambda results, tasks, seeds: called.update(r=results, t=tasks, s=seeds))
    run.main(["--seeds", "3", "--tasks", "faces", "--results", str(tmp_path)])
    assert called == {"r": tmp_path, "t": ["faces"], "s": range(3)}


METRICS = ["auroc", "accuracy", "eer", "apcer"] + [
    f"{kind}_{name}" for kind in ("true", "difference") for name in ("energy", "pointing", "pearson", "iou")
]


def write_cells(folder: Path, gains: dict[str, float], seeds: int) -> None:
    """Cells in which a method's AUROC on the open set is CE's plus a gain that differs a little from seed to seed."""
    for seed in range(seeds):
        for task in KINDS:
            for setting in run.SETTINGS:
                for method in METHODS:
                    gain = gains.get(method, 0.0) * (setting == "open") * (1 + 0.1 * seed)
                    metrics = dict.fromkeys(METRICS, 0.5) | {"auroc": 0.8 + 0.01 * (seed % 4) + gain}
                    cell = {"task": task, "setting": setting, "method": method, "seed": seed, "metrics": metrics}
                    cell |= {"held_out": "x", "seconds": 20.0, "config": Config()._asdict()}
                    cells.write(folder / f"{run._name(seed, task, method, setting)}.json", cell)


def test_the_report_says_what_held_and_what_did_not(tmp_path: Path) -> None:
    write_cells(tmp_path, {"Difference": 0.02, "Contrast": -0.04}, seeds=12)
    (tmp_path / "faces-closed-ce-0abc.part").write_text("{")
    report.main(["--results", str(tmp_path), "--docs", str(tmp_path / "docs"), "--real", str(tmp_path / "none")])
    text = (tmp_path / "docs" / "saliency_guided.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("- Open set, AUROC against CE"))
    held, opposite, unshown = line.split("; ")
    # Mean gains: .02 * (1 + .1 * 5.5) = .031 and -.04 * 1.55 = -.062.
    assert "held: higher for Difference (+0.031 [" in held
    assert opposite.startswith("the opposite held: lower for Contrast (-0.062 [")
    assert unshown.startswith("not shown either way for CYBORG (+0.000")
    closed = next(line for line in text.splitlines() if line.startswith("- Closed set, AUROC against CE"))
    assert "held" not in closed
    assert "stand-ins" in text
    assert "headroom" in text
    assert text.count("\n| ") == 2 + 4 * 2 * len(METHODS)  # header, rule, rows
    assert (tmp_path / "docs" / "saliency_guided.png").stat().st_size > 10_000


def test_the_report_leaves_incomplete_seeds_out_and_says_so(tmp_path: Path) -> None:
    write_cells(tmp_path, {}, seeds=3)
    (tmp_path / "faces-open-difference-2.json").unlink()
    results = report.load(tmp_path)
    assert results.seeds == (0, 1)
    assert results.left_out == 3 * 2 * len(METHODS) - 1
    assert "**Incomplete:** 35 cells" in report.markdown(results)
    assert np.allclose(results.figures["faces", "open", "CE"]["auroc"], [0.8, 0.81])


def test_the_report_says_when_cross_entropy_alone_saturates(tmp_path: Path) -> None:
    write_cells(tmp_path, {"CE": 0.15}, seeds=3)
    assert "outside the intended .75 to .95 on the open set: faces, attacks" in report.markdown(report.load(tmp_path))


def test_the_report_needs_complete_seeds_of_one_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0 seeds are complete in .*run python -m experiments"):
        report.load(tmp_path)
    write_cells(tmp_path, {}, seeds=2)
    path = tmp_path / "faces-open-ce-0.json"
    cell = json.loads(path.read_text())
    cell["config"]["epochs"] = 99
    path.write_text(json.dumps(cell))
    with pytest.raises(ValueError, match=r"have 2 configurations: keep those of one"):
        report.load(tmp_path)


def test_holm_by_hand() -> None:
    assert comparison.holm([0.02, 0.001, 0.04]) == pytest.approx([0.04, 0.003, 0.04])
    assert comparison.holm([0.6, 0.7]) == [1.0, 1.0]
