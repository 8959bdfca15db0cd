"""Signals, volumes and videos: three tiny networks learn to tell two blocks apart, and their maps show where they are.

Prints the share of the maps, (B, L) or (B, D, H, W), in the raised blocks; a network may recognise the other class by
what is missing. Writes output/signals_and_volumes.png.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from diffgradcam import DiffGradCAM

SIZES = {"signal": (96,), "volume": (8, 16, 16), "video": (6, 16, 16)}


def noise_with_a_block(count: int, size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, classes (0: a raised block, 1: an alternating one) and where the blocks are."""
    inputs, where, classes = torch.randn(count, 1, *size), torch.zeros(count, *size), torch.arange(count) % 2
    sides = [max(2, length // 4) for length in size]
    for i in range(count):
        starts = [int(torch.randint(0, length - side + 1, ())) for length, side in zip(size, sides, strict=True)]
        block = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        where[i][block] = 1
        inputs[i, 0][block] += 2.5 * ((-1.0) ** torch.arange(sides[-1]) if classes[i] else 1)
    return inputs, classes, where


def main() -> None:
    torch.manual_seed(0)
    figure = Figure(figsize=(12, 3), layout="constrained")
    for axis, (name, size) in zip(figure.subplots(1, 3), SIZES.items(), strict=True):
        conv, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if len(size) == 1 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
        layers = conv(1, 8, 3, padding=1), nn.ReLU(), conv(8, 16, 3, padding=1), nn.ReLU()
        model = nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(90):
            inputs, classes, _ = noise_with_a_block(32, size)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), classes).backward()
            optimizer.step()
        inputs, classes, where = (each[::2] for each in noise_with_a_block(64, size))  # the raised blocks
        maps = DiffGradCAM(model, "3").explain(inputs, classes).maps
        print(f"{name}: {(maps * where).sum() / maps.sum():.0%} of the maps in the blocks, {where.mean():.0%}")
        image, seen, block = (x[0].reshape(-1, size[-1]).numpy() for x in (inputs, maps, where))
        if name == "signal":
            axis.plot(image[0], color="black", linewidth=1)
            axis.imshow(seen, aspect="auto", cmap="Reds", extent=(0, size[0], *axis.get_ylim()))
        else:  # slices, or frames, side by side
            axis.imshow(seen.T, aspect="auto", cmap="magma")
            axis.contour(block.T, [0.5], colors="white")
        axis.set_title(f"{name}: why a raised block?")
    Path("output").mkdir(exist_ok=True)
    figure.savefig("output/signals_and_volumes.png", dpi=80)


if __name__ == "__main__":
    main()
