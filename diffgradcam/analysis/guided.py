"""Gradients at the resolution of the input, guided past every ReLU, and their product with a map.

The rule is applied in the autograd graph of one forward pass, so the model is neither copied nor changed, and a
functional ReLU is guided like a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .. import heatmaps
from .._core.base import ScoredCAM
from .._core.outputs import Classes, check_finite, class_index, find_logits
from .._core.recorder import same_weights
from .._core.tensors import columns, widen
from .._core.wrappers import eagerly, inner_model
from ..scores import ScoreFunction, logit, score_gradients

_OTHER_ACTIVATIONS = ("Elu", "Gelu", "Hardswish", "Hardtanh", "LeakyRelu", "Mish", "Prelu", "Silu", "Softplus", "Tanh")


def guided_gradients(
    model: nn.Module,
    images: Tensor,
    classes: Classes = None,
    *,
    score: ScoreFunction = logit,
    output: Callable[[Any], Tensor] = find_logits,
) -> Tensor:
    """Guided backpropagation: the gradient of the score at the input, keeping at each ReLU only what is positive.

    A ReLU passes a gradient back where its input was positive; guided backpropagation in addition only where the
    gradient itself is positive. ReLU6 is treated alike. Any other activation keeps its own gradient.

    The pictures are sharp, but they depend less on the class and on the weights of the upper layers than they look
    (Adebayo et al., 2018): a class is told from another by the map in :func:`guided_gradcam`, not by these gradients.

    Args:
        model: Any module that returns logits ``(B, K)``; it is not altered. Put it in evaluation mode yourself.
        images: ``(B, C, *S)``, floating point, as the model takes them.
        classes: As :meth:`diffgradcam.BaseCAM.explain`. Each class costs a backward pass through the whole model.
        score: What is explained, see :mod:`diffgradcam.scores`.
        output: Takes the logits out of what the model returns.

    Returns:
        Signed gradients, ``(B, C, *S)``, or ``(B, N, C, *S)`` for several classes; detached, not scaled.

    Raises:
        TypeError: If images are not a floating-point tensor, or as :meth:`diffgradcam.BaseCAM.explain`.
        ValueError: If no ReLU lies between the images and the logits, or as :meth:`diffgradcam.BaseCAM.explain`.
        RuntimeError: If the model detaches the images.

    Reference:
        Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR 2015 workshop (arXiv 1412.6806).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> guided_gradients(model, torch.rand(5, 3, 8, 8), [0, 1, 0, 1, 0]).shape
        torch.Size([5, 3, 8, 8])
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        what = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images are {what}; expected a floating-point tensor (B, C, H, W), such as "
            "diffgradcam.utils.image.preprocess_image makes it"
        )
    inner = inner_model(model)
    with torch.inference_mode(False), torch.enable_grad(), eagerly(inner):  # compiled code hides its graph
        source = images.detach().clone().requires_grad_()
        logits = output(inner(source.clone()))  # a copy: the model's first layer may work in place
        check_finite("the output", logits)
        index = class_index(logits, classes)
        _guide(logits)
        gradients = [_gradient(logits, source, score, column) for column in columns(index).unbind(1)]
    return torch.stack(gradients, 1) if index.ndim > 1 else gradients[0]


def guided_gradcam(cam: ScoredCAM, images: Tensor, classes: Classes = None) -> Tensor:
    """Guided Grad-CAM: guided gradients where the map of a class activation method is high.

    The map says where, the gradients say which edges. With a contrastive method both explain its contrast.

    Args:
        cam: A method that explains a score; its model, score and output are used for the gradients too.
        images: ``(B, C, *S)``, as the model takes them.
        classes: As :meth:`diffgradcam.BaseCAM.explain`.

    Returns:
        Signed products, ``(B, C, *S)``, or ``(B, N, C, *S)`` for several classes; detached, not scaled.

    Raises:
        TypeError: As :func:`guided_gradients`.
        ValueError: As :func:`guided_gradients`.

    Reference:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.

    Example:
        >>> from diffgradcam import DiffGradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> guided_gradcam(DiffGradCAM(model, "1"), torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """
    _, index, maps = cam.explain(images, classes)
    gradients = guided_gradients(cam.model, images, index, score=cam.score, output=cam.output)
    resized = heatmaps.resize(maps.flatten(0, index.ndim - 1), images.shape[2:])
    return resized.view(*index.shape, 1, *images.shape[2:]) * gradients


class GuidedBackpropReLUModel:
    """Guided backpropagation as pytorch-grad-cam calls it; see :func:`guided_gradients`, which this wraps.

    Unlike there, the model is left as it is (no ``eval()``, no move to the device) and functional ReLUs are guided too.

    Args:
        model: Any module that returns logits ``(1, K)``.
        device: Where to move the image; None leaves it where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self.model = model
        self.device = device

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> np.ndarray[Any, Any]:
        """Guided gradients of one class of one image.

        Args:
            input_img: ``(1, C, H, W)``.
            target_category: The class; None is the one with the largest logit.

        Returns:
            ``(H, W, C)``, signed, not scaled.

        Raises:
            ValueError: For more than one image, or as :func:`guided_gradients`.
            TypeError: As :func:`guided_gradients`.
        """
        if isinstance(input_img, Tensor) and (input_img.ndim != 4 or len(input_img) != 1):
            raise ValueError(
                f"input_img has shape {tuple(input_img.shape)}; expected one image (1, C, H, W): call guided_gradients "
                "for several"
            )
        image = input_img.to(self.device) if isinstance(input_img, Tensor) else input_img
        gradients = widen(guided_gradients(self.model, image, target_category)[0])  # NumPy has no bfloat16
        return gradients.permute(1, 2, 0).cpu().numpy()


def _gradient(logits: Tensor, images: Tensor, score: ScoreFunction, classes: Tensor) -> Tensor:
    cotangents = score_gradients(score, logits, classes.unsqueeze(1)).squeeze(1).to(logits.dtype)
    with same_weights():
        (gradient,) = torch.autograd.grad(logits, images, cotangents, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise RuntimeError("the logits do not depend on the images: the model detaches them; remove the detach()")
    return gradient


def _guide(logits: Tensor) -> None:
    """Let every ReLU of the graph of the logits pass back positive gradients only. The graph dies with the logits."""
    others, guided = set(), False
    for node in _nodes(logits):
        name = node.name()
        # ReLU6 is recorded as a hard tanh between 0 and 6.
        if name == "ReluBackward0" or (name == "HardtanhBackward0" and node._saved_min_val == 0):  # type: ignore[attr-defined]
            node.register_prehook(lambda gradients: tuple(gradient.clamp(min=0) for gradient in gradients))
            guided = True
        elif name.startswith(_OTHER_ACTIVATIONS):
            others.add(name.removesuffix("0").removesuffix("Backward"))
    if not guided:
        found = f"its activations are {', '.join(sorted(others))}" if others else "no activation is recorded"
        raise ValueError(
            f"guided backpropagation changes how gradients pass a ReLU, but no ReLU lies between the images and the "
            f"logits ({found}); use a class activation map such as GradCAM for this model, or, if its ReLU hides in a "
            "custom autograd function, replace it by torch.relu or nn.ReLU"
        )


def _nodes(logits: Tensor) -> Iterator[Node]:
    """Every node of the graph, once."""
    waiting: list[Node | None] = [logits.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
