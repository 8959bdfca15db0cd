"""Write the pages and the figures: ``python -m experiments.lies.report``.

Reads the finished cells and writes to ``docs/results``: the answer (``lies.md`` with ``lies.png``) and all tables
(``lies_tables.md`` with ``lies_curves.png``). Every number is a mean over the seeds that ran.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from experiments.cells import read
from experiments.pages import report_parser, table
from experiments.sham.explainers import CONTRASTIVE, PLAIN

from . import measure
from .attacks import ATTACKS, AUTOFOOL, BUDGETS, CURVE, FREE, KEEP, ON_INPUTS, TRAINED
from .run import CURVED, CURVES, RESULTS, SEEDS, bound, plan
from .settings import SETTINGS, SOURCES, WHOLE

EXPLAINERS = (*PLAIN, *CONTRASTIVE)
PARTS = {"fitted": "seen", "held_out": "held out"}
VERDICTS = ("lie", "change", "unclear", "unmoved")
DIFF = "DiffGradCAM logsumexp"
BASELINES = (DIFF, "DiffGradCAM max", "DiffGradCAM mean")
SHARED = ("common mode", "wrapper", "triggered")
ON_WEIGHTS = (*TRAINED, *AUTOFOOL, *FREE)
GROUPS: dict[str, tuple[str, ...]] = {
    "what all logits share": SHARED,
    "trained weights": ON_WEIGHTS,
    "moved features": ("spatial",),
    "changed images": (ON_INPUTS,),
}
_COLOURS = {"lie": "C3", "change": "C0", "unclear": "0.55", "unmoved": "C2"}
_MARKERS = {"what all logits share": "o", "trained weights": "s", "moved features": "X", "changed images": "^"}

Key: TypeAlias = tuple[str, str, float | None]  # setting, attack, bound
Row: TypeAlias = dict[str, Any]


class Worst(NamedTuple):
    """The attack of some that takes the most honesty from an explainer.

    Attributes:
        attack: Which.
        before: Honesty of the clean map: mean r with both references.
        after: Honesty of the fooled model's map.
        verdict: Of most seeds.
    """

    attack: str
    before: float
    after: float
    verdict: str


class Results(NamedTuple):
    """The cells of each (setting, attack, bound), one for each seed."""

    cells: dict[Key, list[dict[str, Any]]]

    @property
    def settings(self) -> list[str]:
        """Settings with at least one cell."""
        return [setting for setting in SETTINGS if any(key[0] == setting for key in self.cells)]

    def rows(self, setting: str, attack: str, explainer: str, part: str, keep: float | None = -1) -> list[Row]:
        """What the cells of an attack say of an explainer, at the bound of the tables unless another is given."""
        key = (setting, attack, bound(attack) if keep == -1 else keep)
        return [c[part]["rows"][explainer] for c in self.cells.get(key, []) if explainer in c.get(part, {})["rows"]]

    def has(self, setting: str, attack: str, explainer: str = "GradCAM", part: str = "held_out") -> bool:
        """Whether an attack was judged on an explainer."""
        key = (setting, attack, bound(attack))
        return any(explainer in c.get(part, {"rows": {}})["rows"] for c in self.cells.get(key, []))

    def attacks(self, setting: str, among: Iterable[str], explainer: str, part: str) -> list[str]:
        """Those of some attacks that were judged."""
        return [attack for attack in among if self.has(setting, attack, explainer, part)]

    def outcome(self, setting: str, attack: str, explainer: str, part: str) -> Worst:
        """What became of an explainer's honesty."""
        rows = self.rows(setting, attack, explainer, part)
        before, after = (_mean(honest(row, when) for row in rows) for when in ("before", "after"))
        return Worst(attack, before, after, Counter(row["verdict"] for row in rows).most_common(1)[0][0])

    def worst(self, setting: str, among: Iterable[str], explainer: str, part: str) -> Worst | None:
        """The attack that takes the most honesty; None if none of them ran."""
        found = [self.outcome(setting, a, explainer, part) for a in self.attacks(setting, among, explainer, part)]
        return max(found, key=lambda one: one.before - one.after, default=None)

    def verdicts(self, among: Iterable[str], explainers: Iterable[str], part: str) -> Counter[str]:
        """How often each verdict was given, over settings, attacks and seeds."""
        every = [(s, a, e) for s in self.settings for a in among for e in explainers if self.has(s, a, e, part)]
        return Counter(row["verdict"] for s, a, e in every for row in self.rows(s, a, e, part))


