"""Which regions tell each of several classes from each of the others: output/class_pairs.png."""

from pathlib import Path

from photos import cat_beside_coffee, lite0, name, to_input

from diffgradcam import GradCAM, explain_pairs, layer_input
from diffgradcam.visualize import Bar, grid, overlay

CLASSES = [285, 282, 967, 925]


def main() -> None:
    photo = cat_beside_coffee()
    cam = GradCAM(lite0(), layer_input("_avg_pooling"))
    logits, _, pairs = explain_pairs(cam, to_input([photo]), CLASSES)  # (1, K), (1, N), (1, N, N, 7, 7)
    maps = pairs[0] / pairs.max()  # one scale for all maps, so that you can compare them
    rows, titles = [], []
    for i, one in enumerate(CLASSES):
        rows.append([photo if i == j else overlay(photo, maps[i, j]) for j in range(len(CLASSES))])
        titles.append([f"{name(one)} rather than {name(other)}" if one != other else "" for other in CLASSES])
        for j, other in enumerate(CLASSES):
            if i != j:
                left, right = pairs[0, i, j].tensor_split(2, dim=1)
                margin, share = logits[0, one] - logits[0, other], left.sum() / (left.sum() + right.sum())
                print(f"{name(one)} rather than {name(other)}: {margin:+.1f}, {share:.0%} of the map on the cat's side")
    path = Path("output/class_pairs.png")
    path.parent.mkdir(exist_ok=True)
    bar = Bar(label="evidence, one scale for all")
    bars = [[None] * len(CLASSES) for _ in CLASSES[1:]] + [[bar] * (len(CLASSES) - 1) + [None]]
    grid(rows, titles, size=2.2, bars=bars).savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
