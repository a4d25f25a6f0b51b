"""Laws of going back over a step: the fast way is ``vjp`` of the step, and both are central differences of trainings.

Of whole trainings in float64: the derivative of a probe at the end by the weight of each datum in each step, of every
rule, clipped and not, with dropout, of any model.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import OPTIMIZERS, made_of, settings_of_groups
from oracles import assert_equal, relative_error
from torch import Tensor, nn

from devinterp_func import batches, credit, graph, keys, models, optim, per_example, training, tree, units
from devinterp_func.credit import Window, probes
from devinterp_func.models import Config
from devinterp_func.optim import Covector, Optimizer
from devinterp_func.training import Recipe
from devinterp_func.tree import Params

WORDS, CONTEXT, N = 9, 4, 14  # of the texts


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(keys.generator(seed).standard_normal(shape))


def ids(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(keys.generator(seed).integers(0, high, shape))


class Made(NamedTuple):
    """A model's graph, its weights in float64, and its training data."""

    graph: Any
    params: Params
    data: tuple[Any, ...]


def transformer() -> Made:
    """The post's, with dropout."""
    model = models.transformer(Config(WORDS, d_model=6, n_heads=2, d_hidden=5, n_layers=1, dropout=0.3))
    return made(model.loss, model.init(0), ids(WORDS, N, CONTEXT), ids(WORDS, N, CONTEXT, seed=1))


def tied() -> Made:
    """A language model whose table is its head, its losses at some positions ignored, smooth throughout."""

    def loss(p: Params, x: Tensor, y: Tensor) -> Tensor:
        h = F.embedding(x, p["table"]) + p["positions"]
        h = h + F.linear(F.dropout(F.linear(h, p["in"]).tanh(), 0.2), p["out"])
        return F.cross_entropy(F.layer_norm(h, (6,), p["gain"]) @ p["table"].T, y, ignore_index=3)

    shapes = {"table": (WORDS, 6), "positions": (CONTEXT, 6), "in": (8, 6), "out": (6, 8), "gain": (6,)}
    params = {name: drawn(*shape, seed=i) * 0.5 for i, (name, shape) in enumerate(shapes.items())}
    return made(loss, params, ids(WORDS, N, CONTEXT), ids(WORDS, N, CONTEXT, seed=1))


def pictures() -> Made:
    """A CNN of group norm and GELU."""
    layers = nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.GELU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(27, 4)

    def classified(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x[None])[0], y)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.module(nn.Sequential(*layers), classified)
    return made(model.loss, model.init(0), drawn(N, 1, 4, 4), ids(4, N))


def regression() -> Made:
    """An MLP and a squared loss; no head."""

    def loss(p: Params, x: Tensor, y: Tensor) -> Tensor:
        return (F.linear(F.linear(x, p["in"], p["bias"]).tanh(), p["out"])[0] * p["scale"] - y).square()

    shapes = {"in": (5, 3), "bias": (5,), "out": (1, 5), "scale": ()}
    params = {name: drawn(*shape, seed=i + 5) for i, (name, shape) in enumerate(shapes.items())}
    return made(loss, params, drawn(N, 3), drawn(N, seed=1))


def made(loss: Any, params: Params, *data: Tensor) -> Made:
    params = {name: w.detach().double() for name, w in params.items()}
    return Made(graph.of(loss, params, *batches.example(data, 0)), params, data)


MODELS = {"transformer": transformer, "tied": tied, "pictures": pictures, "regression": regression}
KNOWN: dict[str, Made] = {}


def model_of(name: str) -> Made:
    """Each is traced once."""
    return KNOWN.setdefault(name, MODELS[name]()) if name not in KNOWN else KNOWN[name]


def recipe_of(optimizer: Optimizer, lr: float = 0.02, max_norm: float = math.inf, steps: int = 6) -> Recipe:
    """Three data a step, so several epochs; the learning rate rises and falls."""
    schedule = optim.Schedule("cosine", warmup=2, end=0.1)
    return Recipe(
        context=CONTEXT, batch_size=3, epochs=5, n_steps=steps, lr=lr, max_norm=max_norm, optimizer=optimizer,
        schedule=schedule,
    )  # fmt: skip


def window_of(name: str, recipe: Recipe) -> Window:
    own = model_of(name)
    assert recipe.n_steps is not None
    return Window(own.graph, own.params, recipe.optimizer.init(own.params), own.data, recipe, 0, recipe.n_steps)


