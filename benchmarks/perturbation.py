"""What methods cost that run the model many times: ``python -m benchmarks.perturbation [--only PART] [--quick]``.

ResNet-18, random weights, one image of 112 x 112, one thread of a CPU, beside pytorch-grad-cam and torch-cam where
these have the method. The unit is the same work without a map, in the same round and in CPU seconds:

- what is taken away at a layer (Ablation-CAM): one forward pass of the image;
- what is masked in the image (Score-CAM and its relatives, occlusion, deletion): plain inference over as many images,
  in batches of the size that proves best.

Then, on EfficientNet-Lite0 with its ImageNet weights and on photographs: how well the maps from a tenth of the channels
(``channels=``) agree with the maps from all of them. Prints Markdown and writes
``benchmarks/results/perturbation.json`` after each part.
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
from torch.nn import functional as F

import diffgradcam
from benchmarks import measure
from benchmarks.contenders import bare
from benchmarks.measure import Call
from benchmarks.resnet import ResNet18
from benchmarks.torchvision_shim import define_missing_operators
from diffgradcam import ISCAM, SSCAM, AblationCAM, GradCAM, ScoreCAM, layer_input, metrics
from diffgradcam._core.batches import images_at_once
from experiments.pages import table

RESULTS = Path(__file__).parent / "results" / "perturbation.json"
PEERS = {"pytorch-grad-cam": ("grad-cam", "pytorch_grad_cam"), "torch-cam": ("torchcam", "torchcam")}
PIXELS, SAMPLES = 112, 2
SIZES = (4, 8, 16, 32)
ABLATED = {"layer4": 5.0, "layer4.1.conv1": None, "layer3": None}  # the bounds, in forward passes
MASKED_BOUND, NOISE = 1.1, 0.02
TENTH = 10

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS, help="measure one part again")
    parser.add_argument("--quick", action="store_true", help="small layers, only printed")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # pytorch-grad-cam shows a bar for every image
    torch.set_num_threads(1)
    define_missing_operators()
    torch.manual_seed(0)
    model, image = ResNet18().eval(), torch.randn(1, 3, PIXELS, PIXELS)
    for name in [options.only] if options.only else PARTS:
        rows = PARTS[name](model, image, quick=options.quick)
        report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"parts": {}}
        report |= {
            "model": f"ResNet-18, random weights, 1 image, {PIXELS} x {PIXELS}, CPU, 1 thread, CPU seconds",
            "versions": {"diffgradcam": diffgradcam.__version__}
            | {name: importlib.metadata.version(distribution) for name, (distribution, _) in _present().items()}
            | {"torch": torch.__version__, "python": platform.python_version()},
        }
        report["parts"][name] = rows
        if options.quick:
            print(json.dumps(rows, indent=2))
        else:
            RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    if not options.quick:
        print(as_markdown(report))


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


def batch_sizes(model: nn.Module, image: Tensor, *, quick: bool) -> list[Row]:
    """Plain inference in batches of several sizes, as a multiple of the size that the library chooses."""
    rows = []
    for pixels in (PIXELS,) if quick else (PIXELS, 2 * PIXELS):
        other = F.interpolate(image, size=(pixels, pixels))
        chosen = images_at_once(other)
        calls = {str(size): _in_batches(model, other, 32, size) for size in SIZES}
        reference = _in_batches(model, other, 32, chosen)
        values = measure.interleaved_ratios(reference, calls, 5, 15, time.process_time)
        rows.append(
            {"pixels": pixels, "chosen": chosen, "values": {name: round(value, 3) for name, value in values.items()}}
        )
    return rows


def score_cam(model: nn.Module, image: Tensor, *, quick: bool) -> list[Row]:
    """Score-CAM, all channels and a tenth of them."""
    layer = "layer1" if quick else "layer4"
    count = _channels(model, layer, image)
    plain = _plain(model, image, count)
    calls = {"diffgradcam": _ours(ScoreCAM, model, layer, image)}
    calls |= {} if quick else _theirs("ScoreCAM", model, layer, image, {})
    few = _ours(ScoreCAM, model, layer, image, channels=count // TENTH)
    unit = "x plain inference"
    return [
        _row(f"ScoreCAM, {layer}, {count} images", unit, MASKED_BOUND, plain, calls),
        _row(
            f"ScoreCAM, {layer}, channels={count // TENTH}", f"{unit} over {count}", 0.15, plain, {"diffgradcam": few}
        ),
    ]


def relatives(model: nn.Module, image: Tensor, *, quick: bool) -> list[Row]:
    """Smoothed and integrated Score-CAM, deletion, occlusion."""
    rows = []
    unit, images = "x plain inference", 64 * SAMPLES
    plain = _plain(model, image, images)
    for name, method in (("SSCAM", SSCAM), ("ISCAM", ISCAM)):
        calls = {"diffgradcam": _ours(method, model, "layer1", image, samples=SAMPLES)}
        calls |= {} if quick else _theirs(name, model, "layer1", image, {"num_samples": SAMPLES})
        rows.append(_row(f"{name}, layer1, {images} images", unit, MASKED_BOUND, plain, calls))
    evaluator = metrics.Evaluator(model)
    maps = GradCAM(model, "layer4").explain(image).maps

    def deletion() -> object:
        return metrics.deletion(evaluator, image, maps, steps=63, progress=False)

    def occlusion() -> object:
        return metrics.occlusion_drops(evaluator, image, 0, grid=8, progress=False)

    plain = _plain(model, image, 65)  # both look at the whole image before 64 others
    rows.append(_row("deletion, 65 images", unit, MASKED_BOUND, plain, {"diffgradcam": deletion}))
    rows.append(_row("occlusion, 65 images", unit, MASKED_BOUND, plain, {"diffgradcam": occlusion}))
    return rows


def agreement(_model: nn.Module, _image: Tensor, *, quick: bool) -> list[Row]:
    """Pearson correlation of the maps from some of the channels with those from all, on photographs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from photos import cat_beside_coffee, crop, lite0, to_input
    from skimage import data

    model = lite0()
    photos = [cat_beside_coffee()] if quick else [crop(p()) for p in (data.chelsea, data.coffee, data.rocket)]
    images = to_input(photos if quick else [*photos, cat_beside_coffee()])
    work: list[tuple[str, str, int, Callable[..., Any]]] = [
        ("AblationCAM", "what enters _avg_pooling", 1280, partial(AblationCAM, model, layer_input("_avg_pooling"))),
        ("AblationCAM", "_blocks.10", 112, partial(AblationCAM, model, "_blocks.10")),
        ("ScoreCAM", "_blocks.10", 112, partial(ScoreCAM, model, "_blocks.10")),
    ]
    rows = []
    for name, layer, count, make in work[: 1 if quick else None]:
        whole = make(progress=False).explain(images).maps
        for share in (TENTH, 4):
            maps = make(progress=False, channels=count // share).explain(images).maps
            found = metrics.pearson(maps, whole)
            rows.append(
                {
                    "method": name,
                    "layer": layer,
                    "channels": f"{count // share} of {count}",
                    "mean": round(float(found.mean()), 2),
                    "least": round(float(found.min()), 2),
                    "photographs": len(images),
                }
            )
    return rows


PARTS: dict[str, Callable[..., list[Row]]] = {
    "AblationCAM": ablated,
    "batch sizes": batch_sizes,
    "ScoreCAM": score_cam,
    "relatives": relatives,
    "agreement": agreement,
}


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
    """Plain inference over so many images, in batches of the size that is fastest here."""
    fastest = min(SIZES, key=lambda size: min(_seconds(_in_batches(model, image, 32, size)) for _ in range(2)))
    return _in_batches(model, image, count, fastest)


def _seconds(call: Call) -> float:
    return measure.elapsed(call, time.process_time)


def _in_batches(model: nn.Module, image: Tensor, count: int, size: int) -> Call:
    images = image.repeat(min(count, size), 1, 1, 1)

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, count, size):
                model(images[: min(size, count - start)])

    return run


