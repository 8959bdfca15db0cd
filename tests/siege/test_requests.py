"""Any request to the page of ``view``: answered in words or refused; nothing outside is read, and the page stays up."""

from __future__ import annotations

import socket
import threading
from urllib.parse import quote

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("click", reason="the command needs pip install click")
pytest.importorskip("uvicorn", reason="needs the extra view")

from tests.test_view import HOSTILE, SECRET, Answer, folder, module, open_viewer, served, viewer  # noqa: F401

from .watched import nothing_outside


@pytest.fixture(scope="module")
def port(viewer):  # noqa: F811
    with served(viewer) as number:
        yield number


def raw(port, data, patience=30):
    """What the server says to bytes; empty where it hangs up, or waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except (ConnectionError, TimeoutError):
            return b""


def lives(port):
    return Answer(port, f"/{SECRET}/thumbnail?image=1").status == 200


def images_of(viewer):  # noqa: F811
    return [path.read_bytes() for path in viewer.images] + [(viewer.images[0].parents[1] / "secret.png").read_bytes()]


PATHS = st.lists(
    st.sampled_from(
        ["..", ".", "", "%2e%2e", "..%2f", "%00", "\\", "etc", "hostname", "secret.png", "photos", "a.png", "look",
         "thumbnail", SECRET, "file:", "~", ";", "%", "%zz", "é".encode().decode("latin-1"), "a" * 3000, "*"]
    ), max_size=6,
).map("/".join)  # fmt: skip
WORDS = st.sampled_from(
    ["0", "1", "2", "3", "-1", "1e3", "0x1", " 1", "1\0", "../secret.png", "²", "", "9" * 400, "GradCAM", "ScoreCAM",
     "DiffGradCAM", "gradcam", "nobody", "mean", "max", "__class__", "{{7*7}}", "<script>", "\x1b[2J", "\ud800", "💥"]
)  # fmt: skip
NAMES = st.sampled_from(
    ["image", "class", "other", "layer", "method", "baseline", "x", "__proto__", "image[]", "Image"]
)


@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.siege)])
def test_any_path_is_answered_with_what_there_is(port, viewer, examples):  # noqa: F811
    root = viewer.root
    secrets = images_of(viewer)

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(PATHS, st.booleans())
    def check(path, inside):
        line = f"GET {f'/{SECRET}' if inside else ''}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with nothing_outside(root):
            answer = raw(port, line.encode("latin-1"))
        status = int(answer.split(b" ", 2)[1])
        assert status in (200, 307, 400, 404)
        assert not any(secret in answer for secret in secrets)
        if not inside and SECRET not in path:
            assert status in (400, 404)

    check()
    assert lives(port)


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.siege)])
def test_any_choice_is_shown_or_refused_in_words(port, viewer, examples):  # noqa: F811
    root, model = viewer.root, viewer.loaded.model
    before = {name: value.clone() for name, value in model.state_dict().items()}

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.sampled_from(["look", "thumbnail"]), st.lists(st.tuples(NAMES, WORDS), max_size=5))
    def check(what, words):
        query = "&".join(f"{name}={quote(word.encode('utf-8', 'surrogatepass'))}" for name, word in words)
        with nothing_outside(root):
            answer = Answer(port, f"/{SECRET}/{what}?{query}")
        assert answer.status in (200, 400)
        if answer.status == 400:
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert "expected" in answer.text or "contrasted with itself" in answer.text
            assert "\x1b" not in answer.text
        assert "<script>" not in answer.text or answer.status == 400  # which is plain text

    check()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


HOSTS = st.sampled_from(["localhost", "127.0.0.1"]) | st.sampled_from(
    ["evil.example", "localhost.evil.example", "evil@localhost", "localhost@evil", "127.1", "0", "2130706433", "[::1]",
     "[::ffff:127.0.0.1]", "localhost:x", "localhost:80:80", "", " ", "localhost, evil", "localhost/evil", "\xff",
     "a" * 5000, "127.0.0.1%00.evil", "LOCALHOST.", "localhost.", "//localhost"]
)  # fmt: skip
ORIGINS = st.sampled_from([None, "http://localhost", "http://127.0.0.1"]) | st.sampled_from(
    ["null", "https://evil.example", "http://localhost.evil.example", "http://evil@localhost", "", "https://localhost",
     "http://localhost:1", "file://", "\xff"]
)  # fmt: skip


@pytest.mark.parametrize("examples", [100, pytest.param(3000, marks=pytest.mark.siege)])
def test_only_this_machine_by_its_names_and_no_other_page_is_answered(port, examples):
    """Another ``Host`` is that of a page whose name points here now; another ``Origin`` is that of its script."""

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.lists(HOSTS, max_size=2), ORIGINS, st.sampled_from(["", "look", "thumbnail?image=1"]))
    def check(hosts, origin, path):
        lines = [f"GET /{SECRET}/{path} HTTP/1.1", *(f"Host: {host}" for host in hosts), "Connection: close"]
        lines += [] if origin is None else [f"Origin: {origin}"]
        answer = raw(port, "\r\n".join([*lines, "", ""]).encode("latin-1"))
        status = int(answer.split(b" ", 2)[1]) if answer else 0
        ours = hosts in (["localhost"], ["127.0.0.1"]) and origin in (None, f"http://{hosts[0]}")
        if ours:
            assert status == 200
        elif set(hosts) - {"localhost", "127.0.0.1"} or not hosts:
            assert status in (0, 400, 403)
        else:  # two of ours, or another origin
            assert status in (0, 400, 403) or (
                len(hosts) == 2 and origin in (None, "http://localhost", "http://127.0.0.1")
            )

    check()
    assert lives(port)


@pytest.mark.parametrize(
    "method", ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X" * 2000]
)
@pytest.mark.parametrize("path", ["", "look", "thumbnail"])
def test_other_methods_change_nothing(port, method, path):
    body = b"x" * 1000
    head = f"{method} /{SECRET}/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"
    status = int(raw(port, head.encode() + body).split(b" ", 2)[1])
    assert status == 200 if method == "HEAD" else status in (400, 405)
    assert lives(port)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /SECRET/look?image=" + b"9" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /SECRET/look?" + b"a=1&" * 12_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"GET /SECRET/look HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\0" * 10_000,
        b"GET",
        b"",
    ],
    ids=["long path", "long number", "long query", "many headers", "long body", "long chunk", "no host", "TLS", "zeros",
         "cut short", "nothing"],
)  # fmt: skip
def test_what_is_too_long_or_no_request_is_refused(port, data):
    answer = raw(port, data.replace(b"SECRET", SECRET.encode()), patience=0.3)
    assert answer == b"" or answer.split(b" ", 2)[1] in (b"400", b"403", b"404", b"431") or b"a=1&" in data
    assert HOSTILE.encode() not in answer
    assert lives(port)


@pytest.mark.parametrize("requests", [200, pytest.param(4000, marks=pytest.mark.siege)])
def test_many_requests_at_once_are_all_answered(port, requests):
    """Explanations, thumbnails and nonsense, by threads that begin together, beside connections that say nothing."""
    paths = ["look?image=1&method=GradCAM", "thumbnail?image=2", "look?image=99", "nowhere", ""]
    wanted = {paths[0]: 200, paths[1]: 200, paths[2]: 400, paths[3]: 404, paths[4]: 200}
    crowd, found, start = min(requests, 100), [], threading.Barrier(min(requests, 100))

    def ask(number):
        start.wait()
        for each in range(number, requests, crowd):
            path = paths[each % len(paths)]
            found.append((path, Answer(port, f"/{SECRET}/{path}").status))

    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in idle:
        connection.close()
    assert len(found) == requests
    assert all(status == wanted[path] for path, status in found)
    assert lives(port)
