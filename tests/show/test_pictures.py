"""Laws of pictures in a grid: each is the given one, under its own caption, on one scale; nothing is left behind."""

from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot

from devinterp_func.show import drawing, plots


@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 30), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), width=st.sampled_from([3.7, 7.4]))
def test_each_picture_is_the_given_one_under_its_caption_on_one_scale(n, size, width):
    values = torch.from_numpy(np.random.Generator(np.random.Philox(n)).standard_normal((n, *size)))
    figure = plots.pictures(values, [f"no. {i}" for i in range(n)], width=width)
    assert len(figure.axes) == n and figure.get_figwidth() <= width
    for i, axes in enumerate(figure.axes):
        (image,) = axes.images
        assert np.asarray(image.get_array()).tolist() == values[i].tolist() and axes.get_xlabel() == f"no. {i}"
        assert image.get_clim() == (float(values.min()), float(values.max()))
    low, high = (sum(figure.axes[0].images[0].cmap(x)[:3]) for x in (0.0, 1.0))
    assert low > high  # dark is high
    places = [axes.get_position() for axes in figure.axes]
    order = sorted(range(n), key=lambda i: (-round(places[i].y0, 3), places[i].x0))
    assert order == list(range(n))  # as one reads


def test_captions_and_title_are_literal_text_and_nothing_is_left_behind():
    before = dict(matplotlib.rcParams)
    figure = plots.pictures(torch.zeros(2, 8, 8), ["<b>$x$</b>", "w" * 300], "<i>$y$")
    text = drawing.svg(figure, "alt")
    assert dict(matplotlib.rcParams) == before and not pyplot.get_fignums()
    said = "".join(ElementTree.fromstring(text).itertext())
    assert "<b>$x$</b>" in said and "<i>$y$" in said and "w" * 20 not in said
    assert text.count("<image") == 2 and text.count('href="data:image/png') == 2
    assert drawing.svg(plots.pictures(torch.zeros(2, 8, 8), ["<b>$x$</b>", "w" * 300], "<i>$y$"), "alt") == text


@pytest.mark.parametrize(("n", "captions"), [(0, []), (2, ["one"]), (1, ["one", "two"])])
def test_a_picture_without_a_caption_is_refused(n, captions):
    with pytest.raises(ValueError, match=f"there are {n} pictures and {len(captions)} captions"):
        plots.pictures(torch.zeros(n, 8, 8), captions)
