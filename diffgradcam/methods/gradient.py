"""Methods from gradients: each is a choice of weighting, a few with another reduction, fusion or gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import heatmaps, weightings
from .._core.base import ScoredCAM, ScoredOptions, TrainableCAM
from .._core.checks import check_count, check_std
from .._core.forward import ForwardPass, Recording, ReshapeTransform
from .._core.gradients import hessian_products
from .._core.layers import LayerSpec
from .._core.pooled_linear import linear_maps
from .._core.registry import register
from .._core.requests import ClassRequest, Request
from .._core.versions import noises, pixel_range, versionable


@register()
@final
class GradCAM(TrainableCAM):
    """Grad-CAM: channels weighted by their mean gradient. Arguments as :class:`TrainableCAM`.

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


@register()
@final
class GradCAMPlusPlus(TrainableCAM):
    """Grad-CAM++: channels weighted by positive gradients, each by how much its position adds to the channel.

    Arguments as :class:`TrainableCAM`; the weighting is :func:`diffgradcam.weightings.gradcam_plus_plus`.

    Reference:
        Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations", WACV 2018.
    """

    weighting = staticmethod(weightings.gradcam_plus_plus)


@register()
@final
class XGradCAM(TrainableCAM):
    """XGrad-CAM: channels weighted by their mean gradient, weighted by the activation.

    Arguments as :class:`TrainableCAM`; the weighting is :func:`diffgradcam.weightings.xgradcam`.

    Reference:
        Fu et al., "Axiom-based Grad-CAM", BMVC 2020.
    """

    weighting = staticmethod(weightings.xgradcam)


@register()
@final
class LayerCAM(TrainableCAM):
    """LayerCAM: each position of each channel weighted by its own positive gradient.

    Arguments as :class:`TrainableCAM`; the weighting is :func:`diffgradcam.weightings.layercam`.

    Reference:
        Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021.
    """

    weighting = staticmethod(weightings.layercam)


@register()
@final
class HiResCAM(TrainableCAM):
    """HiResCAM: each position of each channel weighted by its own gradient.

    Arguments as :class:`TrainableCAM`; the weighting is :func:`diffgradcam.weightings.hirescam`.

    Reference:
        Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations", 2020 (arXiv 2011.08891).
    """

    weighting = staticmethod(weightings.hirescam)


@register()
@final
class GradCAMElementWise(TrainableCAM):
    """Element-wise Grad-CAM: the positive products of gradients and activations, summed up.

    Arguments as :class:`TrainableCAM`; the weighting is :func:`diffgradcam.weightings.gradcam_elementwise`.

    Reference:
        ``GradCAMElementWise`` of the library pytorch-grad-cam; no paper.
    """

    weighting = staticmethod(weightings.gradcam_elementwise)


@register()
@final
class EigenGradCAM(TrainableCAM):
    """Eigen-Grad-CAM: the first principal component of gradients times activations.

    Arguments as :class:`TrainableCAM`. The reduction is :func:`diffgradcam.heatmaps.principal_component`, which
    says how the arbitrary sign is chosen: mostly on the side of the sum over the channels, which is HiResCAM, so
    the map is positive where the image speaks for the class.

    Reference:
        ``EigenGradCAM`` of the library pytorch-grad-cam, after Muhammad and Yeasin, "Eigen-CAM", 2020; no paper.
    """

    weighting = staticmethod(weightings.hirescam)
    reduction = staticmethod(heatmaps.principal_component)


@register()
@final
class SegEigenCAM(TrainableCAM):
    """Seg-Eigen-CAM: the first principal component of activations times the magnitudes of their gradients.

    Arguments as :class:`TrainableCAM`. Made for semantic segmentation, where the score is that of a mask, as of
    :class:`~diffgradcam.utils.model_targets.SemanticSegmentationTarget`. The reduction is
    :func:`diffgradcam.heatmaps.peak_component`: the value of largest magnitude is positive. A magnitude forgets whether
    a channel speaks for the class, so the map marks what matters for the score, either way.

    Reference:
        Chung and Ying, "Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models", Applied
        Sciences 15(13), 2025 (doi 10.3390/app15137562), read in pytorch-grad-cam's code.
    """

    weighting = staticmethod(weightings.magnitude)
    reduction = staticmethod(heatmaps.peak_component)


@register(command=False)
@final
class RefineCAM(TrainableCAM):
    """RefineCAM: the product of the maps of several layers, from sharp early ones to telling late ones.

    ``prod_l minmax(resize(minmax(relu(map_l))))``: what every layer marks, in the
    detail of the finest. In the call the product is taken at input size, as in pytorch-grad-cam; in ``explain`` and
    ``maps`` at the size of the largest layer, as in torch-cam (which does not scale again after resizing). The product
    is in [0, 1]; where the layers disagree entirely it is 0. Of any method it is that method with
    ``fusion=diffgradcam.heatmaps.product``.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: Several layers; as :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        base_method: The class whose weighting and reduction make the maps, as in pytorch-grad-cam.
        **options: As :class:`ScoredCAM`.

    Raises:
        TypeError: If the base method is not such a class.

    Reference:
        "How to Evaluate and Refine your CAM" (arXiv 2605.14641), read in the code of pytorch-grad-cam and torch-cam.

    Example:
        >>> import torch
        >>> layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        >>> model = nn.Sequential(*layers, nn.Linear(4, 2))
        >>> RefineCAM(model, ["1", "2"]).explain(torch.rand(5, 3, 10, 10)).maps.shape
        torch.Size([5, 8, 8])
    """

    fusion = staticmethod(heatmaps.product)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        base_method: type[TrainableCAM] = GradCAMPlusPlus,
        **options: Unpack[ScoredOptions],
    ) -> None:
        if not (isinstance(base_method, type) and issubclass(base_method, TrainableCAM)) or (
            base_method.__init__ is not TrainableCAM.__init__
        ):
            raise TypeError(
                f"base_method is {base_method!r}; expected a class of a method from gradients without options of its "
                "own, such as LayerCAM; for another method pass fusion=diffgradcam.heatmaps.product to that method"
            )
        options.setdefault("reduction", base_method.reduction)
        super().__init__(model, target_layers, reshape_transform, weighting=base_method.weighting, **options)


