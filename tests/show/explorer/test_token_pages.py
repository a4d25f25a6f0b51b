"""Any token has a page whose numbers are the record's; a run without text has none."""

from typing import Any

import explorer_sites
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import same_bits

from devinterp_func.batches import Data
from devinterp_func.show import explorer
from devinterp_func.show.explorer import NotThere

TOKENS = st.integers(0, len(explorer_sites.CORPUS.vocab) - 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_sites.site(tmp_path_factory.getbasetemp())


def visits_with(site, token):
    """(step, row, datum) -> Σ|Δ| of all visits of data with a token, by brute force."""
    tokens, targets = site.run.data
    found: dict[tuple[int, int, int], float] = {}
    for step, row, datum, _, _, delta in explorer_sites.everything(site):
        if token in tokens[datum].tolist() + targets[datum].tolist():
            found[step, row, datum] = found.get((step, row, datum), 0) + abs(delta)
    return found


@given(TOKENS, st.integers(1, 20))
@settings(max_examples=15)
def test_outliers_at_a_token_are_the_records(site, token, most):
    found = explorer.at_token(site, token, most)
    amounts = visits_with(site, token)
    assert found.visits == len(amounts) and len(found.step) == min(most, len(amounts))
    read = {visit: amounts[visit] for visit in amounts if visit[::2] in pairs(found)}
    assert list(found.amount.tolist()) == pytest.approx(sorted(amounts.values(), reverse=True)[:most], rel=1e-5)
    of, data = site.groups["in"].of, site.run.data
    for labels, counts in ((data.targets, found.target), (data.tokens, found.input)):
        wanted = torch.zeros_like(counts)
        for step, row, datum, parameter, position, _ in explorer_sites.everything(site):
            if (step, row, datum) in read and int(labels[datum, position]) == token and of[parameter] >= 0:
                wanted[of[parameter]] += 1
        assert torch.equal(counts, wanted)


def pairs(found):
    return set(zip(found.step.tolist(), found.datum.tolist(), strict=True))


@given(TOKENS)
@settings(max_examples=6)
def test_every_token_has_a_page_and_its_word_is_text(site, token):
    address = explorer.path("token", token)
    view = explorer.make(site, address)
    html = explorer.html(site, view, address)
    html.encode()
    assert "<script>alert" not in html and "<img" not in html and "\x00" not in html
    values: dict[str, Any] = {panel.title: panel.value for panel in view.panels}
    places = [(i, c) for i, row in enumerate(site.run.data.tokens.tolist()) for c, id in enumerate(row) if id == token]
    assert list(map(tuple, values["The token"].tolist())) == places
    stream = site.run.corpus.train.tolist()
    for title, (mine, other) in (("What follows it", (0, 1)), ("What comes before it", (1, 0))):
        following = [pair[other] for pair in zip(stream, stream[1:], strict=False) if pair[mine] == token]
        assert values[title].tolist() == [following.count(id) for id in range(len(site.vocab))]
    assert all(f'href="../datum/{datum}.html"' in html for datum in values["Texts with it"].datum.tolist())


def test_every_panel_is_what_its_lines_give(site):
    for token in (0, explorer_sites.CORPUS.vocab.index("<script>alert(1)</script>")):
        for panel in explorer.make(site, explorer.path("token", token)).panels:
            assert same_bits(explorer.given(panel.python), panel.value), panel.title


def test_what_is_no_token_has_no_page(site, tmp_path_factory):
    for id in ("999", "-1", "01", "the", "1.5", "9" * 5000, "٣"):
        with pytest.raises(NotThere, match="there is no token") as error:
            explorer.make(site, explorer.path("token", id))
        (_, kind, near) = error.value.near[0]
        assert kind == "token" and 0 <= int(str(near)) < len(site.vocab)
    numbers = explorer_sites.site_of_numbers(tmp_path_factory.getbasetemp())
    with pytest.raises(NotThere, match="no text"):
        explorer.make(numbers, "token/0.html")


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 3))
def test_occurrences(rows, token):
    wanted = [[i, c] for i, row in enumerate(rows) for c, id in enumerate(row) if id == token]
    assert explorer.occurrences(torch.tensor(rows), token).tolist() == wanted


def test_a_pair_across_data_is_a_pair_of_the_text(site):
    data = site.run.data
    assert isinstance(data, Data)
    first, second = int(data.tokens[0, -1]), int(data.tokens[1, 0])
    counts = explorer.next_to(site.run.corpus.train, first, len(site.vocab))
    assert counts[second] >= 1
