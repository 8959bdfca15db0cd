"""The command ``diffgradcam compare``."""

from __future__ import annotations

from pathlib import Path

import click

from ..metrics.similarity import pearson
from ._explanations import MAP_SCALE, about_image, choose_classes, decision, map_entropy
from ._methods import SIDE_BY_SIDE
from ._options import IMAGES, methods_option, model_options, picture_options, read_baseline
from ._output import Result, result_command, write_report
from ._subject import Images, ModelOptions, logits_of, set_up, shown


@click.command(
    epilog="\b\nExamples:\n  diffgradcam compare photo.jpg\n"
    "  diffgradcam compare photos/ --method GradCAM --method DiffGradCAM --html report.html"
)
@click.argument("image", type=IMAGES, metavar="IMAGE|FOLDER")
@methods_option(SIDE_BY_SIDE)
@click.option(
    "--class",
    "class_",
    type=click.IntRange(min=0),
    help="Number of the class to explain. By default the class that the model decides.",
)
@picture_options
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
    """Show methods side by side, and how much their maps look alike (Pearson's r of the maps).

    Writes OUT/IMAGE.compare.png.
    """
    from ._pictures import explained_thumbnail, side_by_side

    names = list(dict.fromkeys(methods))
    if len(names) < 2:
        raise click.UsageError(f"only {names[0]} is given; expected --method twice or more")
    given_baseline = read_baseline(baseline, names)
    images = Images.of(image)
    subject = set_up(options, layers)
    cams = {method: subject.make_cam(method, given_baseline) for method in names}
    out.mkdir(parents=True, exist_ok=True)
    results, thumbnails = [], []
    for items, batch in images.batches(subject, batch_size):
        logits = logits_of(subject.model, batch)
        index = choose_classes(logits, () if class_ is None else (class_,), 1)
        maps = {method: cam.explain(batch, index).maps.cpu() for method, cam in cams.items()}
        for row, item in enumerate(items):
            own = {method: values[row, 0] for method, values in maps.items()}
            decided = decision(subject, logits[row], int(index[row, 0]))
            likeness = {a: {b: float(pearson(own[a][None], own[b][None])) for b in names} for a in names}
            figure = out / f"{item.path.name}.compare.png"
            title = f"{decided['label']}, {decided['probability']:.0%}"
            side_by_side(subject, item, title, own).savefig(figure, dpi=120)
            entropy = {method: map_entropy(heat) for method, heat in own.items()}
            results.append(
                {**about_image(item), **decided, "figure": str(figure), "entropy": entropy, "pearson": likeness}
            )
            if html:
                explanations = [{**decided, "method": method} for method in names]
                thumbnails.append(
                    explained_thumbnail(subject, item, explanations, list(own.values()), ranked=class_ is None)
                )
    if html:
        write_report(html, "Comparison", subject, thumbnails, images.failed, {"map": MAP_SCALE})
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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
