"""One self-contained HTML page of everything that was found about a run.

    python experiments/report.py runs/demo      # after attribute.py, ablate.py, skill.py and activations.py

Writes RUN-results/report.html. Every table has its control beside it.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
import tyro
from rich.console import Console

from devinterp_func import attribution, bigram_report, ledger_report, plots, records, report, results, training
from devinterp_func.drawing import NARROW, WIDE
from devinterp_func.report import Card, Chip, Excerpt, Section, Word

SHOWN = ["bag, relative frequency of c ≥ 20 (post)", "bag, log likelihood", "target, relative frequency"]
SHOWN += ["target, log likelihood", "target, log odds", "input, log likelihood", "where it predicts, log likelihood"]
SHOWN += ["where it predicts, share", "where it predicts, share × |logit effect|"]
SHOWN += ["where it predicts, share × moved logit", "where it predicts and moved logit, rank product"]
SHOWN += ["target, log likelihood × |logit effect|", "activations by input token", "activations by predicted token"]
SHOWN += ["|logit effect|", "|logit effect × activation where predicted|", "prediction frequency", "token frequency"]
SHOWN += ["another neuron's: where it predicts, share", "random"]


@dataclass(frozen=True)
class Settings:
    run: tyro.conf.Positional[Path]
    """The run directory."""
    out: Path | None = None
    """Where the results are, and the page goes; by default beside the run, RUN-results."""
    export: Path | None = None
    """Also copy page, tables, figures and the run's manifest there: a few megabytes."""


def main(settings: Settings) -> Path:
    run, folder = settings.run, results.beside(settings.run, settings.out)
    config, recipe, corpus = training.load(run)
    sections = [training_section(run), outliers_section(run, folder), neurons_section(folder), verdicts_section(folder)]
    optional = {"skill": skill_section, "activations": activations_section}  # a report may be wanted before these
    sections += [section(folder) for name, section in optional.items() if (folder / f"{name}.csv").exists()]
    per_epoch = training.epoch_length(corpus, recipe)
    if (folder / "bigram_correlations.csv").exists():
        sections.append(bigram_report.section(folder, per_epoch=per_epoch))
    sections += ledger_report.sections(folder, per_epoch)
    what = f"{config.n_layers} layers, {corpus.name}, {records.n_steps(run):,} steps of {recipe.batch_size} data."
    page = report.page("How this model came to be", f"{what} The post: {report_link()}.", sections)
    Console().print(f"the report is {results.write(folder / 'report.html', page.encode())}")
    if settings.export:
        results.export(run, folder, settings.export)
    return folder / "report.html"


def report_link() -> str:
    address = "https://www.lesswrong.com/posts/DtkA5jysFZGv7W4qP/training-process-transparency-through-gradient"
    return f"[Training Process Transparency through Gradient Interpretability]({address})"


