"""Every Python block of the README and of the documentation runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


class Classifier(nn.Module):
    """What the blocks of the README call a model: stages with torchvision's names and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer4(self.conv1(images)).mean((2, 3)))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Classifier()
    images, labels, human = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]), torch.rand(4, 32, 32)
    names = {
        "model": model,
        "images": images,
        "labels": labels,
        "human": human,
        "loader": [(images, labels, human)] * 2,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
