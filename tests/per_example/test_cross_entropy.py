"""The fused vocabulary head: cross entropy and its gradients, whatever the size of logits and of blocks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, assert_equal, definition, relative_error
from strategies import Small, small
from torch import Tensor

from devinterp_func import models, per_example, tree
from devinterp_func.models import Config
from devinterp_func.per_example import _cross_entropy

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.mark.parametrize("vocab_size", [6, 7, 8, 20])
def test_blocks_of_the_vocabulary_change_nothing(monkeypatch, vocab_size):
    monkeypatch.setattr(_cross_entropy, "VOCABULARY_BLOCK", 7)
    own = small(config=Config(vocab_size, d_model=8, n_heads=2, d_hidden=6, n_layers=1))
    assert_is_the_definition(own, 1e-10)


def assert_is_the_definition(own: Small, tolerance: float, **options: Any) -> None:
    losses, gradients = definition(*own[1:4], own.config, own.masks)
    captured = own.capture(**options)
    assert relative_error(captured.losses, losses) <= tolerance
    assert_close(per_example.gradients(captured.factors), gradients, tolerance)
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), tolerance)


def with_head(dtype, weight=1.0, bias=0.0) -> Small:
    """A small model and batch with a decoder so scaled and shifted."""
    own = small(dtype)
    params = own.params
    changed = {"decoder.weight": params["decoder.weight"] * weight, "decoder.bias": params["decoder.bias"] + bias}
    return own._replace(params=params | changed)


HEADS = [
    (torch.float32, {"weight": 200.0}, 1e-4),  # some exponentials overflow
    (torch.float64, {"weight": 2000.0}, 1e-10),
    (torch.float32, {"bias": 1e4}, 1e-2),  # all overflow; 1e4 has a float32 grain of 1e-3
    (torch.float32, {"bias": -1e4}, 1e-2),  # all underflow
    (torch.float64, {"bias": 1e4}, 1e-10),
    (torch.float64, {"bias": -1e4}, 1e-10),
    (torch.float32, {"bias": -87.0}, 1e-4),  # some subnormal
    (torch.float32, {"bias": -98.0}, 1e-4),  # all subnormal, with two digits left
]


@pytest.mark.parametrize(("dtype", "head", "tolerance"), HEADS)
@pytest.mark.parametrize("block", [4, 1024])
def test_no_logit_is_too_large_or_too_small(monkeypatch, block, dtype, head, tolerance):
    monkeypatch.setattr(_cross_entropy, "VOCABULARY_BLOCK", block)
    assert_is_the_definition(with_head(dtype, **head), tolerance)


@pytest.mark.parametrize(("dtype", "head", "tolerance"), HEADS)
def test_losses_are_the_cross_entropy_at_every_position(dtype, head, tolerance):
    own = with_head(dtype, **head)
    double = {name: w.double() for name, w in own.params.items()}
    logits = torch.stack([models.apply(double, example, own.config) for example in own.tokens])
    expected = F.cross_entropy(logits.mT, own.targets, reduction="none")
    assert relative_error(losses_of(own), expected) <= tolerance


def losses_of(own: Small, buffer: Tensor | None = None) -> Tensor:
    return per_example.losses(own.graph, own.params, own.tokens, own.targets, buffer=buffer)


def test_mean_losses_are_those_of_capture_and_of_each_datum():
    own = small(masked=False)
    expected = own.capture().losses
    assert relative_error(losses_of(own).mean(1), expected) <= 1e-14
    found = per_example.data_losses(own.graph, own.params, own.tokens, own.targets)
    assert relative_error(found, expected) <= 1e-14


@each_dtype
def test_the_buffers_content_is_of_no_account(dtype):
    own = small(dtype)
    buffer = torch.full((own.config.vocab_size, own.tokens.numel()), float("nan"), dtype=dtype)
    captured = own.capture(buffer=buffer)
    buffer.fill_(7.0)  # nor is what happens to it later
    assert_equal(captured, own.capture())
    losses = losses_of(own, buffer)
    buffer.fill_(7.0)
    assert_equal(losses, losses_of(own))
