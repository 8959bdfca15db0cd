"""Write the pages and the figures: ``python -m experiments.sham.report``.

Reads the finished cells and writes to ``docs/results``: the answer (``sham.md`` with ``sham.png``) and all tables
(``sham_tables.md`` with ``sham_maps.png`` and ``sham_strength.png``). Every number is a mean over the seeds that ran.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from experiments.cells import read
from experiments.pages import report_parser, table

from .attacks import ATTACKS, CLOSED_FORM, STRENGTH, TRAINING, shown_strength, training_of
from .explainers import CONTRASTIVE, PLAIN
from .run import CLEAN, RESULTS, SWEPT_ATTACKS, SWEPT_SETTINGS
from .settings import SETTINGS

EXPLAINERS = (*PLAIN, *CONTRASTIVE)
PARTS = {"held_out": "held-out images", "fitted": "images that the attack saw"}
IMMUNE, RUINED, REPLACED = 0.99, 0.5, 0.5  # Pearson's r; the words of the page
_DRAWN = ("GradCAM", "GradCAM++", "LayerCAM", "DiffGradCAM logsumexp", "DiffGradCAM max", "DiffGradCAM mean")
_DIFF = "DiffGradCAM logsumexp"
_ANSWER = {  # the attacks that lead the page, and what each does
    "common mode": "one vector added to every class",
    "spatial": "features rolled by half the map",
    "SHAM on GradCAM": "fine-tuned to fool GradCAM",
    "SHAM on DiffGradCAM logsumexp": "fine-tuned to fool DiffGradCAM",
}

Key: TypeAlias = tuple[str, str, float | None]  # setting, attack, strength


class Range(NamedTuple):
    """A mean over seeds and the lowest and highest of them; NaN where nothing is defined."""

    mean: float
    low: float
    high: float


class Results(NamedTuple):
    """The cells of each (setting, attack, strength), one for each seed."""

    cells: dict[Key, list[dict[str, Any]]]

    @property
    def settings(self) -> list[str]:
        """Settings with at least one cell of an attack."""
        return [s for s in SETTINGS if any(key[0] == s and key[1] != CLEAN for key in self.cells)]

    def over_seeds(self, key: Key, metric: Callable[[dict[str, Any]], float | None]) -> Range:
        """Mean and range of a metric of the cells."""
        values = [value for cell in self.cells.get(key, []) if (value := metric(cell)) is not None]
        return Range(float(np.mean(values)), min(values), max(values)) if values else Range(np.nan, np.nan, np.nan)

    def map(
        self, setting: str, attack: str, explainer: str, what: str, part: str, strength: float | None = None
    ) -> Range:
        """Pearson's r of an explainer's map: ``kept``, ``reached_before`` or ``reached_after``."""
        key = (setting, attack, shown_strength(setting, attack) if strength is None else strength)
        return self.over_seeds(key, lambda cell: cell[part]["rows"][explainer][what]["pearson"])

    def decisions(self, setting: str, attack: str, what: str, part: str, strength: float | None = None) -> Range:
        """A metric of the decisions."""
        key = (setting, attack, shown_strength(setting, attack) if strength is None else strength)
        return self.over_seeds(key, lambda cell: cell[part]["decisions"][what])

    def first_seed(self) -> Results:
        """The cells of the first seed alone, which has all strengths."""
        return Results({key: [cell for cell in cells if cell["seed"] == 0] for key, cells in self.cells.items()})

    def has(self, setting: str, attack: str) -> bool:
        """Whether the attack ran at the strength that tables show."""
        return (setting, attack, shown_strength(setting, attack)) in self.cells


def load(results: Path = RESULTS) -> Results:
    """Read the cells.

    Args:
        results: Folder of the cells.

    Returns:
        The cells by setting, attack and strength.

    Raises:
        ValueError: If there are none, or they have different configurations.
    """
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for cell in read(results):
        found[cell["setting"], cell["attack"], cell["strength"]].append(cell)
    if not found:
        raise ValueError(f"there are no cells in {results}; run python -m experiments.sham.run")
    return Results(dict(found))


def markdown(results: Results) -> str:
    """The page: the answer, one table, how it was done."""
    seeds = {len(cells) for key, cells in results.cells.items()}
    cells = sum(map(len, results.cells.values()))
    hours = sum(cell["seconds"] for cells in results.cells.values() for cell in cells) / 3600
    parts = [
        "# Which explainers does each attack fool?",
        "![Four panels, one for each attack; in each, how much of its clean map every explainer keeps, one dot for "
        "each of the settings](sham.png)",
        *_answer(results),
        _lead_table(results),
        "*kept / reached*: Pearson's r of the fooled model's map with the clean model's map, and with the hoax, "
        "on the images that the attack saw; means over seeds and images. *Same decisions*: the share of those images "
        "whose predicted class does not change, lowest to highest setting. "
        "[All explainers, attacks and images](sham_tables.md). A map that moved need not lie: "
        "[lies and changes apart](lies.md), on more photographs.",
        "## How it was done",
        f"{cells} cells (one model, one attack, one strength, one seed), {_between(seeds)} seeds each, {hours:.1f} "
        "hours on one core. Generated by `python -m experiments.sham.report` from the cells that "
        "`python -m experiments.sham.run` wrote; do not edit.",
        _setup(),
    ]
    return "\n\n".join(parts) + "\n"


def _answer(results: Results) -> list[str]:
    """Three sentences for a reader who stops there."""
    attacks = {attack: span(results, attack, _DIFF, "kept") for attack in _ANSWER}
    return [
        "**One vector added to every class changes no decision and ruins GradCAM**: it keeps r = "
        f"{span(results, 'common mode', 'GradCAM', 'kept')} of its clean map over {len(results.settings)} settings, "
        f"while each of the {len(CONTRASTIVE)} contrastive maps keeps at least "
        f"{lowest_kept(results, 'common mode'):.4f}.",
        f"**Other attacks fool contrastive maps too**: DiffGradCAM keeps {attacks['SHAM on GradCAM']} when the model "
        f"is fine-tuned to fool GradCAM, {attacks['SHAM on DiffGradCAM logsumexp']} when it is fine-tuned to fool "
        f"DiffGradCAM, and {attacks['spatial']} when the features are moved before the pooling.",
        "**A hoax shows less on images that the attacker did not have**: after fine-tuning on GradCAM, GradCAM matches "
        f"the hoax with r = {span(results, 'SHAM on GradCAM', 'GradCAM', 'reached_after')} on the images that the "
        f"attack saw, and {span(results, 'SHAM on GradCAM', 'GradCAM', 'reached_after', 'held_out')} on others.",
    ]


def span(results: Results, attack: str, explainer: str, what: str, part: str = "fitted") -> str:
    """The lowest and the highest mean of :meth:`Results.map` over the settings in which an attack ran, in words."""
    settings = [setting for setting in results.settings if results.has(setting, attack)]
    values = [results.map(setting, attack, explainer, what, part).mean for setting in settings]
    return f"{min(values):.2f} to {max(values):.2f}"


def lowest_kept(results: Results, attack: str) -> float:
    """The least that any contrastive map keeps of itself, r, over settings, parts and seeds."""
    return min(
        results.map(setting, attack, explainer, "kept", part).low
        for setting in results.settings
        if results.has(setting, attack)
        for explainer in CONTRASTIVE
        for part in PARTS
    )


def _lead_table(results: Results) -> str:
    lines = []
    for attack, what in _ANSWER.items():
        settings = [setting for setting in results.settings if results.has(setting, attack)]
        same = [results.decisions(setting, attack, "agreement", "fitted").mean for setting in settings]
        for explainer in ("GradCAM", _DIFF):
            cells = [
                _kept_reached(results, s, attack, explainer, "fitted") if s in settings else ""
                for s in results.settings
            ]
            first = explainer == "GradCAM"
            lines.append([what if first else "", explainer, *cells, f"{min(same):.2f} to {max(same):.2f}" * first])
    return table(["attack", "explainer", *results.settings, "same decisions"], lines)


def tables(results: Results) -> str:
    """The page of all tables: every explainer, attack, setting and part."""
    parts = [
        "# Attacks: all tables",
        "The answer, the settings and the attacks are in [Which explainers does each attack fool?](sham.md). Generated "
        "by `python -m experiments.sham.report`; do not edit.",
        f"*Kept*: Pearson's r of the fooled model's map with the clean model's, by the same explainer for the same "
        f"class. *Reached*: r with the hoax. *Unmoved*: kept at least {IMMUNE:g} in every seed. *Ruined*: kept below "
        f"{RUINED:g}. *Replaced*: reached at least {REPLACED:g}.",
        "![Pearson's r of each explainer's map with its own clean map, for every setting and attack](sham_maps.png)",
        "## In words",
        *_reading(results),
        "## What each attack costs in decisions",
        "At the strength of the tables, mean over seeds [lowest, highest]. Accuracy where there are labels.",
        _decisions_table(results),
        "## Maps",
        "Each entry is *kept / reached*, means over seeds and images; the column *clean* has, in brackets, the r of "
        f"the clean map with the hoax. Bold: at least {IMMUNE:g} of the map is kept in every seed.",
        *(
            f"### {setting}, {what}\n\n{_maps_table(results, setting, part)}"
            for setting in results.settings
            for part, what in PARTS.items()
        ),
        "## Do contrastive maps match GradCAM on clean models?",
        "Pearson's r with GradCAM of the same clean model, held-out images, mean over seeds [lowest, highest].",
        _clean_table(results),
        "## Strength",
        "One line for each explainer, one point for each strength of the attack; one seed, held-out images. Lines join "
        f"the strengths in order: {_strengths()}. Horizontal: what the attack costs in decisions. Vertical: r with the "
        "hoax. The common-mode hoax costs nothing at any strength, so the horizontal axis is its strength.",
        "![How far the map reaches the hoax, against the cost in decisions](sham_strength.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _strengths() -> str:
    drawn = {"common mode": "common mode", "SHAM": SWEPT_ATTACKS[0]}
    return "; ".join(
        f"{name} {', '.join(f'{s:g}' for s in ATTACKS[attack].strengths)} ({ATTACKS[attack].unit})"
        for name, attack in drawn.items()
    )


def _setup() -> str:
    trained = "; ".join(
        f"{name} {t.epochs} epochs at {t.lr:g}, preserving {t.preserve}" for name, t in TRAINING.items()
    )
    return (
        "**Settings.** *digits*: a small network trained on scikit-learn's digits (10 classes). *orientation*: a "
        "pretrained PP-LCNet that tells the four orientations of a page; its head is not a pooled linear one. "
        "*lite0-K*: EfficientNet-Lite0 with its ImageNet weights, its last layer restricted to K rows. The held-out "
        "images are other digits, another photograph (orientation), or six other photographs (lite0). There are only "
        "18 photographs in all: the attacks on lite0 saw 72 crops of 12 of them, so the results on new photographs say "
        "little about an attacker who has more.\n\n"
        "**Attacks.** *common mode*: one vector added to the weights of every class, fitted in closed form (on "
        'orientation trained by `finetune(scope="common_mode")`). *spatial*: the last activations rolled by half the '
        "map. *SHAM*: fine-tuning with the mean squared error to the border hoax. *Location*: the older loss of Heo et "
        "al. *SHAM on DiffGradCAM*: the same attack aimed at the contrastive map. Fine-tuning uses Adam with batch "
        f"norm frozen: {trained}. The weight of fooling in the loss is {ATTACKS['SHAM on GradCAM'].strength:g}, on "
        f"digits {STRENGTH['digits']:g}. Nothing was tuned per attack. Learning rates and weights were chosen on seed "
        "0 with the attack on GradCAM, so that maps move while most held-out decisions stay."
    )


def _reading(results: Results) -> list[str]:
    return [
        "\n".join(f"- {line}" for line in lines)
        for lines in (_immunity(results), _trained(results), _adaptive(results))
    ]


def _immunity(results: Results) -> Iterable[str]:
    for attack in CLOSED_FORM:
        settings = [setting for setting in results.settings if results.has(setting, attack)]
        unmoved = [
            explainer
            for explainer in EXPLAINERS
            if all(results.map(s, attack, explainer, "kept", part).low >= IMMUNE for s in settings for part in PARTS)
        ]
        worst = min(
            (
                results.map(s, attack, explainer, "kept", part).low
                for s in settings
                for part in PARTS
                for explainer in unmoved
            ),
            default=np.nan,
        )
        ruined = [
            explainer
            for explainer in EXPLAINERS
            if all(results.map(s, attack, explainer, "kept", "fitted").mean < RUINED for s in settings)
        ]
        yield (
            f"**{attack}** ({len(settings)} settings): unmoved in every setting, on seen and held-out images: "
            f"{_list(unmoved)}"
            + (f" (lowest kept {worst:.4f})" if unmoved else "")
            + f". Ruined in every setting, on images that the attack saw: {_list(ruined)}. "
            + _movement(results, attack, "GradCAM", settings)
        )


def _movement(results: Results, attack: str, explainer: str, settings: Sequence[str]) -> str:
    return (
        f"{explainer} kept / reached on seen images: "
        + ", ".join(f"{s} {_kept_reached(results, s, attack, explainer, 'fitted')}" for s in settings)
        + "; held out: "
        + ", ".join(f"{s} {_kept_reached(results, s, attack, explainer, 'held_out')}" for s in settings)
        + "."
    )


def _trained(results: Results) -> Iterable[str]:
    for attack in [attack for attack in ATTACKS if attack.endswith(" on GradCAM")]:
        settings = [setting for setting in results.settings if results.has(setting, attack)]
        for part, what in PARTS.items():
            differences = {
                explainer: [
                    results.map(s, attack, explainer, "reached_after", part).mean
                    - results.map(s, attack, "GradCAM", "reached_after", part).mean
                    for s in settings
                ]
                for explainer in _DRAWN[3:]
            }
            yield (
                f"**{attack}**, {what}: the hoax is reached less by "
                + "; ".join(
                    f"{explainer} than by GradCAM in {sum(d < 0 for d in ds)} of {len(ds)} settings "
                    f"({', '.join(f'{s} {d:+.2f}' for s, d in zip(settings, ds, strict=True))})"
                    for explainer, ds in differences.items()
                )
                + "."
            )


def _adaptive(results: Results) -> Iterable[str]:
    for attack in [attack for attack in ATTACKS if "DiffGradCAM" in attack]:
        victim = attack.removeprefix("SHAM on ")
        settings = [setting for setting in results.settings if results.has(setting, attack)]
        won = [s for s in settings if results.map(s, attack, victim, "reached_after", "fitted").mean >= REPLACED]
        yield (
            f"**Adaptive, {attack}**: the attacked map is replaced on seen images in {len(won)} of {len(settings)} "
            f"settings ({_list(won)}). {_movement(results, attack, victim, settings)}"
        )


def _decisions_table(results: Results) -> str:
    rows = []
    for setting in results.settings:
        for attack in ATTACKS:
            if not results.has(setting, attack):
                continue
            row = [setting, attack]
            for part in ("fitted", "held_out"):
                before, after = (results.decisions(setting, attack, f"accuracy_{w}", part) for w in ("before", "after"))
                row.append("" if np.isnan(before.mean) else f"{before.mean:.3f} → {_range(after, 3)}")
                row.append(_range(results.decisions(setting, attack, "agreement", part), 3))
                row.append(_small(results.decisions(setting, attack, "kl", part)))
            rows.append(row)
    header = ["setting", "attack"]
    header += [f"{what}, {where}" for where in ("seen", "held out") for what in ("accuracy", "agreement", "KL, nats")]
    return table(header, rows)


def _maps_table(results: Results, setting: str, part: str) -> str:
    attacks = [attack for attack in ATTACKS if results.has(setting, attack)]
    rows = []
    for explainer in EXPLAINERS:
        before = results.map(setting, attacks[0], explainer, "reached_before", part).mean
        row = [explainer, f"({before:.2f})"]
        for attack in attacks:
            shown = _kept_reached(results, setting, attack, explainer, part)
            row.append(f"**{shown}**" if results.map(setting, attack, explainer, "kept", part).low >= IMMUNE else shown)
        rows.append(row)
    return table(["explainer", "clean", *attacks], rows)


def _clean_table(results: Results) -> str:
    settings = [setting for setting in SETTINGS if (setting, CLEAN, None) in results.cells]

    def agreement(setting: str, explainer: str) -> str:
        return _range(results.over_seeds((setting, CLEAN, None), lambda cell: cell["maps"][explainer]), 3)

    rows = [[explainer, *(agreement(setting, explainer) for setting in settings)] for explainer in EXPLAINERS]
    return table(["explainer", *settings], rows)


def _kept_reached(results: Results, setting: str, attack: str, explainer: str, part: str) -> str:
    kept, reached = (results.map(setting, attack, explainer, what, part).mean for what in ("kept", "reached_after"))
    return f"{kept:.2f} / {reached:.2f}"


def _list(names: Sequence[str]) -> str:
    return "; ".join(names) or "none"


def _between(counts: Iterable[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _range(values: Range, digits: int) -> str:
    if np.isnan(values.mean):
        return ""
    return f"{values.mean:.{digits}f} [{values.low:.{digits}f}, {values.high:.{digits}f}]"


def _small(values: Range) -> str:
    return f"{values.mean:.2g} [{values.low:.2g}, {values.high:.2g}]"


# --- figures ---------------------------------------------------------------------------------------------------------


def draw_answer(results: Results, path: Path) -> None:
    """What a few explainers keep of their clean map: a panel for each attack, a dot for each setting."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(_ANSWER), figsize=(11, 3.8), sharey=True, layout="constrained")
    shift = np.linspace(-0.25, 0.25, len(results.settings))
    for axis, (attack, what) in zip(axes, _ANSWER.items(), strict=True):
        for index, setting in enumerate(results.settings):
            if not results.has(setting, attack):
                continue
            kept = [results.map(setting, attack, explainer, "kept", "fitted").mean for explainer in _DRAWN]
            axis.plot(kept, np.arange(len(_DRAWN)) + shift[index], "o", color=f"C{index}", markersize=5, label=setting)
        axis.axhline(sum(name in PLAIN for name in _DRAWN) - 0.5, color="0.6", linewidth=0.8)
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.axvline(1, color="0.8", linewidth=0.8, zorder=0)
        axis.set_xlim(-0.6, 1.1)
        axis.set_title(textwrap.fill(what, 20), fontsize=10)
        axis.tick_params(labelsize=9)
    axes[0].set_yticks(range(len(_DRAWN)), _DRAWN)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "r of the fooled model's map with the clean model's map (1: unchanged), images the attack saw", fontsize=9
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="setting", fontsize=9)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_maps(results: Results, path: Path) -> None:
    """What each explainer keeps of its map: a panel for each setting, on images that the attack saw and on others."""
    import matplotlib.pyplot as plt

    settings = results.settings
    figure, axes = plt.subplots(
        2, len(settings), figsize=(2.6 * len(settings) + 1.8, 9), squeeze=False, sharey=True, layout="constrained"
    )
    for line, (part, what) in zip(axes, PARTS.items(), strict=True):
        for axis, setting in zip(line, settings, strict=True):
            kept = np.array(
                [
                    [
                        results.map(setting, a, e, "kept", part).mean if results.has(setting, a) else np.nan
                        for a in ATTACKS
                    ]
                    for e in EXPLAINERS
                ]
            )
            image = axis.imshow(kept, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
            for (y, x), value in np.ndenumerate(kept):
                if not np.isnan(value):
                    axis.text(
                        x,
                        y,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=6,
                        color="w" if abs(value) > 0.6 else "k",
                    )
            axis.axhline(len(PLAIN) - 0.5, color="k", linewidth=0.8)
            axis.set_title(f"{setting}, {what}", fontsize=8)
            axis.set_xticks(range(len(ATTACKS)), ATTACKS, rotation=60, ha="right", fontsize=7)
            axis.set_yticks(range(len(EXPLAINERS)), EXPLAINERS, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.4, label="Pearson's r with the explainer's own clean map")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_strengths(results: Results, path: Path) -> None:
    """Fooledness against the cost in decisions, a line for each explainer; a row for each setting."""
    import matplotlib.pyplot as plt

    results = results.first_seed()
    settings = [setting for setting in SWEPT_SETTINGS if setting in results.settings]
    attacks = ("common mode", *SWEPT_ATTACKS)
    figure, axes = plt.subplots(
        len(settings),
        len(attacks),
        figsize=(4 * len(attacks), 3 * len(settings)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for line, setting in zip(axes, settings, strict=True):
        for axis, attack in zip(line, attacks, strict=True):
            _draw_strength(axis, results, setting, attack)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_DRAWN), fontsize=9)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _draw_strength(axis: Any, results: Results, setting: str, attack: str) -> None:
    strengths = [s for s in ATTACKS[attack].strengths if (setting, attack, s) in results.cells]
    before = results.decisions(setting, attack, "accuracy_before", "held_out")
    if attack == "common mode":
        cost, label = strengths, f"strength ({ATTACKS[attack].unit})"
        axis.set_xscale("log")
    elif np.isnan(before.mean) or training_of(setting).preserve == "decisions":
        cost = [results.decisions(setting, attack, "kl", "held_out", s).mean for s in strengths]
        label = "KL divergence of decisions, nats"
    else:
        cost = [
            results.decisions(setting, attack, "accuracy_before", "held_out", s).mean
            - results.decisions(setting, attack, "accuracy_after", "held_out", s).mean
            for s in strengths
        ]
        label = "accuracy lost"
    for index, explainer in enumerate(_DRAWN):
        reached = [results.map(setting, attack, explainer, "reached_after", "held_out", s).mean for s in strengths]
        style = "o-" if explainer in PLAIN else "s--"
        axis.plot(cost, reached, style, color=f"C{index}", markersize=4, linewidth=1, label=explainer)
    axis.set_title(f"{setting}: {attack}", fontsize=9)
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel("r with the hoax", fontsize=8)
    axis.tick_params(labelsize=7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the pages and the figures."""
    parser = report_parser("experiments.sham.report", __doc__, RESULTS)
    options = parser.parse_args(arguments)
    results = load(options.results)
    options.docs.mkdir(parents=True, exist_ok=True)
    draw_answer(results, options.docs / "sham.png")
    draw_maps(results, options.docs / "sham_maps.png")
    draw_strengths(results, options.docs / "sham_strength.png")
    (options.docs / "sham.md").write_text(markdown(results), encoding="utf-8")
    (options.docs / "sham_tables.md").write_text(tables(results), encoding="utf-8")


if __name__ == "__main__":
    main()
