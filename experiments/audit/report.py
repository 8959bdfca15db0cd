"""Write the pages and the figures: ``python -m experiments.audit.report``.

Reads the finished cells and writes to ``docs/results``: the answer (``audit.md`` with ``audit.png``) and all tables
(``audit_tables.md`` with ``audit_halves.png``). Thresholds are chosen on the calibration models alone; everything else
is measured on the test models, and separately on the real model. Versions of one clean model are dependent, so
intervals come from resampling clean models, each with its versions.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from diffgradcam import audit
from diffgradcam.metrics import auroc
from experiments.cells import read

from .run import RESULTS, SPLITS, attacks, planned
from .zoo import SEEN, Config

DOCS = Path(__file__).parents[2] / "docs" / "results"
WANTED = 0.98  # AUROC of the median share over at least this many models of each kind
WANTED_MODELS = 40
FOUND, MISSED = 0.95, 0.5  # shares of fooled models: what the page calls found, and missed
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # images of an audit
RESAMPLES = 300  # resamples of the models for an interval
SUBSAMPLES = 50  # draws of the images for a mean
HALVES = ("share", "agreement", "either")
_WHAT = {  # the attacks, as the page names them
    "clean": "clean, not fooled",
    "common mode 0.3": "one vector for all classes, strength 0.3",
    "common mode 1": "one vector for all classes, strength 1",
    "common mode 3": "one vector for all classes, strength 3",
    "common mode, trained": "one vector for all classes, trained",
    "roll": "features rolled by half the map",
    "flip": "features flipped",
    "trained on GradCAM": "fine-tuned to fool GradCAM",
    "trained on DiffGradCAM": "fine-tuned to fool DiffGradCAM",
}

Floats: TypeAlias = NDArray[np.float64]
Cell: TypeAlias = dict[str, Any]


class Thresholds(NamedTuple):
    """The audit reports a median share above the first, or a mean agreement below the second."""

    share: float
    agreement: float


class Version(NamedTuple):
    """One way of fooling (or none) over the models of a split; one row per model, one column per image.

    Attributes:
        share: Common-mode shares.
        gradcam: Agreement of GradCAM with occlusion.
        diffgradcam: Agreement of DiffGradCAM with occlusion.
        counts: Whether the model still decides well enough to be called fooled, and the audit did not refuse it.
        moved: Whether the map that the attack is about differs enough from the clean model's.
    """

    share: Floats
    gradcam: Floats
    diffgradcam: Floats
    counts: NDArray[np.bool_]
    moved: NDArray[np.bool_]

    def shares(self, images: Any = slice(None)) -> Floats:
        """The statistic of the first half: the median share of each model over some images."""
        return np.asarray(np.median(self.share[:, images], axis=1))

    def agreements(self, images: Any = slice(None)) -> Floats:
        """The statistic of the second half: the smaller of the two mean agreements."""
        return np.asarray(np.minimum(self.gradcam[:, images].mean(1), self.diffgradcam[:, images].mean(1)))

    def found(self, at: Thresholds, half: str, images: Any = slice(None)) -> NDArray[np.bool_]:
        """The models that are reported by the ``"share"``, the ``"agreement"`` or ``"either"``."""
        by = {"share": self.shares(images) > at.share, "agreement": self.agreements(images) < at.agreement}
        return by["share"] | by["agreement"] if half == "either" else by[half]


class Study(NamedTuple):
    """All finished cells.

    Attributes:
        config: The configuration of all cells.
        models: Small models that have learned, of the splits ``calibration`` and ``test``.
        left_out: Small models that have not learned, likewise.
        real: The real model, by number of classes.
        missing: Number of planned cells that do not exist yet.
    """

    config: Config
    models: dict[str, list[Cell]]
    left_out: dict[str, list[Cell]]
    real: list[Cell]
    missing: int

    def version(self, split: str, name: str) -> Version:
        """One way of fooling, or ``"clean"``, over the models of a split."""
        return _version(self.models[split], name, self.config)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of all ways of fooling."""
        return tuple(attacks(self.config))


