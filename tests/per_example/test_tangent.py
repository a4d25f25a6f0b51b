"""Laws of ``tangents``, of every loss in the zoo: what autograd finds by going backwards twice, datum by datum.

Along y, each datum's loss changes by ⟨∇ℓ_j, y⟩ and the mean gradient by H y. In float64, relative to the largest number
of each parameter: at most 1e-10.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from loops import Masks, loop, worst
from oracles import assert_equal, dropout_of, examples, relative_error
from strategies import Small, small
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, embedding, linear
from zoo import OPERATIONS, Case, ids, values
from zoo_losses import LOSSES
from zoo_modules import MODULES

from devinterp_func import graph, keys, per_example, tree
from devinterp_func.per_example import Tangent
from devinterp_func.tree import Params

SOME = [  # of the operations: those that a second derivative may go wrong in
    "linear", "conv1d dilated", "conv2d strided", "conv2d in groups", "bilinear", "bmm", "addmm scaled",
    "rows of a weight",
    "scalars", "prelu", "x / w", "layer norm", "layer norm of all", "rms norm", "group norm", "instance norm",
    "embedding with padding", "W[i, j]", "longer position table", "class token", "used thrice", "used both ways",
    "weight and penalty", "only a penalty", "never used", "used for nothing", "times zero", "recurrence", "in place",
    "where", "sorted", "complex", "dropout", "attention",
]  # fmt: skip
WITHOUT = [
    "embedding bag",  # torch has no second derivative of it
    "GPT2 eager", "GPTNeoX sdpa", "Llama eager",  # as their others
    "LSTM", "LSTM of two layers, both ways", "GRU", "GRU of two layers, both ways", "attention of other widths",
    "attention with added keys", "RMS norm", "nn.GroupNorm", "encoder without dropout",
]  # fmt: skip
ZOO = {name: make for name, make in ({name: OPERATIONS[name] for name in SOME} | LOSSES | MODULES).items()
       if name not in WITHOUT}  # fmt: skip
SINGLE = (
    "GPTNeoX eager",
    "Llama eager",
    "Llama sdpa",
)  # which compute in float32 here and there, whatever they are given


class Turned(NamedTuple):
    """A case, its graph and masks, and its tangents along two directions."""

    name: str
    case: Case
    graph: Any
    masks: Masks | None
    directions: list[Params]
    found: list[Tangent]

    @property
    def tolerance(self) -> float:
        return 1e-6 if self.name in SINGLE else 1e-10


def direction_of(params: Params, seed: int) -> Params:
    drawn = keys.generator(keys.fold_in(seed, "direction"))
    return {name: torch.from_numpy(drawn.standard_normal(tuple(w.shape))).to(w.dtype) for name, w in params.items()}


def turn(name: str, case: Case) -> Turned:
    made = graph.of(case.loss, case.params, *tree.map(lambda x: x[0], case.batch))
    masks = graph.draw_masks(made, each=[keys.fold_in(0, "masks", j) for j in range(3)])
    directions = [direction_of(case.params, seed) for seed in range(2)]
    found = per_example.tangents(made, case.params, *case.batch, directions=directions, masks=masks)
    return Turned(name, case, made, masks, directions, found)


def hessian_product(
    loss: Callable[..., Tensor], params: Params, batch: tuple[Any, ...], sites: Any, masks: Masks | None, y: Params
) -> Params:
    """H y of the mean loss: ⟨∇ℓ, y⟩ of the plain loss backwards once more, one example after the other."""
    rows = []
    for j, example in enumerate(examples(batch)):
        own = {name: w.detach().clone().requires_grad_() for name, w in params.items()}
        kept = None if masks is None else [masks[name][j] for name, site in sites.items() if site.p > 0]
        with torch.enable_grad(), dropout_of(kept), sdpa_kernel(SDPBackend.MATH):
            value = loss(own, *example)
            first = torch.autograd.grad(value, list(own.values()), create_graph=True, materialize_grads=True)
            along = torch.stack([(g * d).sum() for g, d in zip(first, y.values(), strict=True)]).sum()
        if along.requires_grad:
            second = torch.autograd.grad(along, list(own.values()), materialize_grads=True)
        else:
            second = tuple(map(torch.zeros_like, first))
        rows.append(dict(zip(own, second, strict=True)))
    return {name: torch.stack([row[name] for row in rows]).mean(0) for name in params}


@pytest.fixture(scope="module", params=ZOO)
def turned(request: pytest.FixtureRequest) -> Turned:
    """Each case of the zoo, one after the other."""
    return turn(request.param, ZOO[request.param]())


def test_losses_change_as_their_gradients_say(turned):
    case = turned.case
    _, gradients = loop(case.loss, case.params, case.batch, turned.graph.sites, turned.masks)
    for y, found in zip(turned.directions, turned.found, strict=True):
        expected = torch.stack([(g * y[name]).reshape(3, -1).sum(1) for name, g in gradients.items()]).sum(0)
        assert relative_error(found.losses.sum(1), expected) <= turned.tolerance


def test_gradients_change_as_going_backwards_twice_says(turned):
    if turned.name == "weight norm":
        return  # torch's own second derivative of it is not even symmetric
    case, y = turned.case, turned.directions[0]
    expected = hessian_product(case.loss, case.params, case.batch, turned.graph.sites, turned.masks, y)
    assert worst(turned.found[0].mean_grads, expected) <= turned.tolerance


def test_the_hessian_is_symmetric(turned):
    (x, y), (one, other) = turned.directions, turned.found
    a, b = float(tree.dot(y, one.mean_grads)), float(tree.dot(x, other.mean_grads))
    scale = math.sqrt(float(tree.norm(y)) * float(tree.norm(one.mean_grads)) + 1e-30)
    assert abs(a - b) <= turned.tolerance * max(abs(a), scale**2)


# ---- a small language model


def along(own: Small, directions: list[Params], **options: Any) -> list[Tangent]:
    batch = own.tokens, own.targets
    return per_example.tangents(own.graph, own.params, *batch, directions=directions, masks=own.masks, **options)


def test_positions_change_as_their_parts_of_the_loss():
    """Of one datum at a time, each position's part of its loss, differentiated by itself."""
    case = LOSSES["loss: ignored"]()
    made = graph.of(case.loss, case.params, *tree.map(lambda x: x[0], case.batch))
    y = direction_of(case.params, 0)
    (found,) = per_example.tangents(made, case.params, *case.batch, directions=[y])
    x, targets = case.batch

    def parts(params: Params) -> Tensor:
        h = embedding(x, params["table"])
        scores = linear(h + linear(h, params["inner"]).tanh(), params["head"], params["bias"])
        each = cross_entropy(scores.mT, targets, reduction="none")
        return each / (targets != -100).sum(1, keepdim=True)

    expected = jvp(parts, (case.params,), (y,))[1]
    assert relative_error(found.losses, expected) <= 1e-12
    assert torch.equal(found.losses == 0, targets == -100)


