"""Laws of counting: what is counted before a run is what it then takes, to the byte."""

import ctypes
import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import PLANTED
from safetensors.torch import load_file
from torch import nn

from devinterp_func import batches, graph, models, optim, records, training, units
from devinterp_func.models import Config
from devinterp_func.records import Dataset, Recording, _dataset
from devinterp_func.training import Recipe

FOLDERS = {"steps": "steps", "params": "params", "state": "state", "evaluation": "evaluations"}
OPTIMIZERS = {
    "sgd": optim.sgd(),
    "momentum": optim.sgd(momentum=0.9, weight_decay=0.1),
    "adamw": optim.adamw(),
    "muon": optim.muon(but=("embedding.weight", "decoder.weight")),
}
TEXT = models.transformer(Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=2))


class Net(nn.Module):
    """A convolution, a norm, a weight used twice, one with no rule, and one that nothing reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.Linear(48, 5)
        self.twice, self.dense = nn.Linear(5, 5), nn.Parameter(torch.rand(5))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x):
        y = self.twice(self.twice(self.out(self.norm(self.conv(x[None, None])).flatten())))
        return y + self.dense.cumsum(0)


torch.manual_seed(0)
NET = models.module(Net(), lambda model, x, y: nn.functional.cross_entropy(model(x)[None], y[None]))
IMAGES = Dataset((torch.rand(13, 6, 6), torch.arange(13) % 5), (torch.rand(4, 6, 6), torch.arange(4)))


def graph_of(model, data):
    return graph.of(model.loss, models.stand_ins(model), *batches.example(data, 0))


def layout(record):
    return {name: (x.dtype, tuple(x.shape)) for name, x in records._step.flatten(record).items()}


def first_record(traced, model, data, recipe, recording):
    made = training.moves(traced, model.init(0), data, recipe, captured=recording.units, stop=1)
    return records.to_record(next(made), recording)


TEXT_DATA = batches.chunk(PLANTED.train, 9)
CASES = {
    "text": (TEXT, TEXT_DATA, graph_of(TEXT, TEXT_DATA), [(), ("*",), ("layers.1.*",), ("*norm*", "decoder.*")]),
    "net": (NET, IMAGES.train, graph_of(NET, IMAGES.train), [(), ("*",), ("conv*", "idle"), ("dense", "twice*")]),
}
REAL = {
    name: graph.of(model.loss, model.init(0), *batches.example(data, 0)) for name, (model, data, *_) in CASES.items()
}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(CASES)),
    st.integers(0, 3),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from([1, 3, 11]),
    st.sampled_from([1, 5]),
    st.sampled_from(["datum", "step"]),
    st.booleans(),
)
def test_a_step_record_is_what_its_outline_says(case, chosen, optimizer, n, k, per, factors):
    model, data, traced, patterns = CASES[case]
    if case == "net" and optimizer == "muon":
        optimizer = "momentum"
    recording = Recording(k, per, patterns[chosen], factors)
    recipe = Recipe(batch_size=n, lr=0.1, optimizer=OPTIMIZERS[optimizer])
    made = first_record(REAL[case], model, data, recipe, recording)
    assert layout(records.outline(traced, recipe, recording)) == layout(made)
    assert records.step_bytes(traced, recipe, recording) == records.n_bytes(made)


@pytest.mark.parametrize("n", [1, 40_000])
def test_wider_numbers_are_counted_where_narrow_ones_do_not_hold(n):
    """Of 40,000 data int16 does not hold the rows; of 300 positions uint8 does not hold the positions."""
    data = batches.Data(*torch.zeros(2, n, 300, dtype=torch.long).unbind())
    traced, recipe = graph_of(TEXT, data), Recipe(context=300, batch_size=n)
    found = records.outline(traced, recipe, Recording(3, "step")).outliers
    assert found.position.dtype == torch.int16
    assert found.datum.dtype == (torch.int32 if n > 2**15 else torch.int16)


RUNS = {
    "many snapshots": (PLANTED, TEXT, Recipe(9, 5, 1, 0.1, n_steps=6), Recording(7, snapshot_every=1)),
    "state, factors, several shards": (
        PLANTED,
        TEXT,
        Recipe(9, 30, 2, 0.1, optimizer=OPTIMIZERS["adamw"], n_steps=13),
        Recording(40, "datum", ("*",), True, 5),
    ),
    "several epochs of tensors": (IMAGES, NET, Recipe(batch_size=4, epochs=2, lr=0.1), Recording(5, "step")),
    "no held-out data": (replace(IMAGES, valid=None), NET, Recipe(batch_size=5, epochs=1, lr=0.1), Recording(5)),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_bytes_of_a_run_are_those_counted(name, tmp_path, monkeypatch):
    monkeypatch.setattr(records._going_on, "SHARD_BYTES", 2**17)
    monkeypatch.setattr(records._sizes, "SHARD_BYTES", 2**17)
    data, model, recipe, recording = RUNS[name]
    for _ in records.record(tmp_path / "run", data, model, recipe, recording):
        pass
    cut = _dataset.dataset(data, recipe)
    counted = records.run_bytes(graph_of(model, cut.train), recipe, recording, cut)
    files = list((tmp_path / "run").rglob("*.safetensors"))
    assert (counted.files, counted.total) == (len(files), sum(file.stat().st_size for file in files))
    apart = {
        kind: [load_file(file) for file in files if file.parent.name == folder] for kind, folder in FOLDERS.items()
    }
    for kind, loaded in apart.items():
        assert getattr(counted, kind) == sum(x.nbytes for tensors in loaded for x in tensors.values()), kind
    assert len(apart["steps"]) > 1 or name == "no held-out data"


def test_without_data_the_steps_are_given_and_neither_data_nor_evaluations_are_counted():
    _, _, traced, _ = CASES["text"]
    recipe, recording = Recipe(9, 5), Recording(7, snapshot_every=10)
    counted = records.run_bytes(traced, recipe, recording, n_steps=1_000_001)
    assert counted.steps == 1_000_001 * records.step_bytes(traced, recipe, recording)
    assert counted.params == 100_002 * 4 * units.n_parameters(traced.shapes)
    assert counted.data == counted.evaluation == counted.state == 0
    with pytest.raises(ValueError, match="how many steps there are follows from data; give them, or n_steps"):
        records.run_bytes(traced, recipe, recording)


def test_more_outliers_than_there_are_parameters_are_refused():
    _, _, traced, _ = CASES["net"]
    with pytest.raises(ValueError, match="k is 3; it must be between 1 and the 2 captured parameters"):
        records.step_bytes(traced, Recipe(), Recording(3, units=("idle",)))


# ---- memory


def resident(what):
    """Of this process, in bytes: VmRSS now, VmHWM at most since the last ``clear_refs``."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    ("sizes", "vocab", "context", "optimizer"),
    [
        pytest.param({"d_model": 128, "d_hidden": 256, "n_layers": 4}, 50, 64, "sgd", id="mostly activations"),
        pytest.param({"d_model": 128, "d_hidden": 64, "n_layers": 1}, 60_000, 9, "adamw", id="mostly weights"),
    ],
)
def test_memory_is_estimated_within_a_third_of_what_is_taken(sizes, vocab, context, optimizer):
    model, n = models.transformer(Config(vocab, n_heads=4, **sizes)), 24
    data = batches.Data(*torch.zeros(2, 2 * n, context, dtype=torch.long).unbind())
    recipe, recording = Recipe(context, n, 1, 0.01, optimizer=OPTIMIZERS[optimizer]), Recording(20)
    params = model.init(0)
    traced = graph.of(model.loss, params, *batches.example(data, 0))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the next allocations would take no new memory
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for move in training.moves(traced, params, data, recipe, captured=recording.units):
        records.to_record(move, recording)
        del move
    taken = resident("VmHWM") - before
    own = sum(w.nbytes for w in params.values())  # there before, and no records wait to be written
    estimated = records.memory(traced, recipe, recording)
    assert taken > 1e8
    assert 2 / 3 < (estimated.total - estimated.records - own) / taken < 4 / 3
