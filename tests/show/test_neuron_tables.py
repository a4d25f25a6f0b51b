"""Tables of outliers, neurons, flips, verdicts, skill and activations: they hold ids, and the numbers of the trials."""

import math

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import build_run
from strategies import few, seeds

from devinterp_func import keys, neurons, records, stats, text
from devinterp_func.neurons import ActivationMeans, Excerpt, Extremes, FlipCounts, Neuron, OutlierCourse, Tally, Trial
from devinterp_func.show import results, schema, tables, words

SHAPES = {"layers.0.linear1.weight": (2, 3), "layers.2.linear2.weight": (3, 2)}
VOCAB = text.planted(key=0, n_tokens=500).vocab
UP, DOWN = Neuron("layers.0.linear1.weight", 1), Neuron("layers.2.linear2.weight", 0)


def counts(pairs):
    """Counts of tokens: id -> (count, flips)."""
    count, flips = torch.zeros(len(VOCAB), dtype=torch.int64), torch.zeros(len(VOCAB), dtype=torch.int64)
    for token, (n, flipped) in pairs.items():
        count[token], flips[token] = n, flipped
    return FlipCounts(count, flips)


TRIALS = [
    Trial(UP, torch.tensor([3, 4]), counts({3: (10, 5), 5: (20, 10), 6: (9, 0)}), counts({3: (4, 1)}), counts({})),
    Trial(
        DOWN, torch.tensor([7]), counts({7: (8, 8), 8: (90, 8)}), counts({7: (8, 2), 9: (5, 5)}), counts({7: (8, 1)})
    ),
]
REFERENCE = torch.full((len(VOCAB),), 10)


# ---- outliers


def test_units_add_up_over_epochs_and_weights():
    found = torch.arange(24).view(2, 12)
    frame = tables.outlier_unit_frame(found, SHAPES)
    assert frame["unit"].to_list() == list(SHAPES) and frame["weights"].to_list() == [6, 6]
    assert frame["by epoch"].to_list() == [[15, 87], [51, 123]]
    assert frame["outliers"].to_list() == [102, 174] and frame["share"].to_list() == [102 / 276, 174 / 276]
    assert frame["outliers per weight"].to_list() == [17, 29]


def test_units_without_outliers_have_no_share():
    assert tables.outlier_unit_frame(torch.zeros(1, 12, dtype=torch.int64), SHAPES)["share"].to_list() == [0, 0]


def test_parameters_are_named_by_unit_and_flat_index():
    frame = tables.parameter_frame(torch.tensor([0, 5, 6, 11]), torch.arange(12) * 2, SHAPES, [[1], [], [2, 3], [1]])
    first, last = SHAPES
    assert frame["unit"].to_list() == [first, first, last, last]
    assert frame["flat index"].to_list() == [0, 5, 0, 5] and frame["outliers"].to_list() == [0, 10, 12, 22]
    assert frame["notable tokens"].to_list() == [[1], [], [2, 3], [1]]


def test_the_attribution_table_is_the_records_row_by_row(tmp_path):
    run = build_run(tmp_path / "run")
    shapes = {"a": (2**30,), "b": (2**30,)}  # the records' parameter numbers are arbitrary; negative ones are left out
    shard = next(iter(records.scan_shards(run)))
    rows = neurons.outlier_rows(shard)
    some = neurons.OutlierRows(*(column[rows.parameter >= 0] for column in rows))
    frame = tables.attribution_frame(some, shapes)
    assert len(frame) == len(some.step) > 0
    for i, row in enumerate(frame.iter_rows(named=True)):
        parameter = int(some.parameter[i])
        assert (row["unit"], row["flat index"]) == ("ab"[parameter >= 2**30], parameter % 2**30)
        named = {
            "epoch": "epoch",
            "batch": "batch",
            "datum in batch": "row",
            "datum": "datum",
            "token position": "position",
        }
        for name, field in named.items():
            assert row[name] == int(getattr(some, field)[i])
    assert frame["|delta|"].drop_nans().to_list() == [abs(d) for d in frame["delta"].drop_nans()]


