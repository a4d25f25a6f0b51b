"""Laws of accounts.py: probes by name are those of the functions, tables add up to the ledger, intervals hold."""

import polars as pl
import pytest
import torch

from devinterp_func import accounts, batches, ledger, probes, text, training
from devinterp_func.ledger import Entries
from devinterp_func.neurons import Neuron
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config

CORPUS = text.planted(key=0, n_tokens=6000)
VOCAB = CORPUS.vocab
CONFIG = Config(len(VOCAB), d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.0)
RECIPE = Recipe(context=12, batch_size=4, units=ledger.UNITS)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
PARAMS = training.initial(CONFIG, RECIPE)
NAMES = ["loss", "bigram:t0w00 t0w01"]


def parse(form, n=20):
    return accounts.parse(form, CORPUS, CONFIG, RECIPE, key=0, n=n)


@pytest.fixture(scope="module")
def by_nodes():
    followed = [parse(name) for name in NAMES]
    moves = list(training.moves(PARAMS, DATA, CONFIG, RECIPE, stop=24))
    entries = {m: [ledger.of_move(move, followed, m, start=True) for move in moves] for m in (1, 3)}
    return {m: Entries(*map(torch.stack, zip(*some, strict=True))) for m, some in entries.items()}


@pytest.mark.parametrize(
    "form, probe",
    [
        ("bigram:t0w00 t0w01", probes.bigram(VOCAB.index("t0w01"), VOCAB.index("t0w00"))),
        ("norm:layers.1.linear2.weight:3", probes.squared_norm(Neuron("layers.1.linear2.weight", 3))),
        ("next:c00 t0w00 => t0w01", probes.log_probability(VOCAB.encode("c00 t0w00"), VOCAB.index("t0w01"), CONFIG)),
    ],
)
def test_forms_name_the_probes_of_the_functions(form, probe):
    assert parse(form).name == form
    torch.testing.assert_close(parse(form).value(PARAMS), probe.value(PARAMS))


def test_texts_come_from_the_validation_split():
    held = batches.chunk(CORPUS.valid, RECIPE.context)
    whole = probes.loss(held.tokens, held.targets, CONFIG).value(PARAMS)
    torch.testing.assert_close(parse("loss", n=10**6).value(PARAMS), whole)


@pytest.mark.parametrize("name", accounts.PATTERNS)
def test_heads_are_asked_only_where_their_pattern_occurs(name):
    value = float(parse(f"head:1.0 {name}", n=10).value(PARAMS))
    assert 0 < value < 1
    assert float(parse(f"effect:layers.0.linear2.weight:2 {VOCAB.tokens[5]}").value(PARAMS)) != 0


@pytest.mark.parametrize(
    "form",
    ["", "losses", "loss:3", "bigram:one", "next:a b", "next: => b", "head:1.0 sideways", "head:x.y same", "norm:"],
)
def test_what_names_no_probe_is_refused_and_the_forms_are_listed(form):
    with pytest.raises(ValueError, match="names no probe; forms are loss, next:new => york"):
        parse(form)


def test_unknown_words_and_heads_are_named():
    with pytest.raises(LookupError, match="t0w99"):
        parse("bigram:t0w99 c00")
    with pytest.raises(ValueError, match=r"layer is 7; it must be in 0\.\.1"):
        parse("head:7.0 previous")
    with pytest.raises(ValueError, match="'sideways' is no pattern"):
        accounts.pattern("sideways", DATA.tokens, VOCAB)


def test_courses_add_up_to_the_change(by_nodes):
    entries = by_nodes[3]
    frame = accounts.course_frame(entries, NAMES, 10)
    for i, name in enumerate(NAMES):
        own = frame.filter(frame["probe"] == name)
        assert own["step"].to_list() == [0, 10, 20]
        total = sum(own["raised"]) + sum(own["lowered"]) + sum(own["residual"])
        assert total == pytest.approx(float(entries.after[-1, i] - entries.before[0, i]), abs=1e-5)
        assert min(own["raised"]) >= 0 >= max(own["lowered"])
        assert sum(own["steps"]) == len(entries.step) and own["steps"][-1] == 4
        assert sum(own["change"]) == pytest.approx(float((entries.after - entries.before)[:, i].abs().sum()))
        assert all(abs(row["residual"]) <= row["missed"] + 1e-12 for row in own.iter_rows(named=True))


def test_texts_and_tokens_have_the_ledgers_totals(by_nodes):
    entries = by_nodes[3]
    every = accounts.text_frame(entries, NAMES, DATA, VOCAB, most=10**4)
    tokens = accounts.token_frame(entries, NAMES, DATA, VOCAB, most=10**4)
    for i, name in enumerate(NAMES):
        whole = float(entries.credit[:, i].sum())
        assert sum(every.filter(every["probe"] == name)["credit"]) == pytest.approx(whole, abs=1e-9)
        own = tokens.filter(tokens["probe"] == name)
        assert sum(own["credit"]) == pytest.approx(whole, abs=1e-9)
        assert sum(own["positions"]) == entries.datum.numel() * RECIPE.context
    for row in every.head(5).iter_rows(named=True):
        at = (entries.datum == row["datum"]).nonzero()
        credit = sum(entries.credit[s, 0, j] for s, j in at.tolist())
        assert row["credit"] == pytest.approx(float(credit.sum())) and row["steps"] == len(at)
        place = int((credit * (1 if row["credit"] > 0 else -1)).argmax())
        words = VOCAB.decode(DATA.tokens[row["datum"]])
        target = VOCAB.tokens[int(DATA.targets[row["datum"], place])]
        assert f"({words[place]} → {target})" in row["text"]


