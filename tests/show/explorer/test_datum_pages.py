"""Pages of data, steps and probes: sums are those of the record and of the walks, by brute force; any name is text."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import explorer_sites
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import same_bits

from devinterp_func import credit, records
from devinterp_func.credit import Entries, Lifetimes
from devinterp_func.per_example import Outliers
from devinterp_func.show import explorer, results
from devinterp_func.show.explorer import Jobs, NotThere

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))  # where the scripts find each other

import influence  # noqa: E402
import ledger  # noqa: E402
import lifetime  # noqa: E402
import retrain  # noqa: E402

HOSTILE = "bigram:<script>alert(1)</script> $x$"
PROBES = ("loss", HOSTILE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A site without results."""
    return explorer_sites.site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def site(plain, tmp_path_factory):
    """The same run with a ledger, lifetimes and influences of two probes over some steps."""
    out = tmp_path_factory.mktemp("results")
    run = plain.run.path
    few: dict[str, Any] = {"probe": PROBES, "nodes": 1, "texts": 2}
    ledger.main(ledger.Settings(run, out, start=10, stop=20, **few))
    lifetime.main(lifetime.Settings(run, out, start=20, stop=24, **few))
    influence.main(influence.Settings(run, out, start=20, stop=24, tried=0, **few))
    left_out = int(records.read(plain.run, 21).datum[3])
    short: dict[str, Any] = {"steps": 3, "shares": (), "draws": 2, "tail_draws": 0, "others": 3, "without": (left_out,)}
    retrain.main(retrain.Settings(run, 20, out, **few, **short))
    return explorer.open(run, out)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())


@pytest.fixture(params=["site", "numbers"])
def either(request):
    return request.getfixturevalue(request.param)


@cache
def everything(site):
    return explorer_sites.everything(site)


def panels(site, address, **query):
    return {panel.title: panel for panel in explorer.make(site, address, query).panels}


def found(view, start):
    return [panel for panel in view.panels if panel.title.startswith(start)]


# ---- data and steps


@settings(max_examples=8)
@given(st.data())
def test_a_datum_did_what_the_record_says(site, numbers, data):
    either = data.draw(st.sampled_from([site, numbers]))
    datum = data.draw(st.integers(0, either.run.n_data - 1))
    own = [entry for entry in everything(either) if entry[2] == datum]
    view = explorer.make(either, f"datum/{datum}.html")
    [seen] = found(view, "Its visits")
    assert seen.value.step.tolist() == sorted({step for step, *_ in own})
    for step, row, loss, amount in zip(*(column.tolist() for column in seen.value[:4]), strict=True):
        record = records.read(either.run, step)
        assert int(record.datum[row]) == datum and loss == pytest.approx(float(record.loss[row]))
        assert amount == pytest.approx(sum(abs(entry[5]) for entry in own if entry[0] == step), rel=1e-5)
    for panel, step in zip(found(view, "What it moved"), seen.value.step.tolist(), strict=True):
        there = sorted(((e[3], e[4], e[5]) for e in own if e[0] == step), key=lambda e: (-abs(e[2]), e[0]))
        columns = panel.value.parameter, panel.value.position, panel.value.delta
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == there
    first: Any = view.panels[0].value
    by_position = first.tolist()
    for position, amount in enumerate(by_position):
        assert amount == pytest.approx(sum(abs(e[5]) for e in own if e[4] == position), rel=1e-5, abs=1e-12)
    assert sum(by_position) == pytest.approx(sum(abs(entry[5]) for entry in own if entry[4] >= 0), rel=1e-5)


@settings(max_examples=4)
@given(st.data())
def test_what_a_datum_undid_is_what_the_record_had_before(site, data):
    datum = data.draw(st.sampled_from(sorted({e[2] for e in everything(site) if e[0] > 20})))
    record = everything(site)
    for panel in found(explorer.make(site, f"datum/{datum}.html"), "What it undid"):
        step = int(panel.title.split()[-1])
        row = records.read(site.run, step).datum.tolist().index(datum)
        shifts = explorer.shifts(records.read(site.run, step), row, 20)
        for i, (parameter, delta) in enumerate(zip(shifts.parameter.tolist(), shifts.delta.tolist(), strict=True)):
            earlier = [e for e in record if e[3] == parameter and e[0] < step]
            before = sum(e[5] for e in earlier)
            taken = min(abs(delta), abs(before)) if before * delta < 0 else 0.0
            assert panel.value.before[i] == pytest.approx(before, rel=1e-5, abs=1e-9)
            assert panel.value.undone[i] == pytest.approx(taken, rel=1e-5, abs=1e-9)
            assert int(panel.value.maker[i]) in ({e[2] for e in earlier} or {-1})


