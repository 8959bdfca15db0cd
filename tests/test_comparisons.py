import pytest
import torch

from diffgradcam import (
    CAM,
    AblationCAM,
    AugSmooth,
    DiffGradCAM,
    FinerCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RefineCAM,
    ScoreCAM,
    explain_pairs,
    explain_together,
    layer_input,
)
from diffgradcam.scores import logit_difference
from tests.methods import exact
from tests.models import deep, flat, images, pooled, tokens, two_sizes
from tests.untouched import forward_passes, untouched

CAMS = {
    "GradCAM": lambda model: GradCAM(model, "relu"),
    "signed": lambda model: GradCAM(model, "relu", rectify=False),
    "HiResCAM": lambda model: HiResCAM(model, "relu"),
    "DiffGradCAM": lambda model: DiffGradCAM(model, "relu"),
    "mean": lambda model: DiffGradCAM(model, "relu", baseline="mean"),
}


def test_one_forward_pass_explains_as_each_cam_alone():
    model = pooled(classes=70)
    cams = [make(model) for make in CAMS.values()]
    cams += [FinerCAM(model, model.relu), LayerCAM(model, "relu", score=logit_difference)]
    for classes in (None, 3, torch.tensor([[0, 1], [2, 3], [69, 5]]), "all"):
        alone = [cam.explain(images(), classes) for cam in cams]
        counted = forward_passes(model)
        together = explain_together(cams, images(), classes)
        assert len(counted) == 1
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one.logits, other.logits)
            assert torch.equal(one.classes, other.classes)
            torch.testing.assert_close(one.maps, other.maps, rtol=0, atol=0)


def test_several_layers_together():
    model = two_sizes()
    layers = ["features", "small"]
    cams = [GradCAM(model, layers), DiffGradCAM(model, [model.features, model.small]), RefineCAM(model, layers)]
    for cam, together in zip(cams, explain_together(cams, images()), strict=True):
        torch.testing.assert_close(together.maps, cam.explain(images()).maps, rtol=0, atol=0)


def test_cams_that_cannot_share_a_forward_pass_are_told_why():
    model, attention = pooled(), tokens()

    def together(first, second):
        return explain_together([first, second], images())

    with pytest.raises(ValueError, match=r"'relu'\) and HiResCAM \(layers 'stem'\) differ in the target layers"):
        together(GradCAM(model, "relu"), HiResCAM(model, "stem"))
    with pytest.raises(ValueError, match="differ in the target layers"):
        together(GradCAM(model, "pool"), GradCAM(model, layer_input("pool")))
    with pytest.raises(ValueError, match="differ in the model and the target layers"):
        together(GradCAM(model, "relu"), GradCAM(pooled(), "relu"))
    with pytest.raises(ValueError, match=r"differ in output="):
        together(GradCAM(model, "relu"), GradCAM(model, "relu", output=lambda o: o))
    with pytest.raises(ValueError, match=r"differ in reshape_transform="):
        together(GradCAM(attention, "block"), GradCAM(attention, "block", lambda t: t))
    with pytest.raises(TypeError, match="cam is AugSmooth; expected a CAM of this library"):
        together(GradCAM(model, "relu"), AugSmooth(GradCAM(model, "relu")))
    with pytest.raises(ValueError, match="no CAMs to explain with; expected at least one"):
        explain_together([], images())


# --- every pair of several classes

LINEAR = {
    "GradCAM": GradCAM,
    "HiResCAM": HiResCAM,
    "LayerCAM": LayerCAM,
    "GradCAM++": GradCAMPlusPlus,
    "CAM": CAM,
    "RefineCAM": RefineCAM,
    "AblationCAM": lambda *args, **options: AblationCAM(*args, progress=False, **options),
    "ScoreCAM": lambda *args, **options: ScoreCAM(*args, progress=False, **options),
}


