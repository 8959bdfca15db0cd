"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .methods import METHODS
from .models import FORMS
from .subject import ModelOptions

_F = TypeVar("_F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
IMAGES = click.Path(path_type=Path, exists=True)
FOLDER = click.Path(path_type=Path, file_okay=False)
METHOD = click.Choice(list(METHODS), case_sensitive=False)


def numbers(value: str) -> tuple[float, ...]:
    """One number, or three with commas: ``0.5`` or ``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r}; expected one number, or three with commas, such as 0.485,0.456,0.406"
        ) from None


def weights_options(function: _F) -> _F:
    """Where the weights of a model come from, and what it wants of a picture; passed on as ``options``."""

    @click.option("--pretrained", is_flag=True, help="Let torchvision, timm or transformers download their weights.")
    @click.option(
        "--weights",
        type=EXISTING_FILE,
        help="Weights to load: a PyTorch state_dict or checkpoint of tensors, or safetensors.",
    )
    @click.option("--trust", is_flag=True, help="Load --weights that hold more than tensors. They may run any code.")
    @click.option("--size", type=click.IntRange(min=1), help="Side of the image that the model takes, in pixels.")
    @click.option("--mean", type=numbers, help="Subtracted from pixels in [0, 1]: one number (grey) or three.")
    @click.option("--std", type=numbers, help="Divided by, after that: one number (grey) or three.")
    @click.option("--device", default="cpu", show_default=True, help="Where to run, such as cuda.")
    @functools.wraps(function)
    def command(
        model: str,
        pretrained: bool,
        weights: Path | None,
        trust: bool,
        size: int | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        device: str,
        **others: Any,
    ) -> Any:
        return function(options=ModelOptions(model, pretrained, weights, trust, size, mean, std, device), **others)

    return command  # type: ignore[return-value]


def model_options(function: _F) -> _F:
    """Which model and layer."""
    model = click.option("--model", default="lite0", show_default=True, help=f"{FORMS}; see 'diffgradcam --help'.")
    layer = click.option(
        "--layer",
        "layers",
        multiple=True,
        help="What to explain: a name from 'diffgradcam layers MODEL', or input:NAME for what enters it. Several are "
        "averaged.",
    )
    batch = click.option(
        "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images that run at once."
    )
    return model(layer(weights_options(batch(function))))
