"""A known cause: what the probe reads, which data are the cause, and that scores are the ledger's sums."""

from dataclasses import replace

import pytest
import torch
from strategies import graph_of

from devinterp_func import batches, credit, keys, models, per_example, text, training, units
from devinterp_func.batches import Data
from devinterp_func.credit import CauseStudy
from devinterp_func.credit._causes import PROMPT, contains_pair, follower_probe
from devinterp_func.models import Config
from devinterp_func.training import Recipe

CORPUS = text.planted(key=0, n_tokens=8000)
CONFIG = Config(len(CORPUS.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=1, dropout=0.0)
MODEL, GRAPH = models.transformer(CONFIG), graph_of(CONFIG, torch.float32, 12)
RECIPE = Recipe(context=12, batch_size=6, n_steps=8)
START = training.initial(MODEL, RECIPE)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
PAIRS = dict(list(text.planted_bigrams(CORPUS.vocab).items())[:2])


@pytest.fixture(scope="module")
def study():
    return credit.planted_causes(GRAPH, START, DATA, CORPUS.valid, PAIRS, RECIPE)


def test_a_probe_is_the_mean_over_the_first_prompts_that_end_in_the_word():
    params = models.init(CONFIG, key=1)
    (first, second), *_ = PAIRS.items()
    stream = CORPUS.valid
    ends = [t for t in range(PROMPT - 1, len(stream)) if int(stream[t]) == first][:3]
    expected = [models.apply(params, stream[t - PROMPT + 1 : t + 1], CONFIG)[-1].log_softmax(0)[second] for t in ends]
    probe = follower_probe(GRAPH, stream, first, second, texts=3)
    torch.testing.assert_close(probe.value(params), torch.stack(expected).mean())


def test_a_word_that_no_prompt_ends_in_is_named():
    with pytest.raises(ValueError, match="no 10 tokens of the stream end in token 5"):
        follower_probe(GRAPH, torch.tensor([5] * 9 + [3] * 20), 5, 3)


def test_the_cause_is_where_the_second_word_follows_the_first(study):
    ids = study_ids()
    for i, (first, second) in enumerate(PAIRS.items()):
        for column, datum in enumerate(ids):
            pairs = zip(DATA.tokens[datum].tolist(), DATA.targets[datum].tolist(), strict=True)
            assert bool(study.truth[i, column]) == ((first, second) in set(pairs))
    assert 0 < int(study.truth.sum()) < study.truth.numel()
    crossed = Data(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 1]]))
    assert contains_pair(crossed, 2, 3).item() and not contains_pair(crossed, 1, 3).item()


def study_ids():
    moves = training.moves(GRAPH, START, DATA, RECIPE)
    return sorted({int(j) for move in moves for j in move.datum})


def test_scores_are_sums_over_each_datums_steps_of_probes_on_texts_not_trained_on(study):
    """Credits by a loop over the steps; the probes read ``held_out`` and nothing else."""
    followed = [follower_probe(GRAPH, CORPUS.valid, *pair) for pair in PAIRS.items()]
    trained = [follower_probe(GRAPH, CORPUS.train, *pair) for pair in PAIRS.items()]
    ids = study_ids()
    sums = {name: torch.zeros(2, len(ids), dtype=torch.float64) for name in ("credit", "start", "norm", "train")}
    for move in training.moves(GRAPH, START, DATA, RECIPE, captured=units.EVERY):
        place = [ids.index(int(j)) for j in move.datum]
        found = credit.split_change(move, followed, 1, at_start=True)
        sums["credit"][:, place] += found.credit.sum(-1)
        sums["start"][:, place] += found.at_start.sum(-1)
        sums["norm"][:, place] += per_example.delta_norms(move.factors).double()
        sums["train"][:, place] += credit.split_change(move, trained, 1).credit.sum(-1)
    torch.testing.assert_close(study.scores["credit"], sums["credit"])
    torch.testing.assert_close(study.scores["gradient at the start"], sums["start"])
    torch.testing.assert_close(study.scores["norm of the datum's delta"], sums["norm"])
    assert not torch.allclose(study.scores["credit"], sums["train"], rtol=0.1)
    chance = keys.uniform((2, len(ids)), 0.0, 1.0, key=keys.fold_in(RECIPE.seed, "random"))
    assert torch.equal(study.scores["random"], chance)
    assert repr(study).startswith(f"CauseStudy of 2 causes among {len(ids)} data: credit, gradient at the start")


def test_precision_is_the_share_of_causes_among_the_highest_data():
    truth = torch.tensor([[True, False, True, False], [False, True, False, False]])
    scores = {
        "good": torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 9.0, 2.0, 3.0]]),
        "bad": torch.tensor([[1.0, 4, 2, 3]] * 2),
    }
    one, other = CauseStudy(scores, truth), CauseStudy({k: -x for k, x in scores.items()}, truth)
    found = {(x.score, x.at): x.mean for x in credit.cause_precision([one], [1, 2], key=0)}
    assert found.keys() == {(score, at) for score in scores for at in (1, 2, None)}
    assert found["good", 1].value == 1 and found["good", 2].value == 0.75 and found["good", None].value == 1
    assert found["bad", 1].value == 0.5 and found["bad", 2].value == 0.25
    both = {(x.score, x.at): x.mean for x in credit.cause_precision([one, other], [1], key=0)}
    assert both["good", 1].value == 0.5 and both["good", 1].n == 4


def test_pairs_are_needed():
    with pytest.raises(ValueError, match="there are no pairs"):
        credit.planted_causes(GRAPH, START, DATA, CORPUS.valid, {}, replace(RECIPE, n_steps=1))
