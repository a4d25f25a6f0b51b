"""A batch in parts, by micro-batch and process: what is trained and recorded does not depend on how it was cut."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from run_builders import contents
from shared_trainings import EXACT, TEXTS, record, what

from devinterp_func import graph, models, optim, per_example, records, training, tree
from devinterp_func.records import Recording
from devinterp_func.training import Recipe
from devinterp_func.units import EVERY

DATA, MODEL = what(EXACT)
PARAMS = training.initial(MODEL, EXACT)
GRAPH = graph.of(MODEL.loss, PARAMS, *(x[0] for x in DATA.train))
RULES = {
    "sgd": optim.sgd(),
    "momentum": optim.sgd(momentum=0.9, nesterov=True),
    "adamw": optim.adamw(weight_decay=0.1, eps=1e-3),
}


def moves(recipe, **how):
    return list(training.moves(GRAPH, PARAMS, DATA.train, recipe, captured=EVERY, stop=4, **how))


@given(st.integers(1, 40), st.integers(1, 9), st.none() | st.integers(1, 12))
def test_shares_are_of_every_row_once(batch_size, processes, micro_batch):
    processes = min(processes, batch_size)
    found = training.shares(Recipe(batch_size=batch_size, processes=processes, micro_batch=micro_batch))
    parts = [part for share in found for part in share]
    assert parts[0].start == 0 and parts[-1].stop == batch_size and len(found) == processes
    assert all(before.stop == after.start for before, after in pairwise(parts))
    assert all(0 < part.stop - part.start <= (micro_batch or batch_size) for part in parts)
    sizes = [share[-1].stop - share[0].start for share in found]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert all(part.stop - part.start == micro_batch for share in found for part in share[:-1])


@settings(max_examples=25)
@given(st.data())
def test_a_batch_in_parts_is_the_batch_in_one_piece(data):
    """In float64: weights, losses and every delta, with data left out or counted, clipped or not."""
    draw = data.draw
    recipe = replace(
        EXACT, optimizer=RULES[draw(st.sampled_from(list(RULES)))], max_norm=draw(st.sampled_from([0.3, math.inf]))
    )
    cut = replace(recipe, processes=draw(st.integers(1, 7)), micro_batch=draw(st.none() | st.integers(1, 7)))
    how = {}
    if draw(st.booleans()):
        how["removed"] = torch.tensor(
            draw(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=4, max_size=4))
        )
    if draw(st.booleans()):
        counted = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=7, max_size=7)
        how["weights"] = torch.tensor(draw(st.lists(counted, min_size=4, max_size=4)), dtype=torch.float64)
    for ours, theirs in zip(moves(cut, **how), moves(recipe, **how), strict=True):
        assert torch.equal(ours.datum, theirs.datum) and len(ours.datum) == len(ours.losses)
        assert torch.allclose(ours.losses, theirs.losses, rtol=1e-12, atol=0)
        for name, weight in theirs.after.items():
            assert relative_error(ours.after[name], weight) < 1e-12
            formed, wanted = per_example.form(ours.factors[name]), per_example.form(theirs.factors[name])
            assert formed.shape == wanted.shape
            # AdamW divides by a root, which rounding moves where the gradient is almost 0
            assert (formed - wanted).abs().max() <= 1e-10 * wanted.abs().max() if wanted.numel() else True
        assert max(optim.missed(ours).values()) < 1e-10


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 2), (3, None), (2, 3)])
def test_factors_that_are_not_held_are_formed_again_with_the_same_bits(rule, processes, micro_batch):
    recipe = replace(EXACT, optimizer=RULES[rule], processes=processes, micro_batch=micro_batch)
    for held, bare in zip(moves(recipe), moves(recipe, hold=0.0), strict=True):
        assert bare.factors == {} and bare.gradients == {}
        rows = list[int]()
        for part, factors in training.part_factors(GRAPH, bare, DATA.train, recipe, EVERY):
            rows += range(7)[part]
            own = {name: per_example.take_data(factor, part) for name, factor in held.factors.items()}
            assert factors.keys() == own.keys() == PARAMS.keys()
            for ours, theirs in zip(tree.leaves(factors), tree.leaves(own), strict=True):
                assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert rows == list(range(7))


def test_a_part_that_is_the_whole_batch_is_always_held():
    assert moves(EXACT, hold=0.0)[0].factors


@pytest.mark.parametrize("per", ["datum", "step"])
@pytest.mark.parametrize("factors", [False, True])
def test_records_do_not_depend_on_what_is_held(tmp_path, per, factors):
    recipe = replace(TEXTS, micro_batch=2, processes=2, n_steps=6)
    recording = Recording(k=9, per=per, snapshot_every=4, factors=factors)
    record(tmp_path / "held", recipe, recording)
    record(tmp_path / "again", recipe, recording, held_factors=0.0)
    assert contents(tmp_path / "held") == contents(tmp_path / "again")
    assert (tmp_path / "held.missed").read_text() == (tmp_path / "again.missed").read_text()
    assert 0 < float((tmp_path / "held.missed").read_text()) < 1e-4
    run = records.open(tmp_path / "again")
    for move in run.moves():
        assert records.same_bits(records.to_record(move, recording), records.read(run, move.step))


def test_more_processes_than_data_are_refused():
    with pytest.raises(ValueError, match="batch_size is 3; 4 processes need at least one datum each"):
        Recipe(batch_size=3, processes=4)
    with pytest.raises(ValueError, match="processes is 0; it must be at least 1"):
        Recipe(processes=0)
    with pytest.raises(ValueError, match="micro_batch is 0; it must be at least 1"):
        Recipe(micro_batch=0)


def test_processes_exchange_one_dtype(tmp_path):
    mixed = {"0.weight": PARAMS["0.weight"]} | {n: w.float() for n, w in PARAMS.items() if n != "0.weight"}

    def loss(params, x, y):
        return sum((w.double() ** 2).sum() for w in params.values()) * x.sum()

    own = graph.of(loss, mixed, *(x[0] for x in DATA.train))
    with pytest.raises(ValueError, match="the parameters are torch.float32, torch.float64; processes exchange"):
        next(training.moves(own, mixed, DATA.train, replace(EXACT, processes=2)))
    with pytest.raises(ValueError, match="processes exchange gradients of one dtype"):
        model = models.Model(
            "mixed", loss, lambda key: mixed, {n: tuple(w.shape) for n, w in mixed.items()}, {"kind": "mixed"}
        )
        records.prepare(tmp_path / "run", DATA, model, replace(EXACT, processes=2), Recording(k=1))
    assert not (tmp_path / "run").exists()
    assert next(training.moves(own, mixed, DATA.train, replace(EXACT, micro_batch=2))).factors
