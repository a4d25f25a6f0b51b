"""A neuron's card: what training record, weights, activations and ablation each say of it, on one page."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import activations, keyness, keys, neurons, verdicts
from devinterp_func.attribution import Tally
from devinterp_func.batches import Data
from devinterp_func.neurons import Neuron
from devinterp_func.transformer import Config
from devinterp_func.tree import Params
from devinterp_func.vocabulary import Vocab


class Look(NamedTuple):
    """What the finished model says of a neuron."""

    promoted: Int[Tensor, "c"] | None  # tokens with the largest logit effect; None if it does not write to the stream
    suppressed: Int[Tensor, "c"] | None
    mean_activation: float
    share_active: float  # of positions with an activation above 0
    active_on: Int[Tensor, "d"]  # input tokens on which it is most active for its standard error

    def __repr__(self) -> str:
        return f"Look(mean activation {self.mean_activation:.3g}, above 0 at {self.share_active:.0%} of positions)"


class Card(NamedTuple):
    """A neuron on one page; tokens and data by their ids."""

    neuron: Neuron
    outliers: int  # how often one of its weights was among the k that a datum moved most
    data: Int[Tensor, "m"]  # attributed data, those attributed most often first
    times: Int[Tensor, "m"]  # in how many steps
    notable: Int[Tensor, "a"]  # by the post's heuristic, over all tokens of the attributed data
    targets: Int[Tensor, "b"]  # target tokens at the outliers' positions, by G²
    look: Look
    trial: verdicts.Trial  # its ablation beside the controls

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
    everyone: Sequence[Neuron],
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
        tally: of the groups ``everyone``; see ``attribution.tally``.
        everyone: the neurons of ``neurons.groups``.
        neuron: one of them.
        key: of the draws of data.
        n_data: at most so many attributed data, and random data, go through the model.
        top: tokens in each list, at most.

    Raises:
        ValueError: no such neuron, or no data are attributed to it.
    """
    row = place(everyone, neuron)
    events, reference = tally.events[:, row], torch.bincount(data.tokens.flatten(), minlength=config.vocab_size)
    often = events.argsort(descending=True, stable=True)[: int((events > 0).sum())]
    if not len(often):
        raise ValueError(f"no data are attributed to {neuron}: none of its weights was ever an outlier")
    bag = torch.zeros(config.vocab_size, dtype=torch.int64)
    bag.index_add_(0, data.tokens[often].flatten(), events[often].long().repeat_interleave(data.tokens.shape[1]))
    notable = keyness.univariate_heuristic(bag, reference)
    others = verdicts.others(neuron, neurons.width(tuple(params[neuron.unit].shape), neuron.axis), 3, key=key)
    drawn = keys.permutation(len(data.tokens), key=keys.fold_in(key, "random"))[:n_data]
    attributed = data.tokens[verdicts.sample(events, n_data, key=keys.fold_in(key, "attributed"))]
    (elsewhere,) = verdicts.counts_of(params, data.tokens[drawn], config, [neuron])
    return Card(
        neuron,
        int(tally.outliers[row]),
        often,
        events[often],
        notable,
        keyness.notable(tally.target[row], reference, "log_likelihood", top),
        look(params, data.tokens[drawn], config, neuron, top),
        verdicts.trial(params, attributed, config, neuron, notable, others, elsewhere),
    )


def place(everyone: Sequence[Neuron], neuron: Neuron) -> int:
    """The neuron's number among all.

    Raises:
        ValueError: it is none of them; an example of each unit is named.
    """
    if neuron not in everyone:
        there = ", ".join(dict.fromkeys(f"{other.unit} ({other.axis})" for other in everyone))
        raise ValueError(f"there is no neuron {neuron}; there are neurons of {there}")
    return everyone.index(neuron)


def look(params: Params, tokens: Int[Tensor, "n C"], config: Config, neuron: Neuron, top: int = 10) -> Look:
    """What the finished model says of a neuron on some data.

    Args:
        params: weights.
        tokens: of the data.
        config: the model.
        neuron: of either axis.
        top: tokens in each list, at most.
    """
    means = activations.by_token(params, tokens, config, neuron.unit, neuron.axis)
    active = activations.collect(params, tokens, config, neuron.unit, neuron.axis)[..., neuron.index]
    up, down = effect(params, neuron, top)
    most = activations.selectivity(means)[neuron.index].topk(top).indices
    return Look(up, down, float(active.mean()), float((active > 0).float().mean()), most)


def effect(params: Params, neuron: Neuron, top: int) -> tuple[Int[Tensor, "c"] | None, Int[Tensor, "c"] | None]:
    """Tokens whose logits the neuron raises and lowers most along the direct path; None where it has none."""
    if neuron.axis != "in" or not neuron.unit.endswith(neurons.WRITERS):
        return None, None
    logits: Float[Tensor, V] = neurons.logit_effect(params, neuron, norm=True)
    order = logits.argsort(descending=True)
    return order[:top], order.flip(0)[:top]


def text(card: Card, data: Data, vocab: Vocab, n_data: int = 3) -> str:
    """The card as lines for a terminal.

    Args:
        card: of ``card``.
        data: the training data.
        vocab: the vocabulary.
        n_data: attributed data quoted.
    """
    proportion, count = card.trial.attributed.proportion(), card.trial.attributed.count
    flipped = (card.trial.attributed.flips.double() * card.trial.attributed.flipped()).argsort(
        descending=True, stable=True
    )
    flipped = flipped[: int(card.trial.attributed.flipped().sum())][:10]
    flips = [f"{vocab.tokens[v]} {proportion[v]:.0%} of {count[v]}" for v in flipped.tolist()]
    elsewhere = [f"{vocab.tokens[v]} {card.trial.random_data.proportion()[v]:.0%}" for v in flipped.tolist()]
    lines = {
        str(card.neuron): f"{card.outliers:,} outliers by {len(card.data):,} data",
        "notable tokens": _words(card.notable, vocab),
        "notable targets": _words(card.targets, vocab),
        "logits raised": _words(card.look.promoted, vocab),
        "logits lowered": _words(card.look.suppressed, vocab),
        "activation": f"mean {card.look.mean_activation:.3g}, above 0 at {card.look.share_active:.0%} of positions",
        "most active on": _words(card.look.active_on, vocab),
        "switched off, flip": ", ".join(flips) or "none",
        "... on random data": ", ".join(elsewhere) or "–",
    }
    for datum, times in zip(card.data[:n_data].tolist(), card.times[:n_data].tolist(), strict=True):
        lines[f"datum {datum}, {times}×"] = " ".join(vocab.decode(data.tokens[datum]))
    return "\n".join(f"{name:20} {value}" for name, value in lines.items())


def _words(ids: Int[Tensor, "m"] | None, vocab: Vocab) -> str:
    return "–" if ids is None or not len(ids) else " ".join(vocab.decode(ids))
