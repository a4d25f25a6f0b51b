"""Addition modulo p: the pairs, the identity of kernel and ledger, and the script's tables."""

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from devinterp_func import credit, optim, training, units
from devinterp_func import graph as graphs
from devinterp_func.optim import Schedule
from devinterp_func.records import Last
from devinterp_func.show import results
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import modulo  # noqa: E402
import modulo_tables as tables  # noqa: E402
import modulo_task as tasks  # noqa: E402

SIZES: dict[str, Any] = {"p": 7, "share": 0.5, "steps": 12, "width": 8, "heads": 2, "hidden": 12, "held_out": 6}


@given(p=st.integers(2, 9), share=st.floats(0.2, 0.8), key=st.integers(0, 50))
def test_held_out_pairs_are_unseen_in_both_orders(p, share, key):
    try:
        task = tasks.task(p, share, 1000, key)
    except ValueError:
        return
    seen = {(a, b) for a, _, b, _ in task.train[0].tolist()}
    asked = {(a, b) for a, _, b, _ in task.held_out[0].tolist()}
    assert len(seen) == len(task.train[1]) == round(share * p * p)
    every = {(a, b) for a in range(p) for b in range(p)}
    assert asked == {(a, b) for a, b in every - seen if (b, a) not in seen}
    for tokens, total in (task.train, task.held_out):
        assert (tokens[:, 1] == p).all() and (tokens[:, 3] == p + 1).all()
        assert total.tolist() == [(a + b) % p for a, _, b, _ in tokens.tolist()]


def test_no_unseen_pair_is_an_error():
    with pytest.raises(ValueError, match="a share of 1.0 of 25 pairs"):
        tasks.task(5, 1.0, 10, 0)


@given(p=st.integers(3, 9), key=st.integers(0, 50))
def test_a_pair_is_of_one_kind_to_another(p, key):
    task = tasks.task(p, 0.4, 5, key)
    a, _, b, _ = task.held_out[0][0].tolist()
    same, shares, other = tasks.kinds(task.held_out[0][0], task.train[0], p).tolist()
    for i, (x, _, y, _) in enumerate(task.train[0].tolist()):
        expected = [(x + y - a - b) % p == 0, bool({x, y} & {a, b}), True]
        assert [same[i], shares[i], other[i]].index(True) == expected.index(True)
        assert same[i] + shares[i] + other[i] == 1


@given(p=st.integers(2, 12), n=st.integers(1, 20), key=st.integers(0, 50))
def test_a_wrong_sum_is_wrong(p, n, key):
    total = torch.arange(n) % p
    found = tasks.wrong(total, p, key)
    assert (found != total).all() and bool(((found >= 0) & (found < p)).all())


def test_the_network_does_not_know_the_order_of_a_pair():
    adder = tasks.Adder(7, 8, 2, 12, 0.5).double()
    tokens = torch.tensor([[2, 7, 5, 8], [0, 7, 3, 8]])
    torch.testing.assert_close(adder(tokens), adder(tokens[:, [2, 1, 0, 3]]))


@pytest.fixture(scope="module")
def trained():
    """A task, its network, and six steps, the data's factors with them."""
    task = tasks.task(7, 0.5, 6, 0)
    torch.manual_seed(0)
    adder = tasks.Adder(7, 8, 2, 12, 0.5).double()
    model = tasks.model_of(adder)
    recipe = Recipe(
        batch_size=len(task.train[1]),
        epochs=6,
        lr=0.01,
        schedule=Schedule(),
        optimizer=optim.adamw(betas=(0.9, 0.98), weight_decay=1.0),
        max_norm=float("inf"),
    )
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, task.train[0][0], task.train[1][0])
    return task, adder, list(training.moves(graph, params, task.train, recipe, captured=units.EVERY))


@settings(deadline=None, max_examples=20)
@given(step=st.integers(0, 5), pair=st.integers(0, 5), digit=st.integers(0, 6), m=st.integers(1, 3))
def test_a_logits_estimate_is_the_ledgers_sum(trained, step, pair, digit, m):
    task, adder, moves = trained
    tokens = task.held_out[0]
    probe = credit.probes.of("logit", lambda params: functional_call(adder, params, (tokens[[pair]],))[0, digit])
    entries = credit.split_change(moves[step], [probe], m)
    by_kernel = tasks.estimate(adder, tokens, moves[step], tasks.gauss(m))[pair, digit]
    ledgers = float(entries.credit.sum() + entries.past.sum() + entries.decay.sum())
    assert float(by_kernel) == pytest.approx(ledgers, rel=1e-9, abs=1e-12)


