"""The mean map of several versions of an image, against loops over images and versions."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, TrueFalseCAM
from diffgradcam._core.base import BaseCAM
from diffgradcam.heatmaps import principal_component, resize, scale_signed
from diffgradcam.methods.perturbation import AblationCAM, ScoreCAM
from diffgradcam.methods.smoothing import AugSmooth, EigenSmooth, NoiseSmooth
from tests import models
from tests.methods import exact
from tests.untouched import untouched

METHODS = [GradCAM, LayerCAM, DiffGradCAM, TrueFalseCAM, partial(ScoreCAM, progress=False), AblationCAM]
CLASSES = torch.tensor([0, 3, 1])
SIX = list(product(((), (-1,)), (0.9, 1.0, 1.1)))
WRAPPERS = {
    "augmentation": partial(AugSmooth, flips=(-1, -2), factors=(0.8, 1)),
    "noise": partial(NoiseSmooth, samples=3, std=0.2, seed=4),
    "eigen": EigenSmooth,
}
every_method = pytest.mark.parametrize("method", METHODS)
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)


def decided(model, images, classes=None):
    return model(images).argmax(1) if classes is None else classes


def alone(cam, image, category):
    """The map of one image."""
    return cam.explain(image.unsqueeze(0), int(category)).maps[0]


def noises(images, samples, std, seed):
    generator = torch.Generator().manual_seed(seed)
    return [std * torch.randn(images.shape[1:], generator=generator, dtype=torch.float64) for _ in range(samples)]


# Values


@every_method
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_augmentation_equals_a_loop(method, classes):
    model, images = models.deep(), models.images()
    cam = method(model, "relu")
    explanation = AugSmooth(cam, batch_size=4).explain(images, classes)
    exact(explanation.logits, model(images).detach())
    assert torch.equal(explanation.classes, decided(model, images, classes))
    for image, category, smooth in zip(images, explanation.classes, explanation.maps, strict=True):
        versions = [alone(cam, factor * image.flip(flip), category).flip(flip) for flip, factor in SIX]
        exact(smooth, sum(versions) / 6)
        assert float((smooth - versions[1]).abs().max()) > 1e-4  # it does something


@every_method
def test_noise_equals_a_loop(method):
    model, images = models.deep(), models.images()
    cam = method(model, "relu")
    explanation = NoiseSmooth(cam, samples=3, std=0.2, seed=4, batch_size=4).explain(images)
    exact(explanation.logits, model(images).detach())
    for image, category, smooth in zip(images, decided(model, images), explanation.maps, strict=True):
        spread = float(image.max() - image.min())
        versions = [alone(cam, image + spread * noise, category) for noise in noises(images, 3, 0.2, 4)]
        exact(smooth, sum(versions) / 3)


@pytest.mark.parametrize("method", [GradCAM, LayerCAM, DiffGradCAM])
def test_eigen_smoothing_is_the_principal_component_of_the_weighted_channels(method):
    model, images = models.deep(), models.images()
    cam = method(model, "relu")
    activations = model[:4](images).detach().requires_grad_()
    logits = model[4:](activations)
    (gradients,) = torch.autograd.grad(cam.score(logits, CLASSES).sum(), activations)
    expected = principal_component(cam.weighting(activations, gradients) * activations).detach().relu()
    exact(EigenSmooth(cam).explain(images, CLASSES).maps, expected)


@every_method
def test_eigen_smoothing_equals_that_of_the_call(method):
    model, images = models.deep(), models.images()
    cam = method(model, "relu")
    heat = EigenSmooth(cam)(images, CLASSES.tolist())
    np.testing.assert_array_equal(heat, cam(images, CLASSES.tolist(), eigen_smooth=True))
    assert np.abs(heat - cam(images, CLASSES.tolist())).max() > 0.05
    both = AugSmooth(EigenSmooth(cam))(images, CLASSES.tolist())
    np.testing.assert_array_equal(both, cam(images, CLASSES.tolist(), aug_smooth=True, eigen_smooth=True))


def test_resized_versions_by_hand():
    model, images = models.pooled(), models.images()
    cam = GradCAM(model, "relu")
    maps = AugSmooth(cam, flips=(), factors=(1,), scales=(1, 2, 0.5), batch_size=2).explain(images, CLASSES).maps
    for image, category, smooth in zip(images, CLASSES, maps, strict=True):
        versions = [alone(cam, resize(image, size), category) for size in ((6, 5), (12, 10), (3, 2))]
        exact(smooth, sum(resize(one.unsqueeze(0), (6, 5))[0] for one in versions) / 3)


@pytest.mark.parametrize(("factors", "scale"), [((0.5,), 1), ((1, 1), 1), ((2,), 1.5)])
def test_the_image_as_it_is_counts_as_often_as_it_is_asked_for(factors, scale):
    model, images = models.pooled(), models.images()
    cam = GradCAM(model, "relu")
    maps = AugSmooth(cam, flips=(), factors=factors, scales=(scale,)).explain(images, CLASSES).maps
    size = tuple(round(scale * length) for length in (6, 5))
    versions = [factor * resize(images.flatten(0, 1), size).view(3, 3, *size) for factor in factors]
    exact(maps, sum(resize(cam.explain(version, CLASSES).maps, (6, 5)) for version in versions) / len(factors))


@every_wrapper
@pytest.mark.parametrize("classes", [2, torch.tensor([[0, 1], [2, 3], [3, 3]]), "all"])
def test_several_classes_at_once(name, classes):
    model, images = models.deep(), models.images()
    smooth = WRAPPERS[name](GradCAM(model, "relu"))
    _, index, maps = smooth.explain(images, classes)
    for n in range(index.shape[1] if index.ndim == 2 else 0):
        exact(maps[:, n], smooth.explain(images, index[:, n]).maps)
    assert maps.shape == (*index.shape, 6, 5)


@every_wrapper
@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(name, dims):
    model, images = models.flat(dims=dims), models.images(dims=dims)
    cam = GradCAM(model, "relu", rectify=False)
    wrapper = partial(AugSmooth, flips=tuple(range(-dims, 0)), factors=(1,))
    maps = {**WRAPPERS, "augmentation": wrapper}[name](cam).explain(images, CLASSES).maps
    assert maps.shape == (3, *images.shape[2:])
    if name == "augmentation":
        flips = [
            tuple(d for d, on in zip(range(-dims, 0), mask, strict=True) if on) for mask in product((0, 1), repeat=dims)
        ]
        exact(maps, sum(cam.explain(images.flip(f), CLASSES).maps.flip(f) for f in flips) / 2**dims)


# The call


@pytest.mark.parametrize("method", [GradCAM, TrueFalseCAM])
def test_the_call_is_the_mean_of_calls(method):
    model, images = models.two_sizes(), models.images()
    cam = method(model, "small")
    heat = AugSmooth(cam)(images)
    targets = decided(model, images).tolist()
    versions = [np.flip(cam(factor * images.flip(flip), targets), flip) for flip, factor in SIX]
    np.testing.assert_allclose(heat, np.mean(versions, 0), atol=1e-6)
    np.testing.assert_array_equal(cam(images, aug_smooth=True), heat)
    exact(cam.outputs, model(images).detach())
    assert heat.dtype == np.float32
    noisy = NoiseSmooth(cam, samples=2, std=0.1)
    spread = (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(3, 1, 1, 1)
    versions = [cam(images + spread * noise, targets) for noise in noises(images, 2, 0.1, 0)]
    np.testing.assert_allclose(noisy(images), np.mean(versions, 0), atol=1e-6)
    exact(noisy.outputs, model(images).detach())


def test_targets_follow_their_images():
    model, images = models.deep(), models.images()
    cam = GradCAM(model, "relu")
    callables = [lambda logits, c=c: logits[c] for c in CLASSES.tolist()]
    np.testing.assert_array_equal(
        AugSmooth(cam, batch_size=2)(images, callables), AugSmooth(cam)(images, CLASSES.tolist())
    )


def test_a_wrapper_can_be_wrapped():
    model, images = models.deep(), models.images()
    cam = GradCAM(model, "relu")
    both = NoiseSmooth(AugSmooth(cam), samples=2, std=0.1).explain(images)
    spread = (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(3, 1, 1, 1)
    each = [AugSmooth(cam).explain(images + spread * n, both.classes).maps for n in noises(images, 2, 0.1, 0)]
    exact(both.maps, sum(each) / 2)
    exact(both.logits, model(images).detach())


# One decision, few forward passes


def test_the_class_is_decided_once():
    """On the images as they are, however the versions would be decided."""
    model, images = models.deep(), models.images()
    cam = GradCAM(model, "relu")
    classes = decided(model, images)
    assert not torch.equal(decided(model, 40 * images), classes)
    for smooth in (AugSmooth(cam, flips=(), factors=(40,)), NoiseSmooth(cam, samples=2, std=5)):
        exact(smooth.explain(images).maps, smooth.explain(images, classes).maps)
        np.testing.assert_array_equal(smooth(images), smooth(images, classes.tolist()))


@pytest.mark.parametrize(("batch_size", "passes"), [(32, [3, 15]), (4, [3, 4, 4, 4, 3]), (1, [3] + [1] * 15)])
def test_all_versions_run_in_as_few_forward_passes_as_allowed(batch_size, passes):
    model, images = models.deep(), models.images()
    sizes = []
    model.stem.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    smooth = AugSmooth(GradCAM(model, "relu"), batch_size=batch_size)
    smooth.explain(images)
    assert sizes == passes
    sizes.clear()
    smooth(images)
    assert sizes == passes
    sizes.clear()
    NoiseSmooth(GradCAM(model, "relu"), samples=5, batch_size=batch_size).explain(images)
    assert sizes == passes


@every_wrapper
def test_neither_the_batch_nor_the_batch_size_matters(name):
    model, images = models.deep(), models.images(5)
    options = {} if name == "eigen" else {"batch_size": 3}
    together = WRAPPERS[name](GradCAM(model, "relu")).explain(images, 2).maps
    smooth = WRAPPERS[name](GradCAM(model, "relu"), **options)
    exact(smooth.explain(images, 2).maps, together)
    exact(torch.cat([smooth.explain(image.unsqueeze(0), 2).maps for image in images]), together)
    assert smooth.explain(images[:0], 2).maps.shape == (0, 6, 5)


# Nothing to smooth


@every_method
def test_no_change_is_the_identity(method):
    model, images = models.deep(), models.images()
    cam = method(model, "relu")
    expected, heat = cam.explain(images, "all" if method is not TrueFalseCAM else None), cam(images)
    classes = expected.classes
    for smooth in (
        NoiseSmooth(cam, samples=1, std=0),
        NoiseSmooth(cam, samples=3, std=0),
        AugSmooth(cam, flips=(), factors=(1.0,)),
    ):
        for actual, wanted in zip(smooth.explain(images, classes), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(smooth(images), heat, atol=1e-6)


def test_a_constant_image_has_no_noise_and_a_zero_map_stays_zero():
    model = models.pooled()
    cam = GradCAM(model, "relu")
    constant = torch.full((2, 3, 6, 5), 0.3).double()
    expected = cam.explain(constant).maps
    assert expected.any()
    exact(NoiseSmooth(cam, samples=2).explain(constant).maps, expected)
    with torch.no_grad():
        model.features.weight.zero_()
        model.features.bias.fill_(-1)
    for wrapper in WRAPPERS.values():
        assert not wrapper(cam).explain(models.images()).maps.any()
        assert not wrapper(cam)(models.images()).any()


def test_signed_maps_stay_signed():
    model, images = models.deep(), models.images()
    cam = TrueFalseCAM(model, "relu")
    smooth = AugSmooth(cam, flips=(-1,), factors=(1,))
    expected = (cam.explain(images, CLASSES).maps + cam.explain(images.flip(-1), CLASSES).maps.flip(-1)) / 2
    exact(smooth.explain(images, CLASSES).maps, expected)
    assert float(expected.min()) < 0 < float(expected.max())
    heat = smooth(images, CLASSES.tolist())
    halves = (cam.explain(x, CLASSES).maps for x in (images, images.flip(-1)))
    np.testing.assert_allclose(
        heat, sum(scale_signed(m).flip(f) for m, f in zip(halves, ((), (-1,)), strict=True)) / 2, atol=1e-6
    )


# Good manners


@every_wrapper
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_changes_in_any_mode(name, mode):
    model = models.deep()
    smooth = WRAPPERS[name](GradCAM(model, "relu"))
    expected, heat = smooth.explain(models.images(), "all").maps, smooth(models.images())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with mode(), untouched(model):  # the global random numbers too
        maps = smooth.explain(models.images().requires_grad_(), "all").maps
        np.testing.assert_array_equal(smooth(models.images()), heat)
    exact(maps.clone(), expected)
    assert not maps.requires_grad


def test_noise_follows_its_seed():
    cam = GradCAM(models.deep(), "relu")
    first, again, other = (NoiseSmooth(cam, samples=2, seed=s).explain(models.images()).maps for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 1e-4


class _Gained(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = models.deep()

    def forward(self, x, gain=None, *, shift):
        return self.inner(x if gain is None else gain.view(-1, 1, 1, 1) * x) + shift


@every_wrapper
def test_further_arguments_follow_the_images(name):
    images, gain, shift = models.images(), torch.tensor([0.5, 1.0, 2.0]).double(), torch.randn(3, 5).double()
    smooth = WRAPPERS[name](
        GradCAM(_Gained(), "inner.relu", score=lambda z, c: z.log_softmax(1).gather(1, c[:, None])[:, 0])
    )
    logits, _, maps = smooth.explain(images, CLASSES, gain, shift=shift)
    heat = smooth(images, CLASSES.tolist(), gain=gain, shift=shift)
    for i in range(3):
        one = slice(i, i + 1)
        single = smooth.explain(images[one], CLASSES[one], gain[one], shift=shift[one])
        exact(maps[one], single.maps)
        exact(logits[one], single.logits)
        alone = smooth(images[one], CLASSES[one].tolist(), gain=gain[one], shift=shift[one])
        np.testing.assert_allclose(heat[one], alone, atol=1e-6)


# Errors


@every_wrapper
@pytest.mark.parametrize(
    ("cam", "given"), [(GradCAM, "the class GradCAM"), (None, "NoneType"), (nn.Identity(), "Identity")]
)
def test_what_is_no_cam(name, cam, given):
    with pytest.raises(
        TypeError, match=rf"cam is {given}; \w+Smooth expects a CAM, such as GradCAM\(model, 'layer4'\)"
    ):
        WRAPPERS[name](cam)


def test_eigen_smoothing_comes_first():
    cam = GradCAM(models.deep(), "relu")
    with pytest.raises(TypeError, match=r"cam is AugSmooth; EigenSmooth .* first: AugSmooth\(EigenSmooth\(cam\)\)"):
        EigenSmooth(AugSmooth(cam))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flips": (0,)}, r"flips is \(0,\); expected different spatial dimensions, counted from the end"),
        ({"flips": (-1, -1)}, r"flips is \(-1, -1\); expected different spatial dimensions"),
        ({"factors": ()}, r"factors is \(\); expected at least one number, all of them positive"),
        ({"factors": (1, -1)}, r"factors is \(1, -1\); expected at least one number"),
        ({"scales": (0,)}, r"scales is \(0,\); expected at least one number"),
        ({"scales": (float("nan"),)}, r"scales is \(nan,\); expected at least one number"),
        ({"batch_size": 0}, r"batch_size is 0; expected an integer of at least 1"),
    ],
)
def test_bad_augmentations(options, message):
    with pytest.raises(ValueError, match=message):
        AugSmooth(GradCAM(models.deep(), "relu"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; expected an integer of at least 1"),
        ({"std": -0.1}, "std is -0.1; expected a standard deviation"),
        ({"std": float("nan")}, "std is nan; expected a standard deviation"),
        ({"batch_size": 1.5}, "batch_size is 1.5; expected an integer of at least 1"),
    ],
)
def test_bad_noise(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseSmooth(GradCAM(models.deep(), "relu"), **options)


def test_flips_that_the_images_do_not_have():
    cam = GradCAM(models.flat(dims=1), "relu")
    message = r"flips is \(-1, -2\) for images \(3, 12\) whose maps have 1 spatial dimensions; expected dimensions that"
    with pytest.raises(ValueError, match=message):
        AugSmooth(cam, flips=(-1, -2)).explain(models.images(dims=1))


@every_wrapper
def test_targets_that_can_be_read_only_once(name):
    smooth, images = WRAPPERS[name](GradCAM(models.deep(), "relu")), models.images()
    expected = smooth(images, CLASSES.tolist())
    for targets in (iter(CLASSES.tolist()), dict.fromkeys(CLASSES.tolist()).keys(), CLASSES):
        np.testing.assert_array_equal(smooth(images, targets), expected)
    with pytest.raises(TypeError, match="targets is a single int; expected a list with one target for each of 3 imag"):
        smooth(images, 1)


@every_wrapper
def test_inputs_that_have_no_versions(name):
    smooth = WRAPPERS[name](GradCAM(models.deep(), "relu"))
    for ask in (smooth.explain, smooth):
        with pytest.raises(TypeError, match=r"the image is NoneType; \w+ makes other versions of images and expects"):
            ask([1, 2])
        with pytest.raises(TypeError, match=r"the image is a tensor of torch.uint8 of shape \(1, 3, 6, 5\); "):
            ask(torch.zeros(1, 3, 6, 5, dtype=torch.uint8))


def test_the_errors_of_the_cam_come_through():
    smooth = AugSmooth(GradCAM(models.deep(), "relu"))
    with pytest.raises(ValueError, match="class 9 is out of range; the model has classes 0 to 4"):
        smooth.explain(models.images(), 9)
    with pytest.raises(ValueError, match="got 1 targets for 3 images"):
        smooth(models.images(), [1])
    assert isinstance(smooth.cam, BaseCAM)
