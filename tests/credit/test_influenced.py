"""Which data influenced a probe most: against sums written out, place by place; and how credits agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from devinterp_func import credit, keys
from devinterp_func.credit import Influences


def influences(seed, S=6, n=3, P=2, C=4, data=7):
    """Influences of random visits, ids and all; whole numbers, so that sums are exact."""
    rng = torch.Generator().manual_seed(seed)
    datum = torch.stack([torch.randperm(data, generator=rng)[:n] * 5 for _ in range(S)])
    amounts = torch.randint(-9, 10, (S, P, n, C), generator=rng).double()
    nan = torch.full((S, P), torch.nan, dtype=torch.float64)
    return Influences(torch.arange(20, 20 + S), datum, amounts, nan, nan, nan)


@given(seed=st.integers(0, 10**6), probe=st.integers(0, 1), sign=st.sampled_from([1, -1]), most=st.integers(1, 9))
@settings(max_examples=60)
def test_texts_are_in_the_order_of_what_their_visits_add_up_to(seed, probe, sign, most):
    found = influences(seed)
    amounts = influences(seed + 1).influence[:, probe].sum(-1)
    texts = credit.most_influential(found, amounts, probe, sign, most)
    total: dict[int, float] = {}
    credited: dict[int, float] = {}
    for s, ids in enumerate(found.datum.tolist()):
        for j, i in enumerate(ids):
            total[i] = total.get(i, 0) + sign * float(found.influence[s, probe, j].sum())
            credited[i] = credited.get(i, 0) + sign * float(amounts[s, j])
    helped = sorted((x for x in total.values() if x > 0), reverse=True)[:most]
    harmed = sorted(x for x in total.values() if x < 0)[:most]
    assert [sign * float(text.influence.sum()) for text in texts] == [*helped, *harmed]
    assert [text.effect for text in texts] == ["helped"] * len(helped) + ["harmed"] * len(harmed)
    assert [text.rank for text in texts] == [*range(1, len(helped) + 1), *range(1, len(harmed) + 1)]
    for text in texts:
        visits = [(s, j) for s, ids in enumerate(found.datum.tolist()) for j, i in enumerate(ids) if i == text.datum]
        assert text.step.tolist() == [20 + s for s, _ in visits]
        assert text.influence.tolist() == [found.influence[s, probe, j].tolist() for s, j in visits]
        assert text.credit.tolist() == [float(amounts[s, j]) for s, j in visits]
        by_position = text.influence.sum(0)
        assert by_position[text.position] * sign * total[text.datum] == max(
            float(x) * sign * total[text.datum] for x in by_position
        )
        for place, amount in ((text.influence_place, total), (text.credit_place, credited)):
            above = sum(x > amount[text.datum] for x in amount.values())
            assert above < place <= above + sum(x == amount[text.datum] for x in amount.values())


@pytest.mark.parametrize("probe, sign", [("loss", -1), ("bigram:a b", 1), ("norm:x:3", 1), ("head:0.1 same", 1)])
def test_to_help_is_to_lower_a_loss_and_to_raise_any_other_probe(probe, sign):
    assert credit.helping_sign(probe) == sign


def test_the_rank_correlation_is_over_data_and_its_interval_holds_it():
    found, amounts = influences(3, S=40, data=60), influences(4, S=40, data=60).influence[:, 0].sum(-1)
    amounts = amounts + found.influence[:, 0].sum(-1)
    estimate = credit.influence_and_credit(found, amounts, 0, key=keys.Key(0, ("a",)))
    ids = found.datum.unique()
    sums = [[float(x[found.datum == i].sum()) for i in ids] for x in (found.influence[:, 0].sum(-1), amounts)]
    assert estimate.value == pytest.approx(spearmanr(*sums).statistic) and estimate.n == len(ids)
    assert estimate.low < estimate.value < estimate.high < 1
    assert credit.influence_and_credit(found, 3 * found.scores()[0], 0, key=0).value == pytest.approx(1)


def test_credits_of_other_visits_are_refused():
    found = influences(0)
    for function in (
        lambda x: credit.most_influential(found, x, 0, 1),
        lambda x: credit.influence_and_credit(found, x, 0, key=0),
    ):
        with pytest.raises(ValueError, match=r"the credits are \(5, 3\); of the visits of Influences .* \(6, 3\)"):
            function(torch.zeros(5, 3))
