"""Running a graph, whole or in part: every way of it against the model run anew, one example at a time."""

import hashlib
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracles import masked, relative_error, without_dropout
from small_transformers import CONFIGS, SMALL, batch, weights
from strategies import drawn_masks, graph_of, masks_of
from torch import Tensor, nn

from devinterp_func import graph, keys, models
from devinterp_func.graph import Graph, Replace, _batches
from devinterp_func.models import Config

GRAPH, PARAMS = graph_of(SMALL), weights(SMALL)
TOKENS, TARGETS = batch(SMALL, n=7)
KINDS = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
UNITS = [f"layers.{i}.{kind}" for i in range(2) for kind in KINDS]


class Pictures(nn.Module):
    """Convolutions, a norm, a product with a weight stored (in, out), and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Conv2d(3, 4, 2)
        self.norm, self.drop = nn.GroupNorm(1, 3), nn.Dropout(0.4)
        self.turned, self.head = nn.Parameter(torch.empty(4, 5)), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.drop(self.norm(self.first(x))).relu())
        return self.head((h.flatten(2).mT @ self.turned).tanh().mean(1))


class Case(NamedTuple):
    """A model of pictures, and data."""

    graph: Graph
    params: dict[str, Tensor]
    batch: tuple[Tensor, ...]
    model: models.Model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(keys.generator(seed).standard_normal(shape))


def pictures() -> Case:
    model = models.module(Pictures().double(), lambda net, x, y: F.cross_entropy(net(x[None])[0], y))
    params = {name: 0.5 * normal(*shape, seed=i) for i, (name, shape) in enumerate(model.shapes.items())}
    data = normal(4, 2, 6, 6, seed=9), torch.tensor([0, 5, 2, 2])
    return Case(graph.of(model.loss, params, data[0][0], data[1][0]), params, data, model)


PICTURES = pictures()


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert relative_error(found, expected) <= 1e-12


def read_by_head(part: graph.Pass) -> Tensor:
    """The stream of a pass through a model with a head."""
    assert part.stream is not None
    return part.stream


def stream_by_hand(params: Any, tokens: Tensor, config: Config = SMALL, change: Any = None) -> tuple[Tensor, dict]:
    """What the head reads for one text, and every linear map's input and output; ``change(unit, x, y)`` replaces y."""
    names = {id(weight): name for name, weight in params.items()}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    linear = F.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y, unit = linear(x, weight, bias), names[id(weight)]
        y = y if change is None else change(unit, x, y)
        seen[unit] = x, y
        return y

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(F, "linear", watched)
        models.apply(params, tokens, config)
    return seen["decoder.weight"][0], seen


# ---- whole


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"width {config.d_model}")
def test_run_is_the_loss_of_every_example(config):
    made, params, data = graph_of(config), weights(config), batch(config)
    plain, masks, name = models.transformer(config).loss, masks_of(config), made.trace.output.name
    assert masks is not None
    alone = [without_dropout(plain)(params, x, y) for x, y in zip(*data, strict=True)]
    assert_close(graph.run(made, params, data, [name])[name], torch.stack(alone))
    dropped = [
        masked(plain)(params, x, y, {site: mask[j] for site, mask in masks.items()})
        for j, (x, y) in enumerate(zip(*data, strict=True))
    ]
    assert_close(graph.run(made, params, data, [name], masks=masks)[name], torch.stack(dropped))


def test_a_value_that_is_given_is_gone_on_from():
    nodes = [node.name for node in GRAPH.trace.nodes if isinstance(node.meta["val"], Tensor)]
    output = GRAPH.trace.output.name
    whole = graph.run(GRAPH, PARAMS, (TOKENS, TARGETS), nodes)
    for name in nodes[::5]:
        again = graph.run(GRAPH, PARAMS, (TOKENS, TARGETS), [output], given={name: whole[name]})
        assert_close(again[output], whole[output])
    read = graph.require_head(GRAPH).stream.name
    stream = whole[read] * 2 + 1
    (changed,) = graph.run(GRAPH, PARAMS, (TOKENS, TARGETS), [output], given={read: stream}).values()
    logits = stream @ PARAMS["decoder.weight"].T + PARAMS["decoder.bias"]
    assert_close(changed, F.cross_entropy(logits.mT, TARGETS, reduction="none").mean(1))


