"""The one forward pass over many examples, a few at a time, and what may be looked at or replaced on the way."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from devinterp_func import checks
from devinterp_func.models._parameters import Config
from devinterp_func.models._transformer import Tap, attention_weights, layer, layer_from, stream
from devinterp_func.tree import Params
from devinterp_func.units import UNEMBEDDING, UNEMBEDDING_BIAS
from devinterp_func.units import layer as layer_of

LOGITS = 2**23  # formed at once
POSITIONS = 2**12  # run at once where no logits are formed

Seen = dict[str, tuple[Tensor, Tensor]]
"""Operation -> its inputs and its outputs, each (b, C, width)."""


class Pass(NamedTuple):
    """Some examples, run."""

    rows: slice  # which they are
    stream: Float[Tensor, "b C d"]  # what the unembedding reads
    seen: Seen  # of the operations that were watched


def forward(
    params: Params,
    tokens: Int[Tensor, "n C"],
    config: Config,
    *,
    watch: Collection[str] = (),
    blocks: Sequence[slice] | None = None,
    tap: Callable[..., Tap] | None = None,
    extra: tuple[Tensor, ...] = (),
) -> Iterator[Pass]:
    """Runs the model over examples without dropout, a few at a time; once with none where there are no examples.

    Args:
        params, config: the model.
        tokens: of the examples.
        watch: operations whose inputs and outputs are wanted, such as ``layers.0.linear2``.
        blocks: which examples go together; by default as many as make ``POSITIONS`` positions.
        tap: given each example's part of ``extra``, what every operation's output is replaced by.
        extra: tensors with a leading n.

    Raises:
        ValueError: a token that the vocabulary lacks.
    """
    checks.token_ids("tokens", tokens, config.vocab_size)

    def one(example: Tensor, *own: Tensor) -> tuple[Tensor, Seen]:
        seen: Seen = {}
        inner = None if tap is None else tap(*own)

        def outer(name: str, inputs: Tensor, output: Tensor) -> Tensor:
            output = output if inner is None else inner(name, inputs, output)
            if name in watch:
                seen[name] = inputs, output
            return output

        return stream(params, example, config, tap=outer), seen

    size = max(1, POSITIONS // tokens.shape[1])
    for rows in by_size(len(tokens), size) if blocks is None else blocks:
        yield Pass(rows, *vmap(one)(tokens[rows], *(x[rows] for x in extra)))


def streams(params: Params, tokens: Int[Tensor, "n C"], config: Config) -> Float[Tensor, "n C d"]:
    """What the unembedding reads at every position of every example, without dropout."""
    return torch.cat([part.stream for part in forward(params, tokens, config)])


def attention_patterns(params: Params, tokens: Int[Tensor, "n C"], config: Config) -> Float[Tensor, "n L h C C"]:
    """Attention of all heads of all layers on some texts: text, layer, head, query, key."""
    names = [f"layers.{i}.self_attn.in_proj" for i in range(config.n_layers)]

    def pattern(qkv: Tensor) -> Tensor:
        return attention_weights(qkv, config.n_heads)[0]

    parts = [
        torch.stack([vmap(pattern)(part.seen[name][1]) for name in names], dim=1)
        for part in forward(params, tokens, config, watch=names)
    ]
    return torch.cat(parts)


def resume(
    params: Params,
    config: Config,
    operation: str,
    output: Float[Tensor, "p C o"],
    seen: Seen,
    datum: Int[Tensor, "p"],
) -> Float[Tensor, "p C d"]:
    """What the unembedding reads when an operation, in some examples, gives another output.

    Args:
        params, config: the model.
        operation: of a layer, such as ``layers.0.linear2``.
        output: what it gives instead.
        seen: of ``forward``, the ``resume_needs`` of the operation watched.
        datum: which of the examples seen each output belongs to.
    """
    at = layer_of(operation)
    name, kind = f"layers.{at}.", operation.removeprefix(f"layers.{at}.")
    first, middle = resume_needs(operation)
    entering, between = seen[first][0][datum], seen[middle][0][datum]

    def rest(output: Tensor, entering: Tensor, between: Tensor) -> Tensor:
        return layer_from(params, name, kind, output, entering, between, config)

    x = vmap(rest)(output, entering, between)
    for above in range(at + 1, config.n_layers):
        x = vmap(lambda own, above=above: layer(params, f"layers.{above}.", own, config))(x)
    return x


def resume_needs(operation: str) -> tuple[str, str]:
    """The operations whose inputs ``resume`` goes on from."""
    name = f"layers.{layer_of(operation)}."
    return f"{name}self_attn.in_proj", f"{name}linear1"


def logit_blocks(tokens: Int[Tensor, "n C"], config: Config) -> list[slice]:
    """The data a few at a time, so that their logits fit in ``LOGITS``; one block with none where there are no data."""
    return by_size(len(tokens), max(1, LOGITS // (config.vocab_size * tokens.shape[1])))


def by_size(n: int, size: int) -> list[slice]:
    """0 to n − 1 cut into slices of a size; one empty slice for n = 0."""
    return [slice(start, start + size) for start in range(0, max(n, 1), size)]


def decode(params: Params, stream: Float[Tensor, "m d"]) -> Float[Tensor, "m V"]:
    """Logits of the stream at m positions, all V at once."""
    return torch.addmm(params[UNEMBEDDING_BIAS], stream, params[UNEMBEDDING].T)
