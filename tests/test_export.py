"""A model with maps as one module: the same values as ``explain``, without autograd, and as an ONNX file."""

import hashlib
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from diffgradcam import (
    CAM,
    FEM,
    AugSmooth,
    DiffGradCAM,
    EigenCAM,
    EigenSmooth,
    FullGrad,
    GradCAM,
    LayerCAM,
    RandomCAM,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    TrueFalseCAM,
    heatmaps,
    layer_input,
)
from diffgradcam.export import ModelWithMaps, OnnxExplainer, tracing, with_maps, write_onnx
from diffgradcam.export.operators import DECOMPOSITIONS
from diffgradcam.metrics.similarity import pearson
from diffgradcam.tokens import tokens_to_grid
from tests import models, untouched
from tests.conftest import import_peer
from tests.methods import METHODS, exact
from tests.test_cli import FACTORY, SMALL, noise, run, run_json

# Each is another choice of what these tests run anyway.
ALIKE = {"Diff", "Diff++ mean", "Finer", "Layer of Diff", "HiRes of Diff", "EigenGrad of Diff", "Eigen", "FEM"}
IMAGES, OTHERS = models.images(2), models.images(5, seed=1)


def same(module, cam, images, classes=None, check=exact):
    """The module's values are those of ``explain``, and need no gradient."""
    found = module(images)
    for one, other in zip(found, cam.explain(images, classes), strict=True):
        check(one, other)
        assert not one.requires_grad
    return found


