"""Laws of the summary: every number is the tables', counted by hand; no sentence without its table or its control."""

import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import PLANTED, recorded

from devinterp_func import show
from devinterp_func.bigram import SEEN_AND_UNSEEN
from devinterp_func.records import Recording
from devinterp_func.show import _credit_findings, _neuron_findings, _summary, page, results, schema, tables
from devinterp_func.show._written import p_value
from devinterp_func.training import Recipe

some = settings(max_examples=25, deadline=None)
KEY = {"start": 0, "stop": 6, "nodes": 3, "texts": 20, "seed": 0}
shown = page.shown


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(context=8, batch_size=6, n_steps=3)
    return recorded(tmp_path_factory.mktemp("summary") / "run", recipe, Recording(k=3, snapshot_every=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def write(folder, name, kind, rows):
    results.write_table(folder, name, schema.frame(kind, rows))


def blank(table, /, **values):
    """A row of a table: what is not given is null."""
    return dict.fromkeys(table.columns) | values


def says(text, *parts):
    assert text is not None
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


# ---- one by one

COUNTS = st.integers(0, 4) | st.none()
VERDICT = st.tuples(st.booleans(), st.floats(0, 1), st.integers(0, 4), COUNTS, COUNTS)


@some
@given(st.lists(VERDICT, min_size=1, max_size=12))
def test_verdicts_are_counted_beside_their_controls(run, folder, rows):
    names = ("attributed", "p, like frequency", *(f"notable of these{end}" for end in tables.CONDITIONS))
    each = [
        blank(tables.VERDICTS, neuron=f"a:{i}", unit="a", **dict(zip(names, row, strict=True)))
        for i, row in enumerate(rows)
    ]
    write(folder, "verdicts", tables.VERDICTS, each)
    said = _neuron_findings.verdicts(run, folder) or ""
    own, data, others = ([row[i] for row in rows if row[i] is not None] for i in (2, 3, 4))
    says(said, f"{page.counted(len(rows), 'neuron')} ablated: {sum(n > 0 for n in own)} of {len(rows)} flip")
    for control, how in ((others, "random neurons in their place"), (data, "on random data")):
        assert (how in said) == bool(control)
        if control:
            says(said, f"{sum(n > 0 for n in control)} of {len(control)} {how} do")
    says(said, f"Beyond chance {sum(row[0] for row in rows)} flip them")
    says(said, f"{sum(row[1] < 0.05 for row in rows)} have p < 0.05, where chance gives {len(rows) * 0.05:.1f}")


SHARE = st.tuples(st.floats(0, 1) | st.none(), st.floats(0, 1) | st.none())


@some
@given(st.lists(SHARE, min_size=1, max_size=6))
def test_the_unit_whose_share_is_farthest_above_its_control_is_named(run, folder, pairs):
    write(folder, "verdicts", tables.VERDICTS, [blank(tables.VERDICTS, neuron="a:0", **{"notable of these": 1})])
    names = [f"layers.{i}.linear1.weight" for i in range(len(pairs))]
    columns = ("notable share", "notable share, random neurons")
    rows = [
        blank(tables.SUBLAYERS, unit=n, **dict(zip(columns, p, strict=True))) for n, p in zip(names, pairs, strict=True)
    ]
    write(folder, "sublayers", tables.SUBLAYERS, rows)
    said = _neuron_findings.verdicts(run, folder) or ""
    (folder / "sublayers.parquet").unlink()
    known = [(a, b, i) for i, (a, b) in enumerate(pairs) if a is not None and b is not None]
    assert ("Of the tokens that flip" in said) == bool(known)
    if known:
        share, control, i = max(known, key=lambda one: one[0] - one[1])
        says(said, f"in {sum(a > b for a, b, _ in known)} of {page.counted(len(known), 'unit')}", f"in {i}.linear1")
        says(said, f"{share:.1%}, random neurons {control:.1%}.")


def skills(folder, table):
    rows = [
        blank(tables.SKILL, unit=f"layers.{u}.linear1.weight", neurons="all", kind=kind, ranking=name, MAP=value)
        for (kind, name), values in table.items()
        for u, value in enumerate(values)
    ]
    write(folder, "skill", tables.SKILL, rows)


@some
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=2, max_size=2), min_size=6, max_size=6))
def test_skill_has_the_best_of_each_kind_beside_chance(run, folder, values):
    kinds = ("record", "record and model", "model", "model", "chance", "record")
    names = ("a", "b", "c", "d", "e", "bag, relative frequency of c ≥ 20 (post)")
    table = dict(zip(zip(kinds, names, strict=True), values, strict=True))
    skills(folder, table)
    said = _neuron_findings.skill(run, folder) or ""
    mean = {name: statistics.mean(v) for name, v in table.items()}
    for of, how in (("record", "with the record"), ("model", "of the finished model alone"), ("chance", "by chance")):
        best = max((mean[name], -i, name[1]) for i, name in enumerate(table) if name[0].startswith(of))
        says(said, f"{shown(best[0])} {how} (“")
    says(said, f"{shown(mean[kinds[-1], names[-1]])} by the post's.")


