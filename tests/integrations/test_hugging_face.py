"""The trainer and the callbacks for Hugging Face do what a plain loop does, and leave the model as it was."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from diffgradcam import GradCAM, audit
from diffgradcam.losses import CyborgLoss, SaliencyGuidedLoss
from diffgradcam.robustness import AuditThresholds
from diffgradcam.tokens import tokens_to_grid
from diffgradcam.training import draw_maps
from tests.conftest import import_peer
from tests.untouched import forward_passes, hooks

from .data import CLASSES, SIZE, criterion, items, same_weights, trained
from .logs import pictures_of

transformers = import_peer("transformers")
import_peer("accelerate")
from transformers.integrations import TensorBoardCallback  # noqa: E402

from diffgradcam.integrations.hugging_face import AuditEachEpoch, MapLogger, SaliencyGuidedTrainer  # noqa: E402

FIXED = torch.stack([item.image for item in items(3, seed=5)])
LAYER = "resnet.encoder.stages.0"


@pytest.fixture(autouse=True)
def _no_precision_left_over(monkeypatch):
    """Older releases leave the precision of the last training in the environment."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def network():
    """A ResNet of one stage, in evaluation mode as ``from_pretrained`` gives it."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[6], depths=[1], layer_type="basic", num_labels=CLASSES
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.ResNetForImageClassification(config).eval()


def rows(data=None):
    return [
        {"pixel_values": item.image, "labels": item.label, "people": item.saliency, "marked": item.has_saliency}
        for item in data or items()
    ]


def without_maps(data=None):
    return [{name: row[name] for name in ("pixel_values", "labels")} for row in rows(data)]


def arguments(folder, **changes):
    options = {"report_to": [], "remove_unused_columns": False, "num_train_epochs": 1, "per_device_train_batch_size": 4,
               "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "use_cpu": True,
               "lr_scheduler_type": "constant", "logging_steps": 1, "disable_tqdm": True}  # fmt: skip
    return transformers.TrainingArguments(output_dir=str(folder), **{**options, **changes})


class InOrder:
    """Batches in the order of the data."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Guided(InOrder, SaliencyGuidedTrainer):
    pass


class Plain(InOrder, transformers.Trainer):
    pass


def guided(model, folder, layer=LAYER, transform=None, *, data=None, keys=None, **changes):
    keys = {"human": "people", "mask": "marked"} if keys is None else keys
    cam = GradCAM(model, layer, transform, rectify=False)
    extra = {name: changes.pop(name) for name in ("compute_loss_func", "eval_dataset") if name in changes}
    return Guided(
        model=model, args=arguments(folder, **changes), train_dataset=data or rows(), cam=cam, criterion=criterion(),
        **keys, **extra,
    )  # fmt: skip


def logits_of(model):
    return lambda images: model(pixel_values=images).logits


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_a_plain_loop_does_with_one_forward_pass_a_step(tmp_path, accumulate):
    model, plain = network(), network()
    passes, before = forward_passes(model), hooks(model)
    parts = trained(plain, items(), LAYER, epochs=2, accumulate=accumulate, run=logits_of(plain))
    trainer = guided(model, tmp_path, num_train_epochs=2, gradient_accumulation_steps=accumulate)
    trainer.train()
    assert len(passes) == len(parts) == 8
    same_weights(model, plain)
    same = {name: len(kinds) for name, kinds in hooks(model).items()}
    assert same == {name: len(kinds) for name, kinds in before.items()}
    assert not any(hooks(model)[LAYER].values())
    logged = [log for log in trainer.state.log_history if "saliency_loss" in log]
    classification, saliency = torch.tensor(parts[-accumulate:]).mean(0).tolist()
    assert logged[-1]["classification_loss"] == pytest.approx(classification, rel=1e-4)
    assert logged[-1]["saliency_loss"] == pytest.approx(saliency, rel=1e-4)
    assert logged[-1]["loss"] == pytest.approx(0.25 * classification + 0.75 * saliency, abs=1e-3)
    assert len(logged) == 8 // accumulate