def close(actual, expected):
    """Of float32, relative to the largest value."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class TestValues:
    @pytest.mark.parametrize("name", sorted(METHODS.keys() - ALIKE))
    def test_every_method_above_a_part_with_convolutions(self, name):
        make, options, *_ = METHODS[name]
        cam = make(models.two_sizes(), "relu", **options)
        same(with_maps(cam, IMAGES, 1), cam, OTHERS, 1)

    def test_several_classes_of_every_image(self):
        cam = DiffGradCAM(models.two_sizes(), "relu")
        same(with_maps(cam, IMAGES, [0, 2]), cam, OTHERS, torch.tensor([[0, 2]] * 5))

    @pytest.mark.parametrize("name", ["GradCAM", "Diff", "Diff max", "Finer"])
    def test_all_of_many_classes_in_closed_form(self, name):
        make, options, *_ = METHODS[name]
        cam = make(models.pooled(70), "relu", **options)
        module = with_maps(cam, IMAGES, "all")
        same(module, cam, OTHERS, "all")
        # Not a gradient for each of 70 classes, each of which is many nodes.
        assert name == "Finer" or len(module.computation.graph.nodes) < 2 * 70

    @pytest.mark.parametrize(
        ("make", "given", "asked"),
        [
            (TrueFalseCAM, "argmax", None),
            (TrueFalseCAM, "all", "all"),
            (CAM, "top2", "top2"),
            (ShapleyCAM, 1, 1),
            (RefineCAM, "top2", "top2"),
            (FEM, "all", "all"),
        ],
    )
    def test_classes_in_every_form(self, make, given, asked):
        cam = make(models.pooled(), "relu")
        logits, classes, maps = same(with_maps(cam, IMAGES, given), cam, OTHERS, asked)
        assert maps.shape == (*classes.shape, 6, 5)
        assert logits.shape == (5, 5)

    def test_what_the_user_chose_is_traced_and_never_replaced(self):
        class Tenfold(GradCAM.__base__):
            weighting = staticmethod(lambda a, g: g.abs() * a.exp())

            def layer_map(self, activations, weights):
                return 10 * super().layer_map(activations, weights)

        cam = Tenfold(
            models.two_sizes(70),
            ["relu", "small"],
            score=lambda z, c: (z.gather(1, c[:, None])[:, 0]) ** 2,
            reduction=lambda channels: channels.amax(1),
            fusion=heatmaps.product,
            rectify=False,
        )
        same(with_maps(cam, IMAGES, "top3"), cam, OTHERS, "top3")

    def test_gradients_of_the_input_and_every_bias(self):
        cam = FullGrad(models.two_sizes())
        same(with_maps(cam, IMAGES), cam, OTHERS)

    def test_a_method_smoothed_by_its_principal_component(self):
        cam = EigenSmooth(GradCAM(models.flat(), "relu"))
        same(with_maps(cam, IMAGES), cam, OTHERS)

    def test_a_class_that_would_be_contrasted_with_itself_has_no_evidence(self):
        model = models.pooled()
        images = models.images(30)
        model.head.bias.data -= model(images).detach().mean(0)  # so that decisions differ
        decided = model(images).argmax(1)
        contrast = int(decided[0])
        kept = images[decided != contrast]
        assert len(kept)
        cam = DiffGradCAM(model, "relu", baseline=contrast)
        module = with_maps(cam, kept)
        same(module, cam, kept)
        _, _, maps = module(images)
        assert not maps[decided == contrast].any()

    @pytest.mark.parametrize("head", [models.deep, models.max_pooled, models.densenet])
    def test_every_head(self, head):
        cam = DiffGradCAM(head(), "features")
        same(with_maps(cam, IMAGES), cam, OTHERS)


def resnet():
    torchvision = import_peer("torchvision.models.resnet")
    return torchvision.ResNet(torchvision.BasicBlock, [1, 1, 1, 1], num_classes=5), "layer3", None


def convnext():
    timm = import_peer("timm.models.convnext")
    return timm.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5), "stages.2", None


def vit():
    timm = import_peer("timm.models.vision_transformer")
    model = timm.VisionTransformer(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    return model, "blocks.1.norm1", tokens_to_grid


def swin():
    timm = import_peer("timm.models.swin_transformer")
    options = {"window_size": 2, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "num_classes": 5}
    return timm.SwinTransformer(32, 4, **options), "layers.0", tokens_to_grid


class TestArchitectures:
    @pytest.mark.parametrize(
        ("build", "make"), [(resnet, DiffGradCAM), (convnext, LayerCAM), (vit, DiffGradCAM), (swin, DiffGradCAM)]
    )
    def test_families(self, build, make):
        model, layer, transform = build()
        cam = make(model.eval(), layer, transform)
        images = torch.randn(3, 3, 32, 32)
        _, _, maps = same(with_maps(cam, images[:1]), cam, images, check=close)
        assert maps.any()

    def test_an_imagenet_model_and_real_photographs(self, lite0, photo_inputs):
        photos = torch.stack(list(photo_inputs.values()))
        cam = DiffGradCAM(lite0, layer_input("_avg_pooling"))
        same(with_maps(cam, photos[:1]), cam, photos, check=close)


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda m: ScoreCAM(m, "relu"), "ScoreCAM of Sequential cannot be one graph: it runs the model again"),
            (lambda m: SmoothGradCAMPlusPlus(m, "relu"), "it runs the model again"),
            (lambda m: AugSmooth(GradCAM(m, "relu")), "AugSmooth of Sequential cannot be one graph"),
            (lambda m: RandomCAM(m, "relu"), "it draws random numbers"),
            (lambda m: GradCAM(m, "relu", reduction=by_value), "cannot be one graph: .*ata"),
            (lambda m: GradCAM(m, "relu", reduction=by_batch), "cannot be one graph for any number of images|differ"),
        ],
    )
    def test_what_cannot_be_one_graph(self, make, why):
        model = models.pooled()
        before = untouched.state(model)
        with pytest.raises(RuntimeError, match=why):
            with_maps(make(model), IMAGES)
        assert untouched.same(before, untouched.state(model))
        assert torch.backends.mha.get_fastpath_enabled()

    def test_a_gradient_for_each_of_many_classes(self):
        with pytest.raises(RuntimeError, match=r"a graph takes at most 64; .* such as classes='top5'"):
            with_maps(LayerCAM(models.pooled(70), "relu"), IMAGES, "all")

    def test_a_model_in_training_mode(self):
        with pytest.raises(ValueError, match=r"in training mode.*call model\.eval\(\) first"):
            with_maps(GradCAM(models.pooled().train(), "relu"), IMAGES)

    @pytest.mark.parametrize(
        ("cam", "images", "message"),
        [
            (GradCAM, IMAGES, "cam is the class GradCAM; expected a CAM"),
            (None, IMAGES, "cam is NoneType; expected a CAM"),
            (GradCAM(models.pooled(), "relu"), IMAGES.long(), "torch.int64, .*expected a floating-point tensor"),
            (GradCAM(models.pooled(), "relu"), [1], "example_images are list"),
            (
                GradCAM(models.pooled(), "relu"),
                IMAGES[:0],
                r"\(0, 3, 6, 5\); expected a floating-point tensor of images",
            ),
            (GradCAM(models.pooled(), "relu"), IMAGES[0, 0, 0], r"\(5,\); expected a floating-point tensor of images"),
        ],
    )
    def test_wrong_kinds(self, cam, images, message):
        with pytest.raises(TypeError, match=message):
            with_maps(cam, images)

    @pytest.mark.parametrize("classes", [1.5, [0.5], [[0, 1]], None, [None], {}, ["all"], [True], object(), [10**30]])
    def test_classes_of_another_kind(self, classes):
        with pytest.raises(TypeError, match="expected 'argmax', 'all', 'top5' or another number, a class, or a list"):
            with_maps(GradCAM(models.pooled(), "relu"), IMAGES, classes)

    def test_errors_of_explain_are_its_own(self):
        cam = GradCAM(models.pooled(), "relu")
        with pytest.raises(ValueError, match="class 7 is out of range"):
            with_maps(cam, IMAGES, 7)
        with pytest.raises(ValueError, match="the words for classes are"):
            with_maps(cam, IMAGES, "best")
        with pytest.raises(ValueError, match="is NaN or infinite"):
            with_maps(cam, IMAGES * torch.nan)

    def test_images_of_another_size(self):
        module = with_maps(GradCAM(models.pooled(), "relu"), IMAGES)
        with pytest.raises(ValueError, match=r"expected \(B, 3, 6, 5\), the size that the graph was made with"):
            module(torch.zeros(1, 3, 7, 5, dtype=torch.float64))


def by_value(channels):
    return channels.sum(1) if bool(channels.sum() > 0) else channels.amax(1)


def by_batch(channels):
    return channels.sum(1) / len(channels)


class TestOperators:
    """Backward operators in terms of forward ones, beside PyTorch's own."""

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            nn.Conv2d(4, 6, (2, 3), stride=(3, 2), dilation=2),
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            nn.Conv1d(4, 6, 3, stride=2),
            nn.Conv3d(4, 6, 2, padding=1),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
            nn.AvgPool3d(2),
            nn.AvgPool2d((2, 4), stride=3, ceil_mode=True),
            nn.AvgPool2d(2, stride=2, padding=1, count_include_pad=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.MaxPool3d(2, stride=1),
        ],
        ids=repr,
    )
    def test_gradients(self, layer):
        dims = int(type(layer).__name__[-2])
        images = torch.randn(2, 4, *(8, 8, 10)[-dims:], requires_grad=True)

        def gradient(x):
            out = layer(x)
            return torch.autograd.grad(out, x, out.detach().sin())[0]

        graph = make_fx(gradient, DECOMPOSITIONS)(images)
        assert not [node for node in graph.graph.nodes if "backward" in str(node.target)]
        torch.testing.assert_close(graph(images), gradient(images), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("pool", "side"),
        [
            (nn.AvgPool2d(2, ceil_mode=True), 5),
            (nn.AvgPool2d(3, stride=3, padding=1, ceil_mode=True), 8),
            (nn.AvgPool2d(2, padding=1, count_include_pad=False), 6),
        ],
    )
    def test_windows_of_different_sizes_stay(self, pool, side):
        images = torch.randn(1, 2, side, side, requires_grad=True)
        graph = make_fx(lambda x: torch.autograd.grad(pool(x).square().sum(), x)[0], DECOMPOSITIONS)(images)
        assert [node for node in graph.graph.nodes if "avg_pool2d_backward" in str(node.target)]