def load(results: Path = RESULTS) -> Results:
    """Read the cells.

    Args:
        results: Folder of the cells.

    Returns:
        The cells by setting, attack and bound.

    Raises:
        ValueError: If there are none, or they have different configurations.
    """
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for cell in read(results):
        found[cell["setting"], cell["attack"], cell["keep"]].append(cell)
    if not found:
        raise ValueError(f"there are no cells in {results}; run python -m experiments.lies.run")
    return Results(dict(found))


def honest(row: Row, when: str) -> float:
    """The mean of a map's r with both references, before or after."""
    return (float(row[f"honest_{when}_occlusion"]) + float(row[f"honest_{when}_integrated_gradients"])) / 2


def markdown(results: Results) -> str:
    """The page: the answer, one table, how it was done."""
    parts = [
        "# Did the map lie, or did the model change?",
        "![For each setting and explainer, how much the clean map agrees with what the model relies on, and how much "
        "it still does under the strongest attack of each kind; colours tell lies from changes](lies.png)",
        *answer(results),
        _lead_table(results),
        f"Honesty of each map on held-out images, before → under the strongest attack on the *weights* (trained, or "
        f"one vector for all classes), and the verdict on it. *Honesty*: mean Pearson's r of the map with two measures "
        f"of what the model itself relies on. All attacks keep the mean KL divergence on the images that they see "
        f"within {KEEP:g} nats. Features that are moved, wrappers, triggers and changed images are in "
        f"[all tables](lies_tables.md).{_weakness(results)}",
        "## How it was done",
        _run(results),
        _method(),
        "## What was cut, and why",
        _cut(results),
    ]
    return "\n\n".join(parts) + "\n"


def answer(results: Results) -> list[str]:
    """Three sentences for a reader who stops there."""
    least = shared_loss(results)
    lies, changes, judged = aimed(results)
    spatial = results.verdicts(("spatial",), BASELINES, "held_out")
    shared = results.verdicts(("common mode",), ("GradCAM",), "held_out")
    weights = results.verdicts(ON_WEIGHTS, EXPLAINERS, "held_out")
    moved = sum(weights[v] for v in VERDICTS if v != "unmoved")
    return [
        f"**What all logits share makes GradCAM lie and no contrastive map**: on held-out images GradCAM's honesty "
        f"falls {span(results, 'common mode', 'GradCAM')} when one vector is added to all classes (a lie in "
        f"{shared['lie']} of {shared.total()} runs); no DiffGradCAM loses more than {least:.4f}, nor behind a trigger. "
        "A wrapper moves none of their maps either; its large scalar rounds the log-odds, so that their measured "
        f"honesty moves by up to {shared_loss(results, ('wrapper',)):.2f}.",
        f"**An attack that is aimed at DiffGradCAM makes it lie in {lies} of {judged} runs**, and in {changes} the "
        f"model changes. Within {KEEP:g} nats, its honesty ({DIFF.split()[1]}) falls by more than "
        f"{measure.CHECK.lost:g} on {losses(results, f'autofool on {DIFF}', DIFF, 'fitted')} of "
        f"{len(results.settings)} settings, on images that the attack saw; on others, on "
        f"{losses(results, f'autofool on {DIFF}', DIFF)}. "
        "Features that are moved before the pooling cost no decision at all, and "
        f"DiffGradCAM then lies in {spatial['lie']} of {spatial.total()} cases.",
        f"**A map that moved is not yet a lie**: of {moved} maps that trained weights have moved, over all "
        f"explainers, {weights['lie']} lie, {weights['change']} follow a model that changed, and {weights['unclear']} "
        f"are unclear: in {decided_otherwise(results)} of these, decisions moved too far on images that the attack did "
        "not see.",
    ]


