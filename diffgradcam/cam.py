"""The published methods: each is a weighting and a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

from torch import Tensor, nn

from . import weightings
from .engine import BaseCAM
from .layers import Target
from .outputs import find_logits
from .scores import Baseline, baseline_function, finer, logit_difference


@final
class GradCAM(BaseCAM):
    """Grad-CAM: channels weighted by their mean gradient. Arguments as :class:`BaseCAM`.

    Explains one logit by default, so it can be fooled by what all logits share; with
    ``score=diffgradcam.scores.logit_difference`` it is :class:`DiffGradCAM`.

    Reference:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> logits, classes, maps = GradCAM(model, ["0"]).explain(torch.rand(5, 3, 8, 8))
        >>> logits.shape, classes.shape, maps.shape
        (torch.Size([5, 2]), torch.Size([5]), torch.Size([5, 6, 6]))
    """

    weighting = staticmethod(weightings.gradcam)


@final
class GradCAMPlusPlus(BaseCAM):
    """Grad-CAM++. Arguments as :class:`BaseCAM`; the weighting is :func:`diffgradcam.weightings.gradcam_plus_plus`.

    Reference:
        Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations", WACV 2018.
    """

    weighting = staticmethod(weightings.gradcam_plus_plus)


@final
class XGradCAM(BaseCAM):
    """XGrad-CAM. Arguments as :class:`BaseCAM`; the weighting is :func:`diffgradcam.weightings.xgradcam`.

    Reference:
        Fu et al., "Axiom-based Grad-CAM", BMVC 2020.
    """

    weighting = staticmethod(weightings.xgradcam)


@final
class LayerCAM(BaseCAM):
    """LayerCAM. Arguments as :class:`BaseCAM`; the weighting is :func:`diffgradcam.weightings.layercam`.

    Reference:
        Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021.
    """

    weighting = staticmethod(weightings.layercam)


@final
class HiResCAM(BaseCAM):
    """HiResCAM. Arguments as :class:`BaseCAM`; the weighting is :func:`diffgradcam.weightings.hirescam`.

    Reference:
        Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations", 2020 (arXiv 2011.08891).
    """

    weighting = staticmethod(weightings.hirescam)


@final
class GradCAMElementWise(BaseCAM):
    """Element-wise Grad-CAM. Arguments as :class:`BaseCAM`; see :func:`diffgradcam.weightings.gradcam_elementwise`.

    Reference:
        ``GradCAMElementWise`` of the library pytorch-grad-cam; no paper.
    """

    weighting = staticmethod(weightings.gradcam_elementwise)


class _Contrast(BaseCAM):
    """A CAM of the difference between a class's logit and a baseline of the others."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        baseline: str | int | Baseline = "logsumexp",
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        if not isinstance(baseline, int) or isinstance(baseline, bool):
            baseline_function(baseline)
        score = partial(logit_difference, baseline=baseline)
        super().__init__(model, target_layers, reshape_transform, score=score, rectify=rectify, output=output)


@final
class DiffGradCAM(_Contrast):
    """DiffGradCAM: Grad-CAM of the difference between a class's logit and a baseline of the others.

    Whatever all logits have in common, which softmax cannot see, is not in the map: a model that was changed only there
    shows the same DiffGradCAM as before. It is no protection against an attack on DiffGradCAM itself, nor against one
    that moves the activations.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        baseline: ``"logsumexp"`` (the log-odds), ``"max"``, ``"mean"``, a class index, or a callable; see
            :func:`diffgradcam.scores.logit_difference`.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

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


@final
class DiffGradCAMPlusPlus(_Contrast):
    """DiffGradCAM++: the weighting of Grad-CAM++ for the score of :class:`DiffGradCAM`, whose arguments it takes.

    Reference:
        Our reading of version 4 of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514).
    """

    weighting = staticmethod(weightings.gradcam_plus_plus)


@final
class FinerCAM(BaseCAM):
    """Finer-CAM: Grad-CAM of the class against its nearest classes.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        alpha: Strength of the comparison, see :func:`diffgradcam.scores.finer`.
        comparisons: How many classes to compare with.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

    Reference:
        Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", CVPR 2025.
    """

    weighting = staticmethod(weightings.gradcam)

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        alpha: float = 1.0,
        comparisons: int = 3,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        score = partial(finer, alpha=alpha, comparisons=comparisons)
        super().__init__(model, target_layers, reshape_transform, score=score, rectify=rectify, output=output)
