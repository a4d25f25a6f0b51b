"""Histograms: counts are those of a loop over the edges, and nothing is lost beyond them."""

import math

import numpy as np
import torch

from devinterp_func import neurons


def test_counts_are_those_of_a_loop_with_zeros_apart():
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(500, generator=generator) * scale for name, scale in (("a", 1.0), ("b", 3.0))}
    values["a"][::5] = 0
    found = neurons.histograms(values, bins=7)
    edges = found["a"].edges.tolist()
    lows, highs = zip(*(np.quantile(v[v != 0].double().numpy(), [0.001, 0.999]) for v in values.values()), strict=True)
    np.testing.assert_allclose(edges, np.linspace(min(lows), max(highs), 8))
    for name, v in values.items():
        assert found[name].edges.tolist() == edges and found[name].n == 500
        assert found[name].zeros == int((v == 0).sum())
        active = v[v != 0].double()
        assert found[name].median == float(active.median())
        inside = [active.clamp(edges[0], edges[-1]).tolist() for _ in (0,)][0]
        last = len(edges) - 2
        expected = [
            sum(low <= x < high or (i == last and x == high) for x in inside)
            for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
        ]
        assert found[name].counts.tolist() == expected and sum(expected) == len(active)


def test_sets_without_values_or_with_one_value_have_bins_all_the_same():
    found = neurons.histograms({"none": torch.zeros(0), "zeros": torch.zeros(3), "one": torch.tensor([2.0])}, bins=4)
    assert [h.n for h in found.values()] == [0, 3, 1] and [h.zeros for h in found.values()] == [0, 3, 0]
    assert math.isnan(found["none"].median) and math.isnan(found["zeros"].median) and found["one"].median == 2
    assert found["one"].edges.tolist() == [2, 2.25, 2.5, 2.75, 3]
    assert neurons.histograms({}) == {}
