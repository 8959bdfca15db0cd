"""Ctrl-C and errors of the user's own in the middle of everything long: the model is as it was, and runs on.

``tests/test_never_in_the_way.py`` raises before, between and after the layers in ``explain``, the call and ``compare``,
and in every function that the user passes. Here the model raises at its n-th forward pass, for everything that makes
several, and Ctrl-C comes between any two lines of the library.
"""

import linecache
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diffgradcam
from diffgradcam import metrics, sham
from diffgradcam.data import explain_dataset
from diffgradcam.heatmaps import minmax
from tests.models import CHANNELS, backbone, images, seeded, transformer
from tests.untouched import hooks, untouched

X = images(4, dtype=torch.float32)
HUMAN = images(4, seed=1).mean(1)
LARGE = X.repeat(1, 1, 2, 2)
LABELS = torch.tensor([0, 1, 2, 3])
MASK = sham.border_mask((6, 5), 18)
QUIET = {"progress": False}


class Fuse(nn.Module):
    """Raises in its n-th forward pass, in this model or in any copy of it."""

    def __init__(self, left=None, error=None):
        super().__init__()
        self.left = left or [10**9]
        self.error = error or [KeyboardInterrupt]

    def __deepcopy__(self, _memo):
        return Fuse(self.left, self.error).train(self.training)

    def forward(self, x):
        self.left[0] -= 1
        if self.left[0] < 0:
            raise self.error[0]("stop")
        return x


def network():
    """``stem, norm, act, features, relu, fuse, pool, head``, in evaluation mode."""

    def build():
        stem, *layers = backbone()
        head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        parts = [stem, ("norm", nn.BatchNorm2d(4)), *layers, ("fuse", Fuse()), *head]
        return nn.Sequential(OrderedDict([*parts, ("head", nn.Linear(CHANNELS, 5))]))

    return seeded(build, dtype=torch.float32)


def cam(model, **options):
    return diffgradcam.GradCAM(model, "relu", **options)


def loader():
    # With a generator of its own: without one, whoever iterates a loader draws a global random number.
    return DataLoader(TensorDataset(X, LABELS), batch_size=2, generator=torch.Generator())


