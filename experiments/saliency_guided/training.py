"""One training: a small network, one fixed configuration for every method, and what is measured afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam import GradCAM
from diffgradcam.heatmaps import resize
from diffgradcam.losses import (
    ContrastSalienceLoss,
    CyborgLoss,
    DifferenceSalienceLoss,
    DivergenceSalienceLoss,
    SaliencyGuidedLoss,
    cam_entropy_loss,
    cyborg_loss,
)
from diffgradcam.metrics import (
    accuracy,
    apcer_at_bpcer,
    auroc,
    eer,
    energy_in_mask,
    iou_at_matched_area,
    pearson,
    pointing_game,
)

from .tasks import Images


class Config(NamedTuple):
    """What every training has in common. Nothing here was tuned for a method; see the report.

    Attributes:
        train: Training images.
        test: Images of each test.
        epochs: Passes over the training images.
        batch: Images per step.
        lr: Peak learning rate of Adam, one-cycle schedule.
        weight_decay: Of Adam.
        alpha: Weight of cross-entropy; the saliency loss gets ``1 - alpha``.
    """

    train: int = 1000
    test: int = 800
    epochs: int = 10
    batch: int = 32
    lr: float = 3e-3
    weight_decay: float = 1e-4
    alpha: float = 0.5


def _cyborg_and_entropy(maps: Tensor, human: Tensor, mask: Tensor) -> Tensor:
    """CYBORG where there is a human map, and a focused map everywhere: adds ``mean ln(H + 1)``, unweighted."""
    return cyborg_loss(maps, human, mask=mask) + cam_entropy_loss(maps, log=True)


class Method(NamedTuple):
    """How a method trains: its saliency loss (None for cross-entropy alone) and whether it takes both classes' maps."""

    saliency_loss: Callable[..., Tensor] | None
    both_classes: bool


METHODS = {
    "CE": Method(None, False),
    "CYBORG": Method(CyborgLoss(), False),
    "Difference": Method(DifferenceSalienceLoss(), True),
    "Contrast": Method(ContrastSalienceLoss(), True),
    "Divergence": Method(DivergenceSalienceLoss(), True),
    "CYBORG + entropy": Method(_cyborg_and_entropy, False),
}


class Net(nn.Module):
    """Four convolutions to an 8 x 8 map, then a pooled linear head with two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 16, kernel=5, stride=2),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, 64),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 2)`` of images ``(B, 1, 64, 64)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def train(method: str | Method, images: Images, seed: int, config: Config) -> Net:
    """Train a network from scratch.

    Methods with the same seed start from the same weights and see the same batches, so that they compare in pairs.

    Args:
        method: A name in :data:`METHODS`, or another method.
        images: Training images.
        seed: Of the weights and the order of the images.
        config: What every method has in common.

    Returns:
        The network in evaluation mode.
    """
    saliency_loss, both_classes = METHODS[method] if isinstance(method, str) else method
    guided = saliency_loss and SaliencyGuidedLoss(saliency_loss, config.alpha)
    torch.manual_seed(seed)
    model = Net().train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions are faster so on a CPU
    order = torch.Generator().manual_seed(seed)
    steps = len(images.labels) // config.batch
    optimizer = torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * steps)
    with GradCAM(model, [model.features], rectify=False) as cam:
        for _ in range(config.epochs):
            shuffled = torch.randperm(len(images.labels), generator=order)[: steps * config.batch]
            for part in shuffled.view(steps, config.batch):
                batch = images.take(part)
                logits = model(batch.images)
                if guided:
                    maps = cam.maps(logits, _classes(batch.labels) if both_classes else batch.labels)
                    loss = guided(logits, batch.labels, maps, batch.saliency, batch.has_saliency).total
                else:
                    loss = F.cross_entropy(logits, batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def evaluate(model: Net, images: Images) -> dict[str, float]:
    """How well a network decides, and how well its maps match the regions that carry the class.

    Args:
        model: The network, in evaluation mode.
        images: A test.

    Returns:
        ``auroc``, ``accuracy``, ``eer``, ``apcer`` (at BPCER = 1%, class 1 being the attack), and for the map of the
        true class (``true_...``) and the true minus the false class's (``difference_...``) the mean over the images
        that have a region of ``energy``, ``pointing``, ``pearson`` and ``iou``, at image resolution.
    """
    cam = GradCAM(model, [model.features], rectify=False)
    logits, _, maps = cam.explain(images.images, _classes(images.labels))
    true, false = maps[images.has_saliency].unbind(1)
    region = images.saliency[images.has_saliency]
    scores = (logits[:, 1] - logits[:, 0]).numpy()
    labels = images.labels.numpy()
    return {
        "auroc": auroc(labels, scores),
        "accuracy": accuracy(labels, scores, threshold=0.0),
        "eer": eer(labels, scores),
        "apcer": apcer_at_bpcer(labels, scores, 0.01),
        **_agreement("true", true, region),
        **_agreement("difference", true - false, region),
    }


def _agreement(name: str, maps: Tensor, region: Tensor) -> dict[str, float]:
    maps = resize(maps, region.shape[1:])
    mask = region >= 0.5
    values = {
        "energy": energy_in_mask(maps, mask),
        "pointing": pointing_game(maps, mask),
        "pearson": pearson(maps, region),
        "iou": iou_at_matched_area(maps, mask),
    }
    return {f"{name}_{key}": float(value.float().mean()) for key, value in values.items()}


def _classes(labels: Tensor) -> Tensor:
    """The true and the false class of each image, ``(B, 2)``."""
    return torch.stack([labels, 1 - labels], 1)
