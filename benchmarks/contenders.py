"""The same work done by each library. Each contender needs a model of its own, because some leave hooks on it.

Each library is used as its documentation says, in the cheapest way that it offers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Call

TEN = 10


class Contender(NamedTuple):
    """A library.

    Attributes:
        name: Name in the tables.
        distribution: Name on PyPI.
        module: Name of the module to import.
        calls: ``(model, images) -> calls`` by kind of work: ``one`` map per image, by the ``drop-in`` call, ``ten``
            classes, ``all`` classes. Work that a library cannot do is missing.
        training: ``(model, images, labels, others, human) -> call``: forward pass, cross-entropy plus a loss on the
            maps of two classes, backward pass. None where maps are not differentiable.
    """

    name: str
    distribution: str
    module: str
    calls: Callable[[nn.Module, Tensor], dict[str, Call]]
    training: Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Call] | None


def bare(model: nn.Module, images: Tensor) -> Call:
    """The reference for maps: a forward pass in inference mode."""

    def forward() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return forward


def by_hand(model: nn.Module, images: Tensor) -> Call:
    """The least that Grad-CAM takes: a hook at the layer, a gradient from there on, the weighted sum, and no check."""
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        seen[:] = [output.detach().requires_grad_()]
        torch.set_grad_enabled(True)
        return seen[0].clone()

    def one() -> Tensor:
        handle = model.get_submodule("layer4").register_forward_hook(cut)
        with torch.no_grad():
            logits = model(images)
            handle.remove()
            (activations,) = seen
            with torch.enable_grad():
                scores = logits.amax(1).sum()
            (gradients,) = torch.autograd.grad(scores, activations)
            return (gradients.mean((2, 3), keepdim=True) * activations.detach()).sum(1).relu()

    return one


def contrast(model: nn.Module, images: Tensor) -> Call:
    """One map of DiffGradCAM, which no peer has."""
    from diffgradcam import DiffGradCAM

    cam = DiffGradCAM(model, [model.layer4])
    return lambda: cam.explain(images)


def bare_training(model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """The reference for training: forward pass, cross-entropy, backward pass."""

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    return step


def _diffgradcam(model: nn.Module, images: Tensor) -> dict[str, Call]:
    from diffgradcam import GradCAM

    cam = GradCAM(model, [model.layer4])
    ten = torch.arange(TEN).expand(len(images), TEN)
    return {
        "one": lambda: cam.explain(images),
        "drop-in": lambda: cam(input_tensor=images),
        "ten": lambda: cam.explain(images, ten),
        "all": lambda: cam.explain(images, "all"),
    }


def _diffgradcam_training(model: nn.Module, images: Tensor, labels: Tensor, others: Tensor, human: Tensor) -> Call:
    from diffgradcam import GradCAM

    cam = GradCAM(model, [model.layer4], rectify=False)
    pairs = torch.stack([labels, others], 1)

    def step() -> None:
        model.zero_grad()
        with cam:
            logits = model(images)
            maps = cam.maps(logits, pairs)
            (F.cross_entropy(logits, labels) + F.mse_loss(maps, human)).backward()

    return step


def _pytorch_grad_cam(model: nn.Module, images: Tensor) -> dict[str, Call]:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(model=model, target_layers=[model.layer4])

    def one() -> object:
        return cam(input_tensor=images, targets=None)

    def ten() -> object:
        return [cam(input_tensor=images, targets=[ClassifierOutputTarget(c)] * len(images)) for c in range(TEN)]

    return {"one": one, "drop-in": one, "ten": ten}


def _torch_cam(model: nn.Module, images: Tensor) -> dict[str, Call]:
    from torchcam.methods import GradCAM

    with torch.inference_mode():
        classes = model(images[:1]).shape[1]
    extractor = GradCAM(model, target_layer="layer4")

    def one() -> object:
        scores = model(images)
        return extractor(scores.argmax(1).tolist(), scores)

    def several(count: int) -> object:
        scores = model(images)
        return [extractor(c, scores, retain_graph=c < count - 1) for c in range(count)]

    return {"one": one, "ten": lambda: several(TEN), "all": lambda: several(classes)}


def _captum(model: nn.Module, images: Tensor) -> dict[str, Call]:
    from captum.attr import LayerGradCam

    cam = LayerGradCam(model, model.layer4)
    with torch.inference_mode():
        classes = model(images).argmax(1).tolist()  # captum asks for the class and returns no logits

    def one() -> object:
        return cam.attribute(images, target=classes, relu_attributions=True)

    def ten() -> object:
        return [cam.attribute(images, target=c, relu_attributions=True) for c in range(TEN)]

    return {"one": one, "ten": ten}


def _captum_training(model: nn.Module, images: Tensor, labels: Tensor, others: Tensor, human: Tensor) -> Call:
    from captum.attr import LayerGradCam

    cam = LayerGradCam(model, model.layer4)
    differentiable: dict[str, Any] = {"grad_kwargs": {"create_graph": True}}

    def step() -> None:
        model.zero_grad()
        maps = torch.cat([cam.attribute(images, target=c, **differentiable) for c in (labels, others)], 1)
        (F.cross_entropy(model(images), labels) + F.mse_loss(maps, human)).backward()

    return step


OURS = Contender("diffgradcam", "diffgradcam", "diffgradcam", _diffgradcam, _diffgradcam_training)
PEERS = (
    Contender("pytorch-grad-cam", "grad-cam", "pytorch_grad_cam", _pytorch_grad_cam, None),
    Contender("torch-cam", "torchcam", "torchcam.methods", _torch_cam, None),
    Contender("captum", "captum", "captum.attr", _captum, _captum_training),
)
