"""Laws of cards.py: a card says what the functions it is made of say."""

import pytest
import torch
from run_builders import recorded

from devinterp_func import activations, attribution, batches, cards, neurons, records, text, training
from devinterp_func.neurons import Neuron
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config

CORPUS = text.planted(key=0, n_tokens=6000)
CONFIG = Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=2)
RECIPE = Recipe(context=10, batch_size=6, n_steps=40, k=15)
NEURON = Neuron("layers.1.linear2.weight", 3)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    run = recorded(tmp_path_factory.mktemp("runs") / "run", RECIPE, CORPUS, CONFIG)
    data, (everyone, groups) = batches.chunk(CORPUS.train, RECIPE.context), neurons.groups(training.shapes(run))
    tally = attribution.tally(records.scan_shards(run), data, groups, len(everyone), CONFIG.vocab_size)
    return records.read_params(run, 40), data, CONFIG, tally, everyone


def card_of(study, neuron, **options):
    params, data, config, tally, everyone = study
    return cards.card(params, data, config, tally, everyone, neuron, **options)


def test_a_card_repeats_the_tally_and_the_activations(study):
    params, data, config, tally, everyone = study
    found = card_of(study, NEURON, key=0, n_data=len(data.tokens))
    row = everyone.index(NEURON)
    assert found.outliers == tally.outliers[row] and found.times.sum() == tally.events[:, row].sum()
    assert found.times.tolist() == sorted(found.times.tolist(), reverse=True)
    active = activations.collect(params, data.tokens, config, NEURON.unit)[..., NEURON.index]
    assert found.look.mean_activation == pytest.approx(float(active.mean()), rel=1e-4)
    effect = neurons.logit_effect(params, NEURON, norm=True)
    assert found.look.promoted is not None and found.look.suppressed is not None
    assert found.look.promoted[0] == effect.argmax() and found.look.suppressed[0] == effect.argmin()
    assert found.trial.neuron == NEURON and repr(found).startswith("Card of layers.1.linear2.weight:3: ")


def test_a_card_depends_on_the_key_alone_and_reads_as_lines(study):
    _, data, *_ = study
    one, two = (cards.text(card_of(study, NEURON, key=5, n_data=50), data, CORPUS.vocab) for _ in range(2))
    assert one == two
    assert one.splitlines()[0].startswith(str(NEURON)) and "switched off, flip" in one and "datum " in one


def test_units_that_do_not_write_to_the_stream_promote_nothing(study):
    found = card_of(study, Neuron("layers.0.linear1.weight", 3), key=0, n_data=50)
    assert found.look.promoted is None and found.look.suppressed is None
    assert "logits raised        –" in cards.text(found, study[1], CORPUS.vocab)


def test_a_neuron_that_is_not_there_is_named(study):
    with pytest.raises(ValueError, match=r"no neuron layers\.9\.linear2\.weight:0; there are neurons of layers\.0\."):
        card_of(study, Neuron("layers.9.linear2.weight", 0), key=0)


def test_a_neuron_without_data_is_an_error(study):
    params, data, config, tally, everyone = study
    silent = tally._replace(events=torch.zeros_like(tally.events))
    with pytest.raises(ValueError, match=r"no data are attributed to layers\.1\.linear2\.weight:3"):
        cards.card(params, data, config, silent, everyone, NEURON, key=0)
