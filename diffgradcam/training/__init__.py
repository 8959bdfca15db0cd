"""Saliency-guided training from end to end: settings, splits, the loop, the evaluation.

``diffgradcam train`` is made of these.
"""

from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .evaluation import Estimate, Evaluation, agreement, evaluate_model
from .guidance import guided_loss, twice_differentiable
from .images import InMemory, Prepare, augmented
from .loop import Epoch, Fit, fit, predict
from .models import SmallNet, with_classes
from .protocol import PRESETS, Settings, Split, split
from .report import maps_report
from .runs import Data, Run, train_and_test
from .watching import audit_in_training, draw_maps, log_maps

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
    "audit_in_training",
    "augmented",
    "draw_maps",
    "evaluate_model",
    "fit",
    "guided_loss",
    "log_maps",
    "maps_report",
    "predict",
    "read_checkpoint",
    "split",
    "train_and_test",
    "twice_differentiable",
    "with_classes",
    "write_checkpoint",
]
