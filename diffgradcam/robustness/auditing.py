"""Detect the common mode: the part of a logit that softmax cannot see and that GradCAM shows all the same.

A logit is ``z_c = (z_c - mean z) + mean z``, and GradCAM is linear in the score. So its signed map is a sum of two.
The first map is *visible* to softmax, and so to every decision, probability and loss. The second, the *common mode*, is
not: no decision ever needed what it shows.

A clean model has hardly any common mode. The gradient of cross-entropy with respect to the logits, ``p - onehot``, sums
to 0 over the classes. So plain gradient descent adds vectors to the rows of the last layer that sum to 0, and never
changes their mean. A common mode therefore comes from the initialisation (which weight decay shrinks), from the
per-weight scaling of optimisers like Adam, from losses other than cross-entropy, or from an attack. That is why one
checkpoint can be audited without a clean copy to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._core.base import BaseCAM
from .._core.batches import check_images
from .._core.checks import check_choice, check_share, described
from .._core.class_names import NO_NAMES, ClassNames, GivenClassNames, as_class_names
from .._core.common_mode import common_mode_share, invisible_score, visible_score
from .._core.display import Panel, Sheet, ShownMaps, first_panels
from .._core.editing import by_name, copy_model, evaluated, find_head, linear_head
from .._core.layers import LayerSpec
from .._core.outputs import find_logits
from .._core.wrappers import inner_model
from ..analysis.comparisons import explain_together
from ..heatmaps import minmax, rectify, scale_signed
from ..methods.contrastive import DiffGradCAM
from ..methods.gradient import GradCAM
from ..metrics.behaviour import GRID, drops_from, occlusion_agreement
from ..metrics.evaluator import Evaluator
from ..scores import logit_difference

_ENOUGH_IMAGES = 8
_ENOUGH_OUTPUTS = 20


@dataclass(frozen=True)
class AuditReport(ShownMaps):
    """What an audit measured, one value per image where not said otherwise, and its verdict.

    In a notebook it shows GradCAM and the two maps that it is the sum of; printed, the verdict and what it rests on.

    Attributes:
        logits: ``(B, K)``.
        classes: The decisions, whose maps are audited, ``(B,)``.
        visible: Signed GradCAM of ``z_c - mean z``, ``(B, *S)``.
        invisible: Signed GradCAM of ``mean z``, ``(B, *S)``. The two add up to GradCAM.
        common_mode_share: Energy (sum of squares over the positions) of the invisible map over that of both maps,
            ``(B,)``, in [0, 1]; 0 where both are 0.
        weight_share: The same for the rows of the last linear layer: the energy of their mean, repeated for each class,
            over that of all rows. None where the model's head cannot be found. It also finds a common mode that these
            images do not excite, but it is not part of the verdict: a small one may come from the initialisation.
        threshold: Above which a median share is suspicious.
        gradcam_agreement: Pearson's r of GradCAM with the drop of the log-odds under occlusion, ``(B,)``, in [-1, 1];
            None without ``occlusion``.
        diffgradcam_agreement: The same for DiffGradCAM (log-odds).
        agreement_threshold: Below which a mean agreement is suspicious.
        class_names: The names of the classes by index; empty where none were given.
    """

    logits: Tensor
    classes: Tensor
    visible: Tensor
    invisible: Tensor
    common_mode_share: Tensor
    weight_share: float | None
    threshold: float
    gradcam_agreement: Tensor | None
    diffgradcam_agreement: Tensor | None
    agreement_threshold: float
    class_names: ClassNames = NO_NAMES

    @property
    def common_mode_fooled(self) -> bool:
        """Whether the median share over the images is above the threshold."""
        return float(self.common_mode_share.median()) > self.threshold

    @property
    def behaviour_fooled(self) -> bool:
        """Whether GradCAM or DiffGradCAM agrees too little with occlusion; False without it."""
        agreements = (self.gradcam_agreement, self.diffgradcam_agreement)
        return any(float(r.mean()) < self.agreement_threshold for r in agreements if r is not None)

    @property
    def fooled(self) -> bool:
        """Whether the model is suspicious by the common mode or, where it was asked for, by behaviour."""
        return self.common_mode_fooled or self.behaviour_fooled

    def __str__(self) -> str:
        """The report in a few lines."""
        share = self.common_mode_share
        lines = [
            f"{'FOOLED' if self.fooled else 'nothing found'} in {len(share)} images, {self.logits.shape[1]} classes",
            f"  common mode: {float(share.median()):.2g} of GradCAM's energy (median; {float(share.min()):.2g} to "
            f"{float(share.max()):.2g}); suspicious above {self.threshold:g}",
        ]
        if self.weight_share is not None:
            lines.append(f"  common mode of the last layer's weights: {self.weight_share:.2g} of their energy")
        for name, agreement in (("GradCAM", self.gradcam_agreement), ("DiffGradCAM", self.diffgradcam_agreement)):
            if agreement is not None:
                lines.append(
                    f"  {name} agrees with occlusion: r = {float(agreement.mean()):.2f} (mean); suspicious below "
                    f"{self.agreement_threshold:g}"
                )
        if self.gradcam_agreement is None:
            lines.append("  behaviour: not checked; occlusion=True finds what leaves the common mode alone")
        elif len(share) < _ENOUGH_IMAGES:
            lines.append(f"  agreement is noisy for {len(share)} images: audit {_ENOUGH_IMAGES} or more")
        return "\n".join(lines)

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


def audit(
    model: nn.Module,
    target_layers: LayerSpec | Sequence[LayerSpec],
    images: Tensor,
    *,
    occlusion: bool = False,
    threshold: float = 0.1,
    agreement_threshold: float = 0.3,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    output: Callable[[Any], Tensor] = find_logits,
    class_names: GivenClassNames | None = None,
    progress: bool = True,
) -> AuditReport:
    """Find out whether the GradCAM of a checkpoint hides something. Needs no clean copy.

    The first half measures how much of GradCAM softmax cannot see, and costs two forward passes. The threshold is
    compared with the *median* over the images. Over 59 clean small networks the median share was at most 0.12, after a
    common-mode hoax of the size of the map (``strength=1``) 0.46 to 0.62; the area under the ROC curve was 1.000, and
    0.980 at a third of that strength. It cannot find what leaves the common mode alone. An untrained model, or a
    freshly initialised head, still has the common mode of its initialisation and may be reported.

    The second half, ``occlusion=True``, is about behaviour and costs 49 forward passes more: windows of 3 x 3 cells of
    a 7 x 7 grid, one around each cell, are filled with the image's mean colour, and the drop of the log-odds is
    correlated with the mean of the map in the window. It also finds permuted features (area 0.98 and more with 64
    images) and maps that were trained on GradCAM (0.999); an attack that is aimed at DiffGradCAM is often missed
    (0.89). It is noisy for one image: 0.84 to 0.97 for permuted features, 0.97 and more from eight. With the default
    thresholds both halves together reported one clean network in ten.

    All numbers are from ``docs/results/audit_tables.md``, which also says which thresholds a calibration would choose.

    A verdict is evidence, not proof: "nothing found" does not certify a model.

    Args:
        model: A softmax classifier that returns logits. It is left as it is; if any part of it is in training mode, a
            copy in evaluation mode is audited.
        target_layers: As a CAM takes them.
        images: Images as the model takes them, ``(B, C, H, W)``.
        occlusion: Check the behaviour too.
        threshold: Of the common-mode share, from 0 to 1.
        agreement_threshold: Of the agreement with occlusion, from -1 to 1.
        reshape_transform: As a CAM takes it.
        output: As a CAM takes it.
        class_names: As a CAM takes them, for the report.
        progress: Show a progress bar for the occlusions.

    Returns:
        The measurements and the verdict, see :class:`AuditReport`.

    Raises:
        ValueError: If the outputs are not the logits of a softmax: one output, probabilities, log-probabilities, or
            (20 values and more, all between 0 and 1) sigmoids. Sigmoids that are applied outside the model cannot be
            told from softmax logits. Also if there are no images, they are smaller than the grid, or an option is out
            of range.
        TypeError: If ``images`` is not a tensor; otherwise as :meth:`~diffgradcam.BaseCAM.explain`.

    Reference:
        That softmax does not see what all logits share, and Grad-CAM does, was used to fool before: Lerma and Lucas,
        2023 (arXiv 2307.03305); Viering et al., 2019 (arXiv 1907.10901). A contrast as what softmax does see: Wang and
        Wang, NeurIPS 2022. Ours: the share of the common mode as a sign that needs no clean copy, and its agreement
        with occlusion as the other. Occlusion: Zeiler and Fergus, "Visualizing and Understanding Convolutional
        Networks", ECCV 2014.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> _ = model[3].weight.data.add_(5.0)  # the same for every class: no decision changes
        >>> report = audit(model, "0", torch.rand(8, 3, 16, 16))
        >>> report.fooled, report.weight_share > 0.9
        (True, True)
        >>> audit(repair(model), "0", torch.rand(8, 3, 16, 16)).fooled
        False
    """
    _check_options(images, occlusion, threshold, agreement_threshold)
    target_layers, model = by_name(model, target_layers), evaluated(inner_model(model))

    def cam(score: Callable[[Tensor, Tensor], Tensor]) -> GradCAM:
        return GradCAM(model, target_layers, reshape_transform, score=score, rectify=False, output=output)

    names = as_class_names(class_names)
    with torch.no_grad():
        outputs = output(model(images))
    _check_softmax_logits(outputs)
    names.check(outputs)
    cams: list[BaseCAM] = [cam(visible_score), cam(invisible_score)]
    if occlusion:
        cams.append(DiffGradCAM(model, target_layers, reshape_transform, output=output))
    (logits, classes, visible), (_, _, invisible), *contrast = explain_together(cams, images)
    gradcam_agreement = diffgradcam_agreement = None
    if contrast:
        before = logit_difference(logits, classes)
        drops = drops_from(Evaluator(model, output=output), images, classes, before, GRID, progress=progress)
        gradcam_agreement = occlusion_agreement(rectify(visible + invisible), drops)
        diffgradcam_agreement = occlusion_agreement(contrast[0].maps, drops)
    return AuditReport(
        logits=logits,
        classes=classes,
        visible=visible,
        invisible=invisible,
        common_mode_share=common_mode_share(visible, invisible),
        weight_share=_weight_share(model, logits.shape[1]),
        threshold=threshold,
        gradcam_agreement=gradcam_agreement,
        diffgradcam_agreement=diffgradcam_agreement,
        agreement_threshold=agreement_threshold,
        class_names=names,
    )


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
    (:func:`.sham.finetune`, :func:`.sham.autofool`) and changed images (:func:`.sham.perturb`) stay. Audit again, with
    ``occlusion=True``.

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


def _weight_share(model: nn.Module, classes: int) -> float | None:
    try:
        weight = model.get_submodule(find_head(model)).weight
    except (ValueError, TypeError):
        return None
    assert isinstance(weight, Tensor)  # of an nn.Linear
    if len(weight) != classes:
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


def _check_options(images: Tensor, occlusion: bool, threshold: float, agreement_threshold: float) -> None:
    check_images(images)
    if occlusion and (images.ndim != 4 or min(images.shape[2:]) < GRID):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; occlusion needs (B, C, H, W), at least {GRID} x {GRID} pixels"
        )
    check_share("threshold", threshold)
    if not -1 <= agreement_threshold <= 1:
        raise ValueError(f"agreement_threshold is {agreement_threshold}; expected a correlation from -1 to 1")
