"""What a page says of which scores foretell what a datum changed: the numbers of the tables, and a sentence of each."""

import html
import math
import re

import numpy as np
import polars as pl
import pytest
import torch
from run_builders import recorded

from devinterp_func import credit, keys, show
from devinterp_func.credit import Bank
from devinterp_func.records import Recording
from devinterp_func.show import _judge_sections, page, results, tables
from devinterp_func.show._written import formatter
from devinterp_func.training import Recipe

HORIZONS = (3, 10, 30)
S, N, D = 30, 4, 60
KEY = tables.JudgeKey(60, 90, "subset", 0.05, 1.0, 20, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", Recipe(context=6, batch_size=4, n_steps=2), Recording(k=5))


def judged(noise, probe="loss", key=KEY, others=(), growth=True, draws=D, seed=0):
    """Tables of a bank whose effects are what the score foretells, and so much noise at each horizon."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, S, N, generator=rng, dtype=torch.float64)
    removed = torch.rand(draws, S, N, generator=rng) < 0.2
    predicted = torch.stack([credit.predicted_effects(scores, removed, h) for h in HORIZONS], 1)
    spread = torch.tensor(noise)[:, None] * predicted.std(0, correction=min(1, draws - 1))
    effect = predicted + spread * torch.randn(predicted.shape, generator=rng, dtype=torch.float64)
    bank = Bank(HORIZONS, removed, torch.tensor([[5.0], [4.0], [3.0]], dtype=torch.float64), effect)
    own = {"influence": scores}
    own |= {name: scores + by * torch.randn(scores.shape, generator=rng, dtype=torch.float64) for name, by in others}
    found = pl.concat([tables.judged_frame(credit.judge(bank, h, own, key=0), key, probe) for h in HORIZONS])
    grown = dict(zip(HORIZONS, (1.5, 20.0, 400.0), strict=True)) if growth else {}
    smooth = tables.judged_horizon_frame(bank, torch.tensor([6.0]), (0.99, 0.875, 0.125), grown, key, probe)
    reaches = {name: credit.reach(bank, dict.fromkeys(HORIZONS, each), key=keys.Key(0)) for name, each in own.items()}
    reach = tables.reach_frame(reaches if key.kind == "subset" else {}, HORIZONS, key, probe)
    return {"judge": found, "judge_horizons": smooth, "judge_reaches": reach}


def written(folder, *several):
    for name in tables.JUDGE_TABLES:
        results.write_table(folder, name, pl.concat([of[name] for of in several]))


def text(sections):
    plain = re.sub(r"<svg.*?</svg>", " ", page.page("page", "of a run", sections), flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", plain)))


def said(of):
    return _judge_sections.verdict(of["judge"], of["judge_horizons"])


def row(of, horizon, score="influence"):
    return of["judge"].row(by_predicate=(pl.col("horizon") == horizon) & (pl.col("score") == score), named=True)


def interval(row, name, places=2):
    return f"{row[name]:.{places}f} [{row[f'{name} low']:.{places}f}, {row[f'{name} high']:.{places}f}]"


def test_without_tables_there_is_nothing(run, tmp_path):
    assert _judge_sections.sections(run, tmp_path) == []


def test_a_part_of_the_tables_names_the_script(run, tmp_path):
    results.write_table(tmp_path, "judge", judged((0.1, 0.1, 0.1))["judge"])
    with pytest.raises(results.Missing, match=r"judge\.py"):
        _judge_sections.sections(run, tmp_path)


def test_the_numbers_on_the_page_are_the_tables(run, tmp_path):
    of = judged((0.1, 0.5, 5.0), others=(("credit", 1.0), ("random", 30.0)))
    written(tmp_path, of)
    [section] = _judge_sections.sections(run, tmp_path)
    shown = text([section]).replace("−", "-")
    assert section.title == "Which amounts foretell what a datum changed"
    smooth = {one["horizon"]: one for one in of["judge_horizons"].iter_rows(named=True)}
    for one in of["judge"].iter_rows(named=True):
        one |= {name: smooth[one["horizon"]][name] for name in ("metasmoothness", "growth")}
        ends = [f"{name}{end}" for name in ("rank", "slope", "behind") for end in ("", " low", " high")]
        names = [*ends[:4], *ends[6:], "metasmoothness", "growth", *ends[4:6]]
        values = [formatter(str(_judge_sections.SHOWN.columns[name].format))(one[name]) for name in names] + [
            str(one["removals"])
        ]
        assert f"loss {one['horizon']} {one['score']} {' '.join(values)} ".replace("−", "-") in shown
    for one in of["judge_reaches"].iter_rows(named=True):
        reach = formatter(".3g")(one["reach"])
        assert f"loss {one['score']} {reach} " in shown


def test_each_span_has_its_own_sentence_and_figure(run, tmp_path):
    visits = KEY._replace(start=20, stop=50, kind="visit", share=None)
    half = KEY._replace(taken=0.25)
    several = [judged((0.1, 0.1, 0.1), probe=probe, key=key) for key in (KEY, half, visits) for probe in ("loss", "b")]
    written(tmp_path, *several)
    sections = _judge_sections.sections(run, tmp_path)
    shown = text(sections)
    for title in (
        "Steps 60 to 90 without random 5 % of all places",
        "Steps 60 to 90 without 25 % of the weight of random 5 % of all places",
        "Steps 20 to 50 without single visits",
    ):
        assert f"{title} (texts: 20 of each probe that takes some, seed 0). loss: over 30 steps" in shown
    assert page.page("page", "", sections).count("<svg") == 3 * 2  # each also for a phone
    for of in several:
        assert said(of) in shown


def test_the_sentence_tells_the_farthest_horizon_that_is_foretold_and_what_is_after():
    of = judged((0.1, 0.5, 30.0), others=(("credit", 2.0),))
    at, after, other = row(of, 10), row(of, 30), row(of, 10, "credit")
    assert at["rank low"] > 0.5 > max(row(of, 30, name)["rank low"] for name in ("influence", "credit"))
    best = max(after, row(of, 30, "credit"), key=lambda one: one["rank"])
    assert other["behind low"] > 0
    assert said(of) == (
        "loss: over 10 steps what data changed is foretold, best by influence, with a rank correlation of "
        f"{interval(at, 'rank')} and a slope of {interval(at, 'slope')} (next is credit, surely behind: by "
        f"{interval(other, 'behind')}), where the metasmoothness is 0.88, the growth 20.0; over 30 steps no score "
        f"surely does: {best['score']} has {interval(best, 'rank')}, where the metasmoothness is 0.12, the growth 400."
    )


def test_the_sentence_of_a_span_that_is_foretold_to_its_end():
    of = judged((0.1, 0.1, 0.1), growth=False)
    assert said(of).endswith(f"a slope of {interval(row(of, 30), 'slope')}, where the metasmoothness is 0.12.")


def test_another_score_that_is_best_is_held_against_influence():
    of = judged((0.1, 0.1, 2.0))
    swap = {"influence": "fisher", "worse": "influence"}
    of = judged((0.1, 0.1, 0.1), others=(("worse", 2.0),))
    names = of["judge"].with_columns(pl.col("score").replace(swap))
    gap = [f"behind{end}" for end in ("", " low", " high")]
    lead = {name: dict(names.filter(pl.col("score") == "influence").select("horizon", name).rows()) for name in gap}
    signed = {"behind": "behind", "behind low": "behind high", "behind high": "behind low"}
    fisher = names.filter(pl.col("score") == "fisher").with_columns(
        pl.Series(name, [-lead[signed[name]][h] for h in HORIZONS]) for name in gap
    )
    table = pl.concat([fisher, names.filter(pl.col("score") == "influence")])
    told = _judge_sections.verdict(table, of["judge_horizons"])
    influence = row({"judge": table}, 30)
    assert f"best by fisher, with a rank correlation of {interval(row(of, 30), 'rank')}" in told
    assert f"(ahead of influence, which has {interval(influence, 'rank')})" in told


def test_nothing_is_said_to_be_foretold_that_is_not():
    of = judged((30.0, 30.0, 30.0))
    assert row(of, 3)["rank low"] < 0.5
    assert said(of) == (
        "loss: no score surely foretells what data changed; over 3 steps influence comes nearest, with a rank "
        f"correlation of {interval(row(of, 3), 'rank')}, where the metasmoothness is 0.99, the growth 1.50."
    )
    assert said(judged((0.1, 0.1, 0.1), draws=1)).startswith("loss: too few trainings to tell")


def test_the_figure_has_a_panel_for_each_score_and_a_line_for_each_number():
    several = [judged((0.1, 0.5, 5.0), probe=name, others=(("credit", 1.0),), seed=i) for i, name in enumerate("ab")]
    whole, reaches = (pl.concat([of[name] for of in several]) for name in ("judge", "judge_reaches"))
    [figure] = _judge_sections.rank_figures(whole, reaches)
    for axes, score in zip(figure.axes, ("influence", "credit"), strict=True):
        assert axes.get_title(loc="left").strip() == score and axes.get_xscale() == "log"
        drawn = [xy for xy in (np.asarray(line.get_xydata()) for line in axes.lines) if len(xy) == len(HORIZONS)]
        for xy, of in zip(drawn, several, strict=True):
            assert xy[:, 1] == pytest.approx([row(of, h, score)["rank"] for h in HORIZONS])
            assert xy[:, 0] == pytest.approx(HORIZONS, rel=0.05)
        spans = [np.asarray(path.vertices)[:, 1] for lines in axes.collections for path in lines.get_paths()]
        ends = [[row(of, h, score)[f"rank {end}"] for end in ("low", "high")] for of in several for h in HORIZONS]
        assert np.stack(spans) == pytest.approx(np.array(ends))
    many = pl.concat([several[0]["judge"].with_columns(measured=pl.lit(f"n{i}")) for i in range(8)])
    assert len(_judge_sections.rank_figures(many, reaches)) == 2  # no two lines of a colour


def test_where_a_score_falls_stands_under_it():
    of = judged((0.1, 0.5, 30.0))
    [reach] = of["judge_reaches"]["reach"]
    assert 10 < reach < 30
    [figure] = _judge_sections.rank_figures(of["judge"], of["judge_reaches"])
    assert figure.axes[0].get_title(loc="left") == f"influence\nbelow 0.5 from {reach:,.0f} on"
    [last] = judged((0.1, 0.1, 0.1))["judge_reaches"].iter_rows(named=True)
    assert math.isinf(last["reach"]) and _judge_sections._remark(last) == "below 0.5 at none"
    [none] = judged((99.0, 99.0, 99.0))["judge_reaches"].iter_rows(named=True)
    assert none["reach"] == 0 and _judge_sections._remark(none) == "below 0.5 at 3"


def test_the_report_shows_it(run, tmp_path):
    written(tmp_path, judged((0.1, 0.1, 0.1)))
    shown = show.report(run, tmp_path)
    assert re.search(r"<h2>.*Which amounts foretell what a datum changed</h2>", shown)