@given(seeds)
@few
def test_outliers_over_training_come_back_as_they_were_written(seed):
    rng = keys.generator(seed)
    bins, n_steps = int(rng.integers(1, 7)), int(rng.integers(7, 30))
    edges = (torch.arange(bins + 1) * n_steps + bins - 1) // bins
    course = OutlierCourse(edges, torch.from_numpy(rng.integers(0, 9, (bins, 2))))
    frame = tables.outlier_course_frame(course, SHAPES)
    read, names = tables.read_course(frame)
    assert names == list(SHAPES) and torch.equal(read.edges, course.edges) and torch.equal(read.counts, course.counts)
    row = frame.row(bins * 2 - 1, named=True)
    assert row == {
        "first step": int(edges[-2]),
        "stop": n_steps,
        "unit": list(SHAPES)[1],
        "outliers": int(course.counts[-1, 1]),
    }


# ---- neurons


def a_tally():
    generator = torch.Generator().manual_seed(0)
    events = torch.tensor([[0, 2], [1, 1], [0, 3]], dtype=torch.int16)
    by_token = (torch.randint(0, 5, (2, len(VOCAB)), generator=generator).int() for _ in range(2))
    return Tally((UP, DOWN), torch.tensor([1, 9]), events, *by_token)


def a_neuron_frame():
    lists = {"notable tokens": [[], [4]], "notable as a whole": [[1], []], "notable targets": [[2, 3], [5]]}
    return tables.neuron_frame(a_tally(), {DOWN: [6, 8]}, lists, [DOWN])


def test_neurons_carry_their_counts_tokens_and_choice():
    frame = a_neuron_frame()
    assert frame["neuron"].to_list() == [str(UP), str(DOWN)] and frame["unit"].to_list() == list(SHAPES)
    assert frame["outliers"].to_list() == [1, 9] and frame["data"].to_list() == [1, 3]
    assert frame["frequent parameters"].to_list() == [0, 2]
    assert frame["notable tokens"].to_list() == [[], [4]] and frame["notable targets"].to_list() == [[2, 3], [5]]
    assert frame["chosen"].to_list() == [False, True]


def test_a_tally_comes_back_as_it_was_stored(tmp_path):
    tally, bag = a_tally(), torch.arange(2 * len(VOCAB)).view(2, -1)
    tables.write_tally(tmp_path, tally, bag)
    results.write_table(tmp_path, "neurons", a_neuron_frame())
    found, tokens = tables.read_tally(tmp_path)
    assert found.groups == tally.groups and torch.equal(tokens, bag.int())
    assert all(torch.equal(a, b) for a, b in zip(found[1:], tally[1:], strict=True))


def test_views_are_ids_beside_the_datum_attributed_most():
    views = {
        UP: neurons.ModelView(None, None, 0.5, 0.25, torch.tensor([6])),
        DOWN: neurons.ModelView(torch.tensor([1, 2]), torch.tensor([3]), -0.125, 0.0, torch.tensor([7])),
    }
    frame = tables.view_frame(views, {UP: (1, 3), DOWN: (0, 9)})
    assert frame["logits raised"].to_list() == [None, [1, 2]] and frame["logits lowered"].to_list() == [None, [3]]
    assert frame["most active on"].to_list() == [[6], [7]] and frame["mean activation"].to_list() == [0.5, -0.125]
    assert frame["datum"].to_list() == [1, 0] and frame["times"].to_list() == [3, 9]
    assert frame["share active"].to_list() == [0.25, 0.0]


# ---- flips


