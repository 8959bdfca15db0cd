"""What a caller asks to have explained: a score of classes, or targets in the style of pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..scores import Logit, Score, score_gradients
from ..targets import OutputTarget, target_gradients, target_values
from .checks import check_scores
from .gradients import class_blocks
from .tensors import widen


class Request(Protocol):
    """``N`` numbers of each image's output that are to be explained."""

    def cotangents(self, logits: Tensor, *, create_graph: bool = False) -> Tensor:
        """Their gradient with respect to the output.

        Args:
            logits: ``(B, K)``, or another output ``(B, *O)``.
            create_graph: Keep the graph, so that the result can be differentiated.

        Returns:
            ``(B, N, *O)``.
        """
        ...

    def products(self, logits: Tensor, weight: Tensor) -> Tensor:
        """Their gradient with respect to the input of a linear layer that puts out the logits.

        Args:
            logits: ``(B, K)``.
            weight: Of the layer, ``(K, C)``.

        Returns:
            ``(B, N, C)``.
        """
        ...

    def values(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The numbers themselves, of outputs made from other versions of the images.

        Args:
            logits: ``(M, K)``.
            rows: Which image each is a version of, ``(M,)``.

        Returns:
            ``(M, N)``.
        """
        ...

    def blocks(self, numbers: int) -> Sequence[Request]:
        """The same in several requests, which bound the memory of what is computed for each of the ``N``.

        Args:
            numbers: How many numbers are computed for one of them and one image.
        """
        ...


@dataclass(frozen=True)
class ClassRequest:
    """A score of classes.

    Attributes:
        score: What is explained.
        classes: ``(B, N)``.
    """

    score: Score
    classes: Tensor

    def cotangents(self, logits: Tensor, *, create_graph: bool = False) -> Tensor:
        """See :class:`Request`."""
        return score_gradients(self.score, logits, self.classes, create_graph=create_graph)

    def products(self, logits: Tensor, weight: Tensor) -> Tensor:
        """See :class:`Request`. Of a logit it is the row of its class."""
        if self.score == Logit():
            return functional.embedding(self.classes, weight)
        return self.cotangents(logits).to(weight.dtype) @ weight

    def values(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See :class:`Request`."""
        found = []
        for block in class_blocks(self.classes[rows], logits.shape[1]):
            repeated = widen(logits).unsqueeze(1).expand(-1, block.shape[1], -1).flatten(0, 1)
            scores = self.score(repeated, block.reshape(-1))
            check_scores(scores, repeated)
            found.append(scores.view(block.shape))
        return torch.cat(found, 1)

    def blocks(self, numbers: int) -> list[ClassRequest]:
        """See :class:`Request`."""
        return [ClassRequest(self.score, block) for block in class_blocks(self.classes, numbers)]


@dataclass(frozen=True)
class TargetRequest:
    """A target of each image.

    Attributes:
        targets: One callable for each image.
    """

    targets: Sequence[OutputTarget]

    def cotangents(self, logits: Tensor, *, create_graph: bool = False) -> Tensor:
        """See :class:`Request`."""
        return target_gradients(self.targets, logits, create_graph=create_graph)

    def products(self, logits: Tensor, weight: Tensor) -> Tensor:
        """See :class:`Request`."""
        return self.cotangents(logits).to(weight.dtype) @ weight

    def values(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See :class:`Request`."""
        return target_values([self.targets[row] for row in rows.tolist()], logits)

    def blocks(self, numbers: int) -> list[TargetRequest]:  # noqa: ARG002
        """See :class:`Request`: there is one of each image."""
        return [self]
