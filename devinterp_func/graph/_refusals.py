"""What is no fixed, pure function of one example: refused in a sentence that names the operation and the remedy."""

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import TorchFunctionMode

from devinterp_func.tree import Params

A = torch.ops.aten
DROPOUTS = (A.dropout.default, A.native_dropout.default)


def check(params: Params) -> None:
    """Refuses what is no dict of floating-point tensors."""
    if not isinstance(params, dict) or not params or not all(isinstance(w, Tensor) for w in params.values()):
        raise TypeError("params must be a dict of tensors by name; tree.flat(params) makes one of a nested tree")
    for name, weight in params.items():
        if not weight.is_floating_point():
            raise TypeError(
                f"parameter {name!r} is {weight.dtype}; only floating-point tensors have gradients: close over it"
            )


class NothingChanged(TorchFunctionMode):
    """Refuses operations in place on tensors that the loss closes over: real ones, where a trace has stand-ins."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__iadd__", "__imul__")
        if in_place and args and isinstance(args[0], Tensor) and not _is_traced(args[0]):
            raise ValueError(
                f"{name} changes in place a tensor that the loss closes over, such as a buffer of batch norm in "
                "training mode; a pure loss leaves what it reads as it is: put the module in .eval() mode or copy it"
            )
        return func(*args, **(kwargs or {}))


def _is_traced(tensor: Tensor) -> bool:
    """Whether a tensor is a stand-in of a trace."""
    return isinstance(tensor, FakeTensor | FunctionalTensor) or torch._is_functional_tensor(tensor)


def refuse(graph: fx.Graph) -> None:
    """Operations that make no function of one example's tensors and the parameters."""
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name, argument = node.target.name().partition("::")[2].partition(".")[0], _arguments(node)
        if "batch_norm" in name and argument.get("training", argument.get("train")):
            raise ValueError(
                "batch_norm in training mode is no function of one example, as it averages over the batch; "
                "call .eval() on it, or use a group or layer norm"
            )
        if name == "instance_norm" and argument.get("running_mean") is not None:
            raise ValueError(
                "instance_norm keeps running statistics of the batch; make it with track_running_stats=False"
            )
        if name in ("embedding", "embedding_bag") and argument.get("sparse"):
            raise ValueError(f"{name} with sparse=True gives sparse gradients, which are not taken; use sparse=False")
        if name in ("embedding", "embedding_bag") and argument.get("scale_grad_by_freq"):
            raise ValueError(f"{name} with scale_grad_by_freq=True scales gradients by the batch; use False")
        if _shape_depends_on_data(node):
            raise ValueError(
                f"{name} gives a tensor whose shape depends on the data (a boolean mask used as an index), which is no "
                "fixed graph; use torch.where or multiply by the mask instead"
            )
        if name in ("item", "_local_scalar_dense", "nonzero", "masked_select", "unique", "unique_consecutive"):
            raise ValueError(
                f"{name} makes numbers or shapes depend on the data, which is no fixed graph; "
                "use torch.where, masks or indices of a fixed size instead"
            )
        if torch.Tag.nondeterministic_seeded in node.target.tags and not _is_dropout(node, name):
            raise ValueError(
                f"{name} draws random numbers inside the loss; only dropout may: draw them outside and give them with "
                "the data"
            )


def _shape_depends_on_data(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and any(not isinstance(size, int) for size in value.shape)


def refuse_changes(signature: Any) -> None:
    """Changes in place of what was given."""
    for name in (*signature.user_inputs_to_mutate.values(), *signature.buffers_to_mutate.values()):
        what = f"parameter {name.removeprefix('params_')!r}" if name.startswith("params_") else "the example"
        raise ValueError(
            f"the loss changes {what} in place (mul_, add_, an assignment to a part); a pure loss leaves what it reads "
            "as it is: use the operation that makes a new tensor, or clone it first"
        )


def _is_dropout(node: fx.Node, name: str) -> bool:
    attention = A.scaled_dot_product_attention.default  # its dropout is written out
    rnn = name in ("lstm", "gru", "rnn_tanh", "rnn_relu")  # without dropout between layers they draw nothing
    return node.target in DROPOUTS or node.target is attention or rnn


def _arguments(node: fx.Node) -> dict[str, Any]:
    """An operation's arguments by name."""
    target: Any = node.target
    return {argument.name: value for argument, value in zip(target._schema.arguments, node.args, strict=False)} | dict(
        node.kwargs
    )


def explained(error: Exception) -> Exception:
    """The error in one sentence that names the operation and the remedy."""
    if type(error) in (ValueError, TypeError):
        return error
    text = " ".join(str(error).split())
    if ".numpy()" in text:
        return ValueError(
            "the loss calls .numpy(), which takes numbers out of the graph; use torch's own operations instead"
        )
    if "GuardOnDataDependent" in type(error).__name__ or "data-dependent" in text:
        return ValueError(
            "the loss branches on the values of its data (an if, a while or .item()), which is no fixed graph; use "
            f"torch.where or masks instead ({text[:120]})"
        )
    if "is mutated in the forward" in text:
        return ValueError(
            "the loss changes a tensor of its own in place, such as a buffer; a pure loss leaves what it reads as it "
            "is: put the module in .eval() mode or copy the tensor first"
        )
    return ValueError(f"torch.export cannot write this loss down: {type(error).__name__}: {text[:300]}")
