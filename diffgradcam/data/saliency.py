"""Images with human saliency, from a folder and a CSV."""

from __future__ import annotations

import csv as csv_format
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from .._core.checks import described
from .._core.image_files import FORMATS, MOST_PIXELS, open_image

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Size = tuple[int, int]  # width, height

_REQUIRED = ("image", "label")
_OPTIONAL = ("saliency", "group")
_LARGEST = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "F": 1.0}  # of other modes: 255
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
_READABLE = f"expected {', '.join(FORMATS)}, of at most {MOST_PIXELS:,} pixels"
_MOST_NAMED = 10  # bad rows in one message
_LONGEST_NUMBER = 100  # digits of a label; Python refuses to read numbers of thousands
_COLOUR_TOLERANCE = 0.1  # JPEG alone makes the channels of a grey image differ by less


class SaliencyItem(NamedTuple):
    """One image, or one batch of them after the default collation of a ``DataLoader``.

    Attributes:
        image: RGB, ``(3, H, W)``, float32, [0, 1] unless a transform changed that; in a batch ``(B, 3, H, W)``.
        label: Class index, ``()``, int64; in a batch ``(B,)``.
        saliency: Human saliency, ``(H, W)``, float32, [0, 1], zeros where there is none; in a batch ``(B, H, W)``.
        has_saliency: Whether there is a human map, ``()``, bool; in a batch ``(B,)``: the ``mask`` of saliency losses.
        group: Such as an attack type; empty where the CSV names none. In a batch a list.
    """

    image: Tensor
    label: Tensor
    saliency: Tensor
    has_saliency: Tensor
    group: str | list[str]


