"""Nothing assumes that tensors lie in main memory: on a card that is none (``cards.py``) all comes out bit for bit.

Real GPUs round otherwise: what holds on them is tested in ``tests/cuda``.
"""

from dataclasses import replace

import cards
import pytest
import torch
from optimizers import OF_EACH_KIND as OPTIMIZERS
from oracles import assert_equal
from run_builders import contents, same_bits

from devinterp_func import (
    batches,
    credit,
    graph,
    models,
    neurons,
    per_example,
    records,
    text,
    training,
    tree,
    units,
)
from devinterp_func.models import Config
from devinterp_func.records import Recording, _recorder
from devinterp_func.training import Recipe

CORPUS = text.planted(key=0, n_tokens=900)
MODEL = models.transformer(Config(len(CORPUS.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1))
RECIPE = Recipe(context=6, batch_size=4, n_steps=6, lr=0.05, max_norm=0.7)
RECORDING = Recording(k=9, factors=True, snapshot_every=3)
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(scope="module", autouse=True)
def card():
    """The card known to torch, and to the recorder."""
    with pytest.MonkeyPatch.context() as patched:
        cards.set_up()
        patched.setattr(torch, "tensor", cards.tensor)
        patched.setattr(_recorder, "_require_device", lambda device: None)
        yield cards.CARD


@pytest.fixture(scope="module")
def runs(card, tmp_path_factory):
    """The same run with AdamW on the CPU and on the card."""
    folder, recipe = tmp_path_factory.mktemp("runs"), replace(RECIPE, optimizer=OPTIMIZERS["adamw"])
    for device in ("cpu", card):
        for _ in records.record(folder / device, CORPUS, MODEL, recipe, RECORDING, device=device):
            pass
    return [records.open(folder / device) for device in ("cpu", card)]


def both(runs, f):
    """What a function finds on the CPU and on the card, both in main memory."""
    return [tree.map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, f(run)) for run in runs]


# ---- the card is as strict as a GPU


def test_the_card_refuses_what_a_gpu_refuses(card):
    x = torch.arange(6.0).view(2, 3).to(card)
    assert x.device.type == card and x.sum().item() == 15.0 and torch.equal((x @ x.T).cpu(), x.cpu() @ x.cpu().T)
    for refused in (
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(1, 3)]),
        lambda: x.index_add_(0, torch.tensor([0]), x[:1]),
        lambda: torch.ones(3)[x[0].long()],
    ):
        with pytest.raises(RuntimeError, match="one device|indices should be"):
            refused()
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()
    assert torch.equal((x * torch.tensor(2.0))[torch.tensor([1])].cpu(), torch.tensor([[6.0, 8.0, 10.0]]))


# ---- steps


@each_optimizer
def test_steps_and_their_records_are_the_same(card, name):
    recipe = replace(RECIPE, optimizer=OPTIMIZERS[name], n_steps=3)
    params, data = training.initial(MODEL, recipe), batches.chunk(CORPUS.train, recipe.context)
    made = []
    for device in ("cpu", card):
        own = tree.map(lambda w, device=device: w.to(device), params)
        traced = graph.of(MODEL.loss, own, *tree.map(lambda x, device=device: x.to(device), batches.example(data, 0)))
        made.append(list(training.moves(traced, own, data, recipe, captured=units.EVERY)))
    for here, there in zip(*made, strict=True):
        assert_equal(tree.map(torch.Tensor.cpu, there.after), here.after)
        assert records.same_bits(*(records.to_record(move, RECORDING) for move in (here, there)))
        assert_equal(
            tree.map(torch.Tensor.cpu, per_example.form_units(there.factors)), per_example.form_units(here.factors)
        )


def test_a_run_holds_the_same_and_its_steps_are_replayed_there(runs):
    here, there = runs
    assert there.device == cards.CARD and contents(here) == contents(there)
    assert all(w.device.type == cards.CARD for w in there.params(5).values())
    assert_equal(*both(runs, lambda run: [move.after for move in run.moves(1, 5)]))
    assert records.same_bits(records.replay(there, 4).record, records.read(here, 4))


# ---- what reads a run


def look_at_sweep(run):
    every = neurons.every({name: shape for name, shape in run.shapes.items() if "linear" in name})
    batch = (run.split("valid").tokens[:5],)
    found, naive = (f(run.graph, run.params(), batch, every)[:5] for f in (neurons.sweep, neurons.sweep_naive))
    return found, naive


def look_at_ledger(run, folder):
    probes = [credit.parse_probe(name, run, key=0, n=3) for name in ("loss", "bigram:c00 c01")]
    return [entries for _, entries in credit.ledger(run, folder, probes, start=1, stop=4)]


def look_at_influence(run, folder):
    probes = [credit.parse_probe("loss", run, key=0, n=3)]
    list(credit.influence(run, folder, probes, start=2, stop=6))
    return records.read_walk_back(folder, credit.Influences)


def look_at_norms(run, axis):
    *_, last = credit.norms(run, axes=(axis,), start=1, stop=5)
    return last[axis]._replace(neurons=[])


def test_sweeps_are_the_same_and_as_the_naive_way(runs):
    (found, naive), there = both(runs, look_at_sweep)
    assert_equal(there, (found, naive))
    assert_equal(found, naive)


@pytest.mark.parametrize("look", [look_at_ledger, look_at_influence])
def test_credits_are_the_same(runs, tmp_path, look):
    assert same_bits(*both(runs, lambda run: look(run, tmp_path / run.device)))  # NaN among them: not asked for


@pytest.mark.parametrize("axis", ["in", "out"])
def test_norms_are_the_same(runs, axis):
    assert same_bits(*both(runs, lambda run: look_at_norms(run, axis)))
