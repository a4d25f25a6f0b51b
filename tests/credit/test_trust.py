"""What estimates miss and how they rank data, against loops over steps and scipy."""

import pytest
import torch
from ledgers import P, S, ledger
from scipy.stats import spearmanr

from devinterp_func import credit


def test_completeness_is_the_share_of_the_changes_that_an_estimate_misses():
    first, second = ledger(), ledger(seed=1)
    second = first._replace(credit=second.credit)
    found = credit.completeness({1: first, 3: second}, key=0, resamples=200)
    assert [(one.estimate, one.nodes) for one in found] == [
        ("gradient at the start", None),
        ("gradient at the end", None),
        ("trapezoid", None),
        ("credit", 1),
        ("credit", 3),
    ]
    for one in found:
        for i in range(P):
            missed = change = 0.0
            for s in range(S):
                delta = float(first.after[s, i] - first.before[s, i])
                own = first if one.nodes == 1 else second
                start = float(first.at_start[s, i].sum() + first.rest_at_start[s, i])
                end = float(first.marginal[s, i].sum() + first.rest_at_end[s, i])
                estimate = {
                    "gradient at the start": start,
                    "gradient at the end": end,
                    "trapezoid": (start + end) / 2,
                    "credit": float(own.credit[s, i].sum() + own.past[s, i] + own.decay[s, i]),
                }[one.estimate]
                missed, change = missed + abs(delta - estimate), change + abs(delta)
            share = one.missed[i]
            assert share.value == pytest.approx(missed / change) and share.n == S
            assert float(one.change[i]) == pytest.approx(change)
            assert share.low < share.value < share.high


def test_a_complete_estimate_misses_nothing():
    entries = ledger()
    exact = entries._replace(after=entries.before + entries.credit.sum((2, 3)) + entries.past + entries.decay)
    *_, one = credit.completeness({3: exact}, key=0, resamples=20)
    assert all(share.value < 1e-12 and share.high < 1e-12 for share in one.missed)
    assert repr(one) == "Completeness of credit, 3 nodes: misses 0.0%, 0.0%"


def test_the_amounts_at_the_start_are_needed():
    entries = ledger()
    with pytest.raises(ValueError, match="make them with at_start=True"):
        credit.completeness({3: entries._replace(at_start=torch.full_like(entries.at_start, torch.nan))}, key=0)


def test_agreement_is_the_median_of_the_steps_rank_correlations():
    truth, score, other = (ledger(seed=seed).credit[:, 0].sum(-1) for seed in range(3))
    score = score + truth
    found = credit.rank_agreement({"a": score, "b": other}, truth, key=0, resamples=500)
    for name, x in (("a", score), ("b", other)):
        each = sorted(float(spearmanr(x[s], truth[s]).statistic) for s in range(S))
        assert found[name].value == pytest.approx(each[S // 2]) and found[name].n == S
        assert found[name].low <= found[name].value <= found[name].high
    assert found["a"].value > 0.4 > abs(found["b"].value)


def test_the_truth_agrees_with_itself_and_steps_without_ranks_are_left_out():
    truth = ledger().credit[:, 0].sum(-1)
    constant = truth.clone()
    constant[:5] = 1.0
    found = credit.rank_agreement({"same": 3 * truth, "opposite": -truth, "constant": constant}, truth, key=0)
    assert found["same"].value == pytest.approx(1) and found["opposite"].value == pytest.approx(-1)
    assert found["constant"].value == pytest.approx(1) and found["constant"].n == S - 5
