"""Laws of ledger_report.py: what the tables say stands on the page, in colours within bounds; the rest is left out."""

import re

import polars as pl
import pytest

from devinterp_func import ledger_report, report, results

HOSTILE = '<b>"2003"</b>'
PATTERNS = ("previous", "bracket")


def write_ledger(folder, stem="ledger-00aa", probes=("loss", "bigram:c00 null"), start=0):
    """Three windows of 10, 10 and 5 steps, a text of each effect, and two tokens, for each probe."""
    course = {"step": [start, start + 10, start + 20], "steps": [10, 10, 5], "value": [5.0, 4.0, 3.5]}
    course |= {"raised": [1.0, 0.5, 0.25], "lowered": [-2.0, -0.75, -0.5], "residual": [0.0, -0.25, 0.125]}
    course |= {"missed": [0.0, 0.25, 0.25], "change": [1.0, 1.0, 0.5]}
    text = {"position": [0, 1, 2], "token": ["null", HOSTILE, "2003"], "target": [HOSTILE, "2003", "1.50"]}
    frames = {"courses": [pl.DataFrame(course)], "excerpts": [], "tokens": [], "inputs": []}
    for effect, credit in (("raised", [3.0, -1.0, 0.0]), ("lowered", [-8.0, 4.0, 2.0])):
        of = {"effect": effect, "rank": 1, "datum": 7, "steps": 2}
        whole = [pl.lit(value).alias(column) for column, value in of.items()]
        frames["excerpts"].append(pl.DataFrame(text | {"credit": credit}).select(*whole, pl.all()))
    frames["tokens"].append(pl.DataFrame({"target": ["2003", HOSTILE], "credit": [2.0, -4.0], "positions": [4, 2]}))
    shares = {"share of gross": [0.75, 0.25], "share of positions": [0.5, 0.5], "positions": [3, 3]}
    inputs = {"input": [HOSTILE, "null"], "credit": [1.0, -1.0], "gross": [3.0, 1.0]}
    frames["inputs"].append(pl.DataFrame(inputs | shares))
    for what, parts in frames.items():
        own = [part.select(pl.lit(name).alias("probe"), pl.all()) for name in probes for part in parts]
        results.write_table(folder, f"{stem}_{what}", pl.concat(own))


def heads_table(steps=(0, 10, 20)):
    heads = [(layer, head) for layer in range(2) for head in (0, 1, 10)]
    rows = [
        {"pattern": pattern, "head": f"{layer}.{head}", "step": step, "queries": 9, "attention": 0.5}
        | {"by distance": 0.25, "above": (layer + head) * step * (1 if pattern == "bracket" else -1) / 1000}
        for step in steps
        for pattern in PATTERNS
        for layer, head in heads
    ]
    return pl.DataFrame(rows)


def html(sections):
    return report.page("page", "of a run", sections)


def test_an_empty_folder_has_no_sections(tmp_path):
    assert ledger_report.sections(tmp_path) == []


def test_a_ledger_has_an_overview_and_a_section_for_each_probe(tmp_path):
    write_ledger(tmp_path)
    found = ledger_report.sections(tmp_path, per_epoch=12)
    assert [section.title for section in found] == ["Credits", "Credits: loss", "Credits: bigram:c00 null"]
    loss, bigram = (html([section]) for section in found[1:])
    assert "orange helped" in loss and "orange helped" not in bigram
    for page in (loss, bigram):
        assert all(f"<dd>{value}" in page.replace("\n", "") for value in ("5.00", "3.38", "1.75", "−3.25", "20.00%"))


def test_several_ledgers_are_told_once_each(tmp_path):
    write_ledger(tmp_path)
    write_ledger(tmp_path, "ledger-00bb", probes=("loss", "norm:layers.0.linear2.weight:3"))
    write_ledger(tmp_path, "ledger-00cc", probes=("loss",), start=100)
    found = ledger_report.sections(tmp_path)
    titles = ["loss", "bigram:c00 null", "norm:layers.0.linear2.weight:3", "loss"]
    assert [section.title for section in found] == ["Credits", *(f"Credits: {title}" for title in titles)]
    assert found[-1].lead == "Steps 100 to 125."


def test_colours_are_relative_to_each_texts_largest_credit_and_tokens_are_literal(tmp_path):
    write_ledger(tmp_path, probes=("loss",))
    page = html(ledger_report.sections(tmp_path)[1:])
    assert HOSTILE not in page
    literal = "&lt;b&gt;&#34;2003&#34;&lt;/b&gt;"
    assert f'<span class="plus" style="--v:1.00" title="+1.00">{literal}</span>' in page
    assert f'<span class="minus" style="--v:1.00" title="-1.00">{literal}</span>' in page
    assert '<span class="minus" style="--v:0.33" title="-0.33">2003</span>' in page
    assert '<span class="plus" style="--v:0.25" title="+0.25">1.50</span>' in page
    assert "datum 7, in 2 steps: credit 2.00" in page and "datum 7, in 2 steps: credit −2.00" in page


