"""Explain a data set: stream it through any method into a folder, in one process or several."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from tqdm import tqdm

from .._core.base import BaseCAM
from .._core.checks import check_choice, check_count
from .._core.common_mode import common_mode_share, invisible_score, visible_score
from .._core.errors import NonFiniteValues
from .._core.explainers import check_explains
from .._core.explanation import Explainer, Explanation
from .._core.layers import find_layers
from .._core.naming import option_name
from .._core.outputs import Classes, check_class_word
from .._core.persistence import weight_hash
from .._core.tensors import columns, widen
from .._core.wrappers import inner_model
from ..analysis.comparisons import explain_together
from ..heatmaps import entropy, rectify
from ..methods.gradient import GradCAM
from ..methods.smoothing import SmoothedCAM
from ..scores import ScoreFunction, logit
from .store import Explanations, Row, all_shards, load_safetensors, prepare, shard_positions, write_index, write_shard

_ON_ERROR = ("stop", "skip")


def explain_dataset(
    cam: Explainer,
    loader: DataLoader[Any],
    out: str | Path,
    *,
    classes: int | str | Callable[[Any], Classes] | None = None,
    ids: Sequence[str | int] | None = None,
    common_mode: bool = False,
    on_error: str = "stop",
    shard_size: int = 1024,
    device: torch.device | str | int | None = None,
    progress: bool = True,
) -> Explanations:
    """Explain every image of a data set once, into a folder. If the run is interrupted, the same call continues it.

    The images are explained in the order of the data set, in batches that are always the same, so neither an
    interruption nor the number of processes changes a bit of the result. Shards of ``shard_size`` images are written in
    the background while the next one is explained; two of them are in memory at a time. An interruption costs the
    shards that are in work, so choose small ones for a slow method. For an image to be explained again, delete the
    ``rows`` file of its shard.

    Where ``torch.distributed`` is initialised, as under ``torchrun``, every process makes the same call with the same
    ``out``: each explains its own share of the shards that are missing. None waits for the others in the end; the last
    one writes the index.

    Args:
        cam: A CAM, a wrapper such as :class:`~diffgradcam.NoiseSmooth`, or an object with their ``explain``.
        loader: What you would run the model on: a ``DataLoader`` of a data set with a length. Batches are images
            ``(B, C, H, W)``, or a sequence that starts with them, such as ``(images, labels)``. Its workers, its
            prefetching and its ``collate_fn`` are used. Shuffling, ``drop_last`` and a ``DistributedSampler`` have no
            effect: there is nothing to shuffle, drop or pad.
        out: The folder; see :class:`Explanations`.
        classes: None (the decision), an int, ``"all"``, ``"top5"``, or a function of the batch that returns classes in
            any form that ``explain`` takes: ``lambda batch: batch[1]`` for the labels.
        ids: Unique names of all images, in the order of the data set, such as ``[path for path, _ in folder.samples]``;
            by default their positions.
        common_mode: Also measure which share of GradCAM's energy no decision depends on, as
            :func:`diffgradcam.audit` does, for a CAM that is not wrapped. It costs two further vector-Jacobian products
            from the logits to the layer, but no further forward pass.
        on_error: What to do about a broken image: one that the data set raises for, that is NaN or infinite (or
            becomes so in the model), or whose shape differs from the rest of its batch. ``"stop"`` raises and names it;
            ``"skip"`` records it and goes on. If no image at all can be explained, the images are not the cause, and
            the error is raised. Errors about anything else than an image, such as a class out of range, are always
            raised.
        shard_size: Images in a shard; rounded up to whole batches.
        device: Where to send the images; by default they stay where the loader puts them.
        progress: Show a progress bar with rate and remaining time; of several processes the first one does.

    Returns:
        What is in the folder; of several processes, perhaps not yet the others' part.

    Raises:
        ImportError: If safetensors is not installed.
        TypeError: If ``cam`` or ``loader`` is of the wrong kind, or the batches are.
        ValueError: If an option is out of range, the ids do not fit, or ``out`` holds another run. Otherwise as
            ``explain``.
        RuntimeError: For a broken image, with ``on_error="stop"``.
        OSError: If the folder cannot be written; what was written before stays.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from diffgradcam import DiffGradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> loader = DataLoader(list(torch.rand(10, 3, 8, 8)), batch_size=4)
        >>> maps = explain_dataset(DiffGradCAM(model, "0"), loader, tempfile.mkdtemp(), progress=False)
        >>> len(maps), maps[7].shape
        (10, torch.Size([6, 6]))
    """
    load_safetensors()
    _check_options(cam, loader, classes, common_mode, on_error, shard_size)
    dataset = loader.dataset
    images = len(dataset)  # type: ignore[arg-type]  # checked above
    _check_ids(ids, images)
    batch_size = loader.batch_size
    assert batch_size is not None  # checked above
    run = {
        "images": images,
        "ids": _digest(ids),
        "batch_size": batch_size,
        "shard_size": -(-shard_size // batch_size) * batch_size,
        "classes": option_name(classes),
        "common_mode": common_mode,
        "method": _describe(cam),
        "weights": _weight_hash(cam),
    }
    store, shards, rank = _share_out(Path(out), run)
    todo = [shard_positions(run, shard) for shard in shards]
    batches = _batches(loader, todo, batch_size)
    if device is not None and torch.device(device).type == "cuda":
        batches = _sent_ahead(batches, torch.device(device))
    measure = functools.partial(_measure, cam, classes, common_mode, device)
    names: Sequence[str | int] = range(images) if ids is None else ids
    explained = bool(store.done())

    with (
        ThreadPoolExecutor(1, "diffgradcam-writer") as writer,
        tqdm(total=sum(map(len, todo)), desc="explaining", unit=" images", disable=not progress or rank > 0) as bar,
    ):
        writing: Future[None] | None = None
        broken = 0
        for shard, positions in zip(shards, todo, strict=True):
            parts: list[_Part] = []
            errors: dict[int, str] = {}
            seen = 0
            while seen < len(positions):
                loaded = next(batches)
                found, failures = _explain_batch(measure, loader, loaded, explained)
                for position, error in sorted(failures.items()):
                    if on_error == "stop":
                        raise RuntimeError(
                            f"image {names[position]!r} is broken: {error}; dataset[{position}] shows where; mend it "
                            "and run again to go on, or give on_error='skip' to record such images and skip them"
                        )
                explained = explained or bool(found)
                parts += found
                errors |= failures
                broken += len(failures)
                if broken:
                    bar.set_postfix(broken=broken, refresh=False)
                seen += len(loaded.positions) + len(loaded.failures)
                bar.update(len(loaded.positions) + len(loaded.failures))
            _check_sizes([part.maps for part in parts])
            if writing is not None:
                writing.result()  # at most one shard waits to be written; its errors stop the run here
            writing = writer.submit(_write, store.path, shard, [(p, names[p]) for p in positions], parts, errors)
        if writing is not None:
            writing.result()
    write_index(store, rank)
    return Explanations(out)


class _Loaded(NamedTuple):
    """A batch without its broken images; empty if all are broken. ``images`` are those that were sent ahead."""

    positions: list[int]
    batch: Any
    failures: dict[int, str]
    images: Tensor | None = None


class _Part(NamedTuple):
    """The numbers and maps of some images on the host, where they are once ``copied`` has happened."""

    positions: list[int]
    numbers: dict[str, Tensor]
    maps: Tensor
    copied: torch.cuda.Event | None


class _Guarded(Dataset[tuple[int, Any, str]]):
    """A data set that returns what went wrong instead of raising it: one image does not take its batch along."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, position: int) -> tuple[int, Any, str]:
        try:
            item = self.dataset[position]
        except Exception as error:  # decoders raise many kinds of errors
            return position, None, _describe_error(error)
        image = _first(item)
        if isinstance(image, Tensor) and image.is_floating_point() and not _is_finite(image):
            return position, None, "the image has values that are NaN or infinite"
        return position, item, ""


