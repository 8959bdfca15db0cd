"""Explain every image of a folder, interrupt the run and continue it: maps, an index, and the broken images."""

import tempfile
from pathlib import Path

import cv2
import torch
from photos import cat_beside_coffee, crop, lite0, name, to_input
from skimage import data
from torch.utils.data import DataLoader, Dataset

from diffgradcam import DiffGradCAM, layer_input
from diffgradcam.data import explain_dataset, open_explanations


class Folder(Dataset):
    """The images of a folder, preprocessed as the model expects."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> torch.Tensor:
        photo = cv2.imread(str(self.paths[position]))
        if photo is None:
            raise OSError("not an image that OpenCV can read")
        return to_input([crop(photo[..., ::-1])])[0]


def make_folder(folder: Path) -> None:
    """Write some photographs, and a file that is not an image."""
    for number, photo in enumerate([data.chelsea(), data.coffee(), data.rocket(), cat_beside_coffee()]):
        cv2.imwrite(str(folder / f"{number}.jpg"), photo[..., ::-1])
    (folder / "2b.jpg").write_bytes(b"not a photograph")


def main() -> None:
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as out:
        make_folder(Path(made))
        folder = Folder(Path(made))
        cam, loader = DiffGradCAM(lite0(), layer_input("_avg_pooling")), DataLoader(folder, batch_size=2)
        names = [path.name for path in folder.paths]
        try:
            explain_dataset(cam, loader, out, ids=names, shard_size=2)
        except RuntimeError as error:
            print(error, open_explanations(out), sep="\n")
        found = explain_dataset(cam, loader, out, ids=names, shard_size=2, on_error="skip")
        for row in found.rows():
            if "error" in row:
                print(f"{row['id']:>8}: {row['error']}")
                continue
            focus = f"entropy {row['entropy']:.2f} nats of a map {tuple(found[row['id']].shape)}"
            print(f"{row['id']:>8}: {name(row['class'])}, p = {row['probability']:.2f}, {focus}")


if __name__ == "__main__":
    main()
