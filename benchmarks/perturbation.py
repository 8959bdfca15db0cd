"""What methods cost that run the model many times: ``python -m benchmarks.perturbation [--quick]``.

ResNet-18, random weights, one image of 112 x 112, one thread of a CPU, beside pytorch-grad-cam and torch-cam where
these have the method. The unit is the same work without a map, in the same round and in CPU seconds:

- what is taken away at a layer (Ablation-CAM): one forward pass of the image;
- what is masked in the image (Score-CAM and its relatives, occlusion, deletion): plain inference over as many images,
  32 at a time.

Then, on EfficientNet-Lite0 with its ImageNet weights and on photographs: how well the maps from a tenth of the channels
(``channels=``) agree with the maps from all of them. Prints Markdown and writes
``benchmarks/results/perturbation.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diffgradcam
from benchmarks import measure
from benchmarks.contenders import bare
from benchmarks.measure import Call
from benchmarks.resnet import ResNet18
from benchmarks.torchvision_shim import define_missing_operators
from diffgradcam import ISCAM, SSCAM, AblationCAM, GradCAM, ScoreCAM, metrics
from diffgradcam.scores import log_probability

RESULTS = Path(__file__).parent / "results" / "perturbation.json"
PEERS = {"pytorch-grad-cam": ("grad-cam", "pytorch_grad_cam"), "torch-cam": ("torchcam", "torchcam")}
PIXELS, AT_ONCE, SAMPLES = 112, 32, 2
ABLATED = {"layer4": 5.0, "layer4.1.conv1": None, "layer3": None}  # the bounds, in forward passes
MASKED_BOUND, NOISE = 1.1, 0.02
TENTH = 10

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of small layers, only printed")
    quick = parser.parse_args().quick
    os.environ["TQDM_DISABLE"] = "1"  # pytorch-grad-cam shows a bar for every image
    torch.set_num_threads(1)
    define_missing_operators()
    torch.manual_seed(0)
    model, image = ResNet18().eval(), torch.randn(1, 3, PIXELS, PIXELS)
    report = {
        "model": f"ResNet-18, random weights, 1 image, {PIXELS} x {PIXELS}, CPU, 1 thread, CPU seconds",
        "versions": {"diffgradcam": diffgradcam.__version__}
        | {name: importlib.metadata.version(distribution) for name, (distribution, _) in _present().items()}
        | {"torch": torch.__version__, "python": platform.python_version()},
        "rows": ablated(model, image, quick=quick) + masked(model, image, quick=quick),
        "agreement": agreement(quick=quick),
    }
    print(as_markdown(report))
    if not quick:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def ablated(model: nn.Module, image: Tensor, *, quick: bool) -> list[Row]:
    """Ablation-CAM, in forward passes of the image."""
    rows = []
    for layer, bound in [*ABLATED.items()][: 1 if quick else None]:
        channels = _channels(model, layer, image)
        calls = {"diffgradcam": _ours(AblationCAM, model, layer, image)} | (
            {} if quick else _theirs("AblationCAM", model, layer, image, {})
        )
        rows.append(
            _row(f"AblationCAM, {layer}, {channels} channels", "forward passes", bound, bare(model, image), calls)
        )
    return rows


def masked(model: nn.Module, image: Tensor, *, quick: bool) -> list[Row]:
    """What is masked in the image, as a multiple of plain inference over as many images."""
    rows = []
    unit = "x plain inference"
    wide, narrow = ("layer1", "layer1") if quick else ("layer4", "layer1")
    count = _channels(model, wide, image)
    work = [
        ("ScoreCAM", wide, count, _ours(ScoreCAM, model, wide, image), {}),
        ("SSCAM", narrow, 64 * SAMPLES, _ours(SSCAM, model, narrow, image, samples=SAMPLES), {"num_samples": SAMPLES}),
        ("ISCAM", narrow, 64 * SAMPLES, _ours(ISCAM, model, narrow, image, samples=SAMPLES), {"num_samples": SAMPLES}),
    ]
    for name, layer, images, ours, options in work:
        calls = {"diffgradcam": ours} | ({} if quick else _theirs(name, model, layer, image, options))
        rows.append(_row(f"{name}, {layer}, {images} images", unit, MASKED_BOUND, _plain(model, image, images), calls))
    few = _ours(ScoreCAM, model, wide, image, channels=count // TENTH)
    name = f"ScoreCAM, {wide}, channels={count // TENTH}"
    rows.append(_row(name, f"{unit} over {count} images", 0.15, _plain(model, image, count), {"diffgradcam": few}))
    evaluator = metrics.Evaluator(model)
    maps = GradCAM(model, "layer4").explain(image).maps
    steps = 63
    deletion: Call = lambda: metrics.deletion(evaluator, image, maps, steps=steps, progress=False)  # noqa: E731
    occlusion: Call = lambda: metrics.occlusion_drops(evaluator, image, 0, grid=8, progress=False)  # noqa: E731
    for name, call in (("deletion, 63 steps", deletion), ("occlusion, 8 x 8", occlusion)):
        # Both look at the whole image first, and deletion at the empty one last.
        images = 1 + (64 if call is occlusion else steps + 1)
        plain = _plain(model, image, images)
        rows.append(_row(f"{name}, {images} images", unit, MASKED_BOUND, plain, {"diffgradcam": call}))
    return rows


def agreement(*, quick: bool) -> list[Row]:
    """Pearson correlation of the maps from a tenth of the channels with those from all, on photographs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from photos import cat_beside_coffee, crop, lite0, to_input
    from skimage import data

    model = lite0()
    photos = [cat_beside_coffee()] if quick else [crop(p()) for p in (data.chelsea, data.coffee, data.rocket)]
    images = to_input(photos if quick else [*photos, cat_beside_coffee()])
    last = diffgradcam.layer_input("_avg_pooling")
    work: list[tuple[str, str, Callable[..., Any]]] = [
        ("AblationCAM", "the last, 1280 channels", partial(AblationCAM, model, last)),
    ]
    if not quick:
        work += [
            ("ScoreCAM", "_blocks.10, 112 channels", partial(ScoreCAM, model, "_blocks.10")),
            (
                "ScoreCAM, log_probability",
                "_blocks.10, 112 channels",
                partial(ScoreCAM, model, "_blocks.10", score=log_probability),
            ),
        ]
    rows = []
    for name, layer, make in work:
        count = 1280 if name == "AblationCAM" else 112
        whole = make().explain(images).maps
        for share in (TENTH, 4):
            maps = make(channels=count // share).explain(images).maps
            found = metrics.pearson(maps, whole)
            rows.append(
                {
                    "method": name,
                    "layer": layer,
                    "channels": count // share,
                    "mean": round(float(found.mean()), 3),
                    "least": round(float(found.min()), 3),
                    "photographs": len(images),
                }
            )
    return rows


def _ours(method: Callable[..., Any], model: nn.Module, layer: str, image: Tensor, **options: Any) -> Call:
    cam = method(model, layer, progress=False, **options)
    return lambda: cam.explain(image)


def _theirs(name: str, model: nn.Module, layer: str, image: Tensor, options: dict[str, Any]) -> dict[str, Call]:
    """The same method of each library that is installed and has it, with its own defaults."""
    found: dict[str, Call] = {}
    module = model.get_submodule(layer)
    if "pytorch-grad-cam" in _present() and name in ("AblationCAM", "ScoreCAM"):
        import pytorch_grad_cam

        cam = getattr(pytorch_grad_cam, name)(model=model, target_layers=[module])
        found["pytorch-grad-cam"] = lambda: cam(input_tensor=image, targets=None)
    if "torch-cam" in _present() and name != "AblationCAM":
        import torchcam.methods

        def torchcam_once() -> None:
            with torch.no_grad(), getattr(torchcam.methods, name)(model, target_layer=module, **options) as extractor:
                logits = model(image)
                extractor(logits.argmax(1).tolist(), logits)

        found["torch-cam"] = torchcam_once
    return found


def _plain(model: nn.Module, image: Tensor, count: int) -> Call:
    images = image.repeat(min(count, AT_ONCE), 1, 1, 1)

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, count, AT_ONCE):
                model(images[: min(AT_ONCE, count - start)])

    return run


