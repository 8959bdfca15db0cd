from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from diffgradcam.data import SaliencyDataset, SaliencyItem, Transform, albumentations_style

from .conftest import import_peer

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
MAP = RNG.integers(0, 256, (6, 8), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "maps").mkdir(parents=True)
    Image.fromarray(PIXELS).save(folder / "a.png")
    Image.fromarray(PIXELS[::-1].copy()).save(folder / "b.png")
    Image.fromarray(MAP).save(folder / "maps" / "a.png")
    return folder


def write(root: Path, *rows: str, header: str = "image,label,saliency,group") -> Path:
    path = root / "data.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def test_reads_pixels_maps_labels_and_groups(root: Path) -> None:
    dataset = SaliencyDataset(root, write(root, "a.png,real,maps/a.png,print", "b.png,fake,,"))
    assert len(dataset) == 2
    assert dataset.classes == ["fake", "real"]
    assert dataset.labels == [1, 0]
    assert dataset.groups == ["print", ""]
    first, second = dataset[0], dataset[1]
    assert torch.equal(first.image, torch.from_numpy(PIXELS).permute(2, 0, 1) / 255)
    assert torch.equal(first.saliency, torch.from_numpy(MAP) / 255)
    assert first.label == 1
    assert first.has_saliency
    assert first.group == "print"
    assert torch.equal(second.saliency, torch.zeros(6, 8))
    assert second.label == 0
    assert not second.has_saliency
    assert second.group == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_default_collation_gives_batches(root: Path, workers: int) -> None:
    dataset = SaliencyDataset(root, write(root, "a.png,1,maps/a.png,x", "b.png,0,,y"))
    batch = next(iter(DataLoader(dataset, batch_size=2, num_workers=workers)))
    assert isinstance(batch, SaliencyItem)
    assert batch.image.shape == (2, 3, 6, 8)
    assert batch.saliency.shape == (2, 6, 8)
    assert torch.equal(batch.label, torch.tensor([1, 0]))
    assert torch.equal(batch.has_saliency, torch.tensor([True, False]))
    assert list(batch.group) == ["x", "y"]


def test_classes_keep_their_order_and_whole_numbers_sort_as_numbers(root: Path) -> None:
    csv = write(root, "a.png,10", "b.png,9", header="image,label")
    assert SaliencyDataset(root, csv).classes == ["9", "10"]
    assert SaliencyDataset(root, csv, classes=[10, 9, 8]).labels == [0, 1]


def test_saliency_and_group_columns_are_optional_and_others_ignored(root: Path) -> None:
    dataset = SaliencyDataset(root, write(root, "x,real,a.png", header="note,label,image"))
    assert not dataset[0].has_saliency
    assert dataset.groups == [""]


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_header(root: Path) -> None:
    csv = root / "data.csv"
    csv.write_text("image,label\na.png,real\n", encoding="utf-8-sig")
    assert SaliencyDataset(root, csv).classes == ["real"]


def test_16_bit_and_floating_point_files_keep_their_precision(root: Path) -> None:
    deep = RNG.integers(0, 65536, (6, 8), dtype=np.uint16)
    real = RNG.random((6, 8), dtype=np.float32)
    Image.fromarray(deep).save(root / "deep.png")
    Image.fromarray(real).save(root / "real.tif")
    item = SaliencyDataset(root, write(root, "deep.png,x,real.tif,"))[0]
    assert torch.allclose(item.image, torch.from_numpy(deep / 65535).float().expand(3, 6, 8), rtol=0, atol=1e-7)
    assert torch.equal(item.saliency, torch.from_numpy(real))


