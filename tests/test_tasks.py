"""Architectures of the three big libraries, with random weights, and tasks other than classification.

The oracle everywhere: Grad-CAM by hand, one score at a time, with autograd through the whole model.
"""

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, TrueFalseCAM, layer_input
from diffgradcam.heatmaps import minmax, resize
from diffgradcam.scores import log_probability, logit_difference
from diffgradcam.targets import FasterRCNNBoxScoreTarget, SemanticSegmentationTarget, SimilarityTarget, detections
from diffgradcam.tokens import swinT_reshape_transform, tokens_to_grid, vit_reshape_transform
from diffgradcam.utils import model_targets

from .conftest import import_peer
from .models import backbone, seeded
from .untouched import untouched

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def identity(x):
    return x


def by_hand(module, forward, score, grid=identity, weighting="gradcam"):
    """``relu(sum_c w_c A_c)`` for the sum of ``score(forward())`` over the images, and what forward returned."""
    recorded = []

    def record(_module, _args, output):
        recorded.append(output)
        return output.clone()  # an in-place ReLU may follow

    handle = module.register_forward_hook(record)
    try:
        output = forward()
    finally:
        handle.remove()
    (activations,) = recorded
    (gradient,) = torch.autograd.grad(score(output), activations)
    activations, gradient = grid(activations.detach()), grid(gradient)
    if weighting == "gradcam":
        gradient = gradient.flatten(2).mean(2).view(*gradient.shape[:2], *[1] * (gradient.ndim - 2))
    else:
        gradient = gradient.relu()
    return torch.stack([(gradient[:, c] * activations[:, c]) for c in range(activations.shape[1])]).sum(0).relu()


def log_odds(logits, classes):
    """``log(p / (1 - p))`` of the class of each row, from ``(..., K)`` logits as sums of exponentials."""
    rows = []
    for z, c in zip(logits, classes.tolist(), strict=True):
        others = torch.stack([z[j] for j in range(len(z)) if j != c])
        top = others.detach().max()
        rows.append(z[c] - top - (others - top).exp().sum().log())
    return torch.stack(rows)


def enlarged(maps, size):
    """What the call shows of maps."""
    return minmax(resize(minmax(maps), size)).float().numpy()


def close(actual, expected):
    assert expected.abs().max() > 1e-9, "a map that is 0 everywhere shows nothing"
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


def last(model, suffix):
    """The name of the last layer that ends like this: releases of transformers differ in what comes before."""
    return [name for name, _ in model.named_modules() if name.endswith(suffix)][-1]


# --- classifiers


def hugging_face(transformers, name):
    """A tiny model of Hugging Face's, a layer of it and what brings that into a grid."""
    patches = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
               "image_size": 32, "patch_size": 8, "num_labels": 3}  # fmt: skip
    windows = {"image_size": 32, "patch_size": 2, "embed_dim": 6, "depths": [1, 1], "num_heads": [1, 2],
               "window_size": 4, "num_labels": 3}  # fmt: skip
    stages = {"hidden_sizes": [6, 12], "depths": [1, 1], "num_labels": 3}
    kind, options, suffix, grid = {
        "ViT": ("ViT", patches, "layernorm_before", tokens_to_grid),
        "ViT, its patches": ("ViT", patches, "patch_embeddings.projection", None),
        "DeiT": ("DeiT", patches, "layernorm_before", tokens_to_grid),
        "Swin": ("Swin", windows, "swin.layernorm", tokens_to_grid),
        "Swin, as in pytorch-grad-cam": ("Swin", windows, "swin.layernorm", swinT_reshape_transform),
        "ConvNext": ("ConvNext", {**stages, "num_stages": 2}, "encoder.stages.1", None),
        "ResNet": ("ResNet", {**stages, "embedding_size": 6, "layer_type": "basic"}, "encoder.stages.1", None),
    }[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    model = seeded(lambda: getattr(transformers, f"{kind}ForImageClassification")(config))
    return model, last(model, suffix), grid


def timms(timm, name):
    patches = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    windows = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 6, "depths": (1, 1), "num_heads": (1, 2)}
    architecture, options, layer, grid = {
        "ViT": ("vit_tiny_patch16_224", patches, "blocks.1.norm1", tokens_to_grid),
        "ViT, as in pytorch-grad-cam": ("vit_tiny_patch16_224", patches, "blocks.1.norm1", vit_reshape_transform),
        "DeiT": ("deit_tiny_distilled_patch16_224", patches, "blocks.1.norm1", tokens_to_grid),
        "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", patches, "blocks.1.norm1", tokens_to_grid),
        "Swin": ("swin_tiny_patch4_window7_224", windows, "layers.1.blocks.0.norm2", tokens_to_grid),
        "ConvNeXt": ("convnext_atto", {"depths": (1,) * 4, "dims": (6,) * 4}, "stages.2", None),
        "DenseNet": ("densenet121", {"growth_rate": 4, "block_config": (1, 1)}, "features", None),
    }[name]
    return seeded(lambda: timm.create_model(architecture, num_classes=3, **options)), layer, grid


