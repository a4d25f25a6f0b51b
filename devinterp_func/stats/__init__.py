"""Statistics: keyness of tokens, tests and false discovery, ranking metrics, bootstrap, change points, correlations."""

from devinterp_func.stats._bootstrap import (
    Contrast,
    Estimate,
    bootstrap,
    by_group,
    compare_scores,
    mean_average_precision,
    share,
)
from devinterp_func.stats._change_points import (
    LEAST,
    Agreement,
    Cut,
    Null,
    Points,
    agreement,
    cut,
    placed_points,
    rotated_points,
    smooth_course,
    standardise,
)
from devinterp_func.stats._correlation import correlation, correlations, rank_correlation, rank_correlations
from devinterp_func.stats._dips import Dip, Noise, find_dip, noise_courses
from devinterp_func.stats._keyness import (
    Comparison,
    as_set,
    compare,
    keyness,
    notable_tokens,
    token_counts,
    univariate_heuristic,
)
from devinterp_func.stats._matched import matched_p_values
from devinterp_func.stats._ranking import average_precision, precision_at, rank_product
from devinterp_func.stats._statistics import STATISTICS, log_likelihood, log_odds, relative_frequency
from devinterp_func.stats._testing import false_discovery, overlap, permutation_p_values, permuted_overlaps

__all__ = [
    "Agreement",
    "Comparison",
    "Contrast",
    "Cut",
    "Dip",
    "Estimate",
    "LEAST",
    "Noise",
    "Null",
    "Points",
    "STATISTICS",
    "agreement",
    "as_set",
    "average_precision",
    "bootstrap",
    "by_group",
    "compare",
    "compare_scores",
    "correlation",
    "correlations",
    "cut",
    "false_discovery",
    "find_dip",
    "keyness",
    "log_likelihood",
    "log_odds",
    "matched_p_values",
    "mean_average_precision",
    "noise_courses",
    "notable_tokens",
    "overlap",
    "permutation_p_values",
    "permuted_overlaps",
    "placed_points",
    "precision_at",
    "rank_correlation",
    "rank_correlations",
    "rank_product",
    "relative_frequency",
    "rotated_points",
    "share",
    "smooth_course",
    "standardise",
    "token_counts",
    "univariate_heuristic",
]
