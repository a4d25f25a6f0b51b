"""Is a credit true? The same steps made again without the data that were credited, and without others.

What is removed are occurrences: places in the batches of some steps from a snapshot on. What is left keeps its weight
in its step; the clip coefficient follows from what is left (``training.moves``).

    effect = f(w without) − f(w)        foretold: −Σ credits of what is removed, or −Σ marginals

The ledger's forecasts are first guesses: they are sums over single steps on the way that training really went, while a
removal changes every later step too.

The other way round, one more step on the credited data alone: the tail-patch of Chang et al. 2024, *Scalable Influence
and Fact Tracing for Large Language Model Pretraining*.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from scipy import special, stats
from torch import Tensor

from devinterp_func import batches, keys, ledger, per_example, records, sgd, training, walks
from devinterp_func.batches import Data
from devinterp_func.probes import Probe
from devinterp_func.rundir import Run
from devinterp_func.training import Move, Recipe
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

FORECASTS = ("credit", "marginal")


class Window(NamedTuple):
    """Some steps of a run, to be made again from a snapshot on."""

    params: Params  # before step ``start``
    data: Data
    config: Config
    recipe: Recipe
    start: int
    stop: int

    def __repr__(self) -> str:
        return f"Window of steps {self.start:,} to {self.stop:,}"


class Amounts(NamedTuple):
    """A ledger's entries by datum, and how far each datum moved the weights: of a step, or of S steps, stacked."""

    step: Int[Tensor, "*S"]
    datum: Int[Tensor, "*S n"]
    credit: Float[Tensor, "*S P n"]
    marginal: Float[Tensor, "*S P n"]
    start: Float[Tensor, "*S P n"]  # first order at the start of the step; NaN where it was not asked for
    norm: Float[Tensor, "*S n"]  # of the datum's delta of all parameters

    def __repr__(self) -> str:
        return f"Amounts of {self.step.numel()} steps, {self.credit.shape[-2]} probes"


class Choice(NamedTuple):
    """What is removed, or stepped on once more: the highest by a score, or a random draw of as many."""

    score: str
    share: float  # of all occurrences, or of all different data
    draw: int = 0


# ---- training again


def window(run: Run, start: int, steps: int) -> Window:
    """The steps of a run from a snapshot on.

    Raises:
        ValueError: the run has no snapshot before step ``start``, or is not recorded so far.
    """
    walks.span(run, start, start + steps)
    if start not in (known := records.snapshots(run)):
        raise ValueError(f"{run} has no snapshot before step {start}; it has them before {', '.join(map(str, known))}")
    config, recipe, corpus = training.load(run)
    data = batches.chunk(corpus.train, recipe.context)
    return Window(records.read_params(run, start), data, config, recipe, start, start + steps)


def without(window: Window, removed: Bool[Tensor, "S n"] | None = None) -> Params:
    """The weights at the window's end, trained without some occurrences; order, masks and rates are the run's.

    Args:
        window: of ``window``, or made by hand.
        removed: of each step, which places of its batch are left out; None for none.

    Raises:
        ValueError: ``removed`` is not of these steps.
    """
    params, data, config, recipe, start, stop = window
    for move in training.moves(params, data, config, recipe, start=start, stop=stop, removed=removed):
        params = move.after
    return params


def patched(params: Params, ids: Int[Tensor, "m"], window: Window) -> Params:
    """The weights after one more step on some data, clipped, at the rate of the window's last step, without dropout."""
    epoch = (window.stop - 1) // batches.n_batches(len(window.data.tokens), window.recipe.batch_size)
    gradient = per_example.capture(params, *batches.take(window.data, ids), window.config).mean_grads
    lr = sgd.learning_rate(epoch, window.recipe.lr, window.recipe.gamma)
    return sgd.update(params, gradient, lr=lr, max_norm=window.recipe.max_norm)[0]


# ---- what is removed


