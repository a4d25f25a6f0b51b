"""What a step of training is like: how its data agree, how few of them make it, and what the model can predict by then.

For a step Δ = Σ_j Δ_j of n data, in a unit or in several together (the inner products add up over units):

    share of a datum    ⟨Δ_j, Δ⟩ / ‖Δ‖²              adds up to 1 over the data
    size                ‖Δ‖
    alignment           cosine of Δ and the change of the step before
    coherence           ‖Δ‖² / Σ_j ‖Δ_j‖²            n where all data pull alike, 1 where at right angles
    effective data      (Σ_j ‖Δ_j‖²)² / Σ_j ‖Δ_j‖⁴   n where all are as long, 1 where one datum makes the step

The smaller the coherence, the larger a step's noise beside its signal (McCandlish et al. 2018, *An empirical model of
large-batch training*). Over a window of steps the data of all its steps are put together, a datum's part of the way
being share · size: what it adds to ‖Δ‖.

Losses are of three classes of positions in texts held out, told apart by the training text alone (``classes``).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import batches, bigram_corpus, keys, ledger, per_example, training, tree, walks
from devinterp_func.bigram_corpus import Counts, Pairs
from devinterp_func.per_example import Factor
from devinterp_func.rundir import Run
from devinterp_func.text import Corpus
from devinterp_func.training import Move
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

CLASSES = ("unigram", "bigram", "neither")
LEAST, LIFT = 5, 10  # a bigram occurs so often, and so many times as often as its target does elsewhere
TOP = 0.01
AT_ONCE = 20  # texts run through the model


class Texts(NamedTuple):
    """Texts to measure losses on, and the class of each of their positions."""

    datum: Int[Tensor, "m"]  # ids in the validation split
    tokens: Int[Tensor, "m C"]
    targets: Int[Tensor, "m C"]
    kind: Int[Tensor, "m C"]  # index in CLASSES
    common: int

    def share(self) -> Float[Tensor, "3"]:
        """Share of each class in the positions."""
        return self.kind.flatten().bincount(minlength=len(CLASSES)).double() / self.kind.numel()

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {x:.0%}" for name, x in zip(CLASSES, self.share().tolist(), strict=True))
        return f"{len(self.tokens)} texts: {shares}"


class Steps(NamedTuple):
    """Inner products of a step's changes in U units, or of S steps', stacked; losses are before the step."""

    step: Int[Tensor, "*S"]
    along: Float[Tensor, "*S U n"]  # ⟨Δ_j, Δ⟩
    square: Float[Tensor, "*S U n"]  # ‖Δ_j‖²
    turn: Float[Tensor, "*S U"]  # ⟨Δ, the last step's Δ⟩; NaN where there is none
    last: Float[Tensor, "*S U"]  # ‖the last step's Δ‖²; NaN where there is none
    loss: Float[Tensor, "*S 3"]  # mean of each class, nats; NaN where not measured

    def pooled(self, units: Sequence[int]) -> "Steps":
        """Some units as one vector."""
        along, square = (x[..., units, :].sum(-2, keepdim=True) for x in (self.along, self.square))
        turn, last = (x[..., units].sum(-1, keepdim=True) for x in (self.turn, self.last))
        return Steps(self.step, along, square, turn, last, self.loss)

    def size(self) -> Float[Tensor, "*S U"]:
        """‖Δ‖."""
        return self.along.sum(-1).clamp(min=0).sqrt()

    def share(self) -> Float[Tensor, "*S U n"]:
        """Each datum's share of the change."""
        return self.along / self.along.sum(-1, keepdim=True)

    def alignment(self) -> Float[Tensor, "*S U"]:
        """Cosine of the change and that of the step before."""
        return self.turn / (self.size() * self.last.sqrt())

    def coherence(self) -> Float[Tensor, "*S U"]:
        """How far the data pull alike."""
        return self.along.sum(-1) / self.square.sum(-1)

    def __repr__(self) -> str:
        many = f"step {int(self.step)}" if self.step.ndim == 0 else f"{len(self.step)} steps"
        return f"Steps: {many}, {self.along.shape[-2]} units, {self.along.shape[-1]} data a step"


def effective(square: Float[Tensor, "*S n"]) -> Float[Tensor, "*S"]:
    """Effective number of data with these ‖Δ_j‖².

    >>> effective(torch.tensor([[2.0, 2.0, 2.0], [5.0, 0.0, 0.0]]))
    tensor([3., 1.], dtype=torch.float64)
    """
    x = square.double()
    return x.sum(-1).square() / x.square().sum(-1)


def top_share(part: Float[Tensor, "m"], top: float = TOP) -> float:
    """What the data with the largest |part|, a share ``top`` of them and at least one, have of the parts' sum.

    >>> top_share(torch.tensor([3.0, 1.0, 1.0, 1.0]), top=0.25)
    0.5
    """
    m = max(1, round(top * len(part)))
    largest = part.abs().topk(m).indices
    return float(part[largest].double().sum() / part.double().sum())


