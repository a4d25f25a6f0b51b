"""Laws of keyness: the statistics against definitions spelled out in loops and fractions, tests against scipy's."""

import math
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from scipy.spatial import distance
from strategies import few, seeds, some
from torch import Tensor

from devinterp_func import keys, stats
from devinterp_func.stats import _statistics, _testing

Corpora = tuple[Tensor, Tensor]  # attributed (G, V), reference (V,)
Sets = tuple[Tensor, Tensor, Tensor]  # notable (G, V), flipped (G, V), universe

SCALE_FREE = ["relative_frequency", "mahalanobis", "kl_drop"]
each_statistic = pytest.mark.parametrize("name", stats.STATISTICS)


@st.composite
def corpora(draw: st.DrawFn, least: int = 1, most: int = 6, weighted: bool | None = False) -> Corpora:
    """Small counts, so that zeros and ties abound, of up to three distributions; or weights (None: either)."""
    V, G = draw(st.integers(least, most)), draw(st.integers(1, 3))
    reference = draw(arrays(np.int64, V, elements=st.sampled_from([0, 1, 2, 3, 4, 12, 100])).filter(np.any))
    attributed = draw(arrays(np.int64, (G, V), elements=st.sampled_from([0, 0, 1, 2, 3, 4, 30])))
    weight = draw(st.sampled_from([1 / 3, 7.3])) if weighted or (weighted is None and draw(st.booleans())) else 1
    return torch.from_numpy(attributed * (reference > 0) * weight), torch.from_numpy(reference * weight)


@st.composite
def sets_of_tokens(draw: st.DrawFn, most: int = 7) -> Sets:
    shape = draw(st.integers(1, 3)), draw(st.integers(1, most))
    notable, flipped = (torch.from_numpy(draw(arrays(np.bool_, shape))) for _ in range(2))
    return notable, flipped, torch.from_numpy(draw(arrays(np.bool_, draw(st.sampled_from([shape, shape[1:]])))))


def realistic(G: int = 3, V: int = 300, seed: int = 0) -> Corpora:
    """Zipf's law, and attributed data in which every tenth token is more frequent than in the reference."""
    rng = keys.generator(seed)
    frequency = 1 / np.arange(2, V + 2)
    frequency /= frequency.sum()
    tilted = frequency * np.where(np.arange(V) % 10 == 3, 3, 1)
    reference = rng.multinomial(100_000, frequency) + 1
    return torch.from_numpy(rng.multinomial(3_000, tilted / tilted.sum(), size=G)), torch.from_numpy(reference)


def relative(attributed: list[float], reference: list[float]) -> list[Fraction]:
    """p / q of each token, 0 where it is not attributed."""
    a, r = [Fraction(x) for x in attributed], [Fraction(x) for x in reference]
    return [x * sum(r) / (sum(a) * y) if x else Fraction(0) for x, y in zip(a, r, strict=True)]


def divergence(attributed: list[float], reference: list[float]) -> float:
    """D(p ‖ q) in nats, 0 where nothing is attributed."""
    A = sum(attributed)
    ratios = relative(attributed, reference)
    return sum(a / A * math.log(ratio) for a, ratio in zip(attributed, ratios, strict=True) if a)


