"""WHERE: find a layer by module or dotted name, and record what it puts out, inside the autograd graph."""

from __future__ import annotations

import difflib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class LayerInput:
    """What enters a layer, as a target layer. Made by :func:`layer_input`."""

    layer: nn.Module | str


Target = nn.Module | str | LayerInput


def layer_input(module_or_name: nn.Module | str) -> LayerInput:
    """Explain what *enters* a layer instead of what leaves it.

    This is how to reach activations that no module of its own puts out (a functional ReLU), or that come from a module
    which runs many times (one shared activation function): name the layer that follows.

    Args:
        module_or_name: A module of the model, or its dotted name.

    Returns:
        A target layer for any CAM class.

    Example:
        >>> layer_input("avgpool")
        LayerInput(layer='avgpool')
    """
    return LayerInput(module_or_name)


def inner_model(model: nn.Module) -> nn.Module:
    """Take off what wraps a model to run it elsewhere: DataParallel, DistributedDataParallel, ``torch.compile``."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif is_compiled(model) and "_orig_mod" in dict(model.named_children()):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def is_compiled(module: nn.Module) -> bool:
    """Whether calling the module runs code from ``torch.compile``, which ignores hooks set after it was compiled."""
    # The wrapper class lives in torch._dynamo, whose import alone takes seconds.
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


class Recorder:
    """Hooks that record the outputs (or inputs) of layers; nothing is recorded before :meth:`attach`.

    Each forward pass of a layer that autograd follows leaves its activations here for as long as the graph built on top
    of them lives, and no longer: the recorder itself holds them weakly.

    Args:
        model: The model, without wrappers.
        target_layers: Modules of it, dotted names, or :func:`layer_input` of either.
        cut: Start the graph at the first layer that fires: switch gradients on there. The caller runs the model under
            ``no_grad`` and restores the mode. Only the attaching thread is recorded, and each layer may run once.

    Raises:
        ValueError: If a name or a module is not a layer of the model, or no layer is given.
        TypeError: If a target is something else.
    """

    def __init__(self, model: nn.Module, target_layers: Target | Sequence[Target], *, cut: bool = False) -> None:
        targets = [target_layers] if isinstance(target_layers, Target) else list(target_layers)
        if not targets:
            raise ValueError("target_layers is empty; expected at least one module or dotted name, such as 'layer4'")
        self._layers = [_find(model, target) for target in targets]
        self.names = [_name(model, target) for target in targets]
        self._cut = cut
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []
        self._alive: list[list[weakref.ref[Tensor]]] = [[] for _ in targets]
        self.runs = [0] * len(targets)
        self.ran_without_gradients = False

    def attach(self) -> None:
        """Register the hooks, once."""
        if not self._handles:
            self._handles = [self._register(index, *layer) for index, layer in enumerate(self._layers)]

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Recorder:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def activations(self, output: Tensor) -> list[Tensor]:
        """The recorded activations that ``output`` was computed from, one tensor a layer.

        Args:
            output: A tensor computed by the model, with its graph.

        Returns:
            One tensor for each target layer.

        Raises:
            RuntimeError: If a layer did not run, ran more than once, or ``output`` does not depend on it.
        """
        return [self._one(index, output) for index in range(len(self.names))]

    def _one(self, index: int, output: Tensor) -> Tensor:
        name = self.names[index]
        if not self.runs[index]:
            raise RuntimeError(_without_gradients(name) if self.ran_without_gradients else _did_not_run(name))
        used = [tensor for ref in self._alive[index] if (tensor := ref()) is not None]
        if not output.requires_grad:
            used = []
        if not self._cut and used:
            # Several forward passes may be alive at once (the last step's maps, two inputs): take the one meant.
            found = torch.autograd.grad(output.sum(), used, retain_graph=True, allow_unused=True)
            used = [tensor for tensor, gradient in zip(used, found, strict=True) if gradient is not None]
        if not used:
            raise RuntimeError(independent(name))
        if len(used) > 1:
            raise RuntimeError(_ran_twice(name))
        return used[0]

    def _register(self, index: int, layer: nn.Module, entering: bool) -> RemovableHandle:
        if not entering:
            return layer.register_forward_hook(lambda _module, _args, output: self._record(index, output))

        def pre_hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            recorded = self._record(index, args[0] if args else None)
            return None if recorded is None else (recorded, *args[1:])

        return layer.register_forward_pre_hook(pre_hook)

    def _record(self, index: int, tensor: object) -> Tensor | None:
        if not self._handles or (self._cut and threading.get_ident() != self._thread):
            return None  # a copy of the model brought the hooks along, or another thread is explaining it
        if self._cut:
            if self.runs[index]:
                raise RuntimeError(_ran_twice(self.names[index]))
            torch.set_grad_enabled(True)
        elif not torch.is_grad_enabled():
            self.ran_without_gradients = True
            return None
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else f"{type(tensor).__name__}"
            raise TypeError(
                f"layer {self.names[index]} gives {what}; expected one floating-point tensor (B, C, ...): choose a "
                "module inside it, or layer_input() of the module that follows"
            )
        activations = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        # The copy keeps the activations safe from an in-place ReLU that follows; its node in the graph owns them.
        passed_on = activations.clone()
        metadata: dict[str, Any] = passed_on.grad_fn.metadata  # type: ignore[union-attr, assignment]
        metadata["diffgradcam"] = activations
        self.runs[index] += 1
        self._alive[index] = [ref for ref in self._alive[index] if ref() is not None] + [weakref.ref(activations)]
        return passed_on


def independent(name: str) -> str:
    """The message for an output that does not depend on a layer."""
    return (
        f"the output does not depend on layer {name}: it comes from another forward pass, its graph was freed, or "
        "the model detaches or switches gradients off after this layer; choose a layer on the way to the output"
    )


def _did_not_run(name: str) -> str:
    return (
        f"layer {name} did not run in a recorded forward pass; call the model (not its forward method) while the CAM "
        "is attached, choose a layer that the model calls (a ModuleList is never called), and attach before torch.compile"
    )


def _without_gradients(name: str) -> str:
    return (
        f"layer {name} ran without gradients (no_grad, inference_mode or reentrant checkpointing), so nothing was "
        "recorded; switch gradients on for the forward pass, or use explain() or the call, which need none"
    )


def _ran_twice(name: str) -> str:
    return (
        f"layer {name} ran more than once in one forward pass, so which run is meant is unclear; name a layer that runs "
        "once, or layer_input() of the layer that follows the wanted run"
    )


def _find(model: nn.Module, target: Target) -> tuple[nn.Module, bool]:
    if isinstance(target, LayerInput):
        return _find(model, target.layer)[0], True
    modules = dict(model.named_modules(remove_duplicate=False))
    kind = type(model).__name__
    if isinstance(target, str):
        if target not in modules:
            raise ValueError(f"{target!r} is not a layer of {kind}; {_suggestion(target, list(modules))}")
        return modules[target], False
    if not isinstance(target, nn.Module):
        raise TypeError(
            f"{target!r} is not a layer: expected a module, a dotted name such as 'layer4.1', or layer_input() of either"
        )
    target = inner_model(target)
    if not any(module is target for module in modules.values()):
        raise ValueError(
            f"the given {type(target).__name__} is not a layer of this {kind}; take the layer from the very model that "
            "is explained (a copy has layers of its own), or give its dotted name"
        )
    return target, False


def _name(model: nn.Module, target: Target) -> str:
    if isinstance(target, LayerInput):
        return f"layer_input({_name(model, target.layer)})"
    if isinstance(target, str):
        return repr(target)
    names = [name for name, module in model.named_modules() if module is inner_model(target)]
    return repr(names[0])


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return "list the names with [name for name, _ in model.named_modules()]"
