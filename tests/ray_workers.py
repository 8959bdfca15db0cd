"""Explain a small data set with two workers of Ray Data, one of which dies half way: run by tests/test_ray.py."""

import logging
import os
import sys
from pathlib import Path

import ray
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from ray_data import Explain  # noqa: E402

from tests import models  # noqa: E402


class MayDie(Explain):
    """Dies without a word at image 7, once."""

    def __init__(self, model, layer, died):
        super().__init__(model, layer)
        self.died = died

    def __call__(self, batch):
        if 7 in batch["name"] and not self.died.exists():
            self.died.touch()
            os._exit(1)
        return super().__call__(batch)


def main(folder):
    photos = torch.load(folder / "photos.pt").numpy()
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]), "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": environment},
    )
    # Blocks of two images, as the batches: so each image runs beside the same other one as in a single process.
    data = ray.data.from_items(
        [{"name": number, "image": photo} for number, photo in enumerate(photos)],
        override_num_blocks=len(photos) // 2,
    )
    arguments = (models.deep(dtype=torch.float32), "relu", folder / "died")
    workers = ray.data.ActorPoolStrategy(size=2)
    # Half a CPU each: what writes needs one too.
    explained = data.map_batches(MayDie, fn_constructor_args=arguments, batch_size=2, compute=workers, num_cpus=0.5)
    explained.write_parquet(str(folder / "maps"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
