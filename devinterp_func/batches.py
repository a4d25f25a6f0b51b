"""Data and batches: any pytree of tensors with a leading N, and each epoch's order as a pure function of the key."""

from typing import NamedTuple, TypeVar

from jaxtyping import Int64
from torch import Tensor

from devinterp_func import checks, keys, tree

AnyData = TypeVar("AnyData")  # a pytree of tensors that all have the same first length N


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


def n_data(data: tree.Tree) -> int:
    """N, the length that all tensors of the data begin with.

    Args:
        data: any pytree of tensors with a leading N, such as ``Data`` or a tuple of images and labels.

    Raises:
        TypeError: a leaf is no tensor.
        ValueError: there are no data, a tensor has no dimensions, or the lengths differ; the leaves are named.

    >>> import torch
    >>> n_data((torch.zeros(5, 28, 28), torch.zeros(5, dtype=torch.int64)))
    5
    """
    leaves = tree.leaves(data)
    if strange := [leaf for leaf in leaves if not isinstance(leaf, Tensor)]:
        raise TypeError(f"the data hold a {type(strange[0]).__name__}; they must be tensors whose first length is N")
    shapes = ", ".join(f"{name} {list(leaf.shape)}".strip() for name, leaf in tree.flat(data).items())
    if not all(leaf.ndim for leaf in leaves):
        raise ValueError(
            f"the data hold a tensor without dimensions: {shapes}; the first one must be the number of data"
        )
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) > 1:
        raise ValueError(f"the data's first lengths differ: {shapes}; each must be the number of data")
    if not sum(lengths):
        raise ValueError(f"there are no data: {shapes or 'no tensors at all'}")
    return lengths.pop()


def take(data: AnyData, ids: Int64[Tensor, "n"]) -> AnyData:
    """The data with the given ids, in their order; one batch is ``take(data, schedule(...)[i])``."""
    return tree.map(lambda leaf: leaf[ids], data)


def example(data: AnyData, id: int) -> AnyData:
    """One datum: the same tree without the leading N."""
    return tree.map(lambda leaf: leaf[id], data)
