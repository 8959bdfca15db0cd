"""The page for users of pytorch-grad-cam names everything it has, and what the page calls same or better is here."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import diffgradcam

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


def test_every_public_name_of_pytorch_grad_cam_is_on_the_page() -> None:
    spec = importlib.util.find_spec("pytorch_grad_cam")
    if spec is None or spec.origin is None:
        pytest.skip("pytorch-grad-cam is not installed")
    tree = ast.parse(Path(spec.origin).read_text())
    offered = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert offered, "nothing was found to compare with"
    assert {name for name in offered if not re.search(rf"\b{name}\b", PAGE)} == set()
