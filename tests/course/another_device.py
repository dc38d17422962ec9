"""A device without hardware: its tensors hold numbers on the CPU, and an operation that mixes them with others raises.

So a mask that is made on the CPU, or a batch that is not moved, is found on any machine, and what is computed can be
compared. torch knows the device by the name `meta`, which every build has.
"""

import contextlib
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
BETWEEN_DEVICES = ("aten._to_copy.default", "aten.copy_.default")


class There(torch.Tensor):
    "A tensor on the device."

    is_meta = False  # it holds numbers

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, device=DEVICE, requires_grad=held.requires_grad, **layout
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"There({self.held})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        with _Operations():
            return operation(*args, **(kwargs or {}))


def _held(x):
    return x.held if isinstance(x, There) else x


def _there(x):
    return There(x) if isinstance(x, torch.Tensor) and not isinstance(x, There) else x


class _Operations(TorchDispatchMode):
    "Computes on the numbers that tensors hold, and puts results where a card's would be."

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), str(operation)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = any(isinstance(x, There) for x in tensors)
        here = [tuple(x.shape) for x in tensors if not isinstance(x, There) and x.dim()]
        if there and here and name not in BETWEEN_DEVICES:
            raise RuntimeError(f"{name} mixes a tensor of the device with one of the CPU, of shape {here[0]}")
        if kwargs.get("device") is not None:
            there, kwargs["device"] = torch.device(kwargs["device"]) == DEVICE, torch.device("cpu")
        result = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
        if name.split(".")[1].endswith("_") and isinstance(args[0], torch.Tensor):
            return args[0]  # changed in place
        return tree_map(_there, result) if there else result


def _tensor(made):
    "torch.tensor and torch.as_tensor, which make a tensor without an operation."

    def make(data, *args, device=None, **kwargs):
        if device is None or torch.device(device) != DEVICE:
            return made(data, *args, device=device, **kwargs)
        return There(made(_held(data), *args, **kwargs))

    return make


@contextlib.contextmanager
def another_device():
    "Inside, tensors can be moved to DEVICE and made there."
    enabled, autocast, names = torch.is_autocast_enabled, torch.autocast, {DEVICE.type: "cpu"}  # it knows no `meta`
    with (
        patch("torch.tensor", _tensor(torch.tensor)),
        patch("torch.as_tensor", _tensor(torch.as_tensor)),
        patch("torch.is_autocast_enabled", lambda *names: names != (DEVICE.type,) and enabled(*names)),
        patch("torch.autocast", lambda name, *args, **more: autocast(names.get(name, name), *args, **more)),
        _Operations(),
    ):
        yield


def moved(module: torch.nn.Module) -> torch.nn.Module:
    "The module, its weights and buffers on the device; ties stay ties."
    known = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                new = torch.nn.Parameter(There(weight.detach()), requires_grad=weight.requires_grad)
                part._parameters[name] = known.setdefault(id(weight), new)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = There(buffer)
    return module
