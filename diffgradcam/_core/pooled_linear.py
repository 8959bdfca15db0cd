"""Heads that are a linear layer of the mean over the positions: their gradients and maps need no backward pass.

Such a head is found in two ways. :func:`recorded_head` reads the graph that autograd recorded: it needs no computation,
but knows only the usual operations. :func:`pooled_linear_maps` compares gradients, which finds every head of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..scores import Score, score_gradients
from .gradients import class_blocks
from .recorder import same_weights
from .tensors import spread, widen
from .tracing import current_trace

_LEAF = "AccumulateGrad"
_KEEP_THE_ORDER = frozenset(
    f"{operation}Backward{variant}"
    for operation in ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze")
    for variant in range(3)
)


class RecordedHead(NamedTuple):
    """A linear layer of the mean over all positions.

    Attributes:
        weight: Of the linear layer, ``(K, C)``.
        shape: Of the activations, ``(B, ...)``.
        channels: The dimension of the activations that the mean keeps, besides the images.
    """

    weight: Tensor
    shape: torch.Size
    channels: int

    def at_activations(self, of_mean: Tensor) -> Tensor:
        """From gradients with respect to the mean over the positions to those with respect to the activations.

        Args:
            of_mean: ``(B, N, C)``.

        Returns:
            ``(B, N, ...)``, the same numbers at all positions.
        """
        batch, count, channels = of_mean.shape
        share = of_mean / (self.shape[1:].numel() // channels)
        ones = [1] * len(self.shape)
        ones[self.channels] = channels
        # In memory of its own, as any gradient: a weighting may overwrite it.
        return share.view(batch, count, *ones[1:]).expand(batch, count, *self.shape[1:]).contiguous()

    def maps(self, of_mean: Tensor, features: Tensor) -> Tensor:
        """The maps of gradients that are the same at all positions and are their own weights.

        Args:
            of_mean: Gradients with respect to the mean over the positions, ``(B, N, C)``.
            features: The activations, ``(B, C, *S)``, in float32 or wider.

        Returns:
            ``(B, N, *S)``.
        """
        positions = features.shape[2:]
        nothing = features.new_empty(())  # beta is 0
        maps = torch.baddbmm(nothing, widen(of_mean), features.flatten(2), beta=0, alpha=1 / positions.numel())
        return maps.view(*maps.shape[:2], *positions)


def recorded_head(output: Tensor, activations: Sequence[Tensor]) -> RecordedHead | None:
    """The head of a model, if its mean and its linear layer are all that autograd recorded.

    The nodes of the graph are followed from the output down to the activations. Their names begin with the name of the
    operation, and what they saved for the backward pass has names that begin with ``_saved_``.

    Args:
        output: What the model put out, ``(B, K)``.
        activations: Of a single layer, ``(B, ...)``, a leaf of the graph, of which the model got a copy; of several
            layers nothing is found.

    Returns:
        None for every other graph, where a hook on the output may change its gradient, and while tracing. A hook on a
        tensor between is neither seen nor called.

    Raises:
        RuntimeError: If the weight was changed after the forward pass.
    """
    node: Any = output.grad_fn
    if node is None or output._backward_hooks or len(activations) != 1 or current_trace() is not None:
        return None
    inputs = [function for function, _ in node.next_functions]
    if _operation(node) == "AddmmBackward0" and node._saved_alpha == 1:
        bias, below, weights = inputs
    elif _operation(node) == "MmBackward0":
        bias, (below, weights) = None, inputs
    else:
        return None
    if not (_is_parameter(bias) and _is_parameter(weights)):
        return None  # they may depend on the activations
    while _operation(below) in _KEEP_THE_ORDER:
        below = below.next_functions[0][0]
    if _operation(below) != "MeanBackward1":
        return None
    copy = below.next_functions[0][0]
    if _operation(copy) != "CloneBackward0":
        return None
    (features,) = activations
    leaf = copy.next_functions[0][0]
    if _operation(leaf) != _LEAF or leaf.variable is not features:
        return None
    mean_over = {dim - 2**64 if dim >= 2**63 else dim for dim in below._saved_dim}  # saved without a sign
    kept = [dim for dim in range(features.ndim) if not mean_over & {dim, dim - features.ndim}]
    with same_weights():
        weight = node._saved_mat2.detach().t()
    if len(kept) != 2 or kept[0] != 0 or weight.dtype != features.dtype:
        return None
    return RecordedHead(weight, features.shape, kept[1])


def _is_parameter(node: Any) -> bool:
    """Whether a node is that of a tensor that nothing was computed for, at most transposed; None is one frozen."""
    while _operation(node) == "TBackward0":
        node = node.next_functions[0][0]
    return node is None or _operation(node) == _LEAF


def _operation(node: Any) -> str:
    """What a node of the graph is of; less work than ``node.name()``."""
    return type(node).__name__


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
    head = recorded_head(logits, activations)
    if head is not None:
        gradient = head.at_activations((vector @ head.weight).unsqueeze(1)).squeeze(1)
    else:
        with same_weights():
            (gradient,) = torch.autograd.grad(logits, activations, vector, retain_graph=True)
    actual = to_grid(gradient)
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
