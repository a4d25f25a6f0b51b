"""Gradients of each example apart: ``grads``, the definition, and ``capture``, the same numbers in one backward pass.

For a linear map with input a[j,k] and back-signal b[j,k] (datum j, token position k), datum j's weight gradient is
Σ_k b[j,k] ⊗ a[j,k] and its bias gradient Σ_k b[j,k]. So (a, b) is a lossless factorisation of all per-example
gradients, and each term of the sum says which token position moved the weight. ``capture`` adds a zero "probe" to the
output of every parametrised operation and differentiates with respect to the probes alone: that gives every b, the
forward pass every a. (Goodfellow 2015, *Efficient per-example gradient computations*; Dangel et al. 2020, *BackPACK*.)
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vjp, vmap

from devinterp_func import tree
from devinterp_func.transformer import Config, Masks, hidden, weight_and_bias
from devinterp_func.tree import Params, Tree

Units = Callable[[str], bool]
VOCABULARY_BLOCK = 1024  # rows of W_U at a time on a CPU: (1024, n·C) logits stay in cache between product and exp


class Outer(NamedTuple):
    """A linear map's weight: datum j's gradient is Σ_k signals[j,k] ⊗ inputs[j,k], shape (out, in)."""

    inputs: Float[Tensor, "n C i"]
    signals: Float[Tensor, "n C o"]


class Bias(NamedTuple):
    """A bias: datum j's gradient is Σ_k signals[j,k]."""

    signals: Float[Tensor, "n C o"]


class Gain(NamedTuple):
    """A layer norm's weight: datum j's gradient is Σ_k signals[j,k] · inputs[j,k], inputs standardised."""

    inputs: Float[Tensor, "n C o"]
    signals: Float[Tensor, "n C o"]


class Lookup(NamedTuple):
    """An embedding of ``rows`` rows: datum j's gradient has Σ_k [tokens[j,k] = v] signals[j,k] in row v."""

    tokens: Int[Tensor, "n C"]
    signals: Float[Tensor, "n C d"]
    rows: int


Factor = Outer | Bias | Gain | Lookup


class Capture(NamedTuple):
    """What one batch says: each datum's loss, the batch gradient of ALL parameters, the captured units' factors."""

    losses: Float[Tensor, "n"]
    mean_grads: Params
    factors: dict[str, Factor]

    def __repr__(self) -> str:
        size = sum(gradient.numel() for gradient in self.mean_grads.values())
        return (
            f"Capture of {len(self.losses)} data: mean loss {self.losses.mean():.4f}, gradient norm "
            f"{tree.norm(self.mean_grads):.4g} over {size:,} parameters, factors of {len(self.factors)} units"
        )


def grads(loss: Callable[..., Tensor]) -> Callable[..., Tree]:
    """Per-example gradients of any pure ``loss(params, *example) -> scalar``: the definition, ``vmap(grad(loss))``.

    Returns:
        A function of (params, *batch), every leaf of the batch with a leading n, giving a tree like params whose leaves
        have a leading n.

    >>> grads(lambda w, x: (w * x).sum())(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[1., 2.],
            [3., 4.]])
    """

    def per_example(params: Tree, *batch: Any) -> Tree:
        return vmap(grad(loss), in_dims=(None, *(0 for _ in batch)))(params, *batch)

    return per_example


def default_units(name: str) -> bool:
    """The post's choice: every 2-D weight that is neither embedding nor unembedding."""
    return name.startswith("layers.") and name.endswith("weight") and ".norm" not in name


def choose(names: Iterable[str], units: Units = default_units) -> list[str]:
    """The names of the captured units, in order.

    Raises:
        ValueError: if ``units`` accepts no name; the message lists them all.
    """
    names = list(names)
    chosen = [name for name in names if units(name)]
    if not chosen:
        raise ValueError(f"no parameter is captured; choose among {', '.join(names)}")
    return chosen


