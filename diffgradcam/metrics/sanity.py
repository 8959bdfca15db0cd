"""Sanity checks: does a map depend on what the model has learnt? If a random model gives the same map, it does not.

A high similarity to the map of a randomised model means that the map shows the image (its edges, its centre), not the
model. A low one is necessary for a faithful map and not sufficient.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffgradcam._core.checks import check_choice
from diffgradcam._core.editing import by_name, copy_model
from diffgradcam._core.explainers import MakeCAM, check_makes_cams
from diffgradcam._core.layers import LayerSpec
from diffgradcam._core.outputs import Classes

from .evaluator import explained
from .similarity import MapSimilarity, compared, spearman

Mode = Literal["cascading", "independent"]


class Randomization(NamedTuple):
    """Similarity of the maps of the trained model and of the randomised one.

    Attributes:
        layers: Names of the randomised layers, in the order in which they were: from the last to the first by default.
        similarity: After the randomisation of each layer, for each image, ``(L, B)``.
    """

    layers: list[str]
    similarity: Tensor


def model_randomization(
    make_cam: MakeCAM,
    model: nn.Module,
    images: Tensor,
    classes: Classes = None,
    *,
    layers: LayerSpec | Sequence[LayerSpec] | None = None,
    mode: Mode = "cascading",
    similarity: MapSimilarity = spearman,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Randomization:
    """Model parameter randomisation test: how much of the map is left when the layers are made random.

    Each parameter is drawn again from a normal distribution with the mean and the standard deviation of its trained
    values, so that activations keep their order of magnitude. A parameter of one value, such as biases of 0, stays;
    running statistics stay too. Everything happens in a copy in evaluation mode.

    Args:
        make_cam: Makes a CAM of the model that it is given: ``lambda model: DiffGradCAM(model, "layer4")``. Layers go
            by dotted name, since the model is a copy.
        model: The trained model. It is left as it is.
        images: ``(B, C, *S)``.
        classes: None (the decision of the trained model), one class for all images, or ``(B,)``.
        layers: Which layers to randomise, in this order: modules or dotted names, blocks such as ``"layer4"`` included.
            By default every module that has parameters of its own, from the last registered to the first.
        mode: ``"cascading"``: each layer with all before it in the order; ``"independent"``: each layer alone.
        similarity: Of two batches of maps, one number for each image, as :func:`~diffgradcam.metrics.ssim`.
        seed: Seed of the new parameters.
        batch_size: How many images are explained at once.
        progress: Show a progress bar.

    Returns:
        See :class:`Randomization`.

    Raises:
        ValueError: If a layer is none of the model or has no parameters, ``mode`` is unknown, the CAM is of another
            model, the similarity has another shape, or as :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: If ``make_cam`` is not a function that makes a CAM, or a layer is something else.

    Reference:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018. They draw from the distribution of the
        initialisation.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> result = model_randomization(lambda model: GradCAM(model, "1"), model, torch.rand(5, 3, 8, 8))
        >>> result.layers, result.similarity.shape
        (['4', '0'], torch.Size([2, 5]))
    """
    check_choice("mode", mode, get_args(Mode))
    changed = copy_model(model).eval()
    names = _own_parameters(changed) if layers is None else _named(model, layers)
    index, reference = _explained(make_cam, changed, images, classes, batch_size)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name in tqdm(names, desc="randomisation", disable=not progress):
        layer = changed.get_submodule(name)
        trained = copy.deepcopy(layer.state_dict())
        _randomize(layer, generator)
        _, maps = _explained(make_cam, changed, images, index, batch_size)
        rows.append(compared(similarity, maps, reference))
        if mode == "independent":
            layer.load_state_dict(trained)
    return Randomization(names, torch.stack(rows))


def label_randomization(
    make_cam: MakeCAM,
    model: nn.Module,
    randomly_labelled: nn.Module,
    images: Tensor,
    classes: Classes = None,
    *,
    similarity: MapSimilarity = spearman,
    batch_size: int = 64,
) -> Tensor:
    """Data randomisation test: similarity to the map of a model that was trained on random labels.

    Train ``randomly_labelled`` as ``model``, on labels in random order
    (``labels[torch.randperm(len(labels), generator=generator)]``), until it fits them.

    Args:
        make_cam: As :func:`model_randomization`.
        model: The model that was trained on the true labels. It is left as it is.
        randomly_labelled: The other one, of the same architecture. It is left as it is.
        images: ``(B, C, *S)``.
        classes: None (the decision of ``model``), one class for all images, or ``(B,)``.
        similarity: As :func:`model_randomization`.
        batch_size: How many images are explained at once.

    Returns:
        Similarities, ``(B,)``; by default rank correlations in [-1, 1].

    Raises:
        ValueError: As :func:`model_randomization`.
        TypeError: As :func:`model_randomization`.

    Reference:
        As :func:`model_randomization`.
    """
    index, reference = _explained(make_cam, copy_model(model).eval(), images, classes, batch_size)
    _, maps = _explained(make_cam, copy_model(randomly_labelled).eval(), images, index, batch_size)
    return compared(similarity, maps, reference)


def _explained(
    make_cam: MakeCAM, model: nn.Module, images: Tensor, classes: Classes, batch_size: int
) -> tuple[Tensor, Tensor]:
    check_makes_cams("make_cam", make_cam)
    ran = False

    def notice(_module: nn.Module, _args: object) -> None:
        nonlocal ran
        ran = True

    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(notice).remove)
        index, maps = explained(make_cam(model), images, classes, batch_size)
    if not ran:
        raise ValueError(
            "make_cam made a CAM of another model; expected a CAM of the model that it is given, which changes; "
            'use its argument, as in lambda model: GradCAM(model, "layer4")'
        )
    return index, maps


def _own_parameters(model: nn.Module) -> list[str]:
    modules: list[tuple[str, nn.Module]] = list(model.named_modules())
    names = [name for name, module in modules if any(True for _ in module.parameters(recurse=False))]
    if not names:
        raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing to randomise")
    return names[::-1]


def _named(model: nn.Module, layers: LayerSpec | Sequence[LayerSpec]) -> list[str]:
    names = by_name(model, layers)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is what enters a layer, which has no parameters; expected a module or its name")
        if not any(True for _ in model.get_submodule(name).parameters()):
            raise ValueError(f"layer {name!r} has no parameters, so there is nothing to randomise")
    return [str(name) for name in names]


def _randomize(layer: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            trained = parameter.cpu().double()
            drawn = torch.randn(trained.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(trained.mean() + trained.std(correction=0) * drawn)
