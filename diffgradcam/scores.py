"""WHAT is explained: a score is a function ``(logits (B, K), classes (B,)) -> (B,)``.

Softmax, and with it every decision, probability and loss, sees only *differences* between logits. A score that reads
one logit therefore contains something that no decision depends on, and a model can be changed to show any map of it. A
*contrast* ``z_c - baseline(other logits)`` with ``baseline(z + t) = baseline(z) + t`` contains none of it.

Every gradient CAM of the library takes any of these as ``score=``; a score of your own is one function of this form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
Baseline = Callable[[Tensor], Tensor]

_BASELINES: dict[str, Baseline] = {
    "logsumexp": lambda others: others.logsumexp(1),
    "max": lambda others: others.amax(1),
    "mean": lambda others: others.mean(1),
}


def logit(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of the class: what Grad-CAM explains (Selvaraju et al., 2017).

    Args:
        logits: ``(B, K)``.
        classes: Class indices, ``(B,)``.

    Returns:
        Scores, ``(B,)``. Moves with a common shift of the logits, so it can be fooled without changing a decision.
    """
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def probability(logits: Tensor, classes: Tensor) -> Tensor:
    """The softmax probability of the class. Its gradient vanishes where the model is certain.

    Args:
        logits: ``(B, K)``.
        classes: Class indices, ``(B,)``.

    Returns:
        Scores, ``(B,)``, in [0, 1].
    """
    return logit(logits.softmax(1), classes)


def log_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """The log of the softmax probability of the class, in nats: minus the cross-entropy loss.

    Its gradient is that of :func:`logit_difference` with the ``logsumexp`` baseline times ``1 - p_c``.

    Args:
        logits: ``(B, K)``.
        classes: Class indices, ``(B,)``.

    Returns:
        Scores, ``(B,)``, at most 0.
    """
    return logit(logits.log_softmax(1), classes)


def logit_difference(logits: Tensor, classes: Tensor, baseline: str | int | Baseline = "logsumexp") -> Tensor:
    """The logit of the class minus a baseline of the other logits: the score of DiffGradCAM.

    =================  ==========================  ==============================================================
    baseline           score                       what it means
    =================  ==========================  ==============================================================
    ``"logsumexp"``    ``z_c - log sum exp z_j``   exactly the log-odds ``log(p_c / (1 - p_c))``, in nats
    ``"max"``          ``z_c - max z_j``           the margin to the strongest other class
    ``"mean"``         ``z_c - mean z_j``          agrees best with Grad-CAM on models that nobody tampered with
    a class index      ``z_c - z_j``               why ``c`` rather than ``j``
    a callable         ``z_c - baseline(others)``  yours: others ``(B, K - 1)``, in class order, to ``(B,)``
    =================  ==========================  ==============================================================

    For two classes all of them are the same. The baseline here is a term of the score; it has nothing to do with the
    input baseline of Integrated Gradients.

    Args:
        logits: ``(B, K)`` with ``K >= 2``.
        classes: Class indices, ``(B,)``.
        baseline: See the table. A callable should satisfy ``baseline(z + t) = baseline(z) + t``, otherwise the score is
            no contrast and can be fooled.

    Returns:
        Scores, ``(B,)``.

    Raises:
        ValueError: For fewer than two classes, an unknown baseline, a class contrasted with itself, or a callable
            baseline that returns something else than ``(B,)``.

    Reference:
        Our reading of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514).

    Example:
        >>> z = torch.tensor([[2.0, 1.0, -1.0]])
        >>> logit_difference(z, torch.tensor([0]), baseline="max")
        tensor([1.])
        >>> p = z.softmax(1)[:, 0]
        >>> torch.allclose(logit_difference(z, torch.tensor([0])), (p / (1 - p)).log())
        True
    """
    check_contrast(logits)
    if isinstance(baseline, int) and not isinstance(baseline, bool):
        return logit(logits, classes) - _contrast_logit(logits, classes, baseline)
    values = baseline_function(baseline)(_others(logits, classes))
    if not isinstance(values, Tensor) or values.shape != classes.shape:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the baseline returned {got}; expected one value per image, {tuple(classes.shape)}, "
            f"from the other logits of shape {(logits.shape[0], logits.shape[1] - 1)}"
        )
    return logit(logits, classes) - values


