"""Addition modulo p by a transformer of one layer: network, pairs, probes, and what is measured of each step.

The task and the form of the network are those of Eichin et al. 2025, *ExPLAIND: Unifying Model, Data, and Training
Attribution to Study Model Behavior* (arXiv 2505.20076): tokens a, +, b and =, no positions, heads whose queries, keys
and values are one map, no sum of attention and its input, an MLP beside it, a decoder without biases, all of it read at
"=". So (a, b) and (b, a) are one to it: where it is asked of pairs that it has not seen, the reversed pair was not seen
either. Here the embedding begins small, and the MLP's output passes no second ReLU: with one, p = 41 did not grok.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from devinterp_func import credit, keys, models, tree
from devinterp_func.credit.probes import Probe
from devinterp_func.models import Model
from devinterp_func.records import Last
from devinterp_func.training import Move
from devinterp_func.tree import Params

PARTS = ("present", "past", "decay")
GROUPS = ("embedding", "attention", "mlp", "decoder")  # how the names of units begin
PAIRS = ("same sum", "shares an operand", "other")  # what a training pair is to a held-out one
TEN = tuple((i + 0.5) / 10 for i in range(10))


class Rule(NamedTuple):
    """A quadrature along a step: places between its ends, and their weights."""

    name: str
    places: Sequence[float]
    weights: Sequence[float]


def gauss(m: int) -> Rule:
    """Gauss and Legendre's, as ledgers take it."""
    places, weights = np.polynomial.legendre.leggauss(m)
    return Rule(f"Gauss, {m}", ((places + 1) / 2).tolist(), (weights / 2).tolist())


RULES = (Rule("start", (0.0,), (1.0,)), *map(gauss, (1, 2, 3)), Rule("midpoints, 10", TEN, (0.1,) * 10))
EVERY = Rule("every", tuple(s for rule in RULES for s in rule.places), ())
MOST = 3  # nodes of the parts