def of_move(move: Move, probes: Sequence[Probe], m: int, *, start: bool = False) -> Amounts:
    """``ledger.of_move`` by datum, and the norms of the deltas; for ``walks.walk``."""
    unasked = torch.full((len(probes),), torch.nan)  # the values before the step; each would take a gradient more
    found = ledger.of_move(move, probes, m, start=start, before=unasked)
    credit, marginal, first = (x.sum(-1) for x in (found.credit, found.marginal, found.start))
    return Amounts(found.step, found.datum, credit, marginal, first, ledger.norms(move.factors).double().cpu())


def top(scores: Float[Tensor, "S n"], share: float) -> Bool[Tensor, "S n"]:
    """The highest share of all scores, at least one; of equal scores the earlier.

    Raises:
        ValueError: share is not between 0 and 1, or a score is NaN.

    >>> top(torch.tensor([[1.0, 3.0], [3.0, 2.0]]), 0.25)
    tensor([[False,  True],
            [False, False]])
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must be between 0 and 1")
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of the scores are NaN; they must be numbers")
    order = scores.flatten().argsort(descending=True, stable=True)
    found = torch.zeros(scores.numel(), dtype=torch.bool)
    found[order[: max(1, round(share * len(order)))]] = True
    return found.view(scores.shape)


def choices(
    scores: Mapping[str, Float[Tensor, "S n"]], shares: Sequence[float], draws: int, *, key: keys.Key | int
) -> dict[Choice, Bool[Tensor, "S n"]]:
    """For each share the top of each score, and random draws of the same size.

    Args:
        scores: by name, at least one; "random" is the name of the draws.
        shares: of all occurrences.
        draws: how many random ones.
        key: of them.

    Raises:
        ValueError: as of ``top``.
    """
    shape = tuple(next(iter(scores.values())).shape)
    chance = [keys.uniform(shape, 0.0, 1.0, key=keys.fold_in(key, draw)) for draw in range(draws)]
    found: dict[Choice, Tensor] = {}
    for share in shares:
        found |= {Choice(name, share): top(score, share) for name, score in scores.items()}
        found |= {Choice("random", share, draw): top(score, share) for draw, score in enumerate(chance)}
    return found


def missing(wanted: Iterable[Choice], outcomes: pl.DataFrame | None) -> list[Choice]:
    """The choices that a table of outcomes does not have yet; a share counts as it is written, to six digits."""
    columns = () if outcomes is None else outcomes.select(Choice._fields).iter_rows()
    done = {(score, f"{share:g}", draw) for score, share, draw in columns}
    return [choice for choice in wanted if (choice.score, f"{choice.share:g}", choice.draw) not in done]


def totals(scores: Float[Tensor, "S n"], datum: Int[Tensor, "S n"]) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """The different data, by id, and each one's sum over its occurrences.

    >>> totals(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[7, 5], [5, 9]]))
    (tensor([5, 7, 9]), tensor([5., 1., 4.]))
    """
    ids, place = datum.flatten().unique(return_inverse=True)
    return ids, scores.new_zeros(len(ids)).index_add_(0, place, scores.flatten())


def patches(
    scores: Mapping[str, Float[Tensor, "S n"]], datum: Int[Tensor, "S n"], draws: int, *, key: keys.Key | int
) -> dict[Choice, Int[Tensor, "m"]]:
    """Batches for ``patched``: the different data with the highest and the lowest sum of each score, and random ones.

    Args:
        scores: of the occurrences, by name.
        datum: their data; a batch has as many data as theirs.
        draws: how many random batches.
        key: of them.
    """
    ids = datum.unique()
    m, found = min(datum.shape[1], len(ids)), dict[Choice, Tensor]()
    for name, score in scores.items():
        order = totals(score, datum)[1].argsort(descending=True, stable=True)
        found[Choice(f"highest {name}", m / len(ids))] = ids[order[:m]]
        found[Choice(f"lowest {name}", m / len(ids))] = ids[order[-m:]]
    for draw in range(draws):
        drawn = keys.permutation(len(ids), key=keys.fold_in(key, draw))[:m]
        found[Choice("random", m / len(ids), draw)] = ids[drawn]
    return found


# ---- what came of it


def outcome_frame(choice: Choice, count: int, effects: Mapping[str, float]) -> pl.DataFrame:
    """What a choice did to each number that is measured: a row each.

    Args:
        choice: of ``choices``, or a batch of the tail-patch.
        count: of its occurrences.
        effects: by the name of what is measured, against the intact weights.
    """
    row = choice._asdict() | {"count": count}
    return pl.DataFrame([row | {"measured": name, "effect": effect} for name, effect in effects.items()])


def forecast_frame(removed: Bool[Tensor, "S n"], amounts: Amounts, names: Sequence[str]) -> pl.DataFrame:
    """What the ledger says that a removal does: minus the removed credits, or marginals, of each probe."""
    sums = {
        kind: (-getattr(amounts, kind) * removed[:, None]).sum((0, 2), dtype=torch.float64).tolist()
        for kind in FORECASTS
    }
    return pl.DataFrame({"measured": names} | {f"by {kind}": values for kind, values in sums.items()})


def effect_frame(outcomes: pl.DataFrame, change: Mapping[str, float] | None = None) -> pl.DataFrame:
    """Each score's effect beside that of chance: the mean of the random draws and its 95 % interval (Student's t).

    ``SDs`` is how many standard deviations of the draws an effect lies from their mean, with the exact 95 % interval
    for normal draws, the effect itself taken as given (noncentral t). Null where there are fewer than two draws.

    Args:
        outcomes: rows of ``outcome_frame``, with or without forecasts.
        change: what the intact steps did to each number that is measured, to divide by.
    """
    rows: list[dict[str, object]] = []
    for (measured, share), part in outcomes.group_by("measured", "share", maintain_order=True):
        chance = part.filter(pl.col("score") == "random")["effect"]
        for (score,), own in part.group_by("score", maintain_order=True):
            effect = float(own["effect"].to_torch().mean())
            row: dict[str, object] = {"measured": measured, "share": share, "score": score}
            row |= {"count": own["count"][0], "effect": effect}
            row |= {} if change is None else {"of the change": effect / change[str(measured)]}
            row |= {name: own[name].mean() for name in own.columns if name.startswith("by ")}
            rows.append(row | (_mean_interval(chance) if score == "random" else _distance(effect, chance)))
    order = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame(rows, infer_schema_length=None).select(*order)


def precision_at(scores: Float[Tensor, "P N"], truth: Bool[Tensor, "P N"], ks: Sequence[int]) -> Float[Tensor, "P K"]:
    """The share of true ones among the k highest scores of each row; of equal scores the earlier.

    Raises:
        ValueError: a k is not in 1..N.

    >>> precision_at(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, True, False]]), [1, 2])
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    if bad := [k for k in ks if not 1 <= k <= scores.shape[1]]:
        raise ValueError(f"k is {bad[0]}; it must be in 1..{scores.shape[1]}")
    hits = truth.gather(1, scores.argsort(dim=1, descending=True, stable=True)).double()
    return torch.stack([hits[:, :k].mean(1) for k in ks], dim=1)


def _mean_interval(chance: pl.Series) -> dict[str, float | None]:
    if len(chance) < 2:
        return {"low": None, "high": None}
    x = chance.to_numpy()
    low, high = stats.t.interval(0.95, len(x) - 1, x.mean(), x.std(ddof=1) / len(x) ** 0.5)
    return {"low": float(low), "high": float(high)}


def _distance(effect: float, chance: pl.Series) -> dict[str, float | None]:
    x, root = chance.to_numpy(), len(chance) ** 0.5
    if len(x) < 2 or not x.std():
        return {"SDs": None, "SDs low": None, "SDs high": None}
    distance = float((effect - x.mean()) / x.std(ddof=1))
    low, high = (float(special.nctdtrinc(len(x) - 1, p, root * distance)) / root for p in (0.975, 0.025))
    return {"SDs": distance, "SDs low": low, "SDs high": high}
