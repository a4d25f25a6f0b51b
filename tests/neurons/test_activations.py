"""Activations against hooks on torch's modules and loops over positions."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import CONFIGS, SMALL, batch, torch_model, weights
from strategies import few, graph_of, seeds
from torch import Tensor

from devinterp_func import neurons
from devinterp_func.graph import _batches
from devinterp_func.models import Config
from devinterp_func.neurons import ActivationMeans, Axis, Neuron

UNIT = "layers.1.linear2.weight"
N = 7


def model(config: Config = SMALL, seed: int = 0) -> tuple[Any, Any, tuple[Tensor]]:
    return graph_of(config), weights(config, seed=seed), (batch(config, n=N, seed=seed)[0],)


def hooked(config: Config, seed: int, module: str) -> tuple[Tensor, Tensor]:
    """What goes into a module of torch's model and what comes out."""
    _, params, (tokens,) = model(config, seed)
    torch_side, seen = torch_model(params, config), []
    layer = torch_side.get_submodule(f"encoder.{module}")
    layer.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].detach(), output.detach()]))
    torch_side(tokens)
    return seen[0], seen[1]


@few
@given(st.sampled_from(CONFIGS), seeds, st.sampled_from(["linear1", "linear2"]))
def test_activations_are_what_torch_modules_get_and_give(config: Config, seed: int, kind: str) -> None:
    module = f"layers.{config.n_layers - 1}.{kind}"
    axes: tuple[Axis, Axis] = ("in", "out")
    for axis, expected in zip(axes, hooked(config, seed, module), strict=True):
        found = neurons.activations(*model(config, seed), f"{module}.weight", axis)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["self_attn.in_proj_", "self_attn.out_proj.", "linear1.", "linear2."])
def test_outputs_are_the_unit_applied_to_the_inputs(kind: str) -> None:
    _, params, (tokens,) = model()
    inputs, outputs = (
        neurons.activations(graph_of(SMALL), params, (tokens,), f"layers.0.{kind}weight", axis)
        for axis in ("in", "out")
    )
    torch.testing.assert_close(inputs @ params[f"layers.0.{kind}weight"].T + params[f"layers.0.{kind}bias"], outputs)


@few
@given(seeds, st.sampled_from(["in", "out"]), st.booleans(), st.integers(1, N))
def test_means_by_token_are_those_of_a_loop(seed: int, axis: Any, targets: bool, block: int) -> None:
    _, params, (tokens,) = model(seed=seed)
    labels = batch(SMALL, n=N, seed=seed)[1] if targets else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_batches, "POSITIONS", block * tokens.shape[1])
        found = neurons.activations_by_token(graph_of(SMALL), params, (tokens,), UNIT, axis, labels)
    values = neurons.activations(graph_of(SMALL), params, (tokens,), UNIT, axis).flatten(0, 1)
    for token in range(SMALL.vocab_size):
        here = values[(tokens if labels is None else labels).flatten() == token]
        assert found.count[token] == len(here)
        torch.testing.assert_close(found.mean[token], here.sum(0) / max(len(here), 1))
        variance = here.var(0, correction=0) if len(here) else torch.zeros(here.shape[1], dtype=here.dtype)
        torch.testing.assert_close(found.variance[token], variance, atol=1e-12, rtol=1e-6)


@few
@given(seeds)
def test_selectivity_is_the_correlation_with_being_the_token(seed: int) -> None:
    _, params, (tokens,) = model(seed=seed)
    found = neurons.selectivity(
        neurons.activations_by_token(graph_of(SMALL), params, (tokens,), "layers.0.linear1.weight")
    )
    values = neurons.activations(graph_of(SMALL), params, (tokens,), "layers.0.linear1.weight").flatten(0, 1).numpy()
    for token in set(tokens.flatten().tolist()):
        is_token = (tokens.flatten() == token).numpy()
        expected = [np.corrcoef(values[:, i], is_token)[0, 1] * (len(values) - 1) ** 0.5 for i in range(SMALL.d_model)]
        np.testing.assert_allclose(found[:, token], expected, rtol=1e-6, atol=1e-9)
    absent = torch.bincount(tokens.flatten(), minlength=SMALL.vocab_size) == 0
    assert not found[:, absent].any()


def test_extremes_are_the_ends_of_the_order() -> None:
    means = ActivationMeans(
        torch.tensor([3, 1]), torch.tensor([[0.0] * 5, [4.0, -1.0, 3.0, 5.0, 0.0]]), torch.zeros(2, 5)
    )
    found = neurons.extreme_neurons(means, token=1, n=2)
    assert (found.least.tolist(), found.least_mean.tolist()) == ([1, 4], [-1, 0])
    assert (found.most.tolist(), found.most_mean.tolist()) == ([3, 0], [5, 4])


def test_percentile_counts_the_other_frequent_tokens_below() -> None:
    mean = torch.tensor([[2.0], [1.0], [3.0], [2.0], [0.0]])
    means = ActivationMeans(torch.tensor([1, 20, 30, 20, 19]), mean, torch.zeros(5, 1))
    assert neurons.percentile(means, token=0).tolist() == [50]  # above 1, tied with 2, below 3
    assert neurons.percentile(means, token=2).tolist() == [100]
    with pytest.raises(ValueError, match="no token but 2 occurs 30 times"):
        neurons.percentile(means, token=2, least_count=30)


@few
@given(seeds, st.sampled_from(["in", "out"]), st.booleans())
def test_distributions_are_the_collected_activations(seed: int, axis: Any, targets: bool) -> None:
    _, params, (tokens,) = model(seed=seed)
    labels = batch(SMALL, n=N, seed=seed)[1] if targets else tokens
    values = neurons.activations(graph_of(SMALL), params, (tokens,), UNIT, axis)
    neuron = Neuron(UNIT, 3, axis)
    found = neurons.activations_on(graph_of(SMALL), params, (tokens,), neuron, range(SMALL.vocab_size), labels)
    for token in range(SMALL.vocab_size):
        torch.testing.assert_close(found[token], values[labels == token][:, 3])
    beside = neurons.activations_of_neighbours(graph_of(SMALL), params, (tokens,), neuron, 0, reach=2, labels=labels)
    assert list(beside) == [1, 2, 3, 4, 5]
    for index, here in beside.items():
        torch.testing.assert_close(here, values[labels == 0][:, index])


def test_neighbours_end_where_the_unit_does_and_absent_tokens_have_none() -> None:
    _, params, (tokens,) = model()
    neuron = Neuron(UNIT, 0)
    assert list(neurons.activations_of_neighbours(graph_of(SMALL), params, (tokens,), neuron, 1)) == list(range(6))
    nowhere = torch.zeros_like(tokens)
    assert neurons.activations_on(graph_of(SMALL), params, (tokens,), neuron, [5], nowhere)[5].shape == (0,)


@pytest.mark.parametrize(
    "unit", ["layers.1.linear2", "layers.0.norm1.weight", "decoder.bias", "layers.9.linear1.weight"]
)
def test_a_unit_without_neurons_is_refused_and_those_with_are_named(unchecked: None, unit: str) -> None:
    with pytest.raises(ValueError, match=r"has no neurons; units that have are .*layers.0.self_attn.in_proj_weight, "):
        neurons.activations(*model(), unit)
    with pytest.raises(ValueError, match="axis is 'column'; it must be 'in' or 'out'"):
        neurons.activations(*model(), UNIT, "column")  # type: ignore[arg-type]
