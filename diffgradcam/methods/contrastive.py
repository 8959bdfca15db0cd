"""Contrastive methods: they explain differences between logits, which are all that softmax sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import heatmaps, weightings
from .._core.base import CAMOptions, TrainableCAM, TrainableOptions
from .._core.class_names import GivenClassNames, as_class_names
from .._core.display import Panel, Sheet, counted, first_panels, printed, size_text
from .._core.explanation import NamedResult
from .._core.forward import ForwardPass, ReshapeTransform
from .._core.inputs import positional
from .._core.layers import LayerSpec
from .._core.outputs import Classes
from .._core.registry import register
from .._core.requests import ClassRequest
from .._core.tensors import columns
from ..scores import Baseline, Finer, Logit, LogitDifference, Score, check_contrast, logit, refuse_same


class _Contrast(TrainableCAM):
    """A CAM of the difference between a class's logit and a baseline of the others."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        baseline: str | int | Baseline = "logsumexp",
        **options: Unpack[TrainableOptions],
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, score=LogitDifference(baseline), **options)


@register()
@final
class DiffGradCAM(_Contrast):
    """DiffGradCAM: Grad-CAM of the difference between a class's logit and a baseline of the others.

    Whatever all logits have in common, which softmax cannot see, is not in the map: a model that was changed only there
    shows the same DiffGradCAM as before. It does not protect against an attack on DiffGradCAM itself, nor against one
    that moves the activations.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        baseline: ``"logsumexp"`` (the log-odds), ``"max"``, ``"mean"``, a class index, or a callable; see
            :func:`diffgradcam.scores.logit_difference`.
        **options: As :class:`TrainableCAM`.

    Raises:
        ValueError: If the baseline is unknown; when explaining, if there are fewer than two classes.

    Reference:
        Our reading of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> before = DiffGradCAM(model, "0").explain(images, 0).maps
        >>> _ = model[3].weight.data.add_(torch.randn(4))  # the same vector for every class: no probability changes
        >>> torch.allclose(before, DiffGradCAM(model, "0").explain(images, 0).maps, atol=1e-6)
        True
    """

    weighting = staticmethod(weightings.gradcam)


@register()
@final
class DiffGradCAMPlusPlus(_Contrast):
    """DiffGradCAM++: the weighting of Grad-CAM++ for the score of :class:`DiffGradCAM`, whose arguments it takes.

    Reference:
        Our reading of version 4 of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514).
    """

    weighting = staticmethod(weightings.gradcam_plus_plus)


@register()
@final
class FinerCAM(TrainableCAM):
    """Finer-CAM: Grad-CAM of the class against its nearest classes.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        alpha: Strength of the comparison, see :func:`diffgradcam.scores.finer`.
        comparisons: How many classes to compare with.
        **options: As :class:`TrainableCAM`.

    Reference:
        Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", CVPR 2025.
    """

    weighting = staticmethod(weightings.gradcam)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        alpha: float = 1.0,
        comparisons: int = 3,
        **options: Unpack[TrainableOptions],
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, score=Finer(alpha, comparisons), **options)


_WORDS = ("runner_up", "mean")


class _Sides(NamedTuple):
    logits: Tensor
    classes: Tensor
    false_classes: Tensor | None
    true_maps: Tensor
    false_maps: Tensor
    difference: Tensor