@torch.no_grad()
def capture(
    params: Params,
    tokens: Int[Tensor, "n C"],
    targets: Int[Tensor, "n C"],
    config: Config,
    masks: Masks | None = None,
    units: Units = default_units,
    buffer: Float[Tensor, "V nC"] | None = None,
) -> Capture:
    """The numbers of ``vmap(grad(transformer.loss))`` in one ordinary backward pass.

    Args:
        params: parameters of ``transformer.init``.
        tokens: input tokens.
        targets: next tokens.
        config: the model.
        masks: dropout masks, each with a leading n, or None.
        units: which parameters get factors, by name.
        buffer: scratch for the logits, to spare an allocation of V·n·C numbers; its content is of no account.
    """
    inputs, pull, residual = _forward(params, tokens, config, masks)
    head = _head(params, residual, targets, buffer)
    (signals,) = pull(head.residual_signals)
    wanted = choose(params, units)
    factors = {name: factor for op in inputs for name, factor in _factors(op, inputs[op], signals[op], params)}
    mean_grads = {name: _mean_gradient(factor) for name, factor in factors.items()} | head.mean_grads
    if any(name.startswith("decoder.") for name in wanted):
        factors |= _decoder_factors(residual, head)
    return Capture(
        reduce(head.losses, "n C -> n", "mean"),
        {name: mean_grads[name] for name in params},
        {name: factors[name] for name in wanted},
    )


@torch.no_grad()
def losses(
    params: Params,
    tokens: Int[Tensor, "n C"],
    targets: Int[Tensor, "n C"],
    config: Config,
    buffer: Float[Tensor, "V nC"] | None = None,
) -> Float[Tensor, "n C"]:
    """Cross entropy in nats at every position, without dropout: ``capture``'s forward half, for evaluation."""
    residual = vmap(lambda example: hidden(params, example, config))(tokens)
    return _losses(params, residual.flatten(0, 1), targets, buffer)[0]


def gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n ..."]]:
    """Each datum's gradient of each unit, formed from its factors."""
    return {name: form(factor) for name, factor in factors.items()}


def form(factor: Factor, out: Tensor | None = None) -> Float[Tensor, "n ..."]:
    """Each datum's gradient of one unit, written into ``out`` if given."""
    match factor:
        case Outer(inputs, signals):
            return torch.bmm(signals.mT, inputs, out=out)
        case Bias(signals):
            return torch.sum(signals, dim=1, out=out)
        case Gain(inputs, signals):
            return torch.sum(signals * inputs, dim=1, out=out)
        case Lookup(tokens, signals, rows):
            table = signals.new_zeros(len(tokens), rows, signals.shape[-1]) if out is None else out.zero_()
            return table.scatter_add_(1, tokens[..., None].expand_as(signals), signals)


def token_gradients(factors: dict[str, Factor]) -> dict[str, Float[Tensor, "n C ..."]]:
    """Each token position's part of each datum's gradient: sums over C to ``gradients``, and is C times as large."""
    return {
        name: form(
            tree.map(lambda x: rearrange(x, "n C ... -> (n C) 1 ...") if isinstance(x, Tensor) else x, factor)
        ).unflatten(0, factor.signals.shape[:2])
        for name, factor in factors.items()
    }


def contributions(factor: Factor, datum: Int[Tensor, "m"], index: Int[Tensor, "m"]) -> Float[Tensor, "m C"]:
    """What each token position contributed to chosen entries of chosen data's gradients.

    Args:
        factor: of one unit.
        datum: row in the batch of each entry.
        index: row-major flat index of each entry in the unit.
    """
    width = factor.signals.shape[-1]
    match factor:
        case Outer(inputs, signals):
            wide = inputs.shape[-1]
            row = index.div(wide, rounding_mode="floor")
            column = index - row * wide
            return signals.mT[datum, row] * inputs.mT[datum, column]
        case Bias(signals):
            return signals.mT[datum, index]
        case Gain(inputs, signals):
            return signals.mT[datum, index] * inputs.mT[datum, index]
        case Lookup(tokens, signals, _):
            row = index.div(width, rounding_mode="floor")
            column = index - row * width
            return signals.mT[datum, column] * (tokens[datum] == row[:, None])