def test_positions_of_a_curved_tail_add_up_to_the_datum():
    """A loss that is no sum over positions: each has the weight that it has in the datum's derivative."""

    def loss(p: Params, x: Tensor, y: Tensor) -> Tensor:
        each = cross_entropy(linear(embedding(x, p["table"]), p["head"], p["bias"]), y, reduction="none")
        return each.square().sum().sqrt() + each.prod()

    params = values({"table": (7, 5), "head": (7, 5), "bias": (7,)})
    batch, y = (ids(7, 4), ids(7, 4, seed=2)), direction_of(params, 0)
    made = graph.of(loss, params, *tree.map(lambda x: x[0], batch))
    assert made.head is not None and made.head.reduction == "none" and made.head.bias
    (found,) = per_example.tangents(made, params, *batch, directions=[y])
    _, gradients = loop(loss, params, batch, {}, None)
    expected = torch.stack([(g * y[name]).reshape(3, -1).sum(1) for name, g in gradients.items()]).sum(0)
    assert found.losses.shape == (3, 4)
    assert relative_error(found.losses.sum(1), expected) <= 1e-12
    wanted = hessian_product(loss, params, batch, {}, None, y)
    assert worst(found.mean_grads, wanted) <= 1e-10


def test_several_directions_are_each_alone_and_a_tangent_is_linear():
    own = small()
    x, y = (direction_of(own.params, seed) for seed in range(2))
    both = tree.map(lambda a, b: 2 * a - 3 * b, x, y)
    together = along(own, [x, y, both])
    for direction, found in zip((x, y, both), together, strict=True):
        (alone,) = along(own, [direction])
        assert relative_error(found.losses, alone.losses) <= 1e-12
        assert worst(found.mean_grads, alone.mean_grads) <= 1e-12
    assert along(own, []) == []
    for part in ("losses", "mean_grads"):
        one, other, mixed = (getattr(found, part) for found in together)
        expected = tree.map(lambda a, b: 2 * a - 3 * b, one, other)
        assert max(map(relative_error, tree.leaves(mixed), tree.leaves(expected))) <= 1e-10


def test_a_tangent_is_the_difference_of_gradients_either_side():
    own, h = small(), 1e-5
    (y,) = directions = [direction_of(own.params, 3)]
    (found,) = along(own, directions)
    there, back = (own._replace(params=tree.map(lambda w, d, h=h: w + h * d, own.params, y)).capture() for h in (h, -h))
    expected = tree.map(lambda a, b: (a - b) / (2 * h), there.mean_grads, back.mean_grads)
    assert worst(found.mean_grads, expected) <= 1e-6
    assert relative_error(found.losses.sum(1), (there.losses - back.losses) / (2 * h)) <= 1e-6


