"""A small classifier of real handwritten digits, trained in a second or two: what the tests fool and audit."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import GradCAM
from diffgradcam.metrics.similarity import pearson
from diffgradcam.sham import border_mask

LAYER = "relu2"
MASK = border_mask((8, 8), 28)


class Digits(nn.Sequential):
    """GAP and a linear head on an 8 x 8 grid; the zero padding tells the channels where the edge is."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(32, classes)


@functools.cache
def data():
    """Images ``(1797, 1, 8, 8)`` in [0, 1] and labels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits need the extra metrics")
    digits = datasets.load_digits()
    return torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target).long()


@functools.cache
def _trained(seed, epochs):
    images, labels = data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Digits()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, total_iters=epochs)
        for _ in range(epochs):
            for index in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[index]), labels[index]).backward()
                optimizer.step()
            schedule.step()
    model.zero_grad()
    return model.eval()


def trained(seed=0, epochs=8):
    """A classifier of your own, right on 95% of the digits or more."""
    return copy.deepcopy(_trained(seed, epochs))


def kept_and_reached(clean, fooled, images, mask=MASK, method=GradCAM, layer=LAYER):
    """Mean Pearson's r of the fooled map with the clean one and with the mask, classes as the clean model decides."""
    _, classes, before = method(clean, layer).explain(images)
    after = method(fooled, layer).explain(images, classes).maps
    return float(pearson(after, before).mean()), float(pearson(after, mask.to(after.dtype).expand_as(after)).mean())
