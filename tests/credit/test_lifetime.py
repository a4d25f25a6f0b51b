"""Lifetimes: the books balance to rounding for every rule, and each part is what a recursion by hand says it is."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_equal
from run_builders import MODEL, PLANTED, SMALL, contents, recorded
from strategies import graph_of

from devinterp_func import batches, credit, optim, per_example, records, training, tree, units
from devinterp_func.credit import Lifetimes, probes
from devinterp_func.optim import Schedule
from devinterp_func.records import RecordError, Recording
from devinterp_func.training import Recipe

SCHEDULE = Schedule("cosine", warmup=3, end=0.1)
RECIPE = Recipe(context=6, batch_size=3, epochs=3, lr=0.05, schedule=SCHEDULE, max_norm=0.5)
DATA = batches.chunk(PLANTED.train[:700], RECIPE.context)
GRAPH = graph_of(SMALL, context=6)
START = tree.map(torch.Tensor.double, training.initial(MODEL, RECIPE))
EPS = 1e-5  # some entries' gradients are rounding alone, and Adam multiplies by up to 1 / eps
RULES = {
    "sgd": optim.sgd(),
    "sgd, decayed": optim.sgd(weight_decay=0.1),
    "momentum": optim.sgd(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "dampened to nothing": optim.sgd(momentum=0.9, dampening=1.0),
    "nesterov": optim.sgd(momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": optim.adam(betas=(0.8, 0.9), eps=EPS, weight_decay=0.1),
    "adamw": optim.adamw(betas=(0.8, 0.9), eps=EPS, weight_decay=0.1, matrices_only=True),
    "no first moment": optim.adamw(betas=(0.0, 0.9), eps=EPS),
    "muon": optim.muon(
        momentum=0.8, rest=optim.adamw(betas=(0.7, 0.9), eps=EPS, weight_decay=0.2), but=("embedding.weight",)
    ),
    "muon, plain": optim.muon(nesterov=False, rest=optim.sgd()),
    "grouped": optim.grouped(
        (("*.bias",), optim.sgd(momentum=0.5)),
        (("*linear*",), optim.adamw(betas=(0.6, 0.9), eps=EPS)),
        (("decoder.*",), optim.sgd(weight_decay=0.2)),
        rest=optim.muon(rest=optim.adam(eps=EPS, weight_decay=0.1)),
        scales=(2.0, 1.0, 0.5),
    ),
}
FORGETFUL = ("sgd", "sgd, decayed", "no first moment")  # what they remember, if anything, moves no weight later
every_rule = pytest.mark.parametrize("rule", RULES)
SOME, OTHER = "layers.0.linear2.weight", "decoder.weight"


def total(params: tree.Params) -> torch.Tensor:
    return torch.stack([w.sum() for w in params.values()]).sum()


POLYNOMIALS = [  # of degree 2 and 4 in all units: two nodes leave rounding alone
    probes.of("square", lambda params: total({name: w * w + w for name, w in params.items()})),
    probes.of("quartic", lambda params: (params[OTHER] ** 4).sum() * 3 + (params[SOME] ** 3).sum()),
]
LOSS = probes.loss(GRAPH, batches.take(DATA, torch.arange(4)))
MADE: dict[str, list[training.Move]] = {}


def steps(rule, start=0, stop=8):
    """Steps in float64; each rule's are made once."""
    if rule not in MADE:
        recipe = replace(RECIPE, optimizer=RULES[rule])
        MADE[rule] = list(training.moves(GRAPH, START, DATA, recipe, captured=units.EVERY, stop=8))
    return MADE[rule][start:stop]


def inner(gradient, deltas):
    """⟨G, Δ⟩ over all units; of several Δ, each."""
    return sum((gradient[n] * delta).flatten(delta.ndim - gradient[n].ndim).sum(-1) for n, delta in deltas.items())


