"""Is a credit true? The same steps retrained without the data that were credited, and without others.

What is removed are occurrences: places in the batches of some steps from a snapshot on. What is left keeps its weight
in its step; clip coefficient and the optimizer's memory follow from what is left (``training.moves``).

    effect = f(w without) − f(w)        predicted: −Σ credits of what is removed, or −Σ marginals

The ledger's predictions are first guesses: they are sums over single steps on the way that training really went, while
a removal changes every later step too. Of an optimizer that remembers they lack, besides, what a datum did after its
step, through the memory.

The other way round, one more step on the credited data alone: the tail-patch of Chang et al. 2024, *Scalable Influence
and Fact Tracing for Large Language Model Pretraining*.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import batches, checks, per_example, records, training, tree, units
from devinterp_func.credit._ledger import split_change
from devinterp_func.credit._removals import helping_sign
from devinterp_func.credit.probes import Probe
from devinterp_func.graph import Graph
from devinterp_func.optim import State
from devinterp_func.records import Run, RunPath
from devinterp_func.training import Move, Recipe
from devinterp_func.tree import Params

Stance = Literal["for", "against"]
STANCES: dict[Stance, tuple[str, int]] = {"for": ("", 1), "against": (" against", -1)}  # word in a name, and sign


class Window(NamedTuple):
    """Some steps of a run, to be retrained from a snapshot on."""

    graph: Graph
    params: Params  # before step ``start``
    state: State  # what the optimizer remembers before it
    data: Any  # the training data
    recipe: Recipe
    start: int
    stop: int

    def __repr__(self) -> str:
        return f"Window of steps {self.start:,} to {self.stop:,}"


class Retrained(NamedTuple):
    """What some steps led to."""

    params: Params
    state: State  # what the optimizer remembers

    def __repr__(self) -> str:
        return f"Retrained: {len(self.params)} parameters, {self.state}"


class DatumAmounts(NamedTuple):
    """A ledger's entries by datum, and how far each datum moved the weights: of a step, or of S steps, stacked."""

    step: Int[Tensor, "*S"]
    datum: Int[Tensor, "*S n"]
    credit: Float[Tensor, "*S P n"]
    marginal: Float[Tensor, "*S P n"]
    at_start: Float[Tensor, "*S P n"]  # first order at the start of the step; NaN where it was not asked for
    norm: Float[Tensor, "*S n"]  # of the datum's delta of all parameters: its present share

    def predicted(
        self, removed: Bool[Tensor, "S n"], more: Mapping[str, Float[Tensor, "S P n"]] = MappingProxyType({})
    ) -> dict[str, Float[Tensor, "P"]]:
        """What a removal is predicted to do to each probe: minus the removed credits, marginals, or other amounts."""
        chosen = removed[:, None]
        kinds = {"credit": self.credit, "marginal": self.marginal, **more}
        return {kind: -(amounts * chosen).sum((0, 2), dtype=torch.float64) for kind, amounts in kinds.items()}

    def scores(
        self,
        names: Sequence[str],
        kinds: Sequence[str],
        more: Mapping[str, Float[Tensor, "S P n"]] = MappingProxyType({}),
        stances: Sequence[Stance] = ("for",),
    ) -> dict[str, Float[Tensor, "S n"]]:
        """How much each datum helped each probe, or worked against it, and how far it moved the weights, by name.

        To help is to lower a loss, and to raise any other probe.

        Args:
            names: of the probes; "loss" is a loss.
            kinds: "credit", "marginal" or "at_start", or of the other amounts.
            more: other amounts, such as influences, by kind.
            stances: what is high: of what helped, or of what worked against it, in whose name "against" stands.
        """
        amounts = {"credit": self.credit, "marginal": self.marginal, "at_start": self.at_start, **more}
        signs = [helping_sign(name) for name in names]
        scores = {
            f"{kind}{word}, {name}": amounts[kind][:, i] * sign * turn
            for kind in kinds
            for word, turn in (STANCES[stance] for stance in stances)
            for i, (name, sign) in enumerate(zip(names, signs, strict=True))
        }
        return scores | {"norm": self.norm}

    def __repr__(self) -> str:
        return f"DatumAmounts of {self.step.numel()} steps, {self.credit.shape[-2]} probes"


# ---- training again