class _Collate:
    """The loader's own collation, of the images that are not broken."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, guarded: list[tuple[int, Any, str]]) -> _Loaded:
        failures = {position: error for position, _, error in guarded if error}
        good = [(position, item) for position, item, error in guarded if not error]
        if not good:
            return _Loaded([], None, failures)
        try:
            batch = self.collate([item for _, item in good])
        except Exception:
            shapes = {position: _shape(item) for position, item in good}
            usual = Counter(shapes.values()).most_common(1)[0][0]
            odd = {position: shape for position, shape in shapes.items() if shape != usual}
            if not odd:
                raise
            failures |= {p: f"the image has shape {shape}, others of its batch {usual}" for p, shape in odd.items()}
            good = [(position, item) for position, item in good if position not in odd]
            batch = self.collate([item for _, item in good])
        return _Loaded([position for position, _ in good], batch, failures)


class _Batches(Sampler[list[int]]):
    """The positions of each batch: whole batches of each shard in turn."""

    def __init__(self, shards: Sequence[range], batch_size: int) -> None:
        self.shards = shards
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self.shards:
            for start in range(0, len(positions), self.batch_size):
                yield list(positions[start : start + self.batch_size])


def _batches(loader: DataLoader[Any], shards: Sequence[range], batch_size: int) -> Iterator[_Loaded]:
    """The batches of some shards, loaded as the loader loads. A generator: no worker starts before it is needed."""
    yield from DataLoader(
        _Guarded(loader.dataset),
        batch_sampler=_Batches(shards, batch_size),
        collate_fn=_Collate(loader.collate_fn),
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
    )


def _sent_ahead(batches: Iterator[_Loaded], device: torch.device) -> Iterator[_Loaded]:
    """Send the images of each batch to a GPU while the batch before is explained, in a stream of its own."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[_Loaded, torch.cuda.Event] | None = None

    def arrived(loaded: _Loaded, sent: torch.cuda.Event) -> _Loaded:
        current = torch.cuda.current_stream(device)
        current.wait_event(sent)
        if loaded.images is not None:
            loaded.images.record_stream(current)
        return loaded

    for loaded in batches:
        images = _first(loaded.batch)
        with torch.cuda.stream(stream):
            if isinstance(images, Tensor):
                loaded = loaded._replace(images=images.to(device, non_blocking=True))
            sent = stream.record_event()
        if waiting is not None:
            yield arrived(*waiting)
        waiting = loaded, sent
    if waiting is not None:
        yield arrived(*waiting)