def close(found: Tensor, expected: object, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(found, np.asarray(expected, dtype=float), rtol=tolerance, atol=tolerance)


# ---- laws of all statistics


@each_statistic
@given(corpora(weighted=None), seeds)
@few
def test_scores_follow_tokens_when_they_are_renumbered(name: str, drawn: Corpora, seed: int) -> None:
    attributed, reference = drawn
    new = keys.permutation(len(reference), key=seed)
    close(stats.keyness(attributed[:, new], reference[new], name), stats.keyness(*drawn, name)[:, new])


@each_statistic
@given(corpora(weighted=None))
@few
def test_scores_are_finite_and_tokens_that_nobody_has_score_zero(name: str, drawn: Corpora) -> None:
    attributed, reference = drawn
    scores = stats.keyness(*drawn, name)
    assert scores.dtype == torch.float64 and bool(scores.isfinite().all())
    assert not scores[:, reference == 0].any()
    assert not stats.keyness(0 * attributed, reference, name).any()


@pytest.mark.parametrize("block", [1, 700, _statistics.BLOCK])
@each_statistic
def test_every_row_is_as_alone_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    statistic = stats.STATISTICS[name]
    attributed, reference = realistic(G=6)
    alone = torch.stack([statistic(row, reference) for row in attributed])
    monkeypatch.setattr(_statistics, "BLOCK", block)
    assert torch.equal(statistic(attributed, reference), alone)
    assert torch.equal(statistic(attributed.reshape(2, 3, -1), reference), alone.reshape(2, 3, -1))
    assert torch.equal(statistic(attributed.int(), reference.double()), alone)
    assert statistic(attributed[:0], reference).shape == (0, len(reference))


@pytest.mark.parametrize("name", SCALE_FREE)
@given(corpora(), st.sampled_from([2, 10, 0.37]), st.sampled_from([1, 3, 0.01]))
@few
def test_scale_free_statistics_are(name: str, drawn: Corpora, a: float, r: float) -> None:
    attributed, reference = drawn[0].double(), drawn[1].double()
    close(stats.keyness(a * attributed, r * reference, name), stats.keyness(*drawn, name))


@given(corpora(), st.integers(2, 5))
@few
def test_evidence_grows_with_the_corpora(drawn: Corpora, times: int) -> None:
    attributed, reference = drawn
    close(stats.log_likelihood(times * attributed, times * reference), times * stats.log_likelihood(*drawn))
    once, more = stats.log_odds(*drawn), stats.log_odds(times * attributed, times * reference, prior=1000 * times)
    close(more, math.sqrt(times) * once)


@pytest.mark.parametrize("name", ["relative_frequency", "count", "log_product", "log_likelihood"])
@given(corpora(least=2), st.data())
@some
def test_more_of_a_token_never_lowers_its_score(name: str, drawn: Corpora, data: st.DataObject) -> None:
    attributed, reference = drawn
    token = data.draw(st.sampled_from(reference.nonzero().flatten().tolist()))
    more = attributed + (torch.arange(len(reference)) == token)
    before, after = (stats.keyness(a, reference, name)[:, token] for a in (attributed, more))
    assert bool((after >= before).all())


@given(corpora(least=2), st.data())
@some
def test_more_of_an_over_represented_token_raises_its_log_odds(drawn: Corpora, data: st.DataObject) -> None:
    attributed, reference = drawn
    token = data.draw(st.sampled_from(reference.nonzero().flatten().tolist()))
    more = attributed + (torch.arange(len(reference)) == token)
    over = stats.relative_frequency(attributed, reference)[:, token] > 1
    gain = stats.log_odds(more, reference)[:, token] - stats.log_odds(attributed, reference)[:, token]
    assert bool((gain[over] > 0).all())


@pytest.mark.parametrize("name", ["log_likelihood", "log_odds"])
@given(corpora())
@some
def test_signs_say_over_or_under(name: str, drawn: Corpora) -> None:
    ratio = torch.tensor([[float(x) for x in relative(a, drawn[1].tolist())] for a in drawn[0].tolist()])
    scores = stats.keyness(*drawn, name)
    over, under = ratio > 1, (ratio < 1) & (drawn[1] > 0) & (drawn[0].sum(1, keepdim=True) > 0)
    assert bool((scores[over] > 0).all()) and bool((scores[under] < 0).all())
    close(scores[~over & ~under], np.zeros(int((~over & ~under).sum())))


# ---- each against its definition


@given(corpora(weighted=None))
@some
def test_compare_divides_counts(drawn: Corpora) -> None:
    attributed, reference = drawn[0].double(), drawn[1].double()
    found = stats.compare(*drawn)
    assert torch.equal(found.count, drawn[0])
    close(found.frequency, [[a / max(sum(row), 1e-9) for a in row] for row in attributed.tolist()])
    close(found.reference_frequency, [(reference / reference.sum()).tolist()] * len(attributed))
    close(found.relative_frequency, [relative(row, reference.tolist()) for row in attributed.tolist()])


def test_compare_gives_the_numbers_of_a_table_by_hand() -> None:
    found = stats.compare(torch.tensor([6, 2, 0, 0]), torch.tensor([10, 40, 50, 0]))
    close(found.frequency, [0.75, 0.25, 0, 0])
    close(found.reference_frequency, [0.1, 0.4, 0.5, 0])
    close(found.relative_frequency, [7.5, 0.625, 0, 0])
    assert repr(found) == "Comparison[4](tokens that occur: 2, over: 1)"


@given(corpora(weighted=None))
@some
def test_log_product_is_the_product_where_both_factors_are_positive(drawn: Corpora) -> None:
    def factor(x: float | Fraction) -> float:
        return max(0.0, 1 + math.log(x)) if x else 0.0

    ratios = [relative(row, drawn[1].tolist()) for row in drawn[0].tolist()]
    rows = zip(drawn[0].tolist(), ratios, strict=True)
    close(_statistics.log_product(*drawn), [[factor(a) * factor(x) for a, x in zip(*row, strict=True)] for row in rows])


@given(corpora(least=4, most=9, weighted=None))
@some
def test_mahalanobis_is_scipys(drawn: Corpora) -> None:
    attributed, reference = drawn[0][0], drawn[1]
    points = np.stack([attributed, np.array(relative(attributed.tolist(), reference.tolist()), dtype=float)], axis=1)
    points = points[attributed > 0]
    assume(len(points) >= 3 and np.ptp(points, axis=0).min() > 1e-6 and abs(np.corrcoef(points.T)[0, 1]) < 0.999999)
    inverse = np.linalg.inv(np.cov(points.T))
    expected = [distance.mahalanobis(point, points.mean(0), inverse) for point in points]
    found = _statistics.mahalanobis(attributed, reference)
    close(found[attributed > 0], expected)
    assert not found[attributed == 0].any()


@given(corpora(weighted=None), st.sampled_from(["proportional", "constant", "uniform reference"]))
@some
def test_mahalanobis_of_points_on_a_line_is_the_distance_in_deviations(drawn: Corpora, kind: str) -> None:
    attributed, reference = drawn[0][0], drawn[1]
    occurs = reference > 0
    attributed = {"proportional": reference / 7, "constant": occurs / 3, "uniform reference": attributed}[kind]
    reference = occurs.double() if kind == "uniform reference" else reference
    line = stats.relative_frequency(attributed, reference) if kind == "constant" else attributed
    on_it = line[attributed > 0].double()
    spread = on_it.std() if len(on_it) > 1 else torch.zeros(())
    expected = (on_it - on_it.mean()).abs() / spread if spread > 1e-6 else torch.zeros_like(on_it)
    close(_statistics.mahalanobis(attributed, reference)[attributed > 0], expected, tolerance=1e-6)


@given(corpora(weighted=None))
@some
def test_kl_drop_is_the_divergence_less_that_without_the_token(drawn: Corpora) -> None:
    reference = drawn[1].tolist()
    for row, found in zip(drawn[0].tolist(), _statistics.kl_drop(*drawn), strict=True):
        without = [divergence(row[:v] + row[v + 1 :], reference[:v] + reference[v + 1 :]) for v in range(len(row))]
        close(found, [divergence(row, reference) - d if any(row) else 0 for d in without])


def test_log_likelihood_is_dunnings() -> None:
    """Table 1 of his paper: bigrams in text about Switzerland; "the swiss", "can be", "previous year"."""
    tables = {270.72: (110, 2442, 111, 29114), 263.90: (29, 13, 123, 31612), 256.84: (31, 23, 139, 31584)}
    for expected, (a, others, r, rest) in tables.items():
        found = stats.log_likelihood(torch.tensor([a, others]), torch.tensor([r, rest]))
        assert found.tolist() == pytest.approx([expected, -expected], abs=0.005)


@given(corpora(least=2, weighted=None))
@some
def test_log_likelihood_is_scipys(drawn: Corpora) -> None:
    attributed, reference = drawn[0][0], drawn[1]
    assume(attributed.any())
    signed = stats.log_likelihood(attributed, reference)
    for v, (a, r) in enumerate(zip(attributed.tolist(), reference.tolist(), strict=True)):
        table = np.array([[a, attributed.sum() - a], [r, reference.sum() - r]])
        if (table.sum(0) > 1e-9).all():
            expected = scipy_stats.chi2_contingency(table, lambda_="log-likelihood", correction=False)
            assert abs(float(signed[v])) == pytest.approx(expected.statistic, abs=1e-9)


@given(corpora(weighted=None), st.sampled_from([0.5, 1000]))
@some
def test_log_odds_is_its_definition(drawn: Corpora, prior: float) -> None:
    def odds(count: float, total: float, alpha: float) -> float:
        return math.log((count + alpha) / (total + prior - count - alpha))

    reference, R = drawn[1].tolist(), float(drawn[1].sum())
    for row, found in zip(drawn[0].tolist(), stats.log_odds(*drawn, prior=prior), strict=True):
        for v, (a, r) in enumerate(zip(row, reference, strict=True)):
            alpha = prior * r / R
            if 0 < r < R * (1 - 1e-9) and any(row):
                difference = odds(a, sum(row), alpha) - odds(r, R, alpha)
                expected = difference / math.sqrt(1 / (a + alpha) + 1 / (r + alpha))
                assert float(found[v]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
            else:
                assert abs(float(found[v])) < 1e-6


def test_a_larger_prior_shrinks_log_odds() -> None:
    attributed, reference = realistic()
    sizes = [float(stats.log_odds(attributed, reference, prior=a).abs().sum()) for a in (10, 1000, 10**5)]
    assert sizes[0] > sizes[1] > sizes[2]


# ---- selection


@given(corpora(least=2, most=12), st.sampled_from([1, 2, 3, 4]), st.integers(1, 6), st.integers(1, 6))
@some
def test_univariate_heuristic_is_its_three_sorts(drawn: Corpora, c: int, d: int, f: int) -> None:
    counts, reference = drawn[0][0].tolist(), drawn[1].tolist()
    ratios = relative(counts, reference)
    often = [v for v in range(len(counts)) if counts[v] >= c]
    typical = sorted(often, key=lambda v: (-ratios[v], v))[:d]
    expected = sorted(typical, key=lambda v: (-counts[v], v))[:f]
    assert stats.univariate_heuristic(drawn[0][0], drawn[1], c, d, f).tolist() == expected


def test_univariate_heuristic_has_the_posts_settings() -> None:
    attributed, reference = realistic(G=1, V=2000)
    explicit = stats.univariate_heuristic(attributed[0], reference, c=20, d=100, f=3)
    assert stats.univariate_heuristic(attributed[0], reference).tolist() == explicit.tolist()
    assert len(explicit) == 3


def test_univariate_heuristic_of_nothing_is_nothing() -> None:
    assert stats.univariate_heuristic(torch.zeros(4), torch.ones(4)).tolist() == []


@each_statistic
@given(corpora(least=2, most=12), st.integers(1, 6), st.integers(1, 4))
@few
def test_notable_tokens_are_over_represented_and_score_highest(
    name: str, drawn: Corpora, top: int, least_count: int
) -> None:
    counts, reference = drawn[0][0], drawn[1]
    scores, ratios = stats.keyness(counts, reference, name).tolist(), relative(counts.tolist(), reference.tolist())
    eligible = [v for v in range(len(scores)) if ratios[v] > 1 and counts[v] >= least_count]
    expected = sorted(eligible, key=lambda v: (-scores[v], v))[:top]
    assert stats.notable_tokens(counts, reference, name, top, least_count).tolist() == expected


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
@few
def test_sets_of_concatenated_ids_are_unions(a: list[int], b: list[int]) -> None:
    found = stats.as_set(torch.tensor([*a, *b], dtype=torch.int64), 10)
    assert set(found.nonzero().flatten().tolist()) == {*a, *b}


# ---- beyond chance


@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=st.floats(0, 1) | st.just(0.01)))
@some
def test_false_discovery_is_scipys(p: np.ndarray) -> None:
    expected = scipy_stats.false_discovery_control(p, axis=1)
    assert torch.equal(_testing.adjusted(torch.from_numpy(p)), torch.from_numpy(expected))
    for level in (0.01, 0.05, 0.5):
        assert torch.equal(stats.false_discovery(torch.from_numpy(p), level), torch.from_numpy(expected <= level))