def mean_gradients(probe, move, m=2):
    places, weights = credit._ledger.nodes(m)
    found = [probe.value_and_grad(credit._ledger.between(move.before, move.after, place))[1] for place in places]
    return {name: sum(w * g[name] for w, g in zip(weights, found, strict=True)) for name in move.before}


# ---- by hand: the linear recursion of the steps as they were, forwards, with some of its sources


def driven(moves, gradient=None, decay=False, memory=False, without=None):
    """The change of the weights in each step by some sources alone, the steps' gains held fixed.

    gradient: (step in the span, datum), or "all"; without: a (step, datum) left out of all.
    """
    carried = {n: s.memory.clone() for n, s in moves[0].split.shares.items() if memory and s.memory is not None}
    changes = []
    for t, move in enumerate(moves):
        change = {}
        for name, share in move.split.shares.items():
            w = move.before[name]
            each = per_example.form(move.gradients[name]) * (float(move.split.clip) / len(move.datum))
            u = torch.zeros_like(w)
            if gradient == "all":
                u = each.sum(0) - (each[without[1]] if without is not None and without[0] == t else 0)
            elif gradient is not None and gradient[0] == t:
                u = each[gradient[1]]
            u = u + (share.coupled * w if decay else 0)
            m = carried.get(name, torch.zeros_like(w))
            change[name] = optim.apply_gain(share.gain, share.present * u + share.past * m)
            change[name] = change[name] + (share.decay * w if decay else 0)
            carried[name] = share.keep * m + share.take * u
        changes.append(change)
    return changes


def summed(changes):
    return {name: sum(change[name] for change in changes) for name in changes[0]}


# ---- the laws


@every_rule
@pytest.mark.parametrize("start", [0, 3])
def test_the_books_balance_to_rounding(rule, start):
    found = credit.split_lifetimes(steps(rule, start), POLYNOMIALS, 2)
    books, moves = found.books(), steps(rule, start)
    for i, probe in enumerate(POLYNOMIALS):
        change = float(probe.value(moves[-1].after) - probe.value(moves[0].before))
        assert float(books.change[i]) == pytest.approx(change, abs=1e-13)
        assert abs(float(books.unexplained()[i])) < 1e-10 * max(1.0, abs(change))
        assert float(found.missed[:, i].abs().max()) < 1e-11 * max(1.0, float(found.before[:, i].abs().max()))
    assert books.entering.count_nonzero() == (0 if start == 0 or rule in FORGETFUL else 2)


@every_rule
def test_a_loss_is_explained_but_for_what_the_quadrature_misses(rule):
    found = credit.split_lifetimes(steps(rule, 5), [LOSS], 3)
    assert found.books().unexplained().abs().max() < 1e-12
    for s, move in enumerate(steps(rule, 5)):
        G = mean_gradients(LOSS, move, 3)
        missed = LOSS.value(move.after) - LOSS.value(move.before) - inner(G, tree.sub(move.after, move.before))
        assert float(found.missed[s]) == pytest.approx(float(missed), abs=1e-12)


@every_rule
def test_each_lifetime_is_that_of_the_recursion_driven_by_its_datum_alone(rule):
    moves = steps(rule, 1, 6)
    found = credit.split_lifetimes(moves, [LOSS], 2)
    G = [mean_gradients(LOSS, move) for move in moves]
    for s, j in ((0, 0), (0, 2), (2, 1), (4, 0)):
        own = driven(moves, (s, j))
        expected = sum(float(inner(g, change)) for g, change in zip(G, own, strict=True))
        assert float(found.lifetime[s, 0, j].sum()) == pytest.approx(expected, rel=1e-9, abs=1e-14)
        assert float(found.present[s, 0, j].sum()) == pytest.approx(float(inner(G[s], own[s])), rel=1e-9, abs=1e-14)


