"""Laws of the sections on norms, directions, phases and retraining: the tables' words and numbers stand on the page."""

import re

import numpy as np
import polars as pl
import pytest
from run_builders import PLANTED as CORPUS
from run_builders import recorded

from devinterp_func.credit import Choice, Course
from devinterp_func.records import Recording
from devinterp_func.show import (
    _direction_sections,
    _norm_sections,
    _phase_sections,
    _retrain_sections,
    page,
    results,
    schema,
    tables,
)
from devinterp_func.training import Recipe

ROOMS = (_norm_sections, _direction_sections, _phase_sections, _retrain_sections)
WORDS = CORPUS.vocab.tokens


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(context=10, batch_size=6, n_steps=2)
    return recorded(tmp_path_factory.mktemp("runs") / "seed0" / "run", recipe, Recording(k=5))


def html(sections):
    return page.page("page", "of a run", sections)


def text(sections):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html(sections)))


def test_an_empty_folder_has_no_sections(run, tmp_path):
    assert [room.sections(run, tmp_path) for room in ROOMS] == [[], [], [], []]


# ---- norms


def write_norms(folder, tokens, past=0.0):
    sums: dict[str, object] = {"before": 1.0, "growth": 2.0, "first order": 0.5, "remainder": 1.5}
    sums |= {"past": past, "decay": 0.0}
    shares: dict[str, object] = {"share of 10 tokens": 0.25, "their share of positions": 0.125}
    span: dict[str, object] = {"from": 0, "to": 2}
    unit = span | {"unit": "layers.0.linear1.weight", "axis": "in", "neurons": 8, "missed": 1e-7} | sums | shares
    results.write_table(folder, "norms_units", schema.frame(tables.NORM_UNITS, [unit]))
    neurons = [span | {"neuron": f"layers.0.linear1.weight:{i}", "axis": "in"} | sums | shares for i in range(2)]
    results.write_table(folder, "norms_neurons", schema.frame(tables.NORM_NEURONS, neurons))
    rows = [
        span | {"neuron": "layers.0.linear1.weight:0", "reading": r, "effect": e, "rank": i, "token": t, "amount": x}
        for r, e, i, t, x in tokens
    ]
    results.write_table(folder, "norms_tokens", schema.frame(tables.NORM_TOKENS, rows))


def test_neurons_stand_beside_the_words_that_built_them(run, tmp_path):
    tokens = [("target", "built", 1, 5, 0.5), ("target", "built", 0, 4, 1.5e-5), ("target", "worn down", 0, 6, -0.25)]
    write_norms(tmp_path, [*tokens, ("input", "built", 0, 9, 7.0)])
    [section] = _norm_sections.sections(run, tmp_path)
    chips = re.findall(r'class="chip[^>]*>([^<]+)<', html([section]))
    assert chips == [f"{WORDS[4]} +1.5e−05", f"{WORDS[5]} +0.5", f"{WORDS[6]} −0.25"]  # by rank; of targets only
    assert "layers.0.linear1.weight:1" in text([section]) and "25.0%" in text([section])
    assert ">past<" not in html([section]) and ">decay<" not in html([section])
    write_norms(tmp_path, tokens, past=-0.75)
    [section] = _norm_sections.sections(run, tmp_path)
    assert ">past<" in html([section]) and "−0.750" in text([section]) and ">decay<" not in html([section])


def test_the_steps_are_told_once_where_all_rows_are_of_the_same(run, tmp_path):
    write_norms(tmp_path, [("target", "built", 0, 5, 0.5)])
    [section] = _norm_sections.sections(run, tmp_path)
    assert section.lead.endswith("Steps 0 to 2.") and not re.search(r"<span>(from|to)</span>", html([section]))
    names = ("norms_units", "norms_neurons", "norms_tokens")
    kinds = (tables.NORM_UNITS, tables.NORM_NEURONS, tables.NORM_TOKENS)
    for name, kind in zip(names, kinds, strict=True):
        later = results.read_table(tmp_path, name, kind).with_columns(pl.lit(1).cast(pl.Int64).alias("from"))
        results.add_rows(tmp_path, name, kind, later)
    [section] = _norm_sections.sections(run, tmp_path)
    assert "Steps" not in section.lead and len(re.findall(r"<span[^>]*>(?:from|to)</span>", html([section]))) == 4


def test_only_the_sign_of_an_amount_is_typeset_not_the_words_hyphen():
    vocab = CORPUS.vocab.__class__(("<unk>", "@-@"))
    row = {
        "from": 0,
        "to": 1,
        "neuron": "n",
        "reading": "target",
        "effect": "built",
        "rank": 0,
        "token": 1,
        "amount": 2.0,
    }
    [told] = _norm_sections.token_words(schema.frame(tables.NORM_TOKENS, [row]), vocab).iter_rows(named=True)
    assert told["built by"] == ["@-@ +2"] and told["worn down by"] == []


# ---- directions


