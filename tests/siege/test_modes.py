"""Modes of PyTorch that a user may have on: deterministic algorithms, anomaly detection, torch.func transforms.

``no_grad``, ``inference_mode``, autocast, frozen models and ``torch.compile`` are in
``tests/test_never_in_the_way.py`` and ``tests/test_wrappers.py``.
"""

import warnings

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad

import diffgradcam
from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, ShapleyCAM, TrueFalseCAM, layer_input
from tests.models import deep, images, pooled, seeded
from tests.untouched import untouched

X = images(3)
METHODS = {
    "GradCAM": lambda model: GradCAM(model, "features"),
    "layer input": lambda model: GradCAM(model, layer_input("relu")),
    "two layers": lambda model: LayerCAM(model, ["stem", "features"]),
    "DiffGradCAM": lambda model: DiffGradCAM(model, "features"),
    "TrueFalseCAM": lambda model: TrueFalseCAM(model, "features"),
    "FinerCAM": lambda model: diffgradcam.FinerCAM(model, "features"),
    "ShapleyCAM": lambda model: ShapleyCAM(model, "features"),
    "EigenCAM": lambda model: diffgradcam.EigenCAM(model, "features"),
    "KPCACAM": lambda model: diffgradcam.KPCACAM(model, "features"),
    "FullGrad": diffgradcam.FullGrad,
    "ScoreCAM": lambda model: diffgradcam.ScoreCAM(model, "features", progress=False),
    "AblationCAM": lambda model: diffgradcam.AblationCAM(model, "features", progress=False),
    "SmoothGradCAM++": lambda model: diffgradcam.SmoothGradCAMPlusPlus(model, "features", samples=2),
    "AugSmooth": lambda model: diffgradcam.AugSmooth(GradCAM(model, "features")),
}
CLASSES = [None, torch.tensor([0, 3, 1]), torch.tensor([[0, 1], [2, 3], [4, 4]]), "all"]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def anomalies():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        with torch.autograd.set_detect_anomaly(True):
            warnings.simplefilter("error")
            yield


def everything(name, build):
    """All that a method gives: for every form of classes, by the call, and while it is attached."""
    model = build()
    cam = METHODS[name](model)
    maps = [cam.explain(X, classes).maps for classes in CLASSES]
    maps.append(torch.from_numpy(cam(X, [0, 3, 1])))
    if name in ("GradCAM", "layer input", "two layers", "DiffGradCAM", "TrueFalseCAM", "FinerCAM", "ShapleyCAM"):
        with cam:
            maps.append(cam.maps(model(X), CLASSES[1]))
            maps[-1].square().mean().backward()
            maps.append(model.stem.weight.grad)
    return maps


