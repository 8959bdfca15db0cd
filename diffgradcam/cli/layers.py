"""The command ``diffgradcam layers``."""

from __future__ import annotations

import click

from ._options import weights_options
from ._output import Result, result_command
from ._subject import ModelOptions, find_layers_of


@click.command(epilog="\b\nExamples:\n  diffgradcam layers lite0\n  diffgradcam layers model.py:make --size 64 --json")
@click.argument("model")
@weights_options
@result_command
def layers(options: ModelOptions) -> Result:
    """List the layers of MODEL that can be explained, the last one first.

    These are the layers whose output for one square image has positions: (C, h, w), or the tokens of a transformer. A
    star marks the layer that the other commands explain by default. input:NAME stands for what enters layer NAME.
    """
    loaded = options.load()
    found = find_layers_of(loaded)
    places = found.offered()
    rows = [
        {"name": place.name, "shape": list(place.shape), "form": place.form, "default": place == found.default}
        for place in places
    ]
    words = [
        f"{'*' if place == found.default else ' '} {place.name:40} {' x '.join(map(str, place.shape))}"
        + ("" if place.form == "grid" else f"  ({place.form})")
        for place in places
    ]
    default = None if found.default is None else found.default.name
    return Result(
        {"model": loaded.name, "default": default, "layers": rows},
        "\n".join(words) or f"no layer of {loaded.name} has positions",
    )
