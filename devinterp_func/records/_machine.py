"""What a step's bits depend on besides model, text and recipe: the machine."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from devinterp_func import tree
from devinterp_func.tree import Params

PACKAGES = ("devinterp_func", "numpy", "safetensors", "torch", "torchtext")


def machine() -> dict[str, Any]:
    """What the bits of a step depend on besides model, text and recipe."""
    return {
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def is_missing(device: str) -> bool:
    """Whether this machine lacks the device."""
    kind = torch.device(device)
    return kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count()


def on_device(params: Params, device: str) -> Params:
    """The same weights on a device; the very same tensors where they are there already."""
    return tree.map(lambda tensor: tensor.to(device), params)