class TrueFalseMaps(NamedResult, _Sides):
    """Both sides of a decision, and their difference. All tensors are detached; maps are signed and not scaled.

    A named tuple. In a notebook it shows its maps; printed, the classes and their logits.

    Attributes:
        logits: ``(B, K)``.
        classes: The true classes, ``(B,)``.
        false_classes: The false classes, ``(B,)`` or ``(B, N)``; None for the mean of the others.
        true_maps: ``(B, h, w)``.
        false_maps: ``(B, h, w)`` or ``(B, N, h, w)``.
        difference: ``true_maps - false_maps``, in the shape of ``false_maps``.
        class_names: The names of the classes by index; empty where none were given.
    """

    def __new__(
        cls,
        logits: Tensor,
        classes: Tensor,
        false_classes: Tensor | None,
        true_maps: Tensor,
        false_maps: Tensor,
        difference: Tensor,
        *,
        class_names: GivenClassNames | None = None,
    ) -> TrueFalseMaps:
        """See the class."""
        self = super().__new__(cls, logits, classes, false_classes, true_maps, false_maps, difference)
        self.class_names = as_class_names(class_names)
        return self

    def __repr__(self) -> str:
        """Sizes, and which classes are compared."""
        pairs = list(dict.fromkeys(f"{true} against {', '.join(false)}" for true, false in self._labels()))
        shown = ", ".join(pairs[:3]) + (", ..." if len(pairs) > 3 else "")
        return f"TrueFalseMaps({self._counts()}, maps {tuple(self.difference.shape)}: {shown})"

    def __str__(self) -> str:
        """Which classes are compared, and by how much their logits differ, in at most five lines."""
        lines = []
        for image, (true, false) in enumerate(self._labels()):
            ahead = [f"{margin:+.3g} over {label}" for label, margin in zip(false, self._margins(image), strict=True)]
            lines.append(f"image {image}: {true}, logit {', '.join(ahead)}")
        return printed(self._title(), lines, "images")

    def _labels(self) -> list[tuple[str, list[str]]]:
        """The true class and the false classes of each image."""
        label = self.class_names.label
        if self.false_classes is None:
            return [(label(true), ["the mean of the others"]) for true in self.classes.tolist()]
        pairs = zip(self.classes.tolist(), columns(self.false_classes).tolist(), strict=True)
        return [(label(true), list(map(label, false))) for true, false in pairs]

    def _margins(self, image: int) -> list[float]:
        """How far the logit of the true class is above that of each false class."""
        logits, true = self.logits[image].double(), int(self.classes[image])
        if self.false_classes is None:
            others = torch.cat([logits[:true], logits[true + 1 :]])
            return [float(logits[true] - others.mean())]
        margins: list[float] = (logits[true] - logits[columns(self.false_classes)[image]]).tolist()
        return margins

    def _counts(self) -> str:
        return f"{counted(len(self.classes), 'image')}, {counted(self.logits.shape[1], 'class')}"

    def _title(self) -> str:
        return f"True against false: {self._counts()}, maps of {size_text(self.true_maps.shape[1:])}"

    def _sheet(self) -> Sheet:
        size, panels = self.true_maps.shape[1:], []
        false, differences = (maps.reshape(len(self.classes), -1, *size) for maps in (self.false_maps, self.difference))
        for image, (true, others) in enumerate(self._labels()):
            captions, maps = [f"for {true}"], [self.true_maps[image]]
            for number, other in enumerate(others):
                captions += [f"for {other}", f"{true}\nrather than {other}"]
                maps += [false[image, number], differences[image, number]]
            scaled = heatmaps.scale_signed(torch.stack(maps).unsqueeze(0))[0]
            panels.append([Panel(*each, image, True) for each in zip(captions, scaled, strict=True)])
        note = "Red speaks for, blue against. The maps of an image have one scale, that of their largest magnitude."
        return Sheet(self._title(), first_panels(panels), [note], images=len(self.classes))