def load(results: Path = RESULTS) -> Study:
    """Read the cells.

    Args:
        results: Folder of the cells.

    Returns:
        The study so far.

    Raises:
        ValueError: If cells have different configurations, or fewer than two models of a split have learned.
    """
    cells = read(results)
    small = {split: [cell for cell in cells if cell["split"] == split] for split in ("calibration", "test")}
    models = {split: [cell for cell in of if cell["versions"]] for split, of in small.items()}
    for split, of in models.items():
        if len(of) < 2:
            raise ValueError(
                f"{len(of)} {split} models have learned in {results}; expected at least two; "
                "run python -m experiments.audit.run"
            )
    config = Config(**{**cells[0]["config"], "strengths": tuple(cells[0]["config"]["strengths"])})
    real = sorted((c for c in cells if c["split"] == "lite0"), key=lambda cell: cell["design"]["classes"])
    return Study(
        config,
        models,
        {split: [cell for cell in of if not cell["versions"]] for split, of in small.items()},
        real,
        sum(planned(split, config) for split in SPLITS) - len(cells),
    )


def _version(models: Sequence[Cell], name: str, config: Config) -> Version:
    of = [cell["versions"][name] for cell in models]
    clean = [cell["versions"]["clean"] for cell in models]

    def column(key: str) -> Floats:
        return np.array([version[key] for version in of], dtype=float)

    victim = "diffgradcam_kept" if name == "trained on DiffGradCAM" else "gradcam_kept"
    lost = [
        0.0 if version["accuracy"] is None else before["accuracy"] - version["accuracy"]
        for before, version in zip(clean, of, strict=True)
    ]
    share = column("common_mode_share")  # NaN where the audit refused the model
    return Version(
        share,
        column("gradcam_agreement"),
        column("diffgradcam_agreement"),
        (np.array(lost) <= config.accuracy_loss + 1e-9) & np.isfinite(share).all(1),
        column(victim) < config.moved,
    )


# --- the thresholds --------------------------------------------------------------------------------------------------


def defaults() -> Thresholds:
    """The thresholds of the library."""
    parameters = inspect.signature(audit).parameters
    return Thresholds(parameters["threshold"].default, parameters["agreement_threshold"].default)


def choose(study: Study) -> Thresholds:
    """Thresholds from the calibration models alone, by rules that were written before the run.

    The share: midway, in its logarithm, between the highest of a clean model and the lowest of one with a common mode
    of strength 1. The agreement: where the share of clean models above it minus the share of fooled ones below it is
    largest, over all fooled versions whose map has moved; midway between the two neighbouring models.
    """
    clean = study.version("calibration", "clean")
    fooled = study.version("calibration", "common mode 1")
    share = float(np.sqrt(clean.shares().max() * fooled.shares()[fooled.counts].min()))
    versions = [study.version("calibration", name) for name in study.attacks]
    low = np.concatenate([version.agreements()[version.counts & version.moved] for version in versions])
    high = clean.agreements()
    values = np.unique(np.concatenate([low, high]))
    candidates = (values[1:] + values[:-1]) / 2
    gains = (high > candidates[:, None]).mean(1) + (low < candidates[:, None]).mean(1)
    return Thresholds(share, float(candidates[gains.argmax()]))


# --- figures with intervals ------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The value and its interval, with three decimals."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _area(fooled: Floats, clean: Floats, counts: NDArray[np.bool_], rows: Any = slice(None)) -> float:
    """How often a fooled model scores higher than a clean one, over some models."""
    scores, kept = clean[rows], fooled[rows][counts[rows]]
    if not len(kept):
        return float("nan")
    return auroc([0] * len(scores) + [1] * len(kept), np.concatenate([scores, kept]))