def test_a_node_that_is_not_there_and_data_that_are_needed_are_named():
    with pytest.raises(ValueError, match="the graph has no node 'nothing'; its last is"):
        graph.run(GRAPH, PARAMS, (TOKENS,), ["nothing"])
    with pytest.raises(ValueError, match="depends on tensor 1 of the example, which the batch lacks"):
        graph.run(GRAPH, PARAMS, (TOKENS,), [GRAPH.trace.output.name])


# ---- the pass over many data


@pytest.mark.parametrize("positions", [1, 5, 11, 2**12])
def test_examples_together_are_examples_alone(monkeypatch, positions):
    monkeypatch.setattr(_batches, "POSITIONS", positions)
    expected, seen = zip(*(stream_by_hand(PARAMS, x) for x in TOKENS), strict=True)
    parts = list(graph.forward(GRAPH, PARAMS, (TOKENS,), watch=UNITS))
    size = max(1, positions // 5)
    assert [part.rows for part in parts] == [slice(i, i + size) for i in range(0, 7, size)]
    assert_close(torch.cat([read_by_head(part) for part in parts]), torch.stack(expected))
    assert_close(graph.streams(GRAPH, PARAMS, (TOKENS,)), torch.stack(expected))
    for unit in UNITS:
        for side in range(2):
            found = torch.cat([part.seen[unit][side] for part in parts])
            assert_close(found, torch.stack([own[unit][side] for own in seen]))
    assert list(parts[0].seen) == UNITS


def test_blocks_say_which_examples_go_together():
    chosen = [slice(4, 7), slice(0, 1)]
    parts = list(graph.forward(GRAPH, PARAMS, (TOKENS,), blocks=chosen))
    assert [part.rows for part in parts] == chosen and parts[0].seen == {}
    assert_close(read_by_head(parts[0]), graph.streams(GRAPH, PARAMS, (TOKENS,))[4:7])


def test_no_examples_make_one_empty_pass():
    (part,) = graph.forward(GRAPH, PARAMS, (TOKENS[:0],), watch=UNITS[2:3])
    assert read_by_head(part).shape == (0, 5, 8) and part.seen[UNITS[2]][1].shape == (0, 5, 6)
    assert graph.attention_patterns(GRAPH, PARAMS, (TOKENS[:0],)).shape == (0, 2, 2, 5, 5)


def test_decoded_streams_are_the_logits():
    expected = torch.stack([models.apply(PARAMS, x, SMALL) for x in TOKENS])
    found = graph.decode(GRAPH, PARAMS, graph.streams(GRAPH, PARAMS, (TOKENS,)).flatten(0, 1))
    assert_close(found.view(7, 5, 11), expected)


def test_the_stream_of_pictures_has_the_one_position_that_is_read():
    net = lambda x: torch.func.functional_call(Pictures().double().eval(), PICTURES.params, (x,))  # noqa: E731
    stream = graph.streams(PICTURES.graph, PICTURES.params, PICTURES.batch[:1])
    assert stream.shape == (4, 1, 5) and graph.n_positions(PICTURES.graph) == 1
    assert_close(graph.decode(PICTURES.graph, PICTURES.params, stream[:, 0]), net(PICTURES.batch[0]))


def test_attention_patterns_are_the_softmax_by_loops():
    patterns = graph.attention_patterns(GRAPH, PARAMS, (TOKENS,))
    for j, layer, head in [(0, 0, 0), (6, 1, 1), (3, 0, 1)]:
        qkv = stream_by_hand(PARAMS, TOKENS[j])[1][UNITS[4 * layer]][1]
        query, key = qkv[:, 4 * head :][:, :4], qkv[:, 8 + 4 * head :][:, :4]
        for q in range(5):
            exps = [torch.exp(query[q] @ key[k] / 2) if k <= q else torch.tensor(0.0) for k in range(5)]
            torch.testing.assert_close(
                patterns[j, layer, head, q], torch.stack(exps).double() / sum(exps), rtol=1e-12, atol=1e-14
            )
    assert not patterns.triu(1).any()
    with pytest.raises(ValueError, match="no attention is found in this graph"):
        graph.attention_patterns(PICTURES.graph, PICTURES.params, PICTURES.batch)


# ---- replaced


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("unit", UNITS)
def test_an_activation_is_replaced_where_it_is_and_nowhere_else(unit, side):
    values, index = normal(7, 5), 3
    (part,) = graph.forward(GRAPH, PARAMS, (TOKENS,), replace=Replace(unit, side, index), values=values, watch=[unit])
    for j, x in enumerate(TOKENS):

        def change(name: str, x: Tensor, y: Tensor, j: int = j) -> Tensor:
            if name != unit:
                return y
            if side == "outputs":
                return y.index_copy(1, torch.tensor([index]), values[j][:, None])
            return y + torch.outer(values[j] - x[:, index], PARAMS[unit][:, index])

        assert_close(read_by_head(part)[j], stream_by_hand(PARAMS, x, change=change)[0])


@pytest.mark.parametrize(("unit", "axis"), [("first.weight", "in"), ("second.weight", "in"), ("turned", "in")])
def test_a_column_that_reads_zero_is_a_column_of_zeros(unit, axis):
    """Of a convolution an input channel; of a weight stored (in, out) a column is an output."""
    operation = graph.operation(PICTURES.graph, unit)
    (part,) = graph.forward(PICTURES.graph, PICTURES.params, PICTURES.batch[:1], watch=[unit])
    side = operation.side(axis)
    assert side == ("outputs" if unit == "turned" else "inputs")
    positions = part.seen[unit][0 if side == "inputs" else 1].shape[1]
    zeros = torch.zeros(4, positions).double()
    (found,) = graph.forward(
        PICTURES.graph, PICTURES.params, PICTURES.batch[:1], replace=Replace(unit, side, 1), values=zeros
    )
    weight = PICTURES.params[unit].clone()
    weight[:, 1] = 0
    expected = graph.streams(PICTURES.graph, PICTURES.params | {unit: weight}, PICTURES.batch[:1])
    assert_close(read_by_head(found), expected)


def test_an_input_of_a_weight_stored_in_out_is_one_of_its_rows():
    (part,) = graph.forward(PICTURES.graph, PICTURES.params, PICTURES.batch[:1], watch=["turned"])
    (found,) = graph.forward(
        PICTURES.graph,
        PICTURES.params,
        PICTURES.batch[:1],
        replace=Replace("turned", graph.operation(PICTURES.graph, "turned").side("out"), 2),
        values=torch.zeros(part.seen["turned"][0].shape[:2]).double(),
    )
    weight = PICTURES.params["turned"].clone()
    weight[2] = 0
    expected = graph.streams(PICTURES.graph, PICTURES.params | {"turned": weight}, PICTURES.batch[:1])
    assert_close(read_by_head(found), expected)


@pytest.mark.parametrize("unit", ["decoder.bias", "layers.0.norm1.weight", "embedding.weight", "nothing"])
def test_a_unit_without_one_operation_is_refused_with_those_that_have_one(unit):
    with pytest.raises(ValueError, match=f"'{unit}' is not the weight of one .*; units that are: layers.0.self_attn"):
        graph.operation(GRAPH, unit)


# ---- from one operation on


@pytest.mark.parametrize("unit", UNITS)
def test_resuming_is_running_all_with_the_output_replaced(unit):
    (part,) = graph.forward(GRAPH, PARAMS, (TOKENS,), watch=[unit], keep=graph.resume_needs(GRAPH, unit))
    datum = torch.tensor([6, 0, 6, 3])
    output = part.seen[unit][1][datum] * torch.tensor([0.0, 1.0, -2.0, 0.5]).double()[:, None, None]
    resumed = graph.resume(GRAPH, PARAMS, unit, output, part.values, datum)
    for row, j in enumerate(datum.tolist()):
        own = output[row]
        expected = stream_by_hand(PARAMS, TOKENS[j], change=lambda name, x, y, own=own: own if name == unit else y)[0]
        assert_close(resumed[row], expected)
    assert_close(resumed[1], read_by_head(part)[0])  # its own output in its place


@pytest.mark.parametrize("unit", ["first.weight", "second.weight", "turned"])
def test_pictures_resume_too(unit):
    made, params, data = PICTURES.graph, PICTURES.params, PICTURES.batch[:1]
    (part,) = graph.forward(made, params, data, watch=[unit], keep=graph.resume_needs(made, unit))
    output, datum = part.seen[unit][1].clone(), torch.tensor([3, 0, 1, 2])
    output[..., 1] = 0
    resumed = graph.resume(made, params, unit, output[datum], part.values, datum)
    replace = Replace(unit, "outputs", 1)
    (expected,) = graph.forward(made, params, data, replace=replace, values=torch.zeros(output.shape[:2]).double())
    assert_close(resumed, read_by_head(expected)[datum])


# ---- other lengths, logits that fit


@pytest.mark.parametrize("context", [1, 3, 9])
def test_at_is_the_graph_of_another_length(context):
    tokens, targets = batch(SMALL, context=context)
    made = graph.at(GRAPH, tokens[0], targets[0])
    assert graph.fingerprint(made) == graph.fingerprint(graph_of(SMALL, context=context))
    assert graph.at(GRAPH, tokens[0], targets[0]) is made and graph.at(GRAPH, TOKENS[0], TARGETS[0]) is GRAPH
    expected = torch.stack([stream_by_hand(PARAMS, x)[0] for x in tokens])
    assert_close(graph.streams(made, PARAMS, (tokens,)), expected)
    with pytest.raises(ValueError, match="graph.at gives it for other shapes"):
        graph.streams(GRAPH, PARAMS, (tokens,))


@pytest.mark.parametrize(("n", "rows"), [(0, [0]), (1, [1]), (6, [3, 3]), (7, [3, 3, 1])])
def test_blocks_of_logits_fit(monkeypatch, n, rows):
    monkeypatch.setattr(_batches, "LOGITS", 3 * 11 * 5 + 54)
    blocks = graph.logit_blocks(GRAPH, n)
    assert [len(range(n)[block]) for block in blocks] == rows
    assert [j for block in blocks for j in range(n)[block]] == list(range(n))
    monkeypatch.setattr(_batches, "LOGITS", 1)
    assert graph.logit_blocks(GRAPH, 2) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("bad", [-1, -100, 11])
def test_tokens_that_the_vocabulary_lacks_are_refused(bad):
    tokens = TOKENS.clone()
    tokens[3, 1] = bad
    for refused in (graph.streams, graph.attention_patterns):
        with pytest.raises(ValueError, match=f"tokens hold the id {bad}; ids must be in 0..10"):
            refused(GRAPH, PARAMS, (tokens,))


# ---- masks


def test_masks_are_the_bits_of_the_key_in_the_order_of_the_sites():
    shapes = [(5, 8)] + [(2, 5, 5), (5, 8), (5, 6), (5, 8)] * 2
    assert [site.shape for site in GRAPH.sites.values()] == shapes
    masks, names = drawn_masks(GRAPH, [7, 8, 7]), list(GRAPH.sites)
    for j, key in enumerate((7, 8, 7)):
        kept = torch.from_numpy(keys.random_bits(sum(map(lambda s: torch.Size(s).numel(), shapes)), key=key) >= 19661)
        assert torch.equal(torch.cat([masks[name][j].flatten() for name in names]), kept)
    assert {mask.dtype for mask in masks.values()} == {torch.bool}


def test_masks_have_the_bits_that_they_always_had():
    total = hashlib.sha256()
    for mask in drawn_masks(GRAPH, [keys.fold_in(3, "dropout", j) for j in range(2)]).values():
        total.update(mask.numpy().tobytes())
    assert total.hexdigest() == "c16845e0ac6b01459bff593f18a5264c12135e71f3bea9f0e132bbb59bb48b67"


def test_more_layers_leave_the_masks_of_the_first_alone():
    deeper = Config(**(vars(SMALL) | {"n_layers": 3}))
    few, many = (list(drawn_masks(graph_of(config), [5]).values()) for config in (SMALL, deeper))
    assert len(many) == len(few) + 4 and all(map(torch.equal, few, many))


@pytest.mark.parametrize("p", [0.2, 0.9])
def test_the_kept_share_is_what_the_rate_leaves(p):
    masks = drawn_masks(graph_of(Config(**(vars(SMALL) | {"dropout": p}))), range(50))
    kept = torch.cat([mask.flatten() for mask in masks.values()]).double()
    assert abs(kept.mean() - (1 - p)) <= 5 * (p * (1 - p) / len(kept)) ** 0.5 + 2**-16


def test_every_mask_matters():
    name = GRAPH.trace.output.name
    masks = masks_of(SMALL, n=7)
    assert masks is not None
    before = graph.run(GRAPH, PARAMS, (TOKENS, TARGETS), [name], masks=masks)[name]
    for site, mask in masks.items():
        flipped = masks | {site: ~mask}
        after = graph.run(GRAPH, PARAMS, (TOKENS, TARGETS), [name], masks=flipped)[name]
        assert ((after - before).abs() > 1e-9).all(), site
    assert graph.draw_masks(graph_of(Config(**(vars(SMALL) | {"dropout": 0.0}))), [0]) is None


# ---- choice, order, identity


def test_the_default_units_are_the_weights_of_maps_but_head_and_tables():
    assert graph.choose(GRAPH) == UNITS
    assert graph.choose(PICTURES.graph) == ["turned", "first.weight", "second.weight"]
    line = graph.of(lambda p, x: (p["w"] @ x + p["b"]) ** 2, {"b": normal(), "w": normal(3)}, normal(3))
    assert graph.choose(line) == ["b", "w"] and graph.choose(line, ("w",)) == ["w"]
    with pytest.raises(ValueError, match="no parameter is called 'v'"):
        graph.choose(line, ("v",))


def test_parameters_are_put_in_order_or_what_is_wrong_is_named():
    turned = dict(reversed(PARAMS.items()))
    found = graph.in_order(GRAPH, turned)
    assert list(found) == list(PARAMS) and all(found[name] is PARAMS[name] for name in PARAMS)
    for wrong, said in [
        ({n: w for n, w in PARAMS.items() if n != "decoder.bias"}, "differ in 'decoder.bias'"),
        (PARAMS | {"extra": normal(1)}, "differ in 'extra'"),
        (PARAMS | {"decoder.bias": normal(3)}, r"'decoder.bias' has shape \(3,\); the graph wants \(11,\)"),
        (PARAMS | {"decoder.bias": normal(11).float()}, "'decoder.bias' is torch.float32; .* with torch.float64"),
    ]:
        with pytest.raises(ValueError, match=said):
            graph.in_order(GRAPH, wrong)


def test_a_fingerprint_is_what_is_computed():
    def traced(scale: float, table: Tensor, width: int = 3) -> str:
        made = graph.of(lambda p, x: scale * (p["w"] @ (x * table)).sum(), {"w": normal(width)}, normal(width))
        return graph.fingerprint(made)

    one = traced(2.0, torch.arange(3.0).double())
    assert one == traced(2.0, torch.arange(3.0).double())
    others = [traced(2.5, torch.arange(3.0).double()), traced(2.0, torch.tensor([0.0, 1.0, 2.5]).double())]
    others += [traced(2.0, torch.arange(4.0).double(), 4)]
    assert len({one, *others}) == 4
    assert graph.fingerprint(graph_of(SMALL)) != graph.fingerprint(graph_of(SMALL, torch.float32))


def test_a_tensor_that_is_given_twice_is_two_places():
    same, params = normal(3), {"a": normal(3, seed=1), "b": normal(3, seed=2)}

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (p["a"] @ x - p["b"] @ y).square()

    expected = graph.fingerprint(graph.of(loss, params, same.clone(), same))
    assert graph.fingerprint(graph.of(loss, params, same, same)) == expected
    assert graph.fingerprint(graph.of(loss, {"a": same, "b": same}, same, same)) == expected
