"""Laws of tree.py: a tree computes what the one vector of all its numbers computes."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import flat
from strategies import few, like, trees

from devinterp_func import tree

Pair = namedtuple("Pair", "a b")
pairs = trees().flatmap(lambda one: st.tuples(st.just(one), like(one)))


def nested(leaf):
    return {"list": [leaf, leaf + 1], "pair": Pair(leaf * 2, {"deep": leaf})}


@given(pairs)
@few
def test_add_and_sub_are_the_vectors_sum_and_difference(pair):
    a, b = pair
    assert np.array_equal(flat(tree.add(a, b)), flat(a) + flat(b))
    assert np.array_equal(flat(tree.sub(a, b)), flat(a) - flat(b))


@given(trees(), st.floats(-10, 10))
@few
def test_scale_is_the_scaled_vector(one, factor):
    assert np.array_equal(flat(tree.scale(one, factor)), flat(one) * factor)
    assert np.array_equal(flat(tree.scale(one, torch.tensor(factor).double())), flat(one) * np.float32(factor))


@given(pairs)
@few
def test_dot_is_the_vectors_dot(pair):
    a, b = pair
    size = np.abs(flat(a)) @ np.abs(flat(b))
    assert abs(tree.dot(a, b).item() - flat(a) @ flat(b)) <= 1e-13 * size


@given(trees())
@few
def test_norm_is_the_vectors_norm(one):
    assert tree.norm(one).item() == pytest.approx(np.linalg.norm(flat(one)), rel=1e-13)


def test_flat_names_every_leaf():
    one = torch.ones(2)
    tree_ = {"layers": [one, {"w": one}], "pair": Pair(one, (one, 3)), 7: one}
    assert list(tree.flat(tree_)) == ["layers.0", "layers.1.w", "pair.a", "pair.b.0", "pair.b.1", "7"]
    assert all(leaf is one or leaf == 3 for leaf in tree.flat(tree_).values())
    assert tree.flat(one) == {"": one}


@given(st.lists(trees(), min_size=1, max_size=1).flatmap(lambda one: st.lists(like(one[0]), min_size=1, max_size=3)))
@few
def test_stack_is_the_loop(items):
    stacked = tree.stack(items)
    assert all(torch.equal(stacked[name][j], item[name]) for j, item in enumerate(items) for name in item)
    assert {len(leaf) for leaf in stacked.values()} == {len(items)}


def test_stacked_namedtuples_are_namedtuples():
    stacked = tree.stack(
        [Pair(torch.tensor(1), {"b": torch.tensor([2])}), Pair(torch.tensor(3), {"b": torch.tensor([4])})]
    )
    assert isinstance(stacked, Pair) and stacked.a.tolist() == [1, 3] and stacked.b["b"].tolist() == [[2], [4]]


def test_operations_keep_structure_and_go_through_any_pytree():
    one = nested(torch.ones(2))
    doubled = tree.add(one, one)
    assert isinstance(doubled["pair"], Pair) and torch.equal(doubled["pair"].b["deep"], torch.full((2,), 2.0))
    assert tree.dot(one, doubled).item() == 40.0 and tree.norm(one).item() == pytest.approx(20**0.5)


def test_operations_leave_their_arguments_alone():
    a, b = {"w": torch.ones(2)}, {"w": torch.full((2,), 3.0)}
    tree.add(a, b), tree.sub(a, b), tree.scale(a, 2.0), tree.dot(a, b), tree.norm(a)
    assert a["w"].tolist() == [1.0, 1.0] and b["w"].tolist() == [3.0, 3.0]


def test_trees_of_other_structure_are_refused():
    with pytest.raises(ValueError, match="(?i)dict|structure|keys|node"):
        tree.add({"w": torch.ones(2)}, {"v": torch.ones(2)})


def test_describe_gives_name_shape_dtype_and_norm():
    described = tree.describe({"w": torch.full((2, 2), 1.5), "n": {"ids": torch.arange(3)}, "lr": torch.tensor(0.25)})
    assert described.split("\n") == ["w: float32[2, 2] norm 3", "n: ", "  ids: int64[3]", "lr: 0.25"]


@pytest.mark.parametrize(
    "one",
    [
        torch.ones(100, 100),
        {"w": torch.ones(1000, requires_grad=True)},
        Pair(torch.ones(1000), 3),
        nested(torch.ones(1000)),
        [torch.ones(1000)],
    ],
    ids=["tensor", "dict", "NamedTuple", "nested", "list"],
)
def test_describe_is_short_and_prints_no_tensor(one):
    described = tree.describe(one)
    assert len(described) < 200 and "tensor(" not in described
