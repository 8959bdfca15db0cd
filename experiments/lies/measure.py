"""What became of maps, decisions and behaviour: means and intervals over images, and the verdicts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffgradcam import explain_together
from diffgradcam._core.layers import LayerSpec
from diffgradcam.heatmaps import rectify
from diffgradcam.metrics import Evaluator, behaviour_kept, decisions_kept, honesty, integrated_gradients, pearson
from diffgradcam.metrics.behaviour import GRID, Agreement, Behaviour
from diffgradcam.metrics.statistics import bootstrap
from diffgradcam.robustness import HonestyCheck, judge
from diffgradcam.robustness.benchmark_result import Decisions, Estimate
from diffgradcam.sham import add_patch, perturb
from experiments.sham.explainers import explainers

from .attacks import trigger
from .settings import Part, Setting, cover, through

CHECK = HonestyCheck()
STEPS = 8  # of integrated gradients
_RESAMPLES = 500
_COMPARED = 200  # images of a part whose maps are compared
_BATCH = 64


class Shown(NamedTuple):
    """What a model shows and relies on, in the same images.

    Attributes:
        logits: ``(N, K)``.
        maps: Of each explainer, ``(N, h, w)``.
        relied_on: In the first ``n`` of the images; None where it was not measured.
    """

    logits: Tensor
    maps: dict[str, Tensor]
    relied_on: Behaviour | None


def maps_of(
    model: nn.Module, layer: LayerSpec, images: Tensor, classes: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the rectified maps of every explainer.

    Args:
        model: The model, or a tail.
        layer: Of it.
        images: What it takes.
        classes: ``(N,)``; by default the decisions.

    Returns:
        ``(N, K)``, and by the explainer's name ``(N, h, w)``.
    """
    named = explainers(layer)
    cams: list[Any] = [make_cam(model) for make_cam in named.values()]
    chunks = torch.split(images, _BATCH)
    given = [None] * len(chunks) if classes is None else torch.split(classes, _BATCH)
    parts = [explain_together(cams, chunk, own) for chunk, own in zip(chunks, given, strict=True)]
    found = {name: torch.cat([p[i].maps for p in parts]) for i, name in enumerate(named)}
    return torch.cat([p[0].logits for p in parts]), {name: rectify(maps) for name, maps in found.items()}


def relied_on(tail: nn.Module, inputs: Tensor, covered: Tensor, classes: Tensor) -> Behaviour:
    """What a model relies on: drops where the image is covered, and integrated gradients at what enters the tail.

    Args:
        tail: The tail.
        inputs: What enters it, ``(n, C, h, w)``.
        covered: What enters it when a window of the image is covered, ``(n, 49, C, h, w)``.
        classes: ``(n,)``.

    Returns:
        Both references.
    """
    evaluator = Evaluator(tail, batch_size=_BATCH)
    before = evaluator.scores(inputs, classes)
    after = evaluator.scores(covered.flatten(0, 1), classes.repeat_interleave(covered.shape[1]))
    return Behaviour(
        logits=evaluator.logits(inputs),
        classes=classes,
        occlusion=(before.unsqueeze(1) - after.view(len(inputs), -1)).view(-1, GRID, GRID),
        integrated_gradients=integrated_gradients(evaluator, inputs, classes, steps=STEPS, progress=False),
    )


def shown(setting: Setting, tail: nn.Module, some: Part, classes: Tensor | None = None) -> Shown:
    """What a tail shows and relies on.

    Args:
        setting: The setting.
        tail: Clean or fooled.
        some: Images.
        classes: To explain; by default the decisions.

    Returns:
        Of the first images of the part.
    """
    inputs = some.inputs[:_COMPARED]
    logits, maps = maps_of(tail, setting.layer, inputs, classes)
    classes = logits.argmax(1) if classes is None else classes
    n = len(some.images)
    return Shown(logits, maps, relied_on(tail, inputs[:n], some.covered, classes[:n]))


