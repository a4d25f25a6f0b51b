"""Laws of words: an id becomes its own word, and an excerpt marks the token that it says."""

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devinterp_func import neurons
from devinterp_func.batches import Data
from devinterp_func.neurons import Card, FlipCounts, ModelView, Trial
from devinterp_func.show import schema, words
from devinterp_func.show.schema import Table
from devinterp_func.text import Vocab

VOCAB = Vocab(tuple("<unk> a b c d e f g h i".split()))
TOKENS, TARGETS = torch.arange(1, 7), torch.arange(2, 8)  # a b c d e f -> b c d e f g
KIND = Table("", "", {"n": schema.Column(schema.INT), "token": schema.token(), "notable": schema.tokens()})


def ids(*numbers):
    return torch.tensor(numbers)


# ---- excerpts


@pytest.mark.parametrize(
    ("position", "width", "said"),
    [
        (2, 1, "… b (c → d) d …"),
        (0, 2, "(a → b) b c …"),
        (5, 2, "… d e (f → g)"),
        (2, 7, "a b (c → d) d e f"),
        (2, 2, "a b (c → d) d e …"),
        (3, 2, "… b c (d → e) e f"),
        (2, 0, "… (c → d) …"),
    ],
)
def test_an_excerpt_marks_its_token_beside_its_target(position, width, said):
    assert str(words.excerpt(TOKENS, TARGETS, position, VOCAB, width)) == said


@given(st.integers(1, 9), st.data())
def test_an_excerpt_holds_what_is_within_its_width_and_no_more(length, draw):
    position, width = draw.draw(st.integers(0, length - 1)), draw.draw(st.integers(0, 9))
    tokens = torch.arange(length)
    found = words.excerpt(tokens, tokens, position, VOCAB, width)
    shown = [i for i in range(length) if abs(i - position) <= width]
    assert [*found.before, found.marked, *found.following] == [VOCAB.tokens[i] for i in shown]
    assert found.cut == (0 not in shown, length - 1 not in shown)


def test_a_pair_is_its_input_and_what_follows():
    assert words.pair(3, 1, VOCAB) == "a → c"


def test_a_flip_is_shown_before_and_after():
    flip = neurons.Excerpt(0, 2, (1, 2), 3, 4, (5,), (True, False))
    assert str(words.flip_excerpt(flip, VOCAB)) == "… a b (c | d) e"


# ---- tables in words


def test_every_id_becomes_its_word_and_nothing_else_changes():
    rows: list[dict] = [
        {"n": 1, "token": 2, "notable": [1, 9, 1]},
        {"n": 2, "token": None, "notable": []},
        dict.fromkeys(KIND.columns),
    ]
    found = words.spell(schema.frame(KIND, rows), KIND, VOCAB)
    assert found.rows() == [(1, "b", ["a", "i", "a"]), (2, None, []), (None, None, None)]
    assert found.schema == {"n": pl.Int64, "token": pl.String, "notable": pl.List(pl.String)}


def test_a_frame_without_rows_and_columns_of_others_are_let_be():
    empty = words.spell(schema.frame(KIND, []), KIND, VOCAB)
    assert empty.schema == {"n": pl.Int64, "token": pl.String, "notable": pl.List(pl.String)} and not empty.height
    other = pl.DataFrame({"other": [1], "token": [1]})
    assert words.spell(other, KIND, VOCAB).rows() == [(1, "a")]


@pytest.mark.parametrize(("name", "value"), [("token", 10), ("token", -1), ("notable", [1, 10])])
def test_an_id_that_is_no_tokens_is_refused(name, value):
    rows = [{"n": 1, "token": 1, "notable": [1]} | {name: value}]
    with pytest.raises(ValueError, match=f"'{name}' holds the token id (10|-1); the vocabulary has 10 tokens"):
        words.spell(schema.frame(KIND, rows), KIND, VOCAB)


def test_words_are_those_of_the_ids_in_order():
    assert words.words(ids(3, 1), VOCAB) == "c a" and words.words([], VOCAB) == ""


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("layers.0.linear1.weight", "0.linear1 (post's 1.1)"),
        ("layers.11.linear2.weight", "11.linear2 (post's 12.2)"),
        ("layers.1.self_attn.out_proj.weight", "1.out_proj"),
        ("decoder.weight", "decoder"),
    ],
)
def test_layers_count_from_0_and_the_posts_number_stands_beside(unit, said):
    assert words.sublayer(unit) == said


# ---- cards


def counts(**of):
    found = FlipCounts(torch.zeros(10, dtype=torch.long), torch.zeros(10, dtype=torch.long))
    for token, (count, flips) in of.items():
        found.count[VOCAB.tokens.index(token)], found.flips[VOCAB.tokens.index(token)] = count, flips
    return found


def card(**changes):
    attributed = counts(a=(10, 5), b=(100, 20), c=(4, 4), d=(100, 1))  # c is too rare, d flips too seldom
    trial = Trial(neurons.parse("layers.0.linear1.weight:3"), ids(1, 2), attributed, counts(b=(50, 5)), counts())
    view = ModelView(None, ids(4), 0.125, 0.25, ids(5, 6))
    whole = Card(trial.neuron, 1234, ids(1, 0), ids(3, 1), ids(2), ids(1, 2), view, trial)
    return whole._replace(**changes)


def test_a_card_says_what_flips_most_first_and_what_its_control_does():
    data = Data(torch.stack([TOKENS, TOKENS + 1]), torch.stack([TARGETS, TARGETS + 1]))
    lines = words.card_text(card(), data, VOCAB, 1).splitlines()
    said = {line[:20].strip(): line[21:] for line in lines}
    assert said["ablated, flip"] == "b 20% of 100, a 50% of 10"
    assert said["... on random data"] == "b 10%, a 0%"
    assert said["logits raised"] == "–" and said["logits lowered"] == "d" and said["most active on"] == "e f"
    assert said["activation"] == "mean 0.125, above 0 at 25% of positions"
    assert said["datum 1, 3×"] == "b c d e f g" and not [name for name in said if name.startswith("datum 0")]


def test_a_card_without_flips_says_none():
    quiet = card().trial._replace(attributed=counts(a=(10, 0)))
    data = Data(TOKENS[None].expand(2, -1), TARGETS[None].expand(2, -1))
    text = words.card_text(card(trial=quiet), data, VOCAB)
    assert "ablated, flip        none" in text and "... on random data   –" in text and "datum 0, 1×" in text


def test_a_card_of_a_model_without_a_head_says_nothing_of_ablation():
    data = Data(torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 3, dtype=torch.int64))
    whole, headless = (words.card_text(card(**given), data, VOCAB).splitlines() for given in ({}, {"trial": None}))
    assert headless == [line for line in whole if not line.startswith(("ablated", "..."))] != whole