@register()
@final
class ShapleyCAM(TrainableCAM):
    """ShapleyCAM: Grad-CAM of the gradient corrected by half the curvature.

    Arguments as :class:`TrainableCAM`. Weights ``mean_S (G - 1/2 H A)``, with ``H`` the Hessian of the score with
    respect to the activations of the layer: the Shapley value of a channel for the score's second-order expansion.
    For a logit above which only ReLU and linear layers follow, the score is piecewise linear, ``H = 0``, and the
    map is Grad-CAM's. Other scores are curved: the paper's own is ``z_c + log p_c``, and any contrast with
    log-sum-exp is.

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

    def gradients(self, recording: Recording, request: Request, *, create_graph: bool = False) -> list[Tensor]:
        """The gradients, less half of the Hessian times the activations."""
        with torch.enable_grad():
            gradients = recording.gradients(request, create_graph=True)
            products = hessian_products(gradients, recording.activations, create_graph=create_graph)
        return [gradient - product / 2 for gradient, product in zip(gradients, products, strict=True)]


@register()
@final
class CAM(ScoredCAM):
    """CAM: the weights of the linear head, without any gradient.

    Arguments as :class:`ScoredCAM`. ``sum_k w_ck A_k``, for a model whose logits are a linear layer of the mean over
    the positions of the one target layer; then it is :class:`GradCAM` times the number of positions. Of a score it is
    the same sum over the logits, each with its share in the score. That the head is of this kind is checked in each
    forward pass, by its gradient. To train with it use :class:`GradCAM`, which is the same map wherever there is a CAM.

    Raises:
        ValueError: When explaining, if the head is of another kind.

    Reference:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`: the maps of the logits, weighted by their share in the score."""
        found = forward.pooled_linear_maps()
        if found is None:
            raise _no_pooled_linear_head(forward.names)
        forward.checks.require(found.holds, lambda: _no_pooled_linear_head(forward.names))
        if isinstance(request, ClassRequest):
            maps = linear_maps(found.maps, request.score, forward.logits, request.classes)
        else:
            maps = torch.einsum("bnk,bk...->bn...", request.cotangents(forward.logits), found.maps)
        return [maps * maps.shape[2:].numel()]


@register()
@final
class SmoothGradCAMPlusPlus(ScoredCAM):
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
        **options: As :class:`ScoredCAM`.

    Raises:
        ValueError: If ``samples`` is not at least 1, or ``std`` is negative or not finite.

    Reference:
        Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique", 2019 (arXiv
        1908.01224). How many copies and how much noise are our choice.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        samples: int = 8,
        std: float = 0.15,
        seed: int = 0,
        **options: Unpack[ScoredOptions],
    ) -> None:
        check_count("samples", samples)
        check_std(std)
        super().__init__(model, target_layers, reshape_transform, **options)
        self.samples = samples
        self.std = std
        self.seed = seed

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`."""
        blocks = [self._block_maps(forward, block) for block in forward.blocks(request)]
        return forward.every_layer([torch.cat(layer, 1) for layer in zip(*blocks, strict=True)])

    def _block_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        images = versionable(self, forward.inputs)
        spread = self.std * pixel_range(images)
        sums: list[Tensor] = []
        for noise in noises(images.shape[1:], self.samples, self.seed):
            with forward.again(images + spread * noise.to(images)) as noisy:
                powers = [_powers(noisy, number, rows) for number, rows in enumerate(noisy.gradients(request))]
            sums = [total + power for total, power in zip(sums, powers, strict=True)] if sums else powers
        return [
            torch.stack([self._smooth_map(grid, row) for row in (total / self.samples).unbind(2)], 1)
            for grid, total in zip(forward.grids(), sums, strict=True)
        ]

    def _smooth_map(self, grid: Tensor, moments: Tensor) -> Tensor:
        return self.layer_map(grid, weightings.smooth_gradcam_plus_plus(grid, *moments.unbind(0)))


def _powers(recording: Recording, number: int, gradients: Tensor) -> Tensor:
    """The gradients ``(B, N, ...)`` to the powers of one, two and three, ``(3, B, N, C, *S)``."""
    grid = torch.stack([recording.to_grid(row, number) for row in gradients.unbind(1)], 1)
    return torch.stack([grid, grid**2, grid**3])


def _no_pooled_linear_head(names: str) -> ValueError:
    return ValueError(
        f"the logits are not a linear layer of the mean over the positions of {names} alone (in float32 or "
        "wider), so there is no CAM; name the layer that is pooled, or layer_input() of the pooling, or use "
        "GradCAM, which is the same map wherever there is a CAM"
    )
