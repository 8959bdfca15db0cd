"""Find out whether the class activation maps of one checkpoint lie, without a clean copy.

A logit is ``z_c = (z_c - mean z) + mean z``, and GradCAM is linear in the score. So its signed map is a sum of two.
The first map is *visible* to softmax, and so to every decision, probability and loss. The second, the *common mode*, is
not: no decision ever needed what it shows.

A large common mode is an *exposure*: GradCAM could be hiding something. It is not a lie as long as GradCAM still says
what the model relies on, and clean models may have one. The gradient of cross-entropy with respect to the logits,
``p - onehot``, sums to 0 over the classes, so plain gradient descent adds vectors to the rows of the last layer that
sum to 0, and never changes their mean. A common mode therefore comes from the initialisation (which weight decay
shrinks), from the per-weight scaling of optimisers like Adam, from rows that share vectors of a codebook, from losses
other than cross-entropy, or from an attack.

Such an optimiser leaves an *offset*: it pushes down the classes that an image does not show, all alike and by all
channels alike, and the common mode becomes the sum of the activations, negated. An offset can spoil GradCAM, but it has
no shape that anybody chose, so it is an exposure and no lie.

A *lie* is a map that contradicts what the model does. What the model does is measured on the model alone, so a lie of
GradCAM that sits in the common mode shows in a comparison within one model: the map without the common mode agrees with
occlusion, and GradCAM does not. For a lie of the map without the common mode there is no such comparison. Its agreement
with occlusion and with a lower layer, and whether it moves with a shifted image, are compared with what clean models
have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._core.batches import check_images
from .._core.checks import check_choice, check_share, described
from .._core.class_names import NO_NAMES, ClassNames, GivenClassNames, as_class_names
from .._core.common_mode import common_mode_share, invisible_score, visible_score
from .._core.display import Panel, Sheet, ShownMaps, first_panels
from .._core.editing import by_name, copy_model, evaluated, find_head, linear_head, linear_layers_that_run
from .._core.layers import LayerSpec
from .._core.lower import find_lower_layer
from .._core.outputs import find_logits
from .._core.wrappers import inner_model
from ..analysis.comparisons import explain_together
from ..heatmaps import minmax, rectify, resize, scale_signed
from ..methods.activation import ActivationCAM
from ..methods.gradient import GradCAM, LayerCAM
from ..metrics.behaviour import GRID, drops_from, occlusion_agreement
from ..metrics.evaluator import Evaluator
from ..metrics.similarity import cosine, pearson
from ..scores import logit_difference

AuditVerdict = Literal["clean", "exposed", "fooled", "could not tell"]
Sign = Literal["common mode", "behaviour"]

_EVERY = 2  # occlusions around every second cell of the grid: as good as around every one, at a third of the price
_STANDARD_ERRORS = 1.645  # on both sides of a mean: 90%
OUTWEIGHS = 0.8  # share: hardly anything that GradCAM shows is about a decision, whatever it agrees with
_OFFSET = 0.99  # cosine: such a common mode is the sum of the activations, and has no shape of its own
_ENOUGH_IMAGES = 8  # for an interval
_SHIFTED_BY = 4  # a shift by a quarter of the map
_ENOUGH_OUTPUTS = 20


@dataclass(frozen=True)
class AuditThresholds:
    """Where an audit draws its lines.

    Attributes:
        share: A median common-mode share above this is an exposure. From 0 to 1.
        gap: Where there is an exposure, GradCAM lies if its mean agreement with occlusion is lower by more than this
            than without the common mode. From 0 to 2. A loss of 0.1 is what we call a lie elsewhere; the noise of 32
            images is put on top.
        agreement: The map without the common mode lies if the interval of its mean agreement with occlusion is below
            this. From -1 to 1.
        honesty: It also lies if the interval of its mean honesty is below this. From -1 to 1.
        consistency: It also lies if the interval of its mean consistency is below this. From -1 to 1.

    Raises:
        ValueError: If one is out of range.
    """

    share: float = 0.1
    gap: float = 0.15
    agreement: float = 0.1
    honesty: float = 0.15
    consistency: float = 0.25

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if not 0 <= self.gap <= 2:
            raise ValueError(f"gap is {self.gap}; expected a difference of correlations, from 0 to 2")
        for name in ("agreement", "honesty", "consistency"):
            value = getattr(self, name)
            if not -1 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a correlation, from -1 to 1")


@dataclass(frozen=True)
class AuditReport(ShownMaps):
    """What an audit measured, one value per image where not said otherwise, and its verdict.

    In a notebook it shows GradCAM and the two maps that it is the sum of; printed, the verdict and what it rests on.

    Attributes:
        logits: ``(B, K)``.
        classes: The decisions, whose maps are audited, ``(B,)``.
        visible: Signed GradCAM of ``z_c - mean z``, ``(B, *S)``. Rectified, it is the map *without the common mode*:
            that of DiffGradCAM with the mean of the other logits as its baseline, and of GradCAM after :func:`repair`.
        invisible: Signed GradCAM of ``mean z``, ``(B, *S)``. The two add up to GradCAM.
        common_mode_share: Energy (sum of squares over the positions) of the invisible map over that of both maps,
            ``(B,)``, in [0, 1]; 0 where both are 0.
        gradcam_agreement: Pearson's r of GradCAM with the drop of the log-odds under occlusion, ``(B,)``, in [-1, 1].
            None where behaviour cannot be measured: images or maps without two spatial dimensions, very small ones (3 x
            3 pixels and 2 x 2 positions are needed), or a model on which occlusion has no effect.
        visible_agreement: The same for the map without the common mode.
        visible_follows: Pearson's r of that map, moved by a quarter, with the map of the image that was moved by a
            quarter (and wrapped around), ``(B,)``, in [-1, 1].
        lower_agreement: Pearson's r of that map with LayerCAM of the log-odds, of a lower layer, brought to its size,
            ``(B,)``, in [-1, 1]. None where there is no lower layer, or behaviour was not measured.
        lower_layer: The lower layer, by its dotted name: the nearest one that everything passes through, with a
            convolution or the like in between and a grid that is not coarser.
        offset: Cosine of the invisible map with the sum of the activations over the channels, ``(B,)``, in [-1, 1]. At
            -1 or 1 the common mode is an offset: it has no shape that anybody chose.
        weight_share: The common-mode share of the rows of the last linear layer: the energy of their mean, repeated for
            each class, over that of all rows. None where the model's head cannot be found. It also finds a common mode
            that these images do not excite, but it is not part of the verdict.
        thresholds: What the verdict was drawn with.
        class_names: The names of the classes by index; empty where none were given.
    """

    logits: Tensor
    classes: Tensor
    visible: Tensor
    invisible: Tensor
    common_mode_share: Tensor
    gradcam_agreement: Tensor | None
    visible_agreement: Tensor | None
    visible_follows: Tensor | None
    lower_agreement: Tensor | None
    lower_layer: str | None
    offset: Tensor
    weight_share: float | None
    thresholds: AuditThresholds
    class_names: ClassNames = NO_NAMES

    @property
    def exposed(self) -> bool:
        """Whether GradCAM could be hiding something, because the median share is above its threshold."""
        return float(self.common_mode_share.median()) > self.thresholds.share

    @property
    def gap(self) -> Tensor | None:
        """How much better the map without the common mode agrees with occlusion than GradCAM does, ``(B,)``."""
        if self.gradcam_agreement is None or self.visible_agreement is None:
            return None
        return self.visible_agreement - self.gradcam_agreement

    @property
    def honesty(self) -> Tensor | None:
        """Mean of the agreement with occlusion and of following a shift, of the map without common mode, ``(B,)``."""
        if self.visible_agreement is None or self.visible_follows is None:
            return None
        return (self.visible_agreement + self.visible_follows) / 2

    @property
    def consistency(self) -> Tensor | None:
        """Mean of the agreements with occlusion and with a lower layer, of the map without common mode, ``(B,)``."""
        if self.visible_agreement is None or self.lower_agreement is None:
            return None
        return (self.visible_agreement + self.lower_agreement) / 2

    @property
    def contradicted(self) -> bool:
        """Whether GradCAM contradicts what the model does, by the common mode, whoever or whatever put it there.

        There is an exposure, and the map without the common mode agrees better with occlusion than GradCAM does, by
        more than the threshold.
        """
        return self.exposed and self.gap is not None and _mean(self.gap) > self.thresholds.gap

    @property
    def is_offset(self) -> bool:
        """Whether the common mode is an offset, the sum of the activations, mostly negated.

        Its median cosine with that sum is beyond 0.99. Training leaves offsets: the classes that an image does not show
        are pushed down, all alike and by all channels alike. Such a common mode may spoil GradCAM, but it shows nothing
        that anybody chose.
        """
        return abs(float(self.offset.median())) > _OFFSET

    @property
    def signs(self) -> tuple[Sign, ...]:
        """Which signs say that a map lies.

        ``"common mode"``: GradCAM lies, and neither DiffGradCAM nor GradCAM after :func:`repair` is affected. It is
        contradicted, and the common mode is not a mere offset; or more than 0.8 of GradCAM's energy is common mode.
        ``"behaviour"``: they lie too. The interval over the images (90%) of the agreement, of honesty or of consistency
        is below its threshold. There is none for fewer than 8 images.
        """
        found: list[Sign] = []
        if (self.contradicted and not self.is_offset) or float(self.common_mode_share.median()) > OUTWEIGHS:
            found.append("common mode")
        if any(high < threshold for _, high, threshold in self._intervals()):
            found.append("behaviour")
        return tuple(found)

    @property
    def fooled(self) -> bool:
        """Whether a map lies, by any sign."""
        return bool(self.signs)

    @property
    def verdict(self) -> AuditVerdict:
        """What all of it comes to.

        - ``"fooled"``: a map lies.
        - ``"could not tell"``: no lie for certain, but an interval reaches below its threshold, there are fewer than 8
          images, or behaviour could not be measured.
        - ``"exposed"``: no lie, but GradCAM could be hiding something, or is spoilt by an offset (``contradicted``).
        - ``"clean"``: none of these. It certifies nothing.
        """
        if self.fooled:
            return "fooled"
        intervals = self._intervals()
        if not intervals or any(low < threshold for low, _, threshold in intervals):
            return "could not tell"
        return "exposed" if self.exposed else "clean"

    def _intervals(self) -> list[tuple[float, float, float]]:
        """Ends of the intervals that are compared with a threshold, and the threshold."""
        lines = (
            (self.visible_agreement, self.thresholds.agreement),
            (self.honesty, self.thresholds.honesty),
            (self.consistency, self.thresholds.consistency),
        )
        return [(*_interval(values), threshold) for values, threshold in lines if values is not None]

    def __str__(self) -> str:
        """The report in a few lines."""
        share = self.common_mode_share
        verdict = "FOOLED" if self.fooled else self.verdict
        by = f" ({', '.join(self.signs)})" if self.signs else ""
        lines = [
            f"{verdict}{by} in {len(share)} images, {self.logits.shape[1]} classes",
            f"  common mode: {float(share.median()):.2g} of GradCAM's energy (median; {float(share.min()):.2g} to "
            f"{float(share.max()):.2g}); exposed above {self.thresholds.share:g}",
        ]
        if self.exposed:
            lines.append(
                f"  its cosine with the sum of the activations: {float(self.offset.median()):.2f} (median); beyond "
                f"{_OFFSET:g} it is an offset, as training leaves"
            )
        if self.weight_share is not None:
            lines.append(f"  common mode of the last layer's weights: {self.weight_share:.2g} of their energy")
        return "\n".join([*lines, *self._behaviour(), f"  {self._advice()}"])

    def _behaviour(self) -> list[str]:
        if self.gradcam_agreement is None or self.visible_agreement is None or self.honesty is None:
            return ["  behaviour: not measured; it needs images and maps with two spatial dimensions, and some effect"]
        return [
            f"  agreement of GradCAM with occlusion: {_mean(self.gradcam_agreement):.2f} (mean r); if exposed, a lie "
            f"if lower by more than {self.thresholds.gap:g} than without the common mode",
            f"  without the common mode: {_shown(self.visible_agreement)}; a lie below {self.thresholds.agreement:g}",
            f"  and its mean with following a shifted image: {_shown(self.honesty)}; a lie below "
            f"{self.thresholds.honesty:g}",
            *self._layers(),
        ]

    def _layers(self) -> list[str]:
        if self.consistency is None:
            return []
        return [
            f"  and with agreement with {self.lower_layer!r}, which is below: {_shown(self.consistency)}; a lie below "
            f"{self.thresholds.consistency:g}"
        ]

    def _advice(self) -> str:
        if "behaviour" in self.signs:
            return "trust no map of this layer: they contradict what the model does, and repair(model) does not help"
        if self.signs:
            return "GradCAM lies; use DiffGradCAM, or GradCAM of repair(model, where='output')"
        if self.verdict == "could not tell" and self.honesty is not None:
            return "audit more images, or images of what the model was trained on"
        if self.contradicted:
            return (
                "GradCAM contradicts what the model does, by an offset that nobody need have written; use DiffGradCAM, "
                "or GradCAM of repair(model, where='output')"
            )
        if self.exposed:
            return "GradCAM could hide something; DiffGradCAM, or GradCAM of repair(model, where='output'), could not"
        return "no sign of a lie, which certifies nothing"

    def _sheet(self) -> Sheet:
        title, *lines = str(self).split("\n")
        gradcam = minmax(rectify(self.visible + self.invisible))
        sides = scale_signed(torch.stack([self.visible, self.invisible], 1))  # on one scale
        panels = [
            [
                Panel(f"{self.class_names.label(index)}\nGradCAM", gradcam[image], image),
                Panel("what the decision depends on", sides[image, 0], image, True),
                Panel(f"common mode\nshare {share:.2g}", sides[image, 1], image, True),
            ]
            for image, (index, share) in enumerate(
                zip(self.classes.tolist(), self.common_mode_share.tolist(), strict=True)
            )
        ]
        return Sheet(title, first_panels(panels), [line.strip() for line in lines], images=len(panels))


_DEFAULT = AuditThresholds()


def audit(
    model: nn.Module,
    target_layers: LayerSpec | Sequence[LayerSpec],
    images: Tensor,
    *,
    thresholds: AuditThresholds = _DEFAULT,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    output: Callable[[Any], Tensor] = find_logits,
    class_names: GivenClassNames | None = None,
    progress: bool = True,
) -> AuditReport:
    """Find out whether the maps of a checkpoint lie. Needs no clean copy.

    Four measurements, in 19 forward passes for each image, and one more for the first:

    - *Exposure* (one pass): how much of GradCAM softmax cannot see, and whether that is a mere offset.
    - *Agreement* (16 passes): windows of 3 x 3 cells of a 7 x 7 grid, around every second cell, are filled with the
      image's mean colour, and the drop of the log-odds is correlated with the mean of the map in the window. GradCAM
      and the map without the common mode are compared with the same drops. Where there is an exposure that is not a
      mere offset, and the latter agrees much better, GradCAM lies.
    - *Following* (one pass): whether the map without the common mode moves with the image. Its mean with the agreement
      is the *honesty* of that map. Below what clean models have, it lies, and so does DiffGradCAM.
    - *A lower layer* (one pass): whether the map without the common mode agrees with LayerCAM of the next lower layer,
      which is found in the autograd graph of the first image. The mean with the agreement with occlusion is the
      *consistency* of that map. Below what clean models have, it lies. An attack that fools both layers passes.

    16 occlusions tell lies as well as 49 do, integrated gradients in 8 steps do not, and neither does how alike the
    maps of different images are. ``docs/results/audit.md`` has the numbers: how many lies are found, and on which
    honest models there is an alarm. What is missed most is an attack on DiffGradCAM that leaves its map about as honest
    as some clean maps are.

    A verdict is evidence, not proof: "clean" certifies nothing.

    Args:
        model: A softmax classifier that returns logits. It is left as it is; if any part of it is in training mode, a
            copy in evaluation mode is audited.
        target_layers: As a CAM takes them.
        images: Images as the model takes them, ``(B, C, H, W)``, as it was trained on. 32 or more are better than few.
        thresholds: Where to draw the lines.
        reshape_transform: As a CAM takes it.
        output: As a CAM takes it.
        class_names: As a CAM takes them, for the report.
        progress: Show a progress bar for the occlusions.

    Returns:
        The measurements and the verdict, see :class:`AuditReport`.

    Raises:
        ValueError: If the outputs are not the logits of a softmax: one output, probabilities, log-probabilities, or
            (20 values and more, all between 0 and 1) sigmoids. Sigmoids that are applied outside the model cannot be
            told from softmax logits. Also if there are no images.
        TypeError: If ``images`` is not a tensor, or ``thresholds`` is something else; otherwise as
            :meth:`~diffgradcam.BaseCAM.explain`.

    Reference:
        That softmax does not see what all logits share, and Grad-CAM does, was used to fool before: Lerma and Lucas,
        2023 (arXiv 2307.03305); Viering et al., 2019 (arXiv 1907.10901). A contrast as what softmax does see: Wang and
        Wang, NeurIPS 2022. Ours: the share of the common mode as a sign that needs no clean copy, the offset, and the
        agreement with occlusion and with a lower layer, and following, as the others. Occlusion: Zeiler and Fergus,
        "Visualizing and Understanding Convolutional Networks", ECCV 2014. LayerCAM: Jiang et al., IEEE TIP 2021.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> _ = model[3].weight.data.add_(5.0)  # the same for every class: no decision changes
        >>> report = audit(model, "0", torch.rand(8, 3, 16, 16), progress=False)
        >>> report.exposed, report.weight_share > 0.9
        (True, True)
        >>> audit(repair(model), "0", torch.rand(8, 3, 16, 16), progress=False).exposed
        False
    """
    check_images(images)
    if not isinstance(thresholds, AuditThresholds):
        raise TypeError(f"thresholds is {type(thresholds).__name__}; expected diffgradcam.robustness.AuditThresholds")
    target_layers, model = by_name(model, target_layers), evaluated(inner_model(model))

    names = as_class_names(class_names)
    checked = _Checked(output, names)
    cams = [
        *(
            GradCAM(model, target_layers, reshape_transform, score=score, rectify=False, output=checked)
            for score in (visible_score, invisible_score)
        ),
        ActivationCAM(model, target_layers, reshape_transform, rectify=False, output=checked),
    ]
    with linear_layers_that_run(model) as linear:
        (logits, classes, visible), (_, _, invisible), (_, _, active) = explain_together(cams, images)
    gradcam_agreement = visible_agreement = visible_follows = lower_agreement = lower_layer = None
    if images.ndim == 4 and min(images.shape[2:]) > 2 and visible.ndim == 3 and min(visible.shape[1:]) > 1:
        evaluator = Evaluator(model, output=output)
        before = logit_difference(logits, classes)
        grid = min(GRID, *images.shape[2:])
        drops = drops_from(evaluator, images, classes, before, grid, every=_EVERY, progress=progress)
        if bool((drops != drops[:, :1, :1]).any()):  # else the model relies on nothing, and there is nothing to show
            gradcam_agreement, visible_agreement = (
                occlusion_agreement(rectify(maps), drops, grid, every=_EVERY) for maps in (visible + invisible, visible)
            )
            again = GradCAM(model, target_layers, reshape_transform, score=visible_score, output=output)
            visible_follows = _following(again, images, classes, rectify(visible))
            lower_layer = find_lower_layer(model, target_layers, images[:1], output, reshape_transform)
            if lower_layer is not None:
                lower = LayerCAM(model, lower_layer, reshape_transform, score=logit_difference, output=output)
                maps = resize(lower.explain(images, classes).maps, visible.shape[1:])
                lower_agreement = pearson(maps, rectify(visible))
    return AuditReport(
        logits=logits,
        classes=classes,
        visible=visible,
        invisible=invisible,
        common_mode_share=common_mode_share(visible, invisible),
        gradcam_agreement=gradcam_agreement,
        visible_agreement=visible_agreement,
        visible_follows=visible_follows,
        lower_agreement=lower_agreement,
        lower_layer=lower_layer,
        offset=cosine(invisible, active),
        weight_share=_weight_share(model, linear, logits.shape[1]),
        thresholds=thresholds,
        class_names=names,
    )


def _following(cam: GradCAM, images: Tensor, classes: Tensor, maps: Tensor) -> Tensor:
    """Pearson's r of moved maps with the maps of moved images, ``(B,)``."""
    cells = [max(1, side // _SHIFTED_BY) for side in maps.shape[1:]]
    sides = zip(cells, images.shape[2:], maps.shape[1:], strict=True)
    pixels = [round(shift * side / of) for shift, side, of in sides]
    moved = cam.explain(images.roll(pixels, (2, 3)), classes).maps
    return pearson(moved, maps.roll(cells, (1, 2)))


def _mean(values: Tensor) -> float:
    return float(values.cpu().double().mean())


def _shown(values: Tensor) -> str:
    low, high = _interval(values)
    interval = f"{low:.2f} to {high:.2f}" if math.isfinite(low) else f"no interval for fewer than {_ENOUGH_IMAGES}"
    return f"{_mean(values):.2f} ({interval})"


def _interval(values: Tensor) -> tuple[float, float]:
    if len(values) < _ENOUGH_IMAGES:
        return -math.inf, math.inf
    half = _STANDARD_ERRORS * float(values.cpu().double().std()) / math.sqrt(len(values))
    return _mean(values) - half, _mean(values) + half


def repair(
    model: nn.Module, *, head: nn.Module | str | None = None, where: Literal["head", "output"] = "head"
) -> nn.Module:
    """Remove the common mode: centre the last layer's weights over the classes, or the logits themselves.

    Softmax does not see the difference, so probabilities and decisions stay, up to rounding; the logits are centred. A
    common-mode hoax is gone afterwards.

    - ``where="head"`` changes weights, so it is in the ``state_dict``. It removes what is in the last layer: after
      :func:`.sham.common_mode_hoax`, say.
    - ``where="output"`` subtracts the mean of the logits at the output of any model, by a hook. It removes every common
      mode, wherever it comes from: after :func:`.sham.input_scalar_wrapper` and :func:`.sham.triggered_hoax` too. A
      ``state_dict`` does not hold the hook: repair again after loading.

    Neither undoes what is not in the common mode: permuted features (:func:`.sham.spatial_hoax`), fine-tuned features
    (:func:`.sham.finetune`, :func:`.sham.autofool`) and changed images (:func:`.sham.perturb`) stay. Audit again.

    Args:
        model: A softmax classifier; with ``where="head"`` one whose logits are the output of a linear layer. Without
            images this cannot be verified: name the layer if in doubt. The model is left as it is.
        head: That layer or its name; by default the last ``nn.Linear``. Only for ``where="head"``.
        where: ``"head"`` or ``"output"``.

    Returns:
        A changed copy.

    Raises:
        ValueError: If no such layer is found, it has fewer than two rows, or an option is unknown. With
            ``where="output"`` the copy's forward pass raises it if the output is not ``(B, K)``.
        TypeError: If ``head`` is not an ``nn.Linear``.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(2, 1, 2, 2)
        >>> repaired = repair(model)
        >>> torch.allclose(repaired(images).softmax(1), model(images).softmax(1))
        True
        >>> torch.allclose(repaired(images).sum(1), torch.zeros(2), atol=1e-6)
        True
    """
    check_choice("where", where, ("head", "output"))
    if where == "output":
        if head is not None:
            raise ValueError("head is given with where='output'; expected one of them; leave head out")
        repaired = copy_model(model)
        repaired.register_forward_hook(_centre_logits)
        return repaired
    name = find_head(model, head)
    repaired = copy_model(model)
    layer = linear_head(repaired, name)
    with torch.no_grad():
        for rows in layer.parameters():
            wide = rows.cpu().double()
            rows.copy_(wide - wide.mean(0))
    return repaired


def _centre_logits(_module: nn.Module, _args: Any, output: Any) -> Tensor:
    """A hook. Being a function of a module, it is copied and pickled."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(
            f"the repaired model returned {described(output)}; expected a tensor of logits (B, K); repair the part of "
            "the model that returns one"
        )
    return output - output.mean(1, keepdim=True)


@dataclass(frozen=True)
class _Checked:
    """The output of a model, refused where it is not the logits of a softmax, or of other classes than were named."""

    output: Callable[[Any], Tensor]
    names: ClassNames

    def __call__(self, outputs: Any) -> Tensor:
        logits = self.output(outputs)
        _check_softmax_logits(logits)
        self.names.check(logits)
        return logits


def _weight_share(model: nn.Module, ran: list[str], classes: int) -> float | None:
    """The common mode in the weights of the last linear layer that ran, if its rows are the classes."""
    weight = model.get_submodule(ran[-1]).weight if ran else None
    if not isinstance(weight, Tensor) or len(weight) != classes:
        return None
    rows = weight.detach().cpu().double().unsqueeze(0)
    common = rows.mean(1, keepdim=True).expand_as(rows)
    return float(common_mode_share(rows - common, common))


def _check_softmax_logits(outputs: Tensor) -> None:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"the model's output has shape {tuple(outputs.shape)}; expected the logits of a softmax over at "
            "least 2 classes, (B, K); one output (sigmoid, regression) has no common mode to audit"
        )
    values = outputs.detach().cpu().double()
    in_range = bool(((values >= 0) & (values <= 1)).all())
    if in_range and torch.allclose(values.sum(1), values.new_ones(()), atol=1e-3):
        what = "probabilities (each row sums to 1)"
    elif torch.allclose(values.logsumexp(1), values.new_zeros(()), atol=1e-3):
        what = "log-probabilities (each row's exp sums to 1)"
    elif in_range and values.numel() >= _ENOUGH_OUTPUTS:
        what = "sigmoids (all between 0 and 1), which have no common mode that a decision could not see"
    else:
        return
    raise ValueError(
        f"the model's outputs look like {what}; expected the logits of a softmax; give the model without its "
        "last activation"
    )
