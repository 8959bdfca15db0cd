"""What each trick of the recorders buys: ``python -m benchmarks.recording [--quick]``.

GradCAM at the last block of a ResNet-18 with 100 classes, 224 x 224 pixels, on the CPU, one thread. Prints a Markdown
table and writes ``benchmarks/results/recording.json``. Of a tiny network, whose forward pass is short, also how much
longer an explanation takes, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.contenders import bare
from benchmarks.measure import Call
from benchmarks.resnet import ResNet18
from diffgradcam import GradCAM, weightings

RESULTS = Path(__file__).parent / "results" / "recording.json"
CLASSES = 100
LAYER = "layer4"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, only printed: to see that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ResNet18(CLASSES).eval()
    report = {
        "model": f"ResNet-18, random weights, {CLASSES} classes, {LAYER}, 224 x 224, CPU, 1 thread",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": measured(model, torch.randn(1, 3, 224, 224), 3 if quick else 121),
        "tiny": tiny(20 if quick else 4000),
    }
    print(as_markdown(report))
    if not quick:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def measured(model: nn.Module, images: Tensor, rounds: int) -> list[Row]:
    """A row for each way of computing the same maps."""
    works = {
        "one map": (bare(model, images), one_map(model, images)),
        f"{CLASSES} maps": (bare(model, images), all_maps(model, images)),
        "a training step with maps": (partial(step, model, images), training(model, images)),
    }
    rows: list[Row] = []
    for work, (reference, ways) in works.items():
        times = measure.interleaved_ratios(reference, ways, rounds, 120.0)
        base = measure.peak_memory(reference)
        for way, call in ways.items():
            memory = measure.peak_memory(call) / base
            rows.append({"work": work, "way": way, "time": round(times[way], 2), "memory": round(memory, 2)})
    return rows


def tiny(rounds: int) -> dict[str, float]:
    """Milliseconds that an explanation of a tiny network takes more than its forward pass; the median over rounds."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    images = torch.randn(1, 3, 12, 12)
    reference = bare(model, images)
    calls = {"pooled": GradCAM(model, "1"), "before": GradCAM(model, "0")}
    more: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, cam in calls.items():
            base = measure.elapsed(reference)
            more[name].append(measure.elapsed(partial(cam.explain, images)) - base)
    return {name: round(1000 * statistics.median(values), 2) for name, values in more.items()}


def one_map(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """The cut, and what it saves."""
    follow = images.clone().requires_grad_()
    return {
        "`explain`: the weights of the head, no backward pass": partial(GradCAM(model, LAYER).explain, images),
        "`explain` where the head is another: back to the layer, where the graph starts": partial(
            GradCAM(model, LAYER, output=torch.clone).explain, images
        ),
        "graph of the whole model, back to the layer": partial(without_cut, model, images),
        "graph of the whole model, back to the image": partial(without_cut, model, follow, beyond=[follow]),
        "graph of the whole model, back to all weights": partial(
            without_cut, model, images, beyond=list(model.parameters())
        ),
    }


def all_maps(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """Many classes, from one forward pass."""
    cam = GradCAM(model, LAYER)
    # The copy hides the head, and a weighting that is not declared linear hides that there is a closed form.
    other = GradCAM(model, LAYER, output=torch.clone)
    batched = other.replace(weighting=lambda activations, gradients: weightings.gradcam(activations, gradients))

    def one_by_one() -> list[Tensor]:
        with other.reader.run(images) as forward:
            return [other.explanation(forward, number).maps for number in range(CLASSES)]

    return {
        '`explain(images, "all")`: closed form': partial(cam.explain, images, "all"),
        "batched vector-Jacobian products, 64 classes at once": partial(batched.explain, images, "all"),
        "one vector-Jacobian product for each class": one_by_one,
    }


def training(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """Maps of the forward pass of the step, and of one more."""
    cam = GradCAM(model, LAYER)

    def recorded(*, twice: bool) -> None:
        with cam:
            logits = model(images)
            loss = logits.logsumexp(1).sum()
            maps = cam.maps(model(images) if twice else logits, 0)
        differentiate(model, loss + maps.square().sum())

    return {
        "`maps`: the forward pass of the step": partial(recorded, twice=False),
        "a second forward pass for the maps": partial(recorded, twice=True),
    }


def step(model: nn.Module, images: Tensor) -> None:
    """A training step without maps, up to the gradients."""
    differentiate(model, model(images).logsumexp(1).sum())


def differentiate(model: nn.Module, loss: Tensor) -> None:
    """The gradient of every weight, kept nowhere."""
    torch.autograd.grad(loss, list(model.parameters()))


def without_cut(model: nn.Module, images: Tensor, *, beyond: Sequence[Tensor] = ()) -> Tensor:
    """The map by hand: a hook keeps the activations, and nothing is cut. ``beyond`` is differentiated, too."""
    kept: list[Tensor] = []
    hook = model.get_submodule(LAYER).register_forward_hook(lambda _module, _args, output: kept.append(output))
    try:
        logits = model(images)
    finally:
        hook.remove()
    gradients = torch.autograd.grad(logits.gather(1, logits.argmax(1, keepdim=True)).sum(), [kept[0], *beyond])[0]
    return (weightings.gradcam(kept[0].detach(), gradients) * kept[0].detach()).sum(1).relu()


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = [f"| {row['work']} | {row['way']} | {row['time']:.2f} | {row['memory']:.2f} |" for row in report["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    tiny = report["tiny"]
    return "\n".join(
        [
            *("| work | way | time | memory |", "|---|---|---|---|", *rows, ""),
            *(f"{report['model']}; {versions}.", ""),
            "An explanation of a tiny network (a convolution, ReLU and a pooled linear head, 12 x 12) takes",
            f"{tiny['pooled']:.2f} ms more than its forward pass, at the layer before the ReLU {tiny['before']:.2f}.",
        ]
    )


if __name__ == "__main__":
    main()
