"""Messages about layers and the graph: what was given, what was expected, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.fx
from torch import nn

OLD_OPTIONS = {
    "use_cuda": "use_cuda= is of old releases of pytorch-grad-cam; move the model and the images with .to('cuda')",
    "target_layer": "target_layer= is of old releases of pytorch-grad-cam; pass target_layers=[layer]",
}
OLD_ARGUMENTS = {
    "target_category": "target_category= is of old releases of pytorch-grad-cam; pass "
    "targets=[ClassifierOutputTarget(category)] for each image, or explain(images, category)",
}


def refuse_old_arguments(kwargs: Mapping[str, object]) -> None:
    """Name what replaces arguments of old releases of pytorch-grad-cam.

    Args:
        kwargs: What would be handed on to the model.

    Raises:
        TypeError: If one of them is there.
    """
    for name in kwargs:
        if name in OLD_ARGUMENTS:
            raise TypeError(OLD_ARGUMENTS[name])


def probabilities() -> str:
    """For a model that returns probabilities where logits are expected."""
    return (
        "the model's outputs look like probabilities (each row is in [0, 1] and sums to 1), not logits: a score of "
        "them is squashed by the softmax, and a contrast of them is not a contrast of logits; explain the model "
        "without its last softmax, or pass output=lambda p: p.log()"
    )


def changed_meanwhile() -> str:
    """For a model whose weights changed between a forward pass and what is made of it."""
    return (
        "the model's weights changed while it was explained, as by an optimizer step, here or in another thread; take "
        "the maps before the step, or explain a copy of the model (copy.deepcopy) while it trains"
    )


def independent(name: str, model: nn.Module) -> str:
    """For an output that does not depend on a layer."""
    if any("quantized" in type(module).__module__ for module in model.modules()):
        return (
            f"the output does not depend on layer {name} for autograd: the model is quantised, and its int8 layers "
            "have no gradients; explain the float model that it was made from, or use a method without gradients, such "
            "as EigenCAM"
        )
    return (
        f"the output does not depend on layer {name}: it comes from a forward pass that was not recorded, or the model "
        "detaches or switches gradients off at or after this layer; choose a later layer, or layer_input() of one"
    )


def no_graph(name: str) -> str:
    """For logits without a graph."""
    return (
        f"the logits carry no graph back to layer {name}: they come from no_grad or inference_mode, or were detached "
        "(those of explain() are); give maps() the logits of a forward pass with gradients"
    )


def freed(name: str) -> str:
    """For logits whose graph is gone."""
    return (
        f"cannot go back from the logits to layer {name}, because backward() has freed their graph; ask for the maps "
        "before backward(), or call backward(retain_graph=True)"
    )


def is_torchscript(model: nn.Module) -> bool:
    """Whether a part of the model is TorchScript."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def torchscript(name: str) -> str:
    """For a layer of a model without Python."""
    return (
        f"hooks cannot see layer {name}: the model is TorchScript, which runs without Python; explain the model that "
        "it was made from, with load_state_dict(script.state_dict())"
    )


def did_not_run(name: str, model: nn.Module) -> str:
    """For a layer that no forward pass called."""
    if is_torchscript(model):
        return torchscript(name)
    if isinstance(model, torch.fx.GraphModule):
        return (
            f"layer {name} did not run where hooks see it: the model is a graph, such as torch.export makes, whose "
            "layers are inlined; explain the model that it was made from, or torch.export.unflatten(exported)"
        )
    return (
        f"layer {name} did not run in a recorded forward pass; call the model (not its forward method) while the CAM "
        "is attached, choose a layer that the model calls (a ModuleList is never called), and attach before "
        "torch.compile"
    )


def without_gradients(name: str) -> str:
    """For a layer that ran where autograd followed nothing."""
    return (
        f"layer {name} ran without gradients (no_grad, inference_mode or reentrant checkpointing), so nothing was "
        "recorded; switch gradients on for the forward pass (checkpoint with use_reentrant=False), or use explain() or "
        "the call, which need none"
    )


def inference_inside(name: str) -> str:
    """For a layer that the model itself runs under inference mode."""
    return (
        f"the model runs layer {name} under torch.inference_mode(), where no gradient can start; use torch.no_grad() "
        "in the model instead and choose the first layer after it, or layer_input() of that layer; or use a method "
        "that needs no gradient, such as EigenCAM or ScoreCAM"
    )


def inference_weights() -> str:
    """For a model whose weights autograd cannot use."""
    return (
        "the model's weights were made under torch.inference_mode(), so no gradient can pass them; load its state_dict "
        "into a model that is built outside of it, or use a method without gradients, such as EigenCAM or ScoreCAM"
    )


def transformed(name: str) -> str:
    """For a layer within a transform of torch.func."""
    return (
        f"layer {name} runs within a torch.func transform (vmap, jvp, grad, ...), where nothing can be recorded; "
        "transform the model while no CAM is attached to it, and explain outside of the transform"
    )


def ran_twice(name: str) -> str:
    """For a layer that runs several times in a forward pass."""
    return (
        f"layer {name} ran more than once in one forward pass, so which run is meant is unclear; choose it with "
        'run="first", run="last", run="all" or the number of the run, or name a layer that runs once'
    )


def too_few_runs(name: str, number: int, runs: int) -> str:
    """For a run that there was not."""
    return f"run is {number}, but layer {name} ran {runs} times in this forward pass; expected 0 to {runs - 1}"


def not_activations(name: str, what: str) -> str:
    """For a layer whose output is not a floating-point tensor."""
    return (
        f"layer {name} gives {what}; expected one floating-point tensor (B, C, ...): choose a module inside it, or "
        "layer_input() of a module that takes one"
    )


def several_arguments(name: str, arguments: Sequence[str | int]) -> str:
    """For a layer that takes several tensors of the same form."""
    choices = " or ".join(f"argument={argument!r}" for argument in arguments)
    return (
        f"{name} takes several tensors of one form, so which of them is meant is unclear; name it: "
        f"layer_input(..., {choices})"
    )


def no_such_argument(name: str, argument: str | int, arguments: Sequence[str | int]) -> str:
    """For an argument that the layer was not called with."""
    return f"argument is {argument!r}, but {name} was called with the arguments {list(arguments)}; name one of these"
