"""Rules of the house that no linter has, read from the source: who may know whom, and what the public names promise."""

import ast
import graphlib
import inspect
import re
from pathlib import Path

import pytest

import diffgradcam
from diffgradcam import data as datasets
from diffgradcam import heatmaps, losses, metrics, scores, sham, targets, visualize, weightings
from diffgradcam.data import saliency as data
from diffgradcam.visualize import report as html

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffgradcam"

# A module may import from the rows above its own, a package's modules also from one another.
LAYERS = [
    ["scores", "weightings", "maps", "layers", "outputs"],  # the axes: know nobody
    ["arguments", "batches", "image_files"],  # what comes in
    ["gradients", "losses", "surgery", "data"],
    ["targets"],
    ["passes"],
    ["smoothing"],  # of any explainer, so it needs no engine, which offers it as aug_smooth=
    ["engine"],
    ["activation_cam", "cam", "fullgrad", "guided_backprop", "perturbation", "together", "truefalse"],  # methods
    ["factorization", "fusion", "regions"],  # made of methods
    ["metrics"],
    ["common_mode", "sham"],
    ["datasets", "robustness", "visualize"],
    ["html", "utils"],
    ["diffgradcam"],  # the public names
    ["cli"],
]
# Imports inside a function: each with its reason.
LATE = {
    ("factorization", "sklearn.decomposition"): "of the extra `metrics`",
    ("html", "jinja2"): "only a report needs it",
    ("robustness.result", "matplotlib.figure"): "takes longer than the rest of the package",
    ("cli.explaining", "cli.pictures"): "--help needs no matplotlib",
    ("cli.trusting", "cli.pictures"): "--help needs no matplotlib",
    ("cli.output", "html"): "--help needs no matplotlib",
}
# NumPy beside `visualize` and the command line: at the edges alone.
NUMPY = {
    "engine": "the heat maps of the call that pytorch-grad-cam has",
    "smoothing": "the same call",
    "guided_backprop": "the same call",
    "targets": "boxes and masks in the form that pytorch-grad-cam's targets take",
    "factorization": "the pictures of the concepts, and scikit-learn",
    "regions": "OpenCV's connected components",
    "data": "files of maps, and Pillow",
    "robustness.run": "the bootstrap",
    "robustness.result": "the bars of the figure",
    "metrics.classification": "scikit-learn and the bootstrap",
    "metrics.judging": "the type of maps that may be arrays",
    "metrics.imputation": "SciPy's sparse solver",
    "sham.finetuning": "seeds, and the generator of NumPy that a loader may draw from",
}
# Where the pure functions leave the graph: what is chosen there is a step, which has no derivative.
DETACHED = {
    "scores.finer": "which classes are nearest",
    "scores.baseline_weights": "weights that do not depend on the graph of the logits",
    "weightings.fem": "which positions are unusual",
    "heatmaps.kernel_principal_component": "how large a rounding error can be",
    "sham.objectives.centre_mass_loss": "the clean map is what is compared with",
}
PURE = ("scores", "weightings", "maps", "losses", "sham.objectives", "sham.masks")


def module_name(path):
    """``sham.masks`` for ``diffgradcam/sham/masks.py``; the package itself is ``diffgradcam``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "diffgradcam"


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
                parents = ["diffgradcam", *module.removeprefix("diffgradcam").split(".")]
                parents = parents[: len(parents) - node.level + (module in PACKAGES)]
                base = ".".join([*filter(None, parents), *filter(None, [node.module])])
            for alias in node.names:
                found, late = f"{base}.{alias.name}".removeprefix("diffgradcam."), id(node) in within
                yield (found, None, late) if found in TREES else (base.removeprefix("diffgradcam."), alias.name, late)


def functions(module):
    """``(name, node)`` of the functions of a module and the methods of its classes."""
    for node in TREES[module].body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                yield inner.name, inner


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_imports_of_this_test_are_resolved():
    assert ("engine", "BaseCAM", False) in set(imports("cam"))
    assert ("maps", None, False) in set(imports("cam"))
    assert ("smoothing", "AugSmooth", False) in set(imports("engine"))
    assert ("html", "html_report", True) in set(imports("cli.output"))
    assert ("sham.objectives", "sham_loss", False) in set(imports("sham"))
    assert ("sham.objectives", "sham_loss", False) in set(imports("sham.finetuning"))
    assert ("cli.images", "read_image", False) in set(imports("cli.subject"))
    assert ("layers", "Target", False) in set(imports("cli.subject"))
    assert ("diffgradcam", None, False) in set(imports("cli.methods"))


def test_imports_point_down():
    row = {name: number for number, names in enumerate(LAYERS) for name in names}
    missing = {module.split(".")[0] for module in TREES} - set(row)
    assert not missing, f"give {missing} a row of LAYERS, as far up as its imports let it"
    wrong = [
        (module, imported)
        for module in TREES
        for imported, _, _ in imports(module)
        if imported in TREES
        and (here := module.split(".")[0]) != (there := imported.split(".")[0])
        and row[there] >= row[here]
        and (module, imported) != ("engine", "smoothing")
    ]
    assert not wrong, f"imports that do not point to a row above: {wrong}"


def test_no_import_goes_round():
    graph = {module: {there for there, _, late in imports(module) if there in TREES and not late} for module in TREES}
    graphlib.TopologicalSorter({module: there - {module} for module, there in graph.items()}).prepare()


def test_every_late_import_has_a_reason():
    assert {(module, there) for module in TREES for there, _, late in imports(module) if late} == set(LATE)


def test_nobody_imports_a_private_name():
    private = [
        (module, there, name)
        for module in TREES
        for there, name, _ in imports(module)
        if there in TREES and name and re.fullmatch("_[^_].*", name)
    ]
    assert not private


def test_the_only_private_attributes_of_others_are_those_of_the_engine():
    """What methods are made of is private to users and shared among the modules of methods: BaseCAM's own names."""
    engine = {node.attr for node in ast.walk(TREES["engine"]) if isinstance(node, ast.Attribute)}
    engine |= {node.name for node in ast.walk(TREES["engine"]) if isinstance(node, ast.FunctionDef)}
    named_tuples = {"_replace", "_asdict"}
    of_pytorch = {"_saved_min_val"}
    wrong = [
        f"{module}, line {node.lineno}: {ast.unparse(node)}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.fullmatch("_[^_].*", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        and node.attr not in engine | named_tuples | of_pytorch
    ]
    assert not wrong


def test_numpy_stays_at_the_edges():
    users = {module for module in TREES for there, _, _ in imports(module) if there.split(".")[0] == "numpy"}
    assert {module for module in users if module.split(".")[0] not in ("visualize", "cli")} == set(NUMPY)


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
    diffgradcam,
    data,
    datasets,
    html,
    losses,
    heatmaps,
    metrics,
    scores,
    sham,
    targets,
    visualize,
    weightings,
]
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


def test_no_public_name_is_that_of_a_module():
    modules = {module.rpartition(".")[2] for module in TREES}
    assert not {(package, name) for package in PACKAGES for _, name, _ in imports(package) if name in modules}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_read_on_one_screen(path):
    assert len(path.read_text().splitlines()) <= 60
