"""What a step's bits depend on besides model, text and recipe: the machine."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from devinterp_func import tree
from devinterp_func.records._card import card_differences, is_card
from devinterp_func.tree import Params

PACKAGES = ("devinterp_func", "numpy", "safetensors", "torch", "torchtext")
BIT_EXACT = ("numpy", "torch")  # whose versions decide the bits of a step


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


def differences(there: Mapping[str, Any], device: str, anywhere: bool = False) -> list[str]:
    """What is not here as a run's manifest says it, so that its steps would have other bits; each with its remedy.

    Args:
        there: the manifest.
        device: that the steps are to be made on.
        anywhere: whether other versions and another processor are meant to be tried.
    """
    here, wrong = machine(), []
    if here["threads"] != there["threads"]:
        remedy = f"call torch.set_num_threads({there['threads']}), or records.open(run) again"
        wrong.append(f"{here['threads']} threads here, {there['threads']} there: {remedy}")
    if anywhere:
        return wrong
    for name in BIT_EXACT:
        if here["versions"][name] != (recorded := there["versions"].get(name)):
            wrong.append(f"{name} {here['versions'][name]} here, {recorded} there: pip install {name}=={recorded}")
    if device == "cpu" and here["processor"] != there["processor"]:
        wrong.append(f"processor {here['processor']} here, {there['processor']} there: replay it where it was made")
    if is_card(device):
        wrong += [f"the card's {line}" for line in card_differences(there.get("card", {}), device)]
    return wrong
