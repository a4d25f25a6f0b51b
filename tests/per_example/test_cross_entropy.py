"""The fused vocabulary head: cross entropy and its gradients, whatever the size of logits and of blocks."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, assert_equal, definition, relative_error
from strategies import batch, small, weights
from torch import Tensor

from devinterp_func import models, per_example, tree, units
from devinterp_func.models import Config, Masks
from devinterp_func.per_example import _cross_entropy, capture
from devinterp_func.tree import Params

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.mark.parametrize("vocab_size", [6, 7, 8, 20])
def test_blocks_of_the_vocabulary_change_nothing(monkeypatch, vocab_size):
    monkeypatch.setattr(_cross_entropy, "VOCABULARY_BLOCK", 7)
    config = Config(vocab_size, d_model=8, n_heads=2, d_hidden=6, n_layers=1)
    params, (tokens, targets) = weights(config), batch(config)
    losses, gradients = definition(params, tokens, targets, config)
    captured = capture(params, tokens, targets, config, units=units.EVERY)
    assert relative_error(captured.losses, losses) <= 1e-10
    assert_close(per_example.gradients(captured.factors), gradients, 1e-10)
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), 1e-10)


def with_head(dtype, weight=1.0, bias=0.0) -> tuple[Params, Tensor, Tensor, Config, Masks | None]:
    """A small model's arguments with a decoder so scaled and shifted."""
    params, tokens, targets, config, masks = small(dtype)
    changed = {"decoder.weight": params["decoder.weight"] * weight, "decoder.bias": params["decoder.bias"] + bias}
    return params | changed, tokens, targets, config, masks


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
    arguments = with_head(dtype, **head)
    losses, gradients = definition(*arguments)
    captured = capture(*arguments, units=units.EVERY)
    assert relative_error(captured.losses, losses) <= tolerance
    assert_close(per_example.gradients(captured.factors), gradients, tolerance)
    assert_close(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients), tolerance)


@pytest.mark.parametrize(("dtype", "head", "tolerance"), HEADS)
def test_losses_are_the_cross_entropy_at_every_position(dtype, head, tolerance):
    params, tokens, targets, config, _ = with_head(dtype, **head)
    double = {name: w.double() for name, w in params.items()}
    logits = torch.stack([models.apply(double, example, config) for example in tokens])
    expected = F.cross_entropy(logits.mT, targets, reduction="none")
    assert relative_error(per_example.losses(params, tokens, targets, config), expected) <= tolerance


def test_mean_losses_are_those_of_capture():
    params, tokens, targets, config, _ = small()
    losses = per_example.losses(params, tokens, targets, config)
    assert relative_error(losses.mean(1), capture(params, tokens, targets, config).losses) <= 1e-14


@each_dtype
def test_the_buffers_content_is_of_no_account(dtype):
    params, tokens, targets, config, masks = small(dtype)
    without = capture(*small(dtype), units=units.EVERY)
    buffer = torch.full((config.vocab_size, tokens.numel()), float("nan"), dtype=dtype)
    captured = capture(*small(dtype), units=units.EVERY, buffer=buffer)
    buffer.fill_(7.0)  # nor is what happens to it later
    assert_equal(captured, without)
    losses = per_example.losses(params, tokens, targets, config, buffer)
    assert_equal(losses, per_example.losses(params, tokens, targets, config))