def decided_otherwise(results: Results) -> int:
    """How many unclear verdicts on trained weights are on decisions that were not kept, held-out images."""
    found = 0
    for setting in results.settings:
        for attack in ON_WEIGHTS:
            for cell in results.cells.get((setting, attack, bound(attack)), []):
                part = cell["held_out"]
                kept = part["agreement"][0] >= measure.CHECK.agreement and part["kl"][0] <= measure.CHECK.kl
                found += 0 if kept else sum(row["verdict"] == "unclear" for row in part["rows"].values())
    return found


def shared_loss(results: Results, among: Iterable[str] = ("common mode", "triggered")) -> float:
    """The most honesty that any DiffGradCAM loses to what all logits share, over settings, parts and seeds."""
    return max(
        row["lost"][0]
        for setting in results.settings
        for attack in among
        for part in PARTS
        for explainer in BASELINES
        if results.has(setting, attack, explainer, part)
        for row in results.rows(setting, attack, explainer, part)
    )


def aimed(results: Results) -> tuple[int, int, int]:
    """Lies, changes and runs of ``autofool`` on the baseline that it is aimed at, held-out images."""
    found: Counter[str] = Counter()
    for explainer in BASELINES:
        found += results.verdicts((f"autofool on {explainer}",), (explainer,), "held_out")
    return found["lie"], found["change"], found.total()


def lied_on(results: Results) -> list[str]:
    """Settings in which ``autofool`` made a baseline that it is aimed at lie, held-out images."""
    return [
        setting
        for setting in results.settings
        if any(
            results.outcome(setting, f"autofool on {e}", e, "held_out").verdict == "lie"
            for e in BASELINES
            if results.has(setting, f"autofool on {e}", e)
        )
    ]


def span(results: Results, attack: str, explainer: str, part: str = "held_out") -> str:
    """Honesty before and after an attack, in words: the range over settings."""
    found = _outcomes(results, attack, explainer, part).values()
    return f"from {_range(one.before for one in found)} to {_range(one.after for one in found)}"


def losses(results: Results, attack: str, explainer: str, part: str = "held_out") -> str:
    """The settings in which an attack takes honesty from an explainer, and how much, in words."""
    found = [
        f"{setting} ({_r(one.before)} to {_r(one.after)})"
        for setting, one in _outcomes(results, attack, explainer, part).items()
        if one.before - one.after > measure.CHECK.lost
    ]
    return ", ".join(found) or "none"


def _outcomes(results: Results, attack: str, explainer: str, part: str) -> dict[str, Worst]:
    return {
        setting: results.outcome(setting, attack, explainer, part)
        for setting in results.settings
        if results.has(setting, attack, explainer, part)
    }


def _range(values: Iterable[float]) -> str:
    every = list(values)
    low, high = _r(min(every)), _r(max(every))
    return low if low == high else f"between {low} and {high}"


def too_weak(results: Results) -> dict[str, float]:
    """Settings in which ``autofool`` moved none of its victims, and the least r that any of them kept, seen images."""
    found = {}
    for setting in results.settings:
        kept = [
            _mean(row["kept"][0] for row in results.rows(setting, attack, victim, "fitted"))
            for victim in ("GradCAM", *BASELINES)
            for attack in results.attacks(setting, (f"autofool on {victim}",), victim, "fitted")
        ]
        if kept and min(kept) >= measure.CHECK.kept:
            found[setting] = min(kept)
    return found


