"""Training by optimizers that remember: torch's steps, from any step on with the same bits, and only with its state."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_equal, masked
from torch import nn

from devinterp_func import batches, graph, keys, models, optim, training, tree, units
from devinterp_func.batches import Data
from devinterp_func.models import Config
from devinterp_func.optim import Schedule
from devinterp_func.training import Recipe

CONFIG = Config(11, d_model=4, n_heads=2, d_hidden=3, n_layers=1)
MODEL = models.transformer(CONFIG)
TOKENS = torch.from_numpy(keys.generator(0).integers(0, 11, (30, 6)))
DATA = Data(TOKENS[:, :-1], TOKENS[:, 1:])
S, N = 6, 4  # steps, data a step
EPS = 1e-4  # a gradient that is 0 but for rounding, as of a key's bias, must not make a step of its own
OPTIMIZERS = {
    "momentum": optim.sgd(momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": optim.sgd(momentum=0.8, nesterov=True),
    "adam": optim.adam(betas=(0.8, 0.9), eps=EPS, weight_decay=0.1),
    "adamw": optim.adamw(betas=(0.7, 0.95), eps=EPS, weight_decay=0.1, matrices_only=True),
    "groups": optim.grouped((("*.bias",), optim.sgd(momentum=0.5)), rest=optim.adamw(eps=EPS), scales=(3.0,)),
    "muon": optim.muon(but=("embedding.weight", "decoder.weight")),
}
SCHEDULE = Schedule("cosine", warmup=2, end=0.1)
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def recipe_of(name, **changed):
    lr = 0.05 if name in ("adam", "adamw", "groups", "muon") else 0.5
    recipe = Recipe(batch_size=N, lr=lr, schedule=SCHEDULE, optimizer=OPTIMIZERS[name], max_norm=0.7, n_steps=S)
    return replace(recipe, **changed)


def start_of(dtype):
    """Weights before step 0 and the graph, of a dtype."""
    params = tree.map(lambda w: w.to(dtype), MODEL.init(3))
    return graph.of(MODEL.loss, params, *batches.example(DATA, 0)), params


GRAPH, PARAMS = start_of(torch.float32)
GRAPH64, PARAMS64 = start_of(torch.float64)


def moves(name, params=PARAMS, traced=GRAPH, **options):
    return training.moves(traced, params, DATA, recipe_of(name), **options)


# ---- torch's steps


def torch_optimizers(name, own):
    """Torch's optimizers of the same settings, and what each one's learning rate is multiplied by."""
    everything, biases = list(own.values()), [w for n, w in own.items() if n.endswith(".bias")]
    matrices, vectors = [w for w in everything if w.ndim > 1], [w for w in everything if w.ndim < 2]
    rest = [w for n, w in own.items() if not n.endswith(".bias")]
    if name == "momentum":
        return [(torch.optim.SGD(everything, 1.0, momentum=0.9, dampening=0.2, weight_decay=0.01), 1)]
    if name == "nesterov":
        return [(torch.optim.SGD(everything, 1.0, momentum=0.8, nesterov=True), 1)]
    if name == "adam":
        return [(torch.optim.Adam(everything, betas=(0.8, 0.9), eps=EPS, weight_decay=0.1), 1)]
    if name == "adamw":
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return [(torch.optim.AdamW(groups, betas=(0.7, 0.95), eps=EPS), 1)]
    return [(torch.optim.SGD(biases, 1.0, momentum=0.5), 3), (torch.optim.AdamW(rest, eps=EPS, weight_decay=0.01), 1)]


def torch_training(name, removed):
    """Weights before and after each step of torch's optimizer on the mean loss of the data, some weighted with 0."""
    own, recipe = {n: nn.Parameter(w.clone()) for n, w in PARAMS64.items()}, recipe_of(name)
    optimizers, seen = torch_optimizers(name, own), []
    for step, epoch, _, ids in training.order(recipe, len(TOKENS), 0, S):
        masks = training.masks_of(GRAPH64, recipe, epoch, ids) or {}
        loss = torch.zeros((), dtype=torch.float64)
        for i, j in enumerate(ids.tolist()):
            kept = {site: mask[i] for site, mask in masks.items()}
            loss = loss + float(not removed[step, i]) * masked(MODEL.loss)(own, TOKENS[j, :-1], TOKENS[j, 1:], kept) / N
        for parameter in own.values():
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(own.values(), recipe.max_norm)
        for optimizer, scale in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * training.learning_rate(recipe, len(TOKENS), step)
            optimizer.step()
        seen.append({n: w.detach().clone() for n, w in own.items()})
    return seen


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])  # torch's works in bfloat16
@settings(max_examples=3)
@given(st.lists(st.sets(st.integers(0, N - 1)), min_size=S, max_size=S), st.integers(0, S - 1))
def test_training_is_torchs_on_the_loss_of_the_data_that_are_left(name, places, emptied):
    removed = torch.tensor([[i in out for i in range(N)] for out in places])
    removed[emptied] = True
    expected = torch_training(name, removed)
    for move, weights in zip(moves(name, PARAMS64, GRAPH64, removed=removed), expected, strict=True):
        assert len(move.datum) == int((~removed[move.step]).sum())
        for unit, weight in weights.items():
            torch.testing.assert_close(move.after[unit], weight, rtol=1e-9, atol=1e-11)


@each_optimizer
def test_every_step_obeys_the_law_with_and_without_some_data(name):
    removed = torch.zeros(S, N, dtype=torch.bool)
    removed[2, 1], removed[3] = True, True
    for move in moves(name, PARAMS64, GRAPH64, captured=units.EVERY, removed=removed):
        assert max(optim.missed(move).values()) < 1e-9, move
        assert move.state_before.steps == move.step == move.state.steps - 1


