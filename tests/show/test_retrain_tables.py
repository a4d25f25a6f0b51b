"""Laws of the tables of retraining: effects beside chance, predictions beside effects, nothing done twice."""

import numpy as np
import polars as pl
import pytest
import torch

from devinterp_func import credit
from devinterp_func.credit import Choice
from devinterp_func.show import results, schema, tables

CHANCE = [0.1, 0.3, 0.2, 0.5]
EMPTY = schema.frame(tables.OUTCOMES, [])


def outcomes():
    """One removal by norm with a prediction, and four random ones."""
    predicted = {"credit": {"loss": 0.25}, "marginal": {"loss": -0.5}}
    norm = tables.outcome_frame(Choice("norm", 0.1), 7, {"loss": 2.0, "others": 1.0}, predicted)
    random = [
        tables.outcome_frame(Choice("random", 0.1, i), 7, {"loss": x, "others": -x}) for i, x in enumerate(CHANCE)
    ]
    return pl.concat([norm, *random])


def test_an_outcome_is_a_row_for_each_number():
    rows = outcomes().rows(named=True)[:2]
    assert [row["measured"] for row in rows] == ["loss", "others"] and [row["effect"] for row in rows] == [2, 1]
    assert (rows[0]["score"], rows[0]["share"], rows[0]["draw"], rows[0]["count"]) == ("norm", 0.1, 0, 7)
    assert (rows[0]["by credit"], rows[0]["by marginal"]) == (0.25, -0.5)
    assert rows[1]["by credit"] is None and rows[1]["by marginal"] is None


def test_effects_stand_beside_chance():
    frame = tables.removal_frame(outcomes(), {"loss": 4.0, "others": 0.0}, 10, 20)
    assert frame.select("from", "to").unique().rows() == [(10, 20)] and len(frame) == 4
    norm, random = frame.filter(pl.col("measured") == "loss").sort("score").iter_rows(named=True)
    assert (norm["effect"], norm["of the change"], norm["count"], norm["share"]) == (2, 0.5, 7, 0.1)
    assert (norm["by credit"], norm["by marginal"]) == (0.25, -0.5)
    assert norm["SDs"] == pytest.approx((2 - np.mean(CHANCE)) / np.std(CHANCE, ddof=1))
    assert norm["SDs low"] < norm["SDs"] < norm["SDs high"] and norm["low"] is None and norm["high"] is None
    assert random["effect"] == pytest.approx(np.mean(CHANCE)) and random["SDs"] is None
    assert (random["low"], random["high"]) == pytest.approx(credit.mean_interval(CHANCE))
    assert random["by credit"] is None
    others = frame.filter(pl.col("measured") == "others")
    assert others["of the change"].to_list() == [None, None]  # nothing changed, so there is no share of it


def test_shares_are_held_against_their_own_draws():
    more = [tables.outcome_frame(Choice("random", 0.5, i), 9, {"loss": 10 * x}) for i, x in enumerate(CHANCE)]
    more.append(tables.outcome_frame(Choice("norm", 0.5), 9, {"loss": 2.0}))
    frame = tables.removal_frame(pl.concat([outcomes(), *more]), {"loss": 1.0, "others": 1.0}, 0, 1)
    loss = frame.filter((pl.col("measured") == "loss") & (pl.col("score") == "norm"))
    means = [np.mean(CHANCE), 10 * np.mean(CHANCE)]
    spread = [np.std(CHANCE, ddof=1), 10 * np.std(CHANCE, ddof=1)]
    assert loss["SDs"].to_list() == pytest.approx([(2 - m) / s for m, s in zip(means, spread, strict=True)])
    assert loss["count"].to_list() == [7, 9]


def test_a_removal_stands_beside_every_pool_but_those_matched_with_others():
    def row(score, effect, draw=0, share=0.1):
        return tables.outcome_frame(Choice(score, share, draw), 7, {"loss": effect})

    pools = {"random": CHANCE, "random, with (": [1.0, 3.0], "random, equal norm: credit, loss": [0.5, 0.7]}
    chosen = {"credit, loss": 2.0, "norm": 1.0}
    rows = [row(score, effect) for score, effect in chosen.items()]
    rows += [row(pool, effect, draw) for pool, effects in pools.items() for draw, effect in enumerate(effects)]
    whole = pl.concat([*rows, row("at_start, loss", 9.0), row("credit, loss", 9.0, share=0.2)])
    norms = {Choice(score, 0.1): 4.0 for score in chosen}
    norms |= {Choice(pool, 0.1, draw): 1.0 + draw for pool, effects in pools.items() for draw in range(len(effects))}
    found = tables.control_frame(whole, norms, 10, 20)
    assert found.columns == list(tables.REMOVAL_CONTROLS.columns)
    names = ["random", "random, with (", "random, equal norm"]
    assert found.select("score", "control").rows() == [
        *(("credit, loss", name) for name in names),
        *(("norm", name) for name in names[:2]),
    ]
    for one, effects in zip(found.head(3).iter_rows(named=True), pools.values(), strict=True):
        assert (one["effect"], one["draws"], one["norm"]) == (2, len(effects), 4)
        assert one["mean"] == pytest.approx(np.mean(effects))
        assert one["difference"] == pytest.approx(2 - np.mean(effects))
        assert (one["difference low"], one["difference high"]) == credit.difference_interval(2.0, effects)
        assert (one["SDs"], one["SDs low"], one["SDs high"]) == credit.distance_from_chance(2.0, effects)
        assert one["control's norm"] == pytest.approx(1 + (len(effects) - 1) / 2)
    assert len(tables.control_frame(EMPTY, norms, 10, 20)) == 0


def test_patches_are_effects_without_predictions():
    frame = tables.patch_frame(outcomes(), 10, 20)
    assert frame.columns == list(tables.PATCHES.columns)
    row = frame.row(0, named=True)
    assert (row["measured"], row["score"], row["effect"]) == ("loss", "norm", 2)
    assert row["SDs"] == pytest.approx((2 - np.mean(CHANCE)) / np.std(CHANCE, ddof=1))


def test_done_choices_are_skipped_when_read_back(tmp_path):
    wanted = list(credit.removals({"credit, loss": torch.arange(12.0).view(3, 4)}, [0.1, 1 / 3], 2, key=0))
    assert tables.missing_choices(wanted, ["loss"], EMPTY) == wanted
    part = pl.concat([tables.outcome_frame(choice, 1, {"loss": 0.1}) for choice in wanted[::2]])
    results.write_table(tmp_path, "outcomes", part)
    read = results.read_table(tmp_path, "outcomes", tables.OUTCOMES)
    assert tables.missing_choices(wanted, ["loss"], read) == wanted[1::2]
    assert tables.missing_choices(wanted, ["loss", "another"], read) == wanted  # of which the other is not known


def test_predictions_have_the_probes_names():
    found = tables.named_predictions({"credit": torch.tensor([1.0, 2.0]), "marginal": torch.tensor([3.0, 4.0])}, "ab")
    assert found == {"credit": {"a": 1, "b": 2}, "marginal": {"a": 3, "b": 4}}
