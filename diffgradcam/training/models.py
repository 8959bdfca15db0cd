"""A small network for trials, and any classifier with as many classes as the data have."""

from __future__ import annotations

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Four convolutions, a pooled linear head: 60,000 weights, trained from scratch in a minute on a CPU.

    Its maps are of ``features``, at an eighth of the image's side. Images of at least 16 x 16 pixels.

    Args:
        classes: Number of classes.
        channels: Of the images.
    """

    def __init__(self, classes: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(channels, 16, kernel=5, stride=2),
            nn.MaxPool2d(2),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            *_block(64, 64),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, C, H, W)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def with_classes(model: nn.Module, classes: int) -> nn.Module:
    """Give a classifier another number of classes: its last linear layer is replaced by a new one.

    The model itself is changed. Nothing happens where that layer has as many outputs already.

    Args:
        model: Such as a ResNet of torchvision, with trained weights or without.
        classes: Number of classes.

    Returns:
        The model.

    Raises:
        ValueError: If the model has no linear layer.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
        >>> with_classes(model, 2)(torch.zeros(1, 4)).shape
        torch.Size([1, 2])
    """
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to replace: expected a model that has {classes} classes "
            "already, or a linear head"
        )
    name, last = linear[-1]
    if last.out_features == classes:
        return model
    parent, _, attribute = name.rpartition(".")
    new = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    setattr(model.get_submodule(parent), attribute, new.to(last.weight))
    return model


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
