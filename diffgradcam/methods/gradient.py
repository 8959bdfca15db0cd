"""The published methods: each is a weighting and a score, a few with another reduction or gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from .. import heatmaps, scores, weightings
from .._core.base import BaseCAM, Cotangents
from .._core.checks import check_count, check_std
from .._core.forward import Pass
from .._core.gradients import activation_gradients, hessian_products, pooled_linear_maps
from .._core.layers import Target, inner_model
from .._core.outputs import Classes, find_logits
from ..scores import Baseline, baseline_function, finer, logit_difference
from ..targets import OutputTarget
from .smoothing import noises, pixel_range


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


@final
class EigenGradCAM(BaseCAM):
    """Eigen-Grad-CAM: the first principal component of gradients times activations. Arguments as :class:`BaseCAM`.

    The reduction is :func:`diffgradcam.heatmaps.principal_component`, which says how the arbitrary sign is chosen:
    mostly on the side of the sum over the channels, which is HiResCAM, so the map is positive where the image
    speaks for the class.

    Reference:
        ``EigenGradCAM`` of the library pytorch-grad-cam, after Muhammad and Yeasin, "Eigen-CAM", 2020; no paper.
    """

    weighting = staticmethod(weightings.hirescam)
    reduction = staticmethod(heatmaps.principal_component)


@final
class ShapleyCAM(BaseCAM):
    """ShapleyCAM: Grad-CAM of the gradient corrected by half the curvature. Arguments as :class:`BaseCAM`.

    Weights ``mean_S (G - 1/2 H A)``, with ``H`` the Hessian of the score with respect to the activations of the layer:
    the Shapley value of a channel for the score's second-order expansion. For a logit above which only ReLU and linear
    layers follow, the score is piecewise linear, ``H = 0``, and the map is Grad-CAM's. Other scores are curved: the
    paper's own is ``z_c + log p_c``, and any contrast with log-sum-exp is.

    Each explained class costs a second-order product, and each layer above the target must have second derivatives.

    Reference:
        Cai, "CAMs as Shapley Value-based Explainers", 2025 (arXiv 2501.06261), read in pytorch-grad-cam's code.

    Example:
        >>> from diffgradcam.scores import log_probability, logit
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> cam = ShapleyCAM(model, "0", score=lambda z, c: logit(z, c) + log_probability(z, c))
        >>> cam.explain(torch.rand(5, 3, 8, 8)).maps.shape
        torch.Size([5, 6, 6])
    """

    weighting = staticmethod(weightings.gradcam)

    def _gradients(self, forward: Pass, cotangents: Cotangents, *, create_graph: bool = False) -> list[Tensor]:
        with torch.enable_grad():
            vectors = cotangents(forward.logits, create_graph=True)
            gradients = activation_gradients(forward.logits, forward.activations, vectors, create_graph=True)
            products = hessian_products(gradients, forward.activations, create_graph=create_graph)
        return [gradient - product / 2 for gradient, product in zip(gradients, products, strict=True)]


@final
class CAM(BaseCAM):
    """CAM: the weights of the linear head, without any gradient. Arguments as :class:`BaseCAM`.

    ``sum_k w_ck A_k``, for a model whose logits are a linear layer of the mean over the positions of the one target
    layer; then it is :class:`GradCAM` times the number of positions. Of a score it is the same sum over the logits,
    each with its share in the score. That the head is of this kind is checked in each forward pass, by its gradient.

    Raises:
        ValueError: When explaining, if the head is of another kind.

    Reference:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """

    weighting = staticmethod(weightings.gradcam)

    def _class_maps(self, forward: Pass, classes: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        self._check_head(forward)
        layers = super()._class_maps(forward, classes, create_graph=create_graph)
        return [maps * maps.shape[2:].numel() for maps in layers]

    def _target_maps(self, forward: Pass, targets: Sequence[OutputTarget]) -> list[Tensor]:
        self._check_head(forward)
        return super()._target_maps(forward, targets)

    def _check_head(self, forward: Pass) -> None:
        model = inner_model(self.model)
        if pooled_linear_maps(model, forward.logits, forward.activations, self._grid) is None:
            names = ", ".join(layer.name for layer in self._recorder.layers)
            raise ValueError(
                f"the logits are not a linear layer of the mean over the positions of {names} alone (in float32 or "
                "wider), so there is no CAM; name the layer that is pooled, or layer_input() of the pooling, or use "
                "GradCAM, which is the same map wherever there is a CAM"
            )


@final
class SmoothGradCAMPlusPlus(BaseCAM):
    """Smooth Grad-CAM++: Grad-CAM++ with its derivatives averaged over noisy copies of the image.

    The weighting is :func:`diffgradcam.weightings.smooth_gradcam_plus_plus`; the weighted activations are those of the
    image itself. Every image gets the same noise, from the seed alone, so its map does not depend on its batch.
    torch-cam differs in three things: it takes the sign of the last copy's gradient instead of the mean's, weights the
    activations of the last copy instead of the image's, and its noise is not relative to the image.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        samples: How many noisy copies; each is a forward pass for every block of at most 64 explained classes.
        std: Standard deviation of the noise, relative to the range of the image (largest minus smallest value).
        seed: Of the noise. The global random numbers are left alone.
        score: As :class:`BaseCAM`.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.

    Raises:
        ValueError: If ``samples`` is not at least 1, or ``std`` is negative or not finite.
        NotImplementedError: From ``maps()``, which has the one forward pass that you made.

    Reference:
        Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique", 2019 (arXiv
        1908.01224). How many copies and how much noise are our choice.
    """

    weighting = staticmethod(weightings.gradcam_plus_plus)  # what it is without noise

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        samples: int = 8,
        std: float = 0.15,
        seed: int = 0,
        score: scores.Score = scores.logit,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        check_count("samples", samples)
        check_std(std)
        super().__init__(model, target_layers, reshape_transform, score=score, rectify=rectify, output=output)
        self.samples = samples
        self.std = std
        self.seed = seed

    def maps(self, logits: Tensor, classes: Classes = None) -> NoReturn:
        """There are none to train with: other forward passes than yours are behind them.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "SmoothGradCAMPlusPlus has no maps of a forward pass that it did not make: it runs the model on noisy "
            "images; use explain() for maps to look at, and GradCAMPlusPlus for maps to train with"
        )

    def _cotangent_maps(
        self,
        forward: Pass,
        cotangents: Cotangents,
        *,
        create_graph: bool = False,  # noqa: ARG002  (only maps() asks for one)
    ) -> list[Tensor]:
        assert forward.again is not None  # maps() refuses
        images = forward.images
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"the input is {kind}; noise can only be added to a tensor of floating-point numbers")
        spread = self.std * pixel_range(images)
        sums: list[Tensor] = []
        for noise in noises(images.shape[1:], self.samples, self.seed):
            with forward.again(images + spread * noise.to(images)) as noisy:
                powers = [self._powers(rows) for rows in self._gradients(noisy, cotangents)]
            sums = [total + power for total, power in zip(sums, powers, strict=True)] if sums else powers
        return [
            torch.stack([self._smooth_map(self._grid(layer), row) for row in (total / self.samples).unbind(2)], 1)
            for layer, total in zip(forward.activations, sums, strict=True)
        ]

    def _powers(self, gradients: Tensor) -> Tensor:
        """The gradients ``(B, N, ...)`` to the powers of one, two and three, ``(3, B, N, C, *S)``."""
        grid = torch.stack([self._grid(row) for row in gradients.unbind(1)], 1)
        return torch.stack([grid, grid**2, grid**3])

    def _smooth_map(self, grid: Tensor, moments: Tensor) -> Tensor:
        return self._layer_map(grid, weightings.smooth_gradcam_plus_plus(grid, *moments.unbind(0)))
