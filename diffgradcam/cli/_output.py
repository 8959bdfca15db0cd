"""Output of a command: one result on standard output, everything else on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .._core.persistence import atomic_file
from ._subject import Subject, printable, say, shown

if TYPE_CHECKING:
    from ..visualize.report import Thumbnail

# What the library, Pillow and PyTorch raise for wrong input. Anything else is a bug and shows its stack trace.
EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError, NotImplementedError, MemoryError)


class Result(NamedTuple):
    """The result of a command.

    Attributes:
        data: For ``--json``.
        words: Lines to print.
        code: Exit code if no image failed.
    """

    data: dict[str, Any]
    words: str
    code: int = 0


def result_command(function: Callable[..., Result]) -> Callable[..., None]:
    """Turn a function into a command with ``--json`` and ``--debug``, and print an error as one line.

    Whatever the function, the model or a library prints goes to standard error. The exit code is 1 if an image failed,
    otherwise that of the result.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, alone on standard output.")
    @click.option("--debug", is_flag=True, help="Show the Python stack trace of an error.")
    @functools.wraps(function)
    def command(as_json: bool, debug: bool, **options: Any) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                result = function(**options)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # they are RuntimeErrors too
        except EXPECTED as error:
            if debug or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            raise click.ClickException(printable(str(error)) or type(error).__name__) from error
        data = json.dumps(_finite(result.data), indent=2, allow_nan=False) if as_json else None
        click.echo(printable(result.words) if data is None else data)
        if result.data.get("failed"):
            raise click.exceptions.Exit(1)
        if result.code:
            raise click.exceptions.Exit(result.code)

    return command


def write_report(
    file: Path,
    title: str,
    subject: Subject,
    thumbnails: list[Thumbnail],
    failed: Mapping[str, str],
    facts: Mapping[str, str],
) -> None:
    """Write an HTML report, and print its path.

    Args:
        file: Where.
        title: Of the page.
        subject: What was explained.
        thumbnails: The images.
        failed: The images that could not be read, and why.
        facts: What else to say at the top of the page.
    """
    from ..visualize.report import html_report

    about = {name: str(value) for name, value in subject.facts().items() if name != "untrained"}
    if subject.loaded.untrained:
        about["WARNING"] = "random weights, so these maps mean nothing"
    file.parent.mkdir(parents=True, exist_ok=True)
    page = html_report(title, thumbnails, facts={**about, "images": str(len(thumbnails)), **facts}, failed=failed)
    with atomic_file(file) as stream:
        stream.write(page.encode("utf-8"))
    say(f"report: {shown(file)}")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
