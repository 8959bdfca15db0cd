"""What ``train`` and ``evaluate`` share: a model that can be trained, the images of a CSV, numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor, nn

from ..tokens import tokens_to_grid
from ._layer_finder import find_explainable_layers, parse_layer
from ._models import load_model
from ._options import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.layers import LayerSpec
    from ..training import Data, Prepare

SMALL = "small"
KEEP_TOGETHER = ("patient", "subject", "session")
_SMALL_SIZE = 96


@dataclass(frozen=True)
class Built:
    """A model that can be trained and what it wants.

    Attributes:
        name: As it was asked for.
        prepare: What it wants done to images.
        layer: Where maps are taken.
        layer_name: The same in words.
        reshape_transform: For a transformer of tokens.
        make: Makes a model from a seed.
    """

    name: str
    prepare: Prepare
    layer: LayerSpec
    layer_name: str
    reshape_transform: Callable[[Tensor], Tensor] | None
    make: Callable[[int], nn.Module]


def data_options(function: Any) -> Any:
    """Where the images are, and where to run; passed on as ``root``, ``together``, ``attack`` and ``device``."""
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

    found = find_explainable_layers(make(0).eval(), channels, side)
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


def means(results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and standard deviation over runs.

    Args:
        results: Of each run, of one test.

    Returns:
        In the form of JSON; None where there are no runs.
    """
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


def table(part: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people.

    Args:
        part: ``"closed"`` or ``"open"``.
        results: Of each run.

    Returns:
        A mean over runs with its standard deviation; for a single run with the interval over its test images.
    """
    found = means(results)
    if found is None:
        return []
    lines = [f"{part} set, {len(results)} run{'s' * (len(results) > 1)}:"]
    flat = {**found["decisions"]}
    single = {**results[0]["decisions"]}
    for name, values in found["maps"].items():
        flat |= {f"{name} map: {key}": value for key, value in values.items()}
        single |= {f"{name} map: {key}": value for key, value in (results[0]["maps"].get(name) or {}).items()}
    for name, value in flat.items():
        spread = f" +- {value['sd']:.3f} over runs"
        if len(results) == 1:
            low, high = single[name]["low"], single[name]["high"]
            spread = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        lines.append(f"  {name:24} {value['mean']:.3f}{spread}")
    return lines
