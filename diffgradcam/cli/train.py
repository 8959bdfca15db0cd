"""``diffgradcam train``: from a folder and a CSV to a model that looks where people look, tested closed and open."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import torch
from torch import distributed

from .._core.persistence import atomic_file
from ..losses import ClassChoice
from ._options import EXISTING_FILE, FOLDER, numbers
from ._output import Result, result_command
from ._subject import say, shown, warn
from ._trainable import SMALL, Built, build_model, data_options, means, read_data, table

if TYPE_CHECKING:
    from ..training import Data, Settings

_SHOWN = 24  # images of a report
_LOSSES = ("ce", "cyborg", "difference", "contrast", "divergence", "camal")


class _Alpha(click.ParamType[Any]):
    name = "FLOAT|dynamic|dynamic-detached"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("dynamic", "dynamic-detached"):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r}; expected a number from 0 to 1, dynamic or dynamic-detached", param, ctx)


@click.command(
    epilog="\b\nExamples:\n  diffgradcam train faces.csv --hold-out hard --seeds 10"
    "\n  diffgradcam train tiles.csv --all-groups --loss contrast --out runs/contrast"
    "\n  diffgradcam train xrays.csv --model torchvision:densenet121 --pretrained --preset cyborg --device cuda"
    "\n  torchrun --nproc-per-node 4 -m diffgradcam.cli train faces.csv --device cuda"
)
@click.argument("csv", type=EXISTING_FILE, metavar="DATA.csv")
@data_options
@click.option(
    "--model",
    default=SMALL,
    show_default=True,
    help="small, torchvision:NAME, timm:NAME or FILE.py:FACTORY. A last layer with another number of classes is "
    "replaced.",
)
@click.option("--pretrained", is_flag=True, help="Let torchvision or timm download their weights to start from.")
@click.option("--weights", type=EXISTING_FILE, help="Weights to start from: a PyTorch state_dict, or safetensors.")
@click.option("--layer", help="Where maps are taken, see 'diffgradcam layers MODEL'; by default the last place.")
@click.option("--size", type=click.IntRange(min=16), help="Side of the images in pixels; by default the model's.")
@click.option("--mean", type=numbers, help="Subtracted from pixels in [0, 1]: one number (grey) or three.")
@click.option("--std", type=numbers, help="Divided by, after that: one number (grey) or three.")
@click.option(
    "--preset",
    type=click.Choice(["default", "cyborg"]),
    default="default",
    show_default=True,
    help="Settings to start from; cyborg: those of the published code.",
)
@click.option("--loss", type=click.Choice(_LOSSES), help="ce: cross-entropy alone.")
@click.option("--alpha", type=_Alpha(), help="Weight of cross-entropy beside the saliency loss.")
@click.option("--divergence-weight", type=float, help="Of the two maps' agreement, with --loss divergence.")
@click.option("--class", "explained", type=click.Choice(get_args(ClassChoice)), help="Whose map is trained.")
@click.option("--blur/--no-blur", default=None, help="Blur human maps a little, as VISER does.")
@click.option("--epochs", type=click.IntRange(min=1))
@click.option("--batch-size", type=click.IntRange(min=1))
@click.option("--optimizer", type=click.Choice(["sgd", "adam", "adamw"]))
@click.option("--lr", "learning_rate", type=float, help="The highest learning rate.")
@click.option("--momentum", type=float, help="Of SGD.")
@click.option("--weight-decay", type=float)
@click.option("--schedule", type=click.Choice(["constant", "step", "cosine"]), help="Of the learning rate.")
@click.option("--step-epochs", type=click.IntRange(min=1), help="Of --schedule step: how often it falls.")
@click.option("--step-factor", type=float, help="Of --schedule step: to which part of itself.")
@click.option("--class-weights/--no-class-weights", default=None, help="Weigh rare classes more.")
@click.option("--augment", type=click.Choice(["none", "flip", "affine"]), help="Of image and map together.")
@click.option("--select", type=click.Choice(["best", "last"]), help="The epoch whose weights are kept.")
@click.option("--amp/--no-amp", default=None, help="Automatic mixed precision.")
@click.option(
    "--hold-out",
    "hold_out",
    multiple=True,
    metavar="GROUP",
    help="Leave this group out of training and test on it too (open set); repeatable: one run each.",
)
@click.option("--all-groups", is_flag=True, help="Hold each group of attacks out in turn.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs with seeds 0, 1, ...")
@click.option("--validation", type=click.FloatRange(0, 1), default=0.15, show_default=True, help="Share of images.")
@click.option("--test", type=click.FloatRange(0, 1), default=0.25, show_default=True, help="Share of images.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that read images, where they do not fit into memory.",
)
@click.option(
    "--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="For intervals; 0 for none."
)
@click.option("--out", type=FOLDER, default="runs", show_default=True, help="Folder for weights, metrics and report.")
@result_command
def train(
    csv: Path,
    root: Path | None,
    together: str | None,
    attack: str | None,
    device: str,
    model: str,
    pretrained: bool,
    weights: Path | None,
    layer: str | None,
    size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    preset: str,
    hold_out: tuple[str, ...],
    all_groups: bool,
    seeds: int,
    validation: float,
    test: float,
    workers: int,
    resamples: int,
    out: Path,
    **given: Any,
) -> Result:
    """Train a model that looks where people look, on the images of DATA.csv, and test it.

    DATA.csv has the columns image and label, and as you have them: saliency (people's map of the image), group (the
    kind of attack), and patient, subject or session. Two classes.

    Writes for each run OUT/RUN/model.safetensors and metrics.json, and for all OUT/metrics.json and OUT/report.html.
    Killed at any time, the same command goes on where it was.
    """
    from ..training import Run, Settings, train_and_test
    from ..training.runs import MODEL

    changes = {name: value for name, value in given.items() if value is not None}
    settings = Settings.preset(preset, **changes)
    if hold_out and all_groups:
        raise click.UsageError("--hold-out and --all-groups exclude each other: name groups, or take all in turn")
    with _processes(device) as (place, main):
        built = build_model(model, pretrained=pretrained, weights=weights, layer=layer, size=size, mean=mean, std=std)
        data, classes, column = read_data(csv, root, built.prepare, together, attack)
        kinds: list[str | None] = [*hold_out] or [None]
        if all_groups:
            kinds = [*sorted({group for group, label in zip(data.groups, data.labels, strict=True) if label and group})]
            if len(kinds) < 2:
                raise ValueError(
                    f"{csv.name} has {len(kinds)} groups of attacks: expected at least two, to leave one out in turn"
                )
        if main:
            _announce(data, classes, column, settings)
        about = {
            "model": model,
            "start": "pretrained" if pretrained else None if weights is None else weights.name,
            "layer": built.layer_name,
            "classes": classes,
            "size": list(built.prepare.size),
            "mean": list(built.prepare.mean),
            "std": list(built.prepare.std),
            "together": column,
            "shares": [validation, test],
        }
        runs = [Run(kind, seed) for seed in range(seeds) for kind in kinds]
        results = {}
        for number, run in enumerate(runs, 1):
            if main:
                say(f"run {number} of {len(runs)}: {run.folder}")
            results[run] = train_and_test(
                out, data, run, settings, built.make, about,
                layer=built.layer, reshape_transform=built.reshape_transform, validation=validation, test=test,
                device=place, workers=workers, progress=main, resamples=resamples,
            )  # fmt: skip
        found = {
            "out": str(out),
            "runs": [
                {
                    "run": run.folder,
                    **run._asdict(),
                    "checkpoint": str(out / run.folder / MODEL),
                    "closed": result["closed"],
                    "open": result["open"],
                }
                for run, result in results.items()
            ],
            "mean": {part: means([r[part] for r in results.values() if r[part]]) for part in ("closed", "open")},
        }  # fmt: skip
        if main:
            with atomic_file(out / "metrics.json") as file:
                file.write(json.dumps(found, indent=1).encode())
            _write_report(out, built, data, classes, runs[0], validation, test, place, settings)
        else:
            raise click.exceptions.Exit(0)  # the first process says it
        lines = [
            line for part in ("closed", "open") for line in table(part, [r[part] for r in results.values() if r[part]])
        ]
        return Result(found, "\n".join([*lines, f"written to {shown(out)}"]))


def _announce(data: Data, classes: Sequence[str], column: str | None, settings: Settings) -> None:
    having = sum(bool(data.images[i].has_saliency) for i in range(len(data.labels)))
    say(
        f"{len(data.labels)} images: {data.labels.count(0)} {classes[0]}, {data.labels.count(1)} {classes[1]}; "
        f"{having} have a human map; "
        + (f"split by {column}" if column else "each image is split by itself; --together COLUMN keeps some together")
    )
    if not having and settings.loss != "ce":
        warn(f"no image has a human map, so --loss {settings.loss} trains with cross-entropy alone")


@contextlib.contextmanager
def _processes(device: str) -> Iterator[tuple[torch.device, bool]]:
    """Join the other processes where ``torchrun`` started this one: the device, and whether this is the first."""
    place = torch.device(device)
    if "LOCAL_RANK" not in os.environ:
        yield place, True
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield place, distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


def _write_report(
    out: Path, built: Built, data: Data, classes: Sequence[str], run: Any, validation: float, test: float,
    device: torch.device, settings: Settings,
) -> None:  # fmt: skip
    from ..training import maps_report, read_checkpoint, split
    from ..training.runs import MODEL

    parts = split(
        data.labels, data.groups, data.together,
        hold_out=run.hold_out, validation=validation, test=test, seed=run.seed,
    )  # fmt: skip
    tested = sorted({*parts.closed, *parts.open})
    # Those with a human map first, then attacks, each group in turn.
    marked = sorted(tested, key=lambda i: (not bool(data.images[i].has_saliency), -data.labels[i]))
    index = marked[:_SHOWN]
    before, after = (built.make(run.seed).to(device).eval() for _ in range(2))
    after.load_state_dict(read_checkpoint(out / run.folder / MODEL).tensors)
    page = maps_report(
        "Before and after training", data.part(index), {"before training": before, "after training": after},
        built.prepare, names=[data.names[i] for i in index], classes=classes, layer=built.layer,
        reshape_transform=built.reshape_transform, device=device,
        facts={"model": built.name, "layer": built.layer_name, "loss": settings.loss, "run": run.folder,
               "images": "of the tests, never trained on"},
    )  # fmt: skip
    with atomic_file(out / "report.html") as file:
        file.write(page.encode())
    say(f"report: {shown(out / 'report.html')}")
