"""What the end would have been without each text: a section of a run's report for each probe, from ``influence.py``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func import credit
from devinterp_func.records import Run
from devinterp_func.show import page, plots, results, tables, words
from devinterp_func.show.drawing import NARROW, WIDE
from devinterp_func.show.page import Excerpt, Section, Word

LEAD = """Two questions about a text. The credit asks what the text did in its own steps: how much of the probe's change
there was its share. The influence asks what would have been without it: the probe's derivative, after the last step, by
the weight of the text's loss in each step it was in, carried through every step after. Without the text the probe would
be less by its influence, to first order. Credits add up to what happened; influences need not, and they are the ones to
read before data are removed.

Influences are worth as much as training is smooth in the weights of its data. So the last steps are trained again
without random texts, and what that does to the probe is held against the forecast. A horizon is a number of steps from
a text's visit to where the probe is read."""
ASKED = f"""A horizon can be forecast where the correlation of forecasts with what was found is surely above
{credit.FORETOLD:g}. A slope other than 1 changes the size of what is foretold and not its order. Metasmoothness (1 is
smooth, 0 is not) and the growth of the derivative's norm, going back, say why a training can be forecast or not."""
BOOKS = (
    "at the end",
    "influences",
    "credits",
    "rank correlation",
    "low",
    "high",
    "forecast",
    "growth",
    "largest growth",
)
TEXTS = {
    "helped": "The texts that helped it most, by influence over all their visits.",
    "harmed": "The texts that harmed it most, by influence over all their visits.",
}
COLOURS = """ A word's colour is the influence by the weight of predicting it where it stands: blue raised the probe,
orange lowered it. (A ledger's positions are another split: of one text's credit by where the weights were used.)"""
BESIDE = """Both questions side by side. Place 1 helped most, the last place harmed most."""


def sections(run: Run, folder: Path) -> list[Section]:
    """One of all probes' sums and how far they can be forecast, and one of each probe's texts; none without tables.

    Args:
        run: the run, whose words are shown.
        folder: its results.
    """
    if not results.has_table(folder, "influences"):
        return []
    whole = {name: results.read_table(folder, name, kind) for name, kind in tables.INFLUENCE_TABLES.items()}
    books, horizons, vocab = whole["influences"], whole["influence_horizons"], run.corpus.vocab
    same = [name for name in tables.INFLUENCE_KEY if name != "probe"]
    exact = bool((books["curvature"] == "hessian").all())
    hidden = ("nodes", "texts", "seed", *(["curvature"] if exact else []))
    of = [name for name in tables.INFLUENCE_KEY if name not in hidden]
    items = [page.typed_table(books, tables.INFLUENCES, vocab, columns=[*of, *BOOKS])]
    items.append(page.typed_table(horizons.drop(hidden), tables.INFLUENCE_HORIZONS, vocab, fold=12))
    for (_, start, stop), rows in books.group_by("curvature", "start", "stop", maintain_order=True):
        key = pl.all_horizontal(pl.col(name) == rows[name][0] for name in same)
        courses = whole["influence_courses"].filter(key)
        wide, narrow = (growth_figure(courses, run.steps_per_epoch, width=width) for width in (WIDE, NARROW))
        below = f"Steps {start:,} to {stop:,}: the norm of each probe's derivative by the weights, by that at the end."
        items.append(page.figure(wide, below, "Norm of the derivative, going back", narrow))
    found = [Section("Influences", f"{LEAD}\n\n{ASKED}", items)]
    for row in books.iter_rows(named=True):
        key = pl.all_horizontal(pl.col(name) == row[name] for name in tables.INFLUENCE_KEY)
        found.append(_probe_section(run, row, {name: table.filter(key) for name, table in whole.items()}))
    return found


def growth_figure(courses: pl.DataFrame, per_epoch: int | None = None, width: float | int = WIDE) -> Figure:
    """The growth of the derivatives' norms at each step, of the probes of one span.

    Args:
        courses: rows of ``tables.INFLUENCE_COURSES``.
        per_epoch: steps of an epoch.
        width: inches.
    """
    series = {
        str(name): (rows["step"].to_torch(), rows["growth"].to_torch())
        for (name,), rows in courses.group_by("probe", maintain_order=True)
    }
    return plots.lines(series, "norm, times that at the end", per_epoch, width=width, log=True)


# ---- how far


def verdict(row: dict[str, Any], horizons: pl.DataFrame) -> str:
    """How far ahead a probe can be forecast, in a sentence.

    Args:
        row: of the probe, of ``tables.INFLUENCES``.
        horizons: its rows of ``tables.INFLUENCE_HORIZONS``.
    """
    ahead, span = row["forecast"], row["stop"] - row["start"]
    most = row["largest growth"]
    grown = f"the derivative {f'grows at most {_times(most)}' if most > 1 else 'does not grow'} on the way back"
    if ahead == span:
        last = horizons.sort("horizon").row(-1, named=True)
        smooth = f"the metasmoothness is {last['metasmoothness']:.2f}"
        return f"What data changed can be forecast over all {span:,} steps: {_tried(last)}, {smooth}, and {grown}."
    told = f"up to {page.counted(ahead, 'step')} ahead" if ahead else "at no horizon"
    rest = horizons.filter(pl.col("horizon") > ahead).sort("horizon")
    [first, *_] = rest.iter_rows(named=True)
    over = f"over {page.counted(first['horizon'], 'step')}"
    if first["verdict"] == "untested":
        return f"What data changed was tried and can be forecast {told}; {over} it was not tried, and {grown}."
    if first["correlation"] is None:
        return f"What data changed can be forecast {told}: {over} the derivative grows {_times(first['growth'])}."
    smooth = f"the metasmoothness is {first['metasmoothness']:.2f}, the growth {page.shown(first['growth'])}"
    unsure = ", too few to tell" if first["verdict"] == "unsure" else ""
    return f"What data changed can be forecast {told}: {over} {_tried(first)}{unsure}; {smooth}."


