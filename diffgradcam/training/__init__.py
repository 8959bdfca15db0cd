"""TRAIN from end to end: settings, splits, the loop, the evaluation. The command ``diffgradcam train`` is made of these."""

from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .evaluation import Estimate, Evaluation, agreement, evaluate
from .images import InMemory, Prepare, augmented
from .loop import Epoch, Fit, fit, predict
from .models import SmallNet, with_classes
from .protocol import PRESETS, Settings, Split, split

__all__ = [
    "PRESETS",
    "Checkpoint",
    "Epoch",
    "Estimate",
    "Evaluation",
    "Fit",
    "InMemory",
    "Prepare",
    "Settings",
    "SmallNet",
    "Split",
    "agreement",
    "augmented",
    "evaluate",
    "fit",
    "predict",
    "read_checkpoint",
    "split",
    "with_classes",
    "write_checkpoint",
]