def scale(factors: dict[str, Factor], factor: float | Tensor) -> dict[str, Factor]:
    """The factors of ``factor`` · gradient: only the signals are scaled."""
    return {name: f._replace(signals=f.signals * factor) for name, f in factors.items()}


def data(factor: Factor, rows: slice) -> Factor:
    """The factors of some of the data."""
    return tree.map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, factor)


def shape(factor: Factor) -> tuple[int, ...]:
    """Shape of the unit a factor belongs to."""
    width = factor.signals.shape[-1]
    match factor:
        case Outer(inputs, _):
            return (width, inputs.shape[-1])
        case Lookup(_, _, rows):
            return (rows, width)
        case _:
            return (width,)


def size(factor: Factor) -> int:
    """Number of parameters of the unit a factor belongs to."""
    return torch.Size(shape(factor)).numel()


def _forward(
    params: Params, tokens: Int[Tensor, "n C"], config: Config, masks: Masks | None
) -> tuple[dict[str, Tensor], Callable[..., Any], Float[Tensor, "n C d"]]:
    """Inputs of every parametrised operation, the pull-back to their outputs, and the final residual stream."""

    def one(tokens: Tensor, masks: Masks | None, probes: Params) -> tuple[Tensor, Params]:
        inputs: Params = {}

        def tap(name: str, x: Tensor, y: Tensor) -> Tensor:
            inputs[name] = x
            return y + probes[name]

        return hidden(params, tokens, config, masks, tap), inputs

    zero = params["decoder.weight"].new_zeros(())  # expanded: probes take no memory
    probes = {name: zero.expand(*tokens.shape, width) for name, width in _operations(params)}
    in_dims = (0, None if masks is None else 0, 0)
    # torch's annotation leaves has_aux out
    residual, pull, inputs = vjp(  # type: ignore[misc]
        lambda probes: vmap(one, in_dims)(tokens, masks, probes), probes, has_aux=True
    )
    return inputs, pull, residual


def _operations(params: Params) -> list[tuple[str, int]]:
    """Every parametrised operation below the decoder and its output width."""
    names = [name.removesuffix("weight")[:-1] for name in params if name.endswith("weight") and "decoder" not in name]
    return [(name, params[weight_and_bias(name)[0]].shape[-1 if name == "embedding" else 0]) for name in names]


def _factors(op: str, inputs: Tensor, signals: Tensor, params: Params) -> list[tuple[str, Factor]]:
    weight, bias = weight_and_bias(op)
    if op == "embedding":
        return [(weight, Lookup(inputs, signals, len(params[weight])))]
    return [(weight, Gain(inputs, signals) if ".norm" in op else Outer(inputs, signals)), (bias, Bias(signals))]


def _mean_gradient(factor: Factor) -> Tensor:
    """The batch gradient of a unit: mean over the data of the gradients that ``form`` would give."""
    n = len(factor.signals)
    signals = rearrange(factor.signals, "n C o -> (n C) o") / n
    match factor:
        case Outer(inputs, _):
            return signals.mT @ inputs.flatten(0, 1)
        case Bias():
            return signals.sum(0)
        case Gain(inputs, _):
            return (signals * inputs.flatten(0, 1)).sum(0)
        case Lookup(tokens, _, rows):
            return signals.new_zeros(rows, signals.shape[-1]).index_add_(0, tokens.flatten(), signals)


class _Head(NamedTuple):
    losses: Float[Tensor, "n C"]
    residual_signals: Float[Tensor, "n C d"]
    mean_grads: Params
    exponentials: Float[Tensor, "V nC"]  # softmax before normalisation
    normaliser: Float[Tensor, "nC"]
    targets: Int[Tensor, "n C"]