def finer(logits: Tensor, classes: Tensor, alpha: float = 1.0, comparisons: int = 3) -> Tensor:
    """The score of Finer-CAM: the class against its nearest classes, weighted by their probabilities.

    ``sum_j p_j (z_c - alpha z_j) / sum_j p_j`` over the ``comparisons`` classes whose logits are nearest.

    Args:
        logits: ``(B, K)`` with ``K >= 2``.
        classes: Class indices, ``(B,)``.
        alpha: Strength of the comparison. Only ``alpha = 1`` is invariant to a common shift of the logits; with
            less the map can be fooled as Grad-CAM can.
        comparisons: How many classes to compare with; at most ``K - 1`` are taken.

    Returns:
        Scores, ``(B,)``.

    Raises:
        ValueError: For fewer than two classes, or fewer than one comparison.

    Reference:
        Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", CVPR 2025.
    """
    check_contrast(logits)
    if comparisons < 1:
        raise ValueError(f"comparisons is {comparisons}; expected at least 1 class to compare with")
    own = logit(logits, classes)
    others = _others(logits, classes)
    distance = (others - own.unsqueeze(1)).abs().detach()
    nearest = distance.topk(min(comparisons, others.shape[1]), dim=1, largest=False).indices
    compared = others.gather(1, nearest)
    # Softmax over the compared logits alone is p_j / sum_j p_j, without ever dividing by a sum that underflowed.
    return own - alpha * (compared.softmax(1) * compared).sum(1)


def two_logits(outputs: Tensor) -> Tensor:
    """Read one sigmoid output z as two classes with logits ``-z / 2`` and ``z / 2``: the sigmoid as a softmax.

    Args:
        outputs: ``(B, 1)`` or ``(B,)``.

    Returns:
        Logits, ``(B, 2)``; ``softmax`` of them is ``(1 - sigmoid(z), sigmoid(z))``.

    Raises:
        ValueError: For any other shape.

    Example:
        >>> two_logits(torch.tensor([[3.0]])).softmax(1)[0, 1] == torch.tensor(3.0).sigmoid()
        tensor(True)
    """
    if outputs.ndim > 2 or outputs.shape[1:].numel() != 1:
        raise ValueError(f"expected one output per image, (B, 1) or (B,), got shape {tuple(outputs.shape)}")
    z = outputs.reshape(-1, 1) / 2
    return torch.cat([-z, z], 1)


def check_contrast(logits: Tensor) -> None:
    """Refuse to contrast fewer than two classes.

    Args:
        logits: ``(B, K)``.

    Raises:
        ValueError: If ``K < 2``.
    """
    if logits.shape[1] < 2:
        raise ValueError(
            f"a contrast needs at least 2 classes, but the logits have shape {tuple(logits.shape)}; for a model with "
            "one sigmoid output z pass output=diffgradcam.scores.two_logits, which reads it as z against -z"
        )


def baseline_function(baseline: object) -> Baseline:
    """Look up a baseline by name.

    Args:
        baseline: ``"logsumexp"``, ``"max"``, ``"mean"``, or a callable, which is returned as it is.

    Returns:
        A function ``(B, K - 1) -> (B,)``.

    Raises:
        ValueError: For anything else.
    """
    if callable(baseline):
        return baseline
    if not isinstance(baseline, str) or baseline not in _BASELINES:
        names = sorted(_BASELINES)
        raise ValueError(f"{baseline!r} is not a baseline; expected one of {names}, a class index or a callable")
    return _BASELINES[baseline]


def baseline_weights(score: Score, logits: Tensor) -> Tensor | None:
    """The weight that each logit has in the named baseline of a contrast, over all classes.

    They make the contrasts of all classes cheap. The gradient of each named baseline is weights with the sum 1: the
    softmax probabilities for ``"logsumexp"``, equal shares of the largest logits for ``"max"``, equal shares of all for
    ``"mean"``. The baseline of the *others* of class ``c`` has the same weights without that of ``c``, divided by
    what is left, ``1 - w_c`` (nothing is left for ``"max"`` where ``c`` is the only largest).

    Args:
        score: Any score.
        logits: ``(B, K)``.

    Returns:
        Weights, ``(B, K)``, each row with the sum 1; None for a score that is no :func:`logit_difference` with a named
        baseline.
    """
    if score is logit_difference:
        baseline = "logsumexp"
    elif isinstance(score, partial) and score.func is logit_difference and not score.args:
        baseline = score.keywords.get("baseline", "logsumexp")
    else:
        return None
    if not isinstance(baseline, str):
        return None
    with torch.enable_grad():
        source = logits.detach().requires_grad_()
        (weights,) = torch.autograd.grad(baseline_function(baseline)(source).sum(), source)
    return weights


def refuse_same(classes: Tensor, contrasts: Tensor | int) -> None:
    """Refuse to contrast a class with itself.

    Args:
        classes: The explained classes, of any shape.
        contrasts: The classes that they are contrasted with, of a shape that broadcasts to it.

    Raises:
        ValueError: If two are the same.
    """
    same = classes == contrasts
    if bool(same.any()):
        index = int(classes.expand_as(same)[same][0])
        raise ValueError(
            f"class {index} would be contrasted with itself; explain another class, or contrast with another one"
        )


def _contrast_logit(logits: Tensor, classes: Tensor, contrast: int) -> Tensor:
    if not 0 <= contrast < logits.shape[1]:
        raise ValueError(f"class {contrast} is out of range; the model has classes 0 to {logits.shape[1] - 1}")
    refuse_same(classes, contrast)
    return logits[:, contrast]


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits of all classes but the explained one, ``(B, K - 1)``, in class order."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, index + (index >= classes.unsqueeze(1)).long())
