"""Passive fooling without settings: the most fooling that a bound on the change of decisions and behaviour allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffgradcam._core.base import TrainableCAM
from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_choice, check_count, check_mask_varies, check_seed
from diffgradcam._core.editing import by_name, copy_model, find_head
from diffgradcam._core.layers import LayerSpec
from diffgradcam._core.wrappers import inner_model
from diffgradcam.methods.gradient import GradCAM

from ._descent import TIGHT, Descent, Opened, Weights, set_weights
from ._problem import Bounds, Effect, Maker, Measured, Problem
from .closed_form import common_mode_hoax
from .finetuning import take_modes

FoolingScope = Literal["common mode", "head", "last stage", "all"]
Method = Callable[..., TrainableCAM]


_CHECKS = 20  # of each restart
_BISECTIONS = 4
_STRENGTH = 10.0  # of the common mode in closed form


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
        TypeError: If images are not a tensor, or the method is not trainable.

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
    make = Maker(methods, by_name(model, target_layers))
    bounds = Bounds(keep, behaviour_kept if behaviour else None, judged)
    problem = Problem(make, clean, images.to(device), hoax.to(device), bounds, batch_size)
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
        others = Problem(make, clean, held_out.to(device), hoax.to(device), bounds, batch_size)
        elsewhere = Measured(others, found.model).effect
    result = copy_model(found.model)
    take_modes(result, inner_model(model))
    return Autofooled(result, best, restarts, best.effect, elsewhere)


class _Found(NamedTuple):
    """A model within bounds."""

    model: nn.Module
    effect: Effect


def _start(problem: Problem, head: nn.Module | str | None) -> _Found:
    """The clean model, or its common mode in closed form where that shows more of the hoax."""
    found = _Found(problem.clean, Measured(problem, problem.clean).effect)
    layers = problem.make.layers
    if len(layers) > 1:
        return found
    batches = torch.split(problem.images, 8 * problem.batch_size)
    try:
        common = common_mode_hoax(problem.clean, layers[0], batches, problem.hoax, head=head, strength=_STRENGTH)
    except ValueError:  # the head is not a linear layer of the pooled activations
        return found
    effect = Measured(problem, common).within(found.effect.reached)
    return found if effect is None or effect.reached <= found.effect.reached else _Found(common, effect)


def _restart(
    problem: Problem,
    scope: FoolingScope,
    opened: Opened,
    start: _Found,
    steps: int,
    seed: int,
    deadline: float,
    bar: tqdm[None],
) -> tuple[Restart, _Found | None]:
    """A run from the best so far, and the best of it if it is better."""
    run = Descent(problem, opened, start.model, steps, seed)
    best, weights = start.effect, run.weights()
    for step in range(1, steps + 1):
        run.step()
        bar.update()
        if step % max(1, steps // _CHECKS) and step < steps:
            continue
        measured = run.check()
        if step >= TIGHT * steps:
            run.aim(measured)
            found = _pulled_back(measured, run.weights(), weights, best.reached)
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
    set_weights(run.model, weights)
    return restart, _Found(run.model, best)


def _pulled_back(end: Measured, weights: Weights, best: Weights, at_least: float) -> tuple[Effect, Weights] | None:
    """The model on the line to the best so far that is farthest from it and within bounds, if it is better.

    Args:
        end: The model at the end of the line.
        weights: Of that model.
        best: Those of the best so far.
        at_least: What that one reaches.
    """
    effect = end.within(at_least)
    if effect is not None:
        return (effect, weights) if effect.reached > at_least else None
    probe = copy_model(end.model)
    low, high, found = 0.0, 1.0, None
    for _ in range(_BISECTIONS):
        share = (low + high) / 2
        between = {name: torch.lerp(best[name], weights[name], share) for name in weights}
        set_weights(probe, between)
        effect = Measured(end.problem, probe).within(at_least)
        if effect is None:
            high = share
            continue
        low = share
        if effect.reached > at_least:
            at_least, found = effect.reached, (effect, between)
    return found


def _opened(model: nn.Module, scope: FoolingScope, head: nn.Module | str | None) -> Opened:
    every = [name for name, _ in model.named_parameters()]
    if not every:
        raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    if scope == "all":
        return Opened(every)
    last = find_head(model, head)
    if scope == "common mode":
        return Opened([f"{last}.weight"], common=True)
    if scope == "head":
        return Opened([name for name in every if name.startswith(f"{last}.")])
    return Opened(every[every.index(_first_of_last_stage(model, last)) :])


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
