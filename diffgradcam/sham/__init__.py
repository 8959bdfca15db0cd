"""Passive fooling: models that decide as before and show another map, to measure which explainers are fooled."""

from ._problem import Effect
from .autofooling import Autofooled, Restart, autofool
from .closed_form import common_mode_hoax, spatial_hoax
from .finetuning import Epoch, Finetuned, finetune
from .input_scalar import CornerScalar, Scalar, TriggeredScalar, add_patch, input_scalar_wrapper, triggered_hoax
from .masks import border_mask, centre_mask, corner_mask, entropy_mask, match_entropy
from .objectives import FoolingLoss, active_loss, centre_mass_loss, location_loss, sham_loss, top_k_loss
from .perturbing import Perturbed, perturb

__all__ = [
    "Autofooled",
    "CornerScalar",
    "Effect",
    "Epoch",
    "Finetuned",
    "FoolingLoss",
    "Perturbed",
    "Restart",
    "Scalar",
    "TriggeredScalar",
    "active_loss",
    "add_patch",
    "autofool",
    "border_mask",
    "centre_mask",
    "centre_mass_loss",
    "common_mode_hoax",
    "corner_mask",
    "entropy_mask",
    "finetune",
    "input_scalar_wrapper",
    "location_loss",
    "match_entropy",
    "perturb",
    "sham_loss",
    "spatial_hoax",
    "top_k_loss",
    "triggered_hoax",
]
