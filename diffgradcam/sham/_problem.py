"""What an attack has to reach, and what it may cost: measured on some images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from diffgradcam._core.base import TrainableCAM
from diffgradcam._core.checks import check_mask_size
from diffgradcam._core.layers import LayerSpec
from diffgradcam.analysis.comparisons import explain_together
from diffgradcam.heatmaps import minmax, rectify
from diffgradcam.metrics.behaviour import Behaviour, behaviour_kept, decisions_kept
from diffgradcam.metrics.behaviour import behaviour as behaviour_of
from diffgradcam.metrics.evaluator import Evaluator
from diffgradcam.metrics.similarity import pearson

_STEPS_OF_GRADIENTS = 8


@dataclass(frozen=True)
class Effect:
    """What an attack did on some images: means over them.

    Attributes:
        kl: Divergence of the probabilities from the clean model's, in nats.
        agreement: Share of images that both models decide alike.
        kept: Pearson's r of the map with the clean model's.
        reached: Pearson's r of the map with the hoax.
        behaviour: r of what the model relies on with what the clean model relies on; None where it was not measured.
    """

    kl: float
    agreement: float
    kept: float
    reached: float
    behaviour: float | None


@dataclass(frozen=True)
class Maker:
    methods: list[Callable[..., TrainableCAM]]
    layers: list[LayerSpec]

    def __call__(self, model: nn.Module) -> list[TrainableCAM]:
        cams = [method(model, self.layers, rectify=False) for method in self.methods]
        for cam in cams:
            if not isinstance(cam, TrainableCAM):
                raise TypeError(f"method made {type(cam).__name__}; expected a trainable CAM class, such as GradCAM")
        return cams


@dataclass(frozen=True)
class Bounds:
    kl: float
    behaviour: float | None
    judged: int


class Problem:
    """Some images, what the clean model shows on them, and what is compared with it."""

    def __init__(
        self, make: Maker, clean: nn.Module, images: Tensor, hoax: Tensor, bounds: Bounds, batch_size: int
    ) -> None:
        self.make = make
        self.clean = clean
        self.images = images
        self.bounds = bounds
        self.batch_size = batch_size
        self.output = make(clean)[0].output
        self.logits, self.maps = self.shown(clean, None)
        self.classes = self.logits.argmax(1)
        check_mask_size(hoax, self.maps.shape[2:], "the maps")
        self.hoax = minmax(hoax.to(self.maps.dtype).unsqueeze(0)).squeeze(0)
        self.log_probabilities = self.logits.log_softmax(1)
        self.relied_on = None if bounds.behaviour is None else self.behaviour(clean)

    def shown(self, model: nn.Module, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of all images, and signed maps of each victim, ``(M, N, *S)``."""
        cams = self.make(model)
        size = 8 * self.batch_size
        given = [None] * len(self.images) if classes is None else torch.split(classes, size)
        parts = [
            explain_together(cams, chunk, own)
            for chunk, own in zip(torch.split(self.images, size), given, strict=False)
        ]
        logits = torch.cat([part[0].logits for part in parts])
        return logits, torch.stack([torch.cat([part[i].maps for part in parts]) for i in range(len(cams))])

    def behaviour(self, model: nn.Module) -> Behaviour:
        """What a model relies on, in the first images."""
        evaluator = Evaluator(model, output=self.output, batch_size=8 * self.batch_size)
        few = slice(self.bounds.judged)
        return behaviour_of(evaluator, self.images[few], self.classes[few], steps=_STEPS_OF_GRADIENTS, progress=False)


class Measured:
    """A model on the images of a problem: each thing is measured when it is first asked for.

    Args:
        problem: The images, the clean model, the hoax and the bounds.
        model: It must not change meanwhile.
    """

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        self.problem = problem
        self.model = model

    @cached_property
    def divergence(self) -> float:
        """Mean divergence from the clean model, in nats; NaN where a logit is not finite."""
        problem = self.problem
        with torch.no_grad():
            parts = [problem.output(self.model(chunk)) for chunk in torch.split(problem.images, 8 * problem.batch_size)]
        return float(decisions_kept(problem.logits, torch.cat(parts)).kl.mean())

    @cached_property
    def kept(self) -> float | None:
        """Mean r of what the model relies on with what the clean model relies on; None without a bound on it."""
        problem = self.problem
        if problem.relied_on is None:
            return None
        return float(behaviour_kept(problem.relied_on, problem.behaviour(self.model)).both.mean())

    @cached_property
    def on_maps(self) -> Effect:
        """The effect without the costly behaviour."""
        problem = self.problem
        logits, maps = problem.shown(self.model, problem.classes)
        decisions = decisions_kept(problem.logits, logits)
        shown, before = (rectify(each.flatten(0, 1)) for each in (maps, problem.maps))
        return Effect(
            kl=float(decisions.kl.mean()),
            agreement=float(decisions.agreement.double().mean()),
            kept=float(pearson(shown, before).mean()),
            reached=float(pearson(shown, problem.hoax.expand_as(shown)).mean()),
            behaviour=None,
        )

    @property
    def effect(self) -> Effect:
        """The whole effect."""
        return replace(self.on_maps, behaviour=self.kept)

    def shares(self) -> list[float]:
        """The shares of the bounds that the model uses: 1 is on the bound. All its logits must be finite."""
        bounds = self.problem.bounds
        shares = [self.divergence / bounds.kl]
        if bounds.behaviour is not None and self.kept is not None:
            shares.append((1 - self.kept**2) / (1 - bounds.behaviour**2))
        return shares

    def within(self, at_least: float) -> Effect | None:
        """The effect if the model is within bounds; behaviour is looked at only if it reaches more than that."""
        bounds = self.problem.bounds
        if not self.divergence <= bounds.kl:  # NaN is not
            return None
        if bounds.behaviour is None or self.on_maps.reached <= at_least:
            return self.on_maps
        return self.effect if self.kept is not None and self.kept >= bounds.behaviour else None
