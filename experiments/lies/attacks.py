"""The attacks on a setting's tail: those with a strength set by hand, and ``autofool``, which has none."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM
from diffgradcam.metrics import decisions_kept
from diffgradcam.sham import add_patch, autofool, input_scalar_wrapper, triggered_hoax
from diffgradcam.sham.autofooling import FoolingScope, Method
from experiments.sham.attacks import ATTACKS as BY_HAND
from experiments.sham.attacks import CLOSED_FORM, TRAINING, Training, shown_strength

from .settings import Setting

KEEP = 0.01  # nats: the bound of all tables
CURVE = (0.001, 0.1)  # and two more, for the curves

VICTIMS: dict[str, Method | Sequence[Method]] = {
    "GradCAM": GradCAM,
    "DiffGradCAM logsumexp": DiffGradCAM,
    "DiffGradCAM max": partial(DiffGradCAM, baseline="max"),
    "DiffGradCAM mean": partial(DiffGradCAM, baseline="mean"),
    "three": (GradCAM, DiffGradCAM, LayerCAM),
}
ANY_FUNCTION = (*CLOSED_FORM, "wrapper", "triggered")  # every decision stays, whatever the image: no bound is needed
TRAINED = tuple(attack for attack in BY_HAND if attack not in CLOSED_FORM)  # the older tables' attacks, set by hand
AUTOFOOL = tuple(f"autofool on {victim}" for victim in VICTIMS)
FREE = tuple(f"autofool on {victim}, behaviour free" for victim in VICTIMS if victim != "three")
ON_INPUTS = "perturb"
ATTACKS = (*ANY_FUNCTION, *TRAINED, *AUTOFOOL, *FREE, ON_INPUTS)


class Budget(NamedTuple):
    """What an attack may cost in one setting.

    Attributes:
        steps: Of each restart of ``autofool``.
        scopes: Its restarts.
        batch: Images of a step.
        judged: Images whose behaviour bounds it.
        training: How fine-tuning by hand runs.
    """

    steps: int
    scopes: tuple[FoolingScope, ...]
    batch: int
    judged: int
    training: Training


BUDGETS = {
    "digits": Budget(240, ("last stage", "all"), 128, 48, TRAINING["digits"]),
    "tiles": Budget(400, ("last stage",), 128, 48, Training(8, 1e-3, "decisions")),
    "orientation": Budget(200, ("common mode", "last stage"), 48, 24, TRAINING["orientation"]),
    "lite0": Budget(400, ("last stage",), 128, 48, TRAINING["lite0"]),
    "resnet18": Budget(400, ("last stage",), 128, 48, TRAINING["lite0"]),
    "resnet18-whole": Budget(150, ("last stage", "all"), 48, 24, TRAINING["lite0"]),
}


def budget_of(setting: str) -> Budget:
    """The budget of a setting, by its name."""
    return BUDGETS.get(setting) or BUDGETS[setting.split("-")[0]]


def make(setting: Setting, which: str, attack: str, keep: float | None, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Make a fooled copy of a setting's tail.

    Args:
        setting: The setting.
        which: Its name.
        attack: In :data:`ATTACKS`, but neither ``"triggered"`` nor :data:`ON_INPUTS`.
        keep: Bound of the mean divergence on the images that the attack sees, in nats; None for no bound.
        seed: Of everything random.

    Returns:
        The fooled tail, and what is to be remembered about how it was made.
    """
    budget = budget_of(which)
    if attack == "wrapper":
        return input_scalar_wrapper(setting.tail, setting.layer), {}
    if attack.startswith("autofool on "):
        assert keep is not None
        victim, _, free = attack.removeprefix("autofool on ").partition(", ")
        found = autofool(
            setting.tail, setting.fitted.inputs, setting.layer, setting.mask, VICTIMS[victim], keep, not free,
            judged=budget.judged, scopes=budget.scopes, steps=budget.steps, batch_size=budget.batch, seed=seed,
            progress=False,
        )  # fmt: skip
        return found.model, {"restarts": [asdict(restart) for restart in found.restarts], "best": found.best.scope}
    fooled = BY_HAND[attack].make(setting.attacked, shown_strength(which, attack), budget.training, seed)
    if attack in CLOSED_FORM or keep is None:
        return fooled, {}
    return pulled_back(setting.tail, fooled, setting.fitted.inputs, keep)


def pulled_back(
    clean: nn.Module, fooled: nn.Module, inputs: Tensor, keep: float, bisections: int = 8
) -> tuple[nn.Module, dict[str, float]]:
    """The model on the line to the clean weights that is farthest from them and keeps the decisions.

    Args:
        clean: The model before.
        fooled: The model after.
        inputs: Images to measure the divergence on.
        keep: Its bound, in nats.
        bisections: How often the line is cut.

    Returns:
        A copy, and ``share``: where on the line it is.
    """
    found, between = copy.deepcopy(clean), copy.deepcopy(fooled)
    ends = [dict(model.named_parameters()) for model in (clean, fooled)]
    with torch.no_grad():
        before = clean(inputs)

        def at(share: float) -> float:
            for name, parameter in between.named_parameters():
                parameter.copy_(torch.lerp(ends[0][name], ends[1][name], share))
            return float(decisions_kept(before, between(inputs)).kl.mean())

        low, high, share = 0.0, 1.0, 1.0
        for _ in range(bisections):
            if at(share) <= keep:
                low = share
                found.load_state_dict(between.state_dict())
                if share == 1:
                    break
            else:
                high = share
            share = (low + high) / 2
    return found, {"share": low}


def trigger(setting: Setting) -> Tensor:
    """The patch of the triggered hoax: a chequered corner, an eighth of the side and at least 2 pixels."""
    channels, side = setting.fitted.images.shape[1:3]
    width = max(2, side // 8)
    columns = torch.arange(width, device=setting.fitted.images.device)
    rows = columns.view(-1, 1)
    low, high = setting.fitted.images.min(), setting.fitted.images.max()
    return torch.where((rows + columns) % 2 == 0, high, low).expand(channels, -1, -1).clone()


def triggered(setting: Setting) -> nn.Module:
    """The whole model with a triggered hoax, fitted on the images of the attacker whose pixels we keep."""
    whole = nn.Sequential(setting.trunk, setting.tail)
    patch = trigger(setting)
    return triggered_hoax(whole, f"1.{setting.layer}", add_patch(setting.fitted.images, patch), setting.mask, patch)