@every_rule
def test_decay_and_what_entered_are_those_of_the_recursion(rule):
    moves = steps(rule, 2, 7)
    found = credit.split_lifetimes(moves, [LOSS], 2)
    G = [mean_gradients(LOSS, move) for move in moves]
    for changes, amount in (
        (driven(moves, decay=True), found.decay.sum()),
        (driven(moves, memory=True), found.entering.sum()),
    ):
        expected = sum(float(inner(g, change)) for g, change in zip(G, changes, strict=True))
        assert float(amount) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@every_rule
def test_the_recursion_makes_the_steps_and_without_a_datum_lacks_its_lifetime_delta(rule):
    moves, (s, j) = steps(rule, 2, 7), (1, 2)
    whole = driven(moves, "all", decay=True, memory=True)
    for move, change in zip(moves, whole, strict=True):
        for name, w in move.before.items():
            torch.testing.assert_close(w + change[name], move.after[name], rtol=1e-11, atol=1e-12)
    lacking = tree.sub(summed(whole), summed(driven(moves, "all", decay=True, memory=True, without=(s, j))))
    found = credit.lifetime_deltas(moves[s:], [j, 0])
    for name, delta in lacking.items():
        torch.testing.assert_close(found[name][0], delta, rtol=1e-9, atol=1e-13)


@every_rule
def test_positions_are_those_of_the_gradients_of_single_positions(rule):
    """The recursion driven by what one position gave."""
    moves = steps(rule, 3, 6)
    found = credit.split_lifetimes(moves, POLYNOMIALS[:1], 2)
    parts = per_example.token_gradients(moves[0].gradients)
    for j, k in ((0, 0), (2, 5)):
        one = {name: per_example.Dense(part[j : j + 1, k]) for name, part in parts.items()}
        deltas = credit.lifetime_deltas([moves[0]._replace(gradients=one), *moves[1:]], [0])
        assert deltas.keys() == moves[0].before.keys()
        changes = driven([moves[0]._replace(gradients=one, datum=moves[0].datum), *moves[1:]], (0, 0))
        G = [mean_gradients(POLYNOMIALS[0], move) for move in moves]
        expected = sum(float(inner(g, change)) for g, change in zip(G, changes, strict=True))
        assert float(found.lifetime[0, 0, j, k]) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@every_rule
