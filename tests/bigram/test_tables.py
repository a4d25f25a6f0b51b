"""Laws of the bigram tables: published numbers are what they should be; ids, not words; empty tables keep columns."""

import polars as pl
import pytest
import torch
from run_builders import PLANTED

from devinterp_func import bigram
from devinterp_func.bigram import RANKED, Correlation, Fit, Followed, Pairs, Shifts, Span
from devinterp_func.show import _bigram_sections, page, results, tables
from devinterp_func.show.tables import _bigram

SPANS = [Span(0, 20), Span(20, 75)]


def typed(frame, kind):
    """Whether a frame has a kind's columns."""
    return dict(frame.schema) == {name: pl.Schema({name: c.dtype})[name] for name, c in kind.columns.items()}


def test_the_largest_shifts_stand_with_the_corpus_and_the_text_behind_them(walked):
    data = walked.run.data
    frame = tables.largest_frame(walked.shifts, SPANS, data, walked.counts, most=4)
    assert typed(frame, tables.BIGRAM_LARGEST) and frame["from step"].unique().sort().to_list() == [0, 20]
    expected = [shift for span in SPANS for shift in bigram.largest_shifts(walked.shifts, span, 4, 2)]
    stream = PLANTED.train.tolist()
    for row, shift in zip(frame.iter_rows(named=True), expected, strict=True):
        assert (row["from step"], row["to step"]) == ((0, 19) if shift.step < 20 else (20, 74))
        numbers = ["input", "output", "shift", "step", "earliest", "times", "embedding moved", "unembedding moved"]
        wanted = [shift.input, shift.output, shift.shift, shift.step, shift.earliest, shift.steps]
        assert [row[name] for name in numbers] == [*wanted, shift.embedding, shift.unembedding]
        assert (row["datum"], row["its part"]) == (shift.datum, shift.amount)
        pair = list(zip(stream[:-1], stream[1:], strict=True)).count((shift.input, shift.output))
        one = Pairs(torch.tensor([shift.output]), torch.tensor([shift.input]))
        assert row["in the corpus"] == pair and row["log-odds"] == float(bigram.pair_log_odds(walked.counts, one))
        places = list(zip(data.tokens[shift.datum].tolist(), data.targets[shift.datum].tolist(), strict=True))
        score = [2 * (b == shift.output) + (a == shift.input) for a, b in places]
        assert row["position"] == score.index(max(score))


def test_a_text_is_quoted_where_the_pair_stands_else_its_output_else_its_input():
    tokens, targets = torch.tensor([4, 1, 2, 1, 3]), torch.tensor([1, 2, 1, 3, 2])
    for output, input, place in ((3, 1, 3), (3, 4, 3), (2, 9, 1), (9, 1, 1), (1, 2, 2), (9, 9, 0)):
        assert _bigram._position(tokens, targets, output, input) == place


def test_spans_are_summed_up_under_their_names(walked):
    frame = tables.span_frame(walked.shifts, SPANS, walked.counts, key=4)
    assert typed(frame, tables.BIGRAM_SPANS)
    for row, span in zip(frame.iter_rows(named=True), SPANS, strict=True):
        found = bigram.span_summary(walked.shifts, span, walked.counts, key=4)
        assert (row["from step"], row["to step"]) == (span.start, span.stop - 1)
        names = {
            "median of the largest": found.largest,
            "median of the least": found.least,
            "embedding's share": found.embedding_share,
            "in the corpus": found.seen,
            "in the corpus, shuffled": found.shuffled_seen,
            "towards the log-odds": found.towards,
            "towards the log-odds, shuffled": found.shuffled_towards,
            "outputs": found.outputs,
            "shares": found.shares,
            "pairs multiplied": found.multiplied,
            "missed": found.missed,
        }
        assert {name: row[name] for name in names} == names


