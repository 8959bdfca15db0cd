"""Every argument of every public function, wrong in every way: a result, or an error of our own; nothing is changed.

What an annotation allows (a tensor of another shape, type of number or sign, empty, huge or NaN; a number out of range;
another word; a function that returns nonsense) ends in a result or in an error that the library itself raises. What an
annotation rules out (a dictionary for a tensor) ends in an error of any kind: annotations are for type checkers, and
are not checked again at run time. Errors of the user's own model and functions are the user's.

Formulas (:mod:`diffgradcam.scores`, :mod:`diffgradcam.weightings`, the fooling losses) get what has been checked,
and check little themselves; of them it is asked that nothing is changed.
"""

import random
import traceback
import typing
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

import diffgradcam
from diffgradcam import data as datasets
from diffgradcam import heatmaps, losses, metrics, sham, visualize
from tests.models import pooled

from .calls import FORMULAS, OTHERS, calls, records
from .messages import is_ours, is_the_users
from .mutations import UserError, copied, fits, unchanged, wrong

CALLS = calls()
MODULES = (diffgradcam, metrics, sham, visualize, datasets)
NOTHING = typing.NoReturn
SAMPLE = 3
"""So many wrong values for each argument by default; all of them in the long form."""


def test_every_public_name_is_called():
    public = {name for module in MODULES for name in module.__all__}
    public |= {name for name in vars(losses) if name[0] != "_" and own(losses, name)}
    missing = public - set(CALLS) - records() - set(OTHERS)
    assert missing == set()


def own(module, name):
    value = vars(module)[name]
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def hints(function):
    """The annotations of what is called."""
    if isinstance(function, type):
        function = function.__init__
    elif not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        function = type(function).forward if isinstance(function, torch.nn.Module) else type(function).__call__
    found = typing.get_type_hints(function)
    for options in [typing.get_args(annotation) for annotation in found.values()]:
        if options and typing.is_typeddict(options[0]):  # **options: Unpack[...]
            found |= typing.get_type_hints(options[0])
    return found


def ask(name, chosen):
    """Call a function with each wrong value of each argument; how it ended."""
    function, right = CALLS[name]
    annotations = hints(function)
    outcomes = Counter()
    for argument in right:
        values = wrong(right[argument])
        for label in chosen(sorted(values)):
            given = {**right, argument: values[label]}
            if isinstance(right[argument], torch.Generator):
                right[argument].manual_seed(0)
            before = {key: copied(value) for key, value in given.items()}
            outcomes[
                call(function, given, fits(given[argument], annotations.get(argument, NOTHING)), name in FORMULAS)
            ] += 1
            changed = [key for key, value in given.items() if not unchanged(before[key], value)]
            assert not changed, f"{argument} = {label} changed {changed}"
    return outcomes


def call(function, given, fitting, formula):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            function(**given)
    except Exception as error:
        if is_ours(error):
            return "our own error"
        if is_the_users(error) or isinstance(error, UserError):
            return "an error of the user's model or function"
        if formula or not fitting:
            return "an error of Python or PyTorch: another kind of thing than annotated, or a formula"
        error.add_note("".join(traceback.format_tb(error.__traceback__)[-2:]))
        raise
    return "a result"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written to a relative path is written here."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", CALLS)
def test_some_wrong_arguments(name, record_property):
    record_property("arguments", dict(ask(name, lambda labels: random.Random(name).sample(labels, SAMPLE))))


@pytest.mark.siege
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", CALLS)
def test_all_wrong_arguments(name, record_property):
    record_property("arguments", dict(ask(name, lambda labels: labels)))


def nothing(*_, **__):
    return None


