"""A neuron's card: what training record, weights, activations and ablation each say of it, on one page."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from devinterp_func import keys, stats, units
from devinterp_func.batches import Data
from devinterp_func.models import Config
from devinterp_func.neurons._activations import activations, activations_by_token, selectivity
from devinterp_func.neurons._controls import Trial, flip_counts_of, other_neurons, sample_attributed, try_neuron
from devinterp_func.neurons._logit_effect import logit_effect
from devinterp_func.neurons._neuron import Neuron, width
from devinterp_func.neurons._tally import Tally
from devinterp_func.tree import Params


class ModelView(NamedTuple):
    """What the finished model says of a neuron."""

    promoted: Int[Tensor, "c"] | None  # tokens with the largest logit effect; None if it does not write to the stream
    suppressed: Int[Tensor, "c"] | None
    mean_activation: float
    share_active: float  # of positions with an activation above 0
    active_on: Int[Tensor, "d"]  # input tokens on which it is most active for its standard error

    def __repr__(self) -> str:
        return f"ModelView(mean activation {self.mean_activation:.3g}, above 0 at {self.share_active:.0%} of positions)"


class Card(NamedTuple):
    """A neuron on one page; tokens and data by their ids."""

    neuron: Neuron
    outliers: int  # how often one of its weights was among the k that a datum moved most
    data: Int[Tensor, "m"]  # attributed data, those attributed most often first
    times: Int[Tensor, "m"]  # in how many steps
    notable: Int[Tensor, "a"]  # by the post's heuristic, over all tokens of the attributed data
    targets: Int[Tensor, "b"]  # target tokens at the outliers' positions, by G²
    view: ModelView  # what the finished model says of it
    trial: Trial  # its ablation beside the controls

    def __repr__(self) -> str:
        flipped = int(self.trial.attributed.flipped().sum())
        return (
            f"Card of {self.neuron}: {self.outliers:,} outliers by {len(self.data):,} data, "
            f"{len(self.notable)} notable tokens, {flipped} flipped tokens"
        )


def card(
    params: Params,
    data: Data,
    config: Config,
    tally: Tally,
    neuron: Neuron,
    *,
    key: keys.Key | int,
    n_data: int = 200,
    top: int = 10,
) -> Card:
    """Asks record, weights, activations and ablation about one neuron.

    Args:
        params: weights, such as those after training.
        data: the run's training data.
        config: the model.
        tally: of ``neurons.groups``.
        neuron: one of its neurons.
        key: of the draws of data.
        n_data: at most so many attributed data, and random data, go through the model.
        top: tokens in each list, at most.

    Raises:
        ValueError: the neuron was not tallied, or no data are attributed to it.
    """
    row = tally.row(neuron)
    events, reference = tally.events[:, row], torch.bincount(data.tokens.flatten(), minlength=config.vocab_size)
    often = events.argsort(descending=True, stable=True)[: int((events > 0).sum())]
    if not len(often):
        raise ValueError(f"no data are attributed to {neuron}: none of its weights was ever an outlier")
    bag = torch.zeros(config.vocab_size, dtype=torch.int64)
    bag.index_add_(0, data.tokens[often].flatten(), events[often].long().repeat_interleave(data.tokens.shape[1]))
    notable = stats.univariate_heuristic(bag, reference)
    others = other_neurons(neuron, width(tuple(params[neuron.unit].shape), neuron.axis), 3, key=key)
    drawn = keys.permutation(len(data.tokens), key=keys.fold_in(key, "random"))[:n_data]
    attributed = data.tokens[sample_attributed(events, n_data, key=keys.fold_in(key, "attributed"))]
    (elsewhere,) = flip_counts_of(params, data.tokens[drawn], config, [neuron])
    return Card(
        neuron,
        int(tally.outliers[row]),
        often,
        events[often],
        notable,
        stats.notable_tokens(tally.target[row], reference, "log_likelihood", top),
        view(params, data.tokens[drawn], config, neuron, top),
        try_neuron(params, attributed, config, neuron, notable, others, elsewhere),
    )


def view(params: Params, tokens: Int[Tensor, "n C"], config: Config, neuron: Neuron, top: int = 10) -> ModelView:
    """What the finished model says of a neuron on some data.

    Args:
        params: weights.
        tokens: of the data.
        config: the model.
        neuron: of either axis.
        top: tokens in each list, at most.
    """
    means = activations_by_token(params, tokens, config, neuron.unit, neuron.axis)
    active = activations(params, tokens, config, neuron.unit, neuron.axis)[..., neuron.index]
    up, down = _promoted(params, neuron, top)
    score = selectivity(means)[neuron.index]
    most = score.topk(min(top, len(score))).indices
    return ModelView(up, down, float(active.mean()), float((active > 0).float().mean()), most)


def _promoted(params: Params, neuron: Neuron, top: int) -> tuple[Int[Tensor, "c"] | None, Int[Tensor, "c"] | None]:
    """Tokens whose logits the neuron raises and lowers most along the direct path; None where it has none."""
    if neuron.axis != "in" or not units.writes_stream(neuron.unit):
        return None, None
    order = logit_effect(params, neuron, norm=True).argsort(descending=True, stable=True)
    return order[:top], order.flip(0)[:top]