def test_inputs_have_all_of_the_gross_credit_and_the_positions_of_their_token(by_nodes):
    entries = by_nodes[3]
    frame = accounts.input_frame(entries, NAMES, DATA, VOCAB, most=10**4)
    for i, name in enumerate(NAMES):
        own, credit = frame.filter(pl.col("probe") == name), entries.credit[:, i]
        assert sum(own["gross"]) == pytest.approx(float(credit.abs().sum()), abs=1e-9)
        assert sum(own["credit"]) == pytest.approx(float(credit.sum()), abs=1e-9)
        if own.height:
            assert sum(own["share of gross"]) == pytest.approx(1) and own["gross"].is_sorted(descending=True)
        for row in own.head(3).iter_rows(named=True):
            there = DATA.tokens[entries.datum.long()] == VOCAB.index(row["input"])
            assert row["gross"] == pytest.approx(float(credit[there].abs().sum()))
            assert row["positions"] == int(there.sum())
            assert row["share of positions"] == pytest.approx(float(there.double().mean()))


def test_excerpts_are_the_most_credited_texts_position_by_position(by_nodes):
    entries = by_nodes[3]
    excerpts = accounts.excerpt_frame(entries, NAMES, DATA, VOCAB, most=3)
    texts = accounts.text_frame(entries, NAMES, DATA, VOCAB, most=3)
    whole = excerpts.group_by("probe", "effect", "rank", "datum", "steps", maintain_order=True)
    totals = whole.agg(pl.col("credit").sum())
    assert totals["credit"].to_list() == pytest.approx(texts["credit"].to_list())
    for column in ("probe", "datum", "steps"):
        assert totals[column].to_list() == texts[column].to_list()
    assert totals["rank"].to_list() == [1, 2, 3] * 2 * len(NAMES)
    for effect, sign in (("raised", 1), ("lowered", -1)):
        assert all(sign * credit > 0 for credit in totals.filter(pl.col("effect") == effect)["credit"])
    for row in excerpts.head(2 * RECIPE.context).iter_rows(named=True):
        at = (entries.datum == row["datum"]).nonzero().tolist()
        credit = sum(float(entries.credit[s, 0, j, row["position"]]) for s, j in at)
        assert row["credit"] == pytest.approx(credit, abs=1e-12)
        for column, of in (("token", DATA.tokens), ("target", DATA.targets)):
            assert row[column] == VOCAB.tokens[int(of[row["datum"], row["position"]])]


def test_without_credit_there_are_no_excerpts_but_their_columns(by_nodes):
    entries = by_nodes[3]._replace(credit=torch.zeros_like(by_nodes[3].credit))
    frame = accounts.excerpt_frame(entries, NAMES, DATA, VOCAB)
    assert len(frame) == 0 and dict(frame.schema) == accounts.EXCERPTS


def test_a_probe_that_is_named_twice_is_told_once(by_nodes):
    entries, names = accounts.once(by_nodes[3], ["loss", "loss"])
    assert names == ["loss"] and torch.equal(entries.credit, by_nodes[3].credit[:, :1])
    assert torch.equal(entries.before, by_nodes[3].before[:, :1]) and torch.equal(entries.datum, by_nodes[3].datum)


def test_balances_are_ratios_within_their_intervals_and_more_nodes_miss_less(by_nodes):
    frame = accounts.balance_frame(by_nodes, NAMES, key=0, draws=200)
    assert len(frame) == 2 * 5
    for row in frame.iter_rows(named=True):
        assert 0 <= row["low"] <= row["missed"] <= row["high"] and row["steps"] == 24
    missed = {row["estimate"]: row["missed"] for row in frame.iter_rows(named=True) if row["probe"] == "loss"}
    assert missed["Gauss-Legendre, 3"] < missed["Gauss-Legendre, 1"] < missed["gradient at the start"]
    change = by_nodes[1].change()[:, 0]
    expected = (change - by_nodes[1].start[:, 0].sum((1, 2))).abs().sum() / change.abs().sum()
    assert missed["gradient at the start"] == pytest.approx(float(expected))


def test_agreement_is_one_for_the_truth_and_none_for_chance():
    truth = torch.randn(40, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(40, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frame = accounts.agreement_frame({"same": 3 * truth, "opposite": -truth, "noise": noise}, truth, key=0)
    median = dict(zip(frame["score"], frame["median"], strict=True))
    assert median["same"] == pytest.approx(1) and median["opposite"] == pytest.approx(-1)
    assert abs(median["noise"]) < 0.2
    assert all(row["low"] <= row["median"] <= row["high"] for row in frame.iter_rows(named=True))