@register(command=False)
@final
class TrueFalseCAM(TrainableCAM):
    """True-vs-false divergence: where the map of the true class differs from that of the false class.

    The map of ``explain``, ``maps`` and the call is Difference Salience: the unnormalised Grad-CAM of the true
    class minus that of the false class, both before ReLU. It is signed: positive where the image speaks for the true
    class, negative where it speaks for the false one. :meth:`compare` gives both sides. "True" is the class that you
    ask for: give the label, or nothing for the decision. The call returns it scaled to [-1, 1] with 0 kept at 0.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        false_class: What the true class is compared with: ``"runner_up"`` (the largest logit of another class; of
            two classes the other one), a class index, or ``"mean"`` (the mean logit of all the others).
        **options: As :class:`TrainableCAM`, but ``score`` and ``rectify``.

    Raises:
        ValueError: If ``false_class`` is something else; when explaining, if there are fewer than two classes, or a
            class would be compared with itself.

    Reference:
        Piland, Sweet, Czajka, "Divisive Decisions", 2025 (arXiv 2507.17000): "the unnormalised false-class CAM
        subtracted from the unnormalised true-class CAM". Taking the CAMs before ReLU, and the choices for more than two
        classes, are our reading.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> both = TrueFalseCAM(model, "0").compare(torch.rand(5, 3, 8, 8), classes=0)
        >>> both.difference.shape, both.false_classes.tolist()
        (torch.Size([5, 6, 6]), [1, 1, 1, 1, 1])
    """

    weighting = staticmethod(weightings.gradcam)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        false_class: str | int = "runner_up",
        **options: Unpack[CAMOptions],
    ) -> None:
        if false_class not in _WORDS and (not isinstance(false_class, int) or isinstance(false_class, bool)):
            raise ValueError(f"false_class is {false_class!r}; expected 'runner_up', 'mean' or a class index")
        # Grad-CAM is linear in the score: the difference of two maps is the map of the difference.
        if "rectify" in options:
            raise TypeError("TrueFalseCAM is signed and takes no rectify=")
        score = LogitDifference("max" if false_class == "runner_up" else false_class)
        super().__init__(model, target_layers, reshape_transform, score=score, **options)
        self.rectify = False
        self.false_class = false_class

    def compare(
        self,
        input_tensor: Any = None,
        classes: Classes = None,
        *args: Any,
        false_classes: Classes = None,
        **kwargs: Any,
    ) -> TrueFalseMaps:
        """Both maps and their difference, from one forward pass.

        Args:
            input_tensor: As :meth:`BaseCAM.explain`.
            classes: The true class: None (argmax), an int, or ``(B,)``.
            *args: Further arguments of the model.
            false_classes: False classes of this call instead of ``false_class``: an int, ``(B,)``, or ``(B, N)`` for
                several.
            **kwargs: Further keyword arguments of the model.

        Returns:
            See :class:`TrueFalseMaps`.

        Raises:
            TypeError: As :meth:`BaseCAM.explain`.
            ValueError: As :meth:`BaseCAM.explain`; if several true classes are given for an image.
            RuntimeError: As :meth:`BaseCAM.explain`.
        """
        with self._reader.run(*positional(input_tensor, args, kwargs), **kwargs) as forward:
            return forward.settle(lambda: self._compared(forward, classes, false_classes))

    def _compared(self, forward: ForwardPass, classes: Classes, false_classes: Classes) -> TrueFalseMaps:
        logits = forward.logits
        self.class_names.check(logits)
        true = forward.classes(classes)
        if true.ndim != 1:
            shape = tuple(true.shape)
            raise ValueError(f"classes have shape {shape}; compare() takes one true class for each image")
        false = self._false_classes(forward, true) if false_classes is None else forward.classes(false_classes)
        true_maps = self._maps_of(forward, Logit(), true)
        if false is None:
            false_maps = self._maps_of(forward, _MeanOfOthers(), true)
        else:
            refuse_same(columns(true), columns(false))
            false_maps = self._maps_of(forward, Logit(), false)
        reference = true_maps.unsqueeze(1) if false_maps.ndim > true_maps.ndim else true_maps
        forward.checks.require_finite("the map", true_maps)
        forward.checks.require_finite("the map", false_maps)
        difference = reference - false_maps
        return TrueFalseMaps(
            logits.detach(), true, false, true_maps, false_maps, difference, class_names=self.class_names
        )

    def _maps_of(self, forward: ForwardPass, score: Score, classes: Tensor) -> Tensor:
        return self.fuse(self.layer_maps(forward, ClassRequest(score, columns(classes))), classes)

    def _false_classes(self, forward: ForwardPass, true: Tensor) -> Tensor | None:
        """The class to compare each of the true classes ``(B,)`` with; None for the mean of the others."""
        logits = forward.logits
        check_contrast(logits)
        if self.false_class == "mean":
            return None
        if self.false_class == "runner_up":
            return logits.detach().scatter(1, columns(true), -torch.inf).argmax(1)
        return forward.classes(self.false_class)


@dataclass(frozen=True)
class _MeanOfOthers(Score):
    """The mean logit of all classes but one."""

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        return (logits.sum(1) - logit(logits, classes)) / (logits.shape[1] - 1)
