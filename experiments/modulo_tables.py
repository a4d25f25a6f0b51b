"""The tables of modulo.py."""

from collections.abc import Sequence
from typing import Any

import modulo_task as tasks
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from modulo_task import Measured
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.credit import Lifetimes
from devinterp_func.show.schema import FLOAT, INT, NAME, Column, Table

SCRIPT = "modulo.py"
SEED = {"seed": Column(INT, "of weights and pairs")}
SPAN = {
    "phase": Column(NAME, "memorisation until 99 % of the training pairs are right, plateau until 10 % of the held-out "
                          "ones are, rise until 95 % are, and after"),
    "start": Column(INT, "its first step"),
    "stop": Column(INT, "the step after its last"),
}  # fmt: skip
PARTS = Table(
    "What made probes change in each phase: the phase's own data, the optimizer's memory, weight decay.",
    SCRIPT,
    {
        **SEED,
        **SPAN,
        "trained right": Column(FLOAT, "of the training pairs, at its end", format=".1%"),
        "held-out right": Column(FLOAT, "of the pairs unseen in both orders, at its end", format=".1%"),
        "probe": Column(NAME, "mean log odds of a sum against the others; a random wrong one is the control"),
        "units": Column(NAME, "of the network"),
        "change": Column(FLOAT, "of the probe; of some units, what their parts add up to", format=".3f"),
        "present": Column(FLOAT, "what each step's own gradients did", format=".3f"),
        "past": Column(FLOAT, "what earlier gradients did through the memory", format=".3f"),
        "decay": Column(FLOAT, "what weight decay did", format=".3f"),
        "missed": Column(FLOAT, "by three nodes; of some units not defined", format=".2g"),
    },
    ("seed", "phase", "probe", "units"),
)
RULES = Table(
    "What a sum over steps misses of the trained network's logits, by the quadrature along each step.",
    SCRIPT,
    {
        **SEED,
        "rule": Column(NAME, "places and weights along a step"),
        "gradients": Column(INT, "a step"),
        "missed": Column(FLOAT, "Σ|Δ − estimate| ÷ Σ|Δ| over steps and logits", format=".2g"),
        "low": Column(FLOAT, "of its 95 % bootstrap interval over steps", format=".2g"),
        "high": Column(FLOAT, "of its 95 % bootstrap interval over steps", format=".2g"),
        "agree": Column(FLOAT, "held-out pairs for which sum and network give the same answer", format=".3f"),
        "right": Column(FLOAT, "held-out pairs for which the sum's answer is right", format=".3f"),
        "divergence": Column(FLOAT, "KL of the sum's answers from the network's, nats a pair", format=".2g"),
        "farthest": Column(FLOAT, "a logit of the sum is from the network's", format=".2g"),
        "pairs": Column(INT, "held-out"),
    },
    ("seed", "rule"),
)
DATA = Table(
    "Which training pairs made the log odds of single held-out pairs, by the phase in which they did it.",
    SCRIPT,
    {
        **SEED,
        **SPAN,
        "pairs": Column(NAME, "what the training pairs are to the held-out one"),
        "of": Column(NAME, "its own pairs; or, the control, those of another held-out pair"),
        "number": Column(FLOAT, "of such pairs, in the mean", format=".0f"),
        "lifetime": Column(FLOAT, "their gradients' credit, in the step and through the memory, in all", format=".3f"),
        "low": Column(FLOAT, "of its 95 % bootstrap interval over held-out pairs", format=".3f"),
        "high": Column(FLOAT, "of its 95 % bootstrap interval over held-out pairs", format=".3f"),
        "each": Column(FLOAT, "lifetime of one of them", format=".2g"),
    },
    ("seed", "phase", "pairs", "of"),
)
COSTS = Table(
    "What a step costs.",
    SCRIPT,
    {
        "what": Column(NAME),
        "seconds": Column(FLOAT, "the median of some steps", format=".2g"),
        "of a plain step": Column(FLOAT, "of torch's own autograd and AdamW", format=".2f"),
    },
    ("what",),
)
TABLES = {"modulo_parts": PARTS, "modulo_rules": RULES, "modulo_data": DATA, "modulo_costs": COSTS}

Phase = tuple[str, int, int]
BOUNDS = (("memorisation", 0, 0.99), ("plateau", 1, 0.1), ("rise", 1, 0.95))  # name, column of ``right``, until