def test_flip_tables_are_the_posts_with_controls_most_flips_first():
    frame = tables.flips_frame(TRIALS)
    own = frame.filter(pl.col("neuron") == str(UP))
    assert own["token"].to_list() == [5, 3]  # token 6 never flips
    assert own["flips"].to_list() == [10, 5] and own["count"].to_list() == [20, 10]
    assert own["proportion"].to_list() == [0.5, 0.5] and own["notable"].to_list() == [False, True]
    assert own["random data: proportion"].to_list() == [0, 0.25] and own["random data: count"].to_list() == [0, 4]
    other = frame.filter(pl.col("neuron") == str(DOWN))
    assert other["token"].to_list() == [7, 8] and other["random neurons: proportion"].to_list() == [1 / 8, 0]


def test_frames_without_rows_keep_columns_and_types():
    silent = TRIALS[0]._replace(attributed=counts({3: (10, 0)}))
    assert tables.flips_frame([silent, TRIALS[1]])["neuron"].unique().to_list() == [str(DOWN)]
    full = tables.flips_frame(TRIALS)
    assert tables.flips_frame([silent]).schema == tables.flips_frame([]).schema == full.schema
    verdicts = tables.verdict_frame(TRIALS, REFERENCE, [3, 4], key=0)
    assert tables.verdict_frame([], REFERENCE, [], key=0).schema == verdicts.schema
    assert tables.judged(verdicts.clear()).schema == verdicts.schema
    assert tables.sublayer_frame(verdicts.clear()).schema == tables.sublayer_frame(verdicts).schema
    assert tables.view_frame({}, {}).is_empty() and tables.flip_excerpt_frame({}, {}).is_empty()


def test_flipped_predictions_are_found_again_in_their_text():
    tokens = torch.arange(12).view(2, 6)
    before, after = torch.zeros(2, 6).long(), torch.tensor([[0, 0, 0, 9, 0, 0], [8, 0, 0, 0, 0, 0]])
    quoted = list(neurons.excerpts(tokens, before, after, width=2))
    frame = tables.flip_excerpt_frame({UP: quoted[:1], DOWN: quoted[1:]}, {UP: [3], DOWN: [8]})
    assert frame.rows() == [(str(UP), 0, 3, 0, 9, False), (str(DOWN), 1, 0, 0, 8, True)]
    row = frame.row(0, named=True)
    again = neurons.excerpt_at(tokens[row["datum"]], row["datum"], row["position"], row["before"], row["after"], 2)
    assert again == quoted[0] == Excerpt(0, 3, (2, 3), 0, 9, (4, 5), (True, False))
    told = VOCAB.decode([2, 3, 0, 9, 4, 5])
    expected = "… {} {} ({} | {}) {} {}".format(*told)
    assert str(words.flip_excerpt(again, VOCAB)).split() == expected.split()


# ---- verdicts


def test_verdicts_and_sublayers_agree_with_the_trials():
    frame = tables.verdict_frame(TRIALS, REFERENCE, [30, 40], key=0)
    assert frame["data"].to_list() == [30, 40] and frame["unit"].to_list() == list(SHAPES)
    assert frame["flipped"].to_list() == [2, 1] and frame["flipped, random data"].to_list() == [0, 2]
    assert frame["flipped, random neurons"].to_list() == [0, 1]
    assert frame["both"].to_list() == [[3], [7]] and frame["notable and flipped"].to_list() == [1, 1]
    assert frame["notable tokens"].to_list() == [[3, 4], [7]]
    assert frame["flipping"].to_list() == [2, 2] and frame["notable of these"].to_list() == [1, 1]
    assert frame["flipping, random data"].to_list() == [1, 2]
    assert frame["notable of these, random data"].to_list() == [1, 1]
    assert frame["expected"].to_list() == [pytest.approx(1 * 2 / 3), pytest.approx(1 * 1 / 2)]
    summary = tables.sublayer_frame(frame)
    assert summary["unit"].to_list() == list(SHAPES) and summary["neurons"].to_list() == [1, 1]
    assert summary["flipped tokens"].to_list() == [2, 2] and summary["notable share"].to_list() == [0.5, 0.5]
    assert summary["flipped tokens, random data"].to_list() == [1, 2]
    assert summary["notable share, random neurons"].to_list() == [None, 1]  # nothing flips: no share
    assert summary["post: flipped tokens"].to_list() == [tables.POST["1.1"][0], tables.POST["3.2"][0]]


