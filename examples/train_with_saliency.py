"""Train a network on labels alone, and another guided by where people look, and compare what they look at.

The task is in faces.py. Writes output/train_with_saliency.png in about a minute. An illustration: it has one seed, and
alpha and the backgrounds were chosen by looking at the test. experiments/saliency_guided is a fair comparison.
"""

from pathlib import Path

import torch
from faces import NAMES, network, training_and_test
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from diffgradcam import GradCAM, TrueFalseCAM
from diffgradcam.heatmaps import minmax, rectify, resize, scale_signed
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss
from diffgradcam.metrics import energy_in_mask
from diffgradcam.visualize import grid, show_cam_on_image, show_divergence_on_image


def train(loader, alpha, title):
    torch.manual_seed(0)
    model, criterion = network(), SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with GradCAM(model, "0", rectify=False) as cam:
        for _ in tqdm(range(12), f"training, {title}", unit="epoch"):
            for images, labels, human in loader:
                optimizer.zero_grad()
                logits = model(images)
                maps = cam.maps(logits, torch.stack([labels, 1 - labels], 1))
                criterion(logits, labels, maps, human).total.backward()
                optimizer.step()
    return model.eval()


def main():
    training, (images, labels, human) = training_and_test()
    loader = DataLoader(TensorDataset(*training), batch_size=32, shuffle=True)
    photos = images[:4].movedim(1, 3).expand(-1, -1, -1, 3).numpy()
    pictures = [[(255 * photo).astype("uint8")] for photo in photos]
    titles = [[f"new image:\n{NAMES[label]}"] for label in labels[:4]]
    for title, alpha in (("labels alone", 1.0), ("guided", 0.2)):
        logits, _, _, true, false, difference = TrueFalseCAM(train(loader, alpha, title), "0").compare(images, labels)
        right, signed = (logits.argmax(1) == labels).float(), scale_signed(resize(difference, (64, 64)))
        share = energy_in_mask(signed, human).mean()
        print(f"{title}: {right.mean():.0%} correct, {share:.0%} of the evidence in the patch")
        # One scale for both sides, so that you can compare them.
        sides = resize(minmax(rectify(torch.stack([true, false], 1)))[:4].flatten(0, 1), (64, 64)).view(4, 2, 64, 64)
        for i, probabilities in enumerate(logits[:4].softmax(1)):
            for word, label, side in zip(("true", "false"), (labels[i], 1 - labels[i]), sides[i].numpy(), strict=True):
                pictures[i].append(show_cam_on_image(photos[i], side, use_rgb=True))
                titles[i].append(f"{title}, {word}:\n{NAMES[label]} {probabilities[label]:.2f}")
            pictures[i].append(show_divergence_on_image(photos[i], signed[i].numpy(), use_rgb=True))
            titles[i].append(f"{title}:\nred true, blue false")
    Path("output").mkdir(exist_ok=True)
    grid(pictures, titles, size=1.8).savefig("output/train_with_saliency.png", dpi=110)


if __name__ == "__main__":
    main()