DIFFERENCE = st.tuples(st.floats(-1, 1), st.none() | st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)))


@some
@given(st.lists(DIFFERENCE, min_size=1, max_size=6))
def test_what_the_record_adds_is_told_with_what_speaks_against_it(run, folder, differences):
    skills(folder, {("model", "c"): [0.5] * len(differences)})
    rows = []
    for d, ends in differences:
        low, high = (None, None) if ends is None else (d - ends[0], d + ends[1])
        interval = {"difference: low": low, "difference: high": high}
        rows.append(blank(tables.CONTRASTS, unit="u", difference=d, **interval))
    write(folder, "skill_contrasts", tables.CONTRASTS, rows)
    said = _neuron_findings.skill(run, folder) or ""
    (folder / "skill_contrasts.parquet").unlink()
    says(said, f"in {sum(d > 0 for d, _ in differences)} of {page.counted(len(differences), 'unit')}")
    sure = [(d - ends[0], d + ends[1]) for d, ends in differences if ends is not None]
    if sure:
        ahead, behind = sum(low > 0 for low, _ in sure), sum(high < 0 for _, high in sure)
        says(said, f"surely in {ahead}, and surely lower in {behind}, of {len(sure)} with an interval")
    else:
        says(said, "no difference has an interval")


def test_skill_tells_of_rankings_chosen_on_other_neurons_where_there_are(run, folder):
    skills(folder, {("model", "c"): [0.5]})
    about = {"unit": "layers.0.linear1.weight", "with the record": "a", "model alone": "c"}
    measured = {"MAP with the record": 0.3, "MAP of the model alone": 0.1, "difference": 0.2}
    row = about | measured | {"difference: low": 0.1, "difference: high": 0.3, "neurons with flips": 3}
    write(folder, "skill_nested", tables.NESTED, [row | {"measure": measure} for measure in tables.MEASURES])
    rows = [
        {"unit": about["unit"], "neuron": f"{about['unit']}:{i}", "neurons": "random others", "made from": made}
        | {"ranking": "a", "flips": i % 2, "precision": 0.5, "p": 0.01, "p, predicted alike": 0.01}
        | {"beyond chance": made == "with the record" and i < 2}
        | {"beyond chance, predicted alike": made == "model alone" and i < 3}
        for i in range(5)
        for made in tables.MADE_FROM
    ]
    write(folder, "skill_census", tables.CENSUS, rows)
    said = _neuron_findings.skill(run, folder) or ""
    assert "both chosen on other neurons, in 1 of 1 unit: surely in 1, and surely lower in 0" in said
    assert "Of 5 neurons judged 2 flip a token;" in said
    others = "another neuron's, with the record, 0 another neuron's, model alone, 0 random"
    assert f"beyond tokens of like frequency those of 2 with the record, 0 model alone, 0 {others};" in said
    assert said.endswith(f"beyond tokens predicted as often those of 0 with the record, 3 model alone, 0 {others}.")
    write(folder, "skill_census", tables.CENSUS, [])
    assert (_neuron_findings.skill(run, folder) or "").endswith("with an interval of 95 %.")
    for name in ("skill_nested", "skill_census"):
        (folder / f"{name}.parquet").unlink()


WINDOW = st.tuples(*[st.floats(-5, 5).map(lambda x: round(x, 3))] * 3, st.floats(0.1, 9))


