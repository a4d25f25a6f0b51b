"""Laws of the tables of phases: they hold what was measured, of the run that they name."""

import numpy as np
import polars as pl
import pytest
import torch
from run_builders import PLANTED as CORPUS
from run_builders import recorded

from devinterp_func import credit, records, stats
from devinterp_func.credit import Answer, Coherence, Course, Maker, SnapshotMeasures, WindowMeasures
from devinterp_func.records import Recording
from devinterp_func.show import tables
from devinterp_func.stats import Cut
from devinterp_func.training import Recipe

RECIPE = Recipe(context=10, batch_size=6, n_steps=40)
STEPS = [10, 20, 30, 40, 50, 60]
GROUPS = ["all", "layer 0"]
CUT = Cut((2, 5), np.array([3.0, 1.0, -4.0]), np.array([3.0, -2.0, 0.5]))
COURSE = Course(["size"], np.array([float(step) for step in STEPS]), np.zeros((6, 1)))


def measured():
    """Six windows of two groups; every number is another."""
    a, b, c, d, e = (torch.arange(12.0).double().view(6, 2) + 100 * i for i in range(5))
    return WindowMeasures(torch.tensor(STEPS), a, b, c, d, e, torch.arange(18.0).double().view(6, 3) + 1000)


# ---- runs told apart


