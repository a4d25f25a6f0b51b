"""What the explorer shows: a run, its index, its results, other runs beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl
from jaxtyping import Int64
from torch import Tensor

from devinterp_func import neurons, records, units
from devinterp_func.neurons import Groups
from devinterp_func.records import Index, Run, RunPath
from devinterp_func.show import results
from devinterp_func.show.explorer._jobs import Jobs
from devinterp_func.show.schema import Table
from devinterp_func.text import Vocab

AXES: tuple[neurons.Axis, ...] = ("in", "out")


@dataclass(frozen=True, eq=False)
class Site:
    """What all pages are about."""

    run: Run
    index: Index
    folder: Path  # the run's results
    others: tuple[Run, ...] = ()  # that it is compared with
    groups: Mapping[str, Groups] = field(default_factory=dict)  # axis -> all neurons
    jobs: Jobs | None = None  # of the server that shows the pages, where it can start any

    def __repr__(self) -> str:
        return f"Site({self.run.path}: {self.index.n_steps:,} steps indexed, results in {self.folder})"

    @property
    def vocab(self) -> Vocab | None:
        """The words of the run's text; None if its data are none."""
        return self.run.corpus.vocab if self.run.is_text else None

    @property
    def n_steps(self) -> int:
        """Steps that are indexed; what was recorded since is not shown."""
        return self.index.n_steps

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """The weights of the last snapshot."""
        return self.run.params()

    def table(self, name: str, kind: Table) -> pl.DataFrame | None:
        """A table of the run's results; None if no script has made it."""
        return results.read_table(self.folder, name, kind) if results.has_table(self.folder, name) else None

    def parameters(self, neuron: neurons.Neuron) -> Int64[Tensor, "w"]:
        """A neuron's parameters, by number.

        Raises:
            ValueError: there is no such neuron.
        """
        neurons.require(self.run.shapes, neuron)
        groups = self.groups[neuron.axis]
        return (groups.of == self.number(neuron)).nonzero()[:, 0]

    def number(self, neuron: neurons.Neuron) -> int:
        """A neuron's number among all of its axis."""
        return self.numbers[neuron.axis][neuron]

    @cached_property
    def numbers(self) -> dict[str, dict[neurons.Neuron | int, int]]:
        """Axis -> neuron -> its number."""
        return {axis: {member: i for i, member in enumerate(g.members)} for axis, g in self.groups.items()}


def beside(run: RunPath) -> Path:
    """Where a run's index is: beside it, as its results are."""
    path = Path(run).absolute()
    return path.with_name(f"{path.name}-index")


def build(run: RunPath, most: int | None = None) -> Iterator[int]:
    """Builds or continues a run's index beside it.

    Args:
        run: the run.
        most: as of ``records.index``.

    Yields:
        How many steps are indexed.
    """
    opened = records.open(run)
    yield from records.index(opened, beside(opened), _groupings(_all_groups(opened)), most)


def index_bytes(run: RunPath, most: int | None = None) -> int:
    """How many bytes a run's index takes, at most."""
    opened = records.open(run)
    return records.index_bytes(opened, _groupings(_all_groups(opened)), most)


def open(run: RunPath, out: RunPath | None = None, others: tuple[RunPath, ...] = ()) -> Site:
    """Opens a run that has an index, with its results.

    Args:
        run: the run.
        out: where its results are; by default beside it.
        others: runs to compare it with.

    Raises:
        RecordError: there is no run, or no index of it: ``build`` makes it.
    """
    opened = records.open(run)
    index = records.read_index(beside(opened))
    if index.manifest["run"] != opened.manifest["digest"]:
        raise records.RecordError(f"{index.path} is the index of another run than {opened}; move it elsewhere")
    rest = tuple(records.open(other) for other in others)
    folder = results.beside(opened, None if out is None else Path(out))
    return Site(opened, index, folder, rest, _all_groups(opened))


def _all_groups(run: Run) -> dict[str, Groups]:
    return {axis: neurons.groups(run.shapes, axis) for axis in AXES}


def _groupings(groups: Mapping[str, Groups]) -> dict[str, Int64[Tensor, "P"]]:
    return {axis: found.of for axis, found in groups.items()}


def label(neuron: neurons.Neuron) -> str:
    """A neuron's short name: its layer and kind, and its number."""
    return f"{units.label(neuron.unit)}:{neuron.index}" + (":out" if neuron.axis == "out" else "")