def test_a_sublayers_share_is_the_mean_over_its_neurons_with_flips():
    same_unit = [TRIALS[0], TRIALS[0]._replace(neuron=UP._replace(index=2), notable=torch.tensor([3, 5]))]
    silent = TRIALS[0]._replace(neuron=UP._replace(index=0), attributed=counts({3: (10, 0)}))
    frame = tables.verdict_frame([*same_unit, silent], REFERENCE, [1, 1, 1], key=0)
    (row,) = tables.sublayer_frame(frame).iter_rows(named=True)
    assert row["neurons"] == 3 and row["flipped tokens"] == pytest.approx(4 / 3)
    assert row["notable share"] == pytest.approx((0.5 + 1) / 2)


@given(seeds)
@few
def test_discoveries_are_made_over_all_rows_of_the_table(seed):
    p = torch.from_numpy(keys.generator(seed).uniform(0, 0.1, 6))
    one = tables.verdict_frame(TRIALS[:1], REFERENCE, [1], key=0)
    frame = pl.concat([one.with_columns(p=pl.lit(float(x))) for x in p])
    order = sorted(p.tolist())
    passed = [x for i, x in enumerate(order, 1) if x <= 0.05 * i / 6]  # Benjamini and Hochberg
    expected = [x <= max(passed, default=-1) for x in p.tolist()]
    assert tables.judged(frame)["attributed"].to_list() == expected


def test_a_terminal_has_the_summary_in_two_tables():
    summary = tables.sublayer_frame(tables.verdict_frame(TRIALS, REFERENCE, [1, 1], key=0))
    flipped, share = tables.narrow_summary(summary).values()
    assert flipped.columns == ["unit", "neurons", "its data", "random data", "random neurons", "the post"]
    assert flipped["unit"].to_list() == ["0.linear1", "2.linear2"] and flipped["random data"].to_list() == [1, 2]
    assert share["random neurons"].to_list() == [None, 1] and share["the post"].to_list() == [0.017, 0.137]


# ---- skill


def test_skill_rows_are_means_with_their_intervals():
    precision = torch.tensor([0.5, torch.nan, 0.25, 1.0], dtype=torch.float64)
    rows = tables.skill_rows(UP.unit, "record", "a score", precision, ["a", "a", "b", "b"], key=0)
    assert [row["neurons"] for row in rows] == ["all", "a", "b"]
    assert [row["MAP"] for row in rows] == pytest.approx([1.75 / 3, 0.5, 0.625])
    assert [row["neurons with flips"] for row in rows] == [3, 1, 2]
    low, value, high = ([float(str(row[name])) for row in rows] for name in ("low", "MAP", "high"))
    assert low[0] < value[0] < high[0] and (low[2], high[2]) == (0.25, 1)
    assert math.isnan(low[1]) and math.isnan(high[1])  # of one neuron nothing is known about others
    assert {row["unit"] for row in rows} == {UP.unit} and {row["kind"] for row in rows} == {"record"}


