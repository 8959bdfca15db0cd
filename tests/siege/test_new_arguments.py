"""Whatever is given as ``image=``, ``run=`` and ``size=``, to exports and to what trainers call: right, or refused.

Right means as without the option, where the option names what is the only image and the only run. Refused means by an
error of our own. The model is as it was, bit by bit.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import diffgradcam
from diffgradcam import GradCAM
from diffgradcam.export import with_maps, write_onnx
from diffgradcam.methods import registered_methods
from tests.models import images, pooled
from tests.untouched import untouched

from .calls import calls
from .messages import is_ours, is_the_users
from .mutations import UserError, fails, fits, wrong
from .test_arguments import hints

X = images(2, dtype=torch.float32)
CALLS = calls()
WRAPPERS = {
    "AugSmooth": lambda model, **options: diffgradcam.AugSmooth(GradCAM(model, "relu", **options), batch_size=4),
    "NoiseSmooth": lambda model, **options: diffgradcam.NoiseSmooth(GradCAM(model, "relu", **options), samples=1),
    "EigenSmooth": lambda model, **options: diffgradcam.EigenSmooth(GradCAM(model, "relu", **options)),
    "SESS": lambda model, **options: diffgradcam.SESS(GradCAM(model, "relu", **options), scales=1, blur=0),
}
NAMES = [*registered_methods(), *WRAPPERS]
NO_RUN = ("FullGrad", "LeGrad")
"""All layers of a model, or all blocks: no layer whose runs could be told apart."""

NO_SIZE = ("SESS",)
"""Its maps have the size of the image."""


def first(args, _kwargs):
    return args[0]


RIGHT_IMAGES = [None, 0, first]
WRONG_IMAGES = [
    1, -1, 10**30, True, 0.0, float("nan"), "image", "", "0", b"0", (), [0], {}, {0}, object(), torch.tensor(0), X,
    np.zeros(2), lambda args, _: args[0].clone(), lambda *_: None, lambda *_: "cat", lambda args, _: args,
    fails, np.int64(0),
]  # fmt: skip
RIGHT_RUNS = [None, "first", "last", "all", 0, -1]
WRONG_RUNS = [
    1, -2, 10**30, True, False, 0.0, float("nan"), "0", "FIRST", "", b"first", (), [0], {}, object(), torch.tensor(0),
    np.zeros(2), np.array(["first", "last"]), first,
]  # fmt: skip
RIGHT_SIZES = [None, (6, 5), [7, 9], (1, 1), torch.Size((3, 4)), (np.int64(6), 5), np.array([6, 5]), (300, 2)]
WRONG_SIZES = [
    (), (6,), (6, 5, 4), (0, 5), (-6, 5), (6.0, 5), (6.5, 5), ("6", "5"), "65", 6, 6.0, (None, 5), (True, 5),
    (float("nan"), 5), (float("inf"), 5), {}, {6: 5}, object(), torch.tensor(6), [[6, 5]], first, np.zeros((2, 2)),
    torch.tensor([6, 5]), (6, 5j), (np.float32(6), 5),
]  # fmt: skip


def choice(right, wrongs):
    """Mostly right, so that each wrong one is met alone too; with whether it is."""
    return st.sampled_from([*right] * 4).map(lambda value: (value, True)) | st.sampled_from(wrongs).map(
        lambda value: (value, False)
    )


def maker(name):
    """What makes a method of given options, its model, and its images."""
    if name in WRAPPERS:
        model = pooled(dtype=torch.float32)
        return (lambda **options: WRAPPERS[name](model, **options)), model, X
    make, given = CALLS[name]
    seed = {"seed": 0} if name == "RandomCAM" else {}
    return (lambda **options: make(**{**given, **seed, **options})), given["model"], X


def refused(work):
    """What work returns, or None if it is refused with an error of our own or of the user's."""
    try:
        return work()
    except Exception as error:
        if not is_ours(error) and not isinstance(error, UserError):
            raise
        return None


