"""Laws of influences: of one step and of a linear model in closed form, of a run on the disk as in memory."""

import math
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from run_builders import PLANTED as CORPUS
from run_builders import contents, recorded, same_bits
from strategies import graph_of, seeds
from torch import Tensor

from devinterp_func import batches, credit, graph, keys, models, optim, records, training, tree, units
from devinterp_func.credit import Influences, Window, _adjoint, probes
from devinterp_func.models import Config
from devinterp_func.records import RecordError, Recording, _walk_back
from devinterp_func.training import Recipe

CONFIG = Config(len(CORPUS.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1)
MODEL, GRAPH = models.transformer(CONFIG), graph_of(CONFIG, context=6)
RECIPE = Recipe(context=6, batch_size=4, n_steps=9, lr=0.01, max_norm=0.5, optimizer=optim.adamw(eps=1e-3))
DATA = batches.chunk(CORPUS.train[:900], RECIPE.context)
START = {name: w.double() for name, w in training.initial(MODEL, RECIPE).items()}


def window_of(recipe: Recipe = RECIPE, steps: int = 4) -> Window:
    return Window(GRAPH, START, recipe.optimizer.init(START), DATA, recipe, 0, steps)


def followed(made: Any = GRAPH) -> list[probes.Probe]:
    return [probes.bigram(made, 3, 5), probes.log_probability(made, DATA.tokens[0], 4)]


# ---- one step


def test_of_one_step_of_sgd_an_influence_is_the_marginal_in_first_order():
    """f(w') − f(w' − Δ_j) of ever smaller weights of a datum is its influence; clipping held, so without clipping."""
    recipe = replace(RECIPE, optimizer=optim.sgd(), max_norm=math.inf, lr=0.3)
    window, probe = window_of(recipe, 1), followed()[0]
    found = credit.window_influences(window, [probe])
    (move,) = training.moves(GRAPH, START, DATA, recipe, captured=units.EVERY, stop=1)
    entries = credit.split_change(move, [probe], 2)
    # the ledger's marginal by position is where a weight was used, an influence's whose prediction: sums are the same
    assert relative_error(found.scores()[0, 0], entries.marginal[0].sum(-1).double()) <= 1e-9
    removed = torch.zeros(1, 4, dtype=torch.bool)
    removed[0, 2] = True
    without = credit.retrain(window, removed).params
    effect = float(probe.value(move.after) - probe.value(without))
    assert effect == pytest.approx(float(found.scores()[0, 0, 2]), rel=0.2) and effect != 0


@settings(max_examples=10, deadline=None)
@given(seed=seeds, steps=st.integers(1, 5), lr=st.floats(0.01, 0.2), decay=st.sampled_from([0.0, 0.1]))
def test_of_a_linear_model_and_squared_loss_they_are_the_closed_form(seed, steps, lr, decay):
    """w' = A w + (2 lr / n) Σ_j ω_j x_j y_j with A = (1 − lr λ) I − (2 lr / n) Σ_j ω_j x_j x_jᵀ, so for f = ⟨q, w⟩

    df/dω_tj = ⟨A_{T−1} ⋯ A_{t+1} (2 lr / n) x_j (y_j − ⟨w_t, x_j⟩), q⟩.
    """
    drawn = keys.generator(seed)
    x, y, w, q = (torch.from_numpy(drawn.standard_normal(shape)) for shape in ((12, 3), (12,), (3,), (3,)))
    made = graph.of(lambda p, x, y: (p["w"] @ x - y).square(), {"w": w}, x[0], y[0])
    recipe = Recipe(batch_size=2, n_steps=steps, lr=lr, max_norm=math.inf, optimizer=optim.sgd(weight_decay=decay))
    window = Window(made, {"w": w}, recipe.optimizer.init({"w": w}), (x, y), recipe, 0, steps)
    found = credit.window_influences(window, [probes.of("q", lambda p: p["w"] @ q)])
    at, maps, sources = w, [], []
    for *_, ids in training.order(recipe, 12, 0, steps):
        sources.append(lr * x[ids] * (y[ids] - x[ids] @ at)[:, None])  # 2 lr / n with n = 2
        maps.append((1 - lr * decay) * torch.eye(3, dtype=torch.float64) - lr * x[ids].mT @ x[ids])
        at = maps[-1] @ at + lr * x[ids].mT @ y[ids]
    back = q
    for t in reversed(range(steps)):
        assert relative_error(found.scores()[0, t], sources[t] @ back) <= 1e-11
        back = maps[t].mT @ back
        assert float(found.norm[t, 0]) == pytest.approx(float(back.norm()), rel=1e-12)
    assert float(found.value[-1, 0]) == pytest.approx(float(q @ at), rel=1e-12)


def test_between_no_data_and_all_data_the_change_is_the_integral_of_influences():
    """f(weights 1) − f(weights 0) = ∫₀¹ Σ influences(s) ds, by Simpson, of trainings on data of weight s."""
    recipe = replace(RECIPE, optimizer=optim.sgd(), lr=0.05, max_norm=math.inf)
    (probe,) = [followed()[0]]

    def total(s: float) -> float:
        """Σ influences by data of weight s is the derivative by s: by central differences of s."""
        ends = [end(s + h) for h in (1e-4, -1e-4)]
        return (ends[0] - ends[1]) / 2e-4

    def end(s: float) -> float:
        window = window_of(recipe)
        weights = torch.full((4, 4), s, dtype=torch.float64)
        own = GRAPH, START, DATA, recipe
        *_, last = training.moves(*own, state=window.state, stop=4, weights=weights)
        return float(probe.value(last.after))

    influences = float(credit.window_influences(window_of(recipe), [probe]).scores().sum())
    assert total(1.0) == pytest.approx(influences, rel=1e-6)
    integral = sum(share * total(s) for s, share in ((0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)))
    assert end(1.0) - end(0.0) == pytest.approx(integral, rel=1e-3)
    assert end(0.0) == float(probe.value(START))


# ---- what is found


@pytest.fixture(scope="module")
def found() -> Influences:
    return credit.window_influences(window_of(), followed())


def test_a_position_is_that_of_the_prediction_whose_loss_is_weighed():
    """By central differences of trainings in which one position's part of one datum's loss counts more."""

    def weighed(params: Any, x: Tensor, y: Tensor) -> Tensor:
        logits = torch.nn.functional.embedding(x, params["table"]).cumsum(0).tanh() @ params["head"].T
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    shapes = {"table": (len(CORPUS.vocab), 4), "head": (len(CORPUS.vocab), 4)}
    drawn = keys.generator(0)
    params = {name: torch.from_numpy(drawn.standard_normal(shape)) * 0.3 for name, shape in shapes.items()}

    def counted(p: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return (weighed(p, x, y) * weight).mean()

    ones = torch.ones(len(DATA.tokens), 6, dtype=torch.float64)
    data = (DATA.tokens, DATA.targets, ones)
    made = graph.of(counted, params, *batches.example(data, 0))
    assert made.head is not None
    recipe = replace(RECIPE, lr=0.02)
    window = Window(made, params, recipe.optimizer.init(params), data, recipe, 0, 4)
    probe = probes.of("bent", lambda p: p["table"].sin().sum() + p["head"].square().sum())
    own = credit.window_influences(window, [probe])

    def end(h: float) -> float:
        weights = ones.clone()
        weights[own.datum[1, 2], 3] += h  # read in this step alone: no second epoch
        end = credit.retrain(window._replace(data=(*data[:2], weights)))
        return float(probe.value(end.params))

    assert int((own.datum == own.datum[1, 2]).sum()) == 1
    expected = (8 * (end(1e-4) - end(-1e-4)) - (end(2e-4) - end(-2e-4))) / 12e-4
    assert float(own.influence[1, 0, 2, 3]) == pytest.approx(expected, rel=1e-6)


def test_sums_by_datum_and_by_visit(found):
    assert found.influence.shape == (4, 2, 4, 6) and found.influence.dtype == torch.float64
    scores = found.scores()
    assert scores.shape == (2, 4, 4)
    assert float(scores[1, 2, 3]) == pytest.approx(float(found.influence[2, 1, 3].sum()), rel=1e-12)
    ids, totals = found.by_datum(1)
    assert ids.tolist() == sorted(set(found.datum.flatten().tolist()))
    for i, j in enumerate(ids.tolist()):
        visits = [(s, k) for s in range(4) for k in range(4) if int(found.datum[s, k]) == j]
        assert torch.allclose(totals[i], sum(found.influence[s, 1, k] for s, k in visits), rtol=1e-12, atol=0)


def test_visits_of_a_datum_in_later_epochs_are_added():
    recipe = replace(RECIPE, n_steps=None, epochs=3)
    few = batches.chunk(CORPUS.train[:49], RECIPE.context)  # 8 data: two steps an epoch
    window = Window(GRAPH, START, recipe.optimizer.init(START), few, recipe, 0, 6)
    found = credit.window_influences(window, followed()[:1])
    ids, totals = found.by_datum(0)
    assert ids.tolist() == list(range(8))
    for j in range(8):
        assert (
            torch.allclose(totals[j], found.influence[:, 0][found.datum == j].sum(0))
            and int((found.datum == j).sum()) == 3
        )


def test_values_norms_and_growth_are_those_of_the_probes(found):
    end = credit.retrain(window_of())
    for p, probe in enumerate(followed()):
        value, gradient = probe.value_and_grad(end.params)
        assert float(found.value[-1, p]) == float(value)
        assert float(found.end_norm[-1, p]) == pytest.approx(float(tree.norm(gradient)))
    assert found.value[:-1].isnan().all() and found.end_norm[:-1].isnan().all()
    assert torch.equal(found.growth(), found.norm / found.end_norm[-1])
    assert found.step.tolist() == [0, 1, 2, 3] and repr(found) == "Influences of steps 0 to 4 on 2 probes"


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 100])
def test_how_much_is_kept_does_not_show(found, kept):
    assert same_bits(credit.window_influences(window_of(), followed(), kept=kept), found)


