"""Probes by name are those of the functions, over validation texts; what is not there is refused before any work."""

from dataclasses import replace

import pytest
import torch
from run_builders import PLANTED, recorded

from devinterp_func import credit, keys, models, records, tree
from devinterp_func.credit import patterns, probes
from devinterp_func.models import Config
from devinterp_func.neurons import Neuron
from devinterp_func.training import Recipe

VOCAB = PLANTED.vocab
CONFIG = Config(len(VOCAB), d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(context=12, batch_size=4, n_steps=2)
    return recorded(
        tmp_path_factory.mktemp("runs") / "run", recipe, records.Recording(k=5), model=models.transformer(CONFIG)
    )


def parse(form, run, n=20):
    return credit.parse_probe(form, run, key=0, n=n)


@pytest.mark.parametrize(
    "form, probe",
    [
        ("bigram:t0w00 t0w01", lambda graph: probes.bigram(graph, VOCAB.index("t0w01"), VOCAB.index("t0w00"))),
        ("norm:layers.1.linear2.weight:3", lambda _: probes.squared_norm(Neuron("layers.1.linear2.weight", 3))),
        (
            "norm:layers.1.linear1.weight:3:out",
            lambda _: probes.squared_norm(Neuron("layers.1.linear1.weight", 3, "out")),
        ),
        (
            "next:c00 t0w00 => t0w01",
            lambda graph: probes.log_probability(graph, VOCAB.encode("c00 t0w00"), VOCAB.index("t0w01")),
        ),
        ("next:<unk> => c00", lambda graph: probes.log_probability(graph, torch.tensor([0]), VOCAB.index("c00"))),
    ],
)
def test_forms_name_the_probes_of_the_functions(form, probe, run):
    found, params = parse(form, run), run.params()
    assert found.name == form
    torch.testing.assert_close(found.value(params), probe(run.graph).value(params), rtol=0, atol=0)


def test_losses_effects_and_heads_read_drawn_validation_texts(run):
    held_out, params = run.split("valid"), run.params()
    order = keys.permutation(len(held_out.tokens), key=0)[:3]
    tokens, targets = held_out.tokens[order], held_out.targets[order]
    neuron, token = Neuron("layers.0.linear2.weight", 2), VOCAB.index("c00")
    for form, probe in {
        "loss": probes.loss(run.graph, (tokens, targets)),
        f"effect:{neuron} c00": probes.effect(run.graph, neuron, token, (tokens,)),
        "head:1.0 previous": probes.attention(run.graph, (tokens,), patterns.previous_token(tokens), 1, 0),
    }.items():
        torch.testing.assert_close(parse(form, run, n=3).value(params), probe.value(params), rtol=1e-6, atol=0)
    everything = probes.loss(run.graph, held_out).value(params)
    torch.testing.assert_close(parse("loss", run, n=10**6).value(params), everything)


@pytest.mark.parametrize("name", patterns.NAMES)
def test_heads_are_measured_where_their_pattern_occurs(name, run):
    held_out, params = run.split("valid").tokens, run.params()
    tokens = held_out[keys.permutation(len(held_out), key=0)]
    pattern = patterns.by_name(name, tokens, VOCAB.index)
    there = [t for t in range(len(tokens)) if pattern[t].any()][:4]
    expected = probes.attention(run.graph, (tokens[there],), pattern[there], 1, 1).value(params)
    torch.testing.assert_close(parse(f"head:1.1 {name}", run, n=4).value(params), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "form",
    ["", "losses", "loss:3", "loss:", "bigram:one", "bigram:c00 c01 c02", "next:a b", "next: => b", "next:a => b c"]
    + ["norm:", "effect:layers.0.linear2.weight:2", "head:1.0 sideways", "head:x.y same", "head:1 same", "head:1.0"],
)
def test_what_names_no_probe_is_refused_and_the_forms_are_listed(form, run):
    with pytest.raises(ValueError, match="names no probe; forms are loss, next:new => york"):
        parse(form, run)


@pytest.mark.parametrize(
    "form, message",
    [
        ("bigram:t0w99 c00", r"'t0w99' is not among .* nearest are 't0w19'"),
        ("bigram:c00 C01", "'C01' is not among .*'c01'.*as the vocabulary has them"),
        ("next:The c00 => c01", "'The' is not among the [0-9]+ tokens"),
        ("next:c00 => file", "'file' is not among"),
        ("effect:layers.0.linear2.weight:2 York", "'York' is not among"),
        ("effect:layers.0.linear2.weight:6 c00", "no column 6; its columns are 0 to 5"),
        ("norm:layers.7.linear2.weight:0", "'layers.7.linear2.weight' has no neurons"),
        ("norm:layers.0.linear2.weight", "is not a neuron"),
        ("head:7.0 previous", r"layer is 7; it must be in 0\.\.1"),
        ("head:0.2 previous", r"head is 2; it must be in 0\.\.1"),
    ],
)
def test_what_is_not_there_is_named_before_any_work(form, message, run):
    with pytest.raises(ValueError, match=message):
        parse(form, run)


def test_a_pattern_that_no_text_has_is_refused(run):
    same = tree.map(lambda x: torch.full_like(x, VOCAB.index("c00")), run.split("valid"))
    with pytest.raises(ValueError, match="the pattern bracket occurs in none of the [0-9]+ validation texts"):
        parse("head:0.0 bracket", replace(run, dataset=replace(run.dataset, valid=same)))


def test_a_number_of_texts_is_checked(run):
    with pytest.raises(ValueError, match="texts is 0; it must be at least 1"):
        parse("loss", run, n=0)