def _head(
    params: Params, residual: Float[Tensor, "n C d"], targets: Int[Tensor, "n C"], buffer: Tensor | None
) -> _Head:
    """Cross entropy and the gradients of logits, W_U and bias together, block by block of the vocabulary.

    The logits are written once; softmax's normaliser is folded into the (n·C, d) factors of the products, so that the
    V·n·C exponentials are never touched again but by matrix products.
    """
    weight, bias = params["decoder.weight"], params["decoder.bias"]
    n, C = len(targets), targets.shape[1]
    h, t = rearrange(residual, "n C d -> (n C) d"), targets.flatten()
    losses, exponentials, total = _losses(params, h, targets, buffer)
    normaliser = 1 / (C * total)
    scaled = h * (normaliser / n)[:, None]
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    d_h = torch.zeros_like(h)
    for block in _blocks(weight):
        torch.mm(exponentials[block], scaled, out=d_weight[block])
        torch.mv(exponentials[block], normaliser / n, out=d_bias[block])
        d_h.addmm_(exponentials[block].mT, weight[block])
    d_weight.index_add_(0, t, h, alpha=-1 / (n * C))
    d_bias.index_add_(0, t, torch.full_like(normaliser, -1 / (n * C)))
    d_h = d_h.mul_(normaliser[:, None]).sub_(weight[t], alpha=1 / C)
    mean_grads = {"decoder.weight": d_weight, "decoder.bias": d_bias}
    return _Head(losses, d_h.view(n, C, -1), mean_grads, exponentials, normaliser, targets)


def _losses(
    params: Params, h: Float[Tensor, "nC d"], targets: Int[Tensor, "n C"], buffer: Tensor | None
) -> tuple[Float[Tensor, "n C"], Float[Tensor, "V nC"], Float[Tensor, "nC"]]:
    """Losses, and the exponentials and their sums that they come from."""
    weight, bias, t = params["decoder.weight"], params["decoder.bias"], targets.flatten()
    exponentials, total, shift = _exponentials(weight, bias, h, buffer)
    losses = total.log() + shift - (h * weight[t]).sum(1) - bias[t]
    return losses.view(targets.shape), exponentials, total


def _exponentials(
    weight: Float[Tensor, "V d"], bias: Float[Tensor, "V"], h: Float[Tensor, "nC d"], buffer: Tensor | None
) -> tuple[Float[Tensor, "V nC"], Float[Tensor, "nC"], Float[Tensor, "nC"]]:
    """exp(logit − shift), their sum over the vocabulary, and the shift.

    exp(logit) loses no precision while it neither overflows nor underflows, so the usual shift by the largest logit,
    one more pass over V·n·C numbers, is made only where a sum shows that it was needed.
    """
    out = torch.empty(len(weight), len(h), dtype=h.dtype, device=h.device) if buffer is None else buffer
    shift = torch.zeros_like(h[:, 0])
    total = _fill(out, weight, bias, h, shift)
    if not bool(((total > 1e-25) & (total < 1e30)).all()):
        for block in _blocks(weight):
            largest = (weight[block] @ h.mT + bias[block, None]).amax(0)
            shift = largest if block.start == 0 else torch.maximum(shift, largest)
        total = _fill(out, weight, bias, h, shift)
    return out, total, shift


def _fill(out: Tensor, weight: Tensor, bias: Tensor, h: Tensor, shift: Tensor) -> Float[Tensor, "nC"]:
    total, transposed = torch.zeros_like(shift), h.mT.contiguous()
    shifted = bool(shift.any())
    for block in _blocks(weight):
        logits = torch.mm(weight[block], transposed, out=out[block]).add_(bias[block, None])
        total += (logits.sub_(shift) if shifted else logits).exp_().sum(0)
    return total


def _blocks(weight: Float[Tensor, "V d"]) -> list[slice]:
    size = VOCABULARY_BLOCK if weight.device.type == "cpu" else len(weight)
    return [slice(i, min(i + size, len(weight))) for i in range(0, len(weight), size)]


def _decoder_factors(residual: Float[Tensor, "n C d"], head: _Head) -> dict[str, Factor]:
    """(P − onehot)/C at every position, V numbers each: only when asked for, and laid out as the logits are."""
    n, C = head.targets.shape
    signals = head.exponentials * head.normaliser  # (V, n·C)
    target = head.targets.flatten()
    signals[target, torch.arange(len(target), device=target.device)] -= 1 / C
    signals = rearrange(signals, "V (n C) -> n C V", n=n)
    return {"decoder.weight": Outer(residual, signals), "decoder.bias": Bias(signals)}
