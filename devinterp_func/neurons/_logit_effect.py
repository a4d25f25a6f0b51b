"""What a neuron's activity adds to the logits on the direct path from the stream, later layers left out.

With W_U the unembedding and w what one unit of the activity writes to the stream:

    W_U w       or, through the last layer's norm with gain γ,      W_U (γ ⊙ (w − mean w))

The first takes the stream as the unembedding reads it. The second takes w through the norm as everything that enters
the stream before it: to first order and up to 1/σ, with the change of σ itself left out.
"""

from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import units
from devinterp_func.models import Config
from devinterp_func.neurons._activations import activations
from devinterp_func.neurons._neuron import Neuron, weights
from devinterp_func.tree import Params


def logit_effect(params: Params, neuron: Neuron, norm: bool = False) -> Float[Tensor, "V"]:
    """What one unit of a neuron's activity adds to the logits: W_U w.

    Args:
        params: the model.
        neuron: a column of a unit that writes to the stream: the output projections of MLP and attention of any layer.
        norm: go through the last layer's norm.

    Raises:
        ValueError: no such neuron, or what it writes is not in the stream.
    """
    written = weights(params, neuron)
    if neuron.axis != "in" or not units.writes_stream(neuron.unit):
        raise ValueError(f"{neuron} does not write to the stream; columns (axis 'in') of {_writers(params)} do")
    return _direct_path(params, written[:, None], norm)[0]


def logit_effects(params: Params, tokens: Int[Tensor, "n C"], config: Config, unit: str) -> Float[Tensor, "G V"]:
    """``logit_effect`` of each column of an MLP's unit, through the last norm.

    A column of the MLP's input projection feeds all hidden neurons: the share of positions at which each of these is
    above 0 in the data stands for the ReLU's slope.

    Args:
        params, config: the model.
        tokens: of some data.
        unit: an MLP's input or output projection, of any layer.

    Raises:
        ValueError: another unit.
    """
    if not units.is_mlp_weight(unit):
        raise ValueError(f"{unit!r} is not in an MLP; units that are: {', '.join(filter(units.is_mlp_weight, params))}")
    output = next(name for name in params if units.is_mlp_weight(name) and _same_layer_writer(name, unit))
    written = params[output]
    if unit != output:
        active = activations(params, tokens, config, output) > 0
        slope = active.to(written.dtype).mean((0, 1))
        written = written @ (slope[:, None] * params[unit])
    return _direct_path(params, written, norm=True)


def _direct_path(params: Params, written: Float[Tensor, "d G"], norm: bool) -> Float[Tensor, "G V"]:
    """What is written to the stream, as logits."""
    if norm:
        gain = params[units.final_norm(params)[0]]
        written = gain[:, None] * (written - written.mean(0))
    return (written.T @ params[units.UNEMBEDDING].T).contiguous()


def _same_layer_writer(name: str, unit: str) -> bool:
    return units.writes_stream(name) and units.layer(name) == units.layer(unit)


def _writers(params: Params) -> str:
    return ", ".join(filter(units.writes_stream, params)) or "the layers' output projections"
