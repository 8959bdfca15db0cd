"""Generated networks x methods x number formats x modes: a finite, correct map, or one of our own errors.

Whatever comes out, the model is as it was: bit by bit, or in training mode as after one forward pass.
"""

import itertools
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn

from diffgradcam import HiResCAM, layer_input
from tests.models import images, seeded
from tests.untouched import copy, same, untouched

from .architectures import Halve
from .combinations import BLOCKS, METHODS, PHRASES, TOLERANCE, WAYS, ask, draw, expect, heat_map, prepare, ways

TOGETHER = 12
SHORT, FULL = 156, 2496
RUNS = [pytest.param(start, marks=[] if start < SHORT else pytest.mark.siege) for start in range(0, FULL, TOGETHER)]


def run(number):
    """Ask, compare with the loops, and say how it ended."""
    case = prepare(number)
    c = case.combination
    expected = expect(case)
    with untouched(case.model, buffers=not c.training):
        found, refusal = answer(case)
    if refusal is not None:
        said = [reason for reason, phrases in PHRASES.items() if any(phrase in str(refusal) for phrase in phrases)]
        assert said, f"not one of our own messages: {refusal!r}"
        assert expected.refusals & set(said), f"refused without reason: {refusal}"
        return said[0]
    logits, maps = found
    assert not expected.refusals, f"should be refused: {expected.refusals}"
    if c.training:
        assert same(buffers(case.twin), buffers(case.model)), "not as after one forward pass"
    tolerance = TOLERANCE[c.dtype]
    torch.testing.assert_close(
        logits.double(), expected.logits.double(), rtol=0, atol=tolerance * float(expected.logits.abs().max())
    )
    compare(case, expected, maps, tolerance)
    return "map" if expected.clear else "map, ill conditioned"


def answer(case):
    """Logits and maps, or why not."""
    try:
        return ask(case), None
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return None, error


def buffers(model):
    return {name: copy(buffer) for name, buffer in model.named_buffers()}


def compare(case, expected, maps, tolerance):
    """Within rounding of the loops."""
    c = case.combination
    if c.way == "maps" and not expected.maps.isfinite().all():
        return  # maps() checks no values, so that a gradient scaler can do its work, and so does plain autograd
    assert maps.isfinite().all()
    wanted = expected.maps if isinstance(c.classes, str) or c.word == 3 else expected.maps[:, :1]
    if c.way == "call":
        assert maps.shape == (len(case.images), *case.images.shape[2:])
        assert maps.abs().max() <= 1
        for row, heat in enumerate(maps):
            one, reach = heat_map(c, wanted[row, 0].numpy(), case.images.shape[2:])
            slack = 4 * (tolerance * float(expected.slack[row, 0]) + 1e-12) / max(reach, 1e-300) + 1e-6
            if expected.clear and slack < 0.5:
                torch.testing.assert_close(heat.double(), one, rtol=0, atol=slack)
        return
    found = maps if maps.ndim == wanted.ndim else maps.unsqueeze(1)
    assert found.shape == wanted.shape
    if c.rectify:
        assert (maps >= 0).all()
        wanted = wanted.relu()
    if expected.clear:
        excess = (found.double() - wanted).abs().flatten(2).amax(2) - tolerance * expected.slack[:, : wanted.shape[1]]
        assert (excess <= 1e-12).all(), f"off by {excess.max():.3g}"


@pytest.mark.filterwarnings("ignore:the model is in training mode")  # the call says so; some of the networks are
@pytest.mark.parametrize("start", RUNS)
def test_a_map_or_a_refusal(start, record_property):
    outcomes = Counter()
    for number in range(start, start + TOGETHER):
        try:
            outcomes[run(number)] += 1
        except Exception as error:
            error.add_note(f"combination {number}: {draw(number)}")
            raise
    record_property("siege", dict(outcomes))


def test_every_pair_of_what_is_combined_occurs():
    """Of block and method, method and format, format and way of asking, way and mode, and so on."""
    axes = {
        "block": (lambda c: c.architecture.blocks, BLOCKS),
        "method": (lambda c: [c.method], METHODS),
        "dtype": (lambda c: [c.dtype], TOLERANCE),
        "way": (lambda c: [c.way], WAYS),
    }
    drawn = [draw(number) for number in range(FULL)]
    assert len(set(map(str, drawn))) >= 2000
    for first, (of_first, all_first) in axes.items():
        for second, (of_second, all_second) in axes.items():
            if first < second:
                pairs = {(a, b) for c in drawn for a in of_first(c) for b in of_second(c)}
                impossible = {(name, way) for name in METHODS for way in WAYS if way not in ways(name)}
                assert pairs == set(itertools.product(all_first, all_second)) - impossible, (first, second)


class SkipReads(nn.Module):
    """``x + branch(x)``, or the same in place: what enters the branch is also what the skip connection reads."""

    def __init__(self, in_place):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 1), Halve()
        self.head = nn.Linear(4, 5)
        self.in_place = in_place

    def forward(self, x):
        x = self.stem(x)
        if self.in_place:
            x += self.branch(x)
        else:
            x = x + self.branch(x)
        return self.head(x.square().mean((2, 3)))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_what_enters_a_branch_is_explained_through_the_branch(in_place, frozen):
    """By hand: the logits are quadratic in 1.5 A, of which the branch adds 0.5 A; in explain as in maps."""
    model = seeded(lambda: SkipReads(in_place)).requires_grad_(not frozen)
    x = images(2)
    features = model.stem(x).detach()
    gradient = 2 * model.head.weight[1].detach()[:, None, None] * 1.5 * features / 30 * 0.5
    by_hand = (gradient * features).sum(1)
    cam = HiResCAM(model, layer_input("branch"), rectify=False)
    torch.testing.assert_close(cam.explain(x, 1).maps, by_hand)
    with cam:
        torch.testing.assert_close(cam.maps(model(x), 1).detach(), by_hand)


def test_a_layer_that_hands_on_its_input():
    """Dropout in evaluation mode: its output is its input, which the skip connection reads too."""
    model = seeded(lambda: SkipReads(in_place=True))
    expected = HiResCAM(model, layer_input("branch"), rectify=False).explain(images(2), 1).maps
    model.branch = nn.Sequential(OrderedDict(drop=nn.Dropout(), halve=Halve())).eval()
    cam = HiResCAM(model, "branch.drop", rectify=False)
    torch.testing.assert_close(cam.explain(images(2), 1).maps, expected)
    with cam:
        torch.testing.assert_close(cam.maps(model(images(2)), 1).detach(), expected)
