"""The page for users of pytorch-grad-cam names everything it has, and what the page calls same or better is here."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import diffgradcam
from tests.conftest import import_peer

PAGE = (Path(__file__).parent.parent / "docs" / "from_pytorch_grad_cam.md").read_text()
ROWS = [line.split("|")[1:4] for line in PAGE.split("## Every name")[1].splitlines() if line.startswith("| `")]


def named(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


@pytest.mark.parametrize("names", [names for names, what, _ in ROWS if what.strip() in ("same", "better")])
def test_what_is_the_same_is_at_the_same_path(names: str) -> None:
    folder = ""
    for name in named(names):
        *parents, last = name.split(".")
        folder = ".".join(parents) or folder
        module = importlib.import_module(f"diffgradcam.{folder}") if folder else diffgradcam
        assert callable(getattr(module, last)), name


@pytest.mark.parametrize("replacement", [text for _, what, text in ROWS if what.strip() == "renamed"])
def test_what_is_renamed_is_where_the_page_says(replacement: str) -> None:
    places = [name for name in named(replacement) if name not in ("weighting",)]
    for place in places:
        *parents, last = place.removeprefix("diffgradcam.").split(".")
        found = any(hasattr(module, last) for module in _modules(".".join(parents)))
        assert found, place


def _modules(path: str) -> list[object]:
    if path:
        return [importlib.import_module(f"diffgradcam.{path}")]
    return [importlib.import_module(f"diffgradcam{name}") for name in ("", ".heatmaps", ".metrics")]


def public_names(peer: str) -> list[tuple[str, str]]:
    """``(path below the package, name)`` of all that a library defines and does not mark private."""
    package = import_peer(peer)
    found = []
    for info in pkgutil.walk_packages(package.__path__, f"{peer}."):
        path = info.name.removeprefix(f"{peer}.")
        if any(part.startswith("_") for part in path.split(".")):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == info.name:
                found.append((path, name))
    return found


def importable(path: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(f"diffgradcam.{path}"), name)
    except ModuleNotFoundError:
        return False


def test_every_public_name_of_pytorch_grad_cam_is_here_or_on_the_page() -> None:
    offered = public_names("pytorch_grad_cam")
    assert len(offered) > 60
    listed = {name for cell, _, _ in ROWS for each in named(cell) for name in each.split(".")}
    assert [each for each in offered if not importable(*each) and each[1] not in listed] == []


def test_the_page_lists_nothing_that_pytorch_grad_cam_has_not() -> None:
    offered = {part for path, name in public_names("pytorch_grad_cam") for part in (*path.split("."), name)}
    methods = {"forward", "get_cam_weights", "get_cam_image", "aggregate_multi_layers"}
    listed = {each.split(".")[-1] for cell, _, _ in ROWS for each in named(cell)}
    assert listed - offered - methods == set()
