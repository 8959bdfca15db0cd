"""The experiment on real images, with images and cells made up here: the real ones are not part of the project."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage", reason="the tasks need scikit-image")
pytest.importorskip("sklearn", reason="AUROC needs the extra metrics")

from experiments import cells
from experiments.saliency_guided import report as page
from experiments.saliency_guided import terms
from experiments.saliency_guided.real import report, run, tasks
from experiments.saliency_guided.tasks import KINDS
from experiments.saliency_guided.training import Config

KIND_COUNT = 12
FEW = {name: run.METHODS[name] for name in ("CE", "CYBORG", "CYBORG dynamic", "LDA maps")}
BASE = replace(run.BASE, epochs=1, batch_size=16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of the tiles: 60 free ones, and 12 of each kind of defect with a mask."""
    random = np.random.default_rng(0)
    place = tmp_path / "data" / "tiles"
    place.mkdir(parents=True)
    rows = []
    for i, kind in enumerate(["free"] * 60 + list(tasks.TASKS["tiles"].kinds) * KIND_COUNT):
        pixels = random.integers(60, 120, (30, 20), dtype=np.uint8)
        mask = np.zeros((30, 20), np.uint8)
        if kind != "free":
            pixels[5:12, 4:9] += 80
            mask[5:12, 4:9] = 255
            Image.fromarray(mask).save(place / f"{i}_mask.png")
        Image.fromarray(pixels).save(place / f"{i}.png")
        rows.append((f"{i}.png", int(kind != "free"), kind, f"{i}_mask.png" if kind != "free" else ""))
    with (place / "tiles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "group", "saliency"), *rows])
    monkeypatch.setenv(tasks.VARIABLE, str(tmp_path / "data"))
    tasks._read.cache_clear()
    yield place
    tasks._read.cache_clear()


def names(part) -> set[str]:
    """Images of a part, by their pixels."""
    return {part[i].image.numpy().tobytes() for i in range(len(part))}


@pytest.mark.usefixtures("folder")
def test_development_images_are_in_no_training_and_no_test_of_any_seed() -> None:
    seeds = [tasks.build("tiles", seed) for seed in range(6)]
    everything = tasks._read("tiles")[0]
    development = set().union(*(names(images.development) for images in seeds))
    assert len(development) == 24
    for seed, images in enumerate(seeds):
        kind = tasks.TASKS["tiles"].kinds[seed % 5]
        train, closed, opened = (names(part) for part in (images.train, images.closed, images.open))
        assert images.held_out == kind
        assert not development & (train | closed | opened)
        assert not train & (closed | opened)
        assert kind not in images.train.groups
        assert kind not in {everything.groups[i] for i in [*images.closed.indices, *images.development.indices]}
        assert {everything.groups[i] for i in images.open.indices} == {"free", kind}
        free = {i for i in images.open.indices if everything.groups[i] == "free"}
        assert free == {i for i in images.closed.indices if everything.groups[i] == "free"}
    assert names(seeds[0].train) != names(seeds[5].train)


@pytest.mark.usefixtures("folder")
def test_fewer_maps_are_a_part_of_more() -> None:
    train = tasks.build("tiles", 0).train
    have = [tasks.with_share_of_maps(train, share, 3).has_saliency for share in (0.1, 0.5, 1.0)]
    assert torch.equal(have[2], train.has_saliency)
    assert (have[0] & ~have[1]).sum() == 0
    assert (have[1] & ~have[2]).sum() == 0
    assert 0 < int(have[0].sum()) < int(have[1].sum()) < int(have[2].sum())


def test_mean_gradient_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [2.0, 0.0]]]])
    assert tasks.mean_gradient(image).tolist() == [(1 + 2) / 2 + (2 + 1) / 2]


def test_images_that_are_not_here_are_said_and_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(tasks.VARIABLE, str(tmp_path))
    assert "set DIFFGRADCAM_DATA to the folder that has faces/" in tasks.missing("faces")
    run.run(tmp_path / "results", tasks=("faces",), stages=("pilot",))
    assert "faces is left out: no file" in capsys.readouterr().out
    assert list((tmp_path / "results" / "pilot").iterdir()) == []


