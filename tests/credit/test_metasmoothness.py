"""Laws of metasmoothness: 1 for a training that is linear in its data's weights, little for a chaotic one."""

import math

import pytest
import torch
import windows

from devinterp_func import credit, optim, training
from devinterp_func.credit import _metasmoothness


def sign(x):
    return (x > 0) - (x < 0)


def by_hand(window, horizon, v, part):
    """The definition, entry by entry."""
    ends = []
    for k in range(3):
        weights = 1 - k * part * v[:horizon].double()
        *_, move = training.moves(
            window.graph,
            window.params,
            window.data,
            window.recipe,
            state=window.state,
            start=window.start,
            stop=window.start + horizon,
            weights=weights.float(),
        )
        ends.append(torch.cat([w.flatten() for w in move.after.values()]).tolist())
    total = sum(abs(b - a) for a, b, _ in zip(*ends, strict=True))
    return sum(abs(b - a) * sign(b - a) * sign(c - b) for a, b, c in zip(*ends, strict=True)) / total


@pytest.mark.parametrize("options", [{}, {"optimizer": optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.1)}])
def test_it_is_one_where_the_loss_is_linear(options):
    found = credit.metasmoothness(windows.linear(**options), [1, 3, 8], key=0)
    assert found == pytest.approx([1, 1, 1])


def test_it_is_near_one_where_a_quadratic_training_converges_and_not_where_it_diverges():
    calm = credit.metasmoothness(windows.quadratic(steps=30, lr=0.02), [30], key=0)
    wild = [
        credit.metasmoothness(windows.quadratic(steps=30, lr=lr, max_norm=0.5), [30], key=seed)[0]
        for lr in (2.0, 3.0)
        for seed in range(5)
    ]
    assert calm[0] > 0.95
    assert sum(wild) / len(wild) < 0.6


@pytest.mark.parametrize("part", [0.5, 0.1])
def test_it_is_the_definition_at_every_horizon_and_one_training_gives_all(part):
    window = windows.texts(optimizer=optim.adamw(), lr=0.01)
    v = _metasmoothness._direction(6, 6, 0.3, 7)
    assert v.sum(1).tolist() == [2] * 6
    found = credit.metasmoothness(window, [1, 4, 6], share=0.3, part=part, key=7)
    for horizon, value in zip([1, 4, 6], found, strict=True):
        # what a horizon sees of the direction must not depend on how far the training goes
        assert torch.equal(v[:horizon], _metasmoothness._direction(horizon, 6, 0.3, 7))
        assert value == pytest.approx(by_hand(window, horizon, v, part), abs=1e-9)
        assert -1 <= value <= 1


def test_a_later_start_goes_on_from_its_state():
    window = windows.texts(optimizer=optim.adamw(), lr=0.01)
    end = credit.retrain(window._replace(stop=2))
    later = window._replace(start=2, params=end.params, state=end.state)
    v = _metasmoothness._direction(3, 6, 0.05, 1)
    assert credit.metasmoothness(later, [3], key=1)[0] == pytest.approx(by_hand(later, 3, v, 0.5), abs=1e-9)


def test_the_sign_that_is_turned_counts_by_its_size():
    w = [{"a": torch.tensor(x)} for x in ([0.0, 0.0], [0.3, 0.1], [0.4, -2.0])]
    assert _metasmoothness.sign_agreement(*w) == pytest.approx(0.5)
    assert math.isnan(_metasmoothness.sign_agreement(w[0], w[0], w[1]))


def test_what_is_out_of_range_is_refused():
    window = windows.linear()
    with pytest.raises(ValueError, match="horizon is 9; the Window of steps 0 to 8 has 8 steps"):
        credit.metasmoothness(window, [9], key=0)
    with pytest.raises(ValueError, match=r"in rising order they are \[2, 3\]"):
        credit.metasmoothness(window, [3, 2], key=0)
    with pytest.raises(ValueError, match="part is 0.6; it must be at most 0.5"):
        credit.metasmoothness(window, [3], part=0.6, key=0)
    with pytest.raises(ValueError, match="part is 0"):
        credit.metasmoothness(window, [3], part=0.0, key=0)
    with pytest.raises(ValueError, match="share is 1"):
        credit.metasmoothness(window, [3], share=1.0, key=0)
