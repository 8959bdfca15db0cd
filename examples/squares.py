"""Coloured squares in noise, and transformers, for the examples that train tiny models of transformers."""

import sys

import torch

sys.modules.setdefault("torchvision", None)  # else transformers imports it if it is installed, even if it is broken
try:
    import transformers as transformers
except ImportError:
    sys.exit("this example needs transformers: pip install transformers")

NAMES = ["red", "green", "blue", "yellow"]
COLOURS = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])


def squares(*colours: torch.Tensor) -> torch.Tensor:
    """Noisy images ``(B, 3, 32, 32)`` in [-1, 1] with a square of each colour, from left to right."""
    images, pixel, width = 0.2 * torch.randn(len(colours[0]), 3, 32, 32), torch.arange(32), 32 // len(colours)
    for place, names in enumerate(colours):
        top, left = torch.randint(0, 23, (len(names), 1)), torch.randint(0, width - 9, (len(names), 1)) + place * width
        rows, columns = ((pixel >= start) & (pixel < start + 10) for start in (top, left))
        images = torch.where(rows[:, None, :, None] & columns[:, None, None], COLOURS[names][..., None, None], images)
    return images.clamp(-1, 1)
