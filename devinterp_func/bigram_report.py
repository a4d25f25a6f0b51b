"""What a bigram walk found as figures and as a section of the run's report, from ``experiments/bigram.py``'s tables."""

from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from devinterp_func import drawing, plots, report, results

WAYS = {  # measure -> its name in a figure
    "decoder bias": "unigrams: bias",
    "mean logit": "unigrams: mean logit",
    "direct path, centred": "bigrams: direct path",
    "whole model, centred": "bigrams: whole model",
}
LEAD = """The bigram decoder `W_UE = W_U W_Eᵀ` says what the embedding of one token, read by the unembedding, makes
likely next. It is the direct path only: positions, layer norms, attention and MLPs are left out. Every step of training
was made again, and the entries that it moved most were found among all pairs of the vocabulary, exactly.

A shift is the sum of three terms, `W_U ΔW_Eᵀ + ΔW_U W_Eᵀ + ΔW_U ΔW_Eᵀ`. Where it says centred, the corpus' mean over
outputs and inputs is taken off, which leaves what belongs to the pair and not to its tokens."""


def stem(start: int) -> str:
    """What the names of a walk's files begin with; ``start`` is its first step.

    >>> stem(0), stem(2928)
    ('bigram', 'bigram-002928')
    """
    return f"bigram-{start:06d}" if start else "bigram"


def figures(
    folder: Path, start: int = 0, per_epoch: int | None = None, width: float | int = drawing.WIDE
) -> dict[str, Figure]:
    """Figures by file name: the correlations, and where there was a walk its time courses and the size of its shifts.

    Args:
        folder: the run's results.
        start: the walk's first step.
        per_epoch: steps of an epoch, to mark epochs.
        width: inches.
    """
    name = stem(start)
    table = results.read_table(folder, "bigram_correlations").filter(~pl.col("among").str.contains("never"))
    table = table.with_columns(pl.col("spearman").fill_nan(0.0))  # a bias that is still all zeros goes with nothing
    lines = {title: table.filter(pl.col("measure") == way) for way, title in WAYS.items()}
    series = {title: (part["step"].to_torch(), part["spearman"].to_torch()) for title, part in lines.items()}
    label = "rank correlation with the corpus"
    drawn = {"bigram_correlations": plots.lines(series, label, per_epoch, markers=True, width=width)}
    if (folder / f"{name}_courses.csv").exists():
        courses, sizes = (results.read_table(folder, f"{name}_{what}") for what in ("courses", "sizes"))
        means = [column for column in courses.columns[1:] if "→" not in column]
        each = [column for column in courses.columns[1:] if "→" in column][:6]
        drawn[f"{name}_groups"] = _lines(courses, means, "mean entry of W_UE", per_epoch, width)
        drawn[f"{name}_courses"] = _lines(courses, each, "entry of W_UE", per_epoch, width)
        drawn[f"{name}_sizes"] = _lines(sizes, sizes.columns[1:], "|shift| in one step", per_epoch, width)
    return drawn


def section(folder: Path, start: int = 0, per_epoch: int | None = None) -> report.Section:
    """The part of a report on bigrams.

    Args:
        folder: the run's results, after ``experiments/bigram.py``.
        start, per_epoch: as in ``figures``.

    Raises:
        FileNotFoundError: no correlations are there yet.
    """
    name = stem(start)
    wide, narrow = (figures(folder, start, per_epoch, width) for width in (drawing.WIDE, drawing.NARROW))
    fits = results.read_table(folder, "bigram_correlations")
    items = [
        report.figure(
            wide["bigram_correlations"],
            "When unigrams and bigrams are learnt: rank correlation of biases and mean logits with log frequency, and "
            "of centred entries with the log-odds of the corpus' bigrams. The whole model is shown a single token.",
            "Rank correlations over training",
            narrow["bigram_correlations"],
        ),
        report.details(
            "Correlations at the last snapshot, and with tokens exchanged",
            report.table(fits.filter(pl.col("step") == fits["step"].max()).drop("step"), fold=None),
        ),
    ]
    if not (folder / f"{name}_courses.csv").exists():
        return report.Section("Bigrams", LEAD, items)
    captions = {
        "groups": "Mean entry of the corpus' most characteristic bigrams, and of the same tokens put together anew.",
        "courses": "Entries of single bigrams.",
        "sizes": "The largest shift in a step, and the smallest of those kept, in means over windows of steps.",
    }
    for what, caption in captions.items():
        items.append(report.figure(wide[f"{name}_{what}"], caption, caption, narrow[f"{name}_{what}"]))
    phases, largest, net, checks = (
        results.read_table(folder, f"{name}_{what}") for what in ("phases", "largest", "net", "checks")
    )
    centred = net.filter(pl.col("ranked") == "all pairs, centred").drop("ranked")
    shown = ("steps", "bigram", "shift", "at step", "times", "in the corpus", "log-odds", "text")
    items += [
        report.table(centred, "What each phase changed most, among all pairs, centred.", fold=45),
        report.table(largest.select(shown), "The largest shifts of single steps, and the text behind each.", fold=30),
        report.table(phases, "What the largest shifts have in common; exchanged: their tokens put together anew."),
        report.details("Do the shifts add up?", report.table(checks, "At every snapshot on the way.", fold=None)),
    ]
    return report.Section("Bigrams", LEAD, items)


def _lines(table: pl.DataFrame, columns: list[str], label: str, per_epoch: int | None, width: float | int) -> Figure:
    series = {column: (table["step"].to_torch(), table[column].to_torch()) for column in columns}
    return plots.lines(series, label, per_epoch, width=width)
