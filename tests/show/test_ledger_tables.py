"""Tables of ledgers, heads and trust: each published number against the one it should be, by loops."""

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ledgers import DATA, C, N, S, V, ledger

from devinterp_func import credit
from devinterp_func.batches import Data
from devinterp_func.credit import Completeness, Precision
from devinterp_func.credit.patterns import HeadAttention
from devinterp_func.show import results, tables
from devinterp_func.stats import Estimate

DRAWN = torch.Generator().manual_seed(3)
TEXTS = Data(*torch.randint(0, V, (2, DATA, C), generator=DRAWN))
PROBES = ["loss", "bigram:a b"]
KEY = tables.LedgerKey(5, 5 + S, 3, 20, 0)


@pytest.fixture(scope="module")
def frames():
    return tables.ledger_frames(ledger(), PROBES, KEY, TEXTS, V, every=10)


def of(frame, probe):
    return frame.filter(pl.col("probe") == probe).drop(tables.LEDGER_KEY)


def test_every_row_says_which_ledger_it_is_of(frames):
    assert frames.keys() == tables.LEDGER_TABLES.keys()
    for name, frame in frames.items():
        assert dict(frame.schema) == {
            n: pl.Schema({n: c.dtype})[n] for n, c in tables.LEDGER_TABLES[name].columns.items()
        }
        assert frame.select("start", "stop", "nodes", "texts", "seed").unique().rows() == [(5, 5 + S, 3, 20, 0)]
        assert frame["probe"].unique(maintain_order=True).to_list() == PROBES


def test_courses_are_those_of_the_summary(frames):
    found = credit.probe_courses(ledger(), 10)
    for i, probe in enumerate(PROBES):
        frame = of(frames["ledger_courses"], probe)
        assert frame["step"].to_list() == [5, 15, 25] and frame["steps"].to_list() == [10, 10, 5]
        for column in ("value", "raised", "lowered", "past", "decay", "net missed", "missed", "change"):
            assert frame[column].to_list() == getattr(found, column.replace(" ", "_"))[:, i].tolist()


def test_a_summary_leads_from_the_start_to_the_end(frames):
    entries = ledger()
    for i, row in enumerate(tables.ledger_summary(frames["ledger_courses"]).iter_rows(named=True)):
        assert (row["probe"], row["start"], row["stop"]) == (PROBES[i], 5, 5 + S)
        assert row["at the start"] == float(entries.before[0, i])
        assert row["at the end"] == pytest.approx(float(entries.after[-1, i]))
        by_datum = entries.credit[:, i].sum(-1)
        assert row["raised"] == pytest.approx(float(by_datum[by_datum > 0].sum()))
        assert row["lowered"] == pytest.approx(float(by_datum[by_datum < 0].sum()))
        for part in ("past", "decay"):
            assert row[part] == pytest.approx(float(getattr(entries, part)[:, i].sum()))
        parts = by_datum.sum(1) + entries.past[:, i] + entries.decay[:, i]
        missed = sum(abs(float(entries.after[s, i] - entries.before[s, i] - parts[s])) for s in range(S))
        change = sum(abs(float(entries.after[s, i] - entries.before[s, i])) for s in range(S))
        assert row["missed"] == pytest.approx(missed / change)


def test_texts_hold_ids_positions_and_credits(frames):
    for i, probe in enumerate(PROBES):
        frame, found = of(frames["ledger_texts"], probe), credit.most_credited(ledger(), i)
        assert len(frame) == len(found)
        for row, text in zip(frame.iter_rows(named=True), found, strict=True):
            assert (row["effect"], row["rank"], row["datum"], row["steps"]) == text[:4]
            assert row["credits"] == text.credit.tolist() and row["credit"] == pytest.approx(sum(row["credits"]))
            assert row["position"] == text.position