def test_probes_do_not_show_in_each_other(found):
    for p, probe in enumerate(followed()):
        alone = credit.window_influences(window_of(), [probe])
        assert relative_error(alone.influence[:, 0], found.influence[:, p]) <= 1e-11


def test_a_window_from_the_middle_is_the_end_of_the_whole(found):
    *_, move = training.moves(GRAPH, START, DATA, RECIPE, stop=2)
    window = Window(GRAPH, move.after, move.state, DATA, RECIPE, 2, 4)
    later = credit.window_influences(window, followed())
    assert same_bits(later, Influences(*(x[2:] for x in found)))


def test_the_fishers_are_the_hessians_in_the_last_step_alone(found):
    fisher = credit.window_influences(window_of(), followed(), curvature="fisher")
    assert torch.equal(fisher.influence[-1], found.influence[-1])
    assert not torch.allclose(fisher.influence[0], found.influence[0], rtol=1e-3)


def test_single_precision_follows_double_where_the_derivative_grows():
    """Back over the same steps, made in float32, at a rate at which the derivative grows a thousandfold."""
    recipe = replace(RECIPE, optimizer=optim.sgd(), lr=6.0, max_norm=math.inf)
    start, probe = training.initial(MODEL, recipe), probes.bigram(GRAPH, 3, 5)
    moves = list(training.moves(graph_of(CONFIG, torch.float32, context=6), start, DATA, recipe, stop=8))
    scores, norms = [], []
    for dtype in (torch.float32, torch.float64):
        made = graph_of(CONFIG, dtype, context=6)
        end = {unit: w.to(dtype) for unit, w in moves[-1].after.items()}
        gradient = probe.value_and_grad(end)[1]
        back, found = credit.ending(gradient, moves[-1].state), []
        for move in reversed(moves):
            point = credit.point_of(move)
            cast = [{unit: x.to(dtype) for unit, x in own.items()} for own in (point.params, point.grads)]
            (pulled,) = credit.pull_step(made, DATA, recipe, point._replace(params=cast[0], grads=cast[1]), [back])
            back = pulled.covector
            found.append(pulled.influence.double())
        scores.append(torch.stack(found))
        norms.append(float(tree.norm(back.weights) / tree.norm(gradient)))
    assert norms[1] > 1000 and norms[0] == pytest.approx(norms[1], rel=1e-4)
    for single, double in zip(*scores, strict=True):
        assert relative_error(single, double) <= 1e-4


