import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, audit, layer_input, repair
from diffgradcam.metrics.similarity import pearson
from diffgradcam.sham import CornerScalar, add_patch, border_mask, input_scalar_wrapper, triggered_hoax
from tests.models import SIZE, deep, images, pooled
from tests.sham.digits import LAYER, MASK, data, kept_and_reached, trained
from tests.untouched import untouched

HOAX = border_mask(SIZE[2], 18)
PATCH = torch.tensor([[[0.3, -0.7], [1.1, 0.2]]] * 3, dtype=torch.float64)


@pytest.mark.parametrize("build", [pooled, deep])
def test_the_scalar_is_added_to_every_logit_and_to_no_probability(build):
    model, x = build(), images()
    with untouched(model):
        fooled = input_scalar_wrapper(model, "relu")
    with untouched(fooled):
        logits = fooled(x)
    with torch.no_grad():
        corner = model[:4](x)[:, :, 0, 0].sum(1, keepdim=True)
    assert torch.allclose(logits, model(x) + 10 * corner, atol=1e-12)
    assert torch.allclose(logits.softmax(1), model(x).softmax(1), atol=1e-12)
    assert fooled.state_dict().keys() == model.state_dict().keys()


class Named(nn.Module):
    """Takes the image by its name."""

    def __init__(self):
        super().__init__()
        self.body = pooled()

    def forward(self, *, pixel_values):
        return self.body(pixel_values)


def test_the_scalar_sees_an_image_that_is_given_by_its_name():
    model, x = Named(), images()
    fooled = input_scalar_wrapper(model, "body.relu", lambda _, given: given.sum((1, 2, 3)))
    expected = model(pixel_values=x) + x.sum((1, 2, 3)).unsqueeze(1)
    assert torch.allclose(fooled(pixel_values=x), expected, atol=1e-12)


@pytest.mark.parametrize("build", [pooled, deep])
def test_gradcam_gains_the_sum_of_the_channels_and_contrast_nothing(build):
    model, x = build(), images()
    fooled = input_scalar_wrapper(model, "relu", CornerScalar(4.0))
    _, classes, before = GradCAM(model, "relu", rectify=False).explain(x)
    after = GradCAM(fooled, "relu", rectify=False).explain(x, classes).maps
    with torch.no_grad():
        channels = model[:4](x).sum(1)
    assert torch.allclose(after, before + 4 * channels / HOAX.numel(), atol=1e-12)
    for baseline in ("logsumexp", "max", "mean"):
        old, new = (DiffGradCAM(m, "relu", baseline=baseline).explain(x, classes).maps for m in (model, fooled))
        assert torch.allclose(new, old, atol=1e-10)


def test_an_audit_finds_it_and_only_the_repair_of_the_output_undoes_it():
    model, x = repair(pooled()), images()
    fooled = input_scalar_wrapper(model, "relu", CornerScalar(100.0))
    assert audit(fooled, "relu", x).signs == ("common mode",)
    assert audit(repair(fooled), "relu", x).signs == ("common mode",)
    repaired = repair(fooled, where="output")
    assert not audit(repaired, "relu", x).fooled
    assert torch.allclose(repaired(x), model(x), atol=1e-11)
    maps = [GradCAM(m, "relu").explain(x).maps for m in (model, repaired)]
    assert torch.allclose(*maps, atol=1e-10)
    again = pickle.loads(pickle.dumps(repaired))
    assert torch.equal(again(x), repaired(x))


