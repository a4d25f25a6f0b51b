"""A GPU: what its bits depend on besides the machine, and the switches of torch that make them come out the same again.

A recorded run on CUDA takes deterministic kernels, which costs some speed: sums over rows that coincide, such as an
embedding's gradient, are made in a fixed order instead of as they come.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

WORKSPACE, SIZES = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # cuBLAS' own memory, of a fixed size for each stream
REMEDY = {
    "name": "replay it on such a card",
    "capability": "replay it on such a card",
    "cuda": "install the build of torch for that CUDA",
    "cudnn": "install the build of torch with that cuDNN",
    "deterministic": "call torch.use_deterministic_algorithms({there}), or records.open(run) again",
    "precision": "call torch.set_float32_matmul_precision({there!r}), or records.open(run) again",
    "benchmark": "set torch.backends.cudnn.benchmark = {there}, or call records.open(run) again",
    "workspace": "set " + WORKSPACE + "={there} in the environment before Python starts",
}


def is_card(device: str) -> bool:
    """Whether a device is a GPU."""
    return torch.device(device).type == "cuda"


def card(device: str) -> dict[str, Any]:
    """What the bits of a step on a GPU depend on: the card, its libraries and torch's switches."""
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),  # "highest" is without TF32
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(WORKSPACE),
    }


def make_reproducible(device: str, like: Mapping[str, Any] | None = None) -> None:
    """Sets torch's switches so that a GPU makes the same bits again; does nothing for a CPU.

    Products are of whole float32 numbers, without TF32, unless ``torch.set_float32_matmul_precision`` has asked for it;
    the manifest says so.

    Args:
        device: that the steps are made on.
        like: the card of a run that is to be replayed; by default what a new run takes.
    """
    if not is_card(device):
        return
    if not torch.cuda.is_initialized():  # later it has no effect, and whoever asks is told by ``card_differences``
        os.environ.setdefault(WORKSPACE, SIZES if like is None else like["workspace"] or SIZES)
    if like is not None:
        torch.set_float32_matmul_precision(like["precision"])
    torch.use_deterministic_algorithms(True if like is None else like["deterministic"])
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it
    torch.backends.cudnn.benchmark = False if like is None else like["benchmark"]
    torch.backends.cudnn.allow_tf32 = torch.get_float32_matmul_precision() != "highest"
    # a product in bfloat16 is summed in float32 and rounded once, of which the law's bound is made (optim/_law.py)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def require_workspace(device: str) -> None:
    """Refuses a GPU whose products would come out otherwise another time.

    Raises:
        RuntimeError: CUDA was used before the variable was set that cuBLAS reads then.
    """
    if is_card(device) and not os.environ.get(WORKSPACE):
        raise RuntimeError(
            f"CUDA was used in this process before {WORKSPACE} was set, without which its products are not the same "
            f"every time: set {WORKSPACE}={SIZES} in the environment before Python starts"
        )


def card_differences(there: Mapping[str, Any], device: str) -> list[str]:
    """What of a card is not here as a run's manifest says it; each with its remedy."""
    here, wrong = card(device), []
    for name, remedy in REMEDY.items():
        if here[name] != (recorded := there.get(name)):
            wrong.append(f"{name} {here[name]!r} here, {recorded!r} there: {remedy.format(there=recorded)}")
    return wrong
