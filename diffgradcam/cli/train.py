"""``diffgradcam train``: from a folder and a CSV to a model that looks where people look, tested closed and open."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import torch
from torch import Tensor, distributed, nn

from ..losses import ClassChoice
from .layers import parse_layer, survey
from .models import load_model
from .options import EXISTING_FILE, FOLDER, numbers
from .output import Result, result_command
from .subject import say, shown, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.layers import Target
    from ..training import Data, Prepare, Settings

SMALL = "small"
KEEP_TOGETHER = ("patient", "subject", "session")
_SMALL_SIZE = 96
_SHOWN = 24  # images of a report
_LOSSES = ("ce", "cyborg", "difference", "contrast", "divergence", "camal")


@dataclass(frozen=True)
class Built:
    """A model that can be trained and what it wants."""

    name: str
    prepare: Prepare
    layer: Target
    layer_name: str
    reshape_transform: Callable[[Tensor], Tensor] | None
    make: Callable[[int], nn.Module]


class _Alpha(click.ParamType[Any]):
    name = "FLOAT|dynamic|dynamic-detached"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("dynamic", "dynamic-detached"):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r}; expected a number from 0 to 1, dynamic or dynamic-detached", param, ctx)


def data_options(function: Any) -> Any:
    """Where the images are; shared with ``diffgradcam evaluate``."""
    root = click.option("--root", type=FOLDER, help="Folder that paths in the CSV start from; by default the CSV's.")
    together = click.option(
        "--together",
        metavar="COLUMN",
        help="Images with the same value there are never split between training and testing; 'none' for none. By "
        f"default the first of {', '.join(KEEP_TOGETHER)} that the CSV has.",
    )
    attack = click.option("--attack", metavar="LABEL", help="The label of attacks or findings, if labels are not 0, 1.")
    device = click.option("--device", default="cpu", show_default=True, help="Where to run, such as cuda.")
    return root(together(attack(device(function))))


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
            "mean": {part: _means([r[part] for r in results.values() if r[part]]) for part in ("closed", "open")},
        }  # fmt: skip
        if main:
            (out / "metrics.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
            _write_report(out, built, data, classes, runs[0], validation, test, place, settings)
        if not main:
            raise click.exceptions.Exit(0)  # the first process says it
        lines = [line for part in ("closed", "open") for line in _table(part, [r[part] for r in results.values()])]
        return Result(found, "\n".join([*lines, f"written to {shown(out)}"]))


def build_model(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    layer: str | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: int = 2,
) -> Built:
    """Find out how a model is built, fed and explained.

    Args:
        name: As in ``--model``.
        pretrained: As there.
        weights: As there.
        layer: As there.
        size: As there.
        mean: As there.
        std: As there.
        classes: Number of classes.

    Returns:
        What to make models with.

    Raises:
        ValueError: If there is no such model or layer, or it does not run on such images.
    """
    from ..training import Prepare, SmallNet, with_classes
    from ..utils.reshape_transforms import tokens_to_grid

    if name == SMALL:
        if pretrained or weights:
            raise ValueError("small starts from scratch: leave --pretrained and --weights out")
        own: tuple[int, tuple[float, ...], tuple[float, ...]] = (_SMALL_SIZE, (0.5,) * 3, (0.25,) * 3)
    else:
        preparation = load_model(name, pretrained=pretrained, weights=weights).preparation
        own = (preparation.size, preparation.mean, preparation.std)
    side, mean, std = size or own[0], mean or own[1], std or own[2]
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise ValueError(f"mean {mean} and std {std}: expected one number each (grey images) or three each (RGB)")
    channels = len(mean)

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if name == SMALL:
                return SmallNet(classes, channels)
            loaded = load_model(name, pretrained=pretrained, weights=weights, seed=seed)
            torch.manual_seed(seed)
            return with_classes(loaded.model, classes)

    found = survey(make(0).eval(), channels, side)
    places = {place.name: place for place in (*found.outputs, *found.inputs)}
    place = found.default if layer is None else places.get(layer)
    if place is None:
        raise ValueError(
            f"no layer {layer!r} of {name} has positions: see 'diffgradcam layers {name}'"
            if layer
            else f"no layer of {name} has positions that can be found: name one with --layer"
        )
    reshape = None if place.form == "grid" else tokens_to_grid
    return Built(name, Prepare((side, side), mean, std), parse_layer(place.name), place.name, reshape, make)


def read_data(
    csv: Path, root: Path | None, prepare: Prepare, together: str | None, attack: str | None
) -> tuple[Data, list[str], str | None]:
    """Read and check everything that a CSV names.

    Args:
        csv: The file.
        root: Where its paths start; its own folder by default.
        prepare: To one size.
        together: Column that keeps images together, ``"none"``, or None to look for one.
        attack: Label of class 1.

    Returns:
        The images, the names of the two classes, and the column.

    Raises:
        ValueError: If a row is bad, or the labels are not two.
    """
    from ..data import SaliencyDataset
    from ..training import Data

    root = root or csv.parent
    dataset = SaliencyDataset(root, csv, transform=prepare)
    classes = dataset.classes
    if len(classes) != 2:
        raise ValueError(f"{csv.name} has the labels {', '.join(classes)}: expected two, bona fide and attack")
    if attack is None and classes != ["0", "1"]:
        raise ValueError(f"labels are {classes[0]!r} and {classes[1]!r}: say which one is the attack with --attack")
    if attack is not None:
        if attack not in classes:
            raise ValueError(f"--attack is {attack!r}: expected one of the labels, {', '.join(map(repr, classes))}")
        classes = [*(name for name in classes if name != attack), attack]
        dataset = SaliencyDataset(root, csv, classes=classes, transform=prepare)
    if together is None:
        together = next((name for name in KEEP_TOGETHER if name in dataset.columns), "none")
    column = None if together == "none" else together
    return Data.read(dataset, column), classes, column


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

    parts = split(
        data.labels, data.groups, data.together,
        hold_out=run.hold_out, validation=validation, test=test, seed=run.seed,
    )  # fmt: skip
    tested = sorted({*parts.closed, *parts.open})
    # Those with a human map first, then attacks, each group in turn.
    marked = sorted(tested, key=lambda i: (not bool(data.images[i].has_saliency), -data.labels[i]))
    index = marked[:_SHOWN]
    before, after = (built.make(run.seed).to(device).eval() for _ in range(2))
    after.load_state_dict(read_checkpoint(out / run.folder / "model.safetensors").tensors)
    page = maps_report(
        "Before and after training", data.part(index), {"before training": before, "after training": after},
        built.prepare, names=[data.names[i] for i in index], classes=classes, layer=built.layer,
        reshape_transform=built.reshape_transform, device=device,
        facts={"model": built.name, "layer": built.layer_name, "loss": settings.loss, "run": run.folder,
               "images": "of the tests, never trained on"},
    )  # fmt: skip
    (out / "report.html").write_text(page, encoding="utf-8")
    say(f"report: {shown(out / 'report.html')}")


def _means(results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and standard deviation over runs."""
    if not results:
        return None
    from ..metrics import mean_and_spread

    def over(values: list[float]) -> dict[str, float]:
        mean, sd, _ = mean_and_spread(values)
        return {"mean": mean, "sd": sd}

    maps = [result["maps"] for result in results if result["maps"]]
    return {
        "runs": len(results),
        "decisions": {k: over([r["decisions"][k]["value"] for r in results]) for k in results[0]["decisions"]},
        "maps": {
            name: {k: over([m[name][k]["value"] for m in maps]) for k in maps[0][name]}
            for name in (maps[0] if maps else ())
        },
    }


def _table(part: str, results: Sequence[dict[str, Any] | None]) -> list[str]:
    return table(part, [result for result in results if result is not None])


def table(part: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people; shared with ``diffgradcam evaluate``.

    Args:
        part: ``"closed"`` or ``"open"``.
        results: Of each run.

    Returns:
        A mean over runs with its standard deviation; for a single run with the interval over its test images.
    """
    means = _means(results)
    if means is None:
        return []
    lines = [f"{part} set, {len(results)} run{'s' * (len(results) > 1)}:"]
    flat = {**means["decisions"]}
    single = {**results[0]["decisions"]}
    for name, values in means["maps"].items():
        flat |= {f"{name} map: {key}": value for key, value in values.items()}
        single |= {f"{name} map: {key}": value for key, value in (results[0]["maps"].get(name) or {}).items()}
    for name, value in flat.items():
        spread = f" +- {value['sd']:.3f} over runs"
        if len(results) == 1:
            low, high = single[name]["low"], single[name]["high"]
            spread = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        lines.append(f"  {name:24} {value['mean']:.3f}{spread}")
    return lines
