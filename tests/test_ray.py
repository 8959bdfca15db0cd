"""Ray Data: two workers, one of which dies half way, find to the last bit what one process finds."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffgradcam import DiffGradCAM
from tests import models

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent


def test_two_workers_find_what_one_process_finds_though_one_of_them_dies(tmp_path):
    pytest.importorskip("ray", reason="not in the test environment; pip install '.[ray]'")
    import pandas

    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(256, (12, 6, 5, 3), generator=generator, dtype=torch.uint8)
    torch.save(photos, tmp_path / "photos.pt")
    command = [sys.executable, str(ROOT / "tests" / "ray_workers.py"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()

    found = pandas.read_parquet(tmp_path / "maps").sort_values("name")
    assert found["name"].tolist() == list(range(12))  # none is lost, none is there twice
    cam = DiffGradCAM(models.deep(dtype=torch.float32), "relu")
    images = photos.permute(0, 3, 1, 2).float().sub(127).div(128)
    parts = [cam.explain(batch) for batch in torch.split(images, 2)]
    maps = torch.cat([part.maps for part in parts]).numpy()
    assert np.array_equal(np.stack(found["map"].tolist()).reshape(maps.shape), maps)
    assert found["class"].tolist() == torch.cat([part.classes for part in parts]).tolist()
