"""ResNet-18 and -50 with ImageNet weights, product-quantised by their publisher. They are not part of the project.

The weights lie in ``../shared/weights`` beside it, or where the environment variable ``DIFFGRADCAM_WEIGHTS`` says.
They are those of github.com/uber-research/permute-quantize-finetune, with their batch norm folded.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.torchvision_shim import define_missing_operators

VARIABLE = "DIFFGRADCAM_WEIGHTS"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "weights"


def folder() -> Path:
    """Where the weights are."""
    return Path(os.environ.get(VARIABLE, BESIDE))


def load(name: str) -> nn.Module:
    """A network for 1000 classes, in evaluation mode.

    Args:
        name: ``"resnet18"`` or ``"resnet50"``.

    Returns:
        torchvision's network, for images that are normalised as ImageNet's are.
    """
    define_missing_operators()
    specification = importlib.util.spec_from_file_location("resnets", folder() / "resnets.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["resnets"] = module
    specification.loader.exec_module(module)
    model: nn.Module = module.load(name)
    return model


class PretrainedResNet18(nn.Module):
    """ResNet-18 with ImageNet weights and a new last layer, to fine-tune.

    Its batch norm was folded, so it is fixed: a scale and a shift for each channel.

    Args:
        classes: Of the last layer.

    Attributes:
        layer4: The last stage, whose maps are trained.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        pretrained = load("resnet18")
        from torchvision.models import resnet18
        from torchvision.ops import FrozenBatchNorm2d

        body = resnet18(norm_layer=FrozenBatchNorm2d)
        body.load_state_dict(pretrained.state_dict())
        body.fc = nn.Linear(512, classes)
        self.body = body
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images that ``Prepare`` brought to mean .5 and deviation .25, grey or in colour."""
        pixels = (images * 0.25 + 0.5).expand(-1, 3, -1, -1)
        logits: Tensor = self.body((pixels - self.mean) / self.deviation)
        return logits
