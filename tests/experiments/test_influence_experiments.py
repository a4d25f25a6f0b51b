"""The experiments on influence at toy size: they go on where they stopped, and say what the library says."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from devinterp_func import batches, credit, keys, optim, training
from devinterp_func.batches import Data

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import banks  # noqa: E402
import horizons  # noqa: E402
import planted_distance  # noqa: E402

from devinterp_func.show import results, tables  # noqa: E402


@pytest.fixture(scope="module")
def looked_ahead(tmp_path_factory):
    """Settings of horizons whose work is done."""
    settings = horizons.Settings(
        tmp_path_factory.mktemp("out"), recipes=("sgd 0.1",), start=3, horizons=(3, 1), draws=3, share=0.1, width=4
    )
    horizons.main(settings)
    return settings


def test_the_table_of_horizons_is_what_the_library_finds(looked_ahead):
    table = results.read_table(looked_ahead.out, "horizons", banks.JUDGED)
    assert table.height == 2 * 2 * 5 and set(table["horizon"]) == {1, 3}
    one = horizons.study("sgd 0.1", looked_ahead)
    effect = torch.stack([credit.horizon_values(one.window, one.probes, [1, 3], removed=x) for x in one.removals])
    effect -= credit.horizon_values(one.window, one.probes, [1, 3])
    whole = credit.window_influences(one.window, one.probes).scores()
    predicted = credit.predicted_effects(whole, one.removals, 3)
    slope = (predicted * effect[:, 1]).sum(0) / predicted.square().sum(0)
    rows = {
        row["setting"]: row
        for row in table.iter_rows(named=True)
        if row["score"] == "influence" and row["horizon"] == 3
    }
    for p, probe in enumerate(one.probes):
        assert rows[f"sgd 0.1, {probe.name}"]["slope"] == pytest.approx(float(slope[p]), rel=1e-2)
        assert rows[f"sgd 0.1, {probe.name}"]["slope"] == pytest.approx(1, abs=0.1)
    assert (looked_ahead.out / "horizons.svg").read_text().startswith("<?xml")


def test_it_goes_on_where_it_stopped_and_takes_more_recipes(looked_ahead):
    before = {path.name: path.read_bytes() for path in looked_ahead.out.glob("*") if path.suffix != ".svg"}
    horizons.main(looked_ahead)
    assert before == {path.name: (looked_ahead.out / path.name).read_bytes() for path in map(Path, before)}
    horizons.main(replace(looked_ahead, recipes=("adamw 0.001",)))
    assert set(results.read_table(looked_ahead.out, "reach", horizons.REACH)["recipe"]) == {"sgd 0.1", "adamw 0.001"}
    bank = results.read_table(looked_ahead.out, "bank-sgd-0.1", tables.BANK)
    more = banks.fill(
        looked_ahead.out,
        "bank-sgd-0.1",
        (one := horizons.study("sgd 0.1", replace(looked_ahead, draws=4))).window,
        one.probes,
        [1, 3],
        one.removals,
    )
    assert len(more.removed) == 4
    assert results.read_table(looked_ahead.out, "bank-sgd-0.1", tables.BANK).head(bank.height).equals(bank)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipes": ("sgd",)}, '"sgd 1"'),
        ({"recipes": ("lion 1",)}, "'lion 1'"),
        ({"horizons": ()}, "empty"),
        ({"share": 1.0}, "share is 1.0"),
    ],
)
def test_what_would_fail_later_is_refused_before(tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        horizons.main(replace(horizons.Settings(tmp_path / "out"), **changed))
    assert not (tmp_path / "out").exists()


def test_pairs_are_put_once_into_the_texts_that_are_chosen_and_nowhere_else():
    data = batches.chunk(torch.arange(6 * 40) % 7, 6)
    chosen = torch.tensor([[3, 11], [4, 20]])
    found = planted_distance.put(data, [(50, 51), (60, 61)], chosen, keys.Key(0))
    for pair, texts in zip([(50, 51), (60, 61)], chosen, strict=True):
        there = credit.contains_pair(found, *pair)
        assert there.nonzero().flatten().tolist() == sorted(texts.tolist())
        assert ((found.tokens == pair[0]).sum(1) == there).all() and ((found.targets == pair[1]).sum(1) == there).all()
    assert torch.equal(found.tokens[:, 1:], found.targets[:, :-1])
    others = ~torch.isin(torch.arange(len(data.tokens)), chosen)
    assert torch.equal(found.tokens[others], data.tokens[others])
    assert isinstance(found, Data) and not torch.equal(data.tokens, found.tokens)


def test_a_cause_far_back_is_measured_by_training_without_it(tmp_path):
    settings = planted_distance.Settings(
        tmp_path, ("sgd 1",), seeds=1, pairs=2, texts=2, start=2, planting=1, distance=2, width=4, at=(2,)
    )
    planted_distance.main(settings)
    found = results.read_table(tmp_path, "planted_distance", planted_distance.FOUND)
    assert found.height == len(planted_distance.SCORES) * 2
    one = planted_distance.planted("sgd 1", 0, settings)
    assert one.truth.sum((1, 2)).tolist() == [2, 2] and one.truth[:, :1].sum() == 4
    removed = results.read_table(tmp_path, "planted_distance_removed", planted_distance.REMOVED)
    for p, row in enumerate(removed.iter_rows(named=True)):
        without = credit.retrain(one.window, one.truth[p]).params
        effect = float(one.probes[p].value(without) - one.probes[p].value(credit.retrain(one.window).params))
        assert row["effect"] == pytest.approx(effect, rel=1e-3)
        assert row["influence"] == pytest.approx(effect, rel=0.2)


def test_leaving_out_a_text_leaves_out_all_its_visits():
    for package in ("transformers", "tokenizers"):
        pytest.importorskip(package)
    import gpt2_influence

    settings = gpt2_influence.Settings(texts=10, draws=3, share=0.2)
    order = training.order(training.Recipe(batch_size=5, epochs=3), 10, 0, 6)
    datum = torch.stack([ids for *_, ids in order])
    for removed in gpt2_influence.removals(datum, settings):
        gone = datum[removed].unique()
        assert len(gone) == 2 and torch.equal(removed, torch.isin(datum, gone))


def test_a_small_gpt2_is_judged(tmp_path):
    for package in ("transformers", "tokenizers"):
        pytest.importorskip(package)
    import gpt2_influence

    sizes: dict[str, Any] = {
        "texts": 16,
        "epochs": 1,
        "batch_size": 4,
        "width": 8,
        "draws": 3,
        "queries": 2,
        "size": 270,
        "context": 8,
    }
    gpt2_influence.main(gpt2_influence.Settings(tmp_path, corpus="planted", share=0.2, **sizes))
    table = results.read_table(tmp_path, "gpt2_influence", banks.JUDGED)
    assert {"influence", "fisher", *gpt2_influence.OTHERS} <= set(table["score"])
    assert set(table["removals"]) == {3} and set(table["horizon"]) == {4} and bool((table["rank"].abs() <= 1).all())


def test_seeds_together_are_judged_as_each_alone(tmp_path):
    pytest.importorskip("sklearn")
    import digits_influence

    sizes: dict[str, Any] = {
        "images": 20,
        "epochs": 1,
        "batch_size": 5,
        "draws": 6,
        "held_out": 5,
        "singles": 2,
        "lr": 1e-3,
    }
    settings = digits_influence.Settings(tmp_path, ("mlp",), seeds=2, **sizes)
    digits_influence.main(settings)
    found = [digits_influence.of_seed("mlp", seed, settings) for seed in range(2)]
    bank, scores = digits_influence.together(found, slice(1, None))
    together = {one.score: one.rank.value for one in credit.judge(bank, 1, scores, key=0, resamples=1)}
    for name in ("influence", "credit"):
        alone = [
            credit.judge(
                own._replace(intact=own.intact[:, 1:], effect=own.effect[..., 1:]),
                4,
                {name: s[name][1:]},
                key=0,
                resamples=1,
            )[0].rank.value
            for own, s in found
        ]
        assert together[name] == pytest.approx(sum(alone) / 2)
    table = results.read_table(tmp_path, "digits_influence", banks.JUDGED)
    rows = {(row["setting"], row["score"]): row for row in table.iter_rows(named=True)}
    assert {name for _, name in rows} >= set(digits_influence.SCORES)
    words = digits_influence.of_settings(settings)[1]
    assert words == "images 20, epochs 1, batch size 5, lr 0.001"
    assert rows[f"mlp, {words}, held-out images", "influence"]["removals"] == 6


def test_what_a_recipe_is_told_takes_the_place_of_its_own_values():
    import digits_influence as script
    import digits_recipes as recipes

    assert script.of_settings(script.Settings()) == (recipes.Training(), "")
    given = script.Settings(recipe="published", lr=1e-4, epochs=1, double=True)
    training_, words = script.of_settings(given)
    assert training_ == replace(recipes.TRAININGS["published"], lr=1e-4)
    assert words == "published, lr 0.0001, double"  # its one epoch is the recipe's own


def test_an_image_is_left_out_of_all_its_visits_or_of_the_last():
    import digits_recipes as recipes

    datum = torch.tensor([[3, 1], [2, 3], [1, 2], [0, 1]])
    asked: dict[recipes.Visits, dict[int, list[int]]] = {
        "all": {3: [0, 1], 1: [0, 2, 3]},
        "last": {3: [1], 1: [3]},
    }
    for visits, steps in asked.items():
        for places, (image, expected) in zip(recipes.left_out(datum, list(steps), visits), steps.items(), strict=True):
            assert places.any(1).nonzero().flatten().tolist() == expected
            assert (datum[places] == image).all() and int(places.sum()) == len(expected)


def test_sgds_influence_is_influence_where_sgd_made_the_steps(tmp_path):
    pytest.importorskip("sklearn")
    import digits_influence as script

    settings = script.Settings(
        tmp_path, ("mlp",), images=20, epochs=1, batch_size=5, held_out=3, singles=1, double=True
    )
    window, followed, _ = script.trained_from("mlp", 0, settings)
    recipe = replace(window.recipe, optimizer=optim.sgd(), max_norm=float("inf"))
    plain = window._replace(recipe=recipe, state=recipe.optimizer.init(window.params))
    by_sgd, exact = script.by_sgd(plain, followed), credit.window_influences(plain, followed).scores()
    torch.testing.assert_close(by_sgd, exact)
    assert (
        float((script.by_sgd(window, followed) - credit.window_influences(window, followed).scores()).abs().max()) > 0
    )


def test_the_published_recipe_is_of_an_mlp(tmp_path):
    pytest.importorskip("sklearn")
    import digits_influence as script

    with pytest.raises(ValueError, match="give --networks mlp"):
        script.main(script.Settings(tmp_path, recipe="published"))
