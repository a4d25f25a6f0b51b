"""What a recording holds, and what is refused before anything of it is written."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from run_builders import MANIFEST, PLANTED, contents, recorded, same_bits

from devinterp_func import models, optim, per_example, records, text, training
from devinterp_func.models import Config
from devinterp_func.per_example import Bias, Dense, Factor, Gain, Lookup, Outer, Scaled, Sum
from devinterp_func.records import Recording, _record_step
from devinterp_func.records._step import stack, take_row, unstack
from devinterp_func.training import Recipe

CONFIG = Config(len(PLANTED.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1)
MODEL = models.transformer(CONFIG)
RECIPE = Recipe(context=10, batch_size=6, n_steps=3)
RECORDING = Recording(k=15, snapshot_every=20)


def record(run, recipe=RECIPE):
    return recorded(run, recipe, RECORDING, PLANTED, MODEL)


# ---- what does not fit is said before anything is written

ONLY_MATRICES = optim.Optimizer((optim.Group(optim.Muon()),))
STRANGE = torch.where(torch.arange(len(PLANTED.test)) == 7, -100, PLANTED.test)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        (
            {"recipe": replace(RECIPE, optimizer=optim.sgd(momentum=0.9, undecayed=("layers.7.*",)))},
            ValueError,
            "no parameter is called 'layers.7",
        ),
        ({"recipe": replace(RECIPE, optimizer=ONLY_MATRICES)}, ValueError, "Muon steps 2-D weights"),
        (
            {"valid": PLANTED.valid[:10]},
            ValueError,
            "the valid part of 'planted' has 10 tokens, fewer than the 11",
        ),
        ({"test": PLANTED.test[:0]}, ValueError, "the test part of 'planted' has 0 tokens, fewer than the 11"),
        (
            {"train": PLANTED.train[:5]},
            ValueError,
            "the train part of 'planted' has 5 tokens, fewer than the 11",
        ),
        ({"test": STRANGE}, ValueError, "the stream holds the id -100; ids"),
        (
            {"model": models.transformer(replace(CONFIG, vocab_size=192))},
            ValueError,
            "the model has 192 words, but 'planted' has ... types",
        ),
        (
            {"model": models.transformer(replace(CONFIG, vocab_size=100))},
            ValueError,
            "the model has 100 words, but 'planted' has ... types",
        ),
        ({"recipe": Recipe(context=5000)}, ValueError, "the train part .* a longer text or a smaller context would do"),
        ({"recipe": Recipe(batch_size=999)}, ValueError, "batch_size is 999; with 87 data it must be in 1 to 87"),
        ({"recording": Recording(k=10**6)}, ValueError, "k is 1000000; it must be between 1 and the 768 captured"),
        ({"recording": Recording(units=("layers.0.*", "layers.1.*"))}, ValueError, "no parameter is called 'layers.1"),
        ({"device": "cuda:7"}, RuntimeError, "torch finds . CUDA devices here: use 'cpu'"),
        ({"device": "mps"}, ValueError, "device is 'mps'; it must be 'cpu', 'cuda', or one such as 'cuda:0'"),
        ({"device": ""}, ValueError, "device is ''; it must be"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changed, error, said):
    parts = {name: changed.pop(name) for name in ("train", "valid", "test") if name in changed}
    given = {"data": PLANTED._replace(**parts), "model": MODEL, "recipe": RECIPE, "recording": RECORDING} | changed
    with pytest.raises(error, match=said):
        records.prepare(tmp_path / "run", **given)
    with pytest.raises(error, match=said):
        next(records.record(tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_inference_mode_is_refused_before_anything_is_written(tmp_path):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="leave it, or use torch.no_grad"):
        record(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_whole_record_is_the_same_under_another_default_dtype(tmp_path, float64_by_default):
    record(tmp_path / "one")
    torch.set_default_dtype(torch.float32)
    record(tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_any_text_survives_its_run(tmp_path):
    odd = ["\n", "a\nb", "", " ", "\0", "\ud800", "\ud83d\ude00", "\U0001f600", '"', "\\n", "<unk>\n", "\u2028"]
    ids = torch.arange(200) % 13
    corpus = text.Corpus("odd\nname", text.Vocab(("<unk>", *odd)), ids, ids[:30], ids[:30])
    opened = recorded(
        tmp_path / "run", RECIPE, Recording(k=3), corpus, models.transformer(Config(13, 4, 1, 3, 1))
    ).corpus
    assert opened.vocab == corpus.vocab and text.fingerprint(opened) == text.fingerprint(corpus)
    assert opened.name == "odd\nname" and all(map(torch.equal, opened[2:5], corpus[2:5]))


# ---- what is recorded


@pytest.mark.parametrize("max_norm", [math.inf, 1e-300])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"optimizer": optim.adamw(betas=(0.7, 0.9), weight_decay=0.3, undecayed=("*.bias",))},
        {"schedule": optim.Schedule("cosine", warmup=2, end=0.1), "optimizer": optim.muon(but=("decoder.*",))},
        {"optimizer": optim.grouped((("*.bias",), optim.sgd(0.9)), rest=optim.adam(), scales=(2.0,))},
    ],
    ids=["sgd", "adamw", "muon", "groups"],
)
def test_every_recipe_comes_back(tmp_path, max_norm, how):
    recipe = replace(RECIPE, max_norm=max_norm, lr=1e-3, n_steps=1, **how)
    opened = record(tmp_path / "run", recipe)
    assert (opened.recipe, opened.recording, opened.model.source) == (recipe, RECORDING, MODEL.source)
    assert "Infinity" not in (tmp_path / "run" / "manifest.json").read_text()


def a_move(n, context, width):
    """A step in which the last position of the last datum alone moved one parameter, the last."""
    signals = torch.zeros(n, context, width)
    signals[-1, -1, -1] = 1.0
    factors: dict[str, Factor] = {"w": Bias(signals)}
    return a_step(n, factors)


def a_step(n, factors):
    """A step of SGD of n data and of these factors, from weights of 0."""
    params = {name: torch.zeros(per_example.shape_of(factor)) for name, factor in factors.items()}
    state = optim.sgd().init(params)
    after, new, split = optim.sgd().update(params, params, state, lr=1.0)
    made = (split, params, after, state, new, factors, factors)
    return training.Move(0, 0, 0, torch.arange(n), torch.zeros(n), *made)


@pytest.mark.parametrize("per", ["datum", "step"])
@pytest.mark.parametrize(("n", "dtype"), [(2**15, torch.int16), (2**15 + 1, torch.int32)])
def test_ids_of_large_batches_are_right(per, n, dtype):
    made = records.to_record(a_move(n, 1, 2), Recording(k=1, per=per))
    found = made.outliers
    assert found.datum.dtype == dtype and found.datum.flatten()[-1] == n - 1 and found.parameter.flatten()[-1] == 1
    if per == "datum":
        assert torch.equal(found.datum.flatten(), torch.arange(n, dtype=dtype))
    read = take_row(unstack(0, stack([made])), 0).outliers.datum
    assert read.dtype == dtype and torch.equal(read, found.datum)


@pytest.mark.parametrize(
    ("context", "dtype"), [(256, torch.uint8), (257, torch.int16), (2**15, torch.int16), (2**15 + 1, torch.int32)]
)
def test_positions_of_long_data_are_right(context, dtype):
    found = records.to_record(a_move(1, context, 1), Recording(k=1)).outliers.position
    assert found.dtype == dtype and found.tolist() == [[context - 1]]


@pytest.mark.parametrize(("more", "dtype"), [(127, torch.uint8), (128, torch.int16)])
def test_the_unit_with_the_most_positions_says_how_they_are_stored(more, dtype):
    move = a_move(1, 1, 1)
    last = torch.zeros(1, more, 1)
    last[0, -1] = 2.0
    used_twice = Sum((Bias(torch.zeros(1, 129, 1)), Bias(last)))
    found = records.to_record(move._replace(factors=move.factors | {"b": used_twice}), Recording(k=2)).outliers
    assert found.position.dtype == dtype and found.position.tolist() == [[128 + more, 0]]


def test_factors_of_every_kind_are_stored(tmp_path):
    n, x, y = 2, torch.arange(12.0).reshape(2, 3, 2), torch.arange(24.0).reshape(2, 3, 4)
    lookup = Lookup(torch.tensor([0, 3, 1]).expand(n, -1), x, 4)
    factors: dict[str, Factor] = {
        "outer": Outer(x, y, (4, 2, 1)),
        "bias": Bias(x, (1, 2)),
        "gain": Gain(x, -x),
        "scaled": Scaled(Outer(x, y), torch.ones(4, 2)),
        "scaled twice": Sum((Scaled(Outer(x, -y), -torch.ones(4, 2)), Scaled(Outer(-x, y), torch.zeros(4, 2)))),
        "scale": Dense(torch.tensor([1.0, 2.0])),
        "tied": Sum((lookup, Sum((Outer(-x, y), Dense(torch.ones(n, 4, 2)))))),
    }
    move = a_step(n, factors)
    run = tmp_path / "run"
    records.create(run, MANIFEST)
    records.write_shard(run, [records.to_record(move, Recording(k=3, factors=True))])
    expected = {
        "outer": {"inputs": x, "signals": y},
        "bias": {"signals": x},
        "gain": {"inputs": x, "signals": -x},
        "scaled": {"inputs": x, "signals": y, "gain": torch.ones(4, 2)},
        "scaled twice": {
            **{"0.inputs": x, "0.signals": -y, "0.gain": -torch.ones(4, 2)},
            **{"1.inputs": -x, "1.signals": y, "1.gain": torch.zeros(4, 2)},
        },
        "scale": {"gradients": torch.tensor([1.0, 2.0])},
        "tied": {
            "0.tokens": torch.tensor([[0, 3, 1]] * n),
            "0.signals": x,
            "1.0.inputs": -x,
            "1.0.signals": y,
            "1.1.gradients": torch.ones(n, 4, 2),
        },
    }
    found = records.read(run, 0).factors
    assert {unit: same_bits(found[unit], parts) for unit, parts in expected.items()} == dict.fromkeys(found, True)


def test_more_parameters_than_32_bits_can_number():
    narrowed = [_record_step._narrow(torch.tensor([size - 1]), size) for size in (2**31, 2**31 + 1)]
    assert [x.dtype for x in narrowed] == [torch.int32, torch.int64]
    assert [x.item() for x in narrowed] == [2**31 - 1, 2**31]


@pytest.mark.parametrize(("most", "expected"), [(5 * 256, 5), (10**9, 5), (5 * 256 - 1, 4), (512, 2), (511, 1), (1, 1)])
def test_deltas_are_formed_of_as_many_data_as_fit(monkeypatch, most, expected):
    monkeypatch.setattr(_record_step, "DELTAS_AT_ONCE", most)
    move = a_move(5, 1, 60)  # 64 float32 a datum, with the padding
    assert records.delta_buffer(move.factors).shape == (expected, 64)
    assert torch.equal(records.to_record(move, Recording(k=1)).outliers.delta[:, 0], torch.tensor([0.0] * 4 + [1.0]))


def test_progress_says_where_the_recording_stands(tmp_path):
    recipe = replace(RECIPE, batch_size=40, epochs=2, n_steps=3)  # two steps an epoch
    seen = list(records.record(tmp_path / "run", PLANTED, MODEL, recipe, RECORDING, check_law=True))
    per_epoch = training.steps_per_epoch(recipe, (len(PLANTED.train) - 1) // 10)
    assert [now.done for now in seen] == [1, 2, 3] and {now.n_steps for now in seen} == {3}
    due = {now.done: set(now.evaluation) for now in seen if now.evaluation}
    assert due == {done: {"valid"} for done in range(per_epoch, 3, per_epoch)} | {3: {"valid", "test"}}
    size = sum(t.nbytes for t in stack([seen[0].record]).values())
    assert records.n_bytes(seen[0].record) == size and [now.bytes for now in seen] == [size, 2 * size, 3 * size]
    assert 0 <= seen[0].writing <= seen[1].writing < seen[2].writing  # the last waits for all that is written
    assert 0 < max(now.missed for now in seen) < 1e-4
    assert next(records.record(tmp_path / "other", PLANTED, MODEL, recipe, RECORDING)).missed == 0


# ---- Recording


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"k": 0}, ValueError, "k is 0; it must be at least 1"),
        ({"k": 5.0}, TypeError, "k is 5.0; it must be an integer"),
        ({"k": True}, TypeError, "k is True; it must be an integer"),
        ({"snapshot_every": 0}, ValueError, "snapshot_every is 0; it must be at least 1"),
        ({"snapshot_every": None}, TypeError, "snapshot_every is None; it must be an integer"),
        ({"per": "epoch"}, ValueError, "per is 'epoch'; it must be 'datum' or 'step'"),
        ({"per": None}, ValueError, "per is None; it must be 'datum' or 'step'"),
        ({"factors": 1}, TypeError, "factors is 1; it must be True or False"),
        ({"units": "layers.2.*"}, TypeError, r"units is 'layers.2.\*'; it must be a tuple .* \('layers.2.\*',\)"),
        ({"units": None}, TypeError, "units is None; it must be a tuple of patterns"),
        ({"units": (1,)}, TypeError, r"units is \(1,\); it must be a tuple of patterns"),
    ],
)
def test_a_recording_names_its_wrong_value(unchecked, wrong, error, said):
    with pytest.raises(error, match=said):
        Recording(**wrong)


def test_a_recording_keeps_pythons_own_numbers(unchecked):
    made = Recording(k=torch.tensor(5), snapshot_every=np.int64(7), units=["*"])  # type: ignore[arg-type]
    assert made == Recording(k=5, snapshot_every=7, units=("*",))
    assert type(made.k) is type(made.snapshot_every) is int and type(made.units) is tuple
