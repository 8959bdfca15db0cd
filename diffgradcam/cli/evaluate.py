"""``diffgradcam evaluate``: how well a trained model decides, and how well its maps match people's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from ._options import EXISTING_FILE
from ._output import Result, result_command
from ._subject import say
from ._trainable import build_model, data_options, read_data, table

_SEEN = ("names", "together", "groups")
_LARGEST_SIDE = 4096  # of images, in pixels


@click.command(
    epilog="\b\nExamples:\n  diffgradcam evaluate runs/closed-0/model.safetensors faces.csv"
    "\n  diffgradcam evaluate runs/without-hard-0/model.safetensors other.csv --json"
)
@click.argument("checkpoint", type=EXISTING_FILE, metavar="CHECKPOINT")
@click.argument("csv", type=EXISTING_FILE, metavar="DATA.csv")
@data_options
@click.option("--model", help="FILE.py:FACTORY of the checkpoint; it is run, so you must name it.")
@click.option(
    "--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="For intervals; 0 for none."
)
@result_command
def evaluate(
    checkpoint: Path,
    csv: Path,
    root: Path | None,
    together: str | None,
    attack: str | None,
    device: str,
    model: str | None,
    resamples: int,
) -> Result:
    """Test a model that 'diffgradcam train' made, on the images of DATA.csv.

    Images that it was trained on, and others of the same patient, are left out. The closed set is what is left of the
    groups that training had; the open set are the groups that it lacked, with the same bona fide images. AUROC, EER,
    APCER, BPCER, ACER and APCER at BPCER = 1%, and how well maps match people's, with 95% intervals over the images.
    """
    from ..training import evaluate_model, read_checkpoint
    from ..training.checkpoint import check_weights
    from ..training.runs import as_dict, unseen

    stored = read_checkpoint(checkpoint)
    about = stored.about
    _check(about, checkpoint)
    name = model or _safe_name(about, checkpoint)
    built = build_model(
        name, layer=about["layer"], size=about["size"][0], mean=tuple(about["mean"]), std=tuple(about["std"]),
        classes=len(about["classes"]),
    )  # fmt: skip
    network = built.make(0)
    try:
        check_weights(stored.tensors, network.state_dict())
    except ValueError as error:
        raise ValueError(
            f"the weights in {checkpoint} are not those of {name} ({error}): name its factory with --model"
        ) from error
    network.load_state_dict(stored.tensors)
    place = torch.device(device)
    network.to(place).eval()
    own = about["classes"]
    attack = attack or (None if own == ["0", "1"] else own[1])
    data, classes, _ = read_data(csv, root, built.prepare, together or about["together"] or "none", attack)
    if classes != own:
        raise ValueError(f"{csv.name} has the labels {classes}, but the model was trained on {own}: expected the same")
    closed, opened = unseen(data, about["seen"])
    say(f"{len(data.labels)} images; the model was not trained on {len(set(closed) | set(opened))} of them")
    result: dict[str, Any] = {"checkpoint": str(checkpoint), "csv": str(csv)}
    lines = []
    for part, index in (("closed", closed), ("open", opened)):
        result[part] = None
        if {data.labels[i] for i in index} == {0, 1}:
            found = evaluate_model(
                network, data.part(index), layer=built.layer, reshape_transform=built.reshape_transform, device=place,
                resamples=resamples,
            )  # fmt: skip
            result[part] = as_dict(found)
            lines += table(part, [result[part]])
    if not lines:
        raise ValueError(f"no part of {csv.name} that the model was not trained on has both classes: nothing to test")
    return Result(result, "\n".join(lines))


def _check(about: dict[str, Any], checkpoint: Path) -> None:
    """Refuse what 'diffgradcam train' does not write, before a size or a list of it is used."""
    wrong = [key for key, right in _TOLD.items() if key not in about or not right(about[key])]
    if wrong:
        raise ValueError(
            f"{checkpoint} does not say {', '.join(wrong)}: expected a file that 'diffgradcam train' wrote"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_size(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or value[0] != value[1]:
        return False
    return type(value[0]) is int and 1 <= value[0] <= _LARGEST_SIDE


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(type(each) in (int, float) for each in value)


_TOLD: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "layer": _is_text,
    "classes": lambda value: _are_texts(value) and len(value) == 2,
    "size": _is_size,
    "mean": _are_numbers,
    "std": _are_numbers,
    "together": lambda value: value is None or _is_text(value),
    "seen": lambda value: isinstance(value, dict) and all(_are_texts(value.get(key)) for key in _SEEN),
}


def _safe_name(about: dict[str, Any], checkpoint: Path) -> str:
    """The model that a checkpoint names, unless building it would run a file that the user did not name."""
    name: str = about["model"]
    if ".py:" in name:
        raise ValueError(
            f"{checkpoint} is of the model {name}, and a file is run only where you name it: add --model {name} if you "
            "trust it"
        )
    return name
