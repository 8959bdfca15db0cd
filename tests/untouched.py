"""Everything that a call must leave as it was: compare before and after."""

import contextlib

import torch
from torch.nn.modules import module as module_state


def same(before, after):
    """Equal, tensors bit by bit (NaN equals NaN)."""
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, torch.Tensor):
        return (
            isinstance(after, torch.Tensor)
            and before.dtype == after.dtype
            and torch.allclose(before, after, rtol=0, atol=0, equal_nan=True)
        )
    return before == after


def copy(tensor):
    return None if tensor is None else tensor.detach().clone()


def hooks(model):
    """How many hooks of each kind every module has."""
    found = {}
    for name, module in model.named_modules():
        found[name] = {
            key: len(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)
        }
    return found


def state(model, buffers=True):
    """What a call could change, of the model and of the process."""
    return {
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": hooks(model),
        "global hooks": {key: len(value) for key, value in vars(module_state).items() if key.endswith("_hooks")},
        "parameters": {name: copy(parameter) for name, parameter in model.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": {name: copy(parameter.grad) for name, parameter in model.named_parameters()},
        "buffers": {name: copy(buffer) for name, buffer in model.named_buffers()} if buffers else None,
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "random numbers": torch.get_rng_state(),
    }


@contextlib.contextmanager
def untouched(model, buffers=True):
    """Assert that the block leaves the model and the process as they were, however it ends."""
    before = state(model, buffers)
    try:
        yield
    finally:
        after = state(model, buffers)
        changed = [key for key in before if not same(before[key], after[key])]
        assert not changed, f"changed: {changed}"


def forward_passes(model):
    """A list that grows with each forward pass of the model."""
    counted = []
    model.register_forward_hook(lambda *_: counted.append(1))
    return counted