class TestParts:
    """What is behind ``with_maps`` and ``write_onnx``, by itself."""

    @pytest.mark.parametrize("size", [1, (1, 1), [1, 1], (2, 1), (1, 2), (None, 1), 2])
    @pytest.mark.parametrize("shape", [(2, 3, 6, 5), (3, 6, 5)])
    def test_pooling_to_one_position_is_a_mean(self, size, shape):
        images = torch.randn(*shape)
        expected = nn.functional.adaptive_avg_pool2d(images, size)
        with tracing._PlainPooling():
            torch.testing.assert_close(nn.functional.adaptive_avg_pool2d(images, size), expected)
            torch.testing.assert_close(nn.functional.adaptive_avg_pool2d(images, output_size=size), expected)
            torch.testing.assert_close(nn.functional.relu(images), images.relu())

    def test_buffers_stay_buffers(self):
        model = small()
        module = with_maps(GradCAM(model, "3"), torch.rand(1, 3, 16, 16))
        names = {f"computation.model.{name}" for name, value in model.named_buffers() if value.is_floating_point()}
        assert names
        assert names <= {name for name, _ in module.named_buffers()}
        assert not names & {name for name, _ in module.named_parameters()}

    def test_the_exporter_looks_for_what_it_needs_by_its_own_name(self, monkeypatch, tmp_path):
        module = with_maps(GradCAM(models.pooled(), "relu"), IMAGES)
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ImportError, match=r"^write_onnx needs onnx, which is not installed"):
            write_onnx(module, tmp_path / "m.onnx")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"^OnnxExplainer needs onnxruntime, which is not installed"):
            OnnxExplainer(tmp_path / "m.onnx")

    @pytest.mark.parametrize("wrong", range(3))
    def test_what_differs_from_explain_is_named(self, wrong):
        cam = GradCAM(models.pooled(), "relu")
        expected = cam.explain(IMAGES)
        found = [value + (number == wrong) for number, value in enumerate(expected)]
        name = ("logits", "classes", "maps")[wrong]
        with pytest.raises(RuntimeError, match=f"GradCAM of Sequential cannot be one graph: its {name} of the example"):
            tracing._compare(cam, lambda _: found, IMAGES, expected)
        tracing._compare(cam, lambda _: list(expected), IMAGES, expected)

    def test_other_errors_are_told_by_their_first_line(self):
        assert tracing._short(KeyError("\n  a\nb")) == r"KeyError: '\n  a\nb'"
        assert tracing._short(ValueError("\n  a  \nb")) == "ValueError: a"
        assert tracing._short(ValueError()) == "ValueError: no message"

    def test_what_is_asked_of_the_exporter_and_what_the_file_says(self, monkeypatch, tmp_path):
        pytest.importorskip("onnxscript", reason="ONNX files need the extra onnx")
        asked = {}
        program = SimpleNamespace(model=SimpleNamespace(metadata_props={}))
        program.model_proto = SimpleNamespace(SerializeToString=lambda: b"a file")
        monkeypatch.setattr(torch.onnx, "export", lambda *args, **given: asked.update(given, args=args) or program)
        model = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()  # without any weight
        module = with_maps(GradCAM(model, "0"), IMAGES)
        digest = write_onnx(module, tmp_path / "m.onnx", class_names={1: "b"}, facts={"size": 5})
        assert digest == hashlib.sha256(b"a file").hexdigest()
        (own, (example,)), names = asked["args"], asked["input_names"]
        assert (own, example.shape, example.dtype) == (module, (2, 3, 6, 5), torch.float64)
        assert (names, tuple(asked["output_names"])) == (["images"], ("logits", "classes", "maps"))
        assert (asked["dynamo"], asked["external_data"], asked["verbose"]) == (True, False, False)
        assert [*asked["dynamic_shapes"]["images"]] == [0]
        facts = json.loads(program.model.metadata_props["diffgradcam"])
        assert facts == {"explains": module.explains, "size": 5, "class_names": {"1": "b"}}
        write_onnx(module, tmp_path / "m.onnx")
        assert json.loads(program.model.metadata_props["diffgradcam"]) == {"explains": module.explains}
        with pytest.raises(TypeError, match=r"facts hold what JSON cannot \(.*\); expected texts, numbers, lists"):
            write_onnx(module, tmp_path / "m.onnx", facts={"a": {1}})

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (
                "x\nNo decompositions for <OpOverload(op='aten.a', overload='b')>",
                "ONNX has no operator for aten.a; run",
            ),
            ("one\n\nthe last line\n", "cannot be an ONNX file: the last line; run the module itself"),
        ],
    )
    def test_what_the_exporter_refuses(self, monkeypatch, tmp_path, text, told):
        pytest.importorskip("onnxscript", reason="ONNX files need the extra onnx")

        def fail(*_, **__):
            raise torch.onnx.OnnxExporterError(text)

        monkeypatch.setattr(torch.onnx, "export", fail)
        with pytest.raises(RuntimeError, match=told):
            write_onnx(with_maps(GradCAM(models.pooled(), "relu"), IMAGES), tmp_path / "m.onnx")
        assert not os.listdir(tmp_path)

    def test_options_go_to_the_runtime(self, monkeypatch, tmp_path):
        runtime, seen = pytest.importorskip("onnxruntime"), []

        def session(_, **options):
            seen.append(options)
            raise RuntimeError("no  session\nhere")

        monkeypatch.setattr(runtime, "InferenceSession", session)
        (tmp_path / "m.onnx").write_bytes(b"")
        for options in ({}, {"providers": ["Other"]}):
            with pytest.raises(ValueError, match=r"m\.onnx cannot be read as an ONNX model: no session here"):
                OnnxExplainer(tmp_path / "m.onnx", **options)
        assert seen == [{"providers": ["CPUExecutionProvider"]}, {"providers": ["Other"]}]
        (tmp_path / "m.onnx.sha256").write_bytes(b"")
        with pytest.raises(ValueError, match=r"but m\.onnx\.sha256 says nothing; export the model again"):
            OnnxExplainer(tmp_path / "m.onnx")


