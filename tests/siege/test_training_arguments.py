"""Every argument of what trainers call, wrong in every way: a result or an error of our own; the model is as it was."""

import random
from collections import Counter

import pytest
import torch

from diffgradcam import GradCAM, training
from diffgradcam.integrations._parts import AuditedEpochs, Guidance, MapsEvery
from diffgradcam.losses import CyborgLoss, DifferenceSalienceLoss, SaliencyGuidedLoss
from tests.integrations.data import SIZE, network
from tests.untouched import untouched

from .mutations import copied, fits, unchanged, wrong
from .test_arguments import NOTHING, call, hints

SAMPLE = 3
"""So many wrong values for each argument by default; all of them in the long form."""
IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
HUMAN = torch.rand(4, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([0, 1, 2, 0])
MODEL = network().train()
CAM = GradCAM(MODEL, "features", rectify=False)
LOSS = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.5)
BATCH = {"labels": LABELS, "people": HUMAN, "marked": LABELS > 0}


def guided(logits_of=None, **given):
    """One training step, with the CAM attached as the trainers attach it."""
    with CAM:
        logits = MODEL(IMAGES)
        return training.guided_loss(CAM, logits=logits if logits_of is None else logits_of(logits), **given)


def guided_batch(batch, **given):
    """The same by the keys of a batch."""
    with CAM:
        return Guidance(CAM, **given).loss(batch, MODEL(IMAGES), torch.tensor(1.0))


def logged(**given):
    MapsEvery(**{"cam": CAM, "tag": "maps", **given}).log([lambda *_: None], 0)


def audited(**given):
    AuditedEpochs(**{"cam": CAM, "images": IMAGES, **given})._audits.stops(1)


def calls():
    """Name to the function, its right arguments, and whose annotations they have."""
    step = {"criterion": LOSS, "labels": LABELS, "human": HUMAN, "mask": BATCH["marked"], "choice": "true"}
    keys = {"labels": "labels", "human": "people", "mask": "marked", "choice": "predicted"}
    pictures = [torch.rand(SIZE, SIZE, 3).numpy() for _ in range(4)]
    maps = {"images": IMAGES, "classes": LABELS, "pictures": pictures}
    split = {"labels": [0, 1] * 30, "groups": ["a", "b", "b", "a", "c", "c"] * 10, "together": [""] * 60,
             "hold_out": "c", "validation": 0.2, "test": 0.2, "seed": 0}  # fmt: skip
    options = {"loss": "cyborg", "alpha": 0.5, "explained": "true", "epochs": 2, "batch_size": 4, "optimizer": "sgd",
               "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1, "schedule": "step", "step_epochs": 1,
               "step_factor": 0.1, "augment": "none", "select": "last", "divergence_weight": 0.1,
               "seed": 0}  # fmt: skip
    return {
        "guided_loss": (guided, step, training.guided_loss),
        "guidance": (guided_batch, {"batch": BATCH, "criterion": LOSS, **keys}, Guidance),
        "draw_maps": (lambda **given: training.draw_maps(CAM, **given), maps, training.draw_maps),
        "log_maps": (
            lambda **given: training.log_maps(CAM, writer=lambda *_: None, **given),
            {**maps, "step": 1, "tag": "maps"},
            training.log_maps,
        ),
        "maps every step": (logged, {**maps, "every_n_steps": 2}, MapsEvery),
        "audit each epoch": (audited, {"images": IMAGES, "on_fooled": "warn", "first_epoch": 1}, AuditedEpochs),
        "audit_in_training": (lambda images: training.audit_in_training(CAM, images), {"images": IMAGES}, None),
        "split": (training.split, split, training.split),
        "Settings": (training.Settings, options, training.Settings),
        "agreement": (training.agreement, {"maps": HUMAN[:, ::3, ::3], "human": HUMAN}, training.agreement),
    }


CALLS = calls()


def ask(name, chosen):
    """Call with each wrong value of each argument; how it ended."""
    function, right, annotated = CALLS[name]
    annotations, outcomes = hints(annotated) if annotated else {}, Counter()
    for argument, value in right.items():
        values = wrong(value)
        for label in chosen(sorted(values)):
            given = {**right, argument: values[label]}
            before = {key: copied(each) for key, each in given.items()}
            fitting = fits(values[label], annotations.get(argument, NOTHING))
            # A training step is a forward pass of the user's own in training mode: batch norm counts it.
            with untouched(MODEL, buffers=name not in ("guided_loss", "guidance")):
                outcomes[call(function, given, fitting, formula=False)] += 1
            assert all(unchanged(before[key], each) for key, each in given.items()), f"{argument} = {label}"
    return outcomes


@pytest.mark.parametrize("name", CALLS)
def test_some_wrong_arguments(name, record_property):
    record_property("arguments", dict(ask(name, lambda labels: random.Random(name).sample(labels, SAMPLE))))


@pytest.mark.siege
@pytest.mark.parametrize("name", CALLS)
def test_all_wrong_arguments(name, record_property):
    record_property("arguments", dict(ask(name, lambda labels: labels)))


@pytest.mark.parametrize("name", CALLS)
def test_the_right_arguments_are_right(name):
    function, right, _ = CALLS[name]
    assert call(function, right, True, formula=False) == "a result"


def test_what_else_the_callbacks_refuse():
    with pytest.raises(TypeError, match="cam is NoneType; expected a method that trains, such as GradCAM"):
        Guidance(None, LOSS, "a", "b", None, "true")
    with pytest.raises(TypeError, match="criterion is CyborgLoss; expected SaliencyGuidedLoss, such as"):
        Guidance(CAM, CyborgLoss(), "a", "b", None, "true")
