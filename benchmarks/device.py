"""What explaining costs on a GPU: ``python -m benchmarks.device [--out FILE]``; under six minutes, one JSON, one table.

It needs PyTorch and this package; with torchvision or timm it measures ResNet-50, ConvNeXt-T and ViT-B/16, without them
a ResNet-18 of its own. pytorch-grad-cam and torch-cam are measured beside it where they are installed. Each row is a
multiple of the same work without maps in the same round, until the device is done: the median over the rounds. Waits
are counted by CUDA's own debug mode. Without a GPU it says so and ends; ``--cpu-smoke`` runs all of it at a tiny size
on the CPU, to see that it runs: these numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import diffgradcam
from benchmarks.contenders import TEN, bare
from benchmarks.dataset import Images, inference
from benchmarks.measure import Call
from benchmarks.resnet import ResNet18
from benchmarks.torchvision_shim import define_missing_operators
from diffgradcam import AblationCAM, GradCAM, ScoreCAM
from diffgradcam.data import explain_dataset
from diffgradcam.export import with_maps

RESULTS = Path(__file__).parent / "results" / "device.json"
SECONDS = 330
ROUNDS = 9
SLOW = 0.5  # seconds of a call after which three rounds are enough
FEW_ROUNDS = 3
# (work, bound): multiples of the work without maps
BOUNDS = {
    ("one map", 32): 1.03,
    ("one map", 1): 1.10,
    ("training step, two maps", 32): 1.05,
    ("data set", 32): 1 / 0.97,
    ("maps in the model, CUDA graph", 1): 1.05,
    ("maps in the model, CUDA graph", 32): 1.05,
}
PRECISIONS = ("float32", "bfloat16 autocast", "channels_last")

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    parser.add_argument(
        "--cpu-smoke", action="store_true", help="a tiny network on the CPU; prints, writes only to --out"
    )
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, help="what is left after them is not measured, and named (%(default)s)"
    )
    options = parser.parse_args()
    smoke = options.cpu_smoke
    if not smoke and not torch.cuda.is_available():
        print("skipped: PyTorch sees no CUDA device here; --cpu-smoke runs all of it at a tiny size on the CPU")
        return
    define_missing_operators()
    report = Bench("cpu" if smoke else "cuda", smoke=smoke, seconds=options.seconds).run()
    print(as_markdown(report))
    if not smoke or options.out != RESULTS:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


class Bench:
    """All measurements on one device.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        smoke: Tiny sizes and one round.
        seconds: After which no new measurement begins.
    """

    def __init__(self, device: str, *, smoke: bool, seconds: float = SECONDS) -> None:
        self.device = torch.device(device)
        self.smoke = smoke
        self.pixels = 32 if smoke else 224
        self.batches = (1, 2) if smoke else (1, 32)
        self.rounds = 1 if smoke else ROUNDS
        self.start = time.monotonic()
        self.end = self.start + seconds
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.order = random.Random(0)

    def run(self) -> dict[str, Any]:
        """Measure all that there is time for: the other precisions last."""
        models = {"ResNet-18": (ResNet18().eval(), "layer4", None)} if self.smoke else _models()
        models = {name: (model.to(self.device), *rest) for name, (model, *rest) in models.items()}  # type: ignore[misc]
        work: list[tuple[str, Callable[[], None]]] = []
        first = next(iter(models))
        for precision in PRECISIONS:
            for name, (model, layer, reshape) in models.items():
                for batch in self.batches:
                    work.append((f"{name}, {precision}", self._maps(name, model, layer, reshape, precision, batch)))
                if precision == "float32":
                    work.append((f"{name}, training", self._training(name, model, layer, reshape)))
            if precision == "float32":
                model, layer, reshape = models[first]
                work.append(("maps in the model", self._exported(first, model, layer)))
                work.append(("data set", self._data_set(first, model, layer)))
                work.append(("perturbation", self._perturbation(first, model, layer)))
        for what, measure in work:
            if time.monotonic() > self.end:
                self.left_out.append(what)
                continue
            measure()
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else f"CPU ({platform.machine()})"
        versions = {"diffgradcam": diffgradcam.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
        for distribution in ("torchvision", "timm", "grad-cam", "torchcam"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[distribution] = importlib.metadata.version(distribution)
        return {
            "device": name,
            "smoke": self.smoke,
            "versions": versions,
            "seconds": round(time.monotonic() - self.start),
            "rows": self.rows,
            "left_out": self.left_out,
        }

    def _maps(
        self, name: str, model: nn.Module, layer: str, reshape: Any, precision: str, batch: int
    ) -> Callable[[], None]:
        def measure() -> None:
            images = torch.randn(batch, 3, self.pixels, self.pixels, device=self.device)
            if precision == "channels_last":
                images = images.to(memory_format=torch.channels_last)
            layout = torch.channels_last if precision == "channels_last" else torch.contiguous_format
            model.to(memory_format=layout)  # type: ignore[call-overload]
            cam = GradCAM(model, layer, reshape)
            classes = torch.arange(TEN, device=self.device).expand(batch, TEN)
            # Others want tokens in ways of their own, and cannot read bfloat16.
            comparable = reshape is None and precision != "bfloat16 autocast"
            peers = _peers(model, layer, images) if comparable else {}
            calls = {
                "one map": {"diffgradcam": lambda: cam.explain(images)} | peers,
                "10 classes": {"diffgradcam": lambda: cam.explain(images, classes)},
                "all classes": {"diffgradcam": lambda: cam.explain(images, "all")},
            }
            with self._precision(precision):
                for work, contenders in calls.items():
                    self._row(name, precision, batch, work, bare(model, images), contenders)

        return measure

    def _training(self, name: str, model: nn.Module, layer: str, reshape: Any) -> Callable[[], None]:
        def measure() -> None:
            batch = self.batches[-1]
            images = torch.randn(batch, 3, self.pixels, self.pixels, device=self.device)
            labels = torch.arange(batch, device=self.device)
            pairs = torch.stack([labels, labels + 1], 1)
            cam = GradCAM(model, layer, reshape, rectify=False)

            def step() -> None:
                model.zero_grad(set_to_none=True)
                F.cross_entropy(model(images), labels).backward()

            def with_maps() -> None:
                model.zero_grad(set_to_none=True)
                with cam:
                    logits = model(images)
                    maps = cam.maps(logits, pairs)
                    (F.cross_entropy(logits, labels) + maps.square().mean()).backward()

            fused = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
            with fused:  # fused attention has no second derivative
                self._row(name, "float32", batch, "training step, two maps", step, {"diffgradcam": with_maps})
            model.zero_grad(set_to_none=True)

        return measure

    def _exported(self, name: str, model: nn.Module, layer: str) -> Callable[[], None]:
        def measure() -> None:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for batch in self.batches:
                images = torch.randn(batch, 3, self.pixels, self.pixels, device=self.device)
                module = with_maps(GradCAM(model, layer), images)
                calls = {"diffgradcam": self._captured(module, images)}
                self._row(name, "float32", batch, "maps in the model, CUDA graph", self._captured(model, images), calls)

        return measure

    def _captured(self, module: nn.Module, images: Tensor) -> Call:
        """A forward pass as one CUDA graph, so that launching kernels costs nothing; on a CPU as it is."""
        if self.device.type != "cuda":
            return bare(module, images)
        beside = torch.cuda.Stream()
        with torch.no_grad(), torch.cuda.stream(beside):
            module(images)  # what is allocated once is allocated before
        beside.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            module(images)
        return graph.replay

    def _data_set(self, name: str, model: nn.Module, layer: str) -> Callable[[], None]:
        def measure() -> None:
            count, batch = (4, 2) if self.smoke else (8192, 32)
            pinned = self.device.type == "cuda"
            loader = DataLoader(
                Images(count, self.pixels), batch_size=batch, num_workers=0 if self.smoke else 8, pin_memory=pinned
            )
            cam = GradCAM(model, layer)

            def explain() -> None:
                with tempfile.TemporaryDirectory() as out:
                    explain_dataset(cam, loader, out, device=self.device, progress=False)

            def infer() -> None:
                batches = ((images.to(self.device, non_blocking=True), label) for images, label in loader)
                inference(model, batches)  # type: ignore[arg-type]

            self._row(name, "float32", batch, "data set", infer, {"diffgradcam": explain})

        return measure

    def _perturbation(self, name: str, model: nn.Module, layer: str) -> Callable[[], None]:
        def measure() -> None:
            image = torch.randn(1, 3, self.pixels, self.pixels, device=self.device)
            channels = 8 if self.smoke else None
            options: dict[str, Any] = {"progress": False, "channels": channels}
            score, ablation = (make(model, layer, **options) for make in (ScoreCAM, AblationCAM))
            with torch.no_grad(), model.get_submodule(layer).register_forward_hook(_note(seen := [])):
                model(image)
            count = channels or seen[0]
            many = image.expand(min(count, 256), -1, -1, -1).contiguous()

            def plain() -> None:
                with torch.inference_mode():
                    for start in range(0, count, len(many)):
                        model(many[: min(len(many), count - start)])

            self._row(
                name,
                "float32",
                1,
                f"ScoreCAM, against {count} images",
                plain,
                {"diffgradcam": lambda: score.explain(image)},
            )
            work = f"AblationCAM, {count} channels"
            self._row(name, "float32", 1, work, bare(model, image), {"diffgradcam": lambda: ablation.explain(image)})

        return measure

    def _row(self, model: str, precision: str, batch: int, work: str, reference: Call, calls: dict[str, Call]) -> None:
        ratios: dict[str, list[float]] = {name: [] for name in calls}
        everything: dict[str | None, Call] = {None: reference, **calls}
        warm = {name: self._seconds(call) for name, call in everything.items()}
        rounds = min(self.rounds, FEW_ROUNDS) if max(warm.values()) > SLOW else self.rounds
        base: list[float] = []
        for _ in range(rounds):
            took = {name: self._seconds(everything[name]) for name in self.order.sample([*everything], len(everything))}
            base.append(took[None])
            for name in calls:
                ratios[name].append(took[name] / took[None])
        ours = calls["diffgradcam"]
        values = {name: round(statistics.median(found), 3) for name, found in ratios.items()}
        bound = None if self.smoke else BOUNDS.get((work, batch))
        self.rows.append(
            {
                "model": model,
                "precision": precision,
                "batch": batch,
                "work": work,
                "reference_ms": round(1000 * statistics.median(base), 3),
                "values": values,
                "bound": bound,
                "passed": None if bound is None else values["diffgradcam"] <= min([bound, *values.values()]) + 0.02,
                "memory": round(self._memory(ours) / max(self._memory(reference), 1), 3),
                "waits": self._waits(ours),
            }
        )
        print(f"{model}, {precision}, batch {batch}, {work}: {values}", flush=True)

    def _seconds(self, call: Call) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        torch.cuda.synchronize()
        start = time.perf_counter()  # a call may wait by itself, so the clock of the host counts
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def _memory(self, call: Call) -> int:
        """Peak bytes of tensors on the device above what was held before; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def _waits(self, call: Call) -> int | None:
        """How often the host waited for the device, as CUDA counts it."""
        if self.device.type != "cuda":
            return None
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(each.message) for each in seen)

    @contextlib.contextmanager
    def _precision(self, precision: str) -> Iterator[None]:
        if precision == "bfloat16 autocast":
            with torch.autocast(self.device.type, torch.bfloat16):
                yield
        else:
            yield


