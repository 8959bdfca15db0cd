"""What the cells on real images say: the sections that lead ``docs/results/saliency_guided.md``, and their figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffgradcam.metrics import PairedComparison, mean_interval, paired_comparison
from experiments.cells import read
from experiments.pages import table

from ..comparison import LEVEL, Comparison, compare_all, interval, spread
from .regions import TOOL, WAYS
from .run import (
    MAIN_TASKS,
    METHODS,
    RATES,
    REGION_METHODS,
    RESNET_RATES,
    RESNET_TASKS,
    RESULTS,
    SHARE_METHODS,
    SHARE_TASKS,
    SHARES,
    SIDE_METHODS,
    choices,
)
from .tasks import DEVELOPMENT, TASKS, TEST

PARTS = ("closed", "open")
ALL = "all tasks"
BOTH_MAPS = ("Difference", "Contrast", "Divergence")
RESAMPLES = 2000
FIGURE = "saliency_guided_real.png"

Values: TypeAlias = dict[tuple[str, str, str], dict[str, NDArray[np.float64]]]  # task, method, part: one per seed


class Results(NamedTuple):
    """The complete seeds.

    Attributes:
        seeds: Those that every task and method has.
        values: Metrics, one value per seed; of :data:`ALL` those of all tasks that have it, one after the other.
        cells: Of the stage ``main``, by (task, method, seed).
        folder: Of the stages.
        left_out: Cells of incomplete seeds.
    """

    seeds: tuple[int, ...]
    values: Values
    cells: dict[tuple[str, str, int], dict[str, Any]]
    folder: Path
    left_out: int


def load(folder: Path = RESULTS) -> Results:
    """Read the cells and keep the complete seeds.

    Args:
        folder: Of the stages.

    Returns:
        See :class:`Results`.

    Raises:
        ValueError: If fewer than two seeds are complete.
    """
    cells = {(cell["task"], cell["method"], cell["seed"]): cell for cell in read(folder / "main")}
    wanted = [(task, method) for task in MAIN_TASKS for method in METHODS]
    seeds = tuple(seed for seed in sorted({key[2] for key in cells}) if all((*pair, seed) in cells for pair in wanted))
    if len(seeds) < 2:
        raise ValueError(
            f"{len(seeds)} seeds are complete in {folder / 'main'}: expected at least two to compare; "
            "run python -m experiments.saliency_guided.real.run"
        )
    values: Values = {}
    for task, method in [*wanted, *(("chestxray64", method) for method in SIDE_METHODS)]:
        own = [cells[task, method, seed] for seed in seeds if (task, method, seed) in cells]
        for part in PARTS:
            if own:
                values[task, method, part] = _columns([cell[part] for cell in own])
    for method in METHODS:
        for part in PARTS:
            each = [values[task, method, part] for task in MAIN_TASKS]
            values[ALL, method, part] = {
                name: np.concatenate([columns[name] for columns in each if name in columns]) for name in each[0]
            }
    used = sum(key[2] in seeds for key in cells)
    return Results(seeds, values, cells, folder, len(cells) - used)


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0] if all(name in row for row in rows)}


def compare(results: Results, metric: str, parts: Sequence[str] = PARTS) -> list[Comparison]:
    """Every method against CE, and every other one against CYBORG, over all pairs of task and seed.

    Args:
        results: The cells.
        metric: Such as ``"auroc"``.
        parts: Closed, open, or both.

    Returns:
        The comparisons, corrected together.
    """
    return compare_all(lambda *each: _paired(results, ALL, *each, metric), parts, tuple(METHODS))


def _paired(results: Results, task: str, part: str, method: str, reference: str, metric: str) -> PairedComparison:
    first, second = (results.values[task, each, part][metric] for each in (method, reference))
    return paired_comparison(first, second, resamples=RESAMPLES)


def sections(results: Results, why: str) -> list[str]:
    """The page's first part.

    Args:
        results: The cells.
        why: What :func:`why_terms` says.

    Returns:
        Markdown, one string per paragraph.
    """
    decisions = compare(results, "auroc")
    text = [
        _first(decisions),
        _sentences(results, decisions),
        f"![AUROC of each method minus that of CE, seed by seed, on real images]({FIGURE})",
        _how_many(results),
        "APCER is at BPCER = 1%; map columns are *true-class map / true minus false* on the test images that people "
        "marked: share of positive energy in the marks, and the pointing game. Mean +- standard deviation over seeds; "
        "differences are paired, with 95% bootstrap intervals, and not corrected.",
        _table(results),
        "## How it was done",
        *_how(results),
        "## How much is a shortcut? Above all on chest X-rays",
        _shortcut(results),
        "## The post-hoc tool on tiles",
        _tool(results),
    ]
    shares = _shares(results)
    if shares:
        text += ["## How many human maps does one need?", shares]
    pretrained = _pretrained(results)
    if pretrained:
        text += ["## A pretrained ResNet-18 at 224 x 224", pretrained]
    return [*text, "## Why Divergence and CYBORG + entropy lost on the stand-ins", _divergence(results), why]


def verdict(comparisons: Sequence[Comparison], methods: Sequence[str], part: str, reference: str) -> str:
    """Which methods were shown to be better, worse, or neither.

    Args:
        comparisons: Corrected.
        methods: Whose.
        part: Closed or open.
        reference: CE or CYBORG.

    Returns:
        In words, with differences, intervals and corrected p.
    """
    own = [c for c in comparisons if (c.part, c.reference) == (part, reference) and c.method in methods]
    groups = (
        ("better", [c for c in own if c.adjusted_p < LEVEL and c.paired.difference > 0]),
        ("worse", [c for c in own if c.adjusted_p < LEVEL and c.paired.difference < 0]),
        ("not shown either way", [c for c in own if c.adjusted_p >= LEVEL]),
    )
    return "; ".join(
        f"{word} for " + ", ".join(f"{c.method} ({interval(c.paired)}, p {c.adjusted_p:.2g})" for c in found)
        for word, found in groups
        if found
    )


def _first(decisions: Sequence[Comparison]) -> str:
    held = [c for c in decisions if c.reference == "CYBORG" and c.method in BOTH_MAPS and c.adjusted_p < LEVEL]
    better = [c for c in held if c.paired.difference > 0]
    worse = [c for c in held if c.paired.difference < 0]
    start = (
        "**The paper's claim that training with both classes' maps generalises better than with the true class's alone "
        "(CYBORG) "
    )
    if len(better) == len(BOTH_MAPS) * len(PARTS):
        return start + "held on our real images, for all three of our readings, closed and open.**"

    def words(found: Sequence[Comparison]) -> str:
        return ", ".join(f"{c.method} on the {c.part} set" for c in found)

    text = "was not shown on our real images, for any of our three readings"
    if better:
        text = f"did not hold in full on our real images: it was shown for {words(better)}"
    return start + text + (f"; the opposite was shown for {words(worse)}" if worse else "") + ".**"


def _sentences(results: Results, decisions: Sequence[Comparison]) -> str:
    maps = compare(results, "true_energy")
    others = [method for method in METHODS if method != "CE"]
    asked = (
        ("AUROC against cross-entropy alone", decisions, "CE"),
        ("AUROC against CYBORG", decisions, "CYBORG"),
        ("Share of the true-class map's energy in what people marked, against cross-entropy alone", maps, "CE"),
    )
    lines = [
        f"{what}: " + "; **open set**, ".join(verdict(found, others, part, reference) for part in PARTS) + "."
        for what, found, reference in asked
    ]
    lines = [line.replace(": ", ": **closed set**, ", 1) for line in lines]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _how_many(results: Results) -> str:
    count = len(results.seeds)
    text = (
        f"**{count} seeds are done**, {count * len(MAIN_TASKS)} pairs of task and seed for each comparison. Intervals "
        "are bootstrap intervals of the mean paired difference; p is of Wilcoxon's signed-rank test over the pairs, "
        "with Holm's correction for all comparisons of a metric; *shown* means p below "
        f"{LEVEL}. The four tasks count as given: nothing here says how a fifth would turn out. Seeds of one task "
        "share images, so their tests are not independent, and p is somewhat too small."
    )
    if results.left_out:
        text += f" {results.left_out} cells of seeds that are not complete yet are left out."
    return text


def _table(results: Results) -> str:
    columns = ["task", "set", "method", "AUROC", "APCER", "energy", "pointing", "AUROC - CE", "AUROC - CYBORG"]
    rows = []
    for task in (*MAIN_TASKS, ALL):
        for part in PARTS:
            for method in METHODS:
                of = results.values[task, method, part]
                count = len(results.seeds)
                cells = [task, part, method]
                # Of all tasks: the mean over them, seed by seed.
                cells += [spread(of[name].reshape(-1, count).mean(0)) for name in ("auroc", "apcer_at_bpcer_1")]
                cells += [
                    f"{of[f'true_{name}'].mean():.2f} / {of[f'difference_{name}'].mean():.2f}"
                    if f"true_{name}" in of
                    else ""
                    for name in ("energy", "pointing")
                ]
                for reference in ("CE", "CYBORG"):
                    same = method in ("CE", reference)
                    cells.append("" if same else interval(_paired(results, task, part, method, reference, "auroc")))
                rows.append(cells)
    return table(columns, rows)


def _how(results: Results) -> list[str]:
    some = results.cells[MAIN_TASKS[0], "CE", results.seeds[0]]
    settings = some["settings"]
    seconds = float(np.median([cell["seconds"] for cell in results.cells.values()]))
    tasks = "\n".join(
        f"- *{name}*: {task.what} ({' or '.join(task.kinds)} left out"
        + (f"; split by {task.together}" if task.together else "")
        + f"). {task.source.rstrip('.')}."
        for name, task in TASKS.items()
        if name in MAIN_TASKS
    )
    sizes = "; ".join(
        f"{task} {cell['images']['train']} ({cell['human_maps']} with a human map), {cell['images']['closed']} and "
        f"{cell['images']['open']}"
        for task in MAIN_TASKS
        for cell in [results.cells[task, "CE", results.seeds[0]]]
    )
    pilot = read(results.folder / "pilot")
    tuning = read(results.folder / "tuning")
    chosen = choices(results.folder)
    rates = ", ".join(
        f"{rate:g}: {np.mean([c['development']['auroc'] for c in pilot if c['settings']['learning_rate'] == rate]):.3f}"
        for rate in RATES
    )
    tried = []
    for method, (_, grid) in METHODS.items():
        for number, option in enumerate(grid):
            found = _development(tuning, method, number)
            words = ", ".join(f"{name} {value}" for name, value in option.items())
            tried.append([method, words, f"{found:.3f}", "yes" if option == chosen[method] else ""])
    return [
        "The images are real and public, none of them the papers' own, and not part of this project: "
        "`experiments/saliency_guided/real/tasks.py` says where they are looked for, and a task whose images are "
        "missing is left out.",
        tasks,
        f"A network with four convolutions and a pooled linear head is trained from scratch for {settings['epochs']} "
        f"epochs (AdamW, highest learning rate {settings['learning_rate']:g}, cosine, batch "
        f"{settings['batch_size']}, mirrored images and maps, class weights; the weights after the last epoch; "
        f"{seconds:.0f} seconds on one core), by the functions of `diffgradcam.training`, which `diffgradcam train` "
        "is made of. One kind of attack or defect is left out of training and goes round with the seed where there "
        "are several. *Closed* is a test on the kinds that training had, *open* on the kind that it lacked, both "
        "with the same negatives. Methods with the same seed share images, initial weights and order. Images to "
        f"train with, and in the closed and open test, of the first seed: {sizes}. Images without a human map are "
        "skipped by mask. *LDA maps* are `lda_saliency` of the training images in place of people's, trained as "
        "CYBORG.",
        f"**What was looked at.** A fifth of the images ({DEVELOPMENT:.0%}, by subject or patient) is for "
        f"development: in no training and no test of the table. {TEST:.0%} of the others test. On the development "
        "images of one seed that is not in the table, cross-entropy alone chose the learning rate (mean AUROC "
        f"{rates}); each method chose one of three configurations, the same for all tasks, by its mean AUROC. That "
        "is one training for each task and configuration, so choices between close ones are nearly random. On three "
        "tasks, 30 epochs of cross-entropy were looked at beside the 12, outside the cells: faces and chest X-rays "
        "hardly changed, fingerprints gained. Before that, CE, CYBORG and Contrast were run once on tiles to see that "
        "the code works. The table was looked at when one seed was complete and the next half done, and again at two "
        "and three seeds; at the first look the numbers below that know nothing of the content were chosen anew, and "
        "nothing about the trainings was changed.",
        table(["method", "configuration", "AUROC on development images", "chosen"], tried),
    ]


def _development(tuning: Sequence[dict[str, Any]], method: str, option: int) -> float:
    """Mean AUROC of a configuration of a method on the development images."""
    own = [cell for cell in tuning if cell["method"] == method and cell["option"] == option]
    return float(np.mean([cell["development"]["auroc"] for cell in own]))


def _shortcut(results: Results) -> str:
    found = {(cell["task"], cell["seed"]): cell for cell in read(results.folder / "shortcuts")}
    numbers = ("gradient", "contrast", "brightness")
    rows = []
    for task in TASKS:
        seeds = [seed for seed in results.seeds if (task, "CE", seed) in results.cells and (task, seed) in found]
        for part in PARTS if seeds else ():
            values = [np.array([found[task, seed][part][name] for seed in seeds]) for name in numbers]
            values += [results.values[task, method, part]["auroc"] for method in SIDE_METHODS]
            name = "chestxray, 64 x 64, equalised" if task == "chestxray64" else task
            rows.append([name, part, *map(spread, values)])
    return (
        "Three numbers of an image know nothing of lungs, or of what else an image shows: *gradient* (mean absolute "
        "difference of neighbouring pixels), *contrast* (standard deviation) and *brightness*. Their AUROC, either "
        "way round and at the size that the networks see, stands beside that of the networks. COVID-19 images, the "
        "open set of the chest X-rays, come from other hospitals, and the two folders of NIH differ in texture. "
        "Equalising the histograms makes these numbers others, not all of them lower. What a network has beyond such a "
        "number may be of the finding, or of a shortcut that we did not think of: these images cannot tell.\n\n"
        + table(["task", "set", *numbers, *SIDE_METHODS], rows)
    )


def _tool(results: Results) -> str:
    found = {
        method: [results.cells["tiles", method, seed]["regions"] for seed in results.seeds] for method in REGION_METHODS
    }
    regions = []
    verdicts = []
    for method, rows in found.items():
        for way in WAYS:
            cells = [method, way]
            for metric in ("pointing", "iou", "deletion"):
                own = np.array([row[way][metric] for row in rows])
                low, high = mean_interval(own, resamples=RESAMPLES)
                cells.append(f"{own.mean():.3f} [{low:.3f}, {high:.3f}]")
            pair = _pair(rows, way, "GradCAM", "iou")
            regions.append([*cells, "" if way == "GradCAM" else interval(pair)])
        words = []
        for metric in ("pointing", "iou", "deletion"):
            pairs = {way: _pair(rows, TOOL, way, metric) for way in WAYS if way != TOOL}
            better = ", ".join(way for way, pair in pairs.items() if pair.low > 0) or "none"
            worse = ", ".join(way for way, pair in pairs.items() if pair.high < 0) or "none"
            words.append(f"{metric} better than {better}, worse than {worse}")
        verdicts.append(f"trained with {method}: {'; '.join(words)}")
    images = found["CE"][0]["count"]
    return (
        f"The top region of `{TOOL}` that speaks for the defect, against as many of the highest pixels of each map, "
        "and a square of that area somewhere (chance), on the test images with a human mask "
        f"({images['images']:.0f} of the first seed). *Pointing*: its centre, or the map's peak, lies in the mask. "
        "*Deletion*: drop of the log-odds of the defect when the area is filled with the image's mean. Mean over "
        "seeds, 95% bootstrap interval over seeds. "
        "By the interval of the paired difference, which is narrow with so few seeds, the tool's regions are, "
        + "; ".join(verdicts).replace("; iou", ", IoU").replace("; deletion", ", deletion")
        + ".\n\n"
        + table(["trained with", "regions of", "pointing", "IoU", "deletion", "IoU - GradCAM"], regions)
    )


def tool_against(results: Results) -> tuple[str, str]:
    """The post-hoc tool against maps and chance, for networks trained with cross-entropy.

    Args:
        results: The cells.

    Returns:
        What was measured, and the verdict: whether the interval of each paired difference of IoU is above 0.
    """
    rows = [results.cells["tiles", "CE", seed]["regions"] for seed in results.seeds]
    pairs = {way: _pair(rows, TOOL, way, "iou") for way in WAYS if way != TOOL}
    better = [way for way, pair in pairs.items() if pair.low > 0]
    worse = [way for way, pair in pairs.items() if pair.high < 0]
    return (
        "IoU of its top region with people's mask minus that of as many of the highest pixels of "
        + ", ".join(f"{way} {interval(pair)}" for way, pair in pairs.items()),
        f"its regions overlap people's masks more than those of {', '.join(better) or 'no other way'}, less than "
        f"those of {', '.join(worse) or 'none'}",
    )


def _pair(rows: Sequence[dict[str, Any]], first: str, second: str, metric: str) -> PairedComparison:
    return paired_comparison(
        [row[first][metric] for row in rows], [row[second][metric] for row in rows], resamples=RESAMPLES
    )


def _divergence(results: Results) -> str:
    tuning = read(results.folder / "tuning")
    best = max(_development(tuning, "CYBORG", number) for number in range(len(METHODS["CYBORG"][1])))
    each = ", ".join(
        f"{_development(tuning, 'Divergence', number):.3f} with alpha {option['alpha']:g} and weight "
        f"{option['divergence_weight']:g}"
        for number, option in enumerate(METHODS["Divergence"][1])
    )
    return (
        f"On the development images of the real tasks, AUROC of Divergence is {each}; that of CYBORG is {best:.3f} at "
        "its best. The table above has the weight that was chosen there; that of the stand-ins has weight 1."
    )


def _shares(results: Results) -> str | None:
    cells = {
        (cell["task"], cell["method"], cell["seed"], cell["share"]): cell for cell in read(results.folder / "shares")
    }
    keys = [(task, method) for task in SHARE_TASKS for method in SHARE_METHODS]
    seeds = [s for s in results.seeds if all((*key, s, share) in cells for key in keys for share in SHARES)]
    if len(seeds) < 2:
        return None
    rows = []

    def over(get: Callable[[int], dict[str, Any]], part: str) -> str:
        return spread(np.array([get(seed)[part]["auroc"] for seed in seeds]))

    for task, method in keys:
        for part in PARTS:
            row = [over(lambda seed, task=task: results.cells[task, "CE", seed], part)]  # type: ignore[misc]
            row += [
                over(lambda s, key=(task, method), share=share: cells[(*key, s, share)], part)  # type: ignore[misc]
                for share in SHARES
            ]
            row += [over(lambda s, key=(task, method): results.cells[(*key, s)], part)]  # type: ignore[misc]
            rows.append([task, part, method, *row])
    return (
        f"AUROC by the share of human maps that training has; 0% is cross-entropy alone. {len(seeds)} seeds.\n\n"
        + table(["task", "set", "method", *(f"{share:.0%}" for share in (0, *SHARES, 1))], rows)
    )


def _pretrained(results: Results) -> str | None:
    cells = {(cell["task"], cell["method"], cell["seed"]): cell for cell in read(results.folder / "resnet")}
    tasks = tuple(RESNET_TASKS.values())
    every = [(task, method) for task in tasks for method in METHODS]
    seeds = [s for s in sorted({key[2] for key in cells}) if all((*pair, s) in cells for pair in every)]
    if len(seeds) < 2:
        return None
    rows = []
    for task in tasks:
        for part in PARTS:
            columns = {method: _columns([cells[task, method, seed][part] for seed in seeds]) for method in METHODS}
            for method, own in columns.items():
                row = [task.removesuffix("224"), part, method, spread(own["auroc"])]
                for reference in ("CE", "CYBORG"):
                    difference = (own["auroc"] - columns[reference]["auroc"]).mean()
                    row.append("" if method in ("CE", reference) else f"{difference:+.3f}")
                row.append(f"{own['true_energy'].mean():.2f}" if "true_energy" in own else "")
                rows.append(row)
    rate = cells[tasks[0], "CE", seeds[0]]["settings"]["learning_rate"]
    return (
        f"{len(seeds)} seeds, trained on one H100 in half precision: all that its time allowed, and too few for "
        "intervals. The network starts from ImageNet weights (product-quantised, batch norm folded and fixed) and is "
        f"fine-tuned as a whole as above, with the learning rate {rate:g}, which cross-entropy alone chose from "
        f"{', '.join(f'{each:g}' for each in RESNET_RATES)} on the development images; the methods' other settings are "
        "those that the small network chose. *Energy*: share of the true-class map's positive energy in the marks.\n\n"
        + table(["task", "set", "method", "AUROC", "AUROC - CE", "AUROC - CYBORG", "energy"], rows)
    )


def why_terms(folder: Path) -> str:
    """What became of the terms of Divergence and CYBORG + entropy when they weigh less.

    Args:
        folder: Cells of :mod:`experiments.saliency_guided.terms`.

    Returns:
        Markdown.
    """
    cells = read(folder)
    names = {"agreement": "agreement (Divergence)", "entropy": "ln(H + 1) (CYBORG + entropy)"}
    found = {(c["task"], c["seed"], c["term"] if c["weight"] else "none", c["weight"]): c for c in cells}
    tasks = sorted({cell["task"] for cell in cells})
    seeds = sorted({cell["seed"] for cell in cells})

    def complete(term: str, weight: float, seeds: Sequence[int]) -> bool:
        return all((task, seed, term, weight) in found for task in tasks for seed in seeds)

    seeds = [seed for seed in seeds if complete("none", 0.0, [seed])]
    weights = sorted({cell["weight"] for cell in cells} - {0.0})
    while seeds and not any(complete(term, weight, seeds) for term in names for weight in weights):
        seeds = seeds[:-1]
    keys = [(task, seed) for task in tasks for seed in seeds]
    if not keys:
        return "Not measured yet: `python -m experiments.saliency_guided.terms`."

    def mean(get: Callable[[dict[str, Any]], float], term: str = "none", weight: float = 0.0) -> float:
        return float(np.mean([get(found[(*key, term, weight)]) for key in keys]))

    def pull(when: str, part: str) -> float:
        return mean(lambda cell: cell[when][part]["gradient"])

    rows = []
    cases = [("none", 0.0), *((term, w) for term in names for w in weights if complete(term, w, seeds))]
    for term, weight in cases:
        row = [mean(lambda cell, part=part: cell[part]["auroc"], term, weight) for part in PARTS]  # type: ignore[misc]
        name = names.get(term, "nothing")
        rows.append([name, f"{weight:g}", *(f"{value:.3f}" for value in row)])
    scales = "; ".join(
        f"{when} training: squared error {pull(when, 'squared_error'):.2f}, cross-entropy "
        f"{pull(when, 'cross_entropy'):.2f}, agreement {pull(when, 'agreement'):.2f}, ln(H + 1) "
        f"{pull(when, 'entropy'):.2f}"
        for when in ("before", "after")
    )
    factors = [
        pull(when, term) / pull(when, "squared_error") for when, term in (("before", "agreement"), ("after", "entropy"))
    ]

    def lost(term: str, weight: float) -> str:
        return f"{mean(_closed) - mean(_closed, term, weight):+.3f}"

    losses = "; ".join(
        f"{name} {', '.join(f'{lost(term, w)} at {w:g}' for w in weights if complete(term, w, seeds))}"
        for term, name in names.items()
    )
    return (
        f"**Their scale.** At the start the agreement of the two maps pulls {factors[0]:.1f} times as hard at the "
        f"weights as CYBORG's squared error does, and after training ln(H + 1) {factors[1]:.1f} times; in the table "
        "of the stand-ins both have weight 1. With less weight, most of what they cost goes away. AUROC lost to "
        f"CYBORG on the closed set: {losses}. Norms of the gradients of the unweighted terms, {scales} (of CYBORG's "
        f"networks; {len(keys)} pairs of task and "
        "seed, of no seed of the table).\n\n" + table(["CYBORG plus", "weight", "AUROC, closed", "AUROC, open"], rows)
    )


def _closed(cell: dict[str, Any]) -> float:
    return float(cell["closed"]["auroc"])


def draw(results: Results, path: Path) -> None:
    """AUROC minus that of CE: a dot per seed, the mean and its 95% interval; a panel per task and set.

    Args:
        results: The cells.
        path: Of the picture.
    """
    import matplotlib.pyplot as plt

    methods = [method for method in METHODS if method != "CE"]
    columns = (*MAIN_TASKS, ALL)
    figure, axes = plt.subplots(
        len(PARTS), len(columns), figsize=(3.0 * len(columns), 5.4), sharex="col", sharey=True, layout="constrained"
    )
    for row, part in zip(axes, PARTS, strict=True):
        for axis, task in zip(row, columns, strict=True):
            reference = results.values[task, "CE", part]["auroc"]
            axis.axvline(0, color="0.6", linewidth=1)
            for y, method in enumerate(methods):
                differences = results.values[task, method, part]["auroc"] - reference
                pair = _paired(results, task, part, method, "CE", "auroc")
                axis.plot(differences, np.full(len(differences), y + 0.25), "o", color="0.7", markersize=2.5)
                axis.plot([pair.low, pair.high], [y, y], color=f"C{y}", linewidth=2)
                axis.plot(pair.difference, y, "o", color=f"C{y}", markersize=5)
            axis.set_title(f"{task}, {part} (CE {reference.mean():.3f})", fontsize=9)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    figure.supxlabel(f"AUROC minus that of CE, paired, {len(results.seeds)} seeds (real images)", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
