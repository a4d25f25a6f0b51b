"""What of the corpus' unigrams and bigrams a bigram decoder holds: its entries against the corpus' log-odds.

    log-odds(b | a) = log (p(b | a) / p(b))        p(b | a) = (n_ab + α p(b)) / (n_a + α)

With U = W_U and E = √d W_E the entry ⟨U_b, E_a⟩ is the direct path's logit of b after a: straight from the embedding
to the unembedding. It leaves out the positions, the layer norms, attention, the MLPs and the unembedding's bias. With
E_a the hidden state after the single token a it is the whole model's. An entry carries also how common b is, and an
amount that softmax does not see; ``centre`` takes the corpus' mean off both sides and leaves what is the pair's own.

Beside each correlation stand those after the pairs' input tokens are exchanged, which keeps both tokens' frequencies.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor
from torch.func import vmap

from devinterp_func import bigram, keys
from devinterp_func.transformer import Config, hidden
from devinterp_func.tree import Params

ALPHA = 1.0
AT_ONCE = 2048  # tokens run through the model
Matrix = Float[Tensor, "V d"]


class Counts(NamedTuple):
    """How often each pair of tokens follows each other in a stream."""

    key: Int[Tensor, "m"]  # input · V + output of the m different pairs, ascending
    count: Int[Tensor, "m"]  # type: ignore[assignment]
    first: Int[Tensor, "V"]  # how often a token is followed by any
    second: Int[Tensor, "V"]  # how often it follows any

    def __repr__(self) -> str:
        return f"Counts of {int(self.count.sum()):,} pairs, {len(self.key):,} of them different"


class Pairs(NamedTuple):
    """Output and input tokens: the output follows the input."""

    output: Int[Tensor, "p"]
    input: Int[Tensor, "p"]

    def __repr__(self) -> str:
        return f"{len(self.output):,} pairs"


class Fit(NamedTuple):
    """How x goes with y."""

    pearson: float
    spearman: float
    slope: float  # of x over y
    null_pearson: float  # mean over exchanges
    null_spearman: float
    null_largest: float  # largest |Pearson| of them


# ---- the corpus


def counts(stream: Int[Tensor, "T"], vocab_size: int) -> Counts:
    """Counts of neighbours.

    >>> found = counts(torch.tensor([2, 1, 2, 1]), 3)
    >>> found.key.tolist(), found.count.tolist()  # 1 -> 2 once, 2 -> 1 twice
    ([5, 7], [1, 2])
    """
    if len(stream) < 2 or int(stream.min()) < 0 or int(stream.max()) >= vocab_size:
        raise ValueError(f"the stream has {len(stream)} tokens; it must be at least 2, all in 0..{vocab_size - 1}")
    first, second = stream[:-1].long(), stream[1:].long()
    key, count = (first * vocab_size + second).unique(return_counts=True)
    return Counts(key, count, first.bincount(minlength=vocab_size), second.bincount(minlength=vocab_size))


def look_up(found: Counts, pairs: Pairs) -> Int[Tensor, "p"]:
    """How often each output token follows its input token."""
    V = len(found.first)
    bigram.check_pairs(*pairs, V)
    wanted = pairs.input.long() * V + pairs.output
    at = torch.searchsorted(found.key, wanted).clamp(max=len(found.key) - 1)
    return torch.where(found.key[at] == wanted, found.count[at], 0)


def log_odds(found: Counts, pairs: Pairs, alpha: float = ALPHA) -> Float[Tensor, "p"]:
    """log (p(output | input) / p(output)) of each pair, nats.

    Args:
        found: of ``counts``.
        pairs: any pairs, also some that never occur.
        alpha: pseudo-counts given to p(output | input), spread as p(output).
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be positive")
    n, n_input = look_up(found, pairs), found.first[pairs.input.long()]
    p = found.second.clamp(min=1)[pairs.output.long()].double() / found.second.sum()
    return ((n / p + alpha) / (n_input.double() + alpha)).log()


def seen(found: Counts, least: int = 20) -> Pairs:
    """The pairs that occur at least so often, in ascending order of their keys."""
    if least < 1:
        raise ValueError(f"least is {least}; it must be at least 1")
    return _pairs(found.key[found.count >= least], found)


def characteristic(found: Counts, m: int, least: int = 20) -> Pairs:
    """The m pairs with the largest n_ab · log-odds, their share of the neighbours' mutual information."""
    common = seen(found, least)
    share = look_up(found, common) * log_odds(found, common)
    order = share.argsort(descending=True, stable=True)[:m]
    return Pairs(common.output[order], common.input[order])


