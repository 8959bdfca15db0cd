"""A model that runs from a layer on: the same as a hook in the whole model, without what lies below."""

import copy
import threading
import types
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import AblationCAM, GradCAM, layer_input
from diffgradcam._core import forward as forward_module
from diffgradcam._core import upper
from tests import models
from tests.methods import exact
from tests.untouched import untouched

CLASSES = torch.tensor([0, 3, 1])


class Hooked:
    """What an ablation is compared with: the whole model with a hook."""

    remembers = False

    def __init__(self, _model, layer, whole, _replica, change, _logits):
        self.layer, self.whole, self.change = layer, whole, change

    def __call__(self, rows, which):
        runs = []

        def replaced(value):
            runs.append(1)
            return self.change(value, which) if self.layer.run in (None, len(runs) - 1) else value

        if self.layer.entering:
            handle = self.layer.module.register_forward_pre_hook(lambda _module, args: (replaced(args[0]), *args[1:]))
        else:
            handle = self.layer.module.register_forward_hook(lambda _module, _args, output: replaced(output))
        with handle:
            return self.whole(rows)


def count_runs(model):
    """How many images each module saw, by name."""
    seen = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, args, _output, name=name: seen.update({name: len(args[0])}), prepend=True
        )
    return seen


def ablated(model, layer, **options):
    options = {"progress": False, "rectify": False, "batch_size": 4} | options
    return AblationCAM(model, layer, **options).explain(models.images(), CLASSES).maps


def both(monkeypatch, model, layer, **options):
    """The maps, and those with a hook in the whole model."""
    with untouched(model):
        found = ablated(model, layer, **options)
    with monkeypatch.context() as patch:
        patch.setattr(forward_module, "FromLayer", Hooked)
        expected = ablated(model, layer, **options)
    assert float(expected.abs().max()) > 1e-3
    return found, expected


class Residual(nn.Module):
    """A block whose activation is shared, and whose skip connection passes every layer in it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.second(self.act(self.first(x)))
        out += x
        return self.act(out)


class Network(nn.Module):
    """Blocks, one activation for all of them, a branch past the layers, and arguments of all kinds."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList([Residual(), Residual(), Residual()])
        self.act = nn.Tanh()
        self.gate = Pair()
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        early = self.blocks[0](x)
        (kept, size), scale = self.gate(early)
        late = self.act(self.blocks[2](self.blocks[1](kept))) * scale["by"]
        assert late.shape[2:] == size
        if bool(late.mean() > 100):  # control flow that looks at values
            late = -late
        return self.head(torch.cat([early.mean((2, 3)), late.mean((2, 3))], 1))


class Pair(nn.Module):
    """Returns a nest of tensors, and sizes that are none."""

    def forward(self, x):
        return (x * 2, x.shape[2:]), {"by": x.amax((2, 3), keepdim=True), "none": None}


def network():
    return models.seeded(Network)


LAYERS = {
    "the first layer": ("stem", {}),
    "a block": ("blocks.1", {}),
    "the last block": ("blocks.2", {}),
    "inside a block": ("blocks.1.first", {}),
    "past the skip connection": ("blocks.1.second", {}),
    "what enters a block": (layer_input("blocks.2"), {}),
    "the first run": ("blocks.2.act", {"run": "first"}),
    "the last run": ("blocks.2.act", {"run": "last"}),
    "the run of a shared activation": ("act", {"run": 1}),
    "each run": ("act", {"run": "all"}),
    "several layers": (["blocks.0", "blocks.2"], {}),
    "the strongest channels": ("blocks.1", {"channels": 2}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_equals_the_whole_model_with_a_hook(name, monkeypatch):
    layer, options = LAYERS[name]
    exact(*both(monkeypatch, network(), layer, **options))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_size_does_not_matter(batch_size, monkeypatch):
    exact(*both(monkeypatch, network(), "blocks.1.second", batch_size=batch_size))


class SharedBelow(nn.Module):
    """An activation that runs inside a block, beside it, and once more as the layer."""

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 1), self.act, nn.Conv2d(4, 6, 1), self.act)
        self.conv = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.act(self.conv(self.act(self.block(x))))
        return self.head(self.act(x).mean((2, 3)))


@pytest.mark.parametrize("run", range(5))
def test_runs_inside_what_is_left_out_are_counted(run, monkeypatch):
    exact(*both(monkeypatch, models.seeded(SharedBelow), "act", run=run))


