"""Banks and judgements as a command: nothing is retrained twice, and tables hold the library's own numbers."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import credit, keys, optim, records, training, units
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import judge  # noqa: E402
import judge_scores  # noqa: E402

PROBES = ("loss", "bigram:c00 c01")
HORIZONS = (2, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    optimizer = optim.adamw(betas=(0.8, 0.9), weight_decay=0.1)
    recipe = Recipe(context=8, batch_size=4, n_steps=9, lr=0.01, optimizer=optimizer)
    model = transformer(Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1))
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=4), model=model)


def settings(run, out, **given):
    own: dict[str, Any] = {
        "steps": 4,
        "horizons": HORIZONS,
        "draws": 5,
        "share": 0.2,
        "probe": PROBES,
        "texts": 3,
        "nodes": 1,
    }
    return judge.Settings(run.path, 4, out, **(own | given))


@pytest.fixture(scope="module")
def asked(run, tmp_path_factory):
    """Settings whose work is done, once."""
    found = settings(run, tmp_path_factory.mktemp("out"), taken=(0.5,))
    judge.main(found)
    return found


def bank(out, **like):
    [path] = [p for p in out.glob("bank-*.parquet") if ("taken" in p.stem) == like.get("taken", False)]
    return results.read_table(out, path.stem, tables.BANK)


def drawn(run, kind="subset", draws=5):
    window = credit.window(run, 4, 4)
    datum, key = credit.window_data(window), keys.Key(0, ("judge",))
    removed = [credit.draw_removal(datum, kind, draw, share=0.2, key=key) for draw in range(draws)]
    return window, torch.stack(removed)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"probe": ("nonsense",)}, "names no probe; forms are"),
        ({"steps": 6}, "steps 4 to 10 were asked for"),
        ({"horizons": (5,)}, "horizon is 5; the Window of steps 4 to 8 has 4 steps"),
        ({"draws": 0}, "draws is 0"),
        ({"draws": 17, "kind": "visit"}, "draw 16 of a visit was asked for; these steps have 16"),
        ({"share": 0.0}, "share is 0.0; it must be between 0 and 1"),
        ({"scores": ("credits",)}, "'credits' is no score; there are influence, fisher"),
        ({"taken": (1.5,)}, "--taken is 1.5; parts of a weight are between 0 and 1"),
        ({"queries": 10**6}, "--queries is 1000000, and the validation part has"),
        ({"nodes": 0}, "--nodes is 0"),
    ],
)
def test_arguments_are_checked_before_any_work(run, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        judge.main(settings(run, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_the_bank_holds_the_librarys_retrainings(run, asked):
    window, removed = drawn(run)
    followed = [credit.parse_probe(name, run, key=keys.Key(0, ("ledger",)), n=3) for name in PROBES]
    found = bank(asked.out)
    assert len(found) == 6 * len(HORIZONS) * len(PROBES)
    for draw in (None, 0, 3):
        without = None if draw is None else removed[draw]
        for h in HORIZONS:
            part = None if without is None else without[:h]
            values = credit.probe_values(followed, credit.retrain(window._replace(stop=4 + h), part).params)
            rows = found.filter(pl.col("draw").eq_missing(draw) & (pl.col("horizon") == h))
            assert dict(rows.select("measured", "value").rows()) == values
            assert set(rows["count"]) == {0 if part is None else int(part.sum())}


def test_half_the_weight_taken_is_a_bank_of_its_own_with_the_same_intact_training(run, asked):
    window, removed = drawn(run)
    followed = [credit.parse_probe(name, run, key=keys.Key(0, ("ledger",)), n=3) for name in PROBES]
    found, whole = bank(asked.out, taken=True), bank(asked.out)
    assert found.filter(pl.col("draw").is_null()).equals(whole.filter(pl.col("draw").is_null()))
    values = credit.horizon_values(window, followed, HORIZONS, weights=1 - 0.5 * removed[1].float())
    assert found.filter(pl.col("draw") == 1)["value"].to_list() == values.flatten().tolist()


def test_the_judgement_is_the_librarys(run, asked):
    window, removed = drawn(run)
    followed = [credit.parse_probe(name, run, key=keys.Key(0, ("ledger",)), n=3) for name in PROBES]
    whole = tables.bank_of(bank(asked.out), removed, HORIZONS, PROBES)
    judged = results.read_table(asked.out, "judge", tables.JUDGED)
    assert len(judged) == 2 * len(PROBES) * len(HORIZONS) * len(judge_scores.SCORES)
    key = keys.Key(0, ("judge", "bootstrap"))
    for h in HORIZONS:
        scores = credit.window_influences(window._replace(stop=4 + h), followed).scores()
        for i, name in enumerate(PROBES):
            (expected,) = credit.judge(whole.of([i]), h, {"influence": scores[[i]]}, key=key)
            [row] = judged.filter(
                (pl.col("measured") == name)
                & (pl.col("horizon") == h)
                & (pl.col("score") == "influence")
                & (pl.col("taken") == 1)
            ).rows(named=True)
            for column in ("rank", "linear", "slope"):
                of = getattr(expected, column)
                assert [row[column], row[f"{column} low"], row[f"{column} high"]] == pytest.approx(of[:3], rel=1e-4)
            assert (row["start"], row["stop"], row["kind"], row["share"]) == (4, 8, "subset", 0.2)
            assert row["removals"] == 5 and row["behind"] == 0
    horizons = results.read_table(asked.out, "judge_horizons", tables.JUDGED_HORIZONS)
    smooth = credit.metasmoothness(window, HORIZONS, key=keys.Key(0, ("metasmoothness",)))
    assert (
        horizons.filter((pl.col("measured") == "loss") & (pl.col("taken") == 1))["metasmoothness"].to_list() == smooth
    )
    reaches = results.read_table(asked.out, "judge_reaches", tables.REACHES)
    assert len(reaches) == 2 * len(PROBES) * len(judge_scores.SCORES) and set(reaches["last"]) == {4}


def test_every_score_is_the_librarys(run, asked):
    job = judge.prepare(replace(asked, draws=4), run)
    about = {"texts": 3, "seed": 0}
    whole = judge_scores.Asked(job.work, job.window, job.followed, about, {}, 1, 0)
    moves = list(training.moves(*_of(job.window), state=job.window.state, captured=units.EVERY, start=4, stop=8))
    amounts = [credit.datum_amounts(move, job.followed, 1, at_start=True) for move in moves]
    for h in HORIZONS:
        found = {name: score(whole, h) for name, score in judge_scores.SCORES.items()}
        assert {tuple(x.shape) for x in found.values()} == {(2, h, 4)}
        for name in ("credit", "marginal", "at_start"):
            expected = torch.stack([getattr(one, name) for one in amounts[:h]], 1)
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-9)
        norm = torch.stack([one.norm for one in amounts[:h]])
        torch.testing.assert_close(found["norm"], torch.stack([-norm, norm]), rtol=1e-5, atol=1e-9)
        window = job.window._replace(stop=4 + h)
        fisher = credit.window_influences(window, job.followed, curvature="fisher").scores()
        torch.testing.assert_close(found["fisher"], fisher, rtol=1e-4, atol=1e-9)
        assert not torch.equal(found["fisher"], found["influence"])
        last = found["lifetime"][:, -1], found["credit"][:, -1]  # nothing is left to be carried
        torch.testing.assert_close(*last, rtol=1e-4, atol=1e-8)
    assert torch.equal(judge_scores.SCORES["random"](whole, 4)[:, :2], judge_scores.SCORES["random"](whole, 2))


def _of(window):
    return window.graph, window.params, window.data, window.recipe


class Counted:
    """``credit.horizon_values`` that counts its calls, and is interrupted before one."""

    def __init__(self, monkeypatch, stops=None):
        self.calls, self.stops, self.true = 0, stops, credit.horizon_values
        monkeypatch.setattr(credit, "horizon_values", self)

    def __call__(self, *args, **kwargs):
        if self.calls == self.stops:
            raise KeyboardInterrupt
        self.calls += 1
        return self.true(*args, **kwargs)


def test_interrupted_it_goes_on_and_more_draws_are_added(run, asked, tmp_path, monkeypatch):
    given = settings(run, tmp_path, only_retrain=True)
    with monkeypatch.context() as patch:
        stopped = Counted(patch, stops=3)
        with pytest.raises(KeyboardInterrupt):
            judge.main(given)
        assert stopped.calls == 3 and len(bank(tmp_path)) == 3 * 4
    with monkeypatch.context() as patch:
        rest = Counted(patch)
        judge.main(given)
        assert rest.calls == 3 and bank(tmp_path).equals(bank(asked.out))
        judge.main(replace(given, draws=7))
        assert rest.calls == 5
        judge.main(replace(given, draws=7, probe=("loss",), horizons=(4,)))  # a part of what is there
        assert rest.calls == 5 and len(bank(tmp_path)) == 8 * 4
        judge.main(replace(given, draws=2, horizons=(3,)))  # one more horizon, for two draws and the intact
        assert rest.calls == 8
    assert not list(tmp_path.glob("judge*"))


def test_done_it_does_nothing_and_a_retraining_is_of_its_own_probes(run, asked, monkeypatch, capsys):
    monkeypatch.setattr(credit, "horizon_values", None)
    monkeypatch.setattr(records.Run, "moves", None)
    judge.main(asked)
    assert "done before" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["visit", "datum"])
def test_single_visits_and_queries_are_judged_together(run, tmp_path, kind, capsys):
    given = settings(run, tmp_path, kind=kind, probe=(), queries=3, draws=12, scores=("influence", "credit", "random"))
    judge.main(given)
    judged = results.read_table(tmp_path, "judge", tables.JUDGED)
    assert set(judged["measured"]) == {"mean of 3 queries"} and set(judged["share"]) == {None}
    seen = {h: int((drawn(run, kind, 12)[1][:, :h]).flatten(1).any(1).sum()) for h in HORIZONS}
    assert {row["horizon"]: row["removals"] for row in judged.iter_rows(named=True)} == seen
    [order] = [keys.permutation(len(run.split("valid").tokens), key=keys.Key(0, ("ledger",)))[:3].tolist()]
    names = [f"loss of {datum}" for datum in order]
    whole = tables.bank_of(bank(tmp_path), drawn(run, kind, 12)[1], HORIZONS, names)
    job = judge.prepare(given, run)
    scores = credit.window_influences(job.window, job.followed).scores()
    (expected,) = credit.judge(whole, 4, {"influence": scores}, key=keys.Key(0, ("judge", "bootstrap")))
    [found] = judged.filter((pl.col("score") == "influence") & (pl.col("horizon") == 4)).rows(named=True)
    for column in ("rank", "linear", "slope"):
        own = [found[name] for name in (column, f"{column} low", f"{column} high")]
        assert own == pytest.approx(getattr(expected, column)[:3], rel=1e-3)
    each = [
        credit.judge(whole.of([i]), 4, {"influence": scores[[i]]}, key=0, resamples=1)[0].rank.value for i in range(3)
    ]
    assert found["rank"] == pytest.approx(sum(each) / 3) and len(set(each)) > 1
    assert set(bank(tmp_path)["measured"]) == set(names)
    assert len(results.read_table(tmp_path, "judge_reaches", tables.REACHES)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "mean of 3 queries, 100% of the weight taken: rank, size, and how far behind influence" in said
