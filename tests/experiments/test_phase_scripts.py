"""Phases of few data as commands: what stands beside, and the same steps made in another way."""

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import credit, records, training
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import phase_causes  # noqa: E402
import phases  # noqa: E402

CONFIG = Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1)
RECIPE, RECORDING = Recipe(context=8, batch_size=4, n_steps=16), Recording(k=5, snapshot_every=4)
SHORT: dict[str, Any] = {"window": 2, "every": 1, "texts": 4, "common": 10}
WORD = "c00"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, RECORDING, model=transformer(CONFIG))


def settings(run, out, **given):
    return phase_causes.Settings(run.path, **{"stop": 16, "out": out, **SHORT, **given})


def files(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "nothing is changed; give --without, --top,"),
        ({"phrase": WORD}, "nothing is changed"),
        ({"without": True}, "--without leaves out the texts with a phrase; give --phrase"),
        ({"without": True, "phrase": "nowhere"}, "'nowhere' is not among the .* tokens"),
        ({"stop": 17, "lr": 1.0}, "steps 0 to 17 were asked for"),
        ({"stop": 1, "lr": 1.0}, "steps 0 to 1 are fewer than a window of 2"),
        ({"every": 3, "lr": 1.0}, "--every is 3; it must be at most the window, 2 steps"),
        ({"start": 4, "top": (3, 6)}, "--top is 3 6; it must be within steps 4 to 16"),
        ({"top": (6, 6)}, "--top is 6 6"),
        ({"start": 4, "seeds": (1,)}, "--start is 4; another seed begins with step 0"),
        ({"share": 1.0, "lr": 1.0}, "share is 1.0; it must be between 0 and 1"),
        ({"draws": -1, "lr": 1.0}, "draws is -1"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_arguments_are_checked_before_any_work(run, tmp_path, given, message):
    with pytest.raises((ValueError, KeyError), match=message):
        phase_causes.main(settings(run, tmp_path / "out", **given))
    assert files(tmp_path / "out") == set()


def test_each_change_is_made_and_measured_once(run, tmp_path, monkeypatch):
    made: list[tuple[Recipe, Any]] = []
    change = credit.change

    def counted(window, captured, losses, every, removed=None):
        made.append((window.recipe, removed))
        return change(window, captured, losses, every, removed)

    monkeypatch.setattr(credit, "change", counted)
    given: dict[str, Any] = {"start": 6, "phrase": WORD, "without": True, "top": (6, 12), "share": 0.1, "lr": 1.0}
    phase_causes.main(settings(run, tmp_path, draws=2, **given))
    steps = results.read_table(tmp_path, "phases_changed", tables.CHANGED_STEPS)
    longest = "without the longest 0.1 of steps 6 to 12"
    names = [
        *(
            "as it was",
            "learning rate 1",
            f"without texts with {WORD}",
            f"as many at random: without texts with {WORD}",
        ),
        *(longest, f"as many at random: {longest}", f"as long in all at random: {longest}"),
    ]
    assert set(steps["change"]) == set(names) and len(made) == 9
    assert steps.group_by("change", "draw").len()["len"].unique().to_list() == [5]
    phase_causes.main(settings(run, tmp_path, draws=2, **given))
    assert len(made) == 9  # done before
    phase_causes.main(settings(run, tmp_path, draws=3, **given))
    assert len(made) == 9 + 3
    own, random, top, many, long = (
        steps.filter((pl.col("change") == name) & (pl.col("draw") == 0))["left out"][0] for name in names[2:]
    )
    assert own == random and top == many == round(0.1 * 24) and long >= top
    dips = results.read_table(tmp_path, "phases_changed_dips", tables.CHANGED_DIPS)
    assert set(dips["change"]) <= set(names)


def test_removed_texts_are_those_with_the_phrase_and_the_longest(run, tmp_path):
    chosen = settings(run, tmp_path, start=4, phrase=WORD, without=True, top=(6, 10), share=0.2, draws=1)
    kind, intact = tables.kind_of(run, phase_causes.phrase_of(chosen, run)), phase_causes.as_it_was(chosen, run)
    removed = [change.removed for change in phase_causes.changes(chosen, run, kind, intact)]
    own, _, top, many, long = (mask for mask in removed if mask is not None)
    made = list(run.moves(4, 16))
    index = PLANTED.vocab.index(WORD)
    for t, move in enumerate(made):
        texts = [set(run.data.tokens[d].tolist()) | set(run.data.targets[d].tolist()) for d in move.datum]
        assert own[t].tolist() == [index in text for text in texts]
    norm, within = intact[0].square.sum(1).sqrt(), slice(2, 6)
    assert not any(mask[:2].any() or mask[6:].any() for mask in (top, many, long))
    count = int(top.sum())
    assert sorted(norm[within].flatten().tolist())[-count:] == sorted(norm[top].tolist())
    assert int(many.sum()) == count and float(norm[long].sum()) >= float(norm[top].sum()) - 1e-6
    assert not (top & (many | long)).any()


def test_another_seed_begins_with_its_own_weights(run, tmp_path):
    phase_causes.main(settings(run, tmp_path / "out", seeds=(7,), stop=8))
    other = recorded(
        tmp_path / "other", Recipe(context=8, batch_size=4, n_steps=16, seed=7), RECORDING, model=transformer(CONFIG)
    )
    steps = results.read_table(tmp_path / "out", "phases_changed", tables.CHANGED_STEPS)
    found = steps.filter(pl.col("change") == "seed 7")
    norms = torch.tensor([record.grad_norm for record in records.scan(other, 0, 8)]).view(4, 2).double().mean(1)
    assert found["gradient norm"].to_list() == pytest.approx(norms.tolist())
    assert len(training.initial(run.model, other.recipe)) == len(run.params(0))


def test_phases_say_what_stands_beside_the_texts_with_a_phrase(run, tmp_path):
    phases.main(phases.Settings((run.path,), out=tmp_path / "out", phrase=WORD, **SHORT))
    beside = results.read_table(tmp_path / "out", "phases_beside", tables.BESIDE)
    kind = credit.contains_phrase(run.data, [PLANTED.vocab.index(WORD)])
    for row in beside.iter_rows(named=True):
        found = [kind[record.datum] for record in records.scan(run, row["step"], row["step"] + 2)]
        assert row["kind, of the data"] == pytest.approx(float(torch.stack(found).double().mean()))
    dips = results.read_table(tmp_path / "out", "phases_dips", tables.DIPS)
    assert set(dips["series"]) == set(credit.SERIES) and len(dips) == 6
    with pytest.raises(KeyError, match="'nowhere' is not among"):
        phases.main(phases.Settings((run.path,), out=tmp_path / "none", phrase="nowhere", **SHORT))
    assert files(tmp_path / "none") == set()
