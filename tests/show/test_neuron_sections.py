"""Laws of the figure of skill: of each kind the best ranking is in it, over all units and in each."""

import math

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from devinterp_func.show import _neuron_sections, schema, tables

KINDS = ("record", "record and model", "model", "chance")
UNITS = ("layers.0.linear1.weight", "layers.0.linear2.weight", "layers.1.linear1.weight")
SCORE = st.floats(0, 1) | st.just(math.nan)
RANKING = st.tuples(st.sampled_from(KINDS), st.tuples(SCORE, SCORE, SCORE))


@settings(max_examples=60, deadline=None)
@given(st.lists(RANKING, min_size=1, max_size=25))
def test_the_best_of_each_kind_is_in_the_figure(rankings):
    rows = [
        dict.fromkeys(tables.SKILL.columns) | {"unit": u, "neurons": "all", "kind": kind, "ranking": f"r{i}", "MAP": x}
        for i, (kind, scores) in enumerate(rankings)
        for u, x in zip(UNITS, scores, strict=True)
    ]
    wide = tables.skill_by_unit(schema.frame(tables.SKILL, rows))
    shown = _neuron_sections.best_rankings(wide)
    assert len(shown) == len(set(shown)) and set(shown) <= set(wide["ranking"])
    for kind in KINDS:
        own = {f"r{i}": scores for i, (of, scores) in enumerate(rankings) if of == kind}
        means = {name: known_mean(scores) for name, scores in own.items() if known_mean(scores) is not None}
        best = [max(means.values())] if means else []
        assert all(any(means.get(name) == value for name in shown) for value in best)
        for u in range(len(UNITS)):
            known = [scores[u] for scores in own.values() if not math.isnan(scores[u])]
            if known:
                assert max(known) in [own[name][u] for name in shown if name in own]
        assert len(set(own) & set(shown)) <= _neuron_sections.RANKED + len(UNITS)


def known_mean(scores):
    known = pl.Series(scores, dtype=pl.Float64).fill_nan(None).drop_nulls()
    return known.mean() if len(known) else None
