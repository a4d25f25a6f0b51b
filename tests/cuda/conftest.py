"""What needs a GPU: run where there is one, skipped with a sentence elsewhere."""

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA's first use, else it has no effect


@pytest.fixture(scope="session")
def cuda() -> str:
    """The device, its kernels deterministic while the tests run."""
    if os.environ.get("LAWS_ON_CPU"):  # the same laws hold there: whether the tests themselves are right
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch finds none here: the laws on CUDA are not tested")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    return "cuda"
