"""Places where a text says again what it has said: their kinds, losses and credits, against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import SMALL, batch, weights
from strategies import few, floats, graph_of, some

from devinterp_func import credit
from devinterp_func.credit import probes

PARAMS, BATCH, GRAPH = weights(SMALL), batch(SMALL, n=5, context=6), graph_of(SMALL, context=6)


@some
@given(stream=st.lists(st.integers(0, 3), min_size=2, max_size=9))
def test_the_kind_of_a_place_is_what_stands_before_it(stream):
    tokens, targets = stream[:-1], stream[1:]
    found = credit.place_kinds(torch.tensor([tokens]), torch.tensor([targets]))[0].tolist()
    for i, kind in enumerate(found):
        after = {targets[j] for j in range(i) if tokens[j] == tokens[i]}
        assert credit.PLACES[kind] == ("new" if not after else "again" if targets[i] in after else "otherwise")


def test_losses_by_position_are_those_that_the_mean_loss_is_of(monkeypatch):
    found = credit.position_losses(GRAPH, PARAMS, *BATCH)
    torch.testing.assert_close(found.mean(), probes.loss(GRAPH, BATCH).value(PARAMS))
    cut = credit.position_losses(GRAPH, PARAMS, BATCH[0], (BATCH[1] + 1) % GRAPH.vocab_size)
    assert not torch.allclose(found, cut)
    by_text = torch.stack([probes.loss(GRAPH, tuple(x[i : i + 1] for x in BATCH)).value(PARAMS) for i in range(5)])
    torch.testing.assert_close(found.mean(1), by_text)
    monkeypatch.setattr("devinterp_func.graph._batches.LOGITS", 1)  # one text at a time
    torch.testing.assert_close(credit.position_losses(GRAPH, PARAMS, *BATCH), found)


@few
@given(data=st.data())
def test_shares_of_credit_are_those_of_the_sums_and_add_up(data):
    credits = data.draw(floats((3, 4, 2), 9))
    chosen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=24, max_size=24))).view(3, 4, 2)
    one, other = (credit.credit_share(credits, mask, key=0) for mask in (chosen, ~chosen))
    own = credits[chosen]
    assert one.positions == pytest.approx(len(own) / 24)
    assert one.credit == pytest.approx(float(own.sum()), abs=1e-9)
    if float(credits.abs().sum()) > 1e-6:
        assert one.gross.value == pytest.approx(float(own.abs().sum() / credits.abs().sum()))
        assert one.gross.value + other.gross.value == pytest.approx(1)
        assert one.gross.n == 12
    if abs(float(credits.sum())) > 1e-3:
        assert one.net.value == pytest.approx(float(own.sum() / credits.sum()), rel=1e-6, abs=1e-9)


def test_the_interval_of_a_share_is_of_visits_not_of_positions():
    """Where visits are all alike there is nothing to draw, however much the positions differ."""
    credits = torch.tensor([1.0, -2.0, 4.0]).expand(5, 6, 3)
    found = credit.credit_share(credits, torch.tensor([True, False, False]).expand(5, 6, 3), key=0)
    assert found.gross[:3] == pytest.approx((1 / 7, 1 / 7, 1 / 7)) and found.net[:3] == pytest.approx((1 / 3,) * 3)
    half = torch.tensor([1.0, 0.0]).repeat(50)[:, None]
    found = credit.credit_share(half.expand(100, 2), half.bool().expand(100, 2), key=0)
    assert (found.gross.value, found.positions) == (1.0, 0.5) and repr(found).startswith("CreditShare(50.0% of pos")


@few
@given(data=st.data())
def test_a_mean_is_over_the_chosen_places(data):
    values = data.draw(floats((4, 3), 9))
    chosen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=12, max_size=12))).view(4, 3)
    found = credit.mean_where(values, chosen, key=0)
    if not bool(chosen.any()):
        assert math.isnan(found.value) and found.n == 0
        return
    assert found.value == pytest.approx(float(values[chosen].mean()), abs=1e-9)
    assert found.n == int(chosen.any(1).sum())
    assert np.isnan(found.low) or found.low - 1e-9 <= found.value <= found.high + 1e-9
