"""A walk over a run that follows the bigram decoder: every step's largest shifts, and the data that caused them.

``records.walk`` replays the steps, holding one copy of the weights and one update; the largest entries of ΔW_UE at
every step come out exactly, with no V×V matrix and no stored gradients.

A step is split over its data through the factors of the two tables, or of the one that is both, and over the past and
weight decay through the optimizer's shares: of every part only the rows of the chosen pairs are formed.

Source: steps 1-4 in Appendix IV of *Training Process Transparency through Gradient Interpretability: Early Experiments
on Toy Language Models* (Krzyzanowski and Hubinger 2023), which found it prohibitive to store.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, records, tree
from devinterp_func.bigram._decoder import (
    PairRows,
    Terms,
    check_pairs,
    entries,
    row_terms,
)
from devinterp_func.bigram._search import top_shifts
from devinterp_func.bigram._split import DatumShifts, datum_shifts, update_rows
from devinterp_func.bigram._units import capture_units, decoder_matrices, decoder_units
from devinterp_func.graph import Graph
from devinterp_func.records import Run, RunPath
from devinterp_func.training import Move
from devinterp_func.tree import Params

Tokens = Int[Tensor, "p"]


class Shifts(NamedTuple):
    """What a step did to the bigram decoder, or S steps, stacked: its k largest shifts, and q chosen entries."""

    step: Int[Tensor, "*S"]
    output: Int[Tensor, "*S k"]  # of the largest shifts, largest first
    input: Int[Tensor, "*S k"]
    embedding: Float[Tensor, "*S k"]  # W_U ΔW_Eᵀ
    unembedding: Float[Tensor, "*S k"]  # ΔW_U W_Eᵀ
    cross: Float[Tensor, "*S k"]  # ΔW_U ΔW_Eᵀ
    present: Float[Tensor, "*S k"]  # the first two terms of what the step's data did
    past: Float[Tensor, "*S k"]  # ... of what earlier data did, through the optimizer's memory
    decay: Float[Tensor, "*S k"]  # ... and of weight decay
    datum: Int[Tensor, "*S k"]  # id of the step's datum that moved the pair farthest in the direction of its shift
    amount: Float[Tensor, "*S k"]  # that datum's part of ``present``
    missed: Float[Tensor, "*S"]  # |shift - (present + past + decay + cross term)|, the largest of the k
    pairs: Int[Tensor, "*S"]  # multiplied in finding the k largest; see ``bigram.Certificate``
    evaluated: Int[Tensor, "*S"]  # of these, evaluated in float64; 0 where the largest were not searched for
    bound: Float[Tensor, "*S"]  # on |shift| of all others
    entry: Float[Tensor, "*S q"]  # W_UE at the chosen pairs, before the step
    change: Float[Tensor, "*S q"]  # ΔW_UE at the chosen pairs

    def value(self) -> Float[Tensor, "*S k"]:
        """The largest shifts: the sum of their three terms."""
        return Terms(self.embedding, self.unembedding, self.cross).total()

    def searched(self) -> "Shifts":
        """The steps, stacked, in which the largest shifts were searched for; in others they are zeros of tokens -1."""
        return tree.map(lambda x: x[self.evaluated > 0], self)

    def __repr__(self) -> str:
        k, q = self.output.shape[-1], self.entry.shape[-1]
        steps = f"step {self.step}" if self.step.ndim == 0 else f"{len(self.step)} steps"
        return f"Shifts of {steps}: the {k} largest up to {self.value().abs().max():.4g}, {q} chosen pairs"


# ---- one step


@torch.no_grad()
def step_shifts(graph: Graph, move: Move, k: int, output: Tokens, input: Tokens, search: bool = True) -> Shifts:
    """The shifts of one step, in main memory.

    Args:
        graph, move: of ``datum_split``.
        k: how many of the largest.
        output, input: the chosen pairs.
        search: for the largest, which takes the most time; otherwise they are zeros, of tokens -1.

    Raises:
        ValueError: k or a token out of range, weights that are not finite, or as ``datum_split``.
    """
    W_U, W_E = decoder_matrices(graph, move.before)
    shifts = Shifts(
        step=torch.tensor(move.step),
        **(_largest(graph, move, k) if search else _not_searched(k)),
        entry=entries(output, input, W_U, W_E),
        change=_change(graph, move, output, input),
    )
    return tree.map(lambda x: x.cpu(), shifts)


def _largest(graph: Graph, move: Move, k: int) -> dict[str, Tensor]:
    """The k largest shifts, and how they came about."""
    (W_U, W_E), (new_U, new_E) = (decoder_matrices(graph, params) for params in (move.before, move.after))
    top = top_shifts(W_U, W_E, new_U - W_U, new_E - W_E, k)
    split = datum_split(graph, move, top.output, top.input)
    parts = (split.embedding + split.unembedding).double()
    if len(parts):
        row = (parts * top.value.sign()).argmax(0)
        datum, amount = move.datum.to(row.device)[row].int(), parts.gather(0, row[None])[0]
    else:  # a step without data
        datum, amount = torch.full_like(top.output, -1).int(), torch.zeros_like(top.value)
    causes = {"present": parts.sum(0), "past": split.past.double(), "decay": split.decay.double()}
    return dict(
        output=top.output.int(),
        input=top.input.int(),
        **top.terms._asdict(),
        **causes,
        datum=datum,
        amount=amount,
        missed=(top.value - sum(causes.values()) - split.cross).abs().max(),
        pairs=torch.tensor(top.certificate.pairs),
        evaluated=torch.tensor(top.certificate.evaluated),
        bound=torch.tensor(top.certificate.bound, dtype=torch.float64),
    )


def _not_searched(k: int) -> dict[str, Tensor]:
    none, zeros, zero = torch.full((k,), -1, dtype=torch.int32), torch.zeros(k, dtype=torch.float64), torch.tensor(0)
    numbers = dict.fromkeys(("embedding", "unembedding", "cross", "present", "past", "decay", "amount"), zeros)
    ids = dict.fromkeys(("output", "input", "datum"), none)
    return ids | numbers | {"missed": zeros[0], "pairs": zero, "evaluated": zero, "bound": zeros[0]}


def datum_split(graph: Graph, move: Move, output: Tokens, input: Tokens) -> DatumShifts:
    """ΔW_UE of a step at chosen pairs, split over its data, those of earlier steps, and weight decay.

    Args:
        graph: the model.
        move: a step of it with the factors of ``capture_units``.
        output, input: the pairs.

    Raises:
        ValueError: the model has no bigram decoder, the step lacks the factors, or a token is not in the vocabulary.

    >>> from devinterp_func import batches, graph, models, training
    >>> model, recipe = models.transformer(models.Config(9, 4, 2, 4, 1)), training.Recipe(context=3, batch_size=2)
    >>> params, data = training.initial(model, recipe), batches.chunk(torch.arange(9), 3)
    >>> traced = graph.of(model.loss, params, data.tokens[0], data.targets[0])
    >>> move = next(training.moves(traced, params, data, recipe, captured=capture_units(traced)))
    >>> datum_split(traced, move, torch.tensor([2]), torch.tensor([1])).embedding.shape
    torch.Size([2, 1])
    """
    unembedding, embedding = decoder_units(graph)
    if not {unembedding, embedding} <= move.factors.keys():
        has = ", ".join(move.factors) or "no unit"
        raise ValueError(f"step {move.step} has factors of {has}; make it with captured={capture_units(graph)}")
    W_U, W_E = decoder_matrices(graph, move.before)
    check_pairs(output, input, len(W_U))
    both = ((unembedding, output), (embedding, input))
    dW_U, dW_E = (update_rows(move.factors[unit], move.split, unit, ids) for unit, ids in both)
    return datum_shifts(output, input, W_U, W_E, dW_U, dW_E)


def _change(graph: Graph, move: Move, output: Tokens, input: Tokens) -> Float[Tensor, "p"]:
    """ΔW_UE at chosen pairs; the updates are differences in float64, so that they add up over steps."""
    (w, e), (new_w, new_e) = (_rows(graph, params, output, input) for params in (move.before, move.after))
    return row_terms(w, e, new_w - w, new_e - e).total()


def _rows(graph: Graph, params: Params, output: Tokens, input: Tokens) -> tuple[PairRows, PairRows]:
    W_U, W_E = decoder_matrices(graph, params)
    return W_U[output].double(), W_E[input].double()


# ---- a run


def shifts(
    run: Run,
    folder: RunPath,
    *,
    start: int = 0,
    stop: int | None = None,
    k: int = 100,
    every: int = 1,
    output: Tokens,
    input: Tokens,
) -> Iterator[tuple[int, Shifts]]:
    """Replays the steps of a run and writes their shifts into a folder, as ``records.walk`` does.

    Args:
        run, folder, start, stop: of ``records.walk``.
        k: how many of the largest shifts of a step.
        every: they are searched for in steps that this divides; the chosen pairs are followed in all.
        output, input: the pairs whose entries are followed.

    Yields:
        Each new step, and its shifts; ``records.read_walk(folder, Shifts)`` gives them all.

    Raises:
        ValueError: start, stop, k, every or a token out of range, or the model has no bigram decoder.
        RecordError: the walk in the folder follows other pairs, or as ``records.walk``.
    """
    captured, V = capture_units(run.graph), run.graph.vocab_size
    if not 1 <= k <= V**2:
        raise ValueError(f"k is {k}; it must be from 1 to V² = {V**2}")
    checks.integer("every", every)
    check_pairs(output, input, V)

    def look(move: Move, _: records.Last[Shifts] | None) -> Shifts:
        return step_shifts(run.graph, move, k, output, input, search=move.step % every == 0)

    what = {
        "walk": "bigram shifts",
        "k": k,
        "every": every,
        "pairs": {"output": output.tolist(), "input": input.tolist()},
    }
    _require_same_pairs(folder, what)
    yield from records.walk(run, folder, what, captured, look, Shifts, start=start, stop=stop)


def telescope(shifts: Shifts, step: int, entry: Float[Tensor, "q"]) -> float:
    """How far the chosen entries before ``step`` are from those at the walk's start plus all shifts between.

    Args:
        shifts: of the walk.
        step: in the walk, or the one after its last.
        entry: W_UE at the chosen pairs in the weights before that step.

    Returns:
        The largest |W_UE(step) - W_UE(start) - Σ ΔW_UE| of the pairs.
    """
    first = int(shifts.step[0])
    if not first <= step <= first + len(shifts.step):
        raise ValueError(f"step {step} is not in the walk over steps {first} to {int(shifts.step[-1])}")
    return float((entry.cpu() - shifts.entry[0] - shifts.change[: step - first].sum(0)).abs().amax())


def _require_same_pairs(folder: RunPath, what: Mapping[str, Any]) -> None:
    """Says in a line what ``records.walk`` would say by listing hundreds of tokens."""
    if (Path(folder) / "manifest.json").exists() and records.manifest(folder).get("pairs", what["pairs"]) != what[
        "pairs"
    ]:
        raise records.RecordError(
            f"the walk in {folder} follows other pairs of tokens; follow the same ones, or walk into another folder"
        )
