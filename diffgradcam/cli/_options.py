"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ._methods import contrastive_names, method_names
from ._models import FORMS
from ._subject import ModelOptions

_F = TypeVar("_F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
IMAGES = click.Path(path_type=Path, exists=True)
FOLDER = click.Path(path_type=Path, file_okay=False)
BASELINES = ("logsumexp", "max", "mean")


class MethodChoice(click.Choice[str]):
    """The name of a method, of those that are registered when the command runs.

    Args:
        trainable: Only methods whose maps can be trained.
    """

    def __init__(self, *, trainable: bool = False) -> None:
        self.trainable = trainable
        super().__init__((), case_sensitive=False)

    @property  # type: ignore[override]
    def choices(self) -> Sequence[str]:
        """The names."""
        return method_names(trainable=self.trainable)

    @choices.setter
    def choices(self, _given: Sequence[str]) -> None:
        """Ignore what the base class is made with."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """The names as they are written; the base class shows them in lower case."""
        return f"[{'|'.join(self.choices)}]"


METHOD = MethodChoice()
TRAINABLE_METHOD = MethodChoice(trainable=True)


def numbers(value: str) -> tuple[float, ...]:
    """One number, or three with commas: ``0.5`` or ``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r}; expected one number, or three with commas, such as 0.485,0.456,0.406"
        ) from None


def weights_options(function: _F) -> _F:
    """Options about the weights of a model and how images are prepared, passed on as ``options``."""

    @click.option("--pretrained", is_flag=True, help="Let torchvision, timm or transformers download their weights.")
    @click.option(
        "--weights",
        type=EXISTING_FILE,
        help="File of weights to load: a PyTorch state_dict, a checkpoint of tensors, or safetensors.",
    )
    @click.option("--trust", is_flag=True, help="Load --weights that hold more than tensors, and may run code.")
    @click.option("--size", type=click.IntRange(min=1), help="Side of the model's square input image, in pixels.")
    @click.option("--mean", type=numbers, help="Mean of the pixels in [0, 1]: one number (grey images) or three.")
    @click.option("--std", type=numbers, help="Their standard deviation: one number (grey images) or three.")
    @click.option("--device", default="cpu", show_default=True, help="Device to run on, such as cuda.")
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
        class_names: Path | None = None,
        **others: Any,
    ) -> Any:
        options = ModelOptions(model, pretrained, weights, trust, size, mean, std, device, class_names)
        return function(options=options, **others)

    return command  # type: ignore[return-value]


class_names_option = click.option(
    "--class-names",
    type=EXISTING_FILE,
    help="Names of the classes: a text file with a name a line, or JSON; by default those the model comes with.",
)
"""Within :func:`weights_options`, which passes it on with the rest."""


def methods_option(default: Sequence[str]) -> Callable[[_F], _F]:
    """The option ``--method``, passed on as ``methods``.

    Args:
        default: Names of the methods that are used if none is given.

    Returns:
        A decorator.
    """
    return click.option(
        "--method",
        "methods",
        type=METHOD,
        multiple=True,
        default=default,
        show_default=True,
        help="Name of a method; may be repeated.",
    )


layer_option = click.option(
    "--layer",
    "layers",
    multiple=True,
    help="Layer to explain: a name from 'diffgradcam layers MODEL', or input:NAME for what enters it. Maps of several "
    "layers are averaged.",
)
baseline_option = click.option(
    "--baseline",
    default="logsumexp",
    show_default=True,
    help="What DiffGradCAM contrasts a class with: logsumexp, max or mean of the others, or the number of a class.",
)


def place_options(function: _F) -> _F:
    """Options about the model and its layer."""
    model = click.option("--model", default="lite0", show_default=True, help=f"{FORMS}; see 'diffgradcam --help'.")
    return model(layer_option(weights_options(function)))


def model_options(function: _F) -> _F:
    """Options about the model, its layer and the batch size."""
    batch = click.option(
        "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="How many images run at once."
    )
    return place_options(class_names_option(batch(function)))


def picture_options(function: _F) -> _F:
    """Where the pictures go, and the baseline of contrastive methods."""
    out = click.option("--out", type=FOLDER, default="out", show_default=True, help="Folder to write the pictures to.")
    html = click.option("--html", type=FILE, help="Write a report too, as one self-contained page.")
    return out(html(baseline_option(function)))


def read_baseline(word: str, methods: Sequence[str]) -> str | int:
    """The option ``--baseline``, checked against the methods that are asked for.

    Args:
        word: As given.
        methods: Names of the methods.

    Returns:
        The name of a baseline, or the number of a class.

    Raises:
        click.BadParameter: If no method has a baseline, or there is no such baseline.
    """
    if word != "logsumexp" and not set(methods) & set(contrastive_names()):
        raise click.BadParameter(
            f"the methods are {', '.join(methods)}; --baseline needs {' or '.join(contrastive_names())}",
            param_hint="--baseline",
        )
    if word.isdecimal():
        return int(word)
    if word not in BASELINES:
        raise click.BadParameter(
            f"{word!r}; expected logsumexp, max, mean or the number of a class", param_hint="--baseline"
        )
    return word