class Adder(nn.Module):
    """Logits of the sum."""

    def __init__(self, p: int, width: int, heads: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(p + 2, width)
        nn.init.normal_(self.embedding.weight, std=scale)
        self.attention = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in ("read", "write")})
        self.mlp = nn.ModuleDict({"rise": nn.Linear(width, hidden), "fall": nn.Linear(hidden, width)})
        self.decoder = nn.Linear(width, p, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.attention["read"](self.embedding(tokens)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        weights = (x[:, :, -1:] @ x.transpose(-1, -2) / math.sqrt(x.shape[-1])).softmax(-1)
        x = self.attention["write"]((weights @ x).transpose(1, 2).flatten(2)[:, 0])
        return self.decoder(x + self.mlp["fall"](self.mlp["rise"](x).relu()))


def loss(model: Any, tokens: Tensor, total: Tensor) -> Tensor:
    """Cross entropy of one pair's sum."""
    return F.cross_entropy(model(tokens[None])[0], total)


class Task(NamedTuple):
    """Pairs for training, and held-out ones neither of which was trained on, nor reversed."""

    p: int
    train: tuple[Int[Tensor, "N 4"], Int[Tensor, "N"]]
    held_out: tuple[Int[Tensor, "H 4"], Int[Tensor, "H"]]


def task(p: int, share: float, held_out: int, key: keys.Key | int) -> Task:
    """A random share of all pairs, and at most so many of those that are unseen in both orders."""
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij"))
    tokens = torch.stack([a, torch.full_like(a, p), b, torch.full_like(a, p + 1)], 1)
    order = keys.permutation(p * p, key=keys.fold_in(key, "pairs"))
    seen, rest = order.split([n := round(share * p * p), p * p - n])
    known = torch.zeros(p, p, dtype=torch.bool)
    known[a[seen], b[seen]] = True
    unseen = rest[~known[b[rest], a[rest]]][:held_out]
    if not len(seen) or not len(unseen):
        raise ValueError(f"a share of {share} of {p * p} pairs leaves none to train on, or none that is unseen")
    return Task(p, (tokens[seen], (a + b)[seen] % p), (tokens[unseen], (a + b)[unseen] % p))


def model_of(adder: Adder) -> Model:
    """Its loss of one example."""
    return models.module(adder, loss)


# ---- probes


def margins(adder: nn.Module, tokens: Int[Tensor, "n 4"], total: Int[Tensor, "n"], name: str) -> Probe:
    """Mean log odds of a sum against all others."""

    def value(params: Params) -> Tensor:
        logits = functional_call(adder, params, (tokens,))
        others = logits.scatter(1, total[:, None], -torch.inf)
        return (logits.gather(1, total[:, None])[:, 0] - others.logsumexp(1)).mean()

    return credit.probes.of(name, value)


def wrong(total: Int[Tensor, "n"], p: int, key: keys.Key | int) -> Int[Tensor, "n"]:
    """Other sums, at random: a control."""
    by = 1 + (keys.uniform((len(total),), 0.0, 1.0, key=keys.fold_in(key, "wrong")) * (p - 1)).long().clamp(max=p - 2)
    return (total + by) % p


def kinds(pair: Int[Tensor, "4"], train: Int[Tensor, "N 4"], p: int) -> Bool[Tensor, "3 N"]:
    """What each training pair is to another pair: of ``PAIRS``."""
    (a, _, b, _), x, y = pair.tolist(), train[:, 0], train[:, 2]
    same = (x + y) % p == (a + b) % p
    shares = ((x == a) | (x == b) | (y == a) | (y == b)) & ~same
    return torch.stack([same, shares, ~same & ~shares])


# ---- what is measured of a step


class Measured(NamedTuple):
    """Of a step, or of S; float64 but for the logits."""

    step: Int[Tensor, "*S"]
    before: Float[Tensor, "*S P"]  # the probes
    after: Float[Tensor, "*S P"]
    parts: Float[Tensor, "*S P G 3"]  # of ``PARTS``, by ``GROUPS``: the mean gradient along the step times each
    change: Float[Tensor, "*S"]  # Σ|Δ| over the logits of the held-out pairs
    missed: Float[Tensor, "*S Q"]  # Σ|Δ − by a rule|
    summed: Float[Tensor, "*S Q H p"]  # logits of the first step's start, and by a rule all changes since; float32
    right: Float[Tensor, "*S 2"]  # accuracy after the step: of training, of held-out pairs

    def __repr__(self) -> str:
        return f"Measured of {self.step.numel()} steps"


@torch.no_grad()
def measure(adder: nn.Module, task: Task, probes: Sequence[Probe], move: Move, last: Last[Measured] | None) -> Measured:
    """What a step did to probes, by part and by group of units, and to the held-out pairs' logits, by each rule."""
    tokens, total = task.held_out
    logits_before, logits = (functional_call(adder, params, (tokens,)) for params in (move.before, move.after))
    along = slopes(adder, tokens, move, EVERY).split([len(rule.places) for rule in RULES])
    guesses = torch.stack([torch.tensordot(weights(rule, x), x, 1) for rule, x in zip(RULES, along, strict=True)])
    summed = guesses + (logits_before[None] if last is None else last.found.summed.to(guesses))
    parts = torch.stack([split(mean_gradient(move, probe), move) for probe in probes])
    before, after = (
        torch.stack([probe.value(params) for probe in probes]).double() for params in (move.before, move.after)
    )
    seen = functional_call(adder, move.after, (task.train[0],)).argmax(1) == task.train[1]
    return Measured(
        step=torch.tensor(move.step),
        before=before,
        after=after,
        parts=parts,
        change=(logits - logits_before).abs().sum().double(),
        missed=(logits - logits_before - guesses).abs().sum((1, 2)).double(),
        summed=summed.float(),
        right=torch.stack([seen.double().mean(), (logits.argmax(1) == total).double().mean()]),
    )


def estimate(adder: nn.Module, tokens: Int[Tensor, "H 4"], move: Move, rule: Rule) -> Float[Tensor, "H p"]:
    """∫₀¹ ∇f(w + s Δw) ds · Δw by a rule, of all logits f: by the law what present, past and decay did, added up."""
    found = slopes(adder, tokens, move, rule)
    return torch.tensordot(weights(rule, found), found, 1)


def weights(rule: Rule, like: Tensor) -> Float[Tensor, "k"]:
    """A rule's weights, of another tensor's type."""
    return torch.tensor(rule.weights, dtype=like.dtype)


def slopes(adder: nn.Module, tokens: Int[Tensor, "H 4"], move: Move, rule: Rule) -> Float[Tensor, "k H p"]:
    """∇f(w + s Δw) · Δw at a rule's places s, all at once."""
    change = tree.map(torch.sub, move.after, move.before)

    def slope(at: Params) -> Tensor:
        return jvp(lambda params: functional_call(adder, params, (tokens,)), (at,), (change,))[1]

    return vmap(slope)(between(move, rule.places))


def between(move: Move, places: Sequence[float]) -> Params:
    """The weights at places along a step, stacked."""

    def stacked(a: Tensor, b: Tensor) -> Tensor:
        along = torch.tensor(places, dtype=a.dtype).view(-1, *[1] * a.ndim)
        return torch.lerp(a.expand(len(places), *a.shape), b.expand(len(places), *b.shape), along)

    return tree.map(stacked, move.before, move.after)


def mean_gradient(move: Move, probe: Probe) -> Params:
    """Of a probe along a step, by ``MOST`` nodes, all at once."""
    rule = gauss(MOST)
    gradients = vmap(lambda params: probe.value_and_grad(params)[1])(between(move, rule.places))
    return {name: torch.tensordot(weights(rule, g), g, 1) for name, g in gradients.items()}


def split(gradient: Params, move: Move) -> Float[Tensor, "G 3"]:
    """A gradient times present, past and decay, by group of units."""
    found = torch.zeros(len(GROUPS), len(PARTS), dtype=torch.float64)
    for name, g in gradient.items():
        row = GROUPS.index(name.split(".")[0])
        for column, part in enumerate(PARTS):
            found[row, column] += (g * getattr(move.split, part)(name)).sum(dtype=torch.float64)
    return found
