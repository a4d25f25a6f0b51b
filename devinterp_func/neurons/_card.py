"""A neuron's card: what training record, weights, activations and ablation each say of it, on one page."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.batches import Data, take
from devinterp_func.graph import Graph, check_batch
from devinterp_func.neurons._activations import activations, activations_by_token, selectivity
from devinterp_func.neurons._controls import Trial, flip_counts_of, other_neurons, sample_attributed, try_neuron
from devinterp_func.neurons._logit_effect import is_writer, logit_effect
from devinterp_func.neurons._neuron import Neuron, width
from devinterp_func.neurons._tally import Tally
from devinterp_func.tree import Params


class ModelView(NamedTuple):
    """What the finished model says of a neuron."""

    promoted: Int[Tensor, "c"] | None  # tokens with the largest logit effect; None if it does not write to the stream
    suppressed: Int[Tensor, "c"] | None
    mean_activation: float
    share_active: float  # of positions with an activation above 0
    active_on: Int[Tensor, "d"]  # input tokens on which it is most active for its standard error; none without tokens

    def __repr__(self) -> str:
        return f"ModelView(mean activation {self.mean_activation:.3g}, above 0 at {self.share_active:.0%} of positions)"


class Card(NamedTuple):
    """A neuron on one page; tokens and data by their ids."""

    neuron: Neuron
    outliers: int  # how often one of its weights was among the k that a datum moved most
    data: Int[Tensor, "m"]  # attributed data, those attributed most often first
    times: Int[Tensor, "m"]  # in how many steps
    notable: Int[Tensor, "a"]  # by the post's heuristic, over all tokens of the attributed data; none but for text
    targets: Int[Tensor, "b"]  # target tokens at the outliers' positions, by G²; none but for text
    view: ModelView  # what the finished model says of it
    trial: Trial | None  # its ablation beside the controls; None for a model without a head

    def __repr__(self) -> str:
        of = f"Card of {self.neuron}: {self.outliers:,} outliers by {len(self.data):,} data"
        if self.trial is None:
            return of
        return f"{of}, {len(self.notable)} notable tokens, {int(self.trial.attributed.flipped().sum())} flipped tokens"


def card(
    graph: Graph,
    params: Params,
    data: Any,
    tally: Tally,
    neuron: Neuron,
    *,
    key: keys.Key | int,
    n_data: int = 200,
    top: int = 10,
) -> Card:
    """Asks record, weights, activations and ablation about one neuron.

    Args:
        graph: the model.
        params: weights, such as those after training.
        data: the run's training data, of any kind: a tuple, or ``Data`` for text.
        tally: of ``neurons.groups``.
        neuron: one of its neurons.
        key: of the draws of data.
        n_data: at most so many attributed data, and random data, go through the model.
        top: tokens in each list, at most.

    Raises:
        ValueError: the neuron was not tallied, or no data are attributed to it.
    """
    row = tally.row(neuron)
    events = tally.events[:, row]
    often = events.argsort(descending=True, stable=True)[: int((events > 0).sum())]
    if not len(often):
        raise ValueError(f"no data are attributed to {neuron}: none of its weights was ever an outlier")
    notable, targets = (
        _words(data, tally, row, often, graph.vocab_size, top) if isinstance(data, Data) else (NONE, NONE)
    )
    drawn = take(data, keys.permutation(len(events), key=keys.fold_in(key, "random"))[:n_data])
    attributed = take(data, sample_attributed(events, n_data, key=keys.fold_in(key, "attributed")))
    trial = None
    if graph.head is not None:
        others = other_neurons(neuron, width(graph.shapes[neuron.unit], neuron.axis), 3, key=key)
        (elsewhere,) = flip_counts_of(graph, params, drawn, [neuron])
        trial = try_neuron(graph, params, attributed, neuron, notable, others, elsewhere)
    seen = view(graph, params, drawn, neuron, top)
    return Card(neuron, int(tally.outliers[row]), often, events[often], notable, targets, seen, trial)


NONE = torch.zeros(0, dtype=torch.int64)


def _words(
    data: Data, tally: Tally, row: int, often: Int[Tensor, "m"], vocab_size: int, top: int
) -> tuple[Int[Tensor, "a"], Int[Tensor, "b"]]:
    """Notable tokens of a neuron's attributed data, and notable targets at its outliers' positions."""
    reference = torch.bincount(data.tokens.flatten(), minlength=vocab_size)
    times = tally.events[often, row].long().repeat_interleave(data.tokens.shape[1])
    bag = torch.zeros(vocab_size, dtype=torch.int64).index_add_(0, data.tokens[often].flatten(), times)
    notable = stats.univariate_heuristic(bag, reference)
    return notable, stats.notable_tokens(tally.target[row], reference, "log_likelihood", top)


def view(graph: Graph, params: Params, batch: tuple[Any, ...], neuron: Neuron, top: int = 10) -> ModelView:
    """What the finished model says of a neuron on some data.

    Args:
        graph, params: the model.
        batch: the data; may be cut short, such as ``(tokens,)``.
        neuron: of either axis.
        top: tokens in each list, at most.
    """
    active = activations(graph, params, batch, neuron.unit, neuron.axis)[..., neuron.index]
    up, down = _promoted(graph, params, neuron, top)
    first, most = check_batch(graph, batch)[0], NONE
    if not first.is_floating_point() and first.shape == active.shape:
        means = activations_by_token(graph, params, batch, neuron.unit, neuron.axis)
        score = selectivity(means)[neuron.index]
        most = score.topk(min(top, len(score))).indices
    return ModelView(up, down, float(active.mean()), float((active > 0).float().mean()), most)


def _promoted(
    graph: Graph, params: Params, neuron: Neuron, top: int
) -> tuple[Int[Tensor, "c"] | None, Int[Tensor, "c"] | None]:
    """Classes whose logits the neuron raises and lowers most along the direct path; None where it has none."""
    if not is_writer(graph, neuron):
        return None, None
    order = logit_effect(graph, params, neuron, norm=True).argsort(descending=True, stable=True)
    return order[:top], order.flip(0)[:top]
