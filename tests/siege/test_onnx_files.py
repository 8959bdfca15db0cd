"""ONNX files that somebody else made: damaged, made for something else, or made to read what is not theirs."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffgradcam.export import OnnxExplainer

from .watched import attempted

onnx = pytest.importorskip("onnx", reason="ONNX files need the extra onnx")
pytest.importorskip("onnxruntime", reason="ONNX files need the extra onnx")
click_testing = pytest.importorskip("click.testing", reason="the command needs pip install click")

from onnx import TensorProto, helper  # noqa: E402

from diffgradcam.cli import main  # noqa: E402

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
FACTS = {
    "model": "small", "layer": "0", "method": "GradCAM", "untrained": False, "explains": "GradCAM",
    "preparation": {"size": 4, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": 1.0}, "class_names": {"0": "a", "2": "c"},
}  # fmt: skip
ELSEWHERE = (
    r"m.onnx cannot be read as an ONNX model: it keeps weights in other files, which no checksum covers; expected"
)


def model(facts=FACTS, *, weight=None, nodes=(), size=(3, 4, 4), kind=TensorProto.FLOAT, more=(), subgraphs=()):
    """A file as write_onnx makes it, of three means of the image and no more."""
    weight = weight or helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    own = [
        helper.make_node("ReduceMean", ["images"], ["logits"], axes=[2, 3], keepdims=0),
        helper.make_node("ArgMax", ["logits"], ["classes"], axis=1, keepdims=0),
        helper.make_node("ReduceMean", ["images"], ["maps"], axes=[1], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("images", kind, ["batch", *size]), *more]
    types = {"logits": kind, "classes": TensorProto.INT64, "maps": kind}
    outputs = [helper.make_tensor_value_info(name, type_, None) for name, type_ in types.items()]
    graph = helper.make_graph([*own, *nodes, *subgraphs], "graph", inputs, outputs, [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    text = facts if isinstance(facts, str) else json.dumps(facts)
    helper.set_model_props(proto, {"diffgradcam": text})
    return proto


def elsewhere(name="secret.bin", dims=(1,)):
    """A tensor whose data is in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": name, "length": "4"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


@pytest.fixture
def root(tmp_path):
    """A folder, beside a file that nobody may read."""
    (tmp_path / "secret.bin").write_bytes(np.ones(1, np.float32).tobytes())
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.bin").symlink_to("../secret.bin")
    (root / "own.bin").write_bytes(np.ones(1, np.float32).tobytes())
    Image.new("RGB", (4, 4), "blue").save(root / "a.png")
    return root


def opened(root, data):
    """Whether a file can be used, and the error if not; it is one of our own."""
    file = root / "m.onnx"
    file.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    found, error = attempted(root, lambda: OnnxExplainer(file).explain(IMAGES))
    assert error is None or "m.onnx" in str(error) or "class_names" in str(error)
    return found, error


def explained(root):
    return click_testing.CliRunner().invoke(
        main, ["explain", str(root / "a.png"), "--onnx", str(root / "m.onnx"), "--out", str(root / "out")],
        catch_exceptions=False,
    )  # fmt: skip


def test_the_file_that_all_are_made_from_is_right(root):
    found, error = opened(root, model())
    assert error is None
    assert found.maps.shape == (2, 4, 4)
    assert found.class_names == {0: "a", 2: "c"}
    assert explained(root).exit_code == 0


def in_a_node():
    return model(nodes=[helper.make_node("Constant", [], ["unused"], value=elsewhere())])


def in_a_subgraph():
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["w2"], ["out"])], "b", [], [out], [elsewhere()])
    return model(nodes=[helper.make_node("If", ["images"], ["x"], then_branch=branch, else_branch=branch)])


def in_a_sparse_tensor():
    proto = model()
    proto.graph.sparse_initializer.add().values.CopyFrom(elsewhere())
    return proto


def in_a_function():
    proto = model()
    node = helper.make_node("Constant", [], ["y"], value=elsewhere())
    proto.functions.append(helper.make_function("own", "f", [], ["y"], [node], [helper.make_opsetid("", 13)]))
    return proto


def in_training():
    proto = model()
    proto.training_info.add().algorithm.initializer.append(elsewhere())
    return proto


def in_other_bytes():
    """The number of the field, and its value, longer than they need to be."""
    proto = model()
    plain = proto.graph.initializer[0].SerializeToString()
    long = plain + b"\xf0\x80\x00\x81\x00"
    proto.graph.ClearField("initializer")
    graph = proto.graph.SerializeToString()
    graph += b"\x2a" + bytes([len(long)]) + long
    proto.ClearField("graph")
    size = len(graph)
    return proto.SerializeToString() + b"\x3a" + bytes([size & 127 | 128, size >> 7]) + graph


@pytest.mark.parametrize(
    "make", [in_a_node, in_a_subgraph, in_a_sparse_tensor, in_a_function, in_training, in_other_bytes]
)
def test_other_files_are_refused_wherever_they_are_named(root, make):
    _, error = opened(root, make())
    assert "it keeps weights in other files" in str(error)


