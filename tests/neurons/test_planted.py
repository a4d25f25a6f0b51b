"""Planted ground truth: attribution finds the planted words, for neurons whose ablation breaks just those words."""

import numpy as np
import pytest
import torch
from run_builders import recorded

from devinterp_func import batches, models, neurons, records, stats, text, training
from devinterp_func.models import Config

UNIT = "layers.1.linear2.weight"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small model trained on planted text and recorded, and its neurons' ablations on held-out text."""
    corpus = text.planted(key=0)
    config = Config(len(corpus.vocab), d_model=32, d_hidden=32, n_layers=2, dropout=0.0)
    recipe = training.Recipe(epochs=12, n_steps=1000)
    run = recorded(
        tmp_path_factory.mktemp("runs") / "run", recipe, records.Recording(k=20), corpus, models.transformer(config)
    )
    tally = neurons.tally(run.shards(), run.data, neurons.groups(run.shapes), config.vocab_size)
    rows = [tally.row(neuron) for neuron in neurons.every(run.shapes, units=[UNIT])]
    unseen = text.planted(key=1, n_tokens=8_000)
    held_out = batches.chunk(corpus.vocab.encode(unseen.vocab.decode(unseen.train)), recipe.context).tokens
    flips = neurons.sweep(run.graph, run.params(), (held_out,), neurons.every(run.shapes, units=[UNIT]))
    truth = neurons.truly_flips(*neurons.flip_counts(flips, len(rows), config.vocab_size))
    reference = stats.token_counts(corpus.train, config.vocab_size)
    return corpus, tally.target[rows], truth, reference


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
    score = stats.log_likelihood(target, reference)
    precision = stats.average_precision(score, truth)
    control = stats.average_precision(neurons.swapped_scores(score, key=0), truth)
    chance = stats.average_precision(neurons.random_scores(*truth.shape, key=1), truth)
    against_others = stats.compare_scores(precision, control, key=2).difference
    against_chance = stats.compare_scores(precision, chance, key=3).difference
    assert against_others.low > 0 and against_chance.low > 0, (against_others, against_chance)


def test_notable_planted_words_overlap_with_flipped_ones_beyond_permutation(study):
    corpus, target, truth, reference = study
    notable = torch.stack(
        [stats.as_set(stats.notable_tokens(row, reference, "log_likelihood", 8), truth.shape[1]) for row in target]
    )
    universe = planted_words(corpus) | truth.any(0)
    both = int((notable & truth & universe).sum())
    permuted = stats.permuted_overlaps(notable, truth, universe, 2000, key=0).sum(1).numpy()
    assert both > np.quantile(permuted, 0.999), (both, permuted.mean())