def test_false_discovery_of_no_tests_finds_nothing() -> None:
    assert stats.false_discovery(torch.zeros(0)).shape == (0,)


def test_false_discovery_keeps_its_rate() -> None:
    """Over many experiments with 900 tests of nothing and 100 of something."""
    noise = torch.from_numpy(keys.generator(0).standard_normal((200, 1000)))
    null = torch.arange(1000) < 900
    found = stats.false_discovery(torch.special.ndtr(-(noise + torch.where(null, 0, 3.5))), level=0.1)
    wrong = (found & null).sum(1) / found.sum(1).clamp(min=1)
    assert float(wrong.mean()) == pytest.approx(0.09, abs=0.01)
    assert float((found & ~null).sum(1).double().mean()) > 80


@given(sets_of_tokens())
@some
def test_overlap_is_the_share_of_sets_that_overlap_as_much(sets: Sets) -> None:
    universes = sets[2].expand_as(sets[0])
    for notable, flipped, universe, found in zip(*sets[:2], universes, stats.overlap(*sets), strict=True):
        inside = universe.nonzero().flatten().tolist()
        notables, flips = ({v for v in inside if tokens[v]} for tokens in (notable, flipped))
        drawn = [len(notables & {*others}) >= len(notables & flips) for others in combinations(inside, len(flips))]
        assert float(found) == pytest.approx(sum(drawn) / len(drawn), rel=1e-12)


