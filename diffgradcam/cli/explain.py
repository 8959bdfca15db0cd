"""The command ``diffgradcam explain``."""

from __future__ import annotations

from pathlib import Path

import click

from ._explanations import MAP_SCALE, about_image, choose_classes, decision, map_entropy
from ._options import IMAGES, methods_option, model_options, picture_options, read_baseline
from ._output import Result, result_command, write_report
from ._subject import Images, ModelOptions, logits_of, set_up, shown


@click.command(
    epilog="\b\nExamples:\n  diffgradcam explain photo.jpg"
    "\n  diffgradcam explain photo.jpg --class 285 --baseline 282 --out against-282/"
    "\n  diffgradcam explain photos/ --top 3 --method GradCAM --method DiffGradCAM --html report.html --json"
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
    subject = set_up(options, layers)
    cams = {method: subject.make_cam(method, given_baseline) for method in dict.fromkeys(methods)}
    out.mkdir(parents=True, exist_ok=True)
    results, thumbnails = [], []
    for items, batch in images.batches(subject, batch_size):
        logits = logits_of(subject.model, batch)
        index = choose_classes(logits, classes, top or 1)
        maps = {method: cam.explain(batch, index).maps.cpu() for method, cam in cams.items()}
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
