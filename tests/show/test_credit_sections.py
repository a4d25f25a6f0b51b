"""Sections of credits, heads and trust: what the tables say stands on the page, in colours within bounds."""

import re

import polars as pl
import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from run_builders import recorded

from devinterp_func.credit import Completeness, Entries, Precision
from devinterp_func.credit.patterns import HeadAttention
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import _credit_sections, page, results, schema, tables
from devinterp_func.stats import Estimate
from devinterp_func.text import Corpus, Vocab
from devinterp_func.training import Recipe

HOSTILE = '<b>"2003"</b>'
VOCAB = Vocab(("<unk>", HOSTILE, "null", "2003", "1.50"))
STREAM = torch.tensor([2, 1, 3, 4, 1, 3, 2, 3, 1, 4])  # data 2 1 3, 4 1 3, 2 3 1; each predicts the next
PROBES = ("loss", "bigram:null 2003")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    corpus, config = Corpus("hostile", VOCAB, STREAM, STREAM, STREAM), Config(len(VOCAB), 4, 2, 4, 1)
    recipe = Recipe(context=3, batch_size=1, n_steps=3, epochs=1)
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=3), corpus, transformer(config))


def entries(start=0, probes=2, past=0.0, decay=0.0):
    """Three steps of a datum each: datum 0 raises by 3 − 1, datum 1 lowers by 8 − 4 − 2, datum 2 does nothing."""
    credit = torch.tensor([[3.0, -1.0, 0.0], [-8.0, 4.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    credit = credit[:, None, None].expand(3, probes, 1, 3)
    before = torch.tensor([5.0, 7.25, 5.0], dtype=torch.float64)[:, None].expand(3, probes)
    after = torch.tensor([7.25, 5.0, 5.5], dtype=torch.float64)[:, None].expand(3, probes)
    step, datum = torch.arange(start, start + 3), torch.tensor([[0], [1], [2]])
    rest = torch.tensor([past, decay], dtype=torch.float64)[:, None, None].expand(2, 3, probes)
    unasked = torch.full_like(credit, torch.nan), *rest, *torch.full_like(rest, torch.nan)
    return Entries(step, datum, before, after + past + decay, credit, credit, *unasked)


def write_ledger(run, folder, probes=PROBES, key=tables.LedgerKey(0, 3, 3, 20, 0), start=0, **rest):  # noqa: B008
    frames = tables.ledger_frames(entries(start, len(probes), **rest), probes, key, run.data, len(VOCAB), every=2)
    for name, kind in tables.LEDGER_TABLES.items():
        results.add_rows(folder, name, kind, frames[name])


def html(sections):
    return page.page("page", "of a run", sections)


def spied(monkeypatch, name, module=_credit_sections.plots, result=Figure):
    """What a function is called with from now on."""
    calls = []

    def spy(*given, **named):
        calls.append(given)
        return result()

    monkeypatch.setattr(module, name, spy)
    return calls


def test_an_empty_folder_has_no_sections(run, tmp_path):
    assert _credit_sections.sections(run, tmp_path) == []


def test_a_ledger_has_an_overview_and_a_section_for_each_probe(run, tmp_path):
    write_ledger(run, tmp_path)
    found = _credit_sections.sections(run, tmp_path)
    assert [section.title for section in found] == ["Credits", "Credits: loss", "Credits: bigram:null 2003"]
    loss, bigram = (html([section]) for section in found[1:])
    assert "orange helped" in loss and "orange helped" not in bigram
    for shown in (loss, bigram):
        assert HOSTILE not in shown and "&lt;b&gt;" in shown
        assert "datum 1, in 1 step: credit −2.00" in shown and "datum 0, in 1 step: credit 2.00" in shown
        assert "datum 2" not in shown


def test_an_excerpt_colours_each_target_by_its_credit_relative_to_the_largest(run, tmp_path):
    write_ledger(run, tmp_path)
    table = results.read_table(tmp_path, "ledger_texts", tables.LEDGER_TABLES["ledger_texts"])
    raised, lowered = (
        _credit_sections._excerpt(run, row) for row in table.filter(pl.col("probe") == "loss").iter_rows(named=True)
    )
    assert [word.text for word in raised.words] == ["null", HOSTILE, "2003", "1.50"]
    assert [word.value for word in raised.words] == [0.0, 1.0, -1 / 3, 0.0]
    assert [word.text for word in lowered.words] == ["1.50", HOSTILE, "2003", "null"]
    assert [word.value for word in lowered.words] == [0.0, -1.0, 0.5, 0.25]


def test_a_probe_starts_ends_and_misses_what_its_steps_say(run, tmp_path):
    write_ledger(run, tmp_path)
    [_, loss, _] = _credit_sections.sections(run, tmp_path)
    shown = html([loss])
    assert re.search(r"at the start.*5\.00.*at the end.*5\.50.*raised by.*2\.00.*lowered by.*−2\.00", shown, re.S)
    missed = (0.25 + 0.25 + 0.5) / (2.25 + 2.25 + 0.5)
    assert f"{missed:.2%}" in shown


def test_past_and_decay_are_shown_where_there_are_any(run, tmp_path, monkeypatch):
    write_ledger(run, tmp_path / "without")
    whole, loss, _ = _credit_sections.sections(run, tmp_path / "without")
    assert "memory" not in html([loss]) and ">decay<" not in html([whole])
    write_ledger(run, tmp_path / "with", past=1.25, decay=-0.5)
    whole, loss, _ = _credit_sections.sections(run, tmp_path / "with")
    shown = html([loss])
    assert re.search(r"past.*3\.75.*through the optimizer.*decay.*−1\.50.*weight decay", shown, re.S)
    assert "Dashed, past and decay" in shown and re.search(r"past.*decay.*3\.75.*−1\.50", html([whole]), re.S)
    named = []

    def credit_bands(*given, rest):
        named.append((given[1], rest))
        return Figure()

    monkeypatch.setattr(_credit_sections.plots, "credit_bands", credit_bands)
    table = results.read_table(tmp_path / "with", "ledger_courses", tables.LEDGER_TABLES["ledger_courses"])
    _credit_sections.course_figure(table.filter(pl.col("probe") == "loss"))
    [(value, rest)] = named
    assert rest.tolist() == [1.5, 0.75] and value.tolist() == pytest.approx([5.0, 5.0, 6.25])


def test_only_the_longest_of_a_ledger_is_shown_and_other_ledgers_beside_it(run, tmp_path):
    write_ledger(run, tmp_path, PROBES[:1])
    write_ledger(run, tmp_path, PROBES[:1], tables.LedgerKey(0, 2, 3, 20, 0))
    write_ledger(run, tmp_path, PROBES[:1], tables.LedgerKey(0, 3, 2, 20, 0))
    found = _credit_sections.sections(run, tmp_path)
    assert [section.lead for section in found[1:]] == [
        "Steps 0 to 3; 3 nodes of the quadrature; texts of seed 0.",
        "Steps 0 to 3; 2 nodes of the quadrature; texts of seed 0.",
    ]


def test_a_course_ends_where_the_last_window_leads(run, tmp_path, monkeypatch):
    drawn = spied(monkeypatch, "credit_bands")
    write_ledger(run, tmp_path)
    table = results.read_table(tmp_path, "ledger_courses", tables.LEDGER_TABLES["ledger_courses"])
    _credit_sections.course_figure(table.filter(pl.col("probe") == "loss"), 12, 3.0)
    [(edges, value, raised, lowered, name, per_epoch, width)] = drawn
    assert edges.tolist() == [0, 2, 3] and value.tolist() == [5.0, 5.0, 5.5]
    assert raised.tolist() == [2.0, 0.0] and lowered.tolist() == [-2.0, 0.0]
    assert (name, per_epoch, width) == ("loss", 12, 3.0)


def test_only_the_first_texts_of_either_effect_are_shown(run, tmp_path):
    write_ledger(run, tmp_path, PROBES[:1])
    table = results.read_table(tmp_path, "ledger_texts", tables.LEDGER_TABLES["ledger_texts"])
    raised = pl.concat(
        [table.filter(pl.col("effect") == "raised").with_columns(rank=pl.lit(i)) for i in range(9, 0, -1)]
    )
    [shown] = _credit_sections._texts(run, raised.with_columns(datum=pl.col("rank") % 3), "norm", most=2)
    assert re.findall(r"datum (\d)", shown) == ["1", "2"]


def test_targets_stand_by_their_effect_with_their_credit_per_position(run, monkeypatch):
    calls = spied(monkeypatch, "typed_table", _credit_sections.page, Markup)
    kind = tables.LEDGER_TABLES["ledger_tokens"]
    rows = [(1, 2.0, 4), (2, 6.0, 2), (3, -1.0, 2), (4, -5.0, 10)]
    key = {"probe": "loss", **tables.LedgerKey(0, 3, 3, 20, 0)._asdict()}
    frame = schema.frame(kind, [{**key, "target": v, "credit": c, "positions": n} for v, c, n in rows])
    assert len(list(_credit_sections._targets(run, frame))) == 2
    raised, lowered = (given[0].rows() for given in calls)
    assert raised == [(2, 6.0, 2, 3.0), (1, 2.0, 4, 0.5)]
    assert lowered == [(4, -5.0, 10, -0.5), (3, -1.0, 2, -0.5)]


# ---- heads


def heads_table():
    """Two patterns at three snapshots; heads far from the others in opposite orders."""
    rows = []
    for step in (0, 10, 20):
        for pattern, sign in (("previous", -1), ("bracket", 1)):
            above = torch.tensor([[0.0, 0.01, 0.02], [0.01, 0.02, 0.03]]) * step * sign
            rows += tables.head_rows(pattern, step, HeadAttention(0.5 + above, torch.full((2, 3), 0.5), 9))
    return tables.head_frame(rows)


def test_heads_have_the_farthest_and_a_figure_for_each_pattern(run, tmp_path):
    results.write_table(tmp_path, "heads", heads_table())
    [section] = _credit_sections.sections(run, tmp_path)
    shown = html([section])
    assert section.title == "What heads attend to" and "before step 20" in shown
    assert list(_credit_sections.head_figures(heads_table())) == ["previous", "bracket"]
    assert "head 1.2" in shown and len(section.items) == 4


def test_the_last_snapshots_farthest_heads_come_first_then_the_best_on_the_way(run, tmp_path, monkeypatch):
    results.write_table(tmp_path, "heads", heads_table())
    calls = spied(monkeypatch, "typed_table", _credit_sections.page, Markup)
    _credit_sections.head_section(run, tmp_path)
    last, way = (given[0] for given in calls)
    assert last["step"].unique().to_list() == [20]
    assert last.filter(pl.col("pattern") == "bracket")["head"].to_list() == ["1.2", "0.2", "1.1"]
    assert way["step"].to_list() == [0, 0, 10, 10, 20, 20]
    assert way.filter((pl.col("pattern") == "bracket") & (pl.col("step") > 0))["head"].to_list() == ["1.2", "1.2"]


def test_a_patterns_figure_has_its_four_farthest_heads_over_training(monkeypatch):
    drawn = spied(monkeypatch, "lines")
    _credit_sections.head_figures(heads_table())
    previous, bracket = (series for series, *_ in drawn)
    assert list(bracket) == ["head 1.2", "head 0.2", "head 1.1", "head 0.1"]
    assert list(previous)[0] == "head 0.0" and len(previous) == 4
    steps, above = bracket["head 1.2"]
    assert steps.tolist() == [0, 10, 20] and above.tolist() == pytest.approx([0.0, 0.3, 0.6], abs=1e-6)


# ---- trust


def test_trust_shows_shares_and_goes_without_agreement(run, tmp_path):
    estimates = [Estimate(1.5, 0.5, 2.0, 6), Estimate(0.0625, 0.05, 0.07, 6)]
    change = torch.tensor([3.0])
    found = [Completeness("gradient at the start", None, estimates[:1], change)]
    found.append(Completeness("credit", 3, estimates[1:], change))
    results.write_table(tmp_path, "completeness", tables.completeness_frame(found, ["loss"]))
    [section] = _credit_sections.sections(run, tmp_path)
    shown = html([section])
    assert len(section.items) == 2 and "150.0%" in shown and "credit, 3 nodes" in shown and "6.2%" in shown
    agreement = tables.agreement_frame({"loss": {"step rerun": {"credit": Estimate(0.875, 0.5, 1.0, 6)}}})
    results.write_table(tmp_path, "agreement", agreement)
    [section] = _credit_sections.sections(run, tmp_path)
    assert len(section.items) == 3 and "0.875" in html([section]) and "step rerun" in html([section])


def test_known_causes_stand_in_a_section(run, tmp_path):
    table = tables.planted_cause_frame([Precision("credit", 10, Estimate(0.9375, 0.75, 1.0, 30))], 0.125)
    results.write_table(tmp_path, "planted_cause", table)
    [section] = _credit_sections.sections(run, tmp_path)
    assert section.title == "A known cause" and "0.938" in html([section])