def _is_finite(image: Tensor) -> bool:
    """Whether all values are; the sum tells it in a fiftieth of the time, unless it overflows."""
    return bool(image.sum().isfinite()) or bool(image.isfinite().all())


def _share_out(out: Path, run: dict[str, Any]) -> tuple[Explanations, list[int], int]:
    """Open the folder, and give each process its own of the shards that are missing."""

    def missing() -> tuple[Explanations, list[int]]:
        store = prepare(out, run, 0)
        done = set(store.done())
        return store, [shard for shard in all_shards(run) if shard not in done]

    if not (distributed.is_available() and distributed.is_initialized()):
        return *missing(), 0
    rank, world = distributed.get_rank(), distributed.get_world_size()
    # The first process looks, and all take its word: whoever looked later would see what others have done already.
    word: list[Any] = [None]
    if rank == 0:
        try:
            word = [missing()[1]]
        except (OSError, ValueError) as error:
            word = [error]  # the others would wait for ever
    distributed.broadcast_object_list(word)
    if isinstance(word[0], Exception):
        raise word[0]
    return prepare(out, run, rank), word[0][rank::world], rank


Measure = Callable[[list[int], Any, Tensor | None], _Part]


def _explain_batch(
    measure: Measure, loader: DataLoader[Any], loaded: _Loaded, explained: bool
) -> tuple[list[_Part], dict[int, str]]:
    """Explain a batch; where values are not finite, image by image, to find the broken one.

    Any other error is about an argument, not about an image, and is raised.
    """
    failures = dict(loaded.failures)
    if not loaded.positions:
        return [], failures
    try:
        return [measure(loaded.positions, loaded.batch, loaded.images)], failures
    except NonFiniteValues as error:
        parts = []
        for position in loaded.positions:
            try:
                item = loader.dataset[position]
                parts.append(measure([position], loader.collate_fn([item]), None))
            except NonFiniteValues as cause:
                failures[position] = _describe_error(cause)
        if not parts and not explained:
            raise error
        return parts, failures