def torchvisions(models, name):
    patches = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 12, "mlp_dim": 16}
    windows = {"patch_size": [2, 2], "window_size": [4, 4], "embed_dim": 6, "depths": [1, 1], "num_heads": [1, 2]}
    block = models.convnext.CNBlockConfig
    build, layer, grid = {
        "ViT": (lambda: models.VisionTransformer(num_classes=3, **patches), "encoder.layers.encoder_layer_1.ln_1", 1),
        "Swin": (lambda: models.SwinTransformer(num_classes=3, **windows), "norm", 1),
        "ConvNeXt": (lambda: models.ConvNeXt([block(6, 12, 1), block(12, None, 1)], num_classes=3), "features", None),
        "ResNet": (lambda: models.ResNet(models.resnet.BasicBlock, [1] * 4, num_classes=3), "layer2", None),
        "DenseNet": (lambda: models.DenseNet(4, (1, 1), 6, num_classes=3), "features", None),
    }[name]

    def with_a_head():  # torchvision begins with a head of zeros, which no layer would matter to
        model = build()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return model

    return seeded(with_a_head), layer, grid and tokens_to_grid


CLASSIFIERS = [
    *(("transformers", hugging_face, name) for name in (
        "ViT", "ViT, its patches", "DeiT", "Swin", "Swin, as in pytorch-grad-cam", "ConvNext", "ResNet")),
    *(("timm", timms, name) for name in (
        "ViT", "ViT, as in pytorch-grad-cam", "DeiT", "DINOv2, registers", "Swin", "ConvNeXt", "DenseNet")),
    *(("torchvision.models", torchvisions, name) for name in ("ViT", "Swin", "ConvNeXt", "ResNet", "DenseNet")),
]  # fmt: skip


@pytest.mark.parametrize(("library", "build", "name"), CLASSIFIERS, ids=[f"{a}: {c}" for a, _, c in CLASSIFIERS])
def test_classifiers_of_the_big_libraries_need_no_wrapper(library, build, name):
    model, layer, grid = build(import_peer(library), name)
    module = model.get_submodule(layer)

    def forward():
        output = model(IMAGES)
        return output if isinstance(output, torch.Tensor) else output.logits

    with untouched(model):
        logits, classes, maps = GradCAM(model, layer, grid).explain(IMAGES)
        contrast = DiffGradCAM(model, layer, grid).explain(IMAGES, classes).maps
        positions = LayerCAM(model, layer, grid).explain(IMAGES, torch.tensor([0, 2])).maps
        every = GradCAM(model, [module], grid).explain(IMAGES, "all").maps
        shown = GradCAM(model, [module], reshape_transform=grid)(IMAGES, [0, 2])
    close(logits, forward().detach())
    picked = torch.arange(2), classes
    close(maps, by_hand(module, forward, lambda z: z[picked].sum(), grid or identity))
    close(every[picked], maps)
    close(contrast, by_hand(module, forward, lambda z: log_odds(z, classes).sum(), grid or identity))
    close(positions, by_hand(module, forward, lambda z: z[0, 0] + z[1, 2], grid or identity, "layercam"))
    by_class = by_hand(module, forward, lambda z: z[0, 0] + z[1, 2], grid or identity)
    np.testing.assert_allclose(shown, enlarged(by_class, (32, 32)), atol=1e-6)


def test_after_the_last_attention_only_the_class_token_counts():
    """Which is why the layer to choose is the norm before it. Pooled models are different: there, patches count."""
    timm = import_peer("timm")
    model, _, grid = timms(timm, "ViT")
    assert GradCAM(model, "blocks.1", grid).explain(IMAGES).maps.abs().sum() == 0
    assert GradCAM(model, "blocks.1.norm1", grid, rectify=False).explain(IMAGES).maps.abs().sum() > 0


