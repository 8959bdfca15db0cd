"""The gradients of activations: one vector-Jacobian product for all classes at once.

A score is first differentiated with respect to the logits, ``(B, N, K)`` for ``N`` explained classes of each image.
What remains is linear, and the same for every score: these cotangents times the Jacobian of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..scores import Score, score_gradients
from .recorder import same_weights
from .tensors import spread, widen
from .tracing import current_trace

_CLASSES_PER_BLOCK = 64
_NUMBERS_PER_BLOCK = 2**25  # 128 MiB of float32


def activation_gradients(
    output: Tensor,
    activations: Sequence[Tensor],
    cotangents: Tensor,
    *,
    create_graph: bool = False,
    independent: Callable[[], str] = lambda: "the output does not depend on the activations",
) -> list[Tensor]:
    """Vector-Jacobian products of the output with respect to the activations of each layer.

    Args:
        output: What the model put out, ``(B, *O)``, with its graph down to the activations.
        activations: One tensor ``(B, ...)`` for each layer.
        cotangents: ``(B, N, *O)``.
        create_graph: Keep the graph, so that the result can be differentiated.
        independent: Makes the message for an output that depends on none of the activations.

    Returns:
        Gradients, ``(B, N, ...)``, for each layer; 0 where the output does not depend on it. No ``.grad`` is touched.

    Raises:
        RuntimeError: If the output depends on none of the activations.
    """
    cotangents = cotangents.to(output.dtype)

    def product(vector: Tensor, batched: bool) -> tuple[Tensor, ...]:
        with same_weights():
            gradients: tuple[Tensor, ...] = torch.autograd.grad(
                output,
                activations,
                vector,
                is_grads_batched=batched,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        if all(gradient is None for gradient in gradients):
            raise RuntimeError(independent())
        return tuple(
            vector.new_zeros(*vector.shape[:batched], *layer.shape) if gradient is None else gradient
            for gradient, layer in zip(gradients, activations, strict=True)
        )

    def one_by_one() -> list[Tensor]:
        rows = [product(vector, batched=False) for vector in cotangents.unbind(1)]
        return [torch.stack(layer, 1) for layer in zip(*rows, strict=True)]

    if cotangents.shape[1] == 1:
        return [gradient.unsqueeze(1) for gradient in product(cotangents[:, 0], batched=False)]
    if current_trace() is not None:  # a batched product would take the number of images for a constant
        return one_by_one()
    try:
        products = product(cotangents.movedim(1, 0), batched=True)
    except RuntimeError:  # A custom autograd function that cannot be batched.
        return one_by_one()
    return [gradients.movedim(0, 1) for gradients in products]


def hessian_products(gradients: list[Tensor], activations: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """The Hessian of each score with respect to the activations of a layer, times these activations.

    Args:
        gradients: Of each layer, ``(B, N, ...)``, with their graph.
        activations: Of each layer, ``(B, ...)``.
        create_graph: Keep the graph, so that the result can be differentiated.

    Returns:
        ``H A``, ``(B, N, ...)``, for each layer; 0 for a score that is linear in the activations.

    Raises:
        RuntimeError: If a layer above has no second derivative.
    """
    return [
        torch.stack([_product(row, layer, create_graph) for row in rows.unbind(1)], 1)
        for rows, layer in zip(gradients, activations, strict=True)
    ]


def _product(gradients: Tensor, activations: Tensor, create_graph: bool) -> Tensor:
    if not gradients.requires_grad:
        return torch.zeros_like(activations)
    try:
        (product,) = torch.autograd.grad(
            gradients,
            activations,
            activations,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise RuntimeError(
            f"a layer above the target has no second derivative ({error}); run a model with attention under "
            "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), or use GradCAM"
        ) from error
    return product


def class_blocks(classes: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Cut classes into blocks that bound the memory of what is computed for each class.

    Args:
        classes: ``(B, N)``.
        numbers: How many numbers are computed for one class of one image.

    Returns:
        Blocks along ``N``: of at most 64 classes, and at most 2**25 numbers unless one class has more. While tracing,
        the size of the batch is open, so that classes alone count.
    """
    size = _CLASSES_PER_BLOCK
    if current_trace() is None:
        size = min(max(_NUMBERS_PER_BLOCK // max(len(classes) * numbers, 1), 1), size)
    return (classes,) if classes.shape[1] <= size else torch.split(classes, size, dim=1)


class PooledLinearMaps(NamedTuple):
    """All K class activation maps in closed form, if it holds.

    Attributes:
        maps: Signed maps of all logits, ``(B, K, *S)``.
        holds: Whether the head is of this kind: one bool, not yet looked at.
        weight: Of the linear layer, ``(K, C)``.
    """

    maps: Tensor
    holds: Tensor
    weight: Tensor


def pooled_linear_maps(
    model: nn.Module, logits: Tensor, activations: Sequence[Tensor], to_grid: Callable[[Tensor], Tensor] = widen
) -> PooledLinearMaps | None:
    """All K class activation maps in closed form, for logits that are a linear layer of the mean over the positions.

    Then the gradient of logit ``k`` is ``weight[k] / number of positions`` everywhere, and the map of any score is its
    cotangents times these maps. Whether the head really is of this kind is not guessed from its structure: one
    vector-Jacobian product with random cotangents, computed both ways, decides it. Of logits in half precision, as
    under autocast, the weights are rounded as the layer rounds them; the maps are float32.

    Args:
        model: The model, whose linear layers are the candidates.
        logits: ``(B, K)`` with the graph down to the activations.
        activations: Of a single layer, ``(B, C, *S)`` after ``to_grid``; several are never in closed form.
        to_grid: Brings activations, and their gradients, into the form ``(B, C, *S)``.

    Returns:
        The maps, and whether they hold; None if no linear layer fits. While tracing, the layer is known.

    Reference:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016 (CAM).
    """
    kind = logits.dtype
    half = widen(logits) is not logits
    if len(activations) != 1 or (activations[0].dtype != kind and not half):
        return None
    features = to_grid(activations[0].detach())
    trace = current_trace()
    if trace is not None:
        known = trace.head
        return None if known is None else PooledLinearMaps(_maps_of_head(known, features), torch.tensor(True), known)
    shape = (logits.shape[1], features.shape[1])
    weights = [layer.weight.detach() for layer in model.modules() if isinstance(layer, nn.Linear)]
    candidates = [w for w in weights if w.shape == shape and w.device == logits.device and (half or w.dtype == kind)]
    if half:
        candidates = [w.to(kind).to(features.dtype) for w in candidates]
    if not candidates or not logits.numel():
        return None
    positions = features.shape[2:].numel()
    vector = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=kind).to(logits.device)
    with same_weights():
        actual = to_grid(torch.autograd.grad(logits, activations, vector, retain_graph=True)[0])
    step = torch.finfo(kind).eps
    tolerance = (4 * step if half else step**0.5) * actual.abs().amax()
    fits = []
    for weight in candidates:
        expected = spread(widen(vector) @ weight / positions, actual.ndim)
        fits.append(((actual - expected).abs() <= tolerance).all())
    # Of several candidates the first that fits, without looking at the flags.
    which = torch.stack(fits).long().argmax()
    weight = candidates[0] if len(candidates) == 1 else torch.stack(candidates).index_select(0, which[None])[0]
    return PooledLinearMaps(_maps_of_head(weight, features), torch.stack(fits).any(), weight)


def _maps_of_head(weight: Tensor, features: Tensor) -> Tensor:
    maps = weight @ features.flatten(2) / features.shape[2:].numel()
    return maps.view(*maps.shape[:2], *features.shape[2:])


def linear_maps(logit_maps: Tensor, score: Score, logits: Tensor, classes: Tensor) -> Tensor:
    """Maps of any score from the maps of the logits, where a map is linear in the score.

    Args:
        logit_maps: Of all logits, ``(B, K, *S)``.
        score: What is explained; its :meth:`~diffgradcam.scores.Score.combine` is used where it has one.
        logits: ``(B, K)``.
        classes: ``(B, N)``.

    Returns:
        ``(B, N, *S)``.

    Raises:
        ValueError: As :func:`~diffgradcam.scores.score_gradients`.
    """
    flat = logit_maps.flatten(2)
    maps = score.combine(flat, widen(logits), classes)
    if maps is None:
        blocks = class_blocks(classes, logits.shape[1])
        maps = torch.cat([score_gradients(score, logits, block) @ flat for block in blocks], 1)
    return maps.view(*classes.shape, *logit_maps.shape[2:])
