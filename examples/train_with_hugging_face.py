"""Saliency-guided training with Hugging Face's Trainer: another class of trainer, and two callbacks.

The task is in faces.py. Trains three epochs in seconds; ``tensorboard --logdir output/hugging_face`` shows how the
maps of four images change. Needs ``pip install transformers accelerate tensorboard``.
"""

import sys

import torch
from faces import NAMES, training_and_test
from squares import transformers

from diffgradcam import GradCAM
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss

try:
    import accelerate as accelerate
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback
except ImportError as error:
    print(f"this example needs accelerate and tensorboard: pip install accelerate tensorboard ({error})")
    sys.exit()

from diffgradcam.integrations.hugging_face import AuditEachEpoch, MapLogger, SaliencyGuidedTrainer


def main():
    torch.manual_seed(0)
    training, (images, labels, _) = training_and_test()
    columns = ("pixel_values", "labels", "human")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*training, strict=True)]
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=2
    )
    model = transformers.ResNetForImageClassification(config)
    cam = GradCAM(model, "resnet.encoder.stages.1", rectify=False, class_names=NAMES)
    arguments = transformers.TrainingArguments(
        output_dir="output/hugging_face", remove_unused_columns=False, num_train_epochs=3, learning_rate=3e-3,
        per_device_train_batch_size=32, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        logging_strategy="epoch",
    )  # fmt: skip
    audit = AuditEachEpoch(cam, images[:64], on_fooled="stop", first_epoch=3)
    trainer = SaliencyGuidedTrainer(
        model=model, args=arguments, train_dataset=rows, cam=cam, human="human",
        criterion=SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.2),
        callbacks=[audit, TensorBoardCallback(SummaryWriter("output/hugging_face"))],
    )  # fmt: skip
    trainer.add_callback(MapLogger(trainer, cam, images[:4], every_n_steps=16, classes=labels[:4]))
    trainer.train()
    right = (cam.explain(images).classes == labels).float().mean()
    print(f"{right:.0%} of new images correct\naudit: {audit.reports[3]}")


if __name__ == "__main__":
    main()
