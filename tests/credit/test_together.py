"""Retrainings at once are retrainings one by one."""

import pytest
import torch
import windows

from devinterp_func import credit, optim
from devinterp_func.credit import probes

REMOVED = torch.stack(
    [
        torch.zeros(6, 6, dtype=torch.bool),
        *(
            credit.draw_removal(torch.zeros(6, 6, dtype=torch.int64), "subset", draw, share=0.3, key=0)
            for draw in range(3)
        ),
    ]
)
REMOVED[1, 2] = True  # a step without any


@pytest.mark.parametrize(
    "optimizer", [optim.sgd(), optim.sgd(momentum=0.9, nesterov=True, weight_decay=0.1), optim.adamw(), optim.muon()]
)
@pytest.mark.parametrize("max_norm", [0.05, 100.0])
def test_retrainings_at_once_are_retrainings_one_by_one(optimizer, max_norm):
    window = windows.texts(optimizer=optimizer, lr=0.02, max_norm=max_norm)
    read = [probes.bigram(window.graph, 3, 5), probes.loss(window.graph, tuple(x[:4] for x in window.data))]
    found = credit.together_values(window, read, [2, 6], REMOVED)
    alone = torch.stack([credit.horizon_values(window, read, [2, 6], removed=removed) for removed in REMOVED])
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)
    assert (found[1:] != found[:1]).all()  # so it does matter what is left out


def test_they_go_on_from_a_memory():
    window = windows.texts(optimizer=optim.adamw(), lr=0.02)
    half = credit.retrain(window._replace(stop=2))
    rest = window._replace(params=half.params, state=half.state, start=2)
    read = [probes.bigram(window.graph, 3, 5)]
    found = credit.together_values(rest, read, [4], REMOVED[:1, 2:])
    torch.testing.assert_close(found[0], credit.horizon_values(window, read, [6]), rtol=1e-9, atol=1e-12)


def test_what_does_not_fit_the_window_is_refused():
    window = windows.quadratic()
    with pytest.raises(ValueError, match=r"removed is \(2, 3, 5\); of the .* it must be \(D, 8, 5\)"):
        credit.together_values(window, [], [8], torch.zeros(2, 3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"horizons are \[8, 2\]; in rising order they are \[2, 8\]"):
        credit.together_values(window, [], [8, 2], torch.zeros(2, 8, 5, dtype=torch.bool))
