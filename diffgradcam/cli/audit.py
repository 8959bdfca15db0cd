"""The command ``diffgradcam audit``."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ..robustness import AuditReport, AuditThresholds
from ..robustness import audit as run_audit
from ..robustness.auditing import AuditVerdict
from ._options import FILE, IMAGES, model_options
from ._output import Result, result_command, write_report
from ._subject import Images, ModelOptions, set_up

_FOR_EACH_IMAGE = (
    "common_mode_share",
    "offset",
    "gradcam_agreement",
    "visible_agreement",
    "visible_follows",
    "lower_agreement",
)
EXIT_CODES: dict[AuditVerdict, int] = {"clean": 0, "exposed": 3, "fooled": 4, "could not tell": 5}


@click.command(
    epilog="\b\nExamples:\n  diffgradcam audit photos/\n"
    "  diffgradcam audit photos/ --model torchvision:resnet50 --weights checkpoint.pt --json",
)
@click.argument("folder", type=IMAGES, metavar="FOLDER|IMAGE")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=AuditThresholds.share,
    show_default=True,
    help="A model whose median common-mode share is above this is called exposed.",
)
@click.option("--html", type=FILE, help="Write a report that shows GradCAM and the two parts that add up to it.")
@model_options
@result_command
def audit(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    folder: Path,
    threshold: float,
    html: Path | None,
) -> Result:
    """Check whether the maps of a model lie: whether they contradict what it does.

    It costs 19 forward passes for each image; 32 images or more are better than few. The exit code tells the verdict
    over all images: 0 clean, 3 exposed (GradCAM could be hiding something, and is not), 4 fooled, 5 could not tell. As
    always, it is 1 if an image could not be read.
    """
    from ._pictures import audited_thumbnail  # here, for --help needs no matplotlib

    images = Images.of(folder)
    subject = set_up(options, layers)
    reports, audited, thumbnails = [], [], []
    for items, batch in images.batches(subject, batch_size):
        part = run_audit(
            subject.model,
            subject.layers,
            batch,
            thresholds=AuditThresholds(share=threshold),
            reshape_transform=subject.reshape_transform,
            class_names=subject.loaded.class_names,
            progress=False,
        )
        reports.append(part)
        audited += items
        if html:
            thumbnails += [audited_thumbnail(subject, item, part, row) for row, item in enumerate(items)]
    if not reports:
        raise ValueError("; ".join(["none of the images can be read", *images.complaints()]))
    report = _joined(reports)
    first, *others = str(report).splitlines()
    if html:
        facts = {
            "verdict": first,
            "why": "; ".join(line.strip() for line in others),
            "map": "GradCAM is the sum of two signed maps: what the decision depends on, and the common mode, which it "
            "cannot. Red is for the class, blue against it; both on one scale for an image.",
        }
        write_report(html, "Audit", subject, thumbnails, images.failed, facts)
    data = {
        **subject.facts(),
        "verdict": report.verdict,
        "fooled": report.fooled,
        "signs": list(report.signs),
        "exposed": report.exposed,
        "contradicted": report.contradicted,
        "is_offset": report.is_offset,
        "lower_layer": report.lower_layer,
        "median_common_mode_share": float(report.common_mode_share.median()),
        "mean_gap": _mean(report.gap),
        "mean_agreement": _mean(report.visible_agreement),
        "mean_honesty": _mean(report.honesty),
        "mean_consistency": _mean(report.consistency),
        "thresholds": asdict(report.thresholds),
        "weight_share": report.weight_share,
        "images": [str(item.path) for item in audited],
        "classes": report.classes.tolist(),
        "names": [subject.class_name(index) for index in report.classes.tolist()],
        **{name: _listed(getattr(report, name)) for name in _FOR_EACH_IMAGE},
        "failed": images.failures(),
    }
    return Result(data, "\n".join([str(report), *images.complaints()]), EXIT_CODES[report.verdict])


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.mean())


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _joined(reports: list[AuditReport]) -> AuditReport:
    """The report of all batches."""
    joined: dict[str, Any] = {}
    for field in fields(AuditReport):
        parts = [getattr(report, field.name) for report in reports]
        missing = any(part is None for part in parts)  # what one batch could not measure
        joined[field.name] = None if missing else torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
    return AuditReport(**joined)