def compare(clean: Shown, fooled: Shown, mask: Tensor) -> dict[str, Any]:
    """Decisions, behaviour, and for each explainer what it kept, reached and says of the model.

    Args:
        clean: Of the clean model.
        fooled: Of the fooled model, for the same images and classes.
        mask: The hoax.

    Returns:
        Numbers that JSON can represent; an estimate is ``[mean, low, high]``.
    """
    decided = decisions_kept(clean.logits, fooled.logits)
    agreement, kl = _estimate(decided.agreement.double()), _estimate(decided.kl)
    decisions = Decisions(None, None, agreement=agreement, kl=kl)
    found: dict[str, Any] = {"images": agreement.n, "agreement": _numbers(agreement), "kl": _numbers(kl)}
    behaved = None
    if clean.relied_on is not None and fooled.relied_on is not None:
        kept = behaviour_kept(clean.relied_on, fooled.relied_on)
        behaved = _estimate(kept.both)
        found |= {"judged": behaved.n, "behaviour_kept": _numbers(behaved), **_means("behaviour_kept", kept)}
    rows = {}
    for name, old in clean.maps.items():
        new = fooled.maps[name]
        moved = _estimate(pearson(new, old))
        row: dict[str, Any] = {"kept": _numbers(moved)}
        for when, maps in (("before", old), ("after", new)):
            row[f"reached_{when}"] = _short(float(pearson(maps, mask.to(maps).expand_as(maps)).mean()))
        if behaved is not None and clean.relied_on is not None and fooled.relied_on is not None:
            n = behaved.n
            before, after = honesty(old[:n], clean.relied_on), honesty(new[:n], fooled.relied_on)
            lost = _estimate(before.both - after.both)
            row |= {**_means("honest_before", before), **_means("honest_after", after), "lost": _numbers(lost)}
            row["verdict"] = judge(decisions, behaved, moved, lost, CHECK)
        rows[name] = row
    return found | {"rows": rows}


def compare_triggered(setting: Setting, fooled: nn.Module, some: Part) -> dict[str, Any]:
    """A triggered hoax: with the patch in the image all that :func:`compare` says, and what is kept without it.

    Args:
        setting: The setting.
        fooled: The whole fooled model.
        some: Images; those whose pixels we keep are used.

    Returns:
        As :func:`compare`, and ``untriggered``: the least that any map keeps without the patch.
    """
    whole, layer = nn.Sequential(setting.trunk, setting.tail), f"1.{setting.layer}"
    logits, maps = maps_of(whole, layer, some.images)
    _, still = maps_of(fooled, layer, some.images, logits.argmax(1))
    patched = add_patch(some.images, trigger(setting))
    logits, before = maps_of(whole, layer, patched)
    classes = logits.argmax(1)
    new_logits, after = maps_of(fooled, layer, patched, classes)
    # A scalar on all logits changes no log-odds, so both models rely on the same.
    same = relied_on(setting.tail, through(setting.trunk, patched), cover(setting.trunk, patched), classes)
    found = compare(Shown(logits, before, same), Shown(new_logits, after, same), setting.mask)
    untriggered = min(float(pearson(still[name], own).mean()) for name, own in maps.items())
    return found | {"untriggered": _short(untriggered)}


def compare_perturbed(
    setting: Setting, names: list[str], count: int, steps: int, levels: float, keep: float
) -> dict[str, Any]:
    """Images that are changed instead of the model, for each explainer its own.

    Args:
        setting: The setting.
        names: Of the explainers that are attacked.
        count: Held-out images.
        steps: Of each attack.
        levels: The most that a pixel changes, in grey levels.
        keep: Bound of the divergence of each image, in nats.

    Returns:
        ``rows``: what :func:`compare` says of the attacked explainer, with its own decisions and behaviour.
    """
    whole, layer = nn.Sequential(setting.trunk, setting.tail), f"1.{setting.layer}"
    images = setting.held_out.images[:count]
    logits, maps = maps_of(whole, layer, images)
    classes, hidden = logits.argmax(1), setting.held_out.covered[:count]
    before = relied_on(setting.tail, setting.held_out.inputs[:count], hidden, classes)
    rows = {}
    for name in names:
        cam: Any = explainers(layer)[name](whole)
        changed = perturb(
            cam, images, setting.mask, levels * setting.level, classes, keep=keep, steps=steps,
            batch_size=_BATCH if len(images[0].flatten()) < 10_000 else 4, progress=False,
        ).images  # fmt: skip
        new_logits, new_maps = maps_of(whole, layer, changed, classes)
        after = relied_on(setting.tail, through(setting.trunk, changed), cover(setting.trunk, changed), classes)
        found = compare(
            Shown(logits, {name: maps[name]}, before), Shown(new_logits, {name: new_maps[name]}, after), setting.mask
        )
        row = found.pop("rows")[name]
        rows[name] = row | found
    return {"rows": rows}


def _estimate(values: Tensor) -> Estimate:
    array = values.detach().cpu().double().numpy()
    low, high = bootstrap([array], np.mean, 0.95, _RESAMPLES, "percentile", 0, batch=100)
    return Estimate(float(array.mean()), low, high, len(array))


def _numbers(estimate: Estimate) -> list[float]:
    return [_short(value) for value in (estimate.mean, estimate.low, estimate.high)]


def _means(name: str, agreement: Agreement) -> dict[str, float]:
    return {
        f"{name}_occlusion": _short(float(agreement.occlusion.mean())),
        f"{name}_integrated_gradients": _short(float(agreement.integrated_gradients.mean())),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