def test_the_parts_of_a_step_are_the_ledgers(trained):
    task, adder, moves = trained
    probe = tasks.margins(adder, task.held_out[0], task.held_out[1], "held-out")
    for move in moves:
        parts = tasks.split(tasks.mean_gradient(move, probe), move).sum(0)
        entries = credit.split_change(move, [probe], tasks.MOST)
        expected = [float(x.sum()) for x in (entries.credit, entries.past, entries.decay)]
        assert parts.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_summed_estimates_go_on_from_the_step_before(trained):
    task, adder, moves = trained
    probes, last = [tasks.margins(adder, task.held_out[0], task.held_out[1], "held-out")], None

    for move in moves:
        found = tasks.measure(adder, task, probes, move, last)
        last = Last(move, found)
    start, end = (functional_call(adder, params, (task.held_out[0],)) for params in (moves[0].before, moves[-1].after))
    for q, rule in enumerate(tasks.RULES):
        whole = start + sum(tasks.estimate(adder, task.held_out[0], move, rule) for move in moves)
        torch.testing.assert_close(found.summed[q].double(), whole, rtol=1e-5, atol=1e-6)
    assert float((found.summed[-1] - end).abs().max()) < float((found.summed[0] - end).abs().max()) / 10


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_phases_follow_each_other_and_end_where_a_bound_is_reached(values):
    right = torch.tensor(values, dtype=torch.float64)
    found = tables.phases(right)
    assert [start for _, start, _ in found] == [0, *(stop for _, _, stop in found[:-1])] and found[-1][2] == len(right)
    bounds = {name: (column, until) for name, column, until in tables.BOUNDS}
    for name, start, stop in found:
        if name in bounds:
            column, until = bounds[name]
            assert (right[start : stop - 1, column] < until).all()
            assert stop == len(right) or right[stop - 1, column] >= until


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("modulo")
    return modulo.main(modulo.Settings(root / "run", singles=3, timed=2, **SIZES))


def test_the_parts_add_up_to_the_changes(folder):
    table = results.read_table(folder, "modulo_parts", tables.PARTS)
    rows = list(table.iter_rows(named=True))
    assert {row["phase"] for row in rows} >= {"memorisation", "all"}
    for row in rows:
        parts = row["present"] + row["past"] + row["decay"]
        assert row["change"] == pytest.approx(parts + (row["missed"] or 0.0))
    for row in rows:
        if row["units"] != "all":
            continue
        assert abs(row["missed"]) < 0.01 * (abs(row["change"]) + 0.1)
        same = [r for r in rows if (r["phase"], r["probe"]) == (row["phase"], row["probe"]) and r["units"] != "all"]
        assert sum(r["change"] for r in same) == pytest.approx(row["change"] - row["missed"])


def test_rules_data_and_costs_are_told(folder):
    rules = results.read_table(folder, "modulo_rules", tables.RULES)
    missed = dict(zip(rules["rule"], rules["missed"], strict=True))
    assert set(missed) == {rule.name for rule in tasks.RULES} and missed["Gauss, 3"] < missed["start"]
    data = results.read_table(folder, "modulo_data", tables.DATA)
    whole = data.group_by("phase", "of", maintain_order=True).agg(pl.col("lifetime").sum())
    for phase in set(whole["phase"]):
        sums = whole.filter(pl.col("phase") == phase)["lifetime"]
        assert sums[0] == pytest.approx(sums[1])  # the control is the same credits, dealt otherwise
    assert "plain step" in set(results.read_table(folder, "modulo_costs", tables.COSTS)["what"])


def test_a_seed_has_rows_of_its_own_and_the_same_command_finds_all_done(folder):
    before = results.read_table(folder, "modulo_parts", tables.PARTS)
    root = folder.parent
    again = modulo.Settings(root / "run", out=folder, singles=3, timed=0, **SIZES)
    modulo.main(again)
    assert results.read_table(folder, "modulo_parts", tables.PARTS).equals(before)
    modulo.main(modulo.Settings(root / "other", out=folder, singles=3, timed=0, seed=1, **SIZES))
    assert set(results.read_table(folder, "modulo_parts", tables.PARTS)["seed"]) == {0, 1}


def test_a_width_that_heads_do_not_divide_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--width is 9; it must be a multiple of the 4 heads"):
        modulo.main(modulo.Settings(tmp_path / "run", width=9))
