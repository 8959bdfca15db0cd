"""What wraps a model to run it elsewhere or faster: taken off, or told to run the model as it was written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

import torch
from torch import nn


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
