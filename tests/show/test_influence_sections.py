"""What is said of how far influences can be forecast, and what stands above a ranking that goes beyond."""

import math
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from markupsafe import Markup
from run_builders import PLANTED, recorded

from devinterp_func.credit import Influences, Trial
from devinterp_func.records import Recording
from devinterp_func.show import _influence_sections, page, results, tables
from devinterp_func.training import Recipe

S, N, C = 40, 4, 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(context=C, batch_size=N, n_steps=2)
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5))


def trial(horizon, r, draws=20):
    x = torch.linspace(-1, 1, draws, dtype=torch.float64)
    y = x**2 - (x**2).mean()
    found = x + y * (x.norm() / y.norm()) * math.sqrt(1 - r**2) / r
    return Trial(horizon, x[:, None], found[:, None], 0.75)


def frames(*trials, growth=1.0, probe="loss"):
    """Tables of 40 steps; the derivative's norm at the first of them has grown."""
    rng = torch.Generator().manual_seed(0)
    norm = torch.ones(S, 1, dtype=torch.float64)
    norm[0] = growth
    nan = torch.full((S, 1), torch.nan, dtype=torch.float64)
    datum = torch.stack([torch.randperm(30, generator=rng)[:N] for _ in range(S)])
    amounts = torch.randn(S, 1, N, C, generator=rng, dtype=torch.float64)
    one = torch.cat([nan[1:], torch.ones(1, 1)])
    found = Influences(torch.arange(60, 100), datum, amounts, norm, one, one)
    credits = torch.randn(S, 1, N, generator=rng)
    key = tables.InfluenceKey(60, 100, "hessian", 2, 3, 0)
    return tables.influence_frames(found, credits, [2.0], [probe], key, trials, 20, random=0)


def said(of):
    [row] = of["influences"].iter_rows(named=True)
    verdict = _influence_sections.verdict(row, of["influence_horizons"])
    return row["forecast"], verdict, _influence_sections.warning(row, of["influence_texts"])


def test_a_span_that_can_be_forecast_has_no_banner():
    ahead, verdict, warning = said(frames(trial(10, 0.99), trial(40, 0.95)))
    assert ahead == 40 and warning is None
    assert verdict.startswith("What data changed can be forecast over all 40 steps: forecasts correlate 0.95 [0.8")
    assert "with what 20 trainings without random texts found, the metasmoothness is 0.75" in verdict
    assert verdict.endswith("and the derivative does not grow on the way back.")


@pytest.mark.parametrize(
    "trials, growth, ahead, told",
    [
        (
            [trial(10, 0.99), trial(30, 0.95)],
            2.0,
            30,
            "over 40 steps it was not tried, and the derivative grows at most",
        ),
        ([trial(10, 0.99)], 80.0, 10, "over 30 steps it was not tried, and the derivative grows at most 80.0-fold"),
        (
            [trial(10, 0.99), trial(30, 0.98)],
            80.0,
            30,
            "up to 30 steps ahead: over 40 steps the derivative grows 80.0-fold.",
        ),
        ([trial(10, 0.99), trial(30, 0.1)], 1.0, 10, "up to 10 steps ahead: over 30 steps forecasts correlate 0.10 ["),
        ([trial(10, 0.05)], 1.0, 0, "can be forecast at no horizon: over 10 steps forecasts correlate 0.05 ["),
        (
            [trial(10, 0.7, draws=5)],
            1.0,
            0,
            "random texts found, too few to tell; the metasmoothness is 0.75, the growth",
        ),
        ([], 1.0, 0, "at no horizon; over 10 steps it was not tried, and the derivative does not grow"),
    ],
)
def test_what_goes_beyond_says_so_above_the_ranking(trials, growth, ahead, told):
    of = frames(*trials, growth=growth)
    found, verdict, warning = said(of)
    assert found == ahead and told in verdict
    steps = [step for steps in of["influence_texts"]["steps"].to_list() for step in steps]
    beyond = sum(step < 100 - ahead for step in steps)
    assert warning is not None and warning.startswith("This ranking goes beyond what can be forecast")
    assert f"as far as 40 steps before the end; tried and foretold are {ahead}. {beyond} of the {len(steps)}" in warning
    assert (f"`--start {100 - ahead} --stop 100`" in warning) == (ahead > 0)


def written(folder, of):
    for name, table in of.items():
        results.write_table(folder, name, table)


def text(sections):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.page("page", "of a run", sections)))


def test_the_banner_stands_before_the_texts(run, tmp_path):
    written(tmp_path, frames(trial(10, 0.99)))
    shown = text(_influence_sections.sections(run, tmp_path))
    assert shown.index("This ranking goes beyond") < shown.index("The texts that helped it most")
    assert "The probe is a loss: orange helped." in shown
    written(tmp_path, frames(trial(10, 0.99), trial(40, 0.97), probe="bigram:a b"))
    shown = text(_influence_sections.sections(run, tmp_path))
    assert "This ranking goes beyond" not in shown and "orange helped" not in shown


def test_both_questions_are_told_and_each_text_has_both_places(run, tmp_path):
    of = frames(trial(10, 0.99))
    written(tmp_path, of)
    shown = text(_influence_sections.sections(run, tmp_path))
    assert "The credit asks what the text did in its own steps" in shown
    assert "The influence asks what would have been without it" in shown
    for row in of["influence_texts"].iter_rows(named=True):
        places = rf"{row['influence place']} {row['credit place']}"
        assert re.search(rf" {row['effect']} {row['datum']} \S+ \S+ {places} ", shown), row["datum"]


def test_a_words_colour_is_the_influence_of_predicting_it(run):
    tokens, targets = run.data
    row: dict[str, Any] = {
        "datum": 3,
        "by position": [0.5, -1.0, 0.0, 0.25, 0.0, 1e-9],
        "steps": [61, 85],
        "epochs": [3, 4],
    }
    row |= {"by visit": [0.25, -0.5], "influence": -0.25, "credit": 0.5}
    row |= {"influence place": 2, "credit place": 30, "data": 30}
    excerpt = _influence_sections._excerpt(run, row)
    assert [word.text for word in excerpt.words] == PLANTED.vocab.decode([int(tokens[3][0]), *targets[3].tolist()])
    assert [word.value for word in excerpt.words] == [0.0, *row["by position"]]
    assert Markup(excerpt.source).striptags() == (
        "datum 3: influence −0.250, credit 0.500; place 2, by credit 30, of 30; "
        "step 61 (epoch 3): 0.250, step 85 (epoch 4): −0.500"
    )


def test_the_figure_has_each_probes_growth_on_a_logarithmic_scale():
    courses = pl.concat([frames(growth=g, probe=name)["influence_courses"] for g, name in ((100.0, "a"), (3.0, "b"))])
    [axes] = _influence_sections.growth_figure(courses).axes
    lines = [xy for xy in (np.asarray(line.get_xydata()) for line in axes.lines) if len(xy) == S]
    assert [xy[0, 1] for xy in lines] == pytest.approx([2.0, math.log10(3.0)])
    assert [xy[0, 0] for xy in lines] == [60, 60]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert "1" in labels and "100" in labels