@pytest.mark.parametrize("name", LINEAR)
def test_each_pair_is_the_contrast_of_one_class_with_the_other(name):
    model, chosen = pooled(), [4, 0, 2]
    logits, classes, maps = explain_pairs(LINEAR[name](model, "relu"), images(), chosen)
    exact(logits, model(images()).detach())
    assert classes.tolist() == [chosen] * 3
    assert maps.shape == (3, 3, 3, 6, 5)
    for i, first in enumerate(chosen):
        for j, second in enumerate(chosen):
            if i == j:
                assert not maps[:, i, j].any()
                continue

            def score(z, _, first=first, second=second):
                return z[:, first] - z[:, second]

            exact(maps[:, i, j], LINEAR[name](model, "relu", score=score).explain(images(), first).maps)


def test_pairs_of_a_linear_method_are_differences_of_its_maps():
    model, chosen = flat(), torch.tensor([[0, 1, 2], [1, 3, 4], [4, 2, 0]])
    single = GradCAM(model, "relu", rectify=False).explain(images(), chosen).maps
    _, classes, maps = explain_pairs(DiffGradCAM(model, "relu", rectify=False), images(), chosen)
    assert torch.equal(classes, chosen)
    exact(maps, single.unsqueeze(2) - single.unsqueeze(1))
    exact(maps, -maps.transpose(1, 2))


def test_pairs_of_more_classes_than_one_block_holds():
    model, chosen = pooled(classes=70), torch.arange(70)
    single = GradCAM(model, "relu", rectify=False).explain(images(1), "all").maps
    maps = explain_pairs(GradCAM(model, "relu", rectify=False), images(1), chosen).maps
    exact(maps, single.unsqueeze(2) - single.unsqueeze(1))


def test_pairs_of_the_likeliest_classes_and_of_several_layers():
    model = two_sizes()
    cam = GradCAM(model, ["features", "small"])
    logits, classes, maps = explain_pairs(cam, images(), "top2")
    assert torch.equal(classes, logits.topk(2).indices)
    for row in range(3):
        one, other = classes[row].tolist()
        expected = GradCAM(model, ["features", "small"], score=lambda z, _, i=one, j=other: z[:, i] - z[:, j])
        exact(maps[row, 0, 1], expected.explain(images()[row : row + 1], one).maps[0])


def test_what_all_classes_share_is_in_no_pair():
    model, fooled = pooled(), pooled()
    fooled.head.weight.data += torch.randn(1, fooled.head.in_features, dtype=torch.float64)
    before, after = (explain_pairs(GradCAM(each, "relu"), images(), [0, 1, 2]).maps for each in (model, fooled))
    exact(before, after)


def test_pairs_leave_model_and_cam_as_they_were():
    model = deep()
    cam = DiffGradCAM(model, "relu", baseline="max")
    score, before = cam.score, cam.explain(images()).maps
    counted = forward_passes(model)
    with untouched(model):
        explain_pairs(cam, images(), [0, 1])
    assert len(counted) == 1
    assert cam.score is score
    assert torch.equal(cam.explain(images()).maps, before)


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([3], ValueError, r"classes are \[3\]; a matrix of pairs needs at least two classes"),
        ("top1", ValueError, "classes are 'top1'; a matrix of pairs needs at least two classes"),
        (3, ValueError, r"classes are 3; a matrix of pairs needs at least two classes"),
        ([1, 2, 1], ValueError, "class 1 comes twice; give each class of the matrix once"),
        (torch.tensor([[0, 1], [2, 3], [4, 4]]), ValueError, "class 4 comes twice"),
        ([0, 5], ValueError, "class 5 is out of range; the model has classes 0 to 4"),
        ([0.5, 1], TypeError, "classes are torch.float32; expected integers"),
        (["cat", "dog"], TypeError, r"classes are \[\['cat', 'dog'\].*\]; expected integers"),
        (None, ValueError, "classes are None; a matrix of pairs needs"),
        ("some", ValueError, "classes='some'; the words for classes are 'all'"),
        ("top6", ValueError, "classes='top6', but the model has 5 classes"),
    ],
    ids=str,
)
def test_pairs_of_other_classes_are_refused(classes, error, message):
    model = deep()
    with untouched(model), pytest.raises(error, match=message):
        explain_pairs(GradCAM(model, "relu"), images(), classes)


def test_pairs_are_explained_by_a_cam():
    with pytest.raises(TypeError, match=r"cam is AugSmooth; expected a CAM of this library, such as GradCAM\("):
        explain_pairs(AugSmooth(GradCAM(deep(), "relu")), images(), [0, 1])