def test_images_that_are_not_square():
    transformers = import_peer("transformers")
    model, layer, _ = hugging_face(transformers, "ViT")
    images = resize(IMAGES.flatten(0, 1), (40, 48)).unflatten(0, (2, 3))  # 5 x 6 patches
    maps = GradCAM(model, layer, tokens_to_grid).explain(images, 1, interpolate_pos_encoding=True).maps
    expected = by_hand(
        model.get_submodule(layer),
        lambda: model(images, interpolate_pos_encoding=True).logits,
        lambda z: z[:, 1].sum(),
        lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (5, 6)),
    )
    assert maps.shape == (2, 5, 6)
    close(maps, expected)


class TupleLayer(nn.Module):
    """As the encoder layers of many releases of transformers: ``(hidden states, attentions)``."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.mix(self.norm(x)).tanh(), None


class TupleLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 8, 8)
        self.layers = nn.ModuleList(TupleLayer() for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x.square().mean(1))


def test_layers_that_give_tuples_name_what_works_instead():
    model = seeded(TupleLayers)
    message = r"^layer 'layers.0' gives tuple; .*: choose a module inside it, or layer_input\(\) of a module that takes"
    with pytest.raises(TypeError, match=message):
        GradCAM(model, "layers.0", tokens_to_grid).explain(IMAGES)
    inside = GradCAM(model, "layers.0.norm", tokens_to_grid).explain(IMAGES, 0).maps
    close(inside, by_hand(model.layers[0].norm, lambda: model(IMAGES), lambda z: z[:, 0].sum(), tokens_to_grid))
    # What leaves layer 0 is what enters layer 1.
    after = GradCAM(model, layer_input("layers.1"), tokens_to_grid).explain(IMAGES, 0).maps
    model.layers[0] = nn.Sequential(model.layers[0], First())
    model.layers[0].register_forward_hook(lambda _module, _args, output: (output, None))
    close(after, by_hand(model.layers[0][1], lambda: model(IMAGES), lambda z: z[:, 0].sum(), tokens_to_grid))


class First(nn.Module):
    def forward(self, x):
        return x[0]


# --- CLIP-like similarity


@pytest.fixture(scope="module")
def clip():
    transformers = import_peer("transformers")
    layers = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**layers, "vocab_size": 9, "max_position_embeddings": 4, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=7,
    )
    model = seeded(lambda: transformers.CLIPModel(config))
    model.logit_scale.data.fill_(1.5)
    try:
        model(input_ids=PROMPTS, pixel_values=IMAGES)
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        pytest.skip("this version of transformers makes the causal mask of CLIP in float32, whatever the model is")
    return model


PROMPTS = torch.tensor([[0, 4, 1], [0, 5, 1], [0, 6, 1], [0, 7, 1]])
PROMPT = torch.tensor([3, 0])


def test_image_text_similarity(clip):
    """The logits are the similarities to each prompt, and a class is a prompt."""
    layer = last(clip, "layer_norm1").replace("text_model", "vision_model")
    cam = GradCAM(clip, layer, tokens_to_grid, output=lambda o: o.logits_per_image)
    with untouched(clip):
        logits, prompts, maps = cam.explain(PROMPTS, PROMPT, pixel_values=IMAGES)

    def forward():
        return clip(input_ids=PROMPTS, pixel_values=IMAGES).logits_per_image

    assert logits.shape == (2, 4)
    assert torch.equal(prompts, PROMPT)
    close(logits, forward().detach())
    module = clip.get_submodule(layer)
    close(maps, by_hand(module, forward, lambda z: z[0, 3] + z[1, 0], tokens_to_grid))
    against_all = DiffGradCAM(clip, layer, tokens_to_grid, output=lambda o: o.logits_per_image)
    expected = by_hand(module, forward, lambda z: log_odds(z, PROMPT).sum(), tokens_to_grid)
    close(against_all.explain(PROMPTS, PROMPT, pixel_values=IMAGES).maps, expected)
    against_one = DiffGradCAM(clip, layer, tokens_to_grid, baseline=1, output=lambda o: o.logits_per_image)
    expected = by_hand(module, forward, lambda z: z[0, 3] + z[1, 0] - z[0, 1] - z[1, 1], tokens_to_grid)
    close(against_one.explain(PROMPTS, PROMPT, pixel_values=IMAGES).maps, expected)


def test_image_and_text_embeddings(clip):
    """The texts embedded once, the call of the image tower alone: nothing but ``output=`` is needed."""
    texts = F.normalize(clip(input_ids=PROMPTS, pixel_values=IMAGES).text_embeds, dim=-1).detach()
    tower, layer = clip.vision_model, last(clip.vision_model, "layer_norm1")

    def embed(output):
        return clip.visual_projection(output.pooler_output)

    def forward():
        return F.normalize(embed(tower(pixel_values=IMAGES)), dim=-1) @ texts.T

    module = tower.get_submodule(layer)
    prompts = DiffGradCAM(tower, layer, tokens_to_grid, output=lambda o: F.normalize(embed(o), dim=-1) @ texts.T)
    similarity = GradCAM(tower, layer, tokens_to_grid, output=embed)
    with untouched(clip):
        shown = prompts(IMAGES, PROMPT)
        one_text = similarity(IMAGES, [SimilarityTarget(4 * texts[3]), SimilarityTarget(texts[0])])
    contrast = by_hand(module, forward, lambda z: log_odds(z, PROMPT).sum(), tokens_to_grid)
    np.testing.assert_allclose(shown, enlarged(contrast, (32, 32)), atol=1e-6)
    cosines = by_hand(module, forward, lambda z: z[0, 3] + z[1, 0], tokens_to_grid)
    np.testing.assert_allclose(one_text, enlarged(cosines, (32, 32)), atol=1e-6)


def test_similarity_target():
    image, text = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([4.0, 3.0, 0.0], requires_grad=True)
    assert float(SimilarityTarget(text)(image)) == pytest.approx(10 / (3 * 5))
    assert not SimilarityTarget(text)(image).requires_grad
    with torch.inference_mode():
        inference = torch.tensor([4.0, 3.0, 0.0])
    source = image.clone().requires_grad_()
    SimilarityTarget(inference)(source).backward()
    expected = torch.tensor([4.0, 3.0, 0.0]) / 15 - 10 / 15 * image / 9
    torch.testing.assert_close(source.grad, expected)
    with pytest.raises(
        ValueError, match=r"^embedding has shape \(2, 3\); expected the embedding of one .*, \(D,\), and"
    ):
        SimilarityTarget(torch.zeros(2, 3))
    message = r"^the output for an image has shape \(4,\), the embedding .* \(3,\); .*output=lambda o: o.image_embeds$"
    with pytest.raises(ValueError, match=message):
        SimilarityTarget(text)(torch.zeros(4))


# --- semantic segmentation


def segmenter(name):
    """A model that scores pixels, a layer of it, its ``output=`` and the size of its own output."""
    if name == "SegFormer":
        transformers = import_peer("transformers")
        config = transformers.SegformerConfig(
            hidden_sizes=[4, 4, 4, 6], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=6, num_labels=3
        )
        model = seeded(lambda: transformers.SegformerForSemanticSegmentation(config))
        model(IMAGES)  # on its first run, it installs hooks of its own
        return model, "decode_head.linear_fuse", lambda o: F.interpolate(o.logits, (32, 32), mode="bilinear")
    segmentation = import_peer("torchvision.models.segmentation")
    models = import_peer("torchvision.models")

    def build():
        layers = models._utils.IntermediateLayerGetter(
            models.ResNet(models.resnet.BasicBlock, [1] * 4), {"layer2": "out"}
        )
        head = {"FCN": segmentation.fcn.FCNHead, "DeepLabV3": segmentation.deeplabv3.DeepLabHead}[name]
        return segmentation.FCN(layers, head(128, 3))

    return seeded(build), "backbone.layer2", lambda o: o["out"]


@pytest.fixture
def masks():
    """Of two images: a box, and weights of pixels."""
    box = np.zeros((32, 32), dtype=bool)
    box[4:20, 8:30] = True
    return [box, torch.rand(32, 32)]


def others(z, c):
    return torch.stack([z[j] for j in range(len(z)) if j != c])


PIXEL_SCORES = {
    "logit": ({}, lambda z, c: z[c]),
    "against all": ({"score": logit_difference}, lambda z, c: z[c] - others(z, c).logsumexp(0)),
    "against the next": (
        {"score": partial(logit_difference, baseline="max")}, lambda z, c: z[c] - others(z, c).amax(0)),
    "against one": ({"score": partial(logit_difference, baseline=0)}, lambda z, c: z[c] - z[0]),
    "log-probability": ({"score": log_probability}, lambda z, c: z.log_softmax(0)[c]),
}  # fmt: skip


@pytest.mark.parametrize("name", ["FCN", "DeepLabV3", "SegFormer"])
def test_segmentation(name, masks):
    model, layer, output = segmenter(name)
    cam = GradCAM(model, layer, output=output)
    found = []
    for options, per_pixel in PIXEL_SCORES.values():
        targets = [SemanticSegmentationTarget(c, mask, **options) for c, mask in zip((1, 2), masks, strict=True)]
        with untouched(model):
            shown = cam(IMAGES, targets)

        def score(z, per_pixel=per_pixel):
            weights = [torch.as_tensor(mask) for mask in masks]
            return sum((per_pixel(z[i], i + 1) * weights[i]).sum() for i in (0, 1))

        expected = by_hand(model.get_submodule(layer), lambda: output(model(IMAGES)), score)
        np.testing.assert_allclose(shown, enlarged(expected, (32, 32)), atol=1e-5)
        found.append(shown)
    assert all(abs(found[0] - other).max() > 0.01 for other in found[1:]), "the contrast is another question"


def test_a_masked_sum_as_logits_gives_every_class_and_every_contrast(masks):
    """``explain`` takes segmentation too: with the mask in ``output=``, each category has one logit."""
    model, layer, output = segmenter("FCN")
    mask = torch.as_tensor(masks[0]).double()
    cam = GradCAM(model, layer, output=lambda o: (output(o) * mask).sum((2, 3)))
    every = cam.explain(IMAGES, "all").maps
    target = [SemanticSegmentationTarget(2, mask)] * 2
    np.testing.assert_allclose(
        enlarged(every[:, 2], (32, 32)), GradCAM(model, layer, output=output)(IMAGES, target), atol=1e-6
    )
    # Of a linear contrast, it makes no difference whether pixels are summed before or after.
    contrast = DiffGradCAM(model, layer, baseline="mean", output=lambda o: (output(o) * mask).sum((2, 3)))
    target = [SemanticSegmentationTarget(2, mask, score=partial(logit_difference, baseline="mean"))] * 2
    np.testing.assert_allclose(
        contrast(IMAGES, [2, 2]), GradCAM(model, layer, output=output)(IMAGES, target), atol=1e-6
    )


def test_segmentation_mistakes():
    scores = torch.zeros(3, 8, 8)
    message = (
        r"has shape \(3, 8, 8\) and the mask \(32, 32\); expected .*output=lambda o: torch.nn.functional.interpola"
    )
    with pytest.raises(ValueError, match=message):
        SemanticSegmentationTarget(1, np.ones((32, 32)))(scores)
    with pytest.raises(
        ValueError, match=r"has shape \(3,\) and the mask \(8, 8\); expected per-pixel scores \(K, H, W"
    ):
        SemanticSegmentationTarget(1, np.ones((8, 8)))(scores[:, 0, 0])
    with pytest.raises(ValueError, match=r"^category 3 is out of range; the model has categories 0 to 2$"):
        SemanticSegmentationTarget(3, np.ones((8, 8)))(scores)
    model, layer, _ = segmenter("FCN")
    with pytest.raises(
        TypeError, match=r"the model returned .* with keys \['out'\].*such as output=lambda o: o\['out'\]$"
    ):
        GradCAM(model, layer).explain(IMAGES)


# --- object detection


def nms(boxes, scores, iou_threshold):
    """Greedy non-maximum suppression, for a torchvision whose compiled operators do not load."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i].tolist(), boxes[j].tolist()) <= iou_threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


