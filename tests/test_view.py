"""The live page: what it shows is what the library computes, and nobody but its user gets anything from it."""

import contextlib
import copy
import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from diffgradcam import DiffGradCAM, EigenCAM, GradCAM, audit
from diffgradcam._core.class_names import ClassNames
from diffgradcam.scores import LogitDifference

pytest.importorskip("click", reason="the command needs pip install click")

from diffgradcam.cli._images import BadImage, Preparation
from diffgradcam.cli._models import load_model
from diffgradcam.cli._pictures import heat_picture, signed_picture
from diffgradcam.cli._subject import ModelOptions, find_layers_of
from diffgradcam.cli._viewer import MOST_IMAGES, Viewer

MODEL = """
import torch
from torch import nn
def make():
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
def one_output():
    return nn.Sequential(*make()[:-1], nn.Linear(16, 1))
"""
HOSTILE = "\"><img src=x onerror=alert(1)>'.png"
SECRET = "s3cret"


def picture(seed, size=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "model.py"
    file.write_text(MODEL)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, in this order, beside one that nobody may see."""
    root = tmp_path_factory.mktemp("outside") / "photos"
    root.mkdir()
    picture(9).save(root.parent / "secret.png")
    for number, name in enumerate([HOSTILE, "a.png", "b.png"]):
        picture(number).save(root / name)
    return root


def open_viewer(module, path, factory="make", layers=()):
    options = ModelOptions(f"{module}:{factory}", False, None, False, 32, None, None, "cpu")
    loaded = options.load()
    return Viewer.of(loaded, find_layers_of(loaded), layers, path)


@pytest.fixture(scope="module")
def viewer(module, folder):
    return open_viewer(module, folder)


@pytest.fixture(scope="module")
def network(module):
    return load_model(f"{module}:make").model


def inputs(folder, name):
    preparation = Preparation(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0)
    return preparation.tensor(Image.open(folder / name)).unsqueeze(0)


def pictures(panels):
    return [panel.heat.picture for panel in panels]


class TestLook:
    def test_nothing_chosen_is_the_decision_by_the_default(self, viewer, network, folder):
        look = viewer.look(viewer.choose({}))
        logits, classes, maps = DiffGradCAM(network, "3").explain(inputs(folder, HOSTILE))
        assert look.item.path.name == HOSTILE
        assert (look.explained, look.other) == (int(classes), None)
        (panel,) = look.maps
        assert np.array_equal(panel.heat.picture, heat_picture(maps[0]))
        assert panel.heat.method == "DiffGradCAM, baseline logsumexp"
        assert [each["logit"] for each in look.classes] == pytest.approx(sorted(logits[0].tolist(), reverse=True))
        assert sum(each["probability"] for each in look.classes) == pytest.approx(1)

    def test_what_is_chosen_is_what_is_explained(self, viewer, network, folder):
        words = {"image": "1", "class": "2", "layer": "1", "method": "DiffGradCAM", "baseline": "mean"}
        look = viewer.look(viewer.choose(words))
        maps = DiffGradCAM(network, "1", baseline="mean").explain(inputs(folder, "a.png"), 2).maps
        assert np.array_equal(look.maps[0].heat.picture, heat_picture(maps[0]))
        assert look.maps[0].heat.caption == f"class 2, {look_probability(look, 2):.1%}"

    def test_two_classes_and_what_tells_them_apart(self, viewer, network, folder):
        look = viewer.look(viewer.choose({"image": "2", "class": "1", "other": "3", "method": "GradCAM"}))
        images = inputs(folder, "b.png")
        both = GradCAM(network, "3").explain(images, torch.tensor([[1, 3]])).maps[0]
        apart = GradCAM(network, "3", score=LogitDifference(3), rectify=False).explain(images, 1).maps[0]
        wanted = [*map(heat_picture, both), signed_picture(apart, float(apart.abs().max()))]
        for found, expected in zip(pictures(look.maps), wanted, strict=True):
            assert np.abs(found.astype(int) - expected).max() <= 1  # a difference of maps, or the map of a difference
        assert look.maps[2].ends == ("class 3", "class 1")

    def test_a_method_without_a_score_has_nothing_to_compare(self, viewer, network, folder):
        look = viewer.look(viewer.choose({"other": "3", "class": "0", "method": "EigenCAM"}))
        first, second = look.maps
        assert np.array_equal(
            first.heat.picture, heat_picture(EigenCAM(network, "3").explain(inputs(folder, HOSTILE)).maps[0])
        )
        assert list(second.notes) == ["EigenCAM shows the same map for every class, so there is nothing to compare"]

    def test_the_audit_is_that_of_the_library(self, viewer, network, folder):
        look = viewer.look(viewer.choose({"image": "1"}))
        report = audit(network, "3", inputs(folder, "a.png"), progress=False)
        limit = float(torch.stack([report.visible, report.invisible]).abs().max())
        for found, values in zip(pictures(look.audit), (report.visible, report.invisible), strict=True):
            assert np.array_equal(found, signed_picture(values[0], limit))
        assert f" is {100 * float(report.common_mode_share[0]):.2g}% of the energy " in look.verdict

    def test_a_model_that_cannot_be_audited_is_explained_all_the_same(self, module, folder):
        viewer = open_viewer(module, folder, "one_output")
        look = viewer.look(viewer.choose({"method": "GradCAM"}))
        assert look.audit == []
        assert look.verdict.startswith("Not audited: the model's output has shape (1, 1); expected the logits of a")
        assert len(look.maps) == 1

    def test_several_layers_are_one_choice_that_comes_first(self, module, folder, network):
        viewer = open_viewer(module, folder, layers=("1", "input:2"))
        assert list(viewer.layers)[:2] == ["1, input:2", "3"]
        look = viewer.look(viewer.choose({"method": "GradCAM"}))
        maps = GradCAM(network, "1").explain(inputs(folder, HOSTILE)).maps  # both are the same activations
        assert np.abs(look.maps[0].heat.picture.astype(int) - heat_picture(maps[0])).max() <= 1

    def test_the_model_is_left_as_it_is(self, viewer):
        model = viewer.loaded.model
        before = copy.deepcopy(model.state_dict())
        for words in ({}, {"class": "0", "other": "1"}, {"method": "ScoreCAM"}, {"class": "2", "other": "2"}):
            with contextlib.suppress(ValueError):
                viewer.look(viewer.choose(words))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ({"image": "3"}, "image is '3'; expected a number from 0 to 2"),
            ({"image": "-1"}, "image is '-1'; expected a number from 0 to 2"),
            ({"image": "../secret.png"}, r"image is '../secret.png'; expected a number"),
            ({"image": "\x1b[2J"}, r"image is '\\\\x1b\[2J'; expected a number"),
            ({"image": "9" * 5000}, "image is '9+'; expected a number"),
            ({"image": "²"}, "image is '²'; expected a number"),
            ({"class": "4"}, "class is '4'; expected a number from 0 to 3"),
            ({"other": "x"}, "other is 'x'; expected a number from 0 to 3"),
            ({"layer": "4"}, "layer is '4'; expected one of 3, 2, 1, 0"),
            ({"method": "GradCam"}, "method is 'GradCam'; expected one of DiffGradCAM, "),
            ({"baseline": "3"}, "baseline is '3'; expected one of logsumexp, max, mean"),
        ],
    )
    def test_a_choice_that_is_none(self, viewer, words, message):
        with pytest.raises(ValueError, match=message):
            viewer.choose(words)

    def test_a_class_against_itself(self, viewer):
        with pytest.raises(ValueError, match="class 2 would be contrasted with itself; explain another class"):
            viewer.look(viewer.choose({"class": "2", "other": "2"}))

    def test_a_large_folder_is_cut(self, module, folder, monkeypatch):
        monkeypatch.setattr("diffgradcam.cli._viewer.MOST_IMAGES", 2)
        assert MOST_IMAGES == 1000
        assert [path.name for path in open_viewer(module, folder).images] == [HOSTILE, "a.png"]


def look_probability(look, index):
    (probability,) = [each["probability"] for each in look.classes if each["class"] == index]
    return probability


class TestTheFolder:
    @pytest.fixture
    def root(self, tmp_path):
        picture(9).save(tmp_path / "secret.png")
        root = tmp_path / "photos"
        root.mkdir()
        picture(0).save(root / "a.png")
        return root

    @pytest.mark.parametrize("target", ["../secret.png", "/etc/hostname", "/dev/zero", "up/secret.png", "link.png"])
    def test_a_link_that_leads_out_is_refused(self, module, root, target):
        (root / "up").symlink_to("..")
        (root / "link.png").symlink_to(target)
        viewer = open_viewer(module, root)
        for ask in (viewer.read, viewer.thumbnail):
            with pytest.raises(BadImage, match=r"link.png: (a link that leads out of the folder|not a regular file)"):
                ask(1)

    def test_a_file_that_becomes_a_link_later(self, module, root):
        viewer = open_viewer(module, root)
        viewer.read(0)
        (root / "a.png").unlink()
        (root / "a.png").symlink_to("../secret.png")
        with pytest.raises(BadImage, match=r"a\.png: a link that leads out of the folder; expected a file in it"):
            viewer.look(viewer.choose({}))

    def test_a_link_that_stays_inside_and_a_folder_that_is_a_link(self, module, root):
        (root / "b.png").symlink_to("a.png")
        (root.parent / "alias").symlink_to(root)
        first, second = map(open_viewer(module, root.parent / "alias").read, (0, 1))
        assert first.picture.image.tobytes() == second.picture.image.tobytes()

    def test_an_image_that_was_named_may_be_a_link(self, module, root):
        (root / "b.png").symlink_to("../secret.png")
        viewer = open_viewer(module, root / "b.png")
        assert viewer.read(0).picture.image.tobytes() == picture(9).tobytes()

    def test_broken_and_odd_files_are_named(self, module, root):
        (root / "b.png").write_bytes(b"\x89PNG no more")
        os.mkfifo(root / "c.png")
        viewer = open_viewer(module, root)
        for index, message in ((1, "b.png: not an image of a known format"), (2, "c.png: not a regular file")):
            with pytest.raises(BadImage, match=message):
                viewer.look(viewer.choose({"image": str(index)}))


@contextlib.contextmanager
def served(viewer, desk=None):
    """The port of a server in a thread, with a desk in another, where none is given."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra view")
    from diffgradcam.cli._server import HOST, Desk, make_app

    own = desk or Desk()
    if desk is None:
        own.drop = lambda: None  # the main thread is that of the tests
    app = make_app(viewer, SECRET, own)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    with socket.create_server((HOST, 0)) as listening:
        threads = [threading.Thread(target=server.run, args=([listening],))]
        threads += [] if desk else [threading.Thread(target=own.run, args=(lambda: not server.should_exit,))]
        for thread in threads:
            thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def port(viewer):
    with served(viewer) as number:
        yield number


