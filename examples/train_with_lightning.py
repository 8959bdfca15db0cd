"""Saliency-guided training with Lightning: three callbacks, and a module that knows nothing of them.

The task is in faces.py. Trains one epoch in seconds; ``tensorboard --logdir output/lightning`` shows how the maps of
four images change. Needs ``pip install lightning tensorboard``.
"""

import sys

import torch
from faces import NAMES, network, training_and_test
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from diffgradcam import GradCAM
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss

try:
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import TensorBoardLogger
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit PyTorch
    print(f"this example needs Lightning: pip install lightning tensorboard ({error})")
    sys.exit()

from diffgradcam.integrations.lightning import AuditEachEpoch, MapLogger, SaliencyGuidance


class Classifier(lightning.LightningModule):
    """A classifier as anybody writes it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch):  # noqa: D102
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):  # noqa: D102
        return torch.optim.Adam(self.parameters(), 3e-3)


def main():
    lightning.seed_everything(0, verbose=False)
    model, (training, (images, labels, _)) = network(), training_and_test()
    cam = GradCAM(model, "0", rectify=False, class_names=NAMES)
    criterion = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.2)
    guidance = SaliencyGuidance(cam, criterion, labels=1, human=2)  # a batch is (images, labels, human maps)
    maps = MapLogger(cam, images[:4], every_n_steps=16, classes=labels[:4])
    audit = AuditEachEpoch(cam, images[:64], on_fooled="stop")
    logger = TensorBoardLogger("output", "lightning", version="")
    options = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, callbacks=[guidance, maps, audit], **options
    )
    trainer.fit(Classifier(model), DataLoader(TensorDataset(*training), batch_size=32, shuffle=True))
    right = (cam.explain(images).classes == labels).float().mean()
    print(f"{right:.0%} of new images correct\naudit: {audit.reports[1]}")


if __name__ == "__main__":
    main()
