"""What maps cost in an exported model: ``python -m benchmarks.exported [--quick]``.

A model is exported twice, with and without maps, for ONNX Runtime and with ``torch.compile(fullgraph=True)``. Both take
turns, in random order in each round; the number is the median over the rounds of the time with maps over the time
without. Then the file of EfficientNet-Lite0 is quantized to int8 by ONNX Runtime, and its decisions and maps are
compared with those of float32 on photographs that it was not calibrated with.

Prints a line for each measurement and writes ``benchmarks/results/exported.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.resnet import ResNet18
from diffgradcam import BaseCAM, DiffGradCAM, GradCAMPlusPlus, layer_input
from diffgradcam.export import OnnxExplainer, with_maps, write_onnx
from diffgradcam.metrics.similarity import pearson
from examples import photos

RESULTS = Path(__file__).parent / "results" / "exported.json"
METHODS: dict[str, type[BaseCAM]] = {"DiffGradCAM": DiffGradCAM, "GradCAMPlusPlus": GradCAMPlusPlus}
Runner = Callable[[nn.Module, Path], Callable[[Tensor], object]]


def subjects() -> Iterator[tuple[str, nn.Module, Any]]:
    """Name, model and layer."""
    torch.manual_seed(0)
    yield "ResNet-18, layer4", ResNet18().eval(), "layer4"
    yield "EfficientNet-Lite0", photos.lite0(), layer_input("_avg_pooling")


def in_onnx_runtime(model: nn.Module, file: Path) -> Callable[[Tensor], object]:
    """A function of images that runs a model in ONNX Runtime."""
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model, (torch.zeros(2, 3, 224, 224),), file, dynamo=True, input_names=["images"], dynamic_shapes=(batch,),
        external_data=False, verbose=False,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def compiled(model: nn.Module, _file: Path) -> Callable[[Tensor], object]:
    """A function of images that runs a compiled model."""
    whole = torch.compile(model, fullgraph=True)

    def run(images: Tensor) -> object:
        with torch.no_grad():
            return whole(images)

    return run


RUNNERS: dict[str, Runner] = {"ONNX Runtime": in_onnx_runtime, "torch.compile": compiled}


def costs(*, quick: bool) -> Iterator[dict[str, Any]]:
    """With maps over without, for each model, runtime, batch and method."""
    for subject, model, layer in subjects():
        modules = {name: with_maps(make(model, layer), torch.rand(2, 3, 224, 224)) for name, make in METHODS.items()}
        for runtime, prepare in RUNNERS.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                bare, calls = prepare(model, file), {name: prepare(each, file) for name, each in modules.items()}
                for batch, rounds in ((1, 101), (16, 21)):
                    images = torch.rand(batch, 3, 224, 224)
                    ratios = measure.interleaved_ratios(
                        lambda bare=bare, images=images: bare(images),
                        {name: (lambda call=call, images=images: call(images)) for name, call in calls.items()},
                        3 if quick else rounds,
                        120,
                    )
                    yield {"model": subject, "runtime": runtime, "batch": batch} | {
                        name: round(ratio, 3) for name, ratio in ratios.items()
                    }
        if quick:
            return


class _Batches(quantization.CalibrationDataReader):
    def __init__(self, images: Tensor) -> None:
        self._left = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"images": image.numpy()}


def quantized(file: Path, out: Path, images: Tensor) -> None:
    """Quantize an exported model to int8: its convolutions and its linear layer. What makes the maps stays float32.

    Args:
        file: Of :func:`diffgradcam.export.write_onnx`.
        out: Where.
        images: To calibrate with.
    """
    quantization.quantize_static(
        str(file),
        str(out),
        _Batches(images),
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm"],
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
    )


def drift() -> dict[str, Any]:
    """int8 against float32: EfficientNet-Lite0 on parts of photographs."""
    from skimage import data

    sources = (data.chelsea(), data.coffee(), data.rocket())
    parts = [
        source[top : top + 200, left : left + 200]
        for source in sources
        for top in (0, 50, 100)
        for left in (0, 80, 160, 240)
    ]
    images = photos.to_input([photos.crop(part) for part in parts])
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        module = with_maps(DiffGradCAM(photos.lite0(), layer_input("_avg_pooling")), images[:2])
        write_onnx(module, whole)
        quantized(whole, small, images[0::2])
        # An own checksum goes with the file that was quantized, so there is none to verify here.
        first, second = (OnnxExplainer(file).explain(images[1::2]) for file in (whole, small))
        same = first.classes == second.classes
        agreement = pearson(first.maps[same], second.maps[same])
        return {
            "model": "EfficientNet-Lite0",
            "images": len(same),
            "same decision": round(float(same.float().mean()), 3),
            "Pearson correlation of the maps, median": round(float(agreement.median()), 4),
            "Pearson correlation of the maps, lowest": round(float(agreement.amin()), 4),
            "bytes": {"float32": whole.stat().st_size, "int8": small.stat().st_size},
        }


def as_markdown(report: dict[str, Any]) -> str:
    """The table of the page on deployment.

    Args:
        report: What is in the JSON file.

    Returns:
        A table, and a line on where it was measured.
    """
    names = list(METHODS)
    lines = [f"| model | runtime | images | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for row in report["ratios"]:
        found = [f"{row[name]:.2f}" for name in names]
        lines.append("| " + " | ".join([row["model"], row["runtime"], str(row["batch"]), *found]) + " |")
    setting = ", ".join(f"{name} {value}" for name, value in report["setting"].items())
    return "\n".join([*lines, "", f"224 x 224 pixels, CPU; {setting}."])


def drift_in_words(report: dict[str, Any]) -> str:
    """The sentence of that page on int8.

    Args:
        report: What is in the JSON file.

    Returns:
        A sentence.
    """
    int8 = report["int8"]
    median, lowest = (int8[f"Pearson correlation of the maps, {which}"] for which in ("median", "lowest"))
    return (
        f"{int8['model']} on {int8['images']} parts of photographs that it was not calibrated with: the decision is "
        f"the same for {int8['same decision']:.0%}, and there the correlation of the maps with those of float32 is "
        f"{median:.2f} (median; {lowest:.2f} at worst). The file has {int8['bytes']['int8'] / 1e6:.1f} MB instead of "
        f"{int8['bytes']['float32'] / 1e6:.1f} MB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds of one model, only printed")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")  # of the exporters
    int8 = drift()
    print(int8, flush=True)
    rows = []
    for row in costs(quick=quick):
        print(row, flush=True)
        rows.append(row)
    if not quick:
        setting = {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "threads": torch.get_num_threads(),
        }
        RESULTS.write_text(json.dumps({"setting": setting, "ratios": rows, "int8": int8}, indent=2) + "\n")


if __name__ == "__main__":
    main()
