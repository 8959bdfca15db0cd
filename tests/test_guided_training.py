"""The guided loss of a step, the pictures and the audit in the middle of training, for any loop."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from diffgradcam import DiffGradCAM, GradCAM, audit
from diffgradcam.heatmaps import minmax, rectify, resize, scale_signed
from diffgradcam.losses import CyborgLoss, DifferenceSalienceLoss, SaliencyGuidedLoss, cyborg_loss
from diffgradcam.robustness import AuditThresholds
from diffgradcam.training import audit_in_training, draw_maps, guided_loss, log_maps, twice_differentiable
from diffgradcam.visualize import grid, overlay, overlay_signed

from .conftest import import_peer
from .models import images, pooled, tokens
from .untouched import forward_passes, untouched

X, LABELS = images(4), torch.tensor([0, 3, 1, 1])
HUMAN = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def signed_map(model, score):
    """Grad-CAM by hand at ``relu``, with its graph."""
    activations = model[:4](X)
    (gradient,) = torch.autograd.grad(score(model[4:](activations)), activations, create_graph=True)
    return (gradient.mean((2, 3), keepdim=True) * activations).sum(1)


class TestGuidedLoss:
    @pytest.mark.parametrize("choice", ["true", "predicted"])
    def test_value_and_gradient_of_one_class_by_hand(self, choice):
        model = pooled()
        passes = forward_passes(model)
        with GradCAM(model, "relu", rectify=False) as cam:
            loss = guided_loss(cam, SaliencyGuidedLoss(CyborgLoss(), 0.3), model(X), LABELS, HUMAN, choice=choice)
        assert len(passes) == 1
        logits = model(X)
        classes = LABELS if choice == "true" else logits.argmax(1)
        assert not torch.equal(LABELS, logits.argmax(1))
        maps = signed_map(model, lambda z: z.gather(1, classes.unsqueeze(1)).sum())
        saliency = (minmax(maps) - minmax(HUMAN)).square().mean()
        expected = 0.3 * F.cross_entropy(logits, LABELS) + 0.7 * saliency
        torch.testing.assert_close(loss.saliency, saliency)
        torch.testing.assert_close(loss.total, expected)
        for found, wanted in zip(
            torch.autograd.grad(loss.total, list(model.parameters())),
            torch.autograd.grad(expected, list(model.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)

    def test_both_classes_a_mask_and_a_classification_loss_of_your_own(self):
        model, human = pooled(), HUMAN.clone()
        mask, human[1] = torch.tensor([True, False, True, True]), torch.nan
        with GradCAM(model, "relu", rectify=False) as cam:
            logits = model(X)
            own = F.cross_entropy(logits, LABELS, label_smoothing=0.2)
            criterion = SaliencyGuidedLoss(DifferenceSalienceLoss(), 0.3)
            loss = guided_loss(cam, criterion, logits, LABELS, human, mask, classification=own)
        others = logits.detach().scatter(1, LABELS.unsqueeze(1), -torch.inf).argmax(1, keepdim=True)
        difference = signed_map(model, lambda z: (z.gather(1, LABELS.unsqueeze(1)) - z.gather(1, others)).sum())
        saliency = (minmax(difference) - minmax(HUMAN)).square().flatten(1).mean(1)[mask].mean()
        torch.testing.assert_close(loss.saliency, saliency)
        torch.testing.assert_close(loss.classification, own)
        torch.testing.assert_close(loss.total, 0.3 * own + 0.7 * saliency)

    def test_attention_is_differentiated_twice(self):
        model = tokens().train()

        def loss():
            with GradCAM(model, "block", lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (6, 5)), rectify=False) as cam:
                return guided_loss(cam, SaliencyGuidedLoss(CyborgLoss()), model(X), LABELS, HUMAN).total

        with twice_differentiable():
            total = loss()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, list(model.parameters())))

    def test_what_is_not_attached(self):
        model = pooled()
        with pytest.raises(RuntimeError, match=r"^layer 'relu' did not run in a recorded forward pass"):
            guided_loss(GradCAM(model, "relu"), SaliencyGuidedLoss(cyborg_loss), model(X), LABELS, HUMAN)


def busy():
    """Batch norm and dropout, one part of it frozen in evaluation mode, with gradients."""
    torch.manual_seed(0)
    frozen = nn.BatchNorm2d(6).eval()
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), frozen, nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 3))
    model.train()
    frozen.eval()
    model(torch.randn(8, 3, 8, 8)).sum().backward()
    nn.init.constant_(model[-1].bias, -2)
    return model


FIXED = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class TestDrawMaps:
    @pytest.mark.parametrize("rectified", [True, False])
    def test_the_picture_is_of_the_model_in_evaluation_mode_which_stays_in_training(self, rectified):
        model = busy()
        with untouched(model), GradCAM(model, "2", rectify=rectified, class_names=["cat", "dog", "cow"]) as cam:
            found = draw_maps(cam, FIXED, torch.tensor([0, 2, 1]))
        still = copy.deepcopy(model).eval()
        logits, _, maps = GradCAM(still, "2", rectify=False).explain(FIXED, torch.tensor([0, 2, 1]))
        seen = [(image - image.min()) / (image.max() - image.min()) for image in FIXED]
        lay, scaled = (overlay, minmax(rectify(maps))) if rectified else (overlay_signed, scale_signed(maps))
        overlays = [lay(image, heatmap) for image, heatmap in zip(seen, scaled, strict=True)]
        chances = logits.softmax(1)[range(3), [0, 2, 1]]
        titles = [
            f"{name} {float(chance):.2f}"
            for name, chance in zip(("cat (0)", "cow (2)", "dog (1)"), chances, strict=True)
        ]
        np.testing.assert_array_equal(found, pixels(grid([seen, overlays], [[""] * 3, titles], size=1.6)))

    def test_decisions_by_default_and_pictures_of_your_own(self):
        model, photos = busy().eval(), np.random.default_rng(0).random((3, 20, 16, 3), np.float32)
        decided = model(FIXED).argmax(1)
        found = draw_maps(DiffGradCAM(model, "2"), FIXED, pictures=photos)
        np.testing.assert_array_equal(found, draw_maps(DiffGradCAM(model, "2"), FIXED, decided, pictures=photos))
        assert found.shape != draw_maps(DiffGradCAM(model, "2"), FIXED).shape

    def test_images_of_other_channels_and_precisions(self):
        model = nn.Sequential(nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).bfloat16()
        stack = torch.rand(2, 5, 8, 8, dtype=torch.float64)
        grey = [minmax(image.mean(0, keepdim=True)).float() for image in stack]
        drawn = draw_maps(GradCAM(model, "0"), stack)
        np.testing.assert_array_equal(drawn, draw_maps(GradCAM(model, "0"), stack, pictures=grey))

    def test_what_cannot_be_drawn(self):
        model = busy()
        cam = GradCAM(model, "2")
        with untouched(model):
            with pytest.raises(
                ValueError, match=r"^classes have shape \(3, 3\) and maps .*; expected one class and one"
            ):
                draw_maps(cam, FIXED, "all")
            with pytest.raises(ValueError, match=r"^got 1 pictures for 3 images; expected one for each"):
                draw_maps(cam, FIXED, pictures=FIXED[:1])
            with pytest.raises(ValueError, match=r"^class 7 is out of range"):
                draw_maps(cam, FIXED, 7)


def pixels(figure):
    stream = io.BytesIO()
    figure.savefig(stream, dpi=figure.dpi)
    return np.asarray(Image.open(stream).convert("RGB"))


class TestLogMaps:
    def test_a_function_gets_the_picture(self):
        sent = []
        picture = log_maps(GradCAM(busy(), "2"), FIXED, lambda *given: sent.append(given), 7, 1, tag="looks")
        ((tag, found, step),) = sent
        assert (tag, step) == ("looks", 7)
        assert found is picture
        np.testing.assert_array_equal(picture, draw_maps(GradCAM(busy(), "2"), FIXED, 1))

    def test_tensorboard_shows_it(self, tmp_path):
        import_peer("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        from .integrations.logs import pictures_of

        with SummaryWriter(tmp_path) as writer:
            picture = log_maps(GradCAM(busy(), "2"), FIXED, writer, 7)
        ((step, found),) = pictures_of(tmp_path)
        assert step == 7
        np.testing.assert_array_equal(found, picture)

    def test_what_is_no_writer(self):
        with pytest.raises(
            TypeError, match=r"^writer is str; expected a SummaryWriter of TensorBoard, a run that wandb"
        ):
            log_maps(GradCAM(busy(), "2"), FIXED, "runs", 0)


class TestAudit:
    def test_it_is_that_of_the_model_in_evaluation_mode_which_stays_in_training(self):
        model = busy()
        with untouched(model), GradCAM(model, "2") as cam:
            report = audit_in_training(cam, FIXED, thresholds=AuditThresholds(share=1.0))
        expected = audit(copy.deepcopy(model).eval(), "2", FIXED, thresholds=AuditThresholds(share=1.0))
        torch.testing.assert_close(report.common_mode_share, expected.common_mode_share)
        torch.testing.assert_close(report.logits, expected.logits)

    def test_a_fooled_model_warns_with_the_report(self):
        model = busy()
        model[-1].weight.data.add_(5)
        with pytest.warns(UserWarning, match=r"^the audit of Sequential says: FOOLED \(.*\) in 3 images, 3 classes"):
            assert audit_in_training(GradCAM(model, "2"), FIXED).fooled

    def test_an_error_leaves_the_model_as_it_was(self):
        model = busy()
        with untouched(model), pytest.raises(TypeError, match=r"^thresholds"):
            audit_in_training(GradCAM(model, "2"), FIXED, thresholds=7)


def test_maps_are_resized_to_the_pictures():
    """The overlay of a map is the overlay of the map at the size of the picture."""
    heatmap, photo = torch.rand(1, 3, 3), np.random.default_rng(0).random((12, 9, 3), np.float32)
    np.testing.assert_array_equal(overlay(photo, heatmap[0]), overlay(photo, resize(heatmap, (12, 9))[0].clamp(0, 1)))