class Answer:
    def __init__(self, port, path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest(method, path, skip_host="Host" in headers)  # as it is, dots and all
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        self.status, self.headers, self.body = response.status, response.headers, response.read()
        self.text = self.body.decode("utf-8", "replace")
        connection.close()


class TestServer:
    def test_the_page_offers_what_there_is_and_escapes_it(self, port):
        page = Answer(port, f"/{SECRET}/")
        assert page.status == 200
        assert '<option value="DiffGradCAM" selected>' in page.text
        assert "<img src=x" not in page.text
        assert "&lt;img src=x onerror=alert(1)&gt;" in page.text
        assert page.text.count('type="radio"') == 3

    def test_a_look_has_the_pictures_inside(self, port):
        look = Answer(port, f"/{SECRET}/look?image=1&class=2&other=0")
        assert look.status == 200
        assert len(re.findall(r'src="data:image/png;base64,', look.text)) == 5
        assert "what tells class 2 from class 0" in look.text
        assert "<img src=x" not in Answer(port, f"/{SECRET}/look").text

    def test_names_of_classes_are_escaped_too(self, viewer):
        names = ["</option><script>alert(1)</script>", HOSTILE, "{{ 7 * 7 }}", "d"]
        named = replace(viewer.loaded, class_names=ClassNames(names))
        with served(replace(viewer, loaded=named)) as port:
            page, look = (Answer(port, f"/{SECRET}/{path}").text for path in ("", "look?class=0&other=1"))
        for text, scripts in ((page, 1), (look, 0)):
            assert text.count("<script") == scripts
            assert "<img src=x" not in text
            assert "{{ 7 * 7 }}" in text

    def test_a_thumbnail_is_a_picture(self, port):
        answer = Answer(port, f"/{SECRET}/thumbnail?image=1")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
        assert Image.open(io.BytesIO(answer.body)).size == (96, 96)

    @pytest.mark.parametrize("path", ["look?image=7", "thumbnail?image=7", "look?method=x", "look?class=1&other=1"])
    def test_an_error_is_told_in_words(self, port, path):
        answer = Answer(port, f"/{SECRET}/{path}")
        assert answer.status == 400
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert re.search("expected (a number|one of)|contrasted with itself", answer.text)

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/look",
            "/thumbnail?image=0",
            "/wrong/",
            f"/{SECRET}x/",
            f"/{SECRET}/../secret.png",
            f"/{SECRET}/../../etc/hostname",
            f"/{SECRET}/%2e%2e/%2e%2e/etc/hostname",
            f"/{SECRET}/..%2f..%2fsecret.png",
            f"/{SECRET}/%252e%252e/secret.png",
            f"/{SECRET}/..\\secret.png",
            f"/{SECRET}/thumbnail/../secret.png",
            f"/{SECRET}/a.png",
            f"/{SECRET}/photos/a.png",
            f"/{SECRET}//etc/hostname",
            f"/{SECRET}/file:///etc/hostname",
            "//etc/hostname",
            "/etc/hostname%00.png",
        ],
    )
    def test_no_path_leads_to_a_file(self, port, path):
        answer = Answer(port, path)
        assert (answer.status, answer.text) == (404, "Not Found")

    @pytest.mark.parametrize(
        "image", ["../secret.png", "..%2Fsecret.png", "%2Fetc%2Fhostname", "0%00", "0/../../secret.png"]
    )
    def test_no_name_is_an_image(self, port, image):
        for what in ("look", "thumbnail"):
            answer = Answer(port, f"/{SECRET}/{what}?image={image}")
            assert answer.status == 400
            assert "expected a number from 0 to 2" in answer.text

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[::1", "0.0.0.0", "localhost@evil.example"],
    )
    def test_a_name_that_points_here_from_elsewhere_is_refused(self, port, host):
        """DNS rebinding: a page of evil.example, whose name now is 127.0.0.1, would be of the same origin."""
        for path in ("", "look", "thumbnail"):
            answer = Answer(port, f"/{SECRET}/{path}", Host=host)
            assert answer.status in (400, 403)
            assert "<" not in answer.text

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9000", "LOCALHOST:1"])
    def test_this_machine_has_two_names_and_a_tunnel_any_port(self, port, host):
        assert Answer(port, f"/{SECRET}/", Host=host).status == 200

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_what_another_page_asks_for_is_refused(self, port, site):
        for path, mode, dest in (
            ("look", "cors", "empty"),
            ("thumbnail", "no-cors", "image"),
            ("", "navigate", "iframe"),
        ):
            headers = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
            answer = Answer(port, f"/{SECRET}/{path}", **headers)
            assert (answer.status, answer.text) == (403, "asked by another page")
        followed = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
        assert Answer(port, f"/{SECRET}/", **followed).status == 200

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    def test_a_request_cannot_ask_for_a_change(self, port, method):
        for path in ("", "look", "thumbnail"):
            answer = Answer(port, f"/{SECRET}/{path}", method, Origin="https://evil.example")
            assert (answer.status, answer.text) == (403, "asked by another page")
            assert Answer(port, f"/{SECRET}/{path}", method).status == 405
            assert not any(name.lower().startswith("access-control") for name in answer.headers)

    def test_every_answer_keeps_itself_from_others(self, port):
        for path in (f"/{SECRET}/", f"/{SECRET}/look", f"/{SECRET}/thumbnail", "/wrong", f"/{SECRET}/look?image=9"):
            headers = Answer(port, path).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
            assert "Server" not in headers or headers["Server"] == "uvicorn"
        policies = [Answer(port, f"/{SECRET}/").headers["Content-Security-Policy"] for _ in range(2)]
        assert policies[0] != policies[1]
        assert policies[0].startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policies[0]
        assert "unsafe" not in policies[0]

    def test_the_page_loads_nothing_from_elsewhere(self, port):
        text = Answer(port, f"/{SECRET}/").text + Answer(port, f"/{SECRET}/look").text
        assert not re.search(r"https?://|//[\w.]+\.\w+/|@import|url\(", text)
        assert set(re.findall(r'(?:src|href)="([^"]*?)[":?]', text)) <= {"data", "thumbnail"}


