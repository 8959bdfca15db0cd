import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, TrueFalseCAM
from diffgradcam.analysis import guided as guided_backprop
from diffgradcam.analysis.guided import GuidedBackpropReLUModel, guided_gradcam, guided_gradients
from diffgradcam.scores import logit, logit_difference, two_logits
from tests import models
from tests.untouched import untouched

X = models.images()


class _Guided(torch.autograd.Function):
    """The rule as Springenberg et al. state it, written out: the oracle."""

    @staticmethod
    def forward(ctx, x, top):
        ctx.save_for_backward((x > 0) & (x < top))
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx, gradient):
        (passes,) = ctx.saved_tensors
        return gradient * passes * (gradient > 0), None


class _GuidedReLU(nn.Module):
    def __init__(self, top):
        super().__init__()
        self.top = top

    def forward(self, x):
        return _Guided.apply(x, self.top)


def oracle(model, images, classes, score=logit):
    """One class of one image at a time, on a copy whose ReLU modules are replaced."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, _GuidedReLU(6.0 if isinstance(child, nn.ReLU6) else torch.inf))
    gradients = []
    for image, index in zip(images, classes, strict=True):
        source = image[None].clone().requires_grad_()
        score(model(source), torch.tensor([index])).backward()
        gradients.append(source.grad[0])
    return torch.stack(gradients)


def test_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    model[2].weight.data = torch.tensor([[1.0, -1.0], [2.0, 5.0]])
    # Inputs of the ReLU: 3 and 2 for the first row, 3 and -3 for the second. Class 0 has gradients 1 and -1 there, of
    # which only the first passes; class 1 has 2 and 5, of which both pass in the first row, the first in the second.
    x = torch.tensor([[1.0, 1.0], [-0.6, 1.8]])[:, :, None, None]
    flat = nn.Sequential(nn.Flatten(), *model)
    first = guided_gradients(flat, x, 0).flatten(1)
    second = guided_gradients(flat, x, 1).flatten(1)
    torch.testing.assert_close(first, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    torch.testing.assert_close(second, torch.tensor([[17.0, -1.0], [2.0, 4.0]]))


@pytest.mark.parametrize(
    ("build", "dims"),
    [
        (models.pooled, 1),
        (models.pooled, 2),
        (models.flat, 2),
        (models.flat, 3),
        (lambda dims: models.deep(dims=dims, activation=nn.ReLU), 2),
        (models.max_pooled, 2),
        (lambda dims: models.two_sizes(), 2),  # noqa: ARG005
    ],
)
@pytest.mark.parametrize("score", [logit, logit_difference])
def test_equals_the_rule_written_out(build, dims, score):
    model, images = build(dims=dims), models.images(dims=dims)
    guided = guided_gradients(model, images, [0, 3, 1], score=score)
    assert guided.abs().max() > 0
    torch.testing.assert_close(guided, oracle(model, images, [0, 3, 1], score))
    plain = images.clone().requires_grad_()
    score(model(plain), torch.tensor([0, 3, 1])).sum().backward()
    assert not torch.allclose(guided, plain.grad)


def test_relu6_is_guided_and_bounded_above():
    model = models.flat(activation=nn.ReLU6)
    images = 3 * X  # so that some activations are above 6
    torch.testing.assert_close(guided_gradients(model, images, [0, 3, 1]), oracle(model, images, [0, 3, 1]))


class Functional(nn.Module):
    """The layers of a sequential model with every ReLU as a function."""

    def __init__(self, layers, relu):
        super().__init__()
        self.layers, self.relu = layers, relu

    def forward(self, x):
        for layer in self.layers:
            x = self.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


@pytest.mark.parametrize(
    "relu", [F.relu, torch.relu, torch.Tensor.relu, torch.relu_, lambda x: F.relu(x, inplace=True)]
)
def test_functional_and_in_place_relus_are_guided_like_modules(relu):
    model = models.flat()
    expected = guided_gradients(model, X, [0, 1, 2])
    torch.testing.assert_close(guided_gradients(Functional(model, relu), X, [0, 1, 2]), expected, rtol=0, atol=0)


def test_an_input_that_the_model_changes_in_place_is_the_callers_own():
    model, images = nn.Sequential(nn.ReLU(inplace=True), models.flat()), X.clone()
    guided_gradients(model, images)
    torch.testing.assert_close(images, X, rtol=0, atol=0)


def test_modules_that_run_twice_and_skip_connections():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(x + self.conv(self.relu(self.conv(x))))

    model = nn.Sequential(Block(), nn.Flatten(), nn.Linear(90, 4)).double()
    torch.testing.assert_close(guided_gradients(model, X, [0, 3, 1]), oracle(model, X, [0, 3, 1]))


def test_several_classes_are_each_alone():
    model = models.flat()
    several = guided_gradients(model, X, torch.tensor([[0, 4], [1, 3], [2, 2]]))
    assert several.shape == (3, 2, *X.shape[1:])
    torch.testing.assert_close(several[:, 0], guided_gradients(model, X, [0, 1, 2]))
    torch.testing.assert_close(several[:, 1], guided_gradients(model, X, [4, 3, 2]))
    everything = guided_gradients(model, X, "all")
    torch.testing.assert_close(everything[:, 3], guided_gradients(model, X, 3))
    torch.testing.assert_close(guided_gradients(model, X), guided_gradients(model, X, model(X).argmax(1)))


def test_captum_agrees(captum_attr):
    model = models.flat().float()
    with pytest.warns(UserWarning, match="Setting backward hooks on ReLU activations"):
        theirs = captum_attr.GuidedBackprop(model).attribute(X.float().requires_grad_(), torch.tensor([0, 3, 1]))
    torch.testing.assert_close(guided_gradients(model, X.float(), [0, 3, 1]), theirs)


def test_pytorch_grad_cam_agrees(pytorch_grad_cam):
    model = models.flat().float()
    theirs = pytorch_grad_cam.GuidedBackpropReLUModel(copy.deepcopy(model), device="cpu")
    ours = GuidedBackpropReLUModel(model, device="cpu")
    for category in (None, 3):
        np.testing.assert_allclose(
            ours(X[:1].float(), category), theirs(X[:1].float(), target_category=category), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_altered_in_any_mode(mode):
    model = models.flat()
    expected = guided_gradients(model, X, 1)
    model.train()
    model.features.weight.requires_grad_(False)
    cam = GradCAM(model, "relu")
    with mode(), untouched(model):
        guided = guided_gradients(model, X.clone(), 1)
        product = guided_gradcam(cam, X, 1)
    torch.testing.assert_close(guided, expected)
    assert not guided.requires_grad
    assert not product.requires_grad
    plain = X.clone().requires_grad_()  # a later backward pass of the user's is not guided
    model(plain)[:, 1].sum().backward()
    assert not torch.allclose(plain.grad, guided)
    with untouched(model), pytest.raises(ValueError, match="class 9 is out of range"):
        guided_gradients(model, X, 9)


def test_guided_gradcam_is_the_map_at_input_size_times_the_gradients():
    for cam in (
        DiffGradCAM(models.two_sizes(), "small"),
        LayerCAM(models.two_sizes(), ["features", "small"], rectify=False),
        TrueFalseCAM(models.two_sizes(), "small"),
    ):
        several = guided_gradcam(cam, X, [[0, 1]] * 3)
        for column in (0, 1):
            maps = cam.explain(X, column).maps
            resized = F.interpolate(maps[:, None], X.shape[2:], mode="bilinear")
            guided = guided_gradients(cam.model, X, column, score=cam.score)
            torch.testing.assert_close(several[:, column], resized * guided)
            torch.testing.assert_close(guided_gradcam(cam, X, column), resized * guided)


def test_classes_are_the_decisions_where_none_are_given():
    cam = GradCAM(models.flat(), "features")
    torch.testing.assert_close(guided_gradcam(cam, X), guided_gradcam(cam, X, cam.model(X).argmax(1)))


def test_an_output_of_another_kind():
    model = models.flat(classes=1)
    torch.testing.assert_close(
        guided_gradients(model, X, 1, output=two_logits),
        oracle(model, X, [0, 0, 0], lambda logits, _: logits.sum() / 2),
    )


def test_common_mode_is_not_in_the_contrast():
    clean = models.flat()
    shifted = copy.deepcopy(clean)
    shifted.head.weight.data += torch.randn(shifted.head.weight.shape[1], dtype=torch.float64)
    torch.testing.assert_close(
        *(guided_gradients(model, X, 2, score=logit_difference) for model in (clean, shifted)), rtol=1e-6, atol=1e-9
    )
    assert not torch.allclose(guided_gradients(clean, X, 2), guided_gradients(shifted, X, 2))


def test_a_zero_gradient_is_zero():
    model = models.flat()
    model.head.weight.data.zero_()
    assert guided_gradients(model, X, 0).abs().max() == 0


# What is refused


@pytest.mark.parametrize(
    ("activation", "found"), [(nn.SiLU, "Silu"), (nn.GELU, "Gelu"), (nn.LeakyReLU, "LeakyRelu"), (nn.Hardtanh, "Hardt")]
)
def test_models_without_relu_are_refused(activation, found):
    model = models.flat(activation=activation)
    with untouched(model), pytest.raises(ValueError, match=rf"no ReLU lies .*its activations are {found}.*GradCAM"):
        guided_gradients(model, X)


def test_linear_models_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 2)).double()
    with pytest.raises(ValueError, match=r"no activation is recorded.*replace it by torch.relu or nn.ReLU"):
        guided_gradients(model, X)


def test_models_that_detach_the_images_are_refused():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = models.flat()

        def forward(self, x):
            return self.inner(x.detach())

    with pytest.raises(RuntimeError, match="the logits do not depend on the images: the model detaches them"):
        guided_gradients(Detached(), X)


@pytest.mark.parametrize(
    ("images", "message"),
    [(X.numpy(), "images are ndarray; expected"), (X.long(), "images are a tensor of torch.int64; expected")],
)
def test_images_of_the_wrong_kind_are_refused(images, message):
    with pytest.raises(TypeError, match=message):
        guided_gradients(models.flat(), images)


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the output of image 1 is NaN or infinite"):
        guided_gradients(models.flat(), X.clone().index_fill_(0, torch.tensor(1), torch.nan))


def test_the_form_of_pytorch_grad_cam_takes_one_image():
    with pytest.raises(ValueError, match=r"shape \(3, 3, 6, 5\); expected one image .*call guided_gradients"):
        GuidedBackpropReLUModel(models.flat())(X)
    with pytest.raises(TypeError, match="images are ndarray"):
        GuidedBackpropReLUModel(models.flat())(X.numpy())


def test_the_form_of_pytorch_grad_cam_takes_half_precision():
    model, x = models.flat(dtype=torch.bfloat16), X[:1].bfloat16()
    gradients = GuidedBackpropReLUModel(model)(x, 1)
    assert np.array_equal(gradients, guided_gradients(model, x, 1)[0].permute(1, 2, 0).float().numpy())


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_wrapped_models(wrap):
    model = models.flat()
    torch.testing.assert_close(guided_gradients(wrap(model), X, 1), guided_gradients(model, X, 1))


def test_the_module_needs_no_matplotlib():
    assert "matplotlib" not in vars(guided_backprop)