X, MAPS = torch.rand(4, 3, 6, 5), torch.rand(4, 6, 5)
MASK = sham.border_mask((6, 5), 18)
MESSAGES = [
    (
        lambda: heatmaps.minmax(MAPS[0, 0]),
        ValueError,
        r"got maps of torch.float32 and of shape \(5,\); expected numbers",
    ),
    (lambda: heatmaps.entropy(MAPS > 0.5), ValueError, r"got maps of torch.bool .* with at least one position"),
    (lambda: heatmaps.rectify(MAPS > 0.5), ValueError, "got maps of torch.bool; expected numbers"),
    (
        lambda: heatmaps.resize(MAPS.long(), (3, 3)),
        ValueError,
        r"of torch.int64 and spatial size \(6, 5\) to \(3, 3\); exp",
    ),
    (lambda: heatmaps.resize(MAPS, (0, 3)), ValueError, "with at least one position, before and after"),
    (
        lambda: heatmaps.average([], (3, 3)),
        ValueError,
        "there are no maps to combine; expected the maps of at least one layer",
    ),
    (
        lambda: heatmaps.product([], (3, 3)),
        ValueError,
        "there are no maps to combine; expected the maps of at least one layer",
    ),
    (
        lambda: heatmaps.principal_component(X.half()),
        ValueError,
        r"channels of torch.float16 .* expected float32 or float64",
    ),
    (
        lambda: heatmaps.principal_component(X * 1e30),
        ValueError,
        r"NaN or infinite .*: the weighted activations, or their",
    ),
    (lambda: heatmaps.kernel_principal_component(MAPS[0]), ValueError, r"of shape \(6, 5\); expected .* \(B, C, \*S\)"),
    (lambda: metrics.auroc([0, 1], ["a", "b"]), TypeError, r"scores are \['a', 'b'\]; expected numbers, \(N,\)"),
    (lambda: metrics.auroc([None, 1], [0, 1]), ValueError, r"labels hold \[1, None\]; expected both 1"),
    (lambda: metrics.mean_interval([1, 2], seed=-1), ValueError, "seed is -1; expected a whole number, 0 or more"),
    (
        lambda: metrics.bootstrap_interval(nothing, [0, 0, 1, 1], [0, 1, 2, 3]),
        TypeError,
        "metric returned NoneType; expected a number, as metrics.auroc gives",
    ),
    (
        lambda: metrics.deletion(metrics.Evaluator(pooled(dtype=torch.float32)), X, np.array(["a"])),
        TypeError,
        r"maps are ndarray; expected a tensor or an array of numbers \(B, ...\)",
    ),
    (
        lambda: metrics.deletion(metrics.Evaluator(pooled(dtype=torch.float32), score=nothing), X, MAPS),
        ValueError,
        r"the score returned NoneType for logits of shape \(4, 5\); expected one value per image",
    ),
    (
        lambda: metrics.deletion(metrics.Evaluator(pooled(dtype=torch.float32)), X, MAPS, steps=4, fill=nothing),
        TypeError,
        "fill returned NoneType; expected images, or a tensor that broadcasts",
    ),
    (
        lambda: metrics.infidelity(metrics.Evaluator(pooled(dtype=torch.float32)), X, MAPS, perturb=nothing),
        TypeError,
        r"perturb returned NoneType; expected the pair of tensors \(I, changed images\)",
    ),
    (
        lambda: metrics.model_randomization(nothing, pooled(dtype=torch.float32), X),
        TypeError,
        r"cam is NoneType; expected a CAM or an object with explain\(\); give one such as GradCAM",
    ),
    (
        lambda: metrics.model_randomization(
            lambda model: diffgradcam.GradCAM(model, "relu"), pooled(dtype=torch.float32), X, similarity=nothing
        ),
        ValueError,
        "similarity returned NoneType for 4 maps; expected a value for each",
    ),
    (lambda: metrics.remove_box(MAPS[0], torch.Generator()), ValueError, r"images have shape|images is|expected"),
    (
        lambda: metrics.noisy_linear_imputation(X / 0, MAPS > 0.5),
        ValueError,
        "the pixel values of image 0 is NaN or infinite",
    ),
    (lambda: diffgradcam.analysis.factorize(X / 0, 2), ValueError, "the activation of image 0 is NaN or infinite"),
    (lambda: diffgradcam.analysis.factorize(X[:0], 2), ValueError, r"activations have shape \(0, 3, 6, 5\); expected"),
    (lambda: diffgradcam.analysis.factorize(X, 2, seed=-1), ValueError, "seed is -1; expected a whole number"),
    (
        lambda: diffgradcam.analysis.factorize(X, 2, iterations=0),
        ValueError,
        "iterations is 0; expected an integer of at least",
    ),
    (
        lambda: sham.common_mode_hoax(pooled(dtype=torch.float32), "relu", X[0, 0], MASK),
        ValueError,
        r"images have shape \(6, 5\); expected \(N, C, \*S\)",
    ),
    (
        lambda: sham.common_mode_hoax(pooled(dtype=torch.float32), "relu", X, MASK[:0]),
        ValueError,
        r"the mask of size \(0, 5\) is constant or not finite",
    ),
    (
        lambda: sham.common_mode_hoax(pooled(dtype=torch.float32), "relu", [], MASK, head="head"),
        ValueError,
        "images is empty; expected at least one image to fit the mask on",
    ),
    (
        lambda: sham.finetune(torch.nn.Identity(), [X], "", MASK),
        ValueError,
        "Identity has no parameters, so there is nothing to train",
    ),
    (
        lambda: sham.finetune(pooled(dtype=torch.float32), X, "relu", MASK),
        TypeError,
        r"loader is a tensor; expected batches of images; give a DataLoader, or a list such as \[images\]",
    ),
    (
        lambda: sham.finetune(pooled(dtype=torch.float32), [X], "relu", MASK, lr=-1.0),
        ValueError,
        "lr is -1.0; expected a learning rate, a finite number of at least 0",
    ),
    (
        lambda: sham.finetune(pooled(dtype=torch.float32), [X], "relu", MASK, epochs=float("inf")),
        ValueError,
        "epochs is inf; expected an integer of at least 1",
    ),
    (
        lambda: sham.finetune(
            pooled(dtype=torch.float32), [X], "relu", MASK, preserve="decisions", loss=nothing, progress=False
        ),
        ValueError,
        "loss returned NoneType for 4 images; expected a value for each",
    ),
    (
        lambda: sham.finetune(pooled(dtype=torch.float32), [X], "relu", MASK, method=nothing),
        TypeError,
        "method made NoneType; expected a CAM class, such as GradCAM",
    ),
    (lambda: visualize.grid([[X[0, 0].numpy()]], [["a"]], size=-1), ValueError, "size is -1; expected the width of a"),
    (lambda: visualize.deprocess_image(np.zeros((3, 3))), ValueError, r"got gradients of shape \(3, 3\)"),
    (
        lambda: losses.true_and_false_classes(torch.ones(2, 3).bool(), torch.tensor([0, 1])),
        TypeError,
        "logits have dtype torch.bool; expected floating point logits",
    ),
    (
        lambda: losses.cam_entropy_loss(torch.tensor(1.0), mask=torch.tensor([True])),
        ValueError,
        r"maps have shape \(\); expected \(B, \*S\)",
    ),
]


@pytest.mark.parametrize(("wrongly", "kind", "message"), MESSAGES)
def test_what_the_fuzzer_found_is_refused_in_so_many_words(wrongly, kind, message):
    with pytest.raises(kind, match=message):
        wrongly()


def test_what_counts_as_our_own():
    with pytest.raises(ValueError, match="expected floating-point maps") as ours:
        diffgradcam.heatmaps.resize(torch.zeros(1, 2, 2).long(), (3, 3))
    assert is_ours(ours.value)
    with pytest.raises(RuntimeError, match="invalid for input of size") as raw:
        torch.zeros(3).view(2)
    assert not is_ours(raw.value)
    assert not unchanged(copied(x := np.zeros(2)), np.add(x, 1, out=x))
    assert not unchanged(copied(x := torch.zeros(2)), x.add_(1))
