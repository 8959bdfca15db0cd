"""Several threads and one model: each gets its own maps, or is refused in so many words.

That threads explain one model, each with a CAM of its own, and that a plain forward pass of another thread is not
recorded, is also in ``tests/test_wrappers.py``, where the threads meet in the middle of the model.
"""

import copy
import sys
import threading
from collections import Counter
from itertools import cycle

import pytest
import torch
from torch.nn import functional as F

from diffgradcam import (
    AblationCAM,
    AugSmooth,
    DiffGradCAM,
    EigenCAM,
    FullGrad,
    GradCAM,
    LayerCAM,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    TrueFalseCAM,
    layer_input,
)
from tests.models import deep, images, pooled
from tests.untouched import hooks, untouched

THREADS = 8
INPUTS = [images(2, seed=seed) for seed in range(THREADS)]
METHODS = {
    "GradCAM": lambda model: GradCAM(model, "features"),
    "layer input": lambda model: GradCAM(model, layer_input("features")),
    "two layers": lambda model: LayerCAM(model, ["stem", "features"]),
    "DiffGradCAM": lambda model: DiffGradCAM(model, "features"),
    "TrueFalseCAM": lambda model: TrueFalseCAM(model, "features"),
    "EigenCAM": lambda model: EigenCAM(model, "features"),
    "RefineCAM": lambda model: RefineCAM(model, ["stem", "features"]),
    "ShapleyCAM": lambda model: ShapleyCAM(model, "features"),
    "FullGrad": FullGrad,
    "AblationCAM": lambda model: AblationCAM(model, "features", progress=False),
    "ScoreCAM": lambda model: ScoreCAM(model, "features", progress=False),
    "AugSmooth": lambda model: AugSmooth(GradCAM(model, "features")),
}


OFTEN = 5e-6
"""Threads take turns so often, in seconds: a thousand times as often as usual."""


@pytest.fixture
def impatient():
    before = sys.getswitchinterval()
    sys.setswitchinterval(OFTEN)
    yield
    sys.setswitchinterval(before)