def _measure(
    cam: Explainer,
    classes: int | str | Callable[[Any], Classes] | None,
    common_mode: bool,
    device: torch.device | str | int | None,
    positions: list[int],
    batch: Any,
    sent: Tensor | None,
) -> _Part:
    """Explain images, ``sent`` to the device or those of the batch, and take the numbers of their rows."""
    images = _first(batch) if sent is None else sent
    if not isinstance(images, Tensor):
        raise TypeError(
            f"the loader's batches are {type(batch).__name__}; expected images, or a sequence that starts with them, "
            "such as (images, labels); give the DataLoader a collate_fn that returns that"
        )
    if device is not None:
        images = images.to(device, non_blocking=True)
    asked = classes(batch) if callable(classes) else classes
    share = None
    if common_mode:
        assert isinstance(cam, BaseCAM)  # checked before
        explanation, share = _explain_with_share(cam, images, asked)
    else:
        explanation = cam.explain(images, asked)
    logits, index, maps = widen(explanation.logits), explanation.classes, explanation.maps
    several = columns(index)
    score = _score_of(cam)
    numbers = {
        "class": index,
        "decision": logits.argmax(1),
        "score": torch.stack([score(logits, column) for column in several.unbind(1)], 1).view_as(index),
        "probability": logits.softmax(1).gather(1, several).view_as(index),
        "entropy": entropy(rectify(maps.flatten(0, index.ndim - 1))).view_as(index),
    }
    if share is not None:
        numbers["common_mode_share"] = share
    # A GPU is not waited for: it goes on with the next batch, and the event says when the copies are there.
    on_gpu = maps.is_cuda
    copies = {name: values.to("cpu", non_blocking=on_gpu) for name, values in numbers.items()}
    copied_maps = maps.to("cpu", non_blocking=on_gpu)
    copied = torch.cuda.current_stream(maps.device).record_event() if on_gpu else None
    return _Part(positions, copies, copied_maps, copied)


def _write(
    out: Path,
    shard: int,
    images: Sequence[tuple[int, str | int]],
    parts: Sequence[_Part],
    errors: dict[int, str],
) -> None:
    """Write a shard of images, given as positions and names, when their maps and numbers are there."""
    found: dict[int, Row] = {position: {"error": error} for position, error in errors.items()}
    for part in parts:
        if part.copied is not None:
            part.copied.synchronize()
        lists = {name: values.tolist() for name, values in part.numbers.items()}
        for position, *values in zip(part.positions, *lists.values(), strict=True):
            found[position] = dict(zip(lists, values, strict=True))
    rows = [{"position": position, "id": name, **found[position]} for position, name in images]
    write_shard(out, shard, rows, [part.maps for part in parts])


def _explain_with_share(cam: BaseCAM, images: Tensor, classes: Classes) -> tuple[Explanation, Tensor]:
    """An explanation, and the share of GradCAM's energy that softmax cannot see, in the shape of its classes."""
    args = (cam.model, cam.target_layers, cam.reshape_transform)
    parts = [
        GradCAM(*args, score=score, rectify=False, output=cam.output) for score in (visible_score, invisible_score)
    ]
    explanation, visible, invisible = explain_together([cam, *parts], images, classes)
    return explanation, common_mode_share(visible.maps, invisible.maps, leading=explanation.classes.ndim)


def _first(batch: Any) -> Any:
    """The images of a batch, or the image of an item."""
    return batch[0] if isinstance(batch, Sequence) and batch else batch


def _shape(item: Any) -> tuple[int, ...]:
    image = _first(item)
    return tuple(image.shape) if isinstance(image, Tensor) else ()


