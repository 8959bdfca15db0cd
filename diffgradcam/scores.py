"""What is explained: a score is a function ``(logits (B, K), classes (B,)) -> (B,)``.

Softmax, and with it every decision, probability and loss, sees only *differences* between logits. A score that reads
one logit therefore contains something that no decision depends on, and a model can be changed to show any map of it. A
*contrast* ``z_c - baseline(other logits)`` with ``baseline(z + t) = baseline(z) + t`` contains none of it.

Every gradient and perturbation method takes any score as ``score=``: one of the values below, such as
``LogitDifference("max")``, or a function of yours of this form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ._core.checks import check_scores, described
from ._core.tensors import widen
from ._core.tracing import read

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
Baseline = Callable[[Tensor], Tensor]

_BASELINES: dict[str, Baseline] = {
    "logsumexp": lambda others: others.logsumexp(1),
    "max": lambda others: others.amax(1),
    "mean": lambda others: others.mean(1),
}


class Score(ABC):
    """A score as a value: two of the same kind with the same options are equal, and its repr says what it is.

    A subclass is a frozen dataclass with a ``__call__``, and :meth:`combine` where it has a shortcut.
    """

    @abstractmethod
    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The score of one class of each image.

        Args:
            logits: ``(B, K)``.
            classes: Class indices, ``(B,)``.

        Returns:
            Scores, ``(B,)``.
        """

    def gradients(self, logits: Tensor, classes: Tensor) -> Tensor | None:  # noqa: ARG002
        """The gradient of the score with respect to the logits, where it has a simple form.

        Args:
            logits: ``(B, K)``, float32 or wider.
            classes: Class indices, ``(B, N)``.

        Returns:
            ``(B, N, K)``, differentiable where the gradient depends on the logits; None to have autograd find it.
        """
        return None

    def combine(self, logit_maps: Tensor, logits: Tensor, classes: Tensor) -> Tensor | None:  # noqa: ARG002
        """The maps of many classes from the maps of all logits, for a method that is linear in the score.

        Each map is a sum of the logits' maps, weighted by the gradient of the score. In general that is a sum over K
        classes for each of N. A score that can share this work between the classes overrides this method.

        Args:
            logit_maps: The map of each logit, ``(B, K, P)`` for ``P`` positions.
            logits: ``(B, K)``.
            classes: Class indices, ``(B, N)``.

        Returns:
            ``(B, N, P)``, or None if there is no shortcut.
        """
        return None


@dataclass(frozen=True)
class Logit(Score):
    """The logit of the class: what Grad-CAM explains (Selvaraju et al., 2017). See :func:`logit`."""

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """See :func:`logit`."""
        return logit(logits, classes)

    def gradients(self, logits: Tensor, classes: Tensor) -> Tensor:
        """1 at the class, 0 elsewhere."""
        return _one_hot(logits, classes)

    def combine(self, logit_maps: Tensor, logits: Tensor, classes: Tensor) -> Tensor:  # noqa: ARG002
        """The maps of the classes themselves."""
        return logit_maps[_rows(classes), classes]


