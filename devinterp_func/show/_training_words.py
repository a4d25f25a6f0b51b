"""How a run was trained, in words: its optimizer and schedule, as a manifest's recipe holds them, plain values."""

from collections.abc import Mapping, Sequence
from typing import Any

RULES = {"sgd": "SGD", "adam": "Adam", "muon": "Muon"}


def optimizer_words(groups: Sequence[Mapping[str, Any]]) -> str:
    """An optimizer.

    Args:
        groups: of ``optim.to_dict``.

    >>> rule = {"name": "adam", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}
    >>> optimizer_words([{"rule": rule, "units": ["*"], "matrices_only": True}])
    'AdamW (betas 0.9 and 0.999, eps 1e-08, weight decay 0.1 on matrices)'
    """
    said = [_group(group) for group in groups]
    rest = said[-1][0]
    if len(said) == 1:
        return rest
    excepted = [which for rule, which in said[:-1] if rule == rest]
    but = f" but {', '.join(excepted)}" if excepted else ""
    parts = [f"{rule} for {which}{but}" for rule, which in said[:-1] if rule != rest]
    return "; ".join([*parts, f"{rest} for all others"])


def optimizer_name(groups: Sequence[Mapping[str, Any]]) -> str:
    """The names of an optimizer's rules, such as "Muon and AdamW"."""
    parts = optimizer_words(groups).split("; ")
    return " and ".join(dict.fromkeys(part.partition(" ")[0] for part in parts))


def schedule_words(schedule: Mapping[str, Any]) -> str:
    """How the learning rate goes on.

    >>> schedule_words({"kind": "cosine", "gamma": 1.0, "warmup": 500, "end": 0.1})
    '500 steps of warm-up, then a cosine down to 10 % of it'
    >>> schedule_words({"kind": "step", "gamma": 0.9, "warmup": 0, "end": 0.0})
    'times 0.9 after each epoch'
    """
    kind = schedule["kind"]
    if kind == "step":
        course = f"times {schedule['gamma']:g} after each epoch"
    elif kind == "constant":
        course = "constant"
    else:
        line = {"linear": "a line", "cosine": "a cosine"}[kind]
        course = f"{line} down to {100 * schedule['end']:g} % of it"
    warmup = schedule.get("warmup", 0)
    return f"{warmup:,} steps of warm-up, then {course}" if warmup else course


def training_words(recipe: Mapping[str, Any]) -> str:
    """Optimizer, rate, schedule and clipping, in one sentence without its full stop.

    Args:
        recipe: of a manifest, of any format; older ones know clipped SGD alone.
    """
    recipe = in_full(recipe)
    clip = recipe["max_norm"]
    clipped = "no clipping" if clip in (None, float("inf")) else f"gradients clipped to a norm of {clip:g}"
    rate = f"learning rate {recipe['lr']:g}, {schedule_words(recipe['schedule'])}"
    return f"{optimizer_words(recipe['optimizer'])}; {rate}; {clipped}"


def in_full(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's recipe with optimizer and schedule, which older formats leave out: SGD and a factor by epoch."""
    old: dict[str, Any] = {"schedule": {"kind": "step", "gamma": recipe.get("gamma", 1.0), "warmup": 0, "end": 0.0}}
    sgd = {"name": "sgd", "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
    every = {"units": ["*"], "ndim": None, "scale": 1.0, "undecayed": [], "matrices_only": False}
    old["optimizer"] = [{"rule": sgd, **every}]
    return {name: value for name, value in (old | dict(recipe)).items() if name != "gamma"}


def all_is_present(recipe: Mapping[str, Any]) -> bool:
    """Whether every change is what the step's own data did: SGD without momentum and without weight decay."""
    rules = [group["rule"] for group in in_full(recipe)["optimizer"]]
    return all(r["name"] == "sgd" and not r["momentum"] and not r["weight_decay"] for r in rules)


def _group(group: Mapping[str, Any]) -> tuple[str, str]:
    """A group's rule, and which units it steps."""
    rule, name = group["rule"], RULES[group["rule"]["name"]]
    decoupled = rule.get("decoupled", name == "Muon")
    name += "W" * (name == "Adam" and decoupled)
    parts = []
    if rule.get("momentum"):
        parts.append(f"momentum {rule['momentum']:g}" + ", Nesterov's" * bool(rule.get("nesterov")))
    if rule.get("dampening"):
        parts.append(f"dampening {rule['dampening']:g}")
    if "betas" in rule:
        parts.append("betas {:g} and {:g}, eps {:g}".format(*rule["betas"], rule["eps"]))
    if decay := rule["weight_decay"]:
        on = " on matrices" * bool(group.get("matrices_only"))
        but = f" but {', '.join(group['undecayed'])}" if group.get("undecayed") else ""
        parts.append(f"weight decay {decay:g}{on}{but}{'' if decoupled else ', coupled'}")
    if (scale := group.get("scale", 1.0)) != 1:
        parts.append(f"{scale:g} times the rate")
    every, ndim = list(group.get("units", ["*"])) == ["*"], group.get("ndim")
    units = ("all others" if ndim is None else "all") if every else ", ".join(group["units"])
    if ndim is not None:
        kind = "matrices" if ndim == 2 else f"units of {ndim} dimensions"
        units = kind if every else f"{kind} of {units}"
    return name + (f" ({', '.join(parts)})" if parts else ""), units