def overlap(a, b):
    """Intersection over union of two boxes."""
    width, height = (max(0.0, min(a[2 + i], b[2 + i]) - max(a[i], b[i])) for i in (0, 1))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area else 0.0


@pytest.fixture
def detection(monkeypatch):
    """torchvision's detectors, also where its compiled ``nms`` does not load."""
    module = import_peer("torchvision.models.detection")
    ops = import_peer("torchvision.ops")
    try:
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError:
        monkeypatch.setattr(ops.boxes, "nms", nms)
        # There, its roi_align is one in Python that is compiled first, which takes longer than the tests.
        roi = importlib.import_module("torchvision.ops.roi_align")
        monkeypatch.setattr(roi, "_roi_align", getattr(roi._roi_align, "__wrapped__", roi._roi_align))
    return module


def detector(detection, name):
    models = import_peer("torchvision.models")

    def build():
        layers = models._utils.IntermediateLayerGetter(
            models.ResNet(models.resnet.BasicBlock, [1] * 4), {"layer2": "0"}
        )
        layers.out_channels = 128
        anchors = detection.rpn.AnchorGenerator(((8, 16),), ((0.5, 1.0, 2.0),))
        sizes = {"min_size": 32, "max_size": 32, "num_classes": 3, "detections_per_img": 6}
        if name == "RetinaNet":
            return detection.RetinaNet(layers, anchor_generator=anchors, score_thresh=0.0, topk_candidates=30, **sizes)
        sizes.pop("detections_per_img")
        pool = import_peer("torchvision.ops").MultiScaleRoIAlign(["0"], 3, 2)
        sizes |= {"rpn_anchor_generator": anchors, "box_roi_pool": pool, "rpn_post_nms_top_n_test": 20}
        head, predictor = detection.faster_rcnn.TwoMLPHead(128 * 9, 16), detection.faster_rcnn.FastRCNNPredictor(16, 3)
        del sizes["num_classes"]
        return detection.FasterRCNN(layers, box_head=head, box_predictor=predictor, box_score_thresh=0.0,
                                    box_detections_per_img=6, **sizes)  # fmt: skip

    model = seeded(build)
    for parameter in model.parameters():
        parameter.data.div_(3)  # larger weights move every box out of the image
    return model


