"""Laws of the bigram walk: every step against the dense definition, sums over data and steps, resuming, refusals."""

from collections.abc import Generator

import pytest
import torch
from run_builders import MODEL, PLANTED

from devinterp_func import batches, bigram, graph, records, training
from devinterp_func.bigram import Shifts, _shifts

V = len(PLANTED.vocab)
W_U, W_E = "decoder.weight", "embedding.weight"


def replayed(walked, step):
    """A step, every datum's whole delta of embedding and unembedding with it."""
    return records.replay(walked.run, step, captured=(W_U, W_E))


@pytest.mark.parametrize("step", [0, 13, 50, 74])
def test_a_step_is_the_definitions(walked, step):
    shifts, again = walked.shifts, replayed(walked, step)
    four = [again.before[name].double() for name in (W_U, W_E)]
    four += [(again.after[name] - again.before[name]).double() for name in (W_U, W_E)]
    dense = bigram.shift(*four)
    order = dense.flatten().abs().argsort(descending=True, stable=True)[:7]
    value = shifts.value()[step]
    torch.testing.assert_close(value, dense.flatten()[order])
    assert (shifts.output[step].long() * V + shifts.input[step]).tolist() == order.tolist()
    assert shifts.step[step] == step and float(shifts.bound[step]) <= float(value[-1].abs())
    assert int(shifts.evaluated[step]) >= 7 and int(shifts.pairs[step]) > 0
    W, E, dW, dE = four
    at = shifts.output[step].long(), shifts.input[step].long()
    for term, whole in zip(shifts[3:6], (W @ dE.T, dW @ E.T, dW @ dE.T), strict=True):
        torch.testing.assert_close(term[step], whole[at])
    chosen = bigram.decoder(W, E)[tuple(walked.pairs)]
    torch.testing.assert_close(shifts.entry[step], chosen)
    after = bigram.decoder(again.after[W_U].double(), again.after[W_E].double())[tuple(walked.pairs)]
    torch.testing.assert_close(shifts.change[step], after - chosen)


def parts_of(again, output, input):
    """Each datum's first-order part of the shifts at some pairs, from its own whole delta."""
    W, E = again.before[W_U].double(), again.before[W_E].double()
    dU, dE = (again.deltas[name].double() for name in (W_U, W_E))
    return torch.einsum("pd,npd->np", W[output], dE[:, input]) + torch.einsum("npd,pd->np", dU[:, output], E[input])


@pytest.mark.parametrize("step", [0, 13, 74])
def test_the_split_over_data_is_that_of_their_own_updates(walked, step):
    shifts, again = walked.shifts, replayed(walked, step)
    part = parts_of(again, shifts.output[step].long(), shifts.input[step].long())
    towards = part * shifts.value()[step].sign()
    amount = shifts.amount[step].double()
    torch.testing.assert_close(amount * shifts.value()[step].sign(), towards.amax(0), rtol=1e-3, atol=1e-7)
    named = [again.record.datum.tolist().index(j) for j in shifts.datum[step].tolist()]
    torch.testing.assert_close(part[named, range(7)], amount, rtol=1e-3, atol=1e-7)
    assert float(shifts.missed[step]) < 1e-5 * max(1.0, float(part.abs().max()))


def test_missed_is_what_the_split_leaves_of_the_worst_shift(walked):
    """With the factor of the embedding taken away, the split misses the terms it is in."""
    step = int(walked.shifts.embedding.abs().amax(1).argmax())
    (move,) = walked.run.moves(step, step + 1, captured=bigram.capture_units(walked.run.graph))
    lookup = move.factors[W_E]
    broken = move._replace(factors=move.factors | {W_E: lookup._replace(signals=0 * lookup.signals)})
    found = _shifts.step_shifts(walked.run.graph, broken, 7, *walked.pairs)
    lost = float((walked.shifts.embedding[step] + walked.shifts.cross[step]).abs().max())
    assert float(found.missed) == pytest.approx(lost, rel=1e-4) and lost > 0.01


def test_a_walk_over_a_run_with_memory_splits_each_searched_step(with_memory):
    shifts, run = with_memory.shifts, with_memory.run
    assert shifts.searched().step.tolist() == [0, 4, 8, 12]
    for step in range(14):
        (move,) = run.moves(step, step + 1, captured=bigram.capture_units(run.graph))
        before, after = (
            bigram.decoder(move_to[W_U].double(), move_to[W_E].double()) for move_to in (move.before, move.after)
        )
        torch.testing.assert_close(shifts.change[step], (after - before)[tuple(with_memory.pairs)], rtol=0, atol=1e-12)
        if step % 4:
            assert not shifts.value()[step].any() and shifts.datum[step].tolist() == [-1] * 7
            continue
        largest = (after - before).abs().flatten().sort(descending=True).values[:7]
        torch.testing.assert_close(shifts.value()[step].abs(), largest, rtol=1e-4, atol=1e-7)
        parts = shifts.present[step] + shifts.past[step] + shifts.decay[step] + shifts.cross[step]
        torch.testing.assert_close(parts, shifts.value()[step], rtol=0, atol=1e-5)
        assert float(shifts.missed[step]) < 1e-5
    assert not shifts.past[0].any() and shifts.past[4].any() and shifts.decay[0].any()


