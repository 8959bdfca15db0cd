import copy
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import GradCAM, explain_together, layer_input
from diffgradcam.heatmaps import minmax
from diffgradcam.methods.fullgrad import FullGrad, magnitude
from diffgradcam.scores import logit_difference
from tests import models, oracles
from tests.methods import exact
from tests.untouched import untouched


def normed(dims=2, classes=5, inplace=False, affine=True):
    """Convolutions with and without bias, batch normalisations with statistics of their own, two resolutions."""
    conv, norm = models.CONV[dims], {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]

    def build():
        layers = [
            ("stem", conv(3, 4, 3, padding=1, bias=False)),
            ("norm", norm(4, affine=affine)),
            ("relu", nn.ReLU(inplace)),
            ("down", conv(4, models.CHANNELS, 2, stride=2)),
            ("last", norm(models.CHANNELS)),
            ("act", nn.ReLU(inplace)),
            ("pool", models.POOL[dims](1)),
            ("flatten", nn.Flatten()),
            ("head", nn.Linear(models.CHANNELS, classes)),
        ]
        return nn.Sequential(OrderedDict(layers))

    model = models.seeded(build)
    generator = torch.Generator().manual_seed(1)
    for module in (model.norm, model.last):
        module.running_mean.normal_(generator=generator)
        module.running_var.uniform_(0.5, 2, generator=generator)
        if module.affine:
            module.weight.data.normal_(1, 0.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model


def implicit_bias(norm):
    weight = norm.weight if norm.affine else torch.ones_like(norm.running_mean)
    bias = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
    return (bias - weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()).detach()


def terms(model, image, score):
    """Input times its gradient, and bias times gradient of each layer that has one, of one image, ``(C, *S)`` each."""
    image = image.unsqueeze(0).clone().requires_grad_()
    outputs, x = {}, image
    for name, module in model.named_children():
        x = outputs[name] = module(x)
    biases = {"norm": implicit_bias(model.norm), "down": model.down.bias.detach(), "last": implicit_bias(model.last)}
    gradients = torch.autograd.grad(score(x[0]), [image, *(outputs[name] for name in biases)])
    products = [(gradients[0] * image)[0]]
    for gradient, bias in zip(gradients[1:], biases.values(), strict=True):
        products.append(torch.stack([gradient[0, k] * bias[k] for k in range(len(bias))]))
    return [product.detach().numpy() for product in products]


def fullgrad(model, image, score):
    found = terms(model, image, score)
    total = np.zeros(found[0].shape[1:])
    for product in found:
        size = np.abs(product)
        scaled = (size - size.min()) / (size.max() - size.min())
        for channel in scaled:
            total += oracles.resize(channel, total.shape)
    return torch.from_numpy(total)


@pytest.mark.parametrize("score", ["logit", "difference"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_explain_equals_loops(dims, score):
    model, images = normed(dims), models.images(dims=dims)
    ours, loops = {
        "logit": ({}, oracles.logit),
        "difference": ({"score": logit_difference}, oracles.difference(oracles.logsumexp)),
    }[score]
    classes = torch.tensor([[0, 3], [2, 1], [3, 0]])
    expected = [
        torch.stack([fullgrad(model, image, lambda z, c=c: loops(z, c)) for c in row])
        for image, row in zip(images, classes.tolist(), strict=True)
    ]
    logits, index, maps = FullGrad(model, **ours).explain(images, classes)
    exact(logits, model(images).detach())
    assert torch.equal(index, classes)
    exact(maps, torch.stack(expected))


def test_the_terms_and_the_biases_of_the_head_add_up_to_the_logit():
    model, images = normed(), models.images()
    cam = FullGrad(model)
    cam.rectify = False
    cam.reduction = lambda channels: channels.flatten(1).sum(1)[:, None, None].expand(-1, 6, 5) / 30  # unscaled
    logits, _, maps = cam.explain(images, "all")
    exact(maps.sum((2, 3)), logits - model.head.bias.detach())


def test_magnitude_by_hand():
    channels = torch.tensor([[[-4.0, 1.0], [2.0, 0.0]], [[3.0, 3.0], [-3.0, 3.0]]])
    assert magnitude(channels).tolist() == [[1.5, 0.25], [0.0, 0.0]]


def test_the_call_is_the_scaled_map():
    model, images = normed(), models.images()
    expected = minmax(FullGrad(model).explain(images, torch.tensor([0, 3, 1])).maps).float().numpy()
    np.testing.assert_allclose(FullGrad(model)(images, [0, 3, 1]), expected, rtol=0, atol=1e-6)
    of_scores = FullGrad(model)(images, [lambda z, c=c: z[c] for c in (0, 3, 1)])
    np.testing.assert_allclose(of_scores, expected, rtol=0, atol=1e-6)


def test_an_in_place_relu_changes_nothing():
    images = models.images()
    exact(
        FullGrad(normed(inplace=True)).explain(images, "all").maps,
        FullGrad(normed(inplace=False)).explain(images, "all").maps,
    )


def test_batch_normalisation_without_weights():
    model, images = normed(affine=False), models.images()
    model.last = model.last.requires_grad_(False)
    expected = torch.stack([fullgrad(model, image, lambda z: z[1]) for image in images])
    exact(FullGrad(model).explain(images, 1).maps, expected)


def test_layers_that_run_twice_or_for_another_output_or_not_at_all():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.aside, self.never = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            self.seen = self.aside(x).mean()
            return self.head(self.conv(self.conv(x).relu()).mean((2, 3)))

    class Unrolled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.first, self.second, self.head = model.conv, copy.deepcopy(model.conv), model.head

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).mean((2, 3)))

    model, images = models.seeded(Model), models.images()
    exact(FullGrad(model).explain(images, "all").maps, FullGrad(Unrolled(model)).explain(images, "all").maps)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_left_behind_in_any_mode(mode, frozen):
    expected = FullGrad(normed()).explain(models.images(), "all").maps
    model = normed().requires_grad_(not frozen)
    F.cross_entropy(model(models.images().requires_grad_()), torch.tensor([0, 1, 2])).backward()
    with untouched(model), mode():
        images = models.images()
        exact(FullGrad(model).explain(images, "all").maps, expected)
        assert images.grad is None
        assert not images.requires_grad


def test_nothing_is_left_behind_by_an_error():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            self.conv(x)
            raise RuntimeError("out of luck")

    model, images = Fails(), models.images(dtype=torch.float32)
    with untouched(model), pytest.raises(RuntimeError, match="out of luck"):
        FullGrad(model).explain(images)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zero_and_constant_activations(value):
    model = models.pooled()
    for module in (model.stem, model.features):
        module.weight.data.zero_()
        module.bias.data.fill_(value)
    assert FullGrad(model).explain(models.images(), "all").maps.isfinite().all()
    assert not FullGrad(models.pooled()).explain(torch.zeros(1, 3, 6, 5).double()).maps.isnan().any()


def test_mixed_precision_and_half_precision():
    model, images = normed().float(), models.images(dtype=torch.float32)
    plain = FullGrad(model).explain(images, 1).maps
    with torch.autocast("cpu", torch.bfloat16):
        mixed = FullGrad(model).explain(images, 1).maps
    half = FullGrad(copy.deepcopy(model).bfloat16()).explain(images.bfloat16(), 1).maps
    for maps in (mixed, half):
        assert maps.dtype == torch.float32
        assert float(torch.corrcoef(torch.stack([maps.flatten(), plain.flatten()]))[0, 1]) > 0.95


def test_eigen_smoothing_leaves_it_and_a_copy_explains_its_own_model():
    model, images = normed(), models.images()
    cam = FullGrad(model)
    np.testing.assert_array_equal(cam(images, eigen_smooth=True), cam(images))
    copied = copy.deepcopy(cam)
    expected = cam.explain(images, 0).maps
    model.down.bias.data += 10
    exact(copied.explain(images, 0).maps, expected)


def test_it_takes_every_run_and_ignores_no_choice_of_one():
    with pytest.raises(TypeError, match=r"^FullGrad takes every run of every module and no run=$"):
        FullGrad(normed(), run="last")


def test_it_shares_no_forward_pass_with_a_cam_of_another_kind():
    model, images = normed(), models.images()
    both = explain_together([FullGrad(model), FullGrad(model, score=logit_difference)], images, 1)
    exact(both[1].maps, FullGrad(model, score=logit_difference).explain(images, 1).maps)
    with pytest.raises(ValueError, match="differ in how the model runs"):
        explain_together([FullGrad(model), GradCAM(model, layer_input(model))], images)


# --- errors


def test_target_layers_are_not_used_and_warn():
    model, images = normed(), models.images()
    with pytest.warns(UserWarning, match="every bias of the model: target_layers is not used"):
        cam = FullGrad(model, ["down"])
    exact(cam.explain(images, 1).maps, FullGrad(model).explain(images, 1).maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FullGrad(model)
        FullGrad(model, [])


@pytest.mark.parametrize(
    "build", [lambda: normed().train(), lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()]
)
def test_statistics_of_the_batch_are_refused(build):
    with pytest.raises(ValueError, match=r"normalises with the statistics of the batch, .* call model\.eval\(\) first"):
        FullGrad(build().double()).explain(models.images())


def test_no_module_at_all_is_refused():
    with pytest.raises(TypeError, match=r"model is str; expected a torch\.nn\.Module"):
        FullGrad("resnet")
