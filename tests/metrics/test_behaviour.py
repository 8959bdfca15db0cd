import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM
from diffgradcam.metrics import (
    Behaviour,
    Evaluator,
    behaviour,
    behaviour_kept,
    decisions_kept,
    honesty,
    integrated_gradients,
    occlusion_drops,
)
from diffgradcam.scores import logit
from tests.models import pooled
from tests.untouched import untouched


def pictures(batch=3, size=(14, 14), seed=0):
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(size=(14, 14), classes=3, seed=0):
    """Logits are sums of products of pixels and weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * size[0] * size[1], classes)).double().eval()


def test_integrated_gradients_of_a_linear_model_are_weight_times_distance():
    model, x = linear(), pictures()
    pixels = integrated_gradients(Evaluator(model, score=logit), x, 1, grid=None, steps=3, progress=False)
    weight = model[1].weight[1].detach().view(2, 14, 14)
    expected = ((x - x.mean((2, 3), keepdim=True)) * weight).sum(1)
    assert torch.allclose(pixels, expected, atol=1e-12)
    cells = integrated_gradients(Evaluator(model, score=logit), x, 1, steps=1, progress=False)
    assert torch.allclose(cells, expected.view(3, 7, 2, 7, 2).mean((2, 4)), atol=1e-12)


@pytest.mark.parametrize("score", [logit, None])
def test_integrated_gradients_are_complete(score):
    model, x = pooled(activation=nn.Tanh), torch.randn(3, 3, 9, 8, dtype=torch.float64)
    evaluator = Evaluator(model, **({} if score is None else {"score": score}))
    classes = torch.tensor([0, 2, 4])
    pixels = integrated_gradients(evaluator, x, classes, grid=None, steps=200, progress=False)
    grey = x.mean((2, 3), keepdim=True).expand_as(x)
    ends = evaluator.scores(x, classes) - evaluator.scores(grey, classes)
    assert torch.allclose(pixels.flatten(1).sum(1), ends, rtol=1e-3, atol=1e-3)


def test_occlusion_of_a_linear_model_by_hand():
    model, x = linear(), pictures()
    drops = occlusion_drops(Evaluator(model, score=logit, batch_size=2), x, 0, progress=False)
    weight = model[1].weight[0].detach().view(2, 14, 14)
    share = ((x - x.mean((2, 3), keepdim=True)) * weight).sum(1)
    for row in range(7):
        for column in range(7):
            rows = slice(2 * max(row - 1, 0), 2 * min(row + 2, 7))
            columns = slice(2 * max(column - 1, 0), 2 * min(column + 2, 7))
            assert torch.allclose(drops[:, row, column], share[:, rows, columns].sum((1, 2)), atol=1e-12)


def test_honesty_is_the_correlation_with_the_references_on_the_same_cells():
    reference = torch.rand(2, 7, 7, dtype=torch.float64)
    relied_on = Behaviour(torch.zeros(2, 3), torch.zeros(2).long(), torch.ones(2, 7, 7), reference)
    agreement = honesty(reference.repeat_interleave(2, 1).repeat_interleave(2, 2), relied_on)
    assert torch.allclose(agreement.integrated_gradients, torch.ones(2, dtype=torch.float64))
    assert agreement.occlusion.tolist() == [0, 0]  # constant
    assert torch.allclose(agreement.both, torch.full((2,), 0.5, dtype=torch.float64))
    assert torch.allclose(honesty(-reference, relied_on).integrated_gradients, -torch.ones(2).double())


def test_behaviour_is_that_of_the_model_alone_and_kept_by_itself():
    model, x = pooled(), torch.randn(3, 3, 9, 8, dtype=torch.float64)
    with untouched(model):
        first = behaviour(Evaluator(model), x, progress=False)
    assert first.classes.tolist() == model(x).argmax(1).tolist()
    assert torch.equal(first.occlusion, occlusion_drops(Evaluator(model), x, progress=False))
    assert torch.equal(first.integrated_gradients, integrated_gradients(Evaluator(model), x, progress=False))
    shifted = pooled()
    shifted.head.weight.data += 5  # the same for every class
    second = behaviour(Evaluator(shifted), x, progress=False)
    assert torch.allclose(behaviour_kept(first, second).both, torch.ones(3).double())
    one_by_one = behaviour(Evaluator(model, batch_size=1), x, progress=False)
    assert torch.allclose(one_by_one.integrated_gradients, first.integrated_gradients)
    with torch.inference_mode():
        assert torch.equal(behaviour(Evaluator(model), x, progress=False).occlusion, first.occlusion)


def test_a_map_of_what_a_model_looks_at_is_honest():
    """A model that counts bright pixels of one channel: contrast and behaviour must point at them."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    model[3].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64) * 50
    x = torch.zeros(2, 2, 14, 14, dtype=torch.float64)
    x[0, 0, 2:5, 2:5] = x[1, 1, 8:11, 9:12] = 1
    relied_on = behaviour(Evaluator(model), x, progress=False)
    for method in (GradCAM, DiffGradCAM):
        assert float(honesty(method(model, "0").explain(x).maps, relied_on).both.min()) > 0.8


def test_decisions_kept_by_hand():
    before, after = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [5.0, 6.0]])
    kept = decisions_kept(before, after)
    p = before[0].double().softmax(0)
    assert kept.agreement.tolist() == [True, True]  # equal logits: the first
    assert kept.kl.tolist() == pytest.approx([float((p * (p / 0.5).log()).sum()), 0], abs=1e-12)


def test_bars_and_bad_input(capfd):
    model, x = linear(), pictures()
    behaviour(Evaluator(model), x)
    shown = capfd.readouterr().err
    assert "49/49" in shown
    assert "16/16" in shown
    with pytest.raises(TypeError, match="evaluator is the model Sequential; expected an Evaluator"):
        behaviour(model, x)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 14, 14\); expected .* at least 15 x 15 pixels"):
        occlusion_drops(Evaluator(model), x, grid=15)
    with pytest.raises(ValueError, match="steps is 0; expected an integer of at least 1"):
        integrated_gradients(Evaluator(model), x, steps=0)
    with pytest.raises(ValueError, match=r"maps are torch.float32 of shape \(3, 4\) for the behaviour on 3 images"):
        honesty(torch.zeros(3, 4), behaviour(Evaluator(model), x, progress=False))
    one, other = (behaviour(Evaluator(model), x, c, progress=False) for c in (0, 1))
    with pytest.raises(ValueError, match="different classes; expected the same images and classes"):
        behaviour_kept(one, other)
    with pytest.raises(ValueError, match=r"of shape \(1, 2\) and torch.float32 of shape \(1, 3\); expected .* twice"):
        decisions_kept(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="does not depend on the images in a way that can be differentiated"):
        integrated_gradients(Evaluator(model, output=torch.Tensor.detach), x)
