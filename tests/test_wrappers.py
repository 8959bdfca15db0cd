"""Models as people have them: half precision, wrapped, compiled, outputs and arguments of their own, threads."""

import contextlib
import dataclasses
import threading
from collections import OrderedDict, UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.torchvision_shim import define_missing_operators
from diffgradcam import (
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    FinerCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    TrueFalseCAM,
    XGradCAM,
    layer_input,
)
from diffgradcam._core.outputs import find_logits
from diffgradcam._core.wrappers import eagerly
from diffgradcam.scores import two_logits

from .models import CHANNELS, backbone, deep, densenet, flat, images, pooled, seeded, two_sizes
from .untouched import hooks, untouched

METHODS = [
    GradCAM,
    GradCAMPlusPlus,
    XGradCAM,
    LayerCAM,
    HiResCAM,
    GradCAMElementWise,
    DiffGradCAM,
    DiffGradCAMPlusPlus,
    FinerCAM,
    TrueFalseCAM,
]
X = images(3, dtype=torch.float32)
LABELS = torch.tensor([0, 3, 4])
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1}


def assert_near(maps, expected, tolerance):
    """Within a share of the largest value of the expected maps."""
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().max() <= tolerance * expected.abs().max()
    assert expected.abs().max() > 0


# Number formats


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_half_precision_is_near_single(method, dtype):
    single, half = densenet(dtype=torch.float32), densenet(dtype=torch.float32).to(dtype)
    expected = method(single, "features").explain(X, LABELS)
    explanation = method(half, "features").explain(X.to(dtype), LABELS)
    assert explanation.logits.dtype == dtype
    assert_near(explanation.maps, expected.maps, TOLERANCE[dtype])
    with method(half, "features") as cam:
        maps = cam.maps(half(X.to(dtype)), LABELS)
        assert_near(maps, explanation.maps, 1e-3)
        maps.sum().backward()
    assert half.head.weight.grad.dtype == dtype
    assert half.head.weight.grad.isfinite().all()
    heat = method(half, "features")(X.to(dtype), LABELS)
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_autocast_is_near_single(method, dtype):
    model = densenet(dtype=torch.float32)
    expected = method(model, "features").explain(X, LABELS)
    with torch.autocast("cpu", dtype=dtype), untouched(model):
        explanation = method(model, "features").explain(X, LABELS)
    assert explanation.logits.dtype == dtype
    assert_near(explanation.maps, expected.maps, TOLERANCE[dtype])
    with method(model, "features") as cam:
        with torch.autocast("cpu", dtype=dtype):
            logits = model(X)
            inside = cam.maps(logits, LABELS)
        outside = cam.maps(logits, LABELS)
    assert torch.equal(inside, outside)
    assert_near(inside, explanation.maps, 1e-3)


def test_explaining_under_autocast_costs_the_training_step_no_gradient():
    """Weights that are cast for an explanation must not be reused, without their graph, by the step that follows."""
    model, twin = deep(dtype=torch.float32), deep(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        GradCAM(model, "features").explain(X)
        F.cross_entropy(model(X), LABELS).backward()
        F.cross_entropy(twin(X), LABELS).backward()
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert expected.grad.abs().sum() > 0
        assert torch.equal(parameter.grad, expected.grad)


class FullPrecision(nn.Module):
    """Switches autocast off for itself."""

    def __init__(self):
        super().__init__()
        self.inner = pooled(dtype=torch.float32)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.inner(x)


def test_what_follows_the_model_is_not_autocast():
    """The maps of a model that runs in full precision are of full precision too, whatever is switched on around it."""
    model = FullPrecision()
    for method in (GradCAM, HiResCAM, DiffGradCAM):
        cam = method(model, "inner.relu")
        expected = cam.explain(X, "all").maps
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cam.explain(X, "all").maps, expected)
            with cam:
                torch.testing.assert_close(cam.maps(model(X), "all"), expected)


def test_half_precision_sums_do_not_overflow():
    """70,000 activations of 2 sum to more than the largest float16, 65,504. By hand: one gradient is 1, the rest 0."""
    model = nn.Sequential(OrderedDict([("features", nn.Conv1d(1, 1, 1, bias=False)), ("flatten", nn.Flatten())])).half()
    model.features.weight.data.fill_(1)
    x = torch.full((1, 1, 70000), 2.0).half()
    x[0, 0, 7] = 3
    maps = GradCAMPlusPlus(model, "features", output=lambda flat: flat[:, 7:9]).explain(x, 0).maps
    torch.testing.assert_close(maps, x[0].float() / (2 + 140001))


