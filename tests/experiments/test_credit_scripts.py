"""Ledger, heads, counterfactual and planted_cause as commands: checked before any work, rows added, none replaced."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import batches, credit, keys, optim, per_example, records, stats, text, units
from devinterp_func.credit import CauseStudy, patterns, probes
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import counterfactual  # noqa: E402
import heads  # noqa: E402
import ledger  # noqa: E402
import norms  # noqa: E402
import planted_cause  # noqa: E402

CONFIG = Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=2)
KEY = ["probe", "start", "stop", "nodes", "texts", "seed"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe, recording = Recipe(context=8, batch_size=4, n_steps=12), Recording(k=5, snapshot_every=4)
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, recording, model=transformer(CONFIG))


def settings(script, run, out, **given):
    return script.Settings(run.path, out=out, **given)


# ---- ledger


@pytest.mark.parametrize(
    "given, message",
    [
        ({"probe": ("loss", "next:The c00 => c01")}, "'The' is not among"),
        ({"probe": ("bigram:c00 file",)}, "'file' is not among"),
        ({"probe": ("effect:layers.0.linear2.weight:2 york",)}, "'york' is not among"),
        ({"probe": ("norm:layers.9.linear2.weight:2",)}, "has no neurons"),
        ({"probe": ("nonsense",)}, "names no probe; forms are"),
        ({"start": 12}, "steps 12 to 12 were asked for; .* has 12 recorded steps"),
        ({"start": 5, "stop": 3}, "steps 5 to 3"),
        ({"stop": 13}, "steps 0 to 13"),
        ({"nodes": 0}, "nodes is 0; it must be at least 1"),
        ({"every": 0}, "every is 0"),
        ({"texts": 0}, "texts is 0"),
    ],
)
def test_a_ledgers_arguments_are_checked_before_any_work(run, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        ledger.main(settings(ledger, run, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_a_ledger_is_that_of_the_steps_asked_for_and_adds_its_rows(run, tmp_path):
    asked = settings(
        ledger, run, tmp_path, probe=("bigram:c00 c01", "loss", "loss"), texts=3, nodes=1, start=2, every=3
    )
    ledger.main(asked)
    whole = {name: results.read_table(tmp_path, name, kind) for name, kind in tables.LEDGER_TABLES.items()}
    for name in whole:
        assert whole[name].select(KEY).unique(maintain_order=True).rows() == [
            ("bigram:c00 c01", 2, 12, 1, 3, 0),
            ("loss", 2, 12, 1, 3, 0),
        ]
    probe = credit.parse_probe("loss", run, key=keys.Key(0, ("ledger",)), n=3)
    loss = whole["ledger_courses"].filter(pl.col("probe") == "loss")
    assert loss["step"].to_list() == [2, 5, 8, 11] and loss["steps"].to_list() == [3, 3, 3, 1]
    values = [float(probe.value(run.params(step))) for step in (2, 5, 8, 11)]
    assert loss["value"].to_list() == pytest.approx(values, rel=1e-5)
    ledger.main(replace(asked, probe=("norm:layers.1.linear2.weight:2",)))
    ledger.main(replace(asked, stop=5))  # on the walk that is there
    ledger.main(replace(asked, seed=1))  # other texts: another walk
    for name, kind in tables.LEDGER_TABLES.items():
        now = results.read_table(tmp_path, name, kind)
        assert now.head(len(whole[name])).equals(whole[name])
        assert now.select(KEY).unique(maintain_order=True).rows()[2:] == [
            ("norm:layers.1.linear2.weight:2", 2, 12, 1, 3, 0),
            *((name, 2, 5, 1, 3, 0) for name in ("bigram:c00 c01", "loss")),
            *((name, 2, 12, 1, 3, 1) for name in ("bigram:c00 c01", "loss")),
        ]
    now = results.read_table(tmp_path, "ledger_courses", tables.LEDGER_TABLES["ledger_courses"])
    losses = now.filter(pl.col("probe") == "loss")
    assert losses.filter(pl.col("stop") == 5).drop("stop").equals(loss.head(1).drop("stop"))
    assert losses.filter(pl.col("seed") == 1)["value"][0] != pytest.approx(loss["value"][0], rel=1e-4)
    walks = sorted(path.name for path in tmp_path.glob("ledger-*") if path.is_dir())
    assert walks == [
        "ledger-bigram-c00-c01-loss-from-2",
        "ledger-bigram-c00-c01-loss-from-2-2",
        "ledger-norm-layers.1.linear2.weight-2-from-2",
    ]
    figures = {"ledger_bigram-c00-c01.svg", "ledger_loss.svg", "ledger_norm-layers.1.linear2.weight-2.svg"}
    assert {path.name for path in tmp_path.glob("*.svg")} == figures


def test_probes_of_the_same_slug_are_told_apart(run, tmp_path):
    forms = ("next:c00 ( => )", "next:c00 ) => (")
    for form in (*forms, forms[0]):
        ledger.main(settings(ledger, run, tmp_path, probe=(form,), nodes=1, stop=2))
    walks = [records.manifest(tmp_path / f"ledger-next-c00-from-0{end}")["probes"] for end in ("", "-2")]
    assert walks == [[forms[0]], [forms[1]]] and not (tmp_path / "ledger-next-c00-from-0-3").exists()
    courses = results.read_table(tmp_path, "ledger_courses", tables.LEDGER_TABLES["ledger_courses"])
    assert sorted(courses["probe"]) == sorted(forms)


# ---- heads


def test_heads_are_measured_at_every_snapshot(run, tmp_path):
    heads.main(settings(heads, run, tmp_path, texts=5))
    table = results.read_table(tmp_path, "heads", tables.HEADS)
    assert table["pattern"].unique(maintain_order=True).to_list() == list(patterns.NAMES)
    tokens = run.split("valid").tokens
    tokens = tokens[keys.permutation(len(tokens), key=keys.Key(0, ("heads",)))]
    same = patterns.same_token(tokens)
    there = [t for t in range(len(tokens)) if same[t].any()][:5]
    for step in (0, 4, 8, 12):
        found = patterns.attention(run.graph, run.params(step), (tokens[there],), same[there])
        rows = table.filter((pl.col("pattern") == "same") & (pl.col("step") == step))
        assert rows["attention"].to_list() == pytest.approx(found.value.flatten().tolist(), rel=1e-5)
        assert rows["queries"].to_list() == [found.queries] * 4
    heads.main(settings(heads, run, tmp_path, texts=2, pattern=("same",)))
    again = results.read_table(tmp_path, "heads", tables.HEADS)
    assert len(again) == len(table)
    others = pl.col("pattern") != "same"
    assert again.filter(others).equals(table.filter(others))
    assert not again.filter(~others).equals(table.filter(~others))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run on prose without brackets, and without a repeated token in the validation part."""
    words = [f"w{i}" for i in range(20)]
    vocab = text.build_vocab(words)
    corpus = text.Corpus("plain", vocab, vocab.encode(words * 4), vocab.encode(words), vocab.encode(words))
    recipe, config = Recipe(context=8, batch_size=2, n_steps=2), replace(CONFIG, vocab_size=len(vocab))
    return recorded(tmp_path_factory.mktemp("runs") / "plain", recipe, Recording(k=5), corpus, transformer(config))