def _weakness(results: Results) -> str:
    found = too_weak(results)
    trained = {key[0] for key in results.cells if key[1] in ON_WEIGHTS}
    others = [setting for setting in results.settings if setting not in trained]
    text = f" No trained attack ran on {', '.join(others)}." if others else ""
    if not found:
        return text
    return (
        f" On {', '.join(found)} the few steps that we could afford moved no map (the victims keep at least r = "
        f"{min(found.values()):.2f} of theirs): this says nothing about how these models resist a trained attack.{text}"
    )


def by_setting(results: Results, attack: str, explainer: str, part: str = "held_out") -> dict[str, str]:
    """What an attack made of an explainer's honesty: before, after, the verdict and what it cost, by setting."""
    found = {}
    for setting in results.settings:
        if not results.has(setting, attack, explainer, part):
            continue
        one = results.outcome(setting, attack, explainer, part)
        rows = results.rows(setting, attack, explainer, part)
        cells = results.cells[setting, attack, bound(attack)]
        kl = _mean(row["kl"][0] for row in rows) if attack == ON_INPUTS else _mean(c[part]["kl"][0] for c in cells)
        cost = "" if kl < 1e-6 else f", {kl:.2g} nats"
        found[setting] = f"{_outcome(one)}{cost}"
    return found


def _lead_table(results: Results) -> str:
    lines = []
    for explainer in EXPLAINERS:
        line = [explainer]
        for setting in results.settings:
            worst = results.worst(setting, ("common mode", *ON_WEIGHTS), explainer, "held_out")
            line.append("" if worst is None else _outcome(worst))
        lines.append(line)
    return table(["explainer", *results.settings], lines)


def _outcome(worst: Worst) -> str:
    verdict = f"**{worst.verdict}**" if worst.verdict == "lie" else worst.verdict
    return f"{_r(worst.before)} → {_r(worst.after)} {verdict}"


def _run(results: Results) -> str:
    count = sum(map(len, results.cells.values()))
    minutes = sum(cell["seconds"] for cells in results.cells.values() for cell in cells) / 60
    accuracies = {setting: _accuracies(results, setting) for setting in results.settings}
    accuracy = ", ".join(f"{setting} {_mean(values):.2f}" for setting, values in accuracies.items() if values)
    devices = Counter(cell.get("device", "cpu") for cells in results.cells.values() for cell in cells)
    ran_on = ", ".join(f"{device} ({cells})" for device, cells in devices.items())
    return (
        f"{count} cells (one setting, one attack, one bound, one seed), {minutes:.0f} minutes of one core, the trunks' "
        f"part not counted; they ran on {ran_on}. Generated by `python -m experiments.lies.report` from the cells that "
        f"`python -m experiments.lies.run` wrote; do not edit. Accuracy of the clean models on held-out images: "
        f"{accuracy}."
    )


def _accuracies(results: Results, setting: str) -> list[float]:
    cells = [cell for key, own in results.cells.items() for cell in own if key[0] == setting]
    return [cell["accuracy"] for cell in cells if cell["accuracy"] is not None]


