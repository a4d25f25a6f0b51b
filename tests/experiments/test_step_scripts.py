"""Norms, directions, phases and retrain as commands: checked before any work, rows added, none replaced."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import credit, keys, per_example, records, text
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import directions  # noqa: E402
import norms  # noqa: E402
import phases  # noqa: E402
import retrain  # noqa: E402

CONFIG = Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1)
RECIPE, RECORDING = Recipe(context=8, batch_size=4, n_steps=16), Recording(k=5, snapshot_every=4)
SHORT: dict[str, Any] = {"window": 2, "every": 1, "texts": 4, "common": 10}
FEW: dict[str, Any] = {"steps": 3, "shares": (0.25,), "draws": 2, "texts": 2, "others": 3, "tail_draws": 2, "nodes": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, RECORDING, model=transformer(CONFIG))


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """A run that captured the embedding and layer norms only."""
    recording = replace(RECORDING, units=("embedding.weight", "layers.0.norm1.*"))
    path, recipe = tmp_path_factory.mktemp("runs") / "odd", replace(RECIPE, n_steps=8)
    return recorded(path, recipe, recording, model=transformer(CONFIG))


def files(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize(
    "script, given, message",
    [
        (norms, {"start": 16}, "steps 16 to 16 were asked for; .* has 16 recorded steps"),
        (norms, {"stop": 17}, "steps 0 to 17 were asked for"),
        (directions, {"stop": 17}, "steps 0 to 17 were asked for"),
        (directions, {"pairs": 9}, "r is 9; layers.0.self_attn.in_proj_weight of shape .24, 8. has 1 to 8"),
        (directions, {"pairs": 0}, "r is 0; it must be at least 1"),
        (directions, {"units": ("layers.7.*",)}, "no parameter is called 'layers.7"),
        (directions, {"units": ("*norm*",)}, "the matrix of a linear map; any unit of the model can be looked at"),
        (retrain, {"start": 5}, "no snapshot before step 5; it has them before 0, 4, 8, 12, 16"),
        (retrain, {"start": 12, "steps": 5}, "steps 12 to 17 were asked for"),
        (retrain, {"start": 4, "shares": (0.5, 1.0)}, "share is 1.0; it must be between 0 and 1"),
        (retrain, {"start": 4, "shares": (0.1, 0.6)}, "shares names 0.6; at most 0.5, as so many others"),
        (retrain, {"start": 4, "shares": ()}, "shares is empty"),
        (retrain, {"start": 4, "stances": ()}, "stances is empty; name for, against, or both"),
        (retrain, {"start": 4, "scores": ()}, "scores is empty"),
        (retrain, {"start": 4, "without": (10**6,)}, "datum 1000000, which none of the steps of the Window of steps 4"),
        (retrain, {"start": 4, "draws": -1}, "draws is -1; it must be at least 0"),
        (retrain, {"start": 4, "nodes": 0}, "nodes is 0; it must be at least 1"),
        (retrain, {"start": 4, "texts": 10**4}, "texts is 10000, and the validation part has .* none is left"),
        (retrain, {"start": 4, "probe": ("bigram:The file",)}, "is not among the 149 tokens"),
    ],
)
def test_arguments_are_checked_before_any_work(run, tmp_path, script, given, message):
    start = {"start": 4, **FEW} if script is retrain else {}
    with pytest.raises((ValueError, KeyError), match=message):
        script.main(script.Settings(run.path, out=tmp_path / "out", **{**start, **given}))
    assert files(tmp_path / "out") == set()


# ---- norms


def test_norms_of_the_whole_run_are_what_skill_reads(run, tmp_path):
    norms.main(norms.Settings(run.path, out=tmp_path, axis="both"))
    *_, growth = credit.norms(run, ("in", "out"))
    for name, field in (("norms", "target"), ("norms_first_order", "linear")):
        arrays = results.read_arrays(tmp_path, name)
        assert list(arrays) == sorted(run.shapes)
        for unit, part in growth["in"].by_unit().items():
            assert torch.equal(arrays[unit], getattr(part, field).T.float())
    units = results.read_table(tmp_path, "norms_units", tables.NORM_UNITS)
    assert units["axis"].to_list() == ["in"] * len(run.shapes) + ["out"] * len(run.shapes)
    neurons = results.read_table(tmp_path, "norms_neurons", tables.NORM_NEURONS)
    assert set(neurons["neuron"].str.ends_with(":out")) == {True, False}
    assert {"norms.json", "norms-rows.json"} <= files(tmp_path)


def test_norms_of_some_steps_stand_beside_those_of_the_whole_run(run, tmp_path):
    norms.main(norms.Settings(run.path, out=tmp_path))
    whole = results.read_table(tmp_path, "norms_tokens")
    arrays = (tmp_path / "norms.safetensors").read_bytes()
    norms.main(norms.Settings(run.path, out=tmp_path, stop=2))
    norms.main(norms.Settings(run.path, out=tmp_path, start=3, stop=5))
    norms.main(norms.Settings(run.path, out=tmp_path, start=3, stop=5, axis="both"))  # of which the columns are done
    tokens = results.read_table(tmp_path, "norms_tokens", tables.NORM_TOKENS)
    assert tokens[: len(whole)].equals(whole) and set(tokens["to"]) == {16, 2, 5}
    assert (tmp_path / "norms.safetensors").read_bytes() == arrays
    assert {"norms-3-5.safetensors", "norms_first_order-3-5.safetensors", "norms-3-5.json"} <= files(tmp_path)
    units = results.read_table(tmp_path, "norms_units").filter(pl.col("from") == 3)
    assert units["axis"].to_list() == ["in"] * len(run.shapes) + ["out"] * len(run.shapes)


def test_what_is_done_is_not_done_again(run, tmp_path, monkeypatch):
    norms.main(norms.Settings(run.path, out=tmp_path, stop=2))
    directions.main(directions.Settings(run.path, out=tmp_path, stop=2, pairs=1))
    monkeypatch.setattr(credit, "norms", None)
    monkeypatch.setattr(credit, "directions", None)
    norms.main(norms.Settings(run.path, out=tmp_path, stop=2))
    directions.main(directions.Settings(run.path, out=tmp_path, stop=2, pairs=1))
    with pytest.raises(TypeError):
        norms.main(norms.Settings(run.path, out=tmp_path, stop=3))
    with pytest.raises(TypeError):
        directions.main(directions.Settings(run.path, out=tmp_path, stop=2, pairs=2))


# ---- directions


def test_directions_of_some_steps_are_added_and_units_of_no_linear_map_left_out(run, odd_run, tmp_path, capsys):
    directions.main(directions.Settings(run.path, out=tmp_path, pairs=2, stop=4))
    directions.main(directions.Settings(run.path, out=tmp_path, pairs=1, start=4, stop=8, units=("layers.0.linear*",)))
    assert (
        "left out, no matrices of linear maps: layers.0.linear1.bias, layers.0.linear2.bias" in capsys.readouterr().out
    )
    found = results.read_table(tmp_path, "directions", tables.DIRECTIONS)
    assert len(found) == 2 * 3 * len(run.shapes) + 1 * 3 * 2
    assert set(found.filter(pl.col("from") == 4)["unit"]) == {"layers.0.linear1.weight", "layers.0.linear2.weight"}
    before, after = run.params(4), run.params(8)
    change = after["layers.0.linear1.weight"] - before["layers.0.linear1.weight"]
    at = (pl.col("from") == 4) & (pl.col("unit") == "layers.0.linear1.weight") & (pl.col("kind") == "singular")
    assert found.filter(at)["change"][0] == pytest.approx(float(torch.linalg.svdvals(change)[0]), rel=1e-4)
    with pytest.raises(ValueError, match="none of embedding.weight, layers.0.norm1.weight, layers.0.norm1.bias is"):
        directions.main(directions.Settings(odd_run.path, out=tmp_path, pairs=1))
    norms.main(norms.Settings(odd_run.path, out=tmp_path / "odd", stop=2))  # neurons are those of the layers


# ---- phases


@pytest.mark.parametrize(
    "given, message",
    [
        ({"window": 5}, "16 steps make 3 windows of 5, and phases take at least 4: --window 4 would do"),
        ({"window": 50, "every": 10}, "16 steps make 0 windows of 50, .* --window 4 and --every 4 would do"),
        ({"window": 2, "every": 3}, "every is 3; it must be at most the window, 2 steps"),
        ({"stop": 3, "window": 1}, "at least 4 steps are needed"),
        ({"window": 0}, "window is 0"),
        ({"texts": 0}, "texts is 0"),
        ({"snapshots": 3}, "snapshots is 3; it must be at least 4"),
        ({"common": 10**4}, "common is 10000; it must be from 1 to V"),
        ({"stop": 17}, "steps 0 to 17 were asked for"),
    ],
)
def test_phases_are_checked_before_the_replay(run, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        phases.main(phases.Settings((run.path,), out=tmp_path / "out", **{**SHORT, **given}))
    assert files(tmp_path / "out") == set()


def test_runs_of_one_name_are_told_apart_and_other_texts_refused(run, tmp_path):
    with pytest.raises(ValueError, match="no run is given"):
        phases.main(phases.Settings((), out=tmp_path))
    with pytest.raises(ValueError, match="is given 2 times"):
        phases.main(phases.Settings((run.path, run.path), out=tmp_path))
    backwards = text.Corpus("backwards", PLANTED.vocab, PLANTED.train.flip(0), PLANTED.valid, PLANTED.test)
    other = recorded(tmp_path / "other", RECIPE, RECORDING, backwards, transformer(CONFIG))
    with pytest.raises(ValueError, match="was trained on another text than"):
        phases.main(phases.Settings((run.path, other.path), out=tmp_path / "out", **SHORT))
    for seed in (0, 1):
        shutil.copytree(run.path, tmp_path / f"seed{seed}" / "run")
    paths = tuple(tmp_path / f"seed{seed}" / "run" for seed in (0, 1))
    phases.main(phases.Settings(paths, out=tmp_path / "out", **SHORT))
    for name in (
        "windows",
        "changes",
        "segments",
        "makers",
        "models",
        "coincidence",
        "snapshots",
        "answers",
        "courses",
    ):
        table = results.read_table(tmp_path / "out", f"phases_{name}", tables.PHASE_TABLES[name])
        assert set(table["run"]) <= {"seed0/run", "seed1/run"}
        one, two = (table.filter(pl.col("run") == f"seed{i}/run").drop("run") for i in (0, 1))
        assert one.equals(two)
    seeds = results.read_table(tmp_path / "out", "phases_seeds", tables.SEEDS)
    assert seeds["runs"].to_list() == [["seed0/run", "seed1/run"]] * 2
    assert {"phases_losses.svg", "phases_steps.svg"} <= files(tmp_path / "out")
    phases.main(phases.Settings(paths[:1], out=tmp_path / "out", **{**SHORT, "window": 4}))
    windows = results.read_table(tmp_path / "out", "phases_windows", tables.WINDOWS)
    assert set(windows["run"]) == {"seed0/run", "seed1/run", "run"}  # another's rows are never replaced


def test_what_was_measured_is_read_and_a_shorter_span_takes_its_part(run, tmp_path):
    path = shutil.copytree(run.path, tmp_path / "run")
    phases.main(phases.Settings((path,), out=tmp_path / "whole", **SHORT))
    phases.main(phases.Settings((path,), out=tmp_path / "half", stop=8, **SHORT))
    whole, half = (results.read_table(tmp_path / name, "phases_windows") for name in ("whole", "half"))
    assert set(half["step"]) == {0, 2, 4, 6} and whole.filter(pl.col("step") < 8).equals(half)


# ---- retrain


def test_retraining_goes_on_where_it_stopped_and_adds(run, tmp_path, monkeypatch):
    made, retrained = [], credit.retrain

    def counted(window, removed=None):
        made.append(removed)
        return retrained(window, removed)

    monkeypatch.setattr(credit, "retrain", counted)
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **FEW))
    assert len(made) == 1 + 6  # intact; credit, norm, two draws and two of equal norm
    effects = results.read_table(tmp_path, "retrain", tables.REMOVALS)
    matched = "random, equal norm: credit, loss"
    assert effects["score"].to_list() == ["credit, loss", "norm", "random", matched] * 2
    assert set(effects["measured"]) == {"loss", "loss, other texts"} and set(effects["to"]) == {7}
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **FEW))
    assert len(made) == 7  # done before
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **{**FEW, "shares": (0.25, 0.5), "draws": 3}))
    assert len(made) == 7 + 1 + (2 + 8)  # intact; third draws, and the other share
    more = results.read_table(tmp_path, "retrain", tables.REMOVALS)
    assert len(more) == 2 * len(effects)
    retrain.main(retrain.Settings(run.path, 8, out=tmp_path, **{**FEW, "probe": ("bigram:c00 c01",)}))
    last = results.read_table(tmp_path, "retrain", tables.REMOVALS)
    assert set(last["from"]) == {4, 8} and last.filter(pl.col("from") == 4).equals(more)
    assert set(last.filter(pl.col("from") == 8)["measured"]) == {"bigram:c00 c01", "loss, other texts"}


def test_data_are_removed_by_their_influence_and_at_random_among_those_with_a_word(run, tmp_path):
    scores = ("credit", "influence")
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **{**FEW, "scores": scores, "among": "c00"}))
    effects = results.read_table(tmp_path, "retrain", tables.REMOVALS)
    assert (
        effects["score"].to_list()
        == [
            *("credit, loss", "influence, loss", "norm", "random", "random, with c00"),
            *("random, equal norm: credit, loss", "random, equal norm: influence, loss"),
        ]
        * 2
    )
    (followed, _), window = (
        retrain.probes_of(retrain.Settings(run.path, 4, **FEW), run, ["loss"]),
        credit.window(run, 4, 3),
    )
    found = credit.window_influences(window, [followed])
    removed = credit.top_mask(-found.scores()[0], 0.25)  # to help is to lower a loss
    [row] = effects.filter((pl.col("measured") == "loss") & (pl.col("score") == "influence, loss")).iter_rows(
        named=True
    )
    assert row["by influence"] == pytest.approx(-float(found.scores()[0][removed].sum()), rel=1e-5)
    has_word = retrain.has_token(run, "c00")
    words = [{*tokens.tolist(), *targets.tolist()} for tokens, targets in zip(*run.data, strict=True)]
    assert has_word.tolist() == [run.corpus.vocab.index("c00") in each for each in words]


def test_data_are_removed_by_what_they_lived_to_do_and_by_what_worked_against_a_number(run, tmp_path):
    given = {**FEW, "scores": ("credit", "lifetime"), "stances": ("for", "against"), "probe": ("bigram:c00 c01",)}
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **given))
    found = results.read_table(tmp_path, "retrain", tables.REMOVALS).filter(pl.col("measured") == "bigram:c00 c01")
    effects = dict(found.select("score", "effect").iter_rows())
    [probe, _] = retrain.probes_of(retrain.Settings(run.path, 4, **given), run, ["bigram:c00 c01"])
    lived, window = credit.split_lifetimes(list(run.moves(4, 7, ("*",))), [probe], 1), credit.window(run, 4, 3)
    intact = float(probe.value(credit.retrain(window).params))
    for kind, amount in (("credit", lived.present), ("lifetime", lived.lifetime)):
        for word, sign in (("", 1), (" against", -1)):
            removed = credit.top_mask(sign * amount[:, 0].sum(-1), 0.25)
            effect = float(probe.value(credit.retrain(window, removed).params)) - intact
            assert effects[f"{kind}{word}, bigram:c00 c01"] == pytest.approx(effect, abs=1e-6)


def test_every_removal_stands_beside_every_pool_of_random_ones(run, tmp_path):
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **{**FEW, "among": "c00"}))
    found = results.read_table(tmp_path, "retrain_controls", tables.REMOVAL_CONTROLS)
    found = found.filter(pl.col("measured") == "loss")
    pools = ("random", "random, with c00")
    assert found.select("score", "control").rows() == [
        *(("credit, loss", control) for control in (*pools, "random, equal norm")),
        *(("norm", control) for control in pools),
    ]
    means = dict(
        results.read_table(tmp_path, "retrain", tables.REMOVALS).filter(measured="loss")["score", "effect"].rows()
    )
    assert found.filter(control="random")["mean"].unique().to_list() == [pytest.approx(means["random"])]
    assert found["mean"][2] == pytest.approx(means["random, equal norm: credit, loss"])
    assert found["norm"][3] > found["norm"][0]  # the largest are larger than the credited


def test_other_texts_are_those_after_the_probes_own(run):
    loss, others = retrain.probes_of(retrain.Settings(run.path, 4, **FEW), run, ["loss"])
    data, params = run.split("valid"), run.params(4)
    drawn = keys.permutation(len(data.tokens), key=keys.Key(0, ("ledger",)))
    for probe, ids in ((loss, drawn[:2]), (others, drawn[2:5])):
        value = per_example.losses(run.graph, params, data.tokens[ids], data.targets[ids]).mean()
        assert float(probe.value(params)) == pytest.approx(float(value), rel=1e-5)


def test_data_that_are_named_are_left_out_wherever_they_occur(run, tmp_path):
    datum = torch.stack([record.datum for record in records.scan(run, 4, 7)])
    named = (int(datum[2, 1]), int(datum[0, 3]))
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **{**FEW, "shares": (), "without": named}))
    found = results.read_table(tmp_path, "retrain", tables.REMOVALS)
    name = f"without {min(named)}, {max(named)}"
    assert found["score"].to_list() == [name, "random", f"random, equal norm: {name}"] * 2
    assert set(found["count"]) == {2}
    window, removed = credit.window(run, 4, 3), (datum == named[0]) | (datum == named[1])
    *_, others = retrain.probes_of(retrain.Settings(run.path, 4, **FEW), run, ["loss"])
    ends = [credit.retrain(window, left_out).params for left_out in (None, removed)]
    effect = float(others.value(ends[1]) - others.value(ends[0]))
    [row] = found.filter((pl.col("measured") == others.name) & (pl.col("score") == name)).iter_rows(named=True)
    assert row["effect"] == pytest.approx(effect, abs=1e-6)


def test_many_data_that_are_named_have_a_short_name_of_their_own():
    names = [retrain._named(list(range(first, first + 30))) for first in (0, 1)]
    assert len({*names}) == 2 and all(name.startswith("without 30 data, ") for name in names)


def test_a_removals_effect_is_that_of_the_retrained_weights(run, tmp_path):
    retrain.main(retrain.Settings(run.path, 4, out=tmp_path, **FEW))
    settings = retrain.Settings(run.path, 4, **FEW)
    *_, others = retrain.probes_of(settings, run, ["loss"])
    window = credit.window(run, 4, 3)
    norms_ = torch.stack([credit.datum_amounts(move, [others], 1).norm for move in run.moves(4, 7, ("*",))])
    removed = credit.top_mask(norms_, 0.25)
    intact, without = credit.retrain(window).params, credit.retrain(window, removed).params
    effect = float(others.value(without) - others.value(intact))
    found = results.read_table(tmp_path, "retrain", tables.REMOVALS)
    [row] = found.filter((pl.col("measured") == others.name) & (pl.col("score") == "norm")).iter_rows(named=True)
    assert row["effect"] == pytest.approx(effect, abs=1e-6) and row["count"] == int(removed.sum()) == 3
    change = float(others.value(intact) - others.value(run.params(4)))
    assert row["of the change"] == pytest.approx(effect / change, rel=1e-3)
    assert row["by credit"] is None  # nothing is predicted of texts that the ledger did not follow
    tail = results.read_table(tmp_path, "retrain_tail", tables.PATCHES)
    assert {"highest credit, loss", "lowest credit, loss", "highest norm", "lowest norm", "random"} == set(
        tail["score"]
    )
