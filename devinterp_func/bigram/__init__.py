"""The bigram decoder W_U W_Eᵀ, its exact shifts, and the corpus' statistics it is held against."""

from devinterp_func.bigram._classes import CLASSES, ClassTexts, class_losses, class_texts, token_classes
from devinterp_func.bigram._corpus import (
    PairCounts,
    Pairs,
    characteristic_pairs,
    count_pairs,
    pair_counts,
    pair_log_odds,
    seen_pairs,
    shuffled_pairs,
    unseen_pairs,
)
from devinterp_func.bigram._correlations import SEEN_AND_UNSEEN, Correlation, Fit, correlations, pair_sets
from devinterp_func.bigram._decoder import decoder, entries, shift
from devinterp_func.bigram._follow import Followed, follow
from devinterp_func.bigram._net import RANKED, NetChange, net_changes
from devinterp_func.bigram._search import Certificate, TopShifts, top_shifts
from devinterp_func.bigram._shifts import Shifts, datum_split, shifts, telescope
from devinterp_func.bigram._spans import (
    LargeShift,
    Span,
    SpanCauses,
    SpanSummary,
    largest_shifts,
    span_causes,
    span_summary,
    spans,
)
from devinterp_func.bigram._units import DecoderUnits, capture_units, decoder_matrices, decoder_units, embedding_scale

__all__ = [
    "CLASSES",
    "Certificate",
    "ClassTexts",
    "Correlation",
    "DecoderUnits",
    "Fit",
    "Followed",
    "LargeShift",
    "NetChange",
    "PairCounts",
    "Pairs",
    "RANKED",
    "SEEN_AND_UNSEEN",
    "Shifts",
    "Span",
    "SpanCauses",
    "SpanSummary",
    "TopShifts",
    "capture_units",
    "characteristic_pairs",
    "class_losses",
    "class_texts",
    "correlations",
    "count_pairs",
    "datum_split",
    "decoder",
    "decoder_matrices",
    "decoder_units",
    "embedding_scale",
    "entries",
    "follow",
    "largest_shifts",
    "net_changes",
    "pair_counts",
    "pair_log_odds",
    "pair_sets",
    "seen_pairs",
    "shift",
    "shifts",
    "shuffled_pairs",
    "span_causes",
    "span_summary",
    "spans",
    "telescope",
    "token_classes",
    "top_shifts",
    "unseen_pairs",
]