def training_section(run: Path) -> Section:
    config, recipe, corpus = training.load(run)
    curve, evaluations = training.curve(run), records.read_evaluations(run)
    per_epoch = training.epoch_length(corpus, recipe)
    shapes = training.shapes(run)
    captured = sum(torch.Size(shape).numel() for shape in shapes.values())
    updates = len(curve.loss) * recipe.batch_size
    size = records.verify(run).bytes
    facts = {
        "per-datum updates recorded": updates,
        "captured weights": (captured, f"in {len(shapes)} units"),
        "training loss at the end": (float(curve.loss[-per_epoch // 10 :].mean()), "nats, last tenth of an epoch"),
        "clip coefficient": (f"{float(curve.clip.min()):.2f}–{float(curve.clip.max()):.2f}", "least and largest"),
        "on disk": (f"{size / 1e9:.2f} GB", "verified"),
        "full logging would take": (f"{attribution.storage(captured, updates) / 1e9:,.0f} GB", "post: 882 GB"),
    }
    last = evaluations.get(len(curve.loss), {})
    facts |= {f"{split} perplexity": float(torch.tensor(loss).exp()) for split, loss in last.items()}
    drawn = [plots.loss_curve(curve.loss, per_epoch, evaluations, curve.clip, width=width) for width in (WIDE, NARROW)]
    lead = "What was trained and recorded. Every datum's share of every update is in the record, or derivable from it."
    alt = "Training loss by step, evaluations, and the clip coefficient"
    items = [report.facts(facts), report.figure(drawn[0], "Loss and clip coefficient.", alt, narrow=drawn[1])]
    return Section("The run", lead, items)


def outliers_section(run: Path, folder: Path) -> Section:
    shapes, arrays = training.shapes(run), results.read_arrays(folder, "outliers")
    bins, units = arrays["over_training"], results.read_table(folder, "units")
    step = max(1, records.n_steps(run) // len(bins))
    drawn = [plots.outliers_over_training(bins, list(shapes), step, width=width) for width in (WIDE, NARROW)]
    curves = attribution_by_unit(arrays["by_parameter"], shapes)
    items = [
        report.figure(drawn[0], "Share of the outliers by unit over training.", "Heat map", narrow=drawn[1]),
        report.table(units, "Outliers by unit and epoch.", {"share": ".1%"}, bars=["share"]),
        report.figure(plots.concentration(curves), "Outliers by parameter, most frequent first.", "Log-log curves"),
        report.details(
            "The attribution table's first rows (the post's Table 1)",
            report.table(results.read_table(folder, "attribution_head").head(40), "One row an outlier."),
        ),
    ]
    return Section("Outliers", "The weights that each datum moved most.", items)


def attribution_by_unit(counts: torch.Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Counts of the parameters of each kind of unit, all layers together."""
    parts = counts.split([torch.Size(shape).numel() for shape in shapes.values()])
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, part in zip(shapes, parts, strict=True):
        kinds.setdefault(name.split(".", 2)[-1].removesuffix("weight").rstrip("._"), []).append(part)
    return {kind: torch.cat(own) for kind, own in kinds.items()}


def neurons_section(folder: Path) -> Section:
    flips, quotes = results.read_table(folder, "flips"), results.read_table(folder, "excerpts")
    verdicts, found = results.read_table(folder, "verdicts"), results.read_table(folder, "neurons")
    best = verdicts.sort(["attributed", "p"], descending=[True, False])
    looks = results.read_table(folder, "looks")
    cards = [card(row, found, flips, quotes, looks) for row in best.head(12).iter_rows(named=True)]
    lead = (
        "The neurons whose notable tokens flip most beyond chance come first. Chips are notable tokens from the "
        "training record; those that flip when the neuron is switched off are marked. In the texts, ( before | after ) "
        "is a prediction that flipped."
    )
    return Section("Neurons", lead, [report.cards(cards, formats={"proportion": ".1%"}, bars=["proportion"])])


def card(row: dict, found: pl.DataFrame, flips: pl.DataFrame, quotes: pl.DataFrame, looks: pl.DataFrame) -> Card:
    name = row["neuron"]
    own = flips.filter(pl.col("neuron") == name).filter(pl.col("count") >= 5).sort(["proportion"], descending=True)
    both = set((row["both"] or "").split())
    texts = [
        Excerpt([Word(w) for w in text.split()]) for text in quotes.filter(pl.col("neuron") == name)["text"].head(4)
    ]
    look = looks.row(by_predicate=pl.col("neuron") == name, named=True)
    texts.insert(0, Excerpt([Word(w) for w in f"Attributed {look['times']} times: {look['text']}".split()]))
    about = found.row(by_predicate=pl.col("neuron") == name, named=True)
    facts = {
        "outliers": about["outliers"],
        "data": about["data"],
        "p": row["p"],
        "p, like frequency": row["p, like frequency"],
    }
    facts |= {"flipped tokens": (row["flipped"], f"random neurons: {row['flipped, random neurons']}")}
    facts |= {"mean activation": (look["mean activation"], f"above 0 at {look['share active']:.0%} of positions")}
    facts |= {what: look[what] for what in ("most active on", "logits raised", "logits lowered") if look[what]}
    chips = [Chip(word, word in both) for word in str(row["notable tokens"] or "").split()[:24]]
    shown = own.select("token", "proportion", "count", "flips", "notable").head(12)
    control = own.select(
        "token",
        pl.col("random data: proportion").alias("proportion"),
        pl.col("random data: count").alias("count"),
        pl.col("random neurons: proportion").alias("random neurons"),
    ).head(12)
    return Card(name, facts, chips, texts, shown, control)


def verdicts_section(folder: Path) -> Section:
    summary, verdicts = results.read_table(folder, "sublayers"), results.read_table(folder, "verdicts")
    flips = results.read_table(folder, "flips").filter(pl.col("count") >= 5)
    controls = [name for name in summary.columns if "random" in name]
    share, control = (
        torch.tensor(summary[f"notable share{end}"].fill_null(float("nan")).to_list())
        for end in ("", ", random neurons")
    )
    scatter = plots.flips_scatter(
        torch.tensor(flips["proportion"].to_list()),
        torch.tensor(flips["random data: proportion"].to_list()),
        [str(token) for token in flips["token"]],
        torch.tensor(flips["notable"].to_list(), dtype=torch.bool),
    )
    n = int(verdicts["attributed"].sum())
    lead = (
        f"{n} of {len(verdicts)} neurons flip their notable tokens beyond chance (hypergeometric, false discovery rate "
        f"5 %); {int((verdicts['p, like frequency'] < 0.05).sum())} have p < 0.05 among tokens of like frequency. "
        "The post judged 23 of 46 by eye, none in layers 1 and 2."
    )
    items = [
        report.table(summary, "By sublayer, the post's numbers in the last columns.", controls=controls),
        report.figure(
            plots.notable_share(summary["sublayer"].to_list(), share, control),
            "Share of the flipped tokens that is notable; the mark is that of random neurons on the same data.",
            "Bars by sublayer",
        ),
        report.figure(scatter, "Flipped share of each token on attributed and on random data.", "Scatter plot"),
        report.table(verdicts, "Every neuron looked at (the post's Appendix III), with computed verdicts.", fold=12),
    ]
    return Section("Verdicts", lead, items)


def skill_section(folder: Path) -> Section:
    table = results.read_table(folder, "skill")
    whole = table.filter(pl.col("neurons") == "all")
    groups = sorted(whole["sublayer"].cast(pl.String).unique())
    shown = [name for name in SHOWN if name in set(whole["score"])]
    kinds = dict(zip(whole["score"], whole["kind"], strict=True))
    kind: dict[str, plots.Kind] = {
        "record": "record",
        "record and model": "record",
        "model": "baseline",
        "chance": "control",
    }
    coloured = [kind[kinds[name]] for name in shown]
    value, low, high = torch.full((3, len(groups), len(shown)), torch.nan)
    for row in whole.filter(pl.col("score").is_in(shown)).iter_rows(named=True):
        at = groups.index(str(row["sublayer"])), shown.index(row["score"])
        value[at], low[at], high[at] = (torch.nan if row[c] is None else row[c] for c in ("MAP", "low", "high"))
    drawn = [plots.skill_bars(shown, value, low, high, groups, coloured, width=width) for width in (WIDE, NARROW)]
    lead = (
        "Each score ranks all tokens for each neuron; the truth is which tokens the neuron's ablation flips on the "
        "validation split (count ≥ 5, proportion ≥ 0.1). Mean average precision, with 95 % bootstrap intervals."
    )
    wide = whole.pivot("sublayer", index=["kind", "score"], values="MAP")
    items = [
        report.figure(drawn[0], "Skill by sublayer.", "Dots with intervals", narrow=drawn[1]),
        report.table(wide.sort(groups[-1], descending=True, nulls_last=True), "All scores.", fold=15),
        report.details("Neurons the outliers point at, and random ones", report.table(_by_group(table), "", fold=30)),
    ]
    return Section("Does the method predict?", lead, items)


def _by_group(table: pl.DataFrame) -> pl.DataFrame:
    some = table.filter((pl.col("neurons") != "all") & pl.col("score").is_in(SHOWN))
    return some.pivot("neurons", index=["sublayer", "kind", "score"], values="MAP")


def activations_section(folder: Path) -> Section:
    ranks, values = results.read_table(folder, "activations"), results.read_arrays(folder, "activations")
    items = [report.table(ranks, "Where neurons stand on their tokens: among neurons, and among frequent tokens.")]
    for i, row in enumerate(ranks.iter_rows(named=True)):
        here = f"{i // 2}/{'in' if i % 2 == 0 else 'out'}/"
        on = {k.removeprefix(f"{here}token/"): v for k, v in values.items() if k.startswith(f"{here}token/")}
        near = {int(k.rpartition("/")[2]): v for k, v in values.items() if k.startswith(f"{here}neighbour/")}
        word, name = str(row["token"]), row["neuron"]
        if word in on:
            drawn = plots.activation_histograms(on, word), plots.neighbours(near, int(name.split(":")[1]))
            items.append(report.figure(drawn[0], f"`{name}` on “{word}” and on frequent tokens.", "Histograms"))
            items.append(report.figure(drawn[1], f"`{name}` and its neighbours on “{word}”.", "Histograms"))
    items.append(report.details("Most and least active", report.table(results.read_table(folder, "extremes"), "")))
    lead = "What one would have seen without the training record, for both meanings of a neuron's number."
    return Section("Activations alone", lead, items)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