def _row(work: str, unit: str, bound: float | None, reference: Call, calls: dict[str, Call]) -> Row:
    values = measure.interleaved_ratios(reference, calls, rounds=9, seconds=15, clock=time.process_time)
    ours, rest = values["diffgradcam"], [value for name, value in values.items() if name != "diffgradcam"]
    behind = bool(rest) and ours > min(rest) * (1 + NOISE)
    passed = not behind and (bound is None or ours <= bound)
    print(f"{work}: {', '.join(f'{name} {value:.2f}' for name, value in values.items())}", flush=True)
    rounded = {name: round(value, 3) for name, value in values.items()}
    return {"work": work, "unit": unit, "bound": bound, "passed": passed, "values": rounded}


def _channels(model: nn.Module, layer: str, image: Tensor) -> int:
    seen: list[int] = []
    with model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: seen.append(output.shape[1])):
        bare(model, image)()
    return seen[0]


def _present() -> dict[str, tuple[str, str]]:
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer[1])}


def as_markdown(report: dict[str, Any]) -> str:
    """The report as tables, with the notes needed to read them."""
    lines = [f"| work | unit | diffgradcam | bound | {' | '.join(PEERS)} |", f"|---|---|---|---|{'---|' * len(PEERS)}"]
    for row in report["rows"]:
        values = row["values"]
        cells = [f"{values[name]:.2f}" if name in values else "-" for name in PEERS]
        bound = f"≤ {row['bound']:g}, peers" if row["bound"] else "peers"
        verdict = f"{bound}: {'pass' if row['passed'] else 'FAIL'}"
        lines.append(
            f"| {row['work']} | {row['unit']} | {values['diffgradcam']:.2f} | {verdict} | {' | '.join(cells)} |"
        )
    lines += ["", "| method | layer | channels= | Pearson, mean | least |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['method']} | {row['layer']} | {row['channels']} | {row['mean']:.3f} | {row['least']:.3f} |"
        for row in report["agreement"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", f"{report['model']}; {versions}.", "`peers`: no slower than the fastest of them."])


if __name__ == "__main__":
    main()