def test_of_a_linear_probe_a_lifetime_is_the_probe_of_the_lifetime_delta(rule):
    a = {name: torch.linspace(-1, 1, w.numel(), dtype=w.dtype).view(w.shape) for name, w in START.items()}
    linear = probes.of("linear", lambda params: total({name: a[name] * w for name, w in params.items()}))
    moves = steps(rule, 1)
    found = credit.split_lifetimes(moves, [linear], 1)
    for s in (0, 3, len(moves) - 1):
        deltas = credit.lifetime_deltas(moves[s:], [0, 1, 2])
        torch.testing.assert_close(found.lifetime[s, 0].sum(-1), inner(a, deltas), rtol=1e-9, atol=1e-13)
    own = credit.lifetime_deltas(moves[:1], range(3))
    for name, factor in moves[0].factors.items():
        torch.testing.assert_close(own[name], per_example.form(factor), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", ["sgd", "sgd, decayed"])
def test_without_memory_a_lifetime_is_the_ledgers_credit(rule):
    found = credit.split_lifetimes(steps(rule), [LOSS], 3)
    assert torch.equal(found.lifetime, found.present) and not found.entering.any()
    for s, move in enumerate(steps(rule)):
        entries = credit.split_change(move, [LOSS], 3)
        torch.testing.assert_close(found.lifetime[s], entries.credit, rtol=1e-9, atol=1e-13)


@every_rule
def test_the_present_is_the_ledgers_credit(rule):
    found = credit.split_lifetimes(steps(rule, 3, 5), [LOSS], 2)
    for s, move in enumerate(steps(rule, 3, 5)):
        entries = credit.split_change(move, [LOSS], 2)
        torch.testing.assert_close(found.present[s], entries.credit, rtol=1e-9, atol=1e-13)


@given(rule=st.sampled_from(list(RULES)), start=st.integers(0, 5), cut=st.integers(1, 6), length=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_what_enters_a_span_is_what_the_spans_before_left(rule, start, cut, length):
    """Of a linear probe: over two spans together, all that data did is their lifetimes and what entered the second."""
    moves = steps(rule, start, start + length + 1)
    cut = min(cut, len(moves) - 1)
    if not cut:
        return
    linear = [probes.of("sum", total)]
    whole, first, second = (credit.split_lifetimes(x, linear, 1) for x in (moves, moves[:cut], moves[cut:]))
    left = whole.lifetime[:cut].sum() + whole.decay[:cut].sum() + whole.entering.sum()
    parts = first.lifetime.sum() + first.decay.sum() + first.entering.sum() + second.entering.sum()
    torch.testing.assert_close(left, parts, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(whole.lifetime[cut:], second.lifetime, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(whole.present, torch.cat([first.present, second.present]), rtol=1e-9, atol=1e-13)


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(
        context=6, batch_size=3, n_steps=12, lr=0.01, optimizer=optim.adamw(betas=(0.8, 0.9), weight_decay=0.1)
    )
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=8))


def followed(run):
    held = batches.chunk(PLANTED.valid, run.recipe.context)
    return [probes.loss(run.graph, batches.take(held, torch.arange(2))), probes.bigram(run.graph, 3, 5)]


def test_a_runs_lifetimes_are_those_of_its_steps_to_the_bit(run, tmp_path):
    expected = credit.split_lifetimes(list(run.moves(3, 12, units.EVERY)), followed(run), 2)
    for block in (8, 1):
        folder = tmp_path / f"lifetime-{block}"
        walked = list(credit.lifetime(run, folder, followed(run), start=3, stop=12, m=2, block=block))
        assert walked == list(range(11, 2, -1))
        found = records.read_walk(folder, Lifetimes)
        assert_equal(found._asdict(), expected._asdict())
        assert records.verify(folder).steps == 9
    assert float(found.books().unexplained().abs().max()) < 1e-5
    assert repr(found).startswith("Lifetimes over 9 steps: change [")
    assert torch.equal(found.datum, torch.stack([record.datum for record in run.steps(3, 12)]))


def test_a_span_that_is_done_is_only_read_and_others_are_refused(run, tmp_path):
    several = followed(run)
    list(credit.lifetime(run, tmp_path / "lifetime", several, stop=4, m=1))
    before = contents(tmp_path / "lifetime")
    assert not list(credit.lifetime(run, tmp_path / "lifetime", several, stop=4, m=1))
    for other in ({"stop": 5}, {"start": 1}, {"m": 2}, {"about": {"texts": 2}}):
        with pytest.raises(RecordError, match="is another run"):
            list(credit.lifetime(run, tmp_path / "lifetime", several, **{"stop": 4, "m": 1} | other))
    with pytest.raises(RecordError, match="is another run"):
        list(credit.lifetime(run, tmp_path / "lifetime", several[:1], stop=4, m=1))
    assert contents(tmp_path / "lifetime") == before


def test_a_walk_that_was_stopped_begins_again(run, tmp_path):
    walk = credit.lifetime(run, tmp_path / "lifetime", followed(run), stop=6, m=1)
    assert next(walk) == 5
    walk.close()
    with pytest.raises(RecordError, match="holds no steps yet"):
        records.read_walk(tmp_path / "lifetime", Lifetimes)
    assert len(list(credit.lifetime(run, tmp_path / "lifetime", followed(run), stop=6, m=1))) == 6
    assert records.read_walk(tmp_path / "lifetime", Lifetimes).step.tolist() == list(range(6))


def test_bad_input_is_named(run, tmp_path):
    moves = steps("adamw")
    with pytest.raises(ValueError, match="m is 0 and there are 2 probes"):
        credit.split_lifetimes(moves, POLYNOMIALS, 0)
    with pytest.raises(ValueError, match="there are 0 probes"):
        list(credit.lifetime(run, tmp_path / "lifetime", []))
    for wrong, said in (([], r"\[\]"), ([moves[0], moves[2]], r"\[0, 2\]"), (moves[1::-1], r"\[1, 0\]")):
        with pytest.raises(ValueError, match=f"the steps are {said}; give at least one, each following the last"):
            credit.split_lifetimes(wrong, POLYNOMIALS)
    few_factors = {name: moves[0].factors[name] for name in list(moves[0].factors)[1:]}
    with pytest.raises(ValueError, match="step 0 has no factors of"):
        credit.split_lifetimes([moves[0]._replace(factors=few_factors)], POLYNOMIALS)
    with pytest.raises(ValueError, match=r"data are \[3\]; give some of the places of step 0's batch, 0..2"):
        credit.lifetime_deltas(moves, [3])
    with pytest.raises(ValueError, match=r"data are \[\]"):
        credit.lifetime_deltas(moves, [])
    with pytest.raises(ValueError, match="step 3 does not follow step 1"):
        credit.lifetime_deltas([moves[1], moves[3]], [0])
    with pytest.raises(ValueError, match="there are no steps"):
        credit.lifetime_deltas([], [0])
    assert not (tmp_path / "lifetime").exists()


# ---- which data change place


def lifetimes(present, lifetime, datum):
    present, lifetime = (torch.tensor(x, dtype=torch.float64)[:, None, :, None] for x in (present, lifetime))
    S = len(present)
    zeros = torch.zeros(S, 1, dtype=torch.float64)
    return Lifetimes(torch.arange(S), torch.tensor(datum), zeros, zeros[0], lifetime, present, zeros, zeros[0], zeros)


def test_data_are_placed_by_sums_over_their_steps():
    found = lifetimes([[1.0, 2.0], [3.0, -5.0]], [[5.0, 1.0], [-2.5, 3.0]], [[7, 4], [4, 9]])  # datum 4 is in both
    by_id = {text.datum: text for text in credit.most_lived(found, 0)}
    assert {i: (t.steps, float(t.present.sum()), float(t.lifetime.sum())) for i, t in by_id.items()} == {
        7: (1, 1.0, 5.0),
        4: (2, 5.0, -1.5),
        9: (1, -5.0, 3.0),
    }
    assert [t.datum for t in credit.most_lived(found, 0)] == [7, 9, 4]
    assert {i: (t.present_place, t.lifetime_place) for i, t in by_id.items()} == {7: (2, 1), 4: (1, 3), 9: (3, 2)}
    assert [t.datum for t in credit.changed_places(found, 0)] == [4, 7, 9]
    assert [t.datum for t in credit.changed_places(found, 0, most=1)] == [4]
    assert [t.datum for t in credit.most_lived(found, 0, most=1)] == [7, 4]


def test_only_data_near_an_end_of_either_order_count_as_changed():
    """Twenty data: 9 and 10, in the middle, and 0 and 1, at the top, change places; and 5 goes to the bottom."""
    order = list(range(20))
    present, later = [float(20 - i) for i in order], [float(20 - i) for i in order]
    later[9], later[10] = later[10], later[9]
    later[0], later[1] = later[1], later[0]
    found = lifetimes([present], [later], [order])
    assert [t.datum for t in credit.changed_places(found, 0, among=3)] == [0, 1]
    assert {t.datum for t in credit.changed_places(found, 0, among=10)} == {0, 1, 9, 10}
    later[5] = -1.0
    found = lifetimes([present], [later], [order])
    assert [t.datum for t in credit.changed_places(found, 0, among=1)][0] == 5
    with pytest.raises(ValueError, match="among is 0"):
        credit.changed_places(found, 0, among=0)


def test_a_texts_position_is_where_most_of_its_lifetime_is():
    text = credit.PlacedText(0, 1, torch.zeros(3), torch.tensor([1.0, -4.0, 2.0]), 1, 1)
    assert text.position == 1 and text._replace(lifetime=torch.tensor([3.0, -1.0, 2.0])).position == 0