@pytest.mark.parametrize("common, n, m, size", [(0, 3, 40, 500), (3, 3, 40, 500), (30, 100, 900, 5000)])
def test_overlap_is_scipys(common: int, n: int, m: int, size: int) -> None:
    token = torch.arange(size + 100)
    notable, flipped, universe = token < n, (token >= n - common) & (token < n - common + m), token < size
    found = float(stats.overlap(notable, flipped, universe))
    assert found == pytest.approx(scipy_stats.hypergeom.sf(common - 1, size, n, m), rel=1e-9)
    table = [[common, n - common], [m - common, size - n - m + common]]
    assert found == pytest.approx(scipy_stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-7)


@given(sets_of_tokens(most=4), st.data())
@few
def test_permuted_overlaps_are_those_of_all_permutations_within_strata(sets: Sets, data: st.DataObject) -> None:
    notable, flipped, universe = sets[0], sets[1], sets[2].expand_as(sets[0])
    size, draws = notable.shape[1], 2000
    strata = torch.from_numpy(data.draw(arrays(np.int64, size, elements=st.integers(0, 1))))
    found = stats.permuted_overlaps(*sets, draws, key=data.draw(seeds), strata=strata)
    for row in range(len(notable)):
        label = torch.where(universe[row], strata, 9)
        allowed = [list(new) for new in permutations(range(size)) if torch.equal(label[list(new)], label)]
        overlaps = [int((notable[row] & flipped[row, new] & universe[row]).sum()) for new in allowed]
        expected = np.bincount(overlaps, minlength=size + 1) / len(overlaps)
        share = np.bincount(found[:, row], minlength=size + 1) / draws
        assert not share[expected == 0].any()
        np.testing.assert_allclose(share, expected, atol=5 * 0.5 / math.sqrt(draws))


