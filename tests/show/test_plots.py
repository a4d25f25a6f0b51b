"""Laws of the figures: what they show is what was given, and drawing leaves no trace."""

import math
import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import colors, pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from scipy.optimize import isotonic_regression

from devinterp_func import neurons
from devinterp_func.show import drawing, plots

few = settings(max_examples=6, deadline=None)
some = settings(max_examples=100, deadline=None)

HOSTILE = ["<script>alert(1)</script>", "$x^2$ & \"q\" 'q'", "a\nb\x00c", "日本", "", "w" * 300]
RNG = np.random.Generator(np.random.Philox(0))


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape))


def draw_all(names: list[str], width: float = drawing.WIDE) -> dict[str, Callable[[], Figure]]:
    """Every figure, with six names in it."""
    loss, counts, shares = noise(300).exp(), torch.arange(24).reshape(4, 6), torch.linspace(0, 1, 6)
    steps = torch.arange(0, 300, 20)
    skill = shares.expand(6, 6)
    series = {name: (steps, noise(15)) for name in names}
    grown = {name: (steps, values.exp()) for name, (steps, values) in series.items()}
    values = {name: noise(30).relu() for name in names}
    kinds: list[plots.Kind] = ["record", "record", "record", "baseline", "baseline", "control"]
    evaluations = {0: {"valid": 9.0}, 300: {"valid": 1.5, "test": 1.4}}
    return {
        "loss": lambda: plots.loss_curve(loss, 60, evaluations, loss.clamp(max=1), width=width),
        "outliers": lambda: plots.outliers_over_training(counts, names, 25, width=width),
        "concentration": lambda: plots.concentration({name: torch.arange(40) for name in names}, width=width),
        "lines": lambda: plots.lines(series, "entry", per_epoch=60, width=width),
        "growth": lambda: plots.lines(grown, "norm", width=width, log=True),
        "credits": lambda: plots.credit_bands(
            steps, noise(15), noise(14).relu(), -noise(14).relu(), names[0], 60, width
        ),
        "activations": lambda: plots.activation_histograms(neurons.histograms(values), names[0], width=width),
        "neighbours": lambda: plots.neighbours(neurons.histograms({i: noise(9) for i in range(5)}), 2, width=width),
        "skill": lambda: plots.skill_bars(names, skill, skill * 0.9, skill * 1.1, names, kinds, width=width),
        "flips": lambda: plots.flips_scatter(shares, shares / 2, names, shares > 0.5, width=min(width, 4.6)),
        "share": lambda: plots.notable_share(names, shares, shares / 3, width=width),
    }


PLAIN = draw_all(list("abcdef"))
NEIGHBOURS = {i: noise(9) for i in range(5)}
PLAIN["neighbours"] = lambda: plots.neighbours(neurons.histograms(NEIGHBOURS), 2)
CREDITS = torch.arange(0, 120, 10), noise(12), noise(11).relu(), -noise(11).relu()
PLAIN["credits"] = lambda: plots.credit_bands(*CREDITS, "a", 60)
PLAIN["activations"] = lambda: plots.activation_histograms(
    neurons.histograms({"a": NEIGHBOURS[0], "b": NEIGHBOURS[1]}), "a"
)
figures = pytest.mark.parametrize("draw", PLAIN.values(), ids=PLAIN.keys())


def words(figure: Figure) -> list[str]:
    """All text of a figure, as its SVG has it."""
    root = ElementTree.fromstring(drawing.svg(figure, "alt"))
    return [element.text or "" for element in root.iter() if element.tag.endswith("text")]


# ---- no trace, no chance


@figures
def test_drawing_leaves_no_trace(draw):
    before = dict(matplotlib.rcParams)
    drawing.svg(draw(), "alt")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


@figures
def test_the_same_data_give_the_same_picture_whatever_the_global_settings(draw):
    picture = drawing.svg(draw(), "alt")
    with matplotlib.rc_context(
        {"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red", "lines.color": "red"}
    ):
        assert drawing.svg(draw(), "alt") == picture


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("which", PLAIN)
def test_names_are_literal_text_however_hostile(which, width):
    text = drawing.svg(draw_all(HOSTILE, width)[which](), HOSTILE[1])
    root = ElementTree.fromstring(text)
    assert not [element for element in root.iter() if element.tag == "script"]
    assert "\x00" not in text and "w" * 100 not in "".join(root.itertext())
    assert root.get("aria-label") == HOSTILE[1]
    if which in ("lines", "activations", "skill", "share"):
        assert "$x^2$" in "".join(root.itertext())


