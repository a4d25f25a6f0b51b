"""Laws of banks: what a draw removes, and that one training read at its horizons is as many trainings."""

import pytest
import torch
import windows
from hypothesis import given
from hypothesis import strategies as st
from strategies import few, seeds

from devinterp_func import credit, keys, optim, training
from devinterp_func.credit import Bank, RemovalKind, probes

TEXTS = windows.texts(optimizer=optim.adamw(), lr=0.01)
PROBES = [probes.bigram(TEXTS.graph, 3, 5), probes.loss(TEXTS.graph, tuple(x[:4] for x in TEXTS.data))]
DATUM = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8]])


def test_the_windows_data_are_those_of_its_steps():
    moves = training.moves(TEXTS.graph, TEXTS.params, TEXTS.data, TEXTS.recipe, start=0, stop=2)
    assert torch.equal(credit.window_data(TEXTS)[:2], torch.stack([move.datum for move in moves]))
    later = credit.window_data(TEXTS._replace(start=2))
    assert torch.equal(later, credit.window_data(TEXTS)[2:])


@few
@given(share=st.floats(0.01, 0.9), draw=st.integers(0, 50), seed=seeds)
def test_a_subset_is_a_share_of_all_places_and_of_the_draw_alone(share, draw, seed):
    removed = credit.draw_removal(DATUM, "subset", draw, share=share, key=seed)
    assert removed.shape == DATUM.shape and int(removed.sum()) == max(1, round(share * 12))
    assert torch.equal(removed, credit.draw_removal(DATUM + 1, "subset", draw, share=share, key=seed))


def test_subsets_take_all_places_alike_and_differ_from_draw_to_draw():
    drawn = torch.stack([credit.draw_removal(DATUM, "subset", i, share=0.25, key=0) for i in range(400)]).double()
    assert (drawn.mean(0) - 0.25).abs().max() < 0.1  # 4.6 standard deviations
    assert len(drawn.flatten(1).unique(dim=0)) > 150  # of 220 there are


@few
@given(seed=seeds)
def test_visits_are_all_places_once_and_data_all_data_once_with_all_their_places(seed):
    visits = torch.stack([credit.draw_removal(DATUM, "visit", i, key=seed) for i in range(12)])
    assert (visits.flatten(1).sum(1) == 1).all() and (visits.sum(0) == 1).all()
    data = torch.stack([credit.draw_removal(DATUM, "datum", i, key=seed) for i in range(8)])
    assert (data.sum(0) == 1).all()
    for removed in data:
        (gone,) = DATUM[removed].unique()
        assert torch.equal(removed, DATUM == gone)


def test_draws_and_horizons_that_are_not_there_are_refused():
    cases: list[tuple[RemovalKind, int]] = [("visit", 13), ("datum", 9)]
    for kind, least in cases:
        credit.require_draws(DATUM, kind, least - 1, 0.05)
        with pytest.raises(
            ValueError, match=f"draw {least - 1} of a {kind} was asked for; these steps have {least - 1}"
        ):
            credit.require_draws(DATUM, kind, least, 0.05)
    with pytest.raises(ValueError, match="draws is 0"):
        credit.require_draws(DATUM, "subset", 0, 0.05)
    with pytest.raises(ValueError, match="share is 1.0"):
        credit.require_draws(DATUM, "subset", 5, 1.0)
    with pytest.raises(ValueError, match="horizon is 7; the Window of steps 0 to 6 has 6 steps"):
        credit.require_horizons(TEXTS, (3, 7))
    with pytest.raises(ValueError, match="there are no horizons"):
        credit.require_horizons(TEXTS, ())
    with pytest.raises(ValueError, match=r"in rising order they are \[1, 3\]"):
        credit.horizon_values(TEXTS, PROBES, [3, 1])
    with pytest.raises(ValueError, match=r"removed is \(2, 6\); of the Window of steps 0 to 6 it must be \(6, 6\)"):
        credit.horizon_values(TEXTS, PROBES, [2], removed=torch.zeros(2, 6, dtype=torch.bool))
    assert credit.require_horizons(TEXTS, (4, 1, 4)) == (1, 4)


@pytest.mark.parametrize("kind", credit.REMOVAL_KINDS)
def test_one_training_gives_every_horizon_as_a_training_of_its_own_would(kind):
    removed = credit.draw_removal(credit.window_data(TEXTS), kind, 1, share=0.2, key=keys.Key(5))
    found = credit.horizon_values(TEXTS, PROBES, [1, 4, 6], removed=removed)
    for horizon, row in zip([1, 4, 6], found, strict=True):
        end = credit.retrain(TEXTS._replace(stop=horizon), removed[:horizon]).params
        assert row.tolist() == list(credit.probe_values(PROBES, end).values())


def test_to_be_removed_is_to_weigh_nothing():
    removed = credit.draw_removal(credit.window_data(TEXTS), "subset", 0, share=0.3, key=0)
    without = credit.horizon_values(TEXTS, PROBES, [2, 6], removed=removed)
    weightless = credit.horizon_values(TEXTS, PROBES, [2, 6], weights=(~removed).double())
    intact = credit.horizon_values(TEXTS, PROBES, [2, 6])
    torch.testing.assert_close(weightless, without, rtol=1e-10, atol=0)
    assert ((without - intact).abs() > 1e-6).all()


def test_a_bank_knows_which_removals_an_early_horizon_sees():
    removed = torch.zeros(3, 4, 2, dtype=torch.bool)
    removed[1, 2, 0] = removed[2, 0, 1] = True
    bank = Bank((1, 3), removed, torch.zeros(2, 1), torch.zeros(3, 2, 1))
    assert bank.touched(1).tolist() == [False, False, True]
    assert bank.touched(3).tolist() == [False, True, True]