def test_label_smoothing_stays(tmp_path):
    model, plain = network(), network()
    trained(plain, items(), LAYER, smoothing=0.2, run=logits_of(plain))
    guided(model, tmp_path, label_smoothing_factor=0.2).train()
    same_weights(model, plain)


@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")  # of older releases of transformers
def test_mixed_precision_trains_as_the_plain_loop_does(tmp_path):
    def cast(images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(pixel_values=images).logits.float()

    model, plain = network(), network()
    trained(plain, items(), LAYER, run=cast)
    guided(model, tmp_path, bf16=True).train()
    same_weights(model, plain, rtol=0.02, atol=2e-3)


def test_attention_is_differentiated_twice(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=SIZE, patch_size=4,
        num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager") if hasattr(plain, "set_attn_implementation") else None
    (layer,) = [name for name, _ in model.named_modules() if name.endswith("1.layernorm_before")]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        trained(plain, items(), layer, run=logits_of(plain), transform=tokens_to_grid)
    guided(model, tmp_path, layer, tokens_to_grid).train()
    same_weights(model, plain, rtol=1e-4, atol=1e-5)


def test_evaluation_and_prediction_stay_as_they_are(tmp_path):
    model = network()
    trainer = guided(model, tmp_path, eval_dataset=rows(items(8, seed=2)))
    plain = Plain(model=model, args=arguments(tmp_path), train_dataset=without_maps())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate(without_maps(items(8, seed=2)))["eval_loss"])
    unlabelled = [{"pixel_values": row["pixel_values"], "people": row["people"]} for row in rows(items(8, seed=2))]
    found = trainer.predict(unlabelled).predictions
    with torch.no_grad():
        expected = model.eval()(torch.stack([row["pixel_values"] for row in unlabelled])).logits
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class TestErrors:
    def test_columns_that_would_be_removed(self, tmp_path):
        with pytest.raises(ValueError, match=r"^remove_unused_columns is True, so 'people' never.*=False\)$"):
            guided(network(), tmp_path, remove_unused_columns=True)

    def test_a_loss_function(self, tmp_path):
        with pytest.raises(ValueError, match=r"^compute_loss_func is given; expected the loss of the model itself"):
            guided(network(), tmp_path, compute_loss_func=print)

    def test_parts_that_are_not_in_the_batch(self, tmp_path):
        model = network()
        before = hooks(model)
        with pytest.raises(ValueError, match=r"^human='maps' is not a part of the batch, which is a dictionary with"):
            guided(model, tmp_path, data=without_maps(),
                   keys={"human": "maps"}).train()  # fmt: skip
        assert not any(hooks(model)[LAYER].values())
        assert not any(before[LAYER].values())

    def test_arguments(self, tmp_path):
        cam = GradCAM(network(), LAYER, rectify=False)
        with pytest.raises(TypeError, match=r"^criterion is CyborgLoss; expected SaliencyGuidedLoss"):
            SaliencyGuidedTrainer(cam=cam, criterion=CyborgLoss(), human="people")
        weighted = SaliencyGuidedLoss(CyborgLoss(), class_weights=torch.ones(CLASSES))
        with pytest.raises(ValueError, match=r"^criterion has class_weights"):
            SaliencyGuidedTrainer(cam=cam, criterion=weighted, human="people")
        plain = Plain(model=cam.model, args=arguments(tmp_path), train_dataset=without_maps())
        with pytest.raises(ValueError, match=r'^the trainer reports neither .*report_to=\["tensorboard"\]\) or \["wan'):
            MapLogger(plain, cam, FIXED)
        with pytest.raises(ValueError, match=r"^on_fooled is 'panic'"):
            AuditEachEpoch(cam, FIXED, on_fooled="panic")


class TestMapLogger:
    def test_tensorboard_has_a_picture_every_n_steps_and_training_goes_on_as_without(self, tmp_path):
        tensorboard = import_peer("torch.utils.tensorboard")
        model, plain = network(), network()
        trained(plain, items(), LAYER, epochs=2, accumulate=2, run=logits_of(plain))
        start, end = (draw_maps(GradCAM(each, LAYER), FIXED, 1) for each in (model, plain))
        trainer = guided(model, tmp_path, num_train_epochs=2, gradient_accumulation_steps=2)
        trainer.add_callback(TensorBoardCallback(tensorboard.SummaryWriter(tmp_path)))
        trainer.add_callback(MapLogger(trainer, GradCAM(model, LAYER), FIXED, every_n_steps=2, classes=1))
        trainer.train()
        same_weights(model, plain)
        first, *between, last = pictures_of(tmp_path)
        assert [step for step, _ in (first, *between, last)] == [0, 2, 4]
        np.testing.assert_array_equal(first[1], start)
        assert np.abs(last[1].astype(int) - end).max() <= 2  # the weights differ by rounding

    def test_weights_and_biases_offline(self, tmp_path, wandb):
        model = network()
        start = draw_maps(GradCAM(model, LAYER), FIXED)
        trainer = Plain(model=model, args=arguments(tmp_path, report_to=["wandb"]), train_dataset=without_maps())
        trainer.add_callback(MapLogger(trainer, GradCAM(model, LAYER), FIXED, every_n_steps=4))
        trainer.train()
        wandb.finish()
        files = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/maps_*.png"))
        assert len(files) == 2
        assert any(np.array_equal(np.asarray(Image.open(file)), start) for file in files)

    def test_only_the_first_process_draws(self, tmp_path):
        tensorboard = import_peer("torch.utils.tensorboard")
        trainer = guided(network(), tmp_path)
        trainer.add_callback(TensorBoardCallback(tensorboard.SummaryWriter(tmp_path)))
        callback, passes = MapLogger(trainer, GradCAM(trainer.model, LAYER), FIXED), forward_passes(trainer.model)
        for first, count in ((False, 0), (True, 1)):
            trainer.state.is_world_process_zero = first
            callback.on_train_begin(trainer.args, trainer.state, trainer.control)
            assert len(passes) == count


def fooled(model):
    """The same vector is added to every row of the head: no decision changes, and GradCAM shows something else."""
    model.classifier[1].weight.data.add_(5)
    return model


class TestAudit:
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(("on_fooled", "epochs"), [("warn", 2), ("stop", 1)])
    def test_a_fooled_model_warns_after_each_epoch_or_stops(self, tmp_path, on_fooled, epochs):
        model = fooled(network())
        watch = AuditEachEpoch(GradCAM(model, LAYER), self.images, on_fooled=on_fooled)
        options = arguments(tmp_path, num_train_epochs=2, learning_rate=1e-3)
        trainer = Plain(model=model, args=options, train_dataset=without_maps(), callbacks=[watch])
        with pytest.warns(
            UserWarning, match=r"^the audit of ResNetForImageClassification says: FOOLED \(.*\) in 8"
        ) as caught:
            trainer.train()
        warned = [each for each in caught if str(each.message).startswith("the audit")]
        assert len(warned) == len(watch.reports) == trainer.state.epoch == epochs
        expected = audit(model, LAYER, self.images).common_mode_share
        torch.testing.assert_close(watch.reports[epochs].common_mode_share, expected)

    def test_a_model_in_training_is_audited_as_it_decides(self, tmp_path):
        model = network()
        watch = AuditEachEpoch(GradCAM(model, LAYER), self.images, thresholds=AuditThresholds(share=1.0))
        Plain(model=model, args=arguments(tmp_path), train_dataset=without_maps(), callbacks=[watch]).train()
        with torch.no_grad():
            expected = model.eval()(self.images).logits
        torch.testing.assert_close(watch.reports[1].logits, expected)
        assert F.softmax(expected, 1).shape == (8, CLASSES)