@pytest.mark.parametrize(
    "paths, labels",
    [
        (["runs/demo"], ["demo"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["seed0/run", "seed1/run"], ["seed0/run", "seed1/run"]),
        (["x/seed0/run", "y/seed0/run", "y/seed1/run"], ["x/seed0/run", "y/seed0/run", "y/seed1/run"]),
        (["run", "seed1/run"], None),
    ],
)
def test_labels_are_the_shortest_parts_of_paths_that_differ(tmp_path, paths, labels):
    found = tables.run_labels([tmp_path / path for path in paths])
    assert found == (labels or [f"{tmp_path.name}/run", "seed1/run"])


def test_a_run_given_twice_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for other in ("run", "x/../run", "link"):
        with pytest.raises(ValueError, match="run is given 2 times; runs are compared with others"):
            tables.run_labels([tmp_path / "run", tmp_path / other])


# ---- of steps


def test_units_are_put_together_by_layer_and_kind():
    names = ["decoder.bias", "layers.1.linear1.weight", "layers.0.self_attn.in_proj_weight", "layers.0.linear1.weight"]
    assert tables.unit_groups(names) == {
        "all": [0, 1, 2, 3],
        "layer 1": [1],
        "layer 0": [2, 3],
        "linear1": [1, 3],
        "in_proj": [2],
    }


def test_windows_hold_each_groups_measures_and_the_losses_once():
    frame = tables.window_frame("a", measured(), GROUPS)
    assert frame.columns == list(tables.WINDOWS.columns) and set(frame["run"]) == {"a"}
    for g, group in enumerate(GROUPS):
        for w, row in enumerate(frame.filter(pl.col("units") == group).iter_rows(named=True)):
            assert row["step"] == STEPS[w]
            assert [row[name] for name in tables.STEPWISE] == [2 * w + g + 100 * i for i in range(5)]
            assert [row[name] for name in tables.LOSSES] == (
                [1000 + 3 * w + i for i in range(3)] if g == 0 else [None] * 3
            )


def test_the_course_is_of_the_losses_and_of_all_units_together():
    course = tables.phase_course(measured())
    assert course.names == [*tables.LOSSES, *tables.STEPWISE] and course.step.tolist() == STEPS
    rows = np.array([[1000 + 3 * w + i for i in range(3)] + [2 * w + 100 * i for i in range(5)] for w in range(6)])
    assert np.allclose(course.values, stats.standardise(rows.astype(float), course.names))


def test_changes_and_models_say_what_the_cut_says():
    none = Cut((), np.array([1.0, 2.0]), np.array([0.5, 4.0]))
    one, other = tables.change_frame("a", {"all": CUT, "size": none}, COURSE).iter_rows(named=True)
    assert (one["run"], one["series"], one["change points"], one["at steps"]) == ("a", "all", 2, [30, 60])
    assert (one["over one segment"], one["over a smooth course"]) == (7, 2)
    assert (other["change points"], other["at steps"], other["over one segment"]) == (0, [], 0)
    assert other["over a smooth course"] == -0.5
    models = tables.model_frame("a", CUT)
    assert models.rows() == [("a", 1, 3, 3), ("a", 2, 1, -2), ("a", 3, -4, 0.5)]


def test_segments_are_means_of_their_windows():
    frame = tables.segment_frame(tables.window_frame("a", measured(), GROUPS), CUT)
    assert frame.select("run", "phase", "from", "to").rows() == [("a", 0, 10, 30), ("a", 1, 30, 60), ("a", 2, 60, 70)]
    assert frame["size"].to_list() == [1, 6, 10] and frame["loss, bigram"].to_list() == [1002.5, 1010, 1016]


def test_makers_name_the_units_with_the_largest_shares():
    maker = Maker(torch.tensor([0.2, 0.5, 0.3]), 0.25, [7, 3], 11)
    [row] = tables.maker_frame("a", [maker], ["x", "y", "z"], most=2).iter_rows(named=True)
    assert row["units"] == ["y", "z"] and row["shares of the units"] == pytest.approx([0.5, 0.3])
    assert (row["phase"], row["share of the top 1 %"], row["over-represented"]) == (0, 0.25, [7, 3])
    assert row["largest datum"] == 11


def course_with(points, name="size"):
    """Two hundred windows of ten steps, and change points in them."""
    return Course([name], np.arange(0.0, 2000.0, 10.0), np.zeros((200, 1))), np.array(points)


def test_seeds_are_held_against_points_placed_at_random():
    """Evenly spaced points that coincide: placed ones lie farther apart; rotated ones keep the even spacing."""
    points = [50.0, 400.0, 900.0, 1500.0]
    frame = tables.seed_frame({"a": course_with(points), "b": course_with([60.0, 410.0, 890.0, 1510.0])}, key=0)
    assert frame["runs"].to_list() == [["a", "b"]] * 2 and frame["axis"].to_list() == ["steps", "log steps"]
    assert frame["series"].to_list() == [2, 2]
    assert frame["distance"][0] == pytest.approx(10)
    logged = [abs(np.log1p(x) - np.log1p(y)) for x, y in zip(points, [60.0, 410.0, 890.0, 1510.0], strict=True)]
    assert frame["distance"][1] == pytest.approx(np.mean(logged))
    rng = np.random.Generator(np.random.Philox(1))
    drawn = [[rng.uniform(30, 1970, 4) for _ in range(2)] for _ in range(3000)]
    near = [np.abs(a[:, None] - b).min(1).mean() / 2 + np.abs(b[:, None] - a).min(1).mean() / 2 for a, b in drawn]
    assert frame["chance"][0] == pytest.approx(np.mean(near), rel=0.05)
    assert frame["p"][0] == pytest.approx(1 / 1000)


def test_coinciding_measures_are_held_against_rotated_points():
    """Two series with the same two points 600 apart: rotated ones never come nearer than their own spacing allows."""
    names = ["size", "alignment", "coherence"]
    course = Course(names, np.arange(0.0, 2000.0, 10.0), np.zeros((200, 3)))
    cuts = {name: Cut((40, 100), np.zeros(1), np.zeros(1)) for name in names[:2]}
    cuts |= {"coherence": Cut((), np.zeros(1), np.zeros(1)), "all": Cut((7,), np.zeros(1), np.zeros(1))}
    frame = tables.coincidence_frame("a", cuts, course, key=0)
    assert set(frame["run"]) == {"a"} and frame["series"].to_list() == [2, 2] and frame["distance"].to_list() == [0, 0]
    rng, low, width = np.random.Generator(np.random.Philox(1)), 30.0, 1940.0
    near = []
    for _ in range(3000):
        a, b = (low + (np.array([400.0, 1000.0]) - low + rng.uniform(0, width)) % width for _ in range(2))
        near.append((np.abs(a[:, None] - b).min(1).mean() + np.abs(b[:, None] - a).min(1).mean()) / 2)
    assert frame["chance"][0] == pytest.approx(np.mean(near), rel=0.05)


def test_the_common_span_of_several_runs_is_where_all_have_points():
    short = Course(["size"], np.arange(500.0, 1500.0, 10.0), np.zeros((100, 1)))
    seeds = {"a": course_with([600.0]), "b": (short, np.array([600.0]))}
    rng = np.random.Generator(np.random.Philox(1))
    expected = np.mean(np.abs(rng.uniform(530, 1470, 5000) - rng.uniform(530, 1470, 5000)))
    assert tables.seed_frame(seeds, key=0)["chance"][0] == pytest.approx(expected, rel=0.08)


# ---- of snapshots


def test_snapshots_and_answers_are_what_was_measured():
    nan = torch.nan
    norm, moved, turn = (torch.tensor(x) for x in ([5.0, 6.0], [nan, 0.5], [nan, nan]))
    found = SnapshotMeasures(torch.tensor([0, 10]), norm, moved, turn, torch.ones(2, 3))
    frame = tables.snapshot_frame("a", "log", found)
    assert frame.rows() == [("a", "log", 0, 5, None, None, 1, 1, 1), ("a", "log", 10, 6, 0.5, None, 1, 1, 1)]
    answers = tables.answer_frame("a", "even", [Answer(33, 30, 3.0, 2.0, 7.5), Answer(50, None, None, 1.0, None)])
    assert answers.rows() == [("a", "even", 33, 30, 3, 2, 7.5), ("a", "even", 50, None, None, 1, None)]
    assert tables.answer_frame("a", "even", []).schema == answers.schema


def test_courses_of_snapshots_are_held_against_the_whole_run_of_all_units():
    windows = tables.window_frame("a", measured(), GROUPS)
    losses = torch.tensor([[1000.0, 1.0, 2.0], [1015.0, 9.0, 1.0]]).double()
    nothing = torch.zeros(2).double()
    found = SnapshotMeasures(torch.tensor([10, 60]), nothing, nothing, nothing, losses)
    frame = tables.snapshot_course_frame(windows, "even", found)
    assert frame["measure"].to_list() == list(tables.LOSSES) and set(frame["run"]) == {"a"}
    likeness = credit.course_likeness(
        np.array(STEPS, dtype=float),
        np.array([1001.0 + 3 * w for w in range(6)]),
        np.array([10.0, 60]),
        np.array([1, 9.0]),
    )
    assert frame.row(1)[3:] == pytest.approx(tuple(likeness))


# ---- a whole run


def test_a_runs_tables_are_of_its_own_data(tmp_path):
    run = recorded(tmp_path / "run", RECIPE, Recording(k=5, snapshot_every=8))
    losses = lambda params: torch.stack([w.norm() for w in params.values()][:3])  # noqa: E731
    for _ in credit.coherence(run, tmp_path / "walk", losses, {}, start=4, every=2):
        pass
    steps = records.read_walk(tmp_path / "walk", Coherence)
    frames, course, points = tables.phase_frames("a", run, steps, 3, key=0)
    assert all(tables.PHASE_TABLES[name].columns.keys() == set(frame.columns) for name, frame in frames.items())
    assert frames["segments"]["from"].to_list() == [4, *points.astype(int)] and frames["segments"]["to"][-1] == 40
    [together] = frames["changes"].filter(pl.col("series") == "all")["at steps"].to_list()
    assert together == points.astype(int).tolist()
    first, last = frames["segments"].row(0, named=True), frames["makers"].row(0, named=True)
    made = list(run.moves(first["from"], first["to"]))
    square = {
        (t, int(id)): float(steps.square[t - 4, :, j].sum())
        for t, move in enumerate(made, 4)
        for j, id in enumerate(move.datum)
    }
    assert last["largest datum"] == max(square, key=square.__getitem__)[1]
    more = tables.snapshot_frames("a", run, frames["windows"], points, losses, run.snapshots, 4)
    assert list(more) == ["snapshots", "answers", "courses"]
    assert set(more["snapshots"]["spacing"]) == {"even", "log"} and len(CORPUS.vocab) > 0
    for row in more["snapshots"].iter_rows(named=True):
        assert row["loss, unigram"] == pytest.approx(float(losses(run.params(row["step"]))[0]))