def test_neurons_of_a_visit_hold_its_shifts(site):
    shifts = explorer.shifts(records.read(site.run, 30), 3)
    for axis in ("in", "out"):
        groups = site.groups[axis]
        sums = explorer.touched(shifts, groups.of, len(groups.members))
        for group in range(len(groups.members)):
            own = [
                d
                for p, d in zip(shifts.parameter.tolist(), shifts.delta.tolist(), strict=True)
                if groups.of[p] == group
            ]
            assert int(sums.outliers[group]) == len(own)
            assert float(sums.amount[group]) == pytest.approx(sum(map(abs, own)), rel=1e-6)


def test_outliers_of_whole_steps_have_their_data_too(site):
    rows, parameter, delta = (
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([5, 2, 4, 3]),
        torch.tensor([-3.0, 2.0, 1.0, -1.0]),
    )
    record = records.read(site.run, 3)._replace(outliers=Outliers(parameter, delta, torch.arange(4), rows))
    assert explorer.shifts(record, 1).parameter.tolist() == [5, 3, 4]
    assert explorer.shifts(record, 1, 2).position.tolist() == [0, 3]
    assert explorer.shifts(record, 2).parameter.tolist() == []


@pytest.mark.parametrize("step", [0, 7, 14])
def test_a_steps_parts_add_up_and_its_largest_shifts_are_the_largest(either, step):
    there = panels(either, f"step/{step}.html")
    law, record = there["The law"].value, records.read(either.run, step)
    assert sum(law[f"share of {part}"] for part in ("present", "past", "decay")) == pytest.approx(1, abs=1e-4)
    assert law["present"] == pytest.approx(float(record.split.size[:, 0].double().norm()))
    every = sorted((abs(e[5]) for e in everything(either) if e[0] == step), reverse=True)
    assert there["Its largest shifts"].value.delta.abs().tolist() == every[:20]


@pytest.mark.parametrize("kind, stop", [("datum", "n_data"), ("step", "n_steps")])
@pytest.mark.parametrize("id", ["-1", "x", "007", "1.5", "", "９", "99999999999999999999", "<script>", "\ud800"])
def test_what_is_not_there_is_said_with_what_is(either, kind, stop, id):
    most = getattr(either.run if stop == "n_data" else either, stop)
    for wrong in (id, str(most)):
        with pytest.raises(NotThere) as error:
            explorer.make(either, explorer.path(kind, wrong) if "\ud800" not in wrong else f"{kind}/%ED%A0%80.html")
        [(_, near, number), *_] = error.value.near
        assert near == "run" or (near == kind and 0 <= int(str(number)) < most)


# ---- credits and probes


def test_credits_are_those_of_the_walks(site):
    datum = int(records.read(site.run, 15).datum[2])
    told = {(one.folder, one.what, one.probe): one for one in panels(site, f"datum/{datum}.html")["Its credits"].value}
    [folder] = [path for path in site.folder.glob("ledger-*") if path.is_dir()]
    entries = records.read_walk(folder, Entries)
    for i, probe in enumerate(PROBES):
        one = told[folder.name, "credit", probe]
        rows = [(s, j) for s in range(10) for j in range(7) if int(entries.datum[s, j]) == datum]
        assert one.step.tolist() == [10 + s for s, _ in rows]
        assert torch.equal(one.amounts, torch.stack([entries.credit[s, i, j] for s, j in rows]))


