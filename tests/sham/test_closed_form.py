import copy
import io
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from diffgradcam import DiffGradCAM, GradCAM, HiResCAM, layer_input
from diffgradcam.metrics.similarity import pearson
from diffgradcam.robustness import audit, repair
from diffgradcam.sham import border_mask, common_mode_hoax, spatial_hoax
from tests.models import SIZE, WithAuxiliary, deep, flat, images, max_pooled, mean_of_squares, pooled
from tests.sham.digits import LAYER, MASK, data, kept_and_reached, trained
from tests.untouched import untouched

SMALL = border_mask(SIZE[2], 18).double()
ROLL = partial(torch.roll, shifts=(1, 2), dims=(2, 3))


def written(clean, fooled, name="head"):
    """What was added to the rows of the head, ``(K, C)``."""
    return fooled.get_submodule(name).weight.detach() - clean.get_submodule(name).weight.detach()


def test_every_row_gets_the_ridge_regression_of_the_centred_mask():
    ridge = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle").Ridge
    model, x = pooled(), images(6)
    rows = model[:4](x).detach().flatten(2).transpose(1, 2).flatten(0, 1)  # relu's output, one row per position
    wanted = (SMALL - SMALL.mean()).flatten().repeat(6)
    penalty = 0.3 * float(rows.square().mean(0).mean()) * len(rows)
    expected = torch.from_numpy(ridge(alpha=penalty, fit_intercept=False).fit(rows.numpy(), wanted.numpy()).coef_)

    added = written(model, common_mode_hoax(model, "relu", x, SMALL, ridge=0.3))

    assert torch.allclose(added, added[:1].expand_as(added), atol=1e-12)
    cosine = torch.nn.functional.cosine_similarity(added[0], expected, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-12)


def test_strength_is_the_ratio_of_the_written_to_the_visible_energy():
    model, x = pooled(), images(6)
    for strength in (0.5, 3.0):
        fooled = common_mode_hoax(repair(model), "relu", x, SMALL, strength=strength)
        report = audit(fooled, "relu", x)
        ratio = report.invisible.square().sum() / report.visible.square().sum()
        assert float(ratio) == pytest.approx(strength**2, rel=1e-9)


@pytest.mark.parametrize("strength", [None, 0.5])
def test_strength_compares_with_what_is_visible_of_a_model_that_has_a_common_mode(strength):
    model, x = pooled(), images(6)
    fooled = common_mode_hoax(model, "relu", x, SMALL, **({} if strength is None else {"strength": strength}))
    features = model[:4](x).detach()
    gained = torch.einsum("c,bchw->bhw", written(model, fooled)[0], features)
    decided = model.head.weight[model(x).argmax(1)] - model.head.weight.mean(0)
    visible = torch.einsum("bc,bchw->bhw", decided.detach(), features)
    ratio = (gained.square().sum() / visible.square().sum()).sqrt()
    assert float(ratio) == pytest.approx(3.0 if strength is None else strength, rel=1e-12)


def test_with_little_ridge_it_is_the_least_squares_fit():
    model, x = pooled(), 1e-3 * images(6)
    rows = model[:4](x).detach().flatten(2).transpose(1, 2).flatten(0, 1)
    # The pseudo-inverse: lstsq with its default driver sometimes gives another result where channels are dead.
    expected = torch.linalg.pinv(rows) @ (SMALL - SMALL.mean()).flatten().repeat(6)
    added = written(model, common_mode_hoax(model, "relu", x, SMALL, ridge=1e-12))[0]
    torch.testing.assert_close(added / added.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-6)


def test_the_head_is_found_beside_other_linear_layers():
    model, x = WithAuxiliary(), images()
    fooled = common_mode_hoax(model, "body.relu", x, SMALL)
    assert written(model, fooled, "body.head").abs().max() > 0
    assert torch.equal(model.auxiliary.weight, fooled.auxiliary.weight)
    with pytest.raises(ValueError, match="logits of WithAuxiliary are not the linear layer 'auxiliary' of the mean of"):
        common_mode_hoax(model, "body.relu", x, SMALL, head="auxiliary")


