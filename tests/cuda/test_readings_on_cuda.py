"""What reads a run, on a GPU: sweeps by the naive way, ledgers that balance, influences by central differences."""

from dataclasses import replace

import pytest
import torch
from oracles import assert_equal

from devinterp_func import batches, credit, graph, models, neurons, optim, records, text, training, tree
from devinterp_func.credit import Window
from devinterp_func.models import Config
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

pytestmark = pytest.mark.cuda
CORPUS = text.planted(key=0, n_tokens=1500)
MODEL = models.transformer(Config(len(CORPUS.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1))
ADAMW = optim.adamw(betas=(0.8, 0.95), weight_decay=0.1)
RECIPE = Recipe(context=6, batch_size=4, n_steps=6, lr=0.02, max_norm=0.7, optimizer=ADAMW)


@pytest.fixture(scope="module")
def run(cuda, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    for _ in records.record(folder, CORPUS, MODEL, RECIPE, Recording(k=9, snapshot_every=3), device=cuda):
        pass
    return records.open(folder)


def test_a_sweep_is_the_naive_one(run):
    every = neurons.every({name: shape for name, shape in run.shapes.items() if "linear" in name})
    own = run.graph, run.params(), (run.split("valid").tokens[:8],), every
    assert_equal(neurons.sweep(*own)[:5], neurons.sweep_naive(*own)[:5])


def test_a_ledger_balances(run, tmp_path):
    probes = [credit.parse_probe(name, run, key=0, n=5) for name in ("loss", "bigram:c00 c01")]
    for (_, entries), move in zip(credit.ledger(run, tmp_path / "ledger", probes, m=5), run.moves(), strict=True):
        for i, probe in enumerate(probes):
            change = float(probe.value(move.after)) - float(probe.value(move.before))
            assert float(entries.change()[i]) == pytest.approx(change, abs=1e-5)
            assert abs(float(entries.missed()[i])) < 0.02 * abs(change) + 1e-5


def test_influences_are_central_differences_in_float64(cuda):
    params = tree.map(lambda w: w.to(cuda, torch.float64), MODEL.init(3))
    data = batches.chunk(CORPUS.train, RECIPE.context)
    traced = graph.of(MODEL.loss, params, *tree.map(lambda x: x.to(cuda), batches.example(data, 0)))
    recipe = replace(RECIPE, n_steps=4)
    window = Window(traced, params, ADAMW.init(params), data, recipe, 0, 4)
    texts = tree.map(lambda x: x[-5:].to(cuda), tuple(data))
    probe = credit.probes.loss(traced, texts)
    found = credit.window_influences(window, [probe]).scores()[0]

    def end(step, place, weight):
        weights = torch.ones(4, 4, dtype=torch.float64)
        weights[step, place] = weight
        own = traced, params, data, recipe
        *_, last = training.moves(*own, state=ADAMW.init(params), stop=4, weights=weights)
        return float(probe.value(last.after))

    for step, place in ((0, 0), (1, 3), (3, 2)):
        h = 1e-4
        measured = (end(step, place, 1 + h) - end(step, place, 1 - h)) / (2 * h)
        assert float(found[step, place]) == pytest.approx(measured, rel=1e-5, abs=1e-12)