def test_lifetimes_and_influences_are_there_too(site):
    datum = int(records.read(site.run, 21).datum[0])
    told = panels(site, f"datum/{datum}.html")["Its credits"].value
    assert {"present credit", "lifetime credit", "influence"} <= {one.what for one in told}
    [folder] = [path for path in site.folder.glob("lifetime-*") if path.is_dir()]
    lives = records.read_walk(folder, Lifetimes)
    one = next(one for one in told if one.what == "lifetime credit" and one.probe == HOSTILE)
    own = [lives.lifetime[s, 1, j] for s in range(4) for j in range(7) if int(lives.datum[s, j]) == datum]
    assert torch.equal(one.amounts, torch.stack(own))
    slug = results.slug(HOSTILE)
    alone = panels(site, f"datum/{datum}.html", probe=slug)["Its credits"].value
    assert {one.probe for one in alone} == {HOSTILE} and len(alone) == len(told) / 2
    with pytest.raises(NotThere) as error:
        explorer.make(site, f"datum/{datum}.html", {"probe": "nothing"})
    assert ("loss", "probe", "loss") in error.value.near


def test_without_results_it_is_said_what_makes_them(plain):
    page = explorer.html(plain, explorer.make(plain, "datum/3.html"), "datum/3.html")
    assert "ledger.py" in page and "lifetime.py" in page and "influence.py" in page
    assert explorer.make(plain, "probes.html").panels[0].title == "None yet"


def test_a_probe_has_a_page_with_its_books(site):
    assert set(explorer.probes(site)) == {"loss", results.slug(HOSTILE)}
    there = panels(site, "probes.html")
    assert any(str(name).startswith("without ") for name in there["Retrained without data"].value["score"])
    books = there["Ledgers"].value
    for i, probe in enumerate(books["probe"]):
        parts = sum(books[part][i] for part in ("raised", "lowered", "past", "decay"))
        change = books["at the end"][i] - books["at the start"][i]
        assert parts == pytest.approx(change, abs=0.1 * abs(books["raised"][i]))
        address = f"probe/{results.slug(probe)}.html"
        there = panels(site, address)
        assert {f"Its course: {probe}", "Texts for and against", f"Lifetimes: {probe}"} <= set(there)
        assert there[f"Its course: {probe}"].value["probe"] == [probe] * len(
            there[f"Its course: {probe}"].value["probe"]
        )
    with pytest.raises(NotThere) as error:
        explorer.make(site, "probe/other.html")
    assert len(error.value.near) == 2


# ---- all of them


ADDRESSES = ["datum/0.html", "datum/49.html", "step/12.html", "step/0.html"]


def test_lines_give_what_is_shown(either):
    probes = [f"probe/{slug}.html" for slug in explorer.probes(either)] if either.vocab is not None else []
    shown = 0
    for address in [*ADDRESSES, "probes.html", *probes]:
        for panel in explorer.make(either, address).panels:
            if panel.python:
                assert same_bits(explorer.given(panel.python), panel.value), (address, panel.title)
                shown += 1
    assert shown > 10


def test_hostile_words_are_text_and_every_link_leads_to_a_page(site):
    addresses = [*ADDRESSES, "probes.html", *(f"probe/{slug}.html" for slug in explorer.probes(site))]
    for address in addresses:
        page = explorer.html(site, explorer.make(site, address), address)
        for raw in ("<script>alert", "<img src=x", "\ud800", "\x00", "\x1b"):
            assert raw not in page
        assert page.encode().isascii() or page.encode("utf-8")
        assert 'href="None"' not in page


def test_forms_are_there_where_jobs_can_be_started_and_nowhere_else(site):
    jobs = Jobs({"ledger": lambda values: [], "replay": lambda values: [], "retrain": lambda values: []})
    try:
        live = replace(site, jobs=jobs)
        for address in ("datum/3.html", "probes.html", "probe/loss.html", "step/4.html"):
            with_jobs = explorer.html(live, explorer.make(live, address), address)
            assert "jobs.html?job=" in with_jobs or 'name="job"' in with_jobs
            assert jobs.token not in with_jobs
            without = explorer.html(site, explorer.make(site, address), address, live=False)
            assert "jobs.html" not in without
    finally:
        jobs.close()


def test_credit_of_a_datum_is_in_the_library(site):
    [folder] = [path for path in site.folder.glob("ledger-*") if path.is_dir()]
    entries = records.read_walk(folder, Entries)
    datum = int(entries.datum[0, 0])
    step, amounts = credit.of_datum(entries.credit[:, 0], entries.datum, datum)
    assert float(amounts.sum()) == pytest.approx(float(entries.credit[:, 0][entries.datum == datum].sum()))
    assert int(step[0]) == 0
