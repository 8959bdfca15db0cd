"""What several modules share: files, hashes, names, optional imports, the common mode."""

import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from diffgradcam import scores
from diffgradcam._core.common_mode import common_mode_share, invisible_score, visible_score
from diffgradcam._core.errors import NonFiniteValues
from diffgradcam._core.naming import callable_name, option_name
from diffgradcam._core.optional import import_optional
from diffgradcam._core.outputs import check_finite
from diffgradcam._core.persistence import atomic_file, weight_hash


def test_a_file_is_complete_or_as_it_was(tmp_path):
    path = tmp_path / "weights.pt"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    beside = []

    def interrupted():
        with atomic_file(path, writer=3) as file:
            file.write(b"tw")
            beside.extend(each.name for each in tmp_path.iterdir() if each != path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        interrupted()
    assert beside == [".weights.pt.3.partial"]
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_hash_of_weights_sees_every_bit_and_every_name():
    state = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
    found = weight_hash(state)
    assert len(found) == 64
    assert found == weight_hash({name: value.clone() for name, value in state.items()})
    assert found == weight_hash({**state, "weight": state["weight"].T.contiguous().T})  # the same in other memory
    for other in (
        {**state, "count": torch.tensor(4)},
        {"bias": state["weight"], "count": state["count"]},
        {**state, "weight": -state["weight"]},  # -0.0 too is another bit
    ):
        assert weight_hash(other) != found


@dataclass(frozen=True)
class Margin:
    """A score with options."""

    baseline: str = "max"
    scale: float = 1.0

    def __call__(self, logits, classes):
        return scores.logit_difference(logits, classes, self.baseline) * self.scale


class Plain:
    def __call__(self):
        return 0


def test_names_are_the_same_in_the_next_process():
    assert callable_name(scores.logit) == "logit"
    assert callable_name(nn.ReLU) == "ReLU"
    assert callable_name(nn.ReLU()) == "ReLU"
    assert callable_name(Plain()) == "Plain"
    assert callable_name(Margin("mean")) == "Margin(baseline=mean, scale=1.0)"
    assert callable_name(partial(scores.finer, comparisons=2, alpha=0.5)) == "finer(alpha=0.5, comparisons=2)"
    assert callable_name(partial(sum, x=Margin())) == "sum(x=Margin(baseline=max, scale=1.0))"
    assert option_name(["a", 1, 0.5, scores.logit, None]) == ["a", 1, 0.5, "logit", None]
    assert option_name(None) is None


def test_an_optional_package_is_named_with_its_command(monkeypatch):
    assert import_optional("json", "a test").loads("1") == 1
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(
        ImportError, match=r"^AUROC needs scikit-learn, which is not installed; pip install scikit-learn$"
    ):
        import_optional("sklearn.metrics", "AUROC")


def test_the_two_parts_of_a_logit_add_up_and_the_second_is_the_same_for_all():
    logits, classes = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]), torch.tensor([0, 2])
    assert visible_score(logits, classes).tolist() == [-2.0, 2.0]
    assert invisible_score(logits, classes).tolist() == [3.0, 1.0]
    assert (visible_score(logits, classes) + invisible_score(logits, classes)).equal(scores.logit(logits, classes))


def test_the_share_of_the_common_mode_by_hand():
    visible = torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    invisible = torch.tensor([[[0.0, -4.0]], [[0.0, 0.0]], [[1e-30, 0.0]]])
    assert common_mode_share(visible, invisible).tolist() == pytest.approx([16 / 25, 0, 1])
    share = common_mode_share(visible.unsqueeze(0), invisible.unsqueeze(0), leading=2)
    assert share.shape == (1, 3)
    assert share.dtype == torch.float32
    assert share[0].tolist() == pytest.approx([16 / 25, 0, 1])


def test_values_that_are_not_finite_are_an_error_of_their_own():
    with pytest.raises(NonFiniteValues, match=r"the map of image 1 is NaN or infinite \(1 of 2 images\)"):
        check_finite("the map", torch.tensor([[0.0], [torch.inf]]))
    assert issubclass(NonFiniteValues, ValueError)