def test_patterns_that_do_not_occur_are_left_out_with_a_line(plain, tmp_path, capsys):
    heads.main(settings(heads, plain, tmp_path))
    said = capsys.readouterr().out
    assert "without the pattern bracket: '(' and ')' are not in the vocabulary" in said
    assert "without the pattern same: it occurs in none of the 2 validation texts" in said
    assert results.read_table(tmp_path, "heads", tables.HEADS)["pattern"].unique().to_list() == ["previous"]


@pytest.mark.parametrize(
    "pattern, why", [("bracket", "not in the vocabulary"), ("induction", "occurs in none of the 2")]
)
def test_a_pattern_that_was_asked_for_must_occur(plain, tmp_path, pattern, why):
    with pytest.raises(ValueError, match=f"--pattern {pattern}: .*{why}"):
        heads.main(settings(heads, plain, tmp_path, pattern=("previous", pattern)))
    assert not list(tmp_path.iterdir())


# ---- trust


def test_counterfactuals_have_every_probe_and_score_and_add_their_rows(run, tmp_path):
    counterfactual.main(settings(counterfactual, run, tmp_path, steps=2, texts=2, nodes=(2,)))
    missed = results.read_table(tmp_path, "completeness", tables.COMPLETENESS)
    estimates = [("gradient at the start", None), ("gradient at the end", None), ("trapezoid", None), ("credit", 2)]
    names = missed["probe"].unique(maintain_order=True).to_list()
    assert missed.select("probe", "estimate", "nodes").rows() == [(name, *one) for name in names for one in estimates]
    assert names[:3] == ["loss, validation", "loss, other training data", "next word"] and len(names) == 6
    assert missed["steps"].unique().to_list() == [2]
    agreement = results.read_table(tmp_path, "agreement", tables.AGREEMENT)
    assert agreement["probe"].unique(maintain_order=True).to_list() == names[:2]
    counterfactual.main(settings(counterfactual, run, tmp_path, steps=3, texts=2, nodes=(1,)))
    both = results.read_table(tmp_path, "completeness", tables.COMPLETENESS)
    assert both.filter(pl.col("nodes") == 2).equals(missed.filter(pl.col("nodes") == 2))
    assert both.filter(pl.col("nodes") == 1)["steps"].unique().to_list() == [3]


