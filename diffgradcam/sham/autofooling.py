"""Passive fooling without settings: the most fooling that a bound on the change of decisions and behaviour allows."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from diffgradcam._core.base import TrainableCAM
from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_choice, check_count, check_mask_size, check_mask_varies, check_seed
from diffgradcam._core.editing import by_name, copy_model, find_head
from diffgradcam._core.layers import LayerSpec
from diffgradcam._core.wrappers import inner_model
from diffgradcam.analysis.comparisons import explain_together
from diffgradcam.heatmaps import minmax, rectify
from diffgradcam.methods.gradient import GradCAM
from diffgradcam.metrics.behaviour import GRID, Behaviour, behaviour_kept, covered, decisions_kept, windows
from diffgradcam.metrics.behaviour import behaviour as behaviour_of
from diffgradcam.metrics.evaluator import Evaluator
from diffgradcam.metrics.similarity import pearson
from diffgradcam.scores import logit_difference

from .closed_form import common_mode_hoax
from .finetuning import root_mean_square, take_modes

FoolingScope = Literal["common mode", "head", "last stage", "all"]
Method = Callable[..., TrainableCAM]

_RATE = 0.1  # of the first steps, as a share of each tensor's root mean square
_LEAST = 0.1  # root mean square of a tensor, relative to that of all: biases may start at 0
_SLOWER = 0.5  # times the rate, after steps that went too far ...
_TOO_FAR = 6.0  # ... times a bound
_BETAS = (0.9, 0.99)
_WARM_UP = 10  # steps
_LOOSE = 10.0  # times the bounds at first, so that fooling comes first ...
_TIGHT = 0.4  # ... and by this share of the steps the bounds themselves; then the rate falls, to 0
_AIM = 0.9  # share of a bound that is aimed at
_LEAST_AIM = 0.05  # where checks find that more is used than in the steps
_HIGHER = 3.0  # the most that an aim rises at a check
_MOST = 1000.0  # the most that a bound weighs against fooling
_CHECKS = 20  # of each restart
_BISECTIONS = 5
_STRENGTH = 10.0  # of the common mode in closed form
_WINDOWS = 6  # covered in each step, to keep the behaviour
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
class Restart:
    """One restart of :func:`autofool`.

    Attributes:
        scope: What could change.
        lr: The learning rate that was found, relative to the root mean square of each tensor, before it falls to 0.
        steps: How many steps were taken.
        decisions_multiplier: The multiplier of the bound on the divergence in the last step, per ``keep``.
        behaviour_multiplier: That of the bound on behaviour; None without it.
        effect: Of the best model of this restart within the bounds, on the given images.
    """

    scope: FoolingScope
    lr: float
    steps: int
    decisions_multiplier: float
    behaviour_multiplier: float | None
    effect: Effect


@dataclass(frozen=True)
class Autofooled:
    """The fooled copy and how it came about.

    Attributes:
        model: The best model within the bounds.
        best: The restart that it is from.
        restarts: All of them.
        given: The effect on the given images, behaviour included: that of ``best``.
        held_out: The effect on the held-out images; None without any.
    """

    model: nn.Module
    best: Restart
    restarts: list[Restart]
    given: Effect
    held_out: Effect | None


def autofool(
    model: nn.Module,
    images: Tensor,
    target_layers: LayerSpec | Sequence[LayerSpec],
    hoax: Tensor,
    method: Method | Sequence[Method] = GradCAM,
    keep: float = 0.01,
    behaviour: bool = True,
    *,
    behaviour_kept: float = 0.9,
    judged: int = 128,
    held_out: Tensor | None = None,
    scopes: Sequence[FoolingScope] = ("common mode", "head", "last stage", "all"),
    steps: int = 800,
    seconds: float | None = None,
    batch_size: int = 32,
    head: nn.Module | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Autofooled:
    """Fool a map as far as decisions and behaviour stay: an attack whose strength is not a matter of settings.

    Maximises Pearson's r of the map with the hoax over the weights, while the mean divergence of the probabilities from
    the clean model's stays within ``keep`` and, with ``behaviour``, what the model relies on stays what it was. So what
    it reaches is a *lie*: where only a model that relies on other things could show the hoax, it does not reach it.

    It is a constrained optimisation without a weight to choose: in each step the gradients of fooling and of each bound
    count at length 1, times the share of the bound that is used. So where the model comes to rest it is on the bound,
    and nothing that fools more would stay on it. The bounds are ten times as wide at first and narrow, so that fooling
    comes first. It starts from the common mode in closed form (:func:`common_mode_hoax`) where there is one and it
    shows more of the hoax than the clean model; each further scope goes on from the best so far. Once the bounds have
    narrowed, a model that is out of bounds at a check is pulled back on the line to the best so far; the best that was
    ever within bounds is the result. The bounds hold on the given images (behaviour on ``judged`` of them); what became
    of them elsewhere is measured on ``held_out``.

    Args:
        model: The clean model, a softmax classifier. It is left as it is; batch norm and dropout are in evaluation mode
            throughout.
        images: Images to fool the model on, ``(N, C, H, W)``; no labels are needed.
        target_layers: Layers of ``model`` whose map is to be fooled, as a CAM takes them.
        hoax: The wanted map, at the size of the maps.
        method: The victim: a class of the library, or a ``functools.partial`` of one. Several are fooled together: maps
            count alike, and each :class:`Effect` is a mean over them too.
        keep: Bound of the mean divergence KL(clean, fooled), in nats, above 0.
        behaviour: Whether behaviour must stay too. It needs images of at least 7 x 7 pixels.
        behaviour_kept: Bound of the mean r of what the model relies on with what the clean model relies on, below 1,
            see :func:`diffgradcam.metrics.behaviour_kept`.
        judged: How many of the images behaviour is measured on, the first of them. At each check it costs as much as
            all else.
        held_out: Images that only the result is measured on.
        scopes: What may change, a restart for each: the head's ``"common mode"`` (one vector that is added to every
            class's row, which moves no probability), the ``"head"``, the ``"last stage"`` (from the last child with
            weights before the head, of the outermost module that has several, to the end), or ``"all"``.
        steps: Of each restart.
        seconds: Stop at the next check after so long; by default never.
        batch_size: Images of a step. The larger, the less their noise keeps away from the bounds.
        head: The linear layer whose rows are the classes, or its name; by default the last one.
        seed: Of the order of the images and of what is covered.
        progress: Show a progress bar with divergence and fooledness.

    Returns:
        The fooled copy and a record, see :class:`Autofooled`. If nothing better was found it is the clean model's copy.

    Raises:
        ValueError: If there is no such head, the hoax does not fit the maps or is constant, or an option is out of
            range.
        TypeError: If images are no tensor, or the method is not trainable.

    Reference:
        Ours. Passive fooling aimed at one explainer: Heo, Joo, Moon, NeurIPS 2019; Piland, Sweet, Czajka, 2025 (arXiv
        2506.08514). An attack without settings as a standard to compare with: Croce and Hein, "Reliable
        evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML 2020 (arXiv
        2003.01690), for the inputs of classifiers.
    """
    _check_options(hoax, keep, behaviour_kept, judged, scopes, steps, seconds, batch_size, seed)
    methods = [method] if callable(method) else list(method)
    if not methods:
        raise ValueError("method is empty; expected a CAM class, such as GradCAM, or several")
    for some in (images, held_out):
        if some is not None:
            check_images(some)
    clean = copy_model(model).eval()
    device = next(clean.parameters(), images).device
    make = _Maker(methods, by_name(model, target_layers))
    bounds = _Bounds(keep, behaviour_kept if behaviour else None, judged)
    problem = _Problem(make, clean, images.to(device), hoax.to(device), bounds, batch_size)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    found = _start(problem, head)
    restarts: list[Restart] = []
    for scope in scopes:
        opened = _opened(clean, scope, head)
        with tqdm(total=steps, desc=scope, disable=not progress) as bar:
            restart, better = _restart(problem, scope, opened, found, steps, seed, deadline, bar)
        restarts.append(restart)
        found = better or found
        if time.monotonic() > deadline:
            break
    best = max(restarts, key=lambda restart: restart.effect.reached)
    elsewhere = None
    if held_out is not None:
        elsewhere = _Problem(make, clean, held_out.to(device), hoax.to(device), bounds, batch_size).measure(found.model)
    result = copy_model(found.model)
    take_modes(result, inner_model(model))
    return Autofooled(result, best, restarts, best.effect, elsewhere)


@dataclass(frozen=True)
class _Maker:
    methods: list[Method]
    layers: list[LayerSpec]

    def __call__(self, model: nn.Module) -> list[TrainableCAM]:
        cams = [method(model, self.layers, rectify=False) for method in self.methods]
        for cam in cams:
            if not isinstance(cam, TrainableCAM):
                raise TypeError(f"method made {type(cam).__name__}; expected a trainable CAM class, such as GradCAM")
        return cams


@dataclass(frozen=True)
class _Bounds:
    kl: float
    behaviour: float | None
    judged: int


class _Problem:
    """Some images, what the clean model shows on them, and what is compared with it."""

    def __init__(
        self, make: _Maker, clean: nn.Module, images: Tensor, hoax: Tensor, bounds: _Bounds, batch_size: int
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

    def measure(self, model: nn.Module) -> Effect:
        """The effect of an attack on all images."""
        effect = self.measure_maps(model)
        return effect if self.relied_on is None else replace(effect, behaviour=self.kept(model, self.relied_on))

    def kept(self, model: nn.Module, relied_on: Behaviour) -> float:
        """Mean r of what a model relies on with that."""
        return float(behaviour_kept(relied_on, self.behaviour(model)).both.mean())

    def measure_maps(self, model: nn.Module) -> Effect:
        """The effect of an attack on all images, without the costly behaviour."""
        logits, maps = self.shown(model, self.classes)
        decisions = decisions_kept(self.logits, logits)
        shown, before = (rectify(each.flatten(0, 1)) for each in (maps, self.maps))
        return Effect(
            kl=float(decisions.kl.mean()),
            agreement=float(decisions.agreement.double().mean()),
            kept=float(pearson(shown, before).mean()),
            reached=float(pearson(shown, self.hoax.expand_as(shown)).mean()),
            behaviour=None,
        )

    def divergence(self, model: nn.Module) -> float:
        """Mean divergence from the clean model, in nats; NaN where a logit is not finite."""
        with torch.no_grad():
            parts = [self.output(model(chunk)) for chunk in torch.split(self.images, 8 * self.batch_size)]
        return float(decisions_kept(self.logits, torch.cat(parts)).kl.mean())

    def within(self, model: nn.Module, at_least: float) -> tuple[list[float], Effect | None]:
        """The shares of the bounds that are used, and the effect if it is within them and reaches more than that.

        The costly bound is looked at last, and only if the rest would do.
        """
        used = [self.divergence(model) / self.bounds.kl]
        if not used[0] <= 1:  # NaN is not
            return used, None
        effect = self.measure_maps(model)
        if self.relied_on is None or self.bounds.behaviour is None or effect.reached <= at_least:
            return used, effect
        effect = replace(effect, behaviour=self.kept(model, self.relied_on))
        assert effect.behaviour is not None
        used.append((1 - effect.behaviour**2) / (1 - self.bounds.behaviour**2))
        return used, effect if effect.behaviour >= self.bounds.behaviour else None


_Weights = dict[str, Tensor]


class _Found(NamedTuple):
    """A model within bounds."""

    model: nn.Module
    effect: Effect


def _start(problem: _Problem, head: nn.Module | str | None) -> _Found:
    """The clean model, or its common mode in closed form where that shows more of the hoax."""
    found = _Found(problem.clean, problem.measure(problem.clean))
    layers = problem.make.layers
    if len(layers) > 1:
        return found
    batches = torch.split(problem.images, 8 * problem.batch_size)
    try:
        common = common_mode_hoax(problem.clean, layers[0], batches, problem.hoax, head=head, strength=_STRENGTH)
    except ValueError:  # the head is no linear layer of the pooled activations
        return found
    _, effect = problem.within(common, found.effect.reached)
    return found if effect is None or effect.reached <= found.effect.reached else _Found(common, effect)


def _restart(
    problem: _Problem,
    scope: FoolingScope,
    opened: _Opened,
    start: _Found,
    steps: int,
    seed: int,
    deadline: float,
    bar: tqdm[None],
) -> tuple[Restart, _Found | None]:
    """A run from the best so far, and the best of it if it is better."""
    run = _Descent(problem, opened, start.model, steps, seed)
    best, weights = start.effect, run.weights()
    for step in range(1, steps + 1):
        run.step()
        bar.update()
        if step % max(1, steps // _CHECKS) and step < steps:
            continue
        run.undo_if_too_far()
        if step >= _TIGHT * steps:
            found = _pulled_back(problem, run, weights, best.reached)
            if found is not None:
                best, weights = found
        bar.set_postfix(kl=best.kl, fooled=best.reached, refresh=False)
        if time.monotonic() > deadline:
            break
    multipliers = [float(multiplier) for multiplier in run.multipliers]
    restart = Restart(
        scope=scope,
        lr=run.lr,
        steps=run.steps,
        decisions_multiplier=multipliers[0],
        behaviour_multiplier=multipliers[1] if len(multipliers) > 1 else None,
        effect=best,
    )
    if best is start.effect:
        return restart, None
    _set(run.model, weights)
    return restart, _Found(run.model, best)


def _pulled_back(problem: _Problem, run: _Descent, best: _Weights, at_least: float) -> tuple[Effect, _Weights] | None:
    """The model on the line to the best so far that is farthest from it and within bounds, if it is better."""
    end, probe = run.weights(), copy_model(run.model)
    low, high, found = 0.0, 1.0, None
    share = 1.0
    for _ in range(_BISECTIONS):
        weights = {name: torch.lerp(best[name], end[name], share) for name in end}
        _set(probe, weights)
        used, effect = problem.within(probe, at_least)
        if share == 1:
            run.aim(used)
        if effect is not None:
            low = share
            if effect.reached > at_least:
                at_least, found = effect.reached, (effect, weights)
            if share == 1:
                break
        else:
            high = share
        share = (low + high) / 2
    return found


def _set(model: nn.Module, weights: _Weights) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


class _Descent:
    """Steps along the gradients of fooling and of the bounds, each at length 1, times how much of a bound is used."""

    def __init__(self, problem: _Problem, opened: _Opened, start: nn.Module, steps: int, seed: int) -> None:
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
        return float(_LOOSE ** max(0.0, 1 - self.steps / (_TIGHT * self.total)))

    def weights(self) -> _Weights:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.names}

    def undo_if_too_far(self) -> None:
        """Go back to the last check, with a lower learning rate, if decisions are far out of bounds and still leave."""
        divergence = self.problem.divergence(self.model)
        if divergence <= max(_TOO_FAR * self.width * self.problem.bounds.kl, self.sound[0]):  # NaN is not
            self.sound = divergence, self.weights()
            return
        _set(self.model, self.sound[1])
        self.lr *= _SLOWER
        self.optimizer = self._optimizer()

    def aim(self, used: Sequence[float]) -> None:
        """Aim lower at a bound that was exceeded, and higher at one that was not used up: shares that were measured."""
        for i, share in enumerate(used):
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
        pace = min(1, (self.steps + 1) / _WARM_UP, (1 - self.steps / self.total) / (1 - _TIGHT))
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


class _Opened(NamedTuple):
    """The parameters that a scope lets change, and whether all rows of a matrix change alike."""

    names: list[str]
    common: bool = False


def _opened(model: nn.Module, scope: FoolingScope, head: nn.Module | str | None) -> _Opened:
    every = [name for name, _ in model.named_parameters()]
    if not every:
        raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    if scope == "all":
        return _Opened(every)
    last = find_head(model, head)
    if scope == "common mode":
        return _Opened([f"{last}.weight"], common=True)
    if scope == "head":
        return _Opened([name for name in every if name.startswith(f"{last}.")])
    return _Opened(every[every.index(_first_of_last_stage(model, last)) :])


def _first_of_last_stage(model: nn.Module, head: str) -> str:
    """The first parameter of the last stage before the head.

    Stages are the children with weights (matrices and more) of the outermost module that has several of them.
    """
    prefix = ""
    while True:
        children = dict(model.get_submodule(prefix.removesuffix(".")).named_children())
        weights = {
            child: [
                f"{prefix}{child}.{name}"
                for name, parameter in module.named_parameters()
                if parameter.ndim > 1 and not f"{prefix}{child}.{name}".startswith(f"{head}.")
            ]
            for child, module in children.items()
        }
        stages = [child for child, names in weights.items() if names]
        if len(stages) > 1 or not stages:
            break
        prefix = f"{prefix}{stages[0]}."
    within = f"{prefix}{stages[-1]}." if stages else prefix
    return next(name for name, _ in model.named_parameters() if name.startswith(within))


def _check_options(
    hoax: Tensor,
    keep: float,
    behaviour_kept: float,
    judged: int,
    scopes: Sequence[str],
    steps: int,
    seconds: float | None,
    batch_size: int,
    seed: int,
) -> None:
    check_mask_varies(hoax)
    if not 0 < keep < math.inf:
        raise ValueError(f"keep is {keep}; expected a divergence in nats, a finite number above 0, such as 0.01")
    if not 0 <= behaviour_kept < 1:
        raise ValueError(f"behaviour_kept is {behaviour_kept}; expected a correlation from 0 to below 1, such as 0.9")
    if isinstance(scopes, str) or not scopes:
        raise ValueError(f"scopes is {scopes!r}; expected at least one of {get_args(FoolingScope)} in a list")
    for scope in scopes:
        check_choice("scopes", scope, get_args(FoolingScope))
    for name, count in (("judged", judged), ("steps", steps), ("batch_size", batch_size)):
        check_count(name, count)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is {seconds}; expected a time above 0, or None")
    check_seed(seed)
