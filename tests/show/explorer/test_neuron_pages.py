"""Any neuron has a page whose numbers are the record's; what is no neuron has none, and near ones are named."""

import re
from typing import Any

import explorer_sites
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import same_bits

from devinterp_func import neurons
from devinterp_func.neurons import Neuron
from devinterp_func.show import explorer, results, schema, tables
from devinterp_func.show.explorer import NotThere

OUTLIERS = re.compile(r"<dt>outliers</dt><dd>([\d,]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_sites.site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())


def neuron_of(site, data):
    axis = data.draw(st.sampled_from(["in", "out"]))
    return data.draw(st.sampled_from(site.groups[axis].members))


def page_of(site, neuron):
    address = explorer.path("neuron", neuron)
    view = explorer.make(site, address)
    return view, explorer.html(site, view, address)


def values(view):
    found: dict[str, Any] = {panel.title: panel.value for panel in view.panels if panel.python}
    return found


@given(st.data())
@settings(max_examples=8)
def test_a_neurons_numbers_are_the_records(site, data):
    neuron = neuron_of(site, data)
    own = set(site.parameters(neuron).tolist())
    mine = [row for row in explorer_sites.everything(site) if row[3] in own]
    view, html = page_of(site, neuron)
    found = values(view)
    facts = found["The neuron"]
    assert facts["outliers"] == len(mine) == int(found["Its life"].sum())
    assert facts["data"] == len({datum for _, _, datum, *_ in mine})
    assert facts["visits"] == len({(step, row) for step, row, *_ in mine}) == len(found["The texts that made it"].step)
    assert facts["steps"] == len({step for step, *_ in mine})
    assert facts["Σ|Δ|"] == pytest.approx(sum(abs(delta) for *_, delta in mine))
    assert found["Its life"].tolist() == [sum(step == row[0] for row in mine) for step in range(site.n_steps)]
    assert int(found["Its largest changes"].outliers.sum()) == len(mine)
    assert OUTLIERS.findall(html) == [f"{len(mine):,}"]
    for title, labels in (
        ("Tokens it was to predict", site.run.data.targets),
        ("Tokens it read", site.run.data.tokens),
    ):
        at = [int(labels[datum, position]) for _, _, datum, _, position, _ in mine]
        assert found[title].count.tolist() == [at.count(id) for id in found[title].token.tolist()]


def require_texts(html, visits, view):
    """Texts lead to their datum and step, are coloured where they moved the neuron, and their words are text."""
    assert "<script>alert" not in html and "<img" not in html and "\x1b" not in html and "\u202e" not in html
    html.encode()
    (panel,) = (panel for panel in view.panels if panel.title == "The texts that made it")
    for datum, step in list(zip(visits.datum.tolist(), visits.step.tolist(), strict=True))[:1]:
        assert f'<a href="../datum/{datum}.html">datum {datum:,}</a>' in html
        assert f'<a href="../step/{step}.html">step {step:,}</a>' in html
    if len(visits.amount) and float(visits.amount[0]):
        assert 'class="plus" style="--v:1.00"' in panel.items[0]


@given(st.data())
@settings(max_examples=3)
def test_every_panel_is_what_its_lines_give(site, numbers, data):
    where = data.draw(st.sampled_from([site, numbers]))
    view, _ = page_of(where, neuron_of(where, data))
    assert len(view.panels) > 4
    for panel in view.panels:
        assert same_bits(explorer.given(panel.python), panel.value), panel.title


def test_both_axes_and_both_sides_lead_to_each_other(site):
    unit, shape = next((name, shape) for name, shape in site.run.shapes.items() if len(shape) == 2)
    view, html = page_of(site, Neuron(unit, 1))
    assert f'href="../neuron/{unit}:1:out.html"' in html
    assert (view.before, view.after) == (f"../neuron/{unit}:0.html", f"../neuron/{unit}:2.html")
    view, html = page_of(site, Neuron(unit, shape[0] - 1, "out"))
    assert view.after is None and view.before == f"../neuron/{unit}:{shape[0] - 2}:out.html"


@given(st.one_of(st.text(min_size=1), st.sampled_from(["layers.0.linear2.weight", "0.linear1:3", "linear2:99999999"])))
@settings(max_examples=20)
def test_what_is_no_neuron_has_no_page_and_near_ones_are_named(site, id):
    known = {str(neuron) for groups in site.groups.values() for neuron in groups.members}
    if id in known:
        return
    with pytest.raises(NotThere) as error:
        explorer.make(site, explorer.path("neuron", id.encode("utf-8", "replace").decode()))
    assert error.value.near
    for _, kind, near in error.value.near:
        assert kind == "neurons" or str(near) in known


def test_a_neuron_has_one_name(site):
    unit = site.groups["in"].members[0].unit
    for name in (f"{unit}:0:in", f"{unit}:00"):
        with pytest.raises(NotThere, match="is written") as error:
            explorer.make(site, explorer.path("neuron", name))
        assert str(error.value.near[0][2]) == f"{unit}:0"
    with pytest.raises(NotThere, match="has no column 999") as error:
        explorer.make(site, explorer.path("neuron", f"{unit}:999"))
    assert neurons.parse(str(error.value.near[0][2])).unit == unit


@given(st.data())
@settings(max_examples=5)
def test_lists_of_neurons_are_the_totals(site, numbers, data):
    where = data.draw(st.sampled_from([site, numbers]))
    axis, by = data.draw(st.sampled_from(["in", "out"])), data.draw(st.sampled_from(["outliers", "index"]))
    unit = data.draw(st.sampled_from([None, *dict.fromkeys(one.unit for one in where.groups["in"].members)]))
    view = explorer.make(where, "neurons.html", {"axis": axis, "by": by} | ({"unit": unit} if unit else {}))
    html = explorer.html(where, view, "neurons.html")
    top, every = values(view).values()
    members = [one for one in where.groups[axis].members if unit in (None, one.unit)]
    assert all(f'href="neuron/{one}.html"' in html for one in members)
    assert [one.outliers for one in top] == sorted((one.outliers for one in top), reverse=True)
    assert int(every.sum()) <= len(explorer_sites.everything(where))
    for one in top:
        seen = neurons.visits(where.index.outliers(where.parameters(one.neuron)))
        assert one.outliers == int(seen.outliers.sum()) == int(every[where.number(one.neuron)])
        assert (one.amount, one.data) == (float(seen.amount.max()), len(seen.datum.unique()))
        assert (one.datum, one.step) == (int(seen.datum[0]), int(seen.step[0]))
    listed = re.findall(r'">([^<]+)</a> ([\d,]+)', str(view.panels[1].items[1]))
    amounts = [int(n.replace(",", "")) for _, n in listed]
    assert by == "index" or amounts == sorted(amounts, reverse=True)
    for panel in view.panels:
        assert same_bits(explorer.given(panel.python), panel.value)


@pytest.mark.parametrize("query", [{"axis": "up"}, {"unit": "linear"}, {"by": "luck"}])
def test_lists_that_there_are_not_are_refused(site, query):
    with pytest.raises(NotThere) as error:
        explorer.make(site, "neurons.html", query)
    assert error.value.near


def test_from_the_front_page_to_a_text_that_made_a_neuron_it_is_few_clicks(site):
    (first, *_) = explorer.largest_neurons(site, 1)
    table = str(explorer.large_table(site, [first], explorer.Links()))
    assert f'href="neuron/{first.neuron}.html"' in table and f'href="datum/{first.datum}.html"' in table
    _, html = page_of(site, first.neuron)
    assert f'href="../datum/{first.datum}.html"' in html


def test_an_unmoved_neuron_has_a_page(site):
    totals = site.index.totals("in").tolist()
    (neuron, *_) = (one for one, n in zip(site.groups["in"].members, totals, strict=True) if not n)
    view, _ = page_of(site, neuron)
    assert values(view)["The neuron"]["outliers"] == 0


def test_the_companions_are_of_the_unit(site):
    neuron = explorer.largest_neurons(site, 1)[0].neuron
    found = explorer.companions(site, neuron)
    assert len(found) == site.run.shapes[neuron.unit][1] and float(found[neuron.index]) == pytest.approx(1)
    assert torch.all((found >= 0) & (found <= 1 + 1e-12))


RESULTS = {
    "neurons": tables.NEURONS,
    "verdicts": tables.VERDICTS,
    "views": tables.VIEWS,
    "flips": tables.FLIPS,
    "flip_excerpts": tables.FLIP_EXCERPTS,
}
PLAIN: dict[Any, Any] = {schema.INT: 3, schema.FLOAT: 0.25, schema.BOOL: True, schema.NAME: "x", schema.IDS: [2, 5]}


def test_what_a_neuron_flips_is_told_where_it_was_ablated(site, tmp_path):
    one, other, *_ = site.groups["in"].members
    for name, kind in RESULTS.items():
        row = {column: PLAIN[about.dtype] for column, about in kind.columns.items()}
        results.write_table(tmp_path, name, schema.frame(kind, [row | {"neuron": str(one)}]))
    ablated = explorer.open(site.run.path, out=tmp_path)
    for neuron, told in ((one, True), (other, False)):
        view, html = page_of(ablated, neuron)
        (panel,) = (panel for panel in view.panels if panel.title == "What it flips")
        assert (panel.value is not None) == told and same_bits(explorer.given(panel.python), panel.value)
        assert ("Control: random data" in html) == told and ("experiments/ablate.py" in html) != told
    assert values(page_of(site, one)[0])["What it flips"] is None
