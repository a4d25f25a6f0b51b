"""``grads``, the definition: torch's own gradients, one example after the other, for any pure loss."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, assert_equal, definition, loop_of_grads, masked, relative_error
from strategies import small
from torch import nn
from torch.func import functional_call

from devinterp_func import keys, models, per_example, tree

Line = namedtuple("Line", "slope intercept")


def line_loss(line, x, y):
    return (line.slope @ x + line.intercept - y) ** 2


def nested_loss(params, example):
    return (params["deep"][0] * example["x"]).sum().tanh() + params["deep"][1]["scalar"] ** 3 * example["y"]


def mlp_loss(params, x, y):
    return F.mse_loss(functional_call(MLP, params, (x,)), y)


def normal(*shape, seed=0):
    return torch.from_numpy(keys.generator(seed).standard_normal(shape))


MLP = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
MLP_PARAMS = {name: normal(*p.shape) for name, p in MLP.named_parameters()}


@pytest.mark.parametrize(
    ("loss", "params", "data"),
    [
        (lambda w, x: (w * x).sum().exp(), normal(3), (normal(5, 3, seed=1),)),
        (lambda ws, x: (ws[0] * x + ws[1]).square().sum(), [normal(3), normal(3)], (normal(5, 3, seed=1),)),
        (line_loss, Line(normal(3), normal()), (normal(5, 3, seed=1), normal(5, seed=2))),
        (nested_loss, {"deep": (normal(3), {"scalar": normal()})}, ({"x": normal(5, 3), "y": normal(5, seed=1)},)),
        (mlp_loss, MLP_PARAMS, (normal(5, 3, seed=1), normal(5, 2, seed=2))),
    ],
    ids=["tensor", "list", "NamedTuple", "nested", "module"],
)
def test_grads_are_the_loop_of_autograd(loss, params, data):
    ours, theirs = per_example.grads(loss)(params, *data), loop_of_grads(loss, params, *data)
    pairs = zip(tree.leaves(ours), tree.leaves(theirs), strict=True)
    assert type(ours) is type(params)
    assert max(relative_error(a, b) for a, b in pairs) <= 1e-14


def test_the_definition_is_the_loop_of_autograd_for_the_transformer():
    own = small()
    loss = masked(models.transformer(own.config).loss)
    expected = loop_of_grads(loss, *own[1:5])
    assert_close(definition(*own[1:4], own.config, own.masks)[1], expected, 1e-13)


# ---- losses that vmap cannot take as they are


class Recurrent(nn.Module):
    """A GRU over the positions, one number out."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("name", ["recurrent", "item"])
def test_a_loop_takes_what_vmap_cannot(name):
    model = Recurrent().double()

    def recurrent(params, x):
        return functional_call(model, params, (x[None],)).square().sum()

    def item(params, x):
        return (params["out.weight"].sum() * x.sum()) ** 2 if x.sum().item() > 0 else params["out.bias"].sum()

    loss, params, x = locals()[name], dict(model.named_parameters()), normal(5, 6, 3)
    found = per_example.grads(loss, loop=True)(params, x)
    assert_equal(found, loop_of_grads(loss, params, x))
    with pytest.raises(Exception):  # noqa: B017  (torch's own words, which its versions change)
        per_example.grads(loss)(params, x)


def test_a_loop_is_vmap_where_both_can():
    one, other = (
        per_example.grads(mlp_loss, loop=loop)(MLP_PARAMS, normal(5, 3), normal(5, 2)) for loop in (False, True)
    )
    assert_close(one, other, 1e-14)


def dropped(params, x):
    return (F.dropout(params["w"], 0.5) * x).sum()


def test_random_losses_draw_for_each_example_or_for_all():
    params, x = {"w": torch.ones(64)}, torch.ones(8, 64)
    drawn = per_example.grads(dropped, randomness="different")(params, x)["w"]
    alike = per_example.grads(dropped, randomness="same")(params, x)["w"]
    assert set(drawn.flatten().tolist()) == set(alike.flatten().tolist()) == {0.0, 2.0}
    assert len(drawn.unique(dim=0)) == 8 and len(alike.unique(dim=0)) == 1
    with pytest.raises(RuntimeError, match="randomness"):
        per_example.grads(dropped)(params, x)


# ---- what is refused


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (
            {"w": torch.ones(2), "bn.num_batches_tracked": torch.tensor(3)},
            "parameter 'bn.num_batches_tracked' is torch.int64",
        ),
        ({"deep": [torch.ones(2), torch.ones(2, dtype=torch.bool)]}, "parameter 'deep.1' is torch.bool"),
        (torch.ones(2, dtype=torch.int32), "the parameter is torch.int32"),
    ],
)
@pytest.mark.parametrize("loop", [False, True])
def test_a_leaf_without_gradients_is_named(params, named, loop):
    with pytest.raises(TypeError, match=f"{named}; only floating-point tensors have gradients: leave it out of params"):
        per_example.grads(lambda p, x: x.sum(), loop=loop)(params, torch.ones(3, 2))


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ((torch.ones(0, 2),), [0]),
        ((torch.ones(3, 2), torch.ones(4)), [3, 4]),
        ((torch.ones(3), torch.tensor(1.0)), [0, 3]),
        ((), []),
    ],
    ids=["none", "unequal", "no leading n", "no batch"],
)
def test_a_batch_has_examples_and_equally_many(batch, sizes, loop):
    with pytest.raises(
        ValueError, match=rf"the batch's leaves have \[{', '.join(map(str, sizes))}\] examples; all must"
    ):
        per_example.grads(lambda w, *x: w.sum(), loop=loop)(torch.ones(2), *batch)


# ---- what is left behind


@pytest.mark.parametrize("loop", [False, True])
def test_gradients_carry_no_graph_and_the_parameters_are_as_before(loop):
    model = nn.Linear(3, 2)
    params = dict(model.named_parameters())  # they require gradients
    loss = lambda p, x: functional_call(model, p, (x,)).square().sum()  # noqa: E731
    found = per_example.grads(loss, loop=loop)(params, torch.ones(4, 3, requires_grad=True))
    assert all(g.grad_fn is None and not g.requires_grad for g in found.values())
    assert all(w.requires_grad and w.grad is None for w in params.values())
    assert torch.is_grad_enabled()


def test_nested_trees_go_from_gradients_to_outliers():
    params = {"deep": (normal(3), {"scalar": normal()})}
    gradients = per_example.grads(nested_loss)(params, {"x": normal(5, 3), "y": normal(5, seed=1)})
    deltas = tree.scale(gradients, -0.1)
    flat = torch.cat([deltas["deep"][0], deltas["deep"][1]["scalar"][:, None]], dim=1)
    found = per_example.top_k(deltas, 2)
    assert torch.equal(found.parameter, flat.abs().sort(dim=1, descending=True, stable=True).indices[:, :2])
    assert torch.equal(found.delta, flat.gather(1, found.parameter))
    deltas["deep"][1]["scalar"][2] = torch.nan
    with pytest.raises(FloatingPointError, match="deep.1.scalar: datum 2 "):
        per_example.top_k(deltas, 2)
