"""The callbacks for Lightning do what a plain loop does, and leave the module as it was."""

import copy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from diffgradcam import GradCAM, audit
from diffgradcam.losses import CyborgLoss, SaliencyGuidedLoss
from diffgradcam.training import draw_maps
from tests.conftest import import_peer
from tests.untouched import forward_passes, hooks

from .data import SIZE, criterion, items, network, same_weights, trained
from .logs import pictures_of

lightning = import_peer("lightning.pytorch")
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger  # noqa: E402

from diffgradcam.integrations.lightning import AuditEachEpoch, MapLogger, SaliencyGuidance  # noqa: E402

# Its advice on speed and on what a module might also have, such as a loader for validation.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
KEYS = {"labels": "label", "human": "saliency", "mask": "has_saliency"}
FIXED = torch.stack([item.image for item in items(3, seed=5)])


class Module(lightning.LightningModule):
    """A user's module, which knows nothing of saliency."""

    def __init__(self, model, as_dictionary=False):
        super().__init__()
        self.model, self.as_dictionary = model, as_dictionary
        self.validated = []

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        return {"loss": loss, "number": batch_idx} if self.as_dictionary else loss

    def validation_step(self, batch, _):
        self.validated.append(F.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, callbacks, data=None, *, validation=None, max_epochs=1, logger=False, **options):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=max_epochs, callbacks=callbacks, logger=logger, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(items(), batch_size=4) if data is None else data, validation)
    return trainer


def guidance(model, **changes):
    return SaliencyGuidance(GradCAM(model, "features", rectify=False), criterion(), **{**KEYS, **changes})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_a_plain_loop_does_with_one_forward_pass_a_step(accumulate):
    model, plain = network(), network()
    passes, parts = forward_passes(model), trained(plain, items(), epochs=2, accumulate=accumulate)
    before = hooks(model)
    trainer = fit(Module(model), [guidance(model)], max_epochs=2, accumulate_grad_batches=accumulate)
    assert len(passes) == len(parts) == 8
    same_weights(model, plain)
    assert hooks(model) == before
    last = {name: float(value) for name, value in trainer.logged_metrics.items()}
    assert last == pytest.approx({"classification_loss": parts[-1][0], "saliency_loss": parts[-1][1]}, rel=1e-5)


def test_without_it_the_weights_are_others():
    model, plain = network(), network()
    trained(plain, items())
    fit(Module(model), [])
    assert (model.features.weight - plain.features.weight).abs().max() > 1e-3


def test_a_step_that_returns_a_dictionary_and_batches_that_are_tuples_or_dictionaries():
    plain = network()
    trained(plain, items())
    model = network()
    fit(Module(model, as_dictionary=True), [guidance(model, labels=1, human=2, mask=3)],
        DataLoader([item[:4] for item in items()], batch_size=4))  # fmt: skip
    same_weights(model, plain)

    class OfDictionaries(Module):
        def training_step(self, batch):
            return super().training_step((batch["pixels"], batch["class"]), 0)

    model = network()
    data = [{"pixels": i.image, "class": i.label, "people": i.saliency, "marked": i.has_saliency} for i in items()]
    fit(OfDictionaries(model), [guidance(model, labels="class", human="people", mask="marked")],
        DataLoader(data, batch_size=4))  # fmt: skip
    same_weights(model, plain)


