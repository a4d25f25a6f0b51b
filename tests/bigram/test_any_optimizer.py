"""Laws of bigram shifts under every optimizer: data, past, decay and cross term add up, each as the dense ones."""

import functools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import few
from torch import Tensor

from devinterp_func import bigram, graph, keys, optim, per_example, training
from devinterp_func.batches import Data
from devinterp_func.bigram import Pairs, _decoder, _shifts, _split
from devinterp_func.graph import Graph
from devinterp_func.tree import Params

V = 7
PAIRS = Pairs(torch.arange(V * V) // V, torch.arange(V * V) % V)  # all there are, in the order of a dense matrix
RULES = {
    "sgd": optim.sgd(),
    "decaying sgd": optim.sgd(weight_decay=0.1),
    "momentum": optim.sgd(0.9, dampening=0.3, weight_decay=0.05),
    "nesterov": optim.sgd(0.9, nesterov=True, weight_decay=0.05),
    "adam": optim.adam(weight_decay=0.1),
    "adamw": optim.adamw(weight_decay=0.1),
    "muon": optim.muon(),
    "half muon": optim.muon(but=("U",), rest=optim.adamw(weight_decay=0.2)),
    "last muon": optim.muon(nesterov=False, but=("E",), rest=optim.sgd(0.5)),
}
TIED = {"half muon": optim.muon(weight_decay=0.3), "last muon": optim.muon(nesterov=False)}


class Case(NamedTuple):
    graph: Graph
    move: training.Move


def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    stream = torch.tanh(params["E"][x].cumsum(0))
    return F.cross_entropy(stream @ params.get("U", params["E"]).T, y)


@functools.cache
def a_graph(tied: bool, d: int) -> tuple[Graph, Params, Data]:
    """A small model in float64: its V rows are more than d or fewer, so Muon's matrix is on the right or left."""
    rng = keys.generator(d)
    params = {name: torch.from_numpy(rng.standard_normal((V, d))) for name in ("E" if tied else "EU")}
    data = Data(*torch.from_numpy(rng.integers(0, V, (2, 15, 4))))
    return graph.of(loss, params, data.tokens[0], data.targets[0]), params, data


@functools.cache
def a_move(rule: str, tied: bool, d: int, step: int) -> Case:
    """One of its first five steps."""
    made, params, data = a_graph(tied, d)
    optimizer = TIED.get(rule, RULES[rule]) if tied else RULES[rule]
    recipe = training.Recipe(context=4, batch_size=3, lr=0.05, optimizer=optimizer, max_norm=0.4, n_steps=5)
    *_, move = training.moves(made, params, data, recipe, captured=bigram.capture_units(made), stop=step + 1)
    return Case(made, move)


cases = st.tuples(  # what the library builds is built in the tests, outside Hypothesis' drawing
    st.sampled_from(list(RULES)), st.booleans(), st.sampled_from([3, V, 9]), st.sampled_from([0, 2, 4])
)
Drawn = tuple[str, bool, int, int]


@few
@given(cases)
def test_data_past_decay_and_cross_term_are_the_shift(case: Drawn) -> None:
    made, move = a_move(*case)
    before, after = (bigram.decoder(*bigram.decoder_matrices(made, w)) for w in (move.before, move.after))
    split = bigram.datum_split(made, move, *PAIRS)
    torch.testing.assert_close(split.total(), (after - before).flatten(), rtol=0, atol=1e-13)
    W_U, W_E = bigram.decoder_matrices(made, move.before)
    for name in ("present", "past", "decay"):
        dW_U, dW_E = (getattr(move.split, name)(unit) for unit in bigram.decoder_units(made))
        alone = _decoder.terms(W_U, W_E, dW_U, dW_E)
        found = split.present() if name == "present" else getattr(split, name)
        torch.testing.assert_close(found, (alone.embedding + alone.unembedding).flatten(), rtol=0, atol=1e-13)


@few
@given(cases)
def test_each_datum_s_part_is_of_its_own_delta(case: Drawn) -> None:
    made, move = a_move(*case)
    W_U, W_E = bigram.decoder_matrices(made, move.before)
    deltas = per_example.gradients(move.factors)
    split = bigram.datum_split(made, move, *PAIRS)
    for j in range(3):
        alone = _decoder.terms(W_U, W_E, *(deltas[unit][j] for unit in bigram.decoder_units(made)))
        torch.testing.assert_close(split.embedding[j], alone.embedding.flatten(), rtol=0, atol=1e-13)
        torch.testing.assert_close(split.unembedding[j], alone.unembedding.flatten(), rtol=0, atol=1e-13)


@few
@given(cases, st.lists(st.integers(0, V - 1), max_size=5))
def test_rows_are_those_of_the_whole_parts(case: Drawn, ids: list[int]) -> None:
    made, move = a_move(*case)
    chosen = torch.tensor(ids, dtype=torch.int64)
    for unit in bigram.capture_units(made):
        rows = _split.update_rows(move.factors[unit], move.split, unit, chosen)
        whole = (per_example.form(move.factors[unit]).mT, move.split.past(unit), move.split.decay(unit))
        torch.testing.assert_close(rows.present, whole[0].mT[:, chosen], rtol=0, atol=1e-13)
        torch.testing.assert_close(rows.past, whole[1][chosen], rtol=0, atol=1e-13)
        torch.testing.assert_close(rows.decay, whole[2][chosen], rtol=0, atol=1e-13)
        change = move.after[unit] - move.before[unit]
        torch.testing.assert_close(rows.total(), change[chosen], rtol=0, atol=1e-13)


@few
@given(cases)
def test_a_step_s_record_is_the_split_of_its_largest(case: Drawn) -> None:
    made, move = a_move(*case)
    before, after = (bigram.decoder(*bigram.decoder_matrices(made, w)) for w in (move.before, move.after))
    found = _shifts.step_shifts(made, move, 5, *PAIRS)
    largest = (after - before).abs().flatten().sort(descending=True).values[:5]
    torch.testing.assert_close(found.value().abs(), largest, rtol=0, atol=1e-13)
    parts = found.present + found.past + found.decay + found.cross
    torch.testing.assert_close(parts, found.value(), rtol=0, atol=1e-13)
    assert float(found.missed) < 1e-13
    split = bigram.datum_split(made, move, found.output.long(), found.input.long())
    for name in ("past", "decay"):
        torch.testing.assert_close(getattr(found, name), getattr(split, name), rtol=0, atol=1e-13)
    parts = (split.embedding + split.unembedding) * found.value().sign()
    torch.testing.assert_close(found.amount * found.value().sign(), parts.amax(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "rule, past, decay", [("sgd", False, False), ("decaying sgd", False, True), ("adamw", True, True)]
)
def test_there_is_a_past_with_memory_and_decay_with_decay(rule: str, past: bool, decay: bool) -> None:
    first, later = (_shifts.step_shifts(*a_move(rule, False, 3, step), 5, *PAIRS) for step in (0, 3))
    assert not first.past.any() and bool(later.past.any()) == past
    assert bool(first.decay.any()) == bool(later.decay.any()) == decay


def test_missed_counts_the_past() -> None:
    made, move = a_move("adamw", False, 3, 3)
    shares = {
        name: share._replace(memory=None if share.memory is None else 0 * share.memory)
        for name, share in move.split.shares.items()
    }
    forgetful = move._replace(split=split_of(move, shares))
    found, lost = (_shifts.step_shifts(made, m, 5, *PAIRS) for m in (move, forgetful))
    assert float(found.missed) < 1e-13 and not lost.past.any()
    assert float(lost.missed) > 0.3 * float(found.past.abs().max())


def split_of(move: training.Move, shares: dict[str, optim.Share]) -> optim.Split:
    split = move.split
    return optim.Split(split.lr, split.clip, split.grad_norm, shares, split.before, split.grads)


def test_a_step_without_data_names_none() -> None:
    params = {name: torch.from_numpy(keys.generator(i).standard_normal((V, 3))) for i, name in enumerate("EU")}
    data = Data(*torch.from_numpy(keys.generator(3).integers(0, V, (2, 6, 4))))
    made = graph.of(loss, params, data.tokens[0], data.targets[0])
    recipe = training.Recipe(context=4, batch_size=3, lr=0.05, optimizer=RULES["adamw"], epochs=1)
    removed = torch.tensor([[False] * 3, [True] * 3])
    captured = bigram.capture_units(made)
    *_, move = training.moves(made, params, data, recipe, captured=captured, removed=removed)
    found = _shifts.step_shifts(made, move, 5, *PAIRS)
    assert found.datum.tolist() == [-1] * 5 and not found.present.any() and not found.amount.any()
    assert float(found.past.abs().min()) > 0 and float(found.missed) < 1e-13


def test_a_step_that_was_not_searched_has_only_the_chosen_pairs() -> None:
    made, move = a_move("momentum", False, 3, 2)
    found, without = (_shifts.step_shifts(made, move, 5, *PAIRS, search=search) for search in (True, False))
    assert {name: x.dtype for name, x in found._asdict().items()} == {
        name: x.dtype for name, x in without._asdict().items()
    }
    assert {name: x.shape for name, x in found._asdict().items()} == {
        name: x.shape for name, x in without._asdict().items()
    }
    assert torch.equal(found.entry, without.entry) and torch.equal(found.change, without.change)
    assert without.output.tolist() == [-1] * 5 and not without.value().any() and int(without.evaluated) == 0