@pytest.mark.usefixtures("folder")
def test_a_run_resumes_and_its_choices_follow_from_its_cells(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "METHODS", FEW)
    results = tmp_path / "results"
    with pytest.raises(ValueError, match="pilot or tuning is not finished"):
        run.run(results, ("tiles",), range(1), ("tuning",), BASE)
    run.run(results, ("tiles",), range(1), ("pilot", "tuning", "main"), BASE)
    assert {path.name for path in (results / "pilot").iterdir()} == {
        f"tiles-ce-1000-lr{rate}.json" for rate in ("0.001", "0.003", "0.01")
    }
    tuning = cells.read(results / "tuning")
    assert sorted((cell["method"], cell["option"]) for cell in tuning) == sorted(
        (method, option) for method in FEW for option in range(3)
    )
    best = run.choices(results)
    for method, (_, grid) in FEW.items():
        own = {cell["option"]: cell["development"]["auroc"] for cell in tuning if cell["method"] == method}
        assert own[grid.index(best[method])] == max(own.values())
    main = {cell["method"]: cell for cell in cells.read(results / "main")}
    assert set(main) == set(FEW)
    assert main["CYBORG"]["settings"]["alpha"] == best["CYBORG"]["alpha"]
    assert main["LDA maps"]["human_maps"] == main["CE"]["images"]["train"]
    assert main["CYBORG"]["human_maps"] < 30
    assert set(main["CE"]["regions"]) == {"count", *report.WAYS}
    assert main["CE"]["regions"]["count"]["images"] > 0
    run.run(results, ("tiles",), range(2), ("shortcuts",), BASE)
    shortcut = json.loads((results / "shortcuts" / "tiles-1.json").read_text())
    assert shortcut["held_out"] == "break"
    assert shortcut["closed"]["brightness"] == 1  # the defects made up here are bright
    assert 0.5 <= shortcut["open"]["gradient"] <= 1

    path = results / "main" / "tiles-cyborg-0.json"
    before = json.loads(path.read_text())
    path.unlink()
    trained = []
    original = run.fit
    monkeypatch.setattr(run, "fit", lambda *a, **k: trained.append(1) or original(*a, **k))
    run.run(results, ("tiles",), range(1), ("pilot", "tuning", "main"), BASE)
    assert len(trained) == 1
    again = json.loads(path.read_text())
    assert (again["closed"], again["open"]) == (before["closed"], before["open"])
    with pytest.raises(ValueError, match=r"was made with .*'epochs': 1.* but this run has .*'epochs': 2"):
        run.run(results, ("tiles",), range(1), ("pilot",), replace(BASE, epochs=2))


def test_the_command_line_runs_what_it_is_told(tmp_path: Path, monkeypatch) -> None:
    called = []
    monkeypatch.setattr(run, "run", lambda *a, **k: called.append((a, k)))
    threads = torch.get_num_threads()
    run.main(["--seeds", "3", "--tasks", "tiles", "--stages", "main", "--results", str(tmp_path), "--jobs", "2"])
    torch.set_num_threads(threads)
    assert called == [((tmp_path, ["tiles"], range(3), ["main"]), {"jobs": 2, "device": "cpu"})]


