"""Neurons, verdicts, skill and activations as sections of a run's report, from their scripts' tables."""

import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from markupsafe import Markup

from devinterp_func import neurons, units
from devinterp_func.records import Run
from devinterp_func.show import _neuron_cards, page, plots, results, tables, words
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.page import Section

CARDS, RANKED = 12, 3  # neurons shown on cards; rankings of each kind that are best over all units, in the figure
NONE = "No weight of a layer's linear map was captured, so there is no neuron to ablate."
FLIPPED = "Tokens that flip anywhere, by unit, and the share of them that is notable."
KINDS: dict[str, plots.Kind] = {
    "record": "record",
    "record and model": "record and model",
    "model": "baseline",
    "chance": "control",
}


def sections(run: Run, folder: Path) -> list[Section]:
    """The sections whose tables are there.

    Args:
        run: the run.
        folder: its results.
    """
    parts = {
        "verdicts": verdict_sections,
        "skill": skill_section,
        "activations": activations_section,
    }
    return [section for name, make in parts.items() if results.has_table(folder, name) for section in make(run, folder)]


def verdict_sections(run: Run, folder: Path) -> list[Section]:
    """The neurons on cards; the verdict on each, and other ablations."""
    verdicts = results.read_table(folder, "verdicts", tables.VERDICTS)
    if verdicts.is_empty():
        return [Section("Neurons", "", [page.note(NONE)])]
    best = verdicts.sort(["attributed", "p", "neuron"], descending=[True, False, False])
    lead = (
        "The neurons whose notable tokens flip most beyond chance come first. Chips are notable tokens from the "
        "training record; those that flip when the neuron is ablated are marked. In the texts, ( before | after ) is a "
        "prediction that flipped."
    )
    cards = _neuron_cards.cards(run, folder, best.head(CARDS)["neuron"].to_list())
    n, near = int(verdicts["attributed"].sum()), int((verdicts["p, like frequency"] < 0.05).sum())
    judged = (
        f"{n} of {page.counted(len(verdicts), 'neuron')} flip their notable tokens beyond chance (hypergeometric, "
        f"false discovery rate {tables.LEVEL:.0%}); {near} have p < 0.05 among tokens of like frequency."
    )
    if words.is_posts(run):
        judged += " The post judged 23 of 46 by eye, none in its layers 1 and 2."
    items = _verdict_items(run, folder, verdicts, best)
    return [Section("Neurons", lead, [cards]), Section("Verdicts", judged, items)]


def _verdict_items(run: Run, folder: Path, verdicts: pl.DataFrame, best: pl.DataFrame) -> list[Markup]:
    vocab, summary = run.corpus.vocab, results.read_table(folder, "sublayers", tables.SUBLAYERS)
    flips = results.read_table(folder, "flips", tables.FLIPS).filter(pl.col("count") >= neurons.LEAST_COUNT)
    share, control = (
        torch.tensor([math.nan if x is None else x for x in summary[f"notable share{end}"]], dtype=torch.float64)
        for end in ("", ", random neurons")
    )
    scatter = plots.flips_scatter(
        torch.tensor(flips["proportion"].to_list(), dtype=torch.float64),
        torch.tensor(flips["random data: proportion"].to_list(), dtype=torch.float64),
        vocab.decode(flips["token"].to_list()),
        torch.tensor(flips["notable"].to_list(), dtype=torch.bool),
    )
    named = tables.without_posts(summary)
    named = named.with_columns(pl.col("unit").map_elements(words.sublayer, return_dtype=pl.String))
    unbroken = named.with_columns(pl.col("unit").str.replace_all(" ", "\N{NO-BREAK SPACE}"))
    bars = [plots.notable_share(named["unit"].to_list(), share, control, width=width) for width in (WIDE, NARROW)]
    said = "Share of the flipped tokens that is notable; the mark is that of random neurons on the same data."
    shown = [name for name in best.columns if not name.startswith(("unit", "flipping", "notable of these"))]
    items = [
        page.typed_table(unbroken, tables.SUBLAYERS, vocab, None if words.is_posts(run) else FLIPPED),
        page.figure(bars[0], said, "Bars by unit", narrow=bars[1]),
        page.figure(scatter, "Flipped share of each token on attributed and on random data.", "Scatter plot"),
        page.typed_table(best, tables.VERDICTS, vocab, columns=shown, fold=12),
    ]
    for kind in ("mean", "resample"):
        if results.has_table(folder, name := f"verdicts-{kind}"):
            other = results.read_table(folder, name, tables.VERDICTS).sort("p", "neuron")
            caption = f"The same with {kind} ablation: the activation becomes {_neuron_cards.ABLATIONS[kind]}."
            items.append(page.typed_table(other, tables.VERDICTS, vocab, caption, shown, fold=12))
    return items


