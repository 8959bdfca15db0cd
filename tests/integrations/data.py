"""A tiny task for the trainers, and what they must do, written as a plain loop."""

import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import GradCAM
from diffgradcam.data import SaliencyItem
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss

CLASSES = 3
SIZE = 12


class Network(nn.Module):
    """Layer ``features``, batch norm, and a pooled head."""

    def __init__(self, norm=True):
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6, CLASSES)
        nn.init.constant_(self.head.bias, -2)  # else its small logits look like sigmoids, which an audit refuses

    def forward(self, images):
        return self.head(self.norm(self.features(images)).relu().mean((2, 3)))


def network(norm=True, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(norm)


def items(count=16, seed=1):
    """Images with labels; every third has no human map, and what stands there instead is never to be read."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    human = torch.rand(count, SIZE, SIZE, generator=generator)
    has = torch.arange(count) % 3 != 2
    human[~has] = torch.nan
    labels = torch.arange(count) % CLASSES
    return [
        SaliencyItem(image, label, saliency, one, "")
        for image, label, saliency, one in zip(images, labels, human, has, strict=True)
    ]


def criterion():
    return SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.25)


def batches(data, size=4):
    """The items as batches of tensors, in their order."""
    for start in range(0, len(data), size):
        yield SaliencyItem(*(torch.stack(part) for part in list(zip(*data[start : start + size], strict=True))[:4]), "")


def trained(model, data, layer="features", *, epochs=1, size=4, accumulate=1, smoothing=0.0, run=None, transform=None):
    """Plain stochastic gradient descent on ``0.25 cross-entropy + 0.75 saliency``, a step every ``accumulate`` batches.

    Returns the parts ``(classification, saliency)`` of each batch.
    """
    run = run or model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss_of, parts = criterion(), []
    model.train()
    with GradCAM(model, layer, transform, rectify=False) as cam:
        for _ in range(epochs):
            for number, batch in enumerate(batches(data, size), start=1):
                logits = run(batch.image)
                others = logits.detach().scatter(1, batch.label.unsqueeze(1), -torch.inf).argmax(1)
                maps = cam.maps(logits, torch.stack([batch.label, others], 1))
                saliency = loss_of.saliency_loss(*maps.unbind(1), batch.saliency, mask=batch.has_saliency)
                classification = F.cross_entropy(logits, batch.label, label_smoothing=smoothing)
                ((0.25 * classification + 0.75 * saliency) / accumulate).backward()
                parts.append((float(classification.detach()), float(saliency.detach())))
                if number % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    return parts


def same_weights(found, expected, **tolerance):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, **tolerance)