# ---- of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, Recording(k=5, snapshot_every=4), model=MODEL)


def walked(run, folder, **asked):
    return list(credit.influence(run, folder, followed(run.graph), about={"seed": 0}, **asked))


def read(folder):
    return records.read_walk_back(folder, Influences)


@pytest.mark.parametrize("curvature", ["hessian", "fisher"])
def test_a_runs_influences_are_its_windows_bit_for_bit(run, tmp_path, curvature):
    assert walked(run, tmp_path / "walk", start=4, stop=9, block=2, curvature=curvature) == [8, 7, 6, 5, 4]
    window = credit.window(run, 4, 5)
    in_memory = credit.window_influences(window, followed(run.graph), curvature=curvature)
    assert same_bits(read(tmp_path / "walk"), in_memory)
    assert records.verify(tmp_path / "walk").steps == 5


@pytest.mark.parametrize("shard", [2, 64])
def test_stopped_or_killed_anywhere_a_walk_ends_with_the_same_bits(run, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(_walk_back, "SHARD", shard)
    walked(run, tmp_path / "whole")
    write, calls = _walk_back.write_params, []

    def killed(folder, step, params):
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(folder, step, params)

    monkeypatch.setattr(_walk_back, "write_params", killed)
    for stops in (1, 3, 5):
        with closing(credit.influence(run, tmp_path / "walk", followed(run.graph), about={"seed": 0})) as steps:
            with suppress(KeyboardInterrupt):
                for _ in zip(steps, range(stops), strict=False):
                    pass
    monkeypatch.setattr(_walk_back, "write_params", write)
    walked(run, tmp_path / "walk", start=3), walked(run, tmp_path / "walk")
    assert same_bits(read(tmp_path / "walk"), read(tmp_path / "whole"))
    assert shard == 64 or calls


def test_it_goes_farther_back(run, tmp_path):
    assert walked(run, tmp_path / "walk", start=6) == [8, 7, 6] and walked(run, tmp_path / "walk", start=6) == []
    assert walked(run, tmp_path / "walk", start=1) == [5, 4, 3, 2, 1]
    walked(run, tmp_path / "whole", start=1)
    assert same_bits(read(tmp_path / "walk"), read(tmp_path / "whole"))


@pytest.mark.parametrize(
    "other",
    [{"stop": 8}, {"curvature": "fisher"}, {"about": {"seed": 1}}, {"probes": 1}],
    ids=["stop", "curvature", "about", "probes"],
)
def test_another_walks_folder_is_refused(run, tmp_path, other):
    walked(run, tmp_path / "walk", start=7)
    before = contents(tmp_path / "walk")
    some = followed(run.graph)[: other.pop("probes", 2)]
    with pytest.raises(RecordError, match="is another run:"):
        next(credit.influence(run, tmp_path / "walk", some, **({"about": {"seed": 0}} | other)))
    assert contents(tmp_path / "walk") == before


def test_bad_input_is_refused_before_anything_is_written(run, tmp_path):
    for asked, said in (
        ({"stop": 10}, "steps 0 to 10 were asked for"),
        ({"block": 0}, "block is 0"),
        ({"kept": 1}, "kept is 1"),
    ):
        with pytest.raises(ValueError, match=said):
            walked(run, tmp_path / "walk", **asked)
    with pytest.raises(ValueError, match="there are no probes"):
        next(credit.influence(run, tmp_path / "walk", []))
    with pytest.raises(ValueError, match="there are no probes"):
        credit.window_influences(window_of(), [])
    with pytest.raises(ValueError, match="the window is of steps 0 to 0"):
        credit.window_influences(window_of(steps=0), followed())
    with pytest.raises(ValueError, match="kept is 0"):
        credit.window_influences(window_of(), followed(), kept=0)
    with pytest.raises(ValueError, match="curvature is 'newton'; it must be 'hessian' or 'fisher'"):
        _adjoint.require_curvature("newton")
    assert not (tmp_path / "walk").exists()