def _note(seen: list[int]) -> Callable[[Any, Any, Tensor], None]:
    return lambda _module, _args, output: seen.append(output.shape[1])


def _models() -> dict[str, tuple[nn.Module, str, Any]]:
    """Networks with random weights, their last layers, and how tokens become a grid."""
    if importlib.util.find_spec("torchvision"):
        from torchvision import models

        return {
            "ResNet-50": (models.resnet50().eval(), "layer4", None),
            "ConvNeXt-T": (models.convnext_tiny().eval(), "features.7", None),
            "ViT-B/16": (
                models.vit_b_16().eval(),
                "encoder.layers.encoder_layer_11.ln_1",
                diffgradcam.tokens.tokens_to_grid,
            ),
        }
    if importlib.util.find_spec("timm"):
        import timm

        return {
            "ResNet-50": (timm.create_model("resnet50").eval(), "layer4", None),
            "ConvNeXt-T": (timm.create_model("convnext_tiny").eval(), "stages.3", None),
            "ViT-B/16": (
                timm.create_model("vit_base_patch16_224").eval(),
                "blocks.11.norm1",
                diffgradcam.tokens.tokens_to_grid,
            ),
        }
    return {"ResNet-18": (ResNet18().eval(), "layer4", None)}


def _peers(model: nn.Module, layer: str, images: Tensor) -> dict[str, Call]:
    """One map by the other libraries that are installed."""
    found: dict[str, Call] = {}
    if importlib.util.find_spec("pytorch_grad_cam"):
        import pytorch_grad_cam

        def theirs() -> None:
            with pytorch_grad_cam.GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
                cam(input_tensor=images, targets=None)

        found["pytorch-grad-cam"] = theirs
    if importlib.util.find_spec("torchcam"):
        from torchcam.methods import GradCAM as TorchCAM

        def torchcam() -> None:
            with TorchCAM(model, target_layer=layer) as extractor:
                logits = model(images)
                extractor(logits.argmax(1).tolist(), logits)

        found["torch-cam"] = torchcam
    return found


def as_markdown(report: dict[str, Any]) -> str:
    """The report as one table."""
    peers = ("pytorch-grad-cam", "torch-cam")
    header = ["model", "precision", "batch", "work", "without (ms)", "diffgradcam", "bound", "memory", "waits", *peers]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in report["rows"]:
        verdict = "" if row["bound"] is None else f"≤ {row['bound']:.2f}: {'pass' if row['passed'] else 'FAIL'}"
        values = row["values"]
        cells = [row["model"], row["precision"], row["batch"], row["work"], f"{row['reference_ms']:.2f}"]
        cells += [f"{values['diffgradcam']:.2f}", verdict, row["memory"], "" if row["waits"] is None else row["waits"]]
        cells += [f"{values[name]:.2f}" if name in values else "-" for name in peers]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    notes = ["", f"{report['device']}; {versions}; {report['seconds']} s."]
    if report["smoke"]:
        notes.append("A rehearsal at a tiny size on the CPU: the numbers mean nothing.")
    if report["left_out"]:
        notes.append(f"No time was left for: {', '.join(report['left_out'])}.")
    return "\n".join([*lines, *notes])


if __name__ == "__main__":
    main()
