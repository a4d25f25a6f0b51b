"""An optimizer goes through JSON unchanged, and what was not written by it is refused."""

import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from optimizers import OPTIMIZERS, SHAPES, made_of, normal, settings_of_groups
from oracles import assert_equal
from strategies import some

from devinterp_func import optim
from devinterp_func.optim import Group, Optimizer, Sgd


@given(settings_of_groups())
@some
def test_an_optimizer_goes_through_json_unchanged(drawn):
    optimizer = made_of(drawn)
    again = optim.from_dict(json.loads(json.dumps(optim.to_dict(optimizer))))
    assert again == optimizer and hash(again) == hash(optimizer)
    assert optim.to_dict(again) == optim.to_dict(optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_that_was_read_makes_the_same_step(optimizer):
    again = optim.from_dict(json.loads(json.dumps(optim.to_dict(optimizer))))
    params, gradient = normal(SHAPES), normal(SHAPES, 1)
    made = (one.update(params, gradient, one.init(params), 0.1, 0.5)[:2] for one in (optimizer, again))
    assert_equal(*made)


def test_settings_are_written_under_their_names():
    (group,) = optim.to_dict(optim.adamw(weight_decay=0.1, undecayed=("*.bias",), matrices_only=True))
    rule = {"name": "adam", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}
    others = {"units": ["*"], "ndim": None, "scale": 1.0, "undecayed": ["*.bias"], "matrices_only": True}
    assert group == {"rule": rule} | others
    first, *_ = optim.to_dict(optim.muon())
    assert first["ndim"] == 2 and first["rule"] == {
        "name": "muon",
        "momentum": 0.95,
        "nesterov": True,
        "weight_decay": 0.1,
        "coefficients": [3.4445, -4.775, 2.0315],
        "eps": 1e-7,
        "ns_steps": 5,
        "adjust": "match_rms_adamw",
    }


def changed(rule=(), group=(), without=()):
    (written,) = optim.to_dict(optim.sgd())
    written = written | {"rule": written["rule"] | dict(rule)} | dict(group)
    return [{name: value for name, value in written.items() if name not in without}]


@pytest.mark.parametrize(
    ("written", "kind", "message"),
    [
        (changed(rule={"name": "lion"}), ValueError, "'lion' is no rule of an optimizer; there are sgd, adam, muon"),
        (changed(group={"rule": {}}), ValueError, "None is no rule of an optimizer; there are sgd, adam, muon"),
        (changed(rule={"beta": 1}), ValueError, "the settings of Sgd are momentum, .*; these differ in beta"),
        (
            changed(rule={"name": "adam"}),
            ValueError,
            "the settings of Adam are betas, .* differ in betas, dampening, dec",
        ),
        (changed(group={"lr": 1.0}), ValueError, "the settings of Group are rule, units, .*; these differ in lr"),
        (changed(without=("scale",)), ValueError, "the settings of Group are rule, .*; these differ in scale"),
        (changed(rule={"momentum": -1}), ValueError, "momentum is -1.0; it must be at least 0"),
        (changed(without=("rule",)), ValueError, "None is no rule of an optimizer; there are sgd, adam, muon"),
        ([], TypeError, "groups are .*; they must be one Group or more"),
    ],
)
def test_what_was_not_written_by_this_is_refused(unchecked, written, kind, message):
    with pytest.raises(kind, match=message):
        optim.from_dict(written)


def test_a_rule_of_ones_own_steps_but_cannot_be_written():
    @dataclass(frozen=True)
    class Half(Sgd):
        """A rule."""

    own = Optimizer((Group(Half()),))
    params = {"w": torch.ones(2)}
    assert_equal(own.update(params, params, own.init(params), 0.5)[0], {"w": torch.full((2,), 0.5)})
    with pytest.raises(TypeError, match="Half.* cannot be written down; the rules that can are sgd, adam, muon"):
        optim.to_dict(own)
