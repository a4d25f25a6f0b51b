"""Arrays as polars frames: every table of the post, each with its controls beside it."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from devinterp_func import keys, skill
from devinterp_func.activations import Extremes, Means, percentile
from devinterp_func.attribution import Rows
from devinterp_func.batches import Data
from devinterp_func.cards import Look
from devinterp_func.keyness import as_set
from devinterp_func.neurons import Neuron
from devinterp_func.text import Vocab
from devinterp_func.verdicts import Trial, Verdict

Shapes = Mapping[str, tuple[int, ...]]


def attribution_frame(rows: Rows, shapes: Shapes) -> pl.DataFrame:
    """The post's Table 1: a row for each outlier, by step and datum.

    Args:
        rows: of ``attribution.rows``.
        shapes: the captured units.
    """
    unit, flat = _places(rows.parameter, shapes)
    return pl.DataFrame(
        {
            "epoch": rows.epoch.numpy(),
            "batch": rows.batch.numpy(),
            "datum in batch": rows.row.numpy(),
            "unit": unit,
            "flat index": flat,
            "delta": rows.delta.numpy(),
            "|delta|": rows.delta.abs().numpy(),
            "datum": rows.datum.numpy(),
            "token position": rows.position.numpy(),
        }
    )


def unit_frame(counts: Int[Tensor, "E P"], shapes: Shapes) -> pl.DataFrame:
    """Outliers of each unit: in all, as a share, per weight, and by epoch.

    Args:
        counts: of ``attribution.counts``.
        shapes: the captured units.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    by_epoch = torch.stack([part.sum(1) for part in counts.split(sizes, dim=1)])
    total = by_epoch.sum(1)
    columns = {"unit": list(shapes), "weights": sizes, "outliers": total.numpy()}
    columns |= {"share": (total / total.sum().clamp(min=1)).numpy(), "outliers per weight": total / torch.tensor(sizes)}
    return pl.DataFrame(columns | {f"epoch {i + 1}": column.numpy() for i, column in enumerate(by_epoch.T)})


def parameter_frame(
    chosen: Int[Tensor, "m"], counts: Int[Tensor, "E P"], shapes: Shapes, notable: Sequence[Iterable[int]], vocab: Vocab
) -> pl.DataFrame:
    """Parameters, how often they were outliers, and their notable tokens.

    Args:
        chosen: parameter numbers.
        counts: of ``attribution.counts``.
        shapes: the captured units.
        notable: token ids of each.
        vocab: the vocabulary.
    """
    unit, flat = _places(chosen, shapes)
    outliers = counts[:, chosen].sum(0).numpy()
    return pl.DataFrame(
        {"unit": unit, "flat index": flat, "outliers": outliers, "notable": [words(ids, vocab) for ids in notable]}
    )


def neuron_frame(
    everyone: Sequence[Neuron],
    outliers: Int[Tensor, "G"],
    events: Int[Tensor, "N G"],
    frequent: Mapping[Neuron, Sequence[int]],
    notable: Mapping[str, Sequence[Iterable[int]]],
    chosen: Iterable[Neuron],
    vocab: Vocab,
) -> pl.DataFrame:
    """Neurons: how often their weights were outliers, for how many data, and their notable tokens.

    Args:
        everyone: the neurons.
        outliers, events: of the neurons' ``attribution.Tally``.
        frequent: neuron -> its parameters among the most frequent.
        notable: column -> token ids of each neuron.
        chosen: neurons looked at more closely.
        vocab: the vocabulary.
    """
    columns = {
        "neuron": [str(neuron) for neuron in everyone],
        "sublayer": [sublayer_name(neuron) for neuron in everyone],
        "outliers": outliers.numpy(),
        "data": (events > 0).sum(0).numpy(),
        "frequent parameters": [len(frequent.get(neuron, ())) for neuron in everyone],
    }
    columns |= {name: [words(ids, vocab) for ids in tokens] for name, tokens in notable.items()}
    near = set(chosen)
    return pl.DataFrame(columns | {"chosen": [neuron in near for neuron in everyone]})


