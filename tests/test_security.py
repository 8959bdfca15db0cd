"""What SECURITY.md promises: nothing unpickled or run, nothing read outside, nothing huge decoded, all escaped."""

import ast
import json
import os
import socket
import struct
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffgradcam import GradCAM
from diffgradcam._core.image_files import FORMATS, MOST_PIXELS, ImageSizeError, open_image
from diffgradcam.data import SaliencyDataset, explain_dataset, open_explanations
from diffgradcam.sham import border_mask, finetune
from diffgradcam.visualize.report import Heat, Thumbnail, html_report
from tests.conftest import import_peer

click_testing = pytest.importorskip("click.testing", reason="the command needs pip install click")

from diffgradcam.cli import main  # noqa: E402
from diffgradcam.cli._images import BadImage, read_image  # noqa: E402
from diffgradcam.cli._models import load_model  # noqa: E402

PACKAGE = Path(__file__).parent.parent / "diffgradcam"
MODEL = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""
# Every way out of HTML text, an attribute, a script, a template, a formula of Matplotlib, and a line of a terminal.
HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "--><!--",
    "&lt;b&gt;",
    "$\\frac{$",
    "\x1b[2J\x1b]0;owned\x07",
    "invoice\u202egpj.exe",
]


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return f"{file}:make"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments, **options):
    return click_testing.CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, **options)


