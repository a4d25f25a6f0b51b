"""What is no pure loss of one example is refused with one sentence that names the operation and a way out."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from strategies import drawn_masks
from torch import Tensor, nn
from torch.func import functional_call
from zoo import D, H, ids, of, reals, values

from devinterp_func import graph, keys, per_example

pytestmark = pytest.mark.usefixtures("unchecked")

W: dict[str, Any] = {"w": (H, D)}
X = (reals(D, n=1)[0],)


class Bad(NamedTuple):
    """A loss, what it would be traced with, and what the refusal has to name."""

    named: str
    loss: Callable[..., Any]
    shapes: dict[str, Any] = W
    example: tuple[Any, ...] = X


def linear(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, p["w"])


def branch(p: dict[str, Tensor], x: Tensor) -> Tensor:
    h = linear(p, x)
    return h.sum() if h.sum() > 0 else h.square().sum()


def loop_of_data(p: dict[str, Tensor], x: Tensor) -> Tensor:
    h = linear(p, x)
    while h.norm() < 5:
        h = h * 2
    return h.sum()


def selected(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return linear(p, x)[x.argmax().item() :].sum()


def compressed(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return linear(p, x)[linear(p, x) > 0].sum()


def draws(draw: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda p, x: draw(linear(p, x)).sum()


def of_module(module: nn.Module, named: str, *example: Tensor) -> Bad:
    def loss(p: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return functional_call(module, p, inputs).square().sum()

    shapes = {name: w.shape for name, w in module.double().named_parameters()}
    return Bad(named, loss, shapes, example)


class Counting(nn.Module):
    """It remembers what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, H)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.linear(x) * self.seen


PICTURES = reals(2, 3, 3, 3)[0]
FREE: dict[str, Bad] = {
    "a branch": Bad("data|branch|control flow", branch),
    "a loop until": Bad("data|branch|control flow", loop_of_data),
    "item": Bad("item|data", selected),
    "a boolean index": Bad("nonzero|mask|index|data", compressed),
    "tolist": Bad("tolist|item|data", lambda p, x: linear(p, x).sum() * x.tolist()[0]),
    "numpy": Bad("numpy|item|data", lambda p, x: linear(p, x).sum() * float(x.numpy().sum())),
}
RANDOM: dict[str, Bad] = {
    "rand": Bad("rand", draws(lambda h: h * torch.rand(H))),
    "rand like": Bad("rand", draws(lambda h: h * torch.rand_like(h))),
    "normal": Bad("rand", draws(lambda h: h + torch.randn_like(h))),
    "normal of a mean": Bad("normal|rand", draws(lambda h: torch.normal(h, 1.0) * h)),
    "bernoulli": Bad("bernoulli|rand", draws(lambda h: h * torch.bernoulli(h.sigmoid()))),
    "uniform": Bad("uniform|rand", draws(lambda h: h * torch.empty(H).uniform_())),
    "multinomial": Bad("multinomial|rand", draws(lambda h: h[torch.multinomial(h.softmax(-1), 2)])),
    "permutation": Bad("randperm|rand", draws(lambda h: h[torch.randperm(H)[:2]])),
    "gumbel": Bad("exponential|rand", draws(lambda h: F.gumbel_softmax(h, dim=-1)[:2])),
    "random relu": Bad("rrelu|rand", draws(lambda h: F.rrelu(h, training=True))),
    "feature dropout": Bad("feature_dropout|dropout", draws(lambda h: F.dropout1d(h[None, :, None]))),
    "alpha dropout": Bad("alpha_dropout|dropout", draws(lambda h: F.alpha_dropout(h, training=True))),
}
CHANGED: dict[str, Bad] = {
    "batch norm": of_module(nn.BatchNorm2d(3), "batch.?norm", PICTURES),
    "a buffer": of_module(Counting(), "seen|buffer|in place|add_", *X),
    "a parameter": Bad("parameter|'w'|in place|mul_", lambda p, x: F.linear(x, p["w"].mul_(2)).sum()),
    "the example": Bad("example|input|in place|add_", lambda p, x: linear(p, x.add_(1)).sum()),
}
OUTPUTS: dict[str, Bad] = {
    "a vector": Bad(r"scalar.*\(6,\)|\(6,\).*scalar|\[6\].*scalar|scalar.*\[6\]", linear),
    "a vector of one": Bad("scalar", lambda p, x: linear(p, x).sum(0, keepdim=True)),
    "a pair": Bad("scalar", lambda p, x: (linear(p, x).sum(), x)),
    "a number": Bad("scalar", lambda p, x: 3.0),
    "an integer": Bad("scalar|int64|float", lambda p, x: linear(p, x).argmax()),
}
SPARSE = {"sparse gradients": of_module(nn.Embedding(7, D, sparse=True), "sparse", ids(7, 4)[0])}