def test_causes_are_under_their_names(with_memory):
    spans = [Span(0, 10), Span(10, 12), Span(12, 14)]
    frame = tables.cause_frame(with_memory.shifts, spans)
    assert typed(frame, tables.BIGRAM_CAUSES) and frame["from step"].to_list() == [0, 12]  # 10 and 11 were not searched
    for row, span in zip(frame.iter_rows(named=True), (spans[0], spans[2]), strict=True):
        found = bigram.span_causes(with_memory.shifts, span)
        assert row == {"from step": span.start, "to step": span.stop - 1, **found._asdict()}
    assert tables.span_frame(with_memory.shifts, spans, with_memory.counts, key=4)["from step"].to_list() == [0, 12]
    each = tables.largest_cause_frame(with_memory.shifts, spans, most=4)
    assert typed(each, tables.BIGRAM_LARGEST_CAUSES)
    expected = [shift for span in spans for shift in bigram.largest_shifts(with_memory.shifts, span, 4)]
    for row, large in zip(each.iter_rows(named=True), expected, strict=True):
        assert [row[name] for name in ("input", "output", "step", "shift")] == [*large[1::-1], large.step, large.shift]
        assert [row[name] for name in ("present", "past", "decay")] == [large.present, large.past, large.decay]
        assert sum(row[name] for name in ("present", "past", "decay", "cross")) == pytest.approx(row["shift"], abs=1e-5)


def test_net_changes_are_before_and_after(walked):
    before, after = (walked.run.params(step) for step in (20, 60))
    frame = tables.net_frame(walked.run.graph, before, after, Span(20, 60), walked.counts, least=2, most=5)
    assert typed(frame, tables.BIGRAM_NET) and frame["ranked"].unique(maintain_order=True).to_list() == list(RANKED)
    found = bigram.net_changes(walked.run.graph, before, after, walked.counts, 2, 5)
    for row, change in zip(frame.iter_rows(named=True), found, strict=True):
        assert (row["input"], row["output"], row["ranked"]) == (change.input, change.output, change.ranked)
        assert (row["before"], row["after"]) == (change.before, change.after)
        assert row["change"] == pytest.approx(change.after - change.before)
        assert (row["from step"], row["to step"]) == (20, 59)


def test_courses_are_groups_means_and_single_entries(walked):
    followed = Followed(walked.pairs, 1)
    frame = tables.bigram_course_frame(walked.shifts, followed, 10)
    assert typed(frame, tables.BIGRAM_COURSES)
    for at, (name, input, output) in enumerate(
        [(tables.BIGRAM_SERIES[0], None, None), (tables.BIGRAM_SERIES[1], None, None), (tables.BIGRAM_SERIES[2], 17, 0)]
    ):
        part = frame.filter(pl.col("series") == name)
        assert part["step"].to_list() == list(range(0, 75, 10))
        assert part["entry"].to_list() == walked.shifts.entry[::10, at].tolist()
        assert set(part["input"]) == {input} and set(part["output"]) == {output}
    two = tables.bigram_course_frame(walked.shifts, Followed(Pairs(*(x.repeat(2) for x in walked.pairs)), 3), 25)
    wide = walked.shifts._replace(entry=walked.shifts.entry.repeat(1, 2) + torch.tensor([0.0, 0, 0, 1, 1, 4]))
    two = tables.bigram_course_frame(wide, Followed(Pairs(*(x.repeat(2) for x in walked.pairs)), 3), 25)
    means = [two.filter(pl.col("series") == name)["entry"].to_list() for name in tables.BIGRAM_SERIES]
    assert means[0] == pytest.approx(walked.shifts.entry[::25].mean(1).tolist())
    assert means[1] == pytest.approx([x + 2 for x in means[0]]) and means[2] == []


