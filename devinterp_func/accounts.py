"""A ledger in words and tables: probes by name, what moved them, by which texts and tokens, and how far to trust it.

The sign of an amount is that of the probe's change: for a loss, a negative credit is a datum that lowered it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from devinterp_func import batches, keys, neurons, probes
from devinterp_func.batches import Data
from devinterp_func.ledger import Entries
from devinterp_func.probes import Probe
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config
from devinterp_func.vocabulary import Corpus, Vocab

FORMS = (
    "loss",
    "next:new => york",
    "bigram:new york",
    "norm:layers.2.linear2.weight:96",
    "effect:layers.0.linear2.weight:96 york",
    "head:2.1 bracket",
)
EXCERPTS = {
    **{"probe": pl.String, "effect": pl.String, "rank": pl.Int64, "datum": pl.Int64, "steps": pl.Int64},
    **{"position": pl.Int64, "token": pl.String, "target": pl.String, "credit": pl.Float64},
}
INPUTS = {
    **{"probe": pl.String, "input": pl.String, "credit": pl.Float64, "gross": pl.Float64},
    **{"share of gross": pl.Float64, "share of positions": pl.Float64, "positions": pl.Int64},
}
PATTERNS = ("previous", "same", "induction", "bracket")


def parse(text: str, corpus: Corpus, config: Config, recipe: Recipe, *, key: keys.Key | int, n: int = 20) -> Probe:
    """The probe that a text such as those in ``FORMS`` names; texts it needs are drawn from the validation split.

    Args:
        text: the form; heads count layer and head from 0 and attend to previous, same, induction or bracket.
        corpus, config, recipe: of the run.
        key: of the draw.
        n: how many texts; for a head, how many in which its pattern occurs.

    Raises:
        ValueError: the text has no such form, or a neuron, token, head or pattern is not there.
    """
    kind, _, rest = text.partition(":")
    data, vocab = batches.chunk(corpus.valid, recipe.context), corpus.vocab
    drawn = keys.permutation(len(data.tokens), key=key)
    words = rest.split()
    if kind == "loss" and not rest:
        buffer = torch.empty(config.vocab_size, len(drawn[:n]) * recipe.context)
        found = probes.loss(data.tokens[drawn[:n]], data.targets[drawn[:n]], config, buffer=buffer)
    elif kind == "next" and "=>" in words[1:-1] and words[-2] == "=>":
        found = probes.log_probability(vocab.encode(words[:-2]), vocab.index(words[-1]), config)
    elif kind == "bigram" and len(words) == 2:
        found = probes.bigram(vocab.index(words[1]), vocab.index(words[0]))
    elif kind == "norm" and len(words) == 1:
        found = probes.squared_norm(neurons.parse(words[0]))
    elif kind == "effect" and len(words) == 2:
        found = probes.effect(neurons.parse(words[0]), vocab.index(words[1]), data.tokens[drawn[:n]], config)
    elif kind == "head" and len(words) == 2 and words[1] in PATTERNS and words[0].replace(".", "", 1).isdigit():
        layer, _, head = words[0].partition(".")
        tokens = data.tokens[drawn]
        tokens = tokens[pattern(words[1], tokens, vocab).any((1, 2))][:n]
        found = probes.attention(tokens, pattern(words[1], tokens, vocab), int(layer), int(head or 0), config)
    else:
        raise ValueError(
            f"{text!r} names no probe; forms are {', '.join(FORMS)}, heads attend to {', '.join(PATTERNS)}"
        )
    return found._replace(name=text)


def pattern(name: str, tokens: Int[Tensor, "n C"], vocab: Vocab) -> probes.Pattern:
    """A pattern of attention by name.

    Raises:
        ValueError: there is no such pattern, or no brackets in the vocabulary.
    """
    match name:
        case "previous":
            return probes.previous_token(tokens)
        case "same":
            return probes.same_token(tokens)
        case "induction":
            return probes.induction(tokens)
        case "bracket":
            return probes.brackets(tokens, vocab.index("("), vocab.index(")"))
    raise ValueError(f"{name!r} is no pattern; there are {', '.join(PATTERNS)}")


# ---- what moved a probe


def once(entries: Entries, names: Sequence[str]) -> tuple[Entries, list[str]]:
    """The entries and names of the probes, less those that are there twice, as a command may name them."""
    kept = [names.index(name) for name in dict.fromkeys(names)]
    columns = {field: getattr(entries, field)[:, kept] for field in entries._fields if field not in ("step", "datum")}
    return entries._replace(**columns), [names[i] for i in kept]


def course_frame(entries: Entries, names: Sequence[str], every: int) -> pl.DataFrame:
    """Each probe over a walk, in windows of steps: its value, what raised and what lowered it, and what is missed.

    ``missed`` and ``change`` are Σ|residual| and Σ|Δf| over the window's steps.
    """
    each = entries.credit.sum(-1)
    columns = {"value": entries.before, "raised": each.clamp(min=0).sum(-1), "lowered": each.clamp(max=0).sum(-1)}
    columns |= {"residual": entries.residual(), "missed": entries.residual().abs(), "change": entries.change().abs()}
    rows = []
    for i, name in enumerate(names):
        parts = {column: x[:, i].split(every) for column, x in columns.items()}
        for w, window in enumerate(entries.step.split(every)):
            row: dict[str, object] = {"probe": name, "step": int(window[0]), "steps": len(window)}
            row["value"] = float(parts["value"][w][0])
            rows.append(row | {c: float(parts[c][w].sum()) for c in columns if c != "value"})
    return pl.DataFrame(rows)


def text_frame(entries: Entries, names: Sequence[str], data: Data, vocab: Vocab, most: int = 10) -> pl.DataFrame:
    """For each probe the data with the largest and the smallest credit, summed over the walk, and their texts.

    Args:
        entries: of ``ledger.read``.
        names: of the probes.
        data, vocab: the training data.
        most: rows of each sign.
    """
    rows = []
    for i, name in enumerate(names):
        for text in _most_credited(entries, i, len(data.tokens), most):
            total = text.credit.sum()
            place = int((text.credit * total.sign()).argmax())
            row: dict[str, object] = {"probe": name, "credit": float(total), "datum": text.datum, "steps": text.steps}
            row["of it there"] = float(text.credit[place] / total)
            rows.append(row | {"text": _marked(data, text.datum, place, vocab)})
    return pl.DataFrame(rows)


def excerpt_frame(entries: Entries, names: Sequence[str], data: Data, vocab: Vocab, most: int = 6) -> pl.DataFrame:
    """The most credited texts of each probe, a row for each position: its input token, its target, its own credit.

    A position's credit is that of predicting its target there, summed over the steps that the datum was in.

    Args:
        entries, names, data, vocab: as of ``text_frame``.
        most: texts of each sign.
    """
    rows = []
    for i, name in enumerate(names):
        for text in _most_credited(entries, i, len(data.tokens), most):
            words = (vocab.decode(x[text.datum]) for x in data)
            for position, (token, target, credit) in enumerate(zip(*words, text.credit.tolist(), strict=True)):
                rows.append((name, *text[:4], position, token, target, credit))
    return pl.DataFrame(rows, EXCERPTS, orient="row")


class _Text(NamedTuple):
    effect: str  # "raised" or "lowered"
    rank: int  # among the data of this effect, from 1
    datum: int
    steps: int  # how many it was in
    credit: Float[Tensor, "C"]


def _most_credited(entries: Entries, i: int, n: int, most: int) -> Iterator[_Text]:
    """Data that raised a probe, most first, then those that lowered it."""
    datum = entries.datum.flatten().long()
    credit = entries.credit[:, i].flatten(0, 1)  # (steps · n, C)
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, datum, credit.sum(1))
    order = total.argsort(descending=True, stable=True)
    for effect, ids, sign in (("raised", order, 1), ("lowered", order.flip(0), -1)):
        for rank, id in enumerate(ids[sign * total[ids] > 0][:most].tolist(), start=1):
            own = datum == id
            yield _Text(effect, rank, id, int(own.sum()), credit[own].sum(0))


def token_frame(entries: Entries, names: Sequence[str], data: Data, vocab: Vocab, most: int = 15) -> pl.DataFrame:
    """For each probe the target tokens at whose positions it gained and lost most, summed over the walk."""
    target, rows = data.targets[entries.datum.long()], []
    for i, name in enumerate(names):
        total = torch.zeros(len(vocab), dtype=torch.float64)
        total.index_add_(0, target.flatten(), entries.credit[:, i].flatten())
        count = torch.bincount(target.flatten(), minlength=len(vocab))
        order = total.argsort(descending=True, stable=True)
        ends = dict.fromkeys([*order[:most].tolist(), *order.flip(0)[:most].tolist()])
        for v in ends:
            row = {"probe": name, "target": vocab.tokens[v], "credit": float(total[v]), "positions": int(count[v])}
            rows.append(row)
    return pl.DataFrame(rows)


def input_frame(entries: Entries, names: Sequence[str], data: Data, vocab: Vocab, most: int = 15) -> pl.DataFrame:
    """For each probe the input tokens at whose positions it was moved most, either way, beside how often they occur.

    Gross is Σ |credit| over the positions; its share beside the share of positions says where a probe is made.
    """
    input, rows = data.tokens[entries.datum.long()].flatten(), []
    count = torch.bincount(input, minlength=len(vocab))
    for i, name in enumerate(names):
        credit = entries.credit[:, i].flatten()
        net, gross = (
            torch.zeros(len(vocab), dtype=torch.float64).index_add_(0, input, x) for x in (credit, credit.abs())
        )
        for v in gross.argsort(descending=True, stable=True)[: min(most, int((gross > 0).sum()))].tolist():
            row = {"probe": name, "input": vocab.tokens[v], "credit": float(net[v]), "gross": float(gross[v])}
            row["share of gross"] = float(gross[v] / gross.sum())
            rows.append(row | {"share of positions": float(count[v] / count.sum()), "positions": int(count[v])})
    return pl.DataFrame(rows, INPUTS, orient="row")


def _marked(data: Data, id: int, place: int, vocab: Vocab) -> str:
    words = vocab.decode(data.tokens[id])
    words[place] = f"({words[place]} → {vocab.tokens[int(data.targets[id, place])]})"
    return " ".join(words)


# ---- how far an amount can be trusted


def balance_frame(
    by_nodes: Mapping[int, Entries], names: Sequence[str], *, key: keys.Key | int, draws: int = 2000
) -> pl.DataFrame:
    """What each estimate of the probes' changes misses, as a share of Σ|Δf|, with a bootstrap interval over steps.

    Args:
        by_nodes: m -> the same steps' entries with m nodes, made with ``start``.
        names: of the probes.
        key: of the bootstrap.
        draws: of it.
    """
    some = next(iter(by_nodes.values()))
    change, start, end = some.change(), some.start.sum((-2, -1)), some.marginal.sum((-2, -1))
    estimates = {"gradient at the start": start, "gradient at the end": end, "trapezoid": (start + end) / 2}
    estimates |= {f"Gauss-Legendre, {m}": entries.credit.sum((-2, -1)) for m, entries in by_nodes.items()}
    rows = []
    for i, name in enumerate(names):
        whole = change[:, i].abs().numpy()
        for what, estimate in estimates.items():
            missed = (change - estimate)[:, i].abs().numpy()
            low, high = _interval((missed, whole), _ratio, key, draws)
            rows.append(
                {"probe": name, "estimate": what, "missed": float(_ratio(missed, whole)), "low": low, "high": high}
                | {"Σ|Δf|": float(whole.sum()), "steps": len(whole)}
            )
    return pl.DataFrame(rows)


def agreement_frame(
    scores: Mapping[str, Float[Tensor, "S n"]], truth: Float[Tensor, "S n"], *, key: keys.Key | int, draws: int = 2000
) -> pl.DataFrame:
    """Spearman's correlation of each score with the truth over the data of a step: the median over steps, its interval.

    Args:
        scores: name -> amounts, steps by data.
        truth: such as ``ledger.left_out`` of each step.
        key: of the bootstrap over steps.
        draws: of it.
    """
    rows = []
    for name, score in scores.items():
        each = [stats.spearmanr(x, y).statistic for x, y in zip(score.numpy(), truth.numpy(), strict=True)]
        found = np.array(each)[~np.isnan(each)]
        low, high = _interval((found,), np.median, key, draws)
        rows.append({"score": name, "median": float(np.median(found)), "low": low, "high": high, "steps": len(found)})
    return pl.DataFrame(rows)


def _ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
    return x.sum(axis) / y.sum(axis)


def _interval(
    samples: tuple[np.ndarray, ...], statistic: object, key: keys.Key | int, draws: int
) -> tuple[float, float]:
    if len(samples[0]) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        samples, statistic, paired=True, n_resamples=draws, method="percentile", rng=keys.generator(key)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
