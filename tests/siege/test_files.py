"""Files that somebody else made: tables, checkpoints and ONNX files, damaged in every way, and made to do harm.

Whatever they hold, the end is a result or one line that says what is wrong. Nothing is unpickled, and nothing outside
of the folder is opened, which Python tells of every file that it opens (``sys.addaudithook``).
"""

from __future__ import annotations

import csv
import pickle
import struct
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from diffgradcam.data import SaliencyDataset
from diffgradcam.training import InMemory, Settings, fit, read_checkpoint, write_checkpoint

from .watched import attempted, nothing_outside

click_testing = pytest.importorskip("click.testing", reason="the command needs pip install click")
pytest.importorskip("safetensors", reason="checkpoints need the extra store")

from diffgradcam.cli import main  # noqa: E402


@pytest.fixture
def root(tmp_path):
    """A folder with an image, and ways out of it to another one."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "secret.png")
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (16, 16), "blue").save(root / "a.png")
    (root / "link.png").symlink_to("../secret.png")
    (root / "up").symlink_to("..")
    return root


def run(*arguments):
    """A command in this process; an error that it does not expect is raised."""
    return click_testing.CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


# Tables


CELLS = [
    "a.png", "link.png", "up/secret.png", "../secret.png", "./a.png", "up/root/a.png", "{outside}", "", "\0", "a\0.png",
    "a.png\n", "'a.png'", '"', "=cmd|'/c calc'!A1", "@SUM(1)", "<script>alert(1)</script>", "{{ 7 * 7 }}", "é",
    "\ufeff", "\u202e", "\ud800", "0", "1", "01", "²", "-1", "x" * 300, "x" * 140_000, "9" * 5000, "NUL", "a.png/.",
    "~", "$HOME/a", "file:///a.png", "a.png?", "\\\\host\\a.png",
]  # fmt: skip
HEADERS = [
    ["image", "label"], ["image", "label", "saliency", "group"], ["label", "image", "patient"],
    ["image", "label", "label"], ["image"], [], ["Image", "Label"], ["image", "label", "", ""], [" image ", "label"],
    ["image", "label", "\0"],
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32", "cp037"]


@st.composite
def tables(draw):
    """A header, rows and an encoding, each perhaps wrong."""
    header = draw(st.sampled_from(HEADERS))
    rows = draw(st.lists(st.lists(st.sampled_from(CELLS), max_size=5), max_size=4))
    good = [["a.png", str(index)] for index in range(draw(st.integers(0, 2)))]
    return header, good + rows, draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from([",", ",", ";", "\t"]))


def written(root, table):
    """The file of a table."""
    header, rows, encoding, delimiter = table
    file = root / "data.csv"
    with file.open("w", newline="", encoding=encoding, errors="replace") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        secret = str(root.parent / "secret.png")
        writer.writerows([header, *([cell.replace("{outside}", secret) for cell in row] for row in rows)])
    return file


def check_table(root, file):
    items, error = attempted(root, lambda: list(SaliencyDataset(root, file)))
    assert error is None or "data.csv" in str(error)
    assert all(item.image[:, 0, 0].tolist() == [0, 0, 1] for item in items or ())


@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.siege)])
def test_any_table_is_read_or_refused_in_words(root, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(tables())
    def check(table):
        check_table(root, written(root, table))

    check()


@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.siege)])
def test_any_bytes_are_read_or_refused_in_words(root, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.binary(max_size=40), st.sampled_from([b"", b"image,label\n", b"\xef\xbb\xbfimage,label\na.png,"]))
    def check(data, start):
        (root / "data.csv").write_bytes(start + data)
        check_table(root, root / "data.csv")

    check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png,é\n".encode("latin-1"), r"data.csv cannot be read as a CSV \(.utf-8. codec can't decode"),
        ("image,label\na.png,1\n".encode("utf-16"), r"expected text in UTF-8, separated by commas; spreadsheets save"),
        (b"image,label\n" + b"a" * 140_000 + b",1\n", r"\(field larger than field limit \(131072\)\); expected text"),
        (b"image,label,label\na.png,1,2\n", r"data.csv has several columns 'label'; expected each name once"),
    ],
)
def test_what_was_found_in_tables_is_refused_in_so_many_words(root, text, message):
    (root / "data.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        SaliencyDataset(root, root / "data.csv")
    refused = run("train", root / "data.csv", "--out", root / "runs")
    assert refused.exit_code == 1
    assert "data.csv" in refused.stderr


def test_columns_without_a_name_are_no_columns(root):
    (root / "data.csv").write_text("image,label,,\na.png,1,,\n")
    assert SaliencyDataset(root, root / "data.csv").labels == [0]


def test_labels_that_are_one_number_have_one_order(root):
    (root / "data.csv").write_text("image,label\n" + "".join(f"a.png,{label}\n" for label in ("1", "01", "001", "0")))
    assert SaliencyDataset(root, root / "data.csv").classes == ["0", "001", "01", "1"]
    (root / "data.csv").write_text(f"image,label\na.png,{'9' * 5000}\na.png,1\n")
    assert SaliencyDataset(root, root / "data.csv").labels == [1, 0]


class Page(HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, set[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name for name, _ in attributes}))


def test_names_in_a_table_are_text_in_the_report(root):
    names = ['"><img src=x onerror=alert(1)>.png', "=HYPERLINK(1)+<script>alert(1)<.png", "{{ 7 * 7 }}&lt;.png"]
    generator = np.random.default_rng(0)
    rows = []
    for index in range(24):
        name = f"{index}{names[index % 3]}"
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name)
        rows.append([name, ("<b>live</b>", "=1+1<script>")[index % 2]])
    with (root / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *rows])
    options = ["--size", 16, "--epochs", 1, "--batch-size", 4, "--resamples", 0, "--attack", "=1+1<script>"]
    with nothing_outside(root):
        trained = run("train", root / "data.csv", *options, "--out", root / "runs")
    assert trained.exit_code == 0, trained.stderr
    assert sorted(path.name for path in (root / "runs").rglob("*.partial")) == []
    text = (root / "runs" / "report.html").read_text(encoding="utf-8")
    tags = Page(text).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "{{ 7 * 7 }}" in text


# Checkpoints


class Tiny(nn.Module):
    """A convolution, batch norm and a pooled head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))