# name: (what to do with a model and a folder, how many forward passes it makes at least)
LONG = {
    "explain": (lambda model, _: cam(model).explain(X), 1),
    "explain_together": (lambda model, _: diffgradcam.explain_together([cam(model)], X), 1),
    "ScoreCAM": (lambda model, _: diffgradcam.ScoreCAM(model, "relu", batch_size=4, **QUIET).explain(X), 7),
    "AblationCAM": (lambda model, _: diffgradcam.AblationCAM(model, "relu", batch_size=4, **QUIET).explain(X), 7),
    "SSCAM": (lambda model, _: diffgradcam.SSCAM(model, "relu", samples=2, **QUIET).explain(X), 3),
    "SmoothGradCAM++": (lambda model, _: diffgradcam.SmoothGradCAMPlusPlus(model, "relu", samples=3).explain(X), 4),
    "FullGrad": (lambda model, _: diffgradcam.FullGrad(model).explain(X), 1),
    "RefineCAM": (lambda model, _: diffgradcam.RefineCAM(model, ["stem", "relu"]).explain(X), 1),
    "NoiseSmooth": (lambda model, _: diffgradcam.NoiseSmooth(cam(model), samples=3, batch_size=4)(X), 4),
    "AugSmooth": (lambda model, _: diffgradcam.AugSmooth(cam(model), batch_size=4).explain(X), 4),
    "SESS": (lambda model, _: diffgradcam.SESS(cam(model), scales=1, blur=0, batch_size=4).explain(X), 3),
    "guided_gradcam": (lambda model, _: diffgradcam.analysis.guided_gradcam(cam(model), X), 2),
    "important_features": (lambda model, _: diffgradcam.important_features(model, X[0], "relu"), 1),
    "factorization": (lambda model, _: diffgradcam.DeepFeatureFactorization(model, "relu").explain(X, 2), 1),
    "audit": (lambda model, _: diffgradcam.audit(model, "relu", LARGE, **QUIET), 4),
    "benchmark": (
        lambda model, _: diffgradcam.benchmark(model, network(), {"GradCAM": cam}, loader(), resamples=0, **QUIET), 2,
    ),
    "finetune": (lambda model, _: sham.finetune(model, loader(), "relu", MASK, epochs=1, **QUIET), 5),
    "common_mode_hoax": (lambda model, _: sham.common_mode_hoax(model, "relu", X, MASK), 1),
    "spatial_hoax": (lambda model, _: sham.spatial_hoax(model, "relu", torch.arange(30).flip(0))(X), 1),
    "explain_dataset": (lambda model, folder: explain_dataset(cam(model), loader(), folder, **QUIET), 2),
    "deletion": (lambda model, _: metrics.deletion(metrics.Evaluator(model, batch_size=4), X, HUMAN, steps=4), 5),
    "insertion": (lambda model, _: metrics.insertion(metrics.Evaluator(model, batch_size=4), X, HUMAN, steps=4), 5),
    "road": (lambda model, _: metrics.road(metrics.Evaluator(model), X, HUMAN), 5),
    "average_drop": (lambda model, _: metrics.average_drop(metrics.Evaluator(model), X, HUMAN), 2),
    "infidelity": (lambda model, _: metrics.infidelity(metrics.Evaluator(model, batch_size=4), X, HUMAN, samples=4), 3),
    "max_sensitivity": (lambda model, _: metrics.max_sensitivity(cam(model), X, samples=3), 4),
    "model_randomization": (
        lambda model, _: metrics.model_randomization(cam, model, X, layers=["head", "features"]), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("error", "training"),
    [
        pytest.param(KeyboardInterrupt, False, id="Ctrl-C"),
        pytest.param(ArithmeticError, False, id="error", marks=pytest.mark.siege),
        pytest.param(KeyboardInterrupt, True, id="Ctrl-C in training mode", marks=pytest.mark.siege),
    ],
)
@pytest.mark.filterwarnings("ignore:the model is in training mode")  # as it is here
@pytest.mark.parametrize("name", LONG)
def test_the_model_raises_at_its_nth_forward_pass(name, error, training, tmp_path):
    """And afterwards the same call succeeds."""
    work, passes = LONG[name]
    model = network().train(training)
    if training and name == "FullGrad":
        pytest.skip("refuses a model in training mode")
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.fuse.error[0] = error
    # In training mode the batch normalisation has counted the passes that were made, as it would without us.
    for n in sorted({0, passes // 2, passes - 1}):
        model.fuse.left[0] = n
        with untouched(model, buffers=not training), pytest.raises(error, match=r"^stop$"):
            work(model, tmp_path / str(n))
    model.fuse.left[0] = 10**9
    with untouched(model, buffers=not training):
        work(model, tmp_path / ("other" if training else "0"))  # a data set goes on where it was stopped


# No Python code is safe while a with statement is being entered or left, or a finalizer runs: a few lines of many.
NOT_WITHIN = (
    "__enter__",
    "__exit__",
    "attach",
    "detach",
    "replaced",
    "evaluating",
    "_recorded_biases",
    "_recorded_calls",
    "block",
)


def is_no_place(frame, last):
    """Whether Ctrl-C cannot come at a line that a trace function sees: Python looks for it after calls and jumps back.

    That is a ``with`` seen again, when its block is being left, and a ``try:`` that comes right after a ``with``.
    """

    def starts(line, word):
        return linecache.getline(frame.f_code.co_filename, line).lstrip().startswith(word)

    if starts(frame.f_lineno, "with "):
        return frame.f_lasti > min(start for start, _, line in frame.f_code.co_lines() if line == frame.f_lineno)
    return starts(frame.f_lineno, "try:") and last is not None and starts(last, "with ")


def interrupt_at(line, work):
    """Run ``work`` with Ctrl-C at the n-th line that is executed within the library; whether it came."""
    package, left = str(Path(diffgradcam.__file__).parent), line

    def lines_of_a_frame():
        last = None

        def local(frame, event, _argument):
            # Not at each turn of a comprehension: Python 3.12 and 3.13 forget the with block around it when a trace
            # function, and only that, raises there.
            nonlocal left, last
            if event == "line" and (sys.version_info < (3, 12) or frame.f_lineno != last):
                if is_no_place(frame, last):
                    return local
                last = frame.f_lineno
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return local

        return local

    def trace(frame, _event, _argument):
        code = frame.f_code
        return lines_of_a_frame() if code.co_filename.startswith(package) and code.co_name not in NOT_WITHIN else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


LINES = {
    "explain": lambda model: cam(model).explain(X, 1),
    "all classes": lambda model: diffgradcam.DiffGradCAM(model, "features").explain(X, "all"),
    "two layers": lambda model: diffgradcam.LayerCAM(model, ["stem", diffgradcam.layer_input("pool")])(X),
    "AblationCAM": lambda model: diffgradcam.AblationCAM(model, "relu", **QUIET).explain(X[:1]),
    "FullGrad": lambda model: diffgradcam.FullGrad(model).explain(X),
    "guided": lambda model: diffgradcam.analysis.guided_gradients(model, X),
    "LeGrad": lambda model: diffgradcam.LeGrad(model, "block", head=model.head).explain(X, 1),
}


def check_lines(name, every):
    model, line = transformer(dtype=torch.float32) if name == "LeGrad" else network(), 1
    LINES[name](model)
    with untouched(model):
        plain = model(X)
    kernels = torch.backends.cuda.flash_sdp_enabled()
    while True:
        with untouched(model):
            came = interrupt_at(line, lambda: LINES[name](model))
        if not came:
            break
        line += every
    assert line > 40
    assert torch.equal(model(X), plain)
    assert not any(any(found.values()) for found in hooks(model).values())
    assert torch.backends.cuda.flash_sdp_enabled() == kernels


@pytest.mark.parametrize("name", LINES)
def test_ctrl_c_between_two_lines(name):
    check_lines(name, every=11)


@pytest.mark.siege
@pytest.mark.parametrize("name", LINES)
def test_ctrl_c_between_any_two_lines(name):
    check_lines(name, every=1)


def test_ctrl_c_while_attached():
    """The with block detaches, whatever stops it."""
    model = network()

    def train():
        with cam(model) as attached:
            logits = model(X)
            attached.maps(logits, LABELS)

    for line in range(1, 150, 2):
        with untouched(model):
            interrupt_at(line, train)


# Hooks that the user registered before


def test_hooks_of_the_user_run_in_order_and_once():
    """Before ours, after ours, on the layer and on the model; what they change is explained."""
    model, ran = network(), []
    twin = network()

    def note(what):
        def hook(*_):
            ran.append(what)

        return hook

    def double(_module, _args, output):
        ran.append("doubled")
        return 2 * output

    model.relu.register_forward_pre_hook(note("enters relu"))
    model.relu.register_forward_hook(double)
    model.relu.register_forward_hook(note("leaves relu"))
    model.register_forward_hook(note("model"))
    model.stem.register_full_backward_hook(note("never: nothing is back-propagated below the layer"))
    twin.relu.register_forward_hook(lambda _module, _args, output: 2 * output)
    order = ["enters relu", "doubled", "leaves relu", "model"]
    expected = cam(twin).explain(X, 1).maps
    for ask in (
        lambda: cam(model).explain(X, 1).maps,
        lambda: torch.from_numpy(cam(model)(X, [1] * 4)),
        lambda: diffgradcam.explain_together([cam(model)], X, 1)[0].maps,
    ):
        ran.clear()
        with untouched(model):
            maps = ask()
        assert ran == order
        wanted = expected if maps.dtype == expected.dtype and maps.max() != 1 else minmax(expected)
        torch.testing.assert_close(maps, wanted)
    ran.clear()
    with cam(model) as attached:
        logits = model(X)
        assert ran == order
        torch.testing.assert_close(attached.maps(logits, 1), expected)
        model.relu.register_forward_hook(note("later"))
    ran.clear()
    cam(model).explain(X)
    assert ran == ["enters relu", "doubled", "leaves relu", "later", "model"]


def test_a_hook_of_the_user_that_raises():
    model = network()

    def fail(*_):
        raise ArithmeticError("stop")

    for register in (model.relu.register_forward_hook, model.pool.register_forward_pre_hook):
        handle = register(fail)
        with untouched(model), pytest.raises(ArithmeticError, match=r"^stop$"):
            cam(model).explain(X)
        handle.remove()
    assert cam(model).explain(X).maps.isfinite().all()


def test_a_hook_that_the_user_removes_meanwhile():
    """One that runs once and takes itself off, as initialisers do."""
    model, ran = network(), []

    def once(*_):
        ran.append(1)
        handle.remove()

    handle = model.relu.register_forward_hook(once)
    expected = cam(network()).explain(X).maps
    assert torch.equal(cam(model).explain(X).maps, expected)
    assert torch.equal(cam(model).explain(X).maps, expected)
    assert ran == [1]


def note_gradient(seen, _module, _inputs, outputs):
    seen.append(outputs[0].clone())


def test_backward_hooks_of_the_user_see_their_own_gradients_in_training():
    """The gradients that arrive at a full backward hook and at a tensor hook are those without the CAM."""
    found = {}
    for attached in (False, True):
        model, seen = network(), []
        model.features.register_full_backward_hook(partial(note_gradient, seen))
        context = cam(model, rectify=False) if attached else torch.enable_grad()
        with context:
            logits = model(X)
            if attached:
                context.maps(logits, LABELS)
                seen.clear()  # our own look at the gradient passes the hook too: it is a gradient of the features
            logits[:, 0].sum().backward()
        found[attached] = seen
    assert len(found[True]) == len(found[False]) == 1
    assert torch.equal(found[True][0], found[False][0])
