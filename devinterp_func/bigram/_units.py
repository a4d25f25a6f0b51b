"""The two tables that the bigram decoder is made of, in any model: what tokens are looked up in, and what logits read.

They may be one tensor (tied weights), as in GPT-2. Then both sides of W_UE move with it, and W_UE is symmetric: what
makes b likelier after a makes a likelier after b.
"""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, fx

from devinterp_func.graph import Graph, require_head
from devinterp_func.tree import Params

THROUGH = {  # leave the numbers as they are, or in the mean
    *("view", "_unsafe_view", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "transpose", "permute"),
    *("alias", "clone", "contiguous", "to", "_to_copy", "dropout", "native_dropout", "getitem"),
}


class DecoderUnits(NamedTuple):
    """Names of the tables, each (V, d)."""

    unembedding: str  # W_U
    embedding: str  # W_E


def decoder_units(graph: Graph) -> DecoderUnits:
    """The tables of a model whose first tensor is tokens that are looked up, and whose loss is of next tokens.

    Raises:
        ValueError: the model has none; what is missing is named.
    """
    head, embedding = require_head(graph), graph.embedding
    if embedding is None:
        raise ValueError(
            "this model has no bigram decoder: the first tensor of its example is looked up in no table of embeddings"
        )
    found = DecoderUnits(head.weight, embedding)
    sizes = [graph.shapes[name] for name in found]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"this model has no bigram decoder: its unembedding {head.weight} is {sizes[0]} and its embedding "
            f"{embedding} is {sizes[1]}; both must be (V, d)"
        )
    return found


def capture_units(graph: Graph) -> tuple[str, ...]:
    """What a step must be captured with to be split over its data: both tables, or the one that is both."""
    return tuple(dict.fromkeys(decoder_units(graph)))


def decoder_matrices(graph: Graph, params: Params) -> tuple[Float[Tensor, "V d"], Float[Tensor, "V d"]]:
    """W_U and W_E, as they are stored; errors as for ``decoder_units``."""
    unembedding, embedding = decoder_units(graph)
    return params[unembedding], params[embedding]


def embedding_scale(graph: Graph) -> float:
    """The number that an embedding is multiplied by before anything else is done with it: √d in the post's model.

    1 where the graph has no such number. What is no constant, such as a layer norm, is not part of the direct path.

    Raises:
        ValueError: as for ``decoder_units``.
    """
    name, scale = decoder_units(graph).embedding, 1.0
    node = next(use.node for use in graph.uses if use.kind == "lookup" and use.unit == name and use.x is not None)
    while len(node.users) == 1:
        (user,) = node.users
        by = _multiplier(graph, node, user)
        if by is None:
            break
        node, scale = user, scale * by
    return scale


def _multiplier(graph: Graph, x: fx.Node, user: fx.Node) -> float | None:
    """What an operation multiplies x by; None if it does anything else."""
    name = user.target.__name__.partition(".")[0]  # type: ignore[union-attr]
    if name in THROUGH:
        return 1.0
    if name not in ("mul", "div") or user.kwargs:
        return None
    first, second = user.args
    if first is x:
        by = _number(graph, second)
        return by if by is None or name == "mul" else 1 / by
    return _number(graph, first) if name == "mul" else None


def _number(graph: Graph, value: Any) -> float | None:
    """A number, or a constant of one number."""
    constant = graph.trace.constants.get(value) if isinstance(value, fx.Node) else value
    if isinstance(constant, Tensor):
        return float(constant) if constant.numel() == 1 else None
    return None if constant is None else float(constant)
