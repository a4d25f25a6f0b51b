"""The place for names: what a parameter's name says of it, and where a parameter number lies.

A *unit* is one parameter tensor under its torch name. The captured units of a run, in order, number their parameters
from 0, row-major within a unit; ``Shapes`` is that order.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Int, Num
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""The captured units, in the order that numbers their parameters."""
Patterns = Sequence[str]
"""Name patterns such as ``("layers.*.weight", "decoder.*")``; ``()`` is every 2-D weight of the layers (the post's)."""
Parts = TypeVar("Parts")

EVERY: Patterns = ("*",)
EXAMPLE = "layers.2.linear2.weight"
POST_KINDS = {"linear1": "1", "linear2": "2"}
ROOTS, STACKS = ("transformer", "gpt_neox", "model"), ("layers", "h")  # parts of names that tell nothing apart


class Place(NamedTuple):
    """Where a parameter lies: a unit, the row-major flat index in it, and the same as coordinates."""

    unit: str
    flat: int
    coordinates: tuple[int, ...]


# ---- names


def choose(names: Iterable[str], patterns: Patterns = ()) -> list[str]:
    """The units that patterns choose, in the order of ``names``.

    Args:
        names: of all parameters.
        patterns: shell patterns; none for every 2-D weight of the layers, as in the post.

    Raises:
        TypeError: a single string instead of several, whose characters would each be a pattern.
        ValueError: a pattern matches no name, or nothing is chosen; the names there are are listed.

    >>> choose(["embedding.weight", "layers.0.linear1.weight", "layers.0.norm1.weight"])
    ['layers.0.linear1.weight']
    """
    patterns, names = as_patterns(patterns), list(names)
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            raise ValueError(
                "\n  ".join([f"no parameter is called {pattern!r}; nearest are", *_nearest(pattern, names)])
            )
    chosen = [name for name in names if (matches(name, patterns) if patterns else is_layer_matrix(name))]
    if not chosen:
        raise ValueError("\n  ".join(["no parameter is captured; choose among", *_nearest("layers.*.weight", names)]))
    return chosen


def matches(name: str, patterns: Patterns) -> bool:
    """Whether one of the patterns matches a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def as_patterns(value: Patterns) -> tuple[str, ...]:
    """Patterns as a tuple.

    Raises:
        TypeError: a single string, whose characters would each be a pattern, or no strings.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        example = value if isinstance(value, str) else "layers.*.weight"
        raise TypeError(f"units is {value!r}; it must be a tuple of patterns, such as ({example!r},)")
    return tuple(value)


def is_layer_matrix(unit: str) -> bool:
    """The post's choice: every 2-D weight that is neither embedding nor unembedding."""
    return unit.startswith("layers.") and unit.endswith("weight") and not is_norm(unit)


def is_norm(unit: str) -> bool:
    """Whether the unit is a layer norm's."""
    return ".norm" in unit


def layer(unit: str) -> int:
    """The layer of a unit, from 0.

    Raises:
        ValueError: the unit is in none.

    >>> layer("layers.2.linear1.weight")
    2
    """
    return _in_layer(unit)[1]


def kind(unit: str) -> str:
    """What the unit is within its layer; outside the layers its own name.

    >>> kind("layers.2.linear1.weight"), kind("layers.0.self_attn.in_proj_weight"), kind("decoder.bias")
    ('linear1', 'in_proj', 'decoder')
    >>> kind("transformer.h.0.mlp.c_proj.weight"), kind("transformer.wte.weight"), kind("features.0.weight")
    ('mlp.c_proj', 'wte', 'features.0')
    """
    return _in_layer(unit)[2].removeprefix("self_attn.") if is_in_layer(unit) else _without_root(operation(unit))


def label(unit: str) -> str:
    """Layer, from 0, and kind: short, for tables and figures; of a model's several stacks the stack's name, too.

    >>> label("layers.2.linear2.weight"), label("decoder.weight"), label("transformer.h.0.attn.c_attn.weight")
    ('2.linear2', 'decoder', '0.attn.c_attn')
    >>> label("encoder.layers.0.linear1.weight")
    'encoder.layers.0.linear1'
    """
    if not is_in_layer(unit):
        return kind(unit)
    stack, number, _ = _in_layer(unit)
    named = "" if _without_root(stack) in STACKS else f"{stack}."
    return f"{named}{number}.{kind(unit)}"


def post_label(unit: str) -> str | None:
    """The post's name of an MLP map, whose layers count from 1; None for all others.

    >>> post_label("layers.2.linear2.weight"), post_label("layers.2.mlp.up_proj.weight")
    ('3.2', None)
    """
    named = unit.startswith("layers.") and is_in_layer(unit) and kind(unit) in POST_KINDS
    return f"{layer(unit) + 1}.{POST_KINDS[kind(unit)]}" if named else None