def flips_frame(trials: Sequence[Trial], vocab: Vocab) -> pl.DataFrame:
    """The post's flip tables, one below the other, of tokens that flip at all; each proportion beside its controls."""
    parts = []
    for trial in trials:
        shown = (trial.attributed.flips > 0).nonzero().squeeze(1)
        order = shown[trial.attributed.flips[shown].argsort(descending=True, stable=True)]
        notable = torch.isin(order, trial.notable)
        parts.append(
            pl.DataFrame(
                {
                    "neuron": [str(trial.neuron)] * len(order),
                    "token": vocab.decode(order),
                    "proportion": trial.attributed.proportion()[order].numpy(),
                    "count": trial.attributed.count[order].numpy(),
                    "flips": trial.attributed.flips[order].numpy(),
                    "notable": notable.numpy(),
                    "random data: proportion": trial.random_data.proportion()[order].numpy(),
                    "random data: count": trial.random_data.count[order].numpy(),
                    "random neurons: proportion": trial.random_neurons.proportion()[order].numpy(),
                },
                schema_overrides={"neuron": pl.String, "token": pl.String},  # also where nothing flips
            )
        )
    return pl.concat(parts)


def look_frame(
    looks: Mapping[Neuron, Look], top: Mapping[Neuron, tuple[int, int]], data: Data, vocab: Vocab
) -> pl.DataFrame:
    """What the finished model says of neurons, and the datum attributed to each most often.

    Args:
        looks: of ``cards.look``.
        top: neuron -> id of a datum, and in how many steps it was attributed.
        data, vocab: the training data.
    """

    def said(ids: Int[Tensor, "m"] | None) -> str:
        return "" if ids is None else words(ids.tolist(), vocab)

    rows = []
    for neuron, look in looks.items():
        datum, times = top[neuron]
        row: dict[str, object] = {"neuron": str(neuron)}
        row |= {"logits raised": said(look.promoted), "logits lowered": said(look.suppressed)}
        row |= {"mean activation": look.mean_activation, "share active": look.share_active}
        row |= {"most active on": said(look.active_on), "datum": datum, "times": times}
        rows.append(row | {"text": said(data.tokens[datum])})
    return pl.DataFrame(rows)


def verdict_frame(trials: Sequence[Trial], verdict: Verdict, vocab: Vocab) -> pl.DataFrame:
    """The post's Appendix III with computed verdicts."""
    return pl.DataFrame(
        {
            "neuron": [str(trial.neuron) for trial in trials],
            "sublayer": [sublayer_name(trial.neuron) for trial in trials],
            "attributed": verdict.attributed.numpy(),
            "p": verdict.p.numpy(),
            "p, like frequency": verdict.p_frequency.numpy(),
            "notable and flipped": verdict.both.numpy(),
            "expected": verdict.expected.numpy(),
            "flipped": [int(trial.attributed.flipped().sum()) for trial in trials],
            "flipped, random data": [int(trial.random_data.flipped().sum()) for trial in trials],
            "flipped, random neurons": [int(trial.random_neurons.flipped().sum()) for trial in trials],
            "notable tokens": [words(trial.notable.tolist(), vocab) for trial in trials],
            "both": [
                words((t.attributed.flipped() & as_set(t.notable, len(vocab))).nonzero()[:, 0].tolist(), vocab)
                for t in trials
            ],
        }
    )


POST = {"3.1": (192.25, 0.035), "3.2": (35.10, 0.137), "1.2": (260.50, 0.023), "1.1": (179.00, 0.017)}
"""The post's average number of flipped tokens and share of them that is notable, by sublayer."""


def sublayer_frame(trials: Sequence[Trial], verdict: Verdict) -> pl.DataFrame:
    """The post's summary by sublayer: tokens that flip at all and the share of them that is notable, with controls."""
    rows = []
    for name in sorted({sublayer_name(trial.neuron) for trial in trials}):
        own = [i for i, trial in enumerate(trials) if sublayer_name(trial.neuron) == name]
        row: dict[str, object] = {"sublayer": name, "neurons": len(own)}
        row["attributed"] = int(verdict.attributed[own].sum())
        for what, column in CONDITIONS.items():
            sets = [(getattr(trials[i], column).flips > 0, trials[i].notable) for i in own]
            row[f"flipped tokens{what}"] = sum(float(flipped.sum()) for flipped, _ in sets) / len(own)
            shares = [float(flipped[ids].sum() / flipped.sum()) for flipped, ids in sets if bool(flipped.any())]
            row[f"notable share{what}"] = sum(shares) / len(shares) if shares else None
        row["post: flipped tokens"], row["post: notable share"] = POST.get(name, (None, None))
        rows.append(row)
    return pl.DataFrame(rows)


