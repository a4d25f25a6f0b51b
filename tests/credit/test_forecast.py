"""How far ahead a training can be forecast: trials against retrainings by hand, and what is concluded from them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import PLANTED, recorded
from scipy.stats import pearsonr

from devinterp_func import batches, credit, optim, training
from devinterp_func import graph as graphs
from devinterp_func.credit import Trial, Window, probes
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.training import Recipe


def trained(lr, stop, start=6, **given):
    """A window of a small model's training, and its loss on some held-out texts as a probe."""
    recipe = Recipe(context=8, batch_size=8, n_steps=200, lr=lr, **given)
    data = batches.chunk(PLANTED.train, recipe.context)
    model = transformer(Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1))
    params = training.initial(model, recipe)
    graph = graphs.of(model.loss, params, *batches.example(data, 0))
    *_, last = training.moves(graph, params, data, recipe, stop=start)
    held_out = batches.chunk(PLANTED.valid, recipe.context)
    probe = probes.loss(graph, tuple(x[:20] for x in held_out), "loss")
    return Window(graph, last.after, last.state, data, recipe, start, stop), probe


def later(window, start):
    *_, move = training.moves(
        window.graph, window.params, window.data, window.recipe, state=window.state, start=window.start, stop=start
    )
    return window._replace(params=move.after, state=move.state, start=start)


@pytest.fixture(scope="module")
def smooth():
    window, probe = trained(0.003, 16, optimizer=optim.adamw())
    return window, probe, credit.window_influences(window, [probe])


def test_a_trial_is_retrainings_of_the_last_steps_beside_sums_of_influences(smooth):
    window, probe, found = smooth
    last = later(window, 10)
    trial = credit.try_forecast(last, [probe], found, draws=4, share=0.1, key=0)
    assert trial.horizon == 6
    end = float(probe.value(credit.retrain(window).params))
    for draw in range(4):
        removed = credit.draw_removal(credit.window_data(last), "subset", draw, share=0.1, key=0)
        effect = float(probe.value(credit.retrain(last, removed).params)) - end
        assert float(trial.found[draw, 0]) == pytest.approx(effect, abs=1e-9)
        amount = float(found.influence[-6:, 0].sum(-1)[removed].sum())
        assert float(trial.forecast[draw, 0]) == pytest.approx(-amount, rel=1e-9)
    assert [trial.metasmoothness] == credit.metasmoothness(last, (6,), share=0.1, key=0)


def test_what_is_smooth_is_foretold_and_what_is_chaotic_is_not(smooth):
    window, probe, found = smooth
    good = credit.try_forecast(later(window, 7), [probe], found, draws=10, key=0)
    [*_, row] = credit.forecast(found.growth()[-9:, 0], [good], 0)
    assert row.verdict == "forecast" and row.correlation and row.correlation.value > 0.95 and good.metasmoothness > 0.8
    window, probe = trained(30.0, 36, optimizer=optim.sgd())
    bad = credit.window_influences(window, [probe])
    trial = credit.try_forecast(later(window, 7), [probe], bad, draws=10, key=0)
    [*_, row] = credit.forecast(bad.growth()[-29:, 0], [trial], 0)
    assert (
        row.verdict in ("beyond", "unsure")
        and row.correlation
        and not row.correlation.low > 0
        and trial.metasmoothness < 0.5
    )


def test_a_window_must_end_the_influences_span(smooth):
    window, probe, found = smooth
    for wrong in (later(window, 10)._replace(stop=15), window._replace(start=5)):
        with pytest.raises(ValueError, match="does not end the influences' span, steps 6 to 16"):
            credit.try_forecast(wrong, [probe], found, key=0)
    with pytest.raises(ValueError, match="draws is 3; it must be at least 4"):
        credit.try_forecast(window, [probe], found, draws=3, key=0)


