"""A run of texts that repeat themselves: recorded, read by place, and retrained without them."""

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import credit, keys, records, text
from devinterp_func.credit import Entries
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import capture  # noqa: E402
import ledger  # noqa: E402
import presets  # noqa: E402
import repeats  # noqa: E402
import retrain  # noqa: E402

CONFIG = Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1)
RECIPE, RECORDING = Recipe(context=8, batch_size=4, n_steps=12), Recording(k=5, snapshot_every=4)
HEAD = "head:0.1 induction"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "plain", RECIPE, RECORDING, model=transformer(CONFIG))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "repeated"
    for _ in records.record(path, text.repeated(PLANTED, 8, 0.5, key=0), transformer(CONFIG), RECIPE, RECORDING):
        pass
    return records.open(path)


def test_a_run_keeps_the_texts_that_were_made_to_repeat(tmp_path, monkeypatch):
    sizes = {"d_model": 8, "n_heads": 2, "d_hidden": 6, "n_layers": 1}
    monkeypatch.setitem(presets.PRESETS, "demo", (sizes, Recipe(context=10, batch_size=4, epochs=1), Recording(k=5)))
    given: dict[str, Any] = {"corpus": "planted", "steps": 2, "repeated": 0.25}
    for seed in (0, 1):
        capture.main(capture.Settings(**given, seed=seed, out=tmp_path / str(seed)))
    expected = text.repeated(text.load("planted"), 10, 0.25, key=0)
    for seed in (0, 1):  # of order and weights alone
        found = records.open(tmp_path / str(seed))
        assert text.fingerprint(found.corpus) == text.fingerprint(expected)
        assert found.dataset.name == "planted, 25% repeated"
    capture.main(capture.Settings(**given, out=tmp_path / "0"))  # goes on
    with pytest.raises(records.RecordError, match="is another run"):
        capture.main(capture.Settings(**{**given, "repeated": 0.5}, out=tmp_path / "0"))
    with pytest.raises(ValueError, match="share is 2.0; it must be above 0 and at most 1"):
        capture.main(capture.Settings(**{**given, "repeated": 2.0}, out=tmp_path / "none"))


def test_losses_and_credits_are_split_by_text_and_place(run, tmp_path):
    ledger.main(ledger.Settings(run.path, out=tmp_path, probe=(HEAD, "loss"), texts=3, nodes=1, start=4, stop=8))
    given: dict[str, Any] = {"texts": 3, "nodes": 1, "start": 4, "stop": 8, "held_out": 5, "probe": (HEAD, "loss")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("devinterp_func.credit._ledger.split_change", None)  # the ledger that is there is read
        repeats.main(repeats.Settings(run.path, out=tmp_path, **given))
    losses = results.read_table(tmp_path, "repeat_losses", tables.REPEAT_LOSSES)
    assert losses["step"].unique().sort().to_list() == [0, 4, 8, 12]
    every = losses.filter(pl.col("place") == "all", pl.col("step") == 12)
    assert every["positions"].to_list() == [40, 40] and every["text"].to_list() == ["repeating", "other"]
    [own] = losses.filter(pl.col("step") == 12, text="repeating", place="all")["loss"].to_list()
    held_out = run.split("valid")
    order = keys.permutation(len(held_out.tokens), key=keys.Key(0, ("repeats",)))
    chosen = order[(text.period(held_out.tokens) > 0)[order]][:5]
    expected = credit.position_losses(run.graph, run.params(12), held_out.tokens[chosen], held_out.targets[chosen])
    assert own == pytest.approx(float(expected.mean()))
    [folder] = [path for path in tmp_path.glob("ledger-*") if path.is_dir()]
    found, table = (
        records.read_walk(folder, Entries),
        results.read_table(tmp_path, "repeat_credits", tables.REPEAT_CREDITS),
    )
    mine = (text.period(run.data.tokens) > 0)[found.datum]
    for i, probe in enumerate((HEAD, "loss")):
        part = table.filter(probe=probe)
        assert part.filter(place="all")["of positions"].sum() == pytest.approx(1)
        assert part.filter(pl.col("place") != "all")["of gross"].sum() == pytest.approx(1)
        [row] = part.filter(text="repeating", place="all").iter_rows(named=True)
        assert row["of positions"] == pytest.approx(float(mine.double().mean()))
        credits = found.credit[:, i]
        assert row["of gross"] == pytest.approx(float(credits[mine].abs().sum() / credits.abs().sum()))
        assert row["credit"] == pytest.approx(float(credits[mine].sum()))
    tokens, targets = (x[found.datum].flatten(0, 1) for x in run.data)
    again = (credit.place_kinds(tokens, targets) == 0).view(mine.shape + (8,)) & mine[..., None]
    [row] = table.filter(probe=HEAD, text="repeating", place="again").iter_rows(named=True)
    assert row["of positions"] == pytest.approx(float(again.double().mean()))
    assert (tmp_path / "repeat_losses.svg").exists()


def test_all_that_repeats_is_left_out_beside_as_many_of_all_of_others_and_shares_of_each(run, tmp_path):
    few: dict[str, Any] = {"texts": 2, "others": 3, "tail_draws": 0, "nodes": 1, "shares": (0.1,), "draws": 2}
    retrain.main(retrain.Settings(run.path, start=4, steps=4, out=tmp_path, **few, probe=(HEAD,), repeated=True))
    found = results.read_table(tmp_path, "retrain", tables.REMOVALS).filter(measured=HEAD)
    window = credit.window(run, 4, 4)
    datum = torch.stack([record.datum for record in records.scan(run, 4, 8)])
    mine = (text.period(run.data.tokens) > 0)[datum]
    [whole] = found.filter(score="all repeated").iter_rows(named=True)
    assert whole["count"] == int(mine.sum())
    probe = credit.parse_probe(HEAD, run, key=keys.Key(0, ("ledger",)), n=2)
    effect = probe.value(credit.retrain(window, mine).params) - probe.value(credit.retrain(window).params)
    assert whole["effect"] == pytest.approx(float(effect))
    [others] = found.filter(score="all not repeated").iter_rows(named=True)
    assert others["count"] == int((~mine).sum()) and others["effect"] != pytest.approx(whole["effect"])
    more = "random, not repeated" if others["count"] > whole["count"] else "random, repeated"
    unmatched = found.filter(~pl.col("score").str.starts_with(credit.EQUAL_NORM))
    beside = {name for row in (whole, others) for name in unmatched.filter(share=row["share"])["score"]}
    same = others["count"] == whole["count"]
    assert beside == {"all repeated", "all not repeated", "random"} | (set() if same else {more})
    assert {"random", "random, repeated", "random, not repeated"} <= set(found.filter(share=0.1)["score"])


@pytest.mark.parametrize("script", [repeats, retrain])
def test_a_run_without_such_texts_is_refused_before_any_work(plain, tmp_path, script):
    given: dict[str, Any] = {"start": 4, "steps": 4, "repeated": True} if script is retrain else {}
    with pytest.raises(ValueError, match="no train text repeats itself; record a run with capture.py --repeated 0.25"):
        script.main(script.Settings(plain.path, out=tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_what_is_done_is_not_done_again(run, tmp_path, monkeypatch):
    given: dict[str, Any] = {"out": tmp_path, "held_out": 2}
    repeats.main(repeats.Settings(run.path, **given))
    monkeypatch.setattr(credit, "position_losses", None)
    repeats.main(repeats.Settings(run.path, **given))
    assert not (tmp_path / "repeat_credits.parquet").exists()
    with pytest.raises(TypeError):
        repeats.main(repeats.Settings(run.path, **{**given, "held_out": 3}))
