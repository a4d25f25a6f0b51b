"""Credit of recorded runs of other models: a GPT-2 of a text, and pictures, which have no words."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, clip_and_step
from run_builders import PLANTED as CORPUS
from run_builders import recorded
from torch import nn

from devinterp_func import batches, credit, keys, models, neurons, per_example, records, tree
from devinterp_func.credit import Coherence, Entries
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

V = len(CORPUS.vocab)
RECORDING = Recording(k=5, snapshot_every=3)

# ---- a language model of another make, its maps stored (in, out)

TEXTS = Recipe(context=8, batch_size=4, n_steps=6, lr=0.1)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    tf = pytest.importorskip("transformers", reason="needs transformers: pip install 'devinterp_func[hf]'")
    config = tf.GPT2Config(vocab_size=V, n_positions=8, n_embd=12, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    return recorded(tmp_path_factory.mktemp("gpt2") / "run", TEXTS, RECORDING, model=models.causal_lm(config))


def test_linear_maps_are_those_that_are_nothing_else(gpt2):
    found = credit.linear_maps(gpt2.graph, gpt2.graph.shapes)
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert found == [f"transformer.h.0.{part}.weight" for part in parts]  # not the tied table, nor that of positions
    assert credit.linear_maps(gpt2.graph, found[2:0:-1]) == found[2:0:-1]


@pytest.mark.parametrize("axis, dimension", [("in", 0), ("out", 1)])
def test_norms_of_rows_and_columns_as_they_are_stored_grow_by_their_credits(gpt2, axis, dimension):
    *_, found = credit.norms(gpt2, (axis,))
    maps = credit.linear_maps(gpt2.graph, gpt2.graph.shapes)
    ends = [torch.cat([gpt2.params(step)[unit].double().square().sum(dimension) for unit in maps]) for step in (0, 6)]
    growth = found[axis]
    assert growth.neurons == neurons.every({unit: gpt2.graph.shapes[unit] for unit in maps}, axis)
    torch.testing.assert_close(growth.growth(), ends[1] - ends[0])
    torch.testing.assert_close(growth.target.sum(0), ends[1] - ends[0], rtol=1e-3, atol=1e-8)
    assert int(growth.positions.sum()) == 6 * 4 * 8


def test_directions_gain_the_sum_of_their_amounts(gpt2):
    before, after = gpt2.params(0), gpt2.params(6)
    change = {unit: after[unit] - before[unit] for unit in credit.linear_maps(gpt2.graph, gpt2.graph.shapes)}
    pairs, _ = credit.choose_directions(change, 2, key=0)
    *_, (_, amounts) = credit.directions(gpt2, pairs, 0, 6)
    gained = torch.cat([((p.output @ change[unit]) * p.input).sum(1) for unit, p in pairs.items()])
    for side in ("target", "input"):
        torch.testing.assert_close(amounts[side].net.sum(0), gained.double(), atol=1e-6, rtol=1e-4)


def test_probes_of_its_words_are_parsed_and_their_ledger_is_by_token(gpt2, tmp_path):
    unit = "transformer.h.0.mlp.c_fc.weight"
    forms = ["loss", "next:c00 c01 => c02", "bigram:c00 c01", f"norm:{unit}:3", f"effect:{unit}:2 c00"]
    followed = [credit.parse_probe(form, gpt2, key=0, n=3) for form in [*forms, "head:0.1 previous"]]
    list(credit.ledger(gpt2, tmp_path / "ledger", followed))
    entries = records.read_walk(tmp_path / "ledger", Entries)
    assert entries.credit.shape == (6, 6, 4, 8)
    assert float((entries.missed().abs().sum(0) / entries.change().abs().sum(0)).max()) < 0.01
    targets = gpt2.data.targets[entries.datum]
    assert int(credit.by_token(entries.credit[:, 0], targets, V).positions.sum()) == 6 * 4 * 8


# ---- pictures

PICTURES = Recipe(batch_size=5, n_steps=7, lr=0.3, max_norm=0.5)


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.map, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.conv(x).tanh().mean((2, 3))
        return self.head(self.map(h).tanh())


def loss(model, x, y):
    return F.cross_entropy(model(x[None]), y[None])


def pictures_of(n, seed):
    drawn = keys.generator(seed)
    labels = torch.from_numpy(drawn.integers(0, 3, n))
    return torch.from_numpy(drawn.normal(size=(n, 1, 5, 4))).float() + labels[:, None, None, None] / 3, labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.module(Pictures(), loss)
    data = records.Dataset(pictures_of(20, 0), pictures_of(9, 1))
    return recorded(tmp_path_factory.mktemp("pictures") / "run", PICTURES, RECORDING, data, model)


def test_its_loss_and_norms_are_probes_with_a_ledger_of_one_column(run, tmp_path):
    followed = [credit.parse_probe(form, run, key=3, n=4) for form in ("loss", "norm:map.weight:2:out")]
    order = keys.permutation(9, key=3)[:4]
    x, y = (part[order] for part in run.split("valid"))
    each = torch.stack([run.model.loss(run.params(), *one) for one in zip(x, y, strict=True)])
    torch.testing.assert_close(followed[0].value(run.params()), each.mean())
    list(credit.ledger(run, tmp_path / "ledger", followed))
    entries = records.read_walk(tmp_path / "ledger", Entries)
    assert entries.credit.shape == (7, 2, 5, 1)
    assert float((entries.missed().abs().sum(0) / entries.change().abs().sum(0)).max()) < 0.01
    assert credit.most_credited(entries, 0, 1)[0].position == 0
    assert len(credit.probe_courses(entries, 3).step) == 3


@pytest.mark.parametrize("form", ["next:a => b", "bigram:a b", "effect:map.weight:1 a", "head:0.0 previous"])
def test_forms_with_words_are_refused(form, run):
    with pytest.raises(ValueError, match="reads words, and the data of .* are no text; loss and norm:UNIT:INDEX read"):
        credit.parse_probe(form, run, key=0)


def test_what_is_split_by_token_is_refused(run):
    pair = credit.Directions(torch.eye(4), torch.eye(4)[:, :3])
    for steps in (credit.norms(run), credit.directions(run, {"map.weight": pair}, 0, 1)):
        with pytest.raises(records.RecordError, match="has no text: its data are tensors"):
            next(steps)


def test_a_run_without_validation_data_has_no_held_out_loss(run, tmp_path):
    alone = recorded(tmp_path / "run", PICTURES, RECORDING, run.data, run.model)
    with pytest.raises(records.RecordError, match="has no valid data"):
        credit.parse_probe("loss", alone, key=0)
    assert credit.parse_probe("norm:map.weight:1", alone, key=0).name == "norm:map.weight:1"


def test_a_window_is_retrained_without_data_and_a_patch_is_a_step(run):
    window = credit.window(run, 3, 2)
    removed = torch.zeros(2, 5, dtype=torch.bool)
    removed[0, 1] = removed[1, 2:4] = True
    params, order = run.params(3), batches.schedule(20, 5, epoch=0, key=0)
    assert tree.map(torch.equal, credit.retrain(window).params, run.params(5)) == dict.fromkeys(params, True)
    each = per_example.grads(run.model.loss)
    rates = [PICTURES.lr, PICTURES.lr * PICTURES.schedule.gamma]  # step 4 is the first of the second epoch
    orders = [order[3], batches.schedule(20, 5, epoch=1, key=0)[0]]
    for rate, ids, out in zip(rates, orders, removed, strict=True):
        mean = tree.map(lambda g: g.sum(0) / 5, each(params, *batches.take(run.data, ids[~out])))
        params = clip_and_step(params, mean, rate, PICTURES.max_norm)
    end = credit.retrain(window, removed)
    assert_close(end.params, params, 1e-4)
    ids = torch.tensor([3, 1])
    mean = tree.map(lambda g: g.mean(0), each(params, *batches.take(run.data, ids)))
    found = credit.tail_patch(end._replace(params=params), ids, window)
    assert_close(found, clip_and_step(params, mean, rates[1], PICTURES.max_norm), 1e-4)


def test_its_phases_have_makers_without_tokens(run, tmp_path):
    measured = credit.coherence(run, tmp_path / "walk", lambda params: params["head.bias"], {}, every=2)
    assert [step for step, _ in measured] == list(range(7))
    steps = records.read_walk(tmp_path / "walk", Coherence)
    assert steps.along.shape == (7, len(run.shapes), 5)
    datum = torch.stack([step.datum for step in run.steps()])
    [maker] = credit.makers(steps, datum, None, 0, [(0, 7)])
    assert maker.tokens == [] and maker.largest in datum and 0 < maker.top <= 1