def test_the_best_with_the_record_is_held_against_the_best_without():
    nan = torch.nan
    precisions = {
        ("record", "worse"): [0.1, nan, 0.2, 0.1],
        ("record and model", "best"): [0.4, nan, 0.8, 0.6],
        ("model", "alone"): [0.2, nan, 0.5, 0.2],
        ("model", "worst"): [0.1, nan, 0.1, 0.1],
        ("chance", "lucky"): [0.9, nan, 0.9, 0.9],
    }
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in precisions.items()}
    (row,) = tables.contrast_rows(UP.unit, found, key=3)
    assert (row["with the record"], row["model alone"], row["neurons with flips"]) == ("best", "alone", 3)
    assert row["difference"] == pytest.approx(0.3) and row["ratio"] == pytest.approx(2)
    paired = stats.compare_scores(found["record and model", "best"], found["model", "alone"], key=3)
    assert (row["difference: low"], row["ratio: high"]) == (paired.difference.low, paired.ratio.high)
    silent = {name: torch.full_like(values, nan) for name, values in found.items()}
    assert tables.contrast_rows(UP.unit, silent, key=3) == []


def test_skill_by_unit_has_the_best_first():
    rows = []
    for unit, values in ((UP.unit, (0.5, 0.2)), (DOWN.unit, (0.1, torch.nan))):
        for name, value in zip(("b", "a"), values, strict=True):
            precision = torch.tensor([value], dtype=torch.float64)
            rows += tables.skill_rows(unit, "model", name, precision, ["most outliers"], key=0)
    wide = tables.skill_by_unit(schema.frame(tables.SKILL, rows))
    assert wide.columns == ["kind", "ranking", "0.linear1", "2.linear2"]
    assert wide["ranking"].to_list() == ["b", "a"] and wide["0.linear1"].to_list() == [0.5, 0.2]
    assert tables.skill_by_unit(schema.frame(tables.SKILL, [])).columns[:2] == ["kind", "ranking"]


# ---- activations


def test_ranks_of_activation_count_from_the_most_active():
    means = ActivationMeans(
        torch.tensor([30, 0, 40]), torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, -1.0]]), torch.ones(3, 2)
    )
    row = tables.activation_row(UP, means, 0)
    assert (row["rank among neurons"], row["of neurons"], row["mean activation"], row["positions"]) == (1, 2, 3, 30)
    assert row["percentile among tokens"] == 100  # above the other frequent token's −1
    assert tables.activation_row(UP._replace(index=0), means, 0)["rank among neurons"] == 2
    absent = tables.activation_row(UP, means, 1)
    assert absent["mean activation"] is None and absent["positions"] == 0 and absent["rank among neurons"] is None
    alone = means._replace(count=torch.tensor([30, 0, 19]))
    assert tables.activation_row(UP, alone, 0)["percentile among tokens"] is None  # no other token is frequent
    assert tables.activation_row(UP, alone, 2)["percentile among tokens"] == 0


def test_extremes_are_ranked_from_one():
    extremes = Extremes(torch.tensor([4, 1]), torch.tensor([-1.0, 0.0]), torch.tensor([2, 3]), torch.tensor([5.0, 4.0]))
    rows = tables.extreme_rows(DOWN, 9, extremes)
    assert [tuple(row.values()) for row in rows] == [(str(DOWN), 9, 1, 2, 5, 4, -1), (str(DOWN), 9, 2, 3, 4, 1, 0)]


def test_histograms_come_back_as_they_were_written():
    by_token = neurons.histograms({3: torch.tensor([0.0, 1.0, 2.0]), 5: torch.tensor([4.0, 0.5])}, bins=4)
    by_index = neurons.histograms({0: torch.tensor([1.0]), 1: torch.zeros(2), 2: torch.tensor([-1.0, 1.0])}, bins=4)
    frames = tables.activation_frames([], [], tables.histogram_rows(UP, 3, by_token, by_index))
    found = tables.read_histograms(frames["activation_histograms"][1])
    for read, written in zip(found, (by_token, by_index), strict=True):
        assert read.keys() == written.keys()
        for name, histogram in written.items():
            torch.testing.assert_close(read[name].edges, histogram.edges)
            assert read[name].counts.tolist() == histogram.counts.tolist()
            assert read[name].zeros == histogram.zeros
            assert read[name].median == histogram.median or histogram.median != histogram.median
    assert all(frame.schema == {n: c.dtype for n, c in kind.columns.items()} for kind, frame in frames.values())