@pytest.mark.parametrize("method", METHODS)
def test_channels_last(method):
    model, twin = densenet(dtype=torch.float32), densenet(dtype=torch.float32).to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    explanation = method(twin, "features").explain(x, "all" if method is not TrueFalseCAM else LABELS)
    expected = method(model, "features").explain(X, "all" if method is not TrueFalseCAM else LABELS)
    torch.testing.assert_close(explanation.maps, expected.maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(method(twin, "features")(x), method(model, "features")(X), rtol=1e-3, atol=1e-4)
    with method(twin, "features") as cam:
        torch.testing.assert_close(cam.maps(twin(x), LABELS), method(model, "features").explain(X, LABELS).maps)


# What models return


Output = namedtuple("Output", ["features", "scores"])


@dataclasses.dataclass
class Scores:
    scores: torch.Tensor


@dataclasses.dataclass
class WithLogits:
    loss: object
    logits: torch.Tensor


class Wrapped(nn.Module):
    """Returns its logits in a wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.inner = deep(dtype=torch.float32)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


FOUND = {
    "attribute": lambda z: WithLogits(None, z),
    "dict": lambda z: {"loss": None, "logits": z},
    "mapping": lambda z: UserDict(logits=z),
}
TOLD = {
    "tuple": (lambda z: (None, z), lambda o: o[1]),
    "namedtuple": (lambda z: Output(None, z), lambda o: o.scores),
    "dict": (lambda z: {"out": z, "aux": z + 1}, lambda o: o["out"]),
    "dataclass": (Scores, lambda o: o.scores),
    "tensor": (lambda z: z.unsqueeze(2), lambda o: o.squeeze(2)),
}


@pytest.mark.parametrize("wrap", FOUND)
def test_logits_are_found(wrap):
    model = Wrapped(FOUND[wrap])
    expected = GradCAM(model.inner, "features").explain(X, LABELS)
    explanation = GradCAM(model, "inner.features").explain(X, LABELS)
    assert torch.equal(explanation.logits, expected.logits)
    assert torch.equal(explanation.maps, expected.maps)
    with GradCAM(model, "inner.features") as cam:
        torch.testing.assert_close(cam.maps(find_logits(model(X)), LABELS), expected.maps)


@pytest.mark.parametrize("wrap", TOLD)
def test_logits_are_told(wrap):
    model = Wrapped(TOLD[wrap][0])
    expected = GradCAM(model.inner, "features").explain(X, LABELS)
    cam = GradCAM(model, "inner.features", output=TOLD[wrap][1])
    assert torch.equal(cam.explain(X, LABELS).maps, expected.maps)
    assert np.array_equal(cam(X, LABELS), GradCAM(model.inner, "features")(X, LABELS))


def test_real_hugging_face_model():
    define_missing_operators()
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = seeded(lambda: transformers.ResNetForImageClassification(config), dtype=torch.float32)
    x = torch.randn(2, 3, 32, 32)
    with untouched(model):
        logits, classes, maps = GradCAM(model, layer_input("resnet.pooler")).explain(x)
    output = model(x)
    assert torch.equal(logits, output.logits)
    assert torch.equal(classes, output.logits.argmax(1))
    features = model.resnet(x).last_hidden_state
    weight = model.classifier[1].weight[classes]
    by_hand = (weight[:, :, None, None] * features).sum(1).relu() / features[0, 0].numel()
    torch.testing.assert_close(maps, by_hand.detach())
    named = GradCAM(model, layer_input("resnet.pooler")).explain(
        x, classes, labels=classes
    )  # forward arguments of its own
    torch.testing.assert_close(named.maps, maps)
    with GradCAM(model, layer_input("resnet.pooler")) as cam:
        torch.testing.assert_close(cam.maps(model(pixel_values=x).logits), maps)


def test_one_sigmoid_output():
    """Read as two classes: class 1 is the map of z, class 0 that of -z."""
    model = deep(classes=1, dtype=torch.float32)
    z = GradCAM(model, "features", rectify=False).explain(X, 0).maps
    cam = DiffGradCAM(model, "features", output=two_logits, rectify=False)
    torch.testing.assert_close(cam.explain(X, 1).maps, z)
    torch.testing.assert_close(cam.explain(X, 0).maps, -z)
    decided = cam.explain(X)
    assert torch.equal(decided.classes, (model(X)[:, 0] > 0).long())


# What models take


class Conditioned(nn.Module):
    """Takes a second input, an option and a mapping, and checks that they arrive."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.head = nn.Linear(CHANNELS + 2, 4)

    def forward(self, x, condition, *, scale=1.0, more=None):
        pooled = torch.cat([self.features(x).tanh().mean((2, 3)), condition], 1)
        return scale * self.head(pooled) + (0 if more is None else more["shift"])


def test_further_arguments_of_the_model():
    model = seeded(Conditioned, dtype=torch.float32)
    condition, shift = torch.randn(3, 2), torch.randn(4)
    expected = model(X, condition, scale=3.0, more={"shift": shift})
    plain = GradCAM(model, "features").explain(X, LABELS.clamp(max=3), condition)
    cam = GradCAM(model, "features")
    explanation = cam.explain(X, LABELS.clamp(max=3), condition, scale=3.0, more={"shift": shift})
    assert torch.equal(explanation.logits, expected)
    torch.testing.assert_close(explanation.maps, 3 * plain.maps)
    by_name = cam.explain(X, LABELS.clamp(max=3), condition=condition, scale=3.0, more={"shift": shift})
    assert torch.equal(by_name.maps, explanation.maps)
    heat = cam(X, LABELS.clamp(max=3), condition=condition, scale=3.0)
    np.testing.assert_allclose(heat, cam(X, LABELS.clamp(max=3), condition=condition), rtol=1e-5, atol=1e-5)
    compared = TrueFalseCAM(model, "features").compare(X, 0, condition, false_classes=1, scale=3.0)
    assert torch.equal(compared.logits, model(X, condition, scale=3.0))
    with torch.inference_mode():
        made_here = cam.explain(X, LABELS.clamp(max=3), condition.clone(), scale=3.0, more={"shift": shift.clone()})
    assert torch.equal(made_here.maps, explanation.maps)


class Mapped(nn.Module):
    """Takes one mapping, as a tokenizer or an image processor gives it."""

    def __init__(self):
        super().__init__()
        self.inner = deep(dtype=torch.float32)

    def forward(self, batch):
        return self.inner(batch["pixel_values"])


def test_input_that_is_no_tensor():
    model = Mapped()
    expected = GradCAM(model.inner, "features").explain(X, LABELS)
    explanation = GradCAM(model, "inner.features").explain({"pixel_values": X}, LABELS)
    assert torch.equal(explanation.maps, expected.maps)


# Wrappers


def same_as_bare(wrapped, bare, layers="features"):
    """Explained by name, by module, all at once and drop-in, the wrapped model gives the maps of the bare one."""
    expected = GradCAM(bare, layers)
    with untouched(wrapped):
        for target in (layers, bare.get_submodule(layers)):
            cam = GradCAM(wrapped, target)
            assert torch.equal(cam.explain(X, LABELS).maps, expected.explain(X, LABELS).maps)
            assert torch.equal(cam.explain(X, "all").maps, expected.explain(X, "all").maps)
            assert np.array_equal(cam(X, LABELS), expected(X, LABELS))
        assert torch.equal(
            LayerCAM(wrapped, layers).explain(X, "all").maps, LayerCAM(bare, layers).explain(X, "all").maps
        )


def trains_as_bare(wrapped, bare, layers="features"):
    """One step with a loss on the maps: the same maps and the same gradients."""
    gradients = []
    expected = GradCAM(bare, layers).explain(X, LABELS).maps
    for model in (bare, wrapped):
        with GradCAM(model, layers) as cam:
            logits = model(X)
            maps = cam.maps(logits, LABELS)
            torch.testing.assert_close(maps, expected)
            (F.cross_entropy(logits, LABELS) + maps.square().mean()).backward()
        gradients.append([parameter.grad.clone() for parameter in bare.parameters()])
        bare.zero_grad()
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("build", [pooled, deep])
def test_data_parallel(build):
    model = build(dtype=torch.float32)
    wrapped = nn.DataParallel(model)
    same_as_bare(wrapped, model)
    if not torch.cuda.is_available():  # it would want the model on the GPU
        trains_as_bare(wrapped, model)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no distributed package")
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'meeting'}", world_size=1, rank=0)
    try:
        model = deep(dtype=torch.float32)
        wrapped = DistributedDataParallel(model)
        same_as_bare(wrapped, model)
        trains_as_bare(wrapped, model)
        same_as_bare(wrapped, model)
    finally:
        torch.distributed.destroy_process_group()


