"""The split by token against a loop over positions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import few, floats

from devinterp_func import credit


@few
@given(data=st.data(), things=st.sampled_from([(), (3,)]))
def test_sums_are_those_of_a_loop_over_positions(data, things):
    shape, V = (2, 3), 4
    amounts = data.draw(floats((*shape, *things)))
    tokens = torch.tensor(data.draw(st.lists(st.integers(0, V - 1), min_size=6, max_size=6))).view(shape)
    found = credit.by_token(amounts, tokens, V)
    net, gross, count = torch.zeros(V, *things), torch.zeros(V, *things), [0] * V
    for i in range(2):
        for c in range(3):
            v = int(tokens[i, c])
            net[v] += amounts[i, c]
            gross[v] += amounts[i, c].abs()
            count[v] += 1
    assert found.net.dtype == torch.float64 and found.net.shape == (V, *things)
    torch.testing.assert_close(found.net.float(), net)
    torch.testing.assert_close(found.gross.float(), gross)
    assert found.positions.tolist() == count
    credit.add_by_token(found, amounts, tokens)
    torch.testing.assert_close(found.gross.float(), 2 * gross)
    assert found.positions.tolist() == [2 * n for n in count]


def test_amounts_of_other_positions_are_refused():
    with pytest.raises(ValueError, match=r"amounts of shape \(2, 3\) do not begin as tokens of \(3,\) do"):
        credit.by_token(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 4)
