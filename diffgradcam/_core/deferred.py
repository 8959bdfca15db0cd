"""Checks of values that are looked at together, so that an accelerator is waited for once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import HeadIsNotPooledLinear
from .outputs import not_finite
from .tracing import current_trace

Failure = Callable[[], Exception | None]


class DeferredChecks:
    """Conditions on tensors that were computed but not yet looked at.

    Reading a number from an accelerator waits for all that was started there. Conditions are collected here and read in
    one go by :meth:`verify`, at the end of a ``with`` block at the latest: also where a value that is not finite made
    something else fail, whose error is then that of the value.
    """

    def __init__(self) -> None:
        self._numbers: list[Tensor] = []
        self._failures: list[Failure] = []
        self._notices: list[tuple[Tensor, Callable[[], str]]] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None or (isinstance(error, Exception) and not isinstance(error, HeadIsNotPooledLinear)):
            self.verify()

    def require(self, flag: Tensor, failure: Failure) -> None:
        """Add a condition.

        Args:
            flag: Whether it holds: one bool, on any device.
            failure: Makes the error if it does not; None if a closer look shows that all is well.
        """
        self._add(torch.where(flag, 0.0, math.nan), lambda: failure() if not bool(flag) else None)

    def require_finite(self, name: str, tensor: Tensor) -> None:
        """Refuse NaN and infinity, see :func:`~.outputs.check_finite`.

        Args:
            name: What the tensor is, for the message.
            tensor: ``(B, ...)``.
        """
        self._add(tensor.sum(), lambda: not_finite(name, tensor))

    def notice(self, flag: Tensor, message: Callable[[], str]) -> None:
        """Warn if something holds.

        Args:
            flag: Whether it holds: one bool, on any device.
            message: What to say.
        """
        self._notices.append((flag, message))

    def verify(self) -> None:
        """Read all conditions, in one wait, and forget them. While tracing they are forgotten unread.

        Warns:
            UserWarning: Of what is to be noticed.

        Raises:
            Exception: That of the first condition that does not hold.
        """
        numbers, failures = self._numbers, self._failures
        self._numbers, self._failures = [], []
        if not numbers or current_trace() is not None:
            return
        total = numbers[0]
        for number in numbers[1:]:  # what is not finite stays so
            total = total + (number if number.device == total.device else number.to(total.device, non_blocking=True))
        notices, self._notices = self._notices, []
        read = [float(total)]
        if notices:
            read = torch.stack([total.float(), *(flag.to(total.device).float() for flag, _ in notices)]).tolist()
        for holds, (_, message) in zip(read[1:], notices, strict=True):
            if holds:
                warnings.warn(message(), stacklevel=2)
        if math.isfinite(read[0]):
            return
        for failure in failures:
            error = failure()
            if error is not None:
                raise error

    def _add(self, number: Tensor, failure: Failure) -> None:
        self._numbers.append(number)
        self._failures.append(failure)
