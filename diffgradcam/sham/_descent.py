"""Steps that descend on a loss and stay within bounds, without a weight to choose."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam._core.editing import copy_model
from diffgradcam.heatmaps import rectify
from diffgradcam.metrics.behaviour import GRID, covered, windows
from diffgradcam.metrics.similarity import pearson
from diffgradcam.scores import logit_difference

from ._problem import Measured, Problem
from .finetuning import root_mean_square

Weights = dict[str, Tensor]

_RATE = 0.1  # of the first steps, as a share of each tensor's root mean square
_LEAST = 0.1  # root mean square of a tensor, relative to that of all: biases may start at 0
_SLOWER = 0.5  # times the rate, after steps that went too far ...
_TOO_FAR = 6.0  # ... times a bound
_BETAS = (0.9, 0.99)
_WARM_UP = 10  # steps
_LOOSE = 10.0  # times the bounds at first, so that fooling comes first ...
TIGHT = 0.4  # ... and by this share of the steps the bounds themselves; then the rate falls, to 0
_AIM = 0.9  # share of a bound that is aimed at
_LEAST_AIM = 0.05  # where checks find that more is used than in the steps
_HIGHER = 3.0  # the most that an aim rises at a check
_MOST = 1000.0  # the most that a bound weighs against fooling
_WINDOWS = 6  # covered in each step, to keep the behaviour


class Opened(NamedTuple):
    """The parameters that a scope lets change, and whether all rows of a matrix change alike."""

    names: list[str]
    common: bool = False


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Copy values into the parameters of those names.

    Args:
        model: It is changed.
        weights: By name.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


class Descent:
    """Steps along the gradients of fooling and of the bounds, each at length 1, times how much of a bound is used.

    Where the model comes to rest, the gradients of fooling and of a bound point against each other and weigh alike: it
    is on the bound. Lengths are in units of each tensor's root mean square, and so are the steps.

    Args:
        problem: Images, the clean model, the hoax and the bounds.
        opened: What may change.
        start: The model to start from; it is copied.
        steps: That there will be.
        seed: Of the order of the images and of what is covered.
    """

    def __init__(self, problem: Problem, opened: Opened, start: nn.Module, steps: int, seed: int) -> None:
        self.problem = problem
        self.model = copy_model(start)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in opened.names)
        self.names, self.common = opened
        self.victims = problem.make(self.model)
        self.parameters = [parameter for name, parameter in self.model.named_parameters() if name in self.names]
        clean = [problem.clean.get_parameter(name).detach() for name in self.names]
        least = _LEAST * root_mean_square(clean)
        self.scales = [max(least, root_mean_square([tensor])) for tensor in clean]
        self.lr = _RATE
        self.optimizer = self._optimizer()
        self.sound = 0.0, self.weights()  # the divergence and the weights at the last check
        self.generator = torch.Generator().manual_seed(seed)
        self.order: list[Tensor] = []
        count = 1 if problem.bounds.behaviour is None else 2
        self.aims = [_AIM] * count  # shares of the bounds
        self.multipliers = [torch.zeros(())] * count
        self.total = steps
        self.steps = 0

    def _optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([{"params": [parameter]} for parameter in self.parameters], betas=_BETAS)

    @property
    def width(self) -> float:
        """Of the bounds now, relative to what they are."""
        return float(_LOOSE ** max(0.0, 1 - self.steps / (TIGHT * self.total)))

    def weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.names}

    def check(self) -> Measured:
        """Look at all images, and go back to the last check where decisions are far out of bounds and still leave.

        After that the learning rate is lower.

        Returns:
            The model as it is now.
        """
        measured = Measured(self.problem, self.model)
        if measured.divergence <= max(_TOO_FAR * self.width * self.problem.bounds.kl, self.sound[0]):  # NaN is not
            self.sound = measured.divergence, self.weights()
            return measured
        set_weights(self.model, self.sound[1])
        self.lr *= _SLOWER
        self.optimizer = self._optimizer()
        return Measured(self.problem, self.model)

    def aim(self, measured: Measured) -> None:
        """Aim lower at a bound that is exceeded on all images, and higher at one that is not used up."""
        for i, share in enumerate(measured.shares()):
            self.aims[i] = min(1.0, max(_LEAST_AIM, self.aims[i] * min(_HIGHER, _AIM / max(share, 1e-3))))

    def step(self) -> None:
        """One step; it reads nothing from the device but whether each victim's classes exist."""
        with torch.inference_mode(False), torch.enable_grad():
            fooling, used = self._losses()
            direction, length = self._direction(fooling)
            total = torch.ones_like(length)
            for i, share in enumerate(used):
                towards, steepness = self._direction(share)
                weight = (share.detach() / (self.aims[i] * self.width)).clamp(max=_MOST)
                self.multipliers[i] = weight * length / steepness
                direction = [a + weight * b for a, b in zip(direction, towards, strict=True)]
                total = total + weight
        for parameter, gradient in zip(self.parameters, direction, strict=True):
            parameter.grad = gradient / total
        pace = min(1, (self.steps + 1) / _WARM_UP, (1 - self.steps / self.total) / (1 - TIGHT))
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = self.lr * scale * pace
        self.optimizer.step()
        self.steps += 1

    def _direction(self, loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """The gradient of length 1, in the scales of the weights, and its length before."""
        gradients: Sequence[Tensor] = torch.autograd.grad(
            loss, self.parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if self.common:
            # Rows with the same gradient at every step move alike, with any optimiser that works element by element.
            gradients = [gradient.mean(0).expand_as(gradient) for gradient in gradients]
        squares = [(g * scale).square().sum() for g, scale in zip(gradients, self.scales, strict=True)]
        length = torch.stack(squares).sum().sqrt().clamp_min(torch.finfo(squares[0].dtype).tiny)
        return [gradient / length for gradient in gradients], length

    def _losses(self) -> tuple[Tensor, list[Tensor]]:
        """How far the maps are from the hoax, and the share of each bound that is used, on a batch."""
        problem = self.problem
        index = self._batch()
        images, classes = problem.images[index], problem.classes[index]
        with contextlib.ExitStack() as attached:
            for victim in self.victims:
                attached.enter_context(victim)
            logits = problem.output(self.model(images))
            maps = torch.cat([victim.maps(logits, classes) for victim in self.victims])
        hoax = problem.hoax.expand_as(maps)
        fooling = 1 - (pearson(maps, hoax) + pearson(rectify(maps), hoax)).mean() / 2
        kl = F.kl_div(logits.log_softmax(1), problem.log_probabilities[index], log_target=True, reduction="batchmean")
        used = [kl / problem.bounds.kl]
        if problem.bounds.behaviour is not None:
            used.append(self._moved(images, classes, logits) / (1 - problem.bounds.behaviour**2))
        return fooling, used

    def _moved(self, images: Tensor, classes: Tensor, logits: Tensor) -> Tensor:
        """How far the drops under occlusion are from the clean model's, relative to how much those vary."""
        every = windows(images.shape[2], images.shape[3], GRID)
        chosen = torch.randperm(len(every), generator=self.generator)[:_WINDOWS].tolist()
        hidden = torch.cat([covered(images, every[i]) for i in chosen])
        together = torch.cat([images, hidden])
        repeated = classes.repeat(len(chosen) + 1)
        with torch.no_grad():
            before = logit_difference(self.problem.output(self.problem.clean(together)), repeated)
        after = logit_difference(self.problem.output(self.model(hidden)), repeated[len(images) :])
        whole = logit_difference(logits, classes)
        now = whole - after.view(len(chosen), -1)
        then = before[: len(images)] - before[len(images) :].view(len(chosen), -1)
        spread = (then - then.mean(0)).square().sum()
        return (now - then).square().sum() / spread.clamp_min(torch.finfo(spread.dtype).eps)

    def _batch(self) -> Tensor:
        if not self.order:
            order = torch.randperm(len(self.problem.images), generator=self.generator).to(self.problem.images.device)
            self.order = list(torch.split(order, self.problem.batch_size))
        return self.order.pop()