@pytest.mark.parametrize(
    "name",
    ["../secret.bin", "{outside}", "link.bin", "own.bin", "/dev/zero", "", "a\0b", "missing.bin", "./../secret.bin"],
)
def test_other_files_are_refused_wherever_they_are(root, name):
    proto = model(weight=elsewhere(name.replace("{outside}", str(root.parent / "secret.bin"))))
    (root / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=ELSEWHERE):
        OnnxExplainer(root / "m.onnx")
    told = explained(root)
    assert told.exit_code == 1
    assert "keeps weights in other files" in told.stderr


@pytest.mark.parametrize("examples", [100, pytest.param(5000, marks=pytest.mark.siege)])
def test_a_file_cut_short_is_refused_or_only_lacks_what_it_says_of_itself(root, examples):
    data = model().SerializeToString()

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.integers(0, len(data) - 1))
    def check(length):
        found, error = opened(root, data[:length])
        assert error is not None or torch.allclose(found.maps, IMAGES.mean(1))

    check()


@pytest.mark.parametrize("examples", [100, pytest.param(5000, marks=pytest.mark.siege)])
def test_any_other_byte_breaks_the_checksum(root, examples):
    data = model().SerializeToString()
    (root / "m.onnx.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  m.onnx\n")
    assert opened(root, data)[1] is None

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def check(at, change):
        _, error = opened(root, data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
        assert "is not what was exported" in str(error)

    check()


@pytest.mark.parametrize("sidecar", [b"", b"\xff\xfe", b"0" * 64, b"\n\n", b"\0" * 64, b"m.onnx"])
def test_a_checksum_that_is_none_is_refused(root, sidecar):
    (root / "m.onnx.sha256").write_bytes(sidecar)
    assert "is not what was exported" in str(opened(root, model())[1])


@pytest.mark.parametrize("examples", [100, pytest.param(5000, marks=pytest.mark.siege)])
def test_any_bytes_are_refused_in_words(root, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.binary(max_size=60))
    def check(data):
        _, error = opened(root, data)
        assert "cannot be read as an ONNX model" in str(error)

    check()


TEXTS = ["", "[]", "5", "null", "{", '"a"', "[" * 5000, '{"class_names": 5}', "\ufeff{}", "NaN"]
NAMES = [[1, 2], {"x": "a"}, {"0": 5}, {"-1": "a"}, "abc", 7, {"0": None}, {"9" * 5000: "a"}]


@pytest.mark.parametrize("text", TEXTS)
def test_metadata_that_is_not_ours(root, text):
    _, error = opened(root, model(text))
    assert "metadata that cannot be read" in str(error) or "class names that cannot be read" in str(error)


@pytest.mark.parametrize("names", NAMES)
def test_class_names_that_are_none(root, names):
    _, error = opened(root, model({**FACTS, "class_names": names}))
    assert "m.onnx has class names that cannot be read" in str(error)


@pytest.mark.parametrize("names", [{"3": "d"}, ["a", "b"], ["a"] * 4])
def test_class_names_of_another_model(root, names):
    _, error = opened(root, model({**FACTS, "class_names": names}))
    assert "but the model has" in str(error)
    assert explained(root).exit_code == 1


PREPARED = {
    "size": [None, 5, 0, -4, 10**9, "4", [4]], "mean": [None, [], [0.5], [0.5] * 4, [float("nan")] * 3, "abc"],
    "std": [None, [0.0] * 3, [float("inf")] * 3, [0.5], "abc"], "crop": [None, 0, -1, 1e9, float("nan"), "x"],
}  # fmt: skip


@pytest.mark.parametrize("key", PREPARED)
def test_a_preparation_that_does_not_fit_the_model_is_refused(root, key):
    for value in PREPARED[key]:
        facts = {**FACTS, "preparation": {**FACTS["preparation"], key: value}}
        (root / "m.onnx").write_bytes(model(facts).SerializeToString())
        told = explained(root)
        if value == "4":  # it is read as a number
            assert told.exit_code == 0
            continue
        assert told.exit_code == 1, value
        assert "does not say how its images are prepared (" in told.stderr


def value(name, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, ["batch"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"more": [value("other")]}, r"takes images, tensor\(float\), other, tensor\(float\); expected images alone"),
        ({"kind": TensorProto.INT32}, r"takes images, tensor\(int32\); expected images alone"),
    ],
)
def test_other_inputs(root, options, message):
    (root / "m.onnx").write_bytes(model(**options).SerializeToString())
    with pytest.raises(ValueError, match=message):
        OnnxExplainer(root / "m.onnx")


def test_images_of_another_kind_are_refused(root):
    (root / "m.onnx").write_bytes(model(kind=TensorProto.DOUBLE).SerializeToString())
    explainer = OnnxExplainer(root / "m.onnx")
    assert explainer.explain(torch.rand(1, 3, 4, 4).double()).logits.dtype == torch.float64
    for images in (torch.rand(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.long)):
        with pytest.raises(TypeError, match=r"images are torch.\w+; expected a tensor of torch.float64, which"):
            explainer.explain(images)
    with pytest.raises(TypeError, match=r"images are ndarray; expected a tensor of torch\.float64"):
        explainer.explain(np.zeros((1, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"images have shape \(0, 3, 4, 4\); expected \(B, 3, 4, 4\)"):
        explainer.explain(torch.zeros(0, 3, 4, 4).double())
