"""The results that are committed: this version reads them, and what their README says is what the tables say."""

import hashlib
import json
import re
from pathlib import Path

import polars as pl
import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func import batches, models, records
from devinterp_func.records._described import read_recipe
from devinterp_func.show import (
    _influence_sections,
    _judge_sections,
    _lifetime_sections,
    _report,
    _summary,
    page,
    plots,
    results,
    tables,
    words,
)
from devinterp_func.text import Corpus, Vocab

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
POST, DOCS = RESULTS / "post-avx2", RESULTS / "phases-python-docs"
README = (RESULTS / "README.md").read_text()
TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)
SCORES = ("credit", "gradient at the start", "random")
LAST = "layers.2.linear2.weight"


def names(folder):
    return {path.stem for path in folder.glob("*.parquet")}


def manifest():
    """What the committed run says it is: of format 2, whose tables this version reads."""
    return json.loads((POST / "manifest.json").read_text())


def recipe_of(body):
    """Of a format that knew SGD alone, as the page reads it."""
    return read_recipe(words.in_full(body["recipe"]))


def stand_in(body):
    """The run as far as its manifest tells: its text is blank, its words are numbers."""
    vocab = Vocab(("<unk>", *(f"w{i}" for i in range(1, body["config"]["vocab_size"]))))
    blank = torch.zeros(body["corpus"]["train"], dtype=torch.int64)
    corpus, recipe = Corpus("blank", vocab, blank, blank, blank), recipe_of(body)
    shapes = {name: tuple(shape) for name, shape in body["units"]}
    recording = records.Recording(**body["recording"] | {"units": tuple(body["recording"]["units"])})
    data = records.Dataset(batches.chunk(blank, recipe.context), name=corpus.name, corpus=corpus)
    model = models.transformer(models.Config(**body["config"]))
    said = body | {"model": model.source | {"name": model.name}}
    return records.Run(POST, said, recipe, recording, data, shapes, body["device"], given=model)


@pytest.fixture(scope="module")
def read():
    """Every table of ``post`` that the page's sections read: its name, kind and rows. Nothing is drawn."""
    found, read_table = {}, results.read_table

    def remembered(folder, name, kind=None):
        assert kind is not None, f"{name} is read without its kind"
        found[name] = kind, read_table(folder, name, kind)
        return found[name][1]

    run = stand_in(manifest())
    with pytest.MonkeyPatch.context() as patch:
        for name in plots.__all__:
            if callable(getattr(plots, name)):
                patch.setattr(plots, name, lambda *args, **options: Figure())
        patch.setattr(page, "figure", lambda *args, **options: Markup(""))
        patch.setattr(results, "read_table", remembered)
        patch.setattr(results, "read_arrays", lambda *args: {"by_parameter": torch.zeros(720_000, dtype=torch.int64)})
        for topic in _report.TOPICS[1:]:  # the first one shows the run itself; without memory there are no lifetimes
            absent = topic in (_lifetime_sections, _influence_sections, _judge_sections)
            assert bool(topic.sections(run, POST)) != absent, topic
    return found


def test_the_page_reads_every_table_of_the_run(read):
    assert read.keys() == names(POST) - {"evaluations"}  # which the page takes from the run


@pytest.mark.parametrize("name", ["post-avx2", "modern"])
def test_they_are_summed_up_in_a_few_sentences(name):
    found = _summary.findings(stand_in(manifest()), POST.parent / name)
    said = [finding.section for finding in found]
    assert 3 <= len(found) <= 8 and said == [section for section in _summary.TOPICS if section in said]
    assert not re.search(r"\b(nan|None|null)\b|–", " ".join(finding.text for finding in found))


def test_tables_of_phases_are_those_of_this_version():
    kinds = {f"phases_{name}": kind for name, kind in tables.PHASE_TABLES.items()}
    assert names(DOCS) <= kinds.keys()
    for name in names(DOCS):
        assert results.read_table(DOCS, name, kinds[name]).height


def test_token_ids_are_those_of_the_vocabulary(read):
    size = manifest()["config"]["vocab_size"]
    for name, (kind, frame) in read.items():
        for column, about in kind.columns.items():
            if about.token:
                ids = frame[column].explode().drop_nulls()
                assert ids.is_between(0, size - 1).all(), (name, column)


# ---- what the README says


def one(read, name, **where):
    """The row of a table that has these values."""
    return read[name][1].row(by_predicate=pl.all_horizontal(pl.col(c) == v for c, v in where.items()), named=True)


def says(*texts):
    """Numbers of the tables, written as in the README, where they stand."""
    plain = " ".join(README.replace("*", "").split())
    for text in texts:
        assert text in plain, f"the README does not say {text!r}"


def interval(row, value, digits=3):
    return f"{row[value]:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def test_notable_shares(read):
    row = one(read, "sublayers", unit=LAST)
    assert (round(row["notable share"], 3), round(row["notable share, random neurons"], 3)) == (0.215, 0.028)
    says(f"| {row['notable share']:.3f}; {row['notable share, random neurons']:.3f} |")
    says(f"{row['notable share']:.1%}".replace("%", " %"))
    verdicts = read["verdicts"][1]
    says(f"{verdicts['attributed'].sum()} of {len(verdicts)} at a false discovery rate of 5 %")
    best = one(read, "verdicts", neuron=f"{LAST}:193")
    assert best["notable and flipped"] == len(best["both"]) == 8