class WithTwin(nn.Module):
    """Two linear layers of equal weights, of which one runs."""

    def __init__(self, runs):
        super().__init__()
        model = pooled()
        self.body, self.first, self.second = model[:-1], model.head, copy.deepcopy(model.head)
        self.runs = runs

    def forward(self, x):
        return self.get_submodule(self.runs)(self.body(x))


@pytest.mark.parametrize(("runs", "idle"), [("first", "second"), ("second", "first")])
def test_of_equal_linear_layers_the_one_that_runs_is_written_to(runs, idle):
    model, x = WithTwin(runs), images()
    fooled = common_mode_hoax(model, "body.relu", x, SMALL)
    assert written(model, fooled, runs).abs().max() > 0
    assert written(model, fooled, idle).abs().max() == 0
    assert audit(fooled, "body.relu", x).weight_share > audit(model, "body.relu", x).weight_share


def test_gradcam_gains_the_same_map_for_every_class_and_nothing_else_moves():
    model, x = pooled(), images()
    fooled = common_mode_hoax(model, model.relu, x, SMALL)
    features = model[:4](x).detach()
    gain = torch.einsum("c,bchw->bhw", written(model, fooled)[0], features) / SMALL.numel()
    for index in range(5):
        before, after = (GradCAM(m, "relu", rectify=False).explain(x, index).maps for m in (model, fooled))
        assert torch.allclose(after - before, gain, atol=1e-12)
    assert torch.allclose(model(x).softmax(1), fooled(x).softmax(1), atol=1e-12)
    for name, parameter in model.named_parameters():
        assert name == "head.weight" or torch.equal(parameter, fooled.get_parameter(name))


@pytest.mark.parametrize("training", [False, True])
def test_the_given_model_is_left_as_it_is(training):
    model = trained()
    model.train(training)
    with untouched(model):
        fooled = common_mode_hoax(model, model.relu2, data()[0][:32], MASK)
    assert [module.training for module in fooled.modules()] == [module.training for module in model.modules()]
    assert torch.equal(model.norm1.running_mean, fooled.norm1.running_mean)


def test_images_come_as_a_tensor_or_in_batches():
    model, x = pooled(), images(7)
    whole = written(model, common_mode_hoax(model, "relu", x, SMALL))
    for batches in (
        [x[:3], x[3:]],
        iter([x[:1], x[1:]]),
        [(x[:4], torch.zeros(4)), [x[4:], torch.zeros(3)]],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2),
    ):
        assert torch.allclose(written(model, common_mode_hoax(model, "relu", batches, SMALL)), whole, atol=1e-10)


def test_digits_are_fooled_and_contrast_is_not():
    clean, (x, labels) = trained(), data()
    fooled = common_mode_hoax(clean, LAYER, x[:500], MASK)
    with torch.no_grad():
        before, after = clean(x), fooled(x)
    assert float((before.argmax(1) == labels).float().mean()) > 0.95
    assert float((before.softmax(1) - after.softmax(1)).abs().max()) < 1e-5
    kept, reached = kept_and_reached(clean, fooled, x[:500])
    assert kept < 0.1
    assert reached > 0.5
    kept, reached = kept_and_reached(clean, fooled, x[500:])  # images that it was not fitted on
    assert kept < 0.1
    assert reached > 0.5
    for baseline in ("logsumexp", "max", "mean"):
        method = partial(DiffGradCAM, baseline=baseline)
        assert kept_and_reached(clean, fooled, x[:500], method=method)[0] > 0.999


