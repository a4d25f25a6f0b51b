"""Pages of heads: attention, courses, jumps and what made them, against loops; any model that has attention."""

import base64
import json
import re
from dataclasses import replace
from html import unescape
from typing import Any

import explorer_results
import explorer_sites
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import recorded, same_bits

from devinterp_func import graph, models, records, show
from devinterp_func.credit import Entries
from devinterp_func.records import Recording
from devinterp_func.show.explorer import NotThere
from devinterp_func.show.explorer._attention import example, on_patterns
from devinterp_func.show.explorer._attention_block import BYTES, levels, thinned
from devinterp_func.training import Recipe

explorer: Any = show.explorer  # tables that are there


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_results.site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return explorer_sites.site(tmp_path_factory.getbasetemp())


def panels(site, address, **query):
    return {panel.title: panel for panel in explorer.make(site, address, query).panels}


def html(site, address, **query):
    return explorer.html(site, explorer.make(site, address, query), address)


def test_attention_is_the_graphs_at_every_snapshot(site):
    tokens = site.run.split("valid").tokens[3:4]
    found = explorer.attention(site, "1.0", "valid", 3)
    assert len(found) == len(site.run.snapshots)
    for weights, step in zip(found, site.run.snapshots, strict=True):
        expected = graph.attention_patterns(site.run.graph, site.run.params(step), (tokens,))[0, 1, 0]
        assert torch.equal(weights, expected)
    assert torch.allclose(found.sum(-1), torch.ones(found.shape[:2]))
    assert torch.equal(explorer.attention(site, "0.1", "train", 5)[0], _trained(site, 5, 0)[0, 1])


