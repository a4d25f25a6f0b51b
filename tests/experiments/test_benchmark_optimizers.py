"""The plain step of the benchmark is the recorded one: torch's own optimizers, of the same weights and settings."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devinterp_func import optim
from devinterp_func.optim import Group, Optimizer
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import benchmark  # noqa: E402
import benchmark_optimizers  # noqa: E402
import benchmark_setup  # noqa: E402
import benchmark_walks  # noqa: E402

SHAPES = {"wide": (3, 5), "tall": (4, 2), "bias": (4,), "norm": (3,)}
LR = 0.02
each_name = pytest.mark.parametrize("name", benchmark_optimizers.NAMES)
shares = st.sampled_from([0.0, 0.3, 0.9])


@st.composite
def rules(draw):
    """A rule that steps weights of any shape, and its settings: it is made in the test."""
    decay = draw(shares)
    if draw(st.booleans()):
        momentum = draw(shares)
        nesterov = momentum > 0 and draw(st.booleans())
        return optim.Sgd, (momentum, 0.0 if nesterov else draw(shares), nesterov, decay)
    return optim.Adam, ((draw(shares), draw(shares)), draw(st.sampled_from([1e-8, 0.1])), decay, draw(st.booleans()))


@st.composite
def groups(draw):
    """One to three groups' rules and settings, of different rates and decays; the last takes what is left."""
    names = draw(st.permutations(list(SHAPES)))
    parts = [*((name,) for name in names[: draw(st.integers(0, 2))]), ("*",)]
    scales, undecayed = st.sampled_from([0.5, 1.0]), st.sets(st.sampled_from(sorted(SHAPES))).map(tuple)
    return [(draw(rules()), part, None, draw(scales), draw(undecayed), draw(st.booleans())) for part in parts]


def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


@given(groups(), st.integers(0, 2**20))
@settings(max_examples=40)
def test_torchs_optimizers_step_as_the_recipes(drawn, seed):
    optimizer = Optimizer(tuple(Group(rule(*own), *rest) for (rule, own), *rest in drawn))
    params, state = normal(seed), optimizer.init(normal(seed))
    theirs = {name: w.clone().requires_grad_() for name, w in params.items()}
    made = benchmark_optimizers.torch_optimizers(Recipe(lr=LR, optimizer=optimizer), theirs.items())
    for step in range(3):
        gradients = normal(seed + 1 + step)
        params, state, _ = optimizer.update(params, gradients, state, LR)
        for name, weight in theirs.items():
            weight.grad = gradients[name]
        for one in made:
            one.step()
    for name, weight in theirs.items():
        torch.testing.assert_close(weight.detach(), params[name], rtol=1e-12, atol=1e-14)


@given(st.booleans(), shares, st.sampled_from(["original", "match_rms_adamw"]), st.integers(1, 3))
@settings(max_examples=10)
def test_torchs_muon_has_the_rules_settings(nesterov, decay, adjust, ns_steps):
    rule = optim.Muon(0.8, nesterov, decay, (3.0, -4.0, 2.0), 1e-5, ns_steps, adjust)
    optimizer = Optimizer((Group(rule, ndim=2, scale=0.5), Group(optim.Adam())))
    weights = {name: w.requires_grad_() for name, w in normal(0).items()}
    muon, adamw = benchmark_optimizers.torch_optimizers(Recipe(lr=LR, optimizer=optimizer), weights.items())
    [group] = muon.param_groups
    assert [p.shape for p in group["params"]] == [(3, 5), (4, 2)] and len(adamw.param_groups[0]["params"]) == 2
    expected = {"lr": 0.5 * LR, "weight_decay": decay, "momentum": 0.8, "nesterov": nesterov, "eps": 1e-5}
    expected |= {"ns_coefficients": (3.0, -4.0, 2.0), "ns_steps": ns_steps, "adjust_lr_fn": adjust}
    assert {name: group[name] for name in expected} == expected


@pytest.fixture(scope="module", params=["post", "gpt2", "neox", "llama"])
def setup(request):
    if request.param != "post":
        pytest.importorskip("transformers")
    return benchmark_setup.toy_or_post(request.param, True, "cpu")


@each_name
def test_every_weight_of_the_plain_module_is_stepped_once(setup, name):
    own = benchmark_setup.stepped_by(name, setup)
    named = benchmark_setup.named_as_units(benchmark_setup.plain_module(own), own)
    made = benchmark_optimizers.torch_optimizers(own.recipe, named)
    stepped = [id(w) for one in made for group in one.param_groups for w in group["params"]]
    assert sorted(stepped) == sorted(id(w) for _, w in named) and len(named) == len(setup.params)
    kinds = {"sgd": ["SGD"], "adamw": ["AdamW"], "muon": ["AdamW", "Muon"]}
    assert sorted(type(one).__name__ for one in made) == kinds[name]
    assert math.isclose(own.recipe.max_norm, 0.5 if name == "sgd" else 1.0)


def test_muon_takes_the_matrices_within_the_layers(setup):
    own = benchmark_setup.stepped_by("muon", setup)
    taken = {n for n, w in setup.params.items() if isinstance(own.recipe.optimizer.group(n, w.ndim).rule, optim.Muon)}
    vocabulary = setup.config.vocab_size
    matrices = {n for n, w in setup.params.items() if w.ndim == 2 and vocabulary not in w.shape}
    assert taken == matrices - {"transformer.wpe.weight"}


@each_name
def test_the_pair_is_measured_beside_sgds(name, capsys):
    benchmark.main(benchmark.Settings(toy=True, threads=torch.get_num_threads(), part="pair", optimizer=name))
    found = json.loads(capsys.readouterr().out)
    assert len(found) == (1 if name == "sgd" else 2) and all(seconds > 0 for pair in found for seconds in pair)


def test_walks_of_adamw_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_walks, "EVERY", 2)
    monkeypatch.setattr(benchmark_walks, "BLOCKS", (1,))
    benchmark.main(benchmark.Settings(toy=True, threads=torch.get_num_threads(), part="walks", optimizer="adamw"))
    ledger, lifetimes, influences = (table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n"))
    assert len(ledger) == len(lifetimes) == 3
    assert lifetimes[2].startswith("| 2 steps in blocks of 1 |") and float(lifetimes[2].split("**")[1]) > 0
    assert len(influences) == 5 and influences[4].startswith("| 8 probes, 2 steps in blocks of 2 |")


def test_a_plain_module_of_other_weights_is_refused(setup):
    other = setup._replace(params={"decoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="the plain module of .* has not the weights of"):
        benchmark_setup.named_as_units(benchmark_setup.plain_module(setup), other)
