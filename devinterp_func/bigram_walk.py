"""A walk over a run that follows the bigram decoder: every step's largest shifts, and the data that caused them.

``walks`` makes the steps again, holding one copy of the weights and one update; the largest entries of ΔW_UE at every
step come out exactly, with no V×V matrix and no stored gradients.

A step is split over its data through the factors of two units: the embedding's rows, and the last layer norm, whose
output is what the unembedding reads. The unembedding's back-signals are formed at the chosen output tokens alone.

Source: steps 1-4 in Appendix IV of *Training Process Transparency through Gradient Interpretability: Early Experiments
on Toy Language Models* (Krzyzanowski and Hubinger 2023), which found it prohibitive to store.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import batches, bigram, records, sgd, training, tree, walks
from devinterp_func.bigram import DatumShifts
from devinterp_func.per_example import VOCABULARY_BLOCK, Gain, Lookup
from devinterp_func.rundir import Run
from devinterp_func.training import Move
from devinterp_func.tree import Params

W_U, W_E = "decoder.weight", "embedding.weight"
Tokens = Int[Tensor, "p"]


class Shifts(NamedTuple):
    """What a step did to the bigram decoder, or S steps, stacked: its k largest shifts, and q chosen entries."""

    step: Int[Tensor, "*S"]
    output: Int[Tensor, "*S k"]  # of the largest shifts, largest first
    input: Int[Tensor, "*S k"]
    embedding: Float[Tensor, "*S k"]  # W_U ΔW_Eᵀ
    unembedding: Float[Tensor, "*S k"]  # ΔW_U W_Eᵀ
    cross: Float[Tensor, "*S k"]  # ΔW_U ΔW_Eᵀ
    datum: Int[Tensor, "*S k"]  # id of the datum that moved the pair farthest in the direction of its shift
    amount: Float[Tensor, "*S k"]  # that datum's part, first-order terms
    missed: Float[Tensor, "*S"]  # |shift - (sum of the data's parts + cross term)|, the largest of the k
    pairs: Int[Tensor, "*S"]  # multiplied in finding the k largest; see ``bigram.Certificate``
    evaluated: Int[Tensor, "*S"]  # of these, evaluated in float64
    bound: Float[Tensor, "*S"]  # on |shift| of all others
    entry: Float[Tensor, "*S q"]  # W_UE at the chosen pairs, before the step
    change: Float[Tensor, "*S q"]  # ΔW_UE at the chosen pairs
    deviation: Float[Tensor, "*S"]  # of the weights after the step from the run's snapshot; NaN where there is none

    def value(self) -> Float[Tensor, "*S k"]:
        """The largest shifts: the sum of their three terms."""
        return bigram.Terms(self.embedding, self.unembedding, self.cross).total()

    def __repr__(self) -> str:
        k, q = self.output.shape[-1], self.entry.shape[-1]
        steps = f"step {self.step}" if self.step.ndim == 0 else f"{len(self.step)} steps"
        return f"Shifts of {steps}: the {k} largest up to {self.value().abs().max():.4g}, {q} chosen pairs"


# ---- one step


@torch.no_grad()
def of_move(move: Move, targets: Int[Tensor, "n C"], k: int, output: Tokens, input: Tokens) -> Shifts:
    """The shifts of one step, in main memory.

    Args:
        move: a step with the factors of ``units``.
        targets: next tokens of its data.
        k: how many of the largest.
        output, input: the chosen pairs.

    Raises:
        ValueError: k or a token out of range, or weights that are not finite.
    """
    before, after = move.before, move.after
    top = bigram.top_shifts(before[W_U], before[W_E], after[W_U] - before[W_U], after[W_E] - before[W_E], k)
    split = datum_split(move, targets, top.output, top.input)
    parts = (split.embedding + split.unembedding).double()
    row = (parts * top.value.sign()).argmax(0)
    value = top.value
    found = Shifts(
        step=torch.tensor(move.step),
        output=top.output.int(),
        input=top.input.int(),
        **top.terms._asdict(),
        datum=move.datum.to(row.device)[row].int(),
        amount=parts.gather(0, row[None])[0],
        missed=(value - parts.sum(0) - split.cross).abs().max(),
        pairs=torch.tensor(top.certificate.pairs),
        evaluated=torch.tensor(top.certificate.evaluated),
        bound=torch.tensor(top.certificate.bound, dtype=torch.float64),
        entry=bigram.entries(output, input, before[W_U], before[W_E]),
        change=_change(before, after, output, input),
        deviation=torch.tensor(math.nan, dtype=torch.float64),
    )
    return tree.map(lambda x: x.cpu(), found)


def datum_split(move: Move, targets: Int[Tensor, "n C"], output: Tokens, input: Tokens) -> DatumShifts:
    """ΔW_UE of a step at chosen pairs, split over its data, from the factors of ``units``; arguments as ``of_move``.

    >>> config, recipe = training.Config(9, 4, 2, 4, 1), training.Recipe(context=3, batch_size=2, units=units(1))
    >>> data = batches.chunk(torch.arange(9), 3)
    >>> move = next(training.moves(training.initial(config, recipe), data, config, recipe))
    >>> datum_split(move, data.targets[move.datum], torch.tensor([2]), torch.tensor([1])).embedding.shape
    torch.Size([2, 1])
    """
    embedding, last = units(sum(name.endswith("norm2.weight") for name in move.before))
    lookup, norm = move.factors.get(embedding), move.factors.get(last)
    if not (isinstance(lookup, Lookup) and isinstance(norm, Gain)):
        has = ", ".join(move.factors)
        raise ValueError(f"step {move.step} has factors of {has}; make it with Recipe(units={(embedding, last)})")
    hidden = norm.inputs * move.before[last] + move.before[last.replace("weight", "bias")]
    signal = _decoder_signal(move, hidden, targets, output) * sgd.share(move.info, len(targets))
    dW_U = bigram.unembedding_rows(signal, hidden)
    dW_E = bigram.embedding_rows(input, lookup.tokens, lookup.signals)
    return bigram.datum_shifts(output, input, move.before[W_U], move.before[W_E], dW_U, dW_E)


def units(n_layers: int) -> tuple[str, str]:
    """What a step must be captured with: the embedding, and the layer norm that the unembedding reads."""
    return W_E, f"layers.{n_layers - 1}.norm2.weight"


def _decoder_signal(
    move: Move, hidden: Float[Tensor, "n C d"], targets: Int[Tensor, "n C"], output: Tokens
) -> Float[Tensor, "n C p"]:
    """Gradient of each datum's loss by its logits at the output tokens: (softmax - onehot) / C."""
    weight, bias = move.before[W_U], move.before["decoder.bias"]
    logits = hidden @ weight[output].T + bias[output]
    softmax = (logits - _log_normaliser(weight, bias, hidden)[..., None]).exp()
    return (softmax - (targets[..., None] == output).to(softmax.dtype)) / targets.shape[1]


