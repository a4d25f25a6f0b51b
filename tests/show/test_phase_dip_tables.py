"""Laws of the tables of dips: a row a null hypothesis, shares and not logarithms, nothing where there is none."""

import numpy as np
import polars as pl
import pytest
import torch

from devinterp_func import credit, keys
from devinterp_func.credit import Circumstances, Coherence, DipFound
from devinterp_func.show import tables
from devinterp_func.stats import Dip

STEP = np.arange(20, 100, 10)
NONE_FOUND = Dip(0, 0, 0.0, np.nan, np.nan, np.nan, -3.0)
CHANGE = ("seed 1", 0, 7, 40)


def found(dip):
    depths = np.log(np.linspace(1, 3, 41))
    return DipFound(STEP, dip, {credit.SHUFFLED: depths, credit.NOISE: depths * 0})


def measured(S=12, U=2, n=4):
    rng = keys.generator(1)
    square, datum = torch.from_numpy(rng.exponential(size=(S, U, n))), torch.from_numpy(rng.integers(0, 9, (S, n)))
    unknown = torch.full((S, U), torch.nan)
    steps = Coherence(torch.arange(S) + 40, square, square, unknown, unknown, torch.zeros(S, 1))
    rate, clip, norm = torch.from_numpy(rng.random((3, S)))
    return steps, Circumstances(rate, clip, norm, datum, torch.from_numpy(rng.random((S, n))))


def test_a_dip_has_a_row_for_each_null_hypothesis():
    dip = Dip(2, 5, np.log(2.5), np.log(0.6), np.log(0.2), np.log(0.5), 12.0)
    frame = tables.dip_frame("a", {"of a window": found(dip)}, 10)
    one, other = frame.iter_rows(named=True)
    for row in (one, other):
        assert (row["run"], row["series"], row["from"], row["to"]) == ("a", "of a window", 40, 70)
        shares = [row[name] for name in ("before", "inside", "after", "depth")]
        assert shares == pytest.approx([0.6, 0.2, 0.5, 2.5]) and row["over a smooth course"] == 12
    assert one["null"] == credit.SHUFFLED and one["chance"] == pytest.approx(2.9) and one["p"] == pytest.approx(12 / 42)
    assert other["null"] == credit.NOISE and other["chance"] == 1 and other["p"] == pytest.approx(1 / 42)


def test_where_there_is_no_dip_its_place_is_empty():
    frame = tables.changed_dip_frame("a", CHANGE, {"of a window": found(NONE_FOUND)}, 10)
    for row in frame.iter_rows(named=True):
        assert [row[name] for name in ("from", "to", "before", "inside", "after")] == [None] * 5
        assert row["depth"] == 1 and row["p"] == 1
        assert [row[name] for name in ("change", "draw", "left out", "changed from")] == list(CHANGE)


def test_dips_are_left_out_where_windows_are_few_or_nothing_moved():
    steps, _ = measured()
    sums = credit.step_sums(steps)
    assert list(tables.dips(sums, 2, key=0)) == list(credit.SERIES)
    assert tables.dips(sums, 3, key=0) == {}  # four windows, of which the first is left out
    still = sums._replace(square=sums.square * (sums.step // 2 != 23), fourth=sums.fourth * (sums.step // 2 != 23))
    assert tables.dips(still, 2, key=0) == {}


@pytest.mark.parametrize("of_kind", [True, False])
def test_what_stands_beside_is_what_was_measured(of_kind):
    steps, beside = measured()
    kind = torch.arange(9) < 4
    windows = credit.beside_windows(steps, beside, kind, 4)
    frame = tables.beside_frame("a", windows, ["x", "y"], of_kind)
    assert frame.columns == list(tables.BESIDE.columns) and frame["step"].to_list() == [40, 44, 48]
    columns = {
        "learning rate": windows.rate,
        "clip": windows.clip,
        "gradient norm": windows.norm,
        "effective": windows.shares.pooled,
        "between steps": windows.shares.between,
        "within steps": windows.shares.within,
        "of a step": windows.shares.single,
        "its share": windows.unit_share,
    }
    of = ("kind, of the data", "kind, of Σ‖Δ‖²", "effective, others", "loss, kind", "loss, others")
    for name, values in (columns | dict(zip(of, windows.kind, strict=True))).items():
        expected = values.tolist() if of_kind or name not in of else [None] * 3
        assert frame[name].to_list() == pytest.approx(expected), name
    assert frame["largest unit"].to_list() == [["x", "y"][u] for u in windows.unit]


def test_a_changed_training_has_its_losses_beside():
    steps, beside = measured()
    windows = credit.beside_windows(steps, beside, torch.zeros(9, dtype=torch.bool), 4)
    losses = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, float("nan")], [8.0, 9.0, 10.0, 11.0]]
    frame = tables.changed_frame("a", CHANGE, windows, ["x", "y"], losses, False)
    assert frame.columns == list(tables.CHANGED_STEPS.columns)
    assert frame.select(*tables.LOSSES, "loss, held-out kind").rows() == [
        (1, 2, 3, 4),
        (5, 6, 7, None),
        (8, 9, 10, 11),
    ]
    told = frame.select("run", "change", "draw", "left out", "changed from").unique()
    assert told.rows() == [("a", *CHANGE)] and frame["effective"].equals(
        tables.beside_frame("a", windows, ["x", "y"], False)["effective"]
    )
    assert frame["kind, of the data"].dtype == pl.Float64 and frame["kind, of the data"].null_count() == 3