def phases(right: Float[Tensor, "S 2"]) -> list[Phase]:
    """Phases by accuracy after each step: name, first step, the step after the last.

    >>> phases(torch.tensor([[0.5, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.2], [1.0, 1.0], [1.0, 1.0]]))
    [('memorisation', 0, 2), ('plateau', 2, 4), ('rise', 4, 5), ('after', 5, 6)]
    """
    found, start = list[Phase](), 0
    for name, column, until in BOUNDS:
        reached = (right[start:, column] >= until).nonzero()
        stop = start + int(reached[0]) + 1 if len(reached) else len(right)
        if stop > start:
            found.append((name, start, stop))
        start = stop
    return [*found, ("after", start, len(right))] if start < len(right) else found


def parts_rows(seed: int, found: Measured, spans: Sequence[Phase], probes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of ``PARTS``; a last phase "all" is the whole training."""
    rows = []
    for phase, start, stop in [*spans, ("all", 0, len(found.step))]:
        right = {"trained right": found.right[stop - 1, 0], "held-out right": found.right[stop - 1, 1]}
        about = {"seed": seed, "phase": phase, "start": start, "stop": stop, **right}
        for i, probe in enumerate(probes):
            by_group = found.parts[start:stop, i].sum(0)
            change = float(found.after[stop - 1, i] - found.before[start, i])
            for units, parts in (("all", by_group.sum(0)), *zip(tasks.GROUPS, by_group, strict=True)):
                whole = units == "all"
                row = about | {"probe": probe, "units": units, "change": change if whole else float(parts.sum())}
                row |= {name: float(x) for name, x in zip(tasks.PARTS, parts, strict=True)}
                rows.append(row | {"missed": change - float(parts.sum()) if whole else None})
    return rows


def rule_rows(seed: int, found: Measured, logits: Float[Tensor, "H p"], total: Tensor) -> list[dict[str, Any]]:
    """Rows of ``RULES``.

    Args:
        seed: of the training.
        found: of its steps.
        logits: of the trained network, of the held-out pairs.
        total: their sums.
    """
    rows, truth = [], logits.double()
    for q, rule in enumerate(tasks.RULES):
        share = stats.bootstrap(_share, found.missed[:, q], found.change, key=keys.Key(seed, ("rules", rule.name)))
        own = found.summed[-1, q].double()
        divergence = F.kl_div(own.log_softmax(1), truth.log_softmax(1), reduction="batchmean", log_target=True)
        row: dict[str, Any] = {"seed": seed, "rule": rule.name, "gradients": len(rule.places)}
        row |= {"missed": share.value, "low": share.low, "high": share.high}
        row |= {"agree": float((own.argmax(1) == truth.argmax(1)).double().mean())}
        row |= {"right": float((own.argmax(1) == total).double().mean()), "divergence": float(divergence)}
        rows.append(row | {"farthest": float((own - truth).abs().max()), "pairs": len(total)})
    return rows


def _share(missed: Any, change: Any) -> Any:
    return missed.sum(-1) / change.sum(-1)


def data_rows(
    seed: int, found: Lifetimes, spans: Sequence[Phase], task: tasks.Task, singles: Tensor
) -> list[dict[str, Any]]:
    """Rows of ``DATA``: probe i is of the i-th single pair; the control takes the next pair's kinds.

    Args:
        seed: of the training.
        found: lifetimes of its steps.
        spans: its phases.
        task: the pairs.
        singles: the held-out pairs that are asked, tokens.
    """
    kinds = torch.stack([tasks.kinds(pair, task.train[0], task.p) for pair in singles])  # (P, 3, N)
    rows = []
    for phase, start, stop in [*spans, ("all", 0, len(found.step))]:
        span = slice(start, stop)
        amounts = torch.zeros(len(singles), len(task.train[1]), dtype=torch.float64)
        amounts.index_add_(1, found.datum[span].flatten(), found.lifetime[span].sum(-1).movedim(1, 0).flatten(1))
        for of, own in (("its own", kinds), ("another's", kinds.roll(1, 0))):
            for k, name in enumerate(tasks.PAIRS):
                sums, number = (amounts * own[:, k]).sum(1), float(own[:, k].double().sum(1).mean())
                mean = stats.bootstrap(_mean, sums, key=keys.Key(seed, ("data", phase, name)))
                row: dict[str, Any] = {"seed": seed, "phase": phase, "start": start, "stop": stop, "pairs": name}
                row |= {"of": of, "number": number, "lifetime": mean.value, "low": mean.low, "high": mean.high}
                rows.append(row | {"each": mean.value / number if number else float("nan")})
    return rows


def _mean(x: Any) -> Any:
    return np.mean(x, -1)