@pytest.mark.parametrize(
    ("said", "kind", "ranking", "expected"),
    [
        ("target token at the outlier's position, log odds | record", "record", "target, log odds", 0.264),
        ("share × moved logit | record and model", "record and model", "where it predicts, share × moved logit", 0.440),
        ("shrunk | model", "model", "|logit effect × activation where predicted|, shrunk", 0.414),
        ("control: token frequency | corpus", "model", "token frequency", 0.020),
    ],
)
def test_rankings(said, kind, ranking, expected):
    again = {"skill": (tables.SKILL, results.read_table(RESULTS / "post", "skill", tables.SKILL))}  # recorded again
    rows = [
        one(again, "skill", unit=unit, neurons="all", kind=kind, ranking=ranking)
        for unit in ("layers.2.linear1.weight", LAST)
    ]
    assert round(rows[1]["MAP"], 3) == expected
    says(f"{said} | {interval(rows[0], 'MAP')} | {interval(rows[1], 'MAP')} |")


def test_bigram_correlations(read):
    rows = {"measure": "direct path, centred", "among": "pairs of the corpus"}
    early, later, last = (
        one(read, "bigram_correlations", step=step, **rows)["spearman"] for step in (488, 1464, 14640)
    )
    assert [round(rho, 2) for rho in (early, later, last)] == [0.10, 0.68, 0.83]
    says(f"{early:.2f} at step 488, {later:.2f} at 1,464 and {last:.2f} at the end")


def test_completeness(read):
    rows = {"probe": "loss, validation"}
    first = one(read, "completeness", estimate="gradient at the start", **rows)["missed"]
    three = one(read, "completeness", estimate="credit", nodes=3, **rows)["missed"]
    assert (round(100 * three, 1), round(100 * first)) == (0.8, 264)
    says(f"miss {100 * three:.1f} % of what a step did to the loss", f"take it, misses {100 * first:.0f} %")
    by_probe = credit_summary(read["ledger_courses"][1])
    says(f"three nodes miss {by_probe['loss']:.2%} for the loss".replace("%", " %"))


def credit_summary(courses):
    return dict(tables.ledger_summary(courses).select("probe", "missed").iter_rows())


@pytest.mark.parametrize("score", ["marginal", "credit", "gradient at the start"])
def test_agreement_with_leaving_a_datum_out(read, score):
    probes = ("loss, validation", "loss, other training data")
    found = (interval(one(read, "agreement", probe=probe, score=score), "median", 2) for probe in probes)
    says(f"| {score} | {' | '.join(found)} |")


def test_planted_causes(read):
    rows = {score: one(read, "planted_cause", score=score, measure="precision", at=10) for score in SCORES}
    assert round(rows["credit"]["mean"], 3) == 0.987
    found = {score: f"{row['mean']:.3f}" for score, row in rows.items()}
    says(f"precision at 10 is {interval(rows['credit'], 'mean')} for credits", *found.values())


def test_credits_of_a_head_lie_at_brackets(read):
    inputs = read["ledger_inputs"][1].filter(pl.col("probe") == "head:0.1 bracket").head(2)  # ( and )
    share, positions = inputs["share of gross"].sum(), inputs["share of positions"].sum()
    says(f"{100 * share:.0f} % of all absolute credit for head 0.1's attention")
    says(f"positions whose input is a bracket, {100 * positions:.1f} % of positions")


def test_removals(read):
    chosen = {"from": 1464, "measured": "bigram:new york", "score": "credit, bigram:new york"}
    row = one(read, "retrain", share=0.01, **chosen)
    says(
        f"| most credited for it | {row['effect']:.2f} ({row['SDs']:.0f} [{row['SDs low']:.0f}, {row['SDs high']:.0f}])"
    )


def test_effective_sample_sizes():
    least = []
    for folder in (POST, DOCS):
        segments = results.read_table(folder, "phases_segments", tables.PHASE_TABLES["segments"])
        least += segments.group_by("run").agg(pl.col("effective sample size").min())["effective sample size"].to_list()
    assert len(least) == 4
    assert (round(min(least), 2), round(max(least), 2)) == (0.12, 0.29)
    says(f"the effective sample size of a window of steps falls to {min(least):.2f} to {max(least):.2f} of its data")


# ---- files


@pytest.mark.parametrize("document", [ROOT / "README.md", RESULTS / "README.md", RESULTS / "benchmark.md"])
def test_links_lead_to_what_is_there(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        target, _, part = link.partition("#")
        if not re.match(r"[a-z]+:", link):
            found = (document.parent / target) if target else document
            assert found.exists(), f"{document.name} links to {link}"
            titles = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in TITLE.findall(read_if_text(found))]
            assert not part or part in titles, f"{document.name} links to {link}"


def read_if_text(path):
    return path.read_text() if path.suffix == ".md" else ""


def test_results_are_small_and_their_manifest_is_whole():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < 6e6
    body = manifest()
    rest = {name: value for name, value in body.items() if name != "digest"}
    assert hashlib.sha256(records.canonical(rest).encode()).hexdigest() == body["digest"]
    assert recipe_of(body).epochs == 5
    assert {path.suffix for path in RESULTS.rglob("*.*") if path.is_file()} == {
        ".html",
        ".json",
        ".md",
        ".parquet",
        ".png",
        ".svg",
    }
