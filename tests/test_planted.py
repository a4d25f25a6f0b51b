"""Planted ground truth: attribution finds the planted words, for neurons whose ablation breaks just those words."""

import numpy as np
import pytest
import torch

from devinterp_func import attribution, batches, keyness, neurons, skill, steprecord, sweeps, text, training
from devinterp_func.transformer import Config

UNIT = "layers.1.linear2.weight"


@pytest.fixture(scope="module")
def study():
    """A small model trained on planted text, its record as one shard, and its neurons' ablations on held-out text."""
    corpus = text.planted(key=0)
    config = Config(len(corpus.vocab), d_model=32, d_hidden=32, n_layers=2, dropout=0.0)
    recipe = training.Recipe(k=50, epochs=12, n_steps=1000)
    data = batches.chunk(corpus.train, recipe.context)
    params, made = training.initial(config, recipe), []
    for after, record in training.steps(params, data, config, recipe):
        params = after
        made.append(record)
    shard = steprecord.unstack(0, steprecord.stack(made))
    shapes = {name: tuple(params[name].shape) for name in captured_units(params)}
    every, groups = neurons.groups(shapes)
    tally = attribution.tally([shard], data, groups, len(every), config.vocab_size)
    own = [i for i, neuron in enumerate(every) if neuron.unit == UNIT]
    unseen = text.planted(key=1, n_tokens=20_000)
    held_out = batches.chunk(corpus.vocab.encode(unseen.vocab.decode(unseen.train)), recipe.context).tokens
    found = sweeps.sweep(params, held_out, config, [every[i] for i in own])
    truth = skill.relevant(*sweeps.flip_counts(found, len(own), config.vocab_size))
    reference = attribution.reference(corpus.train, config.vocab_size)
    return corpus, tally.target[own], truth, reference


def captured_units(params):
    return [name for name in params if name.startswith("layers.") and params[name].ndim == 2]


def planted_words(corpus):
    """Words that are predictable: the followers of the planted bigrams."""
    mask = torch.zeros(len(corpus.vocab), dtype=torch.bool)
    mask[list(text.planted_bigrams(corpus.vocab).values())] = True
    return mask


def test_ablation_breaks_planted_words_and_hardly_others(study):
    corpus, _, truth, _ = study
    flipped, planted = truth.any(0), planted_words(corpus)
    assert int(truth.any(1).sum()) >= 5  # neurons that matter
    assert (flipped & planted).sum() / flipped.sum() > 2 * planted.sum() / len(planted)
    assert (truth & planted).sum() / truth.sum() > 2 * planted.sum() / len(planted)


def test_attribution_ranks_the_words_that_ablation_breaks_above_the_controls(study):
    corpus, target, truth, reference = study
    score = keyness.log_likelihood(target, reference)
    precision = skill.average_precision(score, truth)
    control = skill.average_precision(skill.swapped(score, key=0), truth)
    chance = skill.average_precision(skill.random(*truth.shape, key=1), truth)
    against_others = skill.compare_scores(precision, control, key=2).difference
    against_chance = skill.compare_scores(precision, chance, key=3).difference
    assert against_others.low > 0 and against_chance.low > 0, (against_others, against_chance)


def test_notable_planted_words_overlap_with_flipped_ones_beyond_permutation(study):
    corpus, target, truth, reference = study
    notable = torch.stack(
        [keyness.as_set(keyness.notable(row, reference, "log_likelihood", 8), truth.shape[1]) for row in target]
    )
    universe = planted_words(corpus) | truth.any(0)
    both = int((notable & truth & universe).sum())
    permuted = keyness.permuted_overlaps(notable, truth, universe, 2000, key=0).sum(1).numpy()
    assert both > np.quantile(permuted, 0.999), (both, permuted.mean())
