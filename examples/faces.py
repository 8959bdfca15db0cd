"""A task made from real images, in which labels alone teach the wrong thing: is the patch on the picture a face?

In training, every face is on a texture and every other patch on a photograph, so the background reveals the answer. In
the test it does not, and patches and backgrounds are new. The human map marks the patch.
"""

import cv2
import numpy as np
import torch
from skimage import color, data
from torch import nn

NAMES = ("no face", "face")


def training_and_test():
    """Images (N, 1, 64, 64) in [0, 1], labels (N,) and human maps (N, 64, 64), for training and for the test."""
    faces, others = np.split(data.lfw_subset(), 2)
    photo, new_photo = color.rgb2gray(data.coffee()), color.rgb2gray(data.chelsea())
    return (
        _images(1000, (others[:70], faces[:70]), (photo, data.grass() / 255), telling=True),
        _images(400, (others[70:], faces[70:]), (new_photo, data.gravel() / 255), telling=False),
    )


def network():
    """Three stages to an 8 x 8 map (layer "0"), then a pooled linear head."""
    stages = [
        nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        for inputs, outputs in ((1, 16), (16, 32), (32, 64))
    ]
    return nn.Sequential(nn.Sequential(*stages), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def _images(count, patches, backgrounds, telling):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images, human = np.zeros((2, count, 64, 64), np.float32)
    for image, region, label in zip(images, human, labels, strict=True):
        photo, side = backgrounds[label if telling else rng.integers(2)], rng.integers(20, 31)
        y, x = rng.integers(0, np.array(photo.shape) - 63)
        top, left = rng.integers(0, 65 - side, 2)
        patch = np.s_[top : top + side, left : left + side]
        image[:], region[patch] = photo[y : y + 64, x : x + 64], 1
        image[patch] = cv2.resize(rng.choice(patches[label]), (side, side))
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels), torch.from_numpy(human)