# The compiler looks at .grad of every tensor that it meets in a hook.
looks_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


@pytest.fixture
def compiler():
    """Compiled code of one test is none of the next one's."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
def test_compiled_and_warm():
    """Compiled code ignores hooks that come later, so explanations run the inner module as it is."""
    model = deep(dtype=torch.float32)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    with torch.no_grad():
        logits = compiled(X)
    same_as_bare(compiled, model)
    same_as_bare(nn.DataParallel(compiled), model)
    with torch.no_grad():
        assert torch.equal(compiled(X), logits)
    with (
        GradCAM(compiled, "features") as cam,
        pytest.raises(RuntimeError, match=r"'features' did not run in a recorded .* and attach before torch\.compile"),
    ):
        cam.maps(compiled(X))


@pytest.mark.usefixtures("compiler")
@looks_at_grad
def test_attached_before_compiling():
    model = deep(dtype=torch.float32)
    expected = GradCAM(model, "features").explain(X, LABELS).maps
    with GradCAM(model, "features") as cam:
        compiled = torch.compile(model, backend="eager")
        for _ in range(3):
            torch.testing.assert_close(cam.maps(compiled(X), LABELS), expected)
    assert sum(sum(found.values()) for found in hooks(model).values()) == 0


@pytest.mark.usefixtures("compiler")
@looks_at_grad
def test_compiled_in_place():
    model, twin = deep(dtype=torch.float32), deep(dtype=torch.float32)
    model.compile(backend="eager")
    model(X)
    for classes in (LABELS, "all"):
        with untouched(model):
            maps = GradCAM(model, "features").explain(X, classes).maps
        assert torch.equal(maps, GradCAM(twin, "features").explain(X, classes).maps)
    expected = GradCAM(twin, "features").explain(X, LABELS).maps
    torch.compiler.reset()
    with GradCAM(twin, "features") as cam:  # attached before the model is compiled: later hooks may be left out
        twin.compile(backend="eager")
        torch.testing.assert_close(cam.maps(twin(X), LABELS), expected)


@pytest.mark.usefixtures("compiler")
def test_compiled_models_of_two_threads_run_compiled_afterwards():
    """The stance to compiled code is of the whole process, and the first to begin need not be the last to end."""
    ran = []

    def backend(graph, _examples):
        return lambda *args: ran.append(1) or graph(*args)

    model = torch.compile(deep(dtype=torch.float32), backend=backend)
    model(X)
    assert ran
    one, other = eagerly(model), eagerly(model)
    with contextlib.ExitStack() as second:
        with one:
            second.enter_context(other)
        ran.clear()
        model(X)
        assert not ran  # the second block goes on
    model(X)
    assert ran


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(OrderedDict(backbone()))
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x):
        return self.head(self.body(x).square().mean((2, 3)))


@pytest.mark.usefixtures("compiler")
def test_compiled_part():
    model, twin = (seeded(TwoParts, dtype=torch.float32) for _ in range(2))
    model.body = torch.compile(model.body, backend="eager")
    model(X)
    inner = model.body._orig_mod
    expected = GradCAM(twin, "body").explain(X, LABELS).maps
    for target in ("body", model.body, inner, inner.relu, "body._orig_mod.relu"):
        assert torch.equal(GradCAM(model, target).explain(X, LABELS).maps, expected)
    for target in ("body", model.body):  # the part as a whole is a layer as any other
        with GradCAM(model, target) as cam:
            torch.testing.assert_close(cam.maps(model(X), LABELS), expected)
    with (
        GradCAM(model, inner.features) as cam,
        pytest.raises(RuntimeError, match=r"did not run in a recorded .* and attach before torch\.compile"),
    ):
        cam.maps(model(X))


# Threads


class Meeting(nn.Module):
    """Waits until every thread is here: all are in the middle of the model at once."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def forward(self, x):
        self.barrier.wait(timeout=30)
        return x