def probes_of(name: str) -> list[probes.Probe]:
    """The loss of other data, and a function of the weights alone."""
    own = model_of(name)
    others = tree.map(lambda x: x.flip(0)[:4], own.data)
    weights = {unit: drawn(*w.shape, seed=40 + i) for i, (unit, w) in enumerate(own.params.items())}

    def loss(params: Params) -> Tensor:
        output = own.graph.trace.output.name
        return graph.run(own.graph, params, others, [output])[output].mean()

    def bent(params: Params) -> Tensor:
        return torch.stack([(params[unit] * w).sin().sum() for unit, w in weights.items()]).sum()

    return [probes.of("loss", loss), probes.of("bent", bent)]


def trained(window: Window, weights: Tensor | None = None) -> Params:
    """The weights after the last step, each place of each batch counted so much."""
    own = window.graph, window.params, window.data, window.recipe
    *_, last = training.moves(*own, state=window.state, start=window.start, stop=window.stop, weights=weights)
    return last.after


def along_all(window: Window, followed: list[probes.Probe], direction: Tensor, h: float) -> Tensor:
    """The probes' derivatives along a direction of all weights by whole trainings either side, of fourth order in h."""
    ends = [trained(window, 1 + k * h * direction) for k in (1, -1, 2, -2)]
    a, b, c, d = (torch.stack([probe.value(end) for probe in followed]) for end in ends)
    return (8 * (a - b) - (c - d)) / (12 * h)


# ---- one step


def points(window: Window) -> list[Any]:
    own = window.graph, window.params, window.data, window.recipe
    return [credit.point_of(move) for move in training.moves(*own, state=window.state, stop=window.stop)]


def covector_at(point: Any, seed: int) -> Covector:
    """Derivatives from a normal distribution by weights and memory."""
    weights = {unit: drawn(*w.shape, seed=seed + i) for i, (unit, w) in enumerate(point.params.items())}
    memory = {
        unit: {name: drawn(*x.shape, seed=seed + 50 + i) for name, x in own.items()}
        for i, (unit, own) in enumerate(point.state.buffers.items())
    }
    return Covector(weights, memory)


def assert_same_pulled(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    pairs = zip(tree.leaves(tuple(found.covector)), tree.leaves(tuple(expected.covector)), strict=True)
    largest = max(float(x.abs().max()) for x in tree.leaves(tuple(expected.covector)))
    errors = [float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3 * largest) for a, b in pairs]
    assert max(errors) <= tolerance and not any(map(math.isnan, errors)), errors
    assert relative_error(found.influence.sum(1, keepdim=True), expected.influence) <= tolerance