def is_in_layer(unit: str) -> bool:
    """Whether the unit is in a layer: a numbered part of a model with named parts in it."""
    return _numbered(unit) is not None


def is_mlp_weight(unit: str) -> bool:
    """Whether the unit is the weight of a projection of a layer's MLP, by its name.

    >>> is_mlp_weight("layers.0.linear1.weight"), is_mlp_weight("transformer.h.0.mlp.c_fc.weight")
    (True, True)
    >>> is_mlp_weight("layers.0.linear1.bias"), is_mlp_weight("layers.0.self_attn.out_proj.weight")
    (False, False)
    """
    if not unit.endswith("weight") or not is_in_layer(unit):
        return False
    return kind(unit) in POST_KINDS or "mlp" in kind(unit).split(".")[:-1]


def weight_and_bias(operation: str) -> tuple[str, str]:
    """Parameter names of a parametrised operation; torch writes ``in_proj_weight`` but ``out_proj.weight``."""
    join = "_" if operation.endswith("in_proj") else "."
    return f"{operation}{join}weight", f"{operation}{join}bias"


def operation(unit: str) -> str:
    """The operation a unit belongs to: the inverse of ``weight_and_bias``."""
    return re.sub(r"[._](weight|bias)$", "", unit)


# ---- numbers


def n_parameters(shapes: Shapes) -> int:
    """P, the number of parameters of some units."""
    return sum(map(prod, shapes.values()))


def split(values: Num[Tensor, "*E P"], shapes: Shapes) -> dict[str, Num[Tensor, "*E p"]]:
    """Values of all parameters, by unit.

    Raises:
        ValueError: the units have another number of parameters.

    >>> split(torch.tensor([1, 2, 3]), {"a": (1, 2), "b": (1,)})
    {'a': tensor([1, 2]), 'b': tensor([3])}
    """
    if values.shape[-1] != n_parameters(shapes):
        raise ValueError(f"there are {values.shape[-1]} values, but the units have {n_parameters(shapes)} parameters")
    return dict(zip(shapes, values.split([prod(shape) for shape in shapes.values()], dim=-1), strict=True))


def places(shapes: Shapes, parameter: Int[Tensor, "*m"]) -> tuple[Int[Tensor, "*m"], Int[Tensor, "*m"]]:
    """Each parameter's unit, as a number in order, and its row-major flat index in it.

    Raises:
        ValueError: a number is out of range.
    """
    sizes = torch.tensor([prod(shape) for shape in shapes.values()])
    ends, wanted = sizes.cumsum(0), parameter.long()
    if bad := wanted[(wanted < 0) | (wanted >= n_parameters(shapes))].tolist():
        raise ValueError(f"parameter {bad[0]} is out of range: the units have {n_parameters(shapes)} parameters")
    unit = torch.searchsorted(ends, wanted, right=True)
    return unit, wanted - (ends - sizes)[unit]


def locate(shapes: Shapes, parameter: int) -> Place:
    """Unit, flat index and coordinates of a parameter number.

    Args:
        shapes: the captured units in order, such as ``records.open(run).shapes``.
        parameter: its number among them.

    Raises:
        ValueError: if the number is out of range.

    >>> locate({"a": (2, 2), "layers.2.linear1.weight": (200, 200)}, 4 + 1391)
    Place(unit='layers.2.linear1.weight', flat=1391, coordinates=(6, 191))
    """
    number, flat = (int(x) for x in places(shapes, torch.tensor(int(parameter))))
    unit = list(shapes)[number]
    return Place(unit, flat, tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), shapes[unit])))


def _in_layer(unit: str) -> tuple[str, int, str]:
    """Stack, layer, and the operation's name within the layer."""
    match = _numbered(unit)
    if match is None:
        raise ValueError(f"{unit!r} is not in a layer; names of those that are have a number, as in {EXAMPLE}")
    return match[1], int(match[2]), match[3]


def _numbered(unit: str) -> re.Match[str] | None:
    return re.fullmatch(r"(.+?)\.([0-9]+)\.(.+)", operation(unit))


def _without_root(name: str) -> str:
    root, _, rest = name.partition(".")
    return rest if rest and root in ROOTS else name


def _nearest(pattern: str, names: list[str], most: int = 8) -> list[str]:
    """The names that share most with a pattern, those of the same layer and kind first."""
    from difflib import SequenceMatcher

    def likeness(name: str) -> float:
        return -SequenceMatcher(None, pattern, name).ratio()

    return sorted(sorted(names, key=likeness)[:most], key=names.index)
