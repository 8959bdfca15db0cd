"""The two parts of a logit: what softmax sees, and the common mode, which it does not.

``z_c = (z_c - mean z) + mean z``. A map that is linear in the score, such as the signed GradCAM, is the sum of the maps
of the two parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..scores import logit


def visible_score(logits: Tensor, classes: Tensor) -> Tensor:
    """The part of a logit that softmax sees: the logit minus the mean of all logits.

    Args:
        logits: ``(B, K)``.
        classes: ``(B,)``.

    Returns:
        ``(B,)``.
    """
    return logit(logits, classes) - invisible_score(logits, classes)


def invisible_score(logits: Tensor, _classes: Tensor) -> Tensor:
    """The common mode of the logits: their mean, which is the same for every class.

    Args:
        logits: ``(B, K)``.
        _classes: Not read.

    Returns:
        ``(B,)``.
    """
    return logits.mean(1)


def common_mode_share(visible: Tensor, invisible: Tensor, *, leading: int = 1) -> Tensor:
    """Energy (sum of squares) of the invisible part over the energy of both parts.

    Args:
        visible: ``(B, *S)``, or ``(B, N, *S)`` for several classes.
        invisible: Of the same shape.
        leading: How many dimensions come before ``*S``.

    Returns:
        Shares in [0, 1], ``(B,)`` or ``(B, N)``; 0 where both parts are 0. Computed in float64 on the CPU and returned
        in the dtype and on the device of ``invisible``.
    """
    seen, hidden = (part.cpu().double().square().flatten(leading).sum(leading) for part in (visible, invisible))
    total = seen + hidden
    return (hidden / torch.where(total == 0, 1, total)).to(invisible)
