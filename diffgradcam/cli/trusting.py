"""Commands that ask whether a map is to be trusted: audit, sham, benchmark."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from ..metrics.similarity import pearson
from ..robustness import benchmark
from ..robustness.auditing import AuditReport, audit
from ..sham import border_mask, common_mode_hoax, finetune
from .methods import METHODS, SIDE_BY_SIDE, make_cam
from .options import EXISTING_FILE, FILE, IMAGES, METHOD, model_options
from .output import Result, result_command, write_report
from .subject import Images, ModelOptions, Subject, logits_of, set_up, shown


@click.command(
    "audit",
    epilog="\b\nExamples:\n  diffgradcam audit photos/\n"
    "  diffgradcam audit photos/ --model torchvision:resnet50 --weights checkpoint.pt --occlusion --json",
)
@click.argument("folder", type=IMAGES, metavar="FOLDER|IMAGE")
@click.option("--occlusion", is_flag=True, help="Check behaviour too: 49 more forward passes an image.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Median common-mode share above which a model is called fooled.",
)
@click.option("--html", type=FILE, help="Write a report: GradCAM, and the two parts that it is the sum of.")
@model_options
@result_command
def audit_command(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    folder: Path,
    occlusion: bool,
    threshold: float,
    html: Path | None,
) -> Result:
    """Find out whether the GradCAM of a model hides something.

    common_mode_share: how much of each image's GradCAM no decision depends on, in [0, 1]; fooled: the verdict over all
    images. The exit code does not depend on the verdict.
    """
    from .pictures import audited_thumbnail  # here, for --help needs no matplotlib

    images = Images.of(folder)
    subject = set_up(options, layers)
    reports, audited, thumbnails = [], [], []
    for items, batch in images.batches(subject, batch_size):
        part = audit(
            subject.model,
            subject.layers,
            batch,
            occlusion=occlusion,
            threshold=threshold,
            reshape_transform=subject.reshape_transform,
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
        "gradcam_agreement": None if report.gradcam_agreement is None else report.gradcam_agreement.tolist(),
        "diffgradcam_agreement": (
            None if report.diffgradcam_agreement is None else report.diffgradcam_agreement.tolist()
        ),
        "failed": images.failures(),
    }
    return Result(data, "\n".join([str(report).replace("occlusion=True", "--occlusion"), *images.complaints()]))


@click.command(
    epilog="\b\nExamples:\n  diffgradcam sham photos/ --save hoax.pt\n"
    "  diffgradcam sham photos/ --attack finetune --epochs 3 --save sham.pt\n"
    "  diffgradcam audit photos/ --weights hoax.pt"
)
@click.argument("folder", type=IMAGES, metavar="FOLDER|IMAGE")
@click.option(
    "--attack",
    type=click.Choice(["common-mode", "finetune"]),
    default="common-mode",
    show_default=True,
    help="Closed form, which changes no decision, or training on a victim's maps.",
)
@click.option(
    "--cells", type=click.IntRange(min=1), help="Cells of the border that GradCAM shall show; 4 of 7 by default."
)
@click.option(
    "--strength",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Of the closed form: how much larger the hoax is than the map.",
)
@click.option("--victim", type=METHOD, default="GradCAM", show_default=True, help="Whose maps are trained.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Of training.")
@click.option("--save", type=FILE, required=True, help="File for the weights of the fooled copy (a state_dict).")
@model_options
@result_command
def sham(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    folder: Path,
    attack: str,
    cells: int | None,
    strength: float,
    victim: str,
    epochs: int,
    save: Path,
) -> Result:
    """Make a copy of a model that decides as before and shows a border instead, to test explainers with.

    What is measured is measured on the images that it was made with; measure others with 'diffgradcam benchmark'.
    """
    images = Images.of(folder)
    subject = set_up(options, layers)
    if len(subject.layers) != 1 or len(subject.size) != 2:
        raise ValueError(
            f"a hoax needs one layer whose output is (C, h, w), not {', '.join(subject.layer_names)}: see "
            f"'diffgradcam layers {subject.loaded.name}'"
        )
    batches = [batch for _, batch in images.batches(subject, batch_size)]
    if not batches:
        raise ValueError("; ".join(["none of the images can be read", *images.complaints()]))
    positions = subject.size[0] * subject.size[1]
    mask = border_mask(subject.size, cells=cells or max(1, round(positions * 28 / 49)))
    epochs_done: list[dict[str, Any]] = []
    if attack == "common-mode":
        fooled = common_mode_hoax(subject.model, subject.layers[0], batches, mask, strength=strength)
    else:
        fooled, history = finetune(
            subject.model,
            batches,
            subject.layers,
            mask,
            METHODS[victim],
            epochs,
            preserve="decisions",
            progress=False,
        )
        epochs_done = [epoch._asdict() for epoch in history]
    save.parent.mkdir(parents=True, exist_ok=True)
    torch.save(fooled.state_dict(), save)
    moved = kept = count = 0.0
    with torch.no_grad():
        for batch in batches:
            before, after = (logits_of(subject.model, batch), logits_of(fooled, batch))
            moved = max(moved, float((before.softmax(1) - after.softmax(1)).abs().max()))
            kept += float((before.argmax(1) == after.argmax(1)).sum())
            count += len(batch)
    maps = {
        method: _fooling(subject, fooled, method, batches, mask)
        for method in dict.fromkeys(["GradCAM", "DiffGradCAM", *([victim] if attack == "finetune" else [])])
    }
    data = {
        **subject.facts(),
        "attack": attack,
        "weights": str(save),
        "cells": int(mask.sum()),
        "images": int(count),
        "largest_probability_change": moved,
        "decisions_kept": kept / count,
        "pearson": maps,
        "epochs": epochs_done,
        "failed": images.failures(),
    }
    lines = [
        f"{attack}: {kept / count:.1%} of {count:.0f} decisions kept, no probability moved by more than {moved:.1g}",
        *(
            f"  {method:12} r with its clean map {values['kept']:5.2f}; with the border {values['hoax_before']:5.2f} "
            f"before, {values['hoax_after']:5.2f} after"
            for method, values in maps.items()
        ),
        f"(on the images that it was made with) -> {shown(save)}",
    ]
    return Result(data, "\n".join([*lines, *images.complaints()]))


@click.command(
    "benchmark",
    epilog="\b\nExamples:\n  diffgradcam sham photos/ --save hoax.pt\n"
    "  diffgradcam benchmark others/ --fooled hoax.pt --figure fooled.png",
)
@click.argument("folder", type=IMAGES, metavar="FOLDER|IMAGE")
@click.option("--fooled", type=EXISTING_FILE, required=True, help="Weights of the changed model, as 'sham' saves them.")
@click.option(
    "--method", "methods", type=METHOD, multiple=True, default=SIDE_BY_SIDE, show_default=True, help="Repeatable."
)
@click.option(
    "--cells", type=click.IntRange(min=1), help="Compare with the border of so many cells too: what 'sham' aimed at."
)
@click.option("--figure", type=FILE, help="Write a picture of the result.")
@model_options
@result_command
def benchmark_command(
    options: ModelOptions,
    layers: tuple[str, ...],
    batch_size: int,
    folder: Path,
    fooled: Path,
    methods: tuple[str, ...],
    cells: int | None,
    figure: Path | None,
) -> Result:
    """Measure which explainers a changed model fools: one attack, so say which."""
    images = Images.of(folder)
    subject = set_up(options, layers)
    changed = options.load(fooled).model
    if cells is not None and len(subject.size) != 2:
        raise ValueError(f"--cells needs a layer whose output is (C, h, w), not {', '.join(subject.layer_names)}")
    place: dict[str, Any] = {"layers": subject.layers, "reshape_transform": subject.reshape_transform}
    explainers = {name: partial(make_cam, name, **place) for name in methods}
    result = benchmark(
        subject.model,
        changed,
        explainers,
        (batch for _, batch in images.batches(subject, batch_size)),
        mask=None if cells is None else border_mask(subject.size, cells=cells),
        progress=False,
    )
    if figure:
        result.figure().savefig(figure)
    data = {**subject.facts(), "fooled_weights": str(fooled), **json.loads(result.to_json())}
    return Result({**data, "failed": images.failures()}, "\n".join([result.to_markdown(), *images.complaints()]))


def _joined(reports: list[AuditReport]) -> AuditReport:
    """The report of all batches."""
    joined: dict[str, Any] = {}
    for field in fields(AuditReport):
        parts = [getattr(report, field.name) for report in reports]
        joined[field.name] = torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
    return AuditReport(**joined)


def _fooling(subject: Subject, fooled: nn.Module, method: str, batches: list[Tensor], mask: Tensor) -> dict[str, float]:
    """Mean Pearson's r of a method's maps of the copy with the clean ones, and of both with the hoax."""
    found: dict[str, list[Tensor]] = {"kept": [], "hoax_before": [], "hoax_after": []}
    for batch in batches:
        clean = make_cam(method, subject.model, subject.layers, None).explain(batch)
        after = make_cam(method, fooled, subject.layers, None).explain(batch, clean.classes).maps
        wanted = mask.to(after).expand_as(after)
        for name, values in (
            ("kept", pearson(after, clean.maps)),
            ("hoax_before", pearson(clean.maps, wanted)),
            ("hoax_after", pearson(after, wanted)),
        ):
            found[name].append(values)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}
