"""The local page of ``view``: a small application of Starlette, and what keeps others away from it.

There is one model, so explanations are made one after the other, and in the main thread, which can be interrupted; the
server has a thread of its own. It has no state that a request could change. Other programs and other pages reach a
local port too, so every address begins with a secret.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import queue
import re
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..visualize.pages import render
from ._images import BadImage
from ._methods import contrastive_names, method_names
from ._options import BASELINES
from ._output import EXPECTED
from ._viewer import MOST_IMAGES, Viewer

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")  # what this machine calls itself; any other is that of a page that points its name here
_OURS = re.compile(rf"({'|'.join(map(re.escape, _NAMES))})(:[0-9]+)?", re.IGNORECASE)
_PATIENCE = 0.2  # seconds after which to ask whether somebody still waits
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Dropped(Exception):
    """Nobody waits for an explanation any more."""


class Desk:
    """Where explanations are made: the main thread, while it is in :meth:`run`."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._dropping = False

    def run(self, going_on: Callable[[], bool]) -> None:
        """Do what is handed over.

        Args:
            going_on: Asked once a second, and after each job.
        """
        while going_on():
            try:
                with contextlib.suppress(queue.Empty):
                    self._jobs.get(timeout=1)()
            except KeyboardInterrupt:
                if not self._dropping:
                    raise
                self._dropping = False

    def hand_over(self, work: Callable[[], Any]) -> Future[Any]:
        """Have something done.

        Args:
            work: What to do.

        Returns:
            What it returns or raises; :class:`Dropped` if it was interrupted.
        """
        future: Future[Any] = Future()

        def job() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # raised where it is waited for
                future.set_exception(error)
            except KeyboardInterrupt:
                if not future.done():
                    future.set_exception(Dropped())
                raise

        self._jobs.put(job)
        return future

    def drop(self) -> None:
        """Interrupt what is being done, as Ctrl-C would."""
        self._dropping = True
        _thread.interrupt_main()


def make_app(viewer: Viewer, secret: str, desk: Desk) -> ASGIApp:
    """The application.

    Args:
        viewer: What is shown.
        secret: The first part of every address.
        desk: Where explanations are made.

    Returns:
        It answers ``GET /SECRET/``, and ``look`` and ``thumbnail`` below it.
    """
    turn = anyio.Lock()

    async def page(_request: Request) -> Response:
        nonce = secrets.token_urlsafe()
        policy = {"Content-Security-Policy": _POLICY.format(nonce=nonce)}
        return await _answer(
            run_in_threadpool(render, "view.html", nonce=nonce, **_about(viewer)),
            lambda text: HTMLResponse(text, headers=policy),
        )

    async def look(request: Request) -> Response:
        def explain() -> str:
            choice = viewer.choose(request.query_params)
            return render("look.html", look=viewer.look(choice))

        async with turn:
            if await request.is_disconnected():  # something else was chosen while this waited
                return Response(status_code=204)
            explained = asyncio.wrap_future(desk.hand_over(explain))
            while not (await asyncio.wait([explained], timeout=_PATIENCE))[0]:
                if await request.is_disconnected():
                    desk.drop()
                    await asyncio.wait([explained])
            return await _answer(explained, HTMLResponse)

    async def thumbnail(request: Request) -> Response:
        def picture() -> bytes:
            return viewer.thumbnail(viewer.choose(request.query_params).image)

        return await _answer(run_in_threadpool(picture), lambda data: Response(data, media_type="image/jpeg"))

    routes = [Route("/", page), Route("/look", look), Route("/thumbnail", thumbnail)]
    return _Guard(Starlette(routes=[Mount(f"/{secret}", routes=routes)]))


def serve(viewer: Viewer, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page on this machine alone, until it is interrupted.

    Args:
        viewer: What is shown.
        port: Of this machine; 0 for any that is free.
        ready: Called with the address of the page, once connections are accepted.

    Raises:
        OSError: If the port is taken.
    """
    secret, desk = secrets.token_urlsafe(16), Desk()
    config = uvicorn.Config(
        make_app(viewer, secret, desk),
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    with socket.create_server((HOST, port)) as listening:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            ready(f"http://{HOST}:{listening.getsockname()[1]}/{secret}/")
            desk.run(thread.is_alive)
        finally:
            server.should_exit = True
            thread.join()


class _Control(NamedTuple):
    """A drop-down list.

    Attributes:
        label: What people read.
        name: Of the word in a request.
        options: What is sent and what is read of each.
        chosen: What is sent at first.
    """

    label: str
    name: str
    options: list[tuple[str, str]]
    chosen: str


def _about(viewer: Viewer) -> dict[str, Any]:
    """What the page shows before anything is explained."""
    first = viewer.choose({})
    subject = viewer.subject(first.layer)
    classes = [(str(index), subject.label(index)) for index in range(viewer.classes)]

    def control(label: str, name: str, words: Iterable[str]) -> _Control:
        return _Control(label, name, [(word, word) for word in words], getattr(first, name))

    return {
        "title": "diffgradcam view",
        "model": viewer.loaded.name,
        "untrained": viewer.loaded.untrained,
        "images": [path.name for path in viewer.images],
        "full": len(viewer.images) == MOST_IMAGES,
        "controls": [
            control("Method", "method", method_names()),
            control("Baseline", "baseline", BASELINES),
            control("Layer", "layer", viewer.layers),
            _Control("Class", "class", [("", "the decision"), *classes], ""),
            _Control("Compare with", "other", [("", "no other class"), *classes], ""),
        ],
        "contrastive": contrastive_names(),
    }


async def _answer(work: Awaitable[Any], respond: Callable[[Any], Response]) -> Response:
    """Wait for work; what it raises becomes an answer in words."""
    try:
        return respond(await work)
    except Dropped:
        return Response(status_code=204)
    except (BadImage, *EXPECTED) as error:
        return PlainTextResponse(str(error) or type(error).__name__, 400)
    except Exception as error:  # a bug; the page says so, and the next choice is answered
        traceback.print_exc(file=sys.stderr)
        return PlainTextResponse(f"unexpected {type(error).__name__}: {error}", 500)


class _Guard:
    """Refuses what other pages ask for in a browser, and adds headers that keep the answers from them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            await send(message)

        refusal = _refusal(Headers(scope=scope))
        answer = self.app if refusal is None else PlainTextResponse(refusal, 403)
        await answer(scope, receive, guarded)


def _refusal(headers: Headers) -> str | None:
    """Why a request is refused, or None."""
    host = headers.get("host", "")
    if not _OURS.fullmatch(host):
        return f"this page is at {' or '.join(_NAMES)}, and nowhere else"
    # Browsers say who asks: old ones, where it is a script of another page; others, always. A link to the page may be
    # followed; anything else is asked by the page itself.
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return "asked by another page"
    opened = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opened:
        return "asked by another page"
    return None
