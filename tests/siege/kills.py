"""Run something again and again, each time killed somewhere else, until it ends: ``python -m tests.siege.kills``.

In a process of its own, which imports everything once and has no threads, so that it may fork. A child kills itself at
its n-th line of the library's files that write, or is killed after a random time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from tqdm import tqdm

import diffgradcam
from diffgradcam import GradCAM
from diffgradcam.export import with_maps, write_onnx
from diffgradcam.training import InMemory, Settings, runs
from diffgradcam.training.runs import Data, Run, train_and_test

PACKAGE = Path(diffgradcam.__file__).parent
WRITING = ("training/loop.py", "training/runs.py", "training/checkpoint.py", "export/onnx_files.py",
           "_core/persistence.py", "cli/train.py")  # fmt: skip
NEW = b"new" * 4096
"""What is exported in place of a real file, which takes seconds."""


def killed(work: Callable[[], object], line: int | None = None, seconds: float | None = None) -> bool:
    """Run in a child that is killed at a line, or after a time, or not at all; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            if line is not None:
                sys.settrace(_killer(line))
            work()
            os._exit(0)
        except BaseException:
            sys.settrace(None)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # it has not been waited for, so its number is its own
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the work failed")
    return os.WIFSIGNALED(status)


def _killer(line: int) -> Callable[..., object]:
    files, left = {str(PACKAGE / name) for name in WRITING}, line

    def local(_frame: object, event: str, _argument: object) -> Callable[..., object]:
        nonlocal left
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return local

    return lambda frame, _event, _argument: local if frame.f_code.co_filename in files else None


class Tiny(nn.Module):
    """A convolution, batch norm, dropout and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.features(images)).mean((2, 3)))  # type: ignore[no-any-return]


def tiny(seed: int) -> nn.Module:
    """With weights from a seed."""
    torch.manual_seed(seed)
    return Tiny()


def train(folder: Path) -> None:
    """A run of a few epochs, from images to figures."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    images = torch.randn(24, 1, 8, 8, generator=generator) + labels[:, None, None, None]
    maps = torch.rand(24, 8, 8, generator=generator)
    data = Data(InMemory(images, labels, maps), [str(i) for i in range(24)], labels.tolist(), [""] * 24, [""] * 24)
    settings = Settings(loss="contrast", epochs=4, batch_size=4, augment="affine", blur=True)
    train_and_test(
        folder, data, Run(None, 3), settings, tiny, {}, layer="features", resamples=0, validation=0.25, test=0.25
    )


def train_by_command(folder: Path) -> None:
    """The same by the command, from files to a report."""
    from click.testing import CliRunner
    from PIL import Image

    from diffgradcam.cli import main

    table = folder.parent / "data.csv"
    if not table.is_file():
        for index in range(24):
            Image.new("RGB", (16, 16), (index * 9, 99, 99 * (index % 2))).save(folder.parent / f"{index}.png")
        table.write_text("image,label\n" + "".join(f"{index}.png,{index % 2}\n" for index in range(24)))
    options = ["--size", "16", "--epochs", "3", "--batch-size", "4", "--resamples", "0", "--loss", "ce"]
    CliRunner().invoke(main, ["train", str(table), *options, "--out", str(folder)], catch_exceptions=False)


def trainings(folder: Path, work: Callable[[Path], None], kills: int) -> dict[str, int]:
    """Killed at random lines and times, each time gone on with; it ends as a training that nobody disturbed."""
    chance, counted = random.Random(0), {"lines": 0, "times": 0}
    work(folder / "first")  # imports what is imported late
    started = time.monotonic()
    killed(lambda: work(folder / "undisturbed"))
    takes = time.monotonic() - started
    for number in range(kills):
        if number % 2:
            counted["times"] += killed(lambda: work(folder / "killed"), seconds=chance.uniform(0.1, 0.5) * takes)
        else:
            counted["lines"] += killed(lambda: work(folder / "killed"), line=chance.randint(200, 600))
    killed(lambda: work(folder / "killed"))
    undisturbed, found = files(folder / "undisturbed"), files(folder / "killed")
    assert found.keys() == undisturbed.keys()
    for name, data in undisturbed.items():
        # The report and what is above the runs name the folder.
        assert found[name] == data or (work is train_by_command and "/" not in name), name
    return counted


def every_line_at_the_end(folder: Path, every: int) -> dict[str, int]:
    """A training whose epochs are over, killed at one line after the other of what is left to do."""
    train(folder / "undisturbed")

    def until_it_is_tested() -> None:
        runs.evaluate_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        train(folder / "over")

    assert killed(until_it_is_tested)
    counted, line = {"lines": 0}, 1
    while True:
        shutil.rmtree(folder / "killed", ignore_errors=True)
        shutil.copytree(folder / "over", folder / "killed")
        again = killed(lambda: train(folder / "killed"), line=line)
        counted["lines"] += again
        killed(lambda: train(folder / "killed"))
        assert files(folder / "killed") == files(folder / "undisturbed"), line
        if not again:
            return counted
        line += every


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exports(folder: Path) -> dict[str, int]:
    """An export over an older file, killed at every line; what is there after each."""
    file, seen = folder / "m.onnx", {"old": 0, "new": 0, "without checksum": 0}
    module = with_maps(GradCAM(tiny(0).eval(), "features"), torch.zeros(1, 1, 8, 8))
    program = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}), model_proto=SimpleNamespace(SerializeToString=lambda: NEW)
    )
    torch.onnx.export = lambda *_, **__: program
    from diffgradcam.export import onnx_files

    line = 0
    write_onnx(module, file)
    while True:
        line += 1
        onnx_files._write(file, b"old" * 4096)
        again = killed(lambda: write_onnx(module, file), line=line)
        data = onnx_files._verified(file)  # raises for a file beside the checksum of another one
        assert data in (b"old" * 4096, NEW)
        seen["new" if data == NEW else "old"] += 1
        seen["without checksum"] += not onnx_files._checksum_file(file).is_file()
        if not again:
            assert data == NEW
            return seen


WORK = {
    "training": lambda folder, number: trainings(folder, train, number),
    "command": lambda folder, number: trainings(folder, train_by_command, number),
    "end": every_line_at_the_end,
    "export": lambda folder, _: exports(folder),
}


if __name__ == "__main__":  # FOLDER WORK NUMBER WORK NUMBER ...
    tqdm.monitor_interval = 0  # a thread: a child that is forked while it holds tqdm's lock would wait for ever
    torch.set_num_threads(1)
    place, *asked = sys.argv[1:]
    counts = {}
    for name, number in zip(asked[::2], asked[1::2], strict=True):
        own = Path(place) / name
        own.mkdir()
        counts[name] = WORK[name](own, int(number))
    print(json.dumps(counts))
