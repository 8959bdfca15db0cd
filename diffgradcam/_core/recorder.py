"""Hooks that record what leaves or enters layers, inside the autograd graph.

``docs/design/recording.md`` says why the activations hang on the graph node, why the grad mode changes inside a hook,
and what each of these costs.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import messages
from .errors import LayerDidNotRun
from .inputs import by_name
from .layers import Layer

_Self = TypeVar("_Self", bound="Recorder")


class Seen(NamedTuple):
    """What a hook was called with.

    Attributes:
        tensor: The output of the layer, or what enters it.
        held: Whether the model may hold this very tensor elsewhere too, as what enters a layer. A skip connection then
            reads it, past the layer, and may even overwrite it.
    """

    tensor: object
    held: bool


class Recorded(NamedTuple):
    """What was recorded of a layer in one forward pass.

    Attributes:
        layer: The layer. Where its ``run`` was asked for, ``run`` is now the number of the run.
        activations: ``(B, ...)``; None for a layer that this forward pass did not use.
    """

    layer: Layer
    activations: Tensor | None


class Recorder(ABC):
    """Hooks on layers; nothing is recorded before :meth:`attach`.

    Args:
        layers: What :func:`~.layers.find_layers` found.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        # Several threads may run the model, attach and detach. Re-entrant: a CAM that dies meanwhile detaches too.
        self._lock = threading.RLock()
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def record(self, index: int, seen: Seen) -> Tensor | None:
        """What a hook does: note a layer's output or input, and return the copy that takes its place.

        Args:
            index: Which layer.
            seen: Its output or input.

        Returns:
            The copy; None if the model goes on with what it has.
        """

    def attach(self) -> None:
        """Register the hooks, once; all of them or, where Ctrl-C comes in between, none."""
        with self._lock:
            if self._handles:
                return
            try:
                self._handles.extend(self._register(index, layer) for index, layer in enumerate(self.layers))
                self._handles.extend(self._more_hooks())
            except BaseException:
                self.detach()
                raise

    def detach(self) -> None:
        """Remove the hooks."""
        with self._lock:
            while self._handles:
                self._handles.pop().remove()

    def __enter__(self: _Self) -> _Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _more_hooks(self) -> Iterator[RemovableHandle]:
        return iter(())

    def _register(self, index: int, layer: Layer) -> RemovableHandle:
        try:
            if layer.entering:
                return layer.module.register_forward_pre_hook(_EnteringHook(self, index), with_kwargs=True)
            return layer.module.register_forward_hook(_LeavingHook(self, index))
        except RuntimeError as error:  # not supported on ScriptModules
            raise RuntimeError(messages.torchscript(layer.name)) from error


class CutRecorder(Recorder):
    """Records one forward pass that this library makes, in the thread that made the recorder.

    With a graph, the graph starts at the first layer that runs: gradients are switched on there. The caller runs the
    model under ``no_grad`` and restores the mode. Without one, copies of the activations are kept and the model runs on
    undisturbed.

    Args:
        layers: What :func:`~.layers.find_layers` found.
        graph: Whether to start a graph.
    """

    def __init__(self, layers: Sequence[Layer], *, graph: bool = True) -> None:
        super().__init__(layers)
        self._graph = graph
        self._thread = threading.get_ident()
        self._runs: list[list[Tensor]] = [[] for _ in layers]

    def record(self, index: int, seen: Seen) -> Tensor | None:
        """See :meth:`Recorder.record`."""
        if threading.get_ident() != self._thread:
            return None  # another thread runs or explains the same model
        layer = self.layers[index]
        if layer.run is None and self._runs[index]:
            raise RuntimeError(messages.ran_twice(layer.name))
        tensor = _checked(layer, seen.tensor)
        if not self._graph:
            with torch.inference_mode(False):
                self._runs[index].append(tensor.detach().clone())
            return None
        torch.set_grad_enabled(True)
        if tensor.is_inference():
            raise RuntimeError(messages.inference_inside(layer.name))
        activations, passed_on = _into_graph(layer, tensor, seen.held)
        self._runs[index].append(activations)
        return passed_on

    def recorded(self, model: nn.Module) -> list[Recorded]:
        """What was recorded, of each layer, or of each run of a layer where all are asked for.

        Args:
            model: The model, for the message.

        Returns:
            One for each.

        Raises:
            LayerDidNotRun: If no layer ran.
            ValueError: If a layer did not run as often as its ``run`` asks for.
        """
        if not any(self._runs):
            raise LayerDidNotRun(messages.did_not_run(", ".join(layer.name for layer in self.layers), model))
        return [each for layer, runs in zip(self.layers, self._runs, strict=True) for each in _choose(layer, runs)]


