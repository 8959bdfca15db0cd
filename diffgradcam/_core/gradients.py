"""The gradients of activations: one vector-Jacobian product for all classes at once.

A score is first differentiated with respect to the logits, ``(B, N, K)`` for ``N`` explained classes of each image.
What remains is linear, and the same for every score: these cotangents times the Jacobian of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .recorder import same_weights
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