def window(run: Run, start: int, steps: int) -> Window:
    """The steps of a run from a snapshot on.

    Raises:
        ValueError: the run has no snapshot before step ``start``, or is not recorded so far.
    """
    run.span(start, start + checks.integer("steps", steps))
    if start not in (known := run.snapshots):
        raise ValueError(f"{run} has no snapshot before step {start}; it has them before {', '.join(map(str, known))}")
    run.require_same_machine()
    return Window(run.graph, run.params(start), run.state(start), run.data, run.recipe, start, start + steps)


def retrain(window: Window, removed: Bool[Tensor, "S n"] | None = None) -> Retrained:
    """Weights and memory at the window's end, trained without some occurrences; order, masks and rates are the run's.

    A step that all data are removed from is made with the gradient 0: momentum and decay go on.

    Args:
        window: of ``window``, or made by hand.
        removed: of each step, which places of its batch are left out; None for none.

    Raises:
        ValueError: ``removed`` is not of these steps.
    """
    graph, params, state, data, recipe, start, stop = window
    for move in training.moves(graph, params, data, recipe, state=state, start=start, stop=stop, removed=removed):
        params, state = move.after, move.state
    return Retrained(params, state)


def tail_patch(end: Retrained, ids: Int[Tensor, "m"], window: Window) -> Params:
    """The weights after one more step on some data, clipped, at the rate of the window's last step, without dropout.

    The optimizer steps from what it remembers at the window's end: so the step holds, besides the data's present share,
    past and decay, which are the same for all data. What a choice of data did is to be read beside other choices.

    Args:
        end: of ``retrain``.
        ids: of the data.
        window: whose end it is.
    """
    params, recipe, n = end.params, window.recipe, batches.n_data(window.data)
    device = next(iter(params.values())).device
    taken = tree.map(lambda x: x.to(device), batches.take(tuple(window.data), ids))
    gradient = per_example.capture(window.graph, params, *taken).mean_grads
    lr = training.learning_rate(recipe, n, window.stop - 1)
    return recipe.optimizer.update(params, gradient, end.state, lr, recipe.max_norm)[0]


# ---- what each datum did


def datum_ledger(
    run: Run,
    folder: RunPath,
    probes: Sequence[Probe],
    what: Mapping[str, Any],
    *,
    start: int,
    stop: int,
    m: int = 3,
    at_start: bool = False,
) -> Iterator[tuple[int, DatumAmounts]]:
    """Replays the steps of a run and writes what each datum did to the probes into a folder, as ``records.walk`` does.

    Args:
        run, folder, start, stop: of ``records.walk``.
        probes: at least one, with names of their own.
        what: names and values that, beside the probes' names, say which probes these are.
        m, at_start: of ``credit.split_change``.

    Yields:
        Each new step, and its amounts; ``records.read_walk(folder, DatumAmounts)`` gives them all.

    Raises:
        ValueError: start or stop out of range, or as ``credit.split_change``.
        RecordError: as ``records.walk``.
    """
    names = [probe.name for probe in probes]
    about = {"walk": "datum ledger", "probes": names, "nodes": m, "at start": at_start, **what}

    def measured(move: Move, last: records.Last[DatumAmounts] | None) -> DatumAmounts:
        return datum_amounts(move, probes, m, at_start=at_start)

    yield from records.walk(run, folder, about, units.EVERY, measured, DatumAmounts, start=start, stop=stop)


def datum_amounts(move: Move, probes: Sequence[Probe], m: int, *, at_start: bool = False) -> DatumAmounts:
    """``credit.split_change`` by datum, and the norms of the deltas."""
    unasked = torch.full((len(probes),), torch.nan)  # the values before the step; each would take a gradient more
    entries = split_change(move, probes, m, at_start=at_start, before=unasked)
    credit, marginal, first = (x.sum(-1) for x in (entries.credit, entries.marginal, entries.at_start))
    norm = per_example.delta_norms(move.factors).double().cpu()
    return DatumAmounts(entries.step, entries.datum, credit, marginal, first, norm)


@torch.no_grad()
def probe_values(probes: Sequence[Probe], params: Params) -> dict[str, float]:
    """Each probe by name."""
    return {probe.name: float(probe.value(params)) for probe in probes}


def probe_changes(probes: Sequence[Probe], params: Params, reference: Mapping[str, float]) -> dict[str, float]:
    """Each probe by name, against a value of it."""
    return {name: value - reference[name] for name, value in probe_values(probes, params).items()}
