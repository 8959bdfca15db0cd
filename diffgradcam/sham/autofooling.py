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
from diffgradcam.losses import cyborg_loss
from diffgradcam.methods.gradient import GradCAM
from diffgradcam.metrics.behaviour import GRID, Behaviour, behaviour_kept, covered, decisions_kept, windows
from diffgradcam.metrics.behaviour import behaviour as behaviour_of
from diffgradcam.metrics.evaluator import Evaluator
from diffgradcam.metrics.similarity import pearson
from diffgradcam.scores import logit_difference

from .finetuning import all_finite, root_mean_square, take_modes

FoolingScope = Literal["common mode", "head", "last stage", "all"]
Method = Callable[..., TrainableCAM]

_TRIAL = 50  # steps of each learning rate
_CHECKS = 8  # of each restart
_BISECTIONS = 5
_RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # shares of the weights' root mean square, tried in this order
_LARGE_RATES = (1e-1, 3e-1, 1.0, 3.0)  # and these for the common mode, where no bound is in the way
_WINDOWS = 6  # covered in each step, to keep the behaviour
_START = -6.0  # logarithm of the multipliers: at first the way may lead out of bounds
_CLIMB = 12.0  # the most that it rises in a restart
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
        lr: The learning rate that was found, the first of the run.
        steps: How many steps were taken.
        decisions_multiplier: The multiplier of the bound on the divergence at the end, per ``keep``.
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

    It is a constrained optimisation: Adam descends on the weights and the multipliers of the two bounds ascend, so that
    there is no weight to choose. For each scope it starts again from the clean weights, and the learning rate is the
    best of a short search. At regular checks, a model that is out of bounds is pulled back on the line to the clean
    weights until it is within; the best that was ever within bounds is the result. The bounds hold on the given images
    (behaviour on ``judged`` of them); what became of them elsewhere is measured on ``held_out``.

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
        steps: Of each restart. The search for the learning rate takes up to half as many more.
        seconds: Stop at the next check after so long; by default never.
        batch_size: Images of a step.
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
    best, best_model, restarts = None, clean, []
    for scope in scopes:
        opened = _opened(clean, scope, head)
        with tqdm(total=steps, desc=scope, disable=not progress) as bar:
            restart, fooled = _restart(problem, scope, opened, steps, seed, deadline, bar)
        restarts.append(restart)
        if best is None or restart.effect.reached > best.effect.reached:
            best, best_model = restart, fooled
        if time.monotonic() > deadline:
            break
    assert best is not None  # there is at least one scope
    elsewhere = None
    if held_out is not None:
        elsewhere = _Problem(make, clean, held_out.to(device), hoax.to(device), bounds, batch_size).measure(best_model)
    result = copy_model(best_model)
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

    def within(self, model: nn.Module, at_least: float) -> Effect | None:
        """The effect, if it is within bounds and reaches more than that; the costly bound is looked at last."""
        effect = self.measure_maps(model)
        if not effect.kl <= self.bounds.kl:  # NaN is not
            return None
        if self.relied_on is None or effect.reached <= at_least:
            return effect
        kept = self.kept(model, self.relied_on)
        assert self.bounds.behaviour is not None
        return replace(effect, behaviour=kept) if kept >= self.bounds.behaviour else None


_Weights = dict[str, Tensor]


