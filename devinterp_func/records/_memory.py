"""What recording takes in memory, estimated before anything is trained: pure, from shapes alone."""

from typing import NamedTuple

from torch import Tensor

from devinterp_func import graph as graphs
from devinterp_func import per_example, training, tree
from devinterp_func.graph import Graph
from devinterp_func.per_example import Factor
from devinterp_func.records._going_on import HELD_FACTORS, SHARD_BYTES
from devinterp_func.records._record_step import Recording, delta_buffer
from devinterp_func.records._sizes import delta_factors, meta_params, n_bytes_of, step_bytes
from devinterp_func.training import Recipe


class Memory(NamedTuple):
    """Bytes that a process holds at once, by what they are for: an estimate, as libraries have scratch of their own."""

    weights: int  # before and after a step
    state: int  # the optimizer's, before and after
    gradients: int  # of the batch; of one in parts, their sum, too
    activations: int  # of the data that are captured at once, for the backward pass
    logits: int
    factors: int  # of gradients and of deltas
    deltas: int  # formed for the outliers
    records: int  # steps not yet written

    @property
    def total(self) -> int:
        """Bytes at most: 0.84 to 1.03 of what was measured of five models; not all is held at once, nor all counted."""
        return sum(self)


def memory(graph: Graph, recipe: Recipe, recording: Recording) -> Memory:
    """An estimate of the memory that recording takes in each process, from shapes alone.

    Args:
        graph, recipe, recording: as for ``outline``.

    Raises:
        TypeError, ValueError: as ``outline``.
    """
    parts = training.shares(recipe)[0]
    at_once, share = parts[0].stop, parts[-1].stop
    few, many = (per_example.outline(graph, n, recording.units) for n in (at_once, share))
    factors = few if len(parts) > 1 and _storage(many) > HELD_FACTORS else many
    params, head = meta_params(graph), graph.head
    weights, state = n_bytes_of(params), sum(map(n_bytes_of, recipe.optimizer.init(params).buffers.values()))
    logits = 0
    if head is not None:
        logits = head.n_classes * at_once * graphs.n_positions(graph) * graph.dtypes[head.weight].itemsize
    one = step_bytes(graph, recipe, recording)
    return Memory(
        2 * weights,
        2 * state,
        weights * (2 if len(parts) > 1 or recipe.processes > 1 else 1),
        at_once * graphs.value_bytes(graph),
        logits,
        _storage(factors, delta_factors(graph, recipe, factors)),
        delta_buffer(factors).nbytes,
        one * max(1, SHARD_BYTES // one),
    )


def _storage(*factors: dict[str, Factor]) -> int:
    """Bytes of tensors, those that share their memory counted once."""
    storages = [x.untyped_storage() for x in tree.leaves(factors) if isinstance(x, Tensor)]
    return sum({x._cdata: x.nbytes() for x in storages}.values())