def test_mixed_precision_trains_as_the_plain_loop_does():
    def cast(images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(images).float()

    model, plain = network(), network()
    trained(plain, items(), run=cast)
    fit(Module(model), [guidance(model)], precision="bf16-mixed")
    same_weights(model, plain, rtol=0.02, atol=2e-3)


def test_validation_stays_as_it_is():
    model = network()
    module = Module(model)
    fit(module, [guidance(model)], validation=DataLoader([item[:2] for item in items(8, seed=2)], batch_size=8))
    with torch.no_grad():
        images, labels = (torch.stack(part) for part in list(zip(*items(8, seed=2), strict=True))[:2])
        expected = F.cross_entropy(model.eval()(images), labels)
    torch.testing.assert_close(module.validated[0], expected)


def test_a_step_that_is_left_out():
    class Leaves(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    model, plain = network(norm=False), network(norm=False)
    trained(plain, [*items()[:4], *items()[8:]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        fit(Leaves(model), [guidance(model)])
    same_weights(model, plain)


class TestErrors:
    def raises(self, module, callback, message, error=ValueError, data=None):
        before = hooks(module)
        with pytest.raises(error, match=message):
            fit(module, [callback], data)
        assert hooks(module) == before
        assert "training_step" not in vars(module)

    def test_a_part_that_is_not_in_the_batch(self):
        model = network()
        message = (
            r"^human='people' is not a part of the batch, which is SaliencyItem of 5 \(image, .*\); expected a position"
        )
        self.raises(Module(model), guidance(model, human="people"), message)
        message = "^mask=7 is not a part of the batch, which is list of 4; expected a position in a tuple, a key"
        data = DataLoader([item[:4] for item in items()], batch_size=4)
        self.raises(Module(model), guidance(model, labels=1, human=2, mask=7), message, data=data)
        message = "^human='group' of the batch is (list|tuple); expected a tensor"
        self.raises(Module(model), guidance(model, human="group"), message, TypeError)

    def test_a_mask_is_needed_where_images_have_no_map(self):
        model = network()
        self.raises(Module(model), guidance(model, mask=None), "^human holds NaN.*mask=has_human_map")

    def test_a_model_that_does_not_run_once_in_a_step(self):
        class Twice(Module):
            def training_step(self, batch, batch_idx):
                self.model(batch[0])
                return super().training_step(batch, batch_idx)

        model = network()
        self.raises(
            Twice(model), guidance(model), "^training_step ran the model of the CAM, Network, 2 times; expected"
        )
        self.raises(Module(model), guidance(network()), "Network, 0 times; expected once; give the CAM the module that")

    def test_manual_optimization(self):
        module = Module(network())
        module.automatic_optimization = False
        self.raises(module, guidance(module.model), "^Module optimises manually.*call diffgradcam.training.guided_loss")

    def test_arguments(self):
        cam = GradCAM(network(), "features", rectify=False)
        weighted = SaliencyGuidedLoss(CyborgLoss(), class_weights=torch.ones(3))
        with pytest.raises(ValueError, match=r"^criterion has class_weights, .*weigh the classes in that loss$"):
            SaliencyGuidance(cam, weighted, **KEYS)
        with pytest.raises(TypeError, match=r"^criterion is CyborgLoss; expected SaliencyGuidedLoss, such as Sal"):
            SaliencyGuidance(cam, CyborgLoss(), **KEYS)
        with pytest.raises(TypeError, match=r"^cam is Network; expected a method that trains, such as GradCAM"):
            SaliencyGuidance(network(), criterion(), **KEYS)
        with pytest.raises(ValueError, match=r"^choice is 'best'"):
            SaliencyGuidance(cam, criterion(), **KEYS, choice="best")
        with pytest.raises(ValueError, match=r"^every_n_steps is 0; expected an integer of at least 1"):
            MapLogger(cam, FIXED, every_n_steps=0)
        with pytest.raises(ValueError, match=r"^on_fooled is 'panic'"):
            AuditEachEpoch(cam, FIXED, on_fooled="panic")
        with pytest.raises(ValueError, match=r"^first_epoch is 0; expected an integer of at least 1"):
            AuditEachEpoch(cam, FIXED, first_epoch=0)


class TestMapLogger:
    def test_tensorboard_has_a_picture_every_n_steps_and_training_goes_on_as_without(self, tmp_path):
        model, plain = network(), network()
        trained(plain, items(), epochs=2, accumulate=2)
        cam = GradCAM(copy.deepcopy(model), "features")
        start, end = draw_maps(cam, FIXED, 1), draw_maps(GradCAM(plain, "features"), FIXED, 1)
        logger = TensorBoardLogger(tmp_path, name="", version="")
        maps = MapLogger(GradCAM(model, "features"), FIXED, every_n_steps=2, classes=1)
        fit(Module(model), [guidance(model), maps], max_epochs=2, accumulate_grad_batches=2, logger=logger)
        same_weights(model, plain)
        (first, *between, last) = pictures_of(tmp_path)
        assert [step for step, _ in (first, *between, last)] == [0, 2, 4]
        np.testing.assert_array_equal(first[1], start)
        assert np.abs(last[1].astype(int) - end).max() <= 2  # the weights differ by rounding
        assert (first[1] != last[1]).any()

    def test_weights_and_biases_offline(self, tmp_path, wandb):
        model = network()
        start = draw_maps(GradCAM(model, "features"), FIXED)
        logger = WandbLogger(save_dir=tmp_path, offline=True)
        fit(Module(model), [MapLogger(GradCAM(model, "features"), FIXED, every_n_steps=4)], logger=logger)
        assert wandb.run is not None
        wandb.finish()
        files = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/maps_*.png"))
        assert len(files) == 2
        assert any(np.array_equal(np.asarray(Image.open(file)), start) for file in files)

    def test_loggers_that_take_no_pictures(self, tmp_path):
        model = network()
        with pytest.warns(
            UserWarning, match=r"^maps are not logged, .*\(it has CSVLogger\); use TensorBoardLogger or W"
        ):
            fit(Module(model), [MapLogger(GradCAM(model, "features"), FIXED)], logger=CSVLogger(tmp_path))
        with pytest.warns(UserWarning, match=r"^maps are not logged, .*\(it has none\)"):
            fit(Module(model), [MapLogger(GradCAM(model, "features"), FIXED)])


def fooled(model):
    """The same vector is added to every row of the head: no decision changes, and GradCAM shows something else."""
    model.head.weight.data.add_(5)
    return model


class TestAudit:
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def test_a_fooled_model_warns_after_each_epoch_or_stops(self):
        for on_fooled, epochs in (("warn", 2), ("stop", 1)):
            model = fooled(network(norm=False))
            watch = AuditEachEpoch(GradCAM(model, "features"), self.images, on_fooled=on_fooled)
            with pytest.warns(UserWarning, match=r"^the audit of Network says: FOOLED \(.*\) in 8 images") as caught:
                trainer = fit(Module(model), [watch], max_epochs=2)
            warned = [each for each in caught if str(each.message).startswith("the audit")]
            assert len(warned) == len(watch.reports) == trainer.current_epoch == epochs
            expected = audit(model, "features", self.images).common_mode_share
            torch.testing.assert_close(watch.reports[epochs].common_mode_share, expected)
            assert float(trainer.callback_metrics["common_mode_share"]) == pytest.approx(float(expected.median()))

    def test_epochs_before_the_first_are_not_audited(self):
        model = fooled(network(norm=False))
        watch = AuditEachEpoch(GradCAM(model, "features"), self.images, on_fooled="stop", first_epoch=2)
        with pytest.warns(UserWarning, match=r"^the audit of Network says: FOOLED"):
            trainer = fit(Module(model), [watch], max_epochs=3)
        assert list(watch.reports) == [trainer.current_epoch] == [2]

    def test_a_model_that_cannot_be_audited_trains_on(self):
        model = network(norm=False)
        model.head.bias.data.fill_(torch.nan)
        watch = AuditEachEpoch(GradCAM(model, "features"), self.images, on_fooled="stop")
        with pytest.warns(UserWarning, match=r"^the model was not audited after epoch [12]: .* is NaN or infinite"):
            trainer = fit(Module(model), [watch], max_epochs=2)
        assert watch.reports == {}
        assert trainer.current_epoch == 2

    def test_a_clean_model_says_nothing(self):
        model = network()
        model.head.weight.data.sub_(model.head.weight.data.mean(0))
        watch = AuditEachEpoch(GradCAM(model, "features"), self.images, on_fooled="stop")
        trainer = fit(Module(model), [watch], max_epochs=2)
        assert {epoch: report.fooled for epoch, report in watch.reports.items()} == {1: False, 2: False}
        assert trainer.current_epoch == 2