def test_figures_are_small():
    T = 14_640
    evaluations = {0: {"valid": 10.3}, T: {"valid": 5.0}}
    dots = torch.rand(5000)
    for figure in (
        plots.loss_curve(10 * torch.rand(T), 2928, evaluations, torch.rand(T)),
        plots.concentration({"all": torch.arange(720_000)}),
        plots.credit_bands(torch.arange(1465) * 10, noise(1465), noise(1464).relu(), -noise(1464).relu(), "loss", 2928),
        plots.flips_scatter(dots, dots / 2, ["a"] * 5000, dots > 0.5),
    ):
        assert len(drawing.svg(figure, "alt")) < 80_000


# ---- what they show


@pytest.mark.parametrize(("start", "seen"), [(0, {"0", "1"}), (130, {"2", "3"}), (100, {"1", "2"})])
def test_epochs_are_those_of_the_steps_shown(start, seen):
    edges, credit = start + torch.arange(0, 80, 10), noise(7).abs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a mark far outside would leave no room for the axes
        figures = [
            plots.credit_bands(edges, noise(8), credit, -credit, "probe", 60),
            plots.lines({"probe": (edges, noise(8))}, "value", 60),
        ]
    for figure in figures:
        numbers = {text.get_text() for text in figure.axes[0].texts} & {"0", "1", "2", "3", "4"}
        assert numbers == seen


@few
@given(st.lists(st.floats(0, 20) | st.just(math.nan), min_size=1, max_size=60), st.integers(1, 80), st.booleans())
def test_any_losses_can_be_drawn(losses, per_epoch, evaluated):
    evaluations = {len(losses): {"valid": losses[-1]}} if evaluated else {}
    loss = torch.tensor(losses, dtype=torch.float64)
    figure = plots.loss_curve(loss, per_epoch, evaluations)
    last = loss[len(loss) - math.ceil(len(loss) / drawing.BINS) :].mean()
    assert f"train {last:.2f}" in words(figure)


def test_evaluations_are_dots_at_their_steps():
    evaluations = {0: {"valid": 10.0}, 60: {"valid": 3.5}, 120: {"valid": 3.0, "test": 2.5}}
    figure = plots.loss_curve(torch.cat([torch.tensor([10.0]), torch.full((119,), 3.0)]), 60, evaluations)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_xydata()).tolist() for line in dots] == [[[60, 3.5], [120, 3.0]], [[120, 2.5]]]
    assert {"train 3.00", "valid 3.00", "test 2.50", "↑ 10.0 at the start", "epoch", "0", "1"} <= set(words(figure))


@few
@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_outliers_over_training_shows_shares_by_unit(counts):
    units = ["layers.0.self_attn.in_proj_weight", "layers.0.linear1.weight", "layers.1.linear2.weight"]
    figure = plots.outliers_over_training(torch.tensor(counts), units, 7)
    [image] = figure.axes[0].images
    assert list(image.get_extent())[:2] == [0, 7]
    for i, row in enumerate(counts):
        assert np.asarray(image.get_array())[:, i].tolist() == pytest.approx([n / max(sum(row), 1) for n in row])
    whole = sum(map(sum, counts))
    totals = [f"{sum(row[unit] for row in counts) / max(whole, 1):.1%}" for unit in range(3)]
    assert [text for text in words(figure) if re.fullmatch(r"[\d.]+%", text)] == totals
    assert {"0.in_proj", "0.linear1", "1.linear2"} <= set(words(figure))


@few
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
@example([3, 1, 1, 1])  # one of them carries exactly half
def test_concentration_says_how_few_parameters_carry_half(counts):
    shown = [text for text in words(plots.concentration({"w": torch.tensor(counts)})) if text.startswith("w: half")]
    ordered, taken = sorted(counts, reverse=True), 0
    while 2 * sum(ordered[:taken]) < sum(ordered):
        taken += 1
    assert shown == ([f"w: half in {taken / len(counts):.2%}"] if sum(counts) else [])


