"""Commands that show what a model looks at: layers, explain, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from .._core.base import BaseCAM
from ..losses import cam_entropy
from ..metrics.similarity import pearson
from .layers import survey
from .methods import CONTRASTIVE, SIDE_BY_SIDE, make_cam
from .options import FILE, FOLDER, IMAGES, METHOD, model_options, weights_options
from .output import Result, result_command, write_report
from .subject import Images, Item, ModelOptions, Subject, logits_of, set_up, shown

_SCALE = "each is scaled to its own range: yellow is its largest value, violet its smallest"


@click.command(epilog="\b\nExamples:\n  diffgradcam layers lite0\n  diffgradcam layers model.py:make --size 64 --json")
@click.argument("model")
@weights_options
@result_command
def layers(options: ModelOptions) -> Result:
    """List the layers of MODEL that can be explained, the last first.

    Those whose output, for one square image, has positions: (C, h, w), or tokens of a transformer. The default of the
    other commands is marked with a star; input:NAME is what enters NAME.
    """
    loaded = options.load()
    found = survey(loaded.model, len(loaded.preparation.mean), loaded.preparation.size)
    places = [place for place in reversed(found.outputs) if place.form != "tokens" or place == found.default]
    if found.default is not None and found.default not in places:
        places = [found.default, *places]
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


def _picture_options(function: Any) -> Any:
    out = click.option("--out", type=FOLDER, default="out", show_default=True, help="Folder for the pictures.")
    html = click.option("--html", type=FILE, help="Write a report too: one self-contained page.")
    baseline = click.option(
        "--baseline",
        default="logsumexp",
        show_default=True,
        help="What DiffGradCAM contrasts a class with: logsumexp, max or mean of the others, or the number of a class.",
    )
    return out(html(baseline(function)))


@click.command(
    epilog="\b\nExamples:\n  diffgradcam explain photo.jpg"
    "\n  diffgradcam explain photo.jpg --class 285 --baseline 282 --out against-282/"
    "\n  diffgradcam explain photos/ --top 3 --method GradCAM --method DiffGradCAM --html report.html --json"
)
@click.argument("image", type=IMAGES, metavar="IMAGE|FOLDER")
@click.option(
    "--method", "methods", type=METHOD, multiple=True, default=["DiffGradCAM"], show_default=True, help="Repeatable."
)
@click.option("--class", "classes", type=click.IntRange(min=0), multiple=True, help="Number of a class; repeatable.")
@click.option("--top", type=click.IntRange(min=1), help="So many of the most likely classes; 1 by default.")
@_picture_options
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
    out: Path,
    html: Path | None,
    baseline: str,
) -> Result:
    """Explain what a model decides about an image, or about each image of a folder.

    Writes OUT/IMAGE.METHOD.CLASS.png for each method and class.
    """
    from .pictures import explained_thumbnail, write_overlay  # here, for --help needs no matplotlib

    if classes and top:
        raise click.UsageError("--class and --top exclude each other: name the classes, or take the most likely ones")
    given_baseline = _baseline(baseline, methods)
    images = Images.of(image)
    subject = set_up(options, layers)
    cams = {method: _cam(method, subject, given_baseline) for method in dict.fromkeys(methods)}
    out.mkdir(parents=True, exist_ok=True)
    results, thumbnails = [], []
    for items, batch in images.batches(subject, batch_size):
        logits = logits_of(subject.model, batch)
        index = _classes(logits, classes, top or 1)
        maps = {method: cam.explain(batch, index).maps.cpu() for method, cam in cams.items()}
        for row, item in enumerate(items):
            explanations, own = [], []
            for method, values in maps.items():
                for number, heat in zip(index[row].tolist(), values[row], strict=True):
                    file = out / f"{item.path.name}.{method}.{number}.png"
                    write_overlay(subject, item, heat, file)
                    explanation = {"method": method, **_decision(subject, logits[row], number)}
                    explanations.append({**explanation, "entropy": _entropy(heat), "overlay": str(file)})
                    own.append(heat)
            results.append({**_about(item), "explanations": explanations})
            if html:
                thumbnails.append(explained_thumbnail(subject, item, explanations, own, ranked=not classes))
    if html:
        write_report(html, "Explanations", subject, thumbnails, images.failed, {"map": _SCALE})
    data = {**subject.facts(), "images": results, "failed": images.failures()}
    lines = [
        f"{shown(each['image'])}: {each['label']}, {each['probability']:.1%}, {each['method']} -> "
        f"{shown(each['overlay'])}"
        for result in results
        for each in [{**result, **explanation} for explanation in result["explanations"]]
    ]
    return Result(data, "\n".join([*lines, *images.complaints()]))


@click.command(
    epilog="\b\nExamples:\n  diffgradcam compare photo.jpg\n"
    "  diffgradcam compare photos/ --method GradCAM --method DiffGradCAM --html report.html"
)
@click.argument("image", type=IMAGES, metavar="IMAGE|FOLDER")
@click.option(
    "--method", "methods", type=METHOD, multiple=True, default=SIDE_BY_SIDE, show_default=True, help="Repeatable."
)
@click.option("--class", "class_", type=click.IntRange(min=0), help="Number of a class; by default what is decided.")
@_picture_options
@model_options
@result_command
def compare(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    image: Path,
    methods: tuple[str, ...],
    class_: int | None,
    out: Path,
    html: Path | None,
    baseline: str,
) -> Result:
    """Show methods side by side, and how much their maps look alike (Pearson's r).

    Writes OUT/IMAGE.compare.png.
    """
    from .pictures import explained_thumbnail, side_by_side

    names = list(dict.fromkeys(methods))
    if len(names) < 2:
        raise click.UsageError(f"only {names[0]} is given; expected --method twice or more")
    given_baseline = _baseline(baseline, names)
    images = Images.of(image)
    subject = set_up(options, layers)
    cams = {method: _cam(method, subject, given_baseline) for method in names}
    out.mkdir(parents=True, exist_ok=True)
    results, thumbnails = [], []
    for items, batch in images.batches(subject, batch_size):
        logits = logits_of(subject.model, batch)
        index = _classes(logits, () if class_ is None else (class_,), 1)
        maps = {method: cam.explain(batch, index).maps.cpu() for method, cam in cams.items()}
        for row, item in enumerate(items):
            own = {method: values[row, 0] for method, values in maps.items()}
            decided = _decision(subject, logits[row], int(index[row, 0]))
            likeness = {a: {b: float(pearson(own[a][None], own[b][None])) for b in names} for a in names}
            figure = out / f"{item.path.name}.compare.png"
            title = f"{decided['label']}, {decided['probability']:.0%}"
            side_by_side(subject, item, title, own).savefig(figure, dpi=120)
            entropy = {method: _entropy(heat) for method, heat in own.items()}
            results.append({**_about(item), **decided, "figure": str(figure), "entropy": entropy, "pearson": likeness})
            if html:
                explanations = [{**decided, "method": method} for method in names]
                thumbnails.append(
                    explained_thumbnail(subject, item, explanations, list(own.values()), ranked=class_ is None)
                )
    if html:
        write_report(html, "Comparison", subject, thumbnails, images.failed, {"map": _SCALE})
    mean = {a: {b: _mean([result["pearson"][a][b] for result in results]) for b in names} for a in names}
    data = {**subject.facts(), "methods": names, "mean_pearson": mean, "images": results, "failed": images.failures()}
    width = max(map(len, names)) + 2
    table = [
        f"Pearson's r of the maps, mean of {len(results)} images:",
        " " * width + "".join(f"{name:>{len(name) + 2}}" for name in names),
        *(f"{a:{width}}" + "".join(f"{mean[a][b]:{len(b) + 2}.2f}" for b in names) for a in names),
    ]
    written = [f"{shown(result['image'])}: {result['label']} -> {shown(result['figure'])}" for result in results]
    return Result(data, "\n".join([*written, *(table if results else []), *images.complaints()]))


def _baseline(word: str, methods: Sequence[str]) -> str | int:
    if word != "logsumexp" and not set(methods) & set(CONTRASTIVE):
        raise click.BadParameter(
            f"{', '.join(methods)} have none; it is for {' and '.join(CONTRASTIVE)}",
            param_hint="--baseline",
        )
    if word.isdecimal():
        return int(word)
    if word not in ("logsumexp", "max", "mean"):
        raise click.BadParameter(
            f"{word!r}; expected logsumexp, max, mean or the number of a class", param_hint="--baseline"
        )
    return word


def _cam(method: str, subject: Subject, baseline: str | int) -> BaseCAM:
    return make_cam(method, subject.model, subject.layers, subject.reshape_transform, baseline)


def _classes(logits: Tensor, given: Sequence[int], top: int) -> Tensor:
    """``(B, N)``: the given classes for every image, or the most likely ones."""
    if given:
        return torch.tensor([given], device=logits.device).expand(len(logits), -1)
    return logits.topk(min(top, logits.shape[1]), 1).indices


def _decision(subject: Subject, logits: Tensor, index: int) -> dict[str, Any]:
    if not 0 <= index < len(logits):
        raise ValueError(f"class {index} is out of range; the model has classes 0 to {len(logits) - 1}")
    return {
        "class": index,
        "name": subject.class_name(index),
        "label": subject.label(index),
        "probability": float(logits.softmax(0)[index]),
        "logit": float(logits[index]),
    }


def _entropy(heat: Tensor) -> float:
    return float(cam_entropy(heat.unsqueeze(0)))


def _about(item: Item) -> dict[str, Any]:
    width, height = item.picture.image.size
    return {"image": str(item.path), "width": width, "height": height, "notes": item.picture.notes}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
