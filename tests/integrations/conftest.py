import os
import sys
from pathlib import Path

import pytest


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """Weights & Biases with no network, no file outside of ``tmp_path``, and nothing left over in this process."""
    for name in ("exit", "excepthook"):  # it puts its own in place, for good
        monkeypatch.setattr(sys, name, getattr(sys, name))
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    for name, value in {"MODE": "offline", "SILENT": "true", "DISABLE_GIT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    module = pytest.importorskip("wandb", reason="needs the extra wandb")
    before = children()
    yield module
    module.finish()
    module.teardown()
    assert children() <= before, "Weights & Biases has left a process behind"


def children():
    """Ids of the processes that this one started, where the system tells."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    if not tasks.is_dir():
        return set()
    return {child for task in tasks.iterdir() for child in (task / "children").read_text().split()}
