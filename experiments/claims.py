"""Write which claims of the two papers held: ``python -m experiments.claims``.

Reads the cells of ``experiments/lies``, ``experiments/sham`` and ``experiments/saliency_guided`` and the results of the
benchmark, and writes ``docs/results/claims.md`` and ``claims.png``. The claims are paraphrased from the papers'
abstracts: we had no more of the papers than that.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.lies import report as lies
from experiments.pages import DOCS, table
from experiments.saliency_guided import report as saliency
from experiments.saliency_guided.comparison import LEVEL, Comparison, interval
from experiments.saliency_guided.real import report as real
from experiments.sham import report as sham
from experiments.sham.settings import HOAX_CELLS

PEERS = Path(__file__).parents[1] / "benchmarks" / "results" / "peers.json"

_SHAM = "`make experiment-sham`, [sham.md](sham.md)"
_LIES = "`make experiment-lies`, [lies.md](lies.md)"
_SALIENCY = "`make experiment-saliency`, [saliency_guided.md](saliency_guided.md)"
_LOGSUMEXP = "DiffGradCAM logsumexp"
_BASELINES = ("DiffGradCAM mean", _LOGSUMEXP, "DiffGradCAM max")
_HOW_COMPARED = (
    "paired by seed ({} on real images), with 95% intervals and p corrected for all comparisons; bold: below "
    f"{LEVEL:g}."
)
_FOOLING = {
    "one vector for all classes": "common mode",
    "a scalar that depends on the image": "wrapper",
    "the same behind a trigger": "triggered",
    "features moved before the pooling": "spatial",
    "fine-tuned by hand against GradCAM": "SHAM on GradCAM",
    "trained without settings against GradCAM": "autofool on GradCAM",
    "against DiffGradCAM itself": f"autofool on {_LOGSUMEXP}",
    "against GradCAM, DiffGradCAM and LayerCAM together": "autofool on three",
    "the image changed, not the model": lies.ON_INPUTS,
}


class Claim(NamedTuple):
    """A claim, in short and in full, whether it held, and what was measured."""

    short: str
    claim: str
    verdict: str
    measured: str
    command: str


def diffgradcam(results: sham.Results, fooled: lies.Results) -> list[Claim]:
    """The claims of arXiv 2506.08514.

    Args:
        results: What attacks do to maps.
        fooled: Whether maps lie then.

    Returns:
        The claims.
    """
    settings = results.settings
    return [
        Claim(
            "Maps of single logits can be fooled",
            "Maps of single logits are open to passive fooling: a model can be changed to show a false map while it "
            "decides as before.",
            "held",
            "One vector added to all classes moves no probability, so behaviour stays too. *Honesty*: GradCAM's r with "
            "what the model relies on, held-out images, before → after.\n\n"
            + _by_setting(fooled.settings, {"honesty": lies.by_setting(fooled, "common mode", "GradCAM")})
            + f"\n\nIn the older experiment (KL at most {_worst_kl(results):.0e} nats), GradCAM's r with its clean "
            "map:\n\n"
            + _by_setting(
                settings,
                {
                    "images that the vector was fitted on": _each(results, "common mode", "GradCAM", "kept", "fitted"),
                    "others": _each(results, "common mode", "GradCAM", "kept", "held_out"),
                },
            ),
            _LIES,
        ),
        Claim(
            "SHAM measures the robustness of CAMs",
            "SHAM, an entropy-aware form of passive fooling, serves as a benchmark of CAM robustness.",
            "held, with fine-tuning that sees enough images",
            "GradCAM after SHAM on GradCAM: its entropy in nats, and its r with the hoax.\n\n"
            + _by_setting(
                settings,
                {
                    "entropy, clean / fooled / of the hoax, seen images": {s: _entropies(results, s) for s in settings},
                    "r with the hoax, seen images": _each(
                        results, "SHAM on GradCAM", "GradCAM", "reached_after", "fitted"
                    ),
                    "r with the hoax, others": _each(
                        results, "SHAM on GradCAM", "GradCAM", "reached_after", "held_out"
                    ),
                },
            ),
            _SHAM,
        ),
        Claim(
            "DiffGradCAM cannot be fooled passively",
            "DiffGradCAM is not susceptible to passive fooling.",
            "held for what all logits share, by construction; **not** for features that are moved, nor "
            f"({', '.join(lies.lied_on(fooled))}) for weights that are trained against it",
            "Honesty of DiffGradCAM (logsumexp) before → after, held-out images, with the verdict and, where it is not "
            "0, the cost in decisions. *Lie*: decisions and behaviour stay, and the map no longer says what the model "
            "relies on. *Change*: the model relies on other things, and the map says so.\n\n"
            + _by_setting(
                fooled.settings, {what: lies.by_setting(fooled, how, _LOGSUMEXP) for what, how in _FOOLING.items()}
            )
            + "\n\n[The older experiment](sham.md), without a bound on decisions and with the whole network open, "
            "counts maps that moved: under the common mode every contrastive map keeps at least r = "
            f"{sham.lowest_kept(results, 'common mode'):.4f} of itself. On seen images:\n\n"
            + _by_setting(
                settings,
                {
                    what: _each(results, attack, explainer, figure, "fitted")
                    for what, attack, explainer, figure in (
                        ("SHAM on GradCAM, GradCAM's r with its clean map", "SHAM on GradCAM", "GradCAM", "kept"),
                        ("the same, DiffGradCAM's", "SHAM on GradCAM", _LOGSUMEXP, "kept"),
                        ("SHAM on DiffGradCAM, its r with its clean map", f"SHAM on {_LOGSUMEXP}", _LOGSUMEXP, "kept"),
                        ("the same, with the hoax", f"SHAM on {_LOGSUMEXP}", _LOGSUMEXP, "reached_after"),
                        ("features rolled by half the map, DiffGradCAM", "spatial", _LOGSUMEXP, "kept"),
                    )
                },
            ),
            _LIES,
        ),
        Claim(
            "DiffGradCAM matches GradCAM on clean models",
            "DiffGradCAM matches GradCAM in the non-adversarial case.",
            "a property of the baseline, not of the method",
            "Mean r with GradCAM of the same clean model, held-out images, by baseline.\n\n"
            + _by_setting(settings, {b.removeprefix("DiffGradCAM "): _clean(results, b) for b in _BASELINES}),
            _SHAM,
        ),
        Claim(
            "Few and many classes",
            "Validated on multi-class tasks with few and many classes.",
            "measured",
            f"{len(settings)} settings with 4 to 1000 classes: {', '.join(settings)}. None is the papers' own task or "
            "model.",
            _SHAM,
        ),
        Claim("DiffGradCAM is lightweight", "DiffGradCAM is lightweight.", "held", _cost(), "`make bench`, README"),
    ]


def _by_setting(settings: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> str:
    """A table with a column for each setting; empty where it was not measured."""
    return table(["", *settings], [[what, *(found.get(s, "") for s in settings)] for what, found in rows.items()])


def divisive(results: saliency.Results, images: real.Results) -> list[Claim]:
    """The claims of arXiv 2507.17000.

    Args:
        results: Of the stand-ins.
        images: Of real images.

    Returns:
        The claims.
    """
    decisions, maps = (saliency.compare(results, metric) for metric in ("auroc", "difference_energy"))
    real_decisions, real_maps = (real.compare(images, metric) for metric in ("auroc", "difference_energy"))
    methods = ("CYBORG", *real.BOTH_MAPS)
    tool, verdict = real.tool_against(images)
    return [
        Claim(
            "The maps of both classes should diverge where humans look",
            "In binary tasks, the maps of the true and of the false class should diverge where humans look.",
            "measured as what training for it does",
            "The share of the difference map's energy in the marked region, minus that after training with "
            f"cross-entropy, {_HOW_COMPARED.format(len(images.seeds))}\n\n" + _gains(real_maps, maps, "CE", methods),
            _SALIENCY,
        ),
        Claim(
            "Training with both maps beats training with one",
            "Three training methods with both maps generalise better than the true class's alone (CYBORG), on closed "
            "and open sets.",
            _shown(real_decisions),
            f"AUROC minus that of CYBORG, {_HOW_COMPARED.format(len(images.seeds))}\n\n"
            + _gains(real_decisions, decisions, "CYBORG", real.BOTH_MAPS),
            _SALIENCY,
        ),
        Claim(
            "A tool identifies important features",
            "A post-hoc tool identifies important features.",
            f"{verdict}; not compared with the paper's own, whose definition is not public to us",
            f"`important_features` ranks the regions that tell one class from another. On real tiles, {tool}. "
            "`examples/important_features.py` checks regions by taking them away.",
            _SALIENCY,
        ),
        Claim(
            "Evaluated on faces, attacks and X-rays",
            "Evaluated on synthetic face detection, presentation attack detection and chest X-ray anomalies.",
            "measured on other images of these kinds: the papers' own are released on request only",
            f"Public real images instead ({', '.join(real.MAIN_TASKS)}; one small network), and stand-ins made from "
            f"photographs ({', '.join(results.tasks)}). They say nothing about the published data beyond the direction "
            "of an effect.",
            _SALIENCY,
        ),
    ]


def _shown(comparisons: Sequence[Comparison]) -> str:
    """The verdict on both maps against one, from what the corrected comparisons show."""
    own = _against_cyborg(comparisons)
    better = [c for c in own if c.adjusted_p < LEVEL and c.paired.difference > 0]
    worse = [c for c in own if c.adjusted_p < LEVEL and c.paired.difference < 0]
    if len(better) == len(own):
        return "held on real images"

    def words(found: Sequence[Comparison]) -> str:
        return ", ".join(f"{c.method} on the {c.part} set" for c in found) or "none"

    if not better and not worse:
        return "not shown on real images, for any of our three readings"
    return (
        f"did not hold in full: better on real images for {words(better)}, worse for {words(worse)}, of our three "
        "readings"
    )


def markdown(contrast: Sequence[Claim], training: Sequence[Claim], answer: Sequence[str]) -> str:
    """The page: the answer, the claims in one table, each of them in full."""
    titles = (
        ("DiffGradCAM (arXiv 2506.08514)", contrast),
        ("Divisive Decisions (arXiv 2507.17000)", training),
    )
    parts = [
        "# The claims of the two papers, and what we measured",
        "![Left: how much GradCAM and DiffGradCAM say of what the model relies on, before and after one vector was "
        "added to all classes, and after training against them. Right: the gain in AUROC over CYBORG of three losses "
        "on the maps of both classes, on real images and on stand-ins]"
        "(claims.png)",
        *answer,
        table(
            ["claim", "what we found", "measured in"],
            [(c.short, c.verdict, c.command) for _, claims in titles for c in claims],
        ),
        "## How it was done",
        "Generated by `python -m experiments.claims` from committed cells; do not edit. The claims are paraphrased "
        "from the abstracts, the only part of the papers that we had. The methods are our reading of them, and so is "
        "what a claim means. Numbers are means over seeds and images; *seen* images are those that an attack was "
        "fitted on. *Honesty* and the verdicts are explained in [lies.md](lies.md), which says too how much of the "
        "planned grid ran.",
    ]
    for title, claims in titles:
        parts.append(f"## {title}")
        parts += [f"**{c.claim}** — *{c.verdict}.*\n\n{c.measured}\n\n{c.command}" for c in claims]
    return "\n\n".join(parts) + "\n"


def answers(fooled: lies.Results, training: saliency.Results, images: real.Results) -> list[str]:
    """Three sentences for a reader who stops there."""

    def better(comparisons: Sequence[Comparison]) -> str:
        found = [c for c in _against_cyborg(comparisons) if c.adjusted_p < LEVEL and c.paired.difference > 0]
        return ", ".join(f"{c.method} {c.paired.difference:+.3f} on the {c.part} set" for c in found) or "none"

    aimed, changes, runs = lies.aimed(fooled)
    moved = fooled.verdicts(("spatial",), lies.BASELINES, "held_out")
    return [
        "**Confirmed: a single logit can be made to lie, and a contrast not in the same way.** One vector added to all "
        f"classes takes GradCAM's honesty {lies.span(fooled, 'common mode', 'GradCAM')}; no DiffGradCAM loses more "
        f"than {lies.shared_loss(fooled):.4f}.",
        "**Not confirmed: that DiffGradCAM resists passive fooling in general.** Moving the features before the "
        f"pooling costs no decision and makes it lie in {moved['lie']} of {moved.total()} cases; training against it, "
        f"within {lies.KEEP:g} nats, in {aimed} of {runs}, and in {changes} the model changed.",
        "**Partly confirmed: training with the maps of both classes.** Of our three readings of those losses, these "
        f"had a higher AUROC than CYBORG (corrected p below {LEVEL:g}): on real images "
        f"{better(real.compare(images, 'auroc'))}; on stand-ins {better(saliency.compare(training, 'auroc'))}.",
    ]


def _against_cyborg(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [c for c in comparisons if c.reference == "CYBORG" and c.method in real.BOTH_MAPS]


def draw(fooled: lies.Results, training: saliency.Results, images: real.Results, path: Path) -> None:
    """Left: honesty of GradCAM and DiffGradCAM before and after two attacks. Right: AUROC of losses minus CYBORG's."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    settings, weak = fooled.settings, lies.too_weak(fooled)  # where training moved nothing, it says nothing
    styles = {"GradCAM": ("C0", -0.12, "o"), _LOGSUMEXP: ("C3", 0.12, "s")}
    panels = {
        "one vector added to all classes": dict.fromkeys(styles, "common mode"),
        f"trained against it, {lies.KEEP:g} nats": {name: f"autofool on {name}" for name in styles},
    }
    for axis, (title, attacks) in zip((left, middle), panels.items(), strict=True):
        for explainer, (colour, shift, marker) in styles.items():
            label = explainer.removesuffix(" logsumexp")
            for y, setting in enumerate(settings):
                if not fooled.has(setting, attacks[explainer], explainer) or (axis is middle and setting in weak):
                    continue
                one = fooled.outcome(setting, attacks[explainer], explainer, "held_out")
                axis.plot([one.before, one.after], [y + shift] * 2, color=colour, linewidth=1.2)
                axis.plot(one.before, y + shift, "|", color=colour, markersize=9)
                axis.plot(one.after, y + shift, marker, color=colour, markersize=5, label=label)
                label = ""
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.set_yticks(range(len(settings)), settings if axis is left else [])
        axis.set_ylim(len(settings) - 0.5, -0.5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("honesty, r (bar: clean; mark: attacked)", fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=9)
    rows = [(method, part) for part in real.PARTS for method in real.BOTH_MAPS]
    kinds = (
        ("real images", real.compare(images, "auroc"), "C2", -0.14),
        ("stand-ins", saliency.compare(training, "auroc"), "0.6", 0.14),
    )
    for kind, comparisons, colour, shift in kinds:
        for c in _against_cyborg(comparisons):
            y = rows.index((c.method, c.part)) + shift
            right.plot([c.paired.low, c.paired.high], [y, y], color=colour, linewidth=1.2)
            right.plot(c.paired.difference, y, "o", color=colour, markersize=5, label=kind)
    named = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower right", ncols=2, fontsize=9)
    right.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    right.set_yticks(range(len(rows)), [f"{method}, {part} set" for method, part in rows])
    right.invert_yaxis()
    right.set_title("training with both maps", fontsize=10)
    right.set_xlabel("AUROC minus CYBORG's\n(paired mean, 95% interval)", fontsize=9)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _each(results: sham.Results, attack: str, explainer: str, what: str, part: str) -> dict[str, str]:
    settings = [s for s in results.settings if results.has(s, attack)]
    return {s: f"{results.map(s, attack, explainer, what, part).mean:.2f}" for s in settings}


def _worst_kl(results: sham.Results) -> float:
    return max(results.decisions(s, "common mode", "kl", part).high for s in results.settings for part in sham.PARTS)


def _entropies(results: sham.Results, setting: str) -> str:
    key = (setting, "SHAM on GradCAM", sham.shown_strength(setting, "SHAM on GradCAM"))

    def entropy(when: str) -> float:
        return results.over_seeds(key, lambda cell: cell["fitted"]["rows"]["GradCAM"][f"entropy_{when}"]).mean

    return f"{entropy('before'):.2f} / {entropy('after'):.2f} / {math.log(HOAX_CELLS):.2f}"


def _clean(results: sham.Results, explainer: str) -> dict[str, str]:
    return {
        s: f"{results.over_seeds((s, sham.CLEAN, None), lambda cell: cell['maps'][explainer]).mean:.3f}"
        for s in results.settings
    }


def _cost() -> str:
    rows = {(row["work"], row["batch"]): row["values"] for row in json.loads(PEERS.read_text())["rows"]}
    return (
        "One map of DiffGradCAM costs "
        + " and ".join(
            f"{rows['one map', batch]['DiffGradCAM']:.2f} forward passes at batch {batch} (our GradCAM "
            f"{rows['one map', batch]['diffgradcam']:.2f}, pytorch-grad-cam's "
            f"{rows['one map', batch]['pytorch-grad-cam']:.2f})"
            for batch in (1, 16)
        )
        + "."
    )


def _gains(
    images: Sequence[Comparison], stand_ins: Sequence[Comparison], reference: str, methods: Sequence[str]
) -> str:
    """A table: a row for each method, a column for each kind of images and set."""
    found = {("real images", c.part, c.method): c for c in images if c.reference == reference}
    found |= {("stand-ins", c.part, c.method): c for c in stand_ins if c.reference == reference}
    columns = [("real images", part) for part in real.PARTS] + [("stand-ins", part) for part in saliency.SETTINGS]

    def cell(comparison: Comparison | None) -> str:
        if comparison is None:
            return ""
        text = f"{interval(comparison.paired)}, p {comparison.adjusted_p:.2g}"
        return f"**{text}**" if comparison.adjusted_p < LEVEL else text

    return table(
        ["", *(f"{kind}, {part} set" for kind, part in columns)],
        [[method, *(cell(found.get((*column, method))) for column in columns)] for method in methods],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the page and the figure."""
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    options = parser.parse_args(arguments)
    options.docs.mkdir(parents=True, exist_ok=True)
    fooled, training, images = lies.load(), saliency.load(), real.load()
    page = markdown(diffgradcam(sham.load(), fooled), divisive(training, images), answers(fooled, training, images))
    draw(fooled, training, images, options.docs / "claims.png")
    (options.docs / "claims.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
