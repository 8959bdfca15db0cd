"""What wraps a model to run it elsewhere or faster: taken off, or told to run the model as it was written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def inner_model(model: nn.Module) -> nn.Module:
    """Take off what wraps a model to run it elsewhere: DataParallel, DistributedDataParallel, ``torch.compile``."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif "_orig_mod" in getattr(model, "_modules", ()) and is_compiled(model):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def every_module(model: nn.Module) -> list[nn.Module]:
    """A model and all modules in it, each once: as ``model.modules()``, in less than half the time."""
    found = {model}
    modules = [model]
    for module in modules:  # grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in found:
                found.add(child)
                modules.append(child)
    return modules


def is_compiled(module: nn.Module) -> bool:
    """Whether calling the module runs code from ``torch.compile``, which ignores hooks set after it was compiled."""
    return any_compiled([module])


def any_compiled(modules: Sequence[nn.Module]) -> bool:
    """Whether one of the modules is compiled, see :func:`is_compiled`."""
    # The wrapper class lives in torch._dynamo, whose import alone takes seconds.
    wrapped = any(kind.__name__ == "OptimizedModule" for kind in set(map(type, modules)))
    return wrapped or any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)


class _ForAllThreads:
    """A setting of PyTorch that all threads share: the first block to begin sets it, the last restores it.

    Args:
        setting: Makes the context manager that sets it.
    """

    def __init__(self, setting: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._blocks = 0
        self._set = contextlib.ExitStack()

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """Within the block it is set."""
        counted = False
        try:
            with self._lock:
                counted, self._blocks = True, self._blocks + 1
                if self._blocks == 1:
                    self._set.enter_context(self._setting())
            yield
        finally:
            if counted:
                with self._lock:
                    self._blocks -= 1
                    if not self._blocks:
                        self._set.close()


_force_eager = _ForAllThreads(lambda: torch.compiler.set_stance("force_eager"))
_math_attention = _ForAllThreads(lambda: sdpa_kernel(SDPBackend.MATH))


def force_eager() -> contextlib.AbstractContextManager[None]:
    """Within the block, compiled modules run as they were written, so that hooks and graphs are those of Python."""
    return _force_eager.block()


def eagerly(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """As :func:`force_eager`, if anything in the model is compiled; else nothing is done."""
    return force_eager() if any_compiled(every_module(model)) else contextlib.nullcontext()


def written_out_attention() -> contextlib.AbstractContextManager[None]:
    """Within the block, attention is computed by a softmax, as in its formula, and not by a kernel that hides it.

    The values are those of the kernels, up to rounding.
    """
    return _math_attention.block()
