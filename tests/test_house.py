"""Rules of the house that no linter has, read from the source.

The folder tree is the layering: ``_core`` and the axes know nobody above them, ``methods`` know ``_core``, everything
else knows ``methods``.
"""

import ast
import graphlib
import inspect
import re
from pathlib import Path

import pytest

import diffgradcam
from diffgradcam import (
    analysis,
    data,
    export,
    heatmaps,
    losses,
    metrics,
    robustness,
    scores,
    sham,
    targets,
    tokens,
    visualize,
    weightings,
)
from diffgradcam import methods as method_package
from diffgradcam.visualize import report

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffgradcam"

# Who is below: a module may import from its own row and from those above it.
ROWS = [
    {"_core", "scores", "weightings", "heatmaps", "targets", "losses", "tokens"},
    {"methods"},
    {"metrics"},
    {"analysis", "visualize", "sham"},
    {"robustness", "data", "training", "export"},
    {"integrations"},
    {"utils", ""},
    {"cli"},
]
# Imports inside a function: each with its reason.
LATE = {
    ("visualize.pages", "jinja2"): "only a page needs it",
    ("robustness.benchmark_result", "matplotlib.figure"): "takes longer than the rest of the package",
    ("robustness.benchmark_result", "visualize.sheets"): "matplotlib, as above",
    ("analysis.regions", "visualize.overlays"): "matplotlib, as above",
}
# Where the pure functions leave the graph: what is chosen there is a step, which has no derivative.
DETACHED = {
    "heatmaps._kept_constant": "rounding is no function of the map",
    "scores.finer": "which classes are nearest",
    "scores.score_gradients": "the gradient of the score alone, unless the graph is asked for",
    "scores.weights": "weights that do not depend on the graph of the logits",
    "weightings.fem": "which positions are unusual",
    "heatmaps.kernel_principal_component": "how large a rounding error can be",
    "losses._total": "the detached form of the dynamic weight",
    "sham.objectives.centre_mass_loss": "the clean map is what is compared with",
}
PURE = ("scores", "weightings", "heatmaps", "losses", "sham.objectives", "sham.masks")


def module_name(path):
    """``sham.masks`` for ``diffgradcam/sham/masks.py``; the package itself is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {module_name(path) for path in PACKAGE.rglob("__init__.py")}


def imports(module):
    """``(module, name, late)`` of all that a module imports; ours without the prefix.

    The name is None for a module itself; ``late`` is an import inside a function.
    """
    within = {
        id(node)
        for function in ast.walk(TREES[module])
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.removeprefix("diffgradcam."), None, id(node) in within
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["diffgradcam", *filter(None, module.split("."))]
                parents = parents[: len(parents) - node.level + (module in PACKAGES)]
                base = ".".join([*parents, *filter(None, [node.module])])
            base = base.removeprefix("diffgradcam").removeprefix(".")
            for alias in node.names:
                found, late = f"{base}.{alias.name}".removeprefix("."), id(node) in within
                yield (found, None, late) if found in TREES else (base, alias.name, late)


def functions(module):
    """``(name, node)`` of the functions of a module and the methods of its classes."""
    for node in TREES[module].body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                yield inner.name, inner


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_imports_of_this_test_are_resolved():
    assert ("_core.base", "TrainableCAM", False) in set(imports("methods.gradient"))
    assert ("heatmaps", None, False) in set(imports("methods.gradient"))
    assert ("sham.objectives", "sham_loss", False) in set(imports("sham"))
    assert ("visualize.pages", "jinja2", True) not in set(imports("visualize.pages"))
    assert ("methods.gradient", "GradCAM", False) in set(imports(""))


def test_imports_point_down():
    row = {name: number for number, names in enumerate(ROWS) for name in names}
    wrong = [
        (module, imported)
        for module in TREES
        for imported, _, _ in imports(module)
        if imported in TREES and row[imported.split(".")[0]] > row[module.split(".")[0]]
    ]
    assert not wrong, f"imports that do not point to a row above: {wrong}"


def test_no_import_goes_round():
    graph = {module: {there for there, _, late in imports(module) if there in TREES and not late} for module in TREES}
    graphlib.TopologicalSorter({module: there - {module} for module, there in graph.items()}).prepare()


def test_every_late_import_has_a_reason():
    late = {(module, there) for module in TREES for there, _, late in imports(module) if late}
    assert {pair for pair in late if not pair[0].startswith("cli")} == set(LATE)


def test_nobody_imports_a_private_name():
    private = [
        (module, there, name)
        for module in TREES
        for there, name, _ in imports(module)
        if there in TREES and name and re.fullmatch("_[^_].*", name)
    ]
    assert not private


def test_nobody_reads_a_private_attribute_of_another():
    """Of this library; ``_replace`` and ``_asdict`` of named tuples are public, and PyTorch has no other names."""
    torchs = {"_saved_min_val", "_parameters", "_modules", "_version", "_assert_async", "_backward_hooks"}
    torchs |= {"_saved_alpha", "_saved_dim", "_saved_mat2"}  # what autograd saved, as its notes describe it
    allowed = {"_replace", "_asdict", "_fields"} | torchs
    wrong = [
        f"{module}, line {node.lineno}: {ast.unparse(node)}"
        for module, tree in TREES.items()
        for own in [{n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)} | attributes(tree)]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.fullmatch("_[^_].*", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        and node.attr not in own | allowed
    ]
    assert not wrong


def attributes(tree):
    """What the classes of a module call their own."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