def test_targets_and_inputs_are_sums_over_the_positions_of_their_token(frames):
    entries = ledger()
    for i, probe in enumerate(PROBES):
        sums = {side: {v: [0.0, 0.0, 0] for v in range(V)} for side in ("target", "input")}
        for s in range(S):
            for j in range(N):
                for c in range(C):
                    amount = float(entries.credit[s, i, j, c])
                    for side, ids in (("target", TEXTS.targets), ("input", TEXTS.tokens)):
                        row = sums[side][int(ids[int(entries.datum[s, j]), c])]
                        row[0], row[1], row[2] = row[0] + amount, row[1] + abs(amount), row[2] + 1
        targets, whole = of(frames["ledger_tokens"], probe), sums["target"]
        raised = sorted((v for v in whole if whole[v][0] > 0), key=lambda v: -whole[v][0])
        lowered = sorted((v for v in whole if whole[v][0] < 0), key=lambda v: whole[v][0])
        assert targets["target"].to_list() == raised + lowered
        for v, amount, positions in targets.rows():
            assert amount == pytest.approx(whole[v][0]) and positions == whole[v][2]
        inputs, whole = of(frames["ledger_inputs"], probe), sums["input"]
        assert inputs["input"].to_list() == sorted(whole, key=lambda v: -whole[v][1])
        gross = sum(row[1] for row in whole.values())
        for row in inputs.iter_rows(named=True):
            net, own, positions = whole[row["input"]]
            assert row["credit"] == pytest.approx(net) and row["gross"] == pytest.approx(own)
            assert row["share of gross"] == pytest.approx(own / gross) and row["positions"] == positions
            assert row["share of positions"] == pytest.approx(positions / (S * N * C))


def test_a_ledger_without_credit_keeps_its_columns():
    entries = ledger()
    frames = tables.ledger_frames(entries._replace(credit=torch.zeros_like(entries.credit)), PROBES, KEY, TEXTS, V)
    for name in ("ledger_texts", "ledger_tokens", "ledger_inputs"):
        assert len(frames[name]) == 0 and frames[name].columns == list(tables.LEDGER_TABLES[name].columns)


def test_a_ledgers_rows_take_the_place_of_its_own_alone(frames, tmp_path):
    kind = tables.LEDGER_TABLES["ledger_courses"]
    results.add_rows(tmp_path, "ledger_courses", kind, frames["ledger_courses"])
    farther = tables.ledger_frames(ledger(1), PROBES[:1], KEY._replace(stop=99), TEXTS, V, every=25)
    results.add_rows(tmp_path, "ledger_courses", kind, farther["ledger_courses"])
    again = tables.ledger_frames(ledger(), PROBES[:1], KEY, TEXTS, V, every=25)
    whole = results.add_rows(tmp_path, "ledger_courses", kind, again["ledger_courses"])
    assert whole.select("probe", "stop", "step").rows() == [
        *(("bigram:a b", 5 + S, step) for step in (5, 15, 25)),
        ("loss", 99, 5),
        ("loss", 5 + S, 5),
    ]
    shown = tables.longest(whole)
    assert shown.select("probe", "stop").unique(maintain_order=True).rows() == [("bigram:a b", 5 + S), ("loss", 99)]


def heads(value, control, queries=7):
    return HeadAttention(torch.tensor(value), torch.tensor(control), queries)


def test_heads_have_a_row_each_and_no_control_is_null():
    found = heads([[0.5, 0.25], [0.75, 0.125]], [[0.25, 0.5], [torch.nan, 0.125]])
    frame = tables.head_frame(tables.head_rows("same", 20, found))
    assert frame.rows() == [
        ("same", "0.0", 20, 7, 0.5, 0.25, 0.25),
        ("same", "0.1", 20, 7, 0.25, 0.5, -0.25),
        ("same", "1.0", 20, 7, 0.75, None, 0.75),
        ("same", "1.1", 20, 7, 0.125, 0.125, 0.0),
    ]