def _trained(site, datum, step):
    batch = (site.run.data.tokens[datum : datum + 1],)
    return graph.attention_patterns(site.run.graph, site.run.params(step), batch)[0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_level_says_its_weight(weights):
    depth = levels(torch.tensor(weights, dtype=torch.float64)).double() / 255
    assert (depth - torch.tensor(weights, dtype=torch.float64).sqrt()).abs().max() <= 0.5 / 255 + 1e-12


@given(st.integers(1, 300), st.integers(1, 128))
def test_snapshots_are_thinned_to_what_a_page_can_hold(n, C):
    kept = thinned(n, C)
    assert kept == sorted(set(kept)) and {0, n - 1} <= set(kept) <= set(range(n))
    assert len(kept) == n or len(kept) * C**2 <= BYTES


def test_the_text_and_snapshot_shown_are_where_the_head_is_farthest_above_control(site):
    rows = explorer.head_course(site, "1.1")
    part, datum, pattern, step = example(site, "1.1")
    able = rows.filter(pl.col("by distance").is_not_null())
    assert part == "valid" and able["above"].max() == able.filter(pattern=pattern, step=step)["above"].item()
    values = on_patterns(site, step)[str(pattern)][:, 1, 1]
    assert float(values[datum]) == max(float(x) for x in values if x == x)


def test_a_page_draws_the_weights_that_it_tells(site):
    page = html(site, "head/1.1.html", valid="2", snapshot="20", query="4")
    data = json.loads(unescape(re.findall(r'data-attention="([^"]*)"', page)[0]))
    coded = base64.b64decode(re.findall(r'data-levels="([^"]*)"', page)[0])
    weights = explorer.attention(site, "1.1", "valid", 2)
    assert data == {"steps": list(site.run.snapshots), "size": 10, "at": 2, "query": 4}
    assert coded == bytes(levels(weights).flatten().tolist())
    drawn = [float(v) for v in re.findall(r'data-place="\d+" style="--v:([0-9.]+)"', page)]
    assert drawn == pytest.approx((weights[2, 4].sqrt()).tolist(), abs=0.01)


def test_jumps_are_differences_of_neighbouring_snapshots(site):
    jumps, rows = explorer.head_jumps(site, "0.1"), explorer.head_course(site, "0.1")
    above = {(row["pattern"], row["step"]): row["above"] for row in rows.iter_rows(named=True)}
    steps = sorted({step for _, step in above})
    expected = {
        (pattern, a, b): above[pattern, b] - above[pattern, a]
        for pattern in {pattern for pattern, _ in above}
        for a, b in zip(steps[:-1], steps[1:], strict=True)
    }
    found = {(row["pattern"], row["from"], row["to"]): row["change"] for row in jumps.iter_rows(named=True)}
    assert found == expected
    assert jumps["change"].abs().to_list() == sorted(map(abs, expected.values()), reverse=True)


@given(st.integers(0, 45), st.integers(1, 46), st.integers(1, 30))
def test_credited_visits_are_the_largest_of_the_span(site, start, length, most):
    [walk] = site.folder.glob("ledger-*/manifest.json")
    entries, stop = records.read_walk(walk.parent, Entries), start + length
    at = [i for i, step in enumerate(entries.step.tolist()) if start <= step < stop]
    found = explorer.credited_visits(site, explorer_results.PROBE, start, stop, most)
    if not at:
        assert found is None
        return
    credits = {(int(entries.step[i]), int(entries.datum[i, j])): entries.credit[i, 1, j] for i in at for j in range(7)}
    first = [float(credits[pair].sum()) for pair in zip(found.step.tolist(), found.datum.tolist(), strict=True)]
    assert sorted(map(abs, (float(x.sum()) for x in credits.values())), reverse=True)[:most] == list(map(abs, first))
    assert found.change == pytest.approx(sum(float(entries.after[i, 1] - entries.before[i, 1]) for i in at))
    assert found.raised + found.lowered == pytest.approx(sum(float(x.sum()) for x in credits.values()))
    assert explorer.credited_visits(site, "head:0.0 bracket", start, stop) is None


def test_the_texts_of_a_jump_lead_to_their_data_and_steps(site):
    made = [panel for title, panel in panels(site, "head/1.1.html").items() if title.startswith("What made bracket")]
    assert made
    for panel in made:
        written = "".join(map(str, panel.items))
        for datum, step in zip(panel.value.datum.tolist(), panel.value.step.tolist(), strict=True):
            assert f'href="../datum/{datum}.html"' in written and f'href="../step/{step}.html"' in written
    other = "".join(map(str, panels(site, "head/0.0.html")["Jumps"].items))
    assert "python experiments/ledger.py" in other and "--probe" in other


def test_all_heads_stand_in_order_of_their_farthest(site):
    table = explorer.heads_in_order(site)
    whole = explorer.head_course(site)
    for row in table.iter_rows(named=True):
        mine = whole.filter(head=row["head"], pattern=row["pattern"])
        assert row["above"] == mine["above"].max()
    able = table.filter(pl.col("by distance").is_not_null())["above"].to_list()
    assert able == sorted(able, reverse=True) and len(table) == 4 * whole["pattern"].n_unique()
    page = html(site, "heads.html")
    assert all(f'href="head/{head}.html"' in page for head in ("0.0", "0.1", "1.0", "1.1"))


def test_lines_give_what_is_shown(site):
    for address in ("heads.html", "head/1.1.html", "head/0.0.html"):
        for panel in explorer.make(site, address).panels:
            if isinstance(panel.value, pl.DataFrame):
                assert explorer.given(panel.python).equals(panel.value), panel.title
            elif panel.python:
                assert same_bits(explorer.given(panel.python), panel.value), panel.title


def test_without_results_pages_say_what_makes_them(bare):
    assert "heads.py" in html(bare, "heads.html") and 'href="head/1.1.html"' in html(bare, "heads.html")
    page = html(bare, "head/0.0.html")
    assert "heads.py" in page and "validation text 0" in page


@pytest.mark.parametrize(
    ("address", "query", "said"),
    [
        ("head/2.0.html", {}, "no head '2.0'; they are 0.0 to 1.1"),
        ("head/x.html", {}, "no head 'x'"),
        ("head/00.1.html", {}, "no head '00.1'"),
        ("head/0.1.html", {"snapshot": "3"}, "no snapshot before step '3'"),
        ("head/0.1.html", {"valid": "100000"}, "no datum '100000'"),
        ("head/0.1.html", {"query": "10"}, "'10'"),
    ],
)
def test_what_is_not_there(site, address, query, said):
    with pytest.raises(NotThere, match=re.escape(said)):
        explorer.make(site, address, query)


def test_a_model_without_attention_has_no_heads(tmp_path_factory):
    numbers = explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    given = records.open(numbers.run.path, model=models.module(net, explorer_sites._loss, "perceptron"))
    for site, why in (
        (replace(numbers, run=given), "this model has no attention"),
        (numbers, "not stored with the run"),
    ):
        with pytest.raises(NotThere, match=why):
            explorer.make(site, "head/0.0.html")
        assert why in html(site, "heads.html")


def test_another_model_of_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    V = len(explorer_sites.CORPUS.vocab)
    config = transformers.GPT2Config(vocab_size=V, n_positions=6, n_embd=8, n_layer=2, n_head=2)
    recipe = Recipe(context=6, batch_size=4, n_steps=4, lr=0.1)
    run = recorded(
        tmp_path / "run", recipe, Recording(k=5, snapshot_every=2), explorer_sites.CORPUS, models.causal_lm(config)
    )
    for _ in explorer.build(run.path):
        pass
    site = explorer.open(run.path)
    page = html(site, "head/1.1.html", datum="3", query="2")
    weights = explorer.attention(site, "1.1", "train", 3)
    assert weights.shape == (3, 6, 6) and not weights.triu(1).any()
    assert re.findall(r'data-place="(\d+)"', page) == [str(i) for i in range(6)]