@few
@given(st.integers(1, 700), st.integers(1, 30), st.booleans(), st.booleans())
def test_credit_bands_hold_all_credits_the_rest_and_their_net(windows, last, wide, remembers):
    edges = torch.cat([torch.arange(windows) * 30, torch.tensor([(windows - 1) * 30 + last])])
    value, raised, lowered = noise(windows + 1), noise(windows).abs(), -noise(windows).abs()
    width = drawing.WIDE if wide else drawing.NARROW
    rest = noise(windows) * remembers
    figure = plots.credit_bands(edges, value, raised, lowered, "probe", width=width, rest=rest)
    top, bottom = figure.axes
    assert np.asarray(top.lines[0].get_xydata()).tolist() == torch.stack([edges.double(), value], 1).tolist()
    bands = [patch.get_data()[:2] for patch in bottom.patches if isinstance(patch, StepPatch)]
    sums = [float((credit * np.diff(at)).sum()) for credit, at in bands]
    expected = [raised, lowered, raised + lowered + rest, *([rest] if remembers else [])]
    assert sums == pytest.approx([float(x.sum()) for x in expected])
    assert all(len(credit) == min(windows, drawing.BINS) for credit, _ in bands)
    assert all((at[0], at[-1]) == (0, int(edges[-1])) for _, at in bands)
    assert {"raised it", "net", "lowered it", "steps"} <= set(words(figure))


def test_activations_are_counted_with_their_zeros():
    shown = words(
        plots.activation_histograms(
            neurons.histograms({"=": torch.tensor([0.0, 0.0, 0.0, 2.0]), "the": torch.zeros(2)}), "="
        )
    )
    assert {"4", "75%", "2", "100%", "“=”", "the"} <= set(shown)


def test_every_row_of_activations_is_drawn_to_its_own_height():
    values = {"a": torch.tensor([1.0, 1.0, 1.0, 3.0]), "b": torch.tensor([2.0])}
    figure = plots.activation_histograms(neurons.histograms(values), "a")
    for row, stairs in enumerate(figure.axes[0].patches):
        assert isinstance(stairs, StepPatch)
        heights = row + 0.5 - np.asarray(stairs.get_data()[0])
        assert max(heights) == pytest.approx(0.85)
        assert len(set(np.round(heights, 6)) - {0}) == len(set(values[list(values)[row]].tolist()))


@pytest.mark.parametrize("values", [{}, {"the": torch.ones(1)}])
def test_a_token_without_values_is_refused(values):
    with pytest.raises(ValueError, match="no values for '='"):
        plots.activation_histograms(neurons.histograms(values), "=")


def test_skill_has_a_dot_for_every_estimate_in_the_colour_of_its_kind():
    value = torch.tensor([[0.1, math.nan], [0.3, 0.4]])
    figure = plots.skill_bars(["x", "y"], value, value - 0.05, value + 0.05, ["A", "B"], ["record", "baseline"])
    for axes, row in zip(figure.axes, value.tolist(), strict=True):
        dots = [line for line in axes.lines if line.get_marker() == "o" and len(np.asarray(line.get_xdata()))]
        assert [float(np.asarray(line.get_xdata())[0]) for line in dots] == pytest.approx(row, nan_ok=True)
        kinds = [plots.KINDS["record"], plots.KINDS["baseline"]]
        assert [colors.to_hex(line.get_color()) for line in dots] == kinds
    assert {"A", "B", "record", "baseline", "–", "0.30", "0.40"} <= set(words(figure))