def test_scores_are_ranked_against_leaving_each_datum_out_for_each_loss(run, tmp_path, monkeypatch):
    compared = []

    def spy(scores, truth, *, key):
        compared.append((scores, truth))
        return {name: stats.Estimate(0.5, 0.0, 1.0, 2) for name in scores}

    monkeypatch.setattr(counterfactual.credit, "rank_agreement", spy)
    counterfactual.main(settings(counterfactual, run, tmp_path, steps=2, texts=2, nodes=(2, 1)))
    key = keys.Key(0, ("counterfactual",))
    drawn = keys.permutation(len(run.data.tokens), key=key)[:2]
    training = probes.loss(run.graph, (run.data.tokens[drawn], run.data.targets[drawn]))
    followed = credit.parse_probe("loss", run, key=key, n=2), training
    moves = [move for step in (0, 8) for move in run.moves(step, step + 1, units.EVERY)]  # of snapshots 0, 4, 8: spread
    for (scores, truth), probe in zip(compared, followed, strict=True):
        for s, move in enumerate(moves):
            entries = credit.split_change(move, [probe], 2, at_start=True)
            expected = {"marginal": entries.marginal, "credit": entries.credit}
            expected["gradient at the start"] = entries.at_start
            for name, amounts in expected.items():
                torch.testing.assert_close(scores[name][s], amounts[0].sum(-1), rtol=1e-4, atol=1e-7)
            norms = scores["norm of the datum's delta"][s].float()
            torch.testing.assert_close(norms, -per_example.delta_norms(move.factors))
            torch.testing.assert_close(truth[s], credit.leave_one_out(move, probe))
        assert scores["random"].unique().numel() == truth.numel()


