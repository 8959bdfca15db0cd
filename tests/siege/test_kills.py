"""Killed anywhere: a training ends with the same bytes, and an export leaves the old file or the new one.

What is asserted of the bytes is asserted in :mod:`tests.siege.kills`, which runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("safetensors", reason="checkpoints need the extra store")
pytest.importorskip("sklearn", reason="AUROC needs the extra metrics")
pytest.importorskip("onnxscript", reason="ONNX files need the extra onnx")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "asked",
    [
        {"training": 6, "end": 157, "export": 0},
        pytest.param({"training": 400, "end": 1, "command": 60}, marks=pytest.mark.siege),
    ],
    ids=["a few", "many"],
)
def test_killed_anywhere(tmp_path, asked):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(word) for pair in asked.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "tests.siege.kills", str(tmp_path), *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["training"]["lines"] >= 2
    assert counts["training"]["times"] >= 2
    assert counts["end"]["lines"] >= 5
    if "export" in asked:
        assert counts["export"]["old"] > 10
        assert counts["export"]["new"] > 5
        assert 0 < counts["export"]["without checksum"] < 20
