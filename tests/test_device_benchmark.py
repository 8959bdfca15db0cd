"""The benchmark for GPUs runs as a whole, tiny and on the CPU, and says why it does nothing where there is no GPU."""

import json
import sys

import pytest
import torch

from benchmarks import device

pytest.importorskip("safetensors", reason="a data set is explained into a store")


def test_it_runs_at_a_tiny_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device, "_peers", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["device", "--cpu-smoke", "--out", str(tmp_path / "device.json")])
    device.main()
    report = json.loads((tmp_path / "device.json").read_text())
    work = {row["work"] for row in report["rows"]}
    assert {"one map", "10 classes", "all classes", "training step, two maps", "data set"} < work
    assert {row["precision"] for row in report["rows"]} == set(device.PRECISIONS)
    assert not report["left_out"]
    assert all(row["values"]["diffgradcam"] > 0 and row["passed"] is None for row in report["rows"])
    printed = capsys.readouterr().out
    assert "the numbers mean nothing" in printed


def test_what_there_is_no_time_for_is_named():
    report = device.Bench("cpu", smoke=True, seconds=-1).run()
    assert report["rows"] == []
    assert {"data set", "perturbation"} < set(report["left_out"])
    assert "No time was left for: ResNet-18, float32" in device.as_markdown(report)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["device", "--out", str(tmp_path / "device.json")])
    device.main()
    assert capsys.readouterr().out.startswith("skipped: PyTorch sees no CUDA device here")
    assert not list(tmp_path.iterdir())