def test_blocks_of_the_vocabulary_do_not_show(monkeypatch):
    own = small()
    directions = [direction_of(own.params, 0)]
    (whole,) = along(own, directions)
    monkeypatch.setattr("devinterp_func.per_example._cross_entropy.VOCABULARY_BLOCK", 3)
    (found,) = along(own, directions)
    assert relative_error(found.losses, whole.losses) <= 1e-12
    assert worst(found.mean_grads, whole.mean_grads) <= 1e-12


@pytest.mark.parametrize("size", [1.0, 1e3, 1e7])
@pytest.mark.parametrize("logit", [1.0, 30.0, 300.0])
def test_in_single_precision_large_logits_and_large_directions_are_no_worse(logit, size):
    """Against float64 on the same numbers; the softmax is shifted where its exponentials would overflow."""
    own = small(torch.float32, masked=False)
    params = own.params | {"decoder.bias": own.params["decoder.bias"] + logit * torch.linspace(-1, 1, 11)}
    y = tree.scale(direction_of(params, 0), size)
    (found,) = along(own._replace(params=params), [y])
    double = small(masked=False)._replace(params=tree.map(torch.Tensor.double, params))
    (expected,) = along(double, [tree.map(torch.Tensor.double, y)])
    assert {x.dtype for x in tree.leaves(found)} == {torch.float32}
    assert relative_error(found.losses.double(), expected.losses) <= 1e-5
    assert worst(tree.map(torch.Tensor.double, found.mean_grads), expected.mean_grads) <= 3e-5


def test_forwards_and_backwards_agree(monkeypatch):
    """The way back is taken where torch has no forward derivative; of this model both are there."""
    own = small()
    directions = [direction_of(own.params, 0)]
    (found,) = along(own, directions)

    def refuse(*given: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr("devinterp_func.per_example._tangent._forwards", refuse)
    (other,) = along(own, directions)
    assert relative_error(other.losses, found.losses) <= 1e-12
    assert worst(other.mean_grads, found.mean_grads) <= 1e-11


def test_what_torch_cannot_differentiate_twice_is_named():
    with pytest.raises(NotImplementedError, match="_embedding_bag_backward"):
        turn("embedding bag", OPERATIONS["embedding bag"]())


def test_tangents_leave_no_graph_and_change_nothing():
    own = small()
    directions = [direction_of(own.params, 0)]
    copies = tree.map(torch.clone, (own.params, directions, own.tokens, own.masks))
    (found,) = along(own, directions)
    assert not any(x.requires_grad for x in tree.leaves(found))
    assert_equal((own.params, directions, own.tokens, own.masks), copies)
    assert list(found.mean_grads) == list(own.params)
    assert repr(found) == f"Tangent of 3 data: mean loss {found.losses.sum(1).mean():.4g}"


def test_what_does_not_fit_is_named():
    own = small()
    y = direction_of(own.params, 0)
    with pytest.raises(ValueError, match="differ in 'decoder.bias'"):
        along(own, [{name: d for name, d in y.items() if name != "decoder.bias"}])
    with pytest.raises(ValueError, match="'decoder.bias' has shape"):
        along(own, [y | {"decoder.bias": torch.zeros(3, dtype=torch.float64)}])
    with pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"), torch.inference_mode():
        along(own, [y])


# ---- data that count by weights


COUNTED = ["loss: ignored", "loss: tied", "two heads", "pictures", "regression", "GPT2 sdpa", "LSTM cell", "dropout"]


@pytest.mark.parametrize("name", [name if name in ZOO else f"loss: {name}" for name in COUNTED])
def test_what_counts_by_weights_is_the_definition_times_the_weights(name):
    case = ZOO[name]()
    made = graph.of(case.loss, case.params, *tree.map(lambda x: x[0], case.batch))
    masks = graph.draw_masks(made, each=[keys.fold_in(0, "masks", j) for j in range(3)])
    weights = torch.tensor([0.5, 0.0, -2.0])
    losses, gradients = loop(case.loss, case.params, case.batch, made.sites, masks)
    weighted = {unit: torch.einsum("n...,n->n...", g, weights.double()) for unit, g in gradients.items()}
    found = per_example.capture(made, case.params, *case.batch, masks=masks, units=("*",), weights=weights)
    assert relative_error(found.losses, losses) <= 1e-10
    assert worst(per_example.gradients(found.factors), weighted) <= 1e-10
    assert worst(found.mean_grads, tree.map(lambda g: g.mean(0), weighted)) <= 1e-10


def test_weights_of_one_leave_every_bit():
    own = small(torch.float32)
    assert_equal(own.capture(weights=torch.ones(3)), own.capture())


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_weights_are_of_these_data(shape, unchecked):
    with pytest.raises(ValueError, match=rf"weights are {re.escape(str(shape))}; of these data they must be \(3,\)"):
        small().capture(weights=torch.ones(shape))
