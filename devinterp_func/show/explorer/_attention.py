"""Attention of a site's heads on its texts, at all snapshots."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import graph, tree
from devinterp_func.credit import patterns
from devinterp_func.records import RecordError
from devinterp_func.show.explorer._head_courses import heads_in_order
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import NotThere

Part = Literal["train", "valid"]
TEXTS = 400  # among which a head's best is looked for, at most
NUMBERS = 20_000_000  # of the attention of all of them, at most


class Example(NamedTuple):
    """A text on which a head is shown."""

    part: Part  # of the data
    datum: int  # its number there
    pattern: str | None  # what is to be seen in it
    step: int  # the snapshot at which it is seen best


@lru_cache(maxsize=16)
def heads(site: Site) -> tuple[int, int]:
    """Layers with attention, and heads in each.

    Raises:
        NotThere: the model has no attention, or is not stored with the run.
    """
    near = [("the run", "run", None)]
    try:
        attending = site.run.graph.attention
    except RecordError as error:
        raise NotThere(str(error), near) from error
    if not attending:
        raise NotThere("this model has no attention: its graph has no softmax between two products", near)
    part = parts(site)[0]
    found = graph.attention_patterns(site.run.graph, site.params, batch(site, part, 0, 1))
    return found.shape[1], found.shape[2]


def parts(site: Site) -> list[Part]:
    """The parts of the run's data, held-out ones first."""
    try:
        site.run.split("valid")
    except RecordError:
        return ["train"]
    return ["valid", "train"]


def batch(site: Site, part: Part, start: int, stop: int) -> tuple[Any, ...]:
    """Some data as the graph takes them."""
    data = site.run.data if part == "train" else site.run.split("valid")
    chosen = (data.tokens,) if site.run.is_text else data
    return tuple(leaf.to(site.run.device) for leaf in tree.map(lambda x: x[start:stop], chosen))


@lru_cache(maxsize=16)
def attention(site: Site, head: str, part: Part, datum: int) -> Float[Tensor, "S C C"]:
    """A head's attention on one datum at every snapshot, without dropout: query, key.

    Args:
        site: of ``open``.
        head: layer and head, such as ``"0.1"``.
        part: of the data, "train" or "valid".
        datum: its number there.
    """
    layer, number = map(int, head.split("."))
    chosen, found = batch(site, part, datum, datum + 1), []
    for step in site.run.snapshots:
        every = graph.attention_patterns(site.run.graph, site.run.params(step), chosen)
        found.append(every[0, layer, number].clone().cpu())
    return torch.stack(found)


def marked(site: Site, part: Part, start: int, stop: int) -> dict[str, patterns.Pattern]:
    """What each pattern marks in some texts; without those that mark nothing, and whose tokens there are not."""
    if site.vocab is None:
        return {}
    [tokens], vocab = batch(site, part, start, stop), site.vocab
    able = [name for name in patterns.NAMES if name != "bracket" or all(token in vocab for token in "()")]
    found = {name: patterns.by_name(name, tokens, vocab.index) for name in able}
    return {name: pattern for name, pattern in found.items() if bool(pattern.any())}


@lru_cache(maxsize=8)
def on_patterns(site: Site, step: int) -> dict[str, Float[Tensor, "n L h"]]:
    """Mean attention of all heads of a snapshot to the keys that each pattern marks, in each of some texts.

    NaN in a text that the pattern marks nothing in.
    """
    (L, h), part = heads(site), parts(site)[0]
    [tokens] = batch(site, part, 0, TEXTS)
    n = min(len(tokens), max(1, NUMBERS // (L * h * tokens.shape[1] ** 2)))
    weights = graph.attention_patterns(site.run.graph, site.run.params(step), (tokens[:n],))
    found = {}
    for name, pattern in marked(site, part, 0, n).items():
        asked = pattern.any(-1).sum(-1)  # NaN where none is
        found[name] = torch.einsum("nlhqk,nqk->nlh", weights, pattern.to(weights.dtype)) / asked[:, None, None]
    return found


def example(site: Site, head: str) -> Example:
    """Where a head is farthest above its control: of which pattern, when, and in which held-out text.

    The first text and the last snapshot where this was not measured.
    """
    part, last = parts(site)[0], max(site.run.snapshots)
    best = None if site.vocab is None else strongest(site, head)
    if best is None:
        return Example(part, 0, None, last)
    pattern, step = best
    if step not in site.run.snapshots or pattern not in (found := on_patterns(site, step)):
        return Example(part, 0, None, last)
    layer, number = map(int, head.split("."))
    return Example(part, int(found[pattern][:, layer, number].nan_to_num(-1.0).argmax()), pattern, step)


def strongest(site: Site, head: str) -> tuple[str, int] | None:
    """The pattern and the snapshot at which a head is farthest above control; those with a control before others."""
    rows = heads_in_order(site)
    own = None if rows is None else rows.filter(rows["head"] == head)
    return None if own is None or not len(own) else (str(own["pattern"][0]), int(own["step"][0]))
