"""Saliency-guided training with Lightning: the maps come from the one forward pass of ``training_step``.

The task is in faces.py; one epoch, in a few seconds. Needs ``pip install lightning``.
"""

import sys

import torch
from faces import network, training_and_test
from torch.utils.data import DataLoader, TensorDataset

from diffgradcam import GradCAM
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss

try:
    import lightning
except ImportError:
    print("this example needs Lightning: pip install lightning")
    sys.exit()


class Guided(lightning.LightningModule):
    """A classifier, and the CAM that is attached to it."""

    def __init__(self, model, cam):
        super().__init__()
        self.model, self.cam = model, cam
        self.criterion = SaliencyGuidedLoss(DifferenceSalienceLoss())

    def training_step(self, batch, _):
        """Log both parts of the loss, and minimise their sum."""
        images, labels, human = batch
        logits = self.model(images)
        maps = self.cam.maps(logits, torch.stack([labels, 1 - labels], 1))
        loss = self.criterion(logits, labels, maps, human)
        self.log_dict({"classification": loss.classification, "saliency": loss.saliency}, prog_bar=True)
        return loss.total

    def configure_optimizers(self):
        """Adam, as in the plain loop."""
        return torch.optim.Adam(self.parameters(), 3e-3)


def main():
    lightning.seed_everything(0, verbose=False)
    training, (images, labels, human) = training_and_test()
    model = network()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    with GradCAM(model, "0", rectify=False) as cam:
        trainer.fit(Guided(model, cam), DataLoader(TensorDataset(*training), batch_size=32, shuffle=True))
        right = (cam.explain(images).classes == labels).float().mean()
    parts = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(f"after one epoch: {right:.0%} of new images right; last batch: {parts}")
    return parts


if __name__ == "__main__":
    main()
