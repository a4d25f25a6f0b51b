import copy
import io
import pickle

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacrev, vmap

from devinterp_func.records._readonly import FrozenTensor, freeze

IN_PLACE = sorted(
    name
    for name in dir(Tensor)
    if callable(getattr(Tensor, name)) and name.endswith("_") and not name.endswith("__") and not name.startswith("_")
)
ONES, ROW, INDEX = torch.ones(2, 3), torch.ones(1, 3), torch.zeros(2, 3, dtype=torch.int64)
FIRST, MASK = torch.zeros(1, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
ARGUMENTS: list[tuple] = [  # one of these suits each of torch's in-place methods
    *((), (1,), (0.5,), (True,), (0, 1), (0.5, 0.7), (2, 0, 1.0), ((2, 3),), ((2, 3), (3, 1)), ((2, 3), 2, 0)),
    *((ONES,), (ONES, 0.5), (ONES, ONES), (ONES, ONES, ONES), (ONES, lambda a, b: a), (ONES, ONES, lambda a, b, c: a)),
    *((MASK, 1), (MASK, ONES), (INDEX, ONES), (0, INDEX, 1.0), (0, INDEX, ONES), (0, INDEX, ONES, "sum")),
    *((0, FIRST, ROW), (0, FIRST, 1.0), (0, FIRST, ROW, "prod"), ((FIRST,), ROW[0])),
]
OPERATORS = ["+=", "-=", "*=", "/=", "//=", "%=", "**=", "&=", "|=", "^=", "<<=", ">>="]
VIEWS = [
    lambda x: x[0],
    lambda x: x[:, 1:],
    lambda x: x[..., None],
    lambda x: x.T,
    lambda x: x.view(-1),
    lambda x: x.reshape(6),
    lambda x: x.detach(),
    lambda x: x.data,
    lambda x: x.expand(5, 2, 3),
    lambda x: x.contiguous(),
    lambda x: x.to(torch.float32),
    lambda x: x.unbind(0)[1],
    lambda x: torch.split(x, 1)[0],
    lambda x: list(x)[1],
    lambda x: next(iter(x)),
    lambda x: torch.atleast_3d(x),
    lambda x: torch.broadcast_tensors(x, torch.ones(1))[0],
    lambda x: rearrange(x, "a b -> (a b)"),
    lambda x: torch.as_tensor(x),
    lambda x: vmap(lambda row: row)(x[None])[0],
]


def zeros():
    return freeze(torch.zeros(2, 3))


@pytest.mark.parametrize("name", IN_PLACE)
def test_no_in_place_method_writes(name):
    refused = [_refuses(zeros(), name, args) for args in ARGUMENTS]
    assert any(refused)


def _refuses(frozen, name, args):
    """Whether the call is refused as a write, rather than for its arguments; it never goes through."""
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)) as refusal:
        getattr(frozen, name)(*args)
    assert torch.equal(frozen, torch.zeros(2, 3)) and not frozen.requires_grad
    return str(refusal.value) == f"{name} writes to a read-only tensor; .clone() it first"


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_augmented_assignment_writes(operator):
    scope = {"x": freeze(torch.ones(3, dtype=torch.int64))}
    with pytest.raises(ValueError, match="read-only"):
        exec(f"x {operator} 2", scope)
    assert torch.equal(scope["x"], torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.__setitem__(0, 1.0),
        lambda x: x.__setitem__((slice(None), torch.tensor([0])), 1.0),
        lambda x: setattr(x, "data", torch.ones(2, 3)),
        lambda x: setattr(x, "requires_grad", True),
        lambda x: torch.add(torch.ones(2, 3), 1, out=x),
        lambda x: torch.sort(torch.ones(2, 3), out=(x, torch.zeros(2, 3, dtype=torch.int64))),
        lambda x: torch.relu_(x),
        lambda x: torch.relu_(input=x),
        lambda x: torch.nn.functional.relu(x, inplace=True),
        lambda x: torch.nn.init.ones_(x),
        lambda x: torch._foreach_add_([torch.zeros(1), x], 1),
        lambda x: torch.ops.aten.add_(x, 1),
        lambda x: torch.ops.aten.add_.Tensor(x, 1),
    ],
)
@pytest.mark.parametrize("view", VIEWS[:3])
def test_no_other_call_writes(write, view):
    frozen = zeros()
    with pytest.raises(ValueError, match="read-only"):
        write(view(frozen))
    assert torch.equal(frozen, torch.zeros(2, 3))


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_frozen(view):
    frozen = zeros()
    seen = view(frozen)
    assert type(seen) is FrozenTensor
    assert seen.untyped_storage().data_ptr() == frozen.untyped_storage().data_ptr()
    with pytest.raises(ValueError, match="read-only"):
        seen.add_(1)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: x.clone(),
        lambda x: torch.stack([x, x]),
        lambda x: torch.cat([x, torch.ones(2, 3)]),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.ones(5)[x.long()],
        lambda x: x.double(),
        lambda x: x.topk(1).values,
        lambda x: torch.einsum("ab,cb->ac", x, x),
        lambda x: torch.ones(2, 3).add_(x),
        lambda x: torch.empty(2, 3).copy_(x),
        lambda x: copy.deepcopy(x),
        lambda x: copy.copy(x),
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: vmap(lambda row: row * 2)(x),
        lambda x: vmap(lambda row: x @ row)(torch.ones(4, 3)),
        lambda x: grad(lambda y: (y**2).sum())(x),
        lambda x: grad(lambda y: (y * x).sum())(torch.ones(2, 3)),
        lambda x: vmap(grad(lambda row, whole: (row * whole).sum()), in_dims=(0, None))(x, x),
        lambda x: jacrev(lambda y: y.sum(0))(x).contiguous(),
    ],
)
def test_computed_tensors_are_plain_and_right(compute):
    result, expected = compute(zeros()), compute(torch.zeros(2, 3))
    assert type(result) is Tensor
    assert torch.equal(result, expected)
    result += 1


def test_arrays_are_read_only():
    frozen = zeros()
    for array in (frozen.numpy(), np.asarray(frozen), frozen[0].numpy(), frozen.numpy()[0]):
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    assert torch.equal(frozen, torch.zeros(2, 3))


def test_pickle_holds_the_view_alone():
    assert len(pickle.dumps(freeze(torch.zeros(100_000))[:2])) < 2_000
    file = io.BytesIO()
    torch.save(freeze(torch.zeros(100_000))[:2], file)
    assert file.tell() < 4_000


def test_reading_it_is_as_ever():
    frozen = freeze(torch.tensor([1.0, 2.0]))
    assert repr(frozen) == "FrozenTensor([1., 2.])"
    assert frozen.tolist() == [1.0, 2.0]
    assert f"{frozen[1]:.1f} {float(frozen[0])} {frozen.sum().item()}" == "2.0 1.0 3.0"
    assert frozen.shape == (2,) and len(frozen) == 2 and isinstance(frozen, Tensor)
    assert bool((frozen == frozen).all()) and 2.0 in frozen


def test_vmap_over_several_with_plain_ones():
    rows = vmap(lambda a, b, c: a * b + c)(zeros(), torch.ones(2, 3), freeze(torch.ones(2)))
    assert torch.equal(rows, torch.ones(2, 3))


@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=5))
def test_freeze_keeps_the_tree(tree):
    assert freeze(tree) == tree
    a, b = freeze((tree, {"t": torch.ones(1)}))
    assert a == tree and type(b["t"]) is FrozenTensor
