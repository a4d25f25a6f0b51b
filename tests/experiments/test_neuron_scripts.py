"""Attribute, ablate, skill and activations as commands: checked before any work, rows added, none replaced."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import neurons, records, stats, text, units
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import _neuron_sections, _outlier_sections, page, results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import ablate  # noqa: E402
import activations  # noqa: E402
import attribute  # noqa: E402
import skill  # noqa: E402

CONFIG = Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=2)
STEPS = 300
FEW = dict(data=20, others=1, excerpts=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe, recording = Recipe(context=8, batch_size=8, n_steps=STEPS, epochs=9), Recording(k=20, snapshot_every=100)
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, recording, model=transformer(CONFIG))


@pytest.fixture(scope="module")
def attributed(run, tmp_path_factory):
    """Results of attribute.py."""
    return attribute.main(attribute.Settings(run.path, tmp_path_factory.mktemp("results"), parameters=20, neurons=2))


@pytest.fixture
def folder(attributed, tmp_path):
    """A copy that a test may change."""
    for file in attributed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def ablated(run, folder, *names, **given):
    ablate.main(ablate.Settings(run.path, folder, neuron=names, **(FEW | given)))
    return results.read_table(folder, "verdicts", tables.VERDICTS)


def chosen(folder):
    return results.read_table(folder, "neurons", tables.NEURONS).filter(pl.col("chosen"))["neuron"].to_list()


def another(folder):
    """A neuron of an MLP that was not chosen, with data."""
    free = pl.col("unit").str.contains("linear") & ~pl.col("chosen") & (pl.col("outliers") > 0)
    return results.read_table(folder, "neurons", tables.NEURONS).filter(free)["neuron"][0]


def sections(run, folder):
    topics = (_neuron_sections, _outlier_sections)
    return {section.title: section for topic in topics for section in topic.sections(run, folder)}


# ---- attribute


def test_attribution_counts_every_outlier_and_chooses_those_of_most(run, attributed):
    by_unit = results.read_table(attributed, "outlier_units", tables.OUTLIER_UNITS)
    assert by_unit["outliers"].sum() == STEPS * 8 * 20
    course = results.read_table(attributed, "outlier_course", tables.OUTLIER_COURSE)
    assert course["outliers"].sum() == STEPS * 8 * 20 and course["stop"].max() == STEPS
    total = results.read_arrays(attributed, "outliers")["by_parameter"]
    frequent = results.read_table(attributed, "parameters", tables.PARAMETERS)
    assert frequent["outliers"].to_list() == sorted(frequent["outliers"], reverse=True)
    of_unit, start = {}, 0
    for unit, shape in run.shapes.items():
        part = total[start : (start := start + shape[0] * shape[1])]
        of_unit[unit] = part
        expected = sorted(part.tolist(), reverse=True)[:20]
        assert frequent.filter(pl.col("unit") == unit)["outliers"].to_list() == [n for n in expected if n]
    tally, bag = tables.read_tally(attributed)
    assert int(tally.outliers.sum()) == STEPS * 8 * 20 and int(bag.sum()) == 8 * int(tally.events.sum())
    names = chosen(attributed)
    for unit in (unit for unit in run.shapes if "linear" in unit):
        weights: dict[int, int] = {}
        for flat, outliers in frequent.filter(pl.col("unit") == unit).select("flat index", "outliers").iter_rows():
            column = flat % run.shapes[unit][1]
            weights[column] = weights.get(column, 0) + outliers
        best = sorted(weights.values(), reverse=True)[:2]
        assert sorted((weights[neurons.parse(n).index] for n in names if n.startswith(unit)), reverse=True) == best


def test_notable_tokens_are_those_of_the_data_behind_the_frequent_weights(run, attributed):
    tally, bag = tables.read_tally(attributed)
    reference = stats.token_counts(run.corpus.train, CONFIG.vocab_size)
    listed = results.read_table(attributed, "neurons", tables.NEURONS)
    frequent = results.read_table(attributed, "parameters", tables.PARAMETERS)
    for i, row in enumerate(listed.iter_rows(named=True)):
        neuron = neurons.parse(row["neuron"])
        own = frequent.filter(
            pl.col("unit") == neuron.unit, pl.col("flat index") % run.shapes[neuron.unit][1] == neuron.index
        )
        assert row["notable tokens"] == sorted({token for ids in own["notable tokens"] for token in ids})
        assert row["frequent parameters"] == len(own)
        assert row["notable as a whole"] == stats.univariate_heuristic(bag[i], reference).tolist()
        expected = stats.notable_tokens(tally.target[i], reference, "log_likelihood", 3)
        assert row["notable targets"] == expected.tolist()


@pytest.mark.parametrize("given", ["parameters", "neurons", "c", "d", "f"])
def test_attributions_numbers_are_checked(run, tmp_path, given):
    zero: dict[str, Any] = {given: 0}
    with pytest.raises(ValueError, match=f"--{given} is 0; it must be at least 1"):
        attribute.main(attribute.Settings(run.path, tmp_path, **zero))


# ---- ablate


def test_a_neuron_by_name_is_added_and_all_are_judged_anew(run, folder):
    first, more = ablated(run, folder), another(folder)
    assert first["neuron"].to_list() == chosen(folder)
    whole = ablated(run, folder, more)
    assert whole["neuron"].to_list() == [*chosen(folder), more]
    assert whole.drop("attributed")[: len(first)].equals(first.drop("attributed"))
    p = torch.tensor(whole["p"].to_list(), dtype=torch.float64)
    assert whole["attributed"].to_list() == stats.false_discovery(p, 0.05).tolist()
    for name, kind in (("views", tables.VIEWS), ("flips", tables.FLIPS), ("flip_excerpts", tables.FLIP_EXCERPTS)):
        assert set(results.read_table(folder, name, kind)["neuron"]) <= {*chosen(folder), more}
    assert len(results.read_table(folder, "views", tables.VIEWS)) == len(whole)
    alone = ablated(run, folder, more)  # once more: it takes its own place
    assert sorted(alone["neuron"]) == sorted(whole["neuron"])


def test_stored_rows_are_judged_with_the_new_ones(run, folder):
    first = ablated(run, folder)
    small = pl.when(pl.int_range(pl.len()) < 2).then(1e-9).otherwise(1.0)
    results.write_table(folder, "verdicts", first.with_columns(p=small, attributed=pl.lit(False)))
    whole = ablated(run, folder, another(folder))
    assert whole["attributed"].to_list()[: len(first)] == [True, True] + [False] * (len(first) - 2)


def test_a_row_is_the_trial_of_its_neuron(run, folder):
    row = ablated(run, folder).row(0, named=True)
    neuron, params = neurons.parse(row["neuron"]), run.params()
    tally, _ = tables.read_tally(folder)
    ids = tally.events[:, tally.row(neuron)].nonzero()[:, 0]
    assert row["data"] == min(20, len(ids))
    flips = results.read_table(folder, "flips", tables.FLIPS).filter(pl.col("neuron") == row["neuron"])
    assert len(flips) == row["flipping"] and flips["notable"].sum() == row["notable of these"]
    quoted = results.read_table(folder, "flip_excerpts", tables.FLIP_EXCERPTS)
    assert len(quoted)
    for excerpt in quoted.iter_rows(named=True):
        neuron, tokens = neurons.parse(excerpt["neuron"]), run.data.tokens[excerpt["datum"]][None]
        assert tally.events[excerpt["datum"], tally.row(neuron)] > 0
        before, after = (
            int(neurons.predictions(run.graph, weights, (tokens,))[0, excerpt["position"]])
            for weights in (params, neurons.zero(params, neuron))
        )
        assert (before, after) == (excerpt["before"], excerpt["after"]) and before != after
    view = results.read_table(folder, "views", tables.VIEWS).row(0, named=True)
    events = tally.events[:, tally.row(neurons.parse(view["neuron"]))]
    assert view["times"] == events.max() and events[view["datum"]] == view["times"]


def test_other_ablations_have_tables_of_their_own(run, folder):
    zero, name = ablated(run, folder), chosen(folder)[0]
    ablated(run, folder, name, ablation="mean")
    mean = results.read_table(folder, "verdicts-mean", tables.VERDICTS)
    assert mean["neuron"].to_list() == [name]
    for verdicts, suffix in ((zero, ""), (mean, "-mean")):
        summary = results.read_table(folder, f"sublayers{suffix}", tables.SUBLAYERS)
        assert summary.equals(tables.sublayer_frame(verdicts)) and summary["neurons"].sum() == len(verdicts)
    assert results.read_table(folder, "verdicts", tables.VERDICTS).equals(zero)
    assert (folder / "ablate-mean.json").exists() and "Verdicts" in sections(run, folder)


def test_after_another_attribution_earlier_verdicts_go(run, folder):
    ablated(run, folder, another(folder))
    attribute.main(attribute.Settings(run.path, folder, parameters=5, neurons=1))
    assert ablated(run, folder)["neuron"].to_list() == chosen(folder)
    attribute.main(attribute.Settings(run.path, folder, parameters=5, neurons=1, axis="out"))
    found = ablated(run, folder)
    assert found["neuron"].to_list() == chosen(folder) and all(found["neuron"].str.ends_with(":out"))
    assert {"Outliers", "Neurons", "Verdicts"} <= sections(run, folder).keys()


@pytest.mark.parametrize(
    "names, given, message",
    [
        (
            ("layers.0.linear2.weight:3:out",),
            {},
            "3:out was not looked at: attribute.py read columns; run it with the other --axis",
        ),
        (("layers.9.linear2.weight:3",), {}, "layers.9.linear2.weight:3 was not tallied; what was: layers.0"),
        (("layers.0.linear2.weight:6",), {}, "layers.0.linear2.weight:6 was not tallied"),
        (("nonsense",), {}, "'nonsense' is not a neuron; write UNIT:INDEX"),
        ((), {"data": 0}, "--data is 0; it must be at least 1"),
        ((), {"others": 0}, "--others is 0"),
        ((), {"excerpts": -1}, "--excerpts is -1"),
    ],
)
def test_ablations_arguments_are_checked_before_any_work(run, folder, names, given, message):
    with pytest.raises(ValueError, match=message):
        ablated(run, folder, *names, **given)
    assert not results.has_table(folder, "verdicts")


def test_a_neuron_without_data_is_named(run, folder):
    tally, bag = tables.read_tally(folder)
    silent = neurons.parse(chosen(folder)[0])
    tally.outliers[tally.row(silent)] = 0
    tables.write_tally(folder, tally, bag)
    with pytest.raises(
        ValueError, match=f"no data are attributed to {silent}: none of its weights was ever an outlier"
    ):
        ablated(run, folder, str(silent))


@pytest.mark.parametrize("script", [ablate, skill])
def test_what_must_be_run_first_is_named(run, tmp_path, script):
    with pytest.raises(results.Missing, match="first run: python experiments/attribute.py"):
        script.main(script.Settings(run.path, tmp_path / "new"))


# ---- skill


def made_to_flip(run, monkeypatch):
    """Weights whose neurons flip much."""
    params = {name: w * (8 if units.is_mlp_weight(name) else 1) for name, w in run.params().items()}
    monkeypatch.setattr(records.Run, "params", lambda self, step=None: params)


def test_skill_judges_every_ranking_against_the_truth(run, folder, monkeypatch):
    made_to_flip(run, monkeypatch)
    skill.main(skill.Settings(run.path, folder, data=30, seen=40, predicted=60, pointed=2, draws=20))
    table = results.read_table(folder, "skill", tables.SKILL)
    assert table["unit"].unique(maintain_order=True).to_list() == [unit for unit in run.shapes if "linear" in unit]
    assert set(table["neurons"]) == {"all", "most outliers", "random others"}
    per_unit = table.filter(pl.col("neurons") == "all").group_by("unit").len()["len"].to_list()
    assert per_unit == [neurons.n_rankings(4, expected=True)] * 4
    contrasts = results.read_table(folder, "skill_contrasts", tables.CONTRASTS)
    kinds = (["record", "record and model"], ["model"])
    for row in contrasts.iter_rows(named=True):
        own = table.filter(pl.col("neurons") == "all", pl.col("unit") == row["unit"], ~pl.col("MAP").is_nan())
        ours, theirs = (max(own.filter(pl.col("kind").is_in(kind))["MAP"].to_list()) for kind in kinds)
        assert row["difference"] == pytest.approx(ours - theirs)
    assert "Does the method predict?" in sections(run, folder)
    census, nested, shares = (
        results.read_table(folder, f"skill_{name}", kind)
        for name, kind in (("census", tables.CENSUS), ("nested", tables.NESTED), ("shares", tables.SHARES))
    )
    assert shares.equals(tables.share_frame(census)) and set(nested["measure"]) == set(tables.MEASURES)
    for row in nested.filter(pl.col("measure") == "beyond another neuron's").iter_rows(named=True):
        own = census.filter(pl.col("unit") == row["unit"])
        for made in tables.RANKED:
            chosen = own.filter(pl.col("made from") == made)["ranking"]
            assert set(chosen) == set(row[made].split(" / "))
            others = own.filter(pl.col("made from") == f"another neuron's, {made}")
            assert others["ranking"].equals(chosen)
            mean = row["MAP " + ("with the record" if made == "with the record" else "of the model alone")]
            both = own.filter(pl.col("made from") == made), others
            ours, theirs = (np.mean(part["precision"].drop_nulls().to_numpy()) for part in both)
            assert mean == pytest.approx(ours - theirs)
    judged = census.filter(pl.col("flips") > 0)
    for p in tables.JUDGED_BY:
        assert judged[p].is_between(1 / 21, 1).all() and census.filter(pl.col("flips") == 0)[p].is_null().all()


def test_neurons_are_ablated_once_for_all_rankings(run, folder, monkeypatch):
    made_to_flip(run, monkeypatch)
    asked: dict[str, Any] = dict(data=20, seen=10, predicted=10, pointed=2, draws=9)
    skill.main(skill.Settings(run.path, folder, **asked))
    census = results.read_table(folder, "skill_census", tables.CENSUS)
    monkeypatch.setattr(neurons, "sweep_in_parts", None)
    skill.main(skill.Settings(run.path, folder, **asked | {"draws": 19}))
    again = results.read_table(folder, "skill_census", tables.CENSUS)
    assert again["precision"].equals(census["precision"]) and again["flips"].equals(census["flips"])
    with pytest.raises(TypeError):
        skill.main(skill.Settings(run.path, folder, **asked | {"data": 21}))


def test_rows_of_attention_have_a_census_of_their_own(run, folder, monkeypatch):
    params = {name: w * (8 if "self_attn" in name else 1) for name, w in run.params().items()}
    monkeypatch.setattr(records.Run, "params", lambda self, step=None: params)
    asked: dict[str, Any] = dict(data=99, seen=10, predicted=10, draws=9)
    skill.main(skill.Settings(run.path, folder, pointed=2, units=("*out_proj*",), **asked))
    columns = (folder / "skill_census.parquet").read_bytes()
    attribute.main(attribute.Settings(run.path, folder, parameters=20, neurons=2, axis="out"))
    skill.main(skill.Settings(run.path, folder, pointed=3, units=("*in_proj*", "layers.1.linear1*"), **asked))
    assert (folder / "skill_census.parquet").read_bytes() == columns
    census = results.read_table(folder, "skill-rows_census", tables.CENSUS)
    units = ["layers.0.self_attn.in_proj_weight", "layers.1.self_attn.in_proj_weight", "layers.1.linear1.weight"]
    assert set(census["unit"]) <= set(units) and census["neuron"].str.ends_with(":out").all()
    skilled = results.read_table(folder, "skill-rows", tables.SKILL)
    assert set(skilled["unit"]) == set(units) and not skilled["ranking"].str.contains("effect").any()
    tested, V = run.split("valid").tokens, CONFIG.vocab_size
    of_random = census.filter(pl.col("made from") == "random")
    assert of_random["flips"].sum() > 0
    for (unit,), part in of_random.group_by("unit"):  # the truth by its definition
        members = [neurons.parse(name) for name in part["neuron"]]
        flips = neurons.sweep_naive(run.graph, run.params(), (tested,), members)
        truth = neurons.truly_flips(*neurons.flip_counts(flips, len(members), V))
        assert part["flips"].to_list() == truth.sum(1).tolist(), unit


def test_units_that_cannot_be_judged_are_refused(run, folder):
    with pytest.raises(ValueError, match="nope"):
        skill.main(skill.Settings(run.path, folder, units=("nope",)))
    assert not results.has_table(folder, "skill")


def test_skill_is_of_the_neurons_with_most_outliers_and_their_own_counts(run, folder, monkeypatch):
    made_to_flip(run, monkeypatch)
    tally, bag = tables.read_tally(folder)
    amounts = {u: torch.rand(shape[1], CONFIG.vocab_size) for u, shape in run.shapes.items() if "linear" in u}
    for file in ("norms", "norms_first_order"):
        results.write_arrays(folder, file, amounts)
    results.finish(folder, "norms", {"run": run.manifest["digest"], "steps": run.n_steps, "settings": {}, "after": {}})
    skill.main(skill.Settings(run.path, folder, data=99, seen=9, predicted=9, pointed=2))
    table = results.read_table(folder, "skill", tables.SKILL)
    reference = stats.token_counts(run.corpus.train, CONFIG.vocab_size)
    tested, compared = run.split("valid").tokens, 0
    assert len(tested) < 99  # all of them, in whatever order
    for unit in amounts:
        members = sorted(neurons.every(run.shapes, units=[unit]), key=lambda n: -int(tally.outliers[tally.row(n)]))[:2]
        flips = neurons.sweep_naive(run.graph, run.params(), (tested,), members)
        truth = neurons.truly_flips(*neurons.flip_counts(flips, 2, CONFIG.vocab_size))
        rows = [tally.row(neuron) for neuron in members]
        scores = {
            "bag, log likelihood": stats.log_likelihood(bag[rows], reference),
            "target, log likelihood": stats.log_likelihood(tally.target[rows], reference),
            "growth by target": amounts[unit][[neuron.index for neuron in members]],
        }
        for name, score in scores.items():
            where = {"unit": unit, "neurons": "most outliers", "ranking": name}
            row = table.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)
            expected = float(stats.average_precision(score.float(), truth).nanmean())
            assert row["MAP"] == pytest.approx(expected, nan_ok=True), where
            compared += expected == expected
    assert compared >= 3


def test_norms_take_part_and_their_change_makes_skill_again(run, folder):
    marker, name = folder / "norms.json", next(unit for unit in run.shapes if "linear" in unit)
    amounts = {name: torch.rand(run.shapes[name][1], CONFIG.vocab_size)}
    for file in ("norms", "norms_first_order"):
        results.write_arrays(folder, file, amounts)
    settings = skill.Settings(run.path, folder, data=10, seen=10, predicted=10, pointed=1)
    skill.main(settings)
    without = results.read_table(folder, "skill", tables.SKILL)
    origin = {"run": run.manifest["digest"], "steps": run.n_steps, "settings": {}, "after": {}}
    results.finish(folder, "norms", origin)
    skill.main(settings)
    found = results.read_table(folder, "skill", tables.SKILL)
    assert "growth by target" in set(found["ranking"]) - set(without["ranking"])
    assert set(found.filter(pl.col("ranking") == "growth by target")["unit"]) == {name}
    for file in ("norms-3-9", "norms_first_order-3-9"):
        results.write_arrays(folder, file, amounts)
    results.finish(folder, "norms-3-9", origin)
    results.finish(folder, "norms-rows-3-9", origin)  # of rows no amounts are kept
    skill.main(settings)
    found = results.read_table(folder, "skill", tables.SKILL)
    assert {"growth by target", "|growth, steps 3 to 9| by target, per occurrence"} <= set(found["ranking"])
    (folder / "norms-3-9.json").unlink()
    before = (folder / "skill.json").read_text()
    results.finish(folder, "norms", origin | {"settings": {"start": 1}})
    skill.main(settings)
    assert (folder / "skill.json").read_text() != before
    marker.write_text(marker.read_text().replace(run.manifest["digest"], "another"))  # of another run: left out
    skill.main(settings)
    assert set(results.read_table(folder, "skill", tables.SKILL)["ranking"]) == set(without["ranking"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"data": 0}, "--data is 0"),
        ({"pointed": 0}, "--pointed is 0"),
        ({"seen": 9, "predicted": 8}, "--seen is 9; it must"),
    ],
)
def test_skills_arguments_are_checked(run, folder, given, message):
    with pytest.raises(ValueError, match=message):
        skill.main(skill.Settings(run.path, folder, **given))


# ---- activations


def test_activations_are_of_the_tokens_that_flip_most_and_rows_are_added(run, folder):
    ablated(run, folder)
    flips = results.read_table(folder, "flips", tables.FLIPS).filter(pl.col("count") >= 5)
    activations.main(activations.Settings(run.path, folder, data=30, neurons=2))
    found = results.read_table(folder, "activations", tables.ACTIVATIONS)
    columns, by_default = found.filter(~pl.col("neuron").str.ends_with(":out")), found.height
    assert len(columns) == min(2, flips["neuron"].n_unique()) > 0
    for name, id in columns.select("neuron", "token").iter_rows():
        own = flips.filter(pl.col("neuron") == name)
        best = max(own.iter_rows(named=True), key=lambda row: (row["notable"], row["proportion"], row["flips"]))
        assert best["token"] == id
    token = PLANTED.vocab.tokens[1]
    activations.main(activations.Settings(run.path, folder, "layers.1.linear1.weight:7", token, data=30))
    added = results.read_table(folder, "activations", tables.ACTIVATIONS)
    assert added["neuron"].to_list()[by_default:] == ["layers.1.linear1.weight:7"]  # there are six rows, and no seventh
    assert set(results.read_table(folder, "extremes", tables.EXTREMES)["neuron"]) == set(added["neuron"])
    assert "Activations alone" in sections(run, folder)


def test_a_notable_token_comes_before_one_that_flips_more():
    rows = [("a:0", 1, 0.9, 20, 9, False), ("a:0", 2, 0.2, 20, 4, True), ("a:1", 3, 0.5, 4, 4, True)]
    rows += [("b:1", 4, 0.5, 20, 9, False), ("b:1", 5, 0.5, 20, 10, False), ("b:2", 6, 0.1, 9, 1, False)]
    frame = pl.DataFrame(rows, ["neuron", "token", "proportion", "count", "flips", "notable"], orient="row")
    assert [(str(n), id) for n, id in activations.flipped_most(frame, 2)] == [("a:0", 2), ("b:1", 5)]
    assert [id for _, id in activations.flipped_most(frame, 9)] == [2, 5, 6]  # four positions are too few


def test_a_neuron_by_name_needs_no_ablation(run, tmp_path):
    token = PLANTED.vocab.tokens[2]
    activations.main(activations.Settings(run.path, tmp_path, "layers.0.linear2.weight:3", token, data=50))
    row = results.read_table(tmp_path, "activations", tables.ACTIVATIONS).row(0, named=True)
    assert row["neuron"] == "layers.0.linear2.weight:3" and row["token"] == 2 and row["of neurons"] == 6


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"token": "c00"}, ValueError, "--neuron and --token go together"),
        ({"neuron": "layers.0.linear2.weight:3"}, ValueError, "--neuron and --token go together"),
        ({"neuron": "layers.0.linear2.weight:3", "token": "c0"}, LookupError, "'c0' is not among the 149 tokens"),
        ({"neuron": "layers.0.linear2.weight:6", "token": "c00"}, ValueError, "no column 6; its columns are 0 to 5"),
        ({"neuron": "embedding.weight:1", "token": "c00"}, ValueError, "not the weight of one linear map"),
        ({"data": 0}, ValueError, "--data is 0"),
        ({}, results.Missing, "first run: python experiments/ablate.py"),
    ],
)
def test_activations_arguments_are_checked_before_any_work(run, folder, given, error, message):
    with pytest.raises(error, match=message):
        activations.main(activations.Settings(run.path, folder, **given))
    assert not results.has_table(folder, "activations")


# ---- other runs


@pytest.mark.parametrize(
    "patterns, skipped",
    [
        (("embedding.weight", "decoder.*"), True),
        (("layers.0.norm1.*",), True),
        (("*self_attn*",), False),
        (("layers.*",), False),
    ],
)
def test_runs_that_captured_other_units_go_through_all_scripts(patterns, skipped, tmp_path, capsys):
    recording = Recording(k=10, snapshot_every=20, units=patterns)
    run = recorded(tmp_path / "run", Recipe(context=8, batch_size=8, n_steps=6), recording, model=transformer(CONFIG))
    folder = attribute.main(attribute.Settings(run.path, parameters=5, neurons=1))
    assert ablated(run, folder).is_empty() == skipped
    skill.main(skill.Settings(run.path, data=5, seen=5, predicted=5, pointed=1))
    activations.main(activations.Settings(run.path, data=5))
    said = capsys.readouterr().out
    assert ("no neurons, as they are no matrices" in said) == any("*" in p for p in patterns)
    html = page.page("t", "", list(sections(run, folder).values()))
    assert ("there is no neuron to ablate" in html) == skipped


@pytest.mark.parametrize("n_types", [3, 5])
def test_a_vocabulary_of_a_few_tokens_goes_through_all_scripts(n_types, tmp_path):
    vocab = text.Vocab(("<unk>", "a", "c", "g", "t")[:n_types])
    stream = torch.randint(0, n_types, (900,), generator=torch.Generator().manual_seed(0))
    corpus = text.Corpus("dna", vocab, stream[:600], stream[600:750], stream[750:])
    config = Config(n_types, d_model=4, n_heads=2, d_hidden=4, n_layers=1)
    recipe = Recipe(context=8, batch_size=8, n_steps=6)
    run = recorded(tmp_path / "run", recipe, records.Recording(k=10), corpus, transformer(config))
    folder = attribute.main(attribute.Settings(run.path, parameters=5, neurons=1))
    ablated(run, folder)
    skill.main(skill.Settings(run.path, data=5, seen=5, predicted=5, pointed=1))
    activations.main(activations.Settings(run.path, data=5))
    assert page.page("t", "", list(sections(run, folder).values()))
