"""What ``view`` shows of an image: its maps, its logits and its audit, for a choice. It knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .._core.base import ScoredCAM
from ..analysis.comparisons import explain_pairs
from ..robustness import audit
from ..scores import refuse_same
from ..visualize.arrays import Array
from ..visualize.pages import jpeg
from ..visualize.report import Heat
from ._explanations import decision
from ._images import BadImage, Picture, read_image
from ._layer_finder import ExplainableLayers
from ._methods import contrastive_names, method_names
from ._models import LoadedModel
from ._options import BASELINES
from ._pictures import heat_picture, signed_picture, view_picture
from ._subject import Images, Item, Subject, logits_of, shown, subject_at

MOST_IMAGES = 1000
_DEFAULT_METHOD = "DiffGradCAM"
_TOP = 10  # classes of the table
_PICTURE, _THUMBNAIL = 336, 96  # sides in pixels


class Choice(NamedTuple):
    """What someone chose on the page.

    Attributes:
        image: Its place in the list.
        explained: A class; None for the decision.
        other: A class to compare it with, or None.
        layer: One of :attr:`Viewer.layers`.
        method: One of :func:`method_names`.
        baseline: One of :data:`BASELINES`; only some methods have one.
    """

    image: int
    explained: int | None
    other: int | None
    layer: str
    method: str
    baseline: str


class Panel(NamedTuple):
    """A map over the picture.

    Attributes:
        heat: The map.
        ends: What its lowest and its highest colour stand for.
        signed: Whether it is signed, in blue and red.
        notes: What else is to be known about it.
    """

    heat: Heat
    ends: tuple[str, str] = ("low", "high")
    signed: bool = False
    notes: Sequence[str] = ()


class Look(NamedTuple):
    """What is shown for a choice.

    Attributes:
        item: The image.
        picture: What the model sees of it, ``(H, W, 3)``, uint8, RGB.
        decided: The decision, as :func:`decision` says it.
        maps: Of the class, and where two are compared, of the other and of their difference.
        classes: The most likely ones, and those that are explained, as :func:`decision` says them.
        explained: The class.
        other: The class that it is compared with, or None.
        audit: What the decision depends on, and the common mode; empty where the model cannot be audited.
        verdict: The audit in words, or why there is none.
    """

    item: Item
    picture: Array
    decided: dict[str, Any]
    maps: list[Panel]
    classes: list[dict[str, Any]]
    explained: int
    other: int | None
    audit: list[Panel]
    verdict: str


@dataclass(frozen=True)
class Viewer:
    """A model and the images that it explains on request.

    An image is asked for by its place in the list, so no request names a file.

    Attributes:
        loaded: The model.
        found: Its layers.
        layers: The layers to choose from, by what they are called; several are averaged.
        classes: How many the model has.
        images: Those that were found at the start.
        root: The folder that they may not lie outside of, links followed; None for one image, which was named.
    """

    loaded: LoadedModel
    found: ExplainableLayers
    layers: Mapping[str, tuple[str, ...]]
    classes: int
    images: Sequence[Path]
    root: Path | None

    @classmethod
    def of(cls, loaded: LoadedModel, found: ExplainableLayers, layers: Sequence[str], path: Path) -> Viewer:
        """Find the images, and run the model once to count its classes.

        Args:
            loaded: The model.
            found: Its layers.
            layers: Names of those that are explained first; where there are none, the default.
            path: An image, or a folder of images.

        Returns:
            The viewer.

        Raises:
            ValueError: If there is no image, no such layer, or the model returns no logits ``(B, K)``.
        """
        subject = subject_at(loaded, found, layers)
        first = tuple(subject.layer_names)
        offered = {", ".join(first): first, **{place.name: (place.name,) for place in found.offered()}}
        blank = Picture(Image.new("RGB", (loaded.preparation.size,) * 2), [])
        classes = logits_of(loaded.model, subject.inputs([blank])).shape[1]
        images = Images.of(path).paths[:MOST_IMAGES]
        return cls(loaded, found, offered, classes, images, path.resolve() if path.is_dir() else None)

    def choose(self, words: Mapping[str, str]) -> Choice:
        """Check what was chosen.

        Args:
            words: By the name of the control. What is not there, or empty, takes its default.

        Returns:
            The choice.

        Raises:
            ValueError: If there is no such image, class, layer, method or baseline.
        """

        def one_of(name: str, known: Sequence[str]) -> str:
            word = words.get(name) or known[0]
            if word not in known:
                raise ValueError(f"{name} is {shown(word)!r}; expected one of {', '.join(known)}")
            return word

        methods = method_names()
        methods.sort(key=lambda name: name != _DEFAULT_METHOD)  # it is the first, and the others stay in order
        return Choice(
            image=_number(words, "image", len(self.images)) or 0,
            explained=_number(words, "class", self.classes),
            other=_number(words, "other", self.classes),
            layer=one_of("layer", list(self.layers)),
            method=one_of("method", methods),
            baseline=one_of("baseline", BASELINES),
        )

    def subject(self, layer: str) -> Subject:
        """The model and one of :attr:`layers`."""
        return subject_at(self.loaded, self.found, self.layers[layer])

    def read(self, index: int) -> Item:
        """Read an image.

        Args:
            index: Its place in the list.

        Returns:
            The image.

        Raises:
            BadImage: If it cannot be read, or lies outside of the folder. That is asked at each reading: a file may
                become a link.
        """
        path = self.images[index]
        try:
            return Item(path, read_image(self._inside(path)))
        except BadImage as error:
            raise BadImage(f"{shown(path.name)}: {error}") from error

    def thumbnail(self, index: int) -> bytes:
        """A small JPEG of what the model sees of an image.

        Args:
            index: As for :meth:`read`.

        Returns:
            The file.

        Raises:
            BadImage: As :meth:`read`.
        """
        return jpeg(view_picture(self.subject(next(iter(self.layers))), self.read(index), _THUMBNAIL))

    def look(self, choice: Choice) -> Look:
        """Explain an image.

        Args:
            choice: What to explain, and how.

        Returns:
            All that is shown of it.

        Raises:
            BadImage: As :meth:`read`.
            ValueError: If a class is compared with itself; otherwise as the method.
        """
        subject = self.subject(choice.layer)
        item = self.read(choice.image)
        images = subject.inputs([item.picture])
        logits = logits_of(subject.model, images)[0]
        decided = int(logits.argmax())
        explained = decided if choice.explained is None else choice.explained
        pair = [explained] if choice.other is None else [explained, choice.other]
        likely = logits.topk(min(_TOP, len(logits))).indices.tolist()
        classes = {index: decision(subject, logits, index) for index in [*likely, *pair]}
        panels, verdict = _audited(subject, images)
        return Look(
            item=item,
            picture=view_picture(subject, item, _PICTURE),
            decided=classes[decided],
            maps=_maps(subject, images, choice, [classes[index] for index in pair]),
            classes=sorted(classes.values(), key=lambda each: -float(each["logit"])),
            explained=explained,
            other=choice.other,
            audit=panels,
            verdict=verdict,
        )

    def _inside(self, path: Path) -> Path:
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise BadImage("not a regular file") from error
        if self.root is not None and not real.is_relative_to(self.root):
            raise BadImage("a link that leads out of the folder; expected a file in it")
        return real


def _maps(subject: Subject, images: Tensor, choice: Choice, classes: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The map of each class and, of two, that of their difference."""
    pair = torch.tensor([each["class"] for each in classes], device=images.device)
    if len(pair) == 2:
        refuse_same(pair[:1], pair[1:])
    cam = subject.make_cam(choice.method, choice.baseline)
    baseline = f", baseline {choice.baseline}" if choice.method in contrastive_names() else ""
    panels = []
    for each, values in zip(classes, cam.explain(images, pair.unsqueeze(0)).maps[0], strict=True):
        caption = f"{each['label']}, {each['probability']:.1%}"
        heat = Heat(choice.method + baseline, each["label"], heat_picture(values), caption)
        panels.append(Panel(heat, notes=[] if bool(values.any()) else ["the map is 0 everywhere"]))
    if len(panels) < 2:
        return panels
    if not isinstance(cam, ScoredCAM):
        note = f"{choice.method} shows the same map for every class, so there is nothing to compare"
        return [panels[0], panels[1]._replace(notes=[note])]
    both = explain_pairs(cam, images, pair).maps[0]
    difference = both[0, 1] - both[1, 0]
    first, second = (each["label"] for each in classes)
    picture = signed_picture(difference, _largest(difference))
    heat = Heat(choice.method, first, picture, f"what tells {first} from {second}")
    return [*panels, Panel(heat, (second, first), signed=True)]


def _audited(subject: Subject, images: Tensor) -> tuple[list[Panel], str]:
    try:
        report = audit(
            subject.model, subject.layers, images, reshape_transform=subject.reshape_transform, progress=False
        )
    except (ValueError, TypeError) as error:  # sigmoids and probabilities have no common mode
        return [], f"Not audited: {error}"
    maps = {"what the decision depends on": report.visible[0], "common mode": report.invisible[0]}
    limit = max(map(_largest, maps.values()))
    label = subject.label(int(report.classes[0]))
    panels = [
        Panel(Heat(f"GradCAM of {label}", label, signed_picture(values, limit), name), ("against", "for"), signed=True)
        for name, values in maps.items()
    ]
    return panels, (
        f"Common mode, which no decision depends on, is {100 * float(report.common_mode_share[0]):.2g}% of the energy "
        f"of this GradCAM. A model is exposed above {report.thresholds.share:.0%}, in the median of many images; "
        "whether its maps lie, diffgradcam audit says."
    )


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _number(words: Mapping[str, str], name: str, count: int) -> int | None:
    word = words.get(name) or ""
    if not word:
        return None
    if not (word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < count):
        raise ValueError(f"{name} is {shown(word)!r}; expected a number from 0 to {count - 1}")
    return int(word)
