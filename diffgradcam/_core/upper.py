"""Run a model from a layer on: what lies below the layer is remembered, not computed again.

A replica of the model runs once, and each of its modules that is done before the layer is reached notes what it
returned. In every further run these modules hand out rows of their notes. All else is the model's own code on real
tensors: skip connections, control flow, and what lies above the layer. So nothing is traced, the model itself is not
touched, and what cannot be remembered is only computed again.

``docs/design/recording.md`` says what this buys.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .inputs import mapped
from .layers import Layer
from .recorder import Replacer
from .tensors import take
from .wrappers import is_compiled

Change = Callable[[Tensor, Tensor], Tensor]
"""``(activations (M, ...), which change is made to each (M,)) -> (M, ...)``."""

_Call = Callable[[nn.Module, Callable[..., Any], Any, Any], Any]


class FromLayer:
    """A model with other activations of one layer.

    The first result is compared with that of the whole model, in the last row. Where they differ, or a run fails, the
    whole model runs from then on, with a hook on the layer.

    Args:
        model: The model, without wrappers.
        layer: The layer; its ``run`` is None or a number.
        whole: Runs the model on versions ``(M,)`` of the images, by their numbers, and returns ``(M, K)``.
        replica: Does the same with a replica of the model, given first.
        change: Makes the other activations.
        logits: What the model made of the images, ``(B, K)``.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: Layer,
        whole: Callable[[Tensor], Tensor],
        replica: Callable[[nn.Module, Tensor], Tensor],
        change: Change,
        logits: Tensor,
    ) -> None:
        self._layer = layer
        self._whole = whole
        self._change = change
        self._remembered = _remembered_run(model, layer, replica, logits)
        self._compared = False

    @property
    def remembers(self) -> bool:
        """Whether what lies below the layer is not computed again."""
        return self._remembered is not None

    def __call__(self, rows: Tensor, which: Tensor) -> Tensor:
        """The logits of versions of the images.

        Args:
            rows: Which image each is a version of, ``(M,)``, in ascending order.
            which: Which change is made to the activations of each, ``(M,)``.

        Returns:
            ``(M, K)``.
        """
        if self._remembered is not None:
            try:
                logits = self._remembered(rows, lambda tensor: self._change(tensor, which))
                same = self._compared or same_values(logits[-1:], self._hooked(rows[-1:], which[-1:]))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # the model is not written for this; what is wrong without it is raised below
                same = False
            if same:
                self._compared = True
                return logits
            self._remembered = None
        return self._hooked(rows, which)

    def _hooked(self, rows: Tensor, which: Tensor) -> Tensor:
        with Replacer(self._layer, lambda tensor: self._change(tensor, which)) as replacer:
            logits = self._whole(rows)
            replacer.detach()  # Ctrl-C may come between here and the end of the block, too
        return logits


class _Done(NamedTuple):
    """A call of a module that was over before the layer was reached.

    Attributes:
        output: What it returned, each tensor with a row for each image.
        calls: How many calls of modules it was, with those inside.
        layer_calls: How many calls of the layer were inside.
    """

    output: Any
    calls: int
    layer_calls: int


class _RememberedRun:
    def __init__(
        self, model: nn.Module, layer: Layer, replica: Callable[[nn.Module, Tensor], Tensor], logits: Tensor
    ) -> None:
        replicas = _replicate(model, self._called)
        self._replica = replicas[model]
        self._layer = layer._replace(module=replicas[layer.module])
        self._run = replica
        self._batch = len(logits)
        self._done: dict[int, _Done] = {}
        self._rows: Tensor | None = None
        self._calls = self._layer_calls = 0
        self._reached = False
        images = torch.arange(self._batch)
        replica(self._replica, images)
        if not same_values(self(images, lambda tensor: tensor), logits):
            raise RuntimeError("the model does not do the same again")

    def __call__(self, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        self._rows, self._calls = rows, 0
        skipped = sum(done.layer_calls for done in self._done.values())
        with Replacer(self._layer, change, skipped=skipped) as replacer:
            logits = self._run(self._replica, rows)
        if not replacer.replaced:
            raise RuntimeError("the layer was not reached")
        return logits

    def _called(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a call of a module of the replica does."""
        if self._rows is None:
            return self._note(module, forward, args, kwargs)
        done = self._done.get(self._calls)
        if done is None:
            self._calls += 1
            return forward(*args, **kwargs)
        self._calls += done.calls
        rows = self._rows
        return mapped(done.output, lambda value: take(value, rows) if isinstance(value, Tensor) else value)

    def _note(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        call, layer_calls, is_layer = self._calls, self._layer_calls, module is self._layer.module
        meant = is_layer and layer_calls == (self._layer.run or 0)
        self._calls += 1
        self._layer_calls += is_layer
        self._reached |= meant and self._layer.entering
        output = forward(*args, **kwargs)
        if not self._reached and self._has_rows(output):
            for inside in range(call + 1, self._calls):
                self._done.pop(inside, None)
            self._done[call] = _Done(output, self._calls - call, self._layer_calls - layer_calls - is_layer)
        self._reached |= meant
        return output

    def _has_rows(self, output: Any) -> bool:
        """Whether all that a module returned is known for each image."""
        known = True

        def look(value: Any) -> None:
            nonlocal known
            if isinstance(value, Tensor):
                known &= value.ndim > 0 and len(value) == self._batch
            else:
                known &= value is None or isinstance(value, bool | int | float | str)

        mapped(output, look)
        return known


def _remembered_run(
    model: nn.Module, layer: Layer, replica: Callable[[nn.Module, Tensor], Tensor], logits: Tensor
) -> _RememberedRun | None:
    """None where a replica of the model cannot be made or gives other logits; in training mode no two runs agree."""
    if any(module.training for module in model.modules()):
        return None
    try:
        return _RememberedRun(model, layer, replica, logits)
    except Exception:  # a model can do anything; then it runs as a whole
        return None


def same_values(some: Tensor, others: Tensor) -> bool:
    """Whether two tensors are the same but for rounding.

    Args:
        some: Any tensor.
        others: Another one.

    Returns:
        Whether their shapes agree, and their values up to a share of the largest: the square root of the smallest step
        of their type.
    """
    if some.shape != others.shape:
        return False
    scale = others.abs().amax() if others.numel() else others.new_zeros(())
    return bool(((some - others).abs() <= torch.finfo(others.dtype).eps ** 0.5 * scale).all())


def _replicate(model: nn.Module, called: _Call) -> dict[nn.Module, nn.Module]:
    """A copy of each module that shares the tensors, as ``DataParallel`` makes them, and tells when it is called."""
    replicas = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) or is_compiled(module):
            raise RuntimeError("compiled modules cannot be replicated")
        replica = module.__new__(type(module))
        replica.__dict__ = {
            name: value.copy() if isinstance(value, dict) and "_hooks" in name else value
            for name, value in vars(module).items()
        }
        replicas[module] = replica
    for module, replica in replicas.items():
        children = {
            name: None if child is None else replicas[child] for name, child in vars(module)["_modules"].items()
        }
        replica.__dict__["_modules"] = children
        replica.__dict__["forward"] = _tells(replica, _own_forward(module, replica), called)
    return replicas


def _own_forward(module: nn.Module, replica: nn.Module) -> Callable[..., Any]:
    forward: Any = replica.forward
    return types.MethodType(forward.__func__, replica) if getattr(forward, "__self__", None) is module else forward


def _tells(replica: nn.Module, forward: Callable[..., Any], called: _Call) -> Callable[..., Any]:
    return lambda *args, **kwargs: called(replica, forward, args, kwargs)
