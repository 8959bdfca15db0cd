"""Change a *copy* of a model: find its layers again, and the linear layer that gives the logits."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .layers import LayerInput, LayerSpec, find_layers
from .outputs import find_logits
from .wrappers import inner_model


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, without what wraps the model to run it elsewhere (DataParallel, ``torch.compile``).

    Args:
        model: Any module.

    Returns:
        The copy, in the same training mode and on the same device.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    return copy.deepcopy(_inner(model))


def evaluated(model: nn.Module) -> nn.Module:
    """The model in evaluation mode: itself, or a copy if any part of it is in training mode.

    Args:
        model: Any module.

    Returns:
        A model that may be run, but not changed.
    """
    return copy_model(model).eval() if in_training(model) else model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a moment: a forward pass then leaves the statistics of batch norm alone.

    Each module's flag is set and set back, nothing else: ``eval()`` and ``train()`` of a module may do more, as those
    that merge weights do.

    Args:
        model: Any module, also one that is being trained.
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def in_training(model: nn.Module) -> bool:
    """Whether any part of the model is in training mode.

    Args:
        model: Any module.

    Returns:
        True if one is.
    """
    return any(module.training for module in model.modules())


def by_name(model: nn.Module, target_layers: LayerSpec | Sequence[LayerSpec]) -> list[LayerSpec]:
    """Name the layers of a model, so that they are found again in a copy of it.

    Args:
        model: The model whose layers are given.
        target_layers: Modules of it, dotted names, or :func:`~diffgradcam.layer_input` of either.

    Returns:
        The same layers by dotted name.

    Raises:
        ValueError: If a target is not a layer of the model.
        TypeError: If a target is something else.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> by_name(model, model[1])
        ['1']
    """
    model = _inner(model)
    find_layers(model, target_layers)  # refuses what is not a layer of the model
    targets = [target_layers] if isinstance(target_layers, LayerSpec) else target_layers
    return [_named(model, target) for target in targets]


def find_head(model: nn.Module, head: nn.Module | str | None = None) -> str:
    """The name of the linear layer whose rows are the classes.

    Args:
        model: The model.
        head: That layer or its name. By default the last ``nn.Linear``, if no other layer with parameters comes after
            it; layers come in the order in which the model registers them, which is that of nearly all architectures.

    Returns:
        Its dotted name.

    Raises:
        ValueError: If there is no such layer, the default is unclear, its weights are computed by a hook, or it has
            fewer than two rows.
        TypeError: If ``head`` is not an ``nn.Linear``.

    Example:
        >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '2'
    """
    model = _inner(model)
    if head is None:
        name = _last_linear(model)
    else:
        (target,) = by_name(model, head)
        name = str(target)
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise TypeError(
            f"head {name!r} is {type(layer).__name__}; expected the nn.Linear whose output is the logits, so that "
            "a vector added to all its rows adds the same to every logit"
        )
    if not parametrize.is_parametrized(layer, "weight") and "weight" not in dict(layer.named_parameters(recurse=False)):
        raise ValueError(
            f"the weight of head {name!r} is computed by a hook, so a change of it would not last; remove it first, as "
            f"with torch.nn.utils.remove_weight_norm(model.get_submodule({name!r}))"
        )
    if layer.out_features < 2:
        raise ValueError(f"head {name!r} has {layer.out_features} row; expected one row for each of at least 2 classes")
    return name


@contextlib.contextmanager
def linear_layers_that_run(model: nn.Module) -> Iterator[list[str]]:
    """Note which linear layers run while a ``with`` block lasts: a model may have others that it does not use.

    Args:
        model: The model, without wrappers.

    Yields:
        Their dotted names, in the order in which they ran last.
    """
    ran: dict[str, None] = {}

    def note(name: str) -> None:
        ran.pop(name, None)
        ran[name] = None
        names[:] = ran

    names: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                hooks.callback(module.register_forward_hook(lambda *_, name=name: note(name)).remove)
        yield names


def linear_head(model: nn.Module, name: str) -> nn.Linear:
    """The head of a *copy*, ready to be changed: its parametrizations, if any, become plain weights.

    Args:
        model: The copy.
        name: What :func:`find_head` gave.

    Returns:
        The layer.
    """
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)  # find_head has checked it
    if not parametrize.is_parametrized(layer):
        return layer
    # Not remove_parametrizations: a copy shares the class that holds them with the original, which would lose them too.
    weight, bias = layer.weight.detach(), layer.bias
    plain = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta", dtype=weight.dtype)
    plain.to_empty(device=weight.device)
    plain.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    plain.train(layer.training)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, plain)
    return plain


def add_to_rows(layer: nn.Linear, vector: Tensor) -> None:
    """Add one vector to every class's row. Summed in float64, on the CPU, so that it rounds once.

    Args:
        layer: The head of a copy.
        vector: ``(C,)``.
    """
    with torch.no_grad():
        layer.weight.copy_(layer.weight.cpu().double() + vector.cpu().double())


def check_head_is_last(
    model: nn.Module, name: str, images: Tensor, output: Callable[[Any], Tensor] = find_logits
) -> None:
    """Refuse a head whose common shift does not leave every probability alone, by trying one.

    Args:
        model: The model, in evaluation mode.
        name: What :func:`find_head` gave.
        images: A batch, on the device of the model.
        output: Takes the logits out of what the model returns.

    Raises:
        ValueError: If the probabilities move, or do not depend on the head at all.
    """

    def probabilities(change: Callable[[Tensor], Tensor]) -> Tensor:
        # One statement: between two, Ctrl-C could come and leave the hook.
        with model.get_submodule(name).register_forward_hook(lambda _m, _a, rows: change(rows)), torch.no_grad():
            return output(model(images)).cpu().double().softmax(1)

    def wide(rows: Tensor) -> Tensor:  # adding 1 in bfloat16 would round by more than the tolerance
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def unmoved() -> bool:
        try:
            return torch.allclose(probabilities(wide), probabilities(lambda rows: wide(rows) + 1), atol=1e-3)
        except RuntimeError:  # a later layer has weights, in half precision
            return False

    depends = not torch.equal(probabilities(lambda rows: rows), probabilities(torch.neg))
    if not (depends and unmoved()):
        raise ValueError(
            f"adding the same to every output of head {name!r} changes the model's probabilities, or the logits do not "
            "come from it; give the nn.Linear whose rows are the classes as head=, of a model that returns logits"
        )


def _inner(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    return inner_model(model)


def _last_linear(model: nn.Module) -> str:
    linear: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear; expected a linear layer with a row for each class")
    head = model.get_submodule(linear[-1])
    modules = list(model.modules())
    after = modules[modules.index(head) + len(list(head.modules())) :]
    if any(True for module in after for _ in module.parameters(recurse=False)):
        raise ValueError(
            f"the last nn.Linear of {type(model).__name__}, {linear[-1]!r}, is followed by other layers, so it may not "
            "be the one whose rows are the classes; name that one with head="
        )
    return linear[-1]


def _named(model: nn.Module, target: LayerSpec) -> LayerSpec:
    if isinstance(target, LayerInput):
        return LayerInput(_layer_name(model, target.layer), target.argument)
    return _layer_name(model, target)


def _layer_name(model: nn.Module, layer: nn.Module | str) -> str:
    if isinstance(layer, str):
        return layer
    names: list[str] = [name for name, module in model.named_modules() if module is inner_model(layer)]
    return names[0]