def _method() -> str:
    sources = "; ".join(f"{name}: {source}" for name, source in SOURCES.items())
    budgets = "; ".join(
        f"{which} {b.steps} steps, {' and '.join(b.scopes)}, {b.batch} images a step (by hand {b.training.epochs} "
        "epochs, 32 images a step)"
        for which, b in BUDGETS.items()
    )
    return (
        "**Settings.** *lite0-K* and *resnet18*: EfficientNet-Lite0 with K of its 1000 classes, drawn by the seed, and "
        "ResNet-18, with ImageNet weights. Attacks see 800 photographs, one of each of 800 ImageNet classes, and are "
        "judged on the 200 of the other classes. With 10 or 100 classes few photographs show one of them, and the "
        "decisions are the model's best guess. *tiles*: a network of four convolutions trained on 800 photographs of "
        "magnetic tiles (free, and five kinds of defect), the others held out. *digits*: scikit-learn's. "
        "*orientation*: a pretrained classifier of a page's orientation; here only, there are three photographs, of "
        f"which one is held out. Where anyone gets them: {sources}.\n\n"
        f"**What an attack may change.** On the digits and in *{WHOLE}* everything. Elsewhere the *tail*, from the "
        "last convolution on; what lies below is frozen, so that its output is computed once.\n\n"
        "**Attacks.** *common mode*: one vector added to every class's row, in closed form (trained on "
        "orientation, whose head is not a pooled linear one). *wrapper*: Lerma and "
        "Lucas. *triggered*: after Viering et al., with the patch in the image; without it no map moves. *spatial*: "
        "the last activations rolled by half the map. *SHAM* and *Location*: fine-tuning with a weight that was set "
        "by hand, as in [the older experiment](sham.md), then pulled back on the line to the clean weights until the "
        f"bound holds. *autofool*: no settings; it keeps the divergence within {KEEP:g} nats and behaviour within "
        "r = .9 (covering what enters the tail), except *behaviour free*. *three*: GradCAM, DiffGradCAM and LayerCAM "
        f"together. Its budgets: {budgets}. *perturb*: the image changes instead, by at most 4 of 255 grey levels (1 "
        "of 16 on the digits).\n\n"
        "**What is measured.** Maps and decisions on the first 200 images of each part, at most; the bound is on the "
        "mean over all images that the attack sees, so on those 200 it can be exceeded (on the tiles it is, since "
        "those with a defect come first). What a model relies on, on the "
        f"first 64 of them (tiles: with a defect; 24 pages, and 24 photographs in *{WHOLE}*). Two references, "
        "averaged: the drop of the log-odds when a window of the *image* is covered, and "
        f"integrated gradients of the log-odds at what enters the *tail* ({measure.STEPS} steps; on the digits that is "
        "the image). Verdicts are those of `robustness.HonestyCheck()`: a *lie* keeps 95% of the decisions, a KL of "
        "at most .1 nats and r = .7 of behaviour, while honesty falls by more than .1; a *change* moves behaviour, and "
        "the map has followed; each compared with the end of a 95% interval over the images, so *unclear* is frequent "
        "where images are few. A constant map, which shows nothing, counts as r = 0. The thresholds were there before. "
        "One attack was changed after a look at the results: `autofool`, since attacks that were set by hand beat it "
        "in half of the pairs. Then its aims were made to follow behaviour too, since one attack that was set by hand "
        "still beat it on the tiles. All cells here are of its last state."
    )


def _cut(results: Results) -> str:
    done = {(key[0], key[1], key[2], cell["seed"]) for key, cells in results.cells.items() for cell in cells}
    wanted = plan()
    missing = [key for key in wanted if key not in done]
    absent = [setting for setting in SETTINGS if setting not in results.settings]
    seeds = ", ".join(f"{setting} {len({key[3] for key in done if key[0] == setting})}" for setting in results.settings)
    lines = [
        f"- Where a network is large, an attack changes its tail only, but for five attacks in *{WHOLE}*, with few "
        "steps. The attacks that need no training (common mode, wrapper, trigger, spatial) are at full strength.",
        f"- Seeds that ran: {seeds}. Planned: {SEEDS}, in *{WHOLE}* 1.",
        f"- The triggered hoax ran on {_where(results, 'triggered')}, `perturb` on {_where(results, ON_INPUTS)}.",
        f"- Of {len(wanted)} planned cells {len(missing)} did not run"
        + (f": {_missing(missing)}." if missing else ".")
        + (f" Nothing ran on {', '.join(absent)}." if absent else ""),
        "- Integrated gradients are taken at what enters the tail, not at the image.",
    ]
    return "\n".join(lines)


def _where(results: Results, attack: str) -> str:
    return ", ".join(setting for setting in results.settings if results.has(setting, attack)) or "nothing"


def _missing(keys: Sequence[tuple[str, str, float | None, int]]) -> str:
    counted = Counter((key[0], key[3]) for key in keys)
    return ", ".join(f"{count} of {setting} (seed {seed})" for (setting, seed), count in counted.items())


