"""Cards: a card says what the functions it is made of say."""

from collections import Counter

import pytest
import torch
from run_builders import recorded
from small_transformers import batch, weights
from strategies import graph_of

from devinterp_func import models, neurons, records, stats, text
from devinterp_func.models import Config
from devinterp_func.neurons import Neuron
from devinterp_func.show import words
from devinterp_func.training import Recipe

CORPUS = text.planted(key=0, n_tokens=6000)
CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=2)
RECIPE = Recipe(context=10, batch_size=6, n_steps=40)
NEURON = Neuron("layers.1.linear2.weight", 3)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    run = recorded(
        tmp_path_factory.mktemp("runs") / "run", RECIPE, records.Recording(k=15), CORPUS, models.transformer(CONFIG)
    )
    tally = neurons.tally(run.shards(), run.data, neurons.groups(run.shapes), CONFIG.vocab_size)
    return run.graph, run.params(40), run.data, tally


def card_of(study, neuron, **options):
    graph, params, data, tally = study
    return neurons.card(graph, params, data, tally, neuron, **options)


def test_a_card_repeats_the_tally_and_the_activations(study):
    graph, params, data, tally = study
    found = card_of(study, NEURON, key=0, n_data=len(data.tokens))
    row = tally.row(NEURON)
    assert found.outliers == tally.outliers[row] and found.times.sum() == tally.events[:, row].sum()
    assert found.times.tolist() == sorted(found.times.tolist(), reverse=True)
    active = neurons.activations(graph, params, (data.tokens,), NEURON.unit)[..., NEURON.index]
    assert found.view.mean_activation == pytest.approx(float(active.mean()), rel=1e-4)
    effect = neurons.logit_effect(graph, params, NEURON, norm=True)
    assert found.view.promoted is not None and found.view.suppressed is not None
    assert found.view.promoted[0] == effect.argmax() and found.view.suppressed[0] == effect.argmin()
    assert found.trial.neuron == NEURON and repr(found).startswith("Card of layers.1.linear2.weight:3: ")


def test_a_cards_tokens_are_those_of_its_row(study):
    graph, params, data, tally = study
    reference = torch.bincount(data.tokens.flatten(), minlength=graph.vocab_size)
    times = torch.ones(len(data.tokens), 1, dtype=torch.int16)
    often = tally.events[:, tally.row(NEURON)].nonzero()[-1]
    times[often] = 300  # as if in as many epochs
    tally = tally._replace(events=tally.events * times)
    found = neurons.card(graph, params, data, tally, NEURON, key=0, n_data=50)
    row = tally.row(NEURON)
    assert not torch.equal(tally.target[row], tally.input[row])
    expected = stats.notable_tokens(tally.target[row], reference, "log_likelihood", 10)
    assert found.targets.tolist() == expected.tolist()
    bag: Counter[int] = Counter()
    for datum, times in enumerate(tally.events[:, row].tolist()):
        for token in data.tokens[datum].tolist() * times:
            bag[token] += 1
    counts = torch.tensor([bag[v] for v in range(graph.vocab_size)])
    assert found.notable.tolist() == stats.univariate_heuristic(counts, reference).tolist()
    assert found.trial is not None and found.trial.notable.tolist() == found.notable.tolist()
    assert set(found.notable.tolist()) & set(data.tokens[often].flatten().tolist()) and found.data[0] == often
    order = sorted(range(len(data.tokens)), key=lambda j: -int(tally.events[j, row]))
    assert found.data.tolist() == [j for j in order if tally.events[j, row]]


@pytest.mark.parametrize("top", [1, 6, 99])
def test_a_view_lists_no_more_tokens_than_there_are(top):
    config = Config(vocab_size=5, d_model=4, n_heads=2, d_hidden=6, n_layers=1)
    params, tokens = weights(config), batch(config, n=8)[0]
    values = neurons.activations(graph_of(config), params, (tokens,), "layers.0.linear2.weight")
    index = int(((values > 0).double().mean((0, 1)) - 0.5).abs().argmin())  # at rest about half of the time
    values, neuron = values[..., index], Neuron("layers.0.linear2.weight", index)
    assert (values == 0).any() and (values > 0).any()
    found = neurons.view(graph_of(config), params, (tokens,), neuron, top)
    effect = neurons.logit_effect(graph_of(config), params, neuron, norm=True)
    order = effect.argsort(descending=True).tolist()
    assert found.promoted is not None and found.promoted.tolist() == order[:top]
    assert found.suppressed is not None and found.suppressed.tolist() == order[::-1][:top]
    means = neurons.activations_by_token(graph_of(config), params, (tokens,), "layers.0.linear2.weight")
    assert found.active_on[0] == neurons.selectivity(means)[index].argmax() and len(found.active_on) == min(top, 5)
    assert found.mean_activation == pytest.approx(float(values.mean()))
    assert found.share_active == pytest.approx(float((values > 0).double().mean()))


def test_a_card_depends_on_the_key_alone_and_reads_as_lines(study):
    _, _, data, _ = study
    one, two = (words.card_text(card_of(study, NEURON, key=5, n_data=50), data, CORPUS.vocab) for _ in range(2))
    assert one == two
    assert one.splitlines()[0].startswith(str(NEURON)) and "ablated, flip" in one and "datum " in one


def test_units_that_do_not_write_to_the_stream_promote_nothing(study):
    found = card_of(study, Neuron("layers.0.linear1.weight", 3), key=0, n_data=50)
    assert found.view.promoted is None and found.view.suppressed is None
    assert "logits raised        –" in words.card_text(found, study[2], CORPUS.vocab)


def test_a_neuron_that_is_not_there_is_named(study):
    with pytest.raises(ValueError, match=r"layers\.9\.linear2\.weight:0 was not tallied; what was: layers\.0\."):
        card_of(study, Neuron("layers.9.linear2.weight", 0), key=0)


def test_a_neuron_without_data_is_an_error(study):
    graph, params, data, tally = study
    silent = tally._replace(events=torch.zeros_like(tally.events))
    with pytest.raises(ValueError, match=r"no data are attributed to layers\.1\.linear2\.weight:3"):
        neurons.card(graph, params, data, silent, NEURON, key=0)