class FakeViewer:
    """Says when explanations overlap."""

    images = (Path("a.png"),)

    def __init__(self):
        self.seen, self.running, self.most = [], 0, 0
        self.started, self.go_on = threading.Event(), threading.Event()

    def choose(self, query):
        return query.get("n")

    def look(self, choice):
        self.seen.append(choice)
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        self.go_on.wait(30)
        self.running -= 1
        raise ValueError(f"looked at {choice}") if choice != "bug" else KeyError("nobody knows")


class TestOneModel:
    def test_explanations_are_made_one_after_the_other(self):
        fake = FakeViewer()
        with served(fake) as port:
            answers = []
            threads = [
                threading.Thread(target=lambda n=n: answers.append(Answer(port, f"/{SECRET}/look?n={n}")))
                for n in range(4)
            ]
            for thread in threads:
                thread.start()
            assert fake.started.wait(30)
            time.sleep(0.2)
            assert len(fake.seen) == 1
            fake.go_on.set()
            for thread in threads:
                thread.join()
        assert sorted(answer.text for answer in answers) == [f"looked at {n}" for n in range(4)]
        assert fake.most == 1

    def test_what_nobody_waits_for_any_more_is_not_explained(self):
        fake = FakeViewer()
        with served(fake) as port:
            first = threading.Thread(target=Answer, args=(port, f"/{SECRET}/look?n=first"))
            first.start()
            assert fake.started.wait(30)
            gone = socket.create_connection(("127.0.0.1", port))
            gone.sendall(f"GET /{SECRET}/look?n=gone HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            time.sleep(0.3)
            gone.close()
            time.sleep(0.3)
            fake.go_on.set()
            first.join()
            assert Answer(port, f"/{SECRET}/look?n=last").text == "looked at last"
        assert fake.seen == ["first", "last"]

    def test_what_nobody_waits_for_any_more_is_interrupted(self):
        """The main thread is the desk here, as it is in the command."""
        pytest.importorskip("uvicorn", reason="needs the extra view")
        from diffgradcam.cli._server import Desk

        class Slow(FakeViewer):
            def look(self, choice):
                self.seen.append(choice)
                self.started.set()
                for _ in range(6000 if choice == "slow" else 0):
                    time.sleep(0.01)
                raise ValueError(f"looked at {choice}")

        slow, desk, answers = Slow(), Desk(), []

        def ask(port):
            gone = socket.create_connection(("127.0.0.1", port))
            gone.sendall(f"GET /{SECRET}/look?n=slow HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            slow.started.wait(30)
            gone.close()
            answers.append(Answer(port, f"/{SECRET}/look?n=next"))

        with served(slow, desk) as port:
            thread = threading.Thread(target=ask, args=(port,))
            thread.start()
            begun = time.monotonic()
            desk.run(thread.is_alive)
        assert [answer.text for answer in answers] == ["looked at next"]
        assert slow.seen == ["slow", "next"]
        assert time.monotonic() - begun < 30

    def test_a_bug_is_told_and_the_next_choice_is_answered(self, capfd):
        fake = FakeViewer()
        fake.go_on.set()
        with served(fake) as port:
            answer = Answer(port, f"/{SECRET}/look?n=bug")
            assert (answer.status, answer.text) == (500, "unexpected KeyError: 'nobody knows'")
            assert Answer(port, f"/{SECRET}/look?n=2").text == "looked at 2"
        assert "KeyError: 'nobody knows'" in capfd.readouterr().err


class TestCommand:
    def test_it_tells_its_address_serves_this_machine_alone_and_ends(self, module, folder):
        pytest.importorskip("uvicorn", reason="needs the extra view")
        command = ["view", folder, "--model", f"{module}:make", "--size", "32", "--no-browser", "--json"]
        with subprocess.Popen(
            [sys.executable, "-m", "diffgradcam.cli", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            lines = iter(process.stderr.readline, "")
            address = urlsplit(next(line for line in lines if line.startswith("http")).strip())
            assert address.hostname == "127.0.0.1"
            assert len(address.path.strip("/")) >= 20
            assert Answer(address.port, address.path).status == 200
            table = Path("/proc/net/tcp")
            if table.exists():
                bound = [row.split()[1] for row in table.read_text().splitlines()[1:]]
                assert f"0100007F:{address.port:04X}" in bound
                assert f"00000000:{address.port:04X}" not in bound
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert address.geturl() in out

    def test_a_port_that_is_taken(self, module, folder):
        pytest.importorskip("uvicorn", reason="needs the extra view")
        testing = pytest.importorskip("click.testing")
        from diffgradcam.cli import main

        with socket.create_server(("127.0.0.1", 0)) as other:
            arguments = [
                folder,
                "--model",
                f"{module}:make",
                "--size",
                32,
                "--port",
                other.getsockname()[1],
                "--no-browser",
            ]
            result = testing.CliRunner().invoke(main, ["view", *map(str, arguments)])
        assert result.exit_code == 1
        assert "in use" in result.stderr

    def test_without_the_packages_it_says_what_to_install(self, module, folder, monkeypatch):
        testing = pytest.importorskip("click.testing")
        from diffgradcam.cli import main

        monkeypatch.setitem(sys.modules, "uvicorn", None)
        result = testing.CliRunner().invoke(main, ["view", str(folder), "--model", f"{module}:make"])
        assert result.exit_code == 1
        assert "diffgradcam view needs uvicorn, which is not installed; pip install uvicorn" in result.stderr


class TestBrowser:
    @pytest.fixture
    def page(self, chromium, port):
        """The page, explained once. Nothing may go wrong in it, and nothing may be loaded from elsewhere."""
        context = chromium.new_context(viewport={"width": 1300, "height": 800})
        page, self.problems, requests = context.new_page(), [], []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("dialog", lambda dialog: (self.problems.append("dialog " + dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        self.address = f"http://127.0.0.1:{port}/{SECRET}/"
        page.goto(self.address)
        self.settle(page)
        yield page
        assert self.problems == []
        assert [url for url in requests if not url.startswith((self.address, "data:"))] == []
        context.close()

    @staticmethod
    def settle(page):
        page.locator("#result[aria-busy=false]").wait_for(state="attached")

    @staticmethod
    def maps(page):
        return page.locator(".maps .heat").evaluate_all("each => each.map(picture => picture.src)")

    def test_a_click_changes_the_map_and_a_second_compares(self, page, viewer):
        before = self.maps(page)
        rows = viewer.look(viewer.choose({})).classes
        (third, fourth) = rows[2]["label"], rows[3]["label"]
        page.get_by_role("button", name=f"Explain {third}").click()
        self.settle(page)
        (after,) = self.maps(page)
        assert [after] != before
        assert page.locator(".maps .heat").get_attribute("alt").endswith(f"{third}, {rows[2]['probability']:.1%}")
        page.get_by_role("button", name=f"Compare with {fourth}").click()
        self.settle(page)
        assert len(self.maps(page)) == 3
        assert page.get_by_role("combobox", name="Compare with", exact=True).input_value() == str(rows[3]["class"])
        page.get_by_role("button", name=f"Compare with {fourth}").click()  # again: no other class
        self.settle(page)
        assert self.maps(page) == [after]

    def test_an_image_a_method_a_layer_by_the_keyboard_alone(self, page):
        def press(element, key):
            element.focus()
            with page.expect_response(lambda response: "look?" in response.url):
                page.keyboard.press(key)
            self.settle(page)
            return self.maps(page)

        seen = [self.maps(page), press(page.get_by_role("radio").first, "ArrowDown")]
        assert page.locator("#status").inner_text().startswith("a.png: class ")
        for control, key in (("Method", "ArrowDown"), ("Layer", "ArrowDown"), ("Class", "End")):
            seen.append(press(page.get_by_role("combobox", name=control, exact=True), key))
        assert len({str(each) for each in seen}) == len(seen)
        press(page.get_by_role("button", name=re.compile("Explain")).nth(1), "Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"  # the focus stays

    def test_everything_has_a_name_for_those_who_listen(self, page):
        names = ["Method", "Baseline", "Layer", "Class", "Compare with"]
        assert [page.get_by_role("combobox", name=name, exact=True).count() for name in names] == [1] * len(names)
        assert page.get_by_role("slider", name=re.compile("Opacity")).count() == 1
        assert page.get_by_role("group", name="Images").get_by_role("radio").count() == 3
        assert page.get_by_role("radio", name="b.png").count() == 1
        assert [page.get_by_role("heading", name=name).count() for name in ("Maps", "Logits", "Audit")] == [1, 1, 1]
        assert page.get_by_role("img", name=HOSTILE).count() == 1
        alts = page.locator(".heat").evaluate_all("each => each.map(picture => picture.alt)")
        assert len(alts) == 3
        assert all(re.search("CAM.*, .", alt) for alt in alts)

    def test_the_address_says_what_was_chosen(self, page):
        page.get_by_role("radio", name="b.png").check(force=True)
        page.get_by_role("combobox", name="Method", exact=True).select_option("GradCAM")
        self.settle(page)
        shown = self.maps(page)
        assert page.get_by_role("combobox", name="Baseline", exact=True).is_disabled()
        page.goto(page.url)
        self.settle(page)
        assert self.maps(page) == shown
        assert page.locator("#status").inner_text().startswith("b.png")

    def test_an_error_is_shown_as_text_and_the_next_choice_works(self, page):
        page.goto(f"{self.address}?class=1&other=1")
        self.settle(page)
        assert "class 1 would be contrasted with itself" in page.get_by_role("alert").inner_text()
        assert self.maps(page) == []
        page.get_by_role("combobox", name="Compare with", exact=True).select_option("0")
        self.settle(page)
        assert page.get_by_role("alert").count() == 0
        assert len(self.maps(page)) == 3
        assert self.problems == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
        self.problems.clear()

    def test_nothing_sticks_out_on_a_narrow_screen(self, page):
        for width in (320, 700, 1000, 1900):
            page.set_viewport_size({"width": width, "height": 700})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