@pytest.mark.parametrize("max_norm", [0.3, math.inf], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fast_way_is_the_vjp_of_the_step(name, max_norm):
    """Of the first step, whose memory is empty, and of a later one."""
    window = window_of("tied", recipe_of(OPTIMIZERS[name], max_norm=max_norm, steps=3))
    own = window.graph, window.data, window.recipe
    for point in points(window)[::2]:
        back = [covector_at(point, seed) for seed in (0, 100)]
        expected = credit.pull_step_by_definition(*own, point, back)
        for found, wanted in zip(credit.pull_step(*own, point, back), expected, strict=True):
            assert_same_pulled(found, wanted)


@pytest.mark.parametrize("model", MODELS)
def test_of_any_model_the_fast_way_is_the_vjp_of_the_step(model):
    # of a gradient that is 0 by algebra, a key bias's, Adam's m / √v is of roundings alone
    optimizer = optim.sgd(momentum=0.9) if model == "transformer" else optim.adamw(eps=1e-3)
    window = window_of(model, recipe_of(optimizer, max_norm=0.5, steps=2))
    own, point = (window.graph, window.data, window.recipe), points(window)[1]
    back = [covector_at(point, 3)]
    (found,), (expected,) = credit.pull_step(*own, point, back), credit.pull_step_by_definition(*own, point, back)
    assert_same_pulled(found, expected)
    assert found.influence.shape == (3, CONTEXT if model in ("transformer", "tied") else 1)


def test_what_is_given_stays_as_it_was():
    for optimizer in (optim.sgd(), optim.sgd(momentum=0.9), optim.adamw()):
        window = window_of("tied", recipe_of(optimizer, steps=2))
        point = points(window)[1]
        back = [covector_at(point, 3)]
        copies = tree.map(torch.clone, (point.params, point.grads, point.state.buffers, [tuple(one) for one in back]))
        credit.pull_step(window.graph, window.data, window.recipe, point, back)
        assert_equal((point.params, point.grads, point.state.buffers, [tuple(one) for one in back]), copies)


@pytest.mark.parametrize("model", ["tied", "regression"])
def test_the_fishers_product_is_that_of_the_gradients_by_brute_force(model):
    """λ_w + (1/n) Σ_j ⟨∇ℓ_j, y⟩ ∇ℓ_j, of gradients each by itself; influences are the same as the Hessian's."""
    recipe = recipe_of(optim.adamw(eps=1e-3), max_norm=0.5, steps=2)
    window = window_of(model, recipe)
    own, point = (window.graph, window.data, window.recipe), points(window)[1]
    back = covector_at(point, 3)
    (found,) = credit.pull_step(*own, point, [back], "fisher")
    batch, masks = batches.take(window.data, point.datum), training.masks_of(window.graph, recipe, 0, point.datum)
    factors = per_example.capture(window.graph, point.params, *batch, masks=masks, units=units.EVERY).factors
    each = per_example.gradients(factors)
    start, y = recipe.optimizer.pull(point.params, point.grads, point.state, back, point.lr, recipe.max_norm)
    amounts = torch.stack([(g * y[unit]).reshape(3, -1).sum(1) for unit, g in each.items()]).sum(0)
    expected = {unit: start.weights[unit] + torch.einsum("n,n...->...", amounts, g) / 3 for unit, g in each.items()}
    assert max(relative_error(found.covector.weights[unit], w) for unit, w in expected.items()) <= 1e-10
    assert_equal(found.covector.memory, start.memory)
    (exact,) = credit.pull_step(*own, point, [back])
    assert_equal(exact.influence, found.influence)
    assert relative_error(found.influence.sum(1), amounts / 3) <= 1e-10


# ---- whole trainings


@pytest.mark.parametrize("max_norm", [0.3, math.inf], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_influences_are_central_differences_of_whole_trainings(name, max_norm):
    """Of six steps through two epochs: one place of an early batch, and all places at once along a direction."""
    window = window_of("tied", recipe_of(OPTIMIZERS[name], max_norm=max_norm))
    clips = [float(move.split.clip) for move in _moves_of(window)]
    assert (max(clips) < 1) == (max_norm < 1)
    followed = probes_of("tied")
    found = credit.window_influences(window, followed).scores()
    place = torch.zeros(6, 3, dtype=torch.float64)
    place[1, 2] = 1.0
    for direction in (place, drawn(6, 3, seed=8)):
        each = found * direction
        missed = (each.sum((1, 2)) - along_all(window, followed, direction, 1e-5)).abs()
        assert bool((missed <= 1e-6 * each.abs().sum((1, 2))).all()), missed


def _moves_of(window: Window) -> Any:
    return training.moves(window.graph, window.params, window.data, window.recipe, state=window.state, stop=window.stop)


@settings(max_examples=6, deadline=None)
@given(
    model=st.sampled_from(list(MODELS)),
    drawn_rule=st.sampled_from(list(OPTIMIZERS)) | settings_of_groups(),
    max_norm=st.sampled_from([0.2, 1.0, math.inf]),
    lr=st.sampled_from([1e-3, 0.01, 0.03]),
    steps=st.integers(5, 20),
    seed=st.integers(0, 3),
)
def test_of_drawn_recipes_too(model, drawn_rule, max_norm, lr, steps, seed):
    optimizer = OPTIMIZERS[drawn_rule] if isinstance(drawn_rule, str) else rule_of(drawn_rule, model)
    recipe = replace(recipe_of(optimizer, lr, max_norm, steps), seed=seed)
    window, probe = window_of(model, recipe), probes_of(model)[0]
    found = credit.window_influences(window, [probe], kept=7).scores()[0]
    direction = drawn(steps, 3, seed=seed)
    errors = []
    for h in (1e-4, 1e-5, 1e-3):  # the wider has the less rounding, unless a kink lies within it
        (expected,) = along_all(window, [probe], direction, h).tolist()
        errors.append(abs(float((found * direction).sum()) - expected) / float((found * direction).abs().sum()))
        if errors[-1] <= 1e-5:
            break
    assert min(errors) <= 1e-5, errors


def rule_of(drawn_settings: dict[str, Any], model: str) -> Optimizer:
    """Of several groups the first, without patterns that no unit of the model matches."""
    name, options = drawn_settings["groups"][0]
    there = tuple(p for p in options["undecayed"] if any(units.matches(unit, (p,)) for unit in model_of(model).params))
    return made_of(drawn_settings | {"groups": [(name, options | {"undecayed": there})], "scales": []})