def _score_of(cam: object) -> ScoreFunction:
    while isinstance(cam, SmoothedCAM):
        cam = cam.cam
    return cam.score if isinstance(cam, BaseCAM) else logit


def _describe(cam: object) -> dict[str, Any]:
    """The method and its options, as far as JSON can say them."""
    found: dict[str, Any] = {"name": type(cam).__name__}
    for name, value in sorted(vars(cam).items()):
        if isinstance(value, SmoothedCAM | BaseCAM):
            found[name] = _describe(value)
        elif name == "target_layers" and isinstance(cam, BaseCAM):
            found[name] = [layer.name for layer in find_layers(inner_model(cam.model), cam.target_layers)]
        elif not name.startswith("_") and name not in ("model", "outputs", "progress"):
            described = option_name(value)
            if described is not None:
                found[name] = described
    return found


def _digest(ids: Sequence[str | int] | None) -> str | None:
    """A hash of the ids, of which there may be millions: too many for the description of a run."""
    if ids is None:
        return None
    digest = hashlib.sha256()
    for name in ids:
        digest.update(json.dumps(name).encode() + b"\n")  # as in the rows, where 1 is not "1"
    return digest.hexdigest()


def _weight_hash(cam: object) -> str | None:
    """A hash of the model's weights, so that a folder never mixes two checkpoints."""
    if not isinstance(cam, BaseCAM | SmoothedCAM):
        return None
    return weight_hash(inner_model(cam.model).state_dict())


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_options(
    cam: object, loader: object, classes: object, common_mode: bool, on_error: str, shard_size: int
) -> None:
    check_explains(cam)
    if common_mode and not isinstance(cam, BaseCAM):
        raise ValueError(
            f"common_mode=True reads the layers of a CAM, but cam is {type(cam).__name__}; give it a CAM that is not "
            "wrapped, or measure the common mode in a run of its own with GradCAM"
        )
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        given = "of an IterableDataset" if isinstance(loader, DataLoader) else type(loader).__name__
        raise TypeError(
            f"loader is {given}; expected a torch.utils.data.DataLoader of a data set with a length, so that an image "
            "can be found again after an interruption; give DataLoader(dataset, batch_size=32, num_workers=4)"
        )
    samplers = (SequentialSampler, RandomSampler, DistributedSampler)
    if loader.batch_size is None or type(loader.sampler) not in samplers:
        drawn = loader.batch_sampler if loader.batch_size is None else loader.sampler
        how = "batch_size=None" if drawn is None else type(drawn).__name__
        raise ValueError(
            f"the loader draws with {how}, but a data set is explained once and in order; choose images with "
            "torch.utils.data.Subset(dataset, indices), and batches with batch_size="
        )
    if isinstance(classes, str):
        check_class_word(classes)
    elif isinstance(classes, bool) or not (classes is None or isinstance(classes, int) or callable(classes)):
        raise ValueError(
            f"classes is {classes!r}; expected None, an int, 'all', 'top5', or a function of the batch, such as "
            "lambda batch: batch[1] for its labels"
        )
    check_choice("on_error", on_error, _ON_ERROR)
    check_count("shard_size", shard_size)


def _check_ids(ids: Sequence[str | int] | None, images: int) -> None:
    if images == 0:
        raise ValueError("the data set is empty; expected at least one image")
    if ids is None:
        return
    if isinstance(ids, str) or len(ids) != images or not all(isinstance(name, str | int) for name in ids):
        given = f"{len(ids)} of {type(ids[0]).__name__ if len(ids) else 'nothing'}"
        raise ValueError(f"ids are {given} for {images} images; expected a str or an int for each")
    if len(set(ids)) != images:
        name, times = Counter(ids).most_common(1)[0]
        raise ValueError(f"id {name!r} is there {times} times; expected a different name for each image")


def _check_sizes(maps: Sequence[Tensor]) -> None:
    sizes = sorted({tuple(batch.shape[1:]) for batch in maps})
    if len(sizes) > 1:
        raise ValueError(
            f"maps of one shard have shapes {sizes}; expected one shape; resize or crop the images in the data set, "
            "and explain the same number of classes for each"
        )