EXCERPTS = {"neuron": pl.String, "notable": pl.Boolean, "text": pl.String}
CONDITIONS = {"": "attributed", ", random data": "random_data", ", random neurons": "random_neurons"}


def skill_rows(
    unit: str, kind: str, score: str, precision: Float64[Tensor, "G"], groups: Sequence[str], *, key: keys.Key | int
) -> list[dict[str, object]]:
    """A score's mean average precision over all neurons of a unit, and over groups of them.

    Args:
        unit: the neurons' unit.
        kind, score: what the score comes from, and its name.
        precision: of ``skill.average_precision``.
        groups: the neurons' labels.
        key: of the bootstrap.
    """
    found = {"all": skill.mean_average_precision(precision, key=key), **skill.by_group(precision, groups, key=key)}
    sublayer = sublayer_name(Neuron(unit, 0))
    return [
        {"sublayer": sublayer, "neurons": group, "kind": kind, "score": score}
        | {"MAP": e.value, "low": e.low, "high": e.high, "neurons with flips": e.neurons}
        for group, e in found.items()
    ]


def activation_row(neuron: Neuron, word: str, means: Means, token: int) -> dict[str, object]:
    """Where a neuron's mean activation on a token stands, among neurons and among frequent tokens.

    Args:
        neuron: its axis is that of ``means``.
        word, token: the token and its id.
        means: of the neuron's unit.
    """
    mean, seen = means.mean[token], int(means.count[token])
    row: dict[str, object] = {"neuron": str(neuron), "token": word, "positions": seen}
    row["mean activation"] = float(mean[neuron.index]) if seen else None
    row["rank among neurons"] = int((mean > mean[neuron.index]).sum()) + 1 if seen else None
    row["of neurons"] = len(mean)
    frequent = bool(((means.count >= 20).sum() - int(seen >= 20)) > 0)
    row["percentile among tokens"] = float(percentile(means, token)[neuron.index]) if seen and frequent else None
    return row


def extremes_frame(neuron: Neuron, word: str, extremes: Extremes) -> pl.DataFrame:
    """The neurons of a unit least and most active on a token: the post's table of ranks."""
    n = len(extremes.most)
    return pl.DataFrame(
        {
            "unit": [neuron.unit] * n,
            "axis": [neuron.axis] * n,
            "token": [word] * n,
            "rank": range(1, n + 1),
            "most active": extremes.most.numpy(),
            "its mean": extremes.most_mean.numpy(),
            "least active": extremes.least.numpy(),
            "mean of it": extremes.least_mean.numpy(),
        }
    )


def words(ids: Iterable[int], vocab: Vocab) -> str:
    """Tokens in a row; the tokenizer leaves no blank in any, so that ``split`` gives them back."""
    return " ".join(vocab.decode([int(i) for i in ids]))


def sublayer_name(neuron: Neuron) -> str:
    """The post's name of an MLP unit, layers counted from 1; of other units the layer and the unit.

    >>> sublayer_name(Neuron("layers.2.linear2.weight", 96))
    '3.2'
    >>> sublayer_name(Neuron("layers.0.self_attn.in_proj_weight", 96))
    '1.in_proj'
    """
    match = re.fullmatch(r"layers\.(\d+)\.(?:self_attn\.)?(?:linear(\d)|(\w+?))[._]weight", neuron.unit)
    if match is None:
        return neuron.unit
    return f"{int(match[1]) + 1}.{match[2] or match[3]}"


def _places(parameter: Int[Tensor, "m"], shapes: Shapes) -> tuple[list[str], Int[Tensor, "m"]]:
    """Unit and row-major flat index of parameter numbers."""
    sizes = torch.tensor([math.prod(shape) for shape in shapes.values()])
    ends = sizes.cumsum(0)
    unit = torch.searchsorted(ends, parameter.long(), right=True)
    names = list(shapes)
    return [names[i] for i in unit.tolist()], (parameter - (ends - sizes)[unit])
