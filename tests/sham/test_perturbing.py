from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import DiffGradCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from diffgradcam.metrics.similarity import pearson
from diffgradcam.sham import border_mask, perturb, perturbing
from tests.models import SIZE, images, pooled
from tests.sham.digits import LAYER, MASK, data, trained
from tests.untouched import untouched

HOAX = border_mask(SIZE[2], 18)
run = partial(perturb, progress=False)


def checked(cam, x, hoax, epsilon, **options):
    """Perturb, and check what holds for every explainer, by other means than the attack's own."""
    with untouched(cam.model):
        found = run(cam, x, hoax, epsilon, **options)
    model = cam.model
    with torch.no_grad():
        before, after = model(x), model(found.images)
    assert float((found.images - x).abs().max()) <= epsilon
    assert torch.equal(before.argmax(1), after.argmax(1))
    kl = F.kl_div(after.log_softmax(1), before.log_softmax(1), reduction="none", log_target=True).sum(1)
    assert float(kl.max()) <= options.get("keep", 0.01) + 1e-6
    assert torch.allclose(found.kl, kl, atol=1e-6)
    old, new = (cam.explain(images, before.argmax(1)).maps.relu() for images in (x, found.images))
    assert torch.allclose(found.reached, pearson(new, hoax.to(new).expand_as(new)), atol=1e-4)
    assert torch.allclose(found.kept, pearson(new, old), atol=1e-4)
    assert bool((found.reached >= found.reached_before).all())
    return found


@pytest.mark.parametrize(
    "method", [GradCAM, DiffGradCAM, LayerCAM, GradCAMPlusPlus, partial(DiffGradCAM, baseline="max")]
)
def test_the_map_of_a_smooth_network_moves_within_the_bounds(method):
    model, x = pooled(activation=nn.Softplus), images(6)
    found = checked(method(model, "relu"), x, HOAX, 0.3, keep=0.1)
    assert float((found.reached - found.reached_before).mean()) > 0.2
    small = checked(method(model, "relu"), x, HOAX, 0.01, keep=0.1)
    assert float(small.reached.mean()) < float(found.reached.mean())


@pytest.mark.parametrize("softplus", [None, 10.0])
def test_relu_digits_move(softplus):
    model, x = trained(), data()[0][:16]
    found = checked(DiffGradCAM(model, LAYER), x, MASK, 0.1, limits=(0.0, 1.0), softplus=softplus, keep=0.05)
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    assert float((found.reached - found.reached_before).mean()) > 0.05


def test_the_bound_holds_in_every_precision():
    for dtype in (torch.float32, torch.float64):
        model = pooled(dtype=dtype)
        x = images(4).to(dtype) * 1000
        found = run(GradCAM(model, "relu"), x, HOAX, 0.1, steps=3, keep=1e6)
        assert float((found.images - x).abs().max()) <= 0.1


def test_batches_classes_and_modes():
    model, x = pooled(activation=nn.Tanh), images(5)
    cam = GradCAM(model, "relu")
    whole, parts = (run(cam, x, HOAX, 0.2, 2, steps=4, batch_size=size) for size in (5, 2))
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other)
    maps = cam.explain(x, 2).maps
    assert torch.allclose(whole.reached_before, pearson(maps, HOAX.double().expand_as(maps)))
    model.train()
    with untouched(model):
        assert torch.allclose(run(cam, x, HOAX, 0.2, 2, steps=4).images, whole.images)
    model.eval()
    with cam, untouched(model):  # attached: its recording is its own
        run(cam, x, HOAX, 0.2, steps=1)
        assert cam.maps(model(x), 0).shape == maps.shape


def test_steps_fall_from_large_to_small_as_a_cosine(monkeypatch):
    sizes = []
    monkeypatch.setattr(perturbing._Attack, "step", lambda _, size: sizes.append(size))
    run(GradCAM(pooled(), "relu"), images(2), HOAX, 0.2, steps=4)
    largest = perturbing._FIRST_STEP * 0.2
    assert sizes == pytest.approx([largest, largest * (1 + 0.5**0.5) / 2, largest / 2, largest * (1 - 0.5**0.5) / 2])


def test_the_map_of_the_chosen_class_is_judged():
    model, x = pooled(activation=nn.Tanh), images(5)
    cam = GradCAM(model, "relu")
    found = run(cam, x, HOAX, 0.2, 2, steps=6, keep=0.1)
    assert bool((cam.explain(x).classes != 2).any())
    assert bool((found.reached > found.reached_before + 0.02).any())
    maps = cam.explain(found.images, 2).maps
    assert torch.allclose(found.reached, pearson(maps, HOAX.double().expand_as(maps)), atol=1e-6)


def test_a_bar_shows_the_steps_of_all_batches(capsys):
    cam, x = GradCAM(pooled(), "relu"), images(4)
    perturb(cam, x, HOAX, 0.1, steps=3, batch_size=2)
    assert "perturb: 100%" in (shown := capsys.readouterr().err)
    assert "6/6" in shown
    perturb(cam, x, HOAX, 0.1, steps=3, progress=False)
    assert capsys.readouterr().err == ""


def test_bad_input_is_refused():
    cam, x = GradCAM(pooled(), "relu"), images()
    with pytest.raises(TypeError, match="cam is ScoreCAM; expected a trainable CAM"):
        run(ScoreCAM(pooled(), "relu"), x, HOAX, 0.1)
    with pytest.raises(TypeError, match="images is list; expected a tensor"):
        run(cam, [x], HOAX, 0.1)
    with pytest.raises(ValueError, match="epsilon is 0; expected a finite number above 0"):
        run(cam, x, HOAX, 0)
    with pytest.raises(ValueError, match="keep is nan; expected a finite number above 0"):
        run(cam, x, HOAX, 0.1, keep=float("nan"))
    with pytest.raises(ValueError, match=r"limits is \(1, 0\); expected the lowest and the highest"):
        run(cam, x, HOAX, 0.1, limits=(1, 0))
    with pytest.raises(ValueError, match="softplus is -1; expected beta"):
        run(cam, x, HOAX, 0.1, softplus=-1)
    for beta in (0, float("inf")):
        with pytest.raises(ValueError, match=f"softplus is {beta}; expected beta, a finite number above 0"):
            run(cam, x, HOAX, 0.1, softplus=beta)
    with pytest.raises(ValueError, match="batch_size is 0; expected an integer of at least 1"):
        run(cam, x, HOAX, 0.1, batch_size=0)
    with pytest.raises(ValueError, match="steps is 0; expected an integer of at least 1"):
        run(cam, x, HOAX, 0.1, steps=0)
    with pytest.raises(ValueError, match=r"the mask has size \(2, 2\); expected \(6, 5\)"):
        run(cam, x, torch.eye(2), 0.1)
    with pytest.raises(ValueError, match="class 9 is out of range"):
        run(cam, x, HOAX, 0.1, 9)