def test_the_farthest_heads_are_those_of_a_sort_at_their_step():
    rows = [
        row
        for step, sign in ((0, -1.0), (20, 1.0))
        for pattern, size in (("same", 1.0), ("bracket", -1.0))
        for row in tables.head_rows(
            pattern, step, heads([[0.1 * sign * size, 0.3], [0.2, 0.4 * sign * size]], [[0.0] * 2] * 2)
        )
    ]
    frame = tables.head_frame(rows)
    best = tables.farthest_heads(frame, 20, 2)
    assert best.filter(pl.col("pattern") == "same")["head"].to_list() == ["1.1", "0.1"]
    assert best.filter(pl.col("pattern") == "bracket")["head"].to_list() == ["0.1", "1.0"]
    assert best["step"].unique().to_list() == [20]


def test_the_farthest_heads_are_above_their_control_not_the_most_attentive():
    frame = tables.head_frame(tables.head_rows("same", 0, heads([[0.9, 0.5]], [[0.8, 0.1]])))
    assert tables.farthest_heads(frame, 0, 1)["head"].to_list() == ["0.1"]


amounts = st.integers(-9, 9).map(lambda i: i / 4)


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=6), st.integers(1, 60))
def test_the_largest_rise_is_that_of_all_pairs_of_near_snapshots(above, steps):
    rows = []
    for i, pair in enumerate(above):
        found = heads([[0.0, pair[0], pair[1]]], [[torch.nan, 0.0, 0.0]])
        rows += tables.head_rows("same", 20 * i, found)
    pairs = [(i, j) for i in range(len(above)) for j in range(i + 1, len(above)) if 20 * (j - i) <= steps]
    best = max((above[j][head] - above[i][head] for i, j in pairs for head in (0, 1)), default=0.0)
    rise = tables.largest_rise(tables.head_frame(rows), steps)
    if best <= 0:
        assert rise is None
        return
    assert rise is not None and rise.pattern == "same" and rise.above == pytest.approx(best)
    head = int(rise.head[2:]) - 1
    assert above[rise.stop // 20][head] - above[rise.start // 20][head] == pytest.approx(best)
    assert 0 < rise.stop - rise.start <= steps


def test_a_head_without_a_control_does_not_rise():
    rows = [
        row
        for step in (0, 20)
        for row in tables.head_rows("previous", step, heads([[0.01 * step, 0.5]], [[torch.nan, torch.nan]]))
    ]
    assert tables.largest_rise(tables.head_frame(rows), 20) is None


def test_completeness_and_agreement_have_a_row_for_each_probe_and_estimate():
    shares = [[Estimate(0.5, 0.25, 0.75, 9), Estimate(1.5, 1.0, 2.0, 8)], [Estimate(0.1, 0.0, 0.2, 7)] * 2]
    change = torch.tensor([3.0, 4.0])
    found = [Completeness("gradient at the end", None, shares[0], change), Completeness("credit", 3, shares[1], change)]
    assert tables.completeness_frame(found, PROBES).rows() == [
        ("loss", "gradient at the end", None, 0.5, 0.25, 0.75, 3.0, 9),
        ("loss", "credit", 3, 0.1, 0.0, 0.2, 3.0, 7),
        ("bigram:a b", "gradient at the end", None, 1.5, 1.0, 2.0, 4.0, 8),
        ("bigram:a b", "credit", 3, 0.1, 0.0, 0.2, 4.0, 7),
    ]
    agreement = tables.agreement_frame({"loss": {"step rerun": {"credit": shares[0][0], "random": shares[0][1]}}})
    assert agreement.rows() == [
        ("loss", "step rerun", "credit", 0.5, 0.25, 0.75, 9),
        ("loss", "step rerun", "random", 1.5, 1.0, 2.0, 8),
    ]


def test_planted_causes_have_their_base_rate_beside_them():
    found = [
        Precision("credit", 10, Estimate(0.9, 0.8, 1.0, 30)),
        Precision("random", None, Estimate(0.1, 0.0, 0.2, 30)),
    ]
    assert tables.planted_cause_frame(found, 0.125).rows() == [
        ("credit", "precision", 10, 0.9, 0.8, 1.0, 0.125, 30),
        ("random", "average precision", None, 0.1, 0.0, 0.2, 0.125, 30),
    ]
