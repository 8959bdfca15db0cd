"""Where: find a target layer by module or dotted name."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from . import messages
from .wrappers import inner_model


@dataclass(frozen=True)
class LayerInput:
    """What enters a layer, as a target layer. Made by :func:`~diffgradcam.layer_input`."""

    layer: nn.Module | str
    argument: str | int | None = None


LayerSpec = nn.Module | str | LayerInput
Run = str | int | None
_RUNS = ("first", "last", "all")


def layer_input(module_or_name: nn.Module | str, argument: str | int | None = None) -> LayerInput:
    """Explain what *enters* a layer instead of what leaves it.

    This is how to reach activations that no module of its own puts out (a functional ReLU), or that come from a module
    which runs many times (one shared activation function): name the layer that follows.

    Args:
        module_or_name: A module of the model, or its dotted name.
        argument: Which argument of the layer, by position or keyword. By default its first floating-point tensor,
            wherever the same tensor is passed, as in ``attention(x, x, x)``; a layer that takes several different
            tensors of one form needs a choice.

    Returns:
        A target layer for any CAM class.

    Example:
        >>> layer_input("avgpool")
        LayerInput(layer='avgpool', argument=None)
    """
    return LayerInput(module_or_name, argument)


class Layer(NamedTuple):
    """A target layer, found in a model.

    Attributes:
        module: The module.
        entering: Whether its input is meant.
        argument: Which argument, where its input is meant; None for the first tensor.
        run: Which run, of several in one forward pass; None where only one is expected.
        name: What messages call it.
    """

    module: nn.Module
    entering: bool
    argument: str | int | None
    run: Run
    name: str


def find_layers(model: nn.Module, target_layers: LayerSpec | Sequence[LayerSpec], run: Run = None) -> list[Layer]:
    """Find target layers in a model.

    Args:
        model: The model, without wrappers.
        target_layers: Modules of it, dotted names, or :func:`layer_input` of either.
        run: Which run of a layer that runs several times: ``"first"``, ``"last"``, ``"all"``, or its number.

    Returns:
        The layers, in the order given.

    Raises:
        ValueError: If a name or a module is not a layer of the model, or no layer is given, or ``run`` is something
            else.
        TypeError: If a target is something else.
    """
    if not isinstance(target_layers, LayerSpec | Sequence):
        raise TypeError(_not_a_layer(target_layers))
    number = isinstance(run, int) and not isinstance(run, bool)
    if not (run is None or number or (isinstance(run, str) and run in _RUNS)):
        raise ValueError(f"run is {run!r}; expected 'first', 'last', 'all', the number of a run, or None")
    targets = [target_layers] if isinstance(target_layers, LayerSpec) else list(target_layers)
    if not targets:
        raise ValueError("target_layers is empty; expected at least one module or dotted name, such as 'layer4'")
    return [_layer(model, target, run) for target in targets]


def _not_a_layer(target: object) -> str:
    return (
        f"a target layer is {reprlib.repr(target)}, of type {type(target).__name__}; expected a module, a dotted name "
        "such as 'layer4.1', layer_input() of either, or a list of these"
    )


def _layer(model: nn.Module, target: LayerSpec, run: Run) -> Layer:
    if isinstance(target, LayerInput):
        return Layer(_find(model, target.layer), True, target.argument, run, _name(model, target))
    return Layer(_find(model, target), False, None, run, _name(model, target))


def _find(model: nn.Module, target: object) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    kind = type(model).__name__
    if isinstance(target, str):
        if target not in modules:
            if messages.is_torchscript(model):
                raise ValueError(messages.torchscript(repr(target)))
            raise ValueError(f"{target!r} is not a layer of {kind}; {_suggestion(target, list(modules))}")
        return modules[target]
    if not isinstance(target, nn.Module):
        raise TypeError(_not_a_layer(target))
    # A compiled part of the model is a layer as it is: within it, hooks that come later are ignored.
    layer: nn.Module = target if target in modules.values() else inner_model(target)
    if layer not in modules.values():
        raise ValueError(
            f"the given {type(layer).__name__} is not a layer of this {kind}; take the layer from the very model that "
            "is explained (a copy has layers of its own), or give its dotted name"
        )
    return layer


def _name(model: nn.Module, target: LayerSpec) -> str:
    if isinstance(target, LayerInput):
        argument = "" if target.argument is None else f", argument={target.argument!r}"
        return f"layer_input({_name(model, target.layer)}{argument})"
    if isinstance(target, str):
        return repr(target)
    layer = _find(model, target)
    return repr(next(name for name, module in model.named_modules() if module is layer))


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return "list the names with [name for name, _ in model.named_modules()], in a shell with diffgradcam layers MODEL"
