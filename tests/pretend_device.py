"""A pretend accelerator: tensors that say they are on another device, and that refuse what CUDA refuses.

Such a tensor says that it is on the device ``meta``, which every build of PyTorch has, and holds its values on the CPU,
where they are computed; so results are those of the CPU, and a test needs no GPU. It stands for a GPU in this:

- A tensor on the device and one on the CPU do not mix. CUDA allows, and so does this: a CPU tensor without dimensions
  as an operand (not in ``cat`` or ``stack``), CPU indices and masks between brackets, ``tensor[...]``, and copies.
- Indices on the device do not index a CPU tensor.
- A CPU generator does not draw on the device.
- There is no ``numpy()`` of a tensor on the device; ``item()``, ``tolist()``, ``float()`` and ``cpu()`` there are.
- With ``float64=False`` the device has no float64, like Apple's MPS.

It says nothing about speed, streams, memory, kernels that round otherwise or autocast.
"""

import contextlib
from functools import partial
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
COPIES = {"copy_"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
NO_OPERANDS = {"cat", "stack"}  # whose parts must all be on one device, those without dimensions too


class PretendTensor(torch.Tensor):
    """A tensor on the device. ``held`` has its values, on the CPU."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"PretendTensor({self.held})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, _types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


def run(operation, args, kwargs):
    """An operation of PyTorch on what the tensors of its arguments hold; the result is on the device if they are."""
    tensors = []

    def look(tensor):
        tensors.append(tensor)
        return held(tensor)

    held_args, held_kwargs = each(look, args), {name: each(look, value) for name, value in kwargs.items()}
    on_device = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    if on_device:
        refuse_mixture(operation, args, tensors)
    if kwargs.get("device") is not None:
        on_device = kwargs["device"] == DEVICE
        held_kwargs["device"] = torch.device("cpu")
    generator = kwargs.get("generator")
    if on_device and generator is not None:
        raise RuntimeError(f"{operation}: expected a generator on the device, found one on {generator.device}")
    result = operation(*held_args, **held_kwargs)
    if writes_first(operation):
        return args[0]
    return each(PretendTensor, result) if on_device else result


def each(function, value):
    """What an operation takes or gives, each tensor in it as a function makes it."""
    if isinstance(value, torch.Tensor):
        return function(value)
    return type(value)(each(function, part) for part in value) if isinstance(value, list | tuple) else value


def refuse_mixture(operation, args, tensors):
    """Raise what CUDA would raise for tensors on two devices."""
    name = operation.overloadpacket.__name__
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    if not strangers or name in COPIES:
        return
    if name in INDEXING:
        tensor, _indices, *values = args
        if not isinstance(tensor, PretendTensor):
            raise RuntimeError(f"{operation}: indices should be on the CPU, as the indexed tensor is")
        strangers = [value for value in values[:1] if not isinstance(value, PretendTensor)]
    if name not in NO_OPERANDS:
        strangers = [tensor for tensor in strangers if tensor.ndim or (writes_first(operation) and tensor is args[0])]
    if strangers:
        shapes = [tuple(tensor.shape) for tensor in strangers]
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device; on the CPU are {shapes}")


def writes_first(operation):
    """Whether an operation changes its first argument and returns it."""
    returned = operation._schema.returns
    return bool(returned) and returned[0].alias_info is not None and returned[0].alias_info.is_write


def held(value):
    return value.held if isinstance(value, PretendTensor) else value


class OnDevice(TorchDispatchMode):
    """Operations that are told the device, such as ``zeros``, get tensors with values there."""

    def __init__(self, float64):
        super().__init__()
        self.float64 = float64

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        result = run(operation, args, kwargs or {})
        if not self.float64:
            each(partial(self.refuse_float64, operation), result)
        return result

    @staticmethod
    def refuse_float64(operation, tensor):
        if isinstance(tensor, PretendTensor) and tensor.dtype == torch.float64:
            raise TypeError(f"{operation}: the device has no float64")


def known(device):
    """The device, or the CPU in place of the pretend one."""
    return "cpu" if torch.device(device) == DEVICE else device


class Generator(torch.Generator):
    """For the device, one of the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, known(device))


@contextlib.contextmanager
def pretend_device(*, float64=True):
    """While this is open, ``DEVICE`` is an accelerator: ``tensor.to(DEVICE)`` and ``model.to(DEVICE)`` work.

    For the device ``meta`` PyTorch has no autocast, no random numbers, and loses the numbers that ``torch.tensor`` is
    given. So while this is open, the first two are those of the CPU, and tensors of numbers are made there and sent.

    Args:
        float64: Whether the device has that type.
    """
    enabled, dtype, autocast = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast
    tensor, as_tensor, new_tensor = torch.tensor, torch.as_tensor, torch.Tensor.new_tensor

    def sent(make, data, *, device=None, **options):
        return make(data, **options) if device is None else make(data, **options).to(device)

    def new(like, data, **options):
        if not isinstance(like, PretendTensor):
            return new_tensor(like, data, **options)
        return sent(tensor, data, **{"dtype": like.dtype, "device": DEVICE, **options})

    replaced = {
        "tensor": partial(sent, tensor),
        "as_tensor": partial(sent, as_tensor),
        "is_autocast_enabled": lambda *device: enabled(*map(known, device)),
        "get_autocast_dtype": lambda device: dtype(known(device)),
        "autocast": lambda device, *args, **kwargs: autocast(known(device), *args, **kwargs),
        "Generator": Generator,
    }
    random_numbers = mock.Mock(spec=["get_rng_state", "set_rng_state"])
    with (
        mock.patch.multiple(torch, **replaced),
        mock.patch.object(torch, DEVICE.type, random_numbers, create=True),
        mock.patch.object(torch.Tensor, "new_tensor", new),
        OnDevice(float64),
    ):
        yield