@torch.no_grad()
def of_move(move: Move, last: Move | None, loss: Float[Tensor, "3"]) -> Steps:
    """Measures a step in each unit that it has factors of.

    Args:
        move: a step.
        last: the step before with the factors of the same units; None if there is none.
        loss: of ``class_losses`` before the step, or NaN.
    """
    rows = []
    for name, factor in move.factors.items():
        change, one = whole(factor), {name: factor}
        turn = square = change.new_tensor(torch.nan)
        if last is not None:
            before = whole(last.factors[name])
            turn, square = (change * before).sum(), before.square().sum()
        rows.append((ledger.amounts({name: change}, one).sum(-1), ledger.norms(one).square(), turn, square))
    along, square, turn, last_square = (torch.stack(column).cpu() for column in zip(*rows, strict=True))
    return Steps(torch.tensor(move.step), along, square, turn, last_square, loss.cpu())


def whole(factor: Factor) -> Tensor:
    """The change of a unit by all data together, Σ_j Δ_j, forming no datum's own."""
    joined = tree.map(lambda x: x.flatten(0, 1)[None] if isinstance(x, Tensor) else x, factor)
    return per_example.form(joined)[0]


# ---- what is there to be predicted


def texts(corpus: Corpus, context: int, m: int = 60, common: int = 100, *, key: keys.Key | int) -> Texts:
    """Texts drawn from the validation split, with the classes of their positions.

    Args:
        corpus: of the run.
        context: tokens a text.
        m: how many.
        common: of ``classes``.
        key: of the draw.
    """
    data = batches.chunk(corpus.valid, context)
    datum = keys.permutation(len(data.tokens), key=key)[:m]
    tokens, targets = batches.take(data, datum)
    found = bigram_corpus.counts(corpus.train, len(corpus.vocab))
    return Texts(datum, tokens, targets, classes(tokens, targets, found, common), common)


def classes(
    tokens: Int[Tensor, "n C"], targets: Int[Tensor, "n C"], found: Counts, common: int = 100
) -> Int[Tensor, "n C"]:
    """What of the training text's statistics tells each target: the class of every position, as an index in CLASSES.

    Unigram: the target is one of the ``common`` commonest tokens. Bigram: it is not, and it follows its input token at
    least LEAST times, LIFT times as often as it does any token. Neither: all others.

    Args:
        tokens, targets: of any texts.
        found: of the training text.
        common: how many tokens count as common.

    Raises:
        ValueError: common is not in 1 to V.
    """
    V = len(found.second)
    if not 1 <= common <= V:
        raise ValueError(f"common is {common}; it must be from 1 to V = {V}")
    commonest = found.second.argsort(descending=True, stable=True)[:common]
    input, output = tokens.flatten(), targets.flatten()
    n = bigram_corpus.look_up(found, Pairs(output, input))
    lifted = n * found.second.sum() >= LIFT * found.first[input] * found.second[output]
    kind = torch.where((n >= LEAST) & lifted, 1, 2).where(~torch.isin(output, commonest), 0)
    return kind.view(tokens.shape)


def class_losses(params: Params, some: Texts, config: Config) -> Float[Tensor, "3"]:
    """Mean loss over the positions of each class, nats; NaN for a class without positions."""
    parts = zip(some.tokens.split(AT_ONCE), some.targets.split(AT_ONCE), strict=True)
    loss = torch.cat([per_example.losses(params, *part, config) for part in parts]).double()
    return torch.stack([loss[some.kind == i].mean() for i in range(len(CLASSES))])


# ---- a run


def walk(
    run: Run, folder: Run, some: Texts, *, start: int = 0, stop: int | None = None, every: int = 10
) -> Iterator[tuple[int, Steps | None]]:
    """Makes the steps of a run again and writes their measures into a folder, as ``walks.walk`` does.

    Args:
        run, folder, start, stop: of ``walks.walk``; the units are those that the run captured.
        some: texts whose losses are measured.
        every: steps from one measurement of the losses to the next.

    Yields:
        Each step as it is made, and its measures; None in their place on the way from a snapshot to the next step.

    Raises:
        ValueError: start, stop or every out of range.
        RecordError: the folder is another walk's, is in use, or a file is damaged.
    """
    if every < 1:
        raise ValueError(f"every is {every}; it must be at least 1")
    config, recipe, _ = training.load(run)

    def look(move: Move, last: Move | None) -> Steps:
        due = move.step % every == 0
        loss = class_losses(move.before, some, config) if due else torch.full((len(CLASSES),), torch.nan).double()
        return of_move(move, last, loss)

    what = {"walk": "phases", "every": every, "texts": some.datum.tolist(), "common": some.common}
    yield from walks.walk(run, folder, what, recipe.units, look, start, stop)


def read(folder: Run) -> Steps:
    """All that a walk has found so far, its steps stacked; errors as of ``walks.read``."""
    return Steps(**walks.read(folder))