def test_the_best_baseline_of_each_panel_is_marked():
    value = torch.tensor([[0.9, 0.1, 0.3, 0.8], [0.2, 0.5, math.nan, 0.1], [0.2, math.nan, math.nan, 0.1]])
    kinds: list[plots.Kind] = ["record", "baseline", "baseline", "control"]
    figure = plots.skill_bars(list("wxyz"), value, value, value, ["A", "B", "C"], kinds)
    for axes, best in zip(figure.axes, (2, 1, None), strict=True):
        across = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]  # type: ignore[index]
        assert across == ([] if best is None else pytest.approx([float(value[figure.axes.index(axes), best])]))
        bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
        assert bold == ([] if best is None else [f"{float(value[figure.axes.index(axes), best]):.2f}"])
    assert "best baseline" in words(figure)
    without = plots.skill_bars(["w"], value[:1, :1], value[:1, :1], value[:1, :1], ["A"], ["record"])
    assert "best baseline" not in words(without)


def test_names_of_scores_are_wrapped_and_not_cut():
    names = ["where it predicts and moved logit, rank product", "bag, relative frequency of c ≥ 20 (post)"]
    value = torch.rand(1, 2)
    for width in (drawing.WIDE, drawing.NARROW):
        figure = plots.skill_bars(names, value, value, value, ["A"], ["record", "record"], width=width)
        assert [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()] == names
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert not boxes[0].overlaps(boxes[1])


UNITS = [f"layers.{i}.{name}" for i in range(12) for name in ("self_attn.in_proj_weight", "linear1.weight")]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("n", [1, 2, 24])
def test_the_heat_map_of_any_number_of_units_is_whole(n, width):
    assert not cut(plots.outliers_over_training(torch.arange(60 * n).reshape(60, n), UNITS[:n], 400, width))


@pytest.mark.parametrize(("n_steps", "bins"), [(100, 60), (400, 60), (40, 60), (40, 40)])
def test_the_heat_map_ends_at_the_last_step(n_steps, bins):
    counts = torch.zeros(bins, 2, dtype=torch.int64)
    counts[-1] = 1
    [image] = plots.outliers_over_training(counts, UNITS[:2], n_steps).axes[0].images
    assert list(image.get_extent()) == [0, n_steps, 1.5, -0.5]  # the last bin lies before the last step's end
    assert image.axes is not None and image.axes.get_xlim() == (0, n_steps)


def test_a_bias_and_its_weight_are_two_rows():
    names = ["layers.0.linear1.weight", "layers.0.linear1.bias", "layers.1.self_attn.in_proj_bias", "decoder.weight"]
    shown = words(plots.outliers_over_training(torch.ones(3, 4, dtype=torch.int64), names, 3))
    assert {"0.linear1", "0.linear1 bias", "1.in_proj bias", "decoder"} <= set(shown)


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("which", [name for name in PLAIN if name != "outliers"])
def test_no_text_is_cut_off(which, width):
    assert not cut(
        draw_all(["bigram:of the", ",", "0.linear2 (post's 1.2)", "york", "a rather long name", "<unk>"], width)[
            which
        ]()
    )


def cut(figure):
    """Texts that stick out of their figure, drawn as a page and a file draw it."""
    with drawing.house_style():
        figure.draw_without_rendering()
    page, unseen = figure.bbox.padded(1), []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        unseen += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in unseen]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    return [name for name, box in boxes if not (page.x0 <= box.x0 <= box.x1 <= page.x1 and box.y0 >= page.y0)] + [
        name for name, box in boxes if box.y1 > page.y1
    ]