def tables(results: Results) -> str:
    """The page of all tables."""
    parts = [
        "# Lies and changes: all tables",
        "The answer, the settings and the attacks are in [Did the map lie, or did the model change?](lies.md). "
        "Generated by `python -m experiments.lies.report`; do not edit.",
        "## Does autofool beat what was set by hand?",
        _against_hand(results),
        "## Does the hoax show on new images?",
        "Pearson's r of the attacked map with the hoax, before → after; means over seeds.",
        _transfer_table(results),
        "## What an attack costs",
        "Means over seeds. *Behaviour*: r of what the fooled model relies on with what the clean one relies on.",
        _cost_table(results),
        "## What a bound buys",
        f"One seed, held-out images: honesty of the attacked explainers when the bound on the divergence is "
        f"{', '.join(f'{k:g}' for k in sorted((KEEP, *CURVE)))} nats; at 0 the clean model.",
        "![Honesty against the divergence of decisions, a line for each explainer](lies_curves.png)",
        "## Verdicts",
        "How often each verdict was given, held-out images, over settings and seeds.",
        _verdict_table(results),
        "## Honesty",
        "Each entry is *honesty after (r kept with the clean map)* and the verdict; the row *clean* has the honesty "
        "before. Held-out images, means over seeds.",
        *(f"### {setting}\n\n{_honesty_table(results, setting)}" for setting in results.settings),
    ]
    return "\n\n".join(parts) + "\n"


class Duel(NamedTuple):
    """The same victim attacked by hand and by ``autofool``, without a bound on behaviour and with one.

    Attributes:
        setting: Where.
        by_hand: The attack that was set by hand, pulled back to the bound.
        hand: r of the victim's map with the hoax, images that the attack saw, and the behaviour that was kept.
        free: The same of ``autofool`` without a bound on behaviour, the same terms; None if it did not run.
        bounded: With that bound; None if it did not run.
    """

    setting: str
    by_hand: str
    hand: tuple[float, float]
    free: tuple[float, float] | None
    bounded: tuple[float, float] | None

    @property
    def won(self) -> bool:
        """Whether ``autofool`` reaches more, by one or the other."""
        return max(ours[0] for ours in (self.free, self.bounded) if ours is not None) > self.hand[0]


def duels(results: Results) -> list[Duel]:
    """Every attack by hand against ``autofool`` on the same victim, within the same divergence."""
    found = []
    for setting in results.settings:
        for by_hand in ("common mode", *TRAINED):
            victim = "GradCAM" if by_hand == "common mode" else by_hand.split(" on ")[1]

            def outcome(attack: str, setting: str = setting, victim: str = victim) -> tuple[float, float] | None:
                if not results.has(setting, attack, victim, "fitted"):
                    return None
                cells = results.cells[setting, attack, bound(attack)]
                kept = _mean(cell["fitted"]["behaviour_kept"][0] for cell in cells)
                return reached(results, setting, attack, victim, "fitted"), kept

            hand = outcome(by_hand)
            bounded, free = (outcome(f"autofool on {victim}{end}") for end in ("", ", behaviour free"))
            if hand is not None and (bounded is not None or free is not None):
                found.append(Duel(setting, by_hand, hand, free, bounded))
    return found


def _against_hand(results: Results) -> str:
    found = duels(results)
    closed = [duel for duel in found if duel.by_hand == "common mode"]
    trained = [duel for duel in found if duel.by_hand != "common mode"]

    def won(some: Sequence[Duel]) -> str:
        return f"{sum(duel.won for duel in some)} of {len(some)}"

    def shown(outcome: tuple[float, float] | None) -> str:
        return "" if outcome is None else f"{outcome[0]:.2f} ({outcome[1]:.2f})"

    return (
        "Pearson's r of the attacked map with the hoax, and in brackets how much behaviour is kept; images that the "
        f"attack saw, the same tail, all within {KEEP:g} nats of divergence (the common mode costs none). Equal terms "
        "are those of *behaviour free*: what was set by hand has no bound on behaviour either. "
        f"The better of both reaches more than the trained attacks in {won(trained)} pairs, and more than the closed "
        f"form of the common mode, from which it starts where there is one, in {won(closed)}.\n\n"
        + table(
            ["setting", "by hand", "reaches", "autofool, behaviour free", "autofool, behaviour kept"],
            [[d.setting, d.by_hand, shown(d.hand), shown(d.free), shown(d.bounded)] for d in found],
        )
    )


