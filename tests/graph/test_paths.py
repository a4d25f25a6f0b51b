"""Paths to the head: what writes to the stream changes it as said, and norms are those of the modules."""

import pytest
import torch
import zoo
import zoo_modules
from torch.nn.functional import cross_entropy, layer_norm, linear, rms_norm
from zoo import D, H

from devinterp_func import graph
from devinterp_func.graph import Norm

CLASSES, C = 7, 4


def graph_of(f, x=None, **shapes):
    """Cross entropy of a head W of what f gives for C positions of width D."""
    x = zoo.reals(C, D) if x is None else x
    params, y = zoo.values({"W": (CLASSES, D), **shapes}), zoo.ids(CLASSES, C)
    return graph.of(lambda p, x, y: cross_entropy(linear(f(p, x), p["W"]), y), params, x[0], y[0])


def by_hand(p, x):
    return (x - x.mean(-1, True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * p["w"] + p["b"]


NORMS = {
    "layer norm": (lambda p, x: layer_norm(x.sin(), (D,), p["w"], p["b"]), Norm("w", "b", True)),
    "without bias, then rows": (lambda p, x: layer_norm(x.sin(), (D,), p["w"]).flip(0)[:C], None),
    "without bias, then dropout": (
        lambda p, x: torch.dropout(layer_norm(x.sin(), (D,), p["w"])[None], 0.1, True)[0],
        Norm("w", None, True),
    ),
    "without weight": (lambda p, x: layer_norm(x.sin(), (D,)), Norm(None, None, True)),
    "rms norm": (lambda p, x: rms_norm(x.sin(), (D,), p["w"]), Norm("w", None, False)),
    "layer norm by hand": (lambda p, x: by_hand(p, x.sin()), Norm("w", "b", True)),
    "rms norm by hand": (
        lambda p, x: p["w"] * ((h := x.sin()) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)),
        Norm("w", None, False),
    ),
    "none": (lambda p, x: x.sin(), None),
    "a gain alone": (lambda p, x: x.sin() * p["w"] + p["b"], None),
    "scaled by a number": (lambda p, x: x.sin() * 0.5, None),
    "scaled by a datum's number": (lambda p, x: x.sin() * p["b"].sum().reshape(1, 1), None),
    "norm of all": (lambda p, x: layer_norm(x.sin(), (C, D)), None),
    "a function of a norm": (lambda p, x: layer_norm(x, (D,), p["w"]).relu(), None),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_final_norm_is_what_was_written(name):
    f, expected = NORMS[name]
    assert graph.final_norm(graph_of(f, w=(D,), b=(D,))) == expected


def added(p, x):
    return linear(x.sin(), p["v"])


WRITERS = {
    "the head's own input": (added, True),
    "added": (lambda p, x: x + added(p, x), True),
    "added twice on": (lambda p, x: (h := x + added(p, x)) + linear(h, p["u"]).relu(), True),
    "through norms and dropout": (
        lambda p, x: layer_norm(x + torch.dropout(added(p, x), 0.3, True), (D,), p["w"], p["b"]),
        True,
    ),
    "through a norm by hand": (lambda p, x: by_hand(p, x + added(p, x)), True),
    "through rows in another order": (
        lambda p, x: x + added(p, x).view(2, 2, D).transpose(0, 1).reshape(C, D),
        True,
    ),
    "x @ W": (lambda p, x: x + x.sin() @ p["v"], True),
    "to a function": (lambda p, x: x + added(p, x).relu(), False),
    "to a gate": (lambda p, x: x * added(p, x), False),
    "to another map": (lambda p, x: x + linear(added(p, x), p["u"]), False),
    "to columns in another order": (lambda p, x: x + added(p, x).roll(1, -1), False),
    "to rows cut elsewhere": (lambda p, x: x + added(p, x).T.reshape(C, D), False),
    "to a norm's scale alone": (lambda p, x: x / added(p, x).norm(dim=-1, keepdim=True), False),
    "by its own": (lambda p, x: (h := added(p, x)) * h, False),
    "divided by": (lambda p, x: x[:, :1] / added(p, x), False),
    "to nothing": (lambda p, x: x + 0 * added(p, x).sum(), False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_writes_to_the_stream(name):
    f, expected = WRITERS[name]
    assert graph.writes_stream(graph_of(f, v=(D, D), u=(D, D), w=(D,), b=(D,)), "v") is expected


@pytest.mark.parametrize("kind", ["the post's transformer", "GPT2 sdpa", "GPTNeoX eager", "Llama sdpa"])
def test_the_output_projections_of_transformers_write_to_the_stream(kind):
    case = zoo_modules.TRANSFORMERS[kind]()
    found = graph.of(case.loss, case.params, *(x[0] for x in case.batch))
    ends = {
        "the post's transformer": ("self_attn.out_proj.weight", "linear2.weight"),
        "GPT2 sdpa": ("attn.c_proj.weight", "mlp.c_proj.weight"),
        "GPTNeoX eager": ("attention.dense.weight", "dense_4h_to_h.weight"),
        "Llama sdpa": ("o_proj.weight", "down_proj.weight"),
    }[kind]
    starts = {"the post's transformer": "linear1", "GPT2 sdpa": "c_fc", "GPTNeoX eager": "dense_h_to_4h"}
    units = [unit for unit in found.shapes if graph.has_operation(found, unit) and graph.writes_stream(found, unit)]
    assert units == [unit for unit in found.shapes if unit.endswith(ends)] and len(units) == 4
    maps = graph.hidden_maps(found)
    assert set(maps.values()) == {unit for unit in units if unit.endswith(ends[1])}
    inner = ("gate_proj.weight", "up_proj.weight") if kind == "Llama sdpa" else f"{starts[kind]}.weight"
    assert list(maps) == [unit for unit in found.shapes if unit.endswith(inner)]
    norm = {"the post's transformer": "layers.1.norm2", "GPT2 sdpa": "transformer.ln_f", "Llama sdpa": "model.norm"}
    weight = f"{norm.get(kind, 'gpt_neox.final_layer_norm')}.weight"
    bias = None if kind == "Llama sdpa" else weight.replace("weight", "bias")
    assert graph.final_norm(found) == Norm(weight, bias, kind != "Llama sdpa")


MLPS = {
    "relu": (lambda p, x: x + linear(linear(x, p["v"]).relu(), p["u"]), {"v": "u"}),
    "gelu by hand, dropout, a gate": (
        lambda p, x: x + linear(torch.dropout((h := linear(x, p["v"])) * h.tanh() + 0.1, 0.2, True), p["u"]),
        {"v": "u"},
    ),
    "a softmax": (lambda p, x: x + linear(linear(x, p["v"]).softmax(-1), p["u"]), {}),
    "beside a sum": (lambda p, x: x + linear((h := linear(x, p["v"])).relu() + h.sum(-1, True), p["u"]), {}),
    "not to the stream": (lambda p, x: x + linear(linear(x, p["v"]).relu(), p["u"]).relu(), {}),
}


@pytest.mark.parametrize("name", MLPS)
def test_hidden_maps_are_read_by_an_output_projection_through_elementwise_functions(name):
    f, expected = MLPS[name]
    assert graph.hidden_maps(graph_of(f, v=(H, D), u=(D, H))) == expected


def test_what_is_below_the_head():
    found = graph_of(lambda p, x: linear(x, p["v"]) + linear(linear(x, p["u"]), p["u"]), v=(D, D), u=(D, D), w=(D, D))
    assert [unit for unit in found.shapes if graph.below_head(found, unit)] == ["v"]
    assert graph.has_operation(found, "W") and not graph.has_operation(found, "u")
    assert graph.largest(found) == C * D


def test_without_a_head_nothing_writes_to_it():
    params = zoo.values({"v": (D, D)})
    found = graph.of(lambda p, x: linear(x, p["v"]).square().sum(), params, zoo.reals(C, D)[0])
    assert graph.final_norm(found) is None and not graph.writes_stream(found, "v") and graph.hidden_maps(found) == {}
    assert not graph.below_head(found, "v")
