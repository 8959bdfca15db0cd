"""The folder of a data set's explanations: shards of maps, a line of numbers for each image, and what made them.

::

    out/
      run.json                 what was run: method, layers, weights, images and hash of their ids; written first
      maps-000000.safetensors  tensor "maps", (n, h, w) or (n, N, h, w): the maps of images 0 to shard_size - 1
      rows-000000.jsonl        a line for each of these images; its existence says that the shard is complete
      ...
      index.jsonl              all lines, in the order of the data set; written when no shard is missing

A shard is complete or not done. Each file is written under another name, synchronised and renamed, the maps before the
rows. If that is interrupted, the shard is not done, and all other shards stay as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.optional import import_optional
from .._core.persistence import atomic_file

Row = dict[str, Any]
"""One image, by ``position``, ``id``, and ``error`` or the numbers of its explanation; see :class:`Explanations`."""

_FORMAT = 1
_RUN, _INDEX = "run.json", "index.jsonl"


class Explanations(Mapping[str | int, Tensor]):
    """The explanations in a folder: a mapping from image id to map that reads a map when it is asked for.

    What is there is counted when it is first needed: open a folder that still grows again to see more of it. The ids
    are held in memory, about 200 bytes for each image; :meth:`rows` and :meth:`shards` hold one shard at a time.

    Each row has ``position`` (in the data set) and ``id``. A broken image has ``error``. An explained one has ``class``
    (explained), ``decision`` (largest logit), ``score`` (what the method explains; the logit, where it has no score),
    ``probability`` (softmax, of ``class``), ``entropy`` (nats, of the positive part of the map), with
    ``common_mode=True`` also ``common_mode_share``, and its place: row ``map`` of the tensor in the file of ``shard``.
    Where several classes were explained, these numbers are lists, one value for each class.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        run: What was run: method, layers, weights, number of images, hash of their ids.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.run: dict[str, Any] = json.loads((self.path / _RUN).read_text())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no {_RUN} in {self.path}; expected a folder that explain_dataset(..., out={str(self.path)!r}) wrote"
            ) from None

    def __getitem__(self, key: str | int) -> Tensor:
        """The map of an image, ``(h, w)``, or ``(N, h, w)`` of several classes.

        Raises:
            KeyError: If the image is unknown, broken or not explained yet; the message says which.
        """
        try:
            shard, row = self._places[key]
        except KeyError:
            raise KeyError(self._why_not(key)) from None
        with load_safetensors().safe_open(_maps(self.path, shard), "pt") as file:
            tensor: Tensor = file.get_slice("maps")[row : row + 1].squeeze(0)
        return tensor

    def __iter__(self) -> Iterator[str | int]:
        """The ids of the explained images, in the order of the data set."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many images are explained."""
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        """Whether an image is explained."""
        return key in self._places

    def __repr__(self) -> str:
        """The folder and how far it is."""
        return f"<Explanations {str(self.path)!r}: {len(self)} of {self.run['images']} images, {self.missing} missing>"

    def rows(self) -> Iterator[Row]:
        """The rows of all images that are done, also the broken ones, in the order of the data set.

        Yields:
            See the class.
        """
        for shard in self.done():
            yield from self._rows(shard)

    def failures(self) -> list[Row]:
        """The rows of the broken images: ``position``, ``id`` and ``error``."""
        return [row for row in self.rows() if "error" in row]

    def shards(self) -> Iterator[tuple[list[Row], Tensor]]:
        """All maps, a shard at a time: the fast way to read many.

        Yields:
            The rows of the explained images of a shard, ``n`` of them, and their maps, ``(n, [N,] h, w)``.
        """
        for shard in self.done():
            rows = [row for row in self._rows(shard) if "error" not in row]
            if rows:
                with load_safetensors().safe_open(_maps(self.path, shard), "pt") as file:
                    yield rows, file.get_tensor("maps")

    @property
    def missing(self) -> int:
        """How many images are neither explained nor known to be broken, being in shards that are not done."""
        done = set(self.done())
        return sum(len(shard_positions(self.run, shard)) for shard in all_shards(self.run) if shard not in done)

    def done(self) -> list[int]:
        """The numbers of the shards that are complete."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.path.glob("rows-*.jsonl"))

    def _rows(self, shard: int) -> Iterator[Row]:
        with open(_lines(self.path, shard), encoding="utf-8") as file:
            yield from map(json.loads, file)

    @cached_property
    def _places(self) -> dict[str | int, tuple[int, int]]:
        # The shard is that of the file which was found here: no number in a row leads to another file.
        return {
            row["id"]: (shard, row["map"]) for shard in self.done() for row in self._rows(shard) if "error" not in row
        }

    def _why_not(self, key: str | int) -> str:
        for row in self.failures():
            if row["id"] == key:
                return f"image {key!r} is broken, so it has no map: {row['error']}"
        example = next(iter(self), None)
        unfinished = f"; {self.missing} images are still missing" if self.missing else ""
        return f"no image {key!r} in {self.path}; ids look like {example!r}{unfinished}"


def open_explanations(out: str | Path) -> Explanations:
    """Open what :func:`~diffgradcam.data.explain_dataset` wrote, finished or not.

    Args:
        out: The folder.

    Returns:
        A mapping from image id to map, which also has the rows; see :class:`Explanations`.

    Raises:
        FileNotFoundError: If the folder was not written by ``explain_dataset``.
        ImportError: If safetensors is not installed.
    """
    load_safetensors()
    return Explanations(out)


def prepare(out: Path, run: dict[str, Any], rank: int) -> Explanations:
    """Make the folder or, where it is there already, make sure that it is of the same run.

    Args:
        out: The folder.
        run: What is to be run; JSON values, with ``images`` and ``shard_size``.
        rank: Of this process, so that several do not write the same temporary file.

    Returns:
        What is in the folder.

    Raises:
        ValueError: If it holds another run.
        NotADirectoryError: If it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out={str(out)!r} is a file; expected a folder to write to, which need not exist")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / _RUN).exists():
        with atomic_file(out / _RUN, rank) as file:
            file.write(json.dumps({"format": _FORMAT, **run}, indent=2).encode())
    store = Explanations(out)
    wanted = json.loads(json.dumps({"format": _FORMAT, **run}))
    other = [name for name in wanted.keys() | store.run.keys() if wanted.get(name) != store.run.get(name)]
    if other:
        differences = "; ".join(
            f"{name}: {store.run.get(name)!r} there, {wanted.get(name)!r} now" for name in sorted(other)
        )
        raise ValueError(
            f"{out} holds the explanations of another run ({differences}); give another out=, or delete it"
        )
    return store


