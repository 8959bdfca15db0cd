"""What saliency guidance costs in each trainer: ``python -m benchmarks.trainers [--quick]``.

Training steps of a ResNet-18 with and without ``DifferenceSalienceLoss`` at its last block, in a plain loop, in
Lightning and in Hugging Face's ``Trainer``. Time is that of the processor, on one thread, so that other work on the
machine matters little. Prints a Markdown table and writes ``benchmarks/results/trainers.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.resnet import ResNet18
from benchmarks.torchvision_shim import define_missing_operators
from diffgradcam import GradCAM
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss
from diffgradcam.training import audit_in_training, draw_maps, guided_loss

define_missing_operators()
import lightning.pytorch as lightning  # noqa: E402
import transformers  # noqa: E402

from diffgradcam.integrations.hugging_face import SaliencyGuidedTrainer  # noqa: E402
from diffgradcam.integrations.lightning import SaliencyGuidance  # noqa: E402

logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)

RESULTS = Path(__file__).parent / "results" / "trainers.json"
CLASSES, BATCH, SIDE, STEPS = 10, 8, 112, 4
LAYER, RATE = "layer4", 1e-3

Seconds = list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, only printed: to see that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # advice on speed that a benchmark on the CPU does not need
    report = {
        "model": (
            f"ResNet-18, random weights, {CLASSES} classes, {LAYER}, {BATCH} images of {SIDE} x {SIDE} a step, CPU, "
            "1 thread"
        ),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers")}
        | {"python": platform.python_version()},
        "rows": measured(1 if quick else 15),
    }
    print(as_markdown(report))
    if not quick:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def measured(rounds: int) -> list[dict[str, Any]]:
    """The median over the rounds of a step's time, relative to the step without guidance of the same round."""
    watched = network()
    cam = GradCAM(watched.train(), LAYER, rectify=False)
    images = data()[0]["pixel_values"].expand(BATCH, -1, -1, -1)
    runs: dict[str, Callable[[], Seconds]] = {}
    for name, run in (("a plain loop", loop), ("Lightning", in_lightning), ("Hugging Face's `Trainer`", in_trainer)):
        runs[f"{name}: a step"] = partial(run, network(), guided=False)
        runs[f"{name}: a guided step"] = partial(run, network(), guided=True)
    runs[f"a picture of the maps of {BATCH} images"] = partial(repeated, partial(draw_maps, cam, images))
    runs[f"an audit with {BATCH} images"] = partial(repeated, partial(audit_in_training, cam, images, threshold=1.0))
    order, ratios = random.Random(0), {name: [] for name in runs}
    for number in tqdm(range(rounds + 1), desc="rounds"):
        took = {name: statistics.median(runs[name]()[1:]) for name in order.sample(list(runs), len(runs))}
        for name, seconds in took.items():
            base = name.replace("a guided step", "a step") if ": " in name else "a plain loop: a step"
            if number:  # the first round warms up
                ratios[name].append(seconds / took[base])
    return [
        {"work": name, "time": round(statistics.median(values), 2)}
        for name, values in ratios.items()
        if not name.endswith(": a step")
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet18(CLASSES)


def data() -> list[dict[str, Tensor]]:
    """Images, labels and human maps, enough for the steps of a run."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(3, SIDE, SIDE, generator=generator),
            "labels": torch.tensor(number % CLASSES),
            "human": torch.rand(SIDE, SIDE, generator=generator),
        }
        for number in range(BATCH * STEPS)
    ]


def criterion() -> SaliencyGuidedLoss:
    return SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.5)


def repeated(call: Callable[[], object]) -> Seconds:
    """The seconds of two calls."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return seconds


def loop(model: nn.Module, *, guided: bool) -> Seconds:
    """The seconds of each step of a loop."""
    optimizer, weigh, seconds = torch.optim.SGD(model.parameters(), RATE), criterion(), []
    model.train()
    with GradCAM(model, LAYER, rectify=False) as cam:
        if not guided:
            cam.detach()
        for batch in torch.utils.data.DataLoader(data(), BATCH):
            start = time.process_time()
            logits, labels = model(batch["pixel_values"]), batch["labels"]
            if guided:
                loss = guided_loss(cam, weigh, logits, labels, batch["human"]).total
            else:
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.process_time() - start)
    return seconds


class Clock(lightning.Callback):
    """The seconds of each step."""

    def __init__(self) -> None:
        self.seconds: Seconds = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch["pixel_values"]), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE)


def in_lightning(model: nn.Module, *, guided: bool) -> Seconds:
    """The seconds of each step of Lightning's trainer."""
    clock, guidance = Clock(), []
    if guided:
        cam = GradCAM(model, LAYER, rectify=False)
        guidance.append(SaliencyGuidance(cam, criterion(), labels="labels", human="human"))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[clock, *guidance], logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Module(model), torch.utils.data.DataLoader(data(), BATCH))
    return clock.seconds


class StepClock(transformers.TrainerCallback):
    """The seconds of each step."""

    def __init__(self) -> None:
        self.seconds: Seconds = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


class Labelled(nn.Module):
    """A model in the form that Hugging Face's ``Trainer`` takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def in_trainer(model: nn.Module, *, guided: bool) -> Seconds:
    """The seconds of each step of Hugging Face's trainer."""
    labelled, clock = Labelled(model), StepClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, report_to=[], remove_unused_columns=False, num_train_epochs=1, save_strategy="no",
            per_device_train_batch_size=BATCH, optim="sgd", learning_rate=RATE, max_grad_norm=0.0, use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        options: dict[str, Any] = {"model": labelled, "args": arguments, "callbacks": [clock]}
        if guided:
            cam = GradCAM(labelled, f"model.{LAYER}", rectify=False)
            trainer = SaliencyGuidedTrainer(
                **options, train_dataset=data(), cam=cam, criterion=criterion(), human="human"
            )
        else:
            kept = [{name: item[name] for name in ("pixel_values", "labels")} for item in data()]
            trainer = transformers.Trainer(**options, train_dataset=kept)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.seconds


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = [f"| {row['work']} | {row['time']:.2f} |" for row in report["rows"]]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return "\n".join(["| work | time |", "|---|---|", *rows, "", f"{report['model']}; {versions}."])


if __name__ == "__main__":
    main()