@some
@given(st.lists(WINDOW, min_size=1, max_size=4), st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True))
def test_a_ledger_is_told_by_its_sums_and_its_first_token(run, folder, windows, shares):
    value, rows = 1.0, []
    for w, (up, down, past, change) in enumerate(windows):
        sums = {"value": value, "raised": abs(up), "lowered": -abs(down), "past": past, "decay": 0.0}
        sums |= {"net missed": 0.0, "missed": 0.125, "change": change}
        rows.append(blank(tables.COURSES, probe="loss", step=2 * w, steps=2, **KEY, **sums))
        value += abs(up) - abs(down) + past
    other = [row | {"probe": "other"} for row in rows]
    write(folder, "ledger_courses", tables.COURSES, rows + other)
    said = _credit_findings.credits(run, folder) or ""
    past = sum(row["past"] for row in rows)
    says(said, f"`loss` went from {shown(1.0)} to", "in steps 0 to 6", "1 more ledger is there", "Σ|Δf|")
    end = float(re.findall(r"to (\S+) in steps", said)[0].replace("−", "-").replace("×10", "e").translate(POWERS))
    assert end == pytest.approx(value, rel=0.06, abs=1e-9)
    assert (" past (" in said) == bool(past)
    says(said, f"miss {0.125 * len(rows) / sum(row['change'] for row in rows):.2%}", "raised it by")
    tokens = [
        blank(tables.INPUTS, probe="loss", input=i, **KEY, **{"share of gross": s, "share of positions": s / 2})
        for i, s in enumerate(shares)
    ]
    write(folder, "ledger_inputs", tables.INPUTS, [row | {"probe": "other"} for row in tokens[:1]] + tokens)
    told = _credit_findings.credits(run, folder) or ""
    (folder / "ledger_inputs.parquet").unlink()
    most = max(shares)
    word = PLANTED.vocab.tokens[shares.index(most)]
    says(told, f"read “{word}” made {most:.1%} of the absolute credits and are {most / 2:.1%} of the positions")


POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
HEAD = st.tuples(st.floats(0, 1), st.none() | st.floats(0, 1))


@some
@given(st.lists(HEAD, min_size=1, max_size=6))
def test_the_head_farthest_above_its_control_is_told_beside_it(run, folder, pairs):
    rows = [
        blank(
            tables.HEADS,
            pattern="same",
            head=f"0.{i}",
            step=step,
            attention=a,
            above=a - (c or 0),
            **{"by distance": c},
        )
        for step, factor in ((0, 0.5), (4, 1))
        for i, (a, c) in enumerate((a * factor, c) for a, c in pairs)
    ]
    write(folder, "heads", tables.HEADS, rows)
    said = _credit_findings.heads(run, folder) or ""
    held = [(a - c, a, c, i) for i, (a, c) in enumerate(pairs) if c is not None]
    if not held:
        says(said, "no control")
        return
    above = max(held, key=lambda one: one[0])
    says(said, f"Before step 4 head 0.{above[3]} gives {above[1]:.1%}", f"get {above[2]:.1%} of it")
    says(said, page.counted(len(held), "pair"), f"{sum(a >= 2 * c for _, a, c, _ in held)} give at least twice")


@some
@given(st.lists(st.tuples(st.floats(-3, 3), st.none() | st.floats(0, 2)), min_size=1, max_size=4))
def test_removals_are_told_beside_random_ones(run, folder, effects):
    rows = []
    for i, (distance, half) in enumerate(effects):
        low, high = (None, None) if half is None else (distance - half, distance + half)
        span = {"from": 0, "to": 6, "measured": f"p{i}", "count": 30}
        ends = {"SDs": distance, "SDs low": low, "SDs high": high}
        for share in (0.1, 0.2):
            own = {"share": share, "score": f"credit, p{i}", "effect": 10 * share + i}
            rows.append(blank(tables.REMOVALS, **span, **own, **(ends if share == 0.2 else {})))
            chance = {"score": "random", "effect": 0.25, "low": 0.125, "high": 0.5}
            rows.append(blank(tables.REMOVALS, **span, share=share, **chance))
        rows.append(blank(tables.REMOVALS, **span, share=0.2, score="credit, another", effect=99.0))
    write(folder, "retrain", tables.REMOVALS, rows)
    said = _credit_findings.removals(run, folder) or ""
    says(said, f"`p0` ends {shown(2.0)} from where it ended; random removals change it by 0.250 [0.125, 0.500]")
    sure = sum(half is not None and (d - half > 0 or d + half < 0) for d, half in effects)
    says(said, f"Of {page.counted(len(effects), 'probe')} removed by credit, {sure} surely differ")