def trial(horizon, r, draws, slope=1.0):
    """Of the correlation and slope that are asked for."""
    rng = torch.Generator().manual_seed(draws)
    x, y = torch.linalg.qr(torch.cat([torch.ones(draws, 1), torch.randn(draws, 2, generator=rng)], 1).double())[0].T[1:]
    found = slope * (x + y * ((1 - r**2) ** 0.5 / r if r else 1e9)) + 3
    return Trial(horizon, x[:, None], found[:, None], 0.9)


@given(r=st.floats(0.05, 0.99), draws=st.integers(4, 40), slope=st.floats(0.1, 3))
def test_the_correlation_has_the_interval_of_fishers_z(r, draws, slope):
    found = trial(10, r, draws, slope)
    estimate, other = found.correlation(0), pearsonr(found.forecast[:, 0], found.found[:, 0])
    assert estimate.value == pytest.approx(r) and estimate.n == draws
    interval = other.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), abs=1e-4)
    assert found.slope(0) == pytest.approx(slope)


tries = st.dictionaries(st.integers(1, 60), st.tuples(st.floats(0, 0.99), st.integers(4, 40)), max_size=4)


@given(grown=st.lists(st.floats(0.01, 40), min_size=60, max_size=60), tried=tries)
@settings(max_examples=200)
def test_verdicts_follow_from_all_shorter_horizons(grown, tried):
    trials = [trial(h, *known) for h, known in tried.items()]
    rows = credit.forecast(torch.tensor(grown, dtype=torch.float64), trials, 0)
    assert [row.horizon for row in rows] == sorted({10, 30, 60, *tried})
    for row in rows:
        assert row.growth == max(grown[-row.horizon :])
        shorter = [t.correlation(0).high for t in trials if t.horizon <= row.horizon]
        untried = [other.growth for other in rows if other.horizon <= row.horizon and other.horizon not in tried]
        if any(not high >= credit.FORETOLD for high in shorter) or any(g > credit.MOST_GROWTH for g in untried):
            assert row.verdict == "beyond"
        elif row.horizon not in tried:
            assert row.verdict == "untested" and row.correlation is None
        else:
            assert row.correlation is not None
            assert row.verdict == ("forecast" if row.correlation.low > credit.FORETOLD else "unsure")
    told = [row.horizon for row in rows if row.verdict == "forecast"]
    assert credit.forecast_horizon(rows) == (max(told) if told else 0)


def test_what_is_no_number_is_no_forecast():
    growth, good = torch.ones(10, dtype=torch.float64), trial(10, 0.99, 10)
    assert [row.verdict for row in credit.forecast(growth, [good], 0)] == ["forecast"]
    for bad in (good._replace(found=good.found * torch.nan), good._replace(found=torch.ones(10, 1).double())):
        assert [row.verdict for row in credit.forecast(growth, [bad], 0)] == ["beyond"]
    growth[3] = torch.nan
    assert [row.verdict for row in credit.forecast(growth, [], 0)] == ["beyond"]


@pytest.mark.parametrize(
    "steps, most, expected",
    [(65, 30, [10, 30]), (65, 100, [10, 30, 65]), (5, 100, [5]), (400, 100, [10, 30, 100]), (9, 0, [])],
)
def test_usual_horizons(steps, most, expected):
    assert credit.usual_horizons(steps, most) == expected


def test_the_last_steps_of_a_run_need_no_snapshot(tmp_path):
    recipe = Recipe(context=8, batch_size=4, n_steps=9, lr=0.01, optimizer=optim.adamw())
    run = recorded(tmp_path / "run", recipe, Recording(k=5, snapshot_every=4))
    window = credit.last_steps(run, 8, 3)
    assert (window.start, window.stop) == (5, 8) and 5 not in run.snapshots
    for name, w in credit.retrain(window).params.items():
        assert torch.equal(w, run.params(8)[name])
    with pytest.raises(ValueError, match="steps"):
        credit.last_steps(run, 8, 9)
