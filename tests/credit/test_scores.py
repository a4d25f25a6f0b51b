"""Scores: each is its own walk's, all of one shape and sign, and spread over visits they keep their sums."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import PLANTED as CORPUS
from strategies import graph_of, some

from devinterp_func import batches, credit, models, optim, training, tree, units
from devinterp_func.credit import Window, probes
from devinterp_func.models import Config
from devinterp_func.training import Recipe

CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1)
MODEL, GRAPH = models.transformer(CONFIG), graph_of(CONFIG, context=10)
DATA = batches.chunk(CORPUS.train, 10)
ADAMW = optim.adamw(weight_decay=0.1)
RECIPE = Recipe(context=10, batch_size=6, epochs=2, n_steps=40, lr=0.01, optimizer=ADAMW)
START = {name: w.double() for name, w in training.initial(MODEL, RECIPE).items()}
FOLLOWED = [
    probes.loss(GRAPH, batches.take(tuple(batches.chunk(CORPUS.valid, 10)), torch.arange(3))),
    probes.bigram(GRAPH, 3, 5),
]


def window_of(recipe, steps, start=0):
    return Window(GRAPH, START, recipe.optimizer.init(START)._replace(steps=start), DATA, recipe, start, start + steps)


WINDOW = window_of(RECIPE, 5, 2)


@pytest.fixture(scope="module")
def moves():
    own = GRAPH, START, DATA, RECIPE
    return list(training.moves(*own, state=WINDOW.state, captured=units.EVERY, start=2, stop=7))


@pytest.fixture(scope="module", params=[2, 32], ids="{} steps kept".format)
def found(request):
    return credit.window_scores(WINDOW, FOLLOWED, m=2, kept=request.param, key=3)


def close(found, expected, tolerance=1e-9):
    assert found.shape == expected.shape and found.dtype == torch.float64
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


# ---- each score is its own walk's


def test_all_scores_are_there_by_probe_step_and_place(found):
    assert tuple(found) == credit.SCORES
    assert {tuple(score.shape) for score in found.values()} == {(2, 5, 6)}
    assert all(bool(score.isfinite().all()) for score in found.values())


def test_amounts_of_single_steps_are_the_ledgers(found, moves):
    amounts = tree.stack([credit.datum_amounts(move, FOLLOWED, 2, at_start=True) for move in moves])
    for name in ("credit", "marginal", "at_start"):
        close(found[name], getattr(amounts, name).movedim(1, 0))
    close(found["norm"], amounts.norm.expand(2, -1, -1))


def test_lifetimes_and_influences_are_their_walks(found, moves):
    close(found["lifetime"], credit.split_lifetimes(moves, FOLLOWED, 2).lifetime.sum(-1).movedim(1, 0))
    close(found["influence"], credit.window_influences(WINDOW, FOLLOWED).scores())
    close(found["fisher"], credit.window_influences(WINDOW, FOLLOWED, curvature="fisher").scores())
    assert float((found["fisher"] - found["influence"]).abs().max()) > 1e-3 * float(found["influence"].abs().max())


def test_a_score_alone_is_the_same(found):
    for name in ("credit", "marginal", "norm", "lifetime"):
        alone = credit.window_scores(WINDOW, FOLLOWED, [name], m=2, kept=3)
        assert list(alone) == [name]
        close(alone[name], found[name])


def test_names_come_in_the_order_in_which_they_are_asked_and_once():
    asked = ["norm", "random", "at_start", "norm"]
    assert list(credit.window_scores(WINDOW, FOLLOWED, asked)) == ["norm", "random", "at_start"]


def test_random_numbers_are_the_keys_alone():
    one, same, other = (credit.window_scores(WINDOW, FOLLOWED, ["random"], key=k)["random"] for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len(one.unique()) == one.numel()  # each probe has its own


# ---- sign and size


@pytest.mark.parametrize("lr", [1e-4, 1e-5])
def test_of_one_small_step_all_that_know_a_probe_agree_in_first_order(lr):
    """Without clipping all five are −lr ⟨∇f, ∇ℓ_j⟩ / n but for terms of second order."""
    recipe = Recipe(context=10, batch_size=6, n_steps=4, lr=lr, max_norm=1e6)
    scores = credit.window_scores(window_of(recipe, 1), FOLLOWED)
    for name in ("influence", "fisher", "lifetime", "credit", "at_start"):
        close(scores[name], scores["marginal"], 20 * lr)
    close(scores["influence"], scores["marginal"], 1e-9)  # of one step the derivative is the marginal itself


def test_a_score_of_what_is_removed_is_how_much_less_the_probe_is():
    recipe = replace(RECIPE, optimizer=optim.sgd(), lr=1e-3, max_norm=1e6)
    window, removed = window_of(recipe, 3), torch.zeros(3, 6, dtype=torch.bool)
    removed[1, :3] = True
    whole, without = (credit.retrain(window, given).params for given in (None, removed))
    scores = credit.window_scores(window, FOLLOWED, [name for name in credit.SCORES if name not in ("norm", "random")])
    for p, probe in enumerate(FOLLOWED):
        less = float(probe.value(whole) - probe.value(without))
        for score in scores.values():
            assert float((score[p] * removed).sum()) == pytest.approx(less, rel=2e-2)


# ---- whole data


@some
@given(
    datum=st.lists(st.integers(0, 5), min_size=6, max_size=6).map(lambda x: torch.tensor(x).view(2, 3)),
    order=st.permutations(range(8)),
)
def test_spread_over_visits_a_datum_keeps_its_score_and_all_its_visits_are_equal(datum, order):
    ids, scores = torch.tensor(order), torch.tensor([order, [j**2 for j in order]]).double()
    spread = credit.by_visit(scores, ids, datum)
    for j in datum.unique().tolist():
        for p, expected in enumerate((j, j**2)):
            parts = spread[p][datum == j]
            assert len(parts.unique()) == 1 and float(parts.sum()) == pytest.approx(expected)


# ---- bad input


def test_unknown_names_and_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="'trak' is no score; there are influence, fisher, lifetime, .*, random"):
        credit.window_scores(WINDOW, FOLLOWED, ["influence", "trak"])
    with pytest.raises(ValueError, match="there are 0 probes"):
        credit.window_scores(WINDOW, [], ["norm"])
    with pytest.raises(ValueError, match="m is 0"):
        credit.window_scores(WINDOW, FOLLOWED, ["credit"], m=0)
    with pytest.raises(ValueError, match="kept is 0"):
        credit.window_scores(WINDOW, FOLLOWED, ["influence"], kept=0)


def test_data_without_a_score_and_data_that_are_there_twice_are_refused():
    datum = torch.tensor([[1, 2], [2, 5]])
    with pytest.raises(ValueError, match="1 of 3 visited data have no score, the first of them 5"):
        credit.by_visit(torch.ones(1, 3), torch.tensor([1, 2, 3]), datum)
    with pytest.raises(ValueError, match="3 ids, 2 of them different"):
        credit.by_visit(torch.ones(1, 3), torch.tensor([1, 2, 2]), datum)
