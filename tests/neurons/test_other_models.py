"""Ablation, activations and tallies of models other than the post's, against torch's own modules."""

import pytest
import torch
import zoo
from small_transformers import seeded
from torch import nn
from torch.nn.functional import cross_entropy, linear

from devinterp_func import graph, keys, models, neurons
from devinterp_func.neurons import Neuron, _sweep
from devinterp_func.neurons._ablation import _streams

CLASSES = 30


def cnn():
    """A convolutional classifier; its last layers are without norm, so that streams have all lengths."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, stride=2, bias=False), nn.ReLU(), nn.Flatten(1),
        nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, CLASSES),
    )  # fmt: skip


def perceptron():
    """A regression: no head."""
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def gpt2():
    hub = pytest.importorskip("transformers", reason="needs the package transformers")
    config = hub.GPT2Config(
        vocab_size=CLASSES, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return hub.GPT2LMHeadModel(config)


def of_logits(model, *example):
    x, y = example
    found = model(x[None])
    return cross_entropy((found.logits if hasattr(found, "logits") else found)[0], y)


def squared(model, x, y):
    return (model(x) - y).square().sum()


MAKE = {"GPT-2": (gpt2, of_logits), "CNN": (cnn, of_logits), "perceptron": (perceptron, squared)}
with_head = pytest.mark.parametrize("name", ["GPT-2", "CNN"])


def study(name, n=3):
    """Module, graph, parameters and data."""
    module = seeded(MAKE[name][0]).double().eval()
    rng = keys.generator(0)
    with torch.no_grad():
        for weight in module.parameters():  # no bias is 0, and predictions differ
            weight.add_(torch.from_numpy(rng.standard_normal(tuple(weight.shape))) * 0.3)
    shape = {"GPT-2": None, "CNN": (2, 8, 8), "perceptron": (3,)}[name]
    if shape is None:
        batch = tuple(torch.from_numpy(rng.integers(0, CLASSES, (n, 6))) for _ in range(2))
    else:
        x = torch.from_numpy(rng.standard_normal((n, *shape)))
        batch = x, torch.from_numpy(rng.integers(0, CLASSES, n)) if name == "CNN" else torch.zeros(n, 1).double()
    model = models.module(module, MAKE[name][1])
    params = {key: module.state_dict()[key] for key in model.shapes}
    return module, graph.of(model.loss, params, *(x[0] for x in batch)), params, batch


def logits(module, batch):
    found = module(batch[0])
    return (found.logits if hasattr(found, "logits") else found[:, None]).detach()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))


@with_head
def test_inputs_are_what_enters_a_unit_however_it_is_stored(name):
    _, traced, params, batch = study(name)
    maps = {unit: shape for unit, shape in traced.shapes.items() if unit in graph.choose(traced) and len(shape) > 1}
    for side in ("inputs", "outputs"):
        for unit, axis in neurons.axes(traced, maps, side).items():
            assert graph.operation(traced, unit).side(axis) == side
            width = neurons.activations(traced, params, batch[:1], unit, axis).shape[-1]
            assert width == maps[unit][axis == "in"]
    assert set(neurons.axes(traced, maps, "inputs").values()) == {"GPT-2": {"out"}, "CNN": {"in"}}[name]


@with_head
def test_predictions_are_the_argmax_of_the_modules_logits(name):
    module, traced, params, batch = study(name)
    expected = logits(module, batch).argmax(-1)
    assert len(expected.unique()) > 1
    assert torch.equal(neurons.predictions(traced, params, batch[:1]), expected)


@pytest.mark.parametrize("axis", ["in", "out"])
@with_head
def test_a_sweep_is_a_forward_pass_for_each_neuron_of_every_unit(name, axis):
    _, traced, params, batch = study(name)
    every = neurons.every(traced.shapes, axis)
    naive = neurons.sweep_naive(traced, params, batch[:1], every)
    parts = list(neurons.sweep_in_parts(traced, params, batch[:1], every))
    assert len(parts) == neurons.n_sweep_parts(traced, len(batch[0]))
    found = neurons.join_sweeps(parts)
    assert len(naive.neuron) and same(found, naive)
    slow = {"GPT-2": ("wte", "wpe"), "CNN": ("9.weight",)}[name]  # several uses, no linear map; the head
    assert all(_sweep._is_quick(traced, neuron.unit) != any(part in neuron.unit for part in slow) for neuron in every)


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("kind", ["mean", "resample"])
@with_head
def test_a_sweep_of_replacements_is_a_forward_pass_for_each_neuron(name, kind, axis):
    _, traced, params, batch = study(name)
    units = [unit for unit in graph.choose(traced) if len(traced.shapes[unit]) > 1]
    every = neurons.every(traced.shapes, axis, units)[:: 2 if name == "CNN" else 5]
    values = neurons.replacements(traced, params, batch[:1], every, neurons.Ablation(kind, None, 1))
    naive = neurons.sweep_naive(traced, params, batch[:1], every, values)
    assert len(naive.neuron) and same(neurons.sweep(traced, params, batch[:1], every, values), naive)


@pytest.mark.parametrize(
    "name, path",
    [
        ("GPT-2", "transformer.h.1.mlp.c_fc"),
        ("GPT-2", "transformer.h.0.attn.c_proj"),
        ("CNN", "0"),
        ("CNN", "4"),
        ("CNN", "7"),
        ("perceptron", "2"),
    ],
)
def test_activations_are_what_modules_get_and_give(name, path):
    module, traced, params, batch = study(name)
    seen, values, unit = [], torch.rand(3, 1, dtype=torch.float64), f"{path}.weight"
    part = module.get_submodule(path)
    channel = 1 if isinstance(part, nn.Conv2d) else -1
    handle = part.register_forward_hook(lambda _, given, output: seen.extend([given[0].detach(), output.detach()]))
    module(batch[0])
    handle.remove()
    rows = [x.movedim(channel, -1).flatten(1, -2) if x.ndim > 2 else x[:, None] for x in seen]
    axes: tuple[neurons.Axis, ...] = ("out", "in") if type(part).__name__ == "Conv1D" else ("in", "out")
    for axis, expected in zip(axes, rows, strict=True):
        found = neurons.activations(traced, params, batch, unit, axis)
        torch.testing.assert_close(found, expected)
        assert found.shape[-1] == neurons.width(traced.shapes[unit], axis)
    if traced.head is None:
        return

    def replaced(x, index):
        x = x.clone()
        x.select(channel, index).copy_(values.view(-1, *[1] * (x.ndim - 2)).expand_as(x.select(channel, index)))
        return x

    for side, hook in (
        (0, lambda: part.register_forward_pre_hook(lambda _, given: (replaced(given[0], 1),))),
        (1, lambda: part.register_forward_hook(lambda _, given, output: replaced(output, 1))),
    ):
        handle = hook()
        expected = logits(module, batch)
        handle.remove()
        neuron = Neuron(unit, 1, axes[side])
        stream = torch.cat(list(_streams(traced, params, batch, neurons.Replacement(neuron, values))))
        torch.testing.assert_close(graph.decode(traced, params, stream.flatten(0, 1)), expected.flatten(0, 1))


def test_zero_is_a_filter_or_an_input_channel_of_a_convolution():
    _, traced, params, batch = study("CNN")
    row, column = (neurons.zero(params, Neuron("4.weight", 2, axis))["4.weight"] for axis in ("out", "in"))
    assert not row[2].any() and torch.equal(row[[0, 1, 3, 4, 5]], params["4.weight"][[0, 1, 3, 4, 5]])
    assert not column[:, 2].any() and torch.equal(column[:, [0, 1, 3]], params["4.weight"][:, [0, 1, 3]])
    given = neurons.activations(traced, params, batch, "4.weight", "in")
    zeroed = neurons.zero(params, Neuron("4.weight", 2, "in"))
    without = neurons.Replacement(Neuron("4.weight", 2, "in"), torch.zeros(()).double())
    a, b = (torch.cat(list(_streams(traced, p, batch, r))) for p, r in ((zeroed, None), (params, without)))
    torch.testing.assert_close(a, b)
    assert given.shape == (3, 16, 4) and neurons.weights(params, Neuron("4.weight", 2)).shape == (6, 2, 2)


def test_activations_of_the_head_are_not_replaced():
    _, traced, params, batch = study("CNN")
    with pytest.raises(ValueError, match="9.weight:0 is of the head, whose activations are not replaced; zero its"):
        neurons.predictions(traced, params, batch, neurons.Replacement(Neuron("9.weight", 0), torch.zeros(()).double()))


def test_without_a_head_there_is_nothing_to_predict():
    _, traced, params, batch = study("perceptron")
    with pytest.raises(ValueError, match="this loss has no head"):
        neurons.predictions(traced, params, batch)
    with pytest.raises(ValueError, match="this loss has no head"):
        neurons.sweep(traced, params, batch, [Neuron("0.weight", 0)])
    with pytest.raises(ValueError, match="this loss has no head"):
        neurons.logit_effect(traced, params, Neuron("2.weight", 0))


def test_activations_are_gathered_by_a_class_of_each_datum():
    _, traced, params, batch = study("CNN")
    values = neurons.activations(traced, params, batch, "4.weight", "out")
    found = neurons.activations_by_token(traced, params, batch, "4.weight", "out", labels=batch[1][:, None])
    for label in range(CLASSES):
        here = values[batch[1] == label].flatten(0, 1)
        assert found.count[label] == len(here)
        torch.testing.assert_close(found.mean[label], here.sum(0) / max(len(here), 1))
    on = neurons.activations_on(traced, params, batch, Neuron("4.weight", 1), [int(batch[1][0])], batch[1][:, None])
    inputs = neurons.activations(traced, params, batch, "4.weight")[batch[1] == batch[1][0]]
    torch.testing.assert_close(on[int(batch[1][0])], inputs[..., 1].flatten())
    with pytest.raises(ValueError, match="is no tokens; give labels: "):
        neurons.activations_by_token(traced, params, batch, "4.weight")
    with pytest.raises(ValueError, match="there are 2 labels a datum; the unit has 4 positions"):
        neurons.activations_by_token(traced, params, batch, "4.weight", "out", batch[1][:, None].expand(-1, 2))


def test_logit_effects_of_an_mlp_stored_in_out_are_the_mean_slopes():
    _, traced, params, batch = study("GPT-2")
    layer = "transformer.h.1.mlp"
    outer, inner = params[f"{layer}.c_proj.weight"], params[f"{layer}.c_fc.weight"]
    hidden = neurons.activations(traced, params, batch, f"{layer}.c_fc.weight", "in").requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.gelu(hidden, approximate="tanh").sum(), hidden)
    slope = slope.mean((0, 1))
    for unit, written in ((f"{layer}.c_proj.weight", outer), (f"{layer}.c_fc.weight", inner * slope @ outer)):
        gain, head = params["transformer.ln_f.weight"], params["transformer.wte.weight"]
        expected = (written - written.mean(1, keepdim=True)) * gain @ head.T
        torch.testing.assert_close(neurons.logit_effects(traced, params, batch, unit), expected)
    one = neurons.logit_effect(traced, params, Neuron(f"{layer}.c_proj.weight", 3, "out"), norm=True)
    torch.testing.assert_close(one, neurons.logit_effects(traced, params, batch, f"{layer}.c_proj.weight")[3])
    with pytest.raises(ValueError, match=r"c_proj.weight:3 does not write to the stream; rows \(axis 'out'\) of "):
        neurons.logit_effect(traced, params, Neuron(f"{layer}.c_proj.weight", 3))


@pytest.mark.parametrize("name", ["CNN", "perceptron"])
def test_a_card_without_words(name):
    _, traced, params, batch = study(name, 12)
    units = {unit: traced.shapes[unit] for unit in graph.choose(traced)}
    groups, neuron = neurons.groups(units), Neuron(next(iter(units)), 1)
    events = torch.from_numpy(keys.generator(1).integers(0, 3, (12, len(groups.members)))).to(torch.int16)
    nothing = torch.zeros(len(groups.members), 0, dtype=torch.int32)
    tally = neurons.Tally(groups.members, events.sum(0), events, nothing, nothing)
    found = neurons.card(traced, params, batch, tally, neuron, key=0)
    own = events[:, tally.row(neuron)].tolist()
    assert found.data.tolist() == sorted((j for j in range(12) if own[j]), key=lambda j: -own[j])
    assert found.times.tolist() == sorted((x for x in own if x), reverse=True)
    assert len(found.notable) == len(found.targets) == len(found.view.active_on) == 0 and found.view.promoted is None
    active = neurons.activations(traced, params, batch, neuron.unit)[..., 1]
    assert found.view.mean_activation == pytest.approx(float(active.mean()))
    if name == "perceptron":
        assert found.trial is None and repr(found).endswith(f" outliers by {len(found.data)} data")
        return
    attributed = tuple(x[torch.tensor(own) > 0] for x in batch)
    (flips,) = neurons.flip_counts_of(traced, params, attributed, [neuron])
    assert found.trial is not None and found.trial.attributed.flips.tolist() == flips.flips.tolist()
    assert len(flips.flips) == CLASSES


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize(
    "operation",
    [
        lambda p, x: torch.addmm(x.sin(), x, p["v"]),
        lambda p, x: torch.addmm(x, x, p["v"]),
        lambda p, x: linear(x, p["v"], p["b"][2:7]),
        lambda p, x: x @ p["v"],
        lambda p, x: (p["v"] @ x.T).T,
    ],
    ids=["more is added", "it is added to what it reads", "a part of a bias", "x @ W", "W @ x"],
)
def test_a_row_of_zeros_gives_whatever_else_its_operation_adds(operation, axis):
    params, x, y = zoo.values({"v": (5, 5), "b": (9,), "W": (CLASSES, 5)}), zoo.reals(4, 5), zoo.ids(CLASSES, 4)
    traced = graph.of(lambda p, x, y: cross_entropy(linear(operation(p, x).sin(), p["W"]), y), params, x[0], y[0])
    every = neurons.every(traced.shapes, axis, ["v"])
    naive = neurons.sweep_naive(traced, params, (x,), every)
    assert len(naive.neuron) and same(neurons.sweep(traced, params, (x,), every), naive)