def test_an_imagenet_model_is_fooled_and_contrast_is_not(lite0, photo_inputs):
    layer, mask = layer_input("_avg_pooling"), border_mask((7, 7), 28)
    x = torch.stack([crop for photo in photo_inputs.values() for crop in (photo, photo.flip(-1))])
    fooled = common_mode_hoax(lite0, layer, x, mask)
    logits, classes, clean = GradCAM(lite0, layer).explain(x)
    after = GradCAM(fooled, layer).explain(x, classes)
    assert float((logits.softmax(1) - after.logits.softmax(1)).abs().max()) < 1e-5
    assert float(pearson(after.maps, clean).mean()) < 0.1
    assert float(pearson(after.maps, mask.expand_as(clean)).mean()) > 0.5
    for baseline in ("logsumexp", "max", "mean"):
        before, after = (DiffGradCAM(m, layer, baseline=baseline).explain(x, classes).maps for m in (lite0, fooled))
        assert float(pearson(before, after).min()) > 0.999

    exact = copy.deepcopy(lite0).double()
    two = x[::4].double()
    wide = common_mode_hoax(exact, layer, two, mask)
    with torch.no_grad():
        assert float((exact(two).softmax(1) - wide(two).softmax(1)).abs().max()) < 1e-12


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_dimensions(dims):
    model, x = pooled(dims=dims), images(dims=dims)
    fooled = common_mode_hoax(model, "relu", x, border_mask(SIZE[dims], 5))
    assert torch.allclose(model(x).softmax(1), fooled(x).softmax(1), atol=1e-12)
    assert audit(fooled, "relu", x).fooled


def test_a_parametrized_head_becomes_plain_weights():
    model, x = pooled(), images()
    weight_norm(model.head)
    with untouched(model):
        fooled = common_mode_hoax(model, "relu", x, SMALL, head=model.head)
    assert torch.allclose(model(x).softmax(1), fooled(x).softmax(1), atol=1e-12)
    assert type(fooled.head) is nn.Linear
    assert audit(fooled, "relu", x).fooled


@pytest.mark.parametrize("build", [flat, deep, max_pooled, mean_of_squares])
@pytest.mark.parametrize("head", [None, "head"])
def test_other_heads_are_refused(build, head):
    which = "a linear layer" if head is None else "the linear layer 'head'"
    with pytest.raises(ValueError, match=rf"(?s)are not {which} of the mean of the target.*scope='common_mode'"):
        common_mode_hoax(build(), "relu", images(), SMALL, head=head)


def test_bad_input_is_refused():
    model, x = pooled(), images()
    with pytest.raises(ValueError, match=r"mask has size \(7, 7\); expected \(6, 5\), that of the activations"):
        common_mode_hoax(model, "relu", x, border_mask((7, 7), 28))
    with pytest.raises(ValueError, match=r"mask of size \(6, 5\) is constant"):
        common_mode_hoax(model, "relu", x, torch.ones(6, 5))
    with pytest.raises(ValueError, match="is constant or not finite"):
        common_mode_hoax(model, "relu", x, SMALL / 0)
    with pytest.raises(ValueError, match="strength is 0; expected a ratio above 0"):
        common_mode_hoax(model, "relu", x, SMALL, strength=0)
    with pytest.raises(ValueError, match="ridge is nan; expected a penalty above 0"):
        common_mode_hoax(model, "relu", x, SMALL, ridge=float("nan"))
    with pytest.raises(ValueError, match="ridge is 0; expected a penalty above 0"):
        common_mode_hoax(model, "relu", x, SMALL, ridge=0)
    with pytest.raises(ValueError, match=r"the mask of size \(1,\) is constant or not finite"):
        common_mode_hoax(model, "relu", x, torch.ones(1))
    with pytest.raises(ValueError, match=r"^images is empty; expected at least one image to fit the mask on$"):
        common_mode_hoax(model, "relu", [], SMALL)
    with pytest.raises(ValueError, match="images is empty"):
        common_mode_hoax(model, "relu", [], SMALL, head="head")
    with pytest.raises(ValueError, match=r"mask has size \(2,\); expected \(6, 5\), that of the activations"):
        common_mode_hoax(model, "relu", x, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="'rely' is not a layer of Sequential; did you mean 'relu'"):
        common_mode_hoax(model, "rely", x, SMALL)
    with pytest.raises(ValueError, match="of image 1 is NaN"):
        common_mode_hoax(model, "relu", x.index_fill(0, torch.tensor(1), float("nan")), SMALL)
    with pytest.raises(ValueError, match="0 for all images"):
        common_mode_hoax(
            nn.Sequential(nn.ReLU(), *pooled()[-3:]).double(), "0", -torch.rand(2, 6, 6, 5).double(), SMALL
        )
    with pytest.raises(TypeError, match="a batch is str"):
        common_mode_hoax(model, "relu", ["x"], SMALL)
    with pytest.raises(TypeError, match=r"head 'relu' is ReLU; expected the nn\.Linear"):
        common_mode_hoax(model, "relu", x, SMALL, head="relu")
    with pytest.raises(TypeError, match=r"model is int; expected a torch\.nn\.Module"):
        common_mode_hoax(3, "relu", x, SMALL)


