"""The names of classes: given once, checked, and found in whatever shows a class."""

import copy
import json
import pickle

import pytest
import torch

from diffgradcam import (
    AugSmooth,
    EigenCAM,
    GradCAM,
    TrueFalseCAM,
    audit,
    explain_pairs,
    explain_together,
    important_features,
)
from diffgradcam._core.class_names import ClassNames, as_class_names
from diffgradcam.methods import registered_methods

from .models import images, pooled, transformer
from .untouched import untouched

NAMES = ["ant", "bee", "cat", "dog", "elk"]
X = images(3)


def test_a_list_names_all_classes_and_a_mapping_some():
    assert ClassNames(NAMES) == dict(enumerate(NAMES))
    some = ClassNames({2: "cat"})
    assert (some[2], some.get(1), len(some), list(some)) == ("cat", None, 1, [2])
    assert [some.label(index) for index in (2, 1)] == ["cat (2)", "class 1"]
    assert ClassNames() == {}
    assert as_class_names(some) is some
    assert as_class_names(None) == {}
    assert hash(ClassNames({2: "cat"})) == hash(some)


def test_a_label_is_one_line_whatever_the_name():
    assert ClassNames(["a\nb\x1b[31m", "\u7334"]).label(0) == "a\\nb\\x1b[31m (0)"
    assert ClassNames(["a", "\u7334"]).label(1) == "\u7334 (1)"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("abcde", TypeError, "class_names is str; expected names of classes; give a list"),
        (5, TypeError, "class_names is int; expected names of classes"),
        ([1, 2], TypeError, "class_names has 1 for class 0; expected a string"),
        ({"1": "bee"}, TypeError, r"class_names has the key '1'; expected integers.*give \{int\(key\)"),
        ({True: "bee"}, TypeError, "class_names has the key True; expected integers"),
        ({-1: "bee"}, ValueError, "class_names has the key -1; expected class indices, 0 or more"),
    ],
)
def test_what_is_no_names_is_refused_when_the_cam_is_made(given, error, message):
    with pytest.raises(error, match=message):
        GradCAM(pooled(), "relu", class_names=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NAMES[:4], "class_names has 4 names, but the model has 5 classes; give a list with one name for each class"),
        ([], "class_names has 0 names, but the model has 5 classes"),
        ([*NAMES, "fly"], "class_names has 6 names, but the model has 5 classes"),
        ({5: "fly"}, "class_names names class 5, but the model has classes 0 to 4"),
    ],
)
def test_names_of_other_classes_are_refused_and_the_model_is_untouched(given, message):
    model = pooled()
    asks = [
        lambda: GradCAM(model, "relu", class_names=given).explain(X),
        lambda: TrueFalseCAM(model, "relu", class_names=given).compare(X),
        lambda: explain_pairs(GradCAM(model, "relu", class_names=given), X, [0, 1]),
        lambda: important_features(model, X[0], "relu", class_names=given),
        lambda: audit(model, "relu", X, class_names=given),
    ]
    with untouched(model):
        for ask in asks:
            with pytest.raises(ValueError, match=message):
                ask()


@pytest.mark.parametrize("name", registered_methods())
def test_every_method_takes_them_and_hands_them_on(name):
    make = registered_methods()[name].make
    if name == "LeGrad":
        model = transformer()
        cam = make(model, "block", head=model.head, class_names=NAMES)
    else:
        cam = make(pooled(), *([] if name == "FullGrad" else ["relu"]), class_names=NAMES)
    assert "class_names=ClassNames(5: ant, bee, cat, ...)" in repr(cam)
    assert cam.explain(X).class_names == dict(enumerate(NAMES))


def test_they_are_kept_by_copies():
    cam = GradCAM(pooled(), "relu", class_names=NAMES)
    for other in (cam.replace(rectify=False), copy.deepcopy(cam), pickle.loads(pickle.dumps(cam))):
        assert other.class_names == cam.class_names
        assert other.explain(X).class_names == cam.class_names
    explanation = cam.explain(X)
    for other in (explanation._replace(maps=explanation.maps * 2), pickle.loads(pickle.dumps(explanation))):
        assert other.class_names == cam.class_names
    both = TrueFalseCAM(pooled(), "relu", class_names=NAMES).compare(X)
    for other in (both._replace(difference=both.difference * 2), copy.copy(both), copy.deepcopy(both)):
        assert other.class_names == cam.class_names
    assert AugSmooth(cam).explain(X).class_names == cam.class_names


def test_they_change_no_number():
    named = GradCAM(pooled(), "relu", class_names=NAMES).explain(X, "all")
    for one, other in zip(named, GradCAM(pooled(), "relu").explain(X, "all"), strict=True):
        assert torch.equal(one, other)
    assert GradCAM(pooled(), "relu").explain(X).class_names == {}


def test_each_of_several_cams_has_its_own():
    model = pooled()
    named, plain = explain_together([GradCAM(model, "relu", class_names=NAMES), EigenCAM(model, "relu")], X)
    assert (named.class_names.get(0), plain.class_names.get(0)) == ("ant", None)


def test_logits_that_have_no_classes_to_count_have_names_all_the_same():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1)).double()

    def target(output):
        return output[2].mean()

    explanation = GradCAM(model, "0", class_names=NAMES).explain(X, [target] * 3)
    assert explanation.logits.shape == (3, 5, 6, 5)
    assert explanation.class_names == dict(enumerate(NAMES))


def test_they_are_read_from_files(tmp_path):
    from diffgradcam.cli._models import read_class_names

    (tmp_path / "names.txt").write_text("ant\nbee\n")
    (tmp_path / "list.json").write_text(json.dumps(["ant", "bee"]))
    (tmp_path / "some.json").write_text(json.dumps({"1": "bee"}))
    assert read_class_names(tmp_path / "names.txt") == {0: "ant", 1: "bee"}
    assert read_class_names(tmp_path / "list.json") == {0: "ant", 1: "bee"}
    assert read_class_names(tmp_path / "some.json") == {1: "bee"}
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "words.json").write_text('{"one": "bee"}')
    (tmp_path / "number.json").write_text("3")
    for name in ("bad.txt", "bad.json", "words.json", "number.json"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as class names: .*; give a text file"):
            read_class_names(tmp_path / name)