@some
@given(st.floats(-1, 1), st.floats(-1, 1))
def test_bigrams_are_told_beside_shuffled_tokens(run, folder, rho, control):
    rows = [
        blank(
            tables.BIGRAM_CORRELATIONS,
            step=step,
            measure=f"{what}, centred",
            among=among,
            n=70,
            spearman=rho if step == 6 and among == SEEN_AND_UNSEEN else 0.999,
            **{"spearman, shuffled": control},
        )
        for step in (0, 6)
        for what in ("whole model", "direct path")
        for among in ("pairs of the corpus", SEEN_AND_UNSEEN)
    ]
    write(folder, "bigram_correlations", tables.BIGRAM_CORRELATIONS, rows)
    said = _neuron_findings.bigrams(run, folder) or ""
    for what in ("whole model", "direct path"):
        says(said, f"{what} by {shown(rho)} (tokens shuffled: {shown(control)})")
    says(said, "Before step 6", "70 pairs")


@some
@given(st.floats(-9, 9), st.floats(-9, 9), st.lists(st.integers(0, 9), max_size=3), st.none() | st.floats(0, 1))
def test_phases_are_told_beside_a_smooth_course(run, folder, one, smooth, steps, p):
    found = {"change points": len(steps), "at steps": steps}
    found |= {"over one segment": one, "over a smooth course": smooth}
    rows = [blank(tables.CHANGES, run="run", series=name, **found) for name in ("loss", "all")]
    rows[0] |= {"change points": 77}
    write(folder, "phases_changes", tables.CHANGES, rows)
    near = [
        blank(tables.COINCIDENCE, run="run", axis=axis, series=2, distance=1.0, chance=2.0, p=p)
        for axis in ("steps", "log steps")
    ]
    write(folder, "phases_coincidence", tables.COINCIDENCE, near)
    said = _neuron_findings.phases(run, folder) or ""
    says(said, f"{page.counted(len(steps), 'change point')}", shown(one))
    says(said, f"{'ahead of' if smooth > 0 else 'behind'} a smooth course by {shown(abs(smooth))}")
    assert ("by chance" in said) == (p is not None)
    if p is not None:
        says(said, p_value(p))


# ---- all together


def test_nothing_is_said_without_a_table_or_of_an_empty_one(run, tmp_path):
    assert _summary.findings(run, tmp_path) == [] and show.summary(run, tmp_path) == []
    for name, kind in {"verdicts": tables.VERDICTS, "skill": tables.SKILL, "heads": tables.HEADS}.items():
        write(tmp_path, name, kind, [])
    assert show.summary(run, tmp_path) == []


def test_a_part_that_is_missing_leaves_the_rest(run, tmp_path):
    write(tmp_path, "influences", tables.INFLUENCES, [blank(tables.INFLUENCES, probe="loss")])  # without its horizons
    write(tmp_path, "verdicts", tables.VERDICTS, [blank(tables.VERDICTS, neuron="a:0", **{"notable of these": 1})])
    assert [finding.section for finding in _summary.findings(run, tmp_path)] == ["Verdicts"]


def test_it_is_the_reports_first_section_and_leads_to_the_others(run, tmp_path):
    rows = [blank(tables.HEADS, pattern="same", head="0.1", step=2, attention=0.5, above=0.25, **{"by distance": 0.25})]
    write(tmp_path, "heads", tables.HEADS, [row | {"queries": 4} for row in rows])
    html = show.report(run, tmp_path)
    titles = [re.sub("<.*?>", " ", title).split(maxsplit=1)[1] for title in re.findall(r"<h2>(.*?)</h2>", html)]
    assert titles[:2] == ["Summary", "The run"]
    section = html[html.index('<section id="summary">') :].split("</section>")[0]
    [(address, title)] = re.findall(r'<a href="#(.*?)">(.*?)</a>', section)
    assert title == "What heads attend to" and f'<section id="{address}">' in html
    [sentence] = show.summary(run, tmp_path)
    assert page.prose(sentence) in section


def test_titles_are_those_of_the_sections():
    written = "\n".join(path.read_text() for path in Path(_summary.__file__).parent.glob("_*_sections.py"))
    for title in _summary.TOPICS:
        assert f'"{title}"' in written, title
