"""An optimizer as plain values that JSON holds, and back."""

from dataclasses import fields
from typing import Any

from devinterp_func.optim._adam import Adam
from devinterp_func.optim._muon import Muon
from devinterp_func.optim._optimizer import Group, Optimizer
from devinterp_func.optim._rule import Rule
from devinterp_func.optim._sgd import Sgd

RULES: dict[str, type[Any]] = {"sgd": Sgd, "adam": Adam, "muon": Muon}


def to_dict(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimizer's groups as plain values.

    Raises:
        TypeError: a rule of one's own, which has no name.

    >>> from devinterp_func.optim import sgd
    >>> to_dict(sgd(momentum=0.9))[0]["rule"]["momentum"]
    0.9
    """
    return [_plain(group) | {"rule": _named(group.rule)} for group in optimizer.groups]


def from_dict(groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer that ``to_dict`` made.

    Raises:
        TypeError, ValueError: a rule of another name, a setting that is lacking, unknown or out of range.
    """
    return Optimizer(tuple(_made(Group, group | {"rule": _rule(group.get("rule", {}))}) for group in groups))


def _named(rule: Rule) -> dict[str, Any]:
    for name, kind in RULES.items():
        if type(rule) is kind:
            return {"name": name, **_plain(rule)}
    raise TypeError(f"{rule!r} cannot be written down; the rules that can are {', '.join(RULES)}")


def _rule(values: dict[str, Any]) -> Rule:
    rest = dict(values)
    if (name := rest.pop("name", None)) not in RULES:
        raise ValueError(f"{name!r} is no rule of an optimizer; there are {', '.join(RULES)}")
    return _made(RULES[name], rest)


def _plain(value: Group | Rule) -> dict[str, Any]:
    """The settings of a dataclass, with lists for tuples."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    return {name: list(x) if isinstance(x, tuple) else x for name, x in found.items()}


def _made(kind: type[Any], values: dict[str, Any]) -> Any:
    """The dataclass of what ``_plain`` made."""
    names = [field.name for field in fields(kind)]
    if values.keys() != set(names):
        found = ", ".join(sorted(values.keys() ^ set(names)))
        raise ValueError(f"the settings of {kind.__name__} are {', '.join(names)}; these differ in {found}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
