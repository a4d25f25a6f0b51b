"""The optimizers are torch's: the same weights after 50 steps by the same gradients, clipped by torch's own norm."""

import math
from typing import Any

import pytest
import torch
import torch.optim._muon as torch_muon
from hypothesis import given
from hypothesis import strategies as st
from optimizers import SHAPES, normal, our_steps, settings_of_adam, settings_of_muon, settings_of_sgd, torch_steps
from oracles import assert_close
from strategies import few, seeds

from devinterp_func import optim, tree

STEPS, LR = 50, 0.05
MATRICES = {"wide": (3, 5), "tall": (6, 2), "square": (4, 4), "row": (1, 4), "column": (4, 1)}
max_norms = st.sampled_from([0.5, 5.0, math.inf])


def gradients(shapes=SHAPES, n=STEPS, seed=0, dtype=torch.float64):
    """Of each step, some twenty times as large as others: one ``max_norm`` clips some and leaves some."""
    return [tree.scale(normal(shapes, seed + 1 + i, dtype), 0.1 * (1 + i % 7) ** 1.5) for i in range(n)]


def agree(ours, make, shapes=SHAPES, max_norm=math.inf, seed=0, factors=None, n=STEPS):
    params, given = normal(shapes, seed), gradients(shapes, n, seed)
    after, _, clips = our_steps(ours, params, given, LR, max_norm, factors)
    assert_close(after, torch_steps(make, params, given, max_norm, factors), 1e-12)
    return clips


@given(settings_of_sgd(), max_norms, seeds)
@few
def test_sgd(settings, max_norm, seed):
    agree(optim.sgd(**settings), lambda own: [torch.optim.SGD(own.values(), LR, **settings)], SHAPES, max_norm, seed)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(optim.adam, torch.optim.Adam), (optim.adamw, torch.optim.AdamW)], ids=["adam", "adamw"]
)
@given(settings_of_adam(), max_norms, seeds)
@few
def test_adam(ours, theirs, settings, max_norm, seed):
    make = lambda own: [theirs(own.values(), LR, foreach=False, **settings)]  # noqa: E731
    agree(ours(**settings), make, SHAPES, max_norm, seed)


@pytest.mark.parametrize("make", [optim.sgd, optim.adamw])
def test_one_largest_norm_clips_some_of_these_steps_and_leaves_others(make):
    _, _, clips = our_steps(make(), normal(SHAPES), gradients(), LR, max_norm=5.0)
    assert 10 < sum(clip < 1 for clip in clips) < 40
    _, _, clips = our_steps(make(), normal(SHAPES), gradients(), LR, max_norm=0.05)
    assert max(clips) < 1


def test_defaults_are_torchs():
    agree(optim.adam(), lambda own: [torch.optim.Adam(own.values(), LR)])
    agree(optim.adamw(), lambda own: [torch.optim.AdamW(own.values(), LR)])
    agree(optim.sgd(), lambda own: [torch.optim.SGD(own.values(), LR)])
    theirs = torch.optim.Muon([torch.zeros(2, 2)]).defaults
    ours = optim.Muon()
    assert (ours.momentum, ours.nesterov, ours.weight_decay) == tuple(
        theirs[name] for name in ("momentum", "nesterov", "weight_decay")
    )
    assert (ours.coefficients, ours.eps, ours.ns_steps) == tuple(
        theirs[name] for name in ("ns_coefficients", "eps", "ns_steps")
    )
    assert theirs["adjust_lr_fn"] is None and ours.adjust == "original"  # None is torch's word for it


@pytest.mark.parametrize("optimizer", [optim.sgd(0.9), optim.adamw(), optim.adam(weight_decay=0.1)], ids=repr)
def test_large_units_are_stepped_in_blocks_like_small_ones(optimizer):
    shapes = {"large": (300, 301), "small": (2,)}  # a block is 2¹⁶ entries
    rule = optimizer.groups[0].rule
    if isinstance(rule, optim.Adam):
        kind = torch.optim.AdamW if rule.decoupled else torch.optim.Adam
        agree(optimizer, lambda own: [kind(own.values(), LR, weight_decay=rule.weight_decay)], shapes, 5.0, n=3)
    else:
        agree(optimizer, lambda own: [torch.optim.SGD(own.values(), LR, momentum=0.9)], shapes, 5.0, n=3)


def test_float32_is_torchs_to_its_rounding():
    params, given = normal(SHAPES, dtype=torch.float32), gradients(dtype=torch.float32)
    for optimizer, make in (
        (optim.sgd(0.9), lambda own: [torch.optim.SGD(own.values(), LR, momentum=0.9)]),
        (optim.adamw(), lambda own: [torch.optim.AdamW(own.values(), LR)]),
    ):
        after, _, _ = our_steps(optimizer, params, given, LR, 5.0)
        assert {w.dtype for w in after.values()} == {torch.float32}
        assert_close(after, torch_steps(make, params, given, 5.0), 1e-5)


