"""What the pages of results share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "results"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown.

    Args:
        header: The titles of the columns.
        rows: The cells of each row, as many as there are columns.

    Returns:
        Its lines, joined.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def report_parser(module: str, description: str | None, results: Path) -> argparse.ArgumentParser:
    """The options that every report has: ``--results`` and ``--docs``.

    Args:
        module: Dotted name of the report, which ``python -m`` runs.
        description: What it does.
        results: Where its cells are, unless it is told.

    Returns:
        The parser, to add others to.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--results", type=Path, default=results, help="folder of the cells")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    return parser
