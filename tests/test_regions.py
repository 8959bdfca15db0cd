import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffgradcam import TrueFalseCAM, important_features, layer_input
from tests.pretend_device import DEVICE, pretend_device


class Painted(nn.Module):
    """A model whose Difference Salience of class 0 against class 1 is the image itself, times 2 over its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        score = self.layer(images).mean((1, 2, 3))
        return torch.stack([score, -score], 1)


def painted() -> Tensor:
    image = torch.zeros(1, 20, 30)
    image[0, 2:6, 3:9] = 1.0  # 24 pixels of 1: the largest share
    image[0, 10:14, 20:23] = -0.8  # 12 pixels of -0.8
    image[0, 17, 5] = 0.6
    image[0, 18, 6] = 0.6  # touches the last one by a corner
    image[0, 0, 29] = 0.3  # under the threshold
    return image


def test_regions_are_ranked_components_with_hand_computed_figures() -> None:
    image = painted()
    first, second, third = important_features(Painted(), image, "layer", true_class=0)
    total = 24 + 12 * 0.8 + 2 * 0.6 + 0.3
    assert first.share == pytest.approx(24 / total)
    assert second.share == pytest.approx(9.6 / total)
    assert third.share == pytest.approx(1.2 / total)
    assert [first.sign, second.sign, third.sign] == [1, -1, 1]
    assert first.box == (2, 3, 6, 9)
    assert first.centroid == pytest.approx((3.5, 5.5))
    assert third.box == (17, 5, 19, 7)
    assert third.centroid == pytest.approx((17.5, 5.5))
    torch.testing.assert_close(second.mask, image[0] == -0.8)
    top, left, bottom, right = second.box
    assert second.mask[top:bottom, left:right].all()


def test_the_other_class_sees_the_same_regions_with_the_sign_changed() -> None:
    ours = important_features(Painted(), painted(), "layer", true_class=0)
    theirs = important_features(Painted(), painted().unsqueeze(0), "layer", true_class=1)
    assert [(r.share, r.sign, r.box) for r in ours] == [(r.share, -r.sign, r.box) for r in theirs]


def test_the_threshold_joins_and_drops() -> None:
    assert len(important_features(Painted(), painted(), "layer", true_class=0, threshold=0.25)) == 4
    assert len(important_features(Painted(), painted(), "layer", true_class=0, threshold=0.9)) == 1


def test_no_divergence_is_no_region() -> None:
    assert important_features(Painted(), torch.zeros(1, 8, 8), "layer", true_class=0) == []


def test_where_the_device_has_no_float64() -> None:
    expected = important_features(Painted(), painted(), "layer")
    with pretend_device(float64=False):
        found = important_features(Painted(), painted().to(DEVICE), "layer")
    assert [region[:4] for region in found] == [region[:4] for region in expected]
    assert all(torch.equal(region.mask, other.mask) for region, other in zip(found, expected, strict=True))


def test_bad_input_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"expected one image, \(C, H, W\) or \(1, C, H, W\)"):
        important_features(Painted(), torch.zeros(2, 1, 8, 8), "layer")
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        important_features(Painted(), painted(), "layer", threshold=1.5)
    with pytest.raises(TypeError, match=r"image is ndarray; expected a tensor \(C, H, W\) or \(1, C, H, W\)"):
        important_features(Painted(), painted().numpy(), "layer")
    with pytest.raises(ValueError, match="false_class is 'other'"):
        important_features(Painted(), painted(), "layer", false_class="other")


def effects_of_removal(
    model: nn.Module, image: Tensor, true: int, false: int, masks: list[Tensor], fill: Tensor
) -> Tensor:
    with torch.no_grad():
        removed = [torch.where(mask, fill, image) for mask in masks]
        logits = torch.cat([model(part) for part in torch.stack([image, *removed]).split(32)])
    odds = logits[:, true] - logits[:, false]
    return odds[0] - odds[1:]


def elsewhere(mask: Tensor) -> list[Tensor]:
    """The region moved to other places of the image, at most a quarter of it where it was: as much area, elsewhere."""
    step = max(mask.shape[0] // 8, 8)
    steps = [(y, x) for y in range(0, mask.shape[0], step) for x in range(0, mask.shape[1], step)]
    moved = [mask.roll(shift, (0, 1)) for shift in steps]
    return [other for other in moved if (other & mask).sum() <= 0.25 * mask.sum()]


def check_by_deletion(model: nn.Module, image: Tensor, layer: object, true: int, false: int, fill: Tensor) -> None:
    top = important_features(model, image, layer, true_class=true, false_class=false)[0]  # type: ignore[arg-type]
    masks = [top.mask, *elsewhere(top.mask)]
    own, *others = (top.sign * effects_of_removal(model, image, true, false, masks, fill)).tolist()
    assert len(others) >= 3
    assert own > 0
    assert own > np.mean(others)


def test_removing_the_top_region_moves_the_decision_most_on_a_real_model(lite0: nn.Module, photo_inputs: dict) -> None:
    for title, true, false in (("cat beside coffee", 285, 967), ("coffee", 967, 968)):
        check_by_deletion(lite0, photo_inputs[title], layer_input("_avg_pooling"), true, false, torch.zeros(()))


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a striped patch at a random place; the direction of its stripes is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 1, 32, 32, generator=generator) / 2
    wave = torch.tensor([1.0, 1.0, -1.0, -1.0] * 3)
    for image, label in zip(images, labels, strict=True):
        y, x = torch.randint(20, (2,), generator=generator).tolist()
        image[0, y : y + 12, x : x + 12] += (wave[:, None] if label else wave[None, :]).expand(12, 12)
    return images, labels


def test_removing_the_top_region_moves_the_decision_most_on_a_trained_stand_in() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(80):
        images, labels = stripes(64, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = stripes(12, seed=1000)
    assert (model(images).argmax(1) == labels).all()
    for image, label in zip(images, labels.tolist(), strict=True):
        check_by_deletion(model, image, "4", label, 1 - label, image.mean())


def test_the_regions_are_those_of_the_divergence(lite0: nn.Module, photo_inputs: dict) -> None:
    image = photo_inputs["cat beside coffee"]
    cam = TrueFalseCAM(lite0, layer_input("_avg_pooling"), false_class=967)
    heatmap = cam(image.unsqueeze(0), [285])[0]
    top = important_features(lite0, image, layer_input("_avg_pooling"), true_class=285, false_class=967)[0]
    np.testing.assert_array_equal(top.mask.numpy() & (heatmap <= 0), False)
    assert heatmap[top.mask.numpy()].min() > 0.49
    assert top.box[3] <= 224 * 0.6  # the cat is on the left