class Turned(nn.Module):
    """Returns positions before images, and a word."""

    def forward(self, x):
        return x.transpose(0, 1), "turned"


class Total(nn.Module):
    """Returns one number for all images."""

    def forward(self, x):
        return (x.detach() * 0).sum()


class Mixed(nn.Module):
    """Returns a row for each image; what runs within it does not."""

    def __init__(self):
        super().__init__()
        self.turned, self.total = Turned(), Total()

    def forward(self, x):
        turned, word = self.turned(x)
        assert word == "turned"
        return turned.transpose(0, 1) + self.total(x)


class AllSorts(nn.Module):
    """Below the layer, modules that are called by keyword, and that return all sorts of things."""

    def __init__(self):
        super().__init__()
        self.stem, self.mixed, self.turned, self.total = nn.Conv2d(3, 6, 1), Mixed(), Turned(), Total()
        self.features, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.mixed(self.stem(input=x))
        turned, _ = self.turned(x)
        return self.head(self.features(turned.transpose(0, 1) + self.total(x)).tanh().mean((2, 3)))


@pytest.fixture
def made(monkeypatch):
    """What ran from the layer on."""
    found = []

    class Watched(forward_module.FromLayer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            found.append(self)

    monkeypatch.setattr(forward_module, "FromLayer", Watched)
    return found


REMEMBERED = {
    # Of the other two the first result differs: the control flow looks at the values of all rows at once.
    **{name: (Network, *LAYERS[name]) for name in LAYERS if name not in ("past the skip connection", "the last run")},
    **{f"run {run} of a shared one": (SharedBelow, "act", {"run": run}) for run in range(5)},
    "all sorts": (AllSorts, "features", {}),
}


@pytest.mark.parametrize("name", REMEMBERED)
def test_nothing_had_to_run_as_a_whole(name, made):
    build, layer, options = REMEMBERED[name]
    ablated(models.seeded(build), layer, **options)
    assert made
    for each in made:
        assert each._remembered is not None
        assert each._compared


def test_only_what_has_a_row_for_each_image_is_remembered(made):
    ablated(models.seeded(AllSorts), "features")
    # The calls, from 0: the model, stem, mixed and the two within, turned, total, features.
    assert sorted(made[0]._remembered._done) == [1, 2, 7]
    assert made[0]._remembered._done[2].calls == 3


def test_replicas_have_hooks_and_a_forward_of_their_own():
    seen, model = [], KnowsItself().double()
    replicas = upper._replicate(
        model, lambda module, forward, args, kwargs: seen.append(module) or forward(*args, **kwargs)
    )
    assert torch.equal(replicas[model](models.images()), model(models.images()))
    assert seen[0] is replicas[model]
    assert replicas[model.inner.stem] in seen
    assert (replicas[model].calls, model.calls) == (1, 1)
    replicas[model.inner.stem].register_forward_hook(lambda *_: None)
    assert not model.inner.stem._forward_hooks
    with pytest.raises(RuntimeError, match="compiled modules cannot be replicated"):
        upper._replicate(nn.Sequential(torch.compile(nn.ReLU(), backend="eager")), None)


def test_values_are_the_same_up_to_a_share_of_the_largest():
    for scale in (1e-4, 1.0, 1e4):
        values = scale * torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
        share = scale * torch.finfo(torch.float64).eps ** 0.5
        assert upper.same_values(values + 0.9 * share, values)
        assert not upper.same_values(values + 1.1 * share, values)
    assert not upper.same_values(torch.zeros(2), torch.zeros(3))
    assert upper.same_values(torch.zeros(0), torch.zeros(0))


def test_what_lies_below_runs_a_few_times_only():
    model = network()
    seen = count_runs(model)
    ablated(model, "blocks.2.first")
    # The explained forward pass, and one row to compare; the replica has hooks of its own, but these count too.
    # Of blocks below, no more than the note: 3 images.
    assert seen["blocks.0.first"] == 3 + 3 + 1
    assert seen["blocks.2.second"] == 3 + 3 + 3 + 1 + 3 * 6


def test_nothing_is_remembered_in_training_mode(monkeypatch):
    model = network()
    model.blocks[1].train()  # nothing in it is random
    exact(*both(monkeypatch, model, "blocks.2"))
    seen = count_runs(model)
    ablated(model, "blocks.2")
    assert seen["stem"] == 3 + 3 * 6


# Models that cannot run like this: the whole model runs, and nothing is wrong


class OverwritesWhatIsBelow(nn.Module):
    """Adds to the output of a layer below, in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.features = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x += 1
        return self.head(F.relu(self.features(x), inplace=True).mean((2, 3)))


class PositionsFirst(nn.Module):
    """Positions before images: as many of them as there are images, here."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, (2, 5), stride=(2, 5))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Conv1d(6, 6, 3, padding=1)
        self.head = nn.Linear(18, 5)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).permute(2, 0, 1))
        return self.head(self.mix(x.permute(1, 2, 0)).tanh().flatten(1))


