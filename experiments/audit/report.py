"""Write the pages and the figures: ``python -m experiments.audit.report``.

Reads the finished cells and writes to ``docs/results``: the answer (``audit.md`` with ``audit.png``) and all tables
(``audit_tables.md`` with ``audit_signs.png``). Thresholds are chosen on the calibration networks alone; everything
else is measured on the test networks and on the real models, which had no part in it.

A version *lies* if the honesty of GradCAM or of DiffGradCAM is lower than in the clean model by more than 0.1. What was
attacked without such a loss is shown by itself: it is neither a lie to find nor a clean model to clear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from diffgradcam.metrics import auroc
from diffgradcam.robustness import AuditReport, AuditThresholds
from diffgradcam.robustness.auditing import OUTWEIGHS, AuditVerdict
from experiments.cells import read
from experiments.pages import report_parser, table

from .real import MODELS
from .run import HARMLESS, RESULTS, SPLITS, attacks, planned
from .zoo import ARCHITECTURES, SEEN, Config

WANTED, WANTED_FOUND, ALLOWED = 0.98, 0.9, 0.05  # AUROC; lies found; false alarms at which they are
ADAPTIVE = ("trained on DiffGradCAM", "trained on DiffGradCAM, corner")
COUNTS = (8, 16, 32)  # images of an audit
DRAWS = 20  # of the images, for a mean
VERDICTS: tuple[AuditVerdict, ...] = ("clean", "exposed", "could not tell", "fooled")
_COLOURS = {"clean": "0.85", "exposed": "#f2c14e", "could not tell": "0.6", "fooled": "#b3262a"}

Floats: TypeAlias = NDArray[np.float64]
Cell: TypeAlias = dict[str, Any]


class Version(NamedTuple):
    """One way of changing one model, or ``"clean"``.

    Attributes:
        model: What it was made of.
        name: Of the way.
        real: Whether the model is a real one.
        attacked: Whether somebody wanted to fool.
        lost: How far the honesty of the worse of GradCAM and DiffGradCAM has fallen.
        found: All that the cell has of it.
    """

    model: str
    name: str
    real: bool
    attacked: bool
    lost: float
    found: Cell

    def sign(self, name: str, count: int | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """One sign for each image, or for some drawn at random."""
        values = torch.tensor(self.found[name], dtype=torch.float64)
        return values if rng is None else values[torch.from_numpy(rng.permutation(len(values))[:count])]


DEFAULT = AuditThresholds()


def judged(version: Version, at: AuditThresholds = DEFAULT, count: int | None = None, seed: int = 0) -> AuditReport:
    """What the library makes of a version, on all images or on some.

    Args:
        version: What was measured.
        at: The thresholds.
        count: How many images, drawn with ``seed``; by default all.
        seed: Of the draw.

    Returns:
        A report without the maps.
    """

    def sign(name: str) -> Tensor:
        return version.sign(name, count, None if count is None else np.random.default_rng(seed))

    none = torch.empty(0)
    return AuditReport(
        logits=none,
        classes=none,
        visible=none,
        invisible=none,
        common_mode_share=sign("common_mode_share"),
        gradcam_agreement=sign("occlusion_gradcam"),
        visible_agreement=sign("occlusion_visible"),
        visible_follows=sign("follows_visible"),
        lower_agreement=sign("lower_visible") if version.found["lower"] else None,
        lower_layer=version.found["lower"],
        offset=sign("offset"),
        weight_share=None,
        thresholds=at,
    )


def score(version: Version) -> float:
    """How far beyond its threshold the strongest sign of a lie is: what the AUROC of the audit is computed of."""
    report = judged(version)
    assert report.gap is not None
    assert report.visible_agreement is not None
    assert report.honesty is not None
    beyond = [
        DEFAULT.agreement - float(report.visible_agreement.mean()),
        DEFAULT.honesty - float(report.honesty.mean()),
        float(report.common_mode_share.median()) - OUTWEIGHS,
    ]
    if report.consistency is not None:
        beyond.append(DEFAULT.consistency - float(report.consistency.mean()))
    if report.exposed and not report.is_offset:
        beyond.append(float(report.gap.mean()) - DEFAULT.gap)
    return max(beyond)


# --- the study -------------------------------------------------------------------------------------------------------


class Study(NamedTuple):
    """All finished cells.

    Attributes:
        config: The configuration of all cells.
        cells: By split.
        missing: Number of planned cells that do not exist yet.
    """

    config: Config
    cells: dict[str, list[Cell]]
    missing: int

    def learned(self, split: str) -> list[Cell]:
        """The models that have learned."""
        return [cell for cell in self.cells[split] if cell["versions"]]

    def versions(self, *splits: str) -> list[Version]:
        """All versions of the models of some splits that still decide well enough."""
        found = []
        for split in splits:
            for cell in self.learned(split):
                clean, design = cell["versions"]["clean"], cell["design"]
                real = split == "real"
                model = design["architecture"] if real else f"{split} {design['seed']}"
                for name, version in cell["versions"].items():
                    if not real and clean["accuracy"] - version["accuracy"] > self.config.accuracy_loss + 1e-9:
                        continue
                    lost = max(version["gradcam_lost"], version["diffgradcam_lost"])
                    found.append(Version(model, name, real, name in attacks(self.config), lost, version))
        return found


def load(results: Path = RESULTS) -> Study:
    """Read the cells.

    Args:
        results: Folder of the cells.

    Returns:
        The study so far.

    Raises:
        ValueError: If cells have different configurations, or no model of a split of small networks has learned.
    """
    found = read(results)
    cells = {split: [cell for cell in found if cell["split"] == split] for split in SPLITS}
    for split in ("calibration", "test"):
        if not any(cell["versions"] for cell in cells[split]):
            raise ValueError(f"no {split} model has learned in {results}; run python -m experiments.audit.run")
    given = found[0]["config"]
    config = Config(**{**given, **{name: tuple(given[name]) for name in ("strengths", "photographs")}})
    missing = sum(planned(split, config) for split in SPLITS) - len(found)
    return Study(config, cells, missing)


class Kind(NamedTuple):
    """A row of the answer.

    Attributes:
        what: In words.
        versions: What is in it.
    """

    what: str
    versions: list[Version]


_LIES = {
    "one vector for all classes": ("common mode 0.3", "common mode 1"),
    "features rolled or flipped": ("roll", "flip"),
    "fine-tuned to fool GradCAM": ("trained on GradCAM",),
    "fine-tuned to fool DiffGradCAM": ADAPTIVE,
}


def kinds(study: Study, *splits: str) -> list[Kind]:
    """The rows of the answer: what must not be reported, what must, and what is neither.

    Args:
        study: The cells.
        *splits: Of the small networks; by default the test.

    Returns:
        The kinds that have versions.
    """
    small, real = study.versions(*(splits or ("test",))), study.versions("real")
    lie = study.config.lie

    def of(versions: Iterable[Version], *names: str, lies: bool) -> list[Version]:
        return [v for v in versions if v.attacked and (not names or v.name in names) and (v.lost > lie) is lies]

    rows = [
        Kind("clean small networks", [v for v in small if v.name == "clean"]),
        Kind("small networks, compressed, distilled or trained otherwise", [v for v in small if v.name in HARMLESS]),
        Kind("real models, clean", [v for v in real if v.name == "clean"]),
        Kind("real models, compressed or with a new head", [v for v in real if not v.attacked and v.name != "clean"]),
        *(Kind(f"lie: {what}", of(small, *names, lies=True)) for what, names in _LIES.items()),
        Kind("lie: real models, attacked", of(real, lies=True)),
        Kind("no lie: attacked, honesty hardly lower", of([*small, *real], lies=False)),
    ]
    return [row for row in rows if row.versions]


# --- calibration -----------------------------------------------------------------------------------------------------


BEHAVIOUR = ("agreement", "honesty", "consistency")
_NONE = AuditThresholds(agreement=-1, honesty=-1, consistency=-1)


def choose(study: Study) -> dict[str, float]:
    """The thresholds of agreement, honesty and consistency, from the calibration networks alone.

    Of each the highest hundredth at which it says of no clean or harmlessly changed one of them that its map lies. Left
    out are those whose map is no longer as honest as the clean one.
    """
    honest = [v for v in study.versions("calibration") if not v.attacked and v.lost <= study.config.lie]
    return {
        name: max(
            hundredth / 100
            for hundredth in range(-100, 101)
            if not any(
                "behaviour" in judged(version, replace(_NONE, **{name: hundredth / 100})).signs for version in honest
            )
        )
        for name in BEHAVIOUR
    }


# --- numbers ---------------------------------------------------------------------------------------------------------


def area(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """AUROC; NaN without models."""
    if not negatives or not positives:
        return float("nan")
    return auroc([0] * len(negatives) + [1] * len(positives), [*negatives, *positives])


def negatives(study: Study) -> list[Version]:
    """What must not be reported: the clean and the harmlessly changed, test networks and real models."""
    return [v for v in study.versions("test", "real") if not v.attacked]


def found_at(honest: Sequence[Version], lies: Sequence[Version]) -> float:
    """Share of lies whose score is above that of all but :data:`ALLOWED` of the honest."""
    limit = float(np.quantile([score(version) for version in honest], 1 - ALLOWED))
    return float(np.mean([score(version) > limit for version in lies]))


def rates(
    versions: Sequence[Version], at: AuditThresholds = DEFAULT, count: int | None = None
) -> dict[AuditVerdict, float]:
    """Share of each verdict, on all images or as a mean over draws of some."""
    draws = [None] if count is None else range(DRAWS)
    verdicts = Counter(judged(v, at, count, seed or 0).verdict for v in versions for seed in draws)
    total = sum(verdicts.values())
    return {verdict: verdicts[verdict] / total for verdict in VERDICTS}


SIGNS: dict[str, tuple[str, Callable[[Version], float]]] = {  # each higher for a liar
    "share": ("common-mode share (median)", lambda v: float(v.sign("common_mode_share").median())),
    "gap": (
        "gap: agreement with occlusion lost to the common mode, 16 passes",
        lambda v: _mean(v, "occlusion_visible") - _mean(v, "occlusion_gradcam"),
    ),
    "gap49": ("gap, 49 passes", lambda v: _mean(v, "occlusion49_visible") - _mean(v, "occlusion49_gradcam")),
    "gap_integrated": (
        "gap with integrated gradients, 8 steps",
        lambda v: _mean(v, "integrated_visible") - _mean(v, "integrated_gradcam"),
    ),
    "occlusion": ("disagreement with occlusion, 16 passes", lambda v: -_mean(v, "occlusion_visible")),
    "occlusion49": ("disagreement with occlusion, 49 passes", lambda v: -_mean(v, "occlusion49_visible")),
    "occlusion_diff": (
        "the same of DiffGradCAM (log-sum-exp), 16 passes",
        lambda v: -_mean(v, "occlusion_diffgradcam"),
    ),
    "integrated": ("disagreement with integrated gradients, 8 steps", lambda v: -_mean(v, "integrated_visible")),
    "follows": ("does not follow a shifted image, 1 pass", lambda v: -_mean(v, "follows_visible")),
    "constancy": ("constancy: maps of other images are alike, 0 passes", lambda v: _mean(v, "constancy_gradcam")),
    "constancy_visible": ("the same without the common mode", lambda v: _mean(v, "constancy_visible")),
    "lower": ("disagreement with the next lower layer (LayerCAM), 1 pass", lambda v: -_mean(v, "lower_visible")),
    "lowest": ("disagreement with the lowest layer, 1 pass", lambda v: -_mean(v, "lowest_visible")),
    "response": (
        "what a cover takes from the map within it disagrees with what it takes from the log-odds, 16 passes",
        lambda v: -_mean(v, "response_visible"),
    ),
    "honesty": ("dishonesty: occlusion and following, 17 passes", lambda v: -_honesty(v)),
    "consistency": ("inconsistency: occlusion and the next lower layer, 17 passes", lambda v: -_consistency(v)),
    "joint": ("**the audit: gap, dishonesty or inconsistency, 19 passes**", score),
}


def _mean(version: Version, name: str) -> float:
    return float(np.mean(version.found[name])) if name in version.found else float("nan")


def _honesty(version: Version) -> float:
    return (_mean(version, "occlusion_visible") + _mean(version, "follows_visible")) / 2


def _consistency(version: Version) -> float:
    return (_mean(version, "occlusion_visible") + _mean(version, "lower_visible")) / 2


# --- the page --------------------------------------------------------------------------------------------------------


def markdown(study: Study) -> str:
    """The page: the answer, one table, how it was done."""
    parts = [
        "# Does the audit tell clean checkpoints from fooled ones?",
        "![What the audit says of clean models, of compressed and retrained ones, and of those whose maps were made to "
        "lie](audit.png)",
        *_answer(study),
        _lead_table(study),
        f"Verdicts with {study.config.images} images and the default thresholds. A map *lies* if its agreement with "
        "what its model relies on (occlusion and integrated gradients) is lower than that of the clean model's map by "
        f"more than {study.config.lie:g}. *AUROC*: against all models that must not be reported. [Every sign, every "
        "real model, fewer images](audit_tables.md).",
        _alarms(study),
        _spoilt(study),
        "## How it was done",
        _setup(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(study: Study) -> list[str]:
    """Three sentences for a reader who stops there."""
    images = study.config.images
    must_not = negatives(study)
    real = [version for version in must_not if version.real]
    alarms = [version for version in must_not if judged(version).fooled]
    of_real = [f"{v.model}, {v.name}" for v in alarms if v.real]
    named = f" ({'; '.join(of_real)})" if of_real else ""
    rows = {row.what: row.versions for row in kinds(study)}
    everything = [v for what, of in rows.items() if what.startswith("lie: ") for v in of]
    adaptive = rows.get("lie: fine-tuned to fool DiffGradCAM", [])

    def count(versions: Sequence[Version]) -> str:
        return f"{sum(judged(v).verdict == 'fooled' for v in versions)} of {len(versions)}"

    exposed = [v.model for v in real if v.name == "clean" and judged(v).verdict == "exposed"]
    small = [version for version in must_not if not version.real]

    def reached(honest: Sequence[Version]) -> str:
        return f"{_area(honest, adaptive):.2f} and {found_at(honest, adaptive):.0%}"

    return [
        f"**With {images} images, the audit calls {len(alarms)} of {len(must_not)} models fooled that nobody "
        f"attacked**, and {len(of_real)} of the {len(real)} of them that are real ImageNet models, clean, compressed, "
        f"or with a new head{named}. It calls exposed, not fooled, of the clean real models: "
        f"{', '.join(exposed) or 'none'}.",
        f"**It finds {count(everything)} lies**, and of those of a network that was fine-tuned to fool DiffGradCAM "
        f"itself {count(adaptive)}.",
        f"**The goal for such adaptive lies was an AUROC of {WANTED:g} and {WANTED_FOUND:.0%} found at {ALLOWED:.0%} "
        f"false alarms: it reaches {reached(must_not)}**, or {reached(small)} against the small networks alone. One "
        "model shows only how honest its map is, not how honest it was. A clean map that never said much of what its "
        f"model relies on looks like a good one that was made worse{_spread(study, adaptive)}. [The larger the lie, "
        "the more are found](audit_tables.md#by-the-size-of-the-lie).",
    ]


def _spread(study: Study, adaptive: Sequence[Version]) -> str:
    """How far honest maps differ, and how far a lie moves one."""
    low, high = np.quantile([_consistency(version) for version in negatives(study)], (0.05, 0.95))
    clean = {version.model: _consistency(version) for version in negatives(study) if version.name == "clean"}
    lost = [clean[version.model] - _consistency(version) for version in adaptive]
    return f": the consistency of nine honest maps in ten is {low:.2f} to {high:.2f}, and such a lie takes " + (
        f"{np.median(lost):.2f} from it (median)"
    )


def _alarms(study: Study) -> str:
    """The models that nobody attacked and that are called fooled, and why."""
    lines = []
    for version in negatives(study):
        report = judged(version)
        if report.fooled:
            agreement = f"{_mean(version, 'occlusion_gradcam'):.2f}, without the common mode "
            agreement += f"{_mean(version, 'occlusion_visible'):.2f}"
            lines.append(
                f"- {version.model}, {version.name} ({', '.join(report.signs)}): GradCAM agrees with occlusion by "
                f"{agreement}; honesty {_honesty(version):.2f}, consistency {_consistency(version):.2f}; honesty lost "
                f"since the clean model {version.lost:.2f}."
            )
    if not lines:
        return ""
    return (
        "**Called fooled, and attacked by nobody.** Where behaviour is the sign, the map has never said what the model "
        "relies on: a map must be honest before it can lie. The audit knows neither intent nor the past.\n\n"
        + "\n".join(lines)
    )


def _spoilt(study: Study) -> str:
    """The models that nobody attacked, whose GradCAM is wrong because of an offset."""
    lines = []
    for version in negatives(study):
        report = judged(version)
        if report.contradicted and not report.fooled:
            lines.append(
                f"- {version.model}, {version.name}: GradCAM agrees with occlusion by "
                f"{_mean(version, 'occlusion_gradcam'):.2f}, without the common mode "
                f"{_mean(version, 'occlusion_visible'):.2f}; cosine with the sum of the activations "
                f"{float(report.offset.median()):.3f}."
            )
    if not lines:
        return ""
    return (
        "**GradCAM is false, and nobody attacked.** A last layer that Adam trained briefly, from its initialisation, "
        "can have so large a common mode that GradCAM contradicts what the model does. The map is false whatever the "
        "cause, but nobody chose it: the common mode is the sum of the activations, negated. The audit says so, and "
        f"calls it exposed. {_offsets(study)}\n\n" + "\n".join(lines)
    )


def _offsets(study: Study) -> str:
    reports = [judged(v) for v in study.versions(*SPLITS) if v.name.startswith("common mode")]
    largest = max(abs(float(report.offset.median())) for report in reports)
    count = sum(report.is_offset for report in reports)
    return (
        f"Of the {len(reports)} hoaxes that the closed form made of all models, {count or 'none'} is such an offset "
        f"(largest cosine {largest:.2f})."
    )


def _area(honest: Sequence[Version], lies: Sequence[Version]) -> float:
    return area([score(version) for version in honest], [score(version) for version in lies])


def _lead_table(study: Study) -> str:
    rows = []
    for kind in kinds(study):
        shares = rates(kind.versions)
        area_of = f"{_area(negatives(study), kind.versions):.3f}" if kind.what.startswith("lie: ") else ""
        rows.append([kind.what, len(kind.versions), *(f"{shares[v]:.0%}" for v in reversed(VERDICTS)), area_of])
    return table(["what was done to the model", "models", *reversed(VERDICTS), "AUROC"], rows)


def tables(study: Study) -> str:
    """The page of all tables."""
    chosen = choose(study)
    spoilt = [v for v in study.versions("calibration") if not v.attacked and v.lost > study.config.lie]
    fooled = sum(judged(version).fooled for version in spoilt)
    parts = [
        "# Audit: all tables",
        "The answer and the set-up are in [Does the audit tell clean checkpoints from fooled ones?](audit.md). "
        "Generated by `python -m experiments.audit.report`; do not edit.",
        "## Which sign earns its column",
        "AUROC of each sign alone, lies of the test networks against their clean and harmlessly changed versions. The "
        "audit has the gap, the agreement with 16 occlusions, following and the next lower layer.",
        _sign_table(study),
        "![The two signs of every version: the gap, which tells lies of the common mode, and consistency, which tells "
        "the others](audit_signs.png)",
        "## The threshold",
        f"On {len(study.learned('calibration'))} calibration networks, each clean and with one harmless change, "
        f"{chosen['agreement']:.2f} is the highest hundredth of the agreement, {chosen['honesty']:.2f} of honesty and "
        f"{chosen['consistency']:.2f} of consistency at which none of these is called fooled. The library has "
        f"{DEFAULT.agreement:g}, {DEFAULT.honesty:g} and {DEFAULT.consistency:g}: "
        "lower, since other models are not like these. Where a harmless change made the map lose more than "
        f"{study.config.lie:g} of its honesty ({len(spoilt)} of them, {fooled} called fooled), it has no part in this. "
        "The threshold of the gap, "
        f"{DEFAULT.gap:g}, is the {study.config.lie:g} by which a lie is defined, and the noise of 32 images on top. "
        f"That of the share, {DEFAULT.share:g}, is for an exposure, which is not a lie by itself; above 0.8 it is.",
        _threshold_table(study),
        "## With fewer images",
        f"Share that is called fooled; mean over {DRAWS} draws of the images.",
        _count_table(study),
        "## By the size of the lie",
        "Lies of test networks and real models whose maps were fine-tuned to fool DiffGradCAM, by the honesty that was "
        "lost. *At 5% false alarms*: above all but 5% of all models that must not be reported.",
        _size_table(study),
        "## By the change",
        _change_table(study),
        "## Real models",
        _real(study),
        "## The networks",
        _accuracy_table(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setup(study: Study) -> str:
    config = study.config
    learned = {split: study.learned(split) for split in ("calibration", "test")}
    left_out = sum(len(study.cells[split]) - len(learned[split]) for split in learned)
    planned_small = sum(planned(split, config) for split in learned)
    unseen = [architecture for architecture in ARCHITECTURES if architecture not in SEEN]
    real = [cell["design"]["architecture"] for cell in study.cells["real"]]
    later = [name for name in MODELS if name not in real]
    waiting = f" (not yet: {', '.join(later)})" if later else ""
    return "\n\n".join(
        [
            "Generated by `python -m experiments.audit.report` from the cells that `python -m experiments.audit.run` "
            "wrote; do not edit.",
            f"**Small networks.** {len(learned['test'])} for testing, and {len(learned['calibration'])} others, with "
            f"other seeds, for choosing the threshold ({planned_small} are planned; `run` continues where it stopped). "
            f"Architectures ({', '.join(SEEN)} in the calibration, {', '.join(unseen)} only in the test), data "
            f"({'; '.join(_levels(learned['test'], 'data'))}), optimisers, weight decay and label smoothing are "
            f"combined at random. Left out are networks that have not learned ({left_out}), and changed ones whose "
            f"accuracy is lower by more than {config.accuracy_loss:g}. The data are stand-ins, scikit-learn's digits, "
            "enlarged, and faces pasted on photographs; and real fingerprints, altered or not (SOCOFing). Networks of "
            "this size do not learn the tiles of the other experiments, so these are not among them. Each is audited "
            "on images that neither it nor the attacker has seen.",
            f"**Real models.** {', '.join(real)}{waiting}, with their ImageNet weights; the ResNets are "
            f"product-quantised by their publisher. {config.images} photographs for the audit, "
            f"{config.photographs[0]} others for the attacker, {config.photographs[1]} for new heads. What each model "
            "relies on is measured by occlusion alone. What is below the last block is not attacked: the last block "
            "and the last layer were fine-tuned, against DiffGradCAM. Neither weights nor photographs are part of the "
            "project; `experiments/audit/real.py` says where they come from.",
            "**Attacks.** The closed-form common mode at strengths "
            f"{', '.join(f'{s:g}' for s in config.strengths)}; a roll by half the map and a flip of both axes; the "
            "whole network fine-tuned to show a border with GradCAM or, adaptively, with DiffGradCAM (a border, or a "
            "corner). Of many networks the map of DiffGradCAM cannot be made to lie so: where the attack reaches its "
            "mask, decisions are lost, or the model relies on other things and the map says so.",
            "**Harmless changes.** Weights of 8 bits; 30% of the weights set to 0; a product-quantised and fine-tuned "
            "last layer; a new last layer, also with label smoothing or mixup; a network distilled from the clean one, "
            "or trained with mixup. Each small network has one of them, in turn.",
            "**Seen before the run.** The first signs (16 occlusions in place of 49, the shift, and the comparison of "
            "GradCAM with the map without the common mode) were thought out on seven networks of the calibration, the "
            "threshold of the gap was raised from 0.1 to 0.15 after the first results on EfficientNet-Lite0 and "
            "ResNet-18, and the goal was missed on an earlier set of 13 test networks and the same real models. The "
            "lower layer and its consistency were then thought out on 14 networks of the calibration's design. That a "
            "common mode may be an offset was thought out on ResNet-18 and EfficientNet-Lite0, whose new heads had "
            "been false alarms; so for new heads those two are not an independent test. All networks were trained anew "
            "with other combinations of data and architecture, and some seeds are those of the earlier set. **Decided "
            "later**: the threshold of honesty, from 0.25 to 0.15, when all calibration networks were there and asked "
            "for it. The test networks had been looked at by then; on them it takes away one false alarm, and finds "
            "28 adaptive lies instead of 34. The line beyond which a common mode is an offset, from a cosine of 0.95 "
            "to 0.99, when an attack on a toy of the documentation reached 0.97.",
        ]
    )


def _levels(cells: Iterable[Cell], factor: str) -> list[str]:
    return sorted({str(cell["design"][factor]) for cell in cells})


def _sign_table(study: Study) -> str:
    honest = [v for v in study.versions("test") if not v.attacked]
    lies = {row.what: row.versions for row in kinds(study) if row.what.startswith("lie: ") and not row.versions[0].real}
    rows = []
    for what, score in SIGNS.values():
        areas = [area([score(v) for v in honest], [score(v) for v in versions]) for versions in lies.values()]
        rows.append([what, *(f"{value:.2f}" for value in areas)])
    return table(["sign", *(what.removeprefix("lie: ") for what in lies)], rows)


def _threshold_table(study: Study) -> str:
    chosen, rows = AuditThresholds(**choose(study)), []
    for kind in kinds(study):
        shares = [rates(kind.versions, at)["fooled"] for at in (DEFAULT, chosen)]
        rows.append([kind.what, len(kind.versions), *(f"{share:.0%}" for share in shares)])
    header = [
        f"{what}: {', '.join(f'{getattr(at, name):g}' for name in BEHAVIOUR)}"
        for at, what in ((DEFAULT, "library"), (chosen, "chosen"))
    ]
    return table(["called fooled", "models", *header], rows)


def _count_table(study: Study) -> str:
    counts = [count for count in COUNTS if count <= study.config.images]
    rows = [[k.what, *(f"{rates(k.versions, DEFAULT, n)['fooled']:.0%}" for n in counts)] for k in kinds(study)]
    return table(["called fooled \\ images", *map(str, counts)], rows)


def _size_table(study: Study) -> str:
    adaptive = [v for v in study.versions("test", "real") if v.name in ADAPTIVE]
    edges, rows = (study.config.lie, 2 * study.config.lie, 3 * study.config.lie, float("inf")), []
    for low, high in pairwise(edges):
        of = [version for version in adaptive if low < version.lost <= high]
        if of:
            found = f"{sum(judged(version).fooled for version in of)} of {len(of)}"
            what = f"{low:.1g} to {high:.1g}" if high < edges[-1] else f"more than {low:.1g}"
            honest = negatives(study)
            rows.append([what, found, f"{found_at(honest, of):.0%}", f"{_area(honest, of):.2f}"])
    return table(["honesty lost", "called fooled", "found at 5% false alarms", "AUROC"], rows)


def _change_table(study: Study) -> str:
    small, rows = study.versions("test"), []
    for name in ("clean", *HARMLESS, *attacks(study.config)):
        of = [version for version in small if version.name == name]
        if not of:
            continue
        lies = [version for version in of if version.attacked and version.lost > study.config.lie]
        found = [judged(version).verdict == "fooled" for version in lies]
        reported = sum(judged(version).verdict == "fooled" for version in of)
        means = [np.mean([version.found[key] for version in of]) for key in ("agreement", "behaviour_kept")]
        kept = [np.mean([version.found[f"{key}_kept"] for version in of]) for key in ("gradcam", "diffgradcam")]
        lost = [np.mean([version.found[f"{key}_lost"] for version in of]) for key in ("gradcam", "diffgradcam")]
        numbers = [f"{value:.2f}" for value in (*means, *kept, *lost)]
        rows.append([name, len(of), *numbers, f"{reported} of {len(of)}", _proportion(found)])
    header = ["version", "models", "same decisions", "behaviour kept", "GradCAM's r with clean"]
    header += ["DiffGradCAM's r with clean", "GradCAM's honesty lost", "DiffGradCAM's honesty lost"]
    return table([*header, "called fooled", "of the lies"], rows)


def _proportion(found: Sequence[bool]) -> str:
    if not found:
        return "-"
    interval = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return f"{sum(found)} of {len(found)} [{interval.low:.2f}, {interval.high:.2f}]"


def _real(study: Study) -> str:
    rows = []
    for version in study.versions("real"):
        found = judged(version)
        share = float(version.sign("common_mode_share").median())
        gap = SIGNS["gap"][1](version)
        lies = version.lost > study.config.lie
        truth = ("lie" if lies else "") if version.attacked else "not attacked"
        numbers = [f"{share:.2g}", f"{float(found.offset.median()):.2f}", f"{gap:.2f}", f"{_honesty(version):.2f}"]
        numbers.append(f"{_consistency(version):.2f}")
        said = f"{found.verdict} ({', '.join(found.signs)})" if found.signs else found.verdict
        rows.append([version.model, version.name, truth, f"{version.lost:.2f}", *numbers, said])
    if not rows:
        return ""
    header = ["model", "version", "truth", "honesty lost", "median share", "offset"]
    return (
        "*Offset*: median cosine of the common mode with the sum of the activations. *Gap*: by how much the agreement "
        "with occlusion is better without the common mode. *Honesty* and *consistency*: of the map without the common "
        "mode. Without a word in the third column, the attack moved too little for a lie.\n\n"
        + table([*header, "gap", "honesty", "consistency", "verdict"], rows)
    )


def _accuracy_table(study: Study) -> str:
    rows = []
    for data in _levels(study.learned("test"), "data"):
        for split in ("calibration", "test"):
            of = [cell["accuracy"] for cell in study.learned(split) if cell["design"]["data"] == data]
            spread = f"{np.median(of):.3f} ({min(of):.3f} to {max(of):.3f})" if of else "-"
            rows.append([data, split, len(of), spread])
    return table(["data", "networks", "learned", "accuracy: median (range)"], rows)


# --- figures ---------------------------------------------------------------------------------------------------------


def draw_answer(study: Study, path: Path) -> None:
    """The verdicts, by what was done to the model."""
    import matplotlib.pyplot as plt

    rows = kinds(study)
    figure, axis = plt.subplots(figsize=(10, 0.42 * len(rows) + 1.3), layout="constrained")
    for y, kind in enumerate(rows):
        left = 0.0
        for verdict, share in rates(kind.versions).items():
            axis.barh(y, 100 * share, left=left, color=_COLOURS[verdict], height=0.72)
            left += 100 * share
        axis.text(101.5, y, str(len(kind.versions)), va="center", fontsize=9)
    for verdict in VERDICTS:
        axis.barh([0], [0], color=_COLOURS[verdict], label=verdict)
    axis.set_yticks(range(len(rows)), [row.what for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("models, %; right: how many")
    axis.legend(ncols=len(VERDICTS), loc="lower center", bbox_to_anchor=(0.4, 1), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _shaped(version: Version) -> bool:
    """Whether there is an exposure that is not a mere offset."""
    report = judged(version)
    return report.exposed and not report.is_offset


def draw_signs(study: Study, path: Path) -> None:
    """The gap and the consistency of every version, with the thresholds."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8.5, 5), layout="constrained")
    for number, kind in enumerate(kinds(study)):
        lies = kind.what.startswith("lie: ")
        gaps = [max(0.0, SIGNS["gap"][1](v)) if _shaped(v) else 0.0 for v in kind.versions]
        marker = "x" if lies else "." if kind.what.startswith("no lie") else "o"
        size = 36 if lies else 30
        colour = ("C0", "C9", "C2", "C8", "C3", "C1", "C4", "C6", "k", "0.7")[number]
        consistency = [_consistency(v) for v in kind.versions]
        axis.scatter(consistency, gaps, s=size, c=colour, marker=marker, label=kind.what, alpha=0.8)
    axis.axvline(DEFAULT.consistency, color="0.6", linestyle=":")
    axis.axhline(DEFAULT.gap, color="0.6", linestyle=":")
    axis.set_xlabel("consistency without the common mode\n(a lie left of the line, or where honesty is low)")
    axis.set_ylabel("gap, 0 where not exposed, or by an offset\n(a lie above the line)")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the pages and the figures."""
    parser = report_parser("experiments.audit.report", __doc__, RESULTS)
    options = parser.parse_args(arguments)
    study = load(options.results)
    options.docs.mkdir(parents=True, exist_ok=True)
    draw_answer(study, options.docs / "audit.png")
    draw_signs(study, options.docs / "audit_signs.png")
    (options.docs / "audit.md").write_text(markdown(study), encoding="utf-8")
    (options.docs / "audit_tables.md").write_text(tables(study), encoding="utf-8")


if __name__ == "__main__":
    main()