def _log_normaliser(
    weight: Float[Tensor, "V d"], bias: Float[Tensor, "V"], hidden: Float[Tensor, "n C d"]
) -> Float[Tensor, "n C"]:
    """log Σ exp(logit), in blocks of the vocabulary that stay in cache."""
    h = hidden.flatten(0, 1).T.contiguous()
    blocks = zip(weight.split(VOCABULARY_BLOCK), bias.split(VOCABULARY_BLOCK), strict=True)
    parts = torch.stack([torch.logsumexp(torch.addmm(b[:, None], w, h), 0) for w, b in blocks])
    return torch.logsumexp(parts, 0).view(hidden.shape[:2])


def _change(before: Params, after: Params, output: Tokens, input: Tokens) -> Float[Tensor, "p"]:
    """ΔW_UE at chosen pairs; the updates are differences in float64, so that they add up over steps."""
    w, e = before[W_U][output].double(), before[W_E][input].double()
    dw, de = after[W_U][output].double() - w, after[W_E][input].double() - e
    return bigram.row_terms(w, e, dw, de).total()


# ---- a run


def walk(
    run: Run, folder: Run, *, start: int = 0, stop: int | None = None, k: int = 100, output: Tokens, input: Tokens
) -> Iterator[tuple[int, Shifts | None]]:
    """Makes the steps of a run again and writes their shifts into a folder, as ``walks.walk`` does.

    Args:
        run, folder, start, stop: of ``walks.walk``.
        k: how many of the largest shifts of each step.
        output, input: the pairs whose entries are followed.

    Yields:
        Each step as it is made, and its shifts; None in their place on the way from a snapshot to the walk's next step.

    Raises:
        ValueError: start, stop, k or a token out of range.
        RecordError: the folder is another walk's, is in use, or a file is damaged.
    """
    config, recipe, corpus = training.load(run)
    if not 1 <= k <= config.vocab_size**2:
        raise ValueError(f"k is {k}; it must be from 1 to V² = {config.vocab_size**2}")
    bigram.check_pairs(output, input, config.vocab_size)
    targets = batches.chunk(corpus.train, recipe.context).targets
    pairs = {"output": output.tolist(), "input": input.tolist()}

    def look(move: Move, _: Move | None) -> Shifts:
        found = of_move(move, targets[move.datum], k, output, input)
        return found._replace(deviation=_deviation(run, move))

    what = {"walk": "bigram shifts", "k": k, "pairs": pairs}
    yield from walks.walk(run, folder, what, units(config.n_layers), look, start, stop)


def read(folder: Run) -> Shifts:
    """All that a walk has found so far, its steps stacked; errors as of ``walks.read``."""
    return Shifts(**walks.read(folder))


def telescope(shifts: Shifts, step: int, entry: Float[Tensor, "q"]) -> float:
    """How far the chosen entries before ``step`` are from those at the walk's start plus all shifts between.

    Args:
        shifts: of ``read``.
        step: in the walk, or the one after its last.
        entry: W_UE at the chosen pairs in the weights before that step.

    Returns:
        The largest |W_UE(step) - W_UE(start) - Σ ΔW_UE| of the pairs.
    """
    first = int(shifts.step[0])
    if not first <= step <= first + len(shifts.step):
        raise ValueError(f"step {step} is not in the walk over steps {first} to {int(shifts.step[-1])}")
    return float((entry - shifts.entry[0] - shifts.change[: step - first].sum(0)).abs().amax())


def _deviation(run: Run, move: Move) -> Float[Tensor, ""]:
    step = move.step + 1
    if step not in records.snapshots(run):
        return torch.tensor(math.nan, dtype=torch.float64)
    there = records.read_params(run, step)
    return torch.stack([(there[name] - move.after[name]).abs().max() for name in (W_U, W_E)]).max().double()
