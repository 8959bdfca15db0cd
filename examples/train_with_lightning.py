"""Saliency-guided training with Lightning: the maps come from the one forward pass of ``training_step``.

The task is in faces.py. Trains one epoch in a few seconds. Needs ``pip install lightning``.
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
        self.criterion = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.2)

    def training_step(self, batch, _):
        """Log both parts of the loss, and minimise their sum."""
        images, labels, human = batch
        logits = self.model(images)
        maps = self.cam.maps(logits, torch.stack([labels, 1 - labels], 1))
        loss = self.criterion(logits, labels, maps, human)
        parts = {"classification": loss.classification, "saliency": loss.saliency}
        self.log_dict(parts, on_step=False, on_epoch=True, prog_bar=True)
        return loss.total

    def configure_optimizers(self):
        """Adam, as in the plain loop."""
        return torch.optim.Adam(self.parameters(), 3e-3)


def main():
    lightning.seed_everything(0, verbose=False)
    model, (training, (images, labels, _)) = network(), training_and_test()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    with GradCAM(model, "0", rectify=False) as cam:
        trainer.fit(Guided(model, cam), DataLoader(TensorDataset(*training), batch_size=32, shuffle=True))
        right = (cam.explain(images).classes == labels).float().mean()
    print(f"after one epoch: {right:.0%} of new images correct")
    return trainer.callback_metrics


if __name__ == "__main__":
    main()
