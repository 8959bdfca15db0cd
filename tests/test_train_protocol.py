"""Settings and splits: what trains, what chooses, what tests."""

import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffgradcam.training import PRESETS, Settings, split


def test_the_preset_of_cyborg_is_that_of_its_code():
    cyborg = Settings.preset("cyborg")
    assert (cyborg.optimizer, cyborg.learning_rate, cyborg.momentum, cyborg.weight_decay) == ("sgd", 0.005, 0.9, 1e-6)
    assert (cyborg.epochs, cyborg.batch_size, cyborg.alpha, cyborg.explained) == (50, 20, 0.5, "predicted")
    assert (cyborg.schedule, cyborg.step_epochs, cyborg.step_factor, cyborg.select) == ("step", 12, 0.1, "best")
    assert Settings.preset("cyborg", alpha="dynamic").alpha == "dynamic"
    assert Settings.from_dict(cyborg.to_dict()) == cyborg
    assert PRESETS["default"] == Settings()


def test_the_step_schedule_falls_every_twelve_epochs():
    rates = [Settings.preset("cyborg").rate(7 * epoch + 6, 7) for epoch in range(50)]
    assert rates[:12] == [0.005] * 12
    assert rates[12:24] == pytest.approx([5e-4] * 12)
    assert rates[48:] == pytest.approx([5e-7] * 2)


def test_the_cosine_rises_for_a_tenth_and_falls_to_nothing():
    settings = Settings(epochs=10, learning_rate=1.0)
    rates = [settings.rate(step, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert Settings(schedule="constant", learning_rate=0.3).rate(99, 1) == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mse"}, "loss is 'mse': expected one of 'ce', 'cyborg'"),
        ({"explained": "false"}, "explained is 'false': expected one of 'true', 'predicted'"),
        ({"epochs": 0}, "epochs is 0: expected at least 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0: expected at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: expected a number above 0"),
        ({"alpha": 1.5}, "alpha is 1.5; expected the weight of the classification"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_unknown_presets_and_fields():
    with pytest.raises(ValueError, match="preset is 'viser': expected one of 'default', 'cyborg'"):
        Settings.preset("viser")
    with pytest.raises(ValueError, match="settings hold colour: expected those of this version"):
        Settings.from_dict({"colour": 1})


LABELS = [0] * 60 + [1] * 40
GROUPS = ["live"] * 60 + ["print"] * 20 + ["mask"] * 20


def test_shares_are_those_asked_for_in_every_group():
    parts = split(LABELS, GROUPS, validation=0.2, test=0.3)
    for group, count in (("live", 60), ("print", 20), ("mask", 20)):
        got = [sum(GROUPS[i] == group for i in part) for part in parts[:3]]
        assert got == [count * 0.5, count * 0.2, count * 0.3]
    assert parts.open == []


def test_a_held_out_group_is_in_the_open_test_alone():
    parts = split(LABELS, GROUPS, hold_out="mask")
    assert not {GROUPS[i] for part in parts[:3] for i in part} & {"mask"}
    assert {i for i in parts.open if LABELS[i]} == set(range(80, 100))
    assert {i for i in parts.open if not LABELS[i]} == {i for i in parts.closed if not LABELS[i]}


def test_a_held_out_group_with_both_classes_is_tested_by_itself():
    groups = ["a", "b"] * 50
    parts = split(LABELS, groups, hold_out="b")
    assert parts.open == list(range(1, 100, 2))


def test_held_out_images_of_a_patient_of_training_are_in_no_part():
    patients = [f"p{i % 10}" for i in range(100)]
    parts = split(LABELS, GROUPS, patients, hold_out="mask")
    known = {patients[i] for i in parts.train + parts.validation}
    assert not known & {patients[i] for i in parts.open}
    assert any(GROUPS[i] == "mask" for i in parts.open)


@given(st.data())
@hypothesis_settings(max_examples=50, deadline=None)
def test_no_image_and_no_patient_is_in_two_parts(data):
    count = data.draw(st.integers(60, 120))
    patients = [data.draw(st.sampled_from(["", *"abcdefghijklmnopqrstuvwxyz"])) for _ in range(count)]
    labels = [i % 2 for i in range(count)]
    patients[:12] = [""] * 12  # so that every part gets both classes
    seed = data.draw(st.integers(0, 100))
    parts = split(labels, [""] * count, patients, seed=seed)
    indices = [i for part in parts[:3] for i in part]
    assert sorted(indices) == list(range(count))
    named = [{patients[i] for i in part} - {""} for part in parts[:3]]
    assert all(not first & second for first, second in itertools.combinations(named, 2))
    assert parts == split(labels, [""] * count, patients, seed=seed)


def test_another_seed_is_another_split():
    assert split(LABELS, GROUPS, seed=1) != split(LABELS, GROUPS, seed=2)


def test_bad_splits():
    with pytest.raises(ValueError, match="got 100 labels, 3 groups and 100 names: expected one per image"):
        split(LABELS, GROUPS[:3])
    with pytest.raises(ValueError, match=r"shares are 0\.5 for validation and 0.5 for testing"):
        split(LABELS, GROUPS, validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="no group 'replay': expected one of live, mask, print"):
        split(LABELS, GROUPS, hold_out="replay")
    with pytest.raises(ValueError, match="has no image of class 1"):
        split([0] * 10 + [1], [""] * 11)
    with pytest.raises(ValueError, match=r"no group 'mask': expected one of none$"):
        split([0, 1] * 9, [""] * 18, hold_out="mask")
    with pytest.raises(ValueError, match=r"no group 'mask': expected one of live, print$"):
        split([0, 1] * 9, ["", "print", "live"] * 6, hold_out="mask")
    two = [0] * 9 + [1] * 9 + [2, 3]  # of the last two classes there is one image each, and they stay together
    with pytest.raises(ValueError, match=r"^\w+ has no image of class 2, 3: expected more images, or fewer"):
        split(two, [""] * 20, [""] * 18 + ["one"] * 2, validation=0.3, test=0.3)
    with pytest.raises(ValueError, match="the closed test has no image of class 1: expected more images, or fewer"):
        split([0] * 40 + [1] * 2, [""] * 42, validation=0.0, test=0.1)
    with pytest.raises(ValueError, match="every image of the held-out group 'mask' is kept together"):
        split(LABELS, GROUPS, ["one"] * 30 + [""] * 50 + ["one"] * 20, hold_out="mask", test=0.1, validation=0.1)