def _estimate(figure: Callable[[Any, np.random.Generator], float], models: int, draws: int = 1) -> Estimate:
    """The mean over draws (of images) with all models; the interval over resampled models, images drawn anew."""
    rng = np.random.default_rng(0)
    value = np.mean([figure(slice(None), rng) for _ in range(draws)])
    values = [figure(rng.integers(models, size=models), rng) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))


def share_auroc(clean: Version, fooled: Version) -> Estimate:
    """AUROC of the median share of all images."""
    shares, of_clean = fooled.shares(), clean.shares()
    return _estimate(lambda rows, _: _area(shares, of_clean, fooled.counts, rows), len(of_clean))


def agreement_auroc(clean: Version, fooled: Version, count: int) -> Estimate:
    """AUROC of the smaller mean agreement, over audits of ``count`` images."""
    available = clean.share.shape[1]

    def figure(rows: Any, rng: np.random.Generator) -> float:
        images = rng.permutation(available)[:count]
        return _area(-fooled.agreements(images), -clean.agreements(images), fooled.counts, rows)

    return _estimate(figure, len(clean.share), draws=1 if count >= available else SUBSAMPLES)


Curves: TypeAlias = dict[str, list[Estimate]]  # of each attack, by the number of images


def curves(study: Study) -> Curves:
    """AUROC of the agreement for each attack, by the numbers of images in :data:`COUNTS`, as far as there are any."""
    clean = study.version("test", "clean")
    versions = {name: study.version("test", name) for name in study.attacks}
    return {
        name: [agreement_auroc(clean, version, count) for count in _counts(study)]
        for name, version in versions.items()
        if version.counts.any()
    }


def rate(version: Version, at: Thresholds, count: int) -> float:
    """Share of models that an audit of ``count`` images reports, over draws of the images."""
    rng = np.random.default_rng(0)
    draws = [rng.permutation(version.share.shape[1])[:count] for _ in range(SUBSAMPLES)]
    return float(np.mean([version.found(at, "either", images)[version.counts] for images in draws]))


def _wilson(found: NDArray[np.bool_]) -> tuple[float, float]:
    low, high = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return float(low), float(high)


def _proportion(found: NDArray[np.bool_]) -> str:
    if not len(found):
        return "-"
    low, high = _wilson(found)
    return f"{found.mean():.2f} [{low:.2f}, {high:.2f}]"


# --- the page --------------------------------------------------------------------------------------------------------