@dataclass(frozen=True)
class Counterfactual(Score):
    """Minus another score: the map shows what speaks *against* the class.

    Grad-CAM's paper calls the maps of ``-z_c`` counterfactual explanations: the regions whose removal would make the
    model more confident of the class.

    Args:
        score: The score to negate; the logit by default.

    Reference:
        Selvaraju et al., "Grad-CAM", ICCV 2017, section 3.3, for the logit. Negating other scores is ours.

    Example:
        >>> Counterfactual()(torch.tensor([[2.0, -1.0]]), torch.tensor([0]))
        tensor([-2.])
    """

    score: Score = field(default_factory=Logit)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", as_score(self.score))

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Minus the score."""
        return -self.score(logits, classes)

    def combine(self, logit_maps: Tensor, logits: Tensor, classes: Tensor) -> Tensor | None:
        """Minus the maps of the score."""
        maps = self.score.combine(logit_maps, logits, classes)
        return None if maps is None else -maps


@dataclass(frozen=True)
class Probability(Score):
    """The softmax probability of the class. See :func:`probability`."""

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """See :func:`probability`."""
        return probability(logits, classes)


@dataclass(frozen=True)
class LogProbability(Score):
    """The log of the softmax probability of the class, in nats. See :func:`log_probability`."""

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """See :func:`log_probability`."""
        return log_probability(logits, classes)


@dataclass(frozen=True)
class LogitDifference(Score):
    """The logit of the class minus a baseline of the other logits: the score of DiffGradCAM.

    See :func:`logit_difference` for the baselines and their meaning.

    Args:
        baseline: ``"logsumexp"``, ``"max"``, ``"mean"``, a class index, or a callable.

    Raises:
        ValueError: If the baseline is something else.

    Example:
        >>> LogitDifference("max")(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
        tensor([1.])
        >>> LogitDifference("max") == LogitDifference("max"), LogitDifference()
        (True, LogitDifference(baseline='logsumexp'))
    """

    baseline: str | int | Baseline = "logsumexp"

    def __post_init__(self) -> None:
        if not _is_class(self.baseline):
            baseline_function(self.baseline)

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """See :func:`logit_difference`."""
        return logit_difference(logits, classes, self.baseline)

    def gradients(self, logits: Tensor, classes: Tensor) -> Tensor | None:
        """For the log-odds, 1 at the class and minus the softmax of the other logits elsewhere."""
        if self.baseline != "logsumexp":
            return None
        check_contrast(logits)
        own = _one_hot(logits, classes)
        return own - logits.unsqueeze(1).masked_fill(own.bool(), -torch.inf).softmax(2)

    def combine(self, logit_maps: Tensor, logits: Tensor, classes: Tensor) -> Tensor | None:
        """All N maps from one weighted sum of the logits' maps, for a named baseline.

        The gradient of each named baseline over *all* classes is weights ``w`` with the sum 1: the softmax
        probabilities for ``"logsumexp"``, equal shares of the largest logits for ``"max"``, equal shares of all for
        ``"mean"``. The baseline of the *others* of class ``c`` has the same weights without that of ``c``, divided by
        what is left, ``1 - w_c``. So one sum serves all classes, but the one class that may have more than half of the
        weight: there the difference would cancel, and its own gradient is taken.
        """
        if not isinstance(self.baseline, str):
            return None
        check_contrast(logits)
        weights = self.weights(logits)
        own, share = logit_maps[_rows(classes), classes], weights.gather(1, classes).unsqueeze(2)
        maps = own - (weights.unsqueeze(1) @ logit_maps - share * own) / (1 - share)
        heaviest = weights.argmax(1, keepdim=True)
        return torch.where(share > 0.5, score_gradients(self, logits, heaviest) @ logit_maps, maps)

    def weights(self, logits: Tensor) -> Tensor:
        """The weight that each logit has in the baseline of all logits.

        Args:
            logits: ``(B, K)``.

        Returns:
            ``(B, K)``, each row with the sum 1, not in the graph of the logits.

        Raises:
            ValueError: If the baseline is a class index.
        """
        with torch.enable_grad():
            source = logits.detach().requires_grad_()
            (weights,) = torch.autograd.grad(baseline_function(self.baseline)(source).sum(), source)
        return weights


@dataclass(frozen=True)
class Finer(Score):
    """The score of Finer-CAM: the class against its nearest classes. See :func:`finer`.

    Args:
        alpha: Strength of the comparison.
        comparisons: How many classes to compare with.

    Raises:
        ValueError: For fewer than one comparison.
    """

    alpha: float = 1.0
    comparisons: int = 3

    def __post_init__(self) -> None:
        _check_comparisons(self.comparisons)

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """See :func:`finer`."""
        return finer(logits, classes, self.alpha, self.comparisons)


@dataclass(frozen=True)
class CustomScore(Score):
    """A function of yours as a score. :func:`as_score` makes it.

    Args:
        function: ``(logits (B, K), classes (B,)) -> (B,)``.
    """

    function: ScoreFunction

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """What the function returns."""
        return self.function(logits, classes)


def as_score(score: ScoreFunction) -> Score:
    """A score as a value, whatever form it was given in.

    Args:
        score: A :class:`Score`, which is returned as it is; a function of this module such as
            :func:`logit_difference`, which becomes the value of the same name; or any other function of logits and
            classes.

    Returns:
        The value.

    Raises:
        TypeError: If it is not a function, or a class of score instead of a score.

    Example:
        >>> as_score(logit_difference), as_score(LogitDifference("max"))
        (LogitDifference(baseline='logsumexp'), LogitDifference(baseline='max'))
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, type) or not callable(score):
        hint = f"; did you mean {score.__name__}()?" if isinstance(score, type) else ""
        raise TypeError(f"score is {score!r}; expected a function of logits and classes, or a score value{hint}")
    for function, value in _VALUES:
        if score is function:
            return value
    return CustomScore(score)