@pytest.mark.parametrize("bad", {**FREE, **RANDOM, **CHANGED, **OUTPUTS, **SPARSE}.items(), ids=lambda bad: bad[0])
def test_what_is_no_pure_loss_of_one_example_is_refused_in_a_sentence(bad):
    _, (named, loss, shapes, example) = bad
    with pytest.raises((TypeError, ValueError)) as refused:
        graph.of(loss, values(shapes), *example)
    assert_a_sentence(str(refused.value), named)


def assert_a_sentence(said: str, named: str) -> None:
    assert re.search(named, said), said
    assert "\n" not in said and len(said) <= 400, said
    assert re.search(
        "[:;,] (use|give|leave|call|close|compute|put|write|pass|take|return|set|draw|make)|must|instead", said
    ), said


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128], ids=str)
def test_a_parameter_without_gradients_is_refused_by_name(dtype):
    params = {**values(W), "count": torch.ones(3).to(dtype)}
    with pytest.raises(TypeError) as refused:
        graph.of(lambda p, x: linear(p, x).sum(), params, *X)
    assert_a_sentence(str(refused.value), "'count' is torch.")


def test_a_parameter_never_used_is_no_error():
    params = values({**W, "idle": (2, 3)})
    made = graph.of(lambda p, x: linear(p, x).sum(), params, *X)
    assert list(made.unused) == ["idle"]
    captured = per_example.capture(made, params, reals(D), units=("*",))
    assert torch.equal(captured.mean_grads["idle"], torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(per_example.form(captured.factors["idle"]), torch.zeros(3, 2, 3, dtype=torch.float64))


def test_refusing_leaves_everything_as_it_was():
    counting, drawn = Counting().double(), torch.get_rng_state()
    params, example = values(W), X[0].clone()
    for bad in (*RANDOM.values(), *CHANGED.values()):
        with pytest.raises((TypeError, ValueError)):
            graph.of(bad.loss, values(bad.shapes), *bad.example)
    with pytest.raises(ValueError):
        graph.of(lambda p, x: functional_call(counting, p, (x,)).sum(), dict(counting.named_parameters()), example)
    with pytest.raises(ValueError):
        graph.of(lambda p, x: F.linear(x.add_(1), p["w"].mul_(2)).sum(), params, example)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not counting.seen.any()
    assert torch.equal(example, X[0]) and torch.equal(params["w"], values(W)["w"])


# ---- what the graph is given later


def traced() -> tuple[Any, Any, Any]:
    case = of(lambda p, x: F.dropout(F.linear(x, p["w"], p["b"]), 0.5), w=(H, D), b=(H,))()
    return graph.of(case.loss, case.params, *(x[0] for x in case.batch)), case.params, case.batch


def test_parameters_in_another_order_are_put_in_the_graphs():
    made, params, batch = traced()
    backwards = dict(reversed(params.items()))
    assert list(graph.in_order(made, backwards)) == list(params)
    forth, back = (per_example.capture(made, given, *batch, units=("*",)) for given in (params, backwards))
    for name in params:
        assert torch.equal(forth.mean_grads[name], back.mean_grads[name])
        assert torch.equal(per_example.form(forth.factors[name]), per_example.form(back.factors[name]))


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"w": None}, "w"), ({"v": torch.zeros(2)}, "v"), ({"w": torch.zeros(D, H, dtype=torch.float64)}, "w")],
    ids=["missing", "unknown", "of another shape"],
)
def test_other_parameters_than_the_graphs_are_refused_by_name(changed, named):
    made, params, batch = traced()
    given = {name: w for name, w in {**params, **changed}.items() if w is not None}
    for use in (lambda: graph.in_order(made, given), lambda: per_example.capture(made, given, *batch)):
        with pytest.raises(ValueError, match=f"'{named}'"):
            use()


@pytest.mark.parametrize("batch", [(reals(3, D),), (reals(4, D, n=0),), (reals(4, D), reals(4, D)), ()],
                         ids=["other positions", "no data", "too many leaves", "no leaves"])  # fmt: skip
def test_a_batch_of_other_examples_is_refused(batch):
    made, params, _ = traced()
    with pytest.raises((TypeError, ValueError)):
        per_example.capture(made, params, *batch)


def test_masks_that_do_not_fit_are_refused():
    made, params, batch = traced()
    masks = drawn_masks(made, [keys.fold_in(0, j) for j in range(3)])
    site = next(iter(masks))
    for wrong in ({}, {site: masks[site][:2]}, {site: masks[site][..., :1]}, {**masks, "elsewhere": masks[site]}):
        with pytest.raises(ValueError):
            per_example.capture(made, params, *batch, masks=wrong)


def test_a_unit_that_is_not_there_is_refused():
    made, params, batch = traced()
    with pytest.raises(ValueError, match="no parameter is called 'q'"):
        per_example.capture(made, params, *batch, units=("q",))