def _tried(row: dict[str, Any]) -> str:
    found = f"{row['correlation']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return f"forecasts correlate {found} with what {page.counted(row['draws'], 'training')} without random texts found"


def warning(row: dict[str, Any], texts: pl.DataFrame) -> str | None:
    """What stands above a ranking that goes beyond what can be forecast; None where it does not.

    Args:
        row: of the probe, of ``tables.INFLUENCES``.
        texts: its rows of ``tables.INFLUENCE_TEXTS``.
    """
    start, stop, ahead = row["start"], row["stop"], row["forecast"]
    if ahead == stop - start:
        return None
    visits = texts["steps"].explode().drop_nulls()
    beyond = int((visits < stop - ahead).sum())
    told = f"{beyond:,} of the {page.counted(len(visits), 'visit')} below lie farther back."
    way = f" To rank only what can be: `--start {stop - ahead} --stop {stop}`." if ahead else ""
    return (
        "This ranking goes beyond what can be forecast: it is no account of what removing these texts would do. "
        f"It sums up visits as far as {stop - start:,} steps before the end; tried and foretold are {ahead:,}. "
        f"{told}{way}"
    )


def _times(growth: float) -> str:
    return f"{page.shown(growth)}-fold"


# ---- one probe


def _probe_section(run: Run, row: dict[str, Any], parts: dict[str, pl.DataFrame]) -> Section:
    texts, span = parts["influence_texts"], f"Steps {row['start']:,} to {row['stop']:,}"
    lead = f"{span}; curvature: {row['curvature']}; texts of seed {row['seed']}. "
    lead += verdict(row, parts["influence_horizons"])
    interval = f"[{row['low']:.2f}, {row['high']:.2f}], over {page.counted(row['data'], 'text')}"
    facts = {
        "at the end": (page.shown(row["at the end"]), f"from {page.shown(row['at the start'])}"),
        "influences": (page.shown(row["influences"]), "sum: the derivative by the weight of all data"),
        "credits": (page.shown(row["credits"]), "sum: what data did in their own steps"),
        "growth": (page.shown(row["growth"]), "of the derivative's norm, back to the start"),
        "rank correlation": (f"{row['rank correlation']:.2f}", f"of influence and credit: {interval}"),
        "forecast": (page.counted(row["forecast"], "step"), "ahead: tried and foretold"),
    }
    said = warning(row, texts)
    items = [page.facts(facts), *([page.note(said)] if said else []), *_texts(run, row, texts)]
    return Section(f"Influences: {row['probe']}", lead, items)


def _texts(run: Run, row: dict[str, Any], texts: pl.DataFrame, most: int = 6) -> Iterator[Markup]:
    loss = " The probe is a loss: orange helped." if credit.helping_sign(row["probe"]) < 0 else ""
    colours = COLOURS + loss
    for effect, caption in TEXTS.items():
        rows = texts.filter((pl.col("effect") == effect) & (pl.col("rank") <= most)).sort("rank")
        if len(rows):
            yield page.excerpts([_excerpt(run, text) for text in rows.iter_rows(named=True)], caption + colours)
            colours = ""
    said = pl.Series("text", [str(_plain(run, text)) for text in texts.iter_rows(named=True)], dtype=pl.String)
    columns = ["effect", "datum", "influence", "credit", "influence place", "credit place", "steps", "by visit"]
    yield page.typed_table(
        texts.select(columns).with_columns(said), tables.INFLUENCE_TEXTS, run.corpus.vocab, BESIDE, fold=20
    )


def _excerpt(run: Run, text: dict[str, Any]) -> Excerpt:
    """A text with its influences; its colours are relative to its largest."""
    tokens, targets = (run.corpus.vocab.decode(x[text["datum"]]) for x in run.data)
    largest = max(map(abs, text["by position"])) or 1.0
    coloured = [Word(word, amount / largest) for word, amount in zip(targets, text["by position"], strict=True)]
    each = zip(text["steps"], text["epochs"], text["by visit"], strict=True)
    visits = ", ".join(f"step {step:,} (epoch {epoch}): {page.shown(amount)}" for step, epoch, amount in each)
    place = f"place {text['influence place']:,}, by credit {text['credit place']:,}, of {text['data']:,}"
    amounts = f": influence {page.shown(text['influence'])}, credit {page.shown(text['credit'])}"
    return Excerpt([Word(tokens[0]), *coloured], page.source(text["datum"], f"{amounts}; {place}; {visits}"))


def _plain(run: Run, text: dict[str, Any]) -> words.Excerpt:
    tokens, targets = (x[text["datum"]] for x in run.data)
    return words.excerpt(tokens, targets, text["position"], run.corpus.vocab)