@pytest.mark.parametrize("name", ["Faster R-CNN", "RetinaNet"])
def test_detectors_of_torchvision(detection, name):
    model = detector(detection, name)
    images = IMAGES.abs()
    found = [{key: value.detach() for key, value in one.items()} for one in model(images)]
    assert all(len(one["boxes"]) >= 2 for one in found)
    given = [(one["labels"][:2], one["boxes"][:2] + 0.5) for one in found]
    targets = [FasterRCNNBoxScoreTarget(labels, boxes) for labels, boxes in given]
    with untouched(model):
        shown = GradCAM(model, "backbone.layer2", output=detections)(images, targets)

    def score(output):
        total = 0
        for one, (labels, boxes) in zip(output, given, strict=True):
            for label, box in zip(labels, boxes, strict=True):
                best = max(range(len(one["boxes"])), key=lambda i: overlap(box.tolist(), one["boxes"][i].tolist()))
                assert one["labels"][best] == label
                low, high = (
                    torch.maximum(box[:2], one["boxes"][best][:2]),
                    torch.minimum(box[2:], one["boxes"][best][2:]),
                )
                shared = (high - low).prod()
                areas = sum((b[2:] - b[:2]).prod() for b in (box, one["boxes"][best]))
                total = total + one["scores"][best] + shared / (areas - shared)
        return total

    expected = by_hand(model.backbone.layer2, lambda: model(images), score)
    np.testing.assert_allclose(shown, enlarged(expected, (32, 32)), atol=1e-5)


