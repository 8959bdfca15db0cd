"""What every command needs first: a model with its layer, and the images of a file or a folder in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._core.base import BaseCAM
from .._core.layers import LayerSpec, find_layers
from .._core.naming import one_line
from .._core.outputs import find_logits
from ..tokens import tokens_to_grid
from ._images import BadImage, Picture, Preparation, find_images, read_image
from ._layer_finder import ExplainableLayers, Place, find_explainable_layers, parse_layer
from ._methods import make_cam
from ._models import LoadedModel, load_model, read_class_names


@dataclass(frozen=True)
class ModelOptions:
    """What the options say about a model; see ``diffgradcam explain --help``."""

    name: str
    pretrained: bool
    weights: Path | None
    trust: bool
    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    device: str
    class_names: Path | None = None

    def load(self, weights: Path | None = None) -> LoadedModel:
        """Build the model, with its own weights or others, and warn if they are random.

        Args:
            weights: Instead of those of the options.

        Returns:
            The model on its device.

        Raises:
            ValueError: If the device cannot be used here, or mean and standard deviation do not fit each other.
        """
        file = weights or self.weights
        loaded = load_model(self.name, pretrained=self.pretrained, weights=file, trust=self.trust)
        if loaded.untrained:
            warn(
                f"{self.name} has RANDOM weights, so its decisions and maps mean nothing; add --pretrained to fetch "
                "trained ones, or --weights FILE"
            )
        own = loaded.preparation
        preparation = replace(own, size=self.size or own.size, mean=self.mean or own.mean, std=self.std or own.std)
        if len(preparation.mean) != len(preparation.std) or len(preparation.mean) not in (1, 3):
            raise ValueError(
                f"mean {preparation.mean} and standard deviation {preparation.std}; expected one number each (grey "
                "images) or three each (RGB); give both --mean and --std"
            )
        try:
            model = loaded.model.to(self.device)
        except (AssertionError, RuntimeError) as error:  # a PyTorch without CUDA, or no such device
            raise ValueError(
                f"device {self.device!r} cannot be used here: {error}; --device cpu works everywhere"
            ) from error
        names = loaded.class_names if self.class_names is None else read_class_names(self.class_names)
        return replace(loaded, model=model, preparation=preparation, class_names=names)


@dataclass(frozen=True)
class Subject:
    """A model and the place in it that is explained."""

    loaded: LoadedModel
    layers: list[LayerSpec]
    layer_names: list[str]
    reshape_transform: Any
    size: tuple[int, ...]  # of the maps

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self.loaded.model

    @property
    def preparation(self) -> Preparation:
        """How it wants its images prepared."""
        return self.loaded.preparation

    def make_cam(self, method: str, baseline: str | int = "logsumexp", *, model: nn.Module | None = None) -> BaseCAM:
        """A method, ready to explain the place.

        Args:
            method: Its name.
            baseline: Of the contrastive methods.
            model: Instead of the subject's own, another one with the same layers.

        Returns:
            The CAM.
        """
        names = self.loaded.class_names
        return make_cam(method, model or self.model, self.layers, self.reshape_transform, baseline, names)

    def inputs(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures as the model takes them, ``(B, C, H, W)``, of its device and precision."""
        images = torch.stack([self.preparation.tensor(picture.image) for picture in pictures])
        return images.to(next(self.model.parameters(), images))

    def facts(self) -> dict[str, Any]:
        """The facts about the model that are in every result."""
        return {
            "model": self.loaded.name,
            "layer": ", ".join(self.layer_names),
            "untrained": self.loaded.untrained,
        }

    def class_name(self, index: int) -> str | None:
        """The name of a class; None where it is not known."""
        return self.loaded.class_names.get(index)

    def label(self, index: int) -> str:
        """A class as people read it: its name and its number."""
        return self.loaded.class_names.label(index)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """A plain forward pass, ``(B, K)``.

    Args:
        model: A classifier.
        images: ``(B, C, H, W)``.

    Returns:
        Its logits.

    Raises:
        ValueError: If it returns something else.
    """
    with torch.no_grad():
        logits = find_logits(model(images))
    if logits.ndim != 2:
        raise ValueError(f"the model's output has shape {tuple(logits.shape)}; expected logits of classes, (B, K)")
    return logits


class Item(NamedTuple):
    """An image, read."""

    path: Path
    picture: Picture