def test_permuting_in_one_stratum_gives_the_p_value_of_overlap() -> None:
    rng = keys.generator(0)
    notable, flipped = (torch.from_numpy(rng.random((4, 60)) < share) for share in (0.1, 0.3))
    universe = torch.arange(60) < 50
    permuted = stats.permuted_overlaps(notable, flipped, universe, 20_000, key=1)
    observed = (notable & flipped & universe).sum(1)
    expected = stats.overlap(notable, flipped, universe)
    close(stats.permutation_p_values(observed, permuted), expected, tolerance=0.015)
    assert torch.equal(permuted, stats.permuted_overlaps(notable, flipped, universe, 20_000, key=1))


def test_strata_explain_an_overlap_that_frequency_alone_makes() -> None:
    """Both sets are drawn among frequent tokens: the plain null finds an overlap, that within strata does not."""
    rng, frequent = keys.generator(0), torch.arange(400) < 40
    notable, flipped = (frequent & torch.from_numpy(rng.random((50, 400)) < 0.5) for _ in range(2))
    universe, observed = torch.ones(400, dtype=torch.bool), (notable & flipped).sum(1)
    assert bool(stats.false_discovery(stats.overlap(notable, flipped, universe)).all())
    permuted = stats.permuted_overlaps(notable, flipped, universe, 500, key=0, strata=frequent.long())
    assert not stats.false_discovery(stats.permutation_p_values(observed, permuted)).any()


