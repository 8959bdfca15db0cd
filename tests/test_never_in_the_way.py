"""Whatever is asked and whatever goes wrong: the model, its gradients, the grad mode and the memory are as before."""

import contextlib
import copy
import gc
import io
import os
import pickle
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import DiffGradCAM, FinerCAM, GradCAM, GradCAMPlusPlus, LayerCAM, TrueFalseCAM, layer_input
from diffgradcam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget

from .models import CHANNELS, backbone, densenet, images, pooled, seeded, two_sizes
from .untouched import hooks, same, state, untouched

MODES = {"grad": contextlib.nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
X = images(2, dtype=torch.float32)
PAIR = torch.tensor([[0, 1], [2, 3]])


class Stop(nn.Module):
    """Raises what it is given, once it is reached."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.error is not None:
            raise self.error("stop")  # a new one each time: it holds the frames that it went through
        return x


def network(before=None, after=None):
    """``stem, norm, before, features, after, pool, head`` in float32; ``before`` and ``after`` may raise."""

    def build():
        stem, _, features, _ = backbone()
        head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("drop", nn.Dropout(0.5))]
        layers = [stem, ("norm", nn.BatchNorm2d(4)), ("before", Stop(before)), features, ("after", Stop(after)), *head]
        return nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(CHANNELS, 5))]))

    return seeded(build, dtype=torch.float32)


def part_of_the_logit(logits, classes):
    """A score of one's own."""
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1).tanh()


ASK = {
    "explain": lambda model: GradCAM(model, "features").explain(X),
    "explain one class": lambda model: GradCAM(model, "features").explain(X, 3),
    "explain two classes": lambda model: LayerCAM(model, "features").explain(X, PAIR),
    "explain all classes": lambda model: GradCAM(model, "features").explain(X, "all"),
    "explain all classes, no closed form": lambda model: GradCAMPlusPlus(model, "features").explain(X, "all"),
    "own score": lambda model: GradCAM(model, "features", score=part_of_the_logit).explain(X, PAIR),
    "contrast": lambda model: DiffGradCAM(model, "features").explain(X, PAIR),
    "Finer-CAM": lambda model: FinerCAM(model, "features").explain(X),
    "two layers": lambda model: GradCAM(model, ["stem", "features"]).explain(X, PAIR),
    "layer input": lambda model: GradCAM(model, layer_input("pool")).explain(X),
    "call": lambda model: GradCAM(model, "features")(X),
    "call with classes": lambda model: DiffGradCAM(model, "features")(X, [1, ClassifierOutputTarget(2)]),
    "call with a callable": lambda model: GradCAM(model, "features")(X, [lambda logits: logits[0] - logits[1]] * 2),
    "smooth call": lambda model: GradCAM(model, "features")(X, aug_smooth=True, eigen_smooth=True),
    "compare": lambda model: TrueFalseCAM(model, "features").compare(X),
    "compare several": lambda model: TrueFalseCAM(model, "features").compare(X, 4, false_classes=PAIR),
    "signed call": lambda model: TrueFalseCAM(model, "features")(X),
}


def fail(*_):
    raise ArithmeticError("stop")


class BrokenWeighting(GradCAM.__base__):
    weighting = staticmethod(fail)


