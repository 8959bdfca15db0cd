"""The result of a benchmark, as tables in Markdown, JSON, a data frame or a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._core.display import Panel, Sheet, Shown, Table, counted, printed
from .._core.optional import import_optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Explained = Literal["decisions", "labels"]

METRICS = {  # the fields of Similarity, as tables show them
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
        mean: NaN where the metric is defined for no image.
        low: Lower end of the interval; NaN for fewer than two images, and without resamples.
        high: Upper end.
        n: For how many images the metric is defined.
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
class AgreementEstimate:
    """Pearson's r with what a model relies on, by occlusion and by integrated gradients.

    Attributes:
        both: The mean of the two, in [-1, 1].
        occlusion: With occlusion.
        integrated_gradients: With integrated gradients.
    """

    both: Estimate
    occlusion: Estimate
    integrated_gradients: Estimate


@dataclass(frozen=True)
class Honesty:
    """Whether an explainer says what the model relies on, before and after it was changed.

    Attributes:
        before: Agreement of the clean model's map with the clean model's behaviour.
        after: Agreement of the fooled model's map with the fooled model's behaviour.
        lost: Mean over the images of ``before.both - after.both``.
        verdict: ``"lie"``, ``"change"``, ``"unmoved"`` or ``"unclear"``, see :func:`.robustness.judge`.
    """

    before: AgreementEstimate
    after: AgreementEstimate
    lost: Estimate
    verdict: str


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
        honesty: Whether the maps say what the models rely on; None without ``honesty``.
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
    honesty: Honesty | None = None


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
class BenchmarkResult(Shown):
    """What a benchmark measured, and how.

    In a notebook it shows its figure and its tables; printed, one line for each explainer.

    Attributes:
        rows: One for each explainer, in the order given.
        decisions: Of the two models.
        images: How many images were compared.
        classes: Which classes were explained: the clean model's ``"decisions"``, or the ``"labels"``.
        fooling_range: The range of losses that count as a success.
        confidence: Level of the intervals.
        behaviour_kept: How much the fooled model relies on what the clean one relies on; None without ``honesty``.
    """

    rows: list[Row]
    decisions: Decisions
    images: int
    classes: str
    fooling_range: tuple[float, float]
    confidence: float
    behaviour_kept: AgreementEstimate | None = None

    def __getitem__(self, explainer: str) -> Row:
        """The row of an explainer."""
        for row in self.rows:
            if row.explainer == explainer:
                return row
        raise KeyError(f"{explainer!r} was not compared; expected one of {[row.explainer for row in self.rows]}")

    def __str__(self) -> str:
        """What became of the decisions and of each explainer's maps, in at most five lines."""
        lines = []
        for row in self.rows:
            said = f"{row.explainer}: r with the clean map {_shown(row.kept.pearson)}"
            if row.reached_before is not None and row.reached_after is not None:
                said += f", with the hoax {_change(row.reached_before.pearson, row.reached_after.pearson)}"
            lines.append(said if row.honesty is None else f"{said}; {row.honesty.verdict}")
        return printed(self._title(), lines, "explainers")

    def _sheet(self) -> Sheet:
        from ..visualize.sheets import pixels  # matplotlib

        picture = Panel("Pearson's r with the clean map, and with the hoax", pixels(self.plot()))
        return Sheet(self._title(), [[picture]], self._sections())

    def _title(self) -> str:
        decisions = self.decisions
        alike = f"{decisions.agreement.mean:.1%} decided alike, KL {decisions.kl.mean:.2g} nats"
        return f"{counted(self.images, 'image')}: {alike}"

    def to_markdown(self) -> str:
        """Tables in Markdown: decisions, similarity to the clean maps and, if measured, to the hoax and honesty."""
        sections = [_markdown(part) if isinstance(part, Table) else part for part in self._sections()]
        return "\n\n".join(sections) + "\n"

    def _sections(self) -> list[str | Table]:
        """What was measured, as sentences and tables."""
        sections: list[str | Table] = [
            f"{self.images} images; maps of the {_WORDS[self.classes]}; mean "
            f"[{self.confidence:.0%} bootstrap interval].",
            Table(
                ["decisions", "before", "after"],
                [
                    ["accuracy", _shown(self.decisions.accuracy_before), _shown(self.decisions.accuracy_after)],
                    ["agreement", "", _shown(self.decisions.agreement)],
                    ["KL divergence, nats", "", _shown(self.decisions.kl)],
                ],
            ),
            "Similarity of each map to the clean model's own:",
            Table(
                ["explainer", *METRICS.values(), "entropy before, nats", "entropy after, nats", "constant maps"],
                [
                    [
                        row.explainer,
                        *(_shown(getattr(row.kept, name)) for name in METRICS),
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
                Table(
                    ["explainer", *METRICS.values(), success],
                    [
                        [
                            row.explainer,
                            *(
                                _change(getattr(row.reached_before, name), getattr(row.reached_after, name))
                                for name in METRICS
                            ),
                            _change(row.fooling_success_before, row.fooling_success),
                        ]
                        for row in self.rows
                    ],
                ),
            ]
        if self.behaviour_kept is not None:
            kept = self.behaviour_kept
            sections += [
                f"Behaviour kept, r: {_shown(kept.both)} (occlusion {_shown(kept.occlusion)}, integrated gradients "
                f"{_shown(kept.integrated_gradients)}). Agreement of each map with what its own model relies on, "
                "before → after:",
                Table(
                    ["explainer", "occlusion", "integrated gradients", "honesty lost", "verdict"],
                    [
                        [
                            row.explainer,
                            _change(row.honesty.before.occlusion, row.honesty.after.occlusion),
                            _change(row.honesty.before.integrated_gradients, row.honesty.after.integrated_gradients),
                            _shown(row.honesty.lost),
                            row.honesty.verdict,
                        ]
                        for row in self.rows
                        if row.honesty is not None
                    ],
                ),
            ]
        return sections

    def to_json(self) -> str:
        """All of the result as JSON, NaN as null."""
        return json.dumps(_without_nan(asdict(self)), indent=2, allow_nan=False)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each explainer.

        Columns are the attributes of :class:`.robustness.Row`: ``kept_pearson``, ``kept_pearson_low``,
        ``kept_pearson_high`` and ``kept_pearson_n``, for instance; what was not measured has none. The decisions are
        not in it.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = import_optional("pandas", "to_pandas()")
        return pandas.DataFrame([_columns(asdict(row)) for row in self.rows])

    def plot(self) -> Figure:
        """Pearson's r with the clean map and, with a mask, with the hoax before and after; bars are the intervals.

        Returns:
            A figure; write it with ``result.plot().savefig(path)``.
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
        figure.suptitle(self._title(), fontsize=10)
        return figure


def _markdown(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


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