def test_box_score_target_is_that_of_pytorch_grad_cam():
    peer = import_peer("pytorch_grad_cam.utils.model_targets")
    corners = torch.rand(7, 2) * 10
    boxes = torch.cat([corners, corners + 1 + torch.rand(7, 2) * 10], 1)
    found = {"boxes": boxes, "labels": torch.tensor([1, 2, 1, 1, 2, 2, 1]), "scores": torch.rand(7)}
    labels, given = [1, 1, 2, 1], (boxes[[0, 1, 4, 6]] + torch.randn(4, 4)).numpy()
    for threshold in (0.0, 0.3, 0.5, 0.8):
        theirs = peer.FasterRCNNBoxScoreTarget(labels, given, threshold)(found)
        for kind in (labels, np.array(labels), torch.tensor(labels)):
            ours = FasterRCNNBoxScoreTarget(kind, given, threshold)
            torch.testing.assert_close(ours(found), theirs[0])
            torch.testing.assert_close(ours(detections([found])[0]), theirs[0])
    assert model_targets.FasterRCNNBoxScoreTarget is FasterRCNNBoxScoreTarget


def test_detections_in_one_tensor():
    first = {"boxes": torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]), "labels": torch.tensor([8, 9]),
             "scores": torch.tensor([0.5, 0.25]), "masks": torch.zeros(2, 1, 4, 4)}  # fmt: skip
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    expected = [[[0, 1, 2, 3, 0.5, 8], [4, 5, 6, 7, 0.25, 9]], [[-1] * 6] * 2]
    assert detections([first, none]).tolist() == expected
    assert detections([none]).shape == (1, 0, 6)
    assert detections([]).shape == (0, 0, 6)
    for nothing in (none, detections([none])[0], detections([first, none])[1]):
        value = FasterRCNNBoxScoreTarget([0], [[0, 0, 4, 4]], iou_threshold=0.0)(nothing)
        assert value.shape == ()
        assert float(value) == 0
    with pytest.raises(TypeError, match=r"^detections\(\) got Tensor; expected a list with a dictionary of boxes, "):
        detections(torch.zeros(2, 5))
    with pytest.raises(
        TypeError, match=r"^detections\(\) got list; expected a list with a dictionary of boxes, labels"
    ):
        detections([{"boxes": torch.zeros(0, 4)}])