def test_sizes_are_means_over_windows(walked):
    frame = tables.size_frame(walked.shifts, 20)
    value = walked.shifts.value().abs()
    assert typed(frame, tables.BIGRAM_SIZES)
    assert frame["step"].to_list() == [0, 20, 40, 60] and frame["steps"].to_list() == [20, 20, 20, 15]
    windows = [slice(0, 20), slice(20, 40), slice(40, 60), slice(60, 75)]
    assert frame["largest"].to_list() == pytest.approx([float(value[w, 0].mean()) for w in windows])
    assert frame["least"].to_list() == pytest.approx([float(value[w, 6].mean()) for w in windows])


def test_windows_of_sizes_count_searched_steps_alone(with_memory):
    frame, value = tables.size_frame(with_memory.shifts, 6), with_memory.shifts.value().abs()
    assert frame["step"].to_list() == [0, 6, 12] and frame["steps"].to_list() == [2, 1, 1]
    means = [value[[0, 4], 0].mean(), value[8, 0], value[12, 0]]
    assert frame["largest"].to_list() == pytest.approx([float(x) for x in means])


def test_checks_show_sums_and_weights_at_each_snapshot(walked):
    passed = [(step, walked.run.params(step)) for step in (20, 75)]
    frame = tables.check_frame(walked.run.graph, walked.shifts, passed, walked.pairs)
    assert frame["step"].to_list() == [20, 75] and frame["pairs"].to_list() == [3, 3]
    assert max(frame["missed"].to_list()) < 1e-12
    dense = [bigram.decoder(*bigram.decoder_matrices(walked.run.graph, params)) for _, params in passed]
    largest = [max(abs(float(W[pair])) for pair in zip(*walked.pairs, strict=True)) for W in dense]
    assert frame["largest entry"].to_list() == pytest.approx(largest, rel=1e-4)
    wrong = tables.check_frame(walked.run.graph, walked.shifts, [(20, walked.run.params(40))], walked.pairs)
    assert wrong["missed"][0] > 1e-3


def test_without_snapshots_or_shifts_tables_keep_their_columns(walked, tmp_path):
    empty = tables.check_frame(walked.run.graph, walked.shifts, [], walked.pairs)
    assert empty.height == 0 and typed(empty, tables.BIGRAM_CHECKS)
    results.write_table(tmp_path, "bigram_checks", empty)
    assert results.read_table(tmp_path, "bigram_checks", tables.BIGRAM_CHECKS).equals(empty)
    assert typed(tables.largest_frame(walked.shifts, [], walked.run.data, walked.counts), tables.BIGRAM_LARGEST)
    assert typed(tables.correlation_frame([]), tables.BIGRAM_CORRELATIONS)


def test_correlations_are_under_their_names():
    fit = Fit(pearson=0.1, spearman=0.2, slope=0.3, shuffled_pearson=0.4, shuffled_spearman=0.5, shuffled_largest=0.6)
    frame = tables.correlation_frame([(7, Correlation("mean logit", "tokens that occur", 12, fit))])
    assert typed(frame, tables.BIGRAM_CORRELATIONS)
    assert frame.row(0, named=True) == {
        "step": 7,
        "measure": "mean logit",
        "among": "tokens that occur",
        "n": 12,
        "pearson": 0.1,
        "spearman": 0.2,
        "slope": 0.3,
        "pearson, shuffled": 0.4,
        "spearman, shuffled": 0.5,
        "largest |pearson|, shuffled": 0.6,
    }


# ---- a run's tables, and its section


@pytest.fixture(scope="module")
def folder(walked, tmp_path_factory):
    """Results as the script writes them: of a walk that stops before the first snapshot, and of another, later one."""
    folder = tmp_path_factory.mktemp("results")
    followed = bigram.follow(walked.counts, [(3, 5)], group=4, least=2, key=0)
    for start, stop in ((0, 15), (70, 75)):
        name = _bigram_sections.stem(start)
        part = Shifts(*(field[start:stop] for field in walked.shifts))
        part = part._replace(**{n: getattr(part, n)[:, :1].repeat(1, 9) for n in ("entry", "change")})
        for what, table in tables.bigram_walk_frames(walked.run, part, followed, walked.counts, 4, 2, key=0):
            results.write_table(folder, f"{name}_{what}", table)
    table = tables.run_correlation_frame(walked.run, walked.counts, 2, 50, key=0)
    results.write_table(folder, "bigram_correlations", table)
    return folder