# ---- Muon


def zeropower_in_float64(grad, ns_coefficients, ns_steps, eps):
    """torch's ``_zeropower_via_newtonschulz``, but for the rounding to bfloat16."""
    a, b, c = ns_coefficients
    X = grad.double() if grad.size(0) <= grad.size(1) else grad.double().T
    X = X / X.norm().clamp(min=eps)
    for _ in range(ns_steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X if grad.size(0) <= grad.size(1) else X.T


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@given(settings_of_muon(), max_norms, seeds)
@few
def test_muon_is_torchs_with_the_iteration_in_float64(adjust, settings, max_norm, seed):
    def make(own):
        return [torch.optim.Muon(own.values(), LR, adjust_lr_fn=adjust, **settings)]

    ours = optim.muon(**settings, adjust=adjust)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_muon, "_zeropower_via_newtonschulz", zeropower_in_float64)
        agree(ours, make, MATRICES, max_norm, seed)


def test_muons_steps_are_torchs_as_far_as_bfloat16_allows():
    shapes: dict[str, tuple[int, ...]] = {"wide": (24, 40), "tall": (40, 16), "square": (20, 20)}
    params, given = normal(shapes), gradients(shapes, n=4)
    ours = optim.Optimizer((optim.Group(optim.Muon(weight_decay=0.0)),))
    theirs = lambda own: [torch.optim.Muon(own.values(), LR, weight_decay=0.0)]  # noqa: E731
    for n in range(1, 5):  # the step that these lead to, for torch's weights and ours drift apart
        last = [
            tree.sub(run(n), run(n - 1))
            for run in (
                lambda n: our_steps(ours, params, given[:n], LR, 5.0)[0],
                lambda n: torch_steps(theirs, params, given[:n], 5.0),
            )
        ]
        for name in shapes:
            a, b = (change[name].flatten() for change in last)
            assert float(a @ b / a.norm() / b.norm()) >= 0.999
            assert float(a.norm() / b.norm()) == pytest.approx(1, abs=0.01)


# ---- groups


def test_groups_are_torchs_parameter_groups():
    shapes = {"a.weight": (3, 5), "a.bias": (3,), "norm.weight": (3,), "table.weight": (6, 2)}
    ours = optim.grouped(
        (("table.*",), optim.adamw(weight_decay=0.2)),
        (("a.bias", "norm.*"), optim.sgd(momentum=0.9)),
        rest=optim.adamw(betas=(0.8, 0.9)),
        scales=(3.0, 0.25),
    )

    def make(own):
        adams: list[dict[str, Any]] = [
            {"params": [own["table.weight"]], "lr": 3 * LR, "weight_decay": 0.2},
            {"params": [own["a.weight"]], "betas": (0.8, 0.9)},
        ]
        yield torch.optim.AdamW(adams, LR)
        yield torch.optim.SGD([own["a.bias"], own["norm.weight"]], LR / 4, momentum=0.9)

    clips = agree(ours, make, shapes, 2.0, factors=[1 / (1 + i) for i in range(STEPS)])
    assert 0 < sum(clip < 1 for clip in clips) < STEPS  # by the norm over all groups


@pytest.mark.parametrize(
    "which", [{"matrices_only": True}, {"undecayed": ("*.bias", "norm.*")}], ids=["matrices only", "by name"]
)
@pytest.mark.parametrize(
    ("ours", "theirs"), [(optim.sgd, torch.optim.SGD), (optim.adam, torch.optim.Adam), (optim.adamw, torch.optim.AdamW)]
)
def test_biases_and_norms_do_not_decay_where_that_is_said(ours, theirs, which):
    shapes = {"a.weight": (3, 5), "conv.weight": (2, 1, 2, 2), "a.bias": (3,), "norm.weight": (3,), "norm.bias": ()}

    def make(own):
        decayed, others = list(own.values())[:2], list(own.values())[2:]
        groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
        return [theirs(groups, LR)]

    agree(ours(weight_decay=0.5, **which), make, shapes)


def test_muon_leaves_to_the_rest_what_is_not_2d_and_what_it_is_told_to():
    shapes = {"a.weight": (3, 5), "embed.weight": (7, 3), "head.weight": (7, 3), "bias": (3,), "conv": (2, 3, 2, 2)}
    ours = optim.muon(but=("embed*", "head*"), rest=optim.adamw(weight_decay=0.3), weight_decay=0.2)

    def make(own):
        yield torch.optim.Muon([own["a.weight"]], LR, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
        yield torch.optim.AdamW([w for name, w in own.items() if name != "a.weight"], LR, weight_decay=0.3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_muon, "_zeropower_via_newtonschulz", zeropower_in_float64)
        agree(ours, make, shapes, 5.0)