def reached(results: Results, setting: str, attack: str, explainer: str, part: str, when: str = "after") -> float:
    """Mean r of an explainer's map with the hoax."""
    return _mean(row[f"reached_{when}"] for row in results.rows(setting, attack, explainer, part))


def _transfer_table(results: Results) -> str:
    pairs = [("common mode", "GradCAM"), *((f"autofool on {victim}", victim) for victim in ("GradCAM", *BASELINES))]
    lines = []
    for setting in results.settings:
        for attack, victim in pairs:
            if results.has(setting, attack, victim):
                values = [
                    f"{reached(results, setting, attack, victim, part, 'before'):.2f} → "
                    f"{reached(results, setting, attack, victim, part):.2f}"
                    for part in PARTS
                ]
                lines.append([setting, attack, *values])
    return table(["setting", "attack", *PARTS.values()], lines)


def _cost_table(results: Results) -> str:
    lines = []
    for setting in results.settings:
        for attack in ATTACKS:
            for keep in (bound(attack), *((None,) if attack in TRAINED else ())):
                cells = [c for c in results.cells.get((setting, attack, keep), []) if attack != ON_INPUTS]
                if not cells:
                    continue
                line = [setting, attack + (", as it came" if keep is None and attack in TRAINED else "")]
                for part in PARTS:
                    own = [cell[part] for cell in cells if part in cell]
                    line += [
                        f"{_mean(o['kl'][0] for o in own):.2g}",
                        f"{_mean(o['agreement'][0] for o in own):.3f}",
                        f"{_mean(o['behaviour_kept'][0] for o in own):.2f}",
                    ]
                lines.append(line)
    header = [f"{what}, {where}" for where in PARTS.values() for what in ("KL, nats", "agreement", "behaviour")]
    return table(["setting", "attack", *header], lines)


def _verdict_table(results: Results) -> str:
    lines = []
    for attack in ATTACKS:
        for name, some in (("plain", PLAIN), ("contrastive", CONTRASTIVE)):
            found = results.verdicts((attack,), some, "held_out")
            if found:
                lines.append([attack, name, *(str(found[verdict]) for verdict in VERDICTS)])
    return table(["attack", "explainers", *VERDICTS], lines)


def _honesty_table(results: Results, setting: str) -> str:
    shown = ("GradCAM", "GradCAM++", "LayerCAM", *BASELINES, "LayerCAM, contrast", "FinerCAM")
    attacks = [attack for attack in ATTACKS if results.has(setting, attack)]
    clean = next(attack for attack in attacks if attack != ON_INPUTS)
    lines = [["clean", *(f"{results.outcome(setting, clean, e, 'held_out').before:.2f}" for e in shown)]]
    for attack in attacks:
        line = [attack]
        for explainer in shown:
            rows = results.rows(setting, attack, explainer, "held_out")
            if not rows:
                line.append("")
                continue
            one = results.outcome(setting, attack, explainer, "held_out")
            line.append(f"{one.after:.2f} ({_mean(row['kept'][0] for row in rows):.2f}) {one.verdict}")
        lines.append(line)
    return table(["attack", *shown], lines)