def test_flips_lie_where_they_should_and_names_do_not_touch():
    attributed, notable = torch.linspace(0.1, 1, 40), torch.arange(40) % 2 == 0
    figure = plots.flips_scatter(attributed, attributed / 2, [f"token{i}" for i in range(40)], notable)
    other, marked = figure.axes[0].collections
    assert torch.allclose(
        torch.tensor(np.asarray(marked.get_offsets())).float(), torch.stack([attributed / 2, attributed], 1)[::2]
    )
    assert np.asarray(other.get_offsets()).shape == (20, 2)
    named = [text for text in figure.axes[0].texts if text.get_text().startswith("token")]
    boxes = [text.get_window_extent() for text in named]
    assert 2 <= len(named) <= 8 and named[0].get_text() == "token39"
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_shares_are_written_out_and_missing_ones_are_dashes():
    figure = plots.notable_share(["A", "B"], torch.tensor([0.5, math.nan]), torch.tensor([math.nan, 0.25]))
    assert [bar.get_width() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)] == [0.5, 0]
    assert {"50.0%", "–", "25.0%"} <= set(words(figure))


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_a_share_and_its_control_are_at_their_own_bar_and_cover_no_mark(width):
    share, control = torch.tensor([0.071, 0.2]), torch.tensor([0.092, 0.1])
    figure = plots.notable_share(["A", "B"], share, control, width=width)
    figure.draw_without_rendering()
    [axes] = figure.axes
    beside = {text.get_text(): text for text in axes.texts}
    assert list(beside) == ["7.1%", "20.0%", "9.2%", "10.0%"]
    boxes = [text.get_window_extent() for text in beside.values()]
    ends = [axes.transData.transform((x, row))[0] for row, x in enumerate((0.092, 0.2))]
    for row, end in enumerate(ends):
        own, chance = boxes[row], boxes[row + 2]
        assert end + 5 < own.x0 < end + 30 and own.x1 < chance.x0 < own.x1 + 30
    assert not cut(figure)
    assert beside["7.1%"].get_color() == drawing.BLUE and beside["9.2%"].get_color() == drawing.INK
    rows = [text.xy[1] for text in beside.values()]  # type: ignore[attr-defined]
    assert rows == [0, 1, 0, 1]
    [marks] = [line for line in axes.lines if line.get_marker() == "|" and len(np.asarray(line.get_xdata()))]
    assert np.asarray(marks.get_xydata()).tolist() == pytest.approx(np.array([[0.092, 0], [0.1, 1]]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.lines({}, "label", per_epoch=10),
        lambda: plots.lines({}, "label", log=True),
        lambda: plots.lines({"none": (torch.empty(0, dtype=torch.long), torch.empty(0))}, "label"),
        lambda: plots.concentration({}),
        lambda: plots.flips_scatter(torch.empty(0), torch.empty(0), [], torch.empty(0, dtype=torch.bool)),
        lambda: plots.notable_share([], torch.empty(0), torch.empty(0)),
    ],
)
def test_no_data_give_axes_with_nothing_in_them(draw):
    [axes] = draw().axes
    points = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_marker() in ("o", "|")]
    assert not sum(map(len, points)) and not axes.images
    assert all(len(np.asarray(c.get_offsets())) == 0 for c in axes.collections) and axes.get_xlabel()


# ---- pieces


@some
@given(st.lists(st.floats(-10, 10), max_size=8), st.floats(0.1, 5))
def test_spread_is_the_least_squares_solution(places, gap):
    moved = drawing.spread(places, gap)
    order = sorted(range(len(places)), key=places.__getitem__)
    ranks = np.arange(len(places)) * gap
    best = isotonic_regression(np.array(places)[order] - ranks).x + ranks if places else []
    assert [moved[i] for i in order] == pytest.approx(list(best), abs=1e-9)


def test_a_band_holds_the_middle_of_each_bin_and_its_mean():
    values = torch.arange(11.0).repeat(drawing.BINS) ** 2
    axes = Figure().subplots()
    assert drawing.band(axes, values, drawing.BLUE) == pytest.approx(35.0)
    [area], [line] = axes.collections, axes.lines
    heights = set(np.asarray(area.get_paths()[0].vertices)[:, 1].round(6).tolist())
    assert heights == {1.0, 81.0} and set(np.asarray(line.get_ydata()).round(6).tolist()) == {35.0}


def test_svg_has_its_own_ids_and_the_colours_of_the_page():
    one, two = (drawing.svg(PLAIN[name](), name) for name in ("lines", "flips"))
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, two)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for text, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) == own
        assert not re.search("|".join(drawing.LIGHT.values()), text) and "var(--blue)" in text
        assert "<style" not in text and "DejaVu" not in text and "http" not in text


def test_svg_shortens_coordinates_but_no_text():
    figure = Figure()
    figure.text(0.123456789, 0.5, 'd="1.23456789" #f')
    text = drawing.svg(figure, "alt")
    assert '>d="1.23456789" #f<' in text
    assert not re.search(r' (?:x|y|d|transform)="[^"]*\.\d{3}', text)


def test_both_themes_have_the_same_colours():
    assert drawing.LIGHT.keys() == drawing.DARK.keys()
