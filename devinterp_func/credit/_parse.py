"""Probes by name, as a person writes them at a command."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from devinterp_func import checks, keys, models, neurons, units
from devinterp_func.batches import Data
from devinterp_func.credit import patterns, probes
from devinterp_func.credit.probes import Probe
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


class Source(NamedTuple):
    """What probes are made of: a run, and its validation data in a drawn order."""

    run: Run
    drawn: Data
    n: int  # texts of a probe

    def texts(self) -> Data:
        """The first ``n``."""
        return Data(*(x[: self.n] for x in self.drawn))


def parse_probe(text: str, run: Run, *, key: keys.Key | int, n: int = 20) -> Probe:
    """The probe that a text such as those in ``FORMS`` names; texts it needs are drawn from the validation split.

    Args:
        text: the form; heads count layer and head from 0 and attend to previous, same, induction or bracket.
        run: whose model and text they are.
        key: of the draw.
        n: how many texts; for a head, how many in which its pattern occurs.

    Raises:
        ValueError: the text has no such form, or a word, neuron, head or pattern is not there; what is there is named.
    """
    checks.integer("texts", n)
    kind, colon, rest = text.partition(":")
    held_out = run.split("valid")
    order = keys.permutation(len(held_out.tokens), key=key)
    source = Source(run, Data(*(x[order].to(run.device) for x in held_out)), n)
    build = BUILDERS.get(kind)
    probe = build(rest.split(), source) if build and bool(rest) == bool(colon) else None
    if probe is None:
        raise ValueError(
            f"{text!r} names no probe; forms are {', '.join(FORMS)}, heads attend to {', '.join(patterns.NAMES)}"
        )
    return probe._replace(name=text)


# ---- one builder a kind: None where the words have not its form


def _loss(words: list[str], source: Source) -> Probe | None:
    if words:
        return None
    config, texts = source.run.config, source.texts()
    buffer = torch.empty(config.vocab_size, texts.tokens.numel(), device=source.run.device)
    return probes.loss(texts.tokens, texts.targets, config, buffer=buffer)


def _next(words: list[str], source: Source) -> Probe | None:
    if words.count("=>") < 1 or words[-2:-1] != ["=>"] or len(words) < 3:
        return None
    *prompt, output = _token_ids(words[:-2] + words[-1:], source.run)
    return probes.log_probability(torch.tensor(prompt, device=source.run.device), output, source.run.config)


def _bigram(words: list[str], source: Source) -> Probe | None:
    if len(words) != 2:
        return None
    first, second = _token_ids(words, source.run)
    return probes.bigram(second, first)


def _norm(words: list[str], source: Source) -> Probe | None:
    return probes.squared_norm(_neuron(words[0], source.run)) if len(words) == 1 else None


def _effect(words: list[str], source: Source) -> Probe | None:
    if len(words) != 2:
        return None
    neuron, (token,) = _neuron(words[0], source.run), _token_ids(words[1:], source.run)
    return probes.effect(neuron, token, source.texts().tokens, source.run.config)


def _head(words: list[str], source: Source) -> Probe | None:
    match = re.fullmatch(r"([0-9]+)\.([0-9]+) (\w+)", " ".join(words))
    if match is None or match[3] not in patterns.NAMES:
        return None
    layer, head, name = int(match[1]), int(match[2]), match[3]
    pattern = patterns.by_name(name, source.drawn.tokens, lambda word: _token_ids([word], source.run)[0])
    there = pattern.any((1, 2))
    if not bool(there.any()):
        raise ValueError(f"the pattern {name} occurs in none of the {len(there)} validation texts")
    tokens, pattern = source.drawn.tokens[there][: source.n], pattern[there][: source.n]
    return probes.attention(tokens, pattern, layer, head, source.run.config)


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
        raise ValueError(
            f"{error.args[0]}; words are written as the text has them, lower case, punctuation apart"
        ) from None


def _neuron(text: str, run: Run) -> Neuron:
    return neurons.require(models.shapes(run.config), neurons.parse(text))
