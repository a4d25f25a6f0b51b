"""The law of outlines: they have every shape and dtype of the factors that capture gives, and not one number."""

import pytest
from torch import Tensor
from zoo import GAINS, MAPS, SHARED, TABLES
from zoo_losses import ENDS

from devinterp_func import graph, per_example, tree

LOSSES = ("tied", "last position", "head and penalty", "logits used twice")
CASES = {
    **{name: make for kind in (MAPS, GAINS, TABLES, SHARED) for name, make in list(kind.items())[::8]},
    **{f"loss: {name}": ENDS[f"loss: {name}"] for name in LOSSES},
}


def described(factor):
    return [(x.dtype, tuple(x.shape)) if isinstance(x, Tensor) else x for x in tree.leaves(factor)]


@pytest.mark.parametrize("name", CASES)
def test_an_outline_has_the_shapes_of_what_is_captured(name):
    case = CASES[name]()
    traced = graph.of(case.loss, case.params, *tree.map(lambda x: x[0], case.batch))
    captured = per_example.capture(traced, case.params, *case.batch, units=("*",)).factors
    outlined = per_example.outline(traced, len(tree.leaves(case.batch)[0]), ("*",))
    assert list(outlined) == list(captured)
    for unit, factor in captured.items():
        assert type(outlined[unit]) is type(factor)
        assert described(outlined[unit]) == described(factor), unit
        sizes = [per_example.size_of(factor), per_example.n_positions(factor), per_example.n_data(factor)]
        own = outlined[unit]
        assert [per_example.size_of(own), per_example.n_positions(own), per_example.n_data(own)] == sizes
        assert per_example.shape_of(own) == tuple(case.params[unit].shape)
