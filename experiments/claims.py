"""What the results claim, read from the committed tables: each number with its control, its table and its section."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

Row = Mapping[str, Any]
METHOD = "Does the post's method work?"
CENSUS = "How many neurons can be read?"
RECORD_OR_MODEL = "Does the record add anything to the finished model?"
HEADS = "What built a head, and what unmade it?"
BIGRAMS = "When are unigrams and bigrams learnt?"
TRUST = "How far can a credit be trusted?"
FORECAST = "Does a credit forecast another training?"
WITHOUT = "What would training have been without a datum?"
PHASES = "Does training have phases?"
MODERN_SMALL = "The same story in a small modern model"
EXTERNAL = "Do numbers that others published come out?"


class Claim(NamedTuple):
    """One line of the table of claims."""

    said: str
    number: str
    control: str
    tables: tuple[str, ...]
    section: str  # title of the section that tells it, and shows the commands


def row(folder: Path, table: str, **of: object) -> Row:
    """The one row of a table that has these values.

    Raises:
        LookupError: there is none, or there are several; the table and the values are named.
    """
    rows = pl.read_parquet(folder / f"{table}.parquet").filter(pl.all_horizontal(pl.lit(True), *_equal(of)))
    if len(rows) != 1:
        raise LookupError(f"{table}: {len(rows)} rows have {of}; a claim is read from one")
    return rows.row(0, named=True)


def _equal(of: Mapping[str, object]) -> list[pl.Expr]:
    return [pl.col(name.replace("_", " ")).eq_missing(pl.lit(value)) for name, value in of.items()]


def within(found: Row, value: str, digits: int = 2, ends: str = "{}") -> str:
    """A number with its interval.

    >>> within({"x": 0.5, "low": 0.25, "high": 1.0}, "x")
    '0.50 [0.25, 1.00]'
    """
    low, high = (found[ends.format(end)] for end in ("low", "high"))
    return f"{found[value]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def share(found: Row, value: str, digits: int = 1, ends: str = "{}") -> str:
    """The same in percent."""
    low, high = (found[ends.format(end)] for end in ("low", "high"))
    return f"{found[value]:.{digits}%} [{low:.{digits}%}, {high:.{digits}%}]"


def spread(column: pl.Series) -> str:
    """The least and the largest of some numbers."""
    values = column.drop_nulls().to_list()
    return f"{min(values):.3f} to {max(values):.3f}"


# ---- the post's method


LAST = "layers.2.linear2.weight"


def notable(folder: Path) -> Claim:
    found = [row(folder, f"{run}/sublayers", unit=LAST) for run in ("post-avx2", "post", "modern")]
    return Claim(
        "Of the tokens that a neuron of the last layer's MLP output flips, the share that is notable: two recordings "
        "of the post's preset, its AdamW twin (the post: 0.137)",
        ", ".join(f"{one['notable share']:.3f}" for one in found),
        "random neurons " + ", ".join(f"{one['notable share, random neurons']:.3f}" for one in found),
        ("post-avx2/sublayers", "post/sublayers", "modern/sublayers"),
        METHOD,
    )


def elsewhere(folder: Path) -> Claim:
    found = pl.concat([pl.read_parquet(folder / f"{run}/sublayers.parquet") for run in ("post-avx2", "post", "modern")])
    rest = found.filter(pl.col("unit").str.contains("linear1"))
    return Claim(
        "The same in the MLPs' input projections, all layers of the three runs",
        spread(rest["notable share"]),
        f"random neurons {spread(rest['notable share, random neurons'])}",
        ("post-avx2/sublayers", "post/sublayers", "modern/sublayers"),
        METHOD,
    )


def of_gpt2(folder: Path) -> Claim:
    found = pl.read_parquet(folder / "gpt2/sublayers.parquet").filter(pl.col("unit").str.contains("c_proj"))
    beyond = f"{int(found['attributed'].sum())} of {int(found['neurons'].sum())} neurons beyond chance"
    return Claim(
        "The same in the MLPs' output projections of a GPT-2 of four layers",
        f"{spread(found['notable share'])}; {beyond}",
        f"random neurons {spread(found['notable share, random neurons'])}",
        ("gpt2/sublayers",),
        MODERN_SMALL,
    )


def readable(run: str, name: str) -> Callable[[Path], Claim]:
    def claim(folder: Path) -> Claim:
        found = {
            made: row(folder, f"{run}/skill_shares", unit="all", neurons="all", made_from=made)
            for made in ("with the record", "model alone", "another neuron's, with the record", "random")
        }
        value = "share, predicted alike"
        ends = f"{value}: {{}}"
        first = found["with the record"]
        others = [share(found[made], value, ends=ends) for made in ("another neuron's, with the record", "random")]
        return Claim(
            f"Neurons of {first['judged']:,} of {name} whose flips a reading of the record finds beyond tokens "
            f"that are predicted as often (false discovery rate 5 %); {first['with flips']:,} flip any token",
            f"{first['found, predicted alike']} = {share(first, value, ends=ends)}",
            f"another neuron's reading {others[0]}, random {others[1]}; finished model alone "
            f"{share(found['model alone'], value, ends=ends)}",
            (f"{run}/skill_shares", f"{run}/skill_census"),
            MODERN_SMALL if run == "gpt2" else CENSUS,
        )

    return claim


def adds(folder: Path) -> Claim:
    runs = ("post", "modern")
    found = pl.concat([pl.read_parquet(folder / f"{run}/skill_nested.parquet") for run in runs])
    own = found.filter(pl.col("measure") == "precision")
    above, below = (own["difference: low"] > 0).sum(), (own["difference: high"] < 0).sum()
    most = own.sort("difference").row(-1, named=True)
    return Claim(
        "Of twelve sublayers of two runs, in how many does a reading with the record surely predict flips better than "
        "the finished model alone, each chosen on other neurons?",
        f"{above}; the largest difference is {within(most, 'difference', 3, 'difference: {}')}",
        f"surely worse in {below}",
        tuple(f"{run}/skill_nested" for run in runs),
        RECORD_OR_MODEL,
    )


def positions(folder: Path) -> Claim:
    of = {"unit": LAST, "neurons": "all"}
    target = row(folder, "post/skill", **of, ranking="target, log odds")
    bag = row(folder, "post/skill", **of, ranking="bag, relative frequency of c ≥ 20 (post)")
    often = row(folder, "post/skill", **of, ranking="token frequency")
    return Claim(
        "Mean average precision in predicting what ablation breaks (last layer's MLP output) by the target token where "
        "the weight moved",
        within(target, "MAP", 3),
        f"the post's ranking, by all tokens of the text, {within(bag, 'MAP', 3)}, token frequency "
        f"{within(often, 'MAP', 3)}",
        ("post/skill",),
        CENSUS,
    )


# ---- heads


def heads_again(folder: Path) -> Claim:
    best = []
    for run in ("post-avx2", "post"):
        table = pl.read_parquet(folder / f"{run}/heads.parquet")
        last = table.filter((pl.col("pattern") == "bracket") & (pl.col("step") == 14_640))
        best.append(last.sort("above").row(-1, named=True))
    return Claim(
        "Attention of the best head from “)” to its “(” at the end of two recordings of one preset and seed",
        ", ".join(f"{one['attention']:.2f} (head {one['head']})" for one in best),
        "other queries at the same distances " + ", ".join(f"{one['by distance']:.2f}" for one in best),
        ("post-avx2/heads", "post/heads"),
        HEADS,
    )


def without_visits(run: str, probe: str, of_all: float, by: str, said: str) -> Callable[[Path], Claim]:
    def claim(folder: Path) -> Claim:
        of = {"from": 976, "measured": probe, "share": of_all, "score": f"{by}, {probe}"}
        table, ends = f"{run}/retrain_controls", "difference {}"
        pools = ("random", "random, equal norm", "random, with (")
        chance, equal, bracket = (row(folder, table, **of, control=pool) for pool in pools)
        gone = row(folder, f"{run}/retrain", **of)["of the change"]
        return Claim(
            said,
            f"{-gone:.0%} of the rise is gone; beyond random by {within(chance, 'difference', 2, ends=ends)}",
            f"beyond equal norm by {within(equal, 'difference', 2, ends=ends)}, beyond texts with a bracket by "
            f"{within(bracket, 'difference', 2, ends=ends)}",
            (table, f"{run}/retrain"),
            HEADS,
        )

    return claim


ONE = "A bracket head of the post's run rises by 0.50 in six steps; without the one visit of 120 that credit names"
TWENTY = "A bracket head of the AdamW twin rises by 0.55 in twenty steps; without the 20 of 400 that influence names"


def previous(folder: Path) -> Claim:
    head = "head:1.2 previous"
    of = {"from": 7808, "measured": head, "share": 0.05, "score": f"influence, {head}"}
    table, ends = "modern/retrain_controls", "difference {}"
    chance, equal = (row(folder, table, **of, control=pool) for pool in ("random", "random, equal norm"))
    found = row(folder, "modern/retrain", **of)
    return Claim(
        "The twin's best previous-token head rises by 0.013 in 24 steps; without the 24 of 480 that influence names",
        f"{-found['of the change']:.0%} of the rise is gone ({found['effect']:+.4f}, foretold "
        f"{found['by influence']:+.4f})",
        f"beyond equal norm by {within(equal, 'difference', 4, ends=ends)}, beyond random by "
        f"{within(chance, 'difference', 4, ends=ends)}",
        (table, "modern/retrain"),
        HEADS,
    )


def dips(folder: Path) -> Claim:
    of = pl.col("series") == "of a window", pl.col("null") == "smooth, noise outside the dip"
    tables = ("post/phases_changed_dips", "modern/phases_changed_dips")
    sgd, adamw = (pl.read_parquet(folder / f"{table}.parquet").filter(*of) for table in tables)
    told = [f"{one['inside']:.2f} (steps {one['from']} to {one['to']})" for one in sgd.to_dicts()]
    deep = [one for one in adamw.to_dicts() if one["inside"] is not None and one["inside"] < 0.5]
    return Claim(
        "Effective sample size of windows of steps at its lowest in the first 1,000 steps of clipped SGD, as a share "
        "of the data; three seeds",
        ", ".join(told),
        f"smooth courses with such noise dip so deep in at most {max(sgd['p'].to_list()):.1%} of draws; with AdamW "
        f"{len(deep)} of {len(adamw)} seeds fall below 0.5",
        tables,
        PHASES,
    )


def induction(folder: Path) -> Claim:
    of = {"from": 280, "measured": "head:1.1 induction", "share": 0.01}
    table = "induction/retrain_controls"
    found = {
        by: {
            control: row(folder, table, **of, score=f"{by}, head:1.1 induction", control=control)
            for control in ("random, equal norm", "random, repeated")
        }
        for by in ("influence", "credit")
    }
    one, other = found["influence"]["random, equal norm"], found["influence"]["random, repeated"]
    credited = found["credit"]["random, equal norm"]
    gone = row(folder, "induction/retrain", **of, score="influence, head:1.1 induction")["of the change"]
    ends = "difference {}"
    return Claim(
        "An induction head without the 1 % of visits (16) that influence names, of 100 steps in which it rises",
        f"{-gone:.0%} of the rise is gone; beyond equal norm by {within(one, 'difference', 4, ends=ends)}",
        f"beyond random repeated texts by {within(other, 'difference', 4, ends=ends)}; 1 % by credit, beyond equal "
        f"norm by {within(credited, 'difference', 4, ends=ends)}",
        (table, "induction/retrain"),
        HEADS,
    )


# ---- the first recording of the post's preset, and influence


def bigrams(folder: Path) -> Claim:
    last = {"step": 14_640, "measure": "direct path, centred", "among": "pairs of the corpus"}
    found = row(folder, "post-avx2/bigram_correlations", **last)
    early = row(folder, "post-avx2/bigram_correlations", **last | {"step": 488})
    return Claim(
        "The decoder's entries come to follow the corpus's log-odds: rank correlation at steps 488 and 14,640",
        f"{early['spearman']:.2f}, {found['spearman']:.2f}",
        f"shuffled pairs {early['spearman, shuffled']:.2f}, {found['spearman, shuffled']:.2f}",
        ("post-avx2/bigram_correlations",),
        BIGRAMS,
    )


def completeness(folder: Path) -> Claim:
    table, loss = "post-avx2/completeness", {"probe": "loss, validation"}
    credit = row(folder, table, **loss, estimate="credit", nodes=3)
    start = row(folder, table, **loss, estimate="gradient at the start", nodes=None)
    return Claim(
        "What credits with three nodes miss of what a step did to the loss",
        share(credit, "missed"),
        f"first-order influence at the step's start {share(start, 'missed', 0)}",
        (table,),
        TRUST,
    )


def left_out(folder: Path) -> Claim:
    table, of = "post-avx2/agreement", {"probe": "loss, validation", "truth": "delta taken away"}
    marginal, start, chance = (
        row(folder, table, **of, score=score) for score in ("marginal", "gradient at the start", "random")
    )
    return Claim(
        "Leaving one datum out of its step: rank correlation of its marginal with what happens",
        within(marginal, "median"),
        f"gradient at the start {within(start, 'median')}, random {within(chance, 'median')}",
        (table,),
        TRUST,
    )


def planted(folder: Path) -> Claim:
    credit, start, chance = (
        row(folder, "post-avx2/planted_cause", score=score, measure="precision", at=10)
        for score in ("credit", "gradient at the start", "random")
    )
    return Claim(
        "Planted causes among the ten data credited most",
        within(credit, "mean"),
        f"gradient at the start {within(start, 'mean')}, random {within(chance, 'mean')}",
        ("post-avx2/planted_cause",),
        TRUST,
    )


def left_out_by_credit(probe: str, of_all: float, said: str, digits: tuple[int, int]) -> Callable[[Path], Claim]:
    """Of the effect and what was foretold, so many digits."""

    def claim(folder: Path) -> Claim:
        table, of = "post-avx2/retrain", {"from": 1464, "share": of_all, "measured": probe}
        credited, chance = (row(folder, table, **of, score=score) for score in (f"credit, {probe}", "random"))
        fine, coarse = digits
        return Claim(
            said,
            f"{credited['effect']:+.{fine}f}, foretold {credited['by credit']:+.{coarse}f}",
            f"random removals {within(chance, 'effect', fine)}",
            (table,),
            FORECAST,
        )

    return claim


NEW_YORK = "The entry “new → york” after 300 steps made again without the 1 % of places credited most for it"
LOSS = "The loss after the same, without the 10 % credited most for lowering it"


def smooth(folder: Path) -> Claim:
    scores = ("influence", "BM25", "EK-FAC", "TRAK", "random")
    of = {score: row(folder, "influence/gpt2_influence", score=score) for score in scores}
    rest = ", ".join(f"{score} {of[score]['rank']:.2f}" for score in scores[1:])
    return Claim(
        "Where training is smooth (a small GPT-2), influence foretells 100 retrainings: rank correlation",
        within(of["influence"], "rank", 3, "rank {}"),
        rest,
        ("influence/gpt2_influence",),
        WITHOUT,
    )


def chaotic(folder: Path) -> Claim:
    post, modern = (
        row(folder, f"influence/{run}/judge_reaches", start=976, measured="loss", score="influence")
        for run in ("post", "modern")
    )
    chance = row(folder, "influence/post/judge_reaches", start=976, measured="loss", score="random")
    return Claim(
        "... and of the post's run, and of its AdamW twin at its highest rate, so many steps ahead",
        f"{within(post, 'reach', 0)}; {within(modern, 'reach', 0)}",
        f"random scores {within(chance, 'reach', 0)}",
        ("influence/post/judge_reaches", "influence/modern/judge_reaches"),
        WITHOUT,
    )


# ---- what others published


def digits(folder: Path) -> Claim:
    table, setting = "external/digits_influence", "mlp, published, double, single images"
    own, other, chance = (row(folder, table, setting=setting, score=score) for score in ("influence", "sgd", "random"))
    ends = "rank {}"
    return Claim(
        "Leaving one image out of one batch of an MLP on digits (a published recipe): rank correlation of influence "
        "through AdamW with retraining",
        within(own, "rank", ends=ends),
        f"influence as of SGD {within(other, 'rank', ends=ends)}, random {within(chance, 'rank', ends=ends)}",
        (table,),
        EXTERNAL,
    )


def modulo(folder: Path) -> Claim:
    table = "external/modulo-41/modulo_rules"
    one, start = row(folder, table, rule="Gauss, 1"), row(folder, table, rule="start")
    return Claim(
        "What the ledger of a whole training misses of the log odds of unseen sums modulo 41, one gradient a step",
        share(one, "missed", 2),
        f"gradient at each step's start {share(start, 'missed', 2)}",
        (table,),
        EXTERNAL,
    )


# ---- the parts of the page


CLAIMS: dict[str, Callable[[Path], Claim]] = {
    "notable": notable,
    "elsewhere": elsewhere,
    "notable, gpt2": of_gpt2,
    "readable": readable("post", "the post's run"),
    "readable, modern": readable("modern", "its AdamW twin"),
    "readable, gpt2": readable("gpt2", "a GPT-2 of four layers (a sample)"),
    "adds": adds,
    "positions": positions,
    "bigrams": bigrams,
    "heads again": heads_again,
    "one": without_visits("post", "head:0.1 bracket", 0.01, "credit", ONE),
    "twenty": without_visits("modern", "head:2.2 bracket", 0.05, "influence", TWENTY),
    "previous": previous,
    "induction": induction,
    "dips": dips,
    "completeness": completeness,
    "left out": left_out,
    "planted": planted,
    "new york": left_out_by_credit("bigram:new york", 0.01, NEW_YORK, (2, 2)),
    "loss": left_out_by_credit("loss", 0.1, LOSS, (3, 1)),
    "smooth": smooth,
    "chaotic": chaotic,
    "digits": digits,
    "modulo": modulo,
}
POST = (  # what the post said, what is so, and by which claims
    (
        "notable tokens of attributed data flip when a neuron is ablated: share 0.137 in `2.linear2`, 0.017 to 0.035 "
        "elsewhere",
        "in `2.linear2` yes; elsewhere it is what random neurons give, and in a GPT-2 everywhere",
        ("notable", "elsewhere", "notable, gpt2"),
    ),
    (
        "1.92 % of neurons can be read",
        "some 8 %, with AdamW 5 %, of a GPT-2 none, and by another reading: the target token where the weight moved, "
        "with what the model predicts there",
        ("readable", "readable, modern", "readable, gpt2", "positions"),
    ),
    (
        "training data add value beyond the finished model",
        "for naming what a neuron does, nothing sure; for naming what made something, yes",
        ("adds", "one", "twenty", "previous", "induction"),
    ),
    ("bigrams are learnt by the direct path", "yes, from step 500 on with SGD, sooner with AdamW", ("bigrams",)),
    (
        "a shift of weights is evidence of what was learnt",
        "an account of a step, complete to 1 %; no forecast, and at a rate of 5 what one recording shows of heads, "
        "another does not",
        ("completeness", "heads again", "chaotic"),
    ),
)


def claims(folder: Path) -> str:
    """All claims as a Markdown table."""
    lines = ["| | claim | number | control | table | told in |", "|---|---|---|---|---|---|"]
    for number, make in enumerate(CLAIMS.values(), 1):
        one = make(folder)
        files = ", ".join(f"[{table}]({table}.parquet)" for table in one.tables)
        cells = (f"{number}", one.said, f"**{one.number}**", one.control, files, f"[§](#{anchor(one.section)})")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def anchor(title: str) -> str:
    """Where a section of the page begins.

    >>> anchor("Does the post's method work?")
    'does-the-posts-method-work'
    """
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def the_post(folder: Path) -> str:
    """What the post said, as a Markdown table."""
    numbers = {name: number for number, name in enumerate(CLAIMS, 1)}
    lines = ["| the post | so? | claims |", "|---|---|---|"]
    lines += [f"| {said} | {so} | {', '.join(str(numbers[name]) for name in names)} |" for said, so, names in POST]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[Path], str]] = {"claims": claims, "the post": the_post}
