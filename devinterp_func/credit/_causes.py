"""Does the ledger recover a known cause? A planted bigram is learnt from the data that contain it.

For each planted bigram the probe is the log-probability of its second word after the first, in texts not trained on.
The cause is the set of data in which the second word follows the first. Data are ranked by their summed amounts over a
short training, and by what knows nothing of the probe: the norms of their deltas, and chance.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import keys, stats, training, tree, units
from devinterp_func.batches import Data
from devinterp_func.credit._removals import datum_totals
from devinterp_func.credit._retrain import datum_amounts
from devinterp_func.credit.probes import Probe, log_probability
from devinterp_func.graph import Graph
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

PROMPT = 10  # tokens, the last of them the pair's first word


class CauseStudy(NamedTuple):
    """How N data, those that were trained on, are ranked for P probes, and which are the cause."""

    scores: dict[str, Float[Tensor, "P N"]]  # higher: thought to have raised the probe
    truth: Bool[Tensor, "P N"]

    def __repr__(self) -> str:
        return f"CauseStudy of {len(self.truth)} causes among {self.truth.shape[1]:,} data: {', '.join(self.scores)}"


class Precision(NamedTuple):
    """How well a score finds causes."""

    score: str
    at: int | None  # share of causes among so many of the highest data; None: average precision
    mean: stats.Estimate  # over probes


def planted_causes(
    graph: Graph,
    params: Params,
    data: Data,
    held_out: Int[Tensor, "T"],
    pairs: Mapping[int, int],
    recipe: Recipe,
    *,
    m: int = 1,
) -> CauseStudy:
    """Trains on text with planted bigrams and ranks the data for each of them.

    Args:
        graph, params: the model and where its training starts.
        data: the training data.
        held_out: a stream not trained on, where each pair's first word occurs.
        pairs: first word -> the word that follows it, at least one.
        recipe: of the training.
        m: nodes of the quadrature.

    Raises:
        ValueError: there are no pairs, or a pair's first word does not occur in ``held_out``.
    """
    if not pairs:
        raise ValueError("there are no pairs; a planted cause is at least one")
    followed = [follower_probe(graph, held_out, *pair) for pair in pairs.items()]
    moves = training.moves(graph, params, data, recipe, captured=units.EVERY)
    found = tree.stack([datum_amounts(move, followed, m, at_start=True) for move in moves])
    ids, norm = datum_totals(found.norm, found.datum)
    scores = {
        name: torch.stack([datum_totals(amounts[:, i], found.datum)[1] for i in range(len(followed))])
        for name, amounts in (("credit", found.credit), ("gradient at the start", found.at_start))
    }
    scores["norm of the datum's delta"] = norm.expand(len(followed), -1)
    shape = (len(followed), len(ids))
    scores["random"] = keys.uniform(shape, 0.0, 1.0, key=keys.fold_in(recipe.seed, "random"))
    return CauseStudy(scores, torch.stack([contains_pair(data, *pair)[ids] for pair in pairs.items()]))


def cause_precision(studies: Sequence[CauseStudy], at: Sequence[int], *, key: keys.Key | int) -> list[Precision]:
    """How precisely each score ranks the causes first, over the probes of all studies, with bootstrap intervals.

    Args:
        studies: at least one.
        at: numbers of highest data whose share of causes is taken.
        key: of the bootstrap over probes.

    Raises:
        ValueError: a number is not in 1..N.
    """
    found = []
    for score in studies[0].scores:
        precision = torch.cat([stats.precision_at(study.scores[score], study.truth, at) for study in studies])
        average = torch.cat([stats.average_precision(study.scores[score], study.truth) for study in studies])
        for k, each in [*zip(at, precision.T, strict=True), (None, average)]:
            found.append(Precision(score, k, stats.mean_average_precision(each, key=key)))
    return found


def follower_probe(graph: Graph, stream: Int[Tensor, "T"], first: int, second: int, texts: int = 5) -> Probe:
    """Mean log-probability of the second word, in nats, over the first prompts in a stream that end in the first word.

    Raises:
        ValueError: no prompt ends in it.
    """
    prompts = stream.unfold(0, PROMPT, 1)
    prompts = prompts[prompts[:, -1] == first][:texts]
    if not len(prompts):
        raise ValueError(f"no {PROMPT} tokens of the stream end in token {first}; it must occur after the start")
    return log_probability(graph, prompts, second)._replace(name=f"{second} after {first}")


def contains_pair(data: Data, first: int, second: int) -> Bool[Tensor, "N"]:
    """The data in which the second token follows the first.

    >>> contains_pair(Data(torch.tensor([[1, 2], [2, 1]]), torch.tensor([[2, 1], [1, 3]])), 1, 2)
    tensor([ True, False])
    """
    return ((data.tokens == first) & (data.targets == second)).any(1)
