"""The command ``diffgradcam audit``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ..robustness import AuditReport
from ..robustness import audit as run_audit
from ._options import FILE, IMAGES, model_options
from ._output import Result, result_command, write_report
from ._subject import Images, ModelOptions, set_up


@click.command(
    epilog="\b\nExamples:\n  diffgradcam audit photos/\n"
    "  diffgradcam audit photos/ --model torchvision:resnet50 --weights checkpoint.pt --occlusion --json",
)
@click.argument("folder", type=IMAGES, metavar="FOLDER|IMAGE")
@click.option("--occlusion", is_flag=True, help="Check behaviour too. It costs 49 more forward passes for each image.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="A model whose median common-mode share is above this is called fooled.",
)
@click.option("--html", type=FILE, help="Write a report that shows GradCAM and the two parts that add up to it.")
@model_options
@result_command
def audit(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    folder: Path,
    occlusion: bool,
    threshold: float,
    html: Path | None,
) -> Result:
    """Check whether the GradCAM of a model shows something that no decision depends on.

    common_mode_share is that part of GradCAM's energy, from 0 to 1, for each image. fooled is the verdict over all
    images. The exit code does not depend on the verdict.
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
            occlusion=occlusion,
            threshold=threshold,
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
    verdict = "FOOLED" if report.fooled else "nothing found"
    if html:
        facts = {
            "verdict": verdict,
            "median common-mode share": f"{float(report.common_mode_share.median()):.2g} of GradCAM's energy; "
            f"suspicious above {threshold:g}",
            "map": "GradCAM is the sum of two signed maps: what the decision depends on, and the common mode, which it "
            "cannot. Red is for the class, blue against it; both on one scale for an image.",
        }
        write_report(html, "Audit", subject, thumbnails, images.failed, facts)
    data = {
        **subject.facts(),
        "fooled": report.fooled,
        "common_mode_fooled": report.common_mode_fooled,
        "behaviour_fooled": report.behaviour_fooled if occlusion else None,
        "median_common_mode_share": float(report.common_mode_share.median()),
        "threshold": threshold,
        "weight_share": report.weight_share,
        "images": [str(item.path) for item in audited],
        "common_mode_share": report.common_mode_share.tolist(),
        "classes": report.classes.tolist(),
        "names": [subject.class_name(index) for index in report.classes.tolist()],
        "gradcam_agreement": None if report.gradcam_agreement is None else report.gradcam_agreement.tolist(),
        "diffgradcam_agreement": (
            None if report.diffgradcam_agreement is None else report.diffgradcam_agreement.tolist()
        ),
        "failed": images.failures(),
    }
    return Result(data, "\n".join([str(report).replace("occlusion=True", "--occlusion"), *images.complaints()]))


def _joined(reports: list[AuditReport]) -> AuditReport:
    """The report of all batches."""
    joined: dict[str, Any] = {}
    for field in fields(AuditReport):
        parts = [getattr(report, field.name) for report in reports]
        joined[field.name] = torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
    return AuditReport(**joined)
