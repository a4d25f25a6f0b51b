"""One example's loss written down as a list of torch's own operations, by ``torch.export``.

What comes out is pure: no operation works in place, attention is written out as a softmax between two products, LSTM
and GRU as their steps, and whatever depends on neither parameters nor example is worked out once.
"""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from devinterp_func.graph._refusals import DROPOUTS, NothingChanged, check, explained, refuse, refuse_changes
from devinterp_func.graph._written_out import written_out
from devinterp_func.tree import Params

A = torch.ops.aten
Loss = Callable[..., Tensor]


class Trace(NamedTuple):
    """A loss of one example, written down."""

    nodes: tuple[fx.Node, ...]  # every operation that the loss depends on, each after what it reads
    params: Mapping[fx.Node, str]  # the parameters' nodes, and their names
    leaves: tuple[fx.Node, ...]  # the example's tensors, in order
    constants: Mapping[fx.Node, Tensor]
    output: fx.Node


class _Pure(torch.nn.Module):
    """What ``torch.export`` takes: parameters and example as inputs."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss, self.stderr = loss, sys.stderr  # what the loss itself says there is heard

    def forward(self, params: Params, *example: Any) -> Any:
        with NothingChanged(), redirect_stderr(self.stderr):
            loss = self.loss(params, *example)
        if not isinstance(loss, Tensor):
            raise ValueError(f"the loss gives a {type(loss).__name__}; it must be a scalar: return one 0-d tensor")
        if loss.ndim or not loss.is_floating_point():
            kind = f"shape {tuple(loss.shape)}" if loss.ndim else str(loss.dtype)
            raise ValueError(
                f"the loss of one example is of {kind}; it must be a floating-point scalar: take a mean or sum"
            )
        return loss


def trace(loss: Loss, params: Params, *example: Any) -> Trace:
    """Writes down a loss of one example; ``graph.of`` says what is refused."""
    check(params)
    # export takes one tensor given twice for one input: a tensor object for each place
    params, example = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (params, example))
    pure_loss = _Pure(loss)
    try:
        with _quiet():
            program = torch.export.export(pure_loss, (params, *example), strict=False)
            refuse(program.graph)
            _stop_gradients(program.graph)
            pure = program.run_decompositions(written_out())
            refuse_changes(pure.graph_signature)
    except Exception as error:
        raise explained(error) from error
    return _simplified(pure, list(params), len(tree_leaves(example)))


# ---- what torch.export gives, made pure


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing without torch's fast paths, its deprecation warnings, and its logs and prints of what fails."""
    fast, log = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    torch.backends.mha.set_fastpath_enabled(False)
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        log.setLevel(level)


def _stop_gradients(graph: fx.Graph) -> None:
    """A region under ``torch.no_grad`` gives constants: said by a detach, as the region itself is dissolved."""
    for node in list(graph.nodes):
        if "wrap_with_set_grad_enabled" in str(node.target) and node.args[0] is False:
            for got in list(node.users):
                with graph.inserting_after(got):
                    detached = graph.call_function(A.detach.default, (got,))
                detached.meta = {**got.meta}
                got.replace_all_uses_with(detached, delete_user_cb=lambda user, own=detached: user is not own)


def _simplified(program: Any, names: list[str], n_leaves: int) -> Trace:
    """Only what the loss depends on; constants worked out."""
    graph, signature = program.graph, program.graph_signature
    lifted = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind.name != "USER_INPUT"}
    stored = {**program.constants, **program.state_dict}
    places = [node for node in graph.nodes if node.op == "placeholder"]
    given = [node for node in places if node.name not in lifted]
    known: dict[fx.Node, Any] = {node: stored[lifted[node.name]].detach() for node in places if node.name in lifted}
    output = next(node for node in graph.nodes if node.name == signature.user_outputs[0])
    needed = ancestors([output])
    nodes = []
    for node in graph.nodes:
        if node.op != "call_function" or node not in needed:
            continue
        if all(x in known for x in node.all_input_nodes) and node.target not in DROPOUTS:
            with torch.no_grad():
                known[node] = call(node, known)
        else:
            nodes.append(node)
    read = {x for node in nodes for x in node.all_input_nodes}
    constants = {node: value for node, value in known.items() if node in read or node is output}
    params = dict(zip(given, names, strict=False))
    return Trace(tuple(nodes), params, tuple(given[len(names) : len(names) + n_leaves]), constants, output)


def ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they depend on."""
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """An operation on the values of what it reads."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: values[x])
    return node.target(*args, **kwargs)  # type: ignore[operator]
