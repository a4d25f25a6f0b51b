"""Lifetimes: what a datum did in its own step, and in all later steps through the optimizer's memory of its gradient.

An optimizer with a memory spreads a gradient over many steps. Of its own step a datum has only the present share; the
past is other data's (``optim``). Given the gains L of the steps, all is linear,

    w' − w = L(present · u + past · m) + decay · w        m' = keep · m + take · u        u = (c/n) Σ_j g_j + λ · w

so a probe's change over a span is split exactly over the data by walking it backwards with R, the derivative of what
is still to come by the memory after a step: 0 after the last. With G = ∫₀¹ ∇f(w + s Δw) ds along the step,

    lifetime[j] = ⟨present · LᵀG + take · R, c g_j / n⟩         R ← past · LᵀG + keep · R
    decay       = ⟨G, decay · w⟩ + ⟨present · LᵀG + take · R, λ · w⟩

and ⟨R, m⟩ before the first step is what came in with the memory, which data of earlier steps made. The books:

    Σ lifetime + Σ decay + entering + Σ missed = f(w_stop) − f(w_start)        missed = Δf − ⟨G, Δw⟩, the quadrature's

Like the present share it is a split of what was applied, not what would have been without the datum: then the gains
would be others. Without memory it is the ledger's credit.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import checks, optim, records, units
from devinterp_func.credit._carried import Lifetimes, SeenStep, carry, look_at, outcome, part_of
from devinterp_func.credit._ledger import check_nodes
from devinterp_func.credit.probes import Probe
from devinterp_func.per_example import form, take_data
from devinterp_func.records import Run, RunPath
from devinterp_func.training import Move
from devinterp_func.tree import Params


def lifetime(
    run: Run,
    folder: RunPath,
    probes: Sequence[Probe],
    *,
    start: int = 0,
    stop: int | None = None,
    m: int = 2,
    block: int = 8,
    kept: int = 64,
    scratch: RunPath | None = None,
    about: Mapping[str, Any] | None = None,
) -> Generator[int, None, None]:
    """Walks a span of a run backwards and seals the lifetimes of its data in a folder, as a whole.

    Of a block of steps it holds the gradients' factors of all parameters and, for each probe, as much as the weights:
    0.15 GB a step for one probe of the post's model. Follow few probes at once, or give a smaller block.

    Args:
        run: the run; only read.
        folder: new, or with this very span's lifetimes; not the run's own.
        probes, m: of ``split_change``.
        start, stop: the span; a lifetime ends with it. Spans can follow each other: what enters one is what the data
            of those before left in the memory.
        block, kept, scratch: of ``records.backwards``.
        about: what else tells this walk from others, as in ``ledger``.

    Yields:
        Each step when it is done, the last first. ``records.read_walk(folder, Lifetimes)`` then gives them all. A walk
        that is stopped before its end leaves nothing, and begins again.

    Raises:
        ValueError: start, stop, m, block or kept out of range, or no probes.
        RecordError: as ``records.walk``.
    """
    check_nodes(m, probes)
    start, stop = run.span(start, stop)
    checks.integer("block", block), checks.integer("kept", kept, 2)
    what = {**(about or {}), "walk": "lifetime", "m": m, "probes": [probe.name for probe in probes]}

    def find() -> Generator[int, None, Lifetimes]:
        def look(move: Move) -> SeenStep:
            return look_at(move, probes, m, first=move.step == start, last=move.step + 1 == stop)

        steps = records.backwards(
            run, look, units.EVERY, start=start, stop=stop, block=block, kept=kept, scratch=scratch
        )
        return (yield from carry(steps, len(probes)))

    yield from records.find_whole(run, folder, what, find, start=start, stop=stop)


@torch.no_grad()
def split_lifetimes(moves: Sequence[Move], probes: Sequence[Probe], m: int = 2) -> Lifetimes:
    """The lifetimes of the data of steps that are in memory; of a run, ``lifetime`` makes them.

    Args:
        moves: consecutive steps, with the factors of all parameters.
        probes: at least one.
        m: nodes of the quadrature along each step.

    Raises:
        ValueError: no steps, steps that do not follow each other, or as ``split_change``.
    """
    check_nodes(m, probes)
    if not moves or any(b.step != a.step + 1 for a, b in zip(moves, moves[1:], strict=False)):
        raise ValueError(f"the steps are {[move.step for move in moves]}; give at least one, each following the last")
    seen = [look_at(move, probes, m, first=move is moves[0], last=move is moves[-1]) for move in moves]
    return outcome(carry(reversed(seen), len(probes)))


@torch.no_grad()
def lifetime_deltas(moves: Iterable[Move], data: Sequence[int]) -> dict[str, Float[Tensor, "k ..."]]:
    """What k data of a step did to the weights by the end of some steps: their deltas, and all that memory carried.

    Each is formed, so it takes 2k times the captured weights' memory.

    Args:
        moves: consecutive steps, such as ``Run.moves`` gives; the first is that of the data.
        data: which places of its batch.

    Raises:
        ValueError: there are no steps, they do not follow each other, or there is no such place.
    """
    deltas, carried, step = Params(), Params(), None
    for move in moves:
        if step is None:
            _require_places(move, data)
            deltas, carried = _first(move, data)
        elif move.step != step + 1:
            raise ValueError(f"step {move.step} does not follow step {step}")
        else:
            for name, memory in carried.items():
                share = move.split.shares[name]
                deltas[name] += optim.apply_gain(share.gain, memory * share.past)
                memory.mul_(share.keep)
        step = move.step
    if step is None:
        raise ValueError("there are no steps; the first must be that of the data")
    return deltas


def _require_places(move: Move, data: Sequence[int]) -> None:
    n = len(move.datum)
    if not data or not all(0 <= j < n for j in data):
        raise ValueError(f"data are {list(data)}; give some of the places of step {move.step}'s batch, 0..{n - 1}")


def _first(move: Move, data: Sequence[int]) -> tuple[Params, Params]:
    """The deltas of some data in their own step, and what of them is remembered."""
    deltas, carried, part = Params(), Params(), part_of(move)
    for name, factor in move.gradients.items():
        share = move.split.shares[name]
        u = torch.cat([form(take_data(factor, slice(j, j + 1))) for j in data]) * part
        deltas[name] = optim.apply_gain(share.gain, u * share.present)
        carried[name] = u * share.take
    return deltas, carried
