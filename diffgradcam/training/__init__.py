"""TRAIN from end to end: settings, splits, the loop, the evaluation. ``diffgradcam train`` is made of these."""

from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .evaluation import Estimate, Evaluation, agreement, evaluate_model
from .images import InMemory, Prepare, augmented
from .loop import Epoch, Fit, fit, predict
from .models import SmallNet, with_classes
from .protocol import PRESETS, Settings, Split, split
from .report import maps_report
from .runs import Data, Run, train_and_test

__all__ = [
    "PRESETS",
    "Checkpoint",
    "Data",
    "Epoch",
    "Estimate",
    "Evaluation",
    "Fit",
    "InMemory",
    "Prepare",
    "Run",
    "Settings",
    "SmallNet",
    "Split",
    "agreement",
    "augmented",
    "evaluate_model",
    "fit",
    "maps_report",
    "predict",
    "read_checkpoint",
    "split",
    "train_and_test",
    "with_classes",
    "write_checkpoint",
]