BREAK = {
    "before the layer": lambda: (network(before=ArithmeticError), ASK["explain"]),
    "after the layer": lambda: (network(after=ArithmeticError), ASK["explain"]),
    "between two layers": lambda: (network(before=ArithmeticError), ASK["two layers"]),
    "in the drop-in call": lambda: (network(after=ArithmeticError), ASK["smooth call"]),
    "in compare": lambda: (network(after=ArithmeticError), ASK["compare"]),
    "interrupted": lambda: (network(after=KeyboardInterrupt), ASK["explain"]),
    "in the score": lambda: (network(), lambda model: GradCAM(model, "features", score=fail).explain(X)),
    "in the baseline": lambda: (network(), lambda model: DiffGradCAM(model, "features", baseline=fail).explain(X)),
    "in output=": lambda: (network(), lambda model: GradCAM(model, "features", output=fail).explain(X)),
    "in reshape_transform": lambda: (network(), lambda model: GradCAM(model, "features", fail).explain(X)),
    "in the weighting": lambda: (network(), lambda model: BrokenWeighting(model, "features").explain(X)),
    "in a target": lambda: (network(), lambda model: GradCAM(model, "features")(X, [fail, fail])),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ask", ASK)
def test_nothing_changes(ask, mode):
    model = network()
    model.head.weight.grad = torch.ones_like(model.head.weight)  # the others stay None
    with MODES[mode](), untouched(model):
        ASK[ask](model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", BREAK)
def test_nothing_changes_when_it_raises(where, mode):
    model, ask = BREAK[where]()
    with MODES[mode](), untouched(model), pytest.raises((ArithmeticError, KeyboardInterrupt), match="stop"):
        ask(model)


def test_what_is_compared_can_differ():
    """The comparison notices each kind of change, so that the tests above can fail."""
    changes = {
        "modes": lambda model: model.train(),
        "hooks": lambda model: model.head.register_forward_hook(fail),
        "grads": lambda model: model(X).sum().backward(),
        "buffers": lambda model: model.norm.running_mean.add_(1),
        "parameters": lambda model: model.head.bias.data.add_(1),
        "requires_grad": lambda model: model.requires_grad_(False),
        "attributes": lambda model: setattr(model.head, "kept", 1),
        "random numbers": lambda _: torch.rand(1),
    }
    for key, change in changes.items():
        model = network()
        before = state(model)
        change(model)
        assert not same(before[key], state(model)[key]), key


@pytest.mark.parametrize("ask", ["explain", "explain all classes", "two layers", "call", "compare"])
def test_train_mode_counts_as_one_forward_pass(ask):
    model = network().train()
    model.before.eval()  # a mixture of modes stays what it is
    plain = copy.deepcopy(model)
    plain.drop.p = model.drop.p = 0.0
    plain(X)
    assert plain.norm.num_batches_tracked == 1
    told = pytest.warns(
        UserWarning, match=r"^the model is in training mode \(norm, BatchNorm2d\).*model\.eval\(\) first$"
    )
    with untouched(model, buffers=False), told if ask == "call" else contextlib.nullcontext():
        ASK[ask](model)
    assert same(dict(plain.named_buffers()), dict(model.named_buffers()))


@pytest.mark.parametrize(("options", "passes"), [({}, 1), ({"eigen_smooth": True}, 1), ({"aug_smooth": True}, 2)])
def test_the_call_warns_of_training_mode_once_for_each_forward_pass(options, passes):
    model = network().train()
    with pytest.warns(UserWarning, match=r"^the model is in training mode \(norm, BatchNorm2d\): .*") as told:
        GradCAM(model, "features")(X, **options)
    assert len(told) == passes  # all other versions of these images fit into one batch
    assert model.norm.num_batches_tracked == passes
    model.norm.eval(), model.drop.eval()
    GradCAM(model, "features")(X, **options)  # nothing that draws or counts is in training mode


def test_dropout_draws_as_in_one_forward_pass():
    model = network().train()
    torch.manual_seed(5)
    logits = copy.deepcopy(model)(X)
    following = torch.rand(3)
    torch.manual_seed(5)
    explained = GradCAM(model, "features").explain(X, "all")
    assert torch.equal(explained.logits, logits)
    assert torch.equal(torch.rand(3), following)


def test_maps_touch_no_grad():
    model = network()
    with GradCAM(model, ["stem", "features"]) as cam:
        logits = model(X)
        with untouched(model):
            maps = cam.maps(logits, "all")
        assert maps.requires_grad
        with untouched(model):
            assert torch.autograd.grad(maps.sum(), model.stem.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("method", [GradCAM, DiffGradCAM, TrueFalseCAM])
@pytest.mark.parametrize("mode", [True, False])
def test_attached_training_step_is_the_plain_one(method, mode):
    """Same logits, same gradients, same buffers, bit by bit, when the maps are looked at but not trained on."""
    model = network().train(mode)
    twin = copy.deepcopy(model)
    labels = torch.tensor([1, 4])
    torch.manual_seed(0)
    F.cross_entropy(twin(X), labels).backward()
    torch.manual_seed(0)
    with method(model, ["stem", "features"]) as cam:
        logits = model(X)
        assert cam.maps(logits, labels).shape == (2, 6, 5)
        F.cross_entropy(logits, labels).backward()
    assert same(state(twin)["grads"], state(model)["grads"])
    assert same(state(twin)["buffers"], state(model)["buffers"])
    assert same(hooks(twin), hooks(model))


def test_with_block_that_raises_removes_the_hooks():
    model = network()

    def use():
        with GradCAM(model, "features") as cam:
            cam.maps(model(X))
            fail()

    with untouched(model), pytest.raises(ArithmeticError, match="stop"):
        use()


def test_attach_twice_hooks_once_and_detach_twice_is_fine():
    model = network()
    before = hooks(model)
    cam = GradCAM(model, "features").attach().attach()
    assert hooks(model)["features"]["_forward_hooks"] == 1
    cam.detach()
    cam.detach()
    assert hooks(model) == before


def test_making_a_cam_hooks_nothing():
    model = network()
    with untouched(model):
        cam = GradCAM(model, "features")
    assert cam.model is model


@contextlib.contextmanager
def no_collector():
    """Reference counting alone must free everything: the cycle collector is off."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spy(model):
    """Weak references to what every layer puts out from now on."""
    seen = []
    for module in model.modules():
        module.register_forward_hook(lambda _module, _args, output: seen.append(weakref.ref(output)))
    return seen


def alive(seen):
    return sum(reference() is not None for reference in seen)


@pytest.mark.parametrize("ask", ASK)
def test_no_activation_stays_alive(ask):
    model = network()
    seen = spy(model)
    with no_collector():
        result = ASK[ask](model)
        assert len(seen) >= len(list(model.modules()))
        # A returned tensor of logits may well be the very one that the model put out, without a graph.
        assert not any(tensor.requires_grad for tensor in result if isinstance(tensor, torch.Tensor))
        del result
        assert alive(seen) == 0


@pytest.mark.parametrize("where", BREAK)
def test_no_activation_stays_alive_when_it_raises(where):
    model, ask = BREAK[where]()
    seen = spy(model)
    with no_collector():
        with contextlib.suppress(ArithmeticError, KeyboardInterrupt):  # pytest.raises would keep the frames
            ask(model)
        assert seen
        assert alive(seen) == 0


def test_explanation_keeps_no_activation():
    """Also while logits and maps are kept."""
    model = network()
    seen = spy(model)
    with no_collector():
        kept = [GradCAM(model, "features").explain(X, "all"), GradCAM(model, "features").explain(X)]
        assert all(tensor.grad_fn is None for explanation in kept for tensor in explanation)
        # What is left are the logits, of which the explanation has a view.
        assert all(reference() is None or reference().shape == (2, 5) for reference in seen)


def test_attached_forward_passes_keep_nothing_once_their_logits_are_gone():
    model = network()
    seen = spy(model)
    with no_collector(), GradCAM(model, ["stem", "features"]) as cam:
        logits = model(X)
        assert alive(seen) > 0  # the graph of the logits: as without the CAM
        del logits
        assert alive(seen) == 0
        logits = model(X)
        maps = cam.maps(logits, 1)
        del logits, maps
        assert alive(seen) == 0
        logits = model(X)
        (F.cross_entropy(logits, torch.tensor([0, 1])) + cam.maps(logits).square().mean()).backward()
        del logits
        assert alive(seen) == 0


def test_logits_alone_keep_the_graph_and_nothing_else():
    """An attached CAM adds no strong reference: what is alive with it is alive without it."""
    model, twin = network(), network()
    seen, plain = spy(model), spy(twin)
    with no_collector(), GradCAM(model, "features"):
        logits, bare = model(X), twin(X)
        assert alive(seen) <= alive(plain) + 1  # the features themselves, for the maps
        del logits, bare
        assert alive(seen) == alive(plain) == 0


def test_cam_and_model_die_without_the_collector():
    with no_collector():
        model = network()
        cam = GradCAM(model, "features")
        cam.explain(X)
        cam(X)
        with cam:
            cam.maps(model(X))
        references = weakref.ref(model), weakref.ref(cam)
        del model, cam
        assert [reference() for reference in references] == [None, None]


def test_deleting_an_attached_cam_removes_its_hooks():
    model = network()
    with no_collector(), untouched(model):
        cam = GradCAM(model, ["features", layer_input("head")]).attach()
        assert sum(hooks(model)["features"].values()) == 1
        del cam


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from /proc")
def test_memory_is_flat_over_1000_calls():
    """An activation has 128 KiB: one that is kept in ten calls would show."""
    head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", nn.Linear(32, 5))]
    model = nn.Sequential(OrderedDict([("stem", nn.Conv2d(3, 8, 1)), ("features", nn.Conv2d(8, 32, 1)), *head]))
    x = torch.randn(1, 3, 32, 32)
    cams = GradCAM(model, "features"), DiffGradCAM(model, ["stem", "features"]), TrueFalseCAM(model, "features")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def calls(number):
        for step in range(number):
            cam = cams[step % 3]
            if step % 4 == 0:
                with cam:
                    cam.maps(model(x)).sum().backward()
            elif step % 4 == 1:
                with pytest.raises(ValueError, match="class 99 is out of range"):
                    cam.explain(x, 99)
            else:
                cam.explain(x, step % 5)

    calls(100)
    before = resident()
    calls(1000)
    assert resident() - before < 12


def test_number_of_objects_is_flat():
    """The cycle collector sees no more objects after more calls."""
    model = network()
    cams = GradCAM(model, "features"), DiffGradCAM(model, ["stem", "features"]), TrueFalseCAM(model, "features")

    def calls(number):
        for _ in range(number):
            for cam in cams:
                cam.explain(X)
                cam(X)
                with cam:
                    cam.maps(model(X))
                with contextlib.suppress(ValueError):
                    cam.explain(X, 99)
            GradCAM(model, "features").attach()

    with no_collector():
        calls(3)
        before = len(gc.get_objects())
        calls(10)
        assert len(gc.get_objects()) - before < 10


def test_copy_of_an_attached_model_is_a_plain_model():
    model = network()
    x = X.clone()
    with GradCAM(model, "features") as cam:
        twin = copy.deepcopy(model)
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        loaded = torch.load(stored, weights_only=False)
        logits = model(x)
        for other in (twin, loaded):
            assert torch.equal(other(x), logits)
            assert not hasattr(other(x).grad_fn, "diffgradcam")
            with pytest.raises(RuntimeError, match="a forward pass that was not recorded"):
                cam.maps(other(x))
            assert torch.equal(GradCAM(other, "features").explain(x).maps, cam.explain(x).maps)
        torch.testing.assert_close(cam.maps(logits).detach(), cam.explain(x).maps)
        with no_collector():
            reference = weakref.ref(twin)
            del twin, other
            assert reference() is None


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda cam: pickle.loads(pickle.dumps(cam))])
def test_copy_of_a_cam(clone, attached):
    cam = DiffGradCAM(network(), ["stem", "features"], baseline="max", rectify=False)
    expected = cam.explain(X).maps
    if attached:
        cam.attach()
        cam.maps(cam.model(X))
    twin = clone(cam)
    assert torch.equal(twin.explain(X).maps, expected)
    hooked = hooks(cam.model)["features"]["_forward_hooks"]
    with twin:
        assert torch.equal(twin.maps(twin.model(X)), expected)
    del twin
    assert hooks(cam.model)["features"]["_forward_hooks"] == hooked == attached


def test_deep_copy_of_a_cam_explains_its_own_model():
    cam = GradCAM(network(), "features")
    twin = copy.deepcopy(cam)
    before = cam.explain(X).maps
    twin.model.features.weight.data.zero_()
    assert torch.equal(cam.explain(X).maps, before)
    assert not torch.equal(twin.explain(X).maps, before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("build", [pooled, densenet, two_sizes, network])
def test_maps_are_the_same_in_every_mode(build, frozen, mode):
    """Frozen or not, with gradients or not, with an input that was made under inference_mode or not."""
    model = build()
    layers = ["features", "small"] if build is two_sizes else ["features"]
    x = X.to(next(model.parameters()).dtype)
    labels = torch.tensor([1, 4])

    def ask(given, classes):
        return [
            GradCAM(model, layers).explain(given, "all").maps,
            LayerCAM(model, layers).explain(given, classes).maps,
            TrueFalseCAM(model, layers).compare(given, classes, false_classes=(classes + 1) % 5).difference,
            FinerCAM(model, layers).explain(given).maps,
            GradCAM(model, layers)(given, classes),
        ]

    expected = ask(x, labels)
    model.requires_grad_(not frozen)
    with MODES[mode]():
        made_here = x.clone(), labels.clone()
        assert made_here[0].is_inference() == made_here[1].is_inference() == (mode == "inference_mode")
        for given in ((x, labels), made_here):
            results = ask(*given)
            assert all(map(np.array_equal, results, expected))
            assert not any(result.is_inference() for result in results[:4])


@pytest.mark.parametrize("layer", ["features", layer_input("stem"), layer_input("features")])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode])
def test_input_made_under_inference_mode(layer, mode):
    """Also where the input itself is the layer: autograd refuses such tensors."""
    model = densenet() if layer != layer_input("stem") else pooled()
    expected = GradCAM(model, layer).explain(images(2), "all").maps
    with torch.inference_mode():
        x = images(2)
    assert x.is_inference()
    with mode():
        assert torch.equal(GradCAM(model, layer).explain(x, "all").maps, expected)


def test_input_that_requires_a_gradient_gets_none():
    x = X.clone().requires_grad_()
    model = network()
    for layer in ("stem", layer_input("stem"), "features"):
        maps = GradCAM(model, layer).explain(x).maps
        assert not maps.requires_grad
        assert x.grad is None


def test_maps_of_a_frozen_model():
    """Nothing below the layer requires a gradient, and still the map is one of a graph that reaches the layer."""
    model = network()
    expected = GradCAM(model, "features").explain(X).maps
    model.requires_grad_(False)
    with GradCAM(model, "features") as cam:
        maps = cam.maps(model(X))
    torch.testing.assert_close(maps.detach(), expected)
    assert maps.requires_grad


def test_frozen_backbone_trains_its_head_through_the_maps():
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    with GradCAM(model, "features") as cam:
        cam.maps(model(X), 0).sum().backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert model.stem.weight.grad is None


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_maps_within_a_mode_that_came_later(mode):
    """The forward pass had gradients; asking for the maps under another mode changes nothing."""
    model = network()
    with GradCAM(model, "features") as cam:
        logits = model(X)
        expected = cam.maps(logits)
        with MODES[mode](), untouched(model):
            maps = cam.maps(logits)
    assert torch.equal(maps, expected)
    assert not maps.is_inference()
    maps.sum().backward()
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_attached_evaluation_passes_are_plain(mode):
    model = network()
    with MODES[mode]():
        expected = model(X)
        with GradCAM(model, "features"), untouched(model):
            assert torch.equal(model(X), expected)


class Smallest(nn.Module):
    """One channel, one position, one input channel."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 1, 3)
        self.head = nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def test_one_channel_and_one_position():
    """By hand: the map is relu(w_c * A) for the single cell."""
    model = seeded(Smallest)
    x = torch.rand(4, 1, 3, 3, dtype=torch.float64)
    features = model.features(x)
    for label in (0, 1):
        maps = GradCAM(model, "features").explain(x, label).maps
        assert maps.shape == (4, 1, 1)
        torch.testing.assert_close(maps, (model.head.weight[label] * features).relu()[:, 0].detach())
    # A single cell has no contrast to show.
    assert (GradCAM(model, "features")(x) == 0).all()
    assert GradCAM(model, "features")(x).shape == (4, 3, 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_number_of_dimensions(dims):
    """Naive Grad-CAM, in a loop over images."""
    model, x = pooled(dims=dims), images(3, dims)
    explanation = GradCAM(model, "features").explain(x, 2)
    features = model.relu(model.features(model.act(model.stem(x)))).detach()
    signed = model.features(model.act(model.stem(x))).detach()
    for image in range(3):
        expected = torch.zeros(x.shape[2:], dtype=torch.float64)
        for channel in range(CHANNELS):
            open_share = (features[image, channel] > 0).double().mean()  # the gradient of relu and of the mean
            expected += model.head.weight[2, channel].detach() * open_share * signed[image, channel]
        torch.testing.assert_close(explanation.maps[image] * features[0, 0].numel(), expected.relu())
    heat = GradCAM(model, "features")(x)
    assert heat.shape == (3, *x.shape[2:])
    assert heat.min() == 0
    assert heat.max() == 1


@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, LayerCAM, DiffGradCAM, FinerCAM, TrueFalseCAM])
def test_batch_of_one_and_of_none(method):
    model = pooled()
    cam = method(model, "features")
    x = images(3)
    batch = cam.explain(x)
    for image in range(3):
        alone = cam.explain(x[image : image + 1])
        torch.testing.assert_close(alone.maps[0], batch.maps[image])
    for classes, shape in ((None, (0,)), (torch.empty(0, 2, dtype=torch.long), (0, 2))):
        logits, index, maps = cam.explain(x[:0], classes)
        assert (logits.shape, index.shape, maps.shape) == ((0, 5), shape, (*shape, 6, 5))
    assert cam(x[:0]).shape == (0, 6, 5)
    assert cam(x[:0], []).shape == (0, 6, 5)
    with cam:
        assert cam.maps(model(x[:0])).shape == (0, 6, 5)


def test_outputs_of_the_last_call():
    model = network()
    cam = GradCAM(model, "features")
    cam(X, [ClassifierOutputTarget(0)] * 2)
    assert torch.equal(cam.outputs, model(X).detach())
    assert cam.outputs.grad_fn is None


def test_segmentation_mask_made_under_inference_mode():
    model = nn.Sequential(OrderedDict([*backbone(), ("classifier", nn.Conv2d(CHANNELS, 3, 1))])).eval()
    mask = np.zeros((6, 5))
    mask[1:3] = 1
    expected = GradCAM(model, "features")(X, [SemanticSegmentationTarget(1, mask)] * 2)
    with torch.inference_mode():
        target = SemanticSegmentationTarget(1, mask)
        assert target.mask.is_inference()
        assert np.array_equal(GradCAM(model, "features")(X, [target] * 2), expected)
    assert expected.max() == 1
