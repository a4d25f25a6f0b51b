"""What moved the weights: shares that add up however rows are put together, and what the page says of them."""

import html
import re

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import recorded

from devinterp_func import keys, optim, records, training
from devinterp_func.optim import Sizes
from devinterp_func.records import SplitCourse
from devinterp_func.show import _split_sections, results, tables
from devinterp_func.show._written import formatter

UNITS = {"layers.0.linear1.weight": 2, "layers.1.linear1.weight": 2, "layers.0.linear1.bias": 1, "decoder.weight": 2}


def course(bins, n_steps, key=0):
    """Parts that are real vectors of 5 entries, step by step, and the table of their means in bins."""
    vectors = keys.uniform((n_steps, len(UNITS), 3, 5), -1.0, 1.0, key=key).double()
    along = (vectors * vectors.sum(2, keepdim=True)).sum(-1)
    edges = torch.tensor([-(-b * n_steps // bins) for b in range(bins + 1)])
    own = [slice(a, b) for a, b in zip(edges.tolist(), edges.tolist()[1:], strict=False)]
    sizes = torch.stack([(vectors[s] ** 2).sum(-1).mean(0).sqrt() for s in own])
    found = SplitCourse(edges, Sizes(sizes, torch.stack([along[s].mean(0) for s in own])))
    return vectors, tables.split_course_frame(found, UNITS)


@given(st.integers(1, 4), st.integers(4, 9), st.integers(0, 3))
def test_rows_put_together_are_the_shares_of_all_their_steps(bins, n_steps, key):
    vectors, table = course(bins, n_steps, key)
    change = vectors.sum(2)
    for unit, rows in ({None: slice(None)} | {name: slice(i, i + 1) for i, name in enumerate(UNITS)}).items():
        some = table if unit is None else table.filter(pl.col("unit") == unit)
        [found] = tables.split_shares(some, []).iter_rows(named=True)
        whole = (change[:, rows] ** 2).sum()
        for p, part in enumerate(tables.PARTS):
            own = vectors[:, rows, p]
            assert found[part] == pytest.approx(float((own * change[:, rows]).sum() / whole), rel=1e-9)
            assert found[f"{part} ÷ change"] == pytest.approx(float(((own**2).sum() / whole).sqrt()), rel=1e-9)
        assert found["change"] == pytest.approx(float((whole / n_steps).sqrt()), rel=1e-9)
        assert sum(found[part] for part in tables.PARTS) == pytest.approx(1)


def test_kinds_are_of_matrices_and_vectors_are_one_kind():
    _, table = course(2, 6)
    kinds = dict(tables.with_kinds(table).select("unit", "kind").iter_rows())
    assert list(kinds.values()) == ["linear1", "linear1", "biases and norms", "decoder"]
    by_kind = tables.split_shares(tables.with_kinds(table), ["kind"])
    assert by_kind["kind"].to_list() == ["linear1", "biases and norms", "decoder"]


def test_a_unit_that_did_not_change_has_no_shares():
    still = SplitCourse(torch.tensor([0, 2]), Sizes(*torch.zeros(2, 1, len(UNITS), 3).double()))
    shares = tables.split_shares(tables.split_course_frame(still, UNITS), ["unit"])
    assert shares["present"].to_list() == [None] * 4 and shares["change"].to_list() == [0.0] * 4


# ---- the page


def run_of(folder, optimizer, lr):
    recipe = training.Recipe(n_steps=6, batch_size=8, context=8, optimizer=optimizer, lr=lr)
    return recorded(folder / "run", recipe, records.Recording(k=3, snapshot_every=3))


def said(section):
    markup = section.lead + " ".join(map(str, section.items))
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup)))


def test_sgd_without_memory_is_said_in_a_line(tmp_path):
    run = run_of(tmp_path, optim.sgd(), 1.0)
    [section] = _split_sections.sections(run, tmp_path)
    assert not section.items and "All of every change is what the step's own data did" in said(section)
    assert _split_sections.present_words(run, tmp_path) == ""


def test_shares_of_a_run_with_memory_and_decay_are_on_the_page(tmp_path):
    run = run_of(tmp_path, optim.adamw(weight_decay=0.1, matrices_only=True), 0.01)
    assert _split_sections.sections(run, tmp_path) == []
    assert "read present shares, what each step's own data did. Past" in _split_sections.present_words(run, tmp_path)
    course = records.split_course(run.shards(), 60, run.n_steps)
    dimensions = {name: weight.ndim for name, weight in run.params().items()}
    results.write_table(tmp_path, "split_course", tables.split_course_frame(course, dimensions))
    [section] = _split_sections.sections(run, tmp_path)
    assert str(section.items).count("<svg") == 4  # two figures, each for a desk and a phone
    text = said(section)
    along = sum(record.split.along.double().sum(0) for record in run.steps())
    shares = along / along.sum()
    assert "AdamW (betas 0.9 and 0.999, eps 1e-08, weight decay 0.1 on matrices)" in text
    for part in range(3):
        assert formatter(".1%")(float(shares[part])) in text
    rows = [i for i, name in enumerate(dimensions) if name in run.shapes]
    own = sum(record.split.along.double()[rows].sum(0) for record in run.steps())
    present = f"{float(own[0] / own.sum()):.1%} of the captured units' change"
    assert present in _split_sections.present_words(run, tmp_path)
