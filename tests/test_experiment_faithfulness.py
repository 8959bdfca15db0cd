"""The comparison of methods: cells hold a value for each photograph, resume, and the report says what they hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from diffgradcam.metrics import Evaluator, deletion
from experiments import cells
from experiments.faithfulness import report, run
from experiments.faithfulness.methods import CONTRAST, METHODS, NEITHER, PLAIN
from experiments.photos import centre, lite0, photo, to_input


def test_every_method_is_there_plain_and_contrastive() -> None:
    plain = {method for method, explains in METHODS if explains == PLAIN}
    assert plain == {method for method, explains in METHODS if explains == CONTRAST} - {
        "DiffGradCAM max",
        "DiffGradCAM mean",
        "FinerCAM",
    }
    assert len({run.name(*key) for key in METHODS}) == len(METHODS)


def test_a_cell_holds_the_metrics_of_its_maps_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STEPS", 4)
    monkeypatch.setattr(run, "PERCENTILES", (50,))
    key = ("GradCAM", PLAIN)
    run.run(tmp_path, ["coffee"], [key])
    (cell,) = cells.read(tmp_path)
    images = to_input([centre(photo("coffee"))])
    _, classes, maps = METHODS[key](lite0()).explain(images)
    expected = deletion(Evaluator(lite0()), images, maps, classes, steps=4).auc
    assert cell["metrics"]["deletion"] == [pytest.approx(float(expected), abs=1e-3)]
    assert set(cell["metrics"]) == {*report.METRICS, "seconds"}
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("the cell exists"))
    run.run(tmp_path, ["coffee"], [key])


def _write(folder: Path, method: str, explains: str, **values: list[float]) -> None:
    every = {name: [0.1, 0.2, 0.3, 0.4] for name in (*report.METRICS, "seconds")} | values
    config = {"photos": ["a", "b", "c", "d"], "steps": 4, "percentiles": [50]}
    cell = {"method": method, "explains": explains, "metrics": every, "seconds": 60.0, "config": config}
    (folder / f"{run.name(method, explains)}.json").write_text(json.dumps(cell))


def test_the_report_says_which_methods_beat_the_control(tmp_path: Path) -> None:
    _write(tmp_path, "RandomCAM", NEITHER)
    _write(tmp_path, "GradCAM", PLAIN, deletion=[-1.0, -1.1, -0.9, -1.0], insertion=[0.0, 0.3, 0.2, 0.5])
    _write(tmp_path, "GradCAM", CONTRAST, deletion=[-2.0, -2.1, -1.9, -2.0], insertion=[0.0, 0.3, 0.2, 0.5])
    results = report.load(tmp_path)
    page, tables = report.markdown(results), report.tables(results)
    assert "**deletion, log-odds**: 2 of 2 methods are better than the random control" in tables
    assert "**insertion, log-odds**: 0 of 2 methods are better" in tables
    assert "better: GradCAM -1.00; worse: none; no difference shown: none" in tables
    assert "| GradCAM | a logit | -1.00 [" in tables
    assert "in 3 minutes on one core" in page
    assert "of 2, 2 by deletion, 0 by insertion, 0 by ROAD combined are better than random maps" in page
    assert "for 0 of 1 methods" in page
    assert "(a difference is shown for GradCAM)" in page
    assert "| GradCAM | -1.00 | **-2.00** | 0.25 | 0.25 | " in page
    assert "**Missing:** GradCAM++ (a logit)" in page
    report.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_without_the_control_nothing_is_reported(tmp_path: Path) -> None:
    _write(tmp_path, "GradCAM", PLAIN)
    with pytest.raises(ValueError, match=r"there is no cell of RandomCAM in .*; run python -m experiments\.faithful"):
        report.load(tmp_path)


def test_photographs_are_squares_of_the_originals() -> None:
    pixels = photo("rocket")
    whole = centre(pixels)
    assert whole.shape == (224, 224, 3)
    assert whole.dtype == np.uint8
    side = min(pixels.shape[:2])
    left = (pixels.shape[1] - side) // 2
    assert math.isclose(whole.mean(), pixels[:, left : left + side].mean(), rel_tol=0.02)
    assert photo("stereo_motorcycle").ndim == 3
    assert float(to_input([whole]).min()) >= -127 / 128
