"""The table of methods in the documentation, from the list that the library keeps."""

from __future__ import annotations

from diffgradcam.methods import Method, registered_methods


def methods_table() -> str:
    """A row for each method: what it explains, how it weights, whether it has maps to train with.

    Returns:
        Markdown.
    """
    header = ["| method | explains | how | trains |", "|---|---|---|---|"]
    return "\n".join([*header, *map(_row, registered_methods().values())]) + "\n"


def _row(method: Method) -> str:
    how = method.summary[:1].lower() + method.summary[1:] if method.summary[1:2].islower() else method.summary
    how = how.replace(":class:", "").replace("|", "\\|")
    explains = "a class" if method.has_score else "no class"
    return f"| `{method.name}` | {explains} | {how} | {'yes' if method.trainable else 'no'} |"
