"""The attacks: each makes a fooled copy of a setting's model at a given strength."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffgradcam import BaseCAM, DiffGradCAM, GradCAM
from diffgradcam.sham import FoolingLoss, common_mode_hoax, finetune, location_loss, sham_loss, spatial_hoax

from .settings import Setting


class Training(NamedTuple):
    """How fine-tuning runs in one setting."""

    epochs: int
    lr: float
    preserve: str


class Attack(NamedTuple):
    """An attack.

    Attributes:
        make: ``(setting, strength, training, seed) -> fooled copy``.
        strengths: From weak to strong.
        strength: The one in the tables, unless :data:`STRENGTH` has another.
        unit: What the strength is.
    """

    make: Callable[[Setting, float, Training, int], nn.Module]
    strengths: tuple[float, ...]
    strength: float
    unit: str


TRAINING = {
    "digits": Training(epochs=15, lr=3e-3, preserve="labels"),
    "orientation": Training(epochs=8, lr=1e-4, preserve="decisions"),
    "lite0": Training(epochs=5, lr=1e-4, preserve="decisions"),
}


# At half the weight, fine-tuning hardly changes the maps of this small network.
STRENGTH = {"digits": 0.9}


def training_of(setting: str) -> Training:
    """How fine-tuning runs in a setting, by its name."""
    return TRAINING[setting.split("-")[0]]


def shown_strength(setting: str, attack: str) -> float:
    """The strength of an attack that tables show in a setting."""
    spec = ATTACKS[attack]
    return STRENGTH.get(setting, spec.strength) if attack not in CLOSED_FORM else spec.strength


def _common_mode(setting: Setting, strength: float, training: Training, seed: int) -> nn.Module:
    if setting.pooled_linear:
        images: list[Tensor] = [batch[0] for batch in setting.fitted]
        return common_mode_hoax(setting.model, setting.layer, images, setting.mask, strength=strength)
    # There is no closed form here, so the vector is trained. It cannot change a decision, so there is none to preserve.
    return finetune(
        setting.model, setting.fitted, setting.layer, setting.mask, epochs=training.epochs, preserve="decisions",
        scope="common_mode", alpha=0, lr=_COMMON_MODE_LR * strength, seed=seed, decay=False, progress=False,
    ).model  # fmt: skip


def _spatial(setting: Setting, strength: float, _training: Training, _seed: int) -> nn.Module:
    shift = round(strength * setting.mask.shape[0])
    return spatial_hoax(setting.model, setting.layer, partial(torch.roll, shifts=(shift, shift), dims=(2, 3)))


def _finetune(method: Callable[..., BaseCAM], loss: FoolingLoss) -> Callable[..., nn.Module]:
    def make(setting: Setting, strength: float, training: Training, seed: int) -> nn.Module:
        return finetune(
            setting.model, setting.fitted, setting.layer, setting.mask, method, training.epochs,
            loss=loss, preserve=training.preserve, alpha=1 - strength, lr=training.lr, seed=seed, decay=False,
            progress=False,
        ).model  # fmt: skip

    return make


def _trained(method: Callable[..., BaseCAM], loss: FoolingLoss = sham_loss) -> Attack:
    return Attack(_finetune(method, loss), (0.02, 0.1, 0.5, 0.9), 0.5, "weight of fooling, 1 - alpha")


CLOSED_FORM = ("common mode", "spatial")  # the others are trained
_COMMON_MODE_LR = 0.003
ATTACKS = {
    "common mode": Attack(_common_mode, (0.1, 0.3, 1.0, 3.0, 10.0), 3.0, "root mean square relative to what was there"),
    "spatial": Attack(_spatial, (0.15, 0.3, 0.5), 0.5, "shift, share of the map's side"),
    "SHAM on GradCAM": _trained(GradCAM),
    "Location on GradCAM": _trained(GradCAM, location_loss),
    "SHAM on DiffGradCAM logsumexp": _trained(DiffGradCAM),
    "SHAM on DiffGradCAM max": _trained(partial(DiffGradCAM, baseline="max")),
    "SHAM on DiffGradCAM mean": _trained(partial(DiffGradCAM, baseline="mean")),
}