@pytest.mark.usefixtures("folder")
def test_a_pretrained_network_has_its_own_learning_rate_and_the_choices_of_the_small_one(tmp_path, monkeypatch) -> None:
    class Pretrained(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            conv = torch.nn.Conv2d(1, 4, 3, stride=4)
            self.body = torch.nn.ModuleDict({"layer4": conv, "fc": torch.nn.Linear(4, classes)})

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.body["fc"](self.body["layer4"](images).mean((2, 3)))

    monkeypatch.setattr(run, "METHODS", {name: FEW[name] for name in ("CE", "CYBORG")})
    monkeypatch.setattr(run, "PretrainedResNet18", Pretrained)
    monkeypatch.setattr(run, "RESNET_TASKS", {"tiles": "tiles"})
    run.run(tmp_path, ("tiles",), range(2), ("pilot", "tuning", "resnet-pilot", "resnet"), BASE)
    pilot = {
        cell["settings"]["learning_rate"]: cell["development"]["auroc"]
        for cell in cells.read(tmp_path / "resnet-pilot")
    }
    assert set(pilot) == set(run.RESNET_RATES)
    found = cells.read(tmp_path / "resnet")
    assert sorted((cell["method"], cell["seed"]) for cell in found) == [
        ("CE", 0),
        ("CE", 1),
        ("CYBORG", 0),
        ("CYBORG", 1),
    ]
    for cell in found:
        assert pilot[cell["settings"]["learning_rate"]] == max(pilot.values())
        assert cell["settings"]["amp"]
        assert (
            cell["settings"]["weight_decay" if cell["method"] == "CE" else "alpha"]
            in run.choices(tmp_path)[cell["method"]].values()
        )
        assert {"closed", "open"} < set(cell)


METRICS = ["auroc", "eer", "apcer_at_bpcer_1"] + [
    f"{kind}_{name}" for kind in ("true", "difference") for name in ("energy", "pointing", "iou", "pearson")
]


def write_cells(folder: Path, gains: dict[str, float], seeds: int) -> None:
    """Cells in which a method's AUROC is CE's plus a gain that differs a little from pair to pair."""
    for stage in run.STAGES:
        (folder / stage).mkdir(parents=True)
    every = [*run.MAIN_TASKS, "chestxray64"]
    for rate in run.RATES:
        cell = {"settings": {"learning_rate": rate}, "development": {"auroc": 0.7 + rate}, "config": {}}
        cells.write(folder / "pilot" / f"{rate}.json", cell)
    for method, (_, grid) in run.METHODS.items():
        for option in range(len(grid)):
            cell = {"method": method, "option": option, "development": {"auroc": 0.7 + option / 100}, "config": {}}
            cells.write(folder / "tuning" / f"{method}-{option}.json", cell)
    for seed in range(seeds):
        for number, task in enumerate(every):
            numbers = {"gradient": 0.6, "contrast": 0.7, "brightness": 0.5}
            cell = {"task": task, "seed": seed, "closed": numbers, "open": numbers, "config": {}}
            cells.write(folder / "shortcuts" / f"{task}-{seed}.json", cell)
            for method in run.METHODS:
                gain = gains.get(method, 0.0) * (1 + 0.1 * seed + 0.05 * number)
                metrics = dict.fromkeys(METRICS, 0.5) | {"auroc": 0.8 + 0.01 * (seed % 4) + gain}
                unmarked = {name: metrics[name] for name in METRICS[:3]}  # no image has a human map
                ways = {
                    way: {"pointing": 0.5, "iou": 0.2 - 0.1 * (way == "chance"), "deletion": 1.0} for way in report.WAYS
                }
                cell = {
                    "task": task, "method": method, "seed": seed, "seconds": 9.0, "human_maps": 50, "config": {},
                    "settings": run.BASE.to_dict(), "images": {"train": 100, "closed": 50, "open": 40},
                    "closed": metrics, "open": unmarked if task == "chestxray" else metrics,
                    "regions": {"count": {"images": 30, "without": 0}, **ways},
                }  # fmt: skip
                cells.write(folder / "main" / f"{task}-{method}-{seed}.json", cell)


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESAMPLES", 50)


@pytest.mark.usefixtures("_fast")
def test_the_page_leads_with_what_did_not_hold(tmp_path: Path) -> None:
    write_cells(tmp_path, {"CYBORG": 0.02, "Difference": 0.03, "Contrast": -0.02, "Divergence": 0.02}, seeds=5)
    results = report.load(tmp_path)
    text = report.sections(results, "why")
    assert text[0].startswith("**The paper's claim that training with both classes' maps generalises better")
    assert "did not hold in full" in text[0]
    assert "it was shown for Difference on the closed set, Difference on the open set; the opposite" in text[0]
    assert "the opposite was shown for Contrast on the closed set, Contrast on the open set.**" in text[0]
    closed = text[1].splitlines()[0]
    # Mean over the five seeds and four tasks: .02 * (1 + .2 + .075) = .0255.
    assert "1. AUROC against cross-entropy alone: **closed set**, better for CYBORG (+0.026 [" in closed
    assert "worse for Contrast (-0.026 [" in closed
    assert "not shown either way for CYBORG dynamic (+0.000" in closed
    table = next(part for part in text if part.startswith("| task |"))
    assert table.count("\n") == 1 + 5 * 2 * len(run.METHODS)
    assert "**5 seeds are done**, 20 pairs" in "\n".join(text)
    assert "trained with CE: pointing better than none, worse than none, IoU better than chance" in "\n".join(text)
    assert "| chestxray, 64 x 64, equalised | open | 0.600 +- 0.000 | 0.700 +- 0.000 |" in "\n".join(text)
    measured, verdict = report.tool_against(results)
    assert verdict == "its regions overlap people's masks more than those of chance, less than those of none"
    assert "chance +0.100 [+0.100, +0.100]" in measured
    report.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.usefixtures("_fast")
def test_the_page_says_when_the_claim_holds(tmp_path: Path) -> None:
    write_cells(tmp_path, dict.fromkeys(report.BOTH_MAPS, 0.03), seeds=5)
    assert "held on our real images, for all three" in report.sections(report.load(tmp_path), "")[0]


@pytest.mark.usefixtures("_fast")
def test_the_page_says_when_nothing_was_shown(tmp_path: Path) -> None:
    write_cells(tmp_path, {}, seeds=2)
    assert (
        "was not shown on our real images, for any of our three readings.**"
        in report.sections(report.load(tmp_path), "")[0]
    )


@pytest.mark.usefixtures("_fast")
def test_incomplete_seeds_are_left_out_and_counted(tmp_path: Path) -> None:
    write_cells(tmp_path, {}, seeds=3)
    (tmp_path / "main" / "faces-Contrast-2.json").unlink()
    results = report.load(tmp_path)
    assert results.seeds == (0, 1)
    assert results.left_out == 5 * len(run.METHODS) - 1
    assert "34 cells of seeds that are not complete yet are left out" in "\n".join(report.sections(results, ""))
    for path in (tmp_path / "main").glob("*-1.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"1 seeds are complete in .*run python -m experiments"):
        report.load(tmp_path)


def test_without_real_cells_the_page_has_the_stand_ins_alone(tmp_path: Path) -> None:
    assert page.real_sections(tmp_path, tmp_path) == []
    assert "Not measured yet" in report.why_terms(tmp_path)


def test_terms_run_and_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "WEIGHTS", (1.0,))
    terms.run(tmp_path, tuple(KINDS)[:1], (100,), Config(train=32, test=16, epochs=1, batch=16))
    found = {(cell["term"], cell["weight"]): cell for cell in cells.read(tmp_path)}
    assert set(found) == {("agreement", 0.0), ("agreement", 1.0), ("entropy", 1.0)}
    first = found["agreement", 0.0]["before"]
    assert first == found["entropy", 1.0]["before"]
    assert all(part["gradient"] > 0 for part in first.values())
    assert found["agreement", 0.0]["after"] != found["agreement", 1.0]["after"]
    text = report.why_terms(tmp_path)
    factor = first["agreement"]["gradient"] / first["squared_error"]["gradient"]
    assert f"the agreement of the two maps pulls {factor:.1f} times as hard" in text
    lost = found["agreement", 0.0]["closed"]["auroc"] - found["agreement", 1.0]["closed"]["auroc"]
    assert f"agreement (Divergence) {lost:+.3f} at 1" in text
    assert text.count("\n| ") == 5
    assert "| agreement (Divergence) | 1 |" in text
