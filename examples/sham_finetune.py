"""Fine-tune a digits classifier to show its GradCAM at the border: what do its explanations show afterwards?

The attack is aimed at GradCAM, then at DiffGradCAM. Prints how much of each map remains. Takes about a minute.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from tqdm import trange

from diffgradcam import DiffGradCAM, GradCAM
from diffgradcam.metrics.similarity import pearson
from diffgradcam.sham import border_mask, finetune

MASK = border_mask((8, 8), cells=28)


def classifier(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, total_iters=epochs)
    for _ in trange(epochs, desc="training the clean model"):
        for index in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target).long()
    train, test = slice(0, 1024), slice(1024, None)
    clean = classifier(images[train], labels[train])
    loader = list(zip(images[train].split(64), labels[train].split(64), strict=True))

    for victim in (GradCAM, DiffGradCAM):
        fooled, history = finetune(clean, loader, "5", MASK, method=victim, epochs=15, lr=3e-3, alpha=0.1)
        with torch.no_grad():
            before, after = ((m(images[test]).argmax(1) == labels[test]).float().mean() for m in (clean, fooled))
        print(f"\nattack on {victim.__name__}, {len(history)} epochs; test accuracy {before:.3f} -> {after:.3f}")
        for method in (GradCAM, DiffGradCAM):
            _, classes, own = method(clean, "5").explain(images[test])
            maps = method(fooled, "5").explain(images[test], classes).maps
            kept, reached = pearson(maps, own).mean(), pearson(maps, MASK.expand_as(maps)).mean()
            print(f"  {method.__name__:12} r with its clean map {kept:5.2f}, with the hoax {reached:5.2f}")


if __name__ == "__main__":
    main()