class TestModule:
    def test_the_model_is_left_as_it_was_and_its_weights_are_shared(self):
        model = models.two_sizes()
        before = untouched.state(model)
        module = with_maps(DiffGradCAM(model, "relu"), IMAGES)
        assert untouched.same(before, untouched.state(model))
        named = dict(module.named_parameters())
        for name, weight in model.named_parameters():
            own = named[f"computation.model.{name}"]
            assert own.data_ptr() == weight.data_ptr()
            assert not own.requires_grad
        assert "DiffGradCAM(Sequential" in repr(module)

    def test_exported_and_compiled_without_a_break(self):
        cam = DiffGradCAM(models.two_sizes(), "relu")
        module = with_maps(cam, IMAGES, "top2")
        batch = {"images": {0: torch.export.Dim("batch")}}
        same(torch.export.export(module, (IMAGES,), dynamic_shapes=batch).module(), cam, OTHERS, "top2")
        same(torch.compile(module, fullgraph=True, backend="aot_eager"), cam, OTHERS, "top2")


def small(seed=0):
    """Convolution, normalisation and pooling below and above the layer, float32."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    above = [nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*layers, *above, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A CAM of a small model and the ONNX file of both, which takes seconds to make."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX files need the extra onnx")
    cam = DiffGradCAM(small(), "3")
    file = tmp_path_factory.mktemp("onnx") / "small.onnx"
    digest = write_onnx(with_maps(cam, torch.rand(1, 3, 16, 16), "top2"), file, class_names=list("abcde"))
    return cam, file, digest


class TestOnnx:
    def test_onnx_runtime_gives_the_same(self, exported):
        cam, file, _ = exported
        explainer = OnnxExplainer(file)
        for count in (1, 4):
            images = torch.rand(count, 3, 16, 16)
            for one, other in zip(explainer.explain(images), cam.explain(images, "top2"), strict=True):
                close(one, other)

    def test_the_file_says_what_it_is(self, exported):
        _, file, digest = exported
        explainer = OnnxExplainer(file)
        assert explainer.class_names == dict(enumerate("abcde"))
        assert explainer.size == (3, 16, 16)
        assert explainer.facts["explains"].startswith("DiffGradCAM(Sequential, ['3']")
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
        assert file.with_name("small.onnx.sha256").read_text() == f"{digest}  small.onnx\n"

    def test_a_changed_file_is_refused(self, exported, tmp_path):
        _, file, digest = exported
        changed = tmp_path / file.name
        changed.write_bytes(file.read_bytes() + b"\0")
        (tmp_path / "small.onnx.sha256").write_text(f"{digest}  small.onnx\n")
        with pytest.raises(ValueError, match=f"is not what was exported: .* says {digest}; export the model again"):
            OnnxExplainer(changed)

    def test_what_is_no_model_with_maps_is_refused(self, exported, tmp_path):
        onnx = pytest.importorskip("onnx")
        proto = onnx.load(exported[1])
        del proto.graph.output[2]
        onnx.save(proto, tmp_path / "plain.onnx")
        (tmp_path / "no.onnx").write_bytes(b"no model")
        with pytest.raises(ValueError, match="has no maps; expected a file of write_onnx"):
            OnnxExplainer(tmp_path / "plain.onnx")
        with pytest.raises(ValueError, match="cannot be read as an ONNX model"):
            OnnxExplainer(tmp_path / "no.onnx")
        with pytest.raises(ValueError, match="there is no file"):
            OnnxExplainer(tmp_path / "none.onnx")

    def test_images_of_another_size(self, exported):
        with pytest.raises(ValueError, match=r"expected \(B, 3, 16, 16\), the size that the file was made for"):
            OnnxExplainer(exported[1]).explain(torch.rand(1, 3, 8, 8))

    def test_what_onnx_has_no_operator_for(self, exported, tmp_path):  # noqa: ARG002
        module = with_maps(EigenCAM(small(), "3"), torch.rand(1, 3, 16, 16))
        with pytest.raises(RuntimeError, match=r"ONNX has no operator for aten\._linalg_eigh"):
            write_onnx(module, tmp_path / "eigen.onnx")
        assert not os.listdir(tmp_path)
        with pytest.raises(TypeError, match=r"module is Sequential; expected what with_maps\(\) returned"):
            write_onnx(small(), tmp_path / "small.onnx")

    def test_int8_keeps_the_map(self, exported, photos, tmp_path):  # noqa: ARG002
        from benchmarks.exported import quantized

        cam, file, _ = exported
        images = torch.rand(16, 3, 16, 16)
        quantized(file, tmp_path / "int8.onnx", images)
        logits, classes, maps = OnnxExplainer(tmp_path / "int8.onnx").explain(images)
        expected = cam.explain(images, classes)
        assert float((logits - expected.logits).abs().max()) < 0.05
        assert float(pearson(maps.flatten(0, 1), expected.maps.flatten(0, 1)).median()) > 0.95


class TestCommand:
    def test_from_a_model_to_a_map_without_it(self, exported, tmp_path):  # noqa: ARG002
        (tmp_path / "model.py").write_text(FACTORY)
        image = tmp_path / "a.png"
        noise()[0].save(image)
        model, file = f"{tmp_path / 'model.py'}:make", tmp_path / "model.onnx"
        made = run_json("export", model, *SMALL, "--classes", "1,2", "--out", file)
        assert made["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        ours = run_json("explain", image, "--model", model, *SMALL, "--class", 1, "--class", 2, "--out", tmp_path / "a")
        (tmp_path / "model.py").unlink()
        theirs = run_json("explain", image, "--onnx", file, "--out", tmp_path / "b")
        for one, other in zip(ours["images"][0]["explanations"], theirs["images"][0]["explanations"], strict=True):
            assert (one["class"], one["method"]) == (other["class"], other["method"])
            assert other["entropy"] == pytest.approx(one["entropy"], abs=1e-4)
            assert other["probability"] == pytest.approx(one["probability"], abs=1e-5)
        assert len(list((tmp_path / "b").glob("a.png.DiffGradCAM.*.png"))) == 2
        refused = run("explain", image, "--onnx", file, "--method", "GradCAM")
        assert refused.exit_code == 2
        assert "--onnx and --method are both given" in refused.stderr

    def test_a_file_of_something_else(self, exported, tmp_path):
        noise()[0].save(tmp_path / "a.png")
        refused = run("explain", tmp_path / "a.png", "--onnx", exported[1])
        assert refused.exit_code == 1
        assert "does not say how its images are prepared" in refused.stderr

    def test_classes_that_are_none(self, tmp_path):
        refused = run("export", "lite0", "--classes", "best", "--out", tmp_path / "a.onnx")
        assert refused.exit_code == 2
        assert "expected argmax, all, top5" in refused.stderr


def test_the_facts_are_json(exported):
    explainer = OnnxExplainer(exported[1])
    assert json.loads(json.dumps(explainer.facts)) == explainer.facts
    assert issubclass(ModelWithMaps, nn.Module)