class KnowsItself(nn.Module):
    """A forward of the instance, a list that hides a module, and a counter."""

    def __init__(self):
        super().__init__()
        self.inner = models.deep()
        self.hidden = [self.inner.features]
        self.calls = 0
        self.forward = types.MethodType(KnowsItself.run, self)

    def run(self, x):
        self.calls += 1
        return self.inner.head(self.inner.tanh(self.inner.hidden(self.inner.flatten(self.inner.relu(self.hide(x))))))

    def hide(self, x):
        return self.hidden[0](self.inner.act(self.inner.stem(x)))


class CallsForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = models.deep()

    def forward(self, x):
        return self.inner.forward(x)


class Alternates(nn.Module):
    """Does something else in every other run."""

    def __init__(self):
        super().__init__()
        self.inner, self.runs = models.deep(), [0]

    def forward(self, x):
        self.runs[0] += 1
        return self.inner(x) + (self.runs[0] % 2) * 0


UNUSUAL = {
    "OverwritesWhatIsBelow": (OverwritesWhatIsBelow, "features"),
    "PositionsFirst": (PositionsFirst, "mix"),
    "KnowsItself": (KnowsItself, "inner.relu"),
    "KnowsItself, the hidden layer": (KnowsItself, "inner.features"),
    "CallsForward": (CallsForward, "inner.relu"),
    "Alternates": (Alternates, "inner.relu"),
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_unusual_models(name, batch_size, monkeypatch):
    build, layer = UNUSUAL[name]
    torch.manual_seed(0)
    model = build().double().eval()
    expected = ablated(copy.deepcopy(model), layer, batch_size=batch_size)
    exact(both(monkeypatch, model, layer, batch_size=batch_size)[1], expected)


class DiffersInReplicas(nn.Module):
    """Right in its own modules, wrong in any copy of them, for ablated activations alone."""

    def __init__(self):
        super().__init__()
        self.inner = models.deep()
        self.me = [self]

    def forward(self, x):
        x = self.inner.relu(self.inner.features(self.inner.act(self.inner.stem(x))))
        x = x if self.me[0] is self or bool((x != 0).flatten(2).any(2).all()) else x * 3
        return self.inner.head(self.inner.tanh(self.inner.hidden(self.inner.flatten(x))))


def test_a_replica_that_differs_for_ablated_activations_alone_is_found_out(monkeypatch):
    model = DiffersInReplicas().eval()
    exact(*both(monkeypatch, model, "inner.relu"))
    exact(*both(monkeypatch, DiffersInReplicas().eval(), "inner.relu", batch_size=1))


def test_hooks_of_the_user_run_and_other_cams_may_be_attached(monkeypatch):
    model = network()
    model.blocks[1].register_forward_hook(lambda _module, _args, output: output * 2)
    model.blocks[2].first.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    with GradCAM(model, "blocks.2"):
        exact(*both(monkeypatch, model, "blocks.1"))
        exact(*both(monkeypatch, model, "blocks.2"))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_script_module_inside(monkeypatch):
    model = network()
    model.blocks[0] = torch.jit.trace(model.blocks[0], torch.zeros(1, 6, 6, 5).double())
    exact(*both(monkeypatch, model, "blocks.2"))


def test_threads_may_explain_one_model():
    model = network()
    layers = ["blocks.1", "blocks.2", "blocks.2.first", "stem"] * 2
    expected = [ablated(model, layer) for layer in layers]
    found = [None] * len(layers)

    def explain(number):
        found[number] = ablated(model, layers[number])

    with untouched(model):
        threads = [threading.Thread(target=explain, args=(number,)) for number in range(len(layers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(found, expected, strict=True):
        exact(one, other)