def unseen(found: Counts, m: int, *, key: keys.Key | int) -> Pairs:
    """At most m different pairs that never occur, of tokens drawn independently as often as they occur."""
    rng, V = keys.generator(key), len(found.first)
    input, output = (
        torch.from_numpy(rng.choice(V, 4 * m, p=(n.double() / n.sum()).numpy())) for n in (found.first, found.second)
    )
    drawn = (input * V + output).unique()
    drawn = drawn[look_up(found, _pairs(drawn, found)) == 0]
    return _pairs(drawn[keys.permutation(len(drawn), key=keys.fold_in(key, "choice"))[:m]], found)


def exchanged(pairs: Pairs, *, key: keys.Key | int) -> Pairs:
    """The same output and input tokens, put together anew."""
    return pairs._replace(input=pairs.input[keys.permutation(len(pairs.input), key=key)])


# ---- the weights


def centre(x: Matrix, weight: Int[Tensor, "V"]) -> Matrix:
    """Rows less their mean, in which row i counts ``weight[i]`` times."""
    return x - ((weight.double() / weight.sum()) @ x.double()).to(x.dtype)


def one_token(params: Params, config: Config) -> Matrix:
    """What the unembedding reads after each token of the vocabulary alone, without dropout."""
    with torch.no_grad():
        chunks = torch.arange(config.vocab_size).split(AT_ONCE)
        return torch.cat([vmap(lambda token: hidden(params, token[None], config)[0])(chunk) for chunk in chunks])


def mean_logit(params: Params, tokens: Int[Tensor, "n C"], config: Config) -> Float[Tensor, "V"]:
    """Mean logit of each token over all positions of some data, without dropout."""
    with torch.no_grad():
        mean = torch.cat([vmap(lambda one: hidden(params, one, config))(part) for part in tokens.split(64)])
        return params["decoder.weight"] @ mean.mean((0, 1)) + params["decoder.bias"]


def decoders(params: Params, found: Counts, config: Config) -> Iterator[tuple[str, Matrix, Matrix]]:
    """Name, U and E of the ways from a token to the next one's logit: the direct path, the same centred, the model."""
    U, E = params["decoder.weight"], params["embedding.weight"] * config.d_model**0.5
    yield "direct path", U, E
    yield "direct path, centred", centre(U, found.second), centre(E, found.first)
    yield "whole model, centred", centre(U, found.second), centre(one_token(params, config), found.first)


# ---- how they go together


def fit_pairs(
    U: Matrix, E: Matrix, pairs: Pairs, y: Float[Tensor, "p"], *, key: keys.Key | int, draws: int = 10
) -> Fit:
    """Entries ⟨U_output, E_input⟩ against y, and the same for ``exchanged`` pairs."""
    null = [exchanged(pairs, key=keys.fold_in(key, draw)) for draw in range(draws)]
    return _fit(bigram.entries(*pairs, U, E), [bigram.entries(*other, U, E) for other in null], y)


def fit_tokens(x: Float[Tensor, "V"], n: Int[Tensor, "V"], *, key: keys.Key | int, draws: int = 10) -> Fit:
    """A number of each token against log n, over the tokens that occur; the null exchanges tokens."""
    there = n > 0
    x = x[there].double()
    null = [x[keys.permutation(len(x), key=keys.fold_in(key, draw))] for draw in range(draws)]
    return _fit(x, null, n[there].double().log())


def correlation(x: Float[Tensor, "p"], y: Float[Tensor, "p"]) -> float:
    """Pearson's; NaN where one of them is constant.

    >>> round(correlation(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])), 3)
    0.982
    """
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x @ y) / ((x @ x) * (y @ y)).sqrt())


def rank_correlation(x: Float[Tensor, "p"], y: Float[Tensor, "p"]) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing their mean rank."""
    return correlation(*(torch.from_numpy(rankdata(z.numpy())) for z in (x, y)))


def _fit(x: Float[Tensor, "p"], null: list[Tensor], y: Float[Tensor, "p"]) -> Fit:
    if len(x) < 3:
        raise ValueError(f"there are {len(x)} pairs or tokens to correlate; there must be at least 3")
    centred = y.double() - y.double().mean()
    slope = float((centred @ x.double()) / (centred @ centred))
    pearson = torch.tensor([correlation(other, y) for other in null])
    spearman = torch.tensor([rank_correlation(other, y) for other in null])
    return Fit(
        correlation(x, y),
        rank_correlation(x, y),
        slope,
        float(pearson.mean()),
        float(spearman.mean()),
        float(pearson.abs().max()),
    )


def _pairs(key: Int[Tensor, "m"], found: Counts) -> Pairs:
    V = len(found.first)
    return Pairs(key % V, key // V)