class GraphRecorder(Recorder):
    """Records every forward pass that the caller makes, for maps to train with.

    Each run of a layer that autograd follows leaves its activations here for as long as the graph built on top of them
    lives, and no longer: the node behind the layer owns them, and the recorder holds them weakly.

    Args:
        layers: What :func:`~.layers.find_layers` found.
        model: The model. ``seen_input`` is called with the arguments of each of its forward passes.
        seen_input: See above.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        model: nn.Module,
        seen_input: Callable[[tuple[Any, ...], dict[str, Any]], None],
    ) -> None:
        super().__init__(layers)
        self._model = model
        self._seen_input = seen_input
        self._alive: list[list[weakref.ref[Tensor]]] = [[] for _ in layers]
        self._ran = [False] * len(layers)
        self._ran_without_gradients = False

    def record(self, index: int, seen: Seen) -> Tensor | None:
        """See :meth:`Recorder.record`."""
        if not torch.is_grad_enabled():
            self._ran_without_gradients = True
            return None
        layer = self.layers[index]
        activations, passed_on = _into_graph(layer, _checked(layer, seen.tensor), seen.held)
        metadata: dict[str, Any] = passed_on.grad_fn.metadata  # type: ignore[union-attr, assignment]
        metadata["diffgradcam"] = activations
        with self._lock:
            self._ran[index] = True
            alive = [ref for ref in self._alive[index] if ref() is not None]
            self._alive[index] = [*alive, weakref.ref(activations)]
        return passed_on

    def recorded(self, output: Tensor) -> list[Recorded]:
        """The recorded activations that ``output`` was computed from.

        Args:
            output: A tensor computed by the model, with its graph.

        Returns:
            As :meth:`CutRecorder.recorded`.

        Raises:
            LayerDidNotRun: If no layer ran in a recorded forward pass.
            RuntimeError: If ``output`` does not depend on any layer, or a layer ran more than once and its ``run`` does
                not say which run is meant.
        """
        names = ", ".join(layer.name for layer in self.layers)
        if not any(self._ran):
            if self._ran_without_gradients:
                raise LayerDidNotRun(messages.without_gradients(names))
            raise LayerDidNotRun(messages.did_not_run(names, self._model))
        if not output.requires_grad:
            raise RuntimeError(messages.no_graph(names))
        found: list[Recorded] = []
        for layer, alive in zip(self.layers, self._alive, strict=True):
            runs = _behind(layer.name, [tensor for ref in alive if (tensor := ref()) is not None], output)
            if layer.run is None and len(runs) > 1:
                raise RuntimeError(
                    f"{messages.ran_twice(layer.name)}; if the logits join several forward passes, take the maps of "
                    "each pass"
                )
            found.extend(_choose(layer, runs))
        if all(each.activations is None for each in found):
            raise RuntimeError(messages.independent(names, self._model))
        return found

    def _more_hooks(self) -> Iterator[RemovableHandle]:
        yield self._model.register_forward_pre_hook(_InputHook(self._seen_input), with_kwargs=True)


class Replacer(Recorder):
    """Replaces what leaves or enters one layer, in the thread that made it, for as long as a ``with`` block lasts.

    Args:
        layer: The layer, as :meth:`CutRecorder.recorded` names it: its ``run`` is None or a number.
        change: Makes what takes its place.
        skipped: How many runs of the layer this forward pass leaves out before the first.

    Attributes:
        replaced: Whether anything was.
    """

    def __init__(self, layer: Layer, change: Callable[[Tensor], Tensor], *, skipped: int = 0) -> None:
        super().__init__([layer])
        self._change = change
        self._thread = threading.get_ident()
        self._runs = skipped
        self.replaced = False

    def record(self, index: int, seen: Seen) -> Tensor | None:
        """See :meth:`Recorder.record`."""
        if threading.get_ident() != self._thread:
            return None
        layer, number = self.layers[index], self._runs
        self._runs += 1
        if layer.run not in (None, number):
            return None
        self.replaced = True
        return self._change(_checked(layer, seen.tensor))


class _Hook:
    """A hook that is copied or pickled along with its module does nothing in the copy."""

    def __init__(self, recorder: Recorder | None = None, index: int = 0) -> None:
        self._recorder = recorder
        self._index = index

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return type(self), ()


class _LeavingHook(_Hook):
    """Records what leaves a layer."""

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if self._recorder is None:
            return None
        # A layer may hand on what it was given, as dropout does in evaluation mode.
        return self._recorder.record(self._index, Seen(output, held=any(output is given for given in args)))


class _EnteringHook(_Hook):
    """Records what enters a layer: one of its arguments, wherever the same tensor is passed."""

    # PyTorch may leave out the keyword arguments while another thread removes the hook.
    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._recorder is None:
            return None
        options = kwargs or {}
        entering = _entering(self._recorder.layers[self._index], args, options)
        recorded = self._recorder.record(self._index, Seen(entering, held=True))
        if recorded is None:
            return None
        return (
            tuple(recorded if value is entering else value for value in args),
            {name: recorded if value is entering else value for name, value in options.items()},
        )


class _InputHook:
    """Tells what the model is called with. Its copy does nothing."""

    def __init__(self, tell: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None) -> None:
        self._tell = tell

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if self._tell is not None:
            self._tell(args, kwargs or {})

    def __reduce__(self) -> tuple[type[_InputHook], tuple[()]]:
        return _InputHook, ()


class same_weights:
    """Say in our words that what a backward pass needs was changed after the forward pass, as autograd finds out.

    Raises:
        RuntimeError: If it was.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, RuntimeError) and "modified by an inplace operation" in str(error):
            raise RuntimeError(messages.changed_meanwhile()) from error


