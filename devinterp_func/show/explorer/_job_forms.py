"""The forms of jobs: what they ask for, and the checked values that a command is made of."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from devinterp_func import credit, keys
from devinterp_func.records import RecordError
from devinterp_func.show.explorer._site import Site

TEXTS = 20  # of each probe that takes texts, as the scripts have it
MOST_PROBES, MOST_DATA, LONGEST = 20, 1000, 500


class Field(NamedTuple):
    """A value that is asked for."""

    name: str
    label: str
    help: str = ""
    many: bool = False  # several, a line each


class Form(NamedTuple):
    """A kind of job."""

    title: str
    about: str
    fields: tuple[Field, ...]
    of_text: bool = True  # whether the run's data must be text


class Checked(NamedTuple):
    """A form's values, or what is wrong with them."""

    values: dict[str, object]
    wrong: dict[str, str]  # field -> why


HELP = "loss; next:WORDS => WORD; bigram:WORD WORD; norm:NEURON; effect:NEURON WORD; head:LAYER.HEAD PATTERN"
PROBE = Field("probe", "probes, a line each", HELP, True)
FORMS = {
    "replay": Form(
        "Replay a step",
        "Makes one recorded step again, bit for bit, and says how far its parts miss the law.",
        (Field("step", "step"),),
        of_text=False,
    ),
    "ledger": Form(
        "Follow probes",
        "Splits every step's change of some numbers over the data and positions that caused it.",
        (PROBE, Field("start", "from step"), Field("stop", "to step")),
    ),
    "retrain": Form(
        "Retrain without some data",
        "Makes some steps again without these data, and without as many random ones: what does that do to probes?",
        (
            Field("without", "data", "numbers, with commas or spaces between", True),
            PROBE,
            Field("start", "from step", "a step with a snapshot before it"),
            Field("steps", "steps", "how many are made again"),
        ),
    ),
}


def forms(site: Site) -> dict[str, Form]:
    """The jobs that this server can start on this run."""
    known = {} if site.jobs is None else site.jobs.commands
    return {
        kind: form for kind, form in FORMS.items() if kind in known and (site.vocab is not None or not form.of_text)
    }


def suggested(site: Site, kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """A form's values as they are asked for; what is not said is suggested."""
    values = {field.name: (given.get(field.name) or "").strip() for field in FORMS[kind].fields}
    first = {"probe": "loss", "step": "0", "start": "0"}
    if kind == "retrain":
        first |= _around(site, values["without"])
    values = {name: value or first.get(name, "") for name, value in values.items()}
    if kind == "ledger" and not values["stop"] and values["start"].isdecimal():
        values["stop"] = str(min(site.n_steps, int(values["start"]) + 100))
    return values


def _around(site: Site, without: str) -> dict[str, str]:
    """The snapshot before the last visit of the first of some data, and steps from there to 100 after the visit."""
    named = re.split(r"[\s,]+", without)[0]
    seen = site.index.visits(int(named))[:, 0].tolist() if named.isdecimal() and len(named) < 18 else []
    snapshots = [step for step in site.run.snapshots if step < site.n_steps]
    start = max([step for step in snapshots if seen and step <= seen[-1]] or snapshots[:1], default=0)
    stop = min(site.n_steps, (seen[-1] if seen else start) + 101)
    return {"start": str(start), "steps": str(stop - start)}


def checked(site: Site, kind: str, given: Mapping[str, str]) -> Checked:
    """A form's values, checked before anything is started.

    Args:
        site: of the run.
        kind: of ``FORMS``.
        given: field -> text.
    """
    found = Checked({}, {})
    for field in FORMS[kind].fields:
        try:
            found.values[field.name] = READERS[field.name](site, given.get(field.name, ""))
        except (ValueError, LookupError, RecordError) as error:
            found.wrong[field.name] = str(error)
    if not found.wrong:
        try:
            TOGETHER.get(kind, _nothing)(site, found.values)
        except (ValueError, RecordError) as error:
            found.wrong[FORMS[kind].fields[-1].name] = str(error)
    return found


# ---- one field


def _number(site: Site, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def _step(site: Site, text: str) -> int:
    if (step := _number(site, text)) >= site.n_steps:
        raise ValueError(f"there is no step {step}; they are 0 to {site.n_steps - 1}")
    return step


def _probes(site: Site, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 0 < len(names) <= MOST_PROBES:
        raise ValueError(f"{len(names)} probes are named; name 1 to {MOST_PROBES}, a line each")
    for name in names:
        if len(name) > LONGEST or "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"{name[:50]!r} cannot be given to a command: it is too long, or has a NUL or a surrogate")
        credit.parse_probe(name, site.run, key=keys.Key(0, ("ledger",)), n=TEXTS)
    return names


def _data(site: Site, text: str) -> tuple[int, ...]:
    named = [_number(site, part) for part in re.split(r"[\s,]+", text.strip()) if part]
    if not 0 < len(named) <= MOST_DATA:
        raise ValueError(f"{len(named)} data are named; name 1 to {MOST_DATA}")
    if unknown := [datum for datum in named if datum >= site.run.n_data]:
        raise ValueError(f"there is no datum {unknown[0]}; they are 0 to {site.run.n_data - 1}")
    return tuple(sorted(set(named)))


READERS: dict[str, Callable[[Site, str], object]] = {
    "step": _step,
    "start": _step,
    "stop": _number,
    "steps": _number,
    "probe": _probes,
    "without": _data,
}


# ---- fields together


def _span(site: Site, values: Mapping[str, object]) -> None:
    site.run.span(_int(values["start"]), _int(values["stop"]))


def _window(site: Site, values: Mapping[str, object]) -> None:
    start, steps = _int(values["start"]), _int(values["steps"])
    if start not in site.run.snapshots:
        near = sorted(sorted(site.run.snapshots, key=lambda step: abs(step - start))[:4])
        raise ValueError(
            f"there is no snapshot before step {start}; the nearest are before {', '.join(map(str, near))}"
        )
    site.run.span(start, start + steps)
    data = values["without"]
    assert isinstance(data, tuple)
    for datum in data:
        seen = site.index.visits(datum)[:, 0].tolist()
        if not any(start <= step < start + steps for step in seen):
            told = f"it was seen in {', '.join(map(str, seen))}" if seen else "it was not seen at all"
            raise ValueError(f"none of the steps {start} to {start + steps} saw datum {datum}; {told}")


def _nothing(site: Site, values: Mapping[str, object]) -> None:
    pass


TOGETHER: dict[str, Callable[[Site, Mapping[str, object]], None]] = {"ledger": _span, "retrain": _window}


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