def write_shard(out: Path, shard: int, rows: Sequence[Row], maps: Sequence[Tensor]) -> None:
    """Write a shard, all of it or nothing.

    Args:
        out: The folder.
        shard: Its number.
        rows: Of its images, in the order of the data set; ``shard`` and ``map`` are added here.
        maps: Of its explained images, in the same order: batches ``(b, [N,] h, w)``.

    Raises:
        OSError: If the disk is full, say. What was written before stays readable.
    """
    places = iter(range(len(rows)))
    placed = [row if "error" in row else {**row, "shard": shard, "map": next(places)} for row in rows]
    try:
        if maps:
            with atomic_file(_maps(out, shard)) as file:
                file.write(load_safetensors("safetensors.torch").save({"maps": torch.cat(list(maps))}))
        with atomic_file(_lines(out, shard)) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in placed)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}, while writing shard {shard} to {out}; all shards written before are complete and "
            "readable: mend that and run the same again to go on",
        ) from error


def write_index(store: Explanations, rank: int) -> None:
    """Join the rows of all shards into one file, if none is missing.

    Args:
        store: The folder.
        rank: Of this process: the last two may finish at the same time.
    """
    if store.missing:
        return
    with atomic_file(store.path / _INDEX, rank) as file:
        for shard in store.done():
            file.write(_lines(store.path, shard).read_bytes())


def all_shards(run: Mapping[str, Any]) -> range:
    """The numbers of the shards of a run."""
    return range(-(-run["images"] // run["shard_size"]))


def shard_positions(run: Mapping[str, Any], shard: int) -> range:
    """The positions in the data set of the images of a shard."""
    start = shard * run["shard_size"]
    return range(start, min(start + run["shard_size"], run["images"]))


def load_safetensors(module: str = "safetensors") -> Any:
    """The library safetensors, which only stores need.

    Args:
        module: It, or a part of it.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; the message says how to.
    """
    return import_optional(module, "a folder of maps")


def _maps(out: Path, shard: int) -> Path:
    return out / f"maps-{shard:06d}.safetensors"


def _lines(out: Path, shard: int) -> Path:
    return out / f"rows-{shard:06d}.jsonl"
