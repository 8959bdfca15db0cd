"""The command ``diffgradcam view``."""

from __future__ import annotations

import contextlib
import threading
import webbrowser
from pathlib import Path

import click

from .._core.optional import import_optional
from ._options import IMAGES, place_options
from ._output import Result, result_command
from ._subject import ModelOptions, find_layers_of, say


@click.command(
    epilog="\b\nExamples:\n  diffgradcam view photo.jpg"
    "\n  diffgradcam view photos/ --model torchvision:resnet50 --weights checkpoint.pt"
    "\n  diffgradcam view photos/ --port 8000 --no-browser    # and at your desk: ssh -L 8000:127.0.0.1:8000 SERVER"
)
@click.argument("image", type=IMAGES, metavar="IMAGE|FOLDER")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of this machine (127.0.0.1), which no other machine can reach; 0 for any that is free.",
)
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser, or only print its address.")
@place_options
@result_command
def view(options: ModelOptions, layers: tuple[str, ...], image: Path, port: int, browser: bool) -> Result:
    """Look at images in a browser: maps, logits and the audit of what you choose there.

    You choose an image, one class or two, a layer, a method and a baseline. The page is served to this machine alone,
    at an address with a secret in it, and loads nothing from elsewhere. Ctrl-C ends it.
    """
    for package in ("starlette", "uvicorn"):
        import_optional(package, "diffgradcam view")
    from ._server import serve
    from ._viewer import MOST_IMAGES, Viewer

    loaded = options.load()
    viewer = Viewer.of(loaded, find_layers_of(loaded), layers, image)
    if len(viewer.images) == MOST_IMAGES:
        say(f"showing the first {MOST_IMAGES} images; name a smaller folder to see others")
    addresses = []

    def ready(address: str) -> None:
        addresses.append(address)
        say(f"{address}\nCtrl-C ends it")
        if browser:  # beside this thread, for it may wait for the page
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    with contextlib.suppress(KeyboardInterrupt):
        serve(viewer, port, ready)
    return Result({"model": loaded.name, "images": len(viewer.images), "address": addresses[0]}, "ended")