@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=pytest.mark.siege)])
@pytest.mark.parametrize("name", NAMES)
def test_the_image_the_run_and_the_size(name, examples):
    make, model, batch = maker(name)
    with untouched(model):
        torch.manual_seed(0)
        expected = make().explain(batch, 1).maps

    @settings(
        max_examples=examples, deadline=None, derandomize=True, report_multiple_bugs=False, phases=[Phase.generate]
    )
    @given(choice(RIGHT_IMAGES, WRONG_IMAGES), choice(RIGHT_RUNS, WRONG_RUNS), choice(RIGHT_SIZES, WRONG_SIZES))
    def check(image, run, size):
        options = {"image": image[0]} | ({} if name in NO_RUN else {"run": run[0]})
        right = image[1] and (run[1] or name in NO_RUN)

        def explain():
            torch.manual_seed(0)
            return make(**options).explain(batch, 1).maps

        def call():
            torch.manual_seed(0)
            return make(**options)(batch, [1, 1], **({} if name in NO_SIZE else {"size": size[0]}))

        with untouched(model):
            state = torch.get_rng_state()
            found, heatmaps = refused(explain), refused(call)
            torch.set_rng_state(state)
        assert (found is not None) == right
        assert found is None or torch.equal(found, expected)
        assert (heatmaps is not None) == (right and (size[1] or name in NO_SIZE))
        if heatmaps is not None:
            wanted = X.shape[2:] if size[0] is None or name in NO_SIZE else tuple(map(int, size[0]))
            assert heatmaps.shape == (len(X), *wanted)
            assert -1 <= heatmaps.min() <= heatmaps.max() <= 1

    check()


# Exports


CLASSES = [
    "argmax", "top2", "all", 0, 4, [0], [0, 2], (1, 3), torch.tensor([1, 2]), np.array([0]), 5, -1, 10**30, True, 1.5,
    [0.5], [[0, 1]], [], [7], [-1], "top0", "top9", "top", "best", "", None, {}, {0}, object(), b"all", ["all"], [None],
    torch.tensor([True]), torch.zeros(0), range(2),
]  # fmt: skip


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.siege)])
def test_classes_of_an_export(long):
    model = pooled(dtype=torch.float32)
    cam = GradCAM(model, "relu")
    for classes in CLASSES if long else CLASSES[5::3]:
        with untouched(model):
            module = refused(lambda classes=classes: with_maps(cam, X, classes))
        if module is not None:
            own = None if isinstance(classes, str) and classes == "argmax" else classes
            own = own if own is None or isinstance(own, str | int) else torch.as_tensor(own).expand(len(X), -1)
            for one, other in zip(module(X), cam.explain(X, own), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


EXAMPLES = wrong(X)


@pytest.mark.parametrize(
    "label",
    [
        label if number % 4 == 0 else pytest.param(label, marks=pytest.mark.siege)
        for number, label in enumerate(sorted(EXAMPLES))
    ],
)
def test_example_images_of_an_export(label):
    model = pooled(dtype=torch.float32)
    with untouched(model):
        try:
            module = with_maps(GradCAM(model, "relu"), EXAMPLES[label])
        except Exception as error:
            if not is_ours(error) and not is_the_users(error):
                raise
        else:
            assert module.size == EXAMPLES[label].shape[1:]


@pytest.fixture
def quick_export(monkeypatch):
    """``torch.onnx.export`` takes seconds."""
    pytest.importorskip("onnxscript", reason="ONNX files need the extra onnx")
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}))
    program.model_proto = SimpleNamespace(SerializeToString=lambda: repr(program.model.metadata_props).encode())
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("argument", ["module", "class_names", "facts"])
def test_what_an_onnx_file_says_of_itself(tmp_path, argument):
    model = pooled(dtype=torch.float32)
    right = {"module": with_maps(GradCAM(model, "relu"), X), "class_names": list("abcde"), "facts": {"a": [1, None]}}
    annotations = hints(write_onnx)
    more = {"names": {0: 1}, "bytes": {"a": b"b"}, "keys": {(1, 2): 3}, "a circle": CIRCLE, "NaN": {"a": float("nan")}}
    for label, value in {**wrong(right[argument]), **more}.items():
        file = tmp_path / "m.onnx"
        with untouched(model):
            try:
                write_onnx(**{**right, argument: value}, file=file)
            except Exception as error:
                assert is_ours(error) or not fits(value, annotations[argument]), label  # noqa: PT017
                assert not list(tmp_path.iterdir()), label
            else:
                assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.sha256"]
                for path in tmp_path.iterdir():
                    path.unlink()


CIRCLE: dict[str, object] = {}
CIRCLE["itself"] = CIRCLE
