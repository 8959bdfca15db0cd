"""Train a network on labels alone, and again guided by where people look, and see what each of them looks at.

The task, made from real images: is the patch on the picture a face? In training every face lies on a texture and every
other patch on a photograph, so the background gives the answer away; in the test it doesn't. The human map marks the patch.
Patches and backgrounds of the test are new. Writes output/train_with_saliency.png, in about a minute.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import color, data
from torch import nn
from tqdm import tqdm

from diffgradcam import GradCAM, TrueFalseCAM
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss
from diffgradcam.maps import minmax, rectify, resize, scale_signed
from diffgradcam.metrics import energy_in_mask
from diffgradcam.visualize import grid, show_cam_on_image, show_divergence_on_image

NAMES = ("no face", "face")


def make_images(count, patches, backgrounds, related, seed=0):
    """Images (N, 1, 64, 64) in [0, 1], labels (N,) and human maps (N, 64, 64)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images, human = np.zeros((2, count, 64, 64), np.float32)
    for image, region, label in zip(images, human, labels, strict=True):
        photo, side = backgrounds[label if related else rng.integers(2)], rng.integers(20, 31)
        y, x = rng.integers(0, np.array(photo.shape) - 63)
        top, left = rng.integers(0, 65 - side, 2)
        patch = np.s_[top : top + side, left : left + side]
        image[:], region[patch] = photo[y : y + 64, x : x + 64], 1
        image[patch] = cv2.resize(rng.choice(patches[label]), (side, side))
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels), torch.from_numpy(human)


def tasks():
    """Training and test images: the network meets none of the patches and backgrounds of one in the other."""
    faces, others = np.split(data.lfw_subset(), 2)
    photo, other_photo = color.rgb2gray(data.coffee()), color.rgb2gray(data.chelsea())
    training = make_images(1000, (others[:70], faces[:70]), (photo, data.grass() / 255), related=True)
    test = make_images(400, (others[70:], faces[70:]), (other_photo, data.gravel() / 255), related=False)
    return training, test


def network():
    """Three stages to an 8 x 8 map, then a pooled linear head."""
    stages = [
        nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        for inputs, outputs in ((1, 16), (16, 32), (32, 64))
    ]
    return nn.Sequential(nn.Sequential(*stages), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def train(training, alpha, title):
    """With alpha = 1 the cross-entropy is all there is."""
    torch.manual_seed(0)
    model, criterion = network(), SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*training), batch_size=32, shuffle=True)
    with GradCAM(model, "0", rectify=False) as cam:
        for _ in tqdm(range(12), title, unit="epoch"):
            for images, labels, human in loader:
                logits = model(images)
                maps = cam.maps(logits, torch.stack([labels, 1 - labels], 1))
                loss = criterion(logits, labels, maps, human).total
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def main():
    training, test = tasks()
    images, labels, human = test
    pictures = [[picture] for picture in (255*images[:4, 0]).byte().numpy()]
    for title, alpha in (("labels alone", 1.0), ("guided", 0.5)):
        model = train(training, alpha, title)
        both = TrueFalseCAM(model, "0").compare(images, labels)
        ...