def test_a_photograph_taken_sideways_stands_upright_and_fits_its_map(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    Image.fromarray(PIXELS).save(root / "turned.png", exif=exif)
    Image.fromarray(np.rot90(MAP, -1).copy()).save(root / "upright.png")
    item = SaliencyDataset(root, write(root, "turned.png,x,upright.png,"))[0]
    expected = np.rot90(PIXELS, -1).transpose(2, 0, 1).copy()
    assert torch.equal(item.image, torch.from_numpy(expected) / 255)
    assert item.saliency.shape == (8, 6)


def test_a_grey_map_saved_in_colour_is_read_as_grey(root: Path) -> None:
    Image.fromarray(np.stack([MAP] * 3, 2)).save(root / "grey.png")
    item = SaliencyDataset(root, write(root, "a.png,x,grey.png,"))[0]
    assert torch.allclose(item.saliency, torch.from_numpy(MAP) / 255, rtol=0, atol=1e-6)


def mirror(image: torch.Tensor, saliency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image.flip(-1), saliency.flip(-1)


def mirror_arrays(image: NDArray[np.float32], mask: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    assert image.shape == (6, 8, 3)
    assert image.dtype == mask.dtype == np.float32
    return {"image": image[:, ::-1], "mask": mask[:, ::-1]}


def mirror_to_tensors(image: NDArray[np.float32], mask: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(image).permute(2, 0, 1).flip(-1), "mask": torch.from_numpy(mask).flip(-1)}


@pytest.mark.parametrize(
    "transform",
    [mirror, albumentations_style(mirror_arrays), albumentations_style(mirror_to_tensors)],
    ids=["pair", "albumentations", "albumentations to tensors"],
)
def test_a_transform_changes_image_and_map_together(root: Path, transform: Transform) -> None:
    csv = write(root, "a.png,x,maps/a.png,")
    plain = SaliencyDataset(root, csv)[0]
    changed = SaliencyDataset(root, csv, transform=transform)[0]
    assert torch.equal(changed.image, plain.image.flip(-1))
    assert torch.equal(changed.saliency, plain.saliency.flip(-1))
    assert type(changed.image) is type(changed.saliency) is torch.Tensor


def test_a_dataset_with_an_adapter_can_go_to_another_process(root: Path) -> None:
    csv = write(root, "a.png,x,maps/a.png,")
    dataset = SaliencyDataset(root, csv, transform=albumentations_style(mirror_arrays))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].saliency, dataset[0].saliency)


def test_torchvision_transforms_work_as_they_are(root: Path, torchvision_v2: Any) -> None:
    v2 = torchvision_v2
    csv = write(root, "a.png,x,maps/a.png,")
    plain = SaliencyDataset(root, csv)[0]
    steps = [v2.RandomHorizontalFlip(1.0), v2.Resize((12, 16)), v2.Normalize([0.5] * 3, [0.5] * 3)]
    changed = SaliencyDataset(root, csv, transform=v2.Compose(steps))[0]
    assert changed.image.shape == (3, 12, 16)
    assert torch.equal(changed.saliency, plain.saliency.flip(-1).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert changed.image.min() < 0  # normalised, and the map not
    assert type(changed.image) is type(changed.saliency) is torch.Tensor
    # Other callables don't notice that torchvision is there.
    assert torch.equal(SaliencyDataset(root, csv, transform=mirror)[0].saliency, plain.saliency.flip(-1))
    arrays = SaliencyDataset(root, csv, transform=albumentations_style(mirror_arrays))[0]
    assert torch.equal(arrays.image, plain.image.flip(-1))


@pytest.fixture
def torchvision_v2() -> Any:
    return import_peer("torchvision.transforms.v2")


@pytest.mark.parametrize(
    ("row", "message", "kind"),
    [
        ("c.png,x,,", r"data.csv, row 3: no file 'c.png' in .*data", FileNotFoundError),
        ("a.png,x,maps/c.png,", r"row 3: no file 'maps/c.png'", FileNotFoundError),
        ("maps,x,,", r"row 3: no file 'maps'", FileNotFoundError),
        ("../outside.png,x,,", r"row 3: '../outside.png' lies outside of root .*expected a path below it", ValueError),
        ("link.png,x,,", r"row 3: 'link.png' lies outside of root", ValueError),
        ("a.png,y,,", r"row 3: label 'y' is not one of the classes \['x'\]", ValueError),
        ("text.png,x,,", r"row 3: 'text.png' cannot be read as an image .*expected BMP", ValueError),
        (
            "a.png,x,small.png,",
            r"row 3: image 'a.png' is 8 x 6 and its map 'small.png' 8 x 5 pixels.*resize",
            ValueError,
        ),
        (",x,,", r"row 3: the column 'image' is empty", ValueError),
        ("a.png", r"row 3: the column 'label' is empty", ValueError),
        ("a.png,x,,g,more", r"row 3: has 5 cells for 4 columns; put values with commas in quotes", ValueError),
    ],
)
def test_a_wrong_row_is_named_at_construction(root: Path, row: str, message: str, kind: type[Exception]) -> None:
    Image.fromarray(PIXELS).save(root.parent / "outside.png")
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "text.png").write_text("no image")
    Image.fromarray(MAP[:5]).save(root / "small.png")
    csv = write(root, "a.png,x,maps/a.png,", row)
    with pytest.raises(kind, match=message):
        SaliencyDataset(root, csv, classes=["x"])


def test_rows_count_as_in_a_spreadsheet_past_blank_lines_and_quoted_line_breaks(root: Path) -> None:
    csv = write(root, '"a.png","x","","two\nlines"', "", "c.png,x,,")
    with pytest.raises(FileNotFoundError, match=r"row 4: no file 'c.png'"):
        SaliencyDataset(root, csv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data.csv has the columns \[\]; expected a header with image, label"),
        ("file;label\na.png;x\n", r"has the columns \['file;label'\]; .*separated by commas"),
        ("image,label\n", "has no rows below its header; expected one per image"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(root: Path, text: str, message: str) -> None:
    (root / "data.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        SaliencyDataset(root, root / "data.csv")


def test_classes_named_twice_are_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match=r"classes are \['x', 'x'\]; expected each name once"):
        SaliencyDataset(root, write(root, "a.png,x,,"), classes=["x", "x"])


def test_a_file_cut_short_is_named_with_its_row_when_it_is_read(root: Path) -> None:
    complete = (root / "a.png").read_bytes()
    (root / "cut.png").write_bytes(complete[: len(complete) // 2])
    dataset = SaliencyDataset(root, write(root, "a.png,x,,", "cut.png,x,,"))
    with pytest.raises(ValueError, match=r"row 3: cannot read 'cut.png' .*is the file complete"):
        dataset[1]


def test_a_colour_map_and_values_outside_0_1_are_named_when_read(root: Path) -> None:
    Image.fromarray(np.full((6, 8), 3.5, np.float32)).save(root / "big.tif")
    dataset = SaliencyDataset(root, write(root, "a.png,x,b.png,", "a.png,x,big.tif,"))
    with pytest.raises(ValueError, match=r"row 2: map 'b.png' is in colour; expected greyscale"):
        dataset[0]
    with pytest.raises(ValueError, match=r"row 3: 'big.tif' holds values from 3.5 to 3.5 .*in \[0, 1\]"):
        dataset[1]


@pytest.mark.parametrize(
    ("transform", "returned"),
    [
        (lambda image, saliency: (image.numpy(), saliency.numpy()), "ndarray and ndarray"),
        (lambda image, saliency: (image, saliency.numpy()), r"shape \(3, 6, 8\) and ndarray"),
        (lambda image, saliency: {"image": image, "mask": saliency}, "dict"),
        (lambda image, _: image, r"shape \(3, 6, 8\)"),
        (lambda _image, _saliency: None, "NoneType"),
    ],
)
def test_a_transform_that_does_not_return_two_tensors_is_an_error(root: Path, transform: Any, returned: str) -> None:
    dataset = SaliencyDataset(root, write(root, "a.png,x,,"), transform=transform)
    message = rf"row 2: the transform returned {returned}; expected two tensors, .* albumentations_style\(\) wraps"
    with pytest.raises(TypeError, match=message):
        dataset[0]


def test_a_transform_that_changes_only_one_of_the_two_is_an_error(root: Path) -> None:
    dataset = SaliencyDataset(
        root, write(root, "a.png,x,,"), transform=lambda image, saliency: (image[:, :4], saliency)
    )
    with pytest.raises(ValueError, match=r"row 2: the transform returned an image of shape \(3, 4, 8\) and a map of"):
        dataset[0]
