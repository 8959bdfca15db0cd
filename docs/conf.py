"""How `make docs` builds this documentation: it downloads nothing, and every warning is an error."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any, TypeVar, get_origin

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import diffgradcam

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))
from methods_table import methods_table

from benchmarks.torchvision_shim import define_missing_operators
from tests.public_api import FILE, read

define_missing_operators()  # Lightning imports torchvision where it is installed, even if it does not fit PyTorch
logger = logging.getLogger(__name__)
VERSIONS = read(FILE.read_text("utf-8"))


def _types() -> set[str]:
    """Names of types and type variables in signatures, such as Reduction: they are explained where they are used."""
    modules = [found.name for found in pkgutil.walk_packages(diffgradcam.__path__, "diffgradcam.")]
    return {
        name
        for module in modules
        if not module.endswith("__main__")
        for name, value in vars(importlib.import_module(module)).items()
        if get_origin(value) or isinstance(value, TypeVar) or getattr(value, "_is_protocol", False)
    }


# Generated, for docs/methods.md to include.
(Path(__file__).parent / "_methods_table.md").write_text(methods_table())
exclude_patterns = ["_*.md"]

project = "diffgradcam"
copyright = "diffgradcam contributors"
version = release = diffgradcam.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]


# The pages are Markdown that also reads well in a repository browser.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Notebooks are committed without outputs and run in every build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}  # by name, because it expands to a page of types
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# Every reference within the project must resolve; those to other projects would need their inventories.
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:class",
        r"(collections|contextlib|fx|matplotlib|nn|np|numpy|os|pathlib|PIL|torch)\..+|ArrayLike|Figure|Path|Tensor|Trainer|tqdm",
    ),
    ("py:class", rf"([\w.]+\.)?({'|'.join(_types())})"),
]

smartquotes = False  # they would turn the two dashes of an option into one

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
pygments_dark_style = "github-dark"
html_title = f"diffgradcam {release}"
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"

# MathML by docutils instead of a script from a content delivery network.
html_math_renderer = "mathml"


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def _from_the_root(app: Sphinx, page: str, source: list[str]) -> None:
    """Show CHANGELOG, CONTRIBUTING and SECURITY from the root of the repository, with their links adapted."""
    root = Path(__file__).parent.parent / f"{page.upper()}.md"
    if root.exists():
        app.env.note_dependency(str(root))
        text = re.sub(r"\]\((?!https?:)", "](../", root.read_text(encoding="utf-8"))
        source[0] = text.replace("](../docs/", "](").replace("](../SECURITY.md)", "](security.md)")


def _elsewhere(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """A docstring may refer to a method that every CAM inherits, or to a name of another module: look for it there."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    domain, (kind, target) = env.get_domain("py"), (node["reftype"], node["reftarget"])
    if kind == "meth" and "." not in target:
        inherited = f"diffgradcam.BaseCAM.{target}"
        found = domain.resolve_xref(env, node["refdoc"], app.builder, kind, inherited, node, text)
        if found is not None:
            return found
    node["refspecific"] = True
    return domain.resolve_xref(env, node["refdoc"], app.builder, kind, target, node, text)


def _dashes(_app: Sphinx, tree: nodes.document, _page: str) -> None:
    """Write the dash between a parameter and its description; smart quotes would also change --option."""
    for text in list(tree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def _versions(_app: Sphinx, what: str, name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Say in which version a name came in and last changed; of a member only where its class is older."""
    entry = VERSIONS.get(name)
    if entry is None or what == "module":
        return
    owner = VERSIONS.get(name.rpartition(".")[0])
    for directive, version in (("versionadded", entry.added), ("versionchanged", entry.changed)):
        if version and not (owner and owner.added == version):
            lines += ["", f".. {directive}:: {version}"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _versions, priority=900)  # after Google's style became reST
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _from_the_root)
    app.connect("missing-reference", _elsewhere)
    app.connect("doctree-resolved", _dashes)
    return {"parallel_read_safe": True}