def test_detection_mistakes(detection):
    with pytest.raises(
        ValueError, match=r"^2 labels for bounding_boxes of shape \(1, 4\); expected a label for each box"
    ):
        FasterRCNNBoxScoreTarget([1, 2], [[0, 0, 4, 4]])
    with pytest.raises(
        ValueError, match=r"^1 labels for bounding_boxes of shape \(4,\); .*boxes \(N, 4\) as \(x1, y1, x"
    ):
        FasterRCNNBoxScoreTarget([1], [0, 0, 4, 4])
    message = r"^the output for an image has shape \(5,\); expected .*with output=diffgradcam.targets.detections$"
    with pytest.raises(ValueError, match=message):
        FasterRCNNBoxScoreTarget([1], [[0, 0, 4, 4]])(torch.zeros(5))
    model = detector(detection, "RetinaNet")
    with pytest.raises(TypeError, match=r"returned detections; .*output=diffgradcam.targets.detections"):
        GradCAM(model, "backbone.layer2")(IMAGES)
    elsewhere = [FasterRCNNBoxScoreTarget([1], [[500, 500, 501, 501]])] * 2
    message = r"FasterRCNNBoxScoreTarget returned the constant 0 \(nothing in the output matches it, or it detaches\)"
    with pytest.raises(ValueError, match=message):
        GradCAM(model, "backbone.layer2", output=detections)(IMAGES, elsewhere)


