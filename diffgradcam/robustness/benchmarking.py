"""Compare the maps and the decisions of a model before and after an attack, for any number of explainers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from .._core.base import BaseCAM
from .._core.batches import read_batch
from .._core.checks import check_choice, check_confidence, check_loader, check_mask_size, check_mask_varies, check_seed
from .._core.editing import evaluated
from .._core.explainers import MakeCAM, check_makes_cams
from .._core.explanation import Explanation
from .._core.optional import import_optional
from .._core.outputs import class_index
from .._core.wrappers import inner_model
from ..analysis.comparisons import explain_together
from ..heatmaps import minmax
from ..losses import cam_entropy
from ..metrics import cosine, iou_at_matched_area, pearson, rmse, spearman, ssim
from ..metrics import honesty as agreement_with
from ..metrics.behaviour import Agreement, Behaviour, behaviour, behaviour_kept, decisions_kept
from ..metrics.evaluator import Evaluator
from ..metrics.statistics import bootstrap
from ..sham import FoolingLoss, location_loss
from .benchmark_result import (
    METRICS,
    AgreementEstimate,
    BenchmarkResult,
    Decisions,
    Estimate,
    Explained,
    Honesty,
    Row,
    Similarity,
)
from .honesty import HonestyCheck, judge

_Values = dict[str, list[Tensor]]  # a tensor (B,) for each batch
_Floats = NDArray[np.float64]
_SSIM_WINDOW = 7


def benchmark(
    clean: nn.Module,
    fooled: nn.Module,
    explainers: Mapping[str, MakeCAM],
    loader: Iterable[Any],
    *,
    mask: Tensor | None = None,
    honesty: bool | HonestyCheck = False,
    classes: Explained = "decisions",
    fooling_loss: FoolingLoss = location_loss,
    fooling_range: tuple[float, float] = (0.0, 0.2),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> BenchmarkResult:
    """Measure which explainers show something else after a model was changed, and what that cost in decisions.

    Both models explain the same class of an image. Each runs once a batch, whatever the number of explainers. Maps are
    compared at the resolution of the layer and dropped; what is kept is one number for each image and metric.

    The models are left as they are. One that is in training mode, or has a part that is, is compared as a copy in
    evaluation mode, since that is how models are explained; then the explainers get the copy.

    Args:
        clean: The model before: a softmax classifier.
        fooled: The model after, with the same classes.
        explainers: By name, functions that make a CAM of the model they are given, as
            ``{"GradCAM": lambda model: GradCAM(model, "layer4")}``. Each is called for both models, so layers go by
            dotted name. All explainers read the same layers, through the same ``output`` and ``reshape_transform``.
        loader: Batches of images, or of ``(images, labels, ...)`` in all of them. Images are moved to the models.
        mask: The hoax that the attack aimed at, at the size of the maps; by default there is none to compare with.
        honesty: Measure too whether each map says what its model relies on, so that a map that lies is told from a
            model that has changed: True, or a :class:`HonestyCheck` with other options. It needs images of at least
            7 x 7 pixels; an image costs each model 51 forward passes, and 16 forward and backward.
        classes: Which class to explain: the clean model's ``"decisions"``, or the ``"labels"``.
        fooling_loss: The loss to the hoax that the Fooling Success Rate counts, see :mod:`diffgradcam.sham`: called
            with the maps as the explainer gives them, rectified by default.
        fooling_range: The losses that count as a success, both ends included. The default belongs to
            ``location_loss``; it is what we remember of Heo et al. and is unverified, as are [0, 0.3] for Top-k and
            [0.1, 1] for Centre-mass (whose loss has the opposite sign and another unit here). State it with the rate.
        confidence: Level of the bootstrap intervals over the images, between 0 and 1.
        resamples: Number of resamples; 0 for no intervals, where you take them over seeds, say.
        seed: Seed of the resampling.
        progress: Show a progress bar.

    Returns:
        See :class:`BenchmarkResult`.

    Raises:
        ValueError: If there are no explainers or no images, the models have different classes or maps, explainers
            cannot share a forward pass, the mask is constant or of another size, labels come with some batches only,
            or an option is out of range; otherwise as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: If an explainer is not a function that makes a CAM, or a batch is something else.
        ImportError: If SciPy is not installed.

    Reference:
        Whether the map lied or the model changed is asked in "Beyond Fooling", OpenReview RVKG35s2Dm, 2026; how it is
        measured here is ours. Fooling Success Rate: Heo, Joo, Moon, "Fooling Neural Network Interpretations via
        Adversarial Model Manipulation", NeurIPS 2019.

    Example:
        >>> from diffgradcam import DiffGradCAM, GradCAM
        >>> from diffgradcam.sham import border_mask, common_mode_hoax
        >>> _ = torch.manual_seed(0)  # an untrained model; how far it is fooled depends on its weights
        >>> clean = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        >>> images, mask = torch.rand(16, 3, 9, 9), border_mask((7, 7), cells=28)
        >>> fooled = common_mode_hoax(clean, "1", images, mask)
        >>> explainers = {"GradCAM": lambda model: GradCAM(model, "1"), "Diff": lambda model: DiffGradCAM(model, "1")}
        >>> result = benchmark(clean.eval(), fooled.eval(), explainers, [images], mask=mask, progress=False)
        >>> result["Diff"].kept.pearson.mean > 0.999, result["GradCAM"].kept.pearson.mean < 0.9
        (True, True)
        >>> result.decisions.agreement.mean
        1.0
    """
    import_optional("scipy.stats", "benchmark()")  # for the intervals: said before the models run, not after
    _check_options(mask, classes, fooling_range, confidence, resamples, seed)
    check = _check_of(honesty)
    check_loader(loader)
    for which, model in (("clean", clean), ("fooled", fooled)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"the {which} model is {type(model).__name__}; expected a torch.nn.Module")
    models = {"clean": evaluated(clean), "fooled": evaluated(fooled)}
    cams = {which: _cams(explainers, model, which) for which, model in models.items()}
    decided: _Values = defaultdict(list)
    seen: dict[str, _Values] = {name: defaultdict(list) for name in explainers}
    for batch in tqdm(loader, desc="benchmark", disable=not progress):
        images, labels = read_batch(batch)
        _check_labels(labels, classes, decided)
        before = _explain(cams, "clean", images, labels if classes == "labels" else None)
        after = _explain(cams, "fooled", images, before[0].classes)
        _keep(decided, _decision_values(before[0].logits, after[0].logits, labels))
        relied_on = None if check is None else _behaviours(check, cams, images, before[0].classes)
        if relied_on is not None:
            _keep(decided, _agreement_values("behaviour_kept", behaviour_kept(*relied_on)))
        for (name, kept), old, new in zip(seen.items(), before, after, strict=True):
            old_maps, new_maps = old.maps, new.maps.to(old.maps)
            _check_sizes(name, old_maps, new_maps, mask)
            _keep(kept, _map_values(old_maps, new_maps))
            if relied_on is not None:
                _keep(kept, _honesty_values(old_maps, new_maps, *relied_on))
            if mask is not None:
                _keep(kept, _hoax_values(old_maps, new_maps, mask.to(old_maps), fooling_loss, fooling_range))
    if not decided:
        raise ValueError("loader is empty; expected at least one batch of images (a generator can be read only once)")

    def estimates(kept: _Values) -> dict[str, Estimate]:
        return {name: _estimate(torch.cat(parts).numpy(), confidence, resamples, seed) for name, parts in kept.items()}

    measured = estimates(decided)
    decisions = Decisions(
        accuracy_before=measured.get("accuracy_before"),
        accuracy_after=measured.get("accuracy_after"),
        agreement=measured["agreement"],
        kl=measured["kl"],
    )
    of_explainers = {name: estimates(kept) for name, kept in seen.items()}
    rows = [_row(name, of) for name, of in of_explainers.items()]
    behaviour_estimate = None
    if check is not None:
        behaviour_estimate = _agreement("behaviour_kept", measured)
        rows = [_judged(check, row, of_explainers[row.explainer], decisions, behaviour_estimate) for row in rows]
    return BenchmarkResult(
        rows=rows,
        decisions=decisions,
        images=decisions.agreement.n,
        classes=classes,
        fooling_range=fooling_range,
        confidence=confidence,
        behaviour_kept=behaviour_estimate,
    )


def _cams(explainers: Mapping[str, MakeCAM], model: nn.Module, which: str) -> list[BaseCAM]:
    how = '{"GradCAM": lambda model: GradCAM(model, "layer4"), ...}'
    if not isinstance(explainers, Mapping):
        raise TypeError(f"explainers is {type(explainers).__name__}; expected a dictionary, such as {how}")
    if not explainers:
        raise ValueError(f"explainers is empty; expected at least one, such as {how}")
    cams = []
    for name, make in explainers.items():
        check_makes_cams(f"explainers[{name!r}]", make)
        cam = make(model)
        if not isinstance(cam, BaseCAM):
            raise TypeError(f"explainers[{name!r}] made a {type(cam).__name__} of the {which} model; expected a CAM")
        if inner_model(cam.model) is not inner_model(model):
            raise ValueError(
                f"explainers[{name!r}] made a CAM of another model; expected one of the {which} model that it is "
                f"given; use its argument, as in {how}"
            )
        cams.append(cam)
    return cams


def _explain(
    cams: Mapping[str, list[BaseCAM]], which: str, images: Tensor, classes: Tensor | None
) -> list[Explanation]:
    device = next(cams[which][0].model.parameters(), images).device
    try:
        return explain_together(cams[which], images.to(device), classes)
    except ValueError as error:
        raise ValueError(f"of the {which} model: {error}") from error  # there are two that it may be about


def _keep(kept: _Values, values: Mapping[str, Tensor]) -> None:
    for name, per_image in values.items():
        kept[name].append(per_image.cpu().double())  # not every device has float64


def _decision_values(before: Tensor, after: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    if before.shape[1] != after.shape[1]:
        raise ValueError(
            f"the clean model has {before.shape[1]} classes and the fooled one {after.shape[1]}; expected the same"
        )
    after = after.to(before.device)
    kept = decisions_kept(before, after)
    values = {"agreement": kept.agreement, "kl": kept.kl}
    if labels is not None:
        index = class_index(before, labels)
        values["accuracy_before"] = before.argmax(1) == index
        values["accuracy_after"] = after.argmax(1) == index
    return values


def _behaviours(
    check: HonestyCheck, cams: Mapping[str, list[BaseCAM]], images: Tensor, classes: Tensor
) -> tuple[Behaviour, Behaviour]:
    """What each model relies on for the classes that both explain."""

    def of(which: str) -> Behaviour:
        first = cams[which][0]
        device = next(first.model.parameters(), images).device
        evaluator = Evaluator(first.model, score=check.score, output=first.output, batch_size=check.batch_size)
        there = images.to(device), classes.to(device)
        return behaviour(evaluator, *there, grid=check.grid, steps=check.steps, progress=False)

    return of("clean"), of("fooled")


def _honesty_values(old_maps: Tensor, new_maps: Tensor, before: Behaviour, after: Behaviour) -> dict[str, Tensor]:
    old, new = agreement_with(old_maps, before), agreement_with(new_maps, after)
    return {
        **_agreement_values("honest_before", old),
        **_agreement_values("honest_after", new),
        "honesty_lost": old.both - new.both.to(old.both),
    }


def _agreement_values(name: str, agreement: Agreement) -> dict[str, Tensor]:
    return {
        f"{name}_both": agreement.both,
        f"{name}_occlusion": agreement.occlusion,
        f"{name}_integrated_gradients": agreement.integrated_gradients,
    }


def _agreement(name: str, estimates: Mapping[str, Estimate]) -> AgreementEstimate:
    return AgreementEstimate(
        both=estimates[f"{name}_both"],
        occlusion=estimates[f"{name}_occlusion"],
        integrated_gradients=estimates[f"{name}_integrated_gradients"],
    )


def _judged(
    check: HonestyCheck, row: Row, estimates: Mapping[str, Estimate], decisions: Decisions, behaved: AgreementEstimate
) -> Row:
    lost = estimates["honesty_lost"]
    verdict = judge(decisions, behaved.both, row.kept.pearson, lost, check)
    before, after = _agreement("honest_before", estimates), _agreement("honest_after", estimates)
    return replace(row, honesty=Honesty(before, after, lost, verdict))


def _map_values(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    constant = {"before": _constant(before), "after": _constant(after)}
    values = {f"kept_{name}": _where(~constant["before"], v) for name, v in _similarity(after, before).items()}
    for when, maps in (("before", before), ("after", after)):
        values[f"entropy_{when}"] = _where(~constant[when], cam_entropy(maps))
        values[f"constant_{when}"] = constant[when]
    return values


def _hoax_values(
    before: Tensor, after: Tensor, mask: Tensor, loss: FoolingLoss, accepted: tuple[float, float]
) -> dict[str, Tensor]:
    values = {}
    for when, maps, success in (("before", before, "fooling_success_before"), ("after", after, "fooling_success")):
        for name, similarity in _similarity(maps, mask.expand_as(maps)).items():
            values[f"reached_{when}_{name}"] = similarity
        losses = loss(maps, before, mask)
        if losses.shape != maps.shape[:1]:
            raise ValueError(
                f"fooling_loss returned shape {tuple(losses.shape)} for {len(maps)} maps; expected a value for each"
            )
        values[success] = (losses >= accepted[0]) & (losses <= accepted[1])
    return values


def _similarity(maps: Tensor, reference: Tensor) -> dict[str, Tensor]:
    scaled, target = minmax(maps), minmax(reference)
    side = min(_SSIM_WINDOW, *maps.shape[1:])
    window = side - (side + 1) % 2  # odd
    undefined = maps.ndim != 3 or window < 3
    return {
        "pearson": pearson(maps, reference),
        "spearman": spearman(maps, reference),
        "ssim": scaled.new_full((len(maps),), math.nan) if undefined else ssim(scaled, target, window),
        "cosine": cosine(maps, reference),
        "rmse": rmse(scaled, target),
        "iou": iou_at_matched_area(maps, target > 0.5),
    }


def _constant(maps: Tensor) -> Tensor:
    return maps.flatten(1).amax(1) == maps.flatten(1).amin(1)


def _where(defined: Tensor, values: Tensor) -> Tensor:
    return torch.where(defined, values, math.nan)


def _estimate(values: _Floats, confidence: float, resamples: int, seed: int) -> Estimate:
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else math.nan
    if len(values) < 2 or not resamples:
        return Estimate(mean, math.nan, math.nan, len(values))
    # The batch bounds the memory for many images.
    low, high = bootstrap([values], np.mean, confidence, resamples, "percentile", seed, batch=100)
    return Estimate(mean, low, high, len(values))


def _row(explainer: str, estimates: Mapping[str, Estimate]) -> Row:
    def similarity(to: str) -> Similarity:
        return Similarity(**{name: estimates[f"{to}_{name}"] for name in METRICS})

    masked = "fooling_success" in estimates
    return Row(
        explainer=explainer,
        kept=similarity("kept"),
        reached_before=similarity("reached_before") if masked else None,
        reached_after=similarity("reached_after") if masked else None,
        fooling_success_before=estimates.get("fooling_success_before"),
        fooling_success=estimates.get("fooling_success"),
        entropy_before=estimates["entropy_before"],
        entropy_after=estimates["entropy_after"],
        constant_before=estimates["constant_before"],
        constant_after=estimates["constant_after"],
    )


def _check_of(honesty: bool | HonestyCheck) -> HonestyCheck | None:
    if isinstance(honesty, HonestyCheck):
        return honesty
    if not isinstance(honesty, bool):
        raise TypeError(f"honesty is {type(honesty).__name__}; expected True, False or a HonestyCheck")
    return HonestyCheck() if honesty else None


def _check_options(
    mask: Tensor | None,
    classes: str,
    fooling_range: tuple[float, float],
    confidence: float,
    resamples: int,
    seed: int,
) -> None:
    if mask is not None:
        check_mask_varies(mask)
    check_choice("classes", classes, get_args(Explained))
    if len(fooling_range) != 2 or not fooling_range[0] <= fooling_range[1]:
        raise ValueError(f"fooling_range is {fooling_range}; expected the lowest and the highest loss, as (0.0, 0.2)")
    check_confidence(confidence)
    if resamples < 0:
        raise ValueError(f"resamples is {resamples}; expected 0 (no intervals) or more, 1000 to rely on")
    check_seed(seed)


def _check_labels(labels: Tensor | None, classes: str, decided: _Values) -> None:
    if labels is None and classes == "labels":
        raise ValueError("classes is 'labels', but a batch has none; expected batches of (images, labels)")
    if decided and (labels is not None) != ("accuracy_before" in decided):
        raise ValueError("some batches have labels and some have none; expected (images, labels) in all or in none")
    if labels is not None and labels.ndim != 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected one class for each image, (B,)")


def _check_sizes(explainer: str, before: Tensor, after: Tensor, mask: Tensor | None) -> None:
    size = tuple(before.shape[1:])
    if after.shape != before.shape:
        raise ValueError(
            f"{explainer!r} gives maps of size {size} for the clean model and {tuple(after.shape[1:])} for the fooled "
            "one; expected the same layer of the same architecture"
        )
    if mask is not None:
        check_mask_size(mask, size, f"the maps of {explainer!r}")