def _row(work: str, unit: str, bound: float | None, reference: Call, calls: dict[str, Call]) -> Row:
    values = measure.interleaved_ratios(reference, calls, rounds=9, seconds=8, clock=time.process_time)
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
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    notes = [f"{report['model']}; {versions}.", "`peers`: no slower than the fastest of them."]
    return "\n\n".join([*tables(report).values(), "\n".join(notes)])


def tables(report: dict[str, Any]) -> dict[str, str]:
    """Each table of the report, as Markdown."""
    parts = report["parts"]
    return {
        "ablated": _costs(parts.get("AblationCAM", [])),
        "masked": _costs([*parts.get("ScoreCAM", []), *parts.get("relatives", [])]),
        "batch sizes": table(
            ["pixels", "chosen", *(f"{size} at once" for size in SIZES)],
            [
                [row["pixels"], row["chosen"], *(f"{row['values'][str(size)]:.2f}" for size in SIZES)]
                for row in parts.get("batch sizes", [])
            ],
        ),
        "agreement": table(
            ["method", "layer", "channels=", "r, mean", "least"],
            [
                [row["method"], row["layer"], row["channels"], f"{row['mean']:.2f}", f"{row['least']:.2f}"]
                for row in parts.get("agreement", [])
            ],
        ),
    }


def _costs(rows: list[Row]) -> str:
    def cells(row: Row) -> list[str]:
        bound = f"≤ {row['bound']:g}, peers" if row["bound"] else "peers"
        verdict = f"{bound}: {'pass' if row['passed'] else 'FAIL'}"
        theirs = [f"{row['values'][name]:.2f}" if name in row["values"] else "-" for name in PEERS]
        return [row["work"], row["unit"], f"{row['values']['diffgradcam']:.2f}", verdict, *theirs]

    return table(["work", "unit", "diffgradcam", "bound", *PEERS], [cells(row) for row in rows])


if __name__ == "__main__":
    main()
