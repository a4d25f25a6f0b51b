"""Laws of phases: what is cut, who makes them, and what a few snapshots can say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from devinterp_func import credit, keys, stats, tree
from devinterp_func.credit import Coherence, Course

STEP = np.arange(0.0, 120.0, 10.0)
JUMP = np.r_[np.zeros(5), np.full(7, 4.0)] + 0.01 * np.sin(np.arange(12))


# ---- courses and windows


def test_a_course_keeps_what_is_finite_and_changes():
    nothing, still = np.full(12, np.nan), np.ones(12)
    found = credit.course(["a", "gap", "still", "b"], STEP, np.stack([JUMP, nothing, still, -JUMP], 1))
    assert found.names == ["a", "b"] and np.allclose(found.values.mean(0), 0) and np.allclose(found.values.std(0), 1)
    with pytest.raises(ValueError, match="none of gap, still is finite and changes"):
        credit.course(["gap", "still"], STEP, np.stack([nothing, still], 1))


def test_a_span_leaves_room_for_the_least_segment_at_either_end():
    course = Course(["a"], STEP, JUMP[:, None])
    assert course.span() == (10.0 * stats.LEAST, 120.0 - 10 * stats.LEAST)


def test_a_jump_is_found_in_each_series_and_in_all_together():
    course = credit.course(["a", "b"], STEP, np.stack([JUMP, JUMP + 5], 1))
    cuts = credit.cut_course(course)
    assert list(cuts) == ["all", "all, less a smooth course", "a", "b"]
    for name in ("all", "a", "b"):
        assert credit.change_points(cuts[name], course).tolist() == [50]


def test_what_is_left_beside_a_smooth_course_is_cut_too():
    smooth = 3 * np.log1p(STEP)
    course = credit.course(["a", "b"], STEP, np.stack([smooth, smooth**2], 1))
    cuts = credit.cut_course(course)
    k = int(cuts["all"].smooth.argmin()) + 1
    rest = course.values - stats.smooth_course(course.values, course.step, k)
    found, expected = cuts["all, less a smooth course"], stats.cut(rest, course.step)
    assert found.rows == expected.rows and np.allclose(found.segments, expected.segments)


@some
@given(n_steps=st.integers(1, 300), width=st.integers(1, 100), every=st.integers(1, 100))
def test_windows_are_refused_just_where_they_cannot_be_cut_and_the_one_named_would_do(n_steps, width, every):
    if every <= width and n_steps // width >= 4:
        credit.require_windows(n_steps, width, every)
        return
    with pytest.raises(ValueError) as refused:
        credit.require_windows(n_steps, width, every)
    said = str(refused.value)
    if every > width:
        assert said == f"every is {every}; it must be at most the window, {width} steps"
    elif n_steps < 4:
        assert said.endswith("at least 4 steps are needed")
    else:
        assert f"{n_steps} steps make {n_steps // width} windows of {width}," in said
        words = said.partition(": ")[2].split()
        named = {name: int(value) for name, value in zip(words[:-1], words[1:], strict=True) if name.startswith("--")}
        credit.require_windows(n_steps, named["--window"], named.get("--every", every))
        with pytest.raises(ValueError):
            credit.require_windows(n_steps, named["--window"] + 1, 1)  # the widest there is


# ---- makers


def test_makers_are_the_units_and_data_with_most_of_a_phase():
    generator = keys.generator(3)
    square = torch.from_numpy(generator.exponential(size=(10, 2, 30)))  # steps 20 to 29, two units, 30 data
    datum = torch.from_numpy(generator.permutation(300)).view(10, 30)
    tokens = torch.from_numpy(generator.integers(0, 8, (300, 6)))
    square[7, :, 4] = 50.0
    tokens[datum[7, 4]] = 3
    nothing = torch.full((10, 2), torch.nan)
    steps = Coherence(torch.arange(20, 30), square, square, nothing, nothing, nothing)
    for maker, (first, stop) in zip(
        credit.makers(steps, datum, tokens, 8, [(20, 24), (24, 30)]), ((0, 4), (4, 10)), strict=True
    ):
        whole = float(square[first:stop].sum())
        for u in range(2):
            assert float(maker.units[u]) == pytest.approx(float(square[first:stop, u].sum()) / whole)
        own = {int(datum[t, j]): float(square[t, :, j].sum()) for t in range(first, stop) for j in range(30)}
        ranked = sorted(own, key=own.__getitem__, reverse=True)
        top = ranked[: round(0.01 * len(ranked))]
        assert maker.largest == ranked[0] and maker.top == pytest.approx(sum(own[d] for d in top) / whole)
        rates = [np.bincount(tokens[ids].flatten().numpy(), minlength=8) for ids in (top, list(own))]
        over = [v for v in range(8) if rates[0][v] / rates[0].sum() > rates[1][v] / rates[1].sum()]
        assert maker.tokens and set(maker.tokens) <= set(over)
    assert maker.largest == int(datum[7, 4]) and maker.tokens[0] == 3
    [fewer] = credit.makers(steps, datum, tokens, 8, [(24, 30)], 1)
    assert fewer.tokens == [3]


# ---- a few snapshots


def test_snapshots_tell_norms_ways_and_losses():
    weights = {0: [3.0, 4.0], 10: [3.0, 8.0], 30: [9.0, 8.0], 40: [9.0, 2.0]}
    params = [(step, {"a": torch.tensor(w), "b": torch.ones(2) * step}) for step, w in weights.items()]
    found = credit.measure_snapshots(params, ["a"], lambda p: p["b"][:1] / 2)
    assert found.step.tolist() == [0, 10, 30, 40] and found.loss[:, 0].tolist() == [0, 5, 15, 20]
    assert found.norm.tolist() == pytest.approx([5, 73**0.5, 145**0.5, 85**0.5])
    assert found.moved[1:].tolist() == pytest.approx([0.4, 0.3, 0.6]) and found.moved[0].isnan()
    assert found.turn[2:].tolist() == pytest.approx([0, 0], abs=1e-9) and found.turn[:2].isnan().all()
    back = [*params[:2], (20, {"a": torch.tensor([3.0, 6.0]), "b": torch.ones(2)})]
    assert float(credit.measure_snapshots(back, ["a"], lambda p: p["b"][:1]).turn[2]) == pytest.approx(-1)


def test_a_snapshot_course_has_means_over_each_gap_and_its_own_movement():
    params = [(step, {"a": torch.tensor([x])}) for step, x in ((0, 1.0), (10, 2.0), (30, 8.0), (40, 5.0), (50, 1.5))]
    measured = credit.measure_snapshots(params, ["a"], lambda p: p["a"] ** 2)
    found = credit.snapshot_course(measured, ["loss"])
    assert found.names == ["loss", "norm", "moved per step"] and found.step.tolist() == [0, 10, 30, 40]
    rows = np.array([[2.5, 1.5, 0.1], [34.0, 5.0, 0.3], [44.5, 6.5, 0.3], [13.625, 3.25, 0.35]])
    assert np.allclose(found.values, stats.standardise(rows, found.names))


def test_a_single_gap_may_be_a_phase():
    course = Course(["a"], np.arange(5.0), np.array([0.0, 0, 0, 0, 9])[:, None] / 9)
    assert credit.snapshot_cut(course).rows == (4,)


@pytest.mark.parametrize("spacing", credit.SPACINGS)
def test_few_snapshots_are_the_nearest_to_where_they_are_wanted(spacing):
    snapshots, m = [0, 3, 10, 20, 40, 45, 80, 200], 5
    wanted = (
        [200 * i / 4 for i in range(5)] if spacing == "even" else [0] + [3 * (200 / 3) ** (i / 3) for i in range(4)]
    )
    distances = [[abs(step - x) for step in snapshots] for x in wanted]
    nearest = {snapshots[row.index(min(row))] for row in distances}
    assert credit.choose_snapshots(snapshots, m, spacing) == sorted(nearest)


def test_too_few_snapshots_are_refused():
    for snapshots, m in (([0, 1, 2], 8), ([0, 1, 2, 3, 4], 3)):
        with pytest.raises(ValueError, match=f"{m} of {len(snapshots)} snapshots are asked for"):
            credit.choose_snapshots(snapshots, m, "log")
    assert credit.choose_snapshots([0, 1, 2, 3], 4, "log") == [0, 1, 2, 3]


def test_answers_are_distances_in_steps():
    few, snapshots = np.array([30.0, 50.0]), [0, 10, 30, 50, 100]
    one, other = credit.snapshot_answers(np.array([33.0, 90.0]), few, snapshots)
    assert (one.full, one.nearest, one.distance, one.at_best) == (33, 30, 3, 3)
    assert (other.full, other.nearest, other.distance, other.at_best) == (90, 50, 40, 40)
    assert [one.by_chance, other.by_chance] == pytest.approx([(3 + 17 + 3) / 3, (60 + 40 + 40) / 3])
    [none] = credit.snapshot_answers(np.array([33.0]), np.array([]), snapshots)
    assert none == (33, None, None, 3, None)


def test_a_course_through_points_of_the_same_course_is_like_it():
    step = np.arange(0.0, 200.0, 5.0)
    full = 4 - 0.5 * np.log1p(step)
    found = credit.course_likeness(step, full, step[::13], full[::13])  # 0, 65, 130, 195
    assert found.correlation == pytest.approx(1) and found.missed == pytest.approx(0, abs=1e-9)
    bent = full + np.where(step > 60, 1.0, 0.0)
    known = np.array([0.0, 50.0, 70.0, 195.0])
    near = credit.course_likeness(step, bent, known, np.interp(known, step, bent))
    drawn = np.interp(np.log1p(step), np.log1p(known), np.interp(known, step, bent))
    assert near.missed == pytest.approx(np.sqrt(((bent - drawn) ** 2).mean()))
    assert near.correlation == pytest.approx(np.corrcoef(bent, drawn)[0, 1])
    rest = [x - np.polyval(np.polyfit(np.log1p(step), x, 1), np.log1p(step)) for x in (bent, drawn)]
    assert near.detrended == pytest.approx(np.corrcoef(*rest)[0, 1])
    flat = credit.course_likeness(step, np.ones_like(step), known, np.ones(4))
    assert np.isnan(flat.correlation) and flat.missed == 0


def test_a_repeated_snapshot_has_no_way():
    same = {"a": torch.ones(3)}
    assert (
        float(credit.measure_snapshots([(0, same), (4, tree.map(torch.clone, same))], ["a"], lambda p: p["a"]).moved[1])
        == 0
    )