def at_once(work, rounds=6):
    """Run ``work(number)`` in eight threads, and return what they raised.

    They take turns often, once all have started: a tracer, as of coverage, cannot be installed in two at a time.
    """
    errors, usual = Counter(), sys.getswitchinterval()
    # The timeout is there because a thread that dies is no reason to hang.
    start = threading.Barrier(THREADS, action=lambda: sys.setswitchinterval(OFTEN), timeout=60)

    def loop(number):
        start.wait()
        for _ in range(rounds):
            try:
                work(number)
            except Exception as error:
                errors[f"{type(error).__name__}: {error}"] += 1

    workers = [threading.Thread(target=loop, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.setswitchinterval(usual)
    return errors


def near(maps, expected):
    """The sums of several threads may be added up in another order."""
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [True, False], ids=["one CAM", "a CAM each"])
@pytest.mark.parametrize("name", METHODS)
def test_explain_and_call(name, shared):
    model = deep()
    cam = METHODS[name](model)
    expected = [cam.explain(x) for x in INPUTS]
    heat = [torch.from_numpy(cam(x)) for x in INPUTS]

    def work(number):
        own = cam if shared else METHODS[name](model)
        found = own.explain(INPUTS[number])
        assert torch.equal(found.classes, expected[number].classes)
        near(found.maps, expected[number].maps)
        torch.testing.assert_close(torch.from_numpy(own(INPUTS[number])), heat[number], rtol=1e-4, atol=1e-4)

    with untouched(model):
        assert at_once(work, rounds=1) == {}


@pytest.mark.parametrize("build", [deep, pooled])
def test_one_attached_cam_for_all(build):
    model = build()
    expected = [GradCAM(model, "features").explain(x, 2).maps for x in INPUTS]
    with untouched(model), GradCAM(model, "features") as cam:

        def work(number):
            near(cam.maps(model(INPUTS[number]), 2).detach(), expected[number])

        assert at_once(work, rounds=8) == {}


def test_each_thread_attaches_a_cam_of_its_own():
    model = deep()
    expected = [LayerCAM(model, ["stem", "features"]).explain(x, 2).maps for x in INPUTS]

    def work(number):
        with LayerCAM(model, ["stem", "features"]) as cam:
            near(cam.maps(model(INPUTS[number]), 2).detach(), expected[number])

    with untouched(model):
        assert at_once(work) == {}


def test_attached_in_some_threads_and_explained_in_others():
    model = deep()
    cam = GradCAM(model, "features")
    expected = [cam.explain(x, 2).maps for x in INPUTS]
    with untouched(model), cam:

        def work(number):
            attached = number % 2 == 0
            maps = cam.maps(model(INPUTS[number]), 2).detach() if attached else cam.explain(INPUTS[number], 2).maps
            near(maps, expected[number])

        assert at_once(work, rounds=5) == {}


def test_one_cam_in_the_with_block_of_each_thread():
    """The first that leaves its block detaches the CAM for all: the others are told, and no hook stays behind."""
    model = deep()
    cam = GradCAM(model, "features")
    expected = [cam.explain(x, 2).maps for x in INPUTS]

    def work(number):
        with cam:
            near(cam.maps(model(INPUTS[number]), 2).detach(), expected[number])

    before = hooks(model)
    for error in at_once(work, rounds=5):
        assert "comes from a forward pass that was not recorded" in error or "did not run in a recorded" in error
    assert hooks(model) == before


@pytest.mark.parametrize("build", [deep, pooled])
@pytest.mark.parametrize("classes", [2, "all"])
def test_a_map_belongs_to_the_logits_that_come_with_it(build, classes):
    """Whatever another thread does to the weights above the layer: both are of one state, or there are none."""
    model, done = build(), threading.Event()
    states = [model.head.weight.detach().clone(), -2 * model.head.weight.detach()]
    expected = []
    for weight in states:
        model.head.weight.data.copy_(weight)
        expected.append(GradCAM(model, "features").explain(INPUTS[0], classes))
    agreed = Counter()

    def train():
        for weight, pause in zip(cycle(states), cycle((0, 0.001, 0.004, 0.016, 0.064)), strict=False):
            with torch.no_grad():
                model.head.weight.copy_(weight)
            if done.wait(pause):
                break

    def work(_):
        found = GradCAM(model, "features").explain(INPUTS[0], classes)
        for state, wanted in enumerate(expected):
            if torch.equal(found.logits, wanted.logits):
                near(found.maps, wanted.maps)
                agreed[state] += 1

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        errors = at_once(work, rounds=8)
    finally:
        done.set()
        trainer.join()
    assert all("weights changed while it was explained" in error for error in errors), errors
    assert agreed


@pytest.mark.usefixtures("impatient")
def test_explained_while_it_trains_on_its_maps():
    model, trained = deep().train(), threading.Event()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, labels = images(4, seed=9), torch.tensor([0, 1, 2, 3])
    errors = []

    def train():
        with GradCAM(model, "features") as cam:
            for _ in range(10):
                logits = model(inputs)
                loss = F.cross_entropy(logits, labels) + cam.maps(logits, labels).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def explain():
        cam = TrueFalseCAM(model, "features")
        while not trained.is_set():
            assert cam.explain(INPUTS[0]).maps.isfinite().all()

    def noted(work):
        try:
            work()
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=noted, args=(explain,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    noted(train)
    trained.set()
    for worker in workers:
        worker.join()
    assert all("weights changed while it was explained" in str(error) for error in errors), errors
    assert not any(any(found.values()) for found in hooks(model).values())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("impatient")
def test_training_is_not_disturbed_by_explanations_in_other_threads():
    """Bit by bit the weights of a twin that trains alone."""
    model, done = deep().train(), threading.Event()
    twin = copy.deepcopy(model)

    def train(which):
        optimizer = torch.optim.SGD(which.parameters(), lr=1e-2)
        for step in range(15):
            optimizer.zero_grad()
            F.cross_entropy(which(INPUTS[step % THREADS]), torch.tensor([0, 3])).backward()
            optimizer.step()

    def explain():
        cam = DiffGradCAM(model, ["stem", "features"])
        while not done.is_set():
            try:
                cam.explain(INPUTS[0])
            except RuntimeError as error:
                if "changed while it was explained" not in str(error):
                    raise

    train(twin)
    worker = threading.Thread(target=explain)
    worker.start()
    try:
        train(model)
    finally:
        done.set()
        worker.join()
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def steps(model):
    """A forward hook: the weights above the layer change once the logits are there, as by another thread's step."""

    def step(_module, _args, _output):
        with torch.no_grad():
            model.head.weight.mul_(1.1)

    return model.register_forward_hook(step)


@pytest.mark.parametrize("build", [deep, pooled])
def test_a_step_between_the_forward_pass_and_its_maps(build):
    model = build()
    message = (
        r"^the model's weights changed while it was explained, .*; take the maps before the step, or explain a copy"
    )
    steps(model)
    with GradCAM(model, "features") as cam:
        logits = model(INPUTS[0])
        with pytest.raises(RuntimeError, match=message):
            cam.maps(logits)
    for classes in (None, 1, "all"):
        with pytest.raises(RuntimeError, match=message):
            GradCAM(model, "features").explain(INPUTS[0], classes)
    with pytest.raises(RuntimeError, match=message):
        GradCAM(model, "features")(INPUTS[0])


@pytest.mark.parametrize("name", ["AblationCAM", "ScoreCAM"])
def test_a_step_between_the_forward_passes_of_one_map(name):
    model = deep()
    steps(model)
    message = r"^the model's weights changed while it was explained"
    with pytest.raises(RuntimeError, match=message):
        METHODS[name](model).explain(INPUTS[0])