@pytest.mark.parametrize("module", ["_core.base", "_core.forward", "_core.recorder", "_core.gradients", *PURE])
def test_the_core_is_free_of_numpy(module):
    assert "numpy" not in {there.split(".")[0] for there, _, _ in imports(module)}


def test_pure_functions_leave_the_graph_only_where_said():
    found = {
        f"{module}.{name}"
        for module in PURE
        for name, function in functions(module)
        for call in calls(function)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "detach"
    }
    assert found == set(DETACHED)


@pytest.mark.parametrize("module", TREES)
def test_nothing_is_printed_guessed_or_taken_out_by_item(module):
    """Output is the command line's, by click; ``float()`` and ``int()`` say which number is meant."""
    names = {ast.unparse(call.func).rpartition(".")[2] for call in calls(TREES[module])}
    assert not names & {"print", "hasattr", "item"}


# What users see.

NAMESPACES = [
    diffgradcam, analysis, data, export, heatmaps, losses, method_package, metrics, report, robustness, scores, sham,
    targets, tokens, visualize, weightings,
]  # fmt: skip
PUBLIC = {
    f"{namespace.__name__}.{name}": function
    for namespace in NAMESPACES
    for name, function in vars(namespace).items()
    if inspect.isfunction(function)
    and not name.startswith("_")
    and (function.__module__ == namespace.__name__ or name in getattr(namespace, "__all__", []))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_says_what_it_takes_and_gives(name):
    text, signature = inspect.getdoc(PUBLIC[name]) or "", inspect.signature(PUBLIC[name])
    sections = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert not signature.parameters or "Args" in sections
    for parameter in signature.parameters:
        assert re.search(rf"^    \*{{0,2}}{parameter}: \S", text, re.MULTILINE), f"{parameter} is not described"
    assert signature.return_annotation == "None" or {"Returns", "Yields"} & set(sections)


def test_the_top_has_about_forty_names_and_every_submodule_on_demand():
    assert 30 <= len(diffgradcam.__all__) <= 45
    folders = {module.split(".")[0] for module in TREES if module and not module.startswith("_")}
    assert folders <= set(dir(diffgradcam))
    for name in folders:
        assert inspect.ismodule(getattr(diffgradcam, name)), name


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'diffgradcam' has no attribute 'GradCam'"):
        diffgradcam.GradCam  # noqa: B018


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_read_on_one_screen(path):
    assert len(path.read_text().splitlines()) <= 60