def _r(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


# --- figures ---------------------------------------------------------------------------------------------------------


def draw_answer(results: Results, path: Path) -> None:
    """Honesty of the clean map and under the strongest attack of each kind: a column for each setting."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    settings = results.settings
    figure, axes = plt.subplots(
        2, len(settings), figsize=(1.75 * len(settings) + 3, 8), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    kinds = {kind: among for kind, among in GROUPS.items() if kind != "changed images"}
    for line, (part, where) in zip(axes, PARTS.items(), strict=True):
        for axis, setting in zip(line, settings, strict=True):
            for y, explainer in enumerate(EXPLAINERS):
                for shift, (kind, among) in zip((-0.22, 0, 0.22), kinds.items(), strict=True):
                    worst = results.worst(setting, among, explainer, part)
                    if worst is None:
                        continue
                    colour = _COLOURS[worst.verdict]
                    axis.plot([worst.before, worst.after], [y + shift] * 2, color=colour, linewidth=0.9)
                    axis.plot(worst.after, y + shift, _MARKERS[kind], color=colour, markersize=4)
                    axis.plot([worst.before] * 2, [y - 0.35, y + 0.35], color="k", linewidth=1.2)
            axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
            axis.axhline(len(PLAIN) - 0.5, color="0.6", linewidth=0.8)
            axis.set_title(f"{setting}, {where}", fontsize=9)
            axis.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(EXPLAINERS)), EXPLAINERS)
    axes[0, 0].invert_yaxis()
    figure.supxlabel(
        f"honesty: r of the map with what its model relies on (bar: clean; mark: strongest attack, {KEEP:g} nats)",
        fontsize=9,
    )
    handles = [Line2D([], [], color="k", marker=_MARKERS[kind], linestyle="", label=kind) for kind in kinds]
    handles += [Line2D([], [], color=colour, linewidth=3, label=verdict) for verdict, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(results: Results, path: Path) -> None:
    """Honesty against the bound on the divergence: a row for each setting, a column for each victim."""
    import matplotlib.pyplot as plt

    curved = {(key[0], key[1]) for key in results.cells if key[2] in CURVE}
    settings = [setting for setting in CURVED if any((setting, attack) in curved for attack in CURVES)]
    shown = ("GradCAM", "LayerCAM", *BASELINES)
    figure, axes = plt.subplots(
        len(settings), len(CURVES), figsize=(3.6 * len(CURVES), 2.8 * len(settings) + 0.4), squeeze=False, sharey="row",
        layout="constrained",
    )  # fmt: skip
    for line, setting in zip(axes, settings, strict=True):
        for axis, attack in zip(line, CURVES, strict=True):
            bounds = [k for k in sorted((KEEP, *CURVE)) if results.rows(setting, attack, "GradCAM", "held_out", k)]
            for index, explainer in enumerate(shown):
                if not bounds:
                    continue
                first = results.rows(setting, attack, explainer, "held_out", bounds[0])[0]
                after = [honest(results.rows(setting, attack, explainer, "held_out", k)[0], "after") for k in bounds]
                style = "o-" if explainer in PLAIN else "s--"
                values = [honest(first, "before"), *after]
                axis.plot(range(len(values)), values, style, color=f"C{index}", markersize=4, linewidth=1,
                          label=explainer)  # fmt: skip
            axis.set_xticks(range(len(bounds) + 1), ["0", *(f"{k:g}" for k in bounds)])
            axis.set_title(f"{setting}: {attack}", fontsize=8)
            axis.set_xlabel("bound on the KL divergence, nats", fontsize=8)
            axis.set_ylabel("honesty, held out", fontsize=8)
            axis.tick_params(labelsize=7)
    handles = next((axis.get_legend_handles_labels() for axis in axes.flat if axis.lines), ([], []))
    figure.legend(*handles, loc="outside lower center", ncols=len(shown), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the pages and the figures."""
    parser = report_parser("experiments.lies.report", __doc__, RESULTS)
    options = parser.parse_args(arguments)
    results = load(options.results)
    options.docs.mkdir(parents=True, exist_ok=True)
    draw_answer(results, options.docs / "lies.png")
    draw_curves(results, options.docs / "lies_curves.png")
    (options.docs / "lies.md").write_text(markdown(results), encoding="utf-8")
    (options.docs / "lies_tables.md").write_text(tables(results), encoding="utf-8")


if __name__ == "__main__":
    main()
