"""The table of methods in the documentation, from the list that the library keeps."""

from __future__ import annotations

from torch import nn

from diffgradcam.methods import Method, registered_methods

_SHARED = ("score", "batch_size", "channels", "progress")


def methods_table() -> str:
    """A row for each method: the score it explains by default, how, its own options, whether one can train with it.

    Returns:
        Markdown; methods to train with first, methods without a score last.
    """
    header = ["| method | explains | how | options of its own | trains |", "|---|---|---|---|---|"]
    methods = sorted(registered_methods().values(), key=lambda method: (not method.trainable, not method.has_score))
    return "\n".join([*header, *map(_row, methods)]) + "\n"


def _row(method: Method) -> str:
    how = method.summary.replace(":class:", "").replace("|", "\\|")
    options = ", ".join(f"`{name}`" for name in method.options if name not in _SHARED)
    return f"| `{method.name}` | {_explains(method)} | {how} | {options} | {'yes' if method.trainable else 'no'} |"


def _explains(method: Method) -> str:
    if not method.has_score:
        return "no class"
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = () if method.name == "FullGrad" else ("0",)
    options = {"head": model} if "head" in method.options else {}
    return f"`{method.make(model, *layers, **options).score}`"
