"""A run walked backwards: what a function finds in each step, the last step first.

Steps can only be replayed forwards. So a first pass over the steps between two snapshots keeps weights and state in a
scratch folder, before each block of b steps; then block after block is replayed with its factors, last to first, and
what was found in its steps is held until it has been handed out. Where there are more than K blocks, the first pass
keeps one of K, and the pieces between are cut into blocks in the same way. So b steps' findings are in memory, about K
weights and states on the disk, and of K·b steps none is replayed more than twice, of K²·b none more than three times.

The bits are those of ``Run.moves``: it makes the steps, and compares with every snapshot that it passes.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from devinterp_func import checks
from devinterp_func.optim import State
from devinterp_func.records._directory import file_path, last_shard, lock, n_steps
from devinterp_func.records._machine import machine, on_device
from devinterp_func.records._manifest import RunPath, create
from devinterp_func.records._run import Run
from devinterp_func.records._sealed import Header, write_sealed
from devinterp_func.training import Move
from devinterp_func.tree import Params
from devinterp_func.units import Patterns

BLOCK, KEPT = 8, 64  # of the post's model, with AdamW: 1.2 GB of memory for lifetimes, and 9.4 GB of disk
Seen = TypeVar("Seen")
Origin = tuple[Params, State]


def backwards(
    run: Run,
    look: Callable[[Move], Seen],
    captured: Patterns | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    block: int = BLOCK,
    kept: int = KEPT,
    scratch: RunPath | None = None,
) -> Generator[Seen, None, None]:
    """What a function finds in the steps stop − 1 down to start, each replayed bit for bit.

    Args:
        run: the run; only read.
        look: what is found in a step. It sees the steps of a block in their own order, the blocks last to first, and
            should keep of a move no more than is needed: what it gives is held for a block of steps at once.
        captured: the units whose factors the steps carry, as patterns; by default the run's own.
        start, stop: steps; ``stop`` is by default as far as the run is recorded. Up to ``start`` there is one replay
            more, from the snapshot before.
        block: b, steps whose findings are held at once.
        kept: K, weights and states that a pass keeps on the disk; a pass within a pass keeps as many again.
        scratch: where a scratch folder is made, which goes when the walk ends, however it ends; by default where the
            system keeps temporary files. On a disk: what lies there is there to be out of memory.

    Yields:
        What was found, the last step first.

    Raises:
        ValueError: the run does not have these steps, a pattern matches nothing, block is below 1, or kept below 2.
        RecordError: as ``Run.moves``.
    """
    start, stop = run.span(start, stop)
    checks.integer("block", block), checks.integer("kept", kept, 2)
    known = run.snapshots
    ends = [start, *(step for step in known if start < step < stop), stop]
    with TemporaryDirectory(prefix="devinterp-backwards-", dir=scratch) as folder:
        walk = _Walk(run, look, captured, Path(folder), block, kept)
        for first, end in reversed(list(pairwise(ends))):
            yield from walk.back(None if first in known else walk.lead_in(first), first, end)


@dataclass(frozen=True)
class _Walk:
    """A walk over the steps between two snapshots."""

    run: Run
    look: Callable[[Move], Any]
    captured: Patterns | None
    folder: Path
    block: int  # steps
    kept: int

    def back(self, origin: Path | None, start: int, stop: int) -> Iterator[Any]:
        """What is found in some steps, last first; the weights before them are a snapshot's where there is no file."""
        if stop - start <= self.block:
            found = list(map(self.look, self._moves(origin, start, stop, self.captured)))  # which holds no move
            while found:
                yield found.pop()
            return
        firsts = _cut(start, stop, self.block, self.kept)
        files = {start: origin}
        for move in self._moves(origin, start, firsts[-1], ()):
            if move.step + 1 in firsts:
                files[move.step + 1] = self._keep(move)
        for first, end in reversed(list(pairwise((*firsts, stop)))):
            yield from self.back(files[first], first, end)
            if first != start:
                self._file(first).unlink()

    def lead_in(self, start: int) -> Path:
        """The weights before a step of which there is no snapshot, kept."""
        (move,) = self.run.moves(start - 1, start, ())
        return self._keep(move)

    def _moves(self, origin: Path | None, start: int, stop: int, captured: Patterns | None) -> Iterator[Move]:
        return self.run.moves(start, stop, captured, None if origin is None else _read(origin, start, self.run.device))

    def _keep(self, move: Move) -> Path:
        """Writes the weights and the state after a move."""
        flat = {f"weight/{unit}": weight for unit, weight in move.after.items()}
        flat |= {f"{name}/{unit}": x for unit, own in move.state.buffers.items() for name, x in own.items()}
        path = self._file(move.step + 1)
        save_file({name: x.detach().cpu().contiguous() for name, x in flat.items()}, path)
        return path

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.safetensors"


def _cut(start: int, stop: int, block: int, kept: int) -> list[int]:
    """The first steps of at most K pieces; the first piece may be shorter: a first pass need not go over the last."""
    size = block
    while size * kept < stop - start:
        size *= kept
    return [start, *range(stop - (stop - start - 1) // size * size, stop, size)]


def _read(path: Path, step: int, device: str) -> Origin:
    """The weights and the state before a step, in memory of their own: bits may depend on how memory is aligned."""
    params, buffers = Params(), dict[str, dict[str, Tensor]]()
    for key, tensor in load_file(path).items():
        name, _, unit = key.partition("/")
        own = on_device({unit: tensor.clone()}, device)[unit]
        buffers.setdefault(unit, {})
        if name == "weight":
            params[unit] = own
        else:
            buffers[unit][name] = own
    return params, State(step, buffers)


def find_whole(
    run: Run,
    folder: RunPath,
    what: Mapping[str, Any],
    find: Callable[[], Generator[int, None, Any]],
    *,
    start: int = 0,
    stop: int | None = None,
) -> Generator[int, None, None]:
    """Seals what is found of a span of steps as a whole, in a folder such as ``walk`` makes, unless it is there.

    For what only a whole span has: a walk that is stopped begins again.

    Args:
        run, folder, what, start: of ``walk``. Another ``stop`` is another walk.
        find: yields each step that it is done with, and returns a NamedTuple of tensors with at least one dimension.

    Yields:
        The steps that ``find`` yields; afterwards ``read_walk`` gives what it found.

    Raises:
        ValueError, RecordError: as ``walk``.
    """
    start, stop = run.span(start, stop)
    create(folder, {**what, "run": run.manifest["digest"], "start": start, "stop": stop, "machine": machine()})
    with lock(folder):
        if n_steps(folder):
            return
        found, last = (yield from find()), last_shard(folder)
        header = Header("steps", 0, stop - start, last.run, last.digest)
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in found._asdict().items()}
        write_sealed(file_path(folder, "steps", 0), header, tensors)