def test_tables_of_ids_are_spelled():
    frame = words.spell(tables.flips_frame(TRIALS), tables.FLIPS, VOCAB)
    assert frame["token"].to_list()[:2] == VOCAB.decode([5, 3])
    spelled = words.spell(a_neuron_frame(), tables.NEURONS, VOCAB)
    assert spelled["notable targets"].to_list() == [VOCAB.decode([2, 3]), VOCAB.decode([5])]


def census_of(p, alike, made_from, found=True):
    n = len(p)
    chosen = neurons.Nested(("a", "b"), torch.arange(n) % 2 == 1, torch.rand(n).double()) if found else None
    names, groups = [f"layers.0.linear1.weight:{i}" for i in range(n)], ["most outliers", "random others"] * n
    about = "layers.0.linear1.weight", names, groups[:n], made_from, chosen, ~p.isnan()[:, None], p
    return tables.census_rows(*about, {"p": p, "p, predicted alike": alike})


@given(st.lists(st.one_of(st.just(float("nan")), st.floats(0.0005, 1)), min_size=1, max_size=30))
def test_a_census_is_judged_for_each_kind_of_rankings_by_itself(chances):
    p = torch.tensor(chances, dtype=torch.float64)
    certain, alike = torch.where(p.isnan(), p, 1.0), torch.where(p.isnan(), p, p / 2)
    rows = census_of(p, alike, "with the record") + census_of(certain, certain, "random")
    table = tables.judged_census(rows)
    assert not table.filter(pl.col("made from") == "random")["beyond chance"].any()
    own = table.filter(pl.col("made from") == "with the record")
    for values, verdict in zip((p, alike), tables.JUDGED_BY.values(), strict=True):
        assert own[verdict].to_list() == stats.false_discovery(values.nan_to_num(1.0), 0.05).tolist()
        everything = tables.census_summary(table, verdict).row(by_predicate=pl.col("unit") == "all", named=True)
        assert everything["with the record"] == own[verdict].sum() and everything["random"] == 0
        assert everything["neurons"] == len(p) and everything["with flips"] == int((~p.isnan()).sum())
    assert own["ranking"].to_list() == ["a", "b"] * (len(p) // 2) + ["a"] * (len(p) % 2)
    shares = tables.share_frame(table)
    for row in shares.iter_rows(named=True):
        part = table.filter(pl.col("made from") == row["made from"])
        part = part if row["neurons"] == "all" else part.filter(pl.col("neurons") == row["neurons"])
        part = part if row["unit"] == "all" else part.filter(pl.col("unit") == row["unit"])
        assert (row["judged"], row["with flips"]) == (len(part), int((part["flips"] > 0).sum()))
        for verdict, told in zip(tables.JUDGED_BY.values(), ("", ", predicted alike"), strict=True):
            expected = stats.share(part[verdict].to_torch())
            assert row[f"found{told}"] == part[verdict].sum() and row[f"share{told}"] == expected.value
            assert (row[f"share{told}: low"], row[f"share{told}: high"]) == (expected.low, expected.high)
    assert len(shares) == 2 * 2 * (1 + min(2, len(p)))  # by unit and in all; of all and of each group


def test_neurons_of_a_unit_in_which_nothing_could_be_chosen_are_counted_too():
    p = torch.full((3,), torch.nan).double()
    table = tables.judged_census(census_of(p, p, "with the record", found=False))
    assert table["ranking"].is_null().all() and not table["beyond chance"].any()
    assert tables.share_frame(table)["judged"].to_list() == [3, 3, 2, 1, 2, 1]


def test_a_census_of_nothing_keeps_its_columns():
    assert tables.judged_census([]).columns == list(tables.CENSUS.columns)
    assert tables.share_frame(tables.judged_census([])).columns == list(tables.SHARES.columns)