# ---- errors


@pytest.mark.parametrize(
    "attributed, reference, message",
    [
        ([1, 2], [1, 2, 3], r"attributed counts have shape \(2,\) and reference counts \(3,\); they must be"),
        ([1, 2], [[1, 2]], r"attributed counts have shape \(2,\) and reference counts \(1, 2\); they must be"),
        ([[1, 2], [0, -1]], [1, 2], r"the attributed count at \(1, 1\) is -1; counts must be finite"),
        ([1, math.nan], [1, 2], r"the attributed count at \(1,\) is nan; counts must be finite"),
        ([1, 2], [math.inf, 2], r"the reference count at \(0,\) is inf; counts must be finite"),
        ([0, 0], [0, 0], "the reference counts are all 0; they must be those of the whole training set"),
        ([[1, 0], [1, 3]], [1, 0], r"the attributed count at \(1, 1\) is 3, but token 1 has no reference count"),
    ],
)
@pytest.mark.parametrize("function", [stats.compare, *stats.STATISTICS.values()])
def test_bad_counts_are_named(
    unchecked: None, function: _statistics.Statistic, attributed: list[float], reference: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.tensor(attributed), torch.tensor(reference))


def test_an_unknown_statistic_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(ValueError, match="'tfidf' is no statistic; there are relative_frequency, count, .*log_odds"):
        stats.keyness(torch.ones(2), torch.ones(2), "tfidf")


@pytest.mark.parametrize("c, d, f", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (math.nan, 1, 1)])
def test_settings_out_of_range_are_named(c: float, d: int, f: int) -> None:
    with pytest.raises(ValueError, match=f"c, d and f are {c}, {d} and {f}; c must be above 0, d and f at least 1"):
        stats.univariate_heuristic(torch.ones(2), torch.ones(2), c, d, f)


@pytest.mark.parametrize("prior", [0, -1.0, math.inf])
def test_a_prior_that_is_none_is_named(prior: float) -> None:
    with pytest.raises(ValueError, match=f"prior is {prior}; it must be positive and finite"):
        stats.log_odds(torch.ones(2), torch.ones(2), prior=prior)


@pytest.mark.parametrize("bad", [-0.5, 1.5, math.nan])
def test_p_values_out_of_range_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match=r"p-values go from .* they must be in \[0, 1\]"):
        _testing.adjusted(torch.tensor([0.5, bad]))