def skill_section(run: Run, folder: Path) -> list[Section]:
    """How well rankings of tokens predict flips."""
    table = results.read_table(folder, "skill", tables.SKILL)
    if table.is_empty():
        return []
    whole, wide = table.filter(pl.col("neurons") == "all"), tables.skill_by_unit(table)
    shown = wide.filter(pl.col("ranking").is_in([*best_rankings(wide), neurons.POST]))
    names, panels = shown["ranking"].to_list(), whole["unit"].unique(maintain_order=True).to_list()
    kinds = [KINDS[kind] for kind in shown["kind"]]
    value, low, high = torch.full((3, len(panels), len(names)), torch.nan)
    for row in whole.filter(pl.col("ranking").is_in(names)).iter_rows(named=True):
        at = panels.index(row["unit"]), names.index(row["ranking"])
        value[at], low[at], high[at] = row["MAP"], row["low"], row["high"]
    titles = [words.sublayer(unit) for unit in panels]
    drawn = [plots.skill_bars(names, value, low, high, titles, kinds, width=width) for width in (WIDE, NARROW)]
    lead = (
        "Each ranking orders all tokens for each neuron; the truth is which tokens the neuron's ablation truly flips "
        "on the validation split. Mean average precision, with 95 % bootstrap intervals. The figure has of each kind, "
        "the finished model's and chance too, the best over all units and the best in each, and the post's ranking."
    )
    contrasts = results.read_table(folder, "skill_contrasts", tables.CONTRASTS)
    contrasts = contrasts.with_columns(pl.col("unit").map_elements(units.label, return_dtype=pl.String))
    groups = [group for group in table["neurons"].unique(maintain_order=True) if group != "all"]
    items = [
        page.figure(drawn[0], "Skill by unit.", "Dots with intervals", narrow=drawn[1]),
        page.typed_table(contrasts, tables.CONTRASTS, run.corpus.vocab),
        *_on_other_neurons(run, folder),
        page.table(wide, "All rankings: mean average precision by unit.", fold=15),
        page.details(
            "Neurons with the most outliers, and random others", *(_skill_of(table, group) for group in groups)
        ),
    ]
    return [Section("Does the method predict?", lead, items)]


def _on_other_neurons(run: Run, folder: Path) -> list[Markup]:
    """With rankings that are chosen on other neurons: record against model, and whose flips are found beyond chance."""
    if not results.has_table(folder, "skill_census"):
        return []
    nested = results.read_table(folder, "skill_nested", tables.NESTED)
    nested = nested.with_columns(pl.col("unit").map_elements(units.label, return_dtype=pl.String))
    census = results.read_table(folder, "skill_census", tables.CENSUS)
    found = census.filter(pl.any_horizontal(*tables.JUDGED_BY.values()) & pl.col("made from").is_in(tables.RANKED))
    found, of = found.sort("p", "p, predicted alike"), "Neurons whose flips a ranking finds beyond tokens"
    like, alike = (tables.census_summary(census, verdict) for verdict in tables.JUDGED_BY.values())
    named = pl.col("unit").map_elements(units.label, return_dtype=pl.String)
    shares = tables.share_frame(census).with_columns(named)
    return [
        page.typed_table(nested, tables.NESTED, run.corpus.vocab),
        page.table(like, f"{of} of like frequency.", fold=None),
        page.table(alike, f"{of} that the model predicts as often.", fold=None),
        page.details("Their shares", page.typed_table(shares, tables.SHARES, run.corpus.vocab)),
        page.details("These neurons", page.typed_table(found, tables.CENSUS, run.corpus.vocab)),
    ]


def best_rankings(wide: pl.DataFrame, most: int = RANKED) -> list[str]:
    """Of each kind the rankings that are best over all units, and the best in each unit.

    Args:
        wide: of ``tables.skill_by_unit``, the best mean first.
        most: of each kind, over all units.
    """
    best: list[str] = []
    for (_,), rows in wide.group_by("kind", maintain_order=True):
        best += rows.head(most)["ranking"].to_list()
        for unit in rows.select(pl.exclude("kind", "ranking")):
            known = rows.with_columns(unit.fill_nan(None).alias("of unit")).drop_nulls("of unit")
            best += known.sort("of unit", descending=True, maintain_order=True).head(1)["ranking"].to_list()
    return list(dict.fromkeys(best))


def _skill_of(table: pl.DataFrame, group: str) -> Markup:
    return page.table(tables.skill_by_unit(table, group), f"{group.capitalize()}: mean average precision.", fold=15)


def activations_section(run: Run, folder: Path) -> list[Section]:
    """What activations alone say of neurons."""
    vocab = run.corpus.vocab
    ranks = results.read_table(folder, "activations", tables.ACTIVATIONS)
    if ranks.is_empty():
        return []
    extremes = results.read_table(folder, "extremes", tables.EXTREMES)
    histograms = results.read_table(folder, "activation_histograms", tables.HISTOGRAMS)
    items = [page.typed_table(ranks, tables.ACTIVATIONS, vocab)]
    for name, id in ranks.filter(pl.col("positions") > 0).select("neuron", "token").iter_rows():
        own = histograms.filter((pl.col("neuron") == name) & (pl.col("token") == id))
        items += _histogram_figures(neurons.parse(name), id, *tables.read_histograms(own), vocab.tokens)
    items.append(page.details("Most and least active", page.typed_table(extremes, tables.EXTREMES, vocab)))
    lead = "What one would have seen without the training record, for both meanings of a neuron's number."
    return [Section("Activations alone", lead, items)]


def _histogram_figures(
    neuron: neurons.Neuron,
    id: int,
    by_token: dict[int, neurons.Histogram],
    by_index: dict[int, neurons.Histogram],
    spelled: Sequence[str],
) -> list[Markup]:
    word = spelled[id]
    on_tokens = plots.activation_histograms({spelled[t]: h for t, h in by_token.items()}, word)
    around = plots.neighbours(by_index, neuron.index)
    return [
        page.figure(on_tokens, f"`{neuron}` on “{word}” and on frequent tokens.", "Histograms"),
        page.figure(around, f"`{neuron}` and its neighbours on “{word}”.", "Histograms"),
    ]