class SaliencyDataset(Dataset[SaliencyItem]):
    r"""Labelled images with human saliency, from a folder and a CSV.

    The CSV (UTF-8, comma-separated) has a header with the columns ``image`` and ``label`` and, optionally, ``saliency``
    and ``group``; for other columns, such as ``patient``, see ``SaliencyDataset.column``. Paths are relative to
    ``root``. An empty ``saliency`` means that there is no human map for that image. Map and image have the same size; a
    map is greyscale, 0 where nobody looked. Files are JPEG, PNG, WebP, GIF, TIFF, BMP or PPM, of at most 100 million
    pixels.

    All rows are checked at construction, pixels when an item is read. Rows in error messages count as in a
    spreadsheet: the header is row 1.

    Args:
        root: Folder that the paths start from and must not leave.
        csv: The CSV file.
        classes: Class names as written in the CSV; a label becomes its position here. By default the labels that occur,
            sorted, as numbers where all are whole numbers: see ``classes``. Give it where a split may lack a class.
        transform: Geometric (and other) augmentation, called as ``transform(image, saliency)``, which returns both;
            ``image`` is ``(3, H, W)``, ``saliency`` is ``(H, W)``. Transforms of ``torchvision.transforms.v2`` work as
            they are: where torchvision is in use the two arrive as its ``Image`` and ``Mask``, so that one flip turns
            both. For albumentations, wrap with :func:`albumentations_style`.

    Attributes:
        classes: Class names; a label is a position in this list.
        labels: Class index of each image, for samplers and splits.
        groups: Group of each image, for leave-one-group-out splits with ``torch.utils.data.Subset``.

    Raises:
        FileNotFoundError: If the CSV does not exist, or an image or map that a row names.
        ValueError: If the CSV is not text in UTF-8, lacks a column, has one twice or has no rows, or a row's label,
            path, file or map size is wrong; when an item is read, if its pixels can't be. The message names the row.
        TypeError: When an item is read, if the transform does not return two tensors.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 6)).save(root / "a.png")
        >>> Image.new("L", (8, 6), 255).save(root / "a_map.png")
        >>> _ = (root / "train.csv").write_text("image,label,saliency\na.png,attack,a_map.png\na.png,bona fide,\n")
        >>> dataset = SaliencyDataset(root, root / "train.csv", classes=["bona fide", "attack"])
        >>> batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
        >>> batch.image.shape, batch.label, batch.saliency.mean((1, 2)), batch.has_saliency
        (torch.Size([2, 3, 6, 8]), tensor([1, 0]), tensor([1., 0.]), tensor([ True, False]))
    """

    def __init__(
        self,
        root: str | Path,
        csv: str | Path,
        classes: Sequence[str | int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.root = Path(root).resolve()
        self.transform = transform
        rows = _read_rows(Path(csv))
        names = [row.label for row in rows]
        self.classes = _sorted_classes(names) if classes is None else [str(name) for name in classes]
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {self.classes}; expected each name once")
        _raise_all([error for row in rows if (error := self._error(row)) is not None])
        self._rows = rows
        self.labels = [self.classes.index(name) for name in names]
        self.groups = [row.group for row in rows]

    def column(self, name: str) -> list[str]:
        """What any column of the CSV says, such as the patient or the session that keeps images together in a split.

        Args:
            name: Of the column, as in the header.

        Returns:
            One value per image, empty where the cell is.

        Raises:
            ValueError: If the CSV has no such column.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self._rows[0].csv.name} has no column {name!r}: expected one of {', '.join(self.columns)}"
            )
        return [row.cells[name] for row in self._rows]

    @property
    def columns(self) -> list[str]:
        """Names of all columns of the CSV."""
        return list(self._rows[0].cells)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, index: int) -> SaliencyItem:
        """Read one image and its human map, and transform both together."""
        row = self._rows[index]
        image = torch.from_numpy(self._pixels(row, row.image, "RGB")).permute(2, 0, 1).contiguous()
        if row.saliency:
            saliency = torch.from_numpy(self._pixels(row, row.saliency, "L"))
            _check_sizes(row, _width_height(image), _width_height(saliency))
        else:
            saliency = torch.zeros(image.shape[1:])
        if self.transform is not None:
            image, saliency = _apply(self.transform, image, saliency, row)
        label, has_saliency = torch.tensor(self.labels[index]), torch.tensor(bool(row.saliency))
        return SaliencyItem(image, label, saliency, has_saliency, row.group)

    def _error(self, row: _Row) -> Exception | None:
        if row.label not in self.classes:
            return row.error(f"label {row.label!r} is not one of the classes {self.classes}")
        try:
            self._check_files(row)
        except (ValueError, FileNotFoundError) as error:
            return error
        return None

    def _check_files(self, row: _Row) -> None:
        sizes = []
        for name in filter(None, (row.image, row.saliency)):
            path = self._path(row, name)
            try:
                with open_image(path) as file:
                    sizes.append(_upright_size(file))
            except Exception as error:  # decoders raise all sorts
                raise row.error(f"{name!r} cannot be read as an image ({error}); {_READABLE}") from error
        if row.saliency:
            _check_sizes(row, *sizes)

    def _path(self, row: _Row, name: str) -> Path:
        """Where a file is, links followed. Asked again when it is read: links may have changed."""
        try:
            path = (self.root / name).resolve()
            inside, there = path.is_relative_to(self.root), path.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle, a null character
            raise row.error(f"{name!r} cannot be a path ({error})") from error
        if not inside:
            raise row.error(f"{name!r} lies outside of root {self.root}; expected a path below it")
        if not there:
            raise row.error(f"no file {name!r} in {self.root}", FileNotFoundError)
        return path

    def _pixels(self, row: _Row, name: str, mode: str) -> NDArray[np.float32]:
        """``(H, W, 3)`` for mode RGB, ``(H, W)`` for L, in [0, 1]."""
        path = self._path(row, name)
        try:
            with open_image(path) as file:
                pixels = _unit_range(ImageOps.exif_transpose(file))
        except Exception as error:  # decoders raise all sorts
            raise row.error(f"cannot read {name!r} ({error}); is the file complete?") from error
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise row.error(
                f"{name!r} holds values from {pixels.min():g} to {pixels.max():g} (1 is the largest that its format "
                "stands for); expected 8 or 16 bits, or floating point in [0, 1]"
            )
        if mode == "RGB":
            return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        if pixels.ndim == 2:
            return pixels
        if float(np.ptp(pixels, axis=2).max()) > _COLOUR_TOLERANCE:
            raise row.error(
                f"map {name!r} is in colour; expected greyscale, 0 where nobody looked; a colour-mapped heat map "
                "has lost its values, export the map itself"
            )
        return np.ascontiguousarray(pixels.mean(axis=2))


def albumentations_style(transform: Callable[..., dict[str, Any]]) -> Transform:
    """Adapt a callable that takes ``image=`` and ``mask=`` as NumPy arrays and returns a dictionary with both.

    Args:
        transform: Such as ``albumentations.Compose([...])``. It gets ``image`` ``(H, W, 3)`` and ``mask`` ``(H, W)``,
            both float32 in [0, 1], and may return arrays or, as after its ``ToTensorV2``, tensors.

    Returns:
        A transform for :class:`SaliencyDataset`.

    Example:
        >>> mirror = lambda image, mask: {"image": image[:, ::-1], "mask": mask[:, ::-1]}
        >>> image, saliency = albumentations_style(mirror)(torch.rand(3, 2, 2), torch.tensor([[0.0, 1.0], [0.0, 0.5]]))
        >>> saliency
        tensor([[1.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    return _AlbumentationsStyle(transform)


class _AlbumentationsStyle:
    """A class and not a closure, so that the workers of a ``DataLoader`` can unpickle it."""

    def __init__(self, transform: Callable[..., dict[str, Any]]) -> None:
        self.transform = transform

    def __call__(self, image: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        changed = self.transform(image=image.permute(1, 2, 0).contiguous().numpy(), mask=saliency.numpy())
        picture, mask = changed["image"], changed["mask"]
        if not isinstance(picture, Tensor):
            picture = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).contiguous()
        if not isinstance(mask, Tensor):
            mask = torch.from_numpy(np.ascontiguousarray(mask))
        return picture, mask


class _Row(NamedTuple):
    """One row of the CSV, with where it stands."""

    csv: Path
    number: int
    image: str
    label: str
    saliency: str
    group: str
    cells: dict[str, str]

    def error(self, message: str, kind: type[Exception] = ValueError) -> Exception:
        return kind(f"{self.csv.name}, row {self.number}: {message}")


def _read_rows(csv: Path) -> list[_Row]:
    try:
        # -sig: spreadsheets put a mark before the first column.
        with csv.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in cells] for cells in csv_format.reader(file)]
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise ValueError(
            f"{csv.name} cannot be read as a CSV ({error}); expected text in UTF-8, separated by commas; spreadsheets "
            "save it as 'CSV UTF-8'"
        ) from error
    columns = lines[0] if lines else []
    twice = [name for name, count in Counter(filter(None, columns)).items() if count > 1]
    if twice:
        raise ValueError(f"{csv.name} has several columns {', '.join(map(repr, twice))}; expected each name once")
    if not set(_REQUIRED) <= set(columns):
        raise ValueError(
            f"{csv.name} has the columns {columns}; expected a header with {', '.join(_REQUIRED)} and, optionally, "
            f"{', '.join(_OPTIONAL)}, separated by commas"
        )
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cells):
            continue
        values = dict(zip(columns, cells, strict=False))
        every = {name: values.get(name, "") for name in columns}
        image, label, saliency, group = (values.get(name, "") for name in _REQUIRED + _OPTIONAL)
        row = _Row(csv, number, image, label, saliency, group, every)
        if len(cells) > len(columns):
            raise row.error(f"has {len(cells)} cells for {len(columns)} columns; put values with commas in quotes")
        for name in _REQUIRED:
            if not values.get(name):
                raise row.error(f"the column {name!r} is empty")
        rows.append(row)
    if not rows:
        raise ValueError(f"{csv.name} has no rows below its header; expected one per image")
    return rows


def listed(errors: Sequence[Exception]) -> str:
    """What is wrong with bad rows, in one message.

    Args:
        errors: Of each row.

    Returns:
        The messages of the first ten, and how many more there are.
    """
    more = f"; and {len(errors) - _MOST_NAMED} more rows" if len(errors) > _MOST_NAMED else ""
    return "; ".join(map(str, errors[:_MOST_NAMED])) + more


def _raise_all(errors: Sequence[Exception]) -> None:
    if errors:
        raise type(errors[0])(listed(errors)) from errors[0]


def _sorted_classes(labels: Sequence[str]) -> list[str]:
    names = set(labels)
    if all(name.isdecimal() and len(name) <= _LONGEST_NUMBER for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _apply(transform: Transform, image: Tensor, saliency: Tensor, row: _Row) -> tuple[Tensor, Tensor]:
    # A torchvision transform exists only where torchvision has been imported; nothing else needs its types. Without
    # them it would take the map for something that is not to be flipped, and say nothing.
    types = sys.modules.get("torchvision.tv_tensors")
    if types is not None:
        image, saliency = types.Image(image), types.Mask(saliency)
    changed = transform(image, saliency)
    parts = tuple(changed) if isinstance(changed, tuple | list) else (changed,)
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        raise row.error(
            f"the transform returned {' and '.join(map(described, parts))}; expected two tensors, the image and the "
            "map; albumentations_style() wraps a transform of NumPy arrays",
            TypeError,
        )
    image, saliency = (part.as_subclass(Tensor) for part in parts)
    if image.ndim != 3 or image.shape[1:] != saliency.shape:
        raise row.error(
            f"the transform returned an image of shape {tuple(image.shape)} and a map of shape "
            f"{tuple(saliency.shape)}; expected (C, H, W) and (H, W); geometric changes must treat both alike"
        )
    return image, saliency


def _upright_size(image: Image.Image) -> Size:
    """Width and height as people see the image, whichever way the camera was held, without decoding its pixels."""
    width, height = image.size
    # Where the header has no EXIF data, getexif() would decode a whole PNG to look for it behind the pixels.
    sideways = "exif" in image.info and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def _width_height(image: Tensor) -> Size:
    return image.shape[-1], image.shape[-2]


def _check_sizes(row: _Row, image: Size, saliency: Size) -> None:
    if image != saliency:
        raise row.error(
            f"image {row.image!r} is {image[0]} x {image[1]} and its map {row.saliency!r} {saliency[0]} x "
            f"{saliency[1]} pixels; expected the same size; resize the map file to its image"
        )


def _unit_range(image: Image.Image) -> NDArray[np.float32]:
    """Pixels as a fraction of the largest value that the image's format stands for, ``(H, W)`` or ``(H, W, 3)``."""
    if image.mode not in _LARGEST:
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    return np.asarray(image, dtype=np.float32) / np.float32(_LARGEST.get(image.mode, 255.0))
