"""The command ``diffgradcam benchmark``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
from torch import nn

from .._core.base import BaseCAM
from ..robustness import benchmark as run_benchmark
from ..sham import border_mask
from ._methods import SIDE_BY_SIDE
from ._options import EXISTING_FILE, FILE, IMAGES, methods_option, model_options
from ._output import Result, result_command
from ._subject import Images, ModelOptions, set_up


@click.command(
    epilog="\b\nExamples:\n  diffgradcam sham photos/ --save hoax.pt\n"
    "  diffgradcam benchmark others/ --fooled hoax.pt --figure fooled.png",
)
@click.argument("folder", type=IMAGES, metavar="FOLDER|IMAGE")
@click.option(
    "--fooled",
    type=EXISTING_FILE,
    required=True,
    help="Weights of the changed model, such as a file that 'sham' has saved.",
)
@methods_option(SIDE_BY_SIDE)
@click.option(
    "--cells",
    type=click.IntRange(min=1),
    help="Compare with a border of this many cells too, the hoax that 'sham' aimed at.",
)
@click.option("--figure", type=FILE, help="Write a picture of the result.")
@model_options
@result_command
def benchmark(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    folder: Path,
    fooled: Path,
    methods: tuple[str, ...],
    cells: int | None,
    figure: Path | None,
) -> Result:
    """Measure which explainers a changed model fools.

    The result is for one attack. Name the attack wherever you show the numbers.
    """
    images = Images.of(folder)
    subject = set_up(options, layers)
    changed = options.load(fooled).model
    if cells is not None and len(subject.size) != 2:
        raise ValueError(
            f"--cells is given for {', '.join(subject.layer_names)}; expected a layer whose output is (C, h, w)"
        )

    def maker(method: str) -> Callable[[nn.Module], BaseCAM]:
        return lambda model: subject.make_cam(method, model=model)

    explainers = {method: maker(method) for method in methods}
    result = run_benchmark(
        subject.model,
        changed,
        explainers,
        (batch for _, batch in images.batches(subject, batch_size)),
        mask=None if cells is None else border_mask(subject.size, cells=cells),
        progress=False,
    )
    if figure:
        result.plot().savefig(figure)
    data = {**subject.facts(), "fooled_weights": str(fooled), **json.loads(result.to_json())}
    return Result({**data, "failed": images.failures()}, "\n".join([result.to_markdown(), *images.complaints()]))
