"""COMPARE: which explainers a changed model fools. Two models, any number of explainers, one table.

A benchmark is of *one* attack: what withstands a common-mode hoax may fall to one that aims at it. Name the attack
wherever a number from here is shown.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .batches import read_batch
from .engine import BaseCAM
from .layers import inner_model
from .losses import cam_entropy
from .maps import minmax
from .metrics import cosine, iou_at_matched_area, pearson, rmse, spearman, ssim
from .outputs import class_index
from .passes import Explanation
from .sham import FoolingLoss, location_loss
from .surgery import copy_model
from .together import explain_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Explainer = Callable[[nn.Module], BaseCAM]
Explained = Literal["decisions", "labels"]

_Figures = dict[str, list[Tensor]]  # a tensor (B,) for each batch
_Floats = NDArray[np.float64]
_SSIM_WINDOW = 7
_MEASURES = {  # the fields of Similarity, as tables show them
    "pearson": "Pearson",
    "spearman": "Spearman",
    "ssim": "SSIM",
    "cosine": "cosine",
    "rmse": "RMSE",
    "iou": "IoU",
}
_WORDS = {"decisions": "clean model's decision", "labels": "label"}


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its bootstrap interval.

    Attributes:
        mean: NaN where the figure is defined for no image.
        low: Lower end of the interval; NaN for fewer than two images, and without resamples.
        high: Upper end.
        n: For how many images the figure is defined.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Similarity:
    """How much maps look like reference maps.

    Attributes:
        pearson: Correlation over positions, in [-1, 1].
        spearman: Rank correlation, in [-1, 1].
        ssim: Structural similarity of the min-max scaled maps, in [-1, 1]. Its window is 7, or the largest odd side
            that fits; undefined for maps with other than two dimensions or a side of less than 3.
        cosine: In [-1, 1].
        rmse: Root mean squared difference of the min-max scaled maps, in [0, 1].
        iou: Of the positions where the min-max scaled reference is above 0.5, and as many of the map's highest, [0, 1].
    """

    pearson: Estimate
    spearman: Estimate
    ssim: Estimate
    cosine: Estimate
    rmse: Estimate
    iou: Estimate


@dataclass(frozen=True)
class Row:
    """What became of one explainer's maps.

    Attributes:
        explainer: Its name.
        kept: Similarity of the fooled model's map to the clean model's, over images whose clean map is not constant.
        reached_before: Similarity of the clean model's map to the hoax; None without ``mask``.
        reached_after: The same of the fooled model's.
        fooling_success_before: Share of images whose clean map has a fooling loss in the range, which no attack has
            earned; None without ``mask``.
        fooling_success: Fooling Success Rate: the same share for the fooled model's maps.
        entropy_before: CAM entropy (:func:`diffgradcam.losses.cam_entropy`) of the clean model's maps, in nats, over
            maps that are not constant.
        entropy_after: The same of the fooled model's.
        constant_before: Share of the clean model's maps that are constant: they show nothing.
        constant_after: The same of the fooled model's.
    """

    explainer: str
    kept: Similarity
    reached_before: Similarity | None
    reached_after: Similarity | None
    fooling_success_before: Estimate | None
    fooling_success: Estimate | None
    entropy_before: Estimate
    entropy_after: Estimate
    constant_before: Estimate
    constant_after: Estimate


@dataclass(frozen=True)
class Decisions:
    """What became of the decisions.

    Attributes:
        accuracy_before: Of the clean model; None if the loader gives no labels.
        accuracy_after: Of the fooled model.
        agreement: Share of images that both decide alike.
        kl: Kullback-Leibler divergence of the fooled model's probabilities from the clean model's, in nats.
    """

    accuracy_before: Estimate | None
    accuracy_after: Estimate | None
    agreement: Estimate
    kl: Estimate


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark measured, and how.

    Attributes:
        rows: One for each explainer, in the order given.
        decisions: Of the two models.
        images: How many images were compared.
        classes: Which classes were explained: the clean model's ``"decisions"``, or the ``"labels"``.
        fooling_range: The range of losses that count as a success.
        confidence: Level of the intervals.
    """

    rows: list[Row]
    decisions: Decisions
    images: int
    classes: str
    fooling_range: tuple[float, float]
    confidence: float

    def __getitem__(self, explainer: str) -> Row:
        """The row of an explainer."""
        for row in self.rows:
            if row.explainer == explainer:
                return row
        raise KeyError(f"{explainer!r} was not compared; expected one of {[row.explainer for row in self.rows]}")

    def to_markdown(self) -> str:
        """Tables in Markdown: decisions, similarity to the clean maps and, with a mask, to the hoax."""
        sections = [
            f"{self.images} images; maps of the {_WORDS[self.classes]}; mean "
            f"[{self.confidence:.0%} bootstrap interval].",
            _table(
                ["decisions", "before", "after"],
                [
                    ["accuracy", _shown(self.decisions.accuracy_before), _shown(self.decisions.accuracy_after)],
                    ["agreement", "", _shown(self.decisions.agreement)],
                    ["KL divergence, nats", "", _shown(self.decisions.kl)],
                ],
            ),
            "Similarity of each map to the clean model's own:",
            _table(
                ["explainer", *_MEASURES.values(), "entropy before, nats", "entropy after, nats", "constant maps"],
                [
                    [
                        _escaped(row.explainer),
                        *(_shown(getattr(row.kept, name)) for name in _MEASURES),
                        _shown(row.entropy_before),
                        _shown(row.entropy_after),
                        f"{row.constant_before.mean:.1%} → {row.constant_after.mean:.1%}",
                    ]
                    for row in self.rows
                ],
            ),
        ]
        if any(row.reached_after is not None for row in self.rows):
            low, high = self.fooling_range
            success = f"fooling success (loss in [{low:g}, {high:g}])"
            sections += [
                "Similarity of each map to the hoax, before → after:",
                _table(
                    ["explainer", *_MEASURES.values(), success],
                    [
                        [
                            _escaped(row.explainer),
                            *(
                                _change(getattr(row.reached_before, name), getattr(row.reached_after, name))
                                for name in _MEASURES
                            ),
                            _change(row.fooling_success_before, row.fooling_success),
                        ]
                        for row in self.rows
                    ],
                ),
            ]
        return "\n\n".join(sections) + "\n"

    def to_json(self) -> str:
        """All of the result as JSON, NaN as null."""
        return json.dumps(_without_nan(asdict(self)), indent=2, allow_nan=False)

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each explainer.

        Columns are the attributes of :class:`.robustness.Row`: ``kept_pearson``, ``kept_pearson_low``,
        ``kept_pearson_high`` and ``kept_pearson_n``, for instance; what was not measured has none. The decisions are
        not in it.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ImportError("to_dataframe() needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame([_columns(asdict(row)) for row in self.rows])

    def figure(self) -> Figure:
        """Pearson's r with the clean map and, with a mask, with the hoax before and after; bars are the intervals.

        Returns:
            A figure; write it with ``result.figure().savefig(path)``.
        """
        from matplotlib.figure import Figure  # not at the top: it takes longer than the rest of the package

        masked = all(row.reached_after is not None for row in self.rows)
        figure = Figure(figsize=(4.5 * (1 + masked) + 1.5, 1.5 + 0.35 * len(self.rows)), layout="constrained")
        axes = figure.subplots(1, 1 + masked, sharey=True, squeeze=False)[0]
        _draw(axes[0], [row.kept.pearson for row in self.rows], "C0", "after")
        axes[0].set_xlabel("Pearson's r with the clean model's map")
        if masked:
            for name, colour in (("before", "C7"), ("after", "C3")):
                reached = [getattr(row, f"reached_{name}").pearson for row in self.rows]
                _draw(axes[1], reached, colour, name)
            axes[1].set_xlabel("Pearson's r with the hoax")
            axes[1].legend(frameon=False)
        axes[0].set_yticks(range(len(self.rows)), [row.explainer for row in self.rows])
        axes[0].invert_yaxis()
        for axis in axes:
            axis.set_xlim(-1.05, 1.05)
            axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        decisions = self.decisions
        figure.suptitle(
            f"{self.images} images: {decisions.agreement.mean:.1%} decided alike, KL {decisions.kl.mean:.2g} nats",
            fontsize=10,
        )
        return figure


def benchmark(
    clean: nn.Module,
    fooled: nn.Module,
    explainers: Mapping[str, Explainer],
    loader: Iterable[Any],
    *,
    mask: Tensor | None = None,
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
    compared at the resolution of the layer and dropped; what is kept is a number for each image and figure.

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
        TypeError: If an explainer is no function that makes a CAM, or a batch is something else.
        ImportError: If SciPy is not installed.

    Reference:
        Fooling Success Rate: Heo, Joo, Moon, "Fooling Neural Network Interpretations via Adversarial Model
        Manipulation", NeurIPS 2019.

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
    stats = _scipy_stats()
    _check_options(mask, classes, fooling_range, confidence, resamples)
    if isinstance(loader, Tensor):
        raise TypeError("loader is a tensor; expected batches of images: a DataLoader, or a list such as [images]")
    models = {"clean": _evaluated("clean", clean), "fooled": _evaluated("fooled", fooled)}
    cams = {which: _cams(explainers, model, which) for which, model in models.items()}
    decided: _Figures = defaultdict(list)
    seen: dict[str, _Figures] = {name: defaultdict(list) for name in explainers}
    for batch in tqdm(loader, desc="benchmark", disable=not progress):
        images, labels = read_batch(batch)
        _check_labels(labels, classes, decided)
        before = _explain(cams, "clean", images, labels if classes == "labels" else None)
        after = _explain(cams, "fooled", images, before[0].classes)
        _keep(decided, _decision_figures(before[0].logits, after[0].logits, labels))
        for (name, figures), old, new in zip(seen.items(), before, after, strict=True):
            old_maps, new_maps = old.maps, new.maps.to(old.maps)
            _check_sizes(name, old_maps, new_maps, mask)
            _keep(figures, _map_figures(old_maps, new_maps))
            if mask is not None:
                _keep(figures, _hoax_figures(old_maps, new_maps, mask.to(old_maps), fooling_loss, fooling_range))
    if not decided:
        raise ValueError("loader is empty; expected at least one batch of images (a generator can be read only once)")

    def estimates(figures: _Figures) -> dict[str, Estimate]:
        return {
            name: _estimate(stats, torch.cat(values).numpy(), confidence, resamples, seed)
            for name, values in figures.items()
        }

    decisions = estimates(decided)
    return BenchmarkResult(
        rows=[_row(name, estimates(figures)) for name, figures in seen.items()],
        decisions=Decisions(
            accuracy_before=decisions.get("accuracy_before"),
            accuracy_after=decisions.get("accuracy_after"),
            agreement=decisions["agreement"],
            kl=decisions["kl"],
        ),
        images=decisions["agreement"].n,
        classes=classes,
        fooling_range=fooling_range,
        confidence=confidence,
    )


def _evaluated(which: str, model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the {which} model is {type(model).__name__}; expected a torch.nn.Module")
    return copy_model(model).eval() if any(module.training for module in model.modules()) else model


def _cams(explainers: Mapping[str, Explainer], model: nn.Module, which: str) -> list[BaseCAM]:
    how = '{"GradCAM": lambda model: GradCAM(model, "layer4"), ...}'
    if not isinstance(explainers, Mapping):
        raise TypeError(f"explainers is {type(explainers).__name__}; expected a dictionary, such as {how}")
    if not explainers:
        raise ValueError(f"explainers is empty; expected at least one, such as {how}")
    cams = []
    for name, make in explainers.items():
        # A CAM and a CAM class can be called too, but neither of them with a model alone.
        if not callable(make) or isinstance(make, BaseCAM | type):
            what = f"the class {make.__name__}" if isinstance(make, type) else f"a {type(make).__name__}"
            raise TypeError(
                f"explainers[{name!r}] is {what}; expected a function that makes a CAM of the model it is given, "
                f"since there are two models, such as {how}"
            )
        cam = make(model)
        if not isinstance(cam, BaseCAM):
            raise TypeError(f"explainers[{name!r}] made a {type(cam).__name__} of the {which} model; expected a CAM")
        if inner_model(cam.model) is not inner_model(model):
            raise ValueError(
                f"explainers[{name!r}] made a CAM of another model than the {which} one it was given; use its "
                f"argument, as in {how}"
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


def _keep(figures: _Figures, values: Mapping[str, Tensor]) -> None:
    for name, per_image in values.items():
        figures[name].append(per_image.double().cpu())


def _decision_figures(before: Tensor, after: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    if before.shape[1] != after.shape[1]:
        raise ValueError(
            f"the clean model has {before.shape[1]} classes and the fooled one {after.shape[1]}; expected the same"
        )
    after = after.to(before.device)
    old, new = (logits.double().log_softmax(1) for logits in (before, after))
    figures = {
        "agreement": before.argmax(1) == after.argmax(1),
        "kl": F.kl_div(new, old, reduction="none", log_target=True).sum(1),
    }
    if labels is not None:
        index = class_index(before, labels)
        figures["accuracy_before"] = before.argmax(1) == index
        figures["accuracy_after"] = after.argmax(1) == index
    return figures


def _map_figures(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    constant = {"before": _constant(before), "after": _constant(after)}
    figures = {f"kept_{name}": _where(~constant["before"], v) for name, v in _similarity(after, before).items()}
    for when, maps in (("before", before), ("after", after)):
        figures[f"entropy_{when}"] = _where(~constant[when], cam_entropy(maps))
        figures[f"constant_{when}"] = constant[when]
    return figures


def _hoax_figures(
    before: Tensor, after: Tensor, mask: Tensor, loss: FoolingLoss, accepted: tuple[float, float]
) -> dict[str, Tensor]:
    figures = {}
    for when, maps, success in (("before", before, "fooling_success_before"), ("after", after, "fooling_success")):
        for name, values in _similarity(maps, mask.expand_as(maps)).items():
            figures[f"reached_{when}_{name}"] = values
        losses = loss(maps, before, mask)
        if losses.shape != maps.shape[:1]:
            raise ValueError(
                f"fooling_loss returned shape {tuple(losses.shape)} for {len(maps)} maps; expected a value for each"
            )
        figures[success] = (losses >= accepted[0]) & (losses <= accepted[1])
    return figures


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


def _estimate(stats: Any, values: _Floats, confidence: float, resamples: int, seed: int) -> Estimate:
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else math.nan
    if len(values) < 2 or not resamples:
        return Estimate(mean, math.nan, math.nan, len(values))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=100,  # bounds the memory for many images
        confidence_level=confidence,
        method="percentile",
        # `random_state`, not `rng`: SciPy accepts it in every version since bootstrap exists.
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(values))


def _row(explainer: str, figures: Mapping[str, Estimate]) -> Row:
    def similarity(to: str) -> Similarity:
        return Similarity(**{name: figures[f"{to}_{name}"] for name in _MEASURES})

    masked = "fooling_success" in figures
    return Row(
        explainer=explainer,
        kept=similarity("kept"),
        reached_before=similarity("reached_before") if masked else None,
        reached_after=similarity("reached_after") if masked else None,
        fooling_success_before=figures.get("fooling_success_before"),
        fooling_success=figures.get("fooling_success"),
        entropy_before=figures["entropy_before"],
        entropy_after=figures["entropy_after"],
        constant_before=figures["constant_before"],
        constant_after=figures["constant_after"],
    )


def _check_options(
    mask: Tensor | None, classes: str, fooling_range: tuple[float, float], confidence: float, resamples: int
) -> None:
    if mask is not None and not bool(_constant(mask.unsqueeze(0)).logical_not() & mask.isfinite().all()):
        raise ValueError(f"the mask of size {tuple(mask.shape)} is constant or not finite: nothing can look like it")
    if classes not in get_args(Explained):
        raise ValueError(f"classes is {classes!r}; expected one of {', '.join(map(repr, get_args(Explained)))}")
    if len(fooling_range) != 2 or not fooling_range[0] <= fooling_range[1]:
        raise ValueError(f"fooling_range is {fooling_range}; expected the lowest and the highest loss, as (0.0, 0.2)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a level between 0 and 1, such as 0.95")
    if resamples < 0:
        raise ValueError(f"resamples is {resamples}; expected 0 (no intervals) or more, 1000 to rely on")


def _check_labels(labels: Tensor | None, classes: str, decided: _Figures) -> None:
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
    if mask is not None and tuple(mask.shape) != size:
        raise ValueError(
            f"the mask has size {tuple(mask.shape)}, but the maps of {explainer!r} {size}: make it of that size, such "
            f"as border_mask({size}, cells=...)"
        )


def _scipy_stats() -> Any:
    try:
        return import_module("scipy.stats")
    except ImportError as error:
        raise ImportError(
            "benchmark() needs SciPy for its intervals, which is not installed: pip install diffgradcam[metrics]"
        ) from error


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(name: str) -> str:
    return name.replace("|", "\\|")


def _shown(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.n:
        return "n/a"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.mean:.3g}{interval}"


def _change(before: Estimate | None, after: Estimate | None) -> str:
    if before is None or not before.n:
        return "n/a"
    return f"{before.mean:.3g} → {_shown(after)}"


def _columns(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested row, flat: the mean of an estimate goes by the estimate's name."""
    columns: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            columns |= _columns(value, f"{prefix}{name}_")
        elif value is not None:
            columns[prefix.removesuffix("_") if name == "mean" else f"{prefix}{name}"] = value
    return columns


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _draw(axis: Any, estimates: Sequence[Estimate], colour: str, label: str) -> None:
    means = np.array([estimate.mean for estimate in estimates])
    reach = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).T.clip(0)  # a resample may round past
    axis.errorbar(means, range(len(means)), xerr=reach, fmt="o", color=colour, label=label, capsize=3, markersize=5)
