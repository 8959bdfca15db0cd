import warnings

import pytest
import torch
from torch import nn

from diffgradcam import layer_input
from diffgradcam._core.editing import (
    by_name,
    check_head_is_last,
    copy_model,
    find_head,
    linear_head,
    linear_layers_that_run,
)
from diffgradcam.scores import two_logits
from tests.models import deep, images, pooled
from tests.untouched import untouched


def test_layers_get_the_names_by_which_a_copy_has_them():
    model = pooled()
    assert by_name(model, [model.relu, "pool", layer_input(model.pool)]) == ["relu", "pool", layer_input("pool")]
    assert by_name(nn.DataParallel(model), model.relu) == ["relu"]
    with pytest.raises(ValueError, match="is not a layer of this Sequential"):
        by_name(model, pooled().relu)


def test_a_copy_is_the_inner_model():
    model = pooled()
    twin = copy_model(nn.DataParallel(model))
    assert type(twin) is nn.Sequential
    assert twin.head.weight is not model.head.weight
    assert torch.equal(twin.head.weight, model.head.weight)


def test_the_head_is_the_last_linear_layer():
    assert find_head(deep()) == "head"
    assert find_head(deep(), "hidden") == "hidden"
    model = deep()
    assert find_head(model, model.hidden) == "hidden"


def test_weights_that_a_hook_computes_are_refused():
    model = pooled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old form, which people's models still have
        nn.utils.weight_norm(model.head)
    with pytest.raises(ValueError, match=r"weight of head 'head' is computed by a hook.*remove_weight_norm"):
        find_head(model)


def test_a_linear_layer_with_a_forward_of_its_own_is_refused():
    class Cosine(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.normalize(x))

    with pytest.raises(TypeError, match=r"head '0' is Cosine; expected the nn\.Linear"):
        find_head(nn.Sequential(Cosine(4, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_parametrized_head_becomes_plain_and_the_original_keeps_it(bias):
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 3, bias=bias)).double()
    nn.utils.parametrizations.weight_norm(model[1])
    twin, x = copy_model(model), images()
    with untouched(model):
        layer = linear_head(twin, "1")
    assert type(layer) is nn.Linear
    assert torch.equal(twin(x), model(x))
    assert torch.equal(linear_head(twin, "1").weight, layer.weight)


def test_a_head_is_tried_out():
    x = images()
    with untouched(model := deep()):
        check_head_is_last(model, "head", x)
        check_head_is_last(nn.Sequential(model, nn.LogSoftmax(1)), "0.head", x)
    for wrong, name in ((deep(), "hidden"), (nn.Sequential(deep(), nn.Sigmoid()), "0.head")):
        with pytest.raises(ValueError, match=f"every output of head '{name}' changes the model's probabilities"):
            check_head_is_last(wrong, name, x)
    unused = deep()
    unused.add_module("spare", nn.Identity())

    class Ignores(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare, self.inner = nn.Linear(90, 5).double(), deep()

        def forward(self, images):
            self.spare(images.flatten(1))
            return self.inner(images)

    with pytest.raises(ValueError, match="or the logits do not come from it"):
        check_head_is_last(Ignores(), "spare", x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_head_of_half_precision_is_tried_out(dtype):
    x = images(8, dtype=dtype)
    for seed in range(10):
        model = deep(seed=seed, dtype=dtype)
        model.head.weight.data *= 6 / model(x).abs().max()  # where a step of bfloat16 is 1 / 32
        check_head_is_last(model, "head", x)
        check_head_is_last(nn.Sequential(model, nn.LogSoftmax(1)), "0.head", x)
        with pytest.raises(ValueError, match=r"every output of head '0\.head' changes the model's probabilities"):
            check_head_is_last(nn.Sequential(model, nn.Sigmoid()), "0.head", x)
    with pytest.raises(ValueError, match="every output of head 'hidden' changes the model's probabilities"):
        check_head_is_last(model, "hidden", x)
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 2 channels"):  # of the images, not of the head
        check_head_is_last(model, "head", x[:, :2])


class Returns(nn.Module):
    """A model that returns something else than logits."""

    def __init__(self, model, what):
        super().__init__()
        self.model, self.what = model, what

    def forward(self, x):
        return self.what(self.model(x))


def test_a_head_is_tried_out_through_output():
    x = images()
    features_too = Returns(deep(), lambda logits: (logits, "features"))
    check_head_is_last(features_too, "model.head", x, lambda returned: returned[0])
    with pytest.raises(ValueError, match=r"every output of head 'model\.head' changes the model's probabilities"):
        check_head_is_last(features_too, "model.head", x, lambda returned: returned[0].sigmoid())
    with pytest.raises(TypeError, match="the model returned tuple, not a tensor of logits"):
        check_head_is_last(features_too, "model.head", x)
    difference = Returns(deep(classes=2), lambda logits: logits[:, 1] - logits[:, 0])
    check_head_is_last(difference, "model.head", x, two_logits)
    one_row = Returns(deep(classes=2), lambda logits: logits[:, 1])
    with pytest.raises(ValueError, match=r"every output of head 'model\.head' changes the model's probabilities"):
        check_head_is_last(one_row, "model.head", x, two_logits)


def test_linear_layers_in_the_order_in_which_they_ran():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.first(self.last(x)))

    model = Twice()
    with linear_layers_that_run(model) as ran:
        assert ran == []
        model(torch.rand(2, 4))
        assert ran == ["first", "last"]
    model(torch.rand(2, 4))
    assert not any(module._forward_hooks for module in model.modules())