def test_an_optimizer_that_remembers_has_its_steps_rerun_too(tmp_path):
    recipe = Recipe(context=8, batch_size=4, n_steps=5, lr=0.01, optimizer=optim.adamw())
    remembers = recorded(tmp_path / "run", recipe, Recording(k=5, snapshot_every=2), model=transformer(CONFIG))
    counterfactual.main(settings(counterfactual, remembers, tmp_path / "out", steps=2, texts=2, nodes=(2,)))
    agreement = results.read_table(tmp_path / "out", "agreement", tables.AGREEMENT)
    truths = agreement.filter(pl.col("score") == "marginal").select("probe", "truth").rows()
    assert truths == [
        (name, kind)
        for name in (counterfactual.HELD_OUT, counterfactual.TRAINING)
        for kind in ("delta taken away", "step rerun")
    ]
    other = agreement.filter(pl.col("score") == "delta taken away")
    assert other["truth"].to_list() == ["step rerun"] * 2
    missed = results.read_table(tmp_path / "out", "completeness", tables.COMPLETENESS)
    credits = missed.filter((pl.col("estimate") == "credit") & (pl.col("probe") != "next word"))
    assert (credits["missed"] < 0.1).all()
    ledger.main(settings(ledger, remembers, tmp_path / "out", texts=2, nodes=2))
    courses = results.read_table(tmp_path / "out", "ledger_courses", tables.LEDGER_TABLES["ledger_courses"])
    assert all(courses.select("past", "decay").row(0))
    norms.main(norms.Settings(remembers.path, out=tmp_path / "out"))
    unit_rows = results.read_table(tmp_path / "out", "norms_units", tables.NORM_UNITS)
    parts = unit_rows.select(pl.sum_horizontal("first order", "remainder", "past", "decay")).to_series()
    assert parts.to_list() == pytest.approx(unit_rows["growth"].to_list(), rel=1e-3)


@pytest.mark.parametrize("given", [{"steps": 0}, {"texts": 0}, {"nodes": (1, 0)}, {"nodes": ()}])
def test_counterfactuals_check_their_numbers_first(run, tmp_path, given):
    with pytest.raises(ValueError, match="must be at least 1|give at least one"):
        counterfactual.main(settings(counterfactual, run, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


# ---- known causes


def test_planted_causes_are_probed_on_texts_not_trained_on(tmp_path, monkeypatch):
    given = []

    def planted_causes(*arguments):
        given.append(arguments)
        return CauseStudy({"credit": torch.tensor([[3.0, 1.0], [0.0, 1.0]])}, torch.tensor([[True, False]] * 2))

    planted = partial(text.planted, n_tokens=3000)
    monkeypatch.setattr(planted_cause.text, "planted", planted)
    monkeypatch.setattr(planted_cause.credit, "planted_causes", planted_causes)
    planted_cause.main(planted_cause.Settings(tmp_path, seeds=2, bigrams=2, steps=1, at=(1,)))
    for seed, (graph, params, data, held_out, pairs, recipe) in enumerate(given):
        corpus = planted(key=seed)
        assert torch.equal(held_out, corpus.valid) and recipe.seed == seed and recipe.n_steps == 1
        for one, expected in zip(data, batches.chunk(corpus.train, recipe.context), strict=True):
            assert torch.equal(one, expected)
        assert list(pairs.items()) == list(text.planted_bigrams(corpus.vocab).items())[:2]
        assert graph.vocab_size == len(corpus.vocab) and graph.width == 32 and params.keys() == graph.shapes.keys()
    assert len(given) == 2
    table = results.read_table(tmp_path, "planted_cause", tables.PLANTED_CAUSE)
    assert table.select("measure", "at", "mean", "base rate", "probes").rows() == [
        ("precision", 1, 0.5, 0.5, 4),
        ("average precision", None, 0.75, 0.5, 4),
    ]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"bigrams": 0}, "bigrams is 0"),
        ({"bigrams": 21}, "bigrams is 21; planted text has 20"),
        ({"steps": 0}, "steps is 0"),
        ({"at": (0,)}, "at is 0"),
        ({"at": ()}, "at is empty"),
        ({"at": (20, 41), "steps": 2}, "at is 41, but training reads 40 data at most"),
    ],
)
def test_planted_causes_check_their_numbers_first(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        planted_cause.main(planted_cause.Settings(tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()
