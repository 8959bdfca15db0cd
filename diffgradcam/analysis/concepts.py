"""Deep feature factorisation: what concepts the activations of a batch consist of, and where each of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from .. import heatmaps
from .._core.checks import check_count, check_seed
from .._core.forward import LayerReader
from .._core.layers import LayerSpec
from .._core.optional import import_optional
from .._core.outputs import check_finite, find_logits

_Array = np.ndarray[Any, np.dtype[np.float32]]


class Concepts(NamedTuple):
    """What activations consist of: ``A[b, :, s] = sum_n maps[b, n, s] vectors[n]``, about.

    Attributes:
        vectors: The channels of each concept, ``(n, C)``.
        maps: How much of it is where, ``(B, n, *S)``, at least 0.
    """

    vectors: Tensor
    maps: Tensor


def factorize(activations: Tensor, components: int, *, seed: int = 0, iterations: int = 1000) -> Concepts:
    """Non-negative matrix factorisation of activations over all images and positions of a batch.

    Channels with negative values are first shifted by their minimum over the batch, and their concepts back; then the
    sum in :class:`Concepts` is that of the shifted activations. The factors are one solution of several, given by the
    seed, and are not a differentiable function of the activations.

    Args:
        activations: ``(B, C, *S)``.
        components: How many concepts, ``n``.
        seed: Of the solver's start.
        iterations: At most so many; scikit-learn warns when it has not converged by then.

    Returns:
        See :class:`Concepts`; on the CPU, float32 or float64.

    Raises:
        ImportError: Without scikit-learn; the message says how to install it.
        ValueError: If there are no positions or no concepts, or a number is not whole.

    Reference:
        Collins, Achanta, Suesstrunk, "Deep Feature Factorization For Concept Discovery", ECCV 2018; the shift is that
        of pytorch-grad-cam, which also shifts channels that are nowhere 0.

    Example:
        >>> left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> channels = torch.stack([left, 2 * left, right]).unsqueeze(0)  # (1, 3, 1, 2): two things, side by side
        >>> concepts = factorize(channels, 2)
        >>> torch.allclose(torch.einsum("bnhw,nc->bchw", concepts.maps, concepts.vectors), channels, atol=1e-2)
        True
    """
    if activations.ndim < 3 or not activations.numel():
        raise ValueError(f"activations have shape {tuple(activations.shape)}; expected (B, C, *S) with positions")
    check_finite("the activation", activations)
    check_count("components", components)
    check_count("iterations", iterations)
    check_seed(seed)
    nmf = import_optional("sklearn.decomposition", "factorize()").NMF
    channels = activations.detach().cpu().transpose(0, 1)
    channels = channels if channels.dtype == torch.float64 else channels.float()
    flat = channels.flatten(1)
    offset = flat.amin(1, keepdim=True).clamp_max(0)
    solver = nmf(components, init="random", random_state=seed, max_iter=iterations)
    vectors = torch.from_numpy(solver.fit_transform((flat - offset).numpy())) + offset
    maps = torch.from_numpy(solver.components_).view(components, *channels.shape[1:])
    return Concepts(vectors.T, maps.transpose(0, 1))


class Factorization(NamedTuple):
    """What a model decided, and what the activations of one of its layers consist of.

    Attributes:
        logits: ``(B, K)``, detached.
        vectors: The channels of each concept, ``(n, C)``.
        maps: How much of it is where, at the resolution of the layer, ``(B, n, h, w)``, at least 0.
        scores: What ``computation_on_concepts`` makes of the vectors, such as class scores ``(n, K)``; None without it.
    """

    logits: Tensor
    vectors: Tensor
    maps: Tensor
    scores: Tensor | None


@final
class DeepFeatureFactorization:
    """Deep feature factorisation: the concepts of a batch of images, where they are, and what they speak for.

    It has no score: the concepts are those of the activations, whatever the model decides. See :func:`factorize`.

    Args:
        model: Any module; see :class:`BaseCAM`.
        target_layer: A module, a dotted name, or :func:`~diffgradcam.layer_input` of either.
        reshape_transform: Brings activations into the form ``(B, C, *S)``.
        computation_on_concepts: What to compute from concepts ``(n, C)``: the model's linear head, for class scores.
        output: As :class:`BaseCAM`.

    Raises:
        ValueError: If the target layer is not a layer of the model.
        TypeError: If an argument is of the wrong kind.

    Reference:
        Collins, Achanta, Suesstrunk, "Deep Feature Factorization For Concept Discovery", ECCV 2018; class scores of
        concepts as in pytorch-grad-cam.

    Example:
        >>> head = nn.Linear(4, 2)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        >>> factorization = DeepFeatureFactorization(model, "1", computation_on_concepts=head)
        >>> found = factorization.explain(torch.rand(5, 3, 8, 8), 2)
        >>> found.vectors.shape, found.maps.shape, found.scores.shape
        (torch.Size([2, 4]), torch.Size([5, 2, 6, 6]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: LayerSpec,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
        *,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        if computation_on_concepts is not None and not callable(computation_on_concepts):
            raise TypeError(f"computation_on_concepts is {computation_on_concepts!r}; expected a function or None")
        self.computation_on_concepts = computation_on_concepts
        self._reader = LayerReader(model, target_layer, reshape_transform, output, graph=False)

    def explain(
        self, input_tensor: Any, n_components: int = 16, *args: Any, seed: int = 0, **kwargs: Any
    ) -> Factorization:
        """Decide and factorise in one forward pass.

        Args:
            input_tensor: The input of the model, usually images ``(B, 3, H, W)``.
            n_components: How many concepts.
            *args: Further arguments of the model.
            seed: See :func:`factorize`.
            **kwargs: Further keyword arguments of the model.

        Returns:
            See :class:`Factorization`; vectors and maps on the CPU.

        Raises:
            ImportError: As :func:`factorize`.
            ValueError: As :func:`factorize` and :meth:`BaseCAM.explain`.
            RuntimeError: As :meth:`BaseCAM.explain`.
        """
        with self._reader.run(input_tensor, *args, **kwargs) as forward:
            forward.checks.verify()
            logits, activations = forward.logits.detach(), forward.grids()[0]
            vectors, maps = factorize(activations, n_components, seed=seed)
            computed = None
            if self.computation_on_concepts is not None:
                # Not as the logits, which autocast makes bfloat16: it is off here, and a head is not.
                head = self.computation_on_concepts
                like = next(head.parameters(), activations) if isinstance(head, nn.Module) else activations
                computed = head(vectors.to(like))
            return Factorization(logits, vectors, maps, computed)

    def __call__(self, input_tensor: Tensor, n_components: int = 16) -> tuple[_Array, ...]:
        """Concepts at input size: the call of pytorch-grad-cam.

        Args:
            input_tensor: Images, ``(B, C, H, W)``.
            n_components: How many concepts.

        Returns:
            Concepts ``(C, n)``; maps ``(B, n, H, W)``, each scaled to [0, 1], then resized; with
            ``computation_on_concepts`` also what it computed, such as class scores ``(n, K)``. All float32.

        Raises:
            ImportError: As :meth:`explain`.
            ValueError: As :meth:`explain`.
            RuntimeError: As :meth:`explain`.
        """
        found = self.explain(input_tensor, n_components)
        resized = heatmaps.resize(heatmaps.minmax(found.maps.flatten(0, 1)), input_tensor.shape[2:])
        maps = resized.view(*found.maps.shape[:2], *resized.shape[1:])
        tensors = [found.vectors.T, maps] + ([] if found.scores is None else [found.scores])
        return tuple(tensor.float().cpu().numpy() for tensor in tensors)