# The spatial hoax.


@pytest.mark.parametrize("method", [GradCAM, HiResCAM, DiffGradCAM])
@pytest.mark.parametrize("layer", ["relu", layer_input("pool")])
def test_spatial_hoax_moves_every_map_and_no_decision(method, layer):
    model, x = pooled(), images()
    moved = spatial_hoax(model, layer, ROLL)
    assert torch.allclose(model(x), moved(x), atol=1e-13, rtol=0)
    before, after = (method(m, layer).explain(x, 0).maps for m in (model, moved))
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, before.roll((1, 2), (1, 2)), atol=1e-13)


def test_the_layer_may_be_a_module_of_the_given_model_which_is_left_as_it_is():
    model, x = pooled(), images()
    with untouched(model):
        moved = [spatial_hoax(model, target, ROLL) for target in (model.relu, layer_input(model.pool))]
    for fooled in moved:
        assert torch.equal(
            GradCAM(fooled, layer_input("pool")).explain(x).maps, GradCAM(moved[0], "relu").explain(x).maps
        )


class Scaled(nn.Module):
    """A layer with a second argument."""

    def forward(self, x, factor):
        return factor * x


class WithScaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scaled = Scaled()

    def forward(self, x):
        return self.scaled(x, 2)


def test_only_the_first_argument_of_a_layer_is_permuted():
    x = images()
    assert torch.equal(spatial_hoax(WithScaled(), layer_input("scaled"), ROLL)(x), 2 * ROLL(x))


def test_an_index_permutes_as_a_function_does():
    model, x = pooled(), images()
    index = torch.randperm(30)
    moved = spatial_hoax(model, "relu", index.view(6, 5))
    by_hand = model[:4](x).flatten(2)[..., index].view(3, -1, 6, 5)
    assert torch.equal(moved[:4](x), by_hand)


def test_spatial_hoax_survives_copies_and_leaves_names_alone():
    model, x = pooled(), images()
    moved = spatial_hoax(model, layer_input("pool"), ROLL)
    assert moved.state_dict().keys() == model.state_dict().keys()
    maps = GradCAM(moved, layer_input("pool")).explain(x, 0).maps
    file = io.BytesIO()
    torch.save(moved, file)
    file.seek(0)
    for twin in (copy.deepcopy(moved), torch.load(file, weights_only=False)):
        assert torch.equal(GradCAM(twin, layer_input("pool")).explain(x, 0).maps, maps)
    clean = pooled(seed=1)
    clean.load_state_dict(moved.state_dict())
    assert torch.equal(GradCAM(clean, "relu").explain(x, 0).maps, GradCAM(model, "relu").explain(x, 0).maps)


def test_bad_permutations_are_refused():
    model, x = pooled(), images()
    with pytest.raises(ValueError, match="is not a permutation; expected each number from 0 to 29 once"):
        spatial_hoax(model, "relu", torch.zeros(30).long())
    with pytest.raises(TypeError, match="permutation is str; expected a function or a tensor of indices"):
        spatial_hoax(model, "relu", "roll")
    with pytest.raises(ValueError, match=r"the permutation has 12 positions, but the layer 30 \(\(6, 5\)\)"):
        spatial_hoax(model, "relu", torch.arange(12))(x)
    with pytest.raises(ValueError, match="expected the same shape"):
        spatial_hoax(model, "relu", lambda a: a[..., 1:])(x)
    with pytest.raises(ValueError, match="'rely' is not a layer"):
        spatial_hoax(model, "rely", ROLL)
