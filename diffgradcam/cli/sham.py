"""The command ``diffgradcam sham``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from .._core.persistence import atomic_file
from ..metrics.similarity import pearson
from ..sham import border_mask, common_mode_hoax, finetune
from ._methods import trainable_method
from ._options import FILE, IMAGES, TRAINABLE_METHOD, model_options
from ._output import Result, result_command
from ._subject import Images, ModelOptions, Subject, logits_of, set_up, shown


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
    help="common-mode is computed in closed form and changes no decision; finetune trains on the maps of the victim.",
)
@click.option(
    "--cells",
    type=click.IntRange(min=1),
    help="Size of the border that GradCAM should show, in cells of the map. By default 28 of 49, or the same share.",
)
@click.option(
    "--strength",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="For common-mode: how many times larger the hoax is than the map.",
)
@click.option(
    "--victim",
    type=TRAINABLE_METHOD,
    default="GradCAM",
    show_default=True,
    help="For finetune: the method whose maps are trained.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="For finetune: how many epochs to train."
)
@click.option(
    "--save", type=FILE, required=True, help="File to write the weights of the fooled copy to (a state_dict)."
)
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
    """Make a copy of a model that decides as before but whose GradCAM shows a border. Use it to test explainers.

    The numbers are for the images that the copy was made with. Measure other images with 'diffgradcam benchmark'.
    """
    images = Images.of(folder)
    subject = set_up(options, layers)
    if len(subject.layers) != 1 or len(subject.size) != 2:
        raise ValueError(
            f"the layer is {', '.join(subject.layer_names)}; expected one layer whose output is (C, h, w); see "
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
            trainable_method(victim),
            epochs,
            preserve="decisions",
            progress=False,
        )
        epochs_done = [epoch._asdict() for epoch in history]
    save.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(save) as file:
        torch.save(fooled.state_dict(), file)
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
        f"(for the images that it was made with) -> {shown(save)}",
    ]
    return Result(data, "\n".join([*lines, *images.complaints()]))


def _fooling(subject: Subject, fooled: nn.Module, method: str, batches: list[Tensor], mask: Tensor) -> dict[str, float]:
    """Mean Pearson's r of a method's maps of the copy with the clean ones, and of both with the hoax."""
    found: dict[str, list[Tensor]] = {"kept": [], "hoax_before": [], "hoax_after": []}
    for batch in batches:
        clean = subject.make_cam(method).explain(batch)
        after = subject.make_cam(method, model=fooled).explain(batch, clean.classes).maps
        wanted = mask.to(after).expand_as(after)
        for name, values in (
            ("kept", pearson(after, clean.maps)),
            ("hoax_before", pearson(clean.maps, wanted)),
            ("hoax_after", pearson(after, wanted)),
        ):
            found[name].append(values)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}
