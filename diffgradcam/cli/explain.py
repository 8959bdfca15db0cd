"""The command ``diffgradcam explain``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from torch import Tensor

from .._core.tensors import columns
from ._explanations import MAP_SCALE, about_image, choose_classes, decision, map_entropy
from ._options import EXISTING_FILE, IMAGES, methods_option, model_options, picture_options, read_baseline
from ._output import Result, result_command, write_report
from ._subject import Images, ModelOptions, Subject, logits_of, set_up, shown


class _Explained(NamedTuple):
    """A batch: logits ``(B, K)``, classes ``(B, N)``, and by method maps ``(B, N, h, w)``."""

    logits: Tensor
    classes: Tensor
    maps: dict[str, Tensor]


@click.command(
    epilog="\b\nExamples:\n  diffgradcam explain photo.jpg"
    "\n  diffgradcam explain photo.jpg --class 285 --baseline 282 --out against-282/"
    "\n  diffgradcam explain photos/ --top 3 --method GradCAM --method DiffGradCAM --html report.html --json"
    "\n  diffgradcam explain --onnx lite0.onnx photos/"
)
@click.argument("image", type=IMAGES, metavar="IMAGE|FOLDER")
@methods_option(["DiffGradCAM"])
@click.option(
    "--class",
    "classes",
    type=click.IntRange(min=0),
    multiple=True,
    help="Number of a class to explain; may be repeated.",
)
@click.option("--top", type=click.IntRange(min=1), help="Explain this many of the most likely classes; 1 by default.")
@click.option("--onnx", type=EXISTING_FILE, help="Run a file of 'diffgradcam export' instead of a model.")
@picture_options
@model_options
@result_command
def explain(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    image: Path,
    methods: tuple[str, ...],
    classes: tuple[int, ...],
    top: int | None,
    onnx: Path | None,
    out: Path,
    html: Path | None,
    baseline: str,
) -> Result:
    """Explain what a model decides about an image, or about each image in a folder.

    Writes OUT/IMAGE.METHOD.CLASS.png for each method and class.
    """
    from ._pictures import explained_thumbnail, write_overlay  # here, for --help needs no matplotlib

    if classes and top:
        raise click.UsageError(
            "--class and --top are both given; expected one; name the classes, or take the most likely"
        )
    given_baseline = read_baseline(baseline, methods)
    images = Images.of(image)
    if onnx:
        subject, explained = _exported(onnx)
    else:
        subject = set_up(options, layers)
        explained = _with_cams(subject, methods, given_baseline, classes, top or 1)
    out.mkdir(parents=True, exist_ok=True)
    results, thumbnails = [], []
    for items, batch in images.batches(subject, batch_size):
        logits, index, maps = explained(batch)
        for row, item in enumerate(items):
            explanations, own = [], []
            for method, values in maps.items():
                for number, heat in zip(index[row].tolist(), values[row], strict=True):
                    file = out / f"{item.path.name}.{method}.{number}.png"
                    write_overlay(subject, item, heat, file)
                    explanation = {"method": method, **decision(subject, logits[row], number)}
                    explanations.append({**explanation, "entropy": map_entropy(heat), "overlay": str(file)})
                    own.append(heat)
            results.append({**about_image(item), "explanations": explanations})
            if html:
                thumbnails.append(explained_thumbnail(subject, item, explanations, own, ranked=not classes))
    if html:
        write_report(html, "Explanations", subject, thumbnails, images.failed, {"map": MAP_SCALE})
    data = {**subject.facts(), "images": results, "failed": images.failures()}
    lines = [
        f"{shown(each['image'])}: {each['label']}, {each['probability']:.1%}, {each['method']} -> "
        f"{shown(each['overlay'])}"
        for result in results
        for each in [{**result, **explanation} for explanation in result["explanations"]]
    ]
    return Result(data, "\n".join([*lines, *images.complaints()]))


def _with_cams(
    subject: Subject, methods: Sequence[str], baseline: str | int, classes: Sequence[int], top: int
) -> Callable[[Tensor], _Explained]:
    cams = {method: subject.make_cam(method, baseline) for method in dict.fromkeys(methods)}

    def explained(batch: Tensor) -> _Explained:
        logits = logits_of(subject.model, batch)
        index = choose_classes(logits, classes, top)
        return _Explained(logits, index, {name: cam.explain(batch, index).maps.cpu() for name, cam in cams.items()})

    return explained


def _exported(onnx: Path) -> tuple[Subject, Callable[[Tensor], _Explained]]:
    from ._exported import read_exported

    explainer, subject, method = read_exported(onnx)

    def explained(batch: Tensor) -> _Explained:
        logits, index, maps = explainer.explain(batch)
        return _Explained(logits, columns(index), {method: maps.view(*columns(index).shape, *maps.shape[index.ndim :])})

    return subject, explained