def tiny():
    torch.manual_seed(0)
    return Tiny()


SETTINGS = Settings(loss="ce", epochs=1, batch_size=4, select="last")


def train(file, model=None):
    images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return fit(model or tiny(), InMemory(images, torch.arange(8) % 2), SETTINGS, layer="features", checkpoint=file)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The bytes of the state of a training, and what is in it."""
    file = tmp_path_factory.mktemp("state") / "state.safetensors"
    train(file)
    return file.read_bytes(), read_checkpoint(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=5) | st.just("/etc/hostname"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
TENSORS = {
    "of another type": lambda x: x.double() if x.is_floating_point() else x.float(),
    "complex": lambda x: x.to(torch.complex64),
    "bytes": lambda x: torch.zeros(x.shape, dtype=torch.uint8),
    "larger": lambda x: torch.zeros(*x.shape, 2, dtype=x.dtype),
    "empty": lambda x: x.new_zeros(0),
    "transposed": lambda x: x.new_zeros(*reversed(x.shape), 1),
    "missing": lambda _: None,
}


def refused(file):
    """Going on with a checkpoint fails in words, and the model is as it was; or does not fail."""
    model, before = tiny(), tiny().state_dict()
    _, error = attempted(file.parent, lambda: train(file, model))
    if error is not None:
        assert file.name in str(error)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return error is not None


@pytest.mark.parametrize("how", TENSORS)
@pytest.mark.parametrize("part", ["model.", "best.", "optimizer."])
def test_a_checkpoint_with_another_tensor_is_not_gone_on_with(root, state, part, how):
    tensors = dict(state[1].tensors)
    name = next(name for name in tensors if name.startswith(part) and tensors[name].ndim)
    changed = TENSORS[how](tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    write_checkpoint(root / "x.safetensors", tensors, state[1].about)
    assert refused(root / "x.safetensors")
    write_checkpoint(root / "x.safetensors", {**state[1].tensors, f"{part}more": torch.zeros(2)}, state[1].about)
    assert refused(root / "x.safetensors")


@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.siege)])
def test_a_checkpoint_that_says_anything_is_gone_on_with_or_refused(root, state, examples):
    file = root / "x.safetensors"

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.sampled_from([*state[1].about, ""]), JSON)
    def check(key, value):
        about = {name: known for name, known in state[1].about.items() if name != key} | ({key: value} if key else {})
        write_checkpoint(file, state[1].tensors, about if key else value)
        refused(file)

    check()


@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.siege)])
def test_a_damaged_checkpoint_is_gone_on_with_or_refused(root, state, examples):
    """Cut short, or other bytes in it: a number of a weight may be another, and nothing else."""
    data, _ = state
    file = root / "x.safetensors"

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.integers(0, len(data) - 1), st.binary(max_size=4), st.booleans())
    def check(at, put, cut):
        file.write_bytes(data[:at] + put + (b"" if cut else data[at + len(put) :]))
        refused(file)

    check()


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"model": [1, 2]}),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{" + b" " * 99,
        struct.pack("<Q", 78) + b'{"model.a":{"dtype":"F32","shape":[4,1073741824],"data_offsets":[0,17179869184]}}',
        struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,18446744073}}',
        struct.pack("<Q", 20) + b'{"__metadata__":{} } ',
        struct.pack("<Q", 45) + b'{"__metadata__":{"diffgradcam":"[1, 2, 3]"} } ',
        struct.pack("<Q", 20_033) + b'{"__metadata__":{"diffgradcam":"' + b"[" * 20_000 + b'"}',
        b"PK\x03\x04" + b"\0" * 99,
        b"",
    ],
    ids=[
        "pickle",
        "huge header",
        "large header",
        "gigabytes",
        "negative",
        "no settings",
        "a list",
        "deep",
        "zip",
        "empty",
    ],
)
def test_what_is_no_checkpoint_is_refused(root, data):
    (root / "x.safetensors").write_bytes(data)
    assert refused(root / "x.safetensors")
    (root / "data.csv").write_text("image,label\na.png,0\na.png,1\n")
    evaluated = run("evaluate", root / "x.safetensors", root / "data.csv")
    assert evaluated.exit_code == 1
    assert "x.safetensors" in evaluated.stderr


SEEN = {"names": [], "together": [], "groups": [""]}
TOLD = {
    "model": "small", "layer": "features.6", "classes": ["0", "1"], "size": [16, 16], "mean": [0.5] * 3,
    "std": [0.5] * 3, "together": None, "seen": SEEN,
}  # fmt: skip
WRONG = {
    "model": [None, 5, "", "nobody", "hf:/etc", "timm:hf-hub:somebody/model", "x.py:make"],
    "layer": [None, "nowhere", "../x", ["0"], 0],
    "classes": [None, [], ["0"], ["0", "1", "2"], "01", [0, 1], ["a", "b"], ["0", "0"]],
    "size": [None, [], [16], [16, 32], [10**9, 10**9], [0, 0], [-1, -1], [1.5, 1.5], "16", [True, True], [[16], [16]]],
    "mean": [None, [], [0.5] * 2, [0.5] * 4, ["x"] * 3, [None] * 3, 0.5, [True] * 3],
    "std": [None, [], [0.5], ["x"] * 3],
    "together": [5, ["patient"], "nowhere"],
    "seen": [None, [], {}, {**SEEN, "names": "a"}, {**SEEN, "groups": [["x"]]}, {**SEEN, "names": {"a": 1}}],
}


@pytest.mark.parametrize("key", WRONG)
def test_evaluate_believes_nothing_that_train_does_not_write(root, key):
    (root / "data.csv").write_text("image,label\na.png,0\na.png,1\n")
    from diffgradcam.training import SmallNet

    for value in WRONG[key]:
        write_checkpoint(root / "x.safetensors", SmallNet(2, 3).state_dict(), {**TOLD, key: value})
        with nothing_outside(root):
            result = run("evaluate", root / "x.safetensors", root / "data.csv", "--resamples", 0)
        assert result.exit_code == 1, (key, value)
        assert len(result.stderr) < 2000


def test_the_checkpoint_that_those_are_made_from_is_right(root):
    from diffgradcam.training import SmallNet

    (root / "data.csv").write_text("image,label\n" + "a.png,0\na.png,1\n" * 3)
    write_checkpoint(root / "x.safetensors", SmallNet(2, 3).state_dict(), TOLD)
    result = run("evaluate", root / "x.safetensors", root / "data.csv", "--resamples", 0)
    assert result.exit_code == 0, result.stderr
    write_checkpoint(root / "x.safetensors", SmallNet(2, 3).double().state_dict(), TOLD)
    result = run("evaluate", root / "x.safetensors", root / "data.csv", "--resamples", 0)
    assert "are torch.float64, (" in result.stderr