def test_a_text_without_credit_has_no_colour(tmp_path):
    write_ledger(tmp_path, probes=("loss",))
    texts = results.read_table(tmp_path, "ledger-00aa_excerpts")
    results.write_table(tmp_path, "ledger-00aa_excerpts", texts.with_columns(credit=pl.lit(0.0)))
    assert 'style="--v' not in html(ledger_report.sections(tmp_path)[1:])


def test_a_summary_ends_where_the_books_lead(tmp_path):
    write_ledger(tmp_path)
    [loss, _] = ledger_report.summary(results.read_table(tmp_path, "ledger-00aa_courses")).iter_rows(named=True)
    assert (loss["from step"], loss["steps"], loss["start"]) == (0, 25, 5.0)
    assert loss["end"] == pytest.approx(3.5 + 0.25 - 0.5 + 0.125)
    assert (loss["raised"], loss["lowered"], loss["missed"]) == pytest.approx((1.75, -3.25, 0.2))


def test_the_farthest_heads_are_those_of_a_sort(tmp_path):
    results.write_table(tmp_path, "heads", heads_table())
    table = results.read_table(tmp_path, "heads")
    assert "0.10" in set(table["head"])  # not 0.1, another head
    best = ledger_report.farthest(table, 20, 2)
    assert best.filter(pl.col("pattern") == "bracket")["head"].to_list() == ["1.10", "0.10"]
    assert best.filter(pl.col("pattern") == "previous")["head"].to_list() == ["0.0", "0.1"]
    assert list(ledger_report.head_figures(table)) == ["heads_previous", "heads_bracket"]
    page = html(ledger_report.sections(tmp_path))
    assert "1.10: +0.220" in page and "0.0: +0.000" in page and "head 1.10" in page


def test_trust_shows_shares_and_goes_without_agreement(tmp_path):
    estimates = {"gradient at the start": 1.5, "Gauss-Legendre, 3": 0.0625}
    rows = [
        {"probe": probe, "estimate": estimate, "missed": missed, "low": 0.0, "high": 2.0, "Σ|Δf|": 3.0, "steps": 6}
        for probe in ("loss", "next word")
        for estimate, missed in estimates.items()
    ]
    results.write_table(tmp_path, "balance", pl.DataFrame(rows))
    [section] = ledger_report.sections(tmp_path)
    assert len(section.items) == 2 and "150.0%" in html([section])
    agreement = {"probe": ["loss"], "score": ["credit"], "median": [0.875], "low": [0.5], "high": [1.0], "steps": [6]}
    results.write_table(tmp_path, "agreement", pl.DataFrame(agreement))
    [section] = ledger_report.sections(tmp_path)
    assert len(section.items) == 3 and "0.875" in html([section])


def test_other_tables_stand_in_their_sections_and_raw_ones_are_left_out(tmp_path):
    for name in ("growth_units", "growth-000020_units", "retrain_10_25", "retrain_10_25_outcomes", "planted_cause"):
        results.write_table(
            tmp_path, name, pl.DataFrame({"what": [f"in {name}"], "new column": [1.5], "what, by input": "x"})
        )
    found = ledger_report.sections(tmp_path)
    assert [(section.title, len(section.items)) for section in found] == [
        ("What built the neurons", 2),
        ("Trained again", 1),
        ("A known cause", 1),
    ]
    assert "in growth-000020_units" in html(found) and not any(word in html(found) for word in ("outcomes", "by input"))


@pytest.mark.parametrize("steps", [None, "10", "10, 20"])
def test_phases_are_drawn_with_their_change_points(tmp_path, steps):
    windows = {"run": ["a"] * 3, "units": ["all"] * 3, "step": [0, 10, 20]}
    windows |= {name: [5.0, 4.0, 3.0] for name in (*ledger_report.phase_tables.LOSSES, "effective data")}
    results.write_table(tmp_path, "phases_windows", pl.DataFrame(windows))
    results.write_table(tmp_path, "phases_changes", pl.DataFrame({"run": "a", "series": "all", "at steps": [steps]}))
    [section] = ledger_report.sections(tmp_path)
    marks = len(steps.split(", ")) if steps else 0
    assert [item.count("stroke-dasharray") for item in section.items] == [2 * marks, 2 * marks, 0]


def test_words_with_amounts_stand_apart_even_commas(tmp_path):
    built = "the +1.5e-05, , +2, 1 +0.5"
    results.write_table(tmp_path, "growth_neurons", pl.DataFrame({"neuron": ["a", "b"], "built by": [built, None]}))
    page = html(ledger_report.sections(tmp_path))
    assert re.findall(r'class="chip[^>]*>([^<]+)<', page) == ["the +1.5e-05", ", +2", "1 +0.5"]