@pytest.mark.parametrize("name", ["DETR", "YOLOS"])
def test_detection_by_queries_is_classification_of_a_query(name):
    """Each query has logits: ``output=`` chooses one, "no object" (the last class) is a contrast like any other."""
    transformers = import_peer("transformers")
    if name == "DETR":
        backbone_config = transformers.ResNetConfig(
            embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        config = transformers.DetrConfig(
            use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=backbone_config,
            d_model=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=5,
            encoder_attention_heads=2, decoder_attention_heads=2, num_labels=3)  # fmt: skip
        model, layer, grid = transformers.DetrForObjectDetection, "input_projection", identity
    else:
        config = transformers.YolosConfig(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=[32, 32],
            patch_size=8, num_detection_tokens=5, num_labels=3)  # fmt: skip
        model, layer = transformers.YolosForObjectDetection, "layernorm_before"

        def grid(tokens):  # one class token first, the detection tokens last
            return tokens_to_grid(tokens[:, :-5], extra_tokens=1)

    model = seeded(lambda: model(config))
    layer, query, classes = last(model, layer), 3, torch.tensor([0, 2])
    module = model.get_submodule(layer)

    def forward():
        return model(IMAGES).logits[:, query]

    forward()  # on its first run, a model of transformers installs hooks of its own
    cam = GradCAM(model, layer, grid, output=lambda o: o.logits[:, query])
    against_nothing = DiffGradCAM(model, layer, grid, baseline=3, output=lambda o: o.logits[:, query])
    with untouched(model):
        logits, _, maps = cam.explain(IMAGES, classes)
        contrast = against_nothing.explain(IMAGES, classes).maps
    assert logits.shape == (2, 4)
    close(maps, by_hand(module, forward, lambda z: z[0, 0] + z[1, 2], grid))
    close(contrast, by_hand(module, forward, lambda z: z[0, 0] + z[1, 2] - z[:, 3].sum(), grid))
    # A box is a score too: how far to the right does the model see it?
    right = GradCAM(model, layer, grid, output=lambda o: o.pred_boxes[:, query]).explain(IMAGES, 0).maps
    close(right, by_hand(module, lambda: model(IMAGES).pred_boxes[:, query], lambda box: box[:, 0].sum(), grid))


# --- several inputs and outputs


class TwoImages(nn.Module):
    """Compares two images, each seen by a branch of its own; a temperature as a further argument."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Sequential(*(layer for _, layer in backbone())) for _ in range(2))
        self.head = nn.Linear(12, 3)
        self.answer = identity

    def forward(self, left, right, *, temperature=1.0):
        pooled = [branch(x).flatten(2).mean(2) for branch, x in ((self.left, left), (self.right, right))]
        return self.answer(self.head(torch.cat(pooled, 1).tanh()) / temperature)


class Answer:
    """As a dataclass that a model returns."""

    def __init__(self, scores):
        self.scores = scores


ANSWERS = {
    "tensor": (identity, None),
    "tuple": (lambda z: (None, z), lambda o: o[1]),
    "dictionary": (lambda z: {"scores": z, "loss": 0}, lambda o: o["scores"]),
    "object": (Answer, lambda o: o.scores),
    "nested": (lambda z: [{"heads": (z, z.sum())}], lambda o: o[0]["heads"][0]),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_two_images_and_structured_outputs(answer, side):
    model = seeded(TwoImages)
    model.answer, output = ANSWERS[answer]
    first, second = IMAGES, IMAGES.flip(3).roll(5, 2)
    layer = model.get_submodule(side)[2]
    options = {} if output is None else {"output": output}

    def forward():
        found = model(first, second, temperature=2.0)
        return found if output is None else output(found)

    cam = GradCAM(model, layer, **options)
    expected = by_hand(layer, forward, lambda z: z[0, 1] + z[1, 2])
    close(cam.explain(first, torch.tensor([1, 2]), second, temperature=2.0).maps, expected)
    close(cam.explain(first, torch.tensor([1, 2]), right=second, temperature=2.0).maps, expected)
    np.testing.assert_allclose(
        cam(first, [1, 2], right=second, temperature=2.0), enlarged(expected, (32, 32)), atol=1e-6
    )
    difference = TrueFalseCAM(model, layer, false_class=0, **options).explain(first, 1, second).maps
    signed = [GradCAM(model, layer, rectify=False, **options).explain(first, c, second).maps for c in (1, 0)]
    close(difference, signed[0] - signed[1])


# --- signals, volumes, video


class PerFrame(nn.Module):
    """Video ``(B, 3, T, H, W)``: the same network of images on each frame, then the mean."""

    def __init__(self):
        super().__init__()
        self.frames = nn.Sequential(*(layer for _, layer in backbone()))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        batch = len(x)
        features = self.frames(x.transpose(1, 2).flatten(0, 1))
        return self.head(features.flatten(2).mean(2).unflatten(0, (batch, -1)).mean(1).tanh())


@pytest.mark.parametrize("size", [(24,), (4, 6, 5)], ids=["signal", "volume"])
def test_signals_and_volumes(size):
    dims = len(size)
    head = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[dims](1)
    stack = [layer for _, layer in backbone(dims)]
    model = seeded(lambda: nn.Sequential(*stack, head, nn.Flatten(), nn.Tanh(), nn.Linear(6, 3)))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    maps = GradCAM(model, "2").explain(x, torch.tensor([0, 2])).maps
    assert maps.shape == (2, *size)
    expected = by_hand(model[2], lambda: model(x), lambda z: z[0, 0] + z[1, 2])
    close(maps, expected)
    np.testing.assert_allclose(GradCAM(model, "2")(x, [0, 2]), enlarged(expected, size), atol=1e-6)


def test_video_frame_by_frame():
    model = seeded(PerFrame)
    x = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64)

    def grid(activations):
        """``(B * T, C, h, w)`` to ``(B, C, T, h, w)``."""
        return activations.unflatten(0, (-1, 4)).transpose(1, 2)

    with pytest.raises(
        ValueError, match=r"activations of shape \(8, 6, 6, 5\) for logits of shape \(2, 3\); .*reshape_t"
    ):
        GradCAM(model, "frames.2").explain(x)
    maps = GradCAM(model, "frames.2", grid).explain(x, torch.tensor([0, 2])).maps
    assert maps.shape == (2, 4, 6, 5)
    expected = by_hand(model.frames[2], lambda: model(x), lambda z: z[0, 0] + z[1, 2], grid)
    close(maps, expected)
    np.testing.assert_allclose(GradCAM(model, "frames.2", grid)(x, [0, 2]), enlarged(expected, (4, 6, 5)), atol=1e-6)


def test_video_transformer():
    transformers = import_peer("transformers")
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=12, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16, num_labels=3)  # fmt: skip
    model = seeded(lambda: transformers.VideoMAEForVideoClassification(config))
    layer = last(model, "layernorm_before")
    video = torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)  # (B, T, C, H, W), as this model takes it

    def grid(tokens):
        """Tubes of two frames and 8 x 8 pixels: ``(B, 2 * 2 * 2, C)`` to ``(B, C, 2, 2, 2)``."""
        return tokens.transpose(1, 2).unflatten(2, (2, 2, 2))

    maps = GradCAM(model, layer, grid).explain(video, 1).maps
    assert maps.shape == (2, 2, 2, 2)
    close(maps, by_hand(model.get_submodule(layer), lambda: model(video).logits, lambda z: z[:, 1].sum(), grid))
