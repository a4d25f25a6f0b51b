"""Verdicts on neurons: a row for each trial, and their summary by unit."""

from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from devinterp_func import keys, stats, units
from devinterp_func.neurons import FlipCounts, Trial, judge
from devinterp_func.show.schema import BOOL, FLOAT, INT, NAME, Column, Table, frame, tokens

LEVEL = 0.05  # false discovery rate
CONDITIONS = {"": "attributed", ", random data": "random_data", ", random neurons": "random_neurons"}
VERDICTS = Table(
    "Do the notable tokens of a neuron flip beyond chance (the post's Appendix III)?",
    "ablate.py",
    {
        "neuron": Column(NAME),
        "unit": Column(NAME),
        "data": Column(INT, "attributed to it that it was ablated on, and as many random data"),
        "attributed": Column(BOOL, "p at a false discovery rate of 5 % over all rows"),
        "p": Column(FLOAT, "that as many notable tokens flip by chance: hypergeometric", format="p"),
        "p, like frequency": Column(FLOAT, "the same among tokens of like frequency, by permutation", format="p"),
        "notable and flipped": Column(INT, "notable tokens that truly flip"),
        "expected": Column(FLOAT, "notable tokens that would flip by chance", control=True),
        "notable tokens": tokens("of the data attributed to it"),
        "both": tokens("notable tokens that truly flip"),
        **{
            f"{what}{condition}": Column(INT, meaning, control=bool(condition))
            for what, meaning in (
                ("flipped", "tokens that truly flip: at five positions or more, and at a tenth of them"),
                ("flipping", "tokens that flip anywhere"),
                ("notable of these", "tokens that flip anywhere and are notable"),
            )
            for condition in CONDITIONS
        },
    },
    key=("neuron",),
)
POST = {"3.1": (192.25, 0.035), "3.2": (35.10, 0.137), "1.2": (260.50, 0.023), "1.1": (179.00, 0.017)}
"""The post's average number of flipped tokens and share of them that is notable, by its names of units."""
SUBLAYERS = Table(
    "Tokens that flip anywhere, by unit, and the share of them that is notable. The post's numbers come last.",
    "ablate.py",
    {
        "unit": Column(NAME),
        "neurons": Column(INT, "ablated"),
        "attributed": Column(INT, "neurons whose notable tokens flip beyond chance"),
        **{
            f"{what}{condition}": Column(FLOAT, meaning, format=format, control=bool(condition))
            for what, meaning, format in (
                ("flipped tokens", "mean over the neurons", ".2f"),
                ("notable share", "of the flipped tokens, mean over the neurons with any", ".1%"),
            )
            for condition in CONDITIONS
        },
        "post: flipped tokens": Column(FLOAT, format=".2f", control=True),
        "post: notable share": Column(FLOAT, format=".1%", control=True),
    },
    key=("unit",),
)


def verdict_frame(
    trials: Sequence[Trial], reference: Int[Tensor, "V"], n_data: Sequence[int], *, key: keys.Key | int
) -> pl.DataFrame:
    """A row for each trial, judged over these trials alone; ``judged`` judges whole tables.

    Args:
        trials: of ``neurons.try_neuron``.
        reference: counts of the tokens in the training data.
        n_data: attributed data that each neuron was ablated on.
        key: of ``neurons.judge``.
    """
    if not trials:
        return frame(VERDICTS, [])
    verdict = judge(trials, reference, key=key, level=LEVEL)
    rows = []
    for i, trial in enumerate(trials):
        flipped = trial.attributed.flipped()
        row: dict[str, object] = {"neuron": str(trial.neuron), "unit": trial.neuron.unit, "data": n_data[i]}
        row |= {"attributed": bool(verdict.attributed[i]), "p": float(verdict.p[i])}
        row |= {"p, like frequency": float(verdict.p_frequency[i]), "notable and flipped": int(verdict.both[i])}
        row |= {"expected": float(verdict.expected[i]), "notable tokens": trial.notable.tolist()}
        row["both"] = [id for id in trial.notable.tolist() if flipped[id]]
        for condition, field in CONDITIONS.items():
            counts: FlipCounts = getattr(trial, field)
            row[f"flipped{condition}"] = int(counts.flipped().sum())
            row[f"flipping{condition}"] = int((counts.flips > 0).sum())
            row[f"notable of these{condition}"] = int((counts.flips[trial.notable] > 0).sum())
        rows.append(row)
    return frame(VERDICTS, rows)


def judged(verdicts: pl.DataFrame) -> pl.DataFrame:
    """The verdicts with ``attributed`` at the false discovery rate over all of their rows."""
    p = torch.tensor(verdicts["p"].to_list(), dtype=torch.float64)
    return verdicts.with_columns(attributed=pl.Series(stats.false_discovery(p, LEVEL).tolist(), dtype=pl.Boolean))


def sublayer_frame(verdicts: pl.DataFrame) -> pl.DataFrame:
    """The post's summary: tokens that flip anywhere and the share of them that is notable, with controls.

    Args:
        verdicts: of ``verdict_frame``.
    """
    rows = []
    for unit in sorted(verdicts["unit"].unique()):
        trials = verdicts.filter(pl.col("unit") == unit)
        row: dict[str, object] = {"unit": unit, "neurons": len(trials), "attributed": int(trials["attributed"].sum())}
        for condition in CONDITIONS:
            flipping, notable = trials[f"flipping{condition}"], trials[f"notable of these{condition}"]
            shares = [n / of for n, of in zip(notable, flipping, strict=True) if of]
            row[f"flipped tokens{condition}"] = sum(flipping) / len(trials)
            row[f"notable share{condition}"] = sum(shares) / len(shares) if shares else None
        row["post: flipped tokens"], row["post: notable share"] = POST.get(units.post_label(unit) or "", (None, None))
        rows.append(row)
    return frame(SUBLAYERS, rows)


def without_posts(summary: pl.DataFrame) -> pl.DataFrame:
    """The summary without the post's numbers, where it has none: of another model's units."""
    return summary.select(s for s in summary if not s.name.startswith("post: ") or s.null_count() < len(s))


def narrow_summary(summary: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The summary as two tables for which a terminal has room, by title.

    Args:
        summary: of ``sublayer_frame``.
    """
    summary = without_posts(summary)
    names = ("its data", "random data", "random neurons")
    titles = {"flipped tokens": "tokens that flip anywhere, mean", "notable share": "share of them that is notable"}
    return {
        title: summary.select(
            pl.col("unit").map_elements(units.label, return_dtype=pl.String),
            "neurons",
            *(pl.col(f"{what}{c}").alias(name) for c, name in zip(CONDITIONS, names, strict=True)),
            *(pl.col(name).alias("the post") for name in summary.columns if name == f"post: {what}"),
        )
        for what, title in titles.items()
    }
