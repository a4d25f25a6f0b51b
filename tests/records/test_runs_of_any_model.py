"""Runs of other models and other data than text: recorded, resumed, opened and replayed as those of text are."""

import importlib.util
import json
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equal
from run_builders import PLANTED, contents, recorded
from torch import nn

from devinterp_func import graph, keys, models, records, text, training
from devinterp_func.batches import Data
from devinterp_func.records import Dataset, RecordError, Recording
from devinterp_func.training import Recipe

RECIPE, RECORDING = Recipe(batch_size=6, epochs=3, lr=0.3, n_steps=14), Recording(k=4, snapshot_every=5)


class Pictures(nn.Module):
    """A convolution, dropout and a head."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, channels, 3, padding=1), nn.GroupNorm(1, channels)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4 * channels, 4)

    def forward(self, x):
        return self.head(self.drop(F.max_pool2d(self.norm(self.conv(x)).relu(), 2).flatten(1)))


def classified(model, x, y):
    return F.cross_entropy(model(x[None])[0], y)


def regressed(model, example):
    return (model(example["x"]) - example["y"][0]).square().mean()


def normal(*shape, seed=0):
    return torch.from_numpy(keys.generator(seed).standard_normal(shape)).float()


def filled(module):
    """The module with weights from seeds."""
    with torch.no_grad():
        for i, weight in enumerate(module.parameters()):
            weight.copy_(0.4 * normal(*weight.shape, seed=i))
    return module


def pictures(n=40, seed=5):
    return normal(n, 1, 4, 4, seed=seed), torch.from_numpy(keys.generator(seed).integers(0, 4, n))


def nested(n=40, seed=6):
    return ({"y": [normal(n, 2, seed=seed)], "x": normal(n, 3, seed=seed + 1)},)


PICTURES = models.module(filled(Pictures()), classified)
REGRESSION = models.module(filled(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))), regressed)


class Case(NamedTuple):
    """What a run is made of."""

    model: models.Model
    data: object
    recipe: Recipe = RECIPE


TOKENS = torch.from_numpy(keys.generator(0).integers(0, 11, (40, 6)))
SMALL = models.transformer(models.Config(11, d_model=4, n_heads=1, d_hidden=3, n_layers=1))
CASES = {
    "pictures": Case(PICTURES, pictures()),
    "pictures held out": Case(PICTURES, Dataset(pictures(), pictures(9, 7), pictures(8, 8), "squares")),
    "regression of nested data": Case(REGRESSION, nested()),
    "tokens without a text": Case(SMALL, Data(TOKENS[:, :-1], TOKENS[:, 1:])),
    "a text of its own": Case(models.transformer(models.Config(len(PLANTED.vocab), 4, 1, 3, 1)), PLANTED),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    own = CASES[request.param]
    return own, recorded(tmp_path_factory.mktemp("runs") / "run", own.recipe, RECORDING, own.data, own.model)


def test_the_record_is_complete_and_replays(case):
    own, run = case
    verified = records.verify(run)
    assert verified.complete and verified.steps == run.n_steps == 14
    for step in (0, 7, 13):
        replayed = records.replay(run, step)
        assert records.same_bits(replayed.record, records.read(run, step)) and replayed.worst < 1e-4
    assert_equal(run.params(0), training.initial(own.model, own.recipe))


def test_the_data_come_back_with_their_structure(case):
    own, run = case
    if isinstance(own.data, text.Corpus):
        assert run.is_text and run.corpus.vocab == own.data.vocab
        return
    given = own.data if isinstance(own.data, Dataset) else Dataset(own.data)
    for name in ("train", "valid", "test"):
        if given.split(name) is None:
            with pytest.raises(RecordError, match=f"has no {name} data; it has train"):
                run.split(name)
            continue
        assert type(run.split(name)) is type(given.split(name))
        assert_equal(run.split(name), given.split(name))
    assert run.n_data == 40 and run.dataset.name == given.name and not run.is_text
    with pytest.raises(RecordError, match="has no text: its data are tensors, which have no words"):
        _ = run.corpus


def test_evaluations_are_of_the_parts_that_there_are(case):
    own, run = case
    found = {step: set(values) for step, values in records.read_evaluations(run).items()}
    parts = set(run.dataset.sizes()) - {"train"}
    due = [step for step in range(1, 14) if step % run.steps_per_epoch == 0] if "valid" in parts else []
    assert found == {step: {"valid"} for step in due} | ({14: parts} if parts else {})
    if "test" in parts:
        expected = training.evaluate(run.graph, run.params(), run.split("test"), own.recipe.batch_size)
        assert records.read_evaluations(run)[14]["test"] == expected


def test_stopped_anywhere_it_resumes_to_the_same_bits(case, tmp_path):
    own, run = case
    for stop in (1, 5, 8, 14):
        for now in records.record(tmp_path / "run", own.data, own.model, own.recipe, RECORDING):
            if now.done == stop:
                break
    assert contents(tmp_path / "run") == contents(run)


def test_the_manifest_says_what_the_model_is(case):
    own, run = case
    said = json.loads((run.path / "manifest.json").read_text())["model"]
    assert said == {**own.model.source, "name": own.model.name, "graph": graph.fingerprint(run.graph)}
    if own.model is PICTURES:
        assert said["class"].endswith(":Pictures") and said["loss"].endswith(":classified")
    if own.model is SMALL:
        assert said["config"]["d_model"] == 4
    assert {"torch", "numpy", "devinterp_func"} <= run.manifest["versions"].keys()


# ---- who gives the model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, RECORDING, pictures(), PICTURES)


def test_a_module_is_not_built_again_and_who_opens_the_run_gives_it(run):
    bare = records.open(run.path)
    assert bare.n_steps == 14 and len(bare.curve().loss) == 14  # what needs no model
    for refused in (lambda: bare.graph, lambda: bare.params(0), lambda: records.replay(bare, 3)):
        with pytest.raises(RecordError, match=r"a module of .*:Pictures .* records.open\(run, model=...\) takes it"):
            refused()
    given = records.open(bare, model=models.module(filled(Pictures()), classified))
    assert records.same_bits(records.replay(given, 3).record, records.read(run, 3))


def other_loss(model, x, y):
    return 2 * classified(model, x, y)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (models.module(Pictures(), other_loss), "the model does not compute what the run's did"),
        (models.module(Pictures().eval(), classified), "the model does not compute what the run's did"),
        (models.module(Pictures(5), classified), "the model that was given has not the run's conv.weight"),
        (REGRESSION, "the model that was given has not the run's conv.weight"),
    ],
    ids=["another loss", "no dropout", "another width", "another model"],
)
def test_another_model_than_the_runs_is_refused(run, model, said):
    with pytest.raises(RecordError, match=said):
        records.replay(records.open(run.path, model=model), 3)


def test_data_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    x, y = pictures()
    for data, said in [
        ((x, y[:39]), "lengths differ"),
        (Dataset((x, y), (x[:, 0], y)), "the valid part of 'data': tensor 0 of the batch holds data of shape"),
        (Dataset((x, y), {"x": x, "y": y}), "the parts of the data have different structures"),
        ((x, y.clamp(min=4)), "the train part of 'data': targets hold the id 4"),
    ]:
        with pytest.raises(ValueError, match=said):
            next(records.record(tmp_path / "run", data, PICTURES, RECIPE))
    with pytest.raises(ValueError, match="context is 7, but these data are not cut from a text: leave it out"):
        next(records.record(tmp_path / "run", pictures(), PICTURES, Recipe(context=7)))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
def test_gpt2_replays_from_its_manifest_alone(tmp_path):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=len(PLANTED.vocab), n_positions=16, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.2
    )
    recipe = Recipe(context=6, batch_size=4, n_steps=4, lr=0.1)
    recorded(tmp_path / "run", recipe, Recording(k=3, snapshot_every=2), PLANTED, models.causal_lm(config))
    run = records.open(tmp_path / "run")
    said = run.manifest["model"]
    assert said["kind"] == "causal_lm" and "GPT2LMHeadModel" in json.dumps(said) and "transformers" in json.dumps(said)
    assert records.same_bits(records.replay(run, 3).record, records.read(run, 3))
    assert "transformer.h.0.attn.c_attn.weight" in run.shapes and "transformer.wte.weight" not in run.shapes
