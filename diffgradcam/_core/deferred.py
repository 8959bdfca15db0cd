"""Checks of values that are looked at together, so that an accelerator is waited for once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .outputs import finite_flag, not_finite

Failure = Callable[[], Exception | None]


class DeferredChecks:
    """Conditions on tensors that were computed but not yet looked at.

    Reading a number from an accelerator waits for all that was started there. Conditions are collected here and read in
    one go by :meth:`verify`.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Failure]] = []

    def require(self, flag: Tensor, failure: Failure) -> None:
        """Add a condition.

        Args:
            flag: Whether it holds: one bool, on any device.
            failure: Makes the error if it does not; None if a closer look shows that all is well.
        """
        self._pending.append((flag, failure))

    def require_finite(self, name: str, tensor: Tensor) -> None:
        """Refuse NaN and infinity, see :func:`~.outputs.check_finite`.

        Args:
            name: What the tensor is, for the message.
            tensor: ``(B, ...)``.
        """
        self.require(finite_flag(tensor), lambda: not_finite(name, tensor))

    def verify(self) -> None:
        """Read all conditions, in one wait, and forget them.

        Raises:
            Exception: That of the first condition that does not hold.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        device = pending[0][0].device
        flags = torch.stack(
            [flag if flag.device == device else flag.to(device, non_blocking=True) for flag, _ in pending]
        )
        if bool(flags.all()):
            return
        for holds, (_, failure) in zip(flags.tolist(), pending, strict=True):
            error = None if holds else failure()
            if error is not None:
                raise error