def test_singular_pairs_stand_with_their_tokens_and_rotated_ones_as_the_control(run, tmp_path):
    span = {"from": 0, "to": 2, "unit": "layers.0.linear1.weight"}
    medians = {
        f"{side}: {kind}": 1.0 for side in ("target", "input") for kind in ("singular", "largest weights", "rotated")
    }
    units = span | medians | {"target: p": 0.015625, "input: p": 0.5}
    results.write_table(tmp_path, "directions_units", schema.frame(tables.DIRECTION_UNITS, [units]))
    pairs = [span | {"kind": kind, "rank": 0} for kind in ("singular", "rotated")]
    measures = {"change": 2.5, "consistency": 0.5, "target: divergence": 0.25, "input: divergence": 0.75}
    results.write_table(tmp_path, "directions", schema.frame(tables.DIRECTIONS, [pair | measures for pair in pairs]))
    listed = [
        pair | {"side": side, "reading": reading, "up": [up], "down": [7]}
        for pair, up in zip(pairs, (3, 4), strict=True)
        for side in ("target", "input")
        for reading in ("total", "per position")
    ]
    results.write_table(tmp_path, "directions_tokens", schema.frame(tables.DIRECTION_TOKENS, listed))
    [section] = _direction_sections.sections(run, tmp_path)
    chips = re.findall(r'class="chip[^>]*>([^<]+)<', html([section]))
    assert chips == [WORDS[3], WORDS[7]] * 2  # of the singular pair, in all; target and input
    assert len(section.items) == 3 and "0.0156" in text([section]) and "control" in html([section])


# ---- phases


def write_phases(folder, labels=("run",), steps=(10,)):
    windows, changes = [], []
    for i, label in enumerate(labels):
        for w, step in enumerate((0, 10, 20)):
            values = dict.fromkeys((*tables.STEPWISE, *tables.LOSSES), 5.0 - w + 100 * i)
            windows.append({"run": label, "units": "all", "step": step} | values)
        series = {"run": label, "series": "all", "change points": len(steps), "at steps": list(steps)}
        changes.append(series | {"over one segment": 1.0, "over a smooth course": -1.0})
    results.write_table(folder, "phases_windows", schema.frame(tables.WINDOWS, windows))
    results.write_table(folder, "phases_changes", schema.frame(tables.CHANGES, changes))


@pytest.mark.parametrize("steps", [(), (10,), (10, 20)])
def test_phases_are_drawn_with_their_change_points(run, tmp_path, steps):
    write_phases(tmp_path, steps=steps)
    [section] = _phase_sections.sections(run, tmp_path)
    marks = len(steps)
    assert [item.count("stroke-dasharray") for item in section.items] == [2 * marks, 2 * marks, 0]


def test_of_several_runs_this_one_is_drawn(run, tmp_path):
    for labels, chosen in (
        (("seed1/run", "seed0/run"), "seed0/run"),
        (("run", "seed1/run", "seed0/run"), "seed0/run"),
        (("seed0/run", "eed0/run"), "seed0/run"),  # a label is whole parts of the path
        (("other", "another"), "other"),
    ):
        assert _phase_sections.label_of(run, labels) == chosen
    for labels, hundreds in ((("seed1/run", "seed0/run"), True), (("seed0/run", "seed1/run"), False)):
        write_phases(tmp_path, labels, (10, 20))
        [section] = _phase_sections.sections(run, tmp_path)
        assert ("105" in section.items[0]) == hundreds  # the second label's losses fall from 105


def test_makers_have_their_text_and_their_units_with_shares(run, tmp_path):
    write_phases(tmp_path)
    row = {"run": "run", "phase": 0, "units": ["layers.0.linear1.weight"], "shares of the units": [0.75]}
    row |= {"share of the top 1 %": 0.5, "over-represented": [5], "largest datum": 3}
    results.write_table(tmp_path, "phases_makers", schema.frame(tables.MAKERS, [row]))
    said = text(_phase_sections.sections(run, tmp_path))
    assert " ".join(CORPUS.vocab.decode(run.data.tokens[3])) in said and "layers.0.linear1.weight 75%" in said
    assert WORDS[5] in said


def test_raw_tables_are_left_to_those_who_want_them(run, tmp_path):
    write_phases(tmp_path)
    nothing = schema.frame(tables.SNAPSHOTS, [])
    before = len(_phase_sections.sections(run, tmp_path)[0].items)
    results.write_table(tmp_path, "phases_snapshots", nothing)
    assert len(_phase_sections.sections(run, tmp_path)[0].items) == before


def test_step_figures_have_the_measures_that_were_cut(tmp_path, run):
    write_phases(tmp_path)
    windows = results.read_table(tmp_path, "phases_windows", tables.WINDOWS)

    course = Course(
        ["loss, bigram", "size"], windows["step"].to_numpy().astype(float), windows.select("size", "step").to_numpy()
    )
    found = _phase_sections.step_figures(windows, course, course.step[1:2])
    assert list(found) == ["phases_losses", "phases_steps"]
    lines = [[np.array(x).tolist() for x in line.get_data()] for line in found["phases_steps"].axes[0].lines]
    assert [y for _, y in lines if len(y) == 3] == [[0, 10, 20]]  # the second measure, not the loss
    assert any(x == [10, 10] for x, _ in lines)  # the change point


# ---- retraining


def test_removals_and_patches_stand_in_one_section(run, tmp_path):
    rows = [tables.outcome_frame(Choice("random", 0.1, i), 7, {"loss": x}) for i, x in enumerate((0.1, 0.3))]
    outcomes = pl.concat([*rows, tables.outcome_frame(Choice("norm", 0.1), 7, {"loss": 0.6875})])
    results.write_table(tmp_path, "retrain", tables.removal_frame(outcomes, {"loss": 1.0}, 0, 2))
    results.write_table(tmp_path, "retrain-0-2-loss-outcomes", outcomes)
    [section] = _retrain_sections.sections(run, tmp_path)
    assert len(section.items) == 1 and "0.688" in text([section])
    results.write_table(tmp_path, "retrain_tail", tables.patch_frame(outcomes, 0, 2))
    [section] = _retrain_sections.sections(run, tmp_path)
    assert len(section.items) == 2