def test_what_is_remembered_goes_on_without_any_data():
    removed = torch.ones(S, N, dtype=torch.bool)
    removed[0] = False
    made = list(moves("nesterov", PARAMS64, GRAPH64, removed=removed))
    memory = made[0].state.buffers
    for move in made[1:]:
        for unit, weight in move.after.items():
            past = -float(move.split.lr) * 0.8 ** (move.step + 1) * memory[unit]["momentum_buffer"]
            torch.testing.assert_close(weight - move.before[unit], past, rtol=1e-6, atol=1e-15)
            assert torch.equal(move.split.past(unit), move.split.past(unit) + move.split.present(unit))


# ---- going on


@pytest.fixture(scope="module")
def whole():
    """Each optimizer's training."""
    return {name: list(moves(name)) for name in OPTIMIZERS}


@each_optimizer
@settings(max_examples=3)
@given(cut=st.integers(1, S - 1))
def test_steps_go_on_from_any_step_and_its_state_with_the_same_bits(whole, name, cut):
    before = whole[name][cut - 1]
    copied = before.state._replace(  # in other memory, and the order of a dict must not matter
        buffers={unit: tree.map(torch.clone, own) for unit, own in reversed(before.state.buffers.items())}
    )
    rest = list(moves(name, tree.map(torch.clone, before.after), state=copied, start=cut))
    assert [move.step for move in rest] == list(range(cut, S))
    for made, expected in zip(rest, whole[name][cut:], strict=True):
        assert_equal((made.before, made.after, made.losses), (expected.before, expected.after, expected.losses))
        for unit, own in expected.state.buffers.items():
            assert_equal(made.state.buffers[unit], own)


@each_optimizer
def test_the_given_state_is_left_alone_and_each_step_begins_with_the_last_ones(whole, name):
    state = whole[name][1].state
    copied = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)
    made = list(moves(name, whole[name][1].after, state=state, start=2))
    assert_equal(state, copied)
    assert made[0].state_before is state
    assert all(a.state is b.state_before for a, b in zip(made, made[1:], strict=False))


@each_optimizer
def test_without_its_state_only_the_first_step_is_made(whole, name):
    with pytest.raises(ValueError, match="step 2 goes on from what the optimizer remembers; give it as state="):
        next(moves(name, whole[name][1].after, start=2))
    zero = OPTIMIZERS[name].init(PARAMS)
    assert_equal(next(moves(name)).after, next(moves(name, state=zero)).after)


def test_what_remembers_nothing_needs_no_state():
    recipe = recipe_of("momentum", optimizer=optim.sgd())
    made = list(training.moves(GRAPH, PARAMS, DATA, recipe))
    middle = made[2].after
    for state in (None, made[2].state):
        rest = list(training.moves(GRAPH, middle, DATA, recipe, state=state, start=3))
        assert_equal([move.after for move in rest], [move.after for move in made[3:]])
        assert [move.state.steps for move in rest] == [4, 5, 6]


def bent(state, unit, change):
    """A state with one unit's buffers changed."""
    return state._replace(buffers=state.buffers | {unit: change(state.buffers[unit])})


W, D = "layers.0.linear1.weight", "decoder.bias"
WRONG = {
    "another step's": (
        lambda s: s._replace(steps=5),
        "the state is that before step 5; to begin with step 2 takes its",
    ),
    "the first step's": (lambda s: s._replace(steps=0), "the state is that before step 0; to begin with step 2"),
    "another shape": (
        lambda s: bent(s, D, lambda b: b | {"exp_avg": torch.zeros(3)}),
        r"exp_avg of 'decoder.bias' is torch.float32 of shape \(3,\) on cpu; .* is torch.* \(11,\) on cpu",
    ),
    "another dtype": (
        lambda s: bent(s, W, lambda b: tree.map(torch.Tensor.double, b)),
        "exp_avg of 'layers.0.linear1.weight' is torch.float64 of shape .* is torch.float32",
    ),
    "one buffer fewer": (
        lambda s: bent(s, W, lambda b: {"exp_avg": b["exp_avg"]}),
        "exp_avg_sq of 'layers.0.linear1.weight' is missing; of this optimizer",
    ),
    "one unit fewer": (
        lambda s: s._replace(buffers={n: b for n, b in s.buffers.items() if n != D}),
        "exp_avg of 'decoder.bias' is missing",
    ),
    "one unit more": (
        lambda s: s._replace(buffers=s.buffers | {"w": {"exp_avg": torch.zeros(3)}}),
        "exp_avg of 'w' is .* of these parameters it is nothing at all|and these parameters it is nothing at all",
    ),
    "another optimizer's": (
        lambda s: optim.sgd(momentum=0.9).init(PARAMS)._replace(steps=2),
        "exp_avg of '.*' is missing; of this optimizer and these parameters it is torch.float32",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_another_state_is_refused_before_the_first_step(whole, kind):
    change, said = WRONG[kind]
    move = whole["adamw"][1]
    with pytest.raises(ValueError, match=said):
        next(moves("adamw", move.after, state=change(move.state), start=2))


def test_an_optimizer_that_cannot_step_a_parameter_is_refused():
    recipe = recipe_of("muon", optimizer=optim.Optimizer((optim.Group(optim.Muon()),)))
    with pytest.raises(ValueError, match="Muon steps 2-D weights"):
        next(training.moves(GRAPH, PARAMS, DATA, recipe))
    recipe = recipe_of("adamw", optimizer=optim.grouped((("layers.7.*",), optim.sgd()), rest=optim.adamw()))
    with pytest.raises(ValueError, match="no parameter is called 'layers.7"):
        next(training.moves(GRAPH, PARAMS, DATA, recipe))