def _restart(
    problem: _Problem,
    scope: FoolingScope,
    opened: _Opened,
    steps: int,
    seed: int,
    deadline: float,
    bar: tqdm[None],
) -> tuple[Restart, nn.Module]:
    lr = _learning_rate(problem, opened, max(1, min(_TRIAL, steps // 8)), seed, deadline)
    run = _Ascent(problem, opened, lr, steps, seed)
    best, weights = problem.measure(run.model), run.weights()
    for step in range(steps):
        run.step()
        bar.update()
        if (step + 1) % max(1, steps // _CHECKS) and step + 1 < steps:
            continue
        found = _pulled_back(problem, run, best.reached)
        if found is not None:
            best, weights = found
        bar.set_postfix(kl=best.kl, fooled=best.reached, refresh=False)
        if time.monotonic() > deadline or not run.sound:
            break
    _set(run.model, weights)
    restart = Restart(
        scope=scope,
        lr=lr,
        steps=run.steps,
        decisions_multiplier=math.exp(run.decisions),
        behaviour_multiplier=None if problem.relied_on is None else math.exp(run.behaviour),
        effect=best,
    )
    return restart, run.model


def _learning_rate(problem: _Problem, opened: _Opened, steps: int, seed: int, deadline: float) -> float:
    """The learning rate after a few steps of which the first multipliers' loss is least: from small, until it rises."""
    scale = root_mean_square([p.detach() for name, p in problem.clean.named_parameters() if name in opened.names])
    best, least = _RATES[0] * scale, math.inf
    for share in (*_RATES, *_LARGE_RATES) if opened.common else _RATES:
        run = _Ascent(problem, opened, share * scale, steps, seed)
        for _ in range(steps):
            run.step()
            if time.monotonic() > deadline:
                return best
        if not run.sound:
            break
        effect = problem.measure_maps(run.model)
        loss = -effect.reached + math.exp(_START) * effect.kl / problem.bounds.kl
        if loss > least:
            break
        best, least = share * scale, loss
    return best


def _pulled_back(problem: _Problem, run: _Ascent, at_least: float) -> tuple[Effect, _Weights] | None:
    """The model on the line to the clean weights that is farthest from them and within bounds, if it is better."""
    end, probe = run.weights(), copy_model(run.model)

    def at(share: float) -> _Weights:
        return {name: torch.lerp(run.start[name], end[name], share) for name in end}

    low, high, found = 0.0, 1.0, None
    share = 1.0
    for _ in range(_BISECTIONS):
        weights = at(share)
        _set(probe, weights)
        effect = problem.within(probe, at_least)
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


class _Ascent:
    """Descent on the weights, ascent on the logarithms of the multipliers."""

    def __init__(self, problem: _Problem, opened: _Opened, lr: float, steps: int, seed: int) -> None:
        self.problem = problem
        self.model = copy_model(problem.clean)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in opened.names)
        self.names, self.common = opened
        self.start = self.weights()
        self.victims = problem.make(self.model)
        self.parameters = [parameter for name, parameter in self.model.named_parameters() if name in self.names]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.generator = torch.Generator().manual_seed(seed)
        self.order: list[Tensor] = []
        self.decisions = self.behaviour = _START
        self.climb = _CLIMB / steps
        self.steps = 0
        self.sound = True

    def weights(self) -> _Weights:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.names}

    def step(self) -> None:
        if not self.sound:
            return
        problem = self.problem
        index = self._batch().to(problem.images.device)
        images, classes = problem.images[index], problem.classes[index]
        with torch.inference_mode(False), torch.enable_grad():
            with contextlib.ExitStack() as attached:
                for victim in self.victims:
                    attached.enter_context(victim)
                logits = problem.output(self.model(images))
                maps = torch.cat([victim.maps(logits, classes) for victim in self.victims])
            hoax = problem.hoax.expand_as(maps)
            fooling = 1 - (pearson(maps, hoax) + pearson(rectify(maps), hoax)).mean() / 2
            if not self.common:
                # r is what counts, but the squared error of the scaled map leads there faster.
                fooling = fooling + cyborg_loss(maps, hoax) / problem.hoax.var()
            kl = F.kl_div(
                logits.log_softmax(1), problem.log_probabilities[index], log_target=True, reduction="batchmean"
            )
            over = kl / problem.bounds.kl
            loss = fooling + math.exp(self.decisions) * over
            moved = None
            if problem.bounds.behaviour is not None:
                allowed = 1 - problem.bounds.behaviour**2
                moved = self._moved(images, classes, logits) / allowed
                loss = loss + math.exp(self.behaviour) * moved
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.sound = all_finite(g for g in gradients if g is not None)
        if not self.sound:
            return
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # Rows with the same gradient at every step move alike, with any optimiser that works element by element.
            parameter.grad = gradient.mean(0).expand_as(gradient) if self.common and gradient is not None else gradient
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        self.decisions += self.climb * _rise(over)
        if moved is not None:
            self.behaviour += self.climb * _rise(moved)

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
            count = len(self.problem.images)
            self.order = list(torch.split(torch.randperm(count, generator=self.generator), self.problem.batch_size))
        return self.order.pop()


def _rise(over: Tensor) -> float:
    """Whether a multiplier rises or falls, from -1 to 1: by how many times a bound is exceeded, as a logarithm."""
    return max(-1.0, min(1.0, math.log(max(float(over.detach()), 1e-9))))


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