@pytest.mark.parametrize("build", [pooled, deep])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode", ["deterministic", "anomalies"])
def test_the_same_maps_and_gradients(name, mode, build, request):
    expected = everything(name, build)
    request.getfixturevalue(mode)
    for found, wanted in zip(everything(name, build), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", METHODS)
def test_deterministic_means_bit_by_bit(name):
    for first, second in zip(everything(name, deep), everything(name, deep), strict=True):
        assert torch.equal(first, second)


# torch.func

TRANSFORMED = r"^layer 'features' runs within a torch.func transform \(vmap, jvp, grad, ...\), where nothing can be rec"
TRANSFORMS = {
    "vmap": lambda ask: func.vmap(lambda image: ask(image.unsqueeze(0))[0])(X),
    "grad": lambda ask: func.grad(lambda x: ask(x).sum())(X),
    "jvp": lambda ask: func.jvp(ask, (X,), (X,))[1],
    "jacrev": lambda ask: func.jacrev(ask)(X),
    "jacfwd": lambda ask: func.jacfwd(ask)(X),
    "hessian": lambda ask: func.hessian(lambda x: ask(x).sum())(X),
}


# PyTorch loads its rules for forward-mode derivatives with torch.jit, which it has itself deprecated.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_explanation_within_a_transform_is_refused(name):
    """It has an autograd graph of its own, which a transform cannot see through."""
    model = deep()
    cam = GradCAM(model, "features")
    with untouched(model), pytest.raises(RuntimeError, match=TRANSFORMED):
        TRANSFORMS[name](lambda x: cam.explain(x, 1).maps)
    assert cam.explain(X, 1).maps.isfinite().all()


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_around_a_model_with_an_attached_cam(name):
    """The transform gives what it gives without the CAM, or says that the CAM is in its way; maps come after it."""
    model = deep()
    expected = TRANSFORMS[name](model)
    wanted = GradCAM(model, "features").explain(X, 1).maps
    with untouched(model), GradCAM(model, "features") as cam:
        if name in ("grad", "jacrev", "hessian"):
            torch.testing.assert_close(TRANSFORMS[name](model), expected)
        else:
            with pytest.raises(RuntimeError, match=TRANSFORMED):
                TRANSFORMS[name](model)
        torch.testing.assert_close(cam.maps(model(X), 1), wanted)
    torch.testing.assert_close(TRANSFORMS[name](model), expected)


def test_gradients_of_each_image_with_an_attached_cam():
    model = deep()
    parameters = dict(model.named_parameters())

    def loss(given, image):
        return func.functional_call(model, given, (image.unsqueeze(0),)).square().sum()

    each = func.vmap(func.grad(loss), (None, 0))
    expected = each(parameters, X)
    with GradCAM(model, "features"):
        found = each(parameters, X)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


class Explaining(nn.Module):
    """Returns a map of the model within it."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.cam = GradCAM(model, "features")

    def forward(self, x):
        return self.cam.explain(x, 1).maps


def test_functional_call():
    """A model with other weights for one call, explained within it or attached."""
    model, other = deep(seed=0), deep(seed=1)
    weights = dict(other.named_parameters())
    wanted = GradCAM(other, "features").explain(X, 1).maps
    with untouched(model):
        around = {f"model.{name}": weight for name, weight in weights.items()}
        assert torch.equal(func.functional_call(Explaining(model), around, (X,)), wanted)
        with GradCAM(model, "features") as cam:
            torch.testing.assert_close(cam.maps(func.functional_call(model, weights, (X,)), 1), wanted)


def test_stacked_models():
    """An ensemble by vmap, of models that a CAM explains one by one."""
    models = [deep(seed=seed) for seed in range(3)]
    parameters, buffers = func.stack_module_state(models)
    before = [GradCAM(model, "features").explain(X, 1) for model in models]

    def run(weights, other):
        return func.functional_call(models[0], (weights, other), (X,))

    logits = func.vmap(run)(parameters, buffers)
    for row, model, explained in zip(logits, models, before, strict=True):
        torch.testing.assert_close(row.detach(), explained.logits)
        assert torch.equal(GradCAM(model, "features").explain(X, 1).maps, explained.maps)


@forward_mode
def test_forward_mode_derivatives_are_none_of_the_maps_business():
    model = deep()
    wanted = GradCAM(model, "features").explain(X, 1).maps
    with forward_ad.dual_level():
        assert torch.equal(GradCAM(model, "features").explain(forward_ad.make_dual(X, X), 1).maps, wanted)


class Steep(nn.Module):
    """Small activations and small logits, with a gradient between them that float16 does not hold."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(1e3 * self.features(1e-4 * x).flatten(2).sum(2))


@pytest.mark.parametrize("ask", ["explain", "call"])
def test_a_gradient_that_overflows_is_refused(ask):
    """A map of infinite values would look like a map."""
    model = seeded(Steep, dtype=torch.float32)
    model.head.weight.data.fill_(100)
    cam = GradCAM(model.half(), "features")
    with pytest.raises(ValueError, match=r"^the map of image 0 is NaN or infinite \(3 of 3 images\); .* bfloat16"):
        cam.explain(X.half(), 0) if ask == "explain" else cam(X.half(), [0] * 3)


def test_saved_tensor_hooks_of_the_user():
    """Activations kept on the CPU, or packed in any other way, while they wait for the backward pass."""
    model = deep()
    wanted = GradCAM(model, "features").explain(X, "all").maps
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(GradCAM(model, "features").explain(X, "all").maps, wanted)
        with GradCAM(model, "features") as cam:
            torch.testing.assert_close(cam.maps(model(X), "all"), wanted)


def test_global_hooks_of_the_user():
    """Hooks on all modules at once see the layers; what they see is the model's own."""
    model, seen = deep(), []
    wanted = GradCAM(model, "features").explain(X, 1).maps
    handle = nn.modules.module.register_module_forward_hook(lambda module, _args, _output: seen.append(type(module)))
    try:
        with untouched(model):
            assert torch.equal(GradCAM(model, "features").explain(X, 1).maps, wanted)
    finally:
        handle.remove()
    assert len(seen) == len(list(model.modules()))
