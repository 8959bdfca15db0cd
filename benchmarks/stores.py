"""Formats for many small maps: safetensors, which the library writes, and Zarr. ``python -m benchmarks.stores``.

20,000 maps of 7 x 7, float32, in shards of 1024: they are written, all are read, and 200 are read
one at a time from a newly opened store. In each round the formats take turns. Prints Zarr's seconds as multiples of
those of safetensors (the median over the rounds and the quartiles) and writes ``benchmarks/results/stores.json``. The
benchmark needs ``pip install zarr``; the library does not.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zarr
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks.measure import elapsed

RESULTS = Path(__file__).parent / "results" / "stores.json"
MAPS, SHARD, ROUNDS = 20_000, 1024, 51
ONE_AT_A_TIME = np.random.default_rng(1).integers(0, MAPS, 200).tolist()


def write_safetensors(folder: Path, maps: np.ndarray) -> None:
    for start in range(0, len(maps), SHARD):
        save_file({"maps": maps[start : start + SHARD]}, folder / f"{start // SHARD}.safetensors")


def read_safetensors(folder: Path) -> np.ndarray:
    shards = [load_file(folder / f"{number}.safetensors")["maps"] for number in range(-(-MAPS // SHARD))]
    return np.concatenate(shards)


def pick_safetensors(folder: Path) -> list[np.ndarray]:
    found = []
    for position in ONE_AT_A_TIME:
        with safe_open(folder / f"{position // SHARD}.safetensors", "np") as shard:
            found.append(shard.get_slice("maps")[position % SHARD])
    return found


def write_zarr(folder: Path, maps: np.ndarray) -> None:
    array = zarr.open_array(folder / "maps", mode="w", shape=maps.shape, chunks=(SHARD, 7, 7), dtype="f4")
    for start in range(0, len(maps), SHARD):
        array[start : start + SHARD] = maps[start : start + SHARD]


def read_zarr(folder: Path) -> np.ndarray:
    return zarr.open_array(folder / "maps", mode="r")[:]


def pick_zarr(folder: Path) -> list[np.ndarray]:
    array = zarr.open_array(folder / "maps", mode="r")
    return [array[position] for position in ONE_AT_A_TIME]


def main() -> None:
    maps = np.random.default_rng(0).random((MAPS, 7, 7), dtype=np.float32)
    ratios: dict[str, list[float]] = {"writing": [], "reading all": [], "reading one at a time": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "writing": (partial(write_safetensors, folder, maps), partial(write_zarr, folder, maps)),
                "reading all": (partial(read_safetensors, folder), partial(read_zarr, folder)),
                "reading one at a time": (partial(pick_safetensors, folder), partial(pick_zarr, folder)),
            }
            for work, (ours, theirs) in works.items():
                base = elapsed(ours)
                ratios[work].append(elapsed(theirs) / base)
            assert np.array_equal(read_safetensors(folder), maps)
            assert np.array_equal(read_zarr(folder), maps)
    found = {}
    for work, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        found[work] = {"median": round(median, 1), "quartiles": [round(low, 1), round(high, 1)]}
        print(f"{work}: Zarr takes {median:.1f} times as long as safetensors ({low:.1f} to {high:.1f})")
    versions = {name: version(name) for name in ("safetensors", "zarr", "numpy")}
    setting = {"maps": list(maps.shape), "shard": SHARD, "rounds": ROUNDS, "one_at_a_time": len(ONE_AT_A_TIME)}
    result = {
        "setting": setting,
        "versions": versions | {"python": platform.python_version()},
        "zarr_over_safetensors": found,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