def markdown(study: Study) -> str:
    """The page: the answer, one table, how it was done."""
    library = defaults()
    parts = [
        "# Does the audit tell clean checkpoints from fooled ones?",
        f"**Incomplete:** {study.missing} of the planned models are still missing." if study.missing else "",
        "![The share of models that the audit reports: few of the clean ones; nearly all that carry one strong vector "
        "for all classes or moved features; fewer of those fine-tuned to fool DiffGradCAM](audit.png)",
        *_answer(study, library),
        _lead_table(study, library),
        f"Models reported by each half of the audit and by the whole, with {study.config.images} images and the "
        f"default thresholds: a common-mode share above {library.share:g}, or agreement with occlusion below "
        f"{library.agreement:g}. *GradCAM's r*: Pearson's r of GradCAM with the clean model's, mean over models: "
        "where it is near 1, the attack has hardly changed the map, and there is little to find. [Intervals, other "
        "thresholds, fewer images, the real model](audit_tables.md).",
        "## How it was done",
        _setup(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(study: Study, library: Thresholds) -> list[str]:
    """Three sentences for a reader who stops there."""

    def reported(name: str, half: str = "either") -> NDArray[np.bool_]:
        version = study.version("test", name)
        return version.found(library, half)[version.counts]

    def of(found: NDArray[np.bool_]) -> str:
        return f"{found.sum()} of {len(found)}"

    clean, adaptive = reported("clean"), reported("trained on DiffGradCAM")
    found = [name for name in study.attacks if len(reported(name)) and reported(name).mean() >= FOUND]
    invisible = [n for n in study.attacks if len(reported(n)) and reported(n, "share").mean() < MISSED]
    images = study.config.images
    return [
        f"**With {images} images and the default thresholds, the audit reports {of(clean)} clean small networks**, and "
        f"at least {FOUND:.0%} of those fooled in one of these ways: {_names(found)}.",
        "**Both halves are needed**: the common-mode half reports "
        f"{of(reported('clean', 'share'))} clean models and finds fewer than {MISSED:.0%} of those fooled in these "
        f"ways: {_names(invisible)}. The half that occludes parts of the images is left to find them; it reports "
        f"{of(reported('clean', 'agreement'))} clean models.",
        '**"Nothing found" certifies nothing**: of the models fine-tuned to fool DiffGradCAM itself, the audit '
        f"reports {of(adaptive)}.",
    ]


def _names(names: Sequence[str]) -> str:
    return "; ".join(_WHAT[name] for name in names) or "none"


def _lead_table(study: Study, library: Thresholds) -> str:
    rows = []
    for name, what in _WHAT.items():
        version = study.version("test", name)
        if not version.counts.any():
            continue
        pairs = zip(study.models["test"], version.counts, strict=True)
        kept = np.mean([cell["versions"][name]["gradcam_kept"] for cell, counted in pairs if counted])
        shares = [f"{version.found(library, half)[version.counts].mean():.0%}" for half in HALVES]
        rows.append([name, what, version.counts.sum(), f"{kept:.2f}", *shares])
    header = ["name", "what was done to the model", "models", "GradCAM's r", "common mode", "occlusion", "reported"]
    return _table(header, rows)


def tables(study: Study, areas: Curves) -> str:
    """The page of all tables."""
    config, chosen, library = study.config, choose(study), defaults()
    parts = [
        "# Audit: all tables",
        f"**Incomplete:** {study.missing} of the planned models are still missing." if study.missing else "",
        "The answer and the set-up are in [Does the audit tell clean checkpoints from fooled ones?](audit.md). "
        "Generated by `python -m experiments.audit.report`; do not edit.",
        "![Left: the median common-mode share of every test model. Right: how well agreement with occlusion separates "
        "clean from fooled models, by the number of images](audit_halves.png)",
        "## In words",
        _reading(study, areas, chosen, library),
        "## The models",
        _accuracy_table(study),
        "The highest median share of a clean test model, by what it was trained with:",
        _clean_share_table(study),
        "## First half: the common mode",
        f"AUROC of the median common-mode share over {config.images} images, clean against fooled test models. "
        f"Intervals: 95%, {RESAMPLES} resamples of the clean models, each with its versions.",
        _share_table(study),
        "## Second half: agreement with occlusion",
        "AUROC of the smaller of the two mean agreements with occlusion (GradCAM's and DiffGradCAM's), clean against "
        f"fooled test models, by the number of images: mean over {SUBSAMPLES} draws of the images, intervals over "
        "models and draws.",
        _agreement_table(study, areas),
        f"The same with {config.images} images, clean against fooled models of the same data only:",
        _data_table(study),
        "## The verdict",
        f"The share of test models that are reported, with {config.images} images (95% Wilson intervals). *Default*: "
        f"share above {library.share:g}, agreement below {library.agreement:g}. *Chosen* on the calibration models: "
        f"share above {chosen.share:.2g}, agreement below {chosen.agreement:.2f}. *Moved*: the models whose attacked "
        f"map has a mean correlation below {config.moved:g} with the clean model's.",
        _verdict_table(study, chosen, library),
        "The joint verdict by the number of images, chosen thresholds:",
        _count_table(study, chosen),
        "## A real model",
        _real(study, chosen, library),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setup(study: Study) -> str:
    config, test, calibration = study.config, study.models["test"], study.models["calibration"]
    data = "; ".join(_levels(test, "data"))
    return "\n\n".join(
        part
        for part in (
            "Generated by `python -m experiments.audit.report` from the cells that `python -m experiments.audit.run` "
            "wrote; do not edit.",
            f"**Models.** {len(test)} clean small networks for testing, and {len(calibration)} others, with other "
            f"seeds, for choosing thresholds. The {len(_levels(test, 'architecture'))} architectures "
            f"({', '.join(_levels(test, 'architecture'))}; only {', '.join(SEEN)} in the calibration), the data "
            f"({data}), optimisers ({', '.join(_levels(test, 'optimizer'))}), weight decay on or off and label "
            "smoothing 0 or 0.1 are combined at random, each level equally often. The data are stand-ins: "
            "scikit-learn's digits, enlarged, and faces pasted on photographs. Training took "
            f"{np.median([cell['training_seconds'] for cell in test]):.0f} seconds a model on one core (median). Each "
            f"model is audited on {config.images} images that neither it nor the attacker has seen. All models draw "
            "their digits and faces from one pool, so intervals are over models, not over images.",
            _left_out(study),
            _refused(study),
            f"**Attacks** on each model, fitted on {config.fool_images} of its training images: the closed-form common "
            f"mode at strengths {', '.join(f'{s:g}' for s in config.strengths)}; the common mode trained by gradient "
            "descent; a roll by half the map and a flip of both axes (spatial hoaxes); the whole model trained to show "
            "a border with GradCAM or, adaptively, with DiffGradCAM. A fooled version counts if its accuracy is no "
            f"more than {config.accuracy_loss:g} below that of the clean model. It has *moved* if the attacked map has "
            f"a mean correlation below {config.moved:g} with the clean model's.",
            "**Fixed before any result of a test model was seen**: configuration, attacks, budgets, and the rules for "
            "leaving out models and for choosing thresholds. Seen before: accuracies, and the results of five models "
            "with seeds that are not in the study, to check that networks learn and that trained attacks move maps. "
            "Decided later: the table by data, after the calibration models were seen, and what happens to a model "
            "that the audit refuses, when it refused one. The first cells of the real model were thrown away, because "
            "a mistake in the experiment let the hoax of one version reach the next; other crops were used the second "
            "time.",
        )
        if part
    )


def _levels(cells: Iterable[Cell], factor: str) -> list[str]:
    return sorted({str(cell["design"][factor]) for cell in cells})


def _left_out(study: Study) -> str:
    config = study.config
    left_out = {split: len(of) for split, of in study.left_out.items()}
    return (
        f"A model that is right on fewer than {config.digits_accuracy:.0%} of held-out digits, or "
        f"{config.faces_accuracy:.0%} of held-out faces, has not learned and is left out: {left_out['test']} of the "
        f"test models and {left_out['calibration']} of the calibration models."
    )


def _refused(study: Study) -> str:
    split = [(name, version) for cell in study.models["test"] for name, version in cell["versions"].items()]
    refused = [(name, version["accuracy"]) for name, version in split if version["weight_share"] is None]
    if not refused:
        return ""
    which = ", ".join(f"{name} (accuracy {accuracy:.2f})" for name, accuracy in refused)
    return (
        f"The audit refused {len(refused)} of the {len(split)} versions of the test models, and they are left out: all "
        f"their logits lie between 0 and 1, which the audit takes for the output of sigmoids: {which}."
    )


def _reading(study: Study, areas: Curves, chosen: Thresholds, library: Thresholds) -> str:
    clean = study.version("test", "clean")
    versions = {name: study.version("test", name) for name in study.attacks}
    lines = []
    for strength in study.config.strengths:
        version = versions[f"common mode {strength:g}"]
        area, count = share_auroc(clean, version), int(version.counts.sum())
        enough = min(len(clean.share), count) >= WANTED_MODELS
        verdict = "reached" if area.value >= WANTED and enough else "**not reached**"
        what = "" if enough else f", and at least {WANTED_MODELS} of each were wanted"
        lines.append(
            f"- Common mode of strength {strength:g}: AUROC of the share {area} over {len(clean.share)} clean and "
            f"{count} fooled models{what}. The target of {WANTED:g} is {verdict}."
        )
    of_clean, fooled = clean.shares(), versions["common mode 1"]
    of_fooled = fooled.shares()[fooled.counts]

    def share_errors(threshold: float) -> str:
        return (
            f"reports {(of_clean > threshold).sum()} of {len(of_clean)} clean models and misses "
            f"{(of_fooled <= threshold).sum()} of {len(of_fooled)} common modes of strength 1"
        )

    lines.append(
        f"- The share's threshold: the library's {library.share:g} {share_errors(library.share)}; the "
        f"{chosen.share:.2g} that the calibration models chose {share_errors(chosen.share)}."
    )
    counts = _counts(study)
    few = min(len(counts) - 1, 3)  # 8 images, where there are as many
    by_count = "; ".join(f"{name} {of[0].value:.2f}, {of[few].value:.2f}, {of[-1]}" for name, of in areas.items())
    lines.append(f"- AUROC of the agreement with 1, {counts[few]} and {counts[-1]} images: {by_count}.")
    high = clean.agreements()
    low = np.concatenate([v.agreements()[v.counts & v.moved] for v in versions.values()])

    def agreement_errors(threshold: float) -> str:
        return (
            f"reports {(high < threshold).sum()} of {len(high)} clean models and misses {(low >= threshold).sum()} of "
            f"{len(low)} fooled versions whose map has moved"
        )

    lines.append(
        f"- The agreement's threshold: the library's {library.agreement:g} {agreement_errors(library.agreement)}; the "
        f"chosen {chosen.agreement:.2f} {agreement_errors(chosen.agreement)}."
    )
    lines.append(_unseen(study, chosen))
    for half, what in (("share", "The common mode"), ("agreement", "Behaviour"), ("either", "The joint verdict")):
        rates = {
            name: v.found(chosen, half)[v.counts & v.moved].mean()
            for name, v in versions.items()
            if (v.counts & v.moved).any()
        }
        hidden = [f"{name} ({found:.0%})" for name, found in rates.items() if found < 0.5]
        text = ", ".join(hidden) or "none"
        lines.append(f"- {what} finds fewer than half of these attacks where the map has moved: {text}.")
    return "\n".join(lines)


def _unseen(study: Study, chosen: Thresholds) -> str:
    seen = np.array([cell["design"]["architecture"] in SEEN for cell in study.models["test"]])
    reported = study.version("test", "clean").found(chosen, "either")
    return (
        "- False alarms of the joint verdict, chosen thresholds: "
        f"{reported[seen].sum()} of {seen.sum()} clean models of the architectures that the calibration had, "
        f"{reported[~seen].sum()} of {(~seen).sum()} of the others."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _accuracy_table(study: Study) -> str:
    rows = []
    for data in _levels(study.models["test"], "data"):
        for split, cells in study.models.items():
            of = [cell["accuracy"] for cell in cells if cell["design"]["data"] == data]
            left_out = sum(cell["design"]["data"] == data for cell in study.left_out[split])
            spread = f"{np.median(of):.3f} ({min(of):.3f} to {max(of):.3f})" if of else "-"
            rows.append([data, split, len(of), left_out, spread])
    return _table(["data", "models", "learned", "left out", "accuracy of those that learned: median (range)"], rows)


def _clean_share_table(study: Study) -> str:
    shares = study.version("test", "clean").shares()
    designs = [cell["design"] for cell in study.models["test"]]
    classes = np.array([10 if design["data"].startswith("10") else 2 for design in designs])

    def highest(which: NDArray[np.bool_]) -> str:
        return f"{shares[which].max():.2g}" if which.any() else "-"

    rows = []
    for optimizer in _levels(study.models["test"], "optimizer"):
        for decay in (False, True):
            with_it = [d["optimizer"] == optimizer and d["weight_decay"] == decay for d in designs]
            cells = [highest(np.array(with_it) & (classes == k)) for k in (2, 10)]
            rows.append([optimizer, "yes" if decay else "no", *cells])
    return _table(["optimiser", "weight decay", "2 classes", "10 classes"], rows)


def _share_table(study: Study) -> str:
    clean, rows = study.version("test", "clean"), []
    rows.append(["clean", len(clean.share), _range(clean.shares()), ""])
    for name in study.attacks:
        version = study.version("test", name)
        shares = version.shares()[version.counts]
        rows.append([name, len(shares), _range(shares), share_auroc(clean, version) if len(shares) else "-"])
    return _table(["version", "models", "median share: median (range) over models", "AUROC"], rows)


def _range(values: Floats) -> str:
    return f"{np.median(values):.2g} ({values.min():.2g} to {values.max():.2g})" if len(values) else "-"


def _counts(study: Study) -> list[int]:
    return [count for count in COUNTS if count <= study.config.images]


def _agreement_table(study: Study, areas: Curves) -> str:
    return _table(["attack \\ images", *map(str, _counts(study))], [[name, *of] for name, of in areas.items()])


def _data_table(study: Study) -> str:
    rows = []
    for data in _levels(study.models["test"], "data"):
        models = [cell for cell in study.models["test"] if cell["design"]["data"] == data]
        clean = _version(models, "clean", study.config)
        versions = [_version(models, name, study.config) for name in study.attacks]
        areas = [_area(-version.agreements(), -clean.agreements(), version.counts) for version in versions]
        rows.append(
            [
                data,
                len(models),
                _range(clean.agreements()),
                *("-" if np.isnan(area) else f"{area:.2f}" for area in areas),
            ]
        )
    return _table(["data", "models", "clean: median agreement (range)", *study.attacks], rows)


def _verdict_table(study: Study, chosen: Thresholds, library: Thresholds) -> str:
    rows = []
    for name in ("clean", *study.attacks):
        version = study.version("test", name)
        counts, moved = version.counts, version.counts & version.moved
        of = [cell["versions"][name] for cell, counted in zip(study.models["test"], counts, strict=True) if counted]
        if not of:
            continue
        means = [np.mean([v[key] for v in of]) for key in ("agreement", "gradcam_kept", "diffgradcam_kept")]
        found = [_proportion(version.found(at, half)[counts]) for half in HALVES for at in (library, chosen)]
        hits = _proportion(version.found(chosen, "either")[moved])
        rows.append([name, len(of), *(f"{mean:.2f}" for mean in means), *found, f"{moved.sum()}: {hits}"])
    header = ["version", "models", "same decisions", "GradCAM's r with clean", "DiffGradCAM's r with clean"]
    header += [f"{what}, {which}" for what in ("share", "behaviour", "joint") for which in ("default", "chosen")]
    return _table([*header, "moved: joint, chosen"], rows)


def _count_table(study: Study, chosen: Thresholds) -> str:
    counts, rows = _counts(study), []
    for name in ("clean", *study.attacks):
        version = study.version("test", name)
        if version.counts.any():
            rows.append([name, *(f"{rate(version, chosen, count):.2f}" for count in counts)])
    return _table(["reported \\ images", *map(str, counts)], rows)


def _real(study: Study, chosen: Thresholds, library: Thresholds) -> str:
    if not study.real:
        return ""
    rows = []
    for cell in study.real:
        for name, found in cell["versions"].items():
            version = _version([cell], name, study.config)
            verdicts = ["reported" if version.found(at, "either")[0] else "nothing found" for at in (library, chosen)]
            rows.append(
                [
                    cell["design"]["classes"],
                    name,
                    f"{found['probability_change']:.1g}",
                    f"{found['gradcam_kept']:.2f}",
                    f"{found['diffgradcam_kept']:.2f}",
                    f"{found['weight_share']:.2g}",
                    f"{version.shares()[0]:.2g}",
                    f"{version.gradcam.mean():.2f}",
                    f"{version.diffgradcam.mean():.2f}",
                    *verdicts,
                ]
            )
    images = len(study.real[0]["versions"]["clean"]["common_mode_share"])
    text = (
        f"EfficientNet-Lite0 with its ImageNet weights, on {images} crops of real photographs that install with "
        "scikit-image and scikit-learn; the attacker has crops of other photographs. Restricted to 10, 100 or all of "
        "its 1000 rows (the most likely ones in these crops). It is one model, so it is not part of the results above. "
        "Attacks that train the whole model are in the SHAM experiment."
    )
    header = ["classes", "version", "largest change of a probability", "GradCAM's r with clean"]
    header += ["DiffGradCAM's r with clean", "share of the weights", "median share", "GradCAM agrees"]
    return text + "\n\n" + _table([*header, "DiffGradCAM agrees", "default verdict", "chosen verdict"], rows)


def draw_answer(study: Study, path: Path) -> None:
    """The share of test models that the audit reports, by what was done to them, with Wilson intervals."""
    import matplotlib.pyplot as plt

    library = defaults()
    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    labels = []
    for name, what in _WHAT.items():
        version = study.version("test", name)
        if not version.counts.any():
            continue
        found = version.found(library, "either")[version.counts]
        low, high = _wilson(found)
        y, colour = len(labels), "0.5" if name == "clean" else "C0"
        axis.barh(y, 100 * found.mean(), color=colour, height=0.7)
        axis.plot([100 * low, 100 * high], [y, y], color="k", linewidth=1)
        axis.text(102, y, f"{found.sum()} of {len(found)}", va="center", fontsize=9)
        labels.append(what)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("models that the audit reports, % (line: 95% interval)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_halves(study: Study, areas: Curves, path: Path) -> None:
    """Left: the median share of each test model. Right: AUROC of the agreement by the number of images."""
    import matplotlib.pyplot as plt

    chosen, library = choose(study), defaults()
    counts = _counts(study)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    names = ("clean", *study.attacks)
    for y, name in enumerate(names):
        version = study.version("test", name)
        shares = np.maximum(version.shares()[version.counts], 1e-7)
        left.plot(shares, np.full(len(shares), y), "o", color="0.3" if name == "clean" else f"C{y - 1}", alpha=0.4)
        if name in areas:
            right.plot(counts, [area.value for area in areas[name]], "o-", color=f"C{y - 1}", label=name, markersize=3)
            lows, highs = [area.low for area in areas[name]], [area.high for area in areas[name]]
            right.fill_between(counts, lows, highs, color=f"C{y - 1}", alpha=0.12, linewidth=0)
    left.set_xscale("log")
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.axvline(library.share, color="0.6", linestyle=":", label=f"default threshold {library.share:g}")
    left.axvline(chosen.share, color="0.2", linestyle="--", label=f"chosen threshold {chosen.share:.2g}")
    left.set_xlabel("median common-mode share (one dot for each test model)")
    left.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    right.set_xscale("log", base=2)
    right.set_xticks(counts, [str(count) for count in counts])
    right.set_xlabel("number of images in the audit")
    right.set_ylabel("AUROC of agreement with occlusion")
    right.axhline(0.5, color="0.7", linewidth=1)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the pages and the figures."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    options = parser.parse_args(arguments)
    study = load(options.results)
    options.docs.mkdir(parents=True, exist_ok=True)
    areas = curves(study)
    draw_answer(study, options.docs / "audit.png")
    draw_halves(study, areas, options.docs / "audit_halves.png")
    (options.docs / "audit.md").write_text(markdown(study), encoding="utf-8")
    (options.docs / "audit_tables.md").write_text(tables(study, areas), encoding="utf-8")


if __name__ == "__main__":
    main()
