"""Pages of phases and of runs side by side: their tables, links, and what is said where there are none."""

from dataclasses import replace
from typing import Any

import explorer_results
import explorer_sites
import polars as pl
import pytest
import torch
from run_builders import recorded, same_bits

from devinterp_func import records, show
from devinterp_func.records import Recording
from devinterp_func.show import results
from devinterp_func.show.explorer import NotThere

explorer: Any = show.explorer  # tables that are there


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_results.site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def both(site, tmp_path_factory):
    """The site beside two other runs, of which one has an index."""
    others = []
    for name in ("indexed", "bare"):
        run = recorded(
            tmp_path_factory.mktemp(name) / name,
            replace(explorer_sites.TEXTS, n_steps=12, seed=3),
            Recording(k=9, snapshot_every=6),
            explorer_sites.CORPUS,
            explorer_sites.MODEL,
        )
        others.append(run.path)
    for _ in explorer.build(others[0]):
        pass
    return explorer.open(site.run.path, site.folder, tuple(others))


def html(site, address):
    return explorer.html(site, explorer.make(site, address), address)


def test_phases_follow_each_other_and_lead_to_their_pages(site):
    segments = explorer.phase_table(site, "segments")
    page = html(site, "phases.html")
    assert segments["from"][0] == 0 and segments["to"].to_list()[:-1] == segments["from"].to_list()[1:]
    for phase in segments["phase"]:
        assert f'href="phase/{phase}.html"' in page
        own = html(site, f"phase/{phase}.html")
        first, last = segments["from"][phase], min(segments["to"][phase], site.n_steps)
        assert f'href="../run.html?start={first}&amp;stop={last}"' in own
        amount = explorer.steps_amounts(site, first, last)
        assert f'href="../step/{first + int(amount.argmax())}.html"' in own
    with pytest.raises(NotThere, match=f"no phase '{len(segments)}'"):
        explorer.make(site, f"phase/{len(segments)}.html")


def test_the_amount_of_a_step_is_the_sum_over_its_outliers(site):
    for step in (0, 7, 45):
        expected = records.read(site.run, step).outliers.delta.abs().sum()
        assert float(explorer.steps_amounts(site, step, step + 1)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_without_phases_their_page_says_what_finds_them(tmp_path_factory):
    bare = explorer_sites.site(tmp_path_factory.getbasetemp())
    assert "phases.py" in html(bare, "phases.html") and explorer.phase_table(bare, "makers") is None
    with pytest.raises(NotThere, match="were not looked for"):
        explorer.make(bare, "phase/0.html")
    with pytest.raises(ValueError, match="no table 'other' of phases"):
        explorer.phase_table(bare, "other")
    numbers = explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())
    assert "no text" in html(numbers, "phases.html")


def test_losses_of_all_runs_are_those_of_their_steps(both):
    found = explorer.losses(both)
    assert list(found) == [f"{path.parent.name}/{path.name}" for path in _paths(both)] or len(found) == 3
    for values, run in zip(found.values(), (both.run, *both.others), strict=True):
        expected = torch.stack([records.read(run, step).loss.mean() for step in range(run.n_steps)])
        assert torch.allclose(values, expected)


def _paths(site):
    return [site.run.path, *(run.path for run in site.others)]


def test_outliers_of_runs_are_counted_where_there_is_an_index(both):
    found = list(explorer.outliers_of_runs(both).values())
    assert len(found) == 2
    for counts, run in zip(found, (both.run, both.others[0]), strict=True):
        every = [records.read(run, step).outliers.parameter.flatten() for step in range(run.n_steps)]
        expected = torch.bincount(both.groups["in"].of[torch.cat(every).long()], minlength=len(counts))
        assert torch.equal(counts, expected)


def test_runs_beside_each_other(both, site):
    page = html(both, "compare.html")
    assert "not measured" in page and "loss" in page
    assert "--against" in html(site, "compare.html")


@pytest.mark.parametrize("address", ["phases.html", "phase/0.html", "compare.html"])
def test_lines_give_what_is_shown(both, address):
    for panel in explorer.make(both, address).panels:
        if isinstance(panel.value, pl.DataFrame):
            assert explorer.given(panel.python).equals(panel.value), panel.title
        elif panel.python:
            assert same_bits(explorer.given(panel.python), panel.value), panel.title


def test_results_of_the_site_are_its_own(site):
    assert site.folder != results.beside(site.run)
