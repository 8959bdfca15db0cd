"""What the adapters share, without a trainer."""

import numpy as np
import pytest
import torch

from diffgradcam import GradCAM
from diffgradcam.integrations._parts import Guidance, MapsEvery
from diffgradcam.training import draw_maps, guided_loss

from .data import SIZE, criterion, items, network

IMAGES = torch.stack([item.image for item in items(4)])


@pytest.mark.parametrize("choice", ["true", "predicted"])
@pytest.mark.parametrize("mask", [None, "marked"])
def test_the_guided_loss_of_a_batch(choice, mask):
    model = network()
    batch = {"labels": torch.tensor([0, 1, 2, 0]), "people": torch.rand(4, SIZE, SIZE)}
    batch["marked"] = torch.tensor([True, False, True, True])
    with GradCAM(model, "features", rectify=False) as cam:
        logits = model(IMAGES)
        found = Guidance(cam, criterion(), "labels", "people", mask, choice).loss(batch, logits, torch.tensor(2.0))
        has = None if mask is None else batch["marked"]
        expected = guided_loss(
            cam, criterion(), logits, batch["labels"], batch["people"], has,
            classification=torch.tensor(2.0), choice=choice,
        )  # fmt: skip
    assert torch.equal(torch.stack(found).detach(), torch.stack(expected).detach())
    assert float(found.classification) == 2
    assert not torch.equal(logits.argmax(1), batch["labels"])


def test_maps_go_to_every_writer_when_they_are_due_with_the_pictures_given():
    model, first, second = network(), [], []
    cam = GradCAM(model, "features")
    pictures = [np.full((SIZE, SIZE, 3), 0.1 * number, np.float32) for number in range(4)]
    maps = MapsEvery(cam, IMAGES, 3, [0, 1, 2, 0], pictures, "seen")
    for step in range(5):
        maps.log([lambda *told: first.append(told), lambda *told: second.append(told)], step)
    maps.log([], 0)
    assert [(tag, step) for tag, _, step in first] == [("seen", 0), ("seen", 3)]
    expected = draw_maps(cam, IMAGES, [0, 1, 2, 0], pictures=pictures)
    assert not np.array_equal(expected, draw_maps(cam, IMAGES, [0, 1, 2, 0]))
    for told in (first, second):
        assert np.array_equal(told[0][1], expected)


def test_a_batch_is_described():
    own = Guidance(GradCAM(network(), "features"), criterion(), "labels", "people", None, "true")
    for batch, told in (({"a": 1, "b": 2}, "a dictionary with 'a', 'b'; expected"), ([1, 2], "list of 2; expected"),
                        (items(1)[0], r"SaliencyItem of 5 \(image, label, saliency, has_saliency, group\); expected"),
                        (5, "int; expected")):  # fmt: skip
        with pytest.raises(ValueError, match=f"labels='labels' is not a part of the batch, which is {told}"):
            own.loss(batch, torch.zeros(1, 2), torch.zeros(()))