def test_a_later_walk_searches_the_same_steps(with_memory, tmp_path):
    list(bigram.shifts(with_memory.run, tmp_path / "w", start=3, stop=9, **with_memory.options))
    part = records.read_walk(tmp_path / "w", Shifts)
    for one, whole in zip(part, with_memory.shifts, strict=True):
        assert torch.equal(one, whole[3:9])
    with pytest.raises(records.RecordError, match="every: there 4, now 1"):
        list(bigram.shifts(with_memory.run, tmp_path / "w", start=3, **with_memory.options | {"every": 1}))


def test_the_split_of_a_step_without_some_data_adds_up():
    """The divisor of the mean gradient stays the batch size."""
    recipe, data = training.Recipe(context=10, batch_size=6), batches.chunk(PLANTED.train, 10)
    params, removed = training.initial(MODEL, recipe), torch.zeros(1, 6, dtype=torch.bool)
    removed[0, [1, 4]] = True
    made = graph.of(MODEL.loss, params, data.tokens[0], data.targets[0])
    captured = bigram.capture_units(made)
    (move,) = training.moves(made, params, data, recipe, captured=captured, start=0, stop=1, removed=removed)
    found = _shifts.step_shifts(made, move, 5, torch.tensor([0]), torch.tensor([0]))
    assert float(found.value().abs().min()) > 1e-3 and float(found.missed) < 1e-6


def test_shifts_add_up_to_the_change_between_any_snapshots(walked):
    assert walked.run.snapshots == [0, 20, 40, 60, 75]
    for step in walked.run.snapshots:
        params = walked.run.params(step)
        entry = bigram.entries(walked.pairs.output, walked.pairs.input, params[W_U], params[W_E])
        assert bigram.telescope(walked.shifts, step, entry) < 1e-12
        entry[1] += 0.25
        assert bigram.telescope(walked.shifts, step, entry) == pytest.approx(0.25)
    for outside in (-1, 76):
        with pytest.raises(ValueError, match=f"step {outside} is not in the walk over steps 0 to 74"):
            bigram.telescope(walked.shifts, outside, entry)


def test_a_walk_that_was_stopped_goes_on_with_the_same_bits(walked, tmp_path):
    steps = bigram.shifts(walked.run, tmp_path / "walk", **walked.options)
    for step, _ in steps:
        if step == 70:  # six steps after the first shard
            break
    assert isinstance(steps, Generator)
    steps.close()
    assert len(records.read_walk(tmp_path / "walk", Shifts).step) == records.SHARD
    rest = [step for step, _ in bigram.shifts(walked.run, tmp_path / "walk", **walked.options)]
    assert rest == list(range(records.SHARD, 75))
    for one, other in zip(records.read_walk(tmp_path / "walk", Shifts), walked.shifts, strict=True):
        assert torch.equal(one, other)
    assert list(bigram.shifts(walked.run, tmp_path / "walk", **walked.options)) == []  # nothing is left to do


def test_a_walk_may_start_later_and_be_taken_farther(walked, tmp_path):
    whole = walked.shifts
    list(bigram.shifts(walked.run, tmp_path / "w", start=30, stop=34, **walked.options))
    list(bigram.shifts(walked.run, tmp_path / "w", start=30, stop=41, **walked.options))
    part = records.read_walk(tmp_path / "w", Shifts)
    assert part.step.tolist() == list(range(30, 41))
    assert torch.equal(part.value(), whole.value()[30:41]) and torch.equal(part.entry, whole.entry[30:41])
    assert repr(part).startswith("Shifts of 11 steps: the 7 largest up to 0.") and repr(part).endswith("3 chosen pairs")


def test_another_walk_in_the_folder_is_refused_in_a_line(walked):
    with pytest.raises(records.RecordError, match="k: there 7, now 8"):
        list(bigram.shifts(walked.run, walked.folder, **(walked.options | {"k": 8})))
    with pytest.raises(records.RecordError, match="follows other pairs of tokens; follow the same ones"):
        list(bigram.shifts(walked.run, walked.folder, **(walked.options | {"input": torch.tensor([3, 9, 16])})))
    with pytest.raises(records.RecordError):
        list(bigram.shifts(walked.run, walked.run, **walked.options))
    assert len(records.read_walk(walked.folder, Shifts).step) == 75


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"start": 80}, "steps 80 to 75 were asked for"),
        ({"stop": 76}, "has 75 recorded steps"),
        ({"k": 0}, "k is 0"),
        ({"every": 0}, "every is 0"),
        ({"k": V**2 + 1}, f"k is {V**2 + 1}; it must be from 1 to V² = {V**2}"),
        ({"output": torch.tensor([5, 9, 999])}, "output has tokens from 5 to 999"),
    ],
)
def test_bad_input_is_named(walked, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        list(bigram.shifts(walked.run, tmp_path / "walk", **(walked.options | wrong)))
    assert not (tmp_path / "walk").exists()


def test_a_step_without_the_factors_says_how_to_make_it(walked):
    for captured in ((), (W_E,), (W_U,)):
        move = next(walked.run.moves(0, 1, captured=captured))
        with pytest.raises(ValueError, match=r"make it with captured=\('decoder.weight', 'embedding.weight'\)"):
            bigram.datum_split(walked.run.graph, move, *walked.pairs)
