"""Scores to be judged: of every visit of a datum in some steps, how much it raised each probe at their end.

A score is a function of what is asked for and of a horizon: (P, h, n) for the first h steps, with the sign of the
probe's derivative by the visit's weight. One more score is one more line in ``SCORES``. What takes long is walked in
folders of its own, is sealed there, and goes on where it was interrupted.

    influence   the probe's derivative, at the horizon, by the weight of the datum's loss in that step
    fisher      the same with the empirical Fisher in place of the Hessian (for AdamW arXiv 2605.18814)
    lifetime    what the datum did in its own step and, by the horizon, through the optimizer's memory
    credit      what it did in its own step
    marginal    ... to first order at the step's end
    at_start    ... at its start: the gradients' product of TracIn, at every step (Pruthi et al. 2020)
    norm        how far it moved the weights in its own step, to lower a loss and to raise another probe
    random      uniform numbers

Scores of other libraries, which have to be asked for: they need pip install "devinterp_func[rivals]", know the weights
at the horizon and not the training, and are of probes that are losses of data (rivals.py tells more).

    ekfac       influence functions with a Kronecker-factored Fisher matrix: kronfluence
    trak        the same with projected gradients: dattri
    bm25        how alike the tokens are: bm25s
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import rival_networks as networks
import rivals
import stage
import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import credit, keys, records
from devinterp_func.credit import Curvature, DatumAmounts, Influences, Lifetimes, Window
from devinterp_func.credit.probes import Probe
from devinterp_func.records import Run
from devinterp_func.show import results, terminal


class Asked(NamedTuple):
    """What scores are asked of."""

    work: stage.Stage
    window: Window  # up to the farthest horizon
    probes: list[Probe]
    about: dict[str, Any]  # names and values that, beside the probes' names, say which probes these are
    held: dict[str, Any]  # block, kept and scratch of ``records.backwards``
    nodes: int  # of the quadrature of credits and lifetimes
    seed: int

    @property
    def names(self) -> list[str]:
        return [probe.name for probe in self.probes]

    @property
    def signs(self) -> Float[Tensor, "P 1 1"]:
        """−1 of a loss, 1 of any other probe: what it is to help."""
        return torch.tensor([-1.0 if name.startswith("loss") else 1.0 for name in self.names])[:, None, None].double()


Score = Callable[[Asked, int], Float[Tensor, "P h n"]]


def influences(asked: Asked, horizon: int, curvature: Curvature = "hessian") -> Influences:
    """Of the steps up to a horizon; a walk of ``influence.py`` to the same step is gone on with."""
    start, stop = asked.window.start, asked.window.start + horizon
    what = asked.about | {"probes": asked.names, "curvature": curvature, "stop": stop}
    folder = asked.work.walk_folder(f"influence-{_slug(asked)}-to-{stop}", what)
    span: dict[str, Any] = {"start": start, "stop": stop, "curvature": curvature}
    walk = credit.influence(asked.work.run, folder, asked.probes, about=asked.about, **span, **asked.held)
    _finish(walk, horizon, f"influences ({curvature}) at {horizon}")
    return Influences(*(field[-horizon:] for field in records.read_walk_back(folder, Influences)))


def lifetimes(asked: Asked, horizon: int) -> Float[Tensor, "P h n"]:
    start, stop = asked.window.start, asked.window.start + horizon
    span: dict[str, Any] = {"start": start, "stop": stop, "m": asked.nodes}
    folder = asked.work.walk_folder(
        f"lifetime-{_slug(asked)}-{start}-{stop}", asked.about | {"probes": asked.names} | span
    )
    walk = credit.lifetime(asked.work.run, folder, asked.probes, about=asked.about, **span, **asked.held)
    _finish(walk, horizon, f"lifetimes at {horizon}")
    return records.read_walk(folder, Lifetimes).lifetime.sum(-1).movedim(1, 0)


def amounts(asked: Asked, horizon: int) -> DatumAmounts:
    """What the steps' data did in their own steps; of one walk, whatever the horizon."""
    start, stop = asked.window.start, asked.window.stop
    what = asked.about | {"walk": "datum ledger", "probes": asked.names, "nodes": asked.nodes, "at start": True}
    folder = asked.work.walk_folder(f"amounts-{_slug(asked)}-from-{start}", what | {"start": start})
    walk = credit.datum_ledger(
        asked.work.run, folder, asked.probes, asked.about, start=start, stop=stop, m=asked.nodes, at_start=True
    )
    _finish(walk, stop - start, "crediting")
    return DatumAmounts(*(field[:horizon] for field in records.read_walk(folder, DatumAmounts)))


def drawn(asked: Asked, horizon: int) -> Float[Tensor, "P h n"]:
    shape = len(asked.probes), asked.window.stop - asked.window.start, asked.window.recipe.batch_size
    return keys.uniform(shape, -1.0, 1.0, key=keys.Key(asked.seed, ("judge", "random")))[:, :horizon].double()


SCORES: dict[str, Score] = {
    "influence": lambda asked, horizon: influences(asked, horizon).scores(),
    "fisher": lambda asked, horizon: influences(asked, horizon, "fisher").scores(),
    "lifetime": lifetimes,
    "credit": lambda asked, horizon: amounts(asked, horizon).credit.movedim(1, 0),
    "marginal": lambda asked, horizon: amounts(asked, horizon).marginal.movedim(1, 0),
    "at_start": lambda asked, horizon: amounts(asked, horizon).at_start.movedim(1, 0),
    "norm": lambda asked, horizon: amounts(asked, horizon).norm * asked.signs,
    "random": drawn,
}


def rival(name: rivals.Rival) -> Score:
    """A score of another library, of the weights at the horizon."""

    def found(asked: Asked, horizon: int) -> Float[Tensor, "P h n"]:
        window = asked.window._replace(stop=asked.window.start + horizon)
        network = networks.of_model(asked.work.run.model, credit.retrain(window).params)
        own, key = rivals.queries_of(asked.probes), keys.Key(asked.seed, ("judge", "rivals"))
        return rivals.rival_scores([name], network, tuple(window.data), credit.window_data(window), own, key=key)[name]

    return found


RIVALS: dict[str, Score] = {name: rival(name) for name in get_args(rivals.Rival)}
EVERY = SCORES | RIVALS  # by default are judged those that need no other library


def require(names: Sequence[str], run: Run, window: Window, followed: list[Probe]) -> None:
    """Refuses scores that could not be had of a run and of some probes.

    Raises:
        ValueError: there is no such score; or a probe is no loss, the model cannot be built as a module, or the data
            are no text, where a score of another library needs it.
        ImportError: another library is not installed.
    """
    if unknown := [name for name in names if name not in EVERY]:
        raise ValueError(f"{unknown[0]!r} is no score; there are {', '.join(EVERY)}")
    if not (others := [name for name in names if name in RIVALS]):
        return
    rivals.require(others)
    rivals.queries_of(followed)
    if "bm25" in others and not run.is_text:
        raise ValueError(f"{run}: its data are no text, and bm25 compares words; leave it out of --scores")
    networks.of_model(run.model, window.params)


def _slug(asked: Asked) -> str:
    return results.slug(" ".join(asked.names))[:80]


def _finish(walk: Iterator[Any], steps: int, doing: str) -> None:
    for _ in terminal.watched(walk, steps, doing):
        pass
