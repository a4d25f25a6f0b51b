"""Probes by name, as a person writes them at a command."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import batches, checks, keys, neurons, tree, units
from devinterp_func.credit import patterns, probes
from devinterp_func.credit.probes import Probe
from devinterp_func.graph import Graph, n_positions
from devinterp_func.neurons import Neuron
from devinterp_func.records import Run

FORMS = (
    "loss",
    "next:new => york",
    "bigram:new york",
    f"norm:{units.EXAMPLE}:96",
    f"effect:{units.EXAMPLE}:96 york",
    "head:2.1 bracket",
)
OF_WORDS = ("next", "bigram", "effect", "head")  # kinds of probes that read a text's tokens


class Source(NamedTuple):
    """What probes are made of: a run, and how data are drawn from its validation split."""

    run: Run
    key: keys.Key | int
    n: int  # data of a probe

    def drawn(self) -> Any:
        """All validation data, in a drawn order."""
        held_out = self.run.split("valid")
        order = keys.permutation(batches.n_data(held_out), key=self.key)
        return tree.map(lambda x: x.to(self.run.device), batches.take(held_out, order))

    def some(self) -> tuple[Any, ...]:
        """The first ``n``."""
        return tuple(tree.map(lambda x: x[: self.n], self.drawn()))


def parse_probe(text: str, run: Run, *, key: keys.Key | int, n: int = 20) -> Probe:
    """The probe that a text such as those in ``FORMS`` names; data it needs are drawn from the validation split.

    Args:
        text: the form; heads count layer and head from 0 and attend to previous, same, induction or bracket.
        run: whose model and data they are.
        key: of the draw.
        n: how many data; for a head, how many texts in which its pattern occurs.

    Raises:
        ValueError: the text has no such form, or a word, neuron, head or pattern is not there; what is there is named.
        RecordError: the probe reads validation data, and the run has none.
    """
    checks.integer("texts", n)
    kind, colon, rest = text.partition(":")
    build = BUILDERS.get(kind)
    if kind in OF_WORDS and not run.is_text:
        raise ValueError(f"{text!r} reads words, and the data of {run} are no text; loss and norm:UNIT:INDEX read none")
    probe = build(rest.split(), Source(run, key, n)) if build and bool(rest) == bool(colon) else None
    if probe is None:
        raise ValueError(
            f"{text!r} names no probe; forms are {', '.join(FORMS)}, heads attend to {', '.join(patterns.NAMES)}"
        )
    return probe._replace(name=text)


# ---- one builder a kind: None where the words have not its form


def _loss(words: list[str], source: Source) -> Probe | None:
    if words:
        return None
    graph, data = source.run.graph, source.some()
    return probes.loss(graph, data, buffer=_buffer(graph, batches.n_data(data), source.run.device))


def _buffer(graph: Graph, n: int, device: str) -> Float[Tensor, "V nC"] | None:
    """Scratch for the logits of n data."""
    if graph.head is None:
        return None
    dtype = graph.dtypes[graph.head.weight]
    return torch.empty(graph.vocab_size, n * n_positions(graph), dtype=dtype, device=device)


def _next(words: list[str], source: Source) -> Probe | None:
    if words.count("=>") < 1 or words[-2:-1] != ["=>"] or len(words) < 3:
        return None
    *prompt, output = _token_ids(words[:-2] + words[-1:], source.run)
    return probes.log_probability(source.run.graph, torch.tensor(prompt, device=source.run.device), output)


def _bigram(words: list[str], source: Source) -> Probe | None:
    if len(words) != 2:
        return None
    first, second = _token_ids(words, source.run)
    return probes.bigram(source.run.graph, second, first)


def _norm(words: list[str], source: Source) -> Probe | None:
    return probes.squared_norm(_neuron(words[0], source.run)) if len(words) == 1 else None


def _effect(words: list[str], source: Source) -> Probe | None:
    if len(words) != 2:
        return None
    neuron, (token,) = _neuron(words[0], source.run), _token_ids(words[1:], source.run)
    return probes.effect(source.run.graph, neuron, token, source.some()[:1])


def _head(words: list[str], source: Source) -> Probe | None:
    match = re.fullmatch(r"([0-9]+)\.([0-9]+) (\w+)", " ".join(words))
    if match is None or match[3] not in patterns.NAMES:
        return None
    layer, head, name = int(match[1]), int(match[2]), match[3]
    tokens = source.drawn().tokens
    pattern = patterns.by_name(name, tokens, lambda word: _token_ids([word], source.run)[0])
    there = pattern.any((1, 2))
    if not bool(there.any()):
        raise ValueError(f"the pattern {name} occurs in none of the {len(there)} validation texts")
    tokens, pattern = tokens[there][: source.n], pattern[there][: source.n]
    return probes.attention(source.run.graph, (tokens,), pattern, layer, head)


Builder = Callable[[list[str], Source], Probe | None]
BUILDERS: dict[str, Builder] = {
    "loss": _loss,
    "next": _next,
    "bigram": _bigram,
    "norm": _norm,
    "effect": _effect,
    "head": _head,
}


def _token_ids(words: list[str], run: Run) -> list[int]:
    """Ids of words that must all be in the vocabulary.

    Raises:
        ValueError: one is not; the nearest that are there are named.
    """
    try:
        return [run.corpus.vocab.index(word) for word in words]
    except KeyError as error:
        raise ValueError(f"{error}; words are written as the vocabulary has them") from None


def _neuron(text: str, run: Run) -> Neuron:
    return neurons.require(run.graph.shapes, neurons.parse(text))