class TestNothingIsUnpickled:
    @pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"state_dict": {"4.weight": payload}}])
    def test_weights_with_code_in_them_run_on_the_word_trust_alone(self, model, photo, tmp_path, wrap):
        ran, file = tmp_path / "ran", tmp_path / "weights.pt"
        torch.save(wrap(Payload(ran)), file)
        arguments = ["explain", photo, "--model", model, "--weights", file, "--size", 16, "--out", tmp_path / "out"]
        result = run(*arguments)
        assert result.exit_code == 1
        assert "holds more than tensors" in result.stderr
        assert not ran.exists()
        run(*arguments, "--trust")
        assert ran.exists()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ""])
    def test_the_name_of_a_file_opens_no_other_door(self, model, tmp_path, suffix):
        ran, file = tmp_path / "ran", tmp_path / f"weights{suffix}"
        torch.save(Payload(ran), file)
        with pytest.raises(ValueError, match=r"cannot be read:|holds more than tensors"):
            load_model(model, weights=file)
        assert not ran.exists()

    def test_a_checkpoint_of_finetune_is_tensors_alone(self, tmp_path):
        ran, file = tmp_path / "ran", tmp_path / "run.pt"
        torch.save({"settings": Payload(ran)}, file)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        options = {"epochs": 1, "preserve": "decisions", "progress": False}
        with pytest.raises(ValueError, match=r"run.pt is not a checkpoint of finetune"):
            finetune(network, [torch.rand(2, 3, 9, 9)], ["1"], border_mask((7, 7), 4), **options, checkpoint=file)
        assert not ran.exists()

    @pytest.mark.parametrize(
        "header",
        [
            b"\xff" * 7 + b"\x7f",  # a header that is said to be huge
            struct.pack("<Q", 2) + b"[]",
            struct.pack("<Q", 74) + b'{"maps":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046]}}',
            b"\x80\x04\x95",  # the start of a pickle
        ],
    )
    def test_a_damaged_safetensors_file_is_refused_at_once(self, model, tmp_path, header):
        pytest.importorskip("safetensors", reason="needs pip install safetensors")
        file = tmp_path / "weights.safetensors"
        file.write_bytes(header)
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"weights.safetensors cannot be read:"):
            load_model(model, weights=file)
        assert time.monotonic() - start < 5

    def test_every_load_of_the_package_says_weights_only(self):
        """What the linter does not see; it sees pickle, eval, exec, subprocess, unsafe YAML and templates."""
        loads = []
        for path in sorted(PACKAGE.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                    words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    loads.append((path.name, words.get("weights_only")))
        assert loads == [("_models.py", "not trust"), ("finetuning.py", "True")]


class TestNothingIsRun:
    def test_a_transformers_folder_cannot_bring_code_along(self, photo, tmp_path, monkeypatch):
        """Also not when somebody types y, which transformers asks for by default."""
        import_peer("torchvision")
        import_peer("transformers")
        folder, ran = tmp_path / "folder", tmp_path / "ran"
        folder.mkdir()
        code = f"import os\nos.mkdir({str(ran)!r})\nclass Config: pass\nclass Model: pass\n"
        (folder / "evil.py").write_text(code)
        auto = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
        (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        result = run("explain", photo, "--model", f"hf:{folder}", "--out", tmp_path / "out", input="y\n" * 9)
        assert result.exit_code == 1
        assert not ran.exists()

    def test_a_transformers_folder_cannot_bring_pickles_along(self, photo, tmp_path):
        import_peer("torchvision")
        import_peer("transformers")
        folder, ran = tmp_path / "folder", tmp_path / "ran"
        folder.mkdir()
        torch.save({"classifier.bias": Payload(ran)}, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
        result = run("explain", photo, "--model", f"hf:{folder}", "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert not ran.exists()

    @pytest.mark.parametrize("suffix", [".py", ".PY", ".py:make:", ".txt:make", ".py:../x"])
    def test_only_a_named_function_of_a_named_file_is_run(self, tmp_path, suffix):
        (tmp_path / "model.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
        with pytest.raises(ValueError, match=r"is not a model|has no"):
            load_model(f"{tmp_path / 'model'}{suffix}")
        assert not (tmp_path / "ran").exists()

    def test_nothing_goes_to_the_network_unasked(self, model, photo, tmp_path, monkeypatch):
        asked = []

        def refuse(*address, **_options):
            asked.append(address)
            raise OSError("no network in this test")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        (tmp_path / "folder").mkdir()
        html = ["--html", tmp_path / "r.html"]
        assert run("explain", photo, "--model", model, "--size", 16, "--out", tmp_path / "out", *html).exit_code == 0
        assert run("layers", "hf:somebody/model").exit_code == 1
        assert run("layers", f"hf:{tmp_path / 'folder'}").exit_code == 1
        import_peer("torchvision.models")
        assert run("layers", "torchvision:resnet18", "--size", 32).exit_code == 0
        import_peer("timm")
        assert run("layers", "timm:resnet10t", "--size", 32).exit_code == 0
        assert run("layers", "timm:hf-hub:somebody/model").exit_code == 1
        assert asked == []

    @pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xd7\xcd\xc6\x9a" * 9])
    def test_formats_that_are_programs_are_no_images(self, tmp_path, content):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(BadImage, match="not an image of a known format"):
            read_image(path)
        with pytest.raises(ValueError, match=r"row 2: 'a.png' cannot be read as an image .*expected BMP, GIF, JPEG"):
            rows(tmp_path, "a.png")


def rows(root, image, saliency=""):
    (root / "data.csv").write_text(f"image,label,saliency\n{image},x,{saliency}\n")
    return SaliencyDataset(root, root / "data.csv")


class TestPathsStayInside:
    @pytest.fixture
    def root(self, tmp_path):
        """A folder with a way out of every kind, beside an image that nobody may see."""
        Image.new("RGB", (4, 4), "red").save(tmp_path / "secret.png")
        root = tmp_path / "root"
        (root / "sub").mkdir(parents=True)
        (tmp_path / "root-of-another").mkdir()
        Image.new("RGB", (4, 4), "red").save(tmp_path / "root-of-another" / "a.png")
        Image.new("RGB", (4, 4), "blue").save(root / "a.png")
        (root / "link.png").symlink_to(tmp_path / "secret.png")
        (root / "relative.png").symlink_to("../secret.png")
        (root / "up").symlink_to("..")
        (root / "circle.png").symlink_to(root / "circle.png")
        (root / "inside.png").symlink_to("a.png")
        os.mkfifo(root / "pipe.png")
        (root / "zero.png").symlink_to("/dev/zero")
        return root

    @pytest.mark.parametrize(
        "name",
        [
            "../secret.png",
            "sub/../../secret.png",
            "./../root/../secret.png",
            "../root-of-another/a.png",  # a name that starts as the root's
            "link.png",
            "relative.png",
            "up/secret.png",
            "zero.png",
            "/etc/hostname",
        ],
    )
    def test_out_of_the_root(self, root, name):
        for given in ((name,), ("a.png", name)):
            with pytest.raises(ValueError, match=r"row 2: .* lies outside of root .*; expected a path below it"):
                rows(root, *given)
        with pytest.raises(ValueError, match="lies outside of root"):
            rows(root, root.parent / "secret.png")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("circle.png", r"row 2: ('circle.png' cannot be a path|no file 'circle.png')"),
            ("pipe.png", r"row 2: no file 'pipe.png'"),
            ("sub", r"row 2: no file 'sub'"),
            ("a" * 5000, r"row 2: 'a+' cannot be a path"),
            ("a.png/b", r"row 2: no file 'a.png/b'"),
            ("~/a.png", r"row 2: no file '~/a.png'"),
            ("$HOME/a.png", r"row 2: no file '\$HOME/a.png'"),
        ],
    )
    def test_paths_to_nothing(self, root, name, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            rows(root, name)

    def test_links_and_dots_that_stay_inside_work(self, root):
        for name in ("a.png", "inside.png", "sub/../a.png", root / "a.png", "up/root/a.png"):
            assert rows(root, name)[0].image[:, 0, 0].tolist() == [0, 0, 1]

    def test_a_root_that_is_a_link_itself(self, root):
        (root.parent / "alias").symlink_to(root)
        assert rows(root.parent / "alias", "a.png")[0].image[:, 0, 0].tolist() == [0, 0, 1]

    def test_a_file_that_became_a_link_later(self, root):
        dataset = rows(root, "a.png")
        (root / "a.png").unlink()
        (root / "a.png").symlink_to(root.parent / "secret.png")
        with pytest.raises(ValueError, match=r"row 2: 'a.png' lies outside of root"):
            dataset[0]

    def test_ids_of_images_name_no_files(self, tmp_path):
        pytest.importorskip("safetensors", reason="needs pip install safetensors")
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        ids, out = ["../../up", "/etc/passwd", "a\0b"], tmp_path / "deep" / "out"
        loader = torch.utils.data.DataLoader(list(torch.rand(3, 3, 8, 8)), batch_size=3)
        maps = explain_dataset(GradCAM(network, "0"), loader, out, ids=ids, progress=False)
        assert list(maps) == ids
        assert sorted(path.name for path in out.iterdir()) == [
            "index.jsonl",
            "maps-000000.safetensors",
            "rows-000000.jsonl",
            "run.json",
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["deep"]

    @pytest.mark.parametrize("shard", ["../../secret", "/etc/passwd", 7])
    def test_a_row_leads_to_no_other_file(self, tmp_path, shard):
        pytest.importorskip("safetensors", reason="needs pip install safetensors")
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        loader = torch.utils.data.DataLoader(list(torch.rand(3, 3, 8, 8)), batch_size=3)
        written = explain_dataset(GradCAM(network, "0"), loader, tmp_path / "out", progress=False)[1]
        lines = tmp_path / "out" / "rows-000000.jsonl"
        changed = [{**json.loads(line), "shard": shard} for line in lines.read_text().splitlines()]
        lines.write_text("".join(json.dumps(row) + "\n" for row in changed))
        assert torch.equal(open_explanations(tmp_path / "out")[1], written)

    def test_what_is_no_regular_file_in_a_folder_of_images_is_passed_over(self, root, model):
        """A pipe would wait for ever, and /dev/zero never end."""
        result = run("explain", root, "--model", model, "--size", 16, "--out", root / "out", "--json")
        failed = {Path(each["image"]).name: each["error"] for each in json.loads(result.stdout)["failed"]}
        assert failed == dict.fromkeys(("circle.png", "pipe.png", "zero.png"), "not a regular file")
        assert not list(root.parent.glob("*.GradCAM.*"))


def png(width, height, data=b""):
    """A PNG that claims a size, with whatever pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


class TestNothingHugeIsDecoded:
    @pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (2**31 - 1, 2**31 - 1), (100_000_001, 1)])
    @pytest.mark.parametrize("limit", [None, Image.MAX_IMAGE_PIXELS], ids=["no limit of Pillow's", "Pillow's limit"])
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_more_pixels_than_allowed(self, tmp_path, monkeypatch, width, height, limit):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        (tmp_path / "bomb.png").write_bytes(png(width, height))
        with pytest.raises(ImageSizeError, match=r"too large: .* pixels"), open_image(tmp_path / "bomb.png"):
            pytest.fail("it was opened")
        with pytest.raises(BadImage, match=r"too large: .* pixels"):
            read_image(tmp_path / "bomb.png")
        with pytest.raises(
            ValueError, match=r"row 2: 'bomb.png' cannot be read as an image \(too large: .*100,000,000"
        ):
            rows(tmp_path, "bomb.png")

    def test_a_file_that_became_a_bomb_later(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        dataset = rows(tmp_path, "a.png")
        (tmp_path / "a.png").write_bytes(png(2**20, 2**20))
        with pytest.raises(ValueError, match=r"row 2: cannot read 'a.png' \(too large: "):
            dataset[0]

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_as_many_pixels_as_allowed(self, tmp_path):
        (tmp_path / "large.png").write_bytes(png(10_000, MOST_PIXELS // 10_000))
        with open_image(tmp_path / "large.png") as image:
            assert image.size == (10_000, 10_000)

    @pytest.mark.parametrize("kind", FORMATS)
    def test_every_format_that_is_promised_is_read(self, tmp_path, kind):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "a", kind)
        assert np.allclose(read_image(tmp_path / "a").image.getpixel((3, 3)), (255, 0, 0), atol=4)
        assert torch.allclose(rows(tmp_path, "a")[0].image[:, 3, 3], torch.tensor([1.0, 0, 0]), atol=0.02)


class Page(HTMLParser):
    """The tags and attribute names of a page, and what its text and attributes say."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *sorted(name for name, _ in attrs)))
        self.said += [value or "" for _, value in attrs]

    def handle_data(self, data):
        self.said.append(data)


class TestEverythingIsEscaped:
    @staticmethod
    def page(text):
        heat = Heat(text, text, np.zeros((2, 2, 3), np.uint8), text)
        thumbnail = Thumbnail(text, np.zeros((8, 8, 3), np.uint8), [heat], [text])
        return html_report(text, [thumbnail], facts={text: text}, failed={text: text})

    @pytest.mark.parametrize("text", HOSTILE)
    def test_nothing_that_is_passed_becomes_markup(self, text):
        hostile, plain = Page(self.page(text)), Page(self.page("plain"))
        assert hostile.tags == plain.tags
        assert [said.replace(text, "plain") for said in hostile.said] == plain.said
        assert sum(said.count(text) for said in hostile.said) == 18

    def test_a_model_with_hostile_names_of_classes(self, photo, tmp_path):
        """Names of classes come from a folder of strangers: into a page, a picture and a terminal."""
        import_peer("torchvision")
        transformers = import_peer("transformers")
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=8, num_labels=len(HOSTILE), id2label=dict(enumerate(HOSTILE)),
        )  # fmt: skip
        folder, html = tmp_path / "vit", tmp_path / "r.html"
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        options = ["--model", f"hf:{folder}", "--out", tmp_path / "out"]
        explained = run("explain", photo, *options, "--top", len(HOSTILE), "--html", html)
        assert explained.exit_code == 0, explained.stderr
        assert "\x1b" not in explained.output
        assert "\\x1b[2J\\x1b]0;owned\\x07 (7)" in explained.stdout
        assert "invoice\\u202egpj.exe" in explained.stdout
        assert [tag for tag, *_ in Page(html.read_text(encoding="utf-8")).tags].count("script") == 1
        methods = ["--method", "GradCAM", "--method", "LayerCAM", "--class", HOSTILE.index("$\\frac{$")]
        compared = run("compare", photo, *options, *methods)
        assert compared.exit_code == 0, compared.stderr

    def test_keys_of_weights_cannot_write_to_the_terminal(self, model, photo, tmp_path):
        torch.save({"\x1b[2J": torch.ones(1)}, tmp_path / "w.pt")
        result = run("explain", photo, "--model", model, "--weights", tmp_path / "w.pt", "--out", tmp_path)
        assert result.exit_code == 1
        assert "\x1b" not in result.output
        assert "\\x1b[2J" in result.stderr


def test_a_checkpoint_of_train_runs_no_file_that_it_names(tmp_path):
    pytest.importorskip("safetensors", reason="checkpoints need the extra store")
    from diffgradcam.training import write_checkpoint

    hoax = tmp_path / "hoax.py"
    hoax.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{MODEL}")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "data.csv").write_text("image,label\na.png,0\na.png,1\n")
    seen = {key: [] for key in ("names", "together", "groups")}
    told = {"layer": "0", "classes": ["0", "1"], "size": [16, 16], "mean": [0.5], "std": [0.5], "seen": seen}
    told["together"] = None
    write_checkpoint(tmp_path / "x.safetensors", {}, {"model": f"{hoax}:make", **told})
    arguments = ["evaluate", str(tmp_path / "x.safetensors"), str(tmp_path / "data.csv")]
    result = click_testing.CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "a file is run only where you name it" in result.stderr
    assert not (tmp_path / "ran").exists()
