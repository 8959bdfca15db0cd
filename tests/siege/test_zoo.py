"""Real architectures with random weights: the map of the command's default layer is right, or refused; see ``zoo``."""

import pytest
import torch
from torch import nn

from tests.conftest import import_peer

from . import zoo

COMMITTED = zoo.load()
SHORT = {
    "torchvision, classification": ("shufflenet_v2_x0_5", "swin_t"),
    "torchvision, video": ("mc3_18", "swin3d_t"),
    "torchvision, segmentation": ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"),
    "torchvision, detection": ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"),
    "timm": ("lcnet_035", "deit_tiny_distilled_patch16_224"),
    "transformers": ("Swin", "VideoMAE"),
}
RANKS = ("skipped", "wrong", "unsure", "empty", "refused", "right with a transform", "right")
LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm", "transformers": "transformers"}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            zoo.Verdict(**model),
            id=f"{model['kind']}: {model['name']}",
            marks=[] if model["name"] in SHORT[model["kind"]] else pytest.mark.siege,
        )
        for model in COMMITTED["models"]
    ],
)
def test_the_map_is_as_right_as_it_was(model):
    import_peer(LIBRARIES[model.kind.partition(",")[0]])
    found = zoo.judge(zoo.case(model.kind, model.name, model.family))
    if found.verdict == "skipped" and model.verdict != "skipped":
        pytest.skip(found.error)
    assert RANKS.index(found.verdict) >= RANKS.index(model.verdict), found


def test_there_are_two_of_each_kind_in_the_short_form_and_many_in_the_long_one():
    names = {(model["kind"], model["name"]) for model in COMMITTED["models"]}
    assert {(kind, name) for kind, pair in SHORT.items() for name in pair} <= names
    assert set(SHORT) == set(zoo.KINDS)
    judged = [model for model in COMMITTED["models"] if model["verdict"] != "skipped"]
    assert sum(model["kind"] == "timm" for model in judged) >= 150
    assert {"ViT", "Swin", "DETR", "CLIP", "AST", "VideoMAE"} <= {
        m["name"] for m in judged if m["kind"] == "transformers"
    }


def test_no_map_is_wrong():
    assert not [model["name"] for model in COMMITTED["models"] if model["verdict"] in ("wrong", "unsure")]


def test_none_is_given_a_layer_that_does_not_depend_on_the_image():
    assert not [model["name"] for model in COMMITTED["models"] if model["verdict"] == "empty"]


def test_the_page_says_what_was_found():
    assert (zoo.RESULTS / "architectures.md").read_text(encoding="utf-8") == zoo.markdown(COMMITTED)


# --- the harness itself: it finds what it is there to find


def small(forward, grid=zoo.channels_first, layer=None, shape=(2, 3, 12, 18)):
    """A case of a convolution, and what comes after."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm(4), nn.Linear(4, 10)

        def forward(self, x):
            return forward(self, x)

    def build():
        return zoo.Subject(Net().eval(), zoo.random_image(*shape), grid, layer=layer, finder_size=12)

    return zoo.Case("small", "", "", build)


def pooled(net, x):
    return net.head(net.conv(x).tanh().mean((2, 3)))


def normed(net, x):
    return net.head(net.norm(net.conv(x).movedim(1, 3)).square().mean((1, 2)))


def tokens(net, x):
    return net.head(net.norm(net.conv(x).flatten(2).transpose(1, 2)).square().mean(1))


def columns_first(net, x):
    return net.head(net.norm(net.conv(x).mT.flatten(2).transpose(1, 2)).square().mean(1))


def test_a_right_map_is_right():
    found = zoo.judge(small(pooled))
    assert (found.verdict, found.layer, found.layout) == ("right", "conv", "4 x 12 x 18")


def test_a_wrong_table_is_noticed():
    assert zoo.judge(small(normed, layer="norm")).verdict == "unsure"
    assert zoo.judge(small(columns_first, zoo.Tokens(), "norm")).verdict != "right"


def test_a_layer_that_does_not_matter_is_empty():
    found = zoo.judge(small(lambda net, x: net.head(net.conv(x).mul(0).mean((2, 3))), layer="conv"))
    assert found.verdict == "empty"


def test_a_map_of_other_axes_is_wrong(monkeypatch):
    monkeypatch.setattr(zoo, "_explain", lambda *_: torch.rand(2, 18, 4))
    found = zoo.judge(small(normed, zoo.channels_last, "norm"))
    assert (found.verdict, found.error) == ("wrong", "right: a map of (18, 4) instead of (12, 18)")


def test_an_error_of_another_library_is_wrong(monkeypatch):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(zoo, "_explain", fail)
    assert zoo.judge(small(pooled)).verdict == "wrong"


def test_the_weights_of_heads_and_layer_scales_are_redrawn():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[1].weight, 1e-5)
    zoo.prepare(model)
    assert model[0].weight.abs().min() > 0
    assert (model[1].weight >= 0.1).all()
    assert not model[1].bias.any()


def test_the_layout_of_tokens_follows_the_image():
    places = torch.arange(24.0).view(1, 24, 1)
    with_others = torch.cat([torch.full((1, 2, 1), -1.0), places, torch.full((1, 1, 1), -1.0)], 1)
    torch.testing.assert_close(zoo.Tokens(2, 1)(with_others, (64, 96)), places.view(1, 1, 4, 6))
    with pytest.raises(LookupError, match=r"^25 tokens are not a grid of an image of \(64, 96\)$"):
        zoo.Tokens(1)(with_others[:, :26], (64, 96))
