"""WHERE: find a layer by module or dotted name, and record what it puts out, inside the autograd graph."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class LayerInput:
    """What enters a layer, as a target layer. Made by :func:`~diffgradcam.layer_input`."""

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


class _Eagerly:
    """PyTorch's stance to compiled code is one for all threads: the first block to begin sets it, the last restores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._stance = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Within the block, compiled modules run as they were written, so that hooks and graphs are those of Python.

        Args:
            modules: All modules of a model. If none of them is compiled, nothing is done.
        """
        if not any(map(is_compiled, modules)):
            yield
            return
        with self._lock:
            if not self._blocks:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._stance.close()


eagerly = _Eagerly()


class Layer(NamedTuple):
    """A target layer, found: the module, whether its input is meant, and the name that messages give it."""

    module: nn.Module
    entering: bool
    name: str


def find_layers(model: nn.Module, target_layers: Target | Sequence[Target]) -> list[Layer]:
    """Find target layers in a model.

    Args:
        model: The model, without wrappers.
        target_layers: Modules of it, dotted names, or :func:`layer_input` of either.

    Returns:
        The layers, in the order given.

    Raises:
        ValueError: If a name or a module is not a layer of the model, or no layer is given.
        TypeError: If a target is something else.
    """
    if not isinstance(target_layers, Target | Sequence):
        raise TypeError(_not_a_layer(target_layers))
    targets = [target_layers] if isinstance(target_layers, Target) else list(target_layers)
    if not targets:
        raise ValueError("target_layers is empty; expected at least one module or dotted name, such as 'layer4'")
    return [Layer(*_find(model, target), _name(model, target)) for target in targets]


class Recorder:
    """Hooks that record the outputs (or inputs) of layers; nothing is recorded before :meth:`attach`.

    Each forward pass of a layer that autograd follows leaves its activations here for as long as the graph built on top
    of them lives, and no longer: the recorder itself holds them weakly.

    Args:
        layers: What :func:`find_layers` found.
        model: The model, of whose input the number of spatial dimensions is noted in ``image_dims``; 1 until it runs.
        cut: Start the graph at the first layer that fires: switch gradients on there. The caller runs the model under
            ``no_grad`` and restores the mode. Only the attaching thread is recorded, and each layer may run once.
    """

    def __init__(self, layers: Sequence[Layer], model: nn.Module | None = None, *, cut: bool = False) -> None:
        self.layers = layers
        self.image_dims = 1
        self._model = model
        self._cut = cut
        self._thread = threading.get_ident()
        # Several threads may run the model, attach and detach. Re-entrant: a CAM that dies meanwhile detaches too.
        self._lock = threading.RLock()
        self._handles: list[RemovableHandle] = []
        self._alive: list[list[weakref.ref[Tensor]]] = [[] for _ in layers]
        self.runs = [0] * len(layers)
        self.ran_without_gradients = False

    def attach(self) -> None:
        """Register the hooks, once; all of them or, where Ctrl-C comes in between, none."""
        with self._lock:
            if self._handles:
                return
            try:
                self._handles.extend(self._register(index, layer) for index, layer in enumerate(self.layers))
                if self._model is not None:
                    self._handles.append(self._model.register_forward_pre_hook(_InputHook(self), with_kwargs=True))
            except BaseException:
                self.detach()
                raise

    def detach(self) -> None:
        """Remove the hooks."""
        with self._lock:
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
        return [self._one(index, output) for index in range(len(self.layers))]

    def _one(self, index: int, output: Tensor) -> Tensor:
        name = self.layers[index].name
        if not self.runs[index]:
            raise RuntimeError(_without_gradients(name) if self.ran_without_gradients else _did_not_run(name))
        used = [tensor for ref in self._alive[index] if (tensor := ref()) is not None]
        if not self._cut:
            used = self._meant(name, used, output)
        if not output.requires_grad:
            used = []
        if not used:
            raise RuntimeError(independent(name))
        if len(used) > 1:
            raise RuntimeError(f"{_ran_twice(name)}; if the logits join several forward passes, take each pass's maps")
        return used[0]

    @staticmethod
    def _meant(name: str, alive: list[Tensor], output: Tensor) -> list[Tensor]:
        """Of several forward passes that are alive (the last step's maps, two inputs), those behind the output."""
        if not output.requires_grad:
            raise RuntimeError(_no_graph(name))
        if not alive:
            return []
        try:
            with same_weights():
                found = torch.autograd.grad(output.sum(), alive, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError(_freed(name)) from error
        return [tensor for tensor, gradient in zip(alive, found, strict=True) if gradient is not None]

    def _register(self, index: int, layer: Layer) -> RemovableHandle:
        hook = _Hook(self, index)
        if layer.entering:
            return layer.module.register_forward_pre_hook(hook)
        return layer.module.register_forward_hook(hook)

    def record(self, index: int, tensor: object, held: bool) -> Tensor | None:
        """What a hook does: note a layer's output or input, and return the copy that takes its place.

        Args:
            index: Which layer.
            tensor: Its output or input.
            held: Whether the model may hold this very tensor elsewhere too, as what enters a layer. A skip connection
                then reads it, past the layer, and may even overwrite it.

        Returns:
            The copy; None if nothing is recorded.
        """
        if self._cut and threading.get_ident() != self._thread:
            return None  # another thread runs or explains the same model
        if self._cut:
            if self.runs[index]:
                raise RuntimeError(_ran_twice(self.layers[index].name))
            torch.set_grad_enabled(True)
        elif not torch.is_grad_enabled():
            self.ran_without_gradients = True
            return None
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"layer {self.layers[index].name} gives {what}; expected one floating-point tensor (B, C, ...): choose "
                "a module inside it, or layer_input() of a module that takes one as its first positional argument"
            )
        tensor = tensor.clone() if held else tensor
        try:
            activations = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        except RuntimeError as error:  # the one that torch.func raises
            raise RuntimeError(_transformed(self.layers[index].name)) from error
        # The copy keeps the activations safe from an in-place ReLU that follows; its node in the graph owns them.
        passed_on = activations.clone()
        metadata: dict[str, Any] = passed_on.grad_fn.metadata  # type: ignore[union-attr, assignment]
        metadata["diffgradcam"] = activations
        with self._lock:
            self.runs[index] += 1
            self._alive[index] = [ref for ref in self._alive[index] if ref() is not None] + [weakref.ref(activations)]
        return passed_on


class _Hook:
    """The hook of one layer. Its copy, made or unpickled along with a copy of the module, does nothing."""

    def __init__(self, recorder: Recorder | None = None, index: int = 0) -> None:
        self._recorder = recorder
        self._index = index

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        if self._recorder is None:
            return None
        if output:  # A layer may hand on what it was given, as dropout does in evaluation mode.
            return self._recorder.record(self._index, output[0], held=any(output[0] is given for given in args))
        recorded = self._recorder.record(self._index, args[0] if args else None, held=True)
        return None if recorded is None else (recorded, *args[1:])

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


class _InputHook:
    """The hook of the model: notes how many spatial dimensions its input has. Its copy does nothing."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder

    # PyTorch may leave out the keyword arguments while another thread removes the hook.
    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        if self._recorder is not None and tensors:
            self._recorder.image_dims = tensors[0].ndim - 2

    def __reduce__(self) -> tuple[type[_InputHook], tuple[()]]:
        return _InputHook, ()


@contextlib.contextmanager
def same_weights() -> Iterator[None]:
    """Say in our words that what a backward pass needs was changed after the forward pass, as autograd finds out.

    Raises:
        RuntimeError: If it was.
    """
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(changed_meanwhile()) from error


def changed_meanwhile() -> str:
    """The message for a model whose weights changed between a forward pass and what is made of it."""
    return (
        "the model's weights changed while it was explained, as by an optimizer step, here or in another thread; take "
        "the maps before the step, or explain a copy of the model (copy.deepcopy) while it trains"
    )


def independent(name: str) -> str:
    """The message for an output that does not depend on a layer."""
    return (
        f"the output does not depend on layer {name}: it comes from a forward pass that was not recorded, or the model "
        "detaches or switches gradients off at or after this layer; choose a later layer, or layer_input() of one"
    )


def _no_graph(name: str) -> str:
    return (
        f"the logits carry no graph back to layer {name}: they come from no_grad or inference_mode, or were detached "
        "(those of explain() are); give maps() the logits of a forward pass with gradients"
    )


def _freed(name: str) -> str:
    return (
        f"cannot go back from the logits to layer {name}, because backward() has freed their graph; ask for the maps "
        "before backward(), or call backward(retain_graph=True)"
    )


def _did_not_run(name: str) -> str:
    return (
        f"layer {name} did not run in a recorded forward pass; call the model (not its forward method) while the CAM "
        "is attached, choose a layer that the model calls (a ModuleList is never called), and attach before "
        "torch.compile"
    )


def _without_gradients(name: str) -> str:
    return (
        f"layer {name} ran without gradients (no_grad, inference_mode or reentrant checkpointing), so nothing was "
        "recorded; switch gradients on for the forward pass (checkpoint with use_reentrant=False), or use explain() or "
        "the call, which need none"
    )


def _transformed(name: str) -> str:
    return (
        f"layer {name} runs within a torch.func transform (vmap, jvp, grad, ...), where nothing can be recorded; "
        "transform the model while no CAM is attached to it, and explain outside of the transform"
    )


def _ran_twice(name: str) -> str:
    return (
        f"layer {name} ran more than once in one forward pass, so which run is meant is unclear; name a layer that "
        "runs once, or layer_input() of the layer that follows the wanted run"
    )


def _not_a_layer(target: object) -> str:
    return (
        f"a target layer is {reprlib.repr(target)}, of type {type(target).__name__}; expected a module, a dotted name "
        "such as 'layer4.1', layer_input() of either, or a list of these"
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
        raise TypeError(_not_a_layer(target))
    # A compiled part of the model is a layer as it is: within it, hooks that come later are ignored.
    layer = target if target in modules.values() else inner_model(target)
    if layer not in modules.values():
        raise ValueError(
            f"the given {type(layer).__name__} is not a layer of this {kind}; take the layer from the very model that "
            "is explained (a copy has layers of its own), or give its dotted name"
        )
    return layer, False


def _name(model: nn.Module, target: Target) -> str:
    if isinstance(target, LayerInput):
        return f"layer_input({_name(model, target.layer)})"
    if isinstance(target, str):
        return repr(target)
    layer = _find(model, target)[0]
    return repr(next(name for name, module in model.named_modules() if module is layer))


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return "list the names with [name for name, _ in model.named_modules()], in a shell with diffgradcam layers MODEL"