def score_gradients(score: ScoreFunction, logits: Tensor, classes: Tensor, *, create_graph: bool = False) -> Tensor:
    """Gradient of the score of each class with respect to the logits.

    Args:
        score: What is explained, ``(logits (M, K), classes (M,)) -> (M,)``.
        logits: ``(B, K)``.
        classes: Class indices, ``(B, N)``.
        create_graph: Keep the graph, so that the result can be differentiated through the logits.

    Returns:
        Cotangents, ``(B, N, K)``.

    Raises:
        ValueError: If the score returns another shape than one value per image, or does not depend on the logits.
    """
    source = widen(logits if create_graph else logits.detach())
    known = score.gradients(source, classes) if isinstance(score, Score) else None
    if known is not None:
        return known
    batch, count = classes.shape
    with torch.enable_grad():
        source = source if create_graph else source.requires_grad_()
        rows = source.unsqueeze(1).expand(-1, count, -1).flatten(0, 1)
        values = score(rows, classes.reshape(-1))
        check_scores(values, rows)
        if not values.requires_grad:
            raise ValueError("the score does not depend on the logits, so there is nothing to explain")
        (gradients,) = torch.autograd.grad(values.sum(), rows, create_graph=create_graph)
    return gradients.view(batch, count, logits.shape[1])


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
        Our reading of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514). Wang and Wang, "Why Not Other
        Classes?", NeurIPS 2022, compare mean, max and weighted contrasts before; their weighted contrast is exactly
        the gradient of ``"logsumexp"``. Prabhushankar et al., 2020, ask "why P rather than Q" of Grad-CAM.

    Example:
        >>> z = torch.tensor([[2.0, 1.0, -1.0]])
        >>> logit_difference(z, torch.tensor([0]), baseline="max")
        tensor([1.])
        >>> p = z.softmax(1)[:, 0]
        >>> torch.allclose(logit_difference(z, torch.tensor([0])), (p / (1 - p)).log())
        True
    """
    check_contrast(logits)
    if _is_class(baseline):
        return logit(logits, classes) - _contrast_logit(logits, classes, baseline)
    values = baseline_function(baseline)(_others(logits, classes))
    if not isinstance(values, Tensor) or values.shape != classes.shape:
        raise ValueError(
            f"the baseline returned {described(values)}; expected one value per image, {tuple(classes.shape)}, "
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
    _check_comparisons(comparisons)
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


def refuse_same(classes: Tensor, contrasts: Tensor | int) -> None:
    """Refuse to contrast a class with itself.

    Args:
        classes: The explained classes, of any shape.
        contrasts: The classes that they are contrasted with, of a shape that broadcasts to it.

    Raises:
        ValueError: If two are the same.
    """
    same = classes == contrasts
    if read(same.any(), traced=False):
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


def _is_class(baseline: object) -> TypeGuard[int]:
    return isinstance(baseline, int) and not isinstance(baseline, bool)


def _check_comparisons(comparisons: int) -> None:
    if comparisons < 1:
        raise ValueError(f"comparisons is {comparisons}; expected at least 1 class to compare with")


def _one_hot(logits: Tensor, classes: Tensor) -> Tensor:
    zeros = torch.zeros(*classes.shape, logits.shape[1], dtype=logits.dtype, device=logits.device)
    return zeros.scatter_(2, classes.unsqueeze(2), 1)


def _rows(classes: Tensor) -> Tensor:
    return torch.arange(classes.shape[0], device=classes.device).unsqueeze(1)


_VALUES: tuple[tuple[Any, Score], ...] = (
    (logit, Logit()),
    (probability, Probability()),
    (log_probability, LogProbability()),
    (logit_difference, LogitDifference()),
    (finer, Finer()),
)
