"""From a token stream to batches: data cut from the stream, and each epoch's order as a pure function of the key."""

from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor

from devinterp_func import checks, keys


class Data(NamedTuple):
    """N training examples of C tokens each; ``targets[i, c]`` is the token that follows ``tokens[i, c]``."""

    tokens: Int64[Tensor, "N C"]
    targets: Int64[Tensor, "N C"]

    def __repr__(self) -> str:
        return f"Data({self.tokens.shape[0]:,} data of {self.tokens.shape[1]} tokens)"


def chunk(stream: Int64[Tensor, "L"], context: int) -> Data:
    """Cuts a stream into consecutive data: N = (L - 1) // C; what is left over at the end is dropped.

    Args:
        stream: token ids.
        context: C, tokens a datum; 35 in the post.

    Returns:
        Data that share the stream's memory.

    Raises:
        ValueError: context below 1, a negative id, or a stream shorter than one datum and the token after it.

    >>> import torch
    >>> chunk(torch.arange(8), 3).targets
    tensor([[1, 2, 3],
            [4, 5, 6]])
    """
    context = checks.integer("context", context)
    n = (len(stream) - 1) // context
    if len(stream) and int(stream.min()) < 0:
        raise ValueError(f"the stream holds the id {int(stream.min())}; ids are at least 0, and nothing is padded")
    if n < 1:
        raise ValueError(f"a stream of {len(stream)} tokens is too short for context {context}; it takes {context + 1}")
    return Data(stream[: n * context].view(n, context), stream[1 : n * context + 1].view(n, context))


def n_batches(n_data: int, batch_size: int) -> int:
    """Whole batches in an epoch: ``n_data // batch_size``.

    >>> n_batches(58_571, 20)  # the post's
    2928
    """
    if not 1 <= batch_size <= n_data:
        raise ValueError(f"batch_size is {batch_size}; with {n_data} data it must be in 1 to {n_data}")
    return n_data // batch_size


def schedule(
    n_data: int, batch_size: int, *, epoch: int, key: keys.Key | int
) -> Int64[Tensor, "{n_data//batch_size} {batch_size}"]:
    """Data ids of every batch of an epoch: a new permutation each epoch, its incomplete last batch left out.

    Args:
        n_data: size of the training set.
        batch_size: data a batch; 20 in the post.
        epoch: from 0.
        key: source of randomness; the order depends on nothing else.

    Returns:
        Datum ids; row i is batch i.

    Raises:
        ValueError: batch_size not in 1 to n_data, or a negative epoch.

    >>> schedule(7, 2, epoch=0, key=0).shape
    torch.Size([3, 2])
    """
    if epoch < 0:
        raise ValueError(f"epoch is {epoch}; epochs count from 0")
    n = n_batches(n_data, batch_size)
    order = keys.permutation(n_data, key=keys.fold_in(key, "schedule", epoch))
    return order[: n * batch_size].view(n, batch_size)


def take(data: Data, ids: Int64[Tensor, "n"]) -> Data:
    """The data with the given ids, in their order; one batch is ``take(data, schedule(...)[i])``."""
    return Data(data.tokens[ids], data.targets[ids])
