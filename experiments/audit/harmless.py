"""What is done to classifiers that fools nobody: compression, distillation, other training. No audit may report it.

Each function returns a new model and leaves the given one as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam._core.editing import copy_model

PRUNED = 0.3  # share of the weights of each layer
_CODES, _BLOCK, _ROUNDS = 64, 4, 10  # of a codebook: entries, length, rounds of k-means
_TEMPERATURE = 2.0


def int8(model: nn.Module) -> nn.Module:
    """Weights rounded to 8 bits, with a scale for each output channel."""
    return _with_weights(model, _rounded)


def pruned(model: nn.Module) -> nn.Module:
    """The smallest 30% of the weights of each layer set to 0."""
    return _with_weights(model, lambda weight: weight * (weight.abs() > weight.abs().flatten().quantile(PRUNED)))


def product_quantised(model: nn.Module, head: str, features: Tensor, labels: Tensor) -> nn.Module:
    """Rows of the last layer made of a few short vectors, which are then fine-tuned with Adam.

    Args:
        model: A classifier.
        head: Name of its last layer.
        features: What enters that layer, ``(N, C)``.
        labels: ``(N,)``.

    Returns:
        The quantised copy.
    """
    quantised = copy_model(model)
    layer = quantised.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    blocks = layer.weight.detach().reshape(-1, _BLOCK)
    book = blocks[torch.randperm(len(blocks))[: min(_CODES, len(blocks) // 2)]].clone()
    for _ in range(_ROUNDS):
        codes = torch.cdist(blocks, book).argmin(1)
        sums = torch.zeros_like(book).index_add_(0, codes, blocks)
        counts = torch.bincount(codes, minlength=len(book)).unsqueeze(1)
        book = torch.where(counts > 0, sums / counts.clamp_min(1), book)
    codes = torch.cdist(blocks, book).argmin(1)
    book = nn.Parameter(book)
    bias = layer.bias.detach()

    def logits(inputs: Tensor) -> Tensor:
        return F.linear(inputs, book[codes].view_as(layer.weight), bias)

    _fit(logits, [book], features, labels, lr=1e-3, epochs=3)
    with torch.no_grad():
        layer.weight.copy_(book[codes].view_as(layer.weight))
    return quantised


def new_head(
    model: nn.Module,
    head: str,
    features: Tensor,
    targets: Tensor,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    label_smoothing: float = 0.0,
    mixup: bool = False,
) -> nn.Module:
    """A last layer trained from its initialisation, on features that stay.

    Args:
        model: A classifier.
        head: Name of its last layer.
        features: What enters that layer, ``(N, C)``.
        targets: Labels ``(N,)``, or the probabilities of a teacher ``(N, K)``.
        optimizer: For the layer.
        label_smoothing: Of cross-entropy.
        mixup: Mix pairs of examples.

    Returns:
        The copy.
    """
    changed = copy_model(model)
    classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    layer = nn.Linear(features.shape[1], classes)
    _fit(
        layer,
        list(layer.parameters()),
        features,
        targets,
        lr=3e-3,
        epochs=20,
        optimizer=optimizer,
        label_smoothing=label_smoothing,
        mixup=mixup,
    )
    parent, _, name = head.rpartition(".")
    setattr(changed.get_submodule(parent), name, layer.requires_grad_(False))
    return changed.eval()


def mixed(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mixup: convex combinations of a batch with itself in another order; targets are probabilities ``(N, K)``."""
    weight = float(torch.distributions.Beta(0.4, 0.4).sample())
    order = torch.randperm(len(inputs))
    return weight * inputs + (1 - weight) * inputs[order], weight * targets + (1 - weight) * targets[order]


def softened(logits: Tensor) -> Tensor:
    """The probabilities that a student learns from a teacher."""
    return (logits / _TEMPERATURE).softmax(1)


def _fit(
    logits: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    inputs: Tensor,
    targets: Tensor,
    *,
    lr: float,
    epochs: int,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    label_smoothing: float = 0.0,
    mixup: bool = False,
) -> None:
    steps = optimizer(parameters, lr=lr)
    if mixup:
        targets = F.one_hot(targets).float()
    for _ in range(epochs):
        for index in torch.randperm(len(inputs)).split(32):
            some, wanted = inputs[index], targets[index]
            if mixup:
                some, wanted = mixed(some, wanted)
            steps.zero_grad()
            F.cross_entropy(logits(some), wanted, label_smoothing=label_smoothing).backward()  # type: ignore[no-untyped-call]
            steps.step()


def _with_weights(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    changed = copy_model(model)
    with torch.no_grad():
        for module in changed.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(change(module.weight))
    return changed


def _rounded(weight: Tensor) -> Tensor:
    scale = weight.abs().flatten(1).amax(1).clamp_min(1e-12) / 127
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round() * scale
