"""Laws of what stands beside the steps: rates, units, one kind of data; and of steps made in another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import recorded
from strategies import some
from windows import linear, texts

from devinterp_func import batches, credit, keys, records, training
from devinterp_func.credit import Circumstances, Coherence
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

EVERY_UNIT = ("*",)


def nothing(params):
    return torch.zeros(1)


def drawn(S=8, U=3, n=4, N=30, seed=0):
    """Steps and their circumstances, some places of which were left out."""
    rng = keys.generator(seed)
    datum = torch.from_numpy(rng.integers(0, N, (S, n)))
    square, loss = torch.from_numpy(rng.exponential(size=(S, U, n))), torch.from_numpy(rng.exponential(size=(S, n)))
    there = torch.from_numpy(rng.random((S, n)) < 0.8)
    there[:, 0] = True
    datum, square = datum.where(there, torch.tensor(credit.NONE)), square * there[:, None]
    unknown = torch.full((S, U), torch.nan)
    steps = Coherence(torch.arange(S), square, square, unknown, unknown, torch.zeros(S, 1))
    rate, clip, norm = torch.from_numpy(rng.random((3, S)))
    return steps, Circumstances(rate, clip, norm, datum, loss.where(there, torch.tensor(torch.nan).double()))


@some
@given(seed=st.integers(0, 99), width=st.integers(1, 8), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_one_kind_is_held_against_all_others(seed, width, share):
    steps, beside = drawn(seed=seed)
    kind = torch.from_numpy(keys.generator(seed + 500).random(30) < share)
    found = credit.beside_windows(steps, beside, kind, width)
    for w, first in enumerate(range(0, 8 - width + 1, width)):
        own: list[tuple[float, float]] = []
        rest: list[tuple[float, float]] = []
        for t in range(first, first + width):
            for j in range(4):
                if (id_ := int(beside.datum[t, j])) != credit.NONE:
                    (own if kind[id_] else rest).append((float(steps.square[t, :, j].sum()), float(beside.loss[t, j])))
        whole = own + rest
        assert found.kind.data[w] == pytest.approx(len(own) / len(whole))
        assert found.kind.square[w] == pytest.approx(sum(x for x, _ in own) / sum(x for x, _ in whole))
        for loss, data in ((found.kind.loss, own), (found.kind.rest_loss, rest)):
            expected = np.mean([x for _, x in data]) if data else math.nan
            assert loss[w] == pytest.approx(expected, nan_ok=True)
        left = np.array([x for x, _ in rest])
        alone = left.sum() ** 2 / (left**2).sum() / len(left) if len(left) else math.nan
        assert found.kind.rest[w] == pytest.approx(alone, nan_ok=True)
        rows = slice(first, first + width)
        means = [float(x[rows].mean()) for x in beside[:3]]
        assert [found.rate[w], found.clip[w], found.norm[w]] == pytest.approx(means)
        units = steps.square[rows].sum((0, 2))
        assert found.unit[w] == int(units.argmax())
        assert found.unit_share[w] == pytest.approx(float(units.max() / units.sum()))


@some
@given(seed=st.integers(0, 99), length=st.integers(1, 4))
def test_texts_with_a_phrase_are_those_that_a_search_finds(seed, length):
    rng = keys.generator(seed)
    stream = torch.from_numpy(rng.integers(0, 3, (12, 6)))
    data, phrase = batches.Data(stream[:, :-1], stream[:, 1:]), rng.integers(0, 3, length).tolist()
    found = credit.contains_phrase(data, phrase)
    for row, there in zip(stream.tolist(), found.tolist(), strict=True):
        assert there == any(row[i : i + length] == phrase for i in range(6 - length + 1))


@pytest.mark.parametrize("phrase", [[], [1] * 4])
def test_a_phrase_of_no_tokens_or_too_many_is_refused(phrase):
    with pytest.raises(ValueError, match=f"the phrase has {len(phrase)} tokens; a text has 3"):
        credit.contains_phrase(batches.Data(torch.ones(2, 2).long(), torch.ones(2, 2).long()), phrase)


# ---- steps made in another way


def test_an_unchanged_training_is_measured_as_a_replay_is(tmp_path):
    run = recorded(tmp_path / "run", Recipe(context=10, batch_size=6, n_steps=12), Recording(k=5, snapshot_every=5))
    losses = lambda params: torch.stack([w.norm() for w in params.values()][:2])  # noqa: E731
    for _ in credit.coherence(run, tmp_path / "walk", losses, {}, every=3):
        pass
    walked = records.read_walk(tmp_path / "walk", Coherence)
    for start in (0, 5, 7):
        window = credit.window_from(run, start, 12)
        changed = credit.change(window, run.recording.units, losses, 3)
        for name, here, there in zip(Coherence._fields, changed.steps, walked, strict=True):
            first = 1 if name in ("turn", "last") else 0  # the window's first step has none before it
            assert torch.equal(here[first:].nan_to_num(-1), there[start + first :].nan_to_num(-1)), name
        recorded_beside = credit.run_circumstances(run, start, 12)
        for here, there in zip(changed.beside, recorded_beside, strict=True):
            assert torch.allclose(here.double(), there.double())
        assert all(torch.equal(w, run.params(12)[name]) for name, w in changed.params.items())


def test_what_is_left_out_does_nothing_and_comes_last():
    window = texts(steps=4, n=6)
    removed = torch.zeros(4, 6, dtype=torch.bool)
    removed[1, 2] = removed[1, 4] = removed[3, 0] = True
    found = credit.change(window, EVERY_UNIT, nothing, 2, removed)
    datum = torch.stack([ids for *_, ids in training.order(window.recipe, batches.n_data(window.data), 0, 4)])
    for t in range(4):
        kept = datum[t][~removed[t]]
        m = len(kept)
        assert found.beside.datum[t].tolist() == kept.tolist() + [credit.NONE] * (6 - m)
        assert (found.steps.square[t, :, m:] == 0).all() and (found.steps.square[t].sum(0)[:m] > 0).all()
        assert found.beside.loss[t, :m].isfinite().all() and found.beside.loss[t, m:].isnan().all()
    removed[2] = True
    emptied = credit.change(window, EVERY_UNIT, nothing, 2, removed)
    assert (emptied.steps.square[2] == 0).all() and (emptied.beside.datum[2] == credit.NONE).all()
    assert emptied.steps.turn[2:].isnan().all() and torch.equal(emptied.steps.square[:2], found.steps.square[:2])
    found, again = emptied, credit.retrain(window, removed)
    assert all(torch.equal(w, again.params[name]) for name, w in found.params.items())


def test_another_recipe_is_followed():
    window = linear(steps=3)
    slower = window._replace(recipe=replace(window.recipe, lr=window.recipe.lr / 2))
    whole, half = (credit.change(each, EVERY_UNIT, nothing, 1).params["w"] for each in (window, slower))
    assert torch.allclose(half - window.params["w"], (whole - window.params["w"]) / 2)


@some
@given(seed=st.integers(0, 99), share=st.floats(0.05, 0.95))
def test_random_occurrences_add_up_to_as_much(seed, share):
    rng = keys.generator(seed)
    norm, among = torch.from_numpy(rng.exponential(size=(6, 5))), torch.from_numpy(rng.random((6, 5)) < 0.7)
    among[0, 0] = True
    total = share * float(norm[among].sum())
    chosen = credit.as_much_at_random(norm, among, total, key=seed)
    assert not (chosen & ~among).any() and float(norm[chosen].sum()) >= total - 1e-9
    assert any(float(norm[chosen].sum()) - float(x) < total for x in norm[chosen])  # one of them, the last, is needed
    assert torch.equal(chosen, credit.as_much_at_random(norm, among, total, key=seed))
    many = credit.as_much_at_random(torch.ones(6, 5), among, 1.0, key=seed)
    assert int(many.sum()) == 1
    with pytest.raises(ValueError, match=f"the norms of {int(among.sum())} occurrences add up to"):
        credit.as_much_at_random(norm, among, float(norm[among].sum()) * 1.01, key=seed)
