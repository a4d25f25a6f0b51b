"""Credits and influences of a training in bfloat16: of its unrounded loss, at the weights that it came to."""

import pytest
import torch
from rounded_models import case, ids, post
from torch import Tensor

from devinterp_func import credit, graph, optim, per_example, tree
from devinterp_func.batches import Data
from devinterp_func.credit import Window, probes
from devinterp_func.training import Recipe, moves

OWN = case(post(dropout=0.2), (ids(23, 12, 6, seed=1), ids(23, 12, 6, seed=2)))
PLAIN = graph.of(OWN.model.loss, OWN.params, *(x[0] for x in OWN.batch))
DATA = Data(*OWN.batch)
RECIPE = Recipe(batch_size=4, context=6, n_steps=3, lr=0.05, optimizer=optim.sgd(momentum=0.9))
FEW = tuple(x[:3] for x in OWN.batch)


def window(own):
    return Window(own, OWN.params, RECIPE.optimizer.init(OWN.params), DATA, RECIPE, 0, 3)


def test_probes_are_of_the_unrounded_loss():
    rounded, plain = (probes.loss(g, FEW) for g in (OWN.graph, PLAIN))
    assert torch.equal(rounded.value(OWN.params), plain.value(OWN.params))
    (value, gradient), (other, expected) = (probe.value_and_grad(OWN.params) for probe in (rounded, plain))
    assert torch.equal(value, other) and all(torch.equal(gradient[name], g) for name, g in expected.items())
    prompt = OWN.batch[0][0, :4]
    both = [probes.log_probability(g, prompt, 3).value(OWN.params) for g in (OWN.graph, PLAIN)]
    assert torch.equal(*both)


def test_credits_of_a_step_add_up_to_the_change_but_for_the_law():
    loss = probes.loss(OWN.graph, FEW)
    for move in moves(OWN.graph, OWN.params, DATA, RECIPE, captured=("*",)):
        average = tree.scale(tree.add(*(loss.value_and_grad(w)[1] for w in (move.before, move.after))), 0.5)
        credited = float(credit_of(average, move))
        change = float(tree.dot(average, tree.sub(move.after, move.before)))
        sizes = sum(float(average[unit].norm() * (move.after[unit] - w).norm()) for unit, w in move.before.items())
        most = max(optim.missed_bound(move).values())
        assert 0 < abs(credited - change) <= most * sizes


def credit_of(gradient: dict[str, Tensor], move) -> Tensor:
    past = sum((gradient[unit] * move.split.past(unit)).sum() for unit in gradient)
    return per_example.amounts(gradient, move.factors).sum() + past


def test_influences_are_those_of_the_unrounded_losses_with_the_same_dropout():
    last = probes.loss(PLAIN, FEW)
    found = [credit.window_influences(window(g), [last]) for g in (OWN.graph, PLAIN)]
    rounded, plain = (x.influence for x in found)
    assert rounded.isfinite().all() and not torch.equal(rounded, plain)  # of other weights
    assert float((rounded - plain).norm() / plain.norm()) < 0.1


def test_retrainings_in_bfloat16_do_not_go_together():
    removed = torch.zeros(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="rounds to bfloat16, and differently where retrainings go together"):
        credit.together_values(window(OWN.graph), [probes.loss(PLAIN, FEW)], [3], removed)