@dataclass
class Images:
    """The images of a file or a folder; those that cannot be read are listed here and skipped.

    Attributes:
        paths: All of them.
        failed: Path and reason of those that could not be read so far.
    """

    paths: list[Path]
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Images:
        """Find them."""
        paths, others = find_images(path)
        if others:
            say(f"{shown(path)}: {len(paths)} images; {others} other files are ignored")
        return cls(paths)

    def failures(self) -> list[dict[str, str]]:
        """The images that could not be read, for the JSON result."""
        return [{"image": path, "error": reason} for path, reason in self.failed.items()]

    def complaints(self) -> list[str]:
        """The images that could not be read, as lines to print."""
        return [f"NOT READ {shown(path)}: {reason}" for path, reason in self.failed.items()]

    def batches(self, subject: Subject, size: int) -> Iterator[tuple[list[Item], Tensor]]:
        """Read and prepare them, a few at a time.

        Args:
            subject: Whose model they are prepared for.
            size: How many at once.

        Yields:
            ``(items, images (B, C, H, W))``, never empty.
        """
        items: list[Item] = []
        with tqdm(self.paths, unit="image", disable=None if len(self.paths) > 1 else True) as bar:
            for path in bar:
                try:
                    items.append(Item(path, read_image(path)))
                except BadImage as error:
                    self.failed[str(path)] = str(error)
                    warn(f"{shown(path)}: {error}")
                    continue
                for note in items[-1].picture.notes:
                    say(f"{shown(path)}: {note}")
                if len(items) == size:
                    yield items, subject.inputs([item.picture for item in items])
                    items = []
        if items:
            yield items, subject.inputs([item.picture for item in items])


def set_up(options: ModelOptions, layers: Sequence[str]) -> Subject:
    """Load the model and find what to explain in it.

    Args:
        options: About the model.
        layers: As given; where there are none, the last layer with positions is taken, and its name is printed.

    Returns:
        The subject.

    Raises:
        ValueError: If no layer is given and none is found, or one that is given does not exist or has no positions.
    """
    loaded = options.load()
    found = find_layers_of(loaded)
    subject = subject_at(loaded, found, layers)
    if not layers and found.default is not None:
        say(f"layer: {found.default.name}, activations {_shape(found.default)}; choose another one with --layer")
    return subject


def find_layers_of(loaded: LoadedModel) -> ExplainableLayers:
    """The layers of a model that can be explained; see :func:`find_explainable_layers`."""
    return find_explainable_layers(loaded.model, len(loaded.preparation.mean), loaded.preparation.size)


def subject_at(loaded: LoadedModel, found: ExplainableLayers, layers: Sequence[str]) -> Subject:
    """A model and layers of it.

    Args:
        loaded: The model.
        found: Its layers.
        layers: Their names; where there are none, the default.

    Returns:
        The subject.

    Raises:
        ValueError: If there is no default, or a layer does not exist.
    """
    if layers:
        targets = [parse_layer(name) for name in layers]
        by_name = {place.name: place for place in (*found.outputs, *found.inputs)}
        places = [by_name[name] for name in layers if name in by_name]
        names = list(layers)
        find_layers(loaded.model, targets)  # for its error, which suggests names
    else:
        if found.default is None:
            raise ValueError(
                f"no layer of {loaded.name} has positions that can be found; name one with --layer, and see "
                f"'diffgradcam layers {loaded.name}'"
            )
        places, targets, names = [found.default], [found.default.target], [found.default.name]
    forms = {place.form for place in places}
    reshape = tokens_to_grid if "tokens" in forms else None
    return Subject(loaded, targets, names, reshape, places[0].shape[1:] if forms == {"grid"} else ())


def _shape(place: Place) -> str:
    return " x ".join(map(str, place.shape))


def shown(path: Path | str) -> str:
    """A path that is safe to print: control characters, such as those of a hostile file name, are escaped."""
    return one_line(str(path))


def printable(text: str) -> str:
    """A text of several lines that is safe to print, as :func:`shown`: class names may be hostile too."""
    return "\n".join(map(shown, text.expandtabs().split("\n")))


def say(text: str) -> None:
    """Tell the user something, on standard error."""
    with tqdm.external_write_mode():
        click.echo(printable(text), err=True)


def warn(text: str) -> None:
    """Warn the user, on standard error."""
    with tqdm.external_write_mode():
        click.secho(printable(f"WARNING: {text}"), err=True, fg="red", bold=True)
