"""Lifetimes as a command, its tables and its section: what is asked for, in numbers that are the library's own."""

import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from run_builders import PLANTED, contents, recorded

from devinterp_func import credit, keys, optim, records
from devinterp_func.credit import Lifetimes
from devinterp_func.models import Config, transformer
from devinterp_func.records import Recording
from devinterp_func.show import _lifetime_sections, page, results, tables
from devinterp_func.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import lifetime  # noqa: E402

PROBES = ("loss", "bigram:c00 c01")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    optimizer = optim.adamw(betas=(0.8, 0.9), weight_decay=0.1)
    recipe = Recipe(context=8, batch_size=4, n_steps=9, lr=0.01, optimizer=optimizer)
    model = transformer(Config(len(PLANTED.vocab), d_model=8, n_heads=2, d_hidden=6, n_layers=2))
    return recorded(tmp_path_factory.mktemp("runs") / "run", recipe, Recording(k=5, snapshot_every=4), model=model)


@pytest.fixture(scope="module")
def asked(run, tmp_path_factory):
    """Settings whose work is done, once."""
    out = tmp_path_factory.mktemp("out")
    found = lifetime.Settings(run.path, out, PROBES, start=2, stop=8, nodes=1, texts=3)
    lifetime.main(found)
    return found


@pytest.mark.parametrize(
    "given, message",
    [
        ({"probe": ("nonsense",)}, "names no probe; forms are"),
        ({"start": 9}, "steps 9 to 9 were asked for; .* has 9 recorded steps"),
        ({"stop": 10}, "steps 0 to 10"),
        ({"nodes": 0}, "nodes is 0; it must be at least 1"),
        ({"texts": 0}, "texts is 0"),
        ({"block": 0}, "block is 0; it must be at least 1"),
    ],
)
def test_arguments_are_checked_before_any_work(run, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        lifetime.main(lifetime.Settings(run.path, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_its_books_are_the_librarys_and_balance(run, asked):
    found = records.read_walk(asked.out / "lifetime-loss-bigram-c00-c01-2-8", Lifetimes)
    books = results.read_table(asked.out, "lifetimes", tables.LIFETIMES)
    key = keys.Key(0, ("lifetime",))
    assert books.select(*tables.LEDGER_KEY).rows() == [(name, 2, 8, 1, 3, 0) for name in PROBES]
    for i, row in enumerate(books.iter_rows(named=True)):
        probe = credit.parse_probe(row["probe"], run, key=keys.Key(0, ("ledger",)), n=3)
        for end, step in (("at the start", 2), ("at the end", 8)):
            assert row[end] == pytest.approx(float(probe.value(run.params(step))), rel=1e-5)
        parts = ("lifetimes", "decay", "entering", "missed", "unexplained")
        assert sum(row[name] for name in parts) == pytest.approx(row["at the end"] - row["at the start"], abs=1e-12)
        assert row["entering"] != 0 and abs(row["unexplained"]) < 1e-5
        amounts = found.present[:, i].sum(-1), found.lifetime[:, i].sum(-1)
        expected = credit.rank_agreement({"present": amounts[0]}, amounts[1], key=key)["present"]
        assert [row[name] for name in ("rank correlation", "low", "high", "steps")] == list(expected)
        assert row["present"] == pytest.approx(float(amounts[0].sum()))


def test_its_texts_are_the_librarys(asked):
    found = records.read_walk(asked.out / "lifetime-loss-bigram-c00-c01-2-8", Lifetimes)
    texts = results.read_table(asked.out, "lifetime_texts", tables.LIFETIME_TEXTS)
    for i, name in enumerate(PROBES):
        rows = texts.filter(pl.col("probe") == name)
        assert rows["data"].unique().to_list() == [len(found.datum.unique())]
        changed = rows.filter(pl.col("why") == "changed place")
        assert changed["datum"].to_list() == [text.datum for text in credit.changed_places(found, i)]
        lived = rows.filter(pl.col("why") != "changed place")
        for row, text in zip(lived.iter_rows(named=True), credit.most_lived(found, i), strict=True):
            assert (row["datum"], row["steps"], row["position"]) == (text.datum, text.steps, text.position)
            assert (row["present place"], row["lifetime place"]) == (text.present_place, text.lifetime_place)
            assert row["credits"] == text.lifetime.tolist()
            assert row["lifetime"] == pytest.approx(sum(row["credits"]), abs=1e-12)
            assert row["why"] == ("raised" if row["lifetime"] > 0 else "lowered")


def test_it_is_done_once_and_other_spans_add_their_rows(run, asked, monkeypatch, capsys):
    before, tables_before = contents(asked.out), {n: results.read_table(asked.out, n) for n in tables.LIFETIME_TABLES}
    monkeypatch.setattr(records.Run, "moves", None)  # nothing is replayed again
    lifetime.main(replace(asked, block=2))
    assert contents(asked.out) == before
    said = capsys.readouterr().out
    assert "loss, steps 2 to 8: its change is" in said and "rank correlation with lifetimes, median:" in said
    monkeypatch.undo()
    lifetime.main(replace(asked, probe=("norm:layers.1.linear2.weight:2",), stop=4, scratch=asked.out))
    for name, table in tables_before.items():
        now = results.read_table(asked.out, name)
        assert now.head(len(table)).equals(table) and set(now["probe"]) - set(PROBES)
        results.write_table(asked.out, name, table)
    assert sorted(path.name for path in asked.out.iterdir() if path.is_dir()) == [
        "lifetime-loss-bigram-c00-c01-2-8",
        "lifetime-norm-layers.1.linear2.weight-2-2-4",
    ]


def test_a_report_has_a_section_of_all_and_one_of_each_probe(run, asked, tmp_path):
    assert _lifetime_sections.sections(run, tmp_path) == []
    found = _lifetime_sections.sections(run, asked.out)
    assert [section.title for section in found] == ["Lifetimes", "Lifetimes: loss", "Lifetimes: bigram:c00 c01"]
    html = page.page("page", "of a run", found)
    texts = results.read_table(asked.out, "lifetime_texts", tables.LIFETIME_TEXTS)
    for row in texts.filter((pl.col("why") != "changed place") & (pl.col("rank") <= 6)).iter_rows(named=True):
        place = f"place {row['lifetime place']}, by present credit {row['present place']}, of {row['data']}"
        assert f"datum {row['datum']:,}: {page.shown(row['lifetime'])}; {place}" in html
    assert "change place most" in html and "in the median step" in html
