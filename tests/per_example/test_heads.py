"""What a loss does with the logits of its head: which positions it reads, how it adds them up, which it leaves out."""

import pytest
import torch
import torch.nn.functional as F
from oracles import loop_of_grads, relative_error
from torch.nn.functional import cross_entropy

from devinterp_func import graph, keys, per_example

V, D, C, N = 7, 4, 5, 3
LEFT_OUT = 3
END = slice(None, -1)
READ = {  # loss(logits, targets), and the loss at every position that it reads
    "mean": (cross_entropy, lambda z, y: each(z, y)),
    "sum": (lambda z, y: cross_entropy(z, y, reduction="sum"), lambda z, y: each(z, y)),
    "weighed": (lambda z, y: each(z, y) @ torch.arange(5.0).double(), lambda z, y: each(z, y)),
    "mean that leaves out": (lambda z, y: cross_entropy(z, y, ignore_index=LEFT_OUT), lambda z, y: kept(z, y)),
    "sum that leaves out": (
        lambda z, y: cross_entropy(z, y, reduction="sum", ignore_index=LEFT_OUT),
        lambda z, y: kept(z, y),
    ),
    "weighed, some left out": (lambda z, y: kept(z, y) @ torch.arange(5.0).double(), lambda z, y: kept(z, y)),
    "a function of the mean": (lambda z, y: cross_entropy(z, y).exp() * 2 - 1, lambda z, y: each(z, y)),
    "last position": (lambda z, y: cross_entropy(z[-1], y[-1]), lambda z, y: each(z[-1:], y[-1:])),
    "all but the last": (lambda z, y: cross_entropy(z[END], y[END]), lambda z, y: each(z[END], y[END])),
    "next token": (lambda z, y: cross_entropy(z[:-1], y[1:]), lambda z, y: each(z[:-1], y[1:])),
}


def each(z, y):
    return cross_entropy(z, y, reduction="none")


def kept(z, y):
    return cross_entropy(z, y, reduction="none", ignore_index=LEFT_OUT)


def logits(params, x):
    return F.linear(F.embedding(x, params["table"]).tanh(), params["head"], params["bias"])


def normal(*shape, seed=0):
    return torch.from_numpy(keys.generator(seed).standard_normal(shape))


PARAMS = {"table": normal(V, D), "head": normal(V, D, seed=1), "bias": normal(V, seed=2)}
X, Y = (torch.from_numpy(keys.generator(seed).integers(0, V, (N, C))) for seed in (3, 4))


@pytest.fixture(params=READ)
def read(request):
    end, at_positions = READ[request.param]
    y = Y.clone()
    y[1, [0, 3]] = LEFT_OUT
    if request.param.startswith("sum that"):
        y[2] = LEFT_OUT  # nothing of this datum counts

    def loss(params, x, y):
        return end(logits(params, x), y)

    made = graph.of(loss, PARAMS, X[0], y[0])
    assert made.head is not None and made.head.weight == "head"
    return made, (X, y), loss, at_positions


@pytest.mark.parametrize("buffer", [None, torch.nan], ids=["no buffer", "any buffer"])
def test_capture_is_the_loop_of_autograd(read, buffer):
    made, data, loss, _ = read
    scratch = None if buffer is None else torch.full((V, N * graph.n_positions(made)), buffer, dtype=torch.float64)
    captured = per_example.capture(made, PARAMS, *data, units=("*",), buffer=scratch)
    for name, gradients in loop_of_grads(loss, PARAMS, *data).items():
        assert relative_error(per_example.form(captured.factors[name]), gradients) <= 1e-12
        assert relative_error(captured.mean_grads[name], gradients.mean(0)) <= 1e-12
    assert (
        relative_error(captured.losses, torch.stack([loss(PARAMS, x, y) for x, y in zip(*data, strict=True)])) <= 1e-13
    )


def test_losses_are_those_of_the_positions_that_are_read(read):
    made, data, loss, at_positions = read
    expected = torch.stack([at_positions(logits(PARAMS, x), y) for x, y in zip(*data, strict=True)])
    assert relative_error(per_example.losses(made, PARAMS, *data), expected) <= 1e-13
    whole = torch.stack([loss(PARAMS, x, y) for x, y in zip(*data, strict=True)])
    assert relative_error(per_example.data_losses(made, PARAMS, *data), whole) <= 1e-13


def test_a_datum_that_counts_for_nothing_has_no_mean_loss():
    """torch's own convention: the mean of nothing is NaN."""
    made = graph.of(lambda p, x, y: cross_entropy(logits(p, x), y, ignore_index=LEFT_OUT), PARAMS, X[0], Y[0])
    y = Y.clone()
    y[1] = LEFT_OUT
    assert per_example.capture(made, PARAMS, X, y).losses.isnan().tolist() == [False, True, False]


def test_without_a_head_the_loss_is_the_only_position_and_there_is_no_buffer():
    made = graph.of(lambda p, x: logits(p, x).square().mean(), PARAMS, X[0])
    whole = torch.stack([logits(PARAMS, x).square().mean() for x in X])
    assert relative_error(per_example.losses(made, PARAMS, X), whole[:, None]) <= 1e-13
    assert relative_error(per_example.data_losses(made, PARAMS, X), whole) <= 1e-13
    with pytest.raises(ValueError, match="a buffer is for logits, and this loss has no head; leave it out"):
        per_example.capture(made, PARAMS, X, buffer=torch.zeros(V, N * C).double())