def _checked(layer: Layer, value: object) -> Tensor:
    """The recorded value, if it can be explained."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(messages.not_activations(layer.name, what))
    return value


def _into_graph(layer: Layer, tensor: Tensor, held: bool) -> tuple[Tensor, Tensor]:
    """Activations whose gradient can be asked for, and the copy of them that the model goes on with."""
    tensor = tensor.clone() if held else tensor
    try:
        activations = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
    except RuntimeError as error:  # the one that torch.func raises
        raise RuntimeError(messages.transformed(layer.name)) from error
    # The copy keeps the activations safe from an in-place ReLU that follows.
    return activations, activations.clone()


def _entering(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """The argument of a layer that is meant by its input."""
    named = by_name(args, kwargs)
    if layer.argument is not None:
        if layer.argument not in named:
            raise ValueError(messages.no_such_argument(layer.name, layer.argument, list(named)))
        return named[layer.argument]
    candidates = {
        name: value for name, value in named.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    first = next(iter(candidates.values()), args[0] if args else None)
    rivals = [name for name, value in candidates.items() if value is not first and _alike(first, value)]
    if rivals:
        raise ValueError(messages.several_arguments(layer.name, list(candidates)))
    return first


def _alike(first: object, other: Tensor) -> bool:
    """Whether another argument might as well be what enters a layer: as many images, as many features."""
    if not isinstance(first, Tensor) or other.ndim != first.ndim or other.ndim < 3:
        return False
    return other.shape[0] == first.shape[0] and other.shape[-1] == first.shape[-1]


def _behind(name: str, alive: list[Tensor], output: Tensor) -> list[Tensor]:
    """Of several runs that are alive (the last step's, two inputs), those behind the output."""
    if not alive:
        return []
    try:
        with same_weights():
            found = torch.autograd.grad(output.sum(), alive, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(messages.freed(name)) from error
    return [tensor for tensor, gradient in zip(alive, found, strict=True) if gradient is not None]


def _choose(layer: Layer, runs: list[Tensor]) -> list[Recorded]:
    """The runs of a layer that its ``run`` asks for."""
    if not runs:
        return [Recorded(layer, None)]
    if layer.run is None:
        return [Recorded(layer, runs[0])]
    if layer.run == "all":
        return [Recorded(layer._replace(run=number), tensor) for number, tensor in enumerate(runs)]
    number = {"first": 0, "last": -1}[layer.run] if isinstance(layer.run, str) else layer.run
    if not -len(runs) <= number < len(runs):
        raise ValueError(messages.too_few_runs(layer.name, number, len(runs)))
    number %= len(runs)
    return [Recorded(layer._replace(run=number), runs[number])]
