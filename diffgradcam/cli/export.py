"""The command ``diffgradcam export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import torch

from .. import __version__
from ._options import FILE, METHOD, baseline_option, class_names_option, layer_option, read_baseline, weights_options
from ._output import Result, result_command
from ._subject import ModelOptions, set_up, shown


class Classes(click.ParamType["str | list[int]"]):
    """``argmax``, ``all``, ``top5`` with any number, or the numbers of classes with commas."""

    name = "argmax|topN|all|N,N"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str | list[int]:
        """The word, or the numbers."""
        text = str(value)
        if text in ("argmax", "all") or (text.startswith("top") and text[3:].isdecimal()):
            return text
        if all(part.isdecimal() for part in text.split(",")):
            return [int(part) for part in text.split(",")]
        raise click.BadParameter(
            f"{text!r}; expected argmax, all, top5 with any number, or numbers of classes such as 281,285"
        )


@click.command(
    epilog="\b\nExamples:\n  diffgradcam export lite0 --out lite0.onnx"
    "\n  diffgradcam export model.py:make --weights model.pt --classes all --out model.onnx"
    "\n  diffgradcam explain --onnx lite0.onnx photo.jpg"
)
@click.argument("model")
@click.option("--method", type=METHOD, default="DiffGradCAM", show_default=True, help="Name of a method.")
@click.option(
    "--classes",
    type=Classes(),
    default="argmax",
    show_default=True,
    help="What the file explains: argmax, top5 or another number, all, or the numbers of classes, with commas.",
)
@click.option("--out", type=FILE, required=True, help="ONNX file to write; its checksum goes to OUT.sha256.")
@baseline_option
@layer_option
@weights_options
@class_names_option
@result_command
def export(
    options: ModelOptions, layers: tuple[str, ...], method: str, classes: str | list[int], out: Path, baseline: str
) -> Result:
    """Write MODEL with its maps as one ONNX file, for ONNX Runtime: decisions and reasons, without PyTorch.

    Its input is images, its outputs are logits, classes and maps. How to prepare images and the names of the classes
    are in its metadata.
    """
    from ..export import with_maps, write_onnx  # here, for the other commands start faster without it

    given_baseline = read_baseline(baseline, [method])
    subject = set_up(options, layers)
    preparation = subject.preparation
    # The graph does not depend on what the images show.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, len(preparation.mean), preparation.size, preparation.size, generator=generator)
    images = images.to(next(subject.model.parameters(), images))
    module = with_maps(subject.make_cam(method, given_baseline), images, classes)
    facts = {**subject.facts(), "method": method, "preparation": asdict(preparation), "version": __version__}
    out.parent.mkdir(parents=True, exist_ok=True)
    digest = write_onnx(module, out, class_names=subject.loaded.class_names, facts=facts)
    size = out.stat().st_size
    data = {**subject.facts(), "method": method, "classes": classes, "out": str(out), "bytes": size, "sha256": digest}
    return Result(data, f"{shown(out)}: {size / 1e6:.1f} MB, explained by {method}; SHA-256 {digest}")
