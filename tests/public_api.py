"""The public names of the library with their signatures and the version each came in: tests/public_api.txt.

After a change of them: ``python -m tests.public_api``, and a line in CHANGELOG.md. The documentation reads the versions
from there, too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import diffgradcam
from benchmarks.torchvision_shim import define_missing_operators

FILE = Path(__file__).with_suffix(".txt")
_LINE = re.compile(
    r"(?P<name>[\w.]+)(?P<signature>\(.*\))?  # added (?P<added>[\d.]+)"
    r"(?:, changed (?P<changed>[\d.]+))?(?:, removed (?P<removed>[\d.]+))?"
)


class Entry(NamedTuple):
    """A public name: its signature, empty where it has none, and the versions of its last changes."""

    signature: str
    added: str
    changed: str = ""
    removed: str = ""


def public_names() -> dict[str, str]:
    """The signature of each public function and class, and the members of a class where its name is shortest."""
    values = {
        f"{module.__name__}.{name}": value
        for module in public_modules()
        for name, value in inspect.getmembers(module)
        if _belongs(module, name, value)
    }
    classes: dict[type, str] = {}
    for path, value in sorted(values.items(), key=lambda item: (item[0].count("."), item[0])):
        if inspect.isclass(value):
            classes.setdefault(value, path)
    found = {path: _signature(value) for path, value in values.items()}
    for owner, path in classes.items():
        found |= {f"{path}.{member}": text for member, text in _members(owner, classes)}
    return dict(sorted(found.items()))


def public_modules() -> list[ModuleType]:
    """The modules without an underscore."""
    define_missing_operators()  # before another library imports torchvision
    names = [info.name for info in pkgutil.walk_packages(diffgradcam.__path__, "diffgradcam.")]
    return [diffgradcam, *(importlib.import_module(name) for name in names if "._" not in name)]


def read(text: str) -> dict[str, Entry]:
    """The entries of a file, by name."""
    matches = [(line, _LINE.fullmatch(line)) for line in text.splitlines() if line]
    broken = [line for line, match in matches if match is None]
    assert not broken, broken
    parts = [match.groupdict(default="") for _, match in matches if match is not None]
    return {part.pop("name"): Entry(**part) for part in parts}


def write(entries: Mapping[str, Entry]) -> str:
    """The file of entries."""
    lines = []
    for name, entry in sorted(entries.items()):
        versions = [f"{what} {version}" for what, version in entry._asdict().items() if what != "signature" and version]
        lines.append(f"{name}{entry.signature}  # {', '.join(versions)}\n")
    return "".join(lines)


def updated(entries: Mapping[str, Entry], names: Mapping[str, str], version: str) -> dict[str, Entry]:
    """The entries after a change. What came in this very version may change and go without a trace.

    Args:
        entries: Those before it.
        names: The signatures of what is public now.
        version: The version in preparation.
    """
    after = {}
    for name in {*entries, *names}:
        before, signature = entries.get(name), names.get(name)
        if signature is None:
            assert before is not None
            if before.added != version:
                after[name] = before if before.removed else before._replace(removed=version)
        elif before is None or before.removed or before.added == version:
            after[name] = Entry(signature, version)
        else:
            after[name] = (
                before if before.signature == signature else before._replace(signature=signature, changed=version)
            )
    return after


def _belongs(module: ModuleType, name: str, value: Any) -> bool:
    """Whether a module offers a name: on its list, or defined in it where it has none."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return False
    listed = getattr(module, "__all__", None)
    return not name.startswith("_") and (name in listed if listed is not None else value.__module__ == module.__name__)


def _members(owner: type, public: Collection[type]) -> Iterator[tuple[str, str]]:
    """What a class defines, or bases of ours that are not public themselves."""
    for name in dir(owner):
        home = next((base for base in owner.__mro__ if name in vars(base)), object)
        ours = home is owner or (home.__module__.startswith("diffgradcam") and home not in public)
        if not ours or (name.startswith("_") and name != "__call__"):
            continue
        value = inspect.getattr_static(owner, name)
        if isinstance(value, property | functools.cached_property):
            yield name, ""
        elif isinstance(value, staticmethod | classmethod) or inspect.isfunction(value):
            yield name, _signature(getattr(owner, name))


def _signature(value: Any) -> str:
    """Names, kinds and defaults of the parameters. Annotations read differently in each Python; mypy holds to them."""
    if inspect.isclass(value):
        makers = [base for base in value.__mro__ if {"__init__", "__new__"} & vars(base).keys()]
        if not makers[0].__module__.startswith("diffgradcam") or getattr(value, "_is_protocol", False):
            return ""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_Default(parameter.default))
        if parameter.default is not inspect.Parameter.empty
        else parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(value).parameters.values()
    ]
    return str(inspect.Signature(parameters))


class _Default:
    """A default as it is written, without addresses in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        if callable(self.value) and hasattr(self.value, "__name__"):
            return str(self.value.__name__)
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self.value))


if __name__ == "__main__":
    before = read(FILE.read_text("utf-8")) if FILE.exists() else {}
    after = updated(before, public_names(), diffgradcam.__version__)
    FILE.write_text(write(after), encoding="utf-8")
    print(f"{FILE.name}: {len(after)} names, {len(set(after.items()) ^ set(before.items()))} lines changed")