def test_a_walks_tables_are_of_its_own_steps(walked, folder):
    def read(name, kind):
        return results.read_table(folder, name, kind)

    assert read("bigram_checks", tables.BIGRAM_CHECKS).height == 0  # it passed no snapshot
    assert read("bigram-000070_checks", tables.BIGRAM_CHECKS)["step"].to_list() == [75]
    for name, start, stop in (("bigram", 0, 15), ("bigram-000070", 70, 75)):
        spans = bigram.spans(start, stop, walked.run.steps_per_epoch)
        assert read(f"{name}_spans", tables.BIGRAM_SPANS)["from step"].to_list() == [span.start for span in spans]
        net = read(f"{name}_net", tables.BIGRAM_NET)
        for span in spans:
            around = walked.run.params(span.start), walked.run.params(span.stop)
            expected = tables.net_frame(walked.run.graph, *around, span, walked.counts, 2)
            assert net.filter(pl.col("from step") == span.start).equals(expected)


def test_correlations_are_at_every_snapshot(walked, folder):
    table = results.read_table(folder, "bigram_correlations", tables.BIGRAM_CORRELATIONS)
    assert table["step"].unique().sort().to_list() == walked.run.snapshots and table.height == 5 * 9
    last = table.filter((pl.col("step") == 75) & (pl.col("measure") == "unembedding bias"))
    frequency = walked.counts.second[walked.counts.second > 0].double().log()
    bias = walked.run.params(75)["decoder.bias"][walked.counts.second > 0]
    assert last["pearson"][0] == pytest.approx(float(torch.corrcoef(torch.stack([frequency, bias.double()]))[0, 1]))
    assert last["spearman"][0] > 0.3  # the bias learns frequencies first


def test_the_section_shows_each_walk_with_words_and_excerpts(walked, folder):
    (section,) = _bigram_sections.sections(walked.run, folder)
    html = page.page("A run", "", [section])
    assert _bigram_sections.walks(folder) == ["bigram", "bigram-000070"]
    drawn = _bigram_sections.figures(walked.run, folder)
    assert set(drawn) == {
        "bigram_correlations",
        *(f"{name}_{what}" for name in _bigram_sections.walks(folder) for what in ("groups", "courses", "sizes")),
    }
    row = results.read_table(folder, "bigram_largest", tables.BIGRAM_LARGEST).row(0, named=True)
    assert f"({PLANTED.vocab.tokens[int(walked.run.data.tokens[row['datum'], row['position']])]} →" in html
    assert "shuffled" in html and "exchanged" not in html and "No rows." in html


def test_the_section_says_what_is_past_where_any_is(with_memory, walked, folder, tmp_path):
    for of, found in ((with_memory, True), (walked, False)):
        part = tmp_path / str(found)
        part.mkdir()
        spans = bigram.spans(0, len(of.shifts.step), of.run.steps_per_epoch)
        results.write_table(part, "bigram_causes", tables.cause_frame(of.shifts, spans))
        results.write_table(part, "bigram_largest_causes", tables.largest_cause_frame(of.shifts, spans))
        items = _bigram_sections._cause_items(of.run, part, "bigram")
        assert len(items) == 2 * found and ("through" in "".join(map(str, items))) == found
    assert _bigram_sections._cause_items(walked.run, tmp_path, "bigram") == []  # of a walk before there were any


def test_without_correlations_there_is_no_section(walked, tmp_path):
    assert _bigram_sections.sections(walked.run, tmp_path) == []
