"""The documentation runs as it stands, is complete, leads nowhere wrong, and quotes what was measured."""

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diffgradcam
from benchmarks import device, peers, perturbation, recording
from benchmarks.torchvision_shim import define_missing_operators

from .conftest import import_peer

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("[!_]*.md")])  # those with an underscore are parts of others
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
REFERENCE = sorted((DOCS / "api").glob("*.rst"))


class Classifier(nn.Module):
    """What the blocks of the README call a model: stages with torchvision's names and two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer4(self.conv1(images)).mean((2, 3)))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


# Advice of Lightning's on speed; and a model that is not trained has the common mode of its initialisation.
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers")
@pytest.mark.filterwarnings("ignore:the audit of .* says")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define_missing_operators()  # transformers imports torchvision where it is installed, even if it does not work
    for name in ("transformers", "lightning.pytorch"):
        if any(name in block for block in blocks(page)):
            import_peer(name)
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def run_blocks(page: Path) -> dict[str, Any]:
    """The names that the blocks of a page know in the end."""
    torch.manual_seed(0)
    model = Classifier()
    images, labels, human = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]), torch.rand(4, 32, 32)
    names: dict[str, Any] = {
        "model": model,
        "images": images,
        "labels": labels,
        "human": human,
        "loader": DataLoader(TensorDataset(*(torch.cat([part, part]) for part in (images, labels, human))), 4),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {
        (page.parent / entry).relative_to(DOCS).as_posix()
        for page in DOCS.rglob("[!_]*.md")
        for contents in re.findall(r"^```{toctree}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for entry in contents.split("\n")
        if entry and not entry.startswith(":")
    }
    pages = [page.relative_to(DOCS) for page in [*DOCS.rglob("[!_]*.md"), *NOTEBOOKS, *REFERENCE]]
    assert listed == {page.with_suffix("").as_posix() for page in pages} - {"index"}


def links(page: Path) -> list[str]:
    """Relative targets of links, pictures and included files."""
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += re.findall(r"^```{(?:image|literalinclude|include)} (\S+)", text, re.MULTILINE)
    return [target for target in targets if not target.startswith(("http", "#"))]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    missing = [target for target in links(page) if not _exists(page.parent / target.partition("#")[0])]
    assert not missing


def _exists(path: Path) -> bool:
    # What an example makes is not committed: then the example must be. What docs/conf.py makes is not, either.
    if path.name.startswith("_"):
        return path.name in (DOCS / "conf.py").read_text()
    made = path.parent.resolve() == ROOT / "output"
    return ((ROOT / "examples" / f"{path.stem}.py") if made else path).exists()


def _documented() -> set[str]:
    """Names of all that the API reference shows."""
    names = set()
    for page in REFERENCE:
        current = ""
        for kind, name, options in re.findall(
            r"^\.\. (currentmodule|automodule|auto\w+|click):: (\S+)\n((?:   :.*\n)*)", page.read_text(), re.MULTILINE
        ):
            if kind == "currentmodule":
                current = name
                continue
            if kind != "automodule":
                names.add(name if name.startswith("diffgradcam.") else f"{current}.{name}")
                continue
            names.add(name)
            members = re.search(r":members:(.*)", options)
            if members:
                listed = [each.strip() for each in members[1].split(",") if each.strip()]
                names |= {f"{name}.{each}" for each in listed or _public(name)}
    return names


def _public(module_name: str) -> list[str]:
    module = importlib.import_module(module_name)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def test_the_reference_has_every_public_name() -> None:
    import_peer("lightning.pytorch"), import_peer("transformers")
    documented = _documented()
    objects = [_resolve(name) for name in documented]
    modules = ["diffgradcam", *(found.name for found in pkgutil.walk_packages(diffgradcam.__path__, "diffgradcam."))]
    public = [
        f"{module}.{name}"
        for module in modules
        if not module.endswith("__main__")
        for name in getattr(importlib.import_module(module), "__all__", [])
    ]
    # By name, or by identity: utils.image shows what visualize shows.
    missing = [n for n in public if n not in documented and not any(_resolve(n) is each for each in objects)]
    assert len(public) > 100
    assert not missing


def _resolve(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ImportError:
        module, _, attribute = name.replace(":", ".").rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def test_the_bibliography_has_every_paper_that_a_docstring_names() -> None:
    text = (DOCS / "bibliography.md").read_text()
    named = set()
    for path in (ROOT / "diffgradcam").rglob("*.py"):
        named |= set(re.findall(r"arXiv\s+(\d{4}\.\d{5})", path.read_text()))
    assert len(named) > 10
    assert not [number for number in named if f"https://arxiv.org/abs/{number}" not in text]
    entries = re.findall(r"https://(?:arxiv|doi)\.org/\S+?(?=\))", text)
    assert len(entries) == len(set(entries)), "each paper once"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs_and_parse(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        ast.parse("".join(cell["source"]).removeprefix("%matplotlib inline\n"))


def test_the_pictures_of_the_gallery_are_in_the_repository_at_the_size_of_the_web() -> None:
    shown = [DOCS / target for target in re.findall(r"!\[[^]]+\]\((\S+)\)", (DOCS / "gallery.md").read_text())]
    assert len(shown) >= 9
    for path in shown:
        assert path.stat().st_size <= 300_000, path.name
        with Image.open(path) as picture:
            assert picture.width <= 1200, path.name


def test_the_notebooks_are_a_path_and_each_begins_with_a_picture_of_a_photograph() -> None:
    (listed,) = re.findall(r"Five notebooks\n+((?:notebooks/\w+\n)+)", (DOCS / "index.md").read_text())
    names = [line.removeprefix("notebooks/") for line in listed.split()]
    assert sorted(names) == [notebook.stem for notebook in NOTEBOOKS]
    for number, (name, following) in enumerate(zip(names, [*names[1:], None], strict=True), 1):
        cells = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        title, first, *_, last = ["".join(cell["source"]) for cell in cells]
        assert title.startswith(f"# {number}. ")
        assert "from skimage import data" in first
        assert re.search(r"^(grid|\w+\.plot)\(", first.splitlines()[-1])
        assert following is None or re.search(rf"Next: \[[^]]*\]\({following}\.ipynb\)", last)


def test_results_are_listed_with_their_commands() -> None:
    listed = (DOCS / "results.md").read_text()
    for page in (DOCS / "results").glob("*.md"):
        row = next(line for line in listed.splitlines() if f"(results/{page.name})" in line)
        command = re.search(r"`(make \S+)`", row)
        assert command
        assert f"\n{command[1].removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
        assert re.search(r"`(python -m experiments\.\S+|make experiment-\S+)`", page.read_text())


def test_quoted_figures_are_those_of_the_results() -> None:
    claims = (DOCS / "results" / "claims.md").read_text()
    assert claims.count("|  | digits | orientation | lite0-10 | lite0-100 | lite0-1000 |") == 4
    rows = re.findall(r"^\| `(\w+)` \| (\d.*) \|$", (DOCS / "which_baseline.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ["mean", "logsumexp", "max"]
    for name, figures in rows:
        assert f"| {name} | {figures} |" in claims
    rows = re.findall(
        r"\| (\w+) \| (-?\d\.\d\d \|.*) \|$", (DOCS / "what_softmax_cannot_see.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in rows] == ["GradCAM", "GradCAM", "DiffGradCAM", "DiffGradCAM", "DiffGradCAM"]
    for _, figures in rows:
        assert f" | {figures} |" in claims
    assert "every contrastive map keeps at least r = 1.0000" in claims


def test_the_table_of_the_recorders_is_that_of_the_benchmark() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "recording.json").read_text())
    assert recording.as_markdown(report) in (DOCS / "design" / "recording.md").read_text()


def test_the_table_of_the_readme_is_that_of_the_benchmark() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())
    assert peers.in_short(report) in (ROOT / "README.md").read_text()


def test_the_tables_of_perturbation_are_those_of_the_benchmark() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "perturbation.json").read_text())
    page = (DOCS / "methods.md").read_text()
    assert all(table in page for table in perturbation.tables(report).values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.search(r"@[A-Z]+@|\bTODO\b|\bTBD\b|\bXXX\b", page.read_text())


def test_the_table_of_the_gpu_is_that_of_the_benchmark() -> None:
    results = ROOT / "benchmarks" / "results"
    report, again = (json.loads((results / f"{name}.json").read_text()) for name in ("device", "device_again"))
    page = (DOCS / "gpu.md").read_text()
    assert device.as_markdown(report) in page

    def both(model: str, batch: int, work: str, library: str = "diffgradcam") -> list[float]:
        rows = [
            row["values"][library]
            for found in (report, again)
            for row in found["rows"]
            if (row["model"], row["batch"], row["work"], row["precision"]) == (model, batch, work, "float32")
        ]
        assert len(rows) == 2
        return sorted(rows)

    words = " ".join(page.split())
    one = {name: both("ResNet-50", 1, "one map", name) for name in ("diffgradcam", "torch-cam", "pytorch-grad-cam")}
    assert [round(value, 1) for values in one.values() for value in values] == [1.4, 1.4, 1.5, 1.6, 3.0, 3.6]
    assert "takes 1.4 times a bare forward pass (torch-cam 1.5 to 1.6, pytorch-grad-cam 3.0 to 3.6)" in words
    for model, batch, work, text in (
        ("ConvNeXt-T", 32, "one map", "a map costs {:.2f} to {:.2f}"),
        ("ResNet-50", 32, "training step, two maps", "costs {:.2f} to {:.2f} for ResNet-50"),
        ("ConvNeXt-T", 32, "training step, two maps", "{:.2f} to {:.2f} for ConvNeXt-T"),
    ):
        assert text.format(*both(model, batch, work)) in words
    low, high = both("ResNet-50", 32, "data set")
    assert f"reached {1 / high:.2f} and {1 / low:.2f}" in words
    rows = report["rows"] + again["rows"]
    assert all(row["values"]["diffgradcam"] == min(row["values"].values()) for row in rows)  # no library was faster


def test_the_table_of_the_trainers_is_that_of_the_benchmark() -> None:
    import_peer("lightning.pytorch"), import_peer("transformers")
    report = json.loads((ROOT / "benchmarks" / "results" / "trainers.json").read_text())
    trainers = importlib.import_module("benchmarks.trainers")
    assert trainers.as_markdown(report) in (DOCS / "trainers.md").read_text()


def test_the_costs_of_exported_maps_are_those_of_the_benchmark() -> None:
    exported = pytest.importorskip("benchmarks.exported", reason="needs the extra onnx")
    report = json.loads((ROOT / "benchmarks" / "results" / "exported.json").read_text())
    page = (DOCS / "deploy.md").read_text()
    assert exported.as_markdown(report) in page
    assert exported.drift_in_words(report) in " ".join(page.split())


def test_quoted_costs_are_those_of_the_benchmarks() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    pages = {name: " ".join((DOCS / f"{name}.md").read_text().split()) for name in ("large_datasets", "many_classes")}
    zarr = [each["median"] for each in results["stores"]["zarr_over_safetensors"].values()]
    assert (
        "Zarr took {:.0f} times as long as safetensors to write, {:.0f} times to read all, and {:.0f} times to read "
        "single ones".format(*zarr)
    ) in pages["large_datasets"]
    ratios = [each["wall"] for name, each in results["dataset"]["throughput"].items() if name != "inference"]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of the throughput" in pages["large_datasets"]
    memory = results["scaling"]["curves"]["All classes: memory"]["lines"]
    held = {name: points[-1][1] for name, points in memory.items() if points[-1][0] == 21841}
    worst = max(held["GradCAM"], held["DiffGradCAM"]) / held["the maps themselves"]
    assert f"held at most {worst:.1f} times the memory of the maps themselves" in pages["many_classes"]
