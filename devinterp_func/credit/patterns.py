"""What attention heads attend to, against a distance-matched baseline.

A head that attends to near tokens attends to many opening brackets, too. So beside the attention from each closing
bracket to the bracket it closes stands what the same head gives, from other queries, to keys at the same distances.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func.graph import Graph, attention_patterns
from devinterp_func.tree import Params

Pattern = Bool[Tensor, "n C C"]  # of each text: which keys (last) each query (middle) is to attend to


def asked_queries(pattern: Pattern) -> Bool[Tensor, "n C"]:
    """The queries that have a marked key.

    Raises:
        ValueError: none has.
    """
    queries = pattern.any(-1)
    if not bool(queries.any()):
        raise ValueError("the pattern marks no key in any of the texts; nothing can be attended to")
    return queries


def previous_token(tokens: Int[Tensor, "n C"]) -> Pattern:
    """Each query's own last token.

    >>> previous_token(torch.tensor([[7, 8, 9]]))[0].nonzero().tolist()
    [[1, 0], [2, 1]]
    """
    n, C = tokens.shape
    return torch.ones(C - 1, dtype=torch.bool, device=tokens.device).diag(-1).expand(n, C, C)


def same_token(tokens: Int[Tensor, "n C"]) -> Pattern:
    """Earlier places of the query's token.

    >>> same_token(torch.tensor([[7, 8, 7]]))[0].nonzero().tolist()
    [[2, 0]]
    """
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1)


def induction(tokens: Int[Tensor, "n C"]) -> Pattern:
    """Places right after earlier ones of the query's token.

    >>> induction(torch.tensor([[7, 8, 9, 7]]))[0].nonzero().tolist()
    [[3, 1]]
    """
    same = same_token(tokens)
    return torch.cat([torch.zeros_like(same[..., :1]), same[..., :-1]], dim=-1).tril(-1)


def brackets(tokens: Int[Tensor, "n C"], opening: int, closing: int) -> Pattern:
    """The opening bracket that each closing one closes, nesting counted; brackets without a partner mark nothing.

    >>> brackets(torch.tensor([[1, 5, 1, 2, 2]]), opening=1, closing=2)[0].nonzero().tolist()
    [[3, 2], [4, 0]]
    """
    pattern = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)  # filled here, moved once
    for text, row in enumerate(tokens.tolist()):
        open_at: list[int] = []
        for place, token in enumerate(row):
            if token == opening:
                open_at.append(place)
            elif token == closing and open_at:
                pattern[text, place, open_at.pop()] = True
    return pattern.to(tokens.device)


class HeadAttention(NamedTuple):
    """Mean attention of every head to the marked keys, over the queries that have one; and its control."""

    value: Float[Tensor, "L h"]
    control: Float[Tensor, "L h"]  # from queries that have none, to keys at the same distances; NaN if all have
    queries: int

    def __repr__(self) -> str:
        layer, head = divmod(int(self.above().argmax()), self.value.shape[1])
        best = f"{layer}.{head}: {self.value[layer, head]:.3f}, by distance {self.control[layer, head]:.3f}"
        return f"HeadAttention of {self.value.numel()} heads over {self.queries} queries; best {best}"

    def above(self) -> Float[Tensor, "L h"]:
        """How far above its control each head is; where there is no control, the attention itself."""
        return self.value - self.control.nan_to_num(0.0)


@torch.no_grad()
def attention(graph: Graph, params: Params, batch: tuple[Any, ...], pattern: Pattern) -> HeadAttention:
    """Attention of all heads on a pattern, without dropout.

    Args:
        graph, params: the model.
        batch: some data, such as ``(tokens,)``.
        pattern: the marked keys, such as ``patterns.brackets`` finds.

    Raises:
        ValueError: no key is marked, or the model has no attention.
    """
    asked = asked_queries(pattern)
    weights = attention_patterns(graph, params, batch).movedim((1, 2), (-2, -1))  # (n, C, C, L, h)
    value = (weights * pattern[..., None, None]).sum(2)[asked].mean(0)
    control, queries = torch.zeros_like(value), int(asked.sum())
    for distance in range(1, pattern.shape[1]):
        if marked := int(pattern.diagonal(-distance, 1, 2).sum()):
            unasked = weights.diagonal(-distance, 1, 2).movedim(-1, 1)[~asked[:, distance:]]  # (m, L, h)
            control += marked / queries * unasked.mean(0)  # the mean of none is NaN
    return HeadAttention(value, control, queries)


NAMES = ("previous", "same", "induction", "bracket")


def by_name(name: str, tokens: Int[Tensor, "n C"], index: Callable[[str], int]) -> Pattern:
    """A pattern of attention by name.

    Args:
        name: in ``NAMES``.
        tokens: some texts.
        index: the id of a token that must be there, such as ``Vocab.index``; it is asked for the brackets.

    Raises:
        ValueError: there is no such pattern.
        KeyError: of ``index``, where a bracket is no token.
    """
    match name:
        case "previous":
            return previous_token(tokens)
        case "same":
            return same_token(tokens)
        case "induction":
            return induction(tokens)
        case "bracket":
            return brackets(tokens, index("("), index(")"))
    raise ValueError(f"{name!r} is no pattern; there are {', '.join(NAMES)}")