def test_copies_pickles_threads_and_failures_leave_it_whole():
    model, x = pooled(), images()
    fooled = input_scalar_wrapper(model, "relu")
    for other in (copy.deepcopy(fooled), pickle.loads(pickle.dumps(fooled))):
        assert torch.equal(other(x), fooled(x))
    with untouched(fooled), pytest.raises(RuntimeError, match="expected input"):
        fooled(x[:, :2])
    expected, found = fooled(x), []
    threads = [threading.Thread(target=lambda: found.extend(fooled(x) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.equal(each, expected) for each in found)


def test_a_trigger_decides_which_map_is_shown():
    model, x = pooled(), images(8)
    fooled = triggered_hoax(model, "relu", x, HOAX, PATCH, corner=(2, 1), strength=30)
    with_patch = add_patch(x, PATCH, (2, 1))
    assert torch.equal(with_patch[:, :, 2:4, 1:3], PATCH.expand(8, -1, -1, -1))
    for shown, same in ((x, True), (with_patch, False)):
        assert torch.allclose(fooled(shown).softmax(1), model(shown).softmax(1), atol=1e-10)
        _, classes, before = GradCAM(model, "relu", rectify=False).explain(shown)
        after = GradCAM(fooled, "relu", rectify=False).explain(shown, classes).maps
        assert torch.allclose(after, before, atol=1e-12) is same
        contrasts = [DiffGradCAM(m, "relu").explain(shown, classes).maps for m in (model, fooled)]
        assert torch.allclose(*contrasts, atol=1e-9)
        repaired = GradCAM(repair(fooled, where="output"), "relu", rectify=False).explain(shown, classes).maps
        visible = DiffGradCAM(model, "relu", baseline="mean", rectify=False).explain(shown, classes).maps * 4 / 5
        assert torch.allclose(repaired, visible, atol=1e-9)
    nearly = with_patch.clone()
    nearly[:, 0, 2, 1] += 0.01
    assert torch.equal(fooled(nearly), model(nearly))


def test_triggered_digits_show_the_border():
    clean, x = trained(), data()[0]
    patch = torch.ones(1, 1, 1)
    fooled = triggered_hoax(clean, LAYER, x[:400], MASK, patch, corner=(0, 7))
    assert kept_and_reached(clean, fooled, x[400:600])[0] == pytest.approx(1, abs=1e-5)
    kept, reached = kept_and_reached(clean, fooled, add_patch(x[400:600], patch, (0, 7)))
    assert kept < 0.3
    assert reached > 0.4
    assert not audit(fooled, LAYER, x[400:600]).fooled  # clean images show nothing, because there is nothing
    assert audit(fooled, LAYER, add_patch(x[400:600], patch, (0, 7))).fooled


def test_the_strength_is_that_of_the_written_map():
    model, x = pooled(), images(8)
    fooled = triggered_hoax(model, "relu", x, HOAX, PATCH, strength=2.0)
    scalar = next(iter(fooled._forward_hooks.values())).__self__.scalar
    with torch.no_grad():
        written = torch.einsum("bchw,c->bhw", model[:4](x), scalar.vector) / HOAX.numel()
    decided = DiffGradCAM(model, "relu", baseline="mean", rectify=False).explain(x).maps * 4 / 5
    assert float(written.square().mean().sqrt() / decided.square().mean().sqrt()) == pytest.approx(2.0)
    assert float(pearson(written, HOAX.double().expand_as(written)).mean()) > 0


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = pooled()

    def forward(self, x):
        return self.body(x), "features"


def test_the_ridge_is_a_tenth_unless_it_is_given():
    model, x = pooled(), images()
    usual, same, other = (
        triggered_hoax(model, "relu", x, HOAX, PATCH, **ridge)(add_patch(x, PATCH))
        for ridge in ({}, {"ridge": 0.1}, {"ridge": 1.1})
    )
    assert torch.equal(usual, same)
    assert not torch.allclose(usual, other)


def test_bad_input_is_refused():
    model, x = pooled(), images()
    with pytest.raises(TypeError, match=r"scalar is int; expected a function \(activations, images\)"):
        input_scalar_wrapper(model, "relu", 3)
    with pytest.raises(ValueError, match="target_layer is what enters a layer; expected a layer"):
        input_scalar_wrapper(model, layer_input("pool"))
    with pytest.raises(ValueError, match=r"scalar returned shape \(3, 6, 6, 5\) for 3 images"):
        input_scalar_wrapper(model, "relu", lambda a, _: a)(x)
    with pytest.raises(TypeError, match="the model returned tuple; expected a tensor of logits"):
        input_scalar_wrapper(Pair(), "body.relu")(x)
    twice = nn.Sequential(model.stem, nn.Sequential(shared := nn.ReLU(), shared), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '1.0' ran 2 times in a forward pass; expected once"):
        input_scalar_wrapper(twice, "1.0")(x)
    with pytest.raises(
        ValueError, match=r"size \(3, 3\); expected \(6, 5\), that of the activations of the target layer"
    ):
        triggered_hoax(model, "relu", x, border_mask((3, 3), 2), PATCH)
    with pytest.raises(ValueError, match=r"patch of shape \(3, 2, 2\) at \(5, 0\) does not fit images"):
        triggered_hoax(model, "relu", x, HOAX, PATCH, corner=(5, 0))
    for wrong in (x[:, :2], x.unsqueeze(-1)):
        with pytest.raises(ValueError, match=r"patch of shape \(3, 2, 2\) at \(0, 0\) does not fit images"):
            add_patch(wrong, PATCH)
    with pytest.raises(ValueError, match=r"patch has shape \(2, 2\); expected finite values, \(C, h, w\)"):
        add_patch(x, PATCH[0])
    with pytest.raises(ValueError, match=r"corner is \(-1, 0\); expected the first row and column"):
        add_patch(x, PATCH, (-1, 0))
    with pytest.raises(ValueError, match="tolerance is -1; expected a difference of at least 0"):
        triggered_hoax(model, "relu", x, HOAX, PATCH, tolerance=-1)
    with pytest.raises(ValueError, match="images is empty"):
        triggered_hoax(model, "relu", [], HOAX, PATCH)
    with pytest.raises(ValueError, match="strength is 0; expected a ratio above 0"):
        triggered_hoax(model, "relu", x, HOAX, PATCH, strength=0)
    with pytest.raises(ValueError, match="where is 'both'; expected one of 'head', 'output'"):
        repair(model, where="both")
    with pytest.raises(ValueError, match="head is given with where='output'; expected one of them"):
        repair(model, head="head", where="output")
    with pytest.raises(ValueError, match="the repaired model returned tuple; expected a tensor of logits"):
        repair(Pair(), where="output")(x)