@pytest.mark.parametrize("build", [deep, two_sizes])
def test_threads_explain_one_model_at_once(build):
    threads = 3
    plain = build(dtype=torch.float32)
    inputs = [torch.randn(2, 3, 6, 5) for _ in range(threads)]
    layers = ["features", "small"] if build is two_sizes else ["features"]
    expected = [GradCAM(plain, layers).explain(x, number) for number, x in enumerate(inputs)]
    barrier = threading.Barrier(threads)
    parts = OrderedDict()
    for name, part in plain.named_children():
        parts[name] = part
        parts[f"after_{name}"] = Meeting(barrier)
    model = nn.Sequential(parts)
    found, errors = {}, []

    def work(number):
        try:
            for _ in range(5):
                found[number] = GradCAM(model, layers).explain(inputs[number], number)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    with untouched(model):
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert errors == []
    for number in range(threads):
        assert torch.equal(found[number].logits, expected[number].logits)
        assert torch.equal(found[number].maps, expected[number].maps)


def test_a_thread_that_only_runs_the_model_is_not_recorded():
    """A plain forward pass of another thread, in the middle of an explanation, gets no graph and leaves none."""
    barrier = threading.Barrier(2)
    plain = flat(dtype=torch.float32)
    model = nn.Sequential(
        OrderedDict([*plain[:3].named_children(), ("meet", Meeting(barrier)), *plain[3:].named_children()])
    )
    x = X + 1
    found = []

    def work():
        with torch.no_grad():
            found.append(model(x))

    worker = threading.Thread(target=work)
    worker.start()
    maps = GradCAM(model, "features").explain(X, LABELS).maps
    worker.join()
    assert torch.equal(maps, GradCAM(plain, "features").explain(X, LABELS).maps)
    assert not found[0].requires_grad
    assert torch.equal(found[0], plain(x))
